//! Pod Security Standards: the checks of the levels `baseline` and `restricted`, as pure functions on a pod's spec.
//!
//! Rule: Kubernetes documentation, "Pod Security Standards" and "Pod Security Admission" (labels of namespaces).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::field::{ErrorList, quote};
use api::object::Object;
use serde::Deserialize;
use serde_json::Value;

/// Pods of a namespace that are checked when its level changes, at most.
const MOST_PODS: usize = 3000;
/// Longest time for that.
const PATIENCE: Duration = Duration::from_secs(1);

/// How much a namespace allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    Privileged,
    /// No known escalation.
    Baseline,
    /// Hardened.
    Restricted,
}

/// Labels of a namespace that name no level or version.
pub fn label_errors(namespace: &Value) -> ErrorList {
    let mut errors = ErrorList::default();
    let labels = &namespace["metadata"]["labels"];
    for mode in ["enforce", "audit", "warn"] {
        let key = format!("pod-security.kubernetes.io/{mode}");
        let level = labels[&key].as_str();
        if level.is_some_and(|l| !matches!(l, "privileged" | "baseline" | "restricted")) {
            let why = "must be one of privileged, baseline, restricted";
            errors.invalid(&format!("metadata.labels[{key}]"), &labels[&key], why);
        }
        let key = format!("{key}-version");
        let is_version = |v: &str| {
            let minor = v.strip_prefix("v1.").unwrap_or_default();
            v == "latest" || minor == "0" || !minor.starts_with('0') && minor.parse::<u32>().is_ok()
        };
        if labels[&key].as_str().is_some_and(|v| !is_version(v)) {
            let why = "must be \"latest\" or \"v1.x\"";
            errors.invalid(&format!("metadata.labels[{key}]"), &labels[&key], why);
        }
    }
    errors
}

/// One mode of a namespace: level and the version of the standard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The level.
    pub level: Level,
    /// `latest` or `v1.N`.
    version: String,
}

impl Policy {
    /// The policy for `mode` (`enforce`, `warn`) of a namespace. What cannot be read is the strictest for `enforce`
    /// and nothing for the others.
    pub fn of(namespace: &Value, mode: &str) -> Self {
        let label = |suffix: &str| {
            namespace["metadata"]["labels"][format!("pod-security.kubernetes.io/{mode}{suffix}")].as_str()
        };
        let level = match label("") {
            None | Some("privileged") => Level::Privileged,
            Some("baseline") => Level::Baseline,
            Some("restricted") => Level::Restricted,
            Some(_) if mode == "enforce" => Level::Restricted,
            Some(_) => Level::Privileged,
        };
        Self { level, version: label("-version").unwrap_or("latest").to_owned() }
    }

    /// `restricted:latest`.
    pub fn name(&self) -> String {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        format!("{level}:{}", self.version)
    }

    fn minor(&self) -> u32 {
        self.version.strip_prefix("v1.").and_then(|n| n.parse().ok()).unwrap_or(u32::MAX)
    }

    /// What of a pod's metadata and spec violates it: `reason (detail), ...`; empty for nothing.
    pub fn violations(&self, metadata: &Value, spec: &Value) -> String {
        self.findings(metadata, spec).join(", ")
    }

    /// The same without details.
    fn reasons(&self, pod: &Value) -> String {
        let found = self.findings(&pod["metadata"], &pod["spec"]);
        let reasons = found.iter().map(|f| f.split_once(" (").map_or(f.as_str(), |(reason, _)| reason));
        reasons.collect::<Vec<_>>().join(", ")
    }

    /// Whether pods that kept to `old` may violate this.
    fn is_tighter_than(&self, old: &Policy) -> bool {
        self != old
            && self.level != Level::Privileged
            && (self.version != old.version || self.level > old.level)
    }

    fn findings(&self, metadata: &Value, spec: &Value) -> Vec<String> {
        if self.level == Level::Privileged {
            return Vec::new();
        }
        let pod = Pod { metadata, spec, minor: self.minor() };
        let restricted = self.level == Level::Restricted;
        let strict_capabilities = restricted && pod.minor >= 22;
        // in order of the checks' names, as the reference reports them
        let found = [
            restricted.then(|| pod.privilege_escalation()),
            Some(pod.app_armor()),
            (!strict_capabilities).then(|| pod.capabilities()),
            strict_capabilities.then(|| pod.restricted_capabilities()),
            Some(pod.host_namespaces()),
            (!restricted).then(|| pod.host_paths()),
            Some(pod.host_ports()),
            (pod.minor >= 34).then(|| pod.probe_hosts()),
            Some(pod.privileged()),
            Some(pod.proc_mount()),
            restricted.then(|| pod.volume_types()),
            restricted.then(|| pod.non_root()),
            (restricted && pod.minor >= 23).then(|| pod.user()),
            Some(pod.se_linux()),
            (!restricted).then(|| pod.seccomp()),
            restricted.then(|| pod.restricted_seccomp()),
            Some(pod.sysctls()),
            Some(pod.host_process()),
        ];
        found.into_iter().flatten().flatten().collect()
    }
}

/// What to warn of where a namespace enforces more than before: pods in it that violate that.
pub fn namespace_warnings(old: &Value, new: &Value, pods: &[Arc<Object>]) -> Vec<String> {
    let (before, policy) = (Policy::of(old, "enforce"), Policy::of(new, "enforce"));
    if !policy.is_tighter_than(&before) {
        return Vec::new();
    }
    let pods = one_per_controller_first(pods);
    let end = Instant::now() + PATIENCE;
    // the first pod by what it violates, and how many there are
    let mut found: BTreeMap<String, (&str, usize)> = BTreeMap::new();
    let mut checked = 0;
    for pod in pods.iter().take(MOST_PODS) {
        checked += 1;
        let reasons = policy.reasons(&pod.to_value());
        if !reasons.is_empty() {
            found.entry(reasons).or_insert((pod.name(), 0)).1 += 1;
        }
        if Instant::now() >= end {
            break;
        }
    }
    let mut warnings = Vec::new();
    if checked < pods.len() {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {checked} of {} existing pods",
            pods.len()
        ));
    }
    if !found.is_empty() {
        warnings.push(format!(
            "existing pods in namespace {} violate the new PodSecurity enforce level {}",
            quote(new["metadata"]["name"].as_str().unwrap_or_default()),
            quote(&policy.name())
        ));
    }
    let mut of_pods: Vec<String> = found
        .into_iter()
        .map(|(reasons, (pod, count))| match count {
            1 => format!("{pod}: {reasons}"),
            2 => format!("{pod} (and 1 other pod): {reasons}"),
            more => format!("{pod} (and {} other pods): {reasons}", more - 1),
        })
        .collect();
    of_pods.sort();
    warnings.append(&mut of_pods);
    warnings
}

/// Pods of one controller are alike: the first of each comes before all others.
fn one_per_controller_first(pods: &[Arc<Object>]) -> Vec<&Arc<Object>> {
    let mut seen = HashSet::new();
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for pod in pods {
        match controller_of(pod) {
            Some(uid) if !seen.insert(uid.clone()) => rest.push(pod),
            _ => first.push(pod),
        }
    }
    first.append(&mut rest);
    first
}

/// The uid of a pod's controller, read without the rest of the pod.
fn controller_of(pod: &Object) -> Option<String> {
    #[derive(Deserialize)]
    struct Owned {
        metadata: Owners,
    }
    #[derive(Deserialize)]
    struct Owners {
        #[serde(default, rename = "ownerReferences")]
        owners: Vec<Owner>,
    }
    #[derive(Deserialize)]
    struct Owner {
        #[serde(default)]
        controller: Option<bool>,
        uid: String,
    }
    let owned: Owned = serde_json::from_slice(pod.json()).ok()?;
    owned.metadata.owners.into_iter().find(|o| o.controller == Some(true)).map(|o| o.uid)
}

/// A violation as text, or none.
type Finding = Option<String>;

struct Pod<'a> {
    metadata: &'a Value,
    spec: &'a Value,
    minor: u32,
}

/// `container "a"`, `containers "a", "b"`.
fn named(what: &str, names: &[&str]) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("{what}{plural} {}", quoted(names))
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|n| quote(n)).collect::<Vec<_>>().join(", ")
}

fn unique<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut list: Vec<&str> = values.collect();
    list.sort_unstable();
    list.dedup();
    list
}

const DEFAULT_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Sysctls that touch nothing but the pod, with the minor version since which they count as such.
const SAFE_SYSCTLS: &[(&str, u32)] = &[
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

const PLAIN_VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

impl<'a> Pod<'a> {
    /// All containers; init containers come first.
    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |list| spec[list].as_array().into_iter().flatten())
    }

    /// Names of the containers for which `bad` holds.
    fn which(&self, bad: impl Fn(&Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|c| bad(c)).filter_map(|c| c["name"].as_str()).collect()
    }

    fn is_windows(&self) -> bool {
        self.minor >= 25 && self.spec["os"]["name"] == "windows"
    }

    /// Whether the pod's root is nobody outside.
    fn has_own_users(&self) -> bool {
        self.spec["hostUsers"] == false
    }

    /// `pod`, `container "a"`, `pod and container "a"`: who sets a bad value.
    fn setters(&self, field: &str, bad: impl Fn(&Value) -> bool) -> Option<String> {
        let mut who = Vec::new();
        if bad(&self.spec["securityContext"][field]) {
            who.push("pod".to_owned());
        }
        let containers = self.which(|c| bad(&c["securityContext"][field]));
        if !containers.is_empty() {
            who.push(named("container", &containers));
        }
        (!who.is_empty()).then(|| who.join(" and "))
    }

    fn privilege_escalation(&self) -> Finding {
        let bad = self.which(|c| c["securityContext"]["allowPrivilegeEscalation"] != false);
        (!bad.is_empty() && !self.is_windows()).then(|| {
            format!(
                "allowPrivilegeEscalation != false ({} must set securityContext.allowPrivilegeEscalation=false)",
                named("container", &bad)
            )
        })
    }

    fn app_armor(&self) -> Finding {
        let mut found = Vec::new();
        if let Some(who) = self.setters("appArmorProfile", |p| p["type"] == "Unconfined") {
            found.push(format!("{who} must not set securityContext.appArmorProfile.type to \"Unconfined\""));
        }
        let annotations: Vec<String> = self.metadata["annotations"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| key.starts_with("container.apparmor.security.beta.kubernetes.io/"))
            .filter_map(|(key, value)| Some((key, value.as_str()?)))
            .filter(|(_, v)| !v.is_empty() && *v != "runtime/default" && !v.starts_with("localhost/"))
            .map(|(key, value)| format!("{key}={}", quote(value)))
            .collect();
        if !annotations.is_empty() {
            let s = if annotations.len() == 1 { "" } else { "s" };
            found.push(format!("annotation{s} {}", annotations.join(", ")));
        }
        let s = if found.len() == 1 && annotations.len() < 2 { "" } else { "s" };
        (!found.is_empty()).then(|| format!("forbidden AppArmor profile{s} ({})", found.join("; ")))
    }

    fn added(&self, allowed: &[&str]) -> (Vec<&'a str>, Vec<&'a str>) {
        let beyond = |c: &'a Value| {
            let list = c["securityContext"]["capabilities"]["add"].as_array().into_iter().flatten();
            list.filter_map(Value::as_str).filter(|cap| !allowed.contains(cap)).collect::<Vec<_>>()
        };
        let guilty: Vec<&Value> = self.containers().filter(|c| !beyond(c).is_empty()).collect();
        let names = guilty.iter().filter_map(|c| c["name"].as_str()).collect();
        (names, unique(guilty.iter().flat_map(|c| beyond(c))))
    }

    fn capabilities(&self) -> Finding {
        let (names, added) = self.added(DEFAULT_CAPABILITIES);
        (!names.is_empty()).then(|| {
            format!(
                "non-default capabilities ({} must not include {} in securityContext.capabilities.add)",
                named("container", &names),
                quoted(&added)
            )
        })
    }

    fn restricted_capabilities(&self) -> Finding {
        if self.is_windows() {
            return None;
        }
        let keeps = self.which(|c| {
            let dropped = c["securityContext"]["capabilities"]["drop"].as_array();
            !dropped.is_some_and(|l| l.iter().any(|cap| cap == "ALL"))
        });
        let (names, added) = self.added(&["NET_BIND_SERVICE"]);
        let mut found = Vec::new();
        if !keeps.is_empty() {
            found.push(format!(
                "{} must set securityContext.capabilities.drop=[\"ALL\"]",
                named("container", &keeps)
            ));
        }
        if !names.is_empty() {
            found.push(format!(
                "{} must not include {} in securityContext.capabilities.add",
                named("container", &names),
                quoted(&added)
            ));
        }
        (!found.is_empty()).then(|| format!("unrestricted capabilities ({})", found.join("; ")))
    }

    fn host_namespaces(&self) -> Finding {
        let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
            .iter()
            .filter(|key| self.spec[**key] == true)
            .map(|key| format!("{key}=true"))
            .collect();
        (!set.is_empty()).then(|| format!("host namespaces ({})", set.join(", ")))
    }

    fn volumes(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.spec["volumes"].as_array().into_iter().flatten()
    }

    fn host_paths(&self) -> Finding {
        let names: Vec<&str> =
            self.volumes().filter(|v| v["hostPath"].is_object()).filter_map(|v| v["name"].as_str()).collect();
        (!names.is_empty()).then(|| format!("hostPath volumes ({})", named("volume", &names)))
    }

    fn host_ports(&self) -> Finding {
        let ports_of = |c: &Value| -> Vec<i64> {
            let ports = c["ports"].as_array().into_iter().flatten();
            ports.filter_map(|p| p["hostPort"].as_i64()).filter(|p| *p != 0).collect()
        };
        let names = self.which(|c| !ports_of(c).is_empty());
        let mut ports: Vec<i64> = self.containers().flat_map(ports_of).collect();
        ports.sort_unstable();
        ports.dedup();
        (!names.is_empty()).then(|| {
            let verb = if names.len() == 1 { "uses" } else { "use" };
            let s = if ports.len() == 1 { "" } else { "s" };
            let ports: Vec<String> = ports.iter().map(i64::to_string).collect();
            format!("hostPort ({} {verb} hostPort{s} {})", named("container", &names), ports.join(", "))
        })
    }

    fn probe_hosts(&self) -> Finding {
        let hosts_of = |c: &'a Value| -> Vec<&'a str> {
            let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|p| &c[p]);
            let hooks = ["postStart", "preStop"].map(|h| &c["lifecycle"][h]);
            let handlers = probes.into_iter().chain(hooks);
            handlers
                .flat_map(|h| [&h["httpGet"]["host"], &h["tcpSocket"]["host"]])
                .filter_map(Value::as_str)
                .filter(|host| !host.is_empty() && !matches!(*host, "127.0.0.1" | "::1"))
                .collect()
        };
        let guilty: Vec<&Value> = self.containers().filter(|c| !hosts_of(c).is_empty()).collect();
        let names: Vec<&str> = guilty.iter().filter_map(|c| c["name"].as_str()).collect();
        let hosts = unique(guilty.iter().flat_map(|c| hosts_of(c)));
        (!names.is_empty()).then(|| {
            let verb = if names.len() == 1 { "uses" } else { "use" };
            format!(
                "probe or lifecycle host ({} {verb} probe or lifecycle {})",
                named("container", &names),
                named("host", &hosts)
            )
        })
    }

    fn privileged(&self) -> Finding {
        let names = self.which(|c| c["securityContext"]["privileged"] == true);
        (!names.is_empty()).then(|| {
            format!(
                "privileged ({} must not set securityContext.privileged=true)",
                named("container", &names)
            )
        })
    }

    fn proc_mount(&self) -> Finding {
        let mount = |c: &Value| c["securityContext"]["procMount"].as_str().unwrap_or("Default").to_owned();
        let names = self.which(|c| mount(c) != "Default");
        let is_harmless = self.has_own_users() && self.minor >= 30;
        (!names.is_empty() && !is_harmless).then(|| {
            format!(
                "procMount ({} must not set securityContext.procMount to \"Unmasked\")",
                named("container", &names)
            )
        })
    }

    fn volume_types(&self) -> Finding {
        let source = |v: &'a Value| -> Option<&'a str> {
            let sources = v.as_object()?.iter().filter(|(key, value)| *key != "name" && !value.is_null());
            sources.map(|(key, _)| key.as_str()).find(|key| !PLAIN_VOLUMES.contains(key))
        };
        let names: Vec<&str> =
            self.volumes().filter(|v| source(v).is_some()).filter_map(|v| v["name"].as_str()).collect();
        let kinds = unique(self.volumes().filter_map(source));
        (!names.is_empty()).then(|| {
            let verb = if names.len() == 1 { "uses" } else { "use" };
            format!(
                "restricted volume types ({} {verb} {})",
                named("volume", &names),
                named("restricted volume type", &kinds)
            )
        })
    }

    fn non_root(&self) -> Finding {
        if self.has_own_users() {
            return None;
        }
        let why = if let Some(who) = self.setters("runAsNonRoot", |v| *v == false) {
            format!("{who} must not set securityContext.runAsNonRoot=false")
        } else if self.spec["securityContext"]["runAsNonRoot"] == true {
            return None;
        } else {
            let open = self.which(|c| c["securityContext"]["runAsNonRoot"] != true);
            if open.is_empty() {
                return None;
            }
            format!("pod or {} must set securityContext.runAsNonRoot=true", named("container", &open))
        };
        Some(format!("runAsNonRoot != true ({why})"))
    }

    fn user(&self) -> Finding {
        let who = self.setters("runAsUser", |v| v.as_i64() == Some(0))?;
        (!self.has_own_users()).then(|| format!("runAsUser=0 ({who} must not set runAsUser=0)"))
    }

    fn se_linux(&self) -> Finding {
        const TYPES: &[&str] =
            &["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
        fn text<'v>(options: &'v Value, key: &str) -> &'v str {
            options[key].as_str().unwrap_or_default()
        }
        let bad_type = |o: &Value| !TYPES.contains(&text(o, "type"));
        let bad = |o: &Value| bad_type(o) || !text(o, "user").is_empty() || !text(o, "role").is_empty();
        let who = self.setters("seLinuxOptions", bad)?;
        let all: Vec<&Value> = std::iter::once(self.spec)
            .map(|s| &s["securityContext"]["seLinuxOptions"])
            .chain(self.containers().map(|c| &c["securityContext"]["seLinuxOptions"]))
            .collect();
        let mut data = Vec::new();
        let types = unique(all.iter().filter(|o| bad_type(o)).map(|o| text(o, "type")));
        if !types.is_empty() {
            data.push(named("type", &types));
        }
        for key in ["user", "role"] {
            if all.iter().any(|o| !text(o, key).is_empty()) {
                data.push(format!("{key} may not be set"));
            }
        }
        Some(format!(
            "seLinuxOptions ({who} set forbidden securityContext.seLinuxOptions: {})",
            data.join("; ")
        ))
    }

    fn seccomp(&self) -> Finding {
        let who = self.setters("seccompProfile", |p| p["type"] == "Unconfined")?;
        Some(format!(
            "seccompProfile ({who} must not set securityContext.seccompProfile.type to \"Unconfined\")"
        ))
    }

    fn restricted_seccomp(&self) -> Finding {
        if self.is_windows() {
            return None;
        }
        if let Some(finding) = self.seccomp() {
            return Some(finding);
        }
        let good = |p: &Value| matches!(p["type"].as_str(), Some("RuntimeDefault" | "Localhost"));
        if good(&self.spec["securityContext"]["seccompProfile"]) {
            return None;
        }
        let open = self.which(|c| !good(&c["securityContext"]["seccompProfile"]));
        (!open.is_empty()).then(|| {
            format!(
                "seccompProfile (pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
                named("container", &open)
            )
        })
    }

    fn sysctls(&self) -> Finding {
        let safe = |name: &str| SAFE_SYSCTLS.iter().any(|(n, since)| *n == name && self.minor >= *since);
        let list = self.spec["securityContext"]["sysctls"].as_array().into_iter().flatten();
        let bad: Vec<&str> = list.filter_map(|s| s["name"].as_str()).filter(|name| !safe(name)).collect();
        (!bad.is_empty()).then(|| format!("forbidden sysctls ({})", bad.join(", ")))
    }

    fn host_process(&self) -> Finding {
        let who = self.setters("windowsOptions", |o| o["hostProcess"] == true)?;
        Some(format!("hostProcess ({who} must not set securityContext.windowsOptions.hostProcess=true)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(level: &str, spec: Value) -> String {
        let namespace = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
        Policy::of(&namespace, "enforce").violations(&json!({}), &spec)
    }

    #[test]
    fn a_plain_pod_is_baseline_and_not_restricted() {
        let pod = json!({"containers": [{"name": "a"}]});
        assert_eq!(check("privileged", pod.clone()), "");
        assert_eq!(check("baseline", pod.clone()), "");
        assert!(check("restricted", pod.clone()).contains("runAsNonRoot"));
        assert_eq!(check("nonsense", pod.clone()), check("restricted", pod));
    }

    #[test]
    fn every_way_to_the_host_is_found() {
        let bad = [
            json!({"hostNetwork": true}),
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
            json!({"containers": [{"name": "a", "ports": [{"hostPort": 1}]}]}),
            json!({"containers": [{"name": "a", "securityContext": {"privileged": true}}]}),
            json!({"ephemeralContainers": [{"name": "a", "securityContext": {"privileged": true}}]}),
            json!({"initContainers": [{"name": "a", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]}),
            json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "10.0.0.1"}}}]}),
            json!({"containers": [{"name": "a", "securityContext": {"procMount": "Unmasked"}}]}),
            json!({"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}),
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}),
            json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
            json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
        ];
        for spec in bad {
            assert_ne!(check("baseline", spec.clone()), "", "{spec}");
        }
    }

    #[test]
    fn a_hardened_pod_is_restricted() {
        let pod = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}],
            "volumes": [{"name": "v", "emptyDir": {}}]});
        assert_eq!(check("restricted", pod), "");
    }
}
