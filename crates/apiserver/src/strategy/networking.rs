//! Ingresses, ingress classes, network policies, addresses and service ranges.

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::parts::{Parts, Rules};
use super::tree::{child, each, has, is_empty, make, put_absent};
use super::{addresses, label_selector, numbers, texts};

pub(super) static INGRESS: Parts = Parts {
    validate: |o, errors| {
        ingress(o, errors);
        // only of a new ingress: tools add the annotation to what has a class
        let annotation = &o["metadata"]["annotations"]["kubernetes.io/ingress.class"];
        let class = &o["spec"]["ingressClassName"];
        if annotation.is_string() && class.is_string() && annotation != class {
            errors.invalid(
                "annotations.kubernetes.io/ingress.class",
                annotation,
                "must match `ingressClassName` when both are specified",
            );
        }
    },
    validate_change: |new, _, errors| ingress(new, errors),
    rules: Rules::OnCreate,
    validate_status: ingress_status,
    ..Parts::PLAIN
};

/// Where an ingress can be reached.
fn ingress_status(new: &Value, old: &Value, errors: &mut ErrorList) {
    let status = Cursor::root(new).key("status").key("loadBalancer");
    let before = old["status"]["loadBalancer"]["ingress"].as_array();
    for ingress in status.key("ingress").items() {
        let (ip, host) = (ingress.key("ip"), ingress.key("hostname"));
        let was_there = before.is_some_and(|l| l.iter().any(|i| i["ip"] == *ip.json()));
        if !ip.str().is_empty() && !was_there {
            addresses::strict_ip(&ip.path, ip.str(), errors);
        }
        if !host.str().is_empty() {
            errors.invalid_all(&host.path, host.json(), names::dns1123_subdomain(host.str()));
            if addresses::sloppy_ip(host.str()).is_some() {
                errors.invalid(&host.path, host.json(), "must be a DNS name, not an IP address");
            }
        }
    }
}

pub(super) static INGRESS_CLASS: Parts = Parts {
    default: |o| {
        if let Some(parameters) = child(o, "spec").and_then(|s| child(s, "parameters")) {
            put_absent(parameters, "scope", "Cluster");
        }
    },
    validate: |o, errors| {
        let controller = Cursor::root(o).key("spec").key("controller");
        if controller.str().len() > 250 {
            errors.too_long(&controller.path, 250);
        }
        texts::domain_prefixed_path(&controller, errors);
        let parameters = Cursor::root(o).key("spec").key("parameters");
        if parameters.exists() {
            typed_reference(&parameters, errors);
            let (scope, namespace) = (parameters.key("scope"), parameters.key("namespace"));
            match scope.str() {
                "Cluster" if namespace.exists() => {
                    errors.forbidden(&namespace.path, "`parameters.scope` is set to 'Cluster'");
                }
                "Namespace" if !namespace.exists() => {
                    errors.required(&namespace.path, "`parameters.scope` is set to 'Namespace'");
                }
                "Namespace" => {
                    let wrong = names::dns1123_label(namespace.str());
                    errors.invalid_all(&namespace.path, namespace.json(), wrong);
                }
                "Cluster" => {}
                "" if !scope.exists() => errors.required(&scope.path, ""),
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
    validate: |o, errors| network_policy(o, &[], errors),
    validate_change: |new, old, errors| network_policy(new, &ranges(old), errors),
    rules: Rules::OnCreate,
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
    rules: Rules::OnCreate,
    ..Parts::DATA
};

pub(super) static SERVICE_CIDR: Parts = Parts {
    validate: |o, errors| cidrs(&Cursor::root(o).key("spec").key("cidrs"), errors),
    validate_change: |new, old, errors| {
        let (now, before) = (Cursor::root(new).key("spec").key("cidrs"), &old["spec"]["cidrs"]);
        let before = before.as_array().map_or(&[][..], Vec::as_slice);
        // one range of the other family may be added
        let grows = before.len() == 1 && now.len() == 2;
        if now.len() != before.len() && !grows {
            return errors.invalid(&now.path, now.json(), "field is immutable");
        }
        for (now, _) in now.items().zip(before).filter(|(now, before)| now.json() != *before) {
            errors.invalid(&now.path, now.json(), "field is immutable");
        }
        if grows {
            cidrs(&now, errors);
        }
    },
    rules: Rules::OnCreate,
    ..Parts::UNCOUNTED
};

/// One range, or one of each family.
fn cidrs(list: &Cursor<'_>, errors: &mut ErrorList) {
    if list.is_empty() {
        return errors.required(&list.path, "at least one CIDR required");
    }
    if list.len() > 2 {
        return errors.invalid(&list.path, &json!({"CIDRs": list.json()}), "may only hold up to 2 values");
    }
    for cidr in list.items() {
        addresses::canonical_cidr(&cidr.path, cidr.str(), errors);
    }
    let families: Vec<_> =
        list.items().map(|c| addresses::sloppy_cidr(c.str()).map(|(ip, _)| ip.is_ipv4())).collect();
    if matches!(families[..], [Some(one), Some(other)] if one == other) {
        errors.invalid(
            &list.path,
            list.json(),
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        );
    }
}

/// Group, kind and name of an object.
fn typed_reference(at: &Cursor<'_>, errors: &mut ErrorList) {
    let group = at.key("apiGroup");
    if group.exists() {
        errors.invalid_all(&group.path, group.json(), names::dns1123_subdomain(group.str()));
    }
    texts::kind_and_name(at, errors);
}

fn backend(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (service, resource) = (at.key("service"), at.key("resource"));
    match (service.exists(), resource.exists()) {
        (true, true) => errors.invalid(&at.path, &json!(""), "cannot set both resource and service backends"),
        (false, true) => {
            typed_reference(&resource, errors);
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
        (false, false) => errors.invalid(&at.path, &json!(""), "resource or service backend is required"),
    }
}

fn host(at: &Cursor<'_>, errors: &mut ErrorList) {
    let text = at.str();
    if text.is_empty() {
        return;
    }
    if addresses::sloppy_ip(text).is_some() {
        errors.invalid(&at.path, at.json(), "must be a DNS name, not an IP address");
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
        let rules = spec.key("rules");
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.invalid(&spec.path, rules.value.unwrap_or(&Value::Null), why);
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
        "" if !kind.exists() => return errors.required(&kind.path, "pathType must be specified"),
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

/// The ranges that a policy names.
fn ranges(policy: &Value) -> Vec<&str> {
    let peers = [("ingress", "from"), ("egress", "to")].into_iter().flat_map(|(direction, peers)| {
        let rules = policy["spec"][direction].as_array().into_iter().flatten();
        rules.flat_map(move |rule| rule[peers].as_array().into_iter().flatten())
    });
    peers
        .flat_map(|peer| {
            let block = &peer["ipBlock"];
            block["except"].as_array().into_iter().flatten().chain([&block["cidr"]])
        })
        .filter_map(Value::as_str)
        .collect()
}

/// `known`: ranges that are not looked at, because the policy had them before.
fn network_policy(o: &Value, known: &[&str], errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    label_selector::validate(&spec.key("podSelector"), errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.key(direction).items() {
            for port in rule.key("ports").items() {
                policy_port(&port, errors);
            }
            for peer in rule.key(peers).items() {
                policy_peer(&peer, known, errors);
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
            errors.not_supported(&kind.path, kind.json(), &["Ingress", "Egress"]);
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
                let why = "may not be specified when `port` is not specified";
                errors.invalid(&end.path, end.json(), why);
            }
        }
    }
}

fn policy_peer(at: &Cursor<'_>, known: &[&str], errors: &mut ErrorList) {
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
        ip_block(&block, known, errors);
    }
    if given == 0 {
        errors.required(&at.path, "must specify a peer");
    } else if given > 1 && has(at.json(), "ipBlock") {
        errors.forbidden(&at.path, "may not specify both ipBlock and another peer");
    }
}

fn ip_block(block: &Cursor<'_>, known: &[&str], errors: &mut ErrorList) {
    let check = |at: &Cursor<'_>, errors: &mut ErrorList| {
        if !known.contains(&at.str()) {
            addresses::strict_cidr(&at.path, at.str(), errors);
        }
        addresses::sloppy_cidr(at.str())
    };
    let cidr = block.key("cidr");
    if cidr.str().is_empty() {
        return errors.required(&cidr.path, "");
    }
    let Some(outer) = check(&cidr, errors) else { return };
    for except in block.key("except").items() {
        let inner = check(&except, errors);
        if inner.is_some_and(|inner| !addresses::strictly_contains(outer, inner)) {
            errors.invalid(&except.path, except.json(), "must be a strict subset of `cidr`");
        }
    }
}
