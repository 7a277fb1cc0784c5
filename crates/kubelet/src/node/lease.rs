//! The Node's Lease: the sign of life that others wait for. It is given whatever the runtime, the disks and the status do
//! meanwhile.
//!
//! Rule: Kubernetes documentation, "Nodes" (heartbeats), "Leases".

use std::time::Duration;

use client::queue::Backoff;
use client::{Client, Error};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use tokio_util::sync::CancellationToken;

/// Where the Leases of nodes are.
const NAMESPACE: &str = "kube-node-lease";
/// A renewal that failed is tried again after this, and later ever more seldom.
const AGAIN: Duration = Duration::from_millis(200);

/// The Lease of this machine's Node.
pub struct NodeLease {
    /// The API.
    pub client: Client,
    /// The node's name.
    pub name: String,
    /// So long it holds.
    pub seconds: i32,
}

impl NodeLease {
    /// Renews it once in a `period` until `stop`.
    pub async fn run(self, period: Duration, stop: CancellationToken) {
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut again = Backoff::new(AGAIN.min(period), period);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let renewed = tokio::select! {
                () = stop.cancelled() => return,
                renewed = self.renew() => renewed,
            };
            match renewed {
                Ok(()) => again.reset(),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "node lease not renewed");
                    tick.reset_after(again.next());
                }
            }
        }
    }

    async fn renew(&self) -> Result<(), Error> {
        let now = MicroTime(Timestamp::now());
        match self.client.get::<Lease>(NAMESPACE, &self.name).await {
            Ok(mut lease) => {
                let spec = lease.spec.get_or_insert_default();
                spec.holder_identity = Some(self.name.clone());
                spec.lease_duration_seconds = Some(self.seconds);
                spec.renew_time = Some(now);
                self.client.update(NAMESPACE, &lease).await.map(drop)
            }
            Err(error) if error.is_not_found() => {
                let node: Node = self.client.get("", &self.name).await?;
                let owner = OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: self.name.clone(),
                    uid: node.metadata.uid.unwrap_or_default(),
                    ..OwnerReference::default()
                };
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.name.clone()),
                        owner_references: Some(vec![owner]),
                        ..ObjectMeta::default()
                    },
                    spec: Some(LeaseSpec {
                        holder_identity: Some(self.name.clone()),
                        lease_duration_seconds: Some(self.seconds),
                        renew_time: Some(now),
                        ..LeaseSpec::default()
                    }),
                };
                self.client.create(NAMESPACE, &lease).await.map(drop)
            }
            Err(error) => Err(error),
        }
    }
}
