//! The runtime's sandboxes and containers in memory, and where their files are.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use cri::v1;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    apparmor,
    cgroup::Cgroups,
    error::RuntimeError,
    handlers::Handlers,
    image::ImageStore,
    network::PodNetwork,
    record::{self, ContainerPhase, ContainerRecord, ContainerState, SandboxPhase, SandboxRecord},
    registry::Access,
    seccomp::Profiles,
    selinux::Levels,
    shim_program::ShimProgram,
    stats::Samples,
    streaming::StreamingServer,
};

/// Where the runtime lives and what it uses.
#[derive(Clone)]
pub struct Config {
    /// Images and containers: `D/runtime`. Survives a reboot.
    pub root: PathBuf,
    /// Sockets and namespaces: `/run/navarch/<instance>`. Must not survive a reboot.
    pub run: PathBuf,
    /// Parent of all control groups, for example `/navarch-<instance>`.
    pub cgroup_parent: String,
    /// The program that is executed as shim: it must call [`crate::shim::main`] when its first argument is `shim`.
    pub exe: PathBuf,
    /// The bytes of another such program, a small one, that is executed instead where the node allows it. Of a large one each
    /// shim keeps the pages that its relocations touch.
    pub shim: Option<&'static [u8]>,
    /// The pod network.
    pub network: Arc<dyn PodNetwork>,
    /// Name of this instance, for messages.
    pub instance: String,
    /// How registries are reached.
    pub registries: Access,
    /// OCI runtimes that run the containers of some RuntimeClasses, by handler.
    pub handlers: Handlers,
    /// Where vendors describe devices, the most important one last ([`crate::cdi::FOLDERS`]).
    pub cdi_folders: Vec<PathBuf>,
}

impl Config {
    pub(crate) fn shim_dir(&self, sandbox: &str) -> PathBuf {
        self.run.join("s").join(sandbox)
    }

    pub(crate) fn netns(&self, sandbox: &str) -> PathBuf {
        self.run.join("netns").join(sandbox)
    }

    pub(crate) fn sandbox_dir(&self, sandbox: &str) -> PathBuf {
        self.root.join("sandboxes").join(sandbox)
    }

    pub(crate) fn container_dir(&self, container: &str) -> PathBuf {
        self.root.join("containers").join(container)
    }

    /// A container's volumes that its image asks for, by number.
    pub(crate) fn volumes_dir(&self, container: &str) -> PathBuf {
        self.container_dir(container).join("volumes")
    }

    pub(crate) fn shim_cgroup(&self) -> String {
        format!("{}/shims", self.cgroup_parent)
    }
}

/// A sandbox in memory.
pub(crate) struct Sandbox {
    pub(crate) record: RwLock<SandboxRecord>,
    /// Held while it is changed.
    pub(crate) operation: tokio::sync::Mutex<()>,
    /// Held while volumes are given its containers' label.
    pub(crate) labelling: tokio::sync::Mutex<()>,
    /// Its end is asked for: what is still being prepared for it is of no use.
    pub(crate) ending: CancellationToken,
    pub(crate) samples: Mutex<Samples>,
}

impl Sandbox {
    pub(crate) fn new(record: SandboxRecord) -> Arc<Sandbox> {
        Arc::new(Sandbox {
            record: RwLock::new(record),
            operation: tokio::sync::Mutex::new(()),
            labelling: tokio::sync::Mutex::new(()),
            ending: CancellationToken::new(),
            samples: Mutex::default(),
        })
    }

    pub(crate) fn id(&self) -> String {
        self.record.read().id.clone()
    }

    pub(crate) fn ready(&self) -> bool {
        self.record.read().phase == SandboxPhase::Ready
    }
}

/// A container in memory.
pub(crate) struct Container {
    /// Without the state, which is in `state`.
    pub(crate) record: ContainerRecord,
    /// Resources as last updated.
    pub(crate) resources: RwLock<Option<v1::LinuxContainerResources>>,
    pub(crate) state: watch::Sender<ContainerState>,
    /// It was asked to end.
    pub(crate) asked_to_end: AtomicBool,
    /// Held while it is changed.
    pub(crate) operation: tokio::sync::Mutex<()>,
    pub(crate) samples: Mutex<Samples>,
}

impl Container {
    pub(crate) fn new(record: ContainerRecord) -> Arc<Container> {
        let resources = record.config.linux.as_ref().and_then(|linux| linux.resources.clone());
        Arc::new(Container {
            state: watch::Sender::new(record.state.clone()),
            resources: RwLock::new(resources),
            asked_to_end: AtomicBool::new(false),
            record,
            operation: tokio::sync::Mutex::new(()),
            samples: Mutex::default(),
        })
    }

    pub(crate) fn phase(&self) -> ContainerPhase {
        self.state.borrow().phase
    }

    /// What it is held to from now on; zero means "as before".
    pub(crate) fn note_resources(&self, update: v1::LinuxContainerResources) {
        let mut resources = self.resources.write();
        let known = resources.get_or_insert_default();
        let number = |known: &mut i64, given: i64| {
            if given != 0 {
                *known = given;
            }
        };
        number(&mut known.cpu_period, update.cpu_period);
        number(&mut known.cpu_quota, update.cpu_quota);
        number(&mut known.cpu_shares, update.cpu_shares);
        number(&mut known.memory_limit_in_bytes, update.memory_limit_in_bytes);
        number(&mut known.memory_swap_limit_in_bytes, update.memory_swap_limit_in_bytes);
        if !update.cpuset_cpus.is_empty() {
            known.cpuset_cpus = update.cpuset_cpus;
        }
        if !update.cpuset_mems.is_empty() {
            known.cpuset_mems = update.cpuset_mems;
        }
    }

    /// What is kept of it on disk while it is in `state`.
    fn to_keep(&self, state: &ContainerState) -> ContainerRecord {
        let mut record = ContainerRecord { state: state.clone(), ..self.record.clone() };
        if let Some(resources) = self.resources.read().clone() {
            record.config.linux.get_or_insert_default().resources = Some(resources);
        }
        record
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&self) {
        // The sender lives in `self`.
        let _ = self.state.subscribe().wait_for(|state| state.phase == ContainerPhase::Exited).await;
    }
}

/// The runtime. Dropping it, like the end of the process, leaves everything running.
pub struct Runtime {
    pub(crate) config: Config,
    pub(crate) cgroups: Cgroups,
    pub(crate) images: Arc<ImageStore>,
    _apparmor: apparmor::Loaded,
    pub(crate) profiles: Profiles,
    /// The SELinux levels of sandboxes.
    pub(crate) levels: Levels,
    pub(crate) sandboxes: RwLock<HashMap<String, Arc<Sandbox>>>,
    /// Whose sandboxes are being made.
    pub(crate) making: Mutex<HashSet<v1::PodSandboxMetadata>>,
    pub(crate) containers: RwLock<HashMap<String, Arc<Container>>>,
    /// Bytes and inodes of images' layers, as far as they were measured.
    pub(crate) layer_sizes: Mutex<HashMap<PathBuf, (u64, u64)>>,
    pub(crate) events: broadcast::Sender<v1::ContainerEventResponse>,
    pub(crate) streaming: StreamingServer,
    pub(crate) stop: CancellationToken,
    pub(crate) shim_program: ShimProgram,
}

impl Runtime {
    /// Everything but adoption; see `Runtime::open`.
    pub(crate) fn prepare(config: Config, streaming: StreamingServer) -> Result<Runtime, RuntimeError> {
        for dir in ["s", "netns"] {
            fs::create_dir_all(config.run.join(dir))
                .map_err(RuntimeError::io(config.run.display().to_string()))?;
        }
        for dir in ["sandboxes", "containers"] {
            fs::create_dir_all(config.root.join(dir))
                .map_err(RuntimeError::io(config.root.display().to_string()))?;
        }
        let private = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o700);
        fs::set_permissions(&config.run, private).map_err(RuntimeError::io("protecting the state folder"))?;
        let images = Arc::new(ImageStore::open(&config.root)?);
        let cgroups = Cgroups::detect().map_err(RuntimeError::io("looking for control groups"))?;
        cgroups.create(&config.shim_cgroup()).map_err(RuntimeError::io("making control groups"))?;
        Ok(Runtime {
            shim_program: ShimProgram::open(config.shim, &config.exe)
                .map_err(RuntimeError::io(config.exe.display().to_string()))?,
            profiles: Profiles::new(config.run.join("seccomp"))
                .map_err(RuntimeError::io("seccomp profiles"))?,
            images,
            _apparmor: apparmor::load(),
            cgroups,
            levels: Levels::default(),
            sandboxes: RwLock::default(),
            making: Mutex::default(),
            containers: RwLock::default(),
            layer_sizes: Mutex::default(),
            events: broadcast::Sender::new(1024),
            streaming,
            stop: CancellationToken::new(),
            config,
        })
    }

    /// The sandbox that `id`, or an unambiguous beginning of one, means.
    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, RuntimeError> {
        lookup(&self.sandboxes.read(), id)
            .ok_or_else(|| RuntimeError::NotFound(format!("pod sandbox {id:?} not found")))
    }

    /// The container that `id`, or an unambiguous beginning of one, means.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, RuntimeError> {
        lookup(&self.containers.read(), id)
            .ok_or_else(|| RuntimeError::NotFound(format!("container {id:?} not found")))
    }

    /// Containers of a sandbox, oldest first.
    pub(crate) fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let mut containers: Vec<_> = self
            .containers
            .read()
            .values()
            .filter(|container| container.record.sandbox == sandbox)
            .cloned()
            .collect();
        containers.sort_by_key(|container| container.record.created_at);
        containers
    }

    /// Chain ids of layers that containers use.
    pub(crate) fn layers_in_use(&self) -> HashSet<String> {
        let containers = self.containers.read();
        let name = |dir: &PathBuf| dir.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let records = containers.values().map(|container| &container.record);
        records
            .flat_map(|record| record.layers.iter().chain(&record.volume_layers).filter_map(name))
            .collect()
    }

    /// Writes a sandbox's record.
    pub(crate) fn save_sandbox(&self, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        let record = sandbox.record.read().clone();
        record::save(&self.config.sandbox_dir(&record.id), &record)
            .map_err(RuntimeError::io(format!("recording sandbox {}", record.id)))
    }

    /// Changes a container's state and records it; false when `change` declines.
    pub(crate) fn change(
        &self,
        container: &Container,
        change: impl FnOnce(&ContainerState) -> Option<ContainerState>,
    ) -> bool {
        container.state.send_if_modified(|state| {
            let Some(next) = change(state) else { return false };
            *state = next;
            let record = container.to_keep(state);
            if let Err(error) = record::save(&self.config.container_dir(&record.id), &record) {
                tracing::warn!(container = record.id, %error, "recording a container's state");
            }
            true
        })
    }
}

fn lookup<T: Clone>(map: &HashMap<String, T>, id: &str) -> Option<T> {
    if let Some(found) = map.get(id) {
        return Some(found.clone());
    }
    let mut hits = map.iter().filter(|(known, _)| id.len() >= 4 && known.starts_with(id));
    match (hits.next(), hits.next()) {
        (Some((_, found)), None) => Some(found.clone()),
        _ => None,
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |passed| i64::try_from(passed.as_nanos()).unwrap_or(i64::MAX))
}

/// 64 random hexadecimal digits, as CRI runtimes name things.
pub(crate) fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}
