//! Processors that a pod has for itself: what the kernel says of its processes. Needs two processors.

use std::os::unix::fs::PermissionsExt;

use kubelet::devices::messages::{AllocatableResourcesResponse, Empty, ListPodResourcesResponse};
use kubelet::grpc::Plugin;
use testkit::{Cluster, Options, eventually};

use crate::{NAVARCH, describe, prepared, wait_ready};

/// A pod that waits.
fn pod(name: &str, resources: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, 'trap \"exit 0\" TERM; while true; do sleep 0.1; done']
    resources: {{{resources}}}
---
"
    )
}

/// Waits until the processes of a pod may run on these processors.
#[track_caller]
fn wait_on(cluster: &Cluster, pod: &str, cpus: &str) {
    eventually(&format!("{pod} is on {cpus}"), || {
        let script = "grep Cpus_allowed_list /proc/1/status";
        let found =
            cluster.kubectl_args(&["exec", pod, "--", "sh", "-c", script]).map_err(|e| e.to_string())?;
        let found = found.split_whitespace().last().unwrap_or_default().to_owned();
        if found == cpus { Ok(()) } else { Err(format!("{found}{}", describe(cluster))) }
    });
}

#[test]
fn a_pod_that_asks_for_a_whole_processor_has_it_for_itself() {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let last: usize =
        online.trim().strip_prefix("0-").and_then(|last| last.parse().ok()).expect("two processors");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubelet.yaml");
    let settings = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                    evictionHard: {nodefs.available: 1Gi, imagefs.available: 1Gi}\n\
                    imageGCHighThresholdPercent: 100\nimageGCLowThresholdPercent: 99\n\
                    cpuManagerPolicy: static\nreservedSystemCPUs: '0'\ntopologyManagerPolicy: restricted\n";
    std::fs::write(&file, settings).unwrap();
    // The node's own process is kept to one processor, as by `CPUAffinity=` of its unit: pods are not.
    let binary = folder.path().join("navarch");
    std::fs::write(&binary, format!("#!/bin/sh\nexec taskset --cpu-list 0 {NAVARCH} \"$@\"\n")).unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    let arguments = vec!["--kubelet-config".to_owned(), file.display().to_string()];
    let mut cluster = prepared(Options { binary, arguments, ..Options::default() });
    let all = format!("0-{last}");
    let rest = match last {
        1 => "0".to_owned(),
        2 => "0,2".to_owned(),
        _ => format!("0,2-{last}"),
    };
    cluster.apply(&pod("shared", "")).unwrap();
    wait_ready(&cluster, "app=shared", 1);
    wait_on(&cluster, "shared", &all);
    cluster.apply(&pod("own", "limits: {cpu: 1, memory: 32Mi}")).unwrap();
    wait_ready(&cluster, "app=own", 1);
    let own = {
        let tasks = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = tasks.enter();
        let socket = Plugin::at(&cluster.data_dir().join("kubelet/pod-resources/kubelet.sock")).unwrap();
        let list: ListPodResourcesResponse =
            tasks.block_on(socket.call("/v1.PodResourcesLister/List", Empty {})).unwrap();
        let method = "/v1.PodResourcesLister/GetAllocatableResources";
        let can: AllocatableResourcesResponse = tasks.block_on(socket.call(method, Empty {})).unwrap();
        assert_eq!(can.cpu_ids.len(), last);
        let of = |name: &str| {
            let pod = list.pod_resources.iter().find(|pod| pod.name == name).unwrap();
            pod.containers[0].cpu_ids.clone()
        };
        assert!(of("shared").is_empty());
        of("own")
    };
    assert_eq!(own.len(), 1);
    wait_on(&cluster, "own", &own[0].to_string());
    if own[0] == 1 {
        wait_on(&cluster, "shared", &rest);
    }
    let metrics = cluster.kubectl("get --raw /api/v1/nodes/node-1/proxy/metrics").unwrap();
    assert!(metrics.contains("kubelet_cpu_manager_exclusive_cpu_allocation_count 1\n"), "{metrics}");
    // the containers stay where they are while the kubelet is away, and it knows them again
    cluster.kill_server().unwrap();
    cluster.start_server().unwrap();
    wait_on(&cluster, "own", &own[0].to_string());
    cluster.kubectl("delete pod own").unwrap();
    wait_on(&cluster, "shared", &all);
    cluster.kubectl("delete pod --all").unwrap();
}
