//! Authorization asked of a program outside: `SubjectAccessReview`s over HTTPS, answers kept for a while.
//!
//! Rule: Kubernetes documentation, "Webhook Mode" and "Using a configuration file for authorization".

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::selector::{FieldSelector, LabelSelector, Operator};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::UserInfo;
use super::authorize::{Attributes, Decision};
use crate::cel::access::{About, Expression};
use crate::options::Options;
use crate::watch_cache::WatchCache;
use crate::webhook::{Hook, KubeconfigHookError};

/// Answers kept.
const KEPT: usize = 8192;
/// Attributes longer than this are not kept.
const LONGEST: usize = 10_000;
/// Match conditions of one program, at most.
const CONDITIONS: usize = 64;
/// Longest wait, unless a file says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why authorization cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A mode that does not exist, or lacks its file.
    #[error("{0}")]
    Mode(String),
    /// The webhook's file.
    #[error("authorization webhook")]
    Webhook(#[from] KubeconfigHookError),
    /// The configuration cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The configuration is wrong.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// One authorizer of the chain.
pub enum Mode {
    /// Kubelets.
    Node,
    /// Roles.
    Rbac,
    /// Everything is allowed.
    AlwaysAllow,
    /// Nothing is allowed.
    AlwaysDeny,
    /// A program outside.
    Webhook(Box<WebhookAuthorizer>),
}

/// The chain that the options describe.
pub fn modes(options: &Options) -> Result<Vec<Mode>, SetupError> {
    if let Some(path) = &options.authorization_config {
        return structured(path);
    }
    let names = match options.authorization_mode.as_slice() {
        [] => ["Node", "RBAC"].map(str::to_owned).to_vec(),
        names => names.to_vec(),
    };
    names.iter().map(|name| mode(name, options)).collect()
}

fn mode(name: &str, options: &Options) -> Result<Mode, SetupError> {
    Ok(match name {
        "Node" => Mode::Node,
        "RBAC" => Mode::Rbac,
        "AlwaysAllow" => Mode::AlwaysAllow,
        "AlwaysDeny" => Mode::AlwaysDeny,
        "Webhook" => {
            let path = options.authorization_webhook_config_file.as_deref().ok_or_else(|| {
                SetupError::Mode(
                    "authorization-mode Webhook's authorization config file not passed".to_owned(),
                )
            })?;
            Mode::Webhook(Box::new(WebhookAuthorizer {
                hook: Hook::from_kubeconfig(path)?,
                version: options.authorization_webhook_version.clone(),
                timeout: TIMEOUT,
                allowed_for: options.authorization_webhook_cache_authorized_ttl,
                refused_for: options.authorization_webhook_cache_unauthorized_ttl,
                denies_on_failure: false,
                conditions: Vec::new(),
                known: Mutex::default(),
            }))
        }
        other => {
            return Err(SetupError::Mode(format!("authorization-mode {other:?} is not a valid mode")));
        }
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    kind: String,
    api_version: String,
    #[serde(default)]
    authorizers: Vec<AuthorizerConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AuthorizerConfig {
    r#type: String,
    name: String,
    webhook: Option<WebhookConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WebhookConfig {
    #[serde(rename = "authorizedTTL")]
    authorized_ttl: Option<String>,
    #[serde(rename = "unauthorizedTTL")]
    unauthorized_ttl: Option<String>,
    #[serde(default = "yes")]
    cache_authorized_requests: bool,
    #[serde(default = "yes")]
    cache_unauthorized_requests: bool,
    timeout: Option<String>,
    #[serde(default)]
    subject_access_review_version: String,
    #[serde(default)]
    match_condition_subject_access_review_version: String,
    failure_policy: String,
    connection_info: ConnectionInfo,
    #[serde(default)]
    match_conditions: Vec<MatchCondition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MatchCondition {
    #[serde(default)]
    expression: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConnectionInfo {
    r#type: String,
    kube_config_file: Option<PathBuf>,
}

fn yes() -> bool {
    true
}

fn structured(path: &Path) -> Result<Vec<Mode>, SetupError> {
    let wrong = |reason: String| SetupError::Config { path: path.to_owned(), reason };
    let text = std::fs::read(path).map_err(|source| SetupError::Read { path: path.to_owned(), source })?;
    let (tree, _) = api::codec::parse_yaml(&text).map_err(|e| wrong(e.to_string()))?;
    let file: File = serde_json::from_value(tree).map_err(|e| wrong(e.to_string()))?;
    if file.kind != "AuthorizationConfiguration" || !file.api_version.starts_with("apiserver.config.k8s.io/")
    {
        return Err(wrong("not an AuthorizationConfiguration of apiserver.config.k8s.io".to_owned()));
    }
    if file.authorizers.is_empty() {
        return Err(wrong(
            "authorizers: Required value: at least one authorization mode must be defined".to_owned(),
        ));
    }
    let mut modes = Vec::new();
    for (i, authorizer) in file.authorizers.into_iter().enumerate() {
        let at = format!("authorizers[{i}]");
        modes.push(match (authorizer.r#type.as_str(), authorizer.webhook) {
            ("Webhook", Some(webhook)) => {
                Mode::Webhook(Box::new(of_config(path, &authorizer.name, webhook, &at)?))
            }
            ("Webhook", None) => {
                return Err(wrong(format!("{at}.webhook: Required value: required when type=Webhook")));
            }
            (_, Some(_)) => {
                return Err(wrong(format!(
                    "{at}.webhook: Invalid value: may only be specified when type=Webhook"
                )));
            }
            (name, None) => mode(name, &Options::default()).map_err(|e| wrong(format!("{at}.type: {e}")))?,
        });
    }
    Ok(modes)
}

fn of_config(
    path: &Path,
    name: &str,
    config: WebhookConfig,
    at: &str,
) -> Result<WebhookAuthorizer, SetupError> {
    let wrong = |reason: String| SetupError::Config { path: path.to_owned(), reason };
    let time = |text: &Option<String>, default: Duration, field: &str| match text {
        None => Ok(default),
        Some(text) => api::duration::length(text)
            .ok_or_else(|| wrong(format!("{at}.webhook.{field}: {text:?} is no duration"))),
    };
    let conditions = conditions(&config).map_err(|why| wrong(format!("{at}.webhook.{why}")))?;
    let denies_on_failure = match config.failure_policy.as_str() {
        "Deny" => true,
        "NoOpinion" => false,
        other => {
            return Err(wrong(format!(
                "{at}.webhook.failurePolicy: Unsupported value: {other:?}: supported values: \"Deny\", \"NoOpinion\""
            )));
        }
    };
    let file = match (config.connection_info.r#type.as_str(), config.connection_info.kube_config_file) {
        ("KubeConfigFile", Some(file)) => file,
        (other, _) => {
            return Err(wrong(format!("{at}.webhook.connectionInfo: {other:?} of {name:?} names no file")));
        }
    };
    let (allowed, refused) = (Duration::from_secs(300), Duration::from_secs(30));
    let allowed = time(&config.authorized_ttl, allowed, "authorizedTTL")?;
    let refused = time(&config.unauthorized_ttl, refused, "unauthorizedTTL")?;
    Ok(WebhookAuthorizer {
        hook: Hook::from_kubeconfig(&file)?,
        version: match config.subject_access_review_version.as_str() {
            "" => "v1".to_owned(),
            version => version.to_owned(),
        },
        timeout: time(&config.timeout, TIMEOUT, "timeout")?,
        allowed_for: if config.cache_authorized_requests { allowed } else { Duration::ZERO },
        refused_for: if config.cache_unauthorized_requests { refused } else { Duration::ZERO },
        denies_on_failure,
        conditions,
        known: Mutex::default(),
    })
}

/// The questions that a program is asked; else what is wrong, with its field.
fn conditions(config: &WebhookConfig) -> Result<Vec<Expression>, String> {
    let list = &config.match_conditions;
    if list.is_empty() {
        return Ok(Vec::new());
    }
    match config.match_condition_subject_access_review_version.as_str() {
        "v1" => {}
        "" => {
            return Err("matchConditionSubjectAccessReviewVersion: Required value: required if match conditions are specified".to_owned());
        }
        other => {
            return Err(format!(
                "matchConditionSubjectAccessReviewVersion: Unsupported value: {other:?}: supported values: \"v1\""
            ));
        }
    }
    if list.len() > CONDITIONS {
        return Err(format!(
            "matchConditions: Too many: {}: must have at most {CONDITIONS} items",
            list.len()
        ));
    }
    let mut seen = HashSet::new();
    let check = |(i, condition): (usize, &MatchCondition)| {
        let (at, source) = (format!("matchConditions[{i}].expression"), condition.expression.trim());
        if source.is_empty() {
            return Err(format!("{at}: Required value"));
        }
        if !seen.insert(source.to_owned()) {
            return Err(format!("{at}: Duplicate value: {source:?}"));
        }
        Expression::condition(About::Review, source)
            .map_err(|why| format!("{at}: Invalid value: {source:?}: {why}"))
    };
    list.iter().enumerate().map(check).collect()
}

/// A program outside that decides.
pub struct WebhookAuthorizer {
    hook: Hook,
    version: String,
    timeout: Duration,
    allowed_for: Duration,
    refused_for: Duration,
    denies_on_failure: bool,
    /// It is asked what all of these hold for.
    conditions: Vec<Expression>,
    known: Mutex<HashMap<[u8; 32], (Instant, Arc<Decision>)>>,
}

impl WebhookAuthorizer {
    /// Asks, or remembers.
    pub async fn decide(&self, cache: &WatchCache, user: &UserInfo, what: &Attributes<'_>) -> Decision {
        match self.is_for(user, what) {
            Ok(true) => {}
            Ok(false) => return Decision::NoOpinion(String::new()),
            Err(why) if self.denies_on_failure => return Decision::Denied(why),
            Err(why) => return Decision::NoOpinion(why),
        }
        let review = self.review(user, what);
        let text = review.to_string();
        let key: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let now = Instant::now();
        if let Some((until, decision)) = self.known.lock().get(&key)
            && *until > now
        {
            return (**decision).clone();
        }
        let answer = match self.hook.call(cache, &review, self.timeout).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(%error, "authorization webhook");
                let why = error.to_string();
                return if self.denies_on_failure { Decision::Denied(why) } else { Decision::NoOpinion(why) };
            }
        };
        let status = &answer["status"];
        let why = status["reason"].as_str().unwrap_or_default().to_owned();
        let (decision, kept_for) = match (status["allowed"] == true, status["denied"] == true) {
            (true, true) => (
                Decision::Denied(
                    "webhook subject access review returned both allow and deny response".to_owned(),
                ),
                Duration::ZERO,
            ),
            (true, false) => (Decision::Allowed(why), self.allowed_for),
            (false, true) => (Decision::Denied(why), self.refused_for),
            (false, false) => (Decision::NoOpinion(why), self.refused_for),
        };
        if !kept_for.is_zero() && text.len() <= LONGEST {
            let mut known = self.known.lock();
            if known.len() >= KEPT {
                known.retain(|_, (until, _)| *until > now);
                if known.len() >= KEPT {
                    known.clear();
                }
            }
            known.insert(key, (now + kept_for, Arc::new(decision.clone())));
        }
        decision
    }

    /// Whether the program is asked; else why that is not known: no condition says no, and one fails.
    fn is_for(&self, user: &UserInfo, what: &Attributes<'_>) -> Result<bool, String> {
        if self.conditions.is_empty() {
            return Ok(true);
        }
        let shown = shown(user, what);
        let mut failures = Vec::new();
        for condition in &self.conditions {
            match condition.holds(&shown) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(why) => failures.push(why),
            }
        }
        match failures.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            more => Err(format!("[{}]", more.join(", "))),
        }
    }

    fn review(&self, user: &UserInfo, what: &Attributes<'_>) -> Value {
        let mut spec = json!({"user": user.name, "groups": user.groups});
        if !user.uid.is_empty() {
            spec["uid"] = json!(user.uid);
        }
        if !user.extra.is_empty() {
            spec["extra"] = json!(user.extra);
        }
        match what.path {
            Some(path) => spec["nonResourceAttributes"] = json!({"path": path, "verb": what.verb}),
            None => {
                let (resource, subresource) = what.resource.split_once('/').unwrap_or((&what.resource, ""));
                let mut attributes = json!({"verb": what.verb, "resource": resource});
                let fields = [
                    ("group", what.group),
                    ("version", what.version),
                    ("subresource", subresource),
                    ("namespace", what.namespace),
                    ("name", what.name),
                ];
                for (key, value) in fields.iter().filter(|(_, v)| !v.is_empty()) {
                    attributes[*key] = json!(value);
                }
                add_selectors(&mut attributes, what);
                spec["resourceAttributes"] = attributes;
            }
        }
        json!({"apiVersion": format!("authorization.k8s.io/{}", self.version), "kind": "SubjectAccessReview",
            "metadata": {"creationTimestamp": null}, "spec": spec})
    }
}

/// The `spec` of a review as conditions see it: texts are there, even where they are empty.
fn shown(user: &UserInfo, what: &Attributes<'_>) -> Value {
    let mut spec = json!({"user": user.name, "groups": user.groups, "uid": user.uid, "extra": user.extra});
    match what.path {
        Some(path) => spec["nonResourceAttributes"] = json!({"path": path, "verb": what.verb}),
        None => {
            let (resource, subresource) = what.resource.split_once('/').unwrap_or((&what.resource, ""));
            let mut attributes = json!({"namespace": what.namespace, "verb": what.verb, "group": what.group,
                "version": what.version, "resource": resource, "subresource": subresource, "name": what.name});
            add_selectors(&mut attributes, what);
            spec["resourceAttributes"] = attributes;
        }
    }
    spec
}

/// Adds what selectors demand; one that cannot be read demands nothing.
fn add_selectors(attributes: &mut Value, what: &Attributes<'_>) {
    let fields = FieldSelector::parse(what.field_selector).unwrap_or_default();
    let of_fields = fields.terms.iter().map(|(field, value, equal)| {
        json!({"key": field, "operator": if *equal { "In" } else { "NotIn" }, "values": [value]})
    });
    let labels = LabelSelector::parse(what.label_selector).unwrap_or_default();
    let of_labels = labels.requirements.iter().filter_map(|r| {
        let operator = match r.operator {
            Operator::In => "In",
            Operator::NotIn => "NotIn",
            Operator::Exists => return Some(json!({"key": r.key, "operator": "Exists"})),
            Operator::DoesNotExist => return Some(json!({"key": r.key, "operator": "DoesNotExist"})),
            // reviews know no order of values
            Operator::Gt | Operator::Lt => return None,
        };
        Some(json!({"key": r.key, "operator": operator, "values": r.values}))
    });
    let (of_fields, of_labels): (Vec<Value>, Vec<Value>) = (of_fields.collect(), of_labels.collect());
    for (key, requirements) in [("fieldSelector", of_fields), ("labelSelector", of_labels)] {
        if !requirements.is_empty() {
            attributes[key] = json!({"requirements": requirements});
        }
    }
}
