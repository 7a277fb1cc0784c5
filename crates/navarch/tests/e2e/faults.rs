//! A node and what goes wrong on it: it says what, stays ready, and other pods do not notice.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::faulty_registry::{Fault, FaultyRegistry};
use testkit::{Cluster, Options, eventually};

use crate::{NAVARCH, cluster, cluster_with, describe, is_ready, prepared};

/// A pod `name` that is to stay as it is, however little the node has left.
fn quiet(name: &str) -> String {
    pod(name, "busybox:test", "exec sleep 34567", "  priorityClassName: system-node-critical\n")
}

/// A pod of one container that runs a shell script.
fn pod(name: &str, image: &str, script: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - name: main\n    image: '{image}'\n    command: [sh, -c, '{script}']\n{more}---\n"
    )
}

fn get(cluster: &Cluster, pod: &str) -> Result<Value, String> {
    cluster.get(&format!("pod {pod}")).map_err(|error| error.to_string())
}

#[track_caller]
fn wait_for(cluster: &Cluster, pod: &str) -> Value {
    eventually(&format!("{pod} is ready"), || {
        let found = get(cluster, pod)?;
        if is_ready(&found) { Ok(found) } else { Err(describe(cluster)) }
    })
}

#[track_caller]
fn wait_for_event(cluster: &Cluster, pod: &str, parts: &[&str]) {
    eventually(&format!("an event of {pod} says {parts:?}"), || {
        let selector = format!("get events --field-selector involvedObject.name={pod}");
        let events = cluster.kubectl(&selector).map_err(|error| error.to_string())?;
        let tells = events.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        if tells { Ok(()) } else { Err(events) }
    });
}

/// The node's condition: its status, and since when.
fn condition(cluster: &Cluster, kind: &str) -> (String, String) {
    let node = cluster.get("node node-1").unwrap();
    let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default();
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("lastTransitionTime"))
}

/// Neither the node nor a quiet pod noticed anything since `before`.
#[track_caller]
fn nobody_noticed(cluster: &Cluster, before: &(Value, (String, String))) {
    assert_eq!(condition(cluster, "Ready"), before.1, "the node stayed ready");
    let now = wait_for(cluster, before.0["metadata"]["name"].as_str().unwrap());
    let container = |pod: &Value| pod["status"]["containerStatuses"][0].clone();
    for key in ["containerID", "restartCount", "state"] {
        assert_eq!(container(&now)[key], container(&before.0)[key], "{now}");
    }
}

/// A pod that is to stay as it is, and since when the node is ready.
fn witness(cluster: &Cluster) -> (Value, (String, String)) {
    cluster.apply(&quiet("witness")).unwrap();
    let pod = wait_for(cluster, "witness");
    let ready = condition(cluster, "Ready");
    assert_eq!(ready.0, "True");
    (pod, ready)
}

/// Takes all that is left of the disk which `file` is on.
fn fill(file: &Path) {
    let file = std::fs::File::options().create(true).append(true).open(file).unwrap();
    let mut step = 1 << 30;
    while step >= 4096 {
        let end = file.metadata().unwrap().len();
        let taken = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), end, step);
        if taken.is_err() {
            step /= 2;
        }
    }
}

#[test]
fn who_fills_the_disk_is_evicted_and_a_full_disk_ends_nothing() {
    let options = Options { binary: NAVARCH.into(), disk: Some(3 << 30), ..Options::default() };
    let cluster = prepared(options);
    let before = witness(&cluster);
    let more = "    volumeMounts: [{name: scratch, mountPath: /scratch}]\n  volumes: [{name: scratch, emptyDir: {}}]\n";
    cluster
        .apply(&pod("greedy", "busybox:test", "fallocate -l 2300M /scratch/x; exec sleep 34567", more))
        .unwrap();
    eventually("the greedy pod is evicted", || {
        let found = get(&cluster, "greedy")?;
        let status = &found["status"];
        let told = status["message"].as_str().is_some_and(|text| text.contains("ephemeral-storage"));
        if status["reason"] == "Evicted" && told { Ok(()) } else { Err(describe(&cluster)) }
    });
    wait_for_event(&cluster, "greedy", &["Evicted", "The node was low on resource: ephemeral-storage"]);
    wait_for_event(&cluster, "node-1", &["NodeHasDiskPressure"]);
    assert_eq!(condition(&cluster, "DiskPressure").0, "True");
    nobody_noticed(&cluster, &before);
    cluster.kubectl("delete pod greedy").unwrap();

    // not a byte is left, and nobody is to blame: the disk is the node's own
    let filler = cluster.data_dir().join("filler");
    cluster.kubectl("create configmap kept --from-literal=a=b").unwrap();
    fill(&filler);
    assert_eq!(cluster.kubectl("exec witness -- echo here").unwrap(), "here\n");
    let (big, mut taken) = ("x".repeat(900_000), 0);
    let refused = eventually("a write is refused", || {
        let line = format!("create configmap big-{taken} --from-file=a=/dev/stdin -o name");
        taken += 1;
        cluster.kubectl_with(&line, &big).err().map(|error| error.to_string()).ok_or(taken)
    });
    assert!(refused.contains("no space left"), "{refused}");
    assert_eq!(cluster.kubectl("get configmap kept -o jsonpath={.data.a}").unwrap(), "b");
    std::fs::remove_file(&filler).unwrap();
    eventually("writes are taken again", || {
        cluster.kubectl("create configmap later").map(drop).map_err(|error| error.to_string())
    });
    nobody_noticed(&cluster, &before);
}

#[test]
fn registries_that_stall_lie_or_send_rubbish_hold_up_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("registries.yaml");
    let cluster = cluster_with(vec!["--private-registry".into(), settings.display().to_string()]);
    let registry = FaultyRegistry::start(cluster.net()).unwrap();
    std::fs::write(&settings, registry.settings()).unwrap();
    let before = witness(&cluster);
    let make = |name: &str, fault: Fault| {
        let image = registry.add(name, fault).unwrap();
        cluster.apply(&pod(name, &image, "exec sleep 34567", "")).unwrap();
    };
    make("corrupt", Fault::Corrupt);
    make("lies", Fault::Lies);
    for name in ["corrupt", "lies"] {
        wait_for_event(&cluster, name, &["Failed", "Failed to pull image", "came with digest sha256:"]);
        wait_for_event(&cluster, name, &["BackOff", "Back-off pulling image"]);
        let status = get(&cluster, name).unwrap()["status"]["containerStatuses"][0].clone();
        let reason = status["state"]["waiting"]["reason"].as_str().unwrap_or_default();
        assert!(["ErrImagePull", "ImagePullBackOff"].contains(&reason), "{status}");
    }
    make("good", Fault::None);
    wait_for(&cluster, "good");
    // more than are pulled at once
    let stuck: Vec<String> = (0..5).map(|number| format!("stuck-{number}")).collect();
    stuck.iter().for_each(|name| make(name, Fault::Stalls));
    eventually("four pulls are stuck", || {
        let asked = stuck.iter().filter(|name| registry.asked(name)).count();
        if asked == 4 { Ok(()) } else { Err(asked) }
    });
    wait_for_event(&cluster, "stuck-0", &["Pulling", "Pulling image"]);
    nobody_noticed(&cluster, &before);
    // images that are there need no turn, and who goes gives his back
    cluster.apply(&quiet("local")).unwrap();
    wait_for(&cluster, "local");
    cluster.kubectl(&format!("delete pod {} --timeout=120s", stuck.join(" "))).unwrap();
    make("next", Fault::None);
    wait_for(&cluster, "next");
    nobody_noticed(&cluster, &before);
}

#[test]
fn the_runtimes_socket_may_go() {
    let cluster = cluster();
    let before = witness(&cluster);
    let run = Path::new("/run/navarch").join(cluster.instance().unwrap());
    std::fs::remove_file(run.join("cri.sock")).unwrap();
    cluster.apply(&quiet("after")).unwrap();
    wait_for(&cluster, "after");
    assert_eq!(cluster.kubectl("exec witness -- echo here").unwrap(), "here\n");
    nobody_noticed(&cluster, &before);
}

#[test]
fn bursts_of_ten_thousand_lines_are_logged_to_the_last() {
    let mut cluster = cluster();
    let before = witness(&cluster);
    let names: Vec<String> = (0..10).map(|number| format!("burst-{number}")).collect();
    let all: String = names
        .iter()
        .map(|name| {
            pod(
                name,
                "busybox:test",
                "seq 10000; while test ! -e /go; do sleep 0.1; done; seq 10001 20000; exec sleep 34567",
                "",
            )
        })
        .collect();
    cluster.apply(&all).unwrap();
    names.iter().for_each(|name| drop(wait_for(&cluster, name)));
    for name in &names {
        cluster.kubectl(&format!("exec {name} -- touch /go")).unwrap();
    }
    // one half is written while nobody reads, or so
    cluster.kill_server().unwrap();
    cluster.start_server().unwrap();
    let wanted: Vec<String> = (1..=20_000).map(|line| line.to_string()).collect();
    for name in &names {
        eventually(&format!("{name} is logged"), || {
            let log = cluster.kubectl(&format!("logs {name}")).map_err(|error| error.to_string())?;
            if log.lines().eq(wanted.iter()) {
                Ok(())
            } else {
                Err(log.lines().count()).map_err(|n| n.to_string())
            }
        });
    }
    nobody_noticed(&cluster, &before);
}

#[test]
fn a_pod_that_forks_without_end_stops_at_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("kubelet.yaml");
    let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\npodPidsLimit: 100\n\
         evictionHard: {memory.available: 100Mi, nodefs.available: 1Gi, imagefs.available: 1Gi}\n";
    std::fs::write(&config, text).unwrap();
    let cluster = cluster_with(vec!["--kubelet-config".into(), config.display().to_string()]);
    let before = witness(&cluster);
    let bomb = "exec awk \"BEGIN { while (1) system(\\\"sleep 45678 &\\\") }\"";
    let limits = "    resources: {limits: {cpu: 100m}}\n";
    cluster.apply(&pod("bomb", "busybox:test", bomb, limits)).unwrap();
    let found = wait_for(&cluster, "bomb");
    let uid = found["metadata"]["uid"].as_str().unwrap().to_owned();
    let forked = || {
        let of_bomb = |entry: &std::fs::DirEntry| {
            let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            groups.replace('_', "-").contains(&uid)
        };
        std::fs::read_dir("/proc").unwrap().flatten().filter(of_bomb).count()
    };
    eventually("it has what it may have", || {
        let now = forked();
        if now >= 95 { Ok(()) } else { Err(now) }
    });
    // one place may be free for a moment, three are not
    let more = ["exec", "bomb", "--", "sh", "-c", "sleep 9 | sleep 9 | sleep 9"];
    let refused = cluster.kubectl_args(&more).unwrap_err().to_string();
    assert!(refused.contains("Resource temporarily unavailable"), "{refused}");
    assert!(forked() <= 110);
    cluster.apply(&quiet("after")).unwrap();
    wait_for(&cluster, "after");
    nobody_noticed(&cluster, &before);
    cluster.kubectl("delete pod bomb --timeout=120s").unwrap();
    eventually("all of them are dead", || {
        let left = forked();
        if left == 0 { Ok(()) } else { Err(left) }
    });
}

#[test]
fn who_ignores_sigterm_is_killed_when_his_time_is_over() {
    let cluster = cluster();
    let before = witness(&cluster);
    let deaf = pod("deaf", "busybox:test", "trap : TERM; while :; do sleep 0.2; done", "");
    cluster.apply(&deaf.replace("PeriodSeconds: 0", "PeriodSeconds: 3")).unwrap();
    wait_for(&cluster, "deaf");
    let begin = Instant::now();
    cluster.kubectl("delete pod deaf --timeout=120s").unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(3), "{:?}", begin.elapsed());
    wait_for_event(&cluster, "deaf", &["Killing", "Stopping container main"]);
    nobody_noticed(&cluster, &before);
}
