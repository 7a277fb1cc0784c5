//! Pod failure policies and success policies of jobs.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList, Reason};
use serde_json::json;

const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
const OPERATORS: [&str; 2] = ["In", "NotIn"];
const STATUSES: [&str; 3] = ["False", "True", "Unknown"];
/// Bytes of a list of indexes.
const MAX_INDEXES: usize = 64 * 1024;

/// One of a list; one that is missing is required together with the list.
fn one_of(at: &Cursor<'_>, supported: &[&str], errors: &mut ErrorList) {
    if at.str().is_empty() {
        let list: Vec<String> = supported.iter().map(|s| api::field::quote(s)).collect();
        errors.required(&at.path, &format!("valid values: [{}]", list.join(" ")));
    } else if !supported.contains(&at.str()) {
        errors.not_supported(&at.path, at.json(), supported);
    }
}

/// `podFailurePolicy` of a job's spec.
pub(super) fn failure(spec: &Cursor<'_>, errors: &mut ErrorList) {
    let (rules, template) = (spec.key("podFailurePolicy").key("rules"), spec.key("template"));
    if rules.len() > 20 {
        errors.too_many(&rules.path, rules.len(), 20);
    }
    let containers: BTreeSet<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|l| template.key("spec").key(l).items().map(|c| c.key("name").str()).collect::<Vec<_>>())
        .collect();
    for rule in rules.items() {
        let action = rule.key("action");
        if action.str() == "FailIndex" {
            if !spec.key("backoffLimitPerIndex").exists() {
                let why = "requires the backoffLimitPerIndex to be set";
                errors.invalid(&action.path, action.json(), why);
            }
        } else {
            one_of(&action, &ACTIONS, errors);
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
        if conditions.len() > 20 {
            errors.too_many(&conditions.path, conditions.len(), 20);
        }
        for condition in conditions.items() {
            let kind = condition.key("type");
            errors.invalid_all(&kind.path, &json!(kind.str()), api::names::qualified_name(kind.str()));
            one_of(&condition.key("status"), &STATUSES, errors);
        }
        // The rule itself is not printed.
        if !complaint.is_empty() {
            errors.push(Reason::Invalid, &rule.path, format!("Invalid value: {complaint}"));
        }
    }
}

fn exit_codes(codes: &Cursor<'_>, containers: &BTreeSet<&str>, errors: &mut ErrorList) {
    let operator = codes.key("operator");
    one_of(&operator, &OPERATORS, errors);
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
        }
        ordered &= previous.is_none_or(|p| number >= p);
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
        let mut total = 0;
        if indexes.exists() {
            if indexes.str().len() > MAX_INDEXES {
                errors.too_long(&indexes.path, MAX_INDEXES);
            }
            match number_of_indexes(indexes.str(), completions) {
                Ok(n) => total = n,
                Err(why) => {
                    let why = format!("error parsing succeededIndexes: {why}");
                    errors.invalid(&indexes.path, indexes.json(), &why);
                }
            }
        }
        super::numbers::non_negative(&count, errors);
        let mut at_most = |limit: i64, of: &str| {
            if count.i64().is_some_and(|n| n > limit) {
                let why = format!("must be less than or equal to {limit} ({of})");
                errors.invalid(&count.path, count.json(), &why);
            }
        };
        at_most(completions, "the number of specified completions");
        if indexes.exists() {
            at_most(total, "the number of indexes in the specified succeededIndexes field");
        }
    }
}

/// The first and the last index of a text like `3` or `2-4`.
fn interval(text: &str, completions: i64) -> Result<(i64, i64), String> {
    let number = |word: &str| -> Result<i64, String> {
        let n: i64 =
            word.parse().map_err(|_| format!("cannot convert string to integer for index: \"{word}\""))?;
        if n >= completions { Err(format!("too large index: \"{word}\"")) } else { Ok(n) }
    };
    match text.split('-').collect::<Vec<_>>()[..] {
        [one] => number(one).map(|n| (n, n)),
        [first, last] => match (number(first)?, number(last)?) {
            (first, last) if first >= last => {
                Err(format!("non-increasing order, previous: {first}, current: {last}"))
            }
            ends => Ok(ends),
        },
        _ => Err(format!(
            "the fragment \"{text}\" violates the requirement that an index interval can have at most two parts separated by '-'"
        )),
    }
}

/// How many indexes a text like `0,2-4` stands for.
pub(super) fn number_of_indexes(text: &str, completions: i64) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let (mut total, mut previous): (i64, Option<i64>) = (0, None);
    for part in text.split(',') {
        let (first, last) = interval(part, completions)?;
        if let Some(previous) = previous.filter(|p| *p >= first) {
            return Err(format!("non-increasing order, previous: {previous}, current: {first}"));
        }
        total = total.saturating_add(last - first + 1);
        previous = Some(last);
    }
    Ok(total)
}

/// The first index that two such texts have in common; what cannot be read is passed over.
pub(super) fn overlap(a: &str, b: &str, completions: i64) -> Option<i64> {
    let intervals = |text: &str| -> Vec<(i64, i64)> {
        text.split(',').filter_map(|part| interval(part, completions).ok()).collect()
    };
    let (a, b) = (intervals(a), intervals(b));
    let (mut left, mut right) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(x), Some(y)) = (left.peek(), right.peek()) {
        if x.0 <= y.1 && y.0 <= x.1 {
            return Some(x.0.max(y.0));
        }
        if x.0 <= y.0 {
            left.next()
        } else {
            right.next()
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_indexes_grow_and_stay_below_the_completions() {
        assert_eq!(number_of_indexes("", 5), Ok(0));
        assert_eq!(number_of_indexes("0,2-4", 5), Ok(4));
        for (text, why) in [
            ("2,1", "non-increasing order, previous: 2, current: 1"),
            ("2-2", "non-increasing order, previous: 2, current: 2"),
            ("5", "too large index: \"5\""),
            ("a", "cannot convert string to integer for index: \"a\""),
            (
                "0-1-2",
                "the fragment \"0-1-2\" violates the requirement that an index interval can have at most two parts separated by '-'",
            ),
        ] {
            assert_eq!(number_of_indexes(text, 5), Err(why.to_owned()));
        }
    }

    #[test]
    fn lists_of_indexes_may_have_one_in_common() {
        assert_eq!(overlap("0,2-4", "1,5", 9), None);
        assert_eq!(overlap("0,2-4", "1,3", 9), Some(3));
        assert_eq!(overlap("x,2-4", "4", 9), Some(4));
    }
}
