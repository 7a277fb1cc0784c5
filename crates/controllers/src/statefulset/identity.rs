//! What makes a pod of a stateful set that pod and no other: its ordinal, name, host name, labels and claims.
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#pod-identity>.
use std::collections::BTreeMap;
use std::ops::Range;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::ownership::{controller_ref, labels, name};
use crate::revisions::REVISION_HASH;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The name before the ordinal, and the ordinal; `None` when the name does not end in one.
pub(super) fn parent_and_ordinal(pod: &str) -> Option<(&str, i32)> {
    let (parent, number) = pod.rsplit_once('-')?;
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| number.parse().ok()).flatten().map(|ordinal| (parent, ordinal))
}

/// Whether the pod's name is one of the set's.
pub(super) fn is_member(set: &StatefulSet, pod: &ObjectMeta) -> bool {
    parent_and_ordinal(name(pod)).is_some_and(|(parent, _)| parent == name(&set.metadata))
}

/// The ordinals that the set shall have.
pub(super) fn ordinals(set: &StatefulSet) -> Range<i64> {
    let spec = set.spec.as_ref();
    let start = spec.and_then(|s| s.ordinals.as_ref()).and_then(|o| o.start).unwrap_or(0);
    let count = spec.and_then(|s| s.replicas).unwrap_or(1);
    i64::from(start)..i64::from(start) + i64::from(count.max(0))
}

/// The ordinal of a pod of the set; -1 without one.
pub(super) fn ordinal(pod: &ObjectMeta) -> i64 {
    parent_and_ordinal(name(pod)).map_or(-1, |(_, ordinal)| i64::from(ordinal))
}

fn templates(set: &StatefulSet) -> impl Iterator<Item = &PersistentVolumeClaim> {
    set.spec.iter().flat_map(|s| s.volume_claim_templates.iter().flatten())
}

fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i64) -> String {
    format!("{}-{}-{ordinal}", name(&template.metadata), name(&set.metadata))
}

/// The names of the claims of one pod.
pub(super) fn claim_names(set: &StatefulSet, ordinal: i64) -> Vec<String> {
    templates(set).map(|t| claim_name(set, t, ordinal)).collect()
}

/// The claims of one pod, without owners.
pub(super) fn claims(set: &StatefulSet, ordinal: i64) -> Vec<PersistentVolumeClaim> {
    let selected = set.spec.as_ref().and_then(|s| s.selector.match_labels.clone()).unwrap_or_default();
    let claim = |template: &PersistentVolumeClaim| {
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(selected.clone());
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(claim_name(set, template, ordinal)),
                namespace: set.metadata.namespace.clone(),
                labels: (!labels.is_empty()).then_some(labels),
                ..template.metadata.clone()
            },
            spec: template.spec.clone(),
            status: None,
        }
    };
    templates(set).map(claim).collect()
}

/// A new pod of the revision `revision`, whose template is `template`.
pub(super) fn new_pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i64) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let pod_name = format!("{}-{ordinal}", name(&set.metadata));
    let mut spec = template.spec.clone().unwrap_or_default();
    spec.hostname = Some(pod_name.clone());
    spec.subdomain = set.spec.as_ref().and_then(|s| s.service_name.clone()).filter(|s| !s.is_empty());
    let mut pod = Pod {
        metadata: ObjectMeta {
            name: Some(pod_name),
            generate_name: Some(format!("{}-", name(&set.metadata))),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_ref("apps/v1", "StatefulSet", &set.metadata)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    };
    set_identity(&mut pod);
    set_storage(set, &mut pod);
    let labels = pod.metadata.labels.get_or_insert_with(BTreeMap::new);
    labels.insert(REVISION_HASH.to_owned(), revision.to_owned());
    pod
}

/// Whether the pod carries its name as a label (an adopted one may not).
pub(super) fn has_identity(pod: &Pod) -> bool {
    labels(&pod.metadata).get(POD_NAME).map(String::as_str) == Some(name(&pod.metadata))
}

/// Labels the pod with its name and index.
pub(super) fn set_identity(pod: &mut Pod) {
    let (pod_name, index) = (name(&pod.metadata).to_owned(), ordinal(&pod.metadata));
    let labels = pod.metadata.labels.get_or_insert_with(BTreeMap::new);
    labels.insert(POD_NAME.to_owned(), pod_name);
    labels.insert(POD_INDEX.to_owned(), index.to_string());
}

/// Whether every claim template is a volume of the pod, bound to the pod's own claim.
pub(super) fn has_storage(set: &StatefulSet, pod: &Pod) -> bool {
    let index = ordinal(&pod.metadata);
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    templates(set).all(|template| {
        volumes.clone().any(|v| {
            v.name == name(&template.metadata)
                && v.persistent_volume_claim
                    .as_ref()
                    .is_some_and(|c| c.claim_name == claim_name(set, template, index))
        })
    })
}

/// Puts the claims into the pod's volumes, in place of volumes of the same names.
pub(super) fn set_storage(set: &StatefulSet, pod: &mut Pod) {
    let index = ordinal(&pod.metadata);
    let mut volumes: Vec<Volume> = templates(set)
        .map(|template| Volume {
            name: name(&template.metadata).to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, template, index),
                read_only: None,
            }),
            ..Volume::default()
        })
        .collect();
    let spec = pod.spec.get_or_insert_default();
    let others = spec.volumes.take().unwrap_or_default();
    let names: Vec<String> = volumes.iter().map(|v| v.name.clone()).collect();
    volumes.extend(others.into_iter().filter(|v| !names.contains(&v.name)));
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ordinal_is_the_number_after_the_last_dash() {
        assert_eq!(parent_and_ordinal("web-a-12"), Some(("web-a", 12)));
        assert_eq!(parent_and_ordinal("web-007"), Some(("web", 7)));
        for wrong in ["web", "web-", "web-1a", "web-99999999999"] {
            assert_eq!(parent_and_ordinal(wrong), None, "{wrong}");
        }
    }
}
