//! The CRI's services on top of the runtime: requests in, answers out, nothing else. Images stand in [`images`].

mod images;

use std::{collections::HashMap, pin::Pin, sync::Arc};

use cri::{RuntimeService, v1};
use futures_util::{Stream, StreamExt};
use prost::Message;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    container_spec,
    error::RuntimeError,
    link::Link,
    oci_spec,
    state::Runtime,
    streaming::{Command, Job, Streams},
};

/// Most bytes of a list in one message of a stream, unless a single item has more.
const PIECE: usize = 1024 * 1024;

/// The CRI server; cloning it is cheap.
#[derive(Clone)]
pub struct Service(Arc<Runtime>);

impl Runtime {
    /// The CRI server of this runtime.
    pub fn service(self: &Arc<Self>) -> Service {
        Service(self.clone())
    }

    /// Runs what blocks on the disk.
    pub(crate) async fn blocking<T: Send + 'static>(
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

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A list as a stream of messages with at least one item each, each item in one of them.
fn pieces<T: Message + 'static, R: Send + 'static>(
    items: Vec<T>,
    message: fn(Vec<T>) -> R,
) -> Response<Answers<R>> {
    let mut lists: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for item in items {
        let size = item.encoded_len();
        match lists.last_mut().filter(|_| size <= room) {
            Some(list) => list.push(item),
            None => {
                room = PIECE;
                lists.push(vec![item]);
            }
        }
        room = room.saturating_sub(size);
    }
    Response::new(Box::pin(futures_util::stream::iter(lists.into_iter().map(move |list| Ok(message(list))))))
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
            // who looks for a process in the pod's namespaces finds the shim, as elsewhere the pause container
            let shim = Link::connect(&self.0.config.shim_dir(&sandbox.id())).await;
            let pid = shim.ok().and_then(|shim| shim.pid()).unwrap_or(0);
            let record = sandbox.record.read();
            let linux = record.config.linux.as_ref();
            let told = |given: Option<&v1::LinuxContainerResources>| given.map(oci_spec::limits);
            let detail = serde_json::json!({
                "pid": pid,
                "cgroupParent": record.cgroup_parent,
                "netns": record.netns,
                "runtimeHandler": record.runtime_handler,
                "hostname": record.config.hostname,
                "selinuxLabel": record.selinux.process,
                "overhead": told(linux.and_then(|linux| linux.overhead.as_ref())),
                "resources": told(linux.and_then(|linux| linux.resources.as_ref())),
                "shim": self.0.config.shim_dir(&record.id),
                "runtimeSpec": oci_spec::shown_sandbox(&record),
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

    type StreamPodSandboxesStream = Answers<v1::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let items = self.0.list_sandboxes(request.into_inner().filter);
        Ok(pieces(items, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes }))
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

    type StreamContainersStream = Answers<v1::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let items = self.0.list_containers(request.into_inner().filter);
        Ok(pieces(items, |containers| v1::StreamContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.0.container(&request.container_id)?;
        let mut info = HashMap::new();
        if request.verbose {
            let config = &container.record.config;
            let sandbox = self.0.sandbox(&container.record.sandbox)?.record.read().clone();
            let spec = self.0.shown_container(&sandbox, &container);
            let detail = serde_json::json!({
                "sandboxID": container.record.sandbox,
                "pid": container.state.borrow().pid,
                "cgroup": container.record.cgroup,
                "image": container.record.image,
                "layers": container.record.layers,
                "args": config.command.iter().chain(&config.args).collect::<Vec<_>>(),
                "privileged": container_spec::security_context(config).privileged,
                "selinuxLabel": container.record.selinux.process,
                "mountLabel": container.record.selinux.file,
                "resources": container.resources.read().as_ref().map(oci_spec::limits),
                "runtimeSpec": spec,
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
            // In a task of its own: what the kernel took must not go unnoted.
            let runtime = self.0.clone();
            detached(async move { runtime.update_resources(&request.container_id, linux).await }).await?;
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
        let (runtime, gone) = (self.0.clone(), CancellationToken::new());
        // A caller that gives up takes the program with it.
        let _caller = gone.clone().drop_guard();
        let run =
            async move { runtime.exec_sync(&request.container_id, request.cmd, request.timeout, gone).await };
        let output = detached(run).await?;
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
        let stats = self.container_statistics(request.into_inner().filter).await?;
        ok(v1::ListContainerStatsResponse { stats })
    }

    type StreamContainerStatsStream = Answers<v1::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let stats = self.container_statistics(request.into_inner().filter).await?;
        Ok(pieces(stats, |container_stats| v1::StreamContainerStatsResponse { container_stats }))
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
        let stats = self.sandbox_statistics(request.into_inner().filter).await?;
        ok(v1::ListPodSandboxStatsResponse { stats })
    }

    type StreamPodSandboxStatsStream = Answers<v1::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let stats = self.sandbox_statistics(request.into_inner().filter).await?;
        Ok(pieces(stats, |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
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
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
            }),
        })
    }

    async fn checkpoint_container(
        &self,
        request: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        let container = self.0.running(&request.into_inner().container_id)?.record.id.clone();
        Err(Status::unimplemented(format!(
            "container {container} cannot be checkpointed: this needs CRIU, which the runtime does not use"
        )))
    }

    type GetContainerEventsStream = Answers<v1::ContainerEventResponse>;

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
        ok(v1::ListMetricDescriptorsResponse { descriptors: crate::metric_names::descriptors() })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        ok(v1::ListPodSandboxMetricsResponse { pod_metrics: self.metrics().await? })
    }

    type StreamPodSandboxMetricsStream = Answers<v1::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let metrics = self.metrics().await?;
        Ok(pieces(metrics, |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs as i32 };
        ok(v1::RuntimeConfigResponse { linux: Some(linux) })
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let (runtime, id) = (self.0.clone(), request.pod_sandbox_id);
        let (overhead, resources) = (request.overhead, request.resources);
        detached(async move { runtime.note_sandbox_resources(&id, overhead, resources).await }).await?;
        ok(v1::UpdatePodSandboxResourcesResponse {})
    }
}

impl Service {
    async fn container_statistics(
        &self,
        filter: Option<v1::ContainerStatsFilter>,
    ) -> Result<Vec<v1::ContainerStats>, Status> {
        let containers = self.0.containers_for_stats(filter);
        let all = move |runtime: Arc<Runtime>| {
            Ok(containers.iter().map(|container| runtime.container_stats(container)).collect())
        };
        Ok(self.0.blocking("statistics", all).await?)
    }

    async fn sandbox_statistics(
        &self,
        filter: Option<v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>, Status> {
        let sandboxes = self.0.sandboxes_for_stats(filter);
        let all = move |runtime: Arc<Runtime>| {
            sandboxes.iter().map(|sandbox| runtime.sandbox_stats(sandbox)).collect()
        };
        Ok(self.0.blocking("statistics", all).await?)
    }

    async fn metrics(&self) -> Result<Vec<v1::PodSandboxMetrics>, Status> {
        let sandboxes = self.0.sandboxes_for_stats(None);
        let all = move |runtime: Arc<Runtime>| {
            Ok(sandboxes.iter().map(|sandbox| runtime.sandbox_metrics(sandbox)).collect())
        };
        Ok(self.0.blocking("metrics", all).await?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_list_comes_in_pieces_each_item_once() {
        let item = |id: &str, size: usize| v1::PodSandbox {
            id: id.to_owned(),
            runtime_handler: "x".repeat(size),
            ..Default::default()
        };
        let half = PIECE / 2 - 100;
        let items = vec![item("a", half), item("b", half), item("c", 10), item("d", PIECE * 2), item("e", 1)];
        let lists = pieces(items, |lists| lists).into_inner();
        let names: Vec<String> =
            lists.map(|list| list.unwrap().into_iter().map(|item| item.id).collect()).collect().await;
        assert_eq!(names, ["abc", "d", "e"]);
        assert_eq!(pieces(Vec::<v1::PodSandbox>::new(), |lists| lists).into_inner().count().await, 0);
    }
}
