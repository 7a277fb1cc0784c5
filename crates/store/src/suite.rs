//! The conformance suite: what every [`Store`] has to do, whatever its engine.
//!
//! An engine's test calls [`run`] with a function that makes a fresh, empty store for each check. Every check is
//! a public function named by the fact it proves, so that a failing one can be run alone. Checks panic with what was
//! seen. They ask only for what the trait promises; an engine's extra promises are its own tests' matter.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::{
    Delete, Durability, Event, EventKind, Expect, KeyValue, MAX_KEY_BYTES, Put, Revision, Store, StoreError,
    WatchStream,
};

/// How long a check waits for something that has to come.
const PATIENCE: Duration = Duration::from_secs(30);

type Shared = Arc<dyn Store>;

/// Runs all checks one after the other, each on a store of its own.
pub async fn run<F, Made>(mut make: F)
where
    F: FnMut() -> Made,
    Made: Future<Output = Arc<dyn Store>>,
{
    macro_rules! checks {
        ($($check:ident),+ $(,)?) => {$(
            tracing::info!(check = stringify!($check));
            $check(make().await).await;
        )+};
    }
    checks!(
        created_key_is_read_back,
        missing_key_reads_as_none,
        create_of_existing_key_conflicts_with_what_is_there,
        update_needs_the_current_revision,
        unconditional_put_creates_and_updates,
        delete_returns_what_was_deleted,
        delete_conflicts_when_the_condition_fails,
        recreated_key_has_a_new_create_revision,
        every_write_takes_one_growing_revision,
        failed_write_changes_nothing,
        of_racing_updates_one_wins_each_round,
        of_racing_creates_one_wins,
        unfit_keys_and_values_are_refused,
        empty_and_binary_values_are_kept,
        range_is_ordered_and_keeps_to_its_prefix,
        range_pages_are_one_snapshot,
        range_counts_what_remains,
        old_revisions_can_be_read,
        future_revisions_cannot_be_read,
        compacted_revisions_cannot_be_read_or_watched,
        compaction_keeps_current_values,
        compacted_delete_still_hides_its_key,
        watch_tells_history_then_live_without_a_seam,
        watch_keeps_to_its_prefix,
        watch_events_carry_old_and_new_values,
        watch_from_the_future_leaves_out_what_comes_before,
        watch_under_writers_is_gap_free_and_ordered,
        watch_resumes_where_another_ended,
        dropped_watch_does_not_disturb,
        writes_from_memory_are_ordered_with_the_others,
        key_with_ttl_is_deleted_with_an_event,
        renewed_ttl_replaces_the_old_one,
        put_without_ttl_makes_the_key_stay,
    );
}

fn key(name: &str) -> Arc<str> {
    format!("/registry/core/configmaps/default/{name}").into()
}

const PREFIX: &str = "/registry/core/configmaps/";

async fn create(store: &Shared, name: &str, value: &str) -> Revision {
    let value = Bytes::copy_from_slice(value.as_bytes());
    store.put(Put::create(key(name), value)).await.unwrap_or_else(|error| panic!("create {name}: {error}"))
}

async fn set(store: &Shared, name: &str, value: &str) -> Revision {
    let value = Bytes::copy_from_slice(value.as_bytes());
    store.put(Put::set(key(name), value)).await.unwrap_or_else(|error| panic!("set {name}: {error}"))
}

async fn delete(store: &Shared, name: &str) -> Revision {
    let deleted = store.delete(Delete::new(key(name), Expect::Any)).await;
    deleted.unwrap_or_else(|error| panic!("delete {name}: {error}")).0
}

async fn get_at(store: &Shared, name: &str, at: Option<Revision>) -> Option<KeyValue> {
    store.get(&key(name), at).await.unwrap_or_else(|error| panic!("get {name} at {at:?}: {error}")).0
}

async fn value_at(store: &Shared, name: &str, at: Option<Revision>) -> Option<String> {
    get_at(store, name, at).await.map(|kv| text(&kv))
}

fn text(kv: &KeyValue) -> String {
    String::from_utf8_lossy(&kv.value).into_owned()
}

fn names(items: &[KeyValue]) -> Vec<String> {
    items.iter().map(|kv| kv.key.rsplit('/').next().unwrap_or_default().to_owned()).collect()
}

async fn watch(store: &Shared, prefix: &str, from: Revision) -> WatchStream {
    store.watch(prefix, from).await.unwrap_or_else(|error| panic!("watch {prefix} from {from}: {error}"))
}

/// The next `count` events, which have to come.
async fn events(stream: &mut WatchStream, count: usize) -> Vec<Event> {
    let mut seen = Vec::new();
    while seen.len() < count {
        match tokio::time::timeout(PATIENCE, stream.next()).await {
            Ok(Some(Ok(batch))) => {
                assert!(!batch.is_empty(), "an empty batch");
                seen.extend(batch);
            }
            Ok(other) => {
                panic!("the watch ended with {other:?} after {} of {count} events: {seen:?}", seen.len())
            }
            Err(_) => panic!("only {} of {count} events came: {seen:?}", seen.len()),
        }
    }
    assert_eq!(seen.len(), count, "too many events: {seen:?}");
    seen
}

fn assert_growing(revisions: impl IntoIterator<Item = Revision>) {
    let mut last = 0;
    for revision in revisions {
        assert!(revision > last, "revision {revision} after {last}");
        last = revision;
    }
}

/// What was written is what is read, with its revisions.
pub async fn created_key_is_read_back(store: Shared) {
    let revision = create(&store, "a", "one").await;
    let (kv, at) = store.get(&key("a"), None).await.unwrap();
    let expected = KeyValue {
        key: key("a"),
        value: Bytes::from_static(b"one"),
        mod_revision: revision,
        create_revision: revision,
    };
    assert_eq!(kv, Some(expected));
    assert_eq!(at, revision);
    assert!(store.revision() >= revision);
    assert_eq!(store.sync().await.unwrap(), revision);
}

/// A missing key is no error, and a key is not its prefix.
pub async fn missing_key_reads_as_none(store: Shared) {
    create(&store, "ab", "x").await;
    assert_eq!(get_at(&store, "a", None).await, None);
    assert_eq!(get_at(&store, "abc", None).await, None);
}

/// Create fails on an existing key and shows it.
pub async fn create_of_existing_key_conflicts_with_what_is_there(store: Shared) {
    let revision = create(&store, "a", "one").await;
    match store.put(Put::create(key("a"), "two")).await {
        Err(StoreError::Conflict { current: Some(kv) }) => {
            assert_eq!((text(&kv), kv.mod_revision), ("one".to_owned(), revision));
        }
        other => panic!("{other:?}"),
    }
}

/// Optimistic concurrency.
pub async fn update_needs_the_current_revision(store: Shared) {
    let first = create(&store, "a", "one").await;
    let second = store.put(Put::update(key("a"), "two", first)).await.unwrap();
    match store.put(Put::update(key("a"), "three", first)).await {
        Err(StoreError::Conflict { current: Some(kv) }) => assert_eq!(kv.mod_revision, second),
        other => panic!("{other:?}"),
    }
    let kv = get_at(&store, "a", None).await.unwrap();
    assert_eq!((text(&kv), kv.mod_revision, kv.create_revision), ("two".to_owned(), second, first));
    match store.put(Put::update(key("missing"), "x", first)).await {
        Err(StoreError::Conflict { current: None }) => {}
        other => panic!("{other:?}"),
    }
}

/// `Expect::Any` writes in both states.
pub async fn unconditional_put_creates_and_updates(store: Shared) {
    let first = set(&store, "a", "one").await;
    set(&store, "a", "two").await;
    let kv = get_at(&store, "a", None).await.unwrap();
    assert_eq!((text(&kv), kv.create_revision), ("two".to_owned(), first));
}

/// The deleted value comes back from the delete, once.
pub async fn delete_returns_what_was_deleted(store: Shared) {
    let created = create(&store, "a", "one").await;
    let (revision, old) = store.delete(Delete::new(key("a"), Expect::Revision(created))).await.unwrap();
    assert!(revision > created);
    assert_eq!((text(&old), old.mod_revision), ("one".to_owned(), created));
    assert_eq!(get_at(&store, "a", None).await, None);
    match store.delete(Delete::new(key("a"), Expect::Any)).await {
        Err(StoreError::Conflict { current: None }) => {}
        other => panic!("{other:?}"),
    }
}

/// A guarded delete of a changed key does nothing.
pub async fn delete_conflicts_when_the_condition_fails(store: Shared) {
    let first = create(&store, "a", "one").await;
    let second = set(&store, "a", "two").await;
    for expect in [Expect::Revision(first), Expect::Absent] {
        match store.delete(Delete::new(key("a"), expect)).await {
            Err(StoreError::Conflict { current: Some(kv) }) => assert_eq!(kv.mod_revision, second),
            other => panic!("{expect:?}: {other:?}"),
        }
    }
    assert_eq!(value_at(&store, "a", None).await.as_deref(), Some("two"));
}

/// A key's life starts anew after its delete.
pub async fn recreated_key_has_a_new_create_revision(store: Shared) {
    let first = create(&store, "a", "one").await;
    let gone = delete(&store, "a").await;
    let again = create(&store, "a", "two").await;
    let kv = get_at(&store, "a", None).await.unwrap();
    assert_eq!((kv.mod_revision, kv.create_revision), (again, again));
    assert_eq!(value_at(&store, "a", Some(first)).await.as_deref(), Some("one"));
    assert_eq!(value_at(&store, "a", Some(gone)).await, None);
    let mut stream = watch(&store, PREFIX, first).await;
    let seen = events(&mut stream, 2).await;
    assert_eq!(seen[1].prev, None, "a create has no previous value");
}

/// Creates, updates and deletes count alike.
pub async fn every_write_takes_one_growing_revision(store: Shared) {
    let before = store.sync().await.unwrap();
    let mut revisions = vec![create(&store, "a", "1").await, create(&store, "b", "1").await];
    revisions.push(set(&store, "a", "2").await);
    revisions.push(delete(&store, "b").await);
    revisions.push(create(&store, "b", "2").await);
    assert_eq!(revisions, (before + 1..=before + 5).collect::<Vec<_>>());
    assert_eq!(store.sync().await.unwrap(), before + 5);
}

/// Refused writes leave neither values nor revisions nor events.
pub async fn failed_write_changes_nothing(store: Shared) {
    let revision = create(&store, "a", "one").await;
    let mut stream = watch(&store, PREFIX, revision).await;
    assert!(store.put(Put::create(key("a"), "two")).await.is_err());
    assert!(store.put(Put::update(key("b"), "two", 1)).await.is_err());
    assert!(store.delete(Delete::new(key("b"), Expect::Any)).await.is_err());
    assert_eq!(store.sync().await.unwrap(), revision);
    let next = create(&store, "c", "three").await;
    let seen = events(&mut stream, 1).await;
    assert_eq!(seen[0].revision(), next);
}

/// No update is lost: every round exactly one of the racing writers succeeds.
pub async fn of_racing_updates_one_wins_each_round(store: Shared) {
    const WRITERS: usize = 8;
    const INCREMENTS: usize = 20;
    create(&store, "counter", "0").await;
    let writers = (0..WRITERS).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..INCREMENTS {
                let mut seen = get_at(&store, "counter", None).await.unwrap();
                loop {
                    let next = (text(&seen).parse::<usize>().unwrap() + 1).to_string();
                    match store.put(Put::update(key("counter"), next, seen.mod_revision)).await {
                        Ok(_) => break,
                        Err(StoreError::Conflict { current: Some(current) }) => {
                            assert!(
                                current.mod_revision > seen.mod_revision,
                                "a conflict with what was expected"
                            );
                            seen = current;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let expected = (WRITERS * INCREMENTS).to_string();
    assert_eq!(value_at(&store, "counter", None).await, Some(expected));
}

/// Of several creates of one key exactly one succeeds.
pub async fn of_racing_creates_one_wins(store: Shared) {
    for round in 0..20 {
        let name = format!("race-{round}");
        let racers = (0..8).map(|_| {
            let (store, name) = (store.clone(), name.clone());
            tokio::spawn(async move { store.put(Put::create(key(&name), "x")).await.is_ok() })
        });
        let mut winners = 0;
        for racer in racers.collect::<Vec<_>>() {
            winners += usize::from(racer.await.unwrap());
        }
        assert_eq!(winners, 1, "round {round}");
    }
}

/// Keys have bounds, values too; refusals say which.
pub async fn unfit_keys_and_values_are_refused(store: Shared) {
    let long: Arc<str> = "k".repeat(MAX_KEY_BYTES + 1).into();
    for unfit in ["".into(), long] {
        match store.put(Put::create(unfit, "x")).await {
            Err(StoreError::InvalidKey { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    let fits = "k".repeat(MAX_KEY_BYTES);
    store.put(Put::create(fits.as_str(), "x")).await.unwrap();
    assert!(store.get(&fits, None).await.unwrap().0.is_some());
    match store.put(Put::create(key("big"), vec![0; 16 * 1024 * 1024])).await {
        Err(StoreError::TooLarge { size, limit }) => assert!(size > limit),
        other => panic!("{other:?}"),
    }
    let megabyte = vec![7; 1024 * 1024];
    store.put(Put::create(key("large"), megabyte.clone())).await.unwrap();
    assert_eq!(get_at(&store, "large", None).await.unwrap().value, megabyte);
}

/// Values are bytes, not text; none at all is a value too.
pub async fn empty_and_binary_values_are_kept(store: Shared) {
    let binary: Vec<u8> = (0..=255).collect();
    store.put(Put::create(key("binary"), binary.clone())).await.unwrap();
    create(&store, "empty", "").await;
    assert_eq!(get_at(&store, "binary", None).await.unwrap().value, binary);
    assert_eq!(get_at(&store, "empty", None).await.unwrap().value, Bytes::new());
}

/// Byte order, whole prefix, nothing else.
pub async fn range_is_ordered_and_keeps_to_its_prefix(store: Shared) {
    for name in ["b", "a", "ab", "c", "a.b"] {
        create(&store, name, name).await;
    }
    store.put(Put::create("/registry/core/configmapsx", "x")).await.unwrap();
    store.put(Put::create("/registry/core/config", "x")).await.unwrap();
    let range = store.range(PREFIX, None, None, 0).await.unwrap();
    assert_eq!(names(&range.items), ["a", "a.b", "ab", "b", "c"]);
    assert_eq!((range.more, range.remaining), (false, 0));
    assert_eq!(range.revision, store.sync().await.unwrap());
    let after = store.range(PREFIX, Some(&key("a.b")), None, 0).await.unwrap();
    assert_eq!(names(&after.items), ["ab", "b", "c"]);
    let none = store.range("/registry/core/secrets/", None, None, 0).await.unwrap();
    assert!(none.items.is_empty() && !none.more);
}

/// Pages read at the first page's revision don't see later changes.
pub async fn range_pages_are_one_snapshot(store: Shared) {
    for number in 0..10 {
        create(&store, &format!("k{number}"), "old").await;
    }
    let first = store.range(PREFIX, None, None, 4).await.unwrap();
    assert!(first.more);
    set(&store, "k5", "new").await;
    delete(&store, "k6").await;
    create(&store, "k55", "new").await;
    delete(&store, "k8").await;
    create(&store, "k8", "new").await;
    let mut items = first.items;
    loop {
        let after = items.last().unwrap().key.clone();
        let page = store.range(PREFIX, Some(&after), Some(first.revision), 4).await.unwrap();
        assert_eq!(page.revision, first.revision);
        items.extend(page.items);
        if !page.more {
            break;
        }
    }
    assert_eq!(names(&items), (0..10).map(|number| format!("k{number}")).collect::<Vec<_>>());
    assert!(items.iter().all(|kv| text(kv) == "old"), "{items:?}");
}

/// `more` and `remaining` agree with the snapshot.
pub async fn range_counts_what_remains(store: Shared) {
    for number in 0..7 {
        create(&store, &format!("k{number}"), "x").await;
    }
    let page = store.range(PREFIX, None, None, 3).await.unwrap();
    assert_eq!((page.items.len(), page.more, page.remaining), (3, true, 4));
    delete(&store, "k6").await;
    let old = store.range(PREFIX, Some(&key("k2")), Some(page.revision), 3).await.unwrap();
    assert_eq!((old.more, old.remaining), (true, 1));
    let new = store.range(PREFIX, Some(&key("k2")), None, 3).await.unwrap();
    assert_eq!((new.items.len(), new.more, new.remaining), (3, false, 0));
}

/// Any revision of the history shows the state right after it.
pub async fn old_revisions_can_be_read(store: Shared) {
    let before = store.sync().await.unwrap();
    let one = create(&store, "a", "one").await;
    let two = set(&store, "a", "two").await;
    let other = create(&store, "b", "other").await;
    let gone = delete(&store, "a").await;
    let again = create(&store, "a", "again").await;
    for (at, expected) in [
        (before, None),
        (one, Some("one")),
        (two, Some("two")),
        (other, Some("two")),
        (gone, None),
        (again, Some("again")),
    ] {
        // Revision 0 stands for "now" in etcd: the API server never asks for it.
        if at > 0 {
            assert_eq!(value_at(&store, "a", Some(at)).await.as_deref(), expected, "at {at}");
            let range = store.range(PREFIX, None, Some(at), 0).await.unwrap();
            let listed = range.items.iter().find(|kv| kv.key == key("a")).map(text);
            assert_eq!(listed.as_deref(), expected, "range at {at}");
            assert_eq!(range.revision, at);
        }
    }
}

/// Reads ahead of time are refused, not answered with the present.
pub async fn future_revisions_cannot_be_read(store: Shared) {
    let revision = create(&store, "a", "one").await;
    for answer in [
        store.get(&key("a"), Some(revision + 1)).await.err(),
        store.range(PREFIX, None, Some(revision + 1), 0).await.err(),
    ] {
        match answer {
            Some(StoreError::Future { current }) => assert!(current >= revision),
            other => panic!("{other:?}"),
        }
    }
    match store.compact(revision + 1).await {
        Err(StoreError::Future { .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// Before the compacted revision nothing is told; at it everything.
pub async fn compacted_revisions_cannot_be_read_or_watched(store: Shared) {
    let one = create(&store, "a", "one").await;
    let two = set(&store, "a", "two").await;
    let three = set(&store, "a", "three").await;
    let four = set(&store, "a", "four").await;
    store.compact(three).await.unwrap();
    for at in [one, two] {
        let errors = [
            store.get(&key("a"), Some(at)).await.err(),
            store.range(PREFIX, None, Some(at), 0).await.err(),
            first_error(store.watch(PREFIX, at).await).await,
            store.compact(at).await.err(),
        ];
        for error in errors {
            match error {
                Some(StoreError::Compacted { oldest }) => assert!(oldest >= three),
                other => panic!("at {at}: {other:?}"),
            }
        }
    }
    assert_eq!(value_at(&store, "a", Some(three)).await.as_deref(), Some("three"));
    let mut stream = watch(&store, PREFIX, three).await;
    assert_eq!(events(&mut stream, 1).await[0].revision(), four);
}

/// An engine may find out late: the error is then the stream's first item.
async fn first_error(stream: Result<WatchStream, StoreError>) -> Option<StoreError> {
    match stream {
        Err(error) => Some(error),
        Ok(mut stream) => match tokio::time::timeout(PATIENCE, stream.next()).await {
            Ok(Some(Err(error))) => Some(error),
            other => panic!("{other:?}"),
        },
    }
}

/// Compaction forgets the past, not the present.
pub async fn compaction_keeps_current_values(store: Shared) {
    for number in 0..20 {
        create(&store, &format!("k{number:02}"), "old").await;
    }
    for number in 0..10 {
        set(&store, &format!("k{number:02}"), "new").await;
        delete(&store, &format!("k{:02}", number + 10)).await;
    }
    let revision = store.sync().await.unwrap();
    store.compact(revision).await.unwrap();
    let range = store.range(PREFIX, None, None, 0).await.unwrap();
    assert_eq!(names(&range.items), (0..10).map(|number| format!("k{number:02}")).collect::<Vec<_>>());
    assert!(range.items.iter().all(|kv| text(kv) == "new"));
    let updated = set(&store, "k00", "newest").await;
    let mut stream = watch(&store, PREFIX, revision).await;
    let seen = events(&mut stream, 1).await;
    assert_eq!(seen[0].revision(), updated);
    assert_eq!(seen[0].prev.as_ref().map(text).as_deref(), Some("new"));
}

/// Between a delete that is compacted and the key's next create there is no key.
pub async fn compacted_delete_still_hides_its_key(store: Shared) {
    create(&store, "a", "one").await;
    delete(&store, "a").await;
    let between = create(&store, "b", "other").await;
    create(&store, "a", "two").await;
    store.compact(between).await.unwrap();
    assert_eq!(value_at(&store, "a", Some(between)).await, None);
    assert_eq!(names(&store.range(PREFIX, None, Some(between), 0).await.unwrap().items), ["b"]);
    let mut stream = watch(&store, PREFIX, between).await;
    assert_eq!(events(&mut stream, 1).await[0].prev, None);
}

/// History and live events join without loss or repeat.
pub async fn watch_tells_history_then_live_without_a_seam(store: Shared) {
    let first = create(&store, "a", "1").await;
    let mut revisions = vec![set(&store, "a", "2").await, create(&store, "b", "1").await];
    let mut stream = watch(&store, PREFIX, first).await;
    revisions.push(delete(&store, "a").await);
    revisions.push(set(&store, "b", "2").await);
    let seen = events(&mut stream, 4).await;
    assert_eq!(seen.iter().map(Event::revision).collect::<Vec<_>>(), revisions);
}

/// Other prefixes are not told.
pub async fn watch_keeps_to_its_prefix(store: Shared) {
    let start = store.sync().await.unwrap();
    store.put(Put::create("/registry/core/secrets/default/a", "x")).await.unwrap();
    let history = create(&store, "a", "x").await;
    let mut stream = watch(&store, PREFIX, start).await;
    store.put(Put::create("/registry/core/configmapsx", "x")).await.unwrap();
    store.put(Put::create("/registry/core/secrets/default/b", "x")).await.unwrap();
    let live = create(&store, "b", "x").await;
    let seen = events(&mut stream, 2).await;
    assert_eq!(seen.iter().map(Event::revision).collect::<Vec<_>>(), [history, live]);
}

/// Create, update and delete as events, from the history and live alike.
pub async fn watch_events_carry_old_and_new_values(store: Shared) {
    let start = store.sync().await.unwrap();
    let mut live = watch(&store, PREFIX, start).await;
    let created = create(&store, "a", "one").await;
    let updated = set(&store, "a", "two").await;
    let deleted = delete(&store, "a").await;
    let kv = |value: &'static str, mod_revision| KeyValue {
        key: key("a"),
        value: Bytes::from_static(value.as_bytes()),
        mod_revision,
        create_revision: created,
    };
    let expected = [
        Event { kind: EventKind::Put, kv: kv("one", created), prev: None },
        Event { kind: EventKind::Put, kv: kv("two", updated), prev: Some(kv("one", created)) },
        Event { kind: EventKind::Delete, kv: kv("two", deleted), prev: Some(kv("two", updated)) },
    ];
    assert_eq!(events(&mut live, 3).await, expected);
    let mut history = watch(&store, PREFIX, start).await;
    assert_eq!(events(&mut history, 3).await, expected);
}

/// A watch may be ahead of the store.
pub async fn watch_from_the_future_leaves_out_what_comes_before(store: Shared) {
    let now = create(&store, "a", "1").await;
    let mut stream = watch(&store, PREFIX, now + 2).await;
    set(&store, "a", "2").await;
    set(&store, "a", "3").await;
    let wanted = set(&store, "a", "4").await;
    assert_eq!(events(&mut stream, 1).await[0].revision(), wanted);
}

/// Watches started at any time under load see every later write once and in order.
pub async fn watch_under_writers_is_gap_free_and_ordered(store: Shared) {
    const WRITERS: usize = 8;
    const WRITES: usize = 50;
    let start = store.sync().await.unwrap();
    let mut from_start = watch(&store, PREFIX, start).await;
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            for write in 0..WRITES {
                let name = format!("w{writer}-{}", write % 5);
                revisions.push(set(&store, &name, &write.to_string()).await);
            }
            revisions
        })
    });
    let writers: Vec<_> = writers.collect();
    let middle = events_until(&mut from_start, WRITERS * WRITES / 2).await;
    let joined_at = middle.last().unwrap().revision();
    let mut from_middle = watch(&store, PREFIX, joined_at).await;
    let mut written = BTreeSet::new();
    for writer in writers {
        written.extend(writer.await.unwrap());
    }
    let written: Vec<Revision> = written.into_iter().collect();
    assert_eq!(written.len(), WRITERS * WRITES, "a revision was given twice");
    let mut all = middle;
    let rest = events(&mut from_start, WRITERS * WRITES - all.len()).await;
    let joined = events(&mut from_middle, rest.len()).await;
    assert_eq!(joined, rest, "two watches differ");
    all.extend(rest);
    assert_growing(all.iter().map(Event::revision));
    assert_eq!(all.iter().map(Event::revision).collect::<Vec<_>>(), written);
}

/// At least `count` events.
async fn events_until(stream: &mut WatchStream, count: usize) -> Vec<Event> {
    let mut seen = Vec::new();
    while seen.len() < count {
        match tokio::time::timeout(PATIENCE, stream.next()).await {
            Ok(Some(Ok(batch))) => seen.extend(batch),
            other => panic!("after {} of {count} events: {other:?}", seen.len()),
        }
    }
    seen
}

/// Cutting a watch anywhere and resuming after the last seen revision loses nothing.
pub async fn watch_resumes_where_another_ended(store: Shared) {
    let start = store.sync().await.unwrap();
    for number in 0..10 {
        set(&store, "a", &number.to_string()).await;
    }
    let mut stream = watch(&store, PREFIX, start).await;
    let all = events(&mut stream, 10).await;
    for (cut, event) in all.iter().enumerate().take(9) {
        let mut resumed = watch(&store, PREFIX, event.revision()).await;
        assert_eq!(events(&mut resumed, 9 - cut).await, all[cut + 1..]);
    }
}

/// Watches that end take nothing with them.
pub async fn dropped_watch_does_not_disturb(store: Shared) {
    let start = store.sync().await.unwrap();
    let dropped = watch(&store, PREFIX, start).await;
    let mut kept = watch(&store, PREFIX, start).await;
    create(&store, "a", "1").await;
    drop(dropped);
    create(&store, "b", "1").await;
    assert_eq!(events(&mut kept, 2).await.len(), 2);
}

/// A write that need not reach the disk takes its place among the others.
pub async fn writes_from_memory_are_ordered_with_the_others(store: Shared) {
    let start = store.sync().await.unwrap();
    let mut stream = watch(&store, PREFIX, start).await;
    let mut revisions = Vec::new();
    for number in 0..6 {
        let durability = if number % 2 == 0 { Durability::Memory } else { Durability::Disk };
        let put = Put { durability, ..Put::set(key("a"), number.to_string()) };
        revisions.push(store.put(put).await.unwrap());
        assert_eq!(value_at(&store, "a", None).await, Some(number.to_string()));
    }
    let gone = Delete { durability: Durability::Memory, ..Delete::new(key("a"), Expect::Any) };
    revisions.push(store.delete(gone).await.unwrap().0);
    assert_growing(revisions.iter().copied());
    let seen = events(&mut stream, 7).await;
    assert_eq!(seen.iter().map(Event::revision).collect::<Vec<_>>(), revisions);
}

/// An expired key goes like a deleted one.
pub async fn key_with_ttl_is_deleted_with_an_event(store: Shared) {
    let put = Put { ttl: Some(Duration::from_secs(1)), ..Put::create(key("event"), "x") };
    let created = store.put(put).await.unwrap();
    assert!(get_at(&store, "event", None).await.is_some());
    let mut stream = watch(&store, PREFIX, created).await;
    let seen = events(&mut stream, 1).await;
    assert_eq!((seen[0].kind, text(&seen[0].kv)), (EventKind::Delete, "x".to_owned()));
    assert!(seen[0].revision() > created);
    assert_eq!(get_at(&store, "event", None).await, None);
}

/// The last put's time to live counts.
pub async fn renewed_ttl_replaces_the_old_one(store: Shared) {
    let put = |seconds| Put { ttl: Some(Duration::from_secs(seconds)), ..Put::set(key("event"), "x") };
    store.put(put(1)).await.unwrap();
    let renewed = store.put(put(3600)).await.unwrap();
    expire_another(&store).await;
    assert_eq!(get_at(&store, "event", None).await.map(|kv| kv.mod_revision), Some(renewed));
}

/// A put without a time to live ends an earlier one.
pub async fn put_without_ttl_makes_the_key_stay(store: Shared) {
    store.put(Put { ttl: Some(Duration::from_secs(1)), ..Put::create(key("event"), "x") }).await.unwrap();
    let kept = set(&store, "event", "y").await;
    expire_another(&store).await;
    assert_eq!(get_at(&store, "event", None).await.map(|kv| kv.mod_revision), Some(kept));
}

/// Waits until a key with a later expiry than one second from the check's start is gone.
async fn expire_another(store: &Shared) {
    let put = Put { ttl: Some(Duration::from_secs(2)), ..Put::create(key("other"), "x") };
    let created = store.put(put).await.unwrap();
    let mut stream = watch(store, &key("other"), created).await;
    events(&mut stream, 1).await;
}
