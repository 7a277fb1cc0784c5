//! Disruption budgets, autoscalers, priority classes, leases, runtime classes, and what extends the API.

use api::field::Cursor;
use api::names;
use serde_json::json;

use super::generic::immutable;
use super::parts::{Parts, Rules};
use super::tree::{child, has, is_empty, make, put_absent, text};
use super::{internal, label_selector, numbers, texts};

pub(super) static DISRUPTION_BUDGET: Parts = Parts {
    validate: |o, errors| {
        let spec = Cursor::root(o).key("spec");
        let (min, max) = (spec.key("minAvailable"), spec.key("maxUnavailable"));
        if min.exists() && max.exists() {
            let shown = internal::show("PodDisruptionBudgetSpec", spec.json());
            errors.invalid_shown("spec", &shown, "minAvailable and maxUnavailable cannot be both set");
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
    validate_status: |new, _, errors| {
        let status = Cursor::root(new).key("status");
        texts::conditions(&status.key("conditions"), errors);
        for key in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            numbers::non_negative(&status.key(key), errors);
        }
    },
    unconditional_update: false,
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
            if !has(up, "policies") {
                up["policies"] = json!([
                    {"type": "Pods", "value": 4, "periodSeconds": 15},
                    {"type": "Percent", "value": 100, "periodSeconds": 15},
                ]);
            }
        }
        if let Some(down) = make(behavior, "scaleDown") {
            put_absent(down, "selectPolicy", "Max");
            if !has(down, "policies") {
                down["policies"] = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
            }
        }
    },
    validate: |o, errors| super::autoscaling::validate(o, None, errors),
    validate_change: |new, old, errors| super::autoscaling::validate(new, Some(old), errors),
    rules: Rules::OnCreate,
    validate_status: |new, _, errors| {
        let status = Cursor::root(new).key("status");
        for key in ["currentReplicas", "desiredReplicas"] {
            numbers::non_negative(&status.key(key), errors);
        }
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
        let is_default = root.key("globalDefault").bool() == Some(true);
        let why = match system {
            None => format!("{name} is not a known system priority class"),
            Some(known) if known != value => format!("value of {name} PriorityClass must be {known}"),
            Some(_) if is_default => format!("globalDefault of {name} PriorityClass must be false"),
            Some(_) => String::new(),
        };
        if name.starts_with(SYSTEM_PRIORITY) && !why.is_empty() {
            let reserved = "priority class names with 'system-' prefix are reserved for system use only";
            errors.forbidden("metadata.name", &format!("{reserved}. error: {why}"));
        }
        if !name.starts_with(SYSTEM_PRIORITY) && value > 1_000_000_000 {
            errors.forbidden("value", "maximum allowed value of a user defined priority is 1000000000");
        }
        let policy = root.key("preemptionPolicy");
        if policy.exists() && policy.str().is_empty() {
            errors.required(&policy.path, "");
        } else if policy.exists() && !matches!(policy.str(), "PreemptLowerPriority" | "Never") {
            errors.not_supported(&policy.path, policy.json(), &["PreemptLowerPriority", "Never"]);
        }
    },
    validate_change: |new, old, errors| {
        if new["value"].as_i64().unwrap_or_default() != old["value"].as_i64().unwrap_or_default() {
            errors.forbidden("value", "may not be changed in an update.");
        }
        immutable("preemptionPolicy", &new["preemptionPolicy"], &old["preemptionPolicy"], errors);
    },
    rules: Rules::OnCreate,
    // what a class says of itself is no desired state
    desired_changed: |_, _| false,
    status: false,
    ..Parts::PLAIN
};

pub(super) static LEASE: Parts = Parts {
    validate: |o, errors| {
        let spec = Cursor::root(o).key("spec");
        numbers::positive(&spec.key("leaseDurationSeconds"), errors);
        numbers::non_negative(&spec.key("leaseTransitions"), errors);
    },
    // who shall lead is not coordinated by leases here
    create: |_, o| {
        for key in ["strategy", "preferredHolder"] {
            super::generic::set(&mut o["spec"], key, None);
        }
    },
    update: |_, new, old| {
        for key in ["strategy", "preferredHolder"] {
            if old["spec"].get(key).is_none() {
                super::generic::set(&mut new["spec"], key, None);
            }
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
        super::resources::overhead(&Cursor::root(o).key("overhead").key("podFixed"), errors);
        let scheduling = Cursor::root(o).key("scheduling");
        label_selector::labels(&scheduling.key("nodeSelector"), errors);
        let mut seen = Vec::new();
        for toleration in scheduling.key("tolerations").items() {
            super::affinity::toleration(&toleration, errors);
        }
        for toleration in scheduling.key("tolerations").items() {
            let key = ["key", "operator", "value", "effect"].map(|k| toleration.key(k).str());
            if seen.contains(&key) {
                let shown = internal::show("Toleration", toleration.json());
                errors.with_shown(api::field::Reason::Duplicate, &toleration.path, &shown, "");
            } else {
                seen.push(key);
            }
        }
    },
    validate_change: |new, old, errors| immutable("handler", &new["handler"], &old["handler"], errors),
    rules: Rules::BeforeChange,
    create_on_update: true,
    unconditional_update: false,
    ..Parts::DATA
};
