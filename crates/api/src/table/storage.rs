//! Volumes, storage classes, CSI, and devices.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, PersistentVolumeSpec, PersistentVolumeStatus,
};
use k8s_openapi::api::resource::v1::{ResourcePool, ResourceSliceSpec};
use k8s_openapi::api::storage::v1::{
    CSIDriverSpec, StorageClass, VolumeAttachmentSource, VolumeAttachmentSpec, VolumeAttachmentStatus,
    VolumeAttributesClass,
};
use k8s_openapi::schemars::JsonSchema;
use serde_json::{Value, json};

use super::Layout;
use super::column::{AGE, Column, NAME, boolean_of, integer, string, string_of};
use super::format::{UNSET, age, flag, int_or_text, list, name, set_or, text, text_or, texts};

static PV: &[Column] = &[
    NAME,
    string_of("Capacity", PersistentVolumeSpec::json_schema, "capacity"),
    string_of("Access Modes", PersistentVolumeSpec::json_schema, "accessModes"),
    string_of("Reclaim Policy", PersistentVolumeSpec::json_schema, "persistentVolumeReclaimPolicy"),
    string_of("Status", PersistentVolumeStatus::json_schema, "phase"),
    string_of("Claim", PersistentVolumeSpec::json_schema, "claimRef"),
    string("StorageClass", "StorageClass of the pv"),
    string("VolumeAttributesClass", "VolumeAttributesClass of the pv"),
    string_of("Reason", PersistentVolumeStatus::json_schema, "reason"),
    AGE,
    string_of("VolumeMode", PersistentVolumeSpec::json_schema, "volumeMode").wide(),
];
static PVC: &[Column] = &[
    NAME,
    string_of("Status", PersistentVolumeClaimStatus::json_schema, "phase"),
    string_of("Volume", PersistentVolumeClaimSpec::json_schema, "volumeName"),
    string_of("Capacity", PersistentVolumeClaimStatus::json_schema, "capacity"),
    string_of("Access Modes", PersistentVolumeClaimStatus::json_schema, "accessModes"),
    string("StorageClass", "StorageClass of the pvc"),
    string("VolumeAttributesClass", "VolumeAttributesClass of the pvc"),
    AGE,
    string_of("VolumeMode", PersistentVolumeClaimSpec::json_schema, "volumeMode").wide(),
];
static STORAGE_CLASS: &[Column] = &[
    NAME,
    string_of("Provisioner", StorageClass::json_schema, "provisioner"),
    string_of("ReclaimPolicy", StorageClass::json_schema, "reclaimPolicy"),
    string_of("VolumeBindingMode", StorageClass::json_schema, "volumeBindingMode"),
    string_of("AllowVolumeExpansion", StorageClass::json_schema, "allowVolumeExpansion"),
    AGE,
];
static CSI_NODE: &[Column] =
    &[NAME, integer("Drivers", "Drivers indicates the number of CSI drivers registered on the node"), AGE];
static CSI_DRIVER: &[Column] = &[
    NAME,
    boolean_of("AttachRequired", CSIDriverSpec::json_schema, "attachRequired"),
    boolean_of("PodInfoOnMount", CSIDriverSpec::json_schema, "podInfoOnMount"),
    boolean_of("StorageCapacity", CSIDriverSpec::json_schema, "storageCapacity"),
    string_of("TokenRequests", CSIDriverSpec::json_schema, "tokenRequests"),
    boolean_of("RequiresRepublish", CSIDriverSpec::json_schema, "requiresRepublish"),
    string_of("Modes", CSIDriverSpec::json_schema, "volumeLifecycleModes"),
    AGE,
];
static ATTACHMENT: &[Column] = &[
    NAME,
    string_of("Attacher", VolumeAttachmentSpec::json_schema, "attacher").format("name"),
    string_of("PV", VolumeAttachmentSource::json_schema, "persistentVolumeName"),
    string_of("Node", VolumeAttachmentSpec::json_schema, "nodeName"),
    boolean_of("Attached", VolumeAttachmentStatus::json_schema, "attached"),
    AGE,
];
static ATTRIBUTES_CLASS: &[Column] =
    &[NAME, string_of("DriverName", VolumeAttributesClass::json_schema, "driverName"), AGE];
static CLAIM: &[Column] =
    &[NAME, string("State", "A summary of the current state (allocated, pending, reserved, etc.)."), AGE];
static SLICE: &[Column] = &[
    NAME,
    string_of("Node", ResourceSliceSpec::json_schema, "nodeName"),
    string_of("Driver", ResourceSliceSpec::json_schema, "driver"),
    string_of("Pool", ResourcePool::json_schema, "name"),
    AGE,
];

pub(super) static LAYOUTS: &[Layout] = &[
    Layout { group: "", kind: "PersistentVolume", columns: PV, cells: pv },
    Layout { group: "", kind: "PersistentVolumeClaim", columns: PVC, cells: pvc },
    Layout { group: "storage.k8s.io", kind: "StorageClass", columns: STORAGE_CLASS, cells: storage_class },
    Layout { group: "storage.k8s.io", kind: "CSINode", columns: CSI_NODE, cells: csi_node },
    Layout { group: "storage.k8s.io", kind: "CSIDriver", columns: CSI_DRIVER, cells: csi_driver },
    Layout { group: "storage.k8s.io", kind: "VolumeAttachment", columns: ATTACHMENT, cells: attachment },
    Layout {
        group: "storage.k8s.io",
        kind: "VolumeAttributesClass",
        columns: ATTRIBUTES_CLASS,
        cells: attributes_class,
    },
    Layout { group: "resource.k8s.io", kind: "ResourceClaim", columns: CLAIM, cells: claim },
    Layout { group: "resource.k8s.io", kind: "ResourceSlice", columns: SLICE, cells: slice },
];

/// Access modes in their usual order and abbreviations, each once.
fn access_modes(modes: &[&str]) -> String {
    let known = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    known
        .iter()
        .filter(|(mode, _)| modes.contains(mode))
        .map(|(_, short)| *short)
        .collect::<Vec<_>>()
        .join(",")
}

/// The class, which old objects name in an annotation.
fn class(o: &Value) -> &str {
    text_or(
        o,
        "/metadata/annotations/volume.beta.kubernetes.io~1storage-class",
        text(o, "/spec/storageClassName"),
    )
}

fn phase(o: &Value) -> &str {
    if text(o, "/metadata/deletionTimestamp").is_empty() { text(o, "/status/phase") } else { "Terminating" }
}

fn pv(o: &Value, now: Timestamp) -> Vec<Value> {
    let claim = match o.pointer("/spec/claimRef").filter(|c| !c.is_null()) {
        Some(c) => format!("{}/{}", text(c, "/namespace"), text(c, "/name")),
        None => String::new(),
    };
    vec![
        name(o),
        json!(int_or_text(o.pointer("/spec/capacity/storage"), "0")),
        json!(access_modes(&texts(o, "/spec/accessModes"))),
        json!(text(o, "/spec/persistentVolumeReclaimPolicy")),
        json!(phase(o)),
        json!(claim),
        json!(class(o)),
        json!(set_or(o, "/spec/volumeAttributesClassName", UNSET)),
        json!(text(o, "/status/reason")),
        age(o, now),
        json!(set_or(o, "/spec/volumeMode", UNSET)),
    ]
}

fn pvc(o: &Value, now: Timestamp) -> Vec<Value> {
    let bound = !text(o, "/spec/volumeName").is_empty();
    let capacity =
        if bound { int_or_text(o.pointer("/status/capacity/storage"), "0") } else { String::new() };
    let modes = if bound { access_modes(&texts(o, "/status/accessModes")) } else { String::new() };
    vec![
        name(o),
        json!(phase(o)),
        json!(text(o, "/spec/volumeName")),
        json!(capacity),
        json!(modes),
        json!(class(o)),
        json!(set_or(o, "/spec/volumeAttributesClassName", UNSET)),
        age(o, now),
        json!(set_or(o, "/spec/volumeMode", UNSET)),
    ]
}

/// The name, marked where one of these annotations makes the class the default one.
fn marked(o: &Value, keys: &[&str]) -> String {
    let is_default = keys.iter().any(|key| o["metadata"]["annotations"][key] == json!("true"));
    format!("{}{}", text(o, "/metadata/name"), if is_default { " (default)" } else { "" })
}

fn storage_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let keys =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    vec![
        json!(marked(o, &keys)),
        json!(text(o, "/provisioner")),
        json!(text_or(o, "/reclaimPolicy", "Delete")),
        json!(text_or(o, "/volumeBindingMode", "Immediate")),
        json!(flag(o, "/allowVolumeExpansion")),
        age(o, now),
    ]
}

fn csi_node(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), json!(list(o, "/spec/drivers").len()), age(o, now)]
}

fn csi_driver(o: &Value, now: Timestamp) -> Vec<Value> {
    let modes = texts(o, "/spec/volumeLifecycleModes").join(",");
    let audiences: Vec<&str> = list(o, "/spec/tokenRequests").iter().map(|t| text(t, "/audience")).collect();
    vec![
        name(o),
        json!(o.pointer("/spec/attachRequired").and_then(Value::as_bool).unwrap_or(true)),
        json!(flag(o, "/spec/podInfoOnMount")),
        json!(flag(o, "/spec/storageCapacity")),
        json!(if o["spec"]["tokenRequests"].is_null() { UNSET.to_owned() } else { audiences.join(",") }),
        json!(flag(o, "/spec/requiresRepublish")),
        json!(if modes.is_empty() { "<none>".to_owned() } else { modes }),
        age(o, now),
    ]
}

fn attachment(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(o),
        json!(text(o, "/spec/attacher")),
        json!(text(o, "/spec/source/persistentVolumeName")),
        json!(text(o, "/spec/nodeName")),
        json!(flag(o, "/status/attached")),
        age(o, now),
    ]
}

fn attributes_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let shown = marked(o, &["volumeattributesclass.alpha.kubernetes.io/is-default-class"]);
    vec![json!(shown), json!(text(o, "/driverName")), age(o, now)]
}

fn claim(o: &Value, now: Timestamp) -> Vec<Value> {
    let deleted = !text(o, "/metadata/deletionTimestamp").is_empty();
    let allocated = o.pointer("/status/allocation").is_some_and(|a| !a.is_null());
    let mut states = Vec::new();
    if deleted {
        states.push("deleted");
    }
    match (allocated, list(o, "/status/reservedFor").is_empty()) {
        (true, true) => states.push("allocated"),
        (true, false) => states.extend(["allocated", "reserved"]),
        (false, _) if !deleted => states.push("pending"),
        (false, _) => {}
    }
    vec![name(o), json!(states.join(",")), age(o, now)]
}

fn slice(o: &Value, now: Timestamp) -> Vec<Value> {
    let node = if flag(o, "/spec/allNodes") { "<all>" } else { text_or(o, "/spec/nodeName", UNSET) };
    vec![name(o), json!(node), json!(text(o, "/spec/driver")), json!(text(o, "/spec/pool/name")), age(o, now)]
}
