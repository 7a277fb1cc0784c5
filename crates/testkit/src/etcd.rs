//! A real etcd for one test: any number of members on free ports, in a folder that goes with it.
//!
//! The program is the one on the `PATH`, else Debian's package `etcd-server`, unpacked into the cache.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;

use crate::{cache_dir, image, run};

/// A new port may be taken by somebody else before etcd listens there.
const TRIES: usize = 5;
/// How long a member may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

struct Member {
    name: String,
    client: u16,
    peer: u16,
    health: u16,
    process: Option<Child>,
}

/// A running etcd cluster. Dropping it ends and removes everything.
pub struct Etcd {
    folder: TempDir,
    members: Vec<Member>,
    arguments: Vec<String>,
    /// `http` or `https` for clients.
    scheme: &'static str,
}

impl Etcd {
    /// One member.
    pub fn start() -> anyhow::Result<Self> {
        Self::with(1, &[])
    }

    /// So many members with further arguments; a `--cert-file` makes them speak TLS to clients.
    pub fn with(members: usize, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut last = None;
        for _ in 0..TRIES {
            match Self::attempt(members, arguments) {
                Ok(etcd) => return Ok(etcd),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("etcd was not tried")?)
    }

    fn attempt(members: usize, arguments: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("navarch-etcd-").tempdir()?;
        let tls = arguments.iter().any(|argument| argument.starts_with("--cert-file"));
        let members = (0..members).map(|number| {
            let [client, peer, health] = free_ports()?;
            Ok(Member { name: format!("m{number}"), client, peer, health, process: None })
        });
        let mut etcd = Self {
            folder,
            members: members.collect::<anyhow::Result<_>>()?,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            scheme: if tls { "https" } else { "http" },
        };
        for number in 0..etcd.members.len() {
            etcd.spawn(number)?;
        }
        for number in 0..etcd.members.len() {
            etcd.healthy(number)?;
        }
        Ok(etcd)
    }

    /// The members' addresses for clients.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|m| format!("{}://127.0.0.1:{}", self.scheme, m.client)).collect()
    }

    /// Kills a member as a crash would.
    pub fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        if let Some(mut process) = self.members[number].process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Stops a member where it is, without ending it; [`resume`](Self::resume) goes on. Returns when all its
    /// threads have stopped: until then it would still answer.
    pub fn freeze(&self, number: usize) -> anyhow::Result<()> {
        self.signal(number, Signal::STOP)?;
        waitid(WaitId::Pid(self.pid(number)?), WaitIdOptions::STOPPED)?;
        Ok(())
    }

    /// Lets a frozen member go on.
    pub fn resume(&self, number: usize) -> anyhow::Result<()> {
        self.signal(number, Signal::CONT)
    }

    fn signal(&self, number: usize, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(self.pid(number)?, signal)?)
    }

    fn pid(&self, number: usize) -> anyhow::Result<Pid> {
        let process = self.members[number].process.as_ref().context("the member does not run")?;
        Pid::from_raw(process.id() as i32).context("the member has no process id")
    }

    /// Starts a member that was killed, on its data and its ports; returns when it is healthy.
    pub fn restart(&mut self, number: usize) -> anyhow::Result<()> {
        self.spawn(number)?;
        self.healthy(number)
    }

    fn spawn(&mut self, number: usize) -> anyhow::Result<()> {
        let peers = self.members.iter().map(|m| format!("{}=http://127.0.0.1:{}", m.name, m.peer));
        let peers = peers.collect::<Vec<_>>().join(",");
        let member = &self.members[number];
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join(format!("{}.log", member.name)))?;
        let client = format!("{}://127.0.0.1:{}", self.scheme, member.client);
        let peer = format!("http://127.0.0.1:{}", member.peer);
        let mut command = Command::new(program()?);
        command.args(["--name", &member.name, "--data-dir"]).arg(self.folder.path().join(&member.name));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &peers, "--initial-cluster-token", "test"]);
        command.args(["--listen-metrics-urls", &format!("http://127.0.0.1:{}", member.health)]);
        command.args(&self.arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        die_with_parent(&mut command);
        self.members[number].process = Some(command.spawn().context("cannot run etcd")?);
        Ok(())
    }

    /// Waits until the member has a leader and answers.
    fn healthy(&mut self, number: usize) -> anyhow::Result<()> {
        let member = &mut self.members[number];
        let log = self.folder.path().join(format!("{}.log", member.name));
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            if let Some(process) = &mut member.process
                && let Some(status) = process.try_wait()?
            {
                bail!("etcd ended ({status}):\n{}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            match health(member.health) {
                Ok(()) => return Ok(()),
                Err(error) if std::time::Instant::now() > deadline => {
                    bail!(
                        "etcd is not healthy: {error}\n{}",
                        std::fs::read_to_string(&log).unwrap_or_default()
                    );
                }
                Err(_) => crate::wait::pause(),
            }
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for number in 0..self.members.len() {
            if let Err(error) = self.kill(number) {
                eprintln!("etcd could not be ended: {error}");
            }
        }
    }
}

fn health(port: u16) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if !answer.contains("\"true\"") {
        bail!("{answer}");
    }
    Ok(())
}

fn free_ports() -> anyhow::Result<[u16; 3]> {
    let listeners = [(); 3].map(|()| TcpListener::bind(("127.0.0.1", 0)));
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        let listener = listener.as_ref().map_err(|error| anyhow::anyhow!("no free port: {error}"))?;
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

/// The etcd program.
fn program() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) = std::env::split_paths(&path).map(|p| p.join("etcd")).find(|p| p.is_file()) {
        return Ok(found);
    }
    let folder = cache_dir().join("etcd");
    let program = folder.join("usr/bin/etcd");
    if !program.exists() {
        std::fs::create_dir_all(cache_dir())?;
        let work = tempfile::tempdir_in(cache_dir())?;
        let deb = image::download("etcd-server", work.path())?;
        let root = work.path().join("root");
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))?;
        // Whoever is first wins.
        if std::fs::rename(&root, &folder).is_err() && !program.exists() {
            bail!("cannot put etcd into {}", folder.display());
        }
    }
    Ok(program)
}

/// A test that is killed leaves no server behind.
#[allow(unsafe_code, reason = "prctl between fork and exec; it is async-signal-safe")]
pub(crate) fn die_with_parent(command: &mut Command) {
    let die = || rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into);
    // SAFETY: the closure makes one system call and touches no memory of the parent.
    unsafe { command.pre_exec(die) };
}
