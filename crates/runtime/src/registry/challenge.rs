//! `WWW-Authenticate` (RFC 9110 §11.6.1): several challenges may stand in one header and in several.

use std::collections::BTreeMap;

use http::{HeaderMap, header};

/// One way to say who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// In lower case: `basic`, `bearer`.
    pub scheme: String,
    /// Names in lower case.
    pub parameters: BTreeMap<String, String>,
}

/// All challenges of an answer; what is malformed ends the reading of its header.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(parse).collect()
}

fn parse(text: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_whitespace() || c == '=' || c == ',').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start();
        if let Some(value) = after.strip_prefix('=') {
            let Some((value, left)) = value_of(value.trim_start()) else { break };
            // a parameter before any scheme means nothing
            if let Some(challenge) = found.last_mut() {
                challenge.parameters.insert(word.to_lowercase(), value);
            }
            rest = left;
        } else {
            if !word.is_empty() {
                found.push(Challenge { scheme: word.to_lowercase(), parameters: BTreeMap::new() });
            }
            rest = after;
        }
        rest = rest.trim_start_matches([',', ' ', '\t']);
    }
    found
}

/// A token or a quoted string, and what follows.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut escaped = false;
    for (at, character) in quoted.char_indices() {
        match character {
            _ if escaped => {
                value.push(character);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((value, &quoted[at + 1..])),
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_however_they_are_written() {
        let check = |text: &str, expected: &[(&str, &[(&str, &str)])]| {
            let found = parse(text);
            let found: Vec<(&str, Vec<(&str, &str)>)> = found
                .iter()
                .map(|c| {
                    (c.scheme.as_str(), c.parameters.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect())
                })
                .collect();
            let expected: Vec<(&str, Vec<(&str, &str)>)> =
                expected.iter().map(|(s, p)| (*s, p.to_vec())).collect();
            assert_eq!(found, expected, "{text}");
        };
        check(
            r#"Bearer realm="https://a/token",service="a.io",scope="repository:x/y:pull,push""#,
            &[(
                "bearer",
                &[("realm", "https://a/token"), ("scope", "repository:x/y:pull,push"), ("service", "a.io")],
            )],
        );
        check(r#"Basic realm="a \"b\", c""#, &[("basic", &[("realm", "a \"b\", c")])]);
        check(
            r#"Negotiate, Basic realm=x , Bearer realm = "y""#,
            &[("negotiate", &[]), ("basic", &[("realm", "x")]), ("bearer", &[("realm", "y")])],
        );
        check(r#"Bearer realm="open"#, &[("bearer", &[])]);
        check("=,=,", &[]);
        check("", &[]);
    }
}
