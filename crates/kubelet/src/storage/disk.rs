//! Disks of the machine: local ones, and those of an iSCSI target or a Fibre Channel adapter, from their attachment to the folder or device
//! that pods are given, and back.
//!
//! A disk is mounted once for all pods of the node. What it is and who uses it stands beside it, in files that are written before
//! anything is done: a new kubelet, and one that was killed in between, undo all of it with the last pod.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{LocalObjectReference, Pod, Volume};
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use super::claim::Bound;
use super::host::{Host, entries, file_name};
use super::usage::Source;
use super::{Outcome, Problem, Provided, Storage, fibre_channel, file_system, group_of, iscsi};
use crate::digest::sha256;
use crate::files::write_json;

const FILE: &str = "disk.json";
/// What a secret of credentials must be.
const CHAP: &str = "kubernetes.io/iscsi-chap";

/// Which disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Disk {
    /// A device of this node.
    Local {
        /// Its file.
        path: PathBuf,
    },
    /// Of an iSCSI target.
    Iscsi(iscsi::Target),
    /// Of a Fibre Channel adapter.
    FibreChannel(fibre_channel::Target),
}

impl Disk {
    fn id(&self) -> String {
        match self {
            Self::Local { path } => format!("kubernetes.io/local-volume/{}", path.display()),
            Self::Iscsi(target) => target.id(),
            Self::FibreChannel(target) => target.id(),
        }
    }

    /// The plugin that metrics name.
    pub(super) fn plugin(&self) -> &'static str {
        match self {
            Self::Local { .. } => "kubernetes.io/local-volume",
            Self::Iscsi(_) => "kubernetes.io/iscsi",
            Self::FibreChannel(_) => "kubernetes.io/fc",
        }
    }

    /// Whom only one may log in to or out of at a time.
    fn target(&self) -> Option<String> {
        match self {
            Self::Iscsi(target) => Some(format!("target {}", target.iqn)),
            _ => None,
        }
    }

    async fn attach(&self, host: &Host, secrets: &HashMap<String, String>) -> Result<PathBuf, String> {
        match self {
            Self::Local { path } => Ok(path.clone()),
            Self::Iscsi(target) => target.attach(host, secrets).await,
            Self::FibreChannel(target) => target.attach(host),
        }
    }
}

/// A disk as a volume asks for it.
pub(super) struct Wanted {
    pub disk: Disk,
    /// The PersistentVolume's name, or the volume's in the pod.
    pub name: String,
    /// The volume's name in the pod.
    pub volume: String,
    pub block: bool,
    pub read_only: bool,
    pub fs_type: String,
    pub options: Vec<String>,
    /// Credentials: namespace and name.
    pub secret: Option<(String, String)>,
}

impl Wanted {
    /// The disk of a volume that stands in the pod itself.
    pub fn of_pod(pod: &Pod, volume: &Volume) -> Option<Result<Self, String>> {
        let ns = pod.metadata.namespace.clone().unwrap_or_default();
        let secret =
            |secret: &Option<LocalObjectReference>| secret.as_ref().map(|s| (ns.clone(), s.name.clone()));
        let (disk, read_only, fs_type, secret) = match (&volume.iscsi, &volume.fc) {
            (Some(source), _) => {
                let disk = Disk::Iscsi(iscsi::Target::of_pod(source, &volume.name));
                (Ok(disk), source.read_only, &source.fs_type, secret(&source.secret_ref))
            }
            (_, Some(source)) => {
                let disk = fibre_channel::Target::of(source).map(Disk::FibreChannel);
                (disk, source.read_only, &source.fs_type, None)
            }
            _ => return None,
        };
        Some(disk.map(|disk| Self {
            disk,
            name: volume.name.clone(),
            volume: volume.name.clone(),
            block: false,
            read_only: read_only == Some(true),
            fs_type: fs_type.clone().unwrap_or_default(),
            options: Vec::new(),
            secret,
        }))
    }

    /// The disk of a claim's volume.
    pub fn of_claim(bound: &Bound, volume: &Volume) -> Option<Result<Self, String>> {
        let spec = bound.volume.spec.as_ref()?;
        let (disk, read_only, fs_type, secret) = match (&spec.local, &spec.iscsi, &spec.fc) {
            (Some(source), ..) => {
                let disk = Disk::Local { path: source.path.clone().into() };
                (Ok(disk), None, &source.fs_type, None)
            }
            (_, Some(source), _) => {
                let secret =
                    source.secret_ref.as_ref().and_then(|s| Some((s.namespace.clone()?, s.name.clone()?)));
                let disk = Disk::Iscsi(iscsi::Target::of_claim(source, bound.name()));
                (Ok(disk), source.read_only, &source.fs_type, secret)
            }
            (.., Some(source)) => {
                let disk = fibre_channel::Target::of(source).map(Disk::FibreChannel);
                (disk, source.read_only, &source.fs_type, None)
            }
            _ => return None,
        };
        Some(disk.map(|disk| Self {
            disk,
            name: bound.name().to_owned(),
            volume: volume.name.clone(),
            block: bound.is_block(),
            read_only: bound.read_only || read_only == Some(true),
            fs_type: fs_type.clone().unwrap_or_default(),
            options: spec.mount_options.clone().unwrap_or_default(),
            secret,
        }))
    }
}

/// A disk's folder on the node.
struct Place(PathBuf);

impl Place {
    fn of(root: &Path, id: &str) -> Self {
        Self(root.join("plugins/kubernetes.io/disks").join(sha256(id)))
    }

    fn all(root: &Path) -> impl Iterator<Item = Self> {
        entries(&root.join("plugins/kubernetes.io/disks")).into_iter().map(Self)
    }

    fn disk(&self) -> Option<Disk> {
        let bytes = std::fs::read(self.0.join(FILE)).ok()?;
        serde_json::from_slice(&bytes)
            .inspect_err(
                |error| tracing::warn!(%error, folder = %self.0.display(), "unreadable record of a disk"),
            )
            .ok()
    }

    fn mount(&self) -> PathBuf {
        self.0.join("mount")
    }

    fn user(&self, uid: &str) -> PathBuf {
        self.0.join("users").join(uid)
    }

    /// Before anything is done for that pod.
    fn begin(&self, disk: &Disk, uid: &str) -> io::Result<()> {
        std::fs::create_dir_all(self.0.join("users"))?;
        write_json(&self.0, FILE, disk)?;
        std::fs::write(self.user(uid), "")
    }

    /// Whether pods other than this one use it.
    fn is_shared(&self, uid: &str) -> bool {
        entries(&self.0.join("users")).iter().any(|user| file_name(user) != uid)
    }

    /// All of it is undone; the pod that used it last goes last.
    fn remove(&self, uid: &str) -> io::Result<()> {
        for file in [self.0.join(FILE), self.user(uid)] {
            match std::fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        // the folders are empty, or hold what is not ours
        for folder in [self.mount(), self.0.join("users"), self.0.clone()] {
            match std::fs::remove_dir(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Storage {
    /// Attaches a disk and mounts it, or brings that up to date.
    pub(super) async fn disk(&self, pod: &Pod, wanted: Wanted, dir: &Path) -> Outcome {
        let made = self.attach_and_mount(pod, &wanted, dir).await;
        let path = made.map_err(|why| Problem::Device(wanted.name.clone(), why))?;
        let read_only = wanted.read_only;
        if wanted.block {
            self.show(pod, &wanted.volume, Source::Device(path.clone()));
            return Ok((Provided::Device { path, read_only }, false));
        }
        let folder = Source::Folder(path.clone());
        // once: what the pod does with its files after that is its own
        let is_new = !self.is_shown(pod, &wanted.volume, &folder);
        if let Some(group) = group_of(pod).filter(|_| !read_only && is_new) {
            let given = self.give(&path, group, false, pod).await;
            given.map_err(|why| Problem::SetUp(wanted.name.clone(), why))?;
        }
        self.show(pod, &wanted.volume, folder);
        Ok((Provided::Folder { path, read_only, relabel: true }, false))
    }

    async fn attach_and_mount(&self, pod: &Pod, wanted: &Wanted, dir: &Path) -> Result<PathBuf, String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let id = wanted.disk.id();
        let lock = self.lock(id.clone());
        let _one = lock.lock().await;
        let target = wanted.disk.target().map(|name| self.lock(name));
        let _alone = match &target {
            Some(lock) => Some(lock.lock().await),
            None => None,
        };
        let place = Place::of(&self.root, &id);
        // by its folder a pod is found whose end nobody saw
        std::fs::create_dir_all(dir).map_err(|error| error.to_string())?;
        place.begin(&wanted.disk, uid).map_err(|error| error.to_string())?;
        let target = place.mount();
        if !wanted.block && crate::volumes::is_mounted(&target).map_err(|error| error.to_string())? {
            return Ok(target);
        }
        let secrets = self.credentials(wanted.secret.as_ref()).await?;
        let device = wanted.disk.attach(&self.host, &secrets).await?;
        if wanted.block {
            return Ok(device);
        }
        std::fs::create_dir_all(&target).map_err(|error| error.to_string())?;
        let read_only = wanted.read_only.then(|| "ro".to_owned());
        let options: Vec<String> = read_only.into_iter().chain(wanted.options.iter().cloned()).collect();
        file_system::mount(&self.host, &device, &target, &wanted.fs_type, &options).await?;
        Ok(target)
    }

    async fn credentials(&self, name: Option<&(String, String)>) -> Result<HashMap<String, String>, String> {
        let Some((ns, name)) = name else { return Ok(HashMap::new()) };
        let found = self.client.get::<k8s_openapi::api::core::v1::Secret>(ns, name).await;
        let found = found.map_err(|error| format!("fetching secret {ns}/{name} failed: {error}"))?;
        if found.type_.as_deref() != Some(CHAP) {
            return Err(format!("Cannot get secret of type {CHAP}"));
        }
        let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
        Ok(found.data.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value.0))).collect())
    }

    /// Undoes it for the pod `uid`; what nobody else uses goes.
    pub(super) async fn release_disks(&self, uid: &str) -> Result<(), String> {
        let mut first = Ok(());
        for place in Place::all(&self.root).filter(|place| place.user(uid).exists()) {
            let done = self.release_disk(&place, uid).await;
            let why = |why: String| format!("UnmountDevice failed for {}: {why}", place.mount().display());
            first = first.and(done.map_err(why));
        }
        first
    }

    async fn release_disk(&self, place: &Place, uid: &str) -> Result<(), String> {
        let Some(disk) = place.disk() else {
            return place.remove(uid).map_err(|error| error.to_string());
        };
        let lock = self.lock(disk.id());
        let _one = lock.lock().await;
        let target = disk.target().map(|name| self.lock(name));
        let _alone = match &target {
            Some(lock) => Some(lock.lock().await),
            None => None,
        };
        if place.is_shared(uid) {
            return std::fs::remove_file(place.user(uid)).map_err(|error| error.to_string());
        }
        let target = place.mount();
        if crate::volumes::is_mounted(&target).map_err(|error| error.to_string())? {
            let unmounted = tokio::task::spawn_blocking(move || unmount(&target, UnmountFlags::NOFOLLOW));
            let unmounted = unmounted.await.map_err(|error| error.to_string())?;
            unmounted.map_err(|error| error.to_string())?;
        }
        match &disk {
            Disk::Local { .. } => {}
            Disk::Iscsi(target) => {
                let others = Place::all(&self.root).filter(|other| other.0 != place.0);
                let shared = others
                    .filter_map(|other| other.disk())
                    .any(|other| matches!(&other, Disk::Iscsi(other) if iscsi::same_target(other, target)));
                target.detach(&self.host, !shared).await?;
            }
            Disk::FibreChannel(target) => target.detach(&self.host).await?,
        }
        place.remove(uid).map_err(|error| error.to_string())
    }
}
