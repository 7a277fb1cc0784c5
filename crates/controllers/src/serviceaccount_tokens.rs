//! Legacy service-account tokens: a Secret of type `kubernetes.io/service-account-token` is given a token of the account that
//! it names, and ends with the account. Nobody makes such Secrets but people; pods' tokens are bound ones.
//!
//! Rule: <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#token-controller>.
use std::sync::Arc;

use client::{Cache, Change, DeleteOptions};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};

use crate::LegacyTokens;
use crate::ownership::{name, namespace, uid};
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};
use crate::serviceaccount_secrets::{self, ACCOUNT_UID, account_of, is_of};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Secret(ObjectKey),
    /// The Secret is gone: the account must not name it any more.
    Reference {
        account: ObjectKey,
        secret: String,
    },
}

struct Controller {
    context: Context,
    /// Only those with tokens, not every Secret of the cluster.
    secrets: Cache<Secret>,
    accounts: Cache<ServiceAccount>,
    root_ca: String,
    tokens: LegacyTokens,
}

pub(crate) async fn run(context: Context, root_ca: String, tokens: LegacyTokens) {
    let caches = context.reader.caches();
    let secrets = serviceaccount_secrets::cache(caches);
    let accounts = caches.of::<ServiceAccount>();
    let controller = Controller {
        context: context.clone(),
        secrets: secrets.clone(),
        accounts: accounts.clone(),
        root_ca,
        tokens,
    };
    Runner::new(&context, controller)
        .on(&secrets, |_, change| {
            let meta = &change.object().metadata;
            let key = ObjectKey::of(meta);
            match (change, account_of(change.object())) {
                (Change::Deleted(_), account) if !account.is_empty() => Some(Key::Reference {
                    account: ObjectKey::new(&key.namespace, account),
                    secret: key.name,
                }),
                (Change::Deleted(_), _) => None,
                _ => Some(Key::Secret(key)),
            }
        })
        .on(&accounts, |c: &Controller, change| {
            let meta = &change.object().metadata;
            let secrets = match change {
                Change::Modified { .. } => Vec::new(),
                Change::Added(_) | Change::Deleted(_) => c.secrets.list_ns(namespace(meta)),
            };
            let of_account = secrets.iter().filter(|s| account_of(s) == name(meta));
            of_account.map(|s| Key::Secret(ObjectKey::of(&s.metadata))).collect::<Vec<_>>()
        })
        .run(5)
        .await;
}

impl Controller {
    /// The account, asked live where the cache does not know it.
    async fn account(&self, secret: &Secret) -> Result<Option<Arc<ServiceAccount>>, Failure> {
        let (ns, account) = (namespace(&secret.metadata), account_of(secret));
        if let Some(found) = self.accounts.get(ns, account).filter(|a| is_of(secret, a)) {
            return Ok(Some(found));
        }
        match self.context.client.get::<ServiceAccount>(ns, account).await {
            Ok(found) => Ok(is_of(secret, &found).then(|| Arc::new(found))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The Secret with all that belongs into it; `None` when it has it.
    fn filled(&self, secret: &Secret, account: &ServiceAccount) -> Result<Option<Secret>, Failure> {
        let mut next = secret.clone();
        let (ns, secret_name) = (namespace(&secret.metadata), name(&secret.metadata));
        let data = next.data.get_or_insert_default();
        let ca = ByteString(self.root_ca.clone().into_bytes());
        if !self.root_ca.is_empty() && data.get("ca.crt") != Some(&ca) {
            data.insert("ca.crt".to_owned(), ca);
        }
        let is_empty = |v: Option<&ByteString>| v.is_none_or(|v| v.0.is_empty());
        if is_empty(data.get("namespace")) {
            data.insert("namespace".to_owned(), ByteString(ns.as_bytes().to_vec()));
        }
        if is_empty(data.get("token")) {
            let token = (self.tokens)([ns, name(&account.metadata), uid(&account.metadata), secret_name]);
            let token = token.ok_or_else(|| Failure::Invalid("no token could be signed".to_owned()))?;
            data.insert("token".to_owned(), ByteString(token.into_bytes()));
        }
        let notes = next.metadata.annotations.get_or_insert_default();
        notes.insert(ACCOUNT_UID.to_owned(), uid(&account.metadata).to_owned());
        Ok((next != *secret).then_some(next))
    }

    async fn fill(&self, key: &ObjectKey) -> Result<(), Failure> {
        let Some(secret) = self.secrets.get(&key.namespace, &key.name) else { return Ok(()) };
        if secret.metadata.deletion_timestamp.is_some() || account_of(&secret).is_empty() {
            return Ok(());
        }
        let client = &self.context.client;
        if let Some(account) = self.account(&secret).await? {
            if let Some(next) = self.filled(&secret, &account)? {
                client.update(&key.namespace, &next).await?;
            }
            return Ok(());
        }
        let options = DeleteOptions {
            uid: secret.metadata.uid.clone(),
            resource_version: secret.metadata.resource_version.clone(),
            ..DeleteOptions::default()
        };
        match client.delete::<Secret>(&key.namespace, &key.name, &options).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn forget(&self, account: &ObjectKey, secret: &str) -> Result<(), Failure> {
        let Some(account) = self.accounts.get(&account.namespace, &account.name) else { return Ok(()) };
        if self.secrets.get(namespace(&account.metadata), secret).is_some() {
            return Ok(());
        }
        let mut next = (*account).clone();
        let Some(list) = next.secrets.as_mut() else { return Ok(()) };
        let before = list.len();
        list.retain(|r| r.name.as_deref() != Some(secret));
        if list.len() < before {
            self.context.client.update(namespace(&account.metadata), &next).await?;
        }
        Ok(())
    }
}

impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Failure> {
        match key {
            Key::Secret(key) => self.fill(key).await?,
            Key::Reference { account, secret } => self.forget(account, secret).await?,
        }
        Ok(Outcome::Settled)
    }
}
