//! Every command a person starts with, by the oldest and the newest kubectl that are promised.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use testkit::{Cluster, eventually, tools};

use crate::{cluster, name, wait_ready};

/// A deployment whose pods serve HTTP from busybox and write a line a second.
fn deployment(replicas: u32, text: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {{app: web, env: test}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web, env: test}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: busybox:test
        command: [sh, -c, 'echo {text}; exec httpd -f -p 8080']
        readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
"
    )
}

#[test]
fn the_oldest_kubectl_works() {
    commands(tools::OLD);
}

#[test]
fn a_kubectl_between_works() {
    commands(tools::MIDDLE);
}

#[test]
fn the_newest_kubectl_works() {
    commands(tools::NEW);
}

fn commands(minor: u32) {
    let mut cluster = cluster();
    cluster.use_client(minor);
    let cluster = cluster;
    reading(&cluster);
    applying(&cluster);
    changing(&cluster);
    rollouts(&cluster);
    streams(&cluster);
    let out = cluster.kubectl("delete deployment web").unwrap();
    assert!(out.contains("deployment.apps \"web\" deleted"), "{out}");
    eventually("the pods go with their deployment", || match cluster.kubectl("get pods -o name").unwrap() {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
}

fn reading(cluster: &Cluster) {
    let nodes = cluster.kubectl("get nodes").unwrap();
    assert!(nodes.contains("node-1") && nodes.contains("Ready"), "{nodes}");
    let explained = cluster.kubectl("explain deployment.spec").unwrap();
    assert!(explained.contains("replicas") && explained.contains("<integer>"), "{explained}");
    let described = cluster.kubectl("describe node node-1").unwrap();
    assert!(described.contains("Capacity:") && described.contains("cpu:"), "{described}");
    let parts = cluster.kubectl("get componentstatuses").unwrap();
    assert_eq!(parts.matches("Healthy").count(), 3, "{parts}");
}

fn applying(cluster: &Cluster) {
    let mut watch = cluster.command("kubectl").unwrap();
    let mut watch = watch
        .args(["get", "--watch", "deployments"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl get --watch");
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines();

    assert!(cluster.apply(&deployment(2, "one")).unwrap().contains("created"));
    let all: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.contains("2/2")).collect();
    assert!(all.iter().any(|l| l.contains("READY")), "{all:?}");
    // it follows for ever
    watch.kill().unwrap();
    watch.wait().unwrap();

    let pods = wait_ready(cluster, "app=web", 2);
    let wide = cluster.kubectl("get pods -o wide").unwrap();
    assert!(wide.contains(pods[0]["status"]["podIP"].as_str().unwrap()) && wide.contains("node-1"), "{wide}");
    assert!(cluster.apply(&deployment(2, "one")).unwrap().contains("unchanged"));
    assert!(cluster.apply(&deployment(3, "one")).unwrap().contains("configured"));
    wait_ready(cluster, "app=web", 3);

    let set = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: set}\ndata: {a: one}\n";
    let out = cluster.kubectl_with("apply --server-side -f -", set).unwrap();
    assert!(out.contains("serverside-applied"), "{out}");
    let other =
        cluster.kubectl_with("apply --server-side --field-manager other -f -", &set.replace("one", "two"));
    assert!(other.unwrap_err().to_string().contains("conflict"), "another manager's change is a conflict");
    cluster
        .kubectl_with(
            "apply --server-side --field-manager other --force-conflicts -f -",
            &set.replace("one", "two"),
        )
        .unwrap();
    assert_eq!(cluster.get("configmap set").unwrap()["data"]["a"], "two");

    // what `get -o yaml` prints of several objects goes back in
    let list = cluster.kubectl("get configmaps set -o yaml --show-managed-fields=false").unwrap();
    let list = format!("apiVersion: v1\nkind: List\nitems:\n- {}", list.trim_end().replace('\n', "\n  "));
    let out = cluster.kubectl_with("apply -f - --validate=strict", &list).unwrap();
    assert!(out.contains("configmap/set configured"), "{out}");
}

fn changing(cluster: &Cluster) {
    cluster.kubectl("label deployment web tier=front").unwrap();
    cluster.kubectl("annotate deployment web note=here").unwrap();
    let web = cluster.get("deployment web").unwrap();
    assert_eq!(web["metadata"]["labels"]["tier"], "front");
    assert_eq!(web["metadata"]["annotations"]["note"], "here");
    let shown = cluster.kubectl_args(&["get", "pods", "--show-labels", "-l", "env in (test,dev)"]).unwrap();
    assert!(shown.contains("env=test") && shown.lines().count() == 4, "{shown}");
    let yaml = cluster.kubectl("get deployment web -o yaml").unwrap();
    assert!(yaml.contains("kind: Deployment") && yaml.contains("tier: front"), "{yaml}");

    let folder = tempfile::tempdir().unwrap();
    let editor = folder.path().join("editor");
    testkit::executable(&editor, b"#!/bin/sh\nsed -i 's/note: here/note: edited/' \"$1\"\n").unwrap();
    let mut edit = cluster.command("kubectl").unwrap();
    testkit::run(edit.args(["edit", "deployment", "web"]).env("EDITOR", &editor)).unwrap();
    assert_eq!(cluster.get("deployment web").unwrap()["metadata"]["annotations"]["note"], "edited");

    cluster.kubectl("scale deployment web --replicas 1").unwrap();
    wait_ready(cluster, "app=web", 1);
    let described = cluster.kubectl("describe deployment web").unwrap();
    assert!(described.contains("ScalingReplicaSet"), "{described}");
    let described = cluster.kubectl("describe pods -l app=web").unwrap();
    assert!(described.contains("Started") && described.contains("Scheduled"), "{described}");
}

fn rollouts(cluster: &Cluster) {
    cluster.apply(&deployment(1, "two")).unwrap();
    let status = cluster.kubectl("rollout status deployment web --timeout 120s").unwrap();
    assert!(status.contains("successfully rolled out"), "{status}");
    let history = cluster.kubectl("rollout history deployment web").unwrap();
    assert!(
        history.lines().any(|l| l.starts_with('1')) && history.lines().any(|l| l.starts_with('2')),
        "{history}"
    );
    cluster.kubectl("rollout undo deployment web").unwrap();
    cluster.kubectl("rollout status deployment web --timeout 120s").unwrap();
    let web = cluster.get("deployment web").unwrap();
    assert!(
        web["spec"]["template"]["spec"]["containers"][0]["command"][2].as_str().unwrap().contains("echo one")
    );
    cluster.kubectl("set image deployment web main=docker.io/library/busybox:test").unwrap();
    cluster.kubectl("rollout status deployment web --timeout 120s").unwrap();
    let web = cluster.get("deployment web").unwrap();
    assert_eq!(web["spec"]["template"]["spec"]["containers"][0]["image"], "docker.io/library/busybox:test");
}

fn streams(cluster: &Cluster) {
    let pods = wait_ready(cluster, "app=web", 1);
    let pod = name(&pods[0]).to_owned();
    assert_eq!(cluster.kubectl(&format!("logs {pod}")).unwrap(), "one\n");

    let counter = "apiVersion: v1\nkind: Pod\nmetadata: {name: counter}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
        containers:\n  - {name: main, image: 'busybox:test', command: [sh, -c, 'for i in 1 2 3; do echo $i; sleep 0.3; done']}\n  \
        restartPolicy: Never\n";
    cluster.apply(counter).unwrap();
    cluster
        .kubectl("wait pod counter --for jsonpath={.status.containerStatuses[0].started} --timeout 120s")
        .ok();
    eventually("the container has started", || cluster.kubectl("logs counter"));
    assert_eq!(cluster.kubectl("logs -f counter").unwrap(), "1\n2\n3\n");
    cluster.kubectl("wait pod counter --for jsonpath={.status.phase}=Succeeded --timeout 120s").unwrap();
    cluster.kubectl("delete pod counter").unwrap();

    assert_eq!(cluster.kubectl_args(&["exec", &pod, "--", "echo", "hello"]).unwrap(), "hello\n");
    let failed = cluster
        .kubectl_args(&["exec", &pod, "--", "sh", "-c", "echo oops >&2; exit 7"])
        .unwrap_err()
        .to_string();
    assert!(failed.contains("oops") && failed.contains("exit code 7"), "{failed}");
    assert_eq!(cluster.kubectl_with(&format!("exec -i {pod} -- cat"), "through\n").unwrap(), "through\n");
    terminal(cluster, &pod);
}

/// `exec -it` under a terminal of our own, by `script`.
fn terminal(cluster: &Cluster, pod: &str) {
    let kubectl = tools::folder(tools::NEW).unwrap().join("kubectl");
    let line = format!("{} exec -it {pod} -- sh", kubectl.display());
    let mut script = cluster.command("script").unwrap();
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script (bsdutils)");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"tty; echo $((6*7))\nexit 3\n").unwrap();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("/dev/pts/") && text.contains("42"), "{text}");
    assert_eq!(output.status.code(), Some(3), "the shell's exit code comes through: {text}");
}
