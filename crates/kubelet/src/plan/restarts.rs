//! Whether what ended runs again, alone or with its whole pod.
//!
//! Rule: Kubernetes documentation, "Pod Lifecycle", "Container restart policy"; KEP-5307, KEP-5532.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, ContainerState, Pod};

use super::is_sidecar;
use crate::observed::{Container, Observed, Run};

/// Whether a container that ended runs again: by its own rules, its own policy, or the pod's.
pub(crate) fn restarts(policy: &str, spec: &Spec, container: &Container) -> bool {
    // nobody can say how it ended, if it did
    if container.run == Run::Unknown {
        return true;
    }
    restarts_after(policy, spec, container.exit_code)
}

/// The same by its exit code.
pub(crate) fn restarts_after(policy: &str, spec: &Spec, code: i32) -> bool {
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
    // how it ended for good; what ran and was forgotten by the runtime is not to run twice for that
    let end = |spec: &Spec| match newest(&spec.name) {
        Some(run) => (run.run == Run::Exited && !restarts(policy, spec, run)).then_some(run.exit_code),
        None => {
            let lost = told_end(pod, &spec.name).filter(|_| round.is_none());
            lost.filter(|code| !restarts_after(policy, spec, *code))
        }
    };
    // a forgotten one succeeded where the main containers had their turn
    let turn = spec.containers.iter().any(|c| newest(&c.name).is_some());
    let counts = |c: &Spec| !is_sidecar(c) && (newest(&c.name).is_some() || !turn);
    let failed = |c: &Spec| counts(c) && end(c).is_some_and(|code| code != 0);
    spec.init_containers.iter().flatten().any(failed) || spec.containers.iter().all(|c| end(c).is_some())
}

/// The exit code of a container whose end nobody saw.
pub(crate) const LOST: i32 = 137;

/// How a container ended that began, as was told.
fn told_end(pod: &Pod, name: &str) -> Option<i32> {
    let status = pod.status.as_ref()?;
    let all = [&status.container_statuses, &status.init_container_statuses];
    let status = all.into_iter().flatten().flatten().find(|status| status.name == name)?;
    let state = status.state.as_ref()?;
    let code = |state: &ContainerState| state.terminated.as_ref().map(|ended| ended.exit_code);
    match state.running {
        Some(_) => Some(LOST),
        None => code(state).or_else(|| code(status.last_state.as_ref()?)),
    }
}
