//! What a process of a container may have open, at most. The CRI knows no resource limits, so containers inherit those of their
//! runtime; ours are the same however the server was started, and what units of containerd and k3s say.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files.
const FILES: u64 = 1 << 20;

/// Sets them for this process and all it starts. Where the node does not let us raise them, all is given that there is.
pub(super) fn raise() {
    // no more than `fs.nr_open` can be asked for
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let files = Some(most.map_or(FILES, |most: u64| most.min(FILES)));
    for (resource, limit) in [(Resource::Nofile, files), (Resource::Nproc, None), (Resource::Core, None)] {
        let to = |limit| setrlimit(resource, Rlimit { current: limit, maximum: limit });
        if let Err(error) = to(limit).or_else(|_| to(getrlimit(resource).maximum)) {
            eprintln!("shim: limit {resource:?}: {error}");
        }
    }
}
