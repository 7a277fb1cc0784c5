//! Whether a definition in a group of the Kubernetes community has the project's approval
//! (`KubernetesAPIApprovalPolicyConformant`). Rule: Kubernetes enhancement 1111.

use api::custom;
use jiff::Timestamp;
use serde_json::Value;

use super::conditions::{self, Condition};

const ANNOTATION: &str = "api-approved.kubernetes.io";
const TYPE: &str = "KubernetesAPIApprovalPolicyConformant";
const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";

/// Sets or takes away the condition.
pub(super) fn settle(definition: &mut Value, now: Timestamp) {
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    let is_protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
    if !is_protected {
        if custom::condition(definition, TYPE).is_some() {
            conditions::remove(definition, TYPE);
        }
        return;
    }
    let given = definition["metadata"]["annotations"][ANNOTATION].as_str().unwrap_or_default().to_owned();
    let (status, reason, message) = if given.is_empty() {
        let why = format!("protected groups must have approval annotation {ANNOTATION:?}, {SEE}");
        (false, "MissingAnnotation", why)
    } else if given.starts_with("unapproved") {
        (false, "UnapprovedAnnotation", format!("not approved: {given:?}"))
    } else if is_url(&given) {
        (true, "ApprovedAnnotation", format!("approved in {given}"))
    } else {
        let why = format!(
            "protected groups must have approval annotation {ANNOTATION:?} with either a URL or a reason starting with \"unapproved\", {SEE}"
        );
        (false, "InvalidAnnotation", why)
    };
    conditions::set(definition, &Condition { type_: TYPE, status, reason, message: &message }, now);
}

fn is_url(text: &str) -> bool {
    text.parse::<http::Uri>()
        .is_ok_and(|uri| uri.scheme().is_some() && uri.host().is_some_and(|h| !h.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(group: &str, annotation: Option<&str>, expected: &str) {
        let mut definition = json!({"metadata": {}, "spec": {"group": group}});
        if let Some(text) = annotation {
            definition["metadata"]["annotations"] = json!({ANNOTATION: text});
        }
        settle(&mut definition, Timestamp::UNIX_EPOCH);
        let found = custom::condition(&definition, TYPE).cloned().unwrap_or_default();
        let text = format!(
            "{} {}",
            found["status"].as_str().unwrap_or("-"),
            found["reason"].as_str().unwrap_or("-")
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn groups_of_the_community_need_an_approval() {
        check("example.com", None, "- -");
        check("notk8s.io", None, "- -");
        check("x.k8s.io", None, "False MissingAnnotation");
        check("kubernetes.io", Some("unapproved, for tests"), "False UnapprovedAnnotation");
        check("x.k8s.io", Some("https://github.com/kubernetes/kubernetes/pull/1"), "True ApprovedAnnotation");
        check("x.k8s.io", Some("yes"), "False InvalidAnnotation");
    }
}
