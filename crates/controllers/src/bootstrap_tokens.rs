//! Bootstrap tokens: the Secrets of `kube-system` with which new nodes and their administrators join.
use std::collections::BTreeMap;

use client::{Cache, Caches, Selection};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use crate::ownership::name;

/// Where tokens are.
pub(crate) const NAMESPACE: &str = "kube-system";

/// The Secrets that are tokens, and no others.
pub(crate) fn cache(caches: &Caches) -> Cache<Secret> {
    caches.select(Selection {
        group: String::new(),
        version: "v1".to_owned(),
        plural: "secrets".to_owned(),
        namespace: NAMESPACE.to_owned(),
        field_selector: "type=bootstrap.kubernetes.io/token".to_owned(),
        label_selector: String::new(),
    })
}

fn text<'a>(data: Option<&'a BTreeMap<String, ByteString>>, key: &str) -> &'a str {
    data.and_then(|d| d.get(key)).and_then(|v| std::str::from_utf8(&v.0).ok()).unwrap_or_default()
}

/// How long the token holds; zero or less: it does not any more, which is also so where the time is no time. `None`: always.
pub(crate) fn left(secret: &Secret, now: Timestamp) -> Option<SignedDuration> {
    let until = text(secret.data.as_ref(), "expiration");
    if until.is_empty() {
        return None;
    }
    Some(until.parse::<Timestamp>().map_or(SignedDuration::ZERO, |until| until.duration_since(now)))
}

/// Id and secret of a token that signs at this time.
pub(crate) fn signs(secret: &Secret, now: Timestamp) -> Option<(&str, &str)> {
    let data = secret.data.as_ref();
    let id = name(&secret.metadata).strip_prefix("bootstrap-token-")?;
    let is_id = id.len() == 6 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let key = text(data, "token-secret");
    let holds = left(secret, now).is_none_or(|left| left > SignedDuration::ZERO);
    (is_id
        && holds
        && text(data, "token-id") == id
        && !key.is_empty()
        && text(data, "usage-bootstrap-signing") == "true")
        .then_some((id, key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_token_signs_while_it_holds_and_says_so() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("time");
        let token = |change: &[(&str, &str)], name: &str| -> Secret {
            let mut fields = BTreeMap::from([
                ("token-id", "abcdef"),
                ("token-secret", "0123456789abcdef"),
                ("usage-bootstrap-signing", "true"),
                ("expiration", "2026-01-01T01:00:00Z"),
            ]);
            fields.extend(change.iter().copied());
            let data: BTreeMap<_, _> = fields.into_iter().map(|(k, v)| (k, ByteString(v.into()))).collect();
            serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).expect("secret")
        };
        let name = "bootstrap-token-abcdef";
        assert_eq!(signs(&token(&[], name), now), Some(("abcdef", "0123456789abcdef")));
        assert_eq!(signs(&token(&[("expiration", "")], name), now), Some(("abcdef", "0123456789abcdef")));
        assert_eq!(signs(&token(&[], "bootstrap-token-fedcba"), now), None);
        for change in [
            ("expiration", "2026-01-01T00:00:00Z"),
            ("expiration", "tomorrow"),
            ("usage-bootstrap-signing", "yes"),
            ("token-secret", ""),
        ] {
            assert_eq!(signs(&token(&[change], name), now), None, "{change:?}");
        }
    }
}
