//! Aggregated cluster roles.
use k8s_openapi::api::rbac::v1::ClusterRole;
use serde_json::{Value, json};

use crate::hollow::Hollow;

pub fn resources(role: &ClusterRole) -> Vec<String> {
    role.rules.iter().flatten().flat_map(|r| r.resources.clone().unwrap_or_default()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aggregated_role_follows_the_roles_it_selects() {
    let cluster = Hollow::start().await;
    let part = |name: &str, resource: &str| -> Value {
        json!({"metadata": {"name": name, "labels": {"to": "mine"}},
            "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]})
    };
    let whole = json!({"metadata": {"name": "mine"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "mine"}}]},
        "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["*"]}]});
    cluster.create::<ClusterRole>("", part("one", "pods")).await;
    cluster.create::<ClusterRole>("", whole).await;
    let has = |want: &'static [&'static str]| {
        move |l: &[std::sync::Arc<ClusterRole>]| {
            l.iter().any(|r| r.metadata.name.as_deref() == Some("mine") && resources(r) == want)
        }
    };
    cluster.until::<ClusterRole>("rules of one", has(&["pods"])).await;
    cluster.create::<ClusterRole>("", part("two", "services")).await;
    cluster.until::<ClusterRole>("rules of both", has(&["pods", "services"])).await;
    cluster.delete::<ClusterRole>("", "one", "Background").await;
    cluster.until::<ClusterRole>("rules of two", has(&["services"])).await;
    cluster.delete::<ClusterRole>("", "two", "Background").await;
    cluster.until::<ClusterRole>("no rules", has(&[])).await;
    // The default roles are whole.
    let named =
        |n: &'static str| move |r: &&std::sync::Arc<ClusterRole>| r.metadata.name.as_deref() == Some(n);
    cluster
        .until::<ClusterRole>("admin", |l| {
            l.iter().find(named("admin")).is_some_and(|r| resources(r).iter().any(|r| r == "pods/exec"))
        })
        .await;
    cluster.stop().await;
}
