//! The power goes while writing: ext4 is shut down under the writing process (`FS_IOC_SHUTDOWN`), so that only what
//! reached the disk is there at the next mount.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::volume::Volume;
use crate::writer::{self, Known};
use crate::{Tally, history, number};

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_power_cuts() {
    let rounds = number("STORE_TORTURE_ROUNDS", 5);
    let seed = number("STORE_TORTURE_SEED", 1);
    println!("STORE_TORTURE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut volume = Volume::new(256);
    let folder = volume.path().join("store");
    let mut known = Known::new();
    let mut tally = Tally::default();
    for round in 0..rounds {
        let mut child = writer::start(&folder);
        let after = random.random_range(1..2_000);
        let shown = writer::run(&mut child, after, &mut known, |_| volume.cut_power());
        volume.unmount();
        volume.mount();
        history::check(&folder, round, &known, &shown, &mut tally).await;
    }
    tally.print("power cut");
}
