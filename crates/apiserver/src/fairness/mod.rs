//! API priority and fairness: every request belongs to a flow (by a FlowSchema), every flow to a priority level with
//! seats of its own, and what finds no seat waits in that level's queues, or is told to come again.
//!
//! [`queues`] decides and knows neither tasks nor clocks; [`shares`] divides the seats; [`matching`] classifies;
//! [`work`] estimates; this file lets requests wait; [`config`] makes flows and levels of the API's objects. One task
//! ([`follow`]) follows those objects, keeps the default ones, and moves unused seats between levels every now and then.
//!
//! A request takes its level's lock twice, for some hundred nanoseconds; one of an exempt level takes none.
//!
//! Rule: Kubernetes documentation, "API Priority and Fairness"; KEP-1040.

pub mod config;
pub mod demand;
pub mod dump;
pub mod follow;
pub mod matching;
pub mod metrics;
pub mod queues;
pub mod shares;
pub mod work;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use self::config::{Config, Flow};
use self::metrics::FlowStats;
use self::queues::{Arrival, Queues, Refusal, Running, Ticket, Work};
use self::shares::{Claim, Need, Seats};
use crate::auth::UserInfo;
use crate::request_info::RequestInfo;

const FLOW_HEADER: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_HEADER: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// Seconds since the process began to count.
fn seconds_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}

/// The traffic of the whole server.
pub struct Fairness {
    config: ArcSwap<Config>,
    /// Longest wait in a queue.
    patience: Duration,
}

impl Fairness {
    /// With this many seats in all; with the mandatory levels only, until the API's objects are read.
    pub fn new(total: u32, patience: Duration) -> Self {
        let start = Instant::now();
        Self { config: ArcSwap::from_pointee(Config::mandatory(total, start)), patience }
    }

    /// The flow of a request.
    pub fn classify(&self, user: &UserInfo, info: &RequestInfo) -> Option<Arc<Flow>> {
        self.config.load().classify(user, info)
    }

    /// Waits for the seats of a request.
    pub async fn admit(
        &self,
        flow: &Arc<Flow>,
        user: &UserInfo,
        info: &RequestInfo,
        work: Work,
    ) -> Result<Place, Refusal> {
        let came = Instant::now();
        let stats = flow.stats.clone();
        let lines = flow.level.lines.clone();
        let admitted = lines.enter(&flow.stats, flow.hash(user, info), work, self.patience).await;
        stats.waited(admitted.is_ok(), came.elapsed());
        match admitted {
            Ok(running) => {
                stats.begin(work);
                Ok(Place { lines, stats, running, seats: work.most_seats(), began: Instant::now() })
            }
            Err(refusal) => {
                stats.refused(refusal);
                Err(refusal)
            }
        }
    }

    /// What is in force now.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Moves seats that were not needed to levels that needed more.
    pub fn adjust(&self) {
        let config = self.config.load();
        let levels: Vec<&Arc<Lines>> = config.levels.values().map(|level| &level.lines).collect();
        let claims: Vec<Claim> = levels.iter().map(|lines| lines.claim()).collect();
        let (seats, fraction) = shares::adjust(&claims);
        for (lines, seats) in levels.into_iter().zip(seats) {
            lines.set_limit(seats, fraction);
        }
    }
}

impl Flow {
    /// Requests of one flow share a hand of queues.
    fn hash(&self, user: &UserInfo, info: &RequestInfo) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.name.hash(&mut hasher);
        self.by.of(user, info).hash(&mut hasher);
        hasher.finish()
    }

    /// Tells a client which flow and level it was in, by uid: names are not for everybody.
    pub fn mark(&self, headers: &mut HeaderMap<HeaderValue>) {
        headers.insert(FLOW_HEADER, self.uid.clone());
        headers.insert(LEVEL_HEADER, self.level.uid.clone());
    }
}

/// Seats, until it is dropped.
pub struct Place {
    lines: Arc<Lines>,
    stats: Arc<FlowStats>,
    /// None in an exempt level.
    running: Option<Running>,
    seats: u32,
    began: Instant,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stats.end(self.seats, self.began.elapsed());
        match self.running.take() {
            Some(running) => self.lines.finish(running),
            None => {
                self.lines.exempt.fetch_sub(self.seats, Ordering::Relaxed);
            }
        }
    }
}

/// Seats that are given back after a while even if their holder forgets them.
pub struct Held(tokio::task::JoinHandle<()>);

impl Held {
    /// Holds the seats for this long at most.
    pub fn new(place: Place, longest: Duration) -> Self {
        Self(tokio::spawn(async move {
            tokio::time::sleep(longest).await;
            drop(place);
        }))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The lines of one level. They outlive changes of its specification.
pub struct Lines {
    /// The level's name.
    pub name: String,
    /// None for an exempt level.
    state: Option<Mutex<State>>,
    /// Seats taken in an exempt level, and the most of them since the last adjustment.
    exempt: AtomicU32,
    exempt_most: AtomicU32,
    adjusted: Mutex<Adjusted>,
    start: Instant,
    /// Somebody waits for the next seats that become free by themselves.
    is_timed: AtomicBool,
}

/// What the last adjustment saw and did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Adjusted {
    /// Bounds by specification.
    pub seats: Seats,
    /// What was asked for.
    pub need: Need,
    /// The share of its target that it got.
    pub fraction: f64,
}

struct State {
    queues: Queues,
    waiters: HashMap<Ticket, oneshot::Sender<Running>>,
    /// Room for what may run; empty between calls.
    out: Vec<Running>,
}

impl Lines {
    /// Of a level that queues in this way; none for an exempt one.
    fn new(name: &str, shape: Option<queues::Shape>, seats: Seats, start: Instant) -> Self {
        let state = |shape| State {
            queues: Queues::new(shape, seats.nominal, seconds_since(start)),
            waiters: HashMap::new(),
            out: Vec::new(),
        };
        Self {
            name: name.to_owned(),
            state: shape.map(|shape| Mutex::new(state(shape))),
            exempt: AtomicU32::new(0),
            exempt_most: AtomicU32::new(0),
            adjusted: Mutex::new(Adjusted { seats, ..Adjusted::default() }),
            start,
            is_timed: AtomicBool::new(false),
        }
    }

    /// Whether its requests never wait.
    pub fn is_exempt(&self) -> bool {
        self.state.is_none()
    }

    fn now(&self) -> f64 {
        seconds_since(self.start)
    }

    /// Takes a new specification. A limit outside the new bounds is moved into them at once.
    fn set(&self, shape: Option<queues::Shape>, seats: Seats) {
        let before = std::mem::replace(&mut self.adjusted.lock().seats, seats);
        let (Some(state), Some(shape)) = (&self.state, shape) else { return };
        let mut state = state.lock();
        if state.queues.shape() != shape {
            state.queues.reshape(shape);
        }
        let limit = if before == seats {
            state.queues.limit()
        } else {
            state.queues.limit().clamp(seats.least, seats.most).max(seats.nominal.min(seats.most))
        };
        state.change(|queues, out| queues.set_limit(self.now(), limit, out));
    }

    fn set_limit(&self, limit: u32, fraction: f64) {
        self.adjusted.lock().fraction = fraction;
        if let Some(state) = &self.state {
            state.lock().change(|queues, out| queues.set_limit(self.now(), limit, out));
        }
    }

    /// What the level claims in an adjustment.
    fn claim(&self) -> Claim {
        let observed = match &self.state {
            Some(state) => state.lock().queues.take_demand(self.now()),
            None => {
                let most = self.exempt_most.swap(self.exempt.load(Ordering::Relaxed), Ordering::Relaxed);
                demand::Observed { most: f64::from(most), ..demand::Observed::default() }
            }
        };
        let mut adjusted = self.adjusted.lock();
        adjusted.need.update(observed);
        Claim { seats: adjusted.seats, need: adjusted.need, is_exempt: self.is_exempt() }
    }

    /// What the last adjustment saw and did.
    pub fn adjusted(&self) -> Adjusted {
        *self.adjusted.lock()
    }

    /// Reads the queues; none for an exempt level.
    pub fn read<T>(&self, read: impl FnOnce(&Queues) -> T) -> Option<T> {
        self.state.as_ref().map(|state| read(&state.lock().queues))
    }

    async fn enter(
        self: &Arc<Self>,
        stats: &Arc<FlowStats>,
        flow: u64,
        work: Work,
        patience: Duration,
    ) -> Result<Option<Running>, Refusal> {
        let Some(state) = &self.state else {
            let seats = work.most_seats();
            let now = self.exempt.fetch_add(seats, Ordering::Relaxed) + seats;
            // a stale maximum is made good by the next request
            if now > self.exempt_most.load(Ordering::Relaxed) {
                self.exempt_most.fetch_max(now, Ordering::Relaxed);
            }
            return Ok(None);
        };
        let (ticket, queue, receiver) = {
            let mut state = state.lock();
            let now = self.now();
            match state.change(|queues, out| queues.arrive(now, work, flow, out)) {
                Arrival::Runs(running) => return Ok(Some(running)),
                Arrival::Refused(refusal) => return Err(refusal),
                Arrival::Waits(ticket, queue) => {
                    let (sender, receiver) = oneshot::channel();
                    state.waiters.insert(ticket, sender);
                    (ticket, queue, receiver)
                }
            }
        };
        self.time_release();
        stats.queued(work.most_seats());
        let mut turn = Turn { lines: self, stats, seats: work.most_seats(), ticket, queue, receiver };
        match tokio::time::timeout(patience, &mut turn.receiver).await {
            Ok(Ok(running)) => Ok(Some(running)),
            // its turn may come in this very moment
            _ => turn.leave().map_or(Err(Refusal::TimeOut), |running| Ok(Some(running))),
        }
    }

    fn finish(self: &Arc<Self>, running: Running) {
        if let Some(state) = &self.state {
            state.lock().change(|queues, out| queues.finish(self.now(), running, out));
            if !running.work.after.is_zero() {
                self.time_release();
            }
        }
    }

    /// Sees to it that seats which become free by themselves are given to who waits.
    fn time_release(self: &Arc<Self>) {
        let due = |lines: &Self| {
            lines.read(|queues| queues.next_release().filter(|_| queues.waiting() > 0)).flatten()
        };
        if due(self).is_none() || self.is_timed.swap(true, Ordering::AcqRel) {
            return;
        }
        let lines = self.clone();
        tokio::spawn(async move {
            while let Some(at) = due(&lines) {
                tokio::time::sleep(Duration::from_secs_f64((at - lines.now()).max(0.0))).await;
                if let Some(state) = &lines.state {
                    state.lock().change(|queues, out| queues.tick(lines.now(), out));
                }
            }
            lines.is_timed.store(false, Ordering::Release);
            // who came in line since the last look found this task still at work
            lines.time_release();
        });
    }
}

impl State {
    /// Changes the queues and wakes who may run.
    fn change<T>(&mut self, change: impl FnOnce(&mut Queues, &mut Vec<Running>) -> T) -> T {
        let mut out = std::mem::take(&mut self.out);
        let result = change(&mut self.queues, &mut out);
        while let Some(running) = out.pop() {
            let waiter = self.waiters.remove(&running.ticket);
            // who gave up takes its own seats back: `Turn` finds them in the channel
            if let Some(waiter) = waiter {
                let _ = waiter.send(running);
            }
        }
        self.out = out;
        result
    }
}

/// A request in line. When it is dropped, its client has gone.
struct Turn<'a> {
    lines: &'a Arc<Lines>,
    stats: &'a Arc<FlowStats>,
    seats: u32,
    ticket: Ticket,
    queue: usize,
    receiver: oneshot::Receiver<Running>,
}

impl Turn<'_> {
    /// Steps out of line; the seats, where they came before that.
    fn leave(&mut self) -> Option<Running> {
        let state = self.lines.state.as_ref()?;
        let mut state = state.lock();
        let (ticket, queue, now) = (self.ticket, self.queue, self.lines.now());
        if state.change(|queues, out| queues.leave(now, ticket, queue, out)) {
            state.waiters.remove(&ticket);
            self.receiver.close();
            return None;
        }
        self.receiver.try_recv().ok()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.stats.left_queue(self.seats);
        // after its turn the channel is empty, and this finds nothing
        if let Some(running) = self.leave() {
            self.lines.finish(running);
        }
    }
}

#[cfg(test)]
mod tests;
