//! Every active namespace has the config map `kube-root-ca.crt`, by which pods verify the API server.
use std::collections::BTreeMap;

use client::{Cache, Change};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::ownership::{name, namespace};
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner, has_cause};

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as \
    the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

struct Controller {
    context: Context,
    namespaces: Cache<Namespace>,
    /// Only the maps of that name, not every config map of the cluster.
    maps: Cache<ConfigMap>,
    pem: String,
}

pub(crate) async fn run(context: Context, pem: String) {
    let caches = context.reader.caches();
    let namespaces = caches.of::<Namespace>();
    let maps = caches.of_selected::<ConfigMap>(&format!("metadata.name={NAME}"));
    let controller =
        Controller { context: context.clone(), namespaces: namespaces.clone(), maps: maps.clone(), pem };
    Runner::new(&context, controller)
        .on(&namespaces, |_, change| Some(name(&change.object().metadata).to_owned()))
        .on(&maps, |_, change| match change {
            Change::Added(_) => None,
            Change::Deleted(map) | Change::Modified { new: map, .. } => {
                Some(namespace(&map.metadata).to_owned())
            }
        })
        .run(1)
        .await;
}

impl Reconcile for Controller {
    type Key = String;

    async fn reconcile(&self, key: &String) -> Result<Outcome, Failure> {
        let Some(ns) = self.namespaces.get("", key) else { return Ok(Outcome::Settled) };
        if ns.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Settled);
        }
        let data = BTreeMap::from([("ca.crt".to_owned(), self.pem.clone())]);
        let description = ("kubernetes.io/description".to_owned(), DESCRIPTION.to_owned());
        let result = match self.maps.get(key, NAME) {
            None => {
                let map = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(NAME.to_owned()),
                        namespace: Some(key.clone()),
                        annotations: Some(BTreeMap::from([description])),
                        ..Default::default()
                    },
                    data: Some(data),
                    ..Default::default()
                };
                self.context.client.create(key, &map).await
            }
            Some(map) if map.data.as_ref() == Some(&data) => return Ok(Outcome::Settled),
            Some(map) => {
                let mut next = (*map).clone();
                next.data = Some(data);
                next.metadata.annotations.get_or_insert_default().insert(description.0, description.1);
                self.context.client.update(key, &next).await
            }
        };
        match result {
            Ok(_) => Ok(Outcome::Settled),
            Err(e) if e.is_already_exists() || has_cause(&e, "NamespaceTerminating") => Ok(Outcome::Settled),
            Err(e) => Err(e.into()),
        }
    }
}
