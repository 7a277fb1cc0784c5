//! Jobs and cron jobs.

use api::field::{Cursor, ErrorList};
use api::meta;
use serde_json::{Value, json};

use super::parts::Parts;
use super::tree::{child, each, has, is_empty, make, put, put_absent, text};
use super::{job_policy, numbers, pod_defaults, pod_validate};

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
    put(spec, "completionMode", "NonIndexed");
    put_absent(spec, "suspend", false);
    put_absent(spec, "manualSelector", false);
    let has_policy = has(spec, "podFailurePolicy");
    if let Some(policy) = child(spec, "podFailurePolicy") {
        for rule in each(policy, "rules") {
            for pattern in each(rule, "onPodConditions") {
                put(pattern, "status", "True");
            }
        }
    }
    put(spec, "podReplacementPolicy", if has_policy { "Failed" } else { "TerminatingOrFailed" });
    template(spec);
    default_labels(o);
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
            put(labels, key, value.as_str());
        }
    }
    if let Some(selector) = make(spec, "selector")
        && let Some(labels) = make(selector, "matchLabels")
    {
        put(labels, UID, uid);
    }
    default_labels(o);
}

pub(super) static JOB: Parts = Parts {
    default: default_job,
    create: |_, o| {
        pod_defaults::drop_disabled_template(o, None);
        generate_selector(o);
    },
    update: |_, new, old| pod_defaults::drop_disabled_template(new, Some(old)),
    orphans: true,
    validate: validate_job,
    validate_change: job_change,
    rules: super::parts::Rules::BeforeChange,
    validate_status: super::job_status::validate,
    warn: |new, old| {
        if old.is_some() || text(&new["spec"], "completionMode") != "Indexed" {
            return Vec::new();
        }
        let number = |key: &str| new["spec"][key].as_i64().unwrap_or_default();
        if number("completions") > 100_000 && number("parallelism") > 10_000 {
            return vec![
                "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail".to_owned(),
            ];
        }
        Vec::new()
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
            template(job);
        }
    },
    validate: validate_cron_job,
    ..Parts::PLAIN
};

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
        if key == "backoffLimitPerIndex"
            && spec.key("completionMode").str() != "Indexed"
            && spec.key(key).exists()
        {
            errors.invalid(&spec.key(key).path, spec.key(key).json(), "requires indexed completion mode");
            continue;
        }
        numbers::non_negative(&spec.key(key), errors);
    }
    let (per_index, most) = (spec.key("backoffLimitPerIndex"), spec.key("maxFailedIndexes"));
    if most.exists() && !per_index.exists() {
        errors.required(&per_index.path, "when maxFailedIndexes is specified");
    }
    if let Some(completions) = spec.key("completions").i64() {
        if most.i64().is_some_and(|n| n > completions) {
            errors.invalid(&most.path, most.json(), "must be less than or equal to completions");
        }
        if per_index.exists() && completions > 100_000 && !most.exists() {
            errors.required(&most.path, "must be specified when completions is above 100000");
        }
    }
    let mode = spec.key("completionMode");
    match mode.str() {
        "NonIndexed" | "" => {}
        "Indexed" => {
            if !spec.key("completions").exists() {
                errors.required(&spec.key("completions").path, "when completion mode is Indexed");
            }
        }
        _ => errors.not_supported(&mode.path, mode.json(), &["NonIndexed", "Indexed"]),
    }
    if spec.key("podFailurePolicy").exists() {
        job_policy::failure(&spec.key("podFailurePolicy"), &spec.key("template"), errors);
    }
    if spec.key("successPolicy").exists() {
        let completions = spec.key("completions").i64().unwrap_or_default();
        job_policy::success(&spec.key("successPolicy"), mode.str() == "Indexed", completions, errors);
    }
    let replacement = spec.key("podReplacementPolicy");
    if spec.key("podFailurePolicy").exists() {
        if !matches!(replacement.str(), "Failed" | "") {
            errors.not_supported(&replacement.path, replacement.json(), &["Failed"]);
        }
    } else if !matches!(replacement.str(), "Failed" | "TerminatingOrFailed" | "") {
        errors.not_supported(&replacement.path, replacement.json(), &["Failed", "TerminatingOrFailed"]);
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

fn own_selector(o: &Value, errors: &mut ErrorList) {
    let selector = &o["spec"]["selector"];
    let generated = json!({"matchLabels": {UID: meta::text(o, "uid")}});
    if o["spec"]["manualSelector"] != json!(true) && selector.is_object() && *selector != generated {
        errors.invalid("spec.selector", selector, "`selector` not auto-generated");
    }
}

fn validate_job(o: &Value, errors: &mut ErrorList) {
    let spec = Cursor::root(o).key("spec");
    let selector = spec.key("selector");
    let labels = spec.key("template").key("metadata").key("labels");
    if !selector.exists() {
        errors.required(&selector.path, "");
    } else {
        super::label_selector::validate(&selector, errors);
    }
    generated_labels(o, &labels, errors);
    own_selector(o, errors);
    if selector.exists()
        && !super::label_selector::is_malformed(selector.json())
        && !super::label_selector::matches(selector.json(), labels.json())
    {
        errors.invalid(&labels.path, labels.json(), "`selector` does not match template `labels`");
    }
    job_spec(&spec, errors);
}

/// Labels that the server generates cannot be given by the client.
fn generated_labels(o: &Value, labels: &Cursor<'_>, errors: &mut ErrorList) {
    if o["spec"]["manualSelector"] == json!(true) {
        return;
    }
    for (key, wanted) in [
        ("controller-uid", meta::text(o, "uid")),
        (UID, meta::text(o, "uid")),
        ("job-name", meta::name(o)),
        (NAME, meta::name(o)),
    ] {
        let given = labels.key(key);
        if given.exists() && given.str() != wanted {
            errors.invalid(&format!("{}[{key}]", labels.path), labels.json(), &format!("must be '{wanted}'"));
        }
    }
}

fn job_change(new: &Value, old: &Value, errors: &mut ErrorList) {
    let (n, o) = (&new["spec"], &old["spec"]);
    let indexed = text(o, "completionMode") == "Indexed" && n["completions"] == n["parallelism"];
    if !indexed {
        super::generic::immutable("spec.completions", &n["completions"], &o["completions"], errors);
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
    template["metadata"] = Value::Null;
    let Some(spec) = template["spec"].as_object_mut() else { return };
    for key in ["affinity", "nodeSelector", "tolerations", "schedulingGates"] {
        spec.remove(key);
    }
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        containers.into_iter().flatten().filter_map(Value::as_object_mut).for_each(|c| {
            c.remove("resources");
        });
    }
}

fn validate_cron_job(o: &Value, errors: &mut ErrorList) {
    let root = Cursor::root(o);
    let spec = root.key("spec");
    let schedule = spec.key("schedule");
    if schedule.str().is_empty() {
        errors.required(&schedule.path, "");
    } else if schedule.str().contains("TZ=") {
        errors.invalid(
            &schedule.path,
            schedule.json(),
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        );
    } else if let Err(complaint) = api::cron::Schedule::parse(schedule.str()) {
        errors.invalid(&schedule.path, schedule.json(), &complaint);
    }
    let zone = spec.key("timeZone");
    if zone.exists() {
        if zone.str().is_empty() {
            errors.invalid(&zone.path, zone.json(), "timeZone must be nil or non-empty string");
        } else if zone.str().eq_ignore_ascii_case("local") {
            errors.invalid(
                &zone.path,
                zone.json(),
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            );
        } else if jiff::tz::TimeZone::get(zone.str()).is_err() {
            errors.invalid(&zone.path, zone.json(), &format!("unknown time zone {}", zone.str()));
        }
    }
    numbers::non_negative(&spec.key("startingDeadlineSeconds"), errors);
    let policy = spec.key("concurrencyPolicy");
    match policy.str() {
        "Allow" | "Forbid" | "Replace" => {}
        "" => errors.required(&policy.path, ""),
        _ => errors.not_supported(&policy.path, policy.json(), &["Allow", "Forbid", "Replace"]),
    }
    let job = spec.key("jobTemplate").key("spec");
    if job.key("selector").exists() {
        errors.invalid(
            &job.key("selector").path,
            job.key("selector").json(),
            "`selector` will be auto-generated",
        );
    }
    if job.key("manualSelector").bool() == Some(true) {
        errors.not_supported(
            &job.key("manualSelector").path,
            job.key("manualSelector").json(),
            &["nil", "false"],
        );
    }
    job_spec(&job, errors);
    numbers::non_negative(&spec.key("successfulJobsHistoryLimit"), errors);
    numbers::non_negative(&spec.key("failedJobsHistoryLimit"), errors);
    let name = meta::name(o);
    // Jobs add a dash and ten digits of time.
    if name.len() > 52 {
        errors.invalid("metadata.name", &json!(name), "must be no more than 52 characters");
    }
}
