//! From pod and snapshot to a node. Verdicts are remembered per demand and node: after a pod is placed only its node
//! is looked at again, so the next equal pod costs one evaluation and one pass over an array. What depends on other pods
//! is asked of counts that follow the same log ([`crate::counts`]).
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::counts::Counts;
use crate::filter::pod_relations::rejection;
use crate::filter::{
    self, DYNAMIC_RESOURCES, INTER_POD_AFFINITY, NODE_AFFINITY, POD_TOPOLOGY_SPREAD, Rejection,
};
use crate::pod_info::PodInfo;
use crate::profile::Profile;
use crate::score::{self, Raw};
use crate::snapshot::{NodeInfo, Snapshot};
use crate::volumes::needs::Refusal;
use crate::{devices, volumes};

/// Demands remembered at a time, and relations.
const REMEMBERED: usize = 64;

enum Memo {
    Unknown,
    Fits(Raw),
    Rejected(Arc<Rejection>),
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
    /// No node fits; why, node by node (by slot).
    Nowhere(Vec<(usize, Arc<Rejection>)>),
    /// There are no nodes.
    NoNodes,
    /// Its volumes keep it from every node.
    Refused(Refusal),
}

/// Nodes that fit, with what they score; not empty.
#[derive(Debug)]
pub struct Candidates {
    /// Slots.
    pub slots: Vec<usize>,
    raws: Vec<Raw>,
}

impl Candidates {
    /// Leaves those whose slot the function likes.
    pub fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let kept: Vec<bool> = self.slots.iter().map(|slot| keep(*slot)).collect();
        let mut flags = kept.iter().copied();
        self.slots.retain(|_| flags.next().unwrap_or(false));
        let mut flags = kept.iter().copied();
        self.raws.retain(|_| flags.next().unwrap_or(false));
    }
}

/// What filtering found.
#[derive(Debug)]
pub enum Filtered {
    /// Some nodes fit.
    Some(Candidates),
    /// None does; why, by slot.
    Nowhere(Vec<(usize, Arc<Rejection>)>),
    /// There are no nodes.
    NoNodes,
    /// Its volumes keep it from every node.
    Refused(Refusal),
}

/// What a pod asks of a node through objects of its own, and by name.
struct Asks {
    /// The only nodes in question; `None`: all are.
    named: Option<BTreeSet<String>>,
    volumes: Option<volumes::needs::Needs>,
    devices: Option<devices::needs::Needs>,
}

impl Asks {
    fn of(pod: &PodInfo, snapshot: &Snapshot, profile: &Profile) -> Result<Self, Refusal> {
        fn unless_off<T>(needs: Result<Option<T>, Refusal>, profile: &Profile) -> Result<Option<T>, Refusal> {
            match needs {
                Err(refusal) if !profile.runs(refusal.filter) => Ok(None),
                needs => needs,
            }
        }
        Ok(Self {
            named: unless_off(named(pod), profile)?,
            volumes: unless_off(volumes::needs::Needs::of(pod, snapshot.volumes()), profile)?,
            devices: unless_off(
                devices::needs::Needs::of(pod, snapshot.devices(), profile.devices_since()),
                profile,
            )?,
        })
    }

    fn check_name(&self, node: &NodeInfo) -> Result<(), Rejection> {
        match &self.named {
            Some(names) if !names.contains(&*node.name) => Err(not_named()),
            _ => Ok(()),
        }
    }

    fn check_volumes(
        &self,
        pod: &PodInfo,
        slot: usize,
        node: &NodeInfo,
        snapshot: &Snapshot,
        profile: &Profile,
    ) -> Result<(), Rejection> {
        self.volumes.as_ref().map_or(Ok(()), |needs| needs.check(pod, slot, node, snapshot, profile))
    }

    fn check_devices(
        &self,
        node: &NodeInfo,
        snapshot: &Snapshot,
        profile: &Profile,
    ) -> Result<(), Rejection> {
        match &self.devices {
            Some(needs) if profile.runs(DYNAMIC_RESOURCES) => needs.check(node, snapshot.devices()),
            _ => Ok(()),
        }
    }
}

/// The nodes that the pod's required affinity names, where every term of it does.
fn named(pod: &PodInfo) -> Result<Option<BTreeSet<String>>, Refusal> {
    let names = pod.demand.affinity.names();
    if names.as_ref().is_some_and(BTreeSet::is_empty) {
        let reason = "pod affinity terms conflict".to_owned();
        return Err(Refusal { filter: NODE_AFFINITY, reason, silent: false });
    }
    Ok(names.map(|names| names.into_iter().map(str::to_owned).collect()))
}

/// What is said of nodes that are not named.
fn not_named() -> Rejection {
    Rejection::new(NODE_AFFINITY, "node(s) didn't satisfy plugin(s) [NodeAffinity]", false)
}

impl Asks {
    /// How much the pod's claims like what they would get on the candidates.
    fn score_devices(&self, found: &mut Candidates, snapshot: &Snapshot, profile: &Profile) {
        let Some(needs) = &self.devices else { return };
        // A single candidate needs no score.
        if profile.weights[score::DYNAMIC_RESOURCES] == 0 || found.slots.len() < 2 {
            return;
        }
        for (slot, raw) in found.slots.iter().zip(&mut found.raws) {
            raw[score::DYNAMIC_RESOURCES] = needs.score(snapshot.node(*slot), snapshot.devices());
        }
    }
}

struct Remembered {
    counts: Counts,
    used: u64,
}

/// Chooses nodes by one profile.
pub struct Evaluator {
    profile: Profile,
    known: HashMap<u64, Evaluation>,
    /// By relations, spread and demand.
    counts: HashMap<(u64, u64, u64), Remembered>,
    /// Where the next search begins: nodes are looked at in turn.
    next: usize,
    clock: u64,
    random: SmallRng,
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

fn forget_oldest<K: Copy + Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>, used: impl Fn(&V) -> u64) {
    if map.len() >= REMEMBERED
        && let Some(oldest) = map.iter().min_by_key(|(_, v)| used(v)).map(|(k, _)| *k)
    {
        map.remove(&oldest);
    }
}

impl Evaluator {
    /// Decides by `profile`; among equals `random` does.
    pub fn new(random: SmallRng, profile: Profile) -> Self {
        Self { profile, known: HashMap::new(), counts: HashMap::new(), next: 0, clock: 0, random }
    }

    /// The profile it decides by.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Chooses a node for `pod`; among equally good ones at random.
    pub fn place(&mut self, pod: &PodInfo, snapshot: &Snapshot) -> Placement {
        match self.filter(pod, snapshot) {
            Filtered::NoNodes => Placement::NoNodes,
            Filtered::Refused(refusal) => Placement::Refused(refusal),
            Filtered::Nowhere(why) => Placement::Nowhere(why),
            Filtered::Some(candidates) => Placement::Node(self.choose(candidates, &[])),
        }
    }

    /// Whether one certain node takes the pod.
    pub fn fits(&mut self, pod: &PodInfo, slot: usize, snapshot: &Snapshot) -> Result<(), Arc<Rejection>> {
        let mut trial =
            self.trial(pod, snapshot).map_err(|r| Arc::new(Rejection::new(r.filter, &r.reason, false)))?;
        trial.check_with_nominated(slot, snapshot.node(slot)).map_err(Arc::new)
    }

    /// The nodes that take the pod, as many as are enough, with their raw scores.
    pub fn filter(&mut self, pod: &PodInfo, snapshot: &Snapshot) -> Filtered {
        let all = snapshot.order();
        if all.is_empty() {
            return Filtered::NoNodes;
        }
        let asks = match Asks::of(pod, snapshot, &self.profile) {
            Ok(asks) => Rc::new(asks),
            Err(refusal) => return Filtered::Refused(refusal),
        };
        // Room that was made for a pod is looked at first.
        if let Some(slot) = snapshot.nomination(&pod.uid).and_then(|node| snapshot.find(node))
            && self.fits(pod, slot, snapshot).is_ok()
        {
            let raw = score::raw(&pod.demand, snapshot.node(slot), &self.profile);
            return Filtered::Some(Candidates { slots: vec![slot], raws: vec![raw] });
        }
        self.clock += 1;
        let mut counts = self.take_counts(pod, snapshot);
        if !self.known.contains_key(&pod.demand.id) {
            forget_oldest(&mut self.known, |e| e.used);
        }
        let evaluation =
            self.known.entry(pod.demand.id).or_insert(Evaluation { memos: Vec::new(), version: 0, used: 0 });
        evaluation.used = self.clock;
        evaluation.refresh(snapshot);

        let named: Option<Vec<usize>> =
            asks.named.as_ref().map(|names| names.iter().filter_map(|name| snapshot.find(name)).collect());
        let nodes = named.as_deref().unwrap_or(all);
        let wanted = enough(nodes.len(), self.profile.percentage_of_nodes_to_score);
        let start = if named.is_some() { 0 } else { self.next % nodes.len() };
        let (before, after) = nodes.split_at(start);
        let mut found = Candidates { slots: Vec::with_capacity(wanted), raws: Vec::with_capacity(wanted) };
        let mut looked = 0;
        let promised = snapshot.has_nominated();
        for &slot in after.iter().chain(before) {
            looked += 1;
            let raw = match evaluation.memo(slot, pod, snapshot, &self.profile) {
                Memo::Fits(raw) => *raw,
                _ => continue,
            };
            if counts.as_mut().is_some_and(|c| objection(c, slot, pod, snapshot, &self.profile).is_some()) {
                continue;
            }
            let node = snapshot.node(slot);
            if asks.check_volumes(pod, slot, node, snapshot, &self.profile).is_err()
                || asks.check_devices(node, snapshot, &self.profile).is_err()
            {
                continue;
            }
            if promised && !snapshot.nominated(&node.name).is_empty() {
                let (profile, asks) = (&self.profile, asks.clone());
                let mut trial = Trial { pod, snapshot, profile, counts: counts.as_mut(), asks };
                if trial.check_with_nominated(slot, snapshot.node(slot)).is_err() {
                    continue;
                }
            }
            found.slots.push(slot);
            found.raws.push(raw);
            if found.slots.len() >= wanted {
                break;
            }
        }
        if named.is_none() {
            self.next = (start + looked) % nodes.len();
        }
        let filtered = if found.slots.is_empty() {
            let mut trial = Trial { pod, snapshot, profile: &self.profile, counts: counts.as_mut(), asks };
            let other = Arc::new(not_named());
            let why = all.iter().filter_map(|&slot| {
                if named.as_ref().is_some_and(|named| !named.contains(&slot)) {
                    return Some((slot, other.clone()));
                }
                let rejection = match evaluation.memo(slot, pod, snapshot, &self.profile) {
                    Memo::Rejected(rejection) => rejection.clone(),
                    _ => Arc::new(trial.check_with_nominated(slot, snapshot.node(slot)).err()?),
                };
                Some((slot, rejection))
            });
            Filtered::Nowhere(why.collect())
        } else {
            fill_in(&mut found, pod, snapshot, &self.profile, counts.as_ref());
            asks.score_devices(&mut found, snapshot, &self.profile);
            score_backed(&mut found, pod, snapshot, &self.profile);
            Filtered::Some(found)
        };
        self.give_back(pod, counts);
        filtered
    }

    /// What every node that does not take the pod says.
    pub fn rejections(&mut self, pod: &PodInfo, snapshot: &Snapshot) -> Vec<(usize, Arc<Rejection>)> {
        let fits = |slot: &usize| self.fits(pod, *slot, snapshot).err().map(|r| (*slot, r));
        snapshot.order().iter().filter_map(fits).collect()
    }

    /// The candidate with the highest total; a reservoir of one gives equals the same chance. `extra` is added to the
    /// totals (scores of extenders), one value per candidate.
    pub fn choose(&mut self, candidates: Candidates, extra: &[i64]) -> usize {
        let Candidates { slots, raws } = candidates;
        let bounds = score::bounds(raws.iter());
        let (mut chosen, mut top, mut equals) = (slots[0], i64::MIN, 0_u32);
        for (i, (slot, raw)) in slots.iter().zip(&raws).enumerate() {
            let own = score::total(raw, &bounds, &self.profile.weights);
            let total = own.saturating_add(extra.get(i).copied().unwrap_or(0));
            if total > top {
                (chosen, top, equals) = (*slot, total, 1);
            } else if total == top {
                equals += 1;
                if self.random.random_range(0..equals) == 0 {
                    chosen = *slot;
                }
            }
        }
        chosen
    }

    /// Counts for the pod's relations, where there are any to look at.
    fn take_counts(&mut self, pod: &PodInfo, snapshot: &Snapshot) -> Option<Counts> {
        if pod.spread.is_empty() && !pod.relations.has_terms() && !snapshot.has_terms() {
            return None;
        }
        let known = self.counts.remove(&counts_key(pod)).map(|r| r.counts);
        let mut counts = known.unwrap_or_else(|| Counts::new(pod, self.profile.affinity));
        counts.refresh(pod, snapshot);
        Some(counts)
    }

    fn give_back(&mut self, pod: &PodInfo, counts: Option<Counts>) {
        if let Some(counts) = counts {
            forget_oldest(&mut self.counts, |r| r.used);
            self.counts.insert(counts_key(pod), Remembered { counts, used: self.clock });
        }
    }

    /// Tries out nodes that are not as the snapshot has them.
    pub(crate) fn trial<'a>(
        &'a mut self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Result<Trial<'a>, Refusal> {
        let asks = Rc::new(Asks::of(pod, snapshot, &self.profile)?);
        self.clock += 1;
        let taken = self.take_counts(pod, snapshot);
        let needed = taken.is_some();
        self.give_back(pod, taken);
        let counts = self.counts.get_mut(&counts_key(pod)).filter(|_| needed).map(|r| &mut r.counts);
        Ok(Trial { pod, snapshot, profile: &self.profile, counts, asks })
    }
}

fn counts_key(pod: &PodInfo) -> (u64, u64, u64) {
    (pod.relations.id, pod.spread.id, pod.demand.id)
}

/// What the pod's relations say against a node.
fn objection(
    counts: &mut Counts,
    slot: usize,
    pod: &PodInfo,
    snapshot: &Snapshot,
    profile: &Profile,
) -> Option<crate::counts::Objection> {
    let spread = if profile.runs(POD_TOPOLOGY_SPREAD) { counts.check_spread(slot, pod) } else { None };
    spread.or_else(|| {
        if profile.runs(INTER_POD_AFFINITY) { counts.check_affinity(slot, pod, snapshot) } else { None }
    })
}

/// The scores that are taken when the candidates are known.
fn fill_in(
    found: &mut Candidates,
    pod: &PodInfo,
    snapshot: &Snapshot,
    profile: &Profile,
    counts: Option<&Counts>,
) {
    // A single candidate needs no score.
    if found.slots.len() < 2 {
        return;
    }
    let Candidates { slots, raws } = found;
    if let Some(counts) = counts {
        if profile.weights[score::POD_TOPOLOGY_SPREAD] != 0 && !pod.spread.soft.is_empty() {
            let weights = counts.spread_weights(pod, slots);
            for (slot, raw) in slots.iter().zip(raws.iter_mut()) {
                raw[score::POD_TOPOLOGY_SPREAD] =
                    counts.spread_score(*slot, pod, &weights).unwrap_or(score::WORST);
            }
        }
        if profile.weights[score::INTER_POD_AFFINITY] != 0 {
            for (slot, raw) in slots.iter().zip(raws.iter_mut()) {
                raw[score::INTER_POD_AFFINITY] = counts.affinity_score(*slot);
            }
        }
    }
    if profile.weights[score::IMAGE_LOCALITY] != 0
        && snapshot.has_images()
        && pod.demand.images.iter().any(|image| snapshot.nodes_with(image) > 0)
    {
        for (slot, raw) in slots.iter().zip(raws.iter_mut()) {
            raw[score::IMAGE_LOCALITY] = score::image_locality(&pod.demand, snapshot.node(*slot), snapshot);
        }
    }
}

/// Devices come and go without a change of the node: where they stand for resources that count, scores do not hold for long.
fn score_backed(found: &mut Candidates, pod: &PodInfo, snapshot: &Snapshot, profile: &Profile) {
    let devices = snapshot.devices();
    if found.slots.len() > 1 && score::counts_devices(&pod.demand, devices, profile) {
        for (slot, raw) in found.slots.iter().zip(&mut found.raws) {
            score::with_devices(raw, &pod.demand, snapshot.node(*slot), devices, profile);
        }
    }
}

impl Evaluation {
    fn memo(&mut self, slot: usize, pod: &PodInfo, snapshot: &Snapshot, profile: &Profile) -> &Memo {
        let memo = &mut self.memos[slot];
        if let Memo::Unknown = memo {
            let node = snapshot.node(slot);
            *memo = match filter::check(&pod.demand, node, profile) {
                Ok(()) => Memo::Fits(score::raw(&pod.demand, node, profile)),
                Err(rejection) => Memo::Rejected(Arc::new(rejection)),
            };
        }
        memo
    }

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

/// Tries one pod on nodes as they might be.
pub(crate) struct Trial<'a> {
    pub(crate) pod: &'a PodInfo,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) profile: &'a Profile,
    counts: Option<&'a mut Counts>,
    asks: Rc<Asks>,
}

impl Trial<'_> {
    /// All filters on `node`, which is `slot`'s with other pods on it.
    fn check(&mut self, slot: usize, node: &NodeInfo) -> Result<(), Rejection> {
        self.asks.check_name(node)?;
        filter::check(&self.pod.demand, node, self.profile)?;
        self.asks.check_volumes(self.pod, slot, node, self.snapshot, self.profile)?;
        match self.counts.as_mut().and_then(|c| objection(c, slot, self.pod, self.snapshot, self.profile)) {
            Some(objection) => Err(rejection(objection)),
            None => self.asks.check_devices(node, self.snapshot, self.profile),
        }
    }

    /// Says that the slot's node is now as `node`.
    pub(crate) fn set(&mut self, slot: usize, node: &NodeInfo) {
        if let Some(counts) = &mut self.counts {
            counts.replace(slot, node, self.pod, self.snapshot);
        }
    }

    /// The same, and also with the pods to which room there was promised, if they are at least as important: the pod must
    /// fit whether they come or not.
    pub(crate) fn check_with_nominated(&mut self, slot: usize, node: &NodeInfo) -> Result<(), Rejection> {
        let pod = self.pod;
        let ahead =
            |p: &&PodInfo| p.uid != pod.uid && p.priority >= pod.priority && node.pod(&p.uid).is_none();
        let nominated: Vec<&PodInfo> = self.snapshot.nominated(&node.name).iter().filter(ahead).collect();
        if !nominated.is_empty() {
            let mut fuller = node.clone();
            for other in nominated {
                fuller.add(other);
            }
            self.set(slot, &fuller);
            let verdict = self.check(slot, &fuller);
            self.set(slot, node);
            verdict?;
        }
        self.check(slot, node)
    }
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
