//! Custom resources in their versions: what is stored, and what is seen of it through another version.
//!
//! What is read is first completed by the schema of the version it is stored in (pruned, defaulted), so that a schema
//! that changed shows on older objects; then it is converted, and pruned by the version it is seen through. Without a
//! webhook only `apiVersion` changes, so defaults come from the stored version alone.

use std::sync::Arc;

use api::codec;
use api::custom::{Conversion, Definition, Version};
use api::object::Object;
use serde_json::{Value, json};

use super::conversion;
use crate::status::ApiResult;
use crate::watch_cache::WatchCache;

/// A custom resource in the form it is stored in.
pub async fn to_storage(cache: &WatchCache, definition: &Definition, object: Value) -> ApiResult<Value> {
    let mut objects = [object];
    relabel(cache, definition, definition.storage(), &mut objects).await?;
    let [object] = objects;
    Ok(object)
}

/// Stored custom resources in the version that the definition stands for, in place.
pub async fn from_storage(
    cache: &WatchCache,
    definition: &Definition,
    objects: &mut [Value],
) -> ApiResult<()> {
    for object in objects.iter_mut() {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        if let Some(stored) = definition.family().version_of(version) {
            stored.schema.prune(object);
            stored.schema.default(object);
        }
    }
    relabel(cache, definition, definition.own(), objects).await
}

/// A custom resource in the version that the definition stands for, as far as no webhook is needed for that.
pub fn relabelled(definition: &Definition, mut object: Value) -> Value {
    if definition.family().conversion == Conversion::None {
        object["apiVersion"] = json!(definition.api_version());
        definition.own().schema.prune(&mut object);
    }
    object
}

/// Cached custom resources in the version that the definition stands for; shared where they are in that form already.
pub async fn seen(
    cache: &WatchCache,
    definition: &Definition,
    mut objects: Vec<Arc<Object>>,
) -> ApiResult<Vec<Arc<Object>>> {
    let number = definition.number();
    let (mut places, mut stored) = (Vec::new(), Vec::new());
    for (at, object) in objects.iter_mut().enumerate() {
        match object.view(number) {
            Some(known) => *object = known,
            None => {
                places.push(at);
                stored.push(object.to_value());
            }
        }
    }
    let mut trees = stored.clone();
    from_storage(cache, definition, &mut trees).await?;
    for ((at, stored), tree) in places.into_iter().zip(stored).zip(trees) {
        let object = &objects[at];
        let seen = if tree == stored {
            object.clone()
        } else {
            let json = codec::encode_json(&tree).into();
            Arc::new(Object::from_value(tree, json, object.revision()))
        };
        object.keep_view(number, &seen);
        objects[at] = seen;
    }
    Ok(objects)
}

/// Brings objects into a version, and into the form its schema demands.
async fn relabel(
    cache: &WatchCache,
    definition: &Definition,
    to: &Version,
    objects: &mut [Value],
) -> ApiResult<()> {
    let wanted = definition.family().api_version(to);
    if objects.iter().all(|object| object["apiVersion"] == wanted.as_str()) {
        return Ok(());
    }
    match &definition.family().conversion {
        Conversion::None => {
            objects.iter_mut().for_each(|object| object["apiVersion"] = json!(wanted));
        }
        Conversion::Webhook(_) => conversion::convert(cache, definition, objects, &wanted).await?,
    }
    for object in objects {
        to.schema.prune(object);
    }
    Ok(())
}
