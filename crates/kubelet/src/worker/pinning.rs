//! Where running containers may run: the shared processors are fewer when somebody gets some for himself, and more again
//! when they are given back.

use std::time::Duration;

use cri::v1::{self, LinuxContainerResources};
use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use tokio::time::Instant;

use super::Worker;
use crate::resources;

impl Worker {
    /// The kernel's numbers for a container, its processors and memory nodes included.
    pub(super) fn numbers(&self, spec: &Spec, pod: &Pod) -> LinuxContainerResources {
        let mut numbers = resources::linux(spec, pod, &self.shared.settings.numbers);
        self.shared.managers.pin(&self.uid, &spec.name, &mut numbers);
        numbers
    }

    /// Sets what holds for the pod as a whole.
    pub(super) fn limit_pod(&self, pod: &Pod) {
        let any_time = self.shared.managers.has_own(&self.uid) || !self.shared.settings.numbers.cpu_quota;
        self.shared.cgroups.limit_pod(pod, any_time);
    }

    /// Tells the runtime of containers that run elsewhere than they may. Returns when it is to be told again.
    pub(super) async fn pin(&mut self) -> Option<Instant> {
        let mut moved = Vec::new();
        for container in self.observed.running() {
            let mut wants = LinuxContainerResources::default();
            self.shared.managers.pin(&self.uid, &container.name, &mut wants);
            let cpus = wants.cpuset_cpus;
            let told = container.resources.as_ref().map(|has| &has.cpuset_cpus);
            let known = self.pinned.get(&container.id).or(told);
            if !cpus.is_empty() && known != Some(&cpus) && !self.killing.contains_key(&container.id) {
                moved.push((container.id.clone(), container.name.clone(), cpus));
            }
        }
        let ids: Vec<&String> = self.observed.running().map(|container| &container.id).collect();
        self.pinned.retain(|id, _| ids.contains(&id));
        let mut again = None;
        for (id, name, cpus) in moved {
            let linux = LinuxContainerResources { cpuset_cpus: cpus.clone(), ..Default::default() };
            let request = v1::UpdateContainerResourcesRequest {
                container_id: id.clone(),
                linux: Some(linux),
                ..Default::default()
            };
            match self.shared.cri.clone().update_container_resources(request).await {
                Ok(_) => {
                    tracing::debug!(pod = self.uid, container = name, cpus, "moved to other processors");
                    self.pinned.insert(id, cpus);
                }
                Err(error) => {
                    let error = error.message();
                    tracing::warn!(
                        pod = self.uid,
                        container = name,
                        cpus,
                        error,
                        "not moved to other processors"
                    );
                    again = Some(Instant::now() + self.shared.pin_again.max(Duration::from_secs(1)));
                }
            }
        }
        again
    }
}
