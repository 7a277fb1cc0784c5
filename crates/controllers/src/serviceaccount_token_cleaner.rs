//! Legacy tokens that old clusters made by themselves (the account names their Secret) and that nobody has used for long:
//! first they are refused, then, still unused, their Secrets go. Tokens that people made stay.
//!
//! Rule: <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#legacy-serviceaccount-token-cleaner>.
use std::time::Duration;

use client::{Cache, Change, DeleteOptions, Patch};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use serde_json::json;

use crate::ownership::{labels, name, namespace};
use crate::pod_secrets;
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};
use crate::serviceaccount_secrets::{self, is_of};

/// Where the API server says since when it notes the uses of tokens.
const TRACKING: (&str, &str) = ("kube-system", "kube-apiserver-legacy-service-account-token-tracking");
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// What no event tells is looked at this often, as upstream does.
const AGAIN: Duration = Duration::from_hours(24);

struct Controller {
    context: Context,
    secrets: Cache<Secret>,
    accounts: Cache<ServiceAccount>,
    pods: Cache<Pod>,
    /// Unused for so long.
    period: SignedDuration,
}

pub(crate) async fn run(context: Context, period: Duration) {
    let caches = context.reader.caches();
    let secrets = serviceaccount_secrets::cache(caches);
    let (accounts, pods) = (caches.of::<ServiceAccount>(), caches.of::<Pod>());
    let controller = Controller {
        context: context.clone(),
        secrets: secrets.clone(),
        accounts: accounts.clone(),
        pods: pods.clone(),
        period: SignedDuration::try_from(period).unwrap_or(SignedDuration::MAX),
    };
    Runner::new(&context, controller)
        .on(&secrets, |_, change| match change {
            Change::Deleted(_) => None,
            change => Some(ObjectKey::of(&change.object().metadata)),
        })
        .on(&accounts, |c: &Controller, change| {
            let account = change.object();
            let ns = namespace(&account.metadata);
            let named = account.secrets.iter().flatten().filter_map(|r| r.name.as_deref());
            let known = named.filter(|n| c.secrets.get(ns, n).is_some());
            known.map(|n| ObjectKey::new(ns, n)).collect::<Vec<_>>()
        })
        .on(&pods, |c: &Controller, change| {
            let Change::Deleted(pod) = change else { return Vec::new() };
            let secrets = c.secrets.list_ns(namespace(&pod.metadata));
            let freed = secrets.iter().filter(|s| pod_secrets::uses(pod, name(&s.metadata)));
            freed.map(|s| ObjectKey::of(&s.metadata)).collect()
        })
        .run(1)
        .await;
}

/// What is to be done about a token that an old cluster made.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// Nothing before this much time.
    Wait(SignedDuration),
    /// Its last use cannot be read.
    Leave,
    /// Refused from this day on.
    Mark(Date),
    Delete,
}

/// Midnight after a day.
fn end_of(day: Date) -> Option<Timestamp> {
    Some(day.tomorrow().ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// A label's day: `2026-01-31` and nothing else.
fn day(text: &str) -> Option<Date> {
    text.parse().ok().filter(|_| text.len() == 10)
}

fn plan(secret: &Secret, tracked_since: Date, now: Timestamp, period: SignedDuration) -> Plan {
    let label = |key: &str| labels(&secret.metadata).get(key).map(String::as_str);
    // A time that nobody can tell never comes.
    let latest = |a: Timestamp, b: Option<Timestamp>| a.max(b.unwrap_or(Timestamp::MAX));
    let mut seen = latest(Timestamp::MIN, end_of(tracked_since));
    seen = latest(seen, secret.metadata.creation_timestamp.as_ref().map(|t| t.0));
    if let Some(used) = label(LAST_USED) {
        let Some(used) = day(used) else { return Plan::Leave };
        seen = latest(seen, end_of(used));
    }
    let marked = label(INVALID_SINCE).and_then(day);
    if let Some(marked) = marked {
        seen = latest(seen, end_of(marked));
    }
    let due = seen.checked_add(period).unwrap_or(Timestamp::MAX);
    match (now >= due, marked) {
        (false, _) => Plan::Wait(due.duration_since(now)),
        (true, None) => Plan::Mark(now.to_zoned(TimeZone::UTC).date()),
        (true, Some(_)) => Plan::Delete,
    }
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let ObjectKey { namespace: ns, name: secret_name } = key;
        let Some(secret) = self.secrets.get(ns, secret_name) else { return Ok(Outcome::Settled) };
        let account = self.accounts.get(ns, serviceaccount_secrets::account_of(&secret));
        let is_auto_generated = account.is_some_and(|account| {
            let mut named = account.secrets.iter().flatten();
            is_of(&secret, &account) && named.any(|r| r.name.as_ref() == Some(secret_name))
        });
        if secret.metadata.deletion_timestamp.is_some() || !is_auto_generated {
            return Ok(Outcome::Settled);
        }
        let client = &self.context.client;
        let tracking = match client.get::<ConfigMap>(TRACKING.0, TRACKING.1).await {
            Ok(map) => map.data.unwrap_or_default().get("since").and_then(|since| day(since)),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error.into()),
        };
        let Some(since) = tracking else { return Ok(Outcome::After(AGAIN)) };
        let plan = plan(&secret, since, self.context.clock.now(), self.period);
        let is_used = || self.pods.list_ns(ns).iter().any(|pod| pod_secrets::uses(pod, secret_name));
        match plan {
            Plan::Leave => {}
            Plan::Wait(wait) => return Ok(Outcome::After(wait.unsigned_abs())),
            Plan::Mark(_) | Plan::Delete if is_used() => return Ok(Outcome::After(AGAIN)),
            Plan::Mark(day) => {
                tracing::info!(
                    namespace = ns,
                    secret = secret_name,
                    "an unused token is refused from now on"
                );
                let meta = json!({"uid": secret.metadata.uid, "resourceVersion": secret.metadata.resource_version,
                    "labels": {INVALID_SINCE: day.to_string()}});
                client.patch::<Secret>(ns, secret_name, &Patch::Merge(json!({"metadata": meta}))).await?;
            }
            Plan::Delete => {
                tracing::info!(namespace = ns, secret = secret_name, "an unused token is deleted");
                // At the revision that was judged: a token that is used just now stays.
                let options = DeleteOptions {
                    uid: secret.metadata.uid.clone(),
                    resource_version: secret.metadata.resource_version.clone(),
                    ..DeleteOptions::default()
                };
                client.delete::<Secret>(ns, secret_name, &options).await?;
            }
        }
        Ok(Outcome::Settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(labels: serde_json::Value, now: &str) -> Plan {
        let meta = json!({"name": "s", "creationTimestamp": "2024-03-01T12:00:00Z", "labels": labels});
        let secret = serde_json::from_value(json!({"metadata": meta})).unwrap();
        let since = Date::constant(2024, 1, 10);
        plan(&secret, since, now.parse().unwrap(), SignedDuration::from_hours(365 * 24))
    }

    #[test]
    fn a_token_is_refused_a_year_after_its_last_use_and_goes_a_year_later() {
        let hours = |h| Plan::Wait(SignedDuration::from_hours(h));
        assert_eq!(judged(json!({}), "2025-03-01T11:00:00Z"), hours(1), "a year after its creation");
        assert_eq!(judged(json!({}), "2025-03-01T12:00:00Z"), Plan::Mark(Date::constant(2025, 3, 1)));
        let used = json!({LAST_USED: "2025-01-01"});
        assert_eq!(judged(used.clone(), "2026-01-01T23:00:00Z"), hours(1));
        assert_eq!(judged(used, "2026-01-02T00:00:00Z"), Plan::Mark(Date::constant(2026, 1, 2)));
        let marked = json!({LAST_USED: "2025-01-01", INVALID_SINCE: "2026-01-02"});
        assert_eq!(judged(marked.clone(), "2027-01-02T23:00:00Z"), hours(1));
        assert_eq!(judged(marked, "2027-01-03T00:00:00Z"), Plan::Delete);
        let used_again = json!({LAST_USED: "2026-12-01", INVALID_SINCE: "2026-01-02"});
        assert!(matches!(judged(used_again, "2027-01-03T00:00:00Z"), Plan::Wait(_)));
    }

    #[test]
    fn what_is_no_day_is_never_the_last_use_and_is_marked_anew() {
        assert_eq!(judged(json!({LAST_USED: "yesterday"}), "2030-01-01T00:00:00Z"), Plan::Leave);
        let marked = judged(json!({INVALID_SINCE: "soon"}), "2030-01-01T00:00:00Z");
        assert_eq!(marked, Plan::Mark(Date::constant(2030, 1, 1)));
    }
}
