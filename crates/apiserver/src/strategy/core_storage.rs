//! Persistent volumes and claims.

use api::field::{Cursor, ErrorList};
use api::meta;
use serde_json::{Value, json};

use super::parts::Parts;
use super::tree::{has, is_empty, make, put, put_absent, text};
use super::{generic, label_selector, pod_defaults, quantities, volumes};

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// Defaults of a claim, also of the claims of a stateful set.
pub(super) fn default_claim(claim: &mut Value) {
    if let Some(spec) = make(claim, "spec") {
        put_absent(spec, "volumeMode", "Filesystem");
    }
    if let Some(status) = make(claim, "status") {
        put(status, "phase", "Pending");
    }
}

pub(super) static CLAIM: Parts = Parts {
    default: default_claim,
    create: |_, o| {
        o["status"] = json!({"phase": "Pending"});
        data_source(o);
        super::generic::add_finalizer(o, "kubernetes.io/pvc-protection");
    },
    validate: |o, errors| claim_spec(&Cursor::root(o).key("spec"), errors),
    validate_change: claim_change,
    ..Parts::UNCOUNTED
};

/// The older field knows two kinds of sources; where one field is given the other follows.
fn data_source(o: &mut Value) {
    let Some(spec) = o.get_mut("spec") else { return };
    if let Some(source) = spec.get("dataSource").filter(|s| s.is_object()) {
        let group = text(source, "apiGroup");
        let known = (group.is_empty() && text(source, "kind") == "PersistentVolumeClaim")
            || (group == "snapshot.storage.k8s.io" && text(source, "kind") == "VolumeSnapshot");
        if !known {
            generic::set(spec, "dataSource", None);
        }
    }
    let (old, new) = (has(spec, "dataSource"), has(spec, "dataSourceRef"));
    if old && !new {
        let source = spec["dataSource"].clone();
        spec["dataSourceRef"] = source;
    } else if new && !old && text(&spec["dataSourceRef"], "namespace").is_empty() {
        let source = spec["dataSourceRef"].clone();
        spec["dataSource"] = source;
    }
}

fn access_modes(modes: &Cursor<'_>, missing: &str, errors: &mut ErrorList) {
    if modes.is_empty() {
        errors.required(&modes.path, missing);
    }
    let mut once_pod = false;
    for mode in modes.items() {
        once_pod |= mode.str() == "ReadWriteOncePod";
        if !MODES.contains(&mode.str()) {
            errors.not_supported(&modes.path, mode.json(), &MODES);
        }
    }
    if once_pod && modes.len() > 1 {
        errors.forbidden(&modes.path, "may not use ReadWriteOncePod with other access modes");
    }
}

/// A claim's spec; also used for ephemeral volumes and stateful sets.
pub(super) fn claim_spec(spec: &Cursor<'_>, errors: &mut ErrorList) {
    access_modes(&spec.key("accessModes"), "at least 1 access mode is required", errors);
    if spec.key("selector").exists() {
        label_selector::validate(&spec.key("selector"), errors);
    }
    let requests = spec.key("resources").key("requests");
    let storage = requests.key("storage");
    match storage.value {
        None => errors.required(&format!("{}[storage]", spec.key("resources").path), ""),
        Some(value) => {
            let path = format!("{}[storage]", spec.key("resources").path);
            quantities::positive(&path, value, errors);
        }
    }
    let class = spec.key("storageClassName");
    if !class.str().is_empty() {
        errors.invalid_all(&class.path, class.json(), api::names::dns1123_subdomain(class.str()));
    }
    let mode = spec.key("volumeMode");
    if mode.exists() && !matches!(mode.str(), "Block" | "Filesystem") {
        errors.not_supported(&mode.path, mode.json(), &["Block", "Filesystem"]);
    }
}

fn claim_change(new: &Value, old: &Value, errors: &mut ErrorList) {
    let mut frozen = new["spec"].clone();
    let bound = text(&old["status"], "phase") == "Bound";
    // Binding sets the volume once; a bound claim may ask for more space.
    if text(&old["spec"], "volumeName").is_empty() {
        generic::copy("volumeName", &mut frozen, &old["spec"]);
    }
    if bound {
        generic::copy("resources", &mut frozen, &old["spec"]);
        let size = |o: &Value| quantities::parse(&o["spec"]["resources"]["requests"]["storage"]);
        if size(new) < size(old) {
            errors.forbidden("spec.resources.requests.storage", "field can not be less than status.capacity");
        }
    }
    generic::copy("volumeAttributesClassName", &mut frozen, &old["spec"]);
    if is_empty(old["spec"].get("storageClassName")) {
        generic::copy("storageClassName", &mut frozen, &old["spec"]);
    }
    if frozen != old["spec"] {
        errors.forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
}

pub(super) static VOLUME: Parts = Parts {
    default: |o| {
        let Some(spec) = make(o, "spec") else { return };
        put(spec, "persistentVolumeReclaimPolicy", "Retain");
        put_absent(spec, "volumeMode", "Filesystem");
        pod_defaults::volume_source(spec);
        if let Some(status) = make(o, "status") {
            put(status, "phase", "Pending");
        }
    },
    create: |context, o| {
        o["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": meta::format_time(context.now)});
        super::generic::add_finalizer(o, "kubernetes.io/pv-protection");
    },
    validate: volume,
    validate_change: |new, old, errors| {
        for (source, before) in sources(&old["spec"]) {
            if new["spec"].get(&source) != Some(before) {
                errors.forbidden(
                    "spec.persistentvolumesource",
                    "spec.persistentvolumesource is immutable after creation",
                );
            }
        }
        generic::immutable("volumeMode", &new["spec"]["volumeMode"], &old["spec"]["volumeMode"], errors);
        if has(&old["spec"], "nodeAffinity") {
            generic::immutable(
                "spec.nodeAffinity",
                &new["spec"]["nodeAffinity"],
                &old["spec"]["nodeAffinity"],
                errors,
            );
        }
    },
    ..Parts::UNCOUNTED
};

const NO_SOURCE: [&str; 9] = [
    "capacity",
    "accessModes",
    "claimRef",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "mountOptions",
    "volumeMode",
    "nodeAffinity",
    "volumeAttributesClassName",
];

/// The members of a volume's spec that say where the data is.
fn sources(spec: &Value) -> Vec<(String, &Value)> {
    spec.as_object()
        .into_iter()
        .flatten()
        .filter(|(k, v)| !v.is_null() && !NO_SOURCE.contains(&k.as_str()))
        .map(|(k, v)| (k.clone(), v))
        .collect()
}

fn volume(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    access_modes(&spec.key("accessModes"), "", errors);
    let capacity = spec.key("capacity");
    if capacity.is_empty() {
        errors.required(&capacity.path, "");
    }
    if !capacity.key("storage").exists() || capacity.len() > 1 {
        errors.not_supported(&capacity.path, capacity.json(), &["storage"]);
    }
    for (name, value) in capacity.entries() {
        if let Some(amount) = quantities::parse(value.json()).filter(|q| q.signum() < 0) {
            errors.invalid(
                &format!("{}[{name}]", capacity.path),
                &json!(amount.value()),
                "must be a valid resource quantity",
            );
        }
        quantities::positive(&format!("{}[{name}]", capacity.path), value.json(), errors);
    }
    let reclaim = spec.key("persistentVolumeReclaimPolicy");
    if !matches!(reclaim.str(), "Delete" | "Recycle" | "Retain") {
        errors.not_supported(&reclaim.path, reclaim.json(), &["Delete", "Recycle", "Retain"]);
    }
    let found = sources(&o["spec"]);
    if found.is_empty() {
        errors.required("spec", "must specify a volume type");
    }
    for (i, (name, _)) in found.iter().enumerate() {
        if i > 0 {
            errors.forbidden(&format!("spec.{name}"), "may not specify more than 1 volume type");
        } else {
            volumes::persistent_source(name, &spec.key(name), errors);
        }
    }
    let affinity = spec.key("nodeAffinity");
    if affinity.exists() {
        if affinity.key("required").exists() {
            super::affinity::node_selector(&affinity.key("required"), errors);
        } else {
            errors.required(&affinity.key("required").path, "must specify required node constraints");
        }
    }
    if has(&o["spec"], "local") && !has(&o["spec"], "nodeAffinity") {
        errors.required("spec.nodeAffinity", "Local volume requires node affinity");
    }
    let class = spec.key("storageClassName");
    if !class.str().is_empty() {
        errors.invalid_all(&class.path, class.json(), api::names::dns1123_subdomain(class.str()));
    }
    let mode = spec.key("volumeMode");
    if mode.exists() && !matches!(mode.str(), "Block" | "Filesystem") {
        errors.not_supported(&mode.path, mode.json(), &["Block", "Filesystem"]);
    }
}
