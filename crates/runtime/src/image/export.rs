//! Images out of the store as one archive: an OCI image layout, and with `docker` what `docker load` looks for
//! beside it.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Image, ImageError, ImageStore, name::Reference};

/// What the archive is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ArchiveFormat {
    /// An OCI image layout.
    Oci,
    /// That, and a `manifest.json` as `docker save` writes it.
    Docker,
}

impl ImageStore {
    /// Writes the images that `names` mean to the file `path`, which must not exist. Half a file is removed.
    pub fn export(&self, names: &[String], format: ArchiveFormat, path: &Path) -> Result<u64, ImageError> {
        let lease = self.lease();
        let mut images: Vec<(Arc<Image>, BTreeSet<String>)> = Vec::new();
        for name in names {
            let image = self.find(name).ok_or_else(|| ImageError::NotFound(name.clone()))?;
            // an image asked for by one of its names leaves with that; by its id, with all
            let tag = Reference::parse(name).ok().and_then(|reference| reference.tagged());
            let tags: BTreeSet<String> = match tag.filter(|tag| image.tags.contains(tag)) {
                Some(tag) => [tag].into(),
                None => image.tags.iter().cloned().collect(),
            };
            match images.iter_mut().find(|(known, _)| known.id == image.id) {
                Some((_, known)) => known.extend(tags),
                None => images.push((image, tags)),
            }
        }
        self.protect(&lease, images.iter().flat_map(|(image, _)| image.content()));
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file = fs::File::create_new(path).map_err(named)?;
        let written = self.write(&images, format, file);
        if written.is_err() {
            // what went wrong is told; a leftover is only a nuisance
            let _ = fs::remove_file(path);
        }
        written
    }

    fn write(
        &self,
        images: &[(Arc<Image>, BTreeSet<String>)],
        format: ArchiveFormat,
        file: fs::File,
    ) -> Result<u64, ImageError> {
        let mut out = tar::Builder::new(io::BufWriter::with_capacity(256 * 1024, file));
        let (mut index, mut docker, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        document(&mut out, "oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
        for (image, tags) in images {
            let manifest = self.manifest(image)?;
            if seen.insert(manifest.digest.clone()) {
                append(
                    &mut out,
                    &in_archive(&manifest.digest),
                    manifest.bytes.len() as u64,
                    &manifest.bytes[..],
                )?;
            }
            for digest in image.blobs.iter().chain([&image.id]) {
                if seen.insert(digest.clone()) {
                    let size = self.blob_size(digest)?;
                    append(&mut out, &in_archive(digest), size, fs::File::open(self.blob(digest))?)?;
                }
            }
            let entry = |tag: Option<&String>| {
                let mut entry = json!({
                    "mediaType": manifest.media_type,
                    "digest": manifest.digest,
                    "size": manifest.bytes.len(),
                });
                if let Some(tag) = tag {
                    let short = tag.rsplit(':').next().unwrap_or_default();
                    entry["annotations"] =
                        json!({"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": short});
                }
                entry
            };
            if tags.is_empty() {
                index.push(entry(None));
            }
            index.extend(tags.iter().map(|tag| entry(Some(tag))));
            docker.push(json!({
                "Config": in_archive(&image.id),
                "RepoTags": tags,
                "Layers": image.blobs.iter().map(|digest| in_archive(digest)).collect::<Vec<_>>(),
            }));
        }
        if format == ArchiveFormat::Docker {
            document(&mut out, "manifest.json", &Value::Array(docker))?;
        }
        let kind = "application/vnd.oci.image.index.v1+json";
        document(
            &mut out,
            "index.json",
            &json!({"schemaVersion": 2, "mediaType": kind, "manifests": index}),
        )?;
        let mut out = out.into_inner()?;
        out.flush()?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(file.metadata()?.len())
    }
}

fn in_archive(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

fn document(out: &mut tar::Builder<impl Write>, name: &str, document: &Value) -> io::Result<()> {
    let bytes = document.to_string().into_bytes();
    append(out, name, bytes.len() as u64, &bytes[..])
}

fn append(
    out: &mut tar::Builder<impl Write>,
    name: &str,
    size: u64,
    content: impl io::Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    // content that shrinks meanwhile would make a broken archive
    let mut content = io::Read::take(content, size);
    out.append_data(&mut header, name, &mut content)?;
    if content.limit() == 0 { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
