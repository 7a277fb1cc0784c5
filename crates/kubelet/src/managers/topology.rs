//! Where on the machine a container's resources should come from: those who give resources say which sets of NUMA nodes
//! would do, and a policy decides for one.
//!
//! Rule: Kubernetes documentation, "Control Topology Management Policies on a node".

use super::machine::Machine;
use super::options::TopologyOptions;

/// A set of NUMA nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mask(u64);

impl Mask {
    /// Most nodes a mask has room for.
    pub const MOST: usize = 64;

    /// Of some nodes; what has no room is left out.
    pub fn of(nodes: impl IntoIterator<Item = usize>) -> Self {
        Self(nodes.into_iter().filter(|node| *node < Self::MOST).fold(0, |mask, node| mask | 1 << node))
    }

    /// The nodes, in order.
    pub fn nodes(self) -> impl Iterator<Item = usize> {
        (0..Self::MOST).filter(move |node| self.has(*node))
    }

    /// Whether a node is one of them.
    pub fn has(self, node: usize) -> bool {
        node < Self::MOST && self.0 & 1 << node != 0
    }

    /// How many.
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Those of both.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of the other are among these.
    pub fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Fewer nodes, or as many with smaller numbers.
    pub fn narrower(self, other: Self) -> bool {
        (self.count(), self.0) < (other.count(), other.0)
    }
}

/// Most sets of nodes that are tried: all of those of 16 nodes.
const MASKS: usize = 1 << 16;

/// All sets of some of `nodes`: the smallest first. On a machine with very many nodes the larger sets are left out, but for
/// that of all nodes: nothing else would end.
pub fn masks(nodes: &[usize]) -> Vec<Mask> {
    let mut found = Vec::new();
    for size in 1..=nodes.len() {
        if !extend(nodes, size, Mask::default(), &mut found) {
            found.push(Mask::of(nodes.iter().copied()));
            break;
        }
    }
    found
}

/// Whether there was room for all sets of that size.
fn extend(nodes: &[usize], size: usize, mask: Mask, found: &mut Vec<Mask>) -> bool {
    if size == 0 {
        let room = found.len() < MASKS;
        if room {
            found.push(mask);
        }
        return room;
    }
    let mut each = nodes.iter().enumerate();
    each.all(|(at, node)| extend(&nodes[at + 1..], size - 1, Mask(mask.0 | Mask::of([*node]).0), found))
}

/// Nodes that would do; `None`: any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hint {
    /// The nodes.
    pub mask: Option<Mask>,
    /// No fewer nodes could do.
    pub preferred: bool,
}

/// What one resource would like: `None`: whatever; nothing in it: there is no way.
pub type Wishes = Option<Vec<Hint>>;

/// `topologyManagerPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// Nobody is asked.
    #[default]
    None,
    /// The best there is.
    BestEffort,
    /// No pod that could be nearer on an empty machine.
    Restricted,
    /// No pod that needs more than one node.
    SingleNumaNode,
}

/// What is decided, and whether the pod may run.
pub fn decide(
    machine: &Machine,
    policy: Policy,
    options: &TopologyOptions,
    wishes: Vec<Wishes>,
) -> (Hint, bool) {
    if policy == Policy::None {
        return (Hint::default(), true);
    }
    let all = Mask::of(machine.nodes.keys().copied());
    let lists = wishes.into_iter().map(|wish| match wish {
        None => vec![Hint { mask: None, preferred: true }],
        Some(hints) if hints.is_empty() => vec![Hint { mask: None, preferred: false }],
        Some(hints) => hints,
    });
    let single = policy == Policy::SingleNumaNode;
    let near = |hint: &Hint| hint.preferred && hint.mask.is_none_or(|mask| mask.count() == 1);
    let lists: Vec<Vec<Hint>> =
        lists.map(|list| list.into_iter().filter(|hint| !single || near(hint)).collect()).collect();
    let closest = options.prefer_closest && !single;
    let mut best = merge(machine, all, &lists, closest);
    if single && best.mask == Some(all) {
        best.mask = None;
    }
    (best, policy == Policy::BestEffort || best.preferred)
}

/// Takes one hint of each list so that the nodes that all have in common are the best ones.
fn merge(machine: &Machine, all: Mask, lists: &[Vec<Hint>], closest: bool) -> Hint {
    // what choices so far have in common, the first nodes chosen, and whether all prefer it; each once, since otherwise
    // there are as many as the product of all lists
    let mut merged: Vec<(Mask, Option<Mask>, bool)> = vec![(all, None, true)];
    for list in lists {
        let mut next = Vec::new();
        for (mask, first, preferred) in &merged {
            for hint in list {
                let mut preferred = *preferred && hint.preferred;
                let (mut mask, mut first) = (*mask, *first);
                if let Some(nodes) = hint.mask {
                    preferred &= *first.get_or_insert(nodes) == nodes;
                    mask = mask.and(nodes);
                }
                let found = (mask, first, preferred);
                if mask.count() > 0 && !next.contains(&found) {
                    next.push(found);
                }
            }
        }
        merged = next;
    }
    // what the most demanding resource needs at least
    let needed =
        lists.iter().filter_map(|list| list.iter().filter_map(|hint| hint.mask).map(Mask::count).min());
    let needed = needed.max().unwrap_or(0);
    let candidates = merged.into_iter().map(|(mask, _, preferred)| (mask, preferred));
    let best = candidates
        .reduce(|best, next| if better(machine, best, next, needed, closest) { next } else { best });
    let (mask, preferred) = best.unwrap_or((all, false));
    Hint { mask: Some(mask), preferred }
}

/// Whether `next` is better than `best`.
fn better(machine: &Machine, best: (Mask, bool), next: (Mask, bool), needed: usize, closest: bool) -> bool {
    let fits = || next.0 != best.0 && fitter(machine, next.0, best.0, closest);
    let (old, new) = (best.0.count(), next.0.count());
    match (best.1, next.1) {
        (false, true) => true,
        (true, false) => false,
        (true, true) => fits(),
        // neither: as many nodes as are needed, no more, and rather too few than too many
        (false, false) if old > needed => fits(),
        (false, false) if old == needed => new == needed && fits(),
        (false, false) if new > needed => false,
        (false, false) if new == old => fits(),
        (false, false) => new > old,
    }
}

fn fitter(machine: &Machine, one: Mask, other: Mask, closest: bool) -> bool {
    if !closest || one.count() != other.count() {
        return one.narrower(other);
    }
    let (near, far) = (distance(machine, one), distance(machine, other));
    if near == far { one.0 < other.0 } else { near < far }
}

/// The sum of the distances between the nodes.
fn distance(machine: &Machine, mask: Mask) -> u64 {
    let order: Vec<usize> = machine.nodes.keys().copied().collect();
    let at = |node: usize| order.iter().position(|known| *known == node);
    let pairs = mask.nodes().flat_map(|from| mask.nodes().map(move |to| (from, to)));
    pairs
        .filter_map(|(from, to)| machine.nodes.get(&from)?.distances.get(at(to)?).copied())
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::super::machine::tests::machine;
    use super::*;

    /// `01+` is nodes 0 and 1, preferred; `0` node 0, not preferred; `+` any; lists by resource, `-` for no way.
    fn wishes(text: &str) -> Vec<Wishes> {
        let hint = |text: &str| {
            let nodes: Vec<usize> =
                text.chars().filter_map(|c| c.to_digit(10)).map(|digit| digit as usize).collect();
            let mask = (!nodes.is_empty()).then(|| Mask::of(nodes));
            Hint { mask, preferred: text.ends_with('+') }
        };
        let list = |text: &str| match text {
            "any" => None,
            "-" => Some(Vec::new()),
            hints => Some(hints.split(' ').map(hint).collect()),
        };
        text.split(';').map(|part| list(part.trim())).collect()
    }

    fn check(policy: Policy, text: &str, expected: &str) {
        let machine = machine([2, 2, 2, 1], 0);
        let closest = TopologyOptions { prefer_closest: text.starts_with("closest "), ..Default::default() };
        let text = text.trim_start_matches("closest ");
        let (hint, admitted) = decide(&machine, policy, &closest, wishes(text));
        let nodes = hint
            .mask
            .map_or("any".to_owned(), |mask| mask.nodes().map(|node| node.to_string()).collect::<String>());
        let found = format!(
            "{nodes}{}{}",
            if hint.preferred { "+" } else { "" },
            if admitted { "" } else { " refused" }
        );
        assert_eq!(found, expected, "{policy:?}: {text}");
    }

    #[test]
    fn what_all_like_best_is_chosen() {
        use Policy::{BestEffort, None, Restricted, SingleNumaNode};
        check(None, "-", "any");
        check(BestEffort, "any", "0123+");
        check(BestEffort, "0+ 1+; 1+", "1+");
        check(BestEffort, "0+ 1+ 01; any; 0+ 1+", "0+");
        // not the same nodes: nobody's wish, but near
        check(BestEffort, "0+; 01+", "0");
        check(Restricted, "0+; 01+", "0 refused");
        check(BestEffort, "0+; 1+", "0123");
        check(Restricted, "0+; 1+", "0123 refused");
        check(BestEffort, "-; 2+", "2");
        check(Restricted, "-; 2+", "2 refused");
        check(Restricted, "01+ 23+; 01+ 23+ 0123", "01+");
        check(SingleNumaNode, "01+ 23+; any", "any refused");
        check(SingleNumaNode, "any; any", "any+");
        check(SingleNumaNode, "0 2+; 2+ 3+; any", "2+");
        check(SingleNumaNode, "0; any", "any refused");
        // of what nobody prefers, as many nodes as the most demanding needs
        check(BestEffort, "0 1 01; 01 23", "01");
        check(BestEffort, "02 13; 03 12", "0");
    }

    #[test]
    fn near_nodes_are_chosen_where_that_is_wished() {
        check(Policy::BestEffort, "02+ 23+", "02+");
        check(Policy::BestEffort, "closest 02+ 23+", "23+");
        check(Policy::BestEffort, "closest 01+ 23+", "01+");
        check(Policy::BestEffort, "closest 3+ 23+", "3+");
    }

    #[test]
    fn very_many_nodes_are_tried_as_far_as_that_ends() {
        let all = |count: usize| masks(&(0..count).collect::<Vec<_>>());
        assert_eq!(all(3).iter().map(|mask| mask.0).collect::<Vec<_>>(), [1, 2, 4, 3, 5, 6, 7]);
        assert_eq!(all(16).len(), (1 << 16) - 1);
        let many = all(64);
        assert_eq!(many.len(), MASKS + 1);
        assert_eq!((many[0].count(), many[64].count(), many[MASKS - 1].count()), (1, 2, 4));
        assert_eq!(many[MASKS].count(), 64);
    }

    #[test]
    fn many_hints_do_not_multiply() {
        let all: Vec<Hint> = masks(&[0, 1, 2, 3])
            .into_iter()
            .map(|mask| Hint { mask: Some(mask), preferred: false })
            .collect();
        let machine = machine([2, 2, 1, 1], 0);
        let lists = vec![Some(all); 24];
        let (hint, _) = decide(&machine, Policy::BestEffort, &TopologyOptions::default(), lists);
        assert_eq!(hint.mask, Some(Mask::of([0])));
    }
}
