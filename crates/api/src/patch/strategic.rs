//! Strategic merge patch: a merge patch that knows from the schema which lists merge, and by which key.
//!
//! Directives: `$patch: replace|delete`, `$retainKeys`, `$setElementOrder/<field>`, `$deleteFromPrimitiveList/<field>`
//! (the Kubernetes documentation "Notes on the strategic merge patch"). Order of a merged list: the patch's items keep the
//! patch's order, the others keep theirs; an item that only the patch has comes before the others that it meets.

use serde_json::{Map, Value};

use super::{PatchError, display, json_type};
use crate::schema::{Field, Shape};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch to an object of a shape.
pub fn apply(shape: Shape<'_>, target: &Value, patch: &Value) -> Result<Value, PatchError> {
    let patch = match patch {
        Value::Object(patch) => patch.clone(),
        other => {
            return Err(PatchError::Malformed(format!(
                "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                json_type(other)
            )));
        }
    };
    let target = target.as_object().cloned().unwrap_or_default();
    merge_map(target, patch, shape).map(Value::Object)
}

fn merge_map(
    mut target: Map<String, Value>,
    mut patch: Map<String, Value>,
    shape: Shape<'_>,
) -> Result<Map<String, Value>, PatchError> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        match directive.as_str() {
            Some("replace") => {
                patch.remove(DIRECTIVE);
                return Ok(without_directives_in_map(patch));
            }
            Some("delete") => return Ok(Map::new()),
            _ => {
                return Err(PatchError::Directive(format!(
                    "unknown patch type: {} in map: {}",
                    display(directive),
                    display(&Value::Object(patch))
                )));
            }
        }
    }
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        retain_keys(&mut target, &patch, &keys)?;
    }
    apply_element_orders(&mut target, &mut patch, shape)?;
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM_LIST) {
            if let (Some(Value::Array(items)), Value::Array(gone)) = (target.get_mut(field), &value) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if value.is_null() {
            target.remove(&key);
            continue;
        }
        let merged = match (target.remove(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                Value::Object(merge_map(old, new, member(shape, &key))?)
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                Value::Array(merge_or_replace_list(old, new, field_of(shape, &key), member(shape, &key))?)
            }
            (_, value) => without_directives(value),
        };
        target.insert(key, merged);
    }
    Ok(target)
}

fn member<'a>(shape: Shape<'a>, key: &str) -> Shape<'a> {
    shape.member(key).unwrap_or(Shape::Any)
}

fn field_of<'a>(shape: Shape<'a>, key: &str) -> Option<&'a Field> {
    match shape {
        Shape::Message { ty, .. } => ty.field(key).map(|(field, _)| field),
        _ => None,
    }
}

fn retain_keys(
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    keys: &Value,
) -> Result<(), PatchError> {
    let malformed = || PatchError::Directive("invalid patch format of retainKeys".to_owned());
    let keys = keys.as_array().ok_or_else(malformed)?;
    let is_retained = |key: &str| keys.iter().any(|k| k.as_str() == Some(key));
    let is_plain = |key: &str| !key.starts_with('$');
    if patch.iter().any(|(k, v)| is_plain(k) && !v.is_null() && !is_retained(k)) {
        return Err(malformed());
    }
    target.retain(|key, _| is_retained(key));
    Ok(())
}

/// Takes the `$setElementOrder` directives out of the patch, with the lists they order, and merges those.
fn apply_element_orders(
    target: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    shape: Shape<'_>,
) -> Result<(), PatchError> {
    let directives: Vec<String> =
        patch.keys().filter(|key| key.starts_with(ELEMENT_ORDER)).cloned().collect();
    for directive in directives {
        let name = directive[ELEMENT_ORDER.len()..].to_owned();
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(PatchError::Directive("invalid patch format of setElementOrder list".to_owned()));
        };
        let gone = patch.remove(&format!("{DELETE_FROM_LIST}{name}"));
        let list = match patch.remove(&name) {
            Some(Value::Array(list)) => Some(list),
            Some(Value::Null) => {
                target.remove(&name);
                continue;
            }
            Some(other) => {
                target.insert(name, without_directives(other));
                continue;
            }
            None => None,
        };
        let mut old = match target.remove(&name) {
            Some(Value::Array(old)) => old,
            _ => Vec::new(),
        };
        if let Some(Value::Array(gone)) = &gone {
            old.retain(|item| !gone.contains(item));
        }
        let field = field_of(shape, &name);
        let key = field.and_then(|f| f.merge_key.as_deref());
        let server_order = old.clone();
        let merged = match list {
            Some(list) => {
                check_order(&list, &order, key)?;
                merge_or_replace_list(old, list, field, member(shape, &name))?
            }
            None => old,
        };
        if merged.is_empty() && server_order.is_empty() {
            continue;
        }
        target.insert(name, Value::Array(arrange(merged, &order, &server_order, key)));
    }
    Ok(())
}

/// The patch's items must stand in the order list, in its order.
fn check_order(list: &[Value], order: &[Value], key: Option<&str>) -> Result<(), PatchError> {
    let mut rest = order.iter();
    let is_special = |item: &Value| item.get(DIRECTIVE).is_some();
    for item in list.iter().filter(|item| !is_special(item)) {
        if !rest.any(|ordered| same(ordered, item, key)) {
            let shown = |items: &[Value]| display(&Value::Array(items.to_vec()));
            return Err(PatchError::Directive(format!(
                "The order in patch list:\n{}\n doesn't match {} list:\n{}\n",
                shown(list),
                ELEMENT_ORDER.trim_end_matches('/'),
                shown(order)
            )));
        }
    }
    Ok(())
}

fn merge_or_replace_list(
    old: Vec<Value>,
    new: Vec<Value>,
    field: Option<&Field>,
    shape: Shape<'_>,
) -> Result<Vec<Value>, PatchError> {
    let Some(field) = field.filter(|f| f.patch_merge) else {
        return Ok(new.into_iter().map(without_directives).collect());
    };
    let is_of_maps = old.iter().chain(&new).any(Value::is_object);
    let (merged, patch) = match (&field.merge_key, is_of_maps) {
        (Some(key), true) => match merge_items(&old, new, key, shape)? {
            Merged::Replaced(list) => return Ok(list),
            Merged::Items { merged, patch } => (merged, patch),
        },
        (None, true) => {
            return Err(PatchError::Directive(format!(
                "cannot merge lists without merge key for {}",
                field.name
            )));
        }
        (_, false) => {
            let mut merged = old.clone();
            for item in &new {
                if !merged.contains(item) {
                    merged.push(item.clone());
                }
            }
            (merged, new)
        }
    };
    let key = field.merge_key.as_deref().filter(|_| is_of_maps);
    Ok(arrange(merged, &patch, &old, key))
}

enum Merged {
    /// `$patch: replace` stood among the items.
    Replaced(Vec<Value>),
    /// The merged items in no particular order, and the patch's items without special ones.
    Items { merged: Vec<Value>, patch: Vec<Value> },
}

fn merge_items(old: &[Value], new: Vec<Value>, key: &str, shape: Shape<'_>) -> Result<Merged, PatchError> {
    let no_key = |item: &Value| {
        PatchError::Directive(format!("map: {} does not contain declared merge key: {key}", display(item)))
    };
    let mut merged = old.to_vec();
    let mut patch = Vec::new();
    let mut is_replaced = false;
    for item in new {
        match item.get(DIRECTIVE) {
            None => patch.push(item),
            Some(Value::String(directive)) if directive == "replace" => is_replaced = true,
            Some(Value::String(directive)) if directive == "delete" => {
                let gone = item.get(key).ok_or_else(|| no_key(&item))?;
                merged.retain(|known| known.get(key) != Some(gone));
            }
            Some(Value::String(directive)) if directive == "merge" => {
                let why = "merging lists cannot yet be specified in the patch";
                return Err(PatchError::Directive(why.to_owned()));
            }
            Some(directive) => {
                return Err(PatchError::Directive(format!(
                    "unknown patch type: {} in map: {}",
                    display(directive),
                    display(&item)
                )));
            }
        }
    }
    if is_replaced {
        return Ok(Merged::Replaced(patch.into_iter().map(without_directives).collect()));
    }
    let item_shape = shape.item().unwrap_or(Shape::Any);
    for item in &patch {
        let id = item.get(key).ok_or_else(|| no_key(item))?;
        match merged.iter_mut().find(|known| known.get(key) == Some(id)) {
            Some(known) => {
                let (Value::Object(old), Value::Object(new)) = (known.take(), item.clone()) else {
                    return Err(no_key(item));
                };
                *known = Value::Object(merge_map(old, new, item_shape)?);
            }
            None => merged.push(without_directives(item.clone())),
        }
    }
    Ok(Merged::Items { merged, patch })
}

/// Puts a merged list in order: items that `first` names in its order, the others in the order they had, and each of the
/// others before the first of the former that used to come after it.
fn arrange(items: Vec<Value>, first: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| list.iter().position(|other| same(other, item, key));
    let (mut named, mut others): (Vec<_>, Vec<_>) = items
        .into_iter()
        .map(|item| (place(before, &item), item))
        .partition(|(_, item)| place(first, item).is_some());
    named.sort_by_key(|(_, item)| place(first, item));
    others.sort_by_key(|(old, _)| old.unwrap_or(usize::MAX));
    let mut named = named.into_iter().peekable();
    let mut others = others.into_iter().peekable();
    let mut list = Vec::with_capacity(named.len() + others.len());
    loop {
        let takes_other = match (named.peek(), others.peek()) {
            (Some((Some(a), _)), Some((Some(b), _))) => b < a,
            (Some(_), _) => false,
            (None, _) => true,
        };
        let next = if takes_other { others.next() } else { named.next() };
        match next {
            Some((_, item)) => list.push(item),
            None => return list,
        }
    }
}

fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) if a.is_object() => a.get(key) == b.get(key),
        _ => a == b,
    }
}

/// What is taken from the patch as it is: without nulls and directives.
fn without_directives(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives_in_map(map)),
        Value::Array(items) => Value::Array(
            items.into_iter().filter(|item| item.get(DIRECTIVE).is_none()).map(without_directives).collect(),
        ),
        scalar => scalar,
    }
}

fn without_directives_in_map(map: Map<String, Value>) -> Map<String, Value> {
    let is_directive = |key: &str| {
        key == DIRECTIVE
            || key == RETAIN_KEYS
            || key.starts_with(ELEMENT_ORDER)
            || key.starts_with(DELETE_FROM_LIST)
    };
    map.into_iter()
        .filter(|(key, value)| !value.is_null() && !is_directive(key))
        .map(|(key, value)| (key, without_directives(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use serde_json::json;

    fn pod_spec() -> Value {
        json!({"containers": [
                {"name": "a", "image": "img:1", "args": ["1", "2"],
                 "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}],
                 "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "UDP"}]},
                {"name": "b", "image": "img:2"}],
            "volumes": [{"name": "v", "emptyDir": {}}], "nodeSelector": {"k": "v"},
            "hostAliases": [{"ip": "1.1.1.1", "hostnames": ["h1"]}], "imagePullSecrets": [{"name": "s1"}]})
    }

    fn patched(patch: Value) -> Result<Value, PatchError> {
        apply(schema::root("io.k8s.api.core.v1.PodSpec"), &pod_spec(), &patch)
    }

    fn names(list: &Value) -> Vec<&str> {
        list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn lists_merge_by_key_and_new_items_come_first() {
        let spec = patched(json!({"containers": [{"name": "c", "image": "img:3"}],
            "imagePullSecrets": [{"name": "s2"}],
            "hostAliases": [{"ip": "1.1.1.1", "hostnames": ["h2"]}, {"ip": "2.2.2.2", "hostnames": ["h3"]}]}))
        .unwrap();
        assert_eq!(names(&spec["containers"]), ["c", "a", "b"]);
        assert_eq!(names(&spec["imagePullSecrets"]), ["s2", "s1"]);
        assert_eq!(spec["hostAliases"][0]["hostnames"], json!(["h2"]));
        assert_eq!(spec["hostAliases"][1]["ip"], "2.2.2.2");
    }

    #[test]
    fn nested_lists_merge_and_atomic_ones_are_replaced() {
        let spec = patched(json!({"containers": [{"name": "a", "args": ["9"],
            "env": [{"name": "X", "value": "9"}, {"name": "Y", "$patch": "delete"}, {"name": "Z", "value": "3"}],
            "ports": [{"containerPort": 80, "protocol": "TCP", "name": "web"}, {"containerPort": 81}]}]}))
        .unwrap();
        let a = &spec["containers"][0];
        assert_eq!(a["args"], json!(["9"]));
        assert_eq!(a["env"], json!([{"name": "X", "value": "9"}, {"name": "Z", "value": "3"}]));
        assert_eq!(
            a["ports"],
            json!([{"containerPort": 80, "protocol": "TCP", "name": "web"},
                {"containerPort": 80, "protocol": "UDP"}, {"containerPort": 81}])
        );
    }

    #[test]
    fn directives_delete_and_replace() {
        let spec = patched(json!({"containers": [{"name": "a", "$patch": "delete"}]})).unwrap();
        assert_eq!(names(&spec["containers"]), ["b"]);
        let spec = patched(json!({"containers": [{"$patch": "replace"}, {"name": "z"}]})).unwrap();
        assert_eq!(spec["containers"], json!([{"name": "z"}]));
        let spec = patched(json!({"nodeSelector": {"$patch": "replace", "z": "1"}})).unwrap();
        assert_eq!(spec["nodeSelector"], json!({"z": "1"}));
        let spec = patched(json!({"nodeSelector": null})).unwrap();
        assert!(spec.get("nodeSelector").is_none());
    }

    #[test]
    fn directives_that_there_are_not_are_refused() {
        for (patch, why) in [
            (
                json!({"nodeSelector": {"$patch": "merge"}}),
                "unknown patch type: merge in map: map[$patch:merge]",
            ),
            (
                json!({"containers": [{"name": "a", "$patch": "merge"}]}),
                "merging lists cannot yet be specified in the patch",
            ),
            (
                json!({"volumes": [{"name": "v", "$retainKeys": "name"}]}),
                "invalid patch format of retainKeys",
            ),
            (
                json!({"volumes": [{"name": "v", "emptyDir": {}, "$retainKeys": ["name"]}]}),
                "invalid patch format of retainKeys",
            ),
            (
                json!({"$setElementOrder/containers": "a", "containers": [{"name": "a"}]}),
                "invalid patch format of setElementOrder list",
            ),
        ] {
            assert_eq!(patched(patch), Err(PatchError::Directive(why.to_owned())));
        }
    }

    #[test]
    fn retained_keys_drop_the_others() {
        let spec = patched(
            json!({"volumes": [{"name": "v", "configMap": {"name": "c"}, "$retainKeys": ["name", "configMap"]}]}),
        )
        .unwrap();
        assert_eq!(spec["volumes"], json!([{"name": "v", "configMap": {"name": "c"}}]));
    }

    #[test]
    fn the_element_order_of_the_patch_wins() {
        let spec =
            patched(json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "n"}, {"name": "a"}],
            "containers": [{"name": "n", "image": "i"}]}))
            .unwrap();
        assert_eq!(names(&spec["containers"]), ["b", "n", "a"]);
        let spec = patched(json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]})).unwrap();
        assert_eq!(names(&spec["containers"]), ["b", "a"]);
        assert!(spec.get("$setElementOrder/containers").is_none());
    }

    #[test]
    fn primitive_lists_are_sets_with_deletion() {
        let shape = schema::root("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
        let meta = json!({"finalizers": ["x.io/a", "x.io/b"]});
        let merged = apply(shape, &meta, &json!({"finalizers": ["x.io/c", "x.io/a"]})).unwrap();
        assert_eq!(merged["finalizers"], json!(["x.io/c", "x.io/a", "x.io/b"]));
        let merged = apply(
            shape,
            &meta,
            &json!({"$deleteFromPrimitiveList/finalizers": ["x.io/a"], "$setElementOrder/finalizers": ["x.io/b"]}),
        )
        .unwrap();
        assert_eq!(merged["finalizers"], json!(["x.io/b"]));
    }

    #[test]
    fn misuse_is_told_in_known_words() {
        let text = |patch| patched(patch).unwrap_err().to_string();
        assert_eq!(
            text(json!({"nodeSelector": {"$patch": "nosuch"}})),
            "unknown patch type: nosuch in map: map[$patch:nosuch]"
        );
        assert_eq!(
            text(json!({"containers": [{"image": "img:5"}]})),
            "map: map[image:img:5] does not contain declared merge key: name"
        );
        assert_eq!(
            text(
                json!({"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "n", "image": "img:5"}]})
            ),
            "The order in patch list:\n[map[image:img:5 name:n]]\n doesn't match $setElementOrder list:\n[map[name:b]]\n"
        );
        assert_eq!(
            text(json!([1])),
            "json: cannot unmarshal array into Go value of type map[string]interface {}"
        );
    }

    #[test]
    fn nulls_and_directives_never_reach_the_object() {
        let spec = patched(json!({"affinity": {"nodeAffinity": null, "podAffinity": {"$patch": "replace"}},
            "tolerations": [{"key": "a", "value": null}]}))
        .unwrap();
        assert_eq!(spec["affinity"], json!({"podAffinity": {}}));
        assert_eq!(spec["tolerations"], json!([{"key": "a"}]));
    }
}
