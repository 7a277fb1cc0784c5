//! Rolling-update bounds: maxSurge and maxUnavailable as numbers of pods.
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Whether a percentage is rounded up (surge) or down (unavailable).
#[derive(Clone, Copy)]
pub(super) enum Round {
    Up,
    Down,
}

/// An integer, or a percentage of `total`; malformed text counts as zero (validation refuses it earlier).
pub(super) fn resolve(value: Option<&IntOrString>, total: i32, round: Round) -> i32 {
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

/// The desired number of replicas.
pub(super) fn desired(d: &Deployment) -> i32 {
    d.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// Whether the strategy is RollingUpdate (also the default).
pub(super) fn is_rolling(d: &Deployment) -> bool {
    let kind = d.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.type_.as_deref());
    kind.is_none_or(|k| k == "RollingUpdate")
}

/// `(surge, unavailable)` in pods. When both come out as zero one pod may be unavailable, as no step could be made otherwise.
fn fenceposts(d: &Deployment) -> (i32, i32) {
    let rolling = d.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    let total = desired(d);
    let surge = resolve(rolling.and_then(|r| r.max_surge.as_ref()), total, Round::Up);
    let unavailable = resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), total, Round::Down);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// How many pods may exist above the desired number.
pub(super) fn max_surge(d: &Deployment) -> i32 {
    if is_rolling(d) { fenceposts(d).0 } else { 0 }
}

/// How many pods may be missing during a rolling update.
pub(super) fn max_unavailable(d: &Deployment) -> i32 {
    let total = desired(d);
    if !is_rolling(d) || total == 0 {
        return 0;
    }
    fenceposts(d).1.min(total)
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
