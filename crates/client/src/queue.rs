//! A work queue of keys: each key waits at most once, is worked on by one worker at a time, and is retried
//! with a back-off of its own.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::Distribution;
use crate::queue_stats::{QueueStats, TIMES};

/// A key waits no longer, whatever is asked for (an object may name more seconds than a clock can hold): it is then looked at
/// once too often.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// A delay that doubles from a minimum to a maximum, with up to a quarter of jitter.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `min`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// The delay to wait now; the next one will be twice as long.
    #[allow(clippy::should_implement_trait, reason = "it never ends, and nobody iterates over delays")]
    pub fn next(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.max);
        delay.mul_f64(1.0 + rand::random::<f64>() / 4.0)
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

/// The back-off of a key's retries, as the reference's controllers use it.
pub const RETRY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1000));

struct State<K> {
    ready: VecDeque<K>,
    /// Waiting or to be worked on again after `done`; since when.
    dirty: HashMap<K, Instant>,
    /// Since when each is worked on.
    working: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
    /// Keys to be added later; the earliest wish of a key wins.
    later: HashMap<K, (Instant, u64)>,
    /// The same by time. An entry whose number is no longer the key's was replaced by an earlier wish.
    timers: BinaryHeap<Reverse<Timer<K>>>,
    wishes: u64,
    closed: bool,
    counts: Counts,
}

struct Counts {
    adds: u64,
    retries: u64,
    waited: Distribution,
    worked: Distribution,
}

impl<K: Clone + Eq + Hash> State<K> {
    /// Whether the key is new among those to be worked on.
    fn mark(&mut self, key: &K, now: Instant) -> bool {
        if self.dirty.contains_key(key) {
            return false;
        }
        self.dirty.insert(key.clone(), now);
        self.counts.adds += 1;
        true
    }
}

struct Timer<K> {
    at: Instant,
    wish: u64,
    key: K,
}

impl<K> Ord for Timer<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.wish).cmp(&(other.at, other.wish))
    }
}

impl<K> PartialOrd for Timer<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> PartialEq for Timer<K> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<K> Eq for Timer<K> {}

struct Shared<K> {
    state: Mutex<State<K>>,
    ready: Notify,
    timer: Notify,
}

/// The queue; clone it freely.
pub struct WorkQueue<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> Default for WorkQueue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> WorkQueue<K> {
    /// An empty queue.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    ready: VecDeque::new(),
                    dirty: HashMap::new(),
                    working: HashMap::new(),
                    failures: HashMap::new(),
                    later: HashMap::new(),
                    timers: BinaryHeap::new(),
                    wishes: 0,
                    closed: false,
                    counts: Counts {
                        adds: 0,
                        retries: 0,
                        waited: Distribution::new(&TIMES),
                        worked: Distribution::new(&TIMES),
                    },
                }),
                ready: Notify::new(),
                timer: Notify::new(),
            }),
        }
    }

    /// Asks for work on `key`; nothing happens where that is asked already.
    pub fn add(&self, key: K) {
        let mut state = self.shared.state.lock();
        if state.closed || !state.mark(&key, Instant::now()) {
            return;
        }
        if !state.working.contains_key(&key) {
            state.ready.push_back(key);
            drop(state);
            self.shared.ready.notify_one();
        }
    }

    /// As [`Self::add`], after a delay.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay.min(LONGEST);
        let mut state = self.shared.state.lock();
        if state.closed {
            return;
        }
        if state.later.get(&key).is_some_and(|(earlier, _)| *earlier <= at) {
            return;
        }
        state.wishes += 1;
        let wish = state.wishes;
        state.later.insert(key.clone(), (at, wish));
        // a waiting worker sleeps until the earliest timer: only an earlier one concerns it
        let first = state.timers.peek().is_none_or(|Reverse(timer)| at < timer.at);
        state.timers.push(Reverse(Timer { at, wish, key }));
        drop(state);
        if first {
            self.shared.timer.notify_one();
        }
    }

    /// Asks for work on all keys that wait for a time: it may have come, because the clock jumped.
    pub fn hurry(&self) {
        let mut state = self.shared.state.lock();
        let now = Instant::now();
        state.timers.clear();
        let keys: Vec<K> = state.later.drain().map(|(key, _)| key).collect();
        for key in keys {
            if state.mark(&key, now) && !state.working.contains_key(&key) {
                state.ready.push_back(key);
            }
        }
        drop(state);
        // whoever is woken wakes the next
        self.shared.ready.notify_one();
    }

    /// As [`Self::add`], after the key's own back-off, which grows with every call until [`Self::forget`].
    pub fn add_rate_limited(&self, key: K) {
        let failures = {
            let mut state = self.shared.state.lock();
            state.counts.retries += 1;
            let count = state.failures.entry(key.clone()).or_default();
            *count += 1;
            *count
        };
        let delay = RETRY.0.saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX)).min(RETRY.1);
        self.add_after(key, delay);
    }

    /// Forgets the key's failures.
    pub fn forget(&self, key: &K) {
        self.shared.state.lock().failures.remove(key);
    }

    /// How often the key was rate-limited since it was last forgotten.
    pub fn failures(&self, key: &K) -> u32 {
        self.shared.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// How many keys wait to be worked on now.
    pub fn len(&self) -> usize {
        self.shared.state.lock().ready.len()
    }

    /// Whether no key waits to be worked on now.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the queue did and how it stands.
    pub fn stats(&self) -> QueueStats {
        let state = self.shared.state.lock();
        let open = || state.working.values().map(Instant::elapsed);
        QueueStats {
            depth: state.ready.len(),
            adds: state.counts.adds,
            retries: state.counts.retries,
            waited: state.counts.waited.clone(),
            worked: state.counts.worked.clone(),
            unfinished: open().sum(),
            longest: open().max().unwrap_or_default(),
        }
    }

    /// The next key; `None` once the queue is shut down. Call [`Self::done`] when its work is over.
    pub async fn next(&self) -> Option<K> {
        loop {
            let due = {
                let mut state = self.shared.state.lock();
                if state.closed {
                    return None;
                }
                let due = take_due(&mut state);
                if let Some(key) = state.ready.pop_front() {
                    let now = Instant::now();
                    if let Some(since) = state.dirty.remove(&key) {
                        state.counts.waited.time(now - since);
                    }
                    state.working.insert(key.clone(), now);
                    if !state.ready.is_empty() {
                        self.shared.ready.notify_one();
                    }
                    return Some(key);
                }
                due
            };
            tokio::select! {
                () = self.shared.ready.notified() => {}
                () = self.shared.timer.notified() => {}
                () = until(due) => {}
            }
        }
    }

    /// Ends the work on `key`; it is queued again where it was added meanwhile.
    pub fn done(&self, key: &K) {
        let mut state = self.shared.state.lock();
        if let Some(since) = state.working.remove(key) {
            state.counts.worked.time(since.elapsed());
        }
        if state.dirty.contains_key(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.shared.ready.notify_one();
        }
    }

    /// Ends the queue: `next` answers `None`, adding does nothing.
    pub fn shut_down(&self) {
        self.shared.state.lock().closed = true;
        self.shared.ready.notify_waiters();
        self.shared.timer.notify_waiters();
        // for a worker that is between its check and its wait
        self.shared.ready.notify_one();
    }
}

/// Moves keys whose time has come to the ready list; when the next one's comes.
fn take_due<K: Clone + Eq + Hash>(state: &mut State<K>) -> Option<Instant> {
    let now = Instant::now();
    while let Some(Reverse(timer)) = state.timers.peek() {
        let current = state.later.get(&timer.key).is_some_and(|(_, wish)| *wish == timer.wish);
        if current && timer.at > now {
            return Some(timer.at);
        }
        let Some(Reverse(Timer { key, .. })) = state.timers.pop() else { break };
        if current {
            state.later.remove(&key);
            if state.mark(&key, now) && !state.working.contains_key(&key) {
                state.ready.push_back(key);
            }
        }
    }
    None
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn keys_that_wait_are_due_when_the_clock_jumped() {
        let queue = WorkQueue::new();
        queue.add_after("later", Duration::from_secs(3600));
        queue.add_after("now", Duration::from_secs(60));
        let began = Instant::now();
        queue.hurry();
        let mut keys = [queue.next().await, queue.next().await];
        keys.sort();
        assert_eq!((keys, began.elapsed()), ([Some("later"), Some("now")], Duration::ZERO));
        keys.into_iter().flatten().for_each(|key| queue.done(&key));
        // and they are not due a second time
        tokio::select! {
            key = queue.next() => panic!("{key:?}"),
            () = tokio::time::sleep(Duration::from_secs(7200)) => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_twice_is_worked_on_once_and_never_twice_at_a_time() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, Some("a"));
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, Some("b"));
        assert!(queue.is_empty());
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_beyond_all_clocks_is_a_long_one() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::MAX);
        assert_eq!((queue.next().await, start.elapsed() >= LONGEST), (Some("a"), true));
    }

    #[tokio::test(start_paused = true)]
    async fn retries_double_until_forgotten() {
        let queue = WorkQueue::new();
        let mut delays = Vec::new();
        for _ in 0..4 {
            let start = Instant::now();
            queue.add_rate_limited("a");
            assert_eq!(queue.next().await, Some("a"));
            delays.push(start.elapsed().as_millis());
            queue.done(&"a");
        }
        assert_eq!(delays, [5, 10, 20, 40]);
        queue.forget(&"a");
        assert_eq!(queue.failures(&"a"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_wish_of_a_key_wins() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        for (key, seconds) in [("a", 9), ("b", 5), ("a", 2), ("a", 7)] {
            queue.add_after(key, Duration::from_secs(seconds));
        }
        let mut seen = Vec::new();
        for _ in 0..2 {
            let key = queue.next().await.unwrap();
            seen.push((key, start.elapsed().as_secs()));
            queue.done(&key);
        }
        assert_eq!(seen, [("a", 2), ("b", 5)]);
        queue.add_after("c", Duration::from_secs(60));
        assert_eq!(queue.next().await, Some("c"));
        assert_eq!(start.elapsed().as_secs(), 65);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shut_down_queue_wakes_its_workers() {
        let queue = WorkQueue::<u8>::new();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move {
                    let end = queue.next().await;
                    queue.shut_down();
                    end
                })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.shut_down();
        for worker in workers {
            assert_eq!(worker.await.unwrap(), None);
        }
    }
}
