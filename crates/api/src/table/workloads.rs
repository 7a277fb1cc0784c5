//! Workloads: what they want, what they have, and of which containers they are made.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSetSpec, DaemonSetStatus, DeploymentSpec, DeploymentStatus, ReplicaSetSpec,
    ReplicaSetStatus,
};
use k8s_openapi::api::autoscaling::v1::{ScaleSpec, ScaleStatus};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus};
use k8s_openapi::api::batch::v1::{CronJobSpec, CronJobStatus, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{PodSpec, ReplicationControllerSpec, ReplicationControllerStatus};
use k8s_openapi::schemars::JsonSchema;
use serde_json::{Value, json};

use super::Layout;
use super::column::{AGE, Column, NAME, boolean_of, integer, integer_of, string, string_of};
use super::duration::{human_duration, since};
use super::format::{
    NONE, UNSET, age, containers, int, int_or_text, labels, list, name, selector, set_or, text,
};

const CONTAINERS: Column = string("Containers", "Names of each container in the template.").wide();
const IMAGES: Column = string("Images", "Images referenced by each container in the template.").wide();

static DEPLOYMENT: &[Column] = &[
    NAME,
    string("Ready", "Number of the pod with ready state"),
    string_of("Up-to-date", DeploymentStatus::json_schema, "updatedReplicas"),
    string_of("Available", DeploymentStatus::json_schema, "availableReplicas"),
    AGE,
    CONTAINERS,
    IMAGES,
    string_of("Selector", DeploymentSpec::json_schema, "selector").wide(),
];
static REPLICA_SET: &[Column] = &[
    NAME,
    integer_of("Desired", ReplicaSetSpec::json_schema, "replicas"),
    integer_of("Current", ReplicaSetStatus::json_schema, "replicas"),
    integer_of("Ready", ReplicaSetStatus::json_schema, "readyReplicas"),
    AGE,
    CONTAINERS,
    IMAGES,
    string_of("Selector", ReplicaSetSpec::json_schema, "selector").wide(),
];
static REPLICATION_CONTROLLER: &[Column] = &[
    NAME,
    integer_of("Desired", ReplicationControllerSpec::json_schema, "replicas"),
    integer_of("Current", ReplicationControllerStatus::json_schema, "replicas"),
    integer_of("Ready", ReplicationControllerStatus::json_schema, "readyReplicas"),
    AGE,
    CONTAINERS,
    IMAGES,
    string_of("Selector", ReplicationControllerSpec::json_schema, "selector").wide(),
];
static DAEMON_SET: &[Column] = &[
    NAME,
    integer_of("Desired", DaemonSetStatus::json_schema, "desiredNumberScheduled"),
    integer_of("Current", DaemonSetStatus::json_schema, "currentNumberScheduled"),
    integer_of("Ready", DaemonSetStatus::json_schema, "numberReady"),
    integer_of("Up-to-date", DaemonSetStatus::json_schema, "updatedNumberScheduled"),
    integer_of("Available", DaemonSetStatus::json_schema, "numberAvailable"),
    string_of("Node Selector", PodSpec::json_schema, "nodeSelector"),
    AGE,
    CONTAINERS,
    IMAGES,
    string_of("Selector", DaemonSetSpec::json_schema, "selector").wide(),
];
static STATEFUL_SET: &[Column] =
    &[NAME, string("Ready", "Number of the pod with ready state"), AGE, CONTAINERS, IMAGES];
static JOB: &[Column] = &[
    NAME,
    string("Status", "Status of the job."),
    string_of("Completions", JobStatus::json_schema, "succeeded"),
    string("Duration", "Time required to complete the job."),
    AGE,
    CONTAINERS,
    IMAGES,
    string_of("Selector", JobSpec::json_schema, "selector").wide(),
];
static CRON_JOB: &[Column] = &[
    NAME,
    string_of("Schedule", CronJobSpec::json_schema, "schedule"),
    string_of("Timezone", CronJobSpec::json_schema, "timeZone"),
    // its cells are texts all the same
    boolean_of("Suspend", CronJobSpec::json_schema, "suspend"),
    integer_of("Active", CronJobStatus::json_schema, "active"),
    string_of("Last Schedule", CronJobStatus::json_schema, "lastScheduleTime"),
    AGE,
    CONTAINERS,
    IMAGES,
    string_of("Selector", JobSpec::json_schema, "selector").wide(),
];
static POD_TEMPLATE: &[Column] = &[
    NAME,
    string("Containers", "Names of each container in the template."),
    string("Images", "Images referenced by each container in the template."),
    string("Pod Labels", "The labels for the pod template."),
];
static CONTROLLER_REVISION: &[Column] = &[
    NAME,
    string("Controller", "Controller of the object"),
    string_of("Revision", ControllerRevision::json_schema, "revision"),
    AGE,
];
static SCALE: &[Column] = &[
    NAME.format(""),
    integer_of("Desired", ScaleSpec::json_schema, "replicas"),
    integer_of("Available", ScaleStatus::json_schema, "replicas"),
    AGE,
];
static HPA: &[Column] = &[
    NAME,
    string_of("Reference", HorizontalPodAutoscalerSpec::json_schema, "scaleTargetRef"),
    string_of("Targets", HorizontalPodAutoscalerSpec::json_schema, "metrics"),
    string_of("MinPods", HorizontalPodAutoscalerSpec::json_schema, "minReplicas"),
    string_of("MaxPods", HorizontalPodAutoscalerSpec::json_schema, "maxReplicas"),
    string_of("Replicas", HorizontalPodAutoscalerStatus::json_schema, "currentReplicas"),
    AGE,
];
static PDB: &[Column] = &[
    NAME,
    string("Min Available", "The minimum number of pods that must be available."),
    string("Max Unavailable", "The maximum number of pods that may be unavailable."),
    integer("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."),
    AGE,
];

pub(super) static LAYOUTS: &[Layout] = &[
    Layout { group: "apps", kind: "Deployment", columns: DEPLOYMENT, cells: deployment },
    Layout { group: "apps", kind: "ReplicaSet", columns: REPLICA_SET, cells: replica_set },
    Layout {
        group: "",
        kind: "ReplicationController",
        columns: REPLICATION_CONTROLLER,
        cells: replication_controller,
    },
    Layout { group: "apps", kind: "DaemonSet", columns: DAEMON_SET, cells: daemon_set },
    Layout { group: "apps", kind: "StatefulSet", columns: STATEFUL_SET, cells: stateful_set },
    Layout { group: "apps", kind: "ControllerRevision", columns: CONTROLLER_REVISION, cells: revision },
    Layout { group: "batch", kind: "Job", columns: JOB, cells: job },
    Layout { group: "batch", kind: "CronJob", columns: CRON_JOB, cells: cron_job },
    Layout { group: "", kind: "PodTemplate", columns: POD_TEMPLATE, cells: pod_template },
    Layout { group: "autoscaling", kind: "Scale", columns: SCALE, cells: scale },
    Layout { group: "autoscaling", kind: "HorizontalPodAutoscaler", columns: HPA, cells: hpa },
    Layout { group: "policy", kind: "PodDisruptionBudget", columns: PDB, cells: pdb },
];

fn template_containers(o: &Value) -> (Value, Value) {
    containers(o, "/spec/template/spec/containers")
}

fn deployment(o: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = template_containers(o);
    vec![
        name(o),
        json!(format!("{}/{}", int(o, "/status/readyReplicas"), int(o, "/spec/replicas"))),
        json!(int(o, "/status/updatedReplicas")),
        json!(int(o, "/status/availableReplicas")),
        age(o, now),
        names,
        images,
        json!(selector(o.pointer("/spec/selector"))),
    ]
}

fn replicas(o: &Value, now: Timestamp, selected: String) -> Vec<Value> {
    let (names, images) = template_containers(o);
    vec![
        name(o),
        json!(int(o, "/spec/replicas")),
        json!(int(o, "/status/replicas")),
        json!(int(o, "/status/readyReplicas")),
        age(o, now),
        names,
        images,
        json!(selected),
    ]
}

fn replica_set(o: &Value, now: Timestamp) -> Vec<Value> {
    replicas(o, now, selector(o.pointer("/spec/selector")))
}

fn replication_controller(o: &Value, now: Timestamp) -> Vec<Value> {
    replicas(o, now, labels(o.pointer("/spec/selector")))
}

fn daemon_set(o: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = template_containers(o);
    vec![
        name(o),
        json!(int(o, "/status/desiredNumberScheduled")),
        json!(int(o, "/status/currentNumberScheduled")),
        json!(int(o, "/status/numberReady")),
        json!(int(o, "/status/updatedNumberScheduled")),
        json!(int(o, "/status/numberAvailable")),
        json!(labels(o.pointer("/spec/template/spec/nodeSelector"))),
        age(o, now),
        names,
        images,
        json!(selector(o.pointer("/spec/selector"))),
    ]
}

fn stateful_set(o: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = template_containers(o);
    let ready = format!("{}/{}", int(o, "/status/readyReplicas"), int(o, "/spec/replicas"));
    vec![name(o), json!(ready), age(o, now), names, images]
}

fn revision(o: &Value, now: Timestamp) -> Vec<Value> {
    let owner = list(o, "/metadata/ownerReferences").iter().find(|r| r["controller"] == json!(true));
    let controller = owner.map_or(NONE.to_owned(), |r| {
        let kind = text(r, "/kind").to_lowercase();
        match text(r, "/apiVersion").split_once('/') {
            Some((group, _)) => format!("{kind}.{group}/{}", text(r, "/name")),
            None => format!("{kind}/{}", text(r, "/name")),
        }
    });
    vec![name(o), json!(controller), json!(int(o, "/revision")), age(o, now)]
}

fn job_status(o: &Value) -> &'static str {
    let has = |kind: &str| {
        list(o, "/status/conditions").iter().any(|c| text(c, "/type") == kind && text(c, "/status") == "True")
    };
    if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if !text(o, "/metadata/deletionTimestamp").is_empty() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn job(o: &Value, now: Timestamp) -> Vec<Value> {
    let succeeded = int(o, "/status/succeeded");
    let parallelism = int(o, "/spec/parallelism");
    let completions = match o.pointer("/spec/completions").and_then(Value::as_i64) {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    };
    let time = |p: &str| text(o, p).parse::<Timestamp>().ok();
    let duration = match (time("/status/startTime"), time("/status/completionTime")) {
        (None, _) => String::new(),
        (Some(start), end) => human_duration(end.unwrap_or(now).duration_since(start).as_secs()),
    };
    let (names, images) = template_containers(o);
    vec![
        name(o),
        json!(job_status(o)),
        json!(completions),
        json!(duration),
        age(o, now),
        names,
        images,
        json!(selector(o.pointer("/spec/selector"))),
    ]
}

fn cron_job(o: &Value, now: Timestamp) -> Vec<Value> {
    let suspend = match o.pointer("/spec/suspend").and_then(Value::as_bool) {
        Some(true) => "True",
        Some(false) => "False",
        None => UNSET,
    };
    let last = match text(o, "/status/lastScheduleTime") {
        "" => NONE.to_owned(),
        time => since(Some(time), now),
    };
    let (names, images) = containers(o, "/spec/jobTemplate/spec/template/spec/containers");
    vec![
        name(o),
        json!(text(o, "/spec/schedule")),
        json!(set_or(o, "/spec/timeZone", NONE)),
        json!(suspend),
        json!(list(o, "/status/active").len()),
        json!(last),
        age(o, now),
        names,
        images,
        json!(selector(o.pointer("/spec/jobTemplate/spec/selector"))),
    ]
}

fn pod_template(o: &Value, _: Timestamp) -> Vec<Value> {
    let (names, images) = containers(o, "/template/spec/containers");
    vec![name(o), names, images, json!(labels(o.pointer("/template/metadata/labels")))]
}

fn scale(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(o), json!(int(o, "/spec/replicas")), json!(int(o, "/status/replicas")), age(o, now)]
}

/// `current/target` of one metric, in the unit that its target is given in.
fn metric(spec: &Value, current: Option<&Value>) -> String {
    let source = match text(spec, "/type") {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        _ => return "<unknown type>".to_owned(),
    };
    let target = &spec[source]["target"];
    let now = current.map(|c| &c[source]["current"]);
    let unknown = "<unknown>";
    if let Some(percent) = target["averageUtilization"].as_i64() {
        let now = now.and_then(|n| n["averageUtilization"].as_i64());
        let now = now.map_or(unknown.to_owned(), |n| format!("{n}%"));
        return format!("{}: {now}/{percent}%", text(&spec[source], "/name"));
    }
    let average = !target["averageValue"].is_null();
    let key = if average { "averageValue" } else { "value" };
    let pair = format!(
        "{}/{}",
        int_or_text(now.and_then(|n| n.get(key)), unknown),
        int_or_text(target.get(key), "<auto>")
    );
    match source {
        "resource" | "containerResource" => format!("{}: {pair}", text(&spec[source], "/name")),
        "object" | "external" if average => format!("{pair} (avg)"),
        _ => pair,
    }
}

fn hpa_targets(o: &Value) -> String {
    // autoscaling/v1 knows one metric only, in fields of its own.
    if let Some(percent) = o.pointer("/spec/targetCPUUtilizationPercentage").and_then(Value::as_i64) {
        let now = o.pointer("/status/currentCPUUtilizationPercentage").and_then(Value::as_i64);
        return format!("cpu: {}/{percent}%", now.map_or("<unknown>".to_owned(), |n| format!("{n}%")));
    }
    let specs = list(o, "/spec/metrics");
    let current = list(o, "/status/currentMetrics");
    if specs.is_empty() {
        return NONE.to_owned();
    }
    let shown: Vec<String> =
        specs.iter().enumerate().take(2).map(|(i, m)| metric(m, current.get(i))).collect();
    match specs.len() {
        n if n > 2 => format!("{} + {} more...", shown.join(", "), n - 2),
        _ => shown.join(", "),
    }
}

fn hpa(o: &Value, now: Timestamp) -> Vec<Value> {
    let target = format!("{}/{}", text(o, "/spec/scaleTargetRef/kind"), text(o, "/spec/scaleTargetRef/name"));
    vec![
        name(o),
        json!(target),
        json!(hpa_targets(o)),
        json!(int_or_text(o.pointer("/spec/minReplicas"), UNSET)),
        json!(int(o, "/spec/maxReplicas")),
        json!(int(o, "/status/currentReplicas")),
        age(o, now),
    ]
}

fn pdb(o: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(o),
        json!(int_or_text(o.pointer("/spec/minAvailable"), "N/A")),
        json!(int_or_text(o.pointer("/spec/maxUnavailable"), "N/A")),
        json!(int(o, "/status/disruptionsAllowed")),
        age(o, now),
    ]
}
