//! The file that remembers who has which devices, `kubelet_internal_checkpoint`, in the reference's form, which others read
//! too: JSON, and a checksum over the same content as Go's `%#v` would print it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::messages::ContainerAllocateResponse;
use super::pods::{Given, Pods};
use crate::files::write_json;
use crate::managers::checkpoint::{check, checksum, map};

/// Its name, in the plugins' folder.
pub(super) const FILE: &str = "kubelet_internal_checkpoint";
/// Where devices are listed that are near to no node.
const NOWHERE: i64 = -1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: Data,
    checksum: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    /// Go writes null for none.
    pod_device_entries: Option<Vec<Entry>>,
    /// Healthy devices of resources whose plugins registered at some time.
    registered_devices: BTreeMap<String, Vec<String>>,
}

/// Devices of one resource that a container has.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    container_name: String,
    resource_name: String,
    /// By NUMA node; one that is near to several is listed for each.
    #[serde(rename = "DeviceIDs")]
    device_ids: BTreeMap<i64, Vec<String>>,
    /// What the plugin answered, base64.
    alloc_resp: String,
}

impl Entry {
    fn new(uid: &str, container: &str, resource: &str, given: &Given) -> Self {
        let mut device_ids: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for (id, nodes) in &given.devices {
            let nodes = if nodes.is_empty() { std::slice::from_ref(&NOWHERE) } else { &nodes[..] };
            nodes.iter().for_each(|node| device_ids.entry(*node).or_default().push(id.clone()));
        }
        Self {
            pod_uid: uid.to_owned(),
            container_name: container.to_owned(),
            resource_name: resource.to_owned(),
            device_ids,
            alloc_resp: BASE64_STANDARD.encode(given.response.encode_to_vec()),
        }
    }

    fn response(&self) -> Result<Vec<u8>, String> {
        BASE64_STANDARD.decode(&self.alloc_resp).map_err(|error| error.to_string())
    }

    fn given(&self) -> Result<Given, String> {
        let mut devices: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for (node, ids) in &self.device_ids {
            for id in ids {
                let nodes = devices.entry(id.clone()).or_default();
                nodes.extend((*node != NOWHERE).then_some(*node));
            }
        }
        let response = self.response()?;
        let response = ContainerAllocateResponse::decode(&*response).map_err(|error| error.to_string())?;
        Ok(Given { devices, response })
    }
}

impl Data {
    fn sum(&self) -> Result<u64, String> {
        let list = |all: &Vec<String>| format!("[{}]", all.join(" "));
        let entry = |entry: &Entry| {
            let bytes: Vec<String> = entry.response()?.iter().map(u8::to_string).collect();
            Ok::<String, String>(format!(
                "{{PodUID:(string){} ContainerName:(string){} ResourceName:(string){} \
                 DeviceIDs:(checkpoint.DevicesPerNUMA){} AllocResp:([]uint8)[{}]}}",
                entry.pod_uid,
                entry.container_name,
                entry.resource_name,
                map(&entry.device_ids, |node, ids| format!("{node}:{}", list(ids))),
                bytes.join(" ")
            ))
        };
        let entries = match &self.pod_device_entries {
            Some(all) => {
                format!("[{}]", all.iter().map(entry).collect::<Result<Vec<_>, String>>()?.join(" "))
            }
            None => "<nil>".to_owned(),
        };
        Ok(checksum(&format!(
            "(checkpoint.checkpointData){{PodDeviceEntries:([]checkpoint.PodDevicesEntry){entries} \
             RegisteredDevices:(map[string][]string){}}}",
            map(&self.registered_devices, |name, ids| format!("{name}:{}", list(ids)))
        )))
    }
}

/// Who has which devices, and the resources that plugins registered; nothing where there is no file.
pub(super) fn read(folder: &Path) -> Result<Option<(Pods, BTreeSet<String>)>, String> {
    let text = match std::fs::read(folder.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let File { data, checksum } = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    check(checksum, data.sum()?)?;
    let mut pods = Pods::default();
    for entry in data.pod_device_entries.iter().flatten() {
        pods.insert(&entry.pod_uid, &entry.container_name, &entry.resource_name, entry.given()?);
    }
    Ok(Some((pods, data.registered_devices.into_keys().collect())))
}

/// Writes what [`read`] reads; `registered` has the healthy devices of each resource.
pub(super) fn write(
    folder: &Path,
    pods: &Pods,
    registered: BTreeMap<String, Vec<String>>,
) -> Result<(), String> {
    let entries =
        pods.all().map(|(uid, container, resource, given)| Entry::new(uid, container, resource, given));
    let data = Data { pod_device_entries: Some(entries.collect()), registered_devices: registered };
    let checksum = data.sum()?;
    write_json(folder, FILE, &File { data, checksum }).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a node with one device that is near to no node.
    const WRITTEN: &str = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"bf52b2cd-b611-4e79-86b1-280b283185c3","ContainerName":"check","ResourceName":"nvidia.com/gpu","DeviceIDs":{"-1":["tegra"]},"AllocResp":"Ch8KFk5WSURJQV9WSVNJQkxFX0RFVklDRVMSBXRlZ3Jh"}],"RegisteredDevices":{"nvidia.com/gpu":["tegra"]}},"Checksum":3660592824}"#;

    #[test]
    fn the_file_is_the_references() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).unwrap().is_none());
        std::fs::write(folder.path().join(FILE), WRITTEN).unwrap();
        let (pods, resources) = read(folder.path()).unwrap().unwrap();
        let uid = "bf52b2cd-b611-4e79-86b1-280b283185c3";
        let given: Vec<_> = pods.of(uid, "check").map(|(name, given)| (name.as_str(), given)).collect();
        assert_eq!(
            (given[0].0, &given[0].1.devices),
            ("nvidia.com/gpu", &[("tegra".to_owned(), vec![])].into())
        );
        assert_eq!(given[0].1.response.envs["NVIDIA_VISIBLE_DEVICES"], "tegra");
        write(folder.path(), &pods, [("nvidia.com/gpu".to_owned(), vec!["tegra".to_owned()])].into())
            .unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join(FILE)).unwrap(), WRITTEN);
        assert_eq!(resources, ["nvidia.com/gpu".to_owned()].into());
    }

    #[test]
    fn devices_near_to_several_nodes_stay_so_and_a_broken_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut pods = Pods::default();
        let devices = [("a".to_owned(), vec![0, 1]), ("b".to_owned(), vec![1])];
        let given = Given { devices: devices.into(), response: ContainerAllocateResponse::default() };
        pods.insert("u", "c", "x/d", given);
        write(folder.path(), &pods, BTreeMap::new()).unwrap();
        assert_eq!(read(folder.path()).unwrap().unwrap().0, pods);
        let path = folder.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"b\"", "\"c\"")).unwrap();
        assert_eq!(read(folder.path()).unwrap_err(), "checkpoint is corrupted");
        std::fs::write(&path, r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":0}"#)
            .unwrap();
        assert_eq!(read(folder.path()).unwrap(), Some(Default::default()));
    }
}
