//! Persistent volumes and claims.

use api::field::{Cursor, ErrorList};
use api::meta;
use serde_json::{Value, json};

use super::parts::{Parts, Rules};
use super::tree::{child, has, make, put, put_absent, text};
use super::{generic, internal, label_selector, pod_defaults, quantities, volumes};

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// Defaults of a claim, also of the claims of a stateful set.
pub(super) fn default_claim(claim: &mut Value) {
    if let Some(spec) = make(claim, "spec") {
        put_absent(spec, "volumeMode", "Filesystem");
        if let Some(resources) = child(spec, "resources") {
            pod_defaults::round_resources(resources);
        }
    }
    if let Some(status) = make(claim, "status") {
        put(status, "phase", "Pending");
    }
}

pub(super) static CLAIM: Parts = Parts {
    default: default_claim,
    create: |_, o| {
        o["status"] = json!({"phase": "Pending"});
        data_source(o, None);
        super::generic::add_finalizer(o, "kubernetes.io/pvc-protection");
    },
    update: |_, new, old| data_source(new, old.get("spec")),
    validate: |o, errors| claim_spec(&Cursor::root(o).key("spec"), errors),
    validate_change: claim_change,
    validate_status: |new, _, errors| claim_status(&Cursor::root(new).key("status"), errors),
    warn: |new, _| super::warnings::claim(new),
    rules: Rules::BeforeChange,
    ..Parts::UNCOUNTED
};

/// The older field knows two kinds of sources; where one field is given the other follows.
fn data_source(o: &mut Value, before: Option<&Value>) {
    let Some(spec) = child(o, "spec") else { return };
    super::closed::claim_spec(spec, before);
    let had_one = before.is_some_and(|b| has(b, "dataSource") || has(b, "dataSourceRef"));
    // who names the newer field means what the older one says
    let is_meant = had_one || has(spec, "dataSourceRef");
    if let Some(source) = spec.get("dataSource").filter(|s| s.is_object() && !is_meant) {
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
    let (mut once_pod, mut other) = (false, false);
    for mode in modes.items() {
        once_pod |= mode.str() == "ReadWriteOncePod";
        other |= mode.str() != "ReadWriteOncePod" && MODES.contains(&mode.str());
        if !MODES.contains(&mode.str()) {
            errors.not_supported(&modes.path, mode.json(), &MODES);
        }
    }
    if once_pod && other {
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
    let (older, newer) = (spec.key("dataSource"), spec.key("dataSourceRef"));
    for source in [&older, &newer].into_iter().filter(|source| source.exists()) {
        one_data_source(source, errors);
    }
    if older.exists() && newer.exists() {
        let is_same = ["apiGroup", "kind", "name"].iter().all(|k| older.key(k).value == newer.key(k).value);
        // the value that is printed is a path, of which nothing can be seen
        if !newer.key("namespace").str().is_empty() {
            let why = "may not be specified when dataSourceRef.namespace is specified";
            errors.invalid_shown(&spec.path, "{}", why);
        } else if !is_same {
            errors.invalid_shown(&spec.path, "{}", "must match dataSourceRef");
        }
    }
    let attributes = spec.key("volumeAttributesClassName");
    if !attributes.str().is_empty() {
        let messages = api::names::dns1123_subdomain(attributes.str());
        errors.invalid_all(&attributes.path, attributes.json(), messages);
    }
}

/// What a volume is filled with at first.
fn one_data_source(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (name, kind, group) = (at.key("name"), at.key("kind"), at.key("apiGroup"));
    for field in [&name, &kind] {
        if field.str().is_empty() {
            errors.required(&field.path, "");
        }
    }
    if group.str().is_empty() && kind.str() != "PersistentVolumeClaim" {
        let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.invalid(&at.path, &json!(kind.str()), why);
    }
    if !group.str().is_empty() {
        errors.invalid_all(&group.path, group.json(), api::names::dns1123_subdomain(group.str()));
    }
    let namespace = at.key("namespace");
    if !namespace.str().is_empty() {
        errors.invalid_all(&namespace.path, namespace.json(), api::names::dns1123_label(namespace.str()));
    }
}

/// How far a claim has come.
fn claim_status(status: &Cursor<'_>, errors: &mut ErrorList) {
    const STATES: [&str; 5] = [
        "ControllerResizeInProgress",
        "ControllerResizeInfeasible",
        "NodeResizePending",
        "NodeResizeInProgress",
        "NodeResizeInfeasible",
    ];
    for (_, amount) in status.key("capacity").entries() {
        basic(&amount, errors);
    }
    let states = status.key("allocatedResourceStatuses");
    for (name, state) in states.entries() {
        resource_of_claim(name, &states.path, errors);
        if !STATES.contains(&state.str()) {
            let mut sorted = STATES;
            sorted.sort_unstable();
            errors.not_supported(&states.path, &json!(name), &sorted);
        }
    }
    let allocated = status.key("allocatedResources");
    for (name, amount) in allocated.entries() {
        let found = errors.len();
        resource_of_claim(name, &allocated.path, errors);
        if errors.len() == found {
            basic(&amount, errors);
        }
    }
}

/// Of Kubernetes' own resources a claim has storage only.
fn resource_of_claim(name: &str, path: &str, errors: &mut ErrorList) {
    let messages = api::names::qualified_name(name);
    let is_native = !name.contains('/') || name.contains("kubernetes.io/");
    if messages.is_empty() && is_native && name != "storage" {
        errors.not_supported(path, &json!(name), &["storage"]);
    }
    errors.invalid_all(path, &json!(name), messages);
}

fn basic(at: &Cursor<'_>, errors: &mut ErrorList) {
    if let Some(amount) = quantities::parse(at.json()).filter(|q| q.signum() < 0) {
        errors.invalid(&at.path, &json!(amount.value()), "must be a valid resource quantity");
    }
}

/// Amounts as one text each: other words for one amount are no change.
fn with_plain_amounts(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Some(resources) = child(&mut spec, "resources") {
        for list in ["limits", "requests"] {
            let list = child(resources, list).and_then(Value::as_object_mut);
            for amount in list.into_iter().flat_map(|l| l.values_mut()) {
                // in the least unit there is
                if let Some(number) = quantities::parse(amount) {
                    *amount = json!(number.millis());
                }
            }
        }
    }
    spec
}

fn claim_change(new: &Value, old: &Value, errors: &mut ErrorList) {
    let mut frozen = new["spec"].clone();
    let mut before = old["spec"].clone();
    const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
    let noted = |o: &Value| o["metadata"]["annotations"][CLASS].clone();
    // a class that was noted may move to its field
    let moves = !noted(old).is_null()
        && !has(&before, "storageClassName")
        && frozen["storageClassName"] == noted(old)
        && (noted(new).is_null() || noted(new) == noted(old));
    if !moves && noted(new) != noted(old) {
        let path = format!("metadata.annotations.{CLASS}");
        errors.invalid(&path, &json!(noted(new).as_str().unwrap_or_default()), "field is immutable");
    }
    // Binding sets the volume once; a claim without a class may get one; a bound claim may ask for more space.
    if text(&before, "volumeName").is_empty() {
        generic::copy("volumeName", &mut before, &frozen);
    }
    if !has(&before, "storageClassName")
        && has(&frozen, "storageClassName")
        && (noted(old).is_null() || noted(old) == frozen["storageClassName"])
    {
        generic::copy("storageClassName", &mut before, &frozen);
    }
    if text(&new["status"], "phase") == "Bound"
        && let Some(requests) = frozen.pointer_mut("/resources/requests")
    {
        generic::copy("storage", requests, &old["spec"]["resources"]["requests"]);
    }
    if text(&new["status"], "phase") == "Bound" && has(&frozen, "volumeAttributesClassName") {
        generic::copy("volumeAttributesClassName", &mut frozen, &before);
    }
    if with_plain_amounts(&frozen) != with_plain_amounts(&before) {
        let shown = internal::diff("PersistentVolumeClaimSpec", &before, &frozen);
        errors.forbidden(
            "spec",
            &format!(
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{shown}"
            ),
        );
    }
    let size = |o: &Value| quantities::parse(&o["spec"]["resources"]["requests"]["storage"]);
    if let (Some(now), Some(then)) = (size(new), size(old))
        && now < then
        && quantities::parse(&old["status"]["capacity"]["storage"]).is_some_and(|have| now <= have)
    {
        let why = "field can not be less than status.capacity";
        errors.forbidden("spec.resources.requests.storage", why);
    }
    generic::immutable("volumeMode", &new["spec"]["volumeMode"], &old["spec"]["volumeMode"], errors);
    let class = &new["spec"]["volumeAttributesClassName"];
    if has(&old["status"], "currentVolumeAttributesClassName")
        && *class != old["spec"]["volumeAttributesClassName"]
    {
        let at = "spec.volumeAttributesClassName";
        if class.is_null() {
            errors.forbidden(at, "update from non-nil value to nil is forbidden");
        } else if class == "" {
            errors.forbidden(at, "update from non-empty value to empty is forbidden");
        }
    }
}

pub(super) static VOLUME: Parts = Parts {
    default: |o| {
        let Some(spec) = make(o, "spec") else { return };
        put(spec, "persistentVolumeReclaimPolicy", "Retain");
        if let Some(capacity) = child(spec, "capacity") {
            pod_defaults::round_up(capacity);
        }
        put_absent(spec, "volumeMode", "Filesystem");
        pod_defaults::volume_source(spec);
        if let Some(status) = make(o, "status") {
            put(status, "phase", "Pending");
        }
    },
    update_status: |context, new, old| {
        let same = |key: &str| new["status"][key] == old["status"][key];
        if !same("phase")
            && (same("lastPhaseTransitionTime") || !has(&new["status"], "lastPhaseTransitionTime"))
        {
            new["status"]["lastPhaseTransitionTime"] = json!(meta::format_time(context.now));
        }
    },
    warn: |new, _| super::warnings::volume(new),
    create: |context, o| {
        o["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": meta::format_time(context.now)});
        super::generic::add_finalizer(o, "kubernetes.io/pv-protection");
    },
    validate: volume,
    validate_change: |new, old, errors| {
        let mut spec = new["spec"].clone();
        // how a volume is grown may be said later
        if has(&old["spec"], "csi") && !has(&old["spec"]["csi"], "controllerExpandSecretRef") {
            generic::set(&mut spec["csi"], "controllerExpandSecretRef", None);
        }
        if sources(&spec) != sources(&old["spec"]) {
            let shown = internal::diff("PersistentVolumeSource", &old["spec"], &spec);
            errors.forbidden(
                "spec.persistentvolumesource",
                &format!("spec.persistentvolumesource is immutable after creation\n{shown}"),
            );
        }
        generic::immutable("volumeMode", &new["spec"]["volumeMode"], &old["spec"]["volumeMode"], errors);
        let (now, before) = (&new["spec"]["nodeAffinity"], &old["spec"]["nodeAffinity"]);
        if !before.is_null() && *now != renamed_labels(before, now) {
            let shown = internal::show("VolumeNodeAffinity", now);
            let why = "field is immutable, except for updating from beta label to GA";
            errors.invalid_shown("nodeAffinity", &shown, why);
        }
        let class = |o: &Value| has(&o["spec"], "volumeAttributesClassName");
        if class(old) && !class(new) {
            let why = "update from non-nil value to nil is forbidden";
            errors.forbidden("spec.volumeAttributesClassName", why);
        }
    },
    rules: Rules::TwiceBeforeChange,
    ..Parts::UNCOUNTED
};

const SOURCES: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

/// The members of a volume's spec that say where the data is, in the order in which the reference looks at them.
fn sources(spec: &Value) -> Vec<(&'static str, &Value)> {
    SOURCES.iter().filter_map(|k| Some((*k, spec.get(k).filter(|v| !v.is_null())?))).collect()
}

/// `before`, where its labels have the names by which `now` calls them and those are only newer.
fn renamed_labels(before: &Value, now: &Value) -> Value {
    const NEWER: [(&str, &str); 5] = [
        ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
        ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
        ("beta.kubernetes.io/os", "kubernetes.io/os"),
        ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
        ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
    ];
    let mut renamed = before.clone();
    let Some(terms) = renamed.pointer_mut("/required/nodeSelectorTerms").and_then(Value::as_array_mut) else {
        return renamed;
    };
    for (i, term) in terms.iter_mut().enumerate() {
        for list in ["matchExpressions", "matchFields"] {
            for (j, requirement) in super::tree::each(term, list).enumerate() {
                let key = &now["required"]["nodeSelectorTerms"][i][list][j]["key"];
                if NEWER.iter().any(|(old, new)| requirement["key"] == *old && key == new) {
                    requirement["key"] = key.clone();
                }
            }
        }
    }
    renamed
}

fn volume(o: &Value, errors: &mut ErrorList) {
    let (name, iscsi) = (meta::name(o), Cursor::root(o).key("spec").key("iscsi"));
    volume_spec(&Cursor::root(o).key("spec"), false, errors);
    let portal = iscsi.key("targetPortal").str();
    if iscsi.key("initiatorName").exists() && name.len() + 1 + portal.len() > 64 {
        let path = iscsi.key("targetportal").path;
        errors.invalid(&path, &json!(portal), volumes::PORTAL_TOO_LONG);
    }
}

/// A volume's spec; `inline`: as it stands in an attachment, where there is no claim and no class.
pub(super) fn volume_spec(spec: &Cursor<'_>, inline: bool, errors: &mut ErrorList) {
    const INLINE: &str = "may not be specified in the context of inline volumes";
    let forbid = |key: &str, errors: &mut ErrorList| {
        if inline && spec.key(key).exists() {
            errors.forbidden(&spec.key(key).path, INLINE);
        }
        inline
    };
    forbid("claimRef", errors);
    let capacity = spec.key("capacity");
    if inline {
        if !capacity.is_empty() {
            errors.forbidden(&capacity.path, INLINE);
        }
        if !spec.key("csi").exists() {
            let why = "has to be specified in the context of inline volumes";
            errors.required(&spec.key("csi").path, why);
        }
    }
    access_modes(&spec.key("accessModes"), "", errors);
    if !inline {
        self::capacity(&capacity, errors);
    }
    let reclaim = spec.key("persistentVolumeReclaimPolicy");
    if inline {
        if reclaim.exists() && reclaim.str() != "Retain" {
            errors.forbidden(&reclaim.path, "may only be Retain in the context of inline volumes");
        }
    } else if !matches!(reclaim.str(), "Delete" | "Recycle" | "Retain") {
        errors.not_supported(&reclaim.path, reclaim.json(), &["Delete", "Recycle", "Retain"]);
    }
    let affinity = spec.key("nodeAffinity");
    if affinity.exists() {
        if forbid("nodeAffinity", errors) {
            // nothing more to say
        } else if affinity.key("required").exists() {
            super::affinity::node_selector(&affinity.key("required"), errors);
        } else {
            errors.required(&affinity.key("required").path, "must specify required node constraints");
        }
    }
    let found = sources(spec.json());
    for (i, (name, _)) in found.iter().enumerate() {
        let at = spec.key(name);
        // this one is looked at in any case
        if i > 0 && *name != "flexVolume" {
            let path = if *name == "cephfs" { spec.key("cephFS").path } else { at.path };
            errors.forbidden(&path, "may not specify more than 1 volume type");
            continue;
        }
        volumes::persistent_source(name, &at, true, errors);
        if *name == "local" && !affinity.exists() {
            errors.required(&affinity.path, "Local volume requires node affinity");
        }
    }
    if found.is_empty() {
        errors.required(&spec.path, "must specify a volume type");
    }
    let host = spec.key("hostPath").key("path");
    let is_root = !host.str().is_empty() && host.str().split('/').all(|p| matches!(p, "" | "."));
    if is_root && reclaim.str() == "Recycle" {
        errors.forbidden(&reclaim.path, "may not be 'recycle' for a hostPath mount of '/'");
    }
    let class = spec.key("storageClassName");
    if !class.str().is_empty() && !forbid("storageClassName", errors) {
        errors.invalid_all(&class.path, class.json(), api::names::dns1123_subdomain(class.str()));
    }
    let mode = spec.key("volumeMode");
    if inline && mode.exists() && mode.str() != "Filesystem" {
        let why = "may not specify volumeMode other than Filesystem in the context of inline volumes";
        errors.forbidden(&mode.path, why);
    } else if mode.exists() && !matches!(mode.str(), "Block" | "Filesystem") {
        errors.not_supported(&mode.path, mode.json(), &["Block", "Filesystem"]);
    }
    let attributes = spec.key("volumeAttributesClassName");
    if attributes.exists() && !forbid("volumeAttributesClassName", errors) {
        if attributes.str().is_empty() {
            errors.required(&attributes.path, "an empty string is disallowed");
        } else {
            let messages = api::names::dns1123_subdomain(attributes.str());
            errors.invalid_all(&attributes.path, attributes.json(), messages);
        }
        if !spec.key("csi").exists() {
            errors
                .required(&spec.key("csi").path, "has to be specified when using volumeAttributesClassName");
        }
    }
}

fn capacity(capacity: &Cursor<'_>, errors: &mut ErrorList) {
    if capacity.is_empty() {
        errors.required(&capacity.path, "");
    }
    if !capacity.key("storage").exists() || capacity.len() > 1 {
        errors.not_supported(&capacity.path, capacity.json(), &["storage"]);
    }
    for (name, value) in capacity.entries() {
        let path = format!("{}[{name}]", capacity.path);
        if let Some(amount) = quantities::parse(value.json()).filter(|q| q.signum() < 0) {
            errors.invalid(&path, &json!(amount.value()), "must be a valid resource quantity");
        }
        quantities::positive(&path, value.json(), errors);
    }
}
