//! API aggregation: versions of groups that other servers answer for, as APIService objects say.
//!
//! [`Aggregator`] knows which they are: its table is made anew when an APIService has changed in the watch cache.
//! [`proxy`] passes requests on, authenticated with the front proxy's certificate; [`availability`] keeps the
//! `Available` conditions, and what each server says it serves, up to date; [`documents`] puts that into discovery, [`swagger`] into OpenAPI v2.
//!
//! Rule: Kubernetes documentation, "Kubernetes API Aggregation Layer", "Configure the Aggregation Layer".

pub mod authentication;
pub mod availability;
pub mod documents;
pub mod proxy;
pub mod swagger;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::kinds::Kind;
use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::tls;
use parking_lot::Mutex;
use serde_json::Value;
use tokio_rustls::TlsConnector;

use crate::backend::Dialer;
use crate::pki::Identity;
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::WatchCache;
use crate::webhook::{Address, HTTP1};

/// The kind of APIServices.
pub fn kind() -> ApiResult<&'static Arc<Kind>> {
    api::kinds::find("apiregistration.k8s.io", "v1", "apiservices").ok_or_else(ApiError::no_such_resource)
}

/// A version of a group that another server answers for.
pub struct Remote {
    /// The APIService's name: `version.group`.
    pub name: String,
    /// API group.
    pub group: String,
    /// Version.
    pub version: String,
    /// The service to ask.
    pub service: Address,
    /// What the server's certificate names: `service.namespace.svc`.
    pub host: String,
    /// Whether the last check passed.
    pub is_available: bool,
    /// The order of groups, then of versions, in discovery; higher is earlier.
    pub priority: (i64, i64),
    tls: Result<TlsConnector, String>,
}

#[derive(Default)]
struct Table {
    changed: u64,
    remotes: Vec<Arc<Remote>>,
}

/// What other servers answer for.
pub struct Aggregator {
    identity: Identity,
    /// Takes any certificate: availability is no secret.
    trusting: TlsConnector,
    dialer: Dialer,
    table: ArcSwap<Table>,
    /// What each server said it serves, an `APIResourceList` by APIService.
    served: Mutex<BTreeMap<String, Arc<Value>>>,
    /// The OpenAPI v2 document of each server, by APIService.
    swaggers: Mutex<BTreeMap<String, Arc<swagger::Swagger>>>,
}

impl Aggregator {
    /// Shows `identity` to the other servers.
    pub fn new(identity: Identity) -> Result<Self, rustls::Error> {
        let trusting = connector(&tls::Roots::Anybody, &identity).map_err(rustls::Error::General)?;
        let (dialer, table, served) = (Dialer::default(), ArcSwap::default(), Mutex::default());
        Ok(Self { identity, trusting, dialer, table, served, swaggers: Mutex::default() })
    }

    /// All versions that other servers answer for; the earlier in discovery, the earlier here.
    pub fn remotes(&self, cache: &WatchCache) -> Arc<[Arc<Remote>]> {
        self.current(cache).remotes.as_slice().into()
    }

    /// The server for a path below `/apis/GROUP/VERSION`.
    pub fn of_path(&self, cache: &WatchCache, path: &str) -> Option<Arc<Remote>> {
        let table = self.current(cache);
        if table.remotes.is_empty() {
            return None;
        }
        let mut segments = path.strip_prefix("/apis/")?.splitn(3, '/');
        let (group, version) = (segments.next()?, segments.next()?);
        table.remotes.iter().find(|r| r.group == group && r.version == version).cloned()
    }

    fn current(&self, cache: &WatchCache) -> Arc<Table> {
        let Ok(kind) = kind() else { return self.table.load_full() };
        let changed = cache.changed(kind);
        let known = self.table.load();
        if known.changed == changed {
            return known.clone();
        }
        let services = cache.list(kind, &kind.storage_prefix, None).items;
        let remotes = services.iter().filter_map(|s| self.remote(s.name(), s.value()));
        let mut remotes: Vec<Arc<Remote>> = remotes.map(Arc::new).collect();
        remotes.sort_by(|a, b| {
            let key = |r: &Remote| (-r.priority.0, r.group.clone(), -r.priority.1, r.version.clone());
            key(a).cmp(&key(b))
        });
        let fresh = Arc::new(Table { changed, remotes });
        self.table.store(fresh.clone());
        fresh
    }

    fn remote(&self, name: &str, object: &Value) -> Option<Remote> {
        let spec = &object["spec"];
        let service = spec.get("service").filter(|s| s.is_object())?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (namespace, service_name) = (text(&service["namespace"]), text(&service["name"]));
        let port = service["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
        let bundle = STANDARD.decode(text(&spec["caBundle"])).unwrap_or_default();
        let roots = match spec["insecureSkipTLSVerify"].as_bool() {
            Some(true) => tls::Roots::Anybody,
            _ if bundle.is_empty() => tls::Roots::System,
            _ => tls::Roots::Pem(&bundle),
        };
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        let number = |key: &str| spec[key].as_i64().unwrap_or(0);
        Some(Remote {
            name: name.to_owned(),
            group: text(&spec["group"]),
            version: text(&spec["version"]),
            host: format!("{service_name}.{namespace}.svc"),
            service: Address::Service { namespace, name: service_name, port },
            is_available: conditions.clone().any(|c| c["type"] == "Available" && c["status"] == "True"),
            priority: (number("groupPriorityMinimum"), number("versionPriority")),
            tls: connector(&roots, &self.identity),
        })
    }
}

fn connector(roots: &tls::Roots<'_>, identity: &Identity) -> Result<TlsConnector, String> {
    let shown = (identity.cert_pem.as_bytes(), identity.key_pem.as_bytes());
    tls::config(roots, Some(shown), HTTP1).map(TlsConnector::from).map_err(|e| e.to_string())
}
