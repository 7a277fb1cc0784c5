//! Protection of PodGroups: one that is being deleted stays while a pod that has not ended belongs to it. Runs where the gate
//! `GenericWorkload` is open.
//!
//! Rule: KEP-5832, v1.36. The API puts the finalizer on new groups.
use client::{Cache, Change};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;

use crate::finalizers;
use crate::ownership::{name, namespace};
use crate::pods;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};

const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

struct Controller {
    context: Context,
    groups: Cache<PodGroup>,
    pods: Cache<Pod>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (groups, pods) = (caches.of::<PodGroup>(), caches.of::<Pod>());
    let controller = Controller { context: context.clone(), groups: groups.clone(), pods: pods.clone() };
    Runner::new(&context, controller)
        .on(&groups, |_, change| match change {
            Change::Deleted(_) => None,
            change => Some(ObjectKey::of(&change.object().metadata)),
        })
        // What runs neither begins nor ceases to use its group.
        .on(&pods, |_, change| {
            let pod = change.object();
            let counts = matches!(change, Change::Deleted(_))
                || pods::is_terminal(pod)
                || pods::node_name(pod).is_empty();
            group_of(pod).filter(|_| counts).map(|group| ObjectKey::new(namespace(&pod.metadata), group))
        })
        .run(1)
        .await;
}

fn group_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.scheduling_group.as_ref()?.pod_group_name.as_deref()
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(group) = self.groups.get(&key.namespace, &key.name) else { return Ok(Outcome::Settled) };
        let is_going = group.metadata.deletion_timestamp.is_some();
        if is_going != finalizers::has(&group.metadata, FINALIZER) {
            return Ok(Outcome::Settled);
        }
        let uses = |p: &Pod| group_of(p) == Some(name(&group.metadata)) && !pods::is_terminal(p);
        let is_used = self.pods.list_ns(&key.namespace).iter().any(|p| uses(p));
        match (is_going, is_used) {
            (true, false) => finalizers::remove(&self.context.client, &*group, FINALIZER).await?,
            (false, true) => finalizers::add(&self.context.client, &*group, FINALIZER).await?,
            _ => {}
        }
        Ok(Outcome::Settled)
    }
}
