//! Admission webhooks: programs outside that may change or refuse a request.
//!
//! Both kinds of configuration are read from the watch cache and compiled once for each state of them ([`compile`]);
//! [`matching`] decides which webhooks a request concerns, [`review`] is what is sent and answered. Mutating webhooks
//! run one after the other, each on what the one before left; validating ones all at the same time.
//!
//! Rule: Kubernetes documentation, "Dynamic Admission Control"; API reference of `admission.k8s.io/v1`.

pub mod answers;
mod compile;
mod matching;
mod mutating;
mod review;
mod validating;

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::Value;

use self::compile::{Compiled, configuration_kinds};
pub use self::matching::{Invocation, Rule, matching_kind, question, selects_namespace, selects_object};
pub use self::review::facts;
use super::chain::Request;
use crate::status::ApiError;
use crate::watch_cache::WatchCache;
use crate::webhook::{HookError, Hooks};

/// The webhooks, as they are configured now.
#[derive(Default)]
pub struct Webhooks {
    hooks: Arc<Hooks>,
    compiled: ArcSwap<Compiled>,
}

impl Webhooks {
    /// Uses and shares the connections of `hooks`.
    pub fn new(hooks: Arc<Hooks>) -> Self {
        Self { hooks, compiled: ArcSwap::default() }
    }

    /// The webhooks of the newest configurations that the cache has.
    fn current(&self, cache: &WatchCache) -> Arc<Compiled> {
        let [mutating, validating] = configuration_kinds();
        let state = [cache.changed(mutating), cache.changed(validating)];
        let known = self.compiled.load();
        if known.state == state {
            return known.clone();
        }
        let fresh = Arc::new(Compiled::new(state, cache, &self.hooks));
        self.compiled.store(fresh.clone());
        fresh
    }
}

/// Configurations of admission itself: no webhook can stand between an administrator and the repair of webhooks.
fn is_exempt(request: &Request<'_>) -> bool {
    let (group, _, kind) = request.type_name();
    group == "admissionregistration.k8s.io"
        && matches!(
            kind,
            "ValidatingWebhookConfiguration"
                | "MutatingWebhookConfiguration"
                | "ValidatingAdmissionPolicy"
                | "ValidatingAdmissionPolicyBinding"
                | "MutatingAdmissionPolicy"
                | "MutatingAdmissionPolicyBinding"
        )
}

/// How a call of a webhook fails.
#[derive(Debug)]
enum Failure {
    /// The webhook was not reached or answered nonsense: its failure policy decides.
    Calling(String),
    /// A refusal, whatever the policy.
    Refused(ApiError),
}

impl Failure {
    fn calling(webhook: &str, why: impl std::fmt::Display) -> Self {
        Self::Calling(format!("failed calling webhook {webhook:?}: {why}"))
    }

    fn of_call(webhook: &str, error: &HookError) -> Self {
        match error {
            HookError::Config(why) => Self::calling(webhook, format!("could not get REST client: {why}")),
            other => Self::calling(webhook, format!("failed to call webhook: {other}")),
        }
    }
}

/// What the first run of the mutating webhooks leaves for the second.
#[derive(Debug, Default)]
pub struct Reinvoked {
    /// Webhooks that ran and want to run again where something changed after them.
    previous: HashSet<String>,
    /// Those of them that something changed after.
    due: HashSet<String>,
    /// What the webhooks made of the object.
    output: Option<Value>,
}

impl Reinvoked {
    fn require_previous(&mut self) {
        self.due.extend(self.previous.drain());
    }
}
