//! The static policy of memory: containers of Guaranteed pods have their memory and huge pages from NUMA nodes of their
//! own choice, and from no others.
//!
//! A node gives to single allocations or, together with the same others, to those that span several nodes; never to both.
//!
//! Rule: Kubernetes documentation, "Utilizing the NUMA-aware Memory Manager".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};

use super::checkpoint::Blocks;
use super::cpu::whole_pod;
use super::machine::Machine;
use super::options::MemoryReservation;
use super::topology::{Hint, Mask, Wishes, masks};
use super::{containers, passes_on};
use crate::resources::{qos_class, units};

/// Memory of one kind that a container has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// From these nodes.
    pub numa_affinity: Vec<usize>,
    /// `memory`, or huge pages of a size.
    #[serde(rename = "type")]
    pub resource: String,
    /// Bytes.
    pub size: u64,
}

/// Memory of one kind that a node has; bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// All of it.
    pub total: u64,
    /// Kept back.
    pub system_reserved: u64,
    /// What pods may have.
    pub allocatable: u64,
    /// What they have.
    pub reserved: u64,
    /// What is left.
    pub free: u64,
}

/// What is left of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// Blocks that come from it.
    pub number_of_assignments: u64,
    /// By kind.
    pub memory_map: BTreeMap<String, Table>,
    /// The nodes it gives together with; itself alone otherwise.
    pub cells: Vec<usize>,
}

/// What is decided so far.
#[derive(Debug, Clone)]
pub struct Memory {
    /// What is left, by node.
    pub nodes: BTreeMap<usize, NodeState>,
    /// Who has what.
    pub given: Blocks,
    /// What init containers that end leave to those after them, of the pod that was last given something.
    left: (String, BTreeMap<(Vec<usize>, String), u64>),
}

/// By kind.
type Amounts = BTreeMap<String, u64>;

/// What a container asks for; nothing where it is no matter of this policy.
fn asked(pod: &Pod, container: &Container) -> Amounts {
    if qos_class(pod) != "Guaranteed" || whole_pod(pod) {
        return Amounts::new();
    }
    let resources = container.resources.as_ref();
    let lists = [
        resources.and_then(|resources| resources.limits.as_ref()),
        resources.and_then(|resources| resources.requests.as_ref()),
    ];
    let all = lists.into_iter().flatten().flatten();
    all.filter(|(name, _)| *name == "memory" || name.starts_with("hugepages-"))
        .map(|(name, amount)| (name.clone(), u64::try_from(units(&amount.0)).unwrap_or(0)))
        .collect()
}

/// The nodes without pods.
fn empty(machine: &Machine, reserved: &[MemoryReservation]) -> BTreeMap<usize, NodeState> {
    let kept = |node: usize, kind: &str| {
        let own = reserved.iter().filter(|one| one.numa_node == node);
        let sum: i64 = own.filter_map(|one| one.limits.get(kind)).map(|amount| units(amount)).sum();
        u64::try_from(sum).unwrap_or(0)
    };
    let nodes = machine.nodes.iter().map(|(id, node)| {
        let table = |kind: &str, total: u64, pages: u64| {
            let system_reserved = kept(*id, kind);
            let allocatable = total.saturating_sub(system_reserved).saturating_sub(pages);
            Table { total, system_reserved, allocatable, reserved: 0, free: allocatable }
        };
        let mut memory_map: BTreeMap<String, Table> =
            node.pages.iter().map(|(kind, bytes)| (kind.clone(), table(kind, *bytes, 0))).collect();
        memory_map.insert("memory".to_owned(), table("memory", node.memory, node.pages.values().sum()));
        (*id, NodeState { number_of_assignments: 0, memory_map, cells: vec![*id] })
    });
    nodes.collect()
}

/// Takes `size` from nodes, as much of each as it has.
fn take(
    nodes: &mut BTreeMap<usize, NodeState>,
    affinity: &[usize],
    kind: &str,
    mut size: u64,
) -> Result<(), &'static str> {
    for id in affinity {
        let node = nodes.get_mut(id).ok_or("the memory assignment uses the NUMA that does not exist")?;
        node.number_of_assignments += 1;
        node.cells = affinity.to_vec();
        let table = node
            .memory_map
            .get_mut(kind)
            .ok_or("the memory assignment uses memory resource that does not exist")?;
        let some = size.min(table.free);
        table.free -= some;
        table.reserved += some;
        size -= some;
    }
    Ok(())
}

/// Whether what is reserved by node adds up to what is reserved at all.
fn check_reserved(
    machine: &Machine,
    list: &[MemoryReservation],
    whole: &BTreeMap<String, api::quantity::Quantity>,
) -> Result<(), String> {
    use api::quantity::Quantity;
    let mut sums: BTreeMap<String, Quantity> = BTreeMap::new();
    for MemoryReservation { numa_node, limits } in list {
        if !machine.nodes.contains_key(numa_node) {
            return Err(format!(
                "the reserved memory configuration references a NUMA node {numa_node} that does not exist on this machine"
            ));
        }
        for (kind, amount) in limits {
            let amount: Quantity = amount.parse().map_err(|why| format!("{kind}: {why}"))?;
            let sum = sums.get(kind).map_or(amount, |sum| sum.plus(&amount));
            sums.insert(kind.clone(), sum);
        }
    }
    let kinds: BTreeSet<&String> = sums.keys().chain(whole.keys()).collect();
    let zero = Quantity::from_value(0, api::quantity::Format::DecimalSi);
    for kind in kinds {
        let (given, expected) = (sums.get(kind).unwrap_or(&zero), whole.get(kind).unwrap_or(&zero));
        if given.minus(expected).signum() != 0 {
            return Err(format!(
                "the total amount {:?} of type {kind:?} is not equal to the value {:?} determined by Node Allocatable feature",
                given.to_string(),
                expected.to_string()
            ));
        }
    }
    Ok(())
}

impl Memory {
    /// `whole`: what is kept back of the node's memory, by kind; `kept`: what is remembered.
    pub fn new(
        machine: &Arc<Machine>,
        reserved: &[MemoryReservation],
        whole: &BTreeMap<String, api::quantity::Quantity>,
        kept: Option<(BTreeMap<usize, NodeState>, Blocks)>,
    ) -> Result<Self, String> {
        check_reserved(machine, reserved, whole)?;
        let any = reserved.iter().filter_map(|one| one.limits.get("memory")).any(|amount| units(amount) > 0);
        if !any {
            return Err("[memorymanager] you should specify the system reserved memory".to_owned());
        }
        let mut nodes = empty(machine, reserved);
        let (seen, given) = kept.unwrap_or((nodes.clone(), Blocks::new()));
        if seen.is_empty() && !given.is_empty() {
            return Err(
                "[memorymanager] machine state can not be empty when it has memory assignments".to_owned()
            );
        }
        for (pod, all) in &given {
            for (container, blocks) in all {
                for block in blocks {
                    take(&mut nodes, &block.numa_affinity, &block.resource, block.size).map_err(|why| {
                        format!("[memorymanager] (pod: {pod}, container: {container}) {why}")
                    })?;
                }
            }
        }
        if !seen.is_empty() && !same(&seen, &nodes) {
            return Err(
                "[memorymanager] the expected machine state is different from the real one".to_owned()
            );
        }
        let nodes = if seen.is_empty() { nodes } else { seen };
        Ok(Self { nodes, given, left: Default::default() })
    }

    /// What pods may have at all, by node.
    pub fn allocatable(&self) -> Vec<Block> {
        let of = |(id, node): (&usize, &NodeState)| -> Vec<Block> {
            let some = node.memory_map.iter().filter(|(_, table)| table.allocatable > 0);
            some.map(|(kind, table)| Block {
                numa_affinity: vec![*id],
                resource: kind.clone(),
                size: table.allocatable,
            })
            .collect()
        };
        self.nodes.iter().flat_map(of).collect()
    }

    /// What a container has.
    pub fn of(&self, uid: &str, container: &str) -> Option<&Vec<Block>> {
        self.given.get(uid)?.get(container)
    }

    fn left(&self, pod: &Pod, mask: Mask, kind: &str) -> u64 {
        let (uid, left) = &self.left;
        let key = (mask.nodes().collect::<Vec<_>>(), kind.to_owned());
        if pod.metadata.uid.as_ref() == Some(uid) { left.get(&key).copied().unwrap_or(0) } else { 0 }
    }

    /// Gives a container what it asks for, once; whether it asks for anything.
    pub fn give(&mut self, pod: &Pod, container: &Container, hint: Hint) -> Result<bool, String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let asked = asked(pod, container);
        if asked.is_empty() || self.of(uid, &container.name).is_some() {
            return Ok(!asked.is_empty());
        }
        let mut best = hint;
        if best.mask.is_none() {
            let found = narrowest(self.hints(pod, &asked)).ok_or(
                "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available",
            )?;
            if !found.preferred && best.preferred {
                return Err("[memorymanager] failed to find the default preferred hint".to_owned());
            }
            best = found;
        }
        let mut mask = best.mask.unwrap_or_default();
        if !self.satisfies(pod, mask, &asked) {
            let hints = self.hints(pod, &asked).into_iter();
            let wider = hints.filter(|hint| hint.mask.is_some_and(|nodes| nodes.covers(mask)));
            let found = narrowest(wider.collect())
                .ok_or("[memorymanager] failed to find NUMA nodes to extend the current topology hint")?;
            if !found.preferred && best.preferred {
                return Err("[memorymanager] failed to find the extended preferred hint".to_owned());
            }
            mask = found.mask.unwrap_or_default();
        }
        if self.violates(mask) {
            return Err("[memorymanager] preferred hint violates NUMA node allocation".to_owned());
        }
        let affinity: Vec<usize> = mask.nodes().collect();
        let mut nodes = self.nodes.clone();
        let mut blocks = Vec::with_capacity(asked.len());
        for (kind, size) in asked {
            let fresh = size.saturating_sub(self.left(pod, mask, &kind));
            take(&mut nodes, &affinity, &kind, fresh).map_err(|why| format!("[memorymanager] {why}"))?;
            blocks.push(Block { numa_affinity: affinity.clone(), resource: kind, size });
        }
        self.nodes = nodes;
        self.reuse(pod, container, &blocks);
        self.given.entry(uid.to_owned()).or_default().insert(container.name.clone(), blocks);
        Ok(true)
    }

    /// What this container leaves to later ones, or has of what earlier ones left.
    fn reuse(&mut self, pod: &Pod, container: &Container, blocks: &[Block]) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if self.left.0 != uid {
            self.left = (uid.to_owned(), BTreeMap::new());
        }
        for block in blocks {
            let key = (block.numa_affinity.clone(), block.resource.clone());
            let left = self.left.1.entry(key).or_default();
            if passes_on(pod, container) {
                *left = block.size.max(*left);
            } else {
                *left = left.saturating_sub(block.size);
            }
        }
        // what is used again is written down once: the sum of all blocks is what the pod takes from the nodes
        let earlier: Vec<String> = containers(pod)
            .take_while(|one| one.name != container.name)
            .filter(|one| passes_on(pod, one))
            .map(|one| one.name.clone())
            .collect();
        let Some(own) = self.given.get_mut(uid) else { return };
        for block in blocks {
            let mut size = block.size;
            for name in &earlier {
                let known = own.get_mut(name).into_iter().flatten();
                for known in known.filter(|known| {
                    known.resource == block.resource && known.numa_affinity == block.numa_affinity
                }) {
                    let some = known.size.min(size);
                    known.size -= some;
                    size -= some;
                }
            }
        }
    }

    /// Takes back what pods have that are not to be kept. Whether there was any.
    pub fn keep(&mut self, kept: impl Fn(&str) -> bool) -> bool {
        let gone: Vec<String> = self.given.keys().filter(|uid| !kept(uid)).cloned().collect();
        for uid in &gone {
            for block in self.given.remove(uid).unwrap_or_default().into_values().flatten() {
                let mut size = block.size;
                for id in &block.numa_affinity {
                    let Some(node) = self.nodes.get_mut(id) else { continue };
                    node.number_of_assignments = node.number_of_assignments.saturating_sub(1);
                    if node.number_of_assignments == 0 {
                        node.cells = vec![*id];
                    }
                    if let Some(table) = node.memory_map.get_mut(&block.resource) {
                        let some = size.min(table.reserved);
                        table.reserved -= some;
                        table.free += some;
                        size -= some;
                    }
                }
            }
        }
        !gone.is_empty()
    }

    fn table(&self, node: usize, kind: &str) -> (u64, u64) {
        let table = self.nodes.get(&node).and_then(|node| node.memory_map.get(kind));
        table.map_or((0, 0), |table| (table.allocatable, table.free))
    }

    fn satisfies(&self, pod: &Pod, mask: Mask, asked: &Amounts) -> bool {
        asked.iter().all(|(kind, size)| {
            let free: u64 = mask.nodes().map(|node| self.table(node, kind).1).sum();
            free.saturating_add(self.left(pod, mask, kind)) >= *size
        })
    }

    /// Whether a node of several gives alone already, or with others.
    fn violates(&self, mask: Mask) -> bool {
        let nodes: Vec<usize> = mask.nodes().collect();
        let used = nodes.iter().filter_map(|id| self.nodes.get(id)).filter(|n| n.number_of_assignments > 0);
        nodes.len() > 1 && used.into_iter().any(|node| Mask::of(node.cells.iter().copied()) != mask)
    }

    /// The sets of nodes that have enough; those as small as on an empty machine are preferred.
    fn hints(&self, pod: &Pod, asked: &Amounts) -> Vec<Hint> {
        let ids: Vec<usize> = self.nodes.keys().copied().collect();
        let mut least = ids.len();
        let mut found = Vec::new();
        for mask in masks(&ids) {
            let could = asked.iter().all(|(kind, size)| {
                mask.nodes().map(|node| self.table(node, kind).0).fold(0, u64::saturating_add) >= *size
            });
            if !could {
                continue;
            }
            least = least.min(mask.count());
            let grouped = |node: usize| self.nodes.get(&node).is_some_and(|node| node.cells.len() > 1);
            let alone = mask.count() == 1;
            if alone && mask.nodes().any(grouped) || self.violates(mask) || !self.satisfies(pod, mask, asked)
            {
                continue;
            }
            found.push(Hint { mask: Some(mask), preferred: false });
        }
        for hint in &mut found {
            hint.preferred = hint.mask.is_some_and(|mask| mask.count() == least);
        }
        found
    }

    /// Where a container's memory could come from, by kind.
    pub fn wishes(&self, pod: &Pod, container: &Container) -> Vec<Wishes> {
        let asked = asked(pod, container);
        let has = self.of(pod.metadata.uid.as_deref().unwrap_or_default(), &container.name);
        self.wish(pod, asked, has)
    }

    /// Where that of a whole pod could come from.
    pub fn pod_wishes(&self, pod: &Pod) -> Vec<Wishes> {
        let (mut long, mut most): (Amounts, Amounts) = Default::default();
        for container in containers(pod) {
            for (kind, size) in asked(pod, container) {
                let sum = long.entry(kind.clone()).or_default();
                if passes_on(pod, container) {
                    let most = most.entry(kind).or_default();
                    *most = (*most).max(sum.saturating_add(size));
                } else {
                    *sum = sum.saturating_add(size);
                }
            }
        }
        for (kind, size) in most {
            let sum = long.entry(kind).or_default();
            *sum = size.max(*sum);
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let has = containers(pod).find_map(|container| self.of(uid, &container.name));
        self.wish(pod, long, has)
    }

    fn wish(&self, pod: &Pod, asked: Amounts, has: Option<&Vec<Block>>) -> Vec<Wishes> {
        if asked.is_empty() {
            return vec![None];
        }
        if let Some(blocks) = has {
            let fit = blocks.len() == asked.len()
                && blocks.iter().all(|block| asked.get(&block.resource) == Some(&block.size));
            let own = |block: &Block| {
                let mask = Some(Mask::of(block.numa_affinity.iter().copied()));
                Some(vec![Hint { mask, preferred: true }])
            };
            return if fit { blocks.iter().map(own).collect() } else { vec![None] };
        }
        let hints = self.hints(pod, &asked);
        if hints.is_empty() {
            // not a wish that cannot be fulfilled: what is given then fails by its own name
            return vec![None];
        }
        asked.keys().map(|_| Some(hints.clone())).collect()
    }
}

/// Preferred ones before others, then the fewest nodes.
fn narrowest(hints: Vec<Hint>) -> Option<Hint> {
    hints.into_iter().reduce(|best, next| {
        let narrower = match (next.mask, best.mask) {
            (Some(next), Some(best)) => next.narrower(best),
            _ => false,
        };
        if next.preferred && !best.preferred || next.preferred == best.preferred && narrower {
            next
        } else {
            best
        }
    })
}

/// Whether two states differ only in which nodes of a group gave what.
fn same(seen: &BTreeMap<usize, NodeState>, expected: &BTreeMap<usize, NodeState>) -> bool {
    let set = |cells: &[usize]| Mask::of(cells.iter().copied());
    let sums = |all: &BTreeMap<usize, NodeState>, cells: &[usize], kind: &str| {
        let tables = cells.iter().filter_map(|id| all.get(id)?.memory_map.get(kind));
        tables.fold((0_u64, 0_u64), |sum, table| {
            (sum.0.saturating_add(table.free), sum.1.saturating_add(table.reserved))
        })
    };
    seen.len() == expected.len()
        && seen.iter().all(|(id, node)| {
            expected.get(id).is_some_and(|other| {
                node.number_of_assignments == other.number_of_assignments
                    && set(&node.cells) == set(&other.cells)
                    && node.memory_map.len() == other.memory_map.len()
                    && node.memory_map.iter().all(|(kind, table)| {
                        other.memory_map.get(kind).is_some_and(|other| {
                            (table.total, table.system_reserved, table.allocatable)
                                == (other.total, other.system_reserved, other.allocatable)
                                && sums(seen, &node.cells, kind) == sums(expected, &node.cells, kind)
                        })
                    })
            })
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::machine::tests::machine;
    use super::*;

    const GIB: u64 = 1 << 30;

    fn pod(uid: &str, init: &[&str], containers: &[&str]) -> Pod {
        let one = |at: usize, prefix: &str, memory: &str| -> Value {
            let amounts = json!({"cpu": "1", "memory": memory});
            json!({"name": format!("{prefix}{at}"), "resources": {"limits": amounts, "requests": amounts}})
        };
        let list = |all: &[&str], prefix: &str| -> Vec<Value> {
            all.iter().enumerate().map(|(at, memory)| one(at, prefix, memory)).collect()
        };
        let spec = json!({"initContainers": list(init, "i"), "containers": list(containers, "c")});
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": spec})).unwrap()
    }

    /// Two nodes of 4 GiB, 1 GiB of the first kept back.
    fn memory(kept: Option<(BTreeMap<usize, NodeState>, Blocks)>) -> Result<Memory, String> {
        let reserved =
            [MemoryReservation { numa_node: 0, limits: [("memory".to_owned(), "1Gi".to_owned())].into() }];
        let whole = [("memory".to_owned(), "1Gi".parse().unwrap())].into();
        Memory::new(&Arc::new(machine([2, 1, 2, 1], 4 * GIB)), &reserved, &whole, kept)
    }

    /// Gives all containers of a pod what they want: from which nodes, and what is free in GiB then.
    fn give(memory: &mut Memory, pod: &Pod) -> Result<String, String> {
        let mut text = String::new();
        for one in containers(pod) {
            memory.give(pod, one, Hint::default())?;
            let blocks = memory.of(pod.metadata.uid.as_deref().unwrap(), &one.name);
            let nodes = blocks.map_or(String::new(), |all| format!("{:?}", all[0].numa_affinity));
            text.push_str(&format!("{}={nodes} ", one.name));
        }
        let free: Vec<u64> = memory.nodes.values().map(|node| node.memory_map["memory"].free / GIB).collect();
        Ok(format!("{text}free={free:?}"))
    }

    #[test]
    fn memory_comes_from_as_few_nodes_as_can_give_it() {
        let mut all = memory(None).unwrap();
        assert_eq!(give(&mut all, &pod("a", &[], &["2Gi"])).unwrap(), "c0=[0] free=[1, 4]");
        assert_eq!(give(&mut all, &pod("b", &[], &["2Gi"])).unwrap(), "c0=[1] free=[1, 2]");
        // nodes that give alone do not give together
        let why = "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available";
        assert_eq!(give(&mut all, &pod("c", &[], &["3Gi"])).unwrap_err(), why);
        assert!(all.keep(|uid| uid == "none"));
        assert_eq!(give(&mut all, &pod("d", &[], &["6Gi"])).unwrap(), "c0=[0, 1] free=[0, 1]");
        // and the other way round
        assert_eq!(give(&mut all, &pod("e", &[], &["1Gi"])).unwrap(), "c0=[0, 1] free=[0, 0]");
        assert!(all.keep(|uid| uid != "d"));
        assert_eq!(all.nodes[&0].cells, [0, 1], "the other is still there");
        assert!(all.keep(|_| false));
        assert_eq!(all.nodes, memory(None).unwrap().nodes);
        let burstable: Pod = serde_json::from_value(json!({"metadata": {"uid": "f"}, "spec": {"containers":
            [{"name": "c0", "resources": {"requests": {"memory": "1Gi"}}}]}}))
        .unwrap();
        assert_eq!(give(&mut all, &burstable).unwrap(), "c0= free=[3, 4]");
    }

    #[test]
    fn init_containers_leave_their_memory() {
        let mut all = memory(None).unwrap();
        assert_eq!(
            give(&mut all, &pod("a", &["2Gi"], &["1Gi", "1Gi"])).unwrap(),
            "i0=[0] c0=[0] c1=[0] free=[1, 4]"
        );
        let sum: u64 = all.given["a"].values().flatten().map(|block| block.size).sum();
        assert_eq!(sum, 2 * GIB);
        assert!(all.keep(|_| false));
        assert_eq!(all.nodes, memory(None).unwrap().nodes);
    }

    #[test]
    fn what_is_remembered_must_be_of_this_machine() {
        let mut all = memory(None).unwrap();
        give(&mut all, &pod("a", &[], &["2Gi"])).unwrap();
        let again = memory(Some((all.nodes.clone(), all.given.clone()))).unwrap();
        assert_eq!(again.nodes, all.nodes);
        let why = |nodes: &BTreeMap<usize, NodeState>, given: &Blocks| {
            memory(Some((nodes.clone(), given.clone()))).unwrap_err()
        };
        let different = "[memorymanager] the expected machine state is different from the real one";
        assert_eq!(why(&all.nodes, &Blocks::new()), different);
        let mut larger = all.nodes.clone();
        larger.get_mut(&1).unwrap().memory_map.get_mut("memory").unwrap().total += 1;
        assert_eq!(why(&larger, &all.given), different);
        let mut elsewhere = all.given.clone();
        elsewhere.get_mut("a").unwrap().get_mut("c0").unwrap()[0].numa_affinity = vec![7];
        let expected =
            "[memorymanager] (pod: a, container: c0) the memory assignment uses the NUMA that does not exist";
        assert_eq!(why(&all.nodes, &elsewhere), expected);
    }

    #[test]
    fn what_is_reserved_must_add_up() {
        let check = |node: usize, amount: &str, expected: &str| {
            let limits = [("memory".to_owned(), amount.to_owned())].into();
            let whole = [("memory".to_owned(), "1124Mi".parse().unwrap())].into();
            let machine = Arc::new(machine([2, 1, 2, 1], 4 * GIB));
            let reserved = [MemoryReservation { numa_node: node, limits }];
            assert_eq!(
                Memory::new(&machine, &reserved, &whole, None).map(drop).err().unwrap_or_default(),
                expected
            );
        };
        check(1, "1124Mi", "");
        check(
            2,
            "1124Mi",
            "the reserved memory configuration references a NUMA node 2 that does not exist on this machine",
        );
        check(
            1,
            "1Gi",
            "the total amount \"1Gi\" of type \"memory\" is not equal to the value \"1124Mi\" determined by Node Allocatable feature",
        );
    }
}
