//! The server is killed again and again while pods start, stop and wait for images: no container ends or doubles by it, and what
//! pods had on the machine goes with them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use testkit::faulty_registry::{Fault, FaultyRegistry};
use testkit::{Cluster, eventually};

use crate::{cluster_with, describe, name, wait_ready};

/// Kills, and pods that run all the while; an even number, and fewer where everything takes longer.
fn times() -> usize {
    50 / testkit::slowness() as usize / 2 * 2
}

/// Each start of a container leaves a line in a file of its pod.
const CONTAINER: &str = "name: main, env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}], \
     volumeMounts: [{name: starts, mountPath: /starts}], \
     command: [sh, -c, 'echo started >> /starts/$POD; exec sleep 23456']";

fn pods(starts: &Path, image: &str) -> String {
    format!(
        "terminationGracePeriodSeconds: 1, containers: [{{{CONTAINER}, image: '{image}'}}], \
         volumes: [{{name: starts, hostPath: {{path: {}}}}}]",
        starts.display()
    )
}

/// Ids of the containers' processes by the pod's uid, which is in the name of their control group.
fn processes(pods: &[Value]) -> BTreeMap<String, Vec<u32>> {
    let uid = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap().to_owned();
    let mut found: BTreeMap<String, Vec<u32>> = pods.iter().map(|pod| (uid(pod), Vec::new())).collect();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        if std::fs::read(entry.path().join("cmdline")).is_ok_and(|found| found == b"sleep\x0023456\x00") {
            let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let groups = groups.replace('_', "-");
            found.iter_mut().filter(|(uid, _)| groups.contains(*uid)).for_each(|(_, pids)| pids.push(pid));
        }
    }
    found
}

/// What pods leave on the machine while they are there: mounts, control groups, processes, namespaces, links, addresses, folders.
fn traces(cluster: &Cluster) -> BTreeSet<String> {
    let (data, instance) = (cluster.data_dir(), cluster.instance().unwrap());
    let run = PathBuf::from("/run/navarch").join(&instance);
    let mut found = BTreeSet::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    found.extend(
        points
            .filter(|p| Path::new(p).starts_with(&data) || Path::new(p).starts_with(&run))
            .map(|p| format!("mount {p}")),
    );
    let of_run = ["s", "netns"].map(|folder| run.join(folder));
    let of_data = [
        "runtime/containers",
        "runtime/sandboxes",
        "kubelet/pods",
        "network/addresses",
        "network/attachments",
        "logs/pods",
    ];
    for folder in of_run.into_iter().chain(of_data.map(|folder| data.join(folder))) {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| format!("file {}", entry.path().display())));
    }
    let mut groups = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(group) = groups.pop() {
        let entries = std::fs::read_dir(group).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let path = entry.path();
            // the node's own, one per class of pods
            let class = ["besteffort", "burstable"].iter().any(|class| path.ends_with(class));
            if path.to_string_lossy().contains(&instance) && !class {
                found.insert(format!("group {}", path.display()));
            }
            groups.push(path);
        }
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if groups.contains(&format!("/navarch-{instance}/")) {
            found.insert(format!("process {}", entry.path().display()));
        }
    }
    // a bridge goes down a moment after its last port went
    let state = cluster.net().state().unwrap().replace(" linkdown", "");
    let state = state.replace("navarch0 UP", "navarch0").replace("navarch0 DOWN", "navarch0");
    found.extend(state.lines().map(|line| format!("network {line}")));
    found
}

fn until_no_pods(cluster: &Cluster) {
    eventually("all pods are gone", || {
        let left = cluster.kubectl("get pods -o name").map_err(|error| error.to_string())?;
        if left.is_empty() { Ok(()) } else { Err(describe(cluster)) }
    });
}

#[test]
fn fifty_kills_end_no_container_start_none_twice_and_leave_nothing() {
    let times = times();
    let folder = tempfile::tempdir().unwrap();
    let (settings, starts) = (folder.path().join("registries.yaml"), folder.path().join("starts"));
    std::fs::create_dir(&starts).unwrap();
    let mut cluster = cluster_with(vec!["--private-registry".into(), settings.display().to_string()]);
    let registry = FaultyRegistry::start(cluster.net()).unwrap();
    std::fs::write(&settings, registry.settings()).unwrap();
    // what the first pod of a node brings along stays
    let own = pods(&starts, "busybox:test");
    let pod = |name: &str, spec: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: x}}}}\nspec: {{{spec}}}\n"
        )
    };
    cluster.apply(&pod("first", &own)).unwrap();
    wait_ready(&cluster, "app=x", 1);
    cluster.kubectl("delete pod first").unwrap();
    let before = traces(&cluster);

    cluster
        .apply(&format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: many}}\nspec:\n  replicas: {times}\n  \
             selector: {{matchLabels: {{app: many}}}}\n  template:\n    metadata: {{labels: {{app: many}}}}\n    spec: {{{own}}}\n"
        ))
        .unwrap();
    let steady = wait_ready(&cluster, "app=many", times);
    let running = processes(&steady);
    assert!(running.values().all(|pids| pids.len() == 1), "{running:?}");

    for round in 0..times {
        let (start, pull) = (format!("start-{round}"), format!("pull-{round}"));
        let image = registry.add(&pull, Fault::StallsOnce).unwrap();
        cluster.apply(&format!("{}---\n{}", pod(&start, &own), pod(&pull, &pods(&starts, &image)))).unwrap();
        eventually("the image is on its way", || {
            if registry.asked(&pull) { Ok(()) } else { Err(describe(&cluster)) }
        });
        // of every second round the pods go again, whatever became of them by then
        if round % 2 == 1 {
            let last = round - 1;
            cluster.kubectl(&format!("delete pod start-{last} pull-{last} --wait=false")).unwrap();
        }
        cluster.kill_server().unwrap();
        assert_eq!(processes(&steady), running, "they run without a server, round {round}");
        cluster.start_server().unwrap();
    }
    let changed = wait_ready(&cluster, "app=x", times);
    assert_eq!(processes(&steady), running, "the same processes as before");
    let steady = wait_ready(&cluster, "app=many", times);
    let all: Vec<Value> = steady.into_iter().chain(changed).collect();
    for (uid, pids) in processes(&all) {
        assert_eq!(pids.len(), 1, "the processes of {uid}");
    }
    for pod in &all {
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod}");
        let started = std::fs::read_to_string(starts.join(name(pod))).unwrap_or_default();
        assert_eq!(started, "started\n", "{}", name(pod));
    }
    for entry in std::fs::read_dir(&starts).unwrap().flatten() {
        let started = std::fs::read_to_string(entry.path()).unwrap();
        assert_eq!(started, "started\n", "{:?} started twice", entry.file_name());
    }
    cluster.kubectl("delete deployment many --wait=false").unwrap();
    cluster.kubectl("delete pod -l app=x --wait=false").unwrap();
    until_no_pods(&cluster);
    eventually("nothing is left of the pods", || {
        let now = traces(&cluster);
        let left: Vec<&String> = now.difference(&before).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    });
}
