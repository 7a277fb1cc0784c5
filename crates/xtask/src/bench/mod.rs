//! `cargo xtask bench [SUITE]`: measures the release binary on this machine and writes a page of `docs/` for each suite.
//!
//! The load generator shares the machine with what it measures, as it did for the reference's figures.

mod api;
mod load;
mod network;
mod node;
mod overview;
mod schedule;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use client::Client;
use client::https::{Endpoint, Https};
use testkit::Cluster;

use self::load::Load;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// The whole cluster at a glance: start, pods, healing, idle cost.
    Overview,
    /// The API server: requests, watches, many objects.
    Api,
    /// Services and names: what they cost, and ten thousand of them.
    Network,
    /// A node: pods started, healed, many of them; beside containerd under our kubelet.
    Node,
    /// The scheduler and the control loops: pods bound, many nodes, an idle process.
    Schedule,
}

/// Measures `binary`, prints the table and writes the page.
pub fn run(root: &Path, binary: &Path, suite: Suite) -> anyhow::Result<()> {
    let binary =
        binary.canonicalize().with_context(|| format!("{}: build it with `make build`", binary.display()))?;
    let (page, file) = match suite {
        Suite::Overview => (overview::page(&binary)?, "docs/benchmarks.md"),
        Suite::Api => (api::page(&binary)?, "docs/benchmarks-api.md"),
        Suite::Network => (network::page(&binary)?, "docs/benchmarks-network.md"),
        Suite::Node => (node::page(&binary)?, "docs/benchmarks-node.md"),
        Suite::Schedule => (schedule::page(&binary)?, "docs/benchmarks-schedule.md"),
    };
    println!("{page}");
    let path = root.join(file);
    std::fs::write(&path, page).with_context(|| path.display().to_string())
}

/// How the cluster's administrator reaches its server.
fn endpoint(cluster: &Cluster) -> anyhow::Result<Endpoint> {
    let kubeconfig: PathBuf = cluster.data_dir().join("admin.kubeconfig");
    Ok(client::kubeconfig::load(&kubeconfig, "navarch-bench")?)
}

/// Runs `work` on the cluster's host with a client over HTTPS.
fn on_host<T, F, W>(cluster: &Cluster, work: W) -> anyhow::Result<T>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>>,
    W: FnOnce(Client) -> F + Send + 'static,
{
    let endpoint = endpoint(cluster)?;
    cluster.net().run(move || {
        let client = Client::new(Arc::new(Https::new(&endpoint)?));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(work(client))
    })?
}

/// One line of the table.
struct Figure {
    what: &'static str,
    value: String,
    reference: &'static str,
    bound: &'static str,
}

/// What comes before, and the figures as a table.
fn table(head: &str, figures: &[Figure]) -> String {
    let mut text = format!("{head}| work | measured | reference | bound |\n|---|---|---|---|\n");
    for Figure { what, value, reference, bound } in figures {
        text.push_str(&format!("| {what} | {value} | {reference} | {bound} |\n"));
    }
    text
}

/// Runs `work` on the cluster's host, with connections of its own.
fn load<T, F, W>(cluster: &Cluster, connections: usize, work: W) -> anyhow::Result<T>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>>,
    W: FnOnce(Arc<Load>) -> F + Send + 'static,
{
    let endpoint = endpoint(cluster)?;
    cluster.net().run(move || {
        let load = Load::new(&endpoint, connections)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(work(load))
    })?
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn megabytes(value: f64) -> String {
    format!("{value:.0} MB")
}

/// Lets a time pass, for figures that are per second.
fn pause(time: Duration) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async { tokio::time::sleep(time).await });
    Ok(())
}

/// A percentile; `None` of nothing.
fn percentile(times: &mut [Duration], percent: usize) -> Option<Duration> {
    times.sort();
    let at = (times.len() * percent).div_ceil(100).clamp(1, times.len().max(1)) - 1;
    times.get(at).copied()
}

/// One line of `/proc/PID/status` that is given in kB, in MB.
fn memory(cluster: &Cluster, line: &str) -> anyhow::Result<f64> {
    memory_of(cluster.pid().context("no server runs")?, line)
}

/// The same of any process.
fn memory_of(pid: u32, line: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value =
        status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':')).context("no such line")?;
    Ok(value.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// What the machine is.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory: u64 = memory
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0);
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let version: Vec<&str> = kernel.split('.').take(2).collect();
    format!("a Linux VM with {cores} cores, {} GB, kernel {}", memory.div_ceil(1 << 20), version.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_measured_value() {
        let mut times: Vec<Duration> = (1..=20).map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut times, 50), Some(Duration::from_millis(10)));
        assert_eq!(percentile(&mut times, 99), Some(Duration::from_millis(20)));
        assert_eq!(percentile(&mut times[..1], 99), Some(Duration::from_millis(1)));
        assert_eq!(percentile(&mut [], 50), None);
    }
}
