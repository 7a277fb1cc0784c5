//! How long tasks of a control group waited for a resource (pressure stall information).
//!
//! Rule: the kernel's documentation, "PSI - Pressure Stall Information"; CRI v1, `PsiStats`. The kernel keeps it by groups of
//! the v2 tree, also of one without controllers beside those of v1.

use std::{fs, path::Path};

use cri::v1::{PsiData, PsiStats};

/// Of `cpu`, `memory` or `io`, in the group's folder; none where the kernel keeps none.
pub(crate) fn of(folder: &Path, resource: &str) -> Option<PsiStats> {
    parse(&fs::read_to_string(folder.join(format!("{resource}.pressure"))).ok()?)
}

/// Lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and `full ...`; the total in microseconds.
fn parse(text: &str) -> Option<PsiStats> {
    let data = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let of = |name: &str| {
            let mut pairs = line.split(' ').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let average = |name| of(name).and_then(|value| value.parse().ok()).unwrap_or_default();
        let total: u64 = of("total")?.parse().ok()?;
        Some(PsiData {
            total: total.saturating_mul(1000),
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
        })
    };
    Some(PsiStats { some: Some(data("some")?), full: data("full") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_are_read_and_totals_are_nanoseconds() {
        let text = "some avg10=1.50 avg60=0.20 avg300=0.03 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2\n";
        let found = parse(text).unwrap();
        assert_eq!(found.some, Some(PsiData { total: 7000, avg10: 1.5, avg60: 0.2, avg300: 0.03 }));
        assert_eq!(found.full.unwrap().total, 2000);
        let some = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(parse(some).unwrap().full, None);
        assert!(parse("").is_none() && parse("some total=x").is_none());
    }
}
