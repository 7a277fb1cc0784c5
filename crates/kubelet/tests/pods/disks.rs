//! Disks of the machine and of the network, and folders of NFS servers. What is no machine's own is played by scripts in the place of
//! the programs that would speak to it; disks are files, file systems and mounts are real.

use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::core::v1::Secret;
use kubelet::storage::host::Host;

use super::*;

/// A blank disk of 64 MiB.
struct Disk {
    _file: tempfile::NamedTempFile,
    device: PathBuf,
}

impl Disk {
    fn new() -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(64 << 20).expect("its size");
        let device = said(Command::new("losetup").args(["--find", "--show"]).arg(file.path()));
        Self { _file: file, device: device.into() }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // a failed test may have left it mounted: it goes with the mount then
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

fn said(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A script as a program. Another process writes it, since a program that is open for writing cannot be run, and threads of other tests
/// may take the open file along.
fn program(folder: &Path, name: &str, script: &str) {
    let source = folder.join(format!("{name}.source"));
    std::fs::write(&source, format!("#!/bin/sh\n{script}")).expect("written");
    said(Command::new("install").args(["-m", "755"]).arg(&source).arg(folder.join(name)));
}

/// How the mount at `path` is mounted.
fn options_of(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let table = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let line = table.lines().find(|line| line.split(' ').nth(1).map(Path::new) == Some(path.as_path()))?;
    Some(line.to_owned())
}

impl Cluster {
    fn folder_of(&self, path: &str) -> PathBuf {
        let config = self.fake.container("web").expect("a container").config;
        let found = config.mounts.iter().find(|m| m.container_path == path).expect("a mount");
        found.host_path.clone().into()
    }

    pub async fn with_host(mut self, host: Host) -> Self {
        self.stop_kubelet().await;
        self.host = host;
        self.start_kubelet().await;
        self
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blank_disk_is_formatted_once_mounted_for_its_pods_and_free_after_them() {
    let disk = Disk::new();
    let mut cluster = Cluster::start().await;
    let here = json!({"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}});
    let source = json!({"local": {"path": disk.device, "fsType": "ext4"}, "mountOptions": ["noatime"],
        "nodeAffinity": here});
    cluster.claim("c", source, json!({})).await;
    let make = |read_only: bool| {
        let mut spec =
            with_volume(json!({"persistentVolumeClaim": {"claimName": "c", "readOnly": read_only}}));
        spec["securityContext"] = json!({"fsGroup": 4242});
        pod(spec)
    };
    // who only reads finds nothing to read, and nothing is written for him
    cluster.create::<Pod>("d", make(true)).await;
    cluster.until_event("FailedMount", "as we are manipulating it in read-only mode").await;
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.create::<Pod>("d", make(false)).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    let folder = cluster.folder_of("/v");
    let options = options_of(&folder).expect("it is mounted");
    assert!(options.contains(" ext4 ") && options.contains("noatime"), "{options}");
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(std::fs::metadata(&folder).unwrap().gid(), 4242);
    std::fs::write(folder.join("kept"), "1").unwrap();
    // a new kubelet knows who uses it
    cluster.stop_kubelet().await;
    cluster.start_kubelet().await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    assert!(options_of(&folder).is_none() && !folder.exists());
    cluster.create::<Pod>("d", make(true)).await;
    cluster.until_pod("running again", |p| running(p, "web")).await;
    let folder = cluster.folder_of("/v");
    assert!(options_of(&folder).expect("it is mounted").contains(" ro,"));
    assert_eq!(std::fs::read_to_string(folder.join("kept")).unwrap(), "1");
    cluster.delete(None).await;
    cluster.until_gone().await;
    // a volume that only another node has
    let there = json!({"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n2"]}]}]}});
    cluster.claim("far", json!({"local": {"path": "/"}, "nodeAffinity": there}), json!({})).await;
    cluster
        .create::<Pod>("d", pod(with_volume(json!({"persistentVolumeClaim": {"claimName": "far"}}))))
        .await;
    let wanted =
        "MountVolume.NodeAffinity check failed for volume \"pv-far\" : no matching NodeSelectorTerms";
    cluster.until_event("FailedMount", wanted).await;
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_an_nfs_server_is_mounted_by_the_machines_program_which_is_named_where_it_is_missing() {
    let tools = tempfile::tempdir().unwrap();
    let none = Host { programs: vec![tools.path().to_owned()], ..Host::default() };
    let mut cluster = Cluster::start().await.with_host(none).await;
    let source =
        json!({"nfs": {"server": "fd00::1", "path": "/export"}, "mountOptions": ["nfsvers=4.1", "hard"]});
    cluster.claim("c", source, json!({})).await;
    let spec = json!({"containers": [{"name": "web", "image": "web:1",
            "volumeMounts": [{"name": "own", "mountPath": "/own"}, {"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "own", "nfs": {"server": "files", "path": "/", "readOnly": true}},
            {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]});
    cluster.create::<Pod>("d", pod(spec)).await;
    let missing = "MountVolume.SetUp failed for volume \"own\" : mount failed: mount.nfs is not installed on this node: install nfs-common";
    cluster.until_event("FailedMount", missing).await;
    let log = tools.path().join("log");
    let script = format!("echo \"$@\" >> {}\nexec mount -t tmpfs tmpfs \"$2\"\n", log.display());
    program(tools.path(), "mount.nfs", &script);
    let mut host = Host::default();
    host.programs.insert(0, tools.path().to_owned());
    cluster = cluster.with_host(host).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    let folders = [cluster.folder_of("/own"), cluster.folder_of("/v")];
    assert!(folders.iter().all(|folder| options_of(folder).is_some()));
    let asked = std::fs::read_to_string(&log).unwrap();
    let wanted = [
        format!("files:/ {} -o ro", folders[0].display()),
        format!("[fd00::1]:/export {} -o nfsvers=4.1,hard", folders[1].display()),
    ];
    assert_eq!(asked.lines().collect::<Vec<_>>(), wanted);
    let config = cluster.fake.container("web").unwrap().config;
    assert!(config.mounts.iter().any(|mount| mount.container_path == "/own" && mount.readonly));
    cluster.delete(None).await;
    cluster.until_gone().await;
    assert!(folders.iter().all(|folder| !folder.exists()));
    cluster.stop().await;
}

const IQN: &str = "iqn.2026-01.example:disk";

/// Plays open-iscsi: what a login brings into `/sys` and `/dev`, and takes away again.
fn initiator(tools: &Path, machine: &Path, disk: &Path) -> Host {
    let (sys, dev) = (machine.join("sys"), machine.join("dev"));
    for folder in [dev.join("disk/by-path"), sys.join("class/iscsi_host"), sys.join("class/scsi_host/host7")]
    {
        std::fs::create_dir_all(folder).unwrap();
    }
    let script = format!(
        "echo \"$@\" >> {log}\nsession={sys}/class/iscsi_host/host7/device/session1\n\
         link={dev}/disk/by-path/ip-192.0.2.1:3260-iscsi-{IQN}-lun-4\n\
         case \"$*\" in\n\
         *' -o show') echo 'iface.transport_name = tcp';;\n\
         *--login)\n\
           mkdir -p $session/iscsi_session/session1 $session/connection1:0/iscsi_connection/connection1:0\n\
           mkdir -p $session/target7:0:0/7:0:0:4/block/sdx/device; touch $session/target7:0:0/7:0:0:4/block/sdx/device/delete\n\
           echo {IQN} > $session/iscsi_session/session1/targetname\n\
           echo 192.0.2.1 > $session/connection1:0/iscsi_connection/connection1:0/persistent_address\n\
           echo 3260 > $session/connection1:0/iscsi_connection/connection1:0/persistent_port\n\
           ln -sf {disk} $link;;\n\
         *--logout*) cat $session/target7:0:0/7:0:0:4/block/sdx/device/delete >> {log}.deleted; rm -r $session $link;;\n\
         esac\n",
        log = tools.join("log").display(),
        sys = sys.display(),
        dev = dev.display(),
        disk = disk.display(),
    );
    program(tools, "iscsiadm", &script);
    let mut host = Host { sys, dev, ..Host::default() };
    host.programs.insert(0, tools.to_owned());
    host
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_of_an_iscsi_target_is_logged_in_to_mounted_and_logged_out_of() {
    let (disk, tools, machine) = (Disk::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let host = initiator(tools.path(), machine.path(), &disk.device);
    let mut cluster = Cluster::start().await.with_host(host).await;
    let data = json!({"node.session.auth.username": "me", "node.session.auth.password": "hidden"});
    let secret =
        json!({"metadata": {"name": "chap"}, "type": "kubernetes.io/iscsi-chap", "stringData": data});
    cluster.create::<Secret>("d", secret).await;
    let source = json!({"iscsi": {"targetPortal": "192.0.2.1", "iqn": IQN, "lun": 4, "fsType": "ext4",
        "chapAuthSession": true, "secretRef": {"name": "chap", "namespace": "d"}}});
    cluster.claim("c", source, json!({})).await;
    let spec = with_volume(json!({"persistentVolumeClaim": {"claimName": "c"}}));
    cluster.create::<Pod>("d", pod(spec)).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    let folder = cluster.folder_of("/v");
    assert!(options_of(&folder).expect("it is mounted").contains(" ext4 "));
    let lines = || {
        let log = std::fs::read_to_string(tools.path().join("log")).unwrap();
        log.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let find = "-m discoverydb -t sendtargets -p 192.0.2.1:3260 -I default";
    let node = format!("-m node -p 192.0.2.1:3260 -T {IQN} -I default");
    assert_eq!(
        lines(),
        [
            "-m iface -I default -o show".to_owned(),
            format!("{find} -o new"),
            format!("{find} --discover"),
            format!("{node} -o update -n node.session.auth.authmethod -v CHAP"),
            format!("{node} -o update -n node.session.auth.username -v me"),
            format!("{node} -o update -n node.session.auth.password -v hidden"),
            format!("{node} --login"),
            format!("-m node -p 192.0.2.1:3260 -T {IQN} -o update -n node.startup -v manual"),
        ]
    );
    let scanned = machine.path().join("sys/class/scsi_host/host7/scan");
    assert_eq!(std::fs::read_to_string(scanned).unwrap(), "0 0 4");
    // the pod goes while no kubelet runs; the next one logs out
    cluster.stop_kubelet().await;
    cluster
        .client
        .delete::<Pod>("d", "p", &DeleteOptions { grace_period_seconds: Some(0), ..Default::default() })
        .await
        .expect("deleted");
    cluster.start_kubelet().await;
    let gone = async {
        while folder.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it is unmounted");
    let done = lines();
    assert_eq!(done[8..], [format!("{node} --logout"), format!("{node} -o delete")], "{done:?}");
    let deleted = std::fs::read_to_string(tools.path().join("log.deleted")).unwrap();
    assert_eq!(deleted, "1", "the kernel was told to forget the disk before");
    cluster.stop().await;
}
