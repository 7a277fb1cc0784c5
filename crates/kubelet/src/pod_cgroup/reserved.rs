//! Groups of the node's own programs, which somebody else made: they are held within what is kept back for them.
//!
//! Rule: Kubernetes documentation, "Reserve Compute Resources" ("Enforcing Node Allocatable"). Why a group cannot be held is
//! said in the reference's words.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use super::{Limits, PodCgroups, Tree};
use crate::configuration::Enforcement;
use crate::metrics::CGROUPS;
use crate::resources::{milli, shares, units};

/// Controllers of the second version that a group must have, where the kernel has them.
const NEEDED: [&str; 5] = ["cpu", "cpuset", "hugetlb", "memory", "pids"];

impl PodCgroups {
    /// Sets the limits of a group that is there. The error is what the kubelet does not start for.
    pub fn hold(&self, what: &Enforcement) -> Result<(), String> {
        let parts: Vec<String> = components(&what.group).map(|part| format!("{part:?}")).collect();
        let name = format!("[{}]", parts.join(" "));
        let limits = limits(what).ok_or_else(|| format!("{name} cgroup is not configured properly"))?;
        self.check(&what.group, &name)?;
        let begin = Instant::now();
        let written = self.values(&what.group, limits).into_iter().try_for_each(|(path, value)| {
            std::fs::write(&path, &value)
                .map_err(|error| format!("write {value} to {}: {error}", path.display()))
        });
        CGROUPS.time(&["update"], begin.elapsed());
        written
    }

    /// Whether the group is there, with all controllers.
    fn check(&self, group: &str, name: &str) -> Result<(), String> {
        let below = group.trim_matches('/');
        match &self.tree {
            Tree::V2(root) => {
                let controllers = |folder: &Path| {
                    let text = std::fs::read_to_string(folder.join("cgroup.controllers"))?;
                    Ok::<BTreeSet<String>, std::io::Error>(
                        text.split_whitespace().map(str::to_owned).collect(),
                    )
                };
                let failed = |error| format!("could not read controllers for cgroup {name}: {error}");
                let (all, own) =
                    (controllers(root).map_err(failed)?, controllers(&root.join(below)).map_err(failed)?);
                let missing: Vec<&str> =
                    NEEDED.into_iter().filter(|one| all.contains(*one) && !own.contains(*one)).collect();
                match missing.is_empty() {
                    true => Ok(()),
                    false => {
                        Err(format!("cgroup {name} has some missing controllers: {}", missing.join(", ")))
                    }
                }
            }
            Tree::V1 { trees, .. } => {
                let folders = trees.iter().map(|tree| tree.join(below));
                let missing: Vec<String> = folders
                    .filter(|folder| !folder.exists())
                    .map(|folder| folder.display().to_string())
                    .collect();
                match missing.is_empty() {
                    true => Ok(()),
                    false => Err(format!("cgroup {name} has some missing paths: {}", missing.join(", "))),
                }
            }
        }
    }
}

fn components(group: &str) -> impl Iterator<Item = &str> {
    group.trim_start_matches('/').split('/').filter(|part| !part.is_empty())
}

/// None where nothing is kept back at all. An amount of nothing bounds nothing, but for processors: those it puts last.
fn limits(what: &Enforcement) -> Option<Limits> {
    if what.amounts.is_empty() {
        return None;
    }
    let amount = |name: &str| what.amounts.get(name).map(|text| units(text)).filter(|amount| *amount > 0);
    let own = Limits { shares: what.amounts.get("cpu").map(|text| shares(milli(text))), ..Limits::default() };
    Some(match what.compressible {
        true => own,
        false => Limits { memory: amount("memory"), pids: amount("pid"), ..own },
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tree;
    use super::*;

    /// Groups in a folder that stands for the kernel's, of one version or the other.
    fn groups(folder: &Path, mounts: &str) -> PodCgroups {
        let mounts = mounts.replace("/cg", &folder.display().to_string());
        PodCgroups { tree: tree(&mounts), root: "/k".to_owned(), pids: -1, above: Arc::default() }
    }

    fn enforcement(compressible: bool, amounts: &[(&str, &str)]) -> Enforcement {
        let amounts =
            amounts.iter().map(|(name, amount)| ((*name).to_owned(), (*amount).to_owned())).collect();
        Enforcement { of_system: true, compressible, group: "/system.slice/a".to_owned(), amounts }
    }

    const ALL: [(&str, &str); 3] = [("cpu", "500m"), ("memory", "1Gi"), ("pid", "100")];

    /// All files below a folder that have something in them, and what.
    fn files(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if entry.path().is_dir() {
                found.extend(files(&entry.path()).into_iter().map(|file| format!("{name}/{file}")));
            } else if name != "cgroup.controllers" {
                found.push(format!("{name}={}", std::fs::read_to_string(entry.path()).unwrap()));
            }
        }
        found.sort();
        found
    }

    #[test]
    fn a_group_of_the_first_version_is_held_in_each_tree_it_must_be_in() {
        const MOUNTS: &str = "1 2 0:1 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
            1 2 0:2 / /cg/memory rw - cgroup cgroup rw,memory\n1 2 0:2 / /cg/pids rw - cgroup cgroup rw,pids\n\
            1 2 0:4 / /cg/freezer rw - cgroup cgroup rw,freezer\n1 2 0:3 / /cg/unified rw - cgroup2 cgroup2 rw\n";
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let groups = groups(root, MOUNTS);
        for tree in ["cpu", "pids"] {
            std::fs::create_dir_all(root.join(tree).join("system.slice/a")).unwrap();
        }
        let why = groups.hold(&enforcement(false, &ALL)).unwrap_err();
        let missing = root.join("memory/system.slice/a");
        let expected =
            format!(r#"cgroup ["system.slice" "a"] has some missing paths: {}"#, missing.display());
        assert_eq!(why, expected);
        std::fs::create_dir_all(missing).unwrap();
        groups.hold(&enforcement(true, &ALL)).unwrap();
        assert_eq!(files(root), ["cpu/system.slice/a/cpu.shares=512"]);
        groups.hold(&enforcement(false, &ALL)).unwrap();
        let expected = [
            "cpu/system.slice/a/cpu.shares=512",
            "memory/system.slice/a/memory.limit_in_bytes=1073741824",
            "pids/system.slice/a/pids.max=100",
        ];
        assert_eq!(files(root), expected);
        let why = groups.hold(&enforcement(false, &[])).unwrap_err();
        assert_eq!(why, r#"["system.slice" "a"] cgroup is not configured properly"#);
    }

    #[test]
    fn a_group_of_the_second_version_must_have_the_controllers() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let groups = groups(root, "1 2 0:3 / /cg rw - cgroup2 cgroup2 rw\n");
        let say = |group: &str, text: &str| std::fs::write(root.join(group).join("cgroup.controllers"), text);
        say("", "cpuset cpu io memory pids\n").unwrap();
        let why = groups.hold(&enforcement(false, &ALL)).unwrap_err();
        assert!(why.starts_with(r#"could not read controllers for cgroup ["system.slice" "a"]: "#), "{why}");
        std::fs::create_dir_all(root.join("system.slice/a")).unwrap();
        say("system.slice/a", "cpu\n").unwrap();
        let why = groups.hold(&enforcement(false, &ALL)).unwrap_err();
        let expected = r#"cgroup ["system.slice" "a"] has some missing controllers: cpuset, memory, pids"#;
        assert_eq!(why, expected);
        say("system.slice/a", "cpuset cpu memory pids\n").unwrap();
        groups.hold(&enforcement(false, &[("cpu", "0"), ("memory", "0"), ("pid", "7")])).unwrap();
        assert_eq!(files(root), ["system.slice/a/cpu.weight=1", "system.slice/a/pids.max=7"]);
    }
}
