//! Devices of vendors: plugins on this node say which there are and what a container needs to use one; pods ask for
//! them as extended resources (`example.com/gpu: 1`).
//!
//! - [`registration`]: the socket at which plugins register, and one task per plugin that follows what it lists.
//! - [`allocation`]: what a pod that comes is given, near to its processors and memory.
//! - [`pods`]: which devices each container has; [`checkpoint`]: the file that remembers it, so that a restart changes nothing.
//! - [`pod_resources`]: the socket at which monitoring asks who has what.
//!
//! Rule: Kubernetes documentation, "Device Plugins"; device plugin API v1beta1. A container keeps its devices for as long
//! as its pod lives. Devices of a plugin that went away are unhealthy: what runs with them goes on, nobody new gets them.

mod allocation;
mod checkpoint;
pub mod messages;
pub mod pod_resources;
mod pods;
pub mod registration;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cri::v1;
use k8s_openapi::api::core::v1::{ResourceHealth, ResourceStatus};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::grpc::{Plugin, told};
use crate::managers::topology::Hint;
pub use allocation::Allocation;
use checkpoint::FILE;
use messages::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerAllocateResponse, ContainerDevices,
    ContainerPreferredAllocationRequest, Device, DevicePluginOptions, Empty, PreStartContainerRequest,
    PreferredAllocationRequest, PreferredAllocationResponse, TopologyInfo,
};
use pods::{Given, Pods};

/// What a plugin calls a device that can be used.
const HEALTHY: &str = "Healthy";
/// And one that cannot.
const UNHEALTHY: &str = "Unhealthy";

/// What a plugin offers under one name.
#[derive(Default)]
struct Resource {
    /// None until it registers: it did with an earlier kubelet.
    plugin: Option<(Plugin, DevicePluginOptions)>,
    devices: BTreeMap<String, Device>,
    /// Which registration this is; what an older one still says does not count.
    session: u64,
}

impl Resource {
    fn healthy(&self) -> BTreeSet<String> {
        self.devices
            .values()
            .filter(|device| device.health == HEALTHY)
            .map(|device| device.id.clone())
            .collect()
    }
}

#[derive(Default)]
struct State {
    resources: BTreeMap<String, Resource>,
    pods: Pods,
    sessions: u64,
}

/// All devices of the node.
pub struct Devices {
    folder: PathBuf,
    state: Mutex<State>,
    /// Held while the file is written, so that what is written last is the newest.
    file: Mutex<()>,
    changed: watch::Sender<u64>,
}

/// Which devices a container gets, or between which its plugin may choose.
enum Pick {
    /// It has them already.
    Nothing,
    These(BTreeSet<String>),
    Choose {
        plugin: Plugin,
        must: BTreeSet<String>,
        /// Beside them, in the order in which they are given where it names none.
        free: Vec<String>,
        size: usize,
    },
}

impl Devices {
    /// Of the kubelet whose folder `root` is, with what an earlier one gave to pods.
    pub fn open(root: &Path) -> Self {
        let folder = root.join("device-plugins");
        let mut state = State::default();
        match checkpoint::read(&folder) {
            Ok(kept) => {
                let (pods, resources) = kept.unwrap_or_default();
                state.pods = pods;
                state.resources = resources.into_iter().map(|name| (name, Resource::default())).collect();
            }
            Err(why) => tracing::warn!(why, "what pods have of devices is not known any more"),
        }
        Self { folder, state: Mutex::new(state), file: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// Changes whenever what the node has of devices does.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// How many there are of each resource, and how many of them pods may have.
    pub fn counts(&self) -> BTreeMap<String, (usize, usize)> {
        let state = self.state.lock();
        let count = |(name, resource): (&String, &Resource)| {
            (name.clone(), (resource.devices.len(), resource.healthy().len()))
        };
        state.resources.iter().map(count).collect()
    }

    /// Whether a plugin offers or offered the resource.
    pub fn knows(&self, resource: &str) -> bool {
        let state = self.state.lock();
        state.resources.contains_key(resource) || !state.pods.in_use(resource).is_empty()
    }

    fn save(&self) -> Result<(), String> {
        let _alone = self.file.lock();
        let (pods, registered) = {
            let state = self.state.lock();
            let healthy =
                |(name, known): (&String, &Resource)| (name.clone(), known.healthy().into_iter().collect());
            (state.pods.clone(), state.resources.iter().map(healthy).collect())
        };
        checkpoint::write(&self.folder, &pods, registered).map_err(|why| format!("{FILE}: {why}"))
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// A plugin registered; what it says comes with the number returned.
    fn joined(&self, resource: &str, plugin: Plugin, options: DevicePluginOptions) -> u64 {
        let session = {
            let mut state = self.state.lock();
            state.sessions += 1;
            let session = state.sessions;
            let known = state.resources.entry(resource.to_owned()).or_default();
            known.plugin = Some((plugin, options));
            known.session = session;
            session
        };
        if let Err(why) = self.save() {
            tracing::warn!(why, "a plugin's resource is forgotten by a restart");
        }
        self.tell();
        session
    }

    fn with(&self, resource: &str, session: u64, change: impl FnOnce(&mut Resource)) {
        if let Some(known) =
            self.state.lock().resources.get_mut(resource).filter(|known| known.session == session)
        {
            change(known);
        }
        self.tell();
    }

    /// A plugin says what there is.
    fn listed(&self, resource: &str, session: u64, devices: Vec<Device>) {
        let devices = devices.into_iter().map(|device| (device.id.clone(), device)).collect();
        self.with(resource, session, |known| known.devices = devices);
    }

    /// A plugin went away.
    fn left(&self, resource: &str, session: u64) {
        self.with(resource, session, |known| {
            for device in known.devices.values_mut() {
                device.health = UNHEALTHY.to_owned();
            }
        });
    }

    /// And did not come back.
    fn forgotten(&self, resource: &str, session: u64) {
        self.with(resource, session, |known| known.devices.clear());
    }

    async fn give_one(
        &self,
        (uid, container): (&str, &str),
        resource: &str,
        needed: usize,
        (reusable, hint): (&BTreeSet<String>, Hint),
    ) -> Result<(), String> {
        let picked = self.pick((uid, container), resource, needed, (reusable, hint))?;
        let chosen = match picked {
            Pick::Nothing => return Ok(()),
            Pick::These(devices) => devices,
            Pick::Choose { plugin, must, free, size } => choose(&plugin, must, free, size).await?,
        };
        let plugin = self.plugin(resource).ok_or_else(|| format!("unknown Device Plugin {resource}"))?.0;
        let ids: Vec<String> = chosen.iter().cloned().collect();
        let request =
            AllocateRequest { container_requests: vec![ContainerAllocateRequest { devices_ids: ids }] };
        let begin = std::time::Instant::now();
        let answer = plugin.call("/v1beta1.DevicePlugin/Allocate", request).await;
        crate::metrics::DEVICE_ALLOCATION.time(&[resource], begin.elapsed());
        let answer: AllocateResponse = answer.map_err(|status| told(&status))?;
        let response = answer.container_responses.into_iter().next();
        let response = response.ok_or("no containers return in allocation response".to_owned())?;
        let mut state = self.state.lock();
        let known = state.resources.get(resource);
        let nodes = |id: &String| {
            let device = known.and_then(|known| known.devices.get(id));
            let topology = device.and_then(|device| device.topology.as_ref());
            topology.iter().flat_map(|topology| &topology.nodes).map(|node| node.id).collect()
        };
        let devices = chosen.iter().map(|id| (id.clone(), nodes(id))).collect();
        state.pods.insert(uid, container, resource, Given { devices, response });
        Ok(())
    }

    fn plugin(&self, resource: &str) -> Option<(Plugin, DevicePluginOptions)> {
        self.state.lock().resources.get(resource)?.plugin.clone()
    }

    fn pick(
        &self,
        (uid, container): (&str, &str),
        resource: &str,
        needed: usize,
        (reusable, hint): (&BTreeSet<String>, Hint),
    ) -> Result<Pick, String> {
        let state = self.state.lock();
        if let Some(given) = state.pods.of(uid, container).find(|(name, _)| *name == resource) {
            let has = given.1.devices.len();
            return if has == needed {
                Ok(Pick::Nothing)
            } else {
                Err(format!(
                    "pod {uid:?} container {container:?} changed request for resource {resource:?} from {has} to {needed}"
                ))
            };
        }
        if needed == 0 {
            return Ok(Pick::Nothing);
        }
        let known = state.resources.get(resource);
        let known = known.ok_or_else(|| format!("cannot allocate unregistered device {resource}"))?;
        let healthy = known.healthy();
        if healthy.is_empty() {
            return Err(format!("no healthy devices present; cannot allocate unhealthy devices {resource}"));
        }
        let mut must: BTreeSet<String> = reusable.iter().take(needed).cloned().collect();
        let mut missing = needed - must.len();
        if missing == 0 {
            return Ok(Pick::These(must));
        }
        let used = state.pods.in_use(resource);
        let free: BTreeSet<String> = healthy.difference(&used).cloned().collect();
        if free.len() < missing {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {missing}, Available: {}",
                free.len()
            ));
        }
        // where there are enough near ones, their plugin chooses between those; otherwise all of them are taken
        let (near, far) = known.split(free, hint);
        let free = if missing < near.len() {
            near
        } else {
            missing -= near.len();
            must.extend(near);
            far
        };
        if missing == 0 {
            return Ok(Pick::These(must));
        }
        match &known.plugin {
            Some((plugin, options)) if options.get_preferred_allocation_available => {
                let free = known.in_order(&free, hint);
                Ok(Pick::Choose { plugin: plugin.clone(), must, free, size: needed })
            }
            _ => {
                let free = known.in_order(&free, hint).into_iter().take(missing);
                Ok(Pick::These(must.into_iter().chain(free).collect()))
            }
        }
    }

    /// What a container that starts gets for its devices; their plugins are told before, where they want to be.
    pub async fn for_start(
        &self,
        uid: &str,
        container: &str,
    ) -> Result<Vec<ContainerAllocateResponse>, String> {
        let given: Vec<(String, Given)> = {
            let state = self.state.lock();
            state.pods.of(uid, container).map(|(name, given)| (name.clone(), given.clone())).collect()
        };
        let mut responses = Vec::with_capacity(given.len());
        for (resource, given) in given {
            if let Some((plugin, options)) = self.plugin(&resource)
                && options.pre_start_required
            {
                let devices_ids = given.devices.keys().cloned().collect();
                plugin
                    .call::<_, Empty>(
                        "/v1beta1.DevicePlugin/PreStartContainer",
                        PreStartContainerRequest { devices_ids },
                    )
                    .await
                    .map_err(|status| {
                        format!("device plugin PreStartContainer rpc failed with err: {}", told(&status))
                    })?;
            }
            responses.push(given.response);
        }
        Ok(responses)
    }

    /// A pod is gone: its devices are free.
    pub fn release(&self, uid: &str) {
        let had = self.state.lock().pods.remove(uid);
        if had && let Err(why) = self.save() {
            tracing::warn!(why, pod = uid, "freed devices are not written down");
        }
    }

    /// The pods that have any.
    pub fn holders(&self) -> Vec<String> {
        self.state.lock().pods.uids().map(str::to_owned).collect()
    }

    /// Whether the pod has any devices.
    pub fn has_any(&self, uid: &str) -> bool {
        self.state.lock().pods.has_any(uid)
    }

    /// How the devices of a container are; those of which nothing is known are taken for healthy.
    pub fn status(&self, uid: &str, container: &str) -> Vec<ResourceStatus> {
        let state = self.state.lock();
        let one = |(resource, given): (&String, &Given)| {
            let known = state.resources.get(resource);
            let health = |id: &String| {
                let device = known.and_then(|known| known.devices.get(id));
                let healthy = device.is_none_or(|device| device.health == HEALTHY);
                let health = if healthy { HEALTHY } else { UNHEALTHY };
                let (health, message) = (Some(health.to_owned()), None);
                ResourceHealth { health, message, resource_id: id.clone() }
            };
            let resources = Some(given.devices.keys().map(health).collect());
            ResourceStatus { name: resource.clone(), resources }
        };
        state.pods.of(uid, container).map(one).collect()
    }

    /// The devices of a container, as the pod resources API has them.
    fn of_container(&self, uid: &str, container: &str) -> Vec<ContainerDevices> {
        let state = self.state.lock();
        let one = |(resource, given): (&String, &Given)| -> Vec<ContainerDevices> {
            let shown = |(id, nodes): (&String, &Vec<i64>)| ContainerDevices {
                resource_name: resource.clone(),
                device_ids: vec![id.clone()],
                topology: topology(nodes),
            };
            given.devices.iter().map(shown).collect()
        };
        state.pods.of(uid, container).flat_map(one).collect()
    }

    /// All devices that pods may have.
    fn all(&self) -> Vec<ContainerDevices> {
        let state = self.state.lock();
        let healthy = |(name, resource): (&String, &Resource)| -> Vec<ContainerDevices> {
            let devices = resource.devices.values().filter(|device| device.health == HEALTHY);
            let shown = |device: &Device| ContainerDevices {
                resource_name: name.clone(),
                device_ids: vec![device.id.clone()],
                topology: device.topology.clone(),
            };
            devices.map(shown).collect()
        };
        state.resources.iter().flat_map(healthy).collect()
    }
}

fn topology(nodes: &[i64]) -> Option<TopologyInfo> {
    let nodes: Vec<_> = nodes.iter().map(|id| messages::NumaNode { id: *id }).collect();
    (!nodes.is_empty()).then_some(TopologyInfo { nodes })
}

async fn choose(
    plugin: &Plugin,
    must: BTreeSet<String>,
    free: Vec<String>,
    size: usize,
) -> Result<BTreeSet<String>, String> {
    let request = PreferredAllocationRequest {
        container_requests: vec![ContainerPreferredAllocationRequest {
            available_device_ids: free
                .iter()
                .chain(&must)
                .cloned()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            must_include_device_ids: must.iter().cloned().collect(),
            allocation_size: i32::try_from(size).unwrap_or(i32::MAX),
        }],
    };
    let answer: PreferredAllocationResponse =
        plugin.call("/v1beta1.DevicePlugin/GetPreferredAllocation", request).await.map_err(|status| {
            format!("device plugin GetPreferredAllocation rpc failed with err: {}", told(&status))
        })?;
    let preferred = answer.container_responses.into_iter().next().unwrap_or_default().device_ids;
    // what it may not have is not taken from it, and what it does not say is filled up
    let mut chosen = must;
    for id in preferred.into_iter().filter(|id| free.contains(id)).chain(free.iter().cloned()) {
        if chosen.len() == size {
            break;
        }
        chosen.insert(id);
    }
    Ok(chosen)
}

/// Puts into a container's configuration what its devices need. Its own variables win over theirs, its mounts too.
pub fn apply(config: &mut v1::ContainerConfig, responses: Vec<ContainerAllocateResponse>) {
    let mut envs: BTreeMap<String, String> = BTreeMap::new();
    for response in responses {
        envs.extend(response.envs);
        for device in response.devices {
            if !config.devices.iter().any(|known| known.container_path == device.container_path) {
                config.devices.push(v1::Device {
                    container_path: device.container_path,
                    host_path: device.host_path,
                    permissions: device.permissions,
                });
            }
        }
        for mount in response.mounts {
            if !config.mounts.iter().any(|known| known.container_path == mount.container_path) {
                config.mounts.push(v1::Mount {
                    container_path: mount.container_path,
                    host_path: mount.host_path,
                    readonly: mount.read_only,
                    ..Default::default()
                });
            }
        }
        for (name, value) in response.annotations {
            config.annotations.entry(name).or_insert(value);
        }
        name(config, response.cdi_devices.into_iter().map(|device| device.name));
    }
    let own = std::mem::take(&mut config.envs);
    let given = envs.into_iter().filter(|(key, _)| !own.iter().any(|known| known.key == *key));
    config.envs = given.map(|(key, value)| v1::KeyValue { key, value }).collect();
    config.envs.extend(own);
}

/// Adds devices by their names in CDI, each once.
pub fn name(config: &mut v1::ContainerConfig, names: impl IntoIterator<Item = String>) {
    for device in names.into_iter().map(|name| v1::CdiDevice { name }) {
        if !config.cdi_devices.contains(&device) {
            config.cdi_devices.push(device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_pods_are_given_and_give_back_at_once_is_all_written_down() {
        let root = tempfile::tempdir().unwrap();
        let devices = Devices::open(root.path());
        let given = || Given {
            devices: [("a".to_owned(), vec![])].into(),
            response: ContainerAllocateResponse::default(),
        };
        std::thread::scope(|scope| {
            for one in 0..8 {
                let (devices, given) = (&devices, &given);
                scope.spawn(move || {
                    for other in 0..8 {
                        devices.state.lock().pods.insert(&format!("u{one}-{other}"), "c", "x/d", given());
                        devices.save().unwrap();
                    }
                    devices.release(&format!("u{one}-0"));
                });
            }
        });
        let written = checkpoint::read(&devices.folder).unwrap().unwrap().0;
        assert_eq!(written, devices.state.lock().pods);
        assert_eq!(devices.holders().len(), 56);
    }
}
