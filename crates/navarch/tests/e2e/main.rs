//! The one integration test: the built binary under real clients. Each test starts a cluster of its own.

mod oracle;

use testkit::Cluster;

/// The binary under test.
const NAVARCH: &str = env!("CARGO_BIN_EXE_navarch");

/// A cluster with all parts.
fn cluster() -> Cluster {
    Cluster::start(NAVARCH).expect("the cluster starts")
}
