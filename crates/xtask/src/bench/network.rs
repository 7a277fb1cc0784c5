//! Services and names on one node: what a cluster address costs against a pod's own, and ten thousand services.
//!
//! The second half measures a node that joins: its process has no API server in it, so that what it uses is the node's.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http::Method;
use k8s_openapi::api::core::v1::Service;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};
use testkit::{Agent, Cluster, NetNs, debian, eventually_within};

use super::overview::node_ready;
use super::{load, machine, memory_of, milliseconds, on_host, percentile};

/// The large cluster.
const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;
/// Requests at a time while it is made.
const PARALLEL: usize = 32;
const CONNECTIONS: usize = 4;
/// Seconds and rounds of iperf3 each way.
const SECONDS: u64 = 4;
const ROUNDS: usize = 5;
const IPERF: u16 = 5201;
const SETUP: u16 = 5202;
/// Connections that are timed, each way.
const CONNECTS: usize = 4000;
/// Changes of an endpoint that are timed.
const CHANGES: usize = 100;
/// Questions, and how many at a time.
const QUESTIONS: usize = 200_000;
const ASKED: usize = 16;
const PATIENCE: Duration = Duration::from_secs(120);
const DNS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53);

/// One line of the table.
struct Figure {
    what: &'static str,
    value: String,
    bound: &'static str,
}

/// Measures `binary`; the page with the table.
pub fn page(binary: &Path) -> anyhow::Result<String> {
    let mut figures = Vec::new();
    paths(binary, &mut figures)?;
    many(binary, &mut figures)?;
    let mut text = format!(
        "# The network's figures\n\nMade by `cargo xtask bench network` on {}. The load generators share its cores. Services are elements of \
         nftables maps:\nthe number of rules is the same with one service and with {SERVICES}, where kube-proxy's iptables mode has some {} \
         rules ({ENDPOINTS} endpoints each).\n\n| work | measured | bound |\n|---|---|---|\n",
        machine(),
        // a chain with its jumps per service, a chain with two rules per endpoint
        SERVICES * (3 + 3 * ENDPOINTS),
    );
    for Figure { what, value, bound } in figures {
        text.push_str(&format!("| {what} | {value} | {bound} |\n"));
    }
    Ok(text)
}

/// A pod's process has an argument that no other has.
fn pod(name: &str, seconds: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         containers: [{{name: main, image: 'busybox:test', command: [sleep, '{seconds}']}}]\n---\n"
    )
}

/// The network of the pod whose process sleeps so long.
fn network_of(seconds: u32) -> anyhow::Result<NetNs> {
    let wanted = format!("sleep\0{seconds}\0");
    for entry in std::fs::read_dir("/proc")?.flatten() {
        if std::fs::read(entry.path().join("cmdline")).unwrap_or_default() == wanted.as_bytes() {
            return NetNs::at(&entry.path().join("ns/net"));
        }
    }
    bail!("no process sleeps {seconds} s")
}

/// A process that ends with its guard.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn iperf(net: &NetNs) -> anyhow::Result<Command> {
    let mut command = debian::command("iperf3", &["iperf3", "libiperf0", "libsctp1", "libssl3"])?;
    net.enter(&mut command);
    Ok(command)
}

/// Bits a second that arrive.
fn throughput(client: &NetNs, to: IpAddr) -> anyhow::Result<f64> {
    let mut command = iperf(client)?;
    command.args(["--json", "--time", &SECONDS.to_string(), "--port", &IPERF.to_string(), "--client"]);
    let output = command.arg(to.to_string()).output()?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    told["end"]["sum_received"]["bits_per_second"].as_f64().with_context(|| format!("iperf3: {told}"))
}

/// How long connections take that go to each of two addresses in turn.
fn connects(client: &NetNs, to: [SocketAddr; 2]) -> anyhow::Result<[Vec<Duration>; 2]> {
    client.run(move || {
        let mut times = [Vec::with_capacity(CONNECTS), Vec::with_capacity(CONNECTS)];
        for _ in 0..CONNECTS {
            for (to, times) in to.iter().zip(&mut times) {
                let began = Instant::now();
                let mut stream = TcpStream::connect_timeout(to, PATIENCE)?;
                times.push(began.elapsed());
                // the server closes first, so that its side keeps the port
                stream.read_to_end(&mut Vec::new())?;
            }
        }
        Ok(times)
    })?
}

/// Pod to pod, and pod to pod by a cluster address.
fn paths(binary: &Path, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let (server, client) = (987_654_321, 987_654_322);
    let cluster = Cluster::start(binary)?;
    on_host(&cluster, |client| async move { node_ready(&client).await })?;
    cluster.import(&testkit::image::busybox()?)?;
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: server}}\nspec:\n  selector: {{app: server}}\n  ports:\n  \
         - {{name: iperf, port: {IPERF}}}\n  - {{name: setup, port: {SETUP}}}\n"
    );
    cluster.apply(&format!("{}{}{service}", pod("server", server), pod("client", client)))?;
    cluster.kubectl("wait --for=condition=Ready --timeout=60s pod/server pod/client")?;
    let address = |what: &str, path: &str| -> anyhow::Result<IpAddr> {
        let object = cluster.get(what)?;
        Ok(object.pointer(path).and_then(Value::as_str).context("an address")?.parse()?)
    };
    let direct = address("pod server", "/status/podIP")?;
    let by_service = address("service server", "/spec/clusterIP")?;
    let (server, client) = (network_of(server)?, network_of(client)?);
    let mut command = iperf(&server)?;
    command.args(["--server", "--port", &IPERF.to_string()]).stdout(Stdio::null());
    let _iperf = Running(command.spawn()?);
    let listener = server.run(|| TcpListener::bind(("0.0.0.0", SETUP)))??;
    std::thread::spawn(move || while listener.accept().is_ok() {});
    eventually_within(PATIENCE, "the service leads to the pod", || {
        let to = SocketAddr::new(by_service, SETUP);
        let connected = client.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(1)));
        connected.map_err(|e| e.to_string())?.map(drop).map_err(|e| e.to_string())
    });

    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (to, rates) in [direct, by_service].into_iter().zip(&mut rates) {
            rates.push(throughput(&client, to)?);
        }
    }
    let [one, other] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    figures.push(Figure {
        what: "iperf3, pod → pod: directly, by the cluster address, ratio of the medians",
        value: format!("{:.1} Gbit/s, {:.1} Gbit/s, {:.1} %", one / 1e9, other / 1e9, 100.0 * other / one),
        bound: "≥ 95 %",
    });
    let to = [direct, by_service].map(|address| SocketAddr::new(address, SETUP));
    let [mut one, mut other] = connects(&client, to)?;
    let [one, other] = [&mut one, &mut other].map(|times| percentile(times, 50).unwrap_or_default());
    figures.push(Figure {
        what: "connection set-up, pod → pod: directly, by the cluster address, p50",
        value: format!(
            "{:.1} µs, {:.1} µs, {:+.1} %",
            one.as_secs_f64() * 1e6,
            other.as_secs_f64() * 1e6,
            100.0 * (other.as_secs_f64() / one.as_secs_f64() - 1.0)
        ),
        bound: "≤ +10 %",
    });
    Ok(())
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
    })
}

fn slice(service: &str, port: u16, addresses: &[String]) -> Value {
    let endpoints: Vec<Value> =
        addresses.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": port, "protocol": "TCP"}], "endpoints": endpoints,
    })
}

const SERVICES_PATH: &str = "/api/v1/namespaces/default/services";
const SLICES_PATH: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const JSON: &str = "application/json";

/// Ten thousand services, and a node that learns of them.
fn many(binary: &Path, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let cluster = Cluster::start(binary)?;
    let small = Agent::join(&cluster, 2)?;
    in_sync(&small, 1)?;
    let before = memory_of(small.pid().context("the agent runs")?, "VmRSS")?;

    load(&cluster, CONNECTIONS, |load| async move {
        let create = |load: std::sync::Arc<super::load::Load>, n: usize| async move {
            let addresses: Vec<String> =
                (0..ENDPOINTS).map(|e| format!("10.250.{}.{}", n % 250, 1 + (n / 250 + e) % 250)).collect();
            let (name, n) = (format!("s{}", n / 2), n % 2);
            let (path, body) = match n {
                0 => (SERVICES_PATH, service(&name)),
                _ => (SLICES_PATH, slice(&name, 8080, &addresses)),
            };
            load.call(Method::POST, path, JSON, body.to_string()).await
        };
        load.phase(2 * SERVICES, PARALLEL, create).await
    })?;
    drop(small);
    let node = Agent::join(&cluster, 3)?;
    let took = in_sync(&node, SERVICES)?;
    figures.push(Figure {
        what: "10 000 services × 10 endpoints: a node's proxy starts → its table is complete, lists and API server included",
        value: format!("{took} ms"),
        bound: "≤ 3 000 ms",
    });
    let pid = node.pid().context("the agent runs")?;
    let after = memory_of(pid, "VmRSS")?;
    figures.push(Figure {
        what: "memory of the node's process with them (proxy, DNS, kubelet, runtime), and above that without",
        value: format!("{after:.0} MB, {:.0} MB", after - before),
        bound: "≤ 150 MB",
    });
    follow(&cluster, &node, figures)?;
    names(&node, figures)
}

/// Waits until the agent's proxy says that its table is complete, with so many frontends; how long it took it.
fn in_sync(agent: &Agent, frontends: usize) -> anyhow::Result<u64> {
    let number = |line: &str, name: &str| -> Option<u64> {
        let plain: String = line
            .split("\u{1b}[")
            .enumerate()
            .map(|(n, part)| if n == 0 { part } else { part.split_once('m').map_or("", |(_, rest)| rest) })
            .collect();
        let rest = plain.split_once(&format!("{name}="))?.1;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    Ok(eventually_within(PATIENCE, "the service table is in sync", || {
        let log = agent.log();
        let line = log.lines().find(|l| l.contains("service table in sync")).ok_or("no word of it")?;
        match (number(line, "frontends"), number(line, "took_ms")) {
            (Some(count), Some(took)) if count as usize >= frontends => Ok(took),
            _ => Err(line.to_owned()),
        }
    }))
}

/// CPU time of all threads of a process.
fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        // a thread may end meanwhile
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        sum += text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(sum))
}

/// One endpoint of one service changes; how long until packets go to the new one.
fn follow(cluster: &Cluster, node: &Agent, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let (net, pid) = (node.net().clone(), node.pid().context("the agent runs")?);
    let ports = [7001, 7002];
    for port in ports {
        let listener = net.run(move || TcpListener::bind(("0.0.0.0", port)))??;
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(&port.to_be_bytes());
            }
        });
    }
    let (mut times, used) = on_host(cluster, move |client| async move {
        let address = "192.0.2.13".to_owned();
        let service: Service = client.create("default", &serde_json::from_value(service("follow"))?).await?;
        let to = service.spec.and_then(|s| s.cluster_ip).context("a cluster address")?;
        let to = SocketAddr::new(to.parse()?, 80);
        let object = |port| {
            serde_json::from_value::<k8s_openapi::api::discovery::v1::EndpointSlice>(slice(
                "follow",
                port,
                std::slice::from_ref(&address),
            ))
        };
        let mut current = client.create("default", &object(ports[0])?).await?;
        let (mut times, mut used) = (Vec::new(), Duration::ZERO);
        for n in 0..=CHANGES {
            let port = ports[n % 2];
            let (changed, began) = mpsc::channel();
            let probing = net.clone();
            let probe = tokio::task::spawn_blocking(move || {
                probing.run(move || -> anyhow::Result<Duration> {
                    let began: Instant = began.recv()?;
                    while began.elapsed() < PATIENCE {
                        let mut seen = [0; 2];
                        if let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(1))
                            && stream.read_exact(&mut seen).is_ok()
                            && u16::from_be_bytes(seen) == port
                        {
                            return Ok(began.elapsed());
                        }
                    }
                    bail!("packets did not follow")
                })
            });
            let before = cpu(pid)?;
            let mut next = object(port)?;
            next.metadata.resource_version = current.metadata.resource_version.take();
            current = client.update("default", &next).await?;
            // its answer may come later than the change
            changed.send(Instant::now())?;
            let took = probe.await???;
            // the first one only fills the table
            if n > 0 {
                times.push(took);
                used += cpu(pid)?.saturating_sub(before);
            }
        }
        Ok((times, used))
    })?;
    let [p50, p99] = [50, 99].map(|p| percentile(&mut times, p).unwrap_or_default());
    figures.push(Figure {
        what: "with them, one endpoint changes: the API's answer → packets follow",
        value: format!("p50 {}, p99 {}", milliseconds(p50), milliseconds(p99)),
        bound: "≤ 50 ms",
    });
    figures.push(Figure {
        what: "the same: CPU of the node's process",
        value: milliseconds(used / u32::try_from(CHANGES)?),
        bound: "≤ 5 ms",
    });
    Ok(())
}

/// A question for the address of a name.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// Puts every thread of a process, or the calling one, on one core.
fn pin(process: Option<u32>, core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    let Some(process) = process else { return Ok(sched_setaffinity(None, &set)?) };
    for task in std::fs::read_dir(format!("/proc/{process}/task"))?.flatten() {
        let thread = task.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
        sched_setaffinity(thread, &set)?;
    }
    Ok(())
}

/// Questions for the addresses of all services, several at a time.
fn names(node: &Agent, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    pin(node.pid(), 0)?;
    let (mut times, took) = node.net().run(|| -> anyhow::Result<_> {
        pin(None, 1)?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(DNS)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let questions: Vec<Vec<u8>> =
            (0..SERVICES).map(|n| question(0, &format!("s{n}.default.svc.cluster.local"))).collect();
        let mut sent = vec![Instant::now(); ASKED];
        let mut times = Vec::with_capacity(QUESTIONS);
        let ask = |slot: usize, number: usize, sent: &mut Vec<Instant>| -> anyhow::Result<()> {
            let mut message = questions[number * 7919 % SERVICES].clone();
            message[..2].copy_from_slice(&u16::try_from(slot)?.to_be_bytes());
            sent[slot] = Instant::now();
            socket.send(&message)?;
            Ok(())
        };
        let began = Instant::now();
        for slot in 0..ASKED {
            ask(slot, slot, &mut sent)?;
        }
        let mut buffer = [0; 512];
        while times.len() < QUESTIONS {
            let length = socket.recv(&mut buffer).context("a question was lost")?;
            // an answer without an error, with one record
            if length < 12 || buffer[3] & 0x0f != 0 || buffer[7] != 1 {
                bail!("not the answer: {:?}", &buffer[..length]);
            }
            let slot = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
            times.push(sent.get(slot).context("nobody's answer")?.elapsed());
            ask(slot, times.len() + ASKED, &mut sent)?;
        }
        Ok((times, began.elapsed()))
    })??;
    let [p50, p99] = [50, 99].map(|p| percentile(&mut times, p).unwrap_or_default());
    let rate = QUESTIONS as f64 / took.as_secs_f64();
    figures.push(Figure {
        what: "with them, DNS: addresses of services, 16 questions at a time, the node's process on one core",
        value: format!("{rate:.0}/s, p50 {}, p99 {}", milliseconds(p50), milliseconds(p99)),
        bound: "≥ 20 000/s, p99 ≤ 2 ms",
    });
    Ok(())
}
