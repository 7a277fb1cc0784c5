//! Facts about the queues, by made-up traffic in made-up time.

use std::collections::BTreeMap;

use random::Random;

use super::demand::Observed;
use super::queues::{Arrival, Queues, Refusal, Running, Shape, Ticket, Work, deal};
use super::shares::{Claim, Need, Seats, Shares, adjust, divide};

/// Random numbers of a seed, so that a failure can be seen again.
mod random {
    pub struct Random(pub u64);

    impl Random {
        /// xorshift64*.
        pub fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
        }

        pub fn below(&mut self, limit: u64) -> u64 {
            self.next() % limit
        }
    }
}

const SHAPE: Shape = Shape { queues: 64, hand: 6, length: 50 };

fn seats(seats: u32) -> Work {
    Work { seats, ..Work::ONE }
}

/// A level with clients that ask again as soon as they are answered.
struct Traffic {
    queues: Queues,
    now: f64,
    /// What runs: when it ends, and whose it is.
    running: Vec<(f64, Running, u64)>,
    waiting: BTreeMap<Ticket, u64>,
    served: BTreeMap<u64, u32>,
}

impl Traffic {
    fn new(shape: Shape, limit: u32) -> Self {
        let queues = Queues::new(shape, limit, 0.0);
        Self { queues, now: 0.0, running: Vec::new(), waiting: BTreeMap::new(), served: BTreeMap::new() }
    }

    fn ask(&mut self, flow: u64, work: Work, takes: f64) -> Option<Refusal> {
        let mut out = Vec::new();
        let hash = Random(flow).next();
        let arrival = self.queues.arrive(self.now, work, hash, &mut out);
        assert!(out.is_empty(), "an arrival lets nobody else run");
        match arrival {
            Arrival::Runs(running) => self.running.push((self.now + takes, running, flow)),
            Arrival::Waits(ticket, _) => {
                self.waiting.insert(ticket, flow);
            }
            Arrival::Refused(why) => return Some(why),
        }
        None
    }

    /// Ends what ends next; what may run then takes this long. Whose it was.
    fn end_one(&mut self, takes: impl Fn(u64) -> f64) -> Option<u64> {
        let at = (0..self.running.len()).min_by(|a, b| self.running[*a].0.total_cmp(&self.running[*b].0))?;
        let (end, running, flow) = self.running.swap_remove(at);
        self.now = end;
        let mut out = Vec::new();
        self.queues.finish(self.now, running, &mut out);
        for next in out {
            let flow = self.waiting.remove(&next.ticket).expect("it waited");
            self.running.push((self.now + takes(flow), next, flow));
        }
        *self.served.entry(flow).or_default() += 1;
        Some(flow)
    }
}

#[test]
fn a_quiet_flow_is_not_held_up_by_a_loud_one() {
    let mut traffic = Traffic::new(SHAPE, 4);
    for _ in 0..200 {
        traffic.ask(1, Work::ONE, 0.1);
    }
    assert!(traffic.waiting.len() > 100);
    assert_eq!(traffic.ask(2, Work::ONE, 0.1), None);
    let before = traffic.now;
    while traffic.end_one(|_| 0.1) != Some(2) {}
    // the loud one has fifty rounds in line; the quiet one runs in the next round
    assert!(traffic.now - before < 0.35, "{}", traffic.now - before);
}

#[test]
fn busy_flows_get_equal_time_whatever_one_request_takes() {
    // flow 1 asks for short requests, flow 2 for ten times as long ones
    let takes = |flow: u64| if flow == 1 { 0.01 } else { 0.1 };
    let shape = Shape { queues: 64, hand: 1, length: 50 };
    let mut traffic = Traffic::new(shape, 2);
    for flow in [1, 2] {
        for _ in 0..20 {
            traffic.ask(flow, Work::ONE, takes(flow));
        }
    }
    while traffic.now < 60.0 {
        let flow = traffic.end_one(takes).expect("somebody runs");
        traffic.ask(flow, Work::ONE, takes(flow));
    }
    let [one, two] = [1, 2].map(|flow| f64::from(traffic.served[&flow]) * takes(flow));
    assert!((one / two - 1.0).abs() < 0.15, "{one} and {two} seconds");
}

#[test]
fn a_wide_request_waits_until_its_seats_are_free_and_is_not_overtaken_forever() {
    let mut traffic = Traffic::new(SHAPE, 4);
    for _ in 0..4 {
        traffic.ask(1, Work::ONE, 1.0);
    }
    traffic.ask(2, seats(4), 1.0);
    for _ in 0..40 {
        traffic.ask(1, Work::ONE, 1.0);
    }
    let mut ended = 0;
    while traffic.end_one(|_| 1.0) != Some(2) {
        ended += 1;
        assert!(traffic.queues.seats() <= 4);
    }
    assert!(ended < 12, "{ended} were before it");
    // wider than the level: alone
    let mut traffic = Traffic::new(SHAPE, 4);
    traffic.ask(1, Work::ONE, 1.0);
    traffic.ask(2, seats(9), 1.0);
    assert_eq!(traffic.queues.executing(), 1);
    traffic.end_one(|_| 1.0);
    assert_eq!((traffic.queues.executing(), traffic.queues.seats()), (1, 9));
}

#[test]
fn a_full_queue_and_a_level_that_does_not_queue_refuse() {
    let mut traffic = Traffic::new(Shape { queues: 1, hand: 1, length: 3 }, 2);
    let refusals: Vec<_> = (0..6).map(|_| traffic.ask(1, Work::ONE, 1.0)).collect();
    assert_eq!(refusals, [None, None, None, None, None, Some(Refusal::QueueFull)]);
    let mut traffic = Traffic::new(Shape { queues: 0, hand: 1, length: 0 }, 2);
    let refusals: Vec<_> = (0..3).map(|_| traffic.ask(1, Work::ONE, 1.0)).collect();
    assert_eq!(refusals, [None, None, Some(Refusal::ConcurrencyLimit)]);
}

#[test]
fn what_a_write_sets_off_keeps_its_seats_a_while() {
    let work = Work { seats: 1, after_seats: 3, after: std::time::Duration::from_millis(5) };
    let mut queues = Queues::new(SHAPE, 3, 0.0);
    let mut out = Vec::new();
    let Arrival::Runs(running) = queues.arrive(0.0, work, 1, &mut out) else { panic!("there was room") };
    let Arrival::Waits(..) = queues.arrive(0.0, Work::ONE, 2, &mut out) else { panic!("there was none") };
    queues.finish(1.0, running, &mut out);
    assert!(out.is_empty() && queues.next_release() == Some(1.005));
    queues.tick(1.005, &mut out);
    assert_eq!((out.len(), queues.seats()), (1, 1));
}

#[test]
fn whatever_happens_seats_are_kept_and_nobody_is_forgotten() {
    for seed in 1..60 {
        let mut random = Random(seed);
        let shape =
            Shape { queues: 1 + random.below(20) as usize, hand: 1 + random.below(4) as usize, length: 5 };
        let shape = Shape { hand: shape.hand.min(shape.queues), ..shape };
        let mut limit = 1 + random.below(8) as u32;
        let mut queues = Queues::new(shape, limit, 0.0);
        let (mut running, mut waiting) = (Vec::new(), BTreeMap::new());
        let mut now = 0.0;
        for _ in 0..600 {
            now += random.below(100) as f64 / 1e4;
            let mut out = Vec::new();
            match random.below(10) {
                0..=4 => {
                    let after = std::time::Duration::from_millis(5 * random.below(2));
                    let work = Work {
                        seats: 1 + random.below(4) as u32,
                        after_seats: random.below(4) as u32,
                        after,
                    };
                    match queues.arrive(now, work, random.next(), &mut out) {
                        Arrival::Runs(one) => running.push(one),
                        Arrival::Waits(ticket, queue) => assert!(waiting.insert(ticket, queue).is_none()),
                        Arrival::Refused(_) => assert!(queues.seats() >= limit),
                    }
                }
                5..=7 if !running.is_empty() => {
                    let one = running.swap_remove(random.below(running.len() as u64) as usize);
                    queues.finish(now, one, &mut out);
                }
                8 if !waiting.is_empty() => {
                    let at = random.below(waiting.len() as u64) as usize;
                    let (ticket, queue) = waiting.iter().nth(at).map(|(t, q)| (*t, *q)).unwrap();
                    waiting.remove(&ticket);
                    assert!(queues.leave(now, ticket, queue, &mut out));
                }
                9 => {
                    limit = 1 + random.below(8) as u32;
                    queues.set_limit(now, limit, &mut out);
                }
                _ => queues.tick(now, &mut out),
            }
            for one in out {
                assert!(waiting.remove(&one.ticket).is_some(), "seed {seed}: it did not wait");
                running.push(one);
            }
            let widest = running.iter().map(|r| r.work.most_seats()).max().unwrap_or(0);
            let taken: u32 = running.iter().map(|r| r.work.most_seats()).sum();
            assert!(taken <= queues.seats(), "seed {seed}");
            // only a smaller limit, or one that is wider than all, leads above it
            assert!(queues.seats() <= 8.max(widest) + 3, "seed {seed}");
            assert_eq!(queues.waiting(), waiting.len(), "seed {seed}");
        }
        // all go home: nothing is left
        let mut out = Vec::new();
        queues.set_limit(now, 4, &mut out);
        out.iter().for_each(|one| assert!(waiting.remove(&one.ticket).is_some()));
        running.extend(out);
        while !running.is_empty() || !waiting.is_empty() {
            now += 0.01;
            let mut out = Vec::new();
            match running.pop() {
                Some(one) => queues.finish(now, one, &mut out),
                None => queues.tick(now, &mut out),
            }
            out.iter().for_each(|one| assert!(waiting.remove(&one.ticket).is_some()));
            running.extend(out);
            assert!(now < 1e4, "seed {seed}: {} wait forever", waiting.len());
        }
        queues.tick(now + 1.0, &mut Vec::new());
        assert_eq!((queues.seats(), queues.waiting(), queues.executing(), queues.active()), (0, 0, 0, 0));
    }
}

#[test]
fn a_hand_holds_different_cards_and_every_card_comes_as_often() {
    let (deck, mut counts) = (16, vec![0; 16]);
    let mut random = Random(7);
    for _ in 0..16_000 {
        let mut hand = [0; 4];
        deal(random.next(), deck, &mut hand);
        let mut sorted = hand;
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|pair| pair[0] < pair[1]) && sorted[3] < deck, "{hand:?}");
        hand.iter().for_each(|card| counts[*card] += 1);
    }
    assert!(counts.iter().all(|n| (3_600..4_400).contains(n)), "{counts:?}");
}

#[test]
fn seats_are_divided_by_shares_as_the_reference_does() {
    // the default levels with 600 seats, as the reference's metrics show them
    let level = |shares, lendable| Shares { shares, lendable, borrowing: None };
    let all = [
        level(0, 0),
        level(5, 0),
        level(20, 50),
        level(10, 0),
        level(40, 25),
        level(30, 33),
        level(40, 50),
        level(100, 90),
    ];
    let seats = divide(600, &all);
    assert_eq!(seats.iter().map(|s| s.nominal).collect::<Vec<_>>(), [0, 13, 49, 25, 98, 74, 98, 245]);
    assert_eq!(seats.iter().map(|s| s.least).collect::<Vec<_>>(), [0, 13, 24, 25, 73, 50, 49, 24]);
    let bounded = divide(600, &[Shares { shares: 1, lendable: 0, borrowing: Some(25) }, level(1, 0)]);
    assert_eq!((bounded[0].nominal, bounded[0].most), (300, 375));
}

#[test]
fn idle_levels_lend_what_they_may_and_keep_the_rest() {
    let claim = |seats: Seats, asked: f64| {
        let mut need = Need::default();
        need.update(Observed { seconds: 10.0, average: asked, deviation: 0.0, most: asked });
        Claim { seats, need, is_exempt: false }
    };
    let half = Seats { nominal: 100, least: 50, most: 700 };
    let (seats, _) = adjust(&[claim(half, 0.0), claim(half, 1000.0)]);
    assert_eq!(seats, [50, 150]);
    let bounded = Seats { most: 120, ..half };
    let (seats, _) = adjust(&[claim(half, 0.0), claim(bounded, 1000.0)]);
    assert_eq!(seats, [80, 120]);
    // who needs its own again has it in the next span
    let (seats, _) = adjust(&[claim(half, 100.0), claim(half, 1000.0)]);
    assert_eq!(seats, [100, 100]);
}
