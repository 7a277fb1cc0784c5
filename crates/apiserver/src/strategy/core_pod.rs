//! Pods, pod templates and replication controllers.

use std::collections::BTreeMap;

use api::field::ErrorList;
use api::meta;
use serde_json::{Value, json};

use super::parts::{Parts, Rules};
use super::tree::{each, is_empty, make, put_absent, text};
use super::{Context, Deletion, Strategy, generic, pod_defaults, quantities};

/// Pods.
pub(super) struct Pod;

impl Strategy for Pod {
    fn default(&self, object: &mut Value) {
        pod_defaults::pod(object);
    }

    fn prepare_create(&self, context: &Context, object: &mut Value) {
        let qos = qos_class(&object["spec"]);
        object["status"] = json!({"phase": "Pending", "qosClass": qos});
        if !is_empty(object.pointer("/spec/schedulingGates")) {
            object["status"]["conditions"] = json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastProbeTime": null,
                "lastTransitionTime": meta::format_time(context.now),
            }]);
        }
        merge_match_label_keys(object);
        pod_defaults::drop_disabled(context, object.get_mut("spec"), None);
    }

    fn prepare_update(&self, context: &Context, new: &mut Value, old: &Value) {
        pod_defaults::drop_disabled(context, new.get_mut("spec"), old.get("spec"));
        generic::prepare_update(true, true, new, old);
    }

    fn status_keeps(&self) -> &'static [&'static str] {
        &["ownerReferences"]
    }

    fn prepare_status_update(&self, _context: &Context, new: &mut Value, old: &Value) {
        // old kubelets sent owners back maimed
        generic::prepare_status_update(self.status_keeps(), new, old);
        super::pod_status::keep_unknown(new, old);
    }

    fn prepare_subresource_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        match subresource {
            "ephemeralcontainers" => {
                generic::take_only(&["spec", "ephemeralContainers"], new, old);
                if new["spec"] != old["spec"] {
                    generic::count(new, old);
                }
            }
            "resize" => resize(new, old),
            _ => {}
        }
    }

    fn validate_subresource_update(
        &self,
        subresource: &str,
        new: &Value,
        old: &Value,
        errors: &mut ErrorList,
    ) {
        match subresource {
            "ephemeralcontainers" => super::pod_update::ephemeral(new, old, errors),
            "resize" => super::pod_update::resize(new, old, qos_class(&new["spec"]), errors),
            _ => {}
        }
    }

    fn validate_create(&self, object: &Value, errors: &mut ErrorList) {
        super::pod_validate::pod(object, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut ErrorList) {
        super::pod_update::pod(new, old, errors);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut ErrorList) {
        super::pod_status::change(new, old, errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        // people do not change pods, they make them
        if old.is_some() { Vec::new() } else { super::warnings::pod(new) }
    }

    fn deletion(&self, object: &Value) -> Deletion {
        let spec = &object["spec"];
        let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        // Nobody runs it: there is nobody to wait for.
        if text(spec, "nodeName").is_empty() || ended {
            return Deletion::Immediate;
        }
        Deletion::Graceful { default_seconds: spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(30) }
    }
}

/// A resize changes resources (and how to apply them) only; whatever else came is dropped. Other containers than there
/// are stay, to be refused.
fn resize(new: &mut Value, old: &Value) {
    let names = |spec: &Value, list: &str| -> Vec<Value> {
        spec[list].as_array().into_iter().flatten().map(|c| c["name"].clone()).collect()
    };
    let lists = ["containers", "initContainers"];
    if lists.iter().any(|list| names(&new["spec"], list) != names(&old["spec"], list)) {
        return;
    }
    let asked = new["spec"].clone();
    let managed = new["metadata"].get("managedFields").cloned();
    let version = new["metadata"].get("resourceVersion").cloned();
    *new = old.clone();
    generic::set(&mut new["metadata"], "managedFields", managed);
    generic::set(&mut new["metadata"], "resourceVersion", version);
    for list in lists {
        let wanted = asked[list].as_array().cloned().unwrap_or_default();
        if let Some(spec) = new.get_mut("spec") {
            for container in each(spec, list) {
                if let Some(wanted) = wanted.iter().find(|w| w["name"] == container["name"]) {
                    generic::copy("resources", container, wanted);
                    generic::copy("resizePolicy", container, wanted);
                }
            }
        }
    }
    if let Some(spec) = new.get_mut("spec") {
        generic::copy("resources", spec, &asked);
    }
    if new["spec"] != old["spec"] {
        generic::count(new, old);
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from requests and limits of cpu and memory.
fn qos_class(spec: &Value) -> &'static str {
    let pod_level = &spec["resources"];
    let at_pod_level = ["requests", "limits"].iter().any(|k| {
        pod_level[*k].as_object().is_some_and(|m| ["cpu", "memory"].iter().any(|r| m.contains_key(*r)))
    });
    let all: Vec<&Value> = if at_pod_level {
        vec![pod_level]
    } else {
        ["initContainers", "containers"]
            .iter()
            .flat_map(|list| spec[*list].as_array().into_iter().flatten())
            .map(|c| &c["resources"])
            .collect()
    };
    let amount =
        |r: &Value, kind: &str, name: &str| quantities::parse(&r[kind][name]).filter(|q| q.signum() > 0);
    let mut any = false;
    let mut guaranteed = !all.is_empty();
    for resources in &all {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(resources, "requests", name), amount(resources, "limits", name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
        (false, _) => "BestEffort",
    }
}

/// Values of the pod's own labels join the selectors of affinity terms and spread constraints that ask for them.
fn merge_match_label_keys(pod: &mut Value) {
    let labels = meta::string_map(&pod["metadata"]["labels"]);
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = pod.pointer_mut(&format!("/spec/affinity/{kind}")) else { continue };
        for term in each(affinity, "requiredDuringSchedulingIgnoredDuringExecution") {
            merge_keys(term, &labels);
        }
        for weighted in each(affinity, "preferredDuringSchedulingIgnoredDuringExecution") {
            if let Some(term) = super::tree::child(weighted, "podAffinityTerm") {
                merge_keys(term, &labels);
            }
        }
    }
    if let Some(spec) = pod.get_mut("spec") {
        for constraint in each(spec, "topologySpreadConstraints") {
            merge_keys(constraint, &labels);
        }
    }
}

fn merge_keys(term: &mut Value, labels: &BTreeMap<String, String>) {
    if !term["labelSelector"].is_object() {
        return;
    }
    let mut more = Vec::new();
    for (list, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in term[list].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if let Some(value) = labels.get(key) {
                more.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    if more.is_empty() {
        return;
    }
    let selector = &mut term["labelSelector"];
    put_absent(selector, "matchExpressions", json!([]));
    if let Some(list) = selector["matchExpressions"].as_array_mut() {
        list.extend(more);
    }
}

pub(super) static POD_TEMPLATE: Parts = Parts {
    default: |o| {
        if let Some(template) = make(o, "template") {
            pod_defaults::pod_template(template);
        }
    },
    create: |context, o| pod_defaults::drop_disabled(context, o.pointer_mut("/template/spec"), None),
    update: |context, new, old| {
        pod_defaults::drop_disabled(
            context,
            new.pointer_mut("/template/spec"),
            old.pointer("/template/spec"),
        );
    },
    validate: |o, errors| super::pod_validate::template(o, "template", errors),
    warn: |new, old| super::warnings::template(new, old, "template"),
    status: false,
    ..Parts::PLAIN
};

pub(super) static REPLICATION_CONTROLLER: Parts = Parts {
    default: |o| {
        let labels = o.pointer("/spec/template/metadata/labels").cloned();
        if let Some(labels) = labels.filter(|l| !is_empty(Some(l))) {
            if let Some(spec) = make(o, "spec")
                && is_empty(spec.get("selector"))
            {
                spec["selector"] = labels.clone();
            }
            if is_empty(o["metadata"].get("labels")) {
                meta::metadata_mut(o).insert("labels".to_owned(), labels);
            }
        }
        if let Some(spec) = make(o, "spec") {
            put_absent(spec, "replicas", 1);
            if let Some(template) = super::tree::child(spec, "template") {
                pod_defaults::pod_template(template);
            }
        }
    },
    create: |c, o| pod_defaults::drop_disabled_template(c, o, None),
    update: |c, new, old| pod_defaults::drop_disabled_template(c, new, Some(old)),
    orphans: true,
    warn: |new, old| super::warnings::replication_controller(new, old),
    validate: super::apps::validate_replication_controller,
    rules: Rules::TwiceBeforeChange,
    validate_status: |new, _, errors| super::apps::replica_counts(new, errors),
    ..Parts::PLAIN
};
