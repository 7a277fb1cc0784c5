//! Pods with users of their own (`hostUsers: false`).

use testkit::eventually;

use crate::{cluster_with, describe, wait_ready};

/// A pod that serves what it sees of itself and its volumes.
fn pod(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: own}}}}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 5
{spec}
  initContainers:
  - {{name: first, image: 'busybox:test', command: [sh, -c, 'echo made > /data/made'], volumeMounts: [{{name: data, mountPath: /data}}]}}
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, 'trap \"exit 0\" TERM; hostname changed; while true; do sleep 0.1; done']
    securityContext: {{capabilities: {{add: [SYS_ADMIN]}}}}
    volumeMounts:
    - {{name: data, mountPath: /data}}
    - {{name: map, mountPath: /map}}
    - {{name: all, mountPath: /all}}
    - {{name: tools, mountPath: /tools}}
    - {{name: tools, mountPath: /part, subPath: bin}}
  - name: web
    image: busybox:test
    command: [sh, -c, 'trap \"exit 3\" TERM; httpd -p 80 -h /data; while true; do sleep 0.1; done']
    volumeMounts: [{{name: data, mountPath: /data}}]
    readinessProbe: {{httpGet: {{path: /made, port: 80}}, periodSeconds: 1}}
  volumes:
  - {{name: data, emptyDir: {{}}}}
  - {{name: map, configMap: {{name: notes, defaultMode: 0400}}}}
  - name: all
    projected:
      sources:
      - serviceAccountToken: {{path: token}}
      - downwardAPI: {{items: [{{path: name, fieldRef: {{fieldPath: metadata.name}}}}]}}
  - {{name: tools, image: {{reference: 'busybox:test', pullPolicy: Never}}}}
---
"
    )
}

/// First id of the node and how many, as the container `main` of a pod has them.
fn range(cluster: &testkit::Cluster, pod: &str) -> (u32, u32) {
    let text = cluster.kubectl(&format!("exec {pod} -c main -- cat /proc/self/uid_map")).unwrap();
    let numbers: Vec<u32> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert_eq!(numbers.len(), 3, "{text}");
    assert_eq!(numbers[0], 0, "{text}");
    (numbers[1], numbers[2])
}

#[test]
fn root_of_a_pod_with_its_own_users_is_not_the_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubelet.yaml");
    let settings = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
                    evictionHard: {nodefs.available: 1Gi, imagefs.available: 1Gi}\n\
                    imageGCHighThresholdPercent: 100\nimageGCLowThresholdPercent: 99\nuserNamespaces: {idsPerPod: 131072}\n";
    std::fs::write(&file, settings).unwrap();
    let mut cluster = cluster_with(vec!["--kubelet-config".to_owned(), file.display().to_string()]);
    let notes = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata: {note: hello}\n---\n";
    let grouped = "  securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000}";
    cluster.apply(&format!("{notes}{}{}", pod("root", ""), pod("user", grouped))).unwrap();
    wait_ready(&cluster, "app=own", 2);
    let node = cluster.get("node node-1").unwrap();
    let handlers = node["status"]["runtimeHandlers"].as_array().unwrap();
    let own =
        handlers.iter().find(|handler| handler["name"].as_str().unwrap_or_default().is_empty()).unwrap();
    assert_eq!(own["features"]["userNamespaces"], true, "{own}");

    let (first, second) = (range(&cluster, "root"), range(&cluster, "user"));
    assert_eq!((first.1, second.1), (131072, 131072));
    assert!(first.0 >= 131072 && first.0.abs_diff(second.0) >= 131072, "{first:?} {second:?}");
    let seen = |pod: &str, script: &str| {
        cluster.kubectl_args(&["exec", pod, "-c", "main", "--", "sh", "-c", script]).unwrap()
    };
    // files are the pod's own users', whether the kubelet made them, the image or another container of the pod
    let script = "id -u; cat /map/note /all/name; echo; stat -L -c '%u:%g %a' /data/made /map/note /all/token /etc/hosts /tools/bin /part/sh";
    assert_eq!(
        seen("root", script),
        "0\nhelloroot\n0:0 644\n0:0 400\n0:0 644\n0:0 644\n0:0 755\n0:0 755\n",
        "{}",
        describe(&cluster)
    );
    assert_eq!(
        seen("user", script),
        "1000\nhellouser\n1000:2000 644\n0:2000 440\n1000:2000 640\n0:0 644\n0:0 755\n0:0 755\n"
    );
    // the processes are those users' of the node
    let uid = cluster.get("pod root").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let processes = of_pod(&uid);
    assert!(!processes.is_empty());
    for (pid, owner) in processes {
        assert_eq!(owner, first.0, "process {pid}");
    }
    // what it may as root ends at its own namespaces
    assert_eq!(seen("root", "hostname"), "changed\n");
    assert_eq!(
        seen(
            "root",
            "mount -t tmpfs x /tmp && echo mounted; echo x 2>/dev/null >/proc/sys/vm/swappiness || echo sealed"
        ),
        "mounted\nsealed\n"
    );

    // a restart of the kubelet changes nothing, and a container that starts anew is where the others are
    cluster.kill_server().unwrap();
    cluster.start_server().unwrap();
    wait_ready(&cluster, "app=own", 2);
    cluster.kubectl("exec root -c web -- kill 1").unwrap();
    eventually("the container was started again", || {
        let pod = cluster.get("pod root").map_err(|error| error.to_string())?;
        let web = pod["status"]["containerStatuses"]
            .as_array()
            .unwrap()
            .iter()
            .find(|status| status["name"] == "web")
            .cloned();
        match web.as_ref().and_then(|web| web["restartCount"].as_i64()) {
            Some(1..) => Ok(()),
            _ => Err(format!("{}{}", pod["status"], describe(&cluster))),
        }
    });
    wait_ready(&cluster, "app=own", 2);
    assert_eq!(range(&cluster, "root"), first);
    assert_eq!(
        cluster.kubectl("exec root -c web -- cat /proc/self/uid_map").unwrap().split_whitespace().nth(1),
        Some(first.0.to_string().as_str())
    );

    // the ids of a pod that is gone are the next one's
    cluster.kubectl("delete pod root").unwrap();
    cluster.apply(&pod("root", "")).unwrap();
    wait_ready(&cluster, "app=own", 2);
    assert_eq!(range(&cluster, "root"), first);
    // what such a pod cannot have the API refuses
    let wrong = pod("wrong", "  hostNetwork: true");
    let error = cluster.apply(&wrong).unwrap_err().to_string();
    assert!(error.contains("when `hostUsers` is false") || error.contains("hostNetwork"), "{error}");
    cluster.kubectl("delete pod --all").unwrap();
}

/// Processes in the control groups of a pod, and whose they are on the node.
fn of_pod(uid: &str) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        if groups.contains(uid) {
            let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
            found.push((pid, line.split_whitespace().next().unwrap().parse().unwrap()));
        }
    }
    found
}
