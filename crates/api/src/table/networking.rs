//! Services and the networking groups.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ServiceSpec;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddressSpec, NetworkPolicySpec, ServiceCIDRSpec};
use k8s_openapi::schemars::JsonSchema;
use serde_json::{Value, json};

use super::Layout;
use super::column::{AGE, Column, NAME, string, string_of};
use super::format::{
    NONE, UNSET, age, first_three, int, int_or_text, labels, list, load_balancer, name, selector, text,
    text_or, texts,
};

static SERVICE: &[Column] = &[
    NAME,
    string_of("Type", ServiceSpec::json_schema, "type"),
    string_of("Cluster-IP", ServiceSpec::json_schema, "clusterIP"),
    string_of("External-IP", ServiceSpec::json_schema, "externalIPs"),
    string_of("Port(s)", ServiceSpec::json_schema, "ports"),
    AGE,
    string_of("Selector", ServiceSpec::json_schema, "selector").wide(),
];
static INGRESS: &[Column] = &[
    NAME,
    string("Class", "The name of the IngressClass resource that should be used for additional configuration"),
    string("Hosts", "Hosts that incoming requests are matched against before the ingress rule"),
    string("Address", "Address is a list containing ingress points for the load-balancer"),
    string("Ports", "Ports of TLS configurations that open"),
    AGE,
];
static INGRESS_CLASS: &[Column] = &[
    NAME,
    string("Controller", "Controller that is responsible for handling this class"),
    string("Parameters", "A reference to a resource with additional parameters"),
    AGE,
];
static NETWORK_POLICY: &[Column] =
    &[NAME, string_of("Pod-Selector", NetworkPolicySpec::json_schema, "podSelector"), AGE];
static ENDPOINT_SLICE: &[Column] = &[
    NAME,
    string_of("AddressType", EndpointSlice::json_schema, "addressType"),
    string_of("Ports", EndpointSlice::json_schema, "ports"),
    string_of("Endpoints", EndpointSlice::json_schema, "endpoints"),
    AGE,
];
static SERVICE_CIDR: &[Column] = &[NAME, string_of("CIDRs", ServiceCIDRSpec::json_schema, "cidrs"), AGE];
// its rows have the age as a third cell, which no column announces
static IP_ADDRESS: &[Column] = &[NAME, string_of("ParentRef", IPAddressSpec::json_schema, "parentRef")];

pub(super) static LAYOUTS: &[Layout] = &[
    Layout { group: "", kind: "Service", columns: SERVICE, cells: service },
    Layout { group: "networking.k8s.io", kind: "Ingress", columns: INGRESS, cells: ingress },
    Layout { group: "networking.k8s.io", kind: "IngressClass", columns: INGRESS_CLASS, cells: ingress_class },
    Layout {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        columns: NETWORK_POLICY,
        cells: network_policy,
    },
    Layout { group: "networking.k8s.io", kind: "ServiceCIDR", columns: SERVICE_CIDR, cells: service_cidr },
    Layout { group: "networking.k8s.io", kind: "IPAddress", columns: IP_ADDRESS, cells: ip_address },
    Layout {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        columns: ENDPOINT_SLICE,
        cells: endpoint_slice,
    },
];

fn external_ip(o: &Value) -> String {
    let mut addresses = texts(o, "/spec/externalIPs");
    match text(o, "/spec/type") {
        "ExternalName" => return text(o, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let mut all = load_balancer(o);
            all.append(&mut addresses);
            if all.is_empty() {
                return "<pending>".to_owned();
            }
            addresses = all;
        }
        _ => {}
    }
    if addresses.is_empty() { NONE.to_owned() } else { addresses.join(",") }
}

fn service(o: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = list(o, "/spec/ports")
        .iter()
        .map(|p| {
            let protocol = text_or(p, "/protocol", "TCP");
            match int(p, "/nodePort") {
                0 => format!("{}/{protocol}", int(p, "/port")),
                node_port => format!("{}:{node_port}/{protocol}", int(p, "/port")),
            }
        })
        .collect();
    vec![
        name(o),
        json!(text(o, "/spec/type")),
        json!(text_or(o, "/spec/clusterIPs/0", NONE)),
        json!(external_ip(o)),
        json!(if ports.is_empty() { NONE.to_owned() } else { ports.join(",") }),
        age(o, now),
        json!(labels(o.pointer("/spec/selector"))),
    ]
}

fn ingress(o: &Value, now: Timestamp) -> Vec<Value> {
    let rules = list(o, "/spec/rules");
    let hosts: Vec<&str> = rules.iter().map(|r| text(r, "/host")).filter(|h| !h.is_empty()).collect();
    let shown = hosts[..hosts.len().min(3)].join(",");
    // once three are shown, every further rule counts, and the number is that of all rules
    let third = rules.iter().enumerate().filter(|(_, r)| !text(r, "/host").is_empty()).nth(2);
    let hosts = match third {
        Some((at, _)) if at + 1 < rules.len() => format!("{shown} + {} more...", rules.len() - 3),
        _ if shown.is_empty() => "*".to_owned(),
        _ => shown,
    };
    let ports = if list(o, "/spec/tls").is_empty() { "80" } else { "80, 443" };
    vec![
        name(o),
        json!(o.pointer("/spec/ingressClassName").and_then(Value::as_str).unwrap_or(NONE)),
        json!(hosts),
        json!(load_balancer(o).join(",")),
        json!(ports),
        age(o, now),
    ]
}

fn ingress_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = match o.pointer("/spec/parameters").filter(|p| !p.is_null()) {
        None => NONE.to_owned(),
        Some(p) => {
            let group = p.get("apiGroup").and_then(Value::as_str).map(|g| format!(".{g}"));
            format!("{}{}/{}", text(p, "/kind"), group.unwrap_or_default(), text(p, "/name"))
        }
    };
    vec![name(o), json!(text(o, "/spec/controller")), json!(parameters), age(o, now)]
}

fn network_policy(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), json!(selector(o.pointer("/spec/podSelector"))), age(o, now)]
}

fn service_cidr(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), json!(texts(o, "/spec/cidrs").join(",")), age(o, now)]
}

fn ip_address(o: &Value, now: Timestamp) -> Vec<Value> {
    let parent = o.pointer("/spec/parentRef").filter(|p| !p.is_null()).map_or(NONE.to_owned(), |p| {
        let mut shown = text(p, "/resource").to_lowercase();
        if !text(p, "/group").is_empty() {
            shown = format!("{shown}.{}", text(p, "/group").to_lowercase());
        }
        if !text(p, "/namespace").is_empty() {
            shown = format!("{shown}/{}", text(p, "/namespace"));
        }
        format!("{shown}/{}", text(p, "/name"))
    });
    vec![name(o), json!(parent), age(o, now)]
}

fn endpoint_slice(o: &Value, now: Timestamp) -> Vec<Value> {
    let name_of = |p: &Value| p.get("name").and_then(Value::as_str).unwrap_or("*").to_owned();
    let ports: Vec<String> =
        list(o, "/ports").iter().map(|p| int_or_text(p.get("port"), &name_of(p))).collect();
    let addresses: Vec<String> =
        list(o, "/endpoints").iter().flat_map(|e| texts(e, "/addresses")).map(str::to_owned).collect();
    vec![
        name(o),
        json!(text(o, "/addressType")),
        json!(first_three(&ports, UNSET)),
        json!(first_three(&addresses, UNSET)),
        age(o, now),
    ]
}
