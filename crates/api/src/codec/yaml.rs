//! YAML in and out, by way of JSON trees, with limits against documents that are small and grow when read.

use serde_json::Value;
use serde_saphyr::{Budget, DuplicateKeyPolicy, Error, Options};

use super::DecodeError;

/// How deep a document may nest.
const MAX_DEPTH: usize = 128;
/// How many nodes a document may have, aliases followed. A 3 MiB request of the densest kind stays below.
const MAX_NODES: usize = 1_000_000;
/// How many aliases a document may have.
const MAX_ALIASES: usize = 1_000;
/// How many events aliases may repeat in all.
const MAX_REPEATED: usize = 100_000;

/// Documents that may nest deeper than this are read on a stack of their own: the parser takes kilobytes for a level.
const SHALLOW: usize = 48;
/// That stack.
const STACK: usize = 32 << 20;

/// Parses one YAML document (JSON is YAML). Also gives the duplicate keys, in the words of strict decoding; of those the
/// last value counts. An empty document is null.
pub fn parse_yaml(text: &[u8]) -> Result<(Value, Vec<String>), DecodeError> {
    let text =
        std::str::from_utf8(text).map_err(|_| DecodeError::Yaml("invalid leading UTF-8 octet".to_owned()))?;
    if text.trim().is_empty() {
        return Ok((Value::Null, Vec::new()));
    }
    if depth_at_most(text) <= SHALLOW {
        return parse(text);
    }
    let parsed = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || parse(text));
        thread.ok()?.join().ok()
    });
    parsed.unwrap_or_else(|| Err(DecodeError::Yaml("exceeded max depth".to_owned())))
}

/// No document of this text nests deeper: a level takes a bracket, or a column or an indicator at the begin of a line.
fn depth_at_most(text: &str) -> usize {
    let brackets = text.bytes().filter(|b| matches!(b, b'[' | b'{')).count();
    let indent =
        |line: &str| line.bytes().take_while(|b| matches!(b, b' ' | b'\t' | b'-' | b'?' | b':')).count();
    brackets + text.split(['\n', '\r']).map(indent).max().unwrap_or_default()
}

fn parse(text: &str) -> Result<(Value, Vec<String>), DecodeError> {
    match serde_saphyr::from_str_with_options(text, options(DuplicateKeyPolicy::Error)) {
        Ok(value) => Ok((value, Vec::new())),
        Err(error) => {
            let duplicate = duplicate_key(&error).ok_or_else(|| failure(&error))?;
            serde_saphyr::from_str_with_options(text, options(DuplicateKeyPolicy::LastWins))
                .map(|value| (value, vec![duplicate]))
                .map_err(|error| failure(&error))
        }
    }
}

/// Prints a tree as YAML.
pub fn encode_yaml(value: &Value) -> Vec<u8> {
    super::emitter::print(value).into_bytes()
}

fn options(duplicate_keys: DuplicateKeyPolicy) -> Options {
    let mut budget = Budget::default();
    budget.max_depth = MAX_DEPTH;
    budget.max_nodes = MAX_NODES;
    budget.max_events = 2 * MAX_NODES;
    budget.max_aliases = MAX_ALIASES;
    budget.max_documents = 1;
    budget.max_total_scalar_bytes = 64 << 20;
    let mut options = Options::default();
    options.budget = Some(budget);
    options.alias_limits.max_total_replayed_events = MAX_REPEATED;
    options.duplicate_keys = duplicate_keys;
    options.with_snippet = false;
    options
}

/// The error's text as clients know it: the place is said before, and only by its line where it is not the first.
fn failure(error: &Error) -> DecodeError {
    let text = error.to_string();
    let placed = text.rsplit_once(" at line ").and_then(|(what, place)| {
        let line: usize = place.split(',').next()?.trim().parse().ok()?;
        Some(if line > 1 { format!("line {line}: {what}") } else { what.to_owned() })
    });
    DecodeError::Yaml(placed.unwrap_or(text))
}

fn duplicate_key(error: &Error) -> Option<String> {
    let Error::DuplicateMappingKey { key, .. } = error.without_snippet() else { return None };
    let line = error.location().map_or(0, |location| location.line());
    let key = key.as_deref().unwrap_or_default();
    Some(format!("yaml: unmarshal errors:\n  line {line}: key {key:?} already set in map"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scalars_have_the_types_of_json() {
        let (value, _) = parse_yaml(b"a: 1\nb: 'x'\nc: [true, null, 1.5]\nd: {e: v1}\n").unwrap();
        assert_eq!(value, json!({"a": 1, "b": "x", "c": [true, null, 1.5], "d": {"e": "v1"}}));
        assert_eq!(parse_yaml(br#"{"a": "b"}"#).unwrap().0, json!({"a": "b"}));
    }

    #[test]
    fn the_deepest_document_needs_no_more_than_a_common_stack() {
        for (open, close) in [("- ", ""), ("[", "]"), ("{a: ", "}"), ("? ", "")] {
            let text = |n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
            assert!(depth_at_most(&text(100)) >= 100);
            let deep = parse_yaml(text(100).as_bytes());
            assert!(deep.is_ok() || open == "? ", "{open}: {deep:?}");
            assert!(parse_yaml(text(5_000).as_bytes()).is_err());
        }
        let lines: String = (0..100).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
        assert!(depth_at_most(&lines) >= 99 && parse_yaml(lines.as_bytes()).is_ok());
    }

    #[test]
    fn duplicate_keys_are_told_and_the_last_counts() {
        let (value, duplicates) = parse_yaml(b"data:\n  a: 'b'\n  a: 'c'\n").unwrap();
        assert_eq!(value, json!({"data": {"a": "c"}}));
        assert_eq!(duplicates, ["yaml: unmarshal errors:\n  line 3: key \"a\" already set in map"]);
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let below = format!("*a{}, ", level - 1).repeat(9);
            text += &format!("a{level}: &a{level} [{below}]\n");
        }
        assert!(parse_yaml(text.as_bytes()).is_err());
    }

    #[test]
    fn malformed_yaml_is_refused() {
        assert!(parse_yaml(b"a: b: c\n  - x").is_err());
        assert!(parse_yaml(b"\xff").is_err());
        assert_eq!(parse_yaml(b"").unwrap().0, Value::Null);
    }

    #[test]
    fn what_is_printed_reads_the_same() {
        let value = json!({"a": "1", "b": "true", "c": {"d": ["x: y", ""]}, "e": "line\nline", "n": null});
        assert_eq!(parse_yaml(&encode_yaml(&value)).unwrap().0, value);
    }
}
