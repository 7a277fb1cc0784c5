//! Pods that want more than they may have, and logs that do.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};
use testkit::{Cluster, eventually};

use super::{WAITS, apply, condition, event, pod, said, shell, status, until};
use crate::{cluster_with, is_ready};

/// A cluster whose kubelet has these settings, and no thought for how much disk this machine has left.
fn configured(more: &str) -> (tempfile::TempDir, Cluster) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubelet.yaml");
    let settings = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         evictionHard: {{memory.available: 100Mi, nodefs.available: 1Gi, imagefs.available: 1Gi}}\n{more}"
    );
    std::fs::write(&file, settings).unwrap();
    let cluster = cluster_with(vec!["--kubelet-config".into(), file.display().to_string()]);
    (folder, cluster)
}

/// The number of the capability by which a process may lower its `oom_score_adj`.
const CAP_SYS_RESOURCE: u32 = 24;

fn main(script: &str, more: Value) -> Value {
    let mut main = json!({"name": "main", "command": shell(script)});
    main.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!([main])
}

#[test]
fn who_writes_more_than_he_may_is_evicted_and_a_critical_pod_takes_anothers_place() {
    let (_folder, cluster) = configured("maxPods: 3\n");
    let volume = json!([{"name": "d", "emptyDir": {"sizeLimit": "1Mi"}}]);
    let mounts = json!({"volumeMounts": [{"name": "d", "mountPath": "/d"}]});
    let little = json!({"resources": {"limits": {"ephemeral-storage": "1Mi"}}});
    let writes = |file: &str| format!("dd if=/dev/zero of={file} bs=1M count=8; {WAITS}");
    apply(
        &cluster,
        &[
            pod("volume", json!({"volumes": volume, "containers": main(&writes("/d/x"), mounts)})),
            pod("layer", json!({"containers": main(&writes("/x"), little)})),
            pod("modest", json!({"containers": main(WAITS, json!({}))})),
        ],
    );
    for (name, message) in [
        ("volume", "Usage of EmptyDir volume \"d\" exceeds the limit \"1Mi\""),
        ("layer", "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi"),
    ] {
        let found = until(&cluster, name, "is evicted", |pod| pod["status"]["phase"] == "Failed");
        assert_eq!(found["status"]["reason"], "Evicted", "{found}");
        assert!(found["status"]["message"].as_str().unwrap().contains(message), "{found}");
        assert!(status(&found, "main")["state"]["terminated"].is_object(), "{found}");
        event(&cluster, name, "Evicted", message);
    }
    let before = until(&cluster, "modest", "is ready", is_ready);
    cluster.kubectl("delete pod volume layer --timeout=120s").unwrap();

    // three places: one more pod than that waits for nobody if it is critical
    let also = |name: &str, more: Value| {
        let mut spec = json!({"nodeName": "node-1", "containers": main(WAITS, json!({}))});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pod(name, spec)
    };
    apply(&cluster, &[also("second", json!({})), also("third", json!({}))]);
    for name in ["second", "third"] {
        until(&cluster, name, "is ready", is_ready);
    }
    apply(&cluster, &[also("fourth", json!({}))]);
    let refused = until(&cluster, "fourth", "is refused", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(refused["status"]["reason"], "OutOfpods", "{refused}");
    apply(&cluster, &[also("critical", json!({"priorityClassName": "system-node-critical"}))]);
    until(&cluster, "critical", "is ready", is_ready);
    let pods = cluster.get("pods").unwrap();
    let mut ended =
        pods["items"].as_array().unwrap().iter().filter(|pod| pod["status"]["reason"] == "Preempting");
    let gone = ended.next().expect("somebody made room");
    assert_eq!((condition(gone, "DisruptionTarget"), ended.next()), ("True", None), "{gone}");
    assert_eq!(status(&before, "main")["restartCount"], 0);
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
}

#[test]
fn a_follower_reads_every_line_once_while_the_log_is_put_aside_again_and_again() {
    let (_folder, cluster) =
        configured("containerLogMaxSize: 64Ki\ncontainerLogMaxFiles: 3\ncontainerLogMonitorInterval: 3s\n");
    let folder = tempfile::tempdir().unwrap();
    // some lines at a time, until it has been put aside three times
    let script = "n=0; echo line 0; until test -e /d/begin; do sleep 0.1; done; until test -e /d/end; do for i in 1 2 3 4 5 6 7 8 9 10; do n=$((n+1)); echo line $n and what makes it long enough; done; sleep 0.01; done; echo $n > /d/count";
    let volumes = json!([{"name": "d", "hostPath": {"path": folder.path()}}]);
    let mounts = json!({"volumeMounts": [{"name": "d", "mountPath": "/d"}]});
    apply(
        &cluster,
        &[pod(
            "talks",
            json!({"restartPolicy": "Never", "volumes": volumes, "containers": main(script, mounts)}),
        )],
    );
    let found = until(&cluster, "talks", "is ready", is_ready);
    let mut follow = cluster.command("kubectl").unwrap();
    follow.args(["logs", "-f", "talks"]);
    let mut follower = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "line 0");
    let reader = std::thread::spawn(move || lines.collect::<Vec<_>>());
    std::fs::write(folder.path().join("begin"), "").unwrap();
    let uid = found["metadata"]["uid"].as_str().unwrap();
    let logs = cluster.data_dir().join(format!("logs/pods/default_talks_{uid}/main"));
    let mut aside = BTreeSet::new();
    eventually("the log was put aside three times", || {
        let names = std::fs::read_dir(&logs)
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        aside.extend(
            names.filter_map(|name| Some(name.strip_prefix("0.log.")?.split('.').next()?.to_owned())),
        );
        if aside.len() >= 3 { Ok(()) } else { Err(aside.clone()) }
    });
    std::fs::write(folder.path().join("end"), "").unwrap();
    let followed = reader.join().unwrap();
    assert!(follower.wait().unwrap().success());
    until(&cluster, "talks", "is over", |pod| pod["status"]["phase"] == "Succeeded");
    let count = std::fs::read_to_string(folder.path().join("count")).unwrap();
    let count: usize = count.trim().parse().unwrap();
    assert!(count > 1000, "{count}");
    for (number, line) in followed.iter().enumerate() {
        assert_eq!(*line, format!("line {} and what makes it long enough", number + 1));
    }
    assert_eq!(followed.len(), count);
    // one may be on its way to be compressed
    eventually("no more files are kept than asked for", || {
        let kept = std::fs::read_dir(&logs).unwrap().count();
        if kept <= 3 { Ok(()) } else { Err(kept) }
    });
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
}

#[test]
fn classes_of_pods_differ_in_who_ends_first_when_memory_is_short() {
    let (_folder, cluster) = configured("");
    // a node without the right to do so cannot lower it
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let rights = own.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    let may = u64::from_str_radix(rights, 16).unwrap() & (1 << CAP_SYS_RESOURCE) != 0;
    let sure_score = if may {
        -997
    } else {
        std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap()
    };
    let amounts = |memory: &str| json!({"cpu": "50m", "memory": memory});
    let sure = json!({"resources": {"limits": amounts("32Mi"), "requests": amounts("32Mi")}});
    let some = json!({"resources": {"requests": amounts("32Mi")}});
    apply(
        &cluster,
        &[
            pod("guaranteed", json!({"containers": main(WAITS, sure)})),
            pod("burstable", json!({"containers": main(WAITS, some)})),
            pod("besteffort", json!({"containers": main(WAITS, json!({}))})),
        ],
    );
    for (name, class, scores) in [
        ("guaranteed", "Guaranteed", sure_score..=sure_score),
        ("burstable", "Burstable", 3..=999),
        ("besteffort", "BestEffort", 1000..=1000),
    ] {
        let found = until(&cluster, name, "is ready", is_ready);
        assert_eq!(found["status"]["qosClass"], class);
        let score: i32 = said(&cluster, name, "cat /proc/1/oom_score_adj").trim().parse().unwrap();
        assert!(scores.contains(&score), "{name}: {score}");
    }
    let why = cluster
        .kubectl_with("create --raw /api/v1/nodes/node-1/proxy/checkpoint/default/burstable/main -f -", "{}");
    let why = why.unwrap_err().to_string();
    assert!(why.contains("CRIU"), "{why}");
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
}
