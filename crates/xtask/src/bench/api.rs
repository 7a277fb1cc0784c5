//! The API server under load: requests, watches that deliver, that idle and that are not read, many objects.
//!
//! The shapes are those of the reference's figures: TLS, HTTP/2, RBAC, 1 KB ConfigMaps, every write durable before its
//! answer. Controllers and scheduler run, the node's parts do not.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use http::Method;
use serde_json::json;
use testkit::{Cluster, Options};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::load::{Load, Phase, Watch, revision};
use super::{Figure, endpoint, load, machine, megabytes, memory, milliseconds, percentile, table};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";
/// Connections and requests at a time.
const CONNECTIONS: usize = 4;
const PARALLEL: usize = 32;
/// Objects of the requests' figures; applies are fewer, as the reference's were.
const OBJECTS: usize = 5_000;
const APPLIES: usize = 2_000;
/// Watches that deliver, how many events, and how long from one to the next.
const WATCHES: usize = 1_000;
const EVENTS: usize = 200;
const EVERY: Duration = Duration::from_millis(100);
/// Watches that wait.
const IDLE_WATCHES: usize = 10_000;
/// Watches of one connection; servers allow at least this many streams.
const WATCHES_EACH: usize = 250;
/// Watches that are never read, the watches beside them, and the writes that all of them are sent.
const STALLED: usize = 10;
const BESIDE: usize = 20;
const WRITES: usize = 5_000;
/// Objects of the large store.
const MANY: usize = 100_000;
/// A step that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures `binary`; the page with the table.
pub fn page(binary: &Path) -> anyhow::Result<String> {
    let mut figures = Vec::new();
    requests(binary, &mut figures)?;
    watches(binary, &mut figures)?;
    stalled(binary, &mut figures)?;
    many(binary, &mut figures)?;
    let head = format!(
        "# The API's figures\n\nMade by `cargo xtask bench api` on {}: {PARALLEL} requests at a time, {CONNECTIONS} connections, TLS, RBAC, 1 KB \
         ConfigMaps,\nevery write durable before its answer, {OBJECTS} objects. The load generator runs on the same cores. The reference (Kubernetes \
         v1.36.0,\netcd 3.5) was measured on a machine of the same kind.\n\n",
        machine()
    );
    Ok(table(&head, &figures))
}

fn cluster(binary: &Path) -> anyhow::Result<Cluster> {
    let disable = vec!["agent", "proxy", "dns"];
    Cluster::with(Options { binary: binary.to_owned(), disable, ..Options::default() })
}

/// A ConfigMap of a kilobyte.
fn map(name: &str, shard: usize, value: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app": "bench", "shard": shard.to_string()}},
        "data": {"filling": "x".repeat(1024), "value": value},
    })
    .to_string()
}

fn name(number: usize) -> String {
    format!("bench-{number}")
}

fn place(number: usize) -> String {
    format!("{MAPS}/{}", name(number))
}

fn shown(phase: &Phase) -> String {
    format!("{:.0}/s, p50 {}, p99 {}", phase.rate, milliseconds(phase.p50), milliseconds(phase.p99))
}

fn requests(binary: &Path, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let cluster = cluster(binary)?;
    // what start-up used goes back after some seconds
    load(&cluster, 1, |_| async {
        sleep_until((Instant::now() + Duration::from_secs(12)).into()).await;
        Ok(())
    })?;
    figures.push(Figure {
        what: "resident memory, fresh and idle",
        value: megabytes(memory(&cluster, "VmRSS")?),
        reference: "502 MB",
        bound: "≤ 50 MB",
    });
    let phases = load(&cluster, CONNECTIONS, |load| async move {
        let write = |method: Method, media: &'static str, body: fn(usize) -> String| {
            move |load: Arc<Load>, n: usize| {
                let method = method.clone();
                async move { load.call(method, &place(n), media, body(n)).await }
            }
        };
        let read = |path: fn(usize) -> String| {
            move |load: Arc<Load>, n: usize| async move {
                load.call(Method::GET, &path(n), "", String::new()).await
            }
        };
        let create = |load: Arc<Load>, n: usize| async move {
            load.call(Method::POST, MAPS, JSON, map(&name(n), n % 10, "0")).await
        };
        let applied = |load: Arc<Load>, n: usize| async move {
            let path = format!("{}?fieldManager=bench&force=true", place(n));
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name(n)}, "data": {"value": "3"}});
            load.call(Method::PATCH, &path, "application/apply-patch+yaml", object.to_string()).await
        };
        let put = write(Method::PUT, JSON, |n| map(&name(n), n % 10, "1"));
        let merge = write(Method::PATCH, "application/merge-patch+json", |_| {
            json!({"data": {"value": "2"}}).to_string()
        });
        let delete = write(Method::DELETE, "", |_| String::new());
        Ok([
            ("create", load.phase(OBJECTS, PARALLEL, create).await?, "1 509/s", "≥ 6 036/s"),
            ("get", load.phase(OBJECTS, PARALLEL, read(place)).await?, "2 570/s", "≥ 15 420/s"),
            ("update", load.phase(OBJECTS, PARALLEL, put).await?, "967/s", "≥ 4 835/s"),
            ("merge patch", load.phase(OBJECTS, PARALLEL, merge).await?, "1 054/s", "≥ 5 270/s"),
            ("server-side apply", load.phase(APPLIES, PARALLEL, applied).await?, "994/s", "≥ 3 976/s"),
            ("list all, 2 at a time", load.phase(20, 2, read(|_| MAPS.to_owned())).await?, "11/s", "≥ 44/s"),
            (
                "list by label (500 of 5 000), 4 at a time",
                load.phase(50, 4, read(|n| format!("{MAPS}?labelSelector=shard%3D{}", n % 10))).await?,
                "99/s",
                "≥ 495/s",
            ),
            (
                "list limit=500, 4 at a time",
                load.phase(50, 4, read(|_| format!("{MAPS}?limit=500"))).await?,
                "84/s",
                "≥ 504/s",
            ),
            ("delete", load.phase(OBJECTS, PARALLEL, delete).await?, "1 620/s", "≥ 6 480/s"),
        ])
    })?;
    for (what, phase, reference, bound) in phases {
        figures.push(Figure { what, value: shown(&phase), reference, bound });
    }
    figures.push(Figure {
        what: "resident memory after that work",
        value: megabytes(memory(&cluster, "VmRSS")?),
        reference: "705 MB",
        bound: "≤ 141 MB",
    });
    Ok(())
}

fn microseconds() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()
}

/// Starts `count` watches that note how long each of `events` events took to reach them.
async fn deliver(
    load: &Arc<Load>,
    count: usize,
    events: usize,
) -> anyhow::Result<JoinSet<anyhow::Result<Vec<Duration>>>> {
    let from = revision(load, MAPS).await?;
    let mut opened = Vec::with_capacity(count);
    for _ in 0..count {
        opened.push(Watch::open(load, MAPS, &from).await?);
    }
    let mut watches = JoinSet::new();
    for mut watch in opened {
        watches.spawn(async move {
            let mut times = Vec::with_capacity(events);
            while times.len() < events {
                let event = watch.next().await?;
                // the namespace's own ConfigMap is none of ours
                let Some(sent) = event["object"]["data"]["value"].as_str() else { continue };
                let sent: u128 = sent.parse()?;
                let micros = u64::try_from(microseconds().saturating_sub(sent))?;
                times.push(Duration::from_micros(micros));
            }
            Ok(times)
        });
    }
    Ok(watches)
}

async fn delivered(mut watches: JoinSet<anyhow::Result<Vec<Duration>>>) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    let all = async {
        while let Some(watch) = watches.join_next().await {
            times.extend(watch??);
        }
        Ok::<_, anyhow::Error>(())
    };
    timeout(PATIENCE, all).await.context("not every watch saw every event")??;
    Ok(times)
}

fn watches(binary: &Path, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let cluster = cluster(binary)?;
    let mut times = load(&cluster, CONNECTIONS, |load| async move {
        let watches = deliver(&load, WATCHES, EVENTS).await?;
        let began = Instant::now();
        for event in 0..EVENTS {
            let body =
                json!({"metadata": {"name": name(event)}, "data": {"value": microseconds().to_string()}});
            load.call(Method::POST, MAPS, JSON, body.to_string()).await?;
            sleep_until((began + EVERY * u32::try_from(event + 1)?).into()).await;
        }
        delivered(watches).await
    })?;
    let [p50, p99] = [50, 99].map(|p| percentile(&mut times, p).unwrap_or_default());
    figures.push(Figure {
        what: "1 000 watches, 10 writes/s: delivery, the client's parsing included",
        value: format!("p50 {}, p99 {}", milliseconds(p50), milliseconds(p99)),
        reference: "p50 14.5 ms, p99 28.7 ms",
        bound: "p99 ≤ 14 ms",
    });

    let before = memory(&cluster, "VmRSS")?;
    let connections = IDLE_WATCHES / WATCHES_EACH;
    let pid = cluster.pid().context("no server runs")?;
    let after = load(&cluster, connections, move |load| async move {
        let from = revision(&load, MAPS).await?;
        let mut watches = Vec::with_capacity(IDLE_WATCHES);
        while watches.len() < IDLE_WATCHES {
            watches.push(Watch::open(&load, MAPS, &from).await?);
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(resident.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    })?;
    figures.push(Figure {
        what: "10 000 idle watches on 40 connections, each",
        value: format!("{:.1} KB", (after - before) * 1024.0 / IDLE_WATCHES as f64),
        reference: "",
        bound: "≤ 30 KB",
    });
    Ok(())
}

/// Creates a second, and the slowest hundredth of the deliveries, beside watches that nobody reads.
fn beside(binary: &Path, unread: usize) -> anyhow::Result<(Phase, Duration, f64)> {
    let cluster = cluster(binary)?;
    let endpoint = endpoint(&cluster)?;
    let (phase, p99) = load(&cluster, CONNECTIONS, move |load| async move {
        let mut held = Vec::new();
        for _ in 0..unread {
            // a connection of its own: the others' windows stay open
            let own = Load::new(&endpoint, 1)?;
            let from = revision(&own, MAPS).await?;
            held.push((Watch::open(&own, MAPS, &from).await?, own));
        }
        let watches = deliver(&load, BESIDE, WRITES).await?;
        let create = |load: Arc<Load>, n: usize| async move {
            load.call(Method::POST, MAPS, JSON, map(&name(n), 0, &microseconds().to_string())).await
        };
        let phase = load.phase(WRITES, PARALLEL, create).await?;
        let mut times = delivered(watches).await?;
        drop(held);
        Ok((phase, percentile(&mut times, 99).unwrap_or_default()))
    })?;
    Ok((phase, p99, memory(&cluster, "VmHWM")?))
}

fn stalled(binary: &Path, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    for (what, unread) in [
        ("5 000 creates beside 20 watches", 0),
        ("the same beside 10 more watches that nobody reads", STALLED),
    ] {
        let (phase, p99, peak) = beside(binary, unread)?;
        let value =
            format!("{:.0}/s, delivery p99 {}, peak {}", phase.rate, milliseconds(p99), megabytes(peak));
        figures.push(Figure { what, value, reference: "", bound: "no difference" });
    }
    Ok(())
}

fn many(binary: &Path, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let mut cluster = cluster(binary)?;
    load(&cluster, CONNECTIONS, |load| async move {
        let create = |load: Arc<Load>, n: usize| async move {
            load.call(Method::POST, MAPS, JSON, map(&name(n), n % 10, "0")).await
        };
        load.phase(MANY, PARALLEL, create).await
    })?;
    cluster.stop_server()?;
    let began = Instant::now();
    cluster.start_server()?;
    figures.push(Figure {
        what: "100 000 objects: process start → API ready",
        value: milliseconds(began.elapsed()),
        reference: "",
        bound: "≤ 3 000 ms",
    });
    let count = |cluster: &Cluster| {
        load(cluster, 1, |load| async move {
            let began = Instant::now();
            let size = load.call(Method::GET, MAPS, "", String::new()).await?;
            if size < MANY * 1024 {
                bail!("the list holds {size} bytes only");
            }
            Ok((size, began.elapsed()))
        })
    };
    // the first one fills the caches
    count(&cluster)?;
    let resident = memory(&cluster, "VmRSS")?;
    let pid = cluster.pid().context("no server runs")?;
    // 5: the peak is counted anew
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    let (size, took) = count(&cluster)?;
    let peak = memory(&cluster, "VmHWM")?;
    figures.push(Figure {
        what: "LIST of all 100 000: memory above the resident",
        value: format!(
            "{:.0} of {:.0} MB resident, for an answer of {:.0} MB in {}",
            peak - resident,
            resident,
            size as f64 / 1e6,
            milliseconds(took)
        ),
        reference: "",
        bound: "no second copy",
    });
    Ok(())
}
