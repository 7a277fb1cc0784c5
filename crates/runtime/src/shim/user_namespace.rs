//! The pod's user namespace. It owns the pod's network, IPC and UTS namespaces, and every container's mounts and
//! cgroups; the shim itself stays the node's.
//!
//! A container's first process makes its file systems while it still is the node's root, since only that may show files of
//! the node with other owners, and enters the namespace with a copy of them. Such a copy cannot be taken apart inside:
//! what is read-only or masked there stays so whatever capabilities the container has.

use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    fs::{Gid, Uid},
    process::{Pid, WaitOptions, waitpid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::{init::set_sysctls, mounts::while_doing, sandbox::open};
use crate::{
    spec::{IdRange, ResolvedUser, UserNamespace},
    sys::{self, Fork, MountAttr},
};

/// A pod's users.
pub(super) struct Users {
    namespace: OwnedFd,
    map: UserNamespace,
}

impl Users {
    /// Makes the namespace and with it those of `kinds` (network, IPC, UTS), with kernel settings in them. This process
    /// enters the latter only.
    pub(super) fn create(
        map: &UserNamespace,
        kinds: libc::c_int,
        sysctls: &[(String, String)],
    ) -> Result<Users, String> {
        let what = "making the pod's user namespace";
        let (mut ours, theirs) = UnixStream::pair().map_err(while_doing(what))?;
        let child = match sys::fork(libc::CLONE_NEWUSER as u64, None).map_err(while_doing(what))? {
            Fork::Child => {
                drop(ours);
                hold(theirs, kinds, sysctls)
            }
            Fork::Parent(child) => child,
        };
        drop(theirs);
        let made = Users::enter_made(child, &mut ours, map, kinds);
        drop(ours);
        // It ends when nobody listens to it any more.
        let _ = waitpid(Some(child), WaitOptions::empty());
        made
    }

    fn enter_made(
        child: Pid,
        holder: &mut UnixStream,
        map: &UserNamespace,
        kinds: libc::c_int,
    ) -> Result<Users, String> {
        let what = "making the pod's user namespace";
        let of = |name: &str| format!("/proc/{}/{name}", child.as_raw_nonzero());
        for (name, ranges) in [("uid_map", &map.uids), ("gid_map", &map.gids)] {
            fs::write(of(name), lines(ranges)).map_err(while_doing(format_args!("{what}: {name}")))?;
        }
        holder.write_all(b"m").map_err(while_doing(what))?;
        let mut said = [0; 1];
        let mut why = String::new();
        match holder.read(&mut said).map_err(while_doing(what))? {
            1 if said == *b"+" => {}
            _ => {
                let _ = holder.read_to_string(&mut why);
                return Err(format!("{what}: {why}"));
            }
        }
        let namespace = open(of("ns/user"))?;
        for (kind, name) in
            [(libc::CLONE_NEWNET, "ns/net"), (libc::CLONE_NEWUTS, "ns/uts"), (libc::CLONE_NEWIPC, "ns/ipc")]
        {
            if kinds & kind != 0 {
                sys::setns(open(of(name))?.as_fd(), kind).map_err(while_doing(what))?;
            }
        }
        Ok(Users { namespace, map: map.clone() })
    }

    /// Root in the pod, as the node sees it.
    pub(super) fn root(&self) -> (u32, u32) {
        // 0 is mapped: the main process takes nothing else.
        (self.map.uid(0).unwrap_or(u32::MAX), self.map.gid(0).unwrap_or(u32::MAX))
    }

    /// What ids of the pod are on the node; those that it does not have stay.
    pub(super) fn ids(&self, uid: u32, gid: u32) -> (u32, u32) {
        (self.map.uid(uid).unwrap_or(uid), self.map.gid(gid).unwrap_or(gid))
    }

    /// An id that the pod does not have.
    pub(super) fn check(&self, user: &ResolvedUser) -> Result<(), String> {
        if self.map.uid(user.uid).is_none() {
            return Err(format!("user {} is not one of the pod's user namespace", user.uid));
        }
        match user.groups.iter().chain([&user.gid]).find(|gid| self.map.gid(**gid).is_none()) {
            Some(gid) => Err(format!("group {gid} is not one of the pod's user namespace")),
            None => Ok(()),
        }
    }

    /// Shows the mounts of `tree`, which is not attached, with the pod's owners; those below the first one where they can be.
    pub(super) fn show(&self, tree: BorrowedFd<'_>) -> std::io::Result<()> {
        let attr =
            MountAttr { set: sys::ATTR_IDMAP, users: Some(self.namespace.as_fd()), ..MountAttr::default() };
        sys::mount_setattr(tree, attr, true).or_else(|_| sys::mount_setattr(tree, attr, false))
    }

    /// This process becomes root in the pod, and has no more power than that.
    pub(super) fn enter(&self) -> Result<(), String> {
        sys::setns(self.namespace.as_fd(), libc::CLONE_NEWUSER)
            .map_err(while_doing("entering the pod's user namespace"))?;
        become_root()
    }
}

/// Being nobody that the namespace knows is what one starts as there.
fn become_root() -> Result<(), String> {
    let what = "becoming root in the pod's user namespace";
    set_thread_groups(&[]).map_err(while_doing(what))?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).map_err(while_doing(what))?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(while_doing(what))
}

/// The process by which the namespaces are made: it keeps them until the other side has them.
fn hold(mut other: UnixStream, kinds: libc::c_int, sysctls: &[(String, String)]) -> ! {
    let mut byte = [0; 1];
    let mut make = || -> Result<(), String> {
        other.read_exact(&mut byte).map_err(while_doing("waiting for ids"))?;
        become_root()?;
        sys::unshare(kinds).map_err(while_doing("making the pod's namespaces"))?;
        set_sysctls(sysctls)
    };
    let said = match make() {
        Ok(()) => "+".to_owned(),
        Err(why) => format!("-{why}"),
    };
    let _ = other.write_all(said.as_bytes());
    if said == "+" {
        // until the other side closes it
        let _ = other.read(&mut byte);
    }
    sys::exit_now(0)
}

fn lines(ranges: &[IdRange]) -> String {
    ranges.iter().map(|range| format!("{} {} {}\n", range.container, range.host, range.length)).collect()
}
