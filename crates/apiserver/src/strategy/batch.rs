//! Jobs and cron jobs.

use api::field::{Cursor, ErrorList};
use api::{meta, names};
use serde_json::{Value, json};

use super::parts::{Parts, Rules};
use super::tree::{child, each, has, is_empty, make, put, put_absent, text};
use super::{job_policy, label_selector, numbers, pod_defaults, pod_validate, texts, warnings};

fn template(spec: &mut Value) {
    if let Some(template) = make(spec, "template") {
        pod_defaults::pod_template(template);
    }
}

fn default_job(o: &mut Value) {
    let Some(spec) = make(o, "spec") else { return };
    if !has(spec, "completions") && !has(spec, "parallelism") {
        spec["completions"] = json!(1);
    }
    put_absent(spec, "parallelism", 1);
    // With a limit per index the job as a whole has none.
    let limit = if has(spec, "backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 };
    put_absent(spec, "backoffLimit", limit);
    put_absent(spec, "completionMode", "NonIndexed");
    put_absent(spec, "suspend", false);
    put_absent(spec, "manualSelector", false);
    let replacement = if has(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    put_absent(spec, "podReplacementPolicy", replacement);
    default_policy(spec);
    template(spec);
    default_labels(o);
}

/// Conditions that a failure policy looks for are there unless it says otherwise.
fn default_policy(spec: &mut Value) {
    let Some(policy) = child(spec, "podFailurePolicy") else { return };
    for rule in each(policy, "rules") {
        each(rule, "onPodConditions").for_each(|pattern| put(pattern, "status", "True"));
    }
}

const UID: &str = "batch.kubernetes.io/controller-uid";
const NAME: &str = "batch.kubernetes.io/job-name";

/// A job without labels has its template's.
fn default_labels(o: &mut Value) {
    let labels = o.pointer("/spec/template/metadata/labels").cloned();
    if let Some(labels) = labels.filter(|l| !is_empty(Some(l)))
        && is_empty(o["metadata"].get("labels"))
    {
        meta::metadata_mut(o).insert("labels".to_owned(), labels);
    }
}

/// A job selects its pods by its own uid, unless told to do otherwise.
fn generate_selector(o: &mut Value) {
    let (name, uid) = (meta::name(o).to_owned(), meta::text(o, "uid").to_owned());
    let Some(spec) = make(o, "spec") else { return };
    if spec["manualSelector"] == json!(true) {
        return;
    }
    let Some(metadata) = make(spec, "template").and_then(|t| make(t, "metadata")) else { return };
    if let Some(labels) = make(metadata, "labels") {
        for (key, value) in [(UID, &uid), ("controller-uid", &uid), (NAME, &name), ("job-name", &name)] {
            put_absent(labels, key, value.as_str());
        }
    }
    if let Some(selector) = make(spec, "selector")
        && let Some(labels) = make(selector, "matchLabels")
    {
        put_absent(labels, UID, uid);
    }
    default_labels(o);
}

pub(super) static JOB: Parts = Parts {
    default: default_job,
    create: |c, o| {
        pod_defaults::drop_disabled_template(c, o, None);
        generate_selector(o);
    },
    update: |c, new, old| pod_defaults::drop_disabled_template(c, new, Some(old)),
    orphans: true,
    validate: |o, errors| validate_job(o, true, errors),
    validate_change: job_change,
    rules: Rules::OnCreate,
    validate_status: super::job_status::validate,
    warn: |new, old| {
        let mut found = if old.is_none() { texts::host_name_warning(meta::name(new)) } else { Vec::new() };
        let number = |key: &str| new["spec"][key].as_i64().unwrap_or_default();
        let is_indexed = text(&new["spec"], "completionMode") == "Indexed";
        let many = number("completions") > MANY_COMPLETIONS && number("parallelism") > MANY_FOR_MANY;
        if old.is_none() && is_indexed && many {
            found.push("In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail".to_owned());
        }
        found.extend(warnings::template(new, old, "spec.template"));
        found
    },
    ..Parts::PLAIN
};

pub(super) static CRON_JOB: Parts = Parts {
    default: |o| {
        let Some(spec) = make(o, "spec") else { return };
        put(spec, "concurrencyPolicy", "Allow");
        put_absent(spec, "suspend", false);
        put_absent(spec, "successfulJobsHistoryLimit", 3);
        put_absent(spec, "failedJobsHistoryLimit", 1);
        if let Some(job) = make(spec, "jobTemplate").and_then(|t| make(t, "spec")) {
            default_policy(job);
            template(job);
        }
    },
    validate: |o, errors| {
        cron_job_spec(o, None, errors);
        let name = meta::name(o);
        // Jobs add a dash and ten digits of time.
        if name.len() > 52 {
            errors.invalid("metadata.name", &json!(name), "must be no more than 52 characters");
        }
    },
    validate_change: |new, old, errors| cron_job_spec(new, Some(old), errors),
    rules: Rules::OnCreate,
    warn: |new, old| warnings::workload(new, old, "spec.jobTemplate.spec.template"),
    ..Parts::PLAIN
};

/// Most pods of an indexed job at a time, and most indexes that may fail.
const MOST_INDEXED: i64 = 100_000;
/// Completions above which an indexed job is held to the smaller limit.
const MANY_COMPLETIONS: i64 = 100_000;
const MANY_FOR_MANY: i64 = 10_000;
/// Characters of the name of who manages a job.
const MANAGER: usize = 63;

fn job_spec(spec: &Cursor<'_>, errors: &mut ErrorList) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        numbers::non_negative(&spec.key(key), errors);
    }
    let per_index = spec.key("backoffLimitPerIndex");
    if spec.key("maxFailedIndexes").exists() && !per_index.exists() {
        errors.required(&per_index.path, "when maxFailedIndexes is specified");
    }
    let manager = spec.key("managedBy");
    if manager.exists() {
        texts::domain_prefixed_path(&manager, errors);
        if manager.str().len() > MANAGER {
            errors.too_long(&manager.path, MANAGER);
        }
    }
    completion(spec, errors);
    let indexed = spec.key("completionMode").str() == "Indexed";
    if spec.key("podFailurePolicy").exists() {
        job_policy::failure(spec, errors);
    }
    if spec.key("successPolicy").exists() {
        let completions = spec.key("completions").i64().unwrap_or_default();
        job_policy::success(&spec.key("successPolicy"), indexed, completions, errors);
    }
    let replacement = spec.key("podReplacementPolicy");
    let allowed: &[&str] =
        if spec.key("podFailurePolicy").exists() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    if replacement.exists() && !allowed.contains(&replacement.str()) {
        errors.not_supported(&replacement.path, replacement.json(), allowed);
    }
    pod_validate::template_at(&spec.key("template"), errors);
    let restart = spec.key("template").key("spec").key("restartPolicy");
    if restart.str() == "Always" || restart.str().is_empty() {
        errors.required(&restart.path, "valid values: \"OnFailure\", \"Never\"");
    } else if !matches!(restart.str(), "OnFailure" | "Never") {
        errors.not_supported(&restart.path, restart.json(), &["OnFailure", "Never"]);
    } else if spec.key("podFailurePolicy").exists() && restart.str() != "Never" {
        errors.invalid(
            &restart.path,
            restart.json(),
            "only \"Never\" is supported when podFailurePolicy is specified",
        );
    }
}

/// How a job counts what is done, and the limits that follow.
fn completion(spec: &Cursor<'_>, errors: &mut ErrorList) {
    let (completions, parallelism) = (spec.key("completions"), spec.key("parallelism"));
    let (per_index, most) = (spec.key("backoffLimitPerIndex"), spec.key("maxFailedIndexes"));
    let at_most = |at: &Cursor<'_>, limit: i64, why: &str, errors: &mut ErrorList| {
        if at.i64().is_some_and(|n| n > limit) {
            errors.invalid(&at.path, at.json(), &format!("must be less than or equal to {why}"));
        }
    };
    let mode = spec.key("completionMode");
    match mode.str() {
        "Indexed" => {}
        "NonIndexed" | "" if mode.str() == "NonIndexed" || !mode.exists() => {
            for at in [&per_index, &most] {
                if at.exists() {
                    errors.invalid(&at.path, at.json(), "requires indexed completion mode");
                }
            }
            return;
        }
        _ => return errors.not_supported(&mode.path, mode.json(), &["NonIndexed", "Indexed"]),
    }
    if !completions.exists() {
        errors.required(&completions.path, "when completion mode is Indexed");
    }
    let limit = format!("{MOST_INDEXED} when completion mode is Indexed");
    at_most(&parallelism, MOST_INDEXED, &limit, errors);
    at_most(&most, completions.i64().unwrap_or(i64::MAX), "completions", errors);
    at_most(&most, MOST_INDEXED, &MOST_INDEXED.to_string(), errors);
    if per_index.exists() && completions.i64().is_some_and(|n| n > MANY_COMPLETIONS) {
        if !most.exists() {
            let why = format!("must be specified when completions is above {MANY_COMPLETIONS}");
            errors.required(&most.path, &why);
        }
        let limit = format!(
            "{MANY_FOR_MANY} when completions are above {MANY_COMPLETIONS} and used with backoff limit per index"
        );
        at_most(&parallelism, MANY_FOR_MANY, &limit, errors);
        at_most(&most, MANY_FOR_MANY, &limit, errors);
    }
}

/// What holds for new jobs; `prefixed`: whether the labels of the newer names must be there.
fn validate_job(o: &Value, prefixed: bool, errors: &mut ErrorList) {
    generated(o, prefixed, errors);
    whole_spec(o, errors);
    let spec = Cursor::root(o).key("spec");
    let completions = spec.key("completions").i64().unwrap_or_default();
    if spec.key("completionMode").str() == "Indexed" && completions > 0 {
        // the host name of the last pod
        let host = format!("{}-{}", meta::name(o), completions - 1);
        if !names::dns1123_label(&host).is_empty() {
            let why = format!("will not able to create pod with invalid DNS label: {host}");
            errors.invalid("metadata.name", &json!(meta::name(o)), &why);
        }
    }
}

/// A job's spec with its selector.
fn whole_spec(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    job_spec(&spec, errors);
    let selector = spec.key("selector");
    if selector.exists() {
        label_selector::validate(&selector, errors);
    } else {
        errors.required(&selector.path, "");
    }
    let labels = spec.key("template").key("metadata").key("labels");
    let selects = selector.exists() && label_selector::matches(selector.json(), labels.json());
    if !selects && !label_selector::is_malformed(selector.json()) {
        errors.invalid(&labels.path, labels.json(), "`selector` does not match template `labels`");
    }
}

/// Labels and the selector that the server generates are as it generates them, unless the job selects by hand.
fn generated(o: &Value, prefixed: bool, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let selector = spec.key("selector");
    if spec.key("manualSelector").bool() == Some(true) || !selector.exists() {
        return;
    }
    let labels = spec.key("template").key("metadata").key("labels");
    let (uid, name) = (meta::text(o, "uid"), meta::name(o));
    let wanted = [("controller-uid", uid), ("job-name", name), (UID, uid), (NAME, name)];
    let wanted = if prefixed { &wanted[..] } else { &wanted[..2] };
    for (key, wanted) in wanted {
        let given = labels.json().get(key).and_then(Value::as_str);
        let (path, why) = (format!("{}[{key}]", labels.path), format!("must be '{wanted}'"));
        match given {
            None => errors.required(&path, &why),
            Some(given) if given != *wanted => errors.invalid(&path, labels.json(), &why),
            Some(_) => {}
        }
    }
    let expected: serde_json::Map<_, _> = wanted.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    if !label_selector::is_malformed(selector.json())
        && !label_selector::matches(selector.json(), &Value::Object(expected))
    {
        errors.invalid(&selector.path, selector.json(), "`selector` not auto-generated");
    }
}

fn job_change(new: &Value, old: &Value, errors: &mut ErrorList) {
    let (n, o) = (&new["spec"], &old["spec"]);
    let had = |label: &str| has(&o["template"]["metadata"]["labels"], label);
    validate_job(new, had(UID) && had(NAME), errors);
    // looked at twice, as the reference does: as a job, and as a change of one
    whole_spec(new, errors);
    if text(n, "completionMode") != "Indexed" {
        super::generic::immutable("spec.completions", &n["completions"], &o["completions"], errors);
    } else if n["completions"] != o["completions"]
        && has(n, "completions")
        && n["completions"] != n["parallelism"]
    {
        let why = "can only be modified in tandem with spec.parallelism";
        errors.invalid("spec.completions", &n["completions"], why);
    }
    super::generic::immutable("spec.selector", &n["selector"], &o["selector"], errors);
    let frozen = |template: &Value| {
        let mut template = template.clone();
        if may_be_placed_anew(old) {
            thaw(&mut template);
        }
        template
    };
    if frozen(&n["template"]) != frozen(&o["template"]) {
        let shown = super::internal::show("PodTemplateSpec", &n["template"]);
        errors.invalid_shown("spec.template", &shown, "field is immutable");
    }
    for (key, type_name) in [
        ("completionMode", ""),
        ("podFailurePolicy", "PodFailurePolicy"),
        ("backoffLimitPerIndex", ""),
        ("managedBy", ""),
        ("successPolicy", "SuccessPolicy"),
    ] {
        if n[key] != o[key] {
            let shown = match type_name {
                "" => api::field::show(&n[key]),
                name => super::internal::show(name, &n[key]),
            };
            errors.invalid_shown(&format!("spec.{key}"), &shown, "field is immutable");
        }
    }
}

/// Whether the job is suspended and has no pods: it never ran, or says that its suspension is complete.
fn may_be_placed_anew(job: &Value) -> bool {
    let status = &job["status"];
    let suspended = status["conditions"]
        .as_array()
        .is_some_and(|l| l.iter().any(|c| c["type"] == "Suspended" && c["status"] == "True"));
    job["spec"]["suspend"] == json!(true)
        && status["active"].as_i64().unwrap_or_default() == 0
        && (suspended || is_empty(status.get("startTime")))
}

/// Takes out what a suspended job may change: where its pods run, and what they ask for.
fn thaw(template: &mut Value) {
    if let Some(metadata) = template["metadata"].as_object_mut() {
        metadata.retain(|key, _| key != "labels" && key != "annotations");
    }
    let metadata = template.get("metadata").filter(|m| !is_empty(Some(m))).cloned();
    super::generic::set(template, "metadata", metadata);
    let Some(spec) = template["spec"].as_object_mut() else { return };
    for key in ["nodeSelector", "tolerations", "schedulingGates"] {
        spec.remove(key);
    }
    if let Some(affinity) = spec.get_mut("affinity").and_then(Value::as_object_mut) {
        affinity.remove("nodeAffinity");
        if affinity.is_empty() {
            spec.remove("affinity");
        }
    }
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        containers.into_iter().flatten().filter_map(Value::as_object_mut).for_each(|c| {
            c.remove("resources");
        });
    }
}

/// What is wrong with a schedule alone: a time zone before it is looked at, too.
fn schedule_complaint(schedule: &str) -> Option<String> {
    let mut fields = schedule;
    if schedule.starts_with("TZ=") || schedule.starts_with("CRON_TZ=") {
        let (prefix, rest) = schedule.split_once(' ')?;
        let zone = prefix.split_once('=').map_or("", |(_, zone)| zone);
        if !is_time_zone(zone) {
            return Some(format!("provided bad location {zone}: unknown time zone {zone}"));
        }
        fields = rest;
    }
    api::cron::Schedule::parse(fields).err()
}

/// Whether the time zone database has this very name; letters of the other case are another name.
fn is_time_zone(name: &str) -> bool {
    matches!(name, "" | "UTC" | "Local")
        || jiff::tz::TimeZone::get(name).is_ok_and(|zone| zone.iana_name() == Some(name))
}

fn time_zone(at: &Cursor<'_>, errors: &mut ErrorList) {
    let name = at.str();
    if name.is_empty() {
        return errors.invalid(&at.path, at.json(), "timeZone must be nil or non-empty string");
    }
    let is_part = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.len() <= 14
            && !part.starts_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b))
    };
    if name.eq_ignore_ascii_case("local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.invalid(&at.path, at.json(), why);
    }
    if !name.split('/').all(is_part) || !is_time_zone(name) {
        errors.invalid(&at.path, at.json(), &format!("unknown time zone {name}"));
    }
}

/// A cron job; of a change, `old` is what it was: what it has already is not refused.
fn cron_job_spec(o: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let (schedule, zone) = (spec.key("schedule"), spec.key("timeZone"));
    if schedule.str().is_empty() {
        errors.required(&schedule.path, "");
    } else {
        if let Some(complaint) = schedule_complaint(schedule.str()) {
            errors.invalid(&schedule.path, schedule.json(), &complaint);
        }
        let had_zone = old.is_some_and(|old| text(&old["spec"], "schedule").contains("TZ"));
        let why = match (schedule.str().contains("TZ"), had_zone) {
            (true, false) => "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            (true, true) if zone.exists() => "cannot use both timeZone field and TZ or CRON_TZ in schedule",
            _ => "",
        };
        if !why.is_empty() {
            errors.invalid(&schedule.path, schedule.json(), why);
        }
    }
    numbers::non_negative(&spec.key("startingDeadlineSeconds"), errors);
    if zone.exists() && old.is_none_or(|old| old["spec"]["timeZone"] != *zone.json()) {
        time_zone(&zone, errors);
    }
    let policy = spec.key("concurrencyPolicy");
    match policy.str() {
        "Allow" | "Forbid" | "Replace" => {}
        "" => errors.required(&policy.path, ""),
        _ => errors.not_supported(&policy.path, policy.json(), &["Allow", "Forbid", "Replace"]),
    }
    let job = spec.key("jobTemplate").key("spec");
    job_spec(&job, errors);
    let (selector, by_hand) = (job.key("selector"), job.key("manualSelector"));
    if selector.exists() {
        errors.invalid(&selector.path, selector.json(), "`selector` will be auto-generated");
    }
    if by_hand.bool() == Some(true) {
        errors.not_supported(&by_hand.path, by_hand.json(), &["nil", "false"]);
    }
    numbers::non_negative(&spec.key("successfulJobsHistoryLimit"), errors);
    numbers::non_negative(&spec.key("failedJobsHistoryLimit"), errors);
}
