//! Subresources and virtual resources with a behaviour of their own: binding, scale, finalize, tokens, reviews,
//! streams to nodes. Everything else goes the generic way.

use api::codec;
use api::field::ErrorList;
use api::meta;
use client::Body;
use http::{Request, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

mod connect;
mod eviction;
pub mod proxy;
mod reviews;
mod scale;
mod tokens;

use crate::admission::chain::TypeName;
use crate::admission::{self, Notes, Operation, Options, chain};
use crate::answer;
use crate::body::{self, WriteOptions};
use crate::pipeline::Call;
use crate::registry::Target;
use crate::status::{ApiError, ApiResult};
use crate::write;

pub use tokens::token_user;

/// Answers the request where its subresource (or virtual kind) is special; `None`: it is not.
pub async fn run(call: &Call<'_>, notes: &mut Notes) -> Option<ApiResult<Response<Body>>> {
    let (kind, info) = (call.kind, call.info);
    if let Err(refused) = connect::admit(call, notes).await {
        return Some(Err(refused));
    }
    let answer =
        match (kind.group.as_str(), kind.plural.as_str(), info.subresource.as_str(), info.verb.as_str()) {
            ("", "pods", "log" | "exec" | "attach" | "portforward", _) => stream(call).await,
            ("", "pods" | "services" | "nodes", "proxy", _) => proxy::run(call).await,
            ("", "pods", "binding", "create") => bind(call, &info.name, notes).await,
            ("", "bindings", "", "create") => bind(call, "", notes).await,
            ("", "pods", "eviction", "create") => eviction::run(call, notes).await,
            ("", "namespaces", "finalize", "update") => finalize(call, notes).await,
            ("", "serviceaccounts", "token", "create") => tokens::request(call, notes).await,
            (_, _, "scale", "get" | "update" | "patch") => scale::run(call, notes).await,
            ("authentication.k8s.io", "tokenreviews", "", "create") => reviews::token(call, notes).await,
            ("authentication.k8s.io", "selfsubjectreviews", "", "create") => {
                reviews::own_user(call, notes).await
            }
            ("authorization.k8s.io", plural, "", "create") => reviews::access(call, plural, notes).await,
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

/// Labels of a node that its pods get.
const TOPOLOGY: &[&str] = &["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

/// Assigns a pod to a node.
async fn bind(call: &Call<'_>, pod_name: &str, notes: &mut Notes) -> ApiResult<Response<Body>> {
    let options = WriteOptions::parse("CreateOptions", &call.info.query, &call.parts.headers)?;
    let mut binding = body::plain(&call.parts.headers, &call.body)?;
    posted(call, &options, ("", "v1", "Binding"), &mut binding, notes).await?;
    let name = meta::name(&binding).to_owned();
    if !pod_name.is_empty() && pod_name != name {
        return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
    }
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
        // the reference answers 500 with the bare text
        return Err(ApiError::unprocessable(errors.aggregate()));
    }
    let target = Target { kind: pods, namespace: &call.info.namespace, name: &name, subresource: "binding" };
    let precondition = |old: &Value, key: &str, what: &str| {
        let (asked, found) = (meta::text(&binding, key), meta::text(old, key));
        if asked.is_empty() || asked == found {
            return Ok(());
        }
        let why =
            format!("Precondition failed: {what} in precondition: {asked}, {what} in object meta: {found}");
        Err(ApiError::conflict(pods, &name, &why))
    };
    // where a pod runs is known to it from the moment it is bound
    let topology: Vec<(String, String)> = api::kinds::find("", "v1", "nodes")
        .and_then(|nodes| call.server.registry.cache().get(nodes, &nodes.key("", &node)))
        .map(|found| {
            let labels = found.labels().iter();
            labels
                .filter(|(k, _)| TOPOLOGY.contains(&k.as_str()))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect()
        })
        .unwrap_or_default();
    call.server
        .registry
        .update(target, options.dry_run, |old| {
            precondition(old, "uid", "UID")?;
            precondition(old, "resourceVersion", "ResourceVersion")?;
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
            // What was only promised is kept.
            if let Some(status) = new["status"].as_object_mut() {
                status.remove("nominatedNodeName");
            }
            for (key, value) in &topology {
                meta::child_mut(meta::metadata_mut(&mut new), "labels").insert(key.clone(), json!(value));
            }
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
    let done =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answer::value(201, &call.form()?, &done))
}

/// Asks admission about an object that is posted to a subresource, or that is only looked at.
async fn posted(
    call: &Call<'_>,
    options: &WriteOptions,
    type_name: TypeName<'_>,
    object: &mut Value,
    notes: &mut Notes,
) -> ApiResult<()> {
    let (group, version, kind) = type_name;
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    if call.body.trim_ascii().is_empty() {
        return Err(body::unrecognized(
            kind,
            "couldn't get version/kind; json parse error: unexpected end of JSON input",
            &[],
        ));
    }
    if object.is_null() {
        *object = json!({});
    }
    let said = |key: &str| object[key].as_str().unwrap_or_default();
    let is_other = !said("kind").is_empty() && said("kind") != kind;
    if is_other {
        let short = said("apiVersion").rsplit('/').next().unwrap_or_default();
        return Err(ApiError::bad_request(format!(
            "{0} in version {short:?} cannot be handled as a {kind}: converting ({short}.{0}) to ({1}.{kind}): unknown conversion",
            said("kind"),
            if group.is_empty() { "core" } else { group.split('.').next().unwrap_or_default() },
        )));
    }
    if let Some(shape) = codec::shape_of(&api_version, kind) {
        let decoded = codec::decode_value(object.take(), shape).map_err(|why| {
            let text = format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}");
            ApiError::bad_request(text)
        })?;
        *object = decoded.value;
    }
    object["kind"] = json!(kind);
    object["apiVersion"] = json!(api_version);
    let request = admission::Request {
        object_type: Some(type_name),
        ..admission::Request::of(call, Operation::Create, Options::Write(options))
    };
    chain::admit(call.server, &request, object, notes).await
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

/// Removes finalizers from a namespace's spec; the last one removes the namespace.
async fn finalize(call: &Call<'_>, notes: &mut Notes) -> ApiResult<Response<Body>> {
    let options = WriteOptions::parse("UpdateOptions", &call.info.query, &call.parts.headers)?;
    let object =
        body::decode(call.kind, &call.parts.headers, &call.body, options.validation, &mut notes.warnings)?;
    let finalizers = object["spec"].get("finalizers").cloned();
    let named = object["metadata"].get("resourceVersion").cloned();
    let written = write::store_changed(call, &options, notes, |old, _| {
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
    write::respond(call, &call.form()?, &written)
}

/// The deprecated health of the control plane's parts: all live in this process.
fn component_statuses(call: &Call<'_>) -> ApiResult<Response<Body>> {
    const NAMES: [&str; 3] = ["scheduler", "controller-manager", "etcd-0"];
    let one = |name: &str| json!({"metadata": {"name": name}, "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]});
    let form = call.form()?;
    let include = crate::read::include_object(&call.info.query)?;
    if call.info.verb == "list" {
        let items: Vec<Value> = NAMES.iter().map(|name| one(name)).collect();
        let list = answer::list_view(&form, call.kind, &items, json!({}), include);
        return Ok(answer::value(200, &form, &list));
    }
    if !NAMES.contains(&call.info.name.as_str()) {
        return Err(ApiError::not_found(call.kind, &call.info.name));
    }
    let mut status = one(&call.info.name);
    status["kind"] = json!("ComponentStatus");
    status["apiVersion"] = json!("v1");
    Ok(answer::value(200, &form, &answer::view(&form, call.kind, &status, include, true)))
}
