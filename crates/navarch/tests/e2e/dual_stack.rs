//! A cluster with both address families: pods, services, names.

use testkit::eventually;

use crate::{cluster_with, wait_ready};

const PODS: &str = "apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, 'mkdir /w; echo \"$IPS\" > /w/index.html; exec httpd -f -p 8080 -h /w']
    env: [{name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}]
    readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'busybox:test', command: [sleep, infinity]}]
---
apiVersion: v1
kind: Service
metadata: {name: both}
spec: {ipFamilyPolicy: RequireDualStack, selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: six}
spec: {ipFamilies: [IPv6], selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: four}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
";

#[test]
fn pods_and_services_have_addresses_of_both_families() {
    let flags = [
        "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48",
        "--service-cidr=10.96.0.0/16,fd00:10:96::/112",
        "--cluster-domain=dual.example",
    ];
    let cluster = cluster_with(flags.map(str::to_owned).to_vec());
    cluster.apply(PODS).unwrap();
    wait_ready(&cluster, "app=server", 1);
    cluster.kubectl("wait pod client --for condition=Ready --timeout 120s").unwrap();
    let pod = cluster.get("pod server").unwrap();
    let ips: Vec<&str> =
        pod["status"]["podIPs"].as_array().unwrap().iter().map(|ip| ip["ip"].as_str().unwrap()).collect();
    assert!(
        ips.len() == 2 && ips[0].starts_with("10.244.0.") && ips[1].starts_with("fd00:10:244:"),
        "{ips:?}"
    );

    let fetch = |host: &str| {
        let url = if host.contains(':') { format!("http://[{host}]/") } else { format!("http://{host}/") };
        cluster.kubectl_args(&["exec", "client", "--", "timeout", "2", "wget", "-q", "-O", "-", &url])
    };
    for service in ["both", "six", "four"] {
        let found = cluster.get(&format!("service {service}")).unwrap();
        for ip in found["spec"]["clusterIPs"].as_array().unwrap() {
            let answer = eventually(&format!("{service} answers at {ip}"), || {
                fetch(ip.as_str().unwrap()).map_err(|e| e.to_string())
            });
            assert_eq!(answer.trim(), ips.join(","), "the pod knows its addresses");
        }
        eventually(&format!("{service} answers by its name"), || {
            fetch(&format!("{service}.default.svc.dual.example")).map_err(|e| e.to_string())
        });
    }
    let names = cluster
        .kubectl_args(&["exec", "client", "--", "nslookup", "-type=aaaa", "both.default.svc.dual.example"])
        .unwrap();
    assert!(names.contains("fd00:10:96::"), "{names}");
    let slices = cluster
        .kubectl("get endpointslices -l kubernetes.io/service-name=both -o jsonpath={.items[*].addressType}");
    let mut families: Vec<String> = slices.unwrap().split(' ').map(str::to_owned).collect();
    families.sort();
    assert_eq!(families, ["IPv4", "IPv6"]);
}
