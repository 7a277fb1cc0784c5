//! Fields of features that are off by default in v1.36: a new object loses them, one that has them already keeps them.
//!
//! Source: the stages of the feature gates in the Kubernetes documentation; the field descriptions of the API reference.

use serde_json::Value;

use super::generic::set;
use super::tree::{child, each, has, text};

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
/// Sources of projected volumes: ClusterTrustBundleProjection, PodCertificateRequest.
const PROJECTIONS: [&str; 2] = ["clusterTrustBundle", "podCertificate"];

fn items<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    object[key].as_array().into_iter().flatten()
}

/// The fields of a pod's spec.
pub(super) fn pod_spec(spec: &mut Value, old: Option<&Value>) {
    // ContainerStopSignals
    let stops = |c: &Value| has(&c["lifecycle"], "stopSignal");
    if !old.is_some_and(|o| CONTAINERS.iter().any(|list| items(o, list).any(stops))) {
        for list in CONTAINERS {
            for container in each(spec, list) {
                without_stop_signal(container);
            }
        }
    }
    for projection in PROJECTIONS {
        let uses = |volume: &Value| items(&volume["projected"], "sources").any(|s| has(s, projection));
        if old.is_some_and(|o| items(o, "volumes").any(uses)) {
            continue;
        }
        for projected in each(spec, "volumes").filter_map(|volume| child(volume, "projected")) {
            for source in each(projected, "sources") {
                set(source, projection, None);
            }
        }
    }
}

fn without_stop_signal(container: &mut Value) {
    let Some(lifecycle) = child(container, "lifecycle").filter(|l| has(l, "stopSignal")) else { return };
    set(lifecycle, "stopSignal", None);
    if !has(lifecycle, "postStart") && !has(lifecycle, "preStop") {
        set(container, "lifecycle", None);
    }
}

/// A claim's source in another namespace (CrossNamespaceVolumeDataSource).
pub(super) fn claim_spec(spec: &mut Value, old: Option<&Value>) {
    let elsewhere = spec.get("dataSourceRef").is_some_and(|source| !text(source, "namespace").is_empty());
    if elsewhere && !old.is_some_and(|o| has(o, "dataSourceRef")) {
        set(spec, "dataSourceRef", None);
    }
}

/// A CSI driver without which no pod is scheduled (VolumeLimitScaling).
pub(super) fn csi_driver(driver: &mut Value, old: Option<&Value>) {
    const FIELD: &str = "preventPodSchedulingIfMissing";
    if !old.is_some_and(|o| has(&o["spec"], FIELD))
        && let Some(spec) = child(driver, "spec")
    {
        set(spec, FIELD, None);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_of_closed_features_are_dropped_unless_they_were_there() {
        let trust = json!({"clusterTrustBundle": {"name": "t", "path": "p"}});
        let full = json!({
            "containers": [{"name": "a", "lifecycle": {"stopSignal": "SIGUSR1"}},
                {"name": "b", "lifecycle": {"stopSignal": "SIGUSR1", "preStop": {"sleep": {"seconds": 1}}}}],
            "volumes": [{"name": "v", "projected": {"sources": [trust, {"secret": {"name": "s"}}]}}]});
        let mut new = full.clone();
        pod_spec(&mut new, None);
        let kept = json!({
            "containers": [{"name": "a"}, {"name": "b", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}],
            "volumes": [{"name": "v", "projected": {"sources": [{}, {"secret": {"name": "s"}}]}}]});
        assert_eq!(new, kept);
        let mut new = full.clone();
        pod_spec(&mut new, Some(&full));
        assert_eq!(new, full);

        let claim = json!({"dataSourceRef": {"kind": "K", "name": "n", "namespace": "other"}});
        let (mut new, mut again) = (claim.clone(), claim.clone());
        claim_spec(&mut new, None);
        claim_spec(&mut again, Some(&claim));
        assert_eq!((new, again), (json!({}), claim));
    }
}
