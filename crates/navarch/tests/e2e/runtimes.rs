//! Pods that another container runtime runs: an OCI runtime as the handler of a RuntimeClass, containerd under our kubelet.

use serde_json::Value;
use testkit::containerd::Containerd;
use testkit::{Cluster, Options, eventually};

use crate::{NAVARCH, cluster_with, describe, streams, wait_ready};

const CLASSES: &str = "apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: small}
handler: little
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: lost}
handler: nowhere
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: x}}
spec:
  runtimeClassName: small
  terminationGracePeriodSeconds: 0
  initContainers:
  - {name: first, image: 'busybox:test', command: [sh, -c, 'echo hello > /www/index.html'], volumeMounts: [{name: www, mountPath: /www}]}
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, 'echo up; trap \"exit 3\" TERM; httpd -h /www -p 80; while true; do sleep 0.1; done']
    volumeMounts: [{name: www, mountPath: /www}]
    readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
    resources: {limits: {memory: 32Mi, cpu: 100m}}
  volumes: [{name: www, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: stray}
spec:
  runtimeClassName: lost
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'busybox:test', command: [sleep, infinity]}]
";

#[test]
fn a_runtime_class_has_its_pods_run_by_crun() {
    let folder = tempfile::tempdir().unwrap();
    let crun = testkit::debian::crun(folder.path()).unwrap();
    let mut cluster =
        cluster_with(vec!["--runtime-handler".to_owned(), format!("little={}", crun.display())]);
    cluster.apply(CLASSES).unwrap();
    wait_ready(&cluster, "app=x", 1);
    let node = cluster.get("node node-1").unwrap();
    let handlers = node["status"]["runtimeHandlers"].as_array().unwrap();
    assert!(handlers.iter().any(|handler| handler["name"] == "little"), "{handlers:?}");
    assert_eq!(cluster.kubectl("logs web").unwrap(), "up\n");
    assert_eq!(cluster.kubectl("exec web -- cat /www/index.html").unwrap(), "hello\n");
    let missing = cluster.kubectl("exec web -- nope").unwrap_err().to_string();
    assert!(missing.contains("executable file `nope` not found"), "{missing}");
    eventually("the pod of an unknown handler says why it does not start", || {
        let events = cluster.kubectl("get events --field-selector involvedObject.name=stray").unwrap();
        let why = "Failed to create pod sandbox: no runtime for \"nowhere\" is configured";
        if events.contains(why) { Ok(()) } else { Err(events) }
    });
    // a crash of the server: the container is adopted, and its end is seen
    cluster.kill_server().unwrap();
    cluster.start_server().unwrap();
    let pod = wait_ready(&cluster, "app=x", 1).remove(0);
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    eventually("the node answers again", || {
        cluster.kubectl("exec web -- true").map(drop).map_err(|error| error.to_string())
    });
    cluster.kubectl("exec web -- kill 1").unwrap();
    eventually("the container was started again", || {
        let pod = cluster.get("pod web").map_err(|error| error.to_string())?;
        match pod["status"]["containerStatuses"][0]["restartCount"].as_i64() {
            Some(1..) => Ok(()),
            _ => Err(format!("{}{}", pod["status"], describe(&cluster))),
        }
    });
    cluster.kubectl("delete pod --all").unwrap();
}

/// Its first process ends when it is asked to.
const ENDING: &str = "apiVersion: v1
kind: Pod
metadata: {name: ending, labels: {app: ending}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, 'trap \"exit 3\" TERM; while true; do sleep 0.1; done']
";

/// The node's condition Ready: status and message.
fn ready(cluster: &Cluster) -> Result<(String, String), String> {
    let nodes = cluster.get("nodes").map_err(|error| error.to_string())?;
    let all = nodes["items"][0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let condition = all.iter().find(|condition| condition["type"] == "Ready").cloned().unwrap_or_default();
    let text = |name: &str| condition[name].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("message")))
}

fn wait_for_node(cluster: &Cluster, what: &str, status: &str, message: &str) {
    eventually(what, || {
        let seen = ready(cluster)?;
        if seen.0 == status && seen.1.contains(message) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}

fn container(cluster: &Cluster, pod: &str) -> Value {
    cluster.get(&format!("pod {pod}")).unwrap()["status"]["containerStatuses"][0].clone()
}

#[test]
fn containerd_runs_our_pods_and_may_come_and_go() {
    let mut containerd = Containerd::new().unwrap();
    let endpoint = format!("unix://{}", containerd.socket().display());
    let arguments = vec!["--container-runtime-endpoint".to_owned(), endpoint];
    let options = Options { binary: NAVARCH.into(), arguments, ..Options::default() };
    let mut cluster = Cluster::with(options).unwrap();
    assert_eq!(cluster.get("nodes").unwrap()["items"], serde_json::json!([]), "nothing runs pods yet");
    containerd.start(cluster.net()).unwrap();
    wait_for_node(&cluster, "the node is ready", "True", "");
    let node = cluster.get("node node-1").unwrap();
    let version = node["status"]["nodeInfo"]["containerRuntimeVersion"].as_str().unwrap();
    assert!(version.starts_with("containerd://1."), "{version}");

    cluster.apply(streams::PODS).unwrap();
    cluster.apply(ENDING).unwrap();
    for app in ["web", "talk", "shell", "ending"] {
        wait_ready(&cluster, &format!("app={app}"), 1);
    }
    let before = container(&cluster, "web");
    assert!(before["containerID"].as_str().unwrap().starts_with("containerd://"), "{before}");
    // containerd's server knows no v5 of the protocol: kubectl falls back to SPDY
    streams::everything(&cluster, &[&[]]);
    cluster.kubectl_args(&["exec", "web", "--", "sh", "-c", "echo said >/proc/1/fd/1"]).unwrap();
    assert_eq!(cluster.kubectl("logs web").unwrap(), "said\n");

    containerd.kill().unwrap();
    wait_for_node(&cluster, "the node tells that its runtime is gone", "False", "container runtime is down");
    eventually("an event tells it too", || {
        let events = cluster.kubectl("get events --field-selector involvedObject.kind=Node").unwrap();
        let told = "Node node-1 status is now: NodeNotReady";
        if events.contains(told) { Ok(()) } else { Err(events) }
    });
    containerd.start(cluster.net()).unwrap();
    wait_for_node(&cluster, "the node is ready again", "True", "");
    wait_ready(&cluster, "app=web", 1);
    let after = container(&cluster, "web");
    let kept = |status: &Value| (status["containerID"].clone(), status["restartCount"].clone());
    assert_eq!(kept(&after), kept(&before));

    // so is our side: it finds what runs, and sees the end of it
    cluster.kill_server().unwrap();
    cluster.start_server().unwrap();
    wait_ready(&cluster, "app=web", 1);
    assert_eq!(kept(&container(&cluster, "web")), kept(&before));
    cluster.kubectl("exec ending -- kill 1").unwrap();
    eventually("the container was started again", || {
        match container(&cluster, "ending")["restartCount"].as_i64() {
            Some(1..) => Ok(()),
            _ => Err(format!("{}{}", describe(&cluster), containerd.log())),
        }
    });
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
    eventually("containerd has nothing left of the pods", || {
        let shims = containerd.shims();
        if shims.is_empty() { Ok(()) } else { Err(format!("{shims:?}\n{}", containerd.log())) }
    });
}
