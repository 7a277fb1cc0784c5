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

/// The built-in kinds and a custom resource.
fn with_widgets() -> KindTable {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "t": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"a": {"type": "string"}}},
        "n": {"type": "integer", "description": "how many", "nullable": true}}}}});
    let definition = json!({
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "versions": [{
            "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": schema}}]},
        "status": {
            "acceptedNames": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "conditions": [{"type": "Established", "status": "True"}]},
    });
    builtin().with(api::custom::rows(&definition))
}

#[test]
fn custom_resources_are_published_with_their_schema() {
    let kinds = with_widgets();
    let page = document(&kinds, Dialect::V3, Some(&("example.com".into(), "v1".into())), "");
    let widget = &page["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(
        widget["x-kubernetes-group-version-kind"],
        json!([{"group": "example.com", "version": "v1", "kind": "Widget"}])
    );
    assert_eq!(
        widget["properties"]["spec"]["properties"]["n"],
        json!({"type": "integer", "description": "how many", "nullable": true})
    );
    assert!(widget["properties"]["kind"]["description"].as_str().unwrap().starts_with("Kind is a string"));
    let item = &page["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"];
    let answer = &item["get"]["responses"]["200"]["content"]["application/json"]["schema"];
    assert_eq!(answer["$ref"], "#/components/schemas/com.example.v1.Widget");
    let patches = item["patch"]["requestBody"]["content"].as_object().unwrap();
    assert!(!patches.contains_key("application/strategic-merge-patch+json"));
    let all = document(&kinds, Dialect::V2, None, "");
    assert_eq!(
        all["definitions"]["com.example.v1.Widget"]["properties"]["spec"]["properties"]["n"],
        json!({"description": "how many"})
    );
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
        let document = document(&with_widgets(), dialect, None, "all");
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
    let answer = open_api.answer(builtin(), "/openapi/v3/apis/apps/v1", &tag, &headers, &[]).unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()[header::CONTENT_ENCODING], "gzip");
    let moved = open_api.answer(builtin(), "/openapi/v3/apis/apps/v1", "OLD", &headers, &[]).unwrap();
    assert_eq!(moved.status(), 301);
    let missing = open_api.answer(builtin(), "/openapi/v3/apis/nosuch/v1", "", &headers, &[]).unwrap();
    assert_eq!(missing.status(), 404);
}

/// What messages hold: fields by number, those with a length as bytes.
fn fields(mut message: &[u8]) -> Vec<(u32, Vec<u8>)> {
    use prost::encoding::{WireType, decode_key, decode_varint};
    let mut found = Vec::new();
    while !message.is_empty() {
        let (number, wire) = decode_key(&mut message).unwrap();
        let value = decode_varint(&mut message).unwrap();
        found.push((
            number,
            match wire {
                WireType::LengthDelimited => {
                    message.split_off(..usize::try_from(value).unwrap()).unwrap().to_vec()
                }
                WireType::Varint => vec![u8::try_from(value).unwrap()],
                other => panic!("{other:?}"),
            },
        ));
    }
    found
}

fn field(message: &[u8], number: u32) -> Vec<u8> {
    fields(message).into_iter().find(|(n, _)| *n == number).unwrap_or_else(|| panic!("no field {number}")).1
}

fn named(pairs: &[u8], name: &str) -> Vec<u8> {
    let mut pairs = fields(pairs).into_iter().map(|(_, pair)| pair);
    field(&pairs.rfind(|pair| field(pair, 1) == name.as_bytes()).unwrap(), 2)
}

#[test]
fn go_clients_get_openapi_v2_in_protobuf() {
    let accept = |media| HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(media))]);
    let open_api = OpenApi::default();
    let asked = accept("application/com.github.proto-openapi.spec.v2@v1.0+protobuf");
    let answer = open_api.answer(builtin(), "/openapi/v2", "", &asked, &[]).unwrap();
    assert_eq!(
        answer.headers()[header::CONTENT_TYPE],
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    );
    let document = gnostic::document(&document(builtin(), Dialect::V2, None, "v2"));
    assert_eq!(field(&document, 1), b"2.0");
    let pod = named(&field(&document, 9), "io.k8s.api.core.v1.Pod");
    // the type, what it is, and a property that refers to another definition
    assert_eq!(field(&field(&pod, 22), 1), b"object");
    let kinds = named_extension(&pod, "x-kubernetes-group-version-kind");
    assert_eq!(kinds, r#"[{"group":"","kind":"Pod","version":"v1"}]"#);
    let spec = named(&field(&pod, 25), "spec");
    let reference =
        field(&fields(&spec).into_iter().find(|(n, _)| *n == 24).unwrap_or((1, spec.clone())).1, 1);
    assert!(String::from_utf8_lossy(&reference).ends_with("io.k8s.api.core.v1.PodSpec"));
    // a query parameter of an operation: ParametersItem, Parameter, NonBodyParameter, QueryParameterSubSchema
    let item = named(&field(&document, 8), "/api/v1/namespaces/{namespace}/pods/{name}");
    let patch = field(&item, 8);
    let names: Vec<String> = fields(&patch)
        .into_iter()
        .filter(|(n, _)| *n == 8)
        .filter_map(|(_, p)| fields(&field(&p, 1)).into_iter().find(|(n, _)| *n == 2))
        .map(|(_, p)| String::from_utf8(field(&field(&p, 3), 4)).unwrap())
        .collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    let refused = open_api.answer(builtin(), "/openapi/v2", "", &accept("text/html"), &[]);
    assert_eq!(refused.map(|r| r.status()).map_err(|e| e.code), Err(406));
    let both =
        accept("application/json;q=0.5, application/com.github.proto-openapi.spec.v2@v1.0+protobuf;q=0.1");
    let answer = open_api.answer(builtin(), "/openapi/v2", "", &both, &[]).unwrap();
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
}

fn named_extension(schema: &[u8], name: &str) -> String {
    let mut extensions = fields(schema).into_iter().filter(|(n, _)| *n == 31).map(|(_, pair)| pair);
    let value = extensions.rfind(|pair| field(pair, 1) == name.as_bytes()).unwrap();
    String::from_utf8(field(&field(&value, 2), 2)).unwrap()
}
