//! The server's end is not the containers' end; `reset` is the end of everything.

use std::collections::BTreeMap;

use testkit::{Cluster, eventually};

use crate::{cluster, name, wait_ready};

const TWENTY: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: 20
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: 'busybox:test', command: [sleep, '12345']}]
";

/// Host process ids of the pods' main processes, by pod uid; found by the cgroup the uid is in.
fn processes(uids: &[String]) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if arguments != b"sleep\x0012345\x00" {
            continue;
        }
        let groups =
            std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default().replace('_', "-");
        if let Some(uid) = uids.iter().find(|uid| groups.contains(uid.as_str())) {
            found.insert(uid.clone(), pid);
        }
    }
    found
}

fn restarts(cluster: &Cluster) -> BTreeMap<String, u64> {
    let pods = cluster.get("pods -l app=many").unwrap();
    let pods = pods["items"].as_array().unwrap();
    pods.iter()
        .map(|p| (name(p).to_owned(), p["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap()))
        .collect()
}

#[test]
fn containers_outlive_a_killed_server_and_are_adopted() {
    let mut cluster = cluster();
    cluster.apply(TWENTY).unwrap();
    let pods = wait_ready(&cluster, "app=many", 20);
    let uids: Vec<String> = pods.iter().map(|p| p["metadata"]["uid"].as_str().unwrap().to_owned()).collect();
    let before = processes(&uids);
    assert_eq!(before.len(), 20, "every pod has its process");
    let counted = restarts(&cluster);

    cluster.kill_server().unwrap();
    assert_eq!(processes(&uids), before, "they run without a server");
    cluster.start_server().unwrap();
    // a pod made now runs: the kubelet has seen what is there, and is at work
    cluster.kubectl("run after --image busybox:test -- sleep 12345").unwrap();
    cluster.kubectl("wait pod after --for condition=Ready --timeout 120s").unwrap();
    wait_ready(&cluster, "app=many", 20);
    assert_eq!(processes(&uids), before, "the same processes after the adoption");
    assert_eq!(restarts(&cluster), counted, "no restart was counted");
    // adopted means in charge, too
    cluster.kubectl("delete deployment many").unwrap();
    eventually("the adopted containers end with their deployment", || {
        let left = processes(&uids);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn reset_under_running_pods_leaves_nothing() {
    let mut cluster = cluster();
    cluster.apply(&TWENTY.replace("replicas: 20", "replicas: 3")).unwrap();
    let pods = wait_ready(&cluster, "app=many", 3);
    let uids: Vec<String> = pods.iter().map(|p| p["metadata"]["uid"].as_str().unwrap().to_owned()).collect();
    assert_eq!(processes(&uids).len(), 3);
    let data = cluster.data_dir();

    let reset = cluster.reset().unwrap();
    let text = String::from_utf8_lossy(&reset.stdout).into_owned();
    assert!(reset.status.success() && text.contains("left: nothing"), "{text}");
    assert!(processes(&uids).is_empty());
    assert!(!data.exists());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(data.to_str().unwrap()), "{mounts}");
}
