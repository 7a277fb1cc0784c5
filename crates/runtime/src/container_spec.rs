//! From a CRI container configuration and its image to what a shim runs. Pure, apart from looking at the
//! node's devices and at what a mount's source is.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use cri::v1::{self, MountPropagation, NamespaceMode};

use crate::{
    apparmor, capability,
    cgroup::Limits,
    cgroup_device::{self, Rule},
    error::RuntimeError,
    handlers,
    record::{ContainerRecord, SandboxRecord},
    sandbox_run::{self, Namespaces},
    spec::{
        ContainerSpec, DeviceNode, Hooks, MountSource, MountSpec, PidMode, ProcessSpec, Propagation, Rootfs,
        UserSpec,
    },
    state::Runtime,
    user_namespace,
};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What containers that nothing is said of must not see of the kernel; the list other runtimes have.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The context of a container; an empty one when none is given.
pub(crate) fn security_context(config: &v1::ContainerConfig) -> v1::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// Limits from CRI resources; zero means "not given" there.
pub(crate) fn limits(resources: &v1::LinuxContainerResources) -> Limits {
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let given = |value: i64| Some(value).filter(|value| *value != 0);
    let text = |value: &String| Some(value.clone()).filter(|value| !value.is_empty());
    Limits {
        cpu_shares: positive(resources.cpu_shares),
        cpu_quota: given(resources.cpu_quota),
        cpu_period: positive(resources.cpu_period),
        memory: given(resources.memory_limit_in_bytes),
        memory_swap: given(resources.memory_swap_limit_in_bytes),
        pids: None,
        cpuset_cpus: text(&resources.cpuset_cpus),
        cpuset_mems: text(&resources.cpuset_mems),
        hugepages: resources
            .hugepage_limits
            .iter()
            .map(|limit| (limit.page_size.clone(), limit.limit))
            .collect(),
        unified: resources.unified.clone().into_iter().collect(),
    }
}

impl Runtime {
    /// What the shim is told to run.
    pub(crate) fn container_spec(
        &self,
        sandbox: &SandboxRecord,
        record: &ContainerRecord,
    ) -> Result<ContainerSpec, RuntimeError> {
        let config = &record.config;
        let context = security_context(config);
        let namespaces = Namespaces::of(&sandbox.config);
        let dir = self.config.container_dir(&record.id);
        let (devices, _) = devices(record, context.privileged)?;
        // Who gives a context means its lists, empty ones too: `procMount: Unmasked` is told so.
        let spoken = config.linux.as_ref().is_some_and(|linux| linux.security_context.is_some());
        let lists = |given: &[String], default: &[&str]| -> Vec<String> {
            match (context.privileged, spoken) {
                (true, _) => Vec::new(),
                (false, true) => given.to_vec(),
                (false, false) => default.iter().map(|path| (*path).to_owned()).collect(),
            }
        };
        let log = (!config.log_path.is_empty() && !sandbox.config.log_directory.is_empty())
            .then(|| PathBuf::from(&sandbox.config.log_directory).join(&config.log_path));
        let control = |error| RuntimeError::io("the container's control group")(error);
        let process = self.process(sandbox, record)?;
        let program = handlers::program(&self.config.handlers, &sandbox.runtime_handler)?;
        let told = program.is_some() || record.cdi.hooks != Hooks::default();
        let oci = told.then(|| self.oci_spec(program, sandbox, record, process.capabilities));
        Ok(ContainerSpec {
            id: record.id.clone(),
            log_path: log,
            rootfs: Rootfs {
                lower: record.layers.clone(),
                upper: dir.join("upper"),
                work: dir.join("work"),
                target: dir.join("root"),
                readonly: context.readonly_rootfs,
                label: record.selinux.file.clone(),
            },
            cgroup: self.cgroups.join(&record.cgroup).map_err(control)?,
            oom_file: self.cgroups.oom_file(&record.cgroup),
            pid: self.pid_mode(sandbox, &context)?,
            host_ipc: namespaces.host_ipc,
            mounts: self.mounts(sandbox, record)?,
            devices,
            cgroup_mounts: self.cgroups.container_mounts(),
            masked_paths: lists(&context.masked_paths, &MASKED),
            readonly_paths: lists(&context.readonly_paths, &READONLY),
            privileged: context.privileged,
            process,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            oci: oci.transpose()?,
        })
    }

    fn pid_mode(
        &self,
        sandbox: &SandboxRecord,
        context: &v1::LinuxContainerSecurityContext,
    ) -> Result<PidMode, RuntimeError> {
        let Some(options) = &context.namespace_options else {
            let shared = Namespaces::of(&sandbox.config).shared_pid;
            return Ok(if shared { PidMode::Pod } else { PidMode::Container });
        };
        Ok(match NamespaceMode::try_from(options.pid) {
            Ok(NamespaceMode::Pod) => PidMode::Pod,
            Ok(NamespaceMode::Node) => PidMode::Node,
            Ok(NamespaceMode::Target) => {
                let target = self.container(&options.target_id)?;
                if target.record.sandbox != sandbox.id {
                    let why = format!("target container {} is of another pod", options.target_id);
                    return Err(RuntimeError::Invalid(why));
                }
                let pid = target.state.borrow().pid;
                if pid == 0 {
                    return Err(RuntimeError::State(format!(
                        "target container {} does not run",
                        options.target_id
                    )));
                }
                PidMode::Target(pid)
            }
            _ => PidMode::Container,
        })
    }

    /// A container's first program. What is executed later differs in arguments and terminal.
    pub(crate) fn process(
        &self,
        sandbox: &SandboxRecord,
        record: &ContainerRecord,
    ) -> Result<ProcessSpec, RuntimeError> {
        let (config, image) = (&record.config, &record.image_config);
        let context = security_context(config);
        let unknown = |name| RuntimeError::Invalid(format!("unknown capability {name:?}"));
        let given = context.capabilities.clone().unwrap_or_default();
        let capabilities = if context.privileged {
            capability::ALL
        } else {
            capability::container_set(&given.add_capabilities, &given.drop_capabilities).map_err(unknown)?
        };
        let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        Ok(ProcessSpec {
            args: command(config, image)?,
            env: self.environment(sandbox, record),
            cwd: match (config.working_dir.as_str(), image.working_dir.as_str()) {
                ("", "") => "/".to_owned(),
                ("", dir) | (dir, _) => dir.to_owned(),
            },
            user: user(&context, &image.user)?,
            capabilities,
            ambient: capability::set(&given.add_ambient_capabilities).map_err(unknown)?,
            no_new_privs: context.no_new_privs,
            seccomp: self.seccomp(&context, capabilities)?,
            apparmor: apparmor::profile(&context)?,
            selinux: record.selinux.process.clone().filter(|_| !context.privileged),
            oom_score_adj: resources.and_then(|resources| i32::try_from(resources.oom_score_adj).ok()),
            tty: config.tty,
        })
    }

    fn environment(&self, sandbox: &SandboxRecord, record: &ContainerRecord) -> Vec<String> {
        let hostname = match sandbox.config.hostname.as_str() {
            "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            name => name.to_owned(),
        };
        let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
        if record.config.tty {
            env.push("TERM=xterm".to_owned());
        }
        env.extend(record.image_config.env.iter().filter(|pair| pair.contains('=')).cloned());
        env.extend(record.config.envs.iter().map(|pair| format!("{}={}", pair.key, pair.value)));
        // The last of each name counts, at the place of the first.
        let mut seen = HashSet::new();
        let mut kept: Vec<String> = Vec::with_capacity(env.len());
        for pair in env.into_iter().rev() {
            if seen.insert(pair.split('=').next().unwrap_or_default().to_owned()) {
                kept.push(pair);
            }
        }
        kept.reverse();
        kept
    }

    fn seccomp(
        &self,
        context: &v1::LinuxContainerSecurityContext,
        capabilities: u64,
    ) -> Result<Vec<PathBuf>, RuntimeError> {
        use v1::security_profile::ProfileType;
        let Some(profile) = context.seccomp.as_ref().filter(|_| !context.privileged) else {
            return Ok(Vec::new());
        };
        match profile.profile_type() {
            ProfileType::Unconfined => Ok(Vec::new()),
            ProfileType::RuntimeDefault => {
                self.profiles.runtime_default(capabilities).map_err(RuntimeError::io("the seccomp profile"))
            }
            ProfileType::Localhost => {
                let path = profile.localhost_ref.as_str();
                let path = path.strip_prefix("localhost/").unwrap_or(path);
                let wrong = |why| RuntimeError::Invalid(format!("seccomp profile {path:?}: {why}"));
                Ok(vec![self.profiles.of_file(Path::new(path)).map_err(wrong)?])
            }
        }
    }

    fn mounts(
        &self,
        sandbox: &SandboxRecord,
        record: &ContainerRecord,
    ) -> Result<Vec<MountSpec>, RuntimeError> {
        let config = &record.config;
        let disk = self.config.sandbox_dir(&sandbox.id);
        let users = user_namespace::of(&sandbox.config)?;
        let mut mounts = Vec::new();
        let given = |target: &str| config.mounts.iter().any(|mount| mount.container_path == target);
        for (file, target) in sandbox_run::FILES {
            // a sandbox of an older process may not have all
            if !given(target) && disk.join(file).exists() {
                mounts.push(MountSpec {
                    source: MountSource::Bind(disk.join(file)),
                    target: target.to_owned(),
                    readonly: security_context(config).readonly_rootfs,
                    recursive_readonly: false,
                    propagation: Propagation::Private,
                    restrictions: Vec::new(),
                    sub_path: String::new(),
                    mapped: users.is_some(),
                    filled: false,
                });
            }
        }
        for mount in &config.mounts {
            if !mount.container_path.starts_with('/') {
                return Err(RuntimeError::Invalid(format!(
                    "mount path {:?} is not absolute",
                    mount.container_path
                )));
            }
            let private = mount.propagation() == MountPropagation::PropagationPrivate;
            if mount.recursive_read_only && !(mount.readonly && private) {
                return Err(RuntimeError::Invalid(format!(
                    "mount {:?} is to be read-only recursively: it must be read-only and of private propagation",
                    mount.container_path
                )));
            }
            let source = match mount.image.as_ref().filter(|image| !image.image.is_empty()) {
                Some(spec) => {
                    let wanted = if spec.image_ref.is_empty() { &spec.image } else { &spec.image_ref };
                    let image = self.images.find(wanted).ok_or_else(|| {
                        RuntimeError::NotFound(format!("image {:?} of a volume is not there", spec.image))
                    })?;
                    MountSource::Image(
                        self.images.layer_dirs(&image).map_err(RuntimeError::io("image volume"))?,
                    )
                }
                None => MountSource::Bind(self.bind_source(mount)?),
            };
            let image = matches!(source, MountSource::Image(_));
            mounts.push(MountSpec {
                source,
                target: mount.container_path.clone(),
                readonly: mount.readonly || image,
                recursive_readonly: mount.recursive_read_only,
                restrictions: record.cdi.restrictions.get(&mount.container_path).cloned().unwrap_or_default(),
                sub_path: image_sub_path(mount)?,
                mapped: user_namespace::shows(mount, users.as_ref())?,
                filled: false,
                propagation: match mount.propagation() {
                    MountPropagation::PropagationPrivate => Propagation::Private,
                    MountPropagation::PropagationHostToContainer => Propagation::Slave,
                    MountPropagation::PropagationBidirectional => Propagation::Shared,
                },
            });
        }
        for (index, target) in record.volumes.iter().enumerate() {
            mounts.push(MountSpec {
                source: MountSource::Bind(self.config.volumes_dir(&record.id).join(index.to_string())),
                target: target.clone(),
                readonly: false,
                recursive_readonly: false,
                propagation: Propagation::Private,
                restrictions: Vec::new(),
                sub_path: String::new(),
                // what is copied has its owners on the node, as the writable layer
                mapped: false,
                filled: true,
            });
        }
        // A mount may be below another one, which then must come first.
        mounts.sort_by_key(|mount| mount.target.split('/').filter(|part| !part.is_empty()).count());
        Ok(mounts)
    }

    fn bind_source(&self, mount: &v1::Mount) -> Result<PathBuf, RuntimeError> {
        let path = PathBuf::from(&mount.host_path);
        if !path.is_absolute() {
            return Err(RuntimeError::Invalid(format!("mount source {:?} is not absolute", mount.host_path)));
        }
        if !path.exists() {
            // CRI: a missing host path is made.
            fs::create_dir_all(&path).map_err(RuntimeError::io(format!("making {}", path.display())))?;
        }
        Ok(path)
    }
}

/// What of an image a mount shows.
fn image_sub_path(mount: &v1::Mount) -> Result<String, RuntimeError> {
    let path = Path::new(&mount.image_sub_path);
    match path.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
        true => Ok(mount.image_sub_path.clone()),
        false => Err(RuntimeError::Invalid(format!(
            "sub path {:?} of an image must be relative and without '..'",
            mount.image_sub_path
        ))),
    }
}

fn command(
    config: &v1::ContainerConfig,
    image: &crate::image::config::ImageConfig,
) -> Result<Vec<String>, RuntimeError> {
    // As `docker run`: a given command drops both of the image's, given arguments only its arguments.
    let mut args = config.command.clone();
    if args.is_empty() {
        args.extend(image.entrypoint.iter().cloned());
        args.extend(if config.args.is_empty() { image.cmd.clone() } else { config.args.clone() });
    } else {
        args.extend(config.args.iter().cloned());
    }
    if args.is_empty() {
        return Err(RuntimeError::Invalid(
            "no command specified: neither the container nor its image has one".to_owned(),
        ));
    }
    Ok(args)
}

fn user(context: &v1::LinuxContainerSecurityContext, image: &str) -> Result<UserSpec, RuntimeError> {
    let id = |value: i64| {
        u32::try_from(value).map_err(|_| RuntimeError::Invalid(format!("{value} is not a user or group id")))
    };
    let group = context.run_as_group.map(|group| id(group.value)).transpose()?;
    let user = match (&context.run_as_user, context.run_as_username.as_str()) {
        (Some(user), _) => id(user.value)?.to_string(),
        (None, "") if group.is_some() => {
            return Err(RuntimeError::Invalid("a group is set without a user".to_owned()));
        }
        (None, "") => image.to_owned(),
        (None, name) => name.to_owned(),
    };
    Ok(UserSpec {
        known: None,
        user,
        gid: group,
        supplemental: context.supplemental_groups.iter().map(|group| id(*group)).collect::<Result<_, _>>()?,
        strict: context.supplemental_groups_policy() == v1::SupplementalGroupsPolicy::Strict,
    })
}

/// Nodes to make beside the default ones, and what may be used; `None`: everything.
pub(crate) fn devices(
    record: &ContainerRecord,
    privileged: bool,
) -> Result<(Vec<DeviceNode>, Option<Vec<Rule>>), RuntimeError> {
    let mut nodes = Vec::new();
    let mut rules = cgroup_device::defaults();
    if privileged {
        node_devices("/dev".into(), &mut nodes);
    }
    for device in &record.config.devices {
        let doing = || RuntimeError::io(format!("device {}", device.host_path));
        let metadata = fs::metadata(&device.host_path).map_err(doing())?;
        if metadata.is_dir() {
            let mut below = Vec::new();
            node_devices(PathBuf::from(&device.host_path), &mut below);
            for mut node in below {
                rules.push(rule(&node, &device.permissions));
                node.path = node.path.replacen(&device.host_path, &device.container_path, 1);
                nodes.push(node);
            }
            continue;
        }
        let node = device_node(&device.container_path, &metadata)
            .ok_or_else(|| RuntimeError::Invalid(format!("{} is not a device", device.host_path)))?;
        rules.push(rule(&node, &device.permissions));
        nodes.push(node);
    }
    for device in &record.cdi.nodes {
        nodes.retain(|known| known.path != device.node.path);
        rules.push(device.rule());
        nodes.push(device.node.clone());
    }
    Ok((nodes, (!privileged).then_some(rules)))
}

pub(crate) fn rule(node: &DeviceNode, permissions: &str) -> Rule {
    let may = |letter| permissions.is_empty() || permissions.contains(letter);
    Rule {
        block: node.block,
        major: Some(node.major),
        minor: Some(node.minor),
        read: may('r'),
        write: may('w'),
        mknod: may('m'),
    }
}

pub(crate) fn device_node(path: &str, metadata: &fs::Metadata) -> Option<DeviceNode> {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return None;
    }
    Some(DeviceNode {
        path: path.to_owned(),
        block: kind.is_block_device(),
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// Devices of the node, for privileged containers; what a container has of its own is left out.
fn node_devices(dir: PathBuf, nodes: &mut Vec<DeviceNode>) {
    const OWN: [&str; 5] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/ptmx"];
    let entries = |dir: &PathBuf| -> io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect()
    };
    for path in entries(&dir).unwrap_or_default() {
        let Some(name) = path.to_str().filter(|name| !OWN.contains(name)) else { continue };
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => node_devices(path, nodes),
            Ok(metadata) => nodes.extend(device_node(name, &metadata)),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::config::ImageConfig;

    #[test]
    fn command_and_args_override_as_documented() {
        let image = ImageConfig { entrypoint: vec!["e".into()], cmd: vec!["c".into()], ..Default::default() };
        let check = |given: &[&str], args: &[&str], expected: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
            let config =
                v1::ContainerConfig { command: owned(given), args: owned(args), ..Default::default() };
            assert_eq!(command(&config, &image).unwrap(), expected);
        };
        check(&[], &[], &["e", "c"]);
        check(&[], &["a"], &["e", "a"]);
        check(&["x"], &[], &["x"]);
        check(&["x"], &["a"], &["x", "a"]);
        assert!(command(&v1::ContainerConfig::default(), &ImageConfig::default()).is_err());
    }

    #[test]
    fn zero_resources_leave_limits_alone() {
        assert_eq!(limits(&v1::LinuxContainerResources::default()), Limits::default());
        let given =
            v1::LinuxContainerResources { cpu_quota: -1, memory_limit_in_bytes: 5, ..Default::default() };
        assert_eq!(limits(&given), Limits { cpu_quota: Some(-1), memory: Some(5), ..Limits::default() });
    }
}
