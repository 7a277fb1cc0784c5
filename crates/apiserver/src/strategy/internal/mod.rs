//! Objects as the reference prints them in errors: by the members of its internal types, not by their JSON names.
//!
//! `types.txt` holds the types as data. A line is `Type member…`; a member is `GoName[=json]:form`, where the JSON name
//! follows from the Go name unless it is given (`^name`: a member of the parent). Forms: `s` text, `i` number, `b` truth
//! value, `q` quantity, `o` number or text (all of them print their zero where nothing is set), `?` as it is or null, `Type` a
//! struct, `*Type` a struct or null, `[Type]` a list or null. `+json:Type` prints the members of another type in place (of
//! the object under `json`, or of the object itself). A line `!Type` is a type with JSON names: members are left out where empty,
//! unless `!` (always) or `?` (left out only where null) follows.

mod diff;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use serde_json::Value;

/// A struct as one line of JSON.
pub(crate) fn show(type_name: &str, value: &Value) -> String {
    let mut text = String::new();
    Node::of(Form::Optional(type_name), value, &Value::Null).compact(&mut text);
    text
}

/// A list of structs as one line of JSON.
pub(crate) fn show_list(type_name: &str, value: &Value) -> String {
    let mut text = String::new();
    Node::of(Form::List(type_name), value, &Value::Null).compact(&mut text);
    text
}

/// What differs between two structs, as a unified diff of their indented JSON.
pub(super) fn diff(type_name: &str, old: &Value, new: &Value) -> String {
    let lines = |value: &Value| {
        let mut text = String::new();
        Node::of(Form::Struct(type_name), value, &Value::Null).indented(0, &mut text);
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    diff::unified(&lines(old), &lines(new))
}

#[derive(Clone, Copy)]
enum Form<'a> {
    /// Prints this where nothing is set.
    Scalar(&'static str),
    AsItIs,
    Struct(&'a str),
    Optional(&'a str),
    List(&'a str),
}

/// When a member of a type with JSON names is printed.
#[derive(Clone, Copy, PartialEq)]
enum When {
    Always,
    NotNull,
    NotEmpty,
}

struct Member {
    shown: &'static str,
    json: String,
    of_parent: bool,
    in_place: bool,
    when: When,
    form: Form<'static>,
}

static TYPES: LazyLock<HashMap<&'static str, Vec<Member>>> = LazyLock::new(|| {
    let lines = include_str!("types.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split(' ');
            let name = words.next().unwrap_or_default();
            match name.strip_prefix('!') {
                Some(name) => (name, words.map(tagged_member).collect()),
                None => (name, words.map(member).collect()),
            }
        })
        .collect()
});

fn form(text: &'static str) -> Form<'static> {
    match text {
        "s" => Form::Scalar("\"\""),
        "i" | "o" => Form::Scalar("0"),
        "b" => Form::Scalar("false"),
        "q" => Form::Scalar("\"0\""),
        "?" => Form::AsItIs,
        other => match (other.strip_prefix('*'), other.strip_prefix('[')) {
            (Some(name), _) => Form::Optional(name),
            (_, Some(name)) => Form::List(name.trim_end_matches(']')),
            _ => Form::Struct(other),
        },
    }
}

fn member(word: &'static str) -> Member {
    let (name, of) = word.split_once(':').unwrap_or((word, "?"));
    let form = form(of);
    if let Some(json) = name.strip_prefix('+') {
        let json = json.to_owned();
        return Member { shown: "", json, of_parent: false, in_place: true, when: When::Always, form };
    }
    let (shown, json) = match name.split_once('=') {
        Some((shown, json)) => (shown, json.to_owned()),
        None => (name, json_name(name)),
    };
    let of_parent = json.starts_with('^');
    let json = json.trim_start_matches('^').to_owned();
    Member { shown, json, of_parent, in_place: false, when: When::Always, form }
}

fn tagged_member(word: &'static str) -> Member {
    let (name, form) = match word.split_once(':') {
        Some((name, of)) => (name, form(of)),
        None => (word, Form::AsItIs),
    };
    let when = match name.as_bytes().last() {
        Some(b'!') => When::Always,
        Some(b'?') => When::NotNull,
        _ => When::NotEmpty,
    };
    let shown = name.trim_end_matches(['!', '?']);
    Member { shown, json: shown.to_owned(), of_parent: false, in_place: false, when, form }
}

/// The JSON name that belongs to a Go name: its first word in small letters.
pub(crate) fn json_name(name: &str) -> String {
    let run = name.bytes().take_while(u8::is_ascii_uppercase).count();
    let small = if run == name.len() || run <= 1 { run } else { run - 1 };
    format!("{}{}", name[..small].to_ascii_lowercase(), &name[small..])
}

/// A tree whose members keep their order.
enum Node {
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    fn of(form: Form<'_>, value: &Value, parent: &Value) -> Self {
        match form {
            Form::Scalar(zero) if value.is_null() => Self::Text(zero.to_owned()),
            Form::Optional(_) | Form::List(_) if value.is_null() => Self::Text("null".to_owned()),
            Form::Scalar(_) | Form::AsItIs => Self::plain(value),
            Form::Struct(name) | Form::Optional(name) => {
                let mut members = Vec::new();
                collect(name, value, parent, &mut members);
                Self::Map(members)
            }
            Form::List(name) => {
                let items = value.as_array().into_iter().flatten();
                Self::List(items.map(|item| Self::of(Form::Struct(name), item, value)).collect())
            }
        }
    }

    fn plain(value: &Value) -> Self {
        match value {
            Value::Array(list) => Self::List(list.iter().map(Self::plain).collect()),
            Value::Object(map) => Self::Map(map.iter().map(|(k, v)| (k.clone(), Self::plain(v))).collect()),
            Value::String(text) => Self::Text(escaped(text)),
            other => Self::Text(other.to_string()),
        }
    }

    fn compact(&self, out: &mut String) {
        match self {
            Self::Text(text) => out.push_str(text),
            Self::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { "," });
                    item.compact(out);
                }
                out.push(']');
            }
            Self::Map(members) => {
                out.push('{');
                for (i, (name, value)) in members.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { "," });
                    let _ = write!(out, "{}:", escaped(name));
                    value.compact(out);
                }
                out.push('}');
            }
        }
    }

    fn indented(&self, depth: usize, out: &mut String) {
        let close = |out: &mut String, bracket: char| {
            let _ = write!(out, "\n{:depth$}{bracket}", "");
        };
        match self {
            Self::List(items) if !items.is_empty() => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    let _ = write!(out, "{}\n{:2$}", if i == 0 { "" } else { "," }, "", depth + 1);
                    item.indented(depth + 1, out);
                }
                close(out, ']');
            }
            Self::Map(members) if !members.is_empty() => {
                out.push('{');
                for (i, (name, value)) in members.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    let _ = write!(out, "{comma}\n{:1$}{name}: ", "", depth + 1, name = escaped(name));
                    value.indented(depth + 1, out);
                }
                close(out, '}');
            }
            other => other.compact(out),
        }
    }
}

fn collect(type_name: &str, value: &Value, parent: &Value, out: &mut Vec<(String, Node)>) {
    for member in TYPES.get(type_name).into_iter().flatten() {
        if member.in_place {
            let Form::Struct(name) = member.form else { continue };
            let of = if member.json.is_empty() { value } else { &value[&member.json] };
            collect(name, of, value, out);
            continue;
        }
        let found = if member.of_parent { &parent[&member.json] } else { &value[&member.json] };
        let left_out = match member.when {
            When::Always => false,
            When::NotNull => found.is_null(),
            When::NotEmpty => super::tree::is_empty(Some(found)) || *found == 0,
        };
        if !left_out {
            out.push((member.shown.to_owned(), Node::of(member.form, found, value)));
        }
    }
}

/// A text as JSON, with what Go escapes besides: the characters that mean something in HTML.
fn escaped(text: &str) -> String {
    let json = Value::String(text.to_owned()).to_string();
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_type_that_a_member_names_is_there() {
        for (name, members) in TYPES.iter() {
            for member in members {
                if let Form::Struct(of) | Form::Optional(of) | Form::List(of) = member.form {
                    assert!(TYPES.contains_key(of), "{name}.{} is a {of}", member.shown);
                }
            }
        }
    }

    #[test]
    fn names_follow_from_each_other() {
        for (go, json) in [
            ("DNSPolicy", "dnsPolicy"),
            ("TTY", "tty"),
            ("SELinuxOptions", "seLinuxOptions"),
            ("Name", "name"),
            ("ISCSIInterface", "iscsiInterface"),
            ("HTTPGet", "httpGet"),
        ] {
            assert_eq!(json_name(go), json);
        }
    }

    #[test]
    fn a_struct_prints_all_its_members_in_order() {
        let strategy = json!({"rollingUpdate": {"partition": 1}, "type": "<X>"});
        assert_eq!(
            show("StatefulSetUpdateStrategy", &strategy),
            r#"{"Type":"\u003cX\u003e","RollingUpdate":{"Partition":1,"MaxUnavailable":null}}"#
        );
        let selector = json!({"matchExpressions": [{"key": "a", "operator": "In"}], "matchLabels": {}});
        assert_eq!(show("LabelSelector", &selector), r#"{"matchExpressions":[{"key":"a","operator":"In"}]}"#);
    }

    #[test]
    fn a_change_of_a_pod_is_shown_with_three_lines_around_it() {
        let old = json!({"containers": [{"name": "c", "image": "img"}], "hostNetwork": true});
        let mut new = old.clone();
        new["containers"][0]["command"] = json!(["x"]);
        assert_eq!(
            diff("PodSpec", &old, &new),
            "@@ -5,7 +5,9 @@\n   {\n    \"Name\": \"c\",\n    \"Image\": \"img\",\n-   \"Command\": null,\n+   \"Command\": [\n+    \"x\"\n+   ],\n    \"Args\": null,\n    \"WorkingDir\": \"\",\n    \"Ports\": null,\n"
        );
    }
}
