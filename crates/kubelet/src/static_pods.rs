//! Pods that are files in a folder of this node: they run whether or not the API can be reached, and the API shows an
//! image of each ([`crate::mirror`]).
//!
//! Rule: Kubernetes documentation, "Create static Pods". A file that cannot be read changes nothing: what it said
//! before still holds, so that a half-written file ends no pod.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Toleration, VolumeProjection};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::folder_watch::FolderWatch;
use crate::references;

/// Annotation: where the pod comes from; `file` here, `api` or nothing for the others.
pub const SOURCE: &str = "kubernetes.io/config.source";
/// Annotation: a digest of the pod's definition.
pub const HASH: &str = "kubernetes.io/config.hash";
/// Annotation of the image in the API: the digest of the pod that it shows.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// Annotation: when the definition was first read.
const SEEN: &str = "kubernetes.io/config.seen";
/// Larger files are no pods.
const LARGEST: u64 = 3 << 20;

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Whether the pod comes from elsewhere than the API.
pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, SOURCE).is_some_and(|source| source != "api")
}

/// The digest of the static pod that this object of the API shows.
pub fn mirrored(pod: &Pod) -> Option<&str> {
    annotation(pod, MIRROR)
}

/// The static pod of a file.
fn parse(text: &[u8], path: &Path, node: &str) -> Result<Pod, String> {
    let (value, _) = api::codec::parse_yaml(text).map_err(|error| error.to_string())?;
    let kind = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    if (kind(&value, "apiVersion"), kind(&value, "kind")) != ("v1".to_owned(), "Pod".to_owned()) {
        return Err("not a Pod of v1".to_owned());
    }
    let mut pod: Pod = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let name =
        pod.metadata.name.clone().filter(|name| !name.is_empty()).ok_or("metadata.name: Required value")?;
    let Some(spec) = pod.spec.as_mut().filter(|spec| !spec.containers.is_empty()) else {
        return Err("spec.containers: Required value".to_owned());
    };
    spec.node_name = Some(node.to_owned());
    spec.automount_service_account_token = Some(false);
    // a node's own pods stay when it is tainted
    spec.tolerations.get_or_insert_default().push(Toleration {
        effect: Some("NoExecute".to_owned()),
        operator: Some("Exists".to_owned()),
        ..Toleration::default()
    });
    let account = spec.service_account_name.as_deref().is_some_and(|name| !name.is_empty());
    let digest =
        Sha256::new().chain_update(node).chain_update([0]).chain_update(path.as_os_str().as_encoded_bytes());
    let digest = digest.chain_update([0]).chain_update(text).finalize();
    let uid: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let meta = &mut pod.metadata;
    meta.name = Some(format!("{name}-{}", node.to_lowercase()));
    if meta.namespace.as_deref().is_none_or(str::is_empty) {
        meta.namespace = Some("default".to_owned());
    }
    meta.uid = Some(uid.clone());
    meta.deletion_timestamp = None;
    meta.owner_references = None;
    let annotations = meta.annotations.get_or_insert_default();
    annotations.remove(MIRROR);
    annotations.insert(SOURCE.to_owned(), "file".to_owned());
    annotations.insert(HASH.to_owned(), uid);
    annotations.insert(SEEN.to_owned(), Timestamp::now().to_string());
    pod.status = None;
    if account || !references::of(&pod).is_empty() || uses_claims(&pod) {
        return Err("static pods may not reference other API objects".to_owned());
    }
    Ok(pod)
}

/// Whether it needs claims, or tokens and certificates that the API makes for pods that it knows.
fn uses_claims(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let from_api = |source: &VolumeProjection| {
        source.service_account_token.is_some()
            || source.cluster_trust_bundle.is_some()
            || source.pod_certificate.is_some()
    };
    let devices = spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty());
    devices
        || spec.volumes.iter().flatten().any(|volume| {
            let projected = volume.projected.as_ref().and_then(|projected| projected.sources.as_ref());
            volume.persistent_volume_claim.is_some()
                || volume.ephemeral.is_some()
                || projected.into_iter().flatten().any(from_api)
        })
}

/// The folder, and what its files said.
pub struct Source {
    folder: PathBuf,
    node: String,
    known: BTreeMap<PathBuf, (Vec<u8>, Arc<Pod>)>,
}

impl Source {
    /// Of the node of that name; nothing is read yet.
    pub fn new(folder: PathBuf, node: String) -> Self {
        Self { folder, node, known: BTreeMap::new() }
    }

    /// The pods as the files now say. Of two with one name the first file's counts.
    pub fn read(&mut self) -> Vec<Arc<Pod>> {
        let mut present = BTreeSet::new();
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            // a link is followed: that is how files are put into place in one step
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            if hidden || !metadata.is_file() {
                continue;
            }
            present.insert(path.clone());
            if metadata.len() > LARGEST {
                tracing::warn!(path = %path.display(), "too large for a static pod");
                continue;
            }
            let Ok(text) = std::fs::read(&path) else { continue };
            if self.known.get(&path).is_some_and(|(known, _)| *known == text) {
                continue;
            }
            match parse(&text, &path, &self.node) {
                Ok(pod) => drop(self.known.insert(path, (text, Arc::new(pod)))),
                Err(why) => tracing::warn!(path = %path.display(), why, "not a static pod"),
            }
        }
        self.known.retain(|path, _| present.contains(path));
        let mut names = BTreeSet::new();
        let mut pods = Vec::new();
        for (path, (_, pod)) in &self.known {
            if names.insert((pod.metadata.namespace.clone(), pod.metadata.name.clone())) {
                pods.push(pod.clone());
            } else {
                tracing::warn!(path = %path.display(), "another file has a pod of that name");
            }
        }
        pods
    }

    /// Follows the folder until `stop`.
    pub async fn follow(mut self, pods: watch::Sender<Vec<Arc<Pod>>>, stop: CancellationToken) {
        let watch = match FolderWatch::new(&self.folder) {
            Ok(watch) => watch,
            Err(error) => {
                tracing::warn!(%error, folder = %self.folder.display(), "static pods cannot be followed");
                return;
            }
        };
        loop {
            // after the watch stands, so that nothing falls between
            let read = self.read();
            pods.send_if_modified(|known| {
                let changed = *known != read;
                *known = read;
                changed
            });
            tokio::select! {
                () = stop.cancelled() => return,
                changed = watch.changed() => if let Err(error) = changed {
                    tracing::warn!(%error, "static pods are no longer followed");
                    return;
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: 'web:1'}]}\n";

    #[test]
    fn a_file_is_a_pod_of_the_node_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut source = Source::new(dir.path().to_owned(), "Node1".to_owned());
        assert!(source.read().is_empty());
        std::fs::write(dir.path().join("web.yaml"), POD).unwrap();
        std::fs::write(dir.path().join(".hidden"), POD).unwrap();
        std::fs::write(dir.path().join("zz.yaml"), POD).unwrap();
        let pods = source.read();
        assert_eq!(pods.len(), 1, "one name, one pod");
        let first = pods[0].clone();
        assert_eq!(first.metadata.name.as_deref(), Some("web-node1"));
        assert_eq!(first.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(first.spec.as_ref().unwrap().node_name.as_deref(), Some("Node1"));
        assert!(is_static(&first) && mirrored(&first).is_none());
        assert_eq!(source.read(), std::slice::from_ref(&first), "the same file is the same pod");
        std::fs::write(dir.path().join("web.yaml"), "apiVersion: v1\nkind: Po").unwrap();
        assert_eq!(source.read(), std::slice::from_ref(&first));
        std::fs::write(dir.path().join("web.yaml"), POD.replace("web:1", "web:2")).unwrap();
        let changed = source.read();
        assert_ne!(changed[0].metadata.uid, first.metadata.uid);
        std::fs::remove_file(dir.path().join("web.yaml")).unwrap();
        std::fs::remove_file(dir.path().join("zz.yaml")).unwrap();
        assert!(source.read().is_empty());
    }

    #[test]
    fn what_needs_the_api_cannot_be_static() {
        let check = |text: &str, why: &str| {
            let error = parse(text.as_bytes(), Path::new("/x"), "n").expect_err(text);
            assert!(error.contains(why), "{error}");
        };
        check(
            &POD.replace("spec: {", "spec: {serviceAccountName: sa, "),
            "may not reference other API objects",
        );
        check(
            &POD.replace("spec: {", "spec: {volumes: [{name: v, secret: {secretName: s}}], "),
            "may not reference other API objects",
        );
        check(
            &POD.replace("spec: {", "spec: {volumes: [{name: v, persistentVolumeClaim: {claimName: s}}], "),
            "may not reference other API objects",
        );
        check(
            &POD.replace("spec: {", "spec: {resourceClaims: [{name: c, resourceClaimName: c}], "),
            "may not reference other API objects",
        );
        let token = "spec: {volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}], ";
        check(&POD.replace("spec: {", token), "may not reference other API objects");
        check(&POD.replace("kind: Pod", "kind: Service"), "not a Pod");
        check("apiVersion: v1\nkind: Pod\nmetadata: {}\nspec: {containers: [{name: c}]}", "metadata.name");
        check("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: []}", "spec.containers");
    }
}
