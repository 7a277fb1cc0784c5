//! Which processors an exclusive request gets: near to each other, or spread evenly. Pure: a machine and the free
//! processors in, a set out.
//!
//! Rule: Kubernetes documentation, "Control CPU Management Policies on the Node" (static policy and its options).
//! Packed: whole NUMA nodes and sockets first, then whole last caches where that is wished, whole cores, then single
//! threads; of equals the one with the least left, so that large pieces stay large.

use super::cpu_set::CpuSet;
use super::machine::{Level, Machine};
use super::options::CpuOptions;

/// Takes `count` of `free`.
pub fn take(machine: &Machine, free: &CpuSet, count: usize, options: &CpuOptions) -> Result<CpuSet, String> {
    if count == 0 {
        return Ok(CpuSet::default());
    }
    if count > free.len() {
        return Err(format!(
            "not enough cpus available to satisfy request: requested={count}, available={}",
            free.len()
        ));
    }
    let spread = options.distribute_across_cores;
    if options.distribute_across_numa {
        let group = if options.full_cores_only { machine.per_core().max(1) } else { 1 };
        if count.is_multiple_of(group)
            && let Some(found) = distributed(machine, free, count, group, spread)
        {
            return Ok(found);
        }
        return packed(machine, free, count, spread, false);
    }
    packed(machine, free, count, spread, options.prefer_caches)
}

struct Pick<'a> {
    machine: &'a Machine,
    free: CpuSet,
    taken: CpuSet,
    needed: usize,
}

impl Pick<'_> {
    fn take(&mut self, cpus: &CpuSet) {
        self.taken = self.taken.union(cpus);
        self.free = self.free.minus(cpus);
        self.needed -= cpus.len();
    }

    /// What is free, by `level`: the least first.
    fn sorted(&self, among: &CpuSet, level: Level) -> Vec<(usize, CpuSet)> {
        let mut groups: Vec<_> = self.machine.groups(&among.and(&self.free), level).into_iter().collect();
        groups.sort_by_key(|(id, cpus)| (cpus.len(), *id));
        groups
    }

    /// The larger and the smaller of sockets and NUMA nodes.
    fn levels(&self) -> (Level, Level) {
        if self.machine.count(Level::Socket) >= self.machine.count(Level::Node) {
            (Level::Node, Level::Socket)
        } else {
            (Level::Socket, Level::Node)
        }
    }

    /// What is free by `level`, in the order of what is above it.
    fn within(&self, level: Level) -> Vec<(usize, CpuSet)> {
        let (outer, inner) = self.levels();
        let above: Vec<(usize, CpuSet)> = match level {
            _ if level == outer => return self.sorted(&self.free, outer),
            _ if level == inner => self.sorted(&self.free, outer),
            Level::Cache => self.within(Level::Node),
            _ => self.within(inner),
        };
        above.iter().flat_map(|(_, cpus)| self.sorted(cpus, level)).collect()
    }

    /// Takes pieces that nobody has a part of, as long as that much is needed.
    fn take_whole(&mut self, level: Level) {
        for (_, cpus) in self.within(level) {
            if self.needed >= cpus.len() && self.machine.whole(&cpus, level) == cpus {
                self.take(&cpus);
            }
        }
    }

    /// Takes what is missing out of as few caches as there can be.
    fn take_caches(&mut self) {
        for (_, cpus) in self.within(Level::Cache) {
            self.take_whole(Level::Cache);
            if self.needed == 0 {
                return;
            }
            let cpus = cpus.and(&self.free);
            let cores = self.machine.groups(&cpus, Level::Core);
            let threads = self.machine.per_core().max(1);
            // cores that others have a part of are among them, and then there may be too few
            let some = cores.values().take(self.needed.div_ceil(threads));
            let mut found: Vec<usize> = some.flat_map(CpuSet::iter).collect();
            if threads > 1 && !self.needed.is_multiple_of(2) && found.len() > self.needed {
                // the last core is shared with somebody else
                found.sort_unstable();
                found.pop();
            }
            if found.len() == self.needed {
                self.take(&found.into_iter().collect());
                return;
            }
        }
    }

    fn take_threads(&mut self, spread: bool) {
        let order = if spread { self.within(Level::Socket) } else { self.within(Level::Core) };
        let some: CpuSet = order.iter().flat_map(|(_, cpus)| cpus.iter()).take(self.needed).collect();
        self.take(&some);
    }
}

fn packed(
    machine: &Machine,
    free: &CpuSet,
    count: usize,
    spread: bool,
    caches: bool,
) -> Result<CpuSet, String> {
    let mut pick = Pick { machine, free: free.clone(), taken: CpuSet::default(), needed: count };
    let (outer, inner) = pick.levels();
    pick.take_whole(outer);
    pick.take_whole(inner);
    if caches && pick.needed > 0 {
        pick.take_caches();
    }
    if !spread {
        pick.take_whole(Level::Core);
    }
    pick.take_threads(spread);
    if pick.needed == 0 { Ok(pick.taken) } else { Err("failed to allocate cpus".to_owned()) }
}

/// How uneven the nodes are.
#[allow(clippy::cast_precision_loss, reason = "processors are few")]
fn deviation(left: &[usize]) -> f64 {
    let count = left.len().max(1) as f64;
    // rounded, so that what is equal is found equal
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    let mean = rounded(left.iter().sum::<usize>() as f64 / count);
    let sum: f64 = left.iter().map(|value| (*value as f64 - mean).powi(2)).sum();
    rounded((sum / count).sqrt())
}

/// Calls `each` with every choice of `size` of `from` numbers, until it says that that is enough.
fn choices(from: usize, size: usize, each: &mut impl FnMut(&[usize]) -> bool) {
    fn go(
        next: usize,
        from: usize,
        size: usize,
        chosen: &mut Vec<usize>,
        each: &mut impl FnMut(&[usize]) -> bool,
    ) -> bool {
        if chosen.len() == size {
            return each(chosen);
        }
        for at in next..from {
            chosen.push(at);
            let enough = go(at + 1, from, size, chosen, each);
            chosen.pop();
            if enough {
                return true;
            }
        }
        false
    }
    go(0, from, size, &mut Vec::with_capacity(size), each);
}

/// Takes `count` in groups of `group`, the same number from each of as few NUMA nodes as can give that; what is left
/// over comes from those of them that make all nodes most even. None where no nodes can.
fn distributed(machine: &Machine, free: &CpuSet, count: usize, group: usize, spread: bool) -> Option<CpuSet> {
    let pick = Pick { machine, free: free.clone(), taken: CpuSet::default(), needed: count };
    let nodes: Vec<CpuSet> = pick.within(Level::Node).into_iter().map(|(_, cpus)| cpus).collect();
    let groups = count / group;
    let per_node = machine.cpus.len().div_ceil(group).div_ceil(machine.count(Level::Node).max(1)).max(1);
    for size in groups.div_ceil(per_node)..=groups.min(nodes.len()) {
        let each = (count / size / group) * group;
        let over = count - each * size;
        // how even, the nodes, and those of them that give one more group
        let mut best: Option<(f64, Vec<usize>, Vec<usize>)> = None;
        choices(nodes.len(), size, &mut |chosen| {
            let can: usize = chosen.iter().map(|at| nodes[*at].len() / group * group).sum();
            if can < count || chosen.iter().any(|at| nodes[*at].len() < each) {
                return false;
            }
            let mut left: Vec<usize> = nodes.iter().map(CpuSet::len).collect();
            chosen.iter().for_each(|at| left[*at] -= each);
            let more: Vec<usize> = chosen.iter().copied().filter(|at| left[*at] >= group).collect();
            let mut consider = |even: f64, giving: Vec<usize>| {
                if best.as_ref().is_none_or(|(known, ..)| even < *known) {
                    best = Some((even, chosen.to_vec(), giving));
                }
            };
            if over == 0 {
                consider(deviation(&left), Vec::new());
            } else {
                // from as many as can be, unless fewer that give more leave all more even
                for givers in (1..=(over / group).min(more.len())).rev() {
                    choices(more.len(), givers, &mut |some| {
                        let some: Vec<usize> = some.iter().map(|at| more[*at]).collect();
                        if let Some((left, giving)) = give(&left, &some, over, group) {
                            consider(deviation(&left), giving);
                        }
                        false
                    });
                }
            }
            best.as_ref().is_some_and(|(even, ..)| *even == 0.0)
        });
        let Some((_, chosen, giving)) = best else { continue };
        let mut taken = CpuSet::default();
        let steps = chosen.into_iter().map(|at| (at, each)).chain(giving.into_iter().map(|at| (at, group)));
        for (at, amount) in steps.filter(|(_, amount)| *amount > 0) {
            taken = taken.union(&packed(machine, &nodes[at].minus(&taken), amount, spread, false).ok()?);
        }
        return Some(taken);
    }
    None
}

/// Takes `over` in groups from `some` in turn: what is left of all, and who gave, once per group.
fn give(left: &[usize], some: &[usize], mut over: usize, group: usize) -> Option<(Vec<usize>, Vec<usize>)> {
    let (mut left, mut giving) = (left.to_vec(), Vec::new());
    while over > 0 {
        let before = over;
        for at in some {
            if over > 0 && left[*at] >= group {
                left[*at] -= group;
                over -= group;
                giving.push(*at);
            }
        }
        if over == before {
            return None;
        }
    }
    Some((left, giving))
}

#[cfg(test)]
mod tests {
    use super::super::machine::tests::machine;
    use super::*;

    /// Sockets, nodes per socket, cores per node, threads per core.
    const ONE: [usize; 4] = [1, 1, 4, 2];
    const TWO: [usize; 4] = [2, 1, 4, 2];
    /// Two sockets of two nodes each.
    const FOUR: [usize; 4] = [2, 2, 4, 2];

    fn check(shape: [usize; 4], free: &str, count: usize, options: &str, expected: &str) {
        let has = |name: &str| options.split(' ').any(|option| option == name);
        let options = CpuOptions {
            full_cores_only: has("full"),
            distribute_across_numa: has("numa"),
            distribute_across_cores: has("spread"),
            prefer_caches: has("caches"),
            ..CpuOptions::default()
        };
        let found = take(&machine(shape, 0), &CpuSet::parse(free).unwrap(), count, &options);
        let found = found.map_or_else(|why| why, |cpus| cpus.to_string());
        assert_eq!(found, expected, "{count} of {free} on {shape:?} with {options:?}");
    }

    #[test]
    fn packed_requests_take_whole_pieces_and_leave_the_largest() {
        // threads of a core: 0 and 4, 1 and 5, ...
        check(ONE, "0-7", 0, "", "");
        check(ONE, "0-7", 1, "", "0");
        check(ONE, "0-7", 2, "", "0,4");
        check(ONE, "0-7", 3, "", "0-1,4");
        check(ONE, "0-7", 8, "", "0-7");
        check(ONE, "0-7", 9, "", "not enough cpus available to satisfy request: requested=9, available=8");
        // a core that is broken already is finished first
        check(ONE, "1-7", 1, "", "4");
        check(ONE, "1-7", 2, "", "1,5");
        // two sockets: 0-3,8-11 and 4-7,12-15
        check(TWO, "0-15", 8, "", "0-3,8-11");
        check(TWO, "0-15", 10, "", "0-4,8-12");
        // the first is no longer whole, so that the second goes
        check(TWO, "1-15", 8, "", "4-7,12-15");
        // and single cores come from where least is left
        check(TWO, "2-15", 2, "", "2,10");
        check(FOUR, "0-31", 16, "", "0-7,16-23");
        check(FOUR, "0-31", 8, "", "0-3,16-19");
        check(FOUR, "0-31", 4, "", "0-1,16-17");
    }

    #[test]
    fn options_spread_over_nodes_cores_and_caches() {
        check(TWO, "0-15", 10, "numa", "0-2,4-6,8-9,12-13");
        check(TWO, "0-15", 4, "numa", "0-1,8-9");
        check(TWO, "0-15", 12, "numa full", "0-2,4-6,8-10,12-14");
        // more than a node has, in whole cores: three from one and two from the other
        check(TWO, "0-15", 10, "numa full", "0-2,4-5,8-10,12-13");
        check(FOUR, "0-31", 12, "numa", "0-2,4-6,16-18,20-22");
        // nodes that cannot give the same number
        check(TWO, "0-4,8-11", 9, "numa", "0-4,8-11");
        // threads of different cores
        check(ONE, "0-7", 4, "spread", "0-3");
        check(ONE, "0-7", 5, "spread", "0-4");
        // one cache per node: what fits into one is not spread over two
        check(FOUR, "1-15,17-31", 6, "caches", "1-3,17-19");
        check(FOUR, "2-31", 6, "caches", "4-6,20-22");
        // cores are taken as they come: what others have a part of gives one thread, or too few
        check(ONE, "1-7", 1, "caches", "4");
        check(ONE, "1-7", 2, "caches", "1,5");
        check(ONE, "1-7", 3, "caches", "1,4-5");
        check(FOUR, "1-31", 6, "caches", "4-6,20-22");
        check(FOUR, "2-31", 3, "caches", "4-5,20");
        // two more from one node, where that leaves all with as much
        check(FOUR, "0-11,16-17,20-21,24-27", 17, "numa", "0-2,4-6,8-11,16-17,20-21,24-26");
    }
}
