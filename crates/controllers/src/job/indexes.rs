//! Sets of completion indexes as intervals: how a job's `completedIndexes` and `failedIndexes` write them down.
use std::fmt;

/// Ordered intervals that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads `1,3-5,7`; what lies at or above `completions`, or cannot be read, is left out.
    pub(super) fn parse(text: &str, completions: i32) -> Self {
        let interval = |part: &str| -> Option<(i32, i32)> {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.parse::<i32>().ok()?, last.parse::<i32>().ok()?);
            (first >= 0 && first < completions && first <= last)
                .then(|| (first, last.min(completions.saturating_sub(1))))
        };
        Self::from_intervals(text.split(',').filter_map(interval).collect())
    }

    fn from_intervals(mut all: Vec<(i32, i32)>) -> Self {
        all.sort_unstable();
        let mut merged: Vec<(i32, i32)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// Both together.
    pub(super) fn union(&self, other: &Indexes) -> Self {
        Self::from_intervals(self.0.iter().chain(&other.0).copied().collect())
    }

    /// How many indexes.
    pub(super) fn len(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, index: i32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    /// How many indexes are in both.
    pub(super) fn common(&self, other: &Indexes) -> i32 {
        let (mut a, mut b, mut sum) = (0, 0, 0);
        while let (Some(x), Some(y)) = (self.0.get(a), other.0.get(b)) {
            sum += (x.1.min(y.1) - x.0.max(y.0) + 1).max(0);
            if x.1 <= y.1 {
                a += 1;
            } else {
                b += 1;
            }
        }
        sum
    }

    /// The lowest `count` indexes below `completions` that are not in it.
    pub(super) fn missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let ends = self.0.iter().copied().chain([(completions, completions)]);
        let mut next = 0;
        let mut free = Vec::new();
        for (first, last) in ends {
            free.extend((next..first.min(completions)).take(count - free.len()));
            next = next.max(last.saturating_add(1));
        }
        free
    }
}

impl FromIterator<i32> for Indexes {
    fn from_iter<I: IntoIterator<Item = i32>>(all: I) -> Self {
        Self::from_intervals(all.into_iter().map(|i| (i, i)).collect())
    }
}

/// Two neighbours are written `3,4`, three and more `3-5`.
impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_merged_and_written_as_the_reference_does() {
        let check = |text: &str, completions, want: &str, len| {
            let indexes = Indexes::parse(text, completions);
            assert_eq!((indexes.to_string().as_str(), indexes.len()), (want, len), "{text}");
        };
        check("", 10, "", 0);
        check("1,2,3,5,6", 10, "1-3,5,6", 5);
        check("1-3,4-6", 10, "1-6", 6);
        check("0-9", 5, "0-4", 5);
        check("7", 5, "", 0);
        check("x,1,-3,2-z", 5, "1", 1);
    }

    #[test]
    fn missing_indexes_are_the_lowest_free_ones() {
        let taken = Indexes::parse("1-3,6", 10);
        assert_eq!(taken.missing(4, 10), [0, 4, 5, 7]);
        assert_eq!(taken.missing(100, 8), [0, 4, 5, 7]);
        assert_eq!(taken.missing(100, 5), [0, 4]);
        assert!(taken.missing(0, 10).is_empty());
        assert!(taken.contains(2) && taken.contains(6) && !taken.contains(0) && !taken.contains(4));
    }

    #[test]
    fn common_indexes_are_counted_over_intervals() {
        let (a, b) = (Indexes::parse("0-4,8", 100), Indexes::parse("3-8,20", 100));
        assert_eq!((a.common(&b), b.common(&a)), (3, 3));
        assert_eq!(a.union(&b).to_string(), "0-8,20");
    }
}
