//! Network namespaces kept alive by a bind mount, without forking.

use std::path::Path;
use std::sync::Arc;

use nlink::netlink::namespace::{self, Netns};
use nlink::netlink::{Connection, Generic, Netfilter, Nftables, Route, Wireguard};

/// The error of namespace and netlink operations.
pub use nlink::Error;

/// Makes a new network namespace and binds it to `path`; missing parent directories are made.
pub fn create(path: &Path) -> Result<(), nlink::Error> {
    namespace::create_path(path)
}

/// Unbinds a namespace made by [`create`] and removes the file. The namespace ends with its last process.
/// A path that is gone is no error.
pub fn delete(path: &Path) -> Result<(), nlink::Error> {
    match namespace::delete_path(path) {
        Err(e) if e.is_not_found() => Ok(()),
        other => other,
    }
}

/// Where netlink sockets are opened: the process's own namespace, or another that stays open in here.
#[derive(Debug, Clone, Default)]
pub struct Place(Option<Arc<Netns>>);

impl Place {
    /// The namespace at `path`; with `None` the caller's own.
    pub fn open(path: Option<&Path>) -> Result<Self, nlink::Error> {
        path.map(|p| Netns::from_path(p).map(Arc::new)).transpose().map(Self)
    }

    /// Runs `f` on a thread inside the namespace and waits for it. Sockets made in there stay in there.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, nlink::Error> {
        match &self.0 {
            Some(ns) => ns.run(f),
            None => Ok(f()),
        }
    }

    pub(crate) fn netns(&self) -> Option<&Netns> {
        self.0.as_deref()
    }

    pub(crate) fn route(&self) -> Result<Connection<Route>, nlink::Error> {
        match &self.0 {
            Some(ns) => Connection::new_in(&**ns),
            None => Connection::<Route>::new(),
        }
    }

    pub(crate) fn generic(&self) -> Result<Connection<Generic>, nlink::Error> {
        match &self.0 {
            Some(ns) => Connection::new_in(&**ns),
            None => Connection::<Generic>::new(),
        }
    }

    pub(crate) async fn wireguard(&self) -> Result<Connection<Wireguard>, nlink::Error> {
        match &self.0 {
            Some(ns) => Connection::<Wireguard>::new_in_async(&**ns).await,
            None => Connection::<Wireguard>::new_async().await,
        }
    }

    pub(crate) fn nftables(&self) -> Result<Connection<Nftables>, nlink::Error> {
        match &self.0 {
            Some(ns) => Connection::new_in(&**ns),
            None => Connection::<Nftables>::new(),
        }
    }

    pub(crate) fn netfilter(&self) -> Result<Connection<Netfilter>, nlink::Error> {
        match &self.0 {
            Some(ns) => Connection::new_in(&**ns),
            None => Connection::<Netfilter>::new(),
        }
    }
}
