//! How many files, connections among them, the process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many as service units of the field allow; a shell or a unit that says nothing often allows 1024.
const WANTED: u64 = 1 << 20;

/// Asks for what is wanted, and takes what may be had.
pub fn raise() {
    let before = getrlimit(Resource::Nofile);
    // `None` means without bound
    let maximum = before.maximum.map(|most| most.max(WANTED));
    let all = Rlimit { current: maximum, maximum };
    // only root may raise the maximum, and nobody beyond `fs.nr_open`
    let within = Rlimit { current: before.maximum, maximum: before.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, all).or_else(|_| setrlimit(Resource::Nofile, within)) {
        tracing::warn!(error = &error as &dyn std::error::Error, ?before, "the limit of open files stays");
    }
}
