//! Token cleaner: bootstrap tokens that have expired are deleted.
use client::{Cache, Change, DeleteOptions};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Secret;

use crate::bootstrap_tokens::{self, NAMESPACE};
use crate::ownership::name;
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

struct Controller {
    context: Context,
    tokens: Cache<Secret>,
}

pub(crate) async fn run(context: Context) {
    let tokens = bootstrap_tokens::cache(context.reader.caches());
    let controller = Controller { context: context.clone(), tokens: tokens.clone() };
    Runner::new(&context, controller)
        .on(&tokens, |_, change| match change {
            Change::Deleted(_) => None,
            change => Some(name(&change.object().metadata).to_owned()),
        })
        .run(1)
        .await;
}

impl Reconcile for Controller {
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Outcome, Failure> {
        let Some(token) = self.tokens.get(NAMESPACE, key) else { return Ok(Outcome::Settled) };
        match bootstrap_tokens::left(&token, self.context.clock.now()) {
            None => return Ok(Outcome::Settled),
            Some(left) if left > SignedDuration::ZERO => return Ok(Outcome::After(left.unsigned_abs())),
            Some(_) => {}
        }
        // At the revision that has expired: a token that was given more time just now stays.
        let options = DeleteOptions {
            uid: token.metadata.uid.clone(),
            resource_version: token.metadata.resource_version.clone(),
            ..DeleteOptions::default()
        };
        match self.context.client.delete::<Secret>(NAMESPACE, key, &options).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Outcome::Settled),
        }
    }
}
