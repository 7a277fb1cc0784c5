//! RunPodSandbox: a shim with the pod's namespaces, connected to the pod network.

use std::{
    fs,
    io::{self, Read},
    net::IpAddr,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use cri::v1::{self, NamespaceMode};

use crate::{
    error::RuntimeError,
    handlers,
    network::{NetworkPod, PortMapping},
    protocol::{self, Reply},
    record::{self, SandboxPhase, SandboxRecord},
    selinux::{self, Labels},
    shim,
    spec::{CgroupJoin, SandboxSpec, UserNamespace},
    state::{Runtime, Sandbox, new_id, now},
    user_namespace,
};

/// oom_score_adj of shims and pause processes, as kubelets expect of sandboxes.
const OOM_SCORE_ADJ: i32 = -998;

/// What a sandbox has for its containers: the name in its folder, and where containers find it that mount nothing there.
pub(crate) const FILES: [(&str, &str); 3] =
    [("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname"), ("hosts", "/etc/hosts")];

/// Which namespaces a sandbox has of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Namespaces {
    pub(crate) host_network: bool,
    pub(crate) host_ipc: bool,
    pub(crate) shared_pid: bool,
}

impl Namespaces {
    pub(crate) fn of(config: &v1::PodSandboxConfig) -> Namespaces {
        let options = config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref())
            .and_then(|context| context.namespace_options.as_ref());
        let is = |mode: Option<i32>, wanted: NamespaceMode| mode == Some(wanted as i32);
        Namespaces {
            host_network: is(options.map(|options| options.network), NamespaceMode::Node),
            host_ipc: is(options.map(|options| options.ipc), NamespaceMode::Node),
            // The mode that is 0 on the wire, so also what no options mean.
            shared_pid: options.is_none_or(|options| options.pid == NamespaceMode::Pod as i32),
        }
    }
}

/// What the pod network is told about a sandbox.
pub(crate) fn network_pod(record: &SandboxRecord) -> Option<NetworkPod> {
    let netns = record.netns.clone()?;
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let port = |port: i32| u16::try_from(port).ok().filter(|port| *port != 0);
    Some(NetworkPod {
        sandbox: record.id.clone(),
        netns,
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        annotations: record.config.annotations.clone().into_iter().collect(),
        ports: record
            .config
            .port_mappings
            .iter()
            .filter_map(|mapping| {
                Some(PortMapping {
                    protocol: match mapping.protocol() {
                        v1::Protocol::Tcp => "tcp",
                        v1::Protocol::Udp => "udp",
                        v1::Protocol::Sctp => "sctp",
                    },
                    container_port: port(mapping.container_port)?,
                    host_port: port(mapping.host_port)?,
                    host_ip: mapping.host_ip.parse::<IpAddr>().ok(),
                })
            })
            .collect(),
    })
}

impl Runtime {
    /// Makes a sandbox and returns its id. When it fails nothing is left.
    pub(crate) async fn run_sandbox(
        self: &Arc<Self>,
        config: v1::PodSandboxConfig,
        handler: String,
    ) -> Result<String, RuntimeError> {
        self.check(&config, &handler)?;
        let _making = self.reserve(&config)?;
        let id = new_id();
        let selinux = self.labels_of_sandbox(&id, &config)?;
        let namespaces = Namespaces::of(&config);
        let given = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
        let cgroup_parent =
            if given.is_empty() { format!("{}/{id}", self.config.cgroup_parent) } else { given.to_owned() };
        let record = SandboxRecord {
            id: id.clone(),
            runtime_handler: handler,
            created_at: now(),
            phase: SandboxPhase::Creating,
            ips: Vec::new(),
            cgroup_parent,
            made_groups: Vec::new(),
            netns: (!namespaces.host_network).then(|| self.config.netns(&id)),
            selinux,
            config,
        };
        let sandbox = Sandbox::new(record);
        let result = self.build_sandbox(&sandbox).await;
        if let Err(error) = result {
            self.dismantle(&sandbox).await;
            self.forget_sandbox(&sandbox).await;
            return Err(error);
        }
        self.sandboxes.write().insert(id.clone(), sandbox.clone());
        // its making is one step: who listens hears of both, as containerd tells it
        self.publish(&id, &id, v1::ContainerEventType::ContainerCreatedEvent);
        self.publish(&id, &id, v1::ContainerEventType::ContainerStartedEvent);
        Ok(id)
    }

    fn labels_of_sandbox(&self, id: &str, config: &v1::PodSandboxConfig) -> Result<Labels, RuntimeError> {
        let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let asked = context.and_then(|context| context.selinux_options.as_ref());
        let labels = match selinux::labels(asked, || self.levels.of(id)) {
            Err(RuntimeError::Unsupported(_)) if context.is_some_and(|context| context.privileged) => {
                Labels::default()
            }
            labels => labels.inspect_err(|_| self.levels.free(id))?,
        };
        if let Some(level) = labels.level() {
            self.levels.note(id, level);
        }
        Ok(labels)
    }

    /// Notes what a pod as a whole may use from now on; its control group is changed by who asks.
    pub(crate) async fn note_sandbox_resources(
        &self,
        id: &str,
        overhead: Option<v1::LinuxContainerResources>,
        resources: Option<v1::LinuxContainerResources>,
    ) -> Result<(), RuntimeError> {
        let sandbox = self.sandbox(id)?;
        let _operation = sandbox.operation.lock().await;
        {
            let mut record = sandbox.record.write();
            let linux = record.config.linux.get_or_insert_default();
            linux.overhead = overhead;
            linux.resources = resources;
        }
        self.save_sandbox(&sandbox)
    }

    fn check(&self, config: &v1::PodSandboxConfig, handler: &str) -> Result<(), RuntimeError> {
        handlers::program(&self.config.handlers, handler)?;
        if user_namespace::of(config)?.is_some() {
            if !handler.is_empty() {
                let why = format!("runtime handler {handler:?} does not support user namespaces");
                return Err(RuntimeError::Unsupported(why));
            }
            if !user_namespace::supported() {
                let why = "this node's kernel does not support user namespaces (Linux 6.3 does)";
                return Err(RuntimeError::Unsupported(why.to_owned()));
            }
        }
        let host_network = Namespaces::of(config).host_network;
        let sysctls = config.linux.iter().flat_map(|linux| linux.sysctls.keys());
        for name in sysctls {
            check_sysctl(name, host_network, Namespaces::of(config).host_ipc)?;
        }
        Ok(())
    }

    /// Keeps others from making the same sandbox, for as long as the answer lives: a caller may ask again before it has heard.
    fn reserve(self: &Arc<Self>, config: &v1::PodSandboxConfig) -> Result<Making, RuntimeError> {
        let metadata = config
            .metadata
            .clone()
            .ok_or_else(|| RuntimeError::Invalid("sandbox config has no metadata".to_owned()))?;
        let exists = |what: &str| {
            RuntimeError::Exists(format!(
                "a sandbox for pod {}/{} attempt {} {what}",
                metadata.namespace, metadata.name, metadata.attempt
            ))
        };
        let mut making = self.making.lock();
        if making.contains(&metadata) {
            return Err(exists("is being made"));
        }
        // One that is ready is on the list before its reservation ends.
        if self.sandboxes.read().values().any(|known| {
            let known = known.record.read();
            known.phase == SandboxPhase::Ready && known.config.metadata.as_ref() == Some(&metadata)
        }) {
            return Err(exists("is there already"));
        }
        making.insert(metadata.clone());
        Ok(Making { runtime: self.clone(), metadata })
    }

    async fn build_sandbox(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), RuntimeError> {
        let runtime = self.clone();
        let (target, record) = (sandbox.clone(), sandbox.record.read().clone());
        let child = tokio::task::spawn_blocking(move || runtime.start_shim(&target, &record))
            .await
            .map_err(|error| RuntimeError::io("starting the shim")(io::Error::other(error)))??;
        self.follow(sandbox, Some(child)).await?;
        let pod = network_pod(&sandbox.record.read());
        if let Some(pod) = pod {
            let result = self.config.network.add(&pod).await?;
            sandbox.record.write().ips = result.ips.iter().map(IpAddr::to_string).collect();
        }
        sandbox.record.write().phase = SandboxPhase::Ready;
        self.save_sandbox(sandbox)
    }

    fn start_shim(&self, sandbox: &Sandbox, record: &SandboxRecord) -> Result<Child, RuntimeError> {
        let config = &record.config;
        let (namespaces, users) = (Namespaces::of(config), user_namespace::of(config)?);
        let dir = self.config.shim_dir(&record.id);
        let disk = self.config.sandbox_dir(&record.id);
        let doing = |what: &'static str| RuntimeError::io(what);
        fs::create_dir(&dir).map_err(doing("making the sandbox's folder"))?;
        fs::create_dir(&disk).map_err(doing("making the sandbox's folder"))?;
        let made =
            self.cgroups.create(&record.cgroup_parent).map_err(doing("making the pod's control group"))?;
        sandbox.record.write().made_groups = made;
        self.save_sandbox(sandbox)?;
        let hostname = match config.hostname.as_str() {
            name if !name.is_empty() && !namespaces.host_network => name.to_owned(),
            _ => node_name(),
        };
        fs::write(disk.join("hostname"), format!("{hostname}\n")).map_err(doing("writing the hostname"))?;
        fs::write(disk.join("resolv.conf"), resolv_conf(config)).map_err(doing("writing resolv.conf"))?;
        fs::write(disk.join("hosts"), hosts()).map_err(doing("writing hosts"))?;

        let pause_cgroup = if namespaces.shared_pid {
            let group = pause_group(record);
            self.cgroups.create(&group).map_err(doing("making control groups"))?;
            self.cgroups.join(&group).map_err(doing("control groups"))?
        } else {
            CgroupJoin::default()
        };
        let mut shim_cgroup =
            self.cgroups.join(&self.config.shim_cgroup()).map_err(doing("control groups"))?;
        if !self.cgroups.is_v2() {
            // The v2 tree of a hybrid node limits nothing, and moving there costs milliseconds.
            shim_cgroup.unified = None;
        }
        let spec = SandboxSpec {
            id: record.id.clone(),
            dir: dir.clone(),
            netns: record.netns.clone(),
            private_ipc: !namespaces.host_ipc,
            shared_pid: namespaces.shared_pid,
            hostname,
            sysctls: sysctls(config, namespaces, users.as_ref()),
            users,
            shim_cgroup,
            pause_cgroup,
            oom_score_adj: OOM_SCORE_ADJ,
            process_label: record.selinux.process.clone().filter(|_| !privileged(config)),
            file_label: record.selinux.file.clone(),
            other_runtime: !record.runtime_handler.is_empty(),
        };
        let bytes =
            serde_json::to_vec(&spec).map_err(|error| doing("the sandbox's specification")(error.into()))?;
        fs::write(dir.join(shim::SPEC), bytes).map_err(doing("the sandbox's specification"))?;
        let log = fs::File::create(dir.join("shim.log")).map_err(doing("the shim's log"))?;
        let mut child = Command::new(self.shim_program.path())
            .arg0("navarch-shim")
            .arg("shim")
            .arg(&dir)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(RuntimeError::io(format!("starting {}", self.config.exe.display())))?;
        match wait_until_ready(&mut child) {
            Ok(()) => Ok(child),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = fs::read_to_string(dir.join("shim.log")).unwrap_or_default();
                if !said.is_empty() {
                    tracing::warn!(sandbox = record.id, said, "the shim did not start");
                }
                Err(error)
            }
        }
    }
}

/// A sandbox that is being made.
struct Making {
    runtime: Arc<Runtime>,
    metadata: v1::PodSandboxMetadata,
}

impl Drop for Making {
    fn drop(&mut self) {
        self.runtime.making.lock().remove(&self.metadata);
    }
}

fn privileged(config: &v1::PodSandboxConfig) -> bool {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.is_some_and(|context| context.privileged)
}

/// The group of a sandbox's pause process.
pub(crate) fn pause_group(record: &SandboxRecord) -> String {
    format!("{}/{}", record.cgroup_parent, record.id)
}

fn wait_until_ready(child: &mut Child) -> Result<(), RuntimeError> {
    let silent = || RuntimeError::ShimGone(io::ErrorKind::UnexpectedEof.into());
    let mut out = child.stdout.take().ok_or_else(silent)?;
    let mut buffer = Vec::new();
    loop {
        match protocol::decode::<Reply>(&mut buffer).map_err(RuntimeError::ShimGone)? {
            Some(Reply::Ready { .. }) => return Ok(()),
            Some(Reply::Failed(failure)) => return Err(failure.into()),
            Some(_) => return Err(silent()),
            None => {}
        }
        let mut chunk = [0; 4096];
        match out.read(&mut chunk).map_err(RuntimeError::ShimGone)? {
            0 => return Err(silent()),
            count => buffer.extend_from_slice(&chunk[..count]),
        }
    }
}

/// Only what a namespace keeps apart may be set for a pod.
fn check_sysctl(name: &str, host_network: bool, host_ipc: bool) -> Result<(), RuntimeError> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte))
        && !name.contains("..");
    let name = name.replace('/', ".");
    let of_network = name.starts_with("net.");
    let of_ipc = name.starts_with("kernel.shm")
        || name.starts_with("kernel.msg")
        || name == "kernel.sem"
        || name.starts_with("fs.mqueue.");
    if plain && ((of_network && !host_network) || (of_ipc && !host_ipc)) {
        return Ok(());
    }
    Err(RuntimeError::Invalid(format!("sysctl {name:?} cannot be set for this pod: it is the node's")))
}

fn sysctls(
    config: &v1::PodSandboxConfig,
    namespaces: Namespaces,
    users: Option<&UserNamespace>,
) -> Vec<(String, String)> {
    let mut sysctls = Vec::new();
    if !namespaces.host_network {
        // Ports below 1024 and ping need no capability in a network of one's own.
        sysctls.push(("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned()));
        // In a user namespace only groups that it has can be named.
        let own = |users: &UserNamespace| {
            users.gids.iter().find(|range| range.container == 0).map_or(0, |range| range.length - 1)
        };
        let last = users.map_or(i32::MAX.unsigned_abs(), own);
        sysctls.push(("net.ipv4.ping_group_range".to_owned(), format!("0 {last}")));
    }
    let given = config.linux.iter().flat_map(|linux| &linux.sysctls);
    sysctls.extend(given.map(|(name, value)| (name.replace('/', "."), value.clone())));
    sysctls
}

fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What names a container knows whose caller has no file for that; kubelets have one for every container.
fn hosts() -> String {
    fs::read_to_string("/etc/hosts").unwrap_or_else(|_| "127.0.0.1\tlocalhost\n::1\tlocalhost\n".to_owned())
}

fn resolv_conf(config: &v1::PodSandboxConfig) -> String {
    let Some(dns) = config.dns_config.as_ref().filter(|dns| **dns != v1::DnsConfig::default()) else {
        return fs::read_to_string(Path::new("/etc/resolv.conf")).unwrap_or_default();
    };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// Reads a record again, for adoption.
pub(crate) fn load(dir: &Path) -> io::Result<SandboxRecord> {
    record::load(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaced_sysctls_are_taken() {
        let ok = |name: &str, network, ipc| check_sysctl(name, network, ipc).is_ok();
        assert!(ok("net.core.somaxconn", false, false));
        assert!(!ok("net.core.somaxconn", true, false));
        assert!(ok("kernel.shmmax", false, false));
        assert!(!ok("kernel.shmmax", false, true));
        for bad in ["kernel.panic", "vm.swappiness", "net/../kernel/panic", "net.a b"] {
            assert!(!ok(bad, false, false), "{bad}");
        }
    }

    #[test]
    fn resolv_conf_has_the_pods_servers_only() {
        let dns = v1::DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["a.svc".into(), "svc".into()],
            options: vec!["ndots:5".into()],
        };
        let config = v1::PodSandboxConfig { dns_config: Some(dns), ..Default::default() };
        assert_eq!(resolv_conf(&config), "search a.svc svc\nnameserver 10.96.0.10\noptions ndots:5\n");
    }
}
