//! serviceaccounts/token: making tokens; and whom a token stands for.
//!
//! Rule: Kubernetes documentation, "Managing Service Accounts", bound service account tokens.

use api::field::ErrorList;
use api::{meta, schema};
use client::Body;
use http::Response;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::posted;
use crate::admission::Notes;
use crate::answer;
use crate::auth::{AUTHENTICATED, UserInfo, legacy, token};
use crate::body::{self, WriteOptions};
use crate::managed::{self, Writer};
use crate::pipeline::{ApiServer, Call};
use crate::registry::Target;
use crate::status::{ApiError, ApiResult};

/// Shortest and longest lifetime of a requested token, and the default, in seconds.
const TOKEN_TIMES: (i64, i64, i64) = (600, 1 << 32, 3600);
/// Pods' tokens live this long although they ask for 3607 s, so that clients that never reload keep working.
const EXTENDED: i64 = 365 * 24 * 3600;

/// Makes a token of a service account.
pub async fn request(call: &Call<'_>, notes: &mut Notes) -> ApiResult<Response<Body>> {
    let options = WriteOptions::parse("CreateOptions", &call.info.query, &call.parts.headers)?;
    let mut review = body::plain(&call.parts.headers, &call.body)?;
    if !review.is_object() {
        review = json!({});
    }
    stands_for(call, &review)?;
    let account = call.server.registry.get(Target { subresource: "", ..call.target() }).await?;
    let of_token = ("authentication.k8s.io", "v1", "TokenRequest");
    posted(call, &options, of_token, &mut review, notes).await?;
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
        return Err(ApiError::invalid_named("authentication.k8s.io", "TokenRequest", "", &errors));
    }
    let mut private = json!({"namespace": call.info.namespace,
        "serviceaccount": {"name": account.name(), "uid": account.uid()}});
    if bound.is_object() {
        let text = |key: &str| bound[key].as_str().unwrap_or_default();
        let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
        let (plural, slot) = match (group, text("kind")) {
            ("", "Pod") => ("pods", "pod"),
            ("", "Secret") => ("secrets", "secret"),
            ("", "Node") => ("nodes", "node"),
            (_, kind) => {
                let why = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
                return Err(ApiError::bad_request(why));
            }
        };
        let kind = api::kinds::find("", "v1", plural).ok_or_else(ApiError::no_such_resource)?;
        let name = text("name");
        let namespace = if kind.namespaced { call.info.namespace.as_str() } else { "" };
        let target = Target { kind, namespace, name, subresource: "" };
        let object = call.server.registry.get(target).await?;
        if slot == "pod" && object.to_value()["spec"]["serviceAccountName"] != call.info.name.as_str() {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount {} to pod running with different serviceaccount name.",
                api::field::quote(&call.info.name)
            )));
        }
        if !text("uid").is_empty() && text("uid") != object.uid() {
            let why = format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                text("uid")
            );
            return Err(ApiError::precondition(kind, name, &why));
        }
        private[slot] = json!({"name": object.name(), "uid": object.uid()});
        if let (true, Some(node)) = (slot == "pod", object.to_value()["spec"]["nodeName"].as_str()) {
            private["node"] = json!({"name": node});
            let nodes = api::kinds::find("", "v1", "nodes").ok_or_else(ApiError::no_such_resource)?;
            if let Some(found) = call.server.registry.cache().get(nodes, &nodes.key("", node)) {
                private["node"]["uid"] = json!(found.uid());
            }
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
    review["kind"] = json!("TokenRequest");
    review["apiVersion"] = json!("authentication.k8s.io/v1");
    let meta = meta::metadata_mut(&mut review);
    meta.insert("name".to_owned(), json!(account.name()));
    meta.insert("namespace".to_owned(), json!(call.info.namespace));
    meta.insert("creationTimestamp".to_owned(), json!(meta::format_time(call.now())));
    meta.insert("uid".to_owned(), json!(uuid::Uuid::new_v4().to_string()));
    let writer = Writer {
        shape: schema::root("io.k8s.api.authentication.v1.TokenRequest"),
        api_version: "authentication.k8s.io/v1".to_owned(),
        manager: &options.manager,
        subresource: "token",
        has_status: false,
        status_keeps: &[],
        now: call.now(),
    };
    managed::update(&writer, None, &mut review);
    review["spec"]["boundObjectRef"] = bound;
    review["spec"]["expirationSeconds"] = json!(asked);
    review["spec"]["audiences"] = json!(audiences);
    review["status"] = json!({"token": signed, "expirationTimestamp": meta::format_time(expires)});
    Ok(answer::value(201, &call.form()?, &review))
}

/// A request may repeat whose token it is, but not contradict the URL.
fn stands_for(call: &Call<'_>, review: &Value) -> ApiResult<()> {
    let mut errors = ErrorList::default();
    for (key, said, asked) in [
        ("name", meta::name(review), &call.info.name),
        ("namespace", meta::namespace(review), &call.info.namespace),
    ] {
        if !said.is_empty() && said != asked && errors.is_empty() {
            let why = format!("must match the service account {key} if specified");
            errors.invalid(&format!("metadata.{key}"), &json!(said), &why);
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid_named("authentication.k8s.io", "TokenRequest", &call.info.name, &errors))
}

fn slot_is_pod(private: &Value) -> bool {
    private["pod"].is_object()
}

/// Tokens hold so long after the deletion of what they are bound to, so that its last acts are possible.
const LEEWAY: std::time::Duration = std::time::Duration::from_secs(60);

/// Whether an object was to be gone before a time.
fn is_over(object: &Value, before: Timestamp) -> bool {
    let deleted = object["metadata"]["deletionTimestamp"].as_str();
    deleted.and_then(|t| t.parse::<Timestamp>().ok()).is_some_and(|t| t < before)
}

/// The user a service-account token stands for, while account and bound pod exist; and its audiences.
pub async fn token_user(
    server: &ApiServer,
    text: &str,
    audiences: &[&str],
) -> ApiResult<(UserInfo, Vec<String>)> {
    let claims = server.tokens.check(text, audiences, Timestamp::now()).map_err(|why| {
        tracing::debug!(%why, "token refused");
        ApiError::unauthorized()
    })?;
    // an account that was deleted a moment ago has no power any more
    server.registry.cache().fresh().await?;
    let gone_before = Timestamp::now() - LEEWAY;
    let exists = |plural: &str, name: &str, uid: &str| {
        api::kinds::find("", "v1", plural).is_some_and(|kind| {
            let namespace = if kind.namespaced { claims.namespace.as_str() } else { "" };
            let found = server.registry.cache().get(kind, &kind.key(namespace, name));
            found.is_some_and(|o| o.uid() == uid && !is_over(o.value(), gone_before))
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
        ..UserInfo::default()
    };
    if claims.legacy {
        user.legacy_token = Some(legacy::check(server, text, &claims).await?);
        return Ok((user, claims.audiences));
    }
    let id = vec![format!("JTI={}", claims.id)];
    user.extra.insert("authentication.kubernetes.io/credential-id".to_owned(), id);
    if claims.secret.as_ref().is_some_and(|(name, uid)| !exists("secrets", name, uid)) {
        return Err(ApiError::unauthorized());
    }
    if let Some((name, uid)) = &claims.node {
        // a pod's token outlives its node's object, as the pod does
        if claims.pod.is_none() && !exists("nodes", name, uid) {
            return Err(ApiError::unauthorized());
        }
        user.extra.insert("authentication.kubernetes.io/node-name".to_owned(), vec![name.clone()]);
        if !uid.is_empty() {
            user.extra.insert("authentication.kubernetes.io/node-uid".to_owned(), vec![uid.clone()]);
        }
    }
    if let Some((name, uid)) = &claims.pod {
        if !exists("pods", name, uid) {
            return Err(ApiError::unauthorized());
        }
        user.extra.insert("authentication.kubernetes.io/pod-name".to_owned(), vec![name.clone()]);
        user.extra.insert("authentication.kubernetes.io/pod-uid".to_owned(), vec![uid.clone()]);
    }
    server.token_uses.note_bound();
    Ok((user, claims.audiences))
}
