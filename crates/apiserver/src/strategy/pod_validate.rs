//! Rules on a pod's spec as a whole; its parts stand in `containers`, `volumes`, `affinity` and `security`.
//!
//! The order of checks is the order in which the reference reports what it finds.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::{addresses, affinity, containers, internal, label_selector, pod_annotations, security, volumes};

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
}

/// The containers of all lists in the order in which rules that hold for each look at them, with the list they stand in.
pub(super) fn all_containers<'a>(
    spec: &Cursor<'a>,
) -> impl Iterator<Item = (&'static str, Cursor<'a>)> + use<'a> {
    let spec = spec.clone();
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(move |list| spec.key(list).items().map(move |c| (list, c)))
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
    pod_annotations::match_fields(&o["metadata"]["annotations"], &spec, errors);
}

/// What holds for a pod at any time.
pub(super) fn metadata_and_spec(o: &Value, errors: &mut ErrorList) {
    let root = Cursor::root(o);
    let (metadata, pod) = (root.key("metadata"), root.key("spec"));
    pod_annotations::check(&metadata.key("annotations"), &pod, errors);
    spec(&pod, Some(metadata.json()), errors);
    if pod.key("serviceAccountName").str().is_empty() {
        for volume in pod.key("volumes").items() {
            for source in volume.key("projected").key("sources").items() {
                let token = source.key("serviceAccountToken");
                if token.exists() {
                    let why = "must not be specified when serviceAccountName is not set";
                    errors.forbidden(&token.path, why);
                }
            }
        }
    }
    containers::only_for_pod(&pod, errors);
}

/// The pod template of an object at `path`.
pub(super) fn template(o: &Value, path: &str, errors: &mut ErrorList) {
    template_at(&Cursor::root(o).key(path), errors);
}

/// Annotations of a pod template; their path leaves out `metadata`, as it always did.
fn template_annotations<'a>(at: &Cursor<'a>) -> Cursor<'a> {
    let path = format!("{}.annotations", at.path);
    Cursor { path, ..at.key("metadata").key("annotations") }
}

/// Labels and annotations of a pod template.
pub(super) fn template_labels(at: &Cursor<'_>, errors: &mut ErrorList) {
    let path = format!("{}.labels", at.path);
    label_selector::labels(&Cursor { path, ..at.key("metadata").key("labels") }, errors);
    crate::object_meta::annotations(&template_annotations(at), errors);
}

/// A pod template.
pub(super) fn template_at(at: &Cursor<'_>, errors: &mut ErrorList) {
    template_labels(at, errors);
    let pod = at.key("spec");
    pod_annotations::check(&template_annotations(at), &pod, errors);
    spec(&pod, None, errors);
    pod_annotations::match_fields(at.key("metadata").key("annotations").json(), &pod, errors);
    let ephemeral = pod.key("ephemeralContainers");
    if !ephemeral.is_empty() {
        errors.forbidden(&ephemeral.path, "ephemeral containers not allowed in pod template");
    }
}

/// A pod's spec; `metadata`: that of the pod, where it is one and no template.
fn spec(spec: &Cursor<'_>, metadata: Option<&Value>, errors: &mut ErrorList) {
    let name = metadata.map(|m| super::tree::text(m, "name")).filter(|name| !name.is_empty());
    let found = volumes::validate(&spec.key("volumes"), name, errors);
    let pod = Pod {
        volumes: found,
        claims: spec.key("resourceClaims").items().map(|c| c.key("name").str()).collect(),
        grace: spec.key("terminationGracePeriodSeconds").i64().unwrap_or(30),
        own_users: spec.key("hostUsers").bool() == Some(false),
        host_network: spec.key("hostNetwork").bool() == Some(true),
        restart: spec.key("restartPolicy").str(),
    };
    let is_mirror = metadata.is_some_and(|m| m["annotations"].get(pod_annotations::MIRROR).is_some());
    resource_claims(&spec.key("resourceClaims"), is_mirror, errors);
    containers::validate(spec, &pod, errors);
    if spec.key("resources").exists() {
        super::resources::of_pod(spec, &pod, errors);
    }
    security::host_network(spec, &pod, errors);
    let restart = spec.key("restartPolicy");
    one_of(&restart, &["Always", "OnFailure", "Never"], errors);
    let dns = spec.key("dnsPolicy");
    one_of(&dns, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], errors);
    label_selector::labels(&spec.key("nodeSelector"), errors);
    security::pod(spec, errors);
    affinity::validate(&spec.key("affinity"), errors);
    dns_config(&spec.key("dnsConfig"), dns.str(), errors);
    for gate in spec.key("readinessGates").items() {
        let kind = gate.key("conditionType");
        errors.invalid_all(&kind.path, &json!(kind.str()), names::qualified_name(kind.str()));
    }
    scheduling_gates(spec, errors);
    scheduling_group(&spec.key("schedulingGroup"), errors);
    affinity::spread(&spec.key("topologySpreadConstraints"), errors);
    security::host_process(spec, &pod, errors);
    host_users(spec, errors);
    host_name(spec, &pod, errors);
    names_and_deadlines(spec, errors);
    file_keys(spec, errors);
}

fn one_of(at: &Cursor<'_>, allowed: &[&str], errors: &mut ErrorList) {
    match at.str() {
        "" => errors.required(&at.path, ""),
        text if allowed.contains(&text) => {}
        _ => errors.not_supported(&at.path, at.json(), allowed),
    }
}

fn resource_claims(list: &Cursor<'_>, is_mirror: bool, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for claim in list.items() {
        if is_mirror {
            errors.forbidden("", "static pods do not support resource claims");
            continue;
        }
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
            errors.invalid_all(&search.path, &json!(text), names::dns1123_subdomain_with_underscore(text));
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
    for (_, container) in all_containers(spec) {
        if !container.key("volumeDevices").is_empty() {
            errors.forbidden(&container.key("volumeDevices").path, why);
        }
    }
}

/// A host name that takes the place of the pod's own.
fn host_name(spec: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let host = spec.key("hostnameOverride");
    if !host.exists() {
        return;
    }
    if spec.key("setHostnameAsFQDN").bool() == Some(true) {
        errors.forbidden(&host.path, "may not be specified when setHostnameAsFQDN is true");
    }
    if pod.host_network {
        errors.forbidden(&host.path, "may not be specified when hostNetwork is true");
    }
    if host.str().len() > 64 {
        errors.too_long(&host.path, 64);
    }
    errors.invalid_all(&host.path, host.json(), names::dns1123_subdomain(host.str()));
}

/// Files with variables stand in volumes that begin empty.
fn file_keys(spec: &Cursor<'_>, errors: &mut ErrorList) {
    for (_, container) in all_containers(spec) {
        for variable in container.key("env").items() {
            let reference = variable.key("valueFrom").key("fileKeyRef");
            if !reference.exists() {
                continue;
            }
            let name = reference.key("volumeName");
            let same = |v: &Cursor<'_>| v.key("name").str() == name.str();
            match spec.key("volumes").items().filter(same).last() {
                None => errors.not_found(&name.path, &json!(name.str())),
                Some(volume) if !volume.key("emptyDir").exists() => {
                    let why = "referenced volume must be of type emptyDir";
                    errors.invalid(&name.path, &json!(name.str()), why);
                }
                Some(_) => {}
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
    let runtime = spec.key("runtimeClassName");
    if runtime.exists() {
        errors.invalid_all(&runtime.path, runtime.json(), names::dns1123_subdomain(runtime.str()));
    }
    let preemption = spec.key("preemptionPolicy");
    if preemption.exists() {
        one_of(&preemption, &["PreemptLowerPriority", "Never"], errors);
    }
    super::resources::overhead(&spec.key("overhead"), errors);
    let os = spec.key("os");
    if os.exists() {
        match os.key("name").str() {
            "" => errors.required(&os.key("name").path, ""),
            "linux" | "windows" => security::os(spec, errors),
            _ => errors.not_supported(&os.path, os.key("name").json(), &["linux", "windows"]),
        }
    }
}
