//! Waiting on conditions.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `condition` answers `Ok`, a minute at most; fails with the last `Err`.
#[track_caller]
pub fn eventually<T, E: Debug>(what: &str, condition: impl FnMut() -> Result<T, E>) -> T {
    eventually_within(Duration::from_secs(60), what, condition)
}

/// Waits until `condition` answers `Ok`, `patience` at most; fails with the last `Err`.
#[track_caller]
pub fn eventually_within<T, E: Debug>(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<T, E>,
) -> T {
    let patience = patience * slowness();
    let deadline = Instant::now() + patience;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(status) if Instant::now() >= deadline => {
                panic!("not within {} s: {what}; last status: {status:?}", patience.as_secs_f32())
            }
            Err(_) => pause(),
        }
    }
}

/// How many times slower this machine is than an ordinary one: `NAVARCH_TEST_PATIENCE`, which an emulated machine sets.
pub fn slowness() -> u32 {
    std::env::var("NAVARCH_TEST_PATIENCE").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Between two looks at a condition of another process.
#[allow(clippy::disallowed_methods, reason = "conditions of other processes have no event to wait for")]
pub(crate) fn pause() {
    std::thread::sleep(PAUSE);
}
