//! What an OCI runtime is told of a container beyond what a shim needs: limits, devices and seccomp as data of the
//! OCI runtime specification. The shim makes them itself out of control groups and compiled programs. And what tools that
//! look at containers by the CRI are shown, which they know from other runtimes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use cri::v1;
use serde_json::{Map, Value, json};

use crate::{
    capability,
    cgroup_device::Rule,
    container_spec::{devices, security_context},
    error::RuntimeError,
    record::{ContainerRecord, SandboxRecord},
    seccomp,
    spec::OciSpec,
    state::{Container, Runtime},
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
        Ok(OciSpec {
            program,
            cgroup: record.cgroup.clone(),
            resources: resources(&given, rules.as_deref()),
            seccomp: seccomp_of(&context, capabilities)?,
            annotations: annotations(sandbox, record),
            hooks: record.cdi.hooks.clone(),
        })
    }

    /// What `crictl inspect` shows of a container as `runtimeSpec`.
    pub(crate) fn shown_container(&self, sandbox: &SandboxRecord, container: &Container) -> Value {
        let record = &container.record;
        let mounts: Vec<Value> = record
            .config
            .mounts
            .iter()
            .map(|mount| {
                let access = if mount.readonly { "ro" } else { "rw" };
                json!({"destination": mount.container_path, "type": "bind", "source": mount.host_path,
                    "options": ["rbind", access]})
            })
            .collect();
        let mut shown = json!({
            "ociVersion": "1.0.2",
            "root": {"readonly": security_context(&record.config).readonly_rootfs},
            "mounts": mounts,
            "annotations": annotations(sandbox, record),
            "linux": {
                "cgroupsPath": record.cgroup,
                "resources": container.resources.read().as_ref().map(limits),
            },
        });
        // it could be made once, so nothing is wrong with it but files that are gone
        if let Ok(process) = self.process(sandbox, record) {
            let user = container.state.borrow().user.clone().unwrap_or_default();
            shown["process"] = json!({
                "terminal": process.tty,
                "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
                "args": process.args,
                "env": process.env,
                "cwd": process.cwd,
                "capabilities": {"bounding": capability::names(process.capabilities)},
                "noNewPrivileges": process.no_new_privs,
            });
        }
        shown
    }
}

/// What `crictl inspectp` shows of a sandbox as `runtimeSpec`.
pub(crate) fn shown_sandbox(sandbox: &SandboxRecord) -> Value {
    let network = match &sandbox.netns {
        Some(path) => json!([{"type": "network", "path": path}]),
        None => json!([]),
    };
    json!({
        "ociVersion": "1.0.2",
        "hostname": sandbox.config.hostname,
        "annotations": sandbox.config.annotations,
        "linux": {"cgroupsPath": sandbox.cgroup_parent, "namespaces": network},
    })
}

/// A container's own, and the names by which programs know a pod's containers.
fn annotations(sandbox: &SandboxRecord, record: &ContainerRecord) -> BTreeMap<String, String> {
    let pod = sandbox.config.metadata.clone().unwrap_or_default();
    let own = record.config.metadata.clone().unwrap_or_default();
    let names = [
        ("container-type", "container".to_owned()),
        ("sandbox-id", sandbox.id.clone()),
        ("sandbox-name", pod.name),
        ("sandbox-namespace", pod.namespace),
        ("sandbox-uid", pod.uid),
        ("container-name", own.name),
    ];
    let names = names.map(|(name, value)| (format!("io.kubernetes.cri.{name}"), value));
    record.config.annotations.clone().into_iter().chain(names).collect()
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
