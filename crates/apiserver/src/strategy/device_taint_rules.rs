//! Device taint rules: taints that somebody puts on devices beside those of their driver (gate `DRADeviceTaintRules`, beta).
//!
//! Rule: Kubernetes documentation, "Dynamic Resource Allocation" (device taints and tolerations).

use api::field::{Cursor, ErrorList};
use api::meta;
use serde_json::{Value, json};

use super::devices::{MAX_CONDITIONS, driver_name, label, pool_name, taint};
use super::parts::Parts;
use super::texts;
use super::tree::{child, put_absent};

pub(super) static DEVICE_TAINT_RULE: Parts = Parts {
    status_keeps: super::generic::OWN_META,
    create: |context, o| stamp(o, &meta::format_time(context.now)),
    update: |context, new, old| {
        let now = meta::format_time(context.now);
        let before = &old["spec"]["taint"];
        if let Some(taint) = child(new, "spec").and_then(|spec| child(spec, "taint"))
            && taint["effect"] != before["effect"]
            && taint["timeAdded"] == before["timeAdded"]
        {
            // the time is that of the effect, not of the rule
            taint["timeAdded"] = json!(now);
        }
        stamp(new, &now);
    },
    validate: |o, errors| {
        let spec = Cursor::root(o).key("spec");
        selector(&spec.key("deviceSelector"), errors);
        taint(&spec.key("taint"), errors);
    },
    validate_status: |new, _, errors| {
        let list = Cursor::root(new).key("status").key("conditions");
        texts::conditions(&list, errors);
        if list.len() > MAX_CONDITIONS {
            errors.too_many(&list.path, list.len(), MAX_CONDITIONS);
        }
    },
    ..Parts::PLAIN
};

/// A taint without a time begins now.
fn stamp(rule: &mut Value, now: &str) {
    if let Some(taint) = child(rule, "spec").and_then(|spec| child(spec, "taint")) {
        put_absent(taint, "timeAdded", now);
    }
}

/// Which devices are meant; a part that is not there means all.
fn selector(at: &Cursor<'_>, errors: &mut ErrorList) {
    for (key, check) in
        [("driver", driver_name as fn(&Cursor<'_>, &mut ErrorList)), ("pool", pool_name), ("device", label)]
    {
        let part = at.key(key);
        if part.exists() {
            check(&part, errors);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::{Context, Strategy as _};

    fn rule(selector: Value, taint: Value) -> Value {
        json!({"metadata": {"name": "r"}, "spec": {"deviceSelector": selector, "taint": taint}})
    }

    fn said(check: impl FnOnce(&mut ErrorList)) -> String {
        let mut errors = ErrorList::default();
        check(&mut errors);
        errors.aggregate()
    }

    #[test]
    fn a_rule_names_devices_and_one_taint() {
        let check = |o: Value| said(|errors| DEVICE_TAINT_RULE.validate_create(&o, errors));
        let good = json!({"key": "example.com/broken", "effect": "NoExecute"});
        let lines = [
            check(rule(json!({"driver": "gpu.example.com", "pool": "a/b", "device": "gpu-0"}), good.clone())),
            check(rule(Value::Null, json!({"key": "k", "value": "v", "effect": "None"}))),
            check(rule(json!({"driver": "", "pool": "", "device": "A"}), good)),
            check(rule(json!({}), json!({"key": "", "effect": "PreferNoSchedule"}))),
        ];
        expect_test::expect![[r#"
            []
            []
            [spec.deviceSelector.driver: Required value, spec.deviceSelector.pool: Required value, spec.deviceSelector.device: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')]
            [spec.taint.key: Invalid value: "": name part must be non-empty, spec.taint.key: Invalid value: "": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]'), spec.taint.effect: Unsupported value: "PreferNoSchedule": supported values: "NoExecute", "NoSchedule", "None"]"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn the_time_of_a_taint_is_that_of_its_effect() {
        let at = |second: i64| Context::new(jiff::Timestamp::from_second(second).unwrap());
        let mut stored = rule(json!({}), json!({"key": "k", "effect": "None"}));
        DEVICE_TAINT_RULE.prepare_create(&at(0), &mut stored);
        let changed = |taint: Value| {
            let mut new = rule(json!({}), taint);
            DEVICE_TAINT_RULE.prepare_update(&at(60), &mut new, &stored);
            new["spec"]["taint"]["timeAdded"].as_str().unwrap_or_default().to_owned()
        };
        let (then, now) = ("1970-01-01T00:00:00Z", "1970-01-01T00:01:00Z");
        assert_eq!(stored["spec"]["taint"]["timeAdded"], then);
        assert_eq!(changed(json!({"key": "other", "effect": "None", "timeAdded": then})), then);
        assert_eq!(changed(json!({"key": "k", "effect": "NoExecute", "timeAdded": then})), now);
        let own = "1970-01-01T00:00:30Z";
        assert_eq!(changed(json!({"key": "k", "effect": "NoExecute", "timeAdded": own})), own);
        assert_eq!(changed(json!({"key": "k", "effect": "None"})), now);
    }
}
