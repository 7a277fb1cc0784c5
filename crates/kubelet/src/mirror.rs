//! Static pods as the API shows them: an object for each, made again when somebody deletes it, gone with its pod.

use std::sync::Arc;
use std::time::Duration;

use client::{Cache, Client, DeleteOptions, Error};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::static_pods::{HASH, MIRROR, mirrored};

/// Between tries when the API refuses.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// Keeps the images of `pods` until `stop`; does nothing before they are known. Those that are being deleted keep theirs
/// until they are gone.
pub async fn run(
    client: Client,
    node: String,
    mut pods: watch::Receiver<Option<Vec<Arc<Pod>>>>,
    api: Cache<Pod>,
    stop: CancellationToken,
) {
    api.synced().await;
    let mut changes = api.subscribe();
    let mut backoff = client::queue::Backoff::new(RETRY.0, RETRY.1);
    tokio::select! {
        () = stop.cancelled() => return,
        known = pods.wait_for(Option::is_some) => if known.is_err() { return },
    }
    loop {
        let wanted = pods.borrow_and_update().clone().unwrap_or_default();
        let mut retry = None;
        for error in sync(&client, &node, &wanted, &api).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a static pod's image in the API");
            retry.get_or_insert_with(|| backoff.next());
        }
        if retry.is_none() {
            backoff.reset();
        }
        let pause = async {
            match retry {
                Some(delay) => tokio::time::sleep(delay).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = pods.changed() => if changed.is_err() { return } else { break },
                () = &mut pause => break,
                change = changes.next() => match change {
                    // most changes are those of other pods, and of our own status
                    Some(client::Change::Modified { new, .. })
                        if mirrored(&new).is_none() || new.metadata.deletion_timestamp.is_none() => {}
                    Some(client::Change::Added(pod) | client::Change::Deleted(pod)) if mirrored(&pod).is_none() => {}
                    Some(_) => break,
                    None => return,
                },
            }
        }
    }
}

async fn sync(client: &Client, node: &str, wanted: &[Arc<Pod>], api: &Cache<Pod>) -> Vec<Error> {
    let key = |pod: &Pod| (pod.metadata.namespace.clone(), pod.metadata.name.clone());
    let mut errors = Vec::new();
    for shown in api.list().into_iter().filter(|pod| mirrored(pod).is_some()) {
        let pod = wanted.iter().find(|pod| key(pod) == key(&shown));
        let current = pod.is_some_and(|pod| pod.metadata.uid.as_deref() == mirrored(&shown));
        if current && shown.metadata.deletion_timestamp.is_none() {
            continue;
        }
        let (ns, name) = (shown.metadata.namespace.as_deref(), shown.metadata.name.as_deref());
        let options = DeleteOptions {
            uid: shown.metadata.uid.clone(),
            grace_period_seconds: Some(0),
            ..DeleteOptions::default()
        };
        match client.delete::<Pod>(ns.unwrap_or_default(), name.unwrap_or_default(), &options).await {
            Ok(()) => {}
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => errors.push(error),
        }
    }
    for pod in wanted.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let (ns, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
        if api.get(ns.unwrap_or_default(), name.unwrap_or_default()).is_some() {
            continue;
        }
        match create(client, node, pod).await {
            Ok(()) => {}
            Err(error) if error.is_already_exists() => {}
            Err(error) => errors.push(error),
        }
    }
    errors
}

async fn create(client: &Client, node: &str, pod: &Pod) -> Result<(), Error> {
    let owner: Node = client.get("", node).await?;
    let mut image = pod.clone();
    let meta = &mut image.metadata;
    let hash = meta.annotations.as_ref().and_then(|all| all.get(HASH)).cloned().unwrap_or_default();
    meta.annotations.get_or_insert_default().insert(MIRROR.to_owned(), hash);
    meta.uid = None;
    meta.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid: owner.metadata.uid.unwrap_or_default(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    let ns = image.metadata.namespace.clone().unwrap_or_default();
    client.create(&ns, &image).await.map(drop)
}
