//! Network policies between real pods, and nodes that join, by kubectl.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType,
};
use testkit::{Agent, Cluster, NetNs, cni_plugins, eventually, eventually_within};

use crate::{cluster, cluster_with, wait_ready};

const PODS: &str = "apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server, tier: net}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, 'mkdir /w; echo here > /w/index.html; exec httpd -f -p 8080 -h /w']
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: friend, labels: {app: friend, tier: net}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'busybox:test', command: [sleep, '3600']}]
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, labels: {app: stranger, tier: net}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'busybox:test', command: [sleep, '3600']}]
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: http}]}
";

const ALLOW_FRIEND: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: http}]}]
";

const DENY_EGRESS: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: stay}
spec: {podSelector: {matchLabels: {app: newcomer}}, policyTypes: [Egress]}
";

/// A pod that tries the server from its first moment on, and says what came of it.
const NEWCOMER: &str = "apiVersion: v1
kind: Pod
metadata: {name: newcomer, labels: {app: newcomer}}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, 'for i in 1 2 3; do timeout 1 wget -q -O - http://$SERVER:8080/ && exit 1; done; exit 0']
    env: [{name: SERVER, value: ADDRESS}]
";

fn reaches(cluster: &Cluster, from: &str, to: &str) -> bool {
    cluster.kubectl(&format!("exec {from} -- timeout 1 wget -q -O - http://{to}/")).is_ok()
}

#[track_caller]
fn becomes(cluster: &Cluster, from: &str, to: &str, open: bool) {
    eventually(&format!("{from} {} {to}", if open { "reaches" } else { "no longer reaches" }), || {
        if reaches(cluster, from, to) == open { Ok(()) } else { Err(String::new()) }
    });
}

#[test]
fn policies_close_and_open_pods_and_hold_while_the_server_is_away() {
    let mut cluster = cluster();
    cluster.apply(PODS).unwrap();
    let pods = wait_ready(&cluster, "tier=net", 3);
    let server = pods.iter().find(|p| p["metadata"]["name"] == "server").unwrap();
    let address = server["status"]["podIP"].as_str().unwrap().to_owned();
    let direct = format!("{address}:8080");
    becomes(&cluster, "stranger", "server", true);

    cluster.apply(ALLOW_FRIEND).unwrap();
    becomes(&cluster, "stranger", "server", false);
    for to in [direct.as_str(), "server"] {
        assert!(reaches(&cluster, "friend", to), "{to}");
        assert!(!reaches(&cluster, "stranger", to), "{to}");
    }
    let counted = cluster.navarch("policies").unwrap();
    assert!(counted.contains("default/friends Ingress 0"), "{counted}");
    assert!(counted.contains("default/server Ingress denied"), "{counted}");

    // closed from the first packet on
    cluster.kubectl("delete networkpolicy friends").unwrap();
    cluster.apply(DENY_EGRESS).unwrap();
    cluster.apply(&NEWCOMER.replace("ADDRESS", &address)).unwrap();
    eventually("the newcomer has tried", || {
        let pod = cluster.get("pod newcomer").map_err(|e| e.to_string())?;
        match pod["status"]["phase"].as_str() {
            Some("Succeeded") => Ok(()),
            Some("Failed") => panic!("it got through"),
            phase => Err(format!("{phase:?}")),
        }
    });

    cluster.apply(ALLOW_FRIEND).unwrap();
    becomes(&cluster, "stranger", "server", false);
    cluster.kill_server().unwrap();
    let target = direct.parse().unwrap();
    // the node itself still reaches the pod, so the pod runs
    cluster.http_get(target, "/").unwrap();
    cluster.start_server().unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        assert!(!reaches(&cluster, "stranger", &direct), "open while the server came back");
    }
    becomes(&cluster, "friend", &direct, true);
}

/// A server and what it answers with, on every node.
pub const EVERYWHERE: &str = "apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}]
      containers:
      - name: main
        image: busybox:test
        command: [sh, -c, 'mkdir /w; echo $NODE > /w/index.html; exec httpd -f -p 8080 -h /w']
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

#[test]
fn agents_join_by_token_and_their_pods_and_services_are_one_network() {
    let cluster = cluster();
    let mut agents: Vec<Agent> = (2..=3).map(|n| Agent::join(&cluster, n).unwrap()).collect();
    eventually("three nodes are ready", || {
        let nodes = cluster.kubectl("get nodes").map_err(|e| e.to_string())?;
        if nodes.matches(" Ready ").count() == 3 { Ok(()) } else { Err(nodes) }
    });
    let archive = testkit::image::busybox().unwrap();
    agents.iter().for_each(|agent| drop(agent.import(&archive).unwrap()));
    cluster.apply(EVERYWHERE).unwrap();
    let pods = wait_ready(&cluster, "app=web", 3);
    let text =
        |pod: &serde_json::Value, pointer: &str| pod.pointer(pointer).unwrap().as_str().unwrap().to_owned();
    let places: Vec<(String, String, String)> = pods
        .iter()
        .map(|p| (text(p, "/metadata/name"), text(p, "/spec/nodeName"), text(p, "/status/podIP")))
        .collect();
    let get = |from: &str, to: &str| {
        cluster.kubectl(&format!("exec {from} -- timeout 3 wget -q -O - http://{to}/"))
    };
    for (from, _, _) in &places {
        for (_, node, ip) in &places {
            assert_eq!(get(from, &format!("{ip}:8080")).unwrap().trim(), node, "from {from}");
        }
        // by name and service, over all nodes
        let mut seen = std::collections::BTreeSet::new();
        eventually(&format!("{from} is served by every node"), || {
            seen.insert(get(from, "web").map_err(|e| e.to_string())?.trim().to_owned());
            if seen.len() == 3 { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    }
    let (first, second) = (&places[0], &places[1]);
    // a wire is cut and mended
    let away = agents.iter().find(|a| places.iter().any(|p| p.1 == a.name())).unwrap();
    let there = places.iter().find(|p| p.1 == away.name()).unwrap();
    let here = if first.1 == there.1 { second } else { first };
    let host = cluster.net();
    host.ip(&format!("link set port{} down", &away.name()[5..])).unwrap();
    assert!(get(&here.0, &format!("{}:8080", there.2)).is_err());
    host.ip(&format!("link set port{} up", &away.name()[5..])).unwrap();
    eventually("pods are reached again", || {
        get(&here.0, &format!("{}:8080", there.2)).map(|_| ()).map_err(|e| e.to_string())
    });

    // an agent that comes back needs no token and keeps its pods
    agents[0].kill();
    agents[0].start().unwrap();
    let mine = places.iter().find(|p| p.1 == "node-2").unwrap();
    eventually("the agent is back", || {
        cluster.kubectl(&format!("exec {} -- true", mine.0)).map(|_| ()).map_err(|e| e.to_string())
    });
    let pod = cluster.get(&format!("pod {}", mine.0)).unwrap();
    assert_eq!(pod["status"]["podIP"], mine.2.as_str());
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
}

/// Certificate and key of a node in one PEM, signed by the cluster's authority an hour ago.
fn certificate_of(cluster: &Cluster, node: &str, ends: SystemTime, serving: bool) -> String {
    let pki = |file: &str| std::fs::read_to_string(cluster.data_dir().join("pki").join(file)).unwrap();
    let authority =
        Issuer::from_ca_cert_pem(&pki("ca.crt"), KeyPair::from_pem(&pki("ca.key")).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
    params.not_after = ends.into();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if serving {
        let address = format!("192.0.2.1{}", &node[5..]).parse().unwrap();
        params.subject_alt_names = vec![SanType::IpAddress(address)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    }
    format!("{}{}", params.signed_by(&key, &authority).unwrap().pem(), key.serialize_pem())
}

#[test]
fn an_agent_that_starts_before_its_server_joins_when_it_comes() {
    let mut cluster = cluster_with(Vec::new());
    cluster.stop_server().unwrap();
    let agent = Agent::join(&cluster, 2).unwrap();
    eventually("it says what it waits for", || {
        let log = agent.log();
        if log.contains("waiting for the server") && log.contains("192.0.2.10:6443") {
            Ok(())
        } else {
            Err(log)
        }
    });
    cluster.start_server().unwrap();
    eventually("it is a node", || {
        let nodes = cluster.kubectl("get nodes node-2").map_err(|e| e.to_string())?;
        if nodes.contains(" Ready ") { Ok(()) } else { Err(nodes) }
    });
}

#[test]
fn a_node_renews_its_certificates_while_its_agent_runs() {
    let mut cluster = cluster();
    let mut agent = Agent::join(&cluster, 2).unwrap();
    let ready = |cluster: &Cluster| {
        let nodes = cluster.kubectl("get nodes").map_err(|e| e.to_string())?;
        if nodes.matches(" Ready ").count() == 2 { Ok(()) } else { Err(nodes) }
    };
    eventually("two nodes are ready", || ready(&cluster));
    agent.kill();
    // it comes back with certificates of which hardly anything is left
    let ends = SystemTime::now() + Duration::from_secs(45);
    let folder = agent.data_dir().join("agent");
    let old = [("client.pem", false), ("serving.pem", true)].map(|(file, serving)| {
        let pem = certificate_of(&cluster, agent.name(), ends, serving);
        std::fs::write(folder.join(file), &pem).unwrap();
        (folder.join(file), pem)
    });
    agent.start().unwrap();
    let pid = agent.pid();
    eventually("both are renewed", || {
        let renewed =
            old.iter().all(|(file, pem)| std::fs::read_to_string(file).is_ok_and(|now| now != *pem));
        if renewed { Ok(()) } else { Err(agent.log()) }
    });
    assert!(SystemTime::now() < ends, "renewed only when it was too late");
    eventually_within(Duration::from_secs(60), "the old ones end", || {
        if SystemTime::now() > ends { Ok(()) } else { Err("not yet".to_owned()) }
    });
    // every connection is a new one from here on
    cluster.stop_server().unwrap();
    cluster.start_server().unwrap();
    let archive = testkit::image::busybox().unwrap();
    agent.import(&archive).unwrap();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: late}\nspec:\n  nodeName: node-2\n  terminationGracePeriodSeconds: 0\n  \
        containers: [{name: main, image: 'busybox:test', command: [sleep, '3600']}]\n";
    eventually("the API serves", || cluster.apply(pod).map(drop).map_err(|e| e.to_string()));
    eventually("the node runs pods, and the API server reaches its kubelet", || {
        cluster.kubectl("exec late -- true").map(drop).map_err(|e| e.to_string())
    });
    assert_eq!(agent.pid(), pid);
}

/// A host's own firewall, by Debian's iptables.
fn iptables(host: &NetNs, line: &str) -> String {
    let plugins = cni_plugins().unwrap();
    let path = plugins.environment.iter().find(|(name, _)| *name == "PATH").unwrap();
    let program = std::env::split_paths(&path.1).map(|p| p.join("iptables")).find(|p| p.exists()).unwrap();
    let mut command = Command::new(program);
    command.envs(plugins.environment).args(line.split(' '));
    host.enter(&mut command);
    testkit::run(&mut command).unwrap()
}

#[test]
fn pods_by_direct_routes_and_a_node_that_is_reset_is_as_it_was() {
    let cluster = cluster_with(vec!["--node-network".to_owned(), "host-gw".to_owned()]);
    let mut agent = Agent::join_with(&cluster, 2, &["--node-network", "host-gw"]).unwrap();
    let rule = "-A INPUT -s 203.0.113.9/32 -j DROP";
    iptables(agent.net(), rule);
    eventually("two nodes are ready", || {
        let nodes = cluster.kubectl("get nodes").map_err(|e| e.to_string())?;
        if nodes.matches(" Ready ").count() == 2 { Ok(()) } else { Err(nodes) }
    });
    agent.import(&testkit::image::busybox().unwrap()).unwrap();
    cluster.apply(EVERYWHERE).unwrap();
    let pods = wait_ready(&cluster, "app=web", 2);
    let places: Vec<(String, String, String)> = pods
        .iter()
        .map(|p| {
            let text = |pointer: &str| p.pointer(pointer).unwrap().as_str().unwrap().to_owned();
            (text("/metadata/name"), text("/spec/nodeName"), text("/status/podIP"))
        })
        .collect();
    for (from, _, _) in &places {
        for (_, node, ip) in &places {
            let got = cluster.kubectl(&format!("exec {from} -- timeout 3 wget -q -O - http://{ip}:8080/"));
            assert_eq!(got.unwrap().trim(), node, "from {from}");
        }
    }
    let state = agent.net().state().unwrap();
    assert!(
        !state.contains("navarch-vx") && state.contains("10.244.0.0/24 via 192.0.2.10 dev eth0"),
        "{state}"
    );
    assert!(state.contains("navarch0"), "{state}");

    // the node goes, and its host has nothing of it
    let printed = agent.reset().unwrap();
    assert!(printed.contains("left: nothing"), "{printed}");
    let (fresh, used) = (
        NetNs::beside(cluster.net(), 3).unwrap(),
        agent.net().state().unwrap().replace("192.0.2.12", "192.0.2.13"),
    );
    eventually("a new host is the same", || {
        let fresh = fresh.state().unwrap();
        if fresh == used { Ok(()) } else { Err(format!("{fresh}instead of\n{used}")) }
    });
    assert!(iptables(agent.net(), "-S INPUT").contains(rule));
}

const BALANCED: &str = "apiVersion: v1
kind: Service
metadata: {name: balanced}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: wanted}
spec: {type: LoadBalancer, loadBalancerIP: 192.0.2.203, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: classed}
spec: {type: LoadBalancer, loadBalancerClass: example.com/other, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: LoadBalancer, loadBalancerIP: 198.51.100.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

#[test]
fn load_balancers_have_an_address_of_the_pool_that_another_node_takes_over() {
    let cluster = cluster_with(vec!["--load-balancer-pool".to_owned(), "192.0.2.200/29".to_owned()]);
    let agents: Vec<Agent> = (2..=3).map(|n| Agent::join(&cluster, n).unwrap()).collect();
    let client = NetNs::beside(cluster.net(), 9).unwrap();
    eventually("three nodes are ready", || {
        let nodes = cluster.kubectl("get nodes").map_err(|e| e.to_string())?;
        if nodes.matches(" Ready ").count() == 3 { Ok(()) } else { Err(nodes) }
    });
    let archive = testkit::image::busybox().unwrap();
    agents.iter().for_each(|agent| drop(agent.import(&archive).unwrap()));
    cluster.apply(EVERYWHERE).unwrap();
    wait_ready(&cluster, "app=web", 3);
    cluster.apply(BALANCED).unwrap();
    let address = |name: &str| {
        let service = cluster.get(&format!("service {name}")).unwrap_or_default();
        let ip = service.pointer("/status/loadBalancer/ingress/0/ip").and_then(|ip| ip.as_str());
        ip.map(str::to_owned)
    };
    eventually("both have their addresses", || {
        let (balanced, wanted) = (address("balanced"), address("wanted"));
        let of_pool = balanced.as_ref().is_some_and(|ip| ip.starts_with("192.0.2.20"));
        if of_pool && wanted.as_deref() == Some("192.0.2.203") {
            Ok(())
        } else {
            Err(format!("{balanced:?} {wanted:?}"))
        }
    });
    eventually("the service outside the pool is told why", || {
        let events = cluster.kubectl("get events").map_err(|e| e.to_string())?;
        let why = "loadBalancerIP 198.51.100.1 is not in the load balancer pool";
        if events.contains(why) { Ok(()) } else { Err(events) }
    });
    assert_eq!((address("classed"), address("outside")), (None, None));

    // a program on the same wire, no node of the cluster, reaches them
    let reach = |name: &str| {
        let to: SocketAddr = format!("{}:80", address(name).unwrap()).parse().unwrap();
        let connected = client.run(move || std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2)));
        connected.unwrap().map(drop).map_err(|e| format!("{to}: {e}"))
    };
    for name in ["balanced", "wanted"] {
        eventually(&format!("{name} is reached"), || reach(name));
    }
    // where it answers
    let hosts: Vec<&NetNs> = agents.iter().map(Agent::net).chain([cluster.net()]).collect();
    let holders = |name: &str| {
        let entry = format!("{} dev", address(name).unwrap());
        let has = |host: &&&NetNs| {
            host.state().unwrap().lines().any(|l| l.starts_with(&entry) && l.ends_with("proxy"))
        };
        hosts.iter().filter(has).count()
    };
    for name in ["balanced", "wanted"] {
        assert_eq!(holders(name), 1, "{name}");
    }
    // addresses stay with one node until it goes: cut off every agent that has one
    let holding: Vec<&Agent> = agents.iter().filter(|a| a.net().state().unwrap().contains("proxy")).collect();
    for agent in &holding {
        cluster.net().ip(&format!("link set port{} down", &agent.name()[5..])).unwrap();
    }
    for name in ["balanced", "wanted"] {
        eventually_within(Duration::from_secs(120), &format!("{name} is reached again"), || reach(name));
    }
    for agent in &holding {
        cluster.net().ip(&format!("link set port{} up", &agent.name()[5..])).unwrap();
    }
    cluster.kubectl("delete service balanced wanted").unwrap();
    eventually("nobody answers any more", || {
        let left: Vec<String> =
            hosts.iter().map(|host| host.state().unwrap()).filter(|state| state.contains("proxy")).collect();
        if left.is_empty() { Ok(()) } else { Err(left.join("---\n")) }
    });
}
