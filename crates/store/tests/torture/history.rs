//! What must be true of a store after a crash, its watch history included.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _};
use store::embedded::Embedded;
use store::{Event, EventKind, Put, Revision, Store};

use crate::writer::{Known, Shown, options};
use crate::{RESTART, Tally};

/// Opens the store after a crash, compares it with what was acknowledged, and writes.
pub async fn check(folder: &std::path::Path, round: u64, known: &Known, shown: &Shown, tally: &mut Tally) {
    let begin = Instant::now();
    let store = Embedded::open(folder, options()).unwrap_or_else(|error| panic!("round {round}: {error}"));
    let next = store.put(Put::set("/registry/core/configmaps/parent", round.to_string())).await.unwrap();
    let took = begin.elapsed();
    assert!(took < RESTART, "round {round}: the first write took {took:?}");
    assert!(next > shown.highest, "round {round}: revision {next} was given again");
    let history = history(&store).await;
    for (key, (revision, value)) in known {
        let found = store.get(key, None).await.unwrap().0;
        // A later write may have been stored without its acknowledgement having been read.
        let newer = found.as_ref().is_some_and(|kv| kv.mod_revision > *revision);
        let same = match (&found, value) {
            (Some(kv), Some(value)) => kv.mod_revision == *revision && kv.value == value.as_bytes(),
            (None, None) => true,
            // Deleted by the write that was under way.
            (None, Some(_)) => history.iter().any(|event| {
                event.kind == EventKind::Delete && *event.kv.key == **key && event.revision() > *revision
            }),
            _ => false,
        };
        assert!(newer || same, "round {round}: {key} was {value:?} at {revision}, now {found:?}");
    }
    told(&store, &history, known, round).await;
    tally.rounds += 1;
    tally.acknowledged += shown.acknowledged;
    tally.restarts.push(took);
    store.close().await.unwrap();
}

/// Everything that a watch from the oldest revision is told.
async fn history(store: &Arc<Embedded>) -> Vec<Event> {
    from(store, store.stats().compacted).await
}

async fn from(store: &Arc<Embedded>, revision: Revision) -> Vec<Event> {
    let mut stream = store.watch("/", revision).await.unwrap();
    let newest = store.revision();
    let mut events: Vec<Event> = Vec::new();
    while events.last().is_none_or(|event| event.revision() < newest) {
        let batch = tokio::time::timeout(Duration::from_secs(30), stream.next()).await;
        events.extend(batch.expect("the history goes up to now").unwrap().unwrap());
    }
    assert!(stream.next().now_or_never().is_none(), "nothing is told twice");
    events
}

/// Ordered, unique, without a gap, resumable.
async fn told(store: &Arc<Embedded>, history: &[Event], known: &Known, round: u64) {
    let compacted = store.stats().compacted;
    let revisions: Vec<Revision> = history.iter().map(Event::revision).collect();
    assert!(revisions.is_sorted_by(|a, b| a < b), "round {round}: {revisions:?}");
    for (key, (revision, _)) in known.iter().filter(|(_, (revision, _))| *revision > compacted) {
        let found = revisions.binary_search(revision);
        assert!(found.is_ok(), "round {round}: the watch leaves out {key} of revision {revision}");
    }
    // Each event's previous value is the one told before.
    let mut last = std::collections::HashMap::new();
    for event in history {
        if let Some(before) = last.insert(event.kv.key.clone(), event)
            && let Some(prev) = &event.prev
        {
            assert_eq!(prev.mod_revision, before.revision(), "round {round}: {}", event.kv.key);
        }
    }
    let (first, middle) = (history.first(), history.get(history.len() / 2));
    for event in first.into_iter().chain(middle) {
        let rest = from(store, event.revision()).await;
        let after = history.partition_point(|other| other.revision() <= event.revision());
        assert_eq!(rest, history[after..], "round {round}: resumed at {}", event.revision());
    }
}
