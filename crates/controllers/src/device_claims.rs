//! Which claims for devices a pod uses.
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference};

/// What the pod's spec names.
pub(crate) fn wanted(pod: &Pod) -> impl Iterator<Item = &PodResourceClaim> {
    pod.spec.iter().flat_map(|s| s.resource_claims.iter().flatten())
}

/// The claim that the scheduler made for the pod's extended resources.
pub(crate) fn extended_claim(pod: &Pod) -> Option<&str> {
    let status = pod.status.as_ref()?.extended_resource_claim_status.as_ref()?;
    Some(status.resource_claim_name.as_str())
}

/// The claim that the pod's status names for one of the pod's claims. `Some(None)`: it needs none.
pub(crate) fn assigned<'a>(pod: &'a Pod, claim: &str) -> Option<Option<&'a str>> {
    let list = pod.status.as_ref()?.resource_claim_statuses.as_ref()?;
    list.iter().find(|s| s.name == claim).map(|s| s.resource_claim_name.as_deref())
}

/// The names of all claims the pod uses, as far as they are known.
pub(crate) fn claim_names(pod: &Pod) -> Vec<&str> {
    let of = |w| {
        let w: &PodResourceClaim = w;
        w.resource_claim_name.as_deref().or_else(|| assigned(pod, &w.name).flatten())
    };
    wanted(pod).filter_map(of).chain(extended_claim(pod)).collect()
}

/// Who has reserved the claim.
pub(crate) fn reserved(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|s| s.reserved_for.as_deref()).unwrap_or_default()
}
