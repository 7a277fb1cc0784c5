//! One watch as a stream: first the history between the asked revision and now, then the live queue.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;

use super::Shared;
use super::inbox::closed;
use super::state::{PastEvent, Slot};
use crate::hub::{Ended, Queue};
use crate::{Event, EventKind, KeyValue, Revision, StoreError, WatchStream};

/// Events per batch of history.
const BATCH: usize = 500;
/// Changes looked at per batch of history.
const EFFORT: usize = 20_000;

struct Watch {
    shared: Arc<Shared>,
    prefix: String,
    /// History is delivered up to here and has to be up to there; then comes the queue.
    seen: Revision,
    until: Revision,
    queue: Queue,
}

/// Starts a watch: from here on nothing is missed.
pub(super) fn watch(shared: Arc<Shared>, prefix: &str, from: Revision) -> Result<WatchStream, StoreError> {
    let (until, queue) = {
        // Nothing is published while the hub is locked: the history ends exactly where the queue begins.
        let mut hub = shared.hub.lock();
        let state = shared.state.read();
        state.check_history(from)?;
        let until = state.revision();
        (until, hub.add(prefix, from.max(until)))
    };
    let watch = Watch { shared, prefix: prefix.to_owned(), seen: from, until, queue };
    let batches = stream::unfold(Some(watch), async |watch| {
        let mut watch = watch?;
        match watch.next().await {
            Ok(batch) => Some((Ok(batch), Some(watch))),
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(batches.boxed())
}

impl Watch {
    async fn next(&mut self) -> Result<Vec<Event>, StoreError> {
        while self.seen < self.until {
            let batch = self.history().await?;
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
        self.queue.next().await.map_err(|ended| match ended {
            Ended::Closed => closed(),
            Ended::Lagged(queued) => StoreError::Lagged { queued },
        })
    }

    /// The next events of the history; may be none although there are more.
    async fn history(&mut self) -> Result<Vec<Event>, StoreError> {
        let (events, seen) = {
            let state = self.shared.state.read();
            if self.seen < state.compacted() {
                return Err(StoreError::Compacted { oldest: state.compacted() });
            }
            state.events(&self.prefix, self.seen, self.until, BATCH, EFFORT)
        };
        let on_disk = |slot: &Option<Slot>| matches!(slot, Some(Slot::OnDisk(_)));
        let batch = if events.iter().any(|event| on_disk(&event.value) || on_disk(&event.previous)) {
            let shared = self.shared.clone();
            let fetched = tokio::task::spawn_blocking(move || complete(&shared, events)).await;
            fetched.unwrap_or_else(|_| Err(closed()))?
        } else {
            complete(&self.shared, events)?
        };
        self.seen = seen;
        Ok(batch)
    }
}

/// Fetches the missing values of past events.
fn complete(shared: &Shared, events: Vec<PastEvent>) -> Result<Vec<Event>, StoreError> {
    let mut wanted = Vec::new();
    let mut layout = Vec::with_capacity(events.len());
    for PastEvent { change, value, previous } in events {
        layout.push((change, value.is_some(), previous.is_some()));
        wanted.extend(value.into_iter().chain(previous));
    }
    let mut values = fetch(shared, wanted)?.into_iter();
    let mut batch = Vec::with_capacity(layout.len());
    for (change, has_value, has_previous) in layout {
        let value = if has_value { values.next() } else { None };
        let prev = if has_previous { values.next() } else { None };
        let shown = if change.kind == EventKind::Put { &value } else { &prev };
        let value = shown.as_ref().map(|kv| kv.value.clone()).unwrap_or_default();
        let kv = KeyValue {
            key: change.key,
            value,
            mod_revision: change.revision,
            create_revision: change.create_revision,
        };
        batch.push(Event { kind: change.kind, kv, prev });
    }
    Ok(batch)
}

/// The values of the slots in their order, each read from the disk once. Fails with `Compacted` when one is gone.
pub(super) fn fetch(shared: &Shared, slots: Vec<Slot>) -> Result<Vec<KeyValue>, StoreError> {
    let mut revisions: Vec<Revision> = slots
        .iter()
        .filter_map(|slot| match slot {
            Slot::OnDisk(revision) => Some(*revision),
            Slot::Ready(_) => None,
        })
        .collect();
    revisions.sort_unstable();
    revisions.dedup();
    let mut found = HashMap::new();
    if !revisions.is_empty() {
        for (revision, change) in revisions.iter().zip(shared.disk.read(&revisions)?) {
            let Some(change) = change else { return Err(shared.compacted_error()) };
            let Some(value) = change.value else { return Err(shared.compacted_error()) };
            let kv = KeyValue {
                key: change.key,
                value,
                mod_revision: *revision,
                create_revision: change.create_revision,
            };
            found.insert(*revision, kv);
        }
    }
    let resolve = |slot| match slot {
        Slot::Ready(kv) => Some(kv),
        Slot::OnDisk(revision) => found.get(&revision).cloned(),
    };
    Ok(slots.into_iter().filter_map(resolve).collect())
}
