//! What is in the store beside the list of images: content on its way in, who needs it, and what nobody needs.
//!
//! Work in progress holds a [`Lease`] on all it will need before it looks whether that is there; a collection sees
//! the leases under the same lock. Only one at a time makes the same content ([`Claims`]).
//!
//! After a crash, blobs that no image names may be torn: they go back to `ingest/`, where a later pull takes them
//! up again and checks every byte. Layers that nobody names are removed: unpacking them again is cheap.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use super::{ImageError, ImageStore, name::is_hex};

/// Unfinished content that nobody took up for so long is removed.
const INGEST_AGE: Duration = Duration::from_secs(24 * 3600);

/// Who makes what: one at a time for each name.
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Claims {
    /// The lock of `name`.
    pub(super) fn of(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut claims = self.0.lock();
        if let Some(known) = claims.get(name).and_then(Weak::upgrade) {
            return known;
        }
        claims.retain(|_, claim| claim.strong_count() > 0);
        let fresh = Arc::new(tokio::sync::Mutex::default());
        claims.insert(name.to_owned(), Arc::downgrade(&fresh));
        fresh
    }
}

/// Digests and chain ids (64 hexadecimal digits) that are not collected while this lives.
#[derive(Debug, Clone)]
pub(super) struct Lease(Arc<Mutex<HashSet<String>>>);

/// All leases.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<Vec<Weak<Mutex<HashSet<String>>>>>);

impl Leases {
    fn all(&self) -> HashSet<String> {
        let mut leases = self.0.lock();
        leases.retain(|lease| lease.strong_count() > 0);
        leases.iter().filter_map(Weak::upgrade).flat_map(|lease| lease.lock().clone()).collect()
    }
}

impl ImageStore {
    /// A lease on nothing yet.
    pub(super) fn lease(&self) -> Lease {
        let names = Arc::default();
        self.leases.0.lock().push(Arc::downgrade(&names));
        Lease(names)
    }

    /// Adds digests or chain ids; what is in the store after this stays there. May wait for a collection.
    pub(super) fn protect<'a>(&self, lease: &Lease, names: impl IntoIterator<Item = &'a str>) {
        let _writer = self.writer.lock();
        lease.0.lock().extend(names.into_iter().map(|name| name.trim_start_matches("sha256:").to_owned()));
    }

    /// Where the content `digest` is, or will be.
    pub(super) fn blob(&self, digest: &str) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    /// Where the content `digest` is while it is taken in.
    pub(super) fn ingest(&self, digest: &str) -> PathBuf {
        self.root.join("ingest").join(digest.trim_start_matches("sha256:"))
    }

    /// What a process before this one did not finish.
    pub(super) fn recover(&self) -> io::Result<()> {
        self.put_back()?;
        self.collect_ingest(INGEST_AGE)
    }

    /// Content that nobody names counts as unfinished.
    pub(super) fn put_back(&self) -> io::Result<()> {
        let images = self.list();
        let leased = self.leases.all();
        let named = images.iter().flat_map(|image| image.content());
        let named: HashSet<&str> = named.chain(leased.iter().map(String::as_str)).collect();
        for entry in fs::read_dir(self.root.join("blobs/sha256"))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if !named.contains(name) {
                fs::rename(entry.path(), self.ingest(name))?;
            }
        }
        Ok(())
    }

    /// Removes unfinished content that nobody took up for `age`.
    pub(super) fn collect_ingest(&self, age: Duration) -> io::Result<()> {
        let leased = self.leases.all();
        for entry in fs::read_dir(self.root.join("ingest"))? {
            let entry = entry?;
            let name = entry.file_name();
            let known = name.to_str().is_some_and(|name| is_hex(name) && !leased.contains(name));
            let since =
                entry.metadata()?.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
            if known && since.is_some_and(|since| since >= age) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Puts aside what neither an image, a lease nor `in_use` (chain ids) needs. The caller holds the writer's lock,
    /// and drops the folder after it gave that back: deleting takes time.
    pub(super) fn collect(&self, in_use: &HashSet<String>) -> Result<Trash, ImageError> {
        let images = self.list();
        let leased = self.leases.all();
        let layers: HashSet<&str> = images
            .iter()
            .flat_map(|image| &image.layers)
            .chain(in_use)
            .chain(&leased)
            .map(String::as_str)
            .collect();
        let blobs: HashSet<&str> = images
            .iter()
            .flat_map(|image| image.content())
            .chain(leased.iter().map(String::as_str))
            .collect();
        let mut trash = Trash(None);
        for (dir, keep) in [("layers", &layers), ("blobs/sha256", &blobs)] {
            for entry in fs::read_dir(self.root.join(dir))? {
                let entry = entry?;
                let name = entry.file_name();
                if !name.to_str().is_some_and(|name| keep.contains(name) || name == "empty") {
                    // a layer that came uncompressed has its content's name
                    let to = trash.folder(&self.root.join("staging"))?.join(dir);
                    fs::create_dir_all(&to)?;
                    fs::rename(entry.path(), to.join(name))?;
                }
            }
        }
        self.collect_ingest(INGEST_AGE)?;
        Ok(trash)
    }
}

/// Content to be deleted.
#[must_use = "deleting it shows errors"]
pub(super) struct Trash(Option<tempfile::TempDir>);

impl Trash {
    fn folder(&mut self, staging: &Path) -> io::Result<PathBuf> {
        if self.0.is_none() {
            self.0 = Some(tempfile::tempdir_in(staging)?);
        }
        Ok(self.0.as_ref().map_or(staging, tempfile::TempDir::path).to_owned())
    }

    pub(super) fn delete(self) -> io::Result<()> {
        self.0.map_or(Ok(()), tempfile::TempDir::close)
    }
}
