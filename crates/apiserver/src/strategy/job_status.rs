//! What a job's status may say, and how it may change.

use api::field::{Cursor, ErrorList, Reason};
use serde_json::{Value, json};

use super::numbers;
use super::tree::{has, is_empty};

fn is_true(o: &Value, condition: &str) -> bool {
    let list = o["status"]["conditions"].as_array();
    list.is_some_and(|l| l.iter().any(|c| c["type"] == condition && c["status"] == "True"))
}

/// A change of a job's status. Most rules hold only where what they speak of changes: what was there already stays.
pub(super) fn validate(new: &Value, old: &Value, errors: &mut ErrorList) {
    let status = Cursor::root(new).key("status");
    for key in ["active", "succeeded", "failed", "ready", "terminating"] {
        numbers::non_negative(&status.key(key), errors);
    }
    uncounted(&status.key("uncountedTerminatedPods"), errors);
    let change = Change { new, old };
    end(&change, &status, errors);
    finished(&change, &status, errors);
    indexes(&change, &status, errors);
    rest(&change, &status, errors);
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
    let time = |o: &Value, key: &str| o["status"][key].clone();
    let (now, before) = (time(new, "completionTime"), time(old, "completionTime"));
    if !now.is_null() && !before.is_null() && now != before {
        errors.invalid("status.completionTime", &now, "completionTime cannot be mutated");
    }
    let (now, before) = (time(new, "startTime"), time(old, "startTime"));
    if !before.is_null() && now != before && new["spec"]["suspend"] != json!(true) {
        errors.required("status.startTime", "startTime cannot be removed for unsuspended job");
    }
    if is_true(old, CRITERIA) && !is_true(new, CRITERIA) {
        conditions("cannot disable the SuccessCriteriaMet=True condition", errors);
    }
    if is_true(old, "Complete") && !is_true(old, CRITERIA) && is_true(new, CRITERIA) {
        let why = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        conditions(why, errors);
    }
}

const CRITERIA: &str = "SuccessCriteriaMet";

/// A job before and after.
struct Change<'a> {
    new: &'a Value,
    old: &'a Value,
}

impl Change<'_> {
    /// Whether one of these members of the status changes; a number that is missing is 0.
    fn of(&self, keys: &[&str]) -> bool {
        let unset = |v: &Value| v.is_null() || *v == json!(0) || *v == json!("");
        keys.iter().any(|key| {
            let (new, old) = (&self.new["status"][key], &self.old["status"][key]);
            new != old && !(unset(new) && unset(old))
        })
    }

    /// Whether a condition becomes true or ceases to be.
    fn of_condition(&self, kind: &str) -> bool {
        is_true(self.new, kind) != is_true(self.old, kind)
    }

    fn of_end(&self) -> bool {
        is_finished(self.new) != is_finished(self.old)
    }
}

fn is_finished(job: &Value) -> bool {
    is_true(job, "Complete") || is_true(job, "Failed")
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

/// When and how a job is complete.
fn end(change: &Change<'_>, status: &Cursor<'_>, errors: &mut ErrorList) {
    let job = change.new;
    let (complete, failed) = (is_true(job, "Complete"), is_true(job, "Failed"));
    let (start, end) = (status.key("startTime"), status.key("completionTime"));
    if complete && failed && (change.of_condition("Complete") || change.of_condition("Failed")) {
        conditions("cannot set Complete=True and Failed=true conditions", errors);
    }
    if complete
        && is_true(job, "FailureTarget")
        && (change.of_condition("Complete") || change.of_condition("FailureTarget"))
    {
        conditions("cannot set Complete=True and FailureTarget=true conditions", errors);
    }
    if change.of_condition("Complete") || change.of(&["completionTime"]) {
        if end.exists() && !complete {
            let why = "cannot set completionTime when there is no Complete=True condition";
            errors.invalid(&end.path, end.json(), why);
        }
        if !end.exists() && complete {
            errors.required(&end.path, "completionTime is required for Complete jobs");
        }
    }
    let time = |at: &Cursor<'_>| at.str().parse::<jiff::Timestamp>().ok();
    if change.of(&["startTime", "completionTime"])
        && let (Some(start), Some(then)) = (time(&start), time(&end))
        && then < start
    {
        errors.invalid(&end.path, end.json(), "completionTime cannot be set before startTime");
    }
    if failed
        && !is_true(job, "FailureTarget")
        && (change.of_condition("Failed") || change.of_condition("FailureTarget"))
    {
        conditions("cannot set Failed=True condition without the FailureTarget=true condition", errors);
    }
    if complete
        && !is_true(job, CRITERIA)
        && (change.of_condition("Complete") || change.of_condition(CRITERIA))
    {
        conditions(
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
            errors,
        );
    }
}

/// A finished job began, and has no pods left to count.
fn finished(change: &Change<'_>, status: &Cursor<'_>, errors: &mut ErrorList) {
    if !is_finished(change.new) {
        return;
    }
    let changes = |key: &str| change.of_end() || change.of(&[key]);
    let active = status.key("active");
    if changes("active") && active.i64().is_some_and(|n| n > 0) {
        errors.invalid(&active.path, active.json(), "active>0 is invalid for finished job");
    }
    let start = status.key("startTime");
    if changes("startTime") && !start.exists() {
        errors.required(&start.path, "startTime is required for finished job");
    }
    let pods = status.key("uncountedTerminatedPods");
    if changes("uncountedTerminatedPods")
        && (!pods.key("succeeded").is_empty() || !pods.key("failed").is_empty())
    {
        let why = "uncountedTerminatedPods needs to be empty for finished job";
        let shown = super::internal::show("UncountedTerminatedPods", pods.json());
        errors.invalid_shown(&pods.path, &shown, why);
    }
}

fn indexes(change: &Change<'_>, status: &Cursor<'_>, errors: &mut ErrorList) {
    let spec = &change.new["spec"];
    let (done, failed) = (status.key("completedIndexes"), status.key("failedIndexes"));
    let per_index = has(spec, "backoffLimitPerIndex");
    let completions = spec["completions"].as_i64();
    let mut readable = |list: &Cursor<'_>, completions: i64| {
        if let Err(why) = super::job_policy::number_of_indexes(list.str(), completions) {
            let key = list.path.trim_start_matches("status.");
            errors.invalid(&list.path, &json!(list.str()), &format!("error parsing {key}: {why}"));
        }
    };
    if let Some(completions) = completions {
        if change.of(&["completedIndexes"]) {
            readable(&done, completions);
        }
        if change.of(&["failedIndexes"]) && per_index && failed.exists() {
            readable(&failed, completions);
        }
    }
    if change.of(&["completedIndexes"]) && !is_empty(done.value) && spec["completionMode"] != "Indexed" {
        let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.invalid(&done.path, done.json(), why);
    }
    if failed.exists() && !has(&change.old["status"], "failedIndexes") && !per_index {
        let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.invalid(&failed.path, failed.json(), why);
    }
    if let Some(completions) = completions.filter(|_| change.of(&["failedIndexes", "completedIndexes"]))
        && let Some(both) = super::job_policy::overlap(done.str(), failed.str(), completions)
    {
        let why = format!("failedIndexes and completedIndexes overlap at index: {both}");
        errors.invalid(&failed.path, failed.json(), &why);
    }
}

fn rest(change: &Change<'_>, status: &Cursor<'_>, errors: &mut ErrorList) {
    let job = change.new;
    let number = |key: &str| status.key(key).i64().unwrap_or_default();
    let (terminating, ready) = (status.key("terminating"), status.key("ready"));
    if is_finished(job)
        && (change.of_end() || change.of(&["terminating"]))
        && terminating.i64().is_some_and(|n| n > 0)
    {
        let why = "terminating>0 is invalid for finished job";
        errors.invalid(&terminating.path, terminating.json(), why);
    }
    if change.of(&["ready", "active"]) && ready.i64().is_some_and(|n| n > number("active")) {
        errors.invalid(&ready.path, ready.json(), "cannot set more ready pods than active");
    }
    if is_true(job, CRITERIA) {
        if is_true(job, "Failed") {
            conditions("cannot set SuccessCriteriaMet=True and Failed=true conditions", errors);
        }
        if is_true(job, "FailureTarget") {
            conditions("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions", errors);
        }
    } else if has(&job["spec"], "successPolicy") && is_true(job, "Complete") {
        let why = "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
        conditions(why, errors);
    }
}
