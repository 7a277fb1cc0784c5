//! Ephemeral volumes: a claim of its own for every pod volume with a `volumeClaimTemplate`; it goes with its pod.
//!
//! The claim's name follows from pod and volume, so that a pass that is repeated finds what it has made.
use client::events::{EventType, reference};
use client::{Cache, Change};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::ownership::{controller_of, controller_ref, name, namespace};
use crate::pod_claims::{ephemeral_claim, is_for, volumes};
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};

struct Controller {
    context: Context,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (pods, claims) = (caches.of::<Pod>(), caches.of::<PersistentVolumeClaim>());
    let controller = Controller { context: context.clone(), pods: pods.clone(), claims: claims.clone() };
    Runner::new(&context, controller)
        .on(&pods, |_, change| match change {
            Change::Added(pod) | Change::Modified { new: pod, .. } if wants(pod) => {
                Some(ObjectKey::of(&pod.metadata))
            }
            _ => None,
        })
        // A claim that was deleted is made anew; one of another that stood in the way may be gone.
        .on(&claims, |c: &Controller, change| {
            let Change::Deleted(claim) = change else { return Vec::new() };
            let ns = namespace(&claim.metadata);
            match controller_of(&claim.metadata) {
                Some(owner) if owner.kind == "Pod" => vec![ObjectKey::new(ns, &owner.name)],
                _ => {
                    let mut pods = c.pods.list_ns(ns);
                    pods.retain(|p| {
                        wants(p) && volumes(p).any(|v| ephemeral_claim(p, v) == name(&claim.metadata))
                    });
                    pods.iter().map(|p| ObjectKey::of(&p.metadata)).collect()
                }
            }
        })
        .run(4)
        .await;
}

fn wants(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && volumes(pod).any(|v| v.ephemeral.is_some())
}

impl Controller {
    async fn provide(&self, pod: &Pod, volume: &Volume) -> Result<(), Failure> {
        let template = volume.ephemeral.as_ref().and_then(|e| e.volume_claim_template.as_ref());
        let Some(template) = template else { return Ok(()) };
        let (ns, claim_name) = (namespace(&pod.metadata), ephemeral_claim(pod, volume));
        let refuse = || {
            let pod = name(&pod.metadata);
            let why = format!("PVC {ns}/{claim_name} was not created for pod {ns}/{pod} (pod is not owner)");
            Err(Failure::Invalid(why))
        };
        if let Some(claim) = self.claims.get(ns, &claim_name) {
            return if is_for(&claim, pod) { Ok(()) } else { refuse() };
        }
        let meta = template.metadata.as_ref();
        let claim = PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(claim_name.clone()),
                namespace: Some(ns.to_owned()),
                labels: meta.and_then(|m| m.labels.clone()),
                annotations: meta.and_then(|m| m.annotations.clone()),
                owner_references: Some(vec![controller_ref("v1", "Pod", &pod.metadata)]),
                ..ObjectMeta::default()
            },
            spec: Some(template.spec.clone()),
            status: None,
        };
        match self.context.client.create(ns, &claim).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_already_exists() => {
                let live = self.context.client.get::<PersistentVolumeClaim>(ns, &claim_name).await?;
                if is_for(&live, pod) { Ok(()) } else { refuse() }
            }
            Err(error) => Err(Failure::Invalid(format!("create PVC {claim_name}: {error}"))),
        }
    }
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(pod) = self.pods.get(&key.namespace, &key.name).filter(|p| wants(p)) else {
            return Ok(Outcome::Settled);
        };
        for volume in volumes(&pod) {
            if let Err(failure) = self.provide(&pod, volume).await {
                let message = format!("ephemeral volume {}: {}", volume.name, failure.text());
                self.context.recorder.event(&reference(&*pod), EventType::Warning, "FailedBinding", message);
                return Err(failure);
            }
        }
        Ok(Outcome::Settled)
    }
}
