//! From demand and snapshot to a node. Verdicts are remembered per demand and node: after a pod is placed only its node
//! is looked at again, so the next equal pod costs one evaluation and one pass over an array.
use std::collections::HashMap;

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::filter::{self, Rejection};
use crate::pod_info::Demand;
use crate::score::{self, COUNT, Raw};
use crate::snapshot::Snapshot;

/// Demands remembered at a time.
const REMEMBERED: usize = 64;

enum Memo {
    Unknown,
    Fits(Raw),
    Rejected(Box<Rejection>),
}

struct Evaluation {
    /// Slots of the snapshot.
    memos: Vec<Memo>,
    version: u64,
    used: u64,
}

/// How a pod fared.
#[derive(Debug)]
pub enum Placement {
    /// The slot of the chosen node.
    Node(usize),
    /// No node fits; why, node by node.
    Nowhere(Vec<Rejection>),
    /// There are no nodes.
    NoNodes,
}

/// Chooses nodes.
pub struct Evaluator {
    known: HashMap<u64, Evaluation>,
    /// Where the next search begins: nodes are looked at in turn.
    next: usize,
    clock: u64,
    random: SmallRng,
    percentage: i32,
}

/// How many fitting nodes a search gathers before it scores them: all up to 100 nodes; beyond that a share that shrinks
/// with size, from 50 % to 5 %, but never fewer than 100. Rule: `percentageOfNodesToScore`.
fn enough(nodes: usize, percentage: i32) -> usize {
    const FEW: usize = 100;
    if nodes < FEW || percentage >= 100 {
        return nodes;
    }
    let share = match percentage {
        p if p > 0 => usize::try_from(p).unwrap_or(0),
        _ => 50_usize.saturating_sub(nodes / 125).max(5),
    };
    (nodes * share / 100).max(FEW)
}

impl Evaluator {
    /// `percentage` 0 means adaptive.
    pub fn new(random: SmallRng, percentage: i32) -> Self {
        Self { known: HashMap::new(), next: 0, clock: 0, random, percentage }
    }

    /// Chooses a node for `demand`; among equally good ones at random.
    pub fn place(&mut self, demand: &Demand, snapshot: &Snapshot) -> Placement {
        let nodes = snapshot.order();
        if nodes.is_empty() {
            return Placement::NoNodes;
        }
        self.clock += 1;
        if self.known.len() >= REMEMBERED && !self.known.contains_key(&demand.id) {
            let oldest = self.known.iter().min_by_key(|(_, e)| e.used).map(|(id, _)| *id);
            oldest.map(|id| self.known.remove(&id));
        }
        let evaluation =
            self.known.entry(demand.id).or_insert(Evaluation { memos: Vec::new(), version: 0, used: 0 });
        evaluation.used = self.clock;
        evaluation.refresh(snapshot);

        let wanted = enough(nodes.len(), self.percentage);
        let start = self.next % nodes.len();
        let (before, after) = nodes.split_at(start);
        let mut fitting: Vec<(usize, Raw)> = Vec::with_capacity(wanted);
        let mut looked = 0;
        for &slot in after.iter().chain(before) {
            looked += 1;
            let memo = &mut evaluation.memos[slot];
            if let Memo::Unknown = memo {
                let node = snapshot.node(slot);
                *memo = match filter::check(demand, node) {
                    Ok(()) => Memo::Fits(score::raw(demand, node)),
                    Err(rejection) => Memo::Rejected(Box::new(rejection)),
                };
            }
            if let Memo::Fits(raw) = memo {
                fitting.push((slot, *raw));
                if fitting.len() >= wanted {
                    break;
                }
            }
        }
        self.next = (start + looked) % nodes.len();
        if fitting.is_empty() {
            let why = nodes.iter().filter_map(|slot| match &evaluation.memos[*slot] {
                Memo::Rejected(rejection) => Some((**rejection).clone()),
                _ => None,
            });
            return Placement::Nowhere(why.collect());
        }
        Placement::Node(best(&fitting, &mut self.random))
    }
}

impl Evaluation {
    /// Forgets what was said about nodes that changed since.
    fn refresh(&mut self, snapshot: &Snapshot) {
        match snapshot.changed_since(self.version) {
            Some(changed) if !self.memos.is_empty() => {
                self.memos.resize_with(snapshot.slots(), || Memo::Unknown);
                for slot in changed {
                    self.memos[slot] = Memo::Unknown;
                }
            }
            _ => {
                self.memos.clear();
                self.memos.resize_with(snapshot.slots(), || Memo::Unknown);
            }
        }
        self.version = snapshot.version();
    }
}

/// The highest total; a reservoir of one gives equals the same chance.
fn best(fitting: &[(usize, Raw)], random: &mut SmallRng) -> usize {
    let mut highest: Raw = [0; COUNT];
    for (_, raw) in fitting {
        for (top, value) in highest.iter_mut().zip(raw) {
            *top = (*top).max(*value);
        }
    }
    let (mut chosen, mut top, mut equals) = (fitting[0].0, i64::MIN, 0_u32);
    for (slot, raw) in fitting {
        let total = score::total(raw, &highest);
        if total > top {
            (chosen, top, equals) = (*slot, total, 1);
        } else if total == top {
            equals += 1;
            if random.random_range(0..equals) == 0 {
                chosen = *slot;
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::enough;

    #[test]
    fn the_share_of_nodes_scored_shrinks_with_size() {
        let got: Vec<_> = [5, 99, 100, 1000, 5000, 10_000].iter().map(|n| enough(*n, 0)).collect();
        assert_eq!(got, [5, 99, 100, 420, 500, 500]);
        assert_eq!((enough(1000, 100), enough(1000, 20), enough(300, 10)), (1000, 200, 100));
    }
}
