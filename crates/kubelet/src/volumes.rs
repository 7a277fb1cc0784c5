//! The pod's volumes as folders on the node.
//!
//! Payload volumes (configMap, secret, downwardAPI, projected) are made of what [`content`] finds, and written as
//! [`payload`] says.
//!
//! Rule: Kubernetes documentation, "Volumes", "Projected Volumes"; the layout of the links is what programs that
//! watch their configuration rely on.

mod content;
mod empty_dir;
mod host_path;
mod mounts;
mod payload;
mod token;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use client::Client;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::env::Sources;
use crate::references::{Kind, References};
use crate::selinux;
use crate::storage::{self, Problem, Provided, Storage};
use content::Content;
pub(crate) use host_path::host_path;
pub(crate) use mounts::{is_mounted, remove, unescaped};
pub use mounts::{unmount_all, unmount_below};
use token::Token;

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Something in the cluster or the pod's description is missing; tried again.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {why}")]
    Setup {
        /// The volume.
        volume: String,
        /// What to mend.
        why: String,
    },
    /// A claim, or a driver's volume.
    #[error("{0}")]
    Persistent(String),
    /// The node has no room for a volume, so the pod cannot be here.
    #[error("Node has reached its volume attachment limit, rejecting pod: {0}")]
    Full(String),
    /// The pod is being deleted, or the kubelet stops.
    #[error("the pod ends")]
    Ends,
}

impl VolumeError {
    fn of(volume: &str, problem: Problem) -> Self {
        let unmounted =
            format!("Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=");
        Self::Persistent(match problem {
            Problem::Claim(why) => format!("{unmounted}[], failed to process volumes=[{volume}]: {why}"),
            Problem::Full(why) => return Self::Full(format!("volume {volume:?}: {why}")),
            Problem::Attach(why) => format!("{unmounted}[{volume}], failed to process volumes=[]: {why}"),
            Problem::Device(name, why) => {
                format!("MountVolume.MountDevice failed for volume {name:?} : {why}")
            }
            Problem::SetUp(name, why) => format!("MountVolume.SetUp failed for volume {name:?} : {why}"),
            Problem::Check(check, name, why) => {
                format!("MountVolume.{check} check failed for volume {name:?} : {why}")
            }
        })
    }
}

/// Where a pod's volumes are, and when their tokens must be renewed.
#[derive(Debug, Clone, Default)]
pub struct Mounted {
    /// Host path by volume name.
    pub paths: BTreeMap<String, PathBuf>,
    /// The node's file of those that are devices.
    pub devices: BTreeMap<String, PathBuf>,
    /// Those that nobody in the pod may write to.
    pub read_only: BTreeSet<String>,
    /// Those whose files get the SELinux label of who mounts them.
    pub relabel: BTreeSet<String>,
    /// Those that could not be made yet.
    pub missing: BTreeSet<String>,
    /// The earliest renewal of a token, or of a driver's volume.
    pub renew: Option<Timestamp>,
    /// Whether there is content from the pod's own fields, which is written again when they change.
    pub downward: bool,
    /// The versions that were read; `None`: the object was not there.
    pub seen: BTreeMap<(Kind, String), Option<String>>,
    /// The tokens in force, by volume and path.
    tokens: BTreeMap<(String, String), Token>,
}

/// What volumes are made from.
pub struct Context<'a> {
    /// The API.
    pub client: &'a Client,
    /// ConfigMaps and Secrets of it.
    pub references: &'a References,
    /// Persistent volumes.
    pub storage: &'a Storage,
    /// `ROOT/pods/UID`.
    pub pod_dir: &'a Path,
    /// For the downward API.
    pub sources: &'a Sources<'a>,
    /// What was there before: its tokens are used until they must be renewed.
    pub before: Option<&'a Mounted>,
    /// Containers of the pod run.
    pub running: bool,
}

impl Mounted {
    /// A volume that is not the pod's own, and whether it must be looked after again.
    fn take(&mut self, volume: &str, (provided, again): (Provided, bool)) {
        if again {
            let renew = Timestamp::now().saturating_add(storage::AGAIN).unwrap_or(Timestamp::MAX);
            self.renew = Some(self.renew.map_or(renew, |known| known.min(renew)));
        }
        let read_only = match provided {
            Provided::Folder { path, read_only, relabel } => {
                self.paths.insert(volume.to_owned(), path);
                if relabel && !read_only {
                    self.relabel.insert(volume.to_owned());
                }
                read_only
            }
            Provided::Device { path, read_only } => {
                self.devices.insert(volume.to_owned(), path);
                read_only
            }
        };
        if read_only {
            self.read_only.insert(volume.to_owned());
        }
    }

    /// Takes over what there was of a volume that could not be brought up to date.
    fn keep(&mut self, volume: &str, before: Option<&Mounted>) {
        let name = volume.to_owned();
        let was_there =
            |known: &&Mounted| known.paths.contains_key(volume) || known.devices.contains_key(volume);
        if let Some(before) = before {
            let tokens = before.tokens.iter().filter(|((of, _), _)| *of == name);
            self.tokens.extend(tokens.map(|(key, token)| (key.clone(), token.clone())));
        }
        let Some(before) = before.filter(was_there) else {
            self.missing.insert(name);
            return;
        };
        self.paths.extend(before.paths.get(volume).map(|path| (name.clone(), path.clone())));
        self.devices.extend(before.devices.get(volume).map(|path| (name.clone(), path.clone())));
        self.read_only.extend(before.read_only.get(volume).cloned());
        self.relabel.extend(before.relabel.get(volume).cloned());
    }
}

fn setup<'v>(volume: &'v str) -> impl Fn(String) -> VolumeError + 'v {
    move |why| VolumeError::Setup { volume: volume.to_owned(), why }
}

/// Makes, or brings up to date, all volumes of the pod; the first failure is told. Under containers that run, one that fails
/// keeps no other from it, and what there was of it stays.
pub async fn mount(pod: &Pod, context: &Context<'_>) -> (Mounted, Option<VolumeError>) {
    let mut mounted = Mounted::default();
    let mut failed = None;
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        if let Err(error) = one(pod, volume, context, &mut mounted).await {
            mounted.keep(&volume.name, context.before);
            failed.get_or_insert(error);
            if !context.running {
                break;
            }
        }
    }
    if !selinux::enabled() {
        mounted.relabel.clear();
    }
    (mounted, failed)
}

/// Makes one volume, and notes where it is.
async fn one(
    pod: &Pod,
    volume: &Volume,
    context: &Context<'_>,
    mounted: &mut Mounted,
) -> Result<(), VolumeError> {
    if let Some(outcome) = context.storage.provide(pod, volume, context.pod_dir).await {
        let made = outcome.map_err(|problem| VolumeError::of(&volume.name, problem))?;
        mounted.take(&volume.name, made);
        return Ok(());
    }
    let begin = std::time::Instant::now();
    let made = own(pod, volume, context, mounted).await;
    storage::measure::count(plugin(volume), false, made.is_ok(), begin);
    if let Some(path) = made? {
        if volume.host_path.is_none() {
            mounted.relabel.insert(volume.name.clone());
        }
        mounted.paths.insert(volume.name.clone(), path);
    }
    Ok(())
}

/// The plugin that makes a volume, as metrics name it.
pub fn plugin(volume: &Volume) -> &'static str {
    match () {
        () if volume.config_map.is_some() => "kubernetes.io/configmap",
        () if volume.secret.is_some() => "kubernetes.io/secret",
        () if volume.downward_api.is_some() => "kubernetes.io/downward-api",
        () if volume.projected.is_some() => "kubernetes.io/projected",
        () if volume.empty_dir.is_some() => "kubernetes.io/empty-dir",
        () if volume.host_path.is_some() => "kubernetes.io/host-path",
        () if volume.image.is_some() => "kubernetes.io/image",
        () if volume.csi.is_some() => "kubernetes.io/csi",
        () if volume.nfs.is_some() => "kubernetes.io/nfs",
        () if volume.iscsi.is_some() => "kubernetes.io/iscsi",
        () if volume.fc.is_some() => "kubernetes.io/fc",
        () if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() => {
            "kubernetes.io/persistent-claim"
        }
        () => "N/A",
    }
}

/// The folder of a volume of the pod's own; none where the runtime makes it.
async fn own(
    pod: &Pod,
    volume: &Volume,
    context: &Context<'_>,
    mounted: &mut Mounted,
) -> Result<Option<PathBuf>, VolumeError> {
    if volume.image.is_some() {
        // the runtime mounts it with the container
        return Ok(None);
    }
    let failed = setup(&volume.name);
    let dir = |plugin: &str| {
        context.pod_dir.join("volumes").join(format!("kubernetes.io~{plugin}")).join(&volume.name)
    };
    if let Some(source) = &volume.host_path {
        let kind = source.type_.as_deref().unwrap_or_default();
        return host_path(Path::new(&source.path), kind).map(Some).map_err(failed);
    }
    if let Some(source) = &volume.empty_dir {
        let path = dir("empty-dir");
        empty_dir::make(&path, source, pod, context.storage.memory()).map_err(failed)?;
        return Ok(Some(path));
    }
    let content = Box::pin(Content::of(pod, volume, context, mounted)).await;
    let Some((content, plugin)) = content.map_err(&failed)? else {
        return Err(failed(
            "this kind of volume is not supported by this kubelet; supported: configMap, csi, downwardAPI, emptyDir, ephemeral, fc, hostPath, image, iscsi, nfs, persistentVolumeClaim, projected, secret"
                .to_owned(),
        ));
    };
    let Content { files, private, .. } = content;
    let path = dir(plugin);
    // secrets are kept in memory: they must not reach the disk
    if private {
        payload::memory_backed(&path).map_err(|e| failed(e.to_string()))?;
    }
    payload::write(&path, &files, group(pod)).map_err(|e| failed(e.to_string()))?;
    // a container that writes there could lead the kubelet out of the volume (CVE-2017-1002102)
    mounted.read_only.insert(volume.name.clone());
    Ok(Some(path))
}

/// The pod's `fsGroup`.
fn group(pod: &Pod) -> Option<i64> {
    pod.spec.as_ref()?.security_context.as_ref()?.fs_group
}
