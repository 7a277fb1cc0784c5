//! Checks of reads: ranges, pages, old revisions, compaction.

use super::*;

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
