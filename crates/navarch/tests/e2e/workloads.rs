//! Real software behind a Service: reached by name and address, replaced, rolled over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use testkit::{Cluster, eventually};

use crate::{cluster, name, parting, ready_pods, wait_ready};

const NGINX: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx}
spec:
  replicas: 3
  selector: {matchLabels: {app: nginx}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata: {labels: {app: nginx}}
    spec:
      containers:
      - name: nginx
        image: nginx:test
        ports: [{containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1, timeoutSeconds: 10}
        # time for the endpoint to leave the Service before nginx stops listening
        lifecycle: {preStop: {sleep: {seconds: SECONDS}}}
---
apiVersion: v1
kind: Service
metadata: {name: nginx}
spec:
  selector: {app: nginx}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'busybox:test', command: [sleep, infinity]}]
";

fn nginx() -> Cluster {
    let cluster = cluster();
    cluster.import(&testkit::image::nginx().expect("the nginx image")).expect("import");
    cluster.apply(&NGINX.replace("SECONDS", &parting(1))).unwrap();
    wait_ready(&cluster, "app=nginx", 3);
    cluster.kubectl("wait pod client --for condition=Ready --timeout 120s").unwrap();
    cluster
}

/// What `client` gets from `url`.
fn fetch(cluster: &Cluster, url: &str) -> anyhow::Result<String> {
    cluster.kubectl_args(&["exec", "client", "--", "wget", "-q", "-O", "-", url])
}

#[test]
fn nginx_is_reached_by_name_and_address_and_replaced() {
    let cluster = nginx();
    let by_name =
        eventually("nginx answers by name", || fetch(&cluster, "http://nginx.default.svc.cluster.local"));
    assert!(by_name.contains("Welcome to nginx!"), "{by_name}");
    assert!(
        fetch(&cluster, "http://nginx").unwrap().contains("Welcome"),
        "the search path finds the short name"
    );
    let ip = cluster.get("service nginx").unwrap()["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert!(fetch(&cluster, &format!("http://{ip}")).unwrap().contains("Welcome"));
    let from_node = cluster.http_get(format!("{ip}:80").parse().unwrap(), "/").unwrap();
    assert!(from_node.contains("Welcome"), "{from_node}");

    let before = ready_pods(&cluster, "app=nginx");
    let gone = name(&before[0]).to_owned();
    cluster.kubectl(&format!("delete pod {gone} --wait=false")).unwrap();
    eventually("the pod is replaced", || {
        let now = ready_pods(&cluster, "app=nginx");
        let names: Vec<String> = now.iter().map(|p| name(p).to_owned()).collect();
        if names.len() == 3 && !names.contains(&gone) { Ok(()) } else { Err(names) }
    });
    assert!(fetch(&cluster, "http://nginx").unwrap().contains("Welcome"));
}

#[test]
fn a_rolling_update_never_drops_below_its_bound() {
    let cluster = nginx();
    let ip = cluster.get("service nginx").unwrap()["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let address = format!("{ip}:80").parse().unwrap();
    eventually("the Service answers", || cluster.http_get(address, "/"));
    let done = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let least = scope.spawn(|| {
            let mut least = usize::MAX;
            while !done.load(Ordering::Relaxed) {
                least = least.min(ready_pods(&cluster, "app=nginx").len());
            }
            least
        });
        let failures = scope.spawn(|| {
            let mut failures = Vec::new();
            while !done.load(Ordering::Relaxed) {
                failures.extend(cluster.http_get(address, "/").err().map(|e| e.to_string()));
            }
            failures
        });
        let patched = cluster
            .kubectl_args(&[
                "patch",
                "deployment",
                "nginx",
                "-p",
                r#"{"spec":{"template":{"metadata":{"labels":{"v":"2"}}}}}"#,
            ])
            .and_then(|_| cluster.kubectl("rollout status deployment nginx --timeout 120s"));
        done.store(true, Ordering::Relaxed);
        patched.unwrap();
        assert!(least.join().unwrap() >= 3, "maxUnavailable 0 keeps all three");
        let failures = failures.join().unwrap();
        assert!(failures.is_empty(), "requests failed meanwhile: {failures:?}");
    });
    assert_eq!(ready_pods(&cluster, "app=nginx,v=2").len(), 3);
}
