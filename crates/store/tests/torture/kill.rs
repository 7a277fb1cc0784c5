//! `kill -9` while writing, again and again: nothing acknowledged as durable is lost, revisions never go back.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::writer::{self, Known};
use crate::{Tally, history, number};

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_kill_9() {
    let rounds = number("STORE_TORTURE_ROUNDS", 10);
    let seed = number("STORE_TORTURE_SEED", 1);
    println!("STORE_TORTURE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let mut known = Known::new();
    let mut tally = Tally::default();
    for round in 0..rounds {
        let mut child = writer::start(folder.path());
        let after = random.random_range(1..2_000);
        let shown = writer::run(&mut child, after, &mut known, |child| {
            // Somewhere inside a commit.
            let moment = Instant::now() + Duration::from_micros(random.random_range(0..3_000));
            while Instant::now() < moment {
                std::hint::spin_loop();
            }
            child.kill().unwrap();
        });
        history::check(folder.path(), round, &known, &shown, &mut tally).await;
    }
    tally.print("kill -9");
}
