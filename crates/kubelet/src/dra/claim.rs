//! Which ResourceClaims a pod has, and of which of their requests each container gets devices: pure functions.

use k8s_openapi::api::core::v1::{Container, Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::ResourceClaim;

/// Whether a pod has any claims.
pub fn has_any(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    !entries(pod).is_empty() || status.is_some_and(|status| status.extended_resource_claim_status.is_some())
}

/// The entries of a pod's spec.
fn entries(pod: &Pod) -> &[PodResourceClaim] {
    pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default()
}

/// The name of the claim behind an entry, and whether it was made for the pod; nothing where none is needed.
fn name_of<'a>(pod: &'a Pod, entry: &'a PodResourceClaim) -> Result<Option<(&'a str, bool)>, String> {
    if let Some(name) = &entry.resource_claim_name {
        return Ok(Some((name, false)));
    }
    let statuses = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_deref());
    match statuses.unwrap_or_default().iter().find(|status| status.name == entry.name) {
        Some(status) => Ok(status.resource_claim_name.as_deref().map(|name| (name, true))),
        None => Err(format!("pod claim {}: ResourceClaim not created yet", entry.name)),
    }
}

/// All claims of a pod by name, each once, and whether they were made for it. The last is the one that the scheduler made
/// for extended resources.
pub(super) fn names(pod: &Pod) -> Result<Vec<(&str, bool)>, String> {
    let mut found: Vec<(&str, bool)> = Vec::new();
    for entry in entries(pod) {
        let Some((name, own)) = name_of(pod, entry)? else { continue };
        match found.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known |= own,
            None => found.push((name, own)),
        }
    }
    let extended = pod.status.as_ref().and_then(|status| status.extended_resource_claim_status.as_ref());
    found.extend(extended.map(|extended| (extended.resource_claim_name.as_str(), false)));
    Ok(found)
}

/// The claims from which a container gets devices, and for which request of each; an empty one stands for all.
pub(super) fn of_container<'a>(
    pod: &'a Pod,
    container: &'a Container,
) -> Result<Vec<(&'a str, &'a str)>, String> {
    let resources = container.resources.as_ref();
    let asked = resources.and_then(|resources| resources.claims.as_deref()).unwrap_or_default();
    let mut found = Vec::new();
    for entry in entries(pod) {
        let mut asked = asked.iter().filter(|asked| asked.name == entry.name).peekable();
        if asked.peek().is_none() {
            continue;
        }
        if let Some((name, _)) = name_of(pod, entry)? {
            found.extend(asked.map(|asked| (name, asked.request.as_deref().unwrap_or_default())));
        }
    }
    let extended = pod.status.as_ref().and_then(|status| status.extended_resource_claim_status.as_ref());
    if let Some(extended) = extended {
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        let wanted = |name: &str| {
            requests
                .and_then(|all| all.get(name))
                .is_some_and(|amount| crate::resources::units(&amount.0) > 0)
        };
        let own = extended
            .request_mappings
            .iter()
            .filter(|mapping| mapping.container_name == container.name && wanted(&mapping.resource_name));
        found.extend(
            own.map(|mapping| (extended.resource_claim_name.as_str(), mapping.request_name.as_str())),
        );
    }
    Ok(found)
}

/// What a container asks for by claims: the name that its status has for it, the claim, the request.
pub(super) fn shown<'a>(pod: &'a Pod, container: &'a Container) -> Vec<(String, &'a str, &'a str)> {
    let asked = container.resources.as_ref().and_then(|resources| resources.claims.as_deref());
    let one = |asked: &'a k8s_openapi::api::core::v1::ResourceClaim| {
        let entry = entries(pod).iter().find(|entry| entry.name == asked.name)?;
        let (name, _) = name_of(pod, entry).ok()??;
        let request = asked.request.as_deref().unwrap_or_default();
        let shown = match request {
            "" => format!("claim:{}", asked.name),
            request => format!("claim:{}/{request}", asked.name),
        };
        Some((shown, name, request))
    };
    asked.unwrap_or_default().iter().filter_map(one).collect()
}

/// Whether a device for the requests `has` is one for `wanted`. A request that has alternatives is meant with any of them.
pub(super) fn is_for(has: &[String], wanted: &str) -> bool {
    let base = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
    wanted.is_empty()
        || has.is_empty()
        || has.iter().any(|name| name == wanted || base(name) == wanted || *name == base(wanted))
}

/// Why the pod may not use the claim; `own`: it was made for the pod.
pub(super) fn check(pod: &Pod, claim: &ResourceClaim, own: bool) -> Result<(), String> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (of_pod, of_claim) = (&pod.metadata, &claim.metadata);
    let (uid, name) = (text(&of_pod.uid), text(&of_claim.name));
    let owners = of_claim.owner_references.as_deref().unwrap_or_default();
    if own && !owners.iter().any(|owner| owner.controller == Some(true) && owner.uid == uid) {
        let (ns, pod) = (text(&of_pod.namespace), text(&of_pod.name));
        return Err(format!(
            "ResourceClaim {ns}/{name} was not created for pod {ns}/{pod} (pod is not owner)"
        ));
    }
    let reserved = claim.status.as_ref().and_then(|status| status.reserved_for.as_deref());
    if !reserved.unwrap_or_default().iter().any(|consumer| consumer.uid == uid) {
        let (pod, claim) = (text(&of_pod.name), text(&of_claim.uid));
        return Err(format!("pod {pod} ({uid}) is not allowed to use ResourceClaim {name} ({claim})"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {
                "resourceClaims": [{"name": "a", "resourceClaimName": "shared"}, {"name": "b", "resourceClaimTemplateName": "t"},
                    {"name": "c", "resourceClaimTemplateName": "none"}],
                "containers": [
                    {"name": "x", "resources": {"claims": [{"name": "a"}, {"name": "b", "request": "r"}]}},
                    {"name": "y", "resources": {"claims": [{"name": "c"}], "requests": {"a/dev": "1", "a/nic": "0"}}},
                ],
            },
            "status": {
                "resourceClaimStatuses": [{"name": "b", "resourceClaimName": "p-b"}, {"name": "c"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "p-ext", "requestMappings": [
                    {"containerName": "y", "resourceName": "a/dev", "requestName": "r0"},
                    {"containerName": "y", "resourceName": "a/nic", "requestName": "r1"},
                    {"containerName": "x", "resourceName": "a/dev", "requestName": "r2"},
                ]},
            },
        }))
        .unwrap()
    }

    #[test]
    fn claims_are_named_by_spec_and_status() {
        let mut pod = pod();
        assert_eq!(names(&pod), Ok(vec![("shared", false), ("p-b", true), ("p-ext", false)]));
        let containers = pod.spec.clone().unwrap().containers;
        assert_eq!(of_container(&pod, &containers[0]), Ok(vec![("shared", ""), ("p-b", "r")]));
        assert_eq!(of_container(&pod, &containers[1]), Ok(vec![("p-ext", "r0")]));
        let named = |name: &str, claim, request| (name.to_owned(), claim, request);
        let expected = [named("claim:a", "shared", ""), named("claim:b/r", "p-b", "r")];
        assert_eq!(shown(&pod, &containers[0]), expected);
        pod.status = None;
        let why = "pod claim b: ResourceClaim not created yet";
        assert_eq!(names(&pod), Err(why.to_owned()));
    }

    #[test]
    fn a_device_is_for_its_requests_and_for_those_that_it_is_an_alternative_of() {
        let check = |has: &[&str], wanted: &str, expected: bool| {
            let has: Vec<String> = has.iter().map(|&name| name.to_owned()).collect();
            assert_eq!(is_for(&has, wanted), expected, "{has:?} {wanted}");
        };
        check(&[], "r", true);
        check(&["r", "s"], "", true);
        check(&["r", "s"], "s", true);
        check(&["r"], "s", false);
        check(&["r/small"], "r", true);
        check(&["r"], "r/small", true);
        check(&["r/large"], "r/small", false);
    }

    #[test]
    fn a_claim_is_for_the_pods_that_it_is_reserved_for_and_that_own_it() {
        let claim = |owner: &str, reserved: &str| -> ResourceClaim {
            serde_json::from_value(json!({
                "metadata": {"name": "c", "namespace": "d", "uid": "cu", "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": owner, "controller": true}]},
                "spec": {},
                "status": {"reservedFor": [{"resource": "pods", "name": "p", "uid": reserved}]},
            }))
            .unwrap()
        };
        assert_eq!(check(&pod(), &claim("u", "u"), true), Ok(()));
        assert_eq!(check(&pod(), &claim("other", "u"), false), Ok(()));
        let why = "ResourceClaim d/c was not created for pod d/p (pod is not owner)";
        assert_eq!(check(&pod(), &claim("other", "u"), true), Err(why.to_owned()));
        let why = "pod p (u) is not allowed to use ResourceClaim c (cu)";
        assert_eq!(check(&pod(), &claim("u", "other"), true), Err(why.to_owned()));
    }
}
