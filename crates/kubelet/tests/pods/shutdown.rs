//! The machine goes down: who ends when, and who comes no more. logind is the test's own, on a real bus.

use k8s_openapi::api::core::v1::Node;
use kubelet::shutdown::logind::Place;

use super::csi_driver::{Call, Driver, NAME};
use super::logind::{Bus, Logind};
use super::node_decides::{reason, restart};
use super::*;

const PERIODS: &str =
    "evictionHard: {nodefs.available: 1Mi}\nshutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s\n";

/// A cluster whose node asks logind to wait; logind would wait for `delay`.
async fn start(delay: Duration) -> (Cluster, Bus, Logind) {
    let bus = Bus::start();
    let logind = Logind::start(&bus, delay).await;
    let mut cluster = Cluster::start().await;
    cluster.logind = Place { bus: Some(bus.address.clone()), additions: bus.additions() };
    restart(&mut cluster, PERIODS).await;
    logind.until_locked(1).await;
    (cluster, bus, logind)
}

/// The same, with a pod `web` and a critical one, `system`, that run; the containers in `stubborn` end when the test says so.
async fn start_with_pods(stubborn: &[&str]) -> (Cluster, Bus, Logind) {
    let (cluster, bus, logind) = start(Duration::from_secs(30)).await;
    cluster.fake.books.lock().stubborn.extend(stubborn.iter().map(|name| (*name).to_owned()));
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.create::<Pod>("d", critical("system")).await;
    cluster.until_pod("runs", |p| running(p, "web")).await;
    cluster.until_named("system", "runs", |p| running(p, "system")).await;
    (cluster, bus, logind)
}

fn named(name: &str, spec: Value) -> Value {
    let mut pod = pod(spec);
    pod["metadata"]["name"] = json!(name);
    pod
}

/// With a container of that name.
fn critical(name: &str) -> Value {
    let container = json!({"name": name, "image": "web:1"});
    named(name, json!({"priorityClassName": "system-node-critical", "containers": [container]}))
}

impl Cluster {
    async fn until_named(&self, name: &str, what: &str, done: impl Fn(&Pod) -> bool) -> Arc<Pod> {
        let is = |p: &&Arc<Pod>| p.metadata.name.as_deref() == Some(name) && done(p);
        self.until::<Pod, _>(what, |list| list.iter().find(is).cloned()).await
    }

    async fn until_node(&self, ready: &str, message: &str) {
        let is = |list: &[Arc<Node>]| {
            let conditions = list.first()?.status.as_ref()?.conditions.as_ref()?;
            let found = conditions.iter().find(|c| c.type_ == "Ready" && c.status == ready)?;
            (found.message.as_deref() == Some(message)).then(|| found.reason.clone().unwrap_or_default())
        };
        let reason = self.until::<Node, _>(message, is).await;
        assert_eq!(reason, if ready == "True" { "KubeletReady" } else { "KubeletNotReady" });
    }
}

const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn critical_pods_end_after_the_others_and_nobody_comes_meanwhile() {
    let (cluster, _bus, logind) = start_with_pods(&["web", "system"]).await;
    let asked = logind.until_locked(1).await;
    assert_eq!(asked, ["shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay"]);

    logind.goes_down(true).await;
    cluster.fake.until_stopping("web").await;
    cluster.until_node("False", "node is shutting down").await;
    cluster.until_event("NodeShutdown", "Shutdown manager detected shutdown event").await;
    cluster.create::<Pod>("d", critical("late")).await;
    let late = cluster.until_named("late", "refused", |p| phase(p) == "Failed").await;
    let refused = "Pod was rejected: Pod was rejected as the node is shutting down.";
    assert_eq!(reason(&late), ("NodeShutdown", refused));
    let stops = cluster.fake.books.lock().stops.clone();
    assert_eq!(stops, [("web".to_owned(), 20)], "less than its own 30 s, and the critical one runs on");

    cluster.fake.exit("web", 0);
    cluster.fake.until_stopping("system").await;
    let p = cluster.until_pod("ended", |p| phase(p) == "Failed").await;
    assert_eq!(reason(&p), ("Terminated", MESSAGE));
    let conditions = p.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let told = conditions.iter().find(|c| c.type_ == "DisruptionTarget").expect("it is told");
    assert_eq!((told.status.as_str(), told.reason.as_deref()), ("True", Some("TerminationByKubelet")));
    assert_eq!(told.message.as_deref(), Some(MESSAGE));
    assert!(logind.holds(1), "a pod has not ended yet");

    cluster.fake.exit("system", 0);
    logind.until_released(1).await;
    let system: Pod = cluster.client.get("d", "system").await.expect("it is there");
    assert_eq!((phase(&system), reason(&system)), ("Failed", ("Terminated", MESSAGE)), "told before the end");
    assert_eq!(cluster.fake.books.lock().stops.last(), Some(&("system".to_owned(), 10)));
    let state = std::fs::read(cluster.api.folder.path().join("kubelet/graceful_node_shutdown_state"));
    let state: Value = serde_json::from_slice(&state.expect("a state file")).expect("JSON");
    let (start, end) = (state["startTime"].as_str().expect("start"), state["endTime"].as_str().expect("end"));
    assert!("2026" < start && start < end, "{state}");
    let metrics = cluster.ask("/metrics").await;
    for name in ["start", "end"] {
        let line = format!("kubelet_graceful_shutdown_{name}_time_seconds 1");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_that_is_cancelled_makes_the_node_ready_and_spares_who_has_not_ended() {
    let (cluster, _bus, logind) = start_with_pods(&["web"]).await;
    logind.goes_down(true).await;
    cluster.fake.until_stopping("web").await;
    cluster.until_node("False", "node is shutting down").await;
    logind.goes_down(false).await;
    logind.until_locked(2).await;
    cluster.until_node("True", "kubelet is posting ready status").await;
    cluster.until_event("NodeShutdown", "Shutdown manager detected shutdown cancellation").await;
    cluster.fake.exit("web", 0);
    cluster.until_pod("ended", |p| reason(p).0 == "Terminated").await;
    cluster.create::<Pod>("d", critical("again")).await;
    cluster.until_named("again", "runs", |p| running(p, "again")).await;
    assert_eq!(cluster.fake.books.lock().stops.len(), 1, "the critical one was spared");
    assert!(logind.holds(2));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_given_back_before_the_next_group_ends() {
    let (cluster, _bus, logind) = start(Duration::from_secs(30)).await;
    let driver = Driver::start(&cluster.api.folder.path().join("kubelet"));
    cluster.fake.books.lock().stubborn.insert("system".to_owned());
    let mut container = web();
    container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let volume = json!({"name": "v", "csi": {"driver": NAME}});
    let modes = json!({"attachRequired": false, "volumeLifecycleModes": ["Ephemeral"]});
    let info = json!({"metadata": {"name": NAME}, "spec": modes});
    cluster.create::<k8s_openapi::api::storage::v1::CSIDriver>("", info).await;
    cluster.create::<Pod>("d", pod(json!({"containers": [container], "volumes": [volume]}))).await;
    cluster.create::<Pod>("d", critical("system")).await;
    cluster.until_pod("runs", |p| running(p, "web")).await;
    cluster.until_named("system", "runs", |p| running(p, "system")).await;
    logind.goes_down(true).await;
    cluster.fake.until_stopping("system").await;
    let calls = driver.calls();
    assert!(calls.iter().any(|call| matches!(call, Call::Unpublish(_))), "{calls:?}");
    cluster.fake.exit("system", 0);
    logind.until_released(1).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delay_that_is_too_short_is_lengthened_and_a_logind_that_starts_anew_is_asked_again() {
    let (cluster, bus, logind) = start(Duration::from_secs(5)).await;
    let text = std::fs::read_to_string(bus.additions().join("99-kubelet.conf")).expect("an addition");
    assert_eq!(text, "# Kubelet logind override\n[Login]\nInhibitDelayMaxSec=30\n");
    logind.end().await;
    let logind = Logind::start(&bus, Duration::from_secs(30)).await;
    logind.until_locked(1).await;
    logind.goes_down(true).await;
    cluster.until_node("False", "node is shutting down").await;
    logind.until_released(1).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_bus_runs_pods() {
    let mut cluster = Cluster::start().await;
    let nowhere = cluster.api.folder.path().join("bus");
    let additions = cluster.api.folder.path().join("logind.conf.d");
    cluster.logind = Place { bus: Some(format!("unix:path={}", nowhere.display())), additions };
    restart(&mut cluster, PERIODS).await;
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.until_pod("runs", |p| running(p, "web")).await;
    cluster.until_node("True", "kubelet is posting ready status").await;
    cluster.stop().await;
}
