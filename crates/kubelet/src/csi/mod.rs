//! CSI drivers of this node: sockets in `ROOT/plugins_registry` register them, and they are told to the cluster in
//! the CSINode object and on the Node.
//!
//! Tasks: one that watches the folder ([`Registry::run`]), and one per socket until its plugin is registered.
//!
//! Rule: Kubernetes documentation, "Kubelet Device/Plugin registration", "CSI"; the CSI specification, "Node Service".

pub mod driver;
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

use crate::folder_watch::FolderWatch;
use driver::{Capabilities, Plugin, told};

/// The kind of plugin that registers a CSI driver.
const KIND: &str = "CSIPlugin";
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
    drivers: watch::Sender<BTreeMap<String, Arc<Driver>>>,
    /// CSINode is changed by one at a time.
    told: tokio::sync::Mutex<()>,
}

/// One socket, as long as it is the same.
type Identity = (u64, i64, i64);

impl Registry {
    /// Of the kubelet whose folder `root` is.
    pub fn new(client: Client, node: String, root: &Path) -> Arc<Self> {
        let (drivers, _) = watch::channel(BTreeMap::new());
        let folder = root.join("plugins_registry");
        Arc::new(Self { client, node, folder, drivers, told: tokio::sync::Mutex::new(()) })
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
                    let registering = stop.child_token();
                    known.insert(path.clone(), (identity, registering.clone()));
                    tasks.spawn(self.clone().keep_registering(path, registering));
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

    async fn keep_registering(self: Arc<Self>, socket: PathBuf, stop: CancellationToken) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let done = tokio::select! {
                () = stop.cancelled() => return,
                done = self.register(&socket) => done,
            };
            match done {
                Ok(name) => {
                    tracing::info!(driver = name, socket = %socket.display(), "plugin registered");
                    return;
                }
                Err(why) => tracing::warn!(why, socket = %socket.display(), "plugin not registered"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    async fn register(&self, socket: &Path) -> Result<String, String> {
        let registrar = Plugin::at(socket)?;
        let info = registrar.info().await.map_err(|status| told(&status))?;
        let outcome = self.take_in(socket, &info).await;
        registrar.notify(outcome.clone()).await.map_err(|status| told(&status))?;
        outcome.map(|()| info.name)
    }

    async fn take_in(&self, socket: &Path, info: &messages::PluginInfo) -> Result<(), String> {
        if info.r#type != KIND {
            return Err(format!(
                "no handler registered for plugin type: {} at socket {}",
                info.r#type,
                socket.display()
            ));
        }
        if !info.supported_versions.iter().any(|v| v == "1" || v.trim_start_matches('v').starts_with("1.")) {
            return Err(format!(
                "validation failed for CSI Driver {} at endpoint {}: none of the versions {:?} is supported",
                info.name, info.endpoint, info.supported_versions
            ));
        }
        let plugin = Plugin::at(Path::new(&info.endpoint))?;
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
