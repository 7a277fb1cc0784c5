//! What a pod's processes may do, and what they share with others.

use serde_json::{Value, json};
use testkit::Cluster;

use super::{WAITS, apply, event, pod, said, shell, status, until};
use crate::{cluster, is_ready};

/// A pod whose only container has this security context.
fn secured(name: &str, mut spec: Value, context: Value) -> Value {
    spec["containers"] = json!([{"name": "main", "command": shell(WAITS), "securityContext": context}]);
    pod(name, spec)
}

/// Values of the main process's status, by their names there.
fn process(cluster: &Cluster, pod: &str, names: &[&str]) -> Vec<String> {
    let text = said(cluster, pod, "cat /proc/1/status");
    let value = |name: &&str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_else(|| panic!("{name}: {text}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    names.iter().map(value).collect()
}

#[test]
fn processes_have_the_users_rights_and_files_their_pod_asks_for() {
    let cluster = cluster();
    let profiles = cluster.data_dir().join("kubelet/seccomp");
    std::fs::create_dir_all(&profiles).unwrap();
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":5}]}"#;
    std::fs::write(profiles.join("no-folders.json"), profile).unwrap();
    let user = json!({"runAsUser": 1000, "runAsGroup": 1001, "supplementalGroups": [3000], "fsGroup": 2000, "runAsNonRoot": true});
    let mut grouped = secured(
        "user",
        json!({"securityContext": user, "volumes": [{"name": "d", "emptyDir": {}}]}),
        json!({}),
    );
    grouped["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "d", "mountPath": "/d"}]);
    let drop = json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}, "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true, "seccompProfile": {"type": "RuntimeDefault"}});
    let named = |kind: &str, name: Value| json!({"seccompProfile": {"type": kind, "localhostProfile": name}});
    let sysctls = json!({"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "80"}, {"name": "kernel.shm_rmid_forced", "value": "1"}]});
    apply(
        &cluster,
        &[
            secured("plain", json!({}), json!({})),
            grouped,
            secured("tight", json!({}), drop),
            secured("privileged", json!({}), json!({"privileged": true})),
            secured("local", json!({}), named("Localhost", json!("no-folders.json"))),
            secured("nowhere", json!({}), named("Localhost", json!("none.json"))),
            secured("set", json!({"securityContext": sysctls}), json!({})),
            secured(
                "unsafe",
                json!({"securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "9"}]}}),
                json!({}),
            ),
        ],
    );
    for name in ["plain", "user", "tight", "privileged", "local", "set"] {
        until(&cluster, name, "is ready", is_ready);
    }
    let rights = ["CapEff", "NoNewPrivs", "Seccomp"];
    assert_eq!(process(&cluster, "plain", &rights), ["00000000a80425fb", "0", "0"]);
    assert_eq!(process(&cluster, "tight", &rights), ["0000000000000400", "1", "2"]);
    // all that the node has itself
    let bounding = std::fs::read_to_string("/proc/self/status").unwrap();
    let bounding = bounding.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim().to_owned();
    assert_eq!(process(&cluster, "privileged", &rights), [bounding.as_str(), "0", "0"]);

    assert_eq!(
        process(&cluster, "user", &["Uid", "Gid", "Groups"]),
        ["1000 1000 1000 1000", "1001 1001 1001 1001", "1001 2000 3000"]
    );
    assert_eq!(
        said(&cluster, "user", "id -u; echo x > /d/x; stat -c '%u:%g' /d/x; stat -c '%g %A' /d"),
        "1000\n1000:2000\n2000 drwxrwsrwx\n"
    );
    assert_eq!(
        said(
            &cluster,
            "tight",
            "touch /x 2>/dev/null || echo sealed; touch /dev/shm/x && echo memory; mkdir /proc/sys/x 2>/dev/null || echo kept"
        ),
        "sealed\nmemory\nkept\n"
    );
    let devices = "test -e /dev/mem || test -e /dev/kmsg && echo devices; echo 1 2>/dev/null > /proc/sys/vm/overcommit_memory && echo writes; cat /proc/kcore 2>/dev/null | head -c 1 | wc -c";
    assert_eq!(said(&cluster, "plain", devices), "0\n");
    assert!(
        said(&cluster, "privileged", "test -w /proc/sys/vm/overcommit_memory && echo writes; ls /dev")
            .starts_with("writes\n")
    );
    assert_eq!(
        said(
            &cluster,
            "local",
            "mkdir /tmp/x 2>&1 | grep -c 'Input/output error'; touch /tmp/y && echo files"
        ),
        "1\nfiles\n"
    );
    let found = until(&cluster, "nowhere", "cannot begin", |pod| {
        let waits = status(pod, "main")["state"]["waiting"]["reason"].as_str().unwrap_or_default();
        ["CreateContainerError", "RunContainerError", "CrashLoopBackOff"].contains(&waits)
    });
    assert!(!found.to_string().contains("\"ready\":true"), "{found}");
    event(&cluster, "nowhere", "Failed", "none.json");
    assert_eq!(
        said(
            &cluster,
            "set",
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"
        ),
        "80\n1\n"
    );
    let refused = until(&cluster, "unsafe", "is refused", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(refused["status"]["reason"], "SysctlForbidden", "{refused}");
    apparmor(&cluster);
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
}

/// Profiles hold where the kernel has AppArmor; elsewhere a pod that asks for one is refused.
fn apparmor(cluster: &Cluster) {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.trim() == "Y");
    let default = json!({"appArmorProfile": {"type": "RuntimeDefault"}});
    let unknown = json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "nobodys-profile"}});
    apply(cluster, &[secured("armed", json!({}), default), secured("unknown", json!({}), unknown)]);
    if enabled {
        until(cluster, "armed", "is ready", is_ready);
        let profile = said(cluster, "armed", "cat /proc/1/attr/current");
        assert_eq!(profile, "navarch-default (enforce)\n");
        event(cluster, "unknown", "Failed", "nobodys-profile");
    } else {
        for name in ["armed", "unknown"] {
            let refused = until(cluster, name, "is refused", |pod| pod["status"]["phase"] == "Failed");
            assert_eq!(
                refused["status"]["message"],
                "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host"
            );
        }
    }
}

#[test]
fn namespaces_are_the_pods_or_the_nodes_as_asked() {
    let cluster = cluster();
    let two = |more: &str| json!([{"name": "main", "command": shell(WAITS)}, {"name": "other", "command": shell(&format!(": other{more}; echo mine > /tmp/mine; {WAITS}"))}]);
    let with = |name: &str, option: &str| pod(name, json!({option: true, "containers": two(name)}));
    apply(
        &cluster,
        &[
            pod("apart", json!({"containers": two("apart")})),
            with("together", "shareProcessNamespace"),
            with("processes", "hostPID"),
            with("memory", "hostIPC"),
            with("network", "hostNetwork"),
        ],
    );
    let names = ["pid", "ipc", "net", "uts", "mnt"];
    let links = |pod: &str, container: &str| -> Vec<String> {
        let script = names.map(|name| format!("readlink /proc/self/ns/{name}")).join(";");
        let line = ["exec", pod, "-c", container, "--", "sh", "-c", &script];
        cluster.kubectl_args(&line).unwrap().lines().map(str::to_owned).collect()
    };
    let read =
        |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
    let mut nodes: Vec<String> = names.map(read).to_vec();
    nodes[2] = cluster
        .net()
        .run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap().display().to_string())
        .unwrap();
    // which are the two containers', and which are the node's
    for (pod, shared, node) in [
        ("apart", "ipc net uts", ""),
        ("together", "pid ipc net uts", ""),
        ("processes", "pid ipc net uts", "pid"),
        ("memory", "ipc net uts", "ipc"),
        ("network", "ipc net uts", "net uts"),
    ] {
        until(&cluster, pod, "is ready", is_ready);
        let (main, other) = (links(pod, "main"), links(pod, "other"));
        let of = |a: &[String], b: &[String]| {
            let same = names.iter().zip(a.iter().zip(b)).filter(|(_, (a, b))| a == b);
            same.map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!((of(&main, &other).as_str(), of(&main, &nodes).as_str()), (shared, node), "{pod}");
    }
    // who shares processes finds the other one's files, and may tell it to end
    let other = "$(dirname $(grep -l ': [o]thertogether' /proc/[0-9]*/cmdline))";
    assert_eq!(said(&cluster, "together", &format!("cat {other}/root/tmp/mine")), "mine\n");
    said(&cluster, "together", &format!("kill $(basename {other})"));
    let found = until(&cluster, "together", "has begun its other container anew", |pod| {
        status(pod, "other")["restartCount"] == 1 && is_ready(pod)
    });
    assert_eq!(status(&found, "main")["restartCount"], 0);
    assert_eq!(
        said(&cluster, "apart", "grep -l ': [o]therapart' /proc/[0-9]*/cmdline || echo nobody"),
        "nobody\n"
    );
    let find = "grep -l ': [o]therapart' /proc/[0-9]*/cmdline 2>/dev/null | grep -q . && echo found";
    assert_eq!(said(&cluster, "processes", find), "found\n");
    let network = cluster.get("pod network").unwrap();
    assert_eq!(network["status"]["podIP"], network["status"]["hostIP"]);
    cluster.kubectl("delete pod --all --timeout=120s").unwrap();
}
