//! Workloads and the groups of pods made of their templates (gate `GenericWorkload`, alpha).
//!
//! Rule: KEP-4671 and the types of `scheduling.k8s.io/v1alpha2`. Fields of the gates TopologyAwareWorkloadScheduling,
//! WorkloadAwarePreemption and DRAWorkloadResourceClaims, which cannot be opened, are dropped.

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::devices::{at_most, unique};
use super::generic::{immutable, set};
use super::parts::{Parts, Rules};
use super::tree::each;

const MAX_TEMPLATES: usize = 8;
/// Fields of a group's spec, and of a template, whose gates are closed.
const CLOSED: [&str; 5] =
    ["schedulingConstraints", "resourceClaims", "disruptionMode", "priorityClassName", "priority"];

pub(super) static POD_GROUP: Parts = Parts {
    status_keeps: super::generic::OWN_META,
    create: |_, o| drop_closed(&mut o["spec"]),
    update: |_, new, _| drop_closed(&mut new["spec"]),
    validate: |o, errors| {
        let spec = Cursor::root(o).key("spec");
        template_reference(&spec.key("podGroupTemplateRef"), errors);
        policy(&spec.key("schedulingPolicy"), errors);
    },
    validate_change: |new, old, errors| {
        for key in ["podGroupTemplateRef", "schedulingPolicy"] {
            immutable(&format!("spec.{key}"), &new["spec"][key], &old["spec"][key], errors);
        }
    },
    rules: Rules::OnCreate,
    ..Parts::PLAIN
};

pub(super) static WORKLOAD: Parts = Parts {
    status_keeps: super::generic::OWN_META,
    create: |_, o| drop_closed_templates(o),
    update: |_, new, _| drop_closed_templates(new),
    validate: |o, errors| {
        let spec = Cursor::root(o).key("spec");
        controller(&spec.key("controllerRef"), errors);
        let templates = spec.key("podGroupTemplates");
        if templates.is_empty() {
            return errors.required(&templates.path, "");
        }
        if at_most(&templates, MAX_TEMPLATES, errors) {
            unique_names(&templates, errors);
            for template in templates.items() {
                required_name(&template.key("name"), names::dns1123_label, errors);
                policy(&template.key("schedulingPolicy"), errors);
            }
        }
    },
    validate_change: |new, old, errors| {
        for key in ["controllerRef", "podGroupTemplates"] {
            immutable(&format!("spec.{key}"), &new["spec"][key], &old["spec"][key], errors);
        }
    },
    rules: Rules::OnCreate,
    status: false,
    ..Parts::PLAIN
};

fn drop_closed(spec: &mut Value) {
    CLOSED.into_iter().for_each(|key| set(spec, key, None));
}

fn drop_closed_templates(workload: &mut Value) {
    each(&mut workload["spec"], "podGroupTemplates").for_each(drop_closed);
}

fn unique_names(templates: &Cursor<'_>, errors: &mut ErrorList) {
    unique(templates, |t| t.json()["name"].as_str().unwrap_or_default(), errors);
}

fn required_name(at: &Cursor<'_>, rule: fn(&str) -> Vec<String>, errors: &mut ErrorList) {
    match at.str() {
        "" => errors.required(&at.path, ""),
        text => errors.invalid_all(&at.path, at.json(), rule(text)),
    }
}

/// One of the ways to schedule a group.
fn policy(at: &Cursor<'_>, errors: &mut ErrorList) {
    one_of(at, &["basic", "gang"], errors);
    let gang = at.key("gang");
    if gang.exists() {
        let least = gang.key("minCount");
        match least.i64().unwrap_or(0) {
            0 => errors.required(&least.path, ""),
            n if n < 1 => errors.invalid(&least.path, least.json(), "must be greater than or equal to 1"),
            _ => {}
        }
    }
}

/// Exactly one member of a union is there.
pub(super) fn one_of(at: &Cursor<'_>, members: &[&str], errors: &mut ErrorList) {
    let quoted = || members.iter().map(|m| format!("`{m}`")).collect::<Vec<_>>().join(", ");
    let given: Vec<&str> = members.iter().copied().filter(|m| at.key(m).exists()).collect();
    match given.len() {
        1 => {}
        0 => errors.invalid(&at.path, &json!(""), &format!("must specify one of: {}", quoted())),
        _ => {
            let shown = json!(format!("{{{}}}", given.join(", ")));
            errors.invalid(&at.path, &shown, &format!("must specify exactly one of: {}", quoted()));
        }
    }
}

/// Which template of which workload a group was made of.
fn template_reference(at: &Cursor<'_>, errors: &mut ErrorList) {
    if !at.exists() {
        return;
    }
    one_of(at, &["workload"], errors);
    let workload = at.key("workload");
    if workload.exists() {
        required_name(&workload.key("workloadName"), names::dns1123_subdomain, errors);
        required_name(&workload.key("podGroupTemplateName"), names::dns1123_label, errors);
    }
}

/// What a workload stands for.
fn controller(at: &Cursor<'_>, errors: &mut ErrorList) {
    if !at.exists() {
        return;
    }
    let group = at.key("apiGroup");
    if !group.str().is_empty() {
        errors.invalid_all(&group.path, group.json(), names::dns1123_subdomain(group.str()));
    }
    required_name(&at.key("kind"), names::path_segment, errors);
    required_name(&at.key("name"), names::path_segment, errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::{Context, Strategy as _};

    fn said(strategy: &Parts, new: Value, old: Option<Value>) -> String {
        let (context, mut new) = (Context::new(jiff::Timestamp::UNIX_EPOCH), new);
        let mut errors = ErrorList::default();
        match &old {
            None => {
                strategy.prepare_create(&context, &mut new);
                strategy.validate_create(&new, &mut errors);
            }
            Some(old) => {
                strategy.prepare_update(&context, &mut new, old);
                strategy.validate_update(&new, old, &mut errors);
            }
        }
        errors.aggregate()
    }

    #[test]
    fn groups_have_one_policy_that_stays() {
        let group = |spec: Value| json!({"metadata": {"name": "g"}, "spec": spec});
        let gang = |n: i64| group(json!({"schedulingPolicy": {"gang": {"minCount": n}}}));
        let lines = [
            said(&POD_GROUP, gang(2), None),
            said(&POD_GROUP, gang(0), None),
            said(&POD_GROUP, gang(-1), None),
            said(&POD_GROUP, group(json!({"schedulingPolicy": {}})), None),
            said(
                &POD_GROUP,
                group(json!({"schedulingPolicy": {"basic": {}, "gang": {"minCount": 1}}})),
                None,
            ),
            said(
                &POD_GROUP,
                group(
                    json!({"schedulingPolicy": {"basic": {}}, "podGroupTemplateRef": {"workload": {"workloadName": "A"}}}),
                ),
                None,
            ),
            said(&POD_GROUP, gang(3), Some(gang(2))),
        ];
        expect_test::expect![[r#"
            []
            spec.schedulingPolicy.gang.minCount: Required value
            spec.schedulingPolicy.gang.minCount: Invalid value: -1: must be greater than or equal to 1
            spec.schedulingPolicy: Invalid value: "": must specify one of: `basic`, `gang`
            spec.schedulingPolicy: Invalid value: "{basic, gang}": must specify exactly one of: `basic`, `gang`
            [spec.podGroupTemplateRef.workload.workloadName: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*'), spec.podGroupTemplateRef.workload.podGroupTemplateName: Required value]
            spec.schedulingPolicy: Invalid value: {"gang":{"minCount":3}}: field is immutable"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn workloads_have_one_to_eight_templates_that_stay() {
        let template = |name: &str| json!({"name": name, "schedulingPolicy": {"basic": {}}, "priority": 7});
        let workload = |templates: Vec<Value>| json!({"metadata": {"name": "w"}, "spec": {"podGroupTemplates": templates}});
        let many = (0..9).map(|n| template(&format!("t{n}"))).collect();
        let lines = [
            said(&WORKLOAD, workload(vec![template("a")]), None),
            said(&WORKLOAD, workload(Vec::new()), None),
            said(&WORKLOAD, workload(many), None),
            said(&WORKLOAD, workload(vec![template("a"), template("a"), template("")]), None),
            said(
                &WORKLOAD,
                json!({"metadata": {"name": "w"}, "spec": {"controllerRef": {"apiGroup": "batch", "name": "a/b"}, "podGroupTemplates": [template("a")]}}),
                None,
            ),
        ];
        expect_test::expect![[r#"
            []
            spec.podGroupTemplates: Required value
            spec.podGroupTemplates: Too many: 9: must have at most 8 items
            [spec.podGroupTemplates[1]: Duplicate value: "a", spec.podGroupTemplates[2].name: Required value]
            [spec.controllerRef.kind: Required value, spec.controllerRef.name: Invalid value: "a/b": may not contain '/']"#]]
        .assert_eq(&lines.join("\n"));
        let mut dropped = workload(vec![template("a")]);
        WORKLOAD.prepare_create(&Context::new(jiff::Timestamp::UNIX_EPOCH), &mut dropped);
        assert!(dropped["spec"]["podGroupTemplates"][0].get("priority").is_none());
    }
}
