//! Tokens of a pod's service account: asked for, kept, and renewed before their end.
//!
//! Rule: Kubernetes documentation, "Configure Service Accounts for Pods", "Projected Volumes".

use client::Client;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use serde_json::{Value, json};

/// A token in force.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) text: String,
    /// When the next one is asked for.
    pub(super) renew: Timestamp,
}

/// When a token is renewed: after four fifths of its life, and after a day however long it lives.
fn renewal(now: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(now).as_secs();
    now.saturating_add(SignedDuration::from_secs((life * 4 / 5).min(24 * 3600))).unwrap_or(expires)
}

/// A token of the pod's service account, and when to get the next one.
pub(super) async fn fresh(
    client: &Client,
    pod: &Pod,
    audience: Option<&str>,
    seconds: i64,
) -> Result<Token, String> {
    let meta = &pod.metadata;
    let ns = meta.namespace.as_deref().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
    let audiences: Vec<&str> = audience.filter(|a| !a.is_empty()).into_iter().collect();
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
        "audiences": audiences, "expirationSeconds": seconds,
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta.name, "uid": meta.uid}}});
    let answer: Value = client
        .create_subresource::<ServiceAccount, _, _>(ns, account, "token", &request)
        .await
        .map_err(|e| format!("failed to fetch token: {e}"))?;
    let token = answer["status"]["token"].as_str().ok_or("the API server sent no token")?.to_owned();
    let expires: Timestamp = answer["status"]["expirationTimestamp"]
        .as_str()
        .and_then(|t| t.parse().ok())
        .ok_or("the API server sent no expiration")?;
    Ok(Token { text: token, renew: renewal(Timestamp::now(), expires) })
}

/// The user that all containers of a pod run as, where they are told to: it owns the pod's tokens.
///
/// Rule: Kubernetes documentation, "Projected Volumes" ("SecurityContext interactions").
pub(super) fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let whole = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut users = containers.map(|c| c.security_context.as_ref().and_then(|own| own.run_as_user).or(whole));
    let first = users.next()??;
    if users.all(|user| user == Some(first)) { u32::try_from(first).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_belongs_to_the_user_that_all_containers_run_as() {
        let owner = |whole: Value, own: Value, init: Value| {
            only_user(
                &serde_json::from_value(json!({"spec": {"securityContext": {"runAsUser": whole},
                    "containers": [{"name": "a", "securityContext": {"runAsUser": own}}],
                    "initContainers": [{"name": "b", "securityContext": {"runAsUser": init}}]}}))
                .unwrap(),
            )
        };
        use Value::Null;
        assert_eq!(owner(1000.into(), Null, Null), Some(1000));
        assert_eq!(owner(1000.into(), 7.into(), Null), None);
        assert_eq!(owner(1000.into(), 7.into(), 7.into()), Some(7));
        assert_eq!(owner(Null, 7.into(), Null), None);
        assert_eq!(owner(Null, Null, Null), None);
    }

    #[test]
    fn a_token_is_renewed_after_four_fifths_of_its_life_and_after_a_day_at_last() {
        let after =
            |life: i64| renewal(Timestamp::UNIX_EPOCH, Timestamp::from_second(life).unwrap()).as_second();
        assert_eq!([3600, 100_000, 365 * 86_400].map(after), [2880, 80_000, 86_400]);
    }
}
