//! A pod's phase, by its containers' states: pure.
//!
//! Rule: Kubernetes documentation, "Pod Lifecycle" (phases), "Sidecar Containers"; KEP-5307 for containers with rules of their own.

use k8s_openapi::api::core::v1::{Container as Spec, ContainerStatus, Pod};

use crate::plan::{is_sidecar, restarts_after};
use crate::static_pods::is_static;

/// What a container does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Now {
    /// It has not begun yet.
    Waits,
    Runs {
        started: bool,
    },
    /// `waits`: for its next run.
    Ended {
        code: i32,
        again: bool,
        waits: bool,
    },
}

/// What the container of a status does.
fn now(policy: &str, spec: &Spec, status: &ContainerStatus) -> Now {
    let state = status.state.as_ref();
    if state.is_some_and(|state| state.running.is_some()) {
        return Now::Runs { started: status.started == Some(true) };
    }
    let ended = state.and_then(|state| state.terminated.as_ref());
    let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    match ended.or(last) {
        Some(end) => Now::Ended {
            code: end.exit_code,
            again: restarts_after(policy, spec, end.exit_code),
            waits: ended.is_none(),
        },
        None => Now::Waits,
    }
}

/// The phase; `over`: none of the containers runs again, whatever the policies say.
pub(super) fn of(pod: &Pod, init: &[ContainerStatus], main: &[ContainerStatus], over: bool) -> &'static str {
    let Some(spec) = &pod.spec else { return "Pending" };
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let find = |spec: &Spec, list: &[ContainerStatus]| {
        list.iter().find(|status| status.name == spec.name).map_or(Now::Waits, |s| now(policy, spec, s))
    };
    let begun = |now: &Now| *now != Now::Waits;
    let main: Vec<Now> = spec.containers.iter().map(|spec| find(spec, main)).collect();
    let mut pending = main.contains(&Now::Waits);
    let mut runs = main.iter().any(|now| matches!(now, Now::Runs { .. }));
    for container in spec.init_containers.iter().flatten() {
        match (find(container, init), is_sidecar(container)) {
            (Now::Ended { code, again: false, .. }, false) if code != 0 => return "Failed",
            (Now::Ended { .. }, _) => {}
            (Now::Runs { started }, true) => {
                runs = true;
                pending |= !started && !main.iter().any(begun);
            }
            (Now::Runs { .. }, false) => pending = true,
            // it may come again later than those that it is there for
            (Now::Waits, _) => pending |= !main.iter().any(begun),
        }
    }
    if pending {
        return "Pending";
    }
    if runs {
        return "Running";
    }
    let comes_back = |now: &Now| matches!(now, Now::Ended { again: true, .. });
    if main.iter().any(comes_back) && (!over || is_static(pod)) {
        return "Running";
    }
    let well = |now: &Now| matches!(now, Now::Ended { code: 0, waits: false, .. });
    if main.iter().all(well) { "Succeeded" } else { "Failed" }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// `wait`, `run`, or an exit code; with `:wait` behind it the next run waits.
    fn status(name: &str, state: &str) -> ContainerStatus {
        let ended = |code: &str| json!({"terminated": {"exitCode": code.parse::<i32>().unwrap()}});
        let (state, last) = match state.split_once(':') {
            Some((code, _)) => (json!({"waiting": {}}), ended(code)),
            None if state == "wait" => (json!({"waiting": {}}), Value::Null),
            None if state == "run" => (json!({"running": {}}), Value::Null),
            None => (ended(state), Value::Null),
        };
        serde_json::from_value(
            json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "started": true, "state": state, "lastState": last}),
        )
        .unwrap()
    }

    fn phase(spec: Value, init: &[(&str, &str)], main: &[(&str, &str)], over: bool) -> &'static str {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        let all = |list: &[(&str, &str)]| -> Vec<ContainerStatus> {
            list.iter().map(|(name, state)| status(name, state)).collect()
        };
        of(&pod, &all(init), &all(main), over)
    }

    #[test]
    fn the_pods_policy_says_what_an_end_means() {
        for (policy, states, over, expected) in [
            ("Always", ["wait", "wait"], false, "Pending"),
            ("Always", ["run", "wait"], false, "Pending"),
            ("Always", ["run", "0"], false, "Running"),
            ("Always", ["0", "0"], false, "Running"),
            ("Always", ["0", "0"], true, "Succeeded"),
            ("Always", ["0", "1"], true, "Failed"),
            ("OnFailure", ["0", "1:wait"], false, "Running"),
            ("OnFailure", ["0", "0"], false, "Succeeded"),
            ("Never", ["0", "1"], false, "Failed"),
            ("Never", ["run", "1"], false, "Running"),
            ("Never", ["0", "137:wait"], false, "Failed"),
        ] {
            let spec = json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]});
            let [a, b] = states;
            assert_eq!(phase(spec, &[], &[("a", a), ("b", b)], over), expected, "{policy} {states:?}");
        }
    }

    #[test]
    fn a_containers_own_policy_and_rules_come_before_the_pods() {
        let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
        let one = |policy: &str, own: &str, state: &str| {
            let own = json!({"name": "a", "restartPolicy": own, "restartPolicyRules": rules});
            phase(json!({"restartPolicy": policy, "containers": [own]}), &[], &[("a", state)], false)
        };
        assert_eq!(one("Always", "Never", "0"), "Succeeded");
        assert_eq!(one("Always", "Never", "1"), "Failed");
        assert_eq!(one("Always", "Never", "42"), "Running");
        assert_eq!(one("Never", "OnFailure", "1"), "Running");
        assert_eq!(one("Never", "Always", "0"), "Running");
        let init = |policy: &str, own: &str| {
            let first = json!({"name": "i", "restartPolicy": own});
            let spec =
                json!({"restartPolicy": policy, "initContainers": [first], "containers": [{"name": "a"}]});
            phase(spec, &[("i", "1")], &[("a", "wait")], false)
        };
        assert_eq!(init("Always", "Never"), "Failed");
        assert_eq!(init("Never", "OnFailure"), "Pending", "it runs again");
    }

    #[test]
    fn a_sidecar_holds_back_its_pod_at_first_and_outlives_it() {
        let spec = || {
            json!({"restartPolicy": "Never", "initContainers": [{"name": "s", "restartPolicy": "Always"}],
                "containers": [{"name": "a"}]})
        };
        let check = |side: &str, main: &str| phase(spec(), &[("s", side)], &[("a", main)], false);
        assert_eq!(check("wait", "wait"), "Pending");
        assert_eq!(check("run", "wait"), "Pending");
        assert_eq!(check("1:wait", "run"), "Running");
        assert_eq!(check("run", "0"), "Running", "not over before its last process is gone");
        assert_eq!(check("137", "0"), "Succeeded");
    }
}
