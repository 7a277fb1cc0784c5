//! What of the pod's volumes a container gets, and how.
//!
//! Rule: Kubernetes documentation, "Volumes" ("Using subPath", "Mount propagation", "Read-only mounts").

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cri::v1;
use k8s_openapi::api::core::v1::{Container, VolumeMount};

use crate::volumes::Mounted;

/// The devices that a container has of the pod's volumes.
pub fn devices(spec: &Container, mounted: &Mounted) -> Result<Vec<v1::Device>, String> {
    let device = |device: &k8s_openapi::api::core::v1::VolumeDevice| {
        let path = mounted.devices.get(&device.name).ok_or_else(|| {
            format!("volume {:?} of device {:?} is not there", device.name, device.device_path)
        })?;
        let permissions = if mounted.read_only.contains(&device.name) { "r" } else { "mrw" };
        Ok(v1::Device {
            container_path: device.device_path.clone(),
            host_path: path.to_string_lossy().into_owned(),
            permissions: permissions.to_owned(),
        })
    };
    spec.volume_devices.iter().flatten().map(device).collect()
}

/// What of its volume a mount shows; empty for all of it. The error is the pod author's to mend.
fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<String, String> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let path = match given(&mount.sub_path_expr) {
        Some(text) => expanded(&text, env)?,
        None => given(&mount.sub_path).unwrap_or_default(),
    };
    if path.starts_with('/') {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
    }
    Ok(path)
}

/// The text with its variables, all of which must have a value: without one the path would be another's.
fn expanded(text: &str, env: &[(String, String)]) -> Result<String, String> {
    let missing = RefCell::new(BTreeSet::new());
    let path = crate::env::expand(text, |name| {
        let value = env.iter().find(|(known, value)| known == name && !value.is_empty());
        if value.is_none() {
            missing.borrow_mut().insert(name.to_owned());
        }
        value.map(|(_, value)| value.clone())
    });
    let missing: Vec<String> = missing.into_inner().into_iter().collect();
    if missing.is_empty() { Ok(path) } else { Err(format!("missing value for {}", missing.join(", "))) }
}

/// Whether what is mounted below a read-only mount is read-only, too; `able`: the runtime can do that.
fn recursive(mount: &VolumeMount, able: bool) -> Result<bool, String> {
    let asked = format!("volume {:?} requested recursive read-only mode, but it is not", mount.name);
    let propagation = mount.mount_propagation.as_deref().unwrap_or("None");
    match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => Ok(false),
        Some(_) if mount.read_only != Some(true) => Err(format!("{asked} read-only")),
        Some(_) if propagation != "None" => {
            Err(format!("{asked} compatible with propagation {propagation:?}"))
        }
        Some("IfPossible") => Ok(able),
        Some("Enabled") if able => Ok(true),
        Some("Enabled") => Err(format!("{asked} supported by the runtime")),
        Some(other) => Err(format!("unknown recursive read-only mode {other:?}")),
    }
}

/// Whether a mount of the container may be read-only together with what is below it, if the runtime can.
pub fn wants_recursive(spec: &Container) -> bool {
    spec.volume_mounts
        .iter()
        .flatten()
        .any(|m| recursive(m, false) != Ok(false) || recursive(m, true) != Ok(false))
}

/// The mounts of a container; `images` are the runtime's ids of images by volume name, `pins` the folder where
/// sub-paths are held fast. `able`: the runtime can make mounts read-only together with what is below them.
pub fn mounts(
    spec: &Container,
    mounted: &Mounted,
    (images, able): (&BTreeMap<String, String>, bool),
    env: &[(String, String)],
    pins: &Path,
) -> Result<Vec<v1::Mount>, String> {
    let mut list = Vec::new();
    for (index, mount) in spec.volume_mounts.iter().flatten().enumerate() {
        let begin = if mount.mount_path.starts_with('/') { "" } else { "/" };
        let container_path = format!("{begin}{}", mount.mount_path);
        if let Some(image) = images.get(&mount.name) {
            list.push(v1::Mount {
                container_path,
                readonly: true,
                image_sub_path: sub_path(mount, env)?,
                image: Some(v1::ImageSpec { image: image.clone(), ..Default::default() }),
                ..Default::default()
            });
            continue;
        }
        let root = mounted
            .paths
            .get(&mount.name)
            .ok_or_else(|| format!("volume {:?} of mount {:?} is not there", mount.name, mount.mount_path))?;
        let sub = sub_path(mount, env)?;
        let host = if sub.is_empty() {
            root.clone()
        } else {
            let place = pins.join(&mount.name).join(&spec.name).join(index.to_string());
            crate::sub_path::pin(root, &sub, &place).map_err(|problem| {
                let why = &problem as &dyn std::error::Error;
                tracing::warn!(why, container = spec.name, volume = mount.name, sub, "a path in a volume");
                format!("{problem} for volumeMount {:?} of container {:?}", mount.name, spec.name)
            })?
        };
        let read_only = mount.read_only == Some(true) || mounted.read_only.contains(&mount.name);
        list.push(v1::Mount {
            container_path,
            host_path: host.to_string_lossy().into_owned(),
            readonly: read_only,
            recursive_read_only: recursive(mount, able)?,
            selinux_relabel: mounted.relabel.contains(&mount.name),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer as i32,
                Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional as i32,
                _ => v1::MountPropagation::PropagationPrivate as i32,
            },
            ..Default::default()
        });
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_part_of_a_volume_is_named_by_the_environment_or_not_at_all() {
        let check = |mount: Value, expected: Result<&str, &str>| {
            let mut whole = json!({"name": "v", "mountPath": "/v"});
            whole.as_object_mut().unwrap().extend(mount.as_object().unwrap().clone());
            let mount: VolumeMount = serde_json::from_value(whole).unwrap();
            let env = [("A", "1"), ("B", ""), ("UP", "../x"), ("ROOT", "/x")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()));
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(sub_path(&mount, &env), expected);
        };
        check(json!({}), Ok(""));
        check(json!({"subPath": "./$(A)"}), Ok("./$(A)"));
        check(json!({"subPathExpr": "logs/$(A)/$$(C)"}), Ok("logs/1/$(C)"));
        check(json!({"subPathExpr": "$(D)/$(B)/$(C)/$(A)"}), Err("missing value for B, C, D"));
        check(
            json!({"subPathExpr": "a/$(UP)"}),
            Err("unable to provision SubPath `a/../x`: must not contain '..'"),
        );
        check(json!({"subPathExpr": "$(ROOT)"}), Err("error SubPath `/x` must not be an absolute path"));
    }

    #[test]
    fn what_is_mounted_below_is_read_only_where_the_pod_asks_and_the_runtime_can() {
        let check = |mount: Value, able: bool, expected: Result<bool, &str>| {
            let mut whole = json!({"name": "v", "mountPath": "/v"});
            whole.as_object_mut().unwrap().extend(mount.as_object().unwrap().clone());
            let mount: VolumeMount = serde_json::from_value(whole).unwrap();
            assert_eq!(
                recursive(&mount, able).map_err(|why| why.rsplit("is not ").next().unwrap().to_owned()),
                expected.map_err(str::to_owned)
            );
        };
        check(json!({"readOnly": true}), true, Ok(false));
        check(json!({"readOnly": true, "recursiveReadOnly": "IfPossible"}), true, Ok(true));
        check(json!({"readOnly": true, "recursiveReadOnly": "IfPossible"}), false, Ok(false));
        check(json!({"readOnly": true, "recursiveReadOnly": "Enabled"}), true, Ok(true));
        check(
            json!({"readOnly": true, "recursiveReadOnly": "Enabled"}),
            false,
            Err("supported by the runtime"),
        );
        check(json!({"recursiveReadOnly": "Enabled"}), true, Err("read-only"));
    }
}
