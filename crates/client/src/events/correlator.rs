//! Which happenings become Events, and which fold into one that is there. Pure; rule: the reference's event correlator.
//!
//! The same happening again raises the count of its Event. More than ten messages that differ in nothing but their text
//! within ten minutes become one Event about all of them. An object may have 25 Events at once and one more every five
//! minutes. What happens while an Event is being written waits and is folded into the next write of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::time::Instant;

use super::{EventType, Happening};

/// Identities, families and objects remembered; the older half is forgotten beyond it.
const REMEMBERED: usize = 4096;
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// Messages of one family that stand alone.
const ALONE: usize = 10;
/// How long a family is remembered after its last member.
const FAMILY: Duration = Duration::from_secs(600);
/// Characters of a message that are kept.
const MESSAGE: usize = 1024;

/// What an Event is about but for its text.
#[derive(Hash, PartialEq, Eq, Clone, Debug)]
struct Family {
    uid: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    field: Option<String>,
    kind: EventType,
    reason: String,
}

/// Which Event a happening belongs to; without a message the one about a whole family.
#[derive(Hash, PartialEq, Eq, Clone, Debug)]
pub struct Identity {
    family: Family,
    message: Option<String>,
}

/// One Event.
#[derive(Clone, Debug)]
pub struct Record {
    pub about: ObjectReference,
    pub kind: EventType,
    pub reason: String,
    pub message: String,
    pub annotations: BTreeMap<String, String>,
    pub name: String,
    pub count: i32,
    pub first: Timestamp,
    pub last: Timestamp,
    /// The count that is stored; 0 before the Event is there.
    pub stored: i32,
}

/// An Event to be made or raised.
#[derive(Debug)]
pub struct Write {
    pub key: Identity,
    pub record: Record,
}

/// What became of a write.
#[derive(Debug)]
pub enum Outcome {
    /// It is stored with this count.
    Stored(i32),
    /// The Event to be raised expired.
    Gone,
    /// Refused or not reached; Events are best effort.
    Failed,
}

struct Known {
    record: Record,
    writing: bool,
    seen: Instant,
}

#[derive(Default)]
pub struct Correlator {
    known: HashMap<Identity, Known>,
    families: HashMap<Family, (HashSet<String>, Instant)>,
    budgets: HashMap<(Option<String>, Option<String>), (f64, Instant)>,
}

impl Correlator {
    /// The write a happening asks for, if any.
    pub fn observe(&mut self, h: Happening, now: Instant) -> Option<Write> {
        self.forget();
        let family = Family {
            uid: h.about.uid.clone(),
            namespace: h.about.namespace.clone(),
            name: h.about.name.clone(),
            field: h.about.field_path.clone(),
            kind: h.kind,
            reason: h.reason.clone(),
        };
        let message: String = h.message.chars().take(MESSAGE).collect();
        let (members, last) = self.families.entry(family.clone()).or_insert_with(|| (HashSet::new(), now));
        if now.duration_since(*last) > FAMILY {
            members.clear();
        }
        *last = now;
        let alone = members.len() < ALONE || members.contains(&message);
        if alone {
            members.insert(message.clone());
        }
        let (key, message) = if alone {
            (Identity { family, message: Some(message.clone()) }, message)
        } else {
            (Identity { family, message: None }, format!("(combined from similar events): {message}"))
        };
        if !self.may_have_one_more(&h.about, now) {
            return None;
        }
        let known = self.known.entry(key.clone()).or_insert_with(|| {
            let name = event_name(&h.about, h.at);
            Known {
                record: Record {
                    about: h.about.clone(),
                    kind: h.kind,
                    reason: h.reason.clone(),
                    message: String::new(),
                    annotations: h.annotations,
                    name,
                    count: 0,
                    first: h.at,
                    last: h.at,
                    stored: 0,
                },
                writing: false,
                seen: now,
            }
        });
        known.seen = now;
        let record = &mut known.record;
        (record.count, record.last, record.message) = (record.count + 1, h.at, message);
        if known.writing {
            return None;
        }
        known.writing = true;
        Some(Write { key, record: known.record.clone() })
    }

    /// Takes note of a write; the next one of the same Event, where more happened meanwhile.
    pub fn written(&mut self, key: &Identity, outcome: Outcome) -> Option<Write> {
        let known = self.known.get_mut(key)?;
        known.writing = false;
        let record = &mut known.record;
        match outcome {
            Outcome::Stored(count) => record.stored = count,
            Outcome::Gone => {
                // a new series, which what was folded last begins
                (record.stored, record.count, record.first) = (0, 1, record.last);
                record.name = event_name(&record.about, record.last);
            }
            Outcome::Failed => {
                if record.stored == 0 {
                    self.known.remove(key);
                }
                return None;
            }
        }
        if record.count == record.stored {
            return None;
        }
        known.writing = true;
        Some(Write { key: key.clone(), record: known.record.clone() })
    }

    fn may_have_one_more(&mut self, about: &ObjectReference, now: Instant) -> bool {
        let (tokens, last) =
            self.budgets.entry((about.uid.clone(), about.name.clone())).or_insert((BURST, now));
        *tokens = (*tokens + now.duration_since(*last).as_secs_f64() / REFILL.as_secs_f64()).min(BURST);
        *last = now;
        let allowed = *tokens >= 1.0;
        if allowed {
            *tokens -= 1.0;
        }
        allowed
    }

    fn forget(&mut self) {
        if self.known.len() >= REMEMBERED {
            let middle = median(self.known.values().map(|k| k.seen));
            self.known.retain(|_, k| k.writing || k.seen > middle);
        }
        if self.families.len() >= REMEMBERED {
            let middle = median(self.families.values().map(|(_, seen)| *seen));
            self.families.retain(|_, (_, seen)| *seen > middle);
        }
        if self.budgets.len() >= REMEMBERED {
            let middle = median(self.budgets.values().map(|(_, seen)| *seen));
            self.budgets.retain(|_, (_, seen)| *seen > middle);
        }
    }
}

fn median(times: impl Iterator<Item = Instant>) -> Instant {
    let mut times: Vec<Instant> = times.collect();
    let middle = times.len() / 2;
    *times.select_nth_unstable(middle).1
}

fn event_name(about: &ObjectReference, at: Timestamp) -> String {
    format!("{}.{:x}", about.name.as_deref().unwrap_or_default(), at.as_nanosecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happening(name: &str, message: &str) -> Happening {
        Happening {
            about: ObjectReference { name: Some(name.to_owned()), ..ObjectReference::default() },
            kind: EventType::Normal,
            reason: "Scheduled".to_owned(),
            message: message.to_owned(),
            annotations: BTreeMap::new(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_happens_during_a_write_is_folded_into_the_next() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        let first = correlator.observe(happening("p", "m"), now).unwrap();
        assert_eq!((first.record.count, first.record.stored), (1, 0));
        for _ in 0..3 {
            assert!(correlator.observe(happening("p", "m"), now).is_none());
        }
        let next = correlator.written(&first.key, Outcome::Stored(1)).unwrap();
        assert_eq!((next.record.count, next.record.stored), (4, 1));
        assert!(correlator.written(&next.key, Outcome::Stored(4)).is_none());
        let after = correlator.observe(happening("p", "m"), now).unwrap();
        let anew = correlator.written(&after.key, Outcome::Gone).unwrap();
        assert_eq!((anew.record.count, anew.record.stored), (1, 0));
    }

    #[test]
    fn many_messages_of_a_family_become_one_event() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        let texts: Vec<String> = (0..12)
            .filter_map(|n| correlator.observe(happening("p", &format!("m{n}")), now))
            .map(|w| w.record.message)
            .collect();
        assert_eq!(texts[9], "m9");
        assert_eq!(texts[10], "(combined from similar events): m10");
        assert_eq!(texts.len(), 11, "the twelfth waits for the write of the eleventh");
    }

    #[test]
    fn an_object_has_a_budget_and_its_neighbour_another() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        let mut made = |name: &str, now| {
            let write = correlator.observe(happening(name, "m"), now)?;
            correlator.written(&write.key, Outcome::Stored(write.record.count));
            Some(())
        };
        assert_eq!((0..40).filter_map(|_| made("p", now)).count(), 25);
        assert!(made("q", now).is_some());
        assert!(made("p", now + REFILL).is_some());
    }
}
