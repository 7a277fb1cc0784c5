//! Which devices the containers of each pod have.

use std::collections::{BTreeMap, BTreeSet};

use super::messages::ContainerAllocateResponse;

/// Devices of one resource that a container has.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Given {
    /// NUMA nodes by device.
    pub(super) devices: BTreeMap<String, Vec<i64>>,
    /// What the plugin answered.
    pub(super) response: ContainerAllocateResponse,
}

/// By resource.
type OfContainer = BTreeMap<String, Given>;

/// By pod, then by container.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Pods(BTreeMap<String, BTreeMap<String, OfContainer>>);

impl Pods {
    /// What every container has: pod, container, resource, devices.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &str, &str, &Given)> {
        self.0.iter().flat_map(|(uid, containers)| {
            containers.iter().flat_map(move |(container, all)| {
                all.iter().map(move |(resource, given)| (&**uid, &**container, &**resource, given))
            })
        })
    }

    /// What a container has.
    pub(super) fn of(&self, uid: &str, container: &str) -> impl Iterator<Item = (&String, &Given)> {
        self.0.get(uid).and_then(|containers| containers.get(container)).into_iter().flatten()
    }

    /// The pods that have anything.
    pub(super) fn uids(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether the pod has anything.
    pub(super) fn has_any(&self, uid: &str) -> bool {
        self.0.contains_key(uid)
    }

    /// Devices of a resource that somebody has.
    pub(super) fn in_use(&self, resource: &str) -> BTreeSet<String> {
        let given = self.0.values().flat_map(BTreeMap::values).filter_map(|all| all.get(resource));
        given.flat_map(|given| given.devices.keys().cloned()).collect()
    }

    pub(super) fn insert(&mut self, uid: &str, container: &str, resource: &str, given: Given) {
        let containers = self.0.entry(uid.to_owned()).or_default();
        containers.entry(container.to_owned()).or_default().insert(resource.to_owned(), given);
    }

    /// Forgets the pods that are not to be kept.
    pub(super) fn keep(&mut self, kept: impl Fn(&str) -> bool) {
        self.0.retain(|uid, _| kept(uid));
    }

    /// Whether the pod had any.
    pub(super) fn remove(&mut self, uid: &str) -> bool {
        self.0.remove(uid).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_device_keeps_it_from_others() {
        let mut pods = Pods::default();
        let response = ContainerAllocateResponse {
            envs: [("A".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        };
        let given =
            Given { devices: [("d1".to_owned(), vec![0]), ("d2".to_owned(), vec![])].into(), response };
        pods.insert("u1", "c", "example.com/dev", given.clone());
        pods.insert(
            "u2",
            "c",
            "example.com/dev",
            Given { devices: [("d3".to_owned(), vec![])].into(), ..given },
        );
        assert_eq!(pods.in_use("example.com/dev"), ["d1", "d2", "d3"].map(str::to_owned).into());
        pods.keep(|uid| uid == "u2");
        assert_eq!(pods.in_use("example.com/dev"), ["d3".to_owned()].into());
        assert!(pods.remove("u2") && !pods.remove("u1"));
        assert!(pods.in_use("example.com/dev").is_empty());
    }
}
