//! Deployments, replica sets, stateful sets, daemon sets and controller revisions.

use api::field::{Cursor, ErrorList};
use serde_json::{Value, json};

use super::parts::{Parts, Rules};
use super::tree::{each, has, make, put, put_absent, text};
use super::{internal, label_selector, numbers, pod_defaults, pod_validate, warnings};

fn template(spec: &mut Value) {
    if let Some(template) = make(spec, "template") {
        pod_defaults::pod_template(template);
    }
}

pub(super) static DEPLOYMENT: Parts = Parts {
    status_keeps: &["labels"],
    default: |o| {
        let Some(spec) = make(o, "spec") else { return };
        put_absent(spec, "replicas", 1);
        if let Some(strategy) = make(spec, "strategy") {
            put(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate"
                && let Some(rolling) = make(strategy, "rollingUpdate")
            {
                put_absent(rolling, "maxUnavailable", "25%");
                put_absent(rolling, "maxSurge", "25%");
            }
        }
        put_absent(spec, "revisionHistoryLimit", 10);
        put_absent(spec, "progressDeadlineSeconds", 600);
        template(spec);
    },
    // The revision and other hints of the deployment controller live in annotations: a change of one counts.
    desired_changed: |new, old| {
        super::generic::desired_changed(new, old)
            || !super::generic::same_map(&new["metadata"]["annotations"], &old["metadata"]["annotations"])
    },
    create: |c, o| pod_defaults::drop_disabled_template(c, o, None),
    update: |c, new, old| pod_defaults::drop_disabled_template(c, new, Some(old)),
    warn: |new, old| warnings::workload(new, old, "spec.template"),
    validate: validate_deployment,
    validate_change: |new, old, errors| selector_is_fixed(new, old, errors),
    rules: Rules::BeforeChange,
    validate_status: |new, old, errors| deployment_status(new, old, errors),
    ..Parts::PLAIN
};

pub(super) static REPLICA_SET: Parts = Parts {
    default: |o| {
        let Some(spec) = make(o, "spec") else { return };
        put_absent(spec, "replicas", 1);
        template(spec);
    },
    create: |c, o| pod_defaults::drop_disabled_template(c, o, None),
    update: |c, new, old| pod_defaults::drop_disabled_template(c, new, Some(old)),
    warn: |new, old| warnings::workload(new, old, "spec.template"),
    validate: validate_replica_set,
    validate_change: |new, old, errors| selector_is_fixed(new, old, errors),
    rules: Rules::BeforeChange,
    validate_status: |new, _, errors| replica_counts(new, errors),
    ..Parts::PLAIN
};

pub(super) static DAEMON_SET: Parts = Parts {
    default: |o| {
        let Some(spec) = make(o, "spec") else { return };
        if let Some(strategy) = make(spec, "updateStrategy") {
            put(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate"
                && let Some(rolling) = make(strategy, "rollingUpdate")
            {
                put_absent(rolling, "maxUnavailable", 1);
                put_absent(rolling, "maxSurge", 0);
            }
        }
        put_absent(spec, "revisionHistoryLimit", 10);
        template(spec);
        if annotated_generation(o).is_none() {
            template_generation(o, 0);
        }
    },
    create: |c, o| {
        pod_defaults::drop_disabled_template(c, o, None);
        template_generation(o, 1);
    },
    update: |c, new, old| {
        pod_defaults::drop_disabled_template(c, new, Some(old));
        let before = annotated_generation(old).unwrap_or(1);
        let changed = new["spec"]["template"] != old["spec"]["template"];
        template_generation(new, if changed { before + 1 } else { before });
    },
    warn: |new, old| warnings::template(new, old, "spec.template"),
    validate: validate_daemon_set,
    validate_change: |new, old, errors| selector_is_fixed(new, old, errors),
    validate_status: |new, old, errors| {
        let status = Cursor::root(new).key("status");
        for key in [
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ] {
            numbers::non_negative(&status.key(key), errors);
        }
        collisions(new, old, errors);
    },
    ..Parts::PLAIN
};

/// What was a field of the first versions is kept as an annotation.
fn template_generation(o: &mut Value, generation: i64) {
    let annotations = api::meta::child_mut(api::meta::metadata_mut(o), "annotations");
    annotations.insert(TEMPLATE_GENERATION.to_owned(), json!(generation.to_string()));
}

pub(super) static STATEFUL_SET: Parts = Parts {
    default: |o| {
        let Some(spec) = make(o, "spec") else { return };
        put(spec, "podManagementPolicy", "OrderedReady");
        if let Some(strategy) = make(spec, "updateStrategy") {
            put(strategy, "type", "RollingUpdate");
            if text(strategy, "type") == "RollingUpdate"
                && let Some(rolling) = make(strategy, "rollingUpdate")
            {
                put_absent(rolling, "partition", 0);
            }
        }
        if let Some(policy) = make(spec, "persistentVolumeClaimRetentionPolicy") {
            put(policy, "whenDeleted", "Retain");
            put(policy, "whenScaled", "Retain");
        }
        put_absent(spec, "replicas", 1);
        put_absent(spec, "revisionHistoryLimit", 10);
        for claim in each(spec, "volumeClaimTemplates") {
            put(claim, "apiVersion", "v1");
            put(claim, "kind", "PersistentVolumeClaim");
            super::core_storage::default_claim(claim);
        }
        template(spec);
    },
    create: |c, o| {
        pod_defaults::drop_disabled_template(c, o, None);
        drop_max_unavailable(o);
    },
    update: |c, new, old| {
        pod_defaults::drop_disabled_template(c, new, Some(old));
        if !has(&old["spec"]["updateStrategy"]["rollingUpdate"], "maxUnavailable") {
            drop_max_unavailable(new);
        }
    },
    warn: |new, old| warnings::template(new, old, "spec.template"),
    validate: |o, errors| validate_stateful_set(o, true, errors),
    validate_change: |new, old, errors| {
        validate_stateful_set(new, false, errors);
        stateful_set_change(new, old, errors);
    },
    rules: Rules::OnCreate,
    validate_status: stateful_set_status,
    ..Parts::PLAIN
};

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn annotated_generation(o: &Value) -> Option<i64> {
    o["metadata"]["annotations"][TEMPLATE_GENERATION].as_str().and_then(|g| g.parse().ok())
}

fn counts<const N: usize>(new: &Value, keys: [&str; N], errors: &mut ErrorList) {
    let status = Cursor::root(new).key("status");
    for key in keys {
        numbers::non_negative(&status.key(key), errors);
    }
}

/// Of two counts of a status the first is part of the second, which is called by its path or its name.
fn part_of(new: &Value, part: &str, whole: &str, errors: &mut ErrorList) {
    let count = |path: &str| new["status"][path.trim_start_matches("status.")].as_i64().unwrap_or_default();
    if count(part) > count(whole) {
        let why = format!("cannot be greater than {whole}");
        errors.invalid(&format!("status.{part}"), &json!(count(part)), &why);
    }
}

/// Counts of a replica set or replication controller.
pub(super) fn replica_counts(new: &Value, errors: &mut ErrorList) {
    let keys = [
        "replicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "terminatingReplicas",
        "observedGeneration",
    ];
    counts(new, keys, errors);
    for (part, whole) in [
        ("fullyLabeledReplicas", "status.replicas"),
        ("readyReplicas", "status.replicas"),
        ("availableReplicas", "status.replicas"),
        ("availableReplicas", "readyReplicas"),
    ] {
        part_of(new, part, whole, errors);
    }
}

fn deployment_status(new: &Value, old: &Value, errors: &mut ErrorList) {
    let keys = [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "terminatingReplicas",
        "collisionCount",
    ];
    counts(new, keys, errors);
    for (part, whole) in [
        ("updatedReplicas", "status.replicas"),
        ("readyReplicas", "status.replicas"),
        ("availableReplicas", "status.replicas"),
        ("availableReplicas", "readyReplicas"),
    ] {
        part_of(new, part, whole, errors);
    }
    collisions(new, old, errors);
}

/// The count of collisions only grows: names are made of it.
fn collisions(new: &Value, old: &Value, errors: &mut ErrorList) {
    let count = |o: &Value| o["status"]["collisionCount"].as_i64();
    if let Some(before) = count(old)
        && count(new).is_none_or(|now| now < before)
    {
        errors.invalid(
            "status.collisionCount",
            &json!(count(new).unwrap_or_default()),
            "cannot be decremented",
        );
    }
}

fn stateful_set_status(new: &Value, old: &Value, errors: &mut ErrorList) {
    let keys = [
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "availableReplicas",
        "observedGeneration",
        "collisionCount",
    ];
    counts(new, keys, errors);
    for (part, whole) in [
        ("readyReplicas", "status.replicas"),
        ("currentReplicas", "status.replicas"),
        ("updatedReplicas", "status.replicas"),
        ("availableReplicas", "status.replicas"),
        ("availableReplicas", "status.readyReplicas"),
    ] {
        part_of(new, part, whole, errors);
    }
    collisions(new, old, errors);
}

/// `maxUnavailable` of a stateful set is an alpha field that is off by default.
fn drop_max_unavailable(o: &mut Value) {
    if let Some(map) = o.pointer_mut("/spec/updateStrategy/rollingUpdate").and_then(Value::as_object_mut) {
        map.remove("maxUnavailable");
    }
}

pub(super) static CONTROLLER_REVISION: Parts = Parts {
    validate: |o, errors| {
        let root = Cursor::root(o);
        match root.key("data").value {
            None => errors.required("data", "data is mandatory"),
            Some(Value::Object(_)) => {}
            Some(_) => errors.invalid("data", root.key("data").json(), "must be an object"),
        }
        numbers::non_negative(&root.key("revision"), errors);
    },
    validate_change: |new, old, errors| {
        super::generic::immutable("data", &new["data"], &old["data"], errors);
    },
    rules: Rules::BeforeChange,
    ..Parts::DATA
};

fn selector_is_fixed(new: &Value, old: &Value, errors: &mut ErrorList) {
    super::generic::immutable("spec.selector", &new["spec"]["selector"], &old["spec"]["selector"], errors);
}

/// The selector is there, is valid, is not empty, and selects the template.
fn selector_and_template(o: &Value, kind: &str, malformed: &str, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let selector = spec.key("selector");
    if !selector.exists() {
        errors.required(&selector.path, "");
    } else {
        label_selector::validate(&selector, errors);
        if label_selector::is_empty(selector.json()) {
            let why = format!("empty selector is invalid for {kind}");
            errors.invalid_shown(&selector.path, &internal::show("LabelSelector", selector.json()), &why);
        }
        if label_selector::is_malformed(selector.json()) {
            let shown = internal::show("LabelSelector", selector.json());
            errors.invalid_shown(&selector.path, &shown, malformed);
        }
    }
}

fn labels_match(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let selector = spec.key("selector");
    // An empty selector is reported already, and a malformed one selects nothing that could be compared.
    let empty = selector.exists() && label_selector::is_empty(selector.json());
    let labels = spec.key("template").key("metadata").key("labels");
    if !empty
        && !label_selector::is_malformed(selector.json())
        && !label_selector::matches(selector.json(), labels.json())
    {
        errors.invalid(&labels.path, labels.json(), "`selector` does not match template `labels`");
    }
}

/// The pod template of a workload whose pods are always restarted.
fn always_template(o: &Value, errors: &mut ErrorList) {
    if label_selector::is_malformed(&o["spec"]["selector"]) && o["kind"] != "ReplicationController" {
        return;
    }
    pod_validate::template_at(&Cursor::root(o).key("spec").key("template"), errors);
    let policy = Cursor::root(o).key("spec").key("template").key("spec").key("restartPolicy");
    if policy.str() != "Always" {
        errors.not_supported(&policy.path, policy.json(), &["Always"]);
    }
    let deadline = Cursor::root(o).key("spec").key("template").key("spec").key("activeDeadlineSeconds");
    if deadline.exists() {
        errors.forbidden(&deadline.path, "activeDeadlineSeconds in ReplicaSet is not Supported");
    }
}

fn validate_deployment(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    numbers::non_negative(&spec.key("replicas"), errors);
    selector_and_template(o, "deployment", "invalid label selector", errors);
    labels_match(o, errors);
    always_template(o, errors);
    let strategy = spec.key("strategy");
    match strategy.key("type").str() {
        "Recreate" => {
            if strategy.key("rollingUpdate").exists() {
                errors.forbidden(
                    &strategy.key("rollingUpdate").path,
                    "may not be specified when strategy `type` is 'Recreate'",
                );
            }
        }
        "RollingUpdate" => rolling_update(&strategy.key("rollingUpdate"), errors),
        _ => {
            let shown = internal::show("DeploymentStrategy", strategy.json());
            errors.not_supported_shown(&strategy.path, &shown, &["Recreate", "RollingUpdate"]);
        }
    }
    let min_ready = spec.key("minReadySeconds");
    numbers::non_negative(&min_ready, errors);
    numbers::non_negative(&spec.key("revisionHistoryLimit"), errors);
    if let Some(deadline) = spec.key("progressDeadlineSeconds").i64() {
        numbers::non_negative(&spec.key("progressDeadlineSeconds"), errors);
        if deadline <= min_ready.i64().unwrap_or_default() {
            errors.invalid(
                &spec.key("progressDeadlineSeconds").path,
                &json!(deadline),
                "must be greater than minReadySeconds",
            );
        }
    }
}

fn rolling_update(rolling: &Cursor<'_>, errors: &mut ErrorList) {
    let (unavailable, surge) = (rolling.key("maxUnavailable"), rolling.key("maxSurge"));
    numbers::count_or_percent(&unavailable, errors);
    numbers::count_or_percent(&surge, errors);
    if numbers::is_zero(unavailable.json()) && numbers::is_zero(surge.json()) {
        errors.invalid(&unavailable.path, unavailable.json(), "may not be 0 when `maxSurge` is 0");
    }
    numbers::at_most_100_percent(&unavailable, errors);
}

fn validate_replica_set(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    numbers::non_negative(&spec.key("replicas"), errors);
    numbers::non_negative(&spec.key("minReadySeconds"), errors);
    selector_and_template(o, "deployment", "invalid label selector", errors);
    labels_match(o, errors);
    always_template(o, errors);
}

/// Replication controllers select by a plain map.
pub(super) fn validate_replication_controller(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    numbers::non_negative(&spec.key("minReadySeconds"), errors);
    let selector = spec.key("selector");
    if selector.is_empty() {
        errors.required(&selector.path, "");
    }
    numbers::non_negative(&spec.key("replicas"), errors);
    if !spec.key("template").exists() {
        errors.required(&spec.key("template").path, "");
        return;
    }
    let labels = spec.key("template").key("metadata").key("labels");
    let selected = selector.entries().all(|(k, v)| labels.key(k).value == v.value);
    if !selected {
        errors.invalid(&labels.path, labels.json(), "`selector` does not match template `labels`");
    }
    always_template(o, errors);
}

fn validate_daemon_set(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let selector = spec.key("selector");
    if selector.exists() {
        label_selector::validate(&selector, errors);
    }
    let labels = spec.key("template").key("metadata").key("labels");
    if !label_selector::is_malformed(selector.json())
        && !label_selector::matches(selector.json(), labels.json())
    {
        errors.invalid(&labels.path, labels.json(), "`selector` does not match template `labels`");
    }
    if selector.exists() && label_selector::is_empty(selector.json()) {
        errors.invalid(&selector.path, selector.json(), "empty selector is invalid for daemonset");
    }
    pod_validate::template_at(&spec.key("template"), errors);
    let policy = spec.key("template").key("spec").key("restartPolicy");
    if policy.str() != "Always" {
        errors.not_supported(&policy.path, policy.json(), &["Always"]);
    }
    if spec.key("template").key("spec").key("activeDeadlineSeconds").exists() {
        errors.forbidden(
            &spec.key("template").key("spec").key("activeDeadlineSeconds").path,
            "activeDeadlineSeconds in DaemonSet is not Supported",
        );
    }
    numbers::non_negative(&spec.key("minReadySeconds"), errors);
    let strategy = spec.key("updateStrategy");
    match strategy.key("type").str() {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = strategy.key("rollingUpdate");
            if !rolling.exists() {
                errors.required(&rolling.path, "");
            } else {
                daemon_rolling_update(&rolling, errors);
            }
        }
        _ => errors.not_supported_shown(
            &strategy.path,
            &internal::show("DeploymentStrategy", strategy.json()),
            &["RollingUpdate", "OnDelete"],
        ),
    }
    numbers::non_negative(&spec.key("revisionHistoryLimit"), errors);
}

fn daemon_rolling_update(rolling: &Cursor<'_>, errors: &mut ErrorList) {
    let (unavailable, surge) = (rolling.key("maxUnavailable"), rolling.key("maxSurge"));
    numbers::count_or_percent(&unavailable, errors);
    numbers::at_most_100_percent(&unavailable, errors);
    numbers::count_or_percent(&surge, errors);
    numbers::at_most_100_percent(&surge, errors);
    let (some_unavailable, some_surge) =
        (!numbers::is_zero(unavailable.json()), !numbers::is_zero(surge.json()));
    if some_unavailable && some_surge {
        errors.invalid(&surge.path, surge.json(), "may not be set when maxUnavailable is non-zero");
    } else if !some_unavailable && !some_surge {
        errors.required(&unavailable.path, "cannot be 0 when maxSurge is 0");
    }
}

/// `new`: whether the name of the service is looked at; what is stored may have another.
fn validate_stateful_set(o: &Value, new: bool, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let policy = spec.key("podManagementPolicy");
    match policy.str() {
        "" => errors.required(&policy.path, ""),
        "OrderedReady" | "Parallel" => {}
        _ => errors.invalid(&policy.path, policy.json(), "must be 'OrderedReady' or 'Parallel'"),
    }
    let strategy = spec.key("updateStrategy");
    let kind = strategy.key("type");
    let rolling = strategy.key("rollingUpdate");
    match kind.str() {
        "" => errors.required(&strategy.path, ""),
        "OnDelete" => {
            if rolling.exists() {
                errors.invalid_shown(
                    &rolling.path,
                    &internal::show("RollingUpdateStatefulSetStrategy", rolling.json()),
                    "only allowed for updateStrategy 'RollingUpdate'",
                );
            }
        }
        "RollingUpdate" => numbers::non_negative(&rolling.key("partition"), errors),
        _ => errors.invalid_shown(
            &strategy.path,
            &internal::show("StatefulSetUpdateStrategy", strategy.json()),
            "must be 'RollingUpdate' or 'OnDelete'",
        ),
    }
    for key in ["whenDeleted", "whenScaled"] {
        let retention = spec.key("persistentVolumeClaimRetentionPolicy").key(key);
        if !matches!(retention.str(), "Retain" | "Delete") {
            errors.not_supported(&retention.path, retention.json(), &["Retain", "Delete"]);
        }
    }
    numbers::non_negative(&spec.key("replicas"), errors);
    numbers::non_negative(&spec.key("minReadySeconds"), errors);
    numbers::non_negative(&spec.key("ordinals").key("start"), errors);
    let service = spec.key("serviceName");
    if new && !service.str().is_empty() {
        errors.invalid_all(&service.path, service.json(), api::names::dns1123_label(service.str()));
    }
    for claim in spec.key("volumeClaimTemplates").items() {
        super::core_storage::claim_spec(&claim.key("spec"), errors);
    }
    selector_and_template(o, "statefulset", "", errors);
    labels_match(o, errors);
    if !label_selector::is_malformed(spec.key("selector").json()) {
        // looked at twice, as the reference does: for the set, and with the template
        pod_validate::template_labels(&spec.key("template"), errors);
    }
    pod_validate::template_at(&spec.key("template"), errors);
    let restart = spec.key("template").key("spec").key("restartPolicy");
    if restart.str() != "Always" {
        errors.not_supported(&restart.path, restart.json(), &["Always"]);
    }
    if spec.key("template").key("spec").key("activeDeadlineSeconds").exists() {
        errors.forbidden(
            &spec.key("template").key("spec").key("activeDeadlineSeconds").path,
            "activeDeadlineSeconds in StatefulSet is not Supported",
        );
    }
}

fn stateful_set_change(new: &Value, old: &Value, errors: &mut ErrorList) {
    const MUTABLE: [&str; 8] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
        "revisionHistoryLimit",
    ];
    let fixed = |spec: &Value| {
        let mut spec = spec.clone();
        if let Some(map) = spec.as_object_mut() {
            for key in MUTABLE {
                map.remove(key);
            }
        }
        spec
    };
    if fixed(&new["spec"]) != fixed(&old["spec"]) {
        errors.forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
}
