//! Several servers on one etcd, and etcd's members failing under them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use store::etcd::{Etcd, Options};
use store::{Delete, Event, EventKind, Expect, Put, Revision, Store, StoreError, WatchStream};
use testkit::etcd::Etcd as Members;

use crate::conformance::options;

const PREFIX: &str = "/registry/core/configmaps/";
const PATIENCE: Duration = Duration::from_secs(60);

fn key(name: &str) -> String {
    format!("{PREFIX}default/{name}")
}

async fn open(members: &Members) -> Arc<Etcd> {
    Etcd::open(options(members.endpoints())).await.unwrap()
}

async fn events(stream: &mut WatchStream, count: usize) -> Vec<Event> {
    let mut seen = Vec::new();
    while seen.len() < count {
        match tokio::time::timeout(PATIENCE, stream.next()).await {
            Ok(Some(Ok(batch))) => seen.extend(batch),
            other => panic!("after {} of {count} events: {other:?}", seen.len()),
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_one_server_writes_the_other_reads_and_watches() {
    let members = Members::start().unwrap();
    let (one, two) = (open(&members).await, open(&members).await);
    let start = two.sync().await.unwrap();
    let mut stream = two.watch(PREFIX, start).await.unwrap();
    let created = one.put(Put::create(key("a"), "1")).await.unwrap();
    let (found, at) = two.get(&key("a"), None).await.unwrap();
    assert_eq!(found.map(|kv| kv.mod_revision), Some(created));
    assert!(at >= created);
    assert!(two.sync().await.unwrap() >= created);
    assert!(two.revision() >= created);
    let refused = one.put(Put::update(key("a"), "2", created + 1)).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    let updated = two.put(Put::update(key("a"), "2", created)).await.unwrap();
    let stale = one.put(Put::update(key("a"), "3", created)).await;
    assert!(
        matches!(&stale, Err(StoreError::Conflict { current: Some(kv) }) if kv.mod_revision == updated),
        "{stale:?}"
    );
    drop(one);
    let deleted = two.delete(Delete::new(key("a"), Expect::Revision(updated))).await.unwrap().0;
    let seen = events(&mut stream, 3).await;
    assert_eq!(seen.iter().map(Event::revision).collect::<Vec<_>>(), [created, updated, deleted]);
}

/// Other people's keys move etcd's revision on, but nobody waits for an event of theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn foreign_keys_neither_show_nor_hold_up() {
    let members = Members::start().unwrap();
    let ours = open(&members).await;
    let foreign = Options { prefix: "/other".to_owned(), ..options(members.endpoints()) };
    let foreign = Etcd::open(foreign).await.unwrap();
    let start = ours.sync().await.unwrap();
    let mut stream = ours.watch("/registry/", start).await.unwrap();
    let first = ours.put(Put::create(key("a"), "1")).await.unwrap();
    for number in 0..20 {
        foreign.put(Put::create(key(&format!("f{number}")), "x")).await.unwrap();
    }
    assert_eq!(ours.sync().await.unwrap(), first, "the newest of our own");
    let last = ours.put(Put::set(key("a"), "2")).await.unwrap();
    assert_eq!(ours.range("/registry/", None, None, 0).await.unwrap().items.len(), 1);
    let seen = events(&mut stream, 2).await;
    assert_eq!(seen.iter().map(Event::revision).collect::<Vec<_>>(), [first, last]);
}

/// Writers and a watcher go on while one member after the other is killed and comes back. Every acknowledged write is
/// there, the watch is ordered and has no gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_member_costs_no_write_and_no_event() {
    const WRITERS: usize = 4;
    let mut members = Members::with(3, &[]).unwrap();
    let (writing, watching) = (open(&members).await, open(&members).await);
    let start = watching.sync().await.unwrap();
    let mut stream = watching.watch(PREFIX, start).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (progress, mut progressed) = tokio::sync::mpsc::unbounded_channel();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, stop, progress) = (writing.clone(), stop.clone(), progress.clone());
            tokio::spawn(async move {
                let mut acknowledged: BTreeMap<Revision, String> = BTreeMap::new();
                let mut number = 0;
                let name = key(&format!("w{writer}"));
                let mut last = store.put(Put::create(name.as_str(), "0")).await.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    match store.put(Put::update(name.as_str(), number.to_string(), last)).await {
                        Ok(revision) => {
                            acknowledged.insert(revision, number.to_string());
                            last = revision;
                            let _ = progress.send(());
                        }
                        Err(StoreError::Unavailable(_)) => {
                            // It may have happened: the key tells.
                            last = loop {
                                if let Ok((Some(kv), _)) = store.get(&name, None).await {
                                    break kv.mod_revision;
                                }
                            };
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                acknowledged
            })
        })
        .collect();
    for member in 0..3 {
        for _ in 0..100 {
            tokio::time::timeout(PATIENCE, progressed.recv()).await.expect("writes go on").unwrap();
        }
        members.kill(member).unwrap();
        while progressed.try_recv().is_ok() {}
        for _ in 0..100 {
            tokio::time::timeout(PATIENCE, progressed.recv())
                .await
                .expect("writes go on without it")
                .unwrap();
        }
        members.restart(member).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = BTreeMap::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    let last = *acknowledged.keys().last().unwrap();
    let mut seen: BTreeMap<Revision, String> = BTreeMap::new();
    let mut position = start;
    while position < last {
        for event in events(&mut stream, 1).await {
            assert!(event.revision() > position, "{} after {position}", event.revision());
            position = event.revision();
            seen.insert(position, String::from_utf8_lossy(&event.kv.value).into_owned());
        }
    }
    for (revision, value) in &acknowledged {
        assert_eq!(seen.get(revision), Some(value), "revision {revision} was acknowledged and not told");
    }
}

/// A single member that is restarted: calls wait, the watch goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_restarted_etcd_is_found_again() {
    let mut members = Members::start().unwrap();
    let store = open(&members).await;
    let start = store.sync().await.unwrap();
    let mut stream = store.watch(PREFIX, start).await.unwrap();
    let first = store.put(Put::create(key("a"), "1")).await.unwrap();
    assert_eq!(events(&mut stream, 1).await[0].revision(), first);
    members.kill(0).unwrap();
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.get(&key("a"), None).await }
    });
    members.restart(0).unwrap();
    assert!(waiting.await.unwrap().unwrap().0.is_some());
    let second = store.put(Put::update(key("a"), "2", first)).await.unwrap();
    assert_eq!(events(&mut stream, 1).await[0].revision(), second);
}

/// A member that hangs is no reason to hang.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hanging_etcd_is_answered_for_in_time() {
    let members = Members::start().unwrap();
    let timeout = Duration::from_secs(1);
    let store = Etcd::open(Options { timeout, ..options(members.endpoints()) }).await.unwrap();
    members.freeze(0).unwrap();
    let begin = Instant::now();
    let answers = futures_util::join!(
        store.put(Put::set(key("a"), "1")),
        async { store.get(&key("a"), None).await.map(|_| 0) },
        store.sync(),
    );
    for answer in [answers.0, answers.1, answers.2] {
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    }
    assert!(begin.elapsed() < timeout * 5, "after {:?}", begin.elapsed());
    members.resume(0).unwrap();
    store.put(Put::set(key("a"), "2")).await.unwrap();
}

/// When etcd's quota is used up puts are refused with the reason, deletes go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_etcd_still_deletes() {
    let members = Members::with(1, &["--quota-backend-bytes=4000000"]).unwrap();
    let store = open(&members).await;
    let mut written = Vec::new();
    let error = loop {
        let name = key(&format!("k{}", written.len()));
        match store.put(Put::create(name.as_str(), vec![7; 200_000])).await {
            Ok(_) => written.push(name),
            Err(error) => break error,
        }
        assert!(written.len() < 100, "the quota does not hold");
    };
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    for name in written {
        store.delete(Delete::new(name, Expect::Any)).await.unwrap();
    }
}

/// Two servers, one compaction per window; what is older is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn history_is_given_up_after_its_window() {
    let members = Members::start().unwrap();
    let settings = Options { history: Duration::from_millis(300), ..options(members.endpoints()) };
    let (one, two) = (Etcd::open(settings.clone()).await.unwrap(), Etcd::open(settings).await.unwrap());
    let old = one.put(Put::create(key("a"), "1")).await.unwrap();
    let mut stream = two.watch(PREFIX, old).await.unwrap();
    let begin = Instant::now();
    let mut revision = old;
    loop {
        revision = one.put(Put::update(key("a"), "2", revision)).await.unwrap();
        match one.get(&key("a"), Some(old)).await {
            Err(StoreError::Compacted { oldest }) => {
                assert!(oldest > old);
                break;
            }
            answer => assert!(begin.elapsed() < PATIENCE, "{answer:?}"),
        }
    }
    let mut stale = two.watch(PREFIX, old).await.unwrap();
    // In the ring of the other server: still told.
    assert_eq!(events(&mut stale, 1).await[0].kind, EventKind::Put);
    let fresh = open(&members).await;
    let refused = fresh.watch(PREFIX, old).await.unwrap().next().await;
    assert!(matches!(refused, Some(Err(StoreError::Compacted { .. }))), "{refused:?}");
    events(&mut stream, 2).await;
}

/// Its queue is bounded; the others notice nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slow_watcher_is_cut_off_and_the_others_are_not() {
    let members = Members::start().unwrap();
    let settings = Options { watch_queue_events: 50, ..options(members.endpoints()) };
    let store = Etcd::open(settings).await.unwrap();
    let start = store.sync().await.unwrap();
    let mut slow = store.watch(PREFIX, start).await.unwrap();
    let mut quick = store.watch(PREFIX, start).await.unwrap();
    for number in 0..200 {
        store.put(Put::set(key("a"), number.to_string())).await.unwrap();
        assert_eq!(events(&mut quick, 1).await.len(), 1);
    }
    let mut told = 0;
    loop {
        match slow.next().await {
            Some(Ok(batch)) => told += batch.len(),
            Some(Err(StoreError::Lagged { queued })) => {
                assert_eq!(told, queued);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(told <= 50);
}
