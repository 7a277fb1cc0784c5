//! Auditing: who did what, when, and how it ended, as `audit.k8s.io/v1` events.
//!
//! The pipeline begins a [`Trail`] per request that the policy records and ends it with the answer. Without a policy
//! nothing of this costs anything.
//!
//! Rule: Kubernetes documentation, "Auditing"; `Event` of `audit.k8s.io/v1`.

pub mod log;
pub mod policy;
pub mod webhook;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use client::Body;
use client::metrics::{Counter, Metric};
use http::request::Parts;
use http::{Response, header};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use self::log::Log;
use self::policy::{Level, Policy, PolicyError, Recorded, Stage};
use self::webhook::Webhook;
use crate::answer;
use crate::auth::UserInfo;
use crate::backend::Peer;
use crate::body;
use crate::options::Options;
use crate::request_info::RequestInfo;
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;
use crate::webhook::KubeconfigHookError;
use crate::write::AuditAnnotations;

/// Events that were recorded.
static EVENTS: Counter = Counter::new(
    "apiserver_audit_event_total",
    "[ALPHA] Counter of audit events generated and sent to the audit backend.",
    &[],
);
/// Requests by what the policy says of them.
static LEVELS: Counter = Counter::new(
    "apiserver_audit_level_total",
    "[ALPHA] Counter of policy levels for audit events (1 per request).",
    &["level"],
);
/// Requests that were refused, because they could not be recorded.
static REJECTED: Counter = Counter::new(
    "apiserver_audit_requests_rejected_total",
    "[ALPHA] Counter of apiserver requests rejected due to an error in audit logging backend.",
    &[],
);
/// What this process recorded.
pub static METRICS: &[&dyn Metric] = &[&EVENTS, &LEVELS, &REJECTED];

/// Why auditing cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The log cannot be opened.
    #[error("cannot open the audit log {path}")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The webhook's file.
    #[error("audit webhook")]
    Webhook(#[from] KubeconfigHookError),
}

/// The policy, and where events go.
pub struct Audit {
    policy: Policy,
    log: Option<Log>,
    webhook: Option<Webhook>,
}

impl Audit {
    /// None where there is no policy, or nowhere to record to.
    pub fn open(options: &Options, cache: &Arc<WatchCache>) -> Result<Option<Arc<Self>>, AuditError> {
        let Some(policy) = &options.audit_policy_file else { return Ok(None) };
        let log = &options.audit_log;
        let log = match log.path.as_os_str().is_empty() {
            true => None,
            false => {
                let opened = Log::open(log.clone());
                Some(opened.map_err(|source| AuditError::Log { path: log.path.clone(), source })?)
            }
        };
        let webhook = Webhook::open(&options.audit_webhook, cache)?;
        if log.is_none() && webhook.is_none() {
            return Ok(None);
        }
        Ok(Some(Arc::new(Self { policy: Policy::read(policy)?, log, webhook })))
    }

    /// Begins the trail of a request, where the policy records it. An error where that must be recorded first and cannot.
    pub async fn begin(
        self: &Arc<Self>,
        user: &UserInfo,
        info: &RequestInfo,
        parts: &Parts,
        sent: &Bytes,
    ) -> ApiResult<Option<Trail>> {
        let recorded = self.policy.of(user, info);
        LEVELS.add(&[recorded.level.name()]);
        if recorded.level == Level::None {
            return Ok(None);
        }
        let trail = Trail::new(self.clone(), recorded, user, info, parts, sent);
        trail.record(Stage::RequestReceived).await?;
        Ok(Some(trail))
    }

    async fn write(&self, line: String, is_first: bool) -> ApiResult<()> {
        EVENTS.add(&[]);
        if let Some(webhook) = &self.webhook
            && webhook.write(&line, is_first).await.is_err()
        {
            REJECTED.add(&[]);
            return Err(ApiError::internal_text("Internal Server Error: failed to store audit event\n"));
        }
        if let Some(log) = &self.log {
            log.write(line).await;
        }
        Ok(())
    }

    fn write_now(&self, line: String) {
        EVENTS.add(&[]);
        if let Some(webhook) = &self.webhook {
            webhook.write_now(&line);
        }
        if let Some(log) = &self.log {
            log.write_now(line);
        }
    }
}

/// The event of one request, as it grows.
pub struct Trail {
    audit: Arc<Audit>,
    recorded: Recorded,
    event: Map<String, Value>,
    is_long: bool,
}

impl Trail {
    fn new(
        audit: Arc<Audit>,
        recorded: Recorded,
        user: &UserInfo,
        info: &RequestInfo,
        parts: &Parts,
        sent: &Bytes,
    ) -> Self {
        let header = |name: header::HeaderName| parts.headers.get(name).and_then(|v| v.to_str().ok());
        let id = parts.headers.get("audit-id").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let uri = parts.uri.path_and_query().map_or("/", |p| p.as_str());
        let mut event = json!({"kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": recorded.level.name(),
            "auditID": id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()), "requestURI": uri, "verb": info.verb,
            "user": user.to_value(), "sourceIPs": sources(parts),
            "requestReceivedTimestamp": moment(Timestamp::now())});
        if let Some(agent) = header(header::USER_AGENT) {
            event["userAgent"] = json!(agent);
        }
        let mut body = Value::Null;
        if recorded.level >= Level::Request && !sent.is_empty() {
            body = body::plain(&parts.headers, sent).unwrap_or_default();
            omit(&recorded, &mut body);
        }
        if info.is_resource {
            event["objectRef"] = reference(info, &body);
        }
        if !body.is_null() {
            event["requestObject"] = body;
        }
        let event = match event {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        let is_long = info.verb == "watch"
            || matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy")
            || info.subresource == "log" && info.query.flag("follow");
        Self { audit, recorded, event, is_long }
    }

    /// The caller acts as another.
    pub fn acts_as(&mut self, user: &UserInfo) {
        self.event.insert("impersonatedUser".to_owned(), user.to_value());
    }

    /// What the authorizers said.
    pub fn decided(&mut self, allowed: bool, why: &str) {
        let decision = if allowed { "allow" } else { "forbid" };
        self.annotate("authorization.k8s.io/decision", decision);
        self.annotate("authorization.k8s.io/reason", why);
    }

    fn annotate(&mut self, key: &str, value: &str) {
        let annotations = self.event.entry("annotations").or_insert_with(|| json!({}));
        annotations[key] = json!(value);
    }

    async fn record(&self, stage: Stage) -> ApiResult<()> {
        if self.recorded.omit_stages.contains(&stage) {
            return Ok(());
        }
        self.audit.write(self.line(stage), stage == Stage::RequestReceived).await
    }

    /// The request panicked: says so, and with what answer.
    pub async fn panicked(mut self, why: &str, response: Response<Body>) -> Response<Body> {
        let code = response.status().as_u16();
        let message = format!("APIServer panic'd: {why}");
        let status = json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": code});
        self.event.insert("responseStatus".to_owned(), status);
        // only the first stage refuses
        let _ = self.record(Stage::Panic).await;
        response
    }

    fn line(&self, stage: Stage) -> String {
        let mut event = self.event.clone();
        if stage == Stage::RequestReceived {
            event.remove("requestObject");
        }
        event.insert("stage".to_owned(), json!(stage.name()));
        event.insert("stageTimestamp".to_owned(), json!(moment(Timestamp::now())));
        Value::Object(event).to_string()
    }

    /// Ends the trail with the answer. A long answer ends it when its last byte is sent or the client goes.
    pub async fn end(mut self, mut response: Response<Body>) -> Response<Body> {
        let code = response.status().as_u16();
        self.event.insert("responseStatus".to_owned(), json!({"metadata": {}, "code": code}));
        if let Some(AuditAnnotations(more)) = response.extensions_mut().remove::<AuditAnnotations>() {
            for (key, value) in &more {
                self.annotate(key, value);
            }
        }
        if let Some(id) = self.event["auditID"].as_str()
            && let Ok(value) = id.parse()
        {
            response.headers_mut().insert("audit-id", value);
        }
        if self.is_long && code < 400 {
            let _ = self.record(Stage::ResponseStarted).await;
            let last = Last(self);
            return response.map(|body| {
                body.map_frame(move |frame| {
                    // the trail lives as long as the body
                    let _ = &last;
                    frame
                })
                .boxed_unsync()
            });
        }
        // what a stream refuses in its own way is not ours to hold up
        if !self.is_long && (code >= 400 || self.recorded.level == Level::RequestResponse) {
            response = self.take_body(response).await;
        }
        // only the first stage refuses
        let _ = self.record(Stage::ResponseComplete).await;
        response
    }

    /// Reads the answer's body, which is there as a whole, and puts it back.
    async fn take_body(&mut self, response: Response<Body>) -> Response<Body> {
        let (parts, sent) = response.into_parts();
        let Ok(collected) = sent.collect().await else {
            return Response::from_parts(parts, answer::full(Bytes::new()));
        };
        let bytes = collected.to_bytes();
        let mut value = body::plain(&parts.headers, &bytes).unwrap_or_default();
        if value["kind"] == "Status" && value["apiVersion"] == "v1" {
            let mut status = json!({"metadata": {}, "code": parts.status.as_u16()});
            for field in ["status", "message", "reason", "details"] {
                if !value[field].is_null() {
                    status[field] = value[field].clone();
                }
            }
            self.event.insert("responseStatus".to_owned(), status);
        }
        if self.recorded.level == Level::RequestResponse && !value.is_null() {
            omit(&self.recorded, &mut value);
            self.event.insert("responseObject".to_owned(), value);
        }
        Response::from_parts(parts, answer::full(bytes))
    }
}

/// Ends the trail of a long answer.
struct Last(Trail);

impl Drop for Last {
    fn drop(&mut self) {
        if !self.0.recorded.omit_stages.contains(&Stage::ResponseComplete) {
            self.0.audit.write_now(self.0.line(Stage::ResponseComplete));
        }
    }
}

/// RFC 3339 with microseconds.
fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Where the request comes from: what proxies say, then the peer itself.
fn sources(parts: &Parts) -> Vec<String> {
    let said = parts.headers.get("x-forwarded-for").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut list: Vec<String> = said
        .split(',')
        .map(str::trim)
        .filter(|ip| ip.parse::<std::net::IpAddr>().is_ok())
        .map(str::to_owned)
        .collect();
    let peer = parts.extensions.get::<Peer>().map(|p| p.0.ip().to_string());
    list.extend(peer.filter(|ip| list.last() != Some(ip)));
    list
}

fn reference(info: &RequestInfo, sent: &Value) -> Value {
    let of_body = |field: &str| sent["metadata"][field].as_str().unwrap_or_default();
    let name = if info.name.is_empty() && info.verb == "create" { of_body("name") } else { &info.name };
    let mut reference = json!({});
    let fields = [
        ("resource", info.resource.as_str()),
        ("namespace", &info.namespace),
        ("name", name),
        ("uid", of_body("uid")),
        ("apiGroup", &info.group),
        ("apiVersion", &info.version),
        ("resourceVersion", of_body("resourceVersion")),
        ("subresource", &info.subresource),
    ];
    for (field, value) in fields {
        if !value.is_empty() {
            reference[field] = json!(value);
        }
    }
    reference
}

/// Leaves managed fields out, where the policy says so.
fn omit(recorded: &Recorded, body: &mut Value) {
    if !recorded.omit_managed_fields {
        return;
    }
    let strip = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    strip(body);
    body.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(strip);
}
