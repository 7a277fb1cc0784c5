//! The crash test of volumes that are attached to nodes and detached, and of volumes' protection.
use client::{Change, Client, Patch};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use serde_json::json;

use crate::crash::{Story, at_every_write};
use crate::hollow::Hollow;
use crate::storage::{claim, volume};

/// Of two pods with a disk each one goes; a volume that nobody has is deleted.
pub struct Volumes;

/// The part of a driver's attacher: it attaches at once.
async fn attacher(client: Client) {
    let mut changes = client.caches().of::<VolumeAttachment>().subscribe();
    while let Some(change) = changes.next().await {
        let (Change::Added(new) | Change::Modified { new, .. }) = change else { continue };
        if new.metadata.deletion_timestamp.is_some() || is_attached(&new) {
            continue;
        }
        let name = new.metadata.name.clone().unwrap_or_default();
        let attached =
            Patch::Merge(json!({"metadata": {"uid": new.metadata.uid}, "status": {"attached": true}}));
        // What is gone meanwhile needs no attaching.
        let _ = client.patch_status::<VolumeAttachment>("", &name, &attached).await;
    }
}

fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|s| s.attached)
}

async fn attached(cluster: &Hollow, what: &str, want: &[&str]) {
    let disks = |l: &[std::sync::Arc<VolumeAttachment>]| {
        let mut all: Vec<_> = l.iter().filter(|a| is_attached(a)).collect();
        all.sort_by_key(|a| a.spec.source.persistent_volume_name.clone());
        l.len() == want.len()
            && all
                .iter()
                .map(|a| a.spec.source.persistent_volume_name.as_deref())
                .eq(want.iter().map(|w| Some(*w)))
    };
    cluster.until::<VolumeAttachment>(what, disks).await;
    let told = |n: &Node| {
        let list = n.status.iter().flat_map(|s| s.volumes_attached.iter().flatten());
        let mut names: Vec<_> = list.map(|v| v.name.clone()).collect();
        names.sort();
        names == want.iter().map(|w| format!("kubernetes.io/csi/disks.example.com^{w}")).collect::<Vec<_>>()
    };
    cluster.until::<Node>(what, |l| l.iter().all(|n| told(n))).await;
}

impl Story for Volumes {
    const WRITERS: &'static [&'static str] =
        &["attachdetach-controller", "pv-protection-controller", "pvc-protection-controller"];

    fn prepare(cluster: &mut Hollow) {
        cluster.spawn(attacher(cluster.client.clone()));
    }

    async fn create(cluster: &Hollow) {
        let managed = json!({"metadata": {"annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}});
        cluster.merge::<Node>("", "n1", managed).await;
        cluster
            .create::<PersistentVolume>("", volume("spare", "1Ti", json!({"storageClassName": "spare"})))
            .await;
        for name in ["goes", "stays"] {
            let disk = json!({"hostPath": null, "storageClassName": name,
                "csi": {"driver": "disks.example.com", "volumeHandle": name}});
            cluster.create::<PersistentVolume>("", volume(name, "1Gi", disk)).await;
            let class = json!({"storageClassName": name});
            cluster.create::<PersistentVolumeClaim>("d", claim(name, "1Gi", class)).await;
            let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1"}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": name}}]}});
            cluster.create::<Pod>("d", pod).await;
        }
    }

    async fn up(cluster: &Hollow) {
        attached(cluster, "both", &["goes", "stays"]).await;
    }

    async fn change(cluster: &Hollow) {
        cluster.delete::<PersistentVolumeClaim>("d", "goes", "Background").await;
        cluster.delete::<Pod>("d", "goes", "Background").await;
        cluster.delete::<PersistentVolume>("", "spare", "Background").await;
    }

    async fn end(cluster: &Hollow, what: &str) {
        cluster.until::<Pod>(what, |l| l.len() == 1).await;
        cluster.until::<PersistentVolumeClaim>(what, |l| l.len() == 1).await;
        cluster.until::<PersistentVolume>(what, |l| l.len() == 2).await;
        attached(cluster, what, &["stays"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_leaves_attached_what_a_pod_uses_and_nothing_else() {
    at_every_write::<Volumes>(7).await;
}
