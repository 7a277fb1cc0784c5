//! Attaching volumes of CSI drivers to the nodes of the pods that use them, and detaching them afterwards.
//!
//! A VolumeAttachment asks the driver's attacher; its name follows from volume, driver and node, as kubelets expect it. What is
//! attached is told to the node in `status.volumesAttached`; before a volume is detached it is taken out of there, and while the node
//! still has it mounted (`status.volumesInUse`) it stays, unless the node is surely down.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::csi_migration::{self, Migrated};
use client::events::{EventType, reference};
use client::{Cache, Change, DeleteOptions, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod,
};
use k8s_openapi::api::storage::v1::{
    CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::ownership::{annotations, name, namespace};
use crate::pod_claims::{claim_names, volumes};
use crate::pods;
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

/// On nodes whose kubelet leaves attaching to us.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// Of nodes that are surely down.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// How long a node that is not ready may keep a volume mounted; upstream's.
const UNMOUNT: Duration = Duration::from_secs(6 * 60);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Volume(String),
    /// One that stands in pods themselves.
    Inline(Handle),
    Node(String),
}

struct Controller {
    context: Context,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    nodes: Cache<Node>,
    drivers: Cache<CSIDriver>,
    attachments: Cache<VolumeAttachment>,
    /// Since when an attachment is not wanted: a measurement, made anew after a restart.
    unwanted: Mutex<BTreeMap<String, Timestamp>>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let controller = Controller {
        context: context.clone(),
        pods: caches.of(),
        claims: caches.of(),
        volumes: caches.of(),
        nodes: caches.of(),
        drivers: caches.of(),
        attachments: caches.of(),
        unwanted: Mutex::default(),
    };
    let (pods, claims, volumes) =
        (controller.pods.clone(), controller.claims.clone(), controller.volumes.clone());
    let (nodes, drivers, attachments) =
        (controller.nodes.clone(), controller.drivers.clone(), controller.attachments.clone());
    Runner::new(&context, controller)
        // Whether its volumes are attached at all may change.
        .on(&drivers, |c: &Controller, change| {
            let asks = |d: &CSIDriver| d.spec.attach_required != Some(false);
            if let Change::Modified { old, new } = change
                && asks(old) == asks(new)
            {
                return Vec::new();
            }
            let mut volumes = c.volumes.list();
            volumes.retain(|v| Handle::of(v).is_some_and(|h| h.driver == name(&change.object().metadata)));
            let mut keys: Vec<Key> =
                volumes.iter().map(|v| Key::Volume(name(&v.metadata).to_owned())).collect();
            let own =
                |key: &Key| matches!(key, Key::Inline(h) if h.driver == name(&change.object().metadata));
            keys.extend(c.pods.list().iter().flat_map(|p| c.keys_of(p)).filter(own));
            keys
        })
        .on(&pods, |c: &Controller, change| {
            let pod = change.object();
            // Only with a node it wants anything, and only its node and end change what it wants.
            let differs = match change {
                Change::Modified { old, .. } => {
                    pods::node_name(old) != pods::node_name(pod)
                        || pods::is_terminal(old) != pods::is_terminal(pod)
                }
                _ => true,
            };
            if !differs || pods::node_name(pod).is_empty() {
                return Vec::new();
            }
            c.keys_of(pod)
        })
        .on(&claims, |_, change| {
            let bound = |c: &PersistentVolumeClaim| {
                c.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|n| !n.is_empty())
            };
            let differs = match change {
                Change::Modified { old, new } => bound(old) != bound(new),
                _ => true,
            };
            bound(change.object()).filter(|_| differs).map(Key::Volume)
        })
        .on(&volumes, |_, change| {
            let volume = change.object();
            Handle::of(volume).map(|_| Key::Volume(name(&volume.metadata).to_owned()))
        })
        .on(&attachments, |c: &Controller, change| {
            let attachment = change.object();
            let mut keys: Vec<Key> = key_of(attachment).into_iter().collect();
            keys.push(Key::Node(attachment.spec.node_name.clone()));
            if matches!(change, Change::Deleted(_)) {
                keys.extend(c.beside(attachment));
            }
            keys
        })
        .on(&nodes, |c: &Controller, change| {
            let node = change.object();
            // Heartbeats are none of our business.
            if let Change::Modified { old, .. } = change
                && view(old) == view(node)
            {
                return Vec::new();
            }
            let mut keys = c.attached_to(name(&node.metadata));
            keys.push(Key::Node(name(&node.metadata).to_owned()));
            keys
        })
        .run(4)
        .await;
}

/// What of a node matters here.
fn view(node: &Node) -> (bool, bool, bool, Vec<String>, Vec<String>) {
    let status = node.status.as_ref();
    let in_use = status.and_then(|s| s.volumes_in_use.clone()).unwrap_or_default();
    (is_managed(node), is_out_of_service(node), is_ready(node), in_use, attached(node))
}

fn is_managed(node: &Node) -> bool {
    annotations(&node.metadata).get(MANAGED).is_some_and(|v| v == "true")
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.into_iter().any(|t| t.key == OUT_OF_SERVICE)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn attached(node: &Node) -> Vec<String> {
    let list = node.status.iter().flat_map(|s| s.volumes_attached.iter().flatten());
    list.map(|v| v.name.clone()).collect()
}

/// A volume as its driver knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Handle {
    driver: String,
    id: String,
}

impl From<&CSIPersistentVolumeSource> for Handle {
    fn from(source: &CSIPersistentVolumeSource) -> Self {
        Self { driver: source.driver.clone(), id: source.volume_handle.clone() }
    }
}

impl Handle {
    /// Also of a volume whose plugin a driver took the place of.
    fn of(volume: &PersistentVolume) -> Option<Self> {
        if let Some(csi) = &volume.spec.as_ref()?.csi {
            return Some(csi.into());
        }
        Some((&csi_migration::of_volume(volume).ok()??.source).into())
    }

    /// The name under which nodes and kubelets know it.
    fn unique(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.id)
    }

    /// The name of its attachment to a node.
    fn attachment(&self, node: &str) -> String {
        let sum = Sha256::digest(format!("{}{}{node}", self.id, self.driver).as_bytes());
        sum.iter().fold("csi-".to_owned(), |text, byte| format!("{text}{byte:02x}"))
    }
}

/// A volume, and who wants it.
struct Wanted {
    handle: Handle,
    /// What pods are told that it is called.
    name: String,
    source: VolumeAttachmentSource,
    /// Only one node at a time may have it.
    exclusive: bool,
    /// The pods that use it, by node.
    users: Users,
}

type Users = BTreeMap<String, Vec<std::sync::Arc<Pod>>>;

/// Whether only one node at a time may have a volume.
fn is_exclusive(modes: &[String]) -> bool {
    !modes.iter().any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany")
}

/// How a volume may be used, as its driver has it.
fn access_modes(volume: &PersistentVolume) -> Vec<String> {
    let migrated = csi_migration::of_volume(volume).ok().flatten();
    let own = || volume.spec.as_ref().and_then(|s| s.access_modes.clone()).unwrap_or_default();
    migrated.map_or_else(own, |migrated| migrated.access_modes)
}

/// The volumes that stand in a pod itself and whose plugins drivers took the place of.
fn inline(pod: &Pod) -> impl Iterator<Item = Migrated> {
    volumes(pod).filter_map(|v| csi_migration::of_pod(v, namespace(&pod.metadata)).ok().flatten())
}

/// Why a volume that only one node at a time may have cannot be attached to another: these pods there use it.
fn held_elsewhere(volume: &str, by: &[std::sync::Arc<Pod>]) -> String {
    let mut names: Vec<&str> = by.iter().map(|p| name(&p.metadata)).collect();
    names.sort_unstable();
    let why = match names.is_empty() {
        true => {
            "Volume is already exclusively attached to one node and can't be attached to another".to_owned()
        }
        false => format!("Volume is already used by pod(s) {}", names.join(", ")),
    };
    format!("Multi-Attach error for volume {volume:?} {why}")
}

fn is_attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|s| s.attached)
}

fn volume_of(attachment: &VolumeAttachment) -> &str {
    attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default()
}

/// What an attachment is of that is not of a PersistentVolume.
fn inline_of(attachment: &VolumeAttachment) -> Option<Handle> {
    attachment.spec.source.inline_volume_spec.as_ref()?.csi.as_ref().map(Handle::from)
}

fn key_of(attachment: &VolumeAttachment) -> Option<Key> {
    let named = Some(volume_of(attachment)).filter(|name| !name.is_empty());
    named.map(|name| Key::Volume(name.to_owned())).or_else(|| inline_of(attachment).map(Key::Inline))
}

impl Controller {
    /// The volumes bound to the claims of a pod.
    fn volumes_of(&self, pod: &Pod) -> BTreeSet<String> {
        let ns = namespace(&pod.metadata);
        let claims = claim_names(pod).into_iter().filter_map(|c| self.claims.get(ns, &c));
        let volumes = claims.filter_map(|c| c.spec.as_ref()?.volume_name.clone());
        volumes.filter(|n| !n.is_empty()).collect()
    }

    fn attached_to(&self, node: &str) -> Vec<Key> {
        let list = self.attachments.list().into_iter().filter(|a| a.spec.node_name == node);
        list.filter_map(|a| key_of(&a)).collect()
    }

    /// Those volumes of a pod that may have to be attached.
    fn keys_of(&self, pod: &Pod) -> Vec<Key> {
        let inline = inline(pod).map(|migrated| Key::Inline((&migrated.source).into()));
        self.volumes_of(pod).into_iter().map(Key::Volume).chain(inline).collect()
    }

    /// By node: the pods there that use the volume.
    fn users(&self, volume: &PersistentVolume) -> Users {
        let mut users = Users::new();
        let Some(of) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return users };
        let own = name(&volume.metadata);
        for pod in self.pods.list_ns(of.namespace.as_deref().unwrap_or_default()) {
            let node = pods::node_name(&pod);
            if !node.is_empty() && !pods::is_terminal(&pod) && self.volumes_of(&pod).contains(own) {
                users.entry(node.to_owned()).or_default().push(pod.clone());
            }
        }
        users
    }

    /// The same of a volume that stands in pods themselves, and how they have it.
    fn inline_users(&self, handle: &Handle) -> (Users, Option<Migrated>) {
        let (mut users, mut found) = (Users::new(), None);
        for pod in self.pods.list() {
            let node = pods::node_name(&pod);
            if node.is_empty() || pods::is_terminal(&pod) {
                continue;
            }
            if let Some(migrated) = inline(&pod).find(|m| Handle::from(&m.source) == *handle) {
                users.entry(node.to_owned()).or_default().push(pod.clone());
                found = Some(migrated);
            }
        }
        (users, found)
    }

    /// A driver that says nothing of it is attached.
    fn needs_attaching(&self, driver: &str) -> bool {
        self.drivers.get("", driver).is_none_or(|d| d.spec.attach_required != Some(false))
    }

    async fn volume(&self, key: &str) -> Result<Outcome, Failure> {
        let Some(volume) = self.volumes.get("", key) else { return Ok(Outcome::Settled) };
        let Some(handle) = Handle::of(&volume) else { return Ok(Outcome::Settled) };
        let users = if self.needs_attaching(&handle.driver) { self.users(&volume) } else { Users::new() };
        let source =
            VolumeAttachmentSource { persistent_volume_name: Some(key.to_owned()), inline_volume_spec: None };
        let exclusive = is_exclusive(&access_modes(&volume));
        self.settle(Wanted { handle, name: key.to_owned(), source, exclusive, users }).await
    }

    /// The attachment of a volume that stands in pods themselves says itself what the driver is to be told.
    async fn inline(&self, handle: &Handle) -> Result<Outcome, Failure> {
        let (mut users, migrated) = self.inline_users(handle);
        if !self.needs_attaching(&handle.driver) {
            users.clear();
        }
        let (mut name, mut spec, mut exclusive) = (String::new(), PersistentVolumeSpec::default(), false);
        if let Some(migrated) = migrated {
            exclusive = is_exclusive(&migrated.access_modes);
            name = migrated.name;
            (spec.csi, spec.access_modes) = (Some(migrated.source), Some(migrated.access_modes));
        }
        let source = VolumeAttachmentSource { persistent_volume_name: None, inline_volume_spec: Some(spec) };
        self.settle(Wanted { handle: handle.clone(), name, source, exclusive, users }).await
    }

    /// Attaches a volume where it is wanted, and detaches it elsewhere.
    async fn settle(&self, wanted: Wanted) -> Result<Outcome, Failure> {
        let Wanted { handle, name: own, source, exclusive, users } = &wanted;
        // The name is that of disk and node, whether a claim or a pod itself has it. Others' attachments are theirs.
        let mut held = self.attachments.list();
        held.retain(|a| name(&a.metadata) == handle.attachment(&a.spec.node_name));
        let there = held.iter().filter(|a| match &source.persistent_volume_name {
            Some(volume) => volume_of(a) == volume,
            None => inline_of(a).as_ref() == Some(handle),
        });
        let mut wait = None;
        for attachment in there {
            if users.contains_key(&attachment.spec.node_name) {
                self.unwanted.lock().remove(name(&attachment.metadata));
            } else if attachment.metadata.deletion_timestamp.is_none()
                && let Some(left) = self.detach(handle, attachment).await?
            {
                wait = Some(wait.map_or(left, |w: Duration| w.min(left)));
            }
        }
        for (node, pods) in users {
            if let Some(attachment) = held.iter().find(|a| a.spec.node_name == *node) {
                self.tell(&wanted, attachment, node, pods);
                continue;
            }
            if !self.nodes.get("", node).is_some_and(|n| is_managed(&n)) {
                continue;
            }
            if *exclusive && let Some(other) = held.first() {
                let others = users.get(&other.spec.node_name).map(Vec::as_slice);
                let message = held_elsewhere(own, others.unwrap_or_default());
                for pod in pods {
                    let about = reference(&**pod);
                    self.context.recorder.event(
                        &about,
                        EventType::Warning,
                        "FailedAttachVolume",
                        message.clone(),
                    );
                }
                // The end of the other attachment brings the volume back here.
                continue;
            }
            let attachment = VolumeAttachment {
                metadata: ObjectMeta { name: Some(handle.attachment(node)), ..ObjectMeta::default() },
                spec: VolumeAttachmentSpec {
                    attacher: handle.driver.clone(),
                    node_name: node.clone(),
                    source: source.clone(),
                },
                status: None,
            };
            match self.context.client.create("", &attachment).await {
                Err(error) if !error.is_already_exists() => return Err(error.into()),
                _ => {}
            }
            if *exclusive {
                // Where two nodes want it, the second waits for the first.
                break;
            }
        }
        Ok(Outcome::from(wait))
    }

    /// Tells the pods on a node how attaching went.
    fn tell(&self, wanted: &Wanted, attachment: &VolumeAttachment, node: &str, pods: &[std::sync::Arc<Pod>]) {
        let volume = &wanted.name;
        let error = attachment.status.as_ref().and_then(|s| s.attach_error.as_ref());
        let (kind, reason, message) = match error {
            _ if is_attached(attachment) => (
                EventType::Normal,
                "SuccessfulAttachVolume",
                format!("AttachVolume.Attach succeeded for volume {volume:?} "),
            ),
            Some(error) => (
                EventType::Warning,
                "FailedAttachVolume",
                format!(
                    "AttachVolume.Attach failed for volume {volume:?} : {}",
                    error.message.as_deref().unwrap_or_default()
                ),
            ),
            None => return,
        };
        // Told once: later pods on the node find it attached.
        let known = self.nodes.get("", node).is_some_and(|n| attached(&n).contains(&wanted.handle.unique()));
        if known {
            return;
        }
        for pod in pods {
            self.context.recorder.event(&reference(&**pod), kind, reason, message.clone());
        }
    }

    /// Detaches what no pod wants; how long to wait where the node still has it mounted.
    async fn detach(
        &self,
        handle: &Handle,
        attachment: &VolumeAttachment,
    ) -> Result<Option<Duration>, Failure> {
        let now = self.context.clock.now();
        let own = name(&attachment.metadata);
        let unique = handle.unique();
        if let Some(node) = self.nodes.get("", &attachment.spec.node_name) {
            if !is_managed(&node) {
                return Ok(None);
            }
            let in_use = node.status.as_ref().and_then(|s| s.volumes_in_use.as_ref());
            if in_use.is_some_and(|l| l.contains(&unique)) && !is_out_of_service(&node) {
                let since = *self.unwanted.lock().entry(own.to_owned()).or_insert(now);
                let waited = now.duration_since(since).unsigned_abs();
                // A node that is ready will let go by itself, however long it takes.
                if is_ready(&node) {
                    return Ok(None);
                }
                if waited < UNMOUNT {
                    return Ok(Some(UNMOUNT - waited));
                }
            }
            self.report(&node, |name| name != unique).await?;
        }
        let options = DeleteOptions { uid: attachment.metadata.uid.clone(), ..DeleteOptions::default() };
        match self.context.client.delete::<VolumeAttachment>("", own, &options).await {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
        self.unwanted.lock().remove(own);
        Ok(None)
    }

    fn handle_of(&self, attachment: &VolumeAttachment) -> Option<Handle> {
        inline_of(attachment).or_else(|| Handle::of(&*self.volumes.get("", volume_of(attachment))?))
    }

    /// The same disk as a claim's volume and as one that stands in pods, and the other way round: one attachment serves both.
    fn beside(&self, attachment: &VolumeAttachment) -> Vec<Key> {
        let handle = self.handle_of(attachment).filter(|h| csi_migration::plugin_of(&h.driver).is_some());
        let Some(handle) = handle else { return Vec::new() };
        if inline_of(attachment).is_none() {
            return vec![Key::Inline(handle)];
        }
        let mut volumes = self.volumes.list();
        volumes.retain(|v| Handle::of(v).as_ref() == Some(&handle));
        volumes.iter().map(|v| Key::Volume(name(&v.metadata).to_owned())).collect()
    }

    /// Whether pods of its node use what is attached.
    fn is_used(&self, attachment: &VolumeAttachment) -> bool {
        let users = match (inline_of(attachment), self.volumes.get("", volume_of(attachment))) {
            (Some(handle), _) => self.inline_users(&handle).0,
            (None, Some(volume)) => self.users(&volume),
            (None, None) => Users::new(),
        };
        users.contains_key(&attachment.spec.node_name)
    }

    /// Writes what is attached to the node into its status: of that, what `keeps` says.
    async fn report(&self, node: &Node, keeps: impl Fn(&str) -> bool) -> Result<(), Failure> {
        let own = name(&node.metadata);
        let mut want: BTreeMap<String, String> = BTreeMap::new();
        for attachment in self.attachments.list() {
            let handle = self.handle_of(&attachment);
            if attachment.spec.node_name == own
                && is_attached(&attachment)
                && attachment.metadata.deletion_timestamp.is_none()
                && let Some(handle) = handle.filter(|h| name(&attachment.metadata) == h.attachment(own))
            {
                want.insert(handle.unique(), String::new());
            }
        }
        want.retain(|name, _| keeps(name));
        let now: BTreeSet<String> = attached(node).into_iter().collect();
        if now.iter().eq(want.keys()) {
            return Ok(());
        }
        let list: Vec<_> =
            want.iter().map(|(name, path)| json!({"name": name, "devicePath": path})).collect();
        let patch = json!({"metadata": {"uid": node.metadata.uid}, "status": {"volumesAttached": list}});
        match self.context.client.patch_status::<Node>("", own, &Patch::Merge(patch)).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn node(&self, key: &str) -> Result<(), Failure> {
        let Some(node) = self.nodes.get("", key).filter(|n| is_managed(n)) else { return Ok(()) };
        // What is about to be detached is not told again.
        let unwanted: BTreeSet<String> = {
            let mut list = self.attachments.list();
            list.retain(|a| a.spec.node_name == key && !self.is_used(a));
            list.iter().filter_map(|a| Some(self.handle_of(a)?.unique())).collect()
        };
        let before = attached(&node);
        self.report(&node, |name| !unwanted.contains(name) || before.iter().any(|b| b == name)).await
    }
}

impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Failure> {
        match key {
            Key::Volume(key) => self.volume(key).await,
            Key::Inline(handle) => self.inline(handle).await,
            Key::Node(key) => self.node(key).await.map(|()| Outcome::Settled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_volume_is_told_who_has_it() {
        let pod = |name: &str| {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            std::sync::Arc::new(Pod { metadata, ..Pod::default() })
        };
        let used = "Multi-Attach error for volume \"pv\" Volume is already used by pod(s) a, b";
        assert_eq!(held_elsewhere("pv", &[pod("b"), pod("a")]), used);
        let held = "Multi-Attach error for volume \"pv\" Volume is already exclusively attached to one node and can't be attached to another";
        assert_eq!(held_elsewhere("pv", &[]), held);
    }

    #[test]
    fn a_clouds_volume_is_attached_by_the_driver_in_its_plugins_place() {
        let spec = json!({"accessModes": ["ReadWriteMany"], "gcePersistentDisk": {"pdName": "d"}});
        let volume: PersistentVolume =
            serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": spec})).unwrap();
        let unique = "kubernetes.io/csi/pd.csi.storage.gke.io^projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d";
        assert_eq!(Handle::of(&volume).unwrap().unique(), unique);
        assert!(is_exclusive(&access_modes(&volume)), "whatever it says");
    }

    #[test]
    fn names_are_those_that_kubelets_look_for() {
        let handle = Handle { driver: "disks.example.com".into(), id: "vol-1".into() };
        assert_eq!(handle.unique(), "kubernetes.io/csi/disks.example.com^vol-1");
        let sum = Sha256::digest(b"vol-1disks.example.comn1");
        let hex: String = sum.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(handle.attachment("n1"), format!("csi-{hex}"));
    }
}
