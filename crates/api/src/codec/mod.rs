//! Codecs: what comes over the wire becomes a JSON tree that fits its schema, and back.
//!
//! Decoding is one pass over the text, driven by the [`Shape`] of the type: fields that the schema lacks are dropped and
//! reported, as are duplicates; values of the wrong type are refused in the words clients know; and the tree is
//! brought into the form the API prints:
//!
//! * quantities are canonical (`0.25` is `250m`), times are UTC, bytes are plain base64;
//! * `null` means not set, except below fields without a schema; a null map value is the zero value;
//! * a field whose zero is the same as not set ([`Presence::Plain`]) is left out when zero;
//! * a field that is always printed ([`Presence::Always`]) is put in where it is missing: `""`, 0, false, `{}` with the
//!   fields that are always there, and null for lists, maps and times.
//!
//! So two trees of equal meaning are equal, whatever the client sent, and what is stored is what is printed.
//!
//! YAML and protobuf go through JSON trees; protobuf is driven by the same [`Shape`] and the tags of
//! [`Field`](crate::schema::Field). CBOR is turned into JSON at the edge.
//!
//! Deviation: JSON may nest 127 deep, not 10 000: every reader of a tree goes as deep. No built-in type comes near.

mod cbor;
mod decode;
mod emitter;
mod protobuf;
mod scalar;
mod syntax;
mod yaml;

use serde_json::Value;

#[cfg(doc)]
use crate::schema::Presence;
use crate::schema::Shape;

pub use cbor::{encode_cbor, encode_cbor_event, parse_cbor};
pub use protobuf::{Envelope, decode_protobuf, encode_protobuf, encode_watch_event, has_messages, shape_of};
pub use yaml::{encode_yaml, parse_yaml};

/// A decoded object.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The tree, in the API's printed form.
    pub value: Value,
    /// What strict decoding refuses, in the order of the text, at most 100: `unknown field "spec.x"`,
    /// `duplicate field "data.a"`. Lenient decoding dropped the former and took the last of the latter.
    pub strict: Vec<String>,
}

/// Why bytes cannot be decoded. All are the client's fault (400).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON. The text is what the API's clients know, without its prefixes.
    #[error("{0}")]
    Syntax(String),
    /// Not YAML, or over the limits on depth, size and aliases.
    #[error("yaml: {0}")]
    Yaml(String),
    /// Not protobuf, or not the messages of the type.
    #[error("{0}")]
    Protobuf(String),
    /// Not CBOR, or not the part of it that objects are made of.
    #[error("cbor: {0}")]
    Cbor(String),
    /// A value of the wrong type, or one that does not parse (quantities, times, base64).
    #[error("{0}")]
    Mismatch(String),
}

/// Decodes a JSON object of a shape.
pub fn decode_json(bytes: &[u8], shape: Shape<'_>) -> Result<Decoded, DecodeError> {
    match decode::from_slice(bytes, shape) {
        // Invalid UTF-8 is taken, as U+FFFD.
        Err(DecodeError::Syntax(message)) => match std::str::from_utf8(bytes) {
            Ok(_) => Err(DecodeError::Syntax(message)),
            Err(_) => decode::from_slice(String::from_utf8_lossy(bytes).as_bytes(), shape),
        },
        other => other,
    }
}

/// Brings a tree into the form that [`decode_json`] gives: for results of patches and for YAML.
pub fn decode_value(value: Value, shape: Shape<'_>) -> Result<Decoded, DecodeError> {
    decode::from_value(value, shape)
}

/// Decodes a YAML (or JSON) document of a shape.
pub fn decode_yaml(text: &[u8], shape: Shape<'_>) -> Result<Decoded, DecodeError> {
    let (value, mut duplicates) = parse_yaml(text)?;
    let mut decoded = decode_value(value, shape)?;
    duplicates.append(&mut decoded.strict);
    Ok(Decoded { value: decoded.value, strict: duplicates })
}

/// Parses JSON without a schema, with the error texts of [`decode_json`]; for patches.
pub fn parse_json(bytes: &[u8]) -> Result<Value, DecodeError> {
    serde_json::from_slice(bytes).or_else(|error| {
        serde_json::from_slice(String::from_utf8_lossy(bytes).as_bytes())
            .map_err(|_| DecodeError::Syntax(explain_syntax(bytes, &error)))
    })
}

/// Prints a tree compactly.
pub fn encode_json(value: &Value) -> Vec<u8> {
    // Printing a tree into memory cannot fail: keys are strings and there is no I/O.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Why bytes are no JSON.
fn explain_syntax(bytes: &[u8], error: &serde_json::Error) -> String {
    syntax::explain(bytes).unwrap_or_else(|| match error.to_string() {
        text if text.contains("recursion limit") => "exceeded max depth".to_owned(),
        text => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use serde_json::json;

    fn kind(name: &str) -> Shape<'static> {
        let kind = crate::kinds::all().iter().find(|k| k.kind == name).unwrap();
        schema::root(&kind.type_name)
    }

    fn decode(name: &str, value: Value) -> Value {
        decode_json(value.to_string().as_bytes(), kind(name)).unwrap().value
    }

    fn refused(name: &str, text: &str) -> String {
        decode_json(text.as_bytes(), kind(name)).unwrap_err().to_string()
    }

    #[test]
    fn unknown_and_duplicate_fields_are_named_with_their_path() {
        let text = r#"{"metadata":{"name":"p","nosuch":1},"spec":{"containers":[{"name":"a","foo":1,
            "ports":[{"containerPort":80,"bar":{"x":1}}]}]},"spec2":2,"metadata":{"labels":{"a":"1","a":"2"}}}"#;
        let decoded = decode_json(text.as_bytes(), kind("Pod")).unwrap();
        assert_eq!(
            decoded.strict,
            [
                "unknown field \"metadata.nosuch\"",
                "unknown field \"spec.containers[0].foo\"",
                "unknown field \"spec.containers[0].ports[0].bar\"",
                "unknown field \"spec2\"",
                "duplicate field \"metadata\"",
                "duplicate field \"metadata.labels.a\"",
            ]
        );
        assert_eq!(decoded.value["metadata"]["labels"]["a"], "2");
        assert!(decoded.value.get("spec2").is_none());
    }

    #[test]
    fn wrong_types_are_refused_in_known_words() {
        for (name, text, message) in [
            (
                "Deployment",
                r#"{"spec":{"replicas":1.5}}"#,
                "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                "ConfigMap",
                r#"{"data":"x"}"#,
                "json: cannot unmarshal string into Go struct field ConfigMap.data of type map[string]string",
            ),
            (
                "ConfigMap",
                r#"{"data":{"a":1}}"#,
                "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
            ),
            (
                "Pod",
                r#"{"spec":{"activeDeadlineSeconds":"5"}}"#,
                "json: cannot unmarshal string into Go struct field PodSpec.spec.activeDeadlineSeconds of type int64",
            ),
            (
                "Pod",
                r#"{"spec":{"containers":[{"livenessProbe":{"tcpSocket":{"port":true}}}]}}"#,
                "json: cannot unmarshal bool into Go struct field TCPSocketAction.spec.containers.livenessProbe.ProbeHandler.tcpSocket.port of type int32",
            ),
            (
                "PriorityClass",
                r#"{"value":3000000000}"#,
                "json: cannot unmarshal number 3000000000 into Go struct field PriorityClass.value of type int32",
            ),
            (
                "Pod",
                r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"1x"}}}]}}"#,
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            ("Secret", r#"{"data":{"a":"b%"}}"#, "illegal base64 data at input byte 1"),
            ("Pod", r#"{"spec":"#, "unexpected end of JSON input"),
            ("Pod", r#"[]"#, "json: cannot unmarshal array into Go value of type v1.Pod"),
        ] {
            assert_eq!(refused(name, text), message);
        }
    }

    #[test]
    fn decoded_objects_are_in_the_printed_form() {
        let value = decode(
            "Pod",
            json!({"metadata": {"name": "p", "labels": null, "creationTimestamp": null}, "spec": {"hostNetwork": false, "nodeName": "",
                "priority": 0, "volumes": [], "containers": [{"name": "c", "image": "", "env": [{"name": "A", "value": ""}],
                "resources": {"requests": {"cpu": 0.25, "memory": "1024Mi"}}}]}}),
        );
        expect_test::expect![[r#"{"metadata":{"name":"p"},"spec":{"containers":[{"env":[{"name":"A"}],"name":"c","resources":{"requests":{"cpu":"250m","memory":"1Gi"}}}],"priority":0},"status":{}}"#]]
            .assert_eq(&value.to_string());
    }

    #[test]
    fn fields_that_are_always_printed_are_put_in() {
        expect_test::expect![[r#"{"metadata":{},"rules":null}"#]]
            .assert_eq(&decode("Role", json!({})).to_string());
        expect_test::expect![[r#"{"metadata":{},"spec":{"jobTemplate":{"metadata":{},"spec":{"template":{"metadata":{},"spec":{"containers":null}}}},"schedule":""},"status":{}}"#]]
            .assert_eq(&decode("CronJob", json!({})).to_string());
    }

    #[test]
    fn a_null_map_value_is_the_zero_value() {
        assert_eq!(decode("ConfigMap", json!({"data": {"a": null}}))["data"], json!({"a": ""}));
    }

    #[test]
    fn decoding_twice_changes_nothing() {
        for kind in crate::kinds::all() {
            let shape = schema::root(&kind.type_name);
            let once = decode_value(json!({}), shape).unwrap();
            let twice = decode_value(once.value.clone(), shape).unwrap();
            assert_eq!(once, twice, "{}", kind.kind);
        }
    }

    #[test]
    fn raw_json_is_kept_whole() {
        let data = json!({"a": null, "b": [1, {"c": {}}], "d": "", "e": 1.5});
        assert_eq!(decode("ControllerRevision", json!({"data": data}))["data"], data);
    }

    #[test]
    fn invalid_utf8_becomes_the_replacement_character() {
        let text = b"{\"data\":{\"a\":\"\xff\"}}";
        assert_eq!(decode_json(text, kind("ConfigMap")).unwrap().value["data"]["a"], "\u{fffd}");
    }

    #[test]
    fn deep_nesting_is_refused() {
        let text = format!("{{\"data\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
        assert_eq!(refused("ControllerRevision", &text), "exceeded max depth");
        let text = format!("{{\"data\":{}{}}}", "[".repeat(2_000), "]".repeat(2_000));
        assert_eq!(refused("ControllerRevision", &text), "exceeded max depth");
    }
}
