//! The time, injected: tests of hours run in milliseconds.
use jiff::Timestamp;
use tokio::sync::watch;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time now.
    fn now(&self) -> Timestamp;

    /// Changes whenever the time jumped: what waits for a time is looked at then. `None`: it never does.
    fn jumps(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
