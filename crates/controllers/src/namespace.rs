//! Namespaces that end: everything in them is deleted, pods first, and then the namespace is let go.
//!
//! Rules: KEP-5080 (ordered namespace deletion: pods go first, so that nothing that protects them goes earlier).
use std::collections::BTreeMap;
use std::time::Duration;

use client::{Cache, Change, DeleteOptions, path_of};
use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use crate::discovery::{self, Served};
use crate::ownership::{name, namespace};
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

/// The finalizer in `spec.finalizers` that is ours to remove.
const FINALIZER: &str = "kubernetes";

struct Controller {
    context: Context,
    namespaces: Cache<Namespace>,
    pods: Cache<Pod>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (namespaces, pods) = (caches.of::<Namespace>(), caches.of::<Pod>());
    let controller =
        Controller { context: context.clone(), namespaces: namespaces.clone(), pods: pods.clone() };
    Runner::new(&context, controller)
        .on(&namespaces, |_, change| {
            let meta = &change.object().metadata;
            meta.deletion_timestamp.is_some().then(|| name(meta).to_owned())
        })
        .on(&pods, |controller: &Controller, change| match change {
            Change::Deleted(pod) => {
                let ns = namespace(&pod.metadata);
                let ending = controller.namespaces.get("", ns)?.metadata.deletion_timestamp.is_some();
                ending.then(|| ns.to_owned())
            }
            _ => None,
        })
        .run(4)
        .await;
}

/// What a pass over the content found.
#[derive(Debug, Default)]
struct Findings {
    /// Why discovery failed, if it did.
    discovery: Option<String>,
    /// What could not be deleted.
    errors: Vec<String>,
    /// Objects left, per resource.
    remaining: BTreeMap<String, usize>,
    /// Objects left that wait for a finalizer, per finalizer.
    finalizers: BTreeMap<String, usize>,
}

impl Controller {
    async fn delete_content(&self, ns: &str) -> Findings {
        let mut findings = Findings::default();
        let mut served = match discovery::kinds(&self.context.client).await {
            Ok((served, failed)) => {
                if !failed.is_empty() {
                    let list: Vec<String> = failed.iter().map(|(gv, e)| format!("{gv}: {e}")).collect();
                    findings.discovery = Some(format!(
                        "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
                        list.len(),
                        list.join(", ")
                    ));
                }
                served
            }
            Err(error) => {
                findings.discovery = Some(error.to_string());
                return findings;
            }
        };
        served.retain(|s| s.namespaced && s.can("delete") && s.can("list"));
        let is_pods = |s: &Served| s.group.is_empty() && s.plural == "pods";
        // Events are of no use to anyone but would be recreated by what is deleted: they go last.
        served.sort_by_key(|s| (!is_pods(s), s.plural == "events"));
        for kind in &served {
            if !is_pods(kind) && findings.remaining.contains_key("pods") {
                break;
            }
            if let Err(error) = self.delete_kind(kind, ns, &mut findings).await {
                tracing::debug!(ns, kind = kind.qualified(), "content not deleted");
                findings.errors.push(error.to_string());
            }
        }
        findings.errors.sort_unstable();
        findings
    }

    async fn delete_kind(
        &self,
        kind: &Served,
        ns: &str,
        findings: &mut Findings,
    ) -> Result<(), client::Error> {
        let client = &self.context.client;
        let path = kind.path(ns, "");
        let background = DeleteOptions { propagation_policy: Some("Background"), ..DeleteOptions::default() };
        // Asking first is cheap; most kinds have nothing in most namespaces.
        let items = self.list(&path).await?;
        if items.is_empty() {
            return Ok(());
        }
        if kind.can("deletecollection") {
            client.delete_path(&path, &background).await?;
        } else {
            for item in &items {
                let name = item["metadata"]["name"].as_str().unwrap_or_default();
                match client.delete_path(&kind.path(ns, name), &background).await {
                    Ok(()) => {}
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let left = self.list(&path).await?;
        if !left.is_empty() {
            findings.remaining.insert(kind.qualified(), left.len());
        }
        for finalizer in left.iter().flat_map(api::meta::finalizers) {
            *findings.finalizers.entry(finalizer.to_owned()).or_default() += 1;
        }
        Ok(())
    }

    async fn list(&self, path: &str) -> Result<Vec<Value>, client::Error> {
        let mut list: Value = self.context.client.call(Method::GET, path, None::<&()>).await?;
        Ok(match list["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        })
    }

    /// When to look again at what others hold back: the longer it took so far, the later.
    fn patience(&self, ns: &Namespace) -> Duration {
        let since =
            ns.metadata.deletion_timestamp.as_ref().map(|t| self.context.clock.now().duration_since(t.0));
        let waited = Duration::try_from(since.unwrap_or_default()).unwrap_or_default();
        (waited / 4).clamp(Duration::from_millis(100), Duration::from_secs(8))
    }

    /// How long the slowest pod may still take.
    fn grace(&self, ns: &str) -> Duration {
        let seconds =
            self.pods.list_ns(ns).iter().filter_map(|p| p.metadata.deletion_grace_period_seconds).max();
        Duration::from_secs(u64::try_from(seconds.unwrap_or(0)).unwrap_or(0) / 2 + 1)
    }
}

impl Reconcile for Controller {
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Outcome, Failure> {
        let client = &self.context.client;
        let Some(ns) = self.namespaces.get("", key) else { return Ok(Outcome::Settled) };
        if ns.metadata.deletion_timestamp.is_none() {
            return Ok(Outcome::Settled);
        }
        let ours = ns.spec.iter().flat_map(|s| s.finalizers.iter().flatten()).any(|f| f == FINALIZER);
        if !ours {
            return Ok(Outcome::Settled);
        }
        let findings = self.delete_content(key).await;
        let conditions = ns.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        let conditions = conditions_after(conditions, &findings, self.context.clock.now());
        let mut current = (*ns).clone();
        let status = current.status.get_or_insert_default();
        if status.phase.as_deref() != Some("Terminating") || status.conditions.as_ref() != Some(&conditions) {
            status.phase = Some("Terminating".to_owned());
            status.conditions = Some(conditions);
            current = match client.update_status("", &current).await {
                Ok(updated) => updated,
                Err(e) if e.is_not_found() => return Ok(Outcome::Settled),
                Err(e) => return Err(e.into()),
            };
        }
        if let Some(text) = findings.discovery {
            return Err(Failure::Invalid(text));
        }
        if !findings.errors.is_empty() {
            return Err(Failure::Invalid(findings.errors.join("; ")));
        }
        if !findings.remaining.is_empty() {
            let pods = findings.remaining.contains_key("pods");
            return Ok(Outcome::After(if pods { self.grace(key) } else { self.patience(&ns) }));
        }
        if let Some(list) = current.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
            list.retain(|f| f != FINALIZER);
        }
        let path = path_of("", "v1", "namespaces", "", key, "finalize");
        match client.call::<_, Value>(Method::PUT, &path, Some(&current)).await {
            Ok(_) => Ok(Outcome::Settled),
            Err(e) if e.is_not_found() => Ok(Outcome::Settled),
            Err(e) => Err(e.into()),
        }
    }
}

/// The conditions of an ending namespace, in the API's words.
fn conditions_after(
    mut list: Vec<NamespaceCondition>,
    f: &Findings,
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    // The dot between resource and group stands also where there is no group.
    let dotted = |k: &str| if k.contains('.') { k.to_owned() } else { format!("{k}.") };
    let left = f.remaining.iter().map(|(k, n)| format!("{} has {n} resource instances", dotted(k)));
    let left: Vec<String> = left.collect();
    let held: Vec<String> =
        f.finalizers.iter().map(|(k, n)| format!("{k} in {n} resource instances")).collect();
    let mut set = |kind: &str, bad: Option<(&str, String)>, good: (&str, &str)| {
        let (status, reason, message) = match bad {
            Some((reason, message)) => ("True", reason, message),
            None => ("False", good.0, good.1.to_owned()),
        };
        let new = NamespaceCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        };
        match list.iter_mut().find(|c| c.type_ == kind) {
            Some(old)
                if old.status == new.status && old.reason == new.reason && old.message == new.message => {}
            Some(old) => {
                let since = (old.status == new.status).then(|| old.last_transition_time.clone());
                *old = new;
                if let Some(since) = since {
                    old.last_transition_time = since;
                }
            }
            None => list.push(new),
        }
    };
    set(
        "NamespaceDeletionDiscoveryFailure",
        f.discovery.clone().map(|m| ("DiscoveryFailed", m)),
        ("ResourcesDiscovered", "All resources successfully discovered"),
    );
    set(
        "NamespaceDeletionGroupVersionParsingFailure",
        None,
        ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
    );
    let errors = (!f.errors.is_empty()).then(|| {
        (
            "ContentDeletionFailed",
            format!(
                "Failed to delete all resource types, {} remaining: {}",
                f.errors.len(),
                f.errors.join(", ")
            ),
        )
    });
    set(
        "NamespaceDeletionContentFailure",
        errors,
        ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
    );
    let remaining = (!f.remaining.is_empty())
        .then(|| ("SomeResourcesRemain", format!("Some resources are remaining: {}", left.join(", "))));
    set("NamespaceContentRemaining", remaining, ("ContentRemoved", "All content successfully removed"));
    let finalizers = (!f.finalizers.is_empty()).then(|| {
        (
            "SomeFinalizersRemain",
            format!("Some content in the namespace has finalizers remaining: {}", held.join(", ")),
        )
    });
    set(
        "NamespaceFinalizersRemaining",
        finalizers,
        ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
    );
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_is_left_and_keep_their_times() {
        let first = Timestamp::UNIX_EPOCH;
        let mut findings = Findings::default();
        findings.remaining.insert("pods".into(), 2);
        findings.remaining.insert("deployments.apps".into(), 1);
        findings.finalizers.insert("example.com/hold".into(), 1);
        let before = conditions_after(Vec::new(), &findings, first);
        let text: Vec<String> = before
            .iter()
            .map(|c| {
                format!(
                    "{}={} {}: {}",
                    c.type_,
                    c.status,
                    c.reason.as_deref().unwrap_or(""),
                    c.message.as_deref().unwrap_or("")
                )
            })
            .collect();
        expect_test::expect![[r#"
            NamespaceDeletionDiscoveryFailure=False ResourcesDiscovered: All resources successfully discovered
            NamespaceDeletionGroupVersionParsingFailure=False ParsedGroupVersions: All legacy kube types successfully parsed
            NamespaceDeletionContentFailure=False ContentDeleted: All content successfully deleted, may be waiting on finalization
            NamespaceContentRemaining=True SomeResourcesRemain: Some resources are remaining: deployments.apps has 1 resource instances, pods. has 2 resource instances
            NamespaceFinalizersRemaining=True SomeFinalizersRemain: Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"#]]
        .assert_eq(&text.join("\n"));
        let later = first + jiff::SignedDuration::from_secs(60);
        let after = conditions_after(before, &Findings::default(), later);
        assert_eq!(after[0].last_transition_time, Some(Time(first)));
        assert_eq!(after[3].last_transition_time, Some(Time(later)));
    }
}
