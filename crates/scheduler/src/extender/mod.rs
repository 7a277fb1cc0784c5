//! Extenders: programs outside that are asked over HTTP which nodes take a pod, how good they are, who has to go, and to
//! bind. They are asked one after the other while a decision is made, and no other decision is made meanwhile.
//! Rule: <https://github.com/kubernetes/design-proposals-archive/blob/main/scheduling/scheduler_extender.md>
mod http;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

use crate::evaluate::Candidates;
use crate::filter::{EXTENDER, Rejection};
use crate::pod_info::PodInfo;
use crate::preemption::Victims;
use crate::snapshot::Snapshot;

/// An extender scores from 0 to 10, we from 0 to 100.
const SCALE: i64 = 10;

/// What is shown to an extender, and whom we trust.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Its certificate is not looked at.
    pub insecure: bool,
    /// The name in its certificate; empty: that of the URL.
    pub server_name: String,
    /// Our certificate, PEM.
    pub cert_data: Option<Vec<u8>>,
    /// Its key, PEM.
    pub key_data: Option<Vec<u8>>,
    /// The authority, PEM.
    pub ca_data: Option<Vec<u8>>,
    /// A file with our certificate.
    pub cert_file: Option<PathBuf>,
    /// A file with its key.
    pub key_file: Option<PathBuf>,
    /// A file with the authority.
    pub ca_file: Option<PathBuf>,
}

/// One extender as it is configured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For example `http://127.0.0.1:8888/scheduler`.
    pub url_prefix: String,
    /// Appended to the URL to ask which nodes take a pod; empty: it is not asked. The same of the other verbs.
    pub filter_verb: String,
    /// ... who has to go.
    pub preempt_verb: String,
    /// ... how good nodes are.
    pub prioritize_verb: String,
    /// ... to bind.
    pub bind_verb: String,
    /// How much its scores count.
    pub weight: i64,
    /// HTTPS also where the URL does not say so.
    pub https: bool,
    /// How.
    pub tls: Tls,
    /// How long an answer may take.
    pub timeout: Duration,
    /// It knows the nodes: names are enough.
    pub node_cache_capable: bool,
    /// It is asked only about pods that want one of these; the flag: NodeResourcesFit leaves the resource to it.
    pub managed: Vec<(String, bool)>,
    /// Without an answer the decision goes on.
    pub ignorable: bool,
}

/// Why an extender gives no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ExtenderError {
    /// The configuration cannot be used.
    #[error("extender {0:?}: {1}")]
    Settings(String, String),
    /// It is not reached, or does not answer in time.
    #[error("Post {0:?}: {1}")]
    Call(String, String),
    /// It answered with a failure.
    #[error("failed {verb} with extender at URL {url}, code {code}")]
    Status {
        /// What it was asked.
        verb: String,
        /// Where.
        url: String,
        /// The HTTP status.
        code: u16,
    },
    /// It says why it cannot.
    #[error("{0}")]
    Said(String),
}

/// One extender.
pub struct Extender {
    settings: Settings,
    http: http::Http,
}

/// A field of an answer, whatever its case: programs in Go do not care either.
fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    let entries = value.as_object().into_iter().flatten();
    entries.into_iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map_or(&Value::Null, |(_, v)| v)
}

fn texts(value: &Value) -> HashMap<String, String> {
    let entries = value.as_object().into_iter().flatten();
    entries.into_iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect()
}

impl Extender {
    /// Checks the settings; nothing is dialled yet.
    pub fn new(settings: Settings) -> Result<Self, ExtenderError> {
        let http = http::Http::new(&settings)
            .map_err(|reason| ExtenderError::Settings(settings.url_prefix.clone(), reason))?;
        Ok(Self { settings, http })
    }

    /// Whether a failure of it fails the decision.
    pub fn is_ignorable(&self) -> bool {
        self.settings.ignorable
    }

    /// Whether it binds pods.
    pub fn binds(&self) -> bool {
        !self.settings.bind_verb.is_empty()
    }

    /// Whether it is asked about victims.
    pub fn preempts(&self) -> bool {
        !self.settings.preempt_verb.is_empty()
    }

    /// Whether the pod is its business.
    pub fn is_interested(&self, pod: &Pod) -> bool {
        let managed = |name: &String| self.settings.managed.iter().any(|(n, _)| n == name);
        let asks = |c: &Container| {
            let lists = c.resources.iter().flat_map(|r| [&r.requests, &r.limits]);
            lists.flatten().flat_map(|l| l.keys()).any(managed)
        };
        let Some(spec) = &pod.spec else { return false };
        self.settings.managed.is_empty()
            || spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(asks)
    }

    async fn ask(&self, verb: &str, question: &Value) -> Result<Value, ExtenderError> {
        let url = format!("{}/{verb}", self.settings.url_prefix);
        let answer = tokio::time::timeout(self.settings.timeout, self.http.post(verb, question)).await;
        let (code, body) = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(reason)) => return Err(ExtenderError::Call(url, reason)),
            Err(_) => {
                let reason = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
                return Err(ExtenderError::Call(url, reason.to_owned()));
            }
        };
        if code != 200 {
            return Err(ExtenderError::Status { verb: verb.to_owned(), url, code });
        }
        serde_json::from_slice(&body).map_err(|error| ExtenderError::Said(error.to_string()))
    }

    fn question(&self, pod: &PodInfo, slots: &[usize], snapshot: &Snapshot) -> Value {
        let nodes = slots.iter().map(|s| snapshot.node(*s));
        if self.settings.node_cache_capable {
            let names: Vec<&str> = nodes.map(|n| &*n.name).collect();
            json!({"Pod": *pod.pod, "Nodes": null, "NodeNames": names})
        } else {
            let items: Vec<_> = nodes.filter_map(|n| n.node.as_deref()).collect();
            json!({"Pod": *pod.pod, "Nodes": {"metadata": {}, "items": items}, "NodeNames": null})
        }
    }

    /// Leaves the candidates that it takes, too; the others with their reasons.
    pub async fn filter(
        &self,
        pod: &PodInfo,
        candidates: &mut Candidates,
        snapshot: &Snapshot,
    ) -> Result<Vec<(usize, Arc<Rejection>)>, ExtenderError> {
        if self.settings.filter_verb.is_empty() {
            return Ok(Vec::new());
        }
        let question = self.question(pod, &candidates.slots, snapshot);
        let answer = self.ask(&self.settings.filter_verb, &question).await?;
        let error = field(&answer, "error").as_str().unwrap_or_default();
        if !error.is_empty() {
            return Err(ExtenderError::Said(error.to_owned()));
        }
        let names = field(&answer, "nodeNames");
        let kept: HashSet<&str> = match names.as_array().filter(|_| self.settings.node_cache_capable) {
            Some(names) => names.iter().filter_map(Value::as_str).collect(),
            None => {
                let items = field(field(&answer, "nodes"), "items").as_array().into_iter().flatten();
                items.filter_map(|n| n["metadata"]["name"].as_str()).collect()
            }
        };
        let known: HashSet<&str> = candidates.slots.iter().map(|s| &*snapshot.node(*s).name).collect();
        if let Some(strange) = kept.iter().find(|name| !known.contains(*name)) {
            return Err(ExtenderError::Said(format!(
                "extender {:?} claims a filtered node {strange:?} which is not found in the input node list",
                self.settings.url_prefix
            )));
        }
        let (failed, final_) =
            (texts(field(&answer, "failedNodes")), texts(field(&answer, "failedAndUnresolvableNodes")));
        let mut out = Vec::new();
        candidates.retain(|slot| {
            let name = &*snapshot.node(slot).name;
            if kept.contains(name) {
                return true;
            }
            let (text, resolvable) = match (final_.get(name), failed.get(name)) {
                (Some(text), _) => (text.as_str(), false),
                (None, text) => (text.map_or("", String::as_str), true),
            };
            out.push((slot, Arc::new(Rejection::new(EXTENDER, text, resolvable))));
            false
        });
        Ok(out)
    }

    /// What it adds to the candidates' scores.
    pub async fn prioritize(
        &self,
        pod: &PodInfo,
        slots: &[usize],
        snapshot: &Snapshot,
    ) -> Result<Vec<i64>, ExtenderError> {
        if self.settings.prioritize_verb.is_empty() {
            return Ok(vec![0; slots.len()]);
        }
        let answer = self.ask(&self.settings.prioritize_verb, &self.question(pod, slots, snapshot)).await?;
        let list = answer.as_array().into_iter().flatten();
        let scores: HashMap<&str, i64> = list
            .filter_map(|s| Some((field(s, "host").as_str()?, field(s, "score").as_i64().unwrap_or(0))))
            .collect();
        let of = |slot: &usize| scores.get(&*snapshot.node(*slot).name).copied().unwrap_or(0);
        Ok(slots
            .iter()
            .map(|slot| of(slot).saturating_mul(self.settings.weight).saturating_mul(SCALE))
            .collect())
    }

    /// The candidates for preemption that it agrees to, with the victims it wants.
    pub async fn preempt(
        &self,
        pod: &PodInfo,
        candidates: &[Victims],
        snapshot: &Snapshot,
    ) -> Result<Vec<Victims>, ExtenderError> {
        let by_node = |victims: &dyn Fn(&Victims) -> Value| -> Value {
            let entry = |v: &Victims| {
                let pods = victims(v);
                (
                    snapshot.node(v.slot).name.to_string(),
                    json!({"Pods": pods, "NumPDBViolations": v.violations}),
                )
            };
            Value::Object(candidates.iter().map(entry).collect())
        };
        let question = if self.settings.node_cache_capable {
            let pods = |v: &Victims| v.pods.iter().map(|p| json!({"UID": *p.uid})).collect();
            json!({"Pod": *pod.pod, "NodeNameToVictims": null, "NodeNameToMetaVictims": by_node(&pods)})
        } else {
            let pods = |v: &Victims| v.pods.iter().map(|p| json!(*p.pod)).collect();
            json!({"Pod": *pod.pod, "NodeNameToVictims": by_node(&pods), "NodeNameToMetaVictims": null})
        };
        let answer = self.ask(&self.settings.preempt_verb, &question).await?;
        let mut kept = Vec::new();
        for (name, victims) in field(&answer, "nodeNameToMetaVictims").as_object().into_iter().flatten() {
            let unknown = |what: String| ExtenderError::Said(what);
            let slot = snapshot
                .find(name)
                .ok_or_else(|| unknown(format!("nodeinfo not found for node name {name:?}")))?;
            let mut pods = Vec::new();
            for uid in field(victims, "pods").as_array().into_iter().flatten() {
                let uid = field(uid, "uid").as_str().unwrap_or_default();
                let found = snapshot.node(slot).pod(uid).ok_or_else(|| {
                    unknown(format!(
                        "extender: {} claims to preempt pod (UID: {uid}) on node: {name}, but the pod is not found on \
                         that node",
                        self.settings.url_prefix
                    ))
                })?;
                pods.push(found.clone());
            }
            if pods.is_empty() {
                let text = format!("expected at least one victim pod on node {name:?}");
                return Err(ExtenderError::Said(text));
            }
            let violations = field(victims, "numPDBViolations").as_u64().unwrap_or(0);
            let violations = usize::try_from(violations).unwrap_or(usize::MAX);
            pods.sort_by_key(|p| (std::cmp::Reverse(p.priority), p.started()));
            kept.push(Victims { slot, pods, violations });
        }
        Ok(kept)
    }

    /// Binds the pod.
    pub async fn bind(&self, pod: &Pod, node: &str) -> Result<(), ExtenderError> {
        let question = json!({
            "PodName": pod.metadata.name, "PodNamespace": pod.metadata.namespace, "PodUID": pod.metadata.uid,
            "Node": node,
        });
        let answer = self.ask(&self.settings.bind_verb, &question).await?;
        match field(&answer, "error").as_str() {
            None | Some("") => Ok(()),
            Some(error) => Err(ExtenderError::Said(error.to_owned())),
        }
    }
}
