//! A runtime of its own for each test, with an image made from Debian's static busybox, and proof that nothing
//! is left afterwards.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use cri::{ImageClient, RuntimeClient, v1};
use runtime::{Config, NoNetwork, Runtime, registry::Access};
use serde_json::json;
use sha2::{Digest, Sha256};

pub const IMAGE: &str = "docker.io/library/box:latest";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A node: folders, control groups and a runtime of its own.
pub struct Node {
    pub config: Config,
    pub runtime: Arc<Runtime>,
    pub cri: RuntimeClient,
    pub images: ImageClient,
    dir: tempfile::TempDir,
}

impl Node {
    /// A node with the busybox image.
    pub async fn start() -> Node {
        let node = Node::empty().await;
        let archive = node.dir.path().join("box.tar");
        fs::write(&archive, busybox_archive()).unwrap();
        let summary = node.runtime.import_image(&archive).await.unwrap();
        assert_eq!(summary[0].tags, [IMAGE]);
        node
    }

    /// A node without images.
    pub async fn empty() -> Node {
        Node::empty_with(Duration::from_secs(10)).await
    }

    /// A node without images, for which a registry that sends nothing for `idle` has broken off.
    pub async fn empty_with(idle: Duration) -> Node {
        clean_up_after_killed_runs();
        let dir = tempfile::Builder::new().prefix("navarch-runtime-").tempdir().unwrap();
        let name = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let config = Config {
            root: dir.path().join("root"),
            run: PathBuf::from(format!("/run/navarch-test/{name}")),
            cgroup_parent: format!("/navarch-test-{name}"),
            exe: PathBuf::from(env!("CARGO_BIN_EXE_navarch-shim")),
            shim: None,
            network: Arc::new(NoNetwork),
            instance: name,
            handlers: Default::default(),
            cdi_folders: Vec::new(),
            registries: Access {
                settings: dir.path().join("registries.yaml"),
                idle,
                retry: Duration::from_millis(5),
            },
        };
        let runtime = Runtime::open(config.clone()).await.unwrap();
        let (cri, images) = cri::in_process(runtime.service());
        Node { config, runtime, cri, images, dir }
    }

    /// As if the process had been killed and started again.
    pub async fn restart(&mut self) {
        self.runtime.shutdown();
        self.runtime = Runtime::open(self.config.clone()).await.unwrap();
        (self.cri, self.images) = cri::in_process(self.runtime.service());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn sandbox_config(&self, name: &str) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: format!("{name}-host"),
            log_directory: self.path(&format!("logs/{name}")).display().to_string(),
            dns_config: Some(v1::DnsConfig { servers: vec!["10.96.0.10".to_owned()], ..Default::default() }),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pod-{name}", self.config.cgroup_parent),
                // As kubelets ask for.
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(v1::NamespaceOption {
                        pid: v1::NamespaceMode::Container as i32,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub async fn sandbox(&mut self, name: &str) -> String {
        let config = self.sandbox_config(name);
        self.run_sandbox(config).await
    }

    pub async fn run_sandbox(&mut self, config: v1::PodSandboxConfig) -> String {
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        self.cri.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id
    }

    pub async fn create(
        &mut self,
        sandbox: &str,
        config: v1::ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: None,
        };
        Ok(self.cri.create_container(request).await?.into_inner().container_id)
    }

    pub async fn start_container(&mut self, id: &str) -> Result<(), tonic::Status> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        self.cri.start_container(request).await.map(drop)
    }

    /// Creates and starts.
    pub async fn run(&mut self, sandbox: &str, config: v1::ContainerConfig) -> String {
        let id = self.create(sandbox, config).await.unwrap();
        self.start_container(&id).await.unwrap();
        id
    }

    /// Runs a shell script in a container of its own to the end; status and log.
    pub async fn script(&mut self, config: v1::ContainerConfig) -> (v1::ContainerStatus, String) {
        let name = config.metadata.clone().unwrap().name;
        let sandbox = self.sandbox(&format!("sb-{name}")).await;
        let id = self.run(&sandbox, config).await;
        let status = self.ended(&id).await;
        (status.clone(), log(&status))
    }

    pub async fn status(&mut self, id: &str) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.cri.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    /// The status once the container has ended.
    pub async fn ended(&mut self, id: &str) -> v1::ContainerStatus {
        let deadline = Instant::now() + PATIENCE * testkit::slowness();
        loop {
            let status = self.status(id).await;
            if status.state() == v1::ContainerState::ContainerExited {
                return status;
            }
            assert!(Instant::now() < deadline, "container does not end: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn exec(&mut self, id: &str, script: &str) -> v1::ExecSyncResponse {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
            timeout: 20 * i64::from(testkit::slowness()),
        };
        self.cri.exec_sync(request).await.unwrap().into_inner()
    }

    pub async fn exec_text(&mut self, id: &str, script: &str) -> String {
        let output = self.exec(id, script).await;
        assert_eq!(output.exit_code, 0, "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub async fn remove_sandbox(&mut self, id: &str) {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.cri.remove_pod_sandbox(request).await.unwrap();
    }

    pub async fn pid(&mut self, id: &str) -> i32 {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let info = self.cri.container_status(request).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        info["pid"].as_i64().unwrap() as i32
    }

    /// What of this node is on the machine: mounts, control groups below pods, namespaces, processes.
    pub fn traces(&self) -> Vec<String> {
        let mut traces = Vec::new();
        let run = self.config.run.display().to_string();
        let root = self.config.root.display().to_string();
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
            if line.contains(&run) || line.contains(&root) {
                traces.push(format!("mount: {line}"));
            }
        }
        for dir in ["s", "netns"] {
            for entry in fs::read_dir(self.config.run.join(dir)).into_iter().flatten().flatten() {
                traces.push(format!("file: {}", entry.path().display()));
            }
        }
        for dir in ["containers", "sandboxes"] {
            for entry in fs::read_dir(self.config.root.join(dir)).into_iter().flatten().flatten() {
                traces.push(format!("file: {}", entry.path().display()));
            }
        }
        for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let group = controller.path().join(self.config.cgroup_parent.trim_start_matches('/'));
            for entry in fs::read_dir(group).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() && entry.file_name() != "shims" {
                    traces.push(format!("cgroup: {}", entry.path().display()));
                }
            }
        }
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // On cgroup v2 what has ended stays in its group until its parent, which may be this program, takes notice.
            let ended = stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
            if !ended && cgroup.contains(&format!("{}/", self.config.cgroup_parent)) {
                traces.push(format!("process: {pid}"));
            }
        }
        traces
    }
}

/// Whatever happened, the machine is clean afterwards.
impl Drop for Node {
    fn drop(&mut self) {
        self.runtime.shutdown();
        let left = runtime::reset(&self.config);
        if !std::thread::panicking() {
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

/// A test run that was killed leaves its nodes; they are named after its process.
fn clean_up_after_killed_runs() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        for entry in fs::read_dir("/run/navarch-test").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name.split('-').next().unwrap_or_default().to_owned();
            if !Path::new("/proc").join(&pid).exists() {
                let config = Config {
                    root: entry.path().join("no-root"),
                    run: entry.path(),
                    cgroup_parent: format!("/navarch-test-{name}"),
                    exe: PathBuf::new(),
                    shim: None,
                    network: Arc::new(NoNetwork),
                    instance: name,
                    registries: Access::default(),
                    handlers: Default::default(),
                    cdi_folders: Vec::new(),
                };
                eprintln!("left by a killed run: {:?}", runtime::reset(&config));
            }
        }
    });
}

/// A container that runs a shell script.
pub fn shell(name: &str, script: &str) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()],
        log_path: format!("{name}.log"),
        linux: Some(v1::LinuxContainerConfig::default()),
        ..Default::default()
    }
}

/// The container's security context, to change it.
pub fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// A container's log without timestamps: `stdout F text`.
pub fn log(status: &v1::ContainerStatus) -> String {
    let text = fs::read_to_string(&status.log_path).unwrap();
    text.lines().map(|line| format!("{}\n", line.split_once(' ').unwrap().1)).collect()
}

/// Content of the log's lines only.
pub fn output(log: &str) -> String {
    log.lines().map(|line| format!("{}\n", line.splitn(3, ' ').nth(2).unwrap_or(""))).collect()
}

/// What the machine may take for anything that a test waits for; more is a hang.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for a condition.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE * testkit::slowness();
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Entries of a layer.
pub struct Layer(pub tar::Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Layer {
        Layer(tar::Builder::new(Vec::new()))
    }

    pub fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header
    }

    pub fn file(mut self, path: &str, content: &[u8], mode: u32) -> Layer {
        let mut header = Layer::header(tar::EntryType::Regular, mode, content.len());
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    pub fn dir(mut self, path: &str, mode: u32) -> Layer {
        let mut header = Layer::header(tar::EntryType::Directory, mode, 0);
        self.0.append_data(&mut header, path, std::io::empty()).unwrap();
        self
    }

    pub fn link(mut self, kind: tar::EntryType, path: &str, target: &str) -> Layer {
        let mut header = Layer::header(kind, 0o777, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    /// An entry whose name is written as it is, however bad.
    pub fn raw(mut self, kind: tar::EntryType, path: &str, target: &str, content: &[u8]) -> Layer {
        let mut header = Layer::header(kind, 0o644, content.len());
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An OCI image layout with one image; layers are given as (what lies in the archive, plain tar).
pub fn oci_archive(name: &str, layers: &[(Vec<u8>, Vec<u8>)], config: serde_json::Value) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|(_, plain)| sha256(plain)).collect();
    let document = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let document = serde_json::to_vec(&document).unwrap();
    let descriptor =
        |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": sha256(bytes), "size": bytes.len()});
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &document),
        "layers": layers.iter().map(|(blob, _)| descriptor("application/vnd.oci.image.layer.v1.tar", blob)).collect::<Vec<_>>(),
    }))
    .unwrap();
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({"io.containerd.image.name": name});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]})).unwrap();
    let mut archive = Layer::new().file("oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}", 0o644);
    let mut seen = Vec::new();
    let blobs =
        layers.iter().map(|(blob, _)| blob.as_slice()).chain([document.as_slice(), manifest.as_slice()]);
    for blob in blobs {
        let digest = sha256(blob);
        if !seen.contains(&digest) {
            archive = archive.file(&format!("blobs/sha256/{}", &digest[7..]), blob, 0o644);
            seen.push(digest);
        }
    }
    archive.file("index.json", &index, 0o644).done()
}

/// The layer of the image that tests run: Debian's busybox, with two users.
pub fn busybox_layer() -> Vec<u8> {
    let mut layer = Layer::new();
    for dir in ["bin/", "etc/", "tmp/", "root/", "home/", "home/web/"] {
        layer = layer.dir(dir, if dir == "tmp/" { 0o1777 } else { 0o755 });
    }
    layer = layer
        .file("bin/busybox", &fs::read(testkit::debian::busybox().unwrap()).unwrap(), 0o755)
        .file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/home/web:/bin/sh\n", 0o644)
        .file("etc/group", b"root:x:0:\nweb:x:34:\nssl:x:90:web\n", 0o644);
    for applet in [
        "sh", "cat", "echo", "sleep", "true", "false", "id", "ls", "mount", "hostname", "ps", "kill", "env",
        "pwd", "dd", "head", "touch", "mkdir", "rm", "stat", "grep", "wc", "readlink", "stty", "tty",
        "mknod", "chmod", "chown", "ip", "umount", "unshare", "tail", "seq", "date", "test", "ln", "chroot",
        "sort",
    ] {
        layer = layer.link(tar::EntryType::Symlink, &format!("bin/{applet}"), "busybox");
    }
    layer.done()
}

fn busybox_archive() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let plain = busybox_layer();
        let config = json!({"Env": ["FROM_IMAGE=yes"], "Cmd": ["/bin/sh"], "StopSignal": "SIGTERM"});
        oci_archive(IMAGE, &[(gzip(&plain), plain)], config)
    })
}
