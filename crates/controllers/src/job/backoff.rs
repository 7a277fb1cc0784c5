//! When a job's failed pods may be replaced: 10 s after the first failure, twice as long after each further one, at most
//! 10 minutes; a success ends the series.
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::pods;

const FIRST: SignedDuration = SignedDuration::from_secs(10);
const LONGEST: SignedDuration = SignedDuration::from_secs(600);

/// The failures since the last success.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    failures: u32,
    last: Option<Timestamp>,
}

impl Backoff {
    /// The series after pods that ended since, by the times they ended at.
    pub(super) fn after(self, succeeded: &[Timestamp], failed: &[Timestamp]) -> Self {
        let (before, success) = match succeeded.iter().max() {
            Some(success) => (Self::default(), Some(success)),
            None => (self, None),
        };
        let since: Vec<_> = failed.iter().filter(|t| success.is_none_or(|s| *t > s)).collect();
        Self {
            failures: before.failures.saturating_add(u32::try_from(since.len()).unwrap_or(u32::MAX)),
            last: since.into_iter().max().copied().or(before.last),
        }
    }

    /// How long to wait from `now` on; zero when pods may be made.
    pub(super) fn remaining(self, now: Timestamp) -> SignedDuration {
        self.last.map_or(SignedDuration::ZERO, |last| remaining(self.failures, last, now))
    }
}

/// How long to wait after `failures` in a row of which the last was at `last`.
pub(super) fn remaining(failures: u32, last: Timestamp, now: Timestamp) -> SignedDuration {
    if failures == 0 {
        return SignedDuration::ZERO;
    }
    // Ten doublings are more than enough to reach the longest.
    let wait = (FIRST * (1 << (failures - 1).min(10))).min(LONGEST);
    (wait - now.duration_since(last)).max(SignedDuration::ZERO)
}

/// When a pod ended: its last container's end, else since when it is not ready, else when its deletion was asked for.
pub(super) fn finished_at(pod: &Pod) -> Timestamp {
    let not_ready = || {
        let condition = pods::condition(pod, "Ready").filter(|c| c.status == "False")?;
        condition.last_transition_time.as_ref().map(|t| t.0)
    };
    let deleted = || {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        pod.metadata.deletion_timestamp.as_ref()?.0.checked_sub(SignedDuration::from_secs(grace)).ok()
    };
    containers_end(pod)
        .or_else(not_ready)
        .or_else(deleted)
        .or_else(|| pod.metadata.creation_timestamp.as_ref().map(|t| t.0))
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The end of the last container, sidecars included; `None` when one of them has not ended.
fn containers_end(pod: &Pod) -> Option<Timestamp> {
    let (status, spec) = (pod.status.as_ref()?, pod.spec.as_ref()?);
    let is_sidecar = |status: &&ContainerStatus| {
        let mut specs = spec.init_containers.iter().flatten();
        specs.any(|c| c.name == status.name && c.restart_policy.as_deref() == Some("Always"))
    };
    let sidecars = status.init_container_statuses.iter().flatten().filter(is_sidecar);
    let end = |c: &ContainerStatus| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0);
    let ends: Option<Vec<_>> = status.container_statuses.iter().flatten().chain(sidecars).map(end).collect();
    ends?.into_iter().max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_ten_minutes_and_a_success_ends_it() {
        let at = |seconds: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds);
        let left = |b: Backoff, now: i64| b.remaining(at(now)).as_secs();
        let one = Backoff::default().after(&[], &[at(100)]);
        assert_eq!([left(one, 100), left(one, 104), left(one, 110), left(one, 200)], [10, 6, 0, 0]);
        let three = one.after(&[], &[at(200), at(150)]);
        assert_eq!(left(three, 200), 40);
        let many = three.after(&[], &vec![at(300); 50]);
        assert_eq!(left(many, 300), 600);
        assert_eq!(left(many.after(&[at(310)], &[]), 310), 0);
        // A failure after the success counts as the first.
        assert_eq!(left(many.after(&[at(310)], &[at(305), at(320)]), 320), 10);
    }
}
