//! Which flow schema a request belongs to.
//!
//! Rule: Kubernetes documentation, "API Priority and Fairness": the rule matches when one of its subjects and one of its
//! resource rules, or non-resource rules, do; of the schemas that match, the one with the lowest precedence counts.

use k8s_openapi::api::flowcontrol::v1::{
    NonResourcePolicyRule, PolicyRulesWithSubjects, ResourcePolicyRule, Subject,
};

use crate::auth::UserInfo;
use crate::request_info::RequestInfo;

/// Whether one of the rules is about this request of this user.
pub fn matches(rules: &[PolicyRulesWithSubjects], user: &UserInfo, info: &RequestInfo) -> bool {
    rules.iter().any(|rule| {
        rule.subjects.iter().any(|subject| is_subject(subject, user))
            && if info.is_resource {
                rule.resource_rules.iter().flatten().any(|rule| is_resource(rule, info))
            } else {
                rule.non_resource_rules.iter().flatten().any(|rule| is_path(rule, info))
            }
    })
}

fn is_subject(subject: &Subject, user: &UserInfo) -> bool {
    let (user_subject, group, account) = (&subject.user, &subject.group, &subject.service_account);
    match (subject.kind.as_str(), user_subject, group, account) {
        ("User", Some(subject), _, _) => subject.name == "*" || subject.name == user.name,
        ("Group", _, Some(subject), _) => subject.name == "*" || user.is_in(&subject.name),
        ("ServiceAccount", _, _, Some(subject)) => {
            let own = user.name.strip_prefix("system:serviceaccount:").and_then(|own| own.split_once(':'));
            own.is_some_and(|(namespace, name)| {
                namespace == subject.namespace && (subject.name == "*" || subject.name == name)
            })
        }
        _ => false,
    }
}

fn has(list: &[String], text: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == text)
}

fn is_resource(rule: &ResourcePolicyRule, info: &RequestInfo) -> bool {
    let is_named = |entry: &String| {
        entry == "*"
            || match info.subresource.as_str() {
                "" => *entry == info.resource,
                sub => entry.split_once('/') == Some((&info.resource, sub)),
            }
    };
    has(&rule.verbs, &info.verb)
        && has(&rule.api_groups, &info.group)
        && rule.resources.iter().any(is_named)
        && match info.namespace.as_str() {
            "" => rule.cluster_scope == Some(true),
            namespace => has(rule.namespaces.as_deref().unwrap_or_default(), namespace),
        }
}

fn is_path(rule: &NonResourcePolicyRule, info: &RequestInfo) -> bool {
    let is_named = |entry: &String| match entry.strip_suffix('*') {
        Some("") => true,
        // whole segments only: `/healthz*` is `/healthz/*`
        Some(prefix) => {
            let prefix = prefix.trim_end_matches('/');
            info.path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
        }
        None => *entry == info.path,
    };
    has(&rule.verbs, &info.verb) && rule.non_resource_urls.iter().any(is_named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use serde_json::json;

    #[track_caller]
    fn check(rule: serde_json::Value, user: &UserInfo, method: Method, url: &str, expected: bool) {
        let (path, query) = url.split_once('?').map_or((url, None), |(p, q)| (p, Some(q)));
        let info = RequestInfo::parse(&method, path, query);
        let rules = [serde_json::from_value(rule).unwrap()];
        assert_eq!(matches(&rules, user, &info), expected, "{method} {url}");
    }

    #[test]
    fn rules_match_by_subject_resource_and_path() {
        let account = UserInfo::new("system:serviceaccount:a:b", &["system:serviceaccounts"]);
        let subjects = json!([{"kind": "ServiceAccount", "serviceAccount": {"namespace": "a", "name": "*"}}]);
        let pods = json!({"subjects": subjects, "resourceRules": [{"verbs": ["get", "list"], "apiGroups": [""],
            "resources": ["pods", "pods/log"], "namespaces": ["a"]}]});
        check(pods.clone(), &account, Method::GET, "/api/v1/namespaces/a/pods/x", true);
        check(pods.clone(), &account, Method::GET, "/api/v1/namespaces/a/pods/x/log", true);
        check(pods.clone(), &account, Method::GET, "/api/v1/namespaces/a/pods/x/status", false);
        check(pods.clone(), &account, Method::GET, "/api/v1/namespaces/b/pods/x", false);
        check(pods.clone(), &account, Method::GET, "/api/v1/pods", false);
        check(pods.clone(), &account, Method::GET, "/api/v1/namespaces/a/pods?watch=1", false);
        let other = UserInfo::new("system:serviceaccount:aa:b", &[]);
        check(pods, &other, Method::GET, "/api/v1/namespaces/a/pods/x", false);
        let paths = json!({"subjects": [{"kind": "User", "user": {"name": "*"}}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["/healthz", "/apis/*"]}]});
        check(paths.clone(), &other, Method::GET, "/healthz", true);
        check(paths.clone(), &other, Method::GET, "/healthz/ping", false);
        check(paths.clone(), &other, Method::GET, "/apis/apps/v1", true);
        check(paths, &other, Method::GET, "/apis", false);
    }
}
