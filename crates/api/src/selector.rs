//! Label selectors (text form and object form) and field selectors.
//!
//! Grammar and rules: Kubernetes documentation, "Labels and Selectors" and "Field Selectors".

use std::collections::BTreeMap;

use serde_json::Value;

use crate::names;

/// What is wrong with a selector; the text goes to the client as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// How a requirement compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `key in (a,b)`, `key=a`, `key==a`.
    In,
    /// `key notin (a,b)`, `key!=a`: also true where the key is absent.
    NotIn,
    /// `key`.
    Exists,
    /// `!key`.
    DoesNotExist,
    /// `key>5`.
    Gt,
    /// `key<5`.
    Lt,
}

/// One requirement on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How it compares.
    pub operator: Operator,
    /// The values compared with; sorted.
    pub values: Vec<String>,
}

impl Requirement {
    /// Whether `labels` meet the requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let found = labels.get(&self.key);
        match self.operator {
            Operator::In => found.is_some_and(|v| self.values.contains(v)),
            Operator::NotIn => !found.is_some_and(|v| self.values.contains(v)),
            Operator::Exists => found.is_some(),
            Operator::DoesNotExist => found.is_none(),
            Operator::Gt | Operator::Lt => {
                let (Some(Ok(have)), Some(Ok(want))) =
                    (found.map(|v| v.parse::<i64>()), self.values.first().map(|v| v.parse::<i64>()))
                else {
                    return false;
                };
                if self.operator == Operator::Gt { have > want } else { have < want }
            }
        }
    }
}

/// A conjunction of requirements; empty matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// All of them must hold.
    pub requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// The selector that matches no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Whether every object matches.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether `labels` meet every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// Parses the text form, for example `app=web,tier in (a,b),!legacy`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { tokens: lex(text), at: 0 };
        let requirements = parser.requirements()?;
        Ok(Self { requirements, nothing: false })
    }

    /// From a map of equalities (`spec.selector` of a Service or ReplicationController).
    pub fn from_map(map: &BTreeMap<String, String>) -> Self {
        let requirements = map
            .iter()
            .map(|(k, v)| Requirement { key: k.clone(), operator: Operator::In, values: vec![v.clone()] })
            .collect();
        Self { requirements, nothing: false }
    }

    /// From the typed object form. An absent selector matches nothing, an empty one everything.
    pub fn from_typed(
        selector: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
    ) -> Result<Self, SelectorError> {
        let Some(selector) = selector else { return Ok(Self::nothing()) };
        let mut result = Self::from_map(selector.match_labels.as_ref().unwrap_or(&BTreeMap::new()));
        for expression in selector.match_expressions.iter().flatten() {
            result.requirements.push(Requirement {
                key: expression.key.clone(),
                operator: object_operator(&expression.operator)?,
                values: expression.values.clone().unwrap_or_default(),
            });
        }
        Ok(result)
    }

    /// From the JSON object form (`matchLabels`, `matchExpressions`).
    pub fn from_value(selector: &Value) -> Result<Self, SelectorError> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let mut result = Self::from_map(&crate::meta::string_map(&selector["matchLabels"]));
        for e in selector["matchExpressions"].as_array().into_iter().flatten() {
            result.requirements.push(Requirement {
                key: e["key"].as_str().unwrap_or_default().to_owned(),
                operator: object_operator(e["operator"].as_str().unwrap_or_default())?,
                values: e["values"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|v| v.as_str().map(str::to_owned))
                    .collect(),
            });
        }
        Ok(result)
    }
}

fn object_operator(name: &str) -> Result<Operator, SelectorError> {
    Ok(match name {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => return Err(SelectorError(format!("{other:?} is not a valid label selector operator"))),
    })
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    In,
    NotIn,
    Eq,
    DoubleEq,
    NotEq,
    Gt,
    Lt,
    Not,
    Comma,
    Open,
    Close,
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Word(w) => w,
            Token::In => "in",
            Token::NotIn => "notin",
            Token::Eq => "=",
            Token::DoubleEq => "==",
            Token::NotEq => "!=",
            Token::Gt => ">",
            Token::Lt => "<",
            Token::Not => "!",
            Token::Comma => ",",
            Token::Open => "(",
            Token::Close => ")",
            Token::End => "",
        }
    }
}

fn lex(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        let special = |c: char| matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<');
        if c.is_whitespace() {
            chars.next();
        } else if special(c) {
            chars.next();
            let next_is_eq = chars.peek() == Some(&'=');
            tokens.push(match c {
                '=' if next_is_eq => Token::DoubleEq,
                '=' => Token::Eq,
                '!' if next_is_eq => Token::NotEq,
                '!' => Token::Not,
                '(' => Token::Open,
                ')' => Token::Close,
                ',' => Token::Comma,
                '>' => Token::Gt,
                _ => Token::Lt,
            });
            if next_is_eq && matches!(c, '=' | '!') {
                chars.next();
            }
        } else {
            let mut word = String::new();
            while let Some(&c) = chars.peek()
                && !special(c)
                && !c.is_whitespace()
            {
                word.push(c);
                chars.next();
            }
            tokens.push(match word.as_str() {
                "in" => Token::In,
                "notin" => Token::NotIn,
                _ => Token::Word(word),
            });
        }
    }
    tokens.push(Token::End);
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    /// A word where keywords count as words too (`in` is a fine key or value).
    fn word(&mut self) -> Option<String> {
        let word = match self.peek() {
            Token::Word(w) => w.clone(),
            Token::In => "in".to_owned(),
            Token::NotIn => "notin".to_owned(),
            _ => return None,
        };
        self.at += 1;
        Some(word)
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut list = Vec::new();
        if *self.peek() == Token::End {
            return Ok(list);
        }
        loop {
            match self.peek() {
                Token::Word(_) | Token::In | Token::NotIn | Token::Not => {
                    list.push(self.requirement()?);
                    match self.next() {
                        Token::End => break,
                        Token::Comma => match self.peek() {
                            Token::Word(_) | Token::In | Token::NotIn | Token::Not => {}
                            other => {
                                return Err(SelectorError(format!(
                                    "found '{}', expected: identifier after ','",
                                    other.text()
                                )));
                            }
                        },
                        other => {
                            return Err(SelectorError(format!(
                                "found '{}', expected: ',' or 'end of string'",
                                other.text()
                            )));
                        }
                    }
                }
                Token::End => break,
                other => {
                    return Err(SelectorError(format!(
                        "found '{}', expected: !, identifier, or 'end of string'",
                        other.text()
                    )));
                }
            }
        }
        list.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(list)
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let negated = *self.peek() == Token::Not;
        if negated {
            self.at += 1;
        }
        let key = self
            .word()
            .ok_or_else(|| SelectorError(format!("found '{}', expected: identifier", self.peek().text())))?;
        if let Some(why) = names::qualified_name(&key).into_iter().next() {
            return Err(SelectorError(format!("key: Invalid value: {key:?}: {why}")));
        }
        if negated || matches!(self.peek(), Token::End | Token::Comma) {
            let operator = if negated { Operator::DoesNotExist } else { Operator::Exists };
            return Ok(Requirement { key, operator, values: Vec::new() });
        }
        let (operator, many) = match self.next() {
            Token::In => (Operator::In, true),
            Token::NotIn => (Operator::NotIn, true),
            Token::Eq | Token::DoubleEq => (Operator::In, false),
            Token::NotEq => (Operator::NotIn, false),
            Token::Gt => (Operator::Gt, false),
            Token::Lt => (Operator::Lt, false),
            other => {
                return Err(SelectorError(format!(
                    "found '{}', expected: in, notin, =, ==, !=, gt, lt",
                    other.text()
                )));
            }
        };
        let values = if many { self.value_list()? } else { vec![self.word().unwrap_or_default()] };
        for value in &values {
            if let Some(why) = names::label_value(value).into_iter().next() {
                return Err(SelectorError(format!("values[0][{key}]: Invalid value: {value:?}: {why}")));
            }
            if matches!(operator, Operator::Gt | Operator::Lt) && value.parse::<i64>().is_err() {
                return Err(SelectorError(format!(
                    "values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                )));
            }
        }
        Ok(Requirement { key, operator, values })
    }

    fn value_list(&mut self) -> Result<Vec<String>, SelectorError> {
        match self.next() {
            Token::Open => {}
            other => return Err(SelectorError(format!("found '{}' expected: '('", other.text()))),
        }
        let mut values = Vec::new();
        loop {
            let word = self.word();
            let expected = if word.is_some() { "',' or ')'" } else { "',', ')' or identifier" };
            values.push(word.unwrap_or_default());
            match self.next() {
                Token::Comma => {}
                Token::Close => break,
                other => {
                    return Err(SelectorError(format!("found '{}', expected: {expected}", other.text())));
                }
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

/// A conjunction of field comparisons, for example `spec.nodeName=a,status.phase!=Failed`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// (field, value, equal?)
    pub terms: Vec<(String, String, bool)>,
}

impl FieldSelector {
    /// Parses the text form. `\,`, `\=` and `\\` are escapes in values.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let invalid = || SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'"));
            let at = term.find(['=', '!']).ok_or_else(invalid)?;
            let (field, rest) = term.split_at(at);
            let (value, equal) = if let Some(value) = rest.strip_prefix("!=") {
                (value, false)
            } else if let Some(value) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
                (value, true)
            } else {
                return Err(invalid());
            };
            terms.push((field.to_owned(), unescape(value)?, equal));
        }
        Ok(Self { terms })
    }

    /// Whether every object matches.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether an object matches whose fields `get` reads (absent fields compare as the empty string).
    pub fn matches(&self, get: impl Fn(&str) -> String) -> bool {
        self.terms.iter().all(|(field, value, equal)| (get(field) == *value) == *equal)
    }

    /// The value that `field` must equal, where the selector says so.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|(f, _, equal)| f == field && *equal).map(|(_, v, _)| v.as_str())
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let (mut out, mut chars) = (String::with_capacity(value.len()), value.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => {
                    return Err(SelectorError(format!(
                        "invalid field selector: invalid escape sequence: \\{c}"
                    )));
                }
                None => {
                    return Err(SelectorError(
                        "invalid field selector: unterminated escape sequence".to_owned(),
                    ));
                }
            },
            ',' | '=' => {
                return Err(SelectorError(format!(
                    "invalid field selector: unescaped character in value: {c}"
                )));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[track_caller]
    fn check(selector: &str, pairs: &[(&str, &str)], expected: bool) {
        assert_eq!(LabelSelector::parse(selector).map(|s| s.matches(&labels(pairs))), Ok(expected));
    }

    #[test]
    fn label_selectors_match_as_documented() {
        check("env in (test,dev)", &[("env", "dev")], true);
        check("env in (test,dev)", &[("env", "prod")], false);
        check("env notin (prod)", &[], true);
        check("env!=prod,app", &[("app", "")], true);
        check("!env", &[("env", "x")], false);
        check("cpu>3", &[("cpu", "4")], true);
        check("in=notin", &[("in", "notin")], true);
        check("", &[], true);
    }

    #[test]
    fn broken_label_selectors_say_what_was_expected() {
        let text = |s: &str| LabelSelector::parse(s).unwrap_err().0;
        assert_eq!(text("a in b"), "found 'b' expected: '('");
        assert_eq!(text("a,"), "found '', expected: identifier after ','");
        assert_eq!(text("=a"), "found '=', expected: !, identifier, or 'end of string'");
    }

    #[test]
    fn field_selectors_unescape_values() {
        let parsed = FieldSelector::parse(r"metadata.name=a\,b,spec.x!=c").unwrap();
        assert_eq!(parsed.required("metadata.name"), Some("a,b"));
        assert!(parsed.matches(|f| if f == "metadata.name" { "a,b".into() } else { String::new() }));
        assert!(FieldSelector::parse("nonsense").is_err());
    }
}
