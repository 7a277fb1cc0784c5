//! The watches behind [`Volumes`], as one stream.
use client::{Change, Changes, Client};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};

use super::Volumes;

/// One change of anything about volumes.
pub(crate) enum StorageChange {
    Claim(Change<PersistentVolumeClaim>),
    Volume(Change<PersistentVolume>),
    Class(Change<StorageClass>),
    CsiNode(Change<CSINode>),
    Driver(Change<CSIDriver>),
    Capacity(Change<CSIStorageCapacity>),
    Attachment(Change<VolumeAttachment>),
}

impl StorageChange {
    /// Brings it into the tables.
    pub(crate) fn apply(&self, to: &mut Volumes) {
        match self {
            Self::Claim(change) => to.claims.apply(change),
            Self::Volume(change) => to.volumes.apply(change),
            Self::Class(change) => to.classes.apply(change),
            Self::CsiNode(change) => to.csi_nodes.apply(change),
            Self::Driver(change) => to.drivers.apply(change),
            Self::Capacity(change) => to.capacities.apply(change),
            Self::Attachment(change) => to.attachments.apply(change),
        }
    }
}

pub(crate) struct Feeds {
    claims: Changes<PersistentVolumeClaim>,
    volumes: Changes<PersistentVolume>,
    classes: Changes<StorageClass>,
    csi_nodes: Changes<CSINode>,
    drivers: Changes<CSIDriver>,
    capacities: Changes<CSIStorageCapacity>,
    attachments: Changes<VolumeAttachment>,
}

impl Feeds {
    /// Subscribes once everything is known.
    pub(crate) async fn synced(client: &Client) -> Self {
        let c = client.caches();
        let (claims, volumes, classes, csi_nodes) = (c.of(), c.of(), c.of(), c.of());
        let (drivers, capacities, attachments) = (c.of(), c.of(), c.of());
        tokio::join!(
            claims.synced(),
            volumes.synced(),
            classes.synced(),
            csi_nodes.synced(),
            drivers.synced(),
            capacities.synced(),
            attachments.synced()
        );
        Self {
            claims: claims.subscribe(),
            volumes: volumes.subscribe(),
            classes: classes.subscribe(),
            csi_nodes: csi_nodes.subscribe(),
            drivers: drivers.subscribe(),
            capacities: capacities.subscribe(),
            attachments: attachments.subscribe(),
        }
    }

    /// A change that waits already.
    pub(crate) fn try_next(&mut self) -> Option<StorageChange> {
        // What others refer to comes first.
        None.or_else(|| self.classes.try_next().map(StorageChange::Class))
            .or_else(|| self.drivers.try_next().map(StorageChange::Driver))
            .or_else(|| self.csi_nodes.try_next().map(StorageChange::CsiNode))
            .or_else(|| self.capacities.try_next().map(StorageChange::Capacity))
            .or_else(|| self.attachments.try_next().map(StorageChange::Attachment))
            .or_else(|| self.volumes.try_next().map(StorageChange::Volume))
            .or_else(|| self.claims.try_next().map(StorageChange::Claim))
    }

    /// The next change; `None`: a watch ended. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Option<StorageChange> {
        tokio::select! {
            change = self.claims.next() => change.map(StorageChange::Claim),
            change = self.volumes.next() => change.map(StorageChange::Volume),
            change = self.classes.next() => change.map(StorageChange::Class),
            change = self.csi_nodes.next() => change.map(StorageChange::CsiNode),
            change = self.drivers.next() => change.map(StorageChange::Driver),
            change = self.capacities.next() => change.map(StorageChange::Capacity),
            change = self.attachments.next() => change.map(StorageChange::Attachment),
        }
    }
}
