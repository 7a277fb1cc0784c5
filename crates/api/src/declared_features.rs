//! Features that nodes declare (`status.declaredFeatures`) and that pods, or changes of pods, cannot do without.
//!
//! Rule: KEP-5328; Kubernetes documentation, "Node Declared Features". The names are those of Kubernetes' registry of
//! such features for v1.36.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::Value;

/// The kubelet speaks WebSocket for exec, attach and port forwarding.
pub const WEB_SOCKETS: &str = "ExtendWebSocketsToKubelet";
/// CPU of running pods of the class Guaranteed can be resized.
pub const GUARANTEED_CPU: &str = "GuaranteedQoSPodCPUResize";
/// Resources of running pods as a whole can be resized.
pub const POD_LEVEL: &str = "InPlacePodLevelResourcesVerticalScaling";
/// The rule `RestartAllContainers` is acted on.
pub const RESTART_ALL: &str = "RestartAllContainersOnContainerExits";

/// What a node must declare to run a pod.
pub fn to_run(spec: &PodSpec) -> Vec<&'static str> {
    let all = |container: &Container| {
        container.restart_policy_rules.iter().flatten().any(|rule| rule.action == "RestartAllContainers")
    };
    let wanted = spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(all);
    if wanted { vec![RESTART_ALL] } else { Vec::new() }
}

/// What the node of a running pod must declare for its specification to become another one.
pub fn to_change(old: &Value, new: &Value) -> Vec<&'static str> {
    let mut needed = Vec::new();
    if old["status"]["qosClass"] == "Guaranteed" && cpu_differs(&old["spec"], &new["spec"]) {
        needed.push(GUARANTEED_CPU);
    }
    if old["spec"]["resources"] != new["spec"]["resources"] {
        needed.push(POD_LEVEL);
    }
    needed
}

fn cpu_differs(old: &Value, new: &Value) -> bool {
    let requests = |spec: &Value| -> Vec<Option<crate::quantity::Quantity>> {
        let containers = spec["containers"].as_array().into_iter().flatten();
        containers.map(|container| container["resources"]["requests"]["cpu"].as_str()?.parse().ok()).collect()
    };
    requests(old) != requests(new)
}

/// Those of `needed` that are not among `declared`.
pub fn missing<'a, D: AsRef<str>>(needed: &[&'a str], declared: &[D]) -> Vec<&'a str> {
    needed.iter().copied().filter(|name| !declared.iter().any(|known| known.as_ref() == *name)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_needs_what_it_uses() {
        let spec = |action: &str| -> PodSpec {
            let rules = json!([{"action": action, "exitCodes": {"operator": "In", "values": [1]}}]);
            serde_json::from_value(json!({"containers": [{"name": "a"}],
                "initContainers": [{"name": "b", "restartPolicy": "Never", "restartPolicyRules": rules}]}))
            .unwrap()
        };
        assert_eq!(to_run(&spec("RestartAllContainers")), [RESTART_ALL]);
        assert!(to_run(&spec("Restart")).is_empty());
        assert_eq!(missing(&[RESTART_ALL], &[GUARANTEED_CPU]), [RESTART_ALL]);
        assert!(missing(&[RESTART_ALL], &[GUARANTEED_CPU, RESTART_ALL]).is_empty());
    }

    #[test]
    fn a_change_needs_what_it_changes() {
        let pod = |class: &str, cpu: &str, whole: Value| {
            json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}], "resources": whole},
                "status": {"qosClass": class}})
        };
        let one = pod("Guaranteed", "1", Value::Null);
        assert!(to_change(&one, &pod("Guaranteed", "1000m", Value::Null)).is_empty(), "the same amount");
        assert_eq!(to_change(&one, &pod("Guaranteed", "2", Value::Null)), [GUARANTEED_CPU]);
        assert!(
            to_change(&pod("Burstable", "1", Value::Null), &pod("Burstable", "2", Value::Null)).is_empty()
        );
        let whole = json!({"limits": {"cpu": "3"}});
        assert_eq!(to_change(&one, &pod("Guaranteed", "1", whole)), [POD_LEVEL]);
    }
}
