//! The embedded engine under torture: `kill -9`, power cuts on a real file system, a full disk, and what every watch was
//! told meanwhile.
//!
//! A few rounds by default; `STORE_TORTURE_ROUNDS=100` runs as many of each, `STORE_TORTURE_SEED` repeats a run. Each round's
//! writes are made by a process of its own, see [`writer`].

mod full;
mod history;
mod kill;
mod power;
mod volume;
mod writer;

use std::time::Duration;

/// From opening the store to its first acknowledged write after a crash.
const RESTART: Duration = Duration::from_secs(1);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What many rounds came to, for the decision record.
#[derive(Default)]
struct Tally {
    rounds: u64,
    acknowledged: u64,
    restarts: Vec<Duration>,
}

impl Tally {
    fn print(mut self, what: &str) {
        self.restarts.sort();
        println!(
            "{what}: {} rounds, {} durable writes acknowledged, 0 lost; first write after a restart: p50 {:?}, max {:?}",
            self.rounds,
            self.acknowledged,
            self.restarts.get(self.restarts.len() / 2).copied().unwrap_or_default(),
            self.restarts.last().copied().unwrap_or_default(),
        );
    }
}
