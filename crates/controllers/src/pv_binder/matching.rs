//! Which volume a claim gets. Pure.
use std::sync::Arc;

use api::quantity::Quantity;
use api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::ownership::{annotations, labels, name, namespace, uid};

/// The older way to say a claim's or volume's class.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const IS_DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

fn bytes(text: Option<&Text>) -> i64 {
    text.and_then(|t| t.0.parse::<Quantity>().ok()).map_or(0, |q| q.value())
}

/// The claim's class; empty for none.
pub(super) fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let noted = annotations(&claim.metadata).get(CLASS);
    let said = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
    noted.or(said).map_or("", String::as_str)
}

/// Whether the claim says nothing of a class, not even that it wants none.
pub(super) fn leaves_class_open(claim: &PersistentVolumeClaim) -> bool {
    !annotations(&claim.metadata).contains_key(CLASS)
        && claim.spec.as_ref().is_none_or(|s| s.storage_class_name.is_none())
}

fn class_of_volume(volume: &PersistentVolume) -> &str {
    let noted = annotations(&volume.metadata).get(CLASS);
    let said = volume.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
    noted.or(said).map_or("", String::as_str)
}

/// The class of claims that leave it open: of several the youngest.
pub(super) fn default_class(classes: &[Arc<StorageClass>]) -> Option<&Arc<StorageClass>> {
    let is_default = |class: &&Arc<StorageClass>| {
        let notes = annotations(&class.metadata);
        IS_DEFAULT.iter().any(|key| notes.get(*key).is_some_and(|v| v == "true"))
    };
    let age = |c: &Arc<StorageClass>| c.metadata.creation_timestamp.as_ref().map(|t| t.0);
    classes
        .iter()
        .filter(is_default)
        .min_by(|a, b| age(b).cmp(&age(a)).then_with(|| name(&a.metadata).cmp(name(&b.metadata))))
}

/// Whether the volume was set aside for the claim, by its creator or by a binding that began.
pub(super) fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return false };
    let whose = reference.uid.as_deref().unwrap_or_default();
    reference.name.as_deref() == Some(name(&claim.metadata))
        && reference.namespace.as_deref() == Some(namespace(&claim.metadata))
        && (whose.is_empty() || whose == uid(&claim.metadata))
}

fn mode(of: Option<&String>) -> &str {
    of.map_or("Filesystem", String::as_str)
}

/// Whether the claim can use the volume at all as it is (block or file system).
pub(super) fn has_same_mode(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = volume.spec.as_ref().and_then(|s| s.volume_mode.as_ref());
    mode(offered) == mode(claim.spec.as_ref().and_then(|s| s.volume_mode.as_ref()))
}

fn attributes(of: Option<&String>) -> &str {
    of.map_or("", String::as_str)
}

fn size(spec: &PersistentVolumeSpec) -> i64 {
    bytes(spec.capacity.as_ref().and_then(|c| c.get("storage")))
}

fn wanted_size(claim: &PersistentVolumeClaim) -> i64 {
    let resources = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
    bytes(resources.and_then(|r| r.requests.as_ref()).and_then(|r| r.get("storage")))
}

fn has_modes(spec: &PersistentVolumeSpec, claim: &PersistentVolumeClaim) -> bool {
    let mut wanted = claim.spec.iter().flat_map(|s| s.access_modes.iter().flatten());
    wanted.all(|mode| spec.access_modes.iter().flatten().any(|m| m == mode))
}

/// Why the volume that a claim names is none for it.
pub(super) fn complaint(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let (Some(offer), Some(spec)) = (volume.spec.as_ref(), claim.spec.as_ref()) else { return None };
    if size(offer) < wanted_size(claim) {
        Some("requested PV is too small")
    } else if class_of_volume(volume) != class_of(claim) {
        Some("storageClassName does not match")
    } else if attributes(offer.volume_attributes_class_name.as_ref())
        != attributes(spec.volume_attributes_class_name.as_ref())
    {
        Some("volumeAttributesClassName does not match")
    } else if !has_same_mode(volume, claim) {
        Some("incompatible volumeMode")
    } else if !has_modes(offer, claim) {
        Some("incompatible accessMode")
    } else {
        None
    }
}

/// The volume for a claim that names none: the one that was set aside for it, or the smallest free one that satisfies it, of
/// several the one with the fewest access modes. `delayed`: only one that was set aside, the rest waits for a pod's node.
pub(super) fn find<'a>(
    volumes: &'a [Arc<PersistentVolume>],
    claim: &PersistentVolumeClaim,
    delayed: bool,
) -> Option<&'a Arc<PersistentVolume>> {
    let wanted = wanted_size(claim);
    let spec = claim.spec.as_ref()?;
    let selector = spec.selector.as_ref().map(|s| LabelSelector::from_typed(Some(s)));
    // A selector that cannot be read selects nothing.
    let selects = |v: &PersistentVolume| match &selector {
        None => true,
        Some(Ok(selector)) => selector.matches(labels(&v.metadata)),
        Some(Err(_)) => false,
    };
    let fits = |v: &&Arc<PersistentVolume>| {
        v.metadata.deletion_timestamp.is_none()
            && v.spec.as_ref().is_some_and(|offer| {
                size(offer) >= wanted
                    && attributes(offer.volume_attributes_class_name.as_ref())
                        == attributes(spec.volume_attributes_class_name.as_ref())
            })
            && has_same_mode(v, claim)
    };
    if let Some(own) = volumes.iter().filter(fits).find(|v| is_for(v, claim)) {
        return Some(own);
    }
    if delayed {
        return None;
    }
    let rank = |v: &PersistentVolume| {
        let offer = v.spec.as_ref();
        let modes = offer.and_then(|s| s.access_modes.as_ref()).map_or(0, Vec::len);
        (modes, offer.map_or(0, size), name(&v.metadata).to_owned())
    };
    volumes
        .iter()
        .filter(fits)
        .filter(|v| {
            let offer = v.spec.as_ref();
            v.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available")
                && offer.is_some_and(|o| o.claim_ref.is_none() && has_modes(o, claim))
                && class_of_volume(v) == class_of(claim)
                && selects(v)
        })
        .min_by_key(|v| rank(v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn volume(name: &str, size: &str, change: Value) -> Arc<PersistentVolume> {
        let mut spec = json!({"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]});
        for (key, value) in change.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let labels = json!({"size": size});
        let volume = json!({"metadata": {"name": name, "labels": labels}, "spec": spec, "status": {"phase": "Available"}});
        serde_json::from_value(volume).expect("volume")
    }

    fn claim(size: &str, change: Value) -> PersistentVolumeClaim {
        let mut spec =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}});
        for (key, value) in change.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "d", "uid": "u"}, "spec": spec}))
            .expect("claim")
    }

    #[test]
    fn a_claim_gets_the_smallest_volume_that_satisfies_it() {
        let set_aside = json!({"claimRef": {"name": "c", "namespace": "d"}});
        let volumes = [
            volume("small", "1Gi", json!({})),
            volume("wide", "2Gi", json!({"accessModes": ["ReadWriteOnce", "ReadOnlyMany"]})),
            volume("large", "5Gi", json!({})),
            volume("medium", "3Gi", json!({})),
            volume("gold", "2Gi", json!({"storageClassName": "gold"})),
            volume("raw", "2Gi", json!({"volumeMode": "Block"})),
            volume("taken", "2Gi", json!({"claimRef": {"name": "other", "namespace": "d"}})),
        ];
        let found = |claim: &PersistentVolumeClaim, delayed: bool| {
            find(&volumes, claim, delayed).map(|v| name(&v.metadata).to_owned())
        };
        let check = |change: Value, want: Option<&str>| {
            assert_eq!(found(&claim("2Gi", change.clone()), false).as_deref(), want, "{change}");
        };
        check(json!({}), Some("medium"));
        check(json!({"accessModes": ["ReadOnlyMany"]}), Some("wide"));
        check(json!({"accessModes": ["ReadWriteMany"]}), None);
        check(json!({"storageClassName": "gold"}), Some("gold"));
        check(json!({"volumeMode": "Block"}), Some("raw"));
        check(json!({"selector": {"matchLabels": {"size": "5Gi"}}}), Some("large"));
        assert_eq!(found(&claim("6Gi", json!({})), false), None);
        assert_eq!(found(&claim("1Gi", json!({})), true), None, "waits for a node");
        let own = [volumes[2].clone(), volume("own", "9Gi", set_aside)];
        for delayed in [false, true] {
            let found = find(&own, &claim("1Gi", json!({})), delayed).expect("volume");
            assert_eq!(name(&found.metadata), "own");
        }
    }

    #[test]
    fn a_named_volume_has_to_satisfy_the_claim_too() {
        let check = |volume: Arc<PersistentVolume>, want: Option<&str>| {
            assert_eq!(complaint(&volume, &claim("2Gi", json!({}))), want);
        };
        check(volume("v", "2Gi", json!({})), None);
        check(volume("v", "1Gi", json!({})), Some("requested PV is too small"));
        check(volume("v", "2Gi", json!({"storageClassName": "x"})), Some("storageClassName does not match"));
        check(volume("v", "2Gi", json!({"volumeMode": "Block"})), Some("incompatible volumeMode"));
        check(volume("v", "2Gi", json!({"accessModes": ["ReadOnlyMany"]})), Some("incompatible accessMode"));
    }

    #[test]
    fn of_several_default_classes_the_youngest_counts() {
        let class = |name: &str, at: &str, default: &str| -> Arc<StorageClass> {
            serde_json::from_value(
                json!({"provisioner": "p", "metadata": {"name": name, "creationTimestamp": at,
                "annotations": {"storageclass.kubernetes.io/is-default-class": default}}}),
            )
            .expect("class")
        };
        let classes = [
            class("old", "2026-01-01T00:00:00Z", "true"),
            class("b", "2026-01-02T00:00:00Z", "true"),
            class("a", "2026-01-02T00:00:00Z", "true"),
            class("young", "2026-01-03T00:00:00Z", "false"),
        ];
        assert_eq!(default_class(&classes).map(|c| name(&c.metadata)), Some("a"));
        assert_eq!(default_class(&classes[3..]), None);
    }
}
