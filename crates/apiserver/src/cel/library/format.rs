//! Named formats: `format.dns1123Label().validate(name)` says what is wrong with a name, or nothing.

use api::names;

use super::super::eval::Error;
use super::super::overloads::Declared;
use super::super::time;
use super::super::value::Value;
use super::{Opaque, made, opaque, text};

/// A format that texts can be held to.
#[derive(Debug)]
pub(in super::super) struct Named {
    pub(super) name: &'static str,
    /// What is wrong with a text.
    check: fn(&str) -> Vec<String>,
}

static FORMATS: &[Named] = &[
    Named { name: "dns1123Label", check: names::dns1123_label },
    Named { name: "dns1123Subdomain", check: names::dns1123_subdomain },
    Named { name: "dns1035Label", check: names::dns1035_label },
    Named { name: "qualifiedName", check: names::qualified_name },
    Named { name: "dns1123LabelPrefix", check: |s| names::dns1123_label(&masked(s)) },
    Named { name: "dns1123SubdomainPrefix", check: |s| names::dns1123_subdomain(&masked(s)) },
    Named { name: "dns1035LabelPrefix", check: |s| names::dns1035_label(&masked(s)) },
    Named { name: "labelValue", check: names::label_value },
    Named { name: "uri", check: |s| one(super::urls::is_absolute(s), "invalid URI") },
    Named {
        name: "uuid",
        check: |s| one(uuid::Uuid::try_parse(s).is_ok(), "does not match the UUID format"),
    },
    Named { name: "byte", check: |s| one(is_base64(s), "invalid base64") },
    Named { name: "date", check: |s| one(s.len() == 10 && time::parse_date(s).is_some(), "invalid date") },
    Named { name: "datetime", check: |s| one(time::parse_timestamp(s).is_some(), "invalid datetime") },
];

fn one(good: bool, message: &str) -> Vec<String> {
    if good { Vec::new() } else { vec![message.to_owned()] }
}

/// The start of a generated name: a dash at its end is followed by more.
fn masked(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(rest) if rest.len() > 1 => format!("{rest}a"),
        _ => prefix.to_owned(),
    }
}

fn is_base64(text: &str) -> bool {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

macro_rules! named {
    ($name:literal, $full:literal) => {
        Declared {
            name: $full,
            signatures: "():NamedFormat",
            body: |_, _| FORMATS.iter().find(|f| f.name == $name).map(value).ok_or_else(Error::no_overload),
        }
    };
}

pub(in super::super) static FUNCTIONS: &[Declared] = &[
    named!("dns1123Label", "format.dns1123Label"),
    named!("dns1123Subdomain", "format.dns1123Subdomain"),
    named!("dns1035Label", "format.dns1035Label"),
    named!("qualifiedName", "format.qualifiedName"),
    named!("dns1123LabelPrefix", "format.dns1123LabelPrefix"),
    named!("dns1123SubdomainPrefix", "format.dns1123SubdomainPrefix"),
    named!("dns1035LabelPrefix", "format.dns1035LabelPrefix"),
    named!("labelValue", "format.labelValue"),
    named!("uri", "format.uri"),
    named!("uuid", "format.uuid"),
    named!("byte", "format.byte"),
    named!("date", "format.date"),
    named!("datetime", "format.datetime"),
    Declared {
        name: "format.named",
        signatures: "(string):optional(NamedFormat)",
        body: |_, args| {
            let wanted = text(args, 0)?;
            let found = FORMATS.iter().find(|f| f.name == wanted).map(value);
            Ok(found.map_or(Value::Optional(None), Value::some))
        },
    },
    Declared {
        name: "validate",
        signatures: "NamedFormat.(string):optional(list(string))",
        body: |_, args| {
            let Opaque::Format(format) = opaque(args, 0)? else { return Err(Error::no_overload()) };
            let wrong = (format.check)(text(args, 1)?);
            if wrong.is_empty() {
                return Ok(Value::Optional(None));
            }
            Ok(Value::some(Value::list(wrong.into_iter().map(Value::text).collect())))
        },
    },
];

fn value<'a>(format: &'static Named) -> Value<'a> {
    made(Opaque::Format(format))
}
