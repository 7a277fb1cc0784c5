//! Endpoints and endpoint slices.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::core_service::{app_protocol, protocol};
use super::parts::{Parts, Rules};
use super::tree::{each, put, put_absent};
use super::{addresses, generic};

pub(super) static ENDPOINTS: Parts = Parts {
    default: |o| {
        for subset in each(o, "subsets") {
            for port in each(subset, "ports") {
                put(port, "protocol", "TCP");
            }
        }
    },
    validate: endpoints,
    warn: |new, _| super::warnings::endpoints(new),
    // what was stored under older rules stays as it is
    rules: Rules::OnCreate,
    validate_change: |new, old, errors| {
        if new["subsets"] != old["subsets"] {
            endpoints(new, errors);
        }
    },
    create_on_update: true,
    ..Parts::DATA
};

fn endpoints(o: &Value, errors: &mut ErrorList) {
    for subset in Cursor::root(o).key("subsets").items() {
        let (ready, others) = (subset.key("addresses"), subset.key("notReadyAddresses"));
        if ready.is_empty() && others.is_empty() {
            errors.required(&subset.path, "must specify `addresses` or `notReadyAddresses`");
        }
        for address in ready.items().chain(others.items()) {
            let ip = address.key("ip");
            addresses::ip(&ip.path, ip.str(), errors);
            let host = address.key("hostname");
            if !host.str().is_empty() {
                errors.invalid_all(&host.path, host.json(), names::dns1123_label(host.str()));
            }
            let node = address.key("nodeName");
            if node.exists() {
                errors.invalid_all(&node.path, node.json(), names::dns1123_subdomain(node.str()));
            }
            if addresses::is_ip(ip.str()) {
                addresses::endpoint_ip(&ip.path, ip.str(), errors);
            } else {
                errors.invalid(&ip.path, &json!(ip.str()), "must be a valid IP address");
            }
        }
        let ports = subset.key("ports");
        for port in ports.items() {
            let name = port.key("name");
            if ports.len() > 1 && name.str().is_empty() {
                errors.required(&name.path, "");
            } else if !name.str().is_empty() {
                errors.invalid_all(&name.path, name.json(), names::dns1123_label(name.str()));
            }
            let number = port.key("port").i64().unwrap_or_default();
            if !(1..=65_535).contains(&number) {
                errors.invalid(
                    &port.key("port").path,
                    &json!(number),
                    "must be between 1 and 65535, inclusive",
                );
            }
            protocol(&port.key("protocol"), errors);
            app_protocol(&port.key("appProtocol"), errors);
        }
    }
}

pub(super) static ENDPOINT_SLICE: Parts = Parts {
    default: |o| {
        for port in each(o, "ports") {
            put_absent(port, "name", "");
            put_absent(port, "protocol", "TCP");
        }
    },
    status: false,
    create: |_, o| each(o, "endpoints").for_each(|e| generic::set(e, "deprecatedTopology", None)),
    update: |_, new, old| {
        let before = old["endpoints"].as_array().cloned().unwrap_or_default();
        for endpoint in each(new, "endpoints") {
            let kept = |b: &Value| {
                b["addresses"] == endpoint["addresses"]
                    && b["deprecatedTopology"] == endpoint["deprecatedTopology"]
            };
            if !before.iter().any(kept) {
                generic::set(endpoint, "deprecatedTopology", None);
            }
        }
    },
    // Labels say which service a slice belongs to: a change of them counts.
    desired_changed: |new, old| {
        generic::desired_changed(new, old)
            || !generic::same_map(&new["metadata"]["labels"], &old["metadata"]["labels"])
    },
    validate: endpoint_slice,
    validate_change: |new, old, errors| {
        generic::immutable("addressType", &new["addressType"], &old["addressType"], errors);
    },
    rules: Rules::BeforeChange,
    ..Parts::PLAIN
};

fn endpoint_slice(o: &Value, errors: &mut ErrorList) {
    let root = Cursor::root(o);
    let kind = root.key("addressType");
    match kind.str() {
        "" => errors.required(&kind.path, ""),
        "IPv4" | "IPv6" | "FQDN" => {}
        _ => errors.not_supported(&kind.path, kind.json(), &["FQDN", "IPv4", "IPv6"]),
    }
    let endpoints = root.key("endpoints");
    if endpoints.len() > 1000 {
        errors.too_many(&endpoints.path, endpoints.len(), 1000);
        return;
    }
    for endpoint in endpoints.items() {
        slice_endpoint(&endpoint, kind.str(), errors);
    }
    let ports = root.key("ports");
    if ports.len() > 20_000 {
        errors.too_many(&ports.path, ports.len(), 20_000);
        return;
    }
    let mut seen = BTreeSet::new();
    for port in ports.items() {
        let name = port.key("name");
        if !name.str().is_empty() {
            errors.invalid_all(&name.path, name.json(), names::dns1123_label(name.str()));
        }
        if !seen.insert(name.str()) {
            errors.duplicate(&name.path, &json!(name.str()));
        }
        protocol(&port.key("protocol"), errors);
        app_protocol(&port.key("appProtocol"), errors);
    }
}

fn slice_endpoint(at: &Cursor<'_>, kind: &str, errors: &mut ErrorList) {
    let list = at.key("addresses");
    if list.is_empty() {
        errors.required(&list.path, "must contain at least 1 address");
    } else if list.len() > 100 {
        errors.too_many(&list.path, list.len(), 100);
    }
    for address in list.items() {
        match kind {
            "FQDN" => super::texts::domain_name(&address, errors),
            "IPv4" | "IPv6" => {
                let six = address.str().parse::<IpAddr>().map(|ip| ip.is_ipv6());
                if six == Ok(true) && kind == "IPv4" {
                    errors.invalid(&address.path, address.json(), "must be an IPv4 address");
                } else if six == Ok(false) && kind == "IPv6" {
                    errors.invalid(&address.path, address.json(), "must be an IPv6 address");
                }
                addresses::endpoint_ip(&address.path, address.str(), errors);
            }
            // of another type nothing is known
            _ => {}
        }
    }
    let node = at.key("nodeName");
    if node.exists() {
        errors.invalid_all(&node.path, node.json(), names::dns1123_subdomain(node.str()));
    }
    let topology = at.key("deprecatedTopology");
    if topology.len() > 16 {
        errors.too_many(&topology.path, topology.len(), 16);
    }
    super::label_selector::labels(&topology, errors);
    let host = at.key("hostname");
    if host.exists() {
        errors.invalid_all(&host.path, host.json(), names::dns1123_label(host.str()));
    }
    hints(&at.key("hints").key("forZones"), names::label_value, errors);
    hints(&at.key("hints").key("forNodes"), names::dns1123_subdomain, errors);
}

/// Up to eight different names of where an endpoint shall be used from.
fn hints(list: &Cursor<'_>, check: fn(&str) -> Vec<String>, errors: &mut ErrorList) {
    if list.len() > 8 {
        return errors.too_many(&list.path, list.len(), 8);
    }
    let mut seen = BTreeSet::new();
    for hint in list.items() {
        let name = hint.key("name");
        if !seen.insert(name.str()) {
            errors.duplicate(&name.path, &json!(name.str()));
        }
        errors.invalid_all(&name.path, &json!(name.str()), check(name.str()));
    }
}
