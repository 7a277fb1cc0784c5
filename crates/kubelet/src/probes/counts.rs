//! How often each probe was made, and with what result, for `/metrics/probes`.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// One probe's result.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counted {
    /// The pod's uid.
    pub uid: String,
    /// The container.
    pub container: String,
    /// `Liveness`, `Readiness` or `Startup`.
    pub kind: &'static str,
    /// `successful`, `failed` or `unknown`.
    pub result: &'static str,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
}

/// Of this process: metrics are one set per process.
static COUNTS: Mutex<BTreeMap<Counted, u64>> = Mutex::new(BTreeMap::new());

/// Counts one try.
pub fn add(counted: Counted) {
    *COUNTS.lock().entry(counted).or_default() += 1;
}

/// A pod that is gone is no longer told of.
pub fn forget(uid: &str) {
    COUNTS.lock().retain(|counted, _| counted.uid != uid);
}

/// All of them, in order.
pub fn all() -> Vec<(Counted, u64)> {
    COUNTS.lock().iter().map(|(counted, count)| (counted.clone(), *count)).collect()
}
