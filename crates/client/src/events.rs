//! Records what happened to an object as Events, in the background and folded as [`correlator`] says.

mod correlator;

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::correlator::{Correlator, Identity, Outcome, Record, Write};
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
    annotations: BTreeMap<String, String>,
    at: Timestamp,
}

/// Happenings that wait for the writer; more are dropped, since Events are best effort.
const WAITING: usize = 1000;
/// Writes under way at the same time.
const WRITES: usize = 16;

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
        self.annotated(about, kind, reason, message, BTreeMap::new());
    }

    /// The same, with annotations of the Event, for those who read it by program.
    pub fn annotated(
        &self,
        about: &ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
        annotations: BTreeMap<String, String>,
    ) {
        let happening = Happening {
            about: about.clone(),
            kind,
            reason: reason.to_owned(),
            message: message.into(),
            annotations,
            at: Timestamp::now(),
        };
        if self.sender.try_send(happening).is_err() {
            tracing::debug!(reason, "event dropped: too many wait");
        }
    }
}

/// Folds happenings, and has at most [`WRITES`] Events on their way and one of each.
async fn write(client: Client, source: EventSource, mut receiver: mpsc::Receiver<Happening>) {
    let mut correlator = Correlator::default();
    let mut writes = FuturesUnordered::new();
    let mut open = true;
    while open || !writes.is_empty() {
        let next = tokio::select! {
            happening = receiver.recv(), if open && writes.len() < WRITES => match happening {
                Some(happening) => correlator.observe(happening, Instant::now()),
                None => {
                    open = false;
                    None
                }
            },
            Some((key, outcome)) = writes.next(), if !writes.is_empty() => correlator.written(&key, outcome),
        };
        if let Some(next) = next {
            writes.push(store(client.clone(), source.clone(), next));
        }
    }
}

/// Makes the Event, or raises the count of the one that is there.
async fn store(client: Client, source: EventSource, write: Write) -> (Identity, Outcome) {
    let Write { key, record: r } = write;
    let namespace = namespace_of(&r.about);
    let outcome = if r.stored == 0 {
        client.create::<Event>(&namespace, &new_event(&source, &r)).await.map(|_| ())
    } else {
        let patch = json!({"count": r.count, "lastTimestamp": Time(r.last), "message": r.message});
        client.patch::<Event>(&namespace, &r.name, &Patch::Merge(patch)).await.map(|_| ())
    };
    let outcome = match outcome {
        Ok(()) => Outcome::Stored(r.count),
        Err(error) if error.is_not_found() && r.stored > 0 => Outcome::Gone,
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "event not recorded");
            Outcome::Failed
        }
    };
    (key, outcome)
}

fn namespace_of(about: &ObjectReference) -> String {
    about.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned())
}

fn new_event(source: &EventSource, r: &Record) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(r.name.clone()),
            namespace: Some(namespace_of(&r.about)),
            annotations: (!r.annotations.is_empty()).then(|| r.annotations.clone()),
            ..ObjectMeta::default()
        },
        involved_object: r.about.clone(),
        type_: Some(r.kind.name().to_owned()),
        reason: Some(r.reason.clone()),
        message: Some(r.message.clone()),
        count: Some(r.count),
        first_timestamp: Some(Time(r.first)),
        last_timestamp: Some(Time(r.last)),
        source: Some(source.clone()),
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone(),
        ..Event::default()
    }
}
