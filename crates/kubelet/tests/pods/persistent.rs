//! Claims, drivers' volumes and images as volumes.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
use kubelet::csi::messages::{AccessType, Mode};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;

use super::csi_driver::{Call, Driver, NAME};
use super::*;

impl Cluster {
    fn root(&self) -> PathBuf {
        self.api.folder.path().join("kubelet")
    }

    async fn until_registered(&self) -> Arc<CSINode> {
        let with = |list: &[Arc<CSINode>]| list.iter().find(|n| !n.spec.drivers.is_empty()).cloned();
        self.until::<CSINode, _>("a driver is registered", with).await
    }

    async fn until_in_use(&self, wanted: &[&str]) {
        let is = |list: &[Arc<Node>]| {
            let used = list.first()?.status.as_ref()?.volumes_in_use.clone().unwrap_or_default();
            (used == wanted).then_some(())
        };
        self.until::<Node, _>("volumes in use", is).await;
    }

    fn mount(&self, path: &str) -> cri::v1::Mount {
        let config = self.fake.container("web").expect("a container").config;
        config.mounts.iter().find(|m| m.container_path == path).expect("a mount").clone()
    }
}

/// A cluster with a driver that the node knows.
async fn start_with_driver() -> (Cluster, Driver) {
    let cluster = Cluster::start().await;
    let driver = Driver::start(&cluster.root());
    cluster.until_registered().await;
    (cluster, driver)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_made_anew_has_its_drivers_again() {
    let (cluster, _driver) = start_with_driver().await;
    // the first by name, and it holds up no other
    let silent = Driver::start_as(&cluster.root(), "a.csi.example");
    let both = |list: &[Arc<CSINode>]| list.iter().any(|n| n.spec.drivers.len() == 2).then_some(());
    cluster.until::<CSINode, _>("both are registered", both).await;
    silent.books.lock().silent = true;
    let former: Node = cluster.client.get("", "n1").await.expect("the node");
    cluster.client.delete::<Node>("", "n1", &DeleteOptions::default()).await.expect("deleted");
    let told = |list: &[Arc<Node>]| {
        let meta = &list.first().filter(|node| node.metadata.uid != former.metadata.uid)?.metadata;
        let ids = meta.annotations.as_ref()?.get("csi.volume.kubernetes.io/nodeid")?;
        let zone = meta.labels.as_ref()?.get("topology.fake.example/zone")?;
        Some((meta.uid.clone()?, ids.clone(), zone.clone()))
    };
    let (uid, ids, zone) = cluster.until::<Node, _>("it is told again", told).await;
    assert_eq!((ids, zone), (json!({NAME: "id-of-n1"}).to_string(), "z1".to_owned()));
    // it does not go with the former one
    let of_it = |list: &[Arc<CSINode>]| {
        let node = list.first().filter(|node| node.spec.drivers.iter().any(|driver| driver.name == NAME))?;
        let owners = node.metadata.owner_references.as_ref()?;
        (owners.len() == 1 && owners[0].uid == uid).then_some(())
    };
    cluster.until::<CSINode, _>("it has its drivers", of_it).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drivers_volume_is_attached_staged_shown_and_given_back() {
    let mut cluster = Cluster::start().await;
    let driver = Driver::start(&cluster.root());
    let node = cluster.until_registered().await;
    let told = &node.spec.drivers[0];
    assert_eq!((told.name.as_str(), told.node_id.as_str()), (NAME, "id-of-n1"));
    assert_eq!(told.allocatable.as_ref().and_then(|a| a.count), Some(7));
    assert_eq!(told.topology_keys.as_deref(), Some(&["topology.fake.example/zone".to_owned()][..]));
    let n1: Node = cluster.client.get("", "n1").await.expect("the node");
    assert_eq!(n1.metadata.labels.unwrap().get("topology.fake.example/zone").map(String::as_str), Some("z1"));
    let rules = json!({"attachRequired": true, "podInfoOnMount": true, "fsGroupPolicy": "File"});
    cluster.create::<CSIDriver>("", json!({"metadata": {"name": NAME}, "spec": rules})).await;
    let source = json!({"csi": {"driver": NAME, "volumeHandle": "vol-1", "fsType": "ext4",
        "volumeAttributes": {"pool": "fast"}}, "mountOptions": ["noatime"]});
    cluster.claim("c", source, json!({})).await;
    let mut spec = with_volume(json!({"persistentVolumeClaim": {"claimName": "c"}}));
    spec["securityContext"] = json!({"fsGroup": 4242, "fsGroupChangePolicy": "OnRootMismatch"});
    spec["containers"][0]["volumeMounts"][0]["subPath"] = json!("sub");
    cluster.create::<Pod>("d", pod(spec)).await;
    // not before the cluster attached it, which it may once the node says that it is used
    let unique = format!("kubernetes.io/csi/{NAME}^vol-1");
    cluster.until_in_use(&[&unique]).await;
    assert!(!driver.calls().iter().any(|call| matches!(call, Call::Stage(_))));
    let sum = Sha256::digest(format!("vol-1{NAME}n1"));
    let name = sum.iter().fold("csi-".to_owned(), |text, byte| format!("{text}{byte:02x}"));
    let attachment = json!({"metadata": {"name": name},
        "spec": {"attacher": NAME, "nodeName": "n1", "source": {"persistentVolumeName": "pv-c"}}});
    cluster.create::<VolumeAttachment>("", attachment).await;
    let status = Patch::Merge(json!({"status": {"attached": true, "attachmentMetadata": {"device": "sdb"}}}));
    cluster.client.patch_status::<VolumeAttachment>("", &name, &status).await.expect("attached");
    let status = Patch::Merge(json!({"status": {"volumesAttached": [{"name": unique, "devicePath": ""}]}}));
    cluster.client.patch_status::<Node>("", "n1", &status).await.expect("told");
    let p = cluster.until_pod("running", |p| running(p, "web")).await;
    let calls = driver.calls();
    let [Call::Notified(registered), Call::Stage(staged), Call::Publish(shown)] = &calls[..] else {
        panic!("{calls:?}")
    };
    assert!(registered.plugin_registered, "{registered:?}");
    assert_eq!(staged.publish_context["device"], "sdb");
    assert_eq!(staged.volume_context["pool"], "fast");
    let capability = staged.volume_capability.clone().unwrap();
    let Some(AccessType::Mount(mount)) = capability.access_type else { panic!("{staged:?}") };
    assert_eq!((mount.fs_type.as_str(), &mount.mount_flags[..]), ("ext4", &["noatime".to_owned()][..]));
    assert_eq!(capability.access_mode.unwrap().mode, Mode::SingleNodeWriter as i32);
    assert_eq!(shown.staging_target_path, staged.staging_target_path);
    assert_eq!(shown.volume_context["csi.storage.k8s.io/pod.name"], "p");
    let uid = p.metadata.uid.clone().unwrap();
    let target = cluster.root().join(format!("pods/{uid}/volumes/kubernetes.io~csi/pv-c/mount"));
    assert_eq!(PathBuf::from(&shown.target_path), target);
    assert_eq!(std::fs::metadata(target.join("file")).unwrap().gid(), 4242);
    assert!(cluster.mount("/v").host_path.ends_with("volume-subpaths/v/web/0"));
    // a new kubelet does nothing twice and undoes all of it
    cluster.stop_kubelet().await;
    cluster.start_kubelet().await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.until_in_use(&[]).await;
    let calls: Vec<Call> = driver.calls().into_iter().filter(|c| !matches!(c, Call::Notified(_))).collect();
    let [_, _, Call::Unpublish(hidden), Call::Unstage(unstaged)] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!(hidden.target_path, shown.target_path);
    assert_eq!(unstaged.staging_target_path, staged.staging_target_path);
    driver.leave();
    let without = |list: &[Arc<CSINode>]| list.iter().all(|n| n.spec.drivers.is_empty()).then_some(());
    cluster.until::<CSINode, _>("the driver is gone", without).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_many_volumes_the_node_can_have_is_asked_again_as_often_as_the_driver_wants() {
    let (cluster, driver) = start_with_driver().await;
    // the shortest that there may be
    let rules = json!({"attachRequired": false, "nodeAllocatableUpdatePeriodSeconds": 10});
    cluster.create::<CSIDriver>("", json!({"metadata": {"name": NAME}, "spec": rules})).await;
    driver.books.lock().most = 9;
    let told = |list: &[Arc<CSINode>]| {
        let driver = list.first()?.spec.drivers.first()?.clone();
        (driver.allocatable?.count == Some(9)).then_some(driver.node_id)
    };
    assert_eq!(cluster.until::<CSINode, _>("the new number", told).await, "id-of-n1");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_for_whose_volume_the_node_has_no_room_fails_and_the_driver_is_asked_at_once() {
    let (cluster, driver) = start_with_driver().await;
    let rules = json!({"attachRequired": true, "nodeAllocatableUpdatePeriodSeconds": 3600});
    cluster.create::<CSIDriver>("", json!({"metadata": {"name": NAME}, "spec": rules})).await;
    driver.books.lock().most = 3;
    cluster.claim("c", json!({"csi": {"driver": NAME, "volumeHandle": "vol-1"}}), json!({})).await;
    let sum = Sha256::digest(format!("vol-1{NAME}n1"));
    let name = sum.iter().fold("csi-".to_owned(), |text, byte| format!("{text}{byte:02x}"));
    let attachment = json!({"metadata": {"name": name},
        "spec": {"attacher": NAME, "nodeName": "n1", "source": {"persistentVolumeName": "pv-c"}}});
    cluster.create::<VolumeAttachment>("", attachment).await;
    let error = json!({"message": "all slots are taken", "errorCode": 8, "time": "2026-01-01T00:00:00Z"});
    let status = Patch::Merge(json!({"status": {"attached": false, "attachError": error}}));
    cluster.client.patch_status::<VolumeAttachment>("", &name, &status).await.expect("told");
    let claim = json!({"persistentVolumeClaim": {"claimName": "c"}});
    cluster.create::<Pod>("d", pod(with_volume(claim))).await;
    let p = cluster.until_pod("failed", |p| phase(p) == "Failed").await;
    let status = p.status.clone().unwrap();
    assert_eq!(status.reason.as_deref(), Some("VolumeAttachmentLimitExceeded"));
    let message = "Pod was rejected: Node has reached its volume attachment limit, rejecting pod: volume \"v\": all slots are taken";
    assert_eq!(status.message.as_deref(), Some(message));
    let told = |list: &[Arc<CSINode>]| {
        let count = list.first()?.spec.drivers.first()?.allocatable.as_ref()?.count;
        (count == Some(3)).then_some(())
    };
    cluster.until::<CSINode, _>("the new number", told).await;
    cluster.until_in_use(&[]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clouds_volumes_are_shown_by_the_driver_in_its_plugins_place_and_given_back() {
    const CINDER: &str = "cinder.csi.openstack.org";
    let cluster = Cluster::start().await;
    let driver = Driver::start_as(&cluster.root(), CINDER);
    cluster.until_registered().await;
    let rules = json!({"attachRequired": false});
    cluster.create::<CSIDriver>("", json!({"metadata": {"name": CINDER}, "spec": rules})).await;
    let cinder = |id: &str| json!({"volumeID": id, "fsType": "ext4"});
    cluster.claim("c", json!({"cinder": cinder("of-claim")}), json!({})).await;
    let mut spec = with_volume(json!({"persistentVolumeClaim": {"claimName": "c"}}));
    let own = json!({"name": "own", "cinder": cinder("of-pod")});
    spec["volumes"].as_array_mut().expect("volumes").push(own);
    let p = cluster.create::<Pod>("d", pod(spec)).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    let told: CSINode = cluster.client.get("", "n1").await.expect("the node's drivers");
    let plugins = "kubernetes.io/aws-ebs,kubernetes.io/azure-disk,kubernetes.io/azure-file,kubernetes.io/cinder,\
                   kubernetes.io/gce-pd,kubernetes.io/portworx-volume,kubernetes.io/vsphere-volume";
    let notes = told.metadata.annotations.unwrap_or_default();
    assert_eq!(notes["storage.alpha.kubernetes.io/migrated-plugins"], plugins);
    let series = format!(
        "\nstorage_operation_duration_seconds_count{{migrated=\"true\",operation_name=\"volume_mount\",status=\"success\",\
         volume_plugin=\"kubernetes.io/csi:{CINDER}\"}} "
    );
    assert!(cluster.ask("/metrics").await.contains(&series));
    cluster.delete(None).await;
    cluster.until_gone().await;
    let folder = cluster.root().join(format!("pods/{}/volumes/kubernetes.io~csi", p.metadata.uid.unwrap()));
    let calls = driver.calls();
    for (id, name) in [("of-claim", "pv-c"), ("of-pod", "cinder.csi.openstack.org-of-pod")] {
        let target = folder.join(name).join("mount").display().to_string();
        let staged = |c: &Call| matches!(c, Call::Stage(s) if s.volume_id == id);
        let shown = |c: &Call| matches!(c, Call::Publish(p) if p.volume_id == id && p.target_path == target);
        let hidden =
            |c: &Call| matches!(c, Call::Unpublish(u) if u.volume_id == id && u.target_path == target);
        let unstaged = |c: &Call| matches!(c, Call::Unstage(u) if u.volume_id == id);
        let steps: [&dyn Fn(&Call) -> bool; 4] = [&staged, &shown, &hidden, &unstaged];
        let order: Vec<_> = steps.iter().map(|is| calls.iter().position(*is)).collect();
        assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{id}: {order:?} {calls:?}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_and_a_grown_volume_reach_the_pod() {
    let (cluster, driver) = start_with_driver().await;
    let rules = json!({"attachRequired": false, "volumeLifecycleModes": ["Persistent", "Ephemeral"]});
    cluster.create::<CSIDriver>("", json!({"metadata": {"name": NAME}, "spec": rules})).await;
    let device = json!({"csi": {"driver": NAME, "volumeHandle": "raw"}, "volumeMode": "Block"});
    cluster.claim("raw", device, json!({})).await;
    let grown = json!({"csi": {"driver": NAME, "volumeHandle": "big"}});
    let pending = json!({"capacity": {"storage": "1Gi"},
        "conditions": [{"type": "FileSystemResizePending", "status": "True"}]});
    cluster.claim("big", grown, pending).await;
    let spec = json!({
        "containers": [{"name": "web", "image": "web:1",
            "volumeDevices": [{"name": "raw", "devicePath": "/dev/xvda"}],
            "volumeMounts": [{"name": "big", "mountPath": "/big"}, {"name": "own", "mountPath": "/own"}]}],
        "volumes": [{"name": "raw", "persistentVolumeClaim": {"claimName": "raw"}},
            {"name": "big", "persistentVolumeClaim": {"claimName": "big"}},
            {"name": "own", "csi": {"driver": NAME, "readOnly": true}}]});
    cluster.create::<Pod>("d", pod(spec)).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    let config = cluster.fake.container("web").unwrap().config;
    let [device] = &config.devices[..] else { panic!("{:?}", config.devices) };
    assert_eq!((device.container_path.as_str(), device.permissions.as_str()), ("/dev/xvda", "mrw"));
    assert_eq!(std::fs::read_to_string(&device.host_path).unwrap(), "a device");
    assert!(cluster.mount("/own").readonly);
    let calls = driver.calls();
    let expanded: Vec<_> =
        calls.iter().filter_map(|c| if let Call::Expand(e) = c { Some(e) } else { None }).collect();
    assert_eq!(expanded.len(), 1, "{calls:?}");
    assert_eq!(expanded[0].capacity_range.as_ref().unwrap().required_bytes, 2 << 30);
    let claim: PersistentVolumeClaim = cluster.client.get("d", "big").await.expect("the claim");
    let status = claim.status.unwrap();
    assert_eq!(status.capacity.unwrap()["storage"].0, "2Gi");
    assert!(status.conditions.unwrap_or_default().is_empty());
    let own =
        calls.iter().any(|c| matches!(c, Call::Publish(p) if p.volume_id.starts_with("csi-") && p.readonly));
    assert!(own, "{calls:?}");
    // a pod that is over gives its volumes back though nobody deletes it
    let over = Patch::Merge(json!({"spec": {"activeDeadlineSeconds": 1}}));
    cluster.client.patch::<Pod>("d", "p", &over).await.expect("a deadline");
    cluster.until_pod("over", |p| phase(p) == "Failed").await;
    let released = async {
        while driver.calls().iter().filter(|c| matches!(c, Call::Unpublish(_))).count() < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, released).await.expect("released");
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    let unstaged = driver.calls().iter().filter(|c| matches!(c, Call::Unstage(_))).count();
    assert_eq!(unstaged, 2);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_say_how_full_they_are() {
    let (mut cluster, driver) = start_with_driver().await;
    let rules = json!({"attachRequired": false});
    cluster.create::<CSIDriver>("", json!({"metadata": {"name": NAME}, "spec": rules})).await;
    let folder = cluster.api.folder.path().join("disk");
    std::fs::create_dir(&folder).unwrap();
    let local = json!({"local": {"path": folder}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}}});
    cluster.claim("local", local, json!({})).await;
    cluster.claim("c", json!({"csi": {"driver": NAME, "volumeHandle": "vol-1"}}), json!({})).await;
    let mut spec = with_volume(json!({"persistentVolumeClaim": {"claimName": "c"}}));
    let more = json!([{"name": "l", "persistentVolumeClaim": {"claimName": "local"}},
        {"name": "labels", "downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}}]);
    let more = more.as_array().unwrap().clone();
    spec["volumes"].as_array_mut().unwrap().extend(more);
    cluster.create::<Pod>("d", pod(spec)).await;
    let p = cluster.until_pod("running", |p| running(p, "web")).await;
    let uid = p.metadata.uid.clone().unwrap();
    let target = cluster.root().join(format!("pods/{uid}/volumes/kubernetes.io~csi/pv-c/mount"));
    let line = |name: &str, claim: &str, value: &str| {
        format!("kubelet_volume_stats_{name}{{namespace=\"d\",persistentvolumeclaim=\"{claim}\"}} {value}")
    };
    let check = async |cluster: &Cluster| {
        let metrics = cluster.ask("/metrics").await;
        for wanted in [line("capacity_bytes", "c", "3000\n"), line("inodes_used", "c", "10\n")] {
            assert!(metrics.contains(&wanted), "{wanted}\n{metrics}");
        }
        assert!(metrics.contains(&line("available_bytes", "local", "")), "{metrics}");
    };
    check(&cluster).await;
    let metrics = cluster.ask("/metrics").await;
    for begin in [
        "kubelet_running_pods 1\n",
        "kubelet_running_containers{container_state=\"running\"} 1\n",
        "kubelet_desired_pods{static=\"false\"} 1\n",
        "volume_manager_total_volumes{plugin_name=\"kubernetes.io/persistent-claim\",state=\"actual_state_of_world\"} 2\n",
        "kubelet_runtime_operations_total{operation_type=\"run_podsandbox\"} ",
        "kubelet_runtime_operations_duration_seconds_bucket{operation_type=\"start_container\",le=\"+Inf\"} ",
        "kubelet_pod_start_duration_seconds_count ",
        "kubelet_pod_worker_duration_seconds_bucket{operation_type=\"create\",le=\"0.005\"} ",
        "kubelet_started_containers_total{container_type=\"container\"} ",
        "storage_operation_duration_seconds_count{migrated=\"false\",operation_name=\"volume_mount\",status=\"success\",volume_plugin=\"kubernetes.io/csi:fake.csi.example\"} ",
        "kubelet_certificate_manager_server_ttl_seconds ",
        "kubelet_http_requests_total{long_running=\"false\",method=\"GET\",path=\"metrics\",server_type=\"readwrite\"} ",
        "process_cpu_seconds_total ",
    ] {
        assert!(metrics.contains(&format!("\n{begin}")), "{begin}\n{metrics}");
    }
    let summary: Value = serde_json::from_str(&cluster.ask("/stats/summary").await).unwrap();
    let volumes = summary["pods"][0]["volume"].as_array().unwrap_or_else(|| panic!("{summary}"));
    let of = |name: &str| volumes.iter().find(|v| v["name"] == name).unwrap_or_else(|| panic!("{summary}"));
    assert_eq!(of("v")["pvcRef"], json!({"name": "c", "namespace": "d"}));
    assert_eq!((&of("v")["usedBytes"], &of("v")["inodesFree"]), (&json!(1000), &json!(20)));
    assert!(of("labels")["pvcRef"].is_null() && of("labels")["usedBytes"].as_u64() > Some(0));
    let asked = |driver: &Driver| {
        let of_stats = |call| if let Call::Stats(asked) = call { Some(asked.volume_path) } else { None };
        driver.calls().into_iter().filter_map(of_stats).collect::<Vec<_>>()
    };
    let target = target.display().to_string();
    assert_eq!(asked(&driver), std::slice::from_ref(&target), "once a minute, however many ask");
    // a kubelet that begins anew knows them again
    cluster.stop_kubelet().await;
    cluster.start_kubelet().await;
    let known = async {
        while TcpStream::connect(cluster.address).await.is_err()
            || !cluster.ask("/metrics").await.contains(&line("used_bytes", "c", "1000\n"))
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, known).await.expect("measured again");
    assert_eq!(asked(&driver), [target.clone(), target]);
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    let forgotten = async { while cluster.ask("/metrics").await.contains("kubelet_volume_stats") {} };
    tokio::time::timeout(PATIENCE, forgotten).await.expect("forgotten");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_the_node_keeps_the_group_of_the_first_pod_that_has_it() {
    use std::os::unix::fs::MetadataExt as _;
    let cluster = Cluster::start().await;
    let folder = cluster.api.folder.path().join("disk");
    std::fs::create_dir(&folder).unwrap();
    let local = json!({"local": {"path": folder}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}}});
    cluster.claim("local", local, json!({})).await;
    for (name, group) in [("p", 4242), ("q", 4343)] {
        let mut spec = with_volume(json!({"persistentVolumeClaim": {"claimName": "local"}}));
        spec["securityContext"] = json!({"fsGroup": group});
        let mut pod = pod(spec);
        pod["metadata"]["name"] = json!(name);
        cluster.create::<Pod>("d", pod).await;
        let is = |p: &&Arc<Pod>| p.metadata.name.as_deref() == Some(name) && running(p, "web");
        cluster.until::<Pod, _>("running", |list| list.iter().find(is).cloned()).await;
        assert_eq!(std::fs::metadata(&folder).unwrap().gid(), 4242);
    }
    let text = "The requested fsGroup is 4343, but the volume pv-local has GID 4242. The volume may not be shareable.";
    cluster.until_event("AlreadyMountedVolume", text).await;
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    cluster.client.delete::<Pod>("d", "q", &now).await.unwrap();
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_a_pod_has_is_given_to_no_group_again_when_the_kubelet_was_away() {
    use std::os::unix::fs::MetadataExt as _;
    let mut cluster = Cluster::start().await;
    let folder = cluster.api.folder.path().join("disk");
    std::fs::create_dir(&folder).unwrap();
    let local = json!({"local": {"path": folder}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}}});
    cluster.claim("local", local, json!({})).await;
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "1"}});
    cluster.create::<k8s_openapi::api::core::v1::ConfigMap>("d", map).await;
    let mut spec = with_volume(json!({"persistentVolumeClaim": {"claimName": "local"}}));
    spec["securityContext"] = json!({"fsGroup": 4242});
    spec["volumes"].as_array_mut().unwrap().push(json!({"name": "map", "configMap": {"name": "m"}}));
    cluster.create::<Pod>("d", pod(spec)).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    assert_eq!(std::fs::metadata(&folder).unwrap().gid(), 4242);
    // what the pod does with its files is its own
    std::os::unix::fs::chown(&folder, None, Some(7)).unwrap();
    cluster.stop_kubelet().await;
    let now = DeleteOptions::default();
    cluster.client.delete::<k8s_openapi::api::core::v1::ConfigMap>("d", "m", &now).await.unwrap();
    cluster.start_kubelet().await;
    // all volumes before this one were looked at
    let text = "MountVolume.SetUp failed for volume \"map\" : configmap \"m\" not found";
    cluster.until_event("FailedMount", text).await;
    assert_eq!(std::fs::metadata(&folder).unwrap().gid(), 7);
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_this_nodes_folders_are_shown_and_wrong_ones_say_why() {
    let cluster = Cluster::start().await;
    let folder = cluster.api.folder.path().join("disk");
    std::fs::create_dir(&folder).unwrap();
    let local = json!({"local": {"path": folder}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}}});
    cluster.claim("local", local, json!({})).await;
    let mut spec = with_volume(json!({"persistentVolumeClaim": {"claimName": "local", "readOnly": true}}));
    spec["volumes"].as_array_mut().unwrap().push(json!({"name": "tools", "image": {"reference": "web:1"}}));
    spec["containers"][0]["volumeMounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "tools", "mountPath": "/t"}));
    cluster.create::<Pod>("d", pod(spec)).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    let mount = cluster.mount("/v");
    assert_eq!((PathBuf::from(&mount.host_path), mount.readonly), (folder, true));
    let tools = cluster.mount("/t");
    assert!(tools.readonly && tools.image.is_some_and(|image| !image.image.is_empty()));
    cluster.until_event("Pulled", "web:1").await;
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    let spec = with_volume(json!({"ephemeral": {"volumeClaimTemplate": {"spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}}));
    let loose = json!({"metadata": {"name": "p-v"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    cluster.create::<PersistentVolumeClaim>("d", loose).await;
    cluster.create::<Pod>("d", pod(spec)).await;
    let why =
        "failed to process volumes=[v]: error processing PVC d/p-v: PVC d/p-v was not created for pod d/p";
    cluster.until_event("FailedMount", why).await;
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    let spec = with_volume(json!({"persistentVolumeClaim": {"claimName": "p-v"}}));
    cluster.create::<Pod>("d", pod(spec)).await;
    cluster.until_event("FailedMount", "error processing PVC d/p-v: PVC is not bound").await;
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}
