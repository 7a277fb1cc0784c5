//! systemd-logind on the system's bus: who tells that the machine goes down, and waits for those that hold a lock.
//!
//! Source: systemd, "Inhibitor Locks", org.freedesktop.login1(5), logind.conf(5).

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use zbus::proxy::{self, CacheProperties, OwnerChangedStream, Proxy, SignalStream};
use zbus::{Connection, connection};

/// Where logind is found.
#[derive(Debug, Clone)]
pub struct Place {
    /// The address of its bus; none for the system's, which `DBUS_SYSTEM_BUS_ADDRESS` may name.
    pub bus: Option<String>,
    /// The folder of additions to its configuration.
    pub additions: PathBuf,
}

impl Default for Place {
    fn default() -> Self {
        Self { bus: None, additions: "/etc/systemd/logind.conf.d".into() }
    }
}

/// Why logind is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LogindError {
    /// There is no bus.
    #[error("the system's bus")]
    Bus(#[source] zbus::Error),
    /// It does not do what it is asked for.
    #[error("systemd-logind: {asked}")]
    Call {
        /// What that is.
        asked: &'static str,
        /// Why not.
        #[source]
        source: zbus::Error,
    },
    /// Its configuration cannot be added to.
    #[error("{path}")]
    Addition {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The machine goes down sooner than pods end.
    #[error("InhibitDelayMaxSec is {found:?} and did not become {wanted:?} (shutdownGracePeriod)")]
    TooShort {
        /// How long it waits.
        found: Duration,
        /// How long pods need.
        wanted: Duration,
    },
    /// The bus is gone.
    #[error("the connection to the bus ended")]
    Ended,
}

/// What it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The machine goes down, or no longer does.
    GoesDown(bool),
    /// It started anew.
    Started,
}

/// logind, as long as its bus lasts.
pub struct Logind {
    connection: Connection,
    manager: Proxy<'static>,
    additions: PathBuf,
}

/// What it tells, in order.
pub struct Signals {
    goes_down: SignalStream<'static>,
    owner: OwnerChangedStream<'static>,
}

const NAME: &str = "org.freedesktop.login1";
const ADDITION: &str = "99-kubelet.conf";
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(25);

fn failed(asked: &'static str) -> impl FnOnce(zbus::Error) -> LogindError {
    move |source| LogindError::Call { asked, source }
}

impl Logind {
    /// Connects to its bus.
    pub async fn connect(place: &Place) -> Result<Self, LogindError> {
        let builder = match &place.bus {
            Some(address) => connection::Builder::address(address.as_str()),
            None => connection::Builder::system(),
        };
        let connection = builder.method_timeout(ANSWER).build().await.map_err(LogindError::Bus)?;
        // it does not tell when its settings change
        let manager = proxy::Builder::<Proxy<'static>>::new(&connection)
            .destination(NAME)
            .path("/org/freedesktop/login1")
            .interface("org.freedesktop.login1.Manager")
            .cache_properties(CacheProperties::No)
            .build();
        let manager = manager.await.map_err(LogindError::Bus)?;
        Ok(Self { connection, manager, additions: place.additions.clone() })
    }

    /// Follows what it tells from now on; nobody else is heard.
    pub async fn signals(&self) -> Result<Signals, LogindError> {
        let goes_down = self.manager.receive_signal("PrepareForShutdown").await;
        let owner = self.manager.receive_owner_changed().await;
        Ok(Signals {
            goes_down: goes_down.map_err(failed("PrepareForShutdown"))?,
            owner: owner.map_err(failed("NameOwnerChanged"))?,
        })
    }

    /// Whether the machine goes down.
    pub async fn goes_down(&self) -> Result<bool, LogindError> {
        self.manager.get_property("PreparingForShutdown").await.map_err(failed("PreparingForShutdown"))
    }

    /// A lock: until it is closed, or for as long as pods `need`, the machine does not go down. Where logind does not wait
    /// so long it is told to.
    pub async fn lock(&self, need: Duration) -> Result<OwnedFd, LogindError> {
        if self.longest_delay().await? < need {
            self.allow(need).await?;
            let found = self.longest_delay().await?;
            if found < need {
                return Err(LogindError::TooShort { found, wanted: need });
            }
        }
        let body = ("shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay");
        let lock: Result<zbus::OwnedFd, _> = self.manager.call("Inhibit", &body).await;
        lock.map(OwnedFd::from).map_err(failed("Inhibit"))
    }

    async fn longest_delay(&self) -> Result<Duration, LogindError> {
        let micros = self.manager.get_property::<u64>("InhibitDelayMaxUSec").await;
        micros.map(Duration::from_micros).map_err(failed("InhibitDelayMaxUSec"))
    }

    async fn allow(&self, delay: Duration) -> Result<(), LogindError> {
        let path = self.additions.join(ADDITION);
        add(&path, delay).map_err(|source| LogindError::Addition { path, source })?;
        // logind reads its configuration again at SIGHUP
        let body = ("systemd-logind.service", "all", rustix::process::Signal::HUP.as_raw());
        let called = self.connection.call_method(
            Some("org.freedesktop.systemd1"),
            "/org/freedesktop/systemd1",
            Some("org.freedesktop.systemd1.Manager"),
            "KillUnit",
            &body,
        );
        called.await.map(drop).map_err(failed("KillUnit"))
    }
}

fn add(path: &Path, delay: Duration) -> io::Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(path))?;
    let seconds = delay.as_secs();
    std::fs::write(path, format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={seconds}\n"))
}

impl Signals {
    /// The next one; an error once the bus is gone.
    pub async fn next(&mut self) -> Result<Signal, LogindError> {
        loop {
            tokio::select! {
                message = self.goes_down.next() => {
                    match message.ok_or(LogindError::Ended)?.body().deserialize::<bool>() {
                        Ok(down) => return Ok(Signal::GoesDown(down)),
                        Err(error) => tracing::warn!(%error, "logind's PrepareForShutdown says nothing"),
                    }
                }
                owner = self.owner.next() => {
                    if owner.ok_or(LogindError::Ended)?.is_some() {
                        return Ok(Signal::Started);
                    }
                }
            }
        }
    }
}
