//! CSI drivers of this node: sockets in `ROOT/plugins_registry` register them, and they are told to the cluster in
//! the CSINode object and on the Node. DRA drivers register there, too ([`crate::dra`]), and device plugins may.
//!
//! Tasks: one that watches the folder ([`Registry::run`]), one that asks how many volumes the node can have
//! ([`Registry::follow_limits`]), and one per socket until its plugin is registered, or for a device plugin and a DRA driver
//! until it is gone.
//!
//! Rule: Kubernetes documentation, "Kubelet Device/Plugin registration", "CSI"; the CSI specification, "Node Service".

pub mod driver;
mod limits;
pub mod messages;
mod node_info;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::Client;
use client::queue::Backoff;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::devices::{Devices, registration};
use crate::dra::drivers::{Drivers, Joined};
use crate::folder_watch::FolderWatch;
use driver::{Capabilities, Plugin, told};

/// The kinds of plugins that register.
const DRIVER: &str = "CSIPlugin";
const DEVICES: &str = "DevicePlugin";
const DRA: &str = "DRAPlugin";
/// A registration that failed is tried again after this, doubling.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// A registered driver.
#[derive(Clone)]
pub struct Driver {
    /// Its name.
    pub name: String,
    /// Its socket.
    pub plugin: Plugin,
    /// What it can do.
    pub can: Capabilities,
    /// The socket that registered it.
    registered_by: PathBuf,
}

/// Which drivers there are.
pub struct Registry {
    client: Client,
    node: String,
    folder: PathBuf,
    devices: Arc<Devices>,
    dra: Arc<Drivers>,
    drivers: watch::Sender<BTreeMap<String, Arc<Driver>>>,
    /// CSINode is changed by one at a time.
    told: tokio::sync::Mutex<()>,
}

/// A plugin that is followed for as long as its socket is there.
enum Followed {
    Devices(registration::Joined),
    Dra(Joined),
}

/// One socket, as long as it is the same.
type Identity = (u64, i64, i64);

impl Registry {
    /// Of the kubelet whose folder `root` is; `devices` takes in device plugins, `dra` drivers of claims.
    pub fn new(
        client: Client,
        node: String,
        root: &Path,
        (devices, dra): (Arc<Devices>, Arc<Drivers>),
    ) -> Arc<Self> {
        let (drivers, _) = watch::channel(BTreeMap::new());
        let folder = root.join("plugins_registry");
        Arc::new(Self { client, node, folder, devices, dra, drivers, told: tokio::sync::Mutex::new(()) })
    }

    /// The driver of that name; waits for it, since after a start of the node drivers come when they like.
    pub async fn driver(&self, name: &str, limit: Duration) -> Result<Arc<Driver>, String> {
        let mut drivers = self.drivers.subscribe();
        let there = drivers.wait_for(|drivers| drivers.contains_key(name));
        let found = match tokio::time::timeout(limit, there).await {
            Ok(Ok(drivers)) => drivers.get(name).cloned(),
            _ => None,
        };
        found.ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))
    }

    /// The same without a wait.
    pub fn known(&self, name: &str) -> Option<Arc<Driver>> {
        self.drivers.borrow().get(name).cloned()
    }

    /// Follows the folder until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        self.tell_no_drivers(&stop).await;
        let watch = std::fs::create_dir_all(&self.folder).and_then(|()| FolderWatch::new(&self.folder));
        let watch = match watch {
            Ok(watch) => watch,
            Err(error) => {
                tracing::error!(%error, folder = %self.folder.display(), "plugins cannot register");
                return;
            }
        };
        let tasks = TaskTracker::new();
        let (this, until) = (self.clone(), stop.clone());
        tasks.spawn(async move { this.follow_node(until).await });
        let mut known: BTreeMap<PathBuf, (Identity, CancellationToken)> = BTreeMap::new();
        loop {
            let sockets = sockets(&self.folder);
            let gone: Vec<PathBuf> = known
                .iter()
                .filter(|(path, (identity, _))| sockets.get(*path) != Some(identity))
                .map(|(path, _)| path.clone())
                .collect();
            for path in gone {
                if let Some((_, registering)) = known.remove(&path) {
                    registering.cancel();
                }
                // one that only was made anew stays known until it registers again
                if !sockets.contains_key(&path) {
                    self.deregister(&path).await;
                }
            }
            for (path, identity) in sockets {
                if !known.contains_key(&path) {
                    let gone = stop.child_token();
                    known.insert(path.clone(), (identity, gone.clone()));
                    tasks.spawn(self.clone().keep_registering(path, gone, stop.clone()));
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = watch.changed() => if let Err(error) = changed {
                    tracing::error!(%error, "plugins are no longer followed");
                    break;
                },
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    /// Registers the plugin of a socket, until that is `gone`.
    async fn keep_registering(
        self: Arc<Self>,
        socket: PathBuf,
        gone: CancellationToken,
        stop: CancellationToken,
    ) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let done = tokio::select! {
                () = gone.cancelled() => return,
                done = self.register(&socket) => done,
            };
            match done {
                Ok((name, followed)) => {
                    tracing::info!(plugin = name, socket = %socket.display(), "plugin registered");
                    match followed {
                        Some(Followed::Devices(joined)) => {
                            registration::follow(&self.devices, joined, &gone, &stop).await;
                        }
                        Some(Followed::Dra(joined)) => joined.follow(&gone).await,
                        None => {}
                    }
                    return;
                }
                Err(why) => tracing::warn!(why, socket = %socket.display(), "plugin not registered"),
            }
            tokio::select! {
                () = gone.cancelled() => return,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    /// The plugin's name, and what is to be followed.
    async fn register(&self, socket: &Path) -> Result<(String, Option<Followed>), String> {
        let registrar = Plugin::at(socket)?;
        let info = registrar.info().await.map_err(|status| told(&status))?;
        // a plugin without an endpoint of its own is called where it registered
        let endpoint = if info.endpoint.is_empty() { socket } else { Path::new(&info.endpoint) };
        let outcome = match info.r#type.as_str() {
            DRIVER => self.take_in(socket, endpoint, &info).await.map(|()| None),
            DEVICES => {
                self.take_in_devices(endpoint, &info).await.map(|joined| Some(Followed::Devices(joined)))
            }
            DRA => self.dra.join(socket, endpoint, &info).map(|joined| Some(Followed::Dra(joined))),
            other => {
                Err(format!("no handler registered for plugin type: {other} at socket {}", socket.display()))
            }
        };
        let told_it = registrar.notify(outcome.as_ref().map(drop).map_err(Clone::clone)).await;
        told_it.map_err(|status| told(&status))?;
        outcome.map(|followed| (info.name, followed))
    }

    async fn take_in_devices(
        &self,
        endpoint: &Path,
        info: &messages::PluginInfo,
    ) -> Result<registration::Joined, String> {
        let version = registration::VERSION;
        if !info.supported_versions.iter().any(|known| known == version) {
            return Err(format!(
                "manager version, {version}, is not among plugin supported versions [{}]",
                info.supported_versions.join(" ")
            ));
        }
        registration::check_name(&info.name)
            .map_err(|why| format!("invalid name of device plugin socket: {why}"))?;
        registration::join(&self.devices, info.name.clone(), endpoint).await
    }

    async fn take_in(
        &self,
        socket: &Path,
        endpoint: &Path,
        info: &messages::PluginInfo,
    ) -> Result<(), String> {
        if !info.supported_versions.iter().any(|v| v == "1" || v.trim_start_matches('v').starts_with("1.")) {
            return Err(format!(
                "validation failed for CSI Driver {} at endpoint {}: none of the versions {:?} is supported",
                info.name,
                endpoint.display(),
                info.supported_versions
            ));
        }
        let plugin = Plugin::at(endpoint)?;
        let node = plugin.node_info().await.map_err(|status| told(&status))?;
        if node.node_id.is_empty() {
            return Err("node_id in the response of CSI NodeGetInfo is empty".to_owned());
        }
        let can = plugin.capabilities().await.map_err(|status| told(&status))?;
        self.tell(&info.name, &node).await?;
        let driver = Driver { name: info.name.clone(), plugin, can, registered_by: socket.to_owned() };
        self.drivers.send_modify(|drivers| drop(drivers.insert(info.name.clone(), Arc::new(driver))));
        Ok(())
    }

    async fn deregister(&self, socket: &Path) {
        let gone = self.drivers.borrow().values().find(|d| d.registered_by == socket).map(|d| d.name.clone());
        let Some(name) = gone else { return };
        tracing::info!(driver = name, "plugin deregistered");
        self.drivers.send_modify(|drivers| drop(drivers.remove(&name)));
        if let Err(why) = self.untell(&name).await {
            tracing::warn!(why, driver = name, "the driver is still shown for this node");
        }
    }
}

fn sockets(folder: &Path) -> BTreeMap<PathBuf, Identity> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let shown = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    shown
        .filter_map(|entry| {
            let metadata = entry.metadata().ok().filter(|metadata| metadata.file_type().is_socket())?;
            Some((entry.path(), (metadata.ino(), metadata.ctime(), metadata.ctime_nsec())))
        })
        .collect()
}
