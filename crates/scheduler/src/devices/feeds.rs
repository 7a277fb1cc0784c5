//! The watches behind [`super::Devices`], as one stream.
use client::{Change, Changes, Client};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::resource::v1beta2::DeviceTaintRule;

use crate::engine::next_of;

/// One change of anything about devices.
pub(crate) enum DeviceChange {
    Claim(Change<ResourceClaim>),
    Class(Change<DeviceClass>),
    Slice(Change<ResourceSlice>),
    TaintRule(Change<DeviceTaintRule>),
}

pub(crate) struct Feeds {
    claims: Changes<ResourceClaim>,
    classes: Changes<DeviceClass>,
    slices: Changes<ResourceSlice>,
    /// `None`: the API has none.
    taint_rules: Option<Changes<DeviceTaintRule>>,
}

impl Feeds {
    /// Subscribes once everything is known.
    pub(crate) async fn synced(client: &Client, with_rules: bool) -> Self {
        let c = client.caches();
        let (claims, classes, slices) = (c.of(), c.of(), c.of());
        tokio::join!(claims.synced(), classes.synced(), slices.synced());
        let mut taint_rules = None;
        if with_rules {
            let rules = c.of();
            rules.synced().await;
            taint_rules = Some(rules.subscribe());
        }
        let (claims, classes, slices) = (claims.subscribe(), classes.subscribe(), slices.subscribe());
        Self { claims, classes, slices, taint_rules }
    }

    /// A change that waits already.
    pub(crate) fn try_next(&mut self) -> Option<DeviceChange> {
        // What others refer to comes first.
        let rule = self.taint_rules.as_mut().and_then(Changes::try_next).map(DeviceChange::TaintRule);
        rule.or_else(|| self.slices.try_next().map(DeviceChange::Slice))
            .or_else(|| self.classes.try_next().map(DeviceChange::Class))
            .or_else(|| self.claims.try_next().map(DeviceChange::Claim))
    }

    /// The next change; `None`: a watch ended. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Option<DeviceChange> {
        tokio::select! {
            change = self.claims.next() => change.map(DeviceChange::Claim),
            change = self.classes.next() => change.map(DeviceChange::Class),
            change = self.slices.next() => change.map(DeviceChange::Slice),
            change = next_of(&mut self.taint_rules) => change.map(DeviceChange::TaintRule),
        }
    }
}
