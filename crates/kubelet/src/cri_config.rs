//! A pod in the CRI's words: sandbox and container configurations.
//!
//! Rule: the CRI specification; Kubernetes documentation, "Configure a Security Context", "DNS for Services and Pods".

mod mounts;

use std::collections::HashMap;
use std::path::PathBuf;

use cri::v1::{self, Int64Value};
use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext};

use crate::dns_config;
use crate::observed::{
    CONTAINER_NAME, FINGERPRINT, GRACE, POD_NAME, POD_NAMESPACE, POD_UID, RESTART_COUNT, TERMINATION_PATH,
    TERMINATION_POLICY,
};
use crate::plan::is_sidecar;
use crate::resources;
use crate::selinux;
pub use mounts::{devices, mounts, wants_recursive};

/// What every pod on this node shares.
#[derive(Debug, Clone, Default)]
pub struct NodeSettings {
    /// Folder of the pods' logs.
    pub logs: PathBuf,
    /// Cluster DNS servers.
    pub cluster_dns: Vec<String>,
    /// For example `cluster.local`.
    pub cluster_domain: String,
    /// Servers of pods that use the node's resolvers, where it is told to have none ([`crate::dns_config::nobody`]).
    pub no_resolver: Vec<String>,
    /// The cgroup above all pods.
    pub cgroup_parent: String,
    /// What the kernel's numbers depend on.
    pub numbers: resources::Node,
    /// Folder of the node's seccomp profiles.
    pub seccomp_profiles: PathBuf,
    /// Containers without a profile get the runtime's own.
    pub seccomp_default: bool,
}

fn meta(pod: &Pod) -> (&str, &str, &str) {
    let m = &pod.metadata;
    (
        m.namespace.as_deref().unwrap_or_default(),
        m.name.as_deref().unwrap_or_default(),
        m.uid.as_deref().unwrap_or_default(),
    )
}

/// `LOGS/NS_NAME_UID`.
pub fn log_dir(settings: &NodeSettings, pod: &Pod) -> PathBuf {
    let (ns, name, uid) = meta(pod);
    settings.logs.join(format!("{ns}_{name}_{uid}"))
}

/// The pod's own host name (`spec.hostnameOverride`, `spec.hostname`, else its name, at most 63 characters), and the
/// domain it is in; empty where it has none.
fn names(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let (ns, name, _) = meta(pod);
    let spec = pod.spec.as_ref();
    let given = |text: Option<&String>| text.filter(|text| !text.is_empty()).cloned();
    let short = |text: &str| {
        let text: String = text.chars().take(63).collect();
        text.trim_end_matches(['-', '.']).to_owned()
    };
    if let Some(own) = given(spec.and_then(|s| s.hostname_override.as_ref())) {
        return (short(&own), String::new());
    }
    let host = given(spec.and_then(|s| s.hostname.as_ref()));
    let subdomain = given(spec.and_then(|s| s.subdomain.as_ref()));
    let domain = subdomain.map(|subdomain| format!("{subdomain}.{ns}.svc.{cluster_domain}"));
    (short(host.as_deref().unwrap_or(name)), domain.unwrap_or_default())
}

/// Longest host name of a Linux kernel.
const KERNEL_NAME: usize = 64;

/// What the kernel in the pod says its name is; empty for a pod that has the node's. The error is the pod author's to mend.
pub fn kernel_name(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    if spec.and_then(|s| s.host_network) == Some(true) {
        return Ok(String::new());
    }
    let (host, domain) = names(pod, cluster_domain);
    if domain.is_empty() || spec.and_then(|s| s.set_hostname_as_fqdn) != Some(true) {
        return Ok(host);
    }
    let whole = format!("{host}.{domain}");
    if whole.len() > KERNEL_NAME {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {whole} is too long ({KERNEL_NAME} characters is the max, {} characters requested)",
            whole.len()
        ));
    }
    Ok(whole)
}

fn namespaces(pod: &Pod) -> v1::NamespaceOption {
    let spec = pod.spec.as_ref();
    let mode = |host: Option<bool>, own: v1::NamespaceMode| {
        if host == Some(true) { v1::NamespaceMode::Node } else { own }
    };
    let shared = spec.and_then(|s| s.share_process_namespace) == Some(true);
    let own_pid = if shared { v1::NamespaceMode::Pod } else { v1::NamespaceMode::Container };
    v1::NamespaceOption {
        network: mode(spec.and_then(|s| s.host_network), v1::NamespaceMode::Pod) as i32,
        pid: mode(spec.and_then(|s| s.host_pid), own_pid) as i32,
        ipc: mode(spec.and_then(|s| s.host_ipc), v1::NamespaceMode::Pod) as i32,
        ..v1::NamespaceOption::default()
    }
}

fn labels(pod: &Pod) -> HashMap<String, String> {
    let (ns, name, uid) = meta(pod);
    [(POD_NAME, name), (POD_NAMESPACE, ns), (POD_UID, uid)]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

fn seccomp(
    profile: Option<&k8s_openapi::api::core::v1::SeccompProfile>,
    privileged: bool,
    settings: &NodeSettings,
) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType;
    let (kind, reference) = match profile {
        Some(p) if p.type_ == "Localhost" => {
            let name = p.localhost_profile.as_deref().unwrap_or_default();
            (ProfileType::Localhost, settings.seccomp_profiles.join(name).to_string_lossy().into_owned())
        }
        Some(p) if p.type_ == "RuntimeDefault" && !privileged => (ProfileType::RuntimeDefault, String::new()),
        None if settings.seccomp_default && !privileged => (ProfileType::RuntimeDefault, String::new()),
        _ => (ProfileType::Unconfined, String::new()),
    };
    v1::SecurityProfile { profile_type: kind as i32, localhost_ref: reference }
}

/// The sandbox of a pod.
pub fn sandbox(
    pod: &Pod,
    attempt: u32,
    settings: &NodeSettings,
    host_dns: &v1::DnsConfig,
) -> v1::PodSandboxConfig {
    let (ns, name, uid) = meta(pod);
    let spec = pod.spec.as_ref();
    let context = spec.and_then(|s| s.security_context.as_ref());
    let mut all_labels: HashMap<String, String> =
        pod.metadata.labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    all_labels.extend(labels(pod));
    let main = || spec.iter().flat_map(|s| &s.containers);
    let init = || spec.iter().flat_map(|s| s.init_containers.iter().flatten());
    let ports = main().chain(init().filter(|c| is_sidecar(c))).flat_map(|c| c.ports.iter().flatten());
    let is_privileged = |c: &Container| c.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
    let privileged = main().chain(init()).any(is_privileged);
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.to_owned(),
            uid: uid.to_owned(),
            namespace: ns.to_owned(),
            attempt,
        }),
        // one that does not fit is refused before
        hostname: kernel_name(pod, &settings.cluster_domain).unwrap_or_default(),
        log_directory: log_dir(settings, pod).to_string_lossy().into_owned(),
        dns_config: Some(dns_config::of(pod, settings, host_dns).0),
        port_mappings: ports
            .filter(|p| p.host_port.is_some_and(|h| h > 0))
            .map(|p| v1::PortMapping {
                protocol: match p.protocol.as_deref() {
                    Some("UDP") => v1::Protocol::Udp as i32,
                    Some("SCTP") => v1::Protocol::Sctp as i32,
                    _ => v1::Protocol::Tcp as i32,
                },
                container_port: p.container_port,
                host_port: p.host_port.unwrap_or_default(),
                host_ip: p.host_ip.clone().unwrap_or_default(),
            })
            .collect(),
        labels: all_labels,
        annotations: pod.metadata.annotations.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: resources::cgroup_parent(&settings.cgroup_parent, pod),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(pod)),
                run_as_user: context.and_then(|c| c.run_as_user).map(|value| Int64Value { value }),
                run_as_group: context.and_then(|c| c.run_as_group).map(|value| Int64Value { value }),
                supplemental_groups: groups(pod),
                supplemental_groups_policy: groups_policy(pod),
                selinux_options: selinux::where_enabled(selinux::of_pod(pod)),
                privileged,
                seccomp: Some(v1::SecurityProfile {
                    profile_type: v1::security_profile::ProfileType::RuntimeDefault as i32,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            sysctls: context
                .and_then(|c| c.sysctls.as_ref())
                .into_iter()
                .flatten()
                .map(|s| (s.name.clone(), s.value.clone()))
                .collect(),
            overhead: spec
                .and_then(|s| s.overhead.as_ref())
                .map(|o| resources::overhead(o, &settings.numbers)),
            resources: Some(resources::sandbox(pod, &settings.numbers)),
        }),
        windows: None,
    }
}

fn groups(pod: &Pod) -> Vec<i64> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let mut groups: Vec<i64> = context.and_then(|c| c.supplemental_groups.clone()).unwrap_or_default();
    groups.extend(context.and_then(|c| c.fs_group));
    groups
}

fn app_armor(profile: &k8s_openapi::api::core::v1::AppArmorProfile) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType;
    let kind = match profile.type_.as_str() {
        "RuntimeDefault" => ProfileType::RuntimeDefault,
        "Localhost" => ProfileType::Localhost,
        _ => ProfileType::Unconfined,
    };
    let localhost_ref = profile.localhost_profile.clone().unwrap_or_default();
    v1::SecurityProfile { profile_type: kind as i32, localhost_ref }
}

/// Whether groups that the image's files name for the user count too.
fn groups_policy(pod: &Pod) -> i32 {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let strict = context.and_then(|c| c.supplemental_groups_policy.as_deref()) == Some("Strict");
    if strict {
        v1::SupplementalGroupsPolicy::Strict as i32
    } else {
        v1::SupplementalGroupsPolicy::Merge as i32
    }
}

/// What the kernel must not show a container, and what it must not let it write.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The parts of a container that the worker has found out.
pub struct Prepared {
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Mounts.
    pub mounts: Vec<v1::Mount>,
    /// Devices.
    pub devices: Vec<v1::Device>,
    /// The image's reference at the runtime.
    pub image: String,
    /// The image's user, by number or by name; root without either.
    pub user: (Option<i64>, String),
}

/// A container of a pod, its `attempt`th run.
pub fn container(
    pod: &Pod,
    spec: &Container,
    attempt: u32,
    prepared: Prepared,
    settings: &NodeSettings,
) -> v1::ContainerConfig {
    let Prepared { env, mounts, devices, image, user } = prepared;
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter()
            .flatten()
            .map(|t| crate::env::expand(t, |n| env.iter().find(|(k, _)| k == n).map(|(_, v)| v.clone())))
            .collect()
    };
    let (command, args) = (expand(&spec.command), expand(&spec.args));
    let mut all_labels = labels(pod);
    all_labels.insert(CONTAINER_NAME.to_owned(), spec.name.clone());
    let annotations = [
        (RESTART_COUNT, attempt.to_string()),
        (
            TERMINATION_PATH,
            spec.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".to_owned()),
        ),
        (TERMINATION_POLICY, spec.termination_message_policy.clone().unwrap_or_default()),
        (FINGERPRINT, crate::plan::fingerprint(spec)),
        (GRACE, crate::plan::grace(pod).to_string()),
    ];
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: spec.name.clone(), attempt }),
        image: Some(v1::ImageSpec {
            image,
            user_specified_image: spec.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command,
        args,
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        envs: env
            .iter()
            .map(|(key, value)| v1::KeyValue { key: key.clone(), value: value.clone() })
            .collect(),
        mounts,
        devices,
        labels: all_labels,
        annotations: annotations.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        log_path: format!("{}/{attempt}.log", spec.name),
        stdin: spec.stdin == Some(true),
        stdin_once: spec.stdin_once == Some(true),
        tty: spec.tty == Some(true),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources::linux(spec, pod, &settings.numbers)),
            security_context: Some(security(pod, spec.security_context.as_ref(), user, settings)),
        }),
        ..Default::default()
    }
}

fn security(
    pod: &Pod,
    own: Option<&SecurityContext>,
    user: (Option<i64>, String),
    settings: &NodeSettings,
) -> v1::LinuxContainerSecurityContext {
    let pods = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let privileged = own.and_then(|c| c.privileged) == Some(true);
    let int = |value: Option<i64>| value.map(|value| Int64Value { value });
    let given = own.and_then(|c| c.run_as_user).or_else(|| pods.and_then(|c| c.run_as_user));
    let (run_as_user, run_as_username) = match (given, user) {
        (Some(given), _) => (Some(given), String::new()),
        (None, (None, name)) if !name.is_empty() => (None, name),
        // runtimes refuse a group without a user
        (None, (uid, _)) => (Some(uid.unwrap_or(0)), String::new()),
    };
    let unmasked = privileged || own.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked");
    let list = |paths: &[&str]| -> Vec<String> {
        if unmasked { Vec::new() } else { paths.iter().map(|p| (*p).to_owned()).collect() }
    };
    let profile = own
        .and_then(|c| c.seccomp_profile.as_ref())
        .or_else(|| pods.and_then(|c| c.seccomp_profile.as_ref()));
    let apparmor = own
        .and_then(|c| c.app_armor_profile.as_ref())
        .or_else(|| pods.and_then(|c| c.app_armor_profile.as_ref()));
    v1::LinuxContainerSecurityContext {
        capabilities: own.and_then(|c| c.capabilities.as_ref()).map(|c| v1::Capability {
            add_capabilities: c.add.clone().unwrap_or_default(),
            drop_capabilities: c.drop.clone().unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: int(run_as_user),
        run_as_username,
        run_as_group: int(own.and_then(|c| c.run_as_group).or_else(|| pods.and_then(|c| c.run_as_group))),
        readonly_rootfs: own.and_then(|c| c.read_only_root_filesystem) == Some(true),
        supplemental_groups: groups(pod),
        no_new_privs: own.and_then(|c| c.allow_privilege_escalation) == Some(false),
        masked_paths: list(MASKED),
        readonly_paths: list(READONLY),
        seccomp: Some(seccomp(profile, privileged, settings)),
        apparmor: apparmor.map(app_armor),
        selinux_options: selinux::where_enabled(selinux::of_container(pod, own)),
        supplemental_groups_policy: groups_policy(pod),
        ..Default::default()
    }
}

/// What every pod's `/etc/hosts` begins with.
const HOSTS: &str = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";

/// `/etc/hosts` of a pod.
pub fn hosts_file(pod: &Pod, ips: &[String], cluster_domain: &str) -> String {
    let spec = pod.spec.as_ref();
    let on_host = spec.and_then(|s| s.host_network) == Some(true);
    let mut text = if on_host {
        let own = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        format!("# Kubernetes-managed hosts file (host network).\n{own}")
    } else {
        HOSTS.to_owned()
    };
    let (host, domain) = names(pod, cluster_domain);
    for ip in ips.iter().filter(|_| !on_host) {
        if domain.is_empty() {
            text.push_str(&format!("{ip}\t{host}\n"));
        } else {
            text.push_str(&format!("{ip}\t{host}.{domain}\t{host}\n"));
        }
    }
    let aliases = spec.and_then(|s| s.host_aliases.as_ref());
    if let Some(aliases) = aliases.filter(|a| !a.is_empty()) {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            text.push_str(&format!(
                "{}\t{}\n",
                alias.ip,
                alias.hostnames.clone().unwrap_or_default().join("\t")
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn a_pod_is_called_by_its_name_its_hostname_its_domain_or_as_it_says() {
        let check = |mut spec: Value, kernel: &str, hosts: &str| {
            spec["containers"] = json!([]);
            let pod = pod(spec);
            assert_eq!(kernel_name(&pod, "cluster.local").as_deref(), Ok(kernel));
            let file = hosts_file(&pod, &["10.0.0.7".to_owned()], "cluster.local");
            assert_eq!(file.lines().last(), Some(hosts));
        };
        check(json!({}), "web-0", "10.0.0.7\tweb-0");
        check(json!({"hostname": "db"}), "db", "10.0.0.7\tdb");
        let whole = "10.0.0.7\tdb.in.shop.svc.cluster.local\tdb";
        check(json!({"hostname": "db", "subdomain": "in"}), "db", whole);
        let fqdn = json!({"hostname": "db", "subdomain": "in", "setHostnameAsFQDN": true});
        check(fqdn, "db.in.shop.svc.cluster.local", whole);
        check(json!({"setHostnameAsFQDN": true}), "web-0", "10.0.0.7\tweb-0");
        let own = json!({"hostname": "db", "subdomain": "in", "hostnameOverride": "db.example.com"});
        check(own, "db.example.com", "10.0.0.7\tdb.example.com");
        let long = json!({"hostname": "d".repeat(50), "subdomain": "in", "setHostnameAsFQDN": true, "containers": []});
        let why = kernel_name(&pod(long), "cluster.local").unwrap_err();
        assert!(why.ends_with("is too long (64 characters is the max, 76 characters requested)"), "{why}");
        let on_host = json!({"hostNetwork": true, "containers": []});
        assert_eq!(kernel_name(&pod(on_host), "cluster.local").as_deref(), Ok(""));
    }
}
