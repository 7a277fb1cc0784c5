//! Rules on objects, and definitions that are refused.

use api::field::ErrorList;
use serde_json::{Value, json};

use super::compile;

fn spec(properties: Value, rules: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties,
        "x-kubernetes-validations": rules}}})
}

/// What is refused of an object, and what is only warned of.
fn check(schema: &Value, new: &Value, old: Option<&Value>) -> (Vec<String>, Vec<String>) {
    let rules = compile(schema, "s").unwrap_or_else(|e| panic!("{}", e.aggregate()));
    let mut errors = ErrorList::default();
    let warnings = rules.validate(new, old, &mut errors);
    (errors.0.iter().map(ToString::to_string).collect(), warnings)
}

fn refused(schema: &Value) -> String {
    compile(schema, "s").expect_err("the rules are wrong").aggregate()
}

#[test]
fn a_broken_rule_names_its_place_and_not_the_object() {
    let schema = spec(
        json!({"n": {"type": "integer"}, "m": {"type": "integer"}}),
        json!([{"rule": "self.n <= self.m", "message": "n must not exceed m"}, {"rule": "self.n != 3"},
            {"rule": "self.n < 3", "fieldPath": ".n", "reason": "FieldValueForbidden",
                "messageExpression": "'n is ' + string(self.n)"}]),
    );
    let (errors, _) = check(&schema, &json!({"spec": {"n": 3, "m": 2}}), None);
    assert_eq!(
        errors,
        [
            "spec: Invalid value: n must not exceed m",
            "spec: Invalid value: failed rule: self.n != 3",
            "spec.n: Forbidden: n is 3",
        ]
    );
    assert_eq!(check(&schema, &json!({"spec": {"n": 1, "m": 2}}), None).0, Vec::<String>::new());
    let (errors, _) = check(&schema, &json!({"spec": {"n": 1}}), None);
    assert_eq!(errors, ["spec: Invalid value: no such key: m evaluating rule: n must not exceed m"]);
}

#[test]
fn a_rule_of_a_scalar_shows_the_value_and_the_root_is_nil() {
    let schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.metadata.name == 'a'"}],
        "properties": {"n": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 1"}]}}});
    let (errors, _) = check(&schema, &json!({"metadata": {"name": "b"}, "n": 1}), None);
    assert_eq!(
        errors,
        [
            "<nil>: Invalid value: failed rule: self.metadata.name == 'a'",
            "n: Invalid value: 1: failed rule: self > 1"
        ]
    );
}

#[test]
fn transition_rules_compare_items_by_their_keys() {
    let item = json!({"type": "object", "required": ["k"], "properties": {
        "k": {"type": "string", "maxLength": 5}, "v": {"type": "integer"}},
        "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v", "message": "grow"}]});
    let schema = json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 5,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item}}});
    let old = json!({"l": [{"k": "a", "v": 1}, {"k": "b", "v": 5}]});
    assert!(check(&schema, &old, None).0.is_empty());
    let new = json!({"l": [{"k": "b", "v": 5}, {"k": "a", "v": 0}]});
    assert_eq!(check(&schema, &new, Some(&old)).0, ["l[1]: Invalid value: grow"]);
    let new = json!({"l": [{"k": "c", "v": 0}, {"k": "b", "v": 6}]});
    assert!(check(&schema, &new, Some(&old)).0.is_empty());
}

#[test]
fn optional_old_self_applies_to_creates() {
    let schema = spec(
        json!({"n": {"type": "integer"}}),
        json!([{"rule": "oldSelf.hasValue() || self.n == 1", "message": "start at 1", "optionalOldSelf": true}]),
    );
    assert_eq!(check(&schema, &json!({"spec": {"n": 3}}), None).0, ["spec: Invalid value: start at 1"]);
    assert!(check(&schema, &json!({"spec": {"n": 3}}), Some(&json!({"spec": {"n": 1}}))).0.is_empty());
}

#[test]
fn what_did_not_change_is_only_warned_of() {
    let schema = spec(
        json!({"n": {"type": "integer"}, "o": {"type": "object", "properties": {"x": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.x > 1"}]}}),
        json!([]),
    );
    let old = json!({"spec": {"n": 1, "o": {"x": 0}}});
    let (errors, warnings) = check(&schema, &json!({"spec": {"n": 2, "o": {"x": 0}}}), Some(&old));
    assert!(errors.is_empty());
    assert_eq!(warnings, ["spec.o: Invalid value: failed rule: self.x > 1"]);
    let (errors, _) = check(&schema, &json!({"spec": {"n": 1, "o": {"x": -1}}}), Some(&old));
    assert_eq!(errors, ["spec.o: Invalid value: failed rule: self.x > 1"]);
}

#[test]
fn rules_below_all_of_run() {
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer",
        "allOf": [{"x-kubernetes-validations": [{"rule": "self % 2 == 0", "message": "even"}]}]}}});
    assert_eq!(check(&schema, &json!({"n": 3}), None).0, ["n: Invalid value: 3: even"]);
}

#[test]
fn bad_rules_are_refused_with_the_references_words() {
    let shown = |rule: &str| {
        format!(
            "{{\"Rule\":\"{rule}\",\"Message\":\"\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}}"
        )
    };
    let at = "s.properties[spec].x-kubernetes-validations[0]";
    let n = json!({"n": {"type": "integer"}, "l": {"type": "array", "items": {"type": "string"}}});
    for (rule, expected) in [
        (
            json!({"rule": "self.nosuch > 1"}),
            format!(
                "{at}.rule: Invalid value: {}: compilation failed: ERROR: <input>:1:5: undefined field 'nosuch'\n | self.nosuch > 1\n | ....^",
                shown("self.nosuch \\u003e 1")
            ),
        ),
        (
            json!({"rule": "self.n + 1"}),
            format!(
                "{at}.rule: Invalid value: {}: cel expression must evaluate to a bool",
                shown("self.n + 1")
            ),
        ),
        (
            json!({"rule": "self.n > 1", "optionalOldSelf": true}),
            format!(
                "{at}.optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule"
            ),
        ),
        (
            json!({"rule": "self.l.all(a, self.l.all(b, a == b || a != b))"}),
            format!(
                "{at}.rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
            ),
        ),
    ] {
        let refused = refused(&spec(n.clone(), json!([rule])));
        assert!(refused.trim_start_matches('[').starts_with(&expected), "{refused}\n{expected}");
    }
}

#[test]
fn old_self_is_refused_where_items_cannot_be_told_apart() {
    let schema = json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 5, "items":
        {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf"}]}}}});
    assert_eq!(
        refused(&schema),
        "s.properties[l].items.x-kubernetes-validations[0].rule: Invalid value: \"self >= oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[l]"
    );
}

#[test]
fn a_rule_that_would_run_for_ever_is_stopped() {
    let list = json!({"type": "array", "maxItems": 40, "items": {"type": "integer"}});
    let schema = spec(
        json!({"l": list, "m": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}),
        json!([{"rule": "self.l.all(a, self.l.all(b, self.l.all(c, a + b + c > 0)))"}]),
    );
    let many: Vec<i64> = (1..2000).collect();
    let (errors, _) = check(&schema, &json!({"spec": {"l": many}}), None);
    assert_eq!(
        errors,
        [
            "spec: Invalid value: 'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: self.l.all(a, self.l.all(b, self.l.all(c, a + b + c > 0)))"
        ]
    );
}

#[test]
fn items_of_a_map_that_is_replaced_as_a_whole_may_look_back_and_messages_are_made_once() {
    let value = |rule: Value| {
        json!({"type": "object", "properties": {"m": {"type": "object", "maxProperties": 5, "x-kubernetes-map-type": "atomic",
        "additionalProperties": {"type": "integer", "x-kubernetes-validations": [rule]}}}})
    };
    assert!(compile(&value(json!({"rule": "self >= oldSelf"})), "s").is_ok());
    let long = "a".repeat(60);
    let list = json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "string", "maxLength": 5,
        "x-kubernetes-validations": [{"rule": "true", "messageExpression": format!("'{long}' + self + self + self")}]}}}});
    assert!(compile(&list, "s").is_ok());
}
