//! Every active namespace has the service account `default`.
use client::{Cache, Change};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::ownership::{name, namespace};
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner, has_cause};

const DEFAULT: &str = "default";

struct Controller {
    context: Context,
    namespaces: Cache<Namespace>,
    accounts: Cache<ServiceAccount>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (namespaces, accounts) = (caches.of::<Namespace>(), caches.of::<ServiceAccount>());
    let controller =
        Controller { context: context.clone(), namespaces: namespaces.clone(), accounts: accounts.clone() };
    Runner::new(&context, controller)
        .on(&namespaces, |_, change| Some(name(&change.object().metadata).to_owned()))
        .on(&accounts, |_, change| match change {
            Change::Deleted(account) if name(&account.metadata) == DEFAULT => {
                Some(namespace(&account.metadata).to_owned())
            }
            _ => None,
        })
        .run(1)
        .await;
}

impl Reconcile for Controller {
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Outcome, Failure> {
        let Some(ns) = self.namespaces.get("", key) else { return Ok(Outcome::Settled) };
        if ns.metadata.deletion_timestamp.is_some() || self.accounts.get(key, DEFAULT).is_some() {
            return Ok(Outcome::Settled);
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(DEFAULT.to_owned()),
                namespace: Some(key.clone()),
                ..Default::default()
            },
            ..Default::default()
        };
        match self.context.client.create(key, &account).await {
            Ok(_) => Ok(Outcome::Settled),
            Err(e) if e.is_already_exists() || e.is_not_found() => Ok(Outcome::Settled),
            Err(e) if has_cause(&e, "NamespaceTerminating") => Ok(Outcome::Settled),
            Err(e) => Err(e.into()),
        }
    }
}
