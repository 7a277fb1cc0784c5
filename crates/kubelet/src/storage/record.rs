//! What the node remembers of CSI volumes, in files beside them.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::sha256;
use crate::files::write_json;

const FILE: &str = "vol_data.json";
/// Stands beside it once the driver said that all is done.
const DONE: &str = "vol_done";
/// Stands beside it from before the driver is asked to show the volume.
const PUBLISHING: &str = "vol_publishing";

/// A volume that a pod uses; in the pod's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRecord {
    /// The driver's id of the volume.
    pub volume_handle: String,
    /// The driver.
    pub driver_name: String,
    /// The PersistentVolume's name, or the volume's in the pod.
    #[serde(rename = "specVolID")]
    pub name: String,
    /// A device.
    pub block: bool,
    /// The cluster attached it to the node.
    pub attached: bool,
    /// The namespace of the pod and its claim.
    pub claim: String,
    /// The SELinux label that the pod needs of its files, where the driver can mount it with one.
    #[serde(default, rename = "seLinuxLabel", skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// A volume that is ready for the node's pods; in the driver's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StageRecord {
    /// The driver's id of the volume.
    pub volume_handle: String,
    /// The driver.
    pub driver_name: String,
    /// A device.
    pub block: bool,
    /// The cluster attached it to the node.
    pub attached: bool,
    /// The PersistentVolume's name.
    pub name: String,
}

/// Mounts do not outlive the machine's run.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn is_done(folder: &Path) -> bool {
    std::fs::read_to_string(folder.join(DONE)).is_ok_and(|text| text == boot())
}

fn unique(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

fn plugins(root: &Path) -> PathBuf {
    root.join("plugins/kubernetes.io/csi")
}

fn read<T: DeserializeOwned>(folder: &Path) -> Option<T> {
    let bytes = std::fs::read(folder.join(FILE)).ok()?;
    serde_json::from_slice(&bytes)
        .inspect_err(
            |error| tracing::warn!(%error, folder = %folder.display(), "unreadable record of a volume"),
        )
        .ok()
}

/// Removes a file or an empty folder that may be gone: what is in a folder that a driver left is not ours to remove.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

impl PodRecord {
    /// The name under which the cluster knows the volume.
    pub fn unique(&self) -> String {
        unique(&self.driver_name, &self.volume_handle)
    }

    fn folder(&self, dir: &Path) -> PathBuf {
        let kind = if self.block { "volumeDevices" } else { "volumes" };
        dir.join(kind).join("kubernetes.io~csi").join(&self.name)
    }

    /// Where the driver shows the volume to the pod.
    pub fn target(&self, root: &Path, dir: &Path, uid: &str) -> PathBuf {
        match self.block {
            true => plugins(root).join("volumeDevices/publish").join(&self.name).join(uid),
            false => self.folder(dir).join("mount"),
        }
    }

    /// What stands here of this volume of the pod.
    pub fn known(&self, dir: &Path) -> Option<Self> {
        read(&self.folder(dir))
    }

    /// Before anything is done.
    pub fn begin(&self, dir: &Path) -> io::Result<()> {
        write_json(&self.folder(dir), FILE, self)
    }

    /// Before the driver shows the volume: the folder above the target is there.
    pub fn publishing(&self, dir: &Path, target: &Path) -> io::Result<()> {
        std::fs::write(self.folder(dir).join(PUBLISHING), "")?;
        target.parent().map_or(Ok(()), std::fs::create_dir_all)
    }

    /// Whether the driver was asked to; records without that mark are of kubelets that knew none.
    pub fn was_published(&self, dir: &Path) -> bool {
        let folder = self.folder(dir);
        folder.join(PUBLISHING).exists() || folder.join(DONE).exists()
    }

    /// The driver did it.
    pub fn done(&self, dir: &Path) -> io::Result<()> {
        std::fs::write(self.folder(dir).join(DONE), boot())
    }

    /// Whether it did, since the machine was started.
    pub fn is_done(&self, dir: &Path) -> bool {
        is_done(&self.folder(dir))
    }

    /// The driver undid it.
    pub fn remove(&self, root: &Path, dir: &Path, uid: &str) -> io::Result<()> {
        let target = self.target(root, dir, uid);
        remove(&target)?;
        if self.block {
            // another pod may use it
            let _ = target.parent().map(std::fs::remove_dir);
        }
        let folder = self.folder(dir);
        remove(&folder.join(DONE))?;
        remove(&folder.join(PUBLISHING))?;
        remove(&folder.join(FILE))?;
        remove(&folder)
    }
}

impl StageRecord {
    /// The name under which the cluster knows the volume.
    pub fn unique(&self) -> String {
        unique(&self.driver_name, &self.volume_handle)
    }

    fn folder(&self, root: &Path) -> PathBuf {
        let sum = sha256(&self.volume_handle);
        match self.block {
            true => plugins(root).join("volumeDevices").join(&self.name).join("data"),
            false => plugins(root).join(&self.driver_name).join(sum),
        }
    }

    /// Where the driver stages the volume.
    pub fn path(&self, root: &Path) -> PathBuf {
        match self.block {
            true => plugins(root).join("volumeDevices/staging").join(&self.name),
            false => self.folder(root).join("globalmount"),
        }
    }

    /// Before the driver is called.
    pub fn begin(&self, root: &Path) -> io::Result<()> {
        write_json(&self.folder(root), FILE, self)?;
        std::fs::create_dir_all(self.path(root))
    }

    /// The driver did it.
    pub fn done(&self, root: &Path) -> io::Result<()> {
        std::fs::write(self.folder(root).join(DONE), boot())
    }

    /// Whether it did, since the machine was started.
    pub fn is_done(&self, root: &Path) -> bool {
        is_done(&self.folder(root))
    }

    /// The driver undid it.
    pub fn remove(&self, root: &Path) -> io::Result<()> {
        remove(&self.path(root))?;
        let folder = self.folder(root);
        remove(&folder.join(DONE))?;
        remove(&folder.join(FILE))?;
        remove(&folder)
    }
}

/// The volumes of a pod.
pub fn of_pod(dir: &Path) -> Vec<PodRecord> {
    let kinds = ["volumes", "volumeDevices"].map(|kind| dir.join(kind).join("kubernetes.io~csi"));
    kinds.iter().flat_map(|kind| folders(kind)).filter_map(|folder| read(&folder)).collect()
}

/// The volumes that are staged, or were about to be.
pub fn staged(root: &Path) -> Vec<StageRecord> {
    let drivers = folders(&plugins(root));
    let ordinary =
        drivers.iter().filter(|path| !path.ends_with("volumeDevices")).flat_map(|path| folders(path));
    let blocks = folders(&plugins(root).join("volumeDevices")).into_iter().map(|path| path.join("data"));
    ordinary.chain(blocks).filter_map(|folder| read(&folder)).collect()
}

/// The volumes of all pods.
pub fn of_pods(root: &Path) -> impl Iterator<Item = PodRecord> {
    folders(&root.join("pods")).into_iter().flat_map(|dir| of_pod(&dir))
}
