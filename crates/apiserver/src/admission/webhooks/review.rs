//! `AdmissionReview`: what a webhook is shown, and what it may answer.

use std::collections::BTreeMap;

use api::kinds::Kind;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::Failure;
use super::compile::Webhook;
use crate::admission::chain::Request;
use crate::status::ApiError;

const GROUP: &str = "admission.k8s.io";
/// Versions of the review that we speak.
const VERSIONS: &[&str] = &["v1", "v1beta1"];

/// A review that is asked.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    uid: String,
    version: &'static str,
    /// The whole object to send.
    pub(super) body: Value,
}

/// A review that is answered, checked.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) allowed: bool,
    /// A JSON patch; empty for none.
    pub(super) patch: Vec<u8>,
    pub(super) patch_type: String,
    /// The `Status` of a refusal.
    pub(super) result: Value,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) warnings: Vec<String>,
}

/// The review of a request, shown in the version of `kind`; object and old object are in it already.
pub(super) fn ask(
    webhook: &Webhook,
    request: &Request<'_>,
    kind: &Kind,
    object: &Value,
    old: &Value,
) -> Result<Asked, Failure> {
    let known = |v: &String| VERSIONS.iter().find(|known| **known == v.as_str()).copied();
    let Some(version) = webhook.versions.iter().find_map(known) else {
        let why = "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)";
        return Err(Failure::calling(&webhook.name, why));
    };
    let uid = uuid::Uuid::new_v4().to_string();
    let mut asked = Map::new();
    asked.insert("uid".to_owned(), json!(uid));
    asked.extend(facts(request, kind));
    asked.insert("object".to_owned(), object.clone());
    asked.insert("oldObject".to_owned(), old.clone());
    let body =
        json!({"kind": "AdmissionReview", "apiVersion": format!("{GROUP}/{version}"), "request": asked});
    Ok(Asked { uid, version, body })
}

/// What an `AdmissionRequest` says besides its uid and the objects; shown in the version of `kind`.
pub fn facts(request: &Request<'_>, kind: &Kind) -> Map<String, Value> {
    let of_kind = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
    let of_resource = |k: &Kind| json!({"group": k.group, "version": k.version, "resource": k.plural});
    let shown = request.object_type.unwrap_or((&kind.group, &kind.version, &kind.kind));
    let mut facts = Map::new();
    let mut put = |key: &str, value: Value| facts.insert(key.to_owned(), value);
    put("kind", of_kind(shown));
    put("resource", of_resource(kind));
    put("requestKind", of_kind(request.type_name()));
    put("requestResource", of_resource(request.kind));
    for (key, text) in [
        ("subResource", request.subresource),
        ("requestSubResource", request.subresource),
        ("name", request.name),
        ("namespace", request.namespace),
    ] {
        if !text.is_empty() {
            put(key, json!(text));
        }
    }
    put("operation", json!(request.operation.name()));
    put("userInfo", request.user.to_value());
    put("dryRun", json!(request.is_dry_run()));
    put("options", request.options_value());
    facts
}

/// Checks an answer; what is wrong with it otherwise.
pub(super) fn check(asked: &Asked, answer: &Value, mutating: bool) -> Result<Answered, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if text(&answer["kind"]).is_empty() {
        return Err(format!("Object 'Kind' is missing in '{answer}'"));
    }
    let response = &answer["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    let strict = asked.version == "v1";
    if strict {
        if response["uid"] != asked.uid {
            return Err(format!("expected response.uid={:?}, got {:?}", asked.uid, text(&response["uid"])));
        }
        let named = |version: &str, kind: &str| format!("{version}, Kind={kind}");
        let expected = named(&format!("{GROUP}/v1"), "AdmissionReview");
        let got = named(&text(&answer["apiVersion"]), &text(&answer["kind"]));
        if got != expected {
            return Err(format!("expected webhook response of {expected}, got {got}"));
        }
    }
    let encoded = text(&response["patch"]);
    let patch = STANDARD.decode(&encoded).map_err(|e| format!("response.patch is no base64: {e}"))?;
    let has_type = !response["patchType"].is_null();
    let mut patch_type = text(&response["patchType"]);
    if strict {
        let complaint = match (mutating, !patch.is_empty(), has_type) {
            (true, true, false) => "webhook returned response.patch but not response.patchType",
            (true, false, true) => "webhook returned response.patchType but not response.patch",
            (true, true, true) if patch_type.is_empty() => {
                "webhook returned invalid response.patchType of \"\""
            }
            (false, true, _) => "validating webhook may not return response.patch",
            (false, _, true) => "validating webhook may not return response.patchType",
            _ => "",
        };
        if !complaint.is_empty() {
            return Err(complaint.to_owned());
        }
    } else {
        "JSONPatch".clone_into(&mut patch_type);
    }
    let annotations = response["auditAnnotations"].as_object().into_iter().flatten();
    let warnings = response["warnings"].as_array().into_iter().flatten();
    Ok(Answered {
        allowed: response["allowed"] == true,
        patch: if mutating { patch } else { Vec::new() },
        patch_type,
        result: response["status"].clone(),
        annotations: annotations.map(|(k, v)| (k.clone(), text(v))).collect(),
        warnings: warnings.map(text).collect(),
    })
}

/// A webhook's refusal as the client sees it: the webhook's own status, with its name before the message.
pub(super) fn refusal(webhook: &str, result: &Value) -> ApiError {
    let mut status = if result.is_object() { result.clone() } else { json!({}) };
    // a rejection is never a success
    if status["code"].as_u64().unwrap_or(0) < 400 {
        status["code"] = json!(400);
    }
    let said = |key: &str| result[key].as_str().filter(|t| !t.is_empty());
    let denied = format!("admission webhook {webhook:?} denied the request");
    status["message"] = match said("message").or_else(|| said("reason")) {
        Some(why) => json!(format!("{denied}: {why}")),
        None => json!(format!("{denied} without explanation")),
    };
    ApiError::of_status(&status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(response: Value, mutating: bool) -> String {
        let asked = Asked { uid: "u".to_owned(), version: "v1", body: Value::Null };
        let mut answer = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
            "response": {"uid": "u"}});
        for (key, value) in response.as_object().unwrap() {
            answer["response"][key] = value.clone();
        }
        match check(&asked, &answer, mutating) {
            Ok(answered) => answered.allowed.to_string(),
            Err(why) => why,
        }
    }

    #[test]
    fn an_answer_must_fit_its_question() {
        assert_eq!(checked(json!({"allowed": true}), true), "true");
        assert_eq!(checked(json!({"uid": "x"}), true), "expected response.uid=\"u\", got \"x\"");
        assert_eq!(
            checked(json!({"patch": "W10="}), true),
            "webhook returned response.patch but not response.patchType"
        );
        assert_eq!(
            checked(json!({"patchType": "JSONPatch"}), true),
            "webhook returned response.patchType but not response.patch"
        );
        assert_eq!(
            checked(json!({"patch": "W10="}), false),
            "validating webhook may not return response.patch"
        );
    }

    #[test]
    fn a_refusal_carries_the_webhook_s_own_status() {
        let shown = |result: Value| {
            let status = refusal("w", &result).to_value();
            format!("{} {} {}", status["code"], status["reason"], status["message"])
        };
        assert_eq!(
            shown(json!({"code": 403, "reason": "Forbidden", "message": "no"})),
            r#"403 "Forbidden" "admission webhook \"w\" denied the request: no""#
        );
        assert_eq!(
            shown(Value::Null),
            r#"400 null "admission webhook \"w\" denied the request without explanation""#
        );
        assert_eq!(
            shown(json!({"code": 200, "reason": "Because"})),
            r#"400 "Because" "admission webhook \"w\" denied the request: Because""#
        );
    }
}
