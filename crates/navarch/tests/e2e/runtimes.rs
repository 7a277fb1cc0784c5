//! Pods that another container runtime runs: an OCI runtime as the handler of a RuntimeClass.

use testkit::eventually;

use crate::{cluster_with, describe, wait_ready};

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
    command: [sh, -c, 'echo up; httpd -f -h /www -p 80']
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
    let _ = cluster.kubectl("exec web -- killall httpd");
    eventually("the container was started again", || {
        let pod = cluster.get("pod web").map_err(|error| error.to_string())?;
        match pod["status"]["containerStatuses"][0]["restartCount"].as_i64() {
            Some(1..) => Ok(()),
            _ => Err(format!("{}{}", pod["status"], describe(&cluster))),
        }
    });
    cluster.kubectl("delete pod --all").unwrap();
}
