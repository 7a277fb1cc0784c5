//! Addresses and address families of services.
//!
//! Rule: Kubernetes documentation, "IPv4/IPv6 dual-stack"; KEP-563.

use std::net::IpAddr;

use api::field::{Cursor, ErrorList};
use serde_json::{Value, json};

use super::core_service::{cluster_ip_fields, needs_cluster_ip};
use super::tree::{is_empty, make, text};
use crate::service_ips::{Family, Refusal, Taken};

/// What a secondary address or family depends on, as the reference words it.
const RELEASE: [(&str, &str); 2] = [
    ("clusterIPs", "must be 'SingleStack' to release the secondary cluster IP"),
    ("ipFamilies", "must be 'SingleStack' to release the secondary IP family"),
];
const SEVERAL: [(&str, &str); 2] = [
    ("clusterIPs", "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified"),
    ("ipFamilies", "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"),
];

fn count(spec: &Value, key: &str) -> usize {
    spec[key].as_array().map_or(0, Vec::len)
}

/// The address families of a service on a server that has those of `configured`, the default one first.
pub(super) fn families(
    configured: &[Family],
    service: &mut Value,
    old: Option<&Value>,
    errors: &mut ErrorList,
) {
    let before = old.map(|o| &o["spec"]);
    let Some(spec) = make(service, "spec") else { return };
    if text(spec, "type") == "ExternalName" || keeps_preferred_families(spec, before) {
        return;
    }
    let headless = text(spec, "clusterIP") == "None";
    // Whoever fills in the endpoints of such a service decides their family.
    let open = headless && is_empty(spec.get("selector"));
    if is_empty(spec.get("ipFamilyPolicy")) {
        let known = before.map(|b| text(b, "ipFamilyPolicy")).filter(|p| !p.is_empty());
        let policy = known.unwrap_or(if open { "RequireDualStack" } else { "SingleStack" });
        spec["ipFamilyPolicy"] = json!(policy);
    }
    cluster_ip_fields(&Cursor::at(spec, "spec"), errors);
    if !errors.is_empty() {
        return;
    }
    let policy = text(spec, "ipFamilyPolicy").to_owned();
    if let Some(before) = before {
        for (key, why) in RELEASE {
            if policy == "SingleStack" {
                if spec[key] == before[key]
                    && let Some(list) = spec[key].as_array_mut()
                {
                    list.truncate(1);
                }
            } else if count(before, key) == 2 && count(spec, key) == 1 && spec[key][0] == before[key][0] {
                errors.invalid("spec.ipFamilyPolicy", &json!(policy), why);
            }
        }
    }
    for (key, why) in SEVERAL {
        if policy == "SingleStack" && count(spec, key) == 2 {
            errors.invalid("spec.ipFamilyPolicy", &json!(policy), why);
        }
    }
    let mut inferred: Vec<String> = spec["ipFamilies"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|family| family.as_str().unwrap_or_default().to_owned())
        .collect();
    for (i, ip) in spec["clusterIPs"].as_array().into_iter().flatten().enumerate() {
        let Some(ip) = ip.as_str().and_then(|ip| ip.parse::<IpAddr>().ok()) else { break };
        if i < inferred.len() {
            continue;
        }
        let family = Family::of(ip);
        if configured.contains(&family) {
            inferred.push(family.name().to_owned());
        } else {
            let why = format!("{} is not configured on this cluster", family.name());
            errors.invalid(&format!("spec.clusterIPs[{i}]"), &spec["clusterIPs"], &why);
        }
    }
    if !errors.is_empty() {
        return;
    }
    let default = configured.first().copied().unwrap_or(Family::V4);
    if !open {
        if policy == "RequireDualStack" && configured.len() < 2 {
            let why = "this cluster is not configured for dual-stack services";
            errors.invalid("spec.ipFamilyPolicy", &json!(policy), why);
        }
        for (i, family) in inferred.iter().enumerate() {
            if !configured.iter().any(|known| known.name() == family) {
                let path = format!("spec.ipFamilies[{i}]");
                errors.invalid(&path, &json!(family), "not configured on this cluster");
            }
        }
    }
    if inferred.is_empty() {
        inferred.push(default.name().to_owned());
    }
    if inferred.len() < 2 && policy != "SingleStack" && (open || configured.len() == 2) {
        let first = if inferred[0] == Family::V4.name() { Family::V4 } else { Family::V6 };
        inferred.push(first.other().name().to_owned());
    }
    spec["ipFamilies"] = json!(inferred);
}

/// A service that prefers both families keeps those it has, whatever the cluster has by now.
fn keeps_preferred_families(spec: &Value, before: Option<&Value>) -> bool {
    let Some(before) = before else { return false };
    let prefers = |spec: &Value| text(spec, "ipFamilyPolicy") == "PreferDualStack";
    needs_cluster_ip(spec)
        && needs_cluster_ip(before)
        && prefers(spec)
        && prefers(before)
        && ["clusterIP", "clusterIPs", "ipFamilies"].iter().all(|key| spec[*key] == before[*key])
}

/// One address for each family: those asked for by name first, so that none of them is given to another family's place.
pub(super) fn cluster_ips(
    taken: &mut Taken<'_>,
    service: &mut Value,
    old: Option<&Value>,
    errors: &mut ErrorList,
) {
    let Some(spec) = make(service, "spec") else { return };
    if !needs_cluster_ip(spec) {
        return;
    }
    if spec["clusterIPs"][0] == "None" {
        spec["clusterIP"] = json!("None");
        return;
    }
    let had = old.map(|o| o["spec"]["clusterIPs"].clone()).unwrap_or_default();
    let had = had.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut ips = spec["clusterIPs"].as_array().cloned().unwrap_or_default();
    for ip in ips.iter().filter(|ip| !had.contains(ip)).filter_map(Value::as_str) {
        // Not an address: validation names it.
        let Ok(parsed) = ip.parse::<IpAddr>() else { return };
        if let Err(refusal) = taken.address(parsed) {
            let why = match refusal {
                Refusal::OutOfRange => "the provided network does not match the current range".to_owned(),
                other => other.to_string(),
            };
            let why = format!("failed to allocate IP {ip}: {why}");
            errors.invalid("spec.clusterIPs", &spec["clusterIPs"], &why);
            return;
        }
    }
    for family in spec["ipFamilies"].as_array().into_iter().flatten().skip(ips.len()) {
        let family = if family == Family::V6.name() { Family::V6 } else { Family::V4 };
        let Ok(ip) = taken.any_address(family) else {
            let why = "Internal error: failed to allocate a serviceIP: range is full".to_owned();
            errors.push(api::field::Reason::Internal, "spec.clusterIPs", why);
            return;
        };
        ips.push(json!(ip.to_string()));
    }
    spec["clusterIP"] = ips.first().cloned().unwrap_or_default();
    spec["clusterIPs"] = json!(ips);
}

/// What a service has of addresses and families stays; only the second of each comes and goes.
pub(super) fn kept_addresses(new: &Value, old: &Value, errors: &mut ErrorList) {
    const FIXED: &str = "may not change once set";
    let is_headless = |spec: &Value| spec["clusterIPs"][0] == "None";
    let (now, before) = (&new["clusterIPs"], &old["clusterIPs"]);
    if !(is_headless(old) && is_headless(new)) {
        for i in 0..count(old, "clusterIPs") {
            // the second one may have been released
            if now.get(i) != before.get(i) && (i == 0 || now.get(i).is_some()) {
                errors.invalid(&format!("spec.clusterIPs[{i}]"), now, FIXED);
            }
        }
    }
    let (now, before) = (&new["ipFamilies"], &old["ipFamilies"]);
    if !is_headless(old) && !is_headless(new) {
        for i in 0..count(old, "ipFamilies").min(count(new, "ipFamilies")) {
            if now[i] != before[i] {
                errors.invalid("spec.ipFamilies[0]", now, FIXED);
            }
        }
    }
}
