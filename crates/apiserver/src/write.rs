//! CREATE, UPDATE, PATCH, DELETE and DELETECOLLECTION of any kind.

use std::sync::Arc;

use api::field::ErrorList;
use api::kinds::Kind;
use api::object::Object;
use api::{codec, meta, schema};
use client::Body;
use http::Response;
use serde_json::{Value, json};

use crate::admission::Request;
use crate::answer::{self, ListMeta};
use crate::body::{self, Validation, WriteOptions};
use crate::managed::{self, Writer};
use crate::negotiate::Form;
use crate::object_meta::begin_meta;
use crate::patching;
use crate::pipeline::{ApiServer, Call};
use crate::read;
use crate::registry::{DeleteOptions, Deleted, Target, Written};
use crate::status::{self, ApiError, ApiResult};

/// Who writes, and how, as managed fields record it.
fn writer<'a>(call: &'a Call<'_>, options: &'a WriteOptions) -> Writer<'a> {
    Writer {
        type_name: &call.kind.type_name,
        api_version: call.kind.api_version(),
        manager: &options.manager,
        subresource: &call.info.subresource,
        has_status: crate::strategy::of(call.kind).has_status(),
        now: call.now(),
    }
}

fn respond(
    call: &Call<'_>,
    form: &Form,
    written: &Written,
    warnings: &[String],
) -> ApiResult<Response<Body>> {
    let code = if written.created { 201 } else { 200 };
    let include = read::include_object(&call.info.query)?;
    let mut response = answer::object(code, form, call.kind, &written.json, include);
    body::add_warnings(&mut response, warnings);
    Ok(response)
}

/// Leaves one owner reference of each owner, and says so.
fn dedup_owners(object: &mut Value, warnings: &mut Vec<String>) {
    let Some(owners) = object.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut) else {
        return;
    };
    let (mut seen, mut repeated) = (Vec::<Value>::new(), Vec::<String>::new());
    owners.retain(|owner| {
        let uid = owner["uid"].as_str().unwrap_or_default();
        let first = !seen.iter().any(|s| s["uid"] == uid);
        if !first && !repeated.iter().any(|r| r == uid) {
            repeated.push(uid.to_owned());
        }
        seen.push(owner.clone());
        first
    });
    if !repeated.is_empty() {
        warnings.push(format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            repeated.join(", ")
        ));
    }
}

/// POST to a collection.
pub async fn create(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let form = call.form()?;
    let options = WriteOptions::parse("CreateOptions", &call.info.query, &call.parts.headers)?;
    let mut warnings = Vec::new();
    let mut object =
        body::decode(call.kind, &call.parts.headers, &call.body, options.validation, &mut warnings)?;
    dedup_owners(&mut object, &mut warnings);
    let namespace = namespace_of(call, &object)?;
    if !meta::text(&object, "resourceVersion").is_empty() {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let strategy = crate::strategy::of(call.kind);
    strategy.default(&mut object);
    begin_meta(call.kind, &namespace, &mut object, call.now());
    managed::update(&writer(call, &options), None, &mut object);
    let name = meta::name(&object).to_owned();
    let target = Target { namespace: &namespace, name: &name, ..call.target() };
    let written = store_new(call, target, object, options.dry_run, &mut warnings).await?;
    respond(call, &form, &written, &warnings)
}

/// Admits, completes, validates and stores a new object.
async fn store_new(
    call: &Call<'_>,
    target: Target<'_>,
    mut object: Value,
    dry_run: bool,
    warnings: &mut Vec<String>,
) -> ApiResult<Written> {
    let (server, registry) = (call.server, &call.server.registry);
    // admission looks at other objects: it must see every write that was acknowledged before this one
    registry.cache().fresh().await?;
    let request = Request { user: call.user, kind: call.kind, namespace: target.namespace, old: None };
    server.admission.create(&request, &mut object)?;
    let strategy = crate::strategy::of(call.kind);
    warnings.extend(strategy.warnings(&object, None));
    let new = registry.prepare_create(target, object)?;
    server.admission.validate(&server.authorizer, &request, new.object(), warnings)?;
    server.admission.charge(registry, &request, new.object(), dry_run).await?;
    registry.insert(target, new, dry_run).await
}

/// What admission of an update is about.
fn admission_request<'a>(call: &'a Call<'_>, old: &'a Value) -> Request<'a> {
    Request { user: call.user, kind: call.kind, namespace: call.target().namespace, old: Some(old) }
}

/// The namespace an object goes to: the URL's, which the object may repeat but not contradict.
fn namespace_of(call: &Call<'_>, object: &Value) -> ApiResult<String> {
    let (asked, said) = (call.info.namespace.as_str(), meta::namespace(object));
    if !call.kind.namespaced {
        return Ok(String::new());
    }
    if !said.is_empty() && said != asked {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
                .to_owned(),
        ));
    }
    if asked.is_empty() {
        return Err(ApiError::bad_request("an empty namespace may not be set during creation".to_owned()));
    }
    Ok(asked.to_owned())
}

/// PUT of an object or of a subresource that is a view of it (`status`, ...).
pub async fn update(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let form = call.form()?;
    let options = WriteOptions::parse("UpdateOptions", &call.info.query, &call.parts.headers)?;
    let mut warnings = Vec::new();
    let mut object =
        body::decode(call.kind, &call.parts.headers, &call.body, options.validation, &mut warnings)?;
    namespace_matches(call, &object)?;
    name_matches(call, &object)?;
    dedup_owners(&mut object, &mut warnings);
    let strategy = crate::strategy::of(call.kind);
    strategy.default(&mut object);
    let uid = meta::text(&object, "uid").to_owned();
    let outcome = call
        .server
        .registry
        .update(call.target(), options.dry_run, |old| {
            if !uid.is_empty() && uid != meta::text(old, "uid") {
                let why = format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    meta::text(old, "uid")
                );
                return Err(ApiError::conflict(call.kind, &call.info.name, &why));
            }
            finish(call, &options, old, object.clone(), &mut warnings)
        })
        .await;
    let written = match outcome {
        Err(error)
            if error.is_not_found()
                && strategy.allows_create_on_update()
                && call.info.subresource.is_empty() =>
        {
            let namespace = call.target().namespace.to_owned();
            meta::metadata_mut(&mut object).remove("resourceVersion");
            begin_meta(call.kind, &namespace, &mut object, call.now());
            managed::update(&writer(call, &options), None, &mut object);
            store_new(call, call.target(), object, options.dry_run, &mut warnings).await?
        }
        other => other?,
    };
    respond(call, &form, &written, &warnings)
}

fn name_matches(call: &Call<'_>, object: &Value) -> ApiResult<()> {
    let asked = &call.info.name;
    match meta::name(object) {
        "" => Err(ApiError::bad_request(format!(
            "the name of the object ({asked} based on URL) was undeterminable: name must be provided"
        ))),
        name if name != asked => Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({asked})"
        ))),
        _ => Ok(()),
    }
}

fn namespace_matches(call: &Call<'_>, object: &Value) -> ApiResult<()> {
    let said = meta::namespace(object);
    if call.kind.namespaced && !said.is_empty() && said != call.info.namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
                .to_owned(),
        ));
    }
    Ok(())
}

/// The last steps before a changed object goes to the registry: managed fields, admission.
fn finish(
    call: &Call<'_>,
    options: &WriteOptions,
    old: &Value,
    mut new: Value,
    warnings: &mut Vec<String>,
) -> ApiResult<Value> {
    // what a write of `status` does not touch must not be recorded as the writer's
    if call.info.subresource == "status" {
        let strategy = crate::strategy::of(call.kind);
        let context = crate::strategy::Context::new(call.now());
        strategy.prepare_status_update(&context, &mut new, old);
    } else if call.info.subresource.is_empty() && crate::strategy::of(call.kind).has_status() {
        crate::strategy::generic::copy("status", &mut new, old);
    }
    managed::update(&writer(call, options), Some(old), &mut new);
    let (server, request) = (call.server, admission_request(call, old));
    match call.info.subresource.as_str() {
        // what a pod runs can change through this subresource too
        "" | "ephemeralcontainers" => {
            server.admission.update(&server.authorizer, &request, &mut new, warnings)?;
        }
        sub => server.admission.update_subresource(&server.authorizer, &request, sub, &mut new)?,
    }
    Ok(new)
}

/// PATCH in any of its forms.
pub async fn patch(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let form = call.form()?;
    let options = WriteOptions::parse("PatchOptions", &call.info.query, &call.parts.headers)?;
    let media = body::media_type(&call.parts.headers);
    if media == "application/apply-patch+yaml" {
        return apply(call, &form, &options).await;
    }
    let patch = patching::Patch::parse(&media, &call.body)?;
    if call.info.query.has("force") {
        let mut errors = ErrorList::default();
        errors.forbidden("force", "may not be specified for non-apply patch");
        return Err(ApiError::invalid_named("meta.k8s.io", "PatchOptions", "", &errors));
    }
    let mut warnings = Vec::new();
    let written = call
        .server
        .registry
        .update(call.target(), options.dry_run, |old| {
            let patched = patch.apply(call.kind, old)?;
            let said = |key: &str| patched[key].as_str().unwrap_or_default();
            let (other_kind, other_version) = (said("kind"), said("apiVersion"));
            let same = other_kind == call.kind.kind && other_version == call.kind.api_version();
            let silent = other_kind.is_empty() && other_version.is_empty();
            if !(same || silent) {
                let why = format!(
                    "unable to decode {other_kind:?} in version {other_version:?} into a {}",
                    call.kind.kind
                );
                return Err(patch.does_not_fit(&patched, &why));
            }
            let decoded = codec::decode_value(patched.clone(), call.kind.shape())
                .map_err(|e| patch.does_not_fit(&patched, &e.to_string()))?;
            warnings.clear();
            match options.validation {
                Validation::Strict if !decoded.strict.is_empty() => {
                    let why = format!("strict decoding error: {}", decoded.strict.join(", "));
                    return Err(patch.does_not_fit(&patched, &why));
                }
                Validation::Warn => warnings.extend(decoded.strict),
                _ => {}
            }
            let mut new = decoded.value;
            new["apiVersion"] = json!(call.kind.api_version());
            new["kind"] = json!(call.kind.kind);
            name_matches(call, &new)?;
            namespace_matches(call, &new)?;
            crate::strategy::of(call.kind).default(&mut new);
            finish(call, &options, old, new, &mut warnings)
        })
        .await?;
    respond(call, &form, &written, &warnings)
}

/// Server-side apply; makes the object where it is not there.
async fn apply(call: &Call<'_>, form: &Form, options: &WriteOptions) -> ApiResult<Response<Body>> {
    patching::require_manager(&call.info.query)?;
    let force = call.info.query.flag("force");
    let (applied, duplicates) = codec::parse_yaml(&call.body)
        .map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?;
    let mut warnings = Vec::new();
    let applied = patching::check_applied(
        call.kind,
        &call.info.name,
        applied,
        duplicates,
        options.validation,
        &mut warnings,
    )?;
    let strategy = crate::strategy::of(call.kind);
    let finish_applied = |live: Option<&Value>| -> ApiResult<Value> {
        let mut new = managed::apply(&writer(call, options), call.kind, live, &applied, force)?;
        let decoded = codec::decode_value(new, schema::root(&call.kind.type_name))
            .map_err(|e| ApiError::bad_request(e.to_string()))?;
        new = decoded.value;
        new["apiVersion"] = json!(call.kind.api_version());
        new["kind"] = json!(call.kind.kind);
        strategy.default(&mut new);
        Ok(new)
    };
    // a create may lose against another; then there is something to update
    for _ in 0..3 {
        let updated = call
            .server
            .registry
            .update(call.target(), options.dry_run, |old| {
                let mut new = finish_applied(Some(old))?;
                let (server, request) = (call.server, admission_request(call, old));
                match call.info.subresource.as_str() {
                    "" => server.admission.update(&server.authorizer, &request, &mut new, &mut warnings)?,
                    sub => {
                        server.admission.update_subresource(&server.authorizer, &request, sub, &mut new)?
                    }
                }
                Ok(new)
            })
            .await;
        match updated {
            Err(error) if error.is_not_found() && call.info.subresource.is_empty() => {}
            other => return respond(call, form, &other?, &warnings),
        }
        let mut object = finish_applied(None)?;
        let namespace = namespace_of(call, &object)?;
        if !meta::text(&object, "uid").is_empty() {
            return Err(ApiError::conflict(
                call.kind,
                &call.info.name,
                &format!(
                    "uid mismatch: the provided object specified uid {}, and no existing object was found",
                    meta::text(&object, "uid")
                ),
            ));
        }
        meta::metadata_mut(&mut object).insert("name".to_owned(), json!(call.info.name));
        begin_meta(call.kind, &namespace, &mut object, call.now());
        let target = Target { namespace: &namespace, ..call.target() };
        match store_new(call, target, object, options.dry_run, &mut warnings).await {
            Err(error) if error.code == 409 => {}
            other => return respond(call, form, &other?, &warnings),
        }
    }
    Err(ApiError::stale(call.kind, &call.info.name))
}

/// The options of a deletion: the body's before the query's.
fn delete_options(call: &Call<'_>) -> ApiResult<DeleteOptions> {
    let text = body::plain(&call.parts.headers, &call.body)?;
    let query = &call.info.query;
    if let Some(kind) = text["kind"].as_str().filter(|k| *k != "DeleteOptions") {
        let version = text["apiVersion"].as_str().unwrap_or_default();
        return Err(ApiError::bad_request(format!(
            "no kind {kind:?} is registered for version {version:?} in scheme \"pkg/apis/meta/internalversion/scheme/register.go:27\""
        )));
    }
    let grace = match query.get("gracePeriodSeconds") {
        "" => None,
        given => Some(given.parse::<i64>().map_err(|_| {
            ApiError::bad_request(format!("strconv.ParseInt: parsing {given:?}: invalid syntax"))
        })?),
    };
    let given = |name: &str| Some(query.get(name).to_owned()).filter(|t| !t.is_empty());
    let own = |value: &Value| value.as_str().map(str::to_owned);
    let has_body = text.is_object();
    let options = DeleteOptions {
        grace_period_seconds: if has_body { text["gracePeriodSeconds"].as_i64().or(grace) } else { grace },
        uid: own(&text["preconditions"]["uid"]),
        resource_version: own(&text["preconditions"]["resourceVersion"]),
        propagation_policy: own(&text["propagationPolicy"]).or_else(|| given("propagationPolicy")),
        orphan_dependents: text["orphanDependents"]
            .as_bool()
            .or_else(|| query.has("orphanDependents").then(|| query.flag("orphanDependents"))),
        dry_run: query.all("dryRun").any(|v| v == "All")
            || text["dryRun"].as_array().is_some_and(|l| l.iter().any(|v| v == "All")),
    };
    let mut errors = ErrorList::default();
    if let Some(policy) = &options.propagation_policy {
        if !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan") {
            errors.not_supported(
                "propagationPolicy",
                &json!(policy),
                &["Foreground", "Background", "Orphan", "nil"],
            );
        } else if options.orphan_dependents.is_some() {
            errors.invalid(
                "propagationPolicy",
                &json!(policy),
                "orphanDependents and deletionPropagation cannot be both set",
            );
        }
    }
    if query.all("dryRun").any(|v| !v.is_empty() && v != "All") {
        errors.not_supported("dryRun", &json!(query.all("dryRun").collect::<Vec<_>>()), &["All"]);
    }
    if errors.is_empty() {
        Ok(options)
    } else {
        Err(ApiError::invalid_named("meta.k8s.io", "DeleteOptions", "", &errors))
    }
}

/// DELETE of one object.
pub async fn delete(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let form = call.form()?;
    let options = delete_options(call)?;
    call.server.admission.delete(call.kind, &call.info.name)?;
    let deleted = call.server.registry.delete(call.target(), &options).await?;
    let (object, gone) = match deleted {
        Deleted::Gone(object) => (object, true),
        Deleted::Marked(object) => (object, false),
    };
    let include = read::include_object(&call.info.query)?;
    let mut response = if gone && !call.kind.delete_answers_object {
        let status = status::success(call.kind, meta::name(&object), meta::text(&object, "uid"));
        answer::value(200, &Form { format: form.format, ..Form::JSON }, &status)
    } else {
        answer::object(200, &form, call.kind, &codec::encode_json(&object).into(), include)
    };
    let strategy = crate::strategy::of(call.kind);
    if call.kind.kind == "Job"
        && strategy.orphans_by_default()
        && options.propagation_policy.is_none()
        && options.orphan_dependents.is_none()
    {
        let text = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning";
        body::add_warnings(&mut response, &[text.to_owned()]);
    }
    Ok(response)
}

/// How many objects of a collection are deleted at the same time.
const PARALLEL: usize = 16;

/// DELETE of a collection: the selected objects, a page at most; answers what they were.
pub async fn delete_collection(call: &Call<'_>) -> ApiResult<Response<Body>> {
    use futures_util::{StreamExt as _, TryStreamExt as _};
    let form = call.form()?;
    let options = delete_options(call)?;
    let page = read::page(&call.server.registry, call.kind, call.info).await?;
    futures_util::stream::iter(page.items.clone())
        .map(|object| delete_one(call.server.clone(), call.kind.clone(), object, options.clone()))
        .buffer_unordered(PARALLEL)
        .try_collect::<()>()
        .await?;
    let meta =
        ListMeta { revision: page.meta.revision, next: page.meta.next, remaining: page.meta.remaining };
    Ok(answer::list(&form, call.kind, &page.items, &meta, read::include_object(&call.info.query)?))
}

async fn delete_one(
    server: Arc<ApiServer>,
    kind: Arc<Kind>,
    object: Arc<Object>,
    options: DeleteOptions,
) -> ApiResult<()> {
    let namespace = object.namespace().unwrap_or_default();
    let target = Target { kind: &kind, namespace, name: object.name(), subresource: "" };
    match server.registry.delete(target, &options).await {
        // somebody else was faster
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}
