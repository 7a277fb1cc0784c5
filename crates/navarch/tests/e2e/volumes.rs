//! Volumes that outlive pods, and images as volumes.

use testkit::eventually;

use crate::{cluster, describe};

#[test]
fn what_a_pod_writes_to_a_local_volume_the_next_one_reads() {
    let cluster = cluster();
    let folder = cluster.data_dir().join("disk");
    std::fs::create_dir(&folder).unwrap();
    let disk = folder.display();
    cluster
        .apply(&format!(
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
  local: {{path: {disk}}}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [node-1]}}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data}}
spec: {{accessModes: [ReadWriteOnce], storageClassName: local, resources: {{requests: {{storage: 1Gi}}}}}}
"
        ))
        .unwrap();
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
