//! ResourceQuotas: what a write uses more than before is compared with, and charged to, every quota of its namespace.
//!
//! Rule: Kubernetes documentation, "Resource Quotas". A quota counts only what its controller has begun to count
//! (`status`). The charge is one compare-and-swap of the quota's status before the object is stored: two writes never
//! share the last unit, and a crash in between leaves a charge too many, never one too few. What a change sets free is
//! for the quota controller to count.

use std::cmp::Ordering;
use std::sync::Arc;

use api::kinds::Kind;
use api::quantity::Quantity;
use api::resources::{Amounts, Side, amounts, containers, has_pod_level};
use api::{meta, quota};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Operation, Request};
use crate::registry::{Registry, Target};
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;

/// Resources that every container must name where a quota counts them.
const DEMANDED: [&str; 6] =
    ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];

fn quotas() -> Option<&'static Arc<Kind>> {
    api::kinds::find("", "v1", "resourcequotas")
}

/// What was charged to which quotas for one write.
#[derive(Debug, Default)]
#[must_use]
pub struct Charged {
    namespace: String,
    /// Names of quotas, and what each was charged.
    quotas: Vec<(String, Amounts)>,
}

impl Charged {
    /// Takes the charges back: the object was not stored.
    pub async fn give_back(self, registry: &Registry) {
        let Some(kind) = quotas() else { return };
        for (name, used) in &self.quotas {
            let target = Target { kind, namespace: &self.namespace, name, subresource: "status" };
            if let Err(error) = registry.update(target, false, |quota| Ok(less(quota, used))).await
                && !error.is_not_found()
            {
                // the controller counts anew before long
                tracing::warn!(quota = name, %error, "a charge for what was not stored stays for now");
            }
        }
    }
}

/// A quota without a charge; never below zero.
fn less(quota: &Value, used: &Amounts) -> Value {
    let (mut new, before) = (quota.clone(), amounts(&quota["status"]["used"]));
    for (resource, amount) in used {
        if let Some(had) = before.get(resource) {
            let left = had.minus(amount);
            let left = if left.cmp(&Quantity::ZERO) == Ordering::Less { Quantity::ZERO } else { left };
            new["status"]["used"][resource] = json!(left.to_string());
        }
    }
    new
}

/// Charges a write to the quotas of its namespace: all, or the first that refuses says why.
pub async fn charge(
    cache: &WatchCache,
    registry: &Registry,
    request: &Request<'_>,
    object: &Value,
) -> ApiResult<Charged> {
    let mut charged = Charged::default();
    let Some(use_) = Use::of(cache, request, object) else { return Ok(charged) };
    let Some(kind) = quotas() else { return Ok(charged) };
    let prefix = format!("{}{}/", kind.storage_prefix, request.namespace);
    let all: Vec<Value> = cache.list(kind, &prefix, None).items.iter().map(|o| o.to_value()).collect();
    let mut concerned = Vec::new();
    // a refusal by one must not leave a charge at another
    for one in &all {
        if let Some(more) = use_.of_quota(one)? {
            concerned.push((meta::name(one), more));
        }
    }
    for (name, more) in &concerned {
        use_.fits(all.iter().find(|q| meta::name(q) == *name).unwrap_or(&Value::Null), more)?;
    }
    if request.is_dry_run() {
        return Ok(charged);
    }
    request.namespace.clone_into(&mut charged.namespace);
    for (name, more) in concerned {
        let target = Target { kind, namespace: request.namespace, name, subresource: "status" };
        match registry.update(target, false, |current| use_.fits(current, &more)).await {
            Ok(_) => charged.quotas.push((name.to_owned(), more)),
            // a quota that is gone limits nothing
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                charged.give_back(registry).await;
                return Err(error);
            }
        }
    }
    Ok(charged)
}

/// What a write uses, now and before.
struct Use<'a> {
    kind: &'a Kind,
    object: &'a Value,
    old: Option<&'a Value>,
    subresource: &'a str,
    now: Amounts,
    /// More than before.
    more: Amounts,
}

impl<'a> Use<'a> {
    /// `None` where the write cannot use anything, or nothing counts in its namespace.
    fn of(cache: &WatchCache, request: &'a Request<'_>, object: &'a Value) -> Option<Self> {
        let (kind, subresource) = (request.kind, request.subresource);
        let old = match request.operation {
            Operation::Create if subresource.is_empty() => None,
            Operation::Update if quota::may_change(kind, subresource) => Some(request.old?),
            _ => return None,
        };
        let prefix = format!("{}{}/", quotas()?.storage_prefix, request.namespace);
        if request.namespace.is_empty() || cache.list(quotas()?, &prefix, None).items.is_empty() {
            return None;
        }
        let classes = api::kinds::find("resource.k8s.io", "v1", "deviceclasses");
        let extended = |class: &str| {
            let found = cache.get(classes?, &classes?.key("", class))?;
            found.value()["spec"]["extendedResourceName"].as_str().map(str::to_owned)
        };
        let usage = |object: &Value| quota::usage(kind, object, Timestamp::now(), &extended);
        let (now, before) = (usage(object), old.map(usage).unwrap_or_default());
        let more = now
            .iter()
            .map(|(name, amount)| (name.clone(), before.get(name).map_or(*amount, |had| amount.minus(had))));
        let more = more.filter(|(_, amount)| amount.signum() > 0).collect();
        Some(Self { kind, object, old, subresource, now, more })
    }

    fn refuse(&self, why: &str) -> ApiError {
        ApiError::forbidden(self.kind, meta::name(self.object), why)
    }

    /// What a quota is to be charged; `None` where it does not look at the object, or there is nothing to charge.
    fn of_quota(&self, quota: &Value) -> ApiResult<Option<Amounts>> {
        let hard = amounts(&quota["status"]["hard"]);
        let tracked: Vec<&str> =
            hard.keys().filter(|r| quota::tracks(self.kind, r)).map(String::as_str).collect();
        if tracked.is_empty() || !quota::is_in_scopes(quota, self.kind, self.object) {
            return Ok(None);
        }
        let name = meta::name(quota);
        let missing = self.missing(&tracked);
        if !missing.is_empty() {
            return Err(self.refuse(&format!("failed quota: {name}: must specify {}", missing.join("; "))));
        }
        let used = &quota["status"]["used"];
        if tracked.iter().any(|resource| used[*resource].is_null()) {
            let why = format!("status unknown for quota: {name}, resources: {}", tracked.join(","));
            return Err(self.refuse(&why));
        }
        let negative: Vec<&str> =
            self.now.iter().filter(|(_, a)| a.signum() < 0).map(|(n, _)| n.as_str()).collect();
        if !negative.is_empty() {
            let why = format!("quota usage is negative for resource(s): {}", negative.join(","));
            return Err(self.refuse(&why));
        }
        // an object that the quota did not look at before is new to it
        let is_known = self.old.is_some_and(|old| quota::is_in_scopes(quota, self.kind, old));
        let all = if is_known { &self.more } else { &self.now };
        let more: Amounts = all
            .iter()
            .filter(|(name, amount)| amount.signum() > 0 && hard.contains_key(*name))
            .map(|(name, amount)| (name.clone(), *amount))
            .collect();
        Ok(Some(more).filter(|more| !more.is_empty()))
    }

    /// Resources that every container must name because the quota counts them: `limits.cpu for: a,b`.
    fn missing(&self, tracked: &[&str]) -> Vec<String> {
        let spec = &self.object["spec"];
        let is_pod = self.kind.group.is_empty() && self.kind.plural == "pods";
        if !is_pod || has_pod_level(spec) {
            return Vec::new();
        }
        let demanded = tracked.iter().filter(|name| DEMANDED.contains(name));
        demanded
            .filter_map(|name| {
                let (side, resource) = match name.split_once('.') {
                    Some(("limits", resource)) => (Side::Limits, resource),
                    Some((_, resource)) => (Side::Requests, resource),
                    None => (Side::Requests, *name),
                };
                let mut lacking: Vec<&str> = ["containers", "initContainers"]
                    .iter()
                    .flat_map(|list| containers(spec, list))
                    .filter(|c| c["resources"][side.name()][resource].is_null())
                    .filter_map(|c| c["name"].as_str())
                    .collect();
                lacking.sort_unstable();
                (!lacking.is_empty()).then(|| format!("{name} for: {}", lacking.join(",")))
            })
            .collect()
    }

    /// A quota with a charge, or why it has no room for it. A new status is charged whether there is room or not: it
    /// says what is so already.
    fn fits(&self, quota: &Value, more: &Amounts) -> ApiResult<Value> {
        let (hard, before) = (amounts(&quota["status"]["hard"]), amounts(&quota["status"]["used"]));
        let mut new = quota.clone();
        let (mut requested, mut had, mut limited) = (Vec::new(), Vec::new(), Vec::new());
        for (resource, amount) in more {
            // a resource that the quota has ceased to count
            let (Some(limit), Some(used)) = (hard.get(resource), before.get(resource)) else { continue };
            let after = used.plus(amount);
            if after.cmp(limit) == Ordering::Greater && self.subresource != "status" {
                requested.push(format!("{resource}={amount}"));
                had.push(format!("{resource}={used}"));
                limited.push(format!("{resource}={limit}"));
            }
            new["status"]["used"][resource] = json!(after.to_string());
        }
        if requested.is_empty() {
            return Ok(new);
        }
        Err(self.refuse(&format!(
            "exceeded quota: {}, requested: {}, used: {}, limited: {}",
            meta::name(quota),
            requested.join(","),
            had.join(","),
            limited.join(",")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn try_charge(hard: Value, used: Value, pod: Value) -> String {
        let kind = api::kinds::find("", "v1", "pods").unwrap();
        let quota = json!({"metadata": {"name": "q"}, "spec": {}, "status": {"hard": hard, "used": used}});
        let now = api::quota::usage(kind, &pod, Timestamp::UNIX_EPOCH, &|_| None);
        let use_ = Use { kind, object: &pod, old: None, subresource: "", more: now.clone(), now };
        let new = use_.of_quota(&quota).and_then(|more| use_.fits(&quota, &more.unwrap_or_default()));
        new.map_or_else(|error| error.to_string(), |new| new["status"]["used"].to_string())
    }

    #[test]
    fn a_pod_is_charged_or_refused() {
        let pod = json!({"metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1500m"}}}]}});
        let hard = json!({"requests.cpu": "2", "pods": "5"});
        assert_eq!(
            try_charge(hard.clone(), json!({"requests.cpu": "0", "pods": "1"}), pod.clone()),
            r#"{"pods":"2","requests.cpu":"1500m"}"#
        );
        assert_eq!(
            try_charge(hard.clone(), json!({"requests.cpu": "1", "pods": "1"}), pod.clone()),
            "pods \"p\" is forbidden: exceeded quota: q, requested: requests.cpu=1500m, used: requests.cpu=1, limited: requests.cpu=2"
        );
        assert_eq!(
            try_charge(hard, json!({"pods": "1"}), pod.clone()),
            "pods \"p\" is forbidden: status unknown for quota: q, resources: pods,requests.cpu"
        );
        assert_eq!(
            try_charge(json!({"limits.cpu": "2"}), json!({"limits.cpu": "0"}), pod),
            "pods \"p\" is forbidden: failed quota: q: must specify limits.cpu for: c"
        );
    }
}
