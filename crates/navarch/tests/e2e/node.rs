//! What a node does with its pods besides running them.

use std::path::PathBuf;

use testkit::{Cluster, eventually};

use crate::{cluster, is_ready};

const STATIC: &str = "apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'busybox:test', command: [sh, -c, 'echo up; sleep 54321']}]
";

#[track_caller]
fn ready(cluster: &Cluster, name: &str) -> serde_json::Value {
    eventually(&format!("{name} is ready"), || {
        let pod = cluster.get(&format!("pod {name}")).map_err(|error| error.to_string())?;
        if is_ready(&pod) { Ok(pod) } else { Err(pod["status"].to_string()) }
    })
}

#[test]
fn a_static_pod_runs_shows_its_logs_and_goes_with_its_file() {
    let mut cluster = cluster();
    let file = cluster.data_dir().join("manifests/own.yaml");
    std::fs::write(&file, STATIC).unwrap();
    let first = ready(&cluster, "own-node-1");
    assert_eq!(cluster.kubectl("logs own-node-1").unwrap(), "up\n");
    // who deletes what the API shows deletes no pod
    cluster.kubectl("delete pod own-node-1 --grace-period 0 --force").unwrap();
    let again = ready(&cluster, "own-node-1");
    assert_ne!(first["metadata"]["uid"], again["metadata"]["uid"]);
    let id = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&first), id(&again));
    cluster.kill_server().unwrap();
    cluster.start_server().unwrap();
    let adopted = ready(&cluster, "own-node-1");
    assert_eq!(
        (id(&again), again["metadata"]["uid"].clone()),
        (id(&adopted), adopted["metadata"]["uid"].clone())
    );
    std::fs::remove_file(&file).unwrap();
    eventually("the pod is gone", || {
        let pods = cluster.kubectl("get pods -o name").map_err(|error| error.to_string())?;
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    });
}

/// The control group of a pod's only process with these arguments, in the tree of `controller`.
fn group(uid: &str, controller: &str, arguments: &[u8]) -> Option<PathBuf> {
    let entries = std::fs::read_dir("/proc").ok()?.flatten();
    for entry in entries {
        if std::fs::read(entry.path().join("cmdline")).is_ok_and(|found| found == arguments) {
            let groups = std::fs::read_to_string(entry.path().join("cgroup")).ok()?;
            let line = groups.lines().find(|line| {
                let mut fields = line.splitn(3, ':');
                let names = fields.nth(1).unwrap_or_default();
                names.split(',').any(|name| name == controller)
                    || (names.is_empty() && line.starts_with("0:"))
            })?;
            let path = line.splitn(3, ':').nth(2)?.trim_start_matches('/');
            let path = PathBuf::from(path);
            if path.to_string_lossy().contains(uid) {
                let trees = [format!("/sys/fs/cgroup/{controller}"), "/sys/fs/cgroup".to_owned()];
                return trees.iter().map(|tree| PathBuf::from(tree).join(&path)).find(|path| path.exists());
            }
        }
    }
    None
}

#[test]
fn the_limits_of_a_pod_hold_for_the_whole_of_it() {
    let cluster = cluster();
    cluster
        .apply(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: bounded}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             containers:\n  - {name: a, image: 'busybox:test', command: [sleep, '67891'], \
             resources: {limits: {memory: 32Mi, cpu: 100m}}}\n  \
             - {name: b, image: 'busybox:test', command: [sleep, '67892'], \
             resources: {limits: {memory: 16Mi, cpu: 150m}}}\n",
        )
        .unwrap();
    let pod = ready(&cluster, "bounded");
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let own = group(uid, "memory", b"sleep\x0067891\x00").expect("its group");
    let read = |names: [&str; 2]| {
        let of_pod = own.parent().unwrap();
        let found = names.iter().find_map(|name| std::fs::read_to_string(of_pod.join(name)).ok());
        found.unwrap_or_default().trim().to_owned()
    };
    assert_eq!(read(["memory.limit_in_bytes", "memory.max"]), (48 << 20).to_string());
    cluster
        .apply(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: greedy}\nspec:\n  nodeName: node-1\n  \
         containers: [{name: a, image: 'busybox:test', resources: {requests: {memory: 100Ti}}}]\n",
        )
        .unwrap();
    eventually("a pod that does not fit is refused", || {
        let pod = cluster.get("pod greedy").map_err(|error| error.to_string())?;
        if pod["status"]["reason"] == "OutOfmemory" { Ok(()) } else { Err(pod["status"].to_string()) }
    });
}

/// Asks the kubelet itself, as a scraper does: by a token, without the API server between.
fn scrape(cluster: &Cluster, token: &str, path: &str) -> anyhow::Result<String> {
    let nodes = cluster.get("nodes")?;
    let addresses = nodes["items"][0]["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let address = addresses.iter().find(|a| a["type"] == "InternalIP").map(|a| a["address"].clone());
    let server = format!("https://{}:10250", address.as_ref().and_then(|a| a.as_str()).unwrap_or_default());
    let mut line = vec!["--kubeconfig", "/dev/null", "--insecure-skip-tls-verify", "--server", &server];
    line.extend(["--token", token, "get", "--raw", path]);
    cluster.kubectl_args(&line)
}

#[test]
fn a_scraper_with_the_right_gets_the_metrics_and_nothing_else() {
    let cluster = cluster();
    cluster
        .apply(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: busy}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             containers:\n  - name: main\n    image: busybox:test\n    command: [sleep, '1000']\n    \
             readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}\n    \
             volumeMounts: [{name: scratch, mountPath: /scratch}]\n  volumes: [{name: scratch, emptyDir: {}}]\n",
        )
        .unwrap();
    ready(&cluster, "busy");
    cluster.kubectl("create serviceaccount scraper").unwrap();
    cluster.kubectl("create clusterrole scraper --verb get --resource nodes/metrics").unwrap();
    cluster
        .kubectl("create clusterrolebinding scraper --clusterrole scraper --serviceaccount default:scraper")
        .unwrap();
    let token = cluster.kubectl("create token scraper").unwrap();
    let resource = eventually("the container is measured", || {
        let text = scrape(&cluster, token.trim(), "/metrics/resource").map_err(|error| error.to_string())?;
        let line =
            "container_memory_working_set_bytes{container=\"main\",namespace=\"default\",pod=\"busy\"} ";
        if text.contains(line) { Ok(text) } else { Err(text) }
    });
    for begin in [
        "node_cpu_usage_seconds_total ",
        "node_memory_working_set_bytes ",
        "container_cpu_usage_seconds_total{",
        "pod_cpu_usage_seconds_total{",
        "pod_memory_working_set_bytes{",
        "container_start_time_seconds{",
        "resource_scrape_error 0",
    ] {
        assert!(resource.lines().any(|line| line.starts_with(begin)), "{begin}\n{resource}");
    }
    let cadvisor = scrape(&cluster, token.trim(), "/metrics/cadvisor").unwrap();
    for begin in [
        "container_network_receive_bytes_total{",
        "container_network_receive_packets_total{",
        "container_cpu_cfs_periods_total{",
        "container_memory_cache{",
        "container_spec_memory_limit_bytes{",
        "container_start_time_seconds{",
        "container_fs_limit_bytes{",
        "machine_memory_bytes ",
    ] {
        assert!(cadvisor.lines().any(|line| line.starts_with(begin)), "{begin}\n{cadvisor}");
    }
    let refused = cluster.kubectl("get --raw /api/v1/namespaces/default/pods/busy/log?limitBytes=0");
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("limitBytes: Invalid value: 0: must be greater than 0"), "{refused}");
    let probes = scrape(&cluster, token.trim(), "/metrics/probes").unwrap();
    assert!(probes.contains("probe_type=\"Readiness\",result=\"successful\"} "), "{probes}");
    assert!(scrape(&cluster, token.trim(), "/metrics").unwrap().contains("kubelet_running_pods 1\n"));
    let refused = scrape(&cluster, token.trim(), "/pods").unwrap_err().to_string();
    assert!(refused.contains("Forbidden"), "{refused}");
    let refused = scrape(&cluster, "nobodys", "/metrics").unwrap_err().to_string();
    assert!(refused.contains("Unauthorized") || refused.contains("logged in"), "{refused}");

    let summary = cluster.kubectl("get --raw /api/v1/nodes/node-1/proxy/stats/summary").unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    let pod = summary["pods"].as_array().unwrap().iter().find(|pod| pod["podRef"]["name"] == "busy").unwrap();
    let volumes = pod["volume"].as_array().unwrap();
    assert!(volumes.iter().any(|volume| volume["name"] == "scratch"), "{pod}");
    assert!(volumes.iter().any(|volume| volume["usedBytes"].as_u64() > Some(0)), "the token: {pod}");
    assert_eq!(pod["network"]["name"], "eth0", "{pod}");
    for at in [
        "/cpu/usageCoreNanoSeconds",
        "/memory/workingSetBytes",
        "/containers/0/rootfs/usedBytes",
        "/containers/0/logs/usedBytes",
        "/containers/0/startTime",
        "/ephemeral-storage/usedBytes",
        "/process_stats/process_count",
    ] {
        assert!(pod.pointer(at).is_some(), "{at}: {pod}");
    }
    for at in
        ["/fs/capacityBytes", "/runtime/imageFs/usedBytes", "/network/interfaces", "/memory/availableBytes"]
    {
        assert!(summary["node"].pointer(at).is_some(), "{at}: {}", summary["node"]);
    }
    let running = cluster.kubectl("get --raw /api/v1/nodes/node-1/proxy/runningpods/").unwrap();
    assert!(running.contains("\"busy\""), "{running}");
    let settings = cluster.kubectl("get --raw /api/v1/nodes/node-1/proxy/configz").unwrap();
    assert!(settings.contains("\"kind\":\"KubeletConfiguration\""), "{settings}");
    assert_eq!(cluster.kubectl("get --raw /api/v1/nodes/node-1/proxy/healthz").unwrap(), "ok");
}

#[test]
fn nodes_say_what_they_have_and_pods_go_where_it_is() {
    let cluster = cluster();
    let node = cluster.get("node node-1").unwrap();
    let declared = serde_json::json!([
        "ExtendWebSocketsToKubelet",
        "GuaranteedQoSPodCPUResize",
        "InPlacePodLevelResourcesVerticalScaling",
        "RestartAllContainersOnContainerExits"
    ]);
    assert_eq!(node["status"]["declaredFeatures"], declared);
    // a node that says nothing
    cluster.apply("apiVersion: v1\nkind: Node\nmetadata: {name: bare, labels: {bare: 'true'}}\n").unwrap();
    let room = r#"{"status":{"allocatable":{"cpu":"4","memory":"4Gi","pods":"10"}}}"#;
    cluster.kubectl_args(&["patch", "node", "bare", "--subresource", "status", "-p", room]).unwrap();
    let rule = "restartPolicy: Never, restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [1]}}]";
    let pod = |name: &str, spec: &str, container: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  \
             terminationGracePeriodSeconds: 0\n  {spec}\n  containers:\n  \
             - {{name: main, image: 'busybox:test', command: [sleep, infinity], {container}}}\n---\n"
        )
    };
    let sure = "resources: {limits: {cpu: 100m, memory: 32Mi}}";
    let there = "restartPolicy: Never\n  nodeSelector: {bare: 'true'}\n  tolerations: [{operator: Exists}]";
    let all = [
        pod("lost", there, rule),
        pod("restarts", "restartPolicy: Never", rule),
        pod("sure", "hostname: sure", sure),
    ];
    cluster.apply(&all.concat()).unwrap();
    ready(&cluster, "sure");
    ready(&cluster, "restarts");
    eventually("the pod finds no node", || {
        let lost = cluster.get("pod lost").map_err(|error| error.to_string())?;
        let told = lost["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
        if told.contains("1 node(s) didn't match Pod's required features") {
            Ok(())
        } else {
            Err(told.to_owned())
        }
    });
    cluster.kubectl("delete pod lost").unwrap();
    cluster.kubectl("delete node bare").unwrap();
    // a node that does not say so is asked for no change
    let resize = |cpu: &str| {
        let resources = format!(r#"{{"requests":{{"cpu":"{cpu}"}},"limits":{{"cpu":"{cpu}"}}}}"#);
        let patch = format!(r#"{{"spec":{{"containers":[{{"name":"main","resources":{resources}}}]}}}}"#);
        cluster.kubectl_args(&["patch", "pod", "sure", "--subresource", "resize", "-p", &patch])
    };
    resize("110m").unwrap();
    let less = r#"{"status":{"declaredFeatures":["ExtendWebSocketsToKubelet"]}}"#;
    cluster.kubectl_args(&["patch", "node", "node-1", "--subresource", "status", "-p", less]).unwrap();
    let mut cpu = 110;
    eventually("the change is refused", || {
        match resize(&format!("{}m", {
            cpu += 1;
            cpu
        })) {
            Ok(said) => Err(said),
            Err(error) => {
                let why = "pod update requires features GuaranteedQoSPodCPUResize which are not available on node \"node-1\"";
                if error.to_string().contains(why) { Ok(()) } else { Err(error.to_string()) }
            }
        }
    });
    cluster.kubectl("delete pod --all").unwrap();
}
