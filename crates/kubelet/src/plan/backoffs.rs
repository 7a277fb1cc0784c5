//! When a container may be started again, and a step that failed may be tried again.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

/// When containers may be started again, and steps that failed may be tried again.
#[derive(Debug, Clone)]
pub struct Backoffs {
    /// Longest delay between restarts.
    longest: SignedDuration,
    /// The delay in force, and since when.
    restarts: BTreeMap<String, (SignedDuration, Timestamp)>,
    holds: BTreeMap<String, Timestamp>,
}

/// The name by which [`Backoffs::hold`] knows the pod's sandbox and volumes; no container can be called so.
pub const SANDBOX: &str = "";

/// First delay between restarts.
const FIRST: SignedDuration = SignedDuration::from_secs(10);
/// Longest delay.
const LONGEST: SignedDuration = SignedDuration::from_secs(300);
/// A container that ended so long after its start was counted begins anew.
const RESET: SignedDuration = SignedDuration::from_secs(600);

impl Default for Backoffs {
    fn default() -> Self {
        Self { longest: LONGEST, restarts: BTreeMap::new(), holds: BTreeMap::new() }
    }
}

impl Backoffs {
    /// With `longest` between restarts.
    pub fn up_to(longest: std::time::Duration) -> Self {
        Self { longest: SignedDuration::try_from(longest).unwrap_or(LONGEST), ..Self::default() }
    }

    /// When the container that ended at `finished` may start again; in the past: now.
    pub fn due(&self, name: &str, finished: Timestamp) -> Timestamp {
        match self.restarts.get(name) {
            Some((delay, _)) => finished.saturating_add(*delay).unwrap_or(finished),
            None => finished,
        }
    }

    /// The delay in force.
    pub fn delay(&self, name: &str) -> SignedDuration {
        self.restarts.get(name).map_or(SignedDuration::ZERO, |(delay, _)| *delay)
    }

    /// The step `name` failed: not before `until` again. Nothing else of the pod waits for it.
    pub fn hold(&mut self, name: &str, until: Timestamp) {
        self.holds.insert(name.to_owned(), until);
    }

    /// The step succeeded, or the reason to wait is gone.
    pub fn release(&mut self, name: &str) {
        self.holds.remove(name);
    }

    /// Until when the step waits, where it still does.
    pub fn held(&self, name: &str, now: Timestamp) -> Option<Timestamp> {
        self.holds.get(name).copied().filter(|until| *until > now)
    }

    /// Counts a start after the run that ended at `finished`, which may never have begun. The first restart is
    /// immediate, the next ones wait 10 s, 20 s, ... 5 min.
    pub fn count(&mut self, name: &str, now: Timestamp, finished: Timestamp) {
        let next = match self.restarts.get(name) {
            Some((delay, since)) if finished.duration_since(*since) < RESET => (*delay * 2).min(self.longest),
            _ => FIRST.min(self.longest),
        };
        self.restarts.insert(name.to_owned(), (next, now));
    }
}
