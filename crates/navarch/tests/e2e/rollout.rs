//! No request fails while what serves it is exchanged: wrk through a cluster address.

use std::io::Read;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use testkit::{Cluster, debian, eventually};

use crate::{cluster, name, parting, wait_ready};

/// The pod stays a moment (`SECONDS`) when it is told to end, as all who must not fail do: whoever still has the old endpoints
/// finds it.
const WEB: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: main
        image: nginx:test
        ports: [{name: http, containerPort: 80}]
        readinessProbe: {httpGet: {port: http}, periodSeconds: 1, timeoutSeconds: 10}
        lifecycle: {preStop: {sleep: {seconds: SECONDS}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
";

/// A new connection for every request, each of the connections some twenty times a second.
const SCRIPT: &str = "wrk.headers['Connection'] = 'close'\nfunction delay() return 50 end\n";

/// wrk at work.
struct Load {
    wrk: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Load {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.wrk.kill();
        let _ = self.wrk.wait();
    }
}

impl Load {
    fn start(cluster: &Cluster, address: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script.lua");
        std::fs::write(&script, SCRIPT).unwrap();
        let packages = ["wrk", "libluajit-5.1-2", "libluajit-5.1-common", "libssl3"];
        let mut wrk = debian::command("wrk", &packages).unwrap();
        wrk.args([
            "--threads",
            "1",
            "--connections",
            "16",
            "--duration",
            "10m",
            "--timeout",
            "10s",
            "--script",
        ]);
        wrk.arg(&script).arg(format!("http://{address}/")).stdout(Stdio::piped());
        cluster.net().enter(&mut wrk);
        Self { wrk: wrk.spawn().unwrap(), _folder: folder }
    }

    /// Ends it. How many requests there were; none may have failed.
    #[track_caller]
    fn end(mut self) -> u64 {
        kill_process(Pid::from_child(&self.wrk), Signal::INT).unwrap();
        let mut text = String::new();
        self.wrk.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
        let line = text.lines().find(|l| l.contains("requests in")).expect("the number of requests");
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

#[test]
fn no_request_fails_during_a_rolling_update_or_while_the_agent_is_away() {
    let mut cluster = cluster();
    cluster.import(&testkit::image::nginx().unwrap()).unwrap();
    cluster.apply(&WEB.replace("SECONDS", &parting(3))).unwrap();
    let before = wait_ready(&cluster, "app=web", 3);
    let address = cluster.get("service web").unwrap()["spec"]["clusterIP"].as_str().unwrap().to_owned();
    eventually("the service answers", || {
        cluster.http_get(format!("{address}:80").parse().unwrap(), "/").map_err(|e| e.to_string())
    });

    let load = Load::start(&cluster, &address);
    cluster.kubectl("rollout restart deployment web").unwrap();
    cluster.kubectl("rollout status deployment web --timeout=120s").unwrap();
    let former: Vec<&str> = before.iter().map(name).collect();
    eventually("the former pods are gone", || {
        let pods = cluster.get("pods -l app=web").map_err(|e| e.to_string())?;
        let left = pods["items"].as_array().is_some_and(|all| all.iter().any(|p| former.contains(&name(p))));
        if left { Err(crate::describe(&cluster)) } else { Ok(()) }
    });
    let requests = load.end();
    assert!(requests > 100, "{requests}");

    let load = Load::start(&cluster, &address);
    cluster.kill_server().unwrap();
    cluster.start_server().unwrap();
    wait_ready(&cluster, "app=web", 3);
    // and what changes after it reaches the table that the former process left
    cluster.kubectl("scale deployment web --replicas=2").unwrap();
    eventually("one pod is gone", || {
        let pods = cluster.get("pods -l app=web").map_err(|e| e.to_string())?;
        let count = pods["items"].as_array().map_or(0, Vec::len);
        if count == 2 { Ok(()) } else { Err(format!("{count} pods")) }
    });
    let requests = load.end();
    assert!(requests > 100, "{requests}");
}
