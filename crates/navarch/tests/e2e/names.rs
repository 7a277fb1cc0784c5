//! Names as pods see them: cluster DNS, and the resolvers that a cluster wants for other domains.

use std::net::UdpSocket;

use testkit::{Cluster, HOST_ADDRESS, eventually};

use crate::{cluster, wait_ready};

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: asker, labels: {app: asker}}
spec:
  terminationGracePeriodSeconds: 0
  hostname: box
  subdomain: boxes
  containers: [{name: main, image: 'busybox:test', command: [sleep, '3600']}]
---
apiVersion: v1
kind: Service
metadata: {name: boxes}
spec: {clusterIP: None, selector: {app: asker}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: away}
spec: {type: ExternalName, externalName: www.corp.example}
";

/// The name servers' port, of the one that this test is.
const PORT: u16 = 5353;

/// A resolver that knows 203.0.113.77 by every name.
fn corporate(cluster: &Cluster) {
    let socket = cluster.net().run(|| UdpSocket::bind((HOST_ADDRESS, PORT)).unwrap()).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let question = &buffer[12..length];
            let name = question.iter().position(|b| *b == 0).unwrap() + 1;
            let is_a = question[name..name + 2] == [0, 1];
            let mut answer = buffer[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            answer.extend(&question[..name + 4]);
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 77]);
            }
            let _ = socket.send_to(&answer, peer);
        }
    });
}

#[test]
fn pods_resolve_services_each_other_and_the_domains_that_the_cluster_sends_elsewhere() {
    let cluster = cluster();
    corporate(&cluster);
    cluster.apply(POD).unwrap();
    let pods = wait_ready(&cluster, "app=asker", 1);
    let address = pods[0]["status"]["podIP"].as_str().unwrap();
    let resolves = |name: &str, to: &str| {
        eventually(&format!("{name} is {to}"), || {
            let told =
                cluster.kubectl(&format!("exec asker -- nslookup {name}")).map_err(|e| e.to_string())?;
            // the resolver's own address comes first
            let answer = told.split_once("\n\n").map_or("", |(_, answer)| answer);
            if answer.contains(to) { Ok(()) } else { Err(told) }
        });
    };
    let api = cluster.get("service kubernetes").unwrap()["spec"]["clusterIP"].as_str().unwrap().to_owned();
    resolves("kubernetes.default.svc.cluster.local.", &api);
    resolves("boxes.default.svc.cluster.local.", address);
    resolves("box.boxes.default.svc.cluster.local.", address);
    resolves(&format!("{}.kube-public.pod.cluster.local.", address.replace('.', "-")), address);

    let stubs = format!(r#"{{"corp.example": ["{HOST_ADDRESS}:{PORT}"]}}"#);
    let stubs = format!("stubDomains={stubs}");
    cluster
        .kubectl_args(&["create", "configmap", "kube-dns", "-n", "kube-system", "--from-literal", &stubs])
        .unwrap();
    resolves("www.corp.example.", "203.0.113.77");
    resolves("away.default.svc.cluster.local.", "203.0.113.77");
}
