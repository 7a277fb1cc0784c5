//! Services.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::service_families::{cluster_ips, families, kept_addresses};
use super::tree::{each, has, is_empty, make, put, put_absent, put_nonzero, text};
use super::{Context, Strategy, addresses, generic, label_selector, numbers};
use crate::service_ips::{Refusal, Taken};

/// How endpoints are chosen by zone.
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
/// The older name of [`TOPOLOGY_MODE`].
pub(super) const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";

/// Services.
pub(super) struct Service;

impl Strategy for Service {
    fn default(&self, object: &mut Value) {
        let Some(spec) = make(object, "spec") else { return };
        put(spec, "sessionAffinity", "None");
        match text(spec, "sessionAffinity") {
            "None" => generic::set(spec, "sessionAffinityConfig", None),
            "ClientIP" => {
                if let Some(client) = make(spec, "sessionAffinityConfig").and_then(|c| make(c, "clientIP")) {
                    put_absent(client, "timeoutSeconds", 10_800);
                }
            }
            _ => {}
        }
        put(spec, "type", "ClusterIP");
        for port in each(spec, "ports") {
            put(port, "protocol", "TCP");
            let unset =
                port.get("targetPort").is_none_or(|t| *t == json!(0) || *t == json!("") || t.is_null());
            if unset && let Some(number) = port.get("port").cloned() {
                port["targetPort"] = number;
            }
        }
        if externally_accessible(spec) {
            put(spec, "externalTrafficPolicy", "Cluster");
        }
        if needs_cluster_ip(spec) {
            put_absent(spec, "internalTrafficPolicy", "Cluster");
        }
        if text(spec, "type") == "LoadBalancer" {
            put_absent(spec, "allocateLoadBalancerNodePorts", true);
        }
        if object["spec"]["type"] == "LoadBalancer"
            && let Some(balancer) = object.pointer_mut("/status/loadBalancer")
        {
            for ingress in each(balancer, "ingress") {
                if !text(ingress, "ip").is_empty() {
                    put_absent(ingress, "ipMode", "VIP");
                }
            }
        }
    }

    fn status_keeps(&self) -> &'static [&'static str] {
        &[]
    }

    fn prepare_status_update(&self, _context: &Context, new: &mut Value, old: &Value) {
        generic::prepare_status_update(self.status_keeps(), new, old);
    }

    fn prepare_create(&self, _context: &Context, object: &mut Value) {
        generic::prepare_create(true, object);
        normalise(object, None);
    }

    fn prepare_update(&self, _context: &Context, new: &mut Value, old: &Value) {
        generic::copy("status", new, old);
        normalise(new, Some(old));
        keep_allocated(new, old);
        drop_foreign_fields(new, old);
    }

    fn allocate(&self, taken: &mut Taken<'_>, new: &mut Value, old: Option<&Value>, errors: &mut ErrorList) {
        families(&taken.families(), new, old, errors);
        if errors.is_empty() {
            cluster_ips(taken, new, old, errors);
        }
        if errors.is_empty() {
            node_ports(taken, new, old, errors);
        }
        if let Some(old) = old {
            taken.replaces(old, new);
        }
    }

    fn validate_create(&self, object: &Value, errors: &mut ErrorList) {
        validate(object, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut ErrorList) {
        let (n, o) = (Cursor::root(new).key("spec"), &old["spec"]);
        if text(o, "type") != "ExternalName" && n.key("type").str() != "ExternalName" {
            kept_addresses(&new["spec"], o, errors);
        }
        let class = n.key("loadBalancerClass");
        if n.key("type").str() == "LoadBalancer"
            && text(o, "type") == "LoadBalancer"
            && class.json() != &o["loadBalancerClass"]
        {
            errors.invalid(&class.path, class.json(), "may not change once set");
        }
        // looked at twice: as a change, and as what it is
        balancer_class(&n, errors);
        let health = n.key("healthCheckNodePort");
        if has(o, "healthCheckNodePort")
            && needs_health_port(&new["spec"])
            && health.json() != &o["healthCheckNodePort"]
        {
            errors.forbidden(&health.path, "field is immutable");
        }
        validate(new, errors);
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut ErrorList) {
        let balancer = Cursor::root(new).key("status").key("loadBalancer");
        let is_balancer = text(&new["spec"], "type") == "LoadBalancer";
        let ingress = balancer.key("ingress");
        if !is_balancer && !ingress.is_empty() {
            errors.forbidden(&ingress.path, "may only be used when `spec.type` is 'LoadBalancer'");
            return;
        }
        for point in ingress.items() {
            ingress_point(&point, errors);
        }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        super::warnings::service(new)
    }

    fn has_generation(&self) -> bool {
        false
    }

    fn allows_create_on_update(&self) -> bool {
        true
    }
}

/// Where a load balancer takes connections.
fn ingress_point(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (ip, mode, host) = (at.key("ip"), at.key("ipMode"), at.key("hostname"));
    if !ip.str().is_empty() {
        addresses::ip(&ip.path, ip.str(), errors);
    }
    match (mode.exists(), ip.str().is_empty()) {
        (false, false) => errors.required(&mode.path, "must be specified when `ip` is set"),
        (true, true) => errors.forbidden(&mode.path, "may not be specified when `ip` is not set"),
        (true, false) if !matches!(mode.str(), "VIP" | "Proxy") => {
            errors.not_supported(&mode.path, mode.json(), &["Proxy", "VIP"]);
        }
        _ => {}
    }
    if !host.str().is_empty() {
        errors.invalid_all(&host.path, host.json(), names::dns1123_subdomain(host.str()));
        if addresses::is_ip(host.str()) {
            errors.invalid(&host.path, host.json(), "must be a DNS name, not an IP address");
        }
    }
}

fn externally_accessible(spec: &Value) -> bool {
    match text(spec, "type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !is_empty(spec.get("externalIPs")),
        _ => false,
    }
}

fn needs_node_ports(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => spec["allocateLoadBalancerNodePorts"] != json!(false),
        _ => false,
    }
}

fn may_have_node_ports(spec: &Value) -> bool {
    matches!(text(spec, "type"), "NodePort" | "LoadBalancer")
}

fn needs_health_port(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

pub(super) fn needs_cluster_ip(spec: &Value) -> bool {
    matches!(text(spec, "type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// `clusterIP` and `clusterIPs[0]` are one thing; a client that knows one of them only changes both.
fn normalise(new: &mut Value, old: Option<&Value>) {
    let Some(spec) = make(new, "spec") else { return };
    let single = text(spec, "clusterIP").to_owned();
    let list = spec.get("clusterIPs").cloned().unwrap_or(Value::Null);
    let Some(old) = old else {
        if !single.is_empty() && is_empty(Some(&list)) {
            spec["clusterIPs"] = json!([single]);
        }
        return;
    };
    let same_single = single == text(&old["spec"], "clusterIP");
    let same_list = list == *old["spec"].get("clusterIPs").unwrap_or(&Value::Null);
    if !same_single && same_list {
        if single.is_empty() {
            generic::set(spec, "clusterIPs", None);
        } else {
            spec["clusterIPs"] = json!([single]);
        }
    } else if same_single && is_empty(Some(&list)) {
        generic::set(spec, "clusterIP", None);
    }
}

fn node_port_numbers(spec: &Value) -> BTreeSet<i64> {
    let ports = spec["ports"].as_array().into_iter().flatten();
    ports.filter_map(|p| p["nodePort"].as_i64()).filter(|n| *n != 0).collect()
}

/// A client that leaves out what the server gave keeps it.
fn keep_allocated(new: &mut Value, old: &Value) {
    let before = &old["spec"];
    let Some(spec) = make(new, "spec") else { return };
    if needs_cluster_ip(before)
        && needs_cluster_ip(spec)
        && is_empty(spec.get("clusterIP"))
        && is_empty(spec.get("clusterIPs"))
    {
        generic::copy("clusterIP", spec, before);
        generic::copy("clusterIPs", spec, before);
    }
    if needs_node_ports(before) && needs_node_ports(spec) {
        let numbers = node_port_numbers;
        let mut used: BTreeSet<i64> = numbers(before).intersection(&numbers(spec)).copied().collect();
        let old_ports = before["ports"].as_array().cloned().unwrap_or_default();
        for port in each(spec, "ports") {
            let same = old_ports.iter().find(|o| text(o, "name") == text(port, "name"));
            if let Some(number) = same.and_then(|o| o["nodePort"].as_i64()).filter(|n| *n != 0)
                && port["nodePort"].as_i64().unwrap_or_default() == 0
                && used.insert(number)
            {
                port["nodePort"] = json!(number);
            }
        }
    }
    if needs_health_port(before) && needs_health_port(spec) {
        let number = before["healthCheckNodePort"].as_i64().unwrap_or_default();
        if number != 0 {
            put_nonzero(spec, "healthCheckNodePort", number);
        }
    }
}

/// Fields that only the old type had go, unless the client set them anew.
fn drop_foreign_fields(new: &mut Value, old: &Value) {
    let before = &old["spec"];
    let Some(spec) = make(new, "spec") else { return };
    let unchanged = |spec: &Value, key: &str| spec.get(key) == before.get(key);
    if needs_cluster_ip(before) && !needs_cluster_ip(spec) {
        if unchanged(spec, "clusterIPs") {
            generic::set(spec, "clusterIP", None);
            generic::set(spec, "clusterIPs", None);
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if unchanged(spec, key) {
                generic::set(spec, key, None);
            }
        }
    }
    if may_have_node_ports(before) && !may_have_node_ports(spec) {
        // one that is new is refused, and so are the others then
        if node_port_numbers(spec).is_subset(&node_port_numbers(before)) {
            for port in each(spec, "ports") {
                generic::set(port, "nodePort", None);
            }
        }
    }
    if needs_health_port(before) && !needs_health_port(spec) && unchanged(spec, "healthCheckNodePort") {
        generic::set(spec, "healthCheckNodePort", None);
    }
    let was_balancer = text(before, "type") == "LoadBalancer" && text(spec, "type") != "LoadBalancer";
    for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if was_balancer && unchanged(spec, key) {
            generic::set(spec, key, None);
        }
    }
    if externally_accessible(before)
        && !externally_accessible(spec)
        && unchanged(spec, "externalTrafficPolicy")
    {
        generic::set(spec, "externalTrafficPolicy", None);
    }
    // what a balancer offered is gone with it
    if text(spec, "type") != "LoadBalancer"
        && let Some(balancer) = new.pointer_mut("/status/loadBalancer")
    {
        *balancer = json!({});
    }
}

fn node_ports(taken: &mut Taken<'_>, service: &mut Value, old: Option<&Value>, errors: &mut ErrorList) {
    let Some(spec) = make(service, "spec") else { return };
    if may_have_node_ports(spec) {
        let had: BTreeSet<i64> = old
            .and_then(|o| o["spec"]["ports"].as_array())
            .into_iter()
            .flatten()
            .filter_map(|p| p["nodePort"].as_i64())
            .collect();
        let wanted: BTreeSet<i64> =
            spec["ports"].as_array().into_iter().flatten().filter_map(|p| p["nodePort"].as_i64()).collect();
        let automatic = needs_node_ports(spec);
        // Ports of other protocols may share a number.
        let mut mine: Vec<(i64, String)> = Vec::new();
        for (i, port) in each(spec, "ports").enumerate() {
            let protocol = text(port, "protocol").to_owned();
            let number = port["nodePort"].as_i64().unwrap_or_default();
            if number == 0 {
                if !automatic {
                    continue;
                }
                match taken.any_port() {
                    Ok(free) => {
                        debug_assert!(!wanted.contains(&i64::from(free)));
                        mine.push((free.into(), protocol));
                        port["nodePort"] = json!(free);
                    }
                    Err(_) => errors.push(
                        api::field::Reason::Internal,
                        &format!("spec.ports[{i}].nodePort"),
                        "Internal error: failed to allocate a nodePort: range is full".to_owned(),
                    ),
                }
                continue;
            }
            if mine.iter().any(|(n, p)| *n == number && *p != protocol) {
                mine.push((number, protocol));
                continue;
            }
            let twice = mine.iter().any(|(n, p)| *n == number && *p == protocol);
            let free = if had.contains(&number) && !twice {
                Ok(())
            } else {
                u16::try_from(number).map_err(|_| Refusal::OutOfRange).and_then(|n| taken.port(n))
            };
            match free {
                Ok(()) => mine.push((number, protocol)),
                Err(refusal) => {
                    let detail = if refusal == Refusal::OutOfRange {
                        "provided port is not in the valid range. The range of valid ports is 30000-32767"
                    } else {
                        "provided port is already allocated"
                    };
                    errors.invalid(&format!("spec.ports[{i}].nodePort"), &json!(number), detail);
                }
            }
        }
    }
    if needs_health_port(spec) {
        let number = spec["healthCheckNodePort"].as_i64().unwrap_or_default();
        let had = old.is_some_and(|o| o["spec"]["healthCheckNodePort"].as_i64() == Some(number));
        if number == 0 {
            if let Ok(free) = taken.any_port() {
                spec["healthCheckNodePort"] = json!(free);
            }
        } else if !had
            && let Some(refusal) =
                u16::try_from(number).map_err(|_| Refusal::OutOfRange).and_then(|n| taken.port(n)).err()
        {
            let detail = match refusal {
                Refusal::OutOfRange => {
                    "provided port is not in the valid range. The range of valid ports is 30000-32767"
                }
                _ => "provided port is already allocated",
            };
            errors.invalid(
                "spec.healthCheckNodePort",
                &json!(number),
                &format!("failed to allocate requested HealthCheck NodePort {number}: {detail}"),
            );
        }
    }
}

fn validate(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let noted = |key: &str| o["metadata"]["annotations"].get(key);
    if let (Some(mode), Some(hints)) = (noted(TOPOLOGY_MODE), noted(TOPOLOGY_HINTS))
        && mode != hints
    {
        let why = format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified");
        errors.invalid(&format!("metadata.annotations[{TOPOLOGY_MODE}]"), mode, &why);
    }
    let kind = spec.key("type").str().to_owned();
    let headless = spec.key("clusterIPs").json()[0] == json!("None");
    let ports = spec.key("ports");
    if ports.is_empty() && kind != "ExternalName" && !headless {
        errors.required(&ports.path, "");
    }
    match kind.as_str() {
        "LoadBalancer" if headless => {
            errors.invalid(
                "spec.clusterIPs[0]",
                &json!("None"),
                "may not be set to 'None' for LoadBalancer services",
            );
        }
        "NodePort" if headless => {
            errors.invalid(
                "spec.clusterIPs[0]",
                &json!("None"),
                "may not be set to 'None' for NodePort services",
            );
        }
        "ExternalName" => {
            if !spec.key("clusterIPs").is_empty() || !spec.key("clusterIP").str().is_empty() {
                errors.forbidden("spec.clusterIPs", "may not be set for ExternalName services");
            }
            for field in [spec.key("ipFamilies"), spec.key("ipFamilyPolicy")] {
                if field.exists() && (field.value.is_some_and(Value::is_string) || !field.is_empty()) {
                    errors.forbidden(&field.path, "may not be set for ExternalName services");
                }
            }
            let name = spec.key("externalName");
            let trimmed = name.str().strip_suffix('.').unwrap_or(name.str());
            if trimmed.is_empty() {
                errors.required(&name.path, "");
            } else {
                errors.invalid_all(&name.path, &json!(trimmed), names::dns1123_subdomain(trimmed));
            }
        }
        _ => {}
    }
    let several = ports.len() > 1;
    let mut seen_names = BTreeSet::new();
    for port in ports.items() {
        service_port(&port, several, &mut seen_names, errors);
    }
    label_selector::labels(&spec.key("selector"), errors);
    let affinity = spec.key("sessionAffinity");
    match affinity.str() {
        "" => errors.required(&affinity.path, ""),
        "ClientIP" => {
            let timeout = spec.key("sessionAffinityConfig").key("clientIP").key("timeoutSeconds");
            if timeout.i64().is_some_and(|t| t <= 0 || t > 86_400) {
                errors.invalid(&timeout.path, timeout.json(), "must be greater than 0 and less than 86400");
            }
        }
        "None" => {}
        _ => errors.not_supported(&affinity.path, affinity.json(), &["ClientIP", "None"]),
    }
    if kind != "ExternalName" {
        cluster_ip_fields(&spec, errors);
    }
    for ip in spec.key("externalIPs").items() {
        addresses::endpoint_ip(&ip.path, ip.str(), errors);
    }
    match kind.as_str() {
        "" => errors.required("spec.type", ""),
        "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName" => {}
        _ => errors.not_supported(
            "spec.type",
            &json!(kind),
            &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        ),
    }
    if kind == "ClusterIP" {
        for port in ports.items() {
            if port.key("nodePort").i64().unwrap_or_default() != 0 {
                errors.forbidden(&port.key("nodePort").path, "may not be used when `type` is 'ClusterIP'");
            }
        }
    }
    let mut seen = BTreeSet::new();
    for port in ports.items() {
        let number = port.key("nodePort");
        let key = (port.key("protocol").str(), number.i64().unwrap_or_default());
        if key.1 != 0 && !seen.insert(key) {
            errors.duplicate(&number.path, number.json());
        }
    }
    let mut seen = BTreeSet::new();
    for port in ports.items() {
        let key = (port.key("protocol").str(), port.key("port").i64().unwrap_or_default());
        if !seen.insert(key) {
            // The reference prints its internal type with only the two fields that count.
            let shown = format!(
                "Duplicate value: {{\"Name\":\"\",\"Protocol\":\"{}\",\"AppProtocol\":null,\"Port\":{},\"TargetPort\":0,\"NodePort\":0}}",
                key.0, key.1
            );
            errors.push(api::field::Reason::Duplicate, &port.path, shown);
        }
    }
    source_ranges(o, &spec, errors);
    balancer_only(&spec, errors);
    traffic_policies(&spec, errors);
}

fn service_port(at: &Cursor<'_>, name_required: bool, seen: &mut BTreeSet<String>, errors: &mut ErrorList) {
    let name = at.key("name");
    if name_required && name.str().is_empty() {
        errors.required(&name.path, "");
    } else if !name.str().is_empty() {
        errors.invalid_all(&name.path, name.json(), names::dns1123_label(name.str()));
        if !seen.insert(name.str().to_owned()) {
            errors.duplicate(&name.path, name.json());
        }
    }
    let port = at.key("port");
    let number = port.i64().unwrap_or_default();
    if !(1..=65_535).contains(&number) {
        errors.invalid(&port.path, &json!(number), "must be between 1 and 65535, inclusive");
    }
    protocol(&at.key("protocol"), errors);
    let target = at.key("targetPort");
    match target.value {
        Some(Value::String(name)) => {
            errors.invalid_all(&target.path, target.json(), addresses::port_name(name))
        }
        _ => {
            let number = target.i64().unwrap_or_default();
            if !(1..=65_535).contains(&number) {
                errors.invalid(&target.path, &json!(number), "must be between 1 and 65535, inclusive");
            }
        }
    }
    app_protocol(&at.key("appProtocol"), errors);
}

pub(super) fn protocol(at: &Cursor<'_>, errors: &mut ErrorList) {
    match at.str() {
        "" => errors.required(&at.path, ""),
        "TCP" | "UDP" | "SCTP" => {}
        _ => errors.not_supported(&at.path, at.json(), &["SCTP", "TCP", "UDP"]),
    }
}

pub(super) fn app_protocol(at: &Cursor<'_>, errors: &mut ErrorList) {
    if at.exists() {
        errors.invalid_all(&at.path, at.json(), names::qualified_name(at.str()));
    }
}

/// What `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy` must have to do with each other.
pub(super) fn cluster_ip_fields(spec: &Cursor<'_>, errors: &mut ErrorList) {
    let (single, list) = (spec.key("clusterIP"), spec.key("clusterIPs"));
    if single.str().is_empty() {
        if !list.is_empty() {
            errors.invalid(&list.path, list.json(), "must be empty when `clusterIP` is not specified");
        }
    } else if list.is_empty() {
        errors.required(&list.path, "");
    } else if list.json()[0].as_str() != Some(single.str()) {
        errors.invalid(&list.path, list.json(), "first value must match `clusterIP`");
    }
    let families = spec.key("ipFamilies");
    let mut seen = BTreeSet::new();
    for family in families.items() {
        if !matches!(family.str(), "IPv4" | "IPv6") {
            errors.not_supported(&family.path, family.json(), &["IPv4", "IPv6"]);
        }
        if !seen.insert(family.str()) {
            errors.duplicate(&family.path, family.json());
        }
    }
    let policy = spec.key("ipFamilyPolicy");
    if policy.exists() && !matches!(policy.str(), "SingleStack" | "PreferDualStack" | "RequireDualStack") {
        errors.not_supported(
            &policy.path,
            policy.json(),
            &["PreferDualStack", "RequireDualStack", "SingleStack"],
        );
    }
    let mut is_wrong = false;
    for (i, ip) in list.items().enumerate() {
        if i == 0 && ip.str() == "None" {
            if list.len() > 1 {
                is_wrong = true;
                errors.invalid(&list.path, list.json(), "'None' must be the first and only value");
            }
        } else {
            is_wrong |= !addresses::is_ip(ip.str());
            addresses::ip(&ip.path, ip.str(), errors);
        }
    }
    if list.len() > 2 {
        errors.invalid(&list.path, list.json(), "may only hold up to 2 values");
    }
    if is_wrong {
        return;
    }
    let is_v6 = |ip: &Cursor<'_>| ip.str().contains(':');
    if list.len() > 1 {
        let sixes = list.items().filter(is_v6).count();
        if sixes == 0 || sixes == list.len() {
            errors.invalid(&list.path, list.json(), "may specify no more than one IP for each IP family");
        }
    }
    if single.str() == "None" {
        return;
    }
    for (i, (ip, family)) in list.items().zip(families.items()).enumerate() {
        if family.str() == if is_v6(&ip) { "IPv4" } else { "IPv6" } {
            let why = format!("expected an {} value as indicated by `ipFamilies[{i}]`", family.str());
            errors.invalid(&ip.path, ip.json(), &why);
        }
    }
}

fn source_ranges(o: &Value, spec: &Cursor<'_>, errors: &mut ErrorList) {
    const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    // the path begins with a capital, as the field did once
    let path = format!("{}.LoadBalancerSourceRanges", spec.path);
    let ranges = Cursor { path, ..spec.key("loadBalancerSourceRanges") };
    let balancer = spec.key("type").str() == "LoadBalancer";
    if ranges.exists() && !ranges.is_empty() {
        if !balancer {
            errors.forbidden(&ranges.path, "may only be used when `type` is 'LoadBalancer'");
        }
        for range in ranges.items() {
            addresses::cidr(&range.path, range.str().trim(), errors);
        }
    } else if let Some(text) = o["metadata"]["annotations"][ANNOTATION].as_str() {
        let path = format!("metadata.annotations[{ANNOTATION}]");
        if !balancer {
            errors.forbidden(&path, "may only be used when `type` is 'LoadBalancer'");
        }
        let text = text.trim();
        for range in text.split(',').filter(|_| !text.is_empty()).map(str::trim) {
            addresses::cidr(&path, range, errors);
        }
    }
}

/// What only a load balancer may have, and must have.
fn balancer_only(spec: &Cursor<'_>, errors: &mut ErrorList) {
    let allocate = spec.key("allocateLoadBalancerNodePorts");
    let is_balancer = spec.key("type").str() == "LoadBalancer";
    if is_balancer && !allocate.exists() {
        errors.required(&allocate.path, "field is required when `type` is 'LoadBalancer'");
    }
    if !is_balancer && allocate.exists() {
        errors.forbidden(&allocate.path, "may only be used when `type` is 'LoadBalancer'");
    }
    balancer_class(spec, errors);
}

/// Who is to make the load balancer.
fn balancer_class(spec: &Cursor<'_>, errors: &mut ErrorList) {
    let class = spec.key("loadBalancerClass");
    if !class.exists() {
        return;
    }
    if spec.key("type").str() == "LoadBalancer" {
        errors.invalid_all(&class.path, class.json(), names::qualified_name(class.str()));
    } else {
        errors.forbidden(&class.path, "may only be used when `type` is 'LoadBalancer'");
    }
}

fn traffic_policies(spec: &Cursor<'_>, errors: &mut ErrorList) {
    let external = spec.key("externalTrafficPolicy");
    if !externally_accessible(spec.json()) {
        if !external.str().is_empty() {
            errors.invalid(
                &external.path,
                external.json(),
                "may only be set for externally-accessible services",
            );
        }
    } else if external.str().is_empty() {
        errors.required(&external.path, "");
    } else if !matches!(external.str(), "Cluster" | "Local") {
        errors.not_supported(&external.path, external.json(), &["Cluster", "Local"]);
    }
    let health = spec.key("healthCheckNodePort");
    if !needs_health_port(spec.json()) {
        if health.i64().unwrap_or_default() != 0 {
            errors.invalid(
                &health.path,
                health.json(),
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            );
        }
    } else if health.i64().unwrap_or_default() != 0 {
        numbers::port(&health, errors);
    }
    let internal = spec.key("internalTrafficPolicy");
    if internal.exists() && !matches!(internal.str(), "Cluster" | "Local") {
        errors.not_supported(&internal.path, internal.json(), &["Cluster", "Local"]);
    }
    let distribution = spec.key("trafficDistribution");
    if distribution.exists()
        && !matches!(distribution.str(), "PreferClose" | "PreferSameZone" | "PreferSameNode")
    {
        errors.not_supported(
            &distribution.path,
            distribution.json(),
            &["PreferClose", "PreferSameZone", "PreferSameNode"],
        );
    }
}
