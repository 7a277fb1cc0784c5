//! The CRI's two services on top of the runtime: requests in, answers out, nothing else.

use std::{collections::HashMap, path::Path, pin::Pin, sync::Arc};

use cri::{ImageService, RuntimeService, v1};
use futures_util::{Stream, StreamExt};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};
use tonic::{Request, Response, Status};

use crate::{
    error::RuntimeError,
    image::{ArchiveFormat, Image, ImageError, ImageSummary, name::Reference, progress::Progress},
    registry::Credentials,
    state::Runtime,
    streaming::{Command, Job, Streams},
    view,
};

/// The CRI server; cloning it is cheap.
#[derive(Clone)]
pub struct Service(Arc<Runtime>);

impl Runtime {
    /// The CRI server of this runtime.
    pub fn service(self: &Arc<Self>) -> Service {
        Service(self.clone())
    }

    /// Takes in an image archive (OCI image layout or `docker save`; tar, gzip or zstd).
    pub async fn import_image(self: &Arc<Self>, path: &Path) -> Result<Vec<ImageSummary>, RuntimeError> {
        let path = path.to_owned();
        let summary =
            self.blocking("importing an image", move |runtime| Ok(runtime.images.import(&path)?)).await?;
        Ok(summary)
    }

    /// Brings an image from its registry, or up to date. A call that is dropped leaves what it has for the next.
    pub async fn pull_image(
        self: &Arc<Self>,
        name: &str,
        credentials: Option<Credentials>,
        progress: &Progress,
    ) -> Result<ImageSummary, RuntimeError> {
        let reference = Reference::parse(name).map_err(ImageError::from)?;
        Ok(self.images.pull(&self.config.registries, &reference, credentials, progress).await?)
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

    /// Removes an image by name, digest or id; false when there is none. Containers that use it go on.
    pub async fn remove_image(self: &Arc<Self>, name: &str) -> Result<bool, RuntimeError> {
        let name = name.to_owned();
        self.blocking("removing an image", move |runtime| {
            Ok(runtime.images.remove(&name, &runtime.layers_in_use())?)
        })
        .await
    }

    /// Runs what blocks on the disk.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        doing: &str,
        work: impl FnOnce(Arc<Runtime>) -> Result<T, RuntimeError> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let runtime = self.clone();
        tokio::task::spawn_blocking(move || work(runtime))
            .await
            .map_err(|error| RuntimeError::io(doing)(std::io::Error::other(error)))?
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn ok<T>(answer: T) -> Answer<T> {
    Ok(Response::new(answer))
}

fn required<T>(value: Option<T>, what: &str) -> Result<T, Status> {
    value.ok_or_else(|| Status::invalid_argument(format!("{what} is missing")))
}

fn later(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not supported yet"))
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        ok(v1::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "navarch".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        })
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = required(request.config, "config")?;
        let runtime = self.0.clone();
        // In a task of its own: a caller that gives up must not leave half a sandbox.
        let id = detached(async move { runtime.run_sandbox(config, request.runtime_handler).await }).await?;
        ok(v1::RunPodSandboxResponse { pod_sandbox_id: id })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let (runtime, id) = (self.0.clone(), request.into_inner().pod_sandbox_id);
        detached(async move { runtime.stop_sandbox(&id).await }).await?;
        ok(v1::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let (runtime, id) = (self.0.clone(), request.into_inner().pod_sandbox_id);
        detached(async move { runtime.remove_sandbox(&id).await }).await?;
        ok(v1::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let sandbox = self.0.sandbox(&request.pod_sandbox_id)?;
        let mut info = HashMap::new();
        if request.verbose {
            let record = sandbox.record.read();
            let detail = serde_json::json!({
                "cgroupParent": record.cgroup_parent,
                "netns": record.netns,
                "shim": self.0.config.shim_dir(&record.id),
            });
            info.insert("info".to_owned(), detail.to_string());
        }
        let status = self.0.sandbox_status(&sandbox);
        let containers = self.0.containers_of(&status.id);
        ok(v1::PodSandboxStatusResponse {
            containers_statuses: containers
                .iter()
                .map(|container| self.0.container_status(container))
                .collect(),
            status: Some(status),
            info,
            timestamp: crate::state::now(),
        })
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        ok(v1::ListPodSandboxResponse { items: self.0.list_sandboxes(request.into_inner().filter) })
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let config = required(request.config, "config")?;
        let runtime = self.0.clone();
        let id =
            detached(async move { runtime.create_container(&request.pod_sandbox_id, config).await }).await?;
        ok(v1::CreateContainerResponse { container_id: id })
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        let (runtime, id) = (self.0.clone(), request.into_inner().container_id);
        detached(async move { runtime.start_container(&id).await }).await?;
        ok(v1::StartContainerResponse {})
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        let request = request.into_inner();
        self.0.stop_container(&request.container_id, request.timeout).await?;
        ok(v1::StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        let (runtime, id) = (self.0.clone(), request.into_inner().container_id);
        detached(async move { runtime.remove_container(&id).await }).await?;
        ok(v1::RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        ok(v1::ListContainersResponse { containers: self.0.list_containers(request.into_inner().filter) })
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.0.container(&request.container_id)?;
        let mut info = HashMap::new();
        if request.verbose {
            let detail = serde_json::json!({
                "sandboxID": container.record.sandbox,
                "pid": container.state.borrow().pid,
                "cgroup": container.record.cgroup,
            });
            info.insert("info".to_owned(), detail.to_string());
        }
        ok(v1::ContainerStatusResponse { status: Some(self.0.container_status(&container)), info })
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        if let Some(linux) = request.linux {
            self.0.update_resources(&request.container_id, linux)?;
        }
        ok(v1::UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        self.0.reopen_log(&request.into_inner().container_id).await?;
        ok(v1::ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        let request = request.into_inner();
        let output = self.0.exec_sync(&request.container_id, request.cmd, request.timeout).await?;
        ok(v1::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.code })
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        let request = request.into_inner();
        let container = self.0.running(&request.container_id)?.record.id.clone();
        if request.cmd.is_empty() {
            return Err(Status::invalid_argument("no command to execute"));
        }
        let streams = Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
        }
        .check()?;
        ok(v1::ExecResponse {
            url: self
                .0
                .streaming
                .url(Job::Command { command: Command::Exec { container, args: request.cmd }, streams })?,
        })
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        let request = request.into_inner();
        let container = self.0.running(&request.container_id)?.record.id.clone();
        let streams = Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
        }
        .check()?;
        let command = Command::Attach { container };
        ok(v1::AttachResponse { url: self.0.streaming.url(Job::Command { command, streams })? })
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Answer<v1::PortForwardResponse> {
        let request = request.into_inner();
        let sandbox = self.0.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.ready() {
            return Err(Status::failed_precondition(format!(
                "sandbox {} is not ready",
                request.pod_sandbox_id
            )));
        }
        let ports: Option<Vec<u16>> =
            request.port.iter().map(|port| u16::try_from(*port).ok().filter(|p| *p > 0)).collect();
        // a port has two channels, whose numbers are bytes
        let ports = ports.filter(|ports| ports.len() <= 127);
        let ports = ports.ok_or_else(|| Status::invalid_argument("at most 127 ports from 1 to 65535"))?;
        ok(v1::PortForwardResponse {
            url: self.0.streaming.url(Job::PortForward { sandbox: sandbox.id(), ports })?,
        })
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Answer<v1::ContainerStatsResponse> {
        let container = self.0.container(&request.into_inner().container_id)?;
        let stats =
            self.0.blocking("statistics", move |runtime| Ok(runtime.container_stats(&container))).await?;
        ok(v1::ContainerStatsResponse { stats: Some(stats) })
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        let containers = self.0.containers_for_stats(request.into_inner().filter);
        let all = move |runtime: Arc<Runtime>| {
            Ok(containers.iter().map(|container| runtime.container_stats(container)).collect())
        };
        ok(v1::ListContainerStatsResponse { stats: self.0.blocking("statistics", all).await? })
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        let sandbox = self.0.sandbox(&request.into_inner().pod_sandbox_id)?;
        let stats = self.0.blocking("statistics", move |runtime| runtime.sandbox_stats(&sandbox)).await?;
        ok(v1::PodSandboxStatsResponse { stats: Some(stats) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        let sandboxes = self.0.sandboxes_for_stats(request.into_inner().filter);
        let all = move |runtime: Arc<Runtime>| {
            sandboxes.iter().map(|sandbox| runtime.sandbox_stats(sandbox)).collect()
        };
        ok(v1::ListPodSandboxStatsResponse { stats: self.0.blocking("statistics", all).await? })
    }

    async fn update_runtime_config(
        &self,
        _: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        // The pod network learns its range from the node object; there is nothing to do here.
        ok(v1::UpdateRuntimeConfigResponse {})
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let network = self.0.config.network.ready().await;
        let condition = |kind: &str, problem: Option<String>| v1::RuntimeCondition {
            r#type: kind.to_owned(),
            status: problem.is_none(),
            reason: if problem.is_none() { String::new() } else { "NetworkPluginNotReady".to_owned() },
            message: problem.unwrap_or_default(),
        };
        let mut info = HashMap::new();
        if request.into_inner().verbose {
            let detail = serde_json::json!({
                "instance": self.0.config.instance,
                "root": self.0.config.root,
                "run": self.0.config.run,
                "cgroupParent": self.0.config.cgroup_parent,
                "cgroupV2": self.0.cgroups.is_v2(),
            });
            info.insert("config".to_owned(), detail.to_string());
        }
        ok(v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", None),
                    condition("NetworkReady", network.err().map(|error| error.to_string())),
                ],
            }),
            info,
            runtime_handlers: crate::handlers::names(&self.0.config.handlers)
                .into_iter()
                .map(|name| v1::RuntimeHandler {
                    // what another program can do is not known
                    features: Some(v1::RuntimeHandlerFeatures {
                        recursive_read_only_mounts: name.is_empty(),
                        user_namespaces: name.is_empty() && crate::user_namespace::supported(),
                    }),
                    name,
                })
                .collect(),
            features: Some(v1::RuntimeFeatures { supplemental_groups_policy: true }),
        })
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        Err(later("checkpointing containers (it needs CRIU)"))
    }

    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let stream = BroadcastStream::new(self.0.events.subscribe()).map(|event| {
            event.map_err(|BroadcastStreamRecvError::Lagged(missed)| {
                // The caller lists anew and subscribes again; nothing is silently lost.
                Status::data_loss(format!("the subscriber was too slow: {missed} events were missed"))
            })
        });
        let stop = self.0.stop.clone();
        ok(Box::pin(stream.take_until(async move { stop.cancelled().await })))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        ok(v1::ListMetricDescriptorsResponse { descriptors: crate::metrics::descriptors() })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        let sandboxes = self.0.sandboxes_for_stats(None);
        let all = move |runtime: Arc<Runtime>| {
            Ok(sandboxes.iter().map(|sandbox| runtime.sandbox_metrics(sandbox)).collect())
        };
        ok(v1::ListPodSandboxMetricsResponse { pod_metrics: self.0.blocking("metrics", all).await? })
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs as i32 };
        ok(v1::RuntimeConfigResponse { linux: Some(linux) })
    }
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        let filter = request.into_inner().filter.and_then(|filter| filter.image).map(|spec| spec.image);
        let images = match filter.filter(|name| !name.is_empty()) {
            Some(name) => self.0.images.find(&name).into_iter().collect(),
            None => self.0.images.list(),
        };
        ok(v1::ListImagesResponse { images: images.iter().map(|image| view::image(image)).collect() })
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
        let name = required(request.image, "image")?.image;
        let auth = request.auth.unwrap_or_default();
        let credentials = Credentials::from_parts(
            &auth.username,
            &auth.password,
            &auth.auth,
            &auth.identity_token,
            &auth.registry_token,
        )
        .map_err(|why| Status::invalid_argument(format!("auth: {why}")))?;
        // not detached: a caller that gives up ends the pull, and the next one goes on where it ended
        let image = self.0.pull_image(&name, credentials, &Progress::default()).await?;
        ok(v1::PullImageResponse { image_ref: image.id })
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

/// Runs `work` to its end even when the caller goes away.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(Status::internal(format!("the runtime failed: {error}"))),
    }
}
