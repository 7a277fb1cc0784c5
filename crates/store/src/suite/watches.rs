//! Checks of watches: order, gaps, resuming.

use super::*;

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
