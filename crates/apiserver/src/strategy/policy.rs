//! Disruption budgets, autoscalers, priority classes, leases, runtime classes, signing requests, flow control.

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::generic::immutable;
use super::parts::Parts;
use super::tree::{child, each, has, is_empty, make, put_absent, text};
use super::{label_selector, numbers};

pub(super) static DISRUPTION_BUDGET: Parts = Parts {
    validate: |o, errors| {
        let spec = Cursor::root(o).key("spec");
        let (min, max) = (spec.key("minAvailable"), spec.key("maxUnavailable"));
        if min.exists() && max.exists() {
            errors.invalid("spec", &o["spec"], "minAvailable and maxUnavailable cannot be both set");
        }
        for at in [&min, &max] {
            numbers::count_or_percent(at, errors);
            numbers::at_most_100_percent(at, errors);
        }
        if spec.key("selector").exists() {
            label_selector::validate(&spec.key("selector"), errors);
        }
        let policy = spec.key("unhealthyPodEvictionPolicy");
        if policy.exists() && !matches!(policy.str(), "AlwaysAllow" | "IfHealthyBudget") {
            errors.not_supported(&policy.path, policy.json(), &["AlwaysAllow", "IfHealthyBudget"]);
        }
    },
    ..Parts::PLAIN
};

pub(super) static AUTOSCALER: Parts = Parts {
    default: |o| {
        let first_version = text(o, "apiVersion") == "autoscaling/v1";
        let Some(spec) = make(o, "spec") else { return };
        put_absent(spec, "minReplicas", 1);
        if first_version {
            return;
        }
        if is_empty(spec.get("metrics")) {
            spec["metrics"] = json!([{
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
            }]);
        }
        let Some(behavior) = child(spec, "behavior") else { return };
        if let Some(up) = make(behavior, "scaleUp") {
            put_absent(up, "stabilizationWindowSeconds", 0);
            put_absent(up, "selectPolicy", "Max");
            if is_empty(up.get("policies")) {
                up["policies"] = json!([
                    {"type": "Pods", "value": 4, "periodSeconds": 15},
                    {"type": "Percent", "value": 100, "periodSeconds": 15},
                ]);
            }
        }
        if let Some(down) = make(behavior, "scaleDown") {
            put_absent(down, "selectPolicy", "Max");
            if is_empty(down.get("policies")) {
                down["policies"] = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
            }
        }
    },
    validate: |o, errors| {
        let spec = Cursor::root(o).key("spec");
        let (min, max) = (spec.key("minReplicas"), spec.key("maxReplicas"));
        if min.i64().is_some_and(|n| n < 1) {
            errors.invalid(&min.path, min.json(), "must be greater than or equal to 1");
        }
        let most = max.i64().unwrap_or_default();
        if most < 1 {
            errors.invalid(&max.path, &json!(most), "must be greater than 0");
        }
        if min.i64().is_some_and(|n| most < n) {
            errors.invalid(&max.path, &json!(most), "must be greater than or equal to `minReplicas`");
        }
        let target = spec.key("scaleTargetRef");
        for key in ["kind", "name"] {
            let at = target.key(key);
            if at.str().is_empty() {
                errors.required(&at.path, "");
            } else {
                errors.invalid_all(&at.path, at.json(), names::path_segment(at.str()));
            }
        }
        let version = target.key("apiVersion");
        if !version.str().contains('/') && target.key("kind").str() != "ReplicationController" {
            errors.invalid(&version.path, &json!(version.str()), "apiVersion must specify API group");
        }
        for metric in spec.key("metrics").items() {
            super::autoscaling::metric(&metric, errors);
        }
        super::autoscaling::behavior(&spec.key("behavior"), errors);
    },
    ..Parts::UNCOUNTED
};

const SYSTEM_PRIORITY: &str = "system-";

pub(super) static PRIORITY_CLASS: Parts = Parts {
    default: |o| put_absent(o, "preemptionPolicy", "PreemptLowerPriority"),
    validate: |o, errors| {
        let root = Cursor::root(o);
        let name = api::meta::name(o);
        let value = root.key("value").i64().unwrap_or_default();
        let system = match name {
            "system-node-critical" => Some(2_000_001_000),
            "system-cluster-critical" => Some(2_000_000_000),
            _ => None,
        };
        if name.starts_with(SYSTEM_PRIORITY) && system != Some(value) {
            errors.forbidden(
                "metadata.name",
                "priority class names with 'system-' prefix are reserved for system use only. error: "
                    .to_owned()
                    .as_str(),
            );
        }
        if system.is_none() && value > 1_000_000_000 {
            errors.forbidden("value", "maximum allowed value of a user defined priority is 1000000000");
        }
        let policy = root.key("preemptionPolicy");
        if policy.exists() && !matches!(policy.str(), "PreemptLowerPriority" | "Never") {
            errors.not_supported(&policy.path, policy.json(), &["PreemptLowerPriority", "Never"]);
        }
    },
    validate_change: |new, old, errors| {
        if new["value"].as_i64().unwrap_or_default() != old["value"].as_i64().unwrap_or_default() {
            errors.forbidden("value", "may not be changed in an update.");
        }
        immutable("preemptionPolicy", &new["preemptionPolicy"], &old["preemptionPolicy"], errors);
    },
    status: false,
    ..Parts::PLAIN
};

pub(super) static LEASE: Parts = Parts {
    validate: |o, errors| {
        let spec = Cursor::root(o).key("spec");
        numbers::positive(&spec.key("leaseDurationSeconds"), errors);
        numbers::non_negative(&spec.key("leaseTransitions"), errors);
        let holder = spec.key("holderIdentity");
        if holder.exists()
            && holder.str().is_empty()
            && !spec.key("strategy").exists()
            && spec.key("leaseTransitions").exists()
        {
            errors.required(&holder.path, "must not be empty");
        }
    },
    create_on_update: true,
    unconditional_update: false,
    ..Parts::DATA
};

pub(super) static RUNTIME_CLASS: Parts = Parts {
    validate: |o, errors| {
        let handler = Cursor::root(o).key("handler");
        if handler.str().is_empty() {
            errors.required(&handler.path, "");
        } else {
            errors.invalid_all(&handler.path, handler.json(), names::dns1123_label(handler.str()));
        }
        let scheduling = Cursor::root(o).key("scheduling");
        label_selector::labels(&scheduling.key("nodeSelector"), errors);
        for toleration in scheduling.key("tolerations").items() {
            super::affinity::toleration(&toleration, errors);
        }
    },
    validate_change: |new, old, errors| immutable("handler", &new["handler"], &old["handler"], errors),
    ..Parts::DATA
};

/// Whether base64 text holds PEM of a kind.
fn is_pem(text: &str, label: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).is_ok_and(|bytes| {
        x509_parser::pem::Pem::iter_from_buffer(&bytes).any(|pem| pem.is_ok_and(|pem| pem.label == label))
    })
}

pub(super) static SIGNING_REQUEST: Parts = Parts {
    validate: |o, errors| {
        let spec = Cursor::root(o).key("spec");
        let request = spec.key("request");
        if !is_pem(request.str(), "CERTIFICATE REQUEST") {
            errors.invalid(
                "spec.request",
                &json!(request.str()),
                "PEM block type must be CERTIFICATE REQUEST",
            );
        }
        if spec.key("usages").is_empty() {
            errors.required("spec.usages", "");
        }
        let mut seen = std::collections::BTreeSet::new();
        for usage in spec.key("usages").items() {
            if !seen.insert(usage.str()) {
                errors.duplicate(&usage.path, usage.json());
            }
        }
        if spec.key("signerName").str() == "kubernetes.io/legacy-unknown" {
            errors.invalid(
                "spec.signerName",
                spec.key("signerName").json(),
                "the legacy signerName is not allowed via this API version",
            );
        }
        let signer = spec.key("signerName");
        if signer.str().is_empty() {
            errors.required(&signer.path, "");
        } else if !signer.str().contains('/') {
            errors.invalid(
                &signer.path,
                signer.json(),
                "must be a fully qualified domain and path of the form 'example.com/signer-name'",
            );
        }
        if spec.key("expirationSeconds").i64().is_some_and(|s| s < 600) {
            errors.invalid(
                "spec.expirationSeconds",
                spec.key("expirationSeconds").json(),
                "may not specify a duration less than 600 seconds (10 minutes)",
            );
        }
    },
    // Who asks is written down by the server at creation; the request itself never changes.
    update: |_, new, old| super::generic::copy("spec", new, old),
    narrow: &[("approval", &["status", "conditions"])],
    ..Parts::UNCOUNTED
};

pub(super) static FLOW_SCHEMA: Parts = Parts {
    default: |o| {
        if let Some(spec) = make(o, "spec") {
            super::tree::put_nonzero(spec, "matchingPrecedence", 1000);
        }
    },
    validate: |o, errors| {
        let spec = Cursor::root(o).key("spec");
        let precedence = spec.key("matchingPrecedence");
        if precedence.i64().is_some_and(|n| n <= 0) {
            errors.invalid(&precedence.path, precedence.json(), "must be a positive value");
        }
        if precedence.i64().is_some_and(|n| n > 10_000) {
            errors.invalid(&precedence.path, precedence.json(), "must not be greater than 10000");
        }
        let level = spec.key("priorityLevelConfiguration").key("name");
        if level.str().is_empty() {
            errors.required(&level.path, "must reference a priority level");
        } else {
            errors.invalid_all(&level.path, level.json(), names::dns1123_subdomain(level.str()));
        }
        for rule in spec.key("rules").items() {
            flow_rule(&rule, errors);
        }
    },
    ..Parts::PLAIN
};

fn flow_rule(rule: &Cursor<'_>, errors: &mut ErrorList) {
    let (resources, others) = (rule.key("resourceRules"), rule.key("nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        errors.required(&rule.path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    let verbs = |rule: &Cursor<'_>, errors: &mut ErrorList| {
        if rule.key("verbs").is_empty() {
            errors.required(&rule.key("verbs").path, "verbs must contain at least one value");
        }
    };
    for resource in resources.items() {
        verbs(&resource, errors);
        if resource.key("namespaces").is_empty() && resource.key("clusterScope").bool() != Some(true) {
            errors.required(
                &resource.key("namespaces").path,
                "resource rules that are not cluster scoped must supply at least one namespace",
            );
        }
    }
    for other in others.items() {
        verbs(&other, errors);
        for url in other.key("nonResourceURLs").items() {
            let text = url.str();
            let complaint = if text.is_empty() {
                "must not be empty"
            } else if !text.starts_with('/') && text != "*" {
                "must start with slash"
            } else if text.contains(' ') {
                "must not contain white-space"
            } else if text != "*" && text.contains('*') && !text.ends_with("/*") {
                "wildcard can only do suffix matching"
            } else {
                continue;
            };
            errors.invalid(&url.path, &json!(text), complaint);
        }
    }
}

pub(super) static PRIORITY_LEVEL: Parts = Parts {
    default: |o| {
        let Some(spec) = make(o, "spec") else { return };
        if text(spec, "type") == "Exempt"
            && let Some(exempt) = make(spec, "exempt")
        {
            put_absent(exempt, "nominalConcurrencyShares", 0);
            put_absent(exempt, "lendablePercent", 0);
        }
        let Some(limited) = child(spec, "limited") else { return };
        put_absent(limited, "nominalConcurrencyShares", 30);
        put_absent(limited, "lendablePercent", 0);
        if let Some(queuing) = child(limited, "limitResponse").and_then(|r| child(r, "queuing")) {
            super::tree::put_nonzero(queuing, "handSize", 8);
            super::tree::put_nonzero(queuing, "queues", 64);
            super::tree::put_nonzero(queuing, "queueLengthLimit", 50);
        }
    },
    validate: priority_level,
    ..Parts::PLAIN
};

fn queuing(at: &Cursor<'_>, errors: &mut ErrorList) {
    for key in ["queueLengthLimit", "queues", "handSize"] {
        let number = at.key(key);
        if number.i64().is_some_and(|n| n <= 0) {
            errors.invalid(&number.path, number.json(), "must be positive");
        }
    }
    let (hand, queues) = (at.key("handSize"), at.key("queues").i64().unwrap_or_default());
    if queues > 0 && hand.i64().is_some_and(|n| n > queues) {
        errors.invalid(&hand.path, hand.json(), &format!("should not be greater than queues ({queues})"));
    }
}

fn priority_level(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let kind = spec.key("type");
    let exempt = api::meta::name(o) == "exempt";
    if exempt != (kind.str() == "Exempt") {
        errors.invalid(&kind.path, kind.json(), "must be 'Exempt' if and only if `name` is 'exempt'");
        if kind.str() == "Exempt" && spec.key("limited").exists() {
            errors.forbidden(&spec.key("limited").path, "must be nil if the type is not Limited");
        }
        return;
    }
    match kind.str() {
        "Exempt" => {}
        "Limited" => {
            let limited = spec.key("limited");
            if !limited.exists() {
                errors.required(&limited.path, "must not be empty when type is Limited");
                return;
            }
            let shares = limited.key("nominalConcurrencyShares");
            if shares.i64().is_some_and(|n| n < 0) {
                errors.invalid(&shares.path, shares.json(), "must be a non-negative integer");
            }
            let response = limited.key("limitResponse");
            let how = response.key("type");
            match how.str() {
                "Reject" => {
                    if response.key("queuing").exists() {
                        errors.forbidden(
                            &response.key("queuing").path,
                            "must be nil if limited.limitResponse.type is not Limited",
                        );
                    }
                }
                "Queue" => {
                    if !response.key("queuing").exists() {
                        errors.required(
                            &response.key("queuing").path,
                            "must not be empty if limited.limitResponse.type is Limited",
                        );
                    } else {
                        queuing(&response.key("queuing"), errors);
                    }
                }
                _ => errors.not_supported(&how.path, &json!(how.str()), &["Queue", "Reject"]),
            }
        }
        _ => errors.not_supported(&kind.path, kind.json(), &["Exempt", "Limited"]),
    }
}

pub(super) static API_SERVICE: Parts = Parts {
    unconditional_update: false,
    default: |o| {
        if let Some(service) = make(o, "spec").and_then(|s| child(s, "service")) {
            put_absent(service, "port", 443);
        }
    },
    create: |context, o| {
        if !has(&o["spec"], "service") {
            o["status"] = json!({"conditions": [{
                "type": "Available",
                "status": "True",
                "reason": "Local",
                "message": "Local APIServices are always available",
                "lastTransitionTime": api::meta::format_time(context.now),
            }]});
        }
    },
    ..Parts::UNCOUNTED
};

/// Defaults of the objects that admission is configured with.
pub(super) static WEBHOOKS: Parts = Parts {
    default: |o| {
        let mutating = text(o, "kind") == "MutatingWebhookConfiguration";
        for hook in each(o, "webhooks") {
            put_absent(hook, "failurePolicy", "Fail");
            put_absent(hook, "matchPolicy", "Equivalent");
            make(hook, "namespaceSelector");
            make(hook, "objectSelector");
            put_absent(hook, "timeoutSeconds", 10);
            if mutating {
                put_absent(hook, "reinvocationPolicy", "Never");
            }
            if let Some(service) = child(hook, "clientConfig").and_then(|c| child(c, "service")) {
                put_absent(service, "port", 443);
            }
            for rule in each(hook, "rules") {
                put_absent(rule, "scope", "*");
            }
        }
    },
    status: false,
    ..Parts::PLAIN
};

fn match_resources(constraints: &mut Value) {
    put_absent(constraints, "matchPolicy", "Equivalent");
    make(constraints, "namespaceSelector");
    make(constraints, "objectSelector");
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in each(constraints, list) {
            put_absent(rule, "scope", "*");
        }
    }
}

pub(super) static ADMISSION_POLICY: Parts = Parts {
    default: |o| {
        let Some(spec) = make(o, "spec") else { return };
        put_absent(spec, "failurePolicy", "Fail");
        if let Some(constraints) = child(spec, "matchConstraints") {
            match_resources(constraints);
        }
    },
    ..Parts::PLAIN
};

pub(super) static ADMISSION_BINDING: Parts = Parts {
    default: |o| {
        if let Some(resources) = make(o, "spec").and_then(|s| child(s, "matchResources")) {
            match_resources(resources);
        }
    },
    status: false,
    ..Parts::PLAIN
};
