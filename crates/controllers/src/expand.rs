//! Growing claims: a bound claim that asks for more than it has is grown by the driver of its volume, which is told so by an
//! event: no volume is grown here.
use std::cmp::Ordering;

use api::quantity::Quantity;
use client::events::{EventType, reference};
use client::{Cache, Change};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};

struct Controller {
    context: Context,
    claims: Cache<PersistentVolumeClaim>,
}

pub(crate) async fn run(context: Context) {
    let claims = context.reader.caches().of::<PersistentVolumeClaim>();
    let controller = Controller { context: context.clone(), claims: claims.clone() };
    Runner::new(&context, controller)
        .on(&claims, |_, change| {
            let claim = change.object();
            let grew = match change {
                Change::Added(_) => wants_more(claim),
                Change::Modified { old, .. } => wants_more(claim) && asked(old) != asked(claim),
                Change::Deleted(_) => false,
            };
            grew.then(|| ObjectKey::of(&claim.metadata))
        })
        .run(1)
        .await;
}

fn asked(claim: &PersistentVolumeClaim) -> Option<&Text> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")
}

/// Whether a bound claim asks for more than it has.
fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    let Some(status) = claim.status.as_ref().filter(|s| s.phase.as_deref() == Some("Bound")) else {
        return false;
    };
    let amount = |text: Option<&Text>| text.and_then(|t| t.0.parse::<Quantity>().ok());
    let (Some(asked), Some(has)) =
        (amount(asked(claim)), amount(status.capacity.as_ref().and_then(|c| c.get("storage"))))
    else {
        return false;
    };
    asked.cmp(&has) == Ordering::Greater
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        if let Some(claim) = self.claims.get(&key.namespace, &key.name).filter(|c| wants_more(c)) {
            let message = "waiting for an external controller to expand this PVC";
            let about = reference(&*claim);
            self.context.recorder.event(&about, EventType::Normal, "ExternalExpanding", message);
        }
        Ok(Outcome::Settled)
    }
}
