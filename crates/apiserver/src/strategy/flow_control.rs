//! Flow schemas and priority levels (API priority and fairness).

use api::field::{Cursor, ErrorList};
use api::{meta, names};
use serde_json::{Value, json};

use super::internal;
use super::parts::Parts;
use super::tree::{child, make, put_absent, put_nonzero, text};

pub(super) static FLOW_SCHEMA: Parts = Parts {
    status_keeps: super::generic::OWN_META,
    default: |o| {
        if let Some(spec) = make(o, "spec") {
            put_nonzero(spec, "matchingPrecedence", 1000);
        }
    },
    validate: flow_schema,
    validate_status: |new, _, errors| conditions(new, errors),
    ..Parts::PLAIN
};

pub(super) static PRIORITY_LEVEL: Parts = Parts {
    status_keeps: super::generic::OWN_META,
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
            put_nonzero(queuing, "handSize", 8);
            put_nonzero(queuing, "queues", 64);
            put_nonzero(queuing, "queueLengthLimit", 50);
        }
    },
    validate: priority_level,
    validate_status: |new, _, errors| conditions(new, errors),
    ..Parts::PLAIN
};

/// Conditions have a type, each another.
fn conditions(o: &Value, errors: &mut ErrorList) {
    let mut seen = std::collections::BTreeSet::new();
    for condition in Cursor::root(o).key("status").key("conditions").items() {
        let kind = condition.key("type");
        if !seen.insert(kind.str()) {
            errors.duplicate(&kind.path, &json!(kind.str()));
        }
        if kind.str().is_empty() {
            errors.required(&kind.path, "must not be empty");
        }
    }
}

/// The objects that the server itself depends on: nobody may give them another spec.
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

fn mandatory(name: &str, objects: impl FnOnce() -> Vec<Value>) -> Option<Value> {
    if !MANDATORY.contains(&name) {
        return None;
    }
    objects().into_iter().find(|o| meta::name(o) == name).map(|mut o| o["spec"].take())
}

fn flow_schema(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let name = meta::name(o);
    let precedence = spec.key("matchingPrecedence");
    let number = precedence.i64().unwrap_or_default();
    if number <= 0 {
        errors.invalid(&precedence.path, &json!(number), "must be a positive value");
    }
    if number > 10_000 {
        errors.invalid(&precedence.path, precedence.json(), "must not be greater than 10000");
    }
    if number == 1 && name != "exempt" {
        let why = "only the schema named 'exempt' may have matchingPrecedence 1";
        errors.invalid(&precedence.path, precedence.json(), why);
    }
    let method = spec.key("distinguisherMethod");
    if method.exists() && !matches!(method.key("type").str(), "ByNamespace" | "ByUser") {
        let shown = internal::show("FlowDistinguisherMethod", method.json());
        errors.not_supported_shown(&method.key("type").path, &shown, &["ByNamespace", "ByUser"]);
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
    if let Some(fixed) = mandatory(name, || crate::bootstrap::flow_schemas(jiff::Timestamp::UNIX_EPOCH))
        && *spec.json() != fixed
    {
        let shown = internal::show("FlowSchemaSpec", spec.json());
        errors.invalid_shown("spec", &shown, &format!("spec of '{name}' must equal the fixed value"));
    }
}

fn flow_rule(rule: &Cursor<'_>, errors: &mut ErrorList) {
    let subjects = rule.key("subjects");
    if subjects.is_empty() {
        errors.required(&subjects.path, "subjects must contain at least one value");
    }
    for subject in subjects.items() {
        flow_subject(&subject, errors);
    }
    let (resources, others) = (rule.key("resourceRules"), rule.key("nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        errors.required(&rule.path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for resource in resources.items() {
        resource_rule(&resource, errors);
    }
    for other in others.items() {
        verbs(&other, errors);
        let urls = other.key("nonResourceURLs");
        if urls.is_empty() {
            errors.required(&urls.path, "nonResourceURLs must contain at least one value");
        } else if all_alone(&urls, "non-resource URLs", errors) {
            for url in urls.items() {
                if let Some(complaint) = url_complaint(url.str()) {
                    errors.invalid(&url.path, &json!(url.str()), complaint);
                }
            }
        }
    }
}

fn flow_subject(at: &Cursor<'_>, errors: &mut ErrorList) {
    const KINDS: [(&str, &str); 3] =
        [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let kind = at.key("kind").str();
    let Some((_, own)) = KINDS.iter().find(|(k, _)| *k == kind) else {
        let path = at.key("kind").path;
        return errors.not_supported(&path, &json!(kind), &["Group", "ServiceAccount", "User"]);
    };
    let subject = at.key(own);
    if !subject.exists() {
        errors.required(&subject.path, &format!("{own} is required when subject kind is '{kind}'"));
    } else {
        let name = subject.key("name");
        if name.str().is_empty() {
            errors.required(&name.path, "");
        } else if kind == "ServiceAccount" && name.str() != "*" {
            errors.invalid_all(&name.path, name.json(), names::dns1123_subdomain(name.str()));
        }
        if kind == "ServiceAccount" {
            let namespace = subject.key("namespace");
            if namespace.str().is_empty() {
                errors.required(&namespace.path, "must specify namespace for service account");
            } else {
                let messages = names::dns1123_label(namespace.str());
                errors.invalid_all(&namespace.path, namespace.json(), messages);
            }
        }
    }
    for (other, field) in KINDS.iter().filter(|(k, _)| *k != kind) {
        if at.key(field).exists() {
            let why = format!("{field} is forbidden when subject kind is not '{other}'");
            errors.forbidden(&at.key(field).path, &why);
        }
    }
}

const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

fn verbs(rule: &Cursor<'_>, errors: &mut ErrorList) {
    let verbs = rule.key("verbs");
    if verbs.is_empty() {
        errors.required(&verbs.path, "verbs must contain at least one value");
    } else if all_alone(&verbs, "verbs", errors) && verbs.items().any(|v| !VERBS.contains(&v.str())) {
        errors.not_supported(&verbs.path, verbs.json(), &VERBS);
    }
}

/// Refuses `*` beside other values; false where there is a `*`.
fn all_alone(list: &Cursor<'_>, what: &str, errors: &mut ErrorList) -> bool {
    let has_all = list.items().any(|v| v.str() == "*");
    if has_all && list.len() > 1 {
        let why = format!("if '*' is present, must not specify other {what}");
        errors.invalid(&list.path, list.json(), &why);
    }
    !has_all
}

fn resource_rule(rule: &Cursor<'_>, errors: &mut ErrorList) {
    verbs(rule, errors);
    for (key, one, many) in [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")]
    {
        let list = rule.key(key);
        if list.is_empty() {
            errors.required(&list.path, &format!("resource rules must supply at least one {one}"));
        } else {
            all_alone(&list, many, errors);
        }
    }
    let namespaces = rule.key("namespaces");
    if namespaces.is_empty() && rule.key("clusterScope").bool() != Some(true) {
        errors.required(
            &namespaces.path,
            "resource rules that are not cluster scoped must supply at least one namespace",
        );
    } else if all_alone(&namespaces, "namespaces", errors) {
        for namespace in namespaces.items() {
            for wrong in names::dns1123_label(namespace.str()) {
                let why = format!("each member of this list must be '*' or a DNS-1123 label; {wrong}");
                errors.invalid(&namespace.path, namespace.json(), &why);
            }
        }
    }
}

fn url_complaint(url: &str) -> Option<&'static str> {
    if url.is_empty() {
        Some("must not be empty")
    } else if url == "/" {
        None
    } else if !url.starts_with('/') {
        Some("must start with slash")
    } else if url.contains(' ') {
        Some("must not contain white-space")
    } else if url.contains("//") {
        Some("must not contain double slash")
    } else if url.matches('*').count() > usize::from(url.ends_with("/*")) {
        Some("wildcard can only do suffix matching")
    } else {
        None
    }
}

fn priority_level(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let kind = spec.key("type");
    let name = meta::name(o);
    if (name == "exempt") != (kind.str() == "Exempt") {
        errors.invalid(&kind.path, kind.json(), "must be 'Exempt' if and only if `name` is 'exempt'");
    }
    let (limited, exempt) = (spec.key("limited"), spec.key("exempt"));
    match kind.str() {
        "Exempt" => {
            if limited.exists() {
                errors.forbidden(&limited.path, "must be nil if the type is not Limited");
            }
            shares(&exempt, errors);
            lendable(&exempt, errors);
        }
        "Limited" => {
            if exempt.exists() {
                errors.forbidden(&exempt.path, "must be nil if the type is Limited");
            }
            if limited.exists() {
                self::limited(&limited, errors);
            } else {
                errors.required(&limited.path, "must not be empty when type is Limited");
            }
        }
        other => errors.not_supported(&kind.path, &json!(other), &["Exempt", "Limited"]),
    }
    fixed_level(name, spec.json(), errors);
}

fn fixed_level(name: &str, spec: &Value, errors: &mut ErrorList) {
    let Some(mut fixed) = mandatory(name, crate::bootstrap::priority_levels) else { return };
    let mut why = format!("spec of '{name}' must equal the fixed value");
    if name == "exempt" {
        why = format!("spec of '{name}' except the 'spec.exempt' field must equal the fixed value");
        if spec["exempt"].is_object() {
            fixed["exempt"] = spec["exempt"].clone();
        }
    }
    if *spec != fixed {
        errors.invalid_shown("spec", &internal::show("PriorityLevelConfigurationSpec", spec), &why);
    }
}

fn shares(at: &Cursor<'_>, errors: &mut ErrorList) {
    let shares = at.key("nominalConcurrencyShares");
    if shares.i64().is_some_and(|n| n < 0) {
        errors.invalid(&shares.path, shares.json(), "must be a non-negative integer");
    }
}

fn lendable(at: &Cursor<'_>, errors: &mut ErrorList) {
    let lendable = at.key("lendablePercent");
    if lendable.i64().is_some_and(|n| !(0..=100).contains(&n)) {
        errors.invalid(&lendable.path, lendable.json(), "must be between 0 and 100, inclusive");
    }
}

fn limited(at: &Cursor<'_>, errors: &mut ErrorList) {
    shares(at, errors);
    response(&at.key("limitResponse"), errors);
    lendable(at, errors);
    let borrowing = at.key("borrowingLimitPercent");
    if borrowing.i64().is_some_and(|n| n < 0) {
        errors.invalid(&borrowing.path, borrowing.json(), "if specified, must be a non-negative integer");
    }
}

fn response(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (kind, queuing) = (at.key("type"), at.key("queuing"));
    match kind.str() {
        "Reject" if queuing.exists() => {
            errors.forbidden(&queuing.path, "must be nil if limited.limitResponse.type is not Limited");
        }
        "Reject" => {}
        "Queue" if queuing.exists() => self::queuing(&queuing, errors),
        "Queue" => {
            errors.required(&queuing.path, "must not be empty if limited.limitResponse.type is Limited");
        }
        other => errors.not_supported(&kind.path, &json!(other), &["Queue", "Reject"]),
    }
}

/// More queues would cost more than they bring.
const MAX_QUEUES: i64 = 10_000_000;
/// Bits of the hash that deals queues to flows.
const HASH_BITS: u32 = 60;

fn queuing(at: &Cursor<'_>, errors: &mut ErrorList) {
    let number = |key: &str| at.key(key).i64().unwrap_or_default();
    let (length, queues, hand) = (number("queueLengthLimit"), number("queues"), number("handSize"));
    let mut refuse = |key: &str, n: i64, why: &str| errors.invalid(&at.key(key).path, &json!(n), why);
    if length <= 0 {
        refuse("queueLengthLimit", length, "must be positive");
    }
    if queues <= 0 {
        refuse("queues", queues, "must be positive");
    } else if queues > MAX_QUEUES {
        refuse("queues", queues, &format!("must not be greater than {MAX_QUEUES}"));
    }
    if hand <= 0 {
        refuse("handSize", hand, "must be positive");
    } else if hand > queues {
        refuse("handSize", hand, &format!("should not be greater than queues ({queues})"));
    } else if entropy_bits(queues, hand) > HASH_BITS {
        let why = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
        );
        refuse("handSize", hand, &why);
    }
}

/// How many bits it takes to deal a hand from a deck.
fn entropy_bits(deck: i64, hand: i64) -> u32 {
    ((deck as f64).log2() * hand as f64).ceil() as u32
}
