//! Records what happened to an object as Events, in the background and folded: the same happening again
//! raises the count of the Event that is there instead of making another.
//!
//! A burst is bounded: each source and object has 25 new Events at once and one more every five minutes, as
//! the reference's event correlator allows.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::{Client, Kind, Patch};

/// Whether an Event needs attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Expected.
    Normal,
    /// Something is wrong.
    Warning,
}

impl EventType {
    /// The `type` field.
    pub fn name(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// A reference to `object`, as Events carry it.
pub fn reference<K: Kind>(object: &K) -> ObjectReference {
    let meta = object.metadata();
    ObjectReference {
        api_version: Some(K::API_VERSION.to_owned()),
        kind: Some(K::KIND.to_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

struct Happening {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Happenings that wait for the writer; more are dropped, since Events are best effort.
const WAITING: usize = 1000;
/// Events remembered for folding.
const REMEMBERED: usize = 4096;
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);

/// Records Events of one component; clone it freely.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Happening>,
}

impl Recorder {
    /// Starts the writer task. `component` and `host` name the source (host may be empty).
    pub fn new(client: Client, component: &str, host: &str) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: (!host.is_empty()).then(|| host.to_owned()),
        };
        tokio::spawn(write(client, source, receiver));
        Self { sender }
    }

    /// Records that something happened to `about`. Never waits.
    pub fn event(&self, about: &ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        let happening = Happening {
            about: about.clone(),
            kind,
            reason: reason.to_owned(),
            message: message.into(),
            at: Timestamp::now(),
        };
        if self.sender.try_send(happening).is_err() {
            tracing::debug!(reason, "event dropped: too many wait");
        }
    }
}

#[derive(Hash, PartialEq, Eq, Clone)]
struct Identity {
    uid: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    field: Option<String>,
    kind: EventType,
    reason: String,
    message: String,
}

struct Known {
    namespace: String,
    name: String,
    count: i32,
}

async fn write(client: Client, source: EventSource, mut receiver: mpsc::Receiver<Happening>) {
    let mut known: HashMap<Identity, Known> = HashMap::new();
    let mut budget: HashMap<(Option<String>, Option<String>), (f64, Instant)> = HashMap::new();
    while let Some(h) = receiver.recv().await {
        if known.len() > REMEMBERED {
            known.clear();
        }
        if budget.len() > REMEMBERED {
            budget.clear();
        }
        let now = Instant::now();
        let id = Identity {
            uid: h.about.uid.clone(),
            namespace: h.about.namespace.clone(),
            name: h.about.name.clone(),
            field: h.about.field_path.clone(),
            kind: h.kind,
            reason: h.reason.clone(),
            message: h.message.clone(),
        };
        let (tokens, last) =
            budget.entry((h.about.uid.clone(), h.about.name.clone())).or_insert((BURST, now));
        *tokens = (*tokens + now.duration_since(*last).as_secs_f64() / REFILL.as_secs_f64()).min(BURST);
        *last = now;
        if *tokens < 1.0 {
            continue;
        }
        *tokens -= 1.0;
        if let Some(event) = known.get_mut(&id) {
            event.count += 1;
            let patch =
                json!({"count": event.count, "lastTimestamp": Time(h.at), "message": h.message.as_str()});
            match client.patch::<Event>(&event.namespace, &event.name, &Patch::Merge(patch)).await {
                Ok(_) => continue,
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "event not recorded");
                    continue;
                }
            }
        }
        let event = new_event(&source, &h);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        match client.create::<Event>(&namespace, &event).await {
            Ok(made) => {
                let name = made.metadata.name.unwrap_or_default();
                known.insert(id, Known { namespace, name, count: 1 });
            }
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "event not recorded"),
        }
    }
}

fn new_event(source: &EventSource, h: &Happening) -> Event {
    let namespace =
        h.about.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned());
    let name = format!("{}.{:x}", h.about.name.as_deref().unwrap_or_default(), h.at.as_nanosecond());
    Event {
        metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
        involved_object: h.about.clone(),
        type_: Some(h.kind.name().to_owned()),
        reason: Some(h.reason.clone()),
        message: Some(h.message.chars().take(1024).collect()),
        count: Some(1),
        first_timestamp: Some(Time(h.at)),
        last_timestamp: Some(Time(h.at)),
        source: Some(source.clone()),
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone(),
        ..Event::default()
    }
}
