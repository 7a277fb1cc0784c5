//! Aggregated cluster roles: one with an `aggregationRule` has the rules of all the roles that its selectors select.
use std::sync::Arc;

use api::selector::LabelSelector;
use client::{Cache, Patch};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use serde_json::json;

use crate::ownership::{labels, name};
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

struct Controller {
    context: Context,
    roles: Cache<ClusterRole>,
}

pub(crate) async fn run(context: Context) {
    let roles = context.reader.caches().of::<ClusterRole>();
    let controller = Controller { context: context.clone(), roles: roles.clone() };
    Runner::new(&context, controller)
        // Any role may be selected by any other, now or before.
        .on(&roles, |c: &Controller, _| {
            let all = c.roles.list();
            all.iter()
                .filter(|r| r.aggregation_rule.is_some())
                .map(|r| name(&r.metadata).to_owned())
                .collect::<Vec<_>>()
        })
        .run(2)
        .await;
}

/// The rules of the roles that `role` selects, in the order of its selectors and then of names, each once.
fn aggregated(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Result<Vec<PolicyRule>, Failure> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    let selectors = role.aggregation_rule.iter().flat_map(|r| r.cluster_role_selectors.iter().flatten());
    for selector in selectors {
        let selector =
            LabelSelector::from_typed(Some(selector)).map_err(|e| Failure::Invalid(e.to_string()))?;
        let selected = all
            .iter()
            .filter(|r| name(&r.metadata) != name(&role.metadata) && selector.matches(labels(&r.metadata)));
        for rule in selected.flat_map(|r| r.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Ok(rules)
}

impl Reconcile for Controller {
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Outcome, Failure> {
        let Some(role) = self.roles.get("", key) else { return Ok(Outcome::Settled) };
        if role.aggregation_rule.is_none() {
            return Ok(Outcome::Settled);
        }
        let rules = aggregated(&role, &self.roles.list())?;
        if rules == role.rules.clone().unwrap_or_default() {
            return Ok(Outcome::Settled);
        }
        // Applied, so that the rules are ours alone and whatever else others wrote stays theirs.
        let object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": key, "uid": role.metadata.uid}, "rules": rules});
        let patch = Patch::Apply { manager: self.context.name.to_owned(), force: true, object };
        match self.context.client.patch::<ClusterRole>("", key, &patch).await {
            Ok(_) => Ok(Outcome::Settled),
            Err(e) if e.is_not_found() => Ok(Outcome::Settled),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str, label: &str, resources: &[&str]) -> Arc<ClusterRole> {
        let rules: Vec<_> = resources
            .iter()
            .map(|r| json!({"apiGroups": [""], "resources": [r], "verbs": ["get"]}))
            .collect();
        let role = json!({"metadata": {"name": name, "labels": {label: "true"}}, "rules": rules,
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"view": "true"}}, {"matchLabels": {"edit": "true"}}]}});
        Arc::new(serde_json::from_value(role).expect("role"))
    }

    #[test]
    fn rules_come_in_the_order_of_selectors_each_once_and_never_from_the_role_itself() {
        let all = [
            role("a", "edit", &["secrets", "pods"]),
            role("b", "view", &["pods"]),
            role("c", "view", &["nodes"]),
        ];
        let got = aggregated(&all[2], &all).expect("rules");
        let got: Vec<_> = got.iter().flat_map(|r| r.resources.iter().flatten().cloned()).collect();
        assert_eq!(got, ["pods", "secrets"]);
    }
}
