//! A network namespace as a host of its own.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// The host's address; from a range for documentation (RFC 5737), so that nothing real is meant.
pub const HOST_ADDRESS: &str = "192.0.2.10";

/// A namespace that lives as long as this handle or a process in it.
#[derive(Debug, Clone)]
pub struct NetNs {
    handle: Arc<OwnedFd>,
}

impl NetNs {
    /// A new host: loopback, one link with [`HOST_ADDRESS`] and a default route that leads nowhere.
    pub fn new() -> anyhow::Result<Self> {
        let made = std::thread::spawn(unshared)
            .join()
            .map_err(|_| anyhow!("the thread of a new namespace panicked"))?;
        let this =
            Self { handle: Arc::new(made.context("cannot make a network namespace (root is needed)")?) };
        for line in [
            "link set lo up".to_owned(),
            // of its own: the kernel would take the lowest of the ports, and a host that is plugged in could move this one's
            // address from under the neighbours for ten seconds
            "link add uplink address 02:00:c0:00:02:0a type bridge".to_owned(),
            format!("address add {HOST_ADDRESS}/24 dev uplink"),
            "link set uplink up".to_owned(),
            "route add default via 192.0.2.1 dev uplink".to_owned(),
        ] {
            this.ip(&line)?;
        }
        Ok(this)
    }

    /// A host on the same wire as `other`, with the address 192.0.2.(10 + `number`); its link is called `eth0`.
    pub fn beside(other: &Self, number: u8) -> anyhow::Result<Self> {
        let made = std::thread::spawn(unshared)
            .join()
            .map_err(|_| anyhow!("the thread of a new namespace panicked"))?;
        let this = Self { handle: Arc::new(made?) };
        let theirs = other.path();
        let port = format!("port{number}");
        this.ip("link set lo up")?;
        this.ip(&format!("link add eth0 type veth peer name {port} netns {}", theirs.display()))?;
        this.ip(&format!("address add 192.0.2.{}/24 dev eth0", 10 + u16::from(number)))?;
        this.ip("link set eth0 up")?;
        this.ip("route add default via 192.0.2.1 dev eth0")?;
        other.ip(&format!("link set {port} master uplink"))?;
        other.ip(&format!("link set {port} up"))?;
        Ok(this)
    }

    /// An existing namespace, for example `/proc/PID/ns/net`.
    pub fn at(path: &std::path::Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        Ok(Self { handle: Arc::new(file.into()) })
    }

    /// `ip` in here, for example `link set eth0 down`.
    pub fn ip(&self, line: &str) -> anyhow::Result<()> {
        let mut command = self::ip(line);
        self.enter(&mut command);
        crate::run(&mut command).map(|_| ())
    }

    /// A host that is wired to nothing: what a container is given before a network plugin comes.
    pub fn empty() -> anyhow::Result<Self> {
        let made = std::thread::spawn(unshared)
            .join()
            .map_err(|_| anyhow!("the thread of a new namespace panicked"))?;
        Ok(Self { handle: Arc::new(made?) })
    }

    /// A path to it, for other processes, as long as this handle lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd()).into()
    }

    /// Links, addresses, routes, rules and proxied neighbours, to compare with later. What IPv6 makes by itself in its own time is
    /// left out.
    pub fn state(&self) -> anyhow::Result<String> {
        let mut state = String::new();
        for line in
            ["-br link", "-br -4 address", "-4 route show table all", "-6 route", "rule", "neigh show proxy"]
        {
            let mut command = self::ip(line);
            self.enter(&mut command);
            let text = crate::run(&mut command)?;
            for line in text.lines().filter(|l| !l.starts_with("fe80") && !l.starts_with("ff00")) {
                // a link's name without the other end's number, and without its hardware address
                let words =
                    line.split_whitespace().filter(|w| w.matches(':').count() != 5 && !w.starts_with('<'));
                let words = words.map(|w| w.split_once("@if").map_or(w, |(name, _)| name));
                state.push_str(&words.collect::<Vec<_>>().join(" "));
                state.push('\n');
            }
        }
        Ok(state)
    }

    /// Makes `command` run in here.
    #[allow(unsafe_code, reason = "setns between fork and exec; it is async-signal-safe")]
    pub fn enter(&self, command: &mut Command) {
        let handle = self.handle.clone();
        let enter = move || {
            move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network)).map_err(Into::into)
        };
        // SAFETY: the closure makes one system call and touches no memory of the parent.
        unsafe { command.pre_exec(enter) };
    }

    /// Runs `f` on a thread in here; sockets it makes stay in here.
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
        let handle = self.handle.clone();
        let thread = std::thread::spawn(move || {
            move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network)).map(|()| f())
        });
        Ok(thread.join().map_err(|_| anyhow!("the thread in the namespace panicked"))??)
    }
}

#[allow(unsafe_code, reason = "unshare changes this thread only, and this thread ends at once")]
fn unshared() -> anyhow::Result<OwnedFd> {
    // SAFETY: no file descriptor table is unshared, so no handle changes its meaning.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

fn ip(line: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(line.split(' '));
    command
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_taken_on_one_host_is_free_on_another() {
        let (a, b) = (NetNs::new().unwrap(), NetNs::new().unwrap());
        let bind = || TcpListener::bind((HOST_ADDRESS, 80));
        let taken = a.run(bind).unwrap().unwrap();
        assert!(a.run(bind).unwrap().is_err());
        assert!(b.run(bind).unwrap().is_ok());
        drop(taken);
    }
}
