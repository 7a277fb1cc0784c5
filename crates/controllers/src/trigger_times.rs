//! When what endpoints show began to change: an annotation of Endpoints and their slices, from which the time is measured until
//! the network follows.
//!
//! Rule: `EndpointsLastChangeTriggerTime` of the core API. The times are those of the pods and of the service; which of them are new
//! is a measurement, made anew after a restart.
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;

use crate::ownership::uid;
use crate::pods;
use crate::runner::ObjectKey;

pub(crate) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What was seen of each service.
#[derive(Debug, Default)]
pub(crate) struct TriggerTimes(Mutex<HashMap<ObjectKey, Seen>>);

#[derive(Debug, Default)]
struct Seen {
    service: Option<Timestamp>,
    /// By the pods' uids.
    pods: HashMap<String, Timestamp>,
}

impl TriggerTimes {
    /// The earliest time that is new since the last look; at the first look the time the service was made. `None`: none is new.
    pub(crate) fn look(&self, key: &ObjectKey, service: &Service, pods: &[Arc<Pod>]) -> Option<Timestamp> {
        let made = service.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let now: HashMap<String, Timestamp> =
            pods.iter().filter_map(|p| Some((uid(&p.metadata).to_owned(), changed_at(p)?))).collect();
        let mut all = self.0.lock();
        let Some(seen) = all.get_mut(key) else {
            all.insert(key.clone(), Seen { service: made, pods: now });
            return made;
        };
        let of_pods = now.iter().filter(|(pod, at)| seen.pods.get(*pod).is_none_or(|old| *at > old));
        let of_pods = of_pods.map(|(_, at)| *at).min();
        let of_service = made.filter(|made| seen.service.is_none_or(|old| *made > old));
        *seen = Seen { service: made, pods: now };
        [of_pods, of_service].into_iter().flatten().min()
    }

    /// The service is gone.
    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }
}

/// A pod changes what endpoints show when it becomes ready, or stops being so.
fn changed_at(pod: &Pod) -> Option<Timestamp> {
    pods::condition(pod, "Ready")?.last_transition_time.as_ref().map(|t| t.0)
}

/// Writes the time down; without one, what an earlier change left goes.
pub(crate) fn note(meta: &mut ObjectMeta, at: Option<Timestamp>) {
    let mut notes = meta.annotations.take().unwrap_or_default();
    match at {
        Some(at) => notes.insert(TRIGGER_TIME.to_owned(), at.to_string()),
        None => notes.remove(TRIGGER_TIME),
    };
    meta.annotations = (!notes.is_empty()).then_some(notes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_earliest_new_time_counts_once() {
        let time = |minute: u8| format!("2026-01-01T00:{minute:02}:00Z");
        let service: Service =
            serde_json::from_value(json!({"metadata": {"creationTimestamp": time(0)}})).expect("service");
        let pods = |list: &[(&str, u8)]| -> Vec<Arc<Pod>> {
            let pod = |(name, at): &(&str, u8)| {
                let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": time(*at)}]);
                let pod = json!({"metadata": {"uid": name}, "status": {"conditions": ready}});
                Arc::new(serde_json::from_value(pod).expect("pod"))
            };
            list.iter().map(pod).collect()
        };
        let times = TriggerTimes::default();
        let key = ObjectKey::new("d", "web");
        let look = |list: &[(&str, u8)]| times.look(&key, &service, &pods(list)).map(|t| t.to_string());
        assert_eq!(look(&[("a", 5)]), Some(time(0)));
        assert_eq!(look(&[("a", 5)]), None);
        assert_eq!(look(&[("a", 5), ("b", 8), ("c", 7)]), Some(time(7)));
        assert_eq!(look(&[("a", 9), ("b", 8)]), Some(time(9)));
        // One that goes is no change whose time is known.
        assert_eq!(look(&[("a", 9)]), None);
        times.forget(&key);
        assert_eq!(look(&[("a", 9)]), Some(time(0)));
    }

    #[test]
    fn a_change_without_a_time_takes_the_annotation_away() {
        let mut meta = ObjectMeta::default();
        note(&mut meta, "2026-01-01T00:00:00Z".parse().ok());
        assert_eq!(meta.annotations.as_ref().expect("notes")[TRIGGER_TIME], "2026-01-01T00:00:00Z");
        note(&mut meta, None);
        assert_eq!(meta.annotations, None);
    }
}
