//! The shim: one single-threaded process per pod, the parent of its containers. It is the program `navarch-shim` or
//! this same binary, executed again, and outlives the main process.
//!
//! It owns the pod's namespaces ([`sandbox`]), starts containers and further programs ([`init`], [`mounts`],
//! [`volumes`], [`user`]), writes their logs ([`log`]), keeps their terminals and standard input ([`streams`]), reaps them
//! and records how they ended. It waits in one `poll` for signals, connections and output; nothing is
//! asked for twice. Containers of another runtime are started by that program ([`oci`], [`bundle`]) and are this
//! process's children all the same.
//!
//! Invariants: no threads, no async runtime, no logging framework; every blocking step happens in a child.

mod bundle;
mod hooks;
mod init;
mod limits;
mod log;
mod mounts;
mod oci;
mod sandbox;
mod serve;
mod streams;
mod user;
mod user_namespace;
mod volumes;

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
    spec::{ContainerSpec, PidMode, ResolvedUser, SandboxSpec},
    sys,
};
use hooks::Hooked;
use init::Report;
use oci::Oci;
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
    /// The child that has another runtime start it.
    launcher: Option<Pid>,
    /// That runtime.
    oci: Option<Oci>,
    /// Hooks that the shim runs.
    hooked: Option<Hooked>,
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
    /// One that `asked` waits for; its process says over `report` how it goes.
    fn starting(spec: ContainerSpec, asked: ConnectionId, report: OwnedFd, streams: Streams) -> Container {
        Container {
            id: spec.id,
            pid: None,
            launcher: None,
            oci: None,
            hooked: None,
            user: ResolvedUser::default(),
            started_at: 0,
            pid_mode: spec.pid,
            cgroup: spec.cgroup,
            oom_file: spec.oom_file,
            phase: Phase::Starting { report, asked, failure: None, ready: false },
            streams,
        }
    }

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
    /// `None` once it was reaped, and until another runtime started it.
    pid: Option<Pid>,
    /// The child that has another runtime start it.
    launcher: Option<Pid>,
    asked: ConnectionId,
    report: Option<OwnedFd>,
    started: bool,
    failure: Option<Failure>,
    user: ResolvedUser,
    terminal: Option<OwnedFd>,
}

impl Exec {
    /// One that `asked` waits for; its process says over `report` how it goes.
    fn starting(asked: ConnectionId, report: OwnedFd) -> Exec {
        Exec {
            pid: None,
            launcher: None,
            asked,
            report: Some(report),
            started: false,
            failure: None,
            user: ResolvedUser::default(),
            terminal: None,
        }
    }
}

/// A command of another runtime, or hooks, that are under way.
struct Job {
    pid: Pid,
    /// Who waits for it; 0: nobody.
    asked: ConnectionId,
    report: OwnedFd,
    then: Then,
}

/// What follows the end of a job.
enum Then {
    /// Who asked is told how it went.
    Answer {
        /// The container to kill, should the command fail to.
        kills: Option<String>,
    },
    /// Who asked is told that its container runs, however it went.
    Started(Reply),
    /// The first process of a container, which waits, was told how it went, or is told now that nobody will.
    GoOn(String),
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
    jobs: Vec<Job>,
    /// Children that ended before a launcher told whose they are.
    strays: Vec<(Pid, WaitStatus)>,
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
    limits::raise();
    // What a process of the pod falls back to where it can have none of its own.
    sys::new_session_keyring().map_err(|error| text(&error))?;
    let spec = fs::read(dir.join(SPEC)).map_err(|error| format!("{}: {error}", dir.display()))?;
    let spec: SandboxSpec = serde_json::from_slice(&spec).map_err(|error| text(&error))?;
    let signals = sys::block_signals().map_err(|error| text(&error))?;
    if spec.other_runtime {
        oci::take_orphans()?;
    }
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
        jobs: Vec::new(),
        strays: Vec::new(),
        stopping: false,
    };
    // After the announcement: the main process sets up the network meanwhile.
    if shim.spec.private_ipc {
        shim.sandbox.make_shm(&shim.spec.dir, shim.spec.file_label.as_deref())?;
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
        self.execs.retain(|exec| exec.pid.or(exec.launcher).is_some());
        self.containers.retain(|container| container.pid.or(container.launcher).is_some());
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
            Heard::Report(Report::Made { pid, user }, terminal) => {
                container.pid = Pid::from_raw(pid);
                container.user = user;
                *ready = true;
                if let Some(terminal) = terminal {
                    container.streams.set_terminal(terminal);
                }
            }
            Heard::Report(Report::Failed(why), _) => *failure = Some(why),
            Heard::Report(Report::Hooks, _) => {
                let (pid, id) = (number(container.pid), container.id.clone());
                let Some((hooked, answer)) = container.hooked.clone().zip(report.try_clone().ok()) else {
                    return;
                };
                let work = |report| hooks::child(report, || hooked.create_runtime(pid, &answer));
                if let Err(error) = self.start_job(0, Then::GoOn(id.clone()), work) {
                    eprintln!("shim: hooks: {error}");
                    self.go_on(&id);
                }
            }
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
                    let hooked = container.hooked.clone();
                    self.publish(&running);
                    self.tell_started(asked, hooked, pid, Reply::Started { pid, user, at });
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
                    let hooked = container.hooked.take();
                    self.reply(asked, &Reply::Failed(failure), None);
                    self.run_last_hooks(hooked);
                }
                let pid = self.containers[index].pid;
                self.claim(pid);
            }
        }
    }

    /// Tells `asked` that its container runs, once the hooks for that were run.
    fn tell_started(&mut self, asked: ConnectionId, hooked: Option<Hooked>, pid: i32, started: Reply) {
        let Some(hooked) = hooked.filter(|hooked| !hooked.hooks().poststart.is_empty()) else {
            return self.reply(asked, &started, None);
        };
        let work = |report| hooks::child(report, || hooked.started(pid));
        match self.start_job(asked, Then::Started(started.clone()), work) {
            Ok(()) => {}
            Err(error) => {
                eprintln!("shim: hooks: {error}");
                self.reply(asked, &started, None);
            }
        }
    }

    /// Nothing more is said to a first process that waited for hooks.
    fn go_on(&self, id: &str) {
        let container = self.containers.iter().find(|known| known.id == id);
        if let Some(Phase::Starting { report, .. }) = container.map(|container| &container.phase) {
            // it may have ended
            let _ = rustix::net::shutdown(report, rustix::net::Shutdown::Write);
        }
    }

    /// Runs the hooks for the end of a container.
    fn run_last_hooks(&mut self, hooked: Option<Hooked>) {
        let Some(hooked) = hooked else { return };
        let work = |report| hooks::child(report, || hooked.ended());
        if let Err(error) = self.start_job(0, Then::Answer { kills: None }, work) {
            eprintln!("shim: hooks: {error}");
        }
    }

    /// A launcher told of a process that may have ended already.
    fn claim(&mut self, pid: Option<Pid>) {
        if let Some(at) = self.strays.iter().position(|(stray, _)| Some(*stray) == pid) {
            let (pid, status) = self.strays.swap_remove(at);
            self.child_ended(pid, status);
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
            Heard::Report(Report::Made { pid, user }, terminal) => {
                exec.pid = Pid::from_raw(pid);
                exec.user = user;
                exec.started = true;
                exec.terminal = terminal;
            }
            Heard::Report(Report::Failed(why), _) => exec.failure = Some(why),
            Heard::Report(Report::Hooks, _) | Heard::Nothing => {}
            Heard::End => {
                exec.report = None;
                let (asked, first) = (exec.asked, exec.pid);
                let pid = number(first);
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
                self.claim(first);
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
        if !self.anything_launching() {
            self.strays.clear();
        }
    }

    fn anything_launching(&self) -> bool {
        self.containers.iter().any(|container| container.launcher.is_some())
            || self.execs.iter().any(|exec| exec.launcher.is_some())
    }

    /// A command of another runtime, or hooks, ended.
    fn job_ended(&mut self, job: Job, code: i32) {
        let reply = match (hear(&job.report), code) {
            (Heard::Report(Report::Failed(failure), _), _) => Reply::Failed(failure),
            (_, 0) => Reply::Done,
            _ => Reply::Failed(Failure {
                kind: FailureKind::Internal,
                message: "the process that was to do it was killed".to_owned(),
            }),
        };
        let kills = match job.then {
            Then::Answer { kills } => kills,
            Then::Started(started) => {
                if let Reply::Failed(failure) = reply {
                    eprintln!("shim: {failure}");
                }
                return self.reply(job.asked, &started, None);
            }
            Then::GoOn(id) => return self.go_on(&id),
        };
        let container = kills.and_then(|id| self.containers.iter().find(|known| known.id == id));
        let reply = match (reply, container.and_then(Container::alive)) {
            // The kernel does not depend on that program.
            (Reply::Failed(_), Some(pid)) if sys::kill(pid, libc::SIGKILL).is_ok() => Reply::Done,
            (reply, _) => reply,
        };
        match (job.asked, &reply) {
            (0, Reply::Failed(failure)) => eprintln!("shim: {failure}"),
            (0, _) => {}
            (asked, reply) => self.reply(asked, reply, None),
        }
    }

    fn child_ended(&mut self, pid: Pid, status: WaitStatus) {
        let signal = status.terminating_signal();
        let code = signal.map_or_else(|| status.exit_status().unwrap_or(255), |signal| 128 + signal);
        if let Some(index) = self.jobs.iter().position(|job| job.pid == pid) {
            let job = self.jobs.swap_remove(index);
            return self.job_ended(job, code);
        }
        if let Some(index) = self.execs.iter().position(|exec| exec.launcher == Some(pid)) {
            while self.execs[index].report.is_some() {
                self.hear_exec(index);
            }
            self.execs[index].launcher = None;
            return;
        }
        if let Some(index) = self.containers.iter().position(|known| known.launcher == Some(pid)) {
            while matches!(self.containers[index].phase, Phase::Starting { .. }) {
                self.hear_container(index);
            }
            self.containers[index].launcher = None;
            return;
        }
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
        let index = self.containers.iter().position(|container| container.awaits(pid));
        let starting =
            |known: &Container| known.oci.is_some() && matches!(known.phase, Phase::Starting { .. });
        let Some(index) = index.filter(|index| !starting(&self.containers[*index])) else {
            if self.anything_launching() {
                self.strays.push((pid, status));
            }
            return;
        };
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
        let (id, oci) = (self.containers[index].id.clone(), self.containers[index].oci.clone());
        let hooked = self.containers[index].hooked.take();
        self.run_last_hooks(hooked);
        if let Some(oci) = oci
            && let Err(error) =
                self.start_job(0, Then::Answer { kills: None }, |report| oci.delete(&id, report))
        {
            eprintln!("shim: deleting {id}: {error}");
        }
    }

    fn anything_alive(&self) -> bool {
        let running = |container: &Container| !matches!(container.phase, Phase::Exited(_));
        self.sandbox.pause.is_some()
            || !self.jobs.is_empty()
            || self.anything_launching()
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
    let killed = cgroup.unified.as_ref().is_some_and(|dir| fs::write(dir.join("cgroup.kill"), "1").is_ok());
    if killed && cgroup.tasks.is_empty() {
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
