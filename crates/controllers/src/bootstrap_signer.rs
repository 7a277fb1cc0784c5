//! Bootstrap signer: the kubeconfig in `kube-public/cluster-info`, which anybody may read, carries a signature by every
//! bootstrap token that signs, so that who has a token can tell that the kubeconfig is the cluster's own.
//!
//! Signatures are detached JWS (RFC 7515, HS256), keyed by the token's secret, in `jws-kubeconfig-TOKENID`.
use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use client::{Cache, Change};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use ring::hmac;

use crate::bootstrap_tokens;
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

const NAMESPACE: &str = "kube-public";
const NAME: &str = "cluster-info";
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE: &str = "jws-kubeconfig-";

struct Controller {
    context: Context,
    maps: Cache<ConfigMap>,
    tokens: Cache<Secret>,
    /// What the map says where nobody has made it; `None`: others make it.
    kubeconfig: Option<String>,
}

pub(crate) async fn run(context: Context, kubeconfig: Option<String>) {
    let caches = context.reader.caches();
    let maps =
        caches.of_selected::<ConfigMap>(&format!("metadata.namespace={NAMESPACE},metadata.name={NAME}"));
    let tokens = bootstrap_tokens::cache(caches);
    let controller =
        Controller { context: context.clone(), maps: maps.clone(), tokens: tokens.clone(), kubeconfig };
    let queue = client::queue::WorkQueue::new();
    queue.add(());
    Runner::with_queue(&context, controller, queue)
        .on(&maps, |_, _: &Change<ConfigMap>| Some(()))
        .on(&tokens, |_, _: &Change<Secret>| Some(()))
        .run(1)
        .await;
}

/// A detached JWS: the content stands elsewhere.
fn sign(content: &str, id: &str, secret: &str) -> String {
    // A token's id is letters and digits: nothing in it needs an escape.
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","kid":"{id}"}}"#));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let input = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, input.as_bytes())))
}

impl Reconcile for Controller {
    type Key = ();

    async fn reconcile(&self, (): &()) -> Result<Outcome, Failure> {
        let now = self.context.clock.now();
        let tokens = self.tokens.list();
        let Some(map) = self.maps.get(NAMESPACE, NAME) else {
            let Some(kubeconfig) = &self.kubeconfig else { return Ok(Outcome::Settled) };
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    namespace: Some(NAMESPACE.to_owned()),
                    ..ObjectMeta::default()
                },
                data: Some(BTreeMap::from([(KUBECONFIG.to_owned(), kubeconfig.clone())])),
                ..ConfigMap::default()
            };
            // Its appearance brings us back.
            return match self.context.client.create(NAMESPACE, &map).await {
                Err(error) if !error.is_already_exists() => Err(error.into()),
                _ => Ok(Outcome::Settled),
            };
        };
        let empty = BTreeMap::new();
        let data = map.data.as_ref().unwrap_or(&empty);
        let Some(content) = data.get(KUBECONFIG) else { return Ok(Outcome::Settled) };
        let mut want = data.clone();
        want.retain(|key, _| !key.starts_with(SIGNATURE));
        for (id, secret) in tokens.iter().filter_map(|t| bootstrap_tokens::signs(t, now)) {
            want.insert(format!("{SIGNATURE}{id}"), sign(content, id, secret));
        }
        if want != *data {
            let mut next = (*map).clone();
            next.data = Some(want);
            self.context.client.update(NAMESPACE, &next).await?;
        }
        let ends = tokens.iter().filter_map(|t| bootstrap_tokens::left(t, now));
        let next: Option<Duration> =
            ends.filter(|left| left.is_positive()).min().map(|left| left.unsigned_abs());
        Ok(Outcome::from(next))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn signatures_are_those_that_clients_of_the_reference_expect() {
        let content = "Hello from the other side. I must have called a thousand times.";
        assert_eq!(
            super::sign(content, "joshua", "my voice is my passcode"),
            "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8"
        );
    }
}
