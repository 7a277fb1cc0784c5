//! Encrypted packets between nodes.

use testkit::{Agent, Cluster, Options, eventually};

use crate::network::EVERYWHERE;
use crate::{NAVARCH, cluster_with, wait_ready};

const WAY: [&str; 2] = ["--node-network", "wireguard"];

/// The guest of `vm::` has WireGuard; elsewhere the error is looked at.
fn here() -> bool {
    std::path::Path::new("/sys/module/wireguard").exists()
}

#[test]
fn nodes_encrypt_what_their_pods_send() {
    let arguments: Vec<String> = WAY.iter().map(ToString::to_string).collect();
    if !here() {
        let options = Options { binary: NAVARCH.into(), arguments, ..Options::default() };
        let mut cluster = Cluster::with(options).unwrap();
        eventually("the server says what is missing", || {
            let log = cluster.log_tail();
            let said = log.contains("--node-network wireguard")
                && log.contains("this node's kernel has no WireGuard (module wireguard)");
            if said { Ok(()) } else { Err(log) }
        });
        // it ends by itself, with an error
        cluster.kill_server().unwrap();
        return;
    }
    let cluster = cluster_with(arguments);
    let mut agent = Agent::join_with(&cluster, 2, &WAY).unwrap();
    let keys = eventually("two nodes are ready and have keys", || {
        let nodes = cluster.get("nodes").map_err(|e| e.to_string())?;
        let key = |node: &serde_json::Value| {
            let annotations = &node["metadata"]["annotations"];
            annotations["navarch.dev/wireguard-public-key"].as_str().map(str::to_owned)
        };
        let keys: Vec<String> = nodes["items"].as_array().into_iter().flatten().filter_map(key).collect();
        let ready = cluster.kubectl("get nodes").map_err(|e| e.to_string())?;
        if keys.len() == 2 && ready.matches(" Ready ").count() == 2 { Ok(keys) } else { Err(ready) }
    });
    assert_ne!(keys[0], keys[1]);
    agent.import(&testkit::image::busybox().unwrap()).unwrap();
    cluster.apply(EVERYWHERE).unwrap();
    let pods = wait_ready(&cluster, "app=web", 2);
    for from in &pods {
        for to in &pods {
            let (from, ip) = (crate::name(from), to["status"]["podIP"].as_str().unwrap());
            let got = cluster.kubectl(&format!("exec {from} -- timeout 20 wget -q -O - http://{ip}:8080/"));
            assert_eq!(got.unwrap().trim(), to["spec"]["nodeName"].as_str().unwrap(), "from {from}");
        }
    }
    let state = agent.net().state().unwrap();
    assert!(state.contains("10.244.0.0/16 dev navarch-wg"), "{state}");
    assert!(!state.contains("navarch-vx") && !state.contains("via 192.0.2.10"), "{state}");
    let printed = agent.reset().unwrap();
    assert!(printed.contains("left: nothing"), "{printed}");
    assert!(!agent.net().state().unwrap().contains("navarch"));
}
