//! Programs that give credentials for images: which of them are asked about an image, with what, and how long their answers
//! hold.
//!
//! A program that fails gives no credentials; the image is then pulled with those of others, or with none.
//!
//! Rule: Kubernetes documentation, "Configure a kubelet image credential provider"; KEP-2133, KEP-4412 (tokens of service
//! accounts).

mod configuration;
mod program;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use client::Client;
use cri::v1::AuthConfig;
use futures_util::future::join_all;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::digest::sha256;
use crate::image_records::{PullAccount, Source};
use crate::image_secrets::{Credential, Keyring, fits};
use configuration::{CacheType, Settings, TokenAttributes};
use program::{CacheKeyType, Program, Response};

pub use configuration::ProviderError;

/// Where the configuration is, a file or a folder of them, and where the programs are.
#[derive(Debug, Clone)]
pub struct Place {
    /// `--image-credential-provider-config`.
    pub configuration: PathBuf,
    /// `--image-credential-provider-bin-dir`.
    pub programs: PathBuf,
}

/// All programs of the node.
pub struct Providers {
    client: Client,
    all: Vec<Provider>,
}

/// Username and password by the places they are for.
type Auths = BTreeMap<String, AuthConfig>;

/// One question to a program: the image, the account, and a digest of its token.
type Question = (String, Option<Account>, String);

struct Provider {
    settings: Settings,
    program: Program,
    /// Answers that hold until then.
    kept: Mutex<HashMap<CacheKey, (Instant, Arc<Auths>)>>,
    /// Questions that are being answered: who asks the same meanwhile hears the same.
    asked: Mutex<HashMap<Question, Weak<OnceCell<Option<Response>>>>>,
    /// Tokens by pod and account, until they are renewed.
    tokens: Mutex<HashMap<(String, String), (Instant, String)>>,
}

/// For what an answer counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct CacheKey {
    scope: Scope,
    account: Option<Account>,
    /// Digest of the token; empty where answers count for all pods of the account.
    token: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Scope {
    Image(String),
    Registry(String),
    All,
}

/// A pod's service account, with those of its annotations that the program is told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Account {
    namespace: String,
    name: String,
    uid: String,
    annotations: BTreeMap<String, String>,
}

impl Providers {
    /// Those of the configuration; none where there is no place.
    ///
    /// # Errors
    /// The configuration cannot be read, says what cannot be, or names a program that is not there.
    pub fn load(client: Client, place: Option<&Place>) -> Result<Self, ProviderError> {
        let Some(place) = place else { return Ok(Self { client, all: Vec::new() }) };
        let (found, digest) = configuration::read(&place.configuration)?;
        crate::metrics::CREDENTIAL_CONFIGURATION.set(&[&digest], 1);
        let all = found.into_iter().map(|settings| {
            let program = Program::find(&place.programs, &settings)?;
            let (kept, asked, tokens) = Default::default();
            Ok(Provider { settings, program, kept, asked, tokens })
        });
        Ok(Self { client, all: all.collect::<Result<_, ProviderError>>()? })
    }

    /// Credentials for a repository (`docker.io/library/nginx`) that the pod may have, best first.
    pub async fn lookup(&self, pod: &Pod, repository: &str) -> Vec<Credential> {
        let asked = self.all.iter().filter(|provider| provider.serves(repository));
        let answers = join_all(asked.map(|provider| provider.answer(&self.client, pod, repository))).await;
        let mut keyring = Keyring::default();
        for (auths, account) in answers.into_iter().flatten() {
            let source = account.map_or(Source::Node, |account| {
                Source::ServiceAccount(PullAccount {
                    uid: account.uid,
                    namespace: account.namespace,
                    name: account.name,
                })
            });
            for (place, auth) in auths.iter() {
                keyring.insert(place, auth.clone(), source.clone());
            }
        }
        keyring.lookup(repository)
    }
}

impl Provider {
    fn serves(&self, repository: &str) -> bool {
        self.settings.match_images.iter().any(|place| fits(place, repository))
    }

    /// What the program says, now or before, and for which account; why there is nothing goes to the log.
    async fn answer(
        &self,
        client: &Client,
        pod: &Pod,
        repository: &str,
    ) -> Option<(Arc<Auths>, Option<Account>)> {
        let name = &self.settings.name;
        let (account, token) = match &self.settings.token_attributes {
            None => (None, String::new()),
            Some(attributes) => match self.identity(client, pod, attributes).await {
                Ok(Some((account, token))) => (Some(account), token),
                Ok(None) if attributes.require_service_account == Some(true) => return None,
                Ok(None) => (None, String::new()),
                Err(why) => {
                    tracing::warn!(why, provider = name, "a credential provider is not asked");
                    return None;
                }
            },
        };
        let digest = if token.is_empty() { String::new() } else { sha256(&token) };
        let cache_type = self.settings.token_attributes.as_ref().map(|attributes| attributes.cache_type);
        let by_token = if cache_type == Some(CacheType::Token) { digest.clone() } else { String::new() };
        let registry = repository.split('/').next().unwrap_or_default();
        let key = |scope: Scope| CacheKey { scope, account: account.clone(), token: by_token.clone() };
        let scopes = [Scope::Image(repository.to_owned()), Scope::Registry(registry.to_owned()), Scope::All];
        if let Some(known) = self.known(scopes.clone().map(key)) {
            return Some((known, account));
        }
        let annotations = account.as_ref().map(|account| &account.annotations);
        let question = (repository.to_owned(), account.clone(), digest);
        let cell = self.cell(question);
        let asked = cell.get_or_init(|| self.program.ask(repository, &token, annotations)).await;
        let response = asked.as_ref()?;
        // the token itself is nobody's credential but the pod's, so it must not be kept for the account
        let is_echo = |auth: &AuthConfig| !token.is_empty() && auth.password == token;
        if cache_type == Some(CacheType::ServiceAccount) && response.auth.values().any(is_echo) {
            tracing::warn!(
                provider = name,
                "a credential provider returned the service account's token as a password, which needs the cache type Token"
            );
            return None;
        }
        let auths = Arc::new(response.auth.clone());
        let life = response.cache_duration.unwrap_or(self.settings.default_cache_duration);
        if !life.is_zero() {
            let [image, registry, all] = scopes;
            let scope = match response.cache_key_type {
                CacheKeyType::Image => image,
                CacheKeyType::Registry => registry,
                CacheKeyType::Global => all,
            };
            self.keep(key(scope), life, auths.clone());
        }
        Some((auths, account))
    }

    fn known(&self, keys: [CacheKey; 3]) -> Option<Arc<Auths>> {
        let (kept, now) = (self.kept.lock(), Instant::now());
        let of = |key: &CacheKey| kept.get(key).filter(|(until, _)| *until > now);
        keys.iter().find_map(of).map(|(_, auths)| auths.clone())
    }

    fn keep(&self, key: CacheKey, life: Duration, auths: Arc<Auths>) {
        let (mut kept, now) = (self.kept.lock(), Instant::now());
        kept.retain(|_, (until, _)| *until > now);
        if let Some(until) = now.checked_add(life) {
            kept.insert(key, (until, auths));
        }
    }

    fn cell(&self, question: Question) -> Arc<OnceCell<Option<Response>>> {
        let mut asked = self.asked.lock();
        if let Some(cell) = asked.get(&question).and_then(Weak::upgrade) {
            return cell;
        }
        asked.retain(|_, cell| cell.strong_count() > 0);
        let cell = Arc::default();
        asked.insert(question, Arc::downgrade(&cell));
        cell
    }

    /// The pod's account and a token of it; nothing where it has none, or one that does not want to be known by it.
    async fn identity(
        &self,
        client: &Client,
        pod: &Pod,
        attributes: &TokenAttributes,
    ) -> Result<Option<(Account, String)>, String> {
        let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let found = client.get::<ServiceAccount>(namespace, name).await;
        let found = found.map_err(|error| format!("service account {namespace}/{name}: {error}"))?;
        let known = found.metadata.annotations.unwrap_or_default();
        let mut annotations = BTreeMap::new();
        for key in &attributes.required_service_account_annotation_keys {
            let Some(value) = known.get(key) else {
                tracing::debug!(provider = self.settings.name, namespace, name, key, "no such annotation");
                return Ok(None);
            };
            annotations.insert(key.clone(), value.clone());
        }
        for key in &attributes.optional_service_account_annotation_keys {
            annotations.extend(known.get(key).map(|value| (key.clone(), value.clone())));
        }
        let account = Account {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: found.metadata.uid.unwrap_or_default(),
            annotations,
        };
        let token = self.token(client, pod, &account, &attributes.service_account_token_audience).await?;
        Ok(Some((account, token)))
    }

    /// A token that is bound to the pod: the same one until four fifths of its life are over.
    async fn token(
        &self,
        client: &Client,
        pod: &Pod,
        account: &Account,
        audience: &str,
    ) -> Result<String, String> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let key = (uid.clone(), account.uid.clone());
        let now = Instant::now();
        if let Some((_, token)) = self.tokens.lock().get(&key).filter(|(until, _)| *until > now) {
            return Ok(token.clone());
        }
        let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": uid});
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": [audience], "boundObjectRef": bound}});
        let (namespace, name) = (&account.namespace, &account.name);
        let answer: TokenRequest = client
            .create_subresource::<ServiceAccount, _, _>(namespace, name, "token", &request)
            .await
            .map_err(|error| format!("token of service account {namespace}/{name}: {error}"))?;
        let life = answer.spec.and_then(|spec| spec.expiration_seconds);
        let life = life.and_then(|life| u64::try_from(life).ok()).unwrap_or(0);
        let token = answer.status.and_then(|status| status.token).unwrap_or_default();
        let mut tokens = self.tokens.lock();
        tokens.retain(|_, (until, _)| *until > now);
        if let Some(until) = now.checked_add(Duration::from_secs(life) / 5 * 4) {
            tokens.insert(key, (until, token.clone()));
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests;
