//! The crash test of what goes when its time has come or nobody uses it: jobs that ended, groups of pods, classes of attributes,
//! pods on devices that are broken.
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::resource::v1::ResourceSlice;
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use serde_json::json;

use crate::crash::{Story, at_every_write};
use crate::devices::{broken, slice, with_device};
use crate::hollow::Hollow;
use crate::jobs::condition;
use crate::storage::claim;

/// A job with a time to live, a group with a pod, a class with a claim and a pod with a tainted device: all go.
pub struct Ends;

impl Story for Ends {
    const WRITERS: &'static [&'static str] = &[
        "ttl-after-finished-controller",
        "podgroup-protection-controller",
        "volumeattributesclass-protection-controller",
        "device-taint-eviction-controller",
        "job-controller",
    ];

    fn options() -> apiserver::Options {
        let gates = "GenericWorkload=true,GangScheduling=true".parse().expect("gates");
        apiserver::Options { feature_gates: gates, ..Default::default() }
    }

    fn prepare(cluster: &mut Hollow) {
        cluster.config.pod_groups = true;
        // Nodes are not what this is about.
        cluster.config.node_monitor_grace_period = std::time::Duration::from_hours(1_000_000);
    }

    async fn create(cluster: &Hollow) {
        let template = json!({"metadata": {"labels": {"ends": "1"}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}});
        let job = json!({"metadata": {"name": "brief"}, "spec": {"completions": 2, "parallelism": 2,
            "ttlSecondsAfterFinished": 300, "template": template}});
        cluster.create::<Job>("d", job).await;
        let group =
            json!({"metadata": {"name": "g"}, "spec": {"schedulingPolicy": {"gang": {"minCount": 1}}}});
        cluster.create::<PodGroup>("d", group).await;
        let member = json!({"metadata": {"name": "member"}, "spec": {"containers": [{"name": "c", "image": "i:1"}],
            "schedulingGroup": {"podGroupName": "g"}}});
        cluster.create::<Pod>("d", member).await;
        let class = json!({"metadata": {"name": "quick"}, "driverName": "d.example.com", "parameters": {"iops": "9"}});
        cluster.create::<VolumeAttributesClass>("", class).await;
        let wanted = json!({"storageClassName": "x", "volumeAttributesClassName": "quick"});
        cluster.create::<PersistentVolumeClaim>("d", claim("c", "1Gi", wanted)).await;
        cluster.create::<ResourceSlice>("", slice(broken())).await;
        with_device(cluster, "leaves", "d0", json!([])).await;
    }

    async fn up(cluster: &Hollow) {
        cluster.until::<Job>("done", |l| l.iter().any(|j| condition(j, "Complete").is_some())).await;
    }

    async fn change(cluster: &Hollow) {
        cluster.delete::<PodGroup>("d", "g", "Background").await;
        cluster.delete::<VolumeAttributesClass>("", "quick", "Background").await;
        cluster.delete::<Pod>("d", "member", "Background").await;
        cluster.delete::<PersistentVolumeClaim>("d", "c", "Background").await;
    }

    async fn end(cluster: &Hollow, what: &str) {
        // Not before it is done, and not before its time.
        cluster.until::<Job>(what, |l| l.iter().all(|j| condition(j, "Complete").is_some())).await;
        let minute = async || cluster.clock.pass(60);
        cluster.until_in_time::<Job>(what, |l| l.is_empty(), minute).await;
        cluster.until::<Pod>(what, |l| l.is_empty()).await;
        cluster.until::<PodGroup>(what, |l| l.is_empty()).await;
        cluster.until::<VolumeAttributesClass>(what, |l| l.is_empty()).await;
        cluster.until::<PersistentVolumeClaim>(what, |l| l.is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_leaves_nothing_whose_time_has_come() {
    at_every_write::<Ends>(7).await;
}
