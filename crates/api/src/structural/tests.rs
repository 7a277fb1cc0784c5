//! What a schema does to values: pruning, defaulting, validation.

use std::sync::Arc;

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::Structural;
use crate::field::ErrorList;

/// A schema whose `spec` has these properties.
fn spec(properties: Value) -> Arc<Structural> {
    object(json!({"spec": {"type": "object", "properties": properties}}))
}

fn object(properties: Value) -> Arc<Structural> {
    Structural::parse(&json!({"type": "object", "properties": properties})).unwrap()
}

fn resource(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "W", "metadata": {"name": "w"}, "spec": spec})
}

fn errors(schema: &Structural, new: &Value, old: Option<&Value>) -> String {
    let mut errors = ErrorList::default();
    schema.validate(new, old, &mut errors);
    errors.0.iter().map(|e| format!("{} {e}\n", e.reason.name())).collect()
}

fn check(properties: Value, value: Value, expected: Expect) {
    expected.assert_eq(&errors(&spec(properties), &resource(value), None));
}

#[test]
fn fields_without_a_schema_are_pruned_and_named() {
    let schema = spec(json!({
        "n": {"type": "integer"},
        "l": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
        "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string"}}}},
        "any": {"type": "object", "additionalProperties": true},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
            "o": {"type": "object", "properties": {"p": {"type": "string"}}}}},
    }));
    let mut value = resource(json!({
        "n": 1, "x": 1,
        "l": [{"a": "1", "b": 2}],
        "m": {"k": {"a": "1", "b": 2}},
        "any": {"s": 1, "o": {"x": 1}},
        "free": {"any": [1, {"x": null}], "o": {"q": 1}},
    }));
    value["extra"] = json!(1);
    let dropped = schema.prune(&mut value);
    assert_eq!(dropped, ["extra", "spec.any.o.x", "spec.free.o.q", "spec.l[0].b", "spec.m.k.b", "spec.x"]);
    assert_eq!(
        value,
        resource(json!({
            "n": 1, "l": [{"a": "1"}], "m": {"k": {"a": "1"}}, "any": {"s": 1, "o": {}},
            "free": {"any": [1, {"x": null}], "o": {}},
        }))
    );
}

#[test]
fn embedded_resources_keep_their_own_metadata() {
    let schema = spec(json!({"t": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {
        "spec": {"type": "object"}}}}));
    let mut value = resource(json!({"t": {
        "apiVersion": "v1", "kind": "X", "metadata": {"name": "a", "creationTimestamp": null, "zz": 1}, "spec": {}, "y": 1,
    }}));
    assert_eq!(schema.prune(&mut value), ["spec.t.metadata.zz", "spec.t.y"]);
    assert_eq!(
        value["spec"]["t"],
        json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "a"}, "spec": {}})
    );
    value["spec"]["t"] = json!({"kind": "x_y", "metadata": {"name": "a/b", "labels": {"k": 1}}});
    expect![[r#"
        FieldValueRequired spec.t.apiVersion: Required value
        FieldValueInvalid spec.t.kind: Invalid value: "x_y": may have mixed case, but should otherwise match: a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')
        FieldValueInvalid spec.t.metadata: Invalid value: {"labels":{"k":1},"name":"a/b"}: json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string
    "#]]
    .assert_eq(&errors(&schema, &value, None));
}

#[test]
fn defaults_fill_what_is_missing_and_nulls_that_are_no_values() {
    let schema = spec(json!({
        "a": {"type": "string", "nullable": true},
        "b": {"type": "string"},
        "c": {"type": "string", "default": "dd"},
        "d": {"type": "string", "nullable": true, "default": "dd"},
        "o": {"type": "object", "default": {}, "properties": {"p": {"type": "integer", "default": 1}}},
        "l": {"type": "array", "items": {"type": "object", "properties": {"q": {"type": "boolean", "default": true}}}},
        "m": {"type": "object", "additionalProperties": {"type": "string"}},
    }));
    let mut value =
        resource(json!({"a": null, "b": null, "c": null, "d": null, "l": [{}], "m": {"x": null, "y": "1"}}));
    schema.default(&mut value);
    let filled = json!({"a": null, "c": "dd", "d": null, "o": {"p": 1}, "l": [{"q": true}], "m": {"y": "1"}});
    assert_eq!(value["spec"], filled);
    schema.default(&mut value);
    assert_eq!(value["spec"], filled);
}

#[test]
fn values_are_refused_in_the_words_of_the_reference() {
    let properties = json!({
        "n": {"type": "integer", "minimum": 1, "maximum": 5},
        "f": {"type": "number", "minimum": 0.5, "exclusiveMinimum": true, "multipleOf": 0.25},
        "s": {"type": "string", "pattern": "^a+$", "maxLength": 3, "minLength": 1},
        "e": {"type": "string", "enum": ["x", "y"]},
        "l": {"type": "array", "items": {"type": "string"}, "maxItems": 1, "minItems": 1},
        "m": {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 1},
        "v": {"x-kubernetes-int-or-string": true},
        "d": {"type": "string", "format": "date-time"},
        "z": {"type": "string", "nullable": true},
        "y": {"type": "object", "required": ["r"], "properties": {"r": {"type": "string"}}},
    });
    check(
        properties.clone(),
        json!({"n": 9, "f": 0.6, "s": "b", "e": "z", "l": ["a", "b"], "m": {"a": 1, "b": 2}, "v": true, "d": "yesterday", "z": null, "y": {}}),
        expect![[r#"
            FieldValueTypeInvalid spec.d: Invalid value: "yesterday": spec.d in body must be of type date-time: "yesterday"
            FieldValueNotSupported spec.e: Unsupported value: "z": supported values: "x", "y"
            FieldValueInvalid spec.f: Invalid value: 0.6: spec.f in body should be a multiple of 0.25
            FieldValueTooMany spec.l: Too many: 2: must have at most 1 item
            FieldValueTooMany spec.m: Too many: 2: must have at most 1 item
            FieldValueInvalid spec.n: Invalid value: 9: spec.n in body should be less than or equal to 5
            FieldValueInvalid spec.s: Invalid value: "b": spec.s in body should match '^a+$'
            FieldValueTypeInvalid spec.v: Invalid value: "boolean": spec.v in body must be of type integer,string: "boolean"
            FieldValueRequired spec.y.r: Required value
        "#]],
    );
    check(
        properties,
        json!({"n": 1.5, "f": 0.5, "s": "aaaa", "e": null, "l": [], "m": {"a": "1"}, "v": "5%", "d": 1}),
        expect![[r#"
            FieldValueTypeInvalid spec.d: Invalid value: "int64": spec.d in body must be of type date-time: "int64"
            FieldValueTypeInvalid spec.e: Invalid value: "null": spec.e in body must be of type string: "null"
            FieldValueNotSupported spec.e: Unsupported value: null: supported values: "x", "y"
            FieldValueInvalid spec.f: Invalid value: 0.5: spec.f in body should be greater than 0.5
            FieldValueInvalid spec.l: Invalid value: 0: spec.l in body should have at least 1 items
            FieldValueTypeInvalid spec.m.a: Invalid value: "string": spec.m.a in body must be of type integer: "string"
            FieldValueTypeInvalid spec.n: Invalid value: "number": spec.n in body must be of type integer: "number"
            FieldValueInvalid <nil>: Invalid value: "": Checked value must be of type integer (default format) in spec.n
            FieldValueTooLong spec.s: Too long: may not be more than 3 bytes
        "#]],
    );
}

#[test]
fn junctors_name_the_best_branch() {
    check(
        json!({
            "a": {"type": "integer", "anyOf": [{"minimum": 10}, {"enum": [1, 2]}]},
            "b": {"type": "object", "properties": {"x": {"type": "string"}, "y": {"type": "string"}},
                "oneOf": [{"required": ["x"]}, {"required": ["y"]}]},
            "c": {"type": "string", "allOf": [{"minLength": 2}, {"pattern": "z"}]},
            "d": {"type": "string", "not": {"enum": ["no"]}},
        }),
        json!({"a": 5, "b": {"x": "1", "y": "2"}, "c": "a", "d": "no"}),
        expect![[r#"
            FieldValueInvalid <nil>: Invalid value: "": "spec.a" must validate at least one schema (anyOf)
            FieldValueInvalid spec.a: Invalid value: 5: spec.a in body should be greater than or equal to 10
            FieldValueInvalid <nil>: Invalid value: "": "spec.b" must validate one and only one schema (oneOf). Found 2 valid alternatives
            FieldValueInvalid spec.c: Invalid value: "a": spec.c in body should be at least 2 chars long
            FieldValueInvalid spec.c: Invalid value: "a": spec.c in body should match 'z'
            FieldValueInvalid <nil>: Invalid value: "": "spec.c" must validate all the schemas (allOf). None validated
            FieldValueInvalid <nil>: Invalid value: "": "spec.d" must not validate the schema (not)
        "#]],
    );
}

#[test]
fn sets_and_maps_hold_every_item_once() {
    let item = json!({"type": "object", "properties": {"k": {"type": "string"}, "p": {"type": "integer"}}});
    let properties = json!({
        "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item},
    });
    let value = json!({"s": ["a", "b", "a", "a"], "m": [{"k": "x", "p": 1}, {"k": "x"}, {}, {}]});
    check(
        properties.clone(),
        value.clone(),
        expect![[r#"
            FieldValueDuplicate spec.m[1]: Duplicate value: {"k":"x"}
            FieldValueDuplicate spec.m[3]: Duplicate value: {}
            FieldValueDuplicate spec.s[2]: Duplicate value: "a"
        "#]],
    );
    // What was double before may stay so.
    let schema = spec(properties);
    assert_eq!(errors(&schema, &resource(value.clone()), Some(&resource(value))), "");
}

#[test]
fn what_did_not_change_is_not_refused() {
    let short = json!({"type": "string", "maxLength": 1});
    let schema = spec(json!({
        "a": short, "b": short,
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {
            "type": "object", "properties": {"k": {"type": "string"}, "v": short, "w": short}}},
        "list": {"type": "array", "items": short},
    }));
    let old = resource(json!({"a": "long", "b": "1", "map": [{"k": "x", "v": "long"}], "list": ["long"]}));
    let mut new = old.clone();
    new["spec"]["b"] = json!("2");
    new["spec"]["map"] = json!([{"k": "y"}, {"k": "x", "v": "long", "w": "1"}]);
    assert_eq!(errors(&schema, &new, Some(&old)), "");
    new["spec"]["a"] = json!("longer");
    new["spec"]["list"] = json!(["long", "1"]);
    expect![[r#"
        FieldValueTooLong spec.a: Too long: may not be more than 1 byte
        FieldValueTooLong spec.list[0]: Too long: may not be more than 1 byte
    "#]]
    .assert_eq(&errors(&schema, &new, Some(&old)));
}

#[test]
fn a_value_that_is_all_wrong_is_not_told_so_for_ever() {
    let schema = spec(json!({"l": {"type": "array", "items": {"type": "string"}}}));
    let value = resource(json!({"l": vec![1; 100_000]}));
    let mut found = ErrorList::default();
    schema.validate(&value, None, &mut found);
    assert_eq!(found.0.len(), 1000);
}
