//! Rules on texts and conditions that many kinds share.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::json;

/// `domain/path`, as controllers are named; anything but that is refused, also an empty text.
pub(super) fn domain_prefixed_path(at: &Cursor<'_>, errors: &mut ErrorList) {
    let text = at.str();
    if text.is_empty() {
        return errors.required(&at.path, "");
    }
    let Some((host, path)) = text.split_once('/').filter(|(h, p)| !h.is_empty() && !p.is_empty()) else {
        let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        return errors.invalid(&at.path, at.json(), why);
    };
    errors.invalid_all(&at.path, &json!(host), names::dns1123_subdomain(host));
    let is_path = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    if !path.bytes().all(is_path) {
        let why = names::regex_error("Invalid path", r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+", &[]);
        errors.invalid(&at.path, &json!(path), &why);
    }
}

/// A domain of at least two segments; a dot may end it.
pub(super) fn domain_name(at: &Cursor<'_>, errors: &mut ErrorList) {
    let text = at.str();
    if text.is_empty() {
        return errors.required(&at.path, "");
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let wrong = names::dns1123_subdomain(name);
    if !wrong.is_empty() {
        return errors.invalid(&at.path, &json!(name), &wrong.join(","));
    }
    if !name.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        return errors.invalid(&at.path, &json!(name), why);
    }
    let wrong = name.split('.').map(|label| (label, names::dns1123_label(label)));
    if let Some((label, wrong)) = wrong.into_iter().find(|(_, wrong)| !wrong.is_empty()) {
        errors.invalid(&at.path, &json!(label), &wrong.join(","));
    }
}

/// Bytes of the reason and of the message of a condition.
const REASON: usize = 1024;
const MESSAGE: usize = 32 * 1024;

/// Conditions of the common form (`metav1.Condition`), one of each type.
pub(super) fn conditions(list: &Cursor<'_>, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for condition in list.items() {
        let kind = condition.key("type");
        if !seen.insert(kind.str()) {
            errors.duplicate(&kind.path, &json!(kind.str()));
        }
        errors.invalid_all(&kind.path, &json!(kind.str()), names::qualified_name(kind.str()));
        let status = condition.key("status");
        if !matches!(status.str(), "True" | "False" | "Unknown") {
            errors.not_supported(&status.path, &json!(status.str()), &["False", "True", "Unknown"]);
        }
        let generation = condition.key("observedGeneration");
        if generation.i64().is_some_and(|n| n < 0) {
            let why = "must be greater than or equal to zero";
            errors.invalid(&generation.path, generation.json(), why);
        }
        if condition.key("lastTransitionTime").str().is_empty() {
            errors.required(&condition.key("lastTransitionTime").path, "must be set");
        }
        reason(&condition.key("reason"), errors);
        if condition.key("message").str().len() > MESSAGE {
            errors.too_long(&condition.key("message").path, MESSAGE);
        }
    }
}

fn reason(at: &Cursor<'_>, errors: &mut ErrorList) {
    let text = at.str().as_bytes();
    let (Some(first), Some(last)) = (text.first(), text.last()) else {
        return errors.required(&at.path, "must be set");
    };
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good = first.is_ascii_alphabetic()
        && is_word(*last)
        && text.iter().all(|b| is_word(*b) || matches!(b, b',' | b':'));
    if !good {
        let why = names::regex_error(
            "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'",
            "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
            &["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"],
        );
        errors.invalid(&at.path, at.json(), &why);
    }
    if text.len() > REASON {
        errors.too_long(&at.path, REASON);
    }
}

/// Kind and name of an object that is referred to.
pub(super) fn kind_and_name(at: &Cursor<'_>, errors: &mut ErrorList) {
    for key in ["kind", "name"] {
        let part = at.key(key);
        if part.str().is_empty() {
            errors.required(&part.path, "");
        } else {
            errors.invalid_all(&part.path, part.json(), names::path_segment(part.str()));
        }
    }
}

/// A warning about a name that pods and hosts will carry and that is no DNS label.
pub(super) fn host_name_warning(name: &str) -> Vec<String> {
    let wrong = names::dns1123_label(name);
    if wrong.is_empty() {
        return Vec::new();
    }
    let what = "this is used in Pod names and hostnames, which can result in surprising behavior";
    vec![format!("metadata.name: {what}; a DNS label is recommended: [{}]", wrong.join(" "))]
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn wrong(check: fn(&Cursor<'_>, &mut ErrorList), value: Value) -> Vec<String> {
        let mut errors = ErrorList::default();
        check(&Cursor::at(&value, "x"), &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_prefixed_path_has_a_domain_and_a_path() {
        const FORM: &str = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        assert_eq!(wrong(domain_prefixed_path, json!("acme.io/foo/bar")), [""; 0]);
        assert_eq!(wrong(domain_prefixed_path, json!("")), ["x: Required value"]);
        for text in ["acme", "/foo", "acme.io/"] {
            assert_eq!(
                wrong(domain_prefixed_path, json!(text)),
                [format!("x: Invalid value: \"{text}\": {FORM}")]
            );
        }
        assert_eq!(
            wrong(domain_prefixed_path, json!("a.b/c d")),
            [
                r#"x: Invalid value: "c d": Invalid path (regex used for validation is '[A-Za-z0-9/\-._~%!$&'()*+,;=:]+')"#
            ]
        );
    }

    #[test]
    fn a_domain_name_has_two_segments_and_may_end_in_a_dot() {
        assert_eq!(wrong(domain_name, json!("a.b.")), [""; 0]);
        assert_eq!(
            wrong(domain_name, json!("a")),
            [r#"x: Invalid value: "a": should be a domain with at least two segments separated by dots"#]
        );
    }

    #[test]
    fn conditions_are_complete_and_of_different_types() {
        let good = json!({"type": "Ready", "status": "True", "reason": "A", "lastTransitionTime": "t"});
        assert_eq!(wrong(conditions, json!([good])), [""; 0]);
        let bad = json!({"type": "Ready", "status": "X", "observedGeneration": -1});
        assert_eq!(
            wrong(conditions, json!([good, bad])),
            [
                r#"x[1].type: Duplicate value: "Ready""#,
                r#"x[1].status: Unsupported value: "X": supported values: "False", "True", "Unknown""#,
                "x[1].observedGeneration: Invalid value: -1: must be greater than or equal to zero",
                "x[1].lastTransitionTime: Required value: must be set",
                "x[1].reason: Required value: must be set",
            ]
        );
    }
}
