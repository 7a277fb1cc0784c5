//! Rules on a pod's spec as a whole; its parts stand in `containers`, `volumes`, `affinity` and `security`.
//!
//! The order of checks is the order in which the reference reports what it finds.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::{addresses, affinity, containers, internal, label_selector, numbers, security, volumes};

/// What rules on containers need to know about the pod around them.
pub(super) struct Pod<'a> {
    /// Volumes by name.
    pub(super) volumes: Vec<(&'a str, &'a Value)>,
    /// Names of the pod's resource claims.
    pub(super) claims: Vec<&'a str>,
    /// `spec.terminationGracePeriodSeconds`.
    pub(super) grace: i64,
    /// `spec.hostUsers` is false.
    pub(super) own_users: bool,
    /// `spec.hostNetwork`.
    pub(super) host_network: bool,
    /// `spec.restartPolicy`.
    pub(super) restart: &'a str,
    /// The pod's annotations; null in a template without.
    pub(super) annotations: &'a Value,
}

/// A new pod.
pub(super) fn pod(o: &Value, errors: &mut ErrorList) {
    metadata_and_spec(o, errors);
    let spec = Cursor::root(o).key("spec");
    if !spec.key("ephemeralContainers").is_empty() {
        errors.forbidden("spec.ephemeralContainers", "cannot be set on create");
    }
    if !spec.key("schedulingGates").is_empty() && !spec.key("nodeName").str().is_empty() {
        let why = "cannot be set until all schedulingGates have been cleared";
        errors.forbidden(&spec.key("nodeName").path, why);
    }
}

/// What holds for a pod at any time.
pub(super) fn metadata_and_spec(o: &Value, errors: &mut ErrorList) {
    let root = Cursor::root(o);
    annotations(o, errors);
    spec(&root.key("spec"), root.key("metadata").key("annotations").json(), errors);
    containers::only_for_pod(&root.key("spec"), errors);
}

/// Annotations that mean something to the server.
pub(super) fn annotations(o: &Value, errors: &mut ErrorList) {
    const MIRROR: &str = "kubernetes.io/config.mirror";
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    let given = |key: &str| o["metadata"]["annotations"].get(key).and_then(Value::as_str);
    let at = |key: &str| format!("metadata.annotations[{key}]");
    if let Some(mirror) = given(MIRROR)
        && o["spec"]["nodeName"].as_str().unwrap_or_default().is_empty()
    {
        let why = "must set spec.nodeName if mirror pod annotation is set";
        errors.invalid(&at(MIRROR), &json!(mirror), why);
    }
    if let Some(cost) = given(COST) {
        let digits = cost.strip_prefix('-').unwrap_or(cost);
        let canonical = cost == "0" || digits.starts_with(|c: char| ('1'..='9').contains(&c));
        if !canonical || cost.parse::<i32>().is_err() {
            errors.invalid(&at(COST), &json!(cost), "must be a 32bit integer");
        }
    }
}

/// The pod template of an object at `path`.
pub(super) fn template(o: &Value, path: &str, errors: &mut ErrorList) {
    template_at(&Cursor::root(o).key(path), errors);
}

/// Labels and annotations of a pod template.
pub(super) fn template_labels(at: &Cursor<'_>, errors: &mut ErrorList) {
    let metadata = at.key("metadata");
    // The paths leave out `metadata`, as they always did.
    for (field, is_label) in [("labels", true), ("annotations", false)] {
        let path = format!("{}.{field}", at.path);
        for (key, value) in metadata.key(field).entries() {
            let shown = json!(key);
            let checked = if is_label { key.to_owned() } else { key.to_lowercase() };
            errors.invalid_all(&path, &shown, names::qualified_name(&checked));
            if is_label {
                errors.invalid_all(&path, value.json(), names::label_value(value.str()));
            }
        }
    }
}

/// A pod template.
pub(super) fn template_at(at: &Cursor<'_>, errors: &mut ErrorList) {
    template_labels(at, errors);
    spec(&at.key("spec"), at.key("metadata").key("annotations").json(), errors);
    if !at.key("spec").key("ephemeralContainers").is_empty() {
        errors.forbidden(
            &at.key("spec").key("ephemeralContainers").path,
            "ephemeral containers not allowed in pod template",
        );
    }
}

fn spec(spec: &Cursor<'_>, annotations: &Value, errors: &mut ErrorList) {
    let found = volumes::validate(&spec.key("volumes"), errors);
    let pod = Pod {
        volumes: found,
        claims: spec.key("resourceClaims").items().map(|c| c.key("name").str()).collect(),
        grace: spec.key("terminationGracePeriodSeconds").i64().unwrap_or(30),
        own_users: spec.key("hostUsers").bool() == Some(false),
        host_network: spec.key("hostNetwork").bool() == Some(true),
        restart: spec.key("restartPolicy").str(),
        annotations,
    };
    resource_claims(&spec.key("resourceClaims"), errors);
    containers::validate(spec, &pod, errors);
    if spec.key("resources").exists() {
        super::resources::of_pod(spec, &pod, errors);
    }
    let restart = spec.key("restartPolicy");
    one_of(&restart, &["Always", "OnFailure", "Never"], errors);
    let dns = spec.key("dnsPolicy");
    one_of(&dns, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], errors);
    label_selector::labels(&spec.key("nodeSelector"), errors);
    security::pod(spec, &pod, errors);
    for secret in spec.key("imagePullSecrets").items() {
        if secret.key("name").str().is_empty() {
            errors.required(&secret.key("name").path, "");
        }
    }
    if spec.key("affinity").exists() {
        affinity::validate(&spec.key("affinity"), errors);
    }
    dns_config(&spec.key("dnsConfig"), dns.str(), errors);
    for gate in spec.key("readinessGates").items() {
        let kind = gate.key("conditionType");
        errors.invalid_all(&kind.path, &json!(kind.str()), names::qualified_name(kind.str()));
    }
    scheduling_gates(spec, errors);
    scheduling_group(&spec.key("schedulingGroup"), errors);
    affinity::spread(&spec.key("topologySpreadConstraints"), errors);
    host_users(spec, errors);
    names_and_deadlines(spec, errors);
}

fn one_of(at: &Cursor<'_>, allowed: &[&str], errors: &mut ErrorList) {
    match at.str() {
        "" => errors.required(&at.path, ""),
        text if allowed.contains(&text) => {}
        _ => errors.not_supported(&at.path, at.json(), allowed),
    }
}

fn resource_claims(list: &Cursor<'_>, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for claim in list.items() {
        let name = claim.key("name");
        if name.str().is_empty() {
            errors.required(&name.path, "");
        } else {
            if !seen.insert(name.str()) {
                errors.duplicate(&name.path, name.json());
            } else {
                errors.invalid_all(&name.path, name.json(), names::dns1123_label(name.str()));
            }
        }
        let shown = || internal::show("PodResourceClaim", claim.json());
        let (direct, from) = (claim.key("resourceClaimName"), claim.key("resourceClaimTemplateName"));
        match (direct.exists(), from.exists()) {
            (true, true) => errors.invalid_shown(
                &claim.path,
                &shown(),
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
            (false, false) => errors.invalid_shown(
                &claim.path,
                &shown(),
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            _ => {}
        }
        for at in [direct, from] {
            if at.exists() {
                errors.invalid_all(&at.path, at.json(), names::dns1123_subdomain(at.str()));
            }
        }
    }
}

fn dns_config(config: &Cursor<'_>, policy: &str, errors: &mut ErrorList) {
    if policy == "None" {
        if !config.exists() {
            return errors.required(&config.path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if config.key("nameservers").is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return errors.required(&config.key("nameservers").path, why);
        }
    }
    let servers = config.key("nameservers");
    if servers.len() > 3 {
        errors.invalid(&servers.path, servers.json(), "must not have more than 3 nameservers");
    }
    for server in servers.items() {
        addresses::ip(&server.path, server.str(), errors);
    }
    let searches = config.key("searches");
    if searches.len() > 32 {
        errors.invalid(&searches.path, searches.json(), "must not have more than 32 search paths");
    }
    let total: usize =
        searches.items().map(|s| s.str().len()).sum::<usize>() + searches.len().saturating_sub(1);
    if total > 2048 {
        errors.invalid(
            &searches.path,
            searches.json(),
            "must not have more than 2048 characters (including spaces) in the search list",
        );
    }
    for search in searches.items() {
        let text = search.str().strip_suffix('.').unwrap_or(search.str());
        if search.str() != "." {
            errors.invalid_all(&search.path, &json!(text), names::dns1123_subdomain(&text.replace('_', "-")));
        }
    }
    for option in config.key("options").items() {
        if option.key("name").str().is_empty() {
            errors.required(&option.path, "must not be empty");
        }
    }
}

/// The group that the pod belongs to.
fn scheduling_group(at: &Cursor<'_>, errors: &mut ErrorList) {
    // closed, the gate leaves nothing to look at
    if !at.exists() {
        return;
    }
    super::scheduling::one_of(at, &["podGroupName"], errors);
    let name = at.key("podGroupName");
    if name.exists() {
        errors.invalid_all(&name.path, name.json(), names::dns1123_subdomain(name.str()));
    }
}

fn scheduling_gates(spec: &Cursor<'_>, errors: &mut ErrorList) {
    let gates = spec.key("schedulingGates");
    let mut seen = BTreeSet::new();
    for gate in gates.items() {
        let name = gate.key("name").str();
        errors.invalid_all(&gate.path, &json!(name), names::qualified_name(name));
        if !seen.insert(name) {
            errors.duplicate(&gate.path, &json!(name));
        }
    }
}

fn host_users(spec: &Cursor<'_>, errors: &mut ErrorList) {
    if spec.key("hostUsers").bool() != Some(false) {
        return;
    }
    let why = "when `hostUsers` is false";
    for (key, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.key(key).bool() == Some(true) {
            errors.forbidden(&spec.key(shown).path, why);
        }
    }
    for list in ["containers", "initContainers"] {
        for container in spec.key(list).items() {
            if !container.key("volumeDevices").is_empty() {
                errors.forbidden(&container.key("volumeDevices").path, why);
            }
        }
    }
}

fn names_and_deadlines(spec: &Cursor<'_>, errors: &mut ErrorList) {
    let subdomain = |key: &str, errors: &mut ErrorList| {
        let at = spec.key(key);
        if !at.str().is_empty() {
            errors.invalid_all(&at.path, at.json(), names::dns1123_subdomain(at.str()));
        }
    };
    subdomain("serviceAccountName", errors);
    subdomain("nodeName", errors);
    let deadline = spec.key("activeDeadlineSeconds");
    if deadline.i64().is_some_and(|s| !(1..=i64::from(i32::MAX)).contains(&s)) {
        errors.invalid(&deadline.path, deadline.json(), "must be between 1 and 2147483647, inclusive");
    }
    for key in ["hostname", "subdomain"] {
        let at = spec.key(key);
        if !at.str().is_empty() {
            errors.invalid_all(&at.path, at.json(), names::dns1123_label(at.str()));
        }
    }
    for toleration in spec.key("tolerations").items() {
        affinity::toleration(&toleration, errors);
    }
    for alias in spec.key("hostAliases").items() {
        addresses::ip(&alias.key("ip").path, alias.key("ip").str(), errors);
        for host in alias.key("hostnames").items() {
            errors.invalid_all(&host.path, host.json(), names::dns1123_subdomain(host.str()));
        }
    }
    subdomain("priorityClassName", errors);
    subdomain("runtimeClassName", errors);
    let preemption = spec.key("preemptionPolicy");
    if preemption.exists() && !matches!(preemption.str(), "PreemptLowerPriority" | "Never") {
        errors.not_supported(&preemption.path, preemption.json(), &["PreemptLowerPriority", "Never"]);
    }
    super::resources::overhead(&spec.key("overhead"), errors);
    let os = spec.key("os");
    if os.exists() {
        match os.key("name").str() {
            "" => errors.required(&os.key("name").path, ""),
            "linux" | "windows" => security::os(spec, errors),
            _ => errors.not_supported(&os.key("name").path, os.key("name").json(), &["linux", "windows"]),
        }
    }
    let host = spec.key("hostnameOverride");
    if host.exists() {
        if host.str().len() > 64 {
            errors.too_long(&host.path, 64);
        } else {
            errors.invalid_all(&host.path, host.json(), names::dns1123_subdomain(host.str()));
        }
    }
    numbers::non_negative(&spec.key("terminationGracePeriodSeconds"), errors);
}
