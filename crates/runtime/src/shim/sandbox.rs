//! The pod's namespaces. The shim itself lives in the pod's network, IPC and UTS namespaces, so they last as
//! long as it does and need no further process; only a shared PID namespace needs a first process of its own.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    mount::{MountAttrFlags, MoveMountFlags, move_mount},
    process::Pid,
};

use super::{
    init,
    mounts::{self, while_doing},
    user_namespace::Users,
};
use crate::{
    spec::SandboxSpec,
    sys::{self, Fork, MountAttr},
};

/// What the shim holds of its pod.
pub(crate) struct Sandbox {
    /// The node's mount namespace.
    pub(crate) host_mount: OwnedFd,
    /// This process's PID namespace.
    pub(crate) own_pid: OwnedFd,
    /// First process of the shared PID namespace, and that namespace.
    pub(crate) pause: Option<(Pid, OwnedFd)>,
    /// Mount namespace whose root is the pod's `/dev/shm`; made by [`Sandbox::make_shm`].
    pub(crate) pod_mount: Option<OwnedFd>,
    /// The pod's users, where they are not the node's.
    pub(super) users: Option<Users>,
}

pub(crate) fn open(path: impl AsRef<Path>) -> Result<OwnedFd, String> {
    let path = path.as_ref();
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(while_doing(path.display()))
}

impl Sandbox {
    /// Makes the namespaces.
    pub(crate) fn create(spec: &SandboxSpec) -> Result<Sandbox, String> {
        let _ = rustix::process::setsid();
        init::join(&spec.shim_cgroup)?;
        if let Some(dir) = &spec.shim_cgroup.unified {
            let procs = dir.join("cgroup.procs");
            fs::write(&procs, "0").map_err(while_doing(procs.display()))?;
        }
        init::set_oom_score_adj(spec.oom_score_adj)?;
        sys::use_all_processors().map_err(while_doing("sched_setaffinity"))?;
        let mut flags = 0;
        if spec.netns.is_some() {
            flags |= libc::CLONE_NEWNET | libc::CLONE_NEWUTS;
        }
        if spec.private_ipc {
            flags |= libc::CLONE_NEWIPC;
        }
        let users = match &spec.users {
            Some(map) => Some(Users::create(map, flags, &spec.sysctls)?),
            None => {
                sys::unshare(flags).map_err(while_doing("making the pod's namespaces"))?;
                None
            }
        };
        if let Some(netns) = &spec.netns {
            sys::loopback_up().map_err(while_doing("the loopback interface"))?;
            rustix::system::sethostname(spec.hostname.as_bytes()).map_err(while_doing("sethostname"))?;
            pin(netns)?;
        }
        if users.is_none() {
            init::set_sysctls(&spec.sysctls)?;
        }
        let pause = if spec.shared_pid { Some(pause(spec, users.as_ref())?) } else { None };
        Ok(Sandbox {
            host_mount: open("/proc/self/ns/mnt")?,
            own_pid: open("/proc/self/ns/pid")?,
            pause,
            pod_mount: None,
            users,
        })
    }

    /// Makes the file system that all containers of the pod see at `/dev/shm`. It is held in a mount namespace
    /// of its own, so that the node never sees it and nothing is left when the shim is gone. `label`: SELinux's, of all its files.
    pub(crate) fn make_shm(&mut self, scratch: &Path, label: Option<&str>) -> Result<(), String> {
        sys::unshare(libc::CLONE_NEWNS).map_err(while_doing("the pod's mount namespace"))?;
        let (uid, gid) = self.users.as_ref().map_or((0, 0), Users::root);
        let (uid, gid) = (uid.to_string(), gid.to_string());
        let build = || -> Result<OwnedFd, String> {
            let namespace = open("/proc/self/ns/mnt")?;
            let root = open("/")?;
            let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
            sys::mount_setattr(root.as_fd(), private, true).map_err(while_doing("mount propagation"))?;
            let safe = MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            let options = [("mode", "1777"), ("size", "65536k"), ("uid", &uid), ("gid", &gid)];
            let options = mounts::labelled(&options, label);
            let shm = mounts::detached("tmpfs", &options, safe).map_err(while_doing("/dev/shm"))?;
            move_mount(&shm, "", CWD, scratch, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(while_doing("/dev/shm"))?;
            mounts::pivot(shm)?;
            Ok(namespace)
        };
        let result = build();
        sys::setns(self.host_mount.as_fd(), libc::CLONE_NEWNS)
            .map_err(while_doing("leaving the pod's mounts"))?;
        self.pod_mount = Some(result?);
        Ok(())
    }
}

/// Keeps the network namespace reachable by path after this process is gone.
fn pin(path: &Path) -> Result<(), String> {
    let what = || format!("pinning the network namespace at {}", path.display());
    fs::File::create(path).map_err(while_doing(what()))?;
    rustix::mount::mount_bind("/proc/self/ns/net", path).map_err(while_doing(what()))
}

/// Shows the pod `name` in the place of this process's arguments, which are of the node.
fn set_command_line(name: &str) -> std::io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // proc_pid_stat(5): arg_start and arg_end, the 48th and 49th; the second one, in brackets, may have spaces
    let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(45);
    let mut address = || fields.next().and_then(|field| field.parse::<u64>().ok());
    let (Some(start), Some(end)) = (address(), address()) else { return Ok(()) };
    let length = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
    let mut line = vec![0; length];
    for (place, byte) in line.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    fs::OpenOptions::new().write(true).open("/proc/self/mem")?.write_all_at(&line, start)
}

fn pause(spec: &SandboxSpec, users: Option<&Users>) -> Result<(Pid, OwnedFd), String> {
    let cgroup = spec.pause_cgroup.unified.as_ref().map(open).transpose()?;
    let flags = libc::CLONE_NEWPID as u64;
    match sys::fork(flags, cgroup.as_ref().map(AsFd::as_fd)).map_err(while_doing("the pause process"))? {
        Fork::Child => {
            let _ = init::join(&spec.pause_cgroup);
            let _ = rustix::thread::set_name(c"pause");
            let _ = set_command_line("/pause");
            if let Some(label) = &spec.process_label {
                // a policy may let nobody change on the run: containers may do even less to one of the runtime's
                let _ = fs::write("/proc/thread-self/attr/current", label);
            }
            if users.is_some_and(|users| users.enter().is_err()) {
                sys::exit_now(1)
            }
            sys::reap_forever()
        }
        Fork::Parent(pid) => Ok((pid, open(format!("/proc/{}/ns/pid", pid.as_raw_nonzero()))?)),
    }
}
