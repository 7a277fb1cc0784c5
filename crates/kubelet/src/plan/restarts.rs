//! Whether what ended runs again, alone or with its whole pod.
//!
//! Rule: Kubernetes documentation, "Pod Lifecycle", "Container restart policy"; KEP-5307, KEP-5532.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod};

use super::is_sidecar;
use crate::observed::{Container, Observed, Run};

/// Whether a container that ended runs again: by its own rules, its own policy, or the pod's.
pub(crate) fn restarts(policy: &str, spec: &Spec, container: &Container) -> bool {
    if container.run == Run::Unknown {
        return policy != "Never";
    }
    let code = container.exit_code;
    if matches!(rule(spec, code), Some("Restart" | RESTART_ALL)) {
        return true;
    }
    match spec.restart_policy.as_deref().unwrap_or(policy) {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

/// The action that ends every container of the pod, and begins the pod anew.
const RESTART_ALL: &str = "RestartAllContainers";

/// What a container's own rules say of an exit code: the first one that speaks of it.
fn rule(spec: &Spec, code: i32) -> Option<&str> {
    let mut rules = spec.restart_policy_rules.iter().flatten();
    let found = rules.find(|rule| {
        let codes = rule.exit_codes.as_ref();
        let listed = codes.and_then(|c| c.values.as_ref()).is_some_and(|v| v.contains(&code));
        match codes.map(|c| c.operator.as_str()) {
            Some("In") => listed,
            Some("NotIn") => !listed,
            _ => false,
        }
    });
    found.map(|rule| rule.action.as_str())
}

/// Whether the end of a container may begin the pod anew.
pub(crate) fn may_begin_anew(pod: &Pod) -> bool {
    let spec = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    spec.flat_map(|c| c.restart_policy_rules.iter().flatten()).any(|rule| rule.action == RESTART_ALL)
}

/// When the pod began anew last: containers that were made before are of no use any more, whatever became of them.
pub(crate) fn anew(pod: &Pod, observed: &Observed) -> Option<Timestamp> {
    if !may_begin_anew(pod) {
        return None;
    }
    let all = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    let ends = all.flat_map(|spec| {
        let ended = observed.runs(&spec.name).filter(|c| c.run == Run::Exited);
        ended.filter(|c| rule(spec, c.exit_code) == Some(RESTART_ALL)).map(|c| c.finished)
    });
    ends.max()
}

/// Whether a container is of the pod as it began last.
pub(crate) fn is_of(round: Option<Timestamp>, container: &Container) -> bool {
    round.is_none_or(|since| container.created > since)
}

/// Whether the pod begins anew, and nothing of it has begun yet.
pub(crate) fn begins_anew(pod: &Pod, observed: &Observed) -> bool {
    let round = anew(pod, observed);
    round.is_some() && !observed.containers.iter().any(|container| is_of(round, container))
}

/// Whether every main container has ended for good, or an init container has failed for good.
pub fn is_over(pod: &Pod, observed: &Observed) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let round = anew(pod, observed);
    let newest = |name: &str| observed.newest(name).filter(|c| is_of(round, c));
    let ended =
        |spec: &Spec| newest(&spec.name).is_some_and(|c| c.run == Run::Exited && !restarts(policy, spec, c));
    let init_failed = spec.init_containers.iter().flatten().filter(|c| !is_sidecar(c)).any(|c| {
        newest(&c.name)
            .is_some_and(|run| run.run == Run::Exited && run.exit_code != 0 && !restarts(policy, c, run))
    });
    init_failed || spec.containers.iter().all(ended)
}
