//! What a job's status may say, and how it may change.

use api::field::{Cursor, ErrorList, Reason};
use serde_json::{Value, json};

use super::numbers;
use super::tree::{has, is_empty};

fn is_true(o: &Value, condition: &str) -> bool {
    let list = o["status"]["conditions"].as_array();
    list.is_some_and(|l| l.iter().any(|c| c["type"] == condition && c["status"] == "True"))
}

/// A change of a job's status; what was there already is not looked at again.
pub(super) fn validate(new: &Value, old: &Value, errors: &mut ErrorList) {
    let status = Cursor::root(new).key("status");
    for key in ["active", "succeeded", "failed", "ready", "terminating"] {
        numbers::non_negative(&status.key(key), errors);
    }
    uncounted(&status.key("uncountedTerminatedPods"), errors);
    if new["status"] != old["status"] {
        finished(new, &status, errors);
        indexes(new, &status, errors);
    }
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if is_true(old, kind) && !is_true(new, kind) {
            conditions(&format!("cannot disable the terminal {kind}=True condition"), errors);
        }
    }
    let count = |o: &Value, key: &str| o["status"][key].as_i64().unwrap_or_default();
    // Indexed jobs of as many pods as indexes can shrink, and forget the indexes they lose.
    let spec = &new["spec"];
    let shrinks = spec["completionMode"] == "Indexed" && spec["completions"] == spec["parallelism"];
    for key in ["failed", "succeeded"] {
        if count(new, key) < count(old, key) && !(key == "succeeded" && shrinks) {
            let why = format!("cannot decrease the {key} counter");
            errors.invalid(&format!("status.{key}"), &json!(count(new, key)), &why);
        }
    }
    let start = |o: &Value| o["status"]["startTime"].clone();
    if new["spec"]["suspend"] != json!(true) && !start(old).is_null() && start(new) != start(old) {
        if start(new).is_null() {
            errors.required("status.startTime", "startTime cannot be removed for unsuspended job");
        } else {
            let why = "startTime cannot be changed for unsuspended job";
            errors.invalid("status.startTime", &start(new), why);
        }
    }
    let end = |o: &Value| o["status"]["completionTime"].clone();
    if is_true(old, "Complete") && !end(old).is_null() && end(new) != end(old) {
        errors.invalid("status.completionTime", &end(new), "completionTime cannot be mutated");
    }
}

/// Conditions are not printed.
fn conditions(why: &str, errors: &mut ErrorList) {
    errors.push(Reason::Invalid, "status.conditions", format!("Invalid value: {why}"));
}

fn uncounted(at: &Cursor<'_>, errors: &mut ErrorList) {
    let mut seen = std::collections::BTreeSet::new();
    for list in ["succeeded", "failed"] {
        for uid in at.key(list).items() {
            if uid.str().is_empty() {
                errors.invalid(&uid.path, &json!(""), "must not be empty");
            } else if !seen.insert(uid.str()) {
                errors.duplicate(&uid.path, uid.json());
            }
        }
    }
}

fn finished(job: &Value, status: &Cursor<'_>, errors: &mut ErrorList) {
    let (complete, failed) = (is_true(job, "Complete"), is_true(job, "Failed"));
    let (start, end) = (status.key("startTime"), status.key("completionTime"));
    if complete && failed {
        conditions("cannot set Complete=True and Failed=true conditions", errors);
    }
    if complete && is_true(job, "FailureTarget") {
        conditions("cannot set Complete=True and FailureTarget=true conditions", errors);
    }
    if end.exists() && !complete {
        let why = "cannot set completionTime when there is no Complete=True condition";
        errors.invalid(&end.path, end.json(), why);
    }
    if !end.exists() && complete {
        errors.required(&end.path, "completionTime is required for Complete jobs");
    }
    let time = |at: &Cursor<'_>| at.str().parse::<jiff::Timestamp>().ok();
    if let (Some(start), Some(then)) = (time(&start), time(&end))
        && then < start
    {
        errors.invalid(&end.path, end.json(), "completionTime cannot be set before startTime");
    }
    if failed && !is_true(job, "FailureTarget") {
        conditions("cannot set Failed=True condition without the FailureTarget=true condition", errors);
    }
    if complete && !is_true(job, "SuccessCriteriaMet") {
        conditions(
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
            errors,
        );
    }
    let number = |key: &str| status.key(key).i64().unwrap_or_default();
    if complete || failed {
        if number("active") > 0 {
            let active = status.key("active");
            errors.invalid(&active.path, active.json(), "active>0 is invalid for finished job");
        }
        if !start.exists() {
            errors.required(&start.path, "startTime is required for finished job");
        }
        let pods = status.key("uncountedTerminatedPods");
        if !pods.key("succeeded").is_empty() || !pods.key("failed").is_empty() {
            let why = "uncountedTerminatedPods needs to be empty for finished job";
            errors.invalid(&pods.path, pods.json(), why);
        }
        if number("terminating") > 0 {
            let terminating = status.key("terminating");
            errors.invalid(
                &terminating.path,
                terminating.json(),
                "terminating>0 is invalid for finished job",
            );
        }
    }
    if status.key("ready").exists() && number("ready") > number("active") {
        let ready = status.key("ready");
        errors.invalid(&ready.path, ready.json(), "cannot set more ready pods than active");
    }
    if is_true(job, "SuccessCriteriaMet") {
        if failed {
            conditions("cannot set Failed=True and SuccessCriteriaMet=true conditions", errors);
        }
        if is_true(job, "FailureTarget") {
            conditions("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions", errors);
        }
    }
}

fn indexes(job: &Value, status: &Cursor<'_>, errors: &mut ErrorList) {
    let (done, failed) = (status.key("completedIndexes"), status.key("failedIndexes"));
    let completions = job["spec"]["completions"].as_i64().unwrap_or(i64::MAX);
    for list in [&done, &failed] {
        if let Err(why) = super::job_policy::number_of_indexes(list.str(), completions) {
            let key = list.path.trim_start_matches("status.");
            errors.invalid(&list.path, list.json(), &format!("error parsing {key}: {why}"));
        }
    }
    let indexed = job["spec"]["completionMode"] == "Indexed";
    if !is_empty(done.value) && !indexed {
        let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.invalid(&done.path, done.json(), why);
    }
    if failed.exists() && !has(&job["spec"], "backoffLimitPerIndex") {
        let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.invalid(&failed.path, failed.json(), why);
    }
}
