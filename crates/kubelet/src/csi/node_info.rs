//! What the cluster is told of a node's drivers: the CSINode object, an annotation and topology labels of the Node.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;

use api::csi_migration;
use client::queue::Backoff;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::messages::NodeGetInfoResponse;
use super::{Driver, RETRY, Registry, told};

/// Holds the node's ids by driver, as JSON.
const IDS: &str = "csi.volume.kubernetes.io/nodeid";
/// On the CSINode: the plugins whose volumes the node hands to drivers, sorted.
const MIGRATED: &str = "storage.alpha.kubernetes.io/migrated-plugins";

impl Registry {
    /// Makes the CSINode, which says that this node's drivers are known, at first without any.
    pub(super) async fn tell_no_drivers(&self, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = until_done("CSINode not made yet", || self.change(|_| {})) => {}
        }
    }

    /// Says it all again of a Node that was made anew: what the former one said went with it. Until `stop`.
    pub(super) async fn follow_node(&self, stop: CancellationToken) {
        let cache = self.client.caches().of_selected::<Node>(&format!("metadata.name={}", self.node));
        let mut changes = cache.subscribe();
        let mut told: Option<String> = None;
        let mut telling = pending().boxed();
        loop {
            if let Some(uid) = cache.get("", &self.node).and_then(|node| node.metadata.uid.clone())
                && told.as_ref() != Some(&uid)
            {
                // of the first one drivers tell when they register
                if told.is_some() {
                    telling = self.tell_again().boxed();
                }
                told = Some(uid);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                change = changes.next() => if change.is_none() { return },
                () = &mut telling => telling = pending().boxed(),
            }
        }
    }

    /// Each driver for itself: one that does not answer holds up no other.
    async fn tell_again(&self) {
        let owner = until_done("CSINode not given to the new Node yet", || self.change(|_| {}));
        let drivers: Vec<_> = self.drivers.borrow().values().cloned().collect();
        let each = drivers.iter().map(|driver| {
            until_done("a driver is not told of the new Node yet", || self.tell_if_there(driver))
        });
        tokio::join!(owner, join_all(each));
    }

    async fn tell_if_there(&self, driver: &Arc<Driver>) -> Result<(), String> {
        let there = || self.known(&driver.name).is_some_and(|known| Arc::ptr_eq(&known, driver));
        if !there() {
            return Ok(());
        }
        let info = driver.plugin.node_info().await.map_err(|status| told(&status))?;
        // one that went meanwhile has been taken out already
        if there() { self.tell(&driver.name, &info).await } else { Ok(()) }
    }

    /// A driver is there.
    pub(super) async fn tell(&self, name: &str, info: &NodeGetInfoResponse) -> Result<(), String> {
        let segments: BTreeMap<String, String> =
            info.accessible_topology.iter().flat_map(|topology| topology.segments.clone()).collect();
        self.label(name, Some(&info.node_id), &segments).await?;
        let count = i32::try_from(info.max_volumes_per_node).ok().filter(|count| *count > 0);
        let driver = CSINodeDriver {
            name: name.to_owned(),
            node_id: info.node_id.clone(),
            topology_keys: Some(segments.into_keys().collect::<Vec<_>>()).filter(|keys| !keys.is_empty()),
            allocatable: count.map(|count| VolumeNodeResources { count: Some(count) }),
        };
        self.change(move |spec| {
            spec.drivers.retain(|known| known.name != driver.name);
            spec.drivers.push(driver.clone());
        })
        .await
    }

    /// A driver is gone.
    pub(super) async fn untell(&self, name: &str) -> Result<(), String> {
        self.label(name, None, &BTreeMap::new()).await?;
        self.change(|spec| spec.drivers.retain(|known| known.name != name)).await
    }

    /// The Node's annotation and labels. A label that says otherwise already is not ours to change.
    async fn label(
        &self,
        name: &str,
        id: Option<&str>,
        segments: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let _one = self.told.lock().await;
        let node: Node = self.client.get("", &self.node).await.map_err(|error| error.to_string())?;
        let labels = node.metadata.labels.unwrap_or_default();
        if let Some((key, value)) = segments.iter().find(|(k, v)| labels.get(*k).is_some_and(|l| l != *v)) {
            let known = &labels[key];
            return Err(format!(
                "detected topology value collision: driver reported {key:?}:{value:?} but existing label is {key:?}:{known:?}"
            ));
        }
        let text = node.metadata.annotations.unwrap_or_default().get(IDS).cloned().unwrap_or_default();
        let mut ids: BTreeMap<String, String> = serde_json::from_str(&text).unwrap_or_default();
        let known = match id {
            Some(id) => ids.insert(name.to_owned(), id.to_owned()),
            None => ids.remove(name),
        };
        if known.as_deref() == id && segments.iter().all(|(k, v)| labels.get(k) == Some(v)) {
            return Ok(());
        }
        let ids = serde_json::to_string(&ids).map_err(|error| error.to_string())?;
        let ids = if ids == "{}" { json!(null) } else { json!(ids) };
        let patch = json!({"metadata": {"annotations": {IDS: ids}, "labels": segments}});
        let patched = self.client.patch::<Node>("", &self.node, &client::Patch::Merge(patch)).await;
        patched.map(drop).map_err(|error| error.to_string())
    }

    /// Changes the CSINode; it is made where it is missing.
    pub(super) async fn change(&self, change: impl Fn(&mut CSINodeSpec)) -> Result<(), String> {
        let _one = self.told.lock().await;
        let words = |error: client::Error| error.to_string();
        let migrated = csi_migration::plugins().collect::<Vec<_>>().join(",");
        let node: Node = self.client.get("", &self.node).await.map_err(words)?;
        let owner = OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: self.node.clone(),
            uid: node.metadata.uid.unwrap_or_default(),
            ..OwnerReference::default()
        };
        match self.client.get::<CSINode>("", &self.node).await {
            Ok(mut found) => {
                let before = found.clone();
                change(&mut found.spec);
                found.metadata.annotations.get_or_insert_default().insert(MIGRATED.to_owned(), migrated);
                // one of a Node that is no more would go with it
                let owners = found.metadata.owner_references.get_or_insert_default();
                owners.retain(|known| known.kind != owner.kind || known.uid == owner.uid);
                if !owners.iter().any(|known| known.uid == owner.uid) {
                    owners.push(owner);
                }
                if found == before {
                    return Ok(());
                }
                // a conflict is tried again with the rest of the registration
                self.client.update("", &found).await.map(drop).map_err(words)
            }
            Err(error) if error.is_not_found() => {
                let mut spec = CSINodeSpec::default();
                change(&mut spec);
                let metadata = ObjectMeta {
                    name: Some(self.node.clone()),
                    owner_references: Some(vec![owner]),
                    annotations: Some([(MIGRATED.to_owned(), migrated)].into()),
                    ..ObjectMeta::default()
                };
                self.client.create("", &CSINode { metadata, spec }).await.map(drop).map_err(words)
            }
            Err(error) => Err(words(error)),
        }
    }
}

/// Tries until it is done; each failure is logged with `what`.
async fn until_done<F: Future<Output = Result<(), String>>>(what: &str, attempt: impl Fn() -> F) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    while let Err(why) = attempt().await {
        tracing::warn!(why, "{what}");
        tokio::time::sleep(backoff.next()).await;
    }
}
