//! What the runtime says about a pod: sandboxes and containers, found by the labels that every kubelet puts on them.

use std::collections::HashMap;

use cri::v1;
use jiff::Timestamp;

/// Label: the pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: the pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: the pod's uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: the container's name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: how often the container was started again.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: where the container leaves its last words.
pub const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: the pod's grace period when the container was started.
pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Over.
    Exited,
    /// The runtime does not know.
    Unknown,
}

/// One container of the pod, of this or an earlier run.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// The name in the pod.
    pub name: String,
    /// The sandbox it belongs to.
    pub sandbox: String,
    /// 0 for the first run.
    pub attempt: u32,
    /// What it does.
    pub run: Run,
    /// When it was made.
    pub created: Timestamp,
    /// When it was started; the epoch where it was not.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// Exit code.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, ...
    pub reason: String,
    /// The runtime's words, or the container's last ones.
    pub message: String,
    /// The image as the pod names it.
    pub image: String,
    /// The image's id.
    pub image_id: String,
}

/// The sandbox of the pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// Whether it is ready.
    pub ready: bool,
    /// 0 for the first one.
    pub attempt: u32,
    /// The pod's addresses.
    pub ips: Vec<String>,
}

/// Everything of one pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The newest sandbox first.
    pub sandboxes: Vec<Sandbox>,
    /// The newest run of each container first.
    pub containers: Vec<Container>,
}

impl Observed {
    /// The newest sandbox, where it is ready.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|s| s.ready)
    }

    /// The newest run of a container.
    pub fn newest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// All runs of a container that are still known, the newest first.
    pub fn runs<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.iter().filter(move |c| c.name == name)
    }

    /// Containers that run.
    pub fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|c| c.run == Run::Running)
    }
}

fn time(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(nanos.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn container(c: v1::ContainerStatus, sandbox: String) -> Container {
    let meta = c.metadata.unwrap_or_default();
    let run = match v1::ContainerState::try_from(c.state) {
        Ok(v1::ContainerState::ContainerCreated) => Run::Created,
        Ok(v1::ContainerState::ContainerRunning) => Run::Running,
        Ok(v1::ContainerState::ContainerExited) => Run::Exited,
        _ => Run::Unknown,
    };
    Container {
        id: c.id,
        name: c.labels.get(CONTAINER_NAME).cloned().unwrap_or(meta.name),
        sandbox,
        attempt: c.annotations.get(RESTART_COUNT).and_then(|n| n.parse().ok()).unwrap_or(meta.attempt),
        run,
        created: time(c.created_at),
        started: time(c.started_at),
        finished: time(c.finished_at),
        exit_code: c.exit_code,
        reason: c.reason,
        message: c.message,
        image: c.image.map(|i| if i.user_specified_image.is_empty() { i.image } else { i.user_specified_image }).unwrap_or_default(),
        image_id: if c.image_ref.is_empty() { c.image_id } else { c.image_ref },
    }
}

/// Asks the runtime about the pod with this uid.
pub async fn observe(runtime: &mut cri::RuntimeClient, uid: &str) -> Result<Observed, tonic::Status> {
    let selector: HashMap<String, String> = [(POD_UID.to_owned(), uid.to_owned())].into();
    let filter = v1::PodSandboxFilter { label_selector: selector.clone(), ..Default::default() };
    let listed =
        runtime.list_pod_sandbox(v1::ListPodSandboxRequest { filter: Some(filter) }).await?.into_inner();
    let mut observed = Observed::default();
    for sandbox in listed.items {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.id.clone(), verbose: false };
        let status = match runtime.pod_sandbox_status(request).await {
            Ok(answer) => answer.into_inner().status.unwrap_or_default(),
            // gone since it was listed
            Err(error) if error.code() == tonic::Code::NotFound => continue,
            Err(error) => return Err(error),
        };
        let network = status.network.unwrap_or_default();
        let mut ips: Vec<String> = Some(network.ip).filter(|ip| !ip.is_empty()).into_iter().collect();
        ips.extend(network.additional_ips.into_iter().map(|ip| ip.ip));
        observed.sandboxes.push(Sandbox {
            id: sandbox.id,
            ready: status.state == v1::PodSandboxState::SandboxReady as i32,
            attempt: status.metadata.map_or(0, |m| m.attempt),
            ips,
        });
    }
    observed.sandboxes.sort_by(|a, b| b.attempt.cmp(&a.attempt));
    let filter = v1::ContainerFilter { label_selector: selector, ..Default::default() };
    let listed =
        runtime.list_containers(v1::ListContainersRequest { filter: Some(filter) }).await?.into_inner();
    for item in listed.containers {
        let request = v1::ContainerStatusRequest { container_id: item.id.clone(), verbose: false };
        match runtime.container_status(request).await {
            Ok(answer) => {
                if let Some(status) = answer.into_inner().status {
                    observed.containers.push(container(status, item.pod_sandbox_id));
                }
            }
            Err(error) if error.code() == tonic::Code::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    observed.containers.sort_by(|a, b| b.created.cmp(&a.created).then(b.attempt.cmp(&a.attempt)));
    Ok(observed)
}
