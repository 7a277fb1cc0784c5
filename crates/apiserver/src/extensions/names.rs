//! Which names a definition gets: the first to ask keeps them. A definition whose names are all accepted is established
//! and stays so. Pure.

use std::collections::BTreeSet;

use api::{custom, meta};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::conditions::{self, Condition};

/// The names that the definitions of a group have.
#[derive(Default)]
pub(super) struct Used {
    /// Plural, singular and short names.
    resources: BTreeSet<String>,
    /// Kinds and kinds of lists.
    kinds: BTreeSet<String>,
}

impl Used {
    /// Of the definitions of one group.
    pub(super) fn of<'a>(definitions: impl Iterator<Item = &'a Value>) -> Self {
        let mut used = Self::default();
        for definition in definitions {
            let names = &definition["status"]["acceptedNames"];
            let text = |key: &str| names[key].as_str().filter(|t| !t.is_empty()).map(str::to_owned);
            used.resources.extend(text("plural"));
            used.resources.extend(text("singular"));
            used.resources.extend(texts(&names["shortNames"]).map(str::to_owned));
            used.kinds.extend(text("kind"));
            used.kinds.extend(text("listKind"));
        }
        used
    }
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Settles `acceptedNames`, `NamesAccepted` and `Established`.
pub(super) fn settle(definition: &mut Value, used: &Used, now: Timestamp) {
    let asked = definition["spec"]["names"].clone();
    if asked != definition["status"]["acceptedNames"] {
        accept(definition, &asked, used, now);
    }
    if custom::is_true(definition, "NamesAccepted") && !custom::is_true(definition, "Established") {
        let reason = "InitialNamesAccepted";
        let message = "the initial names have been accepted";
        conditions::set(definition, &Condition { type_: "Established", status: true, reason, message }, now);
    }
}

fn accept(definition: &mut Value, asked: &Value, used: &Used, now: Timestamp) {
    let has = definition["status"]["acceptedNames"].clone();
    let mut gets = has.clone();
    let mut conflict: Option<(&str, String)> = None;
    for (key, taken, reason) in [
        ("plural", &used.resources, "PluralConflict"),
        ("singular", &used.resources, "SingularConflict"),
        ("shortNames", &used.resources, "ShortNamesConflict"),
        ("kind", &used.kinds, "KindConflict"),
        ("listKind", &used.kinds, "ListKindConflict"),
    ] {
        let free = if key == "shortNames" {
            let own: Vec<&str> = texts(&has[key]).collect();
            let lost: Vec<String> = texts(&asked[key])
                .filter(|name| !own.contains(name) && taken.contains(*name))
                .map(in_use)
                .collect();
            match lost.as_slice() {
                [] => Ok(()),
                [only] => Err(only.clone()),
                many => Err(format!("[{}]", many.join(", "))),
            }
        } else {
            match asked[key].as_str().unwrap_or_default() {
                name if name != has[key].as_str().unwrap_or_default() && taken.contains(name) => {
                    Err(in_use(name))
                }
                _ => Ok(()),
            }
        };
        match free {
            Ok(()) => copy(&mut gets, key, asked),
            // the last conflict is the one that is told
            Err(why) => conflict = Some((reason, why)),
        }
    }
    copy(&mut gets, "categories", asked);
    if let Some(object) = definition.as_object_mut() {
        meta::child_mut(object, "status").insert("acceptedNames".to_owned(), gets);
    }
    let accepted = match &conflict {
        None => Condition {
            type_: "NamesAccepted",
            status: true,
            reason: "NoConflicts",
            message: "no conflicts found",
        },
        Some((reason, message)) => Condition { type_: "NamesAccepted", status: false, reason, message },
    };
    conditions::set(definition, &accepted, now);
    if conflict.is_some() && custom::condition(definition, "Established").is_none() {
        let message = "not all names are accepted";
        let refused = Condition { type_: "Established", status: false, reason: "NotAccepted", message };
        conditions::set(definition, &refused, now);
    }
}

fn in_use(name: &str) -> String {
    format!("{name:?} is already in use")
}

/// Sets a name as it was asked for; plural and kind are always there.
fn copy(names: &mut Value, key: &str, asked: &Value) {
    match asked.get(key) {
        Some(value) => names[key] = value.clone(),
        None if matches!(key, "plural" | "kind") => names[key] = json!(""),
        None => {
            if let Some(names) = names.as_object_mut() {
                names.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(plural: &str, kind: &str) -> Value {
        json!({"spec": {"names": {"plural": plural, "singular": plural.trim_end_matches('s'), "kind": kind,
            "listKind": format!("{kind}List"), "shortNames": ["w"]}},
            "status": {"conditions": null, "acceptedNames": {"plural": "", "kind": ""}}})
    }

    fn told(definition: &Value) -> Vec<String> {
        let conditions = definition["status"]["conditions"].as_array().unwrap();
        conditions
            .iter()
            .map(|c| format!("{} {} {}", c["type"], c["status"], c["message"]).replace('"', ""))
            .collect()
    }

    #[test]
    fn the_first_to_ask_gets_its_names_and_is_established() {
        let mut first = asks("widgets", "Widget");
        settle(&mut first, &Used::default(), Timestamp::UNIX_EPOCH);
        assert_eq!(first["status"]["acceptedNames"], first["spec"]["names"]);
        expect(
            &told(&first),
            &[
                "NamesAccepted True no conflicts found",
                "Established True the initial names have been accepted",
            ],
        );
        let once = first.clone();
        settle(&mut first, &Used::of([&once].into_iter()), "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(first, once, "what is settled stays");
    }

    #[test]
    fn the_second_to_ask_for_a_kind_is_not_accepted_until_it_is_free() {
        let mut first = asks("widgets", "Widget");
        settle(&mut first, &Used::default(), Timestamp::UNIX_EPOCH);
        let mut second = asks("gadgets", "Widget");
        settle(&mut second, &Used::of([&first].into_iter()), Timestamp::UNIX_EPOCH);
        assert_eq!(
            second["status"]["acceptedNames"],
            json!({"plural": "gadgets", "singular": "gadget", "kind": ""})
        );
        expect(
            &told(&second),
            &[
                "NamesAccepted False \\WidgetList\\ is already in use",
                "Established False not all names are accepted",
            ],
        );
        let alone = Used::of([&second].into_iter());
        settle(&mut second, &alone, Timestamp::UNIX_EPOCH);
        assert!(custom::is_true(&second, "Established"));
    }

    #[track_caller]
    fn expect(found: &[String], wanted: &[&str]) {
        assert_eq!(found, wanted);
    }
}
