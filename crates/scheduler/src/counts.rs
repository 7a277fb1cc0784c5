//! Pods counted by domain, for one pod's relations to others: what PodTopologySpread and InterPodAffinity decide by.
//!
//! Every node has a share in the counts. When a node changes, its old share is taken out and its new one put in, so that
//! a pod placed since the last look costs one node's pods, not the cluster's. The same step tries out a node with other
//! pods on it (preemption, nominated pods).
use std::collections::HashMap;
use std::sync::Arc;

use crate::filter::{node_affinity, taint_toleration};
use crate::pod_info::PodInfo;
use crate::relations::Constraint;
use crate::snapshot::{NodeInfo, Snapshot};

/// The node lacks the label.
const NONE: u32 = u32::MAX;
/// The node does not take part in a constraint.
const OUTSIDE: i64 = -1;
/// Here a domain is a node.
pub(crate) const HOSTNAME: &str = "kubernetes.io/hostname";

/// How terms of pods that are there count in scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AffinityArgs {
    /// Weight of a required affinity term of a pod that is there, when the new pod is meant by it.
    pub hard_weight: i64,
    /// Preferred terms of pods that are there count only for a new pod with preferred terms of its own.
    pub ignore_preferred_of_existing: bool,
}

/// The domains of one topology key.
#[derive(Default)]
struct Key {
    name: Arc<str>,
    values: HashMap<Arc<str>, u32>,
    of_slot: Vec<u32>,
    /// By domain: pods whose anti-affinity keeps the new pod out.
    blocked: Vec<i64>,
    /// By domain: sum of the weights of preferred terms.
    score: Vec<i64>,
    /// By domain: pods that the new pod's required affinity speaks of.
    wanted: Vec<i64>,
}

impl Key {
    fn domain(&mut self, value: Option<&str>) -> u32 {
        let Some(value) = value else { return NONE };
        if let Some(known) = self.values.get(value) {
            return *known;
        }
        let Ok(new) = u32::try_from(self.blocked.len()) else { return NONE };
        self.values.insert(value.into(), new);
        self.blocked.push(0);
        self.score.push(0);
        self.wanted.push(0);
        new
    }
}

/// Counts by domain of one term or constraint.
#[derive(Default)]
struct Tally {
    key: usize,
    /// By domain: pods, and nodes that take part.
    domains: Vec<(i64, u32)>,
    /// The emptiest domain's pods and the number of domains; of hard constraints.
    lowest: Option<(i64, usize)>,
}

impl Tally {
    fn change(&mut self, domain: u32, pods: i64, nodes: i32) {
        if domain == NONE {
            return;
        }
        let at = domain as usize;
        if self.domains.len() <= at {
            self.domains.resize(at + 1, (0, 0));
        }
        self.domains[at].0 += pods;
        self.domains[at].1 = self.domains[at].1.saturating_add_signed(nodes);
        self.lowest = None;
    }

    fn pods(&self, domain: u32) -> i64 {
        self.domains.get(domain as usize).map_or(0, |d| d.0)
    }

    fn lowest(&mut self) -> (i64, usize) {
        if let Some(known) = self.lowest {
            return known;
        }
        let (mut low, mut number) = (i64::MAX, 0);
        for (pods, _) in self.domains.iter().filter(|d| d.1 > 0) {
            low = low.min(*pods);
            number += 1;
        }
        let found = (if number == 0 { 0 } else { low }, number);
        self.lowest = Some(found);
        found
    }
}

/// What one node adds to the counts.
#[derive(Default, Clone)]
struct Share {
    /// Hard constraints, soft ones, required affinity, terms of required anti-affinity: in this order.
    pods: Vec<i64>,
    /// Key, blocked, score.
    others: Vec<(usize, i64, i64)>,
}

/// Why a node is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objection {
    /// A label that a spread constraint needs is missing.
    SpreadLabel,
    /// The domain would be too far ahead.
    Spread,
    /// Required affinity.
    Affinity,
    /// Required anti-affinity.
    AntiAffinity,
    /// The anti-affinity of a pod that is there.
    ExistingAntiAffinity,
}

/// The counts for one pod.
pub struct Counts {
    args: AffinityArgs,
    keys: Vec<Key>,
    hard: Vec<Tally>,
    soft: Vec<Tally>,
    /// Keys of the required affinity terms.
    wanted: Vec<usize>,
    wanted_total: i64,
    anti: Vec<Tally>,
    blocked_total: i64,
    shares: Vec<Share>,
    version: u64,
    epoch: u64,
}

impl Counts {
    /// Counts of nothing yet.
    pub fn new(of: &PodInfo, args: AffinityArgs) -> Self {
        let mut this = Self {
            args,
            keys: Vec::new(),
            hard: Vec::new(),
            soft: Vec::new(),
            wanted: Vec::new(),
            wanted_total: 0,
            anti: Vec::new(),
            blocked_total: 0,
            shares: Vec::new(),
            version: 0,
            epoch: 0,
        };
        this.clear(of);
        this
    }

    fn clear(&mut self, of: &PodInfo) {
        self.keys.clear();
        self.shares.clear();
        (self.wanted_total, self.blocked_total) = (0, 0);
        let names = |list: &[Constraint]| list.iter().map(|c| c.topology_key.clone()).collect::<Vec<_>>();
        self.hard = self.tallies(names(&of.spread.hard));
        self.soft = self.tallies(names(&of.spread.soft));
        let terms = |list: &[crate::relations::Term]| list.iter().map(|t| t.topology_key.clone()).collect();
        self.wanted = self.tallies(terms(&of.relations.affinity)).iter().map(|t| t.key).collect();
        self.anti = self.tallies(terms(&of.relations.anti_affinity));
    }

    fn tallies(&mut self, names: Vec<Arc<str>>) -> Vec<Tally> {
        names.iter().map(|name| Tally { key: self.key(name, None), ..Tally::default() }).collect()
    }

    /// The key's index; a new one learns the domains of the snapshot's nodes.
    fn key(&mut self, name: &Arc<str>, snapshot: Option<&Snapshot>) -> usize {
        if let Some(at) = self.keys.iter().position(|k| k.name == *name) {
            return at;
        }
        let mut key = Key { name: name.clone(), ..Key::default() };
        if let Some(snapshot) = snapshot {
            key.of_slot.resize(snapshot.slots(), NONE);
            for &slot in snapshot.order() {
                key.of_slot[slot] = key.domain(snapshot.node(slot).label(name));
            }
        }
        self.keys.push(key);
        self.keys.len() - 1
    }

    /// Takes in what changed since the last look.
    pub fn refresh(&mut self, of: &PodInfo, snapshot: &Snapshot) {
        let changed = (self.epoch == snapshot.epoch() && !self.shares.is_empty())
            .then(|| snapshot.changed_since(self.version).map(|c| c.collect::<Vec<_>>()))
            .flatten();
        self.shares_for(snapshot.slots());
        match changed {
            Some(mut slots) => {
                slots.sort_unstable();
                slots.dedup();
                for slot in slots {
                    self.replace(slot, snapshot.node(slot), of, snapshot);
                }
            }
            None => {
                self.clear(of);
                self.shares_for(snapshot.slots());
                for &slot in snapshot.order() {
                    self.replace(slot, snapshot.node(slot), of, snapshot);
                }
            }
        }
        (self.version, self.epoch) = (snapshot.version(), snapshot.epoch());
    }

    fn shares_for(&mut self, slots: usize) {
        self.shares.resize(slots.max(self.shares.len()), Share::default());
        for key in &mut self.keys {
            key.of_slot.resize(slots.max(key.of_slot.len()), NONE);
        }
    }

    /// The slot's node is now as `node` says.
    pub fn replace(&mut self, slot: usize, node: &NodeInfo, of: &PodInfo, snapshot: &Snapshot) {
        let old = std::mem::take(&mut self.shares[slot]);
        self.apply(slot, &old, -1);
        for key in &mut self.keys {
            let domain = key.domain(node.label(&key.name.clone()));
            key.of_slot[slot] = domain;
        }
        if node.node.is_none() {
            return;
        }
        let new = self.share(node, of, snapshot);
        self.apply(slot, &new, 1);
        self.shares[slot] = new;
    }

    fn apply(&mut self, slot: usize, share: &Share, sign: i64) {
        if share.pods.is_empty() && share.others.is_empty() {
            return;
        }
        let nodes = if sign > 0 { 1 } else { -1 };
        let (spread, rest) = share.pods.split_at(self.hard.len() + self.soft.len());
        for (tally, pods) in self.hard.iter_mut().chain(&mut self.soft).zip(spread) {
            if *pods != OUTSIDE {
                tally.change(self.keys[tally.key].of_slot[slot], sign * pods, nodes);
            }
        }
        if let Some((wanted, anti)) = rest.split_first() {
            for key in self.wanted.iter().filter(|_| *wanted != 0) {
                let key = &mut self.keys[*key];
                if let Some(count) = key.wanted.get_mut(key.of_slot[slot] as usize) {
                    *count += sign * wanted;
                    self.wanted_total += sign * wanted;
                }
            }
            for (tally, pods) in self.anti.iter_mut().zip(anti) {
                tally.change(self.keys[tally.key].of_slot[slot], sign * pods, nodes);
            }
        }
        for (key, blocked, score) in &share.others {
            let key = &mut self.keys[*key];
            let at = key.of_slot[slot] as usize;
            if at < key.blocked.len() {
                key.blocked[at] += sign * blocked;
                key.score[at] += sign * score;
                self.blocked_total += sign * blocked;
            }
        }
    }

    fn share(&mut self, node: &NodeInfo, of: &PodInfo, snapshot: &Snapshot) -> Share {
        let (own, namespaces) = (&of.relations, snapshot.namespaces());
        let mut pods = Vec::with_capacity(self.hard.len() + self.soft.len() + 1 + self.anti.len());
        let has_all = |list: &[Constraint]| list.iter().all(|c| node.label(&c.topology_key).is_some());
        let count = |c: &Constraint| -> i64 {
            let groups = node.groups().iter().filter(|g| c.counts(&own.namespace, &g.relations));
            groups.map(|g| i64::from(g.alive)).sum()
        };
        let hard = has_all(&of.spread.hard);
        for c in &of.spread.hard {
            pods.push(if hard && takes_part(c, node, of) { count(c) } else { OUTSIDE });
        }
        let soft = of.spread.is_default || has_all(&of.spread.soft);
        for c in &of.spread.soft {
            // A node's own pods count whatever the policies say.
            let counted = &*c.topology_key == HOSTNAME || (soft && takes_part(c, node, of));
            pods.push(if counted { count(c) } else { OUTSIDE });
        }
        let total = |wanted: &dyn Fn(&crate::relations::Relations) -> bool| -> i64 {
            node.groups().iter().filter(|g| wanted(&g.relations)).map(|g| i64::from(g.total)).sum()
        };
        pods.push(if own.affinity.is_empty() { 0 } else { total(&|other| own.wants(other, namespaces)) });
        for term in &own.anti_affinity {
            pods.push(total(&|other| term.matches(other, namespaces)));
        }
        let mut others = Vec::new();
        let ignored = self.args.ignore_preferred_of_existing && own.preferred.is_empty();
        for group in node.groups() {
            let (there, number) = (&group.relations, i64::from(group.total));
            let mut add = |this: &mut Self, key: &Arc<str>, blocked: i64, score: i64| {
                others.push((this.key(key, Some(snapshot)), blocked * number, score * number));
            };
            for (weight, term) in own.preferred.iter().filter(|(_, t)| t.matches(there, namespaces)) {
                add(self, &term.topology_key, 0, *weight);
            }
            if !there.has_terms() {
                continue;
            }
            for term in there.anti_affinity.iter().filter(|t| t.matches(own, namespaces)) {
                add(self, &term.topology_key, 1, 0);
            }
            if self.args.hard_weight > 0 {
                let weight = self.args.hard_weight;
                for term in there.affinity.iter().filter(|t| t.matches(own, namespaces)) {
                    add(self, &term.topology_key, 0, weight);
                }
            }
            if !ignored {
                for (weight, term) in there.preferred.iter().filter(|(_, t)| t.matches(own, namespaces)) {
                    add(self, &term.topology_key, 0, *weight);
                }
            }
        }
        Share { pods, others }
    }

    fn domain(&self, key: usize, slot: usize) -> u32 {
        self.keys[key].of_slot[slot]
    }

    /// PodTopologySpread's filter.
    pub fn check_spread(&mut self, slot: usize, of: &PodInfo) -> Option<Objection> {
        for (tally, constraint) in self.hard.iter_mut().zip(&of.spread.hard) {
            let domain = self.keys[tally.key].of_slot[slot];
            if domain == NONE {
                return Some(Objection::SpreadLabel);
            }
            let (low, domains) = tally.lowest();
            let low = if domains < constraint.min_domains { 0 } else { low };
            let own = i64::from(constraint.counts_self(&of.relations));
            if tally.pods(domain) + own - low > constraint.max_skew {
                return Some(Objection::Spread);
            }
        }
        None
    }

    /// InterPodAffinity's filter.
    pub fn check_affinity(&self, slot: usize, of: &PodInfo, snapshot: &Snapshot) -> Option<Objection> {
        let mut all = true;
        for &key in &self.wanted {
            let domain = self.domain(key, slot);
            if domain == NONE {
                return Some(Objection::Affinity);
            }
            all &= self.keys[key].wanted[domain as usize] > 0;
        }
        if !all {
            // The first of a series that wants its own kind may go anywhere.
            let first = self.wanted_total == 0 && of.relations.wants(&of.relations, snapshot.namespaces());
            if !first {
                return Some(Objection::Affinity);
            }
        }
        if self.anti.iter().any(|t| {
            let domain = self.domain(t.key, slot);
            domain != NONE && t.pods(domain) > 0
        }) {
            return Some(Objection::AntiAffinity);
        }
        let blocks = |k: &Key| {
            k.of_slot[slot] != NONE && k.blocked.get(k.of_slot[slot] as usize).is_some_and(|n| *n > 0)
        };
        if self.blocked_total > 0 && self.keys.iter().any(blocks) {
            return Some(Objection::ExistingAntiAffinity);
        }
        None
    }

    /// InterPodAffinity's raw score of a node.
    pub fn affinity_score(&self, slot: usize) -> i64 {
        let of = |k: &Key| k.score.get(k.of_slot[slot] as usize).copied().unwrap_or(0);
        self.keys.iter().map(of).sum()
    }

    /// The weight of each soft constraint among these candidates: the more domains, the less one pod matters in each.
    pub fn spread_weights(&self, of: &PodInfo, candidates: &[usize]) -> Vec<f64> {
        let taking: Vec<usize> = candidates.iter().copied().filter(|s| !self.is_ignored(*s, of)).collect();
        let weight = |tally: &Tally| {
            let key = &self.keys[tally.key];
            let size = if &*key.name == HOSTNAME {
                taking.len()
            } else {
                let mut seen = vec![false; key.blocked.len()];
                let mut number = 0;
                for slot in &taking {
                    if let Some(seen) = seen.get_mut(key.of_slot[*slot] as usize)
                        && !*seen
                    {
                        *seen = true;
                        number += 1;
                    }
                }
                number
            };
            ((size + 2) as f64).ln()
        };
        self.soft.iter().map(weight).collect()
    }

    fn is_ignored(&self, slot: usize, of: &PodInfo) -> bool {
        !of.spread.is_default && self.soft.iter().any(|t| self.domain(t.key, slot) == NONE)
    }

    /// PodTopologySpread's raw score of a node: the lower the better. `None`: a label is missing, the worst.
    pub fn spread_score(&self, slot: usize, of: &PodInfo, weights: &[f64]) -> Option<i64> {
        if self.is_ignored(slot, of) {
            return None;
        }
        let mut sum = 0.0;
        for (i, (tally, constraint)) in self.soft.iter().zip(&of.spread.soft).enumerate() {
            let domain = self.domain(tally.key, slot);
            if domain == NONE {
                continue;
            }
            let pods = if &*constraint.topology_key == HOSTNAME {
                self.shares[slot].pods.get(self.hard.len() + i).map_or(0, |p| (*p).max(0))
            } else {
                tally.pods(domain)
            };
            sum += pods as f64 * weights[i] + (constraint.max_skew - 1) as f64;
        }
        Some(sum.round() as i64)
    }
}

/// Whether a constraint counts the node: its policies on the pod's node affinity and on taints.
fn takes_part(c: &Constraint, node: &NodeInfo, of: &PodInfo) -> bool {
    node.label(&c.topology_key).is_some()
        && (!c.honor_affinity || node_affinity::allows(&of.demand, node))
        && (!c.honor_taints || taint_toleration::tolerates_hard(&of.demand, node))
}
