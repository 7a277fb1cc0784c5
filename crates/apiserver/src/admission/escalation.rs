//! Nobody grants rights that he does not hold: checked where roles and bindings are written.
//!
//! Rule: Kubernetes documentation, "Using RBAC Authorization", privilege escalation prevention. The verbs `escalate`
//! (on roles) and `bind` (on the role that is bound) lift the check.

use api::meta;
use serde_json::Value;

use super::Request;
use crate::auth::authorize::{Attributes, Authorizer};
use crate::auth::{MASTERS, UserInfo};
use crate::status::{ApiError, ApiResult};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Refuses a role or binding that gives more than its author has.
pub async fn check(authorizer: &Authorizer, request: &Request<'_>, object: &Value) -> ApiResult<()> {
    let user = request.user;
    if request.kind.group != GROUP || user.is_in(MASTERS) {
        return Ok(());
    }
    // who may lift the check is for all authorizers to say; what somebody holds, for roles
    let may = async |verb: &str, resource: &str, name: &str| {
        let resource = resource.to_owned();
        let namespace = request.namespace;
        let asked = Attributes { verb, group: GROUP, resource, namespace, name, ..Attributes::default() };
        authorizer.admits(user, &asked).await
    };
    let same = |field: &str| request.old.is_some_and(|old| old[field] == object[field]);
    let name = meta::name(object);
    let missing = match request.kind.plural.as_str() {
        plural @ ("roles" | "clusterroles") => {
            if same("rules") && same("aggregationRule") || may("escalate", plural, name).await {
                return Ok(());
            }
            // an aggregated role takes rules from roles that are to come: only who holds everything may make it
            let mut missing = missing(authorizer, user, request.namespace, &object["rules"]);
            let everything = serde_json::json!([
                {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
                {"nonResourceURLs": ["*"], "verbs": ["*"]}]);
            if object["aggregationRule"].is_object() && !same("aggregationRule") {
                missing.extend(self::missing(authorizer, user, "", &everything));
            }
            missing
        }
        "rolebindings" | "clusterrolebindings" => {
            let role = &object["roleRef"];
            let text = |key: &str| role[key].as_str().unwrap_or_default();
            let plural = if text("kind") == "Role" { "roles" } else { "clusterroles" };
            if same("roleRef") && same("subjects") || may("bind", plural, text("name")).await {
                return Ok(());
            }
            let rules = authorizer.rules_of(plural, request.namespace, text("name"))?;
            missing(authorizer, user, request.namespace, &rules)
        }
        _ => return Ok(()),
    };
    if missing.is_empty() {
        return Ok(());
    }
    let groups: Vec<String> = user.groups.iter().map(|g| api::field::quote(g)).collect();
    let why = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        groups.join(" "),
        missing.join("\n")
    );
    Err(ApiError::forbidden(request.kind, name, &why))
}

/// What of `rules` the user does not hold, one line for each resource, sorted.
fn missing(authorizer: &Authorizer, user: &UserInfo, namespace: &str, rules: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for rule in rules.as_array().into_iter().flatten() {
        let list = |key: &str| -> Vec<&str> {
            rule[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
        };
        let verbs = list("verbs");
        for url in list("nonResourceURLs") {
            let held = |verb: &&str| {
                authorizer.allows(user, &Attributes { verb, path: Some(url), ..Attributes::default() })
            };
            let lacked: Vec<&str> = verbs.iter().copied().filter(|v| !held(v)).collect();
            push(&mut lines, &format!("NonResourceURLs:[{url:?}], "), &lacked);
        }
        let names = match list("resourceNames") {
            names if names.is_empty() => vec![""],
            names => names,
        };
        for group in list("apiGroups") {
            for resource in list("resources") {
                for name in &names {
                    let held = |verb: &&str| {
                        let resource = resource.to_owned();
                        authorizer.allows(
                            user,
                            &Attributes { verb, group, resource, namespace, name, ..Attributes::default() },
                        )
                    };
                    let lacked: Vec<&str> = verbs.iter().copied().filter(|v| !held(v)).collect();
                    let mut head = format!("APIGroups:[{group:?}], Resources:[{resource:?}], ");
                    if !name.is_empty() {
                        head.push_str(&format!("ResourceNames:[{name:?}], "));
                    }
                    push(&mut lines, &head, &lacked);
                }
            }
        }
    }
    lines.sort();
    lines.dedup();
    lines
}

fn push(lines: &mut Vec<String>, head: &str, verbs: &[&str]) {
    if !verbs.is_empty() {
        let verbs: Vec<String> = verbs.iter().map(|v| format!("{v:?}")).collect();
        lines.push(format!("{{{head}Verbs:[{}]}}", verbs.join(" ")));
    }
}
