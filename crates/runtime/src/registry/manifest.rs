//! From a reference to the manifest for this machine: indexes (manifest lists) on the way, digests checked, what is
//! no image of layers refused.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use sha2::{Digest, Sha256};

use super::{
    RegistryError, Session,
    session::{Call, Endpoint},
};
use crate::image::{
    archive::hex,
    config::{Descriptor, Document, MAX_DOCUMENT, Platform},
    name::{Reference, is_digest},
};

/// Largest manifest or index in bytes; the specification asks registries to take that much.
const MAX_MANIFEST: u64 = 4 << 20;
/// Indexes in indexes.
const MAX_DEPTH: usize = 4;
/// What is understood.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// What a reference stands for.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Digest that the reference itself has: an index's, where there is one.
    pub digest: String,
    /// The manifest for this machine.
    pub manifest: Bytes,
    /// Its digest.
    pub manifest_digest: String,
    /// The image's configuration.
    pub config: Descriptor,
    /// Lowest first.
    pub layers: Vec<Descriptor>,
}

/// The digest that `reference` has now, without fetching anything; `None` when the registry does not say.
pub(crate) async fn head(
    session: &Session,
    endpoint: &Endpoint,
    reference: &Reference,
) -> Result<Option<String>, RegistryError> {
    let mut call = Call::new(Method::HEAD, endpoint.uri(&format!("manifests/{}", target(reference)))?);
    call.headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
    let response = session.get(endpoint, "pull", &call).await?;
    Ok(content_digest(response.headers()))
}

/// Finds the manifest of `reference` for this machine. `elsewhere`: it may be asked for at another place, too.
pub(crate) async fn resolve(
    session: &Session,
    endpoint: &Endpoint,
    reference: &Reference,
    elsewhere: bool,
) -> Result<Resolved, RegistryError> {
    let host = endpoint.host();
    let mut wanted = target(reference).to_owned();
    let mut first = None;
    for _ in 0..=MAX_DEPTH {
        let (bytes, digest, kind) = fetch(session, endpoint, &wanted, elsewhere).await?;
        let first = first.get_or_insert_with(|| digest.clone()).clone();
        let document: Document = serde_json::from_slice(&bytes)
            .map_err(|error| RegistryError::invalid(host, format!("manifest {digest}: {error}")))?;
        let wrong = |why: String| RegistryError::invalid(host, format!("manifest {digest}: {why}"));
        match document.part(&kind).map_err(wrong)? {
            Part::Index(manifests) => {
                wanted = choose(&manifests).map_err(wrong)?.digest.clone();
                if !is_digest(&wanted) {
                    return Err(wrong(format!("{wanted:?} is not a digest")));
                }
            }
            Part::Manifest(config, layers) => {
                check(&config, &layers).map_err(wrong)?;
                return Ok(Resolved {
                    digest: first,
                    manifest: bytes,
                    manifest_digest: digest,
                    config,
                    layers,
                });
            }
        }
    }
    Err(RegistryError::invalid(host, "image indexes are nested too deep"))
}

fn target(reference: &Reference) -> &str {
    reference.digest.as_deref().or(reference.tag.as_deref()).unwrap_or("latest")
}

fn content_digest(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("docker-content-digest")?.to_str().ok()?;
    is_digest(value).then(|| value.to_owned())
}

/// A document, its digest and its media type.
async fn fetch(
    session: &Session,
    endpoint: &Endpoint,
    wanted: &str,
    elsewhere: bool,
) -> Result<(Bytes, String, String), RegistryError> {
    let host = endpoint.host();
    let mut call = Call::new(Method::GET, endpoint.uri(&format!("manifests/{wanted}"))?);
    call.headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
    let mut patience = session.patience().or_elsewhere(elsewhere);
    let (bytes, headers) = loop {
        let asked = async {
            let response = session.get(endpoint, "pull", &call).await?;
            let headers = response.headers().clone();
            let limit = usize::try_from(MAX_MANIFEST).unwrap_or(usize::MAX);
            Ok((session.read(host, response, limit, "the manifest").await?, headers))
        };
        match asked.await {
            Ok(got) => break got,
            Err(error) => patience.bear(error).await?,
        }
    };
    let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
    let promised = if is_digest(wanted) { Some(wanted.to_owned()) } else { content_digest(&headers) };
    if promised.as_ref().is_some_and(|promised| *promised != digest) {
        let promised = promised.unwrap_or_default();
        return Err(RegistryError::invalid(host, format!("manifest {promised} came with digest {digest}")));
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    Ok((bytes, digest, kind.split(';').next().unwrap_or_default().trim().to_owned()))
}

enum Part {
    Index(Vec<Descriptor>),
    Manifest(Descriptor, Vec<Descriptor>),
}

impl Document {
    /// What the document is. One that could be read both ways, or that says to be something else than it was
    /// sent as, is refused (CVE-2021-41190).
    fn part(self, sent_as: &str) -> Result<Part, String> {
        let named = self.media_type.as_deref().unwrap_or_default();
        if [named, sent_as].iter().any(|kind| kind.contains("manifest.v1+") && kind.contains("docker"))
            || self.schema_version == Some(1)
        {
            return Err(
                "it has Docker's schema 1, which is no longer supported; build the image anew".to_owned()
            );
        }
        if self.schema_version != Some(2) {
            return Err("its schemaVersion is not 2".to_owned());
        }
        let index_like = |kind: &str| kind.contains("manifest.list") || kind.contains("image.index");
        let known = |kind: &str| index_like(kind) || kind.contains("manifest.v");
        if known(named) && known(sent_as) && index_like(named) != index_like(sent_as) {
            return Err(format!("it is a {named:?}, but was sent as {sent_as:?}"));
        }
        match (self.manifests, self.config, self.layers) {
            (Some(manifests), None, None) => Ok(Part::Index(manifests)),
            (None, Some(config), Some(layers)) => Ok(Part::Manifest(config, layers)),
            (Some(_), _, _) => Err("it is an index and a manifest at once".to_owned()),
            _ => Err("it is neither an index nor a manifest".to_owned()),
        }
    }
}

/// The entry that fits this machine best.
fn choose(manifests: &[Descriptor]) -> Result<&Descriptor, String> {
    let fitting = manifests.iter().filter(|entry| entry.platform.as_ref().is_none_or(Platform::is_here));
    // one that does not say what it is for comes last; the first of equals wins
    let best = fitting.min_by_key(|entry| entry.platform.as_ref().map_or(u8::MAX, Platform::rank));
    best.ok_or_else(|| {
        let all: Vec<String> = manifests
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .map(ToString::to_string)
            .take(20)
            .collect();
        format!("no match for platform {}; it has {}", Platform::here(), all.join(", "))
    })
}

fn check(config: &Descriptor, layers: &[Descriptor]) -> Result<(), String> {
    let configs =
        ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
    // builders before OCI 1.0 wrote octet-stream
    let old = ["", "application/octet-stream"];
    if !configs.iter().chain(&old).any(|kind| *kind == config.media_type) {
        return Err(format!("it is no image to run, its configuration is {:?}", config.media_type));
    }
    if config.size > MAX_DOCUMENT {
        return Err("its configuration is too large".to_owned());
    }
    for layer in layers {
        let kind = layer.media_type.as_str();
        if kind.ends_with("+encrypted") {
            return Err("its layers are encrypted, which is not supported".to_owned());
        }
        if !kind.is_empty() && !kind.contains("tar") {
            return Err(format!("a layer is {kind:?}, which is no file system"));
        }
    }
    match layers.iter().chain([config]).find(|descriptor| !is_digest(&descriptor.digest)) {
        Some(bad) => Err(format!("{:?} is not a digest", bad.digest)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn part(document: Value, sent_as: &str) -> Result<Part, String> {
        serde_json::from_value::<Document>(document).unwrap().part(sent_as)
    }

    #[test]
    fn documents_that_mean_two_things_are_refused() {
        let check = |document: Value, sent_as: &str, expected: &str| {
            let error = part(document, sent_as).err().unwrap();
            assert!(error.contains(expected), "{error}");
        };
        let config = json!({"digest": "d", "size": 1});
        let both = json!({"schemaVersion": 2, "manifests": [], "config": config, "layers": []});
        check(both, "", "at once");
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": []});
        check(manifest.clone(), "application/vnd.oci.image.index.v1+json", "was sent as");
        assert!(matches!(part(manifest, "text/plain"), Ok(Part::Manifest(..))));
        check(json!({"schemaVersion": 1, "fsLayers": []}), "", "schema 1");
        let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        check(json!({"schemaVersion": 2}), old, "schema 1");
        check(json!({"schemaVersion": 2}), "", "neither");
        check(json!({"manifests": []}), "", "schemaVersion");
    }

    #[test]
    fn the_best_platform_is_chosen() {
        let here = Platform::here();
        let entry =
            |digest: &str, platform: Value| json!({"digest": digest, "size": 1, "platform": platform});
        let check = |entries: Value, expected: &str| {
            let entries: Vec<Descriptor> = serde_json::from_value(entries).unwrap();
            assert_eq!(choose(&entries).map(|d| d.digest.clone()).unwrap_or_else(|e| e), expected);
        };
        let (os, arch) = here.split_once('/').unwrap();
        let other = json!({"os": "linux", "architecture": "s390x"});
        let unknown = json!({"os": "unknown", "architecture": "unknown"});
        check(
            json!([
                entry("a", other.clone()),
                entry("b", json!({"os": os, "architecture": arch})),
                entry("c", unknown.clone())
            ]),
            "b",
        );
        // a program for a newer processor only when there is nothing else
        let newer = json!({"os": os, "architecture": arch, "variant": "v9"});
        check(
            json!([entry("new", newer.clone()), entry("old", json!({"os": os, "architecture": arch}))]),
            "old",
        );
        check(json!([entry("new", newer)]), "new");
        check(json!([entry("any", Value::Null)]), "any");
        check(
            json!([entry("a", other), entry("c", unknown)]),
            &format!("no match for platform {here}; it has linux/s390x, unknown/unknown"),
        );
    }
}
