//! Sandboxes, containers and images as the CRI shows them.

use std::{collections::HashMap, sync::Arc};

use cri::v1::{self, ContainerEventType, NamespaceMode};

use crate::{
    container_run::stop_signal,
    image::Image,
    record::ContainerPhase,
    sandbox_run::Namespaces,
    signal,
    state::{Container, Runtime, Sandbox, now},
};

fn phase(phase: ContainerPhase) -> v1::ContainerState {
    match phase {
        ContainerPhase::Created => v1::ContainerState::ContainerCreated,
        ContainerPhase::Running => v1::ContainerState::ContainerRunning,
        ContainerPhase::Exited => v1::ContainerState::ContainerExited,
    }
}

fn sandbox_state(sandbox: &Sandbox) -> v1::PodSandboxState {
    if sandbox.ready() { v1::PodSandboxState::SandboxReady } else { v1::PodSandboxState::SandboxNotready }
}

/// Whether `labels` have all of `selector`.
fn selected(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// An image of the store.
pub(crate) fn image(image: &Image) -> v1::Image {
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = if user.is_empty() { Some(0) } else { user.parse::<i64>().ok() };
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid: uid.map(|value| v1::Int64Value { value }),
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        spec: None,
        pinned: false,
    }
}

impl Runtime {
    /// A sandbox's status.
    pub(crate) fn sandbox_status(&self, sandbox: &Sandbox) -> v1::PodSandboxStatus {
        let state = sandbox_state(sandbox) as i32;
        let record = sandbox.record.read().clone();
        let namespaces = Namespaces::of(&record.config);
        let mode = |node: bool| if node { NamespaceMode::Node as i32 } else { NamespaceMode::Pod as i32 };
        let given = record
            .config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref())
            .and_then(|context| context.namespace_options.clone());
        let options = v1::NamespaceOption {
            network: mode(namespaces.host_network),
            ipc: mode(namespaces.host_ipc),
            pid: given.as_ref().map_or(NamespaceMode::Container as i32, |options| options.pid),
            userns_options: given.and_then(|options| options.userns_options),
            ..Default::default()
        };
        let mut ips = record.ips.into_iter();
        v1::PodSandboxStatus {
            id: record.id,
            metadata: record.config.metadata,
            state,
            created_at: record.created_at,
            network: Some(v1::PodSandboxNetworkStatus {
                ip: ips.next().unwrap_or_default(),
                additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
            }),
            linux: Some(v1::LinuxPodSandboxStatus {
                namespaces: Some(v1::Namespace { options: Some(options) }),
            }),
            labels: record.config.labels,
            annotations: record.config.annotations,
            runtime_handler: record.runtime_handler,
        }
    }

    /// Sandboxes that `filter` selects.
    pub(crate) fn list_sandboxes(&self, filter: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let filter = filter.unwrap_or_default();
        let sandboxes: Vec<Arc<Sandbox>> = self.sandboxes.read().values().cloned().collect();
        sandboxes
            .iter()
            .filter_map(|sandbox| {
                let state = sandbox_state(sandbox) as i32;
                let record = sandbox.record.read();
                let fits = record.id.starts_with(&filter.id)
                    && filter.state.is_none_or(|wanted| wanted.state == state)
                    && selected(&record.config.labels, &filter.label_selector);
                fits.then(|| v1::PodSandbox {
                    id: record.id.clone(),
                    metadata: record.config.metadata.clone(),
                    state,
                    created_at: record.created_at,
                    labels: record.config.labels.clone(),
                    annotations: record.config.annotations.clone(),
                    runtime_handler: record.runtime_handler.clone(),
                })
            })
            .collect()
    }

    /// A container's status.
    pub(crate) fn container_status(&self, container: &Container) -> v1::ContainerStatus {
        let record = &container.record;
        let state = container.state.borrow().clone();
        let log_directory = self
            .sandbox(&record.sandbox)
            .map(|sandbox| sandbox.record.read().config.log_directory.clone())
            .unwrap_or_default();
        let log_path = if record.config.log_path.is_empty() || log_directory.is_empty() {
            String::new()
        } else {
            format!("{}/{}", log_directory.trim_end_matches('/'), record.config.log_path)
        };
        // Kubelets ask for the image by its id, and show people this.
        let known = self.images.find(&record.image);
        let tag = known.as_ref().and_then(|known| known.tags.first());
        let mut image = record.config.image.clone();
        if let (Some(image), Some(tag)) = (&mut image, tag) {
            image.image.clone_from(tag);
        }
        v1::ContainerStatus {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            state: phase(state.phase) as i32,
            created_at: record.created_at,
            started_at: state.started_at,
            finished_at: state.finished_at,
            exit_code: state.exit_code,
            image,
            image_ref: record.image_ref.clone(),
            reason: state.reason,
            message: state.message,
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
            mounts: record.config.mounts.clone(),
            log_path,
            resources: container
                .resources
                .read()
                .clone()
                .map(|linux| v1::ContainerResources { linux: Some(linux), windows: None }),
            image_id: record.image.clone(),
            stop_signal: signal::told(stop_signal(record)) as i32,
            user: state.user.map(|user| v1::ContainerUser {
                linux: Some(v1::LinuxContainerUser {
                    uid: user.uid.into(),
                    gid: user.gid.into(),
                    supplemental_groups: user.groups.into_iter().map(i64::from).collect(),
                }),
            }),
        }
    }

    /// Containers that `filter` selects.
    pub(crate) fn list_containers(&self, filter: Option<v1::ContainerFilter>) -> Vec<v1::Container> {
        let filter = filter.unwrap_or_default();
        let containers: Vec<Arc<Container>> = self.containers.read().values().cloned().collect();
        containers
            .iter()
            .filter_map(|container| {
                let record = &container.record;
                let state = phase(container.phase()) as i32;
                let fits = record.id.starts_with(&filter.id)
                    && record.sandbox.starts_with(&filter.pod_sandbox_id)
                    && filter.state.is_none_or(|wanted| wanted.state == state)
                    && selected(&record.config.labels, &filter.label_selector);
                fits.then(|| v1::Container {
                    id: record.id.clone(),
                    pod_sandbox_id: record.sandbox.clone(),
                    metadata: record.config.metadata.clone(),
                    image: record.config.image.clone(),
                    image_ref: record.image_ref.clone(),
                    state,
                    created_at: record.created_at,
                    labels: record.config.labels.clone(),
                    annotations: record.config.annotations.clone(),
                    image_id: record.image.clone(),
                })
            })
            .collect()
    }

    /// Containers that a statistics filter selects.
    pub(crate) fn containers_for_stats(
        &self,
        filter: Option<v1::ContainerStatsFilter>,
    ) -> Vec<Arc<Container>> {
        let filter = filter.unwrap_or_default();
        let fits = |container: &&Arc<Container>| {
            let record = &container.record;
            container.phase() == ContainerPhase::Running
                && record.id.starts_with(&filter.id)
                && record.sandbox.starts_with(&filter.pod_sandbox_id)
                && selected(&record.config.labels, &filter.label_selector)
        };
        self.containers.read().values().filter(fits).cloned().collect()
    }

    /// Sandboxes that a statistics filter selects.
    pub(crate) fn sandboxes_for_stats(&self, filter: Option<v1::PodSandboxStatsFilter>) -> Vec<Arc<Sandbox>> {
        let filter = filter.unwrap_or_default();
        let fits = |sandbox: &&Arc<Sandbox>| {
            let record = sandbox.record.read();
            record.id.starts_with(&filter.id) && selected(&record.config.labels, &filter.label_selector)
        };
        self.sandboxes.read().values().filter(fits).cloned().collect()
    }

    /// Tells subscribers that something happened to `subject`, a container of the sandbox or the sandbox itself.
    pub(crate) fn publish(&self, sandbox: &str, subject: &str, kind: ContainerEventType) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let status = self.sandbox(sandbox).ok().map(|sandbox| self.sandbox_status(&sandbox));
        let containers = self.containers_of(sandbox);
        let event = v1::ContainerEventResponse {
            container_id: subject.to_owned(),
            container_event_type: kind as i32,
            created_at: now(),
            pod_sandbox_status: status,
            containers_statuses: containers
                .iter()
                .map(|container| self.container_status(container))
                .collect(),
        };
        // No subscriber is no error.
        let _ = self.events.send(event);
    }
}
