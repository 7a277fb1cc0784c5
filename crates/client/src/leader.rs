//! Leader election over a Lease: one holder at a time, renewed while alive, taken over when it lapses.
//!
//! Rule: client-go's leader election. A candidate measures the lapse by its own clock from the moment it saw
//! the record change, so clocks of different machines need not agree.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Client, Error};

/// Which Lease, by whom, and how fast.
#[derive(Debug, Clone)]
pub struct Election {
    /// The Lease's namespace, usually `kube-system`.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// Who we are; unique per process.
    pub identity: String,
    /// How long a lapsed holder is still respected (15 s upstream).
    pub lease_duration: Duration,
    /// The holder gives up when it could not renew for so long (10 s upstream).
    pub renew_deadline: Duration,
    /// Between tries (2 s upstream).
    pub retry_period: Duration,
}

impl Election {
    /// Upstream's timings.
    pub fn new(name: &str, identity: &str) -> Self {
        Self {
            namespace: "kube-system".to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Runs `work` each time we become the leader, with a token that is cancelled when we no longer are (or `stop`
/// is). Returns when `stop` is cancelled; the Lease is then released so that another takes over at once.
pub async fn run_as_leader<F>(
    client: &Client,
    election: &Election,
    stop: CancellationToken,
    mut work: impl FnMut(CancellationToken) -> F,
) where
    F: Future<Output = ()>,
{
    let mut seen: Option<(String, Instant)> = None;
    while !stop.is_cancelled() {
        if matches!(try_hold(client, election, &mut seen).await, Ok(true)) {
            let token = stop.child_token();
            let leading = token.clone();
            tokio::select! {
                () = work(leading) => {}
                () = renew(client, election, &stop) => token.cancel(),
            }
            token.cancel();
            release(client, election).await;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(election.retry_period) => {}
        }
    }
}

/// Renews until it fails for too long, or `stop`.
async fn renew(client: &Client, election: &Election, stop: &CancellationToken) {
    let mut last = Instant::now();
    let mut seen = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(election.retry_period) => {}
        }
        match try_hold(client, election, &mut seen).await {
            Ok(true) => last = Instant::now(),
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(
                    lease = election.name,
                    error = &error as &dyn std::error::Error,
                    "lease not renewed"
                );
                if last.elapsed() > election.renew_deadline {
                    return;
                }
            }
        }
    }
}

async fn try_hold(
    client: &Client,
    election: &Election,
    seen: &mut Option<(String, Instant)>,
) -> Result<bool, Error> {
    let now = MicroTime(Timestamp::now());
    let seconds = i32::try_from(election.lease_duration.as_secs()).unwrap_or(i32::MAX);
    let mut lease = match client.get::<Lease>(&election.namespace, &election.name).await {
        Ok(lease) => lease,
        Err(error) if error.is_not_found() => {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(election.name.clone()), ..ObjectMeta::default() },
                spec: Some(LeaseSpec {
                    holder_identity: Some(election.identity.clone()),
                    lease_duration_seconds: Some(seconds),
                    acquire_time: Some(now.clone()),
                    renew_time: Some(now),
                    lease_transitions: Some(0),
                    ..LeaseSpec::default()
                }),
            };
            return match client.create(&election.namespace, &lease).await {
                Ok(_) => Ok(true),
                Err(error) if error.is_already_exists() => Ok(false),
                Err(error) => Err(error),
            };
        }
        Err(error) => return Err(error),
    };
    let version = lease.metadata.resource_version.clone().unwrap_or_default();
    let spec = lease.spec.get_or_insert_default();
    let holder = spec.holder_identity.clone().unwrap_or_default();
    if holder != election.identity {
        let since = match seen {
            Some((known, since)) if *known == version => *since,
            _ => seen.insert((version, Instant::now())).1,
        };
        let lapse = Duration::from_secs(spec.lease_duration_seconds.unwrap_or(seconds).max(0) as u64);
        if !holder.is_empty() && since.elapsed() < lapse {
            return Ok(false);
        }
        spec.acquire_time = Some(now.clone());
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
    }
    spec.holder_identity = Some(election.identity.clone());
    spec.lease_duration_seconds = Some(seconds);
    spec.renew_time = Some(now);
    match client.update(&election.namespace, &lease).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_conflict() => Ok(false),
        Err(error) => Err(error),
    }
}

async fn release(client: &Client, election: &Election) {
    let Ok(mut lease) = client.get::<Lease>(&election.namespace, &election.name).await else { return };
    let Some(spec) = lease.spec.as_mut() else { return };
    if spec.holder_identity.as_deref() == Some(&*election.identity) {
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        // losing this race means that somebody else leads already
        let _ = client.update(&election.namespace, &lease).await;
    }
}
