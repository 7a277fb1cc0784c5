//! What the kubelet counts and times of its own work, for `/metrics`. Metrics are one set per process, and stand with their
//! names and buckets in this file; whoever does the work adds to them.
//!
//! Rule: Kubernetes documentation, "Kubernetes Metrics Reference": names, labels and words are those of v1.36.

use std::time::Duration;

use client::metrics::{Counter, Gauge, Histogram, Metric};

/// Buckets where nothing else is said.
pub(crate) const DEFAULT: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const RUNTIME: &[f64] = &[
    0.005,
    0.0125,
    0.03125,
    0.078_125,
    0.195_312_5,
    0.488_281_25,
    1.220_703_125,
    3.051_757_812_5,
    7.629_394_531_25,
    19.073_486_328_125,
    47.683_715_820_312_5,
    119.209_289_550_781_25,
    298.023_223_876_953_1,
    745.058_059_692_382_8,
];
const START: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0,
    480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
/// Doubled each time.
const ADMISSION: &[f64] =
    &[0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6, 819.2];
const CONTAINERS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0];
const STATUS: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];
const STORAGE: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];
/// Of calls that take 40 s at most, as the reference spaces them.
const DRA: &[f64] = &[
    0.1,
    0.153_412_740_463_439_1,
    0.235_354_689_365_025_24,
    0.361_064_078_764_099_46,
    0.553_918_298_061_065_1,
    0.849_781_240_983_936_3,
    1.303_672_689_737_678,
    1.999_999_999_999_999_3,
    3.068_254_809_268_781,
    4.707_093_787_300_503,
    7.221_281_575_281_985,
    11.078_365_961_221_5,
    16.995_624_819_678_717,
    26.073_453_794_753_55,
    39.999_999_999_999_97,
];
const PULL: &[f64] =
    &[1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 180.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0];

macro_rules! metrics {
    ($all:ident: $kind:ident; $($(#[$doc:meta])* $id:ident = $name:literal, $help:literal, [$($label:literal),*] $(, $bounds:ident)?;)*) => {
        $($(#[$doc])* pub static $id: $kind = $kind::new($name, $help, &[$($label),*] $(, $bounds)?);)*
        /// All of them, as they are shown.
        pub static $all: &[&dyn Metric] = &[$(&$id),*];
    };
}

metrics! { COUNTERS: Counter;
    /// Sandboxes.
    STARTED_PODS = "kubelet_started_pods_total", "[ALPHA] Cumulative number of pods started", [];
    /// Those that failed.
    STARTED_PODS_ERRORS = "kubelet_started_pods_errors_total",
        "[ALPHA] Cumulative number of errors when starting pods", [];
    /// Containers by kind.
    STARTED_CONTAINERS = "kubelet_started_containers_total",
        "[ALPHA] Cumulative number of containers started", ["container_type"];
    /// Those that failed, by the reason they wait for.
    STARTED_CONTAINERS_ERRORS = "kubelet_started_containers_errors_total",
        "[ALPHA] Cumulative number of errors when starting containers", ["code", "container_type"];
    /// Calls of the runtime.
    RUNTIME_OPERATIONS = "kubelet_runtime_operations_total",
        "[ALPHA] Cumulative number of runtime operations by operation type.", ["operation_type"];
    /// Those that were refused.
    RUNTIME_ERRORS = "kubelet_runtime_operations_errors_total",
        "[ALPHA] Cumulative number of runtime operation errors by operation type.", ["operation_type"];
    /// Sandboxes that failed, by handler.
    SANDBOX_ERRORS = "kubelet_run_podsandbox_errors_total",
        "[ALPHA] Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler.",
        ["runtime_handler"];
    /// Evictions.
    EVICTIONS = "kubelet_evictions", "[ALPHA] Cumulative number of pod evictions by eviction signal",
        ["eviction_signal"];
    /// Pods that made room for critical ones.
    PREEMPTIONS = "kubelet_preemptions", "[ALPHA] Cumulative number of pod preemptions by preemption resource",
        ["preemption_signal"];
    /// Pods that were not let in.
    REJECTIONS = "kubelet_admission_rejections_total",
        "[ALPHA] Cumulative number pod admission rejections by the Kubelet.", ["reason"];
    /// Device plugins.
    DEVICE_PLUGINS = "kubelet_device_plugin_registration_total",
        "[ALPHA] Cumulative number of device plugin registrations. Broken down by resource name.",
        ["resource_name"];
    /// Images that nobody used.
    IMAGES_REMOVED = "kubelet_image_garbage_collected_total",
        "[ALPHA] Total number of images garbage collected by the kubelet, whether through disk usage or image age.",
        ["reason"];
    /// Programs that were to give credentials for an image, and failed.
    CREDENTIAL_PROVIDER_ERRORS = "kubelet_credential_provider_plugin_errors_total",
        "[ALPHA] Number of errors from credential provider plugin", ["plugin_name"];
    /// Questions at the pod resources API.
    POD_RESOURCES = "kubelet_pod_resources_endpoint_requests_total",
        "[ALPHA] Cumulative number of requests to the PodResource endpoint. Broken down by server api version.",
        ["server_api_version"];
    /// Those about all pods.
    POD_RESOURCES_LIST = "kubelet_pod_resources_endpoint_requests_list",
        "[ALPHA] Number of requests to the PodResource List endpoint. Broken down by server api version.",
        ["server_api_version"];
    /// Those about one.
    POD_RESOURCES_GET = "kubelet_pod_resources_endpoint_requests_get",
        "[ALPHA] Number of requests to the PodResource Get endpoint. Broken down by server api version.",
        ["server_api_version"];
    /// Those that were refused.
    POD_RESOURCES_GET_ERRORS = "kubelet_pod_resources_endpoint_errors_get",
        "[ALPHA] Number of requests to the PodResource Get endpoint which returned error. Broken down by server api version.",
        ["server_api_version"];
    /// Those about what pods may have.
    POD_RESOURCES_ALLOCATABLE = "kubelet_pod_resources_endpoint_requests_get_allocatable",
        "[ALPHA] Number of requests to the PodResource GetAllocatableResources endpoint. Broken down by server api version.",
        ["server_api_version"];
    /// Sandboxes of pods with users of their own.
    STARTED_USERS = "kubelet_started_user_namespaced_pods_total",
        "[ALPHA] Cumulative number of pods with user namespaces started. This metric will only be collected on Linux.",
        [];
    /// Those that failed.
    STARTED_USERS_ERRORS = "kubelet_started_user_namespaced_pods_errors_total",
        "[ALPHA] Cumulative number of errors when starting pods with user namespaces. This metric will only be collected on Linux.",
        [];
    /// Pods that an earlier kubelet left, and nobody knows of.
    ORPHANS = "kubelet_orphaned_runtime_pods_total",
        "[ALPHA] Number of pods that have been detected in the container runtime without being already known to the pod worker. This typically indicates the kubelet was restarted while a pod was force deleted in the API or in the local configuration, which is unusual.",
        [];
    /// Hooks that asked by HTTPS what answers without.
    HOOK_FALLBACKS = "kubelet_lifecycle_handler_http_fallbacks_total",
        "[ALPHA] The number of times lifecycle handlers successfully fell back to http from https.", [];
    /// Requests to the kubelet's server.
    REQUESTS = "kubelet_http_requests_total",
        "[ALPHA] Number of the http requests received since the server started",
        ["long_running", "method", "path", "server_type"];
}

metrics! { GAUGES: Gauge;
    /// Requests to the kubelet's server that are worked on.
    INFLIGHT = "kubelet_http_inflight_requests", "[ALPHA] Number of the inflight http requests",
        ["long_running", "method", "path", "server_type"];
    /// The configuration of programs that give credentials for images, by its digest.
    CREDENTIAL_CONFIGURATION = "kubelet_credential_provider_config_info",
        "[ALPHA] Information about the last applied credential provider configuration with hash as label", ["hash"];
    /// When the node last began to go down; 0 for never.
    SHUTDOWN_START = "kubelet_graceful_shutdown_start_time_seconds",
        "[ALPHA] Last graceful shutdown start time since unix epoch in seconds", [];
    /// When its pods had ended.
    SHUTDOWN_END = "kubelet_graceful_shutdown_end_time_seconds",
        "[ALPHA] Last graceful shutdown end time since unix epoch in seconds", [];
    /// Volumes that can be mounted with a SELinux label, which their pod asks for.
    SELINUX_ADMITTED = "volume_manager_selinux_volumes_admitted_total",
        "[ALPHA] Number of volumes whose SELinux context was fine and will be mounted with mount -o context option.",
        ["access_mode", "volume_plugin"];
    /// Pods whose containers want several labels of a volume that is mounted with one.
    SELINUX_POD_ERRORS = "volume_manager_selinux_pod_context_mismatch_errors_total",
        "[ALPHA] Number of errors when a Pod defines different SELinux contexts for its containers that use the same volume. Kubelet can't start such a Pod then and it will retry, therefore value of this metric may not represent the actual nr. of Pods.",
        ["access_mode"];
    /// The same of volumes of other access modes, which are relabelled.
    SELINUX_POD_WARNINGS = "volume_manager_selinux_pod_context_mismatch_warnings_total",
        "[ALPHA] Number of errors when a Pod defines different SELinux contexts for its containers that use the same volume. They are not errors yet, but they will become real errors when SELinuxMountReadWriteOncePod feature is expanded to all volume access modes.",
        ["access_mode"];
    /// Pods that want another label of a volume than a pod that has it.
    SELINUX_VOLUME_ERRORS = "volume_manager_selinux_volume_context_mismatch_errors_total",
        "[ALPHA] Number of errors when a Pod uses a volume that is already mounted with a different SELinux context than the Pod needs. Kubelet can't start such a Pod then and it will retry, therefore value of this metric may not represent the actual nr. of Pods.",
        ["access_mode", "volume_plugin"];
    /// The same of volumes of other access modes, which are relabelled.
    SELINUX_VOLUME_WARNINGS = "volume_manager_selinux_volume_context_mismatch_warnings_total",
        "[ALPHA] Number of errors when a Pod uses a volume that is already mounted with a different SELinux context than the Pod needs. They are not errors yet, but they will become real errors when SELinuxMountReadWriteOncePod feature is expanded to all volume access modes.",
        ["access_mode", "volume_plugin"];
}

metrics! { HISTOGRAMS: Histogram;
    /// One look at a pod, and what followed.
    POD_WORKER = "kubelet_pod_worker_duration_seconds",
        "[ALPHA] Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync",
        ["operation_type"], DEFAULT;
    /// From the first sight of a pod to its running.
    POD_START = "kubelet_pod_start_duration_seconds",
        "[ALPHA] Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
        [], START;
    /// From a pod's creation to its start, without pulls and init containers.
    POD_START_OWN = "kubelet_pod_start_sli_duration_seconds",
        "[ALPHA] Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
        ["first_with_network"], START;
    /// The same with them.
    POD_START_TOTAL = "kubelet_pod_start_total_duration_seconds",
        "[ALPHA] Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
        ["first_with_network"], START;
    /// Programs that give credentials for images.
    CREDENTIAL_PROVIDER = "kubelet_credential_provider_plugin_duration",
        "[ALPHA] Duration of execution in seconds for credential provider plugin", ["plugin_name"], DEFAULT;
    /// Changes of control groups.
    CGROUPS = "kubelet_cgroup_manager_duration_seconds",
        "[ALPHA] Duration in seconds for cgroup manager operations. Broken down by method.",
        ["operation_type"], DEFAULT;
    /// From a look at the node to the pod that it ends.
    EVICTION_AGE = "kubelet_eviction_stats_age_seconds",
        "[ALPHA] Time between when stats are collected, and when pod is evicted based on those stats by eviction signal",
        ["eviction_signal"], DEFAULT;
    /// What is given to a pod that comes, in milliseconds.
    TOPOLOGY_DURATION = "kubelet_topology_manager_admission_duration_ms",
        "[ALPHA] Duration in milliseconds to serve a pod admission request.", [], ADMISSION;
    /// Containers of pods.
    CONTAINERS_PER_POD = "kubelet_containers_per_pod_count", "[ALPHA] The number of containers per pod.", [],
        CONTAINERS;
    /// From the first sight of a pod to its task.
    POD_WORKER_START = "kubelet_pod_worker_start_duration_seconds",
        "[ALPHA] Duration in seconds from kubelet seeing a pod to starting a worker.", [], DEFAULT;
    /// From a change of a pod's status until the API has it.
    STATUS_SYNC = "kubelet_pod_status_sync_duration_seconds",
        "[ALPHA] Duration in seconds to sync a pod status update. Measures time from detection of a change to pod status until the API is successfully updated for that pod, even if multiple intevening changes to pod status occur.",
        [], STATUS;
    /// Looks at a runtime that sends no events.
    RELIST = "kubelet_pleg_relist_duration_seconds",
        "[ALPHA] Duration in seconds for relisting pods in PLEG.", [], DEFAULT;
    /// From one such look to the next.
    RELIST_INTERVAL = "kubelet_pleg_relist_interval_seconds",
        "[ALPHA] Interval in seconds between relisting in PLEG.", [], DEFAULT;
    /// Calls of the runtime.
    RUNTIME_DURATION = "kubelet_runtime_operations_duration_seconds",
        "[ALPHA] Duration in seconds of runtime operations. Broken down by operation type.",
        ["operation_type"], RUNTIME;
    /// Sandboxes, by handler.
    SANDBOX = "kubelet_run_podsandbox_duration_seconds",
        "[ALPHA] Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.",
        ["runtime_handler"], DEFAULT;
    /// Devices that a plugin gave.
    DEVICE_ALLOCATION = "kubelet_device_plugin_alloc_duration_seconds",
        "[ALPHA] Duration in seconds to serve a device plugin Allocation request. Broken down by resource name.",
        ["resource_name"], DEFAULT;
    /// All claims of a pod that begins or ends.
    DRA_OPERATIONS = "dra_operations_duration_seconds",
        "[ALPHA] Latency histogram in seconds for the duration of handling all ResourceClaims referenced by a pod when the pod starts or stops. Identified by the name of the operation (PrepareResources or UnprepareResources) and separated by the success of the operation. The number of failed operations is provided through the histogram's overall count.",
        ["is_error", "operation_name"], DRA;
    /// Calls of drivers.
    DRA_CALLS = "dra_grpc_operations_duration_seconds",
        "[ALPHA] Duration in seconds of the DRA gRPC operations",
        ["driver_name", "grpc_status_code", "method_name"], DRA;
    /// Pulls of images.
    IMAGE_PULL = "kubelet_image_pull_duration_seconds", "[ALPHA] Duration in seconds to pull an image.",
        ["image_size_in_bytes"], PULL;
    /// Volumes.
    STORAGE_OPERATION = "storage_operation_duration_seconds", "[ALPHA] Storage operation duration",
        ["migrated", "operation_name", "status", "volume_plugin"], STORAGE;
    /// Requests to the kubelet's server.
    REQUEST_DURATION = "kubelet_http_requests_duration_seconds",
        "[ALPHA] Duration in seconds to serve http requests", ["long_running", "method", "path", "server_type"],
        DEFAULT;
}

/// The reference's name of a call, by that of its method.
fn operation(method: &str) -> String {
    let name = match method {
        "RunPodSandbox" => "run_podsandbox",
        "StopPodSandbox" => "stop_podsandbox",
        "RemovePodSandbox" => "remove_podsandbox",
        "PodSandboxStatus" => "podsandbox_status",
        "ListPodSandbox" => "list_podsandbox",
        "PodSandboxStats" => "podsandbox_stats",
        "ListPodSandboxStats" => "list_podsandbox_stats",
        "ListPodSandboxMetrics" => "list_podsandbox_metrics",
        "UpdateContainerResources" => "update_container",
        other => {
            let mut text = String::with_capacity(other.len() + 4);
            for (at, letter) in other.char_indices() {
                if letter.is_ascii_uppercase() && at > 0 {
                    text.push('_');
                }
                text.push(letter.to_ascii_lowercase());
            }
            return text;
        }
    };
    name.to_owned()
}

/// Counts a call of the runtime.
pub fn called(method: &str, time: Duration, answered: bool) {
    let operation = operation(method);
    RUNTIME_OPERATIONS.add(&[&operation]);
    RUNTIME_DURATION.time(&[&operation], time);
    if !answered {
        RUNTIME_ERRORS.add(&[&operation]);
    }
}

/// The size of an image as the reference groups it.
pub fn size_group(bytes: u64) -> &'static str {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    match bytes {
        0 => "N/A",
        _ if bytes < 10 * MIB => "0-10MB",
        _ if bytes < 100 * MIB => "10MB-100MB",
        _ if bytes < 500 * MIB => "100MB-500MB",
        _ if bytes < GIB => "500MB-1GB",
        _ if bytes < 5 * GIB => "1GB-5GB",
        _ if bytes < 10 * GIB => "5GB-10GB",
        _ if bytes < 20 * GIB => "10GB-20GB",
        _ if bytes < 30 * GIB => "20GB-30GB",
        _ if bytes < 40 * GIB => "30GB-40GB",
        _ if bytes < 60 * GIB => "40GB-60GB",
        _ if bytes < 100 * GIB => "60GB-100GB",
        _ => "GT100GB",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_named_as_the_reference_names_them() {
        let check = |method: &str, expected: &str| assert_eq!(operation(method), expected);
        check("RunPodSandbox", "run_podsandbox");
        check("CreateContainer", "create_container");
        check("ExecSync", "exec_sync");
        check("ListContainerStats", "list_container_stats");
        check("UpdateContainerResources", "update_container");
        check("Version", "version");
    }
}
