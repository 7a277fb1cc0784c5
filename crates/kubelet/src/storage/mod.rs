//! Volumes that are not the pod's own: claims, local paths, disks, folders of NFS servers, and CSI volumes.
//!
//! What is done is written down before it is done, beside what it makes, so a new kubelet, and one that was killed in between, undo
//! all of it.
//!
//! Rule: Kubernetes documentation, "Persistent Volumes". The folders of CSI volumes are upstream's, which drivers know.

pub mod claim;
mod disk;
mod driver_volume;
mod expand;
mod fibre_channel;
mod file_system;
pub mod host;
mod iscsi;
mod label;
pub mod measure;
mod multipath;
mod nfs;
mod ownership;
mod record;
pub mod usage;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::Duration;

use api::csi_migration;
use client::events::{EventType, Recorder};
use client::{Cache, Client};
use k8s_openapi::api::core::v1::{
    LocalVolumeSource, NFSVolumeSource, Node, PersistentVolumeSpec, Pod, Volume,
};
use k8s_openapi::api::storage::v1::CSIDriver;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::csi::Registry;
use claim::Bound;
use disk::Wanted;
use driver_volume::Csi;
use host::Host;
use measure::measured;
use usage::{Shown, Source};

/// Volumes whose driver wants it are published again, and grown ones looked for, after this.
pub const AGAIN: Duration = Duration::from_secs(90);

/// What a container gets of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provided {
    /// A folder.
    Folder {
        /// Where.
        path: PathBuf,
        /// Nobody in the pod may write.
        read_only: bool,
        /// Its files are this node's alone, and may get the SELinux label of who writes them.
        relabel: bool,
    },
    /// A device.
    Device {
        /// Its file on the node.
        path: PathBuf,
        /// Nobody in the pod may write.
        read_only: bool,
    },
}

/// What a volume gives the pod, and whether it must be looked after again later.
pub type Outcome = Result<(Provided, bool), Problem>;

/// Why a volume is not there, by the step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The claim.
    Claim(String),
    /// Attaching.
    Attach(String),
    /// Attaching, as the node has no room for another volume of the driver.
    Full(String),
    /// Staging for the node: volume name, why.
    Device(String, String),
    /// Showing it to the pod: volume name, why.
    SetUp(String, String),
    /// It may not be used here at all: which check says so, volume name, why.
    Check(&'static str, String, String),
}

/// All persistent volumes of the node.
pub struct Storage {
    client: Client,
    recorder: Recorder,
    node: String,
    root: PathBuf,
    /// The machine, for volumes without a driver.
    host: Host,
    /// The drivers.
    pub registry: Arc<Registry>,
    this_node: Cache<Node>,
    drivers: Cache<CSIDriver>,
    /// Unique names of attached volumes that the node uses or is about to use.
    in_use: watch::Sender<BTreeSet<String>>,
    /// What of it the Node says.
    pub reported: watch::Sender<BTreeSet<String>>,
    /// One step at a time for each volume.
    busy: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// The volumes that pods have, by uid and name.
    shown: Mutex<HashMap<String, HashMap<String, Arc<Shown>>>>,
    /// Pods, by uid, that had their volumes before this kubelet.
    adopted: Mutex<HashSet<String>>,
}

impl Storage {
    /// For the kubelet whose folder `root` is.
    pub fn new(
        (client, recorder): (Client, Recorder),
        node: String,
        root: PathBuf,
        host: Host,
        registry: Arc<Registry>,
        this_node: Cache<Node>,
    ) -> Arc<Self> {
        // what an earlier kubelet left in use still is
        let staged =
            record::staged(&root).into_iter().filter(|stage| stage.attached).map(|stage| stage.unique());
        let shown = record::of_pods(&root).filter(|record| record.attached).map(|record| record.unique());
        let (in_use, _) = watch::channel(staged.chain(shown).collect());
        let (reported, _) = watch::channel(BTreeSet::new());
        let drivers = client.caches().of::<CSIDriver>();
        Arc::new(Self {
            client,
            recorder,
            node,
            root,
            host,
            registry,
            this_node,
            drivers,
            in_use,
            reported,
            busy: Mutex::default(),
            shown: Mutex::default(),
            adopted: Mutex::default(),
        })
    }

    /// The memory that the node's pods may have, in bytes.
    pub fn memory(&self) -> Option<u64> {
        let node = self.this_node.get("", &self.node)?;
        let amounts = node.status.as_ref()?.allocatable.as_ref()?;
        u64::try_from(crate::resources::units(&amounts.get("memory")?.0)).ok()
    }

    /// What `status.volumesInUse` of the Node must say.
    pub fn in_use(&self) -> watch::Receiver<BTreeSet<String>> {
        self.in_use.subscribe()
    }

    /// Makes a volume that is a claim or a driver's own, or brings it up to date; `None` for other volumes.
    pub async fn provide(&self, pod: &Pod, volume: &Volume, dir: &Path) -> Option<Outcome> {
        if let Some(source) = &volume.csi {
            let csi = Csi::of_pod(pod, volume, source);
            return Some(self.csi(pod, csi, None, dir).await);
        }
        match csi_migration::of_pod(volume, pod.metadata.namespace.as_deref().unwrap_or_default()) {
            Ok(None) => {}
            Ok(Some(migrated)) => {
                return Some(self.csi(pod, Csi::of_migrated(volume, migrated), None, dir).await);
            }
            Err(why) => return Some(Err(Problem::SetUp(volume.name.clone(), why))),
        }
        if let Some(source) = &volume.nfs {
            let wanted = (volume.name.as_str(), source.read_only == Some(true), &[][..]);
            return Some(self.nfs(pod, volume, source, wanted, dir).await);
        }
        if let Some(wanted) = Wanted::of_pod(pod, volume) {
            return Some(self.disk_of(pod, &volume.name, wanted, dir).await);
        }
        let bound = match claim::bound(&self.client, pod, volume).await {
            Ok(bound) => bound?,
            Err(why) => return Some(Err(Problem::Claim(why))),
        };
        Some(self.claim(pod, volume, &bound, dir).await)
    }

    /// The volume behind a claim.
    async fn claim(&self, pod: &Pod, volume: &Volume, bound: &Bound, dir: &Path) -> Outcome {
        let name = bound.name();
        let failed = |why: String| Problem::SetUp(name.to_owned(), why);
        self.near(bound).await?;
        let spec = bound.volume.spec.clone().unwrap_or_default();
        if let Some(source) = &spec.csi {
            let csi = Csi::of_claim(bound, volume, source);
            return self.csi(pod, csi, Some(bound), dir).await;
        }
        if let Some(migrated) = csi_migration::of_volume(&bound.volume).map_err(failed)? {
            let csi = Csi::of_migrated_claim(bound, volume, migrated);
            return self.csi(pod, csi, Some(bound), dir).await;
        }
        if let Some(source) = &spec.nfs {
            let options = spec.mount_options.as_deref().unwrap_or_default();
            let read_only = bound.read_only || source.read_only == Some(true);
            return self.nfs(pod, volume, source, (name, read_only, options), dir).await;
        }
        let device = |source: &LocalVolumeSource| !bound.is_block() && is_device(Path::new(&source.path));
        if spec.iscsi.is_some() || spec.fc.is_some() || spec.local.as_ref().is_some_and(device) {
            let wanted = Wanted::of_claim(bound, volume).ok_or_else(|| failed("no disk".to_owned()))?;
            return self.disk_of(pod, name, wanted, dir).await;
        }
        let plugin = match (&spec.host_path, &spec.local) {
            (Some(_), _) => "kubernetes.io/host-path",
            (_, Some(_)) => "kubernetes.io/local-volume",
            _ => "UnknownVolumePlugin",
        };
        measured(plugin, false, self.of_node(pod, volume, bound, &spec)).await
    }

    /// A folder or a device of this node, behind a claim.
    async fn of_node(
        &self,
        pod: &Pod,
        volume: &Volume,
        bound: &Bound,
        spec: &PersistentVolumeSpec,
    ) -> Outcome {
        let name = bound.name();
        let failed = |why: String| Problem::SetUp(name.to_owned(), why);
        let read_only = bound.read_only;
        let path = match (&spec.host_path, &spec.local) {
            (Some(_), _) if spec.mount_options.as_ref().is_some_and(|options| !options.is_empty()) => {
                let why = "Mount options are not supported for this volume type";
                return Err(Problem::Check("MountOptionSupport", name.to_owned(), why.to_owned()));
            }
            (Some(source), _) => {
                let kind = source.type_.as_deref().unwrap_or_default();
                crate::volumes::host_path(Path::new(&source.path), kind).map_err(failed)?
            }
            (_, Some(source)) => {
                let path = Path::new(&source.path);
                let source = if bound.is_block() { Source::Device } else { Source::Folder };
                let source = source(path.to_owned());
                // of pods that begin together one is the first
                let one = self.lock(format!("local:{}", path.display()));
                let _one = one.lock().await;
                let path = self.local(pod, bound, path, (&volume.name, &source)).await.map_err(failed)?;
                self.show(pod, &volume.name, source);
                path
            }
            _ => {
                let why = "no volume plugin matched: claims of volumes of the kinds csi, fc, hostPath, iscsi, local and nfs are mounted";
                return Err(failed(why.to_owned()));
            }
        };
        Ok(match bound.is_block() {
            true => (Provided::Device { path, read_only }, false),
            false => (Provided::Folder { path, read_only, relabel: spec.local.is_some() }, false),
        })
    }

    /// A volume that other nodes have is not for pods that were sent here past the scheduler.
    async fn near(&self, bound: &Bound) -> Result<(), Problem> {
        let affinity = bound.volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
        let Some(required) = affinity.and_then(|affinity| affinity.required.as_ref()) else { return Ok(()) };
        self.this_node.synced().await;
        let node = self.this_node.get("", &self.node);
        let labels = node.and_then(|node| node.metadata.labels.clone()).unwrap_or_default();
        if crate::admission::selects(required, &labels, &self.node) {
            return Ok(());
        }
        let why = "no matching NodeSelectorTerms".to_owned();
        Err(Problem::Check("NodeAffinity", bound.name().to_owned(), why))
    }

    async fn disk_of(&self, pod: &Pod, name: &str, wanted: Result<Wanted, String>, dir: &Path) -> Outcome {
        let wanted = wanted.map_err(|why| Problem::SetUp(name.to_owned(), why))?;
        measured(wanted.disk.plugin(), false, self.disk(pod, wanted, dir)).await
    }

    async fn nfs(
        &self,
        pod: &Pod,
        volume: &Volume,
        source: &NFSVolumeSource,
        wanted: (&str, bool, &[String]),
        dir: &Path,
    ) -> Outcome {
        measured("kubernetes.io/nfs", false, async {
            let mounted = nfs::mount(&self.host, source, wanted, dir).await;
            let path = mounted.map_err(|why| Problem::SetUp(wanted.0.to_owned(), why))?;
            self.show(pod, &volume.name, Source::Folder(path.clone()));
            Ok((Provided::Folder { path, read_only: wanted.1, relabel: false }, false))
        })
        .await
    }

    /// A folder of this node, or a device as such.
    async fn local(
        &self,
        pod: &Pod,
        bound: &Bound,
        path: &Path,
        (volume, source): (&str, &Source),
    ) -> Result<PathBuf, String> {
        use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
        let metadata = std::fs::metadata(path)
            .map_err(|error| format!("path {:?} does not exist: {error}", path.display()))?;
        match (bound.is_block(), metadata.file_type()) {
            (true, kind) if kind.is_block_device() => return Ok(path.to_owned()),
            (true, _) => return Err(format!("{} is not a block device", path.display())),
            (false, kind) if kind.is_dir() => {}
            (false, _) => return Err(format!("{} is no folder", path.display())),
        }
        let Some(group) = group_of(pod).filter(|_| !self.is_shown(pod, volume, source)) else {
            return Ok(path.to_owned());
        };
        if !self.is_shown_beside(pod, source) {
            if !bound.read_only {
                self.give(path, group, false, pod).await?;
            }
        } else if i64::from(metadata.gid()) != group {
            // the first pod's group keeps it
            let text = format!(
                "The requested fsGroup is {group}, but the volume {} has GID {}. The volume may not be shareable.",
                bound.name(),
                metadata.gid()
            );
            let about = client::events::reference(pod);
            self.recorder.event(&about, EventType::Warning, "AlreadyMountedVolume", text);
        }
        Ok(path.to_owned())
    }

    async fn give(&self, path: &Path, group: i64, read_only: bool, pod: &Pod) -> Result<(), String> {
        let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let careful =
            context.and_then(|context| context.fs_group_change_policy.as_deref()) == Some("OnRootMismatch");
        let group = u32::try_from(group).map_err(|_| format!("fsGroup {group} is no group"))?;
        let walked = Arc::new(AtomicU64::new(0));
        let (folder, counted) = (path.to_owned(), walked.clone());
        let given = tokio::task::spawn_blocking(move || {
            ownership::give(&folder, group, read_only, careful, &counted)
        });
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let about = client::events::reference(pod);
        let tell = |text| self.recorder.event(&about, EventType::Warning, ownership::IN_PROGRESS, text);
        let given = ownership::followed(given, (path, uid), &walked, tell).await;
        let given = given.map_err(|error| error.to_string())?;
        given.map_err(|error| format!("applyFSGroup failed: {error}"))
    }

    fn lock(&self, unique: String) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.busy.lock();
        all.retain(|_, lock| lock.strong_count() > 0);
        if let Some(known) = all.get(&unique).and_then(Weak::upgrade) {
            return known;
        }
        let made = Arc::new(tokio::sync::Mutex::new(()));
        all.insert(unique, Arc::downgrade(&made));
        made
    }

    /// Undoes all that [`Storage::provide`] did for the pod whose folder `dir` is. What is not undone yet keeps its
    /// record: call it again.
    pub async fn release(&self, dir: &Path) -> Result<(), String> {
        let uid = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        self.shown.lock().remove(&uid);
        self.adopted.lock().remove(&uid);
        let mut first = Ok(());
        for record in record::of_pod(dir) {
            let done = self.release_one(&record, dir, &uid).await;
            let why = done.map_err(|why| {
                format!(
                    "UnmountVolume.TearDown failed for volume {:?} (UniqueName: {:?}) pod {uid:?} : {why}",
                    record.name,
                    record.unique()
                )
            });
            first = first.and(why);
        }
        // sub-paths hold their volume
        crate::volumes::unmount_below(&dir.join("volume-subpaths")).map_err(|error| error.to_string())?;
        first.and(self.release_disks(&uid).await)
    }
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

fn group_of(pod: &Pod) -> Option<i64> {
    pod.spec.as_ref()?.security_context.as_ref()?.fs_group
}
