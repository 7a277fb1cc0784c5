//! Endpoint slices: the addresses behind each service that selects pods, at most 100 to a slice.
//!
//! Rules: <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/>. A slice's name is a function of
//! service, family, ports and number, so a create that was cut off is found again and not repeated.
mod plan;

use client::{Cache, Change, DeleteOptions};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::ownership::{labels, name, namespace};
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner, has_cause};
use crate::service_pods::{self, SLICE_MANAGED_BY, SLICE_SERVICE};

struct Controller {
    context: Context,
    services: Cache<Service>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    slices: Cache<EndpointSlice>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (services, pods) = (caches.of::<Service>(), caches.of::<Pod>());
    let (nodes, slices) = (caches.of::<Node>(), caches.of::<EndpointSlice>());
    let controller = Controller {
        context: context.clone(),
        services: services.clone(),
        pods: pods.clone(),
        nodes: nodes.clone(),
        slices: slices.clone(),
    };
    Runner::new(&context, controller)
        .needs(&nodes)
        .on(&services, |_, change| [ObjectKey::of(&change.object().metadata)])
        .on(&pods, |c: &Controller, change| service_pods::services_of(&c.services, change))
        .on(&slices, |_, change| {
            let slice = change.object();
            let ours = labels(&slice.metadata).get(SLICE_MANAGED_BY).is_some_and(|v| v == plan::MANAGER);
            let service = labels(&slice.metadata).get(SLICE_SERVICE)?;
            // What we wrote ourselves comes back as Added or Modified; only undoing it costs a pass here.
            (ours && !matches!(change, Change::Added(_)))
                .then(|| ObjectKey::new(namespace(&slice.metadata), service))
        })
        .run(5)
        .await;
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let client = &self.context.client;
        let Some(service) = self.services.get(&key.namespace, &key.name) else { return Ok(Outcome::Settled) };
        if !service_pods::selects(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Settled);
        }
        let mut existing = self.slices.list_ns(&key.namespace);
        existing.retain(|s| {
            let l = labels(&s.metadata);
            l.get(SLICE_SERVICE) == Some(&key.name)
                && l.get(SLICE_MANAGED_BY).is_some_and(|v| v == plan::MANAGER)
        });
        let pods = service_pods::of_service(&service, &self.pods);
        let zone = |node: &str| {
            labels(&self.nodes.get("", node)?.metadata).get("topology.kubernetes.io/zone").cloned()
        };
        let plan = plan::plan(&service, &pods, &existing, zone);
        // Creates and updates first: an address must never be missing in between.
        for slice in &plan.create {
            match client.create(&key.namespace, slice).await {
                Ok(_) => {}
                Err(e) if has_cause(&e, "NamespaceTerminating") => return Ok(Outcome::Settled),
                Err(e) => return Err(e.into()),
            }
        }
        for slice in &plan.update {
            client.update(&key.namespace, slice).await?;
        }
        for slice in &plan.delete {
            let options = DeleteOptions { uid: slice.metadata.uid.clone(), ..DeleteOptions::default() };
            match client.delete::<EndpointSlice>(&key.namespace, name(&slice.metadata), &options).await {
                Ok(()) => {}
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Outcome::Settled)
    }
}
