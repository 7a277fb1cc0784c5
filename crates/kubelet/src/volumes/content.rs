//! What payload volumes hold: keys of ConfigMaps and Secrets, fields of the pod, tokens.
//!
//! Rule: Kubernetes documentation, "Volumes", "Projected Volumes", "Downward API".

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret,
    ServiceAccountTokenProjection, Volume,
};

use super::payload::{File, Payload};
use super::token;
use super::{Context, Mounted};
use crate::env;
use crate::references::Kind;

/// Mode of files where nothing else is said.
const MODE: u32 = 0o644;

/// The files of one volume, as they are found.
pub(super) struct Content<'a> {
    pod: &'a Pod,
    volume: &'a str,
    context: &'a Context<'a>,
    /// What is noted beside the files: what was read, and the tokens.
    mounted: &'a mut Mounted,
    pub(super) files: Payload,
    /// Whether it must not reach the disk.
    pub(super) private: bool,
}

/// Which keys of an object are wanted.
struct Keys<'a> {
    /// All of them where it says nothing.
    items: Option<&'a [KeyToPath]>,
    optional: bool,
    mode: u32,
}

fn mode(given: Option<i32>) -> u32 {
    given.map_or(MODE, |mode| mode as u32)
}

impl<'a> Content<'a> {
    /// Of the volume, and the plugin that makes it; nothing where it is of another kind.
    pub(super) async fn of(
        pod: &'a Pod,
        volume: &'a Volume,
        context: &'a Context<'a>,
        mounted: &'a mut Mounted,
    ) -> Result<Option<(Self, &'static str)>, String> {
        let files = Payload::new();
        let mut content = Self { pod, volume: &volume.name, context, mounted, files, private: false };
        let plugin = if let Some(source) = &volume.config_map {
            let items = source.items.as_deref();
            let keys =
                Keys { items, optional: source.optional == Some(true), mode: mode(source.default_mode) };
            content.config_map(&source.name, keys).await?;
            "configmap"
        } else if let Some(source) = &volume.secret {
            let items = source.items.as_deref();
            let keys =
                Keys { items, optional: source.optional == Some(true), mode: mode(source.default_mode) };
            content.secret(source.secret_name.as_deref().unwrap_or_default(), keys).await?;
            "secret"
        } else if let Some(source) = &volume.downward_api {
            content.downward(source.items.as_deref(), mode(source.default_mode))?;
            "downward-api"
        } else if let Some(source) = &volume.projected {
            content.projected(source).await?;
            "projected"
        } else {
            return Ok(None);
        };
        Ok(Some((content, plugin)))
    }

    async fn projected(&mut self, source: &ProjectedVolumeSource) -> Result<(), String> {
        let mode = mode(source.default_mode);
        for part in source.sources.iter().flatten() {
            if let Some(p) = &part.config_map {
                let keys = Keys { items: p.items.as_deref(), optional: p.optional == Some(true), mode };
                self.config_map(&p.name, keys).await?;
            }
            if let Some(p) = &part.secret {
                let keys = Keys { items: p.items.as_deref(), optional: p.optional == Some(true), mode };
                self.secret(&p.name, keys).await?;
            }
            if let Some(p) = &part.downward_api {
                self.downward(p.items.as_deref(), mode)?;
            }
            if let Some(p) = &part.service_account_token {
                self.token(p, mode).await?;
            }
        }
        Ok(())
    }

    fn namespace(&self) -> &'a str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    async fn config_map(&mut self, name: &str, keys: Keys<'_>) -> Result<(), String> {
        let found = self.context.references.get::<ConfigMap>(self.namespace(), name).await;
        let version = found.as_ref().ok().and_then(|map| map.metadata.resource_version.clone());
        self.mounted.seen.insert((Kind::ConfigMap, name.to_owned()), version);
        match found {
            Ok(map) => {
                let mut data: BTreeMap<String, Vec<u8>> =
                    map.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes())).collect();
                data.extend(map.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0)));
                pick(&data, &keys, "configmap references non-existent config key", &mut self.files)
            }
            Err(error) if error.is_not_found() && keys.optional => Ok(()),
            Err(error) if error.is_not_found() => Err(format!("configmap {name:?} not found")),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn secret(&mut self, name: &str, keys: Keys<'_>) -> Result<(), String> {
        self.private = true;
        let found = self.context.references.get::<Secret>(self.namespace(), name).await;
        let version = found.as_ref().ok().and_then(|secret| secret.metadata.resource_version.clone());
        self.mounted.seen.insert((Kind::Secret, name.to_owned()), version);
        match found {
            Ok(secret) => {
                let data = secret.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect();
                pick(&data, &keys, "references non-existent secret key", &mut self.files)
            }
            Err(error) if error.is_not_found() && keys.optional => Ok(()),
            Err(error) if error.is_not_found() => Err(format!("secret {name:?} not found")),
            Err(error) => Err(error.to_string()),
        }
    }

    fn downward(&mut self, items: Option<&[DownwardAPIVolumeFile]>, mode: u32) -> Result<(), String> {
        self.mounted.downward = true;
        let (none, sources) = (Container::default(), self.context.sources);
        for item in items.unwrap_or_default() {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => env::pod_field(field, sources)?,
                (None, Some(resource)) => env::resource_field(resource, &none, sources)?,
                (None, None) => continue,
            };
            let mode = item.mode.map_or(mode, |mode| mode as u32);
            self.files.insert(item.path.clone(), File::of_root(text.into_bytes(), mode));
        }
        Ok(())
    }

    async fn token(&mut self, wanted: &ServiceAccountTokenProjection, mode: u32) -> Result<(), String> {
        self.private = true;
        let Context { client, before, .. } = *self.context;
        let key = (self.volume.to_owned(), wanted.path.clone());
        let known = before.and_then(|m| m.tokens.get(&key)).filter(|t| t.renew > Timestamp::now());
        let token = match known {
            Some(token) => token.clone(),
            None => {
                let seconds = wanted.expiration_seconds.unwrap_or(3600);
                token::fresh(client, self.pod, wanted.audience.as_deref(), seconds).await?
            }
        };
        // with a user of the whole pod, or a group of its own, nobody else may read it
        let owner = token::only_user(self.pod);
        let mode = if owner.is_some() || super::group(self.pod).is_some() { 0o600 } else { mode };
        let content = token.text.clone().into_bytes();
        self.files.insert(wanted.path.clone(), File { content, mode, owner });
        let Mounted { renew, tokens, .. } = &mut *self.mounted;
        *renew = Some(renew.map_or(token.renew, |known| known.min(token.renew)));
        tokens.insert(key, token);
        Ok(())
    }
}

/// Picks the wanted keys; `missing` are the words for one that is not there.
fn pick(
    data: &BTreeMap<String, Vec<u8>>,
    keys: &Keys<'_>,
    missing: &str,
    files: &mut Payload,
) -> Result<(), String> {
    let Some(items) = keys.items.filter(|items| !items.is_empty()) else {
        files.extend(data.iter().map(|(k, v)| (k.clone(), File::of_root(v.clone(), keys.mode))));
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                let mode = item.mode.map_or(keys.mode, |mode| mode as u32);
                files.insert(item.path.clone(), File::of_root(value.clone(), mode));
            }
            None if keys.optional => {}
            None => return Err(format!("{missing}: {}", item.key)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_not_there_is_named_unless_it_may_be_missing() {
        let items: Vec<KeyToPath> =
            serde_json::from_value(serde_json::json!([{"key": "k", "path": "p"}])).unwrap();
        let pick = |optional| {
            let keys = Keys { items: Some(&items), optional, mode: MODE };
            pick(&BTreeMap::new(), &keys, "no key", &mut Payload::new())
        };
        assert_eq!((pick(true), pick(false)), (Ok(()), Err("no key: k".to_owned())));
    }
}
