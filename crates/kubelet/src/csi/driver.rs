//! A CSI driver on this node, as its unix socket answers.

use tonic::{Code, Status};

use super::messages::{
    InfoRequest, NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesResponse,
    NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, Nothing, PluginInfo,
    RegistrationStatus,
};
pub use crate::grpc::{Plugin, told};

/// What the node service of a driver can do beyond the least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Volumes are staged once for the node, then published for each pod.
    pub stage: bool,
    /// It says how full volumes are.
    pub stats: bool,
    /// It grows file systems.
    pub expand: bool,
    /// It knows whether one or several of the node's pods write.
    pub single_node_multi_writer: bool,
    /// It gives a volume to a group by itself.
    pub mount_group: bool,
}

impl Plugin {
    /// What kind of plugin it is.
    pub async fn info(&self) -> Result<PluginInfo, Status> {
        self.call("/pluginregistration.Registration/GetInfo", InfoRequest {}).await
    }

    /// Tells the plugin whether it is registered.
    pub async fn notify(&self, outcome: Result<(), String>) -> Result<(), Status> {
        let status = RegistrationStatus {
            plugin_registered: outcome.is_ok(),
            error: outcome.err().unwrap_or_default(),
        };
        let method = "/pluginregistration.Registration/NotifyRegistrationStatus";
        self.call::<_, Nothing>(method, status).await.map(|_| ())
    }

    /// Who the node is to the driver.
    pub async fn node_info(&self) -> Result<NodeGetInfoResponse, Status> {
        self.call("/csi.v1.Node/NodeGetInfo", Nothing {}).await
    }

    /// What it can do.
    pub async fn capabilities(&self) -> Result<Capabilities, Status> {
        let answer: NodeGetCapabilitiesResponse =
            self.call("/csi.v1.Node/NodeGetCapabilities", Nothing {}).await?;
        let has = |wanted: i32| {
            answer.capabilities.iter().any(|c| c.rpc.as_ref().is_some_and(|rpc| rpc.r#type == wanted))
        };
        Ok(Capabilities {
            stage: has(1),
            stats: has(2),
            expand: has(3),
            single_node_multi_writer: has(5),
            mount_group: has(6),
        })
    }

    /// Makes a volume ready for the node.
    pub async fn stage(&self, request: NodeStageVolumeRequest) -> Result<(), Status> {
        self.call::<_, Nothing>("/csi.v1.Node/NodeStageVolume", request).await.map(|_| ())
    }

    /// Undoes that.
    pub async fn unstage(&self, request: NodeUnstageVolumeRequest) -> Result<(), Status> {
        self.call::<_, Nothing>("/csi.v1.Node/NodeUnstageVolume", request).await.map(|_| ())
    }

    /// Shows a volume at a pod's path.
    pub async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        self.call::<_, Nothing>("/csi.v1.Node/NodePublishVolume", request).await.map(|_| ())
    }

    /// Undoes that.
    pub async fn unpublish(&self, request: NodeUnpublishVolumeRequest) -> Result<(), Status> {
        self.call::<_, Nothing>("/csi.v1.Node/NodeUnpublishVolume", request).await.map(|_| ())
    }

    /// How full a volume is.
    pub async fn stats(
        &self,
        request: NodeGetVolumeStatsRequest,
    ) -> Result<NodeGetVolumeStatsResponse, Status> {
        self.call("/csi.v1.Node/NodeGetVolumeStats", request).await
    }

    /// Grows the file system of a volume that was grown.
    pub async fn expand(&self, request: NodeExpandVolumeRequest) -> Result<NodeExpandVolumeResponse, Status> {
        self.call("/csi.v1.Node/NodeExpandVolume", request).await
    }
}

/// Whether the call had no effect for sure: all other refusals leave that open.
pub fn is_final(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}
