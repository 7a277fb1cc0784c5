//! The shim: one single-threaded process per pod, the parent of its containers. It is this same binary,
//! executed again, and outlives the main process.
//!
//! It owns the pod's namespaces ([`sandbox`]), starts containers and further programs ([`init`], [`mounts`],
//! [`user`]), writes their logs ([`log`]), keeps their terminals and standard input ([`streams`]), reaps them
//! and records how they ended. It waits in one `poll` for signals, connections and output; nothing is
//! asked for twice.
//!
//! Invariants: no threads, no async runtime, no logging framework; every blocking step happens in a child.

mod init;
mod log;
mod mounts;
mod sandbox;
mod serve;
mod streams;
mod user;

use std::{
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    process::exit,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, WaitOptions, WaitStatus, wait},
};

use crate::{
    protocol::{self, ExitRecord, Failure, FailureKind, Reply},
    spec::{PidMode, ResolvedUser, SandboxSpec},
    sys,
};
use init::Report;
use sandbox::Sandbox;
use serve::{Connection, ConnectionId};
use streams::Streams;

/// Socket's name in the shim's folder.
pub(crate) const SOCKET: &str = "shim.sock";
/// Name of the sandbox's specification in the shim's folder.
pub(crate) const SPEC: &str = "sandbox.json";

/// A container this shim started.
struct Container {
    id: String,
    /// Its first process. What was reaped or forgotten has none: the id may be another's by now.
    pid: Option<Pid>,
    user: ResolvedUser,
    started_at: i64,
    pid_mode: PidMode,
    cgroup: crate::spec::CgroupJoin,
    oom_file: Option<PathBuf>,
    phase: Phase,
    streams: Streams,
}

enum Phase {
    /// The child has not executed the program yet; its socket and who asked.
    Starting {
        report: OwnedFd,
        asked: ConnectionId,
        failure: Option<Failure>,
        ready: bool,
    },
    Running,
    Exited(ExitRecord),
}

impl Container {
    /// `pid` is this container's first process, not yet reaped (ids are used again).
    fn awaits(&self, pid: Pid) -> bool {
        self.pid == Some(pid) && (self.id.is_empty() || !matches!(self.phase, Phase::Exited(_)))
    }

    /// Its first process while it may be sent signals.
    fn alive(&self) -> Option<Pid> {
        self.pid.filter(|_| !matches!(self.phase, Phase::Exited(_)))
    }
}

/// A further program in a container.
struct Exec {
    /// `None` once it was reaped.
    pid: Option<Pid>,
    asked: ConnectionId,
    report: Option<OwnedFd>,
    started: bool,
    failure: Option<Failure>,
    user: ResolvedUser,
    terminal: Option<OwnedFd>,
}

struct Shim {
    spec: SandboxSpec,
    sandbox: Sandbox,
    listener: UnixListener,
    signals: OwnedFd,
    connections: Vec<Connection>,
    next_connection: ConnectionId,
    containers: Vec<Container>,
    execs: Vec<Exec>,
    /// Ends when the last child is reaped and the last word is sent.
    stopping: bool,
}

/// What a polled file stands for.
#[derive(Clone, Copy)]
enum Token {
    Signals,
    Listener,
    Connection(ConnectionId),
    Starting(usize),
    Exec(usize),
    Stream(usize, streams::Part),
}

/// The shim's whole life. `args` are the arguments after `shim`: the shim's folder below `/run`, which holds
/// the sandbox's specification.
pub fn main(args: Vec<OsString>) -> ! {
    let [dir] = args.as_slice() else {
        eprintln!("usage: shim <folder>; this command is started by the runtime, not by hand");
        exit(2);
    };
    match start(Path::new(dir)) {
        Ok(mut shim) => loop {
            if let Err(error) = shim.turn() {
                eprintln!("shim: {error}");
                exit(1);
            }
        },
        Err(message) => {
            let failure = Failure { kind: FailureKind::Internal, message };
            announce(&Reply::Failed(failure));
            exit(1);
        }
    }
}

fn announce(reply: &Reply) {
    use io::Write;
    if let Ok(frame) = protocol::encode(reply) {
        let mut out = io::stdout();
        let _ = out.write_all(&frame).and_then(|()| out.flush());
    }
}

fn start(dir: &Path) -> Result<Shim, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let _ = rustix::thread::set_name(c"navarch-shim");
    let spec = fs::read(dir.join(SPEC)).map_err(|error| format!("{}: {error}", dir.display()))?;
    let spec: SandboxSpec = serde_json::from_slice(&spec).map_err(|error| text(&error))?;
    let signals = sys::block_signals().map_err(|error| text(&error))?;
    let sandbox = Sandbox::create(&spec)?;
    // Bound by a relative path: socket addresses are limited to 107 bytes.
    std::env::set_current_dir(dir).map_err(|error| text(&error))?;
    let listener = UnixListener::bind(SOCKET).map_err(|error| format!("{SOCKET}: {error}"))?;
    listener.set_nonblocking(true).map_err(|error| text(&error))?;
    announce(&Reply::Ready { pid: std::process::id() as i32 });
    let null =
        fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(|error| text(&error))?;
    sys::dup_onto(null.as_fd(), 1).map_err(|error| text(&error))?;
    let mut shim = Shim {
        spec,
        sandbox,
        listener,
        signals,
        connections: Vec::new(),
        next_connection: 1,
        containers: Vec::new(),
        execs: Vec::new(),
        stopping: false,
    };
    // After the announcement: the main process sets up the network meanwhile.
    if shim.spec.private_ipc {
        let scratch = shim.spec.dir.clone();
        shim.sandbox.make_shm(&scratch)?;
    }
    std::env::set_current_dir("/").map_err(|error| text(&error))?;
    Ok(shim)
}

impl Shim {
    /// Waits for something to happen and deals with it.
    fn turn(&mut self) -> io::Result<()> {
        for (token, events) in self.wait()? {
            match token {
                Token::Signals => self.reap(),
                Token::Listener => self.accept(),
                Token::Connection(id) => self.serve(id, events),
                Token::Starting(index) => self.hear_container(index),
                Token::Exec(index) => self.hear_exec(index),
                Token::Stream(index, part) => {
                    if let Some(container) = self.containers.get_mut(index) {
                        container.streams.ready(part);
                    }
                }
            }
        }
        self.connections.retain(|connection| !connection.finished());
        self.execs.retain(|exec| exec.pid.is_some());
        self.containers.retain(|container| container.pid.is_some());
        for container in &mut self.containers {
            container.streams.tidy();
        }
        let told = self.connections.iter().all(Connection::idle);
        if self.stopping && told && !self.anything_alive() {
            exit(0);
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<(Token, PollFlags)>> {
        let mut tokens = vec![Token::Signals, Token::Listener];
        let mut files =
            vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        let mut add = |token, file, events| {
            tokens.push(token);
            files.push(PollFd::from_borrowed_fd(file, events));
        };
        for connection in &self.connections {
            add(Token::Connection(connection.id), connection.socket.as_fd(), connection.interest());
        }
        for (index, container) in self.containers.iter().enumerate() {
            if let Phase::Starting { report, .. } = &container.phase {
                add(Token::Starting(index), report.as_fd(), PollFlags::IN);
            }
            container.streams.interest(|part, file, events| add(Token::Stream(index, part), file, events));
        }
        for (index, exec) in self.execs.iter().enumerate() {
            if let Some(report) = &exec.report {
                add(Token::Exec(index), report.as_fd(), PollFlags::IN);
            }
        }
        match poll(&mut files, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(tokens
            .into_iter()
            .zip(&files)
            .map(|(token, file)| (token, file.revents()))
            .filter(|(_, events)| !events.is_empty())
            .collect())
    }

    /// A starting container said something, or executed its program.
    fn hear_container(&mut self, index: usize) {
        let Some(container) = self.containers.get_mut(index) else { return };
        let Phase::Starting { report, asked, failure, ready } = &mut container.phase else { return };
        match hear(report) {
            Heard::Report(Report::Ready(user), terminal) => {
                container.user = user;
                *ready = true;
                if let Some(terminal) = terminal {
                    container.streams.set_terminal(terminal);
                }
            }
            Heard::Report(Report::Failed(why), _) => *failure = Some(why),
            Heard::Nothing => {}
            Heard::End => {
                // A failure was told, or the child died without a word: then reaping it tells.
                if failure.is_none() && *ready {
                    let asked = *asked;
                    container.phase = Phase::Running;
                    container.started_at = log::now();
                    let (pid, at) = (number(container.pid), container.started_at);
                    let user = container.user.clone();
                    let running =
                        Reply::Running { container: container.id.clone(), pid, user: user.clone(), at };
                    self.publish(&running);
                    self.reply(asked, &Reply::Started { pid, user, at }, None);
                } else {
                    // Nothing more will come; stop polling it until the child is reaped.
                    let (asked, failure) = (*asked, failure.take());
                    let id = container.id.clone();
                    container.phase = Phase::Exited(ExitRecord {
                        container: id,
                        code: 128,
                        signal: None,
                        oom: false,
                        at: 0,
                    });
                    let failure = failure.unwrap_or_else(|| {
                        let message = "the container's first process died while it was set up".to_owned();
                        Failure { kind: FailureKind::Internal, message }
                    });
                    container.pid_mode = PidMode::Container;
                    container.id.clear();
                    self.reply(asked, &Reply::Failed(failure), None);
                }
            }
        }
    }

    fn hear_exec(&mut self, index: usize) {
        let Some(exec) = self.execs.get_mut(index) else { return };
        let Some(report) = &exec.report else { return };
        match hear(report) {
            Heard::Report(Report::Ready(user), terminal) => {
                exec.user = user;
                exec.started = true;
                exec.terminal = terminal;
            }
            Heard::Report(Report::Failed(why), _) => exec.failure = Some(why),
            Heard::Nothing => {}
            Heard::End => {
                exec.report = None;
                let (asked, pid) = (exec.asked, number(exec.pid));
                match exec.failure.take() {
                    None if exec.started => {
                        let (user, terminal) = (exec.user.clone(), exec.terminal.take());
                        self.reply(asked, &Reply::Started { pid, user, at: log::now() }, terminal);
                    }
                    failure => {
                        exec.started = false;
                        exec.asked = 0;
                        let failure = failure.unwrap_or_else(|| Failure {
                            kind: FailureKind::NotFound,
                            message: "the container ended while a program was being started in it".to_owned(),
                        });
                        self.reply(asked, &Reply::Failed(failure), None);
                    }
                }
            }
        }
    }

    /// Collects ended children.
    fn reap(&mut self) {
        let mut drained = [0; 256];
        while matches!(rustix::io::read(&self.signals, &mut drained), Ok(count) if count > 0) {}
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            self.child_ended(pid, status);
        }
    }

    fn child_ended(&mut self, pid: Pid, status: WaitStatus) {
        let signal = status.terminating_signal();
        let code = signal.map_or_else(|| status.exit_status().unwrap_or(255), |signal| 128 + signal);
        if let Some(index) = self.execs.iter().position(|exec| exec.pid == Some(pid)) {
            // Its last report may still be unread.
            while self.execs[index].report.is_some() {
                self.hear_exec(index);
            }
            let exec = &mut self.execs[index];
            exec.pid = None;
            let (asked, started) = (exec.asked, exec.started);
            if started {
                self.reply(asked, &Reply::ExecExited { code }, None);
            }
            return;
        }
        if self.sandbox.pause.as_ref().is_some_and(|(pause, _)| *pause == pid) {
            self.sandbox.pause = None;
            return;
        }
        let Some(index) = self.containers.iter().position(|container| container.awaits(pid)) else { return };
        while matches!(self.containers[index].phase, Phase::Starting { .. }) {
            self.hear_container(index);
        }
        let container = &mut self.containers[index];
        if container.id.is_empty() {
            container.pid = None;
            return;
        }
        if container.pid_mode != PidMode::Container {
            // Without a PID namespace of its own the kernel does not end the rest by itself.
            kill_rest(&container.cgroup);
        }
        container.streams.end();
        let oom = container.oom_file.as_deref().is_some_and(|file| oom_kills(file) > 0);
        let record = ExitRecord { container: container.id.clone(), code, signal, oom, at: log::now() };
        container.phase = Phase::Exited(record.clone());
        if let Err(error) = write_record(&self.spec.dir, &record) {
            eprintln!("shim: recording the end of {}: {error}", record.container);
        }
        self.publish(&Reply::Exited(record));
    }

    fn anything_alive(&self) -> bool {
        let running = |container: &Container| !matches!(container.phase, Phase::Exited(_));
        self.sandbox.pause.is_some()
            || self.containers.iter().any(running)
            || self.execs.iter().any(|exec| exec.pid.is_some())
    }
}

/// The number of a process that is known to be there, as records have it.
fn number(pid: Option<Pid>) -> i32 {
    pid.map_or(0, |pid| pid.as_raw_nonzero().get())
}

enum Heard {
    Report(Report, Option<OwnedFd>),
    Nothing,
    End,
}

fn hear(socket: &OwnedFd) -> Heard {
    let (mut bytes, mut files) = (Vec::new(), Vec::new());
    match protocol::receive(socket.as_fd(), &mut bytes, &mut files) {
        Ok(0) => Heard::End,
        Ok(_) => match serde_json::from_slice(&bytes) {
            Ok(report) => Heard::Report(report, files.pop()),
            Err(_) => Heard::Nothing,
        },
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Heard::Nothing
        }
        Err(_) => Heard::End,
    }
}

fn write_record(dir: &Path, record: &ExitRecord) -> io::Result<()> {
    let path = dir.join(format!("{}.exit", record.container));
    let temporary = dir.join(format!("{}.exit.new", record.container));
    fs::write(&temporary, serde_json::to_vec(record)?)?;
    fs::rename(temporary, path)
}

/// How many processes of a cgroup the kernel killed for lack of memory: `memory.oom_control` (v1) and
/// `memory.events` (v2) both say `oom_kill N`.
fn oom_kills(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

fn kill_rest(cgroup: &crate::spec::CgroupJoin) {
    if let Some(dir) = &cgroup.unified
        && fs::write(dir.join("cgroup.kill"), "1").is_ok()
    {
        return;
    }
    // Forking processes may escape one pass; the main process repeats this when it removes the cgroup.
    for _ in 0..8 {
        let pids = cgroup.tasks.first().and_then(|tasks| fs::read_to_string(tasks).ok()).unwrap_or_default();
        if pids.is_empty() {
            return;
        }
        for pid in pids.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
    }
}
