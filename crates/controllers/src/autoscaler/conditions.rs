//! Conditions and metric values of an autoscaler's status.
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscalerCondition as Condition,
    MetricSpec, MetricStatus, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::calculator::Proposal;

/// Puts a condition in place of its type; the transition time stays where the status does.
pub(super) fn set(
    list: &mut Vec<Condition>,
    kind: &str,
    status: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let status = if status { "True" } else { "False" };
    let at = list.iter().position(|c| c.type_ == kind).unwrap_or_else(|| {
        list.push(Condition { type_: kind.to_owned(), ..Condition::default() });
        list.len() - 1
    });
    let condition = &mut list[at];
    if condition.status != status {
        condition.last_transition_time = Some(Time(now));
    }
    condition.status = status.to_owned();
    condition.reason = Some(reason.to_owned());
    condition.message = Some(message.to_owned());
}

/// How a metric stands, as `status.currentMetrics` shows it. `shared`: the value is one replica's share.
pub(super) fn metric(spec: &MetricSpec, found: Proposal, shared: bool) -> MetricStatus {
    let amount = Some(Quantity(api::quantity::Quantity::from_millis(found.value).to_string()));
    let current = match shared {
        true => {
            MetricValueStatus { average_value: amount, average_utilization: found.utilization, value: None }
        }
        false => MetricValueStatus { value: amount, ..MetricValueStatus::default() },
    };
    let mut status = MetricStatus { type_: spec.type_.clone(), ..MetricStatus::default() };
    if let Some(source) = &spec.resource {
        status.resource = Some(ResourceMetricStatus { name: source.name.clone(), current });
    } else if let Some(source) = &spec.container_resource {
        status.container_resource = Some(ContainerResourceMetricStatus {
            name: source.name.clone(),
            container: source.container.clone(),
            current,
        });
    } else if let Some(source) = &spec.pods {
        status.pods = Some(PodsMetricStatus { metric: source.metric.clone(), current });
    } else if let Some(source) = &spec.object {
        status.object = Some(ObjectMetricStatus {
            metric: source.metric.clone(),
            described_object: source.described_object.clone(),
            current,
        });
    } else if let Some(source) = &spec.external {
        status.external = Some(ExternalMetricStatus { metric: source.metric.clone(), current });
    }
    status
}
