//! Claims for devices: pods that refer to a template get a claim of their own, and a claim that no pod uses any more is given
//! back, or deleted where it was made for a pod that has ended.
//!
//! A claim's name is the server's choice, so the pod's status says which one it got; a claim that was made but not written there
//! is found by owner and annotation.
use std::collections::BTreeMap;

use client::events::{EventType, reference};
use client::{Cache, Change, DeleteOptions, Patch};
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::device_claims::{assigned, claim_names, extended_claim, reserved, wanted};
use crate::finalizers;
use crate::ownership::{annotations, controller_of, controller_ref, is_controlled_by, name, namespace, uid};
use crate::pods;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};

/// Which of its pod's claims a claim is.
const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// Held while devices are allocated.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Pod(ObjectKey),
    Claim(ObjectKey),
}

struct Controller {
    context: Context,
    pods: Cache<Pod>,
    claims: Cache<ResourceClaim>,
    templates: Cache<ResourceClaimTemplate>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (pods, claims, templates) =
        (caches.of::<Pod>(), caches.of::<ResourceClaim>(), caches.of::<ResourceClaimTemplate>());
    let controller = Controller {
        context: context.clone(),
        pods: pods.clone(),
        claims: claims.clone(),
        templates: templates.clone(),
    };
    Runner::new(&context, controller)
        .on(&pods, |_, change| {
            let pod = change.object();
            if wanted(pod).next().is_none() && extended_claim(pod).is_none() {
                return Vec::new();
            }
            let ns = namespace(&pod.metadata);
            let mut keys: Vec<Key> =
                claim_names(pod).into_iter().map(|n| Key::Claim(ObjectKey::new(ns, n))).collect();
            if !matches!(change, Change::Deleted(_)) {
                keys.push(Key::Pod(ObjectKey::of(&pod.metadata)));
            }
            keys
        })
        .on(&claims, |c: &Controller, change| {
            let claim = change.object();
            let ns = namespace(&claim.metadata);
            let mut keys: Vec<Key> = controller_of(&claim.metadata)
                .filter(|o| o.kind == "Pod")
                .map(|o| Key::Pod(ObjectKey::new(ns, &o.name)))
                .into_iter()
                .collect();
            if matches!(change, Change::Deleted(_)) {
                return keys;
            }
            // One that was made by hand may be what a pod with a node waits for.
            keys.extend(c.pods_with(ns, |pod| {
                claim_names(pod).contains(&name(&claim.metadata)) && !pods::node_name(pod).is_empty()
            }));
            keys.push(Key::Claim(ObjectKey::of(&claim.metadata)));
            keys
        })
        .on(&templates, |c: &Controller, change| {
            let Change::Added(template) = change else { return Vec::new() };
            let of = name(&template.metadata);
            c.pods_with(namespace(&template.metadata), |pod| {
                wanted(pod).any(|w| w.resource_claim_template_name.as_deref() == Some(of))
            })
        })
        .run(4)
        .await;
}

fn is_allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|s| s.allocation.is_some())
}

/// Whether the pod will use its claims no more: it ended, or goes without ever having had a node.
fn is_done(pod: &Pod) -> bool {
    pods::is_terminal(pod) || pods::is_deleting(pod) && pods::node_name(pod).is_empty()
}

impl Controller {
    fn pods_with(&self, ns: &str, test: impl Fn(&Pod) -> bool) -> Vec<Key> {
        let mut pods = self.pods.list_ns(ns);
        pods.retain(|p| test(p));
        pods.iter().map(|p| Key::Pod(ObjectKey::of(&p.metadata))).collect()
    }

    /// Makes what is missing and says in the pod's status what it got.
    async fn sync_pod(&self, pod: &Pod) -> Result<(), Failure> {
        if pods::is_deleting(pod) || pods::is_terminal(pod) {
            return Ok(());
        }
        let ns = namespace(&pod.metadata);
        let mut statuses: Vec<Value> = Vec::new();
        for want in wanted(pod) {
            let Some(template) = want.resource_claim_template_name.as_deref() else { continue };
            let known = assigned(pod, &want.name);
            if known == Some(None) || known.flatten().is_some_and(|n| self.claims.get(ns, n).is_some()) {
                continue;
            }
            match self.make(pod, want, template).await {
                Ok(made) => statuses.push(json!({"name": want.name, "resourceClaimName": made})),
                Err(failure) => {
                    let message = format!("PodResourceClaim {}: {}", want.name, failure.text());
                    let about = reference(pod);
                    self.context.recorder.event(
                        &about,
                        EventType::Warning,
                        "FailedResourceClaimCreation",
                        message,
                    );
                    return Err(failure);
                }
            }
        }
        if !statuses.is_empty() {
            let patch = json!({"metadata": {"uid": pod.metadata.uid},
                "status": {"resourceClaimStatuses": statuses}});
            let client = &self.context.client;
            client.patch_status::<Pod>(ns, name(&pod.metadata), &Patch::Strategic(patch)).await?;
        }
        // Who was given a node without a scheduler must be let in by us.
        if !pods::node_name(pod).is_empty() {
            for claim in claim_names(pod) {
                let Some(claim) = self.claims.get(ns, claim) else { continue };
                let has = reserved(&claim).iter().any(|r| r.uid == uid(&pod.metadata));
                if is_allocated(&claim) && !has && claim.metadata.deletion_timestamp.is_none() {
                    self.reserve(&claim, pod).await?;
                }
            }
        }
        Ok(())
    }

    async fn reserve(&self, claim: &ResourceClaim, pod: &Pod) -> Result<(), Failure> {
        let mut next = claim.clone();
        let list = next.status.get_or_insert_default().reserved_for.get_or_insert_default();
        list.push(ResourceClaimConsumerReference {
            api_group: None,
            resource: "pods".to_owned(),
            name: name(&pod.metadata).to_owned(),
            uid: uid(&pod.metadata).to_owned(),
        });
        self.context.client.update_status(namespace(&claim.metadata), &next).await?;
        Ok(())
    }

    /// The name of the pod's claim, which is made where it is missing.
    async fn make(&self, pod: &Pod, want: &PodResourceClaim, template: &str) -> Result<String, Failure> {
        let ns = namespace(&pod.metadata);
        let is_it = |claim: &ResourceClaim| {
            is_controlled_by(&claim.metadata, uid(&pod.metadata))
                && annotations(&claim.metadata).get(POD_CLAIM) == Some(&want.name)
                && claim.metadata.deletion_timestamp.is_none()
        };
        if let Some(claim) = self.claims.list_ns(ns).iter().find(|c| is_it(c)) {
            return Ok(name(&claim.metadata).to_owned());
        }
        // The cache may not show yet what was made before a restart.
        let live = self.context.client.list::<ResourceClaim>(ns, &client::ListOptions::default()).await?;
        if let Some(claim) = live.iter().find(|c| is_it(c)) {
            return Ok(name(&claim.metadata).to_owned());
        }
        let Some(template) = self.templates.get(ns, template) else {
            let why = format!(
                "resource claim template {template:?}: resourceclaimtemplate.resource.k8s.io {template:?} not found"
            );
            return Err(Failure::Invalid(why));
        };
        let meta = template.spec.metadata.as_ref();
        let mut annotations: BTreeMap<String, String> =
            meta.and_then(|m| m.annotations.clone()).unwrap_or_default();
        annotations.insert(POD_CLAIM.to_owned(), want.name.clone());
        let claim = ResourceClaim {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-{}-", name(&pod.metadata), want.name)),
                namespace: Some(ns.to_owned()),
                labels: meta.and_then(|m| m.labels.clone()),
                annotations: Some(annotations),
                owner_references: Some(vec![controller_ref("v1", "Pod", &pod.metadata)]),
                ..ObjectMeta::default()
            },
            spec: template.spec.spec.clone(),
            status: None,
        };
        let made = self.context.client.create(ns, &claim).await;
        // Its name would be the server's choice: upstream's message has none there.
        let made = made.map_err(|error| Failure::Invalid(format!("create ResourceClaim : {error}")))?;
        Ok(name(&made.metadata).to_owned())
    }

    /// Whether who reserved the claim is still to use it.
    async fn is_valid(&self, ns: &str, by: &ResourceClaimConsumerReference) -> Result<bool, Failure> {
        if by.api_group.as_deref().is_some_and(|g| !g.is_empty()) || by.resource != "pods" {
            return Err(Failure::Invalid(format!(
                "unsupported ReservedFor entry: {} {}",
                by.resource, by.name
            )));
        }
        let holds = |pod: &Pod| uid(&pod.metadata) == by.uid && !is_done(pod);
        if self.pods.get(ns, &by.name).is_some_and(|pod| uid(&pod.metadata) == by.uid) {
            return Ok(self.pods.get(ns, &by.name).is_some_and(|pod| holds(&pod)));
        }
        match self.context.client.get::<Pod>(ns, &by.name).await {
            Ok(pod) => Ok(holds(&pod)),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes out who uses it no more; gives back what nobody uses; deletes what was made for a pod that has ended.
    async fn sync_claim(&self, claim: &ResourceClaim) -> Result<(), Failure> {
        let ns = namespace(&claim.metadata);
        let client = &self.context.client;
        let before = reserved(claim);
        let mut valid = Vec::new();
        for by in before {
            if self.is_valid(ns, by).await? {
                valid.push(by.clone());
            }
        }
        let unused = valid.is_empty();
        // One that is allocated and that nobody has reserved yet is the scheduler's business.
        let dropped = valid.len() != before.len();
        let frees = unused && (dropped || claim.metadata.deletion_timestamp.is_some());
        let releases = frees && is_allocated(claim) && finalizers::has(&claim.metadata, FINALIZER);
        let mut claim = claim.clone();
        if dropped || releases {
            let status = claim.status.get_or_insert_default();
            status.reserved_for = (!unused).then_some(valid);
            if releases {
                status.allocation = None;
                status.devices = None;
            }
            claim = client.update_status(ns, &claim).await?;
        }
        if frees && !is_allocated(&claim) && finalizers::has(&claim.metadata, FINALIZER) {
            finalizers::remove(client, &claim, FINALIZER).await?;
        }
        if !unused || claim.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let Some(owner) = controller_of(&claim.metadata).filter(|o| o.kind == "Pod") else {
            return Ok(());
        };
        let ended = self
            .pods
            .get(ns, &owner.name)
            .is_some_and(|pod| uid(&pod.metadata) == owner.uid && is_done(&pod));
        if !ended {
            return Ok(());
        }
        let options = DeleteOptions { uid: claim.metadata.uid.clone(), ..DeleteOptions::default() };
        match client.delete::<ResourceClaim>(ns, name(&claim.metadata), &options).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Failure> {
        match key {
            Key::Pod(key) => {
                if let Some(pod) = self.pods.get(&key.namespace, &key.name) {
                    self.sync_pod(&pod).await?;
                }
            }
            Key::Claim(key) => {
                if let Some(claim) = self.claims.get(&key.namespace, &key.name) {
                    self.sync_claim(&claim).await?;
                }
            }
        }
        Ok(Outcome::Settled)
    }
}
