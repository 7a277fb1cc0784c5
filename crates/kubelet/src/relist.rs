//! A runtime that sends no events (containerd before 1.7) is asked again and again, once for the whole node: the pods in which
//! something changed are woken.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use cri::v1;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::observed::POD_UID;

/// Between two looks, as other kubelets take.
const RELIST: Duration = Duration::from_secs(1);

/// Sandboxes and containers with their states, by pod.
type Seen = HashMap<String, BTreeSet<(String, i32)>>;

/// Calls `changed` with the uids of pods until `stop`, or until the runtime does not answer: then why.
pub async fn follow(
    runtime: &mut cri::RuntimeClient,
    stop: &CancellationToken,
    changed: impl Fn(&str),
) -> Option<tonic::Status> {
    let (mut known, mut last) = (Seen::new(), None);
    let mut timer = tokio::time::interval(RELIST);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return None,
            _ = timer.tick() => {}
        }
        let begin = Instant::now();
        let now = match look(runtime).await {
            Ok(now) => now,
            Err(error) => return Some(error),
        };
        metrics::RELIST.time(&[], begin.elapsed());
        if let Some(last) = last.replace(begin) {
            metrics::RELIST_INTERVAL.time(&[], begin.duration_since(last));
        }
        for uid in differing(&known, &now) {
            changed(uid);
        }
        known = now;
    }
}

async fn look(runtime: &mut cri::RuntimeClient) -> Result<Seen, tonic::Status> {
    let sandboxes = runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.into_inner().items;
    let containers = runtime.list_containers(v1::ListContainersRequest::default()).await?.into_inner();
    let mut seen = Seen::new();
    let all = sandboxes.into_iter().map(|sandbox| (sandbox.labels, sandbox.id, sandbox.state));
    let all = all.chain(containers.containers.into_iter().map(|one| (one.labels, one.id, one.state)));
    for (mut labels, id, state) in all {
        if let Some(uid) = labels.remove(POD_UID) {
            seen.entry(uid).or_default().insert((id, state));
        }
    }
    Ok(seen)
}

fn differing<'a>(known: &'a Seen, now: &'a Seen) -> BTreeSet<&'a str> {
    let all = known.keys().chain(now.keys());
    all.filter(|uid| known.get(*uid) != now.get(*uid)).map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(list: &[(&str, &str, i32)]) -> Seen {
        let mut seen = Seen::new();
        for (uid, id, state) in list {
            seen.entry((*uid).to_owned()).or_default().insert(((*id).to_owned(), *state));
        }
        seen
    }

    #[test]
    fn pods_with_a_change_are_named_once() {
        let before = seen(&[("same", "a", 0), ("ended", "b", 1), ("gone", "c", 0), ("more", "d", 0)]);
        let after =
            seen(&[("same", "a", 0), ("ended", "b", 2), ("new", "e", 0), ("more", "d", 0), ("more", "f", 0)]);
        let names: Vec<&str> = differing(&before, &after).into_iter().collect();
        assert_eq!(names, ["ended", "gone", "more", "new"]);
    }
}
