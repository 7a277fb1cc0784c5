//! The one path that every request walks: who asks, may they, what is it about, do it, answer.
//!
//! Nothing here knows a kind: what differs between kinds is data (the table of kinds) or a strategy. The few
//! subresources with a behaviour of their own are in [`crate::subresources`].

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::kinds::Kind;
use api::zpages::Page;
use bytes::Bytes;
use client::Body;
use client::metrics::{self, Families};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;

use crate::admission::policies::Policies;
use crate::admission::webhooks::Webhooks;
use crate::admission::{Admission, Notes};
use crate::aggregation::{Aggregator, Remote};
use crate::answer;
use crate::audit::{Audit, Trail};
use crate::auth::authenticate::{Authentication, Presented};
use crate::auth::authorize::{Attributes, Authorizer};
use crate::auth::impersonate::impersonated;
use crate::auth::token::Tokens;
use crate::auth::{self, ANONYMOUS, UserInfo, legacy};
use crate::backend::is_upgrade;
use crate::discovery::{self, Aggregated};
use crate::encryption::Encryption;
use crate::extensions::{self, Kinds};
use crate::fairness::config::Flow;
use crate::fairness::{self, Fairness, Place};
use crate::negotiate::{self, Answer, Form, View};
use crate::node_proxy::NodeProxy;
use crate::openapi::{self, OpenApi};
use crate::options::FeatureGates;
use crate::registry::{Registry, Target};
use crate::request_info::RequestInfo;
use crate::request_metrics::RequestMetrics;
use crate::status::{ApiError, ApiResult};
use crate::webhook::Hooks;
use crate::{administration, cbor, compression, read, subresources, write};

/// What a client is told of a panic.
const PANICKED: &str = "This request caused apiserver to panic. Look in the logs for details.\n";

/// All that the pipeline needs.
pub struct ApiServer {
    pub(crate) registry: Registry,
    pub(crate) admission: Admission,
    pub(crate) policies: Policies,
    pub(crate) webhooks: Webhooks,
    pub(crate) hooks: Arc<Hooks>,
    pub(crate) audit: Option<Arc<Audit>>,
    pub(crate) authentication: Authentication,
    pub(crate) aggregator: Aggregator,
    pub(crate) authorizer: Authorizer,
    pub(crate) tokens: Tokens,
    pub(crate) token_uses: legacy::Uses,
    pub(crate) nodes: NodeProxy,
    pub(crate) kinds: Arc<Kinds>,
    pub(crate) openapi: OpenApi,
    pub(crate) encryption: Encryption,
    pub(crate) address: String,
    pub(crate) version: serde_json::Value,
    pub(crate) started: Timestamp,
    pub(crate) flags: BTreeMap<String, String>,
    pub(crate) fairness: Fairness,
    pub(crate) gates: FeatureGates,
    pub(crate) requests: RequestMetrics,
    /// What other parts of the process have to say at `/metrics`.
    pub(crate) metrics: Mutex<Vec<Collect>>,
}

/// Adds metrics.
pub(crate) type Collect = Box<dyn Fn(&mut Families) + Send + Sync>;

impl ApiServer {
    /// Decides requests.
    pub fn authorizer(&self) -> &Authorizer {
        &self.authorizer
    }

    /// Programs outside that answer over HTTPS.
    pub fn hooks(&self) -> &Arc<Hooks> {
        &self.hooks
    }

    /// Reads and writes objects.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Who sends a request.
    pub async fn authenticate(&self, presented: &Presented, headers: &HeaderMap) -> ApiResult<UserInfo> {
        self.authentication.request(self, presented, headers).await
    }

    /// Answers a request of an authenticated user. Never fails: refusals are answers.
    pub async fn serve(self: Arc<Self>, user: UserInfo, request: Request<Bytes>) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        let gzip = compression::is_asked(&parts.headers);
        let response = if self.gates.cbor {
            match cbor::request(&mut parts, body) {
                Ok((asked, body)) => {
                    let info = RequestInfo::parse(&parts.method, parts.uri.path(), parts.uri.query());
                    let is_watch = info.verb == "watch";
                    cbor::answer(asked, is_watch, self.observed(user, info, parts, body).await).await
                }
                Err(error) => answer::error(&Form::JSON, &error),
            }
        } else {
            let info = RequestInfo::parse(&parts.method, parts.uri.path(), parts.uri.query());
            self.observed(user, info, parts, body).await
        };
        if gzip { compression::compress(response) } else { response }
    }

    /// Answers, counts and times it, and records what the audit policy wants recorded, a failure of our own included.
    async fn observed(
        self: &Arc<Self>,
        user: UserInfo,
        info: RequestInfo,
        parts: http::request::Parts,
        body: Bytes,
    ) -> Response<Body> {
        let is_long = is_long_running(&info, &parts.headers);
        let running = self.requests.begin(&self.kinds, &info, &parts.headers, is_long);
        let mut waited = Duration::ZERO;
        let response = self.recorded(user, &info, parts, body, &mut waited).await;
        self.requests.end(&running, &info, response.status(), waited);
        response
    }

    /// The same without its metrics.
    async fn recorded(
        self: &Arc<Self>,
        user: UserInfo,
        info: &RequestInfo,
        parts: http::request::Parts,
        body: Bytes,
        waited: &mut Duration,
    ) -> Response<Body> {
        let fallback = negotiate::choose(&parts.headers, Answer::Object).unwrap_or(Form::JSON);
        let mut trail = match &self.audit {
            Some(audit) => match audit.begin(&user, info, &parts, &body).await {
                Ok(trail) => trail,
                Err(error) => return answer::error(&fallback, &error),
            },
            None => None,
        };
        let mut flow = None;
        let legacy_token = user.legacy_token.clone();
        let answering = self.answer(user, info, parts, body, trail.as_mut(), (&mut flow, waited));
        let answered = match AssertUnwindSafe(answering).catch_unwind().await {
            Ok(answered) => answered,
            Err(panic) => {
                let why = reason(&*panic);
                tracing::error!(path = info.path, why, "a request panicked");
                let error = ApiError::internal_text(PANICKED);
                return match trail {
                    Some(trail) => trail.panicked(why, answer::error(&fallback, &error)).await,
                    None => answer::error(&fallback, &error),
                };
            }
        };
        let mut response = answered.unwrap_or_else(|error| answer::error(&fallback, &error));
        if let Some(flow) = flow {
            flow.mark(response.headers_mut());
        }
        if let Some(legacy_token) = legacy_token {
            legacy_token.note(&mut response);
        }
        match trail {
            Some(trail) => trail.end(response).await,
            None => response,
        }
    }

    async fn answer(
        self: &Arc<Self>,
        user: UserInfo,
        info: &RequestInfo,
        parts: http::request::Parts,
        body: Bytes,
        mut trail: Option<&mut Trail>,
        (flow, waited): (&mut Option<Arc<Flow>>, &mut Duration),
    ) -> ApiResult<Response<Body>> {
        if user.name == ANONYMOUS && !self.authentication.admits_anonymous(&info.path) {
            return Err(ApiError::unauthorized());
        }
        let attributes = Attributes::of(info);
        let acting = impersonated(&self.authorizer, &user, &parts.headers, &attributes).await?;
        if let (Some(trail), Some(acting)) = (trail.as_deref_mut(), &acting) {
            trail.acts_as(acting);
        }
        let user = acting.unwrap_or(user);
        let came = Instant::now();
        let place = self.admit(&user, info, &parts.headers, flow).await;
        *waited = came.elapsed();
        let place = place?;
        let decision = self.authorizer.authorize(&user, &attributes).await;
        if let Some(trail) = trail {
            trail.decided(decision.is_ok(), decision.as_deref().unwrap_or_default());
        }
        decision?;
        if let Some(remote) = self.remote(info) {
            return self.aggregator.pass(self.registry.cache(), &remote, &user, &parts, body).await;
        }
        if !info.is_resource {
            if let Some(answer) = administration::run(self, &parts.method, &info.path).await {
                return answer;
            }
            return self.other(info, &parts);
        }
        if info.verb.is_empty() {
            return Err(ApiError::method_not_allowed());
        }
        let kind = self.kind(info).await?;
        let call = Call { server: self, user: &user, info, kind: &kind, parts: &parts, body, place };
        let mut notes = Notes::default();
        notes.warnings.extend(deprecation(&kind));
        let answered = call.run(&mut notes).await;
        let is_refused = answered.is_err();
        let mut response = match answered {
            Ok(response) => response,
            Err(error) => {
                let form = negotiate::choose(&parts.headers, Answer::Object).unwrap_or(Form::JSON);
                answer::error(&form, &error)
            }
        };
        if !is_refused && !is_long_running(info, &parts.headers) {
            response.extensions_mut().insert(compression::Ours);
        }
        // what was found worth a word before a refusal is told with it
        write::noted(&mut response, notes);
        Ok(response)
    }

    async fn kind(&self, info: &RequestInfo) -> ApiResult<Arc<Kind>> {
        match extensions::find(self, &info.group, &info.version, &info.resource).await? {
            // what no definition serves is told by the text that unknown paths get
            Some(kind) if kind.definition.is_some() && !is_in_scope(&kind, info) => {
                Err(ApiError::no_such_page())
            }
            Some(kind) => Ok(kind),
            None => {
                let kinds = self.kinds.now();
                let mut rows = kinds.of_version(&info.group, &info.version);
                Err(match rows.any(|kind| kind.definition.is_none()) {
                    true => ApiError::no_such_resource(),
                    false => ApiError::no_such_page(),
                })
            }
        }
    }

    /// Waits for the request's turn. A watch has its seats until it has begun; other streams need none.
    async fn admit(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
        headers: &HeaderMap,
        flow: &mut Option<Arc<Flow>>,
    ) -> ApiResult<Option<Place>> {
        if info.verb != "watch" && is_long_running(info, headers) {
            return Ok(None);
        }
        let Some(own) = self.fairness.classify(user, info) else { return Ok(None) };
        let own = flow.insert(own);
        let work = own.level.estimate(|nominal| fairness::work::estimate(self, info, nominal));
        match self.fairness.admit(own, user, info, work).await {
            Ok(place) => Ok(Some(place)),
            Err(_) => Err(ApiError::overloaded()),
        }
    }

    /// The other server that answers for a path, its OpenAPI documents included.
    fn remote(&self, info: &RequestInfo) -> Option<Arc<Remote>> {
        let path = info.path.strip_prefix("/openapi/v3").unwrap_or(&info.path);
        self.aggregator.of_path(self.registry.cache(), path)
    }

    /// Paths that name no object: health, version, discovery, OpenAPI.
    fn other(&self, info: &RequestInfo, parts: &http::request::Parts) -> ApiResult<Response<Body>> {
        let known = matches!(parts.method, Method::GET | Method::HEAD);
        let path = info.path.trim_end_matches('/');
        let form = || negotiate::choose(&parts.headers, Answer::Document);
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let kinds = extensions::all_kinds(self);
        let document = match segments[..] {
            _ if !known => return Err(ApiError::method_not_allowed()),
            ["healthz" | "livez" | "readyz"] => return Ok(health(info)),
            ["healthz" | "livez" | "readyz", check] if CHECKS.contains(&check) => return Ok(health(info)),
            ["version"] => self.version.clone(),
            ["api"] | ["apis"] => {
                if let Some(aggregated) = asked_aggregated(&parts.headers) {
                    let mut value = discovery::aggregated(&kinds, aggregated, path == "/api");
                    if path == "/apis" {
                        self.aggregator.extend_aggregated(self.registry.cache(), &mut value);
                    }
                    return Ok(self.aggregated(&parts.headers, aggregated, &value));
                }
                if path == "/api" {
                    discovery::api_versions(&self.address)
                } else {
                    let mut list = discovery::group_list(&kinds);
                    self.aggregator.extend_groups(self.registry.cache(), &mut list);
                    list
                }
            }
            ["api", version] => {
                discovery::resource_list(&kinds, "", version).ok_or_else(ApiError::no_such_page)?
            }
            ["apis", group] => {
                let own = discovery::group(&kinds, group);
                let group = self.aggregator.extend_group(self.registry.cache(), group, own);
                group.ok_or_else(ApiError::no_such_page)?
            }
            ["apis", group, version] => {
                discovery::resource_list(&kinds, group, version).ok_or_else(ApiError::no_such_page)?
            }
            ["openapi", "v3"] if !self.aggregator.remotes(self.registry.cache()).is_empty() => {
                let mut index = openapi::index(&kinds);
                self.aggregator.extend_openapi(self.registry.cache(), &mut index);
                index
            }
            ["openapi", ..] => {
                let others = self.aggregator.swaggers(self.registry.cache());
                return self.openapi.answer(&kinds, path, info.query.get("hash"), &parts.headers, &others);
            }
            ["openid", "v1", "jwks"] => {
                return Ok(answer::bytes(200, "application/jwk-set+json", self.tokens.key_set().to_string()));
            }
            [".well-known", "openid-configuration"] => json!({
                "issuer": auth::token::ISSUER, "jwks_uri": format!("https://{}/openid/v1/jwks", self.address),
                "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            }),
            ["metrics"] => {
                return Ok(answer::bytes(200, metrics::CONTENT_TYPE, self.metrics_text()));
            }
            ["statusz"] => {
                let version = self.version["gitVersion"].as_str().unwrap_or_default();
                return Ok(page(parts, Page::Status { started: self.started, version, paths: PAGES }));
            }
            ["flagz"] => return Ok(page(parts, Page::Flags(&self.flags))),
            ["debug", "api_priority_and_fairness", page] => {
                let page = fairness::dump::page(&self.fairness, page).ok_or_else(ApiError::no_such_page)?;
                return Ok(answer::text(200, page));
            }
            [""] | [] => json!({"paths": self.paths()}),
            _ => return Err(ApiError::no_such_page()),
        };
        Ok(answer::value(200, &form()?, &document))
    }

    fn aggregated(&self, headers: &HeaderMap, form: Aggregated, value: &serde_json::Value) -> Response<Body> {
        let text = value.to_string();
        let tag = discovery::etag(text.as_bytes());
        let same = headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes());
        let mut response = if same {
            answer::bytes(304, form.content_type(), Bytes::new())
        } else {
            answer::bytes(200, form.content_type(), text)
        };
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
        response
    }

    fn metrics_text(&self) -> String {
        let mut families = Families::default();
        let help = "[STABLE] A metric with a constant '1' value labeled by git version.";
        let version = [("git_version", self.version["gitVersion"].as_str().unwrap_or_default())];
        families.value(metrics::Kind::Gauge, "kubernetes_build_info", help, &version, 1.0, None);
        self.requests.collect(&self.kinds, self.registry.cache(), &self.aggregator, &mut families);
        fairness::metrics::collect(&self.fairness, &mut families);
        self.token_uses.collect(&mut families);
        self.metrics.lock().iter().for_each(|collect| collect(&mut families));
        client::process::collect(&mut families);
        families.text()
    }

    fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = [
            "/api",
            "/api/v1",
            "/debug/api_priority_and_fairness/dump_priority_levels",
            "/debug/api_priority_and_fairness/dump_queues",
            "/debug/api_priority_and_fairness/dump_requests",
            "/apis",
            "/flagz",
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/openid/v1/jwks",
            "/readyz",
            "/statusz",
            "/version",
            "/.well-known/openid-configuration",
        ]
        .map(str::to_owned)
        .into();
        for group in self.kinds.now().groups().iter().filter(|g| !g.name.is_empty()) {
            paths.push(format!("/apis/{}", group.name));
            paths.extend(group.versions.iter().map(|v| format!("/apis/{}/{v}", group.name)));
        }
        paths.sort();
        paths
    }
}

/// Whether a request to a custom resource is of its scope: a namespaced one is listed and watched in all namespaces, too.
fn is_in_scope(kind: &Kind, info: &RequestInfo) -> bool {
    match kind.namespaced {
        true => !info.namespace.is_empty() || matches!(info.verb.as_str(), "list" | "watch"),
        false => info.namespace.is_empty(),
    }
}

/// Whether the answer is a stream: of events, or of what a container or another server says.
fn is_long_running(info: &RequestInfo, headers: &HeaderMap) -> bool {
    info.verb == "watch"
        || is_upgrade(headers)
        || matches!(info.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy")
}

/// What a panic said.
fn reason(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given")
}

fn asked_aggregated(headers: &HeaderMap) -> Option<Aggregated> {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .find_map(|clause| {
            let parameters = clause.split(';').skip(1).filter_map(|p| p.trim().split_once('='));
            Aggregated::of_parameters(parameters)
        })
}

/// The single checks of health: the parts without which no request is answered.
const CHECKS: &[&str] = &["ping", "store", "etcd", "watch-cache"];

/// What `/statusz` names.
const PAGES: &[&str] =
    &["/debug", "/flagz", "/healthz", "/livez", "/metrics", "/readyz", "/statusz", "/version"];

/// A page for people, or for programs that name its type.
fn page(parts: &http::request::Parts, page: Page<'_>) -> Response<Body> {
    let accept = parts.headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let page = page.answer("kube-apiserver", accept, Timestamp::now());
    let mut response = answer::bytes(page.code, page.content_type, page.body);
    let warning = page.warning.and_then(|text| HeaderValue::from_str(&text).ok());
    response.headers_mut().extend(warning.map(|text| (header::WARNING, text)));
    response
}

fn health(info: &RequestInfo) -> Response<Body> {
    let name = info.path.trim_matches('/').split('/').next().unwrap_or_default();
    let mut response = if info.query.has("verbose") {
        answer::text(200, format!("[+]ping ok\n[+]store ok\n[+]watch-cache ok\n{name} check passed\n"))
    } else {
        answer::text(200, "ok")
    };
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// One request about a resource.
pub struct Call<'a> {
    /// The server.
    pub server: &'a Arc<ApiServer>,
    /// Who asks.
    pub user: &'a UserInfo,
    /// What for.
    pub info: &'a RequestInfo,
    /// The kind it is about.
    pub kind: &'a Arc<Kind>,
    /// Method and headers.
    pub parts: &'a http::request::Parts,
    /// The body.
    pub body: Bytes,
    /// The seats it has until it ends.
    pub place: Option<Place>,
}

impl Call<'_> {
    /// The object the request names.
    pub fn target(&self) -> Target<'_> {
        Target {
            kind: self.kind,
            namespace: if self.kind.namespaced { &self.info.namespace } else { "" },
            name: &self.info.name,
            subresource: &self.info.subresource,
        }
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// The form of the answer; tables and metadata-only forms included.
    pub fn form(&self) -> ApiResult<Form> {
        let answer = match self.info.verb.as_str() {
            "list" | "deletecollection" => Answer::List,
            "watch" => Answer::Watch,
            _ => Answer::Object,
        };
        // a custom resource has no messages, its scale does
        let sub = self.kind.subresource(&self.info.subresource);
        let has_messages = self.kind.has_messages() || sub.is_some_and(|s| s.type_name.is_some());
        let form = negotiate::choose_of(&self.parts.headers, answer, has_messages)?;
        if answer == Answer::List && matches!(form.view, View::Metadata { of_list: false, .. }) {
            return Err(ApiError::no_single_object(&self.kind.list_kind));
        }
        Ok(form)
    }

    async fn run(self, notes: &mut Notes) -> ApiResult<Response<Body>> {
        let (info, kind) = (self.info, self.kind);
        if !info.subresource.is_empty() {
            let known = kind.subresource(&info.subresource).ok_or_else(ApiError::no_such_resource)?;
            let connects = matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy");
            if !connects && !known.verbs.contains(&info.verb.as_str()) {
                return Err(ApiError::method_not_allowed());
            }
        } else if info.verb == "create" && kind.is_terminating() {
            return Err(ApiError::terminating(kind, &info.verb));
        } else if !kind.takes_verb(&info.verb) {
            return Err(ApiError::method_not_allowed());
        }
        if kind.namespaced && info.namespace.is_empty() && !matches!(info.verb.as_str(), "list" | "watch") {
            return Err(ApiError::method_not_allowed());
        }
        // objects are made in their collection, and written under their name
        let is_misplaced = match info.verb.as_str() {
            "create" => !info.name.is_empty(),
            "update" | "patch" => info.name.is_empty(),
            _ => false,
        };
        if info.subresource.is_empty() && is_misplaced {
            return Err(ApiError::method_not_allowed());
        }
        if let Some(answer) = subresources::run(&self, notes).await {
            return answer;
        }
        let registry = &self.server.registry;
        match info.verb.as_str() {
            "get" => read::get(registry, self.target(), info, &self.form()?).await,
            "list" => read::list(registry, kind, info, &self.form()?).await,
            "watch" => {
                let retired = self.server.kinds.retirement(kind);
                let form = self.form()?;
                read::watch(registry, kind, info, &form, retired, self.place).await
            }
            "create" => write::create(&self, notes).await,
            "update" => write::update(&self, notes).await,
            "patch" => write::patch(&self, notes).await,
            "delete" => write::delete(&self, notes).await,
            "deletecollection" => write::delete_collection(&self, notes).await,
            _ => Err(ApiError::method_not_allowed()),
        }
    }
}

/// What every answer about a kind warns of, where its version is to go.
fn deprecation(kind: &Kind) -> Option<String> {
    match (&kind.definition, kind.group.as_str(), kind.kind.as_str()) {
        (Some(definition), ..) => definition.own().deprecation.clone(),
        (None, "", "ComponentStatus") => Some("v1 ComponentStatus is deprecated in v1.19+".to_owned()),
        (None, "", "Endpoints") => {
            Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned())
        }
        _ => None,
    }
}
