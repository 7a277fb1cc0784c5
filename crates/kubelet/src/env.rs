//! The environment of a container: values, references, `$(VAR)` expansion, service variables.
//!
//! Rule: Kubernetes documentation, "Define Environment Variables for a Container", "Dependent Environment
//! Variables", "Downward API", "Accessing the Service".

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use client::traffic::ServiceView;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, ObjectFieldSelector, Pod, ResourceFieldSelector, Secret,
};

use crate::env_file;

/// What the environment may refer to.
pub struct Sources<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its ConfigMaps, by name.
    pub config_maps: &'a BTreeMap<String, ConfigMap>,
    /// Its Secrets, by name.
    pub secrets: &'a BTreeMap<String, Secret>,
    /// Folders of its volumes, by name.
    pub volumes: &'a BTreeMap<String, PathBuf>,
    /// Services of the pod's namespace, and `kubernetes` of `default`.
    pub services: &'a [Arc<ServiceView>],
    /// The pod's addresses.
    pub pod_ips: &'a [String],
    /// The node's addresses.
    pub host_ips: &'a [String],
    /// CPUs (milli), memory and storage (bytes) of the node, where a container has no limit of its own.
    pub allocatable: [i64; 3],
}

/// Expands `$(NAME)` by `lookup`; `$$` stands for `$`, and what is not known stays as it is.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = rest.strip_prefix('(') {
            match inner.find(')') {
                Some(end) => {
                    let name = &inner[..end];
                    match lookup(name) {
                        Some(value) => out.push_str(&value),
                        None => out.push_str(&format!("$({name})")),
                    }
                    rest = &inner[end + 1..];
                }
                None => {
                    out.push_str("$(");
                    rest = inner;
                }
            }
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The environment of a container, in order; later ones win. The error is the pod author's to mend.
pub fn of(container: &Container, sources: &Sources<'_>) -> Result<Vec<(String, String)>, String> {
    let mut list: Vec<(String, String)> = Vec::new();
    let enabled = sources.pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    for service in sources.services {
        let is_master = &*service.name == "kubernetes" && &*service.namespace == "default";
        if enabled || is_master {
            service_variables(service, &mut list);
        }
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(map) => {
                    list.extend(map.data.iter().flatten().map(|(k, v)| (format!("{prefix}{k}"), v.clone())))
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", reference.name)),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(secret) => {
                    list.extend(
                        secret.data.iter().flatten().map(|(k, v)| {
                            (format!("{prefix}{k}"), String::from_utf8_lossy(&v.0).into_owned())
                        }),
                    )
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", reference.name)),
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(text), _) if !text.is_empty() => {
                Some(expand(text, |name| list.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone())))
            }
            (_, Some(from)) => reference(from, container, sources)?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            list.push((var.name.clone(), value));
        }
    }
    // the last one of a name counts
    let mut seen = std::collections::HashSet::new();
    let mut unique: Vec<(String, String)> =
        list.into_iter().rev().filter(|(name, _)| seen.insert(name.clone())).collect();
    unique.reverse();
    Ok(unique)
}

fn reference(
    from: &k8s_openapi::api::core::v1::EnvVarSource,
    container: &Container,
    sources: &Sources<'_>,
) -> Result<Option<String>, String> {
    if let Some(field) = &from.field_ref {
        return pod_field(field, sources).map(Some);
    }
    if let Some(resource) = &from.resource_field_ref {
        return resource_field(resource, container, sources).map(Some);
    }
    if let Some(key) = &from.file_key_ref {
        return env_file::value(key, sources.volumes);
    }
    if let Some(key) = &from.config_map_key_ref {
        let optional = key.optional == Some(true);
        return match sources.config_maps.get(&key.name) {
            Some(map) => match map.data.as_ref().and_then(|d| d.get(&key.key)) {
                Some(value) => Ok(Some(value.clone())),
                None if optional => Ok(None),
                None => Err(format!(
                    "couldn't find key {} in ConfigMap {}/{}",
                    key.key,
                    map.metadata.namespace.as_deref().unwrap_or_default(),
                    key.name
                )),
            },
            None if optional => Ok(None),
            None => Err(format!("configmap {:?} not found", key.name)),
        };
    }
    if let Some(key) = &from.secret_key_ref {
        let optional = key.optional == Some(true);
        return match sources.secrets.get(&key.name) {
            Some(secret) => match secret.data.as_ref().and_then(|d| d.get(&key.key)) {
                Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
                None if optional => Ok(None),
                None => Err(format!(
                    "couldn't find key {} in Secret {}/{}",
                    key.key,
                    secret.metadata.namespace.as_deref().unwrap_or_default(),
                    key.name
                )),
            },
            None if optional => Ok(None),
            None => Err(format!("secret {:?} not found", key.name)),
        };
    }
    Ok(None)
}

/// The value of a downward-API field.
pub fn pod_field(field: &ObjectFieldSelector, sources: &Sources<'_>) -> Result<String, String> {
    let pod = sources.pod;
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let path = field.field_path.as_str();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let found = match map {
            "metadata.labels" => meta.labels.as_ref().and_then(|l| l.get(key)),
            "metadata.annotations" => meta.annotations.as_ref().and_then(|l| l.get(key)),
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(found.cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => sources.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => sources.host_ips.join(","),
        "status.podIP" => sources.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => sources.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(k, v)| format!("{k}={}", api::field::quote(v))).collect();
    lines.join("\n")
}

/// The value of a downward-API resource, divided and rounded up.
pub fn resource_field(
    field: &ResourceFieldSelector,
    container: &Container,
    sources: &Sources<'_>,
) -> Result<String, String> {
    let named = field.container_name.as_deref().filter(|n| !n.is_empty());
    let container = match named {
        Some(name) => sources
            .pod
            .spec
            .iter()
            .flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()))
            .find(|c| c.name == name)
            .ok_or_else(|| format!("container {name} not found"))?,
        None => container,
    };
    let (list, name) =
        field.resource.split_once('.').ok_or_else(|| format!("unsupported resource: {}", field.resource))?;
    let resources = container.resources.as_ref();
    let quantities = match list {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(format!("unsupported container resource : {}", field.resource)),
    };
    let found = quantities.and_then(|q| q.get(name)).map(|q| q.0.as_str());
    let milli = |text: &str| crate::resources::milli(text);
    let divisor = field.divisor.as_ref().map(|d| milli(&d.0)).filter(|d| *d > 0).unwrap_or(1000);
    let [cpu, memory, storage] = sources.allocatable;
    let whole =
        sources.pod.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.limits.as_ref()?.get(name));
    let value = match (found.map(milli).filter(|value| list != "limits" || *value > 0), list, name) {
        (Some(value), _, _) => value,
        // the pod's own limit holds for each of its containers
        (None, "limits", "cpu") => whole.map_or(cpu, |whole| milli(&whole.0)),
        (None, "limits", "memory") => whole.map_or(memory.saturating_mul(1000), |whole| milli(&whole.0)),
        (None, "limits", "ephemeral-storage") => storage.saturating_mul(1000),
        _ => 0,
    };
    Ok(value.div_euclid(divisor).saturating_add(i64::from(value.rem_euclid(divisor) > 0)).to_string())
}

/// `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT`, and the older link variables.
fn service_variables(service: &ServiceView, list: &mut Vec<(String, String)>) {
    let (Some(ip), Some(first)) = (service.cluster_ips.first(), service.ports.first()) else { return };
    let upper = |text: &str| text.to_ascii_uppercase().replace('-', "_");
    let name = upper(&service.name);
    list.push((format!("{name}_SERVICE_HOST"), ip.to_string()));
    list.push((format!("{name}_SERVICE_PORT"), first.number.to_string()));
    for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
        list.push((format!("{name}_SERVICE_PORT_{}", upper(&port.name)), port.number.to_string()));
    }
    for (index, port) in service.ports.iter().enumerate() {
        let protocol = port.protocol.name();
        let url = format!("{}://{}", protocol.to_ascii_lowercase(), SocketAddr::new(*ip, port.number));
        if index == 0 {
            list.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{}_{protocol}", port.number);
        list.push((prefix.clone(), url));
        list.push((format!("{prefix}_PROTO"), protocol.to_ascii_lowercase()));
        list.push((format!("{prefix}_PORT"), port.number.to_string()));
        list.push((format!("{prefix}_ADDR"), ip.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn variables_expand_and_doubled_dollars_escape() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("x$(A)y", "x1y"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    #[test]
    fn an_environment_is_built_in_order() {
        let pod: Pod = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"containers": []}}))
        .unwrap();
        let container: Container = serde_json::from_value(json!({"name": "c",
            "resources": {"limits": {"memory": "1Gi"}},
            "envFrom": [{"configMapRef": {"name": "m"}, "prefix": "P_"}],
            "env": [{"name": "X", "value": "$(P_k)!"}, {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
                {"name": "M", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "S", "valueFrom": {"resourceFieldRef": {"resource": "limits.ephemeral-storage", "divisor": "1Mi"}}},
                {"name": "R", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory"}}}]}))
        .unwrap();
        let map: ConfigMap = serde_json::from_value(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}, "data": {"k": "v"}}),
        )
        .unwrap();
        let service: ServiceView = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "my-db"}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80, "name": "http"}]}}))
        .unwrap();
        let sources = Sources {
            pod: &pod,
            config_maps: &[("m".to_owned(), map)].into(),
            secrets: &BTreeMap::new(),
            volumes: &BTreeMap::new(),
            services: &[Arc::new(service)],
            pod_ips: &[],
            host_ips: &[],
            allocatable: [2000, 0, 5 << 20],
        };
        let text: Vec<String> =
            of(&container, &sources).unwrap().iter().map(|(k, v)| format!("{k}={v}")).collect();
        expect_test::expect![[r#"
            MY_DB_SERVICE_HOST=10.0.0.1
            MY_DB_SERVICE_PORT=80
            MY_DB_SERVICE_PORT_HTTP=80
            MY_DB_PORT=tcp://10.0.0.1:80
            MY_DB_PORT_80_TCP=tcp://10.0.0.1:80
            MY_DB_PORT_80_TCP_PROTO=tcp
            MY_DB_PORT_80_TCP_PORT=80
            MY_DB_PORT_80_TCP_ADDR=10.0.0.1
            P_k=v
            X=v!
            N=b
            M=1024
            C=2
            S=5
            R=0"#]]
        .assert_eq(&text.join("\n"));
    }
}
