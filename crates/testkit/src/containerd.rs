//! Debian's containerd with runc, beside a cluster: another container runtime for our kubelet.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::etcd::die_with_parent;
use crate::netns::NetNs;
use crate::{debian, image, run};

/// The program's package first, then what it runs, and the libraries they need.
const PACKAGES: &[&str] = &["containerd", "runc", "containernetworking-plugins", "libseccomp2"];
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where its folders are, named after the process that made them.
const PREFIX: &str = "navarch-containerd-";
/// Where every containerd keeps the sockets of its shims.
const SHIM_SOCKETS: &str = "/run/containerd/s";

/// It, runc and what they need.
pub(crate) fn tools() -> anyhow::Result<debian::Unpacked> {
    debian::Unpacked::new("containerd", PACKAGES)
}

/// A containerd in folders of its own. Dropping it ends everything that it runs and removes what it made.
pub struct Containerd {
    process: Option<Child>,
    folder: tempfile::TempDir,
    tools: debian::Unpacked,
}

impl Containerd {
    /// One that does not run yet.
    pub fn new() -> anyhow::Result<Self> {
        clean_up_after_killed_runs();
        let tools = tools()?;
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let this = Self { process: None, folder: tempfile::Builder::new().prefix(&prefix).tempdir()?, tools };
        fs::create_dir(this.path("cni"))?;
        fs::write(this.path("cni/10-bridge.conflist"), network(&this.path("addresses")))?;
        fs::write(this.path("config.toml"), settings(this.folder.path(), &this.tools.folder))?;
        Ok(this)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: &str) -> anyhow::Result<Command> {
        let mut command = self.tools.command(program);
        let own = std::env::var_os("PATH").unwrap_or_default();
        let paths = ["usr/bin", "usr/sbin"].map(|place| self.tools.folder.join(place));
        command.env("PATH", std::env::join_paths(paths.into_iter().chain(std::env::split_paths(&own)))?);
        Ok(command)
    }

    /// Starts it on the host `net`; what ran before is taken over.
    pub fn start(&mut self, net: &NetNs) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.path("log"))?;
        let mut command = self.command("containerd")?;
        command.arg("--config").arg(self.path("config.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        die_with_parent(&mut command);
        net.enter(&mut command);
        let mut process = command.spawn().context("cannot run containerd")?;
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = UnixStream::connect(self.socket()) {
            if Instant::now() > deadline || process.try_wait()?.is_some() {
                // it may have ended by itself
                let _ = process.kill();
                let _ = process.wait();
                bail!("containerd: {error}\n{}", self.log());
            }
            crate::wait::pause();
        }
        self.process = Some(process);
        if self.images()?.is_empty() {
            for archive in [image::busybox()?, pause()?] {
                self.import(&archive)?;
            }
        }
        Ok(())
    }

    /// Kills it as a crash would; its containers run on.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.path("containerd.sock")
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Processes that hold the containers: one for each pod.
    pub fn shims(&self) -> Vec<u32> {
        shims(self.folder.path())
    }

    /// What it said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn ctr(&self) -> anyhow::Result<Command> {
        let mut command = self.command("ctr")?;
        command.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io", "images"]);
        Ok(command)
    }

    fn images(&self) -> anyhow::Result<String> {
        run(self.ctr()?.args(["list", "--quiet"]))
    }

    /// Takes in an archive of images.
    pub fn import(&self, archive: &Path) -> anyhow::Result<()> {
        run(self.ctr()?.arg("import").arg(archive)).map(drop)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.kill();
        clean_up(self.folder.path());
    }
}

/// A test run that was killed leaves its containers; their folder is named after its process.
fn clean_up_after_killed_runs() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(owner) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if !Path::new("/proc").join(owner).exists() {
            clean_up(&entry.path());
            // another test may do the same
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Ends what runs of the containerd in `folder`: its containers, which their first process takes along, then who holds them,
/// then what is mounted.
fn clean_up(folder: &Path) {
    let tasks = folder.join("state/io.containerd.runtime.v2.task/k8s.io");
    for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("init.pid")).unwrap_or_default();
        // its runtime's own process of that number, not one that has it by now
        let bundle = task.file_name().to_string_lossy().into_owned();
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", text.trim())).unwrap_or_default();
        if groups.contains(&bundle) {
            kill(text.trim().parse().ok());
        }
    }
    for shim in shims(folder) {
        kill(i32::try_from(shim).ok());
    }
    let deadline = Instant::now() + PATIENCE;
    while !shims(folder).is_empty() && Instant::now() < deadline {
        crate::wait::pause();
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(folder)).rev() {
        // gone with another, at best
        let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
    }
    for socket in fs::read_dir(SHIM_SOCKETS).into_iter().flatten().flatten() {
        if UnixStream::connect(socket.path()).is_err() {
            // nobody is behind it any more
            let _ = fs::remove_file(socket.path());
        }
    }
    for folder in [SHIM_SOCKETS, "/run/containerd"] {
        // not where another containerd uses it
        let _ = fs::remove_dir(folder);
    }
}

fn shims(folder: &Path) -> Vec<u32> {
    let own = folder.to_string_lossy().into_owned();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let shims = processes.filter(|process| {
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        arguments.contains("/containerd-shim") && arguments.contains(&own)
    });
    shims.filter_map(|process| process.file_name().to_str()?.parse().ok()).collect()
}

fn kill(pid: Option<i32>) {
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        // it may be gone
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// What holds a pod's namespaces.
fn pause() -> anyhow::Result<PathBuf> {
    image::build(&image::Recipe {
        reference: "docker.io/library/pause:test",
        packages: &["busybox-static"],
        files: &[],
        command: &["/bin/sleep", "infinity"],
        busybox: true,
    })
}

fn network(addresses: &Path) -> String {
    serde_json::json!({"cniVersion": "0.4.0", "name": "bridge", "plugins": [{
        "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
        "ipam": {"type": "host-local", "dataDir": addresses, "ranges": [[{"subnet": "10.88.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}]},
    }]})
    .to_string()
}

/// `restrict_oom_score_adj`: where the test may not lower that score, nor may containerd.
fn settings(folder: &Path, tools: &Path) -> String {
    let (folder, tools) = (folder.display(), tools.display());
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    format!(
        "version = 2\nroot = \"{folder}/root\"\nstate = \"{folder}/state\"\n\
         [grpc]\naddress = \"{folder}/containerd.sock\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{folder}/opt\"\n\
         [{cri}]\nsandbox_image = \"docker.io/library/pause:test\"\nrestrict_oom_score_adj = true\n\
         netns_mounts_under_state_dir = true\n\
         [{cri}.cni]\nbin_dir = \"{tools}/usr/lib/cni\"\nconf_dir = \"{folder}/cni\"\n\
         [{cri}.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
         [{cri}.containerd.runtimes.runc.options]\nBinaryName = \"runc\"\nRoot = \"{folder}/runc\"\n"
    )
}
