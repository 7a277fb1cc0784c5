//! Where a pod's programs look names up: its `/etc/resolv.conf`.
//!
//! Rule: Kubernetes documentation, "DNS for Services and Pods"; what exceeds the limits that resolvers have is left out,
//! as every kubelet does.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

use crate::cri_config::NodeSettings;

/// Most name servers.
const SERVERS: usize = 3;
/// Most search domains, and most characters of all of them and of each.
const SEARCHES: usize = 32;
const SEARCH_LINE: usize = 2048;
const SEARCH: usize = 253;

/// The resolver configuration of a pod, and what had to be left out, in words for an Event; `host` is the node's own.
pub fn of(pod: &Pod, settings: &NodeSettings, host: &DnsConfig) -> (DnsConfig, Vec<String>) {
    let spec = pod.spec.as_ref();
    let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let on_host = spec.and_then(|s| s.host_network) == Some(true);
    let mut config = match policy {
        "None" => DnsConfig::default(),
        "ClusterFirstWithHostNet" => of_cluster(ns, settings, host),
        "ClusterFirst" if !on_host => of_cluster(ns, settings, host),
        _ if !settings.no_resolver.is_empty() => {
            let (servers, searches) = (settings.no_resolver.clone(), vec![".".to_owned()]);
            DnsConfig { servers, searches, options: Vec::new() }
        }
        _ => host.clone(),
    };
    if let Some(more) = spec.and_then(|s| s.dns_config.as_ref()) {
        add(&mut config.servers, more.nameservers.iter().flatten());
        add(&mut config.searches, more.searches.iter().flatten());
        for option in more.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            config.options.retain(|o| o.split(':').next() != Some(name));
            config.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_owned(),
            });
        }
    }
    let omitted = fit(&mut config);
    (config, omitted)
}

/// Adds what is not there yet.
fn add<'a>(to: &mut Vec<String>, more: impl Iterator<Item = &'a String>) {
    for item in more {
        if !to.contains(item) {
            to.push(item.clone());
        }
    }
}

fn of_cluster(ns: &str, settings: &NodeSettings, host: &DnsConfig) -> DnsConfig {
    let domain = &settings.cluster_domain;
    let mut searches = vec![format!("{ns}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    // names of the node's own network stay short
    add(&mut searches, host.searches.iter());
    DnsConfig { servers: settings.cluster_dns.clone(), searches, options: vec!["ndots:5".to_owned()] }
}

/// Leaves out what resolvers would not read, and says so.
fn fit(config: &mut DnsConfig) -> Vec<String> {
    let mut omitted = Vec::new();
    if config.servers.len() > SERVERS {
        config.servers.truncate(SERVERS);
        omitted.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            config.servers.join(" ")
        ));
    }
    let before = config.searches.len();
    config.searches.truncate(SEARCHES);
    config.searches.retain(|search| search.len() <= SEARCH);
    while config.searches.join(" ").len() > SEARCH_LINE {
        config.searches.pop();
    }
    if config.searches.len() < before {
        omitted.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            config.searches.join(" ")
        ));
    }
    omitted
}

/// A file as resolv.conf(5) describes it.
fn parse(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            Some("search") => {
                let named = words.filter(|search| *search != ".");
                config.searches = named.map(|search| search.trim_end_matches('.').to_owned()).collect();
            }
            Some("options") => config.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    config
}

/// The node's resolver configuration; empty where there is no file.
pub fn of_node(file: &Path) -> DnsConfig {
    parse(&std::fs::read_to_string(file).unwrap_or_default())
}

/// Whom pods ask that use the node's resolvers, where `setting` (`resolvConf`) is empty, so that it has none: nobody but themselves, in
/// each family of the node's addresses. Without servers, runtimes would give them the node's file.
pub fn nobody(setting: Option<&Path>, node: &[IpAddr]) -> Vec<String> {
    let none = setting.is_some_and(|file| file.as_os_str().is_empty());
    let own = |ip: &IpAddr| if ip.is_ipv6() { "::1" } else { "127.0.0.1" }.to_owned();
    node.iter().filter(|_| none).map(own).collect()
}

/// The files of the node, by default: systemd's resolver keeps the servers that it asks in the second one.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The node's file: the one that `setting` (`resolvConf`) names, else the usual one. Where that names nobody but the node
/// itself, whom a pod does not reach by that address, it is that of systemd's resolver, as kubeadm sets it.
pub fn file(setting: Option<&Path>) -> PathBuf {
    choose(setting, FILES.map(Path::new))
}

fn choose(setting: Option<&Path>, [usual, systemd]: [&Path; 2]) -> PathBuf {
    if let Some(file) = setting {
        return file.to_owned();
    }
    let here = |server: &String| server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let servers = of_node(usual).servers;
    let only_here = !servers.is_empty() && servers.iter().all(here);
    if only_here && systemd.exists() { systemd.to_owned() } else { usual.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settings() -> NodeSettings {
        NodeSettings {
            cluster_dns: vec!["10.96.0.10".to_owned()],
            cluster_domain: "cluster.local".to_owned(),
            ..NodeSettings::default()
        }
    }

    fn check(spec: Value, expected: &str) {
        let mut whole = json!({"containers": []});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"namespace": "d"}, "spec": whole})).unwrap();
        let host = parse("nameserver 192.0.2.1\nsearch . lan. corp\noptions rotate\n");
        let (found, omitted) = of(&pod, &settings(), &host);
        let text = [found.servers, found.searches, found.options].map(|part| part.join(" ")).join("; ");
        assert_eq!((text.as_str(), omitted.len()), (expected, 0));
    }

    #[test]
    fn the_policy_says_who_is_asked() {
        let cluster = "10.96.0.10; d.svc.cluster.local svc.cluster.local cluster.local lan corp; ndots:5";
        let node = "192.0.2.1; lan corp; rotate";
        check(json!({}), cluster);
        check(json!({"hostNetwork": true}), node);
        check(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), cluster);
        check(json!({"dnsPolicy": "Default"}), node);
        let own = json!({"nameservers": ["192.0.2.9"], "searches": ["corp", "own"],
            "options": [{"name": "rotate"}, {"name": "ndots", "value": "2"}]});
        check(json!({"dnsPolicy": "None", "dnsConfig": own}), "192.0.2.9; corp own; rotate ndots:2");
        check(
            json!({"dnsPolicy": "Default", "dnsConfig": own}),
            "192.0.2.1 192.0.2.9; lan corp own; rotate ndots:2",
        );
    }

    #[test]
    fn an_empty_setting_leaves_pods_that_use_the_nodes_resolvers_none() {
        let node = ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        assert!(nobody(None, &node).is_empty() && nobody(Some(Path::new("/x")), &node).is_empty());
        let settings = NodeSettings { no_resolver: nobody(Some(Path::new("")), &node), ..settings() };
        let found = |policy: &str| {
            let pod =
                json!({"metadata": {"namespace": "d"}, "spec": {"dnsPolicy": policy, "containers": []}});
            of(&serde_json::from_value(pod).unwrap(), &settings, &of_node(Path::new(""))).0
        };
        let plain = found("Default");
        assert_eq!(
            (plain.servers.join(" "), plain.searches.join(" ")),
            ("127.0.0.1 ::1".to_owned(), ".".to_owned())
        );
        assert_eq!(found("ClusterFirst").servers, ["10.96.0.10"]);
        assert_eq!(found("None"), DnsConfig::default());
    }

    #[test]
    fn what_resolvers_would_not_read_is_left_out_and_told() {
        let mut config = DnsConfig {
            servers: ["1", "2", "3", "4"].map(str::to_owned).into(),
            searches: (0..40).map(|n| format!("{n}{}", "x".repeat(98))).collect(),
            options: Vec::new(),
        };
        config.searches.insert(0, "y".repeat(254));
        let omitted = fit(&mut config);
        assert!(omitted[0].ends_with("the applied nameserver line is: 1 2 3"), "{omitted:?}");
        assert!(
            omitted[1].starts_with("Search Line limits were exceeded, some search paths have been omitted")
        );
        assert_eq!((config.searches.len(), &config.searches[0][..2]), (20, "0x"));
    }

    #[test]
    fn a_file_that_names_only_the_node_itself_is_of_no_use_to_pods() {
        let folder = tempfile::tempdir().unwrap();
        let (usual, systemd) = (folder.path().join("usual"), folder.path().join("systemd"));
        let check = |text: &str, expected: &Path| {
            std::fs::write(&usual, text).unwrap();
            assert_eq!(choose(None, [&usual, &systemd]), expected, "{text}");
        };
        check("nameserver 127.0.0.53", &usual);
        std::fs::write(&systemd, "nameserver 192.0.2.1").unwrap();
        check("nameserver 127.0.0.53", &systemd);
        check("nameserver 127.0.0.53\nnameserver 192.0.2.1", &usual);
        check("", &usual);
        assert_eq!(choose(Some(Path::new("/x")), [&usual, &systemd]), Path::new("/x"));
    }
}
