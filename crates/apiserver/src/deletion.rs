//! Deletion: grace periods, finalizers, what happens to dependents. Pure.
//!
//! Rule: Kubernetes documentation, "Garbage Collection", "Finalizers", "Pod Lifecycle" (termination).

use api::kinds::Kind;
use api::meta;
use api::object::Object;
use jiff::Timestamp;
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
    let mut new = old.clone();
    let dependents_changed = set_dependents_finalizer(strategy, &mut new, options);
    let (graceful, mut grace) = match strategy.deletion(old) {
        Deletion::Immediate => (false, 0),
        Deletion::Graceful { default_seconds } => {
            let asked = options.grace_period_seconds.unwrap_or(default_seconds);
            // a negative period is no period: the least one
            (true, if asked < 0 { 1 } else { asked })
        }
    };
    if !meta::is_being_deleted(old) {
        strategy.begin_deletion(&Context::new(now), &mut new);
    }
    let blocked = has_finalizers(kind, &new);
    if meta::is_being_deleted(old) {
        let before = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        if grace == 0 && !blocked {
            return Plan::Remove(new);
        }
        // a later request can only shorten the time
        let shorter = graceful && options.grace_period_seconds.is_some() && grace < before;
        if !shorter && !dependents_changed {
            return Plan::Nothing;
        }
        if shorter {
            mark(&mut new, grace, now);
        }
        return Plan::Mark(new);
    }
    if !graceful {
        grace = 0;
    }
    mark(&mut new, grace, now);
    if blocked || grace > 0 { Plan::Mark(new) } else { Plan::Remove(new) }
}

fn mark(object: &mut Value, grace: i64, now: Timestamp) {
    let at = now.saturating_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
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
            fn deletion(&self, _: &Value) -> Deletion {
                Deletion::Graceful { default_seconds: 30 }
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
        let marked = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:10Z", "deletionGracePeriodSeconds": 10}});
        assert_eq!(plan(marked.clone(), grace(Some(20))), "nothing");
        assert!(plan(marked.clone(), grace(Some(5))).starts_with("mark"));
        assert!(plan(marked, grace(Some(0))).starts_with("remove"));
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
