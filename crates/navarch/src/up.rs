//! `navarch up`: the server in the background.

use std::any::TypeId;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args as _;
use client::{Cache, Change};
use k8s_openapi::api::core::v1::Node;

use crate::command::{DATA_DIR, Part, ServerOptions};
use crate::data_dir::DataDir;
use crate::{kubeconfig, preflight};

/// How long the node may take to become ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of the server's log that are shown where it fails.
const TAIL: usize = 15;

/// Starts the cluster, or finds it running; returns when its node is ready.
pub fn main(options: ServerOptions) -> anyhow::Result<()> {
    preflight::check(&options.parts())?;
    let began = Instant::now();
    let data = DataDir::create(&options.data_dir)?;
    match data.running()? {
        Some(pid) => println!("a server runs already (process {pid})"),
        None => {
            start(&data)?;
            println!("API ready after {:.1} s", began.elapsed().as_secs_f64());
        }
    }
    if options.parts().contains(&Part::Agent) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let node = runtime.block_on(node_ready(&data))?;
        println!("node {node} ready after {:.1} s", began.elapsed().as_secs_f64());
    }
    merge(&data)
}

/// Starts the server in a session of its own and waits for its first line.
fn start(data: &DataDir) -> anyhow::Result<()> {
    let log_path = data.server_log();
    let folder = log_path.parent().unwrap_or(data.root());
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut log = std::fs::OpenOptions::new();
    let log =
        log.create(true).append(true).open(&log_path).with_context(|| log_path.display().to_string())?;
    let logged_before = log.metadata().map_or(0, |m| m.len());
    let mut command = Command::new("/proc/self/exe");
    command.arg0("navarch").arg("server").args(arguments(std::env::args_os().skip(1))?);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    new_session(&mut command);
    let mut server = command.spawn().context("cannot start the server")?;
    let first = first_line(&mut server)?;
    if first.is_empty() {
        let status = server.wait().context("cannot wait for the server")?;
        bail!(
            "the server ended before the API was ready ({status}); from {}:\n{}",
            log_path.display(),
            tail(&log_path, logged_before)
        );
    }
    println!("{first}");
    Ok(())
}

/// The flags of this command line that are the server's, with absolute paths: a server in the background works in another
/// folder.
fn arguments(given: impl Iterator<Item = OsString>) -> anyhow::Result<Vec<OsString>> {
    let known = ServerOptions::augment_args(clap::Command::new("server"));
    let (mut given, mut picked) = (given, Vec::new());
    while let Some(argument) = given.next() {
        let Some(text) = argument.to_str().and_then(|text| text.strip_prefix("--")) else { continue };
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(OsString::from(value))),
            None => (text, None),
        };
        let Some(flag) = known.get_arguments().find(|flag| flag.get_long() == Some(name)) else { continue };
        picked.push(format!("--{name}").into());
        if !flag.get_action().takes_values() {
            continue;
        }
        let Some(value) = value.or_else(|| given.next()) else { continue };
        let is_path = flag.get_value_parser().type_id() == TypeId::of::<PathBuf>();
        picked.push(if is_path && value != "-" { std::path::absolute(value)?.into() } else { value });
    }
    Ok(picked)
}

/// The server outlives this command and its terminal.
#[allow(unsafe_code, reason = "setsid between fork and exec; it is async-signal-safe")]
fn new_session(command: &mut Command) {
    let detach = || rustix::process::setsid().map(|_| ()).map_err(Into::into);
    // SAFETY: the closure makes one system call and touches no memory of the parent.
    unsafe { command.pre_exec(detach) };
}

fn first_line(server: &mut Child) -> anyhow::Result<String> {
    let stdout = server.stdout.take().context("the server has no output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).context("cannot read the server's output")?;
    Ok(line.trim_end().to_owned())
}

fn tail(path: &Path, from: u64) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let new = bytes.get(from as usize..).unwrap_or(&bytes);
    let text = String::from_utf8_lossy(new);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

async fn node_ready(data: &DataDir) -> anyhow::Result<String> {
    let endpoint = client::kubeconfig::load(&data.admin_kubeconfig(), "navarch-up")?;
    let client = client::Client::new(std::sync::Arc::new(client::https::Https::new(&endpoint)?));
    let nodes: Cache<Node> = client.caches().of();
    let mut changes = nodes.subscribe();
    let mut shown = String::new();
    let ready = async {
        while let Some(change) = changes.next().await {
            let (Change::Added(node) | Change::Modified { new: node, .. }) = change else { continue };
            let (ready, why) = readiness(&node);
            if ready {
                return Ok(node.metadata.name.clone().unwrap_or_default());
            }
            if why != shown && std::io::stdout().is_terminal() {
                println!("  waiting for the node: {why}");
                let _ = std::io::stdout().flush();
            }
            shown = why;
        }
        bail!("the connection to the API ended")
    };
    match tokio::time::timeout(PATIENCE, ready).await {
        Ok(outcome) => outcome,
        Err(_) => bail!(
            "no node is ready after {} s (last seen: {}); see {}",
            PATIENCE.as_secs(),
            if shown.is_empty() { "no node registered" } else { &shown },
            data.server_log().display()
        ),
    }
}

/// Whether the node is ready, else what it says.
fn readiness(node: &Node) -> (bool, String) {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    match conditions.iter().find(|c| c.type_ == "Ready") {
        Some(c) if c.status == "True" => (true, String::new()),
        Some(c) => (false, c.message.clone().unwrap_or_else(|| c.status.clone())),
        None => (false, "registered, no condition yet".to_owned()),
    }
}

/// Adds our context to the user's kubeconfig and says what to try.
fn merge(data: &DataDir) -> anyhow::Result<()> {
    let admin = data.admin_kubeconfig();
    let ours = kubeconfig::read(&admin)?.with_context(|| format!("{} is missing", admin.display()))?;
    let path = kubeconfig::users_file()?;
    let current = kubeconfig::merge(&path, &ours)?;
    let recorded = data.merged_into();
    let absolute = std::path::absolute(&path).context("cannot resolve the kubeconfig's path")?;
    std::fs::write(&recorded, absolute.as_os_str().as_encoded_bytes())
        .with_context(|| recorded.display().to_string())?;
    let context = if current { "" } else { " --context navarch" };
    println!("context navarch is in {}{}", path.display(), if current { ", and current" } else { "" });
    println!();
    println!("Try next:");
    println!("  kubectl{context} get nodes");
    println!("  kubectl{context} get pods --all-namespaces --watch");
    let folder = if data.root() == Path::new(DATA_DIR) {
        String::new()
    } else {
        format!(" --data-dir {}", data.root().display())
    };
    println!("  navarch image import ARCHIVE.tar{folder}   (from `docker save`, or an OCI archive)");
    println!("  navarch down{folder}    stops; containers keep running");
    println!("  navarch reset{folder}   removes everything");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_the_server_reach_one_in_the_background() {
        let given = [
            "up",
            "--listen",
            "1.2.3.4:5",
            "--token-auth-file=/t",
            "--cluster-cidr",
            "10.0.0.0/16,fd00::/48",
            "--other",
            "x",
        ];
        let picked = arguments(given.iter().map(OsString::from)).unwrap();
        let expected =
            ["--listen", "1.2.3.4:5", "--token-auth-file", "/t", "--cluster-cidr", "10.0.0.0/16,fd00::/48"];
        assert_eq!(picked, expected);
    }

    #[test]
    fn paths_become_absolute() {
        let given = ["up", "--data-dir", "here", "--kubelet-config=k.yaml"].iter().map(OsString::from);
        let here = std::env::current_dir().unwrap();
        let expected: [OsString; 4] = [
            "--data-dir".into(),
            here.join("here").into(),
            "--kubelet-config".into(),
            here.join("k.yaml").into(),
        ];
        assert_eq!(arguments(given).unwrap(), expected);
    }
}
