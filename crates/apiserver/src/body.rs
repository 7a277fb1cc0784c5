//! Request bodies: media type, decoding against the kind's schema, and what strictness makes of surprises.

use api::codec::{self, DecodeError, Decoded, Envelope};
use api::field::{ErrorList, is_printable};
use api::kinds::Kind;
use api::meta;
use api::schema::Shape;
use http::{HeaderMap, HeaderValue, Response, header};
use serde_json::{Value, json};

use crate::negotiate::{self, Format};
use crate::request_info::Query;
use crate::status::{ApiError, ApiResult};

/// What to do about unknown and duplicate fields (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validation {
    /// Drop them silently.
    Ignore,
    /// Drop them and say so in `Warning` headers.
    Warn,
    /// Refuse the request.
    Strict,
}

/// The options of a write, from its query.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Nothing is stored.
    pub dry_run: bool,
    /// Who owns the fields written; empty where neither query nor user agent names one.
    pub manager: String,
    /// What to do about unknown and duplicate fields.
    pub validation: Validation,
    /// `fieldManager` and `fieldValidation` as the query gave them; empty where it did not.
    given: (String, String),
}

/// Longest name of a field manager.
const MANAGER: usize = 128;

impl WriteOptions {
    /// Reads and checks the query of a write; `kind` is `CreateOptions`, `UpdateOptions` or `PatchOptions`.
    pub fn parse(kind: &str, query: &Query, headers: &HeaderMap) -> ApiResult<Self> {
        let mut errors = ErrorList::default();
        let manager = query.get("fieldManager");
        if manager.len() > MANAGER {
            errors.too_long("fieldManager", MANAGER);
        }
        for (at, c) in manager.char_indices().filter(|(_, c)| !is_printable(*c)) {
            let why = format!("invalid character U+{:04X} (at position {at})", c as u32);
            errors.invalid("fieldManager", &json!(manager), &why);
        }
        let dry: Vec<&str> = query.all("dryRun").collect();
        check_dry_run(&dry, &mut errors);
        let validation = match query.get("fieldValidation") {
            "" | "Warn" => Validation::Warn,
            "Ignore" => Validation::Ignore,
            "Strict" => Validation::Strict,
            other => {
                errors.not_supported("fieldValidation", &json!(other), &["", "Ignore", "Strict", "Warn"]);
                Validation::Warn
            }
        };
        if !errors.is_empty() {
            return Err(ApiError::invalid_named("meta.k8s.io", kind, "", &errors));
        }
        let agent = || {
            let text = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("unknown");
            text.split('/').next().unwrap_or(text).chars().take(MANAGER).collect()
        };
        let given = (manager.to_owned(), query.get("fieldValidation").to_owned());
        let manager = if manager.is_empty() { agent() } else { manager.to_owned() };
        Ok(Self { dry_run: !dry.is_empty(), manager, validation, given })
    }

    /// As webhooks and policies see them, without their type.
    pub fn to_value(&self) -> Value {
        let mut value = json!({});
        if self.dry_run {
            value["dryRun"] = json!(["All"]);
        }
        for (key, text) in [("fieldManager", &self.given.0), ("fieldValidation", &self.given.1)] {
            if !text.is_empty() {
                value[key] = json!(text);
            }
        }
        value
    }
}

/// Refuses ways of a dry run that there are not.
pub fn check_dry_run(asked: &[&str], errors: &mut ErrorList) {
    if asked.iter().any(|way| *way != "All") {
        errors.not_supported("dryRun", &json!(asked), &["All"]);
    }
}

/// The media types of bodies, as a 415 lists them.
pub const TAKEN: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// The media type of a body, without parameters.
pub fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// How a body is written; refuses what is none of [`TAKEN`].
pub fn format(headers: &HeaderMap) -> ApiResult<Format> {
    match media_type(headers).as_str() {
        "" | "application/json" => Ok(Format::Json),
        "application/yaml" => Ok(Format::Yaml),
        negotiate::PROTOBUF => Ok(Format::Protobuf),
        _ => Err(ApiError::unsupported_media_type(TAKEN)),
    }
}

/// Decodes a body of a shape, whatever it says its type is.
pub fn decode_as(headers: &HeaderMap, body: &[u8], shape: Shape<'_>) -> ApiResult<Decoded> {
    let decoded = match format(headers)? {
        Format::Json => codec::decode_json(body, shape),
        Format::Yaml => codec::decode_yaml(body, shape),
        Format::Protobuf => codec::decode_protobuf(body, shape),
    };
    decoded.map_err(|e| ApiError::bad_request(e.to_string()))
}

/// The first bytes of a body, as error texts quote them.
fn excerpt(body: &[u8]) -> String {
    let head = &body[..body.len().min(30)];
    let text = match body.first() {
        None => return "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(head).into_owned(),
        Some(_) => head.iter().map(|b| format!("{b:02x}")).collect(),
    };
    if body.len() > 30 { format!("{text} ...") } else { text }
}

/// Decodes the body of a create or update; texts for `Warning` headers are appended to `warnings`.
pub fn decode(
    kind: &Kind,
    headers: &HeaderMap,
    body: &[u8],
    validation: Validation,
    warnings: &mut Vec<String>,
) -> ApiResult<Value> {
    let format = format(headers)?;
    let shape = kind.body_shape();
    let decoded = match format {
        Format::Json => codec::decode_json(body, shape),
        Format::Yaml => codec::decode_yaml(body, shape),
        Format::Protobuf => protobuf(kind, body, shape)?,
    };
    let decoded = match decoded {
        Ok(decoded) => decoded,
        // a null body is an empty object: it fails for its missing name
        Err(_) if body.trim_ascii() == b"null" => {
            Decoded { value: json!({"metadata": {}}), strict: Vec::new() }
        }
        Err(DecodeError::Mismatch(why))
            if format == Format::Json && body.trim_ascii().first().is_some_and(|b| *b != b'{') =>
        {
            // no object at all: not even its type can be read
            const TARGET: &str = "struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }";
            let what = why.split(" into Go value").next().unwrap_or(&why);
            let why =
                format!("couldn't get version/kind; json parse error: {what} into Go value of type {TARGET}");
            return Err(unrecognized(&kind.kind, &why, body));
        }
        Err(DecodeError::Mismatch(why)) => {
            let found = codec::parse_json(body).ok();
            let head = found.as_ref().filter(|v| v.is_object());
            check_type(kind, head.unwrap_or(&Value::Null), body)?;
            return Err(cannot_be_handled(kind, &why));
        }
        Err(DecodeError::Syntax(why)) => {
            return Err(unrecognized(
                &kind.kind,
                &format!("couldn't get version/kind; json parse error: {why}"),
                body,
            ));
        }
        Err(other) => return Err(unrecognized(&kind.kind, &other.to_string(), body)),
    };
    check_type(kind, &decoded.value, body)?;
    let decoded = conform(kind, decoded);
    surprises(kind, decoded.strict, validation, warnings)?;
    let mut value = decoded.value;
    value["apiVersion"] = json!(kind.api_version());
    value["kind"] = json!(kind.kind);
    Ok(value)
}

/// Takes out of a decoded custom resource what its schema does not know, which then counts as unknown.
pub fn conform(kind: &Kind, mut decoded: Decoded) -> Decoded {
    if let Some(definition) = &kind.definition {
        api::custom::normalise_numbers(&mut decoded.value);
        // duplicates are told before what is unknown
        decoded.strict.sort_by_key(|found| !found.starts_with("duplicate"));
        let pruned = definition.own().schema.prune(&mut decoded.value);
        decoded.strict.extend(pruned.iter().map(|path| format!("unknown field {path:?}")));
    }
    decoded
}

/// Decodes a message once its envelope shows that it is of the kind: another kind's message would be nonsense.
fn protobuf(kind: &Kind, body: &[u8], shape: Shape<'_>) -> ApiResult<Result<Decoded, DecodeError>> {
    let envelope = Envelope::open(body).map_err(|e| unrecognized(&kind.kind, &e.to_string(), body))?;
    check_type(kind, &json!({"apiVersion": envelope.api_version, "kind": envelope.kind}), body)?;
    Ok(Ok(envelope.decode(shape).map_err(|e| cannot_be_handled(kind, &e.to_string()))?))
}

/// Warns of, or refuses, unknown and duplicate fields.
pub fn surprises(
    kind: &Kind,
    found: Vec<String>,
    validation: Validation,
    warnings: &mut Vec<String>,
) -> ApiResult<()> {
    match validation {
        _ if found.is_empty() => Ok(()),
        Validation::Ignore => Ok(()),
        Validation::Warn => {
            warnings.extend(found);
            Ok(())
        }
        Validation::Strict => {
            Err(cannot_be_handled(kind, &format!("strict decoding error: {}", found.join(", "))))
        }
    }
}

fn cannot_be_handled(kind: &Kind, why: &str) -> ApiError {
    ApiError::bad_request(format!(
        "{0} in version {1:?} cannot be handled as a {0}: {why}",
        kind.kind, kind.version
    ))
}

/// 400 for a body that is no object of a kind.
pub fn unrecognized(kind: &str, why: &str, body: &[u8]) -> ApiError {
    let shown = excerpt(body);
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({shown})"
    ))
}

/// Refuses an object that says it is of another type; one that says nothing is taken.
fn check_type(kind: &Kind, value: &Value, body: &[u8]) -> ApiResult<()> {
    let (version, name) =
        (value["apiVersion"].as_str().unwrap_or_default(), value["kind"].as_str().unwrap_or_default());
    if version.matches('/').count() > 1 {
        return Err(unrecognized(&kind.kind, &format!("unexpected GroupVersion string: {version}"), body));
    }
    let own = kind.api_version();
    if kind.definition.is_some() {
        return check_custom_type(kind, value, body);
    }
    if (version.is_empty() || version == own) && (name.is_empty() || name == kind.kind) {
        return Ok(());
    }
    // what is not said is what is asked for
    let version = if version.is_empty() { own.as_str() } else { version };
    let name = if name.is_empty() { kind.kind.as_str() } else { name };
    let short = version.rsplit('/').next().unwrap_or(version);
    if codec::shape_of(version, name).is_none() {
        return Err(ApiError::bad_request(format!(
            "{name} in version {short:?} cannot be handled as a {}: no kind {name:?} is registered for version {version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            kind.kind
        )));
    }
    if name != kind.kind {
        let internal =
            if kind.group.is_empty() { "core" } else { kind.group.split('.').next().unwrap_or("core") };
        return Err(ApiError::bad_request(format!(
            "{name} in version {short:?} cannot be handled as a {0}: converting ({short}.{name}) to ({internal}.{0}): unknown conversion",
            kind.kind
        )));
    }
    Err(ApiError::bad_request(format!(
        "the API version in the data ({version}) does not match the expected API version ({own})"
    )))
}

/// A custom resource must say what it is; another kind is no matter of decoding but of validation.
fn check_custom_type(kind: &Kind, value: &Value, body: &[u8]) -> ApiResult<()> {
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    let (version, name, own) = (text("apiVersion"), text("kind"), kind.api_version());
    if name.is_empty() {
        let why = format!("Object 'Kind' is missing in '{}'", String::from_utf8_lossy(body));
        return Err(unrecognized(&kind.kind, &why, body));
    }
    if version != own {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({own})"
        )));
    }
    if name != kind.kind {
        let mut errors = ErrorList::default();
        errors.invalid("kind", &json!(name), &format!("must be {}", kind.kind));
        return Err(ApiError::invalid_named(&kind.group, name, meta::name(value), &errors));
    }
    Ok(())
}

/// All that is warned of in one answer, in characters; where there is more, each text is cut.
const WARNED: usize = 4 * 1024;
/// What is left of a text that is cut.
const CUT: usize = 256;

/// Puts texts into `Warning` headers (RFC 7234 §5.5). A text with control characters cannot be told.
pub fn add_warnings<B>(response: &mut Response<B>, warnings: &[String]) {
    let mut texts: Vec<&str> = Vec::new();
    for text in warnings.iter().filter(|t| !t.is_empty() && !t.contains(char::is_control)) {
        // a change that was tried again says the same again
        if !texts.contains(&text.as_str()) {
            texts.push(text);
        }
    }
    let length = |text: &str| text.chars().count();
    let is_cut = texts.iter().map(|t| length(t)).sum::<usize>() > WARNED;
    let mut told = 0;
    for text in texts {
        let text: String = if is_cut { text.chars().take(CUT).collect() } else { text.to_owned() };
        if told >= WARNED {
            break;
        }
        told += length(&text);
        let quoted = format!("299 - \"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        if let Ok(value) = HeaderValue::from_bytes(quoted.as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// A small body of options or of what a subresource takes; empty means none. In protobuf the envelope says what it is.
pub fn plain(headers: &HeaderMap, body: &[u8]) -> ApiResult<Value> {
    if body.trim_ascii().is_empty() {
        return Ok(Value::Null);
    }
    let parsed = match format(headers)? {
        Format::Json => codec::parse_json(body),
        Format::Yaml => codec::parse_yaml(body).map(|(v, _)| v),
        Format::Protobuf => Envelope::open(body).and_then(|envelope| {
            let (version, kind) = (&envelope.api_version, &envelope.kind);
            let shape = codec::shape_of(version, kind).ok_or_else(|| {
                DecodeError::Protobuf(format!("no kind {kind:?} is registered for version {version:?}"))
            })?;
            envelope.decode(shape).map(|decoded| decoded.value)
        }),
    };
    parsed.map_err(|e| ApiError::bad_request(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(media: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, media.parse().unwrap());
        headers
    }

    fn message(object: &Value) -> Vec<u8> {
        crate::answer::to_protobuf(object).unwrap()
    }

    fn decoded(plural: &str, media: &str, body: &[u8]) -> Result<Value, String> {
        let kind = api::kinds::find("", "v1", plural).unwrap();
        decode(kind, &headers(media), body, Validation::Strict, &mut Vec::new())
            .map_err(|e| e.to_value()["message"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn an_object_in_protobuf_is_the_object_in_json() {
        let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "AAH/"},
            "immutable": false});
        assert_eq!(
            decoded("secrets", negotiate::PROTOBUF, &message(&object)),
            decoded("secrets", "", object.to_string().as_bytes())
        );
    }

    #[test]
    fn messages_that_do_not_fit_are_refused() {
        let namespace = message(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}));
        assert_eq!(
            decoded("pods", negotiate::PROTOBUF, &namespace).unwrap_err(),
            "Namespace in version \"v1\" cannot be handled as a Pod: converting (v1.Namespace) to (core.Pod): unknown conversion"
        );
        assert_eq!(
            decoded("namespaces", negotiate::PROTOBUF, &namespace[..20]).unwrap_err(),
            "the object provided is unrecognized (must be of type Namespace): unexpected EOF (6b3873000a0f0a0276311209\
             4e616d6573706163)"
        );
        assert!(decoded("pods", "application/cbor", b"").unwrap_err().contains("accepted media types"));
    }

    #[test]
    fn options_in_protobuf_are_known_by_their_envelope() {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        assert_eq!(plain(&headers(negotiate::PROTOBUF), &message(&options)).unwrap(), options);
    }
}
