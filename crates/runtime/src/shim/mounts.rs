//! The file systems of a container, made in its own mount namespace: nothing of it is ever visible on the
//! node, so nothing can be left behind.

use std::{
    fmt::Display,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        CWD, FileType, Gid, Mode, OFlags, Uid, XattrFlags, chmodat, chownat, fstat, makedev, mknodat, openat,
        setxattr, symlinkat,
    },
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount,
        open_tree, unmount,
    },
};

use super::{
    init::{Stop, TERMINALS, config},
    user,
    user_namespace::Users,
    volumes,
};
use crate::{
    in_root,
    spec::{
        ContainerSpec, DeviceNode, MountSource, MountSpec, Propagation, ResolvedUser, Restriction, Rootfs,
    },
    sys::{self, MountAttr},
};

/// Character devices every container has: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Bytes of options that mount(2) takes: a page, with its end.
const OPTIONS: usize = 4095;

/// Says what was being done when `error` happened.
pub(crate) fn while_doing<E: Display>(what: impl Display) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}

/// Makes the container's root, and after `before` the root of this process; who its program runs as. Runs in a mount
/// namespace of its own that is still a copy of the node's.
pub(super) fn enter_rootfs(
    spec: &ContainerSpec,
    shm: Option<OwnedFd>,
    users: Option<&Users>,
    before: impl FnOnce(&ResolvedUser) -> Result<(), Stop>,
) -> Result<ResolvedUser, Stop> {
    // Sources first: they must be cloned while they still belong to the node's peer groups.
    let mut sources = Vec::with_capacity(spec.mounts.len());
    for mount in &spec.mounts {
        let own = matches!(mount.source, MountSource::Bind(_));
        sources.push(if own { Some(clone_source(mount, &spec.rootfs, users)?) } else { None });
    }
    let host_shm = match spec.host_ipc {
        true => clone_tree(CWD, Path::new("/dev/shm"), true).ok(),
        false => shm,
    };
    let host_mqueue = if spec.host_ipc { clone_tree(CWD, Path::new("/dev/mqueue"), true).ok() } else { None };
    let old_root = open_path(Path::new("/"))?;
    let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    sys::mount_setattr(old_root.as_fd(), private, true).map_err(while_doing("cutting mount propagation"))?;

    for (mount, source) in spec.mounts.iter().zip(&mut sources) {
        if source.is_none() {
            *source = Some(clone_source(mount, &spec.rootfs, users)?);
        }
    }
    let root = mount_rootfs(&spec.rootfs, users)?;
    volumes::fill(spec, root.as_fd(), users)?;
    let user = user::resolve_below(root.as_fd(), &spec.process.user).map_err(config)?;
    if let Some((uid, gid)) = users.map(Users::root) {
        sys::own_files_as(uid, gid).map_err(while_doing("making files as the pod's root"))?;
    }
    kernel_filesystems(spec, root.as_fd(), users.is_none() && spec.sees_nodes_cgroups())?;
    devices(spec, root.as_fd(), host_shm, host_mqueue, users)?;
    for (mount, source) in spec.mounts.iter().zip(sources) {
        let Some(source) = source else { continue };
        attach_source(root.as_fd(), mount, source)?;
    }
    for path in &spec.readonly_paths {
        make_readonly(root.as_fd(), path)?;
    }
    for path in &spec.masked_paths {
        mask(root.as_fd(), path, spec.rootfs.label.as_deref())?;
    }
    if spec.rootfs.readonly {
        let readonly = MountAttr { set: sys::ATTR_RDONLY, ..MountAttr::default() };
        sys::mount_setattr(root.as_fd(), readonly, false)
            .map_err(while_doing("making the root read-only"))?;
    }
    before(&user)?;
    pivot(root)?;
    Ok(user)
}

/// What was put where an OCI runtime finds it.
pub(crate) struct Staged {
    /// The root file system.
    pub(crate) root: OwnedFd,
    /// The pod's `/dev/shm`.
    pub(crate) shm: Option<PathBuf>,
    /// By mount of the container: where its content is.
    pub(crate) sources: Vec<PathBuf>,
}

/// Makes the container's root file system, and what of its mounts is no path of the node, reachable by path for a
/// program that this process starts. Runs in a mount namespace of its own that is still a copy of the node's;
/// what is mounted here is seen there only. `scratch` is an empty folder.
pub(crate) fn stage(spec: &ContainerSpec, shm: Option<OwnedFd>, scratch: &Path) -> Result<Staged, String> {
    // Trees that must keep their peer groups are cloned before this namespace leaves them.
    let mut trees = Vec::with_capacity(spec.mounts.len());
    for mount in &spec.mounts {
        let own = mount.propagation == Propagation::Shared && matches!(mount.source, MountSource::Bind(_));
        trees.push(if own { Some(clone_source(mount, &spec.rootfs, None)?) } else { None });
    }
    cut_off()?;
    let place = |name: &str, tree: &OwnedFd| -> Result<PathBuf, String> {
        let path = scratch.join(name);
        let stat = fstat(tree).map_err(while_doing(path.display()))?;
        let made = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => std::fs::create_dir(&path),
            _ => std::fs::File::create(&path).map(drop),
        };
        made.map_err(while_doing(path.display()))?;
        attach(tree.as_fd(), open_path(&path)?.as_fd()).map_err(while_doing(path.display()))?;
        Ok(path)
    };
    let mut sources = Vec::with_capacity(spec.mounts.len());
    for (index, (mount, tree)) in spec.mounts.iter().zip(trees).enumerate() {
        sources.push(match (tree, &mount.source) {
            (Some(tree), _) => place(&index.to_string(), &tree)?,
            (None, MountSource::Bind(path)) => path.clone(),
            (None, MountSource::Image(_)) => {
                place(&index.to_string(), &clone_source(mount, &spec.rootfs, None)?)?
            }
        });
    }
    let shm = shm.map(|tree| place("shm", &tree)).transpose()?;
    // Last: images were taken apart where it goes.
    let root = mount_rootfs(&spec.rootfs, None)?;
    volumes::fill(spec, root.as_fd(), None)?;
    Ok(Staged { root, shm, sources })
}

/// From now on what is mounted here is not seen on the node; what is mounted there still is here.
pub(crate) fn cut_off() -> Result<(), String> {
    let root = open_path(Path::new("/"))?;
    let slave = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
    sys::mount_setattr(root.as_fd(), slave, true).map_err(while_doing("cutting mount propagation"))
}

/// Makes `root` the root and lets go of the old one.
pub(crate) fn pivot(root: OwnedFd) -> Result<(), String> {
    rustix::process::fchdir(&root).map_err(while_doing("entering the root file system"))?;
    rustix::process::pivot_root(".", ".").map_err(while_doing("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(while_doing("leaving the node's file systems"))?;
    rustix::process::chdir("/").map_err(while_doing("entering /"))
}

fn open_path(path: &Path) -> Result<OwnedFd, String> {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(while_doing(path.display()))
}

fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(dir, path, flags)
}

fn clone_source(mount: &MountSpec, rootfs: &Rootfs, users: Option<&Users>) -> Result<OwnedFd, String> {
    let what = || format!("mounting {}", mount.target);
    if let (MountSource::Bind(path), Propagation::Shared) = (&mount.source, mount.propagation) {
        must_be_shared(path)?;
    }
    let tree = match &mount.source {
        MountSource::Bind(path) => {
            clone_tree(CWD, path, true).map_err(|error| format!("{}: {}: {error}", what(), path.display()))?
        }
        MountSource::Image(layers) => match layers.as_slice() {
            [single] => clone_tree(CWD, single, false).map_err(while_doing(what()))?,
            layers => {
                let shown = Shown::of(layers, users.filter(|_| mount.mapped), &rootfs.target)?;
                overlay(&shown.paths, None, rootfs.label.as_deref(), &rootfs.target)?
            }
        },
    };
    let tree = if mount.sub_path.is_empty() { tree } else { below(tree, &mount.sub_path, &rootfs.target)? };
    let layers = matches!(&mount.source, MountSource::Image(layers) if layers.len() > 1);
    if let Some(users) = users.filter(|_| mount.mapped && !layers) {
        users.show(tree.as_fd()).map_err(|error| not_shown(&what(), &mount.source, &error))?;
    }
    let mut attr = MountAttr {
        propagation: match mount.propagation {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
        },
        ..MountAttr::default()
    };
    sys::mount_setattr(tree.as_fd(), attr, true).map_err(while_doing(what()))?;
    if mount.readonly {
        attr = MountAttr { set: sys::ATTR_RDONLY, ..MountAttr::default() };
        sys::mount_setattr(tree.as_fd(), attr, mount.recursive_readonly).map_err(while_doing(what()))?;
    }
    if !mount.restrictions.is_empty() {
        let bits = mount.restrictions.iter().map(|restriction| match restriction {
            Restriction::SetUser => sys::ATTR_NOSUID,
            Restriction::Device => sys::ATTR_NODEV,
            Restriction::Execution => sys::ATTR_NOEXEC,
        });
        attr = MountAttr { set: bits.fold(0, |all, bit| all | bit), ..MountAttr::default() };
        sys::mount_setattr(tree.as_fd(), attr, false).map_err(while_doing(what()))?;
    }
    Ok(tree)
}

/// What lies at `path` in `tree`, which is attached to the empty folder `stage` for as long as that takes. No link leads out.
fn below(tree: OwnedFd, path: &str, stage: &Path) -> Result<OwnedFd, String> {
    let what = || format!("sub path {path:?} of the image");
    attach(tree.as_fd(), open_path(stage)?.as_fd()).map_err(while_doing(what()))?;
    let found = in_root::open(tree.as_fd(), Path::new(path), OFlags::PATH, Mode::empty())
        .map_err(while_doing(what()))
        .and_then(|file| clone_tree(file.as_fd(), Path::new(""), false).map_err(while_doing(what())));
    unmount(stage, UnmountFlags::DETACH).map_err(while_doing(what()))?;
    found
}

/// Why a file system is not seen with a pod's owners.
fn not_shown(what: &str, source: &MountSource, error: &std::io::Error) -> String {
    let path = match source {
        MountSource::Bind(path) => path.display().to_string(),
        MountSource::Image(_) => "the image's layers".to_owned(),
    };
    let why = match error.raw_os_error() {
        Some(libc::EINVAL | libc::EPERM) => "idmapped mounts are not supported there".to_owned(),
        _ => error.to_string(),
    };
    format!("{what}: the file system of {path} cannot be shown to the pod's user namespace: {why}")
}

/// Layers as an overlay finds them: those of the node, or for a pod with users of its own, such that show its owners,
/// mounted below an empty folder for as long as the overlay is being made.
struct Shown<'a> {
    paths: Vec<PathBuf>,
    stage: Option<&'a Path>,
}

impl<'a> Shown<'a> {
    fn of(layers: &[PathBuf], users: Option<&Users>, stage: &'a Path) -> Result<Shown<'a>, String> {
        let Some(users) = users else { return Ok(Shown { paths: layers.to_vec(), stage: None }) };
        let what = "showing the image's layers to the pod's user namespace";
        let folder =
            detached("tmpfs", &[("mode", "700")], MountAttrFlags::empty()).map_err(while_doing(what))?;
        attach(folder.as_fd(), open_path(stage)?.as_fd()).map_err(while_doing(what))?;
        // From here on dropping it takes away what is there.
        let mut shown = Shown { paths: Vec::with_capacity(layers.len()), stage: Some(stage) };
        for (index, layer) in layers.iter().enumerate() {
            let tree = clone_tree(CWD, layer, false).map_err(while_doing(what))?;
            let source = MountSource::Image(Vec::new());
            users.show(tree.as_fd()).map_err(|error| not_shown(what, &source, &error))?;
            let path = stage.join(index.to_string());
            std::fs::create_dir(&path).map_err(while_doing(what))?;
            attach(tree.as_fd(), open_path(&path)?.as_fd()).map_err(while_doing(what))?;
            shown.paths.push(path);
        }
        Ok(shown)
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if let Some(stage) = self.stage {
            // the mount namespace that has it goes away with this process
            let _ = unmount(stage, UnmountFlags::DETACH);
        }
    }
}

/// Bidirectional propagation needs a source that propagates; silently going one way would lose mounts.
fn must_be_shared(path: &Path) -> Result<(), String> {
    let path = path.canonicalize().map_err(while_doing(path.display()))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(while_doing("mountinfo"))?;
    let mut best: (usize, &str, bool) = (0, "/", false);
    for line in mounts.lines() {
        let Some((fields, _)) = line.split_once(" - ") else { continue };
        let Some(point) = fields.split(' ').nth(4) else { continue };
        // The last of equals lies on top.
        if path.starts_with(point) && point.len() >= best.0 {
            best = (point.len(), point, fields.contains(" shared:"));
        }
    }
    match best {
        (_, _, true) => Ok(()),
        (_, point, false) => {
            Err(format!("path {} is mounted on {point}, but that is not a shared mount", path.display()))
        }
    }
}

fn attach_source(root: BorrowedFd<'_>, mount: &MountSpec, source: OwnedFd) -> Result<(), String> {
    let what = || format!("mounting {}", mount.target);
    let stat = fstat(&source).map_err(while_doing(what()))?;
    let target = Path::new(&mount.target);
    let target = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => in_root::make_dir(root, target),
        _ => in_root::make_file(root, target),
    };
    let target = target.map_err(while_doing(what()))?;
    if !may_cover(&target, &source).map_err(while_doing(what()))? {
        return Err(format!("{:?} cannot be mounted because it is inside /proc", mount.target));
    }
    attach(source.as_fd(), target.as_fd()).map_err(while_doing(what()))
}

/// Whether something may be mounted over `target`: not in `/proc`, on which a container's confinement rests, but for itself and
/// the files that say how large the machine is. The list is runc's, for lxcfs.
fn may_cover(target: &OwnedFd, source: &OwnedFd) -> std::io::Result<bool> {
    const FREE: [&str; 11] = [
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/slabinfo",
        "/proc/net/dev",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/sys/crypto/fips_enabled",
    ];
    const PROC: i64 = 0x9fa0;
    let is_proc = |file: &OwnedFd| rustix::fs::fstatfs(file).map(|system| system.f_type == PROC);
    if !is_proc(target)? || is_proc(source)? {
        return Ok(true);
    }
    let path = std::fs::read_link(format!("/proc/self/fd/{}", target.as_raw_fd()))?;
    Ok(FREE.iter().any(|free| path.as_os_str().as_bytes().ends_with(free.as_bytes())))
}

fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags)
}

/// The options of a file system whose files all have the SELinux label `label`.
pub(crate) fn labelled<'a>(
    options: &[(&'a str, &'a str)],
    label: Option<&'a str>,
) -> Vec<(&'a str, &'a str)> {
    options.iter().copied().chain(label.map(|label| ("context", label))).collect()
}

/// A file system that is not attached yet.
pub(crate) fn detached(
    kind: &str,
    options: &[(&str, &str)],
    attr: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "source", kind)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(&fs, *key)?;
        } else {
            fsconfig_set_string(&fs, *key, *value)?;
        }
    }
    fsconfig_create(&fs)?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attr)
}

fn new_mount(
    root: BorrowedFd<'_>,
    target: &str,
    kind: &str,
    options: &[(&str, &str)],
    attr: MountAttrFlags,
) -> Result<OwnedFd, String> {
    let what = || format!("mounting {kind} at {target}");
    let dir = in_root::make_dir(root, Path::new(target)).map_err(while_doing(what()))?;
    let fs = detached(kind, options, attr).map_err(while_doing(what()))?;
    attach(fs.as_fd(), dir.as_fd()).map_err(while_doing(what()))?;
    Ok(fs)
}

/// An overlay of `lower` (topmost first), detached; writable when `upper` and work folders are given. `stage` is an empty folder.
fn overlay(
    lower: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    label: Option<&str>,
    stage: &Path,
) -> Result<OwnedFd, String> {
    let build = || -> rustix::io::Result<OwnedFd> {
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&fs, "source", "overlay")?;
        if let Some(label) = label {
            fsconfig_set_string(&fs, "context", label)?;
        }
        for layer in lower {
            fsconfig_set_string(&fs, "lowerdir+", layer)?;
        }
        if let Some((upper, work)) = upper {
            fsconfig_set_string(&fs, "upperdir", upper)?;
            fsconfig_set_string(&fs, "workdir", work)?;
            // A container's writable layer never outlives the boot, so unmounting need not sync the disk.
            let _ = fsconfig_set_flag(&fs, "volatile");
        }
        fsconfig_create(&fs)?;
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    let what = "mounting the image's layers";
    build().or_else(|first| {
        // before Linux 6.8 there is no `lowerdir+`, and no other string of the call above holds more than 255 bytes
        overlay_by_mount(lower, upper, label, stage)
            .map_err(|error| format!("{what}: {first}; by mount(2): {error}"))
    })
}

/// What [`overlay`] makes, by the call that every kernel has: on `stage`, and off again.
fn overlay_by_mount(
    lower: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    label: Option<&str>,
    stage: &Path,
) -> Result<OwnedFd, String> {
    let names = |paths: &[&Path]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
    let options = |lower: &[String], upper: &[String]| {
        let mut options = format!("lowerdir={}", lower.join(":"));
        if let [upper, work] = upper {
            options += &format!(",upperdir={upper},workdir={work}");
        }
        if let Some(label) = label {
            // quoted: its categories have commas between them
            options += &format!(",context=\"{label}\"");
        }
        options
    };
    let lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
    let upper: Vec<&Path> = upper.into_iter().flat_map(|(upper, work)| [upper, work]).collect();
    let (mut text, mut open) = (options(&names(&lower), &names(&upper)), Vec::new());
    let plain = |path: &&Path| !path.as_os_str().as_bytes().iter().any(|byte| b":,\\".contains(byte));
    if text.len() > OPTIONS || !lower.iter().chain(&upper).all(plain) {
        // a number is short, and has no signs that mean something between options
        let mut numbers = |paths: &[&Path]| -> Result<Vec<String>, String> {
            let opened = paths.iter().map(|path| open_path(path)).collect::<Result<Vec<_>, _>>()?;
            let named = opened.iter().map(|file| format!("/proc/self/fd/{}", file.as_raw_fd())).collect();
            open.extend(opened);
            Ok(named)
        };
        text = options(&numbers(&lower)?, &numbers(&upper)?);
        if text.len() > OPTIONS {
            return Err(format!("{} layers are too many for this kernel", lower.len()));
        }
    }
    let text = std::ffi::CString::new(text).map_err(|error| error.to_string())?;
    mount("overlay", stage, "overlay", MountFlags::empty(), text.as_c_str())
        .map_err(|error| error.to_string())?;
    let tree = clone_tree(CWD, stage, false).map_err(while_doing("taking it"));
    unmount(stage, UnmountFlags::DETACH).map_err(while_doing("taking it"))?;
    tree
}

fn mount_rootfs(rootfs: &Rootfs, users: Option<&Users>) -> Result<OwnedFd, String> {
    let target = open_path(&rootfs.target)?;
    let layers = Shown::of(&rootfs.lower, users, &rootfs.target)?;
    let upper = Some((rootfs.upper.as_path(), rootfs.work.as_path()));
    let root = overlay(&layers.paths, upper, rootfs.label.as_deref(), &rootfs.target)?;
    drop(layers);
    attach(root.as_fd(), target.as_fd()).map_err(while_doing("mounting the root file system"))?;
    Ok(root)
}

/// `nodes_cgroups`: this process is in the node's cgroup namespace.
fn kernel_filesystems(spec: &ContainerSpec, root: BorrowedFd<'_>, nodes_cgroups: bool) -> Result<(), String> {
    let safe = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let sealed = if spec.privileged { safe } else { safe | MountAttrFlags::MOUNT_ATTR_RDONLY };
    new_mount(root, "/proc", "proc", &[], safe)?;
    new_mount(root, "/sys", "sysfs", &[], sealed)?;
    match spec.cgroup_mounts.as_slice() {
        [] => {}
        // Not a mount of its own: one without options, made in the node's namespace, takes `nsdelegate` and others from all.
        [_] if nodes_cgroups => {
            let path = Path::new("/sys/fs/cgroup");
            let dir = in_root::make_dir(root, path).map_err(while_doing(path.display()))?;
            let tree = clone_tree(CWD, path, false).map_err(while_doing(path.display()))?;
            attach(tree.as_fd(), dir.as_fd()).map_err(while_doing(path.display()))?;
        }
        [only] if only.name.is_empty() => {
            new_mount(root, "/sys/fs/cgroup", "cgroup2", &[], sealed)?;
        }
        hierarchies => {
            let options = labelled(&[("mode", "755")], spec.rootfs.label.as_deref());
            let dir = new_mount(root, "/sys/fs/cgroup", "tmpfs", &options, safe)?;
            for hierarchy in hierarchies {
                let options: Vec<(&str, &str)> = hierarchy
                    .options
                    .iter()
                    .map(|option| option.split_once('=').unwrap_or((option, "")))
                    .collect();
                new_mount(root, &format!("/sys/fs/cgroup/{}", hierarchy.name), "cgroup", &options, sealed)?;
            }
            let readonly = MountAttr { set: sys::ATTR_RDONLY, ..MountAttr::default() };
            sys::mount_setattr(dir.as_fd(), readonly, false)
                .map_err(while_doing("sealing /sys/fs/cgroup"))?;
        }
    }
    Ok(())
}

fn devices(
    spec: &ContainerSpec,
    root: BorrowedFd<'_>,
    shm: Option<OwnedFd>,
    mqueue: Option<OwnedFd>,
    users: Option<&Users>,
) -> Result<(), String> {
    let nosuid = MountAttrFlags::MOUNT_ATTR_NOSUID;
    let safe = nosuid | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let label = spec.rootfs.label.as_deref();
    let options = labelled(&[("mode", "755"), ("size", "65536k")], label);
    let dev = new_mount(root, "/dev", "tmpfs", &options, nosuid)?;
    let ids = |uid, gid| users.map_or((uid, gid), |users| users.ids(uid, gid));
    let terminals = ids(0, TERMINALS).1.to_string();
    let pts = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", terminals.as_str())];
    let pts = labelled(&pts, label);
    let pts = new_mount(root, "/dev/pts", "devpts", &pts, nosuid | MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
    if let Some((uid, gid)) = users.map(Users::root) {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        for name in ["", "ptmx"] {
            chownat(&pts, name, uid, gid, rustix::fs::AtFlags::EMPTY_PATH)
                .map_err(while_doing("/dev/pts"))?;
        }
    }
    for (given, target, kind, options) in [
        (shm, "/dev/shm", "tmpfs", labelled(&[("mode", "1777"), ("size", "65536k")], label)),
        (mqueue, "/dev/mqueue", "mqueue", Vec::new()),
    ] {
        match given {
            Some(tree) => {
                let dir = in_root::make_dir(root, Path::new(target)).map_err(while_doing(target))?;
                attach(tree.as_fd(), dir.as_fd()).map_err(while_doing(target))?;
            }
            None => match new_mount(root, target, kind, &options, safe) {
                // A kernel without POSIX message queues.
                Err(_) if kind == "mqueue" => {}
                result => label_queues(&result?, label.filter(|_| kind == "mqueue"))?,
            },
        }
    }
    for (name, major, minor) in DEVICES {
        let node = DeviceNode {
            path: format!("/dev/{name}"),
            block: false,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: if name == "tty" { TERMINALS } else { 0 },
        };
        device(root, &node, ids(node.uid, node.gid))?;
    }
    for (target, name) in LINKS {
        symlinkat(target, &dev, name).map_err(while_doing(format_args!("linking /dev/{name}")))?;
    }
    for node in &spec.devices {
        device(root, node, ids(node.uid, node.gid))?;
    }
    Ok(())
}

/// The queues of an IPC namespace are one file system, which is there before it is mounted: its label comes after.
fn label_queues(mount: &OwnedFd, label: Option<&str>) -> Result<(), String> {
    let Some(label) = label else { return Ok(()) };
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    match setxattr(&path, "security.selinux", label.as_bytes(), XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        set => set.map_err(while_doing("labelling /dev/mqueue")),
    }
}

fn device(root: BorrowedFd<'_>, node: &DeviceNode, (uid, gid): (u32, u32)) -> Result<(), String> {
    let what = || format!("making device {}", node.path);
    let path = in_root::relative(Path::new(&node.path));
    let name = path.file_name().ok_or_else(|| format!("{}: not a device path", node.path))?;
    let dir =
        in_root::make_dir(root, path.parent().unwrap_or(Path::new("."))).map_err(while_doing(what()))?;
    let kind = if node.block { FileType::BlockDevice } else { FileType::CharacterDevice };
    let mode = Mode::from_raw_mode(node.mode);
    match mknodat(&dir, name, kind, mode, makedev(node.major, node.minor)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(while_doing(what())(error)),
    }
    // The file mode creation mask took bits away.
    chmodat(&dir, name, mode, rustix::fs::AtFlags::empty()).map_err(while_doing(what()))?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    chownat(&dir, name, Some(uid), Some(gid), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        .map_err(while_doing(what()))
}

fn make_readonly(root: BorrowedFd<'_>, path: &str) -> Result<(), String> {
    let what = || format!("making {path} read-only");
    let Some(target) = existing(root, path).map_err(while_doing(what()))? else { return Ok(()) };
    let tree = clone_tree(target.as_fd(), Path::new(""), true).map_err(while_doing(what()))?;
    let readonly = MountAttr { set: sys::ATTR_RDONLY, ..MountAttr::default() };
    sys::mount_setattr(tree.as_fd(), readonly, true).map_err(while_doing(what()))?;
    attach(tree.as_fd(), target.as_fd()).map_err(while_doing(what()))
}

fn mask(root: BorrowedFd<'_>, path: &str, label: Option<&str>) -> Result<(), String> {
    let what = || format!("masking {path}");
    let Some(target) = existing(root, path).map_err(while_doing(what()))? else { return Ok(()) };
    let stat = fstat(&target).map_err(while_doing(what()))?;
    let tree = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        detached("tmpfs", &labelled(&[("size", "4k")], label), MountAttrFlags::MOUNT_ATTR_RDONLY)
    } else {
        let null = in_root::open(root, Path::new("/dev/null"), OFlags::PATH, Mode::empty())
            .map_err(while_doing(what()))?;
        clone_tree(null.as_fd(), Path::new(""), false)
    };
    attach(tree.map_err(while_doing(what()))?.as_fd(), target.as_fd()).map_err(while_doing(what()))
}

fn existing(root: BorrowedFd<'_>, path: &str) -> std::io::Result<Option<OwnedFd>> {
    match in_root::open(root, Path::new(path), OFlags::PATH, Mode::empty()) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Shows the terminal `slave` as `/dev/console`. Runs inside the container's root.
pub(crate) fn console(slave: BorrowedFd<'_>) -> Result<(), String> {
    let what = "making /dev/console";
    let root = open_path(Path::new("/"))?;
    let target = in_root::make_file(root.as_fd(), Path::new("/dev/console")).map_err(while_doing(what))?;
    let tree = clone_tree(slave, Path::new(""), false).map_err(while_doing(what))?;
    attach(tree.as_fd(), target.as_fd()).map_err(while_doing(what))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Runs `work` where what it mounts is seen by nobody else.
    fn apart(work: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                sys::unshare(libc::CLONE_FS | libc::CLONE_NEWNS).unwrap();
                cut_off().unwrap();
                work();
            });
            thread.join().unwrap();
        });
    }

    fn read(tree: &OwnedFd, name: &str) -> String {
        fs::read_to_string(format!("/proc/self/fd/{}/{name}", tree.as_raw_fd())).unwrap()
    }

    #[test]
    fn a_kernel_without_single_layers_mounts_many_of_any_name() {
        apart(|| {
            let dir = tempfile::tempdir().unwrap();
            // an overlay cannot be the upper layer of another
            mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), None).unwrap();
            let folder = |name: String| {
                let path = dir.path().join(name);
                fs::create_dir(&path).unwrap();
                path
            };
            let (stage, upper, work) =
                (folder("stage".into()), folder("upper".into()), folder("work".into()));
            for (layers, name) in
                [(2, "plain"), (120, "a name so long that a page of them is soon full"), (2, "a:b,c\\d")]
            {
                let lower: Vec<_> = (0..layers)
                    .map(|index| {
                        let layer = folder(format!("{name} {layers} {index}"));
                        fs::write(layer.join("top"), index.to_string()).unwrap();
                        fs::write(layer.join(format!("only {index}")), "x").unwrap();
                        layer
                    })
                    .collect();
                for upper in [None, Some((upper.as_path(), work.as_path()))] {
                    let tree = overlay_by_mount(&lower, upper, None, &stage).unwrap();
                    assert_eq!(
                        (read(&tree, "top"), read(&tree, &format!("only {}", layers - 1))),
                        ("0".into(), "x".into())
                    );
                    let root = format!("/proc/self/fd/{}/new", tree.as_raw_fd());
                    assert_eq!(fs::write(root, "").is_ok(), upper.is_some());
                    assert_eq!(fs::read_dir(&stage).unwrap().count(), 0, "nothing stays on the stage");
                }
                fs::remove_file(upper.join("new")).unwrap();
            }
        });
    }
}
