//! Discovery documents, made from the table of kinds: `/api`, `/apis`, one per group and per version, and the
//! aggregated form that answers everything at once.
//!
//! Pure functions; the table decides the order. Source: Kubernetes API reference, `apidiscovery.k8s.io/v2`, and
//! "Kubernetes API Concepts", discovery.

use api::kinds::{Kind, KindTable, Subresource};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

/// A version of the aggregated form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregated {
    /// `apidiscovery.k8s.io/v2`.
    V2,
    /// `apidiscovery.k8s.io/v2beta1`, asked for by clients before 1.30.
    V2Beta1,
}

impl Aggregated {
    /// The version of the parameters of a media type of an `Accept` header; `None` where the aggregated
    /// form is not asked for, or in a version that does not exist.
    pub fn of_parameters<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<Self> {
        let (mut group, mut version, mut form) = ("", "", "");
        for (key, value) in parameters {
            match key {
                "g" => group = value,
                "v" => version = value,
                "as" => form = value,
                _ => {}
            }
        }
        match (group, version, form) {
            ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") => Some(Self::V2),
            ("apidiscovery.k8s.io", "v2beta1", "APIGroupDiscoveryList") => Some(Self::V2Beta1),
            _ => None,
        }
    }

    fn version(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V2Beta1 => "v2beta1",
        }
    }

    /// The answer's `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Self::V2Beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }
}

/// `/api`: the versions of the core group, and where the server is reached (`host:port`).
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

fn group_fields(name: &str, versions: &[String]) -> Value {
    let version = |v: &String| json!({"groupVersion": format!("{name}/{v}"), "version": v});
    let preferred = versions.first().map_or(Value::Null, version);
    let versions: Vec<Value> = versions.iter().map(version).collect();
    json!({"name": name, "versions": versions, "preferredVersion": preferred})
}

/// `/apis`: every group but core.
pub fn group_list(table: &KindTable) -> Value {
    let groups: Vec<Value> = table
        .groups()
        .iter()
        .filter(|g| !g.name.is_empty())
        .map(|g| group_fields(&g.name, &g.versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`; `None` where there is no such group.
pub fn group(table: &KindTable, name: &str) -> Option<Value> {
    let group = table.groups().into_iter().find(|g| !name.is_empty() && g.name == name)?;
    let mut document = group_fields(&group.name, &group.versions);
    document["kind"] = json!("APIGroup");
    document["apiVersion"] = json!("v1");
    Some(document)
}

fn add_names(entry: &mut Map<String, Value>, kind: &Kind) {
    if !kind.short_names.is_empty() {
        entry.insert("shortNames".to_owned(), json!(kind.short_names));
    }
    if !kind.categories.is_empty() {
        entry.insert("categories".to_owned(), json!(kind.categories));
    }
}

fn resource(kind: &Kind) -> Value {
    let mut entry = Map::new();
    entry.insert("name".to_owned(), json!(kind.plural));
    entry.insert("singularName".to_owned(), json!(kind.singular));
    entry.insert("namespaced".to_owned(), json!(kind.namespaced));
    entry.insert("kind".to_owned(), json!(kind.kind));
    entry.insert("verbs".to_owned(), json!(kind.verbs));
    add_names(&mut entry, kind);
    if !kind.storage_hash.is_empty() {
        entry.insert("storageVersionHash".to_owned(), json!(kind.storage_hash));
    }
    Value::Object(entry)
}

fn subresource(kind: &Kind, sub: &Subresource) -> Value {
    let mut entry = json!({
        "name": format!("{}/{}", kind.plural, sub.name),
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": sub.kind.kind,
        "verbs": sub.verbs,
    });
    if sub.foreign_kind {
        entry["group"] = json!(sub.kind.group);
        entry["version"] = json!(sub.kind.version);
    }
    entry
}

/// `/api/v1` or `/apis/GROUP/VERSION`; `None` where the version is not served.
pub fn resource_list(table: &KindTable, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    let mut group_version = String::new();
    for kind in table.of_version(group, version) {
        group_version = kind.api_version();
        resources.push(resource(kind));
        resources.extend(kind.subresources.iter().map(|s| subresource(kind, s)));
    }
    if resources.is_empty() {
        return None;
    }
    let mut list = json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": resources});
    // The core group's documents are older than the field.
    if !group.is_empty() {
        list["apiVersion"] = json!("v1");
    }
    Some(list)
}

fn response_kind(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn aggregated_resource(kind: &Kind) -> Value {
    let mut entry = Map::new();
    entry.insert("resource".to_owned(), json!(kind.plural));
    // Empty group and version mean: those of the document. Clients fill them in.
    entry.insert("responseKind".to_owned(), response_kind("", "", &kind.kind));
    entry.insert("scope".to_owned(), json!(if kind.namespaced { "Namespaced" } else { "Cluster" }));
    entry.insert("singularResource".to_owned(), json!(kind.singular));
    entry.insert("verbs".to_owned(), json!(kind.verbs));
    add_names(&mut entry, kind);
    if !kind.subresources.is_empty() {
        let subresources = kind.subresources.iter().map(|s| {
            let (group, version) =
                if s.foreign_kind { (s.kind.group.as_str(), s.kind.version.as_str()) } else { ("", "") };
            json!({
                "subresource": s.name,
                "responseKind": response_kind(group, version, &s.kind.kind),
                "verbs": s.verbs,
            })
        });
        entry.insert("subresources".to_owned(), subresources.collect());
    }
    Value::Object(entry)
}

/// The aggregated form: of `/api` (`core`) or of `/apis`.
pub fn aggregated(table: &KindTable, form: Aggregated, core: bool) -> Value {
    let items = table.groups().into_iter().filter(|g| g.name.is_empty() == core).map(|g| {
        let versions: Vec<Value> = g
            .versions
            .iter()
            .map(|v| {
                let resources: Vec<Value> =
                    table.of_version(&g.name, v).map(|k| aggregated_resource(k)).collect();
                json!({"version": v, "resources": resources, "freshness": "Current"})
            })
            .collect();
        let metadata = if core { json!({}) } else { json!({"name": g.name}) };
        json!({"metadata": metadata, "versions": versions})
    });
    let items: Vec<Value> = items.collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{}", form.version()),
        "metadata": {},
        "items": items,
    })
}

/// The `ETag` of a document (quoted, upper-case hex of a SHA-512 hash); a request that names it in `If-None-Match`
/// gets 304.
pub fn etag(document: &[u8]) -> String {
    let digest = Sha512::digest(document);
    let mut text = String::with_capacity(2 + digest.len() * 2);
    text.push('"');
    for byte in digest {
        text.push_str(&format!("{byte:02X}"));
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::kinds::builtin;

    #[test]
    fn core_resources_carry_verbs_names_and_hash() {
        let list = resource_list(builtin(), "", "v1").unwrap();
        let find =
            |name: &str| list["resources"].as_array().unwrap().iter().find(|r| r["name"] == name).unwrap();
        assert_eq!(
            *find("configmaps"),
            json!({"name": "configmaps", "singularName": "configmap", "namespaced": true, "kind": "ConfigMap",
                "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                "shortNames": ["cm"], "storageVersionHash": "qFsyl6wFWjQ="})
        );
        assert_eq!(find("pods/eviction")["group"], "policy");
        assert!(list.get("apiVersion").is_none());
    }

    #[test]
    fn aggregated_form_names_foreign_kinds_only() {
        let list = aggregated(builtin(), Aggregated::V2, false);
        let apps =
            list["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "apps").unwrap();
        let resources = apps["versions"][0]["resources"].as_array().unwrap();
        let deployments = resources.iter().find(|r| r["resource"] == "deployments").unwrap();
        assert_eq!(deployments["responseKind"], json!({"group": "", "version": "", "kind": "Deployment"}));
        assert_eq!(deployments["subresources"][0]["responseKind"]["group"], "autoscaling");
    }

    #[test]
    fn unknown_groups_and_versions_have_no_document() {
        assert_eq!(group(builtin(), "nosuch.example.com"), None);
        assert_eq!(group(builtin(), ""), None);
        assert_eq!(resource_list(builtin(), "apps", "v9"), None);
    }

    #[test]
    fn accept_parameters_pick_a_known_version_only() {
        let of = |v| {
            Aggregated::of_parameters([
                ("g", "apidiscovery.k8s.io"),
                ("v", v),
                ("as", "APIGroupDiscoveryList"),
            ])
        };
        assert_eq!(of("v2"), Some(Aggregated::V2));
        assert_eq!(of("v2beta1"), Some(Aggregated::V2Beta1));
        assert_eq!(of("v9"), None);
    }
}
