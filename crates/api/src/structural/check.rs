//! Whether a schema is structural, and whether its defaults fit it.
//!
//! Rules: Kubernetes documentation, "Specifying a structural schema" and "Defaulting". A structural schema says what a value
//! consists of outside of `allOf`, `anyOf`, `oneOf` and `not`; those only restrict it.

use serde_json::{Map, Value, json};

use super::{META_FIELDS, Node, Rules, Structural, metadata};
use crate::field::{Cursor, ErrorList};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

impl Structural {
    /// All violations of the structural rules, sorted; `path` is the schema's own.
    pub fn check(&self, path: &str) -> ErrorList {
        let mut errors = ErrorList::default();
        invariants(&self.root, Level::Root, path, &mut errors);
        rules_complete(self.root.rules(), &self.root, path, path, &mut errors);
        errors.0.sort_by_cached_key(ToString::to_string);
        errors
    }

    /// Whether the schema keeps all structural rules.
    pub fn is_structural(&self) -> bool {
        self.check("").is_empty()
    }

    /// What is wrong with defaults: values that their schema refuses, or would prune (only with `require_pruned`).
    pub fn check_defaults(&self, path: &str, require_pruned: bool) -> ErrorList {
        let mut errors = ErrorList::default();
        let place = Place { steps: Vec::new(), is_meta: false };
        defaults(&self.root, true, &place, path, require_pruned, &mut errors);
        errors
    }

    /// Whether a default has fields that its schema would prune.
    pub fn has_unpruned_defaults(&self) -> bool {
        any(&self.root, &|node| {
            node.default.as_ref().is_some_and(|default| {
                let mut pruned = default.clone();
                node.prune_value(&mut pruned, node.embedded);
                pruned != *default
            })
        })
    }
}

fn any(node: &Node, test: &dyn Fn(&Node) -> bool) -> bool {
    test(node)
        || node.properties.values().any(|node| any(node, test))
        || node.items.as_deref().is_some_and(|node| any(node, test))
        || node.additional_schema().is_some_and(|node| any(node, test))
}

fn invariants(node: &Node, level: Level, path: &str, errors: &mut ErrorList) {
    if node.ty == "array" && node.items.is_none() {
        errors.required(&format!("{path}.items"), "must be specified");
    }
    if let Some(item) = &node.items {
        invariants(item, Level::Item, &format!("{path}.items"), errors);
    }
    for (key, property) in &node.properties {
        invariants(property, Level::Field, &format!("{path}.properties[{key}]"), errors);
    }
    let additional = format!("{path}.additionalProperties");
    if node.additional.is_some() && level == Level::Root {
        errors.forbidden(&additional, "must not be used at the root");
    }
    if let Some(schema) = node.additional_schema() {
        invariants(schema, Level::Field, &additional, errors);
    }
    for (flag, keyword) in [
        (node.preserve_unknown, "x-kubernetes-preserve-unknown-fields"),
        (node.embedded, "x-kubernetes-embedded-resource"),
    ] {
        if node.int_or_string && flag {
            let detail = "must be false if x-kubernetes-int-or-string is true";
            errors.invalid(&format!("{path}.{keyword}"), &json!(true), detail);
        }
    }
    let branches = &node.rules().all_of;
    let skip_first = branches.first().is_some_and(|first| is_int_or_string(&first.rules().any_of));
    value_rules(node.rules(), is_int_or_string(&node.rules().any_of), skip_first, path, errors);
    type_rules(node, level, path, errors);
    meta_rules(node, level, path, errors);
}

fn type_rules(node: &Node, level: Level, path: &str, errors: &mut ErrorList) {
    let at = format!("{path}.type");
    if node.embedded && node.ty != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        if node.ty.is_empty() {
            errors.required(&at, detail);
        } else {
            errors.invalid(&at, &json!(node.ty), detail);
        }
    } else if node.ty.is_empty() && !node.int_or_string && !node.preserve_unknown {
        errors.required(
            &at,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        );
    }
    if node.embedded && node.additional.is_some() {
        let detail = "must not be used if x-kubernetes-embedded-resource is set";
        errors.forbidden(&format!("{path}.additionalProperties"), detail);
    }
    if level == Level::Root && !node.ty.is_empty() && node.ty != "object" {
        errors.invalid(&at, &json!(node.ty), "must be object at the root");
    }
}

fn meta_rules(node: &Node, level: Level, path: &str, errors: &mut ErrorList) {
    let is_resource = level == Level::Root || node.embedded;
    for name in ["kind", "apiVersion"] {
        if let Some(property) = node.properties.get(name).filter(|p| is_resource && p.ty != "string") {
            errors.invalid(&format!("{path}.properties[{name}].type"), &json!(property.ty), "must be string");
        }
    }
    if let Some(metadata) = node.properties.get("metadata") {
        let at = format!("{path}.properties[metadata]");
        if is_resource && metadata.ty != "object" {
            errors.invalid(&format!("{at}.type"), &json!(metadata.ty), "must be object");
        }
        let only_names = metadata.properties.keys().all(|key| key == "name" || key == "generateName");
        if level == Level::Root && !(only_names && says_nothing_else(metadata)) {
            errors.forbidden(
                &at,
                "must not specify anything other than name and generateName, but metadata is implicitly specified",
            );
        }
    }
    if node.embedded && !node.preserve_unknown && node.properties.is_empty() {
        errors.required(
            &format!("{path}.properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        );
    }
}

/// Whether a schema has no keyword but `type`, `properties` and `default`.
fn says_nothing_else(node: &Node) -> bool {
    let Node { title, description, nullable, additional, items, rules, validations, .. } = node;
    let is_plain = title.is_empty() && description.is_empty() && !nullable && validations.is_empty();
    let has_extension = node.preserve_unknown
        || node.embedded
        || node.int_or_string
        || node.list_type.is_some()
        || node.map_type.is_some()
        || !node.list_map_keys.is_empty();
    is_plain && !has_extension && additional.is_none() && items.is_none() && rules.is_none()
}

/// `anyOf: [{type: integer}, {type: string}]`: the one place where a type may stand in a junctor.
fn is_int_or_string(branches: &[Node]) -> bool {
    let is_only = |node: &Node, ty: &str| {
        node.ty == ty && node.properties.is_empty() && node.default.is_none() && says_nothing_else(node)
    };
    matches!(branches, [a, b] if is_only(a, "integer") && is_only(b, "string"))
}

fn value_rules(rules: &Rules, skip_any_of: bool, skip_first: bool, path: &str, errors: &mut ErrorList) {
    if !skip_any_of {
        for (n, branch) in rules.any_of.iter().enumerate() {
            nested(branch, false, &format!("{path}.anyOf[{n}]"), errors);
        }
    }
    for (n, branch) in rules.all_of.iter().enumerate() {
        nested(branch, skip_first && n == 0, &format!("{path}.allOf[{n}]"), errors);
    }
    for (n, branch) in rules.one_of.iter().enumerate() {
        nested(branch, false, &format!("{path}.oneOf[{n}]"), errors);
    }
    if let Some(not) = &rules.not {
        nested(not, false, &format!("{path}.not"), errors);
    }
    if let Some(pattern) = &rules.pattern
        && let Err(why) = pattern.compiled()
    {
        let detail = format!("must be a valid regular expression, but isn't: {why}");
        errors.invalid(&format!("{path}.pattern"), &json!(pattern.text()), &detail);
    }
}

/// What a branch of a junctor may not say.
fn nested(node: &Node, skip_any_of: bool, path: &str, errors: &mut ErrorList) {
    value_rules(node.rules(), skip_any_of, false, path, errors);
    if let Some(item) = &node.items {
        nested(item, false, &format!("{path}.items"), errors);
    }
    for (key, property) in &node.properties {
        nested(property, false, &format!("{path}.properties[{key}]"), errors);
    }
    for (is_set, keyword, detail) in [
        (!node.ty.is_empty(), "type", "must be empty to be structural"),
        (node.additional.is_some(), "additionalProperties", "must be undefined to be structural"),
        (node.default.is_some(), "default", "must be undefined to be structural"),
        (!node.title.is_empty(), "title", "must be empty to be structural"),
        (!node.description.is_empty(), "description", "must be empty to be structural"),
        (node.nullable, "nullable", "must be false to be structural"),
        (node.preserve_unknown, "x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        (node.embedded, "x-kubernetes-embedded-resource", "must be false to be structural"),
        (node.int_or_string, "x-kubernetes-int-or-string", "must be false to be structural"),
        (!node.list_map_keys.is_empty(), "x-kubernetes-list-map-keys", "must be empty to be structural"),
        (node.list_type.is_some(), "x-kubernetes-list-type", "must be undefined to be structural"),
        (node.map_type.is_some(), "x-kubernetes-map-type", "must be undefined to be structural"),
        (!node.validations.is_empty(), "x-kubernetes-validations", "must be empty to be structural"),
    ] {
        if is_set {
            errors.forbidden(&format!("{path}.{keyword}"), detail);
        }
    }
    if node.properties.contains_key("metadata") {
        errors
            .forbidden(&format!("{path}.properties[metadata]"), "must not be specified in a nested context");
    }
}

fn rules_complete(rules: &Rules, node: &Node, at: &str, path: &str, errors: &mut ErrorList) {
    let branches = rules.not.as_deref().into_iter().map(|branch| (branch, "not".to_owned()));
    let numbered = |branches: &'static str, list| (branches, list);
    let lists = [
        numbered("allOf", &rules.all_of),
        numbered("anyOf", &rules.any_of),
        numbered("oneOf", &rules.one_of),
    ];
    let listed = lists.into_iter().flat_map(|(keyword, list): (&str, &Vec<Node>)| {
        list.iter().enumerate().map(move |(n, branch)| (branch, format!("{keyword}[{n}]")))
    });
    for (branch, step) in branches.chain(listed) {
        branch_complete(branch, node, at, &format!("{path}.{step}"), errors);
    }
}

/// Every field and item that a branch names must be declared outside of it.
fn branch_complete(branch: &Node, node: &Node, at: &str, path: &str, errors: &mut ErrorList) {
    rules_complete(branch.rules(), node, at, path, errors);
    let mut step = |branch: &Node, declared: Option<&Node>, step: &str| {
        let (at, path) = (format!("{at}.{step}"), format!("{path}.{step}"));
        match declared {
            Some(node) => branch_complete(branch, node, &at, &path, errors),
            None => errors.required(&at, &format!("because it is defined in {path}")),
        }
    };
    if let Some(item) = &branch.items {
        step(item, node.items.as_deref(), "items");
    }
    for (key, property) in &branch.properties {
        step(property, node.properties.get(key), &format!("properties[{key}]"));
    }
}

/// Where a schema stands, below the resource that it is part of.
#[derive(Clone)]
struct Place {
    /// Names of members; an empty one is an item of a list.
    steps: Vec<String>,
    /// Whether that is inside of `apiVersion`, `kind` or `metadata`.
    is_meta: bool,
}

impl Place {
    fn below(&self, step: &str, is_meta: bool) -> Self {
        let mut steps = self.steps.clone();
        steps.push(step.to_owned());
        Self { steps, is_meta }
    }

    /// A resource that has `value` here, and nothing else.
    fn surround(&self, value: &Value) -> Value {
        let mut object = self.steps.iter().rev().fold(value.clone(), |value, step| {
            if step.is_empty() { json!([value]) } else { json!({ step: value }) }
        });
        if let Some(map) = object.as_object_mut() {
            let entry = |map: &mut Map<String, Value>, key: &str, text: &str| {
                map.entry(key).or_insert_with(|| json!(text));
            };
            entry(map, "apiVersion", "validation/v1");
            entry(map, "kind", "Validation");
        }
        object
    }
}

fn defaults(
    node: &Node,
    is_root: bool,
    place: &Place,
    path: &str,
    require_pruned: bool,
    errors: &mut ErrorList,
) {
    let is_resource = is_root || node.embedded;
    let new_place = Place { steps: Vec::new(), is_meta: false };
    let place = if is_resource { &new_place } else { place };
    if let Some(default) = &node.default {
        let at = format!("{path}.default");
        if place.is_meta {
            meta_default(node, default, place, &at, errors);
        } else {
            plain_default(node, default, is_resource, &at, require_pruned, errors);
        }
    }
    // Not below `additionalProperties`: a default there has no place to go.
    if let Some(item) = &node.items {
        let place = place.below("", place.is_meta);
        defaults(item, false, &place, &format!("{path}.items"), require_pruned, errors);
    }
    for (key, property) in &node.properties {
        let is_meta = place.is_meta || is_resource && META_FIELDS.contains(&key.as_str());
        let place = place.below(key, is_meta);
        defaults(property, false, &place, &format!("{path}.properties[{key}]"), require_pruned, errors);
    }
}

fn plain_default(
    node: &Node,
    default: &Value,
    is_resource: bool,
    at: &str,
    require_pruned: bool,
    errors: &mut ErrorList,
) {
    if require_pruned {
        let mut pruned = default.clone();
        node.prune_value(&mut pruned, is_resource);
        if pruned != *default {
            errors.invalid(at, default, "must not have unknown fields");
        }
    }
    let before = errors.0.len();
    metadata::check(node, default, at, errors);
    if errors.0.len() == before {
        node.validate_value(default, at, errors);
    }
}

fn meta_default(node: &Node, default: &Value, place: &Place, at: &str, errors: &mut ErrorList) {
    let object = place.surround(default);
    let mut wrong = ErrorList::default();
    metadata::resource(&Cursor::root(&object), &mut wrong);
    if wrong.is_empty() {
        node.validate_value(default, at, errors);
    } else {
        errors.invalid(at, default, &format!("must result in valid metadata: {}", wrong.aggregate()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::structural::Node;

    fn check(schema: Value) -> String {
        let parsed = Structural::parse(&schema).unwrap();
        let mut errors = parsed.check("s");
        errors.0.extend(parsed.check_defaults("s", true).0);
        errors.0.iter().map(|e| format!("{e}\n")).collect()
    }

    #[test]
    fn violations_are_named_with_their_place() {
        let schema = json!({
            "type": "object",
            "additionalProperties": true,
            "properties": {
                "metadata": {"type": "object", "properties": {"labels": {"type": "object"}}},
                "kind": {"type": "integer"},
                "spec": {"properties": {"l": {"type": "array"}, "p": {"type": "string", "pattern": "["}}},
                "v": {"x-kubernetes-int-or-string": true, "x-kubernetes-preserve-unknown-fields": true},
                "e": {"type": "object", "x-kubernetes-embedded-resource": true},
            },
            "anyOf": [{"properties": {"other": {"minimum": 1}, "spec": {"type": "object"}}}, {"items": {}}],
            "not": {"nullable": true, "description": "d", "properties": {"metadata": {}}},
        });
        expect_test::expect![[r#"
            s.additionalProperties: Forbidden: must not be used at the root
            s.anyOf[0].properties[spec].type: Forbidden: must be empty to be structural
            s.items: Required value: because it is defined in s.anyOf[1].items
            s.not.description: Forbidden: must be empty to be structural
            s.not.nullable: Forbidden: must be false to be structural
            s.not.properties[metadata]: Forbidden: must not be specified in a nested context
            s.properties[e].properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields
            s.properties[kind].type: Invalid value: "integer": must be string
            s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified
            s.properties[other]: Required value: because it is defined in s.anyOf[0].properties[other]
            s.properties[spec].properties[l].items: Required value: must be specified
            s.properties[spec].properties[p].pattern: Invalid value: "[": must be a valid regular expression, but isn't: error parsing regexp: missing closing ]: `[`
            s.properties[spec].type: Required value: must not be empty for specified object fields
            s.properties[v].x-kubernetes-preserve-unknown-fields: Invalid value: true: must be false if x-kubernetes-int-or-string is true
        "#]]
        .assert_eq(&check(schema));
    }

    #[test]
    fn both_patterns_of_int_or_string_are_structural() {
        let any_of = json!([{"type": "integer"}, {"type": "string"}]);
        for node in [
            json!({"x-kubernetes-int-or-string": true, "anyOf": any_of}),
            json!({"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": any_of}, {"pattern": "x"}]}),
        ] {
            let schema = json!({"type": "object", "properties": {"v": node}});
            assert!(Structural::parse(&schema).unwrap().is_structural());
        }
    }

    #[test]
    fn defaults_must_fit_and_be_pruned() {
        let schema = json!({
            "type": "object",
            "properties": {
                "a": {"type": "integer", "default": "x"},
                "o": {"type": "object", "properties": {"p": {"type": "string"}}, "default": {"p": "1", "q": 2}},
                "r": {
                    "type": "object",
                    "x-kubernetes-embedded-resource": true,
                    "x-kubernetes-preserve-unknown-fields": true,
                    "default": {"kind": "K"},
                    "properties": {
                        "metadata": {"type": "object", "properties": {"name": {"type": "string", "default": "a/b"}}},
                    },
                },
            },
        });
        expect_test::expect![[r#"
            s.properties[a].default: Invalid value: "string":  in body must be of type integer: "string"
            s.properties[o].default: Invalid value: {"p":"1","q":2}: must not have unknown fields
            s.properties[r].default.apiVersion: Required value
            s.properties[r].properties[metadata].properties[name].default: Invalid value: "a/b": must result in valid metadata: metadata.name: Invalid value: "a/b": may not contain '/'
        "#]]
        .assert_eq(&check(schema));
    }

    #[test]
    fn what_custom_resources_may_not_use_does_not_parse() {
        let error = |schema: Value| Node::parse(&schema).unwrap_err().to_string();
        assert_eq!(error(json!({"$ref": "#/x"})), "OpenAPIV3Schema '$ref' is not supported");
        assert_eq!(
            error(json!({"items": [{}]})),
            "OpenAPIV3Schema 'items' must be a schema, but is an array"
        );
    }
}
