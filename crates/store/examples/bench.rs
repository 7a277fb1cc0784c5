//! Figures of the embedded engine: durable creates per second with 64 writers, updates, file size, reopening.
//!
//! `cargo run --release -p store --example bench [seconds] [folder]`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use store::embedded::{Embedded, Options};
use store::{Durability, Put, Store};

const WRITERS: u64 = 64;
const UPDATES: u64 = 1_000_000;
const KEYS: u64 = 10_000;

/// About 1 KB that does not compress well.
fn value(random: &mut u64) -> Bytes {
    let mut text = String::from(r#"{"apiVersion":"v1","kind":"ConfigMap","data":{"k":""#);
    while text.len() < 1020 {
        *random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        text.push_str(&format!("{random:016x}"));
    }
    text.truncate(1020);
    text.push_str("\"}}");
    text.into()
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lines = status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}

/// Runs 64 writers until `duration` is over or `total` writes are done; prints rate and latency.
async fn measure(
    what: &str,
    store: &Arc<Embedded>,
    duration: Duration,
    total: u64,
    durability: Durability,
    key: fn(u64, u64) -> String,
) {
    let begin = Instant::now();
    let before = store.stats();
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut latencies = Vec::new();
            let mut random = writer + 1;
            for number in 0..total / WRITERS {
                if begin.elapsed() > duration {
                    break;
                }
                let put = Put { durability, ..Put::set(key(writer, number), value(&mut random)) };
                let sent = Instant::now();
                store.put(put).await.expect("put");
                latencies.push(sent.elapsed());
            }
            latencies
        })
    });
    let mut latencies = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        latencies.extend(writer.await.expect("writer"));
    }
    let seconds = begin.elapsed().as_secs_f64();
    latencies.sort();
    let at = |share: usize| latencies.get(latencies.len() * share / 1000).copied().unwrap_or_default();
    let after = store.stats();
    println!(
        "{what}: {:.0}/s ({} in {seconds:.1} s), p50 {:?}, p99 {:?}, p99.9 {:?}, {} commits, file {} MB, {}",
        latencies.len() as f64 / seconds,
        latencies.len(),
        at(500),
        at(990),
        at(999),
        after.commits - before.commits,
        after.file_bytes >> 20,
        memory(),
    );
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(5);
    let folder = arguments.next().map_or_else(|| tempfile::tempdir().expect("folder").keep(), PathBuf::from);
    let store = Embedded::open(&folder.join("create"), Options::default()).expect("open");
    let mut watch = store.watch("/registry/", store.revision()).await.expect("watch");
    let watcher = tokio::spawn(async move {
        let mut seen = 0;
        while let Some(Ok(batch)) = watch.next().await {
            seen += batch.len() as u64;
        }
        seen
    });
    let create = |writer, number| format!("/registry/core/configmaps/default/w{writer}-{number}");
    let duration = Duration::from_secs(seconds);
    measure("durable creates, 64 writers, one watch", &store, duration, u64::MAX, Durability::Disk, create)
        .await;
    store.close().await.expect("close");
    println!("  the watch saw {} events", watcher.await.expect("watcher"));
    drop(store);
    let begin = Instant::now();
    let store = Embedded::open(&folder.join("create"), Options::default()).expect("reopen");
    println!("reopen with {} keys: {:?}, {}", store.stats().keys, begin.elapsed(), memory());
    let begin = Instant::now();
    let range = store.range("/registry/", None, None, 0).await.expect("range");
    println!("range of {} keys: {:?}", range.items.len(), begin.elapsed());
    drop((range, store));

    let store = Embedded::open(&folder.join("memory"), Options::default()).expect("open");
    let lease = |writer, number| format!("/registry/coordination.k8s.io/leases/l{writer}-{}", number % 100);
    measure("updates from memory, 64 writers", &store, duration, u64::MAX, Durability::Memory, lease).await;
    drop(store);

    let store = Embedded::open(&folder.join("update"), Options { history_max: 10_000, ..Options::default() });
    let store = store.expect("open");
    let update = |writer: u64, number: u64| {
        let slot = (number * WRITERS + writer).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        format!("/registry/core/configmaps/default/k{}", slot % KEYS)
    };
    let forever = Duration::from_secs(3600);
    measure("1 M durable updates of 10 k keys", &store, forever, UPDATES, Durability::Disk, update).await;
    store.compact(store.revision()).await.expect("compact");
    let begin = Instant::now();
    store.defragment().await.expect("defragment");
    println!(
        "file after compaction: {:.1} MB ({:?})",
        store.stats().file_bytes as f64 / 1e6,
        begin.elapsed()
    );
    store.close().await.expect("close");
    drop(store);
    let begin = Instant::now();
    let store = Embedded::open(&folder.join("update"), Options::default()).expect("reopen");
    println!("reopen with {} keys: {:?}", store.stats().keys, begin.elapsed());
    drop(store);
    std::fs::remove_dir_all(&folder).expect("clean up");
}
