//! How often each probe was made, with what result, and how long it took, for `/metrics/probes`.

use std::collections::BTreeMap;
use std::time::Duration;

use client::metrics::Distribution;
use parking_lot::Mutex;

use crate::metrics::DEFAULT;

/// The result of a probe that found the container well.
pub const SUCCESSFUL: &str = "successful";

/// One probe's result.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counted {
    /// The pod's uid.
    pub uid: String,
    /// The container.
    pub container: String,
    /// `Liveness`, `Readiness` or `Startup`.
    pub kind: &'static str,
    /// [`SUCCESSFUL`], `failed` or `unknown`.
    pub result: &'static str,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
}

/// Of this process: metrics are one set per process.
static COUNTS: Mutex<BTreeMap<Counted, u64>> = Mutex::new(BTreeMap::new());

/// Namespace and name of a pod, a container of it, and the kind of the probe.
pub type Timed = [String; 4];

/// How long tries took that succeeded, and the uid of the pod: of two that had the name one after the other, the second counts.
static TIMES: Mutex<BTreeMap<Timed, (String, Distribution)>> = Mutex::new(BTreeMap::new());

/// Counts one try, which took so long.
pub fn add(counted: Counted, took: Duration) {
    if counted.result == SUCCESSFUL {
        let Counted { uid, container, kind, namespace, pod, .. } = counted.clone();
        let fresh = || (uid.clone(), Distribution::new(DEFAULT));
        let mut times = TIMES.lock();
        let known = times.entry([namespace, pod, container, kind.to_owned()]).or_insert_with(fresh);
        if known.0 != uid {
            *known = fresh();
        }
        known.1.time(took);
    }
    *COUNTS.lock().entry(counted).or_default() += 1;
}

/// A pod that is gone is no longer told of.
pub fn forget(uid: &str) {
    COUNTS.lock().retain(|counted, _| counted.uid != uid);
    TIMES.lock().retain(|_, (of, _)| of != uid);
}

/// How long those that succeeded took, in order.
pub fn times() -> Vec<(Timed, Distribution)> {
    TIMES.lock().iter().map(|(timed, (_, took))| (timed.clone(), took.clone())).collect()
}

/// All of them, in order.
pub fn all() -> Vec<(Counted, u64)> {
    COUNTS.lock().iter().map(|(counted, count)| (counted.clone(), *count)).collect()
}
