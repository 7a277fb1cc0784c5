//! The CRI's image service, and what `navarch image` asks of the store.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use cri::{ImageService, v1};
use tonic::{Request, Status};

use super::{Answer, Answers, Service, ok, pieces, required};
use crate::{
    error::RuntimeError,
    handlers,
    image::{ArchiveFormat, Image, ImageError, ImageSummary, name::Reference, progress::Progress},
    registry::{self, Credentials},
    state::Runtime,
    view,
};

impl Runtime {
    /// Takes in an image archive (OCI image layout or `docker save`; tar, gzip or zstd).
    pub async fn import_image(self: &Arc<Self>, path: &Path) -> Result<Vec<ImageSummary>, RuntimeError> {
        let path = path.to_owned();
        self.blocking("importing an image", move |runtime| {
            Ok(runtime.images.import(&path).inspect_err(|error| runtime.clear_up(error))?)
        })
        .await
    }

    /// Takes away what a pull or import that failed with `error` left. Blocks.
    fn clear_up(&self, error: &ImageError) {
        if let Err(error) = self.images.clear(error.is_full(), &self.layers_in_use()) {
            tracing::warn!(%error, "clearing up after an image that could not be stored");
        }
    }

    /// Brings an image from its registry, or up to date. A call that is dropped or fails leaves what it has for the next;
    /// where the disk is full, nothing.
    pub async fn pull_image(
        self: &Arc<Self>,
        name: &str,
        credentials: Option<Credentials>,
        progress: &Progress,
    ) -> Result<ImageSummary, RuntimeError> {
        let reference = Reference::parse(name).map_err(ImageError::from)?;
        match self.images.pull(&self.config.registries, &reference, credentials, progress).await {
            Ok(image) => Ok(image),
            Err(error) => {
                self.blocking("clearing up", move |runtime| {
                    runtime.clear_up(&error);
                    Err(error.into())
                })
                .await
            }
        }
    }

    /// Puts the image `name` into a registry under the name `to`; the digest it has there.
    pub async fn push_image(
        self: &Arc<Self>,
        name: &str,
        to: &str,
        credentials: Option<Credentials>,
        progress: &Progress,
    ) -> Result<String, RuntimeError> {
        let to = Reference::parse(to).map_err(ImageError::from)?;
        Ok(self.images.push(&self.config.registries, name, &to, credentials, progress).await?)
    }

    /// Writes images to the archive `path`, which must not exist; its bytes.
    pub async fn export_images(
        self: &Arc<Self>,
        names: Vec<String>,
        format: ArchiveFormat,
        path: &Path,
    ) -> Result<u64, RuntimeError> {
        let path = path.to_owned();
        self.blocking("exporting images", move |runtime| Ok(runtime.images.export(&names, format, &path)?))
            .await
    }

    /// Every image.
    pub fn list_images(&self) -> Vec<ImageSummary> {
        let summary = |image: Arc<Image>| ImageSummary {
            id: image.id.clone(),
            tags: image.tags.clone(),
            size: image.size,
        };
        self.images.list().into_iter().map(summary).collect()
    }

    /// All that is known of an image, by name, digest or id.
    pub fn inspect_image(&self, name: &str) -> Option<Image> {
        self.images.find(name).map(|image| (*image).clone())
    }

    /// Removes the images that no container uses, as its own or as a volume; what was removed.
    pub async fn prune_images(self: &Arc<Self>) -> Result<Vec<ImageSummary>, RuntimeError> {
        self.blocking("removing images", move |runtime| {
            let used: HashSet<String> = {
                let containers = runtime.containers.read();
                let records = containers.values().map(|container| &container.record);
                records.flat_map(|record| record.images().map(str::to_owned)).collect()
            };
            let unused = runtime.list_images().into_iter().filter(|image| !used.contains(&image.id));
            let mut removed = Vec::new();
            for image in unused {
                if runtime.images.remove(&image.id, &runtime.layers_in_use())? {
                    removed.push(image);
                }
            }
            Ok(removed)
        })
        .await
    }

    /// Removes an image by name, digest or id; false when there is none. Containers that use it go on.
    pub async fn remove_image(self: &Arc<Self>, name: &str) -> Result<bool, RuntimeError> {
        let name = name.to_owned();
        self.blocking("removing an image", move |runtime| {
            Ok(runtime.images.remove(&name, &runtime.layers_in_use())?)
        })
        .await
    }
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        ok(v1::ListImagesResponse { images: self.selected(request.into_inner().filter) })
    }

    type StreamImagesStream = Answers<v1::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let images = self.selected(request.into_inner().filter);
        Ok(pieces(images, |images| v1::StreamImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        let request = request.into_inner();
        let name = required(request.image, "image")?.image;
        let found = self.0.images.find(&name);
        let mut info = HashMap::new();
        if let Some(image) = found.as_ref().filter(|_| request.verbose) {
            info.insert(
                "info".to_owned(),
                serde_json::json!({ "config": image.config, "layers": image.layers }).to_string(),
            );
        }
        ok(v1::ImageStatusResponse { image: found.map(|image| view::image(&image)), info })
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        let request = request.into_inner();
        let image = required(request.image, "image")?;
        // CRI: a handler that is none is refused; images are the same for all
        handlers::program(&self.0.config.handlers, &image.runtime_handler)?;
        let auth = request.auth.unwrap_or_default();
        let registry = Reference::parse(&image.image)
            .map_err(|error| RuntimeError::from(ImageError::from(error)))?
            .registry;
        let credentials = Credentials::from_parts(
            &auth.username,
            &auth.password,
            &auth.auth,
            &auth.identity_token,
            &auth.registry_token,
        )
        .map_err(|why| Status::invalid_argument(format!("auth: {why}")))?
        .filter(|_| registry::is_meant(&auth.server_address, &registry));
        // not detached: a caller that gives up ends the pull, and the next one goes on where it ended
        let pulled = self.0.pull_image(&image.image, credentials, &Progress::default()).await?;
        ok(v1::PullImageResponse { image_ref: pulled.id })
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        let name = required(request.into_inner().image, "image")?.image;
        // Not there is what was wanted.
        self.0.remove_image(&name).await?;
        ok(v1::RemoveImageResponse {})
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Answer<v1::ImageFsInfoResponse> {
        let (images, containers) = self.0.blocking("disk usage", |runtime| Ok(runtime.disk())).await?;
        ok(v1::ImageFsInfoResponse {
            image_filesystems: vec![images],
            container_filesystems: vec![containers],
        })
    }
}

impl Service {
    fn selected(&self, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
        let name = filter.and_then(|filter| filter.image).map(|spec| spec.image);
        let images = match name.filter(|name| !name.is_empty()) {
            Some(name) => self.0.images.find(&name).into_iter().collect(),
            None => self.0.images.list(),
        };
        images.iter().map(|image| view::image(image)).collect()
    }
}
