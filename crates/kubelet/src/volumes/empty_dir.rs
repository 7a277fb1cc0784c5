//! `emptyDir`: a folder on the node's disk, in memory, or of huge pages.
//!
//! Rule: Kubernetes documentation, "Volumes" (`emptyDir`), "Manage HugePages".

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};
use rustix::mount::{MountFlags, mount};

use super::mounts;

const MEMORY: &str = "Memory";
const HUGE: &str = "HugePages";
const TMPFS: &str = "tmpfs";

/// Makes the folder, once. `node` is the memory that the node's pods may have, in bytes, where it is known.
pub(super) fn make(
    path: &Path,
    source: &EmptyDirVolumeSource,
    pod: &Pod,
    node: Option<u64>,
) -> Result<(), String> {
    let file_system = match source.medium.as_deref().unwrap_or_default() {
        MEMORY => {
            Some((TMPFS, size(source, pod, node).map(|size| format!("size={size}")).unwrap_or_default()))
        }
        medium if medium.starts_with(HUGE) => Some(("hugetlbfs", format!("pagesize={}", page(medium, pod)?))),
        _ => None,
    };
    make_of(path, file_system, super::group(pod)).map_err(|error| error.to_string())
}

/// How large it may become: as the pod may have memory, and as it says itself.
fn size(source: &EmptyDirVolumeSource, pod: &Pod, node: Option<u64>) -> Option<u64> {
    let limit = source.size_limit.as_ref().map(|q| crate::resources::units(&q.0));
    let own = limit.and_then(|bytes| u64::try_from(bytes).ok());
    let whole = limits_all(pod).then(|| crate::resources::limited(pod, "memory")).flatten();
    [node, whole, own].into_iter().flatten().filter(|bytes| *bytes > 0).min()
}

/// Whether the pod as a whole has a limit of memory.
fn limits_all(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let has = |resources: Option<&k8s_openapi::api::core::v1::ResourceRequirements>| {
        resources.and_then(|r| r.limits.as_ref()).is_some_and(|limits| limits.contains_key("memory"))
    };
    has(spec.resources.as_ref()) || containers.all(|container| has(container.resources.as_ref()))
}

/// The size of the pages: of the medium, or the one that the pod's containers ask for.
fn page(medium: &str, pod: &Pod) -> Result<String, String> {
    let spec = pod.spec.iter();
    let containers =
        spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let requests = containers.flat_map(|container| container.resources.iter().flat_map(|r| &r.requests));
    let sizes: BTreeSet<&str> =
        requests.flat_map(|all| all.keys()).filter_map(|name| name.strip_prefix("hugepages-")).collect();
    let wanted = medium.strip_prefix("HugePages-");
    let mut found = sizes.into_iter().filter(|size| wanted.is_none_or(|wanted| wanted == *size));
    match (found.next(), found.next()) {
        (Some(size), None) => Ok(size.to_owned()),
        (Some(_), Some(_)) => {
            Err(format!("medium {medium:?} can't be used if container requests multiple huge page sizes"))
        }
        _ => Err("hugePages storage requested, but there is no resource request for huge pages.".to_owned()),
    }
}

fn make_of(path: &Path, file_system: Option<(&str, String)>, group: Option<i64>) -> io::Result<()> {
    let fresh = !path.exists();
    std::fs::DirBuilder::new().recursive(true).mode(0o777).create(path)?;
    if let Some((kind, options)) = file_system
        && !mounts::is_mount(path)?
    {
        if kind == TMPFS {
            mounts::tmpfs(path, MountFlags::empty(), &options)?;
        } else {
            let options = CString::new(options).map_err(|_| io::ErrorKind::InvalidInput)?;
            mount(kind, path, kind, MountFlags::empty(), Some(options.as_c_str()))?;
        }
    }
    if fresh {
        let mut mode = 0o777;
        if let Some(group) = group {
            std::os::unix::fs::chown(path, None, u32::try_from(group).ok())?;
            mode = 0o2777;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(containers: Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    fn container(kind: &str, amounts: Value) -> Value {
        json!({"name": "c", "resources": {kind: amounts}})
    }

    #[test]
    fn memory_is_bounded_by_what_node_pod_and_volume_may_have() {
        let check = |limits: Value, own: Option<&str>, wanted: Option<u64>| {
            let source = serde_json::from_value(json!({"medium": "Memory", "sizeLimit": own})).unwrap();
            assert_eq!(size(&source, &pod(json!([container("limits", limits)])), Some(1 << 30)), wanted);
        };
        check(json!({}), None, Some(1 << 30));
        check(json!({"memory": "2Gi"}), None, Some(1 << 30));
        check(json!({"memory": "64Mi"}), None, Some(64 << 20));
        check(json!({"memory": "64Mi"}), Some("16Mi"), Some(16 << 20));
        check(json!({}), Some("16Mi"), Some(16 << 20));
        let one_of_two = pod(json!([container("limits", json!({"memory": "1Mi"})), {"name": "d"}]));
        assert_eq!(size(&EmptyDirVolumeSource::default(), &one_of_two, None), None);
    }

    #[test]
    fn huge_pages_have_the_size_that_the_pod_asks_for() {
        let small = container("requests", json!({"hugepages-2Mi": "4Mi", "memory": "1Mi"}));
        let large = container("requests", json!({"hugepages-1Gi": "1Gi"}));
        assert_eq!(page("HugePages", &pod(json!([small]))), Ok("2Mi".to_owned()));
        let both = pod(json!([small, large]));
        assert_eq!(page("HugePages-1Gi", &both), Ok("1Gi".to_owned()));
        assert!(page("HugePages", &both).unwrap_err().contains("multiple huge page sizes"));
        assert!(page("HugePages-1Gi", &pod(json!([small]))).is_err());
    }
}
