//! Encryption at rest: chosen values are sealed before they reach the store and opened above it.
//!
//! Secrets are sealed with AES-GCM from the first start on; the key is made then and kept in a file that only its owner
//! reads (`DIR/pki/encryption-config.json`, itself an `EncryptionConfiguration`). A configuration of one's own takes
//! its place. [`sealed::Sealed`] is the store that does it; nothing above it knows.
//!
//! Tasks: one per key management service, asking for its status ([`kms`]).

pub mod ciphers;
pub mod config;
pub mod kms;
pub mod sealed;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use store::{Put, Store, StoreError};

use config::{
    ConfigError, EncryptionConfiguration, Identity, Key, Keys, ProviderConfiguration, ResourceConfiguration,
};
use sealed::{Opened, Plan, Sealed};

/// Values per page of a walk through the store.
const PAGE: usize = 500;
/// Walks of a rewrite; a second one meets only what was written in the moment of the change.
const WALKS: usize = 5;
/// Keys kept in our own file: the one that writes, and the one before it for old revisions in the store's history.
const KEPT: usize = 2;
/// Objects that end by themselves are not rewritten: that would make them live longer.
const EPHEMERAL: &str = "/registry/core/events/";

/// Why a rotation or a rewrite does not happen.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The keys are the administrator's.
    #[error(
        "the keys are in {0}: add a new one there as the first, then `navarch secrets-encryption reencrypt`"
    )]
    NotOurs(PathBuf),
    /// The store.
    #[error("the store")]
    Store(#[from] StoreError),
    /// No random numbers.
    #[error(transparent)]
    Cipher(#[from] ciphers::CipherError),
    /// Others write faster than a rewrite can follow.
    #[error(
        "values are still written with an old key: another server on this store has an older configuration"
    )]
    Unsettled,
}

/// What is sealed, and with what.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The file with the keys.
    pub configuration: PathBuf,
    /// By key (`aesgcm:v1:key1`, `identity`, `unreadable`): how many values.
    pub values: BTreeMap<String, u64>,
    /// How many of them the first provider would seal differently.
    pub stale: u64,
    /// How many were rewritten just now.
    pub rewritten: u64,
}

/// The sealed store and where its keys are.
pub struct Encryption {
    sealed: Arc<Sealed>,
    file: PathBuf,
    is_ours: bool,
    /// One rotation or rewrite at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Encryption {
    /// Seals what `given` says, or Secrets with the key in `own`, which is made where it is missing.
    pub fn start(store: Arc<dyn Store>, own: &Path, given: Option<&Path>) -> Result<Self, ConfigError> {
        if given.is_none() && !own.exists() {
            let key =
                fresh_key("key1").map_err(|source| ConfigError::Key { name: "key1".to_owned(), source })?;
            write(own, &own_configuration(vec![key]))?;
        }
        let file = given.unwrap_or(own).to_owned();
        let plan = Plan::new(&EncryptionConfiguration::read(&file)?)?;
        let sealed = Arc::new(Sealed::new(store, plan));
        Ok(Self { sealed, file, is_ours: given.is_none(), changing: tokio::sync::Mutex::default() })
    }

    /// The store to use.
    pub fn store(&self) -> Arc<dyn Store> {
        self.sealed.clone()
    }

    /// Reads the file again.
    pub fn reload(&self) -> Result<(), ConfigError> {
        self.sealed.replan(Plan::new(&EncryptionConfiguration::read(&self.file)?)?);
        Ok(())
    }

    /// Counts what is sealed with which key.
    pub async fn status(&self) -> Result<Report, EncryptionError> {
        self.walk(false).await
    }

    /// Reads the file again and rewrites every value that is not sealed by the first provider.
    pub async fn reencrypt(&self) -> Result<Report, EncryptionError> {
        let _one = self.changing.lock().await;
        self.reload()?;
        self.rewrite().await
    }

    /// Makes a new key, rewrites everything with it, and forgets all older ones but the last.
    pub async fn rotate(&self) -> Result<Report, EncryptionError> {
        let _one = self.changing.lock().await;
        if !self.is_ours {
            return Err(EncryptionError::NotOurs(self.file.clone()));
        }
        let mut keys = own_keys(&EncryptionConfiguration::read(&self.file)?);
        let newest = keys.iter().filter_map(|k| k.name.strip_prefix("key")?.parse::<u32>().ok()).max();
        keys.insert(0, fresh_key(&format!("key{}", newest.unwrap_or(0) + 1))?);
        // the key is on the disk before the first value is sealed with it
        write(&self.file, &own_configuration(keys.clone()))?;
        self.reload()?;
        let report = self.rewrite().await?;
        keys.truncate(KEPT);
        write(&self.file, &own_configuration(keys))?;
        self.reload()?;
        Ok(report)
    }

    async fn rewrite(&self) -> Result<Report, EncryptionError> {
        let mut rewritten = 0;
        for _ in 0..WALKS {
            let report = self.walk(true).await?;
            rewritten += report.rewritten;
            if report.rewritten == 0 {
                return Ok(Report { rewritten, ..report });
            }
        }
        Err(EncryptionError::Unsettled)
    }

    async fn walk(&self, rewrites: bool) -> Result<Report, EncryptionError> {
        let plan = self.sealed.plan();
        let mut report =
            Report { configuration: self.file.clone(), values: BTreeMap::new(), stale: 0, rewritten: 0 };
        let mut after: Option<Arc<str>> = None;
        loop {
            let page = self.sealed.engine().range("/registry/", after.as_deref(), None, PAGE).await?;
            after = page.items.last().map(|kv| kv.key.clone());
            for kv in page.items {
                let sealed_with = sealed::sealed_with(&kv.value);
                if sealed_with.is_none() && self.sealed.prefix_of(&kv.key).is_none() {
                    continue;
                }
                let (name, stale) = match plan.open(&kv.key, &kv.value).await {
                    Opened::Plain(plain, is_stale) => {
                        let name = sealed_with.unwrap_or_else(|| "identity".to_owned());
                        (name, is_stale.then_some(plain))
                    }
                    Opened::Unreadable(_) => ("unreadable".to_owned(), None),
                };
                *report.values.entry(name).or_default() += 1;
                let Some(plain) = stale else { continue };
                report.stale += 1;
                if rewrites && !kv.key.starts_with(EPHEMERAL) {
                    match self.sealed.put(Put::update(kv.key, plain, kv.mod_revision)).await {
                        // who was faster has written it with the new key
                        Ok(_) | Err(StoreError::Conflict { .. }) => report.rewritten += 1,
                        Err(other) => return Err(other.into()),
                    }
                }
            }
            if !page.more || after.is_none() {
                return Ok(report);
            }
        }
    }
}

fn fresh_key(name: &str) -> Result<Key, ciphers::CipherError> {
    let secret: [u8; 32] = ciphers::random()?;
    Ok(Key { name: name.to_owned(), secret: STANDARD.encode(secret) })
}

/// Secrets by AES-GCM; what was stored plain before stays readable.
fn own_configuration(keys: Vec<Key>) -> EncryptionConfiguration {
    let aesgcm = ProviderConfiguration { aesgcm: Some(Keys { keys }), ..ProviderConfiguration::default() };
    let identity = ProviderConfiguration { identity: Some(Identity {}), ..ProviderConfiguration::default() };
    EncryptionConfiguration::new(vec![ResourceConfiguration {
        resources: vec!["secrets".to_owned()],
        providers: vec![aesgcm, identity],
    }])
}

fn own_keys(config: &EncryptionConfiguration) -> Vec<Key> {
    let providers = config.resources.iter().flat_map(|r| &r.providers);
    providers.filter_map(|p| p.aesgcm.as_ref()).flat_map(|k| k.keys.clone()).collect()
}

fn write(path: &Path, config: &EncryptionConfiguration) -> Result<(), ConfigError> {
    let failed = |source| ConfigError::File { path: path.to_owned(), source };
    let text = serde_json::to_vec_pretty(config).map_err(|e| failed(e.into()))?;
    crate::pki::write_secret(path, &text).map_err(failed)
}
