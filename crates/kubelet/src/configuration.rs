//! `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1): Kubernetes' own file, as far as this kubelet has what it
//! sets. A field it does not know is an error: a limit that is written down must hold.
//!
//! - [`allocatable`]: what is kept back of the node.
//! - [`eviction`]: when pods are ended.
//! - [`images`]: how images are pulled, and when they are removed.
//! - [`read`]: the files, and what stands for the default in them.
//! - [`server`]: where the kubelet is reached, and by whom.

mod allocatable;
mod eviction;
mod images;
mod read;
mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use api::quantity::Quantity;
use serde::{Deserialize, Serialize};

use crate::eviction::threshold::Signal;
use crate::managers::options;
use crate::server::settings;
use crate::shutdown::plan::{self, Period};
pub use allocatable::Enforcement;

/// The file's content, with the reference's defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubeletConfiguration {
    api_version: String,
    kind: String,
    /// The folder of static pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub static_pod_path: Option<PathBuf>,
    /// Another container runtime than the one in this program, `unix://` and its socket; empty for that one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container_runtime_endpoint: String,
    /// The node's resolver configuration, for pods that use it ([`crate::dns_config::file`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolv_conf: Option<PathBuf>,
    /// Most pods of the node.
    pub max_pods: u64,
    /// Kept back for Kubernetes' own parts, by resource.
    pub kube_reserved: BTreeMap<String, String>,
    /// Kept back for the rest of the machine, by resource.
    pub system_reserved: BTreeMap<String, String>,
    /// `pods`: all pods together stay within what is allocatable; `none`: they don't. `kube-reserved` and `system-reserved`:
    /// the groups below stay within what is kept back for them, or (`-compressible`) take no more of the processors from others.
    pub enforce_node_allocatable: Vec<String>,
    /// The control group of Kubernetes' own parts.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kube_reserved_cgroup: String,
    /// That of the rest of the machine.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub system_reserved_cgroup: String,
    /// Most processes and threads of a pod; -1 for no limit.
    pub pod_pids_limit: i64,
    /// Thresholds by signal that end pods at once.
    pub eviction_hard: BTreeMap<String, String>,
    /// Thresholds by signal that end pods after their grace period.
    pub eviction_soft: BTreeMap<String, String>,
    /// So long must a soft threshold have been passed.
    pub eviction_soft_grace_period: BTreeMap<String, String>,
    /// What is freed beyond the threshold, by signal.
    pub eviction_minimum_reclaim: BTreeMap<String, String>,
    /// A pressure that is gone is reported for so long.
    pub eviction_pressure_transition_period: String,
    /// Most seconds that a pod has to end after a soft threshold.
    pub eviction_max_pod_grace_period: i64,
    /// Percent of the disk in use at which images are removed.
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: u64,
    /// Percent of the disk in use at which that ends.
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: u64,
    /// Images are kept at least so long.
    #[serde(rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: String,
    /// An image that no container uses is removed after so long; nothing or zero: only when the disk is full.
    #[serde(rename = "imageMaximumGCAge", skip_serializing_if = "Option::is_none")]
    pub image_maximum_gc_age: Option<String>,
    /// Images that are pulled at once.
    pub max_parallel_image_pulls: u32,
    /// One image after the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serialize_image_pulls: Option<bool>,
    /// A container's log is put aside when it is so large.
    pub container_log_max_size: String,
    /// Most files of a container's log.
    pub container_log_max_files: usize,
    /// Logs that are put aside at once.
    pub container_log_max_workers: usize,
    /// Between two looks at logs.
    pub container_log_monitor_interval: String,
    /// Restarts of containers.
    pub crash_loop_back_off: CrashLoopBackOff,
    /// Limits of processor time hold.
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: bool,
    /// A node with swap is refused.
    pub fail_swap_on: bool,
    /// What containers get of the node's swap.
    pub memory_swap: MemorySwap,
    /// When memory is short, one process of a container ends, not all of them; by default all, where there are control
    /// groups of version 2.
    #[serde(rename = "singleProcessOOMKill", skip_serializing_if = "Option::is_none")]
    pub single_process_oom_kill: Option<bool>,
    /// Sysctls that pods may set besides those that harm nobody; `*` at the end for all that begin so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// The kubelet makes the Node.
    pub register_node: bool,
    /// Between two looks at how the node is.
    pub node_status_update_frequency: String,
    /// Between two reports of a node that did not change.
    pub node_status_report_frequency: String,
    /// So many seconds after its last sign the node counts as lost; it gives four in that time.
    pub node_lease_duration_seconds: i32,
    /// Taints that the Node is made with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub register_with_taints: Vec<k8s_openapi::api::core::v1::Taint>,
    /// Which images pods must prove to have credentials for.
    pub image_pull_credentials_verification_policy: String,
    /// Images that need no proof under the policy `NeverVerifyAllowlistedImages`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub preloaded_images_verification_allowlist: Vec<String>,
    /// Pods without a seccomp profile get the runtime's own.
    pub seccomp_default: bool,
    /// `none`, or `static`: containers may have processors for themselves.
    pub cpu_manager_policy: String,
    /// How the static policy chooses processors.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cpu_manager_policy_options: BTreeMap<String, String>,
    /// A container that could not be told its processors is told again after this.
    pub cpu_manager_reconcile_period: String,
    /// Processors that are not given away, by number; they count in the place of the processors reserved above.
    #[serde(rename = "reservedSystemCPUs", skip_serializing_if = "String::is_empty")]
    pub reserved_system_cpus: String,
    /// `None`, or `Static`: containers may have memory of NUMA nodes for themselves.
    pub memory_manager_policy: String,
    /// What is kept back of the nodes' memory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reserved_memory: Vec<options::MemoryReservation>,
    /// `none`, `best-effort`, `restricted` or `single-numa-node`.
    pub topology_manager_policy: String,
    /// `container` or `pod`.
    pub topology_manager_scope: String,
    /// How nodes are chosen.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub topology_manager_policy_options: BTreeMap<String, String>,
    /// Gates of those options.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub feature_gates: BTreeMap<String, bool>,
    /// So long what was measured of volumes counts; less than nothing: they are not measured.
    pub volume_stats_agg_period: String,
    /// Port of the plain `/healthz`; 0 for none.
    pub healthz_port: u16,
    /// Where that is served.
    pub healthz_bind_address: String,
    /// `/logs/` shows the node's log files.
    pub enable_system_log_handler: bool,
    /// The address on which the server listens.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// The port of a server without authentication; there is none.
    pub read_only_port: u16,
    /// The server's certificate, chain included, PEM; one of the cluster's authority where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Cipher suites of TLS 1.2 that it speaks; empty for all it has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls_cipher_suites: Vec<String>,
    /// The oldest version of TLS that it speaks.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tls_min_version: String,
    /// The certificate with which the kubelet asks the API server is renewed: always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotate_certificates: Option<bool>,
    /// The server's certificate comes from the cluster: always, but for `tls_cert_file`.
    #[serde(rename = "serverTLSBootstrap", skip_serializing_if = "Option::is_none")]
    pub server_tls_bootstrap: Option<bool>,
    /// Who may connect.
    pub authentication: settings::Authentication,
    /// Who may ask what.
    pub authorization: settings::Authorization,
    /// As in the reference, it has no effect any more.
    pub streaming_connection_idle_timeout: String,
    /// Commands, logs and pages for people are served.
    pub enable_debugging_handlers: bool,
    /// So long pods have when the node goes down, all together; 0 for none.
    pub shutdown_grace_period: String,
    /// The last part of that, for critical pods.
    pub shutdown_grace_period_critical_pods: String,
    /// The same by the pods' priorities, in the place of both.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shutdown_grace_period_by_pod_priority: Vec<Period>,
    /// Pods with users of their own.
    pub user_namespaces: UserNamespaces,
    /// With so many bytes free no image is removed, whatever part of the disk that is.
    #[serde(skip)]
    spare_disk: u64,
}

/// `userNamespaces`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct UserNamespaces {
    /// Users and groups of each pod.
    pub ids_per_pod: u32,
}

impl Default for UserNamespaces {
    fn default() -> Self {
        Self { ids_per_pod: crate::user_namespaces::UNIT }
    }
}

/// `crashLoopBackOff`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CrashLoopBackOff {
    /// Longest delay between restarts of a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_container_restart_period: Option<String>,
}

/// `memorySwap`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MemorySwap {
    /// `NoSwap`, which is meant by nothing, or `LimitedSwap`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub swap_behavior: String,
}

impl Default for KubeletConfiguration {
    fn default() -> Self {
        let hard = [
            ("imagefs.available", "15%"),
            ("imagefs.inodesFree", "5%"),
            ("memory.available", "100Mi"),
            ("nodefs.available", "10%"),
            ("nodefs.inodesFree", "5%"),
        ];
        Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            static_pod_path: None,
            container_runtime_endpoint: String::new(),
            resolv_conf: None,
            max_pods: 110,
            kube_reserved: BTreeMap::new(),
            system_reserved: BTreeMap::new(),
            enforce_node_allocatable: vec!["pods".to_owned()],
            kube_reserved_cgroup: String::new(),
            system_reserved_cgroup: String::new(),
            pod_pids_limit: -1,
            eviction_hard: hard.map(|(signal, value)| (signal.to_owned(), value.to_owned())).into(),
            eviction_soft: BTreeMap::new(),
            eviction_soft_grace_period: BTreeMap::new(),
            eviction_minimum_reclaim: BTreeMap::new(),
            eviction_pressure_transition_period: "5m0s".to_owned(),
            eviction_max_pod_grace_period: 0,
            image_gc_high_threshold_percent: 85,
            image_gc_low_threshold_percent: 80,
            image_minimum_gc_age: "2m0s".to_owned(),
            image_maximum_gc_age: None,
            max_parallel_image_pulls: 4,
            serialize_image_pulls: None,
            container_log_max_size: "10Mi".to_owned(),
            container_log_max_files: 5,
            container_log_max_workers: 1,
            container_log_monitor_interval: "10s".to_owned(),
            crash_loop_back_off: CrashLoopBackOff::default(),
            cpu_cfs_quota: true,
            fail_swap_on: true,
            memory_swap: MemorySwap::default(),
            single_process_oom_kill: None,
            allowed_unsafe_sysctls: Vec::new(),
            register_node: true,
            node_status_update_frequency: "10s".to_owned(),
            node_status_report_frequency: "5m0s".to_owned(),
            node_lease_duration_seconds: 40,
            register_with_taints: Vec::new(),
            image_pull_credentials_verification_policy: "NeverVerifyPreloadedImages".to_owned(),
            preloaded_images_verification_allowlist: Vec::new(),
            seccomp_default: false,
            cpu_manager_policy: "none".to_owned(),
            cpu_manager_policy_options: BTreeMap::new(),
            cpu_manager_reconcile_period: "10s".to_owned(),
            reserved_system_cpus: String::new(),
            memory_manager_policy: "None".to_owned(),
            reserved_memory: Vec::new(),
            topology_manager_policy: "none".to_owned(),
            topology_manager_scope: "container".to_owned(),
            topology_manager_policy_options: BTreeMap::new(),
            feature_gates: BTreeMap::new(),
            volume_stats_agg_period: "1m0s".to_owned(),
            healthz_port: 10248,
            healthz_bind_address: "127.0.0.1".to_owned(),
            enable_system_log_handler: true,
            address: "0.0.0.0".to_owned(),
            port: 10250,
            read_only_port: 0,
            tls_cert_file: None,
            tls_private_key_file: None,
            tls_cipher_suites: Vec::new(),
            tls_min_version: String::new(),
            rotate_certificates: None,
            server_tls_bootstrap: None,
            authentication: settings::Authentication::default(),
            authorization: settings::Authorization::default(),
            streaming_connection_idle_timeout: "4h0m0s".to_owned(),
            enable_debugging_handlers: true,
            shutdown_grace_period: "0s".to_owned(),
            shutdown_grace_period_critical_pods: "0s".to_owned(),
            shutdown_grace_period_by_pod_priority: Vec::new(),
            user_namespaces: UserNamespaces::default(),
            spare_disk: 0,
        }
    }
}

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The file cannot be read.
    #[error("kubelet configuration {path}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("kubelet configuration: {0}")]
    Wrong(String),
}

fn wrong(why: impl Into<String>) -> ConfigurationError {
    ConfigurationError::Wrong(why.into())
}

impl KubeletConfiguration {
    /// Where there is no file: as the reference, but a disk is full when little is left of it, not when a tenth is, and swap
    /// is no reason not to start. A developer's machine has swap, and a tenth of its disk is many gigabytes, often all there is.
    pub fn without_file() -> Self {
        let mut this = Self { spare_disk: 4 << 30, fail_swap_on: false, ..Self::default() };
        for signal in [Signal::NodeFs, Signal::ImageFs] {
            this.eviction_hard.insert(signal.name().to_owned(), "1Gi".to_owned());
        }
        this
    }

    fn check(&self) -> Result<(), ConfigurationError> {
        self.check_evictions()?;
        self.check_images()?;
        self.runtime_socket()?;
        self.reconcile_period()?;
        self.volume_stats_period()?;
        self.healthz_address()?;
        self.shutdown_periods()?;
        options::check(self).map_err(wrong)?;
        settings::check(self).map_err(wrong)?;
        let (ids, unit) = (self.user_namespaces.ids_per_pod, crate::user_namespaces::UNIT);
        if ids == 0 || ids % unit != 0 {
            return Err(wrong(format!(
                "invalid configuration: userNamespaces.idsPerPod must be a positive multiple of {unit}, got {ids}"
            )));
        }
        self.longest_backoff()?;
        let logs = self.log_policy()?;
        if logs.size == 0 || logs.files < 2 || logs.workers < 1 || logs.interval < Duration::from_secs(3) {
            return Err(wrong(
                "containerLogMaxSize must be positive, containerLogMaxFiles at least 2, containerLogMaxWorkers at least 1, and \
                 containerLogMonitorInterval at least 3s",
            ));
        }
        self.signs()?;
        if !matches!(self.memory_swap.swap_behavior.as_str(), "" | "NoSwap" | "LimitedSwap") {
            return Err(wrong(format!(
                "memorySwap.swapBehavior {:?} must be one of: \"\", \"LimitedSwap\" or \"NoSwap\"",
                self.memory_swap.swap_behavior
            )));
        }
        crate::sysctls::check(&self.allowed_unsafe_sysctls).map_err(wrong)?;
        self.check_taints()?;
        self.check_allocatable()
    }

    fn check_taints(&self) -> Result<(), ConfigurationError> {
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        for taint in &self.register_with_taints {
            let value = taint.value.as_deref().unwrap_or_default();
            let why = [api::names::qualified_name(&taint.key), api::names::label_value(value)].concat();
            if let Some(why) = why.first() {
                return Err(wrong(format!("registerWithTaints: invalid taint {:?}: {why}", taint.key)));
            }
            if !effects.contains(&taint.effect.as_str()) {
                return Err(wrong(format!("registerWithTaints: invalid taint effect: {:?}", taint.effect)));
            }
            if taint.time_added.is_some() {
                return Err(wrong("invalid configuration: taint.TimeAdded is not nil"));
            }
        }
        Ok(())
    }

    /// The socket of another container runtime.
    pub fn runtime_socket(&self) -> Result<Option<PathBuf>, ConfigurationError> {
        let text = self.container_runtime_endpoint.as_str();
        if text.is_empty() {
            return Ok(None);
        }
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Some(path.into())),
            _ => {
                Err(wrong(format!("containerRuntimeEndpoint {text:?} must be unix:// and an absolute path")))
            }
        }
    }

    /// A container that could not be told its processors is told again after this.
    pub fn reconcile_period(&self) -> Result<Duration, ConfigurationError> {
        duration("cpuManagerReconcilePeriod", &self.cpu_manager_reconcile_period)
    }

    /// So long what was measured of volumes counts; nothing where they are not measured.
    pub fn volume_stats_period(&self) -> Result<Option<Duration>, ConfigurationError> {
        let text = &self.volume_stats_agg_period;
        let nanos = api::duration::parse(text)
            .map_err(|_| wrong(format!("volumeStatsAggPeriod: invalid duration {text:?}")))?;
        Ok(u64::try_from(nanos).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos))
    }

    /// When logs of containers are put aside.
    pub fn log_policy(&self) -> Result<crate::log_rotation::Policy, ConfigurationError> {
        let text = self.container_log_max_size.as_str();
        let size = text
            .parse::<Quantity>()
            .map_err(|error| wrong(format!("containerLogMaxSize {text:?}: {error}")))?;
        Ok(crate::log_rotation::Policy {
            size: u64::try_from(size.value()).unwrap_or(0),
            files: self.container_log_max_files,
            workers: self.container_log_max_workers,
            interval: duration("containerLogMonitorInterval", &self.container_log_monitor_interval)?,
        })
    }

    /// How often the node gives signs of life.
    pub fn signs(&self) -> Result<crate::node::Signs, ConfigurationError> {
        let seconds = u64::try_from(self.node_lease_duration_seconds).unwrap_or(0);
        if seconds == 0 {
            return Err(wrong("nodeLeaseDurationSeconds must be greater than 0"));
        }
        let positive = |field: &str, text: &str| {
            let found = duration(field, text)?;
            if found.is_zero() { Err(wrong(format!("{field} must be greater than 0"))) } else { Ok(found) }
        };
        Ok(crate::node::Signs {
            update: positive("nodeStatusUpdateFrequency", &self.node_status_update_frequency)?,
            report: positive("nodeStatusReportFrequency", &self.node_status_report_frequency)?,
            lease: Duration::from_secs(seconds) / 4,
        })
    }

    /// Longest delay between restarts of a container.
    pub fn longest_backoff(&self) -> Result<Duration, ConfigurationError> {
        let Some(text) = &self.crash_loop_back_off.max_container_restart_period else {
            return Ok(Duration::from_secs(300));
        };
        let found = duration("crashLoopBackOff.maxContainerRestartPeriod", text)?;
        if !(1..=300).contains(&found.as_secs()) || found > Duration::from_secs(300) {
            return Err(wrong("crashLoopBackOff.maxContainerRestartPeriod must be between 1s and 300s"));
        }
        Ok(found)
    }

    /// How long pods have when the node goes down, by priority; none: it goes down at once.
    pub fn shutdown_periods(&self) -> Result<Vec<Period>, ConfigurationError> {
        let (whole, critical) = (&self.shutdown_grace_period, &self.shutdown_grace_period_critical_pods);
        plan::periods(whole, critical, &self.shutdown_grace_period_by_pod_priority).map_err(wrong)
    }
}

/// A duration as Go writes it: `1m30s`.
fn duration(field: &str, text: &str) -> Result<Duration, ConfigurationError> {
    api::duration::length(text).ok_or_else(|| wrong(format!("{field}: invalid duration {text:?}")))
}

#[cfg(test)]
mod tests;
