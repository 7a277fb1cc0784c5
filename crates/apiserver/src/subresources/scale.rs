//! The `scale` view of a workload: read, update, patch, apply. Only the number of replicas can be changed through it.

use api::apply;
use api::custom::{self, ScalePaths};
use api::field::ErrorList;
use api::kinds::Kind;
use api::schema::{self, Shape};
use api::table::Printer;
use api::{codec, meta};
use client::Body;
use http::Response;
use serde_json::{Value, json};

use crate::admission::{Notes, Operation, Options, Request, chain};
use crate::answer::{self, Include};
use crate::body::{self, WriteOptions};
use crate::convert;
use crate::managed;
use crate::negotiate::{Form, View};
use crate::patching::{self, Patch};
use crate::pipeline::Call;
use crate::registry::Target;
use crate::status::{ApiError, ApiResult};

/// Where a workload has what its scale shows.
#[derive(Clone, Copy)]
struct Paths<'a> {
    replicas: &'a str,
    observed: &'a str,
    /// A selector in text form; none where `spec.selector` is one in object form.
    selector: Option<&'a str>,
}

impl<'a> Paths<'a> {
    fn of(kind: &'a Kind) -> Self {
        match kind.definition.as_ref().and_then(|definition| definition.own().scale.as_ref()) {
            Some(ScalePaths { replicas, status_replicas, selector }) => {
                Self { replicas, observed: status_replicas, selector: Some(selector) }
            }
            None => Self { replicas: "spec.replicas", observed: "status.replicas", selector: None },
        }
    }

    fn replicas(self, object: &Value) -> Option<i64> {
        custom::at(object, self.replicas)?.as_i64()
    }

    /// Sets the count, making the objects on the way.
    fn set_replicas(self, object: &mut Value, replicas: i64) {
        let mut at = object;
        for name in self.replicas.split('.') {
            if !at.is_object() {
                *at = json!({});
            }
            at = &mut at[name];
        }
        *at = json!(replicas);
    }

    fn scale_of(self, object: &Value) -> Value {
        let mut metadata = json!({});
        for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
            if let Some(value) = object["metadata"].get(key) {
                metadata[key] = value.clone();
            }
        }
        let observed = custom::at(object, self.observed).and_then(Value::as_i64).unwrap_or(0);
        let mut scale = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
            "spec": {}, "status": {"replicas": observed}});
        if let Some(replicas) = self.replicas(object).filter(|r| *r != 0) {
            scale["spec"]["replicas"] = json!(replicas);
        }
        let selector = match self.selector {
            None => selector_text(&object["spec"]["selector"]),
            Some("") => String::new(),
            Some(path) => custom::at(object, path).and_then(Value::as_str).unwrap_or_default().to_owned(),
        };
        if !selector.is_empty() {
            scale["status"]["selector"] = json!(selector);
        }
        scale
    }
}

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
    fn of(&self, paths: Paths<'_>, old: &Value) -> ApiResult<Value> {
        let wanted = match self {
            Self::Put(wanted) => wanted.clone(),
            Self::Patch(patch) => patch.apply_to(shape(), &paths.scale_of(old))?,
            Self::Apply { wanted, .. } => wanted.clone(),
        };
        codec::decode_value(wanted, shape()).map(|decoded| decoded.value).map_err(|e| {
            ApiError::bad_request(format!("Scale in version \"v1\" cannot be handled as a Scale: {e}"))
        })
    }
}

/// Answers a request to `scale`.
pub async fn run(call: &Call<'_>, notes: &mut Notes) -> ApiResult<Response<Body>> {
    let form = call.form()?;
    let target = Target { subresource: "", ..call.target() };
    let paths = Paths::of(call.kind);
    if call.info.verb == "get" {
        let object = call.server.registry.get(target).await?;
        let cache = call.server.registry.cache();
        let object = convert::from_storage(cache, call.kind, object.to_value()).await?;
        if paths.selector.is_some() && paths.replicas(&object).is_none() {
            // the reference answers 500
            let path = paths.replicas;
            return Err(ApiError::unprocessable(format!("the spec replicas field {path:?} does not exist")));
        }
        return Ok(shown(&form, &paths.scale_of(&object)));
    }
    let kind = if call.info.verb == "update" { "UpdateOptions" } else { "PatchOptions" };
    let options = WriteOptions::parse(kind, &call.info.query, &call.parts.headers)?;
    let change = Change::parse(call)?;
    let request = Request {
        object_type: Some(("autoscaling", "v1", "Scale")),
        ..Request::of(call, Operation::Update, Options::Write(&options))
    };
    let server = call.server;
    let mut attempt = server.registry.begin_update(target, options.dry_run).await?;
    let written = loop {
        let before = paths.scale_of(attempt.old());
        let mut wanted = change.of(paths, attempt.old())?;
        chain::mutate(server, &request.on(&before), &mut wanted, notes).await?;
        let new = attempt.prepare(scaled(call, &options, &change, attempt.old(), &wanted)?)?;
        let charged =
            chain::validate(server, &request.on(&before), &paths.scale_of(new.object()), notes).await?;
        match attempt.store(new).await {
            Ok(Some(written)) => break written,
            Ok(None) => charged.give_back(&server.registry).await,
            Err(error) => {
                charged.give_back(&server.registry).await;
                return Err(error);
            }
        }
    };
    let object = serde_json::from_slice(&written.json).unwrap_or_default();
    Ok(shown(&form, &paths.scale_of(&object)))
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
        errors.invalid("spec.replicas", &json!(replicas), "must be greater than or equal to 0");
        return Err(ApiError::invalid_named("autoscaling", "Scale", &call.info.name, &errors));
    }
    let (paths, mut new) = (Paths::of(call.kind), old.clone());
    paths.set_replicas(&mut new, replicas);
    let named = meta::text(wanted, "resourceVersion");
    if matches!(change, Change::Put(_)) && !named.is_empty() {
        meta::metadata_mut(&mut new).insert("resourceVersion".to_owned(), json!(named));
    }
    let (operation, force) = match change {
        Change::Apply { force, .. } => (apply::Operation::Apply, *force),
        _ => (apply::Operation::Update, false),
    };
    let is_changed = paths.replicas(old) != Some(replicas);
    let (version, manager) = (call.kind.api_version(), &options.manager);
    apply::scale(&mut new, paths.replicas, &version, manager, operation, force, is_changed)
        .map_err(managed::refused)?;
    Ok(new)
}

fn shown(form: &Form, scale: &Value) -> Response<Body> {
    match &form.view {
        View::Object => answer::value(200, form, scale),
        _ => answer::value(
            200,
            form,
            &answer::view_of(
                Printer::Named("autoscaling", "v1", "Scale"),
                form,
                scale,
                Include::Metadata,
                true,
            ),
        ),
    }
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
