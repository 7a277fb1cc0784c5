//! Claim protection: a claim that is being deleted stays while a pod that has a node uses it.
//!
//! Rule: Kubernetes documentation, "Storage Object in Use Protection". Before the finalizer goes, pods are read afresh: the
//! cache may not show yet who began to use the claim.
use client::{Cache, Change, ListOptions};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use crate::finalizers;
use crate::ownership::{name, namespace};
use crate::pod_claims::{claim_name, claim_names, is_for, volumes};
use crate::pods;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};

const FINALIZER: &str = "kubernetes.io/pvc-protection";

struct Controller {
    context: Context,
    claims: Cache<PersistentVolumeClaim>,
    pods: Cache<Pod>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (claims, pods) = (caches.of::<PersistentVolumeClaim>(), caches.of::<Pod>());
    let controller = Controller { context: context.clone(), claims: claims.clone(), pods: pods.clone() };
    Runner::new(&context, controller)
        .on(&claims, |_, change| match change {
            Change::Added(claim) | Change::Modified { new: claim, .. } if wants(claim).is_some() => {
                Some(ObjectKey::of(&claim.metadata))
            }
            _ => None,
        })
        .on(&pods, |c: &Controller, change| {
            let pod = change.object();
            let lets_go = matches!(change, Change::Deleted(_)) || is_shut_down(pod);
            let names = if lets_go { claim_names(pod) } else { Vec::new() };
            let ns = namespace(&pod.metadata);
            let going = |n: &String| c.claims.get(ns, n).is_some_and(|claim| wants(&claim).is_some());
            names.iter().filter(|n| going(n)).map(|n| ObjectKey::new(ns, n)).collect::<Vec<_>>()
        })
        .run(1)
        .await;
}

/// What is to be done about the finalizer, if anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Add,
    RemoveUnlessUsed,
}

fn wants(claim: &PersistentVolumeClaim) -> Option<Want> {
    match (claim.metadata.deletion_timestamp.is_some(), finalizers::has(&claim.metadata, FINALIZER)) {
        (false, false) => Some(Want::Add),
        (true, true) => Some(Want::RemoveUnlessUsed),
        _ => None,
    }
}

/// Whether the kubelet has ended all of the pod.
fn is_shut_down(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && pod.metadata.deletion_grace_period_seconds == Some(0)
}

/// A pod without a node will not be started with a claim that is being deleted.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    !pods::node_name(pod).is_empty()
        && volumes(pod).any(|volume| {
            let named = claim_name(pod, volume).as_deref() == Some(name(&claim.metadata));
            named && (volume.persistent_volume_claim.is_some() || !is_shut_down(pod) && is_for(claim, pod))
        })
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(claim) = self.claims.get(&key.namespace, &key.name) else { return Ok(Outcome::Settled) };
        let client = &self.context.client;
        match wants(&claim) {
            None => {}
            Some(Want::Add) => finalizers::add(client, &*claim, FINALIZER).await?,
            Some(Want::RemoveUnlessUsed) => {
                // The end of a pod that uses it brings the key back.
                if self.pods.list_ns(&key.namespace).iter().any(|p| uses(p, &claim)) {
                    return Ok(Outcome::Settled);
                }
                let live = client.list::<Pod>(&key.namespace, &ListOptions::default()).await?;
                if live.iter().any(|p| uses(p, &claim)) {
                    return Ok(Outcome::Retry);
                }
                finalizers::remove(client, &*claim, FINALIZER).await?;
            }
        }
        Ok(Outcome::Settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value, meta: Value) -> Pod {
        let mut pod = json!({"metadata": meta, "spec": spec});
        pod["metadata"]["name"] = json!("p");
        pod["metadata"]["uid"] = json!("u");
        pod["spec"]["containers"] = json!([]);
        serde_json::from_value(pod).expect("pod")
    }

    #[test]
    fn a_claim_is_used_by_pods_that_have_a_node() {
        let owned = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]);
        let claim = |name: &str, owners: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": owners}}))
                .expect("claim")
        };
        let named = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
        let on = |volumes: &Value| json!({"nodeName": "n", "volumes": volumes});
        assert!(uses(&pod(on(&named), json!({})), &claim("c", json!([]))));
        assert!(!uses(&pod(on(&named), json!({})), &claim("d", json!([]))));
        assert!(!uses(&pod(json!({"volumes": named}), json!({})), &claim("c", json!([]))));
        let made = json!([{"name": "v", "ephemeral": {}}]);
        assert!(uses(&pod(on(&made), json!({})), &claim("p-v", owned.clone())));
        assert!(!uses(&pod(on(&made), json!({})), &claim("p-v", json!([]))), "another's claim");
        let ended = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0});
        assert!(!uses(&pod(on(&made), ended.clone()), &claim("p-v", owned)));
        assert!(uses(&pod(on(&named), ended), &claim("c", json!([]))), "until the pod itself is gone");
    }
}
