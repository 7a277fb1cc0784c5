//! What clients read from the documents.

use super::*;
use api::kinds::builtin;

fn apps() -> Value {
    document(builtin(), Dialect::V3, Some(&("apps".into(), "v1".into())), "apis/apps/v1")
}

#[test]
fn explain_finds_the_kind_of_a_resource_and_its_words() {
    let document = apps();
    let get = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["get"];
    assert_eq!(
        get["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    let schemas = &document["components"]["schemas"];
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(
        deployment["properties"]["spec"]["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"
    );
    let replicas = &schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["replicas"];
    assert_eq!(replicas["format"], "int32");
    assert!(replicas["description"].as_str().unwrap().starts_with("Number of desired pods."));
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    found.push(target.clone());
                }
                map.values().for_each(|v| walk(v, found));
            }
            Value::Array(list) => list.iter().for_each(|v| walk(v, found)),
            _ => {}
        }
    }
    for dialect in [Dialect::V2, Dialect::V3] {
        let document = document(builtin(), dialect, None, "all");
        let mut references = Vec::new();
        walk(&document, &mut references);
        assert!(references.len() > 1000);
        for reference in references {
            let pointer = reference.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}

#[test]
fn patches_know_merge_keys_and_validation() {
    let document = apps();
    let container_list =
        &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(container_list["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(container_list["x-kubernetes-list-map-keys"], json!(["name"]));
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    let names: Vec<&str> =
        patch["parameters"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
}

#[test]
fn documents_are_kept_zipped_and_answered_by_hash() {
    let open_api = OpenApi::default();
    let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"))]);
    let tag = hash_of(builtin(), Some(&("apps".into(), "v1".into())));
    let answer = open_api.answer(builtin(), "/openapi/v3/apis/apps/v1", &tag, &headers).unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()[header::CONTENT_ENCODING], "gzip");
    let moved = open_api.answer(builtin(), "/openapi/v3/apis/apps/v1", "OLD", &headers).unwrap();
    assert_eq!(moved.status(), 301);
    let missing = open_api.answer(builtin(), "/openapi/v3/apis/nosuch/v1", "", &headers).unwrap();
    assert_eq!(missing.status(), 404);
}

#[test]
fn protobuf_alone_is_not_acceptable() {
    let headers = HeaderMap::from_iter([(
        header::ACCEPT,
        HeaderValue::from_static("application/com.github.proto-openapi.spec.v2@v1.0+protobuf"),
    )]);
    let refused = OpenApi::default().answer(builtin(), "/openapi/v2", "", &headers).map(|r| r.status());
    assert_eq!(refused.map_err(|e| e.code), Err(406));
}
