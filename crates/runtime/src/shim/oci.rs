//! Containers that another program runs: one with the command line of the OCI runtimes (`create`, `state`, `start`,
//! `exec`, `kill`, `delete`), such as crun and runc.
//!
//! Every command runs in a child of the shim that waits for it, so the shim itself never does. What a command leaves
//! running becomes the shim's child, which it asked the kernel for ([`take_orphans`]): logs, terminals, exit codes and
//! adoption are then as for containers of its own. The root file system and what else is no path of the node are
//! mounted in a mount namespace that goes away with that child; the program's own state is below the shim's folder.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, Mode, OFlags, openat},
    mount::{UnmountFlags, unmount},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::Deserialize;

use super::{
    bundle::{self, Place},
    init::{self, Namespaces, Report, Stop, config},
    mounts::{self, while_doing},
    user,
};
use crate::{
    protocol::{self, FailureKind},
    spec::{ContainerSpec, OciSpec, PidMode, ProcessSpec, SandboxSpec},
    sys,
};

/// Longest run of one command: three of them end before who asked gives up.
const LIMIT: Duration = Duration::from_secs(35);
/// Where such programs look for others (hooks, wrappers around another runtime).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program, and where it keeps what it knows.
#[derive(Clone)]
pub(super) struct Oci {
    program: PathBuf,
    dir: PathBuf,
}

/// What `state` prints.
#[derive(Deserialize)]
struct State {
    status: String,
    #[serde(default)]
    pid: i32,
}

/// A line of the program's log.
#[derive(Deserialize)]
struct Line {
    level: String,
    msg: String,
}

/// From now on orphans of this process's children are its children.
pub(super) fn take_orphans() -> Result<(), String> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(while_doing("PR_SET_CHILD_SUBREAPER"))
}

impl Oci {
    /// `program` for the containers of the shim whose folder is `dir`.
    pub(super) fn new(program: &Path, dir: &Path) -> Oci {
        Oci { program: program.to_owned(), dir: dir.join("oci") }
    }

    /// A container's bundle, and what else is there for its sake.
    fn folder(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    fn command(&self, id: &str, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", PATH).arg("--root").arg(self.dir.join("state"));
        command.arg("--log").arg(self.log(id, verb)).args(["--log-format", "json", verb]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn log(&self, id: &str, verb: &str) -> PathBuf {
        self.folder(id).join(format!("{verb}-{}.log", std::process::id()))
    }

    /// Runs a command to its end.
    fn run(&self, id: &str, verb: &str, command: &mut Command) -> Result<Vec<u8>, Stop> {
        let failed = |why: &dyn std::fmt::Display| format!("OCI runtime {verb} failed: {why}");
        let program = self.program.display();
        let mut child = command
            .spawn()
            .map_err(|error| Stop(FailureKind::Internal, failed(&format!("starting {program}: {error}"))))?;
        let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .and_then(|child| readable(&child, LIMIT))
            .map_err(|error| Stop(FailureKind::Internal, failed(&error)))?;
        if !ended {
            // both may have ended just now
            let _ = child.kill();
            let _ = child.wait();
            let why = format!("{program} did not end within {} s", LIMIT.as_secs());
            return Err(Stop(FailureKind::Internal, failed(&why)));
        }
        let output = child.wait_with_output().map_err(|error| Stop(FailureKind::Internal, failed(&error)))?;
        let log = self.log(id, verb);
        let said = fs::read_to_string(&log).unwrap_or_default();
        // it is there only when something was said
        let _ = fs::remove_file(&log);
        if output.status.success() {
            return Ok(output.stdout);
        }
        let mut errors = said.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let why = errors.rfind(|line| line.level == "error");
        let why =
            why.map_or_else(|| format!("{program}: {}", output.status), |line| line.msg.trim().to_owned());
        Err(config(failed(&why)))
    }

    /// `kill`, in a child of its own.
    pub(super) fn kill(&self, id: &str, signal: i32, report: OwnedFd) -> ! {
        init::finish(&report, || {
            sys::reset_signals();
            own_mounts()?;
            let mut command = self.command(id, "kill");
            command.arg(id).arg(signal.to_string());
            self.run(id, "kill", &mut command)?;
            sys::exit_now(0)
        })
    }

    /// `delete`, in a child of its own, and the end of the container's folder.
    pub(super) fn delete(&self, id: &str, report: OwnedFd) -> ! {
        init::finish(&report, || {
            sys::reset_signals();
            own_mounts()?;
            let deleted = self.deleted(id);
            if let Err(error) = fs::remove_dir_all(self.folder(id))
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(Stop::from(format!("{}: {error}", self.folder(id).display())));
            }
            deleted?;
            sys::exit_now(0)
        })
    }

    fn deleted(&self, id: &str) -> Result<(), Stop> {
        let mut command = self.command(id, "delete");
        self.run(id, "delete", command.arg("--force").arg(id)).map(drop)
    }

    /// `create`, `state` and `start`, in a child of their own.
    pub(super) fn container(
        &self,
        spec: &ContainerSpec,
        oci: &OciSpec,
        pod: Vec<(&'static str, String)>,
        namespaces: Namespaces<'_>,
        stdio: init::Stdio,
        report: OwnedFd,
    ) -> ! {
        init::finish(&report, || {
            begin(&spec.process)?;
            let folder = self.folder(&spec.id);
            let stage = folder.join("mounts");
            fs::create_dir_all(&stage).map_err(while_doing(stage.display()))?;
            let shm = namespaces.shm()?;
            sys::unshare(libc::CLONE_NEWNS).map_err(while_doing("new namespaces"))?;
            let staged = mounts::stage(spec, shm, &stage)?;
            hide_unified()?;
            let user = user::resolve_below(staged.root.as_fd(), &spec.process.user).map_err(config)?;
            let place = Place {
                oom_score_adj: own_oom_score_adj(&spec.process),
                held: held()?,
                namespaces: pod,
                root: &spec.rootfs.target,
                sources: &staged.sources,
                shm: staged.shm.as_deref(),
                mqueue: has_mqueue(),
                user: user.clone(),
            };
            let path = folder.join("config.json");
            fs::write(&path, bundle::config(spec, oci, &place).to_string())
                .map_err(while_doing(path.display()))?;
            let started = self.start(spec, &folder, stdio, user, &report);
            if started.is_err() {
                // what failed is told; what is left of it nobody would ask for
                let _ = self.deleted(&spec.id);
                let _ = fs::remove_dir_all(&folder);
            }
            started?;
            sys::exit_now(0)
        })
    }

    fn start(
        &self,
        spec: &ContainerSpec,
        folder: &Path,
        stdio: init::Stdio,
        user: crate::spec::ResolvedUser,
        report: &OwnedFd,
    ) -> Result<(), Stop> {
        let mut command = self.command(&spec.id, "create");
        command.arg("--bundle").arg(folder);
        let console = self.streams(&mut command, stdio, user.uid, folder)?;
        self.run(&spec.id, "create", command.arg(&spec.id))?;
        drop(command);
        let terminal = console.map(Console::accept).transpose()?;
        let mut command = self.command(&spec.id, "state");
        let said = self.run(&spec.id, "state", command.arg(&spec.id).stdout(Stdio::piped()))?;
        let state: State =
            serde_json::from_slice(&said).map_err(while_doing("the state of a created container"))?;
        if state.status != "created" || state.pid <= 0 {
            return Err(config(format!("the container is {} after it was created", state.status)));
        }
        let made = Report::Made { pid: state.pid, user };
        init::tell(report, &made, terminal.as_ref().map(AsFd::as_fd))?;
        let mut command = self.command(&spec.id, "start");
        self.run(&spec.id, "start", command.arg(&spec.id)).map(drop)
    }

    /// `exec`, in a child of its own.
    pub(super) fn exec(
        &self,
        id: &str,
        first: Pid,
        process: &ProcessSpec,
        stdio: init::Stdio,
        report: OwnedFd,
    ) -> ! {
        init::finish(&report, || {
            begin(process)?;
            own_mounts()?;
            let folder = self.folder(id).join(format!("exec-{}", std::process::id()));
            fs::create_dir(&folder).map_err(while_doing(folder.display()))?;
            let done = self.executed(id, first, process, stdio, &folder, &report);
            // nothing in it is needed any more
            let _ = fs::remove_dir_all(&folder);
            done?;
            sys::exit_now(0)
        })
    }

    fn executed(
        &self,
        id: &str,
        first: Pid,
        process: &ProcessSpec,
        stdio: init::Stdio,
        folder: &Path,
        report: &OwnedFd,
    ) -> Result<(), Stop> {
        let root = format!("/proc/{}/root", first.as_raw_nonzero());
        let root = openat(CWD, &root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Stop(FailureKind::NotFound, format!("{root}: {error}")))?;
        let user = user::resolve_below(root.as_fd(), &process.user).map_err(config)?;
        let place = Place {
            oom_score_adj: own_oom_score_adj(process),
            held: held()?,
            namespaces: Vec::new(),
            root: Path::new("/"),
            sources: &[],
            shm: None,
            mqueue: false,
            user: user.clone(),
        };
        let (file, pid) = (folder.join("process.json"), folder.join("pid"));
        fs::write(&file, bundle::process(process, &place).to_string())
            .map_err(while_doing(file.display()))?;
        let mut command = self.command(id, "exec");
        command.arg("--process").arg(&file).arg("--detach").arg("--pid-file").arg(&pid);
        let console = self.streams(&mut command, stdio, user.uid, folder)?;
        self.run(id, "exec", command.arg(id))?;
        drop(command);
        let terminal = console.map(Console::accept).transpose()?;
        let text = fs::read_to_string(&pid).map_err(while_doing(pid.display()))?;
        let pid = text.trim().parse().map_err(while_doing("the id of the executed process"))?;
        init::tell(report, &Report::Made { pid, user }, terminal.as_ref().map(AsFd::as_fd))?;
        Ok(())
    }

    /// Gives `command` the streams of what it starts, or a socket to which it sends the terminal.
    fn streams(
        &self,
        command: &mut Command,
        stdio: init::Stdio,
        uid: u32,
        folder: &Path,
    ) -> Result<Option<Console>, Stop> {
        let Some([input, output, errors]) = stdio else {
            let console = Console::listen(folder)?;
            command.arg("--console-socket").arg(console.path());
            return Ok(Some(console));
        };
        for file in [&input, &output, &errors] {
            init::give_away(file.as_fd(), uid);
        }
        command.stdin(input).stdout(output).stderr(errors);
        Ok(None)
    }
}

/// Where a runtime sends the terminal it made.
struct Console {
    folder: OwnedFd,
    listener: UnixListener,
}

impl Console {
    fn listen(folder: &Path) -> Result<Console, String> {
        let what = || while_doing("a socket for the terminal");
        let folder = fs::File::open(folder).map_err(what())?;
        // A socket's path is limited to 107 bytes, that of the folder is not.
        let listener =
            UnixListener::bind(format!("/proc/self/fd/{}/tty", folder.as_raw_fd())).map_err(what())?;
        Ok(Console { folder: folder.into(), listener })
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}/tty", std::process::id(), self.folder.as_raw_fd())
    }

    fn accept(self) -> Result<OwnedFd, Stop> {
        let what = "the container's terminal";
        let none = || config("the OCI runtime sent no terminal");
        if !readable(&self.listener, Duration::ZERO).map_err(while_doing(what))? {
            return Err(none());
        }
        let (socket, _) = self.listener.accept().map_err(while_doing(what))?;
        if !readable(&socket, Duration::ZERO).map_err(while_doing(what))? {
            return Err(none());
        }
        let (mut name, mut files) = (Vec::new(), Vec::new());
        protocol::receive(socket.as_fd(), &mut name, &mut files).map_err(while_doing(what))?;
        files.pop().ok_or_else(none)
    }
}

/// The pod's namespaces that a container of it enters; others it shares with the node.
pub(super) fn pod_namespaces(
    sandbox: &SandboxSpec,
    pid: PidMode,
    pause: Option<Pid>,
) -> Vec<(&'static str, String)> {
    let of = |process: i32, kind: &str| format!("/proc/{process}/ns/{kind}");
    let shim = rustix::process::getpid().as_raw_nonzero().get();
    let mut namespaces = Vec::new();
    if let Some(netns) = &sandbox.netns {
        namespaces.push(("network", netns.display().to_string()));
        namespaces.push(("uts", of(shim, "uts")));
    }
    if sandbox.private_ipc {
        namespaces.push(("ipc", of(shim, "ipc")));
    }
    match (pid, pause) {
        (PidMode::Pod, Some(pause)) => namespaces.push(("pid", of(pause.as_raw_nonzero().get(), "pid"))),
        (PidMode::Target(target), _) => namespaces.push(("pid", of(target, "pid"))),
        _ => {}
    }
    namespaces
}

fn begin(process: &ProcessSpec) -> Result<(), String> {
    sys::reset_signals();
    rustix::process::setsid().map_err(while_doing("setsid"))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    process.oom_score_adj.map_or(Ok(()), init::set_oom_score_adj)
}

/// A copy of the node's mounts in which this process may change something.
fn own_mounts() -> Result<(), String> {
    sys::unshare(libc::CLONE_NEWNS).map_err(while_doing("new namespaces"))?;
    mounts::cut_off()?;
    hide_unified()
}

/// On a hybrid node takes the v2 tree out of sight: limits and devices are those of v1 there, and crun refuses a node
/// whose v2 tree has controllers, too. The mount namespace must be this process's own.
fn hide_unified() -> Result<(), String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(while_doing("mountinfo"))?;
    let of = |kind: &str| -> Vec<&str> {
        let lines = mounts.lines().filter_map(|line| line.split_once(" - "));
        let lines = lines.filter(|(_, right)| right.split(' ').next() == Some(kind));
        lines.filter_map(|(left, _)| left.split(' ').nth(4)).collect()
    };
    if of("cgroup").is_empty() {
        return Ok(());
    }
    for path in of("cgroup2") {
        unmount(path, UnmountFlags::DETACH).map_err(while_doing(path))?;
    }
    Ok(())
}

/// What this process could set for itself is what the program can set.
fn own_oom_score_adj(process: &ProcessSpec) -> Option<i32> {
    process.oom_score_adj?;
    fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()
}

pub(super) fn held() -> Result<u64, String> {
    Ok(rustix::thread::capabilities(None).map_err(while_doing("capget"))?.permitted.bits())
}

pub(super) fn has_mqueue() -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_whitespace().last() == Some("mqueue"))
}

pub(super) fn readable(file: &impl AsFd, limit: Duration) -> rustix::io::Result<bool> {
    let limit = Timespec { tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&limit)) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result? > 0),
        }
    }
}
