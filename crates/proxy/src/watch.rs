//! The only part that knows the API: caches in, table and IPVS out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::events::Recorder;
use client::traffic::{ServiceView, SliceView, SlicesByService};
use client::{Change, Client};
use k8s_openapi::api::core::v1::Node;
use network::address_changes;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::apply::{ApplyError, Table};
use crate::health::{self, Health, HealthChecks};
use crate::ipvs::UPKEEP;
use crate::plan::{Dirty, Here, Planner, ServiceKey, plan_service};

/// The label with a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What is known of the API's objects, by service.
#[derive(Default)]
struct Known {
    services: HashMap<ServiceKey, Arc<ServiceView>>,
    slices: SlicesByService,
    touched: BTreeSet<ServiceKey>,
    /// This node's zone.
    zone: Option<String>,
    health: Arc<Health>,
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

    fn node(&mut self, change: Change<Node>) {
        self.health.node(change.object());
        let labels = change.object().metadata.labels.as_ref();
        let zone = labels.and_then(|l| l.get(ZONE)).cloned();
        let zone = if matches!(change, Change::Deleted(_)) { None } else { zone };
        if zone != self.zone {
            self.zone = zone;
            self.touched.extend(self.services.keys().cloned());
        }
    }

    fn replan(&mut self, planner: &mut Planner, node: &str) -> Dirty {
        let here = Here { node, zone: self.zone.as_deref() };
        let mut dirty = Dirty::default();
        for key in std::mem::take(&mut self.touched) {
            let plan =
                self.services.get(&key).map(|service| plan_service(service, self.slices.of(&key), here));
            planner.update(&key, plan, &mut dirty);
        }
        dirty
    }
}

/// Keeps the node's service table as the API says, until `stop`. The table stays as it is when this ends, so
/// that services go on working while the process restarts.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> Result<(), ApplyError> {
    let started = Instant::now();
    let (services, slices) = (client.caches().services(), client.caches().endpoint_slices());
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = async { tokio::join!(services.synced(), slices.synced()); } => {}
    }
    let mut service_changes = services.subscribe();
    let mut slice_changes = slices.subscribe();
    // not waited for: where the node stands may be learned later
    let own = client.caches().of_selected::<Node>(&format!("metadata.name={}", config.node_name));
    let mut node_changes = own.subscribe();
    let mut planner = Planner::new(config.node_local.clone());
    let mut known = Known::default();
    let mut table = Table::open(config.clone()).await?;
    let recorder = Recorder::new(client.clone(), "kube-proxy", &config.node_name);
    let mut checks =
        HealthChecks::new(table.place().clone(), &config.node_name, known.health.clone(), recorder);
    // ends with this task, whatever ends it
    let end = stop.child_token();
    let _ends = end.clone().drop_guard();
    if let Some(addr) = config.healthz {
        tokio::spawn(health::serve(table.place().clone(), addr, known.health.clone(), end));
    }
    let mut removals = None;
    // the maps follow the node's addresses by themselves
    let by_ipvs = config.ipvs.is_some();
    let mut addresses = address_changes(table.place()).await.map_err(ApplyError::Addresses)?;
    let mut upkeep = tokio::time::interval(UPKEEP);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut whole = true;
    let mut retry = FIRST_RETRY;
    loop {
        while let Some(change) = service_changes.try_next() {
            known.service(change);
        }
        while let Some(change) = slice_changes.try_next() {
            known.slice(change);
        }
        while let Some(change) = node_changes.try_next() {
            known.node(change);
        }
        let dirty = known.replan(&mut planner, &config.node_name);
        if whole || dirty != Dirty::default() {
            known.health.queued();
        }
        let about = |key: &ServiceKey| (key.clone(), planner.health(key), known.services.get(key).cloned());
        checks.apply(dirty.health.iter().map(about).collect()).await;
        let done = if whole {
            table.apply_all(&planner, |_| ()).await
        } else if dirty != Dirty::default() {
            table.apply(&planner, &dirty).await.map(drop)
        } else {
            Ok(())
        };
        match done {
            Ok(()) => {
                if whole {
                    let took_ms = started.elapsed().as_millis();
                    tracing::info!(
                        frontends = table.programmed().services(),
                        took_ms,
                        "service table in sync"
                    );
                }
                (whole, retry) = (false, FIRST_RETRY);
                known.health.updated();
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    ?retry,
                    "service table not in sync"
                );
                if !pause(&mut retry, &stop).await || !reread(&mut table, &mut retry, &stop).await {
                    return Ok(());
                }
                whole = true;
                continue;
            }
        }
        let removals = match &mut removals {
            Some(removals) => removals,
            // not before: all that the first sync adds would be told too
            none => {
                let removals = none.insert(table.removals().await?);
                if !table.stands().await.unwrap_or(false) {
                    if !reread(&mut table, &mut retry, &stop).await {
                        return Ok(());
                    }
                    whole = true;
                    continue;
                }
                removals
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            change = service_changes.next() => match change {
                Some(change) => known.service(change),
                None => return Ok(()),
            },
            change = slice_changes.next() => match change {
                Some(change) => known.slice(change),
                None => return Ok(()),
            },
            change = node_changes.next() => match change {
                Some(change) => known.node(change),
                None => return Ok(()),
            },
            changed = addresses.next(), if by_ipvs => {
                let followed = match changed {
                    Ok(()) => table.follow_addresses(&planner).await,
                    Err(error) => Err(ApplyError::Addresses(error)),
                };
                if let Err(error) = followed {
                    tracing::error!(error = &error as &dyn std::error::Error, "node ports may be served elsewhere");
                    whole = true;
                    if !pause(&mut retry, &stop).await || !reread(&mut table, &mut retry, &stop).await {
                        return Ok(());
                    }
                }
            }
            _ = upkeep.tick(), if by_ipvs => {
                let kept = table.upkeep().await;
                match &kept {
                    Ok(true) => continue,
                    Ok(false) => tracing::warn!("someone changed the services of IPVS; putting them back"),
                    Err(error) => {
                        tracing::error!(error = error as &dyn std::error::Error, "cannot look after IPVS");
                        if !pause(&mut retry, &stop).await {
                            return Ok(());
                        }
                    }
                }
                whole = true;
                if !reread(&mut table, &mut retry, &stop).await {
                    return Ok(());
                }
            }
            gone = removals.next() => {
                if let Err(error) = &gone {
                    tracing::error!(error = error as &dyn std::error::Error, "cannot listen for the table's removal");
                    if !pause(&mut retry, &stop).await {
                        return Ok(());
                    }
                }
                if table.stands().await.unwrap_or(false) {
                    continue;
                }
                tracing::warn!("someone removed the service table; putting it back");
                if !reread(&mut table, &mut retry, &stop).await {
                    return Ok(());
                }
                whole = true;
            }
        }
    }
}

/// Reads the table until that succeeds: planning on without knowing what the kernel holds would only fail again.
/// `false` when told to stop.
async fn reread(table: &mut Table, retry: &mut Duration, stop: &CancellationToken) -> bool {
    loop {
        let Err(error) = table.resync().await else { return true };
        tracing::error!(error = &error as &dyn std::error::Error, ?retry, "cannot read the service table");
        if !pause(retry, stop).await {
            return false;
        }
    }
}

/// Waits, the next time longer; `false` when told to stop.
async fn pause(retry: &mut Duration, stop: &CancellationToken) -> bool {
    let wait = std::mem::replace(retry, (*retry * 2).min(LAST_RETRY));
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(wait) => true,
    }
}
