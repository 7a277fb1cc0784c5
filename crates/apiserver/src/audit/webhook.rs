//! The audit webhook: events in batches, as an `EventList`, to a program outside.
//!
//! One task collects and sends; its buffer is bounded. What finds it full is lost and said so, as upstream does: requests
//! wait for the program only in the blocking modes. A batch that is not taken is sent again with growing pauses.
//!
//! Rule: Kubernetes documentation, "Auditing", "Webhook backend", "Batching"; kube-apiserver's `--audit-webhook-...` flags.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json, value::RawValue};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::watch_cache::WatchCache;
use crate::webhook::{Hook, HookError, KubeconfigHookError};

/// Times that a batch is sent.
const TRIES: u32 = 5;
/// Each pause is this much longer than the one before, ...
const FACTOR: f64 = 1.5;
/// ... and up to this part longer by chance.
const JITTER: f64 = 0.2;
/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(30);
const LOST: &str = "an audit event was lost: the webhook's buffer is full";
/// Batches under way at the same time.
const PARALLEL: usize = 10;

/// How long requests wait for the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Not at all: events are collected and sent later.
    #[default]
    Batch,
    /// Until each event is sent; what the program says changes nothing.
    Blocking,
    /// As `Blocking`, but a request whose first event is not taken is refused.
    BlockingStrict,
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "batch" => Ok(Self::Batch),
            "blocking" => Ok(Self::Blocking),
            "blocking-strict" => Ok(Self::BlockingStrict),
            _ => Err("must be one of batch, blocking, blocking-strict".to_owned()),
        }
    }
}

/// `--audit-webhook-...`.
#[derive(Debug, Clone)]
pub struct WebhookOptions {
    /// `--audit-webhook-config-file`: a kubeconfig that says where events go; none is nowhere.
    pub config_file: Option<PathBuf>,
    /// `--audit-webhook-mode`.
    pub mode: Mode,
    /// `--audit-webhook-initial-backoff`: the first pause before a batch is sent again.
    pub initial_backoff: Duration,
    /// `--audit-webhook-batch-buffer-size`: events that wait to be sent. In the blocking modes, those of requests that have
    /// ended already.
    pub buffer_size: usize,
    /// `--audit-webhook-batch-max-size`: events of one batch.
    pub batch_max_size: usize,
    /// `--audit-webhook-batch-max-wait`: a batch that is not full is sent after this.
    pub batch_max_wait: Duration,
    /// `--audit-webhook-batch-throttle-enable`.
    pub throttle: bool,
    /// `--audit-webhook-batch-throttle-qps`: batches in a second, on average.
    pub throttle_qps: f64,
    /// `--audit-webhook-batch-throttle-burst`: batches at once, after a pause.
    pub throttle_burst: u32,
    /// `--audit-webhook-truncate-enabled`.
    pub truncate: bool,
    /// `--audit-webhook-truncate-max-event-size`: bytes; longer events lose their objects, or are lost.
    pub truncate_max_event_size: usize,
    /// `--audit-webhook-truncate-max-batch-size`: bytes; longer batches are divided.
    pub truncate_max_batch_size: usize,
}

impl Default for WebhookOptions {
    fn default() -> Self {
        Self {
            config_file: None,
            mode: Mode::Batch,
            initial_backoff: Duration::from_secs(10),
            buffer_size: 10_000,
            batch_max_size: 400,
            batch_max_wait: Duration::from_secs(30),
            throttle: true,
            throttle_qps: 10.0,
            throttle_burst: 15,
            truncate: false,
            truncate_max_event_size: 102_400,
            truncate_max_batch_size: 10_485_760,
        }
    }
}

/// The way to the program.
pub struct Webhook {
    sender: Arc<Sender>,
    /// None in the blocking modes.
    queue: Option<mpsc::Sender<String>>,
    /// In the blocking modes: room for events from where nothing can wait.
    room: Arc<Semaphore>,
}

struct Sender {
    hook: Hook,
    cache: Arc<WatchCache>,
    options: WebhookOptions,
}

impl Webhook {
    /// Reads the file and begins to send; none without a file.
    pub fn open(
        options: &WebhookOptions,
        cache: &Arc<WatchCache>,
    ) -> Result<Option<Self>, KubeconfigHookError> {
        let Some(file) = &options.config_file else { return Ok(None) };
        let hook = Hook::from_kubeconfig(file)?;
        let sender = Arc::new(Sender { hook, cache: cache.clone(), options: options.clone() });
        let queue = (options.mode == Mode::Batch).then(|| {
            let (queue, events) = mpsc::channel(options.buffer_size.max(1));
            tokio::spawn(collect(sender.clone(), events));
            queue
        });
        let room = Arc::new(Semaphore::new(options.buffer_size.clamp(1, Semaphore::MAX_PERMITS)));
        Ok(Some(Self { sender, queue, room }))
    }

    /// Records an event. In the blocking modes this waits for the program; `is_first` is the event before anything is done,
    /// whose failure is told in the strict one.
    pub async fn write(&self, event: &str, is_first: bool) -> Result<(), HookError> {
        if self.queue.is_some() {
            self.write_now(event);
            return Ok(());
        }
        let sent = self.sender.deliver(vec![event.to_owned()]).await;
        match sent {
            Err(error) if is_first && self.sender.options.mode == Mode::BlockingStrict => Err(error),
            _ => Ok(()),
        }
    }

    /// Records an event from where nothing can wait.
    pub fn write_now(&self, event: &str) {
        match &self.queue {
            Some(queue) => {
                if queue.try_send(event.to_owned()).is_err() {
                    tracing::error!("{LOST}");
                }
            }
            None => {
                let Ok(room) = self.room.clone().try_acquire_owned() else {
                    tracing::error!("{LOST}");
                    return;
                };
                let (sender, event) = (self.sender.clone(), event.to_owned());
                tokio::spawn(async move {
                    // a failure was told where it happened
                    let _ = sender.deliver(vec![event]).await;
                    drop(room);
                });
            }
        }
    }
}

/// Collects events into batches and sends them. Ends, with what is left sent, when nobody can record any more.
async fn collect(sender: Arc<Sender>, mut events: mpsc::Receiver<String>) {
    let options = &sender.options;
    let mut throttle = Throttle::new(options);
    let mut under_way = tokio::task::JoinSet::new();
    loop {
        let Some(first) = events.recv().await else { break };
        let mut batch = vec![first];
        let until = Instant::now() + options.batch_max_wait;
        while batch.len() < options.batch_max_size.max(1) {
            match tokio::time::timeout_at(until, events.recv()).await {
                Ok(Some(event)) => batch.push(event),
                Ok(None) | Err(_) => break,
            }
        }
        throttle.wait().await;
        if under_way.len() >= PARALLEL {
            under_way.join_next().await;
        }
        let sender = sender.clone();
        under_way.spawn(async move {
            // a failure was told where it happened
            let _ = sender.deliver(batch).await;
        });
    }
    while under_way.join_next().await.is_some() {}
}

/// So many batches in a second, so many at once.
struct Throttle {
    rate: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl Throttle {
    fn new(options: &WebhookOptions) -> Self {
        let (rate, burst) = if options.throttle {
            (options.throttle_qps.max(0.001), f64::from(options.throttle_burst.max(1)))
        } else {
            (f64::INFINITY, f64::INFINITY)
        };
        Self { rate, burst, tokens: burst, filled: Instant::now() }
    }

    async fn wait(&mut self) {
        if self.rate.is_infinite() {
            return;
        }
        let now = Instant::now();
        self.tokens = (self.tokens + (now - self.filled).as_secs_f64() * self.rate).min(self.burst);
        self.filled = now;
        self.tokens -= 1.0;
        if self.tokens < 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(-self.tokens / self.rate)).await;
        }
    }
}

impl Sender {
    /// Sends events, divided where they are too long together.
    async fn deliver(&self, events: Vec<String>) -> Result<(), HookError> {
        let mut result = Ok(());
        for batch in self.divide(events) {
            if let Err(error) = self.send(&batch).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    events = batch.len(),
                    "audit events were lost"
                );
                result = Err(error);
            }
        }
        result
    }

    /// Shortens what is too long, and divides into batches that are not.
    fn divide(&self, events: Vec<String>) -> Vec<Vec<String>> {
        let options = &self.options;
        if !options.truncate {
            return vec![events];
        }
        let mut batches: VecDeque<Vec<String>> = VecDeque::from([Vec::new()]);
        let mut size = 0;
        for event in events {
            let Some(event) = shortened(event, options.truncate_max_event_size) else {
                tracing::error!("an audit event was lost: it is too long even without its objects");
                continue;
            };
            if size + event.len() > options.truncate_max_batch_size && size > 0 {
                batches.push_back(Vec::new());
                size = 0;
            }
            size += event.len();
            if let Some(last) = batches.back_mut() {
                last.push(event);
            }
        }
        batches.into_iter().filter(|batch| !batch.is_empty()).collect()
    }

    async fn send(&self, batch: &[String]) -> Result<(), HookError> {
        let list = body(batch);
        let mut pause = self.options.initial_backoff.as_secs_f64();
        let mut tries = 1;
        loop {
            let error = match self.hook.post(&self.cache, list.clone(), TIMEOUT).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // only what the next try may change is tried again
            let is_passing = match &error {
                HookError::Call { .. } => true,
                HookError::Refused { status, .. } => *status == 429 || *status >= 500,
                _ => false,
            };
            if !is_passing || tries == TRIES {
                return Err(error);
            }
            tries += 1;
            tokio::time::sleep(Duration::from_secs_f64(pause * (1.0 + JITTER * rand::random::<f64>()))).await;
            pause *= FACTOR;
        }
    }
}

/// An `EventList`. Events are text already.
fn body(events: &[String]) -> bytes::Bytes {
    let items: Vec<&RawValue> = events.iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
    let items = serde_json::to_string(&items).unwrap_or_default();
    format!(
        "{{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"metadata\":{{}},\"items\":{items}}}"
    )
    .into()
}

/// An event of at most this many bytes: without its objects, and marked so, where it is longer. None where even that
/// is too long.
fn shortened(event: String, most: usize) -> Option<String> {
    if event.len() <= most {
        return Some(event);
    }
    let mut value: Value = serde_json::from_str(&event).ok()?;
    let members = value.as_object_mut()?;
    members.remove("requestObject");
    members.remove("responseObject");
    let annotations = members.entry("annotations").or_insert_with(|| json!({}));
    annotations["audit.k8s.io/truncated"] = json!("true");
    Some(value.to_string()).filter(|text| text.len() <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_event_loses_its_objects_and_a_longer_one_is_lost() {
        let event = json!({"auditID": "x", "requestObject": {"a": "b".repeat(200)}}).to_string();
        assert_eq!(shortened(event.clone(), 1000), Some(event.clone()));
        let short = shortened(event.clone(), 100).unwrap();
        assert_eq!(short, r#"{"annotations":{"audit.k8s.io/truncated":"true"},"auditID":"x"}"#);
        assert_eq!(shortened(event, 20), None);
    }

    #[test]
    fn a_batch_is_one_list() {
        let text = body(&["{\"a\":1}".to_owned(), "{\"b\":2}".to_owned()]);
        let list: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((&list["kind"], &list["items"]), (&json!("EventList"), &json!([{"a": 1}, {"b": 2}])));
    }
}
