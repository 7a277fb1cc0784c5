//! Pod templates: whether two ask for the same pod, and the hash that names the replica set or revision of one. The hash is
//! our own function; nothing else depends on its value, because controllers find what they made by comparing templates.
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Label that keeps the pods of different templates apart.
pub(crate) const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// Letters and digits that cannot form words and cannot be mistaken for each other.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Ten characters that are a stable function of the template and of the number of collisions seen.
pub(crate) fn pod_template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut digest = Sha256::new();
    digest.update(canonical(template).to_string().as_bytes());
    digest.update(collisions.to_be_bytes());
    let digest = digest.finalize();
    let mut number = u64::from_be_bytes(std::array::from_fn(|i| digest[i]));
    (0..10)
        .map(|_| {
            let letter = ALPHABET[(number % ALPHABET.len() as u64) as usize];
            number /= ALPHABET.len() as u64;
            letter as char
        })
        .collect()
}

/// Whether two templates ask for the same pod, leaving the hash label out of the comparison.
pub(crate) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    a.spec == b.spec && a.metadata == b.metadata || canonical(a) == canonical(b)
}

/// The template as JSON with sorted keys, without the hash label and without empty values: absent and empty mean the same.
fn canonical(template: &PodTemplateSpec) -> Value {
    let mut value = serde_json::to_value(template).unwrap_or(Value::Null);
    if let Some(labels) = value.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(POD_TEMPLATE_HASH);
    }
    prune(&mut value);
    value
}

/// Drops nulls and empty containers, except `emptyDir: {}` and the like, where presence is the meaning: an empty
/// object is kept, and only an empty `metadata` or label map is dropped by its key.
fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (_, child) in map.iter_mut() {
                prune(child);
            }
            map.retain(|key, child| match child {
                Value::Null => false,
                Value::Array(items) => !items.is_empty(),
                Value::Object(fields) if fields.is_empty() => !matches!(
                    key.as_str(),
                    "metadata"
                        | "labels"
                        | "annotations"
                        | "nodeSelector"
                        | "securityContext"
                        | "resources"
                        | "limits"
                        | "requests"
                ),
                _ => true,
            });
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(value: Value) -> PodTemplateSpec {
        serde_json::from_value(value).expect("template")
    }

    #[test]
    fn the_hash_is_stable_and_depends_on_collisions() {
        let t = template(
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}),
        );
        expect_test::expect!["mvrpp6nhbj"].assert_eq(&pod_template_hash(&t, 0));
        assert_ne!(pod_template_hash(&t, 0), pod_template_hash(&t, 1));
    }

    #[test]
    fn the_hash_label_and_empty_maps_do_not_count() {
        let a = template(
            json!({"metadata": {"labels": {"app": "web", "pod-template-hash": "x"}}, "spec": {"containers": [{"name": "c", "resources": {}}]}}),
        );
        let b = template(
            json!({"metadata": {"labels": {"app": "web"}, "annotations": {}}, "spec": {"containers": [{"name": "c"}]}}),
        );
        assert!(same_template(&a, &b));
        assert_eq!(pod_template_hash(&a, 0), pod_template_hash(&b, 0));
    }

    #[test]
    fn an_empty_dir_is_not_nothing() {
        let a = template(json!({"spec": {"containers": [], "volumes": [{"name": "v", "emptyDir": {}}]}}));
        let b = template(json!({"spec": {"containers": [], "volumes": [{"name": "v"}]}}));
        assert!(!same_template(&a, &b));
    }
}
