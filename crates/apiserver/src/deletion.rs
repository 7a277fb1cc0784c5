//! Deletion: grace periods, finalizers, what happens to dependents. Pure.
//!
//! Rule: Kubernetes documentation, "Garbage Collection", "Finalizers", "Pod Lifecycle" (termination).

use api::kinds::Kind;
use api::meta;
use api::object::Object;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::registry::{DeleteOptions, Target};
use crate::status::{ApiError, ApiResult};
use crate::strategy::{Context, Deletion, Strategy};

/// Whether an update removed the last thing that stood before the object's end.
pub fn finished(kind: &Kind, new: &Value, old: &Value) -> bool {
    meta::is_being_deleted(old)
        && old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !has_finalizers(kind, new)
        && has_finalizers(kind, old)
}

fn has_finalizers(kind: &Kind, object: &Value) -> bool {
    meta::finalizers(object).next().is_some()
        || kind.kind == "Namespace" && object["spec"]["finalizers"].as_array().is_some_and(|l| !l.is_empty())
}

/// Refuses a deletion whose conditions the object does not meet.
pub fn check_preconditions(target: Target<'_>, options: &DeleteOptions, current: &Object) -> ApiResult<()> {
    let refuse = |what: &str, asked: &str, found: &str| {
        let why = format!(
            "the {what} in the precondition ({asked}) does not match the {what} in record ({found}). The object might have been deleted and then recreated"
        );
        Err(ApiError::precondition(target.kind, target.name, &why))
    };
    match (&options.uid, &options.resource_version) {
        (Some(uid), _) if uid != current.uid() => refuse("UID", uid, current.uid()),
        (_, Some(version)) if *version != current.revision().to_string() => {
            let why = format!(
                "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
                current.revision()
            );
            Err(ApiError::precondition(target.kind, target.name, &why))
        }
        _ => Ok(()),
    }
}

/// What a deletion does.
pub enum Plan {
    /// Deletion goes on already; this request changes nothing.
    Nothing,
    /// The object stays for now, in this state.
    Mark(Value),
    /// The object goes; this is its last state.
    Remove(Value),
}

/// What a deletion does to an object: pure.
pub fn plan_deletion(
    strategy: &dyn Strategy,
    kind: &Kind,
    old: &Value,
    options: &DeleteOptions,
    now: Timestamp,
) -> Plan {
    if meta::is_being_deleted(old) {
        return plan_again(strategy, kind, old, options, now);
    }
    let mut new = old.clone();
    set_dependents_finalizer(strategy, &mut new, options);
    let grace = match strategy.deletion(old) {
        Deletion::Immediate => 0,
        Deletion::Graceful { default_seconds } => {
            period(options.grace_period_seconds.unwrap_or(default_seconds))
        }
    };
    strategy.begin_deletion(&Context::new(now), &mut new);
    mark(&mut new, grace, now.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(now));
    if grace > 0 || has_finalizers(kind, &new) { Plan::Mark(new) } else { Plan::Remove(new) }
}

/// What a further deletion does to an object that is being deleted: it can shorten the time that is left, and nothing else
/// before that is over.
fn plan_again(
    strategy: &dyn Strategy,
    kind: &Kind,
    old: &Value,
    options: &DeleteOptions,
    now: Timestamp,
) -> Plan {
    let mut new = old.clone();
    let before = period(old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0));
    if before == 0 {
        let changed = set_dependents_finalizer(strategy, &mut new, options);
        return match has_finalizers(kind, &new) {
            false => Plan::Remove(new),
            true if changed => Plan::Mark(new),
            true => Plan::Nothing,
        };
    }
    let Some(asked) = options.grace_period_seconds.map(period).filter(|asked| *asked < before) else {
        return Plan::Nothing;
    };
    set_dependents_finalizer(strategy, &mut new, options);
    // counted from when the deletion began
    let ended = old["metadata"]["deletionTimestamp"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
    let moved = ended.and_then(|at| at.checked_sub(SignedDuration::from_secs(before - asked)).ok());
    match moved.filter(|at| *at >= now) {
        Some(at) => mark(&mut new, asked, at),
        // over by now: who ends the object gracefully still has a moment for that
        None => mark(&mut new, asked.min(1), now),
    }
    if asked > 0 || has_finalizers(kind, &new) { Plan::Mark(new) } else { Plan::Remove(new) }
}

/// Seconds of a grace period; what is negative is the least one.
fn period(seconds: i64) -> i64 {
    if seconds < 0 { 1 } else { seconds }
}

fn mark(object: &mut Value, grace: i64, at: Timestamp) {
    let first = !meta::is_being_deleted(object);
    let meta = meta::metadata_mut(object);
    meta.insert("deletionTimestamp".to_owned(), json!(meta::format_time(at)));
    meta.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
    if first && let Some(generation) = meta.get("generation").and_then(Value::as_i64) {
        meta.insert("generation".to_owned(), json!(generation + 1));
    }
}

/// Puts `orphan` or `foregroundDeletion` among the finalizers, as asked; whether that changed anything.
fn set_dependents_finalizer(strategy: &dyn Strategy, object: &mut Value, options: &DeleteOptions) -> bool {
    let policy = match (options.orphan_dependents, options.propagation_policy.as_deref()) {
        (Some(true), _) => "Orphan",
        (Some(false), _) => "Background",
        (None, Some(policy)) => policy,
        (None, None) if meta::finalizers(object).any(|f| f == "orphan") => "Orphan",
        (None, None) if meta::finalizers(object).any(|f| f == "foregroundDeletion") => "Foreground",
        (None, None) if strategy.orphans_by_default() => "Orphan",
        (None, None) => "Background",
    };
    let before: Vec<String> = meta::finalizers(object).map(str::to_owned).collect();
    let mut after: Vec<String> =
        before.iter().filter(|f| !matches!(f.as_str(), "orphan" | "foregroundDeletion")).cloned().collect();
    match policy {
        "Orphan" => after.push("orphan".to_owned()),
        "Foreground" => after.push("foregroundDeletion".to_owned()),
        _ => {}
    }
    if after == before {
        return false;
    }
    let meta = meta::metadata_mut(object);
    if after.is_empty() {
        meta.remove("finalizers");
    } else {
        meta.insert("finalizers".to_owned(), json!(after));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(object: Value, options: DeleteOptions) -> String {
        struct Graceful;
        impl Strategy for Graceful {
            fn deletion(&self, old: &Value) -> Deletion {
                match old["ended"] {
                    Value::Null => Deletion::Graceful { default_seconds: 30 },
                    _ => Deletion::Immediate,
                }
            }
        }
        let kind = api::kinds::find("", "v1", "pods").unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        match plan_deletion(&Graceful, kind, &object, &options, now) {
            Plan::Nothing => "nothing".to_owned(),
            Plan::Remove(o) => format!("remove {}", o["metadata"]),
            Plan::Mark(o) => format!("mark {}", o["metadata"]),
        }
    }

    #[test]
    fn deletion_marks_waits_and_removes() {
        let grace = |s| DeleteOptions { grace_period_seconds: s, ..DeleteOptions::default() };
        assert_eq!(
            plan(json!({"metadata": {}}), grace(None)),
            r#"mark {"deletionGracePeriodSeconds":30,"deletionTimestamp":"2026-01-01T00:00:30Z"}"#
        );
        assert_eq!(
            plan(json!({"metadata": {}}), grace(Some(0))),
            r#"remove {"deletionGracePeriodSeconds":0,"deletionTimestamp":"2026-01-01T00:00:00Z"}"#
        );
    }

    #[test]
    fn a_further_deletion_can_only_shorten_the_time() {
        let grace = |s| DeleteOptions { grace_period_seconds: s, ..DeleteOptions::default() };
        // Ten seconds of it are left, or none.
        let begun =
            |at: &str| json!({"metadata": {"deletionTimestamp": at, "deletionGracePeriodSeconds": 30}});
        let early = begun("2026-01-01T00:00:10Z");
        for longer in [None, Some(30), Some(40)] {
            assert_eq!(plan(early.clone(), grace(longer)), "nothing");
        }
        for (asked, is) in [
            (25, r#"mark {"deletionGracePeriodSeconds":25,"deletionTimestamp":"2026-01-01T00:00:05Z"}"#),
            (5, r#"mark {"deletionGracePeriodSeconds":1,"deletionTimestamp":"2026-01-01T00:00:00Z"}"#),
            (-5, r#"mark {"deletionGracePeriodSeconds":1,"deletionTimestamp":"2026-01-01T00:00:00Z"}"#),
            (0, r#"remove {"deletionGracePeriodSeconds":0,"deletionTimestamp":"2026-01-01T00:00:00Z"}"#),
        ] {
            assert_eq!(plan(early.clone(), grace(Some(asked))), is, "{asked}");
        }
        assert!(plan(begun("2025-12-31T23:00:00Z"), grace(Some(29))).contains("00:00:00Z"));
        // It ended by itself: whoever ends it is still at work.
        let ended = json!({"metadata": early["metadata"], "ended": true});
        assert_eq!(plan(ended, grace(None)), "nothing");
        let over = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:10Z", "deletionGracePeriodSeconds": 0}});
        assert!(plan(over, grace(None)).starts_with("remove"));
    }

    #[test]
    fn finalizers_outlast_a_deletion_by_force() {
        let force = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        let held = json!({"metadata": {"finalizers": ["a/b"], "deletionTimestamp": "2026-01-01T00:00:10Z",
            "deletionGracePeriodSeconds": 30}, "ended": true});
        assert_eq!(
            plan(held, force),
            r#"mark {"deletionGracePeriodSeconds":0,"deletionTimestamp":"2026-01-01T00:00:00Z","finalizers":["a/b"]}"#
        );
    }

    #[test]
    fn a_finalizer_keeps_the_object() {
        let object = json!({"metadata": {"finalizers": ["a/b"]}});
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        assert!(plan(object, options).starts_with("mark"));
    }

    #[test]
    fn foreground_deletion_is_a_finalizer() {
        let options = DeleteOptions {
            propagation_policy: Some("Foreground".to_owned()),
            grace_period_seconds: Some(0),
            ..DeleteOptions::default()
        };
        assert!(plan(json!({"metadata": {}}), options).contains("foregroundDeletion"));
    }
}
