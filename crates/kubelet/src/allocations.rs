//! Processors and memory that the node's pods were given, and whose turn it is when several ask for more: pure, behind one lock.
//!
//! Rule: KEP-1287, "Resize CPU and Memory Resources assigned to Containers": resizes that the node cannot give yet wait, those
//! that ask for no more first, then by priority, class of service and the time that they have waited.

use std::cmp::Reverse;
use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::resources::qos_class;

/// CPU in thousandths, memory in bytes.
pub type Amounts = [i64; 2];

/// Their names.
const NAMES: [&str; 2] = ["cpu", "memory"];

/// What all pods were given, and who waits for more.
#[derive(Debug, Default)]
pub struct Books {
    given: HashMap<String, Amounts>,
    waiting: HashMap<String, Request>,
}

/// A resize that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    wants: Amounts,
    /// The smaller one comes first.
    turn: (bool, Reverse<i32>, bool, Instant),
}

/// Why a pod does not get what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The node has not so much, whoever else is there.
    Infeasible(String),
    /// Others have it.
    Deferred(String),
}

/// What the pods of the node were given.
#[derive(Debug)]
pub struct Allocations {
    books: watch::Sender<Books>,
    capacity: Amounts,
}

impl Allocations {
    /// For a node whose pods may have `capacity` together.
    pub fn new(capacity: Amounts) -> Self {
        Self { books: watch::Sender::new(Books::default()), capacity }
    }

    /// Hears when somebody has less, or waits no longer.
    pub fn changed(&self) -> watch::Receiver<Books> {
        self.books.subscribe()
    }

    /// What a pod has, where it is known.
    pub fn of(&self, uid: &str) -> Option<Amounts> {
        self.books.borrow().given.get(uid).copied()
    }

    /// A pod has this much, and asks for nothing else.
    pub fn set(&self, uid: &str, amounts: Amounts) {
        self.books.send_if_modified(|books| {
            let waited = books.waiting.remove(uid).is_some();
            books.given.insert(uid.to_owned(), amounts) != Some(amounts) || waited
        });
    }

    /// A pod that was let in has this much, unless more is known of it.
    pub fn admit(&self, uid: &str, amounts: Amounts) {
        self.books.send_if_modified(|books| {
            let known = books.given.contains_key(uid);
            books.given.entry(uid.to_owned()).or_insert(amounts);
            !known
        });
    }

    /// A pod is gone.
    pub fn remove(&self, uid: &str) {
        self.books.send_if_modified(|books| {
            books.waiting.remove(uid);
            books.given.remove(uid).is_some()
        });
    }

    /// Gives a pod that has `has` what it `wants`, where the node has it and no other is to be served before.
    pub fn resize(&self, pod: &Pod, has: Amounts, wants: Amounts) -> Result<(), Refusal> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut outcome = Ok(());
        self.books.send_if_modified(|books| {
            let before = (books.given.get(uid).copied(), books.waiting.contains_key(uid));
            books.given.entry(uid.to_owned()).or_insert(has);
            outcome = self.decide(books, uid, pod, wants);
            match &outcome {
                Ok(()) => {
                    books.waiting.remove(uid);
                    books.given.insert(uid.to_owned(), wants);
                }
                Err(Refusal::Infeasible(_)) => drop(books.waiting.remove(uid)),
                Err(Refusal::Deferred(_)) => {}
            }
            // who begins to wait takes nothing from others
            before.0 != books.given.get(uid).copied() || (before.1 && !books.waiting.contains_key(uid))
        });
        outcome
    }

    fn decide(&self, books: &mut Books, uid: &str, pod: &Pod, wants: Amounts) -> Result<(), Refusal> {
        // memory is named first where both are too much
        for at in [1, 0] {
            let (name, wanted, capacity) = (NAMES[at], wants[at], self.capacity[at]);
            if wanted > capacity {
                return Err(Refusal::Infeasible(format!(
                    "Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {capacity}"
                )));
            }
        }
        let request = books.wait(uid, pod, wants);
        let mut given = books.given.clone();
        let mut earlier: Vec<(&String, &Request)> =
            books.waiting.iter().filter(|(other, one)| *other != uid && one.turn < request.turn).collect();
        earlier.sort_by_key(|(_, one)| one.turn);
        for (other, one) in earlier {
            // it will take what there is for it
            if lack(&given, other, one.wants, self.capacity).is_none() {
                given.insert(other.clone(), one.wants);
            }
        }
        lack(&given, uid, wants, self.capacity).map_or(Ok(()), |text| Err(Refusal::Deferred(text)))
    }
}

impl Books {
    /// Notes that a pod waits; since when, if it waits for the same.
    fn wait(&mut self, uid: &str, pod: &Pod, wants: Amounts) -> Request {
        let has = self.given.get(uid).copied().unwrap_or_default();
        let grows = wants.iter().zip(has).any(|(wants, has)| *wants > has);
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let since = self.waiting.get(uid).filter(|known| known.wants == wants).map(|known| known.turn.3);
        let turn =
            (grows, Reverse(priority), qos_class(pod) != "Guaranteed", since.unwrap_or_else(Instant::now));
        let request = Request { wants, turn };
        self.waiting.insert(uid.to_owned(), request);
        request
    }
}

/// What others leave a pod too little of, in the reference's words.
fn lack(given: &HashMap<String, Amounts>, uid: &str, wants: Amounts, capacity: Amounts) -> Option<String> {
    (0..NAMES.len()).find_map(|at| {
        let others = given.iter().filter(|(other, _)| *other != uid);
        let used = others.map(|(_, has)| has[at]).fold(0, i64::saturating_add);
        let (name, wanted, capacity) = (NAMES[at], wants[at], capacity[at]);
        (wanted > 0 && wanted.saturating_add(used) > capacity).then(|| {
            format!(
                "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn pod(uid: &str, priority: i32, class: &str) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"uid": uid}, "spec": {"priority": priority, "containers": []},
            "status": {"qosClass": class}}),
        )
        .unwrap()
    }

    fn waits(outcome: Result<(), Refusal>) -> bool {
        matches!(outcome, Err(Refusal::Deferred(_)))
    }

    #[tokio::test(start_paused = true)]
    async fn the_important_pod_is_served_first_whoever_asks_first() {
        let node = Allocations::new([1000, 1000]);
        for uid in ["low", "high", "sure"] {
            node.set(uid, [100, 100]);
        }
        node.set("other", [600, 100]);
        let (low, high, sure) =
            (pod("low", 0, "Burstable"), pod("high", 9, "Burstable"), pod("sure", 0, "Guaranteed"));
        let ask = |pod: &Pod| node.resize(pod, [100, 100], [400, 100]);
        assert!(waits(ask(&low)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(waits(ask(&sure)) && waits(ask(&high)));
        node.remove("other");
        // there is room for two of them
        assert!(waits(ask(&low)), "others come first, though it has waited for longer");
        assert_eq!((ask(&high), ask(&sure)), (Ok(()), Ok(())));
        assert!(waits(ask(&low)));
        // one that asks for less waits for nobody
        assert_eq!(node.resize(&high, [400, 100], [50, 100]), Ok(()));
        assert_eq!(ask(&low), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_there_for_the_first_one_is_for_the_next() {
        let node = Allocations::new([1000, 1000]);
        node.set("large", [500, 0]);
        node.set("small", [100, 0]);
        node.set("other", [200, 0]);
        assert!(waits(node.resize(&pod("large", 9, "Burstable"), [500, 0], [900, 0])));
        assert_eq!(node.resize(&pod("small", 0, "Burstable"), [100, 0], [200, 0]), Ok(()));
        // who no longer waits holds nobody up
        node.set("large", [500, 0]);
        node.remove("other");
        assert_eq!(node.resize(&pod("small", 0, "Burstable"), [200, 0], [500, 0]), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn two_that_ask_at_once_do_not_get_the_same_room_and_refusals_are_worded_as_upstream() {
        let node = Allocations::new([1000, 1000]);
        node.admit("a", [100, 100]);
        node.admit("a", [900, 900]);
        node.admit("b", [100, 100]);
        assert_eq!(node.resize(&pod("a", 0, "Burstable"), [100, 100], [800, 100]), Ok(()));
        let text = "Node didn't have enough resource: cpu, requested: 800, used: 800, capacity: 1000";
        assert_eq!(
            node.resize(&pod("b", 0, "Burstable"), [100, 100], [800, 100]),
            Err(Refusal::Deferred(text.to_owned()))
        );
        let text = "Node didn't have enough capacity: memory, requested: 1001, capacity: 1000";
        assert_eq!(
            node.resize(&pod("b", 0, "Burstable"), [100, 100], [1001, 1001]),
            Err(Refusal::Infeasible(text.to_owned()))
        );
    }

    #[test]
    fn those_who_wait_hear_of_room_and_not_of_each_other() {
        let node = Allocations::new([1000, 1000]);
        node.set("a", [600, 0]);
        node.set("b", [300, 0]);
        let changed = node.changed();
        assert!(waits(node.resize(&pod("b", 0, "Burstable"), [300, 0], [500, 0])));
        assert!(!changed.has_changed().unwrap());
        node.set("a", [100, 0]);
        assert!(changed.has_changed().unwrap());
    }
}
