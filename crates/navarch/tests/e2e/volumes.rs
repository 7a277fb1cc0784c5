//! Volumes that outlive pods, and images as volumes.

use std::path::Path;

use testkit::eventually;

use crate::{cluster, describe};

/// A class of volumes that nobody makes, and one of them in the node's folder `disk`.
fn local_disk(disk: &Path) -> String {
    format!(
        "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: local}}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: disk}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteOnce]
  storageClassName: local
  persistentVolumeReclaimPolicy: Retain
  local: {{path: {}}}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [node-1]}}]
---
",
        disk.display()
    )
}

#[test]
fn a_claim_of_a_pods_own_comes_and_goes_with_it() {
    let cluster = cluster();
    let folder = cluster.data_dir().join("disk");
    std::fs::create_dir(&folder).unwrap();
    let pod = "apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: 'busybox:test', command: [sh, -c, 'echo hello > /data/greeting'], volumeMounts: [{name: data, mountPath: /data}]}
  volumes:
  - name: data
    ephemeral:
      volumeClaimTemplate:
        metadata: {labels: {of: own}}
        spec: {accessModes: [ReadWriteOnce], storageClassName: local, resources: {requests: {storage: 1Gi}}}
";
    cluster.apply(&format!("{}{pod}", local_disk(&folder))).unwrap();
    eventually("the pod is over", || {
        let pod = cluster.get("pod own").map_err(|error| error.to_string())?;
        if pod["status"]["phase"] == "Succeeded" {
            Ok(())
        } else {
            Err(format!("{}{}", pod["status"], describe(&cluster)))
        }
    });
    assert_eq!(std::fs::read_to_string(folder.join("greeting")).unwrap(), "hello\n");
    let claim = cluster.get("persistentvolumeclaim own-data").unwrap();
    assert_eq!(
        (&claim["status"]["phase"], &claim["metadata"]["labels"]["of"]),
        (&"Bound".into(), &"own".into())
    );
    assert_eq!(claim["metadata"]["ownerReferences"][0]["name"], "own");
    cluster.kubectl("delete pod own").unwrap();
    eventually("the claim goes with its pod", || {
        let left =
            cluster.kubectl("get persistentvolumeclaims -o name").map_err(|error| error.to_string())?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    eventually("the volume is kept for whoever looks after it", || {
        let volume = cluster.get("persistentvolume disk").map_err(|error| error.to_string())?;
        if volume["status"]["phase"] == "Released" { Ok(()) } else { Err(volume["status"].to_string()) }
    });
    // a claim of that name that somebody else made is not the pod's
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: own-data}\nspec: {accessModes: [ReadWriteOnce], \
                 storageClassName: local, resources: {requests: {storage: 1Gi}}}\n---\n";
    cluster.apply(&format!("{claim}{pod}")).unwrap();
    eventually("the pod waits for a claim of its own", || {
        let pod = cluster.get("pod own").map_err(|error| error.to_string())?;
        let told = pod["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
        if told.contains("PVC default/own-data was not created for pod default/own (pod is not owner)") {
            Ok(())
        } else {
            Err(pod["status"].to_string())
        }
    });
    cluster.kubectl("delete pod own").unwrap();
}

#[test]
fn what_a_pod_writes_to_a_local_volume_the_next_one_reads() {
    let cluster = cluster();
    let folder = cluster.data_dir().join("disk");
    std::fs::create_dir(&folder).unwrap();
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {accessModes: [ReadWriteOnce], \
                 storageClassName: local, resources: {requests: {storage: 1Gi}}}\n";
    cluster.apply(&format!("{}{claim}", local_disk(&folder))).unwrap();
    let run = |name: &str, command: &str| {
        cluster
            .apply(&format!(
                "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  securityContext: {{runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000}}
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, '{command}']
    volumeMounts:
    - {{name: data, mountPath: /data, subPath: sub}}
    - {{name: tools, mountPath: /tools}}
    - {{name: tools, mountPath: /part, subPath: bin}}
  volumes:
  - name: data
    persistentVolumeClaim: {{claimName: data}}
  - name: tools
    image: {{reference: 'busybox:test', pullPolicy: Never}}
"
            ))
            .unwrap();
        eventually(&format!("{name} is over"), || {
            let pod = cluster.get(&format!("pod {name}")).map_err(|error| error.to_string())?;
            match pod["status"]["phase"].as_str() {
                Some("Succeeded") => Ok(()),
                _ => Err(format!("{}\n{}", pod["status"], describe(&cluster))),
            }
        });
        let said = cluster.kubectl(&format!("logs {name}")).unwrap();
        cluster.kubectl(&format!("delete pod {name}")).unwrap();
        said
    };
    let tried = run(
        "writer",
        "id -G; ls /tools/bin/ls /part/ls; ls /tools/bin >/dev/null && ! touch /tools/x 2>/dev/null; echo $?",
    );
    assert_eq!(
        tried, "1000 2000\n/part/ls\n/tools/bin/ls\n0\n",
        "the group is the volume's; an image cannot be written to"
    );
    // the folder below was made by the kubelet for root: the group of the volume above is not its own
    std::fs::write(folder.join("sub/greeting"), "hello").unwrap();
    assert_eq!(run("reader", "cat /data/greeting"), "hello");
    assert_eq!(std::fs::read_to_string(folder.join("sub/greeting")).unwrap(), "hello", "it is still there");
}
