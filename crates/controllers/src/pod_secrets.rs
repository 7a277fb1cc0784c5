//! Which Secrets of its namespace a pod uses.
use k8s_openapi::api::core::v1::{Container, Pod, Volume};

/// Whether anything of the pod names the Secret: its containers' environments, its volumes, its image credentials.
pub(crate) fn uses(pod: &Pod, secret: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let in_volumes = || spec.volumes.iter().flatten().any(|volume| in_volume(volume, secret));
    // Ephemeral containers are a type of their own with the same environment.
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| Container {
        env: c.env.clone(),
        env_from: c.env_from.clone(),
        ..Container::default()
    });
    spec.image_pull_secrets.iter().flatten().any(|r| r.name == secret)
        || containers.cloned().chain(ephemeral).any(|c| in_environment(&c, secret))
        || in_volumes()
}

fn in_environment(container: &Container, secret: &str) -> bool {
    let of_variable = container.env.iter().flatten().any(|e| {
        let key = e.value_from.as_ref().and_then(|v| v.secret_key_ref.as_ref());
        key.is_some_and(|k| k.name == secret)
    });
    of_variable
        || container
            .env_from
            .iter()
            .flatten()
            .any(|e| e.secret_ref.as_ref().is_some_and(|r| r.name == secret))
}

fn in_volume(volume: &Volume, secret: &str) -> bool {
    let references = [
        volume.cephfs.as_ref().map(|v| &v.secret_ref),
        volume.cinder.as_ref().map(|v| &v.secret_ref),
        volume.flex_volume.as_ref().map(|v| &v.secret_ref),
        volume.rbd.as_ref().map(|v| &v.secret_ref),
        volume.iscsi.as_ref().map(|v| &v.secret_ref),
        volume.storageos.as_ref().map(|v| &v.secret_ref),
        volume.csi.as_ref().map(|v| &v.node_publish_secret_ref),
    ];
    let mut projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    references.into_iter().flatten().flatten().any(|r| r.name == secret)
        || volume.scale_io.as_ref().is_some_and(|v| v.secret_ref.name == secret)
        || volume.azure_file.as_ref().is_some_and(|v| v.secret_name == secret)
        || volume.secret.as_ref().is_some_and(|v| v.secret_name.as_deref() == Some(secret))
        || projected.any(|s| s.secret.as_ref().is_some_and(|s| s.name == secret))
}
