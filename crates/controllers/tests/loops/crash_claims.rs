//! The crash test of claims for volumes and devices, of what protects them, of quotas, and of what a namespace is furnished with.
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, ResourceQuota, ServiceAccount,
};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use serde_json::{Value, json};

use crate::crash::{Story, at_every_write};
use crate::hollow::Hollow;

/// A pod with claims of both kinds goes with its claims, one with the same claims stays; a namespace is made.
pub struct Claims;

fn pod(name: &str) -> Value {
    let own = json!({"metadata": {}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
        "resources": {"requests": {"storage": "1Ti"}}}});
    json!({"metadata": {"name": name}, "spec": {
        "containers": [{"name": "c", "image": "i:1"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": format!("of-{name}")}},
            {"name": "e", "ephemeral": {"volumeClaimTemplate": own}}],
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}]}})
}

fn is_named(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta, name: &str) -> bool {
    metadata.name.as_deref() == Some(name)
}

impl Story for Claims {
    const WRITERS: &'static [&'static str] = &[
        "persistent-volume-binder",
        "pvc-protection-controller",
        "ephemeral-volume-controller",
        "resource-claim-controller",
        "resourcequota-controller",
        "service-account-controller",
        "root-ca-cert-publisher",
    ];

    async fn create(cluster: &Hollow) {
        let quota = json!({"metadata": {"name": "q"},
            "spec": {"hard": {"pods": "9", "persistentvolumeclaims": "9", "count/configmaps": "9"}}});
        cluster.create::<ResourceQuota>("d", quota).await;
        let devices = json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu.example.com"}}]}});
        let template = json!({"metadata": {"name": "t"}, "spec": {"spec": devices}});
        cluster.create::<ResourceClaimTemplate>("d", template).await;
        for name in ["goes", "stays"] {
            let class = json!(format!("class-{name}"));
            let volume = json!({"metadata": {"name": name}, "spec": {"storageClassName": class, "hostPath": {"path": "/srv/v"},
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}});
            cluster.create::<PersistentVolume>("", volume).await;
            let claim = json!({"metadata": {"name": format!("of-{name}")}, "spec": {"storageClassName": class,
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
            cluster.create::<PersistentVolumeClaim>("d", claim).await;
            cluster.create::<Pod>("d", pod(name)).await;
        }
    }

    async fn up(cluster: &Hollow) {
        cluster.until::<ResourceClaim>("claims for devices", |l| l.len() == 2).await;
        cluster.until::<PersistentVolumeClaim>("claims for volumes", |l| l.len() == 4).await;
    }

    async fn change(cluster: &Hollow) {
        cluster.delete::<PersistentVolumeClaim>("d", "of-goes", "Background").await;
        cluster.delete::<Pod>("d", "goes", "Background").await;
        cluster.create::<Namespace>("", json!({"metadata": {"name": "x"}})).await;
    }

    async fn end(cluster: &Hollow, what: &str) {
        let pods = cluster
            .until::<Pod>(what, |l| {
                let told = |p: &Pod| p.status.as_ref().is_some_and(|s| s.resource_claim_statuses.is_some());
                l.len() == 1 && told(&l[0])
            })
            .await;
        let status = pods[0].status.clone().unwrap_or_default().resource_claim_statuses.unwrap_or_default();
        let devices = cluster.until::<ResourceClaim>(what, |l| l.len() == 1).await;
        assert_eq!(status[0].resource_claim_name, devices[0].metadata.name, "{what}");
        let phase =
            |c: &PersistentVolumeClaim| c.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
        cluster
            .until::<PersistentVolumeClaim>(what, |l| {
                let is = |name: &str, wanted: &str| {
                    l.iter().any(|c| {
                        let held = c.metadata.finalizers.as_ref().is_some_and(|f| !f.is_empty());
                        is_named(&c.metadata, name) && phase(c) == wanted && held
                    })
                };
                l.len() == 2 && is("of-stays", "Bound") && is("stays-e", "Pending")
            })
            .await;
        // a volume whose claim went before they met is still free
        cluster
            .until::<PersistentVolume>(what, |l| {
                let is = |name: &str, wanted: &[&str]| {
                    let phase = |v: &PersistentVolume| v.status.as_ref().and_then(|s| s.phase.clone());
                    let ours = l.iter().find(|v| is_named(&v.metadata, name)).and_then(|v| phase(v));
                    ours.is_some_and(|p| wanted.contains(&p.as_str()))
                };
                is("stays", &["Bound"]) && is("goes", &["Released", "Available"])
            })
            .await;
        cluster
            .until::<ResourceQuota>(what, |l| {
                let used = l[0].status.as_ref().and_then(|s| s.used.clone()).unwrap_or_default();
                json!(used) == json!({"pods": "1", "persistentvolumeclaims": "2", "count/configmaps": "1"})
            })
            .await;
        let in_x = |namespace: &Option<String>| namespace.as_deref() == Some("x");
        cluster
            .until::<ServiceAccount>(what, |l| {
                l.iter().any(|a| in_x(&a.metadata.namespace) && is_named(&a.metadata, "default"))
            })
            .await;
        cluster
            .until::<ConfigMap>(what, |l| {
                l.iter().any(|m| in_x(&m.metadata.namespace) && is_named(&m.metadata, "kube-root-ca.crt"))
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_leaves_no_claim_twice_and_none_unprotected() {
    at_every_write::<Claims>(19).await;
}
