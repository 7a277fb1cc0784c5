//! Custom resources: all rules come from their definition. Rule: Kubernetes documentation, "Custom Resource Definitions".

use std::collections::BTreeSet;
use std::sync::Arc;

use api::custom::{Definition, ScalePaths};
use api::field::{ErrorList, Reason};
use api::meta;
use api::selector::LabelSelector;
use serde_json::{Value, json};

use super::{Context, Strategy, generic};
use crate::cel::{self, rules::Rules};
use crate::object_meta::is_unqualified;

/// Errors after which rules may not find what they read.
const BLOCKING: &[Reason] =
    &[Reason::NotSupported, Reason::Required, Reason::TooLong, Reason::TooMany, Reason::TypeInvalid];

impl Strategy for Definition {
    fn default(&self, object: &mut Value) {
        self.own().schema.default(object);
    }

    fn prepare_update(&self, _context: &Context, new: &mut Value, old: &Value) {
        if self.has_status() {
            generic::copy("status", new, old);
        }
        if without_metadata(new) != without_metadata(old) {
            generic::count(new, old);
        }
    }

    fn validate_create(&self, object: &Value, errors: &mut ErrorList) {
        validate(self, object, None, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut ErrorList) {
        validate(self, new, Some(old), errors);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut ErrorList) {
        validate(self, new, Some(old), errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let had: Vec<&str> = old.map(meta::finalizers).into_iter().flatten().collect();
        let added: BTreeSet<&str> = meta::finalizers(new).filter(|f| !had.contains(f)).collect();
        added.into_iter().filter(|f| is_unqualified(f)).map(unqualified).collect()
    }

    fn has_status(&self) -> bool {
        self.own().has_status
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }
}

/// What is said of a finalizer without a domain, which custom resources may have.
fn unqualified(finalizer: &str) -> String {
    // who has the dots of a domain lacks the name after it
    let path = if finalizer.contains('.') { " including a path (/)" } else { "" };
    let name = api::field::quote(finalizer);
    format!(
        "metadata.finalizers: {name}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"
    )
}

fn without_metadata(object: &Value) -> Vec<(&String, &Value)> {
    object.as_object().into_iter().flatten().filter(|(key, _)| *key != "metadata").collect()
}

/// Schema, counts of `scale`, then rules; these only run on what the schema takes.
fn validate(definition: &Definition, new: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    definition.own().schema.validate(new, old, errors);
    if let Some(paths) = &definition.own().scale {
        validate_scale(paths, new, errors);
    }
    let rules = rules(definition);
    if rules.is_empty() {
        return;
    }
    if errors.0.iter().any(|error| BLOCKING.contains(&error.reason)) {
        errors.invalid(
            "<nil>",
            &Value::Null,
            "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
        );
        return;
    }
    let warnings = rules.validate(new, old, errors);
    errors.1.extend(warnings);
}

/// The compiled rules of a version. A definition whose rules do not compile any more has none.
fn rules(definition: &Definition) -> Arc<Rules> {
    let made = definition.own().memo(|| {
        let rules = cel::rules::compile(definition.openapi(), "").unwrap_or_else(|errors| {
            tracing::error!(errors = errors.aggregate(), definition = definition.family().name, "rules");
            Rules::default()
        });
        Arc::new(rules)
    });
    made.clone().downcast().unwrap_or_default()
}

/// What `scale` shows must be shown as a count.
fn validate_scale(paths: &ScalePaths, object: &Value, errors: &mut ErrorList) {
    for path in [&paths.replicas, &paths.status_replicas] {
        match api::custom::at(object, path) {
            None | Some(Value::Null) => {}
            Some(count) => match count.as_i64() {
                Some(0..=0x7fff_ffff) => {}
                Some(0x8000_0000..) => {
                    errors.invalid(path, count, &format!("should be less than or equal to {}", i32::MAX));
                }
                Some(_) => errors.invalid(path, count, "should be a non-negative integer"),
                None => errors.invalid(path, &json!(0), "should be a non-negative integer"),
            },
        }
    }
    if let Some(Value::String(text)) =
        api::custom::at(object, &paths.selector).filter(|_| !paths.selector.is_empty())
        && let Err(why) = LabelSelector::parse(text)
    {
        errors.invalid(&paths.selector, &json!(text), &why.to_string());
    }
}
