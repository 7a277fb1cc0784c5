//! YAML out, quoted and folded as Go's library does it (`gopkg.in/yaml.v2`, which the reference prints with): people
//! compare and keep what they get. Keys are sorted by its natural order. Rule: YAML 1.1, and the library's choices.

use std::cmp::Ordering;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Number, Value};

/// Scalars that are longer go on in the next line, at a space.
const WIDTH: usize = 80;
/// Keys that are longer stand on a line of their own.
const SIMPLE_KEY: usize = 128;

/// Prints a tree.
pub(super) fn print(value: &Value) -> String {
    let mut out = Emitter { text: String::new(), column: 0, whitespace: true, indention: true };
    out.node(value, None, false);
    out.indent(0);
    out.text
}

struct Emitter {
    text: String,
    /// Characters in this line.
    column: usize,
    /// Whether a space was written last, or nothing yet in this line.
    whitespace: bool,
    /// Whether this line has only what opens a block.
    indention: bool,
}

/// How a text is written.
#[derive(PartialEq)]
enum Style {
    Plain,
    Single,
    Double,
    Literal,
}

impl Emitter {
    fn put(&mut self, c: char) {
        self.text.push(c);
        self.column += 1;
    }

    fn line_break(&mut self) {
        self.text.push('\n');
        self.column = 0;
    }

    fn indicator(&mut self, text: &str, spaced: bool, opens: bool) {
        if spaced && !self.whitespace {
            self.put(' ');
        }
        text.chars().for_each(|c| self.put(c));
        self.whitespace = false;
        self.indention &= opens;
    }

    /// Goes to a column, in a new line where this one has something.
    fn indent(&mut self, to: usize) {
        if !self.indention || self.column > to || (self.column == to && !self.whitespace) {
            self.line_break();
        }
        while self.column < to {
            self.put(' ');
        }
        self.whitespace = true;
        self.indention = true;
    }

    /// A node within a block at this column; `of_key`: the value of a key.
    fn node(&mut self, value: &Value, block: Option<usize>, of_key: bool) {
        let inner = block.map_or(0, |column| column + 2);
        match value {
            Value::Object(map) if map.is_empty() => self.indicator("{}", true, false),
            Value::Array(list) if list.is_empty() => self.indicator("[]", true, false),
            Value::Object(map) => {
                let mut entries: Vec<(&String, &Value)> = map.iter().collect();
                entries.sort_by(|a, b| natural(a.0, b.0));
                for (key, value) in entries {
                    self.entry(key, value, inner);
                }
            }
            Value::Array(list) => {
                // the items of a key's list stand below the key
                let column = block.filter(|_| of_key && !self.indention).unwrap_or(inner);
                for item in list {
                    self.indent(column);
                    self.indicator("-", true, true);
                    self.node(item, Some(column), false);
                }
            }
            Value::String(text) => self.scalar(text, style(text), block, true),
            Value::Number(number) => self.scalar(&shown(number), Style::Plain, block, true),
            Value::Bool(value) => {
                self.scalar(if *value { "true" } else { "false" }, Style::Plain, block, true)
            }
            Value::Null => self.scalar("null", Style::Plain, block, true),
        }
    }

    fn entry(&mut self, key: &str, value: &Value, column: usize) {
        self.indent(column);
        if key.len() <= SIMPLE_KEY && !key.chars().any(is_break) {
            let style = match style(key) {
                Style::Literal => Style::Double,
                style => style,
            };
            self.scalar(key, style, Some(column), false);
            self.indicator(":", false, false);
        } else {
            self.indicator("?", true, true);
            self.scalar(key, style(key), Some(column), true);
            self.indent(column);
            self.indicator(":", true, true);
        }
        self.node(value, Some(column), true);
    }

    fn scalar(&mut self, text: &str, style: Style, block: Option<usize>, folds: bool) {
        let column = block.unwrap_or(0) + 2;
        match style {
            Style::Literal => return self.literal(text, column),
            Style::Double => return self.double(text, column, folds),
            Style::Single => self.indicator("'", true, false),
            Style::Plain if !self.whitespace => self.put(' '),
            Style::Plain => {}
        }
        let mut spaces = false;
        let mut chars = text.chars().enumerate().peekable();
        while let Some((at, c)) = chars.next() {
            let next = chars.peek().map(|(_, c)| *c);
            let inside = style == Style::Plain || (at > 0 && next.is_some());
            if c == ' ' && folds && !spaces && self.column > WIDTH && inside && next != Some(' ') {
                self.indent(column);
            } else {
                if c == '\'' && style == Style::Single {
                    self.put('\'');
                }
                self.put(c);
            }
            spaces = c == ' ';
            self.indention &= spaces;
        }
        if style == Style::Single {
            self.indicator("'", false, false);
        }
        self.whitespace = false;
        self.indention = false;
    }

    fn double(&mut self, text: &str, column: usize, folds: bool) {
        self.indicator("\"", true, false);
        let mut spaces = false;
        let mut chars = text.chars().enumerate().peekable();
        while let Some((at, c)) = chars.next() {
            let next = chars.peek().map(|(_, c)| *c);
            if !is_printable(c) || is_break(c) || matches!(c, '"' | '\\') {
                escaped(c).chars().for_each(|c| self.put(c));
            } else if c == ' ' && folds && !spaces && self.column > WIDTH && at > 0 && next.is_some() {
                self.indent(column);
                if next == Some(' ') {
                    self.put('\\');
                }
            } else {
                self.put(c);
            }
            spaces = c == ' ';
        }
        self.indicator("\"", false, false);
    }

    fn literal(&mut self, text: &str, column: usize) {
        self.indicator("|", true, false);
        if text.starts_with(|c| c == ' ' || is_break(c)) {
            self.put('2');
        }
        let mut last = text.chars().rev().map(is_break);
        match (last.next(), last.next()) {
            (Some(true), None | Some(true)) => self.put('+'),
            (Some(true), Some(false)) => {}
            _ => self.put('-'),
        }
        self.line_break();
        self.indention = true;
        self.whitespace = true;
        let mut begins = true;
        for c in text.chars() {
            if c == '\n' {
                self.line_break();
                self.indention = true;
                begins = true;
                continue;
            }
            if begins {
                self.indent(column);
            }
            self.put(c);
            self.indention = false;
            begins = false;
        }
    }
}

fn is_break(c: char) -> bool {
    matches!(c, '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn is_printable(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}') && c != '\u{feff}'
}

fn escaped(c: char) -> String {
    let named = [
        '\0', '\u{7}', '\u{8}', '\t', '\n', '\u{b}', '\u{c}', '\r', '\u{1b}', '"', '\\', '\u{85}',
        '\u{2028}', '\u{2029}',
    ];
    let names = "0abtnvfre\"\\NLP";
    if let Some((_, name)) = named.iter().zip(names.chars()).find(|(special, _)| **special == c) {
        return format!("\\{name}");
    }
    match u32::from(c) {
        code @ 0..=0xff => format!("\\x{code:02X}"),
        code @ 0x100..=0xffff => format!("\\u{code:04X}"),
        code => format!("\\U{code:08X}"),
    }
}

/// How a text is written: plainly where it then reads as the same text.
fn style(text: &str) -> Style {
    let allowed = Allowed::of(text);
    if text.contains('\n') {
        return if allowed.block { Style::Literal } else { Style::Double };
    }
    if !reads_as_text(text) {
        return Style::Double;
    }
    match allowed {
        Allowed { plain: true, .. } => Style::Plain,
        Allowed { single: true, .. } => Style::Single,
        _ => Style::Double,
    }
}

/// What the characters of a text allow.
struct Allowed {
    plain: bool,
    single: bool,
    block: bool,
}

impl Allowed {
    fn of(text: &str) -> Self {
        let mut indicators = text.starts_with("---") || text.starts_with("...");
        let (mut special, mut breaks) = (false, false);
        let (mut break_space, mut space_break) = (false, false);
        let mut before = None;
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let then_blank = chars.peek().is_none_or(|c| matches!(c, ' ' | '\t'));
            let after_blank = before.is_none_or(|c| matches!(c, ' ' | '\t') || is_break(c));
            indicators |= match c {
                '#' => after_blank,
                ':' => then_blank,
                '?' | '-' => before.is_none() && then_blank,
                ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`' => {
                    before.is_none()
                }
                _ => false,
            };
            special |= !is_printable(c);
            breaks |= is_break(c);
            break_space |= c == ' ' && before.is_some_and(is_break);
            space_break |= is_break(c) && before == Some(' ');
            before = Some(c);
        }
        let at_edge = |c: Option<char>| c.is_some_and(|c| c == ' ' || is_break(c));
        let edges = at_edge(text.chars().next()) || at_edge(before);
        let marred = space_break || special;
        Self {
            plain: !indicators && !edges && !break_space && !marred && !breaks,
            single: !break_space && !marred,
            block: before != Some(' ') && !marred,
        }
    }
}

/// Whether a plain text would not be taken for something else: a number, a time, a truth value or nothing.
fn reads_as_text(text: &str) -> bool {
    let words = [
        "", "~", "null", "Null", "NULL", "y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On",
        "ON", "n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF", ".nan", ".NaN",
        ".NAN", ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF",
    ];
    if words.contains(&text) {
        return false;
    }
    if !text.starts_with(|c: char| matches!(c, '+' | '-' | '.' | '0'..='9')) {
        return true;
    }
    let plain = if text.starts_with('.') { text.to_owned() } else { text.replace('_', "") };
    // what is too big for a number is none
    let number = FLOAT.is_match(&plain) && plain.parse::<f64>().is_ok_and(f64::is_finite);
    !(number || OTHER.is_match(text) || OTHER.is_match(&plain))
}

static FLOAT: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"));

/// Numbers of other bases (`1:30` is ninety in older YAML), dates and times.
static OTHER: LazyLock<Regex> = LazyLock::new(|| {
    let date = "[0-9]{4}-(0?[1-9]|1[0-2])-(0?[1-9]|[12][0-9]|3[01])";
    let time = r"([01]?[0-9]|2[0-3]):[0-5]?[0-9]:[0-5]?[0-9](\.[0-9]+)?";
    pattern(&format!(
        r"^([-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|[-+]?0([xX][0-9a-fA-F]{{1,16}}|[bB][01]{{1,64}}|[oO]?[0-7]{{1,21}})|{date}( {time}|[Tt]{time}(Z|[-+][0-9]{{2}}:[0-9]{{2}}))?)$"
    ))
});

#[allow(clippy::unwrap_used, reason = "the expressions are constants of this file, and its tests use each")]
fn pattern(text: &str) -> Regex {
    Regex::new(text).unwrap()
}

/// A number as Go prints it.
fn shown(number: &Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else { return number.to_string() };
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..6).contains(&exponent) {
        return float.to_string();
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs())
}

/// Letters come after the rest, and numbers within keys count.
fn natural(a: &str, b: &str) -> Ordering {
    let (x, y): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let Some(at) = x.iter().zip(&y).position(|(p, q)| p != q) else { return x.len().cmp(&y.len()) };
    let (p, q) = (x[at], y[at]);
    match (p.is_alphabetic(), q.is_alphabetic()) {
        (true, true) => return p.cmp(&q),
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        (false, false) => {}
    }
    let number = |text: &[char]| {
        let digits = text[at..].iter().map_while(|c| c.to_digit(10));
        // a zero counts where the number has begun before it
        let led = (p == '0' || q == '0')
            && text[..at].iter().rev().take_while(|c| c.is_ascii_digit()).any(|c| *c != '0');
        let count = digits.clone().count();
        (digits.fold(i64::from(led), |n, d| n.wrapping_mul(10).wrapping_add(i64::from(d))), count)
    };
    number(&x).cmp(&number(&y)).then(p.cmp(&q))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_is_folded_as_the_reference_folds_it() {
        let message = "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": "NotAcceptable", "code": 406});
        let wanted = "apiVersion: v1\ncode: 406\nkind: Status\nmessage: 'only the following media types are accepted: application/json;stream=watch,\n  application/vnd.kubernetes.protobuf;stream=watch'\nmetadata: {}\nreason: NotAcceptable\nstatus: Failure\n";
        assert_eq!(print(&status), wanted);
    }

    #[test]
    fn objects_look_as_people_know_them() {
        let object = json!({"metadata": {"name": "c", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {},
            "annotations": {"applied": "{\"a\":1}\n", "x": "a\nb", "y": "tab\there\n"},
            "managedFields": [{"fieldsV1": {"f:spec": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}}}}}]},
            "spec": {"containers": [{"args": ["-c", "--x", "- y", "1", "1.5", "0x1f", "1:30", "yes", "", " a", "# c", "a # b",
                "a: b", "it's", "*", "007", "1_000", "12e4567", "1e3", "~", "2026-01-02", "v1", "\u{1f600}"], "name": "c"}],
                "list": [[1, [2]], {"a": [true, null, 1.0, 1234567.5]}, []]}});
        expect![[r#"
            metadata:
              annotations:
                applied: |
                  {"a":1}
                x: |-
                  a
                  b
                "y": "tab\there\n"
              creationTimestamp: "2026-01-01T00:00:00Z"
              labels: {}
              managedFields:
              - fieldsV1:
                  f:spec:
                    k:{"name":"c"}:
                      .: {}
                      f:image: {}
              name: c
            spec:
              containers:
              - args:
                - -c
                - --x
                - '- y'
                - "1"
                - "1.5"
                - "0x1f"
                - "1:30"
                - "yes"
                - ""
                - ' a'
                - '# c'
                - 'a # b'
                - 'a: b'
                - it's
                - '*'
                - "007"
                - "1_000"
                - 12e4567
                - "1e3"
                - "~"
                - "2026-01-02"
                - v1
                - "\U0001F600"
                name: c
              list:
              - - 1
                - - 2
              - a:
                - true
                - null
                - 1
                - 1.2345675e+06
              - []
        "#]]
        .assert_eq(&print(&object));
    }

    #[test]
    fn long_texts_go_on_in_the_next_line() {
        let words = "word ".repeat(40);
        let texts = [words.trim().to_owned(), format!("a: {}", words.trim()), format!("\t{words} end")];
        let value = json!({"plain": texts[0], "single": {"x": [texts[1]]}, "double": texts[2],
            "k".repeat(130): 1, "long": "x".repeat(100)});
        expect![[r#"
            double: "\tword word word word word word word word word word word word word word word
              word word word word word word word word word word word word word word word word
              word word word word word word word word word  end"
            ? kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk
            : 1
            long: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
            plain: word word word word word word word word word word word word word word word
              word word word word word word word word word word word word word word word word
              word word word word word word word word word
            single:
              x:
              - 'a: word word word word word word word word word word word word word word word
                word word word word word word word word word word word word word word word word
                word word word word word word word word word'
        "#]].assert_eq(&print(&value));
        assert_eq!(crate::codec::parse_yaml(print(&value).as_bytes()).unwrap().0, value);
    }

    #[test]
    fn keys_are_sorted_as_people_count() {
        let keys = ["a10", "a2", "B", "a", "z", "1", "10", "2", ".", "a01", "a1"];
        let value: Value =
            keys.iter().map(|k| ((*k).to_owned(), json!(1))).collect::<serde_json::Map<_, _>>().into();
        let printed = print(&value);
        let shown: Vec<&str> = printed.lines().map(|l| l.trim_end_matches(": 1")).collect();
        expect![[r#". "1" "2" "10" B a a1 a01 a2 a10 z"#]].assert_eq(&shown.join(" "));
    }
}
