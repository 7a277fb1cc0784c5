//! Volumes, storage classes, CSI, and devices.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Layout;
use super::column::{AGE, Column, NAME, boolean, integer, string};
use super::format::{UNSET, age, flag, int_or_text, list, name, text, text_or, texts};

static PV: &[Column] = &[
    NAME,
    string("Capacity", "The size of the volume."),
    string("Access Modes", "All the ways the volume can be mounted."),
    string("Reclaim Policy", "What happens to the volume when its claim is deleted."),
    string("Status", "The phase of the volume."),
    string("Claim", "The claim that the volume is bound to."),
    string("StorageClass", "The class of the volume."),
    string("VolumeAttributesClass", "The attributes class of the volume."),
    string("Reason", "Why the volume is in this state."),
    AGE,
    string("VolumeMode", "Block device or file system.").wide(),
];
static PVC: &[Column] = &[
    NAME,
    string("Status", "The phase of the claim."),
    string("Volume", "The volume that the claim is bound to."),
    string("Capacity", "The size of the bound volume."),
    string("Access Modes", "The ways the volume can be mounted."),
    string("StorageClass", "The wanted class."),
    string("VolumeAttributesClass", "The wanted attributes class."),
    AGE,
    string("VolumeMode", "Block device or file system.").wide(),
];
static STORAGE_CLASS: &[Column] = &[
    NAME,
    string("Provisioner", "Who makes the volumes."),
    string("ReclaimPolicy", "What happens to a volume when its claim is deleted."),
    string("VolumeBindingMode", "When claims are bound."),
    string("AllowVolumeExpansion", "Whether claims may grow."),
    AGE,
];
static CSI_NODE: &[Column] =
    &[NAME, integer("Drivers", "Drivers indicates the number of CSI drivers registered on the node"), AGE];
static CSI_DRIVER: &[Column] = &[
    NAME,
    boolean("AttachRequired", "Whether volumes must be attached before they are mounted."),
    boolean("PodInfoOnMount", "Whether the driver wants to know about the pod."),
    boolean("StorageCapacity", "Whether the scheduler considers the driver's capacity."),
    string("TokenRequests", "Audiences of the tokens that the driver wants."),
    boolean("RequiresRepublish", "Whether volumes are published again from time to time."),
    string("Modes", "Kinds of volumes the driver serves."),
    AGE,
];
static ATTACHMENT: &[Column] = &[
    NAME,
    string("Attacher", "Who attaches the volume.").format("name"),
    string("PV", "The volume."),
    string("Node", "The node it is attached to."),
    boolean("Attached", "Whether it is attached."),
    AGE,
];
static ATTRIBUTES_CLASS: &[Column] = &[NAME, string("DriverName", "The CSI driver."), AGE];
static CLAIM: &[Column] =
    &[NAME, string("State", "A summary of the current state (allocated, pending, reserved, etc.)."), AGE];
static SLICE: &[Column] = &[
    NAME,
    string("Node", "The node with the devices."),
    string("Driver", "The driver of the devices."),
    string("Pool", "The pool that the slice belongs to."),
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
        json!(text_or(o, "/spec/volumeAttributesClassName", UNSET)),
        json!(text(o, "/status/reason")),
        age(o, now),
        json!(text_or(o, "/spec/volumeMode", UNSET)),
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
        json!(text_or(o, "/spec/volumeAttributesClassName", UNSET)),
        age(o, now),
        json!(text_or(o, "/spec/volumeMode", UNSET)),
    ]
}

fn storage_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let annotated = |key: &str| o["metadata"]["annotations"][key] == json!("true");
    let is_default = annotated("storageclass.kubernetes.io/is-default-class")
        || annotated("storageclass.beta.kubernetes.io/is-default-class");
    let mut shown = text(o, "/metadata/name").to_owned();
    if is_default {
        shown.push_str(" (default)");
    }
    vec![
        json!(shown),
        json!(text(o, "/provisioner")),
        json!(text_or(o, "/reclaimPolicy", "Delete")),
        json!(text_or(o, "/volumeBindingMode", UNSET)),
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
        json!(if audiences.is_empty() { UNSET.to_owned() } else { audiences.join(",") }),
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
    vec![name(o), json!(text(o, "/driverName")), age(o, now)]
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
