//! CREATE, UPDATE, PATCH, DELETE and DELETECOLLECTION of any kind.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::field::ErrorList;
use api::kinds::Kind;
use api::object::Object;
use api::{codec, meta};
use client::Body;
use http::Response;
use serde_json::{Value, json};

use crate::admission::{Notes, Operation, Options, Request, chain};
use crate::answer::{self, ListMeta};
use crate::auth::UserInfo;
use crate::auth::authorize::{Attributes, Decision};
use crate::body::{self, Validation, WriteOptions};
use crate::deletion::Plan;
use crate::managed::{self, Writer};
use crate::negotiate::Form;
use crate::object_meta::{clear_meta, fill_meta};
use crate::patching;
use crate::pipeline::{ApiServer, Call};
use crate::read;
use crate::registry::{DeleteOptions, Deleted, Target, Written};
use crate::status::{self, ApiError, ApiResult};

/// Who writes, and how, as managed fields record it.
fn writer<'a>(call: &'a Call<'_>, options: &'a WriteOptions) -> Writer<'a> {
    Writer {
        shape: call.kind.shape(),
        api_version: call.kind.api_version(),
        manager: &options.manager,
        subresource: &call.info.subresource,
        has_status: crate::strategy::of(call.kind).has_status(),
        status_keeps: crate::strategy::of(call.kind).status_keeps(),
        now: call.now(),
    }
}

/// The answer to a write.
pub fn respond(call: &Call<'_>, form: &Form, written: &Written) -> ApiResult<Response<Body>> {
    let code = if written.created { 201 } else { 200 };
    let include = read::include_object(&call.info.query)?;
    Ok(answer::object(code, form, call.kind, &written.json, include))
}

/// Puts what admission left besides its decision into an answer: warnings for the client, annotations for the audit.
pub fn noted(response: &mut Response<Body>, notes: Notes) {
    body::add_warnings(response, &notes.warnings);
    if !notes.annotations.is_empty() {
        response.extensions_mut().insert(AuditAnnotations(notes.annotations));
    }
}

/// What admission wants in the request's audit event; an extension of the answer.
#[derive(Debug, Clone)]
pub struct AuditAnnotations(pub BTreeMap<String, String>);

/// Leaves one owner reference of each owner, and says so and `when` they were found.
fn dedup_owners(object: &mut Value, when: &str, warnings: &mut Vec<String>) {
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
            ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            repeated.join(", ")
        ));
    }
}

/// POST to a collection.
pub async fn create(call: &Call<'_>, notes: &mut Notes) -> ApiResult<Response<Body>> {
    let form = call.form()?;
    let options = WriteOptions::parse("CreateOptions", &call.info.query, &call.parts.headers)?;
    let mut object =
        body::decode(call.kind, &call.parts.headers, &call.body, options.validation, &mut notes.warnings)?;
    dedup_owners(&mut object, "", &mut notes.warnings);
    let namespace = namespace_of(call, &object)?;
    if !meta::text(&object, "resourceVersion").is_empty() {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let strategy = crate::strategy::of(call.kind);
    strategy.default(&mut object);
    clear_meta(call.kind, &namespace, &mut object);
    managed::update(&writer(call, &options), None, &mut object);
    let name = meta::name(&object).to_owned();
    let target = Target { namespace: &namespace, name: &name, ..call.target() };
    let written = store_new(call, target, object, &options, notes).await?;
    respond(call, &form, &written)
}

/// Admits, completes, validates and stores a new object.
async fn store_new(
    call: &Call<'_>,
    target: Target<'_>,
    mut object: Value,
    options: &WriteOptions,
    notes: &mut Notes,
) -> ApiResult<Written> {
    let (server, registry) = (call.server, &call.server.registry);
    // admission looks at other objects: it must see every write that was acknowledged before this one
    registry.cache().fresh().await?;
    let request = Request::of(call, Operation::Create, Options::Write(options)).about(target);
    chain::mutate(server, &request, &mut object, notes).await?;
    dedup_owners(&mut object, " after mutating admission happens", &mut notes.warnings);
    fill_meta(call.kind, &mut object, call.now());
    let new = registry.prepare_create(target, object)?;
    notes.warnings.extend(crate::strategy::of(call.kind).warnings(new.object(), None));
    let charged = chain::validate(server, &request, new.object(), notes).await?;
    match registry.insert(target, new, options.dry_run).await {
        Ok(written) => Ok(written),
        Err(error) => {
            charged.give_back(registry).await;
            Err(error)
        }
    }
}

/// Changes the object the URL names: `change` makes the new state from the newest one; then admission, completion,
/// validation, and compare-and-swap. All of it again where another write was faster.
pub async fn store_changed(
    call: &Call<'_>,
    options: &WriteOptions,
    notes: &mut Notes,
    mut change: impl FnMut(&Value, &mut Vec<String>) -> ApiResult<Value> + Send,
) -> ApiResult<Written> {
    let server = call.server;
    let request = Request::of(call, Operation::Update, Options::Write(options));
    let mut attempt = server.registry.begin_update(call.target(), options.dry_run).await?;
    loop {
        let mut new = change(attempt.old(), &mut notes.warnings)?;
        chain::mutate(server, &request.on(attempt.old()), &mut new, notes).await?;
        dedup_owners(&mut new, " after mutating admission happens", &mut notes.warnings);
        let new = attempt.prepare(new)?;
        let warnings = crate::strategy::of(call.kind).warnings(new.object(), Some(attempt.old()));
        notes.warnings.extend(warnings);
        notes.warnings.extend_from_slice(new.warnings());
        let charged = chain::validate(server, &request.on(attempt.old()), new.object(), notes).await?;
        match attempt.store(new).await {
            Ok(Some(written)) => return Ok(written),
            Ok(None) => charged.give_back(&server.registry).await,
            Err(error) => {
                charged.give_back(&server.registry).await;
                return Err(error);
            }
        }
    }
}

/// The namespace an object goes to: the URL's, which the object may repeat but not contradict.
pub fn namespace_of(call: &Call<'_>, object: &Value) -> ApiResult<String> {
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
    Ok(asked.to_owned())
}

/// PUT of an object or of a subresource that is a view of it (`status`, ...).
pub async fn update(call: &Call<'_>, notes: &mut Notes) -> ApiResult<Response<Body>> {
    let form = call.form()?;
    let options = WriteOptions::parse("UpdateOptions", &call.info.query, &call.parts.headers)?;
    let mut object =
        body::decode(call.kind, &call.parts.headers, &call.body, options.validation, &mut notes.warnings)?;
    namespace_matches(call, &object)?;
    name_matches(call, &object)?;
    dedup_owners(&mut object, "", &mut notes.warnings);
    let strategy = crate::strategy::of(call.kind);
    strategy.default(&mut object);
    // Whoever names a uid means that object, and none where it is gone.
    let is_meant = |uid: &str, found: &str| {
        if uid.is_empty() || uid == found {
            return Ok(());
        }
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {found}");
        Err(ApiError::conflict(call.kind, &call.info.name, &why))
    };
    let outcome = store_changed(call, &options, notes, |old, _| {
        is_meant(meta::text(&object, "uid"), meta::text(old, "uid"))?;
        Ok(finish(call, &options, old, object.clone()))
    })
    .await;
    let written = match outcome {
        Err(error)
            if error.is_not_found()
                && strategy.allows_create_on_update()
                && call.info.subresource.is_empty() =>
        {
            is_meant(meta::text(&object, "uid"), "")?;
            let namespace = call.target().namespace.to_owned();
            meta::metadata_mut(&mut object).remove("resourceVersion");
            clear_meta(call.kind, &namespace, &mut object);
            managed::update(&writer(call, &options), None, &mut object);
            may_create(call).await?;
            store_new(call, call.target(), object, &options, notes).await?
        }
        other => other?,
    };
    respond(call, &form, &written)
}

/// Who changes or applies what is not there makes it, and must be allowed to.
async fn may_create(call: &Call<'_>) -> ApiResult<()> {
    let attributes = Attributes { verb: "create", ..Attributes::of(call.info) };
    match call.server.authorizer.decide_fully(call.user, &attributes).await {
        Decision::Allowed(_) => Ok(()),
        Decision::Denied(why) | Decision::NoOpinion(why) => {
            Err(ApiError::forbidden(call.kind, &call.info.name, &why))
        }
    }
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

/// The result of a patch has the name and the namespace that the URL says.
fn stays_in_place(call: &Call<'_>, object: &Value) -> ApiResult<()> {
    name_matches(call, object)?;
    let (said, asked) = (meta::namespace(object), &call.info.namespace);
    if call.kind.namespaced && !said.is_empty() && said != asked {
        return Err(ApiError::bad_request(format!(
            "the namespace of the object ({said}) does not match the namespace on the URL ({asked})"
        )));
    }
    Ok(())
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

/// The last step before a changed object goes to admission: who owns which of its fields.
fn finish(call: &Call<'_>, options: &WriteOptions, old: &Value, mut new: Value) -> Value {
    let strategy = crate::strategy::of(call.kind);
    // what a write of `status` does not touch must not be recorded as the writer's
    if call.info.subresource == "status" {
        let context = crate::strategy::Context::new(call.now());
        strategy.prepare_status_update(&context, &mut new, old);
    } else if call.info.subresource.is_empty() && strategy.has_status() {
        crate::strategy::generic::copy("status", &mut new, old);
    }
    managed::update(&writer(call, options), Some(old), &mut new);
    new
}

/// PATCH in any of its forms.
pub async fn patch(call: &Call<'_>, notes: &mut Notes) -> ApiResult<Response<Body>> {
    let form = call.form()?;
    let options = WriteOptions::parse("PatchOptions", &call.info.query, &call.parts.headers)?;
    let media = body::media_type(&call.parts.headers);
    if media == "application/apply-patch+yaml" {
        return apply(call, &form, &options, notes).await;
    }
    let patch = patching::Patch::parse(&media, &call.body)?;
    if call.info.query.has("force") {
        let mut errors = ErrorList::default();
        errors.forbidden("force", "may not be specified for non-apply patch");
        return Err(ApiError::invalid_named("meta.k8s.io", "PatchOptions", "", &errors));
    }
    let written = store_changed(call, &options, notes, |old, warnings| {
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
        let decoded = codec::decode_value(patched.clone(), call.kind.body_shape())
            .map(|decoded| body::conform(call.kind, decoded))
            .map_err(|e| patch.does_not_fit(&patched, &e.to_string()))?;
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
        stays_in_place(call, &new)?;
        crate::strategy::of(call.kind).default(&mut new);
        Ok(finish(call, &options, old, new))
    })
    .await?;
    respond(call, &form, &written)
}

/// Server-side apply; makes the object where it is not there.
async fn apply(
    call: &Call<'_>,
    form: &Form,
    options: &WriteOptions,
    notes: &mut Notes,
) -> ApiResult<Response<Body>> {
    patching::require_manager(&call.info.query)?;
    let force = call.info.query.flag("force");
    let (applied, duplicates) = codec::parse_yaml(&call.body)
        .map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?;
    let applied = patching::check_applied(applied, duplicates, options.validation, &mut notes.warnings)?;
    let strategy = crate::strategy::of(call.kind);
    let finish_applied = |live: Option<&Value>| -> ApiResult<Value> {
        let mut new = managed::apply(&writer(call, options), call.kind, live, &applied, force)?;
        let decoded = codec::decode_value(new, call.kind.body_shape())
            .map(|decoded| body::conform(call.kind, decoded))
            .map_err(|e| ApiError::bad_request(e.to_string()))?;
        new = decoded.value;
        new["apiVersion"] = json!(call.kind.api_version());
        new["kind"] = json!(call.kind.kind);
        stays_in_place(call, &new)?;
        strategy.default(&mut new);
        Ok(new)
    };
    // a create may lose against another; then there is something to update
    for _ in 0..3 {
        let updated = store_changed(call, options, notes, |old, _| finish_applied(Some(old))).await;
        match updated {
            Err(error) if error.is_not_found() && call.info.subresource.is_empty() => {}
            other => return respond(call, form, &other?),
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
        clear_meta(call.kind, &namespace, &mut object);
        let target = Target { namespace: &namespace, ..call.target() };
        may_create(call).await?;
        match store_new(call, target, object, options, notes).await {
            Err(error) if error.code == 409 => {}
            other => return respond(call, form, &other?),
        }
    }
    Err(ApiError::stale(call.kind, &call.info.name))
}

/// The option that removes what cannot be read, and the verb that allows it.
const IGNORE_READ_ERROR: &str = "ignoreStoreReadErrorWithClusterBreakingPotential";
const IGNORE_READ_ERROR_VERB: &str = "unsafe-delete-ignore-read-errors";

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
    let grace = query.integer("gracePeriodSeconds").map_err(ApiError::bad_request)?;
    let given = |name: &str| query.has(name).then(|| query.get(name).to_owned());
    let own = |value: &Value| value.as_str().map(str::to_owned);
    let has_body = text.is_object();
    let of_body = text["dryRun"].as_array().into_iter().flatten().map(|way| way.as_str().unwrap_or_default());
    let dry: Vec<&str> = of_body.chain(query.all("dryRun")).collect();
    let options = DeleteOptions {
        grace_period_seconds: if has_body { text["gracePeriodSeconds"].as_i64().or(grace) } else { grace },
        uid: own(&text["preconditions"]["uid"]),
        resource_version: own(&text["preconditions"]["resourceVersion"]),
        propagation_policy: own(&text["propagationPolicy"]).or_else(|| given("propagationPolicy")),
        orphan_dependents: text["orphanDependents"]
            .as_bool()
            .or_else(|| query.has("orphanDependents").then(|| query.flag("orphanDependents"))),
        dry_run: !dry.is_empty(),
        ignore_read_error: text[IGNORE_READ_ERROR].as_bool().unwrap_or_else(|| query.flag(IGNORE_READ_ERROR)),
    };
    let mut errors = ErrorList::default();
    if let Some(policy) = &options.propagation_policy {
        if options.orphan_dependents.is_some() {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            errors.invalid("propagationPolicy", &json!(policy), why);
        }
        if !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan") {
            let policies = ["Foreground", "Background", "Orphan", "nil"];
            errors.not_supported("propagationPolicy", &json!(policy), &policies);
        }
    }
    body::check_dry_run(&dry, &mut errors);
    if errors.is_empty() {
        Ok(options)
    } else {
        Err(ApiError::invalid_named("meta.k8s.io", "DeleteOptions", "", &errors))
    }
}

/// Removes what cannot be read, where the caller says that he means it and may.
async fn unreadable(call: &Call<'_>, options: &DeleteOptions) -> ApiResult<Option<Deleted>> {
    if !options.ignore_read_error {
        return Ok(None);
    }
    let attributes = Attributes { verb: IGNORE_READ_ERROR_VERB, ..Attributes::of(call.info) };
    call.server.authorizer.authorize(call.user, &attributes).await?;
    call.server.registry.remove_unreadable(call.target(), options.dry_run).await
}

/// DELETE of one object.
pub async fn delete(call: &Call<'_>, notes: &mut Notes) -> ApiResult<Response<Body>> {
    let form = call.form()?;
    let options = delete_options(call)?;
    let request = Request::of(call, Operation::Delete, Options::Delete(&options));
    let deleted = match unreadable(call, &options).await? {
        Some(deleted) => deleted,
        None => remove(call.server, call.target(), &request, &options, notes).await?,
    };
    let (object, gone) = match deleted {
        Deleted::Gone(object) => (object, true),
        Deleted::Marked(object) => (object, false),
    };
    let include = read::include_object(&call.info.query)?;
    let response = if gone && !call.kind.delete_answers_object {
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
        notes.warnings.push(text.to_owned());
    }
    Ok(response)
}

/// Deletes an object that admission lets go.
async fn remove(
    server: &ApiServer,
    target: Target<'_>,
    request: &Request<'_>,
    options: &DeleteOptions,
    notes: &mut Notes,
) -> ApiResult<Deleted> {
    let mut attempt = server.registry.begin_delete(target, options).await?;
    loop {
        let plan = attempt.plan()?;
        if !matches!(plan, Plan::Nothing) {
            chain::admit(server, &request.on(attempt.old()), &mut Value::Null, notes).await?;
        }
        if let Some(done) = attempt.carry_out(plan).await? {
            return Ok(done);
        }
    }
}

/// How many objects of a collection are deleted at the same time.
const PARALLEL: usize = 16;

/// DELETE of a collection: the selected objects, a page at most; answers what they were.
pub async fn delete_collection(call: &Call<'_>, notes: &mut Notes) -> ApiResult<Response<Body>> {
    use futures_util::{StreamExt as _, TryStreamExt as _};
    let form = call.form()?;
    let options = delete_options(call)?;
    let page = read::page(&call.server.registry, call.kind, call.info).await?;
    let one = Arc::new(One {
        server: call.server.clone(),
        user: call.user.clone(),
        kind: call.kind.clone(),
        options,
    });
    let mut deletions = futures_util::stream::iter(page.items.clone())
        .map(|object| delete_one(one.clone(), object))
        .buffer_unordered(PARALLEL);
    while let Some(noted) = deletions.try_next().await? {
        notes.warnings.extend(noted.warnings);
        notes.annotations.extend(noted.annotations);
    }
    let meta =
        ListMeta { revision: page.meta.revision, next: page.meta.next, remaining: page.meta.remaining };
    let include = read::include_object(&call.info.query)?;
    let response = answer::list(&form, call.kind, page.items, &meta, include);
    Ok(response)
}

/// What the deletions of a collection's objects have in common.
struct One {
    server: Arc<ApiServer>,
    user: UserInfo,
    kind: Arc<Kind>,
    options: DeleteOptions,
}

async fn delete_one(one: Arc<One>, object: Arc<Object>) -> ApiResult<Notes> {
    let namespace = object.namespace().unwrap_or_default();
    let target = Target { kind: &one.kind, namespace, name: object.name(), subresource: "" };
    let request = Request {
        user: &one.user,
        operation: Operation::Delete,
        kind: &one.kind,
        object_type: None,
        namespace,
        // the request names none
        name: "",
        subresource: "",
        old: None,
        options: Options::Delete(&one.options),
    };
    let mut notes = Notes::default();
    match remove(&one.server, target, &request, &one.options, &mut notes).await {
        // somebody else was faster
        Err(error) if error.is_not_found() => Ok(notes),
        other => other.map(|_| notes),
    }
}
