//! Nodes.

use api::field::{Cursor, ErrorList};
use serde_json::Value;

use super::generic;
use super::parts::Parts;
use super::tree::{has, make, put};

pub(super) static NODE: Parts = Parts {
    default: |o| {
        if let Some(spec) = super::tree::child(o, "spec") {
            let (one, list) = (spec.get("podCIDR").cloned(), spec.get("podCIDRs").cloned());
            match (
                one.filter(|c| !super::tree::is_empty(Some(c))),
                list.filter(|l| !super::tree::is_empty(Some(l))),
            ) {
                (Some(one), Some(list)) if list[0] != one => spec["podCIDRs"] = serde_json::json!([one]),
                (Some(one), None) => spec["podCIDRs"] = serde_json::json!([one]),
                (None, Some(list)) => spec["podCIDR"] = list[0].clone(),
                _ => {}
            }
        }
        // What a node can give away is what it has, until its agent says otherwise.
        let Some(status) = o.get_mut("status").filter(|s| s.is_object()) else { return };
        let Some(capacity) = status.get("capacity").and_then(Value::as_object).cloned() else { return };
        if let Some(allocatable) = make(status, "allocatable") {
            for (name, value) in capacity {
                put(allocatable, &name, value);
            }
        }
    },
    // A node may come with its status: its agent registers it that way.
    status: false,
    create: |_, o| generic::set(&mut o["spec"], "configSource", None),
    update: |_, new, old| {
        generic::copy("status", new, old);
        if !has(&old["spec"], "configSource") {
            generic::set(&mut new["spec"], "configSource", None);
        }
    },
    validate: |o, errors| {
        let spec = Cursor::root(o).key("spec");
        taints(&spec.key("taints"), errors);
        let ranges = spec.key("podCIDRs");
        if ranges.len() > 1 {
            let families = |six: bool| ranges.items().filter(|c| c.str().contains(':') == six).count();
            if families(true) > 1 || families(false) > 1 {
                errors.invalid(
                    &ranges.path,
                    ranges.json(),
                    "may specify no more than one CIDR for each IP family",
                );
            }
        }
    },
    validate_change: |new, old, errors| {
        let (n, o) = (&new["spec"], &old["spec"]);
        // `podCIDR` is the first of `podCIDRs`: one complaint is enough.
        for key in ["podCIDRs", "providerID"] {
            if has(o, key) && !super::tree::is_empty(o.get(key)) && n.get(key) != o.get(key) {
                errors.forbidden(
                    &format!("spec.{key}"),
                    if key == "podCIDRs" {
                        "node updates may not change podCIDR except from \"\" to valid"
                    } else {
                        "node updates may not change providerID except from \"\" to valid"
                    },
                );
            }
        }
    },
    generation: false,
    ..Parts::PLAIN
};

fn taints(list: &Cursor<'_>, errors: &mut ErrorList) {
    let mut seen = std::collections::BTreeSet::new();
    for taint in list.items() {
        let key = taint.key("key");
        errors.invalid_all(
            &key.path,
            &Value::String(key.str().to_owned()),
            api::names::qualified_name(key.str()),
        );
        let value = taint.key("value");
        errors.invalid_all(&value.path, value.json(), api::names::label_value(value.str()));
        let effect = taint.key("effect");
        match effect.str() {
            "" => errors.required(&effect.path, ""),
            "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
            _ => errors.not_supported(
                &effect.path,
                effect.json(),
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            ),
        }
        if !seen.insert((key.str().to_owned(), effect.str().to_owned())) {
            let shown = super::internal::show("Taint", taint.json());
            errors.with_shown(api::field::Reason::Duplicate, &taint.path, &shown, "");
        }
    }
}
