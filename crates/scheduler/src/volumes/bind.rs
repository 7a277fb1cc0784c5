//! Carries out what was decided about a pod's volumes, before the pod is bound: volumes get their claims, claims their
//! node, then the binding controller or a provisioner does its part, which is waited for.
use std::collections::HashSet;
use std::time::Duration;

use client::{Client, Patch};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use serde_json::json;

use super::{BOUND_BY_CONTROLLER, Decisions, SELECTED_NODE, is_bound, matching, volume_name};
use crate::snapshot::NodeInfo;

/// Why volumes were not bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The API refused.
    #[error("{0}")]
    Api(#[from] client::Error),
    /// The claim or volume is gone.
    #[error("{0} is gone")]
    Gone(String),
    /// The provisioner gave up on the node: another has to be chosen.
    #[error("provisioning failed for PVC {0:?}")]
    Provisioning(String),
    /// The provisioner made a volume that the node does not reach.
    #[error("pv {0:?} node affinity doesn't match node {1:?}")]
    Affinity(String, String),
    /// It took too long.
    #[error("binding volumes: timed out waiting for the condition")]
    Timeout,
}

fn split(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

/// Writes the decisions, then waits until all of the pod's claims are bound.
pub(crate) async fn bind(
    client: &Client,
    decisions: &Decisions,
    node: &str,
    patience: Duration,
) -> Result<(), BindError> {
    let claims = client.caches().of::<PersistentVolumeClaim>();
    let volumes = client.caches().of::<PersistentVolume>();
    let mut changes = claims.subscribe();
    for (volume, key) in &decisions.bind {
        let (ns, name) = split(key);
        let claim = claims.get(ns, name).ok_or_else(|| BindError::Gone(format!("claim {key}")))?;
        let known = volumes.get("", volume).ok_or_else(|| BindError::Gone(format!("volume {volume}")))?;
        let ours = known.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).is_none();
        let mut patch = json!({
            "metadata": {"resourceVersion": known.metadata.resource_version},
            "spec": {"claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": ns, "name": name,
                "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version,
            }},
        });
        if ours {
            patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
        }
        client.patch::<PersistentVolume>("", volume, &Patch::Merge(patch)).await?;
    }
    for key in &decisions.provision {
        let (ns, name) = split(key);
        let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
        client.patch::<PersistentVolumeClaim>(ns, name, &Patch::Merge(patch)).await?;
    }
    let waits = async {
        // The caches may lag behind our own writes: a missing annotation means failure only after it was seen.
        let mut seen: HashSet<&str> = HashSet::new();
        loop {
            let mut open = false;
            for key in decisions.bind.iter().map(|(_, key)| key).chain(&decisions.provision) {
                let (ns, name) = split(key);
                let claim = claims.get(ns, name).ok_or_else(|| BindError::Gone(format!("claim {key}")))?;
                if is_bound(&claim) {
                    check_reach(client, &claim, node)?;
                    continue;
                }
                open = true;
                let selected = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE));
                if selected.is_some_and(|s| s == node) {
                    seen.insert(key);
                } else if decisions.provision.contains(key) && seen.contains(key.as_str()) {
                    return Err(BindError::Provisioning(name.to_owned()));
                }
            }
            if !open {
                return Ok(());
            }
            if changes.next().await.is_none() {
                return Err(BindError::Timeout);
            }
        }
    };
    tokio::time::timeout(patience, waits).await.unwrap_or(Err(BindError::Timeout))
}

/// A provisioner may not have heeded the node.
fn check_reach(client: &Client, claim: &PersistentVolumeClaim, node: &str) -> Result<(), BindError> {
    let volume = client.caches().of::<PersistentVolume>().get("", volume_name(claim));
    let object = client.caches().of::<Node>().get("", node);
    if let (Some(volume), Some(object)) = (volume, object)
        && !matching::reaches(&volume, &NodeInfo::of(&object))
    {
        return Err(BindError::Affinity(volume_name(claim).to_owned(), node.to_owned()));
    }
    Ok(())
}
