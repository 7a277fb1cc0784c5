//! Subresources and virtual resources with a behaviour of their own: binding, scale, finalize, tokens, reviews,
//! streams to nodes. Everything else goes the generic way.

use api::field::ErrorList;
use api::{codec, meta};
use client::Body;
use http::{Request, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::answer;
use crate::auth::authorize::Attributes;
use crate::auth::{AUTHENTICATED, UserInfo, token};
use crate::body::{self, WriteOptions};
use crate::negotiate::Form;
use crate::pipeline::{ApiServer, Call};
use crate::registry::{DeleteOptions, Target};
use crate::status::{ApiError, ApiResult};

/// Answers the request where its subresource (or virtual kind) is special; `None`: it is not.
pub async fn run(call: &Call<'_>) -> Option<ApiResult<Response<Body>>> {
    let (kind, info) = (call.kind, call.info);
    let answer =
        match (kind.group.as_str(), kind.plural.as_str(), info.subresource.as_str(), info.verb.as_str()) {
            ("", "pods", "log" | "exec" | "attach" | "portforward", _) => stream(call).await,
            ("", "pods", "binding", "create") => bind(call, &info.name).await,
            ("", "bindings", "", "create") => bind(call, "").await,
            ("", "pods", "eviction", "create") => evict(call).await,
            ("", "namespaces", "finalize", "update") => finalize(call).await,
            ("", "serviceaccounts", "token", "create") => request_token(call).await,
            (_, _, "scale", "get" | "update" | "patch") => scale(call).await,
            ("authentication.k8s.io", "tokenreviews", "", "create") => token_review(call),
            ("authentication.k8s.io", "selfsubjectreviews", "", "create") => self_review(call),
            ("authorization.k8s.io", plural, "", "create") => access_review(call, plural),
            ("", "componentstatuses", "", "get" | "list") => component_statuses(call),
            _ => return None,
        };
    Some(answer)
}

async fn stream(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let mut request = Request::builder().method(call.parts.method.clone()).uri(call.parts.uri.clone());
    if let Some(headers) = request.headers_mut() {
        headers.clone_from(&call.parts.headers);
    }
    if let Some(extensions) = request.extensions_mut() {
        *extensions = call.parts.extensions.clone();
    }
    let request = request.body(()).map_err(|e| ApiError::bad_request(e.to_string()))?;
    call.server.nodes.pod(&call.server.registry, call.target(), call.info, request).await
}

/// Assigns a pod to a node.
async fn bind(call: &Call<'_>, pod_name: &str) -> ApiResult<Response<Body>> {
    let options = WriteOptions::parse("CreateOptions", &call.info.query, &call.parts.headers)?;
    let binding = body::plain(&call.parts.headers, &call.body)?;
    let name = if pod_name.is_empty() { meta::name(&binding) } else { pod_name }.to_owned();
    let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
    let pods = api::kinds::find("", "v1", "pods").ok_or_else(ApiError::no_such_resource)?;
    let mut errors = ErrorList::default();
    let target_kind = binding["target"]["kind"].as_str().unwrap_or_default();
    if !matches!(target_kind, "" | "Node") {
        errors.not_supported("target.kind", &json!(target_kind), &["Node", "<empty>"]);
    }
    if node.is_empty() {
        errors.required("target.name", "");
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid_named("", "Binding", &name, &errors));
    }
    let target = Target { kind: pods, namespace: &call.info.namespace, name: &name, subresource: "binding" };
    let uid = meta::text(&binding, "uid").to_owned();
    call.server
        .registry
        .update(target, options.dry_run, |old| {
            if !uid.is_empty() && uid != meta::text(old, "uid") {
                let why = format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    meta::text(old, "uid")
                );
                return Err(ApiError::conflict(pods, &name, &why));
            }
            let refuse = |why: String| Err(ApiError::conflict_on("pods/binding", &name, &why));
            if meta::is_being_deleted(old) {
                return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
            }
            if let Some(taken) = old["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                return refuse(format!("pod {name} is already assigned to node {taken:?}"));
            }
            if old["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
                return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
            }
            let mut new = old.clone();
            new["spec"]["nodeName"] = json!(node);
            for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
                meta::child_mut(meta::metadata_mut(&mut new), "annotations")
                    .insert(key.clone(), value.clone());
            }
            set_condition(
                &mut new,
                &json!({"type": "PodScheduled", "status": "True",
                "lastProbeTime": null, "lastTransitionTime": meta::format_time(Timestamp::now())}),
            );
            Ok(new)
        })
        .await?;
    Ok(answer::value(
        201,
        &call.form()?,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Success", "code": 201}),
    ))
}

/// Puts a condition in the place of the one of its type.
fn set_condition(object: &mut Value, condition: &Value) {
    let Some(map) = object.as_object_mut() else { return };
    let status = meta::child_mut(map, "status");
    let list = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut() {
        match list.iter_mut().find(|c| c["type"] == condition["type"]) {
            Some(slot) => *slot = condition.clone(),
            None => list.push(condition.clone()),
        }
    }
}

/// Deletes a pod unless a disruption budget stands against it.
async fn evict(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let eviction = body::plain(&call.parts.headers, &call.body)?;
    let options = &eviction["deleteOptions"];
    let pod = call.server.registry.get(Target { subresource: "", ..call.target() }).await?;
    if let Some(budgets) = api::kinds::find("policy", "v1", "poddisruptionbudgets") {
        let prefix = format!("{}{}/", budgets.storage_prefix, call.info.namespace);
        let listed = call.server.registry.cache().list(budgets, &prefix, None).items;
        let covering: Vec<Value> = listed
            .iter()
            .map(|b| b.to_value())
            .filter(|b| {
                api::selector::LabelSelector::from_value(&b["spec"]["selector"])
                    .is_ok_and(|s| s.matches(pod.labels()))
            })
            .collect();
        if covering.len() > 1 {
            return Err(ApiError::bad_request(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
        let done = matches!(pod.value()["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if let Some(budget) = covering.first().filter(|_| !done) {
            take_disruption(call, meta::name(budget), &pod).await?;
        }
    }
    let delete = DeleteOptions {
        grace_period_seconds: options["gracePeriodSeconds"].as_i64(),
        uid: options["preconditions"]["uid"].as_str().map(str::to_owned),
        resource_version: options["preconditions"]["resourceVersion"].as_str().map(str::to_owned),
        propagation_policy: options["propagationPolicy"].as_str().map(str::to_owned),
        orphan_dependents: None,
        dry_run: call.info.query.all("dryRun").any(|v| v == "All"),
    };
    call.server.registry.delete(Target { subresource: "", ..call.target() }, &delete).await?;
    Ok(answer::value(
        201,
        &call.form()?,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Success", "code": 201}),
    ))
}

/// Counts an eviction against a budget.
async fn take_disruption(call: &Call<'_>, budget: &str, pod: &api::object::Object) -> ApiResult<()> {
    let Some(kind) = api::kinds::find("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
    let target = Target { kind, namespace: &call.info.namespace, name: budget, subresource: "status" };
    let now = meta::format_time(call.now());
    call.server
        .registry
        .update(target, false, |old| {
            let observed = old["status"]["observedGeneration"].as_i64().unwrap_or(0);
            let allowed = old["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
            if observed < old["metadata"]["generation"].as_i64().unwrap_or(0) || allowed <= 0 {
                let why = format!(
                    "The disruption budget {budget} needs {} healthy pods and has {} currently",
                    old["status"]["desiredHealthy"].as_i64().unwrap_or(0),
                    old["status"]["currentHealthy"].as_i64().unwrap_or(0)
                );
                return Err(ApiError::too_many_requests(
                    "Cannot evict pod as it would violate the pod's disruption budget.",
                    10,
                )
                .with_detail("causes", json!([{"reason": "DisruptionBudget", "message": why}])));
            }
            let mut new = old.clone();
            new["status"]["disruptionsAllowed"] = json!(allowed - 1);
            new["status"]["disruptedPods"][pod.name()] = json!(now);
            Ok(new)
        })
        .await
        .map(drop)
}

/// Removes finalizers from a namespace's spec; the last one removes the namespace.
async fn finalize(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let options = WriteOptions::parse("UpdateOptions", &call.info.query, &call.parts.headers)?;
    let object =
        body::decode(call.kind, &call.parts.headers, &call.body, options.validation, &mut Vec::new())?;
    let finalizers = object["spec"].get("finalizers").cloned();
    let named = object["metadata"].get("resourceVersion").cloned();
    let written = call
        .server
        .registry
        .update(call.target(), options.dry_run, |old| {
            let mut new = old.clone();
            if let Some(version) = &named {
                new["metadata"]["resourceVersion"] = version.clone();
            }
            match &finalizers {
                Some(list) => new["spec"]["finalizers"] = list.clone(),
                None => {
                    if let Some(spec) = new["spec"].as_object_mut() {
                        spec.remove("finalizers");
                    }
                }
            }
            Ok(new)
        })
        .await?;
    Ok(answer::object(200, &call.form()?, call.kind, &written.json, answer::Include::Metadata))
}

/// Shortest and longest lifetime of a requested token, and the default, in seconds.
const TOKEN_TIMES: (i64, i64, i64) = (600, 1 << 32, 3600);
/// Pods' tokens live this long although they ask for 3607 s, so that clients that never reload keep working.
const EXTENDED: i64 = 365 * 24 * 3600;

/// Makes a token of a service account.
async fn request_token(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let mut review = body::plain(&call.parts.headers, &call.body)?;
    let account = call.server.registry.get(Target { subresource: "", ..call.target() }).await?;
    let (shortest, longest, default) = TOKEN_TIMES;
    let asked = review["spec"]["expirationSeconds"].as_i64().unwrap_or(default);
    let mut errors = ErrorList::default();
    if asked < shortest {
        errors.invalid(
            "spec.expirationSeconds",
            &json!(asked),
            "may not specify a duration less than 10 minutes",
        );
    } else if asked > longest {
        errors.invalid(
            "spec.expirationSeconds",
            &json!(asked),
            "may not specify a duration larger than 2^32 seconds",
        );
    }
    let bound = review["spec"]["boundObjectRef"].clone();
    if !errors.is_empty() {
        return Err(ApiError::invalid_named(
            "authentication.k8s.io",
            "TokenRequest",
            &call.info.name,
            &errors,
        ));
    }
    let mut private = json!({"namespace": call.info.namespace,
        "serviceaccount": {"name": account.name(), "uid": account.uid()}});
    if let Some(kind) = bound["kind"].as_str() {
        let (plural, slot) = match kind {
            "Pod" => ("pods", "pod"),
            "Secret" => ("secrets", "secret"),
            other => {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to a {other}: only Pod and Secret can be bound",
                    call.info.name
                )));
            }
        };
        let kind = api::kinds::find("", "v1", plural).ok_or_else(ApiError::no_such_resource)?;
        let name = bound["name"].as_str().unwrap_or_default();
        let target = Target { kind, namespace: &call.info.namespace, name, subresource: "" };
        let object = call.server.registry.get(target).await?;
        if bound["uid"].as_str().is_some_and(|u| !u.is_empty() && u != object.uid()) {
            let why = format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                bound["uid"].as_str().unwrap_or_default()
            );
            return Err(ApiError::conflict(kind, name, &why));
        }
        private[slot] = json!({"name": object.name(), "uid": object.uid()});
        if let (true, Some(node)) = (slot == "pod", object.to_value()["spec"]["nodeName"].as_str()) {
            private["node"] = json!({"name": node});
        }
    }
    let now = call.now().as_second();
    let lifetime = if slot_is_pod(&private) && asked == 3607 {
        private["warnafter"] = json!(now + asked);
        EXTENDED
    } else {
        asked
    };
    let audiences = match review["spec"]["audiences"].as_array() {
        Some(list) if !list.is_empty() => list.clone(),
        _ => vec![json!(token::ISSUER)],
    };
    let claims = json!({"aud": audiences, "exp": now + lifetime, "iat": now, "nbf": now, "iss": token::ISSUER,
        "jti": uuid::Uuid::new_v4().to_string(), "kubernetes.io": private,
        "sub": format!("system:serviceaccount:{}:{}", call.info.namespace, account.name())});
    let signed = call.server.tokens.sign(&claims).map_err(|e| ApiError::internal(e.to_string()))?;
    let expires = Timestamp::from_second(now + asked).unwrap_or(Timestamp::MAX);
    if !review.is_object() {
        review = json!({});
    }
    review["kind"] = json!("TokenRequest");
    review["apiVersion"] = json!("authentication.k8s.io/v1");
    let meta = meta::metadata_mut(&mut review);
    meta.insert("name".to_owned(), json!(account.name()));
    meta.insert("namespace".to_owned(), json!(call.info.namespace));
    meta.insert("creationTimestamp".to_owned(), json!(meta::format_time(call.now())));
    review["spec"]["expirationSeconds"] = json!(asked);
    review["spec"]["audiences"] = json!(audiences);
    review["status"] = json!({"token": signed, "expirationTimestamp": meta::format_time(expires)});
    Ok(answer::value(201, &call.form()?, &review))
}

fn slot_is_pod(private: &Value) -> bool {
    private["pod"].is_object()
}

/// The user a service-account token stands for, while account and bound pod exist.
pub fn token_user(server: &ApiServer, text: &str, audiences: &[&str]) -> ApiResult<UserInfo> {
    let claims = server.tokens.check(text, audiences, Timestamp::now()).map_err(|why| {
        tracing::debug!(%why, "token refused");
        ApiError::unauthorized()
    })?;
    let exists = |plural: &str, name: &str, uid: &str| {
        api::kinds::find("", "v1", plural).is_some_and(|kind| {
            let cache = server.registry.cache();
            cache.get(kind, &kind.key(&claims.namespace, name)).is_some_and(|o| o.uid() == uid)
        })
    };
    if !exists("serviceaccounts", &claims.service_account, &claims.service_account_uid) {
        return Err(ApiError::unauthorized());
    }
    let mut user = UserInfo {
        name: format!("system:serviceaccount:{}:{}", claims.namespace, claims.service_account),
        uid: claims.service_account_uid.clone(),
        groups: vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{}", claims.namespace),
            AUTHENTICATED.to_owned(),
        ],
        extra: [(
            "authentication.kubernetes.io/credential-id".to_owned(),
            vec![format!("JTI={}", claims.id)],
        )]
        .into(),
    };
    if let Some((name, uid)) = &claims.pod {
        if !exists("pods", name, uid) {
            return Err(ApiError::unauthorized());
        }
        user.extra.insert("authentication.kubernetes.io/pod-name".to_owned(), vec![name.clone()]);
        user.extra.insert("authentication.kubernetes.io/pod-uid".to_owned(), vec![uid.clone()]);
    }
    Ok(user)
}

/// The `scale` view of a workload.
async fn scale(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let form = call.form()?;
    let object_target = Target { subresource: "", ..call.target() };
    if call.info.verb == "get" {
        let object = call.server.registry.get(object_target).await?;
        return Ok(answer::value(200, &form, &scale_of(&object.to_value())));
    }
    let options = WriteOptions::parse("UpdateOptions", &call.info.query, &call.parts.headers)?;
    let sent =
        if call.info.verb == "update" { Some(body::plain(&call.parts.headers, &call.body)?) } else { None };
    let patch = match sent {
        None => Some(crate::patching::Patch::parse(&body::media_type(&call.parts.headers), &call.body)?),
        Some(_) => None,
    };
    let mut result = Value::Null;
    let written = call
        .server
        .registry
        .update(object_target, options.dry_run, |old| {
            let wanted = match (&sent, &patch) {
                (Some(sent), _) => sent.clone(),
                (None, Some(patch)) => patch.apply_to(api::schema::Shape::Any, &scale_of(old))?,
                (None, None) => return Err(ApiError::bad_request("no scale given")),
            };
            let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
            let mut errors = ErrorList::default();
            if replicas < 0 {
                errors.invalid("spec.replicas", &json!(replicas), "must be greater than or equal to 0");
                return Err(ApiError::invalid_named("autoscaling", "Scale", &call.info.name, &errors));
            }
            let mut new = old.clone();
            new["spec"]["replicas"] = json!(replicas);
            if call.info.verb == "update" {
                match wanted["metadata"].get("resourceVersion") {
                    Some(version) if version.as_str().is_some_and(|v| !v.is_empty()) => {
                        new["metadata"]["resourceVersion"] = version.clone();
                    }
                    _ => {}
                }
            }
            let writer = crate::managed::Writer {
                type_name: &call.kind.type_name,
                api_version: call.kind.api_version(),
                manager: &options.manager,
                subresource: "scale",
                has_status: true,
                now: call.now(),
            };
            crate::managed::update(&writer, Some(old), &mut new);
            Ok(new)
        })
        .await?;
    result.clone_from(&serde_json::from_slice(&written.json).unwrap_or_default());
    Ok(answer::value(200, &form, &scale_of(&result)))
}

fn scale_of(object: &Value) -> Value {
    let mut metadata = json!({});
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(key) {
            metadata[key] = value.clone();
        }
    }
    let mut scale = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {}, "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)}});
    if let Some(replicas) = object["spec"]["replicas"].as_i64().filter(|r| *r != 0) {
        scale["spec"]["replicas"] = json!(replicas);
    }
    let selector = selector_text(&object["spec"]["selector"]);
    if !selector.is_empty() {
        scale["status"]["selector"] = json!(selector);
    }
    scale
}

/// A label selector (object form, or the plain map of a ReplicationController) in text form.
fn selector_text(selector: &Value) -> String {
    let labels = if selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some() {
        &selector["matchLabels"]
    } else {
        selector
    };
    let mut terms: Vec<String> =
        meta::string_map(labels).into_iter().map(|(k, v)| format!("{k}={v}")).collect();
    for e in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = e["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            e["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        terms.push(match e["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    terms.join(",")
}

fn token_review(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let mut review = body::plain(&call.parts.headers, &call.body)?;
    let asked: Vec<String> = review["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    let audiences: Vec<&str> =
        if asked.is_empty() { vec![token::ISSUER] } else { asked.iter().map(String::as_str).collect() };
    let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
    review["status"] = match token_user(call.server, &token, &audiences) {
        Ok(user) => json!({"authenticated": true, "user": user.to_value(), "audiences": audiences}),
        Err(_) => json!({"authenticated": false, "error": "invalid bearer token"}),
    };
    reviewed(call, review, "authentication.k8s.io/v1", "TokenReview")
}

fn self_review(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let review = json!({"metadata": {"creationTimestamp": meta::format_time(call.now())},
        "status": {"userInfo": call.user.to_value()}});
    reviewed(call, review, "authentication.k8s.io/v1", "SelfSubjectReview")
}

fn reviewed(call: &Call<'_>, mut review: Value, version: &str, kind: &str) -> ApiResult<Response<Body>> {
    review["apiVersion"] = json!(version);
    review["kind"] = json!(kind);
    meta::metadata_mut(&mut review);
    Ok(answer::value(201, &Form { view: crate::negotiate::View::Object, ..call.form()? }, &review))
}

/// Subject, self-subject and local-subject access reviews, and the list of one's own rules.
fn access_review(call: &Call<'_>, plural: &str) -> ApiResult<Response<Body>> {
    let shape = api::schema::root(&call.kind.type_name);
    let sent = if call.body.trim_ascii().is_empty() { &b"{}"[..] } else { &call.body };
    body::is_yaml(&call.parts.headers)?;
    let mut review = codec::decode_json(sent, shape).map_err(|e| ApiError::bad_request(e.to_string()))?.value;
    if plural == "selfsubjectrulesreviews" {
        return rules_review(call, review);
    }
    let spec = review["spec"].clone();
    let user = if plural == "selfsubjectaccessreviews" {
        call.user.clone()
    } else {
        let groups: Vec<&str> =
            spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        UserInfo {
            name: spec["user"].as_str().unwrap_or_default().to_owned(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            ..UserInfo::default()
        }
    };
    let resource = &spec["resourceAttributes"];
    let text = |key: &str| resource[key].as_str().unwrap_or_default();
    let other = &spec["nonResourceAttributes"];
    if resource.is_object() == other.is_object() {
        let mut errors = ErrorList::default();
        errors.invalid(
            "spec.nonResourceAttributes",
            other,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        );
        return Err(ApiError::invalid(call.kind, "", &errors));
    }
    let attributes = Attributes {
        verb: if resource.is_object() { text("verb") } else { other["verb"].as_str().unwrap_or_default() },
        group: text("group"),
        resource: match text("subresource") {
            "" => text("resource").to_owned(),
            sub => format!("{}/{sub}", text("resource")),
        },
        namespace: text("namespace"),
        name: text("name"),
        path: other["path"].as_str(),
    };
    let allowed = call.server.authorizer.allows(&user, &attributes);
    review["status"] = json!({"allowed": allowed});
    let version = call.kind.api_version();
    let kind = call.kind.kind.clone();
    reviewed(call, review, &version, &kind)
}

fn rules_review(call: &Call<'_>, mut review: Value) -> ApiResult<Response<Body>> {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default().to_owned();
    let (mut resources, mut others) = (Vec::new(), Vec::new());
    let mut add = |rule: &k8s_openapi::api::rbac::v1::PolicyRule| {
        if rule.resources.is_some() {
            resources
                .push(json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources,
                "resourceNames": rule.resource_names}));
        }
        if rule.non_resource_urls.is_some() {
            others.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
        false
    };
    call.server.authorizer.each_rule(call.user, &namespace, &mut add);
    if call.user.is_in(crate::auth::MASTERS) {
        resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        others.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    review["status"] = json!({"resourceRules": resources, "nonResourceRules": others, "incomplete": false});
    let version = call.kind.api_version();
    reviewed(call, review, &version, "SelfSubjectRulesReview")
}

/// The deprecated health of the control plane's parts: all live in this process.
fn component_statuses(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let one = |name: &str| json!({"metadata": {"name": name}, "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]});
    let names = ["controller-manager", "scheduler", "etcd-0"];
    let form = Form { view: crate::negotiate::View::Object, ..call.form()? };
    if call.info.verb == "list" {
        let items: Vec<Value> = names.iter().map(|n| one(n)).collect();
        let list = json!({"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": items});
        return Ok(answer::value(200, &form, &list));
    }
    if !names.contains(&call.info.name.as_str()) {
        return Err(ApiError::not_found(call.kind, &call.info.name));
    }
    let mut status = one(&call.info.name);
    status["kind"] = json!("ComponentStatus");
    status["apiVersion"] = json!("v1");
    Ok(answer::value(200, &form, &status))
}
