//! The scale subresource of any kind, custom resources included: how many replicas an owner asks for.
use std::collections::HashMap;

use client::{Client, Error, path_of};
use http::Method;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use parking_lot::Mutex;

use crate::runner::Failure;

/// An object by its kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    /// `apps/v1`; of the core group `v1`.
    pub(crate) api_version: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

/// Why a scale could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScaleError {
    /// The server serves no such kind.
    #[error("no matches for kind \"{kind}\" in {place}")]
    NoKind { kind: String, place: String },
    #[error("{0}")]
    Api(#[from] Error),
}

impl From<ScaleError> for Failure {
    fn from(error: ScaleError) -> Self {
        match error {
            ScaleError::Api(error) => error.into(),
            ScaleError::NoKind { .. } => Failure::Invalid(error.to_string()),
        }
    }
}

/// Kinds by api version and kind: their plural. Discovery is asked once per kind, and again when a kind was not there.
#[derive(Default)]
pub(crate) struct Scales {
    plurals: Mutex<HashMap<(String, String), String>>,
}

impl Scales {
    /// The path of the target's scale.
    async fn path(&self, client: &Client, target: Target<'_>) -> Result<String, ScaleError> {
        let (group, version) = target.api_version.split_once('/').unwrap_or(("", target.api_version));
        let key = (target.api_version.to_owned(), target.kind.to_owned());
        let known = self.plurals.lock().get(&key).cloned();
        let plural = match known {
            Some(plural) => plural,
            None => {
                let plural = Self::discover(client, group, version, target.kind).await?;
                self.plurals.lock().insert(key, plural.clone());
                plural
            }
        };
        Ok(path_of(group, version, &plural, target.namespace, target.name, "scale"))
    }

    async fn discover(client: &Client, group: &str, version: &str, kind: &str) -> Result<String, ScaleError> {
        let missing = || ScaleError::NoKind {
            kind: kind.to_owned(),
            place: if group.is_empty() {
                format!("version \"{version}\"")
            } else {
                format!("version \"{group}/{version}\"")
            },
        };
        let path = path_of(group, version, "", "", "", "");
        let list: APIResourceList = match client.call(Method::GET, &path, None::<&()>).await {
            Ok(list) => list,
            Err(error) if error.is_not_found() => return Err(missing()),
            Err(error) => return Err(error.into()),
        };
        let found = list.resources.into_iter().find(|r| r.kind == kind && !r.name.contains('/'));
        found.map(|r| r.name).ok_or_else(missing)
    }

    /// The target's group and plural if its kind has no scale subresource; asked of the server each time.
    pub(crate) async fn without_scale(
        &self,
        client: &Client,
        target: Target<'_>,
    ) -> Result<Option<String>, ScaleError> {
        let (group, version) = target.api_version.split_once('/').unwrap_or(("", target.api_version));
        let path = path_of(group, version, "", "", "", "");
        let list: APIResourceList = client.call(Method::GET, &path, None::<&()>).await?;
        let resource = self.resource(client, target).await?;
        let plural = resource.split('.').next().unwrap_or_default();
        let has_scale = list.resources.iter().any(|r| r.name.strip_suffix("/scale") == Some(plural));
        Ok((!has_scale).then_some(resource))
    }

    /// The target's scale.
    pub(crate) async fn get(&self, client: &Client, target: Target<'_>) -> Result<Scale, ScaleError> {
        let path = self.path(client, target).await?;
        Ok(client.call(Method::GET, &path, None::<&()>).await?)
    }

    /// Writes the target's scale.
    pub(crate) async fn put(
        &self,
        client: &Client,
        target: Target<'_>,
        scale: &Scale,
    ) -> Result<Scale, ScaleError> {
        let path = self.path(client, target).await?;
        Ok(client.call(Method::PUT, &path, Some(scale)).await?)
    }

    /// The target's group and plural: `deployments.apps`.
    pub(crate) async fn resource(&self, client: &Client, target: Target<'_>) -> Result<String, ScaleError> {
        self.path(client, target).await?;
        let key = (target.api_version.to_owned(), target.kind.to_owned());
        let plural = self.plurals.lock().get(&key).cloned().unwrap_or_default();
        let group = target.api_version.split_once('/').map(|(group, _)| group);
        Ok(group.map_or(plural.clone(), |group| format!("{plural}.{group}")))
    }
}
