//! Where a cluster keeps its things on this machine.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

/// The folders and names that follow from the cluster's folder.
#[derive(Clone, Debug)]
pub struct DataDir {
    root: PathBuf,
    instance: String,
}

impl DataDir {
    /// Makes the folder where it is missing. Its canonical path names the instance, so that several clusters
    /// can stand on one machine.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .with_context(|| format!("cannot make the cluster's folder {}", path.display()))?;
        Self::at(path)?.with_context(|| format!("{} vanished", path.display()))
    }

    /// The folder where it exists.
    pub fn at(path: &Path) -> anyhow::Result<Option<Self>> {
        match path.canonicalize() {
            Ok(root) => {
                let digest = Sha256::digest(root.as_os_str().as_encoded_bytes());
                let instance = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
                Ok(Some(Self { root, instance }))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Eight hexadecimal digits that tell this cluster from others on the machine.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// The token by which nodes join.
    pub fn join_token(&self) -> PathBuf {
        self.root.join("token")
    }

    /// Certificates of a node that joined.
    pub fn agent(&self) -> PathBuf {
        self.root.join("agent")
    }

    /// The API's data.
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// Images, layers, containers.
    pub fn runtime(&self) -> PathBuf {
        self.root.join("runtime")
    }

    /// Volumes of pods.
    pub fn kubelet(&self) -> PathBuf {
        self.root.join("kubelet")
    }

    /// Pods of this node's own, as files.
    pub fn static_pods(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// Addresses and attachments.
    pub fn network(&self) -> PathBuf {
        self.root.join("network")
    }

    /// What external CNI plugins made.
    pub fn cni(&self) -> PathBuf {
        self.root.join("cni")
    }

    /// The ranges that the cluster gave this node for its pods.
    pub fn pod_cidrs(&self) -> PathBuf {
        self.root.join("pod-cidrs")
    }

    /// The ranges of the cluster that this machine joined.
    pub fn cluster_network(&self) -> PathBuf {
        self.root.join("cluster-network.json")
    }

    /// Logs of the pods.
    pub fn pod_logs(&self) -> PathBuf {
        self.root.join("logs/pods")
    }

    /// Log of a server in the background.
    pub fn server_log(&self) -> PathBuf {
        self.root.join("logs/server.log")
    }

    /// The administrator's credential.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.root.join("admin.kubeconfig")
    }

    /// Names the kubeconfig that got our context.
    pub fn merged_into(&self) -> PathBuf {
        self.root.join("kubeconfig-path")
    }

    /// What dies with the boot: sockets, namespaces, the shims' folders.
    pub fn run(&self) -> PathBuf {
        Path::new("/run/navarch").join(&self.instance)
    }

    /// Where the runtime speaks CRI.
    pub fn cri_socket(&self) -> PathBuf {
        self.run().join("cri.sock")
    }

    /// Where the server takes images.
    pub fn image_socket(&self) -> PathBuf {
        self.run().join("images.sock")
    }

    /// Where the server writes backups for others.
    pub fn datastore_socket(&self) -> PathBuf {
        self.run().join("datastore.sock")
    }

    /// Our cgroup in every hierarchy.
    pub fn cgroup(&self) -> String {
        format!("/navarch-{}", self.instance)
    }

    fn lock_file(&self) -> PathBuf {
        self.root.join("server.lock")
    }

    /// Takes the cluster for this process until the result is dropped. The kernel lets go when the process
    /// ends, however it ends.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        let path = self.lock_file();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let pid = self.running()?.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
            bail!(
                "a server already runs on {} (process {pid}); stop it with `navarch down`, or use another --data-dir",
                self.root.display()
            );
        }
        file.set_len(0)
            .and_then(|()| write!(file, "{}", std::process::id()))
            .with_context(|| path.display().to_string())?;
        Ok(Lock { _file: file })
    }

    /// The process id of the server that runs on this folder.
    pub fn running(&self) -> anyhow::Result<Option<i32>> {
        let path = self.lock_file();
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return Ok(None);
        }
        let mut text = String::new();
        file.rewind()
            .and_then(|()| file.read_to_string(&mut text))
            .with_context(|| path.display().to_string())?;
        let pid = text.trim().parse().with_context(|| format!("{} holds no process id", path.display()))?;
        Ok(Some(pid))
    }
}

/// The cluster belongs to this process.
pub struct Lock {
    _file: File,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_server_is_refused_and_told_who_runs() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::create(folder.path()).unwrap();
        assert_eq!(data.running().unwrap(), None);
        let lock = data.lock().unwrap();
        let error = data.lock().map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert_eq!(data.running().unwrap(), Some(std::process::id() as i32));
        drop(lock);
        assert_eq!(data.running().unwrap(), None);
    }

    #[test]
    fn the_instance_follows_the_canonical_path() {
        let folder = tempfile::tempdir().unwrap();
        let a = DataDir::create(&folder.path().join("a")).unwrap();
        let same = DataDir::create(&folder.path().join("a/../a")).unwrap();
        let b = DataDir::create(&folder.path().join("b")).unwrap();
        assert_eq!(a.instance(), same.instance());
        assert_ne!(a.instance(), b.instance());
        assert!(DataDir::at(&folder.path().join("c")).unwrap().is_none());
    }
}
