//! What owners end up with; most facts here are recorded from the reference.

use serde_json::{Value, json};

use super::*;
use crate::{codec, schema};

fn shape(kind: &str) -> Shape<'static> {
    let row = crate::kinds::all().iter().find(|row| row.kind == kind).unwrap();
    schema::root(&row.type_name)
}

fn writer<'a>(manager: &'a str, ignored: &'a FieldSet) -> Writer<'a> {
    Writer {
        manager,
        api_version: "v1",
        subresource: "",
        now: "2024-01-01T00:00:00Z".parse().unwrap(),
        ignored,
    }
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
}

fn applied(live: Option<&Value>, manager: &str, object: &Value, force: bool) -> Result<Value, ApplyError> {
    let none = FieldSet::default();
    let result = apply(shape("ConfigMap"), "ConfigMap", live, object, &writer(manager, &none), force)?;
    Ok(codec::decode_value(result.value, shape("ConfigMap")).unwrap().value)
}

fn updated(old: Option<&Value>, manager: &str, new: &Value) -> Value {
    let none = FieldSet::default();
    let mut new = codec::decode_value(new.clone(), shape("ConfigMap")).unwrap().value;
    update(shape("ConfigMap"), old, &mut new, &writer(manager, &none));
    new
}

fn owners(object: &Value) -> Vec<(String, Value)> {
    let entries = object["metadata"]["managedFields"].as_array();
    entries
        .into_iter()
        .flatten()
        .map(|entry| (entry["manager"].as_str().unwrap().to_owned(), entry["fieldsV1"].clone()))
        .collect()
}

#[test]
fn a_create_owns_what_it_adds() {
    let object = updated(None, "me", &config_map(json!({"a": "b"})));
    assert_eq!(owners(&object), [("me".to_owned(), json!({"f:data": {".": {}, "f:a": {}}}))]);
}

#[test]
fn an_update_takes_what_it_changes_and_drops_what_it_removes() {
    let object = updated(None, "one", &config_map(json!({"a": "1", "b": "2", "c": "3"})));
    let mut changed = object.clone();
    changed["data"] = json!({"a": "9", "b": "2"});
    let object = updated(Some(&object), "two", &changed);
    assert_eq!(
        owners(&object),
        [
            ("one".to_owned(), json!({"f:data": {".": {}, "f:b": {}}})),
            ("two".to_owned(), json!({"f:data": {"f:a": {}}}))
        ]
    );
}

#[test]
fn a_reset_stays_until_the_next_apply() {
    let object = updated(None, "one", &config_map(json!({"a": "1"})));
    let mut reset = object.clone();
    reset["metadata"]["managedFields"] = json!([]);
    let object = updated(Some(&object), "one", &reset);
    assert!(owners(&object).is_empty());
    let object = updated(Some(&object), "one", &config_map(json!({"a": "2", "b": "1"})));
    assert!(owners(&object).is_empty());
    let object = applied(Some(&object), "m1", &config_map(json!({"a": "2"})), false).unwrap();
    assert_eq!(
        owners(&object),
        [
            ("m1".to_owned(), json!({"f:data": {"f:a": {}}})),
            ("before-first-apply".to_owned(), json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}}))
        ]
    );
}

#[test]
fn fields_no_longer_applied_go_unless_others_own_them() {
    let object = updated(None, "up", &config_map(json!({"z": "1"})));
    let object = applied(Some(&object), "m1", &config_map(json!({"a": "1", "b": "1"})), false).unwrap();
    let object = applied(Some(&object), "m2", &config_map(json!({"b": "1"})), false).unwrap();
    let object = applied(Some(&object), "m1", &config_map(json!({})), false).unwrap();
    assert_eq!(object["data"], json!({"b": "1", "z": "1"}));
}

#[test]
fn conflicts_are_grouped_by_owner_and_force_takes_over() {
    let object = applied(None, "m1", &config_map(json!({"a": "1"})), false).unwrap();
    let object = applied(Some(&object), "m2", &config_map(json!({"b": "1"})), false).unwrap();
    let third = config_map(json!({"a": "2", "b": "2"}));
    assert_eq!(
        applied(Some(&object), "m3", &third, false).unwrap_err().to_string(),
        "Apply failed with 2 conflicts: conflicts with \"m1\":\n- .data.a\nconflicts with \"m2\":\n- .data.b"
    );
    let object = applied(Some(&object), "m3", &third, true).unwrap();
    assert_eq!(owners(&object), [("m3".to_owned(), json!({"f:data": {"f:a": {}, "f:b": {}}}))]);
}

#[test]
fn an_apply_that_changes_nothing_has_no_time() {
    let object = applied(None, "m1", &config_map(json!({"a": "1"})), false).unwrap();
    let object = applied(Some(&object), "m2", &config_map(json!({"a": "1"})), false).unwrap();
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!((&entries[0]["manager"], entries[0].get("time")), (&json!("m2"), None));
    assert_eq!(entries[1]["time"], "2024-01-01T00:00:00Z");
}

#[test]
fn objects_without_a_schema_have_granular_maps_and_whole_lists() {
    let none = FieldSet::default();
    let object = json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "x"}, "spec": {"m": {"a": 1}, "l": [1, 2]}});
    let result = apply(Shape::Any, "X", None, &object, &writer("m1", &none), false).unwrap();
    assert_eq!(
        owners(&result.value),
        [("m1".to_owned(), json!({"f:spec": {".": {}, "f:l": {}, "f:m": {".": {}, "f:a": {}}}}))]
    );
    let mut other = object.clone();
    other["spec"] = json!({"l": [3]});
    let error = apply(Shape::Any, "X", Some(&result.value), &other, &writer("m2", &none), false).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"m1\": .spec.l");
}

#[test]
fn applied_lists_keep_the_appliers_order() {
    let container = |name: &str| json!({"name": name, "image": "i"});
    let pod = |names: &[&str]| {
        let containers: Vec<_> = names.iter().map(|name| container(name)).collect();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}})
    };
    let none = FieldSet::default();
    let names = |first: &[&str], second: &[&str]| -> Vec<String> {
        let run = |live: Option<&Value>, manager: &str, names: &[&str]| {
            let result =
                apply(shape("Pod"), "Pod", live, &pod(names), &writer(manager, &none), true).unwrap();
            codec::decode_value(result.value, shape("Pod")).unwrap().value
        };
        let live = run(None, "m1", first);
        let value = run(Some(&live), "m2", second);
        let containers = value["spec"]["containers"].as_array().unwrap();
        containers.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&["a", "b"], &["b", "a"]), ["b", "a"]);
    assert_eq!(names(&["a", "b"], &["a", "m", "b"]), ["a", "m", "b"]);
    assert_eq!(names(&["a"], &["z"]), ["a", "z"]);
    assert_eq!(names(&["a", "b", "x"], &["b", "a"]), ["b", "x", "a"]);
    assert_eq!(names(&["x", "a"], &["a", "n"]), ["x", "a", "n"]);
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_client() {
    let with_annotation = |data: &str, value: &str| {
        let mut object = config_map(json!({"a": data}));
        let last = config_map(json!({"a": value})).to_string();
        object["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": last});
        object
    };
    let live = updated(None, "kubectl-client-side-apply", &with_annotation("1", "1"));
    let wanted = config_map(json!({"a": "2"}));
    let object = applied(Some(&live), "kubectl", &wanted, false).unwrap();
    assert_eq!(object["data"]["a"], "2");
    assert_eq!(
        object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"],
        format!("{wanted}\n")
    );
    assert!(applied(Some(&live), "m1", &wanted, false).is_err());
    // Somebody changed the field since: it is no longer kubectl's.
    let live = updated(None, "other", &with_annotation("3", "1"));
    assert!(applied(Some(&live), "kubectl", &wanted, false).is_err());
}

#[test]
fn a_replica_count_written_through_scale_has_its_own_entry() {
    let none = FieldSet::default();
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 2}});
    let writer = Writer { api_version: "apps/v1", ..writer("m1", &none) };
    let mut object = apply(shape("Deployment"), "Deployment", None, &object, &writer, false).unwrap().value;
    let write = |object: &mut Value, operation, force| {
        scale(object, "spec.replicas", "apps/v1", "hpa", operation, force, true)
    };
    let error = write(&mut object.clone(), Operation::Apply, false).unwrap_err();
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"m1\": .spec.replicas");
    write(&mut object, Operation::Update, false).unwrap();
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{"manager": "hpa", "operation": "Update", "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
            "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}])
    );
}

#[test]
fn what_does_not_fit_the_schema_is_named_with_its_path() {
    let text = |object: Value| applied(None, "m1", &object, false).unwrap_err().to_string();
    let mut object = config_map(json!({"a": "1"}));
    object["foo"] = json!(1);
    assert_eq!(
        text(object),
        "failed to create typed patch object (/c; /v1, Kind=ConfigMap): .foo: field not declared in schema"
    );
    let mut object = config_map(json!({}));
    object["apiVersion"] = json!("v2");
    assert_eq!(text(object), "invalid object type: /v2, Kind=ConfigMap");
    let mut object = config_map(json!({}));
    object["metadata"]["managedFields"] = json!([{}]);
    assert_eq!(text(object), "metadata.managedFields must be nil");
    assert_eq!(text(json!({})), "invalid object type: /, Kind=");
}
