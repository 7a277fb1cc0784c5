//! Endpoint slices: the addresses behind each service that selects pods, at most 100 to a slice.
//!
//! Rules: <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/>. A slice's name is a function of
//! service, family, ports and number, so a create that was cut off is found again and not repeated.
mod plan;
mod topology;

use std::sync::Arc;

use client::events::{EventType, reference};
use client::{Cache, Change, DeleteOptions};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::ownership::{labels, name, namespace};
use crate::pending::Pending;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner, has_cause};
use crate::service_pods::{self, SLICE_MANAGED_BY, SLICE_SERVICE};
use crate::trigger_times::{self, TriggerTimes};

struct Controller {
    context: Context,
    services: Cache<Service>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    slices: Cache<EndpointSlice>,
    times: TriggerTimes,
    /// Slices just made: a pass that does not see them would make others beside them.
    pending: Pending<ObjectKey>,
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
        times: TriggerTimes::default(),
        pending: Pending::new(),
    };
    Runner::new(&context, controller)
        .on(&nodes, |c: &Controller, change| {
            let counts = match change {
                Change::Modified { old, new } => topology::differs(old, new),
                Change::Added(_) | Change::Deleted(_) => true,
            };
            let mut services = if counts { c.services.list() } else { Vec::new() };
            services.retain(|s| topology::is_asked(s));
            services.iter().map(|s| ObjectKey::of(&s.metadata)).collect::<Vec<_>>()
        })
        .on(&services, |_, change| [ObjectKey::of(&change.object().metadata)])
        .on(&pods, |c: &Controller, change| service_pods::services_of(&c.services, change))
        .on(&slices, |_, change| {
            let meta = &change.object().metadata;
            // What we made comes back as Added: a pass may wait for that.
            let ours = labels(meta).get(SLICE_MANAGED_BY).is_some_and(|v| v == plan::MANAGER);
            let service = labels(meta).get(SLICE_SERVICE)?;
            ours.then(|| ObjectKey::new(namespace(meta), service))
        })
        .run(5)
        .await;
}

impl Controller {
    /// Writes the slices; where that fails, with what was tried.
    async fn write(&self, key: &ObjectKey, plan: &plan::Plan) -> Result<(), (String, client::Error)> {
        let (client, ns) = (&self.context.client, key.namespace.as_str());
        let of = format!("EndpointSlice for Service {ns}/{}", key.name);
        // Creates and updates first: an address must never be missing in between.
        for slice in &plan.create {
            match client.create(ns, slice).await {
                Ok(made) => self.pending.created(key, &made),
                Err(e) if has_cause(&e, "NamespaceTerminating") => {}
                Err(e) => return Err((format!("failed to create {of}"), e)),
            }
        }
        for slice in &plan.update {
            let own = name(&slice.metadata);
            client.update(ns, slice).await.map_err(|e| (format!("failed to update {own} {of}"), e))?;
        }
        for slice in &plan.delete {
            let options = DeleteOptions { uid: slice.metadata.uid.clone(), ..DeleteOptions::default() };
            let own = name(&slice.metadata);
            match client.delete::<EndpointSlice>(ns, own, &options).await {
                Err(e) if !e.is_not_found() => return Err((format!("failed to delete {own} {of}"), e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Says whether the service gets the hints by capacity that it asks for.
    fn tell_hints(&self, service: &Service, existing: &[Arc<EndpointSlice>], plan: &plan::Plan) {
        for (family, hinted) in &plan.hinted {
            let had = existing.iter().filter(|s| s.address_type == *family).any(|s| {
                let hints = s.endpoints.iter().flatten().filter_map(|e| e.hints.as_ref());
                hints.into_iter().any(|h| h.for_zones.is_some())
            });
            let (kind, reason, why) = match hinted {
                Ok(()) if had => continue,
                Ok(()) => {
                    (EventType::Normal, "TopologyAwareHintsEnabled", "Topology Aware Hints has been enabled")
                }
                Err(why) => (EventType::Warning, "TopologyAwareHintsDisabled", why.as_str()),
            };
            let message = format!("{why}, addressType: {family}");
            self.context.recorder.event(&reference(service), kind, reason, message);
        }
    }
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            self.times.forget(key);
            self.pending.forget(key);
            return Ok(Outcome::Settled);
        };
        if !service_pods::selects(&service) || service.metadata.deletion_timestamp.is_some() {
            self.pending.forget(key);
            return Ok(Outcome::Settled);
        }
        if let Some(wait) = self.pending.wait(key, &self.slices, &self.context.client).await? {
            return Ok(Outcome::After(wait));
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
        let ratios = topology::is_asked(&service).then(|| topology::ratios(&self.nodes.list())).flatten();
        let mut plan = plan::plan(&service, &pods, &existing, zone, ratios.as_ref());
        self.tell_hints(&service, &existing, &plan);
        let since = self.times.look(key, &service, &pods);
        let written = plan.create.iter_mut().chain(&mut plan.update);
        written.for_each(|slice| trigger_times::note(&mut slice.metadata, since));
        if let Err((what, error)) = self.write(key, &plan).await {
            // A race is no news for the user.
            if !error.is_conflict() && !error.is_already_exists() && !error.is_not_found() {
                let (ns, own) = (&key.namespace, &key.name);
                let message =
                    format!("Error updating Endpoint Slices for Service {ns}/{own}: {what}: {error}");
                let about = reference(&*service);
                self.context.recorder.event(
                    &about,
                    EventType::Warning,
                    "FailedToUpdateEndpointSlices",
                    message,
                );
            }
            return Err(error.into());
        }
        Ok(Outcome::Settled)
    }
}
