//! Bodies in protobuf: what goes out comes back, and hostile bytes never panic.

use serde_json::json;

use super::union::Union;
use super::*;

fn pod() -> Shape<'static> {
    shape_of("v1", "Pod").unwrap()
}

#[test]
fn a_known_message_reads_as_its_object() {
    // what a client sends for a config map `c` with data {"k": "v"} and an empty creation time
    let raw: &[u8] = b"\x0a\x07\x0a\x01c\x12\x00\x42\x00\x12\x06\x0a\x01k\x12\x01v";
    let mut bytes = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12".to_vec();
    bytes.push(raw.len() as u8);
    bytes.extend_from_slice(raw);
    bytes.extend_from_slice(b"\x1a\x00\x22\x00");
    let decoded = decode_protobuf(&bytes, shape_of("v1", "ConfigMap").unwrap()).unwrap();
    expect_test::expect![[
        r#"{"apiVersion":"v1","data":{"k":"v"},"kind":"ConfigMap","metadata":{"name":"c"}}"#
    ]]
    .assert_eq(&decoded.value.to_string());
}

fn round(api_version: &str, kind: &str, object: Value) {
    let shape = shape_of(api_version, kind).unwrap();
    let mut object = object;
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(kind);
    let object = decode_value(object, shape).unwrap().value;
    let bytes = encode_protobuf(&object, shape).unwrap();
    assert_eq!(decode_protobuf(&bytes, shape).unwrap().value, object);
}

#[test]
fn values_of_every_type_survive() {
    round(
        "v1",
        "Pod",
        json!({"metadata": {"name": "p", "creationTimestamp": "1969-12-31T23:59:58Z", "labels": {"a": "", "b": "é"},
            "managedFields": [{"manager": "m", "fieldsV1": {"f:a": {".": {}}}}]},
            "spec": {"priority": -5, "hostNetwork": true, "volumes": [{"name": "e", "emptyDir": {}},
            {"name": "c", "configMap": {"name": "c", "defaultMode": 420, "optional": false}}], "containers": [{"name": "c",
            "resources": {"limits": {"cpu": "250m", "memory": "1Gi"}}, "livenessProbe": {"httpGet": {"port": "http", "path": "/"}},
            "readinessProbe": {"tcpSocket": {"port": 80}, "terminationGracePeriodSeconds": 0}}]}}),
    );
    round(
        "v1",
        "Secret",
        json!({"metadata": {"name": "s"}, "data": {"a": "AAH/", "empty": ""}, "immutable": false}),
    );
    round(
        "coordination.k8s.io/v1",
        "Lease",
        json!({"metadata": {"name": "l"}, "spec": {"renewTime": "2024-01-01T00:00:00.000001Z",
        "acquireTime": "1969-12-31T23:59:59.999999Z"}}),
    );
    round(
        "apps/v1",
        "ControllerRevision",
        json!({"metadata": {"name": "r"}, "revision": 9_000_000_000_i64, "data": {"a": [null, 1.5, {}]}}),
    );
    round(
        "authorization.k8s.io/v1",
        "SubjectAccessReview",
        json!({"spec": {"user": "u", "extra": {"a": ["1", "2"], "b": ["3"]}}}),
    );
    round(
        "autoscaling/v1",
        "Scale",
        json!({"metadata": {"name": "s"}, "spec": {"replicas": 3}, "status": {"replicas": 1}}),
    );
    round(
        "v1",
        "DeleteOptions",
        json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "u"}, "dryRun": ["All"]}),
    );
    round(
        "v1",
        "Status",
        json!({"status": "Failure", "code": 404, "details": {"name": "x", "causes": [{"field": "f"}]}}),
    );
    round(
        "v1",
        "PodList",
        json!({"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "p"}}]}),
    );
    round("meta.k8s.io/v1", "PartialObjectMetadata", json!({"metadata": {"name": "p"}}));
    round("meta.k8s.io/v1", "PartialObjectMetadataList", json!({"items": [{"metadata": {"name": "p"}}]}));
}

#[test]
fn schemas_of_custom_resources_survive() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string", "enum": ["x", null],
        "default": {"k": [null]}}}, "b": {"additionalProperties": {"items": {"additionalProperties": false}}},
        "c": {"items": [{"type": "string"}, {}], "additionalItems": true}},
        "dependencies": {"d": ["a", "b"], "e": {"required": ["a"]}}, "minimum": 1.5, "x-kubernetes-preserve-unknown-fields": false});
    round(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        json!({"metadata": {"name": "w.example.com"}, "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "w", "kind": "W"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}}),
    );
    // {schema: {type: "", description: "", nullable: false}}, as writers that send zeros have it
    let items = Union::of(
        schema::builtin(),
        &schema::get(&format!("{}JSONSchemaProps", union::PACKAGE)).unwrap().field("items").unwrap().0.ty,
    );
    let bytes = b"\x0a\x07\x2a\x00\x22\x00\xa8\x02\x00";
    assert_eq!(items.unwrap().read(wire::Wire::Bytes(bytes), "items", 9).unwrap(), json!({}));
}

#[test]
fn an_event_of_a_watch_has_its_length_before_it() {
    assert_eq!(encode_watch_event("ADDED", b"xyz"), b"\0\0\0\x0e\x0a\x05ADDED\x12\x05\x0a\x03xyz");
}

#[test]
fn every_kind_and_its_list_have_a_shape() {
    for kind in kinds::all() {
        assert!(shape_of(&kind.api_version(), &kind.kind).is_some(), "{}", kind.kind);
        if kind.is_stored() {
            assert!(shape_of(&kind.api_version(), &kind.list_kind).is_some(), "{}", kind.list_kind);
        }
        for sub in kind.subresources.iter().filter(|s| s.type_name.is_some()) {
            assert!(shape_of(&sub.kind.api_version(), &sub.kind.kind).is_some(), "{}", sub.kind.kind);
        }
    }
    assert!(shape_of("example.com/v1", "Widget").is_none());
}

#[test]
fn what_is_no_message_is_refused_in_known_words() {
    let refused = |bytes: &[u8]| decode_protobuf(bytes, pod()).unwrap_err().to_string();
    assert_eq!(refused(b""), "empty data");
    assert_eq!(refused(b"k8s\0"), "empty body");
    assert_eq!(
        refused(b"{}"),
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    );
    assert_eq!(refused(b"k8s\0\x12\x05\x0a"), "unexpected EOF");
    assert_eq!(refused(b"k8s\0\x12\x02\x08\x01"), "proto: wrong wireType = 0 for field Metadata");
    assert_eq!(refused(b"k8s\0\x12\x01\x0f"), "proto: illegal wireType 7");
    assert_eq!(refused(b"k8s\0\x12\x01\x04"), "proto: illegal tag 0");
    assert_eq!(refused(b"k8s\0\x12\x01\x0c"), "proto: wiretype end group for non-group");
    assert_eq!(refused(b"k8s\0\x12\x01\x0b"), "unexpected EOF");
}

#[test]
fn unknown_fields_and_groups_are_skipped() {
    // field 100 as a number, field 101 as a group with bytes in it, then the metadata
    let bytes = b"k8s\0\x12\x15\xa0\x06\x01\xab\x06\x0a\x02hi\xac\x06\x0a\x05\x0a\x03abc\xa0\x06\x01";
    assert_eq!(decode_protobuf(bytes, pod()).unwrap().value["metadata"]["name"], "abc");
}

#[test]
fn numbers_may_be_packed() {
    // spec.securityContext.supplementalGroups: 4, packed 5 and 6, 7
    let inner = b"\x20\x04\x22\x02\x05\x06\x20\x07";
    let mut spec = b"\x72\x08".to_vec();
    spec.extend_from_slice(inner);
    let mut raw = vec![0x12, spec.len() as u8];
    raw.extend_from_slice(&spec);
    let mut bytes = b"k8s\0\x12".to_vec();
    bytes.push(raw.len() as u8);
    bytes.extend_from_slice(&raw);
    let value = decode_protobuf(&bytes, pod()).unwrap().value;
    assert_eq!(value["spec"]["securityContext"]["supplementalGroups"], json!([4, 5, 6, 7]));
}

#[test]
fn deep_nesting_is_refused() {
    let shape = shape_of("apps/v1", "ControllerRevision").unwrap();
    let nested = |levels: usize| {
        let mut data = json!(1);
        for _ in 0..levels {
            data = json!([data]);
        }
        decode_protobuf(&encode_protobuf(&json!({"data": data}), shape).unwrap(), shape)
    };
    assert!(nested(90).is_ok());
    assert_eq!(nested(110).unwrap_err().to_string(), "exceeded max depth");
}

#[test]
fn damaged_bytes_never_panic() {
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"},
        "creationTimestamp": "2024-01-01T00:00:00Z", "managedFields": [{"fieldsV1": {"f:a": {}}}]},
        "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}, "livenessProbe": {"httpGet": {"port": 1}}}],
        "securityContext": {"supplementalGroups": [1, 2]}, "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}]}});
    let bytes = encode_protobuf(&object, pod()).unwrap();
    for at in 0..bytes.len() {
        let _ = decode_protobuf(&bytes[..at], pod());
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            let _ = decode_protobuf(&damaged, pod());
            damaged.remove(at);
            let _ = decode_protobuf(&damaged, pod());
        }
    }
}
