//! Disks of the SCSI kind, and what joins several ways to one of them.

use std::path::{Path, PathBuf};

use super::host::{Host, entries, file_name};

/// The device that joins this disk with others, where there is one.
pub fn above(host: &Host, disk: &Path) -> Option<PathBuf> {
    let real = disk.canonicalize().ok()?;
    let name = file_name(&real);
    if name.starts_with("dm-") {
        return Some(real);
    }
    let maps = entries(&host.sys.join("block")).into_iter().filter(|path| file_name(path).starts_with("dm-"));
    let mut of_disk = maps.filter(|map| map.join("slaves").join(name).exists());
    of_disk.next().map(|map| host.dev.join(file_name(&map)))
}

/// Disks that a device joins; the device itself where it is a plain disk. As folders in `/sys/block`.
pub fn below(host: &Host, device: &Path) -> Vec<PathBuf> {
    let real = device.canonicalize().unwrap_or_else(|_| device.to_owned());
    let block = host.sys.join("block");
    if !file_name(&real).starts_with("dm-") {
        return vec![block.join(file_name(&real))];
    }
    let slaves = entries(&block.join(file_name(&real)).join("slaves"));
    slaves.iter().map(|slave| block.join(file_name(slave))).collect()
}

/// Lets go of what joins these disks (folders in `/sys`).
pub async fn forget(host: &Host, disks: &[PathBuf]) {
    let mut joined: Vec<PathBuf> =
        disks.iter().filter_map(|disk| above(host, &host.dev.join(file_name(disk)))).collect();
    joined.sort();
    joined.dedup();
    for device in joined {
        if let Err(error) = host.run("multipath", &["-f", &device.display().to_string()]).await {
            tracing::warn!(%error, device = %device.display(), "a multipath device is left");
        }
    }
}

/// Takes a disk (its folder in `/sys`) from the kernel, written out.
pub fn delete(host: &Host, disk: &Path) {
    let device = host.dev.join(file_name(disk));
    let synced = std::fs::File::open(&device).and_then(|file| file.sync_all());
    if let Err(error) = synced {
        tracing::debug!(%error, device = %device.display(), "not written out");
    }
    let switch = disk.join("device/delete");
    if switch.exists()
        && let Err(error) = std::fs::write(&switch, "1")
    {
        tracing::warn!(%error, device = %device.display(), "a disk is left");
    }
}
