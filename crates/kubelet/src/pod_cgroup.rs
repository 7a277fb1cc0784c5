//! Limits of pods as a whole, and of all pods together: values of control groups that the runtime has made.
//!
//! Rule: Kubernetes documentation, "Reserve Compute Resources", "Pod-level resources", "Process ID Limits And
//! Reservations"; the numbers are those that every kubelet writes.

mod reserved;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use api::resources::{Side, of_pod};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;
use serde_json::json;

use crate::eviction::threshold::Observation;
use crate::metrics::CGROUPS;
use crate::resources::{PERIOD, cgroup_parent, milli, qos_class, shares};

/// Where the values of groups are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tree {
    /// One tree for all controllers.
    V2(PathBuf),
    /// A tree each, where there is one: cpu, memory, pids.
    V1 {
        cpu: Option<PathBuf>,
        memory: Option<PathBuf>,
        pids: Option<PathBuf>,
        /// Those in which a group must be to count as there.
        trees: Vec<PathBuf>,
    },
}

/// The node's control groups.
#[derive(Debug, Clone)]
pub struct PodCgroups {
    tree: Tree,
    root: String,
    pids: i64,
    /// What holds above the pods; groups that the runtime makes later get it then.
    above: Arc<Mutex<Above>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Above {
    all: Limits,
    burstable: Limits,
}

/// Limits of one group; `None` leaves a value alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Limits {
    shares: Option<i64>,
    /// Microseconds in each [`PERIOD`]; negative: no limit.
    quota: Option<i64>,
    /// Bytes; negative: no limit.
    memory: Option<i64>,
    /// Negative: no limit.
    pids: Option<i64>,
}

impl PodCgroups {
    /// Below the group `root`; `pids`: most processes of a pod, negative for no limit.
    pub fn new(root: &str, pids: i64) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self { tree: tree(&mounts), root: root.trim_end_matches('/').to_owned(), pids, above: Arc::default() }
    }

    /// Whether there is one tree for all controllers.
    pub fn is_v2(&self) -> bool {
        matches!(self.tree, Tree::V2(_))
    }

    /// Sets what holds for the whole of a pod. A group that is not there is left out: a runtime without control groups.
    /// With `any_time` there is no limit of processor time: it has processors of its own, or the node limits none.
    pub fn limit_pod(&self, pod: &Pod, any_time: bool) {
        let begin = Instant::now();
        self.apply(&cgroup_parent(&self.root, pod), self.limits(pod, any_time));
        self.apply_above();
        CGROUPS.time(&["update"], begin.elapsed());
    }

    fn limits(&self, pod: &Pod, any_time: bool) -> Limits {
        let limits = Limits { pids: Some(self.pids), ..of(pod) };
        if any_time { Limits { quota: Some(-1), ..limits } } else { limits }
    }

    /// Removes the groups of a pod that is gone, where the runtime left them.
    pub fn remove_pod(&self, pod: &Pod) {
        let begin = Instant::now();
        let group = cgroup_parent(&self.root, pod);
        let trees = Path::new("/sys/fs/cgroup");
        let below = std::fs::read_dir(trees).into_iter().flatten().flatten().map(|entry| entry.path());
        for tree in below.chain([trees.to_owned()]) {
            // not there, most often; one that is in use is not removed
            let _ = std::fs::remove_dir(tree.join(group.trim_start_matches('/')));
        }
        CGROUPS.time(&["destroy"], begin.elapsed());
    }

    fn apply_above(&self) {
        let Above { all, burstable } = *self.above.lock();
        self.apply(&self.root, all);
        self.apply(&format!("{}/burstable", self.root), burstable);
        self.apply(&format!("{}/besteffort", self.root), Limits { shares: Some(2), ..Limits::default() });
    }

    /// Sets what the pods of the class Burstable get of the processors against the others.
    pub fn share<'a>(&self, pods: impl Iterator<Item = &'a Pod>) {
        let burstable = pods.filter(|pod| qos_class(pod) == "Burstable");
        let milli: i64 = burstable.map(crate::resources::requested_milli).sum();
        self.above.lock().burstable = Limits { shares: Some(shares(milli)), ..Limits::default() };
        self.apply_above();
    }

    /// Holds all pods within the node's memory, processors and process ids less what is kept back.
    pub fn limit_all(&self, cpu_milli: i64, memory: i64, pids: Option<i64>) {
        self.above.lock().all =
            Limits { shares: Some(shares(cpu_milli)), quota: None, memory: Some(memory), pids };
        self.apply_above();
    }

    /// What all pods together have left of the memory they are held within; nothing where they are not.
    pub fn memory_left(&self) -> Option<Observation> {
        let group = self.root.trim_start_matches('/');
        let (dir, limit, usage, unused) = match &self.tree {
            Tree::V2(root) => (root.join(group), "memory.max", "memory.current", "inactive_file"),
            Tree::V1 { memory, .. } => {
                let dir = memory.as_ref()?.join(group);
                (dir, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            }
        };
        let read = |file: &str| std::fs::read_to_string(dir.join(file)).ok();
        let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
        // the first version has no word for "no limit", only a number that no machine has
        let capacity = number(limit).filter(|bytes| *bytes < 1 << 62)?;
        let statistics = read("memory.stat")?;
        let mut lines = statistics.lines().filter_map(|line| line.split_once(' '));
        let unused = lines.find(|(name, _)| *name == unused)?.1.parse().ok()?;
        let used = number(usage)?.saturating_sub(unused);
        Some(Observation { available: capacity.saturating_sub(used), capacity })
    }

    fn apply(&self, group: &str, limits: Limits) {
        for (path, value) in self.values(group, limits) {
            if let Err(error) = std::fs::write(&path, &value)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), value, "a limit of a control group");
            }
        }
    }

    fn values(&self, group: &str, limits: Limits) -> Vec<(PathBuf, String)> {
        let group = group.trim_start_matches('/');
        let mut found = Vec::new();
        let mut add = |root: Option<&Path>, file: &str, value: Option<String>| {
            if let (Some(root), Some(value)) = (root, value) {
                found.push((root.join(group).join(file), value));
            }
        };
        let or_max = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
        match &self.tree {
            Tree::V2(root) => {
                let root = Some(root.as_path());
                // [2, 262144] onto [1, 10000], as runtimes do
                let weight = |shares: i64| (1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142).to_string();
                add(root, "cpu.weight", limits.shares.map(weight));
                add(root, "cpu.max", limits.quota.map(|quota| format!("{} {PERIOD}", or_max(quota))));
                add(root, "memory.max", limits.memory.map(or_max));
                add(root, "pids.max", limits.pids.map(or_max));
            }
            Tree::V1 { cpu, memory, pids, .. } => {
                let plain = |value: i64| value.max(-1).to_string();
                add(cpu.as_deref(), "cpu.shares", limits.shares.map(plain));
                add(cpu.as_deref(), "cpu.cfs_period_us", limits.quota.map(|_| PERIOD.to_string()));
                add(cpu.as_deref(), "cpu.cfs_quota_us", limits.quota.map(plain));
                add(memory.as_deref(), "memory.limit_in_bytes", limits.memory.map(plain));
                add(pids.as_deref(), "pids.max", limits.pids.map(or_max));
            }
        }
        found
    }
}

/// What holds for the whole of a pod: a limit only where every container has one, or the pod itself.
fn of(pod: &Pod) -> Limits {
    let object = json!(pod);
    let (requests, limits) = (of_pod(&object, Side::Requests), of_pod(&object, Side::Limits));
    let spec = pod.spec.as_ref();
    // a limit of nothing is none
    let has = |limits: Option<&BTreeMap<String, Quantity>>, name: &str| {
        limits.and_then(|limits| limits.get(name)).is_some_and(|amount| milli(&amount.0) > 0)
    };
    let bounded = |name: &str| {
        let whole = spec.and_then(|spec| spec.resources.as_ref()).and_then(|own| own.limits.as_ref());
        has(whole, name)
            || spec.is_some_and(|spec| {
                let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
                all.all(|container| {
                    has(container.resources.as_ref().and_then(|own| own.limits.as_ref()), name)
                })
            })
    };
    let limit = |name: &str| limits.get(name).filter(|_| bounded(name));
    let best_effort = qos_class(pod) == "BestEffort";
    let asked = requests.get("cpu").map_or(0, |amount| amount.millis());
    Limits {
        shares: Some(if best_effort { 2 } else { shares(asked) }),
        quota: Some(
            limit("cpu").map_or(-1, |amount| (amount.millis().saturating_mul(PERIOD) / 1000).max(1000)),
        ),
        memory: Some(limit("memory").map_or(-1, |amount| amount.value())),
        pids: None,
    }
}

/// Whether groups can be kept from huge pages.
pub fn limits_huge_pages() -> bool {
    has_hugetlb(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

fn has_hugetlb(mountinfo: &str) -> bool {
    const NAME: &str = "hugetlb";
    match tree(mountinfo) {
        Tree::V2(root) => {
            let controllers = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            controllers.split_whitespace().any(|name| name == NAME)
        }
        Tree::V1 { .. } => mountinfo.lines().filter_map(|line| line.split_once(" - ")).any(|(_, right)| {
            let options = right.rsplit(' ').next().unwrap_or_default();
            right.starts_with("cgroup ") && options.split(',').any(|option| option == NAME)
        }),
    }
}

/// Those of the first version that kubelets know.
const CONTROLLERS: [&str; 7] = ["cpu", "cpuacct", "cpuset", "hugetlb", "memory", "name=systemd", "pids"];

/// Finds the trees in a mount table. A tree of v2 beside trees of v1 has no controllers.
fn tree(mountinfo: &str) -> Tree {
    let (mut unified, mut found) = (None, Vec::new());
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
        let mut right = right.split(' ');
        match (right.next(), right.nth(1)) {
            (Some("cgroup"), Some(options)) => found.push((options.to_owned(), mount)),
            (Some("cgroup2"), _) if unified.is_none() => unified = Some(mount),
            _ => {}
        }
    }
    let controller = |name: &str| {
        let has = |(options, _): &&(String, PathBuf)| options.split(',').any(|option| option == name);
        found.iter().find(has).map(|(_, mount)| mount.clone())
    };
    match (controller("memory"), unified) {
        (None, Some(root)) => Tree::V2(root),
        (memory, _) => {
            let mut trees: Vec<PathBuf> = CONTROLLERS.into_iter().filter_map(controller).collect();
            trees.sort_unstable();
            trees.dedup();
            Tree::V1 { cpu: controller("cpu"), memory, pids: controller("pids"), trees }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const HYBRID: &str = "1 2 0:1 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                          1 2 0:2 / /cg/memory rw - cgroup cgroup rw,memory\n1 2 0:3 / /cg/unified rw - cgroup2 cgroup2 rw\n";

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": spec})).unwrap()
    }

    fn lines(mounts: &str, limits: Limits) -> Vec<String> {
        let groups =
            PodCgroups { tree: tree(mounts), root: "/k".to_owned(), pids: -1, above: Arc::default() };
        let values = groups.values("/k/podu", limits);
        values.into_iter().map(|(path, value)| format!("{}={value}", path.display())).collect()
    }

    #[test]
    fn values_are_written_where_their_controllers_are() {
        let limits = Limits { shares: Some(1024), quota: Some(-1), memory: Some(5), pids: Some(-1) };
        assert_eq!(
            lines(HYBRID, limits),
            [
                "/cg/cpu/k/podu/cpu.shares=1024",
                "/cg/cpu/k/podu/cpu.cfs_period_us=100000",
                "/cg/cpu/k/podu/cpu.cfs_quota_us=-1",
                "/cg/memory/k/podu/memory.limit_in_bytes=5"
            ]
        );
        assert_eq!(
            lines("1 2 0:3 / /cg rw - cgroup2 cgroup2 rw\n", Limits { quota: Some(50_000), ..limits }),
            [
                "/cg/k/podu/cpu.weight=39",
                "/cg/k/podu/cpu.max=50000 100000",
                "/cg/k/podu/memory.max=5",
                "/cg/k/podu/pids.max=max"
            ]
        );
    }

    #[test]
    fn huge_pages_are_kept_from_groups_where_the_kernel_counts_them() {
        assert!(!has_hugetlb(HYBRID));
        assert!(has_hugetlb(&format!("{HYBRID}1 2 0:4 / /cg/hugetlb rw - cgroup cgroup rw,hugetlb\n")));
        let dir = tempfile::tempdir().unwrap();
        let two = format!("1 2 0:3 / {} rw - cgroup2 cgroup2 rw\n", dir.path().display());
        assert!(!has_hugetlb(&two));
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu io memory hugetlb pids\n").unwrap();
        assert!(has_hugetlb(&two));
    }

    #[test]
    fn what_pods_have_left_is_their_limit_less_what_they_work_with() {
        let check = |mounts: &str, names: [&str; 3], limit: &str, expected: Option<(u64, u64)>| {
            let dir = tempfile::tempdir().unwrap();
            let group = dir.path().join("k");
            std::fs::create_dir(&group).unwrap();
            let [max, current, unused] = names;
            for (file, text) in
                [(max, limit), (current, "700\n"), ("memory.stat", &format!("anon 1\n{unused} 200\n"))]
            {
                std::fs::write(group.join(file), text).unwrap();
            }
            let mounts = mounts.replace("/cg", &dir.path().display().to_string());
            let groups =
                PodCgroups { tree: tree(&mounts), root: "/k".to_owned(), pids: -1, above: Arc::default() };
            let found = groups.memory_left().map(|left| (left.available, left.capacity));
            assert_eq!(found, expected, "{mounts}");
        };
        let two = "1 2 0:3 / /cg rw - cgroup2 cgroup2 rw\n";
        let names = ["memory.max", "memory.current", "inactive_file"];
        check(two, names, "1000\n", Some((500, 1000)));
        check(two, names, "400\n", Some((0, 400)));
        check(two, names, "max\n", None);
        let one = "1 2 0:2 / /cg rw - cgroup cgroup rw,memory\n";
        let names = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"];
        check(one, names, "1000\n", Some((500, 1000)));
        check(one, names, "9223372036854771712\n", None);
    }

    #[test]
    fn a_pod_is_bounded_when_all_its_containers_are_or_it_says_so() {
        let container =
            |limits: Value| json!({"name": "c", "resources": {"limits": limits, "requests": limits}});
        let one = container(json!({"cpu": "500m", "memory": "1Mi"}));
        let all = pod(json!({"containers": [one, one]}));
        let expected = Limits { shares: Some(1024), quota: Some(100_000), memory: Some(2 << 20), pids: None };
        assert_eq!(of(&all), expected);
        let some = pod(json!({"containers": [one, {"name": "free"}]}));
        assert_eq!(of(&some), Limits { shares: Some(512), quota: Some(-1), memory: Some(-1), pids: None });
        let nothing = pod(json!({"containers": [one, container(json!({"cpu": "0", "memory": "0"}))]}));
        assert_eq!(
            (of(&nothing).quota, of(&nothing).memory),
            (Some(-1), Some(-1)),
            "a limit of nothing is none"
        );
        let groups = PodCgroups { tree: tree(HYBRID), root: "/k".to_owned(), pids: 7, above: Arc::default() };
        let quota = |any_time| groups.limits(&all, any_time).quota;
        assert_eq!((quota(false), quota(true)), (Some(100_000), Some(-1)));
        let whole = json!({"limits": {"memory": "3Mi"}, "requests": {"memory": "1Mi"}});
        let whole = pod(json!({"resources": whole, "containers": [{"name": "free"}]}));
        assert_eq!(of(&whole).memory, Some(3 << 20));
        let free = pod(json!({"containers": [{"name": "free"}]}));
        assert_eq!(of(&free).shares, Some(2));
    }
}
