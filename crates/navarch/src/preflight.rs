//! Checks before a start: what is missing, why it is needed, what to do.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::bail;

use crate::command::Part;

/// Kernel objects that containers need, and the setting that brings them.
const NAMESPACES: [(&str, &str); 5] = [
    ("net", "CONFIG_NET_NS"),
    ("pid", "CONFIG_PID_NS"),
    ("mnt", "CONFIG_NAMESPACES"),
    ("ipc", "CONFIG_IPC_NS"),
    ("uts", "CONFIG_UTS_NS"),
];

/// Fails when `parts` cannot work on this machine.
pub fn check(parts: &BTreeSet<Part>) -> anyhow::Result<()> {
    let on_node: Vec<&str> = [Part::Agent, Part::Proxy, Part::Dns]
        .into_iter()
        .filter(|part| parts.contains(part))
        .map(Part::name)
        .collect();
    if on_node.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "root is needed for {} (namespaces, mounts, links); run this with sudo, or only the control plane with \
             --disable {}",
            on_node.join(", "),
            on_node.join(",")
        );
    }
    if parts.contains(&Part::Agent) {
        agent()?;
    }
    Ok(())
}

fn agent() -> anyhow::Result<()> {
    for (name, setting) in NAMESPACES {
        if !Path::new("/proc/self/ns").join(name).exists() {
            bail!(
                "this kernel has no {name} namespaces, which separate containers; use one built with {setting}"
            );
        }
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.lines().any(|line| line.split_whitespace().next_back() == Some("overlay")) {
        bail!(
            "this kernel does not offer overlayfs, which root filesystems of containers are made of; \
             run `modprobe overlay`, or use a kernel built with CONFIG_OVERLAY_FS"
        );
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let cgroups = mounts.lines().any(|line| {
        line.split_once(" - ")
            .is_some_and(|(_, right)| right.starts_with("cgroup ") || right.starts_with("cgroup2 "))
    });
    if !cgroups {
        bail!(
            "no cgroup hierarchy is mounted, so containers could not be limited; \
             run `mount -t cgroup2 none /sys/fs/cgroup`"
        );
    }
    Ok(())
}
