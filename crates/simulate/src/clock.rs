//! The time of a simulation.
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

/// The machine's clock, ahead of it by what tests or a faster run have added.
#[derive(Debug)]
pub struct Clock {
    /// In milliseconds.
    ahead: AtomicI64,
    jumps: watch::Sender<u64>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { ahead: AtomicI64::new(0), jumps: watch::Sender::new(0) }
    }
}

impl Clock {
    /// The time now.
    pub fn now(&self) -> Timestamp {
        Timestamp::now() + SignedDuration::from_millis(self.ahead.load(SeqCst))
    }

    /// Changes after every jump: whoever waits for a time looks at the clock then.
    pub fn jumps(&self) -> watch::Receiver<u64> {
        self.jumps.subscribe()
    }

    /// Moves the time ahead without telling anybody yet.
    pub(crate) fn shift(&self, by: Duration) {
        self.ahead.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), SeqCst);
    }

    /// Tells of the jump.
    pub(crate) fn tell(&self) {
        self.jumps.send_modify(|count| *count += 1);
    }

    /// Moves the time ahead; whoever waits for a time looks again.
    pub fn advance(&self, by: Duration) {
        self.shift(by);
        self.tell();
    }
}
