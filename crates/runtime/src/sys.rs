//! System calls that neither the standard library nor `rustix` offers safely. Everything `unsafe` of
//! the runtime stands here, behind functions that cannot be misused from safe code (forking aside: see
//! [`fork`]).

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::process::Pid;

/// Attributes for [`mount_setattr`].
#[derive(Debug, Default, Clone, Copy)]
pub struct MountAttr<'a> {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear.
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or 0 (leave).
    pub propagation: u64,
    /// For [`ATTR_IDMAP`]: the user namespace in whose ids owners are shown.
    pub users: Option<BorrowedFd<'a>>,
}

/// `MOUNT_ATTR_RDONLY`.
pub const ATTR_RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`.
pub const ATTR_NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`.
pub const ATTR_NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`.
pub const ATTR_NOEXEC: u64 = 0x8;
/// `MOUNT_ATTR_IDMAP`.
pub const ATTR_IDMAP: u64 = 0x10_0000;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Changes attributes of the mount that `fd` names, with everything below it when `recursive`.
#[allow(
    unsafe_code,
    reason = "rustix has no mount_setattr; all pointers are to locals that outlive the call"
)]
pub fn mount_setattr(fd: BorrowedFd<'_>, attr: MountAttr<'_>, recursive: bool) -> io::Result<()> {
    #[repr(C)]
    struct Raw {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    let users = attr.users.map_or(0, |file| file.as_raw_fd() as u64);
    let raw = Raw { set: attr.set, clear: attr.clear, propagation: attr.propagation, userns: users };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw as *const Raw,
            size_of::<Raw>(),
        )
    })
    .map(drop)
}

/// Which side of a [`fork`] this is.
pub enum Fork {
    /// The new process.
    Child,
    /// The old process, with the child's id as it sees it.
    Parent(Pid),
}

/// `clone3` without shared memory. `flags` are `CLONE_NEW*` bits; the child starts in the cgroup (v2)
/// that `cgroup` names.
///
/// Only for single-threaded processes (the shim): the child goes on in ordinary Rust code, so no other
/// thread may hold a lock. A process with more than one thread gets an error.
#[allow(unsafe_code, reason = "process creation; the caller is checked to have one thread")]
pub fn fork(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("fork refused: this process has more than one thread"));
    }
    let mut args = CloneArgs { flags, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &args as *const CloneArgs, size_of::<CloneArgs>()) })?;
    match Pid::from_raw(pid as i32) {
        None => Ok(Fork::Child),
        Some(pid) => Ok(Fork::Parent(pid)),
    }
}

/// Enters the namespaces that `fd` (an nsfs file) stands for.
#[allow(unsafe_code, reason = "plain system call without pointers")]
pub fn setns(fd: BorrowedFd<'_>, kinds: libc::c_int) -> io::Result<()> {
    check(unsafe { libc::setns(fd.as_raw_fd(), kinds) } as libc::c_long).map(drop)
}

/// Lets this process run on every processor that its control group has, whatever who started it was kept to: kernels since 6.2
/// keep to that in every group.
#[allow(unsafe_code, reason = "the kernel reads a mask of the size given")]
pub fn use_all_processors() -> io::Result<()> {
    // as many as any kernel has
    let all = [u8::MAX; 8192 / 8];
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, all.len(), all.as_ptr()) }).map(drop)
}

/// Leaves the namespaces in `flags` for new ones.
#[allow(unsafe_code, reason = "plain system call; CLONE_FILES is never passed")]
pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    check(unsafe { libc::unshare(flags & !libc::CLONE_FILES) } as libc::c_long).map(drop)
}

/// Files that this thread makes from now on belong to the user and group given; its capabilities are not changed by that.
#[allow(unsafe_code, reason = "plain system calls without pointers")]
pub fn own_files_as(uid: u32, gid: u32) -> io::Result<()> {
    // Neither call says whether it worked; one with an id that is none changes nothing and returns what is.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        if libc::setfsgid(u32::MAX) as u32 != gid || libc::setfsuid(u32::MAX) as u32 != uid {
            return Err(io::Error::other(format!("setfsuid {uid}, setfsgid {gid}: refused")));
        }
    }
    // Leaving root took the capabilities that concern files out of the effective set.
    let held = rustix::thread::capabilities(None)?;
    let all = rustix::thread::CapabilitySets { effective: held.permitted, ..held };
    Ok(rustix::thread::set_capabilities(None, all)?)
}

/// Blocks every signal and returns a file that becomes readable when SIGCHLD is pending.
#[allow(unsafe_code, reason = "signal masks are filled by libc before use")]
pub fn block_signals() -> io::Result<OwnedFd> {
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        check(libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut()) as libc::c_long)?;
        let mut child: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut child);
        libc::sigaddset(&mut child, libc::SIGCHLD);
        let fd = check(libc::signalfd(-1, &child, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) as libc::c_long)?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Gives every signal its default action and unblocks all: what a fresh program expects (Rust starts with
/// SIGPIPE ignored, the shim blocks everything).
#[allow(unsafe_code, reason = "signal masks are filled by libc before use; no handler is installed")]
pub fn reset_signals() {
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Marks every file from `first` on close-on-exec.
#[allow(unsafe_code, reason = "plain system call without pointers")]
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Makes `fd` the standard stream `target` (0, 1 or 2).
#[allow(unsafe_code, reason = "dup2 onto the standard streams, which nobody else owns in a forked child")]
pub fn dup_onto(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == target {
        // dup2 onto itself would leave close-on-exec set.
        check(unsafe { libc::fcntl(target, libc::F_SETFD, 0) } as libc::c_long)?;
        return Ok(());
    }
    check(unsafe { libc::dup2(fd.as_raw_fd(), target) } as libc::c_long).map(drop)
}

/// Makes the terminal `fd` the controlling terminal of this session.
#[allow(unsafe_code, reason = "ioctl with an integer argument")]
pub fn set_controlling_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) } as libc::c_long).map(drop)
}

/// Gives this process a session keyring of its own, without a name and empty. The one it has stays where the kernel has no keys,
/// whoever runs the node lets it use none (a container's seccomp profile), or its user has too many.
#[allow(unsafe_code, reason = "rustix has no keyctl; the name is null, nothing is read")]
pub fn new_session_keyring() -> io::Result<()> {
    let name = std::ptr::null::<libc::c_char>();
    match check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name) }) {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOSYS | libc::EPERM | libc::EACCES | libc::EDQUOT)
            ) =>
        {
            Ok(())
        }
        result => result.map(drop),
    }
}

/// Replaces this process. Returns only with an error.
#[allow(unsafe_code, reason = "execve on NUL-terminated arrays built here")]
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// What the first process of a shared PID namespace does: lets the kernel reap orphans, forever.
#[allow(unsafe_code, reason = "signal disposition without a handler; plain system calls")]
pub fn reap_forever() -> ! {
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
        loop {
            libc::pause();
        }
    }
}

/// Ends this process at once, without running destructors or exit handlers.
#[allow(unsafe_code, reason = "ends the process")]
pub fn exit_now(code: i32) -> ! {
    unsafe { libc::_exit(code) }
}

/// Installs a seccomp program (an array of 8-byte `sock_filter`) on this thread.
#[allow(unsafe_code, reason = "the program is copied into an aligned buffer that outlives the call")]
pub fn install_seccomp(program: &[u8]) -> io::Result<()> {
    let mut filters: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|raw| libc::sock_filter {
            code: u16::from_ne_bytes([raw[0], raw[1]]),
            jt: raw[2],
            jf: raw[3],
            k: u32::from_ne_bytes([raw[4], raw[5], raw[6], raw[7]]),
        })
        .collect();
    let len = u16::try_from(filters.len()).map_err(io::Error::other)?;
    let prog = libc::sock_fprog { len, filter: filters.as_mut_ptr() };
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            1, /* SECCOMP_SET_MODE_FILTER */
            0,
            &prog as *const libc::sock_fprog,
        )
    })
    .map(drop)
}

/// Sets the "up" flag of the loopback interface of this network namespace.
#[allow(unsafe_code, reason = "ioctl on an ifreq that outlives the call")]
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) as libc::c_long)?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) as libc::c_long)?;
    }
    Ok(())
}

/// Sends `signal` to a process.
///
/// The id is a [`Pid`], and never init's: numbers that mean "my own group" or "everybody" to the kernel cannot be said.
#[allow(unsafe_code, reason = "plain system call without pointers")]
pub fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    if pid.is_init() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    check(unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) } as libc::c_long).map(drop)
}

/// Sends `signal` to the process group that `leader` leads.
#[allow(unsafe_code, reason = "plain system call without pointers")]
pub fn kill_group(leader: Pid, signal: i32) -> io::Result<()> {
    if leader.is_init() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    check(unsafe { libc::kill(-leader.as_raw_nonzero().get(), signal) } as libc::c_long).map(drop)
}

/// Loads a BPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE` and attaches it to the cgroup (v2) `cgroup`.
/// `program` is an array of 8-byte instructions.
#[allow(unsafe_code, reason = "bpf(2) on attribute blocks that outlive the calls")]
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: &[u64]) -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const CGROUP_DEVICE_TYPE: u32 = 15;
    const CGROUP_DEVICE_ATTACH: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }
    #[repr(C)]
    struct Attach {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
    }
    let load = Load {
        prog_type: CGROUP_DEVICE_TYPE,
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    let fd = check(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &load as *const Load, size_of::<Load>())
    })?;
    let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let attach = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: fd.as_raw_fd() as u32,
        attach_type: CGROUP_DEVICE_ATTACH,
        attach_flags: ALLOW_MULTI,
    };
    check(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &attach as *const Attach, size_of::<Attach>())
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_never_go_to_init_or_to_everybody() {
        // signal 0 is none: where this fails, nobody is hurt
        for send in [kill, kill_group] {
            assert_eq!(send(Pid::INIT, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
