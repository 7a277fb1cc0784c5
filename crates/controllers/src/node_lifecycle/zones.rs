//! How fast nodes of a zone may be given up: one after the other, slower or not at all the more of them fail together.
//!
//! Rule: <https://kubernetes.io/docs/concepts/architecture/nodes/#rate-limits-on-eviction>. Whose turn it is, is a measurement: after
//! a restart the first node of each zone is given up at once.
use std::collections::{BTreeMap, HashMap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;

use super::plan;
use crate::ownership::labels;

/// One node in ten seconds.
const PERIOD: SignedDuration = SignedDuration::from_secs(10);
/// One node in a hundred seconds, in a large zone of which most is lost.
const SLOW_PERIOD: SignedDuration = SignedDuration::from_secs(100);
/// A zone of more nodes is large.
const LARGE: usize = 50;
/// This share of nodes, and more than two, makes the loss one of the zone.
const UNHEALTHY_SHARE: f64 = 0.55;
/// Nodes with this label do not count.
const EXCLUDED: &str = "node.kubernetes.io/exclude-disruption";

/// How a zone stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Normal,
    /// Most nodes are lost.
    Partial,
    /// All are.
    Full,
}

/// Region and zone of a node.
pub(super) fn zone_of(node: &Node) -> String {
    let all = labels(&node.metadata);
    let text = |new: &str, old: &str| all.get(new).or_else(|| all.get(old)).cloned().unwrap_or_default();
    let region = text("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region");
    let zone = text("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone");
    if region.is_empty() && zone.is_empty() { String::new() } else { format!("{region}:\0:{zone}") }
}

fn state(ready: usize, lost: usize) -> State {
    match (ready, lost) {
        (0, 1..) => State::Full,
        _ if lost > 2 && lost as f64 / (ready + lost) as f64 >= UNHEALTHY_SHARE => State::Partial,
        _ => State::Normal,
    }
}

/// The state of every zone that has nodes, and its size.
pub(super) fn survey<'a>(nodes: impl Iterator<Item = &'a Node>) -> BTreeMap<String, (State, usize)> {
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for node in nodes.filter(|n| !labels(&n.metadata).contains_key(EXCLUDED)) {
        let (ready, lost) = counts.entry(zone_of(node)).or_default();
        *(if plan::ready(node) == Some("True") { ready } else { lost }) += 1;
    }
    counts.into_iter().map(|(zone, (ready, lost))| (zone, (state(ready, lost), ready + lost))).collect()
}

/// Whether every zone is lost: then the fault is more likely ours than theirs, and no node is given up.
pub(super) fn all_lost(zones: &BTreeMap<String, (State, usize)>) -> bool {
    zones.values().all(|(state, _)| *state == State::Full)
}

/// The time between two nodes; `None`: never.
fn period((state, size): (State, usize)) -> Option<SignedDuration> {
    match state {
        State::Normal | State::Full => Some(PERIOD),
        State::Partial if size > LARGE => Some(SLOW_PERIOD),
        State::Partial => None,
    }
}

/// Whether it is a node's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Now,
    After(SignedDuration),
    /// Not while the zone is as it is.
    Never,
}

#[derive(Debug, Default)]
struct Line {
    last: Option<Timestamp>,
    waiting: VecDeque<String>,
    /// Whose turn came; until the taint is written.
    granted: Vec<String>,
}

/// Nodes that wait to be given up, by zone.
#[derive(Debug, Default)]
pub(super) struct Lines(HashMap<String, Line>);

impl Lines {
    /// The node asks to be given up.
    pub(super) fn turn(&mut self, zone: &str, node: &str, of: (State, usize), now: Timestamp) -> Turn {
        let line = self.0.entry(zone.to_owned()).or_default();
        if line.granted.iter().any(|n| n == node) {
            return Turn::Now;
        }
        let place = line.waiting.iter().position(|n| n == node).unwrap_or_else(|| {
            line.waiting.push_back(node.to_owned());
            line.waiting.len() - 1
        });
        let Some(period) = period(of) else { return Turn::Never };
        let since = line.last.map_or(period, |last| now.duration_since(last));
        let next = (period - since).max(SignedDuration::ZERO);
        if place > 0 || next > SignedDuration::ZERO {
            return Turn::After(next + period * i32::try_from(place).unwrap_or(i32::MAX));
        }
        line.waiting.pop_front();
        line.granted.push(node.to_owned());
        line.last = Some(now);
        Turn::Now
    }

    /// The node no longer waits: it was given up, is ready, or is gone.
    pub(super) fn leave(&mut self, node: &str) {
        for line in self.0.values_mut() {
            line.waiting.retain(|n| n != node);
            line.granted.retain(|n| n != node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
    }

    fn seconds(turn: Turn) -> i64 {
        match turn {
            Turn::Now => 0,
            Turn::After(wait) => wait.as_secs(),
            Turn::Never => -1,
        }
    }

    #[test]
    fn a_zone_is_lost_in_part_or_in_whole() {
        let node = |zone: &str, ready: &str, extra: &str| -> Node {
            serde_json::from_value(
                json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone, extra: ""}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}),
            )
            .expect("node")
        };
        let mut nodes = vec![node("a", "True", "x"), node("b", "Unknown", "x"), node("b", "True", EXCLUDED)];
        let states = |nodes: &[Node]| survey(nodes.iter()).into_values().collect::<Vec<_>>();
        assert_eq!(states(&nodes), [(State::Normal, 1), (State::Full, 1)]);
        nodes.extend([node("a", "True", "x"), node("a", "False", "x"), node("a", "False", "x")]);
        assert_eq!(states(&nodes)[0], (State::Normal, 4));
        nodes.push(node("a", "Unknown", "x"));
        assert_eq!(states(&nodes)[0], (State::Partial, 5));
        assert!(!all_lost(&survey(nodes.iter())));
        nodes.retain(|n| plan::ready(n) != Some("True"));
        assert!(all_lost(&survey(nodes.iter())));
    }

    #[test]
    fn nodes_go_one_by_one_in_their_order() {
        let mut lines = Lines::default();
        let mut ask = |node: &str, now: i64| seconds(lines.turn("z", node, (State::Normal, 9), at(now)));
        assert_eq!([ask("a", 0), ask("b", 0), ask("c", 0)], [0, 10, 20]);
        // Until it is tainted, a node keeps its turn.
        assert_eq!([ask("a", 5), ask("c", 12), ask("b", 12), ask("c", 12)], [0, 10, 0, 10]);
        lines.leave("c");
        assert_eq!(seconds(lines.turn("other", "x", (State::Full, 1), at(12))), 0);
        assert_eq!(seconds(lines.turn("z", "d", (State::Normal, 9), at(22))), 0);
    }

    #[test]
    fn a_zone_lost_in_part_keeps_its_nodes_when_small_and_slows_down_when_large() {
        let mut lines = Lines::default();
        assert_eq!(lines.turn("z", "a", (State::Partial, 50), at(0)), Turn::Never);
        assert_eq!(lines.turn("z", "a", (State::Partial, 51), at(0)), Turn::Now);
        assert_eq!(seconds(lines.turn("z", "b", (State::Partial, 51), at(1))), 99);
        assert_eq!(seconds(lines.turn("z", "b", (State::Normal, 51), at(1))), 9);
    }
}
