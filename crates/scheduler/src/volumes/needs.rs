//! VolumeRestrictions, NodeVolumeLimits, VolumeBinding and VolumeZone: what a pod's volumes say about a node.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use api::csi_migration;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};

use super::matching::{self, Provision};
use super::{Decisions, Volumes, class_of, is_bound, volume_name};
use crate::filter::{NODE_VOLUME_LIMITS, Rejection, VOLUME_BINDING, VOLUME_RESTRICTIONS, VOLUME_ZONE};
use crate::pod_info::PodInfo;
use crate::profile::Profile;
use crate::snapshot::{NodeInfo, Snapshot};

/// Zone and region labels of volumes and nodes, old and new.
const ZONES: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

/// What a pod's volumes need.
#[derive(Debug)]
pub struct Needs {
    bound: Vec<(String, Option<Arc<PersistentVolume>>)>,
    /// Claims that wait for the pod's node, the smallest first.
    waiting: Vec<(String, Arc<PersistentVolumeClaim>)>,
    /// Claims that one pod at a time may use.
    exclusive: Vec<String>,
    /// Whether volumes of a kind that nodes cannot share are mounted by the pod itself.
    disks: bool,
}

/// Why a pod cannot run anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Index of the filter.
    pub filter: usize,
    /// In the words users know.
    pub reason: String,
    /// Nobody is told: the pod is not ready to be tried.
    pub silent: bool,
}

fn refuse<T>(reason: String) -> Result<T, Refusal> {
    Err(Refusal { filter: VOLUME_BINDING, reason, silent: false })
}

impl Needs {
    /// What `pod` needs; `None`: its volumes say nothing.
    pub fn of(pod: &PodInfo, volumes: &Volumes) -> Result<Option<Self>, Refusal> {
        let disks = has_disks(&pod.pod);
        if pod.claims.is_empty() && !disks && inline(pod).next().is_none() {
            return Ok(None);
        }
        let (mut bound, mut waiting, mut exclusive) = (Vec::new(), Vec::new(), Vec::new());
        let mut immediate = false;
        for used in pod.claims.iter() {
            let name = used.key.rsplit('/').next().unwrap_or_default();
            let Some(claim) = volumes.claims.get(&used.key) else {
                return refuse(if used.ephemeral {
                    format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                    )
                } else {
                    format!("persistentvolumeclaim {name:?} not found")
                });
            };
            if used.ephemeral && !is_owned(claim, pod) {
                return refuse(format!(
                    "PVC {} was not created for pod {}/{} (pod is not owner)",
                    used.key,
                    pod.namespace(),
                    pod.name()
                ));
            }
            if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
                let volume = volume_name(claim);
                return refuse(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
                ));
            }
            if claim.metadata.deletion_timestamp.is_some() {
                return refuse(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            let modes = claim.spec.as_ref().and_then(|s| s.access_modes.as_ref());
            if modes.is_some_and(|m| m.iter().any(|m| m == "ReadWriteOncePod")) {
                exclusive.push(used.key.clone());
            }
            if is_bound(claim) {
                bound.push((used.key.clone(), volumes.volumes.get(volume_name(claim)).cloned()));
            } else if volume_name(claim).is_empty() && volumes.is_delayed(class_of(claim)) {
                waiting.push((used.key.clone(), claim.clone()));
            } else {
                immediate = true;
            }
        }
        if immediate {
            return refuse("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
        waiting.sort_by_key(|(key, claim)| (matching::requested(claim), key.clone()));
        Ok(Some(Self { bound, waiting, exclusive, disks }))
    }

    /// Whether the node, which is `slot`'s or that with other pods on it, takes the pod.
    pub fn check(
        &self,
        pod: &PodInfo,
        slot: usize,
        node: &NodeInfo,
        snapshot: &Snapshot,
        profile: &Profile,
    ) -> Result<(), Rejection> {
        if profile.runs(VOLUME_RESTRICTIONS) {
            self.restrictions(pod, slot, node, snapshot)?;
        }
        if profile.runs(NODE_VOLUME_LIMITS) && exceeds(pod, node, snapshot.volumes()) {
            return Err(Rejection::new(NODE_VOLUME_LIMITS, "node(s) exceed max volume count", true));
        }
        if profile.runs(VOLUME_BINDING) {
            self.decide(node, snapshot.volumes())?;
        }
        if profile.runs(VOLUME_ZONE) {
            self.zone(node)?;
        }
        Ok(())
    }

    fn restrictions(
        &self,
        pod: &PodInfo,
        slot: usize,
        node: &NodeInfo,
        snapshot: &Snapshot,
    ) -> Result<(), Rejection> {
        let shares = |other: &PodInfo| {
            other.uid != pod.uid && other.pod.spec.iter().any(|s| conflicts(&pod.pod, s.volumes.as_deref()))
        };
        if self.disks && node.pods().any(shares) {
            return Err(Rejection::new(VOLUME_RESTRICTIONS, "node(s) had no available disk", true));
        }
        let users = |node: &NodeInfo, key: &str| {
            node.pods().filter(|p| p.uid != pod.uid && p.claims.iter().any(|c| c.key == key)).count()
        };
        let taken = |key: &String| {
            let elsewhere = snapshot.users_of(key).saturating_sub(users(snapshot.node(slot), key));
            elsewhere + users(node, key) > 0
        };
        if self.exclusive.iter().any(taken) {
            let reason = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
            return Err(Rejection::new(VOLUME_RESTRICTIONS, reason, true));
        }
        Ok(())
    }

    /// How the claims that wait get volumes on the node; or all that is in the way.
    pub fn decide(&self, node: &NodeInfo, volumes: &Volumes) -> Result<Decisions, Rejection> {
        let of_bound = self.bound.iter().find_map(|(_, volume)| match volume {
            None => Some("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"),
            Some(volume) if !matching::reaches(volume, node) => {
                Some("node(s) didn't match PersistentVolume's node affinity")
            }
            Some(_) => None,
        });
        let waiting = self.decide_waiting(node, volumes);
        match (of_bound, waiting) {
            (None, Ok(decisions)) => Ok(decisions),
            (of_bound, waiting) => {
                let reasons = of_bound.into_iter().chain(waiting.err()).map(Into::into).collect();
                Err(Rejection { filter: VOLUME_BINDING, reasons, resolvable: false })
            }
        }
    }

    fn decide_waiting(&self, node: &NodeInfo, volumes: &Volumes) -> Result<Decisions, &'static str> {
        let mut decisions = Decisions::default();
        let mut taken: HashSet<&str> = HashSet::new();
        for (key, claim) in &self.waiting {
            let none = "node(s) didn't find available persistent volumes to bind";
            match volumes.selected_node(key, claim) {
                Some(selected) if *selected != *node.name => return Err(none),
                Some(_) => {}
                None => {
                    if let Some(volume) = matching::find(volumes, key, claim, node, &taken) {
                        let name = volume.metadata.name.as_deref().unwrap_or_default();
                        taken.insert(name);
                        decisions.bind.push((name.to_owned(), key.clone()));
                        continue;
                    }
                }
            }
            match matching::provision(volumes, claim, node) {
                Provision::Yes => decisions.provision.push(key.clone()),
                Provision::No => return Err(none),
                Provision::NotEnoughSpace => return Err("node(s) did not have enough free storage"),
            }
        }
        Ok(decisions)
    }

    /// A volume of a zone is not used in another.
    fn zone(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if ZONES.iter().all(|key| node.label(key).is_none()) {
            return Ok(());
        }
        for volume in self.bound.iter().filter_map(|(_, v)| v.as_ref()) {
            let empty = Default::default();
            let labels = volume.metadata.labels.as_ref().unwrap_or(&empty);
            for zones in ZONES.iter().filter_map(|key| labels.get(*key).map(|zones| (key, zones))) {
                let (key, zones) = zones;
                let own = node.label(key).or_else(|| node.label(new_name(key)?));
                if !own.is_some_and(|own| zones.split("__").any(|z| z == own)) {
                    let reason = "node(s) had no available volume zone";
                    return Err(Rejection::new(VOLUME_ZONE, reason, false));
                }
            }
        }
        Ok(())
    }
}

/// What an old name is called now.
fn new_name(key: &str) -> Option<&'static str> {
    let (new, old) = ZONES.split_at(2);
    old.iter().position(|k| *k == key).map(|at| new[at])
}

fn is_owned(claim: &PersistentVolumeClaim, pod: &PodInfo) -> bool {
    let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|o| o.controller == Some(true) && *o.uid == *pod.uid)
}

fn has_disks(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    volumes.iter().any(|v| {
        v.gce_persistent_disk.is_some()
            || v.aws_elastic_block_store.is_some()
            || v.rbd.is_some()
            || v.iscsi.is_some()
    })
}

/// Whether the pod mounts a disk that others on the node have and that cannot be shared in this way.
fn conflicts(pod: &Pod, others: Option<&[Volume]>) -> bool {
    let own = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let both = |f: &dyn Fn(&Volume, &Volume) -> bool| {
        own.iter().any(|a| others.unwrap_or_default().iter().any(|b| f(a, b)))
    };
    let writes = |a: Option<bool>, b: Option<bool>| !(a == Some(true) && b == Some(true));
    both(&|a, b| match (&a.gce_persistent_disk, &b.gce_persistent_disk) {
        (Some(a), Some(b)) => a.pd_name == b.pd_name && writes(a.read_only, b.read_only),
        _ => false,
    }) || both(&|a, b| match (&a.aws_elastic_block_store, &b.aws_elastic_block_store) {
        (Some(a), Some(b)) => a.volume_id == b.volume_id,
        _ => false,
    }) || both(&|a, b| match (&a.iscsi, &b.iscsi) {
        (Some(a), Some(b)) => a.iqn == b.iqn && writes(a.read_only, b.read_only),
        _ => false,
    }) || both(&|a, b| match (&a.rbd, &b.rbd) {
        (Some(a), Some(b)) => {
            a.monitors.iter().any(|m| b.monitors.contains(m))
                && a.pool == b.pool
                && a.image == b.image
                && writes(a.read_only, b.read_only)
        }
        _ => false,
    })
}

/// Driver and handle of a volume of a driver, or of a plugin that a driver took the place of.
fn handle(volume: &PersistentVolume) -> Option<(String, String)> {
    if let Some(csi) = &volume.spec.as_ref()?.csi {
        return Some((csi.driver.clone(), csi.volume_handle.clone()));
    }
    let source = csi_migration::of_volume(volume).ok()??.source;
    Some((source.driver, source.volume_handle))
}

/// The same of the volumes that stand in a pod itself and whose plugins drivers took the place of.
fn inline(pod: &PodInfo) -> impl Iterator<Item = (String, String)> {
    let volumes = pod.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let migrated = volumes.filter_map(|volume| csi_migration::of_pod(volume, pod.namespace()).ok().flatten());
    migrated.map(|migrated| (migrated.source.driver, migrated.source.volume_handle))
}

/// Driver and handle of a pod's volumes; of one that is yet to be made for a claim, the claim stands for the handle.
fn handles(pod: &PodInfo, volumes: &Volumes) -> Vec<(String, String)> {
    let of = |key: &str| {
        let claim = volumes.claims.get(key)?;
        if let Some(volume) = volumes.volumes.get(volume_name(claim)) {
            return handle(volume);
        }
        let class = volumes.classes.get(class_of(claim))?;
        let driver = csi_migration::driver_of(&class.provisioner).unwrap_or(&class.provisioner);
        Some((driver.to_owned(), format!("claim {key}")))
    };
    pod.claims.iter().filter_map(|c| of(&c.key)).chain(inline(pod)).collect()
}

/// Whether the node would have more volumes of a driver than the driver can attach there.
fn exceeds(pod: &PodInfo, node: &NodeInfo, volumes: &Volumes) -> bool {
    let Some(limits) = volumes.csi_nodes.get(&node.name) else { return false };
    let limit = |driver: &str| {
        let driver = limits.spec.drivers.iter().find(|d| d.name == driver)?;
        usize::try_from(driver.allocatable.as_ref()?.count?).ok()
    };
    let wanted: HashSet<_> = handles(pod, volumes).into_iter().filter(|(d, _)| limit(d).is_some()).collect();
    if wanted.is_empty() {
        return false;
    }
    let mut there: HashSet<(String, String)> = node.pods().flat_map(|p| handles(p, volumes)).collect();
    for attachment in volumes.attachments.values().filter(|a| *a.spec.node_name == *node.name) {
        let name = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
        there.extend(volumes.volumes.get(name).and_then(|volume| handle(volume)));
    }
    let mut more: HashMap<&str, usize> = HashMap::new();
    for (driver, _) in wanted.difference(&there) {
        *more.entry(driver).or_default() += 1;
    }
    more.iter().any(|(driver, more)| {
        let used = there.iter().filter(|(d, _)| d == driver).count();
        limit(driver).is_some_and(|limit| used + more > limit)
    })
}
