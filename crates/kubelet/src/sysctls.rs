//! Which sysctls pods may set: those that touch nobody else, and those that the node's owner allowed.
//!
//! Rule: Kubernetes documentation, "Using sysctls in a Kubernetes Cluster".

use k8s_openapi::api::core::v1::Pod;

/// Those that are allowed on every node, of a pod's network or of its inter-process communication.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// The namespace that keeps it apart; `None`: none does.
fn namespace(name: &str) -> Option<&'static str> {
    let of_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if name.starts_with("net.") {
        Some("Net")
    } else if name == "kernel.sem" || of_ipc.iter().any(|begin| name.starts_with(begin)) {
        Some("IPC")
    } else {
        None
    }
}

/// Dots between the parts, also where the author wrote slashes.
fn normal(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => {
            let swap = |c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            };
            name.chars().map(swap).collect()
        }
        _ => name.to_owned(),
    }
}

/// Whether the node's owner may allow these.
pub fn check(allowed: &[String]) -> Result<(), String> {
    match allowed.iter().find(|name| namespace(&normal(name)).is_none()) {
        Some(name) => Err(format!("the sysctls {name:?} are not known to be namespaced")),
        None => Ok(()),
    }
}

/// Why the pod must not set what it sets.
pub fn forbidden(pod: &Pod, allowed: &[String]) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let shared = |namespace: &str| match namespace {
        "Net" => spec.host_network == Some(true),
        _ => spec.host_ipc == Some(true),
    };
    let is = |name: &str, pattern: &str| match pattern.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => name == pattern,
    };
    spec.security_context.as_ref()?.sysctls.iter().flatten().find_map(|sysctl| {
        let name = normal(&sysctl.name);
        let known =
            SAFE.contains(&name.as_str()) || allowed.iter().any(|pattern| is(&name, &normal(pattern)));
        match namespace(&name).filter(|_| known) {
            None => Some(format!("forbidden sysctl: {name:?} not allowlisted")),
            Some(namespace) if shared(namespace) => {
                Some(format!("forbidden sysctl: {name:?} not allowed with host {namespace} enabled"))
            }
            Some(_) => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_sets_what_is_safe_or_allowed_and_its_own() {
        let check = |name: &str, more: Value, allowed: &[&str], expected: Option<&str>| {
            let mut spec =
                json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            let allowed: Vec<String> = allowed.iter().map(|&name| name.to_owned()).collect();
            assert_eq!(forbidden(&pod, &allowed).as_deref(), expected, "{name}");
        };
        let unknown = Some("forbidden sysctl: \"net.core.somaxconn\" not allowlisted");
        check("net.ipv4.tcp_syncookies", json!({}), &[], None);
        check("net/ipv4/tcp_syncookies", json!({}), &[], None);
        check("net.core.somaxconn", json!({}), &[], unknown);
        check("net.core.somaxconn", json!({}), &["net.core.*"], None);
        check("net.core.somaxconn", json!({}), &["net.core.somaxconn"], None);
        let shared = "forbidden sysctl: \"net.core.somaxconn\" not allowed with host Net enabled";
        check("net.core.somaxconn", json!({"hostNetwork": true}), &["net.core.*"], Some(shared));
        let shared = "forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host IPC enabled";
        check("kernel.shm_rmid_forced", json!({"hostIPC": true}), &[], Some(shared));
        check("vm.swappiness", json!({}), &[], Some("forbidden sysctl: \"vm.swappiness\" not allowlisted"));
        assert!(super::check(&["kernel.msg*".to_owned(), "net.*".to_owned()]).is_ok());
        assert!(super::check(&["vm.*".to_owned()]).is_err());
    }
}
