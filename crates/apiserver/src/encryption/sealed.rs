//! A store whose chosen values are sealed: everything above it sees plain values, the engine below never does.
//!
//! A value that cannot be opened does not fail the read it is part of: in its place stands a short text that begins with
//! [`UNREADABLE`] and says why, so that one damaged object or one missing key concerns that object alone.
//!
//! Rule: upstream's `value.Transformer`: `k8s:enc:<provider>:<version>:<key name>:` stands before sealed bytes; the
//! first provider writes, the first whose prefix fits reads; place is the etcd key that upstream has for the object.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use store::{Delete, Event, KeyValue, Put, Range, Revision, Store, StoreError, WatchStream};

use super::ciphers::Cipher;
use super::config::{self, ConfigError, EncryptionConfiguration, Key};
use super::kms::Kms;

/// Begins what stands in the place of a value that cannot be opened.
pub const UNREADABLE: &[u8] = b"k8s:unreadable:";
/// Begins every sealed value.
const SEALED: &[u8] = b"k8s:enc:";

/// Why a value cannot be opened, where [`Sealed`] put that in its place.
pub fn unreadable(value: &[u8]) -> Option<Cow<'_, str>> {
    value.strip_prefix(UNREADABLE).map(String::from_utf8_lossy)
}

enum Provider {
    Identity,
    Local(Cipher),
    Kms(Arc<Kms>),
}

struct Transformer {
    /// Stands before what it seals; empty for identity.
    prefix: Vec<u8>,
    provider: Provider,
}

struct Rule {
    resources: Vec<String>,
    transformers: Vec<Transformer>,
}

/// A configuration, ready to use.
pub struct Plan {
    rules: Vec<Rule>,
}

/// What became of a value.
pub enum Opened {
    /// It is plain; true where the first provider would seal it differently.
    Plain(Bytes, bool),
    /// It cannot be opened, and why.
    Unreadable(String),
}

impl Plan {
    /// Makes the ciphers of a checked configuration and begins to speak to its key services.
    pub fn new(config: &EncryptionConfiguration) -> Result<Self, ConfigError> {
        let mut services = HashMap::new();
        let mut rules = Vec::new();
        for entry in &config.resources {
            let mut transformers = Vec::new();
            for provider in &entry.providers {
                if provider.identity.is_some() {
                    transformers.push(Transformer { prefix: Vec::new(), provider: Provider::Identity });
                }
                if let Some(kms) = &provider.kms {
                    let service = match services.get(&kms.name) {
                        Some(service) => Arc::clone(service),
                        None => Kms::start(kms)?,
                    };
                    services.insert(kms.name.clone(), service.clone());
                    let prefix = format!("k8s:enc:kms:v2:{}:", kms.name).into_bytes();
                    transformers.push(Transformer { prefix, provider: Provider::Kms(service) });
                }
                local(&mut transformers, "aesgcm", provider.aesgcm.as_ref(), Cipher::gcm)?;
                local(&mut transformers, "aescbc", provider.aescbc.as_ref(), Cipher::cbc)?;
                local(&mut transformers, "secretbox", provider.secretbox.as_ref(), Cipher::secretbox)?;
            }
            rules.push(Rule { resources: entry.resources.clone(), transformers });
        }
        Ok(Self { rules })
    }

    fn rule(&self, key: &str) -> Option<&Rule> {
        let (group, plural) = resource(key)?;
        self.rules.iter().find(|r| r.resources.iter().any(|p| config::matches(p, plural, group)))
    }

    /// The name that stands before what is written now: `aesgcm:v1:key`, or nothing.
    fn writes(&self, key: &str) -> Option<&[u8]> {
        let first = self.rule(key)?.transformers.first()?;
        (!first.prefix.is_empty()).then_some(&first.prefix)
    }

    async fn seal(&self, key: &str, value: Bytes) -> Result<Bytes, String> {
        let Some(first) = self.rule(key).and_then(|r| r.transformers.first()) else { return Ok(value) };
        let place = place(key);
        let mut out = Vec::with_capacity(first.prefix.len() + value.len() + 64);
        out.extend_from_slice(&first.prefix);
        match &first.provider {
            Provider::Identity => return Ok(value),
            Provider::Local(cipher) => {
                cipher.seal(&value, place.as_bytes(), &mut out).map_err(|e| e.to_string())?;
            }
            Provider::Kms(kms) => {
                kms.seal(&value, place.as_bytes(), &mut out).await.map_err(|e| e.to_string())?;
            }
        }
        Ok(out.into())
    }

    /// Opens a stored value.
    pub async fn open(&self, key: &str, value: &Bytes) -> Opened {
        let rule = self.rule(key);
        if !value.starts_with(SEALED) {
            let Some(rule) = rule else { return Opened::Plain(value.clone(), false) };
            let at = rule.transformers.iter().position(|t| matches!(t.provider, Provider::Identity));
            return match at {
                Some(at) => Opened::Plain(value.clone(), at != 0),
                None => Opened::Unreadable("no matching prefix found".to_owned()),
            };
        }
        let fits = |t: &Transformer| !t.prefix.is_empty() && value.starts_with(&t.prefix);
        let transformers = rule.map(|r| r.transformers.as_slice()).unwrap_or_default();
        let Some((at, transformer)) = transformers.iter().enumerate().find(|(_, t)| fits(t)) else {
            return Opened::Unreadable(format!(
                "no matching prefix found: it is sealed with {:?}, a key that the encryption configuration does not have",
                sealed_with(value)
            ));
        };
        let sealed = value.get(transformer.prefix.len()..).unwrap_or_default();
        let place = place(key);
        let opened = match &transformer.provider {
            Provider::Local(cipher) => {
                cipher.open(sealed, place.as_bytes()).map(|p| (p, false)).map_err(|e| e.to_string())
            }
            Provider::Kms(kms) => kms.open(sealed, place.as_bytes()).await.map_err(|e| e.to_string()),
            Provider::Identity => Ok((sealed.to_vec(), false)),
        };
        match opened {
            Ok((plain, is_old)) => Opened::Plain(plain.into(), is_old || at != 0),
            Err(why) => Opened::Unreadable(why),
        }
    }
}

fn local(
    list: &mut Vec<Transformer>,
    provider: &str,
    keys: Option<&config::Keys>,
    make: fn(&[u8]) -> Result<Cipher, super::ciphers::CipherError>,
) -> Result<(), ConfigError> {
    for Key { name, secret } in keys.into_iter().flat_map(|k| &k.keys) {
        // checked when the file was read
        let secret = STANDARD.decode(secret).unwrap_or_default();
        let cipher = make(&secret).map_err(|source| ConfigError::Key { name: name.clone(), source })?;
        let prefix = format!("k8s:enc:{provider}:v1:{name}:").into_bytes();
        list.push(Transformer { prefix, provider: Provider::Local(cipher) });
    }
    Ok(())
}

/// `<provider>:<version>:<key name>` of a sealed value.
pub fn sealed_with(value: &[u8]) -> Option<String> {
    let rest = value.strip_prefix(SEALED)?;
    let end = rest.iter().enumerate().filter(|(_, b)| **b == b':').nth(2)?.0;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}

/// Group and plural of a key `/registry/<group-or-core>/<plural>/...`.
fn resource(key: &str) -> Option<(&str, &str)> {
    let mut parts = key.strip_prefix("/registry/")?.splitn(3, '/');
    let (group, plural) = (parts.next()?, parts.next()?);
    Some((if group == "core" { "" } else { group }, plural))
}

/// The key that upstream has for an object of the core group: values are authenticated together with it.
fn place(key: &str) -> Cow<'_, str> {
    match key.strip_prefix("/registry/core/") {
        Some(rest) => Cow::Owned(format!("/registry/{rest}")),
        None => Cow::Borrowed(key),
    }
}

/// The store.
pub struct Sealed {
    inner: Arc<dyn Store>,
    plan: Arc<ArcSwap<Plan>>,
}

impl Sealed {
    /// Over an engine.
    pub fn new(inner: Arc<dyn Store>, plan: Plan) -> Self {
        Self { inner, plan: Arc::new(ArcSwap::from_pointee(plan)) }
    }

    /// Uses another plan from now on.
    pub fn replan(&self, plan: Plan) {
        self.plan.store(Arc::new(plan));
    }

    /// The plan in use.
    pub fn plan(&self) -> Arc<Plan> {
        self.plan.load_full()
    }

    /// The engine, with its values as they are.
    pub fn engine(&self) -> &Arc<dyn Store> {
        &self.inner
    }

    /// The prefix that values of this key are written with now; none where they are written plain.
    pub fn prefix_of(&self, key: &str) -> Option<Vec<u8>> {
        self.plan.load().writes(key).map(<[u8]>::to_vec)
    }
}

async fn open(plan: &Plan, mut kv: KeyValue) -> KeyValue {
    kv.value = match plan.open(&kv.key, &kv.value).await {
        Opened::Plain(value, _) => value,
        Opened::Unreadable(why) => {
            tracing::error!(key = %kv.key, revision = kv.mod_revision, %why, "a stored value cannot be opened");
            [UNREADABLE, why.as_bytes()].concat().into()
        }
    };
    kv
}

async fn open_events(plan: Arc<ArcSwap<Plan>>, mut events: Vec<Event>) -> Vec<Event> {
    let plan = plan.load_full();
    for event in &mut events {
        if plan.rule(&event.kv.key).is_none() && !event.kv.value.starts_with(SEALED) {
            continue;
        }
        event.kv = open(&plan, event.kv.clone()).await;
        if let Some(previous) = event.prev.take() {
            event.prev = Some(open(&plan, previous).await);
        }
    }
    events
}

#[async_trait::async_trait]
impl Store for Sealed {
    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    async fn sync(&self) -> Result<Revision, StoreError> {
        self.inner.sync().await
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<KeyValue>, Revision), StoreError> {
        let (found, revision) = self.inner.get(key, at).await?;
        let plan = self.plan.load_full();
        Ok(match found {
            Some(kv) => (Some(open(&plan, kv).await), revision),
            None => (None, revision),
        })
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Option<Revision>,
        limit: usize,
    ) -> Result<Range, StoreError> {
        let mut range = self.inner.range(prefix, after, at, limit).await?;
        let plan = self.plan.load_full();
        for kv in &mut range.items {
            if plan.rule(&kv.key).is_some() || kv.value.starts_with(SEALED) {
                *kv = open(&plan, kv.clone()).await;
            }
        }
        Ok(range)
    }

    async fn put(&self, mut put: Put) -> Result<Revision, StoreError> {
        let plan = self.plan.load_full();
        if plan.rule(&put.key).is_some() {
            put.value = plan.seal(&put.key, put.value).await.map_err(|why| {
                StoreError::Unavailable(format!("the value of {} cannot be sealed: {why}", put.key))
            })?;
        }
        match self.inner.put(put).await {
            Err(StoreError::Conflict { current: Some(kv) }) => {
                Err(StoreError::Conflict { current: Some(open(&plan, kv).await) })
            }
            other => other,
        }
    }

    async fn delete(&self, delete: Delete) -> Result<(Revision, KeyValue), StoreError> {
        let plan = self.plan.load_full();
        match self.inner.delete(delete).await {
            Ok((revision, kv)) => Ok((revision, open(&plan, kv).await)),
            Err(StoreError::Conflict { current: Some(kv) }) => {
                Err(StoreError::Conflict { current: Some(open(&plan, kv).await) })
            }
            Err(other) => Err(other),
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, StoreError> {
        let plan = self.plan.clone();
        let stream = self.inner.watch(prefix, from).await?;
        Ok(stream
            .then(move |batch| {
                let plan = plan.clone();
                async move {
                    match batch {
                        Ok(events) => Ok(open_events(plan, events).await),
                        Err(error) => Err(error),
                    }
                }
            })
            .boxed())
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.inner.compact(revision).await
    }
}
