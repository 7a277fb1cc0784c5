//! Migrations to a new storage version (gate `StorageVersionMigrator`, beta, closed in v1.36).
//!
//! Rule: KEP-4192 and the types of `storagemigration.k8s.io/v1beta1`.

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::Value;

use super::generic::immutable;
use super::parts::Parts;
use super::texts;

pub(super) static STORAGE_VERSION_MIGRATION: Parts = Parts {
    status_keeps: super::generic::OWN_META,
    validate: |o, errors| {
        let resource = Cursor::root(o).key("spec").key("resource");
        let (plural, group) = (resource.key("resource"), resource.key("group"));
        match plural.str() {
            "" => errors.required(&plural.path, "resource is required to be set"),
            text => joined(&plural, names::dns1035_label(text), errors),
        }
        if !group.str().is_empty() {
            joined(&group, names::dns1123_subdomain(group.str()), errors);
        }
    },
    validate_change: |new, old, errors| immutable("spec", &new["spec"], &old["spec"], errors),
    validate_status: status,
    unconditional_update: false,
    ..Parts::UNCOUNTED
};

/// All complaints about a name in one error.
fn joined(at: &Cursor<'_>, complaints: Vec<String>, errors: &mut ErrorList) {
    if !complaints.is_empty() {
        errors.invalid(&at.path, at.json(), &complaints.join(","));
    }
}

fn status(new: &Value, old: &Value, errors: &mut ErrorList) {
    let status = Cursor::root(new).key("status");
    let (revision, conditions) = (status.key("resourceVersion"), status.key("conditions"));
    let text = revision.str();
    if !text.is_empty() && (text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit())) {
        let why = format!("resource version is not well formed: {text}");
        errors.invalid(&revision.path, revision.json(), &why);
    }
    texts::conditions(&conditions, errors);
    let was = old["status"]["resourceVersion"].as_str().unwrap_or_default();
    if !was.is_empty() && was != text {
        errors.invalid(&revision.path, revision.json(), "field is immutable");
    }
    let is = |object: &Value, kind: &str| {
        let mut list = object["status"]["conditions"].as_array().into_iter().flatten();
        list.any(|c| c["type"] == kind && c["status"] == "True")
    };
    let mut refuse = |why: &str| errors.invalid(&conditions.path, conditions.json(), why);
    if is(new, "Succeeded") && is(new, "Failed") {
        refuse("Both success and failed conditions cannot be true at the same time");
    }
    if is(old, "Succeeded") && !is(new, "Succeeded") {
        refuse("Success condition cannot be set to false once it is true");
    }
    if is(old, "Failed") && !is(new, "Failed") {
        refuse("Failed condition cannot be set to false once it is true");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::{Context, Strategy as _};
    use serde_json::json;

    fn migration(group: &str, resource: &str) -> Value {
        json!({"metadata": {"name": "m"}, "spec": {"resource": {"group": group, "resource": resource}}})
    }

    #[test]
    fn a_migration_names_a_resource_which_stays() {
        let said = |new: Value, old: Option<Value>| {
            let mut errors = ErrorList::default();
            match old {
                None => STORAGE_VERSION_MIGRATION.validate_create(&new, &mut errors),
                Some(old) => STORAGE_VERSION_MIGRATION.validate_update(&new, &old, &mut errors),
            }
            errors.aggregate()
        };
        let lines = [
            said(migration("", "secrets"), None),
            said(migration("apps", ""), None),
            said(migration("-", "."), None),
            said(migration("apps", "deployments"), Some(migration("batch", "deployments"))),
        ];
        expect_test::expect![[r#"
            []
            spec.resource.resource: Required value: resource is required to be set
            [spec.resource.resource: Invalid value: ".": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?'), spec.resource.group: Invalid value: "-": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')]
            spec: Invalid value: {"resource":{"group":"apps","resource":"deployments"}}: field is immutable"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn an_end_is_an_end_and_the_revision_stays() {
        let with = |revision: &str, conditions: &[(&str, &str)]| {
            let condition = |(kind, status): &(&str, &str)| json!({"type": kind, "status": status, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let conditions: Vec<_> = conditions.iter().map(condition).collect();
            let mut migration = migration("", "secrets");
            migration["status"] = json!({"resourceVersion": revision, "conditions": conditions});
            migration
        };
        let said = |mut new: Value, old: Value| {
            let mut errors = ErrorList::default();
            let context = Context::new(jiff::Timestamp::UNIX_EPOCH);
            STORAGE_VERSION_MIGRATION.prepare_status_update(&context, &mut new, &old);
            STORAGE_VERSION_MIGRATION.validate_status_update(&new, &old, &mut errors);
            let text = errors.aggregate();
            text.replace(&new["status"]["conditions"].to_string(), "...")
        };
        let (open, runs) = (with("", &[]), with("123", &[("Running", "True")]));
        let done = with("123", &[("Running", "True"), ("Succeeded", "True")]);
        let lines = [
            said(runs.clone(), open.clone()),
            said(done.clone(), runs.clone()),
            said(with("456", &[("Running", "True")]), runs.clone()),
            said(with("abc", &[]), open),
            said(with("123", &[("Succeeded", "True"), ("Failed", "True")]), runs),
            said(with("123", &[("Succeeded", "False")]), done),
        ];
        expect_test::expect![[r#"
            []
            []
            status.resourceVersion: Invalid value: "456": field is immutable
            status.resourceVersion: Invalid value: "abc": resource version is not well formed: abc
            status.conditions: Invalid value: ...: Both success and failed conditions cannot be true at the same time
            status.conditions: Invalid value: ...: Success condition cannot be set to false once it is true"#]]
        .assert_eq(&lines.join("\n"));
    }
}
