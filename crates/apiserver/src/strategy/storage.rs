//! Storage classes, attachments, CSI drivers and nodes.

use std::collections::{BTreeMap, BTreeSet};

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::generic::immutable;
use super::parts::{Parts, Rules};
use super::tree::{has, is_empty, make, put_absent};
use super::{label_selector, quantities};

/// Bytes of all parameters of a class.
const PARAMETERS: usize = 256 * 1024;
/// Parameters of a class.
const MANY_PARAMETERS: usize = 512;
/// Bytes of what an attachment says of itself.
const METADATA: usize = 256 * 1024;
/// Bytes of an error of an attachment.
const ERROR: usize = 1024;
/// Bytes of a CSI driver's name.
const DRIVER_NAME: usize = 63;
/// Characters of the name by which a driver knows a node.
const NODE_ID: usize = 256;

pub(super) static STORAGE_CLASS: Parts = Parts {
    default: |o| {
        put_absent(o, "reclaimPolicy", "Delete");
        put_absent(o, "volumeBindingMode", "Immediate");
    },
    validate: |o, errors| {
        let root = Cursor::root(o);
        let provisioner = root.key("provisioner");
        if provisioner.str().is_empty() {
            errors.required(&provisioner.path, "");
        } else {
            let lower = provisioner.str().to_lowercase();
            errors.invalid_all(&provisioner.path, provisioner.json(), names::qualified_name(&lower));
        }
        parameters(&root.key("parameters"), errors);
        let reclaim = root.key("reclaimPolicy");
        if !matches!(reclaim.str(), "Delete" | "Retain" | "") {
            errors.not_supported(&reclaim.path, reclaim.json(), &["Delete", "Retain"]);
        }
        let mode = root.key("volumeBindingMode");
        if !matches!(mode.str(), "Immediate" | "WaitForFirstConsumer") {
            errors.not_supported(&mode.path, mode.json(), &["Immediate", "WaitForFirstConsumer"]);
        }
        let mut seen: Vec<Term<'_>> = Vec::new();
        for term in root.key("allowedTopologies").items() {
            let told = topology(&term, errors);
            for _ in seen.iter().filter(|t| **t == told) {
                errors.duplicate(&term.key("matchLabelExpressions").path, &json!(""));
            }
            seen.push(told);
        }
    },
    validate_change: |new, old, errors| {
        for key in ["parameters", "provisioner", "reclaimPolicy"] {
            if !super::generic::same_map(&new[key], &old[key]) {
                errors.invalid(key, &new[key], "field is immutable");
            }
        }
        immutable("volumeBindingMode", &new["volumeBindingMode"], &old["volumeBindingMode"], errors);
    },
    rules: Rules::BeforeChange,
    ..Parts::DATA
};

/// Keys and size of what a provisioner is told.
fn parameters(map: &Cursor<'_>, errors: &mut ErrorList) {
    if map.len() > MANY_PARAMETERS {
        return errors.too_long(&map.path, MANY_PARAMETERS);
    }
    let mut size = 0;
    for (key, value) in map.entries() {
        if key.is_empty() {
            errors.invalid(&map.path, &json!(""), "field can not be empty.");
        }
        size += key.len() + value.str().len();
    }
    if size > PARAMETERS {
        errors.too_long(&map.path, PARAMETERS);
    }
}

/// The name of a driver.
fn driver_name(path: &str, name: &str, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.required(path, "");
    }
    if name.len() > DRIVER_NAME {
        errors.too_long(path, DRIVER_NAME);
    }
    if !name.is_empty() {
        errors.invalid_all(path, &json!(name), names::dns1123_subdomain(&name.to_lowercase()));
    }
}

/// Keys of a topology term with their values.
type Term<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn topology<'a>(term: &Cursor<'a>, errors: &mut ErrorList) -> Term<'a> {
    let mut keys = Term::new();
    for expression in term.key("matchLabelExpressions").items() {
        let (key, values) = (expression.key("key"), expression.key("values"));
        if values.is_empty() {
            errors.required(&values.path, "");
        }
        let mut seen = BTreeSet::new();
        for value in values.items() {
            if !seen.insert(value.str()) {
                errors.duplicate(&value.path, value.json());
            }
        }
        errors.invalid_all(&key.path, &json!(key.str()), names::qualified_name(key.str()));
        if keys.insert(key.str(), seen).is_some() {
            errors.duplicate(&key.path, key.json());
        }
    }
    keys
}

/// The capacity of a class in a part of the cluster.
pub(super) static CAPACITY: Parts = Parts {
    validate: |o, errors| {
        label_selector::validate(&Cursor::root(o).key("nodeTopology"), errors);
        let class = Cursor::root(o).key("storageClassName");
        errors.invalid_all(&class.path, &json!(class.str()), names::dns1123_subdomain(class.str()));
        if has(o, "capacity") {
            quantities::non_negative("capacity", &o["capacity"], errors);
        }
    },
    validate_change: |new, old, errors| {
        for key in ["nodeTopology", "storageClassName"] {
            immutable(key, &new[key], &old[key], errors);
        }
    },
    rules: Rules::BeforeChange,
    unconditional_update: false,
    ..Parts::DATA
};

pub(super) static CSI_DRIVER: Parts = Parts {
    default: |o| {
        let Some(spec) = make(o, "spec") else { return };
        put_absent(spec, "attachRequired", true);
        for key in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
            put_absent(spec, key, false);
        }
        put_absent(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        if is_empty(spec.get("volumeLifecycleModes")) {
            spec["volumeLifecycleModes"] = json!(["Persistent"]);
        }
    },
    create: |_, o| super::closed::csi_driver(o, None),
    // counted from the first change on
    update: |_, new, old| {
        super::closed::csi_driver(new, Some(old));
        if super::generic::desired_changed(new, old) {
            super::generic::count(new, old);
        }
    },
    validate: |o, errors| {
        let spec = Cursor::root(o).key("spec");
        let policy = spec.key("fsGroupPolicy");
        if !matches!(policy.str(), "ReadWriteOnceWithFSType" | "File" | "None") {
            errors.not_supported(&policy.path, policy.json(), &["File", "None", "ReadWriteOnceWithFSType"]);
        }
        let tokens = spec.key("tokenRequests");
        let mut seen = BTreeSet::new();
        for token in tokens.items() {
            let audience = token.key("audience");
            if !seen.insert(audience.str()) {
                errors.duplicate(&audience.path, &json!(audience.str()));
                continue;
            }
            if let Some(seconds) = token.key("expirationSeconds").i64() {
                let at = token.key("expirationSeconds");
                if seconds < 600 {
                    errors.invalid(&at.path, at.json(), "may not specify a duration less than 10 minutes");
                }
                if seconds > 1 << 32 {
                    errors.invalid(
                        &at.path,
                        at.json(),
                        "may not specify a duration larger than 2^32 seconds",
                    );
                }
            }
        }
        let modes = spec.key("volumeLifecycleModes");
        for mode in modes.items().filter(|m| !matches!(m.str(), "Persistent" | "Ephemeral")) {
            errors.not_supported(&modes.path, mode.json(), &["Persistent", "Ephemeral"]);
        }
        let period = spec.key("nodeAllocatableUpdatePeriodSeconds");
        if period.i64().is_some_and(|s| s < 10) {
            errors.invalid(&period.path, period.json(), "must be greater than or equal to 10 seconds");
        }
    },
    validate_change: |new, old, errors| {
        immutable(
            "spec.attachedRequired",
            &new["spec"]["attachRequired"],
            &old["spec"]["attachRequired"],
            errors,
        );
        immutable(
            "spec.volumeLifecycleModes",
            &new["spec"]["volumeLifecycleModes"],
            &old["spec"]["volumeLifecycleModes"],
            errors,
        );
    },
    rules: Rules::BeforeChange,
    unconditional_update: false,
    ..Parts::DATA
};

pub(super) static VOLUME_ATTACHMENT: Parts = Parts {
    status_keeps: super::generic::OWN_META,
    create: |_, o| o["status"] = json!({"attached": false}),
    validate: |o, errors| {
        attachment(o, errors);
        let spec = Cursor::root(o).key("spec");
        driver_name("spec.attacher", spec.key("attacher").str(), errors);
        let volume = spec.key("source").key("persistentVolumeName");
        if volume.exists() {
            errors.invalid_all(&volume.path, volume.json(), names::dns1123_subdomain(volume.str()));
        }
    },
    validate_change: attachment_change,
    validate_status: attachment_change,
    rules: Rules::OnCreate,
    unconditional_update: false,
    ..Parts::UNCOUNTED
};

fn attachment_change(new: &Value, old: &Value, errors: &mut ErrorList) {
    attachment(new, errors);
    if new["spec"] != old["spec"] {
        let shown = super::internal::show("VolumeAttachmentSpec", &new["spec"]);
        errors.invalid_shown("spec", &shown, "field is immutable");
    }
}

/// What is attached where, and what became of it.
fn attachment(o: &Value, errors: &mut ErrorList) {
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let spec = Cursor::root(o).key("spec");
    let attacher = spec.key("attacher");
    if attacher.str().is_empty() {
        errors.required(&attacher.path, "");
    }
    let source = spec.key("source");
    let (inline, volume) = (source.key("inlineVolumeSpec"), source.key("persistentVolumeName"));
    match (inline.exists(), volume.exists()) {
        (false, false) => errors.required(&source.path, ONE),
        (true, true) => errors.forbidden(&source.path, ONE),
        (true, false) => super::core_storage::volume_spec(&inline, true, errors),
        (false, true) if volume.str().is_empty() => {
            errors.required(&volume.path, "must specify non empty persistentVolumeName");
        }
        (false, true) => {}
    }
    let node = spec.key("nodeName");
    errors.invalid_all(&node.path, &json!(node.str()), names::dns1123_subdomain(node.str()));
    let status = Cursor::root(o).key("status");
    let metadata = status.key("attachmentMetadata");
    if metadata.entries().map(|(k, v)| k.len() + v.str().len()).sum::<usize>() > METADATA {
        errors.too_long(&metadata.path, METADATA);
    }
    for key in ["attachError", "detachError"] {
        let error = status.key(key);
        if error.key("message").str().len() > ERROR {
            // the reference names the other limit
            errors.too_long(&error.key("message").path, METADATA);
        }
        let code = error.key("errorCode");
        if code.i64().is_some_and(|n| n < 0) {
            errors.invalid(&code.path, code.json(), "must be between 0 and 2147483647, inclusive");
        }
    }
}

pub(super) static ATTRIBUTES_CLASS: Parts = Parts {
    create: |_, o| super::generic::add_finalizer(o, "kubernetes.io/vac-protection"),
    validate: |o, errors| {
        let driver = Cursor::root(o).key("driverName");
        if driver.str().is_empty() {
            errors.required(&driver.path, "");
        } else {
            let name = driver.str().to_lowercase();
            errors.invalid_all(&driver.path, driver.json(), names::qualified_name(&name));
        }
        parameters(&Cursor::root(o).key("parameters"), errors);
        if Cursor::root(o).key("parameters").is_empty() {
            errors.required("parameters", "must contain at least one key/value pair");
        }
    },
    validate_change: |new, old, errors| {
        for key in ["driverName", "parameters"] {
            if new[key] != old[key] {
                errors.forbidden(key, &format!("updates to {key} are forbidden."));
            }
        }
    },
    ..Parts::DATA
};

pub(super) static CSI_NODE: Parts = Parts {
    validate: csi_node,
    // what a node can take may change, what a driver calls it may not
    validate_change: |new, old, errors| {
        let drivers = |o: &Value| -> Vec<Value> {
            let list = o["spec"]["drivers"].as_array().cloned().unwrap_or_default();
            list.into_iter()
                .map(|mut driver| {
                    super::generic::set(&mut driver, "allocatable", None);
                    driver
                })
                .collect()
        };
        let new = drivers(new);
        for before in drivers(old) {
            for now in new.iter().filter(|now| now["name"] == before["name"] && **now != before) {
                let shown = super::internal::show("CSINodeDriver", now);
                errors.invalid_shown("spec.drivers", &shown, "field is immutable");
            }
        }
    },
    rules: Rules::TwiceBeforeChange,
    unconditional_update: false,
    ..Parts::DATA
};

fn csi_node(o: &Value, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for driver in Cursor::root(o).key("spec").key("drivers").items() {
        let (name, node) = (driver.key("name"), driver.key("nodeID"));
        driver_name(&name.path, name.str(), errors);
        if node.str().is_empty() {
            errors.required(&node.path, "");
        } else if node.str().len() > NODE_ID {
            errors.invalid(&node.path, node.json(), &format!("must be {NODE_ID} characters or less"));
        }
        if !seen.insert(name.str()) {
            errors.duplicate(&name.path, name.json());
        }
        let count = driver.key("allocatable").key("count");
        if count.i64().is_some_and(|n| n < 0) {
            errors.invalid(&count.path, count.json(), "must be greater than or equal to 0");
        }
        let mut keys = BTreeSet::new();
        for key in driver.key("topologyKeys").items() {
            // these paths name the driver
            if key.str().is_empty() {
                errors.required(&driver.path, "");
            }
            if !keys.insert(key.str()) {
                errors.duplicate(&driver.path, key.json());
            }
            errors.invalid_all(&driver.path, key.json(), names::qualified_name(key.str()));
        }
    }
}
