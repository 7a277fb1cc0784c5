//! Restarts, time, limits, queues, backup.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;

use crate::embedded::{Clock, Embedded, Options};
use crate::{Delete, Durability, Event, Expect, Put, Revision, Store, StoreError, WatchStream};

/// A clock that only the test moves.
#[derive(Default)]
struct TestClock(Mutex<Duration>);

impl TestClock {
    fn advance(&self, store: &Embedded, by: Duration) {
        *self.0.lock() += by;
        store.wake();
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + *self.0.lock()
    }

    fn monotonic(&self) -> Duration {
        *self.0.lock()
    }
}

fn open(folder: &Path, options: Options) -> Arc<Embedded> {
    Embedded::open(folder, options).unwrap()
}

async fn set(store: &Embedded, key: &str, value: &str) -> Revision {
    store.put(Put::set(key, value.to_owned())).await.unwrap()
}

fn fleeting(key: &str, value: &str) -> Put {
    Put { durability: Durability::Memory, ..Put::set(key, value.to_owned()) }
}

async fn value(store: &Embedded, key: &str) -> Option<String> {
    let kv = store.get(key, None).await.unwrap().0?;
    Some(String::from_utf8(kv.value.to_vec()).unwrap())
}

/// What is in the queue right now.
fn queued(stream: &mut WatchStream) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(Some(batch)) = stream.next().now_or_never() {
        events.extend(batch.unwrap());
    }
    events
}

#[tokio::test]
async fn event_is_queued_before_its_write_returns() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Options::default());
    let mut stream = store.watch("/a", 0).await.unwrap();
    for round in 0..50 {
        let durability = if round % 2 == 0 { Durability::Disk } else { Durability::Memory };
        let revision = store.put(Put { durability, ..Put::set("/a", "x") }).await.unwrap();
        assert_eq!(queued(&mut stream).last().map(Event::revision), Some(revision));
        assert!(store.revision() >= revision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watches_started_under_load_miss_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Options::default());
    let stop = Arc::new(AtomicBool::new(false));
    let writers = (0..4).map(|writer| {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                store.put(fleeting(&format!("/w{writer}"), "x")).await.unwrap();
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    for _ in 0..1_000 {
        let from = store.revision();
        let mut stream = store.watch("/w", from).await.unwrap();
        let mut expected = from + 1;
        while expected < from + 10 {
            for event in stream.next().await.unwrap().unwrap() {
                assert_eq!(event.revision(), expected);
                expected += 1;
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn reopened_store_has_the_same_contents_history_and_revision() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Options::default());
    let first = set(&store, "/a", "one").await;
    set(&store, "/a", "two").await;
    set(&store, "/b", "gone").await;
    store.delete(Delete::new("/b", Expect::Any)).await.unwrap();
    store.put(fleeting("/c", "three")).await.unwrap();
    let before = store.range("/", None, None, 0).await.unwrap();
    let stats = store.stats();
    store.close().await.unwrap();
    drop(store);
    let store = open(folder.path(), Options::default());
    let after = store.range("/", None, None, 0).await.unwrap();
    assert_eq!((after.items, after.revision), (before.items, before.revision));
    assert_eq!(store.stats().stored_bytes, stats.stored_bytes);
    assert_eq!(store.get("/a", Some(first)).await.unwrap().0.unwrap().value, "one");
    let mut stream = store.watch("/", first).await.unwrap();
    let seen = stream.next().await.unwrap().unwrap();
    assert_eq!(seen.iter().map(Event::revision).collect::<Vec<_>>(), [2, 3, 4, 5]);
    assert_eq!(seen[2].kv.value, "gone");
}

#[tokio::test]
async fn compacted_store_reopens_with_the_same_size_and_contents() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Options::default());
    for round in 0..300 {
        set(&store, &format!("/k{}", round % 10), &"x".repeat(round)).await;
        if round % 9 == 8 {
            store.delete(Delete::new(format!("/k{}", round % 10), Expect::Any)).await.unwrap();
        }
    }
    let revision = store.revision();
    store.compact(revision).await.unwrap();
    let before = store.range("/", None, None, 0).await.unwrap();
    let stored: usize = before.items.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
    let stats = store.stats();
    assert_eq!(stats.stored_bytes as usize, stored + before.items.len() * crate::embedded::record::OVERHEAD);
    store.close().await.unwrap();
    drop(store);
    let store = open(folder.path(), Options::default());
    assert_eq!(store.range("/", None, None, 0).await.unwrap().items, before.items);
    assert_eq!(store.stats().stored_bytes, stats.stored_bytes);
    assert_eq!(store.stats().compacted, revision);
    assert!(matches!(store.watch("/", revision - 1).await, Err(StoreError::Compacted { .. })));
}

#[tokio::test]
async fn second_opening_is_refused_and_names_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Options::default());
    match Embedded::open(folder.path(), Options::default()) {
        Err(StoreError::Locked { path, holder }) => {
            assert_eq!(path, folder.path().join("lock"));
            assert_eq!(holder, format!(" (pid {})", std::process::id()));
        }
        other => panic!("{:?}", other.err()),
    }
    store.close().await.unwrap();
    open(folder.path(), Options::default());
}

#[tokio::test]
async fn closed_store_refuses_writes_and_ends_watches() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Options::default());
    let mut stream = store.watch("/", 0).await.unwrap();
    set(&store, "/a", "x").await;
    store.close().await.unwrap();
    assert!(matches!(store.put(Put::set("/a", "y")).await, Err(StoreError::Unavailable(_))));
    assert_eq!(stream.next().await.unwrap().unwrap().len(), 1);
    assert!(matches!(stream.next().await, Some(Err(StoreError::Unavailable(_)))));
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn history_older_than_the_window_is_compacted() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(TestClock::default());
    let options = Options { history_min: 3, clock: clock.clone(), ..Options::default() };
    let store = open(folder.path(), options);
    for round in 0..10 {
        set(&store, "/a", &round.to_string()).await;
    }
    clock.advance(&store, Duration::from_secs(60));
    for round in 0..6 {
        set(&store, "/b", &round.to_string()).await;
    }
    clock.advance(&store, Duration::from_secs(270));
    store.flush().await.unwrap();
    assert_eq!(store.stats().compacted, 0, "not known to be older than five minutes");
    clock.advance(&store, Duration::from_secs(31));
    store.flush().await.unwrap();
    assert_eq!(store.stats().compacted, 10);
    clock.advance(&store, Duration::from_secs(3600));
    store.flush().await.unwrap();
    assert_eq!((store.stats().compacted, store.stats().history), (13, 3), "the minimum stays");
    assert_eq!(value(&store, "/a").await.as_deref(), Some("9"));
}

#[tokio::test]
async fn history_longer_than_the_limit_is_compacted() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Options { history_min: 10, history_max: 100, ..Options::default() });
    for round in 0..1_000 {
        store.put(fleeting("/a", &round.to_string())).await.unwrap();
    }
    store.flush().await.unwrap();
    assert!((10..=100).contains(&store.stats().history), "{:?}", store.stats());
}

#[tokio::test]
async fn key_expires_when_its_time_is_over_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(TestClock::default());
    let store = open(folder.path(), Options { clock: clock.clone(), ..Options::default() });
    let put = Put { ttl: Some(Duration::from_secs(3600)), ..Put::set("/event", "x") };
    let created = store.put(put).await.unwrap();
    clock.advance(&store, Duration::from_millis(3_599_999));
    store.flush().await.unwrap();
    assert_eq!(value(&store, "/event").await.as_deref(), Some("x"));
    clock.advance(&store, Duration::from_millis(1));
    store.flush().await.unwrap();
    assert_eq!(value(&store, "/event").await, None);
    assert_eq!(store.revision(), created + 1);
}

#[tokio::test]
async fn key_that_expired_while_closed_goes_at_opening() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(TestClock::default());
    let options = Options { clock: clock.clone(), ..Options::default() };
    let store = open(folder.path(), options.clone());
    store.put(Put { ttl: Some(Duration::from_secs(5)), ..Put::set("/event", "x") }).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    *clock.0.lock() += Duration::from_secs(6);
    let store = open(folder.path(), options);
    store.flush().await.unwrap();
    assert_eq!(value(&store, "/event").await, None);
}

#[tokio::test]
async fn full_store_refuses_puts_and_accepts_deletes() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Options { quota: 100_000, ..Options::default() });
    let mut kept = 0;
    let refusal = loop {
        match store.put(Put::create(format!("/k{kept}"), vec![0; 1000])).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 200, "the quota is not kept");
    };
    assert!(matches!(refusal, StoreError::NoSpace { .. }), "{refusal}");
    assert!(kept > 80, "only {kept} fit");
    assert!(refusal.to_string().contains("deletes and small changes still go on"), "{refusal}");
    // What a deletion takes on its way: marks, finalizers, states. Not for ever, and not for large ones.
    let mut revision = store.put(Put::set("/k0", vec![1; 1100])).await.unwrap();
    let larger = store.put(Put::set("/k1", vec![1; 40_000])).await;
    assert!(matches!(larger, Err(StoreError::NoSpace { .. })), "{larger:?}");
    for round in 0..1000 {
        revision = store.put(Put::update("/k0", vec![1; 1000 + round % 50], revision)).await.unwrap();
    }
    for number in 0..10 {
        store.delete(Delete::new(format!("/k{number}"), Expect::Any)).await.unwrap();
    }
    // The deletes' space comes back when the history is given up, which happens with the next commits.
    store.flush().await.unwrap();
    store.compact(store.revision()).await.ok();
    store.put(Put::create("/again", vec![0; 1000])).await.unwrap();
}

#[tokio::test]
async fn slow_watcher_gets_what_was_queued_and_then_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Options { watch_queue_events: 10, ..Options::default() });
    let mut slow = store.watch("/", 0).await.unwrap();
    let mut other = store.watch("/", 0).await.unwrap();
    for round in 0..30 {
        set(&store, "/a", &round.to_string()).await;
        assert_eq!(queued(&mut other).len(), 1);
    }
    let mut revisions = Vec::new();
    let error = loop {
        match slow.next().await {
            Some(Ok(batch)) => revisions.extend(batch.iter().map(Event::revision)),
            Some(Err(error)) => break error,
            None => panic!("the end without an error"),
        }
    };
    assert_eq!(revisions, (1..=10).collect::<Vec<_>>());
    assert!(matches!(error, StoreError::Lagged { queued: 10 }), "{error}");
    assert!(slow.next().await.is_none());
    assert_eq!(store.stats().watchers, 1);
}

#[tokio::test]
async fn backup_under_writers_is_a_store_of_one_moment() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("live"), Options::default());
    store.put(fleeting("/memory", "kept")).await.unwrap();
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            // Both keys always change together, the second one after the first.
            for round in 0..200 {
                set(&store, "/first", &round.to_string()).await;
                set(&store, "/second", &round.to_string()).await;
            }
        }
    });
    let mut stream = store.watch("/second", 0).await.unwrap();
    stream.next().await;
    let copy = folder.path().join("copy");
    store.backup(&copy).await.unwrap();
    writer.await.unwrap();
    assert!(store.backup(&copy).await.is_err(), "a backup must not overwrite");
    let copy = open(&copy, Options::default());
    assert_eq!(value(&copy, "/memory").await.as_deref(), Some("kept"));
    let first: i32 = value(&copy, "/first").await.unwrap().parse().unwrap();
    let second: i32 = value(&copy, "/second").await.unwrap().parse().unwrap();
    assert!(first == second || first == second + 1, "{first} {second}");
    assert!(copy.revision() <= store.revision());
    set(&copy, "/new", "x").await;
}

#[tokio::test]
async fn defragmented_file_is_smaller_and_holds_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Options::default());
    for round in 0..200 {
        store.put(Put::set(format!("/k{}", round % 4), vec![1; 100_000])).await.unwrap();
    }
    store.compact(store.revision()).await.unwrap();
    let before = store.stats().file_bytes;
    store.defragment().await.unwrap();
    assert!(store.stats().file_bytes < before / 4, "{} of {before}", store.stats().file_bytes);
    assert_eq!(store.range("/", None, None, 0).await.unwrap().items.len(), 4);
    set(&store, "/k0", "y").await;
}
