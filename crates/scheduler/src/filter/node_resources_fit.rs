//! NodeResourcesFit: what the pod asks for must be free on the node.
use std::sync::Arc;

use super::Verdict;
use crate::pod_info::Demand;
use crate::profile::Profile;
use crate::snapshot::NodeInfo;

/// Name, wanted, used, on offer, of every resource the pod asks for.
fn asked<'a>(demand: &'a Demand, node: &'a NodeInfo) -> impl Iterator<Item = (&'a str, i64, i64, i64)> {
    let (d, r, a) = (&demand.requests, &node.requested, &node.allocatable);
    let fixed = [
        ("cpu", d.milli_cpu, r.milli_cpu, a.milli_cpu),
        ("memory", d.memory, r.memory, a.memory),
        ("ephemeral-storage", d.ephemeral_storage, r.ephemeral_storage, a.ephemeral_storage),
    ];
    let scalar = d.scalar.iter().map(|(name, value)| (&**name, *value, r.scalar(name), a.scalar(name)));
    fixed.into_iter().chain(scalar).filter(|(_, wanted, _, _)| *wanted > 0)
}

fn is_ignored(name: &str, profile: &Profile) -> bool {
    let Some((group, _)) = name.split_once('/') else { return false };
    profile.fit.ignored.iter().any(|n| n == name) || profile.fit.ignored_groups.iter().any(|g| g == group)
}

/// Whether the node has none of it, and devices of a class stand for it: whether there are some is asked of DynamicResources.
fn is_delegated(name: &str, node: &NodeInfo) -> bool {
    node.allocatable.get(name) == 0 && node.extended.class_of(name).is_some()
}

pub(super) fn run(demand: &Demand, node: &NodeInfo, profile: &Profile) -> Verdict {
    let mut reasons: Vec<Arc<str>> = Vec::new();
    let mut resolvable = true;
    if node.pod_count() + 1 > node.allowed_pods {
        reasons.push("Too many pods".into());
    }
    for (name, wanted, used, offered) in asked(demand, node) {
        if wanted > offered - used && !is_ignored(name, profile) && !is_delegated(name, node) {
            reasons.push(format!("Insufficient {name}").into());
            // More than the node has at all: no pod's end helps.
            resolvable &= wanted <= offered;
        }
    }
    if reasons.is_empty() { Verdict::Fits } else { Verdict::Rejected(reasons, resolvable) }
}
