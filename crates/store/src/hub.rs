//! Who watches: hands every published batch of events to the queues of the watchers, and never waits for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use crate::{Event, Revision};

/// How much may wait in one watcher's queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueLimit {
    pub events: usize,
    pub bytes: usize,
}

/// What is waiting in a queue. The channel has no bound of its own: a bound in batches says little, and
/// one in events or bytes it can't do.
#[derive(Debug, Default)]
struct Load {
    events: AtomicUsize,
    bytes: AtomicUsize,
    /// How many events were waiting when one more batch did not fit; 0: all did.
    lagged_at: AtomicUsize,
}

struct Watcher {
    prefix: String,
    after: Revision,
    queue: mpsc::UnboundedSender<Vec<Event>>,
    load: Arc<Load>,
}

/// The reading end of a watcher's queue.
pub(crate) struct Queue {
    receiver: mpsc::UnboundedReceiver<Vec<Event>>,
    load: Arc<Load>,
}

/// Why a queue ended.
pub(crate) enum Ended {
    /// The store was closed.
    Closed,
    /// The watcher was too slow; so many events were waiting.
    Lagged(usize),
}

impl Queue {
    pub(crate) async fn next(&mut self) -> Result<Vec<Event>, Ended> {
        match self.receiver.recv().await {
            Some(batch) => {
                self.load.events.fetch_sub(batch.len(), Ordering::AcqRel);
                self.load.bytes.fetch_sub(bytes_of(&batch), Ordering::AcqRel);
                Ok(batch)
            }
            None => match self.load.lagged_at.load(Ordering::Acquire) {
                0 => Err(Ended::Closed),
                waiting => Err(Ended::Lagged(waiting)),
            },
        }
    }
}

/// The watchers of one store.
#[derive(Default)]
pub(crate) struct Hub {
    watchers: Vec<Watcher>,
}

impl Hub {
    /// Adds a watcher of events with revisions after `after`.
    pub(crate) fn add(&mut self, prefix: &str, after: Revision) -> Queue {
        self.watchers.retain(|watcher| !watcher.queue.is_closed());
        let (queue, receiver) = mpsc::unbounded_channel();
        let load = Arc::new(Load::default());
        self.watchers.push(Watcher { prefix: prefix.to_owned(), after, queue, load: load.clone() });
        Queue { receiver, load }
    }

    pub(crate) fn len(&self) -> usize {
        self.watchers.len()
    }

    /// Ends all watches.
    pub(crate) fn close(&mut self) {
        self.watchers.clear();
    }

    /// Queues the events for everyone they concern; drops watchers that are gone or too far behind.
    pub(crate) fn deliver(&mut self, events: &[Event], limit: QueueLimit) {
        self.watchers.retain(|watcher| {
            let concerns = |event: &&Event| {
                event.revision() > watcher.after && event.kv.key.starts_with(watcher.prefix.as_str())
            };
            let batch: Vec<Event> = events.iter().filter(concerns).cloned().collect();
            if batch.is_empty() {
                return !watcher.queue.is_closed();
            }
            let bytes = bytes_of(&batch);
            let waiting = watcher.load.events.fetch_add(batch.len(), Ordering::AcqRel);
            let waiting_bytes = watcher.load.bytes.fetch_add(bytes, Ordering::AcqRel);
            // A reader that has taken everything is never too slow, however large the batch.
            let fits = waiting + batch.len() <= limit.events && waiting_bytes + bytes <= limit.bytes;
            if waiting > 0 && !fits {
                watcher.load.lagged_at.store(waiting, Ordering::Release);
                tracing::debug!(prefix = watcher.prefix, waiting, "a watcher fell behind");
                return false;
            }
            watcher.queue.send(batch).is_ok()
        });
    }
}

fn bytes_of(events: &[Event]) -> usize {
    events.iter().map(|event| event.kv.value.len() + event.kv.key.len()).sum()
}
