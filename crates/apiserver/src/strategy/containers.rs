//! Rules on containers: names, images, ports, mounts, and how the three kinds differ.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::pod_validate::Pod;
use super::{addresses, env, probe, resources, security};

/// All containers of a pod.
pub(super) fn validate(spec: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let main = spec.key("containers");
    if main.is_empty() {
        errors.required(&main.path, "");
    }
    let mut seen = BTreeSet::new();
    for container in main.items() {
        common(&container, pod, errors);
        unique_name(&container, &mut seen, errors);
        hooks(&container, pod, errors);
        restart_rules(&container, errors);
    }
    host_ports(main.items(), errors);
    let first = spec.key("initContainers");
    for container in first.items() {
        common(&container, pod, errors);
        restart_rules(&container, errors);
        // one without a name is not looked for among those that follow
        if !container.key("name").str().is_empty() || seen.contains("") {
            unique_name(&container, &mut seen, errors);
        }
        // they run one after the other; the path is that of the first, whichever it is
        let alone = Cursor { path: format!("{}[0]", first.path), ..container.clone() };
        host_ports(std::iter::once(alone), errors);
        init(&container, pod, errors);
    }
    for container in spec.key("ephemeralContainers").items() {
        common(&container, pod, errors);
        image_text(&container, errors);
        unique_name(&container, &mut seen, errors);
        ephemeral(&container, spec, errors);
    }
}

fn unique_name<'a>(container: &Cursor<'a>, seen: &mut BTreeSet<&'a str>, errors: &mut ErrorList) {
    let name = container.key("name");
    if !seen.insert(name.str()) {
        errors.duplicate(&name.path, &json!(name.str()));
    }
}

/// Two containers cannot have one port of the node.
fn host_ports<'a>(containers: impl Iterator<Item = Cursor<'a>>, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for container in containers {
        for port in container.key("ports").items() {
            let number = port.key("hostPort").i64().unwrap_or_default();
            let key = (number, port.key("protocol").str(), port.key("hostIP").str());
            if number != 0 && !seen.insert(key) {
                let shown = format!("{}/{}/{number}", key.1, key.2);
                errors.duplicate(&port.key("hostPort").path, &json!(shown));
            }
        }
    }
}

fn common(c: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let name = c.key("name");
    if name.str().is_empty() {
        errors.required(&name.path, "");
    } else {
        errors.invalid_all(&name.path, name.json(), names::dns1123_label(name.str()));
    }
    let image = c.key("image");
    if image.str().is_empty() {
        errors.required(&image.path, "");
    }
    let policy = c.key("terminationMessagePolicy");
    match policy.str() {
        "" => errors.required(&policy.path, ""),
        "File" | "FallbackToLogsOnError" => {}
        _ => errors.not_supported(&policy.path, policy.json(), &["File", "FallbackToLogsOnError"]),
    }
    ports(&c.key("ports"), errors);
    env::validate(c, errors);
    mounts(c, pod, errors);
    devices(c, pod, errors);
    pull_policy(&c.key("imagePullPolicy"), errors);
    resources::validate(&c.key("resources"), pod, errors);
    resize_policy(&c.key("resizePolicy"), pod, errors);
    security::container(c, pod, errors);
}

/// When an image is fetched.
pub(super) fn pull_policy(at: &Cursor<'_>, errors: &mut ErrorList) {
    match at.str() {
        "" => errors.required(&at.path, ""),
        "Always" | "IfNotPresent" | "Never" => {}
        _ => errors.not_supported(&at.path, at.json(), &["Always", "IfNotPresent", "Never"]),
    }
}

/// How resources of a running container change; these errors name the list.
fn resize_policy(list: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for policy in list.items() {
        let (resource, restart) = (policy.key("resourceName").str(), policy.key("restartPolicy").str());
        if !seen.insert(resource) {
            errors.duplicate(&policy.path, &json!(resource));
        }
        for (given, known) in [(resource, ["cpu", "memory"]), (restart, ["NotRequired", "RestartContainer"])]
        {
            if given.is_empty() {
                errors.required(&list.path, "");
            } else if !known.contains(&given) {
                errors.not_supported(&list.path, &json!(given), &known);
            }
        }
        if pod.restart == "Never" && restart != "NotRequired" {
            let why = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.invalid(&list.path, &json!(restart), why);
        }
    }
}

/// What only real pods are held to: images as they are written.
pub(super) fn only_for_pod(spec: &Cursor<'_>, errors: &mut ErrorList) {
    for list in ["containers", "initContainers"] {
        spec.key(list).items().for_each(|c| image_text(&c, errors));
    }
}

fn image_text(c: &Cursor<'_>, errors: &mut ErrorList) {
    let image = c.key("image");
    if image.str().trim() != image.str() {
        errors.invalid(&image.path, image.json(), "must not have leading or trailing whitespace");
    }
}

/// When a container is started again, whatever the pod's policy says.
fn restart_rules(c: &Cursor<'_>, errors: &mut ErrorList) {
    let (restart, rules) = (c.key("restartPolicy"), c.key("restartPolicyRules"));
    if !restart.exists() && rules.is_empty() {
        return;
    }
    if !restart.exists() {
        errors.required(&restart.path, "must specify restartPolicy when restart rules are used");
        // of an init container nothing more is said then
        if c.path.contains(".initContainers[") {
            return;
        }
    } else if !matches!(restart.str(), "Always" | "Never" | "OnFailure") {
        errors.not_supported(&restart.path, restart.json(), &["Always", "Never", "OnFailure"]);
    }
    if rules.len() > 20 {
        errors.too_many(&rules.path, rules.len(), 20);
    }
    for rule in rules.items() {
        let action = rule.key("action");
        if !matches!(action.str(), "Restart" | "RestartAllContainers") {
            errors.not_supported(&action.path, &json!(action.str()), &["Restart", "RestartAllContainers"]);
        }
        let codes = rule.key("exitCodes");
        if !codes.exists() {
            errors.required(&codes.path, "must be specified");
            continue;
        }
        let operator = codes.key("operator");
        if !matches!(operator.str(), "In" | "NotIn") {
            errors.not_supported(&operator.path, &json!(operator.str()), &["In", "NotIn"]);
        }
        let values = codes.key("values");
        if values.len() > 255 {
            errors.too_many(&values.path, values.len(), 255);
        }
    }
}

fn ports(list: &Cursor<'_>, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for port in list.items() {
        let name = port.key("name");
        if !name.str().is_empty() {
            let messages = addresses::port_name(name.str());
            if !messages.is_empty() {
                errors.invalid_all(&name.path, name.json(), messages);
            } else if !seen.insert(name.str()) {
                errors.duplicate(&name.path, name.json());
            }
        }
        let number = port.key("containerPort");
        match number.i64().unwrap_or_default() {
            0 => errors.required(&number.path, ""),
            1..=65_535 => {}
            _ => errors.invalid(&number.path, number.json(), "must be between 1 and 65535, inclusive"),
        }
        let host = port.key("hostPort");
        if host.i64().is_some_and(|n| n != 0 && !(1..=65_535).contains(&n)) {
            errors.invalid(&host.path, host.json(), "must be between 1 and 65535, inclusive");
        }
        let protocol = port.key("protocol");
        match protocol.str() {
            "" => errors.required(&protocol.path, ""),
            "TCP" | "UDP" | "SCTP" => {}
            _ => errors.not_supported(&protocol.path, protocol.json(), &["SCTP", "TCP", "UDP"]),
        }
    }
}

/// A path below something: relative, without a step up.
pub(super) fn local_path(at: &Cursor<'_>, errors: &mut ErrorList) {
    if at.str().starts_with('/') {
        errors.invalid(&at.path, at.json(), "must be a relative path");
    }
    no_back_steps(&at.path, at.str(), errors);
}

/// No `..` among the path's segments.
pub(super) fn no_back_steps(path: &str, text: &str, errors: &mut ErrorList) {
    if text.split('/').any(|s| s == "..") {
        errors.invalid(path, &json!(text), "must not contain '..'");
    }
}

fn mounts(c: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let mut paths = BTreeSet::new();
    let devices: Vec<Cursor<'_>> = c.key("volumeDevices").items().collect();
    let list = c.key("volumeMounts");
    for mount in list.items() {
        let (name, path) = (mount.key("name"), mount.key("mountPath"));
        if name.str().is_empty() {
            errors.required(&name.path, "");
        }
        if !pod.volumes.iter().any(|(n, _)| *n == name.str()) {
            errors.not_found(&name.path, &json!(name.str()));
        }
        if path.str().is_empty() {
            errors.required(&path.path, "");
        }
        if !paths.insert(path.str()) {
            errors.invalid(&path.path, &json!(path.str()), "must be unique");
        }
        if devices.iter().any(|d| d.key("name").str() == name.str()) {
            errors.invalid(&name.path, name.json(), "must not already exist in volumeDevices");
        }
        if devices.iter().any(|d| d.key("devicePath").str() == path.str()) {
            errors.invalid(&path.path, path.json(), "must not already exist as a path in volumeDevices");
        }
        let (sub, sub_expr) = (mount.key("subPath"), mount.key("subPathExpr"));
        // the paths of what is wrong with one of them never had an index
        let local = |key: &str, at: &Cursor<'_>, errors: &mut ErrorList| {
            if !at.str().is_empty() {
                local_path(&Cursor { value: at.value, path: format!("{}.{key}", list.path) }, errors);
            }
        };
        local("subPath", &sub, errors);
        if !sub.str().is_empty() && !sub_expr.str().is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            errors.invalid(&sub_expr.path, sub_expr.json(), why);
        }
        local("subPathExpr", &sub_expr, errors);
        propagation(&mount, c, &list.path, errors);
    }
}

fn propagation(mount: &Cursor<'_>, c: &Cursor<'_>, list: &str, errors: &mut ErrorList) {
    let how = mount.key("mountPropagation");
    let at = format!("{list}.mountPropagation");
    if how.exists() {
        match how.str() {
            "None" | "HostToContainer" => {}
            "Bidirectional" => {
                if c.key("securityContext").key("privileged").bool() != Some(true) {
                    errors.forbidden(
                        &at,
                        "Bidirectional mount propagation is available only to privileged containers",
                    );
                }
            }
            _ => errors.not_supported(&at, how.json(), &["Bidirectional", "HostToContainer", "None"]),
        }
    }
    let recursive = mount.key("recursiveReadOnly");
    let at = format!("{list}.recursiveReadOnly");
    match recursive.str() {
        "" if !recursive.exists() => {}
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if mount.key("readOnly").bool() != Some(true) {
                errors.forbidden(&at, "may only be specified when readOnly is true");
            }
            if how.exists() && how.str() != "None" {
                errors.forbidden(&at, "may only be specified when mountPropagation is None or not specified");
            }
        }
        _ => errors.not_supported(&at, recursive.json(), &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn devices(c: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let mounts: Vec<Cursor<'_>> = c.key("volumeMounts").items().collect();
    let (mut device_names, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for device in c.key("volumeDevices").items() {
        let (name, path) = (device.key("name"), device.key("devicePath"));
        if name.str().is_empty() {
            errors.required(&name.path, "");
        }
        if !name.str().is_empty() && !device_names.insert(name.str()) {
            errors.invalid(&name.path, name.json(), "must be unique");
        }
        let volume = pod.volumes.iter().find(|(n, _)| *n == name.str());
        let claimed =
            |v: &Value| super::tree::has(v, "persistentVolumeClaim") || super::tree::has(v, "ephemeral");
        match volume {
            Some((_, v)) if !claimed(v) => errors.invalid(
                &name.path,
                name.json(),
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            ),
            None => errors.not_found(&name.path, &json!(name.str())),
            _ => {}
        }
        if path.str().is_empty() {
            errors.required(&path.path, "");
        }
        if paths.contains(path.str()) {
            errors.invalid(&path.path, &json!(path.str()), "must be unique");
        }
        if path.str().split('/').any(|s| s == "..") {
            errors.invalid(&path.path, path.json(), "can not contain backsteps ('..')");
        } else {
            paths.insert(path.str());
        }
        if mounts.iter().any(|m| m.key("name").str() == name.str()) {
            errors.invalid(&name.path, name.json(), "must not already exist in volumeMounts");
        }
        if mounts.iter().any(|m| m.key("mountPath").str() == path.str()) {
            errors.invalid(&path.path, path.json(), "must not already exist as a path in volumeMounts");
        }
    }
}

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

fn hooks(c: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    if c.key("lifecycle").exists() {
        probe::lifecycle(&c.key("lifecycle"), pod.grace, errors);
    }
    for name in PROBES {
        if c.key(name).exists() {
            probe::validate(&c.key(name), name, pod.grace, errors);
        }
    }
}

fn init(c: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    if c.key("restartPolicy").str() == "Always" {
        return hooks(c, pod, errors);
    }
    let why = "may not be set for init containers without restartPolicy=Always";
    for name in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if c.key(name).exists() {
            errors.forbidden(&c.key(name).path, why);
        }
    }
    for policy in c.key("resizePolicy").items() {
        let at = policy.key("restartPolicy");
        if at.str() == "RestartContainer" {
            errors.invalid(
                &at.path,
                at.json(),
                "must not be set to 'RestartContainer' for non-sidecar initContainers",
            );
        }
    }
}

fn ephemeral(c: &Cursor<'_>, spec: &Cursor<'_>, errors: &mut ErrorList) {
    let target = c.key("targetContainerName");
    let known = ["containers", "initContainers"]
        .iter()
        .any(|l| spec.key(l).items().any(|o| o.key("name").str() == target.str()));
    if !target.str().is_empty() && !known {
        errors.not_found(&target.path, target.json());
    }
    const WHY: &str = "cannot be set for an Ephemeral Container";
    for name in [
        "ports",
        "resources",
        "resizePolicy",
        "restartPolicy",
        "restartPolicyRules",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
    ] {
        let at = c.key(name);
        if at.exists() && !(name == "resources" && at.is_empty()) {
            errors.forbidden(&at.path, WHY);
        }
    }
    for mount in c.key("volumeMounts").items() {
        for key in ["subPath", "subPathExpr"] {
            if !mount.key(key).str().is_empty() {
                errors.forbidden(&mount.key(key).path, WHY);
            }
        }
    }
}
