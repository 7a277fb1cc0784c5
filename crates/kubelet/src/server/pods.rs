//! The node's pods: lists of them, and the one or its container that a request names.

use std::sync::Arc;

use http::{Response, StatusCode};
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;

use super::answers::{Body, Refusal, json, no_such_page, refused};
use super::{Server, stats};

/// A container that a request names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) ns: &'a str,
    pub(super) pod: &'a str,
    /// The pod's uid; empty for any.
    pub(super) uid: &'a str,
    pub(super) container: &'a str,
}

impl<'a> Target<'a> {
    /// From the path behind the name of what is done: the pod's uid may stand before the container.
    pub(super) fn of(path: &[&'a str]) -> Result<Self, Refusal> {
        match *path {
            [ns, pod, container] => Ok(Self { ns, pod, uid: "", container }),
            [ns, pod, uid, container] => Ok(Self { ns, pod, uid, container }),
            _ => Err(no_such_page()),
        }
    }
}

impl Server {
    pub(super) fn list_pods(&self) -> Result<Response<Body>, Refusal> {
        let items = self.pods.pods().iter().map(|pod| (**pod).clone()).collect();
        json(&List::<Pod> { items, ..Default::default() })
    }

    /// Pods as the runtime knows them: those with a running container.
    pub(super) async fn running_pods(&self) -> Result<Response<Body>, Refusal> {
        let filter = cri::v1::ContainerFilter {
            state: Some(cri::v1::ContainerStateValue {
                state: cri::v1::ContainerState::ContainerRunning as i32,
            }),
            ..Default::default()
        };
        let request = cri::v1::ListContainersRequest { filter: Some(filter) };
        let found = self.runtime.clone().list_containers(request).await.map_err(refused)?.into_inner();
        json(&List::<Pod> { items: stats::running(&found.containers), ..Default::default() })
    }

    /// The pod of that name and, unless it is empty, uid; `missing` is what its absence is called.
    pub(super) fn known(&self, ns: &str, name: &str, uid: &str, missing: &str) -> Result<Arc<Pod>, Refusal> {
        let found = self.pods.pods().into_iter().find(|pod| {
            let metadata = &pod.metadata;
            metadata.name.as_deref() == Some(name) && metadata.namespace.as_deref() == Some(ns)
        });
        let Some(pod) = found else { return Err((StatusCode::NOT_FOUND, missing.to_owned())) };
        if !uid.is_empty() && pod.metadata.uid.as_deref() != Some(uid) {
            return Err((StatusCode::NOT_FOUND, "pod not found".to_owned()));
        }
        Ok(pod)
    }

    /// The id of a container that runs.
    pub(super) fn running(&self, Target { ns, pod, uid, container }: Target<'_>) -> Result<String, Refusal> {
        let found = self.known(ns, pod, uid, "pod does not exist")?;
        if !has_container(&found, container) {
            return Err((StatusCode::NOT_FOUND, format!("container {container} does not exist")));
        }
        let found = self.pods.container(ns, pod, container).filter(|c| c.running);
        found
            .map(|c| c.id)
            .ok_or_else(|| (StatusCode::NOT_FOUND, format!("container not found ({container:?})")))
    }
}

pub(super) fn has_container(pod: &Pod, name: &str) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        spec.init_containers.iter().flatten().chain(&spec.containers).any(|c| c.name == name)
            || spec.ephemeral_containers.iter().flatten().any(|c| c.name == name)
    })
}
