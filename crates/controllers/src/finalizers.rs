//! Finalizers that controllers hold on objects: put on, taken off, at the revision that was looked at.
use client::{Client, Kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::ownership::namespace;
use crate::runner::Failure;

/// Whether the object has this finalizer.
pub(crate) fn has(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

/// Puts it on; the object may have gone meanwhile.
pub(crate) async fn add<K: Kind>(client: &Client, object: &K, finalizer: &str) -> Result<(), Failure> {
    let mut next = object.clone();
    next.metadata_mut().finalizers.get_or_insert_default().push(finalizer.to_owned());
    write(client, &next).await
}

/// Takes it off; the object may have gone meanwhile.
pub(crate) async fn remove<K: Kind>(client: &Client, object: &K, finalizer: &str) -> Result<(), Failure> {
    let mut next = object.clone();
    if let Some(list) = next.metadata_mut().finalizers.as_mut() {
        list.retain(|f| f != finalizer);
    }
    write(client, &next).await
}

async fn write<K: Kind>(client: &Client, next: &K) -> Result<(), Failure> {
    match client.update(namespace(next.metadata()), next).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}
