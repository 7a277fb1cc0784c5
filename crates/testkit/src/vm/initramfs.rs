//! The first files of a guest: busybox, modules in the order in which they load, and the program of its first process.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::SCRATCH;

/// Writes an initramfs that loads `modules` of the folder `tree`, and the SELinux policy `policy`, and then runs the shell script
/// `run` among this machine's files.
pub(super) fn write(
    to: &Path,
    busybox: &Path,
    tree: &Path,
    modules: &[&str],
    run: &str,
    policy: Option<&[u8]>,
) -> anyhow::Result<()> {
    let mut archive = Archive { bytes: Vec::new(), number: 0 };
    for folder in ["bin", "dev", "proc", "sys", "modules", "host", "own", "root"] {
        archive.add(folder, 0o040_755, &[]);
    }
    let busybox = std::fs::read(busybox).with_context(|| busybox.display().to_string())?;
    archive.add("bin/busybox", 0o100_755, &busybox);
    for (place, path) in load_order(tree, modules)?.iter().enumerate() {
        let module = std::fs::read(path).with_context(|| path.display().to_string())?;
        archive.add(&format!("modules/{place:03}.ko"), 0o100_644, &module);
    }
    archive.add("run", 0o100_644, run.as_bytes());
    if let Some(policy) = policy {
        archive.add("policy", 0o100_644, policy);
    }
    archive.add("init", 0o100_755, init().as_bytes());
    archive.add("TRAILER!!!", 0, &[]);
    std::fs::File::create(to)?.write_all(&archive.bytes)?;
    Ok(())
}

/// The first process: makes the file systems of a machine, runs the script, turns the machine off.
///
/// Overlayfs takes no overlayfs as its upper layer: what tests write has to lie in a tmpfs of its own.
fn init() -> String {
    format!(
        r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do insmod $module || echo "cannot load $module"; done
mount -t virtiofs host /host
mount -t tmpfs -o size=100% tmpfs /own
mkdir /own/upper /own/work
mount -t overlay -o lowerdir=/host,upperdir=/own/upper,workdir=/own/work overlay /root || poweroff -f
cd /root
for system in proc sys dev; do mount --move /$system $system; done
mkdir -p dev/pts dev/shm dev/mqueue run .{SCRATCH}
mount -t devpts -o ptmxmode=666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t mqueue mqueue dev/mqueue
mount -t securityfs securityfs sys/kernel/security
mount -t bpf bpf sys/fs/bpf
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o size=100%,mode=1777 tmpfs .{SCRATCH}
cp /bin/busybox run/busybox
cp /run run/vm
ln -sf /proc/self/fd dev/fd
ln -sf fd/0 dev/stdin; ln -sf fd/1 dev/stdout; ln -sf fd/2 dev/stderr
ip link set lo up
if [ -e /policy ]; then
    mount -t selinuxfs selinuxfs sys/fs/selinux
    mkdir -p etc/selinux/test/contexts
    echo SELINUXTYPE=test > etc/selinux/config
    echo process = \"system_u:system_r:container_t:s0\" > etc/selinux/test/contexts/lxc_contexts
    echo file = \"system_u:object_r:container_file_t:s0\" >> etc/selinux/test/contexts/lxc_contexts
    # a policy is taken in one piece only
    dd if=/policy of=sys/fs/selinux/load bs=1M
    echo 1 > sys/fs/selinux/enforce
fi
echo guest > proc/sys/kernel/hostname
echo 1 > proc/sys/kernel/panic_on_oops
exec switch_root . /run/busybox sh -c '
/bin/sh /run/vm > $(echo /dev/vport*) 2>&1
/run/busybox poweroff -f'
"#
    )
}

/// The files of `modules` and of those they depend on, such that each one stands behind those that it needs.
fn load_order(tree: &Path, modules: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = BTreeMap::new();
    find(&tree.join("kernel"), &mut files)?;
    let built_in = std::fs::read_to_string(tree.join("modules.builtin"))?;
    let built_in: Vec<String> = built_in.lines().filter_map(|line| name(Path::new(line))).collect();
    let mut order = Vec::new();
    for module in modules {
        add(&module.replace('-', "_"), &files, &built_in, &mut order)?;
    }
    Ok(order)
}

fn add(
    module: &str,
    files: &BTreeMap<String, PathBuf>,
    built_in: &[String],
    order: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    if built_in.iter().any(|known| known == module) {
        return Ok(());
    }
    let path = files.get(module).with_context(|| format!("the kernel has no module {module}"))?;
    if order.contains(path) {
        return Ok(());
    }
    for needed in depends(&std::fs::read(path)?) {
        add(&needed, files, built_in, order)?;
    }
    order.push(path.clone());
    Ok(())
}

/// The modules that a module says it needs: the line `depends=a,b` of its ELF section `.modinfo`.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let line = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    line.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

fn find(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if let Some(name) = name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// A module's name, of its file's.
fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.strip_suffix(".ko")?.replace('-', "_"))
}

/// A `cpio` archive in the format that the kernel unpacks (`newc`).
struct Archive {
    bytes: Vec<u8>,
    number: u32,
}

impl Archive {
    fn add(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.number += 1;
        let mut header = "070701".to_owned();
        let (size, length) = (content.len() as u32, path.len() as u32 + 1);
        // number, mode, owner, group, links, time, size, four device numbers, length of the name, no checksum
        for field in [self.number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0] {
            header.push_str(&format!("{field:08x}"));
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        assert_eq!(
            depends(b"\0license=GPL\0depends=nf-tables,udp_tunnel\0name=x\0"),
            ["nf_tables", "udp_tunnel"]
        );
        assert!(depends(b"\0depends=\0name=x\0").is_empty());
    }

    #[test]
    fn names_and_contents_begin_at_multiples_of_four() {
        let mut archive = Archive { bytes: Vec::new(), number: 0 };
        archive.add("ab", 0o100_644, b"12345");
        assert_eq!(archive.bytes.len() % 4, 0);
        assert_eq!(&archive.bytes[..6], b"070701");
        assert_eq!(&archive.bytes[110..124], b"ab\0\0\0\x0012345\0\0\0");
    }
}
