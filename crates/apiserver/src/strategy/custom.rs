//! Custom resources: all rules come from their definition. Rule: Kubernetes documentation, "Custom Resource Definitions".

use api::custom::{Definition, ScalePaths};
use api::field::ErrorList;
use api::selector::LabelSelector;
use serde_json::{Value, json};

use super::{Context, Strategy, generic};

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

    fn has_status(&self) -> bool {
        self.own().has_status
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }
}

fn without_metadata(object: &Value) -> Vec<(&String, &Value)> {
    object.as_object().into_iter().flatten().filter(|(key, _)| *key != "metadata").collect()
}

fn validate(definition: &Definition, new: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    definition.own().schema.validate(new, old, errors);
    if let Some(paths) = &definition.own().scale {
        validate_scale(paths, new, errors);
    }
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
