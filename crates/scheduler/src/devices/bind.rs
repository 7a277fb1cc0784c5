//! Writes what was decided about a pod's claims, before the pod is bound: the devices, and that the claim is reserved.
use client::{Client, Error};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference};

use super::needs::is_reserved_for;
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
}

fn split(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

/// Gives the claims their devices and reserves them for the pod.
pub(crate) async fn bind(client: &Client, given: &Given, pod: &Pod) -> Result<(), ClaimError> {
    for (key, new) in &given.claims {
        let mut attempt = 0;
        loop {
            match reserve(client, key, new.as_deref(), pod).await {
                Err(ClaimError::Api(error)) if error.is_conflict() && attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
    }
    Ok(())
}

async fn reserve(
    client: &Client,
    key: &str,
    new: Option<&k8s_openapi::api::resource::v1::AllocationResult>,
    pod: &Pod,
) -> Result<(), ClaimError> {
    let (ns, name) = split(key);
    let mut claim: ResourceClaim = client.get(ns, name).await?;
    let elsewhere = || ClaimError::Elsewhere(key.to_owned());
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let same =
        |a: &k8s_openapi::api::resource::v1::AllocationResult| new.is_none_or(|new| a.devices == new.devices);
    match allocation(&claim) {
        Some(has) if !same(has) => return Err(elsewhere()),
        Some(_) if is_reserved_for(&claim, &uid) => return Ok(()),
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
    let reserved = claim.status.get_or_insert_default().reserved_for.get_or_insert_default();
    if reserved.iter().all(|r| r.uid != uid) {
        reserved.push(ResourceClaimConsumerReference {
            resource: "pods".to_owned(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid,
            ..ResourceClaimConsumerReference::default()
        });
    }
    client.update_status(ns, &claim).await?;
    Ok(())
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
