//! The default roles and bindings, from `rbac.txt`.
//!
//! Rule: Kubernetes documentation, "Using RBAC Authorization", default roles and role bindings. At every start what
//! is missing comes back, unless an object says `rbac.authorization.kubernetes.io/autoupdate: "false"`.
//!
//! Lines of the file: `role [NAMESPACE/]NAME [+AGGREGATE...]`, below it `aggregates TO`, `VERBS urls URLS` or
//! `VERBS GROUPS RESOURCES [NAMES]`; `bind [NAMESPACE/]NAME ROLE_KIND ROLE`, below it `SUBJECT_KIND [NAMESPACE/]NAME`.
//! `core` is the group without a name.

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::{Map, Value, json};

use crate::options::FeatureGates;

const TEXT: &str = include_str!("rbac.txt");
/// Roles and rules that come with the gate `GenericWorkload`.
const WORKLOADS: &str = "\
role system:controller:podgroup-protection-controller
  get,list,update,watch scheduling.k8s.io podgroups
  get,list,watch core pods
  create,patch,update core,events.k8s.io events
bind system:controller:podgroup-protection-controller ClusterRole system:controller:podgroup-protection-controller
  ServiceAccount kube-system/podgroup-protection-controller
role system:kube-scheduler
  get,list,watch scheduling.k8s.io podgroups
  patch,update scheduling.k8s.io podgroups/status
";
/// A role that comes with the gate `StorageVersionMigrator`.
const MIGRATIONS: &str = "\
role system:controller:storage-version-migrator-controller
  create,list,patch * *
  update storagemigration.k8s.io storageversionmigrations/status
  get apiextensions.k8s.io customresourcedefinitions
  update apiextensions.k8s.io customresourcedefinitions/status
bind system:controller:storage-version-migrator-controller ClusterRole system:controller:storage-version-migrator-controller
  ServiceAccount kube-system/storage-version-migrator-controller
";
/// Rules that come with the gate `DRADeviceTaintRules`.
const DEVICE_TAINT_RULES: &str = "\
role system:controller:device-taint-eviction-controller
  patch,update resource.k8s.io devicetaintrules/status
  get,list,watch resource.k8s.io devicetaintrules
role system:kube-scheduler
  get,list,watch resource.k8s.io devicetaintrules
";
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";
/// The annotation that keeps an object from being brought up to date.
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// Resource and object of every default role and binding.
pub fn objects(gates: FeatureGates) -> Vec<(&'static str, Value)> {
    let mut list: Vec<(&'static str, Value)> = Vec::new();
    let more = [
        (gates.generic_workload, WORKLOADS),
        (gates.storage_version_migrator, MIGRATIONS),
        (gates.device_taint_rules, DEVICE_TAINT_RULES),
    ];
    let more = more.into_iter().filter(|(is_open, _)| *is_open).flat_map(|(_, text)| text.lines());
    let mut at = 0;
    for line in TEXT.lines().chain(more) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if !line.starts_with(' ') {
            let Some(new) = head(&words) else { continue };
            // a role that is there already gets further rules
            let same = |(plural, object): &(&str, Value)| {
                *plural == new.0
                    && ["namespace", "name"].iter().all(|k| object["metadata"][k] == new.1["metadata"][k])
            };
            at = list.iter().position(same).unwrap_or(list.len());
            if at == list.len() {
                list.push(new);
            }
        } else if let Some((plural, object)) = list.get_mut(at) {
            add(plural.ends_with("bindings"), object, &words);
        }
    }
    list
}

/// What every kubelet may do, where the node authorizer does not look closer.
pub fn node_rules() -> Vec<PolicyRule> {
    let found = objects(FeatureGates::default())
        .into_iter()
        .find(|(p, o)| *p == "clusterroles" && o["metadata"]["name"] == "system:node");
    found.and_then(|(_, mut role)| serde_json::from_value(role["rules"].take()).ok()).unwrap_or_default()
}

fn head(words: &[&str]) -> Option<(&'static str, Value)> {
    let [what, name, rest @ ..] = words else { return None };
    let (namespace, name) = match name.split_once('/') {
        Some((namespace, name)) => (namespace, name),
        None => ("", *name),
    };
    let mut labels = Map::new();
    labels.insert("kubernetes.io/bootstrapping".to_owned(), json!("rbac-defaults"));
    let mut object = json!({"apiVersion": "rbac.authorization.k8s.io/v1",
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}}});
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    let (plural, kind) = match (*what, namespace) {
        ("role", "") => ("clusterroles", "ClusterRole"),
        ("role", _) => ("roles", "Role"),
        (_, "") => ("clusterrolebindings", "ClusterRoleBinding"),
        _ => ("rolebindings", "RoleBinding"),
    };
    object["kind"] = json!(kind);
    if *what == "role" {
        for aggregate in rest.iter().filter_map(|w| w.strip_prefix('+')) {
            labels.insert(format!("{AGGREGATE}{aggregate}"), json!("true"));
        }
        object["rules"] = json!([]);
    } else if let [role_kind, role] = rest {
        object["roleRef"] = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role});
        object["subjects"] = json!([]);
    }
    object["metadata"]["labels"] = Value::Object(labels);
    Some((plural, object))
}

fn add(is_binding: bool, object: &mut Value, words: &[&str]) {
    let list = |text: &str| -> Vec<String> {
        text.split(',').map(|w| if w == "core" { String::new() } else { w.to_owned() }).collect()
    };
    let (place, item) = match words {
        ["ServiceAccount", name] => {
            let (namespace, name) = name.split_once('/').unwrap_or(("", name));
            ("subjects", json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}))
        }
        [kind, name] if is_binding => {
            ("subjects", json!({"kind": kind, "apiGroup": "rbac.authorization.k8s.io", "name": name}))
        }
        ["aggregates", to] => {
            object["aggregationRule"] =
                json!({"clusterRoleSelectors": [{"matchLabels": {format!("{AGGREGATE}{to}"): "true"}}]});
            return;
        }
        [verbs, "urls", urls] => ("rules", json!({"verbs": list(verbs), "nonResourceURLs": list(urls)})),
        [verbs, groups, resources] => {
            ("rules", json!({"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources)}))
        }
        [verbs, groups, resources, names] => (
            "rules",
            json!({"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources),
                "resourceNames": list(names)}),
        ),
        _ => return,
    };
    if let Some(items) = object[place].as_array_mut() {
        items.push(item);
    }
}

/// Puts back rules and subjects that `stored` lacks; none where it lacks nothing or must stay as it is.
pub fn completed(stored: &Value, default: &Value) -> Option<Value> {
    if stored["metadata"]["annotations"][AUTO_UPDATE] == "false" {
        return None;
    }
    let mut new = stored.clone();
    let mut is_changed = false;
    for place in ["rules", "subjects"] {
        for item in default[place].as_array().into_iter().flatten() {
            if stored[place].as_array().is_some_and(|l| l.contains(item)) {
                continue;
            }
            is_changed = true;
            match new[place].as_array_mut() {
                Some(items) => items.push(item.clone()),
                None => new[place] = json!([item]),
            }
        }
    }
    is_changed.then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(plural: &str, name: &str) -> Value {
        objects(FeatureGates::default())
            .into_iter()
            .find(|(p, o)| *p == plural && o["metadata"]["name"] == name)
            .unwrap()
            .1
    }

    #[test]
    fn every_line_is_understood() {
        let lines = TEXT.lines().filter(|l| l.starts_with(' ')).count();
        let items: usize = objects(FeatureGates::default())
            .iter()
            .map(|(_, o)| {
                let count = |k: &str| o[k].as_array().map_or(0, Vec::len);
                count("rules") + count("subjects") + usize::from(o["aggregationRule"].is_object())
            })
            .sum();
        assert_eq!(items, lines);
    }

    #[test]
    fn an_open_gate_brings_rules_to_a_role_and_roles() {
        let gates = FeatureGates { generic_workload: true, ..FeatureGates::default() };
        let (plain, more) = (objects(FeatureGates::default()), objects(gates));
        assert_eq!(more.len(), plain.len() + 2);
        let rules = |list: &[(&str, Value)]| -> usize {
            let role = list.iter().find(|(_, o)| {
                o["kind"] == "ClusterRole" && o["metadata"]["name"] == "system:kube-scheduler"
            });
            role.and_then(|(_, o)| o["rules"].as_array()).map_or(0, Vec::len)
        };
        assert_eq!(rules(&more), rules(&plain) + 2);
        let gates = FeatureGates { storage_version_migrator: true, ..gates };
        assert_eq!(objects(gates).len(), plain.len() + 4);
    }

    #[test]
    fn a_removed_rule_comes_back_unless_the_object_says_no() {
        let default = find("clusterroles", "system:basic-user");
        let mut stored = default.clone();
        assert_eq!(completed(&stored, &default), None);
        stored["rules"] = json!([]);
        assert_eq!(completed(&stored, &default), Some(default.clone()));
        stored["metadata"]["annotations"][AUTO_UPDATE] = json!("false");
        assert_eq!(completed(&stored, &default), None);
    }

    #[test]
    fn anonymous_callers_are_granted_public_information_only() {
        let granted: Vec<String> = objects(FeatureGates::default())
            .into_iter()
            .filter(|(p, o)| {
                p.ends_with("bindings")
                    && o["subjects"]
                        .as_array()
                        .is_some_and(|l| l.iter().any(|s| s["name"] == "system:unauthenticated"))
            })
            .map(|(_, o)| o["roleRef"]["name"].as_str().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(granted, ["system:public-info-viewer"]);
    }
}
