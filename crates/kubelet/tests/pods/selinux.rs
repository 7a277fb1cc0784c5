//! What the runtime and drivers are told of SELinux.

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode};
use kubelet::csi::messages::{AccessType, VolumeCapability};
use kubelet::selinux::FileLabel;
use kubelet::storage::host::Host;

use super::csi_driver::{Call, Driver};
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

fn flags(capability: Option<&VolumeCapability>) -> &[String] {
    match capability.and_then(|capability| capability.access_type.as_ref()) {
        Some(AccessType::Mount(mount)) => &mount.mount_flags,
        _ => panic!("{capability:?}"),
    }
}

/// With which flags a volume was staged and shown, time after time.
fn mounted(driver: &Driver, id: &str) -> Vec<Vec<String>> {
    let of = |call| match call {
        Call::Stage(s) if s.volume_id == id => Some(flags(s.volume_capability.as_ref()).to_vec()),
        Call::Publish(p) if p.volume_id == id => Some(flags(p.volume_capability.as_ref()).to_vec()),
        _ => None,
    };
    driver.calls().into_iter().filter_map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drivers_volume_of_one_pod_is_mounted_with_that_pods_label() {
    const NAME: &str = "labels.csi.example";
    let file_label = FileLabel::parse("file = \"system_u:object_r:container_file_t:s0\"");
    let cluster = Cluster::start().await.with_host(Host { file_label, ..Host::default() }).await;
    let driver = Driver::start_as(&cluster.api.folder.path().join("kubelet"), NAME);
    let registered = |list: &[Arc<CSINode>]| list.iter().any(|n| !n.spec.drivers.is_empty()).then_some(());
    cluster.until::<CSINode, _>("a driver is registered", registered).await;
    let rules = json!({"attachRequired": false, "seLinuxMount": true});
    cluster.create::<CSIDriver>("", json!({"metadata": {"name": NAME}, "spec": rules})).await;
    let source = |id: &str, mode: &str| json!({"csi": {"driver": NAME, "volumeHandle": id}, "accessModes": [mode], "mountOptions": ["noatime"]});
    cluster.claim("own", source("own", "ReadWriteOncePod"), json!({})).await;
    cluster.claim("shared", source("shared", "ReadWriteOnce"), json!({})).await;
    let start = async |name: &str, context: Value, claims: &[&str]| {
        let mounts: Vec<_> =
            claims.iter().map(|c| json!({"name": c, "mountPath": format!("/{c}")})).collect();
        let volumes = claims.iter().map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}}));
        let mut pod = pod(json!({"securityContext": context, "volumes": volumes.collect::<Vec<_>>(),
            "containers": [{"name": "web", "image": "web:1", "volumeMounts": mounts}]}));
        pod["metadata"]["name"] = json!(name);
        cluster.create::<Pod>("d", pod).await;
    };
    let until_running = async |name: &str| {
        let is = |p: &&Arc<Pod>| p.metadata.name.as_deref() == Some(name) && running(p, "web");
        cluster.until::<Pod, _>("running", |list| list.iter().find(is).cloned()).await;
    };
    let delete = async |name: &str| {
        let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        cluster.client.delete::<Pod>("d", name, &now).await.expect("delete");
    };
    let with = |level: &str| {
        vec!["noatime".to_owned(), format!("context=\"system_u:object_r:container_file_t:{level}\"")]
    };
    let without = vec!["noatime".to_owned()];
    start("p", json!({"seLinuxOptions": {"level": "s0:c1,c2"}}), &["shared", "own"]).await;
    until_running("p").await;
    assert_eq!(mounted(&driver, "own"), [with("s0:c1,c2"), with("s0:c1,c2")]);
    assert_eq!(mounted(&driver, "shared"), [without.clone(), without.clone()]);
    // another label waits until that one is gone
    start("q", json!({"seLinuxOptions": {"level": "s0:c3"}}), &["shared", "own"]).await;
    let why = "Unable to attach or mount volumes: unmounted volumes=[own], unattached volumes=[], failed to process volumes=[own]: \
               conflicting SELinux labels of volume pv-own: \"system_u:object_r:container_file_t:s0:c1,c2\" and \"system_u:object_r:container_file_t:s0:c3\"";
    cluster.until_event("FailedMount", why).await;
    let metrics = cluster.ask("/metrics").await;
    let series = |name: &str, mode: &str| {
        format!(
            "\nvolume_manager_selinux_{name}{{access_mode=\"{mode}\",volume_plugin=\"kubernetes.io/csi/{NAME}\"}} "
        )
    };
    for wanted in [
        series("volumes_admitted_total", "RWOP") + "1\n",
        series("volumes_admitted_total", "RWO") + "1\n",
        series("volume_context_mismatch_warnings_total", "RWO") + "1\n",
        series("volume_context_mismatch_errors_total", "RWOP"),
    ] {
        assert!(metrics.contains(&wanted), "{wanted}\n{metrics}");
    }
    delete("p").await;
    until_running("q").await;
    assert_eq!(mounted(&driver, "own")[2..], [with("s0:c3"), with("s0:c3")]);
    delete("q").await;
    cluster.until_gone().await;
    // who wants every file to be labelled is given the volume as it is
    let recursive = json!({"seLinuxOptions": {"level": "s0:c3"}, "seLinuxChangePolicy": "Recursive"});
    start("r", recursive, &["own"]).await;
    until_running("r").await;
    assert_eq!(mounted(&driver, "own")[4..], [without.clone(), without]);
    delete("r").await;
    cluster.until_gone().await;
    cluster.stop().await;
}

/// What reaches the runtime where the kernel has labels; `make test-vm` runs it.
#[test]
#[ignore = "boots a machine under emulation"]
fn vm_asks_for_labels_on_a_kernel_with_selinux() {
    let vm = testkit::vm::Vm { selinux: true, ..Default::default() };
    vm.test(&["selinux::options_reach"], &[]);
}
