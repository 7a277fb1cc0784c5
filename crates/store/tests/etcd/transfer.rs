//! The whole content out of one engine and into the other.

use std::time::Duration;

use futures_util::StreamExt as _;
use store::embedded::{self, Embedded};
use store::etcd::{self, Etcd, Options};
use store::transfer::Snapshot;
use store::{Delete, Expect, Put, Store, StoreError};
use testkit::etcd::Etcd as Members;

use crate::conformance::options;

fn key(number: usize) -> String {
    format!("/registry/core/configmaps/default/k{number:03}")
}

/// Some hundred keys with a past, one of them binary, one with a time to live, one outside of `/registry/`.
async fn fill(store: &dyn Store) {
    for number in 0..300 {
        let revision = store.put(Put::create(key(number), vec![number as u8; number])).await.unwrap();
        if number % 3 == 0 {
            store.put(Put::update(key(number), format!("value {number}"), revision)).await.unwrap();
        }
        if number % 10 == 9 {
            store.delete(Delete::new(key(number), Expect::Any)).await.unwrap();
        }
    }
    store.put(Put::create("/elsewhere", "x")).await.unwrap();
    let ttl = Some(Duration::from_secs(3600));
    store.put(Put { ttl, ..Put::create("/registry/core/events/default/e", "x") }).await.unwrap();
}

fn content(snapshot: &Snapshot) -> Vec<(String, Vec<u8>, bool)> {
    let entry = |e: &store::transfer::Entry| (e.key.to_string(), e.value.to_vec(), e.expires_at.is_some());
    snapshot.entries.iter().map(entry).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn embedded_to_etcd_and_back_loses_nothing_and_no_revision_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let source = Embedded::open(&folder.path().join("one"), Default::default()).unwrap();
    fill(&*source).await;
    let snapshot = source.snapshot().await.unwrap();
    assert_eq!(snapshot.entries.len(), 272);
    let members = Members::start().unwrap();
    etcd::create(options(members.endpoints()), &snapshot, 0, "one").await.unwrap();
    let store = Etcd::open(options(members.endpoints())).await.unwrap();
    let moved = store.snapshot().await.unwrap();
    assert_eq!(content(&moved), content(&snapshot));
    assert_eq!(moved.checksum(), snapshot.checksum());
    assert!(moved.entries.iter().all(|entry| entry.mod_revision > snapshot.revision));
    // Whoever watched the old store is told to list again, at each of its revisions.
    for from in [1, snapshot.revision - 1, snapshot.revision] {
        let mut stream = store.watch("/registry/", from).await.unwrap();
        let first = tokio::time::timeout(Duration::from_secs(30), stream.next()).await.unwrap();
        assert!(matches!(first, Some(Err(StoreError::Compacted { .. }))), "from {from}: {first:?}");
        let past = store.get(&key(0), Some(from)).await;
        assert!(matches!(past, Err(StoreError::Compacted { .. })), "at {from}: {past:?}");
    }
    let at = store.sync().await.unwrap();
    let mut stream = store.watch("/registry/", at).await.unwrap();
    let (found, _) = store.get(&key(1), None).await.unwrap();
    let next = store.put(Put::update(key(1), "next", found.unwrap().mod_revision)).await.unwrap();
    assert!(next > at && at > snapshot.revision);
    assert_eq!(stream.next().await.unwrap().unwrap()[0].revision(), next);

    let back = folder.path().join("two");
    let snapshot = store.snapshot().await.unwrap();
    embedded::create(&back, &snapshot, 0).unwrap();
    let again = embedded::create(&back, &snapshot, 0);
    assert!(matches!(again, Err(StoreError::Unavailable(_))), "a store is not written over");
    let store = Embedded::open(&back, Default::default()).unwrap();
    let returned = store.snapshot().await.unwrap();
    assert_eq!(content(&returned), content(&snapshot));
    let revisions =
        |s: &Snapshot| s.entries.iter().map(|e| (e.mod_revision, e.create_revision)).collect::<Vec<_>>();
    assert_eq!(revisions(&returned), revisions(&snapshot), "revisions of objects stay");
    assert!(store.revision() >= snapshot.revision);
    assert!(matches!(store.watch("/", at).await.map(drop), Err(StoreError::Compacted { .. })));
    assert!(store.put(Put::set(key(1), "again")).await.unwrap() > snapshot.revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_import_that_was_cut_off_is_refused_by_servers_and_begins_again() {
    let folder = tempfile::tempdir().unwrap();
    let source = Embedded::open(&folder.path().join("one"), Default::default()).unwrap();
    fill(&*source).await;
    let snapshot = source.snapshot().await.unwrap();
    let mut members = Members::start().unwrap();
    let settings = Options { timeout: Duration::from_secs(1), ..options(members.endpoints()) };
    // etcd dies in the middle.
    let import = tokio::spawn({
        let (settings, snapshot) = (settings.clone(), snapshot.clone());
        async move { etcd::create(settings, &snapshot, 0, "one").await }
    });
    let probe = Etcd::open(Options { prefix: "/probe".to_owned(), ..settings.clone() }).await.unwrap();
    while probe.sync().await.unwrap() < 100 {}
    members.kill(0).unwrap();
    assert!(import.await.unwrap().is_err());
    members.restart(0).unwrap();
    let refused = Etcd::open(settings.clone()).await.map(drop);
    assert!(matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("one")), "{refused:?}");
    let other = etcd::create(settings.clone(), &snapshot, 0, "two").await;
    assert!(matches!(&other, Err(StoreError::Unavailable(why)) if why.contains("one")), "{other:?}");
    etcd::create(settings.clone(), &snapshot, 0, "one").await.unwrap();
    let store = Etcd::open(settings.clone()).await.unwrap();
    assert_eq!(content(&store.snapshot().await.unwrap()), content(&snapshot));
    // Full now, and in use.
    let full = etcd::create(settings.clone(), &snapshot, 0, "one").await;
    assert!(
        matches!(&full, Err(StoreError::Unavailable(why)) if why.contains("272 keys") || why.contains("keys of a cluster")),
        "{full:?}"
    );
    store.announce("server-a").await.unwrap();
    assert_eq!(store.servers().await.unwrap(), ["server-a"]);
    let used = etcd::create(settings, &snapshot, 0, "one").await;
    assert!(matches!(&used, Err(StoreError::Unavailable(why)) if why.contains("server-a")), "{used:?}");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_is_one_revision_while_writes_go_on() {
    let members = Members::start().unwrap();
    let store = Etcd::open(options(members.endpoints())).await.unwrap();
    // Two keys that are always written in this order with the same number.
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            for number in 0.. {
                for name in ["/registry/a", "/registry/b"] {
                    if store.put(Put::set(name, format!("{number}"))).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    for _ in 0..50 {
        let snapshot = store.snapshot().await.unwrap();
        let number = |name: &str| -> Option<u64> {
            let entry = snapshot.entries.iter().find(|entry| &*entry.key == name)?;
            String::from_utf8_lossy(&entry.value).parse().ok()
        };
        if let (Some(a), Some(b)) = (number("/registry/a"), number("/registry/b")) {
            assert!(a == b || a == b + 1, "{a} and {b}");
        }
    }
    store.close().await;
    writing.await.unwrap();
}
