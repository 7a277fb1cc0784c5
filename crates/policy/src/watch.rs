//! The only part that knows the API: caches in, rules out; and the gate that new pods pass.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use client::{Change, Changes, Client};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::apply::{ApplyError, Table};
use crate::facts::{Labels, PodFacts};
use crate::plan::{Cluster, Plan, plan};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Pods that may wait at the gate at once; more wait for a place in the line.
const WAITING: usize = 256;
/// How long a new pod waits for its policies before its start counts as failed (and is tried again).
const PATIENCE: Duration = Duration::from_secs(20);

/// Namespace and name.
type Key = (String, String);

/// A pod's policies are not in force.
#[derive(Debug, thiserror::Error)]
#[error("the network policies of pod {0}/{1} are not in force yet")]
pub struct NotEnforced(pub String, pub String);

/// A pod that must not run before its policies are in force.
struct Newcomer {
    key: Key,
    uid: String,
    ips: Vec<IpAddr>,
    done: oneshot::Sender<()>,
}

/// Where new pods wait.
#[derive(Clone)]
pub struct Gate(mpsc::Sender<Newcomer>);

/// The other end of a [`Gate`], for [`run`].
pub struct Arrivals(mpsc::Receiver<Newcomer>);

/// The annotation that says for which pod of a node's file an object of the API stands: that pod's uid.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A gate and its other end.
pub fn gate() -> (Gate, Arrivals) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Gate(sender), Arrivals(receiver))
}

impl Gate {
    /// Returns when the policies that select a pod are in force for its addresses. Until then nothing of the pod may
    /// run; where it takes too long (the API is away and its policies unknown) that is an error, never a yes.
    pub async fn enforced(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        ips: Vec<IpAddr>,
    ) -> Result<(), NotEnforced> {
        let refused = || NotEnforced(namespace.to_owned(), name.to_owned());
        let key = (namespace.to_owned(), name.to_owned());
        let (done, told) = oneshot::channel();
        let newcomer = Newcomer { key, uid: uid.to_owned(), ips, done };
        let passed = async {
            self.0.send(newcomer).await.map_err(|_| refused())?;
            told.await.map_err(|_| refused())
        };
        tokio::time::timeout(PATIENCE, passed).await.map_err(|_| refused())?
    }
}

/// What is known of the API's objects.
struct Known<'a> {
    config: &'a Config,
    policies: BTreeMap<Key, std::sync::Arc<NetworkPolicy>>,
    namespaces: BTreeMap<String, Labels>,
    pods: BTreeMap<Key, (String, PodFacts)>,
    /// Addresses that the network gave to pods whose status does not tell them yet.
    given: HashMap<Key, (String, Vec<IpAddr>)>,
    waiting: Vec<Newcomer>,
    changed: bool,
}

impl Known<'_> {
    fn policy(&mut self, change: Change<NetworkPolicy>) {
        let key = key(&change.object().metadata);
        match change {
            Change::Deleted(_) => self.policies.remove(&key),
            Change::Added(new) | Change::Modified { new, .. } => self.policies.insert(key, new),
        };
        self.changed = true;
    }

    fn namespace(&mut self, change: Change<Namespace>) {
        let name = change.object().metadata.name.clone().unwrap_or_default();
        let labels = match &change {
            Change::Deleted(_) => None,
            Change::Added(new) | Change::Modified { new, .. } => {
                Some(new.metadata.labels.clone().unwrap_or_default())
            }
        };
        let before = match &labels {
            Some(labels) => self.namespaces.insert(name, labels.clone()),
            None => self.namespaces.remove(&name),
        };
        self.changed |= before != labels;
    }

    fn pod(&mut self, change: Change<Pod>) {
        let meta = &change.object().metadata;
        // what runs of a pod of a file goes by the file's uid
        let of_file = meta.annotations.as_ref().and_then(|annotations| annotations.get(MIRROR));
        let (key, uid) = (key(meta), of_file.or(meta.uid.as_ref()).cloned().unwrap_or_default());
        let facts = match &change {
            Change::Deleted(_) => None,
            Change::Added(new) | Change::Modified { new, .. } => PodFacts::of(new, &self.config.node_name),
        };
        let given = self.given.get(&key);
        // the status caught up, or the pod went: what the network said has had its day
        if given.is_some_and(|(of, ips)| facts.as_ref().is_none_or(|f| of != &uid || &f.ips == ips)) {
            self.given.remove(&key);
        }
        let facts = facts.map(|facts| (uid, facts));
        let before = match &facts {
            Some(facts) => self.pods.insert(key, facts.clone()),
            None => self.pods.remove(&key),
        };
        // most changes of pods are of no interest here: heartbeats of their status
        self.changed |= before != facts;
    }

    fn newcomer(&mut self, newcomer: Newcomer) {
        self.waiting.push(newcomer);
    }

    /// Takes those who wait and whose pod is known by now into the next plan.
    fn admit(&mut self) -> Vec<Newcomer> {
        self.waiting.retain(|newcomer| !newcomer.done.is_closed());
        let known = |n: &Newcomer| self.pods.get(&n.key).is_some_and(|(uid, _)| *uid == n.uid);
        let (admitted, waiting): (Vec<Newcomer>, Vec<Newcomer>) =
            std::mem::take(&mut self.waiting).into_iter().partition(known);
        self.waiting = waiting;
        for newcomer in &admitted {
            let given = (newcomer.uid.clone(), newcomer.ips.clone());
            let told = self.pods.get(&newcomer.key).is_some_and(|(_, facts)| facts.ips == newcomer.ips);
            if !told {
                self.given.insert(newcomer.key.clone(), given);
                self.changed = true;
            }
        }
        admitted
    }

    fn plan(&self) -> Plan {
        let pods: Vec<PodFacts> = self
            .pods
            .iter()
            .map(|(key, (uid, facts))| match self.given.get(key) {
                Some((of, ips)) if of == uid => PodFacts { ips: ips.clone(), local: true, ..facts.clone() },
                _ => facts.clone(),
            })
            .chain(self.config.node_pods.iter().cloned())
            .collect();
        plan(&Cluster {
            policies: self.policies.values().map(AsRef::as_ref).collect(),
            namespaces: &self.namespaces,
            pods: pods.iter().collect(),
            families: &self.config.families,
        })
    }
}

fn key(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Keeps the node's policy rules as the API says, until `stop`. The rules stay in force when this ends.
pub async fn run(
    client: Client,
    config: Config,
    mut arrivals: Arrivals,
    stop: CancellationToken,
) -> Result<(), ApplyError> {
    let (policies, namespaces, pods) = (
        client.caches().of::<NetworkPolicy>(),
        client.caches().of::<Namespace>(),
        client.caches().of::<Pod>(),
    );
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = async { tokio::join!(policies.synced(), namespaces.synced(), pods.synced()); } => {}
    }
    let mut policy_changes: Changes<NetworkPolicy> = policies.subscribe();
    let mut namespace_changes: Changes<Namespace> = namespaces.subscribe();
    let mut pod_changes: Changes<Pod> = pods.subscribe();
    let mut table = Table::open(config.clone())?;
    let mut removals = table.removals().await?;
    let mut known = Known {
        config: &config,
        policies: BTreeMap::new(),
        namespaces: BTreeMap::new(),
        pods: BTreeMap::new(),
        given: HashMap::new(),
        waiting: Vec::new(),
        changed: true,
    };
    let mut retry = FIRST_RETRY;
    loop {
        while let Some(change) = policy_changes.try_next() {
            known.policy(change);
        }
        while let Some(change) = namespace_changes.try_next() {
            known.namespace(change);
        }
        while let Some(change) = pod_changes.try_next() {
            known.pod(change);
        }
        while let Ok(newcomer) = arrivals.0.try_recv() {
            known.newcomer(newcomer);
        }
        let admitted = known.admit();
        if std::mem::take(&mut known.changed)
            && let Err(error) = table.apply(known.plan()).await
        {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                ?retry,
                "network policies not in force"
            );
            known.changed = true;
            // who waits goes on waiting: nothing runs unprotected
            known.waiting.extend(admitted);
            table.forget();
            let wait = retry;
            retry = (retry * 2).min(LAST_RETRY);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => continue,
            }
        }
        retry = FIRST_RETRY;
        for newcomer in admitted {
            // who no longer waits tries again
            let _ = newcomer.done.send(());
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            change = policy_changes.next() => match change {
                Some(change) => known.policy(change),
                None => return Ok(()),
            },
            change = namespace_changes.next() => match change {
                Some(change) => known.namespace(change),
                None => return Ok(()),
            },
            change = pod_changes.next() => match change {
                Some(change) => known.pod(change),
                None => return Ok(()),
            },
            Some(newcomer) = arrivals.0.recv() => known.newcomer(newcomer),
            gone = removals.next() => {
                if let Err(error) = &gone {
                    tracing::error!(error = error as &dyn std::error::Error, "cannot listen for the table's removal");
                    tokio::time::sleep(FIRST_RETRY).await;
                }
                if !table.stands().await.unwrap_or(false) {
                    tracing::warn!("someone removed the policy rules; putting them back");
                    table.forget();
                    known.changed = true;
                }
            }
        }
    }
}
