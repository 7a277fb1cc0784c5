//! What the main process tells a shim to run: plain data, already resolved against the image and the CRI
//! request, so that the shim needs to know neither.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The sandbox a shim makes when it starts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Sandbox id.
    pub id: String,
    /// The shim's folder below `/run`: socket, exit records, its own log.
    pub dir: PathBuf,
    /// Where to pin the new network namespace; none: the node's network (and UTS) namespace is used.
    pub netns: Option<PathBuf>,
    /// A new IPC namespace (else the node's).
    pub private_ipc: bool,
    /// Makes a PID namespace that all containers share, with a pause process as pid 1.
    pub shared_pid: bool,
    /// Hostname in the new UTS namespace (only with a network namespace of its own).
    pub hostname: String,
    /// Kernel settings, dotted names.
    pub sysctls: Vec<(String, String)>,
    /// Where the shim itself goes: outside of the pod's limits.
    pub shim_cgroup: CgroupJoin,
    /// Where the pause process goes.
    pub pause_cgroup: CgroupJoin,
    /// oom_score_adj of the shim and the pause process.
    pub oom_score_adj: i32,
    /// A new user namespace, which owns the pod's other ones (else the node's).
    #[serde(default)]
    pub users: Option<UserNamespace>,
    /// SELinux label of the pause process.
    #[serde(default)]
    pub process_label: Option<String>,
    /// SELinux label of the files in `/dev/shm`.
    #[serde(default)]
    pub file_label: Option<String>,
    /// Its containers are run by another program, whose orphans the shim takes over.
    #[serde(default)]
    pub other_runtime: bool,
}

/// Ids of a user namespace: so many, from one on inside and from another on outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id inside.
    pub container: u32,
    /// First id on the node.
    pub host: u32,
    /// How many.
    pub length: u32,
}

/// Which users and groups of the node those of a pod are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
}

impl UserNamespace {
    /// What the user `inside` is on the node.
    pub fn uid(&self, inside: u32) -> Option<u32> {
        on_node(&self.uids, inside)
    }

    /// What the group `inside` is on the node.
    pub fn gid(&self, inside: u32) -> Option<u32> {
        on_node(&self.gids, inside)
    }
}

fn on_node(ranges: &[IdRange], inside: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = inside.checked_sub(range.container).filter(|offset| *offset < range.length)?;
        range.host.checked_add(offset)
    })
}

/// How a process enters its cgroup.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CgroupJoin {
    /// v1: `tasks` files to write to, one per hierarchy.
    pub tasks: Vec<PathBuf>,
    /// v2: the folder to be created into.
    pub unified: Option<PathBuf>,
}

/// Whose processes a container sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidMode {
    /// Its own.
    Container,
    /// The pod's.
    Pod,
    /// The node's.
    Node,
    /// Those of the container whose first process has this id on the node.
    Target(i32),
}

/// A container to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Container id.
    pub id: String,
    /// CRI log file; none: output is thrown away.
    pub log_path: Option<PathBuf>,
    /// Root file system.
    pub rootfs: Rootfs,
    /// Its cgroup.
    pub cgroup: CgroupJoin,
    /// File whose `oom_kill` line counts kills by the kernel.
    pub oom_file: Option<PathBuf>,
    /// PID namespace.
    pub pid: PidMode,
    /// `/dev/shm` is the node's.
    pub host_ipc: bool,
    /// Mounts, shallow targets first.
    pub mounts: Vec<MountSpec>,
    /// Device nodes beside the default ones.
    pub devices: Vec<DeviceNode>,
    /// cgroup file systems to show read-only below `/sys/fs/cgroup`.
    pub cgroup_mounts: Vec<CgroupMount>,
    /// Paths hidden from the container.
    pub masked_paths: Vec<String>,
    /// Paths that are read-only for the container.
    pub readonly_paths: Vec<String>,
    /// `/sys` and cgroups are writable.
    pub privileged: bool,
    /// The program.
    pub process: ProcessSpec,
    /// Keep a standard input open.
    pub stdin: bool,
    /// Close standard input after the first attached client went away.
    pub stdin_once: bool,
    /// What runs it in place of the shim itself.
    #[serde(default)]
    pub oci: Option<OciSpec>,
}

impl ContainerSpec {
    /// It sees all control groups of the node, as privileged containers do where there are those of version 2 only.
    pub fn sees_nodes_cgroups(&self) -> bool {
        self.privileged && matches!(self.cgroup_mounts.as_slice(), [only] if only.name.is_empty())
    }
}

/// Has a container run by a program with the command line of the OCI runtimes (`create`, `start`, `kill`, ...), and
/// says what such a program needs beyond [`ContainerSpec`].
///
/// A container of the shim's own has it where it has hooks, which are told the same.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OciSpec {
    /// The program; none: the shim itself.
    pub program: Option<PathBuf>,
    /// `linux.cgroupsPath`.
    pub cgroup: String,
    /// `linux.resources`.
    pub resources: serde_json::Value,
    /// `linux.seccomp`.
    pub seccomp: Option<serde_json::Value>,
    /// `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `hooks`.
    #[serde(default)]
    pub hooks: Hooks,
}

/// A program that is run at a step of a container's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Where it is.
    pub path: PathBuf,
    /// Its arguments, its own name first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// `NAME=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds after which it is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
}

/// Hooks by step, as the OCI runtime specification writes them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// The older name of the next.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prestart: Vec<Hook>,
    /// In the node's namespaces, before the container's root is entered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_runtime: Vec<Hook>,
    /// The same in the container's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_container: Vec<Hook>,
    /// In the container, before its program.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<Hook>,
    /// After that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    /// After the end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

impl Hooks {
    /// The list of a step, by its name.
    pub fn of(&mut self, step: &str) -> Option<&mut Vec<Hook>> {
        match step {
            "prestart" => Some(&mut self.prestart),
            "createRuntime" => Some(&mut self.create_runtime),
            "createContainer" => Some(&mut self.create_container),
            "startContainer" => Some(&mut self.start_container),
            "poststart" => Some(&mut self.poststart),
            "poststop" => Some(&mut self.poststop),
            _ => None,
        }
    }
}

/// Overlay of read-only layers and one writable layer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Rootfs {
    /// Read-only layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// Writable layer.
    pub upper: PathBuf,
    /// Overlay's work folder, on the same file system as `upper`.
    pub work: PathBuf,
    /// Empty folder to mount on (inside the container's mount namespace only).
    pub target: PathBuf,
    /// The container may not write.
    pub readonly: bool,
    /// SELinux label of all its files, and of those of the file systems that are made for the container alone.
    #[serde(default)]
    pub label: Option<String>,
}

/// What a mount shows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum MountSource {
    /// A file or folder of the node.
    Bind(PathBuf),
    /// Layers of an image, topmost first.
    Image(Vec<PathBuf>),
}

impl MountSource {
    /// What is shown, as far as it is one path of the node.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Bind(path) => path.clone(),
            Self::Image(layers) => layers.first().cloned().unwrap_or_default(),
        }
    }
}

/// What files of a mount are kept from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restriction {
    /// Giving who runs them their owner's rights.
    SetUser,
    /// Being devices.
    Device,
    /// Being run.
    Execution,
}

impl Restriction {
    /// By the name of the mount's option.
    pub fn parse(option: &str) -> Option<Self> {
        [Self::SetUser, Self::Device, Self::Execution].into_iter().find(|known| known.name() == option)
    }

    /// The name of the mount's option.
    pub fn name(self) -> &'static str {
        match self {
            Self::SetUser => "nosuid",
            Self::Device => "nodev",
            Self::Execution => "noexec",
        }
    }
}

/// Direction of mount propagation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// None.
    Private,
    /// Node to container.
    Slave,
    /// Both ways.
    Shared,
}

/// One mount of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountSpec {
    /// What is mounted.
    pub source: MountSource,
    /// Path in the container.
    pub target: String,
    /// Read-only at the top mount.
    pub readonly: bool,
    /// Read-only in everything below, too.
    pub recursive_readonly: bool,
    /// Propagation.
    pub propagation: Propagation,
    /// What its files are kept from.
    #[serde(default)]
    pub restrictions: Vec<Restriction>,
    /// What of an image is mounted, below its root; all of it when empty.
    #[serde(default)]
    pub sub_path: String,
    /// Owners are shown as the pod's user namespace has them: who is 0 on the disk is 0 inside.
    #[serde(default)]
    pub mapped: bool,
    /// A new folder that is to begin with what the image has at the target.
    #[serde(default)]
    pub filled: bool,
}

/// A device node to make in the container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: String,
    /// Block device (else character device).
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A cgroup hierarchy to mount in the container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CgroupMount {
    /// Folder name below `/sys/fs/cgroup`; empty: v2, mounted at `/sys/fs/cgroup` itself.
    pub name: String,
    /// Mount options (controller names, or `name=...`).
    pub options: Vec<String>,
}

/// Who a process runs as, not yet looked up in the image's files.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct UserSpec {
    /// Who that is, where it was looked up before.
    #[serde(default)]
    pub known: Option<ResolvedUser>,
    /// `""`, `uid`, `name`, `uid:gid`, `name:group`.
    pub user: String,
    /// Group that overrides the user's.
    pub gid: Option<u32>,
    /// Additional groups.
    pub supplemental: Vec<u32>,
    /// Only the groups above, not those of `/etc/group`.
    pub strict: bool,
}

/// The ids a process ended up with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All groups, the primary one first.
    pub groups: Vec<u32>,
    /// Home directory, as the image has it.
    pub home: String,
}

/// A program to run in a container: its first process or one that is executed later.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; made when missing for a container's first process.
    pub cwd: String,
    /// Identity.
    pub user: UserSpec,
    /// Capabilities: effective, permitted and bounding, one bit each.
    pub capabilities: u64,
    /// Ambient (and inheritable) capabilities.
    pub ambient: u64,
    /// No gain of privileges by exec.
    pub no_new_privs: bool,
    /// Files of compiled seccomp programs, installed in order.
    pub seccomp: Vec<PathBuf>,
    /// AppArmor profile name.
    pub apparmor: Option<String>,
    /// SELinux label.
    #[serde(default)]
    pub selinux: Option<String>,
    /// oom_score_adj.
    pub oom_score_adj: Option<i32>,
    /// With a terminal.
    pub tty: bool,
}
