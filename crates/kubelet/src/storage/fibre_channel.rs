//! Disks behind a Fibre Channel adapter of the machine, found by the names that udev gives them.
//!
//! Rule: Kubernetes documentation, "Volumes" (`fc`).

use std::path::PathBuf;

use k8s_openapi::api::core::v1::FCVolumeSource;
use serde::{Deserialize, Serialize};

use super::host::{Host, entries, file_name};
use super::multipath;

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// World wide names of its ports; with them the number.
    pub wwns: Vec<String>,
    /// The disk's number there.
    pub lun: i32,
    /// Or its own world wide identifiers.
    pub wwids: Vec<String>,
}

impl Target {
    /// Of a volume.
    pub fn of(source: &FCVolumeSource) -> Result<Self, String> {
        let wwns = source.target_wwns.clone().unwrap_or_default();
        // udev writes spaces as underscores
        let wwids: Vec<String> = source.wwids.iter().flatten().map(|id| id.replace(' ', "_")).collect();
        match source.lun {
            Some(lun) if !wwns.is_empty() => Ok(Self { wwns, lun, wwids: Vec::new() }),
            _ if !wwids.is_empty() => Ok(Self { wwns: Vec::new(), lun: 0, wwids }),
            _ => Err("fc: no fc disk information found. failed to make a new mounter".to_owned()),
        }
    }

    /// What tells it from other disks.
    pub fn id(&self) -> String {
        if self.wwns.is_empty() {
            return format!("kubernetes.io/fc/{:?}", self.wwids);
        }
        format!("kubernetes.io/fc/{:?}:{}", self.wwns, self.lun)
    }

    /// Finds the disk; the adapters look for new ones where it takes that.
    pub fn attach(&self, host: &Host) -> Result<PathBuf, String> {
        let joined = |disks: &[PathBuf]| disks.iter().find_map(|disk| multipath::above(host, disk));
        if let Some(device) = joined(&self.disks(host)) {
            return Ok(device);
        }
        for adapter in entries(&host.sys.join("class/scsi_host")) {
            let scan = adapter.join("scan");
            if let Err(error) = std::fs::write(&scan, "- - -") {
                tracing::debug!(%error, path = %scan.display(), "not looked for disks");
            }
        }
        let disks = self.disks(host);
        joined(&disks).or_else(|| disks.last().cloned()).ok_or_else(|| "no fc disk found".to_owned())
    }

    fn disks(&self, host: &Host) -> Vec<PathBuf> {
        let named = |folder: &str| entries(&host.dev.join("disk").join(folder));
        let is_port = |name: &str, wwn: &str| {
            let end = format!("fc-0x{wwn}-lun-{}", self.lun);
            name == end || (name.starts_with("pci-") && name.ends_with(&format!("-{end}")))
        };
        let by_port = named("by-path");
        let by_port = self.wwns.iter().filter_map(|wwn| by_port.iter().find(|p| is_port(file_name(p), wwn)));
        let by_id = named("by-id");
        let by_id =
            self.wwids.iter().filter_map(|id| by_id.iter().find(|p| file_name(p) == format!("scsi-{id}")));
        by_port.chain(by_id).filter_map(|link| link.canonicalize().ok()).collect()
    }

    /// Takes the disk from the kernel.
    pub async fn detach(&self, host: &Host) -> Result<(), String> {
        let found = self.disks(host);
        let Some(first) = found.first() else { return Ok(()) };
        let disks = multipath::below(host, &multipath::above(host, first).unwrap_or_else(|| first.clone()));
        multipath::forget(host, &disks).await;
        disks.iter().for_each(|disk| multipath::delete(host, disk));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn a_disk_is_found_by_its_ports_or_its_own_name_and_the_device_that_joins_its_ways_wins() {
        let dir = tempfile::tempdir().unwrap();
        let (dev, sys) = (dir.path().join("dev"), dir.path().join("sys"));
        let host = Host { programs: Vec::new(), dev: dev.clone(), sys: sys.clone(), file_label: None };
        for folder in ["disk/by-path", "disk/by-id"] {
            std::fs::create_dir_all(dev.join(folder)).unwrap();
        }
        for name in ["sdb", "sdc", "dm-3"] {
            std::fs::write(dev.join(name), "").unwrap();
            std::fs::create_dir_all(sys.join("block").join(name).join("device")).unwrap();
            std::fs::write(sys.join("block").join(name).join("device/delete"), "").unwrap();
        }
        let adapter = sys.join("class/scsi_host/host4");
        std::fs::create_dir_all(&adapter).unwrap();
        let target = |value| Target::of(&serde_json::from_value(value).unwrap()).unwrap();
        let ports = target(serde_json::json!({"targetWWNs": ["50060e801049cfd1"], "lun": 2}));
        let own = target(serde_json::json!({"wwids": ["360 05"]}));
        assert_eq!(ports.attach(&host), Err("no fc disk found".to_owned()));
        assert_eq!(std::fs::read_to_string(adapter.join("scan")).unwrap(), "- - -");
        symlink("../../sdb", dev.join("disk/by-path/pci-0000:41:00.0-fc-0x50060e801049cfd1-lun-2")).unwrap();
        symlink("../../sdb", dev.join("disk/by-path/pci-0000:41:00.0-fc-0x50060e801049cfd1-lun-20")).unwrap();
        symlink("../../sdc", dev.join("disk/by-id/scsi-360_05")).unwrap();
        assert_eq!(ports.attach(&host), Ok(dev.join("sdb").canonicalize().unwrap()));
        assert_eq!(own.attach(&host), Ok(dev.join("sdc").canonicalize().unwrap()));
        std::fs::create_dir_all(sys.join("block/dm-3/slaves/sdb")).unwrap();
        std::fs::create_dir_all(sys.join("block/dm-3/slaves/sdc")).unwrap();
        assert_eq!(ports.attach(&host), Ok(dev.join("dm-3")));
        ports.detach(&host).await.unwrap();
        for name in ["sdb", "sdc"] {
            let switch = sys.join("block").join(name).join("device/delete");
            assert_eq!(std::fs::read_to_string(switch).unwrap(), "1", "{name}");
        }
    }
}
