//! Which webhooks a request concerns, and in which version they want to see it.

use api::kinds::{Kind, KindTable};
use api::meta;
use api::selector::LabelSelector;
use serde_json::Value;
use std::sync::Arc;

use super::answers::ForUser;
use super::compile::Webhook;
use super::review;
use crate::admission::chain::{Operation, Request};
use crate::cel::admission::Inputs;
use crate::cel::match_conditions::Matched;
use crate::cel::{Answers, Question};
use crate::convert;
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;

/// A rule of a webhook or policy: which operations on which resources. `*` stands for all.
#[derive(Debug)]
pub struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// (resource, subresource); an empty subresource is the resource itself.
    resources: Vec<(String, String)>,
    scope: String,
}

impl Rule {
    /// From a `RuleWithOperations`.
    pub fn new(rule: &Value) -> Self {
        let list = |key: &str| -> Vec<String> {
            let items = rule[key].as_array().into_iter().flatten();
            items.filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let split = |text: String| match text.split_once('/') {
            Some((resource, sub)) => (resource.to_owned(), sub.to_owned()),
            None => (text, String::new()),
        };
        Self {
            operations: list("operations"),
            groups: list("apiGroups"),
            versions: list("apiVersions"),
            resources: list("resources").into_iter().map(split).collect(),
            scope: rule["scope"].as_str().unwrap_or("*").to_owned(),
        }
    }

    /// Whether it takes in a request as if it were for `kind`, which is the request's own kind or another version of it.
    pub fn matches(&self, request: &Request<'_>, kind: &Kind) -> bool {
        let one = |list: &[String], value: &str| list.iter().any(|item| item == "*" || item == value);
        let clustered = request.namespace.is_empty() || is_namespace(kind);
        let in_scope = match self.scope.as_str() {
            "*" => true,
            "Namespaced" => !clustered,
            "Cluster" => clustered,
            _ => false,
        };
        in_scope
            && one(&self.operations, request.operation.name())
            && one(&self.groups, &kind.group)
            && one(&self.versions, &kind.version)
            && self.resources.iter().any(|(resource, sub)| {
                (resource == "*" || *resource == kind.plural) && (sub == "*" || sub == request.subresource)
            })
    }
}

fn is_namespace(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "namespaces"
}

/// One call of a webhook: in which version of the request's kind.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// The kind whose rule matched: the request's, or another version of it.
    pub kind: Arc<Kind>,
}

/// Whether the request concerns the webhook. `object` is the newest state, null on deletion.
pub(super) fn invocation(
    cache: &Arc<WatchCache>,
    kinds: &KindTable,
    webhook: &Webhook,
    request: &Request<'_>,
    object: &Value,
) -> ApiResult<Option<Invocation>> {
    if !selects_object(&webhook.objects, request, object) {
        return Ok(None);
    }
    let Some(kind) = matching_kind(kinds, &webhook.rules, webhook.equivalent, request) else {
        return Ok(None);
    };
    // late, because only here a missing namespace is a failure
    if !selects_namespace(cache, &webhook.namespaces, request, object)? {
        return Ok(None);
    }
    let holds = conditions_hold(cache, webhook, request, &kind, object)?;
    Ok(holds.then_some(Invocation { kind }))
}

/// Whether a webhook's match conditions hold. Where that cannot be said, its failure policy says whether the request
/// is refused or goes on without the webhook.
fn conditions_hold(
    cache: &Arc<WatchCache>,
    webhook: &Webhook,
    request: &Request<'_>,
    kind: &Kind,
    object: &Value,
) -> ApiResult<bool> {
    if webhook.conditions.is_empty() {
        return Ok(true);
    }
    let shown = |value: &Value| convert::shown_now(kind, request.object_type, value);
    let (object, old) = (shown(object), request.old.map_or(Value::Null, shown));
    let facts = Value::Object(review::facts(request, kind));
    let answers: Arc<dyn Answers> = Arc::new(ForUser::new(cache.clone(), request.user.clone()));
    let question = question(request);
    let inputs = Inputs {
        request: &facts,
        object: &object,
        old_object: &old,
        params: &Value::Null,
        namespace: &Value::Null,
        authorizer: Some((&answers, &question)),
    };
    match webhook.conditions.matches(&inputs) {
        Matched::Yes => Ok(true),
        Matched::No => Ok(false),
        Matched::Unknown(_) if !webhook.fails_closed => Ok(false),
        Matched::Unknown(why) => Err(ApiError::forbidden(request.kind, request.name, &why)),
    }
}

/// What `authorizer.requestResource` asks about.
pub fn question(request: &Request<'_>) -> Question {
    Question {
        group: request.kind.group.clone(),
        resource: request.kind.plural.clone(),
        subresource: request.subresource.to_owned(),
        namespace: request.namespace.to_owned(),
        name: request.name.to_owned(),
        ..Question::default()
    }
}

/// The kind in whose version rules match a request: its own, or, where `equivalent`, another version of the same
/// objects; earlier rules count first.
pub fn matching_kind(
    kinds: &KindTable,
    rules: &[Rule],
    equivalent: bool,
    request: &Request<'_>,
) -> Option<Arc<Kind>> {
    if rules.iter().any(|rule| rule.matches(request, request.kind)) {
        return Some(request.kind.clone());
    }
    if !equivalent || !request.kind.is_stored() {
        return None;
    }
    let others: Vec<&Arc<Kind>> = kinds
        .all()
        .iter()
        .filter(|k| k.storage_prefix == request.kind.storage_prefix && !Arc::ptr_eq(k, request.kind))
        .collect();
    rules.iter().find_map(|rule| others.iter().find(|k| rule.matches(request, k)).map(|k| (*k).clone()))
}

/// Whether a selector selects the object, as it is or as it was.
pub fn selects_object(selector: &LabelSelector, request: &Request<'_>, object: &Value) -> bool {
    let selects = |object: &Value| {
        object.is_object() && selector.matches(&meta::string_map(&object["metadata"]["labels"]))
    };
    selector.is_everything() || selects(object) || request.old.is_some_and(selects)
}

/// Whether a selector selects the request's namespace: the object itself where that is a namespace. Cluster-scoped
/// objects are always selected.
pub fn selects_namespace(
    cache: &WatchCache,
    selector: &LabelSelector,
    request: &Request<'_>,
    object: &Value,
) -> ApiResult<bool> {
    let of_namespaces = is_namespace(request.kind);
    if selector.is_everything() || request.namespace.is_empty() && !of_namespaces {
        return Ok(true);
    }
    if of_namespaces
        && request.subresource.is_empty()
        && matches!(request.operation, Operation::Create | Operation::Update)
    {
        return Ok(selector.matches(&meta::string_map(&object["metadata"]["labels"])));
    }
    let namespaces = api::kinds::find("", "v1", "namespaces").ok_or_else(ApiError::no_such_resource)?;
    match cache.get(namespaces, &namespaces.key("", request.namespace)) {
        Some(namespace) => Ok(selector.matches(namespace.labels())),
        None => Err(ApiError::not_found(namespaces, request.namespace)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::chain::Options;
    use crate::auth::UserInfo;
    use serde_json::json;

    fn matched(rule: Value, plural: (&str, &str, &str), namespace: &str, subresource: &str) -> String {
        let kinds = api::kinds::builtin();
        let kind = kinds.find(plural.0, plural.1, plural.2).unwrap();
        let request = Request {
            user: &UserInfo::anonymous(),
            operation: Operation::Create,
            kind,
            object_type: None,
            namespace,
            name: "x",
            subresource,
            old: None,
            options: Options::None,
        };
        let mut full = json!({"operations": ["CREATE"], "apiGroups": ["*"], "apiVersions": ["*"],
            "resources": ["*"], "scope": "*"});
        for (key, value) in rule.as_object().unwrap() {
            full[key] = value.clone();
        }
        matching_kind(kinds, &[Rule::new(&full)], true, &request).map_or("-".to_owned(), |k| k.api_version())
    }

    #[test]
    fn a_rule_names_operations_resources_and_scope() {
        let pods = ("", "v1", "pods");
        assert_eq!(matched(json!({}), pods, "a", ""), "v1");
        assert_eq!(matched(json!({}), pods, "a", "binding"), "-");
        assert_eq!(matched(json!({"resources": ["*/*"]}), pods, "a", "binding"), "v1");
        assert_eq!(matched(json!({"resources": ["pods/*"]}), pods, "a", ""), "v1");
        assert_eq!(matched(json!({"resources": ["*/binding"]}), pods, "a", ""), "-");
        assert_eq!(matched(json!({"operations": ["UPDATE"]}), pods, "a", ""), "-");
        assert_eq!(matched(json!({"apiGroups": ["apps"]}), pods, "a", ""), "-");
        assert_eq!(matched(json!({"scope": "Cluster"}), pods, "a", ""), "-");
        assert_eq!(matched(json!({"scope": "Namespaced"}), ("", "v1", "namespaces"), "x", ""), "-");
        assert_eq!(matched(json!({"scope": "Cluster"}), ("", "v1", "namespaces"), "x", ""), "v1");
    }

    #[test]
    fn another_version_of_the_same_objects_matches() {
        let rule = json!({"apiGroups": ["autoscaling"], "apiVersions": ["v2"],
            "resources": ["horizontalpodautoscalers"]});
        let older = ("autoscaling", "v1", "horizontalpodautoscalers");
        assert_eq!(matched(rule, older, "a", ""), "autoscaling/v2");
    }
}
