//! Nodes.

use std::collections::BTreeSet;

use api::field::{Cursor, ErrorList};
use serde_json::{Value, json};

use super::parts::{Parts, Rules};
use super::tree::has;
use super::{addresses, generic, quantities};

pub(super) static NODE: Parts = Parts {
    default: |o| {
        if let Some(spec) = super::tree::child(o, "spec") {
            let (one, list) = (spec.get("podCIDR").cloned(), spec.get("podCIDRs").cloned());
            match (
                one.filter(|c| !super::tree::is_empty(Some(c))),
                list.filter(|l| !super::tree::is_empty(Some(l))),
            ) {
                (Some(one), Some(list)) if list[0] != one => spec["podCIDRs"] = json!([one]),
                (Some(one), None) => spec["podCIDRs"] = json!([one]),
                (None, Some(list)) => spec["podCIDR"] = list[0].clone(),
                _ => {}
            }
        }
        // What a node can give away is what it has, until its agent says otherwise.
        let Some(status) = o.get_mut("status").filter(|s| s.is_object()) else { return };
        let Some(capacity) = status.get("capacity").and_then(Value::as_object).cloned() else { return };
        super::tree::put_absent(status, "allocatable", capacity);
    },
    // A node may come with its status: its agent registers it that way.
    status: false,
    create: |_, o| {
        for (part, field) in [("spec", "configSource"), ("status", "config")] {
            if let Some(part) = super::tree::child(o, part) {
                generic::set(part, field, None);
            }
        }
    },
    update: |_, new, old| {
        generic::copy("status", new, old);
        if !has(&old["spec"], "configSource") {
            generic::set(&mut new["spec"], "configSource", None);
        }
    },
    update_status: |_, new, old| {
        if !has(&old["status"], "config")
            && let Some(status) = super::tree::child(new, "status")
        {
            generic::set(status, "config", None);
        }
    },
    validate: |o, errors| {
        let spec = Cursor::root(o).key("spec");
        annotations(o, errors);
        taints(&Cursor { path: TAINTS.to_owned(), ..spec.key("taints") }, errors);
        amounts(o, errors);
        let swap = Cursor::root(o).key("status").key("nodeInfo").key("swap").key("capacity");
        if swap.i64().is_some_and(|n| n <= 0) {
            errors.invalid("metadata.nodeSwapStatus.capacity", swap.json(), "must be greater than zero");
        }
        let ranges = spec.key("podCIDRs");
        for range in ranges.items() {
            addresses::cidr(&range.path, range.str(), errors);
        }
        if ranges.len() > 1 {
            let families = |six: bool| ranges.items().filter(|c| c.str().contains(':') == six).count();
            if families(true) > 1 || families(false) > 1 {
                errors.invalid(
                    &ranges.path,
                    ranges.json(),
                    "may specify no more than one CIDR for each IP family",
                );
            }
            let mut seen = BTreeSet::new();
            for range in ranges.items() {
                if !seen.insert(range.str()) {
                    errors.duplicate(&range.path, range.json());
                }
            }
        }
    },
    warn: |new, _| super::warnings::node(new),
    rules: Rules::BeforeChange,
    validate_change: change,
    validate_status: change,
    generation: false,
    ..Parts::PLAIN
};

/// A change of a node or of its status: the reference looks at amounts and taints again.
fn change(new: &Value, old: &Value, errors: &mut ErrorList) {
    annotations(new, errors);
    amounts(new, errors);
    let root = Cursor::root(new);
    let mut seen = BTreeSet::new();
    for address in root.key("status").key("addresses").items() {
        let what = (address.key("type").str(), address.key("address").str());
        if !seen.insert(what) {
            let shown = json!({"Type": what.0, "Address": what.1});
            errors.duplicate(&address.path, &shown);
        }
    }
    let (n, o) = (&new["spec"], &old["spec"]);
    let ranges = |spec: &Value| spec["podCIDRs"].as_array().cloned().unwrap_or_default();
    let (now, before) = (ranges(n), ranges(o));
    // another number of ranges is one complaint, other ranges are one each
    let changed = match before.len() {
        0 => 0,
        len if len != now.len() => 1,
        _ => before.iter().zip(&now).filter(|(a, b)| a != b).count(),
    };
    for _ in 0..changed {
        errors.forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid");
    }
    let provider = super::tree::text(o, "providerID");
    if !provider.is_empty() && provider != super::tree::text(n, "providerID") {
        let why = "node updates may not change providerID except from \"\" to valid";
        errors.forbidden("spec.providerID", why);
    }
    taints(&Cursor { path: TAINTS.to_owned(), ..root.key("spec").key("taints") }, errors);
    if super::tree::text(n, "externalID") != super::tree::text(o, "externalID") {
        errors.forbidden("spec.externalID", "may not be updated");
    }
}

/// The reference's path, which is that of the annotation taints once were.
const TAINTS: &str = "metadata.taints";

/// Annotations that once were fields: taints, and the pods that would rather run elsewhere.
fn annotations(o: &Value, errors: &mut ErrorList) {
    const AT: &str = "metadata.annotations";
    const OLD_TAINTS: &str = "scheduler.alpha.kubernetes.io/taints";
    const AVOID: &str = "scheduler.alpha.kubernetes.io/preferAvoidPods";
    let noted = |key: &str| o["metadata"]["annotations"][key].as_str().unwrap_or_default();
    let read = |text: &str| {
        serde_json::from_str::<Value>(text)
            .map_err(|e| super::core_config::go_json_error(text.as_bytes(), &e))
    };
    if !noted(OLD_TAINTS).is_empty() {
        match read(noted(OLD_TAINTS)) {
            Ok(list) => {
                taints(&Cursor { path: format!("{AT}.{OLD_TAINTS}"), ..Cursor::root(&list) }, errors);
            }
            Err(why) => errors.invalid(AT, &json!(OLD_TAINTS), &why),
        }
    }
    if !noted(AVOID).is_empty() {
        match read(noted(AVOID)) {
            Ok(avoided) => {
                for (i, entry) in avoided["preferAvoidPods"].as_array().into_iter().flatten().enumerate() {
                    let at = format!("{AT}.{AVOID}[{i}].PodSignature");
                    let controller = &entry["podSignature"]["podController"];
                    if controller.is_null() {
                        errors.required(&at, "");
                    } else if controller["controller"] != true {
                        let at = format!("{at}.PodController.Controller");
                        errors.invalid(&at, &json!(false), "must point to a controller");
                    }
                }
            }
            Err(why) => errors.invalid(&format!("{AT}.AvoidPods"), &json!(AVOID), &why),
        }
    }
}

/// What a node has and gives away is never negative.
fn amounts(o: &Value, errors: &mut ErrorList) {
    for list in ["capacity", "allocatable"] {
        for (name, at) in Cursor::root(o).key("status").key(list).entries() {
            let path = format!("status.{list}.{name}");
            quantities::non_negative(&path, at.json(), errors);
            let is_whole = quantities::parse(at.json()).is_none_or(|q| q.millis() % 1000 == 0);
            if !is_whole && super::quota::is_whole(name) {
                errors.invalid(&path, &quantities::show(at.json()), "must be an integer");
            }
        }
    }
}

fn taints(list: &Cursor<'_>, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for taint in list.items() {
        let key = taint.key("key");
        errors.invalid_all(
            &key.path,
            &Value::String(key.str().to_owned()),
            api::names::qualified_name(key.str()),
        );
        let value = taint.key("value");
        let messages = api::names::label_value(value.str());
        if !messages.is_empty() {
            errors.invalid(&value.path, value.json(), &messages.join(";"));
        }
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
            let why = "taints must be unique by key and effect pair";
            errors.with_shown(api::field::Reason::Duplicate, &taint.path, &shown, why);
        }
    }
}
