//! Numbers that may be given as a percentage: maxSurge, maxUnavailable.
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Whether a percentage is rounded up (surge) or down (unavailable).
#[derive(Clone, Copy)]
pub(crate) enum Round {
    Up,
    Down,
}

/// An integer, or a percentage of `total`; malformed text counts as zero (validation refuses it earlier).
pub(crate) fn resolve(value: Option<&IntOrString>, total: i32, round: Round) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(text)) => {
            let Some(percent) = text.strip_suffix('%').and_then(|p| p.parse::<i64>().ok()) else { return 0 };
            let scaled = percent.saturating_mul(i64::from(total));
            let result = match round {
                Round::Up => scaled.saturating_add(99).div_euclid(100),
                Round::Down => scaled.div_euclid(100),
            };
            i32::try_from(result).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surge_rounds_up_and_unavailable_rounds_down() {
        let quarter = IntOrString::String("25%".into());
        assert_eq!(resolve(Some(&quarter), 10, Round::Up), 3);
        assert_eq!(resolve(Some(&quarter), 10, Round::Down), 2);
        assert_eq!(resolve(Some(&IntOrString::Int(4)), 10, Round::Down), 4);
        assert_eq!(resolve(Some(&IntOrString::String("100%".into())), i32::MAX, Round::Up), i32::MAX);
        assert_eq!(resolve(Some(&IntOrString::String("x".into())), 10, Round::Up), 0);
    }
}
