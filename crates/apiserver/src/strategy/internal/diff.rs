//! Unified diffs of lines, with the choices of Ratcliff and Obershelp's matching that clients of the reference see.
//!
//! Rule: the longest run of equal lines first, then the same on both sides of it. In texts of 200 lines and more, lines
//! that make up over one percent do not start a run.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;

const CONTEXT: usize = 3;
/// From this many lines on, frequent lines do not start a run.
const LONG: usize = 200;

/// The hunks that make `old` into `new`; empty where they are equal.
pub(super) fn unified(old: &[String], new: &[String]) -> String {
    let mut out = String::new();
    for hunk in hunks(&blocks(old, new)) {
        let (Some(first), Some(last)) = (hunk.first(), hunk.last()) else { continue };
        let range = |start: usize, end: usize| match end - start {
            1 => format!("{}", start + 1),
            0 => format!("{start},0"),
            n => format!("{},{n}", start + 1),
        };
        let (a, b) = (first.old.start..last.old.end, first.new.start..last.new.end);
        let _ = writeln!(out, "@@ -{} +{} @@", range(a.start, a.end), range(b.start, b.end));
        for step in &hunk {
            let (gone, come) = (&old[step.old.clone()], &new[step.new.clone()]);
            if step.is_equal {
                gone.iter().for_each(|line| _ = writeln!(out, " {line}"));
            } else {
                gone.iter().for_each(|line| _ = writeln!(out, "-{line}"));
                come.iter().for_each(|line| _ = writeln!(out, "+{line}"));
            }
        }
    }
    out
}

#[derive(Clone)]
struct Step {
    is_equal: bool,
    old: Range<usize>,
    new: Range<usize>,
}

/// The longest run of equal lines in both ranges: the first of several.
fn longest(
    old: &[String],
    places: &HashMap<&str, Vec<usize>>,
    new: &[String],
    within: &(Range<usize>, Range<usize>),
) -> (usize, usize, usize) {
    let (a, b) = within;
    let (mut i, mut j, mut size) = (a.start, b.start, 0);
    let mut lengths: HashMap<usize, usize> = HashMap::new();
    for (x, line) in old.iter().enumerate().take(a.end).skip(a.start) {
        let mut next = HashMap::new();
        for &y in places.get(line.as_str()).into_iter().flatten().filter(|y| b.contains(y)) {
            let run = y.checked_sub(1).and_then(|y| lengths.get(&y)).copied().unwrap_or(0) + 1;
            next.insert(y, run);
            if run > size {
                (i, j, size) = (x + 1 - run, y + 1 - run, run);
            }
        }
        lengths = next;
    }
    while i > a.start && j > b.start && old[i - 1] == new[j - 1] {
        (i, j, size) = (i - 1, j - 1, size + 1);
    }
    while i + size < a.end && j + size < b.end && old[i + size] == new[j + size] {
        size += 1;
    }
    (i, j, size)
}

/// Runs of equal and of different lines, in turn.
fn blocks(old: &[String], new: &[String]) -> Vec<Step> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (y, line) in new.iter().enumerate() {
        places.entry(line).or_default().push(y);
    }
    if new.len() >= LONG {
        places.retain(|_, at| at.len() <= new.len() / 100 + 1);
    }
    let mut runs = Vec::new();
    let mut todo = vec![(0..old.len(), 0..new.len())];
    while let Some(within) = todo.pop() {
        let (i, j, size) = longest(old, &places, new, &within);
        if size > 0 {
            runs.push((i, j, size));
            todo.push((within.0.start..i, within.1.start..j));
            todo.push((i + size..within.0.end, j + size..within.1.end));
        }
    }
    runs.sort_unstable();
    runs.push((old.len(), new.len(), 0));
    let (mut steps, mut a, mut b) = (Vec::<Step>::new(), 0, 0);
    for (i, j, size) in runs {
        if a < i || b < j {
            steps.push(Step { is_equal: false, old: a..i, new: b..j });
        }
        match steps.last_mut() {
            // two runs that touch are one
            Some(last) if last.is_equal && size > 0 => {
                (last.old.end, last.new.end) = (i + size, j + size);
            }
            _ if size > 0 => steps.push(Step { is_equal: true, old: i..i + size, new: j..j + size }),
            _ => {}
        }
        (a, b) = (i + size, j + size);
    }
    steps
}

/// Changes that stand near each other, with the lines around them.
fn hunks(steps: &[Step]) -> Vec<Vec<Step>> {
    let (mut all, mut hunk) = (Vec::new(), Vec::new());
    let last = steps.len().saturating_sub(1);
    for (n, step) in steps.iter().enumerate() {
        if !step.is_equal {
            hunk.push(step.clone());
            continue;
        }
        let (size, mut step) = (step.old.len(), step.clone());
        if n > 0 && n < last && size <= 2 * CONTEXT {
            hunk.push(step);
            continue;
        }
        if n > 0 {
            let shown = size.min(CONTEXT);
            let head = Step {
                is_equal: true,
                old: step.old.start..step.old.start + shown,
                new: step.new.start..step.new.start + shown,
            };
            hunk.push(head);
            all.push(std::mem::take(&mut hunk));
        }
        if n < last {
            let shown = size.min(CONTEXT);
            step.old.start = step.old.end - shown;
            step.new.start = step.new.end - shown;
            hunk.push(step);
        }
    }
    if hunk.iter().any(|s| !s.is_equal) {
        all.push(hunk);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diff(old: &str, new: &str) -> String {
        let lines = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        unified(&lines(old), &lines(new)).replace('\n', "")
    }

    #[test]
    fn changes_stand_with_what_surrounds_them() {
        assert_eq!(diff("abc", "abc"), "");
        assert_eq!(diff("abcdefgh", "abcdXfgh"), "@@ -2,7 +2,7 @@ b c d-e+X f g h");
        assert_eq!(diff("a", "b"), "@@ -1 +1 @@-a+b");
        assert_eq!(diff("", "b"), "@@ -0,0 +1 @@+b");
        assert_eq!(diff("0abcdefgh1", "9abcdefgh2"), "@@ -1,4 +1,4 @@-0+9 a b c@@ -7,4 +7,4 @@ f g h-1+2");
    }
}
