//! The one integration test: the built binary under real clients. Each test starts a cluster of its own.

mod adoption;
mod cni;
mod commands;
mod datastore;
mod devices;
mod dra;
mod dual_stack;
mod faults;
mod helm;
mod images;
mod ipvs;
mod kills;
mod kubectl;
mod names;
mod network;
mod node;
mod operator;
mod oracle;
mod pods;
mod processors;
mod proxy;
mod python;
mod rollout;
mod runtimes;
mod streams;
mod user_namespaces;
mod vm;
mod volumes;
mod wireguard;
mod workloads;

use serde_json::Value;
use testkit::{Cluster, Options, eventually};

/// The binary under test.
const NAVARCH: &str = env!("CARGO_BIN_EXE_navarch");

/// A cluster with all parts and the busybox image, its node ready.
fn cluster() -> Cluster {
    cluster_with(Vec::new())
}

/// The same with more arguments of `navarch server`.
fn cluster_with(arguments: Vec<String>) -> Cluster {
    prepared(Options { binary: NAVARCH.into(), arguments, ..Options::default() })
}

/// A cluster of these options with the busybox image, its node ready.
fn prepared(options: Options) -> Cluster {
    let cluster = Cluster::with(options).expect("the cluster starts");
    eventually("the node is ready", || {
        let nodes = cluster.get("nodes").map_err(|e| e.to_string())?;
        let ready = nodes["items"][0]["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
        if ready { Ok(()) } else { Err(nodes["items"].to_string()) }
    });
    cluster.import(&testkit::image::busybox().expect("the busybox image")).expect("import");
    cluster
}

/// How long who still has the old endpoints finds a pod that ends, seconds: some on an ordinary machine, and always within the
/// grace of pods, which is 30 s.
pub fn parting(seconds: u32) -> String {
    (seconds * testkit::slowness()).min(25).to_string()
}

/// Pods that are ready, of those that a selector picks.
fn ready_pods(cluster: &Cluster, selector: &str) -> Vec<Value> {
    let pods = cluster.get(&format!("pods -l {selector}")).expect("kubectl get pods");
    let items = pods["items"].as_array().cloned().unwrap_or_default();
    items.into_iter().filter(is_ready).collect()
}

/// The pod's condition Ready is true and it is not being deleted.
fn is_ready(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null()
        && pod["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

/// Waits for `count` ready pods; their state.
#[track_caller]
fn wait_ready(cluster: &Cluster, selector: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{count} pods of {selector} are ready"), || {
        let pods = ready_pods(cluster, selector);
        if pods.len() == count { Ok(pods) } else { Err(describe(cluster)) }
    })
}

/// What a failed wait shows.
fn describe(cluster: &Cluster) -> String {
    let pods = cluster.kubectl("get pods -o wide").unwrap_or_else(|e| e.to_string());
    let events = cluster.kubectl("get events").unwrap_or_else(|e| e.to_string());
    format!("\n{pods}\n{events}")
}

/// The name of an object.
fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
