//! Label selectors inside of objects.

use api::field::{Cursor, ErrorList};
use api::{meta, names, selector};
use serde_json::Value;

/// Whether it selects everything (or is not there).
pub(super) fn is_empty(selector: &Value) -> bool {
    super::tree::is_empty(selector.get("matchLabels"))
        && super::tree::is_empty(selector.get("matchExpressions"))
}

/// Whether it selects these labels; a malformed selector selects nothing.
pub(super) fn matches(selector: &Value, labels: &Value) -> bool {
    selector::LabelSelector::from_value(selector).is_ok_and(|s| s.matches(&meta::string_map(labels)))
}

/// Whether it is there and cannot be read.
pub(super) fn is_malformed(selector: &Value) -> bool {
    let mut errors = ErrorList::default();
    validate(&Cursor::at(selector, ""), &mut errors);
    !errors.is_empty()
}

/// A map of labels as keys and values of a selector.
pub(super) fn labels(at: &Cursor<'_>, errors: &mut ErrorList) {
    for (key, value) in at.entries() {
        errors.invalid_all(&at.path, &Value::String(key.to_owned()), names::qualified_name(key));
        errors.invalid_all(&at.path, value.json(), names::label_value(value.str()));
    }
}

/// Keys, values and operators of a selector.
pub(super) fn validate(at: &Cursor<'_>, errors: &mut ErrorList) {
    validate_with(at, true, errors);
}

/// As [`validate`]; where `values` is false the values of expressions may be no label values.
pub(super) fn validate_with(at: &Cursor<'_>, values: bool, errors: &mut ErrorList) {
    labels(&at.key("matchLabels"), errors);
    for expression in at.key("matchExpressions").items() {
        requirement(&expression, values, errors);
    }
}

fn requirement(at: &Cursor<'_>, check_values: bool, errors: &mut ErrorList) {
    let (key, operator, values) = (at.key("key"), at.key("operator"), at.key("values"));
    match operator.str() {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors.required(&values.path, "must be specified when `operator` is 'In' or 'NotIn'");
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                errors.forbidden(
                    &values.path,
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
        }
        _ => errors.invalid(
            &operator.path,
            &Value::String(operator.str().to_owned()),
            "not a valid selector operator",
        ),
    }
    errors.invalid_all(&key.path, &Value::String(key.str().to_owned()), names::qualified_name(key.str()));
    if check_values {
        for value in values.items() {
            errors.invalid_all(&value.path, value.json(), names::label_value(value.str()));
        }
    }
}
