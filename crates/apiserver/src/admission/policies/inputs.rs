//! What a policy's expressions see of a request.

use std::sync::Arc;

use api::kinds::Kind;
use serde_json::Value;

use crate::admission::chain::Request;
use crate::admission::webhooks::answers::ForUser;
use crate::admission::webhooks::{facts, question};
use crate::cel::admission::Inputs;
use crate::cel::{Answers, Question};
use crate::convert;
use crate::pipeline::ApiServer;
use crate::status::{ApiError, ApiResult};

/// The parts of an evaluation that outlive it.
pub(super) struct Shown {
    /// The `AdmissionRequest` without objects.
    request: Value,
    /// Null on creation.
    old: Value,
    /// Null for cluster-scoped objects.
    namespace: Arc<Value>,
    answers: Arc<dyn Answers>,
    question: Question,
}

impl Shown {
    /// A request in the version of `kind`.
    pub(super) fn new(server: &ApiServer, request: &Request<'_>, kind: &Kind, namespace: Arc<Value>) -> Self {
        let cache = server.registry.cache().clone();
        Self {
            request: Value::Object(facts(request, kind)),
            old: request.old.map_or(Value::Null, |old| convert::shown_now(kind, request.object_type, old)),
            namespace,
            answers: Arc::new(ForUser::new(cache, request.user.clone())),
            question: question(request),
        }
    }

    /// With the object, null on deletion, and a parameter, null for none.
    pub(super) fn inputs<'a>(&'a self, object: &'a Value, params: &'a Value) -> Inputs<'a> {
        Inputs {
            request: &self.request,
            object,
            old_object: &self.old,
            params,
            namespace: &self.namespace,
            authorizer: Some((&self.answers, &self.question)),
        }
    }
}

/// The namespace of a request, or null where it is cluster-scoped (a namespace is in none).
pub(super) fn namespace(server: &ApiServer, request: &Request<'_>) -> ApiResult<Arc<Value>> {
    let is_namespace = request.kind.group.is_empty() && request.kind.plural == "namespaces";
    if request.namespace.is_empty() || is_namespace {
        return Ok(Arc::new(Value::Null));
    }
    let namespaces = api::kinds::find("", "v1", "namespaces").ok_or_else(ApiError::no_such_resource)?;
    match server.registry.cache().get(namespaces, &namespaces.key("", request.namespace)) {
        Some(found) => Ok(Arc::new(found.to_value())),
        None => Err(ApiError::not_found(namespaces, request.namespace)),
    }
}
