//! Network policies between real pods, and nodes that join, by kubectl.

use std::time::{Duration, Instant};

use testkit::{Agent, Cluster, eventually};

use crate::{cluster, wait_ready};

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
const EVERYWHERE: &str = "apiVersion: apps/v1
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
