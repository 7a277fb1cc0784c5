//! Control groups: limits are applied, told and enforced.

use std::{collections::HashMap, fs};

use cri::v1;

use crate::support::{Node, PATIENCE, shell};

fn limited(name: &str, script: &str, resources: v1::LinuxContainerResources) -> v1::ContainerConfig {
    let mut config = shell(name, script);
    config.linux.get_or_insert_default().resources = Some(resources);
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_memory_ends_as_oom_killed() {
    let mut node = Node::start().await;
    let resources = v1::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() };
    // The shell itself: its variable grows.
    let script = "x=0123456789abcdef; while true; do x=$x$x; done";
    let (status, _) = node.script(limited("greedy", script, resources.clone())).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    let (status, _) = node.script(limited("modest", "exit 4", resources)).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (4, "Error"));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_what_was_asked_for_and_can_be_changed() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("limits").await;
    let resources = v1::LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 900,
        cpuset_cpus: "0".to_owned(),
        ..Default::default()
    };
    let id = node.run(&sandbox, limited("main", "sleep 1000", resources)).await;
    let v1 = std::path::Path::new("/sys/fs/cgroup/memory").exists();
    let read = if v1 {
        "cd /sys/fs/cgroup; cat cpu/cpu.shares cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes cpuset/cpuset.cpus"
    } else {
        "cd /sys/fs/cgroup; cat cpu.weight cpu.max memory.max cpuset.cpus"
    };
    let expected = if v1 { "512\n50000\n67108864\n0\n" } else { "59\n50000 100000\n67108864\n0\n" };
    assert_eq!(node.exec_text(&id, read).await, expected);
    assert_eq!(node.exec_text(&id, "cat /proc/1/oom_score_adj").await, "900\n");
    // It sees its own group as the root, and cannot change it.
    assert_eq!(
        node.exec_text(&id, "grep -c ':/$' /proc/1/cgroup; touch /sys/fs/cgroup/x || echo no")
            .await
            .lines()
            .last(),
        Some("no")
    );
    let update = v1::LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() };
    let request = v1::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(update),
        ..Default::default()
    };
    node.cri.update_container_resources(request).await.unwrap();
    assert!(node.exec_text(&id, read).await.contains("134217728"));
    for _ in 0..2 {
        let linux = node.status(&id).await.resources.unwrap().linux.unwrap();
        assert_eq!((linux.memory_limit_in_bytes, linux.cpu_shares), (128 << 20, 512));
        // another process knows it, too
        node.restart().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_count_what_a_container_uses() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("stats").await;
    let script = "dd if=/dev/zero of=/file bs=1024 count=2048; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 1000";
    let id = node.run(&sandbox, shell("main", script)).await;
    let path = node.status(&id).await.log_path;
    crate::support::eventually("work is done", || {
        std::fs::read_to_string(&path).is_ok_and(|log| log.contains("F done"))
    })
    .await;
    let request = v1::ContainerStatsRequest { container_id: id.clone() };
    let stats = node.cri.container_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 1_000_000);
    assert!(stats.memory.unwrap().usage_bytes.unwrap().value > 0);
    assert!(stats.writable_layer.unwrap().used_bytes.unwrap().value >= 2 << 20);
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: sandbox.clone() };
    let stats = node.cri.pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap().linux.unwrap();
    assert_eq!(stats.containers.len(), 1);
    assert!(stats.process.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_the_node_cannot_keep_is_told() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("kept").await;
    let is_v1 = fs::exists("/sys/fs/cgroup/memory").unwrap();
    let pages = v1::HugepageLimit { page_size: "2MB".to_owned(), limit: 4 << 20 };
    let resources = v1::LinuxContainerResources { hugepage_limits: vec![pages], ..Default::default() };
    let made = node.create(&sandbox, limited("huge", "sleep 1000", resources)).await;
    let has = |controller: &str| match is_v1 {
        true => fs::exists(format!("/sys/fs/cgroup/{controller}")).unwrap(),
        false => {
            let all = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap();
            all.split_whitespace().any(|known| known == controller)
        }
    };
    if has("hugetlb") {
        let id = made.unwrap();
        node.start_container(&id).await.unwrap();
        let file = if is_v1 { "hugetlb/hugetlb.2MB.limit_in_bytes" } else { "hugetlb.2MB.max" };
        assert_eq!(node.exec_text(&id, &format!("cat /sys/fs/cgroup/{file}")).await, "4194304\n");
    } else {
        let error = made.unwrap_err();
        assert!(error.message().contains("hugetlb"), "{error}");
    }
    // kubelets say of each size that a container has none of it, whether anybody counts them or not
    let none = ["2MB", "1GB", "77KB"].map(|size| v1::HugepageLimit { page_size: size.to_owned(), limit: 0 });
    let resources = v1::LinuxContainerResources { hugepage_limits: none.into(), ..Default::default() };
    node.run(&sandbox, limited("none", "true", resources)).await;
    let unified = HashMap::from([("pids.max".to_owned(), "77".to_owned())]);
    let resources = v1::LinuxContainerResources { unified, ..Default::default() };
    let made = node.create(&sandbox, limited("unified", "sleep 1000", resources)).await;
    if is_v1 {
        assert!(made.unwrap_err().message().contains("control groups of version 1"));
    } else {
        let id = made.unwrap();
        node.start_container(&id).await.unwrap();
        assert_eq!(node.exec_text(&id, "cat /sys/fs/cgroup/pids.max").await, "77\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_is_counted_where_the_kernel_does() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("pressure").await;
    // a tenth of a processor for two that want all
    let resources =
        v1::LinuxContainerResources { cpu_quota: 10_000, cpu_period: 100_000, ..Default::default() };
    let script = "(while true; do :; done) & while true; do :; done";
    let id = node.run(&sandbox, limited("main", script, resources)).await;
    let unified = ["/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs"];
    let counts =
        fs::exists("/proc/pressure/cpu").unwrap() && unified.iter().any(|file| fs::exists(file).unwrap());
    let waited = async |node: &mut Node| {
        let request = v1::ContainerStatsRequest { container_id: id.clone() };
        let stats = node.cri.container_stats(request).await.unwrap().into_inner().stats.unwrap();
        assert_eq!(stats.io.is_some(), counts);
        stats.cpu.unwrap().psi.and_then(|psi| psi.some).map(|some| some.total)
    };
    if !counts {
        assert_eq!(waited(&mut node).await, None);
        return;
    }
    let deadline = std::time::Instant::now() + PATIENCE * testkit::slowness();
    while waited(&mut node).await.unwrap() == 0 {
        assert!(std::time::Instant::now() < deadline, "nobody waits");
        node.exec_text(&id, "true").await;
    }
}
