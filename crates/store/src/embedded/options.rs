//! The embedded engine's settings and its clock.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Where the engine gets the time from; tests inject their own and call [`Embedded::wake`](super::Embedded::wake) after moving it.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock: expiry times are stored by it.
    fn now(&self) -> SystemTime;
    /// A clock that never goes back, from any start: the history window is measured by it.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// The embedded engine's settings.
#[derive(Clone)]
pub struct Options {
    /// The largest key and value together, in bytes. Default 1.5 MiB, as etcd.
    pub entry_limit: usize,
    /// Bytes of all stored records, history included, above which puts fail with `NoSpace`. Near it the history is
    /// given up first. Deletes always go on. Default 2 GiB, as etcd.
    pub quota: u64,
    /// How long history is kept. Default five minutes.
    pub history: Duration,
    /// So many changes are kept however old they are. Default 1 000.
    pub history_min: usize,
    /// No more changes than these are kept however young they are. Default 250 000 (about 30 MB of memory).
    pub history_max: usize,
    /// Bytes of old values that stay in memory; the others are read from the disk when asked for. Default 8 MiB.
    pub history_memory: usize,
    /// When writes that were acknowledged from memory reach the disk at the latest. Default one second.
    pub flush_interval: Duration,
    /// How many events may wait in the queue of one watcher. Default 16 384.
    pub watch_queue_events: usize,
    /// How many bytes of events may wait in the queue of one watcher. Default 64 MiB.
    pub watch_queue_bytes: usize,
    /// Bytes of file pages in memory. Default 16 MiB.
    pub cache_bytes: usize,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            entry_limit: 3 * 1024 * 1024 / 2,
            quota: 2 * 1024 * 1024 * 1024,
            history: Duration::from_secs(300),
            history_min: 1_000,
            history_max: 250_000,
            history_memory: 8 * 1024 * 1024,
            flush_interval: Duration::from_secs(1),
            watch_queue_events: 16_384,
            watch_queue_bytes: 64 * 1024 * 1024,
            cache_bytes: 16 * 1024 * 1024,
            clock: Arc::new(SystemClock::default()),
        }
    }
}
