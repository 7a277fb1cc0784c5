//! An image of the store into a registry.

use std::{fs, io, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    Image, ImageError, ImageStore,
    archive::{hex, is_zstd},
    config::Document,
    name::Reference,
    progress::Progress,
    pull::blocking,
};
use crate::registry::{Access, Credentials, Session, push_blob, push_manifest, settings::Settings};

/// Layers that are sent at once.
const AT_ONCE: usize = 4;
/// The media type of an OCI manifest.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image's manifest as it was pulled, or made for one that came without.
pub(super) struct Manifest {
    pub(super) bytes: Bytes,
    /// `sha256:<hex>`.
    pub(super) digest: String,
    pub(super) media_type: String,
}

impl ImageStore {
    /// Puts the image that `text` means into a registry under the name `to`; the digest it has there.
    pub async fn push(
        self: &Arc<Self>,
        access: &Access,
        text: &str,
        to: &Reference,
        credentials: Option<Credentials>,
        progress: &Progress,
    ) -> Result<String, ImageError> {
        let failed = |source| ImageError::Registry { doing: "push", image: to.to_string(), source };
        let image = self.find(text).ok_or_else(|| ImageError::NotFound(text.to_owned()))?;
        let settings = access.settings.clone();
        let settings = blocking(move || Ok(Settings::load(&settings))).await?.map_err(failed)?;
        let endpoint = settings.own(to, credentials.as_ref()).map_err(failed)?;
        let session = Session::new(access, settings);
        let lease = self.lease();
        let (store, names, found) = (self.clone(), lease.clone(), image.clone());
        let (manifest, sizes) = blocking(move || {
            store.protect(&names, found.content());
            let manifest = store.manifest(&found)?;
            let sizes: Vec<(String, u64)> = found
                .blobs
                .iter()
                .chain([&found.id])
                .map(|digest| Ok((digest.clone(), store.blob_size(digest)?)))
                .collect::<Result<_, ImageError>>()?;
            Ok((manifest, sizes))
        })
        .await?;
        if let Some(wanted) = to.digest.as_ref().filter(|wanted| **wanted != manifest.digest) {
            return Err(ImageError::Invalid(format!("its digest is {}, not {wanted}", manifest.digest)));
        }
        let parts: Vec<_> =
            sizes.into_iter().map(|(digest, size)| (progress.part(&digest, size), digest, size)).collect();
        // the configuration last: who sees it finds the layers
        let (layers, config) = parts.split_at(parts.len().saturating_sub(1));
        let send = |(part, digest, size): &(_, String, u64)| {
            let (session, endpoint, path) = (&session, &endpoint, self.blob(digest));
            let (part, digest, size): (super::progress::Part, _, _) =
                (Clone::clone(part), digest.clone(), *size);
            async move { push_blob(session, endpoint, &digest, path, size, &part).await }
        };
        futures_util::stream::iter(layers.iter().map(send))
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await
            .map_err(failed)?;
        for part in config {
            send(part).await.map_err(failed)?;
        }
        let reference = to.digest.as_deref().or(to.tag.as_deref()).unwrap_or("latest");
        push_manifest(&session, &endpoint, reference, &manifest.media_type, manifest.bytes)
            .await
            .map_err(failed)?;
        drop(lease);
        Ok(manifest.digest)
    }

    /// The manifest of an image. Blocks on the disk.
    pub(super) fn manifest(&self, image: &Image) -> Result<Manifest, ImageError> {
        if let Some(digest) = &image.manifest {
            let bytes = fs::read(self.blob(digest))?;
            let document: Document = serde_json::from_slice(&bytes)
                .map_err(|error| ImageError::Invalid(format!("its manifest: {error}")))?;
            let docker = document.config.is_some_and(|config| config.media_type.contains("docker"));
            let guess =
                if docker { "application/vnd.docker.distribution.manifest.v2+json" } else { MANIFEST };
            let media_type = document.media_type.unwrap_or_else(|| guess.to_owned());
            return Ok(Manifest { bytes: bytes.into(), digest: digest.clone(), media_type });
        }
        let layers: Vec<_> = image
            .blobs
            .iter()
            .map(|digest| {
                let kind = format!("application/vnd.oci.image.layer.v1.tar{}", self.compression(digest)?);
                Ok(json!({"mediaType": kind, "digest": digest, "size": self.blob_size(digest)?}))
            })
            .collect::<Result<_, ImageError>>()?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": image.id,
                "size": self.blob_size(&image.id)?,
            },
            "layers": serde_json::Value::Array(layers),
        });
        let bytes = manifest.to_string().into_bytes();
        let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        Ok(Manifest { bytes: bytes.into(), digest, media_type: MANIFEST.to_owned() })
    }

    /// Bytes of the content `digest`.
    pub(super) fn blob_size(&self, digest: &str) -> Result<u64, ImageError> {
        match fs::metadata(self.blob(digest)) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ImageError::Invalid(format!("its content {digest} is not on this node any more")))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What a layer's media type ends with.
    fn compression(&self, digest: &str) -> Result<&'static str, ImageError> {
        let mut head = [0; 4];
        let count = io::Read::read(&mut fs::File::open(self.blob(digest))?, &mut head)?;
        Ok(match head.get(..count).unwrap_or_default() {
            [0x1f, 0x8b, ..] => "+gzip",
            head if is_zstd(head) => "+zstd",
            _ => "",
        })
    }
}
