//! `navarch policies`: what network policies let through and dropped on this node.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};

use crate::data_dir::DataDir;
use crate::server::network_config;

/// Prints the counters of this node's rules.
pub fn main(path: &Path) -> anyhow::Result<()> {
    let Some(data) = DataDir::at(path)? else {
        bail!("there is no cluster in {}; start one with `navarch up`", path.display());
    };
    let config = policy::Config::for_network("", &network_config(&data));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let counters = runtime.block_on(policy::counters(&config)).context("cannot read the policy rules")?;
    // a rule of a policy is several of the kernel's: one per port and kind of peer
    let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for counter in counters {
        let sum = sums.entry(counter.comment).or_default();
        sum.0 += counter.packets;
        sum.1 += counter.bytes;
    }
    println!("{:>12} {:>14}  RULE", "PACKETS", "BYTES");
    for (rule, (packets, bytes)) in &sums {
        println!("{packets:>12} {bytes:>14}  {rule}");
    }
    Ok(())
}
