//! Checks of keys that live for a limited time.

use super::*;

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
