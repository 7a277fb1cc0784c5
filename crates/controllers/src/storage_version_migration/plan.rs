//! Pure decisions about migrations: whose turn it is, and what conditions say.
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration as Migration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use serde_json::{Value, json};

use crate::ownership::name;

pub(super) const RUNNING: &str = "Running";
pub(super) const SUCCEEDED: &str = "Succeeded";
pub(super) const FAILED: &str = "Failed";
/// The condition of a definition.
const MIGRATING: &str = "StorageMigrating";

/// What is to be done first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Next<'a> {
    /// It ended and is still said to run.
    Finish(&'a Migration),
    /// None runs, and it has waited longest.
    Begin(&'a Migration),
    /// It runs.
    Migrate(&'a Migration),
}

/// Whether the condition is True.
pub(super) fn is(migration: &Migration, kind: &str) -> bool {
    let conditions = migration.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == kind && c.status == "True")
}

fn has_ended(migration: &Migration) -> bool {
    is(migration, SUCCEEDED) || is(migration, FAILED)
}

/// The next step for the migrations of one resource.
pub(super) fn next(all: &[Arc<Migration>]) -> Option<Next<'_>> {
    if let Some(ended) = all.iter().find(|m| is(m, RUNNING) && has_ended(m)) {
        return Some(Next::Finish(ended));
    }
    let open = || all.iter().filter(|m| !has_ended(m));
    if let Some(running) = open().find(|m| is(m, RUNNING)) {
        return Some(Next::Migrate(running));
    }
    let age =
        |m: &Migration| (m.metadata.creation_timestamp.as_ref().map(|t| t.0), name(&m.metadata).to_owned());
    open().min_by_key(|m| age(m)).map(|m| Next::Begin(m))
}

/// The migration with the condition True; one that was set before stays as it is.
pub(super) fn with(
    migration: &Migration,
    kind: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Migration {
    let mut next = migration.clone();
    let list = next.status.get_or_insert_default().conditions.get_or_insert_default();
    if !list.iter().any(|c| c.type_ == kind) {
        list.push(Condition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: Time(now),
            observed_generation: None,
        });
    }
    next
}

/// The migration that runs no more.
pub(super) fn without_running(migration: &Migration, now: Timestamp) -> Migration {
    let mut next = migration.clone();
    let list = next.status.get_or_insert_default().conditions.get_or_insert_default();
    for condition in list.iter_mut().filter(|c| c.type_ == RUNNING) {
        condition.status = "False".to_owned();
        condition.reason = "MigrationCompleted".to_owned();
        condition.message = "Migration completed".to_owned();
        condition.observed_generation = migration.metadata.generation;
        condition.last_transition_time = Time(now);
    }
    next
}

/// Whether the object was written after the revision: in the version that is stored now.
pub(super) fn is_newer(meta: &ObjectMeta, since: &str) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    let own = meta.resource_version.as_deref().and_then(number);
    matches!((own, number(since)), (Some(own), Some(since)) if own > since)
}

/// The definition with its condition.
fn define(definition: &Value, status: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    let mut next = definition.clone();
    let condition = json!({"type": MIGRATING, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": api::meta::format_time(now),
        "observedGeneration": definition["metadata"]["generation"]});
    let list = &mut next["status"]["conditions"];
    let Some(items) = list.as_array_mut() else {
        *list = json!([condition]);
        return next;
    };
    match items.iter_mut().find(|c| c["type"] == MIGRATING) {
        None => items.push(condition),
        Some(there) => {
            let since = there["lastTransitionTime"].take();
            let changes = there["status"] != condition["status"];
            *there = condition;
            if !changes {
                there["lastTransitionTime"] = since;
            }
        }
    }
    next
}

/// The definition whose objects are being migrated.
pub(super) fn migrating(definition: &Value, by: &str, now: Timestamp) -> Value {
    define(definition, "True", "MigrationRunning", &format!("Migration {by} is running"), now)
}

/// The definition whose objects are migrated, or are not. Of a definition that changed since nobody knows in which versions
/// objects are stored, nor of one whose migration failed.
pub(super) fn migrated(definition: &Value, is_done: bool, now: Timestamp) -> Value {
    let mut conditions = definition["status"]["conditions"].as_array().into_iter().flatten();
    let condition = conditions.find(|c| c["type"] == MIGRATING);
    if condition.is_some_and(|c| c["status"] == "False") {
        // An earlier pass said so.
        return definition.clone();
    }
    let same = condition.is_some_and(|c| c["observedGeneration"] == definition["metadata"]["generation"]);
    if !is_done {
        return define(definition, "False", "MigrationFailed", "The migration has failed", now);
    }
    let tail = match same {
        true => "and the stored versions have been updated",
        false => "but the stored versions have not been updated due to a generation mismatch",
    };
    let message = format!("The migration has succeeded {tail}");
    let mut next = define(definition, "False", "MigrationSucceeded", &message, now);
    let versions = definition["spec"]["versions"].as_array();
    let stored = versions.and_then(|list| list.iter().find(|v| v["storage"] == true));
    if let Some(stored) = stored.filter(|_| same) {
        next["status"]["storedVersions"] = json!([stored["name"]]);
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(name: &str, minute: u8, conditions: &[(&str, &str)]) -> Arc<Migration> {
        let condition = |(kind, status): &(&str, &str)| json!({"type": kind, "status": status, "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let conditions: Vec<_> = conditions.iter().map(condition).collect();
        let made = format!("2026-01-01T00:{minute:02}:00Z");
        let value = json!({"metadata": {"name": name, "creationTimestamp": made}, "spec": {"resource": {"group": "g", "resource": "r"}},
            "status": {"conditions": conditions}});
        Arc::new(serde_json::from_value(value).expect("migration"))
    }

    fn show(all: &[Arc<Migration>]) -> String {
        let name = |m: &Migration| name(&m.metadata).to_owned();
        match next(all) {
            None => "nothing".to_owned(),
            Some(Next::Finish(m)) => format!("finish {}", name(m)),
            Some(Next::Begin(m)) => format!("begin {}", name(m)),
            Some(Next::Migrate(m)) => format!("migrate {}", name(m)),
        }
    }

    #[test]
    fn one_migration_runs_at_a_time_the_oldest_first() {
        let (young, old) = (migration("a", 2, &[]), migration("b", 1, &[]));
        assert_eq!(show(&[young.clone(), old]), "begin b");
        let runs = migration("b", 1, &[(RUNNING, "True")]);
        assert_eq!(show(&[young.clone(), runs]), "migrate b");
        let ended = migration("b", 1, &[(RUNNING, "True"), (SUCCEEDED, "True")]);
        assert_eq!(show(&[young.clone(), ended]), "finish b");
        let finished = migration("b", 1, &[(RUNNING, "False"), (FAILED, "True")]);
        assert_eq!(show(&[young, finished.clone()]), "begin a");
        assert_eq!(show(&[finished]), "nothing");
    }

    #[test]
    fn a_definition_forgets_old_versions_unless_it_changed_or_the_migration_failed() {
        let now = Timestamp::UNIX_EPOCH;
        let definition = json!({"metadata": {"generation": 4}, "spec": {"versions": [
            {"name": "v1", "storage": false}, {"name": "v2", "storage": true}]},
            "status": {"conditions": [{"type": "Established", "status": "True"}], "storedVersions": ["v1", "v2"]}});
        let begun = migrating(&definition, "m", now);
        let check = |definition: &Value, is_done, stored: Value, reason: &str, message: &str| {
            let after = migrated(definition, is_done, now);
            let condition = &after["status"]["conditions"][1];
            assert_eq!(after["status"]["storedVersions"], stored);
            assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!(reason)));
            assert_eq!(condition["message"], message);
            assert_eq!(migrated(&after, is_done, now), after, "a second time changes nothing");
        };
        let done = "The migration has succeeded and the stored versions have been updated";
        check(&begun, true, json!(["v2"]), "MigrationSucceeded", done);
        let both = json!(["v1", "v2"]);
        check(&begun, false, both.clone(), "MigrationFailed", "The migration has failed");
        let mut changed = begun;
        changed["metadata"]["generation"] = json!(5);
        let after = migrated(&changed, true, now);
        let why = "The migration has succeeded but the stored versions have not been updated due to a generation mismatch";
        assert_eq!(after["status"]["conditions"][1]["message"], why);
        assert_eq!(after["status"]["storedVersions"], both);
        assert_eq!(migrated(&after, true, now), after);
    }

    #[test]
    fn what_was_written_since_is_newer() {
        let meta =
            |version: &str| ObjectMeta { resource_version: Some(version.to_owned()), ..Default::default() };
        let newer = ["9", "10", "11", "x"].map(|v| is_newer(&meta(v), "10"));
        assert_eq!(newer, [false, false, true, false]);
    }
}
