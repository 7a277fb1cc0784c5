//! A pod's containers of all three kinds, and what the plan needs to know of one.

use k8s_openapi::api::core::v1::{Container as Spec, Pod};

/// Whether an init container is a sidecar.
pub fn is_sidecar(container: &Spec) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Changes when a running container must be made anew: an update may change nothing else of it but its image.
pub fn fingerprint(container: &Spec) -> String {
    // FNV-1a with 32 bits, the size other kubelets keep in this annotation
    let image = container.image.as_deref().unwrap_or_default();
    let hash = container
        .name
        .bytes()
        .chain([0])
        .chain(image.bytes())
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{hash:x}")
}

/// Ephemeral containers in the shape of the others.
pub fn ephemeral(pod: &Pod) -> Vec<Spec> {
    let list = pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten());
    list.map(|e| Spec {
        args: e.args.clone(),
        command: e.command.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        name: e.name.clone(),
        resources: e.resources.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        tty: e.tty,
        volume_devices: e.volume_devices.clone(),
        volume_mounts: e.volume_mounts.clone(),
        working_dir: e.working_dir.clone(),
        ..Spec::default()
    })
    .collect()
}

/// A container of the pod by name, and the field it stands in.
pub fn find(pod: &Pod, name: &str) -> Option<(Spec, &'static str)> {
    let spec = pod.spec.as_ref()?;
    if let Some(found) = spec.containers.iter().find(|c| c.name == name) {
        return Some((found.clone(), "containers"));
    }
    if let Some(found) = spec.init_containers.iter().flatten().find(|c| c.name == name) {
        return Some((found.clone(), "initContainers"));
    }
    ephemeral(pod).into_iter().find(|c| c.name == name).map(|found| (found, "ephemeralContainers"))
}
