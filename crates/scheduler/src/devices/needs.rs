//! What a pod's claims of devices say about a node.
use std::rc::Rc;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::allocate::{Open, Said, allocate};
use super::extended::{Extended, Variant};
use super::readiness::is_lost;
use super::{Devices, Given, allocation, claim_name, entries, requests};
use crate::filter::node_affinity::Selection;
use crate::filter::{DYNAMIC_RESOURCES, Rejection};
use crate::pod_info::PodInfo;
use crate::snapshot::NodeInfo;
use crate::volumes::needs::Refusal;

/// Pods that share a claim at most.
const CONSUMERS: usize = 256;

/// What a pod's claims need.
#[derive(Debug)]
pub struct Needs {
    /// Claims that have devices, with the nodes that reach them.
    placed: Vec<(String, Arc<ResourceClaim>, Selection)>,
    /// Some of these have devices that are to be given back.
    lost: bool,
    open: Vec<Open>,
    /// What the pod asks for by name where its node does not have it.
    extended: Option<Extended>,
    said: Said,
}

fn refuse<T>(reason: String, silent: bool) -> Result<T, Refusal> {
    Err(Refusal { filter: DYNAMIC_RESOURCES, reason, silent })
}

/// Whether the claim is reserved for the pod.
pub(super) fn is_reserved_for(claim: &ResourceClaim, uid: &str) -> bool {
    let list = claim.status.as_ref().and_then(|s| s.reserved_for.as_deref()).unwrap_or_default();
    list.iter().any(|r| r.uid == uid)
}

fn is_full(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().and_then(|s| s.reserved_for.as_ref()).is_some_and(|l| l.len() >= CONSUMERS)
}

fn is_owned(claim: &ResourceClaim, pod: &Pod) -> bool {
    let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|o| o.controller == Some(true) && Some(&o.uid) == pod.metadata.uid.as_ref())
}

impl Needs {
    /// What `pod` needs; `None`: nothing. Devices that were given before `since` should be ready by now.
    pub fn of(pod: &PodInfo, devices: &Devices, since: Timestamp) -> Result<Option<Self>, Refusal> {
        let object = &*pod.pod;
        let extended = Extended::of(pod, devices);
        if entries(object).is_empty() && extended.is_none() {
            return Ok(None);
        }
        let (mut placed, mut open) = (Vec::new(), Vec::new());
        for entry in entries(object) {
            let (name, own) = match claim_name(object, entry) {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(reason) => return refuse(reason, true),
            };
            let key = format!("{}/{name}", pod.namespace());
            let Some(claim) = devices.claims.get(&key) else {
                return refuse(format!("resourceclaim.resource.k8s.io {name:?} not found"), true);
            };
            if claim.metadata.deletion_timestamp.is_some() {
                return refuse(format!("resourceclaim {name:?} is being deleted"), true);
            }
            if own && !is_owned(claim, object) {
                let text = format!(
                    "ResourceClaim {key} was not created for pod {}/{} (pod is not owner)",
                    pod.namespace(),
                    pod.name()
                );
                return refuse(text, true);
            }
            if let Some(has) = devices.allocation_of(&key, claim) {
                if is_full(claim) && !is_reserved_for(claim, &pod.uid) {
                    return refuse("resourceclaim in use".to_owned(), false);
                }
                let selection = has.node_selector.as_ref().map(Selection::required).unwrap_or_default();
                placed.push((key, claim.clone(), selection));
                continue;
            }
            let list = claim.spec.devices.iter().flat_map(|d| d.requests.iter().flatten());
            let wants = list.map(|r| requests::alternatives(devices, name, r)).collect::<Result<_, _>>();
            match wants {
                Ok(requests) => open.push(Open { key, claim: claim.clone(), requests }),
                Err(reason) => return refuse(reason, false),
            }
        }
        let lost = placed.iter().any(|(_, claim, _)| is_lost(claim, since));
        Ok(Some(Self { placed, lost, open, extended, said: Said::default() }))
    }

    /// Whether the node takes the pod.
    pub fn check(&self, node: &NodeInfo, devices: &Devices) -> Result<(), Rejection> {
        self.decide(node, devices).map(drop)
    }

    /// What the claims get on the node.
    pub fn decide(&self, node: &NodeInfo, devices: &Devices) -> Result<Given, Rejection> {
        let reject = |reason: &str| Err(Rejection::new(DYNAMIC_RESOURCES, reason, false));
        let extended = match self.extended_on(node, devices) {
            Ok(extended) => extended,
            Err(reason) => return reject(&reason),
        };
        if self.lost || self.placed.iter().any(|(_, _, selection)| !selection.allows(node)) {
            return reject("resourceclaim not available on the node");
        }
        // What another pod's decision is about to give is written by whoever comes first.
        let placed = self.placed.iter().map(|(key, claim, _)| {
            let promised = devices.promised.get(key).filter(|_| allocation(claim).is_none());
            (key.clone(), promised.cloned())
        });
        let mut given = Given { claims: placed.collect(), made: None };
        let open = self.all_open(extended.as_deref());
        if open.is_empty() {
            return Ok(given);
        }
        match allocate(devices, node, &open, &self.said) {
            Ok(Some(mut results)) => {
                if let Some(extended) = extended {
                    given.made = results.pop().map(|got| Arc::new(extended.made(got)));
                }
                let open = self.open.iter().map(|o| o.key.clone());
                given.claims.extend(open.zip(results.into_iter().map(Some)));
                Ok(given)
            }
            Ok(None) => reject("cannot allocate all claims"),
            Err(reason) => reject(&reason),
        }
    }

    fn extended_on(&self, node: &NodeInfo, devices: &Devices) -> Result<Option<Rc<Variant>>, String> {
        self.extended.as_ref().map_or(Ok(None), |extended| extended.on(node, devices))
    }

    /// Claims that are to get devices, that for extended resources last.
    fn all_open<'a>(&'a self, extended: Option<&'a Variant>) -> Vec<&'a Open> {
        self.open.iter().chain(extended.map(|e| &e.open)).collect()
    }

    /// A claim for the pod's extended resources that an earlier attempt left behind.
    pub fn stale_claim(&self) -> Option<&str> {
        self.extended.as_ref()?.stale.as_deref()
    }

    /// A claim whose devices are of the wrong node, or not ready in time, and of no use to anybody else.
    pub fn idle_claim(&self, pod: &PodInfo, nodes: &[&NodeInfo], since: Timestamp) -> Option<&str> {
        let idle = |claim: &ResourceClaim| {
            let list = claim.status.as_ref().and_then(|s| s.reserved_for.as_deref()).unwrap_or_default();
            allocation(claim).is_some() && list.iter().all(|r| *r.uid == *pod.uid)
        };
        let mut useless = self.placed.iter().filter(|(_, claim, s)| {
            idle(claim) && (is_lost(claim, since) || nodes.iter().any(|n| !s.allows(n)))
        });
        useless.next().map(|(key, _, _)| key.as_str())
    }

    /// How much the claims like what they would get on the node: of alternatives the first are best.
    pub fn score(&self, node: &NodeInfo, devices: &Devices) -> i64 {
        if !self.open.iter().any(Open::has_alternatives) {
            return 0;
        }
        let Ok(extended) = self.extended_on(node, devices) else { return 0 };
        match allocate(devices, node, &self.all_open(extended.as_deref()), &self.said) {
            Ok(Some(results)) => self.open.iter().zip(&results).map(|(open, got)| open.rank(got)).sum(),
            _ => 0,
        }
    }
}
