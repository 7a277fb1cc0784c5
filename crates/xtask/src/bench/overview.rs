//! The whole cluster at a glance, measured from outside: start, pods, healing, idle cost, durable writes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use client::{Cache, Change, Changes, Client, DeleteOptions};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use serde_json::json;
use testkit::Cluster;

use super::{machine, memory, on_host, pause, percentile};

/// Pods made one after the other.
const PODS: usize = 20;
/// Restarts of the server that are timed.
const STARTS: usize = 5;
/// Fresh clusters whose node is awaited.
const CLUSTERS: usize = 3;
/// How long an idle cluster is watched.
const IDLE: Duration = Duration::from_secs(20);
/// Writers at the same time, and for how long they write.
const WRITERS: usize = 64;
const WRITING: Duration = Duration::from_secs(5);
/// A step that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// The image of the pods.
const IMAGE: &str = "busybox:test";

/// One line of the table.
struct Figure {
    what: &'static str,
    value: String,
    bound: &'static str,
    reference: &'static str,
}

/// Measures `binary`; the page with the table.
pub fn page(binary: &Path) -> anyhow::Result<String> {
    let image = testkit::image::busybox()?;
    let mut figures = Vec::new();

    let mut ready = Vec::new();
    for _ in 0..CLUSTERS {
        let began = Instant::now();
        let cluster = Cluster::start(binary)?;
        on_host(&cluster, move |client| async move { node_ready(&client).await })?;
        ready.push(began.elapsed());
    }
    figures.push(Figure {
        what: "start of a fresh cluster → node Ready",
        value: milliseconds(&mut ready, 50),
        bound: "2 000 ms",
        reference: "1 200 ms (kubelet alone)",
    });

    let mut cluster = Cluster::start(binary)?;
    on_host(&cluster, |client| async move { node_ready(&client).await })?;
    cluster.import(&image)?;
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        cluster.stop_server()?;
        let began = Instant::now();
        cluster.start_server()?;
        starts.push(began.elapsed());
    }
    figures.insert(
        0,
        Figure {
            what: "process start → API ready",
            value: milliseconds(&mut starts, 50),
            bound: "1 000 ms",
            reference: "2 700 ms",
        },
    );

    on_host(&cluster, |client| async move { node_ready(&client).await })?;
    let (idle_memory, idle_cpu) = idle(&cluster)?;
    let mut running = on_host(&cluster, |client| async move { pods_in_turn(&client).await })?;
    figures.push(Figure {
        what: "pod create → Running, 20 in turn, p50",
        value: milliseconds(&mut running, 50),
        bound: "160 ms",
        reference: "164 ms",
    });
    figures.push(Figure {
        what: "the same, p99",
        value: milliseconds(&mut running, 99),
        bound: "",
        reference: "193 ms",
    });
    let mut healed = on_host(&cluster, |client| async move { heal(&client).await })?;
    figures.push(Figure {
        what: "container's server exits → it answers again, p50",
        value: milliseconds(&mut healed, 50),
        bound: "300 ms",
        reference: "773 ms",
    });
    figures.push(Figure {
        what: "resident memory of the whole idle cluster",
        value: format!("{idle_memory} MB"),
        bound: "100 MB",
        reference: "about 700 MB",
    });
    figures.push(Figure {
        what: "CPU of the whole idle cluster, of one core",
        value: format!("{idle_cpu:.2} %"),
        bound: "1 %",
        reference: "",
    });
    let writes = on_host(&cluster, |client| async move { writes(&client).await })?;
    figures.push(Figure {
        what: "durable creates of 1 KB ConfigMaps, 64 writers, 1 connection",
        value: format!("{writes:.0}/s"),
        bound: "",
        reference: "1 509/s (32 writers)",
    });
    Ok(table(&figures))
}

/// Waits for a change after which `done` answers something.
pub async fn until<K: client::Kind, T>(
    changes: &mut Changes<K>,
    what: &str,
    mut done: impl FnMut(&K) -> Option<T>,
) -> anyhow::Result<T> {
    let wait = async {
        while let Some(change) = changes.next().await {
            if let Change::Added(object) | Change::Modified { new: object, .. } = change
                && let Some(found) = done(&object)
            {
                return Ok(found);
            }
        }
        bail!("the watch ended")
    };
    tokio::time::timeout(PATIENCE, wait).await.with_context(|| format!("not in time: {what}"))?
}

/// Waits until a node is ready.
pub async fn node_ready(client: &Client) -> anyhow::Result<()> {
    let nodes: Cache<Node> = client.caches().of();
    let mut changes = nodes.subscribe();
    until(&mut changes, "the node is ready", |node| {
        let conditions = node.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True").map(|_| ())
    })
    .await
}

/// A pod that runs one command.
pub fn pod(name: &str, command: &[&str]) -> anyhow::Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": IMAGE, "command": command}],
        },
    }))?)
}

/// The pod's address once it runs.
pub fn running(pod: &Pod, name: &str) -> Option<IpAddr> {
    let status = pod.status.as_ref()?;
    let runs = pod.metadata.name.as_deref() == Some(name) && status.phase.as_deref() == Some("Running");
    if runs { status.pod_ip.as_deref()?.parse().ok() } else { None }
}

async fn pods_in_turn(client: &Client) -> anyhow::Result<Vec<Duration>> {
    let pods: Cache<Pod> = client.caches().of();
    pods.synced().await;
    let mut changes = pods.subscribe();
    let mut times = Vec::new();
    for n in 0..PODS {
        let name = format!("turn-{n}");
        let object = pod(&name, &["sleep", "infinity"])?;
        let began = Instant::now();
        client.create("default", &object).await?;
        until(&mut changes, "the pod runs", |pod| running(pod, &name)).await?;
        times.push(began.elapsed());
    }
    for n in 0..PODS {
        client.delete::<Pod>("default", &format!("turn-{n}"), &DeleteOptions::default()).await?;
    }
    Ok(times)
}

/// A pod's only server is killed; how long until a connection gets an answer again.
async fn heal(client: &Client) -> anyhow::Result<Vec<Duration>> {
    let pods: Cache<Pod> = client.caches().of();
    pods.synced().await;
    let mut changes = pods.subscribe();
    let mut times = Vec::new();
    for n in 0..PODS {
        let name = format!("heal-{n}");
        // the port makes the process easy to find, and no two are the same
        let port = 20_000 + u16::try_from(n)?;
        client.create("default", &pod(&name, &["httpd", "-f", "-p", &port.to_string()])?).await?;
        let ip = until(&mut changes, "the pod runs", |pod| running(pod, &name)).await?;
        let address = SocketAddr::new(ip, port);
        answers(address).await?;
        let process = process_of(port)?;
        let began = Instant::now();
        let process = rustix::process::Pid::from_raw(process).context("no process id")?;
        let handle = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty())?;
        rustix::process::pidfd_send_signal(&handle, rustix::process::Signal::KILL)?;
        // it must not be the dying one that answers
        let mut ended = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ended, None)?;
        answers(address).await?;
        times.push(began.elapsed());
    }
    for n in 0..PODS {
        client.delete::<Pod>("default", &format!("heal-{n}"), &DeleteOptions::default()).await?;
    }
    Ok(times)
}

/// Connects until somebody answers.
async fn answers(address: SocketAddr) -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect(address).await?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).await
        };
        if matches!(tokio::time::timeout(Duration::from_secs(1), ask).await, Ok(Ok(_))) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bail!("{address} does not answer")
}

/// The process that serves `port`, on any host.
pub fn process_of(port: u16) -> anyhow::Result<i32> {
    let wanted = format!("httpd\0-f\0-p\0{port}\0");
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if arguments == wanted.as_bytes() {
            return entry.file_name().to_string_lossy().parse().context("a process id");
        }
    }
    bail!("no process serves port {port}")
}

/// Resident memory in MB and CPU in percent of a core.
fn idle(cluster: &Cluster) -> anyhow::Result<(u64, f64)> {
    let pid = cluster.pid().context("no server runs")?;
    let ticks = || -> anyhow::Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // fields after the name in parentheses, which may hold anything; utime and stime are the 14th and 15th of all
        let rest = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
        let fields: Vec<u64> =
            rest.split_whitespace().skip(11).take(2).map_while(|f| f.parse().ok()).collect();
        Ok(fields.iter().sum())
    };
    pause(Duration::from_secs(5))?;
    let before = ticks()?;
    pause(IDLE)?;
    let used = ticks()? - before;
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    Ok((memory(cluster, "VmRSS")?.ceil() as u64, 100.0 * used as f64 / per_second / IDLE.as_secs_f64()))
}

/// Acknowledged creates per second.
async fn writes(client: &Client) -> anyhow::Result<f64> {
    let value = "x".repeat(1024);
    let began = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (client, value) = (client.clone(), value.clone());
        writers.spawn(async move {
            let mut made = 0u64;
            while began.elapsed() < WRITING {
                let mut object = ConfigMap::default();
                object.metadata.name = Some(format!("bench-{writer}-{made}"));
                object.data = Some(BTreeMap::from([("value".to_owned(), value.clone())]));
                client.create("default", &object).await?;
                made += 1;
            }
            Ok::<_, client::Error>(made)
        });
    }
    let mut made = 0;
    while let Some(writer) = writers.join_next().await {
        made += writer??;
    }
    Ok(made as f64 / began.elapsed().as_secs_f64())
}

/// A percentile, printed.
fn milliseconds(times: &mut [Duration], percent: usize) -> String {
    percentile(times, percent)
        .map_or_else(|| "–".to_owned(), |t| format!("{:.0} ms", t.as_secs_f64() * 1000.0))
}

fn table(figures: &[Figure]) -> String {
    let mut text = format!(
        "# Benchmarks\n\nMade by `make bench` on {}. The load generator runs on the same machine. The reference\n\
         (Kubernetes v1.36.0, etcd 3.5, containerd 2.1, runc 1.1) was measured on a machine of the same kind.\n\n\
         | figure | measured | bound | reference |\n|---|---|---|---|\n",
        machine()
    );
    for figure in figures {
        let bound = if figure.bound.is_empty() { String::new() } else { format!("≤ {}", figure.bound) };
        text.push_str(&format!("| {} | {} | {bound} | {} |\n", figure.what, figure.value, figure.reference));
    }
    text
}
