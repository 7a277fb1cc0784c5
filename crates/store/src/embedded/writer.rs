//! The writer thread: the only place where the store changes.
//!
//! Each round takes everything that waits and works in this order: writes that need no disk (and deletes of
//! expired keys) are applied, published and answered; the others are evaluated one after the other and go to the disk in one
//! commit (together with what was published before but not yet written, and with the removal of compacted
//! records), then they are published and answered. So all waiting writers share one commit, and nobody ever sees
//! a durable write before it is on the disk.
//!
//! Published means: applied to the state, queued for the watchers, then shown by `revision()`.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::oneshot;

use super::Shared;
use super::disk::Commit;
use super::inbox::{Operation, Reply, Request, Taken, Write, closed};
use super::state::{Change, Current, State};
use crate::{Delete, Durability, Event, EventKind, Expect, KeyValue, Revision, StoreError};

/// Revision numbers set aside on the disk for writes that are shown before they are stored. After a crash
/// numbering goes on behind them.
const RESERVE: u64 = 100_000;
/// Changes that may wait for the disk after they were answered, before a commit is due.
const UNWRITTEN_LIMIT: usize = 2_048;
/// Changes compacted per commit, and keys expired per round: bounds how long a writer waits for them.
const CHORE_LIMIT: usize = 512;
/// A file so long with little in it is made shorter...
const WASTE: u64 = 64 << 20;
/// ... when nobody has written for this time.
const IDLE: Duration = Duration::from_secs(30);
/// An update that adds no more than this is accepted a little above the quota: marks of deletion, finalizers, states.
const SMALL_GROWTH: u64 = 16 * 1024;
/// How long to wait between attempts while the disk fails or is full.
const RETRY: Duration = Duration::from_secs(1);

/// A successful answer or a refusal, held back until what it rests on is durable.
struct Answer {
    reply: Reply,
    result: Result<(Revision, Option<KeyValue>), StoreError>,
    /// Gives back the write's share of the inbox when dropped.
    _permit: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl Answer {
    fn send(self) {
        match (self.reply, self.result) {
            (reply, Err(error)) => reply.fail(error),
            (Reply::Put(caller), Ok((revision, _))) => drop(caller.send(Ok(revision))),
            (Reply::Delete(caller), Ok((revision, Some(old)))) => drop(caller.send(Ok((revision, old)))),
            (Reply::Delete(caller), Ok((_, None))) => {
                drop(caller.send(Err(StoreError::Conflict { current: None })));
            }
            (Reply::Nobody, Ok(_)) => {}
        }
    }
}

/// Evaluated writes: what changes, and what to answer when it has.
#[derive(Default)]
struct Plan {
    changes: Vec<Change>,
    answers: Vec<Answer>,
}

impl Plan {
    fn answer(self) {
        self.answers.into_iter().for_each(Answer::send);
    }

    fn fail(self, error: &StoreError) {
        for answer in self.answers {
            answer.reply.fail(error.clone());
        }
    }
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    /// The newest number given to a write, successful or not.
    last_revision: Revision,
    /// Everything up to here is on the disk.
    durable: Revision,
    /// Stored in the file: numbers up to here may be shown.
    reserved: Revision,
    /// Published, not yet on the disk.
    unwritten: Vec<Change>,
    /// When `unwritten` has to be on the disk.
    flush_at: Option<Duration>,
    /// Keys that expire, by time in milliseconds since the epoch.
    expiries: BTreeSet<(u64, Arc<str>)>,
    /// At which time the store was at which revision; the oldest first.
    checkpoints: VecDeque<(Duration, Revision)>,
    /// Compaction goes up to here, a few changes with every commit.
    compact_to: Revision,
    compacting: Vec<(Revision, oneshot::Sender<Result<(), StoreError>>)>,
    /// Revisions whose records the next commit removes.
    garbage: Vec<Revision>,
    /// The compacted revision that is in the file.
    compacted: Revision,
    /// The disk failed: why, and when to try again.
    broken: Option<(StoreError, Duration)>,
    /// The disk was full: refuse puts until then, and until there is space to set aside again.
    full_until: Option<Duration>,
    /// When the last request came, and the file's length when its free pages were last given back.
    busy_at: Duration,
    reclaimed: u64,
}

impl Writer {
    /// Numbering starts at `reserved`: above everything anybody may have seen before a crash.
    pub(super) fn new(
        shared: Arc<Shared>,
        durable: Revision,
        reserved: Revision,
    ) -> Result<Writer, StoreError> {
        let state = shared.state.read();
        let expiring = |(key, current): (&Arc<str>, &Current)| {
            (current.expires_at != 0).then(|| (current.expires_at, key.clone()))
        };
        let expiries = state.currents().filter_map(expiring).collect();
        let (last_revision, compacted) = (state.revision(), state.compacted());
        drop(state);
        let mut writer = Writer {
            shared,
            last_revision,
            durable,
            reserved,
            unwritten: Vec::new(),
            flush_at: None,
            expiries,
            checkpoints: VecDeque::new(),
            compact_to: compacted,
            compacting: Vec::new(),
            garbage: Vec::new(),
            compacted,
            broken: None,
            full_until: None,
            busy_at: Duration::ZERO,
            reclaimed: 0,
        };
        writer.busy_at = writer.now();
        writer.checkpoint();
        if let Err(error) = writer.commit(&[]) {
            if !matches!(error, StoreError::NoSpace { .. }) || !writer.shared.disk.give_up_spare() {
                return Err(error);
            }
            writer.shared.disk.reopen(writer.durable)?;
            writer.commit(&[])?;
        }
        if !writer.shared.disk.keep_spare() {
            writer.full_until = Some(writer.now() + RETRY);
        }
        Ok(writer)
    }

    pub(super) fn run(mut self) {
        loop {
            let Taken { requests, stopped } = self.shared.inbox.take(self.timeout());
            if !requests.is_empty() {
                self.busy_at = self.now();
            }
            self.round(requests);
            self.reclaim();
            if stopped {
                break;
            }
        }
        // With exactly the used numbers reserved the next opening sees that nothing was lost.
        let commit = Commit {
            changes: &[&self.unwritten],
            remove: &self.garbage,
            compacted: Some(self.shared.state.read().compacted()),
            reserved: Some(self.last_revision),
        };
        if self.broken.is_none()
            && let Err(error) = self.shared.disk.commit(&commit)
        {
            tracing::error!(%error, "the last writes of the store did not reach the disk");
        }
        for (_, waiter) in self.compacting {
            drop(waiter.send(Err(closed())));
        }
        self.shared.hub.lock().close();
        self.shared.disk.close();
    }

    fn now(&self) -> Duration {
        self.shared.options.clock.monotonic()
    }

    fn now_millis(&self) -> u64 {
        let since_epoch = self.shared.options.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    }

    /// How long nothing is to be done unless a request comes.
    fn timeout(&self) -> Option<Duration> {
        if let Some((_, retry_at)) = &self.broken {
            return Some(retry_at.saturating_sub(self.now()));
        }
        let state = self.shared.state.read();
        if self.compaction_due(&state) {
            return Some(Duration::ZERO);
        }
        let aged = match self.checkpoints.front() {
            Some((at, _)) if state.history_len() > self.shared.options.history_min => {
                Some((*at + self.shared.options.history).saturating_sub(self.now()))
            }
            _ => None,
        };
        let flush = self.flush_at.map(|at| at.saturating_sub(self.now()));
        let expiry =
            self.expiries.first().map(|(at, _)| Duration::from_millis(at.saturating_sub(self.now_millis())));
        let reclaim = self.has_waste(&state).then(|| (self.busy_at + IDLE).saturating_sub(self.now()));
        [aged, flush, expiry, reclaim].into_iter().flatten().min()
    }

    /// Is much more of the file free than used?
    fn has_waste(&self, state: &State) -> bool {
        let length = self.shared.disk.file_bytes();
        length > WASTE && length > 4 * state.stored_bytes() && length > self.reclaimed
    }

    /// Gives free pages back to the file system when nobody writes: writers wait as long as it takes.
    fn reclaim(&mut self) {
        if self.broken.is_some() || self.now() < self.busy_at + IDLE {
            return;
        }
        if !self.has_waste(&self.shared.state.read()) {
            return;
        }
        let before = self.shared.disk.file_bytes();
        if let Err(error) = self.shared.disk.defragment() {
            tracing::warn!(%error, "free space in the store's file could not be given back");
        }
        self.reclaimed = self.shared.disk.file_bytes();
        tracing::info!(before, after = self.reclaimed, "free space in the store's file was given back");
    }

    fn compaction_due(&self, state: &State) -> bool {
        !self.garbage.is_empty() || state.compacted() < self.compact_to
    }

    fn round(&mut self, requests: VecDeque<Request>) {
        let mut fleeting = self.expired();
        let mut durable = Vec::new();
        let mut flushes = Vec::new();
        let mut defragments = Vec::new();
        for request in requests {
            match request {
                Request::Write(write) => match write.operation.durability() {
                    Durability::Memory => fleeting.push(write),
                    Durability::Disk => durable.push(write),
                },
                Request::Flush(waiter) => flushes.push(waiter),
                Request::Compact(revision, waiter) => self.request_compaction(revision, waiter),
                Request::Defragment(waiter) => defragments.push(waiter),
            }
        }
        if let Err(error) = self.heal() {
            fleeting.into_iter().chain(durable).for_each(|write| write.reply.fail(error.clone()));
            flushes.into_iter().chain(defragments).for_each(|waiter| drop(waiter.send(Err(error.clone()))));
            return;
        }
        self.check_disk();
        self.write_to_memory(fleeting);
        let plan = self.evaluate(durable);
        self.age_history();
        self.collect_garbage();
        let flush_due = self.flush_at.is_some_and(|at| at <= self.now());
        let unwritten_due = flush_due || !flushes.is_empty() || self.unwritten.len() >= UNWRITTEN_LIMIT;
        let due = !plan.changes.is_empty()
            || self.compacted != self.shared.state.read().compacted()
            || (unwritten_due && !self.unwritten.is_empty());
        let outcome = if due {
            self.write_to_disk(plan)
        } else {
            plan.answer();
            Ok(())
        };
        flushes.into_iter().for_each(|waiter| drop(waiter.send(outcome.clone())));
        self.answer_compactions();
        for waiter in defragments {
            drop(waiter.send(self.shared.disk.defragment()));
        }
    }

    /// Deletes of keys whose time is over.
    fn expired(&mut self) -> Vec<Write> {
        let now = self.now_millis();
        let state = self.shared.state.read();
        let due = self.expiries.iter().take_while(|(at, _)| *at <= now).take(CHORE_LIMIT);
        let delete = |(_, key): &(u64, Arc<str>)| {
            let (_, current) = state.current(key)?;
            Some(Write {
                operation: Operation::Delete(Delete {
                    key: key.clone(),
                    expect: Expect::Revision(current.mod_revision),
                    durability: Durability::Memory,
                }),
                reply: Reply::Nobody,
                permit: None,
            })
        };
        due.filter_map(delete).collect()
    }

    /// Decides about writes in their order. Nothing is changed but the numbering.
    fn evaluate(&mut self, writes: Vec<Write>) -> Plan {
        let mut plan = Plan::default();
        if writes.is_empty() {
            return plan;
        }
        let now = self.now_millis();
        let shared = self.shared.clone();
        let state = shared.state.read();
        // What earlier writes of this plan make of the keys: the value, or the revision of the delete.
        let mut overlay: HashMap<Arc<str>, Result<Current, Revision>> = HashMap::new();
        let mut planned_bytes = 0;
        for Write { operation, reply, permit } in writes {
            let (key, expect) = match &operation {
                Operation::Put(put) => (&put.key, put.expect),
                Operation::Delete(delete) => (&delete.key, delete.expect),
            };
            let present = match overlay.get(key) {
                Some(present) => present.clone(),
                None => match state.current(key) {
                    Some((_, current)) => Ok(current.clone()),
                    None => Err(state.last_delete(key)),
                },
            };
            let old = present.as_ref().ok().map(|current| KeyValue {
                key: key.clone(),
                value: current.value.clone(),
                mod_revision: current.mod_revision,
                create_revision: current.create_revision,
            });
            let is_put = matches!(operation, Operation::Put(_));
            let holds = match (expect, &old) {
                (Expect::Any, None) => is_put,
                (Expect::Any, Some(_)) => true,
                (Expect::Absent, old) => old.is_none() && is_put,
                (Expect::Revision(expected), old) => {
                    old.as_ref().is_some_and(|old| old.mod_revision == expected)
                }
            };
            let revision = self.last_revision + 1;
            let change = match operation {
                _ if !holds => Err(StoreError::Conflict { current: old.clone() }),
                Operation::Put(put) => {
                    let ttl = |ttl: Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                    let change = Change {
                        revision,
                        key: put.key,
                        kind: EventKind::Put,
                        create_revision: old.as_ref().map_or(revision, |old| old.create_revision),
                        previous: present.as_ref().map_or_else(|deleted| *deleted, |old| old.mod_revision),
                        expires_at: put.ttl.map_or(0, |time| now.saturating_add(ttl(time)).max(1)),
                        value: Some(put.value),
                    };
                    let used = state.stored_bytes() + planned_bytes;
                    self.check_space(used, &change, old.as_ref()).map(|()| change)
                }
                Operation::Delete(delete) => Ok(Change {
                    revision,
                    key: delete.key,
                    kind: EventKind::Delete,
                    create_revision: old.as_ref().map_or(0, |old| old.create_revision),
                    previous: old.as_ref().map_or(0, |old| old.mod_revision),
                    expires_at: 0,
                    value: None,
                }),
            };
            let result = change.map(|change| {
                self.last_revision = revision;
                planned_bytes += change.stored_bytes();
                let after = change.value.clone().map(|value| Current {
                    value,
                    mod_revision: revision,
                    create_revision: change.create_revision,
                    expires_at: change.expires_at,
                });
                overlay.insert(change.key.clone(), after.ok_or(revision));
                plan.changes.push(change);
                (revision, old)
            });
            plan.answers.push(Answer { reply, result, _permit: permit });
        }
        plan
    }

    /// Above the quota keys are deleted and changed a little, which deleting an object often takes, but not created.
    fn check_space(&self, used: u64, change: &Change, old: Option<&KeyValue>) -> Result<(), StoreError> {
        if self.full_until.is_some() {
            return Err(StoreError::NoSpace { reason: "the disk is full; deletes still go on".to_owned() });
        }
        let (quota, more) = (self.shared.options.quota, change.stored_bytes());
        let length = change.value.as_ref().map_or(0, bytes::Bytes::len) as u64;
        let grows_little = old.is_some_and(|old| length <= old.value.len() as u64 + SMALL_GROWTH);
        let limit = if grows_little { quota + quota / 16 } else { quota };
        if used + more <= limit {
            return Ok(());
        }
        Err(StoreError::NoSpace {
            reason: format!(
                "{used} of the quota's {quota} bytes are used, {more} more are needed; deletes and small changes still go on"
            ),
        })
    }

    /// Is there space again? Asked at most once in a while.
    fn check_disk(&mut self) {
        if self.full_until.is_some_and(|until| self.now() >= until) {
            self.full_until = (!self.shared.disk.keep_spare()).then(|| self.now() + RETRY);
        }
    }

    /// Applies and answers writes that need not wait for the disk.
    fn write_to_memory(&mut self, writes: Vec<Write>) {
        let plan = self.evaluate(writes);
        if plan.changes.last().is_some_and(|change| change.revision > self.reserved) {
            // Out of set-aside numbers: these wait for the disk like any other.
            let _ = self.write_to_disk(plan);
            return;
        }
        if !plan.changes.is_empty() {
            let flush_at = self.now() + self.shared.options.flush_interval;
            self.flush_at.get_or_insert(flush_at);
            self.unwritten.extend(plan.changes.iter().cloned());
            self.publish(plan.changes);
        }
        plan.answers.into_iter().for_each(Answer::send);
    }

    /// Brings everything to the disk in one commit, then publishes and answers the plan.
    fn write_to_disk(&mut self, mut plan: Plan) -> Result<(), StoreError> {
        let changes = std::mem::take(&mut plan.changes);
        match self.commit(&changes) {
            Ok(()) => {
                self.publish(changes);
                plan.answer();
                Ok(())
            }
            Err(error) => self.after_failure(changes, plan, error),
        }
    }

    /// One commit of all that is unwritten, plus `changes`.
    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let top_up = self.last_revision + RESERVE / 2 > self.reserved;
        let reserved = top_up.then_some(self.last_revision + RESERVE);
        let compacted = self.shared.state.read().compacted();
        let commit = Commit {
            changes: &[&self.unwritten, changes],
            remove: &self.garbage,
            compacted: (compacted != self.compacted).then_some(compacted),
            reserved,
        };
        let removed = self.shared.disk.commit(&commit)?;
        self.shared.counters.commits.fetch_add(1, Ordering::Relaxed);
        self.written(changes, compacted, reserved);
        if removed > 0 {
            self.shared.state.write().removed(removed);
        }
        Ok(())
    }

    /// A commit is on the disk.
    fn written(&mut self, changes: &[Change], compacted: Revision, reserved: Option<Revision>) {
        self.durable =
            changes.last().or(self.unwritten.last()).map_or(self.durable, |change| change.revision);
        self.unwritten.clear();
        self.garbage.clear();
        self.flush_at = None;
        if self.full_until.is_some() {
            // There may be space again: the next round looks.
            self.full_until = Some(self.now());
        }
        self.compacted = compacted;
        self.reserved = reserved.unwrap_or(self.reserved);
    }

    /// Shows changes to everybody: state, watchers, revision, in this order.
    fn publish(&mut self, changes: Vec<Change>) {
        let Some(last) = changes.last().map(|change| change.revision) else { return };
        self.shared.counters.writes.fetch_add(changes.len() as u64, Ordering::Relaxed);
        let shared = self.shared.clone();
        // A new watcher takes the hub's lock to learn where its history ends and its queue begins.
        let mut hub = shared.hub.lock();
        let mut events = Vec::with_capacity(changes.len());
        {
            let mut state = shared.state.write();
            for change in changes {
                let old = state.current(&change.key).map(|(key, current)| (key.clone(), current.clone()));
                if let Some((key, old)) = &old
                    && old.expires_at != 0
                {
                    self.expiries.remove(&(old.expires_at, key.clone()));
                }
                if change.expires_at != 0 {
                    self.expiries.insert((change.expires_at, change.key.clone()));
                }
                events.push(event(&change, old));
                state.apply(change);
            }
            state.trim_values(shared.options.history_memory, self.durable);
        }
        hub.deliver(&events, shared.queue_limit());
        shared.revision.store(last, Ordering::Release);
    }

    /// A commit failed. The file decides whether it happened: what is found in it is published, the rest was not written.
    fn after_failure(
        &mut self,
        changes: Vec<Change>,
        plan: Plan,
        error: StoreError,
    ) -> Result<(), StoreError> {
        tracing::error!(%error, "a commit of the store failed; opening its file again");
        if matches!(error, StoreError::NoSpace { .. }) {
            self.full_until = Some(self.now() + RETRY);
            self.shared.disk.give_up_spare();
        }
        self.broken = Some((error.clone(), self.now()));
        let healed = self.heal();
        let published = self.shared.state.read().revision();
        match changes.last() {
            Some(last) if last.revision <= published => {
                plan.answer();
                Ok(())
            }
            Some(_) => {
                plan.fail(&error);
                Err(error)
            }
            None => {
                plan.answer();
                healed
            }
        }
    }

    /// While the disk has failed: tries to get it back. All writes fail as long as this does.
    fn heal(&mut self) -> Result<(), StoreError> {
        let Some((error, retry_at)) = &self.broken else { return Ok(()) };
        if self.now() < *retry_at {
            return Err(error.clone());
        }
        let published = self.shared.state.read().revision();
        let healed = self.shared.disk.reopen(published).and_then(|found| {
            // This commit's fsync makes sure of what was found, too: it may be only in the page cache.
            self.broken = None;
            let full_until = self.full_until;
            self.commit(&[])?;
            self.full_until = full_until;
            Ok(found)
        });
        match healed {
            Ok(found) => {
                self.last_revision =
                    found.last().map_or(self.last_revision, |last| last.revision.max(self.last_revision));
                self.durable = found.last().map_or(self.durable, |last| last.revision);
                self.publish(found);
                tracing::info!("the store's file is in use again");
                Ok(())
            }
            Err(error) => {
                self.broken = Some((error.clone(), self.now() + RETRY));
                Err(error)
            }
        }
    }

    fn request_compaction(&mut self, revision: Revision, waiter: oneshot::Sender<Result<(), StoreError>>) {
        let state = self.shared.state.read();
        let answer = if revision > state.revision() {
            Err(StoreError::Future { current: state.revision() })
        } else if revision <= state.compacted() && state.compacted() > 0 {
            Err(StoreError::Compacted { oldest: state.compacted() })
        } else {
            self.compact_to = self.compact_to.max(revision);
            self.compacting.push((revision, waiter));
            return;
        };
        drop(waiter.send(answer));
    }

    fn answer_compactions(&mut self) {
        let compacted = self.compacted;
        for (_, waiter) in self.compacting.extract_if(.., |(revision, _)| *revision <= compacted) {
            drop(waiter.send(Ok(())));
        }
    }

    /// Remembers, about thirty times per window, which changes are older than now.
    fn checkpoint(&mut self) {
        let now = self.now();
        let spacing = self.shared.options.history / 30;
        if self.checkpoints.back().is_none_or(|(at, _)| now >= *at + spacing) {
            self.checkpoints.push_back((now, self.shared.state.read().revision()));
        }
    }

    /// Moves the point up to which history is given up: by age, by number, or because space is short.
    fn age_history(&mut self) {
        self.checkpoint();
        let options = &self.shared.options;
        let now = self.shared.options.clock.monotonic();
        let state = self.shared.state.read();
        let mut target = 0;
        while let Some((at, revision)) = self.checkpoints.front().copied()
            && now >= at + options.history
        {
            target = revision;
            self.checkpoints.pop_front();
        }
        target = target.min(state.revision_keeping(options.history_min));
        if state.history_len() > options.history_max {
            target = target.max(state.revision_keeping(options.history_max - options.history_max / 10));
        }
        if state.stored_bytes() > options.quota - options.quota / 10 {
            target = state.revision();
        }
        self.compact_to = self.compact_to.max(target);
    }

    /// Takes a few changes out of the history; the next commit removes their records.
    fn collect_garbage(&mut self) {
        if self.garbage.len() < CHORE_LIMIT && self.shared.state.read().compacted() < self.compact_to {
            self.garbage.extend(self.shared.state.write().compact(self.compact_to, CHORE_LIMIT));
        }
    }
}

fn event(change: &Change, old: Option<(Arc<str>, Current)>) -> Event {
    let prev = old.map(|(key, old)| KeyValue {
        key,
        value: old.value,
        mod_revision: old.mod_revision,
        create_revision: old.create_revision,
    });
    let value = match (&change.value, &prev) {
        (Some(value), _) => value.clone(),
        (None, Some(prev)) => prev.value.clone(),
        (None, None) => bytes::Bytes::new(),
    };
    let kv = KeyValue {
        key: change.key.clone(),
        value,
        mod_revision: change.revision,
        create_revision: change.create_revision,
    };
    Event { kind: change.kind, kv, prev }
}
