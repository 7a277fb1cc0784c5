//! How much of a device's capacity one of those who share it may ask for.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList};
use api::quantity::Quantity;
use serde_json::json;

use super::devices::at_most;
use super::quantities;

const MAX_VALUES: usize = 10;

/// What a device gives to those who share it.
pub(super) fn request_policy(capacity: &Cursor<'_>, errors: &mut ErrorList) {
    let policy = capacity.key("requestPolicy");
    let (values, range, default) =
        (policy.key("validValues"), policy.key("validRange"), policy.key("default"));
    if !values.is_empty() && range.exists() {
        errors.forbidden(
            &policy.path,
            "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time",
        );
        return;
    }
    let most = quantities::parse(capacity.key("value").json());
    let (Some(most), Some(wanted)) = (most, quantities::parse(default.json())) else {
        for (given, name) in [(!values.is_empty(), "validValues"), (range.exists(), "validRange")] {
            if given && !default.exists() {
                errors.required(&default.path, &format!("required when {name} is defined"));
            }
        }
        return;
    };
    if range.exists() {
        return policy_range(&range, &wanted, &most, errors);
    }
    if values.is_empty() {
        return;
    }
    let amounts: Vec<_> = values.items().map(|v| (v.path.clone(), quantities::parse(v.json()))).collect();
    for pair in amounts.windows(2) {
        if let [(_, Some(a)), (path, Some(b))] = pair
            && a > b
        {
            errors.invalid(path, &json!(b.to_string()), "values must be sorted in ascending order");
        }
    }
    // of too many nothing more is known
    let few = at_most(&values, MAX_VALUES, errors);
    if few {
        larger_and_repeated(&amounts, &most, errors);
    }
    if !few || !amounts.iter().any(|(_, a)| *a == Some(wanted)) {
        let why = "default value is not valid according to the requestPolicy";
        errors.invalid(&values.path, &json!(wanted.to_string()), why);
    }
}

fn larger_and_repeated(amounts: &[(String, Option<Quantity>)], most: &Quantity, errors: &mut ErrorList) {
    for (path, amount) in amounts {
        if let Some(amount) = amount.filter(|a| a > most) {
            let why = format!("option is larger than capacity value: {most}");
            errors.invalid(path, &json!(amount.to_string()), &why);
        }
    }
    let mut seen = BTreeSet::new();
    for (path, value) in amounts.iter().filter_map(|(path, amount)| Some((path, amount.as_ref()?.value()))) {
        if !seen.insert(value) {
            errors.duplicate(path, &json!(value.to_string()));
        }
    }
}

fn policy_range(range: &Cursor<'_>, default: &Quantity, most: &Quantity, errors: &mut ErrorList) {
    let amount = |key: &str| quantities::parse(range.key(key).json());
    let Some(min) = amount("min") else {
        return errors.required(&range.key("min").path, "required when validRange is defined");
    };
    let mut refuse = |key: &str, shown: &Quantity, why: String| {
        errors.invalid(&range.key(key).path, &json!(shown.to_string()), &why);
    };
    if min > *most {
        refuse("min", &min, format!("min is larger than capacity value: {most}"));
    }
    if *default < min {
        refuse("min", default, format!("default is less than min: {min}"));
    }
    let max = amount("max");
    if let Some(max) = &max {
        if min > *max {
            refuse("max", &min, format!("min is larger than max: {max}"));
        }
        if max > most {
            refuse("max", max, format!("max is larger than capacity value: {most}"));
        }
        if default > max {
            refuse("max", default, format!("default is more than max: {max}"));
        }
    }
    let Some(step) = amount("step") else { return };
    if step.signum() <= 0 {
        return refuse("step", &step, "must be greater than zero".to_owned());
    }
    let next = min.plus(&step);
    if next > *most {
        refuse("step", &step, format!("one step {next} is larger than capacity value: {most}"));
    }
    for value in [Some(*default), max].into_iter().flatten() {
        let off = value.value().checked_sub(min.value()).and_then(|d| d.checked_rem(step.value()));
        if off.is_some_and(|off| off != 0) {
            let why = format!("value is not a multiple of a given step ({step}) from ({min})");
            refuse("step", &value, why);
        }
    }
}
