//! Scheduling and the control loops: pods created and bound in the shapes of the reference's figures, a large deployment, a
//! large cluster, and what the process does when nothing changes.
//!
//! API server, store, scheduler and this program share the machine. Nodes are objects, or hollow nodes where controllers run.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use client::Client;
use client::https::Https;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use simulate::Nodes;
use testkit::{Cluster, Options};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::load::{Load, Watch, revision};
use super::{Figure, endpoint, load, machine, megabytes, memory, milliseconds, pause, percentile, table};

const PODS: &str = "/api/v1/namespaces/default/pods";
const NODES: &str = "/api/v1/nodes";
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
/// Connections and requests at a time.
const CONNECTIONS: usize = 4;
const PARALLEL: usize = 64;
/// A step that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(600);
/// Replicas of the deployment, and the hollow nodes they are for.
const REPLICAS: usize = 1_000;
const HOLLOW: usize = 100;
/// The large cluster.
const MANY_NODES: usize = 5_000;
const MANY_PODS: usize = 150_000;
/// Writes whose delivery is timed in it.
const EVENTS: usize = 200;
/// How long the idle process is looked at, and how long it may take to come to rest.
const IDLE: Duration = Duration::from_secs(60);
const REST: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
enum Shape {
    Plain,
    AntiAffinity,
    Spread,
}

/// What kind of pods on how many nodes, and what the reference does with them.
struct Case {
    what: &'static str,
    shape: Shape,
    nodes: usize,
    pods: usize,
    reference: &'static str,
    bound: &'static str,
}

const CASES: [Case; 4] = [
    Case {
        what: "1 000 nodes, 5 000 pods, plain",
        shape: Shape::Plain,
        nodes: 1_000,
        pods: 5_000,
        reference: "237 pods/s",
        bound: "≥ 1 422, aim 4 740",
    },
    Case {
        what: "5 000 nodes, 5 000 pods, plain",
        shape: Shape::Plain,
        nodes: 5_000,
        pods: 5_000,
        reference: "199 pods/s",
        bound: "≥ 1 194, aim 3 980",
    },
    Case {
        what: "1 000 nodes, 2 000 pods, preferred anti-affinity by host",
        shape: Shape::AntiAffinity,
        nodes: 1_000,
        pods: 2_000,
        reference: "148 pods/s",
        bound: "≥ 888, aim 2 960",
    },
    Case {
        what: "1 000 nodes, 2 000 pods, zone spread (DoNotSchedule)",
        shape: Shape::Spread,
        nodes: 1_000,
        pods: 2_000,
        reference: "130 pods/s",
        bound: "≥ 780, aim 2 600",
    },
];

/// Measures `binary`; the page with the table.
pub fn page(binary: &Path) -> anyhow::Result<String> {
    let mut figures = Vec::new();
    shapes(binary, &mut figures)?;
    deployment(binary, &mut figures)?;
    large(binary, &mut figures)?;
    idle(binary, &mut figures)?;
    let head = format!(
        "# Figures of scheduler and control loops\n\nMade by `cargo xtask bench schedule` on {}: {PARALLEL} requests at a time, \
         {CONNECTIONS} connections, TLS, RBAC, every\nwrite durable before its answer; pods ask for 100m CPU and 500Mi. API server, store, scheduler \
         and load generator share the cores. The\nreference (Kubernetes v1.36.0, etcd 3.5) was measured on a machine of the same kind.\n\n",
        machine()
    );
    Ok(table(&head, &figures))
}

fn node(number: usize) -> Value {
    let (name, room) = (format!("bench-{number:05}"), json!({"cpu": "32", "memory": "256Gi", "pods": "110"}));
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("z{}", number % 3)}},
        "status": {"capacity": room, "allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn pod(number: usize, shape: Shape) -> Value {
    let selector = json!({"matchLabels": {"app": "bench"}});
    let mut spec = match shape {
        Shape::Plain => json!({}),
        Shape::AntiAffinity => {
            let term = json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": selector});
            json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "podAffinityTerm": term}]}}})
        }
        Shape::Spread => {
            json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}]})
        }
    };
    let requests = json!({"requests": {"cpu": "100m", "memory": "500Mi"}});
    spec["containers"] = json!([{"name": "c", "image": "pause", "resources": requests}]);
    spec["terminationGracePeriodSeconds"] = json!(0);
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{number:06}"), "labels": {"app": "bench"}}, "spec": spec})
}

/// Waits until a watch has shown so many pods with a node; when each of them came.
async fn bound(mut watch: Watch, count: usize) -> anyhow::Result<Instant> {
    let mut seen = HashSet::with_capacity(count);
    while seen.len() < count {
        let event = watch.next().await?;
        let object = &event["object"];
        if object["spec"]["nodeName"].is_string() {
            seen.insert(object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        }
    }
    Ok(Instant::now())
}

fn shapes(binary: &Path, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let mut most: f64 = 0.0;
    for Case { what, shape, nodes, pods, reference, bound: floor } in CASES {
        let disable = vec!["controllers", "agent", "proxy", "dns"];
        let cluster = Cluster::with(Options { binary: binary.to_owned(), disable, ..Options::default() })?;
        let took = load(&cluster, CONNECTIONS, move |load| async move {
            let account = json!({"metadata": {"name": "default"}}).to_string();
            load.call(Method::POST, "/api/v1/namespaces/default/serviceaccounts", JSON, account).await?;
            let register = |load: Arc<Load>, n: usize| async move {
                load.call(Method::POST, NODES, JSON, node(n).to_string()).await?;
                // a new node is tainted until its lifecycle is looked after, which nobody does here
                let free = json!({"spec": {"taints": null}}).to_string();
                load.call(Method::PATCH, &format!("{NODES}/bench-{n:05}"), MERGE, free).await
            };
            load.phase(nodes, PARALLEL, register).await?;
            sleep(Duration::from_secs(2)).await;
            let watch = Watch::open(&load, PODS, &revision(&load, PODS).await?).await?;
            let seen = tokio::spawn(bound(watch, pods));
            let began = Instant::now();
            let create = move |load: Arc<Load>, n: usize| async move {
                load.call(Method::POST, PODS, JSON, pod(n, shape).to_string()).await
            };
            load.phase(pods, PARALLEL, create).await?;
            let ended = timeout(PATIENCE, seen).await.context("not all pods were bound")???;
            Ok(ended.duration_since(began))
        })?;
        let rate = pods as f64 / took.as_secs_f64();
        figures.push(Figure { what, value: format!("{rate:.0} pods/s"), reference, bound: floor });
        most = most.max(memory(&cluster, "VmRSS")?);
    }
    figures.push(Figure {
        what: "resident memory afterwards, the most of the four",
        value: megabytes(most),
        reference: "2 331 MB",
        bound: "≤ 466 MB",
    });
    Ok(())
}

/// A cluster whose nodes are hollow.
fn hollow(binary: &Path) -> anyhow::Result<Cluster> {
    let disable = vec!["agent", "proxy", "dns"];
    Cluster::with(Options { binary: binary.to_owned(), disable, ..Options::default() })
}

/// Hollow nodes of a cluster, all of them free to take pods.
async fn nodes(client: Client, nodes: usize, stop: CancellationToken) -> anyhow::Result<Arc<Nodes>> {
    let cache = client.caches().of::<k8s_openapi::api::core::v1::Node>();
    cache.synced().await;
    let config = simulate::Config { nodes, ..simulate::Config::default() };
    let hollow = Nodes::start(client, config, Arc::default(), stop).await?;
    let mut changes = cache.subscribe();
    let free = async {
        loop {
            let taints = |n: &k8s_openapi::api::core::v1::Node| {
                n.spec.iter().flat_map(|s| s.taints.iter().flatten()).count()
            };
            let all = cache.list();
            if all.len() == nodes && all.iter().all(|n| taints(n) == 0) {
                return anyhow::Ok(());
            }
            changes.next().await.context("the watch ended")?;
            while changes.try_next().is_some() {}
        }
    };
    timeout(PATIENCE, free).await.context("not all nodes are ready")??;
    Ok(hollow)
}

/// The mean of what a histogram of `/metrics` counted of a queue.
fn mean(metrics: &str, metric: &str, queue: &str) -> Option<Duration> {
    let value = |suffix: &str| {
        let start = format!("{metric}_{suffix}{{name=\"{queue}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse::<f64>().ok())
    };
    let (sum, count) = (value("sum")?, value("count")?);
    (count > 0.0).then(|| Duration::from_secs_f64(sum / count))
}

fn deployment(binary: &Path, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let cluster = hollow(binary)?;
    let endpoint = endpoint(&cluster)?;
    let (took, metrics) = load(&cluster, CONNECTIONS, move |load| async move {
        let stop = CancellationToken::new();
        let client = Client::new(Arc::new(Https::new(&endpoint)?));
        let hollow = nodes(client, HOLLOW, stop.clone()).await?;
        let watch = Watch::open(&load, PODS, &revision(&load, PODS).await?).await?;
        let seen = tokio::spawn(bound(watch, REPLICAS));
        let labels = json!({"app": "bench"});
        let template = json!({"metadata": {"labels": labels}, "spec": pod(0, Shape::Plain)["spec"]});
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "bench"},
            "spec": {"replicas": REPLICAS, "selector": {"matchLabels": labels}, "template": template}});
        let began = Instant::now();
        let path = "/apis/apps/v1/namespaces/default/deployments";
        load.call(Method::POST, path, JSON, deployment.to_string()).await?;
        let ended = timeout(PATIENCE, seen).await.context("not all pods were bound")???;
        let answer = load.open(Method::GET, "/metrics", "", String::new()).await?;
        let text = answer.into_body().collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
        stop.cancel();
        drop(hollow);
        Ok((ended.duration_since(began), String::from_utf8_lossy(&text).into_owned()))
    })?;
    figures.push(Figure {
        what: "deployment of 1 000 replicas, 100 hollow nodes: all created and bound",
        value: milliseconds(took),
        reference: "",
        bound: "≤ 3 000 ms",
    });
    for (what, queue) in [
        ("meanwhile, passes of the deployment controller", "deployment"),
        ("... of the replica set controller", "replicaset"),
        ("... of the endpoint slice controller", "endpoint_slice"),
        ("... of the node lifecycle controller", "node_lifecycle_controller"),
    ] {
        let [waited, worked] = ["workqueue_queue_duration_seconds", "workqueue_work_duration_seconds"]
            .map(|metric| mean(&metrics, metric, queue).map_or_else(|| "none".to_owned(), milliseconds));
        let value = format!("mean {worked}, after waiting {waited}");
        figures.push(Figure { what, value, reference: "", bound: "" });
    }
    Ok(())
}

fn large(binary: &Path, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let cluster = hollow(binary)?;
    let endpoint = endpoint(&cluster)?;
    let (bind, list, page, mut times) = load(&cluster, CONNECTIONS, move |load| async move {
        let stop = CancellationToken::new();
        let client = Client::new(Arc::new(Https::new(&endpoint)?));
        let hollow = nodes(client, MANY_NODES, stop.clone()).await?;
        let watch = Watch::open(&load, PODS, &revision(&load, PODS).await?).await?;
        let seen = tokio::spawn(bound(watch, MANY_PODS));
        let began = Instant::now();
        let create = move |load: Arc<Load>, n: usize| async move {
            load.call(Method::POST, PODS, JSON, pod(n, Shape::Plain).to_string()).await
        };
        load.phase(MANY_PODS, PARALLEL, create).await?;
        let ended = timeout(PATIENCE, seen).await.context("not all pods were bound")???;
        sleep(REST).await;

        let listed = Instant::now();
        let size = load.call(Method::GET, PODS, "", String::new()).await?;
        let list = (size, listed.elapsed());
        let paged = Instant::now();
        load.call(Method::GET, &format!("{PODS}?limit=500"), "", String::new()).await?;
        let page = paged.elapsed();
        let mut watch = Watch::open(&load, PODS, &revision(&load, PODS).await?).await?;
        let mut times = Vec::with_capacity(EVENTS);
        for event in 0..EVENTS {
            let number = event.to_string();
            let note = json!({"metadata": {"annotations": {"bench": number}}}).to_string();
            let path = format!("{PODS}/pod-{event:06}");
            let sent = Instant::now();
            let write = tokio::spawn({
                let load = load.clone();
                async move { load.call(Method::PATCH, &path, MERGE, note).await }
            });
            while watch.next().await?["object"]["metadata"]["annotations"]["bench"] != number.as_str() {}
            times.push(sent.elapsed());
            write.await??;
        }
        stop.cancel();
        drop(hollow);
        Ok((ended.duration_since(began), list, page, times))
    })?;
    let resident = memory(&cluster, "VmRSS")?;
    figures.push(Figure {
        what: "5 000 hollow nodes, 150 000 pods: created and bound, with all controllers",
        value: format!("{:.0} pods/s", MANY_PODS as f64 / bind.as_secs_f64()),
        reference: "",
        bound: "",
    });
    let value = format!("{resident:.0} MB, peak {:.0} MB", memory(&cluster, "VmHWM")?);
    figures.push(Figure { what: "memory of the process then", value, reference: "", bound: "≤ 8 192 MB" });
    figures.push(Figure {
        what: "list of all 150 000 pods, and of the first 500",
        value: format!(
            "{} ({:.0} MB), and {}",
            milliseconds(list.1),
            list.0 as f64 / 1e6,
            milliseconds(page)
        ),
        reference: "",
        bound: "",
    });
    let [p50, p99] = [50, 99].map(|p| percentile(&mut times, p).unwrap_or_default());
    figures.push(Figure {
        what: "a write to one of them until a watch shows it",
        value: format!("p50 {}, p99 {}", milliseconds(p50), milliseconds(p99)),
        reference: "",
        bound: "",
    });
    Ok(())
}

/// How often the threads of a process have gone to sleep of their own will: each time something woke them before.
fn wakes(pid: u32) -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // a thread may end meanwhile
        let Ok(status) = std::fs::read_to_string(task?.path().join("status")) else { continue };
        let count = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        sum += count.context("no count of switches")?.trim().parse::<u64>()?;
    }
    Ok(sum)
}

fn idle(binary: &Path, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    for (what, disable) in [
        ("wake-ups of the idle process: API server, controllers, scheduler", vec!["agent", "proxy", "dns"]),
        ("... with all parts of a node", Vec::new()),
    ] {
        let cluster = Cluster::with(Options { binary: binary.to_owned(), disable, ..Options::default() })?;
        let pid = cluster.pid().context("no server runs")?;
        pause(REST)?;
        let before = wakes(pid)?;
        pause(IDLE)?;
        let rate = wakes(pid)?.saturating_sub(before) as f64 / IDLE.as_secs_f64();
        if rate <= 0.0 {
            bail!("a process that never wakes is dead");
        }
        figures.push(Figure { what, value: format!("{rate:.1}/s"), reference: "", bound: "≤ 20/s" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_a_histogram_is_its_sum_by_its_count() {
        let text = "m_sum{name=\"a\"} 3\nm_count{name=\"a\"} 2\nm_sum{name=\"b\"} 0\nm_count{name=\"b\"} 0\n";
        assert_eq!(mean(text, "m", "a"), Some(Duration::from_millis(1500)));
        assert_eq!(mean(text, "m", "b"), None);
        assert_eq!(mean(text, "m", "c"), None);
    }
}
