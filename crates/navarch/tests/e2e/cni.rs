//! The Container Network Interface from both sides: our network as a plugin of others, others' plugins in the place of ours.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::{Cluster, CniPlugins, HOST_ADDRESS, NetNs, Options, cni_plugins, eventually};

use crate::{NAVARCH, wait_ready};

/// A machine whose container runtime calls plugins.
struct Machine {
    host: NetNs,
    dir: tempfile::TempDir,
    plugins: CniPlugins,
}

impl Machine {
    /// With our plugin under the name that configurations call it by.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(NAVARCH, dir.path().join("navarch-cni")).unwrap();
        Self { host: NetNs::new().unwrap(), dir, plugins: cni_plugins().unwrap() }
    }

    fn config(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "net", "type": "navarch-cni",
            "podCIDRs": ["10.22.0.0/24", "fd00:22::/64"], "stateDir": self.dir.path().join("state"),
            "dns": {"nameservers": ["10.22.0.1"]},
        })
    }

    /// A plugin's answer, or its error.
    fn call(&self, command: &str, container: Option<(&str, &NetNs)>, config: &Value) -> Result<Value, Value> {
        let plugin = config["type"].as_str().unwrap();
        let folder = if plugin == "navarch-cni" { self.dir.path() } else { self.plugins.folder.as_path() };
        let mut process = Command::new(folder.join(plugin));
        process.envs(self.plugins.environment.iter().cloned());
        process.env("CNI_COMMAND", command).env("CNI_PATH", &self.plugins.folder);
        if let Some((id, netns)) = container {
            process.env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0").env("CNI_NETNS", netns.path());
            process.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=x");
        }
        self.host.enter(&mut process);
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = process.spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        if output.status.success() { Ok(answer) } else { Err(answer) }
    }
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
}

/// Who a server in `container` sees when `host` connects to `to`.
fn reach(container: &NetNs, port: u16, host: &NetNs, to: SocketAddr) -> Result<IpAddr, String> {
    let listener =
        container.run(move || TcpListener::bind(("::", port))).unwrap().map_err(|e| e.to_string())?;
    let patience = Duration::from_secs(2);
    let stream = host.run(move || TcpStream::connect_timeout(&to, patience)).unwrap();
    let _stream = stream.map_err(|error| format!("{to}: {error}"))?;
    Ok(listener.accept().unwrap().1.ip().to_canonical())
}

#[test]
fn runtimes_call_our_network_as_a_plugin_in_every_version() {
    let machine = Machine::new();
    let said = machine.call("VERSION", None, &machine.config("1.1.0")).unwrap();
    assert_eq!(said["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    let gateway: IpAddr = "10.22.0.1".parse().unwrap();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let container = NetNs::empty().unwrap();
        let pod = Some(("c1", &container));
        let mut config = machine.config(version);
        let result = machine.call("ADD", pod, &config).unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["dns"]["nameservers"][0], "10.22.0.1");
        assert_eq!(result["ips"][0]["version"] == "4", version < "1.0.0", "{result}");
        assert_eq!(result["interfaces"][2]["mtu"].is_u64(), version == "1.1.0", "{result}");
        assert_eq!(result["interfaces"][2]["sandbox"], container.path().to_str().unwrap());
        let ips = addresses(&result);
        assert_eq!(ips.len(), 2);
        assert_eq!(reach(&container, 80, &machine.host, (ips[0], 80).into()), Ok(gateway));
        config["prevResult"] = result;
        if version != "0.3.1" {
            assert_eq!(machine.call("CHECK", pod, &config), Ok(Value::Null));
            container.ip("address flush dev eth0").unwrap();
            let error = machine.call("CHECK", pod, &config).unwrap_err();
            assert_eq!(error["cniVersion"], version);
            assert!(error["msg"].as_str().unwrap().contains("is missing on eth0"), "{error}");
        }
        // repeated, and when the namespace is gone
        for _ in 0..2 {
            assert_eq!(machine.call("DEL", pod, &config), Ok(Value::Null));
        }
        assert!(container.ip("link show eth0").is_err());
    }
    let gone = Path::new("/run/netns/no-such").to_owned();
    let mut missing = Command::new(machine.dir.path().join("navarch-cni"));
    missing.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "x").env("CNI_IFNAME", "eth0");
    missing.env("CNI_NETNS", gone).env("CNI_PATH", "/").stdin(Stdio::piped()).stdout(Stdio::piped());
    machine.host.enter(&mut missing);
    let mut child = missing.spawn().unwrap();
    child.stdin.take().unwrap().write_all(machine.config("1.1.0").to_string().as_bytes()).unwrap();
    let answer: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(answer["code"], 3, "{answer}");
    let left = std::fs::read_dir(machine.dir.path().join("state/addresses")).unwrap().count();
    assert_eq!(left, 0, "addresses");
}

#[test]
fn gc_and_status_keep_a_plugins_network_clean_and_say_when_it_is_full() {
    let machine = Machine::new();
    let mut config = machine.config("1.1.0");
    config["podCIDRs"] = json!(["10.22.0.0/29"]);
    assert_eq!(machine.call("STATUS", None, &config), Ok(Value::Null));
    let containers: Vec<NetNs> = (0..5).map(|_| NetNs::empty().unwrap()).collect();
    for (n, container) in containers.iter().enumerate() {
        machine.call("ADD", Some((&format!("c{n}"), container)), &config).unwrap();
    }
    assert_eq!(machine.call("STATUS", None, &config).unwrap_err()["code"], 50);
    let one_more = NetNs::empty().unwrap();
    let error = machine.call("ADD", Some(("more", &one_more)), &config).unwrap_err();
    assert_eq!(
        (&error["code"], &error["details"]),
        (&json!(11), &json!("no free address left in 10.22.0.0/29"))
    );
    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    assert_eq!(machine.call("GC", None, &gc), Ok(Value::Null));
    assert!(containers[1].ip("link show eth0").is_ok());
    assert!(containers[2].ip("link show eth0").is_err());
    assert_eq!(machine.call("STATUS", None, &config), Ok(Value::Null));
    // wrong in each its own way
    for (key, value, code) in [
        ("ipam", json!({"type": "host-local"}), 2),
        ("podCIDRs", json!([]), 7),
        ("podCIDRs", json!(["10.0.0.0"]), 7),
        ("cniVersion", json!("2.0.0"), 1),
        ("runtimeConfig", json!({"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "x"}]}), 7),
    ] {
        let mut wrong = config.clone();
        wrong[key] = value;
        let error = machine.call("ADD", Some(("wrong", &one_more)), &wrong).unwrap_err();
        assert_eq!(error["code"], code, "{key}: {error}");
    }
}

#[test]
fn debians_plugins_chain_behind_ours_and_ours_takes_ports_itself() {
    let machine = Machine::new();
    let container = NetNs::empty().unwrap();
    let client = NetNs::beside(&machine.host, 2).unwrap();
    let pod = Some(("c1", &container));
    let ports = |host_port: u16| json!({"portMappings": [{"hostPort": host_port, "containerPort": 80, "protocol": "tcp"}]});
    let mut ours = machine.config("1.0.0");
    ours["runtimeConfig"] = ports(8081);
    ours["runtimeConfig"]["bandwidth"] = json!({"ingressRate": 80_000_000, "egressRate": 8_000_000});
    let mut result = machine.call("ADD", pod, &ours).unwrap();
    let mut chain = Vec::new();
    for mut next in [
        json!({"type": "portmap", "runtimeConfig": ports(8082)}),
        json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}),
    ] {
        next["cniVersion"] = "1.0.0".into();
        next["name"] = "net".into();
        next["prevResult"] = result;
        result = machine.call("ADD", pod, &next).unwrap();
        chain.push(next);
    }
    let seen = IpAddr::from([192, 0, 2, 12]);
    let host: IpAddr = HOST_ADDRESS.parse().unwrap();
    for port in [8081, 8082] {
        assert_eq!(reach(&container, 80, &client, (host, port).into()), Ok(seen), "{port}");
    }
    let set = container.run(|| std::fs::read_to_string("/proc/sys/net/core/somaxconn")).unwrap().unwrap();
    assert_eq!(set.trim(), "500");
    for config in std::iter::once(&mut ours).chain(&mut chain) {
        config["prevResult"] = result.clone();
        if config["type"] == "portmap" {
            // Debian's looks for its IPv4 rules among those of IPv6
            continue;
        }
        assert_eq!(machine.call("CHECK", pod, config), Ok(Value::Null));
    }
    for config in chain.iter().rev().chain([&ours]) {
        assert_eq!(machine.call("DEL", pod, config), Ok(Value::Null));
    }
    for port in [8081, 8082] {
        assert!(reach(&container, 80, &client, (host, port).into()).is_err(), "{port}");
    }
}

const PODS: &str = "apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server, tier: net}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, 'mkdir /w; echo here > /w/index.html; exec httpd -f -p 8080 -h /w']
    ports: [{name: http, containerPort: 8080, hostPort: 8090}]
    readinessProbe: {httpGet: {port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client, tier: net}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'busybox:test', command: [sleep, '3600']}]
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: http}]}
";

/// The condition Ready of the only node: status and message.
fn node_ready(cluster: &Cluster) -> (String, String) {
    let nodes = cluster.get("nodes").unwrap_or_default();
    let conditions = nodes["items"][0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.into_iter().find(|c| c["type"] == "Ready").unwrap_or_default();
    let text = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("message"))
}

#[test]
fn plugins_of_others_connect_pods_in_the_place_of_our_network() {
    let plugins = cni_plugins().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (conf, store) = (dir.path().join("net.d"), dir.path().join("store"));
    std::fs::create_dir(&conf).unwrap();
    let flag = |name: &str, path: &Path| [name.to_owned(), path.to_str().unwrap().to_owned()];
    let arguments = [flag("--cni-conf-dir", &conf), flag("--cni-bin-dir", &plugins.folder)]
        .into_iter()
        .flatten()
        .collect();
    let environment = plugins.environment.clone();
    let options = Options { binary: NAVARCH.into(), arguments, environment, ..Options::default() };
    let mut cluster = Cluster::with(options).unwrap();
    eventually("the node says what is missing", || match node_ready(&cluster) {
        (status, message) if status == "False" && message.contains("cni plugin not initialized") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let ipam = json!({
        "type": "host-local", "dataDir": store,
        "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}],
    });
    let bridge = json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": ipam,
    });
    let list = json!({
        "cniVersion": "1.0.0", "name": "debian",
        "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": true}}],
    });
    // one that cannot be used comes first
    std::fs::write(conf.join("05-broken.conflist"), "{").unwrap();
    std::fs::write(conf.join("10-debian.conflist"), list.to_string()).unwrap();
    eventually("the node is ready", || match node_ready(&cluster) {
        (status, _) if status == "True" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    cluster.import(&testkit::image::busybox().unwrap()).unwrap();
    cluster.apply(PODS).unwrap();
    let pods = wait_ready(&cluster, "tier=net", 2);
    let address = |pods: &[Value], name: &str| {
        let pod = pods.iter().find(|p| p["metadata"]["name"] == name).unwrap();
        pod["status"]["podIP"].as_str().unwrap().to_owned()
    };
    let server = address(&pods, "server");
    assert!(server.starts_with("10.88."), "{server}");
    // by address, by name of the service, and to itself
    for (from, to) in [
        ("client", format!("{server}:8080")),
        ("client", "server".to_owned()),
        ("server", "server.default".to_owned()),
    ] {
        eventually(&format!("{from} reaches {to}"), || {
            let got = cluster.kubectl(&format!("exec {from} -- timeout 2 wget -q -O - http://{to}/"));
            match got {
                Ok(text) if text.trim() == "here" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
    let outside = NetNs::beside(cluster.net(), 2).unwrap();
    let host: SocketAddr = format!("{HOST_ADDRESS}:8090").parse().unwrap();
    let connected = outside.run(move || TcpStream::connect_timeout(&host, Duration::from_secs(3))).unwrap();
    assert!(connected.is_ok(), "the port on the node: {connected:?}");
    // a restart adopts what stands, and what goes is given back to the plugins
    cluster.kill_server().unwrap();
    cluster.start_server().unwrap();
    let taken = || {
        let entries = std::fs::read_dir(store.join("debian")).into_iter().flatten().flatten();
        entries.filter(|e| e.file_name().to_string_lossy().starts_with("10.88.")).count()
    };
    assert_eq!(taken(), 2);
    cluster.kubectl("delete pod client --now").unwrap();
    eventually("the address is free", || if taken() == 1 { Ok(()) } else { Err(taken().to_string()) });
    let pods = wait_ready(&cluster, "tier=net", 1);
    assert_eq!(address(&pods, "server"), server);
    // what stands when the cluster goes is taken back too
    let reset = cluster.reset().unwrap();
    assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stdout));
    assert_eq!(taken(), 0);
}
