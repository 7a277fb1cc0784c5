//! Writes what was decided about a pod's claims, before the pod is bound: the devices, and that the claim is reserved.
use std::time::Duration;

use client::{Client, DeleteOptions, Error, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::extended::Made;
use super::needs::is_reserved_for;
use super::readiness::{Readiness, has_conditions, readiness};
use super::{FINALIZER, Given, allocation};

/// Others write to claims, too.
const ATTEMPTS: usize = 5;

/// Why a claim was not given its devices.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The API refused.
    #[error("{0}")]
    Api(#[from] Error),
    /// It was given other devices meanwhile, or lost those it had.
    #[error("claim {0} got allocated elsewhere in the meantime")]
    Elsewhere(String),
    /// Its devices will not be ready.
    #[error("{0}")]
    NotReady(String),
    /// They were not ready in time.
    #[error("device binding timeout")]
    Timeout,
}

fn split(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

/// What was written about a pod's claims.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Claims whose devices are to be made ready first.
    pub(crate) later: Vec<ResourceClaim>,
    /// What was made for extended resources: it is of no use to a pod that is not bound.
    pub(crate) made: Option<ResourceClaim>,
}

/// Gives the claims their devices and reserves them for the pod. On failure nothing that was made stays.
pub(crate) async fn bind(client: &Client, given: &Given, pod: &Pod) -> Result<Written, ClaimError> {
    let mut written = Written::default();
    for (key, new) in &given.claims {
        let claim = reserved(client, key, new.as_deref(), pod).await?;
        if has_conditions(&claim) {
            written.later.push(claim);
        }
    }
    if let Some(made) = &given.made {
        let claim = make(client, made, pod).await?;
        if has_conditions(&claim) {
            written.later.push(claim.clone());
        }
        written.made = Some(claim);
    }
    Ok(written)
}

/// Reserves the claim for the pod, whoever else writes to it meanwhile.
async fn reserved(
    client: &Client,
    key: &str,
    new: Option<&AllocationResult>,
    pod: &Pod,
) -> Result<ResourceClaim, ClaimError> {
    let mut attempt = 0;
    loop {
        match reserve(client, key, new, pod).await {
            Err(ClaimError::Api(error)) if error.is_conflict() && attempt < ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

/// Makes the claim for the pod's extended resources, and says in the pod's status how its containers use it.
async fn make(client: &Client, made: &Made, pod: &Pod) -> Result<ResourceClaim, ClaimError> {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    let ns = part(&pod.metadata.namespace);
    let claim = client.create(&ns, &made.claim).await?;
    let finish = async {
        let name = part(&claim.metadata.name);
        let claim = reserved(client, &format!("{ns}/{name}"), Some(&made.allocation), pod).await?;
        let status = json!({"resourceClaimName": name, "requestMappings": made.mappings});
        let patch =
            json!({"metadata": {"uid": pod.metadata.uid}, "status": {"extendedResourceClaimStatus": status}});
        client.patch_status::<Pod>(&ns, &part(&pod.metadata.name), &Patch::Strategic(patch)).await?;
        Ok(claim)
    };
    let result = finish.await;
    if result.is_err() {
        withdraw(client, &claim).await;
    }
    result
}

/// Deletes a claim that was made for a pod which is not bound.
pub(crate) async fn withdraw(client: &Client, claim: &ResourceClaim) {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    let (ns, name) = (part(&claim.metadata.namespace), part(&claim.metadata.name));
    if let Err(error) = delete(client, &format!("{ns}/{name}")).await {
        tracing::warn!(ns, name, error = &error as &dyn std::error::Error, "claim not deleted");
    }
}

/// Deletes a claim, whether it has devices or not.
pub(crate) async fn delete(client: &Client, key: &str) -> Result<(), Error> {
    let (ns, name) = split(key);
    let mut attempt = 0;
    loop {
        let result = async {
            let mut claim: ResourceClaim = client.get(ns, name).await?;
            if let Some(finalizers) = &mut claim.metadata.finalizers
                && finalizers.iter().any(|f| f == FINALIZER)
            {
                finalizers.retain(|f| f != FINALIZER);
                client.update(ns, &claim).await?;
            }
            let options = DeleteOptions { uid: claim.metadata.uid, ..DeleteOptions::default() };
            client.delete::<ResourceClaim>(ns, name, &options).await
        };
        match result.await {
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) if error.is_conflict() && attempt < ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

/// Waits until the devices of all claims are ready.
pub(crate) async fn ready(
    client: &Client,
    claims: &[ResourceClaim],
    patience: Duration,
) -> Result<(), ClaimError> {
    let cache = client.caches().of::<ResourceClaim>();
    let mut changes = cache.subscribe();
    let waits = async {
        loop {
            let mut open = false;
            for written in claims {
                let meta = &written.metadata;
                let part = |text: &Option<String>| text.clone().unwrap_or_default();
                let (ns, name) = (part(&meta.namespace), part(&meta.name));
                // What is gone, or has lost its devices, is as it was written: never ready.
                let is =
                    cache.get(&ns, &name).filter(|c| c.metadata.uid == meta.uid && allocation(c).is_some());
                match is.map_or(Readiness::Waiting, |claim| readiness(&claim)) {
                    Readiness::Ready => {}
                    Readiness::Waiting => open = true,
                    Readiness::Failed(why) => return Err(ClaimError::NotReady(why)),
                }
            }
            if !open {
                return Ok(());
            }
            if changes.next().await.is_none() {
                return Err(ClaimError::Timeout);
            }
        }
    };
    tokio::time::timeout(patience, waits).await.unwrap_or(Err(ClaimError::Timeout))
}

async fn reserve(
    client: &Client,
    key: &str,
    new: Option<&AllocationResult>,
    pod: &Pod,
) -> Result<ResourceClaim, ClaimError> {
    let (ns, name) = split(key);
    let mut claim: ResourceClaim = client.get(ns, name).await?;
    let elsewhere = || ClaimError::Elsewhere(key.to_owned());
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let same = |a: &AllocationResult| new.is_none_or(|new| a.devices == new.devices);
    match allocation(&claim) {
        Some(has) if !same(has) => return Err(elsewhere()),
        Some(_) if is_reserved_for(&claim, &uid) => return Ok(claim),
        Some(_) => {}
        None => {
            let new = new.ok_or_else(elsewhere)?;
            let finalizers = claim.metadata.finalizers.get_or_insert_default();
            if !finalizers.iter().any(|f| f == FINALIZER) {
                finalizers.push(FINALIZER.to_owned());
                claim = client.update(ns, &claim).await?;
            }
            claim.status.get_or_insert_default().allocation = Some(new.clone());
        }
    }
    if let Some(allocation) = claim.status.as_mut().and_then(|s| s.allocation.as_mut()) {
        // Whoever comes first starts the time in which the devices have to be ready.
        allocation.allocation_timestamp.get_or_insert_with(|| Time(Timestamp::now()));
    }
    let reserved = claim.status.get_or_insert_default().reserved_for.get_or_insert_default();
    if reserved.iter().all(|r| r.uid != uid) {
        reserved.push(ResourceClaimConsumerReference {
            resource: "pods".to_owned(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid,
            ..ResourceClaimConsumerReference::default()
        });
    }
    Ok(client.update_status(ns, &claim).await?)
}

/// Takes its devices from a claim that nobody uses, so that others are found for it.
pub(crate) async fn deallocate(client: &Client, key: &str) -> Result<(), Error> {
    let (ns, name) = split(key);
    let mut claim: ResourceClaim = client.get(ns, name).await?;
    if let Some(status) = &mut claim.status {
        status.allocation = None;
        status.reserved_for = None;
        status.devices = None;
    }
    client.update_status(ns, &claim).await.map(drop)
}
