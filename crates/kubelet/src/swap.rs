//! The node's swap: whether there is some, and whether the kernel counts who uses it.
//!
//! Rule: Kubernetes documentation, "Swap memory management".

use std::path::Path;

use crate::resources::Swap;

/// Bytes of swap, by `/proc/meminfo`.
pub fn total(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("SwapTotal:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Whether anything is swapped to, by `/proc/swaps`: a line for each place below the heading.
pub fn is_on(swaps: &str) -> bool {
    swaps.lines().skip(1).any(|line| !line.trim().is_empty())
}

/// Whether the kernel counts swap of control groups, by where this process is in them (`/proc/self/cgroup`). The uppermost
/// group has no counters, and says nothing.
pub fn is_counted(tree: &Path, own: &str, v2: bool) -> bool {
    if !v2 {
        return tree.join("memory/memory.memsw.limit_in_bytes").exists();
    }
    let group = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    !group.is_empty() && tree.join(group).join("memory.swap.max").exists()
}

/// What containers get, as `memorySwap.swapBehavior` says.
pub fn of_containers(behavior: &str, v2: bool) -> Swap {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    if !is_counted(Path::new("/sys/fs/cgroup"), &read("/proc/self/cgroup"), v2) {
        return Swap::Unknown;
    }
    match behavior {
        "LimitedSwap" => Swap::Limited(total(&read("/proc/meminfo"))),
        _ => Swap::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_whether_there_is_swap_and_whether_it_counts() {
        assert_eq!(total("MemTotal: 9 kB\nSwapTotal:       4 kB\nSwapFree: 1 kB\n"), 4096);
        let heading = "Filename\tType\tSize\tUsed\tPriority\n";
        assert!(!is_on(heading) && is_on(&format!("{heading}/swap file 1 0 -2\n")));
        let tree = tempfile::tempdir().unwrap();
        let group = tree.path().join("system.slice/x.service");
        std::fs::create_dir_all(&group).unwrap();
        let counted = |own: &str| is_counted(tree.path(), own, true);
        assert!(!counted("0::/system.slice/x.service\n"));
        std::fs::write(group.join("memory.swap.max"), "max").unwrap();
        assert!(counted("0::/system.slice/x.service\n") && !counted("0::/\n"));
    }
}
