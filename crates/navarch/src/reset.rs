//! `navarch reset`: takes back everything the cluster made on this machine, then looks again and lists what is
//! left. Nothing is the promise.
//!
//! What is ours is recognised by the instance's name, which is in every path and cgroup of the cluster:
//! processes by their cgroup or by the folder a shim was started with, mounts and namespaces (bound files) by
//! their place, links and the nftables table by `network`, services of IPVS by that table.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::data_dir::DataDir;
use crate::{down, kubeconfig, server};

/// Killed processes have this long to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// A process may fork while it is being killed: look again so often.
const ROUNDS: usize = 10;
/// Where the hierarchies are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Removes the cluster in `path`.
pub fn main(path: &Path) -> anyhow::Result<()> {
    let Some(data) = DataDir::at(path)? else {
        println!("{} does not exist; nothing is left", path.display());
        return Ok(());
    };
    // a node that joined has its certificate, and no runtime of ours where it uses another
    let joined = data.agent().join("client.pem");
    if ![data.store(), data.pki(), data.run(), joined].iter().any(|path| path.exists()) {
        bail!("{} holds no cluster; nothing was removed", path.display());
    }
    if !rustix::process::geteuid().is_root() {
        bail!("root is needed to remove mounts, links and processes of the cluster; run this with sudo");
    }
    if down::stop(&data)? {
        println!("stopped the server");
    }
    forget_context(&data);

    let killed = kill_processes(&data)?;
    let mut left = runtime::reset(&server::runtime_config(&data, Arc::new(runtime::NoNetwork)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // while the namespaces are there
    let external = runtime.block_on(server::take_back_external(&data));
    left.extend(external.err().map(|error| format!("what external CNI plugins made: {error:#}")));
    unmount_all(&data)?;
    let network = server::network_config(&data);
    runtime.block_on(proxy::ipvs::reset(&network)).context("cannot take back the services of IPVS")?;
    let links = runtime.block_on(network::reset(&network));
    left.extend(links.context("cannot remove links and nftables table")?.iter().map(ToString::to_string));
    remove_cgroups(&data)?;
    for folder in [data.run(), data.root().to_owned()] {
        remove_folder(&folder)?;
    }
    // the parent of all instances goes with the last
    let _ = std::fs::remove_dir("/run/navarch");
    println!(
        "removed {killed} processes, and all mounts, namespaces, cgroups, links, nftables rules and files"
    );

    left.extend(leftovers(&data)?);
    if left.is_empty() {
        println!("left: nothing");
        return Ok(());
    }
    for what in &left {
        println!("left: {what}");
    }
    bail!("{} things could not be removed; run this again, or remove them by hand", left.len())
}

/// What a second look finds.
fn leftovers(data: &DataDir) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    left.extend(processes(data)?.into_iter().map(|pid| format!("process {pid}")));
    left.extend(mounts(data)?.into_iter().map(|path| format!("mount {}", path.display())));
    left.extend(cgroups(data).into_iter().map(|path| format!("cgroup {}", path.display())));
    for folder in [data.run(), data.root().to_owned()] {
        if folder.exists() {
            left.push(format!("folder {}", folder.display()));
        }
    }
    Ok(left)
}

/// Takes our context out of the user's kubeconfig; that it cannot be read is no reason to keep the rest.
fn forget_context(data: &DataDir) {
    let forget = || -> anyhow::Result<()> {
        let Ok(path) = std::fs::read(data.merged_into()) else { return Ok(()) };
        let path = PathBuf::from(OsString::from_vec(path));
        if let Some(ours) = kubeconfig::read(&data.admin_kubeconfig())? {
            kubeconfig::remove(&path, &ours)?;
            println!("removed the context from {}", path.display());
        }
        Ok(())
    };
    if let Err(error) = forget() {
        eprintln!("warning: the context stays in your kubeconfig: {error:#}");
    }
}

/// Processes in our cgroups, and shims started on our folders.
fn processes(data: &DataDir) -> anyhow::Result<BTreeSet<i32>> {
    let own = std::process::id() as i32;
    let group = data.cgroup();
    let run = data.run();
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").context("/proc")? {
        let entry = entry.context("/proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        // a process may end at any moment: what cannot be read is gone
        let cgroup = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let in_group = cgroup.lines().filter_map(|l| l.splitn(3, ':').nth(2)).any(|p| below(p, &group));
        let mut words = arguments.split(|b| *b == 0).skip(1);
        let is_shim = words.next() == Some(b"shim")
            && words.next().is_some_and(|a| Path::new(&OsString::from_vec(a.to_vec())).starts_with(&run));
        if (in_group || is_shim) && pid != own && !is_zombie(&entry.path()) {
            found.insert(pid);
        }
    }
    Ok(found)
}

/// Ended, and only waiting for its parent to take notice.
fn is_zombie(process: &Path) -> bool {
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_none_or(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('Z' | 'X') | None))
}

/// `path` is `top`, or inside it.
fn below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn kill_processes(data: &DataDir) -> anyhow::Result<usize> {
    let mut killed = BTreeSet::new();
    for _ in 0..ROUNDS {
        let found = processes(data)?;
        if found.is_empty() {
            break;
        }
        let mut dying = Vec::new();
        for pid in found.into_iter().filter_map(Pid::from_raw) {
            match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(process) => {
                    match pidfd_send_signal(&process, Signal::KILL) {
                        Ok(()) | Err(Errno::SRCH) => {}
                        Err(error) => {
                            return Err(error).with_context(|| format!("cannot kill process {pid}"));
                        }
                    }
                    killed.insert(pid.as_raw_nonzero());
                    dying.push(process);
                }
                Err(Errno::SRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot reach process {pid}")),
            }
        }
        for process in &dying {
            down::ended_within(process, PATIENCE)?;
        }
    }
    Ok(killed.len())
}

/// Mount points in our folders, innermost last.
fn mounts(data: &DataDir) -> anyhow::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let (root, run) = (data.root(), data.run());
    let ours = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        // the folder itself may be somebody's mount
        .filter(|path| path != root && (path.starts_with(root) || path.starts_with(&run)));
    Ok(ours.collect())
}

/// Undoes the octal escapes of mountinfo (proc(5)).
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match octal {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn unmount_all(data: &DataDir) -> anyhow::Result<()> {
    for path in mounts(data)?.iter().rev() {
        match unmount(path, UnmountFlags::DETACH) {
            Ok(()) => {}
            // went with an outer one, or was listed twice
            Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot unmount {}", path.display())),
        }
    }
    Ok(())
}

/// Our cgroups in every hierarchy, outermost first.
fn cgroups(data: &DataDir) -> Vec<PathBuf> {
    let name = data.cgroup();
    let name = name.trim_start_matches('/');
    let hierarchies = std::fs::read_dir(CGROUPS).into_iter().flatten().flatten().map(|e| e.path());
    let mut found: Vec<PathBuf> = std::iter::once(PathBuf::from(CGROUPS))
        .chain(hierarchies)
        .map(|h| h.join(name))
        .filter(|p| p.is_dir() && !p.is_symlink())
        .collect();
    // controllers that share a hierarchy appear once per name
    found.sort();
    let mut at = 0;
    while at < found.len() {
        let children = std::fs::read_dir(&found[at]).into_iter().flatten().flatten();
        found.extend(children.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        at += 1;
    }
    found
}

fn remove_cgroups(data: &DataDir) -> anyhow::Result<()> {
    for path in cgroups(data).iter().rev() {
        match std::fs::remove_dir(path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot remove cgroup {}", path.display()));
            }
        }
    }
    Ok(())
}

fn remove_folder(folder: &Path) -> anyhow::Result<()> {
    tree::remove(folder).with_context(|| format!("cannot remove {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbours_cgroup_is_not_ours() {
        assert!(below("/navarch-0a", "/navarch-0a"));
        assert!(below("/navarch-0a/pods/x", "/navarch-0a"));
        assert!(!below("/navarch-0ab", "/navarch-0a"));
        assert!(!below("/x/navarch-0a", "/navarch-0a"));
    }

    #[test]
    fn escaped_mount_points_are_read() {
        assert_eq!(unescape("/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape("/plain\\"), Path::new("/plain\\"));
    }
}
