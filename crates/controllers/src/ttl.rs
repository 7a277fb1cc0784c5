//! How long kubelets may keep what they have read of Secrets and ConfigMaps: an annotation on every node, the longer the more
//! nodes there are.
//!
//! Rule: upstream's ttl-controller. The steps overlap, so that a cluster at a bound does not go back and forth; after a restart
//! it begins with the lowest that fits.
use client::{Cache, Change};
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;

use crate::ownership::{annotations, name};
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

const TTL: &str = "node.alpha.kubernetes.io/ttl";

/// Fewest nodes, most nodes, seconds.
const STEPS: [(usize, usize, u32); 5] =
    [(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, usize::MAX, 300)];

/// The step for so many nodes, coming from another.
fn step(from: usize, nodes: usize) -> usize {
    let mut at = from;
    while nodes > STEPS[at].1 {
        at += 1;
    }
    while nodes < STEPS[at].0 {
        at -= 1;
    }
    at
}

struct Controller {
    context: Context,
    nodes: Cache<Node>,
    step: Mutex<usize>,
}

pub(crate) async fn run(context: Context) {
    let nodes = context.reader.caches().of::<Node>();
    let controller = Controller { context: context.clone(), nodes: nodes.clone(), step: Mutex::default() };
    Runner::new(&context, controller)
        .on(&nodes, |c: &Controller, change| {
            let node = change.object();
            let moved = {
                let mut at = c.step.lock();
                let next = step(*at, c.nodes.len());
                std::mem::replace(&mut *at, next) != next
            };
            if moved {
                let all = c.nodes.list();
                return all.iter().map(|n| name(&n.metadata).to_owned()).collect();
            }
            let known = |n: &Node| annotations(&n.metadata).contains_key(TTL);
            let concerns = match change {
                Change::Added(_) => true,
                // Who takes it away or writes another is put right.
                Change::Modified { old, new } => {
                    !known(new) || annotations(&old.metadata).get(TTL) != annotations(&new.metadata).get(TTL)
                }
                Change::Deleted(_) => false,
            };
            concerns.then(|| name(&node.metadata).to_owned()).into_iter().collect::<Vec<_>>()
        })
        .run(1)
        .await;
}

impl Reconcile for Controller {
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Outcome, Failure> {
        let Some(node) = self.nodes.get("", key) else { return Ok(Outcome::Settled) };
        let seconds = STEPS[*self.step.lock()].2.to_string();
        if annotations(&node.metadata).get(TTL) == Some(&seconds) {
            return Ok(Outcome::Settled);
        }
        let patch = json!({"metadata": {"uid": node.metadata.uid, "annotations": {TTL: seconds}}});
        match self.context.client.patch::<Node>("", key, &client::Patch::Merge(patch)).await {
            Ok(_) => Ok(Outcome::Settled),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(Outcome::Settled),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_nodes_the_longer_and_a_cluster_at_a_bound_stays() {
        let seconds = |from: usize, nodes: usize| STEPS[step(from, nodes)].2;
        let up = [0, 100, 101, 500, 501, 1000, 1001, 2001, 150_000].map(|n| seconds(0, n));
        assert_eq!(up, [0, 0, 15, 15, 30, 30, 60, 300, 300]);
        let back = [95, 89, 480, 449, 0];
        assert_eq!(back.map(|n| seconds(1, n)), [15, 0, 15, 15, 0]);
        assert_eq!(back.map(|n| seconds(2, n)), [15, 0, 30, 15, 0]);
    }
}
