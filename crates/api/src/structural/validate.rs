//! Validation of values: OpenAPI v3 as Kubernetes understands it, with ratcheting.
//!
//! Errors come in the order and words of the reference (its `kube-openapi` validator): the type, the junctors, then what the
//! type's own keywords say. Errors that have no field of their own stand at the path `<nil>`.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{Additional, Node, Rules, Structural, format, lists, metadata};
use crate::field::{ErrorList, FieldError, go_float, quote};

const NO_FIELD: &str = "<nil>";
/// Of a value that is all wrong, no more is checked after this many errors; the reference lists millions.
const MAX_ERRORS: usize = 1000;

impl Structural {
    /// Refuses what the schema does not allow. With `old`, errors at values that did not change are passed over (list
    /// items are compared where the list is one by keys), and duplicates in sets and maps that were there before, too.
    pub fn validate(&self, new: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        let walk = Walk { base: None };
        let old_root = old.map(|old| Old { node: &self.root, value: old });
        errors.0.extend(walk.value(&self.root, new, "", old_root).errors);
        metadata::check(&self.root, new, "", errors);
        let mut before = ErrorList::default();
        if let Some(old) = old {
            lists::check(&self.root, old, "", &mut before);
        }
        if before.is_empty() {
            lists::check(&self.root, new, "", errors);
        }
    }
}

impl Node {
    /// Refuses a value (a default) that this schema does not allow; `path` is the value's own.
    pub(super) fn validate_value(&self, value: &Value, path: &str, errors: &mut ErrorList) {
        errors.0.extend(Walk { base: Some(path) }.value(self, value, "", None).errors);
    }
}

/// What stood at a place before, and the schema that tells its items apart.
#[derive(Clone, Copy)]
struct Old<'a> {
    node: &'a Node,
    value: &'a Value,
}

impl<'a> Old<'a> {
    fn member(self, new: &Value, name: &str) -> Option<Old<'a>> {
        let value = self.value.get(name)?;
        new.get(name)?;
        Some(Old { node: self.node.member(name)?, value })
    }

    /// The items of a list by their keys, and what they are; none where items cannot be told apart.
    fn items(self) -> Option<(&'a Node, HashMap<String, &'a Value>)> {
        let item = self.node.items.as_deref()?;
        let items = self.value.as_array()?.iter();
        Some((item, items.filter_map(|value| Some((self.node.key_of(value)?, value))).collect()))
    }
}

/// What was found, and how many checks a value passed (the best of several branches is the one with most).
#[derive(Default)]
struct Outcome {
    errors: Vec<FieldError>,
    passed: usize,
}

impl Outcome {
    fn merge(&mut self, mut other: Outcome) {
        self.passed += other.passed;
        self.errors.append(&mut other.errors);
    }

    fn is_valid(&self) -> bool {
        self.errors.is_empty()
    }

    /// Whether more errors would tell nobody anything.
    fn is_full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS
    }

    /// Several branches can find the same.
    fn without_repetitions(&mut self) {
        let mut seen = HashSet::new();
        self.errors.retain(|error| seen.insert((error.field.clone(), error.body.clone())));
    }
}

struct Walk<'a> {
    base: Option<&'a str>,
}

impl Walk<'_> {
    fn value(&self, node: &Node, value: &Value, name: &str, old: Option<Old<'_>>) -> Outcome {
        let mut outcome = self.schema(node, value, name, old);
        if !outcome.is_valid() && old.is_some_and(|old| old.value == value) {
            outcome.errors.clear();
        }
        outcome
    }

    fn schema(&self, node: &Node, value: &Value, name: &str, old: Option<Old<'_>>) -> Outcome {
        let rules = node.rules();
        let mut out = Outcome::default();
        let format = Some(rules.format.as_str()).filter(|f| format::is_known(f)).unwrap_or_default();
        let types = Types::of(node);
        if value.is_null() {
            if !types.is_empty() && !node.nullable {
                self.wrong_type(&mut out, name, &types.text(), "null");
            }
            self.one_of_values(&mut out, rules, value, name);
            return out;
        }
        if !types.is_empty() || !format.is_empty() {
            self.check_type(&mut out, &types, format, value, name);
            out.passed += 1;
        }
        self.junctors(&mut out, rules, value, name, old);
        let may_repeat = !out.is_valid();
        out.passed += 1;
        match value {
            Value::String(text) => {
                self.string(&mut out, rules, text, value, name);
                out.passed += 1;
                if !format.is_empty() {
                    if !format::matches(format, text) {
                        let detail = format!("{name} in body must be of type {format}: {}", quote(text));
                        self.error(&mut out, name, |errors, path| errors.type_invalid(path, value, &detail));
                    }
                    out.passed += 1;
                }
            }
            Value::Number(_) => {
                self.number(&mut out, rules, &types, value, name);
                out.passed += 2;
            }
            Value::Array(items) => {
                self.items(&mut out, node, items, name, old);
                out.passed += 2;
            }
            _ => {}
        }
        self.one_of_values(&mut out, rules, value, name);
        out.passed += 1;
        if value.is_object() {
            self.members(&mut out, node, value, name, old);
            out.passed += 1;
        }
        out.passed += 1;
        if may_repeat {
            out.without_repetitions();
        }
        out
    }

    fn check_type(&self, out: &mut Outcome, types: &Types<'_>, format: &str, value: &Value, name: &str) {
        let (found, found_format) = match value {
            Value::Bool(_) => ("boolean", ""),
            Value::String(_) => ("string", ""),
            Value::Array(_) => ("array", ""),
            Value::Object(_) => ("object", ""),
            Value::Number(number) if number.is_i64() => ("integer", "int64"),
            _ => ("number", "float64"),
        };
        let is_text = matches!(value, Value::String(_) | Value::Array(_));
        let is_whole =
            found == "number" && types.has("integer") && value.as_f64().is_some_and(is_json_integer);
        let fits = types.has(found) || is_whole || found == "integer" && types.has("number");
        if !is_text && !format.is_empty() && !fits && found_format != format {
            self.wrong_type(out, name, format, found_format);
        } else if !types.has("number") && !types.has("integer") && !format.is_empty() && is_text {
            // The format says what the text is.
            out.passed += 1;
        } else if !fits {
            self.wrong_type(out, name, &types.text(), found);
        } else {
            out.passed += 1;
        }
    }

    fn junctors(&self, out: &mut Outcome, rules: &Rules, value: &Value, name: &str, old: Option<Old<'_>>) {
        let run = |branch: &Node| self.schema(branch, value, name, old);
        let shown = || quote(name);
        if !rules.any_of.is_empty() {
            let mut best: Option<Outcome> = None;
            let mut success = None;
            for branch in &rules.any_of {
                let result = run(branch);
                if result.is_valid() {
                    success = Some(result);
                    break;
                }
                if best.as_ref().is_none_or(|best| result.passed > best.passed) {
                    best = Some(result);
                }
            }
            if success.is_none() {
                self.loose(out, &format!("{} must validate at least one schema (anyOf)", shown()));
            }
            out.merge(success.or(best).unwrap_or_default());
        }
        if !rules.one_of.is_empty() {
            let mut best: Option<Outcome> = None;
            let mut success: Option<Outcome> = None;
            let mut valid = 0;
            for branch in &rules.one_of {
                let result = run(branch);
                if result.is_valid() {
                    valid += 1;
                    best = None;
                    success.get_or_insert(result);
                } else if valid == 0 && best.as_ref().is_none_or(|best| result.passed > best.passed) {
                    best = Some(result);
                }
            }
            if valid == 1 {
                out.merge(success.unwrap_or_default());
            } else {
                let how_many = match valid {
                    0 => "Found none valid".to_owned(),
                    n => format!("Found {n} valid alternatives"),
                };
                self.loose(
                    out,
                    &format!("{} must validate one and only one schema (oneOf). {how_many}", shown()),
                );
                out.merge(best.unwrap_or_default());
            }
        }
        if !rules.all_of.is_empty() {
            let mut valid = 0;
            for branch in &rules.all_of {
                let result = run(branch);
                valid += usize::from(result.is_valid());
                out.merge(result);
            }
            if valid != rules.all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                self.loose(out, &format!("{} must validate all the schemas (allOf){none}", shown()));
            }
        }
        if let Some(not) = &rules.not
            && run(not).is_valid()
        {
            self.loose(out, &format!("{} must not validate the schema (not)", shown()));
        }
        out.passed += 1;
    }

    /// Only the first broken rule is named.
    fn string(&self, out: &mut Outcome, rules: &Rules, text: &str, value: &Value, name: &str) {
        let length = || text.chars().count() as i64;
        if let Some(max) = rules.max_length.filter(|max| length() > *max) {
            self.error(out, name, |errors, path| errors.too_long(path, max.max(0) as usize));
        } else if let Some(min) = rules.min_length.filter(|min| length() < *min) {
            self.invalid(out, name, value, &format!("should be at least {min} chars long"));
        } else if let Some(pattern) = &rules.pattern {
            match pattern.compiled() {
                Ok(regex) if regex.is_match(text) => {}
                Ok(_) => self.invalid(out, name, value, &format!("should match '{}'", pattern.text())),
                Err(why) => {
                    let detail = format!("should match '{}, but pattern is invalid: {why}'", pattern.text());
                    self.invalid(out, name, value, &detail);
                }
            }
        }
    }

    fn number(&self, out: &mut Outcome, rules: &Rules, types: &Types<'_>, value: &Value, name: &str) {
        let wants_integer = types.has("integer");
        let data = value.as_f64().unwrap_or_default();
        let in_range = |out: &mut Outcome, number: f64, what: &str| {
            let fits = !wants_integer || number.fract() == 0.0 && number.abs() < 9.3e18;
            if !fits {
                let text = format!("{what} value must be of type integer (default format) in {name}");
                self.loose(out, &text);
            }
            fits
        };
        if !value.is_i64() {
            in_range(out, data, "Checked");
        }
        if let Some(factor) = rules.multiple_of {
            let fits = in_range(out, factor, "MultipleOf");
            let is_multiple = match value.as_i64() {
                Some(data) if fits && factor.fract() == 0.0 && factor != 0.0 => data % factor as i64 == 0,
                _ if factor < 1.0 => is_json_integer(1.0 / factor * data),
                _ => is_json_integer(data / factor),
            };
            if factor < 0.0 {
                let text =
                    format!("factor MultipleOf declared for {name} must be positive: {}", go_float(factor));
                self.error(out, name, |errors, path| errors.invalid(path, &factor.into(), &text));
            } else if !is_multiple {
                self.invalid(out, name, value, &format!("should be a multiple of {}", go_float(factor)));
            }
        }
        // As integers where both are, so that large ones lose nothing.
        let compare = |bound: f64| match value.as_i64() {
            Some(data) if bound.abs() < 9.3e18 => data.cmp(&(bound as i64)),
            _ => data.total_cmp(&bound),
        };
        let shown = |bound: f64| match value.as_i64() {
            Some(_) if bound.abs() < 9.3e18 => (bound as i64).to_string(),
            _ => go_float(bound),
        };
        if let Some(min) = rules.minimum {
            in_range(out, min, "Minimum boundary");
            if rules.exclusive_minimum && compare(min).is_le() {
                self.invalid(out, name, value, &format!("should be greater than {}", shown(min)));
            } else if compare(min).is_lt() {
                self.invalid(out, name, value, &format!("should be greater than or equal to {}", shown(min)));
            }
        }
        if let Some(max) = rules.maximum {
            in_range(out, max, "Maximum boundary");
            if rules.exclusive_maximum && compare(max).is_ge() {
                self.invalid(out, name, value, &format!("should be less than {}", shown(max)));
            } else if compare(max).is_gt() {
                self.invalid(out, name, value, &format!("should be less than or equal to {}", shown(max)));
            }
        }
    }

    fn items(&self, out: &mut Outcome, node: &Node, items: &[Value], name: &str, old: Option<Old<'_>>) {
        let rules = node.rules();
        if let Some(item_node) = &node.items {
            let olds = old.and_then(Old::items);
            for (n, item) in items.iter().enumerate() {
                let old = olds.as_ref().zip(old).and_then(|((node, olds), list)| {
                    let value = olds.get(&list.node.key_of(item)?)?;
                    Some(Old { node, value })
                });
                out.merge(self.value(item_node, item, &format!("{name}[{n}]"), old));
                if out.is_full() {
                    break;
                }
            }
        }
        let size = items.len() as i64;
        if let Some(min) = rules.min_items.filter(|min| size < *min) {
            self.invalid(out, name, &size.into(), &format!("should have at least {min} items"));
        }
        if let Some(max) = rules.max_items.filter(|max| size > *max) {
            self.error(out, name, |errors, path| errors.too_many(path, items.len(), max.max(0) as usize));
        }
    }

    fn members(&self, out: &mut Outcome, node: &Node, value: &Value, name: &str, old: Option<Old<'_>>) {
        let Some(map) = value.as_object() else { return };
        let rules = node.rules();
        let size = map.len() as i64;
        if let Some(min) = rules.min_properties.filter(|min| size < *min) {
            self.invalid(out, name, &size.into(), &format!("should have at least {min} properties"));
            return;
        }
        if let Some(max) = rules.max_properties.filter(|max| size > *max) {
            self.error(out, name, |errors, path| errors.too_many(path, map.len(), max.max(0) as usize));
            return;
        }
        let old_member = |key: &str| {
            let is_root_type = name.is_empty() && matches!(key, "apiVersion" | "kind");
            old.filter(|_| !is_root_type).and_then(|old| old.member(value, key))
        };
        for (key, member) in map.iter().filter(|(key, _)| !node.properties.contains_key(*key)) {
            match &node.additional {
                Some(Additional::Any(false)) => {
                    let detail = format!("{name}.{key} in body is a forbidden property");
                    let key = Value::from(key.as_str());
                    self.error(out, name, |errors, path| errors.invalid(path, &key, &detail));
                }
                Some(Additional::Schema(schema)) => {
                    out.merge(self.value(schema, member, &format!("{name}.{key}"), old_member(key)));
                }
                _ => {}
            }
            if out.is_full() {
                return;
            }
        }
        for (key, property) in &node.properties {
            if let Some(member) = map.get(key) {
                let path = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                out.merge(self.value(property, member, &path, old_member(key)));
            }
        }
        for key in rules.required.iter().filter(|key| !map.contains_key(*key)) {
            self.error(out, &format!("{name}.{key}"), |errors, path| errors.required(path, ""));
        }
    }

    fn one_of_values(&self, out: &mut Outcome, rules: &Rules, value: &Value, name: &str) {
        let is_equal = |allowed: &Value| match (allowed, value) {
            (Value::Null, _) => false,
            (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
            (a, b) => a == b,
        };
        if rules.values.is_empty() || rules.values.iter().any(is_equal) {
            return;
        }
        let texts: Vec<String> = rules
            .values
            .iter()
            .map(|allowed| allowed.as_str().map_or_else(|| allowed.to_string(), str::to_owned))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        self.error(out, name, |errors, path| errors.not_supported(path, value, &texts));
    }

    fn wrong_type(&self, out: &mut Outcome, name: &str, wanted: &str, found: &str) {
        let detail = format!("{name} in body must be of type {wanted}: {}", quote(found));
        self.error(out, name, |errors, path| errors.type_invalid(path, &found.into(), &detail));
    }

    /// `detail` follows "NAME in body ".
    fn invalid(&self, out: &mut Outcome, name: &str, value: &Value, detail: &str) {
        self.error(out, name, |errors, path| {
            errors.invalid(path, value, &format!("{name} in body {detail}"))
        });
    }

    /// An error without a field.
    fn loose(&self, out: &mut Outcome, detail: &str) {
        self.error(out, "", |errors, path| errors.invalid(path, &"".into(), detail));
    }

    fn error(&self, out: &mut Outcome, name: &str, add: impl FnOnce(&mut ErrorList, &str)) {
        let name = name.strip_prefix('.').unwrap_or(name);
        let path = match (self.base, name) {
            (None, "") => NO_FIELD.to_owned(),
            (None, name) => name.to_owned(),
            (Some(base), "") => base.to_owned(),
            (Some(base), name) => format!("{base}.{name}"),
        };
        let mut errors = ErrorList::default();
        add(&mut errors, &path);
        out.errors.append(&mut errors.0);
    }
}

/// The types that a schema allows.
struct Types<'a>(&'a [&'a str], &'a str);

impl<'a> Types<'a> {
    fn of(node: &'a Node) -> Self {
        if node.int_or_string { Self(&["integer", "string"], "") } else { Self(&[], &node.ty) }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty() && self.1.is_empty()
    }

    fn has(&self, ty: &str) -> bool {
        self.0.contains(&ty) || self.1 == ty
    }

    fn text(&self) -> String {
        if self.0.is_empty() { self.1.to_owned() } else { self.0.join(",") }
    }
}

/// Whether a number counts as whole, with the tolerance of the reference.
fn is_json_integer(number: f64) -> bool {
    const LARGEST: f64 = 9_007_199_254_740_991.0;
    const EPSILON: f64 = 1e-9;
    if !number.is_finite() || number.abs() > LARGEST {
        return false;
    }
    let whole = number.trunc();
    let difference = (number - whole).abs();
    number == whole || whole != 0.0 && difference / (number.abs() + whole.abs()) < EPSILON
}
