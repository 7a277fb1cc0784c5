//! Which policies concern a request, and with which parameters.

use std::sync::Arc;

use api::kinds::{Kind, KindTable};
use serde_json::Value;

use super::Complaint;
use super::compile::{Binding, Bound, Matcher, NamedRule, ParamRef, Policy};
use crate::admission::chain::Request;
use crate::admission::webhooks;
use crate::convert;
use crate::watch_cache::WatchCache;

/// A policy that is asked, with one binding and one parameter.
pub(super) struct Invocation<'p> {
    pub(super) policy: &'p Policy,
    pub(super) binding: &'p Binding,
    /// In which version the policy sees the request.
    pub(super) kind: Arc<Kind>,
    /// Null for none.
    pub(super) params: Arc<Value>,
}

/// What concerns a request, in the order of policies and bindings; `object` is null on deletion. Where it cannot be told,
/// that is a complaint, unless the policy says to ignore it.
pub(super) fn invocations<'p>(
    cache: &WatchCache,
    kinds: &KindTable,
    policies: &'p [Bound],
    request: &Request<'_>,
    object: &Value,
) -> (Vec<Invocation<'p>>, Vec<Complaint>) {
    let (mut found, mut complaints) = (Vec::new(), Vec::new());
    for Bound { policy, bindings } in policies {
        let mut complain = |binding: Option<&Binding>, why: &str| {
            if policy.fails_closed {
                let what = if binding.is_some() { "binding" } else { "policy" };
                complaints.push(Complaint {
                    policy: policy.name.clone(),
                    binding: binding.map(|b| b.name.clone()),
                    message: format!("failed to configure {what}: {why}"),
                });
            }
        };
        let kind = match matched(cache, kinds, &policy.matcher, request, object) {
            Ok(Some(kind)) => kind,
            Ok(None) => continue,
            Err(why) => {
                complain(None, &why);
                continue;
            }
        };
        if let Some(why) = &policy.broken {
            complain(None, why);
            continue;
        }
        for binding in bindings {
            let narrowed = binding
                .matcher
                .as_ref()
                .map_or(Ok(Some(kind.clone())), |m| matched(cache, kinds, m, request, object));
            match narrowed {
                Ok(Some(_)) => {}
                Ok(None) => continue,
                Err(why) => {
                    complain(Some(binding), &why);
                    continue;
                }
            }
            match parameters(cache, kinds, policy, binding, request.namespace) {
                Ok(list) => found.extend(list.into_iter().map(|params| Invocation {
                    policy,
                    binding,
                    kind: kind.clone(),
                    params,
                })),
                Err(why) => complain(Some(binding), &why),
            }
        }
    }
    (found, complaints)
}

/// The kind in whose version a matcher takes in a request; none where it does not.
fn matched(
    cache: &WatchCache,
    kinds: &KindTable,
    matcher: &Matcher,
    request: &Request<'_>,
    object: &Value,
) -> Result<Option<Arc<Kind>>, String> {
    if !webhooks::selects_object(&matcher.objects, request, object) {
        return Ok(None);
    }
    // that the namespace is missing counts only where everything else matches
    let namespace = webhooks::selects_namespace(cache, &matcher.namespaces, request, object);
    if matches!(namespace, Ok(false))
        || kind_of(kinds, &matcher.excluded, matcher.equivalent, request).is_some()
    {
        return Ok(None);
    }
    let kind = if matcher.rules.is_empty() {
        Some(request.kind.clone())
    } else {
        kind_of(kinds, &matcher.rules, matcher.equivalent, request)
    };
    match (kind, namespace) {
        (Some(_), Err(why)) => Err(why.to_string()),
        (kind, _) => Ok(kind),
    }
}

/// The kind in whose version a rule takes in a request: its own, or another version of the same objects.
fn kind_of(
    kinds: &KindTable,
    rules: &[NamedRule],
    equivalent: bool,
    request: &Request<'_>,
) -> Option<Arc<Kind>> {
    let named = |rule: &NamedRule| rule.names.is_empty() || rule.names.iter().any(|n| n == request.name);
    let mut rules = rules.iter().filter(|rule| named(rule));
    if let Some(kind) =
        rules.clone().find(|rule| rule.rule.matches(request, request.kind)).map(|_| request.kind.clone())
    {
        return Some(kind);
    }
    if !equivalent || !request.kind.is_stored() {
        return None;
    }
    let same =
        |k: &&Arc<Kind>| k.storage_prefix == request.kind.storage_prefix && !Arc::ptr_eq(k, request.kind);
    let others: Vec<&Arc<Kind>> = kinds.all().iter().filter(same).collect();
    rules.find_map(|rule| others.iter().find(|k| rule.rule.matches(request, k)).map(|k| (*k).clone()))
}

/// The parameters of a binding; one null where the policy or the binding knows of none.
fn parameters(
    cache: &WatchCache,
    kinds: &KindTable,
    policy: &Policy,
    binding: &Binding,
    namespace: &str,
) -> Result<Vec<Arc<Value>>, String> {
    let (Some((api_version, kind)), Some(reference)) = (&policy.params, &binding.params) else {
        return Ok(vec![Arc::new(Value::Null)]);
    };
    let found = kinds
        .of_object(api_version, kind)
        .ok_or_else(|| format!("paramKind kind `{api_version}, Kind={kind}` not known"))?;
    let namespace = match (found.namespaced, reference.namespace.as_str()) {
        (false, "") => "",
        (false, _) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
        }
        (true, "") if namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .to_owned(),
            );
        }
        (true, "") => namespace,
        (true, given) => given,
    };
    let list = listed(cache, found, reference, namespace);
    if list.is_empty() && reference.required {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(list)
}

fn listed(cache: &WatchCache, kind: &Arc<Kind>, reference: &ParamRef, namespace: &str) -> Vec<Arc<Value>> {
    let shown = |value: &Value| Arc::new(convert::shown_now(kind, None, value));
    match &reference.selector {
        None => cache
            .get(kind, &kind.key(namespace, &reference.name))
            .map(|o| shown(o.value()))
            .into_iter()
            .collect(),
        Some(selector) => {
            let prefix = match namespace {
                "" => kind.storage_prefix.clone(),
                namespace => format!("{}{namespace}/", kind.storage_prefix),
            };
            let items = cache.list(kind, &prefix, None).items;
            items.iter().filter(|o| selector.matches(o.labels())).map(|o| shown(o.value())).collect()
        }
    }
}
