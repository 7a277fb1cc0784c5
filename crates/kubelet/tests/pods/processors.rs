//! Processors and memory that containers have for themselves, on a machine of two sockets that is written down only.

use std::path::Path;

use kubelet::configuration::KubeletConfiguration;

use super::*;

/// Two sockets of four cores, a NUMA node of 4 GiB each.
fn machine(system: &Path) {
    let write = |path: String, value: String| {
        let path = system.join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, value).expect("written");
    };
    write("cpu/online".into(), "0-7".into());
    for cpu in 0..8 {
        write(format!("cpu/cpu{cpu}/topology/physical_package_id"), (cpu / 4).to_string());
    }
    for node in 0..2 {
        write(format!("node/node{node}/cpulist"), format!("{}-{}", node * 4, node * 4 + 3));
        write(format!("node/node{node}/meminfo"), format!("Node {node} MemTotal: {} kB", 4 << 20));
    }
}

impl Cluster {
    /// Starts the kubelet anew on that machine, with these settings.
    async fn on_two_sockets(&mut self, settings: &str) {
        self.stop_kubelet().await;
        let text =
            format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{settings}");
        self.settings = KubeletConfiguration::parse(text.as_bytes()).expect("settings");
        self.system = self.api.folder.path().join("system");
        machine(&self.system);
        self.start_kubelet().await;
    }

    async fn run(&self, name: &str, cpu: &str, memory: &str) {
        let amounts = json!({"cpu": cpu, "memory": memory});
        let container =
            json!({"name": name, "image": "web:1", "resources": {"requests": amounts, "limits": amounts}});
        let mut pod = pod(json!({"containers": [container]}));
        pod["metadata"]["name"] = json!(name);
        self.create::<Pod>("d", pod).await;
    }

    /// Waits until a container may run on these processors, with memory of these nodes.
    async fn until_on(&self, name: &str, cpus: &str, mems: &str) -> cri::v1::LinuxContainerResources {
        let numbers = || self.fake.container(name)?.status.resources?.linux;
        let mut changes = self.fake.numbers.subscribe();
        let on = async {
            loop {
                if let Some(found) = numbers().filter(|n| n.cpuset_cpus == cpus && n.cpuset_mems == mems) {
                    return found;
                }
                changes.changed().await.expect("the fake");
            }
        };
        let found = tokio::time::timeout(PATIENCE, on).await;
        found.unwrap_or_else(|_| panic!("{name} is not on {cpus}: {:?}", numbers()))
    }

    /// Waits until a pod is refused, and says why.
    async fn refusal(&self, name: &str) -> (String, String) {
        let status = self
            .until::<Pod, _>("refused", |list| {
                let found = list.iter().find(|p| p.metadata.name.as_deref() == Some(name))?;
                found.status.clone().filter(|status| status.phase.as_deref() == Some("Failed"))
            })
            .await;
        (status.reason.unwrap_or_default(), status.message.unwrap_or_default())
    }

    async fn end(&self, name: &str) {
        self.client.delete::<Pod>("d", name, &DeleteOptions::default()).await.expect("deleted");
        let gone = |list: &[Arc<Pod>]| list.iter().all(|p| p.metadata.name.as_deref() != Some(name));
        self.until::<Pod, _>("it is gone", |list| gone(list).then_some(())).await;
    }

    fn state(&self, file: &str) -> Value {
        let text = std::fs::read(self.api.folder.path().join("kubelet").join(file)).expect("a file");
        serde_json::from_slice(&text).expect("json")
    }
}

const SETTINGS: &str = "cpuManagerPolicy: static\nreservedSystemCPUs: '0'\nsystemReserved: {memory: 1Gi}\n\
    evictionHard: {nodefs.available: 1Mi}\nmemoryManagerPolicy: Static\n\
    reservedMemory: [{numaNode: 0, limits: {memory: 1Gi}}]\ntopologyManagerPolicy: single-numa-node\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_processors_are_exclusive_and_the_others_are_shared_by_the_rest() {
    let mut cluster = Cluster::start().await;
    cluster.on_two_sockets(SETTINGS).await;
    cluster.run("shared", "100m", "64Mi").await;
    // a Guaranteed pod has memory of its own whatever part of a processor it asks for
    cluster.until_on("shared", "0-7", "0").await;
    cluster.run("own", "2", "1Gi").await;
    let own = cluster.until_on("own", "1-2", "0").await;
    assert_eq!(own.cpu_quota, -1, "processors of its own, no share of time");
    assert_eq!(cluster.until_on("shared", "0,3-7", "0").await.cpu_quota, 10_000);
    cluster.run("four", "4", "1Gi").await;
    cluster.until_on("four", "4-7", "1").await;
    cluster.until_on("shared", "0,3", "0").await;
    // one node has one processor left, the other none
    cluster.run("late", "2", "1Gi").await;
    let why =
        ("TopologyAffinityError", "Pod was rejected: Resources cannot be allocated with Topology locality");
    assert_eq!(cluster.refusal("late").await, (why.0.to_owned(), why.1.to_owned()));
    let entries = cluster.state("cpu_manager_state")["entries"].clone();
    let found: Vec<&Value> = entries
        .as_object()
        .into_iter()
        .flatten()
        .flat_map(|(_, pod)| pod.as_object())
        .flat_map(|pod| pod.values())
        .collect();
    assert_eq!(found.len(), 2, "{entries}");
    // what is exclusive is not resized
    let mut pod: Value =
        serde_json::to_value(cluster.client.get::<Pod>("d", "own").await.expect("pod")).expect("json");
    let amounts = json!({"cpu": "2", "memory": "512Mi"});
    pod["metadata"].as_object_mut().expect("metadata").remove("resourceVersion");
    pod["spec"]["containers"][0]["resources"] = json!({"requests": amounts, "limits": amounts});
    let path = "/api/v1/namespaces/d/pods/own/resize";
    cluster.client.call::<_, Value>(http::Method::PUT, path, Some(&pod)).await.expect("resized");
    let text = "Resize is infeasible for Guaranteed Pods alongside Memory Manager policy \"Static\"";
    cluster
        .until::<Pod, _>("infeasible", |list| {
            let own = list.iter().find(|p| p.metadata.name.as_deref() == Some("own"))?;
            let pending =
                own.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "PodResizePending")?;
            (pending.message.as_deref() == Some(text)).then_some(())
        })
        .await;
    // what was given is remembered, and given back when its pod goes
    cluster.stop_kubelet().await;
    cluster.start_kubelet().await;
    cluster.end("four").await;
    cluster.until_on("shared", "0,3-7", "0").await;
    cluster.run("again", "4", "1Gi").await;
    cluster.until_on("again", "4-7", "1").await;
    cluster.end("own").await;
    cluster.until_on("shared", "0-3", "0").await;
    for name in ["shared", "late", "again"] {
        cluster.end(name).await;
    }
    cluster.until_gone().await;
    assert_eq!(cluster.state("cpu_manager_state")["defaultCpuSet"], "0-7");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_policy_does_not_begin_before_the_old_ones_file_is_gone() {
    let mut cluster = Cluster::start().await;
    cluster.on_two_sockets(SETTINGS).await;
    cluster.run("own", "2", "1Gi").await;
    cluster.until_on("own", "1-2", "0").await;
    cluster.stop_kubelet().await;
    cluster.settings = KubeletConfiguration::without_file();
    cluster.start_kubelet().await;
    let (_, run) = cluster.kubelet.take().expect("a kubelet");
    let error = run.await.expect("no panic").expect_err("an error").to_string();
    let why =
        "configured policy \"none\" differs from state checkpoint policy \"static\", please drain this node";
    assert!(error.contains(why), "{error}");
    for file in ["cpu_manager_state", "memory_manager_state"] {
        std::fs::remove_file(cluster.api.folder.path().join("kubelet").join(file)).expect("removed");
    }
    cluster.start_kubelet().await;
    cluster.end("own").await;
    cluster.until_gone().await;
    cluster.stop().await;
}
