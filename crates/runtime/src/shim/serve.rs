//! The shim's side of its socket: connections, requests, and what is started for them.

use std::{
    collections::VecDeque,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    event::PollFlags,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    pipe::{PipeFlags, pipe_with},
};

use super::{
    Container, Exec, Job, Phase, Shim, Then,
    hooks::Hooked,
    init, kill_rest,
    log::LogFile,
    number,
    oci::{self, Oci},
    sandbox::open,
    streams::{Attachment, Streams},
};
use crate::{
    protocol::{self, Failure, FailureKind, Reply, Request},
    spec::{CgroupJoin, ContainerSpec, PidMode, ProcessSpec},
    sys::{self, Fork},
};

pub(super) type ConnectionId = u64;

/// Bytes waiting for a subscriber that does not read; beyond this it is cut off and must connect anew.
const MAX_BACKLOG: usize = 1 << 20;

/// One connection of the main process.
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) socket: UnixStream,
    input: Vec<u8>,
    files: Vec<OwnedFd>,
    output: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    subscribed: bool,
    closed: bool,
}

impl Connection {
    pub(super) fn interest(&self) -> PollFlags {
        if self.output.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    pub(super) fn finished(&self) -> bool {
        self.closed
    }

    /// Nothing waits to be sent.
    pub(super) fn idle(&self) -> bool {
        self.closed || self.output.is_empty()
    }

    fn flush(&mut self) {
        while let Some((bytes, file)) = self.output.front_mut() {
            let files: Vec<_> = file.iter().map(AsFd::as_fd).collect();
            match protocol::send(self.socket.as_fd(), bytes, &files) {
                Ok(sent) => {
                    *file = None;
                    bytes.drain(..sent);
                    if bytes.is_empty() {
                        self.output.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    fn push(&mut self, reply: &Reply, file: Option<OwnedFd>) {
        match protocol::encode(reply) {
            Ok(frame) => self.output.push_back((frame, file)),
            Err(_) => self.closed = true,
        }
        self.flush();
        if self.output.iter().map(|(bytes, _)| bytes.len()).sum::<usize>() > MAX_BACKLOG {
            self.closed = true;
        }
    }
}

fn failed(kind: FailureKind, message: impl Into<String>) -> Reply {
    Reply::Failed(Failure { kind, message: message.into() })
}

fn internal(error: impl std::fmt::Display) -> Reply {
    failed(FailureKind::Internal, error.to_string())
}

impl Shim {
    pub(super) fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if socket.set_nonblocking(true).is_err() {
                continue;
            }
            let id = self.next_connection;
            self.next_connection += 1;
            self.connections.push(Connection {
                id,
                socket,
                input: Vec::new(),
                files: Vec::new(),
                output: VecDeque::new(),
                subscribed: false,
                closed: false,
            });
        }
    }

    pub(super) fn serve(&mut self, id: ConnectionId, events: PollFlags) {
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) else {
            return;
        };
        if events.contains(PollFlags::OUT) {
            connection.flush();
        }
        if !events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        let request = loop {
            match protocol::decode::<Request>(&mut connection.input) {
                Ok(Some(request)) => break Some(request),
                Ok(None) => {}
                Err(_) => {
                    connection.closed = true;
                    return;
                }
            }
            match protocol::receive(connection.socket.as_fd(), &mut connection.input, &mut connection.files) {
                Ok(0) => {
                    connection.closed = true;
                    return;
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break None,
                Err(_) => {
                    connection.closed = true;
                    return;
                }
            }
        };
        if let Some(request) = request {
            let files = std::mem::take(&mut connection.files);
            if let Some(reply) = self.answer(id, request, files) {
                self.reply(id, &reply, None);
            }
        }
    }

    pub(super) fn reply(&mut self, id: ConnectionId, reply: &Reply, file: Option<OwnedFd>) {
        if let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) {
            connection.push(reply, file);
        }
    }

    pub(super) fn publish(&mut self, reply: &Reply) {
        for connection in self.connections.iter_mut().filter(|connection| connection.subscribed) {
            connection.push(reply, None);
        }
    }

    fn answer(&mut self, from: ConnectionId, request: Request, files: Vec<OwnedFd>) -> Option<Reply> {
        match request {
            Request::Start(spec) => self.start_container(from, *spec).err(),
            Request::Exec { container, cgroup, process } => {
                self.start_exec(from, &container, &cgroup, &process, files).err()
            }
            Request::Kill { container, signal } => self.kill(from, &container, signal).err(),
            Request::KillExec => {
                let asked = self.execs.iter().filter(|exec| exec.asked == from);
                for pid in asked.filter_map(|exec| exec.pid.or(exec.launcher)) {
                    // It leads its own session, so its children that stayed in the group go, too.
                    let _ = sys::kill_group(pid, libc::SIGKILL);
                    let _ = sys::kill(pid, libc::SIGKILL);
                }
                None
            }
            Request::ReopenLog { container } => Some(match self.container(&container) {
                Some(container) => container.streams.log.reopen().map_or_else(internal, |()| Reply::Done),
                None => not_found(&container),
            }),
            Request::Attach { container, stdin, stdout, stderr } => {
                Some(self.attach(&container, [stdin, stdout, stderr], files))
            }
            Request::Resize { container, width, height } => Some(match self.container(&container) {
                Some(container) => {
                    container.streams.resize(width, height).map_or_else(internal, |()| Reply::Done)
                }
                None => not_found(&container),
            }),
            Request::Forget { container } => {
                let index = self.containers.iter().position(|known| known.id == container);
                if let Some(index) = index {
                    if !matches!(self.containers[index].phase, Phase::Exited(_)) {
                        return Some(failed(
                            FailureKind::Internal,
                            format!("container {container} still runs"),
                        ));
                    }
                    self.containers[index].pid = None;
                    self.containers[index].streams = Streams::none();
                }
                let _ = std::fs::remove_file(self.spec.dir.join(format!("{container}.exit")));
                Some(Reply::Done)
            }
            Request::Subscribe => {
                self.subscribe(from);
                None
            }
            Request::Shutdown => {
                let containers = self.containers.iter().filter_map(Container::alive);
                let execs = self.execs.iter().flat_map(|exec| [exec.pid, exec.launcher]).flatten();
                let pause = self.sandbox.pause.iter().map(|(pause, _)| *pause);
                for pid in containers.chain(execs).chain(pause) {
                    let _ = sys::kill(pid, libc::SIGKILL);
                }
                for container in &self.containers {
                    // What another runtime is making now nobody has told the process id of.
                    if let Some(launcher) = container.launcher {
                        let _ = sys::kill_group(launcher, libc::SIGKILL);
                        kill_rest(&container.cgroup);
                    }
                }
                self.stopping = true;
                Some(Reply::Done)
            }
        }
    }

    fn container(&mut self, id: &str) -> Option<&mut Container> {
        self.containers.iter_mut().find(|container| container.id == id && !id.is_empty())
    }

    fn subscribe(&mut self, from: ConnectionId) {
        let mut known = Vec::new();
        for container in &self.containers {
            if matches!(container.phase, Phase::Starting { .. }) || container.id.is_empty() {
                continue;
            }
            known.push(Reply::Running {
                container: container.id.clone(),
                pid: number(container.pid),
                user: container.user.clone(),
                at: container.started_at,
            });
            if let Phase::Exited(record) = &container.phase {
                known.push(Reply::Exited(record.clone()));
            }
        }
        known.push(Reply::Done);
        if let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == from) {
            connection.subscribed = true;
            for reply in &known {
                connection.push(reply, None);
            }
        }
    }

    /// The error is the answer, unless a command of another runtime is to end first.
    fn kill(&mut self, asked: ConnectionId, id: &str, signal: i32) -> Result<(), Reply> {
        let Some((pid, oci)) =
            self.container(id).and_then(|known| known.alive().map(|pid| (pid, known.oci.clone())))
        else {
            return Err(not_found(id));
        };
        match oci {
            Some(oci) => {
                let kills = (signal == libc::SIGKILL).then(|| id.to_owned());
                let then = Then::Answer { kills };
                self.start_job(asked, then, |report| oci.kill(id, signal, report)).map_err(internal)
            }
            None => Err(sys::kill(pid, signal).map_or_else(internal, |()| Reply::Done)),
        }
    }

    /// Runs `work` in a child, at whose end `then` is done.
    pub(super) fn start_job(
        &mut self,
        asked: ConnectionId,
        then: Then,
        work: impl FnOnce(OwnedFd),
    ) -> io::Result<()> {
        let (ours, theirs) = reports()?;
        match self.fork(None, 0, None)? {
            Fork::Child => {
                drop(ours);
                work(theirs);
                sys::exit_now(1)
            }
            Fork::Parent(pid) => {
                self.jobs.push(Job { pid, asked, report: ours, then });
                Ok(())
            }
        }
    }

    fn attach(&mut self, id: &str, which: [bool; 3], files: Vec<OwnedFd>) -> Reply {
        let mut files = files.into_iter();
        let [stdin, stdout, stderr] = which.map(|wanted| if wanted { files.next() } else { None });
        match self.container(id) {
            Some(container) if matches!(container.phase, Phase::Running) => {
                match Attachment::new(stdin, stdout, stderr) {
                    Ok(attachment) => {
                        container.streams.attach(attachment);
                        Reply::Done
                    }
                    Err(error) => internal(error),
                }
            }
            _ => not_found(id),
        }
    }

    /// Starts a container; the answer comes when its program was executed. The error is the answer.
    fn start_container(&mut self, asked: ConnectionId, spec: ContainerSpec) -> Result<(), Reply> {
        if let Some(known) = self.container(&spec.id) {
            // The main process was restarted between our answer and its own.
            if matches!(known.phase, Phase::Starting { .. }) {
                return Err(internal(format!("container {} is being started", spec.id)));
            }
            let pid = number(known.pid);
            return Err(Reply::Started { pid, user: known.user.clone(), at: known.started_at });
        }
        let log = LogFile::open(spec.log_path.clone())
            .map_err(|error| internal(format!("opening the container's log: {error}")))?;
        let (streams, stdio) =
            Streams::create(log, spec.process.tty, spec.stdin, spec.stdin_once).map_err(internal)?;
        let (ours, theirs) = reports().map_err(internal)?;
        let pause = self.sandbox.pause.as_ref().map(|(pause, _)| *pause);
        let pod = || oci::pod_namespaces(&self.spec, spec.pid, pause);
        if let Some((told, program)) = spec.oci.as_ref().and_then(|told| Some((told, told.program.as_ref()?)))
        {
            let pod = pod();
            let oci = Oci::new(program, &self.spec.dir);
            return match self.fork(None, 0, None).map_err(internal)? {
                Fork::Child => {
                    drop(ours);
                    oci.container(&spec, told, pod, self.namespaces(), stdio, theirs)
                }
                Fork::Parent(launcher) => {
                    let made = Container::starting(spec, asked, ours, streams);
                    self.containers.push(Container { launcher: Some(launcher), oci: Some(oci), ..made });
                    Ok(())
                }
            };
        }
        let cgroup = spec.cgroup.unified.as_ref().map(open).transpose().map_err(internal)?;
        let flags = if spec.pid == PidMode::Container { libc::CLONE_NEWPID as u64 } else { 0 };
        let target = match spec.pid {
            PidMode::Target(pid) => Some(
                open(format!("/proc/{pid}/ns/pid")).map_err(|error| failed(FailureKind::NotFound, error))?,
            ),
            _ => None,
        };
        let enter = match (spec.pid, &self.sandbox.pause) {
            (PidMode::Pod, Some((_, namespace))) => Some(namespace),
            (PidMode::Pod, None) => return Err(internal("this sandbox has no shared PID namespace")),
            _ => target.as_ref(),
        };
        let hooked = Hooked::of(&spec, &self.spec.dir);
        // before the fork: the child may see other process ids
        let told = hooked.clone().map(|hooked| (hooked, pod()));
        let fork = self.fork(enter, flags, cgroup.as_ref()).map_err(internal)?;
        match fork {
            Fork::Child => {
                drop(ours);
                init::container(&spec, told, self.namespaces(), stdio, theirs)
            }
            Fork::Parent(pid) => {
                let made = Container::starting(spec, asked, ours, streams);
                self.containers.push(Container { pid: Some(pid), hooked, ..made });
                Ok(())
            }
        }
    }

    fn namespaces(&self) -> init::Namespaces<'_> {
        init::Namespaces {
            pod_mount: self.sandbox.pod_mount.as_ref().map(AsFd::as_fd),
            host_mount: self.sandbox.host_mount.as_fd(),
            users: self.sandbox.users.as_ref(),
        }
    }

    fn start_exec(
        &mut self,
        asked: ConnectionId,
        id: &str,
        cgroup: &CgroupJoin,
        process: &ProcessSpec,
        files: Vec<OwnedFd>,
    ) -> Result<(), Reply> {
        let running = self.container(id).filter(|container| matches!(container.phase, Phase::Running));
        let Some((first, oci)) = running.and_then(|known| known.pid.map(|pid| (pid, known.oci.clone())))
        else {
            return Err(not_found(id));
        };
        let stdio = if process.tty {
            None
        } else {
            let files: [OwnedFd; 3] =
                files.try_into().map_err(|_| internal("three files must come with exec"))?;
            Some(files)
        };
        let (ours, theirs) = reports().map_err(internal)?;
        if let Some(oci) = oci {
            return match self.fork(None, 0, None).map_err(internal)? {
                Fork::Child => {
                    drop(ours);
                    oci.exec(id, first, process, stdio, theirs)
                }
                Fork::Parent(launcher) => {
                    self.execs.push(Exec { launcher: Some(launcher), ..Exec::starting(asked, ours) });
                    Ok(())
                }
            };
        }
        let pid = first.as_raw_nonzero();
        let namespace = |kind: &str| open(format!("/proc/{pid}/ns/{kind}"));
        let gone = |error| failed(FailureKind::NotFound, error);
        let (mount, cgroup_namespace) = (namespace("mnt").map_err(gone)?, namespace("cgroup").map_err(gone)?);
        // The namespace the container's children are in, which is its own unless it made another since.
        let pids = namespace("pid").map_err(gone)?;
        let unified = cgroup.unified.as_ref().map(open).transpose().map_err(internal)?;
        match self.fork(Some(&pids), 0, unified.as_ref()).map_err(internal)? {
            Fork::Child => {
                drop((ours, pids));
                let users = self.sandbox.users.as_ref();
                init::exec(process, cgroup, (mount, cgroup_namespace), users, stdio, theirs)
            }
            Fork::Parent(pid) => {
                self.execs.push(Exec { pid: Some(pid), ..Exec::starting(asked, ours) });
                Ok(())
            }
        }
    }

    /// Forks, with the child in the PID namespace `enter`.
    fn fork(&self, enter: Option<&OwnedFd>, flags: u64, cgroup: Option<&OwnedFd>) -> io::Result<Fork> {
        if let Some(namespace) = enter {
            sys::setns(namespace.as_fd(), libc::CLONE_NEWPID)?;
        }
        let result = sys::fork(flags, cgroup.map(AsFd::as_fd));
        if enter.is_some() && !matches!(result, Ok(Fork::Child)) {
            sys::setns(self.sandbox.own_pid.as_fd(), libc::CLONE_NEWPID)?;
        }
        result
    }
}

fn not_found(id: &str) -> Reply {
    failed(FailureKind::NotFound, format!("container {id} does not run"))
}

/// A socket pair that keeps message boundaries, for [`init::Report`]s.
fn reports() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// A pipe: read end, write end.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}
