//! How the containers of a pod get their devices, one after the other, and from which NUMA nodes they could come.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use k8s_openapi::api::core::v1::{Container, Pod};

use super::messages::Device;
use super::{Devices, Resource, State};
use crate::managers::machine::Machine;
use crate::managers::topology::{Hint, Mask, Wishes, masks};
use crate::managers::{containers, passes_on};

/// A pod that is being given devices.
#[derive(Default)]
pub struct Allocation {
    uid: String,
    /// What containers that end leave to later ones, by resource.
    reusable: BTreeMap<String, BTreeSet<String>>,
    asked: bool,
}

impl Devices {
    /// Devices of pods that are not in `alive` are free again, where this pod wants any.
    pub fn begin(&self, pod: &Pod, alive: &HashSet<String>) -> Allocation {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let asked = containers(pod).flat_map(|c| limits(pod, c)).any(|(resource, _)| self.knows(&resource));
        if asked {
            self.state.lock().pods.keep(|other| other == uid || alive.contains(other));
        }
        Allocation { uid, asked, ..Allocation::default() }
    }

    /// Gives a container what it asks for, once, near to the nodes of `hint`. The error is what the pod is refused for.
    pub async fn give(
        &self,
        pod: &Pod,
        container: &Container,
        hint: Hint,
        allocation: &mut Allocation,
    ) -> Result<(), String> {
        let uid = allocation.uid.as_str();
        for (resource, needed) in limits(pod, container) {
            if self.knows(&resource) {
                let reusable = allocation.reusable.get(&resource).cloned().unwrap_or_default();
                self.give_one((uid, &container.name), &resource, needed, (&reusable, hint)).await?;
            }
        }
        // what ends before others begin leaves them its devices
        let passed_on = passes_on(pod, container);
        for (resource, given) in self.state.lock().pods.of(uid, &container.name) {
            let free = allocation.reusable.entry(resource.clone()).or_default();
            for id in given.devices.keys() {
                if passed_on {
                    free.insert(id.clone());
                } else {
                    free.remove(id);
                }
            }
        }
        Ok(())
    }

    /// The pod has what it wants: that is written down.
    pub fn finish(&self, allocation: Allocation) -> Result<(), String> {
        if allocation.asked { self.save() } else { Ok(()) }
    }

    /// Where a container's devices could come from, by resource.
    pub fn wishes(
        &self,
        machine: &Machine,
        pod: &Pod,
        container: &Container,
        allocation: &Allocation,
    ) -> Vec<Wishes> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let state = self.state.lock();
        let wish = |(name, count): (String, usize)| {
            let mut given = state.pods.of(uid, &container.name);
            let has = given.find(|(known, _)| **known == name);
            let has = has.map(|(_, given)| given.devices.keys().cloned().collect()).unwrap_or_default();
            let reusable = allocation.reusable.get(&name).cloned().unwrap_or_default();
            state.wish(machine, &name, count, has, &reusable)
        };
        none_for_nothing(limits(pod, container).into_iter().map(wish).collect())
    }

    /// Where those of a whole pod could come from.
    pub fn pod_wishes(&self, machine: &Machine, pod: &Pod) -> Vec<Wishes> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let state = self.state.lock();
        let mut has: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for container in containers(pod) {
            for (name, count) in limits(pod, container) {
                let (long, most) = counts.entry(name).or_default();
                if passes_on(pod, container) {
                    *most = (*most).max(long.saturating_add(count));
                } else {
                    *long = long.saturating_add(count);
                }
            }
            for (name, given) in state.pods.of(uid, &container.name) {
                has.entry(name.clone()).or_default().extend(given.devices.keys().cloned());
            }
        }
        let wish = |(name, (long, most)): (String, (usize, usize))| {
            let has = has.remove(&name).unwrap_or_default();
            state.wish(machine, &name, long.max(most), has, &BTreeSet::new())
        };
        none_for_nothing(counts.into_iter().map(wish).collect())
    }
}

fn none_for_nothing(wishes: Vec<Wishes>) -> Vec<Wishes> {
    if wishes.is_empty() { vec![None] } else { wishes }
}

/// The nodes a device is near to.
pub(super) fn nodes(device: &Device) -> Mask {
    let nodes = device.topology.iter().flat_map(|topology| &topology.nodes);
    Mask::of(nodes.filter_map(|node| usize::try_from(node.id).ok()))
}

impl Resource {
    fn near(&self, id: &str, mask: Mask) -> bool {
        self.devices.get(id).is_some_and(|device| nodes(device).and(mask).count() > 0)
    }

    /// Those of `free` that are near to the nodes of `hint`, and the others.
    pub(super) fn split(&self, free: BTreeSet<String>, hint: Hint) -> (BTreeSet<String>, BTreeSet<String>) {
        match hint.mask {
            None => (BTreeSet::new(), free),
            Some(mask) => free.into_iter().partition(|id| self.near(id, mask)),
        }
    }

    /// In the order in which they are given where their plugin does not choose: those that are near to no node come last,
    /// where nearness counts.
    pub(super) fn in_order(&self, ids: &BTreeSet<String>, hint: Hint) -> Vec<String> {
        let mut all: Vec<String> = ids.iter().cloned().collect();
        let nowhere = |id: &String| self.devices.get(id).is_none_or(|device| nodes(device).count() == 0);
        all.sort_by_key(|id| hint.mask.is_some() && nowhere(id));
        all
    }
}

impl State {
    fn wish(
        &self,
        machine: &Machine,
        name: &str,
        count: usize,
        has: BTreeSet<String>,
        reusable: &BTreeSet<String>,
    ) -> Wishes {
        let resource = self.resources.get(name)?;
        if !resource.devices.values().any(|device| device.topology.is_some()) {
            return None;
        }
        let (free, reusable) = if has.is_empty() {
            let free: BTreeSet<String> =
                resource.healthy().difference(&self.pods.in_use(name)).cloned().collect();
            (free, reusable)
        } else if has.len() == count {
            (has, &BTreeSet::new())
        } else {
            return Some(Vec::new());
        };
        if free.union(reusable).count() < count {
            return Some(Vec::new());
        }
        let ids: Vec<usize> = machine.nodes.keys().copied().collect();
        let mut least = ids.len();
        let mut found = Vec::new();
        for mask in masks(&ids) {
            let near = |id: &&String| resource.near(id, mask);
            if resource.devices.keys().filter(near).count() >= count {
                least = least.min(mask.count());
            }
            // what is left over is to be used, unless it is near to nothing
            let placed = |id: &&String| resource.devices.get(*id).is_some_and(|d| d.topology.is_some());
            if reusable.iter().filter(placed).all(|id| near(&id))
                && free.union(reusable).filter(near).count() >= count
            {
                found.push(Hint { mask: Some(mask), preferred: false });
            }
        }
        for hint in &mut found {
            hint.preferred = hint.mask.is_some_and(|mask| mask.count() == least);
        }
        Some(found)
    }
}

/// What a container may have of extended resources.
fn limits(pod: &Pod, container: &Container) -> Vec<(String, usize)> {
    let limits = container.resources.iter().flat_map(|resources| resources.limits.iter().flatten());
    limits
        .filter(|(name, _)| api::quota::is_extended(name) && !comes_by_claim(pod, &container.name, name))
        .map(|(name, amount)| {
            (name.clone(), usize::try_from(crate::resources::units(&amount.0)).unwrap_or(0))
        })
        .collect()
}

/// Whether the scheduler made a claim from which the container gets the resource.
fn comes_by_claim(pod: &Pod, container: &str, resource: &str) -> bool {
    let status = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    let mut mappings = status.into_iter().flat_map(|s| &s.request_mappings);
    mappings.any(|m| m.container_name == container && m.resource_name == resource)
}

#[cfg(test)]
mod tests {
    use super::super::messages::{NumaNode, TopologyInfo};
    use super::*;
    use crate::managers::machine::tests::machine;

    fn resource(devices: &[(&str, i64)]) -> Resource {
        let one = |(id, node): &(&str, i64)| {
            let topology = (*node >= 0).then(|| TopologyInfo { nodes: vec![NumaNode { id: *node }] });
            let device = Device { id: (*id).to_owned(), health: "Healthy".to_owned(), topology };
            ((*id).to_owned(), device)
        };
        Resource { devices: devices.iter().map(one).collect(), ..Resource::default() }
    }

    fn set(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn devices_say_which_nodes_would_do() {
        let machine = machine([2, 1, 1, 1], 0);
        let check =
            |devices: &[(&str, i64)], count: usize, has: &[&str], reusable: &[&str], expected: &str| {
                let mut state = State::default();
                state.resources.insert("x/d".to_owned(), resource(devices));
                let found = state.wish(&machine, "x/d", count, set(has), &set(reusable));
                let text = found.map_or("any".to_owned(), |all| {
                    let one = |hint: Hint| {
                        let nodes: String = hint.mask.unwrap().nodes().map(|node| node.to_string()).collect();
                        format!("{nodes}{}", if hint.preferred { "+" } else { "" })
                    };
                    all.into_iter().map(one).collect::<Vec<_>>().join(" ")
                });
                assert_eq!(text, expected);
            };
        let spread = [("a", 0), ("b", 1), ("c", 1)];
        check(&spread, 1, &[], &[], "0+ 1+ 01");
        check(&spread, 2, &[], &[], "1+ 01");
        check(&spread, 3, &[], &[], "01+");
        check(&spread, 4, &[], &[], "");
        check(&spread, 1, &["b"], &[], "1+ 01");
        check(&spread, 2, &["b"], &[], "");
        check(&spread, 1, &[], &["a"], "0+ 01");
        check(&[("a", -1), ("b", -1)], 1, &[], &[], "any");
        check(&[("a", -1), ("b", 1)], 2, &[], &[], "");
    }

    #[test]
    fn what_a_container_gets_by_a_claim_is_not_asked_of_plugins() {
        let container = |name: &str| serde_json::json!({"name": name, "resources": {"limits": {"a/dev": "1", "a/nic": "2", "cpu": "1"}}});
        let mapping = serde_json::json!({"containerName": "x", "resourceName": "a/dev", "requestName": "r"});
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "spec": {"containers": [container("x"), container("y")]},
            "status": {"extendedResourceClaimStatus": {"resourceClaimName": "c", "requestMappings": [mapping]}},
        }))
        .unwrap();
        let asked: Vec<_> = containers(&pod).map(|c| limits(&pod, c)).collect();
        let (dev, nic) = (("a/dev".to_owned(), 1), ("a/nic".to_owned(), 2));
        assert_eq!(asked, [vec![nic.clone()], vec![dev, nic]]);
    }

    #[test]
    fn near_devices_are_taken_first() {
        let spread = resource(&[("a", 0), ("b", 1), ("c", -1)]);
        let split = |mask| spread.split(set(&["a", "b", "c"]), Hint { mask, preferred: true });
        assert_eq!(split(None), (set(&[]), set(&["a", "b", "c"])));
        assert_eq!(split(Some(Mask::of([1]))), (set(&["b"]), set(&["a", "c"])));
        let spread = resource(&[("a", -1), ("b", 1), ("c", 0)]);
        let order = |mask| spread.in_order(&set(&["a", "b", "c"]), Hint { mask, preferred: true }).join("");
        assert_eq!([order(None), order(Some(Mask::of([0])))], ["abc", "bca"]);
    }
}
