//! Nodes, namespaces and the small core kinds.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, NodeStatus, NodeSystemInfo, Secret};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::schemars::JsonSchema;
use serde_json::{Value, json};

use super::Layout;
use super::column::{AGE, Column, NAME, boolean_of, integer_of, string, string_of};
use super::duration::since;
use super::format::{NONE, age, first_three, int_or_text, list, name, text, text_or};

static NODE: &[Column] = &[
    NAME,
    string("Status", "The status of the node"),
    string("Roles", "The roles of the node"),
    AGE,
    string_of("Version", NodeSystemInfo::json_schema, "kubeletVersion"),
    string_of("Internal-IP", NodeStatus::json_schema, "addresses").wide(),
    string_of("External-IP", NodeStatus::json_schema, "addresses").wide(),
    string_of("OS-Image", NodeSystemInfo::json_schema, "osImage").wide(),
    string_of("Kernel-Version", NodeSystemInfo::json_schema, "kernelVersion").wide(),
    string_of("Container-Runtime", NodeSystemInfo::json_schema, "containerRuntimeVersion").wide(),
];

static NAMESPACE: &[Column] = &[NAME, string("Status", "The status of the namespace"), AGE];
static CONFIG_MAP: &[Column] = &[NAME, string_of("Data", ConfigMap::json_schema, "data"), AGE];
static SECRET: &[Column] = &[
    NAME,
    string_of("Type", Secret::json_schema, "type"),
    string_of("Data", Secret::json_schema, "data"),
    AGE,
];
static NAME_AGE: &[Column] = &[NAME, AGE];
static COMPONENT_STATUS: &[Column] = &[
    NAME,
    string("Status", "Status of the component conditions"),
    string("Message", "Message of the component conditions"),
    string("Error", "Error of the component conditions"),
];
static QUOTA: &[Column] = &[
    NAME,
    string("Request", "Request represents a minimum amount of cpu/memory that a container may consume."),
    string(
        "Limit",
        "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.",
    ),
    AGE,
];
static ENDPOINTS: &[Column] = &[NAME, string_of("Endpoints", Endpoints::json_schema, "subsets"), AGE];
static PRIORITY_CLASS: &[Column] = &[
    NAME,
    integer_of("Value", PriorityClass::json_schema, "value"),
    boolean_of("Global-Default", PriorityClass::json_schema, "globalDefault"),
    AGE,
    string_of("PreemptionPolicy", PriorityClass::json_schema, "preemptionPolicy"),
];

pub(super) static LAYOUTS: &[Layout] = &[
    Layout { group: "", kind: "Node", columns: NODE, cells: node },
    Layout { group: "", kind: "Namespace", columns: NAMESPACE, cells: namespace },
    Layout { group: "", kind: "ConfigMap", columns: CONFIG_MAP, cells: config_map },
    Layout { group: "", kind: "Secret", columns: SECRET, cells: secret },
    Layout { group: "", kind: "ServiceAccount", columns: NAME_AGE, cells: name_age },
    Layout { group: "", kind: "ComponentStatus", columns: COMPONENT_STATUS, cells: component_status },
    Layout { group: "", kind: "ResourceQuota", columns: QUOTA, cells: quota },
    Layout { group: "", kind: "Endpoints", columns: ENDPOINTS, cells: endpoints },
    Layout {
        group: "scheduling.k8s.io",
        kind: "PriorityClass",
        columns: PRIORITY_CLASS,
        cells: priority_class,
    },
    Layout { group: "resource.k8s.io", kind: "DeviceClass", columns: NAME_AGE, cells: name_age },
    Layout { group: "resource.k8s.io", kind: "ResourceClaimTemplate", columns: NAME_AGE, cells: name_age },
    Layout { group: "resource.k8s.io", kind: "DeviceTaintRule", columns: NAME_AGE, cells: name_age },
];

fn name_age(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), age(o, now)]
}

fn roles(node: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in node["metadata"]["labels"].as_object().into_iter().flatten() {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/").filter(|r| !r.is_empty()) {
            roles.insert(role);
        } else if key == "kubernetes.io/role"
            && let Some(role) = value.as_str().filter(|r| !r.is_empty())
        {
            roles.insert(role);
        }
    }
    if roles.is_empty() { NONE.to_owned() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

fn node(o: &Value, now: Timestamp) -> Vec<Value> {
    let ready = list(o, "/status/conditions").iter().find(|c| text(c, "/type") == "Ready");
    let mut status = match ready.map(|c| text(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if o["spec"]["unschedulable"] == json!(true) {
        status.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        let found = list(o, "/status/addresses").iter().find(|a| text(a, "/type") == kind);
        json!(found.map_or(NONE, |a| text(a, "/address")))
    };
    let info = |key: &str| text_or(o, &format!("/status/nodeInfo/{key}"), "<unknown>").to_owned();
    let mut kernel = info("kernelVersion");
    let architecture = text(o, "/status/nodeInfo/architecture");
    if kernel != "<unknown>" && !architecture.is_empty() {
        kernel = format!("{kernel} ({architecture})");
    }
    vec![
        name(o),
        json!(status),
        json!(roles(o)),
        age(o, now),
        json!(text(o, "/status/nodeInfo/kubeletVersion")),
        address("InternalIP"),
        address("ExternalIP"),
        json!(info("osImage")),
        json!(kernel),
        json!(info("containerRuntimeVersion")),
    ]
}

fn namespace(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), json!(text(o, "/status/phase")), age(o, now)]
}

fn size(o: &Value, key: &str) -> usize {
    o[key].as_object().map_or(0, serde_json::Map::len)
}

fn config_map(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), json!(size(o, "data") + size(o, "binaryData")), age(o, now)]
}

fn secret(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), json!(text(o, "/type")), json!(size(o, "data")), age(o, now)]
}

fn component_status(o: &Value, _: Timestamp) -> Vec<Value> {
    let healthy = list(o, "/conditions").iter().find(|c| text(c, "/type") == "Healthy");
    let (status, message, error) = match healthy {
        Some(c) if text(c, "/status") == "True" => ("Healthy", text(c, "/message"), text(c, "/error")),
        Some(c) => ("Unhealthy", text(c, "/message"), text(c, "/error")),
        None => ("Unknown", "", ""),
    };
    vec![name(o), json!(status), json!(message), json!(error)]
}

fn quota(o: &Value, now: Timestamp) -> Vec<Value> {
    let mut requests = Vec::new();
    let mut limits = Vec::new();
    for (resource, hard) in o["status"]["hard"].as_object().into_iter().flatten() {
        let used = int_or_text(o["status"]["used"].get(resource), "0");
        let line = format!("{resource}: {used}/{}", int_or_text(Some(hard), "0"));
        if resource.starts_with("limits.") { &mut limits } else { &mut requests }.push(line);
    }
    vec![name(o), json!(requests.join(", ")), json!(limits.join(", ")), age(o, now)]
}

fn endpoints(o: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in list(o, "/subsets") {
        let addresses = list(subset, "/addresses");
        let ports = list(subset, "/ports");
        if ports.is_empty() {
            all.extend(addresses.iter().map(|a| text(a, "/ip").to_owned()));
        }
        for port in ports {
            all.extend(addresses.iter().map(|a| {
                let ip = text(a, "/ip");
                let port = int_or_text(port.get("port"), "");
                if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
            }));
        }
    }
    let none = if list(o, "/subsets").is_empty() { NONE } else { "" };
    vec![name(o), json!(first_three(&all, none)), age(o, now)]
}

fn priority_class(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(o),
        json!(o["value"].as_i64().unwrap_or_default()),
        json!(o["globalDefault"].as_bool().unwrap_or_default()),
        json!(since(o["metadata"]["creationTimestamp"].as_str(), now)),
        json!(text(o, "/preemptionPolicy")),
    ]
}
