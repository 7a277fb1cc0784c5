//! Volumes as the scheduler sees them: claims, volumes, classes and what drivers say of nodes and capacity, and which
//! volumes are promised to claims of pods whose binding is under way.
//! Rule: <https://kubernetes.io/docs/concepts/storage/storage-classes/#volume-binding-mode>
pub mod bind;
pub(crate) mod feeds;
mod matching;
pub mod needs;

use std::collections::HashMap;
use std::sync::Arc;

use client::{Change, Kind};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};

/// The claim was bound, and the binding is complete.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The volume's claim was set by a controller, not by a person.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// The node for which a volume is to be made.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// A class whose volumes nobody makes.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Objects of one kind by `namespace/name`, or `name`.
#[derive(Debug)]
pub struct Table<K> {
    objects: HashMap<String, Arc<K>>,
}

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self { objects: HashMap::new() }
    }
}

fn key(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

impl<K: Kind> Table<K> {
    /// Takes a change in.
    pub fn apply(&mut self, change: &Change<K>) {
        let meta = change.object().metadata();
        let key = key(meta.namespace.as_deref(), meta.name.as_deref().unwrap_or_default());
        match change {
            Change::Deleted(_) => drop(self.objects.remove(&key)),
            _ => drop(self.objects.insert(key, change.object().clone())),
        }
    }

    /// Puts an object in.
    pub fn set(&mut self, object: K) {
        self.apply(&Change::Added(Arc::new(object)));
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Arc<K>> {
        self.objects.get(key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Arc<K>> {
        self.objects.values()
    }
}

/// Everything about volumes that decisions look at.
#[derive(Debug, Default)]
pub struct Volumes {
    /// Claims.
    pub claims: Table<PersistentVolumeClaim>,
    /// Volumes.
    pub volumes: Table<PersistentVolume>,
    /// Classes.
    pub classes: Table<StorageClass>,
    /// Drivers of nodes.
    pub csi_nodes: Table<CSINode>,
    /// Drivers.
    pub drivers: Table<CSIDriver>,
    /// Free capacity by class and topology.
    pub capacities: Table<CSIStorageCapacity>,
    /// Volumes attached to nodes.
    pub attachments: Table<VolumeAttachment>,
    /// By volume: the claim it is promised to.
    promised: HashMap<String, String>,
    /// By claim: the node for which its volume is being made.
    selected: HashMap<String, String>,
}

/// What is to be done about a pod's volumes before it is bound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decisions {
    /// Volumes that are there, with the claims they are to be bound to.
    pub bind: Vec<(String, String)>,
    /// Claims for which volumes are to be made for the node.
    pub provision: Vec<String>,
}

impl Decisions {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.bind.is_empty() && self.provision.is_empty()
    }
}

impl Volumes {
    /// From now on the decisions count as done.
    pub fn promise(&mut self, decisions: &Decisions, node: &str) {
        for (volume, claim) in &decisions.bind {
            self.promised.insert(volume.clone(), claim.clone());
        }
        for claim in &decisions.provision {
            self.selected.insert(claim.clone(), node.to_owned());
        }
    }

    /// The decisions are done, or will not be.
    pub fn settle(&mut self, decisions: &Decisions) {
        for (volume, _) in &decisions.bind {
            self.promised.remove(volume);
        }
        for claim in &decisions.provision {
            self.selected.remove(claim);
        }
    }

    /// The node for which the claim's volume is being made.
    fn selected_node<'a>(&'a self, key: &str, claim: &'a PersistentVolumeClaim) -> Option<&'a str> {
        let annotated = claim.metadata.annotations.as_ref().and_then(|a| a.get(SELECTED_NODE));
        self.selected.get(key).or(annotated).map(String::as_str)
    }

    /// Whether claims of this class wait for a pod's node.
    fn is_delayed(&self, class: &str) -> bool {
        let class = self.classes.get(class);
        class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
    }
}

/// The class of a claim, in both ways of saying it.
fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let old =
        claim.metadata.annotations.as_ref().and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
    let new = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
    old.or(new).map_or("", String::as_str)
}

/// Whether the claim is bound for good.
fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty()
        && claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(BIND_COMPLETED))
}

fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default()
}

/// One claim that a pod uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedClaim {
    /// `namespace/name`.
    pub key: String,
    /// Made for this pod, from a template in its spec.
    pub ephemeral: bool,
}

/// The claims that a pod uses.
pub fn claims_of(pod: &Pod) -> Vec<UsedClaim> {
    let namespace = pod.metadata.namespace.as_deref();
    let own = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref()).into_iter().flatten();
    volumes
        .filter_map(|v| match (&v.persistent_volume_claim, &v.ephemeral) {
            (Some(claim), _) => Some(UsedClaim { key: key(namespace, &claim.claim_name), ephemeral: false }),
            (None, Some(_)) => {
                Some(UsedClaim { key: key(namespace, &format!("{own}-{}", v.name)), ephemeral: true })
            }
            (None, None) => None,
        })
        .collect()
}
