//! The same binary and tests on another kernel: pure cgroup v2 with AppArmor, WireGuard and IPVS.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use testkit::vm::Vm;
use testkit::{Machine, NetNs, eventually_within, run, tools};

use crate::NAVARCH;
use crate::network::EVERYWHERE;

/// What is run in one guest each, beginnings of names. Users of pods' own (`user_namespaces::`) need a newer kernel than this one.
const TOPICS: &[&str] = &[
    "adoption::",
    "cni::",
    "commands::",
    "devices::",
    "dra::",
    "dual_stack::",
    "faults::",
    "images::",
    "kills::",
    "names::",
    "network::",
    "node::",
    "pods::confined::namespaces pods::given::a_pod_has pods::given::variables pods::watched::resources",
    "pods::life::a_debugger pods::life::containers pods::life::ends",
    "processors::",
    "rollout::",
    "runtimes::",
    "streams::",
    "volumes::",
    "wireguard::",
    "workloads::",
];

/// All that concerns nodes, each topic in a guest of its own; `make test-vm` runs it. `NAVARCH_TEST_TOPICS=node::,cni::` names
/// some of them.
#[test]
#[ignore = "takes long under emulation"]
fn all_tests_of_nodes_pass_on_cgroup_v2_with_apparmor() {
    let wanted = std::env::var("NAVARCH_TEST_TOPICS").unwrap_or_default();
    let topics = match wanted.as_str() {
        "" => TOPICS.to_vec(),
        some => some.split(',').collect(),
    };
    // the others are to be seen too when one fails
    let failed: Vec<&str> = topics
        .into_iter()
        .filter(|topic| {
            println!("{topic}");
            let vm = Vm { limit: Duration::from_secs(1800), show: true, ..Vm::default() };
            std::panic::catch_unwind(|| vm.test(&topic.split(' ').collect::<Vec<_>>(), &[])).is_err()
        })
        .collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// Policies, services, load balancers and `reset` are the same where IPVS balances; `make test-vm` runs it.
#[test]
#[ignore = "takes long under emulation"]
fn the_network_is_the_same_with_ipvs() {
    let modules = &["ip_vs", "ip_vs_rr", "ip_vs_sh"];
    let vm = Vm { limit: Duration::from_secs(1800), modules, show: true, ..Vm::default() };
    vm.test(&["ipvs::"], &[]);
    let environment = &[("NAVARCH_TEST_ARGUMENTS", "--proxy-mode ipvs")];
    // three nodes are enough for a guest
    for topic in ["network::load", "network::policies", "network::agents", "network::pods", "dual_stack::"] {
        println!("{topic}");
        Vm { environment, ..vm.clone() }.test(&[topic], &[]);
    }
}

/// Machines are emulated, all on the same two processors.
const PATIENCE: Duration = Duration::from_secs(600);

/// A server and two agents, each on a kernel of its own without any other program; `make test-vm` runs it.
#[test]
#[ignore = "takes long under emulation"]
fn three_machines_with_nothing_but_the_binary_are_one_cluster() {
    let (host, begun) = (NetNs::new().unwrap(), Instant::now());
    let binary = Path::new(NAVARCH);
    let server = Machine::start(&host, 11, binary, "server --node-name node-1").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, BASE64_STANDARD.decode(server.said("kubeconfig")).unwrap()).unwrap();
    let token = server.said("token");
    println!("the server is up after {:?}", begun.elapsed());
    let agents = [2, 3].map(|n| {
        let arguments =
            format!("agent --node-name node-{n} --server https://192.0.2.11:6443 --token '{token}'");
        Machine::start(&host, 10 + n, binary, &arguments).unwrap()
    });
    let kubectl = |line: &str, input: Option<&Path>| {
        let mut command = Command::new(tools::folder(tools::NEW)?.join("kubectl"));
        command.args(["--server", "https://192.0.2.11:6443"]).args(line.split_whitespace());
        command.env("KUBECONFIG", &kubeconfig).env("HOME", folder.path()).stdin(Stdio::null());
        if let Some(input) = input {
            command.arg(input);
        }
        host.enter(&mut command);
        run(&mut command)
    };
    let said = |what: &str, line: &str, enough: &dyn Fn(&str) -> bool| {
        eventually_within(PATIENCE, what, || match kubectl(line, None) {
            Ok(text) if enough(&text) => Ok(text),
            Ok(text) => Err(text),
            Err(error) => Err(format!("{error:#}\n{}", agents[0].logs())),
        })
    };
    let nodes =
        said("three nodes are ready", "get nodes -o wide", &|text| text.matches(" Ready ").count() == 3);
    println!("{nodes}three nodes are ready after {:?}", begun.elapsed());
    for number in 11..=13 {
        assert!(nodes.contains(&format!("192.0.2.{number}")), "{nodes}");
    }
    assert_eq!(nodes.matches("-cloud-amd64").count(), 3, "{nodes}");

    let manifest = folder.path().join("web.yaml");
    std::fs::write(&manifest, EVERYWHERE).unwrap();
    kubectl("apply -f", Some(&manifest)).unwrap();
    let pods = said("a pod on each is ready", "get pods -l app=web -o wide --no-headers", &|text| {
        text.matches(" 1/1 ").count() == 3
    });
    println!("{pods}a pod on each is ready after {:?}", begun.elapsed());
    // name, address, node
    let pods: Vec<(&str, &str, &str)> = pods
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .map(|words| (words[0], words[5], words[6]))
        .collect();
    let get = |from: &str, to: &str| {
        kubectl(&format!("exec {from} -- timeout 60 wget -q -O - http://{to}/"), None)
            .map(|got| got.trim().to_owned())
    };
    for (from, ..) in &pods {
        for (_, ip, node) in &pods {
            assert_eq!(get(from, &format!("{ip}:8080")).unwrap(), *node, "from {from}");
        }
        let mut seen = BTreeSet::new();
        eventually_within(PATIENCE, &format!("{from} is served by every node, by name"), || {
            seen.insert(get(from, "web.default.svc.cluster.local").map_err(|error| error.to_string())?);
            seen.insert(get(from, "web").map_err(|error| error.to_string())?);
            if seen.len() == 3 { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    }
    println!("all reached each other after {:?}", begun.elapsed());
}
