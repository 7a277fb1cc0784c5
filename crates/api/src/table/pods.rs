//! Pods: the status word, readiness and restarts that people look at first.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
use k8s_openapi::schemars::JsonSchema;
use serde_json::{Value, json};

use super::Layout;
use super::column::{AGE, Column, NAME, string, string_of};
use super::duration::since;
use super::format::{NONE, age, flag, int, list, name, text, text_or};

static COLUMNS: &[Column] = &[
    NAME,
    string("Ready", "The aggregate readiness state of this pod for accepting traffic."),
    string("Status", "The aggregate status of the containers in this pod."),
    string(
        "Restarts",
        "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
    ),
    AGE,
    string_of("IP", PodStatus::json_schema, "podIP").wide(),
    string_of("Node", PodSpec::json_schema, "nodeName").wide(),
    string_of("Nominated Node", PodStatus::json_schema, "nominatedNodeName").wide(),
    string_of("Readiness Gates", PodSpec::json_schema, "readinessGates").wide(),
];

pub(super) static LAYOUTS: &[Layout] = &[Layout { group: "", kind: "Pod", columns: COLUMNS, cells }];

/// What the containers' states add up to.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<String>,
}

/// The word in the `Status` column: `Running`, `Init:0/1`, `CrashLoopBackOff`, `Terminating`, ...
pub fn status_reason(pod: &Value) -> String {
    summarise(pod).reason
}

/// Restarts and the newest end of a previous run, over some containers.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<String>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += int(status, "/restartCount");
        let finished = text(status, "/lastState/terminated/finishedAt");
        if !finished.is_empty() && self.last.as_deref().is_none_or(|last| last < finished) {
            self.last = Some(finished.to_owned());
        }
    }
}

/// How a terminated container is named when the runtime gave no reason.
fn exit_word(terminated: &Value) -> String {
    match text(terminated, "/reason") {
        "" if int(terminated, "/signal") != 0 => format!("Signal:{}", int(terminated, "/signal")),
        "" => format!("ExitCode:{}", int(terminated, "/exitCode")),
        reason => reason.to_owned(),
    }
}

fn condition_true(pod: &Value, kind: &str) -> bool {
    list(pod, "/status/conditions").iter().any(|c| text(c, "/type") == kind && text(c, "/status") == "True")
}

fn summarise(pod: &Value) -> Summary {
    let phase = text(pod, "/status/phase");
    let mut reason = text_or(pod, "/status/reason", phase).to_owned();
    let gated = |c: &Value| text(c, "/type") == "PodScheduled" && text(c, "/reason") == "SchedulingGated";
    if list(pod, "/status/conditions").iter().any(gated) {
        reason = "SchedulingGated".to_owned();
    }

    let init = list(pod, "/spec/initContainers");
    let sidecar: BTreeMap<&str, bool> =
        init.iter().map(|c| (text(c, "/name"), text(c, "/restartPolicy") == "Always")).collect();
    let is_sidecar = |status: &Value| sidecar.get(text(status, "/name")).copied().unwrap_or_default();
    let total = list(pod, "/spec/containers").len() + sidecar.values().filter(|s| **s).count();

    let mut ready = 0;
    let mut during_init = Restarts::default();
    let mut running = Restarts::default();
    let mut initializing = false;
    for (i, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
        during_init.add(status);
        if is_sidecar(status) {
            running.add(status);
        }
        let terminated = status.pointer("/state/terminated").filter(|t| !t.is_null());
        if terminated.is_some_and(|t| int(t, "/exitCode") == 0) {
            continue;
        }
        if is_sidecar(status) && flag(status, "/started") {
            ready += usize::from(flag(status, "/ready"));
            continue;
        }
        let waiting = text(status, "/state/waiting/reason");
        reason = match terminated {
            Some(terminated) => format!("Init:{}", exit_word(terminated)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{}", init.len()),
        };
        initializing = true;
        break;
    }

    let mut restarts = during_init;
    if !initializing || condition_true(pod, "Initialized") {
        restarts = running;
        let mut has_running = false;
        for status in list(pod, "/status/containerStatuses").iter().rev() {
            restarts.add(status);
            let waiting = text(status, "/state/waiting/reason");
            let terminated = status.pointer("/state/terminated").filter(|t| !t.is_null());
            if !waiting.is_empty() {
                reason = waiting.to_owned();
            } else if let Some(terminated) = terminated {
                reason = exit_word(terminated);
            } else if flag(status, "/ready") && status.pointer("/state/running").is_some() {
                has_running = true;
                ready += 1;
            }
        }
        // One container has ended well, another still runs: the pod as a whole does not look completed.
        if reason == "Completed" && has_running {
            reason = if condition_true(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
        }
    }

    if !text(pod, "/metadata/deletionTimestamp").is_empty() {
        if text(pod, "/status/reason") == "NodeLost" {
            reason = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            reason = "Terminating".to_owned();
        }
    }
    Summary { reason, ready, total, restarts: restarts.count, last_restart: restarts.last }
}

fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarise(pod);
    let restarts = match &summary.last_restart {
        Some(time) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, since(Some(time), now))
        }
        _ => summary.restarts.to_string(),
    };
    let gates = list(pod, "/spec/readinessGates");
    let gates = if gates.is_empty() {
        NONE.to_owned()
    } else {
        let met = gates.iter().filter(|g| condition_true(pod, text(g, "/conditionType"))).count();
        format!("{met}/{}", gates.len())
    };
    vec![
        name(pod),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.reason),
        json!(restarts),
        age(pod, now),
        json!(text_or(pod, "/status/podIPs/0/ip", NONE)),
        json!(text_or(pod, "/spec/nodeName", NONE)),
        json!(text_or(pod, "/status/nominatedNodeName", NONE)),
        json!(gates),
    ]
}
