//! Graceful shutdown of the node: systemd waits for us before the machine goes down, and pods end meanwhile, those of less
//! importance first, in the time that the node gives them.
//!
//! Rule: Kubernetes documentation, "Node Shutdowns". logind lets a process hold the shutdown up (an inhibitor lock of mode
//! `delay`), for `InhibitDelayMaxSec` at most, which is made longer where it is too short.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::eviction::Eviction;
use crate::manager::Manager;
use dbus::{Argument, Bus, Method};

mod dbus;

/// What pods of a priority have (`shutdownGracePeriodByPodPriority`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Period {
    /// Of this priority and above it, up to the next one.
    pub priority: i32,
    /// Seconds.
    pub shutdown_grace_period_seconds: u64,
}

impl Period {
    fn limit(self) -> Duration {
        Duration::from_secs(self.shutdown_grace_period_seconds)
    }
}

/// Why a pod is not taken while the node goes down.
pub const REFUSED: (&str, &str) = ("NodeShutdown", "Pod was rejected as the node is shutting down.");
/// Why pods end.
const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// The bus of the machine, and our part of logind's configuration.
const BUS: &str = "/run/dbus/system_bus_socket";
const CONFIGURATION: &str = "/etc/systemd/logind.conf.d/99-kubelet.conf";
/// Between tries to reach logind.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// logind reads its configuration when it is told to, a moment later.
const RELOADS: u32 = 25;
const RELOAD: Duration = Duration::from_millis(200);

const LOGIND: Method<'static> = Method {
    name: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
    interface: "org.freedesktop.login1.Manager",
    member: "",
};
const SIGNAL: &str = "PrepareForShutdown";

/// Holds the machine's shutdown up for as long as pods need to end, at most for their periods.
pub struct Shutdown {
    periods: Vec<Period>,
    going: watch::Sender<bool>,
    bus: PathBuf,
    configuration: PathBuf,
}

impl Shutdown {
    /// With these periods, in any order; that the node goes down is told to `going`.
    pub fn new(mut periods: Vec<Period>, going: watch::Sender<bool>) -> Self {
        periods.sort_by_key(|period| period.priority);
        Self { periods, going, bus: BUS.into(), configuration: CONFIGURATION.into() }
    }

    /// Waits for the shutdown until `stop`. Without periods there is nothing to do.
    pub async fn run(self, manager: Arc<Manager>, stop: CancellationToken) {
        if self.periods.iter().all(|period| period.limit().is_zero()) {
            return;
        }
        let mut backoff = client::queue::Backoff::new(AGAIN.0, AGAIN.1);
        let ending = manager.clone();
        let end = move |period, pods| -> BoxFuture<'static, ()> {
            let manager = ending.clone();
            Box::pin(async move { end(&manager, period, pods).await })
        };
        loop {
            let error = tokio::select! {
                () = stop.cancelled() => return,
                followed = self.follow(|| manager.active(), &end) => followed,
            };
            if let Err(error) = error {
                tracing::warn!(%error, "shutdowns of the node are not followed");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    /// Follows logind until the bus breaks.
    async fn follow(
        &self,
        active: impl Fn() -> Vec<Arc<Pod>>,
        end: impl Fn(Period, Vec<Arc<Pod>>) -> BoxFuture<'static, ()>,
    ) -> io::Result<()> {
        let mut bus = Bus::connect(&self.bus).await?;
        let Method { interface, path, .. } = LOGIND;
        bus.follow(&format!("type='signal',interface='{interface}',member='{SIGNAL}',path='{path}'")).await?;
        self.have_time(&mut bus).await?;
        let mut lock = Some(inhibit(&mut bus).await?);
        loop {
            let signal = bus.signal().await?;
            if signal.member != SIGNAL {
                continue;
            }
            let going = signal.flag().unwrap_or(false);
            tracing::info!(going, "the machine's shutdown");
            self.going.send_replace(going);
            if going {
                for (period, pods) in groups(&self.periods, active()) {
                    end(period, pods).await;
                }
                // the machine goes on with it
                lock = None;
            } else if lock.is_none() {
                lock = Some(inhibit(&mut bus).await?);
            }
        }
    }

    /// Has logind wait long enough.
    async fn have_time(&self, bus: &mut Bus) -> io::Result<()> {
        let wanted: Duration = self.periods.iter().map(|period| period.limit()).sum();
        if delay(bus).await? >= wanted {
            return Ok(());
        }
        let text = format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={}\n", wanted.as_secs());
        write(&self.configuration, &text)?;
        let systemd = Method {
            name: "org.freedesktop.systemd1",
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            member: "KillUnit",
        };
        let hangup = rustix::process::Signal::HUP.as_raw();
        let arguments =
            [Argument::Text("systemd-logind.service"), Argument::Text("all"), Argument::Number(hangup)];
        bus.call(systemd, &arguments).await?;
        for _ in 0..RELOADS {
            if delay(bus).await? >= wanted {
                return Ok(());
            }
            tokio::time::sleep(RELOAD).await;
        }
        let has = delay(bus).await?.as_secs();
        Err(io::Error::other(format!(
            "node shutdown manager was unable to update logind InhibitDelayMaxSec to {}s (ShutdownGracePeriod), current value of InhibitDelayMaxSec ({has}s) is less than requested ShutdownGracePeriod",
            wanted.as_secs()
        )))
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text)
}

/// How long logind waits for who holds a shutdown up.
async fn delay(bus: &mut Bus) -> io::Result<Duration> {
    let get = Method { interface: "org.freedesktop.DBus.Properties", member: "Get", ..LOGIND };
    let arguments = [Argument::Text(LOGIND.interface), Argument::Text("InhibitDelayMaxUSec")];
    let answer = bus.call(get, &arguments).await?;
    answer
        .long()
        .map(Duration::from_micros)
        .ok_or_else(|| io::Error::other("logind does not say how long it waits"))
}

/// Holds shutdowns up until what is returned is closed.
async fn inhibit(bus: &mut Bus) -> io::Result<OwnedFd> {
    let arguments =
        ["shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay"].map(Argument::Text);
    let answer = bus.call(Method { member: "Inhibit", ..LOGIND }, &arguments).await?;
    answer.descriptors.into_iter().next().ok_or_else(|| io::Error::other("logind gives no lock"))
}

/// The pods by the period that they have, in the order in which they end; periods that nobody has are left out.
fn groups(periods: &[Period], pods: Vec<Arc<Pod>>) -> Vec<(Period, Vec<Arc<Pod>>)> {
    let mut groups: Vec<(Period, Vec<Arc<Pod>>)> =
        periods.iter().map(|period| (*period, Vec::new())).collect();
    for pod in pods {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let above = groups.iter().filter(|(period, _)| period.priority <= priority).count();
        if let Some((_, group)) = groups.get_mut(above.saturating_sub(1)) {
            group.push(pod);
        }
    }
    groups.retain(|(_, pods)| !pods.is_empty());
    groups
}

/// Ends pods together; waits until they are gone, at most for their period.
async fn end(manager: &Manager, period: Period, pods: Vec<Arc<Pod>>) {
    let ends = pods.iter().map(|pod| {
        let own = crate::plan::grace(pod);
        let most = i64::try_from(period.shutdown_grace_period_seconds).unwrap_or(i64::MAX);
        let eviction = Eviction {
            reason: REASON.to_owned(),
            message: MESSAGE.to_owned(),
            grace: own.min(most),
            disruption: true,
        };
        manager.evict(pod.metadata.uid.as_deref().unwrap_or_default(), eviction, period.limit())
    });
    futures_util::future::join_all(ends).await;
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use serde_json::json;

    use super::dbus::tests::Server;
    use super::*;

    fn pod(name: &str, priority: i64) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name}, "spec": {"priority": priority, "containers": []}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn period(priority: i32, seconds: u64) -> Period {
        Period { priority, shutdown_grace_period_seconds: seconds }
    }

    fn names(pods: &[Arc<Pod>]) -> String {
        pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn pods_of_less_importance_end_first() {
        let periods = [period(0, 20), period(10, 5), period(2_000_000_000, 10)];
        let pods = vec![pod("system", 2_000_001_000), pod("low", -5), pod("plain", 0), pod("nine", 9)];
        let found = groups(&periods, pods);
        let text: Vec<String> = found
            .iter()
            .map(|(period, pods)| format!("{}: {}", period.shutdown_grace_period_seconds, names(pods)))
            .collect();
        assert_eq!(text, ["20: low plain nine", "10: system"]);
    }

    #[tokio::test]
    async fn the_machine_waits_until_the_pods_have_ended() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("bus");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let (going, mut seen) = watch::channel(false);
        let shutdown = Shutdown {
            bus: socket,
            configuration: folder.path().join("conf.d/99-kubelet.conf"),
            ..Shutdown::new(vec![period(2_000_000_000, 10), period(0, 20)], going)
        };
        let (ended, mut order) = tokio::sync::mpsc::unbounded_channel();
        let configuration = shutdown.configuration.clone();
        let follow = async move {
            let active = || vec![pod("system", 2_000_001_000), pod("web", 0)];
            let end = |_: Period, pods: Vec<Arc<Pod>>| -> BoxFuture<'static, ()> {
                ended.send(names(&pods)).unwrap();
                Box::pin(std::future::ready(()))
            };
            shutdown.follow(active, end).await
        };
        let logind = async {
            let mut bus = Server::accept(&listener).await;
            let rule = bus.next().await;
            assert!(
                rule.starts_with("AddMatch type='signal'") && rule.contains("member='PrepareForShutdown'")
            );
            bus.nothing();
            let asked = "Get org.freedesktop.login1.Manager InhibitDelayMaxUSec";
            assert_eq!(bus.next().await, asked);
            bus.long(5_000_000);
            assert_eq!(bus.next().await, "KillUnit systemd-logind.service all");
            let text = std::fs::read_to_string(configuration).unwrap();
            assert!(text.ends_with("[Login]\nInhibitDelayMaxSec=30\n"), "{text}");
            bus.nothing();
            assert_eq!(bus.next().await, asked);
            bus.long(30_000_000);
            let lock = "Inhibit shutdown kubelet Kubelet needs time to handle node shutdown delay";
            assert_eq!(bus.next().await, lock);
            let (mut held, given) = std::io::pipe().unwrap();
            bus.descriptor(given.into());
            bus.signal("PrepareForShutdown", true);
            let order = [order.recv().await.unwrap(), order.recv().await.unwrap()];
            assert_eq!(order, ["web", "system"]);
            // the other end is closed: the lock was given back
            let closed = tokio::task::spawn_blocking(move || held.read(&mut [0]).unwrap());
            assert_eq!(tokio::time::timeout(Duration::from_secs(10), closed).await.unwrap().unwrap(), 0);
            assert!(*seen.borrow_and_update());
            bus.signal("PrepareForShutdown", false);
            assert_eq!(bus.next().await, lock, "the shutdown was called off");
            assert!(!*seen.borrow_and_update());
        };
        tokio::select! {
            result = follow => panic!("{result:?}"),
            () = logind => {}
        }
    }
}
