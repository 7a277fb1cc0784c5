//! Security contexts of pods and containers.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList};
use serde_json::json;

use super::containers;
use super::pod_validate::{Pod, all_containers};

/// A user or group.
pub(super) fn id(at: &Cursor<'_>, errors: &mut ErrorList) {
    if at.i64().is_some_and(|n| !(0..=i64::from(i32::MAX)).contains(&n)) {
        errors.invalid(&at.path, at.json(), "must be between 0 and 2147483647, inclusive");
    }
}

/// `spec.securityContext`.
pub(super) fn pod(spec: &Cursor<'_>, errors: &mut ErrorList) {
    let context = spec.key("securityContext");
    id(&context.key("fsGroup"), errors);
    id(&context.key("runAsUser"), errors);
    id(&context.key("runAsGroup"), errors);
    for group in context.key("supplementalGroups").items() {
        id(&group, errors);
    }
    if spec.key("shareProcessNamespace").bool() == Some(true) && spec.key("hostPID").bool() == Some(true) {
        errors.invalid(
            &context.key("shareProcessNamespace").path,
            &json!(true),
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    sysctls(spec, errors);
    known(&context.key("fsGroupChangePolicy"), &["Always", "OnRootMismatch"], errors);
    seccomp(&context.key("seccompProfile"), errors);
    windows(&context.key("windowsOptions"), errors);
    app_armor(&context.key("appArmorProfile"), errors);
    known(&context.key("supplementalGroupsPolicy"), &["Merge", "Strict"], errors);
    known(&context.key("seLinuxChangePolicy"), &["MountOption", "Recursive"], errors);
}

fn known(at: &Cursor<'_>, values: &[&str], errors: &mut ErrorList) {
    if at.exists() && !values.contains(&at.str()) {
        errors.not_supported(&at.path, at.json(), values);
    }
}

/// In the node's network a port is what it is there. None given means the same: a pod's has been defaulted, a template's
/// will be.
pub(super) fn host_network(spec: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    if !pod.host_network {
        return;
    }
    for container in spec.key("containers").items() {
        for port in container.key("ports").items() {
            let at = port.key("hostPort");
            if !matches!(at.i64(), None | Some(0)) && at.i64() != port.key("containerPort").i64() {
                errors.invalid(&at.path, at.json(), "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

fn sysctls(spec: &Cursor<'_>, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    let segment = |s: &str| {
        let b = s.as_bytes();
        let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        !b.is_empty()
            && edge(b[0])
            && edge(b[b.len() - 1])
            && b.iter().all(|c| edge(*c) || matches!(c, b'-' | b'_'))
    };
    for sysctl in spec.key("securityContext").key("sysctls").items() {
        let name = sysctl.key("name");
        if name.str().is_empty() {
            errors.required(&name.path, "");
        } else if name.str().len() > 253 || !name.str().split(['.', '/']).all(segment) {
            errors.invalid(
                &name.path,
                name.json(),
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if seen.contains(name.str()) {
            errors.duplicate(&name.path, name.json());
        }
        let shared = [("hostNetwork", &["net."][..]), ("hostIPC", &IPC[..])];
        for (field, prefixes) in shared {
            let dotted = dotted(name.str());
            if spec.key(field).bool() == Some(true) && prefixes.iter().any(|p| dotted.starts_with(p)) {
                let why = format!("may not be specified when '{field}' is true");
                errors.invalid(&name.path, name.json(), &why);
            }
        }
        seen.insert(name.str());
    }
}

/// What the parameters of an IPC namespace begin with.
const IPC: [&str; 4] = ["kernel.sem", "kernel.shm", "kernel.msg", "fs.mqueue."];

/// A parameter's name with dots between its parts: where it comes with slashes, dots are part of names.
fn dotted(name: &str) -> String {
    if name.chars().find(|c| matches!(c, '.' | '/')) != Some('/') {
        return name.to_owned();
    }
    name.chars()
        .map(|c| match c {
            '/' => '.',
            '.' => '/',
            c => c,
        })
        .collect()
}

fn seccomp(profile: &Cursor<'_>, errors: &mut ErrorList) {
    if !profile.exists() {
        return;
    }
    let (kind, local) = (profile.key("type"), profile.key("localhostProfile"));
    match kind.str() {
        "Localhost" => {
            if !local.exists() {
                errors.required(&local.path, "must be set when seccomp type is Localhost");
            } else {
                containers::local_path(&local, errors);
            }
        }
        "RuntimeDefault" | "Unconfined" => {}
        "" => errors.required(&kind.path, "type is required when seccompProfile is set"),
        _ => errors.not_supported(&kind.path, kind.json(), &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
    if kind.str() != "Localhost" && local.exists() {
        // the whole profile is printed
        let shown = super::internal::show("Profile", profile.json());
        errors.invalid_shown(&local.path, &shown, "can only be set when seccomp type is Localhost");
    }
}

fn app_armor(profile: &Cursor<'_>, errors: &mut ErrorList) {
    if !profile.exists() {
        return;
    }
    let (kind, local) = (profile.key("type"), profile.key("localhostProfile"));
    match kind.str() {
        "Localhost" => {
            if !local.exists() {
                errors.required(&local.path, "must be set when AppArmor type is Localhost");
            } else if local.str().trim() != local.str() {
                errors.invalid(&local.path, local.json(), "must not be padded with whitespace");
            } else if local.str().is_empty() {
                errors.required(&local.path, "must be set when AppArmor type is Localhost");
            }
            if local.str().len() > 4095 {
                errors.too_long(&local.path, 4095);
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if local.exists() {
                errors.invalid(&local.path, local.json(), "can only be set when AppArmor type is Localhost");
            }
        }
        "" => errors.required(&kind.path, "type is required when appArmorProfile is set"),
        _ => errors.not_supported(&kind.path, kind.json(), &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

fn windows(options: &Cursor<'_>, errors: &mut ErrorList) {
    let (name, spec, user) = (
        options.key("gmsaCredentialSpecName"),
        options.key("gmsaCredentialSpec"),
        options.key("runAsUserName"),
    );
    if name.exists() {
        errors.invalid_all(&name.path, name.json(), api::names::dns1123_subdomain(name.str()));
    }
    if spec.exists() && spec.str().is_empty() {
        errors.invalid(&spec.path, spec.json(), "gmsaCredentialSpec cannot be an empty string");
    } else if spec.str().len() > 64 * 1024 {
        errors.invalid(&spec.path, spec.json(), "gmsaCredentialSpec size must be under 64 KiB");
    }
    if user.exists() {
        // printed as JSON, unlike most texts
        let shown = user.json().to_string();
        for complaint in windows_user_complaints(user.str()) {
            errors.invalid_shown(&user.path, &shown, complaint);
        }
    }
}

/// Why a text is no `[DOMAIN\\]USER`.
fn windows_user_complaints(text: &str) -> Vec<&'static str> {
    const BAD: &str = "\"/\\:;|=,+*?<>@[]";
    if text.is_empty() {
        return vec!["runAsUserName cannot be an empty string"];
    }
    if text.chars().any(char::is_control) {
        return vec!["runAsUserName cannot contain control characters"];
    }
    let parts: Vec<&str> = text.split('\\').collect();
    let (domain, user) = match parts[..] {
        [user] => (None, user),
        [domain, user] => (Some(domain), user),
        _ => return vec!["runAsUserName cannot contain more than one backslash"],
    };
    let mut found = Vec::new();
    if let Some(domain) = domain {
        let net_bios = !domain.is_empty()
            && domain.len() <= 15
            && !domain.starts_with('.')
            && !domain.chars().any(|c| "\\/:*?\"<>|".contains(c));
        let dns = domain.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        });
        if domain.len() >= 256 {
            found.push("runAsUserName's Domain length must be under 256 characters");
        }
        if !(net_bios || dns) {
            found.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
        }
    }
    if user.is_empty() {
        found.push("runAsUserName's User cannot be empty");
    } else if user.len() > 104 {
        found.push("runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        found.push("runAsUserName's User cannot contain only periods or spaces");
    }
    if user.chars().any(|c| BAD.contains(c)) {
        found.push("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]");
    }
    found
}

/// What a pod says of Linux, most of it in its security context, in the order in which the reference looks at it.
const LINUX_ONLY: [&str; 15] = [
    "appArmorProfile",
    "seLinuxOptions",
    "hostUsers",
    "hostPID",
    "hostIPC",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "shareProcessNamespace",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "seLinuxChangePolicy",
];
/// What a container's security context says of Linux.
const LINUX_ONLY_OF_CONTAINERS: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// Fields of the other operating system than the pod's.
pub(super) fn os(spec: &Cursor<'_>, errors: &mut ErrorList) {
    let context = spec.key("securityContext");
    match spec.key("os").key("name").str() {
        "linux" => {
            let options = context.key("windowsOptions");
            let of_containers =
                all_containers(spec).map(|(_, c)| c.key("securityContext").key("windowsOptions"));
            for options in std::iter::once(options).chain(of_containers).filter(Cursor::exists) {
                errors.forbidden(&options.path, "windows options cannot be set for a linux pod");
            }
        }
        "windows" => {
            let why = "cannot be set for a windows pod";
            let mut forbid = |at: Cursor<'_>| errors.forbidden(&at.path, why);
            for key in LINUX_ONLY {
                let (at, is_given) = match key {
                    // of these two `false` is the same as none
                    "hostPID" | "hostIPC" => (spec.key(key), spec.key(key).bool() == Some(true)),
                    "hostUsers" | "shareProcessNamespace" => (spec.key(key), spec.key(key).exists()),
                    "sysctls" => (context.key(key), !context.key(key).is_empty()),
                    _ => (context.key(key), context.key(key).exists()),
                };
                if is_given {
                    forbid(at);
                }
            }
            for (_, container) in all_containers(spec) {
                let own = container.key("securityContext");
                LINUX_ONLY_OF_CONTAINERS
                    .iter()
                    .map(|key| own.key(key))
                    .filter(Cursor::exists)
                    .for_each(&mut forbid);
            }
        }
        _ => {}
    }
}

fn host_process_of(context: &Cursor<'_>) -> Option<bool> {
    context.key("windowsOptions").key("hostProcess").bool()
}

/// Windows host process containers come all or none, and on the node's network.
pub(super) fn host_process(spec: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let of_pod = host_process_of(&spec.key("securityContext"));
    let (mut with, mut without) = (0, 0);
    for (_, container) in all_containers(spec) {
        let own = host_process_of(&container.key("securityContext"));
        if let (Some(of_pod), Some(own)) = (of_pod, own)
            && of_pod != own
        {
            errors.invalid(
                &container.key("securityContext").key("windowsOptions").key("hostProcess").path,
                &json!(own),
                &format!("pod hostProcess value must be identical if both are specified, was {of_pod}"),
            );
        }
        if own.or(of_pod) == Some(true) {
            with += 1;
        } else {
            without += 1;
        }
    }
    if with > 0 {
        if without > 0 {
            errors.invalid(
                &spec.path,
                &json!(""),
                "If pod contains any hostProcess containers then all containers must be HostProcess containers",
            );
        }
        if !pod.host_network {
            errors.invalid(
                &spec.key("hostNetwork").path,
                &json!(false),
                "hostNetwork must be true if pod contains any hostProcess containers",
            );
        }
    }
}

/// `securityContext` of a container.
pub(super) fn container(c: &Cursor<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let context = c.key("securityContext");
    if !context.exists() {
        return;
    }
    id(&context.key("runAsUser"), errors);
    id(&context.key("runAsGroup"), errors);
    let mount = context.key("procMount");
    known(&mount, &["Default", "Unmasked"], errors);
    if mount.str() == "Unmasked" && !pod.own_users {
        errors.invalid(&mount.path, mount.json(), "`hostUsers` must be false to use `Unmasked`");
    }
    seccomp(&context.key("seccompProfile"), errors);
    if context.key("allowPrivilegeEscalation").bool() == Some(false) {
        let shown = super::internal::show("SecurityContext", context.json());
        if context.key("privileged").bool() == Some(true) {
            errors.invalid_shown(
                &context.path,
                &shown,
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        let added = context.key("capabilities").key("add");
        for _ in added.items().filter(|a| a.str() == "CAP_SYS_ADMIN") {
            errors.invalid_shown(
                &context.path,
                &shown,
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
    windows(&context.key("windowsOptions"), errors);
    app_armor(&context.key("appArmorProfile"), errors);
}
