//! Graceful node shutdown: before the machine goes down pods end in the order of their priorities, each group in its
//! own time; systemd-logind waits for that.
//!
//! Rule: Kubernetes documentation, "Node Shutdowns"; v1.36's words, events and state file.
//!
//! logind is spoken to through `zbus`: five calls and signals, but with authentication, file descriptors, match rules and senders that
//! are checked. It costs 10 s of one processor in a clean build; a client of our own would cost a library's upkeep.

pub mod logind;
pub mod plan;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use client::events::{EventType, Recorder};
use client::queue::Backoff;
use futures_util::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::Rejection;
use crate::eviction::{Cause, Eviction};
use crate::manager::Manager;
use crate::{files, metrics};
use logind::{Logind, LogindError, Place, Signal, Signals};
use plan::Period;

/// The reason of pods that end with their node.
pub const REASON: &str = "Terminated";
/// Their message.
pub const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// Why the node is not ready.
pub const NOT_READY: &str = "node is shutting down";

/// Why a pod that comes now is refused.
pub fn refusal() -> Rejection {
    Rejection::of("NodeShutdown", "Pod was rejected as the node is shutting down.")
}

/// Between tries to reach logind.
const RECONNECT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
const STATE: &str = "graceful_node_shutdown_state";
/// What the state file has for a time that has not come.
const NEVER: Timestamp = Timestamp::constant(-62_135_596_800, 0);

/// The last shutdown, as the state file keeps it over the restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    start_time: Timestamp,
    end_time: Timestamp,
}

impl State {
    fn show(self) {
        let seconds =
            |at: Timestamp| if at == NEVER { 0 } else { usize::try_from(at.as_second()).unwrap_or(0) };
        metrics::SHUTDOWN_START.set(&[], seconds(self.start_time));
        metrics::SHUTDOWN_END.set(&[], seconds(self.end_time));
    }
}

/// Ends the pods before the machine goes down.
pub struct Shutdown {
    /// The pods.
    pub manager: Arc<Manager>,
    /// Events.
    pub recorder: Recorder,
    /// The node that they are about.
    pub node: ObjectReference,
    /// How long pods have, sorted; none: the node goes down at once.
    pub periods: Vec<Period>,
    /// Who says when.
    pub logind: Place,
    /// `D/kubelet`: the folder of the state file.
    pub root: PathBuf,
    /// Whether the node goes down.
    pub goes_down: watch::Sender<bool>,
}

impl Shutdown {
    /// Waits for shutdowns until `stop`. A machine without logind goes down as it always did.
    pub async fn run(self, stop: CancellationToken) {
        if self.periods.is_empty() {
            return;
        }
        self.recall();
        let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
        let mut told = false;
        loop {
            let error = tokio::select! {
                () = stop.cancelled() => return,
                error = self.follow(&mut backoff, &mut told) => error,
            };
            if !std::mem::replace(&mut told, true) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "pods are not ended in order when the machine goes down");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    /// Holds a lock and does what logind's signals ask for, until something fails.
    async fn follow(&self, backoff: &mut Backoff, told: &mut bool) -> LogindError {
        let work = async {
            let logind = Logind::connect(&self.logind).await?;
            let mut signals = logind.signals().await?;
            let mut lock: Option<OwnedFd>;
            let mut signal = Signal::Started;
            loop {
                let down = match signal {
                    Signal::GoesDown(down) => down,
                    Signal::Started => logind.goes_down().await?,
                };
                self.announce(down);
                if down {
                    let ended = tokio::select! {
                        () = self.end_pods() => true,
                        () = cancelled(&mut signals) => false,
                    };
                    // the machine goes on with it
                    lock = None;
                    if !ended {
                        signal = Signal::GoesDown(false);
                        continue;
                    }
                } else {
                    // an older one goes when this one is there
                    lock = Some(logind.lock(plan::whole(&self.periods)).await?);
                    backoff.reset();
                    if std::mem::take(told) {
                        tracing::info!("pods are ended in order when the machine goes down");
                    }
                }
                tracing::debug!(locked = lock.is_some(), "waiting for the machine to go down");
                signal = signals.next().await?;
            }
        };
        let result: Result<std::convert::Infallible, LogindError> = work.await;
        match result {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn announce(&self, down: bool) {
        if self.goes_down.send_if_modified(|known| std::mem::replace(known, down) != down) {
            let what = if down { "shutdown event" } else { "shutdown cancellation" };
            let text = format!("Shutdown manager detected {what}");
            tracing::info!(text);
            self.recorder.event(&self.node, EventType::Normal, "NodeShutdown", text);
        }
    }

    /// One group after the other; who does not end in time is not waited for.
    async fn end_pods(&self) {
        let start_time = Timestamp::now();
        self.remember(State { start_time, end_time: NEVER });
        for (period, pods) in plan::groups(&self.periods, self.manager.unfinished()) {
            tracing::info!(pods = pods.len(), seconds = period.seconds, "pods end with the node");
            let end = |pod: &Arc<Pod>| {
                let (reason, message) = (REASON.to_owned(), MESSAGE.to_owned());
                let eviction = Eviction {
                    reason,
                    message,
                    grace: period.seconds.max(0),
                    cause: Cause::Disruption,
                    annotations: BTreeMap::new(),
                };
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                async move { self.manager.end(&uid, eviction).await }
            };
            if tokio::time::timeout(period.length(), join_all(pods.iter().map(end))).await.is_err() {
                tracing::warn!(seconds = period.seconds, "pods of a group did not end in time");
            }
        }
        self.remember(State { start_time, end_time: Timestamp::now() });
    }

    fn remember(&self, state: State) {
        state.show();
        if let Err(error) = files::write_json(&self.root, STATE, &state) {
            tracing::warn!(%error, file = STATE, "not written");
        }
    }

    /// Shows when the node went down last.
    fn recall(&self) {
        let read = match std::fs::read(self.root.join(STATE)) {
            Ok(text) => serde_json::from_slice::<State>(&text).map_err(|error| error.to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(state) => state.show(),
            Err(error) => tracing::warn!(error, file = STATE, "not read"),
        }
    }
}

/// Until the machine no longer goes down. Pods end whatever becomes of the bus meanwhile.
async fn cancelled(signals: &mut Signals) {
    loop {
        match signals.next().await {
            Ok(Signal::GoesDown(false)) => return,
            Ok(_) => {}
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_file_is_that_of_the_reference() {
        let state = State { start_time: Timestamp::constant(1_767_225_600, 5), end_time: NEVER };
        let text = r#"{"startTime":"2026-01-01T00:00:00.000000005Z","endTime":"0001-01-01T00:00:00Z"}"#;
        assert_eq!(serde_json::to_string(&state).unwrap(), text);
        assert_eq!(serde_json::from_str::<State>(text).unwrap(), state);
    }
}
