//! The shared watch: one watch of etcd for all watchers of this process, and the newest changes in a ring.
//!
//! Tasks: one follower, started by the first watch, ended by the end of the store or by an error that is final
//! (then every watcher is told, and the next watch starts a new one). It hands every batch to the ring and to the watchers'
//! bounded queues and never waits for a watcher. A watch that begins before the ring reads a watch of its own until it has
//! reached the ring, and joins there.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Shared;
use super::source::Source;
use crate::hub::{Ended, Hub, Queue, QueueLimit};
use crate::{Event, Revision, StoreError, WatchStream};

struct State {
    hub: Hub,
    /// The newest events, all of those after `start`.
    ring: VecDeque<Event>,
    ring_bytes: usize,
    start: Revision,
    /// The newest of our events.
    position: Revision,
    running: bool,
    /// Why the last follower ended.
    ended: Option<StoreError>,
    /// Tells the follower to end.
    follower: Option<tokio::task::AbortHandle>,
}

/// The process's one watch of etcd.
pub(super) struct Feed {
    state: Mutex<State>,
    /// One start at a time.
    starting: tokio::sync::Mutex<()>,
    /// Everything up to here was handed to the watchers, changes of other people's keys included. 0: no follower.
    seen: watch::Sender<Revision>,
}

/// Where a watch begins.
enum Begin {
    /// In the ring: these events, then the queue.
    Joined(Vec<Event>, Queue),
    /// Before it.
    Behind,
}

impl Feed {
    pub(super) fn new() -> Feed {
        Feed {
            state: Mutex::new(State {
                hub: Hub::default(),
                ring: VecDeque::new(),
                ring_bytes: 0,
                start: 0,
                position: 0,
                running: false,
                ended: None,
                follower: None,
            }),
            starting: tokio::sync::Mutex::default(),
            seen: watch::Sender::new(0),
        }
    }

    pub(super) fn watchers(&self) -> usize {
        self.state.lock().hub.len()
    }

    /// Waits until the watchers' queues hold every change up to `revision`; returns the newest of ours.
    pub(super) async fn reached(
        &self,
        revision: Revision,
        patience: Duration,
    ) -> Result<Revision, StoreError> {
        let mut seen = self.seen.subscribe();
        // 0 again: the follower has ended, and its watchers know.
        let arrived = seen.wait_for(|seen| *seen == 0 || *seen >= revision);
        match tokio::time::timeout(patience, arrived).await {
            Ok(Ok(seen)) if *seen > 0 => {}
            Ok(_) => return Ok(revision),
            Err(_) => {
                return Err(StoreError::Unavailable(format!(
                    "etcd is at revision {revision}, its watch has not come so far in time"
                )));
            }
        }
        Ok(self.state.lock().position)
    }

    /// Ends the follower and all watches.
    pub(super) fn close(&self, error: StoreError) {
        let mut state = self.state.lock();
        if let Some(follower) = state.follower.take() {
            follower.abort();
        }
        self.end(&mut state, error);
    }

    fn end(&self, state: &mut State, error: StoreError) {
        state.running = false;
        state.ended = Some(error);
        state.ring.clear();
        state.ring_bytes = 0;
        state.hub.close();
        self.seen.send_replace(0);
    }

    async fn start(&self, shared: &Arc<Shared>) -> Result<(), StoreError> {
        let _one = self.starting.lock().await;
        if self.state.lock().running {
            return Ok(());
        }
        let now = shared.newest().await.map_err(|status| super::layout::error(&status))?;
        shared.check_open()?;
        let mut state = self.state.lock();
        (state.running, state.start, state.position) = (true, now, now);
        self.seen.send_replace(now);
        let task = tokio::spawn(follow(Arc::downgrade(shared), now));
        state.follower = Some(task.abort_handle());
        Ok(())
    }

    fn join(&self, prefix: &str, from: Revision) -> Begin {
        let mut state = self.state.lock();
        if !state.running || from < state.start {
            return Begin::Behind;
        }
        let first = state.ring.partition_point(|event| event.revision() <= from);
        let past = state.ring.range(first..).filter(|event| event.kv.key.starts_with(prefix));
        let past: Vec<Event> = past.cloned().collect();
        let after = from.max(state.position);
        let queue = state.hub.add(prefix, after);
        Begin::Joined(past, queue)
    }

    fn deliver(&self, shared: &Shared, events: Vec<Event>, seen: Revision) {
        let options = &shared.options;
        let limit = QueueLimit { events: options.watch_queue_events, bytes: options.watch_queue_bytes };
        let mut state = self.state.lock();
        if let Some(last) = events.last() {
            state.position = last.revision();
            shared.acknowledged(last.revision());
        }
        state.hub.deliver(&events, limit);
        state.ring_bytes += events.iter().map(size).sum::<usize>();
        state.ring.extend(events);
        while state.ring.len() > options.ring_events || state.ring_bytes > options.ring_bytes {
            let Some(dropped) = state.ring.pop_front() else { break };
            state.ring_bytes -= size(&dropped);
            state.start = dropped.revision();
            // Changes of one revision stay together.
            while state.ring.front().is_some_and(|next| next.revision() == state.start) {
                let Some(dropped) = state.ring.pop_front() else { break };
                state.ring_bytes -= size(&dropped);
            }
        }
        drop(state);
        self.seen.send_replace(seen);
    }
}

fn size(event: &Event) -> usize {
    let value = event.kv.value.len() + event.prev.as_ref().map_or(0, |prev| prev.value.len());
    value + event.kv.key.len() + size_of::<Event>()
}

async fn follow(shared: Weak<Shared>, from: Revision) {
    let mut source = Source::new(from);
    loop {
        let Some(alive) = shared.upgrade() else { return };
        match source.next(&alive).await {
            Ok(arrived) => alive.feed.deliver(&alive, arrived.events, arrived.seen),
            Err(error) => {
                tracing::error!(%error, "the watch of etcd ended");
                alive.feed.end(&mut alive.feed.state.lock(), error);
                return;
            }
        }
    }
}

struct Watch {
    shared: Arc<Shared>,
    prefix: String,
    /// Everything up to here was delivered.
    seen: Revision,
    stage: Stage,
}

enum Stage {
    /// Not yet begun, or behind the ring with a watch of its own.
    Behind(Option<Box<Source>>),
    Live(Queue),
}

/// The changes under `prefix` after `from`.
pub(super) async fn watch(
    shared: Arc<Shared>,
    prefix: &str,
    from: Revision,
) -> Result<WatchStream, StoreError> {
    shared.feed.start(&shared).await?;
    let mut watch = Watch { shared, prefix: prefix.to_owned(), seen: from, stage: Stage::Behind(None) };
    // From this call on nothing is missed, also when the stream is read much later.
    let first = watch.join();
    let batches = stream::unfold((Some(watch), first), async |(watch, first)| {
        let mut watch = watch?;
        if let Some(first) = first.filter(|first| !first.is_empty()) {
            return Some((Ok(first), (Some(watch), None)));
        }
        match watch.next().await {
            Ok(batch) => Some((Ok(batch), (Some(watch), None))),
            Err(error) => Some((Err(error), (None, None))),
        }
    });
    Ok(batches.boxed())
}

impl Watch {
    /// Goes live where the ring reaches back far enough.
    fn join(&mut self) -> Option<Vec<Event>> {
        match self.shared.feed.join(&self.prefix, self.seen) {
            Begin::Joined(past, queue) => {
                self.stage = Stage::Live(queue);
                Some(past)
            }
            Begin::Behind => None,
        }
    }

    async fn next(&mut self) -> Result<Vec<Event>, StoreError> {
        loop {
            match &mut self.stage {
                Stage::Live(queue) => {
                    return queue.next().await.map_err(|ended| match ended {
                        Ended::Closed => {
                            self.shared.feed.state.lock().ended.clone().unwrap_or_else(super::closed)
                        }
                        Ended::Lagged(queued) => StoreError::Lagged { queued },
                    });
                }
                Stage::Behind(source) => {
                    self.shared.check_open()?;
                    let source = source.get_or_insert_with(|| Box::new(Source::new(self.seen)));
                    let arrived = source.next(&self.shared).await?;
                    self.seen = arrived.seen;
                    let concerns = |event: &Event| event.kv.key.starts_with(&self.prefix);
                    let mut batch: Vec<Event> = arrived.events.into_iter().filter(concerns).collect();
                    batch.extend(self.join().unwrap_or_default());
                    if !batch.is_empty() {
                        return Ok(batch);
                    }
                }
            }
        }
    }
}
