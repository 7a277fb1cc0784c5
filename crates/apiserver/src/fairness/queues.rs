//! The queues of one priority level: which request runs, waits or is refused. Pure: time comes in, decisions go out.
//!
//! Seats are what requests take while they run. A flow is hashed to a hand of queues (shuffle sharding) and waits in the
//! one with the least work. Queues are served by fair queuing: a virtual clock advances at the rate at which each busy
//! queue would get seats if all were served at once, every queue knows the virtual time at which its next request would
//! begin, and the queue whose next request would end first in virtual time is served. A request counts with an
//! estimated time until its real one is known.
//!
//! Rule: KEP-1040, "Fair Queuing for Server Requests".

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::demand::Demand;

/// What a request is thought to take, in seconds, before it has run.
const ESTIMATE: f64 = 0.003;

/// How requests wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of queues; with none, what cannot run at once is refused.
    pub queues: usize,
    /// Queues that one flow may use.
    pub hand: usize,
    /// Requests that may wait in one queue.
    pub length: usize,
}

/// What a request costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Seats while it runs.
    pub seats: u32,
    /// Seats for a while after its answer, for what it sets off.
    pub after_seats: u32,
    /// How long that while is.
    pub after: Duration,
}

impl Work {
    /// The cheapest request.
    pub const ONE: Self = Self { seats: 1, after_seats: 0, after: Duration::ZERO };

    /// What the request takes for its whole time.
    pub fn most_seats(&self) -> u32 {
        self.seats.max(self.after_seats)
    }

    /// Seat-seconds, if it runs this long.
    fn total(&self, seconds: f64) -> f64 {
        f64::from(self.seats) * seconds + f64::from(self.after_seats) * self.after.as_secs_f64()
    }
}

/// Names a request within one level.
pub type Ticket = u64;

/// A request that has its seats. Must be given back by [`Queues::finish`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Running {
    /// Which request.
    pub ticket: Ticket,
    /// What it costs.
    pub work: Work,
    queue: Option<usize>,
    started: f64,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The level does not queue, and has no seat.
    ConcurrencyLimit,
    /// The queue is as long as it may be.
    QueueFull,
    /// It waited as long as it may.
    TimeOut,
    /// Its client went away.
    Cancelled,
}

impl Refusal {
    /// As in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConcurrencyLimit => "concurrency-limit",
            Self::QueueFull => "queue-full",
            Self::TimeOut => "time-out",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What becomes of a request that arrives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrival {
    /// It runs.
    Runs(Running),
    /// It waits in this queue.
    Waits(Ticket, usize),
    /// It is turned away.
    Refused(Refusal),
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    work: Work,
    /// The virtual time of its arrival.
    arrived: f64,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Of the waiting requests, in seat-seconds.
    waiting_work: f64,
    executing: usize,
    seats: u32,
    /// The virtual time at which the next request begins.
    next: f64,
}

impl Queue {
    fn is_active(&self) -> bool {
        self.executing > 0 || !self.waiting.is_empty()
    }

    /// A request cannot begin before it came.
    fn bound(&mut self) {
        if let Some(oldest) = self.waiting.front() {
            self.next = self.next.max(oldest.arrived);
        }
    }
}

/// What one queue holds, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueView {
    /// Its number.
    pub index: usize,
    /// Requests that wait, oldest first: ticket and seats.
    pub waiting: Vec<(Ticket, u32)>,
    /// Requests that run.
    pub executing: usize,
    /// Their seats.
    pub seats: u32,
    /// The virtual time at which the next request begins.
    pub next: f64,
}

/// The queues of one level.
#[derive(Debug)]
pub struct Queues {
    shape: Shape,
    limit: u32,
    /// Those in which something waits or runs: an empty queue has no past.
    queues: BTreeMap<usize, Queue>,
    /// Emptied queues' room, for the next.
    spare: Vec<VecDeque<Waiting>>,
    /// Virtual time.
    virtual_now: f64,
    /// When it was brought up to date, in seconds.
    updated: f64,
    executing: usize,
    seats: u32,
    waiting: usize,
    waiting_seats: u32,
    robin: usize,
    arrivals: usize,
    tickets: Ticket,
    /// What holds its seats a while longer, by the time that ends it. That while is the same for all.
    lingering: VecDeque<(f64, Running)>,
    demand: Demand,
}

impl Queues {
    /// Empty, with this many seats.
    pub fn new(shape: Shape, limit: u32, now: f64) -> Self {
        Self {
            shape,
            limit,
            queues: BTreeMap::new(),
            spare: Vec::new(),
            virtual_now: 0.0,
            updated: now,
            executing: 0,
            seats: 0,
            waiting: 0,
            waiting_seats: 0,
            robin: 0,
            arrivals: 0,
            tickets: 0,
            lingering: VecDeque::new(),
            demand: Demand::new(now),
        }
    }

    /// Changes number and length of queues. What waits stays where it is; surplus queues run empty.
    pub fn reshape(&mut self, shape: Shape) {
        self.shape = shape;
    }

    /// How requests wait.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Seats there are.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Seats taken.
    pub fn seats(&self) -> u32 {
        self.seats
    }

    /// Requests that run.
    pub fn executing(&self) -> usize {
        self.executing
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Queues in which something waits or runs.
    pub fn active(&self) -> usize {
        self.queues.len()
    }

    /// When the next seats become free by themselves, in seconds.
    pub fn next_release(&self) -> Option<f64> {
        self.lingering.front().map(|(due, _)| *due)
    }

    /// What was asked of the level since the last call.
    pub fn take_demand(&mut self, now: f64) -> super::demand::Observed {
        self.demand.take(now)
    }

    /// The queues, for people.
    pub fn view(&self) -> Vec<QueueView> {
        let show = |(index, q): (&usize, &Queue)| QueueView {
            index: *index,
            waiting: q.waiting.iter().map(|w| (w.ticket, w.work.most_seats())).collect(),
            executing: q.executing,
            seats: q.seats,
            next: q.next,
        };
        self.queues.iter().map(show).collect()
    }

    /// A request of a flow (its hash) arrives. Others that may run now are put into `out`.
    pub fn arrive(&mut self, now: f64, work: Work, flow: u64, out: &mut Vec<Running>) -> Arrival {
        self.advance(now);
        self.release_due(now);
        let ticket = self.tickets;
        self.tickets += 1;
        if self.shape.queues == 0 {
            if !self.fits(work.most_seats()) {
                return Arrival::Refused(Refusal::ConcurrencyLimit);
            }
            let running = Running { ticket, work, queue: None, started: now };
            self.take_seats(&running, now);
            return Arrival::Runs(running);
        }
        let chosen = self.choose(flow);
        let length = self.queues.get(&chosen).map_or(0, |queue| queue.waiting.len());
        if self.seats >= self.limit && length >= self.shape.length {
            return Arrival::Refused(Refusal::QueueFull);
        }
        let queue = self.queues.entry(chosen).or_insert_with(|| Queue {
            waiting: self.spare.pop().unwrap_or_default(),
            next: self.virtual_now,
            ..Queue::default()
        });
        queue.waiting.push_back(Waiting { ticket, work, arrived: self.virtual_now });
        queue.waiting_work += work.total(ESTIMATE);
        queue.bound();
        self.waiting += 1;
        self.waiting_seats += work.most_seats();
        self.note(now);
        let before = out.len();
        self.dispatch(now, out);
        match out[before..].iter().position(|running| running.ticket == ticket) {
            Some(at) => Arrival::Runs(out.swap_remove(before + at)),
            None => Arrival::Waits(ticket, chosen),
        }
    }

    /// A request has ended. Those that may run now are put into `out`.
    pub fn finish(&mut self, now: f64, running: Running, out: &mut Vec<Running>) {
        self.advance(now);
        if let Some(queue) = running.queue.and_then(|at| self.queues.get_mut(&at)) {
            // what was an estimate is known now
            queue.next += running.work.total(now - running.started) - running.work.total(ESTIMATE);
            queue.bound();
        }
        if running.work.after.is_zero() || running.work.after_seats == 0 {
            self.release(&running);
        } else {
            self.lingering.push_back((now + running.work.after.as_secs_f64(), running));
        }
        self.release_due(now);
        self.note(now);
        self.dispatch(now, out);
    }

    /// Time has passed: what lingered may be over.
    pub fn tick(&mut self, now: f64, out: &mut Vec<Running>) {
        self.advance(now);
        self.release_due(now);
        self.note(now);
        self.dispatch(now, out);
    }

    /// A request no longer waits. False where it does not wait any more: it runs.
    pub fn leave(&mut self, now: f64, ticket: Ticket, queue: usize, out: &mut Vec<Running>) -> bool {
        self.advance(now);
        let Some(line) = self.queues.get_mut(&queue) else { return false };
        let Some(at) = line.waiting.iter().position(|w| w.ticket == ticket) else { return false };
        if let Some(gone) = line.waiting.remove(at) {
            line.waiting_work -= gone.work.total(ESTIMATE);
            line.bound();
            self.waiting -= 1;
            self.waiting_seats -= gone.work.most_seats();
        }
        self.forget(queue);
        self.note(now);
        // a wide one may have been in the way of others
        self.dispatch(now, out);
        true
    }

    /// Changes the number of seats.
    pub fn set_limit(&mut self, now: f64, limit: u32, out: &mut Vec<Running>) {
        self.advance(now);
        self.limit = limit;
        self.dispatch(now, out);
    }

    /// Brings virtual time up to date. Must come before any change.
    fn advance(&mut self, now: f64) {
        let passed = (now - self.updated).max(0.0);
        self.updated = self.updated.max(now);
        if !self.queues.is_empty() {
            let wanted = self.seats.saturating_add(self.waiting_seats).min(self.limit);
            self.virtual_now += passed * f64::from(wanted) / self.queues.len() as f64;
        }
    }

    fn note(&mut self, now: f64) {
        self.demand.set(now, self.seats + self.waiting_seats);
    }

    fn fits(&self, seats: u32) -> bool {
        // what is wider than the level runs alone
        if seats > self.limit { self.executing == 0 } else { self.seats + seats <= self.limit }
    }

    /// The queue of the flow's hand with the least work.
    fn choose(&mut self, flow: u64) -> usize {
        let mut cards = [0; MOST_HAND];
        let size = self.shape.hand.clamp(1, MOST_HAND.min(self.shape.queues));
        let hand = &mut cards[..size];
        deal(flow, self.shape.queues, hand);
        // where equal, hands that overlap must not all take their first
        let first = self.arrivals % size;
        self.arrivals = self.arrivals.wrapping_add(1);
        let work = |queue: &usize| self.queues.get(queue).map_or(0.0, |q| q.waiting_work);
        let in_turn = hand[first..].iter().chain(&hand[..first]);
        in_turn
            .copied()
            .reduce(|best, other| if work(&other) < work(&best) { other } else { best })
            .unwrap_or(0)
    }

    fn take_seats(&mut self, running: &Running, now: f64) {
        self.executing += 1;
        self.seats += running.work.most_seats();
        self.note(now);
    }

    fn release(&mut self, running: &Running) {
        let seats = running.work.most_seats();
        self.executing -= 1;
        self.seats -= seats;
        if let Some(at) = running.queue
            && let Some(queue) = self.queues.get_mut(&at)
        {
            queue.executing -= 1;
            queue.seats -= seats;
            self.forget(at);
        }
    }

    /// Drops a queue in which nothing is left.
    fn forget(&mut self, at: usize) {
        if self.queues.get(&at).is_some_and(|queue| !queue.is_active())
            && let Some(queue) = self.queues.remove(&at)
            && self.spare.len() < SPARE
        {
            self.spare.push(queue.waiting);
        }
    }

    fn release_due(&mut self, now: f64) {
        while self.lingering.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, running)) = self.lingering.pop_front() {
                self.release(&running);
            }
        }
    }

    /// Lets run what may.
    fn dispatch(&mut self, now: f64, out: &mut Vec<Running>) {
        while self.waiting > 0 && self.seats < self.limit.max(1) {
            let Some((at, seats)) = self.next_queue() else { return };
            if !self.fits(seats) {
                return;
            }
            let Some(queue) = self.queues.get_mut(&at) else { return };
            let Some(mut next) = queue.waiting.pop_front() else { return };
            let estimate = next.work.total(ESTIMATE);
            self.waiting -= 1;
            self.waiting_seats -= seats;
            queue.waiting_work = if queue.waiting.is_empty() { 0.0 } else { queue.waiting_work - estimate };
            // what lingers wider than the level lingers longer instead
            if next.work.after_seats > self.limit.max(1) {
                let work = f64::from(next.work.after_seats) * next.work.after.as_secs_f64();
                next.work.after_seats = self.limit.max(1);
                next.work.after = Duration::from_secs_f64(work / f64::from(next.work.after_seats));
            }
            let running = Running { ticket: next.ticket, work: next.work, queue: Some(at), started: now };
            queue.executing += 1;
            queue.seats += running.work.most_seats();
            queue.next += estimate;
            queue.bound();
            self.robin = at;
            self.take_seats(&running, now);
            out.push(running);
        }
    }

    /// The queue whose oldest request would end first (in turn, where several would), and that request's seats.
    fn next_queue(&self) -> Option<(usize, u32)> {
        let mut best: Option<(usize, u32, f64)> = None;
        let after = self.queues.range(self.robin.saturating_add(1)..);
        for (at, queue) in after.chain(self.queues.range(..=self.robin)) {
            let Some(oldest) = queue.waiting.front() else { continue };
            let ends = queue.next + oldest.work.total(ESTIMATE);
            if best.is_none_or(|(_, _, least)| ends < least) {
                best = Some((*at, oldest.work.most_seats(), ends));
            }
            // it is the only one
            if self.waiting == queue.waiting.len() {
                break;
            }
        }
        best.map(|(at, seats, _)| (at, seats))
    }
}

/// Emptied queues whose room is kept.
const SPARE: usize = 64;
/// Largest hand that is dealt: a hash has entropy for no more.
const MOST_HAND: usize = 32;

/// Deals different cards of a deck by a hash: every hand is equally likely.
pub fn deal(hash: u64, deck: usize, hand: &mut [usize]) {
    let mut rest = hash;
    for at in 0..hand.len() {
        let left = (deck - at).max(1) as u64;
        let mut card = (rest % left) as usize;
        rest /= left;
        // the card-th of those that are left: cards dealt before do not count
        let mut sorted = [0; MOST_HAND];
        let sorted = &mut sorted[..at];
        sorted.copy_from_slice(&hand[..at]);
        sorted.sort_unstable();
        for dealt in sorted.iter() {
            if card >= *dealt {
                card += 1;
            }
        }
        hand[at] = card;
    }
}
