//! An image from a registry into the store: layers come side by side and are unpacked in order, each as soon as it
//! and those below it are there.
//!
//! A pull that is given up (its future dropped) leaves the parts of layers it has in `ingest/`; the next goes on
//! there. Two pulls that need the same layer fetch and unpack it once.

use std::{io, sync::Arc};

use tokio::{
    sync::{OwnedMutexGuard, Semaphore, oneshot},
    task::JoinSet,
};

use super::{
    CAPS, Image, ImageError, ImageStore, ImageSummary,
    archive::{Staged, parse},
    chain_ids,
    config::{Descriptor, ImageDocument},
    content::Lease,
    name::Reference,
    progress::{Part, Progress, State},
};
use crate::registry::{
    Access, Credentials, Endpoint, Intake, RegistryError, Resolved, Session, fetch, head, resolve,
    settings::Settings,
};

/// Layers of one image that are fetched at once.
const AT_ONCE: usize = 4;

impl ImageStore {
    /// Brings `reference` into the store, or up to date.
    pub async fn pull(
        self: &Arc<Self>,
        access: &Access,
        reference: &Reference,
        credentials: Option<Credentials>,
        progress: &Progress,
    ) -> Result<ImageSummary, ImageError> {
        let failed = |source| ImageError::Registry { doing: "pull", image: reference.to_string(), source };
        let settings = access.settings.clone();
        let settings = blocking(move || Ok(Settings::load(&settings))).await?.map_err(failed)?;
        let endpoints = settings.endpoints(reference, credentials.as_ref()).map_err(failed)?;
        let session = Arc::new(Session::new(access, settings));
        let (endpoints, resolved) =
            match self.look_up(&session, endpoints, reference).await.map_err(failed)? {
                Found::Here(image) => return Ok(image.summary()),
                Found::There(endpoints, resolved) => (endpoints, resolved),
            };
        self.take(&session, endpoints, reference, resolved, progress).await.map_err(|error| match error {
            ImageError::Invalid(why) => ImageError::Invalid(format!("image {reference}: {why}")),
            other => other,
        })
    }

    /// Asks the endpoints in turn; the one that knows the image comes first from then on.
    async fn look_up(
        &self,
        session: &Session,
        mut endpoints: Vec<Endpoint>,
        reference: &Reference,
    ) -> Result<Found, RegistryError> {
        let present = self.find(&reference.to_string());
        let mut failures = Vec::new();
        for index in 0..endpoints.len() {
            let Some(endpoint) = endpoints.get(index) else { break };
            if let Some(image) = &present
                && let Ok(Some(digest)) = head(session, endpoint, reference).await
                && image.digests.contains(&format!("{}@{digest}", reference.name()))
            {
                return Ok(Found::Here(image.clone()));
            }
            match resolve(session, endpoint, reference, index + 1 < endpoints.len()).await {
                Ok(resolved) => {
                    endpoints[..=index].rotate_right(1);
                    return Ok(Found::There(endpoints, Box::new(resolved)));
                }
                Err(error) => failures.push(error),
            }
        }
        Err(RegistryError::of_all(failures))
    }

    async fn take(
        self: &Arc<Self>,
        session: &Arc<Session>,
        endpoints: Vec<Endpoint>,
        reference: &Reference,
        resolved: Box<Resolved>,
        progress: &Progress,
    ) -> Result<ImageSummary, ImageError> {
        let failed = |source| ImageError::Registry { doing: "pull", image: reference.to_string(), source };
        let lease = self.lease();
        let mut size = resolved.manifest.len() as u64 + resolved.config.size;
        for layer in &resolved.layers {
            size = size.saturating_add(layer.size);
        }
        if size > CAPS.bytes {
            return Err(ImageError::Invalid(format!("{size} bytes are too many")));
        }
        let (store, names) = (self.clone(), lease.clone());
        let manifest = (resolved.manifest_digest.clone(), resolved.manifest.clone());
        let wanted: Vec<String> =
            resolved.layers.iter().chain([&resolved.config]).map(|part| part.digest.clone()).collect();
        blocking(move || {
            store.protect(&names, wanted.iter().chain([&manifest.0]).map(String::as_str));
            let work = tempfile::NamedTempFile::new_in(store.root.join("staging"))?;
            std::fs::write(work.path(), &manifest.1)?;
            work.persist(store.blob(&manifest.0)).map_err(|error| error.error)?;
            // put aside when a pull before this one was interrupted
            match std::fs::remove_file(store.ingest(&manifest.0)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            }
        })
        .await?;

        let source = Arc::new(Source { store: self.clone(), session: session.clone(), endpoints, lease });
        let layers: Vec<(Descriptor, Part)> = resolved
            .layers
            .iter()
            .map(|layer| (layer.clone(), progress.part(&layer.digest, layer.size)))
            .collect();
        let config = progress.part(&resolved.config.digest, resolved.config.size);
        source.blob(&resolved.config, &config).await.map_err(failed)?;
        let path = self.blob(&resolved.config.digest);
        let length = resolved.config.size;
        let document: ImageDocument = blocking(move || parse(&path, length)).await?;
        let chains = Arc::new(chain_ids(&document, layers.len())?);

        // Dropped when this future is, and with it every download.
        let mut downloads = JoinSet::new();
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        let mut arrivals = Vec::new();
        for (layer, part) in &layers {
            let (tell, arrival) = oneshot::channel();
            arrivals.push(arrival);
            let (source, layer, part, slots) = (source.clone(), layer.clone(), part.clone(), slots.clone());
            downloads.spawn(async move {
                let _slot = slots.acquire_owned().await;
                // nobody listens any more after another layer failed
                let _ = tell.send(source.blob(&layer, &part).await);
            });
        }
        let unpacked = async {
            for (index, arrival) in arrivals.into_iter().enumerate() {
                let broke = || RegistryError::from(io::Error::other("a download ended without an answer"));
                arrival.await.unwrap_or_else(|_| Err(broke())).map_err(failed)?;
                let (Some((layer, part)), Some(diff_id)) =
                    (layers.get(index), document.rootfs.diff_ids.get(index).cloned())
                else {
                    break;
                };
                part.set(State::Unpacking);
                let staged =
                    Staged { file: self.blob(&layer.digest), digest: layer.digest.clone(), size: layer.size };
                // holds the lease also when this future is dropped
                let (source, chains) = (source.clone(), chains.clone());
                blocking(move || {
                    source.store.protect(&source.lease, chains.iter().map(String::as_str));
                    source.store.add_layer(&staged, &diff_id, &chains, index)
                })
                .await?;
                part.set(State::Done);
            }
            Ok(())
        };
        let unpacked: Result<(), ImageError> = unpacked.await;
        // those that are of no use any more have the lease, too
        downloads.shutdown().await;
        unpacked?;
        let mut digests = vec![format!("{}@{}", reference.name(), resolved.digest)];
        digests.dedup();
        let image = Image {
            id: resolved.config.digest.clone(),
            // a digest says all: the tag beside it need not be what the registry has under it
            tags: if reference.digest.is_none() {
                reference.tagged().into_iter().collect()
            } else {
                Vec::new()
            },
            digests,
            manifest: Some(resolved.manifest_digest),
            layers: chains.to_vec(),
            blobs: resolved.layers.iter().map(|layer| layer.digest.clone()).collect(),
            size,
            config: document.run_config(),
        };
        let summary = blocking(move || source.store.commit(vec![image], &source.lease)).await?;
        let summary = summary.into_iter().next();
        summary.ok_or_else(|| ImageError::NotFound(reference.to_string()))
    }
}

enum Found {
    /// What is in the store is what the registry has.
    Here(Arc<Image>),
    /// Where it is, best place first, and what.
    There(Vec<Endpoint>, Box<Resolved>),
}

/// Where one image's content comes from and goes to.
struct Source {
    store: Arc<ImageStore>,
    session: Arc<Session>,
    endpoints: Vec<Endpoint>,
    lease: Lease,
}

impl Source {
    /// Brings the content of `descriptor` into the store, unless it is there.
    async fn blob(&self, descriptor: &Descriptor, part: &Part) -> Result<(), RegistryError> {
        let guard = self.store.claims.of(&descriptor.digest).lock_owned().await;
        let path = self.store.blob(&descriptor.digest);
        if tokio::fs::try_exists(&path).await? {
            part.at(descriptor.size);
            part.set(State::Present);
            return Ok(());
        }
        part.set(State::Moving);
        let guard = Arc::new(guard);
        let mut failures = Vec::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let elsewhere = index + 1 < self.endpoints.len();
            match self.from(endpoint, descriptor, elsewhere, part, &guard).await {
                Ok(()) => {
                    part.set(State::Done);
                    return Ok(());
                }
                Err(error @ RegistryError::Disk(..)) => return Err(error),
                Err(error) => failures.push(error),
            }
        }
        Err(RegistryError::of_all(failures))
    }

    async fn from(
        &self,
        endpoint: &Endpoint,
        descriptor: &Descriptor,
        elsewhere: bool,
        part: &Part,
        guard: &Arc<OwnedMutexGuard<()>>,
    ) -> Result<(), RegistryError> {
        let ingest = self.store.ingest(&descriptor.digest);
        loop {
            let mut intake = Intake::open(ingest.clone(), descriptor.size, guard.clone()).await?;
            let resumed = intake.taken > 0;
            let outcome = fetch(&self.session, endpoint, descriptor, elsewhere, &mut intake, part).await;
            let digest = match outcome {
                Ok(()) => intake.finish().await?,
                Err(error @ RegistryError::Disk(..)) => return Err(error),
                Err(error) => {
                    intake.finish().await?;
                    return Err(error);
                }
            };
            if digest == descriptor.digest {
                tokio::fs::rename(&ingest, self.store.blob(&descriptor.digest)).await?;
                return Ok(());
            }
            tokio::fs::remove_file(&ingest).await?;
            // what was there before may have been torn by a crash: once more from the beginning
            if !resumed {
                let why = format!("{} came with digest {digest}", descriptor.digest);
                return Err(RegistryError::Invalid { host: endpoint.host().to_owned(), why });
            }
        }
    }
}

/// Runs what blocks on the disk.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ImageError::Io(io::Error::other(error)))?
}
