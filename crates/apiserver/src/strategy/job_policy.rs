//! Pod failure policies and success policies of jobs.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList, Reason};
use serde_json::json;

/// `spec.podFailurePolicy`.
pub(super) fn failure(policy: &Cursor<'_>, template: &Cursor<'_>, errors: &mut ErrorList) {
    let rules = policy.key("rules");
    if rules.len() > 20 {
        errors.too_many(&rules.path, rules.len(), 20);
    }
    let containers: BTreeSet<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|l| template.key("spec").key(l).items().map(|c| c.key("name").str()).collect::<Vec<_>>())
        .collect();
    for rule in rules.items() {
        let action = rule.key("action");
        match action.str() {
            "" => errors
                .required(&action.path, "valid values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\""),
            "Count" | "FailIndex" | "FailJob" | "Ignore" => {}
            _ => errors.not_supported(
                &action.path,
                action.json(),
                &["Count", "FailIndex", "FailJob", "Ignore"],
            ),
        }
        let (codes, conditions) = (rule.key("onExitCodes"), rule.key("onPodConditions"));
        let complaint = match (codes.exists(), !conditions.is_empty()) {
            (true, true) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (false, false) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => "",
        };
        if codes.exists() {
            exit_codes(&codes, &containers, errors);
        }
        for condition in conditions.items() {
            let status = condition.key("status");
            if !matches!(status.str(), "True" | "False" | "Unknown") {
                errors.not_supported(&status.path, status.json(), &["False", "True", "Unknown"]);
            }
        }
        // The rule itself is not printed.
        if !complaint.is_empty() {
            errors.push(Reason::Invalid, &rule.path, format!("Invalid value: {complaint}"));
        }
    }
}

fn exit_codes(codes: &Cursor<'_>, containers: &BTreeSet<&str>, errors: &mut ErrorList) {
    let operator = codes.key("operator");
    if !matches!(operator.str(), "In" | "NotIn") {
        errors.not_supported(&operator.path, operator.json(), &["In", "NotIn"]);
    }
    let container = codes.key("containerName");
    if container.exists() && !containers.contains(container.str()) {
        errors.invalid(
            &container.path,
            container.json(),
            "must be one of the container or initContainer names in the pod template",
        );
    }
    let values = codes.key("values");
    if values.is_empty() {
        errors.invalid(&values.path, &json!([]), "at least one value is required");
    } else if values.len() > 255 {
        errors.too_many(&values.path, values.len(), 255);
    }
    let mut seen = BTreeSet::new();
    let mut previous = None;
    let mut ordered = true;
    for value in values.items() {
        let number = value.i64().unwrap_or_default();
        if operator.str() == "In" && number == 0 {
            errors.invalid(&value.path, value.json(), "must not be 0 for the In operator");
        }
        if !seen.insert(number) {
            errors.duplicate(&value.path, value.json());
        } else if previous.is_some_and(|p| number < p) {
            ordered = false;
        }
        previous = Some(number);
    }
    if !ordered {
        errors.invalid(&values.path, values.json(), "must be ordered");
    }
}

/// `spec.successPolicy`.
pub(super) fn success(policy: &Cursor<'_>, indexed: bool, completions: i64, errors: &mut ErrorList) {
    let rules = policy.key("rules");
    if !indexed {
        let shown = super::internal::show("SuccessPolicy", policy.json());
        return errors.invalid_shown(&policy.path, &shown, "requires indexed completion mode");
    }
    if rules.is_empty() {
        errors.required(
            &rules.path,
            "at least one rules must be specified when the successPolicy is specified",
        );
    }
    if rules.len() > 20 {
        errors.too_many(&rules.path, rules.len(), 20);
    }
    for rule in rules.items() {
        let (indexes, count) = (rule.key("succeededIndexes"), rule.key("succeededCount"));
        if !indexes.exists() && !count.exists() {
            errors
                .required(&rule.path, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut total = completions;
        if indexes.exists() {
            match number_of_indexes(indexes.str(), completions) {
                Ok(n) => total = n,
                Err(why) => {
                    errors.invalid(
                        &indexes.path,
                        indexes.json(),
                        &format!("error parsing succeededIndexes: {why}"),
                    );
                    continue;
                }
            }
        }
        if count.i64().is_some_and(|n| n > total) {
            let of = if indexes.exists() {
                format!("{total} (the number of indexes in the specified succeededIndexes field)")
            } else {
                format!("{total} (the number of specified completions)")
            };
            errors.invalid(&count.path, count.json(), &format!("must be less than or equal to {of}"));
        }
    }
}

/// How many indexes a text like `0,2-4` stands for.
pub(super) fn number_of_indexes(text: &str, completions: i64) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let number = |word: &str| -> Result<i64, String> {
        let n: i64 =
            word.parse().map_err(|_| format!("cannot convert string to integer for index: \"{word}\""))?;
        if n >= completions { Err(format!("too large index: \"{word}\"")) } else { Ok(n) }
    };
    let mut previous: Option<i64> = None;
    let mut total = 0;
    for part in text.split(',') {
        let mut ends = part.split('-');
        let first = number(ends.next().unwrap_or_default())?;
        let mut check = |n: i64| match previous.replace(n) {
            Some(p) if p >= n => Err(format!("non-increasing order, previous: {p}, current: {n}")),
            _ => Ok(n),
        };
        check(first)?;
        let last = match ends.next() {
            Some(word) => {
                let last = number(word)?;
                check(last)?
            }
            None => first,
        };
        if ends.next().is_some() {
            return Err(format!("too many parts separated by '-' in \"{part}\""));
        }
        total += last - first + 1;
    }
    Ok(total)
}
