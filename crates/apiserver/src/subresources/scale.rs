//! The `scale` view of a workload: read, update, patch, apply. Only the number of replicas can be changed through it.

use api::apply;
use api::field::ErrorList;
use api::schema::{self, Shape};
use api::table::Printer;
use api::{codec, meta};
use client::Body;
use http::Response;
use serde_json::{Value, json};

use crate::admission::{Notes, Operation, Options, Request, chain};
use crate::answer::{self, Include};
use crate::body::{self, WriteOptions};
use crate::managed;
use crate::negotiate::{Form, View};
use crate::patching::{self, Patch};
use crate::pipeline::Call;
use crate::registry::Target;
use crate::status::{ApiError, ApiResult};
use crate::write;

/// Where the workload has its count.
const REPLICAS: &str = "spec.replicas";

fn shape() -> Shape<'static> {
    schema::root("io.k8s.api.autoscaling.v1.Scale")
}

/// What a request asks the scale to become.
enum Change {
    Put(Value),
    Patch(Patch),
    Apply { wanted: Value, force: bool },
}

impl Change {
    fn parse(call: &Call<'_>) -> ApiResult<Self> {
        if call.info.verb == "update" {
            return Ok(Self::Put(body::plain(&call.parts.headers, &call.body)?));
        }
        let media = body::media_type(&call.parts.headers);
        if media != "application/apply-patch+yaml" {
            return Ok(Self::Patch(Patch::parse(&media, &call.body)?));
        }
        patching::require_manager(&call.info.query)?;
        let (wanted, _) = codec::parse_yaml(&call.body)
            .map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}")))?;
        if wanted["kind"] != "Scale" || wanted["apiVersion"] != "autoscaling/v1" {
            return Err(ApiError::bad_request("an applied scale must be a Scale of autoscaling/v1"));
        }
        Ok(Self::Apply { wanted, force: call.info.query.flag("force") })
    }

    /// The scale as it shall be.
    fn of(&self, old: &Value) -> ApiResult<Value> {
        let wanted = match self {
            Self::Put(wanted) => wanted.clone(),
            Self::Patch(patch) => patch.apply_to(shape(), &scale_of(old))?,
            Self::Apply { wanted, .. } => wanted.clone(),
        };
        codec::decode_value(wanted, shape()).map(|decoded| decoded.value).map_err(|e| {
            ApiError::bad_request(format!("Scale in version \"v1\" cannot be handled as a Scale: {e}"))
        })
    }
}

/// Answers a request to `scale`.
pub async fn run(call: &Call<'_>) -> ApiResult<Response<Body>> {
    let form = call.form()?;
    let target = Target { subresource: "", ..call.target() };
    if call.info.verb == "get" {
        let object = call.server.registry.get(target).await?;
        return Ok(shown(&form, &object.to_value()));
    }
    let kind = if call.info.verb == "update" { "UpdateOptions" } else { "PatchOptions" };
    let options = WriteOptions::parse(kind, &call.info.query, &call.parts.headers)?;
    let change = Change::parse(call)?;
    let mut notes = Notes::default();
    let request = Request {
        object_type: Some(("autoscaling", "v1", "Scale")),
        ..Request::of(call, Operation::Update, Options::Write(&options))
    };
    let server = call.server;
    let mut attempt = server.registry.begin_update(target, options.dry_run).await?;
    let written = loop {
        let before = scale_of(attempt.old());
        let mut wanted = change.of(attempt.old())?;
        chain::mutate(server, &request.on(&before), &mut wanted, &mut notes).await?;
        let new = attempt.prepare(scaled(call, &options, &change, attempt.old(), &wanted)?)?;
        let charged =
            chain::validate(server, &request.on(&before), &scale_of(new.object()), &mut notes).await?;
        match attempt.store(new).await {
            Ok(Some(written)) => break written,
            Ok(None) => charged.give_back(&server.registry).await,
            Err(error) => {
                charged.give_back(&server.registry).await;
                return Err(error);
            }
        }
    };
    let mut response = shown(&form, &serde_json::from_slice(&written.json).unwrap_or_default());
    write::noted(&mut response, notes);
    Ok(response)
}

/// The workload with the wanted number of replicas.
fn scaled(
    call: &Call<'_>,
    options: &WriteOptions,
    change: &Change,
    old: &Value,
    wanted: &Value,
) -> ApiResult<Value> {
    let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let mut errors = ErrorList::default();
        errors.invalid(REPLICAS, &json!(replicas), "must be greater than or equal to 0");
        return Err(ApiError::invalid_named("autoscaling", "Scale", &call.info.name, &errors));
    }
    let mut new = old.clone();
    new["spec"]["replicas"] = json!(replicas);
    let named = meta::text(wanted, "resourceVersion");
    if matches!(change, Change::Put(_)) && !named.is_empty() {
        meta::metadata_mut(&mut new).insert("resourceVersion".to_owned(), json!(named));
    }
    let (operation, force) = match change {
        Change::Apply { force, .. } => (apply::Operation::Apply, *force),
        _ => (apply::Operation::Update, false),
    };
    let is_changed = old["spec"]["replicas"].as_i64() != Some(replicas);
    let (version, manager) = (call.kind.api_version(), &options.manager);
    apply::scale(&mut new, REPLICAS, &version, manager, operation, force, is_changed)
        .map_err(managed::refused)?;
    Ok(new)
}

fn shown(form: &Form, object: &Value) -> Response<Body> {
    let scale = scale_of(object);
    match &form.view {
        View::Object => answer::value(200, form, &scale),
        _ => answer::value(
            200,
            form,
            &answer::view_of(
                Printer::Named("autoscaling", "v1", "Scale"),
                form,
                &scale,
                Include::Metadata,
                true,
            ),
        ),
    }
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

/// A label selector (object form, or the plain map of a ReplicationController) in text form, sorted by label.
fn selector_text(selector: &Value) -> String {
    let labels = if selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some() {
        &selector["matchLabels"]
    } else {
        selector
    };
    let mut terms: Vec<(String, String)> =
        meta::string_map(labels).into_iter().map(|(k, v)| (k.to_owned(), format!("{k}={v}"))).collect();
    for e in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = e["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> =
            e["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let text = match e["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        terms.push((key.to_owned(), text));
    }
    terms.sort();
    terms.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_written_in_order_of_labels() {
        let selector = json!({"matchLabels": {"app": "x"}, "matchExpressions": [
            {"key": "z", "operator": "In", "values": ["2", "1"]}, {"key": "y", "operator": "Exists"}]});
        assert_eq!(selector_text(&selector), "app=x,y,z in (1,2)");
        assert_eq!(selector_text(&json!({"app": "x"})), "app=x");
    }
}
