//! How full the volumes of claims and of drivers are: drivers say it of theirs, the file system of the others.
//!
//! Nothing is measured until somebody asks. What is younger than the period stands; what is older is measured anew, by one
//! task per volume. Whoever asks waits for that a little: a driver or a file system that hangs keeps nobody.
//!
//! Rule: Kubernetes documentation, "Volume Health Monitoring", "Metrics For Kubernetes System Components"
//! (`kubelet_volume_stats_...`); the CSI specification, `NodeGetVolumeStats`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Storage;
use crate::csi::driver::told;
use crate::csi::messages::{NodeGetVolumeStatsRequest, VolumeUsage as Told};

/// So long who asks waits for what is being measured.
const PATIENCE: Duration = Duration::from_secs(2);
/// CSI's units.
const BYTES: i32 = 1;
const INODES: i32 = 2;

/// What a volume holds; zero where its driver does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Bytes that may still be written.
    pub available: u64,
    /// Bytes at all.
    pub capacity: u64,
    /// Bytes in use.
    pub used: u64,
    /// Inodes that may still be made.
    pub inodes_free: u64,
    /// Inodes at all.
    pub inodes: u64,
    /// Inodes in use.
    pub inodes_used: u64,
}

/// What was measured, and when; by the pod's uid and the volume's name.
pub type Measured = HashMap<(String, String), (Timestamp, VolumeUsage)>;

/// Where a volume of a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A driver's.
    Driver { driver: String, handle: String, path: PathBuf },
    /// A folder of a file system of its own.
    Folder(PathBuf),
    /// A device, of which only the size is known.
    Device(PathBuf),
}

/// A volume that a pod has.
pub(super) struct Shown {
    source: Source,
    /// The last outcome, and when there was one.
    last: Mutex<Option<(Instant, Option<(Timestamp, VolumeUsage)>)>>,
    /// Held by the task that measures.
    busy: Arc<tokio::sync::Mutex<()>>,
}

impl Storage {
    /// Remembers where a volume is until the pod gives it back.
    pub(super) fn show(&self, pod: &Pod, volume: &str, source: Source) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let mut shown = self.shown.lock();
        let of_pod = shown.entry(uid).or_default();
        if of_pod.get(volume).is_none_or(|known| known.source != source) {
            let fresh = Shown { source, last: Mutex::default(), busy: Arc::default() };
            of_pod.insert(volume.to_owned(), Arc::new(fresh));
        }
    }

    /// The pod's containers ran before this kubelet did, and with them its volumes were there.
    pub fn adopt(&self, pod: &Pod) {
        self.adopted.lock().extend(pod.metadata.uid.clone());
    }

    /// Whether the pod has its volume there already.
    pub(super) fn is_shown(&self, pod: &Pod, volume: &str, source: &Source) -> bool {
        if pod.metadata.uid.as_ref().is_some_and(|uid| self.adopted.lock().contains(uid)) {
            return true;
        }
        let shown = self.shown.lock();
        let of_pod = pod.metadata.uid.as_ref().and_then(|uid| shown.get(uid));
        of_pod.and_then(|volumes| volumes.get(volume)).is_some_and(|known| known.source == *source)
    }

    /// Whether another pod of the node has it.
    pub(super) fn is_shown_beside(&self, pod: &Pod, source: &Source) -> bool {
        let shown = self.shown.lock();
        let mut others = shown.iter().filter(|(uid, _)| pod.metadata.uid.as_ref() != Some(*uid));
        others.any(|(_, volumes)| volumes.values().any(|known| known.source == *source))
    }

    /// How full the volumes are, as measured within `age`; volumes of which nobody knows are left out.
    pub async fn usage(self: &Arc<Self>, age: Duration) -> Measured {
        let all: Vec<((String, String), Arc<Shown>)> = {
            let shown = self.shown.lock();
            let of_pod = |(uid, volumes): (&String, &HashMap<String, Arc<Shown>>)| {
                let key = |name: &String| (uid.clone(), name.clone());
                volumes.iter().map(|(name, shown)| (key(name), shown.clone())).collect::<Vec<_>>()
            };
            shown.iter().flat_map(of_pod).collect()
        };
        let mut under_way = Vec::new();
        for (_, shown) in &all {
            let fresh = shown.last.lock().as_ref().is_some_and(|(at, _)| at.elapsed() < age);
            // whoever measures it already is not waited for again
            let Some(place) = shown.busy.clone().try_lock_owned().ok().filter(|_| !fresh) else { continue };
            let (this, shown) = (self.clone(), shown.clone());
            under_way.push(tokio::spawn(async move {
                let found = this.measure(&shown.source).await;
                let found = found
                    .inspect_err(|why| tracing::debug!(why, source = ?shown.source, "volume not measured"));
                *shown.last.lock() =
                    Some((Instant::now(), found.ok().map(|usage| (Timestamp::now(), usage))));
                drop(place);
            }));
        }
        let done = futures_util::future::join_all(under_way);
        // what comes later is there for who asks next
        let _ = tokio::time::timeout(PATIENCE, done).await;
        let known =
            |(key, shown): ((String, String), Arc<Shown>)| Some((key, shown.last.lock().as_ref()?.1?));
        all.into_iter().filter_map(known).collect()
    }

    async fn measure(&self, source: &Source) -> Result<VolumeUsage, String> {
        let on_disk = |path: &Path, measure: fn(&Path) -> std::io::Result<VolumeUsage>| {
            let path = path.to_owned();
            tokio::task::spawn_blocking(move || measure(&path))
        };
        let measured = match source {
            Source::Driver { driver, handle, path } => return self.ask(driver, handle, path).await,
            Source::Folder(path) => on_disk(path, of_file_system).await,
            Source::Device(path) => on_disk(path, of_device).await,
        };
        measured.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    async fn ask(&self, driver: &str, handle: &str, path: &Path) -> Result<VolumeUsage, String> {
        let known =
            self.registry.known(driver).ok_or_else(|| format!("driver {driver} is not registered"))?;
        if !known.can.stats {
            return Err("the driver does not measure its volumes".to_owned());
        }
        let request = NodeGetVolumeStatsRequest {
            volume_id: handle.to_owned(),
            volume_path: path.display().to_string(),
            staging_target_path: String::new(),
        };
        let answer = known.plugin.stats(request).await.map_err(|status| told(&status))?;
        if answer.usage.is_empty() {
            return Err("failed to get usage from response. usage is nil".to_owned());
        }
        Ok(of_answer(&answer.usage))
    }
}

/// What a driver said; of a unit that it names twice the last counts.
fn of_answer(told: &[Told]) -> VolumeUsage {
    let mut found = VolumeUsage::default();
    let size = |value: i64| u64::try_from(value).unwrap_or(0);
    for part in told {
        let (available, total, used) = (size(part.available), size(part.total), size(part.used));
        match part.unit {
            BYTES => (found.available, found.capacity, found.used) = (available, total, used),
            INODES => (found.inodes_free, found.inodes, found.inodes_used) = (available, total, used),
            _ => {}
        }
    }
    found
}

fn of_file_system(path: &Path) -> std::io::Result<VolumeUsage> {
    let stat = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(VolumeUsage {
        available: bytes(stat.f_bavail),
        capacity: bytes(stat.f_blocks),
        used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        inodes_free: stat.f_ffree,
        inodes: stat.f_files,
        inodes_used: stat.f_files.saturating_sub(stat.f_ffree),
    })
}

fn of_device(path: &Path) -> std::io::Result<VolumeUsage> {
    let mut device = std::fs::File::open(path)?;
    let capacity = std::io::Seek::seek(&mut device, std::io::SeekFrom::End(0))?;
    Ok(VolumeUsage { capacity, ..VolumeUsage::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_driver_says_is_taken_by_its_unit() {
        let part = |unit, available, total, used| Told { available, total, used, unit };
        let found = of_answer(&[part(INODES, 1, 3, 2), part(BYTES, 10, 30, 20), part(0, 7, 7, 7)]);
        assert_eq!((found.available, found.capacity, found.used), (10, 30, 20));
        assert_eq!((found.inodes_free, found.inodes, found.inodes_used), (1, 3, 2));
        let wrong = of_answer(&[part(BYTES, -1, -1, -1)]);
        assert_eq!(wrong, VolumeUsage::default());
    }

    #[test]
    fn a_file_system_has_a_size_and_a_device_nothing_else() {
        let found = of_file_system(Path::new("/")).unwrap();
        assert!(found.capacity > found.available && found.used > 0, "{found:?}");
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("device");
        std::fs::write(&device, vec![0; 4096]).unwrap();
        assert_eq!(of_device(&device).unwrap(), VolumeUsage { capacity: 4096, ..VolumeUsage::default() });
        assert!(of_device(&dir.path().join("gone")).is_err());
    }
}
