//! Probes: is a container alive, ready, started?
//!
//! Rule: Kubernetes documentation, "Liveness, Readiness, and Startup Probes", and the defaults of `Probe` in the API
//! reference. [`Prober`] is the decision, a pure state machine; [`run_once`] asks the container once; [`worker`] is
//! the task that joins both, one per container and kind.
//!
//! A try that could not be made at all (the runtime does not answer, a port name is unknown) decides nothing: a
//! runtime that restarts must not restart every container.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc::Sender;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

mod check;
pub mod counts;
mod grpc;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A container that is not alive is restarted.
    Liveness,
    /// A container that is not ready gets no traffic.
    Readiness,
    /// The other probes wait for this one.
    Startup,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
            Self::Startup => "Startup",
        })
    }
}

/// Decides from a row of tries how a container is.
#[derive(Debug, Clone)]
pub struct Prober {
    kind: Kind,
    success_threshold: u32,
    failure_threshold: u32,
    /// What was decided last; a startup probe has decided nothing at first.
    decided: Option<bool>,
    /// The last try, and how many alike came in a row.
    row: (bool, u32),
}

impl Prober {
    /// At the start a container is alive, not ready, and not started.
    pub fn new(kind: Kind, probe: &Probe) -> Self {
        Self {
            kind,
            // only readiness may ask for more than one success
            success_threshold: match kind {
                Kind::Readiness => at_least_one(probe.success_threshold, 1),
                Kind::Liveness | Kind::Startup => 1,
            },
            failure_threshold: at_least_one(probe.failure_threshold, 3),
            decided: match kind {
                Kind::Liveness => Some(true),
                Kind::Readiness => Some(false),
                Kind::Startup => None,
            },
            row: (false, 0),
        }
    }

    /// The container's state by what was decided so far.
    pub fn healthy(&self) -> bool {
        self.decided.unwrap_or(false)
    }

    /// Takes a try's result; the new state, if it decides one. A startup probe that gives up decides `false`.
    pub fn record(&mut self, success: bool) -> Option<bool> {
        self.row = match self.row {
            (last, count) if last == success => (success, count.saturating_add(1)),
            _ => (success, 1),
        };
        let needed = if success { self.success_threshold } else { self.failure_threshold };
        if self.row.1 < needed || self.decided == Some(success) {
            return None;
        }
        self.decided = Some(success);
        Some(success)
    }

    /// Whether nothing is left to find out about this run of the container.
    fn finished(&self) -> bool {
        match self.kind {
            Kind::Liveness => self.decided == Some(false),
            Kind::Startup => self.decided.is_some(),
            Kind::Readiness => false,
        }
    }
}

fn at_least_one(value: Option<i32>, default: u32) -> u32 {
    // zero is how absence is written
    value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
}

fn seconds(value: Option<i32>, default: u32) -> Duration {
    Duration::from_secs(u64::from(at_least_one(value, default)))
}

/// What is probed.
#[derive(Debug, Clone)]
pub struct Target {
    /// The pod's address; the node's for a pod on the node's network.
    pub pod_ip: String,
    /// The runtime's id of the container.
    pub container_id: String,
    /// The container's definition: its name, and the ports that probes may name.
    pub container: Container,
    /// Uid, namespace and name of the pod.
    pub pod: [String; 3],
    /// How long the container has run.
    pub age: Duration,
    /// It ran before this kubelet did.
    pub adopted: bool,
}

/// What a try says of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It is well.
    Success,
    /// It is well, but the probe is not what it should be.
    Warning,
    /// It is not well.
    Failure,
    /// Nothing: the try could not be made.
    Nothing,
}

/// What one try found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What it says of the container.
    pub found: Found,
    /// What was found, worded as upstream.
    pub message: String,
}

impl Outcome {
    fn success(message: impl Into<String>) -> Self {
        Self { found: Found::Success, message: message.into() }
    }
    fn warning(message: impl Into<String>) -> Self {
        Self { found: Found::Warning, message: message.into() }
    }
    fn failure(message: impl Into<String>) -> Self {
        Self { found: Found::Failure, message: message.into() }
    }
    fn error(message: impl Into<String>) -> Self {
        Self { found: Found::Nothing, message: message.into() }
    }
}

/// Something a probe's worker has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeEvent {
    /// The runtime's id of the container.
    pub container_id: String,
    /// The container's name.
    pub container: String,
    /// Which probe.
    pub kind: Kind,
    /// The container's state after this try.
    pub healthy: bool,
    /// What the try found.
    pub message: String,
    /// What this try says of the container.
    pub found: Found,
    /// A liveness or startup probe gave up: the container is to be restarted. The worker has ended.
    pub dead: bool,
}

/// How long the first try waits: `initialDelaySeconds` count from the container's start, whatever its startup probe took of
/// them, and whichever kubelet saw it start.
fn first_wait(probe: &Probe, age: Duration) -> Duration {
    let delay = probe.initial_delay_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
    Duration::from_secs(delay).saturating_sub(age)
}

/// When in its first period a probe is made of a container that a new kubelet finds: not all of a node at once.
fn turn(kind: Kind, container_id: &str, period: Duration) -> Duration {
    let digest = Sha256::digest(format!("{kind} {container_id}"));
    let part = digest.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    period.mul_f64(f64::from(part) / (f64::from(u32::MAX) + 1.0))
}

/// Asks the container once, for at most the probe's timeout.
pub async fn run_once(probe: &Probe, target: &Target, runtime: &mut cri::RuntimeClient) -> Outcome {
    let timeout = seconds(probe.timeout_seconds, 1);
    if let Some(exec) = &probe.exec {
        check::exec(exec.command.clone().unwrap_or_default(), &target.container_id, timeout, runtime).await
    } else if let Some(http) = &probe.http_get {
        check::http(http, target, timeout).await
    } else if let Some(tcp) = &probe.tcp_socket {
        match check::port(&tcp.port, &target.container) {
            Ok(port) => {
                let host = tcp.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&target.pod_ip);
                check::tcp(host, port, timeout).await
            }
            Err(why) => Outcome::error(why),
        }
    } else if let Some(action) = &probe.grpc {
        match u16::try_from(action.port) {
            Ok(port) => {
                grpc::check(&target.pod_ip, port, action.service.as_deref().unwrap_or_default(), timeout)
                    .await
            }
            Err(_) => Outcome::error(format!("invalid port number: {}", action.port)),
        }
    } else {
        Outcome::error(format!("missing probe handler for container {:?}", target.container.name))
    }
}

/// Asks by HTTP for the sake of a lifecycle hook: whatever is answered, it was asked. The error is why it could not be. Where
/// there was no TLS although the hook wants it, and plain HTTP did, the place that answered.
pub async fn call_once(
    action: &HTTPGetAction,
    target: &Target,
    limit: Duration,
) -> Result<Option<String>, String> {
    check::call(action, target, limit).await
}

/// Probes a container until `stop`, or until nothing is left to find out: a liveness probe ends when it gives up, a
/// startup probe with its decision. Sends every try that did not simply succeed, and every change of state.
pub async fn worker(
    kind: Kind,
    probe: Probe,
    target: Target,
    mut runtime: cri::RuntimeClient,
    changes: Sender<ProbeEvent>,
    stop: CancellationToken,
) {
    let mut prober = Prober::new(kind, &probe);
    let period = seconds(probe.period_seconds, 10);
    let turn = if target.adopted { turn(kind, &target.container_id, period) } else { Duration::ZERO };
    let first = tokio::time::Instant::now() + first_wait(&probe, target.age).max(turn);
    let mut ticks = tokio::time::interval_at(first, period);
    // a slow try is not made up for
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let work = async {
        while !prober.finished() {
            ticks.tick().await;
            let begin = tokio::time::Instant::now();
            let outcome = run_once(&probe, &target, &mut runtime).await;
            count(kind, &target, &outcome, begin.elapsed());
            let decided = match outcome.found {
                Found::Nothing => None,
                found => prober.record(found != Found::Failure),
            };
            if decided.is_none() && outcome.found == Found::Success {
                continue;
            }
            let event = ProbeEvent {
                container_id: target.container_id.clone(),
                container: target.container.name.clone(),
                kind,
                healthy: prober.healthy(),
                message: outcome.message,
                found: outcome.found,
                dead: kind != Kind::Readiness && decided == Some(false),
            };
            if changes.send(event).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

fn count(kind: Kind, target: &Target, outcome: &Outcome, took: Duration) {
    let [uid, namespace, pod] = target.pod.clone();
    let counted = counts::Counted {
        uid,
        container: target.container.name.clone(),
        kind: match kind {
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
            Kind::Startup => "Startup",
        },
        result: match outcome.found {
            Found::Nothing => "unknown",
            Found::Success | Found::Warning => counts::SUCCESSFUL,
            Found::Failure => "failed",
        },
        namespace,
        pod,
    };
    counts::add(counted, took);
}

#[cfg(test)]
mod tests;
