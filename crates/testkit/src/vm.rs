//! A second kernel for tests: what this machine's kernel lacks (pure cgroup v2, AppArmor or SELinux, WireGuard, IPVS) is tested for
//! real on the kernel of Debian's `linux-image-cloud-amd64` under QEMU's software emulation.
//!
//! The guest boots from an initramfs of busybox and the modules it needs, and then sees this machine's files by
//! virtiofs, which it cannot write: what it writes stays in its memory. So a program runs there as it was built here, at the
//! same path, with the same libraries and tools beside it. KVM is never used: where `/dev/kvm` exists, guests may hang.
//!
//! Packages are unpacked into the cache, nothing is installed. All processes and files of a run end with it.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, MountPropagationFlags, mount_change, mount_remount};

mod initramfs;
mod selinux;

use crate::netns::NetNs;
use crate::{cache_dir, debian, etcd::die_with_parent};

/// Ends the guest's output, with the status of what ran there behind it.
const STATUS: &str = "navarch-vm-status:";
/// Where the guest has a file system of its own, in memory; its `TMPDIR`.
const SCRATCH: &str = "/tmp/vm";
/// Tests wait so many times longer in there.
const PATIENCE: &str = "8";
/// Modules that are loaded at the start, with those they depend on: what a node's kernel usually has.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_rng",
    "virtio_net",
    "virtiofs",
    "overlay",
    "loop",
    "bridge",
    "br_netfilter",
    "veth",
    "vxlan",
    "wireguard",
    "dummy",
    "macvlan",
    "ifb",
    "sctp",
    "nf_tables",
    "nf_conntrack_netlink",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_fib_inet",
    "nft_hash",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_objref",
    "nft_quota",
    "nft_redir",
    "nft_reject_inet",
    "nft_meta_bridge",
    "nf_conntrack_bridge",
    "nft_reject_bridge",
    "nf_dup_netdev",
    "nft_fwd_netdev",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_MASQUERADE",
    "xt_multiport",
    "xt_nat",
    "sch_ingress",
    "sch_tbf",
    "sch_htb",
    "sch_netem",
    "sch_fq_codel",
    "cls_u32",
    "cls_matchall",
    "cls_flower",
    "cls_bpf",
    "act_mirred",
    "act_police",
    "act_gact",
];

/// How a guest is made.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its memory in MiB; what is not used costs nothing.
    pub memory: u32,
    /// Its processors.
    pub cpus: u32,
    /// After so long it is ended, whatever it does.
    pub limit: Duration,
    /// Modules beside those of every guest.
    pub modules: &'static [&'static str],
    /// Variables of the programs in it.
    pub environment: &'static [(&'static str, &'static str)],
    /// It has SELinux with a small policy, which it enforces, in the place of AppArmor.
    pub selinux: bool,
    /// A host to whose wire its link `eth0` is joined, and the last part of its address there, 192.0.2.N.
    pub wire: Option<(NetNs, u8)>,
    /// Shows the guest's output while it runs.
    pub show: bool,
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            memory: 4096,
            cpus: 2,
            limit: Duration::from_secs(480),
            modules: &[],
            environment: &[],
            selinux: false,
            wire: None,
            show: false,
        }
    }
}

/// What a program in a guest left.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its exit code, as a shell gives it.
    pub status: i32,
    /// What it wrote, both streams.
    pub output: String,
}

/// What is on the disk for a guest.
struct Files {
    qemu: PathBuf,
    kernel: PathBuf,
    /// Its folder of modules.
    modules: PathBuf,
    busybox: PathBuf,
}

impl Vm {
    /// Runs `command` in a fresh guest to its end: its program, arguments, folder and variables. An error when the guest does
    /// not come up, or is not done in time.
    pub fn run(&self, command: &Command) -> anyhow::Result<Ended> {
        self.start(command)?.wait()
    }

    /// The same, without waiting for the end.
    pub fn start(&self, command: &Command) -> anyhow::Result<Guest> {
        if !cfg!(target_arch = "x86_64") {
            bail!("a second kernel for tests is prepared for x86-64 only");
        }
        let files = files()?;
        let folder = tempfile::Builder::new().prefix("navarch-vm-").tempdir()?;
        let wanted: Vec<&str> = MODULES.iter().chain(self.modules).copied().collect();
        let initrd = folder.path().join("initrd");
        let script = script(command, self.wire.as_ref().map(|(_, number)| *number))?;
        let policy = self.selinux.then(selinux::policy).transpose()?;
        initramfs::write(&initrd, &files.busybox, &files.modules, &wanted, &script, policy.as_deref())?;
        let socket = folder.path().join("fs");
        let console = folder.path().join("console");
        let share = Running(share(&files.qemu, &socket, &folder.path().join("share"))?);
        let mut qemu = self.qemu(&files, &initrd, &socket, &console)?;
        let output: Arc<Mutex<Vec<u8>>> = Arc::default();
        let from = qemu.0.stdout.take().context("QEMU has no output")?;
        let (kept, show) = (output.clone(), self.show);
        let reader = std::thread::spawn(move || collect(from, &kept, show));
        Ok(Guest {
            qemu,
            share,
            folder,
            output,
            reader: Some(reader),
            limit: self.limit,
            started: Instant::now(),
        })
    }

    /// Runs tests of this test program in a fresh guest: those whose names contain one of `filters`, or all without one, but
    /// for those named `vm::…` and `skipped`. What they wrote; panics when one of them failed, or when there were none.
    #[track_caller]
    pub fn test(&self, filters: &[&str], skipped: &[&str]) -> String {
        crate::fetch::everything().expect("what the tests need is there");
        let program = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(program);
        command.args(filters).args(["--skip", "vm::", "--test-threads", &self.cpus.to_string()]);
        command.args(skipped.iter().flat_map(|name| ["--skip", name]));
        command.envs(self.environment.iter().copied());
        let handed_on = |name: &str| {
            name.starts_with("CARGO_MANIFEST") || ["RUST_BACKTRACE", "NAVARCH_CACHE"].contains(&name)
        };
        for (name, value) in std::env::vars_os() {
            if name.to_str().is_some_and(handed_on) {
                command.env(name, value);
            }
        }
        let ended = self.run(&command).expect("the guest runs");
        let passed = ended.status == 0 && !ended.output.contains("test result: ok. 0 passed");
        assert!(passed, "tests in the guest ended with {}:\n{}", ended.status, ended.output);
        ended.output
    }

    fn qemu(&self, files: &Files, initrd: &Path, socket: &Path, console: &Path) -> anyhow::Result<Running> {
        let tree = &files.qemu;
        let mut command = Command::new(tree.join("usr/bin/qemu-system-x86_64"));
        command.env("LD_LIBRARY_PATH", debian::libraries(tree)?);
        for firmware in ["usr/share/seabios", "usr/share/qemu"] {
            command.arg("-L").arg(tree.join(firmware));
        }
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-machine", "q35,memory-backend=memory", "-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.args(["-object", &format!("memory-backend-memfd,id=memory,share=on,size={}M", self.memory)]);
        command.args(["-m", &format!("{}M", self.memory), "-smp", &self.cpus.to_string()]);
        command.arg("-kernel").arg(&files.kernel).arg("-initrd").arg(initrd);
        let line = "console=ttyS0 loglevel=4 panic=-1 mitigations=off apparmor=1 random.trust_cpu=on \
                    rcupdate.rcu_expedited=1";
        let security = if self.selinux { "selinux" } else { "apparmor" };
        command.args(["-append", &format!("{line} security={security}")]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
        command.args(["-chardev", "file,id=out,path=/dev/stdout", "-device", "virtserialport,chardev=out"]);
        command.arg("-chardev").arg(format!("socket,id=fs,path={}", socket.display()));
        command.args(["-device", "vhost-user-fs-pci,chardev=fs,tag=host,queue-size=1024"]);
        if let Some((host, number)) = &self.wire {
            let link = format!("guest{number}");
            host.ip(&format!("tuntap add {link} mode tap"))?;
            host.ip(&format!("link set {link} master uplink"))?;
            host.ip(&format!("link set {link} up"))?;
            command.args(["-netdev", &format!("tap,id=wire,ifname={link},script=no,downscript=no")]);
            command.args([
                "-device",
                &format!("virtio-net-pci,netdev=wire,mac=52:54:00:00:02:{number:02x},romfile="),
            ]);
            host.enter(&mut command);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        die_with_parent(&mut command);
        command.spawn().map(Running).context("cannot run QEMU")
    }
}

/// A guest that runs; it ends with this handle.
pub struct Guest {
    qemu: Running,
    share: Running,
    folder: tempfile::TempDir,
    output: Arc<Mutex<Vec<u8>>>,
    reader: Option<std::thread::JoinHandle<()>>,
    limit: Duration,
    started: Instant,
}

impl Guest {
    /// What it wrote up to now.
    pub fn output(&self) -> String {
        self.output.lock().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until it is done.
    pub fn wait(mut self) -> anyhow::Result<Ended> {
        let ended = loop {
            if self.qemu.0.try_wait()?.is_some() {
                break true;
            }
            if self.started.elapsed() > self.limit {
                break false;
            }
            crate::wait::pause();
        };
        self.qemu.end();
        self.share.end();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let output = self.output();
        let status = output
            .rsplit_once(STATUS)
            .and_then(|(before, status)| Some((before.to_owned(), status.trim().parse().ok()?)));
        match status {
            Some((output, status)) => Ok(Ended { status, output }),
            None => {
                let why = if ended { "ended early" } else { "was not done in time" };
                bail!("the guest {why} ({} s at most)\n{}", self.limit.as_secs(), self.logs())
            }
        }
    }

    /// All that is known of it, for a person.
    pub fn logs(&self) -> String {
        let [console, share] = ["console", "share"].map(|name| {
            let log = std::fs::read(self.folder.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&log).into_owned()
        });
        format!("--- output\n{}\n--- console\n{console}\n--- files\n{share}", self.output())
    }
}

/// A process that ends with this handle.
struct Running(Child);

impl Running {
    fn end(&mut self) {
        // it may have ended by itself
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn collect(mut from: impl Read, kept: &Mutex<Vec<u8>>, show: bool) {
    let mut bytes = [0; 4096];
    while let Ok(count) = from.read(&mut bytes)
        && count > 0
    {
        if show {
            let _ = std::io::stdout().write_all(&bytes[..count]);
        }
        if let Ok(mut kept) = kept.lock() {
            kept.extend_from_slice(&bytes[..count]);
        }
    }
}

/// Serves this machine's files at `socket`, in a view of them that nobody can write.
#[allow(
    unsafe_code,
    reason = "mounts are made read-only between fork and exec; the calls are async-signal-safe"
)]
fn share(tree: &Path, socket: &Path, log: &Path) -> anyhow::Result<Child> {
    let listener = UnixListener::bind(socket)?;
    let fd = listener.as_raw_fd();
    let mut command = Command::new(tree.join("usr/lib/qemu/virtiofsd"));
    command.env("LD_LIBRARY_PATH", debian::libraries(tree)?);
    command.args(["-f", &format!("--fd={fd}"), "--rlimit-nofile=0"]);
    command
        .args(["-o", "source=/,cache=always,sandbox=chroot,no_xattr,no_posix_lock,no_flock,log_level=err"]);
    let log = std::fs::File::create(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let prepare = move || {
        fcntl_setfd(&listener, FdFlags::empty())?;
        // SAFETY: this is the child's only thread; no file descriptor table is shared.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)? };
        mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount_remount(c"/", MountFlags::BIND | MountFlags::RDONLY, c"")?;
        Ok(())
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(prepare) };
    die_with_parent(&mut command);
    command.spawn().context("cannot run virtiofsd")
}

/// What the guest runs when its file systems are there. On a wire it has this number.
fn script(command: &Command, wire: Option<u8>) -> anyhow::Result<String> {
    let text = |value: &std::ffi::OsStr| -> anyhow::Result<String> {
        let value = value.to_str().with_context(|| format!("{} is not text", value.display()))?;
        Ok(format!("'{}'", value.replace('\'', r"'\''")))
    };
    let mut lines = vec![format!("export TMPDIR={SCRATCH} NAVARCH_TEST_PATIENCE={PATIENCE}")];
    if let Some(number) = wire {
        for line in [
            format!("address add 192.0.2.{number}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            "route add default via 192.0.2.1 dev eth0".to_owned(),
        ] {
            lines.push(format!("/run/busybox ip {line}"));
        }
    }
    for name in ["PATH", "HOME"] {
        if let Some(value) = std::env::var_os(name) {
            lines.push(format!("export {name}={}", text(&value)?));
        }
    }
    lines.push(format!("export NAVARCH_CACHE={}", text(cache_dir().as_os_str())?));
    let folder = match command.get_current_dir() {
        Some(folder) => folder.to_owned(),
        None => std::env::current_dir()?,
    };
    lines.push(format!("cd {}", text(folder.as_os_str())?));
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => lines.push(format!("export {}={}", name.display(), text(value)?)),
            None => lines.push(format!("unset {}", name.display())),
        }
    }
    let mut words = vec![text(command.get_program())?];
    for argument in command.get_args() {
        words.push(text(argument)?);
    }
    lines.push(format!("{} </dev/null", words.join(" ")));
    lines.push(format!("echo \"{STATUS} $?\""));
    Ok(lines.join("\n"))
}

/// Fetches and unpacks what is not there yet.
fn files() -> anyhow::Result<Files> {
    let qemu = debian::with_libraries(
        "qemu",
        &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"],
    )?;
    let image = debian::tree("kernel", || {
        // the package of this name names the newest kernel
        let depends = debian::apt_cache(&["depends", "--important", "linux-image-cloud-amd64"])?;
        let name = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
        Ok(vec![format!("linux-image-{}", name.context("no kernel for clouds")?)])
    })?;
    let busybox = debian::busybox()?;
    let release =
        std::fs::read_dir(image.join("lib/modules"))?.next().context("a kernel without modules")??;
    let release = release.file_name();
    let kernel = image.join("boot").join(format!("vmlinuz-{}", release.display()));
    Ok(Files { qemu, kernel, modules: image.join("lib/modules").join(release), busybox })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_kernel_runs_programs_of_this_machine_and_changes_nothing_of_it() {
        let mark = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(mark.path(), "kept").unwrap();
        let mut command = Command::new("sh");
        let script = "stat -f -c %T /sys/fs/cgroup; cat /sys/module/apparmor/parameters/enabled; \
                      cat \"$MARK\"; echo changed > \"$MARK\"; cat \"$MARK\"; exit 7";
        command.args(["-c", script]).env("MARK", mark.path());
        let ended = Vm::default().run(&command).unwrap();
        assert_eq!((ended.output.as_str(), ended.status), ("cgroup2fs\nY\nkeptchanged\n", 7));
        assert_eq!(std::fs::read_to_string(mark.path()).unwrap(), "kept");
    }
}
