//! Which devices the containers of each pod have.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prost::Message as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::messages::ContainerAllocateResponse;

/// Devices of one resource that a container has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Given {
    /// NUMA nodes by device.
    pub(super) devices: BTreeMap<String, Vec<i64>>,
    /// What the plugin answered.
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    pub(super) response: ContainerAllocateResponse,
}

fn encode<S: Serializer>(response: &ContainerAllocateResponse, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&BASE64_STANDARD.encode(response.encode_to_vec()))
}

fn decode<'de, D: Deserializer<'de>>(from: D) -> Result<ContainerAllocateResponse, D::Error> {
    let bytes = BASE64_STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)?;
    ContainerAllocateResponse::decode(bytes.as_slice()).map_err(D::Error::custom)
}

/// By resource.
type OfContainer = BTreeMap<String, Given>;

/// By pod, then by container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Pods(BTreeMap<String, BTreeMap<String, OfContainer>>);

/// What is written down.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) pods: Pods,
    /// Resources whose plugins registered at some time.
    pub(super) resources: BTreeSet<String>,
}

impl Pods {
    /// What a container has.
    pub(super) fn of(&self, uid: &str, container: &str) -> impl Iterator<Item = (&String, &Given)> {
        self.0.get(uid).and_then(|containers| containers.get(container)).into_iter().flatten()
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
    fn what_is_written_down_is_read_again() {
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
        let text = serde_json::to_string(&pods).unwrap();
        let mut read: Pods = serde_json::from_str(&text).unwrap();
        assert_eq!(read, pods);
        assert_eq!(read.in_use("example.com/dev"), ["d1", "d2", "d3"].map(str::to_owned).into());
        read.keep(|uid| uid == "u2");
        assert_eq!(read.in_use("example.com/dev"), ["d3".to_owned()].into());
        assert!(read.remove("u2") && !read.remove("u1"));
        assert!(read.in_use("example.com/dev").is_empty());
    }
}
