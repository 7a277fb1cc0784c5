//! The pod resources API: monitoring on the node asks which devices, processors and memory each container has for itself.
//!
//! Rule: Kubernetes documentation, "Monitoring device plugin resources"; pod resources API v1.

use std::path::Path;
use std::sync::Arc;

use client::metrics::Counter;
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;

use super::Devices;
use super::messages::{
    AllocatableResourcesResponse, ContainerMemory, ContainerResources, Empty, GetPodResourcesRequest,
    GetPodResourcesResponse, ListPodResourcesResponse, PodResources,
};
use crate::dra::ResourceClaims;
use crate::grpc::{self, unary};
use crate::managers::Managers;
use crate::managers::cpu_set::CpuSet;
use crate::managers::memory::Block;
use crate::metrics;
use crate::server::Pods;

/// What there is to give.
type Given = (Arc<Devices>, Arc<Managers>, Arc<ResourceClaims>);

/// Questions that are answered a second, and so many more at once, as upstream's limits are: each looks at all pods.
const RATE: f64 = 100.0;
const BURST: f64 = 10.0;

/// How many questions may come now.
struct Limit(Mutex<(f64, Instant)>);

impl Limit {
    fn new() -> Self {
        Self(Mutex::new((BURST, Instant::now())))
    }

    /// Whether one more may come.
    fn takes(&self) -> bool {
        let (left, last) = &mut *self.0.lock();
        let now = Instant::now();
        *left = (*left + now.duration_since(std::mem::replace(last, now)).as_secs_f64() * RATE).min(BURST);
        let takes = *left >= 1.0;
        *left -= if takes { 1.0 } else { 0.0 };
        takes
    }
}

/// Answers at `pod-resources/kubelet.sock` in the kubelet's folder `root` until `stop`.
pub async fn run(given: Given, pods: Arc<dyn Pods>, root: &Path, stop: CancellationToken) {
    let folder = root.join("pod-resources");
    let limit = Arc::new(Limit::new());
    let answer = move |request: http::Request<Incoming>| {
        let (given, pods, limit) = (given.clone(), pods.clone(), limit.clone());
        async move {
            if limit.takes() {
                return answer(request, given, pods).await;
            }
            let refused = Status::resource_exhausted("rejected by rate limit");
            unary(request, |_: Empty| async { Err::<Empty, _>(refused) }).await
        }
    };
    let served = match std::fs::create_dir_all(&folder) {
        Ok(()) => grpc::serve(&folder.join("kubelet.sock"), answer, stop).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::error!(%error, folder = %folder.display(), "the pod resources API is not served");
    }
}

async fn answer(request: http::Request<Incoming>, given: Given, pods: Arc<dyn Pods>) -> http::Response<Body> {
    match request.uri().path() {
        "/v1.PodResourcesLister/List" => {
            asked(&metrics::POD_RESOURCES_LIST);
            unary(request, move |_: Empty| async move {
                let pods = pods.pods();
                let active = pods.iter().filter(|pod| !is_over(pod));
                Ok(ListPodResourcesResponse { pod_resources: active.map(|pod| of(pod, &given)).collect() })
            })
            .await
        }
        "/v1.PodResourcesLister/Get" => {
            asked(&metrics::POD_RESOURCES_GET);
            unary(request, move |asked: GetPodResourcesRequest| async move {
                let wanted = (Some(&asked.pod_namespace), Some(&asked.pod_name));
                let pods = pods.pods();
                let found = pods
                    .iter()
                    .find(|pod| (pod.metadata.namespace.as_ref(), pod.metadata.name.as_ref()) == wanted);
                let found = found.map(|pod| of(pod, &given)).ok_or_else(|| {
                    metrics::POD_RESOURCES_GET_ERRORS.add(&[VERSION]);
                    let GetPodResourcesRequest { pod_name, pod_namespace } = &asked;
                    Status::not_found(format!("pod {pod_name} in namespace {pod_namespace} not found"))
                })?;
                Ok(GetPodResourcesResponse { pod_resources: Some(found) })
            })
            .await
        }
        "/v1.PodResourcesLister/GetAllocatableResources" => {
            asked(&metrics::POD_RESOURCES_ALLOCATABLE);
            unary(request, move |_: Empty| async move {
                let (devices, managers, _) = &given;
                let (cpus, memory) = managers.allocatable();
                Ok(AllocatableResourcesResponse {
                    devices: devices.all(),
                    cpu_ids: ids(&cpus),
                    memory: memory.iter().map(shown).collect(),
                })
            })
            .await
        }
        _ => grpc::unknown(request).await,
    }
}

/// The API's version, as metrics name it.
const VERSION: &str = "v1";

/// Counts a question.
fn asked(method: &Counter) {
    metrics::POD_RESOURCES.add(&[VERSION]);
    method.add(&[VERSION]);
}

fn is_over(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn ids(cpus: &CpuSet) -> Vec<i64> {
    cpus.iter().filter_map(|cpu| i64::try_from(cpu).ok()).collect()
}

fn shown(block: &Block) -> ContainerMemory {
    let nodes: Vec<i64> = block.numa_affinity.iter().filter_map(|node| i64::try_from(*node).ok()).collect();
    ContainerMemory {
        memory_type: block.resource.clone(),
        size: block.size,
        topology: super::topology(&nodes),
    }
}

/// Init containers that have ended are not told of; those that go on are, before the others.
fn of(pod: &Pod, (devices, managers, claims): &Given) -> PodResources {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let sidecars = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let containers = sidecars.chain(spec.iter().flat_map(|spec| &spec.containers)).map(|container| {
        let (cpus, memory) = managers.of(uid, &container.name);
        ContainerResources {
            name: container.name.clone(),
            devices: devices.of_container(uid, &container.name),
            cpu_ids: ids(&cpus),
            memory: memory.iter().map(shown).collect(),
            dynamic_resources: claims.of_container(pod, container),
        }
    });
    PodResources {
        name: pod.metadata.name.clone().unwrap_or_default(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        containers: containers.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ten_questions_are_answered_at_once_and_a_hundred_a_second() {
        let limit = Limit::new();
        let answered = || (0..50).filter(|_| limit.takes()).count();
        assert_eq!(answered(), 10);
        tokio::time::advance(Duration::from_millis(5)).await;
        assert_eq!(answered(), 0);
        tokio::time::advance(Duration::from_millis(26)).await;
        assert_eq!(answered(), 3);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(answered(), 10);
    }
}
