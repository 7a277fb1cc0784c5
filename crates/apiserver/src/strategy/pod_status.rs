//! What may change in a pod's status, by whoever runs it.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList, Reason};
use api::names;
use serde_json::{Value, json};

use super::internal;
use super::tree::text;

const NOT_NEGATIVE: &str = "must be a non-negative integer";

/// Values that a client which does not know them yet leaves out stay as they were.
pub(super) fn keep_unknown(new: &mut Value, old: &Value) {
    let before = &old["status"];
    let Some(status) = super::tree::make(new, "status") else { return };
    for key in ["qosClass", "resourceClaimStatuses", "extendedResourceClaimStatus"] {
        if super::tree::is_unset(status.get(key)) {
            super::generic::copy(key, status, before);
        }
    }
    super::tree::put_nonzero(
        status,
        "observedGeneration",
        before["observedGeneration"].as_i64().unwrap_or_default(),
    );
    if status["observedGeneration"] == 0 {
        super::generic::set(status, "observedGeneration", None);
    }
    // conditions of one type are told apart by their order
    let mut used = BTreeSet::new();
    let were = before["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    for condition in super::tree::each(status, "conditions") {
        let was =
            were.iter().enumerate().find(|(i, was)| was["type"] == condition["type"] && !used.contains(i));
        let Some((i, was)) = was else { continue };
        used.insert(i);
        if let Some(generation) = was["observedGeneration"].as_i64().filter(|g| *g != 0) {
            super::tree::put_nonzero(condition, "observedGeneration", generation);
        }
    }
}

/// A change of a pod's status by whoever runs it.
pub(super) fn change(new: &Value, old: &Value, errors: &mut ErrorList) {
    super::pod_update::annotations(new, old, errors);
    let root = Cursor::root(new);
    let (spec, status) = (root.key("spec"), root.key("status"));
    for condition in status.key("conditions").items() {
        let (kind, seen) = (condition.key("type"), condition.key("observedGeneration"));
        if seen.i64().is_some_and(|n| n < 0) {
            errors.invalid(&seen.path, seen.json(), NOT_NEGATIVE);
        }
        if !matches!(kind.str(), "PodScheduled" | "Ready" | "Initialized") {
            // the path has the name of the internal field
            let at = condition.key("Type").path;
            errors.invalid_all(&at, &json!(kind.str()), names::qualified_name(kind.str()));
        }
    }
    let nominated = status.key("nominatedNodeName");
    if !nominated.str().is_empty() && *nominated.json() != old["status"]["nominatedNodeName"] {
        errors.invalid_all(&nominated.path, nominated.json(), names::dns1123_subdomain(nominated.str()));
        if !text(&old["spec"], "nodeName").is_empty() {
            errors.forbidden(&nominated.path, "may not be set on pods that are already bound to a node");
        }
    }
    let seen = status.key("observedGeneration");
    if seen.i64().is_some_and(|n| n < 0) {
        errors.invalid(&seen.path, seen.json(), NOT_NEGATIVE);
    }
    super::generic::immutable(
        "status.qosClass",
        &new["status"]["qosClass"],
        &old["status"]["qosClass"],
        errors,
    );
    for (list, containers) in [
        ("containerStatuses", Some("containers")),
        ("initContainerStatuses", Some("initContainers")),
        ("ephemeralContainerStatuses", None),
    ] {
        transitions(new, old, list, containers, errors);
    }
    claims(&spec, &status, errors);
    extended_claim(&spec, &status.key("extendedResourceClaimStatus"), errors);
    addresses(&status.key("podIPs"), "PodIP", errors);
    host_addresses(&status, errors);
    for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        for container in status.key(list).items() {
            // this path leaves out whose user it is
            let linux = container.key("user").key("linux");
            let linux = Cursor { path: container.key("linux").path, ..linux };
            user(&linux, spec.key("os").key("name").str(), errors);
        }
    }
    for (list, containers) in
        [("containerStatuses", "containers"), ("initContainerStatuses", "initContainers")]
    {
        for container in status.key(list).items() {
            let same = |c: &Cursor<'_>| c.key("name").str() == container.key("name").str();
            let asked = spec.key(containers).items().find(same).map(|c| c.key("resources"));
            for resource in container.key("allocatedResourcesStatus").items() {
                health(&resource, asked.as_ref(), errors);
            }
        }
    }
    for container in status.key("ephemeralContainerStatuses").items() {
        let at = container.key("allocatedResourcesStatus");
        if !at.is_empty() {
            errors.forbidden(&at.path, "must not be specified in container status");
        }
    }
}

/// How the devices behind a resource are; `asked`: what the container asks for, where there is such a container.
fn health(at: &Cursor<'_>, asked: Option<&Cursor<'_>>, errors: &mut ErrorList) {
    let name = at.key("name");
    if let Some(asked) = asked {
        let claim = |c: &Cursor<'_>| match c.key("request").str() {
            "" => format!("claim:{}", c.key("name").str()),
            request => format!("claim:{}/{request}", c.key("name").str()),
        };
        let (is_known, why) = if name.str().starts_with("claim:") {
            (
                asked.key("claims").items().any(|c| claim(&c) == name.str()),
                "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty",
            )
        } else {
            (
                asked.key("requests").key(name.str()).exists(),
                "must match one of the container's resource requests",
            )
        };
        if !is_known {
            errors.invalid(&name.path, &json!(name.str()), why);
        }
    }
    let mut seen = BTreeSet::new();
    for resource in at.key("resources").items() {
        let (state, id) = (resource.key("health"), resource.key("resourceID"));
        if !matches!(state.str(), "Healthy" | "Unhealthy" | "Unknown") {
            let states = ["Healthy", "Unhealthy", "Unknown"];
            errors.not_supported(&state.path, &json!(state.str()), &states);
        }
        if !seen.insert(id.str()) {
            errors.duplicate(&id.path, &json!(id.str()));
        }
    }
}

/// Claims that were made for the pod.
fn claims(spec: &Cursor<'_>, status: &Cursor<'_>, errors: &mut ErrorList) {
    let known: Vec<&str> = spec.key("resourceClaims").items().map(|c| c.key("name").str()).collect();
    let mut seen = BTreeSet::new();
    for claim in status.key("resourceClaimStatuses").items() {
        let (name, made) = (claim.key("name"), claim.key("resourceClaimName"));
        if !known.contains(&name.str()) {
            let why = "must match the name of an entry in `spec.resourceClaims`";
            errors.invalid(&name.path, &json!(name.str()), why);
        }
        if !seen.insert(name.str()) {
            errors.duplicate(&name.path, name.json());
        }
        if made.exists() {
            errors.invalid_all(&name.path, made.json(), names::dns1123_subdomain(made.str()));
        }
    }
}

/// The claim that stands for resources which a container asks for by name.
fn extended_claim(spec: &Cursor<'_>, at: &Cursor<'_>, errors: &mut ErrorList) {
    if !at.exists() {
        return;
    }
    let mappings = at.key("requestMappings");
    if mappings.is_empty() {
        errors.required(&mappings.path, "at least one request mapping is required");
    }
    let mut seen = BTreeSet::new();
    for mapping in mappings.items() {
        let (container, resource, request) =
            (mapping.key("containerName"), mapping.key("resourceName"), mapping.key("requestName"));
        let mut named = ["containers", "initContainers"]
            .into_iter()
            .flat_map(|list| spec.key(list).items())
            .filter(|c| c.key("name").str() == container.str());
        match named.next() {
            Some(c) if !c.key("resources").key("requests").key(resource.str()).exists() => {
                let why = "must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests";
                errors.invalid(&resource.path, &json!(resource.str()), why);
            }
            Some(_) => {}
            None => {
                let why =
                    "must match the name of an entry in spec.initContainers.name or spec.containers.name";
                errors.invalid(&container.path, &json!(container.str()), why);
            }
        }
        // this path leaves the list out
        let path = at.key("requestName").path;
        errors.invalid_all(&path, &json!(request.str()), names::dns1123_label(request.str()));
        if !seen.insert((container.str(), resource.str(), request.str())) {
            for part in [container, resource, request] {
                errors.duplicate(&part.path, &json!(part.str()));
            }
        }
    }
    let name = at.key("resourceClaimName");
    if name.str().is_empty() {
        errors.required(&name.path, "");
    } else {
        errors.invalid_all(&name.path, name.json(), names::dns1123_subdomain(name.str()));
    }
}

/// Whom a container's first process runs as.
fn user(linux: &Cursor<'_>, os: &str, errors: &mut ErrorList) {
    if !linux.exists() {
        return;
    }
    if os == "windows" {
        return errors.forbidden(&linux.path, "cannot be set for a windows pod");
    }
    let ids = [linux.key("uid"), linux.key("gid")].into_iter().chain(linux.key("supplementalGroups").items());
    for id in ids {
        super::security::id(&id, errors);
    }
}

/// What ended for good does not run again.
fn transitions(new: &Value, old: &Value, list: &str, containers: Option<&str>, errors: &mut ErrorList) {
    let items = |o: &'_ Value, key: &str| o[key].as_array().cloned().unwrap_or_default();
    let spec = &old["spec"];
    let all_restart = ["containers", "initContainers"].iter().any(|l| {
        let restarts =
            |c: &Value| items(c, "restartPolicyRules").iter().any(|r| r["action"] == "RestartAllContainers");
        items(spec, l).iter().any(restarts)
    });
    if containers.is_some() && all_restart {
        return;
    }
    let of_spec = containers.map(|l| items(spec, l)).unwrap_or_default();
    for (i, was) in items(&old["status"], list).iter().enumerate() {
        let ended = &was["state"]["terminated"];
        let runs = |now: &Value| now["name"] == was["name"] && now["state"]["terminated"].is_null();
        if ended.is_null() || !items(&new["status"], list).iter().any(runs) {
            continue;
        }
        let code = ended["exitCode"].as_i64().unwrap_or_default();
        let container = of_spec.iter().find(|c| c["name"] == was["name"]);
        if !container.is_some_and(|c| restarts(c, spec, code)) {
            let at = format!("status.{list}[{i}].state");
            errors.forbidden(&at, "may not be transitioned to non-terminated state");
        }
    }
}

/// Whether a container that ended with this code is started again: by its own rules and policy, else by the pod's.
fn restarts(container: &Value, spec: &Value, code: i64) -> bool {
    let own = text(container, "restartPolicy");
    let rules = container["restartPolicyRules"].as_array().into_iter().flatten();
    let matches = |rule: &Value| {
        let codes = &rule["exitCodes"];
        let has = codes["values"].as_array().is_some_and(|v| v.contains(&json!(code)));
        codes["operator"] == "In" && has || codes["operator"] == "NotIn" && !has
    };
    if !own.is_empty() && rules.into_iter().any(matches) {
        return true;
    }
    match if own.is_empty() { text(spec, "restartPolicy") } else { own } {
        "Always" => true,
        "OnFailure" => code != 0,
        _ => false,
    }
}

/// At most one address of each family, each once.
fn addresses(list: &Cursor<'_>, type_name: &str, errors: &mut ErrorList) {
    for item in list.items() {
        super::addresses::ip(&item.path, item.key("ip").str(), errors);
    }
    if list.len() < 2 {
        return;
    }
    let texts: Vec<&str> = list.items().map(|i| i.key("ip").str()).collect();
    let bad = texts.iter().position(|t| !super::addresses::is_ip(t));
    if let Some(i) = bad {
        let why = format!(
            "Internal error: failed to check for dual stack with error:invalid IP[{i}]: {}",
            texts[i]
        );
        errors.push(Reason::Internal, &list.path, why);
    }
    let six = texts.iter().filter(|t| t.contains(':')).count();
    if bad.is_some() || six == 0 || six == texts.len() || texts.len() > 2 {
        let shown = internal::show_list(type_name, list.json());
        errors.invalid_shown(&list.path, &shown, "may specify no more than one IP for each IP family");
    }
    let mut seen = BTreeSet::new();
    for item in list.items() {
        if !seen.insert(item.key("ip").str()) {
            let shown = internal::show(type_name, item.json());
            errors.with_shown(Reason::Duplicate, &item.path, &shown, "");
        }
    }
}

fn host_addresses(status: &Cursor<'_>, errors: &mut ErrorList) {
    let (one, list) = (status.key("hostIP"), status.key("hostIPs"));
    if list.is_empty() {
        return;
    }
    if let Some(first) = list.items().next().filter(|f| f.key("ip").str() != one.str()) {
        let at = first.key("ip");
        errors.invalid(&at.path, &json!(at.str()), "must be equal to `hostIP`");
    }
    addresses(&list, "HostIP", errors);
}
