//! In-place resize: what a pod asks for of CPU and memory changes while it runs.
//!
//! What it asks for (`desired`) is given to it (`allocated`, kept in a file of the pod's folder) where the node has it;
//! then the runtime is told, container by container, until what it says is what was given.
//!
//! Rule: Kubernetes documentation, "Resize CPU and Memory Resources assigned to Containers".

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use client::events::EventType;
use cri::v1::{self, LinuxContainerResources};
use k8s_openapi::api::core::v1::{Container as Spec, Pod, ResourceRequirements};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Step, Worker};
use crate::allocations::{self, Refusal};
use crate::eviction::Cause;
use crate::files::write_json;
use crate::plan::is_sidecar;
use crate::resources::asked;

const FILE: &str = "allocated.json";

/// Others have what the pod asks for.
const DEFERRED: &str = "Deferred";

/// A resize that failed at the runtime is tried again after this.
const AGAIN: Duration = Duration::from_secs(10);

/// Shares, quota, memory.
type Numbers = (i64, i64, i64);

/// By container; those of the pod as a whole by [`WHOLE`].
type Amounts = BTreeMap<String, ResourceRequirements>;

/// The name of the pod as a whole; no container can be called so.
const WHOLE: &str = "";

/// How far a pod's resize is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resize {
    /// What was given; `None` until it is known.
    allocated: Option<Amounts>,
    /// Why it cannot be given: `Deferred` or `Infeasible`, and the message.
    pub pending: Option<(&'static str, String)>,
    /// The runtime is yet to do it; why it could not, where it could not.
    pub progress: Option<Option<String>>,
    /// The containers that have something else yet.
    pub lagging: BTreeSet<String>,
    /// Containers of a resize that is not over yet; `None`: there is none.
    open: Option<BTreeSet<String>>,
    /// Why it could not be given, as an Event told last.
    told: Option<(&'static str, String)>,
    /// What the control group of the pod has.
    whole: Option<ResourceRequirements>,
    /// What the runtime took, by container id: one that shows it in numbers of its own is not asked again.
    taken: BTreeMap<String, Numbers>,
    /// When what could not be done is tried again: nothing tells that memory was freed.
    pub(super) again: Option<Instant>,
}

/// Containers whose resources can change.
fn resizable(pod: &Pod) -> impl Iterator<Item = &Spec> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| {
        spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(|c| is_sidecar(c)))
    })
}

fn amounts(pod: &Pod) -> Amounts {
    let whole = pod.spec.as_ref().and_then(|spec| spec.resources.clone());
    let own = resizable(pod).map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default()));
    own.chain(whole.map(|whole| (WHOLE.to_owned(), whole))).collect()
}

/// The pod with these resources.
fn with(pod: &Arc<Pod>, given: &Amounts) -> Arc<Pod> {
    if amounts(pod) == *given {
        return pod.clone();
    }
    let mut pod = (**pod).clone();
    if let Some(spec) = &mut pod.spec {
        if let Some(whole) = given.get(WHOLE) {
            spec.resources = Some(whole.clone());
        }
        let all = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
        for container in all {
            if let Some(given) = given.get(&container.name) {
                container.resources = Some(given.clone());
            }
        }
    }
    Arc::new(pod)
}

/// What an earlier kubelet gave to the pod of this folder.
fn remembered(folder: &Path) -> Option<Amounts> {
    serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()
}

/// What a pod has of processors and memory that no worker has looked at yet: what an earlier kubelet gave it, or what it asks for.
/// `root` is the kubelet's folder.
pub(crate) fn held(root: &Path, pod: &Arc<Pod>) -> allocations::Amounts {
    let folder = root.join("pods").join(pod.metadata.uid.as_deref().unwrap_or_default());
    remembered(&folder).map_or_else(|| asked(pod), |given| asked(&with(pod, &given)))
}

/// What an Event says of a resize: who gets what, of which generation of the pod, and what went wrong.
fn message(what: &str, pod: &Pod, error: Option<&str>) -> String {
    let spec = pod.spec.as_ref();
    let sidecars =
        spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).filter(|c| is_sidecar(c));
    let all = sidecars.chain(spec.iter().flat_map(|spec| &spec.containers));
    let one = |c: &Spec| {
        let resources = c.resources.clone().unwrap_or_default();
        let resources = ResourceRequirements { claims: None, ..resources };
        json!({"name": c.name, "resources": resources})
    };
    let generation = pod.metadata.generation.unwrap_or(0);
    let told = Told { containers: all.map(one).collect(), generation, error };
    format!("Pod resize {what}: {}", serde_json::to_string(&told).unwrap_or_default())
}

/// The fields of [`message`], in the order of the reference.
#[derive(Serialize)]
struct Told<'a> {
    containers: Vec<Value>,
    generation: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// What the kernel is told of a container, as far as a resize changes it: shares, quota, memory.
fn numbers(resources: &LinuxContainerResources) -> Numbers {
    (resources.cpu_shares, resources.cpu_quota.max(0), resources.memory_limit_in_bytes.max(0))
}

impl Worker {
    /// The pod with the resources that it was given, which may be others than it asks for now.
    pub(super) fn allocate(&mut self, pod: &Arc<Pod>) -> Arc<Pod> {
        let desired = amounts(pod);
        let known = self.resize.allocated.take().or_else(|| remembered(&self.pod_dir()));
        let first = known.is_none();
        let mut given = known.unwrap_or_else(|| desired.clone());
        self.resize.pending = None;
        let over =
            matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
                || self.cause() == Some(Cause::Refusal);
        if given != desired && !over && pod.metadata.deletion_timestamp.is_none() {
            match self.fits(pod, &with(pod, &given)) {
                Ok(()) => {
                    given = desired;
                    self.remember(&given);
                    self.resize.open = Some(BTreeSet::new());
                    self.resize.told = None;
                    self.event(pod, None, EventType::Normal, "ResizeStarted", message("started", pod, None));
                }
                Err(refused) => self.refused(pod, refused),
            }
        } else if first && !over {
            self.remember(&given);
        }
        let allocated = with(pod, &given);
        let waits = self.resize.pending.as_ref().is_some_and(|(why, _)| *why == DEFERRED);
        if !waits {
            self.shared.allocations.set(&self.uid, if over { [0; 2] } else { asked(&allocated) });
        }
        self.resize.allocated = Some(given);
        allocated
    }

    /// The node has not what the pod asks for: that is told once.
    fn refused(&mut self, pod: &Pod, refused: (&'static str, String)) {
        let (why, text) = &refused;
        let known = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let mut known = known.filter(|c| c.type_ == crate::pod_status::RESIZE_PENDING);
        // or by an earlier kubelet
        let told = self.resize.told.as_ref() == Some(&refused)
            || known.any(|c| c.reason.as_deref() == Some(why) && c.message.as_deref() == Some(text));
        if !told {
            let reason = format!("Resize{why}");
            self.event(pod, None, EventType::Warning, &reason, message(why, pod, Some(text)));
        }
        self.resize.told = Some(refused.clone());
        self.resize.pending = Some(refused);
    }

    /// All that the resize changed is there: that is told.
    fn completed(&mut self, pod: &Pod) {
        let runs = |name: &String| self.observed.running().any(|c| c.name == *name);
        if self.resize.open.as_ref().is_some_and(|open| open.iter().all(runs)) {
            self.resize.open = None;
            self.event(pod, None, EventType::Normal, "ResizeCompleted", message("completed", pod, None));
        }
    }

    fn remember(&self, given: &Amounts) {
        if let Err(error) = write_json(&self.pod_dir(), FILE, given) {
            tracing::warn!(%error, pod = self.uid, "what the pod was given is not remembered");
        }
    }

    /// Gives the pod what it asks for now, where the node has it.
    fn fits(&self, pod: &Pod, given: &Pod) -> Result<(), (&'static str, String)> {
        if crate::static_pods::is_static(pod) {
            return Err(("Infeasible", "In-place resize of static-pods is not supported".to_owned()));
        }
        let changes = ["cpu", "memory"].into_iter().zip(asked(pod).into_iter().zip(asked(given)));
        let fixed = changes
            .filter(|(_, (wants, has))| wants != has)
            .find_map(|(name, _)| self.shared.managers.fixed(pod, name));
        if let Some(why) = fixed {
            return Err(("Infeasible", why));
        }
        let given = self.shared.allocations.resize(pod, asked(given), asked(pod));
        given.map_err(|refused| match refused {
            Refusal::Infeasible(why) => ("Infeasible", why),
            Refusal::Deferred(why) => (DEFERRED, why),
        })
    }

    /// Tells the runtime what running containers have now. `pod` has what it was given.
    pub(super) async fn apply_resize(&mut self, pod: &Arc<Pod>) -> Step {
        self.resize.progress = None;
        self.resize.again = None;
        self.resize.lagging.clear();
        let running: BTreeSet<&str> = self.observed.running().map(|c| c.id.as_str()).collect();
        self.resize.taken.retain(|id, _| running.contains(id.as_str()));
        if pod.metadata.deletion_timestamp.is_some() {
            return Step::Waits;
        }
        let whole = pod.spec.as_ref().and_then(|spec| spec.resources.clone());
        if self.resize.whole != whole {
            self.limit_pod(pod);
            self.resize.whole = whole;
        }
        let mut behind = Vec::new();
        for container in self.observed.running() {
            let Some(spec) = resizable(pod).find(|spec| spec.name == container.name) else { continue };
            let Some(has) = &container.resources else { continue };
            let wants = self.numbers(spec, pod);
            let taken = self.resize.taken.get(&container.id) == Some(&numbers(&wants));
            if numbers(has) != numbers(&wants) && !taken {
                behind.push((container.id.clone(), spec.clone(), numbers(has), wants));
            }
        }
        if behind.is_empty() {
            self.completed(pod);
            return Step::Waits;
        }
        self.resize.lagging = behind.iter().map(|(_, spec, ..)| spec.name.clone()).collect();
        if let Some(open) = &mut self.resize.open {
            open.extend(self.resize.lagging.iter().cloned());
        }
        self.resize.progress = Some(None);
        self.publish(pod);
        // room above before there is more below; less above when all below have less
        self.limit_pod(pod);
        let mut changed = Step::Waits;
        for (id, spec, has, wants) in behind {
            if self.killing.contains_key(&id) {
                continue;
            }
            let new = numbers(&wants);
            let restarts = |name: &str| {
                let policies = spec.resize_policy.iter().flatten();
                policies
                    .into_iter()
                    .any(|p| p.resource_name == name && p.restart_policy == "RestartContainer")
            };
            if ((has.0, has.1) != (new.0, new.1) && restarts("cpu")) || (has.2 != new.2 && restarts("memory"))
            {
                let why = format!("Container {} resize requires restart", spec.name);
                self.kill(pod, (&id, &spec.name), &why, crate::plan::grace(pod), true);
                continue;
            }
            match self.update(&id, &spec, has, wants).await {
                Ok(()) => {
                    self.resize.taken.insert(id, new);
                    changed = Step::Changed;
                }
                Err(why) => {
                    tracing::warn!(why, pod = self.uid, container = spec.name, "not resized");
                    if self.resize_failed.as_ref() != Some(&why) {
                        let text = message("error", pod, Some(&why));
                        self.event(pod, None, EventType::Warning, "ResizeError", text);
                        self.resize_failed = Some(why.clone());
                    }
                    self.resize.progress = Some(Some(why));
                }
            }
        }
        self.limit_pod(pod);
        if matches!(self.resize.progress, Some(Some(_))) {
            self.resize.again = Some(Instant::now() + AGAIN);
            self.publish(pod);
            return Step::Waits;
        }
        self.resize_failed = None;
        changed
    }

    async fn update(
        &self,
        id: &str,
        spec: &Spec,
        has: Numbers,
        wants: LinuxContainerResources,
    ) -> Result<(), String> {
        let mut runtime = self.shared.cri.clone();
        let limit = wants.memory_limit_in_bytes;
        if limit > 0 && (has.2 == 0 || limit < has.2) {
            let request = v1::ContainerStatsRequest { container_id: id.to_owned() };
            // what is not known is for the kernel to refuse
            let stats =
                runtime.container_stats(request).await.ok().and_then(|answer| answer.into_inner().stats);
            let used = stats.and_then(|stats| stats.memory?.working_set_bytes).map_or(0, |used| used.value);
            if i64::try_from(used).unwrap_or(i64::MAX) > limit {
                return Err(format!(
                    "attempting to set container {:?} memory limit ({limit}) below current usage ({used})",
                    spec.name
                ));
            }
        }
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(wants),
            ..Default::default()
        };
        let done = runtime.update_container_resources(request).await;
        done.map(drop).map_err(|status| format!("container {:?}: {}", spec.name, status.message()))
    }
}
