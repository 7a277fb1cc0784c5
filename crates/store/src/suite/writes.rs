//! Checks of writes: conditions, revisions, races, limits.

use super::*;

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
