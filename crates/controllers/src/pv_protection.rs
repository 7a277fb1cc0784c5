//! Volume protection: a volume that is being deleted stays while it is bound to a claim.
//!
//! Rule: Kubernetes documentation, "Storage Object in Use Protection".
use client::{Cache, Change};
use k8s_openapi::api::core::v1::PersistentVolume;

use crate::finalizers;
use crate::ownership::name;
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

const FINALIZER: &str = "kubernetes.io/pv-protection";

struct Controller {
    context: Context,
    volumes: Cache<PersistentVolume>,
}

pub(crate) async fn run(context: Context) {
    let volumes = context.reader.caches().of::<PersistentVolume>();
    let controller = Controller { context: context.clone(), volumes: volumes.clone() };
    Runner::new(&context, controller)
        .on(&volumes, |_, change| match change {
            Change::Deleted(_) => None,
            change => Some(name(&change.object().metadata).to_owned()),
        })
        .run(1)
        .await;
}

impl Reconcile for Controller {
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Outcome, Failure> {
        let Some(volume) = self.volumes.get("", key) else { return Ok(Outcome::Settled) };
        let bound = volume.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Bound"));
        let held = finalizers::has(&volume.metadata, FINALIZER);
        match volume.metadata.deletion_timestamp.is_some() {
            true if held && !bound => finalizers::remove(&self.context.client, &*volume, FINALIZER).await?,
            false if !held => finalizers::add(&self.context.client, &*volume, FINALIZER).await?,
            _ => {}
        }
        Ok(Outcome::Settled)
    }
}
