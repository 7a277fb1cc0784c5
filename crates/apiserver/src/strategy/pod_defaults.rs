//! Defaults of a pod's spec, shared by pods and everything with a pod template.
//!
//! Source: the API reference's field descriptions of PodSpec, Container and Volume ("Defaults to ...").

use api::quantity::Quantity;
use api::resources::{Side, of_spec};
use serde_json::{Map, Value, json};

use super::Context;
use super::tree::{child, each, has, make, put, put_absent, put_nonzero, text};

/// Defaults of the spec of a template.
pub(super) fn pod_template(template: &mut Value) {
    let Some(spec) = make(template, "spec") else { return };
    pod_spec(spec);
}

/// Defaults of a pod itself: those of a template, and what only real pods get.
pub(super) fn pod(pod: &mut Value) {
    let Some(spec) = make(pod, "spec") else { return };
    put_absent(spec, "enableServiceLinks", true);
    let host_network = spec["hostNetwork"] == json!(true);
    for list in ["initContainers", "containers"] {
        for container in each(spec, list) {
            requests_from_limits(container);
            if host_network {
                for port in each(container, "ports") {
                    let number = port["containerPort"].as_i64().unwrap_or_default();
                    put_nonzero(port, "hostPort", number);
                }
            }
        }
    }
    pod_spec(spec);
    pod_level_resources(spec);
    status(pod);
}

fn requests_from_limits(container: &mut Value) {
    let Some(resources) = child(container, "resources") else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let Some(requests) = make(resources, "requests") else { return };
    for (name, limit) in limits {
        put(requests, &name, limit);
    }
}

/// Resources of the pod as a whole that follow from what is said of some: huge pages from the containers' limits, requests
/// from the containers' and else from the limits.
fn pod_level_resources(spec: &mut Value) {
    let given = |spec: &Value, side: &str| !super::tree::is_empty(spec["resources"].get(side));
    if !given(spec, "limits") && !given(spec, "requests") {
        return;
    }
    let mut containers = spec.clone();
    super::generic::set(&mut containers, "resources", None);
    let Some(resources) = child(spec, "resources") else { return };
    let asked = resources["requests"].clone();
    let huge: Vec<_> = of_spec(&containers, Side::Limits)
        .into_iter()
        .filter(|(name, _)| name.starts_with("hugepages-") && asked.get(name).is_none())
        .collect();
    if let Some(limits) = make(resources, "limits").filter(|_| !huge.is_empty()) {
        for (name, amount) in huge {
            put(limits, &name, amount.to_string());
        }
    }
    let limits = resources["limits"].as_object().cloned().unwrap_or_default();
    if limits.is_empty() {
        return super::generic::set(resources, "limits", None);
    }
    let Some(requests) = make(resources, "requests") else { return };
    for (name, amount) in of_spec(&containers, Side::Requests) {
        if matches!(name.as_str(), "cpu" | "memory") {
            put(requests, &name, amount.to_string());
        }
    }
    for (name, limit) in limits.into_iter().filter(|(name, _)| api::resources::is_pod_level(name)) {
        put(requests, &name, limit);
    }
    if requests.as_object().is_some_and(Map::is_empty) {
        super::generic::set(resources, "requests", None);
    }
}

/// `status.podIPs` follows `status.podIP` where a client sets only one of them.
fn status(pod: &mut Value) {
    let Some(status) = child(pod, "status") else { return };
    let ip = text(status, "podIP").to_owned();
    let first = status.pointer("/podIPs/0/ip").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !ip.is_empty() && first.is_empty() {
        status["podIPs"] = json!([{"ip": ip}]);
    } else if ip.is_empty() && !first.is_empty() {
        status["podIP"] = json!(first);
    }
}

/// Removes what a pod's spec may say and no gate is open for, unless `old` says it already.
pub(super) fn drop_disabled(context: &Context, spec: Option<&mut Value>, old: Option<&Value>) {
    let Some(spec) = spec else { return };
    if !context.gates.generic_workload && old.is_none_or(|o| !has(o, "schedulingGroup")) {
        super::generic::set(spec, "schedulingGroup", None);
    }
    super::closed::pod_spec(spec, old);
}

/// [`drop_disabled`] for the template of a workload.
pub(super) fn drop_disabled_template(context: &Context, new: &mut Value, old: Option<&Value>) {
    const SPEC: &str = "/spec/template/spec";
    drop_disabled(context, new.pointer_mut(SPEC), old.and_then(|o| o.pointer(SPEC)));
}

/// Nothing is measured finer than in thousandths.
pub(super) fn round_up(list: &mut Value) {
    for value in list.as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
        let Some(amount) = super::quantities::parse(value) else { continue };
        let rounded = Quantity::from_millis(amount.millis());
        if rounded != amount && amount < Quantity::from_millis(i64::MAX) {
            *value = json!(rounded.to_string());
        }
    }
}

/// [`round_up`] for the lists of `resources`.
pub(super) fn round_resources(resources: &mut Value) {
    for list in ["limits", "requests"] {
        if let Some(list) = child(resources, list) {
            round_up(list);
        }
    }
}

fn pod_spec(spec: &mut Value) {
    if let Some(overhead) = child(spec, "overhead") {
        round_up(overhead);
    }
    if let Some(resources) = child(spec, "resources") {
        round_resources(resources);
    }
    put(spec, "dnsPolicy", "ClusterFirst");
    put(spec, "restartPolicy", "Always");
    put(spec, "schedulerName", "default-scheduler");
    put_absent(spec, "terminationGracePeriodSeconds", 30);
    // Negative periods were once accepted; they are stored as the shortest one.
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0) {
        spec["terminationGracePeriodSeconds"] = json!(1);
    }
    make(spec, "securityContext");
    for (field, other) in [("serviceAccountName", "serviceAccount"), ("serviceAccount", "serviceAccountName")]
    {
        let name = text(spec, field).to_owned();
        if !name.is_empty() {
            put(spec, other, name);
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        each(spec, list).for_each(container);
    }
    each(spec, "volumes").for_each(volume);
}

/// `Always` for `:latest` or no tag at all, else `IfNotPresent`; that too for what is no name of an image.
fn pull_policy(image: &str) -> &'static str {
    let (named, digest) = image.split_once('@').map_or((image, None), |(n, d)| (n, Some(d)));
    let slash = named.rfind('/').map_or(0, |i| i + 1);
    let (repository, tag) = match named[slash..].split_once(':') {
        Some((name, tag)) => (&named[..slash + name.len()], Some(tag)),
        None => (named, None),
    };
    match (tag, digest) {
        _ if !is_repository(repository) => "IfNotPresent",
        (Some("latest"), _) | (None, None) => "Always",
        _ => "IfNotPresent",
    }
}

/// Names of lower case letters and digits, divided by slashes, the first maybe that of a registry.
fn is_repository(text: &str) -> bool {
    let is_registry =
        |first: &str| first.contains(['.', ':']) || first == "localhost" || first.to_lowercase() != first;
    let path = match text.split_once('/') {
        Some((first, rest)) if is_registry(first) => rest,
        _ => text,
    };
    let is_id = path.len() == 64 && path.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let is_part = |part: &str| {
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let inner = |b: char| edge(b) || matches!(b, '.' | '_' | '-');
        let divided = ["..", "___", "._", "_.", ".-", "-.", "_-", "-_"];
        part.starts_with(edge)
            && part.ends_with(edge)
            && part.chars().all(inner)
            && !divided.iter().any(|wrong| part.contains(wrong))
    };
    !is_id && path.split('/').all(is_part)
}

fn container(c: &mut Value) {
    if let Some(resources) = child(c, "resources") {
        round_resources(resources);
    }
    let policy = pull_policy(text(c, "image"));
    put(c, "imagePullPolicy", policy);
    put(c, "terminationMessagePath", "/dev/termination-log");
    put(c, "terminationMessagePolicy", "File");
    for port in each(c, "ports") {
        put(port, "protocol", "TCP");
    }
    for env in each(c, "env") {
        if let Some(source) = child(env, "valueFrom") {
            field_ref(source);
            if let Some(key) = child(source, "fileKeyRef") {
                put_absent(key, "optional", false);
            }
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = child(c, name) {
            probe(p);
        }
    }
    if let Some(lifecycle) = child(c, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(get) = child(lifecycle, name).and_then(|h| child(h, "httpGet")) {
                http_get(get);
            }
        }
    }
}

fn field_ref(source: &mut Value) {
    if let Some(field) = child(source, "fieldRef") {
        put(field, "apiVersion", "v1");
    }
    if let Some(resource) = child(source, "resourceFieldRef") {
        put(resource, "divisor", "0");
    }
}

fn http_get(get: &mut Value) {
    put(get, "path", "/");
    put(get, "scheme", "HTTP");
}

fn probe(p: &mut Value) {
    put_nonzero(p, "timeoutSeconds", 1);
    put_nonzero(p, "periodSeconds", 10);
    put_nonzero(p, "successThreshold", 1);
    put_nonzero(p, "failureThreshold", 3);
    if let Some(get) = child(p, "httpGet") {
        http_get(get);
    }
    if let Some(grpc) = child(p, "grpc") {
        put_absent(grpc, "service", "");
    }
}

/// Defaults of a volume's source; pods and persistent volumes share most of them.
pub(super) fn volume(v: &mut Value) {
    let sources = v.as_object().into_iter().flatten().filter(|(k, s)| *k != "name" && !s.is_null()).count();
    if sources == 0 {
        make(v, "emptyDir");
    }
    volume_source(v);
    for (name, key) in [
        ("secret", "defaultMode"),
        ("configMap", "defaultMode"),
        ("downwardAPI", "defaultMode"),
        ("projected", "defaultMode"),
    ] {
        if let Some(source) = child(v, name) {
            put_absent(source, key, 0o644);
        }
    }
    if let Some(api) = child(v, "downwardAPI") {
        each(api, "items").for_each(field_ref);
    }
    if let Some(projected) = child(v, "projected") {
        for source in each(projected, "sources") {
            if let Some(token) = child(source, "serviceAccountToken") {
                put_absent(token, "expirationSeconds", 3600);
            }
            if let Some(api) = child(source, "downwardAPI") {
                each(api, "items").for_each(field_ref);
            }
        }
    }
    if let Some(image) = child(v, "image") {
        let policy = pull_policy(text(image, "reference"));
        put(image, "pullPolicy", policy);
    }
    if let Some(template) = child(v, "ephemeral").and_then(|e| child(e, "volumeClaimTemplate"))
        && let Some(spec) = child(template, "spec")
    {
        put_absent(spec, "volumeMode", "Filesystem");
    }
}

/// Defaults of the sources that persistent volumes have too.
pub(super) fn volume_source(v: &mut Value) {
    if let Some(host) = child(v, "hostPath") {
        put_absent(host, "type", "");
    }
    if let Some(iscsi) = child(v, "iscsi") {
        put(iscsi, "iscsiInterface", "default");
    }
    if let Some(rbd) = child(v, "rbd") {
        put(rbd, "pool", "rbd");
        put(rbd, "user", "admin");
        put(rbd, "keyring", "/etc/ceph/keyring");
    }
    if let Some(disk) = child(v, "azureDisk") {
        put_absent(disk, "cachingMode", "ReadWrite");
        put_absent(disk, "kind", "Shared");
        put_absent(disk, "fsType", "ext4");
        put_absent(disk, "readOnly", false);
    }
    if let Some(io) = child(v, "scaleIO") {
        put(io, "storageMode", "ThinProvisioned");
        put(io, "fsType", "xfs");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untagged_and_latest_images_are_always_pulled() {
        let policies: Vec<&str> =
            ["img", "a:latest", "reg.io:5000/a", "Reg/a", "a:v1", "a@sha256:0", "Img", ""]
                .map(pull_policy)
                .to_vec();
        let (always, once) = ("Always", "IfNotPresent");
        assert_eq!(policies, [always, always, always, always, once, once, once, once]);
    }

    #[test]
    fn defaulting_twice_changes_nothing() {
        let mut object = json!({"spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i",
            "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 80}},
            "resources": {"limits": {"cpu": "1"}}}], "volumes": [{"name": "v"}]}});
        pod(&mut object);
        let once = object.clone();
        pod(&mut object);
        assert_eq!(object, once);
        assert_eq!(once["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
        assert_eq!(once["spec"]["containers"][0]["resources"]["requests"]["cpu"], "1");
        assert_eq!(once["spec"]["volumes"][0], json!({"name": "v", "emptyDir": {}}));
    }
}
