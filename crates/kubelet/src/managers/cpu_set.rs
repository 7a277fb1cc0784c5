//! Sets of processors as the kernel and Kubernetes write them: `0-3,8`.

use std::collections::BTreeSet;
use std::fmt;

/// Larger numbers than any machine has processors are refused, so that a range cannot fill the memory.
const MOST: usize = 1 << 16;

/// Processors by number, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<usize>);

impl CpuSet {
    /// Reads a list of numbers and ranges; nothing for an empty text. The error is that of the reference.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            let number: usize =
                part.parse().map_err(|_| format!("strconv.Atoi: parsing {part:?}: invalid syntax"))?;
            if number < MOST { Ok(number) } else { Err(format!("processor {number} is out of range")) }
        };
        let mut found = BTreeSet::new();
        for part in text.trim().split(',').filter(|_| !text.trim().is_empty()) {
            match part.split_once('-') {
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(format!("invalid range {part:?} ({first} > {last})"));
                    }
                    found.extend(first..=last);
                }
                None => {
                    found.insert(number(part)?);
                }
            }
        }
        Ok(Self(found))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().copied()
    }

    /// Those of both.
    pub fn union(&self, other: &Self) -> Self {
        Self(&self.0 | &other.0)
    }

    /// Those that the other has not.
    pub fn minus(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }

    /// Those that both have.
    pub fn and(&self, other: &Self) -> Self {
        Self(&self.0 & &other.0)
    }

    /// Whether the other has all of them.
    pub fn within(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }
}

impl FromIterator<usize> for CpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for cpu in self.iter() {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                _ => ranges.push((cpu, cpu)),
            }
        }
        for (at, (first, last)) in ranges.into_iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            if first == last {
                write!(to, "{comma}{first}")?;
            } else {
                write!(to, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        let check = |text: &str, written: &str| assert_eq!(CpuSet::parse(text).unwrap().to_string(), written);
        check("", "");
        check("3,0-1,2,8\n", "0-3,8");
        check("7", "7");
        let refused = |text: &str, why: &str| assert_eq!(CpuSet::parse(text).unwrap_err(), why);
        refused("1.3", "strconv.Atoi: parsing \"1.3\": invalid syntax");
        refused("3-1", "invalid range \"3-1\" (3 > 1)");
        refused("0-4000000000", "processor 4000000000 is out of range");
    }
}
