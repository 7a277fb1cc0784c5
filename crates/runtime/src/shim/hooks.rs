//! Hooks: programs that are run at steps of a container's life, as devices by CDI ask for. Each is told on its standard
//! input how the container is, and finds its configuration in the bundle.
//!
//! | step | where | when |
//! |---|---|---|
//! | `prestart`, `createRuntime` | the node's namespaces | all is mounted, the root is the node's still |
//! | `createContainer` | the container's | after that; the program is the node's |
//! | `startContainer` | the container's | as its user, right before its program; the hook is the container's |
//! | `poststart` | the node's | the program runs; nobody has been told yet |
//! | `poststop` | the node's | the container has ended |
//!
//! The root file system is mounted in the container's mount namespace only: hooks of the node reach it by the process id.
//! What a hook that fails stops is the start of its container; after the start a failure is for the shim's log.
//!
//! Rule: OCI runtime specification 1.2, "POSIX-platform Hooks", "State", "Lifecycle".

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde_json::json;

use super::{
    bundle::{self, Place},
    init::{self, Report, Stop, config},
    mounts::while_doing,
    oci::{self, readable},
};
use crate::{
    protocol,
    spec::{ContainerSpec, Hook, Hooks, OciSpec, ResolvedUser},
    sys,
};

/// Longest run of a hook that does not say how long it may take.
const LIMIT: Duration = Duration::from_secs(35);
/// Last bytes of what a hook said that are told.
const WORDS: i64 = 1024;

/// A container's hooks, and what they are told of it.
#[derive(Clone)]
pub(super) struct Hooked {
    id: String,
    /// The folder of `config.json`.
    bundle: PathBuf,
    told: OciSpec,
}

impl Hooked {
    /// The hooks that the shim runs for a container: it has none, or another program runs them.
    pub(super) fn of(spec: &ContainerSpec, dir: &Path) -> Option<Hooked> {
        let told = spec.oci.clone().filter(|told| told.program.is_none())?;
        Some(Hooked { id: spec.id.clone(), bundle: dir.join("oci").join(&spec.id), told })
    }

    /// Its hooks.
    pub(super) fn hooks(&self) -> &Hooks {
        &self.told.hooks
    }

    /// The first half of what comes before the program: in the container's first process, whose root is the node's
    /// still. `user`: who the program runs as.
    pub(super) fn before_root(
        &self,
        spec: &ContainerSpec,
        user: &ResolvedUser,
        namespaces: Vec<(&'static str, String)>,
        report: &OwnedFd,
    ) -> Result<(), Stop> {
        let sources: Vec<PathBuf> = spec.mounts.iter().map(|mount| mount.source.path()).collect();
        let place = Place {
            user: user.clone(),
            oom_score_adj: spec.process.oom_score_adj,
            held: oci::held()?,
            namespaces,
            root: &spec.rootfs.target,
            sources: &sources,
            shm: None,
            mqueue: oci::has_mqueue(),
        };
        fs::create_dir_all(&self.bundle).map_err(while_doing(self.bundle.display()))?;
        let path = self.bundle.join("config.json");
        fs::write(&path, bundle::config(spec, &self.told, &place).to_string())
            .map_err(while_doing(path.display()))?;
        let hooks = self.hooks();
        if !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() {
            self.in_node(report)?;
        }
        self.run("createContainer", &hooks.create_container, "creating", own_pid()).map_err(config)
    }

    /// Has the shim run the node's hooks and waits for them.
    fn in_node(&self, report: &OwnedFd) -> Result<(), Stop> {
        init::tell(report, &Report::Hooks, None)?;
        let (mut words, mut files) = (Vec::new(), Vec::new());
        let told = protocol::receive(report.as_fd(), &mut words, &mut files);
        told.map_err(while_doing("waiting for hooks"))?;
        match serde_json::from_slice::<Result<(), String>>(&words) {
            Ok(outcome) => outcome.map_err(config),
            Err(_) => Err(Stop::from("the process that runs hooks died".to_owned())),
        }
    }

    /// The node's hooks before the start, for the process `pid`, which waits at the other end of `answer`.
    pub(super) fn create_runtime(&self, pid: i32, answer: &OwnedFd) -> Result<(), String> {
        let hooks = self.hooks();
        let done = self
            .run("prestart", &hooks.prestart, "creating", pid)
            .and_then(|()| self.run("createRuntime", &hooks.create_runtime, "creating", pid));
        let words = serde_json::to_vec(&done).map_err(while_doing("hooks"))?;
        protocol::send(answer.as_fd(), &words, &[]).map(drop).map_err(while_doing("hooks"))
    }

    /// The second half: in the container, with its user's rights.
    pub(super) fn before_program(&self) -> Result<(), Stop> {
        self.run("startContainer", &self.hooks().start_container, "created", own_pid()).map_err(config)
    }

    /// The program runs.
    pub(super) fn started(&self, pid: i32) -> Result<(), String> {
        self.run("poststart", &self.hooks().poststart, "running", pid)
    }

    /// The container has ended: all hooks are run, whatever becomes of one, and nothing of the bundle stays.
    pub(super) fn ended(&self) -> Result<(), String> {
        let mut outcome = Ok(());
        for hook in &self.hooks().poststop {
            outcome = outcome.and(self.one("poststop", hook, "stopped", 0));
        }
        // absent where the container was never made
        let _ = fs::remove_dir_all(&self.bundle);
        outcome
    }

    fn run(&self, step: &str, hooks: &[Hook], status: &str, pid: i32) -> Result<(), String> {
        hooks.iter().try_for_each(|hook| self.one(step, hook, status, pid))
    }

    fn one(&self, step: &str, hook: &Hook, status: &str, pid: i32) -> Result<(), String> {
        let failed = |why: String| format!("{step} hook {} failed: {why}", hook.path.display());
        let mut state = json!({"ociVersion": bundle::VERSION, "id": self.id, "status": status,
            "bundle": self.bundle, "annotations": self.told.annotations});
        if pid > 0 {
            state["pid"] = pid.into();
        }
        self.execute(hook, &state.to_string()).map_err(failed)
    }

    fn execute(&self, hook: &Hook, state: &str) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        let file = |name| memfd_create(name, MemfdFlags::CLOEXEC).map(fs::File::from);
        let (mut input, mut words) =
            (file("state").map_err(|e| e.to_string())?, file("words").map_err(|e| e.to_string())?);
        input.write_all(state.as_bytes()).and_then(|()| input.rewind()).map_err(text)?;
        let mut command = Command::new(&hook.path);
        if let Some((name, rest)) = hook.args.split_first() {
            command.arg0(name).args(rest);
        }
        command.env_clear().envs(hook.env.iter().filter_map(|pair| pair.split_once('=')));
        command.stdin(Stdio::from(input));
        command.stdout(words.try_clone().map_err(text)?).stderr(words.try_clone().map_err(text)?);
        let mut child = command.spawn().map_err(text)?;
        let limit = hook.timeout.map_or(LIMIT, Duration::from_secs);
        let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .and_then(|child| readable(&child, limit))
            .map_err(|error| error.to_string());
        if ended != Ok(true) {
            // both may have ended just now
            let _ = child.kill();
            let _ = child.wait();
            return ended.and(Err(format!("it did not end within {} s", limit.as_secs())));
        }
        let status = child.wait().map_err(text)?;
        if status.success() {
            return Ok(());
        }
        let mut said = Vec::new();
        let length = words.seek(SeekFrom::End(0)).map_err(text)?;
        let from = length.saturating_sub(WORDS.unsigned_abs());
        // what it said is an addition
        let _ = words.seek(SeekFrom::Start(from)).and_then(|_| words.read_to_end(&mut said));
        let said = String::from_utf8_lossy(&said);
        Err(format!("{status}: {}", said.trim()).trim_end_matches([':', ' ']).to_owned())
    }
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Runs `work` in a child of the shim to its end.
pub(super) fn child(report: OwnedFd, work: impl FnOnce() -> Result<(), String>) -> ! {
    init::finish(&report, || {
        sys::reset_signals();
        work()?;
        sys::exit_now(0)
    })
}
