//! How long volumes take, by the plugin that makes them.

use std::future::Future;
use std::time::Instant;

use super::Outcome;
use crate::metrics::STORAGE_OPERATION;

/// Times the making of a volume; `migrated`: a driver does it in the place of a plugin that is no more.
pub(super) async fn measured(plugin: &str, migrated: bool, making: impl Future<Output = Outcome>) -> Outcome {
    let begin = Instant::now();
    let outcome = making.await;
    count(plugin, migrated, outcome.is_ok(), begin);
    outcome
}

/// Counts what was begun then.
pub fn count(plugin: &str, migrated: bool, made: bool, begin: Instant) {
    let migrated = if migrated { "true" } else { "false" };
    let status = if made { "success" } else { "fail-unknown" };
    STORAGE_OPERATION.time(&[migrated, "volume_mount", status, plugin], begin.elapsed());
}
