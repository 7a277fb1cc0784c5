//! Metadata that every kind has: what the server fills in, keeps, and refuses.
//!
//! Rule: Kubernetes API conventions, "Metadata"; Kubernetes documentation, "Object Names and IDs".

use std::borrow::Cow;

use api::field::{Cursor, ErrorList};
use api::kinds::Kind;
use api::{meta, names};
use jiff::Timestamp;
use serde_json::{Value, json};

/// `generateName` keeps this much and adds five random characters.
const GENERATE_PREFIX: usize = 58;
/// All annotations together.
const ANNOTATIONS: usize = 256 * 1024;

/// A new object's metadata as the server fills it in: name, uid, creation time; nothing of what only it may set.
pub fn begin_meta(kind: &Kind, namespace: &str, object: &mut Value, now: Timestamp) {
    clear_meta(kind, namespace, object);
    fill_meta(kind, object, now);
}

/// Takes out of a new object's metadata what only the server may set, and puts its namespace in. Admission sees it
/// like this.
pub fn clear_meta(kind: &Kind, namespace: &str, object: &mut Value) {
    let meta = meta::metadata_mut(object);
    for key in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "resourceVersion",
        "generation",
    ] {
        meta.remove(key);
    }
    if kind.namespaced {
        meta.insert("namespace".to_owned(), json!(namespace));
    } else {
        meta.remove("namespace");
    }
}

/// Gives a new object what only the server may give: a name where it has only a prefix, uid, creation time.
pub fn fill_meta(kind: &Kind, object: &mut Value, now: Timestamp) {
    let strategy = crate::strategy::of(kind);
    let meta = meta::metadata_mut(object);
    let name = meta.get("name").and_then(Value::as_str).unwrap_or_default();
    let prefix = meta.get("generateName").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() && !prefix.is_empty() {
        let generated = generate_name(prefix);
        meta.insert("name".to_owned(), json!(generated));
    }
    meta.insert("uid".to_owned(), json!(uuid::Uuid::new_v4().to_string()));
    meta.insert("creationTimestamp".to_owned(), json!(meta::format_time(now)));
    if strategy.has_generation() {
        meta.insert("generation".to_owned(), json!(1));
    }
}

/// Five characters after the prefix, without vowels and look-alikes.
fn generate_name(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let end = prefix.floor_char_boundary(GENERATE_PREFIX);
    let mut name = prefix[..end].to_owned();
    for _ in 0..5 {
        name.push(ALPHABET[rand::random_range(0..ALPHABET.len())] as char);
    }
    name
}

/// What no update may change silently is put back: uid (where the client left it out), creation, deletion.
pub fn keep_system_meta(new: &mut Value, old: &Value) {
    let old_meta = &old["metadata"];
    let meta = meta::metadata_mut(new);
    let mut kept = vec!["creationTimestamp", "generation", "selfLink"];
    // deletion never goes back; that it cannot begin by an update is validated
    if meta::is_being_deleted(old) {
        kept.extend(["deletionTimestamp", "deletionGracePeriodSeconds"]);
    }
    for key in kept {
        match old_meta.get(key) {
            Some(value) => meta.insert(key.to_owned(), value.clone()),
            None => meta.remove(key),
        };
    }
    for key in ["uid", "namespace", "name", "generateName"] {
        if meta.get(key).is_none_or(|v| v.as_str().is_none_or(str::is_empty))
            && let Some(value) = old_meta.get(key)
        {
            meta.insert(key.to_owned(), value.clone());
        }
    }
    // finalizers cannot be added once deletion has begun; strategies and the registry only remove them
}

/// Checks metadata that every kind has.
pub fn validate_meta(kind: &Kind, object: &Value, errors: &mut ErrorList) {
    general_rules(kind, name_rule(kind), object, errors);
    finalizers_are_qualified(kind, object, errors);
}

/// The rules of metadata that hold for all kinds, with a rule of names.
fn general_rules(kind: &Kind, rule: fn(&str) -> Vec<String>, object: &Value, errors: &mut ErrorList) {
    let meta = Cursor::root(object).key("metadata");
    let prefix = meta.key("generateName");
    if !prefix.str().is_empty() {
        errors.invalid_all("metadata.generateName", prefix.json(), rule(&without_last_dash(prefix.str())));
    }
    let name = meta.key("name");
    if name.str().is_empty() {
        errors.required("metadata.name", "name or generateName is required");
    } else {
        errors.invalid_all("metadata.name", name.json(), rule(name.str()));
    }
    let namespace = meta.key("namespace");
    if kind.namespaced {
        errors.invalid_all("metadata.namespace", namespace.json(), names::dns1123_label(namespace.str()));
    }
    labels(&meta.key("labels"), errors);
    annotations(&meta.key("annotations"), errors);
    owners(&meta, errors);
    for finalizer in meta.key("finalizers").items() {
        errors.invalid_all("metadata.finalizers", finalizer.json(), names::qualified_name(finalizer.str()));
    }
    let list = meta.key("finalizers");
    let has = |name: &str| list.items().any(|f| f.str() == name);
    if has("orphan") && has("foregroundDeletion") {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.invalid(&list.path, list.json(), why);
    }
}

/// A prefix of names is judged as if a letter stood where it ends in a dash.
fn without_last_dash(prefix: &str) -> Cow<'_, str> {
    match prefix.strip_suffix('-') {
        Some(start) if !start.is_empty() => {
            let mut start = start.to_owned();
            start.pop();
            Cow::Owned(start + "a")
        }
        _ => Cow::Borrowed(prefix),
    }
}

/// Kinds of the groups besides the first ones take finalizers without a domain.
fn finalizers_are_qualified(kind: &Kind, object: &Value, errors: &mut ErrorList) {
    let lenient = ["admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io"];
    if kind.definition.is_some() || lenient.contains(&kind.group.as_str()) {
        return;
    }
    for finalizer in Cursor::root(object).key("metadata").key("finalizers").items() {
        if is_unqualified(finalizer.str()) {
            errors.invalid(&finalizer.path, finalizer.json(), UNQUALIFIED);
        }
    }
}

/// Whether a finalizer has no domain, though it needs one.
pub(crate) fn is_unqualified(finalizer: &str) -> bool {
    !finalizer.contains('/') && !FINALIZERS.contains(&finalizer)
}

fn owners(meta: &Cursor<'_>, errors: &mut ErrorList) {
    let mut controller: Option<String> = None;
    for owner in meta.key("ownerReferences").items() {
        // the reference names the list, not the item
        for (field, text) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if owner.key(field).str().is_empty() {
                errors.invalid(&format!("metadata.ownerReferences.{field}"), &json!(""), text);
            }
        }
        if owner.key("controller").bool() == Some(true) {
            let this = format!("{}/{}", owner.key("kind").str(), owner.key("name").str());
            if let Some(first) = &controller {
                errors.invalid_shown(
                    "metadata.ownerReferences",
                    &crate::strategy::internal::show_list("OwnerReference", meta.key("ownerReferences").json()),
                    &format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"),
                );
            }
            controller.get_or_insert(this);
        }
    }
}

/// Finalizers that need no domain before their name.
const FINALIZERS: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];
/// What is said about others without one.
pub(crate) const UNQUALIFIED: &str = "name is neither a standard finalizer name nor is it fully qualified";

/// Keys and values of labels.
pub(crate) fn labels(at: &Cursor<'_>, errors: &mut ErrorList) {
    for (key, value) in at.entries() {
        errors.invalid_all(&at.path, &json!(key), names::qualified_name(key));
        errors.invalid_all(&at.path, value.json(), names::label_value(value.str()));
    }
}

/// Keys and size of annotations.
pub(crate) fn annotations(at: &Cursor<'_>, errors: &mut ErrorList) {
    let mut size = 0;
    for (key, value) in at.entries() {
        errors.invalid_all(&at.path, &json!(key), names::qualified_name(&key.to_ascii_lowercase()));
        size += key.len() + value.str().len();
    }
    if size > ANNOTATIONS {
        errors.too_long(&at.path, ANNOTATIONS);
    }
}

fn name_rule(kind: &Kind) -> fn(&str) -> Vec<String> {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Namespace") => names::dns1123_label,
        ("", "Service") | ("apps", "StatefulSet") => names::dns1123_label,
        ("rbac.authorization.k8s.io" | "apiregistration.k8s.io", _) | ("", "Event") => names::path_segment,
        // named by rules of their own
        ("certificates.k8s.io", _) | ("networking.k8s.io", "IPAddress") => |_| Vec::new(),
        _ => names::dns1123_subdomain,
    }
}

/// Checks the metadata of a changed object: by the rules of all kinds, then as often as the kind's own rules look at
/// it. The reference reports what it finds each time.
pub fn validate_meta_update(
    kind: &Kind,
    subresource: &str,
    new: &Value,
    old: &Value,
    errors: &mut ErrorList,
) {
    general_rules(kind, names::path_segment, new, errors);
    change_rules(kind, new, old, errors);
    let (as_change, as_new) = if matches!(subresource, "" | "scale") { looks(kind) } else { (1, 0) };
    for _ in 0..as_change {
        change_rules(kind, new, old, errors);
        finalizers_are_qualified(kind, new, errors);
    }
    for _ in 0..as_new {
        validate_meta(kind, new, errors);
    }
}

/// How often the update rules of a kind look at metadata as that of a change, and as that of a new object.
fn looks(kind: &Kind) -> (usize, usize) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Event") | ("policy", "PodDisruptionBudget") => (0, 0),
        ("", "LimitRange")
        | ("admissionregistration.k8s.io" | "flowcontrol.apiserver.k8s.io", _)
        | ("discovery.k8s.io", "EndpointSlice")
        | ("storage.k8s.io", "VolumeAttachment") => (0, 1),
        ("", "PersistentVolume") | ("storage.k8s.io", "CSINode") => (0, 2),
        ("", "Endpoints" | "PodTemplate" | "ResourceQuota")
        | ("storage.k8s.io", "CSIDriver")
        | ("networking.k8s.io", "IPAddress" | "NetworkPolicy" | "ServiceCIDR") => (1, 0),
        (
            ""
            | "apiregistration.k8s.io"
            | "certificates.k8s.io"
            | "networking.k8s.io"
            | "node.k8s.io"
            | "rbac.authorization.k8s.io"
            | "storage.k8s.io",
            _,
        )
        | ("apps", "ControllerRevision")
        | ("batch", "Job") => (1, 1),
        _ => (1, 0),
    }
}

/// What an update may not do to metadata.
fn change_rules(kind: &Kind, new: &Value, old: &Value, errors: &mut ErrorList) {
    for key in ["name", "namespace", "uid"] {
        if new["metadata"][key] != old["metadata"][key] && (kind.namespaced || key != "namespace") {
            errors.invalid(&format!("metadata.{key}"), &new["metadata"][key], "field is immutable");
        }
    }
    if !meta::is_being_deleted(old) {
        let begun = &new["metadata"]["deletionTimestamp"];
        if !begun.is_null() {
            errors.invalid("metadata.deletionTimestamp", begun, "field is immutable");
        }
        let grace = &new["metadata"]["deletionGracePeriodSeconds"];
        if !grace.is_null() {
            errors.invalid(
                "metadata.deletionGracePeriodSeconds",
                grace,
                "field is immutable; may only be changed via deletion",
            );
        }
    } else {
        let before: Vec<&str> = meta::finalizers(old).collect();
        let added: Vec<&str> = meta::finalizers(new).filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            errors.forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.iter().map(|f| api::field::quote(f)).collect::<Vec<_>>().join(", ")
                ),
            );
        }
    }
    let meta = Cursor::root(new).key("metadata");
    labels(&meta.key("labels"), errors);
    annotations(&meta.key("annotations"), errors);
    owners(&meta, errors);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit_a_label() {
        let name = generate_name(&"a".repeat(100));
        assert_eq!(name.len(), 63);
        assert!(generate_name("web-").starts_with("web-"));
    }

    fn kind(group: &str, version: &str, resource: &str) -> &'static Kind {
        api::kinds::find(group, version, resource).expect("a kind")
    }

    fn fields(errors: &ErrorList) -> String {
        errors.0.iter().map(|e| e.field.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn metadata_of_a_change_is_looked_at_as_often_as_the_reference_does() {
        let old = json!({"metadata": {"name": "n", "namespace": "d", "uid": "u"}});
        let new = json!({"metadata": {"name": "n", "namespace": "d", "uid": "u", "labels": {"a": "b c"},
            "finalizers": ["plain"]}});
        let found = |kind: &Kind, subresource: &str| {
            let mut errors = ErrorList::default();
            validate_meta_update(kind, subresource, &new, &old, &mut errors);
            fields(&errors).replace("metadata.", "")
        };
        let shown = [
            found(kind("", "v1", "configmaps"), ""),
            found(kind("", "v1", "limitranges"), ""),
            found(kind("", "v1", "pods"), "status"),
            found(kind("apps", "v1", "deployments"), ""),
            found(kind("apiregistration.k8s.io", "v1", "apiservices"), ""),
        ];
        expect_test::expect![[r#"
            labels labels labels finalizers[0] labels finalizers[0]
            labels labels labels finalizers[0]
            labels labels labels finalizers[0]
            labels labels labels finalizers[0]
            labels labels labels labels"#]]
        .assert_eq(&shown.join("\n"));
    }

    #[test]
    fn prefixes_of_names_are_judged_too() {
        let found = |prefix: &str, name: &str| {
            let mut errors = ErrorList::default();
            let object = json!({"metadata": {"generateName": prefix, "name": name, "namespace": "d"}});
            validate_meta(kind("", "v1", "pods"), &object, &mut errors);
            fields(&errors)
        };
        assert_eq!(found("web-", "web-x"), "");
        assert_eq!(found("We", "We2x"), "metadata.generateName metadata.name");
        assert_eq!(found("-", "-x"), "metadata.generateName metadata.name");
    }
}
