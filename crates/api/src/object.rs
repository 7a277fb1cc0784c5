//! One stored revision of an API object: immutable bytes, with everything derived from them memoised.
//!
//! The bytes are the truth. The API server stores, sends and watches bytes; the parsed tree ([`Object::value`])
//! and the typed view ([`Object::typed`]) are made at most once per process, when somebody asks, and all
//! consumers share them through the one `Arc<Object>`.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::compact::compact;

/// Why bytes are no API object.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The bytes are no JSON object with metadata.
    #[error("not an API object")]
    Syntax(#[source] serde_json::Error),
    /// The object does not fit the type asked for.
    #[error("{name}: not a {kind}")]
    Type {
        /// `namespace/name` of the object.
        name: String,
        /// The kind asked for.
        kind: &'static str,
        /// Where it does not fit.
        #[source]
        source: serde_json::Error,
    },
}

/// One immutable revision of an API object.
pub struct Object {
    revision: u64,
    api_version: Box<str>,
    kind: Box<str>,
    namespace: Option<Box<str>>,
    name: Box<str>,
    uid: Box<str>,
    labels: BTreeMap<String, String>,
    json: Bytes,
    fields: OnceLock<Box<[(&'static str, Box<str>)]>>,
    value: OnceLock<Box<Value>>,
    views: Mutex<Vec<Arc<dyn Any + Send + Sync>>>,
    view: Mutex<Option<Box<View>>>,
}

/// What an object is by somebody's number; none: itself.
type View = (u64, Option<Arc<Object>>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    api_version: Box<str>,
    #[serde(default)]
    kind: Box<str>,
    metadata: HeadMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMeta {
    #[serde(default)]
    name: Box<str>,
    namespace: Option<Box<str>>,
    #[serde(default)]
    uid: Box<str>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    resource_version: Option<Box<str>>,
}

impl Object {
    /// Reads the head of the stored JSON. `revision` 0 takes the revision from `metadata.resourceVersion`.
    pub fn from_json(json: Bytes, revision: u64) -> Result<Self, ObjectError> {
        let head: Head = serde_json::from_slice(&json).map_err(ObjectError::Syntax)?;
        Ok(Self::assemble(head, json, revision))
    }

    /// An object from its tree and the very bytes that tree was printed as; saves parsing what the caller
    /// has just made.
    pub fn from_value(value: Value, json: Bytes, revision: u64) -> Self {
        let meta = &value["metadata"];
        let text = |v: &Value| v.as_str().unwrap_or_default().into();
        Self {
            revision,
            api_version: text(&value["apiVersion"]),
            kind: text(&value["kind"]),
            namespace: meta["namespace"].as_str().filter(|s| !s.is_empty()).map(Into::into),
            name: text(&meta["name"]),
            uid: text(&meta["uid"]),
            labels: crate::meta::string_map(&meta["labels"]),
            json,
            fields: OnceLock::new(),
            value: OnceLock::new(),
            views: Mutex::default(),
            view: Mutex::new(None),
        }
    }

    fn assemble(head: Head, json: Bytes, revision: u64) -> Self {
        let revision = match revision {
            0 => head.metadata.resource_version.and_then(|v| v.parse().ok()).unwrap_or(0),
            given => given,
        };
        Self {
            revision,
            api_version: head.api_version,
            kind: head.kind,
            namespace: head.metadata.namespace.filter(|n| !n.is_empty()),
            name: head.metadata.name,
            uid: head.metadata.uid,
            labels: head.metadata.labels.unwrap_or_default(),
            json,
            fields: OnceLock::new(),
            value: OnceLock::new(),
            views: Mutex::default(),
            view: Mutex::new(None),
        }
    }

    /// The store's revision of this object (`metadata.resourceVersion`).
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// `apiVersion`, for example `apps/v1`.
    pub fn api_version(&self) -> &str {
        &self.api_version
    }

    /// `kind`, for example `Deployment`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The namespace; none for cluster-scoped objects.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// `metadata.labels`.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// Remembers the values of the kind's selectable fields; the first call counts.
    pub fn set_fields(&self, fields: Box<[(&'static str, Box<str>)]>) {
        // a second call would bring the same values: they follow from the bytes
        let _ = self.fields.set(fields);
    }

    /// Takes the selectable fields that the same object has in another version.
    pub fn set_fields_of(&self, other: &Object) {
        if let Some(fields) = other.fields.get() {
            self.set_fields(fields.clone());
        }
    }

    /// A selectable field's value, where [`Self::set_fields`] named it.
    pub fn field(&self, label: &str) -> Option<&str> {
        self.fields.get()?.iter().find(|(l, _)| *l == label).map(|(_, v)| &**v)
    }

    /// The stored JSON.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// The parsed tree, made at first use. Server-side code uses this; in-process clients use [`Self::typed`].
    pub fn value(&self) -> &Value {
        self.value.get_or_init(|| Box::new(serde_json::from_slice(&self.json).unwrap_or(Value::Null)))
    }

    /// A parsed tree that is not kept: for a reader who needs it once and would double the cache's memory.
    pub fn to_value(&self) -> Value {
        match self.value.get() {
            Some(value) => (**value).clone(),
            None => serde_json::from_slice(&self.json).unwrap_or(Value::Null),
        }
    }

    /// This object in another form (another version, or completed by a schema that came after it), which `number` stands
    /// for; the last one that was kept, or none.
    pub fn view(self: &Arc<Self>, number: u64) -> Option<Arc<Object>> {
        let view = self.view.lock();
        let (_, object) = view.as_deref().filter(|(known, _)| *known == number)?;
        Some(object.as_ref().unwrap_or(self).clone())
    }

    /// Keeps what [`Self::view`] gives for `number`.
    pub fn keep_view(self: &Arc<Self>, number: u64, object: &Arc<Object>) {
        let other = (!Arc::ptr_eq(self, object)).then(|| object.clone());
        *self.view.lock() = Some(Box::new((number, other)));
    }

    /// The typed view, without `metadata.managedFields`: no reader in this process asks who owns which field, as trees they
    /// are most of an object's memory, and a write that leaves them out keeps them.
    ///
    /// The first asker parses; everyone after shares the `Arc`.
    pub fn typed<K>(&self) -> Result<Arc<K>, ObjectError>
    where
        K: k8s_openapi::Resource + DeserializeOwned + Send + Sync + 'static,
    {
        self.memo(|json| {
            let read = serde_json::from_slice::<K>(&without_managed_fields(json));
            let mut object = read.map_err(|source| ObjectError::Type {
                name: format!("{}/{}", self.namespace().unwrap_or_default(), self.name),
                kind: K::KIND,
                source,
            })?;
            compact(&mut object);
            Ok(object)
        })
    }

    /// What `make` reads off the stored JSON. The first asker of a type makes it; everyone after shares the `Arc`.
    pub fn memo<T: Send + Sync + 'static>(
        &self,
        make: impl FnOnce(&[u8]) -> Result<T, ObjectError>,
    ) -> Result<Arc<T>, ObjectError> {
        let mut views = self.views.lock();
        if let Some(known) = views.iter().find_map(|view| Arc::clone(view).downcast::<T>().ok()) {
            return Ok(known);
        }
        let made = Arc::new(make(&self.json)?);
        views.reserve_exact(1);
        views.push(made.clone());
        Ok(made)
    }

    /// Lets go of what was made of the JSON: a newer revision is there, and what still asks for this one makes it again.
    pub fn forget_views(&self) {
        self.views.lock().clear();
    }
}

/// The same JSON with `null` for `metadata.managedFields`.
fn without_managed_fields(json: &[u8]) -> Cow<'_, [u8]> {
    #[derive(Deserialize)]
    struct Owned<'a> {
        #[serde(borrow)]
        metadata: OwnedMeta<'a>,
    }
    #[derive(Deserialize)]
    struct OwnedMeta<'a> {
        #[serde(borrow, default, rename = "managedFields")]
        owners: Option<&'a RawValue>,
    }
    let Ok(Owned { metadata: OwnedMeta { owners: Some(owners) } }) = serde_json::from_slice(json) else {
        return Cow::Borrowed(json);
    };
    // the raw value is a part of the input
    let at = owners.get().as_ptr() as usize - json.as_ptr() as usize;
    Cow::Owned([&json[..at], b"null", &json[at + owners.get().len()..]].concat())
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}@{}", self.kind, self.namespace().unwrap_or_default(), self.name, self.revision)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_typed_view_is_the_object_without_the_owners_of_its_fields() {
        let plain = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"managedFields": "[{}]"},
            "metadata": {"annotations": {"managedFields": "[]"}, "name": "n", "uid": "u"}});
        for owners in
            [json!([{"manager": "m", "operation": "Update", "fieldsV1": {"f:data": {}}}]), json!([])]
        {
            let mut owned = plain.clone();
            owned["metadata"]["managedFields"] = owners;
            let object = Object::from_json(owned.to_string().into(), 5).unwrap();
            assert_eq!(serde_json::to_value(&*object.typed::<ConfigMap>().unwrap()).unwrap(), plain);
            assert_eq!(*object.value(), owned);
        }
        let object = Object::from_json(plain.to_string().into(), 5).unwrap();
        assert_eq!(serde_json::to_value(&*object.typed::<ConfigMap>().unwrap()).unwrap(), plain);
    }
}
