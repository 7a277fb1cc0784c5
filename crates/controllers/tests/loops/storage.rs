//! Volumes and claims find each other, are protected while they are used, and are given up as their policy says.
use std::sync::Arc;

use client::Patch;
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass, VolumeAttachment, VolumeAttributesClass};
use serde_json::{Value, json};

use crate::hollow::Hollow;

pub fn volume(name: &str, size: &str, change: Value) -> Value {
    let mut spec = json!({"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/srv/v"}});
    for (key, value) in change.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

pub fn claim(name: &str, size: &str, change: Value) -> Value {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}});
    for (key, value) in change.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

/// Waits until the claim has this phase and volume.
async fn claim_is(cluster: &Hollow, name: &str, phase: &str, volume: &str) {
    let is = |c: &PersistentVolumeClaim| {
        c.metadata.name.as_deref() == Some(name)
            && c.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase)
            && c.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default() == volume
    };
    let what = format!("{name} {phase} {volume}");
    cluster.until::<PersistentVolumeClaim>(&what, |l| l.iter().any(|c| is(c))).await;
}

async fn volume_is(cluster: &Hollow, name: &str, phase: &str) -> PersistentVolume {
    let is = |v: &Arc<PersistentVolume>| {
        v.metadata.name.as_deref() == Some(name)
            && v.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase)
    };
    let all = cluster.until::<PersistentVolume>(&format!("{name} {phase}"), |l| l.iter().any(is)).await;
    all.iter().find(|v| is(v)).map(|v| (**v).clone()).expect("volume")
}

async fn said(cluster: &Hollow, about: &str, reason: &str) {
    let what = format!("event {reason} of {about}");
    cluster
        .until::<Event>(&what, |l| {
            l.iter().any(|e| {
                e.involved_object.name.as_deref() == Some(about) && e.reason.as_deref() == Some(reason)
            })
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_bound_to_a_volume_and_released_by_its_end() {
    let mut cluster = Hollow::start().await;
    cluster.create::<PersistentVolume>("", volume("large", "5Gi", json!({}))).await;
    cluster.create::<PersistentVolumeClaim>("d", claim("c", "1Gi", json!({}))).await;
    claim_is(&cluster, "c", "Bound", "large").await;
    let bound = volume_is(&cluster, "large", "Bound").await;
    let notes = bound.metadata.annotations.clone().unwrap_or_default();
    assert_eq!(notes.get("pv.kubernetes.io/bound-by-controller").map(String::as_str), Some("yes"));
    let c = cluster.client.get::<PersistentVolumeClaim>("d", "c").await.expect("claim");
    assert_eq!(json!(c.status.expect("status").capacity), json!({"storage": "5Gi"}));
    // Nothing is free: it waits, and says so; then a volume comes.
    cluster.create::<PersistentVolumeClaim>("d", claim("late", "1Gi", json!({}))).await;
    said(&cluster, "late", "FailedBinding").await;
    // Controllers that begin anew go on.
    cluster.kill_controllers().await;
    cluster.create::<PersistentVolume>("", volume("second", "1Gi", json!({}))).await;
    cluster.start_controllers();
    claim_is(&cluster, "late", "Bound", "second").await;

    // A volume that is deleted stays while it is bound; a claim while a pod uses it.
    cluster.delete::<PersistentVolume>("", "large", "Background").await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
    cluster.create::<Pod>("d", pod).await;
    cluster
        .until::<Pod>("bound", |l| l.iter().any(|p| p.spec.as_ref().is_some_and(|s| s.node_name.is_some())))
        .await;
    cluster.delete::<PersistentVolumeClaim>("d", "c", "Background").await;
    volume_is(&cluster, "large", "Bound").await;
    let c = cluster.client.get::<PersistentVolumeClaim>("d", "c").await.expect("claim");
    assert!(c.metadata.deletion_timestamp.is_some());
    cluster.delete::<Pod>("d", "p", "Background").await;
    cluster
        .until::<PersistentVolume>("large is gone", |l| {
            !l.iter().any(|v| v.metadata.name.as_deref() == Some("large"))
        })
        .await;
    // Retained: who wants the data finds it.
    cluster.delete::<PersistentVolumeClaim>("d", "late", "Background").await;
    volume_is(&cluster, "second", "Released").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_that_cannot_be_deleted_fail_and_lost_ones_are_told() {
    let cluster = Hollow::start().await;
    let doomed = volume("doomed", "1Gi", json!({"persistentVolumeReclaimPolicy": "Delete"}));
    cluster.create::<PersistentVolume>("", doomed).await;
    cluster.create::<PersistentVolumeClaim>("d", claim("c", "1Gi", json!({"volumeName": "doomed"}))).await;
    claim_is(&cluster, "c", "Bound", "doomed").await;
    cluster.delete::<PersistentVolumeClaim>("d", "c", "Background").await;
    let failed = volume_is(&cluster, "doomed", "Failed").await;
    assert_eq!(
        failed.status.and_then(|s| s.message).as_deref(),
        Some("host_path deleter only supports /tmp/.+ but received provided /srv/v")
    );
    let server = json!({"persistentVolumeReclaimPolicy": "Delete", "hostPath": null,
        "nfs": {"server": "files", "path": "/"}});
    cluster.create::<PersistentVolume>("", volume("far", "1Gi", server)).await;
    cluster.create::<PersistentVolumeClaim>("d", claim("f", "1Gi", json!({"volumeName": "far"}))).await;
    claim_is(&cluster, "f", "Bound", "far").await;
    cluster.delete::<PersistentVolumeClaim>("d", "f", "Background").await;
    let failed = volume_is(&cluster, "far", "Failed").await;
    assert_eq!(
        failed.status.and_then(|s| s.message).as_deref(),
        Some("error getting deleter volume plugin for volume \"far\": no deletable volume plugin matched")
    );
    // below /tmp the folder goes, and the volume with it
    let folder = tempfile::Builder::new().tempdir_in("/tmp").expect("a folder");
    std::fs::write(folder.path().join("file"), "1").expect("written");
    let own = json!({"persistentVolumeReclaimPolicy": "Delete", "hostPath": {"path": folder.path()}});
    cluster.create::<PersistentVolume>("", volume("temporary", "1Gi", own)).await;
    cluster.create::<PersistentVolumeClaim>("d", claim("t", "1Gi", json!({"volumeName": "temporary"}))).await;
    claim_is(&cluster, "t", "Bound", "temporary").await;
    cluster.delete::<PersistentVolumeClaim>("d", "t", "Background").await;
    cluster
        .until::<PersistentVolume>("it is gone", |l| {
            !l.iter().any(|v| v.metadata.name.as_deref() == Some("temporary"))
        })
        .await;
    assert!(!folder.path().exists());
    cluster.create::<PersistentVolume>("", volume("small", "1Gi", json!({}))).await;
    cluster.create::<PersistentVolumeClaim>("d", claim("big", "2Gi", json!({"volumeName": "small"}))).await;
    said(&cluster, "big", "VolumeMismatch").await;
    cluster.create::<PersistentVolumeClaim>("d", claim("own", "1Gi", json!({"volumeName": "small"}))).await;
    claim_is(&cluster, "own", "Bound", "small").await;
    // Somebody removes the volume by force.
    cluster.delete::<PersistentVolume>("", "small", "Background").await;
    cluster.merge::<PersistentVolume>("", "small", json!({"metadata": {"finalizers": null}})).await;
    claim_is(&cluster, "own", "Lost", "small").await;
    said(&cluster, "own", "ClaimLost").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_a_class_are_handed_to_its_provisioner_or_wait_for_a_node() {
    let cluster = Hollow::start().await;
    let class = |name: &str, mode: &str, default: &str| {
        json!({"metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": default}},
            "provisioner": "disks.example.com", "volumeBindingMode": mode})
    };
    // Made before there was a default: it gets the class afterwards.
    cluster.create::<PersistentVolumeClaim>("d", claim("open", "1Gi", json!({}))).await;
    cluster.create::<PersistentVolumeClaim>("d", claim("none", "1Gi", json!({"storageClassName": ""}))).await;
    cluster.create::<StorageClass>("", class("fast", "Immediate", "true")).await;
    cluster.create::<StorageClass>("", class("near", "WaitForFirstConsumer", "false")).await;
    let notes = |c: &PersistentVolumeClaim| c.metadata.annotations.clone().unwrap_or_default();
    let handed = |c: &PersistentVolumeClaim| {
        notes(c).get("volume.kubernetes.io/storage-provisioner").map(String::as_str)
            == Some("disks.example.com")
    };
    let named = |c: &PersistentVolumeClaim, name: &str| c.metadata.name.as_deref() == Some(name);
    cluster
        .until::<PersistentVolumeClaim>("handed over", |l| l.iter().any(|c| named(c, "open") && handed(c)))
        .await;
    said(&cluster, "open", "ExternalProvisioning").await;
    // The provisioner's part.
    let uid = cluster.client.get::<PersistentVolumeClaim>("d", "open").await.expect("claim").metadata.uid;
    let mut made = volume(
        "pvc-1",
        "1Gi",
        json!({"storageClassName": "fast", "persistentVolumeReclaimPolicy": "Delete",
        "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "d", "name": "open", "uid": uid}}),
    );
    made["metadata"]["annotations"] = json!({"pv.kubernetes.io/provisioned-by": "disks.example.com"});
    cluster.create::<PersistentVolume>("", made).await;
    claim_is(&cluster, "open", "Bound", "pvc-1").await;
    cluster.delete::<PersistentVolumeClaim>("d", "open", "Background").await;
    // Its provisioner removes it.
    volume_is(&cluster, "pvc-1", "Released").await;

    cluster
        .create::<PersistentVolumeClaim>("d", claim("local", "1Gi", json!({"storageClassName": "near"})))
        .await;
    said(&cluster, "local", "WaitForFirstConsumer").await;
    let chosen = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "n1"}}});
    cluster.merge::<PersistentVolumeClaim>("d", "local", chosen).await;
    cluster
        .until::<PersistentVolumeClaim>("handed over", |l| l.iter().any(|c| named(c, "local") && handed(c)))
        .await;
    cluster
        .create::<PersistentVolumeClaim>("d", claim("typo", "1Gi", json!({"storageClassName": "fats"})))
        .await;
    said(&cluster, "typo", "ProvisioningFailed").await;
    let none = cluster.client.get::<PersistentVolumeClaim>("d", "none").await.expect("claim");
    assert_eq!(none.spec.and_then(|s| s.storage_class_name).as_deref(), Some(""), "asked for none");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_plugin_that_is_no_more_was_to_make_remove_or_grow_is_handed_to_the_driver_in_its_place() {
    const PLUGIN: &str = "kubernetes.io/aws-ebs";
    const DRIVER: &str = "ebs.csi.aws.com";
    const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";
    let cluster = Hollow::start().await;
    let class = json!({"metadata": {"name": "cloud"}, "provisioner": PLUGIN, "allowVolumeExpansion": true});
    cluster.create::<StorageClass>("", class).await;
    let with = |change: Value| {
        let mut change = change;
        change["storageClassName"] = json!("cloud");
        change
    };
    let until_noted = async |name: &str, key: &str, value: Option<&str>| {
        let is = |c: &Arc<PersistentVolumeClaim>| {
            c.metadata.name.as_deref() == Some(name)
                && c.metadata.annotations.as_ref().and_then(|n| n.get(key)).map(String::as_str) == value
        };
        let what = format!("{name}: {key}={value:?}");
        cluster.until::<PersistentVolumeClaim>(&what, |l| l.iter().any(is)).await;
    };
    cluster.create::<PersistentVolumeClaim>("d", claim("new", "1Gi", with(json!({})))).await;
    until_noted("new", "volume.beta.kubernetes.io/storage-provisioner", Some(DRIVER)).await;
    until_noted("new", "volume.kubernetes.io/storage-provisioner", Some(DRIVER)).await;
    until_noted("new", MIGRATED_TO, None).await;
    // of a cluster that had the plugin
    let source = with(json!({"hostPath": null, "awsElasticBlockStore": {"volumeID": "vol-1"},
        "persistentVolumeReclaimPolicy": "Delete", "claimRef": {"namespace": "d", "name": "old"}}));
    let mut disk = volume("disk", "1Gi", source);
    disk["metadata"]["annotations"] = json!({"pv.kubernetes.io/provisioned-by": PLUGIN});
    disk["metadata"]["finalizers"] = json!(["kubernetes.io/pv-controller", "example.com/mine"]);
    cluster.create::<PersistentVolume>("", disk).await;
    let mut old = claim("old", "1Gi", with(json!({"volumeName": "disk"})));
    old["metadata"]["annotations"] = json!({"volume.beta.kubernetes.io/storage-provisioner": PLUGIN});
    cluster.create::<PersistentVolumeClaim>("d", old).await;
    claim_is(&cluster, "old", "Bound", "disk").await;
    until_noted("old", MIGRATED_TO, Some(DRIVER)).await;
    let bound = volume_is(&cluster, "disk", "Bound").await.metadata;
    assert_eq!(bound.annotations.unwrap().get(MIGRATED_TO).map(String::as_str), Some(DRIVER));
    let finalizers = bound.finalizers.unwrap();
    assert!(finalizers.iter().any(|f| f == "example.com/mine"));
    assert!(!finalizers.iter().any(|f| f == "kubernetes.io/pv-controller"));
    let more = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    cluster.merge::<PersistentVolumeClaim>("d", "old", more).await;
    until_noted("old", "volume.kubernetes.io/storage-resizer", Some(DRIVER)).await;
    let told =
        "CSI migration enabled for kubernetes.io/aws-ebs; waiting for external resizer to expand the pvc";
    cluster.until::<Event>("told", |l| l.iter().any(|e| e.message.as_deref() == Some(told))).await;
    // the driver's provisioner removes it
    cluster.delete::<PersistentVolumeClaim>("d", "old", "Background").await;
    volume_is(&cluster, "disk", "Released").await;
    cluster.merge::<PersistentVolume>("", "disk", json!({"metadata": {"labels": {"look": "1"}}})).await;
    volume_is(&cluster, "disk", "Released").await;
    cluster.merge::<PersistentVolume>("", "disk", json!({"metadata": {"finalizers": null}})).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ephemeral_volumes_come_and_go_with_their_pod() {
    let cluster = Hollow::start().await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": claim("", "1Gi", json!({"storageClassName": "x"}))["spec"]});
    let pod = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1"}],
            "volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": template.clone()}}]}})
    };
    // Somebody's own claim stands in the way of one of them.
    cluster.create::<PersistentVolumeClaim>("d", claim("q-v", "1Gi", json!({"storageClassName": "x"}))).await;
    cluster.create::<Pod>("d", pod("p")).await;
    cluster.create::<Pod>("d", pod("q")).await;
    let claims = cluster.until::<PersistentVolumeClaim>("made", |l| l.len() == 2).await;
    let made = claims.iter().find(|c| c.metadata.name.as_deref() == Some("p-v")).expect("claim");
    assert_eq!(made.metadata.labels.as_ref().and_then(|l| l.get("a")).map(String::as_str), Some("b"));
    said(&cluster, "q", "FailedBinding").await;
    cluster.delete::<Pod>("d", "p", "Background").await;
    cluster
        .until::<PersistentVolumeClaim>("p-v is gone", |l| {
            !l.iter().any(|c| c.metadata.name.as_deref() == Some("p-v"))
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_of_attributes_stays_while_a_claim_has_it() {
    let cluster = Hollow::start().await;
    let class =
        json!({"metadata": {"name": "quick"}, "driverName": "d.example.com", "parameters": {"iops": "9"}});
    cluster.create::<VolumeAttributesClass>("", class).await;
    let wanted = json!({"storageClassName": "x", "volumeAttributesClassName": "quick"});
    cluster.create::<PersistentVolumeClaim>("d", claim("c", "1Gi", wanted)).await;
    cluster.until::<PersistentVolumeClaim>("there", |l| !l.is_empty()).await;
    cluster.delete::<VolumeAttributesClass>("", "quick", "Background").await;
    cluster
        .until::<VolumeAttributesClass>("going", |l| {
            l.iter().any(|c| c.metadata.deletion_timestamp.is_some())
        })
        .await;
    let look = Patch::Merge(json!({"metadata": {"labels": {"look": "1"}}}));
    cluster.client.patch::<VolumeAttributesClass>("", "quick", &look).await.expect("still there");
    cluster.delete::<PersistentVolumeClaim>("d", "c", "Background").await;
    cluster.until::<VolumeAttributesClass>("gone", |l| l.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_of_drivers_are_attached_where_their_pods_are_and_detached_afterwards() {
    let cluster = Hollow::start().await;
    let managed = json!({"metadata": {"annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}});
    cluster.merge::<Node>("", "n1", managed).await;
    let disk = json!({"hostPath": null, "csi": {"driver": "disks.example.com", "volumeHandle": "v-1"}});
    cluster.create::<PersistentVolume>("", volume("disk", "1Gi", disk)).await;
    cluster.create::<PersistentVolumeClaim>("d", claim("c", "1Gi", json!({}))).await;
    claim_is(&cluster, "c", "Bound", "disk").await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
    cluster.create::<Pod>("d", pod).await;
    let all = cluster.until::<VolumeAttachment>("asked", |l| l.len() == 1).await;
    assert_eq!((all[0].spec.attacher.as_str(), all[0].spec.node_name.as_str()), ("disks.example.com", "n1"));
    // The attacher's part.
    let own = all[0].metadata.name.clone().expect("name");
    let attached = Patch::Merge(json!({"status": {"attached": true}}));
    cluster.client.patch_status::<VolumeAttachment>("", &own, &attached).await.expect("attached");
    let unique = "kubernetes.io/csi/disks.example.com^v-1";
    let told = |n: &Node| -> Vec<String> {
        let list = n.status.iter().flat_map(|s| s.volumes_attached.iter().flatten());
        list.map(|v| v.name.clone()).collect()
    };
    cluster.until::<Node>("told", |l| l.iter().any(|n| told(n) == [unique])).await;
    said(&cluster, "p", "SuccessfulAttachVolume").await;
    // While it is mounted it stays, also without its pod.
    let mounted = Patch::Merge(json!({"status": {"volumesInUse": [unique]}}));
    cluster.client.patch_status::<Node>("", "n1", &mounted).await.expect("mounted");
    cluster.delete::<Pod>("d", "p", "Background").await;
    cluster.until::<Pod>("no pods", |l| l.is_empty()).await;
    assert!(cluster.client.get::<VolumeAttachment>("", &own).await.is_ok());
    let unmounted = Patch::Merge(json!({"status": {"volumesInUse": null}}));
    cluster.client.patch_status::<Node>("", "n1", &unmounted).await.expect("unmounted");
    cluster.until::<VolumeAttachment>("detached", |l| l.is_empty()).await;
    cluster.until::<Node>("not told", |l| l.iter().all(|n| told(n).is_empty())).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_of_a_driver_that_says_that_it_attaches_nothing_are_detached() {
    let cluster = Hollow::start().await;
    let managed = json!({"metadata": {"annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}});
    cluster.merge::<Node>("", "n1", managed).await;
    let disk = json!({"hostPath": null, "csi": {"driver": "disks.example.com", "volumeHandle": "v-1"}});
    cluster.create::<PersistentVolume>("", volume("disk", "1Gi", disk)).await;
    cluster.create::<PersistentVolumeClaim>("d", claim("c", "1Gi", json!({}))).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
    cluster.create::<Pod>("d", pod).await;
    cluster.until::<VolumeAttachment>("asked", |l| l.len() == 1).await;
    let driver = json!({"metadata": {"name": "disks.example.com"}, "spec": {"attachRequired": false}});
    cluster.create::<CSIDriver>("", driver).await;
    cluster.until::<VolumeAttachment>("detached", |l| l.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clouds_volume_in_a_pod_is_attached_by_the_driver_in_its_plugins_place() {
    let cluster = Hollow::start().await;
    let managed = json!({"metadata": {"annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}});
    cluster.merge::<Node>("", "n1", managed.clone()).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}],
        "volumes": [{"name": "v", "awsElasticBlockStore": {"volumeID": "aws://us-east-1a/vol-1", "fsType": "ext4"}}]}});
    cluster.create::<Pod>("d", pod).await;
    let all = cluster.until::<VolumeAttachment>("asked", |l| l.len() == 1).await;
    let spec = &all[0].spec;
    assert_eq!((spec.attacher.as_str(), spec.node_name.as_str()), ("ebs.csi.aws.com", "n1"));
    assert_eq!(spec.source.persistent_volume_name, None);
    let source = json!(spec.source.inline_volume_spec);
    let expected = json!({"driver": "ebs.csi.aws.com", "volumeHandle": "vol-1", "fsType": "ext4",
        "volumeAttributes": {"partition": "0"}});
    assert_eq!((&source["csi"], &source["accessModes"]), (&expected, &json!(["ReadWriteOnce"])));
    let own = all[0].metadata.name.clone().expect("name");
    let attached = Patch::Merge(json!({"status": {"attached": true}}));
    cluster.client.patch_status::<VolumeAttachment>("", &own, &attached).await.expect("attached");
    let told = |n: &Node| -> Vec<String> {
        let list = n.status.iter().flat_map(|s| s.volumes_attached.iter().flatten());
        list.map(|v| v.name.clone()).collect()
    };
    let unique = "kubernetes.io/csi/ebs.csi.aws.com^vol-1";
    cluster.until::<Node>("told", |l| l.iter().any(|n| told(n) == [unique])).await;
    let message = "AttachVolume.Attach succeeded for volume \"ebs.csi.aws.com-vol-1\" ";
    cluster.until::<Event>("told", |l| l.iter().any(|e| e.message.as_deref() == Some(message))).await;
    // one disk, though a claim has it too
    let source = json!({"hostPath": null, "awsElasticBlockStore": {"volumeID": "vol-1"}});
    cluster.create::<PersistentVolume>("", volume("disk", "1Gi", source)).await;
    cluster.create::<PersistentVolumeClaim>("d", claim("c", "1Gi", json!({"volumeName": "disk"}))).await;
    claim_is(&cluster, "c", "Bound", "disk").await;
    cluster
        .create::<Node>(
            "",
            json!({"metadata": {"name": "n2", "annotations": managed["metadata"]["annotations"]}}),
        )
        .await;
    let other = json!({"metadata": {"name": "q"}, "spec": {"nodeName": "n2", "containers": [{"name": "c", "image": "i:1"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
    cluster.create::<Pod>("d", other).await;
    said(&cluster, "q", "FailedAttachVolume").await;
    cluster.delete::<Pod>("d", "q", "Background").await;
    cluster.until::<Pod>("gone", |l| l.iter().all(|p| p.metadata.name.as_deref() != Some("q"))).await;
    cluster.delete::<Pod>("d", "p", "Background").await;
    cluster.until::<VolumeAttachment>("detached", |l| l.is_empty()).await;
    cluster.until::<Node>("not told", |l| l.iter().all(|n| told(n).is_empty())).await;
    cluster.stop().await;
}
