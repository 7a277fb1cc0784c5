//! Clusters for tests: each in a network namespace and a folder of its own, driven by the real kubectl and Helm.
//!
//! - [`Cluster`] starts the built `navarch server`, and at its end proves with `navarch reset` that nothing is left;
//! - [`Agent`] joins a further node from a host of its own;
//! - [`eventually`] waits on a condition and shows the last status where it does not come;
//! - [`etcd::Etcd`] is a real etcd, [`registry::Registry`] a real image registry, [`faulty_registry::FaultyRegistry`] one that is broken;
//! - [`Disk`] is a file as a disk;
//! - [`image`] makes images of real software from Debian packages;
//! - [`vm::Vm`] runs a program on another kernel, [`Machine`] is one with nothing but our binary;
//! - [`NetNs`] is a host of its own, as far as the network is concerned.
//!
//! Needs root, `ip` (iproute2), for disks `losetup` and `mkfs.ext4`, and for images `apt-get` and `dpkg-deb`. Downloads stay in [`cache_dir`].

mod agent;
mod cluster;
pub mod containerd;
pub mod debian;
mod disk;
pub mod etcd;
pub mod faulty_registry;
mod fetch;
pub mod image;
mod machine;
mod netns;
pub mod registry;
pub mod tools;
pub mod vm;
mod wait;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub use agent::Agent;
pub use cluster::{Cluster, Options};
pub use debian::{CniPlugins, cni_plugins};
pub use disk::{Disk, Mounted};
pub use machine::Machine;
pub use netns::{HOST_ADDRESS, NetNs};
pub use wait::{eventually, eventually_within, slowness};

/// Makes `path` a program with these `contents`. Another process writes it: while this one had it open, a thread that starts a
/// program could take the open file along, and `path` could not be executed (`ETXTBSY`).
pub fn executable(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let mut source = tempfile::NamedTempFile::new()?;
    source.write_all(contents)?;
    run(Command::new("install").args(["-m", "755"]).arg(source.path()).arg(path)).map(|_| ())
}

/// Where downloads are kept: `NAVARCH_CACHE`, else `~/.cache/navarch`.
pub fn cache_dir() -> PathBuf {
    if let Some(path) = std::env::var_os("NAVARCH_CACHE") {
        return PathBuf::from(path);
    }
    std::env::home_dir().unwrap_or_else(std::env::temp_dir).join(".cache/navarch")
}

/// The root of the source tree: that of the crate under test, as cargo says when it runs a test.
///
/// The path at build time does not do: clones that share a target folder share what was built there.
pub fn workspace() -> &'static Path {
    static ROOT: std::sync::LazyLock<PathBuf> = std::sync::LazyLock::new(|| {
        let here = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        here.ancestors().nth(2).unwrap_or(&here).to_owned()
    });
    &ROOT
}

/// What a command may take: more is a hang, and the test is to say of what, before the whole program's time is over.
fn limit() -> Duration {
    Duration::from_secs(600) * slowness().min(2)
}

/// Runs a command to its end; its standard output. Fails with what it wrote to standard error.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = output(command, "")?;
    checked(command, output)
}

/// Runs a command with `input` to its end, however it ends; fails if it takes longer than [`limit`].
pub(crate) fn output(command: &mut Command, input: &str) -> anyhow::Result<Output> {
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let process = Pid::from_raw(child.id() as i32).context("no process id")?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let (ended, end) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let hangs = end.recv_timeout(limit()) == Err(mpsc::RecvTimeoutError::Timeout);
        if hangs {
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
        hangs
    });
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // it gave up before it had read all: it says why
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    let output = child.wait_with_output();
    drop(ended);
    if watch.join().unwrap_or_default() {
        let said = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        bail!("{command:?} did not end within {} s:\n{}", limit().as_secs(), said.unwrap_or_default());
    }
    Ok(output?)
}

fn checked(command: &Command, output: Output) -> anyhow::Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{stdout}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(stdout)
}
