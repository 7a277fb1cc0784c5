//! What the runtime is told of SELinux.

use k8s_openapi::api::core::v1::ConfigMap;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_reach_the_runtime_and_the_pods_own_volumes_get_labels_where_the_kernel_has_them() {
    let cluster = Cluster::start().await;
    cluster.create::<ConfigMap>("d", json!({"metadata": {"name": "m"}, "data": {"a": "1"}})).await;
    let spec = json!({
        "securityContext": {"seLinuxOptions": {"type": "pod_t", "level": "s0:c1,c2"}},
        "containers": [
            {"name": "web", "image": "web:1", "volumeMounts": [
                {"name": "map", "mountPath": "/map"}, {"name": "scratch", "mountPath": "/scratch", "subPath": "a"},
                {"name": "nodes", "mountPath": "/nodes"}]},
            {"name": "own", "image": "web:1", "securityContext": {"seLinuxOptions": {"level": "s0:c3"}}}],
        "volumes": [{"name": "map", "configMap": {"name": "m"}}, {"name": "scratch", "emptyDir": {}},
            {"name": "nodes", "hostPath": {"path": "/tmp"}}]});
    cluster.create::<Pod>("d", pod(spec)).await;
    cluster.until_pod("running", |p| running(p, "web") && running(p, "own")).await;
    let config = |name: &str| cluster.fake.container(name).expect("a container").config;
    let options = |name: &str| {
        let context = config(name).linux.unwrap().security_context.unwrap();
        let options = context.selinux_options?;
        Some(format!("{}:{}:{}:{}", options.user, options.role, options.r#type, options.level))
    };
    let kernel = kubelet::selinux::enabled();
    let expected = ["::pod_t:s0:c1,c2", ":::s0:c3"].map(|label| kernel.then(|| label.to_owned()));
    assert_eq!([options("web"), options("own")], expected);
    let labelled: BTreeMap<String, bool> =
        config("web").mounts.into_iter().map(|mount| (mount.container_path, mount.selinux_relabel)).collect();
    let expected = [
        ("/dev/termination-log", kernel),
        ("/etc/hosts", kernel),
        ("/map", kernel),
        ("/nodes", false),
        ("/scratch", kernel),
    ];
    assert_eq!(labelled, expected.map(|(path, label)| (path.to_owned(), label)).into());
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

/// The same where the kernel has labels; `make test-vm` runs it.
#[test]
#[ignore = "boots a machine under emulation"]
fn vm_asks_for_labels_on_a_kernel_with_selinux() {
    let vm = testkit::vm::Vm { selinux: true, ..Default::default() };
    vm.test(&["selinux::options_reach"], &[]);
}
