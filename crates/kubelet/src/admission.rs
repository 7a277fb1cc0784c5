//! Whether a pod that is bound to this node may run on it: a last look, since binding asks nobody.
//!
//! Rule: Kubernetes documentation, "Node-pressure Eviction" ("Node out of resources"), "Assigning Pods to Nodes". What
//! is refused fails for good, with the reference's reasons.

use std::collections::BTreeMap;

use api::declared_features;
use api::resources::{Side, of_pod};
use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint};
use serde_json::json;

use crate::allocations::Amounts;
use crate::eviction::{EVICTED, Pressure, rank};
use crate::plan::is_sidecar;
use crate::preemption::Lack;
use crate::resources::qos_class;
use crate::static_pods::is_static;

/// What is known of the node.
#[derive(Debug, Clone, Default)]
pub struct NodeView {
    /// The node's name.
    pub name: String,
    /// CPU (milli), memory and storage (bytes), pods and extended resources that pods may have, by resource.
    pub allocatable: BTreeMap<String, i64>,
    /// The node's labels; none while they are not known.
    pub labels: Option<BTreeMap<String, String>>,
    /// Taints of the Node.
    pub taints: Vec<Taint>,
    /// What is short.
    pub pressure: Pressure,
    /// What pods were given.
    pub given: Given,
    /// Sysctls that pods may set besides the safe ones.
    pub sysctls: Vec<String>,
    /// What the node declares, sorted.
    pub features: Vec<&'static str>,
    /// The kernel enforces AppArmor profiles.
    pub apparmor: bool,
    /// The runtime can leave a process without the groups that its image gives it (`supplementalGroupsPolicy: Strict`).
    pub strict_groups: bool,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The pod's reason.
    pub reason: String,
    /// The pod's message, but for what all refusals begin with.
    pub message: String,
    /// What is not there and how much of it, where nothing else keeps the pod out.
    pub lacks: Vec<Lack>,
}

impl Rejection {
    /// For a reason that no room would mend.
    pub fn of(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into(), lacks: Vec::new() }
    }
}

/// Whether `pod` may join `others`.
pub fn admit<'a>(
    pod: &Pod,
    others: impl Iterator<Item = &'a Pod> + Clone,
    node: &NodeView,
) -> Result<(), Rejection> {
    let needed = pod.spec.as_ref().map(declared_features::to_run).unwrap_or_default();
    let missing = declared_features::missing(&needed, &node.features);
    if !missing.is_empty() {
        let text = format!("Pod requires node features that are not available: {}", missing.join(", "));
        return Err(Rejection::of("PodFeatureUnsupported", text));
    }
    if is_kept_out(pod, node) {
        let all = node.pressure.iter().copied().collect::<Vec<_>>().join(" ");
        return Err(Rejection::of(EVICTED, format!("The node had condition: [{all}]. ")));
    }
    if let Some(why) = crate::sysctls::forbidden(pod, &node.sysctls) {
        return Err(Rejection::of("SysctlForbidden", why));
    }
    if !node.apparmor && wants_apparmor(pod) {
        let text = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        return Err(Rejection::of("AppArmor", text));
    }
    // the reference looks at the pod's label by that name, not at what it selects
    let labelled = pod.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
    if labelled.is_some_and(|os| os != "linux") {
        let text = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Err(Rejection::of("PodOSSelectorNodeLabelDoesNotMatch", text));
    }
    if pod.spec.as_ref().and_then(|spec| spec.os.as_ref()).is_some_and(|os| os.name != "linux") {
        let text = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(Rejection::of("PodOSNotSupported", text));
    }
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let groups = context.and_then(|context| context.supplemental_groups_policy.as_deref());
    if groups == Some("Strict") && !node.strict_groups {
        let text = "SupplementalGroupsPolicy=Strict is not supported in this node";
        return Err(Rejection::of("SupplementalGroupsPolicyNotSupported", text));
    }
    if node.labels.as_ref().is_some_and(|labels| !matches(pod, labels, &node.name)) {
        let text = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        return Err(Rejection::of("NodeAffinity", text));
    }
    if others.clone().any(|other| ports_clash(pod, other)) {
        let text = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return Err(Rejection::of("NodePorts", text));
    }
    let driven = |taint: &&Taint| taint.effect == "NoExecute" && !is_tolerated(pod, taint);
    if !is_static(pod) && node.taints.iter().any(|taint| driven(&taint)) {
        let text = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
        return Err(Rejection::of("TaintToleration", text));
    }
    let count = i64::try_from(others.clone().count()).unwrap_or(i64::MAX);
    let mut refused: Option<Rejection> = None;
    let mut lack = |name: &str, requested: i64, used: i64, capacity: i64| {
        let missing = (name.to_owned(), requested.saturating_sub(capacity.saturating_sub(used)));
        match &mut refused {
            // the first one gives the reason
            Some(first) => first.lacks.push(missing),
            None => {
                let text = format!(
                    "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
                );
                refused =
                    Some(Rejection { reason: format!("OutOf{name}"), message: text, lacks: vec![missing] });
            }
        }
    };
    if let Some(most) = node.allocatable.get("pods").filter(|most| count >= **most) {
        lack("pods", 1, count, *most);
    }
    let wanted = requests(pod);
    let mut used: BTreeMap<&str, i64> = BTreeMap::new();
    let extended = node
        .allocatable
        .keys()
        .map(String::as_str)
        .filter(|name| name.contains('/') || name.starts_with("hugepages-"));
    let counted: Vec<&str> = RESOURCES.into_iter().chain(extended).collect();
    for other in others {
        let theirs = held(other, &node.given);
        for (name, amount) in counted.iter().filter_map(|name| Some((*name, theirs.get(*name)?))) {
            let sum = used.entry(name).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }
    for name in counted {
        let (Some(requested), Some(capacity)) = (wanted.get(name), node.allocatable.get(name)) else {
            continue;
        };
        let used = used.get(name).copied().unwrap_or(0);
        if *requested > 0 && requested.saturating_add(used) > *capacity && !comes_by_claim(pod, name) {
            lack(name, *requested, used, *capacity);
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Whether the scheduler made a claim for the resource, in the place of what device plugins offer.
fn comes_by_claim(pod: &Pod, resource: &str) -> bool {
    let status = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    status.is_some_and(|s| s.request_mappings.iter().any(|m| m.resource_name == resource))
}

fn wants_apparmor(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let pods = spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let own = all.filter_map(|container| container.security_context.as_ref()?.app_armor_profile.as_ref());
    pods.into_iter().chain(own).any(|profile| profile.type_ != "Unconfined")
}

/// Whether the kernel enforces AppArmor profiles.
pub fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|value| value.starts_with(b"Y"))
}

/// What is counted besides extended resources, in the order of the reference.
const RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// What a pod asks for: processors in thousandths, all else in units.
pub fn requests(pod: &Pod) -> BTreeMap<String, i64> {
    let amounts = of_pod(&json!(pod), Side::Requests);
    let read = |(name, amount): (String, api::quantity::Quantity)| {
        let value = if name == "cpu" { amount.millis() } else { amount.value() };
        (name, value)
    };
    amounts.into_iter().map(read).collect()
}

/// Processors (in thousandths) and memory (bytes) that pods were given, by uid: during a resize that is not what they ask for.
pub type Given = BTreeMap<String, Amounts>;

/// The same of a pod that is here: what it was given counts, where that is known.
///
/// Rule: KEP-1287, "Resize CPU and Memory Resources assigned to Containers", "Kubelet and API Server interaction".
pub fn held(pod: &Pod, given: &Given) -> BTreeMap<String, i64> {
    let mut all = requests(pod);
    if let Some([cpu, memory]) = pod.metadata.uid.as_ref().and_then(|uid| given.get(uid)) {
        all.extend([("cpu".to_owned(), *cpu), ("memory".to_owned(), *memory)]);
    }
    all
}

/// Whether what the node lacks keeps the pod out.
fn is_kept_out(pod: &Pod, node: &NodeView) -> bool {
    if node.pressure.is_empty() || rank::is_critical(pod) {
        return false;
    }
    if node.pressure.iter().any(|condition| *condition != "MemoryPressure") {
        return true;
    }
    // whoever asked for memory may have what he asked for
    let taint = Taint {
        key: "node.kubernetes.io/memory-pressure".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    qos_class(pod) == "BestEffort" && !is_tolerated(pod, &taint)
}

fn is_tolerated(pod: &Pod, taint: &Taint) -> bool {
    let all = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    let of_taint = taint.value.as_deref().unwrap_or_default();
    all.into_iter().any(|toleration| {
        let exists = toleration.operator.as_deref() == Some("Exists");
        let value = toleration.value.as_deref().unwrap_or_default();
        toleration.effect.as_deref().is_none_or(|effect| effect.is_empty() || effect == taint.effect)
            && match toleration.key.as_deref().unwrap_or_default() {
                "" => exists,
                key => key == taint.key && (exists || value == of_taint),
            }
    })
}

/// Whether two pods want the same port of the node.
fn ports_clash(pod: &Pod, other: &Pod) -> bool {
    let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
    let theirs: Vec<(i32, String, String)> = host_ports(other).collect();
    !theirs.is_empty()
        && host_ports(pod).any(|(port, protocol, ip)| {
            theirs.iter().any(|(other, their_protocol, their_ip)| {
                (port, &protocol) == (*other, their_protocol)
                    && (ip == *their_ip || any(&ip) || any(their_ip))
            })
        })
}

/// Port, protocol and address of each of the node's ports that the pod wants.
fn host_ports(pod: &Pod) -> impl Iterator<Item = (i32, String, String)> {
    let spec = pod.spec.iter();
    let lasting = spec.flat_map(|spec| {
        spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(|c| is_sidecar(c)))
    });
    lasting.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        Some((number, protocol, port.host_ip.clone().unwrap_or_default()))
    })
}

fn matches(pod: &Pod, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|required| selects(required, labels, name))
}

/// Whether a selector of nodes picks the one with these labels and that name.
pub(crate) fn selects(selector: &NodeSelector, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let fields = BTreeMap::from([("metadata.name".to_owned(), name.to_owned())]);
    let term = |term: &NodeSelectorTerm| {
        let (on_labels, on_fields) = (term.match_expressions.as_ref(), term.match_fields.as_ref());
        let empty = on_labels.is_none_or(Vec::is_empty) && on_fields.is_none_or(Vec::is_empty);
        // a term that says nothing matches nothing
        !empty
            && on_labels.into_iter().flatten().all(|requirement| holds(requirement, labels))
            && on_fields.into_iter().flatten().all(|requirement| holds(requirement, &fields))
    };
    selector.node_selector_terms.iter().any(term)
}

fn holds(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let found = labels.get(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let compare = |wanted: fn(&i64, &i64) -> bool| {
        let pair = found.and_then(number).zip(values.first().and_then(number));
        pair.is_some_and(|(have, bound)| wanted(&have, &bound))
    };
    match requirement.operator.as_str() {
        "In" => found.is_some_and(|value| values.contains(value)),
        "NotIn" => found.is_none_or(|value| !values.contains(value)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compare(|have, bound| have > bound),
        "Lt" => compare(|have, bound| have < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::configuration::KubeletConfiguration;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn asking(cpu: &str, memory: &str) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}))
    }

    fn node(pressure: &[&'static str]) -> NodeView {
        let amounts = [("cpu", 2000), ("memory", 1 << 30), ("pods", 3), ("example.com/dev", 2)];
        NodeView {
            name: "n1".to_owned(),
            allocatable: amounts.map(|(name, amount)| (name.to_owned(), amount)).into(),
            labels: Some([("disk".to_owned(), "ssd".to_owned()), ("size".to_owned(), "7".to_owned())].into()),
            pressure: pressure.iter().copied().collect(),
            taints: Vec::new(),
            given: Given::new(),
            sysctls: Vec::new(),
            features: crate::node::features(&KubeletConfiguration::default()),
            apparmor: false,
            strict_groups: false,
        }
    }

    fn check(pod: &Pod, others: &[Pod], pressure: &[&'static str], expected: Option<(&str, &str)>) {
        let found = admit(pod, others.iter(), &node(pressure)).err();
        let found = found.as_ref().map(|refused| (refused.reason.as_str(), refused.message.as_str()));
        assert_eq!(found, expected);
    }

    #[test]
    fn what_does_not_fit_says_what_is_missing() {
        check(&asking("2", "1Gi"), &[], &[], None);
        let text = "Node didn't have enough resource: cpu, requested: 1500, used: 600, capacity: 2000";
        check(&asking("1500m", "0"), &[asking("600m", "0")], &[], Some(("OutOfcpu", text)));
        let text =
            "Node didn't have enough resource: memory, requested: 1073741825, used: 0, capacity: 1073741824";
        check(&asking("0", "1073741825"), &[], &[], Some(("OutOfmemory", text)));
        let many = [asking("0", "0"), asking("0", "0"), asking("0", "0")];
        let text = "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3";
        check(&asking("0", "0"), &many, &[], Some(("OutOfpods", text)));
        let extended = |count: &str| {
            let amounts =
                json!({"limits": {"example.com/dev": count}, "requests": {"example.com/dev": count}});
            pod(json!({"containers": [{"name": "c", "resources": amounts}]}))
        };
        let text = "Node didn't have enough resource: example.com/dev, requested: 2, used: 1, capacity: 2";
        check(&extended("2"), &[extended("1")], &[], Some(("OutOfexample.com/dev", text)));
        check(&extended("1"), &[extended("1")], &[], None);
        let mut claimed = extended("3");
        claimed.status.get_or_insert_default().extended_resource_claim_status =
            serde_json::from_value(json!({"resourceClaimName": "c", "requestMappings": [
                {"containerName": "c", "resourceName": "example.com/dev", "requestName": "r"}]}))
            .unwrap();
        check(&claimed, &[], &[], None);
        // over-committed or not: who asks for nothing fits
        check(&asking("0", "0"), &[asking("9", "9Gi")], &[], None);
    }

    #[test]
    fn a_pod_takes_up_what_it_was_given_not_what_it_waits_for() {
        let mut other = asking("1900m", "1Gi");
        other.metadata.uid = Some("u".to_owned());
        let refused = |given: Given| {
            let node = NodeView { given, ..node(&[]) };
            admit(&asking("1", "1Mi"), [&other].into_iter(), &node).err().map(|refused| refused.reason)
        };
        assert_eq!(refused(Given::new()).as_deref(), Some("OutOfcpu"));
        assert_eq!(refused([("u".to_owned(), [500, 1 << 30])].into()).as_deref(), Some("OutOfmemory"));
        assert_eq!(refused([("u".to_owned(), [500, 1 << 20])].into()), None);
    }

    #[test]
    fn what_this_kubelet_does_not_have_is_named() {
        let rules =
            json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]);
        let text = "Pod requires node features that are not available: RestartAllContainersOnContainerExits";
        let wants = pod(json!({"containers": [{"name": "c", "restartPolicyRules": rules}]}));
        let old = NodeView { features: Vec::new(), ..node(&[]) };
        let refused = admit(&wants, [].iter(), &old).unwrap_err();
        assert_eq!((refused.reason.as_str(), refused.message.as_str()), ("PodFeatureUnsupported", text));
        check(&wants, &[], &[], None);
        let mut settings = KubeletConfiguration::default();
        assert!(crate::node::features(&settings).is_sorted());
        settings.cpu_manager_policy = "static".to_owned();
        assert!(!crate::node::features(&settings).contains(&declared_features::GUARANTEED_CPU));
    }

    #[test]
    fn a_node_of_the_wrong_kind_refuses() {
        let wrong = Some((
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ));
        let with = |more: Value| {
            let mut spec = json!({"containers": [{"name": "c"}]});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            pod(spec)
        };
        let affinity = |terms: Value| {
            with(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                {"nodeSelectorTerms": terms}}}}))
        };
        check(&with(json!({"nodeSelector": {"disk": "ssd"}})), &[], &[], None);
        check(&with(json!({"nodeSelector": {"disk": "hdd"}})), &[], &[], wrong);
        let expression = |operator: &str, values: Value| {
            let key = if matches!(operator, "Gt" | "Lt") { "size" } else { "disk" };
            affinity(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
        };
        check(&expression("In", json!(["ssd", "nvme"])), &[], &[], None);
        check(&expression("NotIn", json!(["ssd"])), &[], &[], wrong);
        check(&expression("Gt", json!(["6"])), &[], &[], None);
        check(&expression("Lt", json!(["6"])), &[], &[], wrong);
        let named = |name: &str| {
            affinity(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}]))
        };
        check(&named("n1"), &[], &[], None);
        check(&named("n2"), &[], &[], wrong);
        check(&affinity(json!([{}])), &[], &[], wrong);
    }

    #[test]
    fn a_port_of_the_node_is_one_pods_and_who_would_be_driven_away_does_not_come() {
        let with = |more: Value| {
            let mut spec = json!({"containers": [{"name": "c"}]});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            pod(spec)
        };
        let on = |port: Value| with(json!({"containers": [{"name": "c", "ports": [port]}]}));
        let text = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        let taken = [on(json!({"containerPort": 80, "hostPort": 80, "hostIP": "127.0.0.1"}))];
        let clash = Some(("NodePorts", text));
        check(&on(json!({"containerPort": 8080, "hostPort": 80})), &taken, &[], clash);
        check(&on(json!({"containerPort": 80, "hostPort": 80, "hostIP": "127.0.0.2"})), &taken, &[], None);
        check(&on(json!({"containerPort": 80, "hostPort": 80, "protocol": "UDP"})), &taken, &[], None);
        check(&on(json!({"containerPort": 80})), &taken, &[], None);
        let windows = with(json!({"os": {"name": "windows"}}));
        let text = "Failed to admit pod as the OS field doesn't match node OS";
        check(&windows, &[], &[], Some(("PodOSNotSupported", text)));
        let mut labelled = with(json!({"nodeSelector": {"kubernetes.io/os": "windows"}}));
        let text = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        check(&labelled, &[], &[], Some(("NodeAffinity", text)));
        labelled.metadata.labels = Some([("kubernetes.io/os".to_owned(), "windows".to_owned())].into());
        let text = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        check(&labelled, &[], &[], Some(("PodOSSelectorNodeLabelDoesNotMatch", text)));
        let strict = with(json!({"securityContext": {"supplementalGroupsPolicy": "Strict"}}));
        let text = "SupplementalGroupsPolicy=Strict is not supported in this node";
        check(&strict, &[], &[], Some(("SupplementalGroupsPolicyNotSupported", text)));
        let able = NodeView { strict_groups: true, ..node(&[]) };
        assert_eq!(admit(&strict, [].iter(), &able), Ok(()));
        let unsafe_one =
            with(json!({"securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "9"}]}}));
        let text = "forbidden sysctl: \"net.core.somaxconn\" not allowlisted";
        check(&unsafe_one, &[], &[], Some(("SysctlForbidden", text)));
        let mut tainted = node(&[]);
        let taint = json!({"key": "k", "value": "v", "effect": "NoExecute"});
        tainted.taints = vec![serde_json::from_value(taint).unwrap()];
        let reason = |pod: &Pod| admit(pod, [].iter(), &tainted).err().map(|refused| refused.reason);
        assert_eq!(reason(&with(json!({}))).as_deref(), Some("TaintToleration"));
        let toleration = |value: &str| json!({"tolerations": [{"key": "k", "value": value}]});
        assert_eq!(reason(&with(toleration("w"))).as_deref(), Some("TaintToleration"));
        assert_eq!(reason(&with(toleration("v"))), None);
    }

    #[test]
    fn pressure_keeps_out_who_asked_for_nothing_and_a_full_disk_keeps_out_all_but_the_systems_own() {
        let best_effort = pod(json!({"containers": [{"name": "c"}]}));
        let text = "The node had condition: [MemoryPressure]. ";
        check(&best_effort, &[], &["MemoryPressure"], Some(("Evicted", text)));
        check(&asking("1", "1"), &[], &["MemoryPressure"], None);
        let tolerating = pod(json!({"containers": [{"name": "c"}], "tolerations": [{"operator": "Exists"}]}));
        check(&tolerating, &[], &["MemoryPressure"], None);
        let text = "The node had condition: [DiskPressure]. ";
        check(&asking("1", "1"), &[], &["DiskPressure"], Some(("Evicted", text)));
        let text = "The node had condition: [DiskPressure MemoryPressure]. ";
        check(&tolerating, &[], &["DiskPressure", "MemoryPressure"], Some(("Evicted", text)));
        let critical = pod(json!({"priority": 2_000_000_000, "containers": [{"name": "c"}]}));
        check(&critical, &[], &["DiskPressure"], None);
    }
}
