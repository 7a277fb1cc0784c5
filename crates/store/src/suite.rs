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

mod expiry;
mod reads;
mod watches;
mod writes;

pub use expiry::*;
pub use reads::*;
pub use watches::*;
pub use writes::*;

/// The store under test.
pub type Shared = Arc<dyn Store>;

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
