//! Typed objects that stay in memory, without the room that their lists grew by while they were read.
//!
//! A list that is read from JSON grows by doubling, from four elements on: a pod's one container status takes the memory of four. Pods
//! are what a large cluster has most of.

use std::any::Any;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus, VolumeProjection};

/// Gives back the spare room of `object`'s lists, where it is of a kind that a cluster has many of.
pub(crate) fn compact(object: &mut dyn Any) {
    if let Some(pod) = object.downcast_mut::<Pod>() {
        fit(&mut pod.metadata.owner_references);
        fit(&mut pod.metadata.finalizers);
        pod.spec.as_mut().map(spec);
        pod.status.as_mut().map(status);
    }
}

fn fit<T>(list: &mut Option<Vec<T>>) {
    if let Some(list) = list {
        list.shrink_to_fit();
    }
}

fn spec(spec: &mut PodSpec) {
    spec.containers.shrink_to_fit();
    spec.containers.iter_mut().for_each(container);
    spec.init_containers.iter_mut().flatten().for_each(container);
    fit(&mut spec.init_containers);
    fit(&mut spec.image_pull_secrets);
    fit(&mut spec.tolerations);
    for volume in spec.volumes.iter_mut().flatten() {
        if let Some(projected) = &mut volume.projected {
            projected.sources.iter_mut().flatten().for_each(source);
            fit(&mut projected.sources);
        }
    }
    fit(&mut spec.volumes);
}

fn container(container: &mut Container) {
    fit(&mut container.command);
    fit(&mut container.args);
    fit(&mut container.env);
    fit(&mut container.env_from);
    fit(&mut container.ports);
    fit(&mut container.volume_mounts);
}

fn source(source: &mut VolumeProjection) {
    if let Some(map) = &mut source.config_map {
        fit(&mut map.items);
    }
    if let Some(downward) = &mut source.downward_api {
        fit(&mut downward.items);
    }
}

fn status(status: &mut PodStatus) {
    fit(&mut status.conditions);
    fit(&mut status.container_statuses);
    fit(&mut status.init_container_statuses);
    fit(&mut status.host_ips);
    fit(&mut status.pod_ips);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_takes_the_room_of_what_is_in_it() {
        let text = r#"{"spec": {"containers": [{"name": "a", "env": [{"name": "A"}]}], "tolerations": [{"key": "a"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "podIPs": [{"ip": "10.0.0.1"}]}}"#;
        let mut pod: Pod = serde_json::from_str(text).unwrap();
        let before = pod.clone();
        let room = |pod: &Pod| {
            let (spec, status) = (pod.spec.as_ref().unwrap(), pod.status.as_ref().unwrap());
            [
                spec.containers[0].env.as_ref().unwrap().capacity(),
                spec.tolerations.as_ref().unwrap().capacity(),
                status.conditions.as_ref().unwrap().capacity(),
                status.pod_ips.as_ref().unwrap().capacity(),
            ]
        };
        assert_ne!(room(&pod), [1; 4], "nothing to do any more");
        compact(&mut pod);
        assert_eq!(room(&pod), [1; 4]);
        assert_eq!(pod, before);
    }
}
