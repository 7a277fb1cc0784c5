//! RBAC, certificates, leases, admission, flow control and API registration.

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequestSpec, CertificateSigningRequestStatus};
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::api::flowcontrol::v1::{
    FlowSchemaSpec, LimitedPriorityLevelConfiguration, PriorityLevelConfigurationReference,
    PriorityLevelConfigurationSpec, QueuingConfiguration,
};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding};
use k8s_openapi::schemars::JsonSchema;
use serde_json::{Value, json};

use super::Layout;
use super::column::{AGE, Column, NAME, integer, string, string_of};
use super::duration::human_duration;
use super::format::{NONE, UNSET, age, list, name, text, text_or};

static ROLE_BINDING: &[Column] = &[
    NAME,
    string_of("Role", RoleBinding::json_schema, "roleRef"),
    AGE,
    string("Users", "Users in the roleBinding").wide(),
    string("Groups", "Groups in the roleBinding").wide(),
    string("ServiceAccounts", "ServiceAccounts in the roleBinding").wide(),
];
static CLUSTER_ROLE_BINDING: &[Column] = &[
    NAME,
    string_of("Role", ClusterRoleBinding::json_schema, "roleRef"),
    AGE,
    string("Users", "Users in the clusterRoleBinding").wide(),
    string("Groups", "Groups in the clusterRoleBinding").wide(),
    string("ServiceAccounts", "ServiceAccounts in the clusterRoleBinding").wide(),
];
static CSR: &[Column] = &[
    NAME,
    AGE,
    string_of("SignerName", CertificateSigningRequestSpec::json_schema, "signerName"),
    // described as the request, though it shows who made it
    string_of("Requestor", CertificateSigningRequestSpec::json_schema, "request"),
    string_of("RequestedDuration", CertificateSigningRequestSpec::json_schema, "expirationSeconds"),
    string_of("Condition", CertificateSigningRequestStatus::json_schema, "conditions"),
];
static LEASE: &[Column] = &[NAME, string_of("Holder", LeaseSpec::json_schema, "holderIdentity"), AGE];
// the reference describes the handler as a field that metadata has not: not at all
static RUNTIME_CLASS: &[Column] = &[NAME, string("Handler", ""), AGE];
static WEBHOOKS: &[Column] = &[
    NAME,
    integer("Webhooks", "Webhooks indicates the number of webhooks registered in this configuration"),
    AGE,
];
static VAP: &[Column] = &[
    NAME,
    integer(
        "Validations",
        "Validations indicates the number of validation rules defined in this configuration",
    ),
    string("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
    AGE,
];
static MAP: &[Column] = &[
    NAME,
    integer("Mutations", "Mutation indicates the number of mutations rules defined in this configuration"),
    string("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
    AGE,
];
static POLICY_BINDING: &[Column] = &[
    NAME,
    string("PolicyName", "PolicyName indicates the policy definition which the policy binding binded to"),
    string("ParamRef", "ParamRef indicates the param resource which sets the configration param"),
    AGE,
];
static FLOW_SCHEMA: &[Column] = &[
    NAME,
    string_of("PriorityLevel", PriorityLevelConfigurationReference::json_schema, "name"),
    string_of("MatchingPrecedence", FlowSchemaSpec::json_schema, "matchingPrecedence"),
    string_of("DistinguisherMethod", FlowSchemaSpec::json_schema, "distinguisherMethod"),
    AGE,
    string("MissingPL", "references a broken or non-existent PriorityLevelConfiguration"),
];
static PRIORITY_LEVEL: &[Column] = &[
    NAME,
    string_of("Type", PriorityLevelConfigurationSpec::json_schema, "type"),
    string_of(
        "NominalConcurrencyShares",
        LimitedPriorityLevelConfiguration::json_schema,
        "nominalConcurrencyShares",
    ),
    string_of("Queues", QueuingConfiguration::json_schema, "queues"),
    string_of("HandSize", QueuingConfiguration::json_schema, "handSize"),
    string_of("QueueLengthLimit", QueuingConfiguration::json_schema, "queueLengthLimit"),
    AGE,
];
static API_SERVICE: &[Column] = &[
    NAME,
    string("Service", "The reference to the service that hosts this API endpoint."),
    string("Available", "Whether this service is available."),
    AGE,
];

const ADMISSION: &str = "admissionregistration.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";

pub(super) static LAYOUTS: &[Layout] = &[
    Layout { group: RBAC, kind: "RoleBinding", columns: ROLE_BINDING, cells: role_binding },
    Layout { group: RBAC, kind: "ClusterRoleBinding", columns: CLUSTER_ROLE_BINDING, cells: role_binding },
    Layout { group: "certificates.k8s.io", kind: "CertificateSigningRequest", columns: CSR, cells: csr },
    Layout { group: "coordination.k8s.io", kind: "Lease", columns: LEASE, cells: lease },
    Layout { group: "node.k8s.io", kind: "RuntimeClass", columns: RUNTIME_CLASS, cells: runtime_class },
    Layout { group: ADMISSION, kind: "MutatingWebhookConfiguration", columns: WEBHOOKS, cells: webhooks },
    Layout { group: ADMISSION, kind: "ValidatingWebhookConfiguration", columns: WEBHOOKS, cells: webhooks },
    Layout { group: ADMISSION, kind: "ValidatingAdmissionPolicy", columns: VAP, cells: policy },
    Layout { group: ADMISSION, kind: "MutatingAdmissionPolicy", columns: MAP, cells: policy },
    Layout {
        group: ADMISSION,
        kind: "ValidatingAdmissionPolicyBinding",
        columns: POLICY_BINDING,
        cells: policy_binding,
    },
    Layout {
        group: ADMISSION,
        kind: "MutatingAdmissionPolicyBinding",
        columns: POLICY_BINDING,
        cells: policy_binding,
    },
    Layout { group: FLOW, kind: "FlowSchema", columns: FLOW_SCHEMA, cells: flow_schema },
    Layout {
        group: FLOW,
        kind: "PriorityLevelConfiguration",
        columns: PRIORITY_LEVEL,
        cells: priority_level,
    },
    Layout { group: "apiregistration.k8s.io", kind: "APIService", columns: API_SERVICE, cells: api_service },
];

fn role_binding(o: &Value, now: Timestamp) -> Vec<Value> {
    let subjects = |kind: &str| {
        let names = list(o, "/subjects").iter().filter(|s| text(s, "/kind") == kind).map(|s| {
            match (kind, text(s, "/namespace")) {
                ("ServiceAccount", ns) => format!("{ns}/{}", text(s, "/name")),
                _ => text(s, "/name").to_owned(),
            }
        });
        json!(names.collect::<Vec<_>>().join(", "))
    };
    vec![
        name(o),
        json!(format!("{}/{}", text(o, "/roleRef/kind"), text(o, "/roleRef/name"))),
        age(o, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

fn csr(o: &Value, now: Timestamp) -> Vec<Value> {
    let has = |kind: &str| list(o, "/status/conditions").iter().any(|c| text(c, "/type") == kind);
    let mut condition = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        condition.push_str(",Failed");
    }
    if !text(o, "/status/certificate").is_empty() {
        condition.push_str(",Issued");
    }
    let duration =
        o.pointer("/spec/expirationSeconds").and_then(Value::as_i64).map_or(NONE.to_owned(), human_duration);
    vec![
        name(o),
        age(o, now),
        json!(text_or(o, "/spec/signerName", NONE)),
        json!(text(o, "/spec/username")),
        json!(duration),
        json!(condition),
    ]
}

fn lease(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), json!(text(o, "/spec/holderIdentity")), age(o, now)]
}

fn runtime_class(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), json!(text(o, "/handler")), age(o, now)]
}

fn webhooks(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), json!(list(o, "/webhooks").len()), age(o, now)]
}

fn policy(o: &Value, now: Timestamp) -> Vec<Value> {
    let rules = list(o, "/spec/validations").len() + list(o, "/spec/mutations").len();
    let param = match o.pointer("/spec/paramKind").filter(|p| !p.is_null()) {
        Some(p) => format!("{}/{}", text(p, "/apiVersion"), text(p, "/kind")),
        None => UNSET.to_owned(),
    };
    vec![name(o), json!(rules), json!(param), age(o, now)]
}

fn policy_binding(o: &Value, now: Timestamp) -> Vec<Value> {
    let param = match o.pointer("/spec/paramRef").filter(|p| !p.is_null()) {
        Some(p) if p["selector"].is_object() => super::format::selector_of_go(&p["selector"]),
        Some(p) => match text(p, "/namespace") {
            "" => format!("*/{}", text(p, "/name")),
            ns => format!("{ns}/{}", text(p, "/name")),
        },
        None => UNSET.to_owned(),
    };
    vec![name(o), json!(text(o, "/spec/policyName")), json!(param), age(o, now)]
}

fn flow_schema(o: &Value, now: Timestamp) -> Vec<Value> {
    let dangling = list(o, "/status/conditions").iter().find(|c| text(c, "/type") == "Dangling");
    let method = o.pointer("/spec/distinguisherMethod").filter(|m| !m.is_null());
    vec![
        name(o),
        json!(text(o, "/spec/priorityLevelConfiguration/name")),
        json!(o["spec"]["matchingPrecedence"].as_i64().unwrap_or_default()),
        json!(method.map_or(NONE, |m| text(m, "/type"))),
        age(o, now),
        json!(dangling.map_or("?", |c| text(c, "/status"))),
    ]
}

fn priority_level(o: &Value, now: Timestamp) -> Vec<Value> {
    let limited = |key: &str| {
        let value = o.pointer(&format!("/spec/limited/{key}"));
        value.filter(|v| !v.is_null()).cloned().unwrap_or_else(|| json!(NONE))
    };
    let queuing = |key: &str| limited(&format!("limitResponse/queuing/{key}"));
    vec![
        name(o),
        json!(text(o, "/spec/type")),
        limited("nominalConcurrencyShares"),
        queuing("queues"),
        queuing("handSize"),
        queuing("queueLengthLimit"),
        age(o, now),
    ]
}

fn api_service(o: &Value, now: Timestamp) -> Vec<Value> {
    let service = match o.pointer("/spec/service").filter(|s| !s.is_null()) {
        Some(s) => format!("{}/{}", text(s, "/namespace"), text(s, "/name")),
        None => "Local".to_owned(),
    };
    let available = list(o, "/status/conditions").iter().find(|c| text(c, "/type") == "Available");
    let available = match available {
        Some(c) if text(c, "/status") == "True" => "True".to_owned(),
        Some(c) => format!("{} ({})", text(c, "/status"), text(c, "/reason")),
        None => "Unknown".to_owned(),
    };
    vec![name(o), json!(service), json!(available), age(o, now)]
}
