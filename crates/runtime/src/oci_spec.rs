//! What an OCI runtime is told of a container beyond what a shim needs: limits, devices and seccomp as data of the
//! OCI runtime specification. The shim makes them itself out of control groups and compiled programs.

use std::{fs, path::Path, path::PathBuf};

use cri::v1;
use serde_json::{Map, Value, json};

use crate::{
    cgroup_device::Rule,
    container_spec::{devices, security_context},
    error::RuntimeError,
    record::{ContainerRecord, SandboxRecord},
    seccomp,
    spec::OciSpec,
    state::Runtime,
};

impl Runtime {
    /// How `program`, or hooks of a container without one, are told of a container of `sandbox`.
    pub(crate) fn oci_spec(
        &self,
        program: Option<PathBuf>,
        sandbox: &SandboxRecord,
        record: &ContainerRecord,
        capabilities: u64,
    ) -> Result<OciSpec, RuntimeError> {
        let config = &record.config;
        let context = security_context(config);
        let (_, rules) = devices(record, context.privileged)?;
        let given = config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
        let metadata = sandbox.config.metadata.clone().unwrap_or_default();
        let mut annotations = config.annotations.clone();
        // the names by which such programs and their hooks know a pod's containers
        annotations.extend([
            ("io.kubernetes.cri.container-type".to_owned(), "container".to_owned()),
            ("io.kubernetes.cri.sandbox-id".to_owned(), sandbox.id.clone()),
            ("io.kubernetes.cri.sandbox-name".to_owned(), metadata.name),
            ("io.kubernetes.cri.sandbox-namespace".to_owned(), metadata.namespace),
            ("io.kubernetes.cri.sandbox-uid".to_owned(), metadata.uid),
            (
                "io.kubernetes.cri.container-name".to_owned(),
                config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
            ),
        ]);
        Ok(OciSpec {
            program,
            cgroup: record.cgroup.clone(),
            resources: resources(&given, rules.as_deref()),
            seccomp: seccomp_of(&context, capabilities)?,
            annotations: annotations.into_iter().collect(),
            hooks: record.cdi.hooks.clone(),
        })
    }
}

/// `linux.resources`. `rules`: `None` allows every device.
fn resources(given: &v1::LinuxContainerResources, rules: Option<&[Rule]>) -> Value {
    let mut part = limits(given);
    part.insert("devices".to_owned(), device_rules(rules));
    part.into()
}

/// The limits of `linux.resources`; zero means "not given" in the CRI.
pub(crate) fn limits(given: &v1::LinuxContainerResources) -> Map<String, Value> {
    let mut part = Map::new();
    let mut put = |group: &str, name: &str, value: Option<Value>| {
        if let Some(value) = value {
            let group = part.entry(group).or_insert_with(|| json!({}));
            group[name] = value;
        }
    };
    let number = |value: i64| (value != 0).then(|| json!(value));
    let text = |value: &String| (!value.is_empty()).then(|| json!(value));
    put("cpu", "shares", number(given.cpu_shares));
    put("cpu", "quota", number(given.cpu_quota));
    put("cpu", "period", number(given.cpu_period));
    put("cpu", "cpus", text(&given.cpuset_cpus));
    put("cpu", "mems", text(&given.cpuset_mems));
    put("memory", "limit", number(given.memory_limit_in_bytes));
    put("memory", "swap", number(given.memory_swap_limit_in_bytes));
    let pages: Vec<Value> = given
        .hugepage_limits
        .iter()
        .map(|limit| json!({"pageSize": limit.page_size, "limit": limit.limit}))
        .collect();
    if !pages.is_empty() {
        part.insert("hugepageLimits".to_owned(), pages.into());
    }
    if !given.unified.is_empty() {
        part.insert("unified".to_owned(), json!(given.unified));
    }
    part
}

fn device_rules(rules: Option<&[Rule]>) -> Value {
    let Some(rules) = rules else { return json!([{"allow": true, "access": "rwm"}]) };
    let mut list = vec![json!({"allow": false, "access": "rwm"})];
    for rule in rules {
        let letters = [(rule.read, 'r'), (rule.write, 'w'), (rule.mknod, 'm')];
        let access: String = letters.iter().filter(|(given, _)| *given).map(|(_, letter)| *letter).collect();
        let kind = if rule.block { "b" } else { "c" };
        let mut entry = json!({"allow": true, "type": kind, "access": access});
        for (name, number) in [("major", rule.major), ("minor", rule.minor)] {
            if let Some(number) = number {
                entry[name] = number.into();
            }
        }
        list.push(entry);
    }
    list.into()
}

fn seccomp_of(
    context: &v1::LinuxContainerSecurityContext,
    capabilities: u64,
) -> Result<Option<Value>, RuntimeError> {
    use v1::security_profile::ProfileType;
    let Some(profile) = context.seccomp.as_ref().filter(|_| !context.privileged) else { return Ok(None) };
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => Ok(Some(seccomp::default_as_data(capabilities))),
        ProfileType::Localhost => {
            let path = profile.localhost_ref.as_str();
            let path = path.strip_prefix("localhost/").unwrap_or(path);
            let wrong = |why: String| RuntimeError::Invalid(format!("seccomp profile {path:?}: {why}"));
            let text = fs::read(Path::new(path)).map_err(|error| wrong(error.to_string()))?;
            serde_json::from_slice(&text).map(Some).map_err(|error| wrong(error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_given_limits_are_told() {
        let given = v1::LinuxContainerResources {
            cpu_quota: -1,
            memory_limit_in_bytes: 5,
            cpuset_cpus: "0-1".to_owned(),
            ..Default::default()
        };
        let rule = Rule { block: false, major: Some(1), minor: None, read: true, write: false, mknod: true };
        let expected = json!({
            "cpu": {"quota": -1, "cpus": "0-1"},
            "memory": {"limit": 5},
            "devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "access": "rm"},
            ],
        });
        assert_eq!(resources(&given, Some(&[rule])), expected);
        let all = json!({"devices": [{"allow": true, "access": "rwm"}]});
        assert_eq!(resources(&v1::LinuxContainerResources::default(), None), all);
    }
}
