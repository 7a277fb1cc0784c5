//! Roles and bindings.

use api::field::{Cursor, ErrorList};
use serde_json::{Value, json};

use super::label_selector;
use super::parts::{Parts, Rules};
use super::tree::{child, each, put, text};

const GROUP: &str = "rbac.authorization.k8s.io";

fn default_binding(o: &mut Value) {
    if let Some(role) = child(o, "roleRef") {
        put(role, "apiGroup", GROUP);
    }
    for subject in each(o, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            put(subject, "apiGroup", GROUP);
        }
    }
}

pub(super) static ROLE: Parts = Parts {
    validate: |o, errors| rules(&Cursor::root(o).key("rules"), true, errors),
    create_on_update: true,
    ..Parts::DATA
};

pub(super) static CLUSTER_ROLE: Parts = Parts {
    validate: |o, errors| {
        let root = Cursor::root(o);
        rules(&root.key("rules"), false, errors);
        let aggregation = root.key("aggregationRule");
        if aggregation.exists() {
            let selectors = aggregation.key("clusterRoleSelectors");
            if selectors.is_empty() {
                errors.required(
                    &selectors.path,
                    "at least one clusterRoleSelector required if aggregationRule is non-nil",
                );
            }
            for selector in selectors.items() {
                label_selector::validate(&selector, errors);
                if label_selector::is_malformed(selector.json()) {
                    errors.invalid(&selector.path, &Value::Null, "invalid label selector.");
                }
            }
        }
    },
    create_on_update: true,
    ..Parts::DATA
};

pub(super) static ROLE_BINDING: Parts = Parts {
    default: default_binding,
    validate: |o, errors| binding(o, &["Role", "ClusterRole"], errors),
    validate_change: role_ref_is_fixed,
    rules: Rules::BeforeChange,
    create_on_update: true,
    ..Parts::DATA
};

pub(super) static CLUSTER_ROLE_BINDING: Parts = Parts {
    default: default_binding,
    validate: |o, errors| binding(o, &["ClusterRole"], errors),
    validate_change: role_ref_is_fixed,
    rules: Rules::BeforeChange,
    create_on_update: true,
    ..Parts::DATA
};

fn role_ref_is_fixed(new: &Value, old: &Value, errors: &mut ErrorList) {
    if new["roleRef"] != old["roleRef"] {
        let shown = super::internal::show("RoleRef", &new["roleRef"]);
        errors.invalid_shown("roleRef", &shown, "cannot change roleRef");
    }
}

fn rules(list: &Cursor<'_>, namespaced: bool, errors: &mut ErrorList) {
    for rule in list.items() {
        if rule.key("verbs").is_empty() {
            errors.required(&rule.key("verbs").path, "verbs must contain at least one value");
        }
        let urls = rule.key("nonResourceURLs");
        if !urls.is_empty() {
            if namespaced {
                errors.invalid(&urls.path, urls.json(), "namespaced rules cannot apply to non-resource URLs");
            }
            if ["apiGroups", "resources", "resourceNames"].iter().any(|k| !rule.key(k).is_empty()) {
                errors.invalid(
                    &urls.path,
                    urls.json(),
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            continue;
        }
        if rule.key("apiGroups").is_empty() {
            errors.required(&rule.key("apiGroups").path, "resource rules must supply at least one api group");
        }
        if rule.key("resources").is_empty() {
            errors.required(&rule.key("resources").path, "resource rules must supply at least one resource");
        }
    }
}

fn binding(o: &Value, kinds: &[&str], errors: &mut ErrorList) {
    let root = Cursor::root(o);
    let role = root.key("roleRef");
    let group = role.key("apiGroup");
    if group.str() != GROUP {
        errors.not_supported(&group.path, &json!(group.str()), &[GROUP]);
    }
    let kind = role.key("kind");
    if !kinds.contains(&kind.str()) {
        errors.not_supported(&kind.path, &json!(kind.str()), kinds);
    }
    let name = role.key("name");
    if name.str().is_empty() {
        errors.required(&name.path, "");
    } else {
        errors.invalid_all(&name.path, name.json(), api::names::path_segment(name.str()));
    }
    for subject in root.key("subjects").items() {
        self::subject(&subject, kinds.len() == 2, errors);
    }
}

fn subject(at: &Cursor<'_>, namespaced: bool, errors: &mut ErrorList) {
    let (kind, name, group) = (at.key("kind"), at.key("name"), at.key("apiGroup"));
    if name.str().is_empty() {
        errors.required(&name.path, "");
    }
    match kind.str() {
        "ServiceAccount" => {
            if !name.str().is_empty() {
                errors.invalid_all(&name.path, name.json(), api::names::dns1123_subdomain(name.str()));
            }
            if !group.str().is_empty() {
                errors.not_supported(&group.path, group.json(), &[""]);
            }
            if !namespaced && at.key("namespace").str().is_empty() {
                errors.required(&at.key("namespace").path, "");
            }
        }
        "User" | "Group" => {
            if group.str() != GROUP {
                errors.not_supported(&group.path, group.json(), &[GROUP]);
            }
        }
        _ => errors.not_supported(&kind.path, &json!(kind.str()), &["ServiceAccount", "User", "Group"]),
    }
}
