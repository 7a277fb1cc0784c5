//! ServiceCIDRs are ready while they stay, and stay while an address needs them.
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use serde_json::json;

use crate::hollow::Hollow;

fn ready(name: &'static str, status: &'static str) -> impl Fn(&[std::sync::Arc<ServiceCIDR>]) -> bool {
    move |l| {
        l.iter().filter(|c| c.metadata.name.as_deref() == Some(name)).any(|c| {
            let conditions = c.status.iter().flat_map(|s| s.conditions.iter().flatten());
            conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == status)
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_stays_while_an_address_needs_it() {
    let cluster = Hollow::start().await;
    let range = |name: &str, cidr: &str| json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}});
    cluster.create::<ServiceCIDR>("", range("more", "10.97.0.0/24")).await;
    cluster.until::<ServiceCIDR>("ready", ready("more", "True")).await;
    let address = json!({"metadata": {"name": "10.97.0.5"},
        "spec": {"parentRef": {"resource": "services", "namespace": "d", "name": "s"}}});
    cluster.create::<IPAddress>("", address).await;
    cluster
        .until::<IPAddress>("given", |l| l.iter().any(|a| a.metadata.name.as_deref() == Some("10.97.0.5")))
        .await;
    cluster.delete::<ServiceCIDR>("", "more", "Background").await;
    cluster.until::<ServiceCIDR>("not ready", ready("more", "False")).await;
    // A wider range has the address too.
    cluster.clock.advance(60);
    cluster.create::<ServiceCIDR>("", range("wide", "10.97.0.0/16")).await;
    cluster
        .until::<ServiceCIDR>("gone", |l| !l.iter().any(|c| c.metadata.name.as_deref() == Some("more")))
        .await;
    cluster.stop().await;
}
