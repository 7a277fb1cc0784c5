//! The etcd engine passes the conformance suite, each check on a fresh key space.

use std::sync::Arc;
use std::time::Duration;

use store::Store;
use store::etcd::{Etcd, Options};

/// Settings for a member of the test's own; nothing is compacted unless a check does it.
pub fn options(endpoints: Vec<String>) -> Options {
    Options { endpoints, history: Duration::ZERO, ..Options::default() }
}

/// Each check has a prefix of its own on one etcd.
pub async fn run(etcd: &testkit::etcd::Etcd, change: impl Fn(&mut Options)) {
    let mut made = 0;
    store::suite::run(|| {
        made += 1;
        let mut options = Options { prefix: format!("/check-{made}"), ..options(etcd.endpoints()) };
        change(&mut options);
        async { Etcd::open(options).await.unwrap() as Arc<dyn Store> }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn etcd_engine_conforms() {
    run(&testkit::etcd::Etcd::start().unwrap(), |_| {}).await;
}

/// With a ring of one change every watch of the past begins with a watch of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn etcd_engine_conforms_without_a_ring() {
    run(&testkit::etcd::Etcd::start().unwrap(), |options| options.ring_events = 1).await;
}
