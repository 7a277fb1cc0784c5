//! The order in which a write is admitted, and who writes as admission sees it.
//!
//! Mutating: built-in → policies → webhooks, and once more from the beginning where a policy or webhook changed
//! something. Then the registry completes and validates. Validating: built-in → policies → webhooks → quota, last,
//! so that only what everybody else lets pass is charged. A write that loses a race walks the whole chain again on
//! the newer state, as the reference's does.
//!
//! Rule: Kubernetes documentation, "Admission Control in Kubernetes" (phases, reinvocation).

use std::collections::BTreeMap;
use std::sync::Arc;

use api::kinds::Kind;
use serde_json::{Value, json};

use super::quota::Charged;
use super::webhooks::Reinvoked;
use crate::auth::UserInfo;
use crate::body::WriteOptions;
use crate::pipeline::{ApiServer, Call};
use crate::registry::{DeleteOptions, Target};
use crate::status::ApiResult;

/// What a request does, as admission calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new object, or a POST to a subresource.
    Create,
    /// A change of an object, by PUT, PATCH or apply.
    Update,
    /// A deletion.
    Delete,
    /// A stream: `exec`, `attach`, `portforward`, `proxy`.
    Connect,
}

impl Operation {
    /// As rules and reviews write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// The options of a request.
#[derive(Debug, Clone, Copy)]
pub enum Options<'a> {
    /// Of a create or update.
    Write(&'a WriteOptions),
    /// Of a deletion.
    Delete(&'a DeleteOptions),
    /// A stream has none.
    None,
}

/// Group, version and kind.
pub type TypeName<'a> = (&'a str, &'a str, &'a str);

/// A request that admission looks at.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Who asks.
    pub user: &'a UserInfo,
    /// What it does.
    pub operation: Operation,
    /// The kind that the URL names.
    pub kind: &'a Arc<Kind>,
    /// The type of the object, where that is another one than `kind` (`Scale`, `Binding`, `PodExecOptions`).
    pub object_type: Option<TypeName<'a>>,
    /// Where; a namespace is in itself; empty for other cluster-scoped kinds.
    pub namespace: &'a str,
    /// The name in the URL; empty on create without one, and for the objects of a collection.
    pub name: &'a str,
    /// Subresource; empty for none.
    pub subresource: &'a str,
    /// The state before; none for a new object.
    pub old: Option<&'a Value>,
    /// The request's options.
    pub options: Options<'a>,
}

impl<'a> Request<'a> {
    /// A write of the object that the URL names.
    pub fn of(call: &'a Call<'_>, operation: Operation, options: Options<'a>) -> Self {
        let target = call.target();
        let request = Self {
            user: call.user,
            operation,
            kind: call.kind,
            object_type: None,
            namespace: "",
            name: "",
            subresource: target.subresource,
            old: None,
            options,
        };
        request.about(Target { name: &call.info.name, namespace: &call.info.namespace, ..target })
    }

    /// The same request, about this object.
    pub fn about<'b>(&self, target: Target<'b>) -> Request<'b>
    where
        'a: 'b,
    {
        // a namespace is in itself
        let is_namespace = target.kind.group.is_empty() && target.kind.plural == "namespaces";
        let namespace = match target.kind.namespaced {
            true => target.namespace,
            false if is_namespace => target.name,
            false => "",
        };
        Request { namespace, name: target.name, ..*self }
    }

    /// The same request, about an object whose state before was `old`.
    pub fn on<'b>(&self, old: &'b Value) -> Request<'b>
    where
        'a: 'b,
    {
        Request { old: Some(old), ..*self }
    }

    /// The type of the object.
    pub fn type_name(&self) -> TypeName<'a> {
        self.object_type.unwrap_or((&self.kind.group, &self.kind.version, &self.kind.kind))
    }

    /// Whether nothing is stored.
    pub fn is_dry_run(&self) -> bool {
        match self.options {
            Options::Write(options) => options.dry_run,
            Options::Delete(options) => options.dry_run,
            Options::None => false,
        }
    }

    /// The options as reviews and policies see them; null for a stream.
    pub fn options_value(&self) -> Value {
        let (kind, mut value) = match (self.options, self.operation) {
            (Options::Write(options), Operation::Create) => ("CreateOptions", options.to_value()),
            (Options::Write(options), _) => ("UpdateOptions", options.to_value()),
            (Options::Delete(options), _) => ("DeleteOptions", options.to_value()),
            (Options::None, _) => return Value::Null,
        };
        value["kind"] = json!(kind);
        value["apiVersion"] = json!("meta.k8s.io/v1");
        value
    }
}

/// What admission leaves besides its decision.
#[derive(Debug, Default)]
pub struct Notes {
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
    /// Annotations of the request's audit event.
    pub annotations: BTreeMap<String, String>,
}

/// Whether the mutating part of the chain runs a second time, and what the first time left for it.
#[derive(Debug, Default)]
pub struct Reinvocation {
    /// Whether this is the second time.
    pub is_second: bool,
    /// Set by whoever changed the object from outside of the built-in part: everything before may look again.
    pub wanted: bool,
    /// The policies' own part.
    pub policies: super::policies::Reinvoked,
    /// The webhooks' own part.
    pub webhooks: Reinvoked,
}

/// Changes or refuses what is to be written. On deletion and on what is only looked at, nothing is changed.
pub async fn mutate(
    server: &ApiServer,
    request: &Request<'_>,
    object: &mut Value,
    notes: &mut Notes,
) -> ApiResult<()> {
    let before = managed_fields(object).cloned();
    let mut again = Reinvocation::default();
    mutate_once(server, request, object, notes, &mut again).await?;
    if again.wanted {
        again.is_second = true;
        mutate_once(server, request, object, notes, &mut again).await?;
    }
    restore_managed_fields(before, object, notes);
    server.admission.complete(&server.authorizer, request, object).await
}

fn managed_fields(object: &Value) -> Option<&Value> {
    object.get("metadata")?.get("managedFields")
}

/// Takes back what admission has made of the owners of fields where nobody can read it.
fn restore_managed_fields(before: Option<Value>, object: &mut Value, notes: &mut Notes) {
    if managed_fields(object) == before.as_ref() {
        return;
    }
    let Some(complaint) = api::apply::complaint(object) else { return };
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        match before {
            Some(fields) => drop(metadata.insert("managedFields".to_owned(), fields)),
            None => drop(metadata.remove("managedFields")),
        }
    }
    notes.warnings.push(format!(
        ".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission controller; please fix your requests: {complaint}"
    ));
}

async fn mutate_once(
    server: &ApiServer,
    request: &Request<'_>,
    object: &mut Value,
    notes: &mut Notes,
    again: &mut Reinvocation,
) -> ApiResult<()> {
    server.admission.mutate(request, object)?;
    server.policies.mutate(server, request, object, notes, again)?;
    server.webhooks.mutate(server, request, object, notes, again).await
}

/// Refuses what is complete and valid. `object` is null on deletion.
pub async fn validate(
    server: &ApiServer,
    request: &Request<'_>,
    object: &Value,
    notes: &mut Notes,
) -> ApiResult<Charged> {
    server.admission.validate(request, object, &mut notes.warnings)?;
    server.policies.validate(server, request, object, notes)?;
    server.webhooks.validate(server, request, object, notes).await?;
    server.admission.charge(&server.registry, request, object).await
}

/// Asks admission about what is not written by the generic way: an object that a subresource takes (`Binding`,
/// `Eviction`, `TokenReview`), the options of a stream, or a deletion (`object` null, the state in the request).
pub async fn admit(
    server: &ApiServer,
    request: &Request<'_>,
    object: &mut Value,
    notes: &mut Notes,
) -> ApiResult<()> {
    mutate(server, request, object, notes).await?;
    validate(server, request, object, notes).await.map(drop)
}
