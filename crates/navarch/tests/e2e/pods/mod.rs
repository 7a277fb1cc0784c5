//! Pods of every kind as real processes: what the documentation of a pod's fields promises, as far as no other topic shows it.

mod bounded;
mod confined;
mod given;
mod life;
mod watched;

use serde_json::{Value, json};
use testkit::{Cluster, eventually};

use crate::describe;

/// A pod of busybox containers: those that name no image run busybox.
fn pod(name: &str, mut spec: Value) -> Value {
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            if container["image"].is_null() {
                container["image"] = json!("busybox:test");
            }
        }
        if spec[list].is_null() {
            spec.as_object_mut().expect("a spec").remove(list);
        }
    }
    if spec["terminationGracePeriodSeconds"].is_null() {
        spec["terminationGracePeriodSeconds"] = json!(0);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

/// The command that runs a shell script.
fn shell(script: &str) -> Value {
    json!(["sh", "-c", script])
}

/// A script that runs until it is asked to end.
const WAITS: &str = "trap 'exit 0' TERM; sleep infinity & wait";

fn apply(cluster: &Cluster, items: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    cluster.apply(&list.to_string()).expect("the pods are taken");
}

/// Waits until a pod is as `wanted` says.
#[track_caller]
fn until(cluster: &Cluster, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("{name} {what}"), || {
        let pod = cluster.get(&format!("pod {name}")).map_err(|error| error.to_string())?;
        if wanted(&pod) { Ok(pod) } else { Err(format!("{}{}", pod["status"], describe(cluster))) }
    })
}

/// What the status says of a container, whichever kind it is of.
fn status<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let lists = ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"];
    let mut all = lists.iter().flat_map(|list| pod["status"][*list].as_array().into_iter().flatten());
    all.find(|status| status["name"] == container).unwrap_or(&Value::Null)
}

/// A condition of a pod: `True`, `False`, or nothing.
fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    let mut all = pod["status"]["conditions"].as_array().into_iter().flatten();
    all.find(|c| c["type"] == kind).and_then(|c| c["status"].as_str()).unwrap_or_default()
}

/// What a script says that is run in the container `main` of a pod.
#[track_caller]
fn said(cluster: &Cluster, pod: &str, script: &str) -> String {
    cluster.kubectl_args(&["exec", pod, "-c", "main", "--", "sh", "-c", script]).expect("kubectl exec")
}

/// Waits for an event of a pod that says `text`.
#[track_caller]
fn event(cluster: &Cluster, pod: &str, reason: &str, text: &str) {
    eventually(&format!("an event {reason} of {pod} says {text:?}"), || {
        let what = format!("events --field-selector involvedObject.name={pod},reason={reason}");
        let events = cluster.get(&what).map_err(|error| error.to_string())?;
        let mut all = events["items"].as_array().into_iter().flatten();
        let found = all.any(|event| event["message"].as_str().is_some_and(|message| message.contains(text)));
        if found { Ok(()) } else { Err(describe(cluster)) }
    });
}
