//! Folders of an NFS server, mounted for each pod by the machine's own `mount.nfs`.
//!
//! Rule: Kubernetes documentation, "Volumes" (`nfs`).

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::NFSVolumeSource;
use rustix::mount::{UnmountFlags, unmount};

use super::host::Host;

/// Mounts the folder into the pod whose folder `dir` is, under the volume's name; nothing happens where it is. With the pod's folder it
/// goes again.
pub async fn mount(
    host: &Host,
    source: &NFSVolumeSource,
    (name, read_only, options): (&str, bool, &[String]),
    dir: &Path,
) -> Result<PathBuf, String> {
    let target = dir.join("volumes/kubernetes.io~nfs").join(name);
    if crate::volumes::is_mounted(&target).map_err(|error| error.to_string())? {
        return Ok(target);
    }
    std::fs::create_dir_all(&target).map_err(|error| format!("{}: {error}", target.display()))?;
    let server = match source.server.parse() {
        Ok(std::net::IpAddr::V6(address)) => format!("[{address}]"),
        _ => source.server.clone(),
    };
    let read_only = read_only.then(|| "ro".to_owned());
    let options: Vec<String> = read_only.into_iter().chain(options.iter().cloned()).collect();
    let mounted = host.mount(&format!("{server}:{}", source.path), &target, "nfs", &options).await;
    mounted.map(|()| target.clone()).map_err(|error| {
        // it may have come half the way
        let _ = unmount(&target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let _ = std::fs::remove_dir(&target);
        format!("mount failed: {error}")
    })
}
