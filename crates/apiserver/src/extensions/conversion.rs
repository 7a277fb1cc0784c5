//! Conversion of custom resources by a webhook: a `ConversionReview` goes out, what comes back is checked. Rule: Kubernetes
//! documentation, "Versions in CustomResourceDefinitions", "Webhook conversion".

use std::sync::Arc;
use std::time::Duration;

use api::custom::{Conversion, Definition};
use api::field::{Cursor, ErrorList};
use serde_json::{Map, Value, json};

use crate::object_meta;
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;
use crate::webhook::{Hook, Hooks};

/// The reference's limit.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Objects in one review.
const BATCH: usize = 500;
/// Versions of reviews that we can speak.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// The webhook of a definition; why there is none where its configuration cannot be used.
type Made = Result<Arc<Hook>, String>;

/// Converts objects of other versions to `to` (`group/version`), in place. The first failure refuses all.
pub(super) async fn convert(
    cache: &WatchCache,
    definition: &Definition,
    objects: &mut [Value],
    to: &str,
) -> ApiResult<()> {
    let Conversion::Webhook(webhook) = &definition.family().conversion else { return Ok(()) };
    let mut others: Vec<&mut Value> = objects.iter_mut().filter(|o| o["apiVersion"] != to).collect();
    for batch in others.chunks_mut(BATCH) {
        let what = batch.first().map(|object| kind_of(object)).unwrap_or_default();
        let failed = |why: String| ApiError::failed(format!("conversion webhook for {what} {why}"));
        let converted = ask(cache, definition, webhook, batch, to)
            .await
            .map_err(|why| failed(format!("failed: {why}")))?;
        if converted.len() != batch.len() {
            let (got, sent) = (converted.len(), batch.len());
            return Err(failed(format!("returned {got} objects, expected {sent}")));
        }
        for (at, (slot, mut new)) in batch.iter_mut().zip(converted).enumerate() {
            check(slot, &mut new, to)
                .map_err(|why| failed(format!("returned invalid converted object at index {at}: {why}")))?;
            api::custom::normalise_numbers(&mut new);
            **slot = new;
        }
    }
    Ok(())
}

/// `group/version, Kind=kind`, as messages name what was to be converted.
fn kind_of(object: &Value) -> String {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    format!("{}, Kind={}", text("apiVersion"), text("kind"))
}

async fn ask(
    cache: &WatchCache,
    definition: &Definition,
    webhook: &Value,
    batch: &[&mut Value],
    to: &str,
) -> Result<Vec<Value>, String> {
    let hook = hook(definition, webhook)?;
    let asked = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
    let version = asked
        .filter_map(Value::as_str)
        .find(|v| REVIEWS.contains(v))
        .ok_or("does not support any known conversion review version")?;
    let (uid, review) = (uuid::Uuid::new_v4().to_string(), format!("apiextensions.k8s.io/{version}"));
    let request = json!({"kind": "ConversionReview", "apiVersion": review,
        "request": {"uid": uid, "desiredAPIVersion": to, "objects": batch}});
    let mut answer = hook.call(cache, &request, TIMEOUT).await.map_err(|e| e.to_string())?;
    if answer["kind"] != "ConversionReview" || answer["apiVersion"] != review.as_str() {
        return Err(format!(
            "expected webhook response of {review}, Kind=ConversionReview, got {}",
            kind_of(&answer)
        ));
    }
    let response = &mut answer["response"];
    if !response.is_object() {
        return Err("no response provided".to_owned());
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if response["uid"] != uid.as_str() {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(&response["uid"])));
    }
    let result = &response["result"];
    if result["status"] != "Success" {
        return Err(match text(&result["message"]) {
            message if !message.is_empty() => message,
            _ => format!("response.result.status was '{}', not 'Success'", text(&result["status"])),
        });
    }
    match response["convertedObjects"].take() {
        Value::Array(objects) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

fn hook(definition: &Definition, webhook: &Value) -> Made {
    let made = definition.family().memo(|| {
        let made: Made = Hooks::default().of(&webhook["clientConfig"]).map_err(|e| e.to_string());
        Arc::new(made)
    });
    made.downcast_ref::<Made>().cloned().unwrap_or_else(|| Err("the webhook was replaced".to_owned()))
}

/// Checks a converted object and puts back what a webhook may not change: all metadata but labels and annotations.
fn check(original: &Value, new: &mut Value, to: &str) -> Result<(), String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if new["apiVersion"] != to {
        let got = text(&new["apiVersion"]);
        return Err(format!("invalid groupVersion (expected {to}, received {got})"));
    }
    let (before, after) = (&original["metadata"], &new["metadata"]);
    for (what, a, b) in [
        ("kind", &original["kind"], &new["kind"]),
        ("name", &before["name"], &after["name"]),
        ("namespace", &before["namespace"], &after["namespace"]),
        ("UID", &before["uid"], &after["uid"]),
    ] {
        if text(a) != text(b) {
            return Err(format!("must have the same {what}: {} != {}", text(a), text(b)));
        }
    }
    let mut metadata = before.as_object().cloned().unwrap_or_default();
    for key in ["labels", "annotations"] {
        match &after[key] {
            Value::Null => {
                metadata.remove(key);
            }
            Value::Object(map) if is_texts(map) => {
                metadata.insert(key.to_owned(), after[key].clone());
            }
            _ => return Err(format!("metadata.{key} is no map of texts")),
        }
    }
    let metadata = Value::Object(metadata);
    let mut errors = ErrorList::default();
    let at = Cursor::at(&metadata, "metadata");
    object_meta::labels(&at.key("labels"), &mut errors);
    object_meta::annotations(&at.key("annotations"), &mut errors);
    if !errors.is_empty() {
        return Err(errors.aggregate());
    }
    new["metadata"] = metadata;
    Ok(())
}

fn is_texts(map: &Map<String, Value>) -> bool {
    map.values().all(Value::is_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn checked(mut new: Value, expected: &str) {
        let original = json!({"apiVersion": "example.com/v1", "kind": "Widget",
            "metadata": {"name": "w", "namespace": "a", "uid": "u", "generation": 3, "labels": {"a": "1"}}});
        let told = match check(&original, &mut new, "example.com/v2") {
            Ok(()) => new["metadata"].to_string(),
            Err(why) => why,
        };
        assert_eq!(told, expected);
    }

    #[test]
    fn a_webhook_may_change_labels_and_annotations_alone_of_the_metadata() {
        let metadata =
            json!({"name": "w", "namespace": "a", "uid": "u", "generation": 9, "annotations": {"x": "y"}});
        let converted = json!({"apiVersion": "example.com/v2", "kind": "Widget", "metadata": metadata});
        let with = |pointer: &str, value: Value| {
            let mut other = converted.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            other
        };
        checked(
            converted.clone(),
            r#"{"annotations":{"x":"y"},"generation":3,"name":"w","namespace":"a","uid":"u"}"#,
        );
        checked(
            with("/apiVersion", json!("v1")),
            "invalid groupVersion (expected example.com/v2, received v1)",
        );
        checked(with("/kind", json!("Gadget")), "must have the same kind: Widget != Gadget");
        checked(with("/metadata/uid", json!("v")), "must have the same UID: u != v");
        checked(with("/metadata/annotations", json!({"x": 1})), "metadata.annotations is no map of texts");
    }
}
