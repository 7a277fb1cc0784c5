//! Counters per controller: what a metrics endpoint prints.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) depth: AtomicU64,
    reconciles: AtomicU64,
    failures: AtomicU64,
    busy_nanos: AtomicU64,
}

impl Counters {
    pub(crate) fn record(&self, took: Duration, failed: bool) {
        self.reconciles.fetch_add(1, Relaxed);
        self.failures.fetch_add(u64::from(failed), Relaxed);
        self.busy_nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }
}

/// The counters of all controllers of a process.
#[derive(Debug, Default)]
pub struct Metrics {
    controllers: Mutex<BTreeMap<&'static str, Arc<Counters>>>,
}

/// One controller's counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The controller's name.
    pub controller: &'static str,
    /// Keys that waited when a worker last took one.
    pub depth: u64,
    /// Passes since the start.
    pub reconciles: u64,
    /// Passes that failed and were put back.
    pub failures: u64,
    /// Time spent in passes.
    pub busy: Duration,
}

impl Metrics {
    pub(crate) fn of(&self, controller: &'static str) -> Arc<Counters> {
        self.controllers.lock().entry(controller).or_default().clone()
    }

    /// The counters now, by name.
    pub fn samples(&self) -> Vec<Sample> {
        let read = |(controller, c): (&&'static str, &Arc<Counters>)| Sample {
            controller,
            depth: c.depth.load(Relaxed),
            reconciles: c.reconciles.load(Relaxed),
            failures: c.failures.load(Relaxed),
            busy: Duration::from_nanos(c.busy_nanos.load(Relaxed)),
        };
        self.controllers.lock().iter().map(read).collect()
    }
}
