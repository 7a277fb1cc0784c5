//! Paths to fields in a schema: `.spec.replicas`, `.spec.labels['a.b']`. Selectable fields and the `fieldPath` of rules are
//! such paths.

use super::Node;

/// A step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A property.
    Field(String),
    /// A key of a map.
    Key(String),
}

/// Follows a path through a schema: the steps, and the schema of what it ends at (none below
/// `additionalProperties: true`). The error is what the reference says of a bad path. Brackets are refused
/// without `with_brackets`.
pub fn resolve<'a>(
    node: &'a Node,
    path: &str,
    with_brackets: bool,
) -> Result<(Vec<Step>, Option<&'a Node>), String> {
    let mut at = Some(node);
    let mut steps = Vec::new();
    let mut tokens = Tokens(path);
    while let Some(token) = tokens.next() {
        let end = || "unexpected end of JSON path".to_owned();
        match token {
            "." => step(&mut at, &mut steps, tokens.next().ok_or_else(end)?.to_owned())?,
            "[" if !with_brackets => return Err("array notation is not allowed".to_owned()),
            "[" => {
                let quoted = tokens.next().ok_or_else(end)?;
                let inner = quoted.strip_prefix('\'').and_then(|q| q.strip_suffix('\''));
                let Some(inner) = inner else {
                    return Err(format!("expected single quoted string but got {quoted}"));
                };
                step(&mut at, &mut steps, unescape(inner)?)?;
                match tokens.next().ok_or_else(end)? {
                    "]" => {}
                    other => return Err(format!("expected ] but got {other}")),
                }
            }
            other => return Err(format!("expected [ or . but got: {other}")),
        }
    }
    Ok((steps, at))
}

fn step(at: &mut Option<&Node>, steps: &mut Vec<Step>, name: String) -> Result<(), String> {
    let nowhere = || "does not refer to a valid field".to_owned();
    let node = at.ok_or_else(nowhere)?;
    if !node.properties.is_empty() {
        *at = Some(node.properties.get(&name).ok_or_else(nowhere)?);
        steps.push(Step::Field(name));
    } else if node.additional.is_some() {
        *at = node.additional_schema();
        steps.push(Step::Key(name));
    } else {
        return Err(nowhere());
    }
    Ok(())
}

/// `.`, `[`, `]`, texts in single quotes, and what stands between those.
struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let bytes = self.0.as_bytes();
        let end = match bytes.first()? {
            b'\'' => (1..bytes.len())
                .find(|n| bytes[*n] == b'\'' && bytes[n - 1] != b'\\')
                .map_or(bytes.len(), |n| n + 1),
            b'.' | b'[' | b']' => 1,
            _ => bytes.iter().position(|b| matches!(b, b'.' | b'[' | b']')).unwrap_or(bytes.len()),
        };
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(token)
    }
}

fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next() {
            Some('a') => '\x07',
            Some('b') => '\x08',
            Some('f') => '\x0c',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\x0b',
            Some(c @ ('\'' | '\\')) => c,
            Some(c) => return Err(format!("invalid string literal: invalid escape char \\{c}")),
            None => '\\',
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_to_fields_or_say_why_not() {
        let node =
            Node::parse(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
                "n": {"type": "integer"},
                "m": {"type": "object", "additionalProperties": {"type": "string"}},
            }}}}))
            .unwrap();
        let ty =
            |path| resolve(&node, path, true).map(|(_, at)| at.map(|n| n.ty.clone()).unwrap_or_default());
        assert_eq!(ty(".spec.n"), Ok("integer".to_owned()));
        assert_eq!(ty(".spec['m']['a.b']"), Ok("string".to_owned()));
        for (path, why) in [
            (".spec.zz", "does not refer to a valid field"),
            (".spec.n.x", "does not refer to a valid field"),
            ("spec.n", "expected [ or . but got: spec"),
            (".spec.", "unexpected end of JSON path"),
            (".spec[n]", "expected single quoted string but got n"),
            (".spec['n'", "unexpected end of JSON path"),
            (".spec['\\q']", "invalid string literal: invalid escape char \\q"),
        ] {
            assert_eq!(ty(path), Err(why.to_owned()), "{path}");
        }
        assert_eq!(resolve(&node, "['spec']", false).unwrap_err(), "array notation is not allowed");
    }
}
