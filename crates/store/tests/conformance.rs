//! The embedded engine passes the conformance suite.

use std::sync::Arc;

use store::Store;
use store::embedded::{Embedded, Options};

async fn run(options: Options) {
    let folder = tempfile::tempdir().unwrap();
    let mut made = 0;
    store::suite::run(|| {
        made += 1;
        let store = Embedded::open(&folder.path().join(made.to_string()), options.clone()).unwrap();
        async { store as Arc<dyn Store> }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn embedded_engine_conforms() {
    run(Options::default()).await;
}

/// With no old value in memory all history is read from the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn embedded_engine_conforms_with_history_on_the_disk() {
    run(Options { history_memory: 0, ..Options::default() }).await;
}
