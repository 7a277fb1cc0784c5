//! What is kept on disk about sandboxes and containers, so that a restarted process finds them again.
//!
//! Written whole, by renaming; not synced: after a power loss no sandbox runs any more, and a damaged
//! record is thrown away.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use cri::v1;
use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use crate::{
    cdi::Injected, image::config::ImageConfig, protocol::ExitRecord, selinux::Labels, spec::ResolvedUser,
};

/// Name of the record in a sandbox's or container's folder.
const FILE: &str = "record.json";

/// A sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    pub(crate) config: v1::PodSandboxConfig,
    pub(crate) runtime_handler: String,
    /// Nanoseconds since 1970.
    pub(crate) created_at: i64,
    pub(crate) phase: SandboxPhase,
    pub(crate) ips: Vec<String>,
    /// Parent group of its containers.
    pub(crate) cgroup_parent: String,
    /// Groups above its containers that were made for it.
    pub(crate) made_groups: Vec<String>,
    /// Its network namespace's path; none with the node's network.
    pub(crate) netns: Option<PathBuf>,
    /// What its containers are labelled with, unless they ask for something else.
    #[serde(default)]
    pub(crate) selinux: Labels,
}

/// How far a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SandboxPhase {
    /// Not complete; cleaned up when found by a new process.
    Creating,
    /// Ready.
    Ready,
    /// Stopped, or its shim died.
    NotReady,
}

/// A container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) sandbox: String,
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    pub(crate) config: v1::ContainerConfig,
    /// What of its CDI devices the configuration has no words for.
    #[serde(flatten)]
    pub(crate) cdi: Injected,
    /// Id of its image.
    pub(crate) image: String,
    /// Digest reference of its image, when it has one; else the id.
    pub(crate) image_ref: String,
    /// Layers of its image, topmost first.
    pub(crate) layers: Vec<PathBuf>,
    /// Layers of the images that it mounts.
    #[serde(default)]
    pub(crate) volume_layers: Vec<PathBuf>,
    /// Where the volumes are that its image asks for. The first is the folder `volumes/0`.
    #[serde(default)]
    pub(crate) volumes: Vec<String>,
    pub(crate) image_config: ImageConfig,
    pub(crate) created_at: i64,
    pub(crate) cgroup: String,
    #[serde(default)]
    pub(crate) selinux: Labels,
    pub(crate) state: ContainerState,
}

/// How far a container is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerState {
    pub(crate) phase: ContainerPhase,
    /// First process, on the node.
    pub(crate) pid: i32,
    pub(crate) user: Option<ResolvedUser>,
    pub(crate) started_at: i64,
    pub(crate) finished_at: i64,
    pub(crate) exit_code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ContainerPhase {
    #[default]
    Created,
    Running,
    Exited,
}

impl ContainerRecord {
    /// Ids of the images that it uses: its own, and those that are volumes.
    pub(crate) fn images(&self) -> impl Iterator<Item = &str> {
        let volumes = self.config.mounts.iter().filter_map(|mount| mount.image.as_ref());
        let volumes = volumes.map(|image| image.image_ref.as_str()).filter(|id| !id.is_empty());
        volumes.chain([self.image.as_str()])
    }
}

impl ContainerState {
    /// The state after its end. The reasons are those kubelets know.
    pub(crate) fn exited(&self, record: &ExitRecord) -> ContainerState {
        let reason = match (record.oom, record.code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        };
        ContainerState {
            phase: ContainerPhase::Exited,
            pid: 0,
            finished_at: record.at,
            exit_code: record.code,
            reason: reason.to_owned(),
            ..self.clone()
        }
    }

    /// The state after an end that nobody saw.
    pub(crate) fn lost(&self, message: &str, at: i64) -> ContainerState {
        ContainerState {
            phase: ContainerPhase::Exited,
            pid: 0,
            finished_at: at,
            exit_code: 255,
            reason: "Unknown".to_owned(),
            message: message.to_owned(),
            ..self.clone()
        }
    }
}

/// Writes `record` into the folder `dir`.
pub(crate) fn save<T: Serialize>(dir: &Path, record: &T) -> io::Result<()> {
    let temporary = dir.join(format!("{FILE}.new"));
    fs::write(&temporary, serde_json::to_vec(record)?)?;
    fs::rename(temporary, dir.join(FILE))
}

/// Reads the record in `dir`.
pub(crate) fn load<T: DeserializeOwned>(dir: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(dir.join(FILE))?)?)
}

fn encode<M: Message, S: Serializer>(message: &M, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64_STANDARD.encode(message.encode_to_vec()))
}

fn decode<'de, M: Message + Default, D: Deserializer<'de>>(deserializer: D) -> Result<M, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = BASE64_STANDARD.decode(text).map_err(serde::de::Error::custom)?;
    M::decode(bytes.as_slice()).map_err(serde::de::Error::custom)
}
