//! `cargo xtask fuzz`: the fuzzing tests of the API server, for as long as one likes. `cargo test` runs them for seconds.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// How long, and from which seed.
#[derive(clap::Args)]
pub struct Args {
    /// Seconds that each target runs.
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
    /// Where the generator of numbers begins; by the clock unless given. A run repeats from its seed.
    #[arg(long)]
    seed: Option<u64>,
    /// One target: `requests` or `expressions`; both unless given.
    #[arg(long)]
    target: Option<String>,
}

/// Runs the tests; what they find is in their output.
pub fn run(root: &Path, args: &Args) -> anyhow::Result<()> {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs());
    let seed = args.seed.unwrap_or_else(clock);
    println!("seed {seed}, {} s a target", args.seconds);
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["test", "--release", "--package", "apiserver", "--test", "fuzz", "--"])
        .args(["--nocapture"])
        .args(args.target.iter().map(|target| format!("broken_{target}")))
        .env("NAVARCH_FUZZ_SECONDS", args.seconds.to_string())
        .env("NAVARCH_FUZZ_SEED", seed.to_string())
        .status()?;
    anyhow::ensure!(status.success(), "a target has failed; repeat with --seed {seed}");
    Ok(())
}
