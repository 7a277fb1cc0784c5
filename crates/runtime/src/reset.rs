//! Takes everything of an instance away: processes, mounts, control groups, namespaces, files.

use std::{fs, io, path::Path};

use rustix::mount::{UnmountFlags, unmount};

use crate::{cgroup::Cgroups, state::Config};

/// Kills and removes all that the runtime in `config`'s folders made, and returns what is left, for people;
/// empty: nothing. No runtime may be open meanwhile. Pods whose control groups lie outside of
/// `config.cgroup_parent` are found by their records.
pub fn reset(config: &Config) -> Vec<String> {
    let mut left = Vec::new();
    let mut failed = |what: String, error: io::Error| {
        if error.kind() != io::ErrorKind::NotFound {
            left.push(format!("{what}: {error}"));
        }
    };
    let mut groups = Vec::new();
    for entry in entries(&config.root.join("sandboxes")) {
        if let Ok(record) = crate::sandbox_run::load(&entry) {
            groups.push(crate::sandbox_run::pause_group(&record));
            groups.extend(record.made_groups.iter().rev().cloned());
        }
    }
    for entry in entries(&config.root.join("containers")) {
        if let Ok(record) = crate::record::load::<crate::record::ContainerRecord>(&entry) {
            groups.insert(0, record.cgroup);
        }
    }
    match Cgroups::detect() {
        Ok(cgroups) => {
            // Shims first, so that none reports or restarts anything.
            for group in [config.shim_cgroup()].iter().chain(&groups).chain([&config.cgroup_parent]) {
                if let Err(error) = cgroups.remove(group) {
                    failed(format!("control group {group}"), error);
                }
                for dir in cgroups.existing(group) {
                    failed(dir.display().to_string(), io::Error::other("is still there"));
                }
            }
        }
        Err(error) => failed("control groups".to_owned(), error),
    }
    if let Err(error) = crate::apparmor::unload() {
        failed("AppArmor profile".to_owned(), error);
    }
    // Deepest first.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut ours: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|target| {
            Path::new(target).starts_with(&config.run) || Path::new(target).starts_with(&config.root)
        })
        .collect();
    ours.sort_unstable_by_key(|target| std::cmp::Reverse(target.len()));
    for target in ours {
        if let Err(error) = unmount(target, UnmountFlags::DETACH) {
            failed(format!("mount {target}"), error.into());
        }
    }
    for dir in [&config.run, &config.root] {
        if let Err(error) = tree::remove(dir) {
            failed(dir.display().to_string(), error);
        }
    }
    left
}

fn entries(dir: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
