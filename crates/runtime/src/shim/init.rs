//! From a forked shim to a running program: what happens in the child between `clone` and `execve`.
//!
//! Everything here runs with the node's privileges next to foreign content, so the order matters: files of
//! the node are closed or close-on-exec before the container's root is entered, the process is not dumpable
//! until `execve`, and privileges are only ever given up.

use std::{
    ffi::CString,
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fchown, fstat, openat, openat2},
    process::{DumpableBehavior, set_dumpable_behavior},
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    thread::{CapabilitySet, CapabilitySets, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use serde::{Deserialize, Serialize};

use super::{
    hooks::Hooked,
    mounts::{self, while_doing},
    user_namespace::Users,
};
use crate::{
    protocol::{self, Failure, FailureKind},
    spec::{CgroupJoin, ContainerSpec, ProcessSpec, ResolvedUser},
    sys,
};

/// What the child tells the shim over its socket; the socket's end means the program runs. A terminal's
/// file comes with `Ready`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Ready(ResolvedUser),
    /// Another program made the process; this child only looks on.
    Made {
        pid: i32,
        user: ResolvedUser,
    },
    Failed(Failure),
    /// The node's hooks are to be run; their outcome is waited for.
    Hooks,
}

/// The group that terminals belong to, by custom.
pub(super) const TERMINALS: u32 = 5;

/// Why the program was not started.
pub(super) struct Stop(pub(super) FailureKind, pub(super) String);

/// A plain message is the node's fault.
impl From<String> for Stop {
    fn from(message: String) -> Stop {
        Stop(FailureKind::Internal, message)
    }
}

pub(super) fn config(message: impl Into<String>) -> Stop {
    Stop(FailureKind::Config, message.into())
}

/// Standard input, output and error; none with a terminal.
pub(crate) type Stdio = Option<[OwnedFd; 3]>;

/// Namespaces a container's first process visits.
pub(crate) struct Namespaces<'a> {
    /// The pod's mount namespace, whose root is the shared `/dev/shm`.
    pub(crate) pod_mount: Option<BorrowedFd<'a>>,
    /// The node's mount namespace.
    pub(crate) host_mount: BorrowedFd<'a>,
    /// The pod's users, where they are not the node's.
    pub(super) users: Option<&'a Users>,
}

impl Namespaces<'_> {
    /// The pod's `/dev/shm`, detached. Afterwards this process is in the node's mount namespace.
    pub(super) fn shm(&self) -> Result<Option<OwnedFd>, String> {
        let Some(pod) = self.pod_mount else { return Ok(None) };
        sys::setns(pod, libc::CLONE_NEWNS).map_err(while_doing("entering the pod's mounts"))?;
        let flags =
            rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, "/", flags).map_err(while_doing("/dev/shm"))?;
        sys::setns(self.host_mount, libc::CLONE_NEWNS).map_err(while_doing("entering the node's mounts"))?;
        Ok(Some(tree))
    }
}

/// The first process of a container; with its hooks, the pod's namespaces that it enters are told.
pub(super) fn container(
    spec: &ContainerSpec,
    hooked: Option<(Hooked, Vec<(&'static str, String)>)>,
    namespaces: Namespaces<'_>,
    stdio: Stdio,
    report: OwnedFd,
) -> ! {
    finish(&report, || {
        let seccomp = begin(&spec.cgroup, &spec.process)?;
        let shm = namespaces.shm()?;
        let cgroups = match namespaces.users {
            None if spec.sees_nodes_cgroups() => 0,
            _ => libc::CLONE_NEWCGROUP,
        };
        sys::unshare(libc::CLONE_NEWNS | cgroups).map_err(while_doing("new namespaces"))?;
        let (hooked, pod) = hooked.unzip();
        let user = mounts::enter_rootfs(spec, shm, namespaces.users, |user| {
            match (&hooked, pod) {
                (Some(hooked), Some(pod)) => hooked.before_root(spec, user, pod, &report),
                _ => Ok(()),
            }
            // Hooks are the node's programs: only what is executed after them is confined as the container.
            .and_then(|()| Ok(confine_program(&spec.process)?))
        })?;
        let role = Role::Container(hooked.as_ref());
        run(&spec.process, user, &seccomp, stdio, &report, role, namespaces.users)
    })
}

/// A further process of a container, whose namespaces are given as files.
pub(super) fn exec(
    process: &ProcessSpec,
    cgroup: &CgroupJoin,
    (mount, cgroup_namespace): (OwnedFd, OwnedFd),
    users: Option<&Users>,
    stdio: Stdio,
    report: OwnedFd,
) -> ! {
    finish(&report, || {
        let seccomp = begin(cgroup, process)?;
        confine_program(process)?;
        sys::setns(cgroup_namespace.as_fd(), libc::CLONE_NEWCGROUP)
            .map_err(while_doing("entering the container's cgroups"))?;
        sys::setns(mount.as_fd(), libc::CLONE_NEWNS)
            .map_err(while_doing("entering the container's mounts"))?;
        drop((mount, cgroup_namespace));
        let root =
            openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(while_doing("/"))?;
        let user = super::user::resolve_below(root.as_fd(), &process.user).map_err(config)?;
        drop(root);
        run(process, user, &seccomp, stdio, &report, Role::Exec, users)
    })
}

/// Runs `body` and tells why it failed.
pub(super) fn finish(report: &OwnedFd, body: impl FnOnce() -> Result<std::convert::Infallible, Stop>) -> ! {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
    let Stop(kind, message) = match result {
        Ok(Err(stop)) => stop,
        Ok(Ok(never)) => match never {},
        Err(_) => Stop(FailureKind::Internal, "the runtime failed while starting the container".to_owned()),
    };
    let _ = tell(report, &Report::Failed(Failure { kind, message }), None);
    sys::exit_now(1)
}

pub(super) fn tell(socket: &OwnedFd, report: &Report, file: Option<BorrowedFd<'_>>) -> Result<(), String> {
    let bytes = serde_json::to_vec(report).map_err(while_doing("report"))?;
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    protocol::send(socket.as_fd(), &bytes, &files).map_err(while_doing("report"))?;
    Ok(())
}

/// What every child does first, while it still sees the node. Returns the seccomp programs.
fn begin(cgroup: &CgroupJoin, process: &ProcessSpec) -> Result<Vec<Vec<u8>>, String> {
    // Container processes must not look into this one (CVE-2016-9962) before it is theirs.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(while_doing("PR_SET_DUMPABLE"))?;
    rustix::process::setsid().map_err(while_doing("setsid"))?;
    rustix::process::umask(Mode::empty());
    join(cgroup)?;
    if let Some(adj) = process.oom_score_adj {
        set_oom_score_adj(adj)?;
    }
    if let Some(label) = &process.selinux {
        label_keys(label)?;
    }
    let read = |path: &std::path::PathBuf| {
        fs::read(path).map_err(while_doing(format_args!("seccomp profile {}", path.display())))
    };
    process.seccomp.iter().map(read).collect()
}

/// Moves this process into v1 cgroups. Writing 0 to `tasks` (not a process id to `cgroup.procs`) spares the
/// kernel's global lock and with it several milliseconds.
pub(crate) fn join(cgroup: &CgroupJoin) -> Result<(), String> {
    for tasks in &cgroup.tasks {
        fs::write(tasks, "0").map_err(while_doing(format_args!("joining {}", tasks.display())))?;
    }
    Ok(())
}

/// Has what this process executes next confined by an SELinux label and an AppArmor profile. `/proc` must still be the node's: a
/// container could have anything in its place (CVE-2019-16884).
pub(super) fn confine_program(process: &ProcessSpec) -> Result<(), String> {
    if let Some(label) = &process.selinux {
        fs::write("/proc/thread-self/attr/exec", label)
            .map_err(while_doing(format_args!("SELinux label {label:?}")))?;
    }
    if let Some(profile) = &process.apparmor {
        fs::write("/proc/thread-self/attr/apparmor/exec", format!("exec {profile}"))
            .map_err(while_doing(format_args!("AppArmor profile {profile}")))?;
    }
    Ok(())
}

/// Has the keyring that this process makes for the container belong to an SELinux label: who runs with it may use it.
fn label_keys(label: &str) -> Result<(), String> {
    match fs::write("/proc/thread-self/attr/keycreate", label) {
        // a kernel without keys
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(while_doing(format_args!("SELinux label {label:?} of keys"))),
    }
}

/// Sets this process's oom_score_adj. Without CAP_SYS_RESOURCE the value cannot be lowered below the one
/// we have; then that one stays, since refusing to run would help nobody.
pub(crate) fn set_oom_score_adj(wanted: i32) -> Result<(), String> {
    let path = "/proc/self/oom_score_adj";
    match fs::write(path, wanted.to_string()) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(()),
        result => result.map_err(while_doing(path)),
    }
}

/// Sets kernel settings, dotted names, of the namespaces this process is in.
pub(super) fn set_sysctls(sysctls: &[(String, String)]) -> Result<(), String> {
    for (name, value) in sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::write(&path, value).map_err(while_doing(format_args!("sysctl {name}={value}")))?;
    }
    Ok(())
}

/// Its container's first process, with its hooks, or a further one.
#[derive(Clone, Copy)]
enum Role<'a> {
    Container(Option<&'a Hooked>),
    Exec,
}

fn run(
    process: &ProcessSpec,
    user: ResolvedUser,
    seccomp: &[Vec<u8>],
    stdio: Stdio,
    report: &OwnedFd,
    role: Role<'_>,
    users: Option<&Users>,
) -> Result<std::convert::Infallible, Stop> {
    let first = matches!(role, Role::Container(_));
    // unlike the rest of it, as the container sees it
    let user = ResolvedUser { home: super::user::home(user.uid), ..user };
    users.map_or(Ok(()), |users| users.check(&user)).map_err(config)?;
    let ids = |uid, gid| users.map_or((uid, gid), |users| users.ids(uid, gid));
    let (uid, terminals) = ids(user.uid, TERMINALS);
    let terminal = match &stdio {
        Some(files) => {
            for (target, file) in files.iter().enumerate() {
                give_away(file.as_fd(), uid);
                sys::dup_onto(file.as_fd(), target as i32).map_err(while_doing("standard streams"))?;
            }
            None
        }
        None => Some(open_terminal((uid, terminals), first)?),
    };
    drop(stdio);
    if let Some(users) = users {
        users.enter()?;
        if first {
            // The copies are the pod's own.
            sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP).map_err(while_doing("new namespaces"))?;
        }
    }
    // Keys of whoever started the node are not the container's.
    sys::new_session_keyring().map_err(while_doing("a keyring of its own"))?;
    enter_directory(&process.cwd, first)?;
    sys::close_on_exec_from(3).map_err(while_doing("closing files"))?;
    drop_privileges(process, &user, seccomp)?;
    if let Role::Container(Some(hooked)) = role {
        hooked.before_program()?;
    }

    let env = environment(process, &user);
    let program = find_program(process, &env)?;
    let text =
        |text: &String| CString::new(text.as_str()).map_err(|_| config("an argument contains a NUL byte"));
    let args = process.args.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let env = env.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    tell(report, &Report::Ready(user), terminal.as_ref().map(AsFd::as_fd))?;
    drop(terminal);
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::reset_signals();
    let error = sys::execve(&program, &args, &env);
    let labelled = process.selinux.as_ref().map(|label| format!(" (with the SELinux label {label:?})"));
    Err(config(format!("exec: {:?}: {error}{}", process.args[0], labelled.unwrap_or_default())))
}

fn enter_directory(cwd: &str, make: bool) -> Result<(), Stop> {
    let path = Path::new(if cwd.is_empty() { "/" } else { cwd });
    if make && !path.exists() {
        fs::create_dir_all(path)
            .map_err(|error| config(format!("making the working directory {cwd}: {error}")))?;
    }
    rustix::process::chdir(path).map_err(|error| config(format!("chdir to cwd {cwd:?}: {error}")))?;
    let real = rustix::process::getcwd(Vec::new()).map_err(while_doing("getcwd"))?;
    // A magic link in /proc could have led outside (CVE-2024-21626); the kernel then names it so.
    if !real.as_bytes().starts_with(b"/") {
        return Err(config(format!("the working directory {cwd:?} is outside of the container")));
    }
    Ok(())
}

/// Lets the container's user open its own streams again (`/dev/stdout`); devices are left alone.
pub(super) fn give_away(file: BorrowedFd<'_>, uid: u32) {
    if let Ok(stat) = fstat(file)
        && !matches!(FileType::from_raw_mode(stat.st_mode), FileType::CharacterDevice | FileType::BlockDevice)
    {
        let _ = fchown(file, Some(Uid::from_raw(uid)), None);
    }
}

/// Opens a terminal in the container's own devpts, makes it this session's, and returns the master side.
fn open_terminal((uid, gid): (u32, u32), first: bool) -> Result<OwnedFd, Stop> {
    let what = "opening a terminal";
    let root = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(while_doing(what))?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let master = openat2(&root, "dev/pts/ptmx", flags, Mode::empty(), resolve).map_err(while_doing(what))?;
    // What the container may have put there instead is not touched.
    const DEVPTS: i64 = 0x1cd1;
    let kind = rustix::fs::fstatfs(&master).map_err(while_doing(what))?.f_type;
    let device = fstat(&master).map_err(while_doing(what))?.st_rdev;
    if kind != DEVPTS || (rustix::fs::major(device), rustix::fs::minor(device)) != (5, 2) {
        return Err(config("/dev/pts/ptmx of the container is not a terminal multiplexer"));
    }
    unlockpt(&master).map_err(while_doing(what))?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .map_err(while_doing(what))?;
    let _ = fchown(&slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    if first {
        mounts::console(slave.as_fd())?;
    }
    for target in 0..3 {
        sys::dup_onto(slave.as_fd(), target).map_err(while_doing(what))?;
    }
    sys::set_controlling_terminal(slave.as_fd()).map_err(while_doing(what))?;
    Ok(master)
}

fn drop_privileges(process: &ProcessSpec, user: &ResolvedUser, seccomp: &[Vec<u8>]) -> Result<(), String> {
    let held = rustix::thread::capabilities(None).map_err(while_doing("capget"))?;
    // A capability the node itself lacks cannot be given; as elsewhere it is left out silently.
    let wanted = CapabilitySet::from_bits_retain(process.capabilities) & held.permitted;
    let ambient = CapabilitySet::from_bits_retain(process.ambient) & wanted;
    for bit in 0..=63_u64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if !held.permitted.contains(one) && bit > 40 {
            break;
        }
        if !wanted.contains(one) {
            // EINVAL: a capability this kernel does not know.
            let _ = rustix::thread::remove_capability_from_bounding_set(one);
        }
    }
    rustix::thread::set_keep_capabilities(true).map_err(while_doing("PR_SET_KEEPCAPS"))?;
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    set_thread_groups(&groups).map_err(while_doing("setgroups"))?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid).map_err(while_doing("setgid"))?;
    set_thread_res_uid(uid, uid, uid).map_err(while_doing("setuid"))?;
    rustix::thread::set_keep_capabilities(false).map_err(while_doing("PR_SET_KEEPCAPS"))?;

    let set = |effective: CapabilitySet, inheritable: CapabilitySet| {
        rustix::thread::set_capabilities(
            None,
            CapabilitySets { effective, permitted: effective, inheritable },
        )
        .map_err(while_doing("capset"))
    };
    if process.no_new_privs {
        rustix::thread::set_no_new_privs(true).map_err(while_doing("PR_SET_NO_NEW_PRIVS"))?;
    }
    if process.no_new_privs {
        set(wanted, ambient)?;
        raise_ambient(ambient)?;
    }
    if !seccomp.is_empty() {
        if !process.no_new_privs {
            // Loading a filter without no_new_privs needs CAP_SYS_ADMIN; it goes right after.
            set((wanted | CapabilitySet::SYS_ADMIN) & held.permitted, ambient)?;
        }
        for program in seccomp {
            sys::install_seccomp(program).map_err(while_doing("installing the seccomp profile"))?;
        }
    }
    if !process.no_new_privs {
        set(wanted, ambient)?;
        raise_ambient(ambient)?;
    }
    Ok(())
}

fn raise_ambient(ambient: CapabilitySet) -> Result<(), String> {
    for one in ambient.iter() {
        rustix::thread::configure_capability_in_ambient_set(one, true)
            .map_err(while_doing("ambient capabilities"))?;
    }
    Ok(())
}

pub(super) fn environment(process: &ProcessSpec, user: &ResolvedUser) -> Vec<String> {
    let mut env = process.env.clone();
    if !env.iter().any(|pair| pair.starts_with("HOME=")) {
        env.push(format!("HOME={}", user.home));
    }
    env
}

/// Where the program is, with the messages people know from other runtimes.
fn find_program(process: &ProcessSpec, env: &[String]) -> Result<CString, Stop> {
    let name =
        process.args.first().filter(|name| !name.is_empty()).ok_or_else(|| config("no command specified"))?;
    let runnable = |path: &str| -> Result<(), rustix::io::Errno> {
        let stat = rustix::fs::stat(path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(rustix::io::Errno::ACCESS);
        }
        rustix::fs::access(path, rustix::fs::Access::EXEC_OK)
    };
    let nul = |_| config("the command contains a NUL byte");
    if name.contains('/') {
        return match runnable(name) {
            Ok(()) => CString::new(name.as_str()).map_err(nul),
            Err(rustix::io::Errno::NOENT) => {
                Err(config(format!("exec: {name:?}: stat {name}: no such file or directory")))
            }
            Err(rustix::io::Errno::ACCESS) => Err(config(format!("exec: {name:?}: permission denied"))),
            Err(error) => Err(config(format!("exec: {name:?}: {error}"))),
        };
    }
    let path = env.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or("");
    for dir in path.split(':') {
        let candidate = format!("{}/{name}", if dir.is_empty() { "." } else { dir });
        if runnable(&candidate).is_ok() {
            return CString::new(candidate).map_err(nul);
        }
    }
    Err(config(format!("exec: {name:?}: executable file not found in $PATH")))
}
