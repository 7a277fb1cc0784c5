//! What all controllers share: caches map changes to keys, a queue holds the keys, workers reconcile them.
use std::fmt::Debug;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use client::events::Recorder;
use client::queue::WorkQueue;
use client::{Cache, Cached, Change, Client};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Counters, Ended, Metrics};
use crate::{Clock, Config};

/// What a controller is given.
#[derive(Clone)]
pub(crate) struct Context {
    /// Its name.
    pub(crate) name: &'static str,
    /// Writes, with the controller's own identity.
    pub(crate) client: Client,
    /// Whose caches are read: shared by all controllers of the process.
    pub(crate) reader: Client,
    pub(crate) recorder: Recorder,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) stop: CancellationToken,
    metrics: Arc<Metrics>,
}

impl Context {
    pub(crate) fn new(name: &'static str, reader: &Client, config: &Config, stop: CancellationToken) -> Self {
        let client = config.client_for.as_ref().map_or_else(|| reader.clone(), |make| make(name));
        Self {
            name,
            recorder: Recorder::new(client.clone(), event_source(name), ""),
            client,
            reader: reader.clone(),
            clock: config.clock.clone(),
            stop,
            metrics: config.metrics.clone(),
        }
    }
}

/// How events name a controller: where that is not its own name, as they always did.
fn event_source(name: &'static str) -> &'static str {
    match name {
        "device-taint-eviction-controller" => "device-taint-eviction",
        "disruption-controller" => "controllermanager",
        "endpointslice-controller" => "endpoint-slice-controller",
        "endpointslicemirroring-controller" => "endpoint-slice-mirroring-controller",
        "ephemeral-volume-controller" => "ephemeral_volume",
        "expand-controller" => "volume_expand",
        "generic-garbage-collector" => "garbage-collector-controller",
        "node-ipam-controller" => "cidrAllocator",
        "persistent-volume-binder" => "persistentvolume-controller",
        "resource-claim-controller" => "resource_claim",
        "service-cidrs-controller" => "service-cidr-controller",
        name => name,
    }
}

/// A namespaced object; the namespace is empty for cluster scope.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl ObjectKey {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(crate) fn of(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Self {
        Self::new(crate::ownership::namespace(meta), crate::ownership::name(meta))
    }
}

/// How a pass ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing to do until something changes.
    Settled,
    /// Look again after this long: something depends on time.
    After(Duration),
    /// Not settled and no event will tell: look again after the key's back-off.
    Retry,
}

impl From<Option<Duration>> for Outcome {
    fn from(wait: Option<Duration>) -> Self {
        wait.map_or(Outcome::Settled, Outcome::After)
    }
}

/// Why a pass failed; the key goes back to the queue with its back-off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the API refused")]
    Api(#[from] client::Error),
    #[error("{0}")]
    Invalid(String),
}

impl Failure {
    /// What events and conditions say of it.
    pub(crate) fn text(&self) -> String {
        match self {
            Failure::Api(error) => error.to_string(),
            Failure::Invalid(why) => why.clone(),
        }
    }

    /// A race with another writer: expected, and not worth a warning.
    fn is_race(&self) -> bool {
        matches!(self, Failure::Api(e) if e.is_conflict() || e.is_not_found() || e.is_already_exists())
    }
}

/// One controller: `reconcile` is idempotent and takes nothing but a key.
pub(crate) trait Reconcile: Send + Sync + 'static {
    type Key: Clone + Eq + Hash + Debug + Send + Sync + 'static;

    fn reconcile(&self, key: &Self::Key) -> impl Future<Output = Result<Outcome, Failure>> + Send;
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Listens from the call on.
type Source = Box<dyn FnOnce() -> Task + Send>;

/// A controller being put together.
pub(crate) struct Runner<C: Reconcile> {
    controller: Arc<C>,
    queue: WorkQueue<C::Key>,
    syncs: Vec<Task>,
    sources: Vec<Source>,
    name: &'static str,
    stop: CancellationToken,
    counters: Counters,
    jumps: Option<watch::Receiver<u64>>,
}

impl<C: Reconcile> Runner<C> {
    pub(crate) fn new(context: &Context, controller: C) -> Self {
        Self::with_queue(context, controller, WorkQueue::new())
    }

    pub(crate) fn with_queue(context: &Context, controller: C, queue: WorkQueue<C::Key>) -> Self {
        let shown = queue.clone();
        context.metrics.watch(context.name, move || shown.stats());
        Self {
            controller: Arc::new(controller),
            queue,
            syncs: Vec::new(),
            sources: Vec::new(),
            name: context.name,
            stop: context.stop.clone(),
            counters: context.metrics.of(context.name),
            jumps: context.clock.jumps(),
        }
    }

    /// Waits for this cache too before the first pass, without listening to its changes.
    pub(crate) fn needs<V: Cached>(mut self, cache: &Cache<V>) -> Self {
        let cache = cache.clone();
        self.syncs.push(Box::pin(async move { cache.synced().await }));
        self
    }

    /// Looks at the keys that `map` names whenever `cache` changes.
    pub(crate) fn on<V: Cached, I: IntoIterator<Item = C::Key>>(
        mut self,
        cache: &Cache<V>,
        map: impl Fn(&C, &Change<V>) -> I + Send + 'static,
    ) -> Self {
        let (source, controller, queue) = (cache.clone(), self.controller.clone(), self.queue.clone());
        self.sources.push(Box::new(move || {
            let mut changes = source.subscribe_closely();
            Box::pin(async move {
                while let Some(change) = changes.next().await {
                    map(&controller, &change).into_iter().for_each(|key| queue.add(key));
                }
            })
        }));
        self.needs(cache)
    }

    /// Runs until the context's stop token: at most `workers` passes at a time.
    pub(crate) async fn run(self, workers: usize) {
        let Self { controller, queue, syncs, mut sources, name, stop, counters, jumps } = self;
        if let Some(mut jumps) = jumps {
            let queue = queue.clone();
            sources.push(Box::new(move || {
                Box::pin(async move {
                    while jumps.changed().await.is_ok() {
                        queue.hurry();
                    }
                })
            }));
        }
        let synced = async {
            for sync in syncs {
                sync.await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = synced => {}
        }
        // All listen before the first pass looks: what goes right after that look, and was never heard of, would wake nobody.
        let sources: Vec<Task> = sources.into_iter().map(|listen| listen()).collect();
        let mut tasks = JoinSet::new();
        for source in sources {
            let stop = stop.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = source => {}
                }
            });
        }
        for _ in 0..workers.max(1) {
            tasks.spawn(work(controller.clone(), queue.clone(), name, counters.clone()));
        }
        tokio::select! {
            () = stop.cancelled() => {}
            Some(Err(error)) = tasks.join_next() => {
                tracing::error!(controller = name, error = &error as &dyn std::error::Error, "controller failed");
            }
        }
        queue.shut_down();
        while tasks.join_next().await.is_some() {}
    }
}

async fn work<C: Reconcile>(
    controller: Arc<C>,
    queue: WorkQueue<C::Key>,
    name: &'static str,
    counters: Counters,
) {
    while let Some(key) = queue.next().await {
        let result = controller.reconcile(&key).await;
        counters.note(match &result {
            Ok(Outcome::Settled) => Ended::Success,
            Ok(Outcome::After(_)) => Ended::RequeueAfter,
            Ok(Outcome::Retry) => Ended::Requeue,
            Err(_) => Ended::Error,
        });
        match result {
            Ok(Outcome::Settled) => queue.forget(&key),
            Ok(Outcome::After(wait)) => {
                queue.forget(&key);
                queue.add_after(key.clone(), wait);
            }
            Ok(Outcome::Retry) => queue.add_rate_limited(key.clone()),
            Err(failure) => {
                if failure.is_race() {
                    tracing::debug!(
                        controller = name,
                        ?key,
                        error = &failure as &dyn std::error::Error,
                        "raced"
                    );
                } else {
                    tracing::warn!(
                        controller = name,
                        ?key,
                        error = &failure as &dyn std::error::Error,
                        "pass failed"
                    );
                }
                queue.add_rate_limited(key.clone());
            }
        }
        queue.done(&key);
    }
}

/// Whether the server's answer names this cause.
pub(crate) fn has_cause(error: &client::Error, reason: &str) -> bool {
    let causes = error.status().and_then(|s| s.details.as_ref()).and_then(|d| d.causes.as_ref());
    causes.is_some_and(|list| list.iter().any(|c| c.reason.as_deref() == Some(reason)))
}
