//! Field errors with paths, and a cursor that walks a JSON tree and knows where it stands.
//!
//! The words are Kubernetes' own (`causes` of a 422 Status): clients and people match on them.

use std::collections::HashSet;
use std::fmt::{self, Write as _};

use serde_json::Value;

/// Why a field is refused; the names are the `reason` of a cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Something the object refers to does not exist.
    NotFound,
    /// A value is missing.
    Required,
    /// A value stands twice in a list of unique ones.
    Duplicate,
    /// A value breaks a rule.
    Invalid,
    /// A value is not one of a known set.
    NotSupported,
    /// The value may not be set (now, or by this caller).
    Forbidden,
    /// A text or list is too long.
    TooLong,
    /// A list has too many items.
    TooMany,
    /// The server failed.
    Internal,
    /// The value is of another type.
    TypeInvalid,
}

impl Reason {
    /// The cause's `reason`.
    pub fn name(self) -> &'static str {
        match self {
            Reason::NotFound => "FieldValueNotFound",
            Reason::Required => "FieldValueRequired",
            Reason::Duplicate => "FieldValueDuplicate",
            Reason::Invalid => "FieldValueInvalid",
            Reason::NotSupported => "FieldValueNotSupported",
            Reason::Forbidden => "FieldValueForbidden",
            Reason::TooLong => "FieldValueTooLong",
            Reason::TooMany => "FieldValueTooMany",
            Reason::Internal => "InternalError",
            Reason::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Reason::NotFound => "Not found",
            Reason::Required => "Required value",
            Reason::Duplicate => "Duplicate value",
            Reason::Invalid | Reason::TypeInvalid => "Invalid value",
            Reason::NotSupported => "Unsupported value",
            Reason::Forbidden => "Forbidden",
            Reason::TooLong => "Too long",
            Reason::TooMany => "Too many",
            Reason::Internal => "Internal error",
        }
    }
}

/// One refused field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// Why.
    pub reason: Reason,
    /// Where, for example `spec.containers[0].name`.
    pub field: String,
    /// Reason, value and detail, without the path (the cause's `message`).
    pub body: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.body)
        } else {
            write!(f, "{}: {}", self.field, self.body)
        }
    }
}

/// How Kubernetes prints a value in an error: texts quoted, objects as compact JSON, the rest plain.
pub fn show(value: &Value) -> String {
    match value {
        Value::String(s) => quote(s),
        Value::Null => "null".to_owned(),
        Value::Number(n) if n.is_f64() => go_float(n.as_f64().unwrap_or_default()),
        other => escape_html(&other.to_string()),
    }
}

/// JSON as Go writes it: what means something in HTML is escaped.
pub fn escape_html(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

/// A floating-point number as Go prints it (`%v`): the shortest digits, with an exponent below 1e-04 and from 1e+06.
pub fn go_float(number: f64) -> String {
    if number == 0.0 || !number.is_finite() {
        return number.to_string();
    }
    let scientific = format!("{number:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..6).contains(&exponent) {
        return number.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Whether a character is printed as it is: letters, marks, numbers, punctuation, symbols and the plain space.
pub fn is_printable(c: char) -> bool {
    if matches!(c, ' '..='~') {
        return true;
    }
    // the standard library knows the categories: it escapes the others in texts, and marks at their beginning
    let mut text = String::from("a");
    text.push(c);
    text.escape_debug().nth(2).is_none()
}

/// A text in double quotes with Go's escapes.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            c if is_printable(c) => out.push(c),
            c => {
                let _ = match c as u32 {
                    code @ 0..0x80 => write!(out, "\\x{code:02x}"),
                    code @ 0x80..0x1_0000 => write!(out, "\\u{code:04x}"),
                    code => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push('"');
    out
}

/// The refused fields of one object, in the order found; and what is wrong but refused no more, as texts for `Warning`
/// headers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ErrorList(pub Vec<FieldError>, pub Vec<String>);

impl ErrorList {
    /// Whether nothing was refused.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many errors there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds an error whose text after the path is exactly `body`.
    pub fn push(&mut self, reason: Reason, path: &str, body: String) {
        self.0.push(FieldError { reason, field: path.to_owned(), body });
    }

    fn with_value(&mut self, reason: Reason, path: &str, value: &Value, detail: &str) {
        self.with_shown(reason, path, &show(value), detail);
    }

    /// An error about a value that is printed as `shown`: for types whose text is not their JSON.
    pub fn with_shown(&mut self, reason: Reason, path: &str, shown: &str, detail: &str) {
        let mut body = format!("{}: {shown}", reason.words());
        if !detail.is_empty() {
            let _ = write!(body, ": {detail}");
        }
        self.push(reason, path, body);
    }

    fn plain(&mut self, reason: Reason, path: &str, detail: &str) {
        let body = if detail.is_empty() {
            reason.words().to_owned()
        } else {
            format!("{}: {detail}", reason.words())
        };
        self.push(reason, path, body);
    }

    /// `path: Invalid value: VALUE: detail`.
    pub fn invalid(&mut self, path: &str, value: &Value, detail: &str) {
        self.with_value(Reason::Invalid, path, value, detail);
    }

    /// As [`Self::invalid`], for a value that is printed as `shown`.
    pub fn invalid_shown(&mut self, path: &str, shown: &str, detail: &str) {
        self.with_shown(Reason::Invalid, path, shown, detail);
    }

    /// As [`Self::invalid`], for the type of a value.
    pub fn type_invalid(&mut self, path: &str, value: &Value, detail: &str) {
        self.with_value(Reason::TypeInvalid, path, value, detail);
    }

    /// `path: Required value: detail`.
    pub fn required(&mut self, path: &str, detail: &str) {
        self.plain(Reason::Required, path, detail);
    }

    /// `path: Duplicate value: VALUE`.
    pub fn duplicate(&mut self, path: &str, value: &Value) {
        self.with_value(Reason::Duplicate, path, value, "");
    }

    /// `path: Not found: VALUE`.
    pub fn not_found(&mut self, path: &str, value: &Value) {
        self.with_value(Reason::NotFound, path, value, "");
    }

    /// `path: Unsupported value: VALUE: supported values: "a", "b"` (in the order given).
    pub fn not_supported(&mut self, path: &str, value: &Value, supported: &[&str]) {
        self.not_supported_shown(path, &show(value), supported);
    }

    /// As [`Self::not_supported`], for a value that is printed as `shown`.
    pub fn not_supported_shown(&mut self, path: &str, shown: &str, supported: &[&str]) {
        let list: Vec<String> = supported.iter().map(|s| quote(s)).collect();
        let detail =
            if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        self.with_shown(Reason::NotSupported, path, shown, &detail);
    }

    /// `path: Forbidden: detail`.
    pub fn forbidden(&mut self, path: &str, detail: &str) {
        self.plain(Reason::Forbidden, path, detail);
    }

    /// `path: Too long: may not be more than MAX bytes`.
    pub fn too_long(&mut self, path: &str, max: usize) {
        let unit = if max == 1 { "byte" } else { "bytes" };
        self.plain(Reason::TooLong, path, &format!("may not be more than {max} {unit}"));
    }

    /// `path: Too many: N: must have at most MAX items`.
    pub fn too_many(&mut self, path: &str, actual: usize, max: usize) {
        let unit = if max == 1 { "item" } else { "items" };
        self.push(
            Reason::TooMany,
            path,
            format!("{}: {actual}: must have at most {max} {unit}", Reason::TooMany.words()),
        );
    }

    /// One `invalid` per message, as the checks of [`crate::names`] return them.
    pub fn invalid_all(&mut self, path: &str, value: &Value, messages: impl IntoIterator<Item = String>) {
        for message in messages {
            self.invalid(path, value, &message);
        }
    }

    /// All errors as one text: a single one as it is, several as `[a, b]`, repeated ones once.
    pub fn aggregate(&self) -> String {
        let mut seen = HashSet::new();
        let mut texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        texts.retain(|text| seen.insert(text.clone()));
        if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(", ")) }
    }
}

/// A place in a JSON tree: the value there, if any, and the path to it.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    /// What stands there; `None` (never JSON null) where nothing does.
    pub value: Option<&'a Value>,
    /// The path, for example `spec.ports[0]`.
    pub path: String,
}

impl<'a> Cursor<'a> {
    /// The root of an object, with an empty path.
    pub fn root(value: &'a Value) -> Self {
        Self::at(value, "")
    }

    /// `value`, standing at `path`.
    pub fn at(value: &'a Value, path: &str) -> Self {
        Self { value: Some(value).filter(|v| !v.is_null()), path: path.to_owned() }
    }

    /// The field `name` of this object.
    pub fn key(&self, name: &str) -> Cursor<'a> {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Cursor { value: self.value.and_then(|v| v.get(name)).filter(|v| !v.is_null()), path }
    }

    /// The items of this list, with index paths.
    pub fn items(&self) -> impl Iterator<Item = Cursor<'a>> + use<'a> {
        let path = self.path.clone();
        let list: &'a [Value] = self.value.and_then(Value::as_array).map_or(&[], Vec::as_slice);
        list.iter().enumerate().map(move |(i, v)| Cursor::at(v, &format!("{path}[{i}]")))
    }

    /// The entries of this map, with `[key]` paths.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, Cursor<'a>)> + use<'a> {
        let path = self.path.clone();
        self.value
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(move |(k, v)| (k.as_str(), Cursor::at(v, &format!("{path}[{k}]"))))
    }

    /// Whether something stands here.
    pub fn exists(&self) -> bool {
        self.value.is_some()
    }

    /// The text here; empty where there is none.
    pub fn str(&self) -> &'a str {
        self.value.and_then(Value::as_str).unwrap_or_default()
    }

    /// The integer here.
    pub fn i64(&self) -> Option<i64> {
        self.value.and_then(Value::as_i64)
    }

    /// The truth value here.
    pub fn bool(&self) -> Option<bool> {
        self.value.and_then(Value::as_bool)
    }

    /// The number of items or entries here.
    pub fn len(&self) -> usize {
        match self.value {
            Some(Value::Array(list)) => list.len(),
            Some(Value::Object(map)) => map.len(),
            _ => 0,
        }
    }

    /// Whether the list or map here is empty or absent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The JSON here; null where nothing stands.
    pub fn json(&self) -> &'a Value {
        self.value.unwrap_or(&Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_read_as_the_reference_words_them() {
        let mut errs = ErrorList::default();
        errs.invalid("metadata.name", &json!("A"), "bad");
        errs.required("spec", "");
        errs.not_supported("spec.type", &json!("x"), &["a", "b"]);
        assert_eq!(
            errs.aggregate(),
            r#"[metadata.name: Invalid value: "A": bad, spec: Required value, spec.type: Unsupported value: "x": supported values: "a", "b"]"#
        );
    }

    #[test]
    fn floats_print_as_in_go() {
        for (number, text) in
            [(1.5, "1.5"), (5.0, "5"), (0.0001, "0.0001"), (0.00001, "1e-05"), (1_234_567.5, "1.2345675e+06")]
        {
            assert_eq!(go_float(number), text);
        }
    }

    #[test]
    fn a_cursor_knows_its_path() {
        let v = json!({"spec": {"ports": [{"port": 1}], "sel": {"a/b": "c"}}});
        let ports = Cursor::root(&v).key("spec").key("ports");
        assert_eq!(ports.items().next().map(|p| p.key("port").path), Some("spec.ports[0].port".into()));
        let (_, entry) = Cursor::root(&v).key("spec").key("sel").entries().next().unwrap();
        assert_eq!((entry.path.as_str(), entry.str()), ("spec.sel[a/b]", "c"));
    }
}
