//! Protection of VolumeAttributesClasses: one that is being deleted stays while a claim or volume has it or is to get it.
use client::{Cache, Change};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;

use crate::finalizers;
use crate::ownership::name;
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

const FINALIZER: &str = "kubernetes.io/vac-protection";

struct Controller {
    context: Context,
    classes: Cache<VolumeAttributesClass>,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (classes, claims, volumes) = (
        caches.of::<VolumeAttributesClass>(),
        caches.of::<PersistentVolumeClaim>(),
        caches.of::<PersistentVolume>(),
    );
    let controller = Controller {
        context: context.clone(),
        classes: classes.clone(),
        claims: claims.clone(),
        volumes: volumes.clone(),
    };
    Runner::new(&context, controller)
        .on(&classes, |_, change| match change {
            Change::Deleted(_) => None,
            change => Some(name(&change.object().metadata).to_owned()),
        })
        // What was used before and is no more may free its class.
        .on(&claims, |_, change| match change {
            Change::Added(_) => Vec::new(),
            Change::Modified { old, .. } | Change::Deleted(old) => of_claim(old),
        })
        .on(&volumes, |_, change| match change {
            Change::Added(_) => None,
            Change::Modified { old, .. } | Change::Deleted(old) => of_volume(old).map(str::to_owned),
        })
        .run(1)
        .await;
}

/// The classes that a claim has, asks for or is changing to.
fn of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let status = claim.status.as_ref();
    let modify = status.and_then(|s| s.modify_volume_status.as_ref());
    [
        claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.clone()),
        status.and_then(|s| s.current_volume_attributes_class_name.clone()),
        modify.and_then(|m| m.target_volume_attributes_class_name.clone()),
    ]
    .into_iter()
    .flatten()
    .filter(|n| !n.is_empty())
    .collect()
}

fn of_volume(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.volume_attributes_class_name.as_deref().filter(|n| !n.is_empty())
}

impl Reconcile for Controller {
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Outcome, Failure> {
        let Some(class) = self.classes.get("", key) else { return Ok(Outcome::Settled) };
        let client = &self.context.client;
        let held = finalizers::has(&class.metadata, FINALIZER);
        if class.metadata.deletion_timestamp.is_none() {
            if !held {
                finalizers::add(client, &*class, FINALIZER).await?;
            }
            return Ok(Outcome::Settled);
        }
        let used = || {
            self.claims.list().iter().any(|c| of_claim(c).contains(key))
                || self.volumes.list().iter().any(|v| of_volume(v) == Some(key))
        };
        if held && !used() {
            finalizers::remove(client, &*class, FINALIZER).await?;
        }
        Ok(Outcome::Settled)
    }
}
