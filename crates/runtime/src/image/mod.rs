//! The image store: content by digest, layers unpacked once, and a list of what is there.
//!
//! ```text
//! <root>/blobs/sha256/<hex>      manifests, configurations, layers as they came
//! <root>/layers/<chain id>/      a layer unpacked on top of those below it; shared by images
//! <root>/images.json             the list, replaced whole
//! <root>/ingest/<hex>            content that is on its way from a registry, kept to be resumed
//! <root>/staging/                work in progress; emptied when the store is opened
//! ```
//!
//! Layers are named by chain id (OCI image spec, "Layer ChainID"), because what a layer's archive means
//! depends on the layers below it (see [`unpack`]).

pub mod archive;
pub mod config;
mod content;
mod export;
pub mod name;
pub mod progress;
mod pull;
mod push;
pub mod tar;
pub mod unpack;

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::registry::RegistryError;

pub use self::export::ArchiveFormat;
use self::{
    archive::{Archive, Found, Hashing, Staged, decompressed, hex},
    config::{ImageConfig, ImageDocument},
    content::{Claims, Lease, Leases},
    name::{InvalidReference, Reference, is_digest},
    unpack::Caps,
};

/// Limits for one image archive and for one layer.
const CAPS: Caps = Caps { bytes: 64 << 30, entries: 2_000_000, paths: 128 << 20 };
/// Most layers of an image; more than overlayfs's own limit of 500 is of no use.
const MAX_LAYERS: usize = 500;

/// Why an image could not be stored, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Its content is not what it should be.
    #[error("invalid image: {0}")]
    Invalid(String),
    /// Its name is not one.
    #[error(transparent)]
    Name(#[from] InvalidReference),
    /// A registry.
    #[error("failed to {doing} image {image:?}: {source}")]
    Registry {
        /// `pull` or `push`.
        doing: &'static str,
        /// The image's full name.
        image: String,
        /// What the registry said, or what is wrong with that.
        source: RegistryError,
    },
    /// There is none of that name.
    #[error("image {0:?} not found")]
    NotFound(String),
    /// The disk.
    #[error("image store: {0}")]
    Io(#[from] io::Error),
}

impl ImageError {
    /// Whether the disk had no room.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            ImageError::Registry { source: RegistryError::Disk(kind, _), .. } => is_full(*kind),
            ImageError::Io(error) => is_full(error.kind()),
            _ => false,
        }
    }
}

fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// An image in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// Digest of its configuration: `sha256:<hex>`.
    pub id: String,
    /// Full names with tags.
    pub tags: Vec<String>,
    /// Full names with digests of manifests.
    pub digests: Vec<String>,
    /// Digest of its manifest.
    pub manifest: Option<String>,
    /// Chain ids of its layers, lowest first, without `sha256:`.
    pub layers: Vec<String>,
    /// Digests of the layers' content as it came.
    pub blobs: Vec<String>,
    /// Bytes of its content as it came.
    pub size: u64,
    /// How to run it.
    pub config: ImageConfig,
}

impl Image {
    /// Its content, as names of blobs.
    fn content(&self) -> impl Iterator<Item = &str> {
        let digests = self.blobs.iter().chain([&self.id]).chain(&self.manifest);
        digests.filter_map(|digest| digest.strip_prefix("sha256:"))
    }
}

/// What was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// `sha256:<hex>`.
    pub id: String,
    /// Full names with tags.
    pub tags: Vec<String>,
    /// Bytes of content.
    pub size: u64,
}

/// The store.
#[derive(Debug)]
pub struct ImageStore {
    root: PathBuf,
    images: RwLock<Vec<Arc<Image>>>,
    /// Held while the list changes, and while content is collected; never while content is made.
    writer: Mutex<()>,
    leases: Leases,
    claims: Claims,
}

impl ImageStore {
    /// Opens the store in `root`, making it if needed.
    pub fn open(root: &Path) -> Result<ImageStore, ImageError> {
        let staging = root.join("staging");
        if staging.exists() {
            fs::remove_dir_all(&staging)?;
        }
        for dir in ["staging", "ingest", "blobs/sha256", "layers"] {
            fs::create_dir_all(root.join(dir))?;
        }
        // Layers hold set-id programs and other users' files: nobody but root walks in here.
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let images = match fs::read(root.join("images.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| ImageError::Invalid(format!("images.json is damaged: {error}")))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let store = ImageStore {
            root: root.to_owned(),
            images: RwLock::new(images),
            writer: Mutex::default(),
            leases: Leases::default(),
            claims: Claims::default(),
        };
        store.recover()?;
        Ok(store)
    }

    /// Every image.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.images.read().clone()
    }

    /// The image that `text` means: a name, a digest, or (the beginning of) an id.
    pub fn find(&self, text: &str) -> Option<Arc<Image>> {
        let images = self.images.read();
        if let Some(image) = images.iter().find(|image| image.id == text) {
            return Some(image.clone());
        }
        if let Ok(reference) = Reference::parse(text) {
            let tagged = if reference.digest.is_none() { reference.tagged() } else { None };
            let digested = reference.digest.as_ref().map(|digest| format!("{}@{digest}", reference.name()));
            let hit = images.iter().find(|image| {
                tagged.as_ref().is_some_and(|tag| image.tags.contains(tag))
                    || digested.as_ref().is_some_and(|digest| image.digests.contains(digest))
            });
            if let Some(image) = hit {
                return Some(image.clone());
            }
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        let plausible = prefix.len() >= 6 && prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut hits = images.iter().filter(|image| plausible && image.id[7..].starts_with(prefix));
        match (hits.next(), hits.next()) {
            (Some(image), None) => Some(image.clone()),
            _ => None,
        }
    }

    /// Folders of an image's layers, topmost first. An image without layers has one empty folder.
    pub fn layer_dirs(&self, image: &Image) -> io::Result<Vec<PathBuf>> {
        if image.layers.is_empty() {
            let empty = self.root.join("layers/empty");
            fs::create_dir_all(&empty)?;
            return Ok(vec![empty]);
        }
        Ok(image.layers.iter().rev().map(|chain| self.layer_dir(chain)).collect())
    }

    /// Takes in an archive (OCI image layout or `docker save`; tar, gzip or zstd).
    pub fn import(&self, path: &Path) -> Result<Vec<ImageSummary>, ImageError> {
        let file = fs::File::open(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        self.import_stream(file)
    }

    /// Like [`ImageStore::import`], from a stream.
    pub fn import_stream(&self, stream: impl io::Read) -> Result<Vec<ImageSummary>, ImageError> {
        let staging = tempfile::tempdir_in(self.root.join("staging"))?;
        let archive = Archive::stage(stream, staging.path(), CAPS)?;
        let lease = self.lease();
        let mut added = Vec::new();
        for found in archive.images()? {
            added.push(self.add(&found, &lease)?);
        }
        self.commit(added, &lease)
    }

    /// Puts images whose content is there on the list.
    fn commit(&self, mut added: Vec<Image>, _: &Lease) -> Result<Vec<ImageSummary>, ImageError> {
        // Content before the list that names it.
        rustix::fs::syncfs(fs::File::open(&self.root)?).map_err(io::Error::from)?;
        let _writer = self.writer.lock();
        let mut images = self.images.read().clone();
        for image in &mut added {
            for known in &mut images {
                if known.tags.iter().any(|tag| image.tags.contains(tag)) {
                    let mut other = (**known).clone();
                    other.tags.retain(|tag| !image.tags.contains(tag));
                    *known = Arc::new(other);
                }
            }
            if let Some(index) = images.iter().position(|known| known.id == image.id) {
                let known = images.remove(index);
                let tags: BTreeSet<String> = known.tags.iter().chain(&image.tags).cloned().collect();
                let digests: BTreeSet<String> = known.digests.iter().chain(&image.digests).cloned().collect();
                image.tags = tags.into_iter().collect();
                image.digests = digests.into_iter().collect();
            }
            images.push(Arc::new(image.clone()));
        }
        self.save(images)?;
        Ok(added.iter().map(Image::summary).collect())
    }

    /// Forgets the image and everything that neither another image nor `in_use` (chain ids) needs. False: there
    /// was none.
    pub fn remove(&self, text: &str, in_use: &HashSet<String>) -> Result<bool, ImageError> {
        let writer = self.writer.lock();
        let Some(image) = self.find(text) else { return Ok(false) };
        let images: Vec<_> =
            self.images.read().iter().filter(|known| known.id != image.id).cloned().collect();
        self.save(images)?;
        let trash = self.collect(in_use)?;
        drop(writer);
        trash.delete()?;
        Ok(true)
    }

    /// Takes away what a pull or import that failed left: layers that neither an image nor `in_use` (chain ids) needs. Content is kept
    /// a while for the next pull, unless the disk is `full`.
    pub fn clear(&self, full: bool, in_use: &HashSet<String>) -> Result<(), ImageError> {
        let writer = self.writer.lock();
        self.put_back()?;
        let trash = self.collect(in_use)?;
        if full {
            self.collect_ingest(Duration::ZERO)?;
        }
        drop(writer);
        Ok(trash.delete()?)
    }

    /// Removes content that neither an image nor `in_use` (chain ids) needs.
    pub fn prune(&self, in_use: &HashSet<String>) -> Result<(), ImageError> {
        let writer = self.writer.lock();
        let trash = self.collect(in_use)?;
        drop(writer);
        Ok(trash.delete()?)
    }

    fn save(&self, images: Vec<Arc<Image>>) -> Result<(), ImageError> {
        let path = self.root.join("images.json");
        let temporary = self.root.join("staging/images.json");
        let bytes = serde_json::to_vec_pretty(&images).map_err(io::Error::from)?;
        fs::write(&temporary, bytes)?;
        fs::File::open(&temporary)?.sync_all()?;
        fs::rename(temporary, path)?;
        *self.images.write() = images;
        Ok(())
    }

    fn layer_dir(&self, chain: &str) -> PathBuf {
        self.root.join("layers").join(chain)
    }

    fn add(&self, found: &Found, lease: &Lease) -> Result<Image, ImageError> {
        let document: ImageDocument = archive::parse(&found.config.file, found.config.size)?;
        let chains = chain_ids(&document, found.layers.len())?;
        let (mut tags, mut digests) = (Vec::new(), Vec::new());
        for name in &found.names {
            let reference = Reference::parse(name)?;
            tags.extend(reference.tagged());
            if let Some(manifest) = &found.manifest {
                digests.push(format!("{}@{}", reference.name(), manifest.digest));
            }
        }
        let parts = || found.layers.iter().chain([&found.config]).chain(&found.manifest);
        let digests_of = parts().map(|staged| staged.digest.as_str());
        self.protect(lease, digests_of.chain(chains.iter().map(String::as_str)));
        for (index, (layer, diff_id)) in found.layers.iter().zip(&document.rootfs.diff_ids).enumerate() {
            self.add_layer(layer, diff_id, &chains, index)?;
        }
        let mut size = 0;
        for staged in parts() {
            size += staged.size;
            // Two names for one staged file (an archive may list an image twice), hence a link.
            match fs::hard_link(&staged.file, self.blob(&staged.digest)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
                _ => {}
            }
        }
        Ok(Image {
            id: found.config.digest.clone(),
            tags,
            digests,
            manifest: found.manifest.as_ref().map(|manifest| manifest.digest.clone()),
            layers: chains,
            blobs: found.layers.iter().map(|layer| layer.digest.clone()).collect(),
            size,
            config: document.run_config(),
        })
    }

    /// Unpacks the layer `index` of `chains`, unless it is there. Blocks; another who unpacks it is waited for.
    fn add_layer(
        &self,
        layer: &Staged,
        diff_id: &str,
        chains: &[String],
        index: usize,
    ) -> Result<(), ImageError> {
        let Some((chain, below)) = chains.get(..=index).and_then(|chains| chains.split_last()) else {
            return Ok(());
        };
        let claim = self.claims.of(chain);
        let _claim = claim.blocking_lock();
        let target = self.layer_dir(chain);
        if target.exists() {
            return Ok(());
        }
        let work = tempfile::tempdir_in(self.root.join("staging"))?;
        let dir = work.path().join("layer");
        fs::create_dir(&dir)?;
        fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let lower: Vec<PathBuf> = below.iter().rev().map(|chain| self.layer_dir(chain)).collect();
        let mut plain = Hashing::new(decompressed(fs::File::open(&layer.file)?)?);
        unpack::unpack(&mut plain, &dir, &lower, CAPS).map_err(|error| {
            let why = format!("layer {}: {error}", layer.digest);
            if is_full(error.kind()) {
                io::Error::new(error.kind(), why).into()
            } else {
                ImageError::Invalid(why)
            }
        })?;
        // What follows the archive's end belongs to the digest, too.
        let rest = io::copy(&mut io::Read::take(&mut plain, CAPS.bytes), &mut io::sink())?;
        let (digest, _) = plain.finish();
        if rest == CAPS.bytes || digest != diff_id {
            return Err(ImageError::Invalid(format!(
                "layer {} unpacks to {digest}, the configuration says {diff_id}",
                layer.digest
            )));
        }
        fs::rename(dir, target)?;
        Ok(())
    }
}

impl Image {
    fn summary(&self) -> ImageSummary {
        ImageSummary { id: self.id.clone(), tags: self.tags.clone(), size: self.size }
    }
}

/// Chain ids of an image's layers, lowest first; checks that the configuration fits this machine and `layers`.
fn chain_ids(document: &ImageDocument, layers: usize) -> Result<Vec<String>, ImageError> {
    if !document.is_here() {
        return Err(ImageError::Invalid(format!(
            "it is made for {}, not for this machine",
            document.platform()
        )));
    }
    let diff_ids = &document.rootfs.diff_ids;
    if diff_ids.len() != layers || diff_ids.len() > MAX_LAYERS {
        return Err(ImageError::Invalid(format!(
            "its configuration names {} layers, {layers} are there (at most {MAX_LAYERS} are possible)",
            diff_ids.len(),
        )));
    }
    if let Some(bad) = diff_ids.iter().find(|digest| !is_digest(digest)) {
        return Err(ImageError::Invalid(format!("{bad:?} is not a digest")));
    }
    let mut chains: Vec<String> = Vec::new();
    for diff_id in diff_ids {
        chains.push(match chains.last() {
            None => diff_id[7..].to_owned(),
            Some(parent) => hex(&Sha256::digest(format!("sha256:{parent} {diff_id}"))),
        });
    }
    Ok(chains)
}
