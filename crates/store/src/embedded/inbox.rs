//! The way from callers to the writer thread: a queue bounded in bytes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{Delete, Durability, KeyValue, Put, Revision, StoreError};

/// One put or delete with the way back to its caller.
pub(super) struct Write {
    pub operation: Operation,
    pub reply: Reply,
    /// This write's share of the queue's bound; free again when the write is answered.
    pub permit: Option<OwnedSemaphorePermit>,
}

pub(super) enum Operation {
    Put(Put),
    Delete(Delete),
}

impl Operation {
    pub(super) fn durability(&self) -> Durability {
        match self {
            Operation::Put(put) => put.durability,
            Operation::Delete(delete) => delete.durability,
        }
    }
}

pub(super) enum Reply {
    Put(oneshot::Sender<Result<Revision, StoreError>>),
    Delete(oneshot::Sender<Result<(Revision, KeyValue), StoreError>>),
    /// The store's own deletes of expired keys.
    Nobody,
}

impl Reply {
    // A caller that is gone does not want the answer: its write stands all the same.
    pub(super) fn fail(self, error: StoreError) {
        match self {
            Reply::Put(caller) => drop(caller.send(Err(error))),
            Reply::Delete(caller) => drop(caller.send(Err(error))),
            Reply::Nobody => {}
        }
    }
}

pub(super) enum Request {
    Write(Write),
    /// Bring everything acknowledged to the disk.
    Flush(oneshot::Sender<Result<(), StoreError>>),
    Compact(Revision, oneshot::Sender<Result<(), StoreError>>),
    Defragment(oneshot::Sender<Result<(), StoreError>>),
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    woken: bool,
    stopped: bool,
}

/// What the writer thread gets from [`Inbox::take`].
pub(super) struct Taken {
    pub requests: VecDeque<Request>,
    pub stopped: bool,
}

/// Bytes that one permit stands for.
const UNIT: usize = 1024;
/// Permits: 64 MiB may wait for the disk.
const UNITS: usize = 64 * 1024;

pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    room: Arc<Semaphore>,
}

impl Inbox {
    pub(super) fn new() -> Inbox {
        Inbox { waiting: Mutex::default(), changed: Condvar::new(), room: Arc::new(Semaphore::new(UNITS)) }
    }

    /// Waits for room for a write of so many bytes.
    pub(super) async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, StoreError> {
        let units = u32::try_from((bytes / UNIT + 1).min(UNITS)).unwrap_or(u32::MAX);
        self.room.clone().acquire_many_owned(units).await.map_err(|_| closed())
    }

    /// Hands a request to the writer thread.
    pub(super) fn push(&self, request: Request) -> Result<(), StoreError> {
        let mut waiting = self.waiting.lock();
        if waiting.stopped {
            return Err(closed());
        }
        waiting.requests.push_back(request);
        drop(waiting);
        self.changed.notify_one();
        Ok(())
    }

    /// Makes the writer thread look at the clock.
    pub(super) fn wake(&self) {
        self.waiting.lock().woken = true;
        self.changed.notify_one();
    }

    /// Takes no more requests; the writer thread finishes those it has.
    pub(super) fn stop(&self) {
        self.waiting.lock().stopped = true;
        self.room.close();
        self.changed.notify_one();
    }

    /// All waiting requests; blocks until there is one, `timeout` is over, or [`wake`](Inbox::wake) or [`stop`](Inbox::stop) was called.
    pub(super) fn take(&self, timeout: Option<Duration>) -> Taken {
        let mut waiting = self.waiting.lock();
        let idle = |waiting: &mut Waiting| waiting.requests.is_empty() && !waiting.woken && !waiting.stopped;
        match timeout {
            Some(timeout) => drop(self.changed.wait_while_for(&mut waiting, idle, timeout)),
            None => self.changed.wait_while(&mut waiting, idle),
        }
        waiting.woken = false;
        Taken { requests: std::mem::take(&mut waiting.requests), stopped: waiting.stopped }
    }
}

pub(super) fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".to_owned())
}
