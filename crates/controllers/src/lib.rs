//! Control loops, one file each.
//!
//! Every controller is level-triggered: changes only say which key to look at; what to do follows from the caches
//! alone. Decisions are pure functions (`plan`), carried out separately. Every pass may be cut off between any two of its
//! writes: names of created objects are functions of their cause where that is possible, and writes carry the
//! revision or uid they were decided for.
//!
//! Tasks: per controller one task per watched kind (feeds the queue), and a bounded number of workers. All end with
//! the `stop` token given to [`run`]. No controller imports another; they meet in the API.

mod attach_detach;
mod autoscaler;
mod bootstrap_signer;
mod bootstrap_tokens;
mod certificates;
mod claims;
mod clock;
mod clusterrole_aggregation;
mod cronjob;
mod daemonset;
mod deployment;
mod device_claims;
mod device_taint_eviction;
mod discovery;
mod disruption;
mod endpoints;
mod endpointslice;
mod endpointslice_mirroring;
mod ephemeral_volume;
mod expand;
mod finalizers;
mod garbage_collector;
mod int_or_percent;
mod ip_range;
mod job;
mod load_balancer_pool;
mod metrics;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod ownership;
mod pending;
mod pod_claims;
mod pod_control;
mod pod_gc;
mod pod_secrets;
mod podgroup_protection;
mod pods;
mod pv_binder;
mod pv_protection;
mod pvc_protection;
mod replicaset;
mod resource_claim;
mod resource_quota;
mod revisions;
mod root_ca;
mod runner;
mod scales;
mod selector_text;
mod service_cidr;
mod service_pods;
mod serviceaccount;
mod serviceaccount_secrets;
mod serviceaccount_token_cleaner;
mod serviceaccount_tokens;
mod statefulset;
mod storage_version_migration;
mod taint_eviction;
mod taints;
mod template;
mod token_cleaner;
mod trigger_times;
mod ttl;
mod ttl_after_finished;
mod vac_protection;

use std::sync::Arc;
use std::time::Duration;

use client::Client;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use clock::{Clock, SystemClock};
pub use metrics::Metrics;

/// The authority that signs certificates for the cluster, PEM.
#[derive(Clone)]
pub struct SigningKey {
    /// Its certificate.
    pub cert_pem: String,
    /// Its private key.
    pub key_pem: String,
}

/// Signs the token that a Secret holds: namespace, account, the account's uid, Secret; `None` when signing fails.
pub type LegacyTokens = Arc<dyn Fn([&str; 4]) -> Option<String> + Send + Sync>;

/// What the controllers need to know beyond the API.
#[derive(Clone)]
pub struct Config {
    /// PEM of the certificates that verify the API server; published to every namespace.
    pub root_ca: String,
    /// Signs approved certificate requests of the built-in signers; `None`: others sign.
    pub signing_key: Option<SigningKey>,
    /// The kubeconfig, without a credential, that `kube-public/cluster-info` is made with where it is missing.
    pub cluster_info: Option<String>,
    /// The range pods' addresses come from, for example `10.244.0.0/16`, or one of each family with a comma between them;
    /// `None`: nodes bring their own.
    pub cluster_cidr: Option<String>,
    /// The addresses that services of type LoadBalancer are given: CIDRs with commas between them; `None`: others give them.
    pub load_balancer_pool: Option<String>,
    /// Prefix lengths of one node's part of it, IPv4 and IPv6 (24 and 64 upstream).
    pub node_cidr_masks: (u8, u8),
    /// How long a node may be silent before it counts as lost (upstream 50 s since v1.32, 40 s before).
    pub node_monitor_grace_period: Duration,
    /// Signs the tokens of Secrets; `None`: such Secrets stay as they are.
    pub legacy_tokens: Option<LegacyTokens>,
    /// How long a token that an old cluster made by itself may be unused before it is refused, and then until it goes
    /// (upstream a year).
    pub legacy_token_clean_up_period: Duration,
    /// Whether the API has groups of pods (gate `GenericWorkload`).
    pub pod_groups: bool,
    /// Whether the API has migrations to new storage versions (gate `StorageVersionMigrator`).
    pub storage_migrations: bool,
    /// Whether the API has rules of device taints (gate `DRADeviceTaintRules`).
    pub device_taint_rules: bool,
    /// How many pods that ended are kept, of the whole cluster (upstream 12500); 0: all.
    pub terminated_pod_threshold: usize,
    /// The time; injected so that tests can move it.
    pub clock: Arc<dyn Clock>,
    /// Counters of every controller.
    pub metrics: Arc<Metrics>,
    /// The client whose identity a controller writes with; reads go through the shared caches of the one given to [`run`].
    pub client_for: Option<Arc<dyn Fn(&str) -> Client + Send + Sync>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root_ca: String::new(),
            signing_key: None,
            cluster_info: None,
            cluster_cidr: None,
            load_balancer_pool: None,
            node_cidr_masks: (24, 64),
            node_monitor_grace_period: Duration::from_secs(50),
            legacy_tokens: None,
            legacy_token_clean_up_period: Duration::from_hours(8760),
            pod_groups: false,
            storage_migrations: false,
            device_taint_rules: false,
            terminated_pod_threshold: 12_500,
            clock: Arc::new(SystemClock),
            metrics: Arc::default(),
            client_for: None,
        }
    }
}

/// Why the controllers could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster CIDR cannot be divided into node ranges.
    #[error("cluster CIDR {0:?} cannot be divided into /{1} (IPv4) or /{2} (IPv6) ranges")]
    ClusterCidr(String, u8, u8),
    /// The pool of load balancer addresses cannot be read.
    #[error("load balancer pool: {0:?} is not a CIDR")]
    LoadBalancerPool(String),
    /// A controller's task panicked: a defect.
    #[error("a controller stopped")]
    Stopped(#[source] tokio::task::JoinError),
}

/// Runs all controllers until `stop`; must be called within a tokio runtime.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> Result<(), Error> {
    let ranges = match &config.cluster_cidr {
        None => None,
        Some(cidr) => Some(node_ipam::Ranges::parse(cidr, config.node_cidr_masks).ok_or_else(|| {
            let (v4, v6) = config.node_cidr_masks;
            Error::ClusterCidr(cidr.clone(), v4, v6)
        })?),
    };
    let pool = config.load_balancer_pool.as_deref().map(load_balancer_pool::parse).transpose();
    let pool = pool.map_err(Error::LoadBalancerPool)?;
    // Cancelled also when one of them fails, so that none is left running alone.
    let stop = stop.child_token();
    let guard = stop.clone().drop_guard();
    let context = |name: &'static str| runner::Context::new(name, &client, &config, stop.clone());
    let mut tasks = JoinSet::new();

    tasks.spawn(deployment::run(context("deployment-controller")));
    tasks.spawn(replicaset::run::<ReplicaSet>(context("replicaset-controller")));
    tasks.spawn(replicaset::run::<ReplicationController>(context("replication-controller")));
    tasks.spawn(statefulset::run(context("statefulset-controller")));
    tasks.spawn(daemonset::run(context("daemonset-controller")));
    tasks.spawn(namespace::run(context("namespace-controller")));
    tasks.spawn(serviceaccount::run(context("service-account-controller")));
    if let Some(tokens) = config.legacy_tokens.clone() {
        tasks.spawn(serviceaccount_tokens::run(context("tokens-controller"), config.root_ca.clone(), tokens));
    }
    tasks.spawn(serviceaccount_token_cleaner::run(
        context("legacy-serviceaccount-token-cleaner-controller"),
        config.legacy_token_clean_up_period,
    ));
    tasks.spawn(root_ca::run(context("root-ca-cert-publisher"), config.root_ca.clone()));
    tasks.spawn(clusterrole_aggregation::run(context("clusterrole-aggregation-controller")));
    tasks.spawn(certificates::run(context("certificate-controller"), config.signing_key.clone()));
    tasks.spawn(bootstrap_signer::run(context("bootstrap-signer"), config.cluster_info.clone()));
    tasks.spawn(token_cleaner::run(context("token-cleaner")));
    tasks.spawn(service_cidr::run(context("service-cidrs-controller")));
    tasks.spawn(pv_binder::run(context("persistent-volume-binder")));
    tasks.spawn(attach_detach::run(context("attachdetach-controller")));
    tasks.spawn(expand::run(context("expand-controller")));
    tasks.spawn(pvc_protection::run(context("pvc-protection-controller")));
    tasks.spawn(pv_protection::run(context("pv-protection-controller")));
    tasks.spawn(vac_protection::run(context("volumeattributesclass-protection-controller")));
    tasks.spawn(ephemeral_volume::run(context("ephemeral-volume-controller")));
    tasks.spawn(resource_claim::run(context("resource-claim-controller")));
    tasks.spawn(resource_quota::run(context("resourcequota-controller")));
    tasks.spawn(endpointslice::run(context("endpointslice-controller")));
    tasks.spawn(endpointslice_mirroring::run(context("endpointslicemirroring-controller")));
    tasks.spawn(endpoints::run(context("endpoint-controller")));
    tasks.spawn(garbage_collector::run(context("generic-garbage-collector")));
    tasks.spawn(job::run(context("job-controller")));
    tasks.spawn(cronjob::run(context("cronjob-controller")));
    tasks.spawn(disruption::run(context("disruption-controller")));
    tasks.spawn(autoscaler::run(context("horizontal-pod-autoscaler")));
    tasks.spawn(ttl_after_finished::run(context("ttl-after-finished-controller")));
    tasks.spawn(ttl::run(context("ttl-controller")));
    tasks.spawn(node_lifecycle::run(context("node-controller"), config.node_monitor_grace_period));
    tasks.spawn(taint_eviction::run(context("taint-eviction-controller")));
    let rules = config.device_taint_rules;
    tasks.spawn(device_taint_eviction::run(context("device-taint-eviction-controller"), rules));
    tasks.spawn(pod_gc::run(context("pod-garbage-collector"), config.terminated_pod_threshold));
    if config.pod_groups {
        tasks.spawn(podgroup_protection::run(context("podgroup-protection-controller")));
    }
    if config.storage_migrations {
        tasks.spawn(storage_version_migration::run(context("storage-version-migrator-controller")));
    }
    if let Some(pool) = pool {
        tasks.spawn(load_balancer_pool::run(context("service-controller"), pool));
    }
    if let Some(ranges) = ranges {
        tasks.spawn(node_ipam::run(context("node-ipam-controller"), ranges));
    }

    while let Some(ended) = tasks.join_next().await {
        ended.map_err(Error::Stopped)?;
    }
    drop(guard);
    Ok(())
}
