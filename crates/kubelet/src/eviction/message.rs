//! What the Event of an eviction says, and the pod's message: pure.

use std::collections::BTreeMap;

use api::quantity::{Format, Quantity};
use k8s_openapi::api::core::v1::Pod;

use super::threshold::{Observation, Signal, Threshold};
use crate::usage::PodUsage;

/// The words of an eviction, and the Event's annotations: what is short, and who has more of it than he asked for.
pub fn message(
    pod: &Pod,
    usage: &PodUsage,
    threshold: Threshold,
    seen: Option<Observation>,
) -> (String, BTreeMap<String, String>) {
    let (signal, resource) = (threshold.signal, threshold.signal.resource());
    let mut text = format!("The node was low on resource: {resource}. ");
    let quantity = |value: u64| {
        let format = if signal.is_bytes() { Format::BinarySi } else { Format::DecimalSi };
        Quantity::from_value(i64::try_from(value).unwrap_or(i64::MAX), format).to_string()
    };
    if let Some(seen) = seen {
        let (wanted, available) = (threshold.value.of(seen.capacity), seen.available);
        text.push_str(&format!(
            "Threshold quantity: {}, available: {}. ",
            quantity(wanted),
            quantity(available)
        ));
    }
    let mut annotations = BTreeMap::new();
    if !usage.measured {
        return (text, annotations);
    }
    let mut annotate = |key: &str, value: String| drop(annotations.insert(key.to_owned(), value));
    let is_memory = matches!(signal, Signal::Memory | Signal::AllocatableMemory);
    let spec = pod.spec.as_ref();
    let whole = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get(resource));
    if let Some(request) = whole.filter(|_| is_memory) {
        let (name, used) = (pod.metadata.name.as_deref().unwrap_or_default(), quantity(usage.memory()));
        text.push_str(&format!(
            "Pod {name} was using {used}, request is {}, has larger consumption of {resource}. ",
            request.0
        ));
        annotate("offending_pod", name.to_owned());
        annotate("offending_pod_usage", used);
    }
    let (mut names, mut amounts) = (Vec::new(), Vec::new());
    let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    for container in spec.iter().flat_map(|spec| &spec.containers).chain(init) {
        let Some(used) = usage.containers.get(&container.name) else { continue };
        let used = match signal {
            Signal::Memory | Signal::AllocatableMemory => used.memory,
            Signal::NodeFs | Signal::ImageFs => used.layer + used.logs,
            Signal::NodeFsInodes | Signal::ImageFsInodes | Signal::Pid => continue,
        };
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let request =
            requests.and_then(|requests| requests.get(resource)).map_or("0", |quantity| quantity.0.as_str());
        if i128::from(used) > i128::from(crate::resources::units(request)) {
            let used = quantity(used);
            text.push_str(&format!(
                "Container {} was using {used}, request is {request}, has larger consumption of {resource}. ",
                container.name
            ));
            names.push(container.name.as_str());
            amounts.push(used);
        }
    }
    annotate("offending_containers", names.join(","));
    annotate("offending_containers_usage", amounts.join(","));
    annotate("starved_resource", resource.to_owned());
    (text, annotations)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::eviction::threshold;
    use crate::usage::ContainerUsage;

    fn said(spec: Value, measured: bool) -> (String, Value) {
        let pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        let container = ContainerUsage { memory: 3 << 20, ..ContainerUsage::default() };
        let names = ["a", "b", "side"].map(|name| (name.to_owned(), container));
        let usage = match measured {
            true => PodUsage { measured, containers: names.into(), ..PodUsage::default() },
            false => PodUsage::default(),
        };
        let value = threshold::Value::Amount(100 << 20);
        let met = Threshold { signal: Signal::Memory, value, grace: None, reclaim: None };
        let (text, annotations) =
            message(&pod, &usage, met, Some(Observation { available: 50 << 20, capacity: 1 << 30 }));
        (text, json!(annotations))
    }

    const BEGIN: &str = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. ";

    #[test]
    fn an_eviction_says_what_was_short_and_who_took_more_than_he_asked_for() {
        let spec = json!({
            "initContainers": [{"name": "side", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "resources": {"requests": {"memory": "1Mi"}}},
                {"name": "b", "resources": {"requests": {"memory": "3Mi"}}}]});
        let text = format!(
            "{BEGIN}Container a was using 3Mi, request is 1Mi, has larger consumption of memory. Container side was \
             using 3Mi, request is 0, has larger consumption of memory. "
        );
        let annotations = json!({"offending_containers": "a,side", "offending_containers_usage": "3Mi,3Mi",
            "starved_resource": "memory"});
        assert_eq!(said(spec.clone(), true), (text, annotations));
        assert_eq!(said(spec, false), (BEGIN.to_owned(), json!({})), "nothing is known of it");
    }

    #[test]
    fn a_pod_that_asks_as_a_whole_is_told_as_a_whole() {
        let spec = json!({"resources": {"requests": {"memory": "2Mi"}}, "containers": [{"name": "none"}]});
        let (text, annotations) = said(spec, true);
        let expected = "Pod p was using 9Mi, request is 2Mi, has larger consumption of memory. ";
        assert_eq!(text, format!("{BEGIN}{expected}"));
        assert_eq!(
            (&annotations["offending_pod"], &annotations["offending_pod_usage"]),
            (&json!("p"), &json!("9Mi"))
        );
    }
}
