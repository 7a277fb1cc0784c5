//! Ingresses, ingress classes, network policies, addresses and service ranges.

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::parts::{Parts, Rules};
use super::tree::{child, each, has, is_empty, make, put, put_absent};
use super::{addresses, label_selector, numbers};

pub(super) static INGRESS: Parts = Parts {
    validate: |o, errors| {
        // only of a new ingress: tools add the annotation to what has a class
        let annotation = &o["metadata"]["annotations"]["kubernetes.io/ingress.class"];
        if has(&o["spec"], "ingressClassName") && annotation.is_string() {
            errors.invalid(
                "annotations.kubernetes.io/ingress.class",
                annotation,
                "can not be set when the class field is also set",
            );
        }
        ingress(o, errors);
    },
    validate_change: |new, _, errors| ingress(new, errors),
    rules: Rules::OnCreate,
    validate_status: |new, _, errors| ingress_status(new, errors),
    ..Parts::PLAIN
};

/// Where an ingress can be reached.
fn ingress_status(o: &Value, errors: &mut ErrorList) {
    let status = Cursor::root(o).key("status").key("loadBalancer");
    for ingress in status.key("ingress").items() {
        let (ip, host) = (ingress.key("ip"), ingress.key("hostname"));
        if !ip.str().is_empty() {
            addresses::ip(&ip.path, ip.str(), errors);
        }
        if !host.str().is_empty() {
            errors.invalid_all(&host.path, host.json(), names::dns1123_subdomain(host.str()));
            if addresses::is_ip(host.str()) {
                errors.invalid(&host.path, host.json(), "must be a DNS name, not an IP address");
            }
        }
    }
}

pub(super) static INGRESS_CLASS: Parts = Parts {
    default: |o| {
        if let Some(parameters) = child(o, "spec").and_then(|s| child(s, "parameters")) {
            put(parameters, "scope", "Cluster");
        }
    },
    validate: |o, errors| {
        let controller = Cursor::root(o).key("spec").key("controller");
        if controller.str().is_empty() {
            errors.required(&controller.path, "");
        } else if controller.str().len() > 250 {
            errors.too_long(&controller.path, 250);
        } else {
            domain_prefixed_path(&controller, errors);
        }
        let parameters = Cursor::root(o).key("spec").key("parameters");
        if parameters.exists() {
            for key in ["kind", "name"] {
                if parameters.key(key).str().is_empty() {
                    errors.required(&parameters.key(key).path, "");
                }
            }
            let (scope, namespace) = (parameters.key("scope"), parameters.key("namespace"));
            match scope.str() {
                "Cluster" if namespace.exists() => {
                    errors.forbidden(&namespace.path, "`parameters.scope` is set to 'Cluster'");
                }
                "Namespace" if namespace.str().is_empty() => {
                    errors.required(&namespace.path, "`parameters.scope` is set to 'Namespace'");
                }
                "Cluster" | "Namespace" => {}
                _ => errors.not_supported(&scope.path, scope.json(), &["Cluster", "Namespace"]),
            }
        }
    },
    validate_change: |new, old, errors| {
        super::generic::immutable(
            "spec.controller",
            &new["spec"]["controller"],
            &old["spec"]["controller"],
            errors,
        );
    },
    status: false,
    ..Parts::PLAIN
};

/// `domain/path`, as controllers are named.
fn domain_prefixed_path(at: &Cursor<'_>, errors: &mut ErrorList) {
    match at.str().split_once('/') {
        None => {
            errors.invalid(&at.path, at.json(), "must be a domain-prefixed path (such as \"acme.io/foo\")")
        }
        Some((host, path)) => {
            errors.invalid_all(&at.path, &json!(host), names::dns1123_subdomain(host));
            if path.is_empty() {
                errors.invalid(
                    &at.path,
                    at.json(),
                    "must be a domain-prefixed path (such as \"acme.io/foo\")",
                );
            }
        }
    }
}

pub(super) static NETWORK_POLICY: Parts = Parts {
    default: |o| {
        let Some(spec) = make(o, "spec") else { return };
        for direction in ["ingress", "egress"] {
            for rule in each(spec, direction) {
                for port in each(rule, "ports") {
                    put_absent(port, "protocol", "TCP");
                }
            }
        }
        if is_empty(spec.get("policyTypes")) {
            let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|e| !e.is_empty());
            spec["policyTypes"] = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        }
    },
    validate: network_policy,
    status: false,
    ..Parts::PLAIN
};

pub(super) static IP_ADDRESS: Parts = Parts {
    validate: |o, errors| {
        let name = api::meta::name(o);
        addresses::ip("metadata.name", name, errors);
        addresses::canonical("metadata.name", name, errors);
        let parent = Cursor::root(o).key("spec").key("parentRef");
        if !parent.exists() {
            return errors.required("spec.parentRef", "");
        }
        let group = parent.key("group");
        if !group.str().is_empty() {
            errors.invalid_all(&group.path, group.json(), names::dns1123_subdomain(group.str()));
        }
        for (key, needed) in [("resource", true), ("name", true), ("namespace", false)] {
            let at = parent.key(key);
            if at.str().is_empty() && needed {
                errors.required(&at.path, "");
            } else if !at.str().is_empty() {
                errors.invalid_all(&at.path, at.json(), names::path_segment(at.str()));
            }
        }
    },
    validate_change: |new, old, errors| {
        let (now, before) = (&new["spec"]["parentRef"], &old["spec"]["parentRef"]);
        if now != before {
            let shown = super::internal::show("ParentReference", now);
            errors.invalid_shown("spec.parentRef", &shown, "field is immutable");
        }
    },
    ..Parts::DATA
};

pub(super) static SERVICE_CIDR: Parts = Parts {
    validate: |o, errors| {
        let cidrs = Cursor::root(o).key("spec").key("cidrs");
        if cidrs.is_empty() {
            errors.required(&cidrs.path, "at least one CIDR required");
        }
        if cidrs.len() > 2 {
            errors.invalid(&cidrs.path, &json!({"CIDRs": cidrs.json()}), "may only hold up to 2 values");
            return;
        }
        let six = cidrs.items().filter(|c| c.str().contains(':')).count();
        if six > 1 || cidrs.len() - six > 1 {
            errors.invalid(
                &cidrs.path,
                cidrs.json(),
                "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
            );
        }
        for cidr in cidrs.items() {
            addresses::cidr(&cidr.path, cidr.str(), errors);
        }
    },
    ..Parts::UNCOUNTED
};

fn backend(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (service, resource) = (at.key("service"), at.key("resource"));
    match (service.exists(), resource.exists()) {
        (true, true) => errors.invalid(&at.path, &json!(""), "cannot set both resource and service backends"),
        (false, true) => {
            let group = resource.key("apiGroup");
            if group.exists() {
                errors.invalid_all(&group.path, group.json(), names::dns1123_subdomain(group.str()));
            }
            for key in ["kind", "name"] {
                let part = resource.key(key);
                if part.str().is_empty() {
                    errors.required(&part.path, &format!("{key} is required"));
                } else {
                    errors.invalid_all(&part.path, part.json(), names::path_segment(part.str()));
                }
            }
        }
        (true, false) => {
            let name = service.key("name");
            if name.str().is_empty() {
                errors.required(&name.path, "");
            } else {
                errors.invalid_all(&name.path, name.json(), names::dns1123_label(name.str()));
            }
            let (port_name, number) = (service.key("port").key("name"), service.key("port").key("number"));
            match (!port_name.str().is_empty(), number.i64().unwrap_or_default() != 0) {
                (true, true) => {
                    errors.invalid(&at.path, &json!(""), "cannot set both port name & port number");
                }
                (true, false) => {
                    errors.invalid_all(
                        &port_name.path,
                        port_name.json(),
                        addresses::port_name(port_name.str()),
                    );
                }
                (false, true) => numbers::port(&number, errors),
                (false, false) => errors.required(&at.path, "port name or number is required"),
            }
        }
        (false, false) => errors.required(&at.path, "resource or service backend is required"),
    }
}

fn host(at: &Cursor<'_>, errors: &mut ErrorList) {
    let text = at.str();
    if text.is_empty() {
        return;
    }
    if addresses::is_ip(text) {
        errors.invalid(&at.path, at.json(), "must be a DNS name, not an IP address");
        return;
    }
    if text.contains('*') {
        errors.invalid_all(&at.path, at.json(), addresses::wildcard_subdomain(text));
    } else {
        errors.invalid_all(&at.path, at.json(), names::dns1123_subdomain(text));
    }
}

fn ingress(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    if spec.key("rules").is_empty() && !spec.key("defaultBackend").exists() {
        errors.invalid(&spec.path, &Value::Null, "either `defaultBackend` or `rules` must be specified");
    }
    if spec.key("defaultBackend").exists() {
        backend(&spec.key("defaultBackend"), errors);
    }
    for rule in spec.key("rules").items() {
        host(&rule.key("host"), errors);
        let http = rule.key("http");
        if !http.exists() {
            continue;
        }
        if http.key("paths").is_empty() {
            errors.required(&http.key("paths").path, "");
        }
        for path in http.key("paths").items() {
            ingress_path(&path, errors);
        }
    }
    for tls in spec.key("tls").items() {
        for name in tls.key("hosts").items() {
            if name.str().contains('*') {
                errors.invalid_all(&name.path, name.json(), addresses::wildcard_subdomain(name.str()));
            } else {
                errors.invalid_all(&name.path, name.json(), names::dns1123_subdomain(name.str()));
            }
        }
        let secret = tls.key("secretName");
        if !secret.str().is_empty() {
            errors.invalid_all(&secret.path, secret.json(), names::dns1123_subdomain(secret.str()));
        }
    }
    let class = spec.key("ingressClassName");
    if class.exists() {
        errors.invalid_all(&class.path, class.json(), names::dns1123_subdomain(class.str()));
    }
}

fn ingress_path(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (kind, path) = (at.key("pathType"), at.key("path"));
    match kind.str() {
        "" => errors.required(&kind.path, "pathType must be specified"),
        "Exact" | "Prefix" => {
            if !path.str().starts_with('/') {
                errors.invalid(&path.path, &json!(path.str()), "must be an absolute path");
            }
            for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                if path.str().contains(bad) {
                    errors.invalid(&path.path, path.json(), &format!("must not contain '{bad}'"));
                }
            }
            for bad in ["/..", "/."] {
                if path.str().ends_with(bad) {
                    errors.invalid(&path.path, path.json(), &format!("cannot end with '{bad}'"));
                }
            }
        }
        "ImplementationSpecific" => {
            if !path.str().is_empty() && !path.str().starts_with('/') {
                errors.invalid(&path.path, path.json(), "must be an absolute path");
            }
        }
        _ => errors.not_supported(&kind.path, kind.json(), &["Exact", "ImplementationSpecific", "Prefix"]),
    }
    backend(&at.key("backend"), errors);
}

fn network_policy(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    label_selector::validate(&spec.key("podSelector"), errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.key(direction).items() {
            for port in rule.key("ports").items() {
                policy_port(&port, errors);
            }
            for peer in rule.key(peers).items() {
                policy_peer(&peer, errors);
            }
        }
    }
    let types = spec.key("policyTypes");
    if types.len() > 2 {
        errors.invalid(&types.path, types.json(), "may not specify more than two policyTypes");
        return;
    }
    for kind in types.items() {
        if !matches!(kind.str(), "Ingress" | "Egress") {
            errors.not_supported(&kind.path, kind.json(), &["Egress", "Ingress"]);
        }
    }
}

fn policy_port(at: &Cursor<'_>, errors: &mut ErrorList) {
    let protocol = at.key("protocol");
    if protocol.exists() && !matches!(protocol.str(), "TCP" | "UDP" | "SCTP") {
        errors.not_supported(&protocol.path, protocol.json(), &["TCP", "UDP", "SCTP"]);
    }
    let (port, end) = (at.key("port"), at.key("endPort"));
    match port.value {
        Some(Value::String(name)) => {
            if end.exists() {
                errors.invalid(&end.path, end.json(), "may not be specified when `port` is non-numeric");
            }
            errors.invalid_all(&port.path, port.json(), addresses::port_name(name));
        }
        Some(_) => {
            numbers::port(&port, errors);
            if let (Some(first), Some(last)) = (port.i64(), end.i64()) {
                if last < first {
                    errors.invalid(&end.path, port.json(), "must be greater than or equal to `port`");
                }
                numbers::port(&end, errors);
            }
        }
        None => {
            if end.exists() {
                errors.required(&port.path, "must be specified when `endPort` is specified");
            }
        }
    }
}

fn policy_peer(at: &Cursor<'_>, errors: &mut ErrorList) {
    let mut given = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if at.key(key).exists() {
            given += 1;
            label_selector::validate(&at.key(key), errors);
        }
    }
    let block = at.key("ipBlock");
    if block.exists() {
        given += 1;
        let cidr = block.key("cidr");
        if cidr.str().is_empty() {
            errors.required(&cidr.path, "");
        } else {
            addresses::cidr(&cidr.path, cidr.str(), errors);
            addresses::no_host_bits(&cidr.path, cidr.str(), errors);
            for except in block.key("except").items() {
                addresses::cidr(&except.path, except.str(), errors);
                if !addresses::strictly_contains(cidr.str(), except.str()) {
                    errors.invalid(&except.path, except.json(), "must be a strict subset of `cidr`");
                }
            }
        }
    }
    if given == 0 {
        errors.required(&at.path, "must specify a peer");
    } else if given > 1 && has(at.json(), "ipBlock") {
        errors.forbidden(&at.path, "may not specify both ipBlock and another peer");
    }
}
