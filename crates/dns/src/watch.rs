//! The only part that knows the API: caches in, index out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use client::traffic::{ServiceView, SliceView, SlicesByService};
use client::{Change, Client, Selection};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::forward::Forwarder;
use crate::records::{Index, ServiceKey, entry};
use crate::server::{BindError, Server};
use crate::stub_domains::{self, StubDomains};

/// Binds the sockets, then answers until `stop`.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> Result<(), BindError> {
    let server = Server::bind(&config).await?;
    tracing::info!(listen = ?server.addresses(), "cluster DNS");
    let (index, forwarder) = (server.index(), server.forwarder());
    tokio::select! {
        () = server.serve(stop.clone()) => {}
        () = follow(client.clone(), index) => {}
        () = configure(client, forwarder) => {}
    }
    Ok(())
}

/// Keeps the forwarder as the cluster's configuration says. One that cannot be read changes nothing.
async fn configure(client: Client, forwarder: Arc<Forwarder>) {
    let maps = client.caches().select::<ConfigMap>(Selection {
        group: String::new(),
        version: "v1".to_owned(),
        plural: "configmaps".to_owned(),
        namespace: stub_domains::NAMESPACE.to_owned(),
        field_selector: format!("metadata.name={}", stub_domains::NAME),
        label_selector: String::new(),
    });
    let mut changes = maps.subscribe();
    let mut now = StubDomains::default();
    while let Some(change) = changes.next().await {
        let wanted = match change {
            Change::Deleted(_) => Ok(StubDomains::default()),
            Change::Added(map) | Change::Modified { new: map, .. } => StubDomains::parse(&map),
        };
        match wanted {
            Ok(wanted) if wanted == now => {}
            Ok(wanted) => {
                tracing::info!(domains = wanted.domains.len(), upstreams = ?wanted.upstreams, "stub domains");
                forwarder.configure(&wanted);
                now = wanted;
            }
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "the ConfigMap {}/{} cannot be used",
                stub_domains::NAMESPACE,
                stub_domains::NAME
            ),
        }
    }
}

/// Keeps the index as the API says.
async fn follow(client: Client, index: Arc<RwLock<Index>>) {
    let (services, slices) = (client.caches().services(), client.caches().endpoint_slices());
    tokio::join!(services.synced(), slices.synced());
    let (mut service_changes, mut slice_changes) = (services.subscribe(), slices.subscribe());
    // not waited for: services tell of most
    let namespaces = client.caches().of::<Namespace>();
    let mut namespace_changes = namespaces.subscribe();
    let mut known = Known::default();
    loop {
        while let Some(change) = service_changes.try_next() {
            known.service(change);
        }
        while let Some(change) = slice_changes.try_next() {
            known.slice(change);
        }
        while let Some(change) = namespace_changes.try_next() {
            known.namespace(change);
        }
        known.write(&index);
        tokio::select! {
            change = service_changes.next() => match change {
                Some(change) => known.service(change),
                None => return,
            },
            change = slice_changes.next() => match change {
                Some(change) => known.slice(change),
                None => return,
            },
            change = namespace_changes.next() => match change {
                Some(change) => known.namespace(change),
                None => return,
            },
        }
    }
}

#[derive(Default)]
struct Known {
    services: HashMap<ServiceKey, Arc<ServiceView>>,
    slices: SlicesByService,
    touched: BTreeSet<ServiceKey>,
    /// Namespaces that came or went.
    namespaces: BTreeMap<String, bool>,
}

impl Known {
    fn service(&mut self, change: Change<ServiceView>) {
        let key = change.object().key();
        match change {
            Change::Deleted(_) => self.services.remove(&key),
            Change::Added(new) | Change::Modified { new, .. } => self.services.insert(key.clone(), new),
        };
        self.touched.insert(key);
    }

    fn slice(&mut self, change: Change<SliceView>) {
        self.touched.extend(self.slices.change(change));
    }

    fn namespace(&mut self, change: Change<Namespace>) {
        let name = change.object().metadata.name.clone().unwrap_or_default();
        self.namespaces.insert(name, !matches!(change, Change::Deleted(_)));
    }

    /// Entries are made outside the lock, so that questions hardly wait.
    fn write(&mut self, index: &RwLock<Index>) {
        let entries: Vec<_> = std::mem::take(&mut self.touched)
            .into_iter()
            .map(|key| {
                let entry = self.services.get(&key).and_then(|service| entry(service, self.slices.of(&key)));
                (key, entry)
            })
            .collect();
        let mut index = index.write();
        for (name, exists) in std::mem::take(&mut self.namespaces) {
            index.set_namespace(&name, exists);
        }
        for (key, entry) in entries {
            index.update(&key, entry);
        }
        index.set_synced();
    }
}
