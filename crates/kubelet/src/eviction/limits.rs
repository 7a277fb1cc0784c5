//! Limits of its own that a pod's use of the node's disk may pass: pure.
//!
//! Rule: Kubernetes documentation, "Local ephemeral storage".

use api::quantity::{Format, Quantity};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::rank::Layout;
use crate::usage::PodUsage;

const STORAGE: &str = "ephemeral-storage";

/// The quantity as it is written, and in bytes; a limit of nothing is none.
fn limit_of(container: &Container) -> Option<(&str, u64)> {
    let text = container.resources.as_ref()?.limits.as_ref()?.get(STORAGE)?.0.as_str();
    u64::try_from(crate::resources::units(text)).ok().filter(|bytes| *bytes > 0).map(|bytes| (text, bytes))
}

/// Whether there is anything to look at.
pub fn has_any(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    crate::resources::limited(pod, STORAGE).is_some()
        || spec.containers.iter().any(|container| limit_of(container).is_some())
        || spec.volumes.iter().flatten().any(|v| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some()))
}

/// Which limit the pod has passed, as metrics name it and in the words of its end.
pub fn passed(pod: &Pod, usage: &PodUsage, layout: Layout) -> Option<(&'static str, String)> {
    let spec = pod.spec.as_ref()?;
    for volume in spec.volumes.iter().flatten() {
        let Some(limit) = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref()) else {
            continue;
        };
        let bytes = usage.disk_volumes.get(&volume.name).or_else(|| usage.memory_volumes.get(&volume.name));
        let most = u64::try_from(crate::resources::units(&limit.0)).unwrap_or(0);
        if bytes.is_some_and(|bytes| most > 0 && *bytes > most) {
            let why = format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", volume.name, limit.0);
            return Some(("emptydirfs.limit", why));
        }
    }
    let whole = crate::resources::limited(pod, STORAGE);
    if let Some(whole) = whole.filter(|whole| usage.storage() > *whole) {
        let shown = Quantity::from_value(i64::try_from(whole).unwrap_or(i64::MAX), Format::BinarySi);
        let why =
            format!("Pod ephemeral local storage usage exceeds the total limit of containers {shown}. ");
        return Some(("ephemeralpodfs.limit", why));
    }
    for container in &spec.containers {
        let used = usage.containers.get(&container.name).copied().unwrap_or_default();
        // layers on a disk of their own take nothing from the node's
        let used = used.logs + if layout == Layout::One { used.layer } else { 0 };
        if let Some((text, _)) = limit_of(container).filter(|(_, limit)| used > *limit) {
            let why =
                format!("Container {} exceeded its local ephemeral storage limit {text:?}. ", container.name);
            return Some(("ephemeralcontainerfs.limit", why));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::usage::ContainerUsage;

    fn pod(a: Value, b: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "volumes": [{"name": "data", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "free", "emptyDir": {}}],
            "containers": [{"name": "a", "resources": {"limits": a}}, {"name": "b", "resources": {"limits": b}}]}}))
        .unwrap()
    }

    fn usage(volume: u64, a: u64, b: u64) -> PodUsage {
        let container = |layer| ContainerUsage { layer, logs: 1, ..ContainerUsage::default() };
        PodUsage {
            containers: [("a".to_owned(), container(a)), ("b".to_owned(), container(b))].into(),
            disk_volumes: [("data".to_owned(), volume), ("free".to_owned(), 0)].into(),
            ..PodUsage::default()
        }
    }

    #[test]
    fn each_limit_of_local_storage_has_its_words() {
        let limited = pod(json!({STORAGE: "2Mi"}), json!({STORAGE: "4Mi"}));
        let check = |usage: PodUsage, text: Option<&str>| {
            assert_eq!(passed(&limited, &usage, Layout::One).map(|(_, why)| why).as_deref(), text)
        };
        check(usage(1 << 20, 1 << 20, 1 << 20), None);
        check(
            usage((1 << 20) + 1, 0, 0),
            Some("Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". "),
        );
        check(
            usage(1 << 20, 3 << 20, 3 << 20),
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 6Mi. "),
        );
        check(usage(0, 3 << 20, 0), Some("Container a exceeded its local ephemeral storage limit \"2Mi\". "));
        let apart = passed(&limited, &usage(0, 3 << 20, 0), Layout::ImagesAndLayersApart);
        assert_eq!(apart, None, "only logs are on the node's disk");
    }

    #[test]
    fn a_limit_of_no_storage_binds_the_pod_not_its_container() {
        let none = pod(json!({STORAGE: "0"}), json!({}));
        assert!(has_any(&none));
        let found = passed(&none, &usage(0, 0, 0), Layout::One);
        assert_eq!(found.map(|(limit, _)| limit), Some("ephemeralpodfs.limit"));
    }
}
