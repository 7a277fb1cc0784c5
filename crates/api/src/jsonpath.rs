//! JSONPath as kubectl has it, for printer columns: `.spec.replicas`, `.metadata.labels.a\.b/c`, `.spec.ports[*].port`,
//! `.spec.list[-1:]`, `..name`, `['a','b']`, `.status.conditions[?(@.type=="Ready")].status`.
//!
//! Rule: Kubernetes documentation, "JSONPath Support". Keys that are missing give no result.

use std::cmp::Ordering;

use serde_json::Value;

/// A parsed path.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath(Vec<Step>);

/// Why a text is no path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A bracket, brace or quote is not closed.
    #[error("unterminated {0}")]
    Unterminated(&'static str),
    /// An index that is none.
    #[error("invalid array index {0}")]
    Index(String),
    /// A condition that is none.
    #[error("invalid filter {0}")]
    Filter(String),
    /// A character that begins nothing.
    #[error("unrecognized character in action: {0:?}")]
    Character(char),
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Wildcard,
    Recursive,
    /// From, to (exclusive) and step; negative positions count from the end.
    Slice(Option<i64>, Option<i64>, i64),
    Union(Vec<JsonPath>),
    Filter(Box<Filter>),
}

#[derive(Debug, Clone, PartialEq)]
struct Filter {
    left: Operand,
    /// The operator and its right side; without one, the left side must be there.
    right: Option<(Operator, Operand)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Path(JsonPath),
    Literal(Value),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl JsonPath {
    /// Parses a path, with or without the braces around it.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let text = text.trim();
        let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        Parser { text: inner }.path()
    }

    /// All values that it leads to, in their order.
    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        let mut values = vec![root];
        for step in &self.0 {
            values = values.into_iter().flat_map(|value| step.follow(value)).collect();
        }
        values
    }
}

impl Step {
    fn follow<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Step::Field(name) => value.get(name).into_iter().collect(),
            Step::Wildcard => children(value),
            Step::Recursive => {
                let mut found = Vec::new();
                descendants(value, &mut found);
                found
            }
            Step::Slice(from, to, step) => slice(value, *from, *to, *step),
            Step::Union(paths) => paths.iter().flat_map(|path| path.find(value)).collect(),
            Step::Filter(filter) => {
                let items = value.as_array().map_or(&[][..], Vec::as_slice);
                items.iter().filter(|item| filter.holds(item)).collect()
            }
        }
    }
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    }
}

fn descendants<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    found.push(value);
    for child in children(value) {
        descendants(child, found);
    }
}

fn slice(value: &Value, from: Option<i64>, to: Option<i64>, step: i64) -> Vec<&Value> {
    let Value::Array(items) = value else { return Vec::new() };
    let length = items.len() as i64;
    let at = |position: i64| if position < 0 { position + length } else { position };
    let (from, to) = (at(from.unwrap_or(0)), to.map_or(length, at));
    if from < 0 || from >= length || to > length || to <= from || step < 1 {
        return Vec::new();
    }
    items[from as usize..to as usize].iter().step_by(step as usize).collect()
}

impl Filter {
    fn holds(&self, item: &Value) -> bool {
        let left = self.left.value(item);
        let Some((operator, right)) = &self.right else { return left.is_some() };
        let (Some(left), Some(right)) = (left, right.value(item)) else { return false };
        match operator {
            Operator::Equal => is_equal(left, right),
            Operator::NotEqual => !is_equal(left, right),
            Operator::Less => compare(left, right).is_some_and(Ordering::is_lt),
            Operator::LessOrEqual => compare(left, right).is_some_and(Ordering::is_le),
            Operator::Greater => compare(left, right).is_some_and(Ordering::is_gt),
            Operator::GreaterOrEqual => compare(left, right).is_some_and(Ordering::is_ge),
        }
    }
}

impl Operand {
    fn value<'a>(&'a self, item: &'a Value) -> Option<&'a Value> {
        match self {
            Operand::Literal(value) => Some(value),
            Operand::Path(path) => path.find(item).into_iter().next(),
        }
    }
}

fn is_equal(a: &Value, b: &Value) -> bool {
    a == b || compare(a, b) == Some(Ordering::Equal)
}

fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

struct Parser<'a> {
    text: &'a str,
}

impl<'a> Parser<'a> {
    fn path(mut self) -> Result<JsonPath, PathError> {
        let mut steps = Vec::new();
        self.text = self.text.trim_start_matches(['$', '@']);
        while let Some(c) = self.text.chars().next() {
            match c {
                '.' if self.text.starts_with("..") => {
                    self.text = &self.text[2..];
                    steps.push(Step::Recursive);
                    if !self.text.starts_with('[') {
                        steps.push(self.field());
                    }
                }
                '.' => {
                    self.text = &self.text[1..];
                    if !self.text.is_empty() && !self.text.starts_with('[') {
                        steps.push(self.field());
                    }
                }
                '[' => steps.push(self.brackets()?),
                '*' => steps.push(self.field()),
                c if c.is_whitespace() => self.text = self.text.trim_start(),
                c if c.is_alphabetic() || c == '_' => steps.push(self.field()),
                c => return Err(PathError::Character(c)),
            }
        }
        Ok(JsonPath(steps))
    }

    /// A name up to the next delimiter; a backslash takes the meaning of what follows.
    fn field(&mut self) -> Step {
        let mut name = String::new();
        let mut chars = self.text.char_indices();
        let end = loop {
            match chars.next() {
                None => break self.text.len(),
                Some((_, '\\')) => name.extend(chars.next().map(|(_, c)| c)),
                Some((at, '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}')) => break at,
                Some((at, c)) if c.is_whitespace() => break at,
                Some((_, c)) => name.push(c),
            }
        };
        self.text = &self.text[end..];
        if name == "*" { Step::Wildcard } else { Step::Field(name) }
    }

    fn brackets(&mut self) -> Result<Step, PathError> {
        let inner = &self.text[1..];
        let end = closing(inner).ok_or(PathError::Unterminated("array"))?;
        self.text = &inner[end + 1..];
        let inner = inner[..end].trim();
        if let Some(condition) = inner.strip_prefix("?(") {
            let condition = condition.strip_suffix(')').ok_or(PathError::Unterminated("filter"))?;
            return filter(condition);
        }
        let parts = split(inner, ',');
        if parts.len() > 1 {
            let paths: Result<Vec<_>, _> =
                parts.into_iter().map(|part| Ok(JsonPath(vec![element(part.trim())?]))).collect();
            return Ok(Step::Union(paths?));
        }
        element(inner)
    }
}

/// Where the bracket closes that is open before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => {
                chars.next();
            }
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Splits at a character that stands outside of quotes.
fn split(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut quote = None;
    let mut start = 0;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, c) if c == separator => {
                parts.push(&text[start..at]);
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// What stands between brackets: a quoted name, `*`, an index or a slice.
fn element(text: &str) -> Result<Step, PathError> {
    if let Some(name) = unquote(text) {
        return Ok(Step::Field(name));
    }
    if text == "*" {
        return Ok(Step::Wildcard);
    }
    let wrong = || PathError::Index(text.to_owned());
    let numbers: Vec<Option<i64>> = text
        .split(':')
        .map(|part| match part.trim() {
            "" => Ok(None),
            digits => digits.parse().map(Some).map_err(|_| wrong()),
        })
        .collect::<Result<_, _>>()?;
    Ok(match numbers[..] {
        // The last item has no item after it.
        [Some(-1)] => Step::Slice(Some(-1), None, 1),
        [Some(n)] => Step::Slice(Some(n), Some(n + 1), 1),
        [from, to] => Step::Slice(from, to, 1),
        [from, to, step] => Step::Slice(from, to, step.unwrap_or(1)),
        _ => return Err(wrong()),
    })
}

fn unquote(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut name = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        name.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    Some(name)
}

fn filter(condition: &str) -> Result<Step, PathError> {
    const OPERATORS: [(&str, Operator); 6] = [
        ("==", Operator::Equal),
        ("!=", Operator::NotEqual),
        ("<=", Operator::LessOrEqual),
        (">=", Operator::GreaterOrEqual),
        ("<", Operator::Less),
        (">", Operator::Greater),
    ];
    let mut quote = None;
    for (at, c) in condition.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, _) => {
                let rest = &condition[at..];
                if let Some((text, operator)) = OPERATORS.iter().find(|(text, _)| rest.starts_with(text)) {
                    let (left, right) = (operand(&condition[..at])?, operand(&rest[text.len()..])?);
                    return Ok(Step::Filter(Box::new(Filter { left, right: Some((*operator, right)) })));
                }
            }
        }
    }
    Ok(Step::Filter(Box::new(Filter { left: operand(condition)?, right: None })))
}

fn operand(text: &str) -> Result<Operand, PathError> {
    let text = text.trim();
    if let Some(literal) = unquote(text) {
        return Ok(Operand::Literal(Value::String(literal)));
    }
    match text.chars().next() {
        Some('@' | '$' | '.' | '[') => Parser { text }.path().map(Operand::Path),
        // `true`, `false` and numbers.
        Some(_) => {
            serde_json::from_str(text).map(Operand::Literal).map_err(|_| PathError::Filter(text.to_owned()))
        }
        None => Err(PathError::Filter(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(path: &str) -> Value {
        let object = json!({
            "metadata": {"labels": {"a.b/c": "dotted"}, "name": "w"},
            "spec": {"n": 3, "list": [{"name": "x", "v": 1}, {"name": "y", "v": 2}, {"name": "z", "v": 3}]},
            "status": {"conditions": [
                {"type": "Ready", "status": "True"}, {"type": "Other ]", "status": "False", "ok": true}]},
        });
        JsonPath::parse(path).unwrap().find(&object).into_iter().cloned().collect()
    }

    #[test]
    fn paths_lead_where_kubectl_has_them_lead() {
        for (path, values) in [
            (".spec.n", json!([3])),
            ("{.spec.n}", json!([3])),
            ("$.spec.n", json!([3])),
            (".spec.nosuch.deeper", json!([])),
            (".metadata.labels.a\\.b/c", json!(["dotted"])),
            (".metadata.labels['a.b/c']", json!(["dotted"])),
            (".spec.list[1].name", json!(["y"])),
            (".spec.list[-1].name", json!(["z"])),
            (".spec.list[7].name", json!([])),
            (".spec.list[0:2].name", json!(["x", "y"])),
            (".spec.list[::2].name", json!(["x", "z"])),
            (".spec.list[*].v", json!([1, 2, 3])),
            (".spec.list[0,2].v", json!([1, 3])),
            (".metadata['name','labels']", json!(["w", {"a.b/c": "dotted"}])),
            ("..v", json!([1, 2, 3])),
            (".metadata.*", json!([{"a.b/c": "dotted"}, "w"])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type=='Other ]')].status", json!(["False"])),
            (".status.conditions[?(@.ok)].type", json!(["Other ]"])),
            (".status.conditions[?(@.ok==true)].type", json!(["Other ]"])),
            (".spec.list[?(@.v>=2)].name", json!(["y", "z"])),
            (".spec.list[?(@.v!=2)].name", json!(["x", "z"])),
        ] {
            assert_eq!(found(path), values, "{path}");
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for (path, error) in [
            (".spec.list[0", PathError::Unterminated("array")),
            (".spec.list[x]", PathError::Index("x".to_owned())),
            (".spec.list[?(@.v==)]", PathError::Filter(String::new())),
            ("#", PathError::Character('#')),
        ] {
            assert_eq!(JsonPath::parse(path), Err(error), "{path}");
        }
    }
}
