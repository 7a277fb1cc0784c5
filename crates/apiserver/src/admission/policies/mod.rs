//! Admission policies: rules in CEL that change or refuse a request, without a program outside.
//!
//! Policies and bindings are read from the watch cache. A policy's expressions are compiled once for each generation of it
//! ([`compile`]), never per request; parameters and namespaces come from the watch cache, too, so a request waits for
//! nothing. [`validating`] decides, [`mutating`] changes; [`select`] finds what concerns a request, [`inputs`] is what
//! expressions see.
//!
//! Rule: Kubernetes documentation, "Validating Admission Policy", "Mutating Admission Policy".

pub mod check;
mod compile;
mod inputs;
mod mutating;
mod select;
mod validating;

use std::sync::Arc;

use arc_swap::ArcSwap;

use self::compile::{Compiled, policy_kinds};
pub use self::mutating::Reinvoked;
use super::chain::Request;
use crate::watch_cache::WatchCache;

/// The policies, as they are configured now.
#[derive(Default)]
pub struct Policies {
    compiled: ArcSwap<Compiled>,
}

impl Policies {
    /// The policies and bindings of the newest state that the cache has.
    fn current(&self, cache: &WatchCache) -> Arc<Compiled> {
        let state = policy_kinds().map(|kind| cache.changed(kind));
        let known = self.compiled.load();
        if known.state == state {
            return known.clone();
        }
        let fresh = Arc::new(Compiled::new(state, cache, &known));
        self.compiled.store(fresh.clone());
        fresh
    }
}

/// What no policy is asked about: policies themselves, so that a bad one can be repaired, and questions about who may do
/// what.
fn is_exempt(request: &Request<'_>) -> bool {
    let (group, plural) = (request.kind.group.as_str(), request.kind.plural.as_str());
    match group {
        "admissionregistration.k8s.io" => {
            plural.starts_with("validatingadmissionpolic") || plural.starts_with("mutatingadmissionpolic")
        }
        "authentication.k8s.io" | "authorization.k8s.io" => true,
        _ => false,
    }
}

/// Why a policy cannot be asked, or what it refuses.
struct Complaint {
    policy: String,
    /// None where the policy itself is at fault.
    binding: Option<String>,
    message: String,
}
