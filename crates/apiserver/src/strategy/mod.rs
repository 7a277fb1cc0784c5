//! What is special about each kind: defaults, preparation, validation, deletion. The pipeline calls these at
//! fixed points and knows no kind itself.
//!
//! A strategy is a pure function over JSON trees; what it needs from outside comes in the [`Context`].
//! Order on create: default → (managed fields) → admission → `prepare_create` → `validate_create`.
//! Order on update: default → (managed fields) → admission → `prepare_update` → `validate_update`.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::Value;

/// What a strategy may know besides the objects.
#[non_exhaustive]
pub struct Context {
    /// Now.
    pub now: Timestamp,
}

impl Context {
    /// At `now`.
    pub fn new(now: Timestamp) -> Self {
        Self { now }
    }
}

/// How an object of a kind goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// At once (finalizers permitting).
    Immediate,
    /// Whoever runs it gets this many seconds, unless the request says otherwise, and then removes it.
    Graceful {
        /// Seconds where the request names none.
        default_seconds: i64,
    },
}

/// The behaviour of one kind. Every method has the generic behaviour as its default.
pub trait Strategy: Sync {
    /// Fills in defaults. Idempotent; runs on every decoded object.
    fn default(&self, _object: &mut Value) {}

    /// Before an object is created: drops what a client may not set (`status`).
    fn prepare_create(&self, _context: &Context, object: &mut Value) {
        generic::prepare_create(self.has_status(), object);
    }

    /// Refuses a bad new object.
    fn validate_create(&self, _object: &Value, _errors: &mut ErrorList) {}

    /// Before an update: keeps what this endpoint may not change (`status`), raises `metadata.generation`
    /// where the desired state changed.
    fn prepare_update(&self, _context: &Context, new: &mut Value, old: &Value) {
        generic::prepare_update(self.has_status(), self.has_generation(), new, old);
    }

    /// Refuses a bad change.
    fn validate_update(&self, _new: &Value, _old: &Value, _errors: &mut ErrorList) {}

    /// Before an update of the `status` subresource: keeps everything but status.
    fn prepare_status_update(&self, _context: &Context, new: &mut Value, old: &Value) {
        generic::prepare_status_update(new, old);
    }

    /// Refuses a bad change of status.
    fn validate_status_update(&self, _new: &Value, _old: &Value, _errors: &mut ErrorList) {}

    /// Texts for `Warning` headers.
    fn warnings(&self, _new: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// How the object goes away.
    fn deletion(&self, _object: &Value) -> Deletion {
        Deletion::Immediate
    }

    /// What a deletion without a propagation policy does with dependents: true leaves them (`orphan`).
    fn orphans_by_default(&self) -> bool {
        false
    }

    /// Whether the kind has a `status` subresource.
    fn has_status(&self) -> bool {
        true
    }

    /// Whether the server counts changes of the desired state in `metadata.generation`.
    fn has_generation(&self) -> bool {
        true
    }

    /// Whether PUT and PATCH need no `metadata.resourceVersion`.
    fn allows_unconditional_update(&self) -> bool {
        true
    }

    /// Whether PUT makes an object that is not there.
    fn allows_create_on_update(&self) -> bool {
        false
    }
}

/// The behaviour that most kinds share.
pub mod generic {
    use serde_json::{Value, json};

    /// Removes `status` and starts `generation` at 1.
    pub fn prepare_create(has_status: bool, object: &mut Value) {
        if has_status && let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
    }

    /// Keeps the stored `status`; counts a change of anything but metadata and status.
    pub fn prepare_update(has_status: bool, has_generation: bool, new: &mut Value, old: &Value) {
        if has_status {
            copy("status", new, old);
        }
        if has_generation && desired_changed(new, old) {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            new["metadata"]["generation"] = json!(generation);
        }
    }

    /// Keeps all but `status` and managed fields.
    pub fn prepare_status_update(new: &mut Value, old: &Value) {
        let status = new.get("status").cloned();
        let managed = new["metadata"].get("managedFields").cloned();
        let version = new["metadata"].get("resourceVersion").cloned();
        let mut kept = old.clone();
        set(&mut kept, "status", status);
        set(&mut kept["metadata"], "managedFields", managed);
        set(&mut kept["metadata"], "resourceVersion", version);
        *new = kept;
    }

    /// Whether anything but metadata and status differs.
    pub fn desired_changed(new: &Value, old: &Value) -> bool {
        let others = |v: &Value| -> Vec<(String, Value)> {
            v.as_object()
                .into_iter()
                .flatten()
                .filter(|(k, v)| {
                    !matches!(k.as_str(), "metadata" | "status" | "apiVersion" | "kind") && !v.is_null()
                })
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect()
        };
        others(new) != others(old)
    }

    /// Makes the member `key` of `new` what it is in `old`.
    pub fn copy(key: &str, new: &mut Value, old: &Value) {
        set(new, key, old.get(key).cloned());
    }

    /// Sets or removes a member.
    pub fn set(object: &mut Value, key: &str, value: Option<Value>) {
        if let Some(map) = object.as_object_mut() {
            match value {
                Some(value) => map.insert(key.to_owned(), value),
                None => map.remove(key),
            };
        }
    }
}

struct Plain;

impl Strategy for Plain {}

/// The strategy of a kind.
pub fn of(_group: &str, _kind: &str) -> &'static dyn Strategy {
    &Plain
}
