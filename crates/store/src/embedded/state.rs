//! The store's state in memory: the current keys, and the recent history as a ring of changes.
//!
//! Pure data, no I/O. The newest value of every key is always in memory (its `Bytes` is the one that callers
//! hold, so a cache above shares it). The history keeps one small [`Change`] per revision; values of older changes
//! are dropped and found on the disk by revision when somebody asks. Each change points to the
//! previous change of its key, so the state at an old revision is found by walking back from the present one.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::{EventKind, KeyValue, Revision, StoreError};

/// The newest value of a key that exists.
#[derive(Debug, Clone)]
pub(super) struct Current {
    pub value: Bytes,
    pub mod_revision: Revision,
    pub create_revision: Revision,
    /// Milliseconds since the Unix epoch at which the key is to be deleted; 0: never.
    pub expires_at: u64,
}

/// One change of one key.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub revision: Revision,
    pub key: Arc<str>,
    pub kind: EventKind,
    /// The revision that created the key.
    pub create_revision: Revision,
    /// The previous change of this key, be it a put or a delete; 0: none is known.
    pub previous: Revision,
    /// See [`Current::expires_at`].
    pub expires_at: u64,
    /// A put's value, as long as it is kept in memory. `None` in a delete.
    pub value: Option<Bytes>,
}

impl Change {
    pub(super) fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.create_revision == self.revision
    }

    /// About how many bytes this change takes on the disk.
    pub(super) fn stored_bytes(&self) -> u64 {
        (super::record::OVERHEAD + self.key.len() + self.value.as_ref().map_or(0, Bytes::len)) as u64
    }
}

/// A value that was asked for: at hand, or on the disk under its revision.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    Ready(KeyValue),
    OnDisk(Revision),
}

/// An event of the history whose values may have to be fetched.
#[derive(Debug)]
pub(super) struct PastEvent {
    pub change: Change,
    /// For a put its value; for a delete `None` (it shows the previous one).
    pub value: Option<Slot>,
    pub previous: Option<Slot>,
}

/// One chunk of a range. `examined_to` is the last key looked at.
pub(super) struct RangeChunk {
    pub items: Vec<Slot>,
    pub last_key: Option<Arc<str>>,
    pub complete: bool,
}

#[derive(Debug, Default)]
pub(super) struct State {
    current: BTreeMap<Arc<str>, Current>,
    /// The newest delete of each key that does not exist, while that delete is in `history`.
    deleted: BTreeMap<Arc<str>, Revision>,
    /// All changes after `compacted`, by revision.
    history: VecDeque<Change>,
    /// How many changes at the front of `history` have had their values dropped, and what the others hold.
    dropped: usize,
    resident_bytes: usize,
    compacted: Revision,
    revision: Revision,
    /// Size of every stored change: of current values, history and deletes.
    stored_bytes: u64,
}

impl State {
    /// The state as loaded: starts at `compacted`, then changes are applied in order.
    pub(super) fn new(compacted: Revision) -> State {
        State { compacted, revision: compacted, ..State::default() }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    pub(super) fn keys(&self) -> usize {
        self.current.len()
    }

    pub(super) fn history_len(&self) -> usize {
        self.history.len()
    }

    pub(super) fn current(&self, key: &str) -> Option<(&Arc<str>, &Current)> {
        self.current.get_key_value(key)
    }

    pub(super) fn currents(&self) -> impl Iterator<Item = (&Arc<str>, &Current)> {
        self.current.iter()
    }

    /// The newest change of a key that has no current value.
    pub(super) fn last_delete(&self, key: &str) -> Revision {
        self.deleted.get(key).copied().unwrap_or(0)
    }

    /// The revision at the front of the history after which at least `keep` changes stay.
    pub(super) fn revision_keeping(&self, keep: usize) -> Revision {
        match self.history.len().checked_sub(keep) {
            None | Some(0) => self.compacted,
            Some(surplus) => self.history[surplus - 1].revision,
        }
    }

    /// Revisions skipped: after a crash numbering goes on at a reserved number.
    pub(super) fn skip_to(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }

    /// Applies the next change. Changes come in the order of their revisions.
    pub(super) fn apply(&mut self, change: Change) {
        debug_assert!(change.revision > self.revision || self.revision == 0);
        self.stored_bytes += change.stored_bytes();
        self.revision = change.revision;
        self.set_current(&change);
        if change.kind == EventKind::Delete {
            self.deleted.insert(change.key.clone(), change.revision);
        }
        self.resident_bytes += change.value.as_ref().map_or(0, Bytes::len);
        self.history.push_back(change);
    }

    /// Loads a put that is older than the kept history.
    pub(super) fn load_base(&mut self, change: &Change) {
        self.stored_bytes += change.stored_bytes();
        self.revision = self.revision.max(change.revision);
        self.set_current(change);
    }

    fn set_current(&mut self, change: &Change) {
        match (&change.kind, &change.value) {
            (EventKind::Put, Some(value)) => {
                self.deleted.remove(&change.key);
                self.current.insert(
                    change.key.clone(),
                    Current {
                        value: value.clone(),
                        mod_revision: change.revision,
                        create_revision: change.create_revision,
                        expires_at: change.expires_at,
                    },
                );
            }
            _ => {
                self.current.remove(&change.key);
            }
        }
    }

    /// Drops the oldest values of the history until the rest fits `budget` bytes. Changes after `durable` are not yet
    /// on the disk and keep theirs.
    pub(super) fn trim_values(&mut self, budget: usize, durable: Revision) {
        while self.resident_bytes > budget
            && let Some(change) = self.history.get_mut(self.dropped)
            && change.revision <= durable
        {
            self.resident_bytes -= change.value.take().map_or(0, |value| value.len());
            self.dropped += 1;
        }
    }

    /// Forgets up to `limit` changes that are not after `target`; returns the revisions whose records are of no more use.
    /// `sizes` of values that are no longer in memory are asked for through `size_of`.
    pub(super) fn compact(&mut self, target: Revision, limit: usize) -> Vec<Revision> {
        let mut garbage = Vec::new();
        for _ in 0..limit {
            let Some(change) = self.history.front() else { break };
            if change.revision > target {
                break;
            }
            let Some(change) = self.history.pop_front() else { break };
            self.compacted = change.revision;
            if self.dropped > 0 {
                self.dropped -= 1;
            }
            self.resident_bytes -= change.value.as_ref().map_or(0, Bytes::len);
            if change.previous != 0 {
                garbage.push(change.previous);
            }
            if change.kind == EventKind::Delete {
                garbage.push(change.revision);
                if self.deleted.get(&change.key) == Some(&change.revision) {
                    self.deleted.remove(&change.key);
                }
            }
        }
        if self.history.front().is_none_or(|change| change.revision > target) {
            self.compacted = self.compacted.max(target.min(self.revision));
        }
        garbage
    }

    /// Records were removed from the disk.
    pub(super) fn removed(&mut self, bytes: u64) {
        self.stored_bytes = self.stored_bytes.saturating_sub(bytes);
    }

    /// The revision to read at: `None` means the newest.
    pub(super) fn readable(&self, at: Option<Revision>) -> Result<Revision, StoreError> {
        let Some(at) = at else { return Ok(self.revision) };
        if at > self.revision {
            return Err(StoreError::Future { current: self.revision });
        }
        self.check_history(at)?;
        Ok(at)
    }

    /// Can the changes after `from` be told without a gap? Numbers that were lost in a crash and then skipped can't:
    /// whoever saw one of them may have seen what is no longer true.
    pub(super) fn check_history(&self, from: Revision) -> Result<(), StoreError> {
        if from >= self.revision || from == self.compacted {
            return Ok(());
        }
        if from < self.compacted {
            return Err(StoreError::Compacted { oldest: self.compacted });
        }
        let next = self.index_after(from);
        let known = next > 0 && self.history[next - 1].revision == from;
        let before_next = self.history.get(next).is_some_and(|change| change.revision == from + 1);
        if known || before_next { Ok(()) } else { Err(StoreError::Compacted { oldest: self.revision }) }
    }

    /// The index of the first change after `revision`.
    fn index_after(&self, revision: Revision) -> usize {
        self.history.partition_point(|change| change.revision <= revision)
    }

    fn change(&self, revision: Revision) -> Option<&Change> {
        let index = self.index_after(revision).checked_sub(1)?;
        self.history.get(index).filter(|change| change.revision == revision)
    }

    /// The key's state at a revision that [`readable`](State::readable) allows.
    pub(super) fn lookup(&self, key: &str, at: Revision) -> Option<Slot> {
        let mut revision = match self.current.get_key_value(key) {
            Some((key, current)) if current.mod_revision <= at => {
                return Some(Slot::Ready(key_value(key, current)));
            }
            Some((_, current)) => current.mod_revision,
            None => *self.deleted.get(key)?,
        };
        while revision > at {
            let change = self.change(revision)?;
            if change.previous == 0 || (change.is_create() && change.previous <= at) {
                return None;
            }
            revision = change.previous;
        }
        match self.change(revision) {
            Some(change) if change.kind == EventKind::Delete => None,
            _ => Some(self.slot(key, revision)),
        }
    }

    /// The put at `revision` of `key`.
    fn slot(&self, key: &str, revision: Revision) -> Slot {
        if let Some((key, current)) = self.current.get_key_value(key)
            && current.mod_revision == revision
        {
            return Slot::Ready(key_value(key, current));
        }
        match self.change(revision) {
            Some(Change { key, value: Some(value), create_revision, .. }) => Slot::Ready(KeyValue {
                key: key.clone(),
                value: value.clone(),
                mod_revision: revision,
                create_revision: *create_revision,
            }),
            _ => Slot::OnDisk(revision),
        }
    }

    /// Up to `limit` keys (after looking at up to `effort`) of the state at `at`.
    pub(super) fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Revision,
        limit: usize,
        effort: usize,
    ) -> RangeChunk {
        let mut chunk = RangeChunk { items: Vec::new(), last_key: None, complete: true };
        for (looked_at, key) in self.keys_from(prefix, after).enumerate() {
            if chunk.items.len() >= limit || looked_at >= effort {
                chunk.complete = false;
                break;
            }
            chunk.items.extend(self.lookup(key, at));
            chunk.last_key = Some(key.clone());
        }
        chunk
    }

    /// How many of up to `effort` keys exist at `at`; and the key to go on after, if there may be more.
    pub(super) fn count(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Revision,
        effort: usize,
    ) -> (u64, Option<Arc<str>>) {
        let mut count = 0;
        let mut last = None;
        for (looked_at, key) in self.keys_from(prefix, after).enumerate() {
            if looked_at >= effort {
                return (count, last);
            }
            count += u64::from(self.lookup(key, at).is_some());
            last = Some(key.clone());
        }
        (count, None)
    }

    /// Existing and recently deleted keys in order.
    fn keys_from<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<str>> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let bounds = (start, Bound::Unbounded);
        let mut current = self.current.range::<str, _>(bounds).map(|(key, _)| key).peekable();
        let mut deleted = self.deleted.range::<str, _>(bounds).map(|(key, _)| key).peekable();
        std::iter::from_fn(move || match (current.peek(), deleted.peek()) {
            (Some(a), Some(b)) if a < b => current.next(),
            (Some(_), None) => current.next(),
            _ => deleted.next(),
        })
        .take_while(move |key| key.starts_with(prefix))
    }

    /// Up to `limit` events under `prefix` with revisions in `(after, to]`, from at most `effort` changes; and the
    /// revision up to which the history was looked at.
    pub(super) fn events(
        &self,
        prefix: &str,
        after: Revision,
        to: Revision,
        limit: usize,
        effort: usize,
    ) -> (Vec<PastEvent>, Revision) {
        let mut events = Vec::new();
        let mut seen = to;
        for (looked_at, change) in self.history.range(self.index_after(after)..).enumerate() {
            if change.revision > to {
                break;
            }
            if events.len() >= limit || looked_at >= effort {
                seen = change.revision - 1;
                break;
            }
            if change.key.starts_with(prefix) {
                let has_previous = change.previous != 0 && !change.is_create();
                events.push(PastEvent {
                    value: (change.kind == EventKind::Put).then(|| self.slot(&change.key, change.revision)),
                    previous: has_previous.then(|| self.slot(&change.key, change.previous)),
                    change: change.clone(),
                });
            }
        }
        (events, seen)
    }
}

fn key_value(key: &Arc<str>, current: &Current) -> KeyValue {
    KeyValue {
        key: key.clone(),
        value: current.value.clone(),
        mod_revision: current.mod_revision,
        create_revision: current.create_revision,
    }
}
