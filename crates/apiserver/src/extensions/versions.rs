//! Custom resources in their versions: what is stored, and what is seen of it through another version.
//!
//! What is read is first completed by the schema of the version it is stored in (pruned, defaulted), so that a schema
//! that changed shows on older objects; then it is converted, and pruned by the version it is seen through. Without a
//! webhook only `apiVersion` changes, so defaults come from the stored version alone.

use std::sync::Arc;

use api::codec;
use api::custom::{Definition, Version};
use api::object::Object;
use serde_json::{Value, json};

/// A custom resource in the form it is stored in.
pub fn to_storage(definition: &Definition, object: Value) -> Value {
    relabel(definition, definition.storage(), object)
}

/// A stored custom resource in the version that the definition stands for.
pub fn from_storage(definition: &Definition, mut object: Value) -> Value {
    let stored = definition.family().version_of(object["apiVersion"].as_str().unwrap_or_default());
    if let Some(stored) = stored {
        stored.schema.prune(&mut object);
        stored.schema.default(&mut object);
        if std::ptr::eq(stored, definition.own()) {
            return object;
        }
    }
    relabel(definition, definition.own(), object)
}

/// A cached custom resource in the version that the definition stands for; shared where it is in that form already.
pub fn seen(definition: &Definition, object: &Arc<Object>) -> Arc<Object> {
    if let Some(known) = object.view(definition.number()) {
        return known;
    }
    let stored = object.to_value();
    let tree = from_storage(definition, stored.clone());
    let seen = if tree == stored {
        object.clone()
    } else {
        let json = codec::encode_json(&tree).into();
        Arc::new(Object::from_value(tree, json, object.revision()))
    };
    object.keep_view(definition.number(), &seen);
    seen
}

/// Conversion without a webhook.
fn relabel(definition: &Definition, to: &Version, mut object: Value) -> Value {
    object["apiVersion"] = json!(definition.family().api_version(to));
    to.schema.prune(&mut object);
    object
}
