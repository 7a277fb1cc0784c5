//! Acting as somebody else, where the caller may.
//!
//! Two ways, as upstream has them: `impersonate` on every user, group, uid and extra value that is asked for; or, for
//! one action only, the constrained verbs `impersonate:<mode>` on who and `impersonate-on:<mode>:<verb>` on what.
//!
//! Rule: Kubernetes documentation, "User impersonation"; KEP-5284.

use std::collections::BTreeMap;

use http::HeaderMap;

use super::authorize::{Attributes, Authorizer};
use super::{AUTHENTICATED, UNAUTHENTICATED, UserInfo};
use crate::request_info::decode;
use crate::status::{ApiError, ApiResult};

/// The group of what is impersonated by constrained rules, and of uids and extra values.
const GROUP: &str = "authentication.k8s.io";
/// Where a token says on which node its pod runs.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// The user to act as, or `None` where the request acts for its sender.
pub async fn impersonated(
    authorizer: &Authorizer,
    user: &UserInfo,
    headers: &HeaderMap,
    action: &Attributes<'_>,
) -> ApiResult<Option<UserInfo>> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    if !constrained(authorizer, user, &wanted, action).await {
        for part in parts(&wanted) {
            authorizer.authorize(user, &part.attributes("impersonate", part.group)).await?;
        }
    }
    Ok(Some(complete(wanted)))
}

/// What the headers ask for, as it stands there.
fn wanted(headers: &HeaderMap) -> ApiResult<Option<UserInfo>> {
    // most requests have none of them: one walk says so
    if !headers.keys().any(|k| k.as_str().starts_with("impersonate-")) {
        return Ok(None);
    }
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|v| v.to_str().ok().map(str::to_owned)).collect()
    };
    let (name, groups) = (text("impersonate-user"), all("impersonate-group"));
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for key in headers.keys() {
        if let Some(suffix) = key.as_str().strip_prefix("impersonate-extra-") {
            extra.insert(decode(suffix), all(key.as_str()));
        }
    }
    let uid = text("impersonate-uid");
    if name.is_empty() {
        let rest = !(groups.is_empty() && extra.is_empty() && uid.is_empty());
        return match rest {
            false => Ok(None),
            true => Err(ApiError::bad_request(format!(
                "requested {} without impersonating a user",
                serde_json::json!(groups)
            ))),
        };
    }
    Ok(Some(UserInfo { name, uid, groups, extra, legacy_token: None }))
}

/// One thing that must be allowed.
struct Part<'a> {
    group: &'a str,
    resource: String,
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Part<'a> {
    fn attributes(&'a self, verb: &'a str, group: &'a str) -> Attributes<'a> {
        Attributes {
            verb,
            group,
            resource: self.resource.clone(),
            namespace: self.namespace,
            name: self.name,
            ..Attributes::default()
        }
    }
}

fn service_account(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("system:serviceaccount:")?.split_once(':')
}

fn parts(wanted: &UserInfo) -> Vec<Part<'_>> {
    let one = |group, resource: &str, namespace, name| Part {
        group,
        resource: resource.to_owned(),
        namespace,
        name,
    };
    let mut parts = vec![match service_account(&wanted.name) {
        Some((namespace, name)) => one("", "serviceaccounts", namespace, name),
        None => one("", "users", "", &wanted.name),
    }];
    parts.extend(wanted.groups.iter().map(|g| one("", "groups", "", g)));
    for (key, values) in &wanted.extra {
        parts.extend(values.iter().map(|v| one(GROUP, &format!("userextras/{key}"), "", v)));
    }
    if !wanted.uid.is_empty() {
        parts.push(one(GROUP, "uids", "", &wanted.uid));
    }
    parts
}

/// Whether constrained rules allow this caller this user for this action.
async fn constrained(
    authorizer: &Authorizer,
    user: &UserInfo,
    wanted: &UserInfo,
    action: &Attributes<'_>,
) -> bool {
    for mode in modes(user, wanted) {
        let on = format!("impersonate-on:{mode}:{}", action.verb);
        let what = Attributes { verb: &on, ..action.clone() };
        if !authorizer.admits(user, &what).await {
            continue;
        }
        let verb = format!("impersonate:{mode}");
        let mut all = true;
        for mut part in parts(wanted) {
            // a node is named as such; the node of one's own needs no name
            if let Some(node) = wanted.name.strip_prefix("system:node:").filter(|_| part.resource == "users")
                && mode.ends_with("-node")
            {
                part.resource = "nodes".to_owned();
                part.name = if mode == "associated-node" { "*" } else { node };
            }
            all = all && authorizer.admits(user, &part.attributes(&verb, GROUP)).await;
        }
        if all {
            return true;
        }
    }
    false
}

/// The constrained modes that fit the user asked for, narrowest first.
fn modes(user: &UserInfo, wanted: &UserInfo) -> Vec<&'static str> {
    if service_account(&wanted.name).is_some() {
        return vec!["serviceaccount"];
    }
    let Some(node) = wanted.name.strip_prefix("system:node:") else { return vec!["user-info"] };
    let own = user.extra.get(NODE_NAME).is_some_and(|names| names.iter().any(|n| n == node));
    let is_plain = wanted.groups.is_empty() && wanted.extra.is_empty() && wanted.uid.is_empty();
    match own && is_plain && service_account(&user.name).is_some() {
        true => vec!["associated-node", "arbitrary-node"],
        false => vec!["arbitrary-node"],
    }
}

/// Adds what every user of the kind has.
fn complete(mut wanted: UserInfo) -> UserInfo {
    if let Some((namespace, _)) = service_account(&wanted.name)
        && wanted.groups.is_empty()
    {
        wanted.groups =
            vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    } else if wanted.name.starts_with("system:node:") && wanted.groups.is_empty() {
        wanted.groups = vec!["system:nodes".to_owned()];
    }
    let own = if wanted.name == "system:anonymous" { UNAUTHENTICATED } else { AUTHENTICATED };
    if !wanted.is_in(own) && !wanted.is_in(UNAUTHENTICATED) {
        wanted.groups.push(own.to_owned());
    }
    wanted
}
