//! A CRI runtime without processes: it keeps the books of one, and tests decide what its containers do.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use cri::v1::{self, ContainerState, PodSandboxState};
use cri::{ImageService, RuntimeService};
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, watch};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

/// A sandbox as it was asked for.
#[derive(Clone)]
pub struct Sandbox {
    pub id: String,
    pub ready: bool,
    pub created: i64,
    pub config: v1::PodSandboxConfig,
}

/// A container as it was asked for.
#[derive(Clone)]
pub struct Container {
    pub sandbox: String,
    pub config: v1::ContainerConfig,
    pub status: v1::ContainerStatus,
}

#[derive(Default)]
pub struct Books {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Container>,
    pub images: HashMap<String, v1::Image>,
    /// Names of containers that ignore SIGTERM: they end when they have two seconds or less.
    pub stubborn: HashSet<String>,
    /// Names of containers whose processes wait for a disk that does not answer: not even SIGKILL ends them.
    pub stuck: HashSet<String>,
    /// Exit codes of commands that are executed, by first word; others succeed.
    pub exec: HashMap<String, i32>,
    /// Everything executed.
    pub executed: Vec<String>,
    /// Stops asked for: container name and seconds.
    pub stops: Vec<(String, i64)>,
    /// Images that can be pulled, and the user who may; with an empty name everybody.
    pub registry: HashMap<String, String>,
    /// Images whose pull is still going on.
    pub slow_pulls: HashSet<String>,
    /// Handlers of sandboxes, where one was asked for.
    pub handlers: Vec<String>,
    /// Names of containers whose program is not there.
    pub broken: HashSet<String>,
    /// Containers whose log was opened anew.
    pub reopened: Vec<String>,
    /// The runtime answers nothing.
    pub down: bool,
    /// Questions for containers are never answered.
    pub hung: bool,
    /// Those that wait.
    pub unanswered: usize,
    /// The runtime does not say how it is.
    pub silent: bool,
    /// No container can be given other resources.
    pub fixed: bool,
    next: i64,
}

#[derive(Clone)]
pub struct Fake {
    pub books: Arc<Mutex<Books>>,
    events: broadcast::Sender<v1::ContainerEventResponse>,
    changed: Arc<Notify>,
    /// Counts containers that were made or given other resources.
    pub numbers: watch::Sender<u64>,
}

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_nanos()).expect("fits")
}

impl Fake {
    /// A runtime that has the image `web:1`.
    pub fn new() -> Self {
        let fake = Self {
            books: Arc::default(),
            events: broadcast::channel(1024).0,
            changed: Arc::default(),
            numbers: watch::Sender::new(0),
        };
        fake.add_image("web:1");
        fake
    }

    pub fn add_image(&self, name: &str) {
        let image = v1::Image {
            id: format!("sha256:{name}"),
            repo_tags: vec![name.to_owned()],
            size: 1,
            ..Default::default()
        };
        self.books.lock().images.insert(name.to_owned(), image);
    }

    /// The newest container of that name.
    pub fn container(&self, name: &str) -> Option<Container> {
        let books = self.books.lock();
        books
            .containers
            .iter()
            .rev()
            .find(|c| c.config.metadata.as_ref().is_some_and(|m| m.name == name))
            .cloned()
    }

    /// The process of the newest container of that name ends.
    pub fn exit(&self, name: &str, code: i32) {
        let id = self.container(name).expect("a container").status.id;
        self.end(&id, code, if code == 0 { "Completed" } else { "Error" });
    }

    /// Waits until a container of that name is asked to stop.
    pub async fn until_stopping(&self, name: &str) {
        let asked = async {
            loop {
                let changed = self.changed.notified();
                if self.books.lock().stops.iter().any(|(stopped, _)| stopped == name) {
                    return;
                }
                changed.await;
            }
        };
        let limit = std::time::Duration::from_secs(60);
        tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| panic!("{name} is not asked to stop"));
    }

    fn end(&self, id: &str, code: i32, reason: &str) {
        {
            let mut books = self.books.lock();
            let Some(c) = books.containers.iter_mut().find(|c| c.status.id == id) else { return };
            if c.status.state != ContainerState::ContainerRunning as i32 {
                return;
            }
            c.status.state = ContainerState::ContainerExited as i32;
            c.status.exit_code = code;
            c.status.reason = reason.to_owned();
            c.status.finished_at = now();
        }
        self.changed.notify_waiters();
        self.tell(id, v1::ContainerEventType::ContainerStoppedEvent);
    }

    /// The sandbox of a pod breaks: it is no longer ready, and its containers die.
    pub fn break_sandbox(&self) {
        let ids: Vec<String> = {
            let mut books = self.books.lock();
            books.sandboxes.iter_mut().for_each(|s| s.ready = false);
            books.containers.iter().map(|c| c.status.id.clone()).collect()
        };
        for id in ids {
            self.end(&id, 137, "Error");
        }
    }

    fn tell(&self, id: &str, kind: v1::ContainerEventType) {
        let books = self.books.lock();
        let Some(container) = books.containers.iter().find(|c| c.status.id == id) else { return };
        let Some(sandbox) = books.sandboxes.iter().find(|s| s.id == container.sandbox) else { return };
        let event = v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: now(),
            pod_sandbox_status: Some(sandbox.status()),
            containers_statuses: vec![],
        };
        // nobody may be listening
        let _ = self.events.send(event);
    }

    fn hangs(&self) -> bool {
        let mut books = self.books.lock();
        books.unanswered += usize::from(books.hung);
        books.hung
    }

    fn up(&self) -> Result<(), Status> {
        if self.books.lock().down { Err(Status::unavailable("the runtime is down")) } else { Ok(()) }
    }
}

impl Sandbox {
    fn state(&self) -> i32 {
        if self.ready {
            PodSandboxState::SandboxReady as i32
        } else {
            PodSandboxState::SandboxNotready as i32
        }
    }

    fn status(&self) -> v1::PodSandboxStatus {
        v1::PodSandboxStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state(),
            created_at: self.created,
            network: Some(v1::PodSandboxNetworkStatus { ip: "127.0.0.1".to_owned(), additional_ips: vec![] }),
            labels: self.config.labels.clone(),
            ..Default::default()
        }
    }
}

fn selected(wanted: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// A list in pieces, which this runtime does not give.
type NoPieces<T> = futures_util::stream::Empty<Result<T, Status>>;

// written out as `async_trait` would, since that macro does not look into others
macro_rules! absent {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        $(fn $name<'a, 'async_trait>(
            &'a self,
            _: Request<v1::$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<v1::$response>> + Send + 'async_trait>>
        where
            'a: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
    (pieces $($name:ident($request:ident) -> $stream:ident of $response:ident;)*) => {
        $(type $stream = NoPieces<v1::$response>;

        fn $name<'a, 'async_trait>(
            &'a self,
            _: Request<v1::$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<Self::$stream>> + Send + 'async_trait>>
        where
            'a: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

#[async_trait::async_trait]
impl RuntimeService for Fake {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "fake".to_owned(),
            runtime_version: "1".to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        self.up()?;
        if self.books.lock().silent {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(v1::StatusResponse::default()))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        self.up()?;
        let request = request.into_inner();
        let config = request.config.unwrap_or_default();
        let mut books = self.books.lock();
        books.handlers.extend(Some(request.runtime_handler).filter(|handler| !handler.is_empty()));
        books.next += 1;
        let id = format!("s{}", books.next);
        books.sandboxes.push(Sandbox { id: id.clone(), ready: true, created: now(), config });
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        self.up()?;
        let id = request.into_inner().pod_sandbox_id;
        let inside: Vec<String> = {
            let mut books = self.books.lock();
            books.sandboxes.iter_mut().filter(|s| s.id == id).for_each(|s| s.ready = false);
            books.containers.iter().filter(|c| c.sandbox == id).map(|c| c.status.id.clone()).collect()
        };
        inside.iter().for_each(|c| self.end(c, 137, "Error"));
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        self.up()?;
        let id = request.into_inner().pod_sandbox_id;
        let mut books = self.books.lock();
        books.sandboxes.retain(|s| s.id != id);
        books.containers.retain(|c| c.sandbox != id);
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        self.up()?;
        let id = request.into_inner().pod_sandbox_id;
        let books = self.books.lock();
        let found = books.sandboxes.iter().find(|s| s.id == id).ok_or_else(|| Status::not_found(id))?;
        Ok(Response::new(v1::PodSandboxStatusResponse { status: Some(found.status()), ..Default::default() }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        self.up()?;
        let filter = request.into_inner().filter.unwrap_or_default();
        let books = self.books.lock();
        let chosen = books.sandboxes.iter().filter(|s| selected(&filter.label_selector, &s.config.labels));
        let items = chosen
            .map(|s| v1::PodSandbox {
                id: s.id.clone(),
                metadata: s.config.metadata.clone(),
                state: s.state(),
                created_at: s.created,
                labels: s.config.labels.clone(),
                ..Default::default()
            })
            .collect();
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        self.up()?;
        let request = request.into_inner();
        let config = request.config.unwrap_or_default();
        let sandbox = request.sandbox_config.unwrap_or_default();
        let mut books = self.books.lock();
        if !books.sandboxes.iter().any(|s| s.id == request.pod_sandbox_id && s.ready) {
            return Err(Status::failed_precondition("the sandbox is not ready"));
        }
        books.next += 1;
        let id = format!("c{}", books.next);
        let status = v1::ContainerStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            state: ContainerState::ContainerCreated as i32,
            created_at: now(),
            image: config.image.clone(),
            image_ref: config.image.as_ref().map(|i| i.image.clone()).unwrap_or_default(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            resources: Some(v1::ContainerResources {
                linux: config.linux.as_ref().and_then(|linux| linux.resources.clone()),
                windows: None,
            }),
            log_path: format!("{}/{}", sandbox.log_directory, config.log_path),
            ..Default::default()
        };
        books.containers.push(Container { sandbox: request.pod_sandbox_id, config, status });
        drop(books);
        self.numbers.send_modify(|count| *count += 1);
        Ok(Response::new(v1::CreateContainerResponse { container_id: id }))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        self.up()?;
        let request = request.into_inner();
        let mut books = self.books.lock();
        if books.fixed {
            return Err(Status::internal("device or resource busy"));
        }
        let found = books.containers.iter_mut().find(|c| c.status.id == request.container_id);
        let container = found.ok_or_else(|| Status::not_found(request.container_id.clone()))?;
        let has = container.status.resources.take().and_then(|has| has.linux).unwrap_or_default();
        // what is not said stays
        let mut wants = request.linux.unwrap_or_default();
        let number = |wants: &mut i64, has: i64| {
            if *wants == 0 {
                *wants = has;
            }
        };
        number(&mut wants.cpu_shares, has.cpu_shares);
        number(&mut wants.cpu_quota, has.cpu_quota);
        number(&mut wants.cpu_period, has.cpu_period);
        number(&mut wants.memory_limit_in_bytes, has.memory_limit_in_bytes);
        if wants.cpuset_cpus.is_empty() {
            wants.cpuset_cpus = has.cpuset_cpus;
        }
        if wants.cpuset_mems.is_empty() {
            wants.cpuset_mems = has.cpuset_mems;
        }
        container.status.resources = Some(v1::ContainerResources { linux: Some(wants), windows: None });
        drop(books);
        self.numbers.send_modify(|count| *count += 1);
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        self.up()?;
        let id = request.into_inner().container_id;
        {
            let mut books = self.books.lock();
            let Books { containers, broken, .. } = &mut *books;
            let found = containers.iter_mut().find(|c| c.status.id == id);
            let container = found.ok_or_else(|| Status::not_found(id.clone()))?;
            if container.config.metadata.as_ref().is_some_and(|m| broken.contains(&m.name)) {
                container.status.state = ContainerState::ContainerExited as i32;
                container.status.exit_code = 128;
                container.status.reason = "StartError".into();
                container.status.message = "no such program".into();
                container.status.finished_at = now();
                return Err(Status::unknown("no such program"));
            }
            container.status.state = ContainerState::ContainerRunning as i32;
            container.status.started_at = now();
        }
        self.tell(&id, v1::ContainerEventType::ContainerStartedEvent);
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        let request = request.into_inner();
        let (stubborn, stuck) = {
            let mut books = self.books.lock();
            let found = books.containers.iter().find(|c| c.status.id == request.container_id);
            let name = found.and_then(|c| c.config.metadata.clone()).unwrap_or_default().name;
            books.stops.push((name.clone(), request.timeout));
            self.changed.notify_waiters();
            (books.stubborn.contains(&name), books.stuck.contains(&name))
        };
        if stuck || stubborn && request.timeout > 2 {
            // only a stop without patience ends it, or the test
            loop {
                let changed = self.changed.notified();
                let running = self.books.lock().containers.iter().any(|c| {
                    c.status.id == request.container_id
                        && c.status.state == ContainerState::ContainerRunning as i32
                });
                if !running {
                    return Ok(Response::new(v1::StopContainerResponse {}));
                }
                changed.await;
            }
        }
        self.end(&request.container_id, if stubborn { 137 } else { 143 }, "Error");
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.books.lock().containers.retain(|c| c.status.id != id);
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        self.up()?;
        if self.hangs() {
            std::future::pending::<()>().await;
        }
        let filter = request.into_inner().filter.unwrap_or_default();
        let books = self.books.lock();
        let chosen = books.containers.iter().filter(|c| selected(&filter.label_selector, &c.config.labels));
        let containers = chosen
            .map(|c| v1::Container {
                id: c.status.id.clone(),
                pod_sandbox_id: c.sandbox.clone(),
                metadata: c.config.metadata.clone(),
                state: c.status.state,
                created_at: c.status.created_at,
                labels: c.config.labels.clone(),
                ..Default::default()
            })
            .collect();
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        self.up()?;
        let id = request.into_inner().container_id;
        let books = self.books.lock();
        let found =
            books.containers.iter().find(|c| c.status.id == id).ok_or_else(|| Status::not_found(id))?;
        Ok(Response::new(v1::ContainerStatusResponse {
            status: Some(found.status.clone()),
            ..Default::default()
        }))
    }

    async fn list_container_stats(
        &self,
        _: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        let books = self.books.lock();
        let running =
            books.containers.iter().filter(|c| c.status.state == ContainerState::ContainerRunning as i32);
        let stats = |c: &Container| v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: c.status.id.clone(),
                metadata: c.config.metadata.clone(),
                labels: c.config.labels.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        Ok(Response::new(v1::ListContainerStatsResponse { stats: running.map(stats).collect() }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        Ok(Response::new(v1::ListPodSandboxStatsResponse::default()))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        self.up()?;
        let id = request.into_inner().container_id;
        let mut books = self.books.lock();
        let found = books.containers.iter().find(|c| c.status.id == id).map(|c| c.status.log_path.clone());
        std::fs::write(found.ok_or_else(|| Status::not_found(id.clone()))?, "")
            .map_err(|e| Status::internal(e.to_string()))?;
        books.reopened.push(id);
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        let words = request.into_inner().cmd;
        let mut books = self.books.lock();
        books.executed.push(words.join(" "));
        let exit_code = words.first().and_then(|w| books.exec.get(w)).copied().unwrap_or(0);
        Ok(Response::new(v1::ExecSyncResponse { exit_code, ..Default::default() }))
    }

    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let stream = tokio_stream::wrappers::BroadcastStream::new(self.events.subscribe());
        Ok(Response::new(Box::pin(stream.map(|e| e.map_err(|e| Status::data_loss(e.to_string()))))))
    }

    absent! {
        exec(ExecRequest) -> ExecResponse;
        attach(AttachRequest) -> AttachResponse;
        port_forward(PortForwardRequest) -> PortForwardResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
    }

    absent! { pieces
        stream_pod_sandboxes(StreamPodSandboxesRequest) -> StreamPodSandboxesStream of StreamPodSandboxesResponse;
        stream_containers(StreamContainersRequest) -> StreamContainersStream of StreamContainersResponse;
        stream_container_stats(StreamContainerStatsRequest)
            -> StreamContainerStatsStream of StreamContainerStatsResponse;
        stream_pod_sandbox_stats(StreamPodSandboxStatsRequest)
            -> StreamPodSandboxStatsStream of StreamPodSandboxStatsResponse;
        stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest)
            -> StreamPodSandboxMetricsStream of StreamPodSandboxMetricsResponse;
    }
}

#[async_trait::async_trait]
impl ImageService for Fake {
    async fn list_images(&self, _: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        Ok(Response::new(v1::ListImagesResponse {
            images: self.books.lock().images.values().cloned().collect(),
        }))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let image = self.books.lock().images.get(&name).cloned();
        Ok(Response::new(v1::ImageStatusResponse { image, ..Default::default() }))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        let request = request.into_inner();
        let name = request.image.unwrap_or_default().image;
        if self.books.lock().slow_pulls.contains(&name) {
            std::future::pending::<()>().await;
        }
        let user = request.auth.unwrap_or_default().username;
        let may = self.books.lock().registry.get(&name).map(|wanted| wanted.is_empty() || *wanted == user);
        match may {
            Some(true) => {
                self.add_image(&name);
                return Ok(Response::new(v1::PullImageResponse { image_ref: format!("sha256:{name}") }));
            }
            Some(false) => return Err(Status::unknown(format!("{name}: denied"))),
            None => {}
        }
        Err(Status::unavailable(format!("{name}: no registry")))
    }

    absent! {
        remove_image(RemoveImageRequest) -> RemoveImageResponse;
        image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }

    absent! { pieces
        stream_images(StreamImagesRequest) -> StreamImagesStream of StreamImagesResponse;
    }
}
