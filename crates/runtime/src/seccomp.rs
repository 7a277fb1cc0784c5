//! The default seccomp profile: an allow list of what programs need, so that system calls which change the
//! node (modules, clocks, mounts, tracing others' memory, namespaces) fail with EPERM.
//!
//! It follows the spirit of the profile other runtimes use, in particular: `clone` may not make namespaces
//! and `clone3`, whose flags a filter cannot see, fails with ENOSYS so that programs fall back to `clone`.
//! A capability opens the calls that it stands for.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use sha2::{Digest, Sha256};

use crate::{capability, syscall_names};

macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}
/// Always allowed.
const COMMON: &[i64] = calls! {
    SYS_accept SYS_accept4 SYS_adjtimex SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir
    SYS_clock_adjtime SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_close SYS_close_range SYS_connect
    SYS_copy_file_range SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2
    SYS_eventfd2 SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64
    SYS_fallocate SYS_fanotify_mark SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_fchown SYS_fchownat
    SYS_fcntl SYS_fdatasync SYS_fgetxattr SYS_flistxattr SYS_flock SYS_fremovexattr SYS_fsetxattr SYS_fstat
    SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex SYS_futex_waitv
    SYS_getcpu SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer
    SYS_getpeername SYS_getpgid SYS_getpid SYS_getppid SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid
    SYS_getrlimit SYS_get_robust_list SYS_getrusage SYS_getsid SYS_getsockname SYS_getsockopt SYS_gettid
    SYS_gettimeofday SYS_getuid SYS_getxattr SYS_inotify_add_watch SYS_inotify_init1 SYS_inotify_rm_watch
    SYS_io_cancel SYS_ioctl SYS_io_destroy SYS_io_getevents SYS_ioprio_get SYS_ioprio_set
    SYS_io_setup SYS_io_submit SYS_kill SYS_landlock_add_rule SYS_landlock_create_ruleset
    SYS_landlock_restrict_self SYS_lgetxattr SYS_linkat SYS_listen SYS_listxattr SYS_llistxattr SYS_lremovexattr
    SYS_lseek SYS_lsetxattr SYS_madvise SYS_membarrier SYS_memfd_create SYS_memfd_secret
    SYS_mincore SYS_mkdirat SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap SYS_mprotect
    SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend SYS_mq_unlink SYS_mremap
    SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock SYS_munlockall SYS_munmap
    SYS_name_to_handle_at SYS_nanosleep SYS_newfstatat SYS_openat SYS_openat2 SYS_pidfd_open
    SYS_pidfd_send_signal SYS_pipe2 SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_ppoll SYS_prctl
    SYS_pread64 SYS_preadv SYS_preadv2 SYS_prlimit64 SYS_process_mrelease SYS_process_vm_readv
    SYS_process_vm_writev SYS_pselect6 SYS_ptrace SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead
    SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg SYS_recvmsg SYS_remap_file_pages SYS_removexattr
    SYS_renameat SYS_renameat2 SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask
    SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo
    SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam SYS_sched_get_priority_max
    SYS_sched_get_priority_min SYS_sched_getscheduler SYS_sched_rr_get_interval SYS_sched_setaffinity
    SYS_sched_setattr SYS_sched_setparam SYS_sched_setscheduler SYS_sched_yield SYS_seccomp SYS_semctl
    SYS_semget SYS_semop SYS_semtimedop SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_setfsgid SYS_setfsuid
    SYS_setgid SYS_setgroups SYS_setitimer SYS_setpgid SYS_setpriority SYS_setregid SYS_setresgid SYS_setresuid
    SYS_setreuid SYS_setrlimit SYS_set_robust_list SYS_setsid SYS_setsockopt SYS_set_tid_address SYS_setuid
    SYS_setxattr SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown SYS_sigaltstack SYS_signalfd4
    SYS_socketpair SYS_splice SYS_statfs SYS_statx SYS_symlinkat SYS_sync SYS_sync_file_range SYS_syncfs
    SYS_sysinfo SYS_tee SYS_tgkill SYS_timer_create SYS_timer_delete SYS_timer_getoverrun SYS_timer_gettime
    SYS_timer_settime SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times SYS_tkill SYS_truncate
    SYS_umask SYS_uname SYS_unlinkat SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
    // Seen only to fail with ENOSYS by the second filter, or allowed by CAP_SYS_ADMIN.
    SYS_clone3
};

/// Numbers that the `libc` crate does not name yet, the same on every architecture since 2019: cachestat,
/// map_shadow_stack, futex_wake, futex_wait, futex_requeue.
const NUMBERED: &[i64] = &[451, 453, 454, 455, 456];

/// Older forms that only this architecture still has.
#[cfg(target_arch = "x86_64")]
const ARCH: &[i64] = calls! {
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create
    SYS_epoll_ctl_old SYS_epoll_wait SYS_epoll_wait_old SYS_eventfd SYS_fork SYS_futimesat SYS_getdents
    SYS_getpgrp SYS_inotify_init SYS_lchown SYS_link SYS_lstat SYS_mkdir SYS_mknod SYS_modify_ldt SYS_open SYS_pause
    SYS_pipe SYS_poll SYS_readlink SYS_rename SYS_rmdir SYS_select SYS_signalfd SYS_stat SYS_symlink SYS_time
    SYS_unlink SYS_utime SYS_utimes SYS_vfork
};
#[cfg(not(target_arch = "x86_64"))]
const ARCH: &[i64] = &[];

/// What a capability opens.
const BY_CAPABILITY: &[(&str, &[i64])] = &[
    ("CAP_DAC_READ_SEARCH", calls! { SYS_open_by_handle_at }),
    (
        "CAP_SYS_ADMIN",
        calls! {
            SYS_bpf SYS_clone SYS_fanotify_init SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick SYS_lookup_dcookie
            SYS_mount SYS_mount_setattr SYS_move_mount SYS_open_tree SYS_perf_event_open SYS_quotactl
            SYS_quotactl_fd SYS_setdomainname SYS_sethostname SYS_setns SYS_syslog SYS_umount2 SYS_unshare
        },
    ),
    ("CAP_SYS_BOOT", calls! { SYS_reboot }),
    ("CAP_SYS_CHROOT", calls! { SYS_chroot }),
    ("CAP_SYS_MODULE", calls! { SYS_delete_module SYS_init_module SYS_finit_module }),
    ("CAP_SYS_PACCT", calls! { SYS_acct }),
    (
        "CAP_SYS_PTRACE",
        calls! { SYS_kcmp SYS_pidfd_getfd SYS_process_madvise SYS_process_vm_readv SYS_process_vm_writev SYS_ptrace },
    ),
    ("CAP_SYS_TIME", calls! { SYS_settimeofday SYS_clock_settime }),
    ("CAP_SYS_TTY_CONFIG", calls! { SYS_vhangup }),
    ("CAP_SYS_NICE", calls! { SYS_get_mempolicy SYS_mbind SYS_set_mempolicy }),
    ("CAP_SYSLOG", calls! { SYS_syslog }),
    ("CAP_BPF", calls! { SYS_bpf }),
    ("CAP_PERFMON", calls! { SYS_perf_event_open }),
];

/// Namespace flags of `clone`.
const NAMESPACES: u64 = 0x7E02_0000;
/// AF_VSOCK reaches the machine around the network policies.
const VSOCK: u64 = 40;
/// What a program may pass to `personality`.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Compiled default profiles, one file per set of capabilities that makes a difference.
#[derive(Debug)]
pub struct Profiles {
    dir: PathBuf,
}

impl Profiles {
    /// Keeps the compiled programs in `dir`, from where shims read them.
    pub fn new(dir: PathBuf) -> io::Result<Profiles> {
        fs::create_dir_all(&dir)?;
        Ok(Profiles { dir })
    }

    /// The programs of the default profile for a process with `capabilities`, to be installed in order.
    pub fn runtime_default(&self, capabilities: u64) -> io::Result<Vec<PathBuf>> {
        let held = BY_CAPABILITY
            .iter()
            .filter_map(|(name, _)| capability::bit(name))
            .fold(0, |bits, bit| bits | (capabilities & bit));
        let mut files = vec![self.compiled(&format!("default-{held:x}"), || allow_list(held))?];
        let admin = capability::bit("CAP_SYS_ADMIN").unwrap_or(0);
        if held & admin == 0 {
            files.push(self.compiled("clone3", no_clone3)?);
        }
        Ok(files)
    }

    /// The program of a profile of the node.
    pub fn of_file(&self, path: &Path) -> Result<PathBuf, String> {
        let text = fs::read(path).map_err(|error| error.to_string())?;
        let sum = crate::image::archive::hex(&Sha256::digest(&text));
        self.compiled(&format!("file-{sum}"), || crate::seccomp_file::compile(&text))
            .map_err(|error| error.to_string())
    }

    fn compiled(
        &self,
        name: &str,
        build: impl FnOnce() -> Result<BpfProgram, String>,
    ) -> io::Result<PathBuf> {
        // Another version of this program may have another list.
        let path = self.dir.join(format!("{name}-{}.bpf", env!("CARGO_PKG_VERSION")));
        if !path.exists() {
            let program = build().map_err(io::Error::other)?;
            let mut bytes = Vec::with_capacity(program.len() * 8);
            for instruction in &program {
                bytes.extend_from_slice(&instruction.code.to_ne_bytes());
                bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
                bytes.extend_from_slice(&instruction.k.to_ne_bytes());
            }
            let temporary = path.with_extension(format!("new{}", std::process::id()));
            fs::write(&temporary, bytes)?;
            fs::rename(temporary, &path)?;
        }
        Ok(path)
    }
}

fn arch() -> Result<TargetArch, String> {
    std::env::consts::ARCH.try_into().map_err(|error| format!("seccomp: {error}"))
}

fn when(arg: u8, op: SeccompCmpOp, value: u64) -> Result<Vec<SeccompRule>, String> {
    let condition =
        SeccompCondition::new(arg, SeccompCmpArgLen::Qword, op, value).map_err(|error| error.to_string())?;
    Ok(vec![SeccompRule::new(vec![condition]).map_err(|error| error.to_string())?])
}

fn allow_list(held: u64) -> Result<BpfProgram, String> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        COMMON.iter().chain(NUMBERED).chain(ARCH).map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_clone, when(0, SeccompCmpOp::MaskedEq(NAMESPACES), 0)?);
    rules.insert(libc::SYS_socket, when(0, SeccompCmpOp::Ne, VSOCK)?);
    let mut personalities = Vec::new();
    for value in PERSONALITIES {
        personalities.extend(when(0, SeccompCmpOp::Eq, value)?);
    }
    rules.insert(libc::SYS_personality, personalities);
    for (name, calls) in BY_CAPABILITY {
        if capability::bit(name).is_some_and(|bit| held & bit != 0) {
            rules.extend(calls.iter().map(|call| (*call, Vec::new())));
        }
    }
    compile(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

/// The same list as data of the OCI runtime specification, for runtimes that compile it themselves.
pub fn default_as_data(capabilities: u64) -> serde_json::Value {
    use serde_json::json;
    let held = |name: &str| capability::bit(name).is_some_and(|bit| capabilities & bit != 0);
    let opened = BY_CAPABILITY.iter().filter(|(name, _)| held(name)).flat_map(|(_, calls)| *calls);
    let plain: std::collections::BTreeSet<&str> = COMMON
        .iter()
        .chain(NUMBERED)
        .chain(ARCH)
        .chain(opened)
        .filter(|call| **call != libc::SYS_clone3 || held("CAP_SYS_ADMIN"))
        .filter_map(|call| syscall_names::name(*call))
        .collect();
    let argument =
        |value: u64, two: u64, op: &str| json!([{"index": 0, "value": value, "valueTwo": two, "op": op}]);
    let allow = |name: &str, args| json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": args});
    let mut calls = vec![json!({"names": plain, "action": "SCMP_ACT_ALLOW"})];
    calls.push(allow("socket", argument(VSOCK, 0, "SCMP_CMP_NE")));
    calls.extend(PERSONALITIES.map(|value| allow("personality", argument(value, 0, "SCMP_CMP_EQ"))));
    if !held("CAP_SYS_ADMIN") {
        calls.push(allow("clone", argument(NAMESPACES, 0, "SCMP_CMP_MASKED_EQ")));
        calls.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}));
    }
    let architecture = if cfg!(target_arch = "aarch64") { "SCMP_ARCH_AARCH64" } else { "SCMP_ARCH_X86_64" };
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": [architecture],
        "syscalls": calls,
    })
}

fn no_clone3() -> Result<BpfProgram, String> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, String> {
    let filter =
        SeccompFilter::new(rules, otherwise, on_match, arch()?).map_err(|error| error.to_string())?;
    filter.try_into().map_err(|error: seccompiler::BackendError| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_allow_what_the_program_allows() {
        let all = [COMMON, NUMBERED, ARCH].concat();
        let unnamed: Vec<_> = all.iter().filter(|call| syscall_names::name(**call).is_none()).collect();
        assert_eq!(unnamed, Vec::<&i64>::new());
        for capabilities in [0, capability::ALL] {
            let data = default_as_data(capabilities).to_string();
            // it is a profile that this program understands itself
            crate::seccomp_file::compile(data.as_bytes()).unwrap();
            assert_eq!(data.contains("SCMP_CMP_MASKED_EQ"), capabilities == 0);
            assert_eq!(data.contains("\"init_module\""), capabilities != 0);
        }
    }
}
