//! The kubelet: runs the pods that are bound to this node, through any CRI runtime.
//!
//! [`run`] registers the node ([`node`]), then follows its pods ([`manager`]): one [`worker`] task per pod decides by
//! a pure function ([`plan`]) what the pod needs next and does it; [`pod_status`] says how the pod is. The HTTPS
//! server ([`server`]) answers the API server's requests for logs and streams.
//!
//! Tasks: the manager; one worker per pod; one task per probe; one per container that is being stopped; the node's
//! status, and its Lease; the kernel's word of memory that ran out; the collection of images; the rotation of logs; evictions; the
//! machine's shutdown; static pods, and their images in the API; CSI drivers that register; device plugins, and who has which
//! devices; DRA drivers, and claims that were left ready; the server.
//! All end with the token given to [`run`]; containers keep running.
//!
//! What is absent: nothing here knows which CRI runtime it drives, and nothing polls, but for what tells nobody that it grows: the
//! disk, and logs.

pub mod admission;
pub mod allocations;
pub mod configuration;
pub mod credential_providers;
pub mod cri_config;
pub mod csi;
pub mod devices;
mod digest;
pub mod dns_config;
pub mod dra;
pub mod env;
mod env_file;
pub mod eviction;
pub mod files;
pub mod folder_watch;
pub mod grpc;
pub mod image_gc;
pub mod image_name;
pub mod image_records;
pub mod image_secrets;
mod log_rotation;
pub mod logs;
pub mod manager;
pub mod managers;
pub mod metrics;
pub mod mirror;
pub mod node;
pub mod observed;
mod oom;
pub mod plan;
pub mod pod_cgroup;
pub mod pod_status;
pub mod preemption;
pub mod probes;
mod references;
mod relist;
pub mod resources;
pub mod selinux;
pub mod server;
pub mod shutdown;
pub mod static_pods;
pub mod storage;
pub mod sub_path;
mod swap;
mod sysctls;
pub mod usage;
pub mod user_namespaces;
pub mod volumes;
pub mod worker;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use client::Client;
use client::events::{EventType, Recorder};
use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use configuration::KubeletConfiguration;

/// How the node is set up.
#[derive(Clone)]
pub struct Config {
    /// The node's name.
    pub node_name: String,
    /// The runtime.
    pub cri: (cri::RuntimeClient, cri::ImageClient),
    /// `D/kubelet`: the pods' volumes.
    pub root: PathBuf,
    /// `D/logs/pods`.
    pub logs: PathBuf,
    /// The node's addresses, at most one per family; at least one.
    pub node_ips: Vec<IpAddr>,
    /// Where the HTTPS server listens.
    pub listen: SocketAddr,
    /// The server's certificate.
    pub certificate: Arc<server::ServingCertificate>,
    /// Who signs the certificates of those who may ask, PEM.
    pub client_ca_pem: String,
    /// Cluster DNS servers, as pods see them.
    pub cluster_dns: Vec<String>,
    /// For example `cluster.local`.
    pub cluster_domain: String,
    /// The pods' address range, where it is known already.
    pub pod_cidr: Option<String>,
    /// The cgroup above all pods, for example `/navarch-0123abcd`.
    pub cgroup_parent: String,
    /// More labels with which the Node is made.
    pub labels: BTreeMap<String, String>,
    /// Reported as `kubeletVersion`.
    pub version: String,
    /// What Kubernetes' own file says.
    pub settings: KubeletConfiguration,
    /// Options of the command line, secrets aside: `/flagz` shows them.
    pub flags: BTreeMap<String, String>,
    /// Where the kernel shows the machine ([`managers::machine::SYSTEM`]).
    pub system: PathBuf,
    /// What volumes need of the machine.
    pub host: storage::host::Host,
    /// Who says that the machine goes down.
    pub logind: shutdown::logind::Place,
    /// Programs that give credentials for images.
    pub credential_providers: Option<credential_providers::Place>,
}

/// Why the kubelet does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder cannot be made.
    #[error("{path}")]
    Folder {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Kubernetes' own file.
    #[error(transparent)]
    Configuration(#[from] configuration::ConfigurationError),
    /// Programs that give credentials for images cannot be used.
    #[error(transparent)]
    CredentialProviders(#[from] credential_providers::ProviderError),
    /// The node's subordinate ids cannot be given to pods.
    #[error("kubelet mappings: {0}")]
    UserIds(String),
    /// Processors and memory cannot be given away as they are to be.
    #[error("{0}")]
    Resources(String),
    /// The node cannot be registered.
    #[error("the node cannot be registered")]
    Register(#[source] client::Error),
    /// The HTTPS server.
    #[error("the kubelet's server on {address}")]
    Server {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

const SWAP_IS_ON: &str =
    "running with swap on is not supported, please disable swap or set failSwapOn to false";

/// What the runtime is; none when the kubelet is to stop before it answers.
async fn version(
    runtime: &mut cri::RuntimeClient,
    stop: &CancellationToken,
) -> Option<cri::v1::VersionResponse> {
    let mut backoff =
        client::queue::Backoff::new(std::time::Duration::from_millis(100), std::time::Duration::from_secs(5));
    let mut told = false;
    loop {
        let error = match runtime.version(cri::v1::VersionRequest::default()).await {
            Ok(answer) => return Some(answer.into_inner()),
            Err(error) => error,
        };
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(error = error.message(), "waiting for the container runtime");
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(backoff.next()) => {}
        }
    }
}

/// Sizes of huge pages that containers are kept from that ask for none. Where the node has none there is nothing to keep.
fn huge_pages(capacity: &node::Capacity) -> Vec<String> {
    let there = capacity.pages.iter().filter(|(_, bytes)| **bytes > 0 && pod_cgroup::limits_huge_pages());
    there.filter_map(|(name, _)| resources::page_size(name)).collect()
}

/// Holds groups of the node's own programs within what is kept back for them; `tell` is how that is told.
fn hold_reserved(
    settings: &configuration::KubeletConfiguration,
    cgroups: &pod_cgroup::PodCgroups,
    tell: impl Fn(EventType, &str, String),
) -> Result<(), Error> {
    for what in settings.enforcements() {
        let held = cgroups.hold(&what);
        let text = what.event(&held);
        if held.is_err() {
            tell(EventType::Warning, "FailedNodeAllocatableEnforcement", text.clone());
            return Err(Error::Resources(text));
        }
        tell(EventType::Normal, "NodeAllocatableEnforced", text);
    }
    Ok(())
}

/// Runs the node until `stop`. Containers keep running; the next start adopts them.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> Result<(), Error> {
    let stop = stop.child_token();
    let files = config.settings.static_pod_path.clone();
    for path in [&config.root, &config.logs].into_iter().chain(&files) {
        std::fs::create_dir_all(path).map_err(|source| Error::Folder { path: path.clone(), source })?;
    }
    let credential_providers =
        credential_providers::Providers::load(client.clone(), config.credential_providers.as_ref())?;
    let (mut runtime, images) = config.cri.clone();
    let Some(version) = version(&mut runtime, &stop).await else { return Ok(()) };
    if config.settings.fail_swap_on
        && swap::is_on(&std::fs::read_to_string("/proc/swaps").unwrap_or_default())
    {
        return Err(Error::Resources(SWAP_IS_ON.to_owned()));
    }
    let capacity = node::Capacity::read(&config.root, &config.settings, &config.system);
    let machine = Arc::new(managers::machine::Machine::read(&config.system, capacity.memory));
    let managers = Arc::new(
        managers::Managers::open(&config.root, machine, &config.settings).map_err(Error::Resources)?,
    );
    let allocatable = capacity.allocatable(&config.settings);
    let may_have = |name: &str| allocatable.get(name).copied().unwrap_or(0);
    let ids = config.settings.user_namespaces.ids_per_pod;
    let ids = user_namespaces::Ids::of_node(ids, config.settings.max_pods).map_err(Error::UserIds)?;
    let cgroups = pod_cgroup::PodCgroups::new(&config.cgroup_parent, config.settings.pod_pids_limit);
    let recorder = Recorder::new(client.clone(), "kubelet", &config.node_name);
    let named = format!("metadata.name={}", config.node_name);
    let this_node_cache = client.caches().of_selected::<Node>(&named);
    let devices = Arc::new(devices::Devices::open(&config.root));
    let drivers = dra::drivers::Drivers::new(client.clone(), config.node_name.clone());
    let claims = dra::ResourceClaims::open(client.clone(), &config.root, drivers.clone());
    let claims = Arc::new(claims.map_err(Error::Resources)?);
    let plugins = (devices.clone(), drivers.clone());
    let registry = csi::Registry::new(client.clone(), config.node_name.clone(), &config.root, plugins);
    let storage = storage::Storage::new(
        (client.clone(), recorder.clone()),
        config.node_name.clone(),
        config.root.clone(),
        config.host.clone(),
        registry.clone(),
        this_node_cache.clone(),
    );
    let records = config.root.join("image_manager");
    let records = image_records::ImageRecords::open(records, config.settings.verification_policy()?);
    let records = Arc::new(records);
    records.settle(&mut images.clone()).await;
    let shared = Arc::new(manager::Shared {
        client: client.clone(),
        cri: runtime.clone(),
        images,
        recorder: recorder.clone(),
        references: references::References::new(client.clone()),
        services: client.caches().services(),
        settings: cri_config::NodeSettings {
            logs: config.logs.clone(),
            cluster_dns: config.cluster_dns.clone(),
            cluster_domain: config.cluster_domain.clone(),
            no_resolver: dns_config::nobody(config.settings.resolv_conf.as_deref(), &config.node_ips),
            cgroup_parent: config.cgroup_parent.clone(),
            numbers: resources::Node {
                memory: i64::try_from(capacity.memory).unwrap_or(i64::MAX),
                v2: cgroups.is_v2(),
                cpu_quota: config.settings.cpu_cfs_quota,
                oom_group: !config.settings.single_process_oom_kill.unwrap_or(!cgroups.is_v2()),
                swap: swap::of_containers(&config.settings.memory_swap.swap_behavior, cgroups.is_v2()),
                pages: huge_pages(&capacity),
            },
            seccomp_profiles: config.root.join("seccomp"),
            seccomp_default: config.settings.seccomp_default,
        },
        resolv_conf: dns_config::file(config.settings.resolv_conf.as_deref()),
        root: config.root.clone(),
        host_ips: config.node_ips.iter().map(IpAddr::to_string).collect(),
        image_records: records.clone(),
        credential_providers,
        began: jiff::Timestamp::now(),
        runtime_name: version.runtime_name.clone(),
        pulls: tokio::sync::Semaphore::new(config.settings.image_pulls() as usize),
        longest_backoff: config.settings.longest_backoff()?,
        allocatable: ["cpu", "memory", "ephemeral-storage"].map(may_have),
        allocations: allocations::Allocations::new(["cpu", "memory"].map(may_have)),
        cgroups: cgroups.clone(),
        storage: storage.clone(),
        answering: watch::Sender::new(true),
        goes_down: watch::Sender::new(false),
        devices: devices.clone(),
        claims: claims.clone(),
        managers: managers.clone(),
        pin_again: config.settings.reconcile_period()?,
        measure_again: config.settings.volume_stats_period()?,
        users: user_namespaces::UserNamespaces::open(config.root.join("pods"), ids),
    });
    let answering = shared.answering.subscribe();
    let goes_down = shared.goes_down.clone();
    // without that the whole node is theirs; their share against the node's own programs is said in any case
    let settings = &config.settings;
    let reserved = |name: &str| if settings.enforces_allocatable() { settings.reserved(name) } else { 0 };
    let pids = usage::most_pids().map(|most| i64::try_from(most).unwrap_or(i64::MAX));
    cgroups.limit_all(
        may_have("cpu").saturating_add(settings.reserved("cpu") - reserved("cpu")),
        shared.settings.numbers.memory.saturating_sub(reserved("memory")).max(0),
        pids.map(|most| most.saturating_sub(reserved("pid")).max(0)),
    );
    let (pressure, seen_pressure) = watch::channel(eviction::Pressure::new());
    let entrance = manager::Entrance {
        name: config.node_name.clone(),
        allocatable,
        features: node::features(&config.settings),
        sysctls: config.settings.allowed_unsafe_sysctls.clone(),
        node: this_node_cache.clone(),
        pressure: seen_pressure.clone(),
    };
    let manager = manager::Manager::new(shared.clone(), entrance);
    let about = server::About {
        node: config.node_name.clone(),
        version: config.version.clone(),
        root: config.root.clone(),
        settings: serde_json::to_value(&config.settings).unwrap_or_default(),
        system_logs: config.settings.enable_system_log_handler.then(|| "/var/log".into()),
        started: jiff::Timestamp::now(),
        flags: config.flags.clone(),
    };
    let ages = config.settings.review_ages()?;
    let server = server::serve(
        server::ServerConfig {
            listen: config.listen,
            certificate: config.certificate.clone(),
            client_ca_pem: config.settings.client_authorities(&config.client_ca_pem)?,
            tls: config.settings.tls_options()?,
            rules: config.settings.server_rules()?,
        },
        manager.clone(),
        (runtime, config.cri.1.clone()),
        (Arc::new(server::access::Reviews::new(client.clone(), config.node_name.clone(), ages)), about),
        stop.clone(),
    );
    let name = format!("{}://{}", version.runtime_name, version.runtime_version);
    let watched = node::Watched {
        pressure: seen_pressure,
        answering,
        goes_down: goes_down.subscribe(),
        devices: devices.changed(),
        node: this_node_cache,
    };
    let mut agent = node::NodeAgent::new(
        client.clone(),
        config.clone(),
        (capacity, name),
        watched,
        (storage, devices.clone()),
        recorder.clone(),
    );
    let this_node = ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(config.node_name.clone()),
        uid: Some(config.node_name.clone()),
        ..ObjectReference::default()
    };
    // a node that cannot be as it is to be gets no pods
    hold_reserved(&config.settings, &cgroups, |kind, reason, text| {
        recorder.event(&this_node, kind, reason, text)
    })?;
    let signs = config.settings.signs()?;
    let registered = CancellationToken::new();
    let (about, tell) = (this_node.clone(), recorder.clone());
    let node = async {
        let mut backoff = client::queue::Backoff::new(
            std::time::Duration::from_millis(100),
            std::time::Duration::from_secs(10),
        );
        while let Err(error) = agent.register().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "node not registered yet");
            tokio::select! {
                () = stop.cancelled() => return Err(Error::Register(error)),
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
        registered.cancel();
        tell.event(&about, EventType::Normal, "Starting", "Starting kubelet.");
        let text = "Updated Node Allocatable limit across pods";
        tell.event(&about, EventType::Normal, "NodeAllocatableEnforced", text);
        agent.run(signs, stop.clone()).await;
        Ok(())
    };
    let selector = format!("spec.nodeName={}", config.node_name);
    let pods = client.caches().of_selected::<Pod>(&selector);
    let served = async {
        let served = server.await;
        // without its server the kubelet is of no use: an error ends the rest too
        stop.cancel();
        served
    };
    let health = config.settings.healthz_address()?;
    let policy = config.settings.image_policy()?;
    let collection =
        image_gc::ImageGc::new(policy, config.cri.clone(), records, recorder.clone(), this_node.clone());
    if config.settings.limits_layers() {
        tracing::warn!("eviction manager: found conflicting containerfs eviction. Ignoring.");
    }
    let bounds = (
        config.settings.thresholds()?,
        config.settings.pressure_transition()?,
        config.settings.eviction_max_pod_grace_period,
    );
    let logs = (config.settings.log_policy()?, manager.clone(), config.cri.0.clone());
    let shutdown = shutdown::Shutdown {
        manager: manager.clone(),
        recorder,
        node: this_node.clone(),
        periods: config.settings.shutdown_periods()?,
        logind: config.logind.clone(),
        root: config.root.clone(),
        goes_down,
    };
    let oom = oom::run(shutdown.recorder.clone(), this_node.clone(), stop.clone());
    let evictions = eviction::EvictionManager::new(shared, manager.clone(), this_node, bounds, pressure);
    let (file_sender, static_pods) = watch::channel(Vec::new());
    let (present, still_there) = watch::channel(None);
    let follow_files = async {
        let Some(folder) = files else { return };
        let mut source = static_pods::Source::new(folder, config.node_name.clone());
        // before the manager looks, which removes what nobody knows of
        file_sender.send_replace(source.read());
        source.follow(file_sender, stop.clone()).await;
    };
    let images =
        mirror::run(client.clone(), config.node_name.clone(), still_there, pods.clone(), stop.clone());
    let plugins = async {
        tokio::select! {
            () = stop.cancelled() => return,
            () = registered.cancelled().then(|()| drivers.begin()) => {}
        }
        registry.clone().run(stop.clone()).await;
    };
    let sources = manager::Sources { pods, static_pods, present, registered: registered.clone() };
    let (served, _, _, told, ..) = tokio::join!(
        served,
        follow_files,
        manager.clone().run(sources, stop.clone()),
        node,
        collection.run(stop.clone()),
        evictions.run(stop.clone()),
        oom,
        log_rotation::run(logs.0, logs.1, logs.2, stop.clone()),
        shutdown.run(stop.clone()),
        images,
        plugins,
        drivers.run(stop.clone()),
        registry.clone().follow_limits(client.caches().of(), stop.clone()),
        server::health::serve(health, stop.clone()),
        devices::registration::run(devices.clone(), stop.clone()),
        devices::pod_resources::run((devices, managers, claims), manager.clone(), &config.root, stop.clone()),
    );
    served.map_err(|source| Error::Server { address: config.listen, source })?;
    told
}
