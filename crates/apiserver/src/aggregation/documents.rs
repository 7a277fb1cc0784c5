//! What other servers answer for, in discovery. What each of them serves was asked by the last check; of one that is not
//! available it may be old, and says so.

use serde_json::{Map, Value, json};

use super::{Aggregator, Remote};
use crate::watch_cache::WatchCache;

impl Aggregator {
    /// Adds groups and versions to the list of groups.
    pub fn extend_groups(&self, cache: &WatchCache, list: &mut Value) {
        let Some(groups) = list["groups"].as_array_mut() else { return };
        for remote in self.remotes(cache).iter() {
            match groups.iter_mut().find(|g| g["name"] == remote.group.as_str()) {
                Some(group) => add_version(group, remote),
                None => groups.push(group_of(remote)),
            }
        }
    }

    /// The document of a group: what the server itself has of it (`own`) and what others answer for.
    pub fn extend_group(&self, cache: &WatchCache, name: &str, own: Option<Value>) -> Option<Value> {
        let mut document = own;
        for remote in self.remotes(cache).iter().filter(|r| r.group == name) {
            match &mut document {
                Some(group) => add_version(group, remote),
                None => {
                    let mut group = group_of(remote);
                    group["kind"] = json!("APIGroup");
                    group["apiVersion"] = json!("v1");
                    document = Some(group);
                }
            }
        }
        document
    }

    /// Adds groups and versions to the aggregated form.
    pub fn extend_aggregated(&self, cache: &WatchCache, list: &mut Value) {
        let Some(items) = list["items"].as_array_mut() else { return };
        for remote in self.remotes(cache).iter() {
            let served = self.served.lock().get(&remote.name).cloned();
            let resources = served.map(|list| aggregated_resources(&list)).unwrap_or_default();
            let freshness = if remote.is_available { "Current" } else { "Stale" };
            let version = json!({"version": remote.version, "resources": resources, "freshness": freshness});
            let group = items.iter_mut().find(|g| g["metadata"]["name"] == remote.group.as_str());
            match group.and_then(|g| g["versions"].as_array_mut()) {
                Some(versions) => versions.push(version),
                None => items.push(json!({"metadata": {"name": remote.group}, "versions": [version]})),
            }
        }
    }

    /// Adds the pages of other servers to the index of OpenAPI documents.
    pub fn extend_openapi(&self, cache: &WatchCache, index: &mut Value) {
        let Some(paths) = index["paths"].as_object_mut() else { return };
        for remote in self.remotes(cache).iter() {
            let page = format!("apis/{}/{}", remote.group, remote.version);
            paths.insert(page.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{page}")}));
        }
    }
}

fn version_of(remote: &Remote) -> Value {
    json!({"groupVersion": format!("{}/{}", remote.group, remote.version), "version": remote.version})
}

fn group_of(remote: &Remote) -> Value {
    let version = version_of(remote);
    json!({"name": remote.group, "versions": [version], "preferredVersion": version})
}

fn add_version(group: &mut Value, remote: &Remote) {
    let version = version_of(remote);
    if let Some(versions) = group["versions"].as_array_mut()
        && !versions.contains(&version)
    {
        versions.push(version);
    }
}

/// The resources of an `APIResourceList` in the aggregated form.
fn aggregated_resources(list: &Value) -> Vec<Value> {
    let (group, version) = {
        let text = list["groupVersion"].as_str().unwrap_or_default();
        text.split_once('/').unwrap_or(("", text))
    };
    let entries = || list["resources"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    // where a resource does not say them, group and version are those of the list
    let response_kind = |entry: &Value| {
        let own = |key: &str, or: &str| match entry[key].as_str() {
            Some(text) if !text.is_empty() => text.to_owned(),
            _ => or.to_owned(),
        };
        json!({"group": own("group", group), "version": own("version", version), "kind": entry["kind"]})
    };
    let mut resources: Vec<Value> = Vec::new();
    for entry in entries().filter(|e| !text(&e["name"]).contains('/')) {
        let mut resource = Map::new();
        resource.insert("resource".to_owned(), entry["name"].clone());
        resource.insert("responseKind".to_owned(), response_kind(entry));
        let scope = if entry["namespaced"] == true { "Namespaced" } else { "Cluster" };
        resource.insert("scope".to_owned(), json!(scope));
        resource.insert("singularResource".to_owned(), json!(text(&entry["singularName"])));
        resource.insert("verbs".to_owned(), entry["verbs"].clone());
        for key in ["shortNames", "categories"] {
            if entry[key].is_array() {
                resource.insert(key.to_owned(), entry[key].clone());
            }
        }
        let prefix = format!("{}/", text(&entry["name"]));
        let subresources: Vec<Value> = entries()
            .filter_map(|sub| {
                let name = sub["name"].as_str()?.strip_prefix(&prefix)?;
                Some(json!({"subresource": name, "responseKind": response_kind(sub), "verbs": sub["verbs"]}))
            })
            .collect();
        if !subresources.is_empty() {
            resource.insert("subresources".to_owned(), json!(subresources));
        }
        resources.push(Value::Object(resource));
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_resources_becomes_the_aggregated_form() {
        let list = json!({"groupVersion": "m.example.com/v1", "resources": [
            {"name": "pods", "singularName": "", "namespaced": true, "kind": "PodMetrics", "verbs": ["get"]},
            {"name": "pods/scale", "namespaced": true, "kind": "Scale", "group": "autoscaling", "version": "v1",
                "verbs": ["update"]}]});
        assert_eq!(
            aggregated_resources(&list),
            [json!({"resource": "pods", "scope": "Namespaced", "singularResource": "", "verbs": ["get"],
                "responseKind": {"group": "m.example.com", "version": "v1", "kind": "PodMetrics"},
                "subresources": [{"subresource": "scale", "verbs": ["update"],
                    "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}}]})]
        );
    }
}
