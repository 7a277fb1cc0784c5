//! What a definition's schema may say: OpenAPI v3 with Kubernetes' extensions, checked on the schema as it is written.
//! That it is structural is checked apart ([`api::structural`]).

use api::field::{ErrorList, Reason, quote};
use api::structural::{Node, field_path};
use serde_json::{Value, json};

use super::internal;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const RULE_REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
const META_FIELDS: [&str; 3] = ["metadata", "kind", "apiVersion"];

/// Rules that are younger than some stored definitions: an update of one that broke them need not keep them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    /// Types are those of OpenAPI.
    pub(super) known_types: bool,
    /// Items of sets are atomic.
    pub(super) atomic_sets: bool,
    /// Keys of list maps are given or have a default, and nothing in them is nullable.
    pub(super) keys_given: bool,
}

#[derive(Clone, Default)]
struct Context {
    /// Why defaults are forbidden here.
    no_defaults: Option<String>,
    /// Whether this is inside of a resource's `metadata`, `kind` or `apiVersion`.
    in_meta: bool,
}

/// Checks a schema and all below.
pub(super) fn check(schema: &Value, path: &str, options: Options, errors: &mut ErrorList) {
    let walk = Walk { options };
    walk.schema(schema, path, &Context::default(), true, errors);
}

/// Whether a schema, or one below it, is as `test` says.
pub(super) fn any(schema: &Value, test: &dyn Fn(&Value) -> bool) -> bool {
    if !schema.is_object() {
        return false;
    }
    let in_list = |value: &Value| list(value).iter().any(|schema| any(schema, test));
    let in_map = |value: &Value| value.as_object().into_iter().flatten().any(|(_, schema)| any(schema, test));
    test(schema)
        || any(&schema["items"], test)
        || ["items", "allOf", "anyOf", "oneOf"].iter().any(|key| in_list(&schema[*key]))
        || ["not", "additionalProperties", "additionalItems"].iter().any(|key| any(&schema[*key], test))
        || ["properties", "patternProperties", "definitions", "dependencies"]
            .iter()
            .any(|key| in_map(&schema[*key]))
}

/// Whether a type is none of OpenAPI's.
pub(super) fn has_unknown_type(schema: &Value) -> bool {
    !text(schema, "type").is_empty() && !TYPES.contains(&text(schema, "type"))
}

/// Whether a list is a set whose items are not atomic.
pub(super) fn is_loose_set(schema: &Value) -> bool {
    text(schema, "x-kubernetes-list-type") == "set" && loose_item(&schema["items"]).is_some()
}

/// Whether a list by keys lacks what its keys need.
pub(super) fn has_bad_keys(schema: &Value) -> bool {
    let mut errors = ErrorList::default();
    keys_given(schema, "", &mut errors);
    !errors.is_empty()
}

struct Walk {
    options: Options,
}

impl Walk {
    fn schema(&self, schema: &Value, path: &str, context: &Context, is_root: bool, errors: &mut ErrorList) {
        if !schema.is_object() {
            return;
        }
        self.keywords(schema, path, context, errors);
        if flag(schema, "uniqueItems") {
            let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            errors.forbidden(&format!("{path}.uniqueItems"), detail);
        }
        self.members(schema, path, context, is_root, errors);
        self.below(&schema["not"], &format!("{path}.not"), context, errors);
        for key in ["allOf", "oneOf", "anyOf"] {
            for (n, branch) in list(&schema[key]).iter().enumerate() {
                self.below(branch, &format!("{path}.{key}[{n}]"), context, errors);
            }
        }
        for (name, definition) in schema["definitions"].as_object().into_iter().flatten() {
            self.below(definition, &format!("{path}.definitions[{name}]"), context, errors);
        }
        self.below(&schema["items"], &format!("{path}.items"), context, errors);
        for (n, item) in list(&schema["items"]).iter().enumerate() {
            self.below(item, &format!("{path}.items[{n}]"), context, errors);
        }
        for (name, dependency) in schema["dependencies"].as_object().into_iter().flatten() {
            self.below(dependency, &format!("{path}.dependencies[{name}]"), context, errors);
        }
        if schema["x-kubernetes-preserve-unknown-fields"] == json!(false) {
            let at = format!("{path}.x-kubernetes-preserve-unknown-fields");
            errors.invalid(&at, &json!(false), "must be true or undefined");
        }
        map_type(schema, path, errors);
        self.list_type(schema, path, errors);
        if text(schema, "x-kubernetes-list-type") == "map" {
            list_map(schema, path, errors);
        }
        if self.options.keys_given {
            keys_given(schema, path, errors);
        }
        rules(schema, path, errors);
    }

    fn below(&self, schema: &Value, path: &str, context: &Context, errors: &mut ErrorList) {
        self.schema(schema, path, context, false, errors);
    }

    fn keywords(&self, schema: &Value, path: &str, context: &Context, errors: &mut ErrorList) {
        if self.options.known_types && has_unknown_type(schema) {
            errors.not_supported(&format!("{path}.type"), &schema["type"], &TYPES);
        }
        if let Some(why) = &context.no_defaults
            && !schema["default"].is_null()
        {
            errors.forbidden(&format!("{path}.default"), &format!("must not be set {why}"));
        }
        let is_filled = |key: &str| schema[key].as_object().is_some_and(|map| !map.is_empty());
        for (key, is_set) in [
            ("id", !text(schema, "id").is_empty()),
            ("additionalItems", !schema["additionalItems"].is_null()),
            ("patternProperties", is_filled("patternProperties")),
            ("definitions", is_filled("definitions")),
            ("dependencies", schema["dependencies"].is_object()),
            ("$ref", schema["$ref"].is_string()),
        ] {
            if is_set {
                errors.forbidden(&format!("{path}.{key}"), &format!("{key} is not supported"));
            }
        }
        if text(schema, "type") == "null" {
            let detail = "type cannot be set to null, use nullable as an alternative";
            errors.forbidden(&format!("{path}.type"), detail);
        }
        if !list(&schema["items"]).is_empty() {
            let detail = "items must be a schema object and not an array";
            errors.forbidden(&format!("{path}.items"), detail);
        }
        if context.in_meta && flag(schema, "x-kubernetes-embedded-resource") {
            let at = format!("{path}.x-kubernetes-embedded-resource");
            errors.forbidden(&at, "must not be used inside of resource meta");
        }
    }

    fn members(&self, schema: &Value, path: &str, context: &Context, is_root: bool, errors: &mut ErrorList) {
        let additional = &schema["additionalProperties"];
        let properties = schema["properties"].as_object();
        if !additional.is_null() {
            let at = format!("{path}.additionalProperties");
            // Structs have properties, maps have additional ones; both at once would make unknown fields known.
            if properties.is_some_and(|p| !p.is_empty()) && *additional != json!(true) {
                errors.forbidden(&at, "additionalProperties and properties are mutual exclusive");
            }
            let mut context = context.clone();
            if context.in_meta {
                let why = "inside additionalProperties applying to object metadata";
                context.no_defaults = Some(why.to_owned());
            }
            self.below(additional, &at, &context, errors);
        }
        for (name, property) in properties.into_iter().flatten() {
            let mut context = context.clone();
            let is_resource = is_root || flag(schema, "x-kubernetes-embedded-resource");
            if is_resource && META_FIELDS.contains(&name.as_str()) {
                context.in_meta = true;
                if is_root {
                    context.no_defaults = Some(format!("in top-level {name}"));
                }
            }
            self.below(property, &format!("{path}.properties[{name}]"), &context, errors);
        }
    }

    fn list_type(&self, schema: &Value, path: &str, errors: &mut ErrorList) {
        let list_type = &schema["x-kubernetes-list-type"];
        let at = format!("{path}.x-kubernetes-list-type");
        if !list_type.is_null() && text(schema, "type") != "array" {
            wrong_type(schema, path, "must be array if x-kubernetes-list-type is specified", errors);
        } else if self.options.atomic_sets
            && is_loose_set(schema)
            && let Some(key) = loose_item(&schema["items"])
        {
            // The reference shows the list type in both cases.
            let shown = &schema["items"]["x-kubernetes-list-type"];
            let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
            errors.invalid(&format!("{path}.items.{key}"), shown, detail);
        }
        let kinds = ["atomic", "set", "map"];
        if !list_type.is_null() && !kinds.contains(&text(schema, "x-kubernetes-list-type")) {
            errors.not_supported(&at, list_type, &kinds);
        }
        if !list(&schema["x-kubernetes-list-map-keys"]).is_empty() {
            let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
            match list_type {
                Value::Null => errors.required(&at, detail),
                Value::String(kind) if kind == "map" => {}
                other => errors.invalid(&at, other, detail),
            }
        }
    }
}

fn map_type(schema: &Value, path: &str, errors: &mut ErrorList) {
    let map_type = &schema["x-kubernetes-map-type"];
    if map_type.is_null() {
        return;
    }
    if text(schema, "type") != "object" {
        wrong_type(schema, path, "must be object if x-kubernetes-map-type is specified", errors);
    }
    let kinds = ["atomic", "granular"];
    if !kinds.contains(&text(schema, "x-kubernetes-map-type")) {
        errors.not_supported(&format!("{path}.x-kubernetes-map-type"), map_type, &kinds);
    }
}

fn wrong_type(schema: &Value, path: &str, detail: &str, errors: &mut ErrorList) {
    let at = format!("{path}.type");
    if text(schema, "type").is_empty() {
        errors.required(&at, detail);
    } else {
        errors.invalid(&at, &schema["type"], detail);
    }
}

/// What makes the items of a set other than atomic: the keyword at fault.
fn loose_item(item: &Value) -> Option<&'static str> {
    match text(item, "type") {
        "array" if !matches!(text(item, "x-kubernetes-list-type"), "" | "atomic") => {
            Some("x-kubernetes-list-type")
        }
        "object" if text(item, "x-kubernetes-map-type") != "atomic" => Some("x-kubernetes-map-type"),
        _ => None,
    }
}

fn list_map(schema: &Value, path: &str, errors: &mut ErrorList) {
    let keys = &schema["x-kubernetes-list-map-keys"];
    let keys_at = format!("{path}.x-kubernetes-list-map-keys");
    if list(keys).is_empty() {
        errors.required(&keys_at, "must not be empty if x-kubernetes-list-type is map");
    }
    let (item, item_at) = (&schema["items"], format!("{path}.items"));
    match item {
        Value::Object(_) => {}
        Value::Array(_) => {
            let detail = "must only have a single schema if x-kubernetes-list-type is map";
            let body = format!("Invalid value: {}: {detail}", internal::items(item));
            errors.push(Reason::Invalid, &item_at, body);
            return;
        }
        _ => {
            errors.required(&item_at, "must have a schema if x-kubernetes-list-type is map");
            return;
        }
    }
    let ty = json!(text(item, "type"));
    if ty != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        errors.invalid(&format!("{item_at}.type"), &ty, detail);
        return;
    }
    let mut seen = Vec::new();
    for key in list(keys).iter().filter_map(Value::as_str) {
        let property = &item["properties"][key];
        if property.is_null() {
            errors.invalid(&keys_at, keys, "entries must all be names of item properties");
        } else if matches!(text(property, "type"), "array" | "object") {
            let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            // The reference shows the item's type, not the key's.
            errors.invalid(&format!("{item_at}.properties[{key}].type"), &ty, detail);
        }
        if seen.contains(&key) {
            errors.invalid(&keys_at, keys, "must not contain duplicate entries");
        }
        seen.push(key);
    }
}

fn keys_given(schema: &Value, path: &str, errors: &mut ErrorList) {
    let kind = text(schema, "x-kubernetes-list-type");
    let item = &schema["items"];
    if !item.is_object() || !matches!(kind, "set" | "map") {
        return;
    }
    if flag(item, "nullable") {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {kind}");
        errors.forbidden(&format!("{path}.items.nullable"), &detail);
    }
    if kind != "map" {
        return;
    }
    for key in list(&schema["x-kubernetes-list-map-keys"]).iter().filter_map(Value::as_str) {
        let property = &item["properties"][key];
        if property.is_null() {
            continue;
        }
        let at = format!("{path}.items.properties[{key}]");
        if !list(&item["required"]).iter().any(|name| name == key) && property["default"].is_null() {
            errors.required(
                &format!("{at}.default"),
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            );
        }
        if flag(property, "nullable") {
            errors.forbidden(
                &format!("{at}.nullable"),
                "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
            );
        }
    }
}

/// The shape of `x-kubernetes-validations`; whether the expressions compile is asked elsewhere.
fn rules(schema: &Value, path: &str, errors: &mut ErrorList) {
    let has_newlines = |text: &str| text.contains(['\n', '\r']);
    for (n, rule) in list(&schema["x-kubernetes-validations"]).iter().enumerate() {
        let at = |field: &str| format!("{path}.x-kubernetes-validations[{n}].{field}");
        let (expression, message) = (text(rule, "rule").trim(), text(rule, "message"));
        if expression.is_empty() {
            errors.required(&at("rule"), "rule is not specified");
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.invalid(&at("message"), &rule["message"], "must be non-empty if specified");
        } else if has_newlines(message.trim()) {
            errors.invalid(&at("message"), &rule["message"], "must not contain line breaks");
        } else if has_newlines(expression) && message.trim().is_empty() {
            errors.required(&at("message"), "message must be specified if rule contains line breaks");
        }
        let expression = text(rule, "messageExpression");
        if !expression.is_empty() && expression.trim().is_empty() {
            errors.required(&at("messageExpression"), "must be non-empty if specified");
        }
        if !rule["reason"].is_null() && !RULE_REASONS.contains(&text(rule, "reason")) {
            errors.not_supported(&at("reason"), &rule["reason"], &RULE_REASONS);
        }
        let field = text(rule, "fieldPath");
        if field.is_empty() {
            continue;
        }
        if field.trim().is_empty() {
            errors.invalid(&at("fieldPath"), &rule["fieldPath"], "must be non-empty if specified");
        }
        if has_newlines(field) {
            errors.invalid(&at("fieldPath"), &rule["fieldPath"], "must not contain line breaks");
        }
        if let Ok(node) = Node::parse(schema)
            && field_path::resolve(&node, field, true).is_err()
        {
            errors.invalid(&at("fieldPath"), &rule["fieldPath"], "must be a valid path");
        }
    }
}

/// Formats of texts that mean nothing here, in warnings' words.
pub(super) fn unknown_formats(schema: &Value, found: &mut Vec<String>) {
    let collect = std::cell::RefCell::new(Vec::new());
    any(schema, &|schema| {
        let format = text(schema, "format");
        if text(schema, "type") == "string" && !format.is_empty() && !api::structural::is_known_format(format)
        {
            collect.borrow_mut().push(format!("unrecognized format {}", quote(format)));
        }
        false
    });
    found.extend(collect.into_inner());
}

fn text<'a>(schema: &'a Value, key: &str) -> &'a str {
    super::super::tree::text(schema, key)
}

fn flag(schema: &Value, key: &str) -> bool {
    schema[key] == json!(true)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
