//! Services by the kernel's IPVS.

use std::net::TcpStream;
use std::time::Duration;

use testkit::{Cluster, Options, eventually};

use crate::{NAVARCH, cluster_with, wait_ready};

const WAY: [&str; 2] = ["--proxy-mode", "ipvs"];

/// Two pods behind a service that gives a client always the same one.
const STICKY: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: sticky}
spec:
  replicas: 2
  selector: {matchLabels: {app: sticky}}
  template:
    metadata: {labels: {app: sticky}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: busybox:test
        command: [sh, -c, 'mkdir /w; hostname > /w/index.html; exec httpd -f -p 8080 -h /w']
        readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  type: NodePort
  selector: {app: sticky}
  sessionAffinity: ClientIP
  ports: [{port: 80, targetPort: 8080, nodePort: 31077}]
";

/// They may send to each other, and ask for names.
const ALLOW_EACH_OTHER: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: each-other}
spec:
  podSelector: {matchLabels: {app: sticky}}
  policyTypes: [Egress, Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: sticky}}}]}]
  egress:
  - {to: [{podSelector: {matchLabels: {app: sticky}}}], ports: [{port: 8080}]}
  - {ports: [{port: 53, protocol: UDP}]}
";

/// The guest of `vm::` has IPVS; elsewhere the error is looked at.
fn here() -> bool {
    std::path::Path::new("/proc/net/ip_vs").exists()
}

#[test]
fn the_kernels_load_balancer_serves_services_and_goes_with_the_cluster() {
    if !here() {
        let arguments = WAY.iter().map(ToString::to_string).collect();
        let options = Options { binary: NAVARCH.into(), arguments, ..Options::default() };
        let mut cluster = Cluster::with(options).unwrap();
        eventually("the server says what is missing", || {
            let log = cluster.log_tail();
            let said = log.contains("--proxy-mode ipvs")
                && log.contains(
                    "this node's kernel has no IPVS: load its module, ip_vs, or choose the proxy mode",
                );
            if said { Ok(()) } else { Err(log) }
        });
        // it ends by itself, with an error
        cluster.kill_server().unwrap();
        return;
    }
    let arguments = WAY.iter().chain(&["--ipvs-scheduler", "sh"]).map(ToString::to_string).collect();
    let cluster = cluster_with(arguments);
    cluster.apply(STICKY).unwrap();
    let pods = wait_ready(&cluster, "app=sticky", 2);
    let name = crate::name(&pods[0]).to_owned();
    let ask = |url: &str| cluster.kubectl(&format!("exec {name} -- timeout 20 wget -q -O - {url}"));
    eventually("the service answers", || ask("http://sticky/").map_err(|e| e.to_string()));
    let answers: std::collections::BTreeSet<String> =
        (0..6).map(|_| ask("http://sticky/").unwrap()).collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(ask("http://192.0.2.10:31077/").is_ok());
    let table =
        || cluster.net().run(|| std::fs::read_to_string("/proc/thread-self/net/ip_vs")).unwrap().unwrap();
    let shown = table();
    // 192.0.2.10:31077
    assert!(shown.contains("C000020A:7965 sh  persistent "), "{shown}");
    // the API is on the node, where IPVS hands packets over instead of sending them on
    let api = |wait: u8| cluster.kubectl(&format!("exec {name} -- timeout {wait} nc kubernetes 443"));
    api(20).unwrap();
    let to = "10.96.0.1:443".parse().unwrap();
    let node = cluster.net().run(move || TcpStream::connect_timeout(&to, Duration::from_secs(20)));
    node.unwrap().unwrap();

    // policies judge what comes out of IPVS, not what goes in
    cluster.apply(ALLOW_EACH_OTHER).unwrap();
    eventually("the policy closes the way to the API", || match api(1) {
        Ok(answer) => Err(answer),
        Err(_) => Ok(()),
    });
    ask("http://sticky/").unwrap();
    // that nothing of it is left is looked at when the cluster goes
}
