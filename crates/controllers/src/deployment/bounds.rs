//! Rolling-update bounds: maxSurge and maxUnavailable as numbers of pods.
use k8s_openapi::api::apps::v1::Deployment;

use crate::int_or_percent::{Round, resolve};

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
