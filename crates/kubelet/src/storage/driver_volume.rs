//! A volume of a CSI driver, from its attachment to the pod's folder and back.
//!
//! What is done is written down before it is done, beside what it makes: `vol_data.json` in the pod's folder of the
//! volume, and in the folder where it is staged. Who uses a staged volume is read from there, so a new kubelet, and
//! one that was killed in between, undo all of it.
//!
//! Rule: Kubernetes documentation, "CSI Raw Block Volume", "Ephemeral Volumes"; the CSI specification, "Node Service".

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::csi_migration::Migrated;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, CSIVolumeSource, Pod, Secret, ServiceAccount, Volume,
};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use serde_json::json;

use super::claim::Bound;
use super::measure::measured;
use super::record::{self, PodRecord, StageRecord};
use super::usage::Source;
use super::{Outcome, Problem, Provided, Storage, group_of};
use crate::csi::Driver;
use crate::csi::driver::told;
use crate::csi::messages::{
    AccessMode, AccessType, Mode, MountVolume, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, Nothing, VolumeCapability,
};
use crate::digest::sha256;

/// So long a volume waits for its driver, its attachment, and for the Node to say that it is in use.
const DRIVER: Duration = Duration::from_secs(10);
const ATTACH: Duration = Duration::from_secs(20);

/// A volume of a driver, of a claim or of the pod itself.
pub(super) struct Csi {
    pub driver: String,
    pub handle: String,
    /// The PersistentVolume's name, or the volume's in the pod.
    pub name: String,
    /// The volume's name in the pod.
    pub volume: String,
    pub inline: bool,
    /// The driver took the place of the volume's plugin.
    migrated: bool,
    pub block: bool,
    pub read_only: bool,
    fs_type: String,
    options: Vec<String>,
    pub access_modes: Vec<String>,
    /// The SELinux label that it is mounted with.
    label: Option<String>,
    attributes: HashMap<String, String>,
    stage_secret: Option<(String, String)>,
    publish_secret: Option<(String, String)>,
    pub expand_secret: Option<(String, String)>,
}

impl Csi {
    pub(super) fn of_claim(bound: &Bound, volume: &Volume, source: &CSIPersistentVolumeSource) -> Self {
        let spec = bound.volume.spec.as_ref();
        let secret = |reference: &Option<k8s_openapi::api::core::v1::SecretReference>| {
            let reference = reference.as_ref()?;
            Some((reference.namespace.clone()?, reference.name.clone()?))
        };
        Self {
            driver: source.driver.clone(),
            handle: source.volume_handle.clone(),
            name: bound.name().to_owned(),
            volume: volume.name.clone(),
            inline: false,
            migrated: false,
            block: bound.is_block(),
            read_only: bound.read_only || source.read_only == Some(true),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            options: spec.and_then(|spec| spec.mount_options.clone()).unwrap_or_default(),
            access_modes: bound.access_modes().to_vec(),
            label: None,
            attributes: source.volume_attributes.clone().unwrap_or_default().into_iter().collect(),
            stage_secret: secret(&source.node_stage_secret_ref),
            publish_secret: secret(&source.node_publish_secret_ref),
            expand_secret: secret(&source.node_expand_secret_ref),
        }
    }

    pub(super) fn of_pod(pod: &Pod, volume: &Volume, source: &CSIVolumeSource) -> Self {
        let (uid, ns) = (pod.metadata.uid.as_deref(), pod.metadata.namespace.clone().unwrap_or_default());
        let sum = sha256(format!("{}{}", uid.unwrap_or_default(), volume.name));
        Self {
            driver: source.driver.clone(),
            handle: format!("csi-{sum}"),
            name: volume.name.clone(),
            volume: volume.name.clone(),
            inline: true,
            migrated: false,
            block: false,
            read_only: source.read_only == Some(true),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            options: Vec::new(),
            access_modes: vec!["ReadWriteOnce".to_owned()],
            label: None,
            attributes: source.volume_attributes.clone().unwrap_or_default().into_iter().collect(),
            stage_secret: None,
            publish_secret: source.node_publish_secret_ref.as_ref().map(|secret| (ns, secret.name.clone())),
            expand_secret: None,
        }
    }

    /// A volume of a claim, whose plugin a driver took the place of.
    pub(super) fn of_migrated_claim(bound: &Bound, volume: &Volume, migrated: Migrated) -> Self {
        let csi = Self::of_claim(bound, volume, &migrated.source);
        Self { access_modes: migrated.access_modes, migrated: true, ..csi }
    }

    /// The same in a pod itself.
    pub(super) fn of_migrated(volume: &Volume, migrated: Migrated) -> Self {
        let Migrated { name, source, access_modes } = migrated;
        let secret = source.node_stage_secret_ref.and_then(|secret| Some((secret.namespace?, secret.name?)));
        Self {
            driver: source.driver,
            handle: source.volume_handle,
            // a path of the pod's choice is one name of a folder
            name: name.replace('/', "~"),
            volume: volume.name.clone(),
            inline: false,
            migrated: true,
            block: false,
            read_only: source.read_only == Some(true),
            fs_type: source.fs_type.unwrap_or_default(),
            options: Vec::new(),
            access_modes,
            label: None,
            attributes: source.volume_attributes.unwrap_or_default().into_iter().collect(),
            stage_secret: secret,
            publish_secret: None,
            expand_secret: None,
        }
    }

    /// The name under which nodes and controllers know it.
    pub(super) fn unique(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }

    /// One pod has it at a time.
    pub(super) fn is_of_one_pod(&self) -> bool {
        self.access_modes == ["ReadWriteOncePod"]
    }

    pub(super) fn capability(&self, driver: &Driver, group: Option<i64>) -> VolumeCapability {
        let access_type = if self.block {
            AccessType::Block(Nothing {})
        } else {
            let group = group.filter(|_| driver.can.mount_group);
            let label = self.label.iter().map(|label| format!("context={label:?}"));
            AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                // quoted, as its level may have a comma
                mount_flags: self.options.iter().cloned().chain(label).collect(),
                volume_mount_group: group.map(|group| group.to_string()).unwrap_or_default(),
            })
        };
        let mode = mode(&self.access_modes, driver.can.single_node_multi_writer) as i32;
        VolumeCapability { access_type: Some(access_type), access_mode: Some(AccessMode { mode }) }
    }
}

/// A volume's access modes in CSI's words: the widest of them.
fn mode(modes: &[String], several_writers: bool) -> Mode {
    let has = |mode: &str| modes.iter().any(|known| known == mode);
    match () {
        () if has("ReadWriteMany") => Mode::MultiNodeMultiWriter,
        () if has("ReadWriteOnce") && has("ReadOnlyMany") => Mode::MultiNodeSingleWriter,
        () if has("ReadOnlyMany") => Mode::MultiNodeReaderOnly,
        () if has("ReadWriteOncePod") && several_writers => Mode::SingleNodeSingleWriter,
        () if has("ReadWriteOnce") && several_writers => Mode::SingleNodeMultiWriter,
        () => Mode::SingleNodeWriter,
    }
}

impl Storage {
    pub(super) async fn csi(&self, pod: &Pod, csi: Csi, bound: Option<&Bound>, dir: &Path) -> Outcome {
        let (plugin, migrated) = (format!("kubernetes.io/csi:{}", csi.driver), csi.migrated);
        measured(&plugin, migrated, self.of_driver(pod, csi, bound, dir)).await
    }

    async fn of_driver(&self, pod: &Pod, mut csi: Csi, bound: Option<&Bound>, dir: &Path) -> Outcome {
        let driver = self.registry.driver(&csi.driver, DRIVER).await;
        let wrong = |why: String| Problem::Device(csi.name.clone(), why);
        let driver = driver.map_err(wrong)?;
        let busy = self.busy(&csi);
        let _one = busy.lock().await;
        self.drivers.synced().await;
        let object = self.drivers.get("", &csi.driver);
        let rules = object.as_ref().map(|object| object.spec.clone()).unwrap_or_default();
        if csi.inline {
            let modes = rules.volume_lifecycle_modes.clone().unwrap_or_default();
            if object.is_none() || !modes.iter().any(|mode| mode == "Ephemeral") {
                let why = format!(
                    "volume mode \"Ephemeral\" not supported by driver {} (only supports {modes:?})",
                    csi.driver
                );
                return Err(Problem::SetUp(csi.name, why));
            }
        }
        let attachable = !csi.inline && rules.attach_required != Some(false);
        // before anything is attached or staged: by this it is undone, whatever becomes of the pod and of this kubelet
        let mut record = PodRecord {
            volume_handle: csi.handle.clone(),
            driver_name: csi.driver.clone(),
            name: csi.name.clone(),
            block: csi.block,
            attached: attachable,
            claim: pod.metadata.namespace.clone().unwrap_or_default(),
            label: None,
        };
        // a pod that has the volume has it as it was mounted
        record.label = match record.known(dir) {
            Some(known) => known.label,
            None if rules.se_linux_mount == Some(true) => self.label(pod, &csi)?,
            None => None,
        };
        csi.label = record.label.clone().filter(|_| csi.is_of_one_pod());
        // the scheduler sees to it too, but not where somebody else chose the node
        if csi.is_of_one_pod() && self.is_used_beside(&record, dir) {
            let why = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
            return Err(Problem::SetUp(csi.name, why.to_owned()));
        }
        record.begin(dir).map_err(|error| wrong(error.to_string()))?;
        let context = if attachable { self.attached(&csi).await? } else { HashMap::new() };
        let group = group_of(pod);
        let stage = (driver.can.stage && !csi.inline).then(|| StageRecord {
            volume_handle: csi.handle.clone(),
            driver_name: csi.driver.clone(),
            block: csi.block,
            attached: attachable,
            name: csi.name.clone(),
        });
        let staging = stage.as_ref().map(|stage| stage.path(&self.root));
        if let (Some(stage), Some(path)) = (&stage, &staging) {
            let failed = |why: String| Problem::Device(csi.name.clone(), why);
            self.stage(&csi, &driver, stage, path, group, &context).await.map_err(failed)?;
        }
        let path =
            self.publish(pod, &csi, &driver, staging.as_deref(), context, (&rules, &record), dir).await;
        let path = path.map_err(|why| Problem::SetUp(csi.name.clone(), why))?;
        if let Some(bound) = bound {
            self.grow(&csi, &driver, bound, &path, staging.as_deref())
                .await
                .map_err(|why| Problem::SetUp(csi.name.clone(), why))?;
        }
        let again = rules.requires_republish == Some(true) || (driver.can.expand && bound.is_some());
        let read_only = csi.read_only;
        let source = Source::Driver { driver: csi.driver, handle: csi.handle, path: path.clone() };
        self.show(pod, &csi.volume, source);
        Ok(match csi.block {
            true => (Provided::Device { path, read_only }, again),
            false => {
                let relabel = csi.label.is_none() && crate::selinux::keeps_labels(&path);
                (Provided::Folder { path, read_only, relabel }, again)
            }
        })
    }

    /// Whoever holds it is the only one who changes the volume.
    fn busy(&self, csi: &Csi) -> Arc<tokio::sync::Mutex<()>> {
        self.lock(csi.unique())
    }

    /// Waits until the cluster attached the volume to this node; what its driver needs to know of that.
    async fn attached(&self, csi: &Csi) -> Result<HashMap<String, String>, Problem> {
        let unique = csi.unique();
        self.in_use.send_if_modified(|used| used.insert(unique.clone()));
        let waits = async {
            // told before it is used, so that nobody detaches it meanwhile
            let mut reported = self.reported.subscribe();
            // the sender lives as long as this
            let _ = reported.wait_for(|names| names.contains(&unique)).await;
            let mut changes = self.this_node.subscribe();
            let shown = || {
                let node = self.this_node.get("", &self.node);
                let list = node.and_then(|node| node.status.clone()?.volumes_attached).unwrap_or_default();
                list.iter().any(|volume| volume.name == unique)
            };
            while !shown() {
                if changes.next().await.is_none() {
                    return;
                }
            }
        };
        let in_time = tokio::time::timeout(ATTACH, waits).await.is_ok();
        let name = format!("csi-{}", sha256(format!("{}{}{}", csi.handle, csi.driver, self.node)));
        let attachment = self.client.get::<VolumeAttachment>("", &name).await;
        if !in_time {
            let error = attachment.ok().and_then(|attachment| attachment.status?.attach_error);
            let full = match &error {
                Some(error) => self.registry.is_full(&self.drivers, &csi.driver, error).await,
                None => false,
            };
            let yet = || format!("volume {unique} is not attached to node {} yet", self.node);
            let why = error.and_then(|error| error.message).unwrap_or_else(yet);
            return Err(if full { Problem::Full(why) } else { Problem::Attach(why) });
        }
        let failed = |error| Problem::Attach(format!("volume attachment {name}: {error}"));
        let attachment = attachment.map_err(failed)?;
        let status = attachment.status.unwrap_or_default();
        if !status.attached {
            let why = status.attach_error.and_then(|error| error.message);
            let yet = || format!("volume {} is not attached yet", csi.handle);
            return Err(Problem::Attach(why.unwrap_or_else(yet)));
        }
        Ok(status.attachment_metadata.unwrap_or_default().into_iter().collect())
    }

    pub(super) async fn secret(
        &self,
        name: Option<&(String, String)>,
    ) -> Result<HashMap<String, String>, String> {
        let Some((ns, name)) = name else { return Ok(HashMap::new()) };
        let found = self.client.get::<Secret>(ns, name).await;
        let found = found.map_err(|error| format!("fetching secret {ns}/{name} failed: {error}"))?;
        let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
        Ok(found.data.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value.0))).collect())
    }

    async fn stage(
        &self,
        csi: &Csi,
        driver: &Driver,
        stage: &StageRecord,
        path: &Path,
        group: Option<i64>,
        context: &HashMap<String, String>,
    ) -> Result<(), String> {
        if stage.is_done(&self.root) {
            return Ok(());
        }
        stage.begin(&self.root).map_err(|error| error.to_string())?;
        let request = NodeStageVolumeRequest {
            volume_id: csi.handle.clone(),
            publish_context: context.clone(),
            staging_target_path: path.display().to_string(),
            volume_capability: Some(csi.capability(driver, group)),
            secrets: self.secret(csi.stage_secret.as_ref()).await?,
            volume_context: csi.attributes.clone(),
        };
        driver.plugin.stage(request).await.map_err(|status| told(&status))?;
        stage.done(&self.root).map_err(|error| error.to_string())
    }

    #[allow(clippy::too_many_arguments, reason = "what one call of the driver needs")]
    async fn publish(
        &self,
        pod: &Pod,
        csi: &Csi,
        driver: &Driver,
        staging: Option<&Path>,
        context: HashMap<String, String>,
        (rules, record): (&k8s_openapi::api::storage::v1::CSIDriverSpec, &PodRecord),
        dir: &Path,
    ) -> Result<PathBuf, String> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let target = record.target(&self.root, dir, &uid);
        let again = record.is_done(dir);
        if again && rules.requires_republish != Some(true) {
            return Ok(target);
        }
        if !again {
            record.publishing(dir, &target).map_err(|error| error.to_string())?;
        }
        let group = group_of(pod);
        let mut volume_context = csi.attributes.clone();
        if rules.pod_info_on_mount == Some(true) {
            volume_context.extend(about(pod, csi.inline));
        }
        let mut secrets = self.secret(csi.publish_secret.as_ref()).await?;
        if let Some(tokens) = self.tokens(pod, rules).await? {
            const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
            if rules.service_account_token_in_secrets == Some(true) {
                secrets.insert(TOKENS.to_owned(), tokens);
            } else {
                volume_context.insert(TOKENS.to_owned(), tokens);
            }
        }
        let request = NodePublishVolumeRequest {
            volume_id: csi.handle.clone(),
            publish_context: context,
            staging_target_path: staging.map(|path| path.display().to_string()).unwrap_or_default(),
            target_path: target.display().to_string(),
            volume_capability: Some(csi.capability(driver, group)),
            readonly: csi.read_only,
            secrets,
            volume_context,
        };
        driver.plugin.publish(request).await.map_err(|status| told(&status))?;
        if !again {
            let policy = rules.fs_group_policy.as_deref().unwrap_or("ReadWriteOnceWithFSType");
            let gives = !csi.block && !csi.read_only && gives_group(policy, &csi.fs_type, &csi.access_modes);
            if let Some(group) = group.filter(|_| gives && !driver.can.mount_group) {
                self.give(&target, group, csi.read_only, pod).await?;
            }
            record.done(dir).map_err(|error| error.to_string())?;
        }
        Ok(target)
    }

    /// Tokens of the pod's service account for the driver, by audience, as JSON.
    async fn tokens(
        &self,
        pod: &Pod,
        rules: &k8s_openapi::api::storage::v1::CSIDriverSpec,
    ) -> Result<Option<String>, String> {
        let wanted = rules.token_requests.as_deref().unwrap_or_default();
        if wanted.is_empty() {
            return Ok(None);
        }
        let (meta, mut tokens) = (&pod.metadata, BTreeMap::new());
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
        for wanted in wanted {
            let audiences: Vec<&str> =
                Some(wanted.audience.as_str()).filter(|a| !a.is_empty()).into_iter().collect();
            let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
                "audiences": audiences, "expirationSeconds": wanted.expiration_seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta.name, "uid": meta.uid}}});
            let ns = meta.namespace.as_deref().unwrap_or_default();
            let answer: TokenRequest = self
                .client
                .create_subresource::<ServiceAccount, _, _>(ns, account, "token", &request)
                .await
                .map_err(|error| format!("failed to fetch token: {error}"))?;
            let status = answer.status.unwrap_or_default();
            let expires = status.expiration_timestamp;
            tokens.insert(
                wanted.audience.clone(),
                json!({"token": status.token, "expirationTimestamp": expires}),
            );
        }
        serde_json::to_string(&tokens).map(Some).map_err(|error| error.to_string())
    }

    pub(super) async fn release_one(&self, record: &PodRecord, dir: &Path, uid: &str) -> Result<(), String> {
        let lock = self.lock(record.unique());
        let _one = lock.lock().await;
        // sub-paths hold the volume
        let pins = dir.join("volume-subpaths").join(&record.name);
        crate::volumes::unmount_below(&pins).map_err(|error| error.to_string())?;
        if record.was_published(dir) {
            let request = NodeUnpublishVolumeRequest {
                volume_id: record.volume_handle.clone(),
                target_path: record.target(&self.root, dir, uid).display().to_string(),
            };
            let driver = self.registry.driver(&record.driver_name, DRIVER).await?;
            driver.plugin.unpublish(request).await.map_err(|status| told(&status))?;
        }
        if !self.is_used_beside(record, dir) {
            self.unstage(record).await?;
        }
        record.remove(&self.root, dir, uid).map_err(|error| error.to_string())?;
        if record::of_pods(&self.root).all(|other| other.unique() != record.unique()) {
            self.in_use.send_if_modified(|used| used.remove(&record.unique()));
        }
        Ok(())
    }

    /// Whether another pod has the volume, or this one by another name.
    fn is_used_beside(&self, record: &PodRecord, dir: &Path) -> bool {
        let all = record::of_pods(&self.root).filter(|other| other.unique() == record.unique());
        let own = record::of_pod(dir).into_iter().filter(|other| other == record).count();
        all.count() > own
    }

    async fn unstage(&self, record: &PodRecord) -> Result<(), String> {
        let staged = record::staged(&self.root).into_iter().find(|stage| stage.unique() == record.unique());
        if let Some(stage) = staged {
            let driver = self.registry.driver(&record.driver_name, DRIVER).await?;
            let request = NodeUnstageVolumeRequest {
                volume_id: stage.volume_handle.clone(),
                staging_target_path: stage.path(&self.root).display().to_string(),
            };
            driver.plugin.unstage(request).await.map_err(|status| told(&status))?;
            stage.remove(&self.root).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// The pod, for a driver that wants to know.
fn about(pod: &Pod, inline: bool) -> [(String, String); 5] {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    [
        ("csi.storage.k8s.io/pod.name", text(&pod.metadata.name)),
        ("csi.storage.k8s.io/pod.namespace", text(&pod.metadata.namespace)),
        ("csi.storage.k8s.io/pod.uid", text(&pod.metadata.uid)),
        ("csi.storage.k8s.io/serviceAccount.name", text(&account)),
        ("csi.storage.k8s.io/ephemeral", inline.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
}

/// Whether the kubelet gives the files of a driver's volume that is written to to the pod's group.
fn gives_group(policy: &str, fs_type: &str, access_modes: &[String]) -> bool {
    match policy {
        "File" => true,
        "None" => false,
        _ => {
            let once = access_modes.iter().any(|mode| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod");
            !fs_type.is_empty() && once
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_given_to_the_group_as_the_driver_says() {
        let gives =
            |policy: &str, fs_type: &str, mode: &str| gives_group(policy, fs_type, &[mode.to_owned()]);
        assert!(gives("File", "", "ReadWriteMany") && !gives("None", "ext4", "ReadWriteOnce"));
        let guess = |fs_type: &str, mode: &str| gives("ReadWriteOnceWithFSType", fs_type, mode);
        assert!(guess("ext4", "ReadWriteOnce") && guess("ext4", "ReadWriteOncePod"));
        assert!(!guess("", "ReadWriteOnce") && !guess("ext4", "ReadWriteMany"));
    }

    #[test]
    fn a_clouds_volume_in_a_pod_has_one_folder_whatever_its_path() {
        let source = json!({"name": "v", "vsphereVolume": {"volumePath": "/../../x", "fsType": "ext4"}});
        let volume: Volume = serde_json::from_value(source).unwrap();
        let migrated = api::csi_migration::of_pod(&volume, "d").unwrap().unwrap();
        let csi = Csi::of_migrated(&volume, migrated);
        assert_eq!((csi.driver.as_str(), csi.handle.as_str()), ("csi.vsphere.vmware.com", "/../../x"));
        assert_eq!((csi.name.as_str(), csi.inline), ("csi.vsphere.vmware.com-~..~..~x", false));
    }

    #[test]
    fn access_modes_are_told_as_the_widest() {
        let check = |modes: &[&str], several: bool, wanted: Mode| {
            let modes: Vec<String> = modes.iter().map(|&mode| mode.to_owned()).collect();
            assert_eq!(mode(&modes, several), wanted, "{modes:?}");
        };
        check(&["ReadWriteOnce"], false, Mode::SingleNodeWriter);
        check(&["ReadWriteOnce"], true, Mode::SingleNodeMultiWriter);
        check(&["ReadWriteOncePod"], true, Mode::SingleNodeSingleWriter);
        check(&["ReadWriteOncePod"], false, Mode::SingleNodeWriter);
        check(&["ReadOnlyMany"], false, Mode::MultiNodeReaderOnly);
        check(&["ReadWriteOnce", "ReadOnlyMany"], false, Mode::MultiNodeSingleWriter);
        check(&["ReadWriteOnce", "ReadWriteMany"], true, Mode::MultiNodeMultiWriter);
    }
}
