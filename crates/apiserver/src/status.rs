//! The closed vocabulary of failures and how each becomes an HTTP status and a `Status` body.
//!
//! Rule: Kubernetes API conventions, "Response Status Kind". Every refusal of the API server is made here, so
//! that one file answers which code and reason a failure has.

use std::borrow::Cow;

use api::field::ErrorList;
use api::kinds::Kind;
use serde_json::{Map, Value, json};

/// A refusal: code, `reason` and the rest of the `Status` body.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub code: u16,
    reason: Cow<'static, str>,
    message: String,
    details: Option<Map<String, Value>>,
    /// A refusal that is plain text, as for paths no API serves.
    plain: bool,
    /// `metadata.continue` of the `Status`.
    next: String,
}

/// What went wrong is in the `Err`.
pub type ApiResult<T> = Result<T, ApiError>;

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

fn details(group: &str, kind: &str, name: &str) -> Map<String, Value> {
    let mut map = Map::new();
    for (key, text) in [("name", name), ("group", group), ("kind", kind)] {
        if !text.is_empty() {
            map.insert(key.to_owned(), json!(text));
        }
    }
    map
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        let reason = Cow::Borrowed(reason);
        Self { code, reason, message: message.into(), details: None, plain: false, next: String::new() }
    }

    fn about(mut self, details: Map<String, Value>) -> Self {
        self.details = Some(details).filter(|d| !d.is_empty());
        self
    }

    /// A refusal that a program outside has worded as a `Status` (an admission webhook, mostly).
    pub fn of_status(status: &Value) -> Self {
        let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
        let code = status["code"].as_u64().and_then(|c| u16::try_from(c).ok());
        Self {
            // what is no HTTP status cannot be sent as one
            code: code.filter(|c| (400..=599).contains(c)).unwrap_or(500),
            reason: Cow::Owned(text("reason")),
            message: text("message"),
            details: status["details"].as_object().cloned(),
            plain: false,
            next: String::new(),
        }
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 of the authorizer, with its own wording.
    pub fn forbidden_text(message: String, group: &str, resource: &str, name: &str) -> Self {
        Self::new(403, "Forbidden", message).about(details(group, resource, name))
    }

    /// 403: `pods "x" is forbidden: WHY`.
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let resource = kind.resource();
        let message = if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} {name:?} is forbidden: {why}")
        };
        Self::new(403, "Forbidden", message).about(details(&kind.group, &kind.plural, name))
    }

    /// 404 of one object.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", kind.resource())).about(details(
            &kind.group,
            &kind.plural,
            name,
        ))
    }

    /// 404 of a path below a served API.
    pub fn no_such_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").with_details()
    }

    /// 404 as text, of a path that no API serves.
    pub fn no_such_page() -> Self {
        Self { plain: true, ..Self::new(404, "NotFound", "404 page not found\n") }
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
            .with_details()
    }

    /// 405 for what is not done any more while the definition of a custom resource is being deleted.
    pub fn terminating(kind: &Kind, verb: &str) -> Self {
        let message = format!("{verb} not allowed while custom resource definition is terminating");
        Self::new(405, "MethodNotAllowed", message).about(details(&kind.group, &kind.plural, ""))
    }

    /// 406.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        Self::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {}", accepted.join(", ")),
        )
    }

    /// 406 of a request that names no media type we know.
    pub fn no_representation<'a>(offered: impl Iterator<Item = &'a &'a str>) -> Self {
        let offered: Vec<&str> = offered.copied().collect();
        let message = format!("406: Not Acceptable\n\nAvailable representations: {}", offered.join(", "));
        Self::new(406, "NotAcceptable", message).with_details()
    }

    /// 406 of a form that exists for single objects only.
    pub fn no_single_object(list_kind: &str) -> Self {
        let message = format!(
            "you requested PartialObjectMetadata, but the requested object is a list (*core.{list_kind})"
        );
        Self::new(406, "NotAcceptable", message)
    }

    /// 409: the name is taken.
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} {name:?} already exists", kind.resource()))
            .about(details(&kind.group, &kind.plural, name))
    }

    /// 409 of a name that is taken until its object is gone.
    pub fn still_there(kind: &Kind, name: &str) -> Self {
        Self::already_exists(kind, name).with_prefix("object is being deleted: ")
    }

    /// 409: `Operation cannot be fulfilled on pods "x": WHY`.
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.resource()),
        )
        .about(details(&kind.group, &kind.plural, name))
    }

    /// 409 of a deletion's precondition, which names the kind.
    pub fn precondition(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.kind);
        Self::new(409, "Conflict", message).about(details(&kind.group, &kind.kind, name))
    }

    /// 409 of a subresource that is named like a resource of its own (`pods/binding`).
    pub fn conflict_on(resource: &str, name: &str, why: &str) -> Self {
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {resource} {name:?}: {why}"))
            .about(details("", resource, name))
    }

    /// 409 of an update that is based on an older revision.
    pub fn stale(kind: &Kind, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind, name, why)
    }

    /// 409 of server-side apply: fields that others own.
    pub fn apply_conflict(message: String, causes: Vec<Value>) -> Self {
        let mut map = Map::new();
        map.insert("causes".to_owned(), Value::Array(causes));
        Self::new(409, "Conflict", message).about(map)
    }

    /// 410: the revision is no longer kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    /// 422: fields of the object are refused.
    pub fn invalid(kind: &Kind, name: &str, errors: &ErrorList) -> Self {
        // events of both groups are of one internal kind, of the core group
        let group = if kind.kind == "Event" { "" } else { &kind.group };
        Self::invalid_named(group, &kind.kind, name, errors)
    }

    /// 422 of something that is no stored kind, for example options.
    pub fn invalid_named(group: &str, kind: &str, name: &str, errors: &ErrorList) -> Self {
        let qualified = match group {
            "" => kind.to_owned(),
            group => format!("{kind}.{group}"),
        };
        let mut map = details(group, kind, name);
        let causes: Vec<Value> = errors
            .0
            .iter()
            .map(|e| {
                let mut cause = Map::new();
                cause.insert("reason".to_owned(), json!(e.reason.name()));
                cause.insert("message".to_owned(), json!(e.body));
                if !e.field.is_empty() {
                    cause.insert("field".to_owned(), json!(e.field));
                }
                Value::Object(cause)
            })
            .collect();
        if !causes.is_empty() {
            map.insert("causes".to_owned(), Value::Array(causes));
        }
        let message = format!("{qualified} {} is invalid: {}", api::field::quote(name), errors.aggregate());
        Self::new(422, "Invalid", message).about(map)
    }

    /// 422 without fields, for example a patch that cannot be applied.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    /// 429 with the seconds after which to try again.
    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Self {
        let mut map = Map::new();
        map.insert("retryAfterSeconds".to_owned(), json!(retry_after));
        Self::new(429, "TooManyRequests", message).about(map)
    }

    /// 429 as text: no seat, and the queue is full or the wait was too long.
    pub fn overloaded() -> Self {
        let refusal = Self::too_many_requests("Too many requests, please try again later.\n", 1);
        Self { plain: true, ..refusal }
    }

    /// 500: our own fault; the cause is logged, not told.
    pub fn internal(message: impl Into<String>) -> Self {
        let message = format!("Internal error occurred: {}", message.into());
        let mut map = Map::new();
        map.insert(
            "causes".to_owned(),
            json!([{"message": message.trim_start_matches("Internal error occurred: ")}]),
        );
        Self::new(500, "InternalError", message).about(map)
    }

    /// 500 as text: what is told before, or in spite of, the pipeline.
    pub fn internal_text(text: impl Into<String>) -> Self {
        Self { plain: true, ..Self::new(500, "InternalError", text) }
    }

    /// 500 of something that the server asked: what it said is told as it is.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504 of a read at a revision that does not exist yet.
    pub fn future_revision(asked: u64, current: u64) -> Self {
        let mut map = Map::new();
        map.insert(
            "causes".to_owned(),
            json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]),
        );
        map.insert("retryAfterSeconds".to_owned(), json!(1));
        Self::new(504, "Timeout", format!("Timeout: Too large resource version: {asked}, current: {current}"))
            .about(map)
    }

    /// Whether this is a 404.
    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }

    /// The same refusal with another code.
    pub fn with_code(mut self, code: u16) -> Self {
        self.code = code;
        self
    }

    /// The same refusal with another reason.
    pub fn with_reason(mut self, reason: &'static str) -> Self {
        self.reason = reason.into();
        self
    }

    /// The same refusal with another message.
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// Adds a member to `details`.
    pub fn with_detail(mut self, key: &str, value: Value) -> Self {
        self.details.get_or_insert_default().insert(key.to_owned(), value);
        self
    }

    /// Says `details` even though they are empty, as refusals of the generic kind do.
    pub fn with_details(mut self) -> Self {
        self.details.get_or_insert_default();
        self
    }

    /// Puts a text before the message.
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.message.insert_str(0, prefix);
        self
    }

    /// Says where an expired list can go on.
    pub fn with_list_continue(mut self, token: &str) -> Self {
        token.clone_into(&mut self.next);
        self
    }

    /// Seconds for a `Retry-After` header.
    pub fn retry_after(&self) -> Option<u64> {
        self.details.as_ref()?.get("retryAfterSeconds").and_then(Value::as_u64)
    }

    /// The text to send instead of a `Status`, where this refusal is plain text.
    pub fn plain_text(&self) -> Option<&str> {
        self.plain.then_some(self.message.as_str())
    }

    /// The `Status` object.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        if !self.next.is_empty() {
            status["metadata"]["continue"] = json!(self.next);
        }
        if let Some(details) = &self.details {
            status["details"] = Value::Object(details.clone());
        }
        status
    }
}

/// The `Status` of a success that answers no object (a deletion, mostly).
pub fn success(kind: &Kind, name: &str, uid: &str) -> Value {
    let mut map = details(&kind.group, &kind.plural, name);
    if !uid.is_empty() {
        map.insert("uid".to_owned(), json!(uid));
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": map})
}
