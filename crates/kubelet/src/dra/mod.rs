//! Dynamic Resource Allocation on a node: before a pod begins, the drivers of the devices that its ResourceClaims were given
//! make them ready; once its last container has ended, they take them back.
//!
//! - [`drivers`]: drivers that registered in `plugins_registry` ([`crate::csi`]), and the ResourceSlices of those that went
//!   away. One task per socket follows whether its driver is there and how its devices are.
//! - [`claim`]: which claims a pod has, and which requests its containers.
//! - `prepared`: the claims that are ready, in a file.
//! - `health`: how devices are.
//!
//! A claim that several pods of the node share is prepared for the first, and given back after the last. Calls of drivers
//! may be repeated: drivers answer the same again.
//!
//! Rule: Kubernetes documentation, "Dynamic Resource Allocation"; KEP-4381, "kubelet"; KEP-4680 (health); KEP-5004 (extended
//! resources).

pub mod claim;
pub mod drivers;
mod health;
pub mod messages;
mod prepared;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use client::Client;
use client::metrics::Kind::Gauge;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceHealth, ResourceStatus};
use k8s_openapi::api::resource::v1::ResourceClaim;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::devices::messages::{CdiDevice, ClaimResource, DynamicResource};
use crate::grpc::told;
use crate::managers::Sample;
use crate::metrics;
use drivers::{Driver, Drivers};
use messages::{Claim, NodePrepareResourceResponse, NodeUnprepareResourceResponse};
use prepared::{Book, Prepared, key};

/// The claims of this node's pods.
pub struct ResourceClaims {
    client: Client,
    folder: PathBuf,
    /// Who prepares them.
    pub drivers: Arc<Drivers>,
    book: Mutex<Book>,
    /// One at a time changes a claim.
    locks: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// What a driver answered for each claim: why not, where it could not.
trait Outcome {
    fn error(&self) -> &str;
}

impl Outcome for NodePrepareResourceResponse {
    fn error(&self) -> &str {
        &self.error
    }
}

impl Outcome for NodeUnprepareResourceResponse {
    fn error(&self) -> &str {
        &self.error
    }
}

/// Whether the answers to `call` are those to what was `asked`, and all are good.
fn check<'a, A: Outcome + 'a>(
    call: &str,
    asked: &[Claim],
    answers: impl ExactSizeIterator<Item = (&'a String, &'a A)>,
) -> Result<(), String> {
    let answered = answers.len();
    for (uid, answer) in answers {
        let Some(claim) = asked.iter().find(|claim| claim.uid == *uid) else {
            return Err(format!("{call} returned result for unknown claim UID {uid}"));
        };
        if !answer.error().is_empty() {
            return Err(format!("{call} failed for ResourceClaim {}: {}", claim.name, answer.error()));
        }
    }
    match asked.len() - answered {
        0 => Ok(()),
        missing => Err(format!("{call} skipped {missing} ResourceClaims")),
    }
}

impl ResourceClaims {
    /// Of the kubelet whose folder `root` is, with what an earlier one had prepared. The error is what the kubelet does not
    /// start for.
    pub fn open(client: Client, root: &Path, drivers: Arc<Drivers>) -> Result<Self, String> {
        let book = Book::read(root).map_err(|why| format!("create ResourceClaim cache: {why}"))?;
        let (folder, book) = (root.to_owned(), Mutex::new(book));
        Ok(Self { client, folder, drivers, book, locks: Mutex::default() })
    }

    /// Whether drivers may have something ready for the pod.
    pub fn holds(&self, uid: &str) -> bool {
        self.book.lock().claims.values().any(|claim| claim.pods.contains(uid))
    }

    /// The pods for which drivers may have something ready, by uid.
    pub fn pods(&self) -> BTreeSet<String> {
        self.book.lock().claims.values().flat_map(|claim| claim.pods.iter().cloned()).collect()
    }

    /// Has all devices of the pod's claims made ready that are not. May be called again, and dropped at any time.
    pub async fn prepare(&self, pod: &Pod) -> Result<(), String> {
        if !claim::has_any(pod) {
            return Ok(());
        }
        let begin = Instant::now();
        let done = self.prepare_all(pod).await;
        metrics::DRA_OPERATIONS.time(&[&done.is_err().to_string(), "PrepareResources"], begin.elapsed());
        done.map_err(|why| format!("prepare dynamic resources: {why}"))
    }

    async fn prepare_all(&self, pod: &Pod) -> Result<(), String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        // nothing is noted before all of it may be: a pod that cannot begin is then deleted without a driver
        let mut wanted: BTreeMap<String, Prepared> = BTreeMap::new();
        let mut called: BTreeMap<String, Driver> = BTreeMap::new();
        for (name, own) in claim::names(pod)? {
            let new = self.fetch(pod, name, own).await?;
            for driver in new.drivers.keys() {
                called.insert(driver.clone(), self.drivers.get(driver)?);
            }
            wanted.insert(key(&new.namespace, name), new);
        }
        let _alone = self.lock(wanted.keys()).await;
        let batches = self.note(uid, &wanted)?;
        for (name, claims) in &batches {
            let driver = called.get(name).cloned().map_or_else(|| self.drivers.get(name), Ok)?;
            let answer = driver.prepare(claims.clone()).await;
            let answer = answer.map_err(|status| format!("NodePrepareResources: {}", told(&status)))?;
            check("NodePrepareResources", claims, answer.claims.iter())?;
            let mut book = self.book.lock();
            for claim in book.claims.values_mut() {
                if let Some(answer) = answer.claims.get(&claim.uid) {
                    let devices = answer.devices.iter().cloned().map(Into::into).collect();
                    claim.drivers.insert(name.clone(), devices);
                }
            }
        }
        if batches.is_empty() {
            return Ok(());
        }
        let mut book = self.book.lock();
        for key in wanted.keys() {
            if let Some(claim) = book.claims.get_mut(key) {
                claim.ready = true;
            }
        }
        book.save(&self.folder)
    }

    /// A claim of the pod as the API has it, where it is the pod's to use.
    async fn fetch(&self, pod: &Pod, name: &str, own: bool) -> Result<Prepared, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let found = self.client.get::<ResourceClaim>(namespace, name).await;
        let found = found.map_err(|error| format!("fetch ResourceClaim {name}: {error}"))?;
        claim::check(pod, &found, own)?;
        let allocation = found.status.and_then(|status| status.allocation);
        let allocation = allocation.ok_or_else(|| format!("ResourceClaim {name}: not allocated"))?;
        let results = allocation.devices.and_then(|devices| devices.results).unwrap_or_default();
        Ok(Prepared {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: found.metadata.uid.unwrap_or_default(),
            drivers: results.into_iter().map(|result| (result.driver, Vec::new())).collect(),
            ..Prepared::default()
        })
    }

    /// Writes down that the pod uses these claims, before a driver hears of them. What each driver is to be asked.
    fn note(
        &self,
        uid: &str,
        wanted: &BTreeMap<String, Prepared>,
    ) -> Result<BTreeMap<String, Vec<Claim>>, String> {
        let mut book = self.book.lock();
        for (key, new) in wanted {
            if let Some(old) = book.claims.get(key).filter(|old| old.uid != new.uid) {
                return Err(format!(
                    "old ResourceClaim with same name {} and different UID {} still exists (previous pod force-deleted?!)",
                    new.name, old.uid
                ));
            }
        }
        let (mut batches, mut changed) = (BTreeMap::<String, Vec<Claim>>::new(), false);
        for (key, new) in wanted {
            let claim = book.claims.entry(key.clone()).or_insert_with(|| new.clone());
            changed |= claim.pods.insert(uid.to_owned());
            if claim.ready {
                continue;
            }
            for driver in new.drivers.keys() {
                changed |= !claim.drivers.contains_key(driver);
                claim.drivers.entry(driver.clone()).or_default();
            }
            for driver in claim.drivers.keys() {
                batches.entry(driver.clone()).or_default().push(claim.message());
            }
        }
        if changed {
            book.save(&self.folder)?;
        }
        Ok(batches)
    }

    /// Has what is ready for the pod alone given back. May be called again, and dropped at any time.
    pub async fn unprepare(&self, uid: &str) -> Result<(), String> {
        let keys = self.book.lock().of_pod(uid);
        if keys.is_empty() {
            return Ok(());
        }
        let begin = Instant::now();
        let done = self.unprepare_all(uid, &keys).await;
        metrics::DRA_OPERATIONS.time(&[&done.is_err().to_string(), "UnprepareResources"], begin.elapsed());
        done.map_err(|why| format!("unprepare dynamic resources: {why}"))
    }

    async fn unprepare_all(&self, uid: &str, keys: &BTreeSet<String>) -> Result<(), String> {
        let _alone = self.lock(keys.iter()).await;
        let mut batches: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        let mut last: BTreeSet<String> = BTreeSet::new();
        {
            let mut book = self.book.lock();
            for key in keys {
                let Some(claim) = book.claims.get_mut(key).filter(|claim| claim.pods.contains(uid)) else {
                    continue;
                };
                if claim.pods.len() > 1 {
                    claim.pods.remove(uid);
                    continue;
                }
                // until it is ready again, whatever becomes of the calls
                claim.ready = false;
                last.insert(key.clone());
                for driver in claim.drivers.keys() {
                    batches.entry(driver.clone()).or_default().push(claim.message());
                }
            }
        }
        let mut failed: Option<String> = None;
        let mut kept: BTreeSet<String> = BTreeSet::new();
        for (name, claims) in batches {
            if let Err(why) = self.give_back(&name, &claims).await {
                kept.extend(claims.into_iter().map(|claim| claim.uid));
                failed.get_or_insert(why);
            }
        }
        let mut book = self.book.lock();
        book.claims.retain(|key, claim| !last.contains(key) || kept.contains(&claim.uid));
        book.save(&self.folder)?;
        failed.map_or(Ok(()), Err)
    }

    async fn give_back(&self, name: &str, claims: &[Claim]) -> Result<(), String> {
        let answer = self.drivers.get(name)?.unprepare(claims.to_vec()).await;
        let answer = answer.map_err(|status| format!("NodeUnprepareResources: {}", told(&status)))?;
        check("NodeUnprepareResources", claims, answer.claims.iter())
    }

    /// Nobody else changes these claims meanwhile. In the order of their keys, so that nobody waits in a circle.
    async fn lock(&self, keys: impl Iterator<Item = &String>) -> Vec<OwnedMutexGuard<()>> {
        let mut held = Vec::new();
        for key in keys {
            let lock = {
                let mut locks = self.locks.lock();
                locks.retain(|_, lock| lock.strong_count() > 0);
                let known = locks.get(key).and_then(Weak::upgrade);
                known.unwrap_or_else(|| {
                    let fresh = Arc::default();
                    locks.insert(key.clone(), Arc::downgrade(&fresh));
                    fresh
                })
            };
            held.push(lock.lock_owned().await);
        }
        held
    }

    /// What a container gets of the pod's claims, as CDI names it.
    pub fn cdi_devices(&self, pod: &Pod, container: &Container) -> Result<Vec<String>, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let book = self.book.lock();
        let mut found: Vec<String> = Vec::new();
        for (name, request) in claim::of_container(pod, container)? {
            let claim = book.claims.get(&key(namespace, name)).ok_or_else(|| {
                format!("unable to get claim info for ResourceClaim {name} in namespace {namespace}")
            })?;
            for id in claim.devices(request).flat_map(|(_, device)| &device.cdi) {
                if !found.contains(id) {
                    found.push(id.clone());
                }
            }
        }
        Ok(found)
    }

    /// How the devices are that a container gets by claims.
    pub fn status(&self, pod: &Pod, container: &Container) -> Vec<ResourceStatus> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let book = self.book.lock();
        let mut found = Vec::new();
        for (shown, name, request) in claim::shown(pod, container) {
            let Some(claim) = book.claims.get(&key(namespace, name)) else { continue };
            let mut resources: Vec<ResourceHealth> = Vec::new();
            for (driver, device) in claim.devices(request) {
                let fallback = || format!("{driver}/{}/{}", device.pool, device.device);
                let id = device.cdi.first().cloned().unwrap_or_else(fallback);
                if resources.iter().any(|known| known.resource_id == id) {
                    continue;
                }
                let (health, message) = self.drivers.health(driver, &device.pool, &device.device);
                let health = Some(health.to_owned());
                resources.push(ResourceHealth { health, message, resource_id: id });
            }
            if !resources.is_empty() {
                found.push(ResourceStatus { name: shown, resources: Some(resources) });
            }
        }
        found
    }

    /// What a container has by claims, as the pod resources API has it.
    pub(crate) fn of_container(&self, pod: &Pod, container: &Container) -> Vec<DynamicResource> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in claim::of_container(pod, container).unwrap_or_default() {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let book = self.book.lock();
        let claims = names.into_iter().filter_map(|name| book.claims.get(&key(namespace, name)));
        let shown = |claim: &Prepared| DynamicResource {
            claim_name: claim.name.clone(),
            claim_namespace: claim.namespace.clone(),
            claim_resources: claim
                .devices("")
                .map(|(driver, device)| ClaimResource {
                    cdi_devices: device.cdi.iter().map(|id| CdiDevice { name: id.clone() }).collect(),
                    driver_name: driver.to_owned(),
                    pool_name: device.pool.clone(),
                    device_name: device.device.clone(),
                    share_id: device.share.clone(),
                })
                .collect(),
        };
        claims.map(shown).collect()
    }

    /// For `/metrics`.
    pub fn samples(&self) -> Vec<Sample> {
        let book = self.book.lock();
        let mut counts: BTreeMap<&str, u64> = [("<any>", book.claims.len() as u64)].into();
        for driver in book.claims.values().flat_map(|claim| claim.drivers.keys()) {
            *counts.entry(driver).or_default() += 1;
        }
        let sample = |(driver, value): (&str, u64)| Sample {
            kind: Gauge,
            name: "dra_resource_claims_in_use",
            help: "[ALPHA] The number of ResourceClaims that are currently in use on the node, by driver name (driver_name label value) and across all drivers (special value <any> for driver_name). Note that the sum of all by-driver counts is not the total number of in-use ResourceClaims because the same ResourceClaim might use devices from different drivers. Instead, use the count for the <any> driver_name.",
            labels: vec![("driver_name", driver.to_owned())],
            value,
        };
        counts.into_iter().map(sample).collect()
    }
}
