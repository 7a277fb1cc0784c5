//! Pod failure policies and success policies of jobs: what one failed pod, or a set of succeeded indexes, means.
//!
//! Source: Kubernetes documentation, "Jobs", pod failure policy and success policy.
use k8s_openapi::api::batch::v1::{
    PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement as ExitCodes, SuccessPolicy,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::indexes::Indexes;
use crate::ownership::{name, namespace};

/// What the first rule that fits says about a failed pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The job fails at once, with this message.
    FailJob(String),
    /// The pod's index fails at once.
    FailIndex,
    /// The failure is not counted.
    Ignore,
    /// No rule fits, or one that asks for the usual.
    Count,
}

/// The verdict of `policy` about the failed `pod`.
pub(super) fn of_failed(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Verdict {
    let rules = policy.map(|p| p.rules.as_slice()).unwrap_or_default();
    for (at, rule) in rules.iter().enumerate() {
        let (ns, pod_name) = (namespace(&pod.metadata), name(&pod.metadata));
        let message = if let Some(codes) = &rule.on_exit_codes {
            exited(pod, codes).map(|(container, code)| {
                format!(
                    "Container {container} for pod {ns}/{pod_name} failed with exit code {code} matching {} rule at index {at}",
                    rule.action
                )
            })
        } else {
            let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
            let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
            let fits = |kind: &str, status: &str| {
                patterns.iter().any(|p| p.type_ == kind && p.status.as_deref().unwrap_or("True") == status)
            };
            conditions.into_iter().find(|c| fits(&c.type_, &c.status)).map(|c| {
                format!(
                    "Pod {ns}/{pod_name} has condition {} matching {} rule at index {at}",
                    c.type_, rule.action
                )
            })
        };
        match (message, rule.action.as_str()) {
            (Some(message), "FailJob") => return Verdict::FailJob(message),
            (Some(_), "FailIndex") => return Verdict::FailIndex,
            (Some(_), "Ignore") => return Verdict::Ignore,
            (Some(_), "Count") => return Verdict::Count,
            _ => {}
        }
    }
    Verdict::Count
}

/// The first container that ended with a code the requirement asks for; containers before init containers.
fn exited<'a>(pod: &'a Pod, codes: &ExitCodes) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let lists = [status.container_statuses.as_deref(), status.init_container_statuses.as_deref()];
    let ended =
        |c: &'a ContainerStatus| Some((c.name.as_str(), c.state.as_ref()?.terminated.as_ref()?.exit_code));
    lists.into_iter().flatten().flatten().filter_map(ended).find(|(container, code)| {
        let named = codes.container_name.as_deref().is_none_or(|n| n == *container);
        let listed = codes.values.contains(code);
        named && *code != 0 && if codes.operator == "NotIn" { !listed } else { listed }
    })
}

/// The message of the first success rule that `succeeded` meets.
pub(super) fn is_met(
    policy: Option<&SuccessPolicy>,
    completions: i32,
    succeeded: &Indexes,
) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let at = policy?.rules.iter().position(|rule| match (&rule.succeeded_indexes, rule.succeeded_count) {
        (Some(text), count) => {
            let required = Indexes::parse(text, completions);
            let common = required.common(succeeded);
            !required.is_empty() && (common == required.len() || count.is_some_and(|n| common >= n))
        }
        (None, Some(count)) => succeeded.len() >= count,
        (None, None) => false,
    })?;
    Some(format!("Matched rules at index {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn failed(code: i32, condition: &str) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "d"}, "status": {"phase": "Failed",
            "conditions": [{"type": condition, "status": "True"}],
            "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": code}}}]}}),
        )
        .expect("pod")
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [43]}},
            {"action": "Count", "onExitCodes": {"containerName": "other", "operator": "NotIn", "values": [1]}},
        ]}))
        .expect("policy");
        let check = |pod: Pod, want| assert_eq!(of_failed(Some(&policy), &pod), want);
        check(failed(42, "DisruptionTarget"), Verdict::Ignore);
        let message = "Container c for pod d/p failed with exit code 42 matching FailJob rule at index 1";
        check(failed(42, "Ready"), Verdict::FailJob(message.into()));
        check(failed(43, "Ready"), Verdict::FailIndex);
        check(failed(1, "Ready"), Verdict::Count);
        assert_eq!(of_failed(None, &failed(42, "DisruptionTarget")), Verdict::Count);
    }

    #[test]
    fn success_rules_ask_for_indexes_a_count_or_a_count_among_indexes() {
        let check = |rules: Value, want: Option<&str>| {
            let policy = serde_json::from_value(json!({"rules": rules})).expect("policy");
            let met = is_met(Some(&policy), 10, &Indexes::parse("0-2,5", 10));
            assert_eq!(met.as_deref(), want, "{rules}");
        };
        check(json!([{"succeededIndexes": "0,5"}]), Some("Matched rules at index 0"));
        check(json!([{"succeededIndexes": "0,6"}]), None);
        check(json!([{"succeededCount": 5}, {"succeededCount": 4}]), Some("Matched rules at index 1"));
        check(json!([{"succeededIndexes": "0-9", "succeededCount": 4}]), Some("Matched rules at index 0"));
        check(json!([{"succeededIndexes": "2-9", "succeededCount": 3}]), None);
    }
}
