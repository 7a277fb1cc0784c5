//! The Node object.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_registers_with_what_the_machine_has_and_renews_its_lease() {
    let cluster = Cluster::start().await;
    let ready = |list: &[Arc<Node>]| {
        let node = list.first()?;
        let list = node.status.as_ref()?.conditions.as_ref()?;
        list.iter().find(|c| c.type_ == "Ready" && c.status == "True")?;
        Some(node.clone())
    };
    let node = cluster.until::<Node, _>("ready", ready).await;
    let status = node.status.clone().unwrap();
    let info = status.node_info.unwrap();
    assert_eq!(
        (info.kubelet_version.as_str(), info.container_runtime_version.as_str()),
        ("v1.36.0", "fake://1")
    );
    assert!(!info.kernel_version.is_empty() && !info.boot_id.is_empty());
    for name in ["cpu", "memory", "pods", "ephemeral-storage"] {
        assert!(status.capacity.as_ref().unwrap().contains_key(name), "{name}");
        assert!(status.allocatable.as_ref().unwrap().contains_key(name), "{name}");
    }
    let labels = node.metadata.labels.clone().unwrap();
    assert_eq!(labels.get("kubernetes.io/hostname").map(String::as_str), Some("n1"));
    let held = |list: &[Arc<Lease>]| {
        let lease = list.iter().find(|l| l.metadata.name.as_deref() == Some("n1"))?;
        lease.spec.as_ref()?.lease_duration_seconds
    };
    assert_eq!(cluster.until::<Lease, _>("a lease", held).await, 40);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_made_with_labels_or_by_somebody_else_and_its_lease_is_as_long_as_it_is_to_be() {
    let mut settings = kubelet::configuration::KubeletConfiguration::without_file();
    settings.node_lease_duration_seconds = 4;
    settings.register_node = false;
    settings.node_status_update_frequency = "100ms".to_owned();
    let mut cluster = Cluster::with(settings).await;
    cluster.create::<Node>("", json!({"metadata": {"name": "n1", "labels": {"by": "hand"}}})).await;
    let is_ready = |node: &Node| {
        let list = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        list.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let ready = |list: &[Arc<Node>]| list.first().filter(|node| is_ready(node)).cloned();
    let node = cluster.until::<Node, _>("ready", ready).await;
    let label = |node: &Node, key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key).cloned());
    assert_eq!((label(&node, "by").as_deref(), label(&node, "kubernetes.io/os")), (Some("hand"), None));
    let renewed = |list: &[Arc<Lease>]| {
        let spec = list.iter().find(|l| l.metadata.name.as_deref() == Some("n1"))?.spec.clone()?;
        Some((spec.lease_duration_seconds, spec.renew_time?.0))
    };
    let (seconds, first) = cluster.until::<Lease, _>("a lease", renewed).await;
    assert_eq!(seconds, Some(4));
    let later = |list: &[Arc<Lease>]| renewed(list).filter(|(_, at)| *at > first);
    let (_, second) = cluster.until::<Lease, _>("it is renewed", later).await;
    assert!(second.duration_since(first).as_secs() < 10, "not after ten seconds, as without the setting");
    // labels are those that it is made with
    cluster.stop_kubelet().await;
    cluster.settings.register_node = true;
    cluster.labels = [("pool", "a"), ("kubernetes.io/hostname", "other")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    cluster.start_kubelet().await;
    let named = |list: &[Arc<Node>]| {
        list.first().filter(|node| label(node, "kubernetes.io/hostname").as_deref() == Some("other")).cloned()
    };
    let node = cluster.until::<Node, _>("it has its own", named).await;
    assert_eq!(label(&node, "pool"), None);
    cluster.client.delete::<Node>("", "n1", &DeleteOptions::default()).await.expect("deleted");
    let made = |list: &[Arc<Node>]| {
        list.first().filter(|node| label(node, "pool").as_deref() == Some("a")).map(drop)
    };
    cluster.until::<Node, _>("it is made anew", made).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_deleted_or_not_heard_of_is_back_as_soon_as_the_kubelet_sees_it() {
    // nothing that comes by itself within the test
    let mut settings = kubelet::configuration::KubeletConfiguration::without_file();
    settings.node_status_update_frequency = "1h".to_owned();
    settings.node_status_report_frequency = "1h".to_owned();
    let cluster = Cluster::with(settings).await;
    let status = |node: &Node| {
        let list = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        list.into_iter().find(|c| c.type_ == "Ready").map(|c| (c.status.clone(), c.reason.clone()))
    };
    let is_ready =
        |node: &Arc<Node>| status(node) == Some(("True".to_owned(), Some("KubeletReady".to_owned())));
    let ready = |list: &[Arc<Node>]| list.first().filter(|node| is_ready(node)).cloned();
    let node = cluster.until::<Node, _>("ready", ready).await;
    // as the node lifecycle controller does after a partition
    let unknown = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]}});
    let unknown = client::Patch::Strategic(unknown);
    let marked = cluster.client.patch_status::<Node>("", "n1", &unknown).await.expect("marked");
    assert_eq!(status(&marked).map(|(status, _)| status).as_deref(), Some("Unknown"));
    let version = |node: &Node| node.metadata.resource_version.clone();
    let again = |list: &[Arc<Node>]| ready(list).filter(|later| version(later) != version(&node));
    cluster.until::<Node, _>("it is ready again", again).await;
    cluster.client.delete::<Node>("", "n1", &DeleteOptions::default()).await.expect("deleted");
    let anew = |list: &[Arc<Node>]| ready(list).filter(|later| later.metadata.uid != node.metadata.uid);
    cluster.until::<Node, _>("it is made anew", anew).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_comes_with_its_taints_and_says_how_it_is_and_that_it_was_rebooted() {
    let mut settings = kubelet::configuration::KubeletConfiguration::without_file();
    let taint = json!({"key": "only", "value": "mine", "effect": "NoSchedule"});
    settings.register_with_taints = vec![serde_json::from_value(taint).unwrap()];
    let mut cluster = Cluster::with(settings).await;
    cluster.until_event("Starting", "Starting kubelet.").await;
    for reason in ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"] {
        cluster.until_event(reason, &format!("Node n1 status is now: {reason}")).await;
    }
    let node = cluster.client.get::<Node>("", "n1").await.unwrap();
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    assert!(taints.iter().any(|taint| taint.key == "only" && taint.value.as_deref() == Some("mine")));
    for (closed, reason) in [(true, "NodeNotSchedulable"), (false, "NodeSchedulable")] {
        let cordon = client::Patch::Merge(json!({"spec": {"unschedulable": closed}}));
        cluster.client.patch::<Node>("", "n1", &cordon).await.expect("cordoned");
        cluster.until_event(reason, &format!("Node n1 status is now: {reason}")).await;
    }
    cluster.stop_kubelet().await;
    let other = client::Patch::Strategic(json!({"status": {"nodeInfo": {"bootID": "before"}}}));
    cluster.client.patch_status::<Node>("", "n1", &other).await.expect("another boot");
    cluster.start_kubelet().await;
    cluster.until_event("Rebooted", "Node n1 has been rebooted, boot id: ").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_does_not_answer_costs_no_sign_of_life() {
    let mut settings = kubelet::configuration::KubeletConfiguration::without_file();
    settings.node_lease_duration_seconds = 4;
    settings.node_status_update_frequency = "100ms".to_owned();
    let cluster = Cluster::with(settings).await;
    let renewed = |list: &[Arc<Lease>]| {
        let lease = list.iter().find(|l| l.metadata.name.as_deref() == Some("n1"))?;
        Some(lease.spec.clone()?.renew_time?.0)
    };
    cluster.until::<Lease, _>("a lease", renewed).await;
    cluster.fake.books.lock().silent = true;
    let mut last = cluster.until::<Lease, _>("a lease", renewed).await;
    // one may have been on its way
    for _ in 0..3 {
        last = cluster.until("renewed", |list: &[Arc<Lease>]| renewed(list).filter(|at| *at > last)).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_says_that_it_is_well_without_tls_too() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("address");
    let mut settings = kubelet::configuration::KubeletConfiguration::without_file();
    settings.healthz_port = free.port();
    let mut cluster = Cluster::with(settings).await;
    let ready = |list: &[Arc<Node>]| list.first().map(drop);
    cluster.until::<Node, _>("registered", ready).await;
    let get = async |path: &str| {
        let tcp = loop {
            match tokio::net::TcpStream::connect(free).await {
                Ok(tcp) => break tcp,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let io = hyper_util::rt::TokioIo::new(tcp);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("HTTP");
        tokio::spawn(connection);
        let request = http::Request::get(path).header("host", "n1").body(String::new()).expect("request");
        let answer = sender.send_request(request).await.expect("answer");
        let code = answer.status().as_u16();
        let body = answer.into_body().collect().await.expect("body").to_bytes();
        format!("{code} {}", String::from_utf8_lossy(&body))
    };
    let in_time = async |path: &str| tokio::time::timeout(PATIENCE, get(path)).await.expect("in time");
    assert_eq!(in_time("/healthz").await, "200 ok");
    assert_eq!(in_time("/metrics").await, "404 404 page not found\n");
    assert!(cluster.ask("/logs/").await.contains("<pre>"));
    // a port that is taken keeps no kubelet from its work
    cluster.stop_kubelet().await;
    let _taken = tokio::net::TcpListener::bind(free).await.expect("free again");
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.start_kubelet().await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_own_programs_cannot_be_held_within_what_is_kept_back_does_not_start() {
    let settings = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailSwapOn: false\n\
        systemReserved: {cpu: 100m}\nsystemReservedCgroup: /not-there\nenforceNodeAllocatable: [system-reserved]\n";
    let settings =
        kubelet::configuration::KubeletConfiguration::parse(settings.as_bytes()).expect("settings");
    let mut cluster = Cluster::with(settings).await;
    let why = "Failed to enforce System Reserved Cgroup Limits on \"/not-there\": ";
    cluster.until_event("FailedNodeAllocatableEnforcement", why).await;
    let (_, run) = cluster.kubelet.take().expect("it was started");
    let ended = tokio::time::timeout(PATIENCE, run).await.expect("it ends").expect("no panic");
    assert!(ended.is_err_and(|error| error.to_string().starts_with(why)));
    cluster.stop().await;
}
