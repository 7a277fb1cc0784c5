//! The binder of volumes and claims.
//!
//! A binding is four writes: the volume names the claim, is `Bound`, the claim names the volume, is `Bound`. Each pass makes
//! those that are missing, in this order, so that one that is cut off anywhere is finished by the next. Of two claims that want
//! one volume the first to write its name wins: volumes are written at the revision at which they were found free.
//!
//! Volumes are made and removed by provisioners: a claim is handed over by the annotation that names its provisioner, a volume by
//! its phase `Released`; host paths are removed here. Rule: Kubernetes documentation, "Persistent Volumes".
//!
//! Tasks: one worker, so that two claims do not look for a volume at the same time.
mod matching;
mod migrated;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use api::csi_migration;
use client::events::{EventType, reference};
use client::{Cache, Change, DeleteOptions};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::ownership::{annotations, name, namespace, uid};
use crate::pod_claims::claim_names;
use crate::pods;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};

/// On a claim: it was bound once.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The binding was not asked for by whoever made the object.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: who made it.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: who is to make its volume, old and new.
const PROVISIONERS: [&str; 2] =
    ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"];
/// On a claim: the node that the scheduler chose.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a volume that is being enlarged: what the claim had before.
const BEFORE_RESIZE: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Claim(ObjectKey),
    Volume(String),
}

struct Controller {
    context: Context,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    classes: Cache<StorageClass>,
    pods: Cache<Pod>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (claims, volumes) = (caches.of::<PersistentVolumeClaim>(), caches.of::<PersistentVolume>());
    let (classes, pods) = (caches.of::<StorageClass>(), caches.of::<Pod>());
    let controller = Controller {
        context: context.clone(),
        claims: claims.clone(),
        volumes: volumes.clone(),
        classes: classes.clone(),
        pods: pods.clone(),
    };
    Runner::new(&context, controller)
        .needs(&pods)
        .on(&claims, |c: &Controller, change| {
            let claim = change.object();
            let named = volume_name(claim);
            let mut keys: Vec<Key> =
                (!named.is_empty()).then(|| Key::Volume(named.to_owned())).into_iter().collect();
            if matches!(change, Change::Deleted(_)) {
                // Also of a binding that had only begun.
                let id = uid(&claim.metadata);
                let whose = c
                    .volumes
                    .list()
                    .into_iter()
                    .filter(|v| claim_ref(v).is_some_and(|r| r.uid.as_deref() == Some(id)));
                keys.extend(whose.map(|v| Key::Volume(name(&v.metadata).to_owned())));
            } else {
                keys.push(Key::Claim(ObjectKey::of(&claim.metadata)));
            }
            keys
        })
        .on(&volumes, |c: &Controller, change| {
            let volume = change.object();
            let of = |r: &ObjectReference| {
                ObjectKey::new(
                    r.namespace.as_deref().unwrap_or_default(),
                    r.name.as_deref().unwrap_or_default(),
                )
            };
            let mut keys: Vec<Key> = claim_ref(volume).map(|r| Key::Claim(of(r))).into_iter().collect();
            if let Change::Modified { old, .. } = change
                && let Some(before) = claim_ref(old).map(of)
            {
                keys.push(Key::Claim(before));
            }
            if claim_ref(volume).is_none() || matches!(change, Change::Deleted(_)) {
                keys.extend(c.waiting(|claim| {
                    let named = volume_name(claim);
                    named.is_empty() || named == name(&volume.metadata)
                }));
            }
            if !matches!(change, Change::Deleted(_)) {
                keys.push(Key::Volume(name(&volume.metadata).to_owned()));
            }
            keys
        })
        .on(&classes, |c: &Controller, change| {
            let class = name(&change.object().metadata);
            c.waiting(|claim| matching::class_of(claim) == class || matching::leaves_class_open(claim))
        })
        .run(1)
        .await;
}

fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default()
}

fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

fn note(to: &mut Option<BTreeMap<String, String>>, key: &str, value: &str) {
    to.get_or_insert_default().insert(key.to_owned(), value.to_owned());
}

impl Controller {
    /// Claims that were never bound.
    fn waiting(&self, test: impl Fn(&PersistentVolumeClaim) -> bool) -> Vec<Key> {
        let mut claims = self.claims.list();
        claims.retain(|c| !annotations(&c.metadata).contains_key(BIND_COMPLETED) && test(c));
        claims.iter().map(|c| Key::Claim(ObjectKey::of(&c.metadata))).collect()
    }

    fn tell(&self, claim: &PersistentVolumeClaim, kind: EventType, reason: &str, message: impl Into<String>) {
        self.context.recorder.event(&reference(claim), kind, reason, message);
    }

    /// Whether the claim's volume is to be chosen for a pod's node, and none is chosen yet.
    fn is_delayed(&self, claim: &PersistentVolumeClaim) -> bool {
        !annotations(&claim.metadata).contains_key(SELECTED_NODE)
            && self
                .classes
                .get("", matching::class_of(claim))
                .is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
    }

    async fn claim(&self, claim: &PersistentVolumeClaim) -> Result<(), Failure> {
        if annotations(&claim.metadata).contains_key(BIND_COMPLETED) {
            return self.bound_claim(claim).await;
        }
        let wanted = volume_name(claim);
        if wanted.is_empty() {
            return self.open_claim(claim).await;
        }
        let Some(volume) = self.volumes.get("", wanted) else { return self.pending(claim).await };
        if matching::is_for(&volume, claim) {
            return self.bind(&volume, claim).await;
        }
        if claim_ref(&volume).is_none() {
            if let Some(why) = matching::complaint(&volume, claim) {
                let message = format!("Cannot bind to requested volume {wanted:?}: {why}");
                self.tell(claim, EventType::Warning, "VolumeMismatch", message);
                return self.pending(claim).await;
            }
            return self.bind(&volume, claim).await;
        }
        if annotations(&claim.metadata).contains_key(BOUND_BY_CONTROLLER) {
            let of = claim_ref(&volume).map(|r| {
                format!(
                    "{}/{}",
                    r.namespace.as_deref().unwrap_or_default(),
                    r.name.as_deref().unwrap_or_default()
                )
            });
            let (ns, claim) = (namespace(&claim.metadata), name(&claim.metadata));
            let why = format!(
                "invalid binding of claim \"{ns}/{claim}\" to volume {wanted:?}: volume already claimed by {:?}",
                of.unwrap_or_default()
            );
            return Err(Failure::Invalid(why));
        }
        let message = format!("volume {wanted:?} already bound to a different claim.");
        self.tell(claim, EventType::Warning, "FailedBinding", message);
        self.pending(claim).await
    }

    /// A claim that names no volume.
    async fn open_claim(&self, claim: &PersistentVolumeClaim) -> Result<(), Failure> {
        let delayed = self.is_delayed(claim);
        if let Some(volume) = matching::find(&self.volumes.list(), claim, delayed) {
            return self.bind(volume, claim).await;
        }
        // What is going needs no volume any more.
        if claim.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        if matching::leaves_class_open(claim)
            && let Some(class) = matching::default_class(&self.classes.list())
        {
            let mut next = claim.clone();
            next.spec.get_or_insert_default().storage_class_name = class.metadata.name.clone();
            // The change brings the claim back here.
            self.context.client.update(namespace(&claim.metadata), &next).await?;
            return Ok(());
        }
        if delayed {
            let (reason, message) = self.who_waits(claim);
            self.tell(claim, EventType::Normal, reason, message);
        } else if matching::class_of(claim).is_empty() {
            let message = "no persistent volumes available for this claim and no storage class is set";
            self.tell(claim, EventType::Normal, "FailedBinding", message);
        } else {
            return self.provision(claim).await;
        }
        self.pending(claim).await
    }

    fn who_waits(&self, claim: &PersistentVolumeClaim) -> (&'static str, String) {
        let (ns, own) = (namespace(&claim.metadata), name(&claim.metadata));
        let mut pods = self.pods.list_ns(ns);
        pods.retain(|p| !pods::is_terminal(p) && claim_names(p).iter().any(|n| n == own));
        let mut names: Vec<&str> = pods.iter().map(|p| name(&p.metadata)).collect();
        names.sort_unstable();
        if names.is_empty() {
            let message = "waiting for first consumer to be created before binding";
            return ("WaitForFirstConsumer", message.to_owned());
        }
        let what = if names.len() == 1 { "pod" } else { "pods" };
        ("WaitForPodScheduled", format!("waiting for {what} {} to be scheduled", names.join(",")))
    }

    /// Hands the claim over to the provisioner of its class.
    async fn provision(&self, claim: &PersistentVolumeClaim) -> Result<(), Failure> {
        let class = matching::class_of(claim);
        let refuse = |why: String| self.tell(claim, EventType::Warning, "ProvisioningFailed", why);
        let Some(class) = self.classes.get("", class) else {
            refuse(format!("storageclass.storage.k8s.io {class:?} not found"));
            return self.pending(claim).await;
        };
        let provisioner = csi_migration::driver_of(&class.provisioner).unwrap_or(&class.provisioner);
        if provisioner.starts_with("kubernetes.io/") {
            refuse(format!("no volume plugin matched name: {provisioner}"));
            return self.pending(claim).await;
        }
        let notes = annotations(&claim.metadata);
        if PROVISIONERS.iter().any(|key| notes.get(*key).is_none_or(|known| known != provisioner)) {
            let mut next = claim.clone();
            PROVISIONERS.iter().for_each(|key| note(&mut next.metadata.annotations, key, provisioner));
            migrated::tell(&mut next.metadata.annotations, None);
            self.context.client.update(namespace(&claim.metadata), &next).await?;
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system \
             administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        );
        self.tell(claim, EventType::Normal, "ExternalProvisioning", message);
        Ok(())
    }

    async fn bound_claim(&self, claim: &PersistentVolumeClaim) -> Result<(), Failure> {
        let lost = |reason, message| self.lost(claim, reason, message);
        let wanted = volume_name(claim);
        if wanted.is_empty() {
            let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
            return lost("ClaimLost", message).await;
        }
        let Some(volume) = self.volumes.get("", wanted) else {
            // The cache may be behind: what is said to be lost is never found again by programs that believe it.
            return match self.context.client.get::<PersistentVolume>("", wanted).await {
                Ok(volume) => self.bind_or_lose(&volume, claim).await,
                Err(error) if error.is_not_found() => {
                    let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                    lost("ClaimLost", message).await
                }
                Err(error) => Err(error.into()),
            };
        };
        self.bind_or_lose(&volume, claim).await
    }

    async fn bind_or_lose(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> Result<(), Failure> {
        match claim_ref(volume) {
            Some(r)
                if r.uid.as_deref().unwrap_or_default() != uid(&claim.metadata)
                    && !matching::is_for(volume, claim) =>
            {
                let message = "Two claims are bound to the same volume, this one is bound incorrectly";
                self.lost(claim, "ClaimMisbound", message).await
            }
            _ => self.bind(volume, claim).await,
        }
    }

    async fn pending(&self, claim: &PersistentVolumeClaim) -> Result<(), Failure> {
        self.claim_phase(claim, "Pending", None).await
    }

    async fn lost(&self, claim: &PersistentVolumeClaim, reason: &str, message: &str) -> Result<(), Failure> {
        let was = claim.status.as_ref().and_then(|s| s.phase.as_deref());
        if was != Some("Lost") {
            self.claim_phase(claim, "Lost", None).await?;
            self.tell(claim, EventType::Warning, reason, message);
        }
        Ok(())
    }

    async fn claim_phase(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<(), Failure> {
        let mut next = claim.clone();
        let status = next.status.get_or_insert_default();
        let changes = status.phase.as_deref() != Some(phase);
        status.phase = Some(phase.to_owned());
        let offer = volume.and_then(|v| v.spec.as_ref());
        status.access_modes = offer.and_then(|s| s.access_modes.clone());
        match offer {
            None => {
                (status.capacity, status.current_volume_attributes_class_name) = (None, None);
            }
            // A claim that is bound already may have less than its volume, as long as its file system has not grown.
            Some(offer) if changes => {
                status.capacity = offer.capacity.clone();
                if volume.is_some_and(|v| annotations(&v.metadata).contains_key(BEFORE_RESIZE))
                    && let Some(requests) =
                        claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.clone())
                {
                    status.capacity = Some(requests);
                }
                status.current_volume_attributes_class_name =
                    offer.volume_attributes_class_name.clone().filter(|n| !n.is_empty());
            }
            Some(_) => {}
        }
        if next.status != claim.status {
            self.context.client.update_status(namespace(&claim.metadata), &next).await?;
        }
        Ok(())
    }

    async fn volume_phase(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: Option<&str>,
    ) -> Result<PersistentVolume, Failure> {
        let mut next = volume.clone();
        let status = next.status.get_or_insert_default();
        if status.phase.as_deref() != Some(phase) {
            status.last_phase_transition_time = Some(Time(self.context.clock.now()));
        }
        status.phase = Some(phase.to_owned());
        status.message = message.map(str::to_owned);
        if next.status == volume.status {
            return Ok(next);
        }
        Ok(self.context.client.update_status("", &next).await?)
    }

    /// Makes whatever of a binding is missing.
    async fn bind(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), Failure> {
        let client = &self.context.client;
        let mut next = volume.clone();
        let spec = next.spec.get_or_insert_default();
        let set_aside = matching::is_for(volume, claim);
        if !set_aside || claim_ref(volume).is_some_and(|r| r.uid.as_deref().unwrap_or_default().is_empty()) {
            spec.claim_ref = Some(reference(claim));
        }
        if !set_aside {
            note(&mut next.metadata.annotations, BOUND_BY_CONTROLLER, "yes");
        }
        if next != *volume {
            next = client.update("", &next).await?;
        }
        let volume = self.volume_phase(&next, "Bound", None).await?;

        let mut next = claim.clone();
        let own = name(&volume.metadata);
        if volume_name(claim) != own {
            next.spec.get_or_insert_default().volume_name = Some(own.to_owned());
            note(&mut next.metadata.annotations, BOUND_BY_CONTROLLER, "yes");
        }
        if !annotations(&claim.metadata).contains_key(BIND_COMPLETED) {
            note(&mut next.metadata.annotations, BIND_COMPLETED, "yes");
        }
        if next != *claim {
            next = client.update(namespace(&claim.metadata), &next).await?;
        }
        self.claim_phase(&next, "Bound", Some(&volume)).await
    }

    async fn volume(&self, volume: &PersistentVolume) -> Result<(), Failure> {
        let Some(of) = claim_ref(volume) else {
            return self.volume_phase(volume, "Available", None).await.map(drop);
        };
        let whose = of.uid.as_deref().unwrap_or_default();
        if whose.is_empty() {
            return self.volume_phase(volume, "Available", None).await.map(drop);
        }
        let (ns, claim) =
            (of.namespace.as_deref().unwrap_or_default(), of.name.as_deref().unwrap_or_default());
        let mut found = self.claims.get(ns, claim).map(|c| (*c).clone());
        if found.as_ref().is_none_or(|c| uid(&c.metadata) != whose) {
            // Volumes are given up, and their data removed, only when the claim is surely gone.
            found = match self.context.client.get::<PersistentVolumeClaim>(ns, claim).await {
                Ok(claim) => Some(claim),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error.into()),
            };
        }
        let Some(claim) = found.filter(|c| uid(&c.metadata) == whose) else {
            return self.release(volume).await;
        };
        let named = volume_name(&claim);
        if named.is_empty() {
            if !matching::has_same_mode(volume, &claim) {
                let message = "Cannot bind PersistentVolume to requested PersistentVolumeClaim due to incompatible volumeMode.";
                self.context.recorder.event(
                    &reference(volume),
                    EventType::Warning,
                    "VolumeMismatch",
                    message,
                );
                self.tell(&claim, EventType::Warning, "VolumeMismatch", message);
                return Ok(());
            }
            // The claim's own pass finishes the binding.
            return Ok(());
        }
        if named == name(&volume.metadata) {
            return self.volume_phase(volume, "Bound", None).await.map(drop);
        }
        let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
        if annotations(&volume.metadata).contains_key(PROVISIONED_BY) && policy == Some("Delete") {
            // Made for this claim, which has got another.
            return self.release(volume).await;
        }
        self.unbind(volume).await
    }

    /// The claim has another volume.
    async fn unbind(&self, volume: &PersistentVolume) -> Result<(), Failure> {
        let mut next = volume.clone();
        let spec = next.spec.get_or_insert_default();
        if annotations(&volume.metadata).contains_key(BOUND_BY_CONTROLLER) {
            spec.claim_ref = None;
            if let Some(notes) = next.metadata.annotations.as_mut() {
                notes.remove(BOUND_BY_CONTROLLER);
            }
        } else if let Some(of) = spec.claim_ref.as_mut() {
            (of.uid, of.resource_version) = (None, None);
        }
        let next = self.context.client.update("", &next).await?;
        self.volume_phase(&next, "Available", None).await.map(drop)
    }

    async fn delete(&self, volume: &PersistentVolume) -> Result<(), Failure> {
        let options = DeleteOptions { uid: volume.metadata.uid.clone(), ..DeleteOptions::default() };
        let own = name(&volume.metadata);
        match self.context.client.delete::<PersistentVolume>("", own, &options).await {
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            other => Ok(other?),
        }
    }

    /// The claim is gone: what becomes of the volume is its reclaim policy's choice.
    async fn release(&self, volume: &PersistentVolume) -> Result<(), Failure> {
        let volume = match phase(volume) {
            "Released" | "Failed" => volume.clone(),
            _ => self.volume_phase(volume, "Released", None).await?,
        };
        if phase(&volume) == "Failed" {
            return Ok(());
        }
        let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
        let (reason, message) = match policy {
            Some("Delete") => {
                // By whom it was made, by them it is removed.
                let by = annotations(&volume.metadata).get(PROVISIONED_BY);
                let is_driver =
                    |p: &str| !p.starts_with("kubernetes.io/") || csi_migration::driver_of(p).is_some();
                if by.is_some_and(|p| is_driver(p)) {
                    return Ok(());
                }
                match remove_content(&volume).await {
                    Ok(()) => return self.delete(&volume).await,
                    Err(why) => ("VolumeFailedDelete", why),
                }
            }
            Some("Recycle") => ("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned()),
            _ => return Ok(()),
        };
        self.volume_phase(&volume, "Failed", Some(&message)).await?;
        self.context.recorder.event(&reference(&volume), EventType::Warning, reason, message);
        Ok(())
    }
}

/// Removes what a volume holds that no driver made: a host path, below `/tmp` only, of the machine that the controllers run on. It is there
/// for clusters of one node, as upstream's is.
async fn remove_content(volume: &PersistentVolume) -> Result<(), String> {
    let source = volume.spec.as_ref().and_then(|spec| spec.host_path.as_ref());
    let Some(path) = source.map(|source| PathBuf::from(&source.path)) else {
        return Err(format!(
            "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
            name(&volume.metadata)
        ));
    };
    let plain = path.components().all(|part| !matches!(part, Component::ParentDir));
    if !plain || path == Path::new("/tmp") || !path.starts_with("/tmp") {
        let shown = path.display();
        return Err(format!("host_path deleter only supports /tmp/.+ but received provided {shown}"));
    }
    let removed = tokio::task::spawn_blocking(move || match std::fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(&path),
        Ok(_) => std::fs::remove_file(&path),
        Err(error) => Err(error),
    });
    match removed.await.map_err(|error| error.to_string())? {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}

impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Failure> {
        match key {
            Key::Claim(key) => {
                if let Some(claim) = self.claims.get(&key.namespace, &key.name) {
                    match migrated::claim(&claim) {
                        Some(next) => {
                            let next = self.context.client.update(&key.namespace, &next).await?;
                            self.claim(&next).await?;
                        }
                        None => self.claim(&claim).await?,
                    }
                }
            }
            Key::Volume(key) => {
                if let Some(volume) = self.volumes.get("", key) {
                    match migrated::volume(&volume) {
                        Some(next) => {
                            let next = self.context.client.update("", &next).await?;
                            self.volume(&next).await?;
                        }
                        None => self.volume(&volume).await?,
                    }
                }
            }
        }
        Ok(Outcome::Settled)
    }
}
