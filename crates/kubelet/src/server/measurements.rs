//! What `/stats/summary` and `/metrics` are made of: the runtime and the kubelet are asked, [`stats`] and [`metrics`] put it in words.

use http::{Response, StatusCode};
use k8s_openapi::api::core::v1::Pod;

use super::answers::{Body, Refusal, exposition, json, refused};
use super::{About, Server, metrics, stats};

impl Server {
    /// What the runtime measures now.
    pub(super) async fn measure(&self) -> Result<metrics::Measured, Refusal> {
        let (mut one, mut two) = (self.runtime.clone(), self.runtime.clone());
        let (containers, sandboxes) = tokio::join!(
            one.list_container_stats(cri::v1::ListContainerStatsRequest::default()),
            two.list_pod_sandbox_stats(cri::v1::ListPodSandboxStatsRequest::default()),
        );
        let containers = containers.map_err(refused)?.into_inner().stats;
        let sandboxes = sandboxes.map_err(refused)?.into_inner().stats;
        Ok(metrics::Measured { containers, sandboxes })
    }

    pub(super) async fn cadvisor(&self) -> Result<Response<Body>, Refusal> {
        let (mut one, mut two) = (self.runtime.clone(), self.runtime.clone());
        let (measured, descriptors, pods) = tokio::join!(
            self.measure(),
            one.list_metric_descriptors(cri::v1::ListMetricDescriptorsRequest {}),
            two.list_pod_sandbox_metrics(cri::v1::ListPodSandboxMetricsRequest {}),
        );
        // a runtime without metrics of its own leaves those out
        let described = match (descriptors, pods) {
            (Ok(descriptors), Ok(pods)) => metrics::Described {
                descriptors: descriptors.into_inner().descriptors,
                pods: pods.into_inner().pod_metrics,
            },
            _ => metrics::Described::default(),
        };
        let disk = stats::file_system(&self.about);
        Ok(exposition(metrics::cadvisor(&self.pods.pods(), &measured?, &described, Some(&disk))))
    }

    pub(super) async fn own_metrics(&self) -> Result<Response<Body>, Refusal> {
        let volumes = self.pods.volumes().await;
        let About { node, version, .. } = &self.about;
        Ok(exposition(metrics::own(metrics::Own {
            node,
            version,
            pods: &self.pods.pods(),
            counts: self.pods.counts(),
            samples: self.pods.samples(),
            volumes: &volumes,
            certificate: self.certificate.seconds_left(),
        })))
    }

    pub(super) async fn stats(&self, extent: stats::Extent) -> Result<Response<Body>, Refusal> {
        let mut images = self.images.clone();
        let (measured, volumes, images) = tokio::join!(
            self.measure(),
            self.pods.volumes(),
            images.image_fs_info(cri::v1::ImageFsInfoRequest::default()),
        );
        let measured = measured?;
        // a runtime that cannot say leaves that part out
        let images = images.map(tonic::Response::into_inner).unwrap_or_default();
        let (handler, node) = (self.pods.clone(), self.about.clone());
        let summary = tokio::task::spawn_blocking(move || {
            let pods = handler.pods();
            let storage = |pod: &Pod| handler.storage(pod);
            stats::summary(&node, &pods, &measured, (&images, &volumes), &storage, extent)
        });
        let failed = |_| (StatusCode::INTERNAL_SERVER_ERROR, "measuring was cut short".to_owned());
        json(&summary.await.map_err(failed)?)
    }
}
