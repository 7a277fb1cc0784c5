//! The pod's volumes as folders on the node.
//!
//! Payload volumes (configMap, secret, downwardAPI, projected) are written as one revision in a folder of its own;
//! the link `..data` is then moved to it in one step, so a reader sees all of the old or all of the new.
//!
//! Rule: Kubernetes documentation, "Volumes", "Projected Volumes"; the layout of the links is what programs that
//! watch their configuration rely on.

mod empty_dir;
mod host_path;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use client::Client;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccount, Volume,
};
use serde_json::{Value, json};

use crate::env::{self, Sources};
use crate::references::Kind;
use crate::selinux;
use crate::storage::{self, Problem, Provided, Storage};
pub(crate) use host_path::host_path;

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

/// Folders and files of one payload volume.
type Payload = BTreeMap<String, File>;

/// A file of a volume.
struct File {
    content: Vec<u8>,
    mode: u32,
    /// Who owns it; root where nobody is named.
    owner: Option<u32>,
}

impl File {
    fn of_root(content: Vec<u8>, mode: u32) -> Self {
        Self { content, mode, owner: None }
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
    /// The earliest renewal of a token, or of a driver's volume.
    pub renew: Option<Timestamp>,
    /// Whether there is content from the pod's own fields, which is written again when they change.
    pub downward: bool,
    /// The versions that were read; `None`: the object was not there.
    pub seen: BTreeMap<(Kind, String), Option<String>>,
    /// The tokens in force, by volume and path.
    tokens: BTreeMap<(String, String), Token>,
}

#[derive(Debug, Clone)]
struct Token {
    text: String,
    renew: Timestamp,
}

/// What volumes are made from.
pub struct Context<'a> {
    /// The API.
    pub client: &'a Client,
    /// Persistent volumes.
    pub storage: &'a Storage,
    /// `ROOT/pods/UID`.
    pub pod_dir: &'a Path,
    /// For the downward API.
    pub sources: &'a Sources<'a>,
    /// What was there before: its tokens are used until they must be renewed.
    pub before: Option<&'a Mounted>,
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
}

fn setup<'v>(volume: &'v str) -> impl Fn(String) -> VolumeError + 'v {
    move |why| VolumeError::Setup { volume: volume.to_owned(), why }
}

/// Makes, or brings up to date, all volumes of the pod.
pub async fn mount(pod: &Pod, context: &Context<'_>) -> Result<Mounted, VolumeError> {
    let mut mounted = Mounted::default();
    let Some(spec) = &pod.spec else { return Ok(mounted) };
    let group = spec.security_context.as_ref().and_then(|s| s.fs_group);
    for volume in spec.volumes.iter().flatten() {
        if let Some(outcome) = context.storage.provide(pod, volume, context.pod_dir).await {
            let made = outcome.map_err(|problem| VolumeError::of(&volume.name, problem))?;
            mounted.take(&volume.name, made);
            continue;
        }
        let begin = std::time::Instant::now();
        let made = one(pod, volume, group, context, &mut mounted).await;
        storage::measure::count(plugin(volume), false, made.is_ok(), begin);
        let path = made?;
        if let Some(path) = path {
            if volume.host_path.is_none() {
                mounted.relabel.insert(volume.name.clone());
            }
            mounted.paths.insert(volume.name.clone(), path);
        }
    }
    if !selinux::enabled() {
        mounted.relabel.clear();
    }
    Ok(mounted)
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

async fn one(
    pod: &Pod,
    volume: &Volume,
    group: Option<i64>,
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
    let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut payload = Payload::new();
    // secrets are kept in memory: they must not reach the disk
    let mut private = volume.secret.is_some();
    let plugin = if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(0o644) as u32;
        let optional = source.optional == Some(true);
        config_map(
            context.client,
            ns,
            &source.name,
            source.items.as_deref(),
            optional,
            mode,
            &mut payload,
            &mut mounted.seen,
        )
        .await
        .map_err(&failed)?;
        "configmap"
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(0o644) as u32;
        let optional = source.optional == Some(true);
        let name = source.secret_name.as_deref().unwrap_or_default();
        secret(
            context.client,
            ns,
            name,
            source.items.as_deref(),
            optional,
            mode,
            &mut payload,
            &mut mounted.seen,
        )
        .await
        .map_err(&failed)?;
        "secret"
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(0o644) as u32;
        mounted.downward = true;
        downward(source.items.as_deref().unwrap_or_default(), mode, context.sources, &mut payload)
            .map_err(&failed)?;
        "downward-api"
    } else if let Some(source) = &volume.projected {
        let mode = source.default_mode.unwrap_or(0o644) as u32;
        for part in source.sources.iter().flatten() {
            if let Some(p) = &part.config_map {
                let optional = p.optional == Some(true);
                config_map(
                    context.client,
                    ns,
                    &p.name,
                    p.items.as_deref(),
                    optional,
                    mode,
                    &mut payload,
                    &mut mounted.seen,
                )
                .await
                .map_err(&failed)?;
            }
            if let Some(p) = &part.secret {
                private = true;
                let optional = p.optional == Some(true);
                secret(
                    context.client,
                    ns,
                    &p.name,
                    p.items.as_deref(),
                    optional,
                    mode,
                    &mut payload,
                    &mut mounted.seen,
                )
                .await
                .map_err(&failed)?;
            }
            if let Some(p) = &part.downward_api {
                mounted.downward = true;
                downward(p.items.as_deref().unwrap_or_default(), mode, context.sources, &mut payload)
                    .map_err(&failed)?;
            }
            if let Some(p) = &part.service_account_token {
                let seconds = p.expiration_seconds.unwrap_or(3600);
                let key = (volume.name.clone(), p.path.clone());
                let known =
                    context.before.and_then(|m| m.tokens.get(&key)).filter(|t| t.renew > Timestamp::now());
                let token = match known {
                    Some(token) => token.clone(),
                    None => {
                        token(context.client, pod, p.audience.as_deref(), seconds).await.map_err(&failed)?
                    }
                };
                // with a user of the whole pod, or a group of its own, nobody else may read it
                let owner = only_user(pod);
                let mode = if owner.is_some() || group.is_some() { 0o600 } else { mode };
                payload
                    .insert(p.path.clone(), File { content: token.text.clone().into_bytes(), mode, owner });
                mounted.renew = Some(mounted.renew.map_or(token.renew, |known| known.min(token.renew)));
                mounted.tokens.insert(key, token);
                private = true;
            }
        }
        "projected"
    } else {
        return Err(failed(
            "this kind of volume is not supported by this kubelet; supported: configMap, csi, downwardAPI, emptyDir, ephemeral, fc, hostPath, image, iscsi, nfs, persistentVolumeClaim, projected, secret"
                .to_owned(),
        ));
    };
    let path = dir(plugin);
    if private {
        memory_backed(&path).map_err(|e| failed(e.to_string()))?;
    }
    write_payload(&path, &payload, group).map_err(|e| failed(e.to_string()))?;
    Ok(Some(path))
}

/// The user that all containers of a pod run as, where they are told to: it owns the pod's tokens.
///
/// Rule: Kubernetes documentation, "Projected Volumes" ("SecurityContext interactions").
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let whole = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut users = containers.map(|c| c.security_context.as_ref().and_then(|own| own.run_as_user).or(whole));
    let first = users.next()??;
    if users.all(|user| user == Some(first)) { u32::try_from(first).ok() } else { None }
}

/// Makes the folder a filesystem in memory, once.
fn memory_backed(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    const TMPFS: i64 = 0x0102_1994;
    if rustix::fs::statfs(path)?.f_type == TMPFS && is_mount(path)? {
        return Ok(());
    }
    // scripts in secrets may be run
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
    Ok(rustix::mount::mount("tmpfs", path, "tmpfs", flags, Some(c"mode=0755"))?)
}

fn is_mount(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let above = path.parent().map(std::fs::metadata).transpose()?;
    Ok(above.is_none_or(|a| a.dev() != std::fs::metadata(path).map_or(0, |m| m.dev())))
}

/// Picks keys as `items` says: all of them where it says nothing. `missing` are the words for one that is not there.
fn pick(
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    missing: &str,
    payload: &mut Payload,
) -> Result<(), String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        payload.extend(data.iter().map(|(k, v)| (k.clone(), File::of_root(v.clone(), mode))));
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                let mode = item.mode.map_or(mode, |m| m as u32);
                payload.insert(item.path.clone(), File::of_root(value.clone(), mode));
            }
            None if optional => {}
            None => return Err(format!("{missing}: {}", item.key)),
        }
    }
    Ok(())
}

async fn config_map(
    client: &Client,
    ns: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    payload: &mut Payload,
    seen: &mut BTreeMap<(Kind, String), Option<String>>,
) -> Result<(), String> {
    let found = client.get::<ConfigMap>(ns, name).await;
    let version = found.as_ref().ok().and_then(|m| m.metadata.resource_version.clone());
    seen.insert((Kind::ConfigMap, name.to_owned()), version);
    match found {
        Ok(map) => {
            let mut data: BTreeMap<String, Vec<u8>> =
                map.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes())).collect();
            data.extend(map.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0)));
            pick(&data, items, optional, mode, "configmap references non-existent config key", payload)
        }
        Err(error) if error.is_not_found() && optional => Ok(()),
        Err(error) if error.is_not_found() => Err(format!("configmap {name:?} not found")),
        Err(error) => Err(error.to_string()),
    }
}

async fn secret(
    client: &Client,
    ns: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    payload: &mut Payload,
    seen: &mut BTreeMap<(Kind, String), Option<String>>,
) -> Result<(), String> {
    let found = client.get::<Secret>(ns, name).await;
    let version = found.as_ref().ok().and_then(|s| s.metadata.resource_version.clone());
    seen.insert((Kind::Secret, name.to_owned()), version);
    match found {
        Ok(secret) => {
            let data = secret.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect();
            pick(&data, items, optional, mode, "references non-existent secret key", payload)
        }
        Err(error) if error.is_not_found() && optional => Ok(()),
        Err(error) if error.is_not_found() => Err(format!("secret {name:?} not found")),
        Err(error) => Err(error.to_string()),
    }
}

fn downward(
    items: &[DownwardAPIVolumeFile],
    mode: u32,
    sources: &Sources<'_>,
    payload: &mut Payload,
) -> Result<(), String> {
    let none = k8s_openapi::api::core::v1::Container::default();
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => env::pod_field(field, sources)?,
            (None, Some(resource)) => env::resource_field(resource, &none, sources)?,
            (None, None) => continue,
        };
        payload.insert(
            item.path.clone(),
            File::of_root(text.into_bytes(), item.mode.map_or(mode, |m| m as u32)),
        );
    }
    Ok(())
}

/// When a token is renewed: after four fifths of its life, and after a day however long it lives.
fn renewal(now: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(now).as_secs();
    now.saturating_add(SignedDuration::from_secs((life * 4 / 5).min(24 * 3600))).unwrap_or(expires)
}

/// A token of the pod's service account, and when to get the next one.
async fn token(client: &Client, pod: &Pod, audience: Option<&str>, seconds: i64) -> Result<Token, String> {
    let meta = &pod.metadata;
    let ns = meta.namespace.as_deref().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
    let audiences: Vec<&str> = audience.filter(|a| !a.is_empty()).into_iter().collect();
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
        "audiences": audiences, "expirationSeconds": seconds,
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta.name, "uid": meta.uid}}});
    let answer: Value = client
        .create_subresource::<ServiceAccount, _, _>(ns, account, "token", &request)
        .await
        .map_err(|e| format!("failed to fetch token: {e}"))?;
    let token = answer["status"]["token"].as_str().ok_or("the API server sent no token")?.to_owned();
    let expires: Timestamp = answer["status"]["expirationTimestamp"]
        .as_str()
        .and_then(|t| t.parse().ok())
        .ok_or("the API server sent no expiration")?;
    Ok(Token { text: token, renew: renewal(Timestamp::now(), expires) })
}

const DATA: &str = "..data";

/// Writes a payload as a new revision and moves `..data` to it; nothing happens where it is the same.
fn write_payload(dir: &Path, payload: &Payload, group: Option<i64>) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    let mut clean = BTreeMap::new();
    for (name, file) in payload {
        let refused = || io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no relative path"));
        clean.insert(plain(name).ok_or_else(refused)?, file);
    }
    let payload = clean;
    let current = std::fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && same(&dir.join(current), &payload)
    {
        return Ok(());
    }
    let revision = format!(
        "..{}.{:09}",
        Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S"),
        rand::random_range(0..1_000_000_000)
    );
    let fresh = dir.join(&revision);
    std::fs::DirBuilder::new().mode(0o755).create(&fresh)?;
    for (name, File { content, mode, owner }) in &payload {
        let path = fresh.join(name);
        if let Some(parent) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        std::fs::write(&path, content)?;
        let mut mode = *mode;
        if let Some(group) = group {
            std::os::unix::fs::chown(&path, None, u32::try_from(group).ok())?;
            mode |= 0o440;
        }
        if owner.is_some() {
            std::os::unix::fs::chown(&path, *owner, None)?;
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    let aside = dir.join("..data_tmp");
    let _ = std::fs::remove_file(&aside);
    std::os::unix::fs::symlink(&revision, &aside)?;
    std::fs::rename(&aside, dir.join(DATA))?;
    // names that users see: links into `..data`, by first path component
    let firsts: std::collections::BTreeSet<&str> =
        payload.keys().filter_map(|n| n.split('/').next()).collect();
    for first in &firsts {
        let link = dir.join(first);
        if std::fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(Path::new(DATA).join(first), &link)?;
        }
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("..") {
            if name != DATA && name != revision && entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            }
        } else if !firsts.contains(name.as_str()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The path without what stands for the folder itself; nothing where it leads out, or to a name that is not for users.
fn plain(name: &str) -> Option<String> {
    use std::path::Component;
    let mut parts = Vec::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    let clean = parts.join("/");
    (!clean.is_empty() && !clean.starts_with("..")).then_some(clean)
}

fn same(revision: &Path, payload: &BTreeMap<String, &File>) -> bool {
    fn count(dir: &Path) -> usize {
        std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| if e.file_type().is_ok_and(|t| t.is_dir()) { count(&e.path()) } else { 1 })
            .sum()
    }
    revision.is_dir()
        && count(revision) == payload.len()
        && payload
            .iter()
            .all(|(name, file)| std::fs::read(revision.join(name)).is_ok_and(|found| found == file.content))
}

/// Whether something is mounted right there. The folder itself is not touched: its server may not answer.
pub(crate) fn is_mounted(path: &Path) -> io::Result<bool> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
    // the table holds real paths
    let real = match above.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?.join(name),
    };
    Ok(mounts_below(&real)?.contains(&real))
}

/// Mount points at or below `dir`, the deepest first.
fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mounts")?;
    let points = table.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(1));
    let mut below: Vec<PathBuf> = points.map(unescaped).filter(|m| m.starts_with(dir)).collect();
    below.sort_by_key(|m| std::cmp::Reverse(m.components().count()));
    Ok(below)
}

/// Undoes the octal escapes of spaces and the like (proc(5)).
pub(crate) fn unescaped(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match code.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

/// Removes everything below the pod's folder; mounts below it first. Nothing is removed while one is left: behind a
/// mount may be the node's own files.
pub fn unmount_all(pod_dir: &Path) -> io::Result<()> {
    unmount_below(pod_dir)?;
    let real = match pod_dir.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if let Some(left) = mounts_below(&real)?.first() {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("{} is still mounted", left.display()),
        ));
    }
    match std::fs::remove_dir_all(&real) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Undoes all mounts at and below a folder, which need not be there.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    // the table holds real paths
    let real = match dir.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for mount in mounts_below(&real)? {
        match rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH) {
            // gone with the one it was in
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(entries: &[(&str, &str)]) -> Payload {
        entries.iter().map(|(k, v)| ((*k).to_owned(), File::of_root(v.as_bytes().to_vec(), 0o644))).collect()
    }

    #[test]
    fn a_payload_changes_in_one_step_and_removed_keys_go() {
        let dir = std::env::temp_dir().join(format!("navarch-volume-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        write_payload(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        let first = std::fs::read_link(dir.join(DATA)).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "1");
        assert_eq!(std::fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        write_payload(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(std::fs::read_link(dir.join(DATA)).unwrap(), first, "nothing changed, nothing is written");
        write_payload(&dir, &payload(&[("a", "3")]), None).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(std::fs::symlink_metadata(dir.join("sub")).is_err());
        assert!(!dir.join(first).exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_token_belongs_to_the_user_that_all_containers_run_as() {
        let owner = |whole: serde_json::Value, own: serde_json::Value, init: serde_json::Value| {
            only_user(
                &serde_json::from_value(serde_json::json!({"spec": {"securityContext": {"runAsUser": whole},
                    "containers": [{"name": "a", "securityContext": {"runAsUser": own}}],
                    "initContainers": [{"name": "b", "securityContext": {"runAsUser": init}}]}}))
                .unwrap(),
            )
        };
        use serde_json::Value::Null;
        assert_eq!(owner(1000.into(), Null, Null), Some(1000));
        assert_eq!(owner(1000.into(), 7.into(), Null), None);
        assert_eq!(owner(1000.into(), 7.into(), 7.into()), Some(7));
        assert_eq!(owner(Null, 7.into(), Null), None);
        assert_eq!(owner(Null, Null, Null), None);
    }

    #[test]
    fn a_token_is_renewed_after_four_fifths_of_its_life_and_after_a_day_at_last() {
        let after =
            |life: i64| renewal(Timestamp::UNIX_EPOCH, Timestamp::from_second(life).unwrap()).as_second();
        assert_eq!([3600, 100_000, 365 * 86_400].map(after), [2880, 80_000, 86_400]);
    }

    #[test]
    fn a_key_that_is_not_there_is_named_unless_it_may_be_missing() {
        let items: Vec<KeyToPath> =
            serde_json::from_value(serde_json::json!([{"key": "k", "path": "p"}])).unwrap();
        let pick =
            |optional| pick(&BTreeMap::new(), Some(&items), optional, 0o644, "no key", &mut Payload::new());
        assert_eq!((pick(true), pick(false)), (Ok(()), Err("no key: k".to_owned())));
    }

    #[test]
    fn a_path_may_say_that_it_begins_here() {
        assert_eq!(plain("./a//b/./c/").as_deref(), Some("a/b/c"));
        assert_eq!(["../a", "a/../b", "/a", ".", "./..data"].map(plain), [const { None }; 5]);
    }

    #[test]
    fn a_path_out_of_the_volume_is_refused() {
        let dir = std::env::temp_dir().join(format!("navarch-volume-bad-{}", std::process::id()));
        for bad in ["../x", "/etc/x", "a/../../x", ""] {
            assert!(write_payload(&dir, &payload(&[(bad, "1")]), None).is_err(), "{bad}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn cleaning_up_spares_what_is_mounted_below_whatever_the_folders_name() {
        let dir = tempfile::Builder::new().prefix("with space ").tempdir().unwrap();
        let host = dir.path().join("host");
        std::fs::create_dir(&host).unwrap();
        std::fs::write(host.join("precious"), "1").unwrap();
        let pod = dir.path().join("pods/uid");
        let pinned = crate::sub_path::pin(dir.path(), "host", &pod.join("volume-subpaths/v/c/0")).unwrap();
        assert!(pinned.join("precious").exists());
        unmount_all(&pod).unwrap();
        assert!(!pod.exists());
        assert!(host.join("precious").exists());
    }
}
