//! Warnings about the expressions of validating policies: what does not fit the types of the kinds that a policy is for
//! stands in its status. Nothing is refused for it: an expression may know better.
//!
//! One task ([`run`]) follows the policies in the watch cache and looks at each generation once. Several servers on one
//! store write the same.
//!
//! Rule: Kubernetes documentation, "Validating Admission Policy", "Type checking".

use std::collections::BTreeSet;
use std::sync::Arc;

use api::kinds::{Kind, KindTable};
use api::object::Object;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::compile::policy_kinds;
use crate::cel::admission::{Compiler, Wanted};
use crate::managed::{self, Writer};
use crate::pipeline::ApiServer;
use crate::registry::Target;
use crate::status::ApiResult;

/// Kinds that one policy is checked against, at most.
const MOST: usize = 10;
/// Who writes the status, as managed fields say it.
const MANAGER: &str = "validatingadmissionpolicy-status";

/// Checks policies until `stop`.
pub async fn run(server: Arc<ApiServer>, stop: CancellationToken) {
    let [policies, ..] = policy_kinds();
    loop {
        let (past, _, mut queue) = match server.registry.cache().watch(policies, None) {
            Ok(followed) => followed,
            Err(error) => {
                tracing::error!(%error, "admission policies cannot be followed");
                return;
            }
        };
        let mut batch = past;
        loop {
            for policy in batch.iter().filter_map(|change| change.new.as_ref()) {
                match settle(&server, policies, policy).await {
                    Err(error) if !error.is_not_found() => {
                        tracing::warn!(%error, policy = policy.name(), "the status of a policy cannot be written");
                    }
                    _ => {}
                }
            }
            batch = tokio::select! {
                batch = queue.recv() => match batch {
                    Some(batch) => batch.to_vec(),
                    // the queue was too slow: begin anew
                    None => break,
                },
                () = stop.cancelled() => return,
            };
        }
    }
}

/// Writes what the check of a policy's newest generation says.
async fn settle(server: &ApiServer, kind: &Arc<Kind>, policy: &Object) -> ApiResult<()> {
    if is_checked(policy.value()) {
        return Ok(());
    }
    let kinds = server.kinds.now();
    let target = Target { kind, namespace: "", name: policy.name(), subresource: "status" };
    let written = server.registry.update(target, false, |old| {
        if is_checked(old) {
            return Ok(old.clone());
        }
        let warnings = warnings(&kinds, &old["spec"]);
        let checked = if warnings.is_empty() { json!({}) } else { json!({"expressionWarnings": warnings}) };
        let applied = json!({"apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": {"name": policy.name()},
            "status": {"observedGeneration": old["metadata"]["generation"], "typeChecking": checked}});
        let writer = Writer {
            shape: kind.shape(),
            api_version: kind.api_version(),
            manager: MANAGER,
            subresource: "status",
            has_status: true,
            status_keeps: &[],
            now: Timestamp::now(),
        };
        let mut new = managed::apply(&writer, kind, Some(old), &applied, true)?;
        // what is applied empty over something is null, which the status never shows
        new["status"]["typeChecking"] = applied["status"]["typeChecking"].clone();
        Ok(new)
    });
    written.await.map(drop)
}

fn is_checked(policy: &Value) -> bool {
    let generation = policy["metadata"]["generation"].as_i64().unwrap_or_default();
    policy["status"]["observedGeneration"].as_i64().unwrap_or_default() >= generation
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// What is wrong with the expressions of a policy, by field.
fn warnings(kinds: &KindTable, spec: &Value) -> Vec<Value> {
    let params = spec["paramKind"].is_object().then(|| {
        let text = |key: &str| spec["paramKind"][key].as_str().unwrap_or_default();
        kinds.of_object(text("apiVersion"), text("kind"))
    });
    let params = params.flatten();
    let compilers: Vec<(String, Compiler)> = checked_kinds(kinds, spec)
        .into_iter()
        .map(|kind| {
            let name = format!("{}/{}, Kind={}", kind.group, kind.version, kind.kind);
            let composes = list(spec, "variables").next().is_some();
            let mut compiler = Compiler::typed(&kind, params.map(|k| &**k)).composing(composes);
            for variable in list(spec, "variables") {
                let text = |key: &str| variable[key].as_str().unwrap_or_default();
                // a variable that is wrong is of no known type; who reads it is told what is wrong with himself
                let _ = compiler.variable(text("name"), text("expression"));
            }
            (name, compiler)
        })
        .collect();
    let check = |source: &str| {
        let complaints = compilers.iter().filter_map(|(name, compiler)| {
            let why = compiler.compile(source, Wanted::Any).err()?;
            Some(format!("{name}: {}\n", why.strip_prefix("compilation failed: ").unwrap_or(&why)))
        });
        complaints.collect::<Vec<_>>().join("\n")
    };
    let mut found = Vec::new();
    for (i, validation) in list(spec, "validations").enumerate() {
        for member in ["expression", "messageExpression"] {
            let source = validation[member].as_str().unwrap_or_default();
            let warning = if source.is_empty() { String::new() } else { check(source) };
            if !warning.is_empty() {
                let field = format!("spec.validations[{i}].{member}");
                found.push(json!({"fieldRef": field, "warning": warning}));
            }
        }
    }
    found
}

/// The kinds that the rules of a policy name without wildcards, sorted.
fn checked_kinds(kinds: &KindTable, spec: &Value) -> Vec<Arc<Kind>> {
    let mut found: BTreeSet<(String, String, String)> = BTreeSet::new();
    let mut out: Vec<Arc<Kind>> = Vec::new();
    for rule in list(&spec["matchConstraints"], "resourceRules") {
        let texts = |key: &str| {
            let mut texts: Vec<&str> = list(rule, key).filter_map(Value::as_str).collect();
            texts.sort_unstable();
            texts
        };
        let (groups, versions, mut resources) =
            (texts("apiGroups"), texts("apiVersions"), texts("resources"));
        if groups.iter().chain(&versions).any(|text| text.contains('*')) {
            continue;
        }
        resources.retain(|resource| !resource.contains(['*', '/']));
        for group in &groups {
            for version in &versions {
                for kind in resources.iter().filter_map(|resource| kinds.find(group, version, resource)) {
                    let name = (kind.group.clone(), kind.version.clone(), kind.kind.clone());
                    if out.len() < MOST && found.insert(name) {
                        out.push(kind.clone());
                    }
                }
            }
        }
    }
    out.sort_by(|a, b| (&a.group, &a.version, &a.kind).cmp(&(&b.group, &b.version, &b.kind)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_the_kinds_of_a_policy_is_warned_of() {
        let spec = json!({
            "matchConstraints": {"resourceRules": [
                {"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["replicasets", "deployments", "*/scale"]},
                {"apiGroups": [""], "apiVersions": ["*"], "resources": ["pods"]}]},
            "variables": [{"name": "n", "expression": "object.spec.replicas"}],
            "validations": [
                {"expression": "object.replicas > 1"},
                {"expression": "variables.n > 1 && object.metadata.name.startsWith('a')",
                    "messageExpression": "'a' + object.spec.replicas"},
                {"expression": "object.spec.template.spec.containers.all(c, c.image.contains('/'))"}]});
        let found = warnings(api::kinds::builtin(), &spec);
        let shown: Vec<String> = found
            .iter()
            .map(|w| format!("{} {}", w["fieldRef"].as_str().unwrap(), w["warning"].as_str().unwrap()))
            .collect();
        assert_eq!(
            shown,
            [
                "spec.validations[0].expression apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas > 1\n | ......^\n\napps/v1, Kind=ReplicaSet: ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas > 1\n | ......^\n",
                "spec.validations[1].messageExpression apps/v1, Kind=Deployment: ERROR: <input>:1:5: found no matching overload for '_+_' applied to '(string, int)'\n | 'a' + object.spec.replicas\n | ....^\n\napps/v1, Kind=ReplicaSet: ERROR: <input>:1:5: found no matching overload for '_+_' applied to '(string, int)'\n | 'a' + object.spec.replicas\n | ....^\n",
            ]
        );
    }
}
