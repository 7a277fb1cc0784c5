//! Writes a pod's status: in the background, one write at a time, always the newest one, until it is accepted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Client, Patch};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::pod_status::{RESIZE_IN_PROGRESS, RESIZE_PENDING};
use crate::static_pods::is_static;

/// Between tries when the API does not take a status.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

#[derive(Default)]
struct State {
    wanted: Option<PodStatus>,
    /// Since when something waits to be told.
    since: Option<Instant>,
    reported: Option<PodStatus>,
    busy: bool,
    gone: bool,
    /// The revision that the last write made.
    written: u64,
    /// Of the object that is written to; none while a static pod's image is not there.
    uid: Option<String>,
    /// The object may be made again.
    mirrored: bool,
}

/// The status of one pod on its way to the API; clones share it.
#[derive(Clone)]
pub struct StatusWriter {
    client: Client,
    namespace: String,
    name: String,
    state: Arc<Mutex<State>>,
    idle: Arc<Notify>,
}

impl StatusWriter {
    /// For `pod`; nothing is written yet.
    pub fn new(client: Client, pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let mirrored = is_static(pod);
        let uid = meta.uid.clone().filter(|_| !mirrored);
        Self {
            client,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            state: Arc::new(Mutex::new(State { uid, mirrored, ..State::default() })),
            idle: Arc::default(),
        }
    }

    /// Reports `status` where it differs from the last one, or where somebody else has said otherwise since, as `seen` shows
    /// (the pods of a node that was lost for a moment are no longer ready for the cluster); returns at once. A status
    /// that waits behind a write is replaced by a newer one.
    pub fn set(&self, mut status: PodStatus, seen: &Pod) {
        let mut state = self.state.lock();
        let last = state.wanted.as_ref().or(state.reported.as_ref());
        let on_its_way = state.busy || state.wanted.is_some();
        if on_its_way || revision(seen) < state.written {
            keep_times(&mut status, last);
        }
        let stands = on_its_way || !is_contradicted(&status, seen, state.written);
        if last == Some(&status) && stands || state.gone {
            return;
        }
        state.wanted = Some(status);
        state.since.get_or_insert_with(Instant::now);
        self.begin(&mut state);
    }

    /// A static pod's image is there, with this uid: everything is told to it.
    pub fn image_is(&self, uid: Option<&str>) {
        let mut state = self.state.lock();
        if state.uid.as_deref() == uid {
            return;
        }
        state.uid = uid.map(str::to_owned);
        state.wanted = state.wanted.take().or_else(|| state.reported.take());
        self.begin(&mut state);
    }

    fn begin(&self, state: &mut State) {
        if !state.busy && state.uid.is_some() && state.wanted.is_some() {
            state.busy = true;
            tokio::spawn(self.clone().write());
        }
    }

    /// Waits until everything set so far is written (or the pod is gone).
    pub async fn flush(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if !self.state.lock().busy {
                return;
            }
            idle.await;
        }
    }

    /// The same, or until `stop`: an API that does not answer keeps no kubelet from stopping. Whether everything is written.
    pub async fn flushed(&self, stop: &CancellationToken) -> bool {
        tokio::select! {
            () = stop.cancelled() => false,
            () = self.flush() => true,
        }
    }

    async fn write(self) {
        let mut backoff = client::queue::Backoff::new(RETRY.0, RETRY.1);
        loop {
            let next = {
                let mut state = self.state.lock();
                let uid = state.uid.clone().filter(|_| !state.gone);
                let next = uid.and_then(|uid| Some((uid, state.wanted.take()?)));
                state.busy = next.is_some();
                if let Some((_, status)) = &next {
                    // said before it is done, so that the same status is not queued behind its own write
                    state.reported = Some(status.clone());
                }
                next
            };
            let Some((uid, status)) = next else {
                self.idle.notify_waiters();
                return;
            };
            let patch = Patch::Strategic(json!({"metadata": {"uid": uid}, "status": body(&status)}));
            match self.client.patch_status::<Pod>(&self.namespace, &self.name, &patch).await {
                Ok(pod) => {
                    backoff.reset();
                    let mut state = self.state.lock();
                    state.written = revision(&pod);
                    // what came meanwhile waits from now
                    let next = state.wanted.as_ref().map(|_| Instant::now());
                    if let Some(since) = std::mem::replace(&mut state.since, next) {
                        metrics::STATUS_SYNC.time(&[], since.elapsed());
                    }
                }
                Err(error) if self.is_gone(&uid, &error).await => {
                    let mut state = self.state.lock();
                    if !state.mirrored {
                        state.gone = true;
                    } else if state.uid.as_deref() == Some(uid.as_str()) {
                        state.uid = None;
                        state.wanted.get_or_insert(status);
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        pod = self.name,
                        error = &error as &dyn std::error::Error,
                        "status not reported"
                    );
                    self.state.lock().wanted.get_or_insert(status);
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }
}

impl StatusWriter {
    /// Whether the write failed because the pod was deleted, or another one has its name by now.
    async fn is_gone(&self, uid: &str, error: &client::Error) -> bool {
        // a uid that is not the object's is refused as any field that may not change; a conflict may be one of a moment
        if !error.is_invalid() && !error.is_conflict() {
            return error.is_not_found();
        }
        match self.client.get::<Pod>(&self.namespace, &self.name).await {
            Ok(pod) => pod.metadata.uid.as_deref() != Some(uid),
            Err(error) => error.is_not_found(),
        }
    }
}

fn revision(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

/// A condition that is as it was told last has changed when it was told: who saw an older pod cannot know.
fn keep_times(status: &mut PodStatus, last: Option<&PodStatus>) {
    let told = last.and_then(|last| last.conditions.as_deref()).unwrap_or_default();
    for condition in status.conditions.iter_mut().flatten() {
        let same = told.iter().find(|one| one.type_ == condition.type_ && one.status == condition.status);
        if let Some(same) = same {
            condition.last_transition_time = same.last_transition_time.clone();
        }
    }
}

/// Whether a pod that is newer than what was `written` has other conditions than `status` says.
fn is_contradicted(status: &PodStatus, pod: &Pod, written: u64) -> bool {
    let theirs = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    revision(pod) > written
        && status
            .conditions
            .iter()
            .flatten()
            .any(|ours| theirs.iter().any(|other| other.type_ == ours.type_ && other.status != ours.status))
}

/// The status as a strategic merge patch: what is absent is said to be so, and lists that merge by key are replaced.
fn body(status: &PodStatus) -> Value {
    let mut body = json!(status);
    for list in ["podIPs", "hostIPs"] {
        if let Some(items) = body.get_mut(list).and_then(Value::as_array_mut) {
            items.push(json!({"$patch": "replace"}));
        }
    }
    if let Some(conditions) = body.get_mut("conditions").and_then(Value::as_array_mut) {
        for condition in conditions.iter_mut() {
            absent(condition, &["reason", "message"]);
        }
        // those that are there for a time only; the others are never taken away
        for kind in [RESIZE_PENDING, RESIZE_IN_PROGRESS] {
            if !conditions.iter().any(|condition| condition["type"] == kind) {
                conditions.push(json!({"type": kind, "$patch": "delete"}));
            }
        }
    }
    absent(&mut body, &["reason", "message", "podIP"]);
    body
}

fn absent(value: &mut Value, fields: &[&str]) {
    for field in fields {
        if value.get(field).is_none() {
            value[*field] = Value::Null;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::BodyExt as _;

    use super::*;

    /// An API that never answers.
    struct Silence;

    #[async_trait::async_trait]
    impl client::Transport for Silence {
        async fn send(
            &self,
            _: http::Request<Bytes>,
        ) -> Result<http::Response<client::Body>, client::TransportError> {
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_told_is_not_waited_for_when_the_kubelet_stops() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u"}})).unwrap();
        let (writer, stop) =
            (StatusWriter::new(Client::new(Arc::new(Silence)), &pod), CancellationToken::new());
        assert!(writer.flushed(&stop).await, "nothing is to be told");
        writer.set(PodStatus { phase: Some("Failed".to_owned()), ..PodStatus::default() }, &pod);
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, writer.flushed(&stop)).await.is_err());
        stop.cancel();
        assert!(!writer.flushed(&stop).await);
    }

    /// An API in which a status meets a conflict once.
    #[derive(Default)]
    struct Busy(Mutex<Vec<(http::Method, Bytes)>>);

    #[async_trait::async_trait]
    impl client::Transport for Busy {
        async fn send(
            &self,
            request: http::Request<Bytes>,
        ) -> Result<http::Response<client::Body>, client::TransportError> {
            let (method, body) = (request.method().clone(), request.into_body());
            let first = self.0.lock().is_empty();
            self.0.lock().push((method, body));
            let answer = match first {
                true => json!({"apiVersion": "v1", "kind": "Status", "code": 409, "reason": "Conflict"}),
                false => json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"uid": "u"}}),
            };
            let body = http_body_util::Full::new(Bytes::from(answer.to_string()));
            let response = http::Response::builder().status(if first { 409 } else { 200 });
            Ok(response.body(body.map_err(|never| match never {}).boxed_unsync()).unwrap())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_that_met_a_conflict_is_written_again() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u"}})).unwrap();
        let api = Arc::new(Busy::default());
        let writer = StatusWriter::new(Client::new(api.clone()), &pod);
        writer.set(PodStatus { phase: Some("Failed".to_owned()), ..PodStatus::default() }, &pod);
        writer.flush().await;
        let asked = api.0.lock();
        let methods: Vec<&str> = asked.iter().map(|(method, _)| method.as_str()).collect();
        assert_eq!(methods, ["PATCH", "GET", "PATCH"]);
        assert_eq!(asked[0].1, asked[2].1);
    }

    #[test]
    fn only_what_came_after_the_last_write_contradicts_it() {
        let status: PodStatus =
            serde_json::from_value(json!({"conditions": [{"type": "Ready", "status": "True"}]})).unwrap();
        let seen = |revision: &str, kind: &str, value: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"resourceVersion": revision},
                "status": {"conditions": [{"type": kind, "status": value}]}}))
            .unwrap()
        };
        assert!(is_contradicted(&status, &seen("8", "Ready", "False"), 7));
        assert!(!is_contradicted(&status, &seen("8", "Ready", "True"), 7));
        assert!(!is_contradicted(&status, &seen("8", "other.io/gate", "False"), 7));
        assert!(!is_contradicted(&status, &seen("7", "Ready", "False"), 7), "older than what was written");
    }

    #[test]
    fn what_a_status_no_longer_says_is_taken_away() {
        let status: PodStatus = serde_json::from_value(json!({"phase": "Running", "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "Ready", "status": "True"}]}))
        .unwrap();
        assert_eq!(
            body(&status),
            json!({"phase": "Running", "podIP": "10.0.0.1", "reason": null, "message": null,
                "podIPs": [{"ip": "10.0.0.1"}, {"$patch": "replace"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null},
                    {"type": "PodResizePending", "$patch": "delete"},
                    {"type": "PodResizeInProgress", "$patch": "delete"}]})
        );
    }
}
