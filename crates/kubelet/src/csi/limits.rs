//! How many of a driver's volumes the node can have, asked anew as often as the driver's object says, and when the cluster found that it
//! was fewer.
//!
//! Rule: Kubernetes documentation, "Node-specific Volume Limits"; KEP-4876 (`nodeAllocatableUpdatePeriodSeconds`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::Cache;
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeError, VolumeNodeResources};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Registry;
use super::driver::told;

/// The error code of an attachment for which a node has no room (gRPC's RESOURCE_EXHAUSTED).
const EXHAUSTED: i32 = 8;

/// The API bounds periods below only; a clock cannot hold all of them.
const LONGEST: u64 = 365 * 24 * 3600;

/// How often a driver is asked.
fn period(object: &CSIDriver) -> Option<Duration> {
    let seconds = u64::try_from(object.spec.node_allocatable_update_period_seconds?).ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds.min(LONGEST)))
}

impl Registry {
    /// Asks drivers as often as their objects say, until `stop`.
    pub async fn follow_limits(self: Arc<Self>, objects: Cache<CSIDriver>, stop: CancellationToken) {
        let mut changes = objects.subscribe();
        let mut drivers = self.drivers.subscribe();
        let mut due: BTreeMap<String, (Duration, Instant)> = BTreeMap::new();
        loop {
            let known: Vec<String> = drivers.borrow_and_update().keys().cloned().collect();
            let wanted = known.into_iter().filter_map(|name| {
                let object = objects.get("", &name)?;
                let period = period(&object)?;
                Some((name, period))
            });
            due = wanted
                .map(|(name, period)| {
                    let before = due.get(&name).filter(|(known, _)| *known == period);
                    let at = before.map_or_else(|| Instant::now() + period, |(_, at)| *at);
                    (name, (period, at))
                })
                .collect();
            let next = due.values().map(|(_, at)| *at).min();
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.next() => if changed.is_none() {
                    return;
                },
                changed = drivers.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    let now = Instant::now();
                    for (name, (period, at)) in due.iter_mut().filter(|(_, (_, at))| *at <= now) {
                        *at = now + *period;
                        self.ask_limit(name).await;
                    }
                }
            }
        }
    }

    /// The cluster could not attach a volume of that driver: whether it was for want of room. The driver is asked at once then, if
    /// it is asked at all.
    pub async fn is_full(&self, objects: &Cache<CSIDriver>, name: &str, error: &VolumeError) -> bool {
        let asked = objects.get("", name).is_some_and(|object| period(&object).is_some());
        let full = asked && error.error_code == Some(EXHAUSTED);
        if full {
            self.ask_limit(name).await;
        }
        full
    }

    async fn ask_limit(&self, name: &str) {
        let Some(driver) = self.known(name) else { return };
        let told_it = match driver.plugin.node_info().await {
            Ok(info) => self.tell_limit(name, info.max_volumes_per_node).await,
            Err(status) => Err(told(&status)),
        };
        if let Err(why) = told_it {
            tracing::warn!(why, driver = name, "how many volumes the node can have is not told anew");
        }
    }

    async fn tell_limit(&self, name: &str, most: i64) -> Result<(), String> {
        let count = i32::try_from(most).ok().filter(|count| *count > 0);
        self.change(|spec| {
            for driver in spec.drivers.iter_mut().filter(|driver| driver.name == name) {
                driver.allocatable = count.map(|count| VolumeNodeResources { count: Some(count) });
            }
        })
        .await
    }
}
