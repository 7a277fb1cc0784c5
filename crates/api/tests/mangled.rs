//! Whatever a client sends, nothing panics: objects and patches with random parts replaced by what does not belong there.

use api::apply::{self, FieldSet, Writer};
use api::patch::{json, merge, strategic};
use api::{codec, kinds};
use serde_json::{Value, json};

/// A small generator of numbers, so that a failure repeats.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"a": "b"}, "finalizers": ["x/y"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "u"}], "managedFields": [{"manager": "m",
            "operation": "Apply", "apiVersion": "apps/v1", "time": "2024-01-01T00:00:00Z", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}}}}}}}]},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 80}],
                "env": [{"name": "A", "value": "1"}], "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}],
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}], "tolerations": [{"key": "k", "operator": "Exists"}]}}}})
}

fn mangle(value: &mut Value, dice: &mut Dice) {
    match value {
        Value::Object(map) if !map.is_empty() && dice.below(4) != 0 => {
            let at = dice.below(map.len());
            if let Some(value) = map.values_mut().nth(at) {
                mangle(value, dice);
            }
        }
        Value::Array(items) if !items.is_empty() && dice.below(4) != 0 => {
            let at = dice.below(items.len());
            mangle(&mut items[at], dice);
        }
        value => {
            let strange = [
                Value::Null,
                json!(true),
                json!(-1),
                json!(1e300),
                json!(""),
                json!("1e99999"),
                json!("é"),
                json!([]),
                json!({}),
                json!([null, 1, {}]),
                json!({"$patch": "delete"}),
                json!([{"$patch": "replace"}, {"name": "a"}]),
                json!({"$retainKeys": ["a"]}),
                json!({"$setElementOrder/containers": [{"name": "a"}]}),
                json!({"f:": {}, "k:{}": {".": {}}, ".": {}}),
                json!([{"name": null}, {"name": "a"}, {"name": "a"}]),
            ];
            *value = strange[dice.below(strange.len())].clone();
        }
    }
}

#[test]
fn mangled_objects_and_patches_never_panic() {
    let shape = kinds::find("apps", "v1", "deployments").unwrap().shape();
    let none = FieldSet::default();
    let writer = Writer {
        manager: "m",
        api_version: "apps/v1",
        subresource: "",
        now: jiff::Timestamp::UNIX_EPOCH,
        ignored: &none,
    };
    let live = codec::decode_value(deployment(), shape).unwrap().value;
    let mut dice = Dice(1);
    let mut accepted = 0;
    for _ in 0..2_000 {
        let mut mangled = deployment();
        for _ in 0..=dice.below(3) {
            mangle(&mut mangled, &mut dice);
        }
        if let Ok(decoded) = codec::decode_json(mangled.to_string().as_bytes(), shape) {
            accepted += 1;
            let mut new = decoded.value;
            apply::update(shape, Some(&live), &mut new, &writer);
            let _ = apply::apply(shape, "Deployment", Some(&new), &deployment(), &writer, true);
        }
        let mut patch = mangled.clone();
        if let Some(fields) = patch.pointer_mut("/metadata/managedFields") {
            fields.take();
        }
        let results = [
            merge::apply(&live, &mangled),
            strategic::apply(shape, &live, &mangled),
            json::apply(&live, &json!([{"op": "add", "path": "/spec", "value": mangled}])),
            apply::apply(shape, "Deployment", Some(&live), &patch, &writer, false)
                .map(|applied| applied.value)
                .map_err(|_| api::patch::PatchError::Rejected),
        ];
        for value in results.into_iter().flatten() {
            let _ = codec::decode_value(value, shape);
        }
        let _ = codec::parse_yaml(&codec::encode_yaml(&mangled));
    }
    assert!(accepted > 100, "the mangling leaves nothing to work with");
}

#[test]
fn mangled_text_never_panics() {
    let shape = kinds::find("apps", "v1", "deployments").unwrap().shape();
    let text = deployment().to_string().into_bytes();
    let mut dice = Dice(2);
    for _ in 0..2_000 {
        let mut text = text.clone();
        for _ in 0..=dice.below(4) {
            let at = dice.below(text.len());
            text[at] = dice.below(256) as u8;
        }
        text.truncate(dice.below(text.len()) + 1);
        let _ = codec::decode_json(&text, shape);
        let _ = codec::decode_yaml(&text, shape);
    }
}
