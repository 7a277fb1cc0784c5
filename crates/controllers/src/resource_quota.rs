//! Resource quotas: `status` says what is limited and how much of it the namespace uses.
//!
//! Admission charges what is created; here it is counted anew what deletions and changes set free, what a changed quota
//! limits, and every few minutes what was charged but never stored. What counts is `api::quota`, shared with admission.
//!
//! A charge stands before its object is stored, so that a count in between would miss the object: a quota is counted when its
//! status has been quiet for a moment, and written at the revision it was counted for only.
//!
//! Tasks: one per kind that some quota counts; they end when no quota counts the kind any more.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::kinds::{self, Kind};
use api::object::{Object, ObjectError};
use api::quantity::{Format, Quantity};
use api::quota;
use api::resources::{self, Amounts};
use client::queue::WorkQueue;
use client::{Cache, Cached, Change, PartialObject};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::api::resource::v1::DeviceClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::discovery;
use crate::ownership::{name, namespace};
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};

/// How often all is counted anew; upstream's.
const RESYNC: Duration = Duration::from_secs(5 * 60);
/// A charged object is stored well before this long after its charge.
const QUIET: Duration = Duration::from_millis(250);
/// A quota that is never quiet is counted all the same.
const LONGEST: Duration = Duration::from_secs(5);
/// Kinds of which more than the number is counted.
const MEASURED: [(&str, &str); 4] =
    [("", "pods"), ("", "services"), ("", "persistentvolumeclaims"), ("resource.k8s.io", "resourceclaims")];

/// A stored object as it is: what it uses is counted on its tree, which is not kept.
#[derive(Clone)]
struct Whole(Arc<Object>);

impl Cached for Whole {
    fn view(object: &Arc<Object>) -> Result<Arc<Self>, ObjectError> {
        Ok(Arc::new(Self(object.clone())))
    }
}

/// A kind that some quota counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Counted {
    group: String,
    version: String,
    plural: String,
}

impl Counted {
    fn of(kind: &Kind) -> Self {
        Self { group: kind.group.clone(), version: kind.version.clone(), plural: kind.plural.clone() }
    }

    /// The row of a built-in kind; a custom resource has none.
    fn kind(&self) -> Option<&'static Arc<Kind>> {
        kinds::find(&self.group, &self.version, &self.plural)
    }

    /// `plural.group`.
    fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    fn tracks(&self, resource: &str) -> bool {
        match self.kind() {
            Some(kind) => quota::tracks(kind, resource),
            None => resource.strip_prefix("count/").is_some_and(|counted| counted == self.resource()),
        }
    }

    fn is_measured(&self) -> bool {
        MEASURED.contains(&(self.group.as_str(), self.plural.as_str()))
    }
}

#[derive(Clone)]
enum Objects {
    Measured(&'static Arc<Kind>, Cache<Whole>),
    Numbered(Cache<PartialObject>),
}

/// A kind's objects and the task that tells of their changes; it ends when this is dropped.
struct Feed(Objects, JoinHandle<()>);

impl Drop for Feed {
    fn drop(&mut self) {
        self.1.abort();
    }
}

/// When a quota's status began to change, and when it last did.
struct Noise {
    first: Instant,
    last: Instant,
}

struct Controller {
    context: Context,
    queue: WorkQueue<ObjectKey>,
    quotas: Cache<ResourceQuota>,
    classes: Cache<DeviceClass>,
    feeds: Mutex<HashMap<Counted, Feed>>,
    noise: Mutex<HashMap<ObjectKey, Noise>>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (quotas, classes) = (caches.of::<ResourceQuota>(), caches.of::<DeviceClass>());
    let definitions = caches.metadata("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let queue = WorkQueue::new();
    let controller = Controller {
        context: context.clone(),
        queue: queue.clone(),
        quotas: quotas.clone(),
        classes: classes.clone(),
        feeds: Mutex::default(),
        noise: Mutex::default(),
    };
    Runner::with_queue(&context, controller, queue)
        .on(&quotas, |c: &Controller, change| match change {
            Change::Modified { old, new } => {
                if old.status != new.status {
                    c.note(ObjectKey::of(&new.metadata));
                }
                // A status that admission charged is none of our business.
                (old.spec != new.spec || !is_current(new)).then(|| ObjectKey::of(&new.metadata))
            }
            change => Some(ObjectKey::of(&change.object().metadata)),
        })
        .on(&classes, |c: &Controller, change| {
            let extended = |class: &DeviceClass| class.spec.extended_resource_name.clone();
            let changed = match change {
                Change::Modified { old, new } => extended(old) != extended(new),
                change => extended(change.object()).is_some(),
            };
            if changed { keys(&c.quotas.list(), |_| true) } else { Vec::new() }
        })
        .on(&definitions, |c: &Controller, change| {
            let defined = name(&change.object().metadata);
            if matches!(change, Change::Deleted(_)) {
                c.feeds.lock().retain(|kind, _| kind.resource() != defined);
            }
            keys(&c.quotas.list(), |q| hard(q).contains_key(&format!("count/{defined}")))
        })
        .run(4)
        .await;
}

fn keys(quotas: &[Arc<ResourceQuota>], wanted: impl Fn(&ResourceQuota) -> bool) -> Vec<ObjectKey> {
    quotas.iter().filter(|q| wanted(q)).map(|q| ObjectKey::of(&q.metadata)).collect()
}

static NOTHING: BTreeMap<String, Text> = BTreeMap::new();

fn hard(quota: &ResourceQuota) -> &BTreeMap<String, Text> {
    quota.spec.as_ref().and_then(|s| s.hard.as_ref()).unwrap_or(&NOTHING)
}

/// Whether the status says what the spec limits.
fn is_current(quota: &ResourceQuota) -> bool {
    let said = quota.status.as_ref().and_then(|s| s.hard.as_ref()).unwrap_or(&NOTHING);
    same(said, hard(quota))
}

/// Whether two lists mean the same amounts.
fn same(a: &BTreeMap<String, Text>, b: &BTreeMap<String, Text>) -> bool {
    resources::amounts(&json!(a)) == resources::amounts(&json!(b))
}

impl Controller {
    /// The status of a quota changed just now.
    fn note(&self, key: ObjectKey) {
        let now = Instant::now();
        let mut all = self.noise.lock();
        let noise = all.entry(key).or_insert(Noise { first: now, last: now });
        if now.duration_since(noise.last) >= QUIET {
            noise.first = now;
        }
        noise.last = now;
    }

    /// How long to wait before a count means something.
    fn unquiet(&self, key: &ObjectKey) -> Option<Duration> {
        let mut all = self.noise.lock();
        let noise = all.get(key)?;
        let left =
            QUIET.saturating_sub(noise.last.elapsed()).min(LONGEST.saturating_sub(noise.first.elapsed()));
        if left.is_zero() {
            all.remove(key);
            return None;
        }
        Some(left)
    }

    /// Watches every kind that the quota counts, and waits until their objects are known.
    async fn follow(&self, quota: &ResourceQuota) -> Result<(), Failure> {
        let mut served = None;
        for resource in hard(quota).keys() {
            let mut wanted = builtin(resource);
            let known = || self.feeds.lock().keys().any(|kind| kind.tracks(resource));
            if wanted.is_empty()
                && let Some(custom) = resource.strip_prefix("count/")
                && !known()
            {
                let list = match &mut served {
                    Some(list) => list,
                    none => none.insert(discovery::kinds(&self.context.client).await?.0),
                };
                wanted.extend(
                    list.iter()
                        .filter(|s| {
                            s.namespaced && s.qualified() == custom && s.can("list") && s.can("watch")
                        })
                        .map(|s| Counted {
                            group: s.group.clone(),
                            version: s.version.clone(),
                            plural: s.plural.clone(),
                        }),
                );
            }
            for kind in wanted {
                if !self.feeds.lock().contains_key(&kind) {
                    self.feed(kind).await?;
                }
            }
        }
        Ok(())
    }

    async fn feed(&self, counted: Counted) -> Result<(), Failure> {
        let caches = self.context.reader.caches();
        let (quotas, queue) = (self.quotas.clone(), self.queue.clone());
        let look = move |ns: &str| keys(&quotas.list_ns(ns), |_| true).into_iter().for_each(|k| queue.add(k));
        let feed = match counted.kind().filter(|_| counted.is_measured()) {
            Some(kind) => {
                let cache = caches.select::<Whole>(client::Selection {
                    group: counted.group.clone(),
                    version: counted.version.clone(),
                    plural: counted.plural.clone(),
                    namespace: String::new(),
                    field_selector: String::new(),
                    label_selector: String::new(),
                });
                synced(&cache, &counted).await?;
                let (mut changes, quotas) = (cache.subscribe(), self.quotas.clone());
                // What is there is counted by the pass that called.
                while changes.try_next().is_some() {}
                let task = tokio::spawn(async move {
                    while let Some(change) = changes.next().await {
                        let ns = change.object().0.namespace().unwrap_or_default();
                        if !quotas.list_ns(ns).is_empty() && matters(kind, &change) {
                            look(ns);
                        }
                    }
                });
                Feed(Objects::Measured(kind, cache), task)
            }
            None => {
                let cache = caches.metadata(&counted.group, &counted.version, &counted.plural);
                synced(&cache, &counted).await?;
                let mut changes = cache.subscribe();
                while changes.try_next().is_some() {}
                let task = tokio::spawn(async move {
                    while let Some(change) = changes.next().await {
                        if !matches!(change, Change::Modified { .. }) {
                            look(namespace(&change.object().metadata));
                        }
                    }
                });
                Feed(Objects::Numbered(cache), task)
            }
        };
        self.feeds.lock().insert(counted, feed);
        Ok(())
    }

    /// Stops watching kinds that no quota counts.
    fn prune(&self) {
        let quotas = self.quotas.list();
        let wanted: HashSet<&String> = quotas.iter().flat_map(|q| hard(q).keys()).collect();
        self.feeds.lock().retain(|kind, _| wanted.iter().any(|resource| kind.tracks(resource)));
    }

    /// What the quota's namespace uses of what it limits. A resource that nobody counts is left out.
    fn count(&self, quota: &ResourceQuota, now: Timestamp) -> Result<Amounts, Failure> {
        let ns = namespace(&quota.metadata);
        let tree = serde_json::to_value(quota).map_err(|e| Failure::Invalid(e.to_string()))?;
        let is_scoped = !quota::selectors(&tree).is_empty();
        let feeds: Vec<(Counted, Objects)> =
            self.feeds.lock().iter().map(|(kind, feed)| (kind.clone(), feed.0.clone())).collect();
        let extended = |class: &str| self.classes.get("", class)?.spec.extended_resource_name.clone();
        let mut used = Amounts::new();
        for (kind, objects) in feeds {
            let tracked: Vec<&String> = hard(quota).keys().filter(|r| kind.tracks(r)).collect();
            if tracked.is_empty() {
                continue;
            }
            let mut sum: Amounts = tracked.iter().map(|r| ((*r).clone(), Quantity::ZERO)).collect();
            match objects {
                Objects::Numbered(_) if is_scoped => {}
                Objects::Numbered(cache) => {
                    let number = i64::try_from(cache.list_ns(ns).len()).unwrap_or(i64::MAX);
                    sum.values_mut().for_each(|v| *v = Quantity::from_value(number, Format::DecimalSi));
                }
                Objects::Measured(kind, cache) => {
                    for object in cache.list_ns(ns) {
                        let object = object.0.to_value();
                        if quota::is_in_scopes(&tree, kind, &object) {
                            let mut own = quota::usage(kind, &object, now, &extended);
                            own.retain(|resource, _| sum.contains_key(resource));
                            resources::add(&mut sum, &own);
                        }
                    }
                }
            }
            resources::add(&mut used, &sum);
        }
        Ok(used)
    }
}

async fn synced<V: Cached>(cache: &Cache<V>, kind: &Counted) -> Result<(), Failure> {
    tokio::time::timeout(Duration::from_secs(30), cache.synced())
        .await
        .map_err(|_| Failure::Invalid(format!("{} cannot be listed to be counted", kind.resource())))
}

/// The built-in kinds whose objects can use a resource, each in one version.
fn builtin(resource: &str) -> Vec<Counted> {
    let mut found: Vec<Counted> = Vec::new();
    for kind in kinds::all().iter().filter(|k| quota::tracks(k, resource)) {
        if !found.iter().any(|f| f.group == kind.group && f.plural == kind.plural) {
            found.push(Counted::of(kind));
        }
    }
    found
}

/// Whether a change of an object can change what a quota counts.
fn matters(kind: &Kind, change: &Change<Whole>) -> bool {
    let Change::Modified { old, new } = change else { return true };
    let (old, new): (Value, Value) = (old.0.to_value(), new.0.to_value());
    // Names of classes do not change with an object: any of them will do to compare.
    let used = |o: &Value| quota::usage(kind, o, Timestamp::now(), &|class| Some(class.to_owned()));
    let is_claim = kind.plural == "persistentvolumeclaims";
    old["spec"] != new["spec"] || used(&old) != used(&new) || is_claim && old["status"] != new["status"]
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(quota) = self.quotas.get(&key.namespace, &key.name) else {
            self.noise.lock().remove(key);
            self.prune();
            return Ok(Outcome::Settled);
        };
        self.follow(&quota).await?;
        if let Some(wait) = self.unquiet(key) {
            return Ok(Outcome::After(wait));
        }
        // The quota as it was when the count began: a charge meanwhile makes the write fail.
        let Some(quota) = self.quotas.get(&key.namespace, &key.name) else { return Ok(Outcome::Retry) };
        let counted = self.count(&quota, self.context.clock.now())?;
        let said = quota.status.as_ref().and_then(|s| s.used.clone()).unwrap_or_default();
        let mut used = said.clone();
        used.extend(counted.into_iter().map(|(resource, amount)| (resource, Text(amount.to_string()))));
        used.retain(|resource, _| hard(&quota).contains_key(resource));
        if !is_current(&quota) || !same(&said, &used) {
            let mut next = (*quota).clone();
            let status = next.status.get_or_insert_default();
            status.hard = Some(hard(&quota).clone());
            status.used = Some(used);
            match self.context.client.update_status(&key.namespace, &next).await {
                Ok(_) => {}
                Err(e) if e.is_not_found() => return Ok(Outcome::Settled),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Outcome::After(RESYNC))
    }
}
