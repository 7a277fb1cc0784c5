//! Who may ask the kubelet what: callers are known by certificate or by token, and the API server decides.
//!
//! Rule: Kubernetes documentation, "Kubelet authentication/authorization". Unlike upstream a stream into a container
//! needs the verb `create` whatever the method of its request.

use std::collections::HashMap;
use std::time::Duration;

use client::Client;
use futures_util::future::BoxFuture;
use http::Method;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::settings::Ages;

/// A caller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// The name.
    pub name: String,
    /// Groups.
    pub groups: Vec<String>,
    /// The id, where one is known.
    pub uid: String,
    /// What else the authenticator said.
    pub extra: std::collections::BTreeMap<String, Vec<String>>,
}

impl User {
    /// Whoever shows neither a certificate nor a token.
    pub fn anonymous() -> Self {
        let groups = vec!["system:unauthenticated".to_owned()];
        Self { name: "system:anonymous".to_owned(), groups, ..Self::default() }
    }
}

/// Who is asked about callers.
pub trait Access: Send + Sync {
    /// Whose token this is; the error is for the log.
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, String>>;
    /// Whether the user may do `verb` to a subresource of this node; the error is for the log.
    fn allows<'a>(
        &'a self,
        user: &'a User,
        verb: &'static str,
        subresource: &'static str,
    ) -> BoxFuture<'a, Result<bool, String>>;
}

/// Most answers that are kept.
const ANSWERS: usize = 1024;

struct Kept<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: std::hash::Hash + Eq, V: Clone> Kept<K, V> {
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn get(&self, key: &K) -> Option<V> {
        let kept = self.0.lock();
        kept.get(key).filter(|(until, _)| *until > Instant::now()).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V, age: Duration) {
        let mut kept = self.0.lock();
        let now = Instant::now();
        if kept.len() >= ANSWERS {
            kept.retain(|_, (until, _)| *until > now);
        }
        // with more live ones than that the next is asked for anew each time
        if kept.len() < ANSWERS {
            kept.insert(key, (now + age, value));
        }
    }
}

/// Asks the API server by TokenReview and SubjectAccessReview; answers are kept for a while.
pub struct Reviews {
    client: Client,
    node: String,
    ages: Ages,
    tokens: Kept<[u8; 32], Option<User>>,
    decisions: Kept<(User, &'static str, &'static str), bool>,
}

impl Reviews {
    /// For the node of that name; `ages`: so long answers hold.
    pub fn new(client: Client, node: String, ages: Ages) -> Self {
        Self { client, node, ages, tokens: Kept::new(), decisions: Kept::new() }
    }
}

impl Access for Reviews {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, String>> {
        Box::pin(async move {
            use sha2::{Digest, Sha256};
            // tokens themselves are not kept
            let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
            if let Some(known) = self.tokens.get(&key) {
                return Ok(known);
            }
            let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
            let review = TokenReview { spec, ..TokenReview::default() };
            let answer = self.client.create("", &review).await.map_err(|error| error.to_string())?;
            let status = answer.status.unwrap_or_default();
            if let Some(why) = status.error.filter(|why| !why.is_empty()) {
                // it may be known the next time
                return Err(why);
            }
            let user = status.user.filter(|_| status.authenticated == Some(true)).map(|user| User {
                name: user.username.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
                uid: user.uid.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            });
            self.tokens.put(key, user.clone(), self.ages.token);
            Ok(user)
        })
    }

    fn allows<'a>(
        &'a self,
        user: &'a User,
        verb: &'static str,
        subresource: &'static str,
    ) -> BoxFuture<'a, Result<bool, String>> {
        Box::pin(async move {
            let key = (user.clone(), verb, subresource);
            if let Some(known) = self.decisions.get(&key) {
                return Ok(known);
            }
            let attributes = ResourceAttributes {
                version: Some("v1".to_owned()),
                resource: Some("nodes".to_owned()),
                name: Some(self.node.clone()),
                verb: Some(verb.to_owned()),
                subresource: Some(subresource.to_owned()),
                ..ResourceAttributes::default()
            };
            let spec = SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                groups: Some(user.groups.clone()),
                uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
                extra: Some(user.extra.clone()).filter(|extra| !extra.is_empty()),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            };
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            let answer = self.client.create("", &review).await.map_err(|error| error.to_string())?;
            let allowed = answer.status.is_some_and(|status| status.allowed && status.denied != Some(true));
            self.decisions.put(key, allowed, if allowed { self.ages.yes } else { self.ages.no });
            Ok(allowed)
        })
    }
}

/// What a request needs: the verb, and subresources of the node of which one is enough. `first` is the first part of
/// its path, decoded as the request is routed.
pub(super) fn needed(method: &Method, first: &str) -> (&'static str, Vec<&'static str>) {
    if matches!(first, "exec" | "attach" | "portForward" | "run" | "cri") {
        return ("create", vec!["proxy"]);
    }
    let verb = match method.as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "get",
    };
    let subresources = match first {
        "stats" => vec!["stats"],
        "metrics" => vec!["metrics"],
        "logs" => vec!["log"],
        "pods" | "runningpods" => vec!["pods", "proxy"],
        "healthz" => vec!["healthz", "proxy"],
        "configz" => vec!["configz", "proxy"],
        "statusz" => vec!["statusz", "proxy"],
        "checkpoint" => vec!["checkpoint"],
        _ => vec!["proxy"],
    };
    (verb, subresources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_ask_for_the_subresource_they_belong_to() {
        let check = |method: Method, first: &str, verb: &str, subresources: &[&str]| {
            assert_eq!(needed(&method, first), (verb, subresources.to_vec()), "{method} {first}");
        };
        check(Method::GET, "metrics", "get", &["metrics"]);
        check(Method::GET, "stats", "get", &["stats"]);
        check(Method::GET, "pods", "get", &["pods", "proxy"]);
        check(Method::GET, "configz", "get", &["configz", "proxy"]);
        check(Method::GET, "statusz", "get", &["statusz", "proxy"]);
        check(Method::GET, "flagz", "get", &["proxy"]);
        check(Method::POST, "checkpoint", "create", &["checkpoint"]);
        check(Method::GET, "containerLogs", "get", &["proxy"]);
        check(Method::POST, "run", "create", &["proxy"]);
        check(Method::POST, "exec", "create", &["proxy"]);
        // a WebSocket begins with a GET and is no read
        check(Method::GET, "exec", "create", &["proxy"]);
    }
}
