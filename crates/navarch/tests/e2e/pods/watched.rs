//! Pods while they run: probes, logs, and resources that change.

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use testkit::{Cluster, HOST_ADDRESS, eventually};

use super::{WAITS, apply, condition, event, pod, said, shell, status, until};
use crate::devices::unary;
use crate::{cluster, is_ready};

/// The two messages of `grpc.health.v1`.
#[derive(Clone, PartialEq, prost::Message)]
struct Check {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Health {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

/// A gRPC server on the node, where a pod of the node's network is probed: its port, and what it says of the service `deep`.
fn health_server(cluster: &Cluster) -> (tokio::runtime::Runtime, u16, Arc<AtomicI32>) {
    let listener = cluster.net().run(|| TcpListener::bind((HOST_ADDRESS, 0)).unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let tasks = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let health = Arc::new(AtomicI32::new(NOT_SERVING));
    let told = health.clone();
    tasks.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            let told = told.clone();
            let service = hyper::service::service_fn(move |request| {
                let told = told.clone();
                let answer = move |asked: Check| {
                    let known = asked.service == "deep";
                    Health { status: if known { told.load(Ordering::SeqCst) } else { 0 } }
                };
                async move { Ok::<_, Infallible>(unary(request, answer).await) }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(async move {
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (tasks, port, health)
}

/// Probed each second, and given up after the first failure.
fn each_second(mut probe: Value) -> Value {
    probe["periodSeconds"] = json!(1);
    probe["failureThreshold"] = json!(1);
    // on a slow machine an answer takes its time
    probe["timeoutSeconds"] = json!(20);
    probe
}

#[test]
fn probes_of_all_four_kinds_decide_who_is_ready_and_who_starts_anew() {
    let cluster = cluster();
    let (_serving, port, health) = health_server(&cluster);
    let serves = |at: &str| {
        format!(
            "until test -e /tmp/serve; do sleep 0.1; done; mkdir -p /w; cp /tmp/serve /w/page; exec httpd -f -vv -p {at} -h /w"
        )
    };
    let http = json!({"httpGet": {"path": "/page", "port": "web", "httpHeaders": [{"name": "X-Mine", "value": "1"}]}});
    let deep = |port: u16| json!({"grpc": {"port": port, "service": "deep"}});
    let alive = json!({"exec": {"command": ["test", "!", "-e", "/tmp/dead"]}});
    let ready = |kind: &str, script: &str, probe: Value| json!({"name": kind, "command": shell(script), "readinessProbe": each_second(probe)});
    let mut web = ready("http", &serves("8080"), http);
    web["ports"] = json!([{"name": "web", "containerPort": 8080}]);
    let four = json!([
        ready("exec", WAITS, json!({"exec": {"command": ["test", "-e", "/tmp/serve"]}})),
        web,
        ready("tcp", &serves("9000"), json!({"tcpSocket": {"port": 9000}})),
        {"name": "plain", "command": shell(WAITS)}
    ]);
    let mut slow = json!({"name": "main", "command": shell(WAITS), "livenessProbe": each_second(alive)});
    slow["startupProbe"] = json!({"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 1000, "timeoutSeconds": 20});
    slow["lifecycle"] = json!({"postStart": {"exec": {"command": shell("test -e /d/once || { touch /d/once; touch /tmp/dead; }")}}});
    slow["volumeMounts"] = json!([{"name": "d", "mountPath": "/d"}]);
    apply(
        &cluster,
        &[
            pod(
                "four",
                json!({"readinessGates": [{"conditionType": "example.com/gate"}], "containers": four}),
            ),
            pod("remote", json!({"hostNetwork": true, "containers": [ready("main", WAITS, deep(port))]})),
            pod("slow", json!({"volumes": [{"name": "d", "emptyDir": {}}], "containers": [slow]})),
        ],
    );
    let of = |pod: &Value| ["exec", "http", "tcp", "plain"].map(|name| status(pod, name)["ready"] == true);
    until(&cluster, "four", "runs", |pod| of(pod) == [false, false, false, true]);
    let touch = |pod: &str, container: &str, file: &str| {
        cluster.kubectl_args(&["exec", pod, "-c", container, "--", "touch", file]).unwrap();
    };
    for (container, expected) in
        [("exec", [true, false, false, true]), ("http", [true, true, false, true]), ("tcp", [true; 4])]
    {
        event(&cluster, "four", "Unhealthy", "Readiness probe failed");
        touch("four", container, "/tmp/serve");
        let found = until(&cluster, "four", &format!("is ready by {container}"), |pod| of(pod) == expected);
        assert_eq!(condition(&found, "Ready"), "False", "the gate is closed");
    }
    let found =
        until(&cluster, "four", "waits for its gate only", |pod| condition(pod, "ContainersReady") == "True");
    assert_eq!(condition(&found, "Ready"), "False");
    let open = r#"{"status":{"conditions":[{"type":"example.com/gate","status":"True"}]}}"#;
    cluster.kubectl_args(&["patch", "pod", "four", "--subresource", "status", "-p", open]).unwrap();
    until(&cluster, "four", "is ready", is_ready);
    cluster.kubectl("exec four -c exec -- rm /tmp/serve").unwrap();
    until(&cluster, "four", "is not ready any more", |pod| condition(pod, "Ready") == "False");

    let found = until(&cluster, "remote", "runs", |pod| !status(pod, "main")["state"]["running"].is_null());
    assert_eq!(status(&found, "main")["ready"], false);
    event(&cluster, "remote", "Unhealthy", "service unhealthy (responded with \"NOT_SERVING\")");
    health.store(SERVING, Ordering::SeqCst);
    until(&cluster, "remote", "is ready", is_ready);

    // what does not live is let alone while it starts
    let found = until(&cluster, "slow", "starts", |pod| !status(pod, "main")["state"]["running"].is_null());
    assert_eq!(
        (&status(&found, "main")["started"], &status(&found, "main")["restartCount"]),
        (&json!(false), &json!(0))
    );
    event(&cluster, "slow", "Unhealthy", "Startup probe failed");
    touch("slow", "main", "/tmp/up");
    let found = until(&cluster, "slow", "starts anew", |pod| {
        status(pod, "main")["restartCount"] == 1 && !status(pod, "main")["state"]["running"].is_null()
    });
    event(&cluster, "slow", "Killing", "Container main failed liveness probe, will be restarted");
    assert_eq!(
        status(&found, "main")["lastState"]["terminated"]["reason"],
        "Completed",
        "it was asked to end"
    );
    touch("slow", "main", "/tmp/up");
    let found = until(&cluster, "slow", "is ready", is_ready);
    assert_eq!(status(&found, "main")["restartCount"], 1);
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
}

#[test]
fn logs_are_cut_as_asked_and_told_apart_by_container_and_run() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let talks = "n=$(cat /d/n 2>/dev/null || echo 0); echo $((n+1)) > /d/n; seq 5 | sed \"s/^/run $n line /\"; until test -e /d/end-$n; do sleep 0.1; done; exit 1";
    let mounts = json!([{"name": "d", "mountPath": "/d"}]);
    apply(
        &cluster,
        &[pod(
            "talks",
            json!({"volumes": [{"name": "d", "hostPath": {"path": folder.path()}}],
        "initContainers": [{"name": "init", "command": ["echo", "from the first"]}],
        "containers": [{"name": "main", "command": shell(talks), "volumeMounts": mounts}, {"name": "other", "command": shell(&format!("echo from another; {WAITS}"))}]}),
        )],
    );
    until(&cluster, "talks", "is ready", is_ready);
    let logs = |more: &str| cluster.kubectl(&format!("logs talks {more}"));
    let whole = |run: u32| (1..=5).map(|n| format!("run {run} line {n}\n")).collect::<String>();
    eventually("all lines are there", || {
        let text = logs("-c main").map_err(|error| error.to_string())?;
        if text == whole(0) { Ok(()) } else { Err(text) }
    });
    assert_eq!(logs("-c main --tail 2").unwrap(), "run 0 line 4\nrun 0 line 5\n");
    assert_eq!(logs("-c main --limit-bytes 12").unwrap(), "run 0 line 1");
    let stamped = logs("-c main --timestamps").unwrap();
    let times: Vec<&str> = stamped.lines().map(|line| line.split_once(' ').unwrap().0).collect();
    assert!(times.len() == 5 && times.is_sorted(), "{stamped}");
    let third = times[2];
    let since = logs(&format!("-c main --since-time {third}")).unwrap();
    assert!(since.ends_with("run 0 line 5\n") && whole(0).ends_with(&since), "{since}");
    assert_eq!(logs("-c main --since-time 2999-01-01T00:00:00Z").unwrap(), "");
    let all = logs("--all-containers --prefix").unwrap();
    for line in
        ["[pod/talks/init] from the first", "[pod/talks/main] run 0 line 1", "[pod/talks/other] from another"]
    {
        assert!(all.lines().any(|found| found == line), "{line}\n{all}");
    }
    let none = logs("-c main --previous").unwrap_err().to_string();
    assert!(none.contains("previous terminated container \"main\" in pod \"talks\" not found"), "{none}");
    std::fs::write(folder.path().join("end-0"), "").unwrap();
    until(&cluster, "talks", "runs again", |pod| status(pod, "main")["restartCount"] == 1 && is_ready(pod));
    assert_eq!(logs("-c main --previous").unwrap(), whole(0));
    // a follower is told all until the end, which comes once it follows
    let mut follow = cluster.command("kubectl").unwrap();
    follow.args(["logs", "-f", "talks", "-c", "main"]);
    let mut follower = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(follower.stdout.take().unwrap());
    let mut followed = String::new();
    out.read_line(&mut followed).unwrap();
    std::fs::write(folder.path().join("end-1"), "").unwrap();
    out.read_to_string(&mut followed).unwrap();
    assert!(follower.wait().unwrap().success());
    assert_eq!(followed, whole(1));
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
}

#[test]
fn resources_change_under_a_container_that_runs_on_or_starts_anew_as_it_asks() {
    let cluster = cluster();
    let amounts = |cpu: &str, memory: &str| json!({"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"cpu": cpu, "memory": memory}});
    let main = |more: Value| {
        let mut main = json!({"name": "main", "command": shell(WAITS), "resources": amounts("100m", "32Mi")});
        main.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([main])
    };
    let anew = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    apply(
        &cluster,
        &[
            pod("still", json!({"containers": main(json!({}))})),
            pod("anew", json!({"containers": main(json!({"resizePolicy": anew}))})),
        ],
    );
    let begun = ["still", "anew"].map(|name| until(&cluster, name, "is ready", is_ready));
    let limits = "cd /sys/fs/cgroup; if test -e memory.max; then cat memory.max; cut -d' ' -f1 cpu.max; \
                  else cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us; fi";
    for name in ["still", "anew"] {
        assert_eq!(said(&cluster, name, limits), format!("{}\n10000\n", 32 << 20));
        let patch = json!({"spec": {"containers": [{"name": "main", "resources": amounts("200m", "48Mi")}]}})
            .to_string();
        cluster.kubectl_args(&["patch", "pod", name, "--subresource", "resize", "-p", &patch]).unwrap();
        let found = until(&cluster, name, "is as it is to be", |pod| {
            status(pod, "main")["resources"]["limits"] == json!({"cpu": "200m", "memory": "48Mi"})
                && is_ready(pod)
                && condition(pod, "PodResizeInProgress").is_empty()
        });
        let restarts = u8::from(name == "anew");
        assert_eq!(status(&found, "main")["restartCount"], restarts, "{found}");
        assert_eq!(said(&cluster, name, limits), format!("{}\n20000\n", 48 << 20));
    }
    let still = cluster.get("pod still").unwrap();
    assert_eq!(status(&still, "main")["containerID"], status(&begun[0], "main")["containerID"]);
    let much = r#"{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"5k"},"limits":{"cpu":"5k"}}}]}}"#;
    cluster.kubectl_args(&["patch", "pod", "still", "--subresource", "resize", "-p", much]).unwrap();
    until(&cluster, "still", "cannot be so large", |pod| condition(pod, "PodResizePending") == "True");
    assert_eq!(said(&cluster, "still", limits), format!("{}\n20000\n", 48 << 20));
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
}
