//! Horizontal pod autoscalers over the metrics APIs, which a server of the test stands for.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Client, ListWatch, Selection, Transport, TransportError};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Event, Pod};
use serde_json::{Value, json};

use crate::hollow::Hollow;

/// Answers for the aggregated metrics servers; everything else goes on.
pub struct Metered {
    inner: Arc<dyn Transport>,
    answers: Mutex<BTreeMap<String, Value>>,
}

#[async_trait]
impl Transport for Metered {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let path = request.uri().path().to_owned();
        if !path.contains("metrics.k8s.io") {
            return self.inner.send(request).await;
        }
        let answer = self.answers.lock().expect("lock").get(&path).cloned();
        let (code, body) = answer.map_or((404, "404 page not found".to_owned()), |a| (200, a.to_string()));
        let body = http_body_util::Full::from(body).map_err(|never| match never {}).boxed_unsync();
        Ok(Response::builder().status(code).body(body).expect("answer"))
    }

    async fn list_watch(&self, selection: &Selection) -> Option<Result<ListWatch, client::Error>> {
        self.inner.list_watch(selection).await
    }
}

impl Metered {
    pub fn new(inner: Arc<dyn Transport>) -> Self {
        Self { inner, answers: Mutex::default() }
    }

    pub fn set(&self, path: &str, answer: Value) {
        self.answers.lock().expect("lock").insert(path.to_owned(), answer);
    }

    /// Every pod of `app` uses so many MiB.
    async fn memory(&self, cluster: &Hollow, app: &str, count: usize, mib: i64) {
        let of = |p: &Pod| p.metadata.labels.as_ref().is_some_and(|l| l.get("app").is_some_and(|a| a == app));
        let ready = |p: &Pod| {
            p.status.as_ref().is_some_and(|s| s.pod_ip.is_some()) && p.metadata.deletion_timestamp.is_none()
        };
        let pods = cluster.until::<Pod>("pods", |l| {
            l.iter().filter(|p| of(p)).count() == count && l.iter().filter(|p| of(p)).all(|p| ready(p))
        });
        let items: Vec<_> = pods.await.iter().filter(|p| of(p)).map(|p| {
            json!({"metadata": {"name": p.metadata.name}, "timestamp": cluster.now().to_string(), "window": "30s",
                "containers": [{"name": "c", "usage": {"memory": format!("{mib}Mi"), "cpu": "1"}}]})
        }).collect();
        self.set("/apis/metrics.k8s.io/v1beta1/namespaces/d/pods", json!({"items": items}));
    }
}

async fn start() -> (Hollow, Arc<Metered>) {
    let mut cluster = Hollow::start().await;
    cluster.stop_controllers().await;
    let inner = cluster.client.transport().clone();
    let metered = Arc::new(Metered::new(inner));
    let writer = Client::new(metered.clone());
    cluster.start_controllers_as(Some(Arc::new(move |_| writer.clone())));
    (cluster, metered)
}

pub fn deployment(name: &str, replicas: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [
            {"name": "c", "image": "i:1", "resources": {"requests": {"memory": "100Mi"}}}]}}}})
}

pub fn autoscaler(name: &str, target: Value, metrics: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"minReplicas": 1, "maxReplicas": 50, "scaleTargetRef": target, "metrics": metrics}})
}

fn half_of_memory() -> Value {
    json!([{"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 50}}}])
}

pub fn web() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"})
}

/// Lets time pass; a write stands for the timer.
async fn later(cluster: &Hollow, name: &str, seconds: i64) {
    cluster.clock.advance(seconds);
    let live = cluster.client.get::<HorizontalPodAutoscaler>("d", name).await.expect("autoscaler");
    let most = 101 - live.spec.max_replicas;
    cluster.merge::<HorizontalPodAutoscaler>("d", name, json!({"spec": {"maxReplicas": most}})).await;
}

/// Status, reason and message of a condition.
fn condition(a: &HorizontalPodAutoscaler, kind: &str) -> (String, String, String) {
    let list = a.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let found = list.into_iter().find(|c| c.type_ == kind).unwrap_or_default();
    (found.status, found.reason.unwrap_or_default(), found.message.unwrap_or_default())
}

async fn says(
    cluster: &Hollow,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
) -> Arc<HorizontalPodAutoscaler> {
    let want = (status.to_owned(), reason.to_owned(), message.to_owned());
    let what = format!("{kind} {want:?}");
    let all =
        cluster.until::<HorizontalPodAutoscaler>(&what, |l| l.iter().any(|a| condition(a, kind) == want));
    all.await.into_iter().find(|a| condition(a, kind) == want).expect("autoscaler")
}

async fn replicas(cluster: &Hollow, want: i32) {
    let of = |d: &Deployment| {
        d.spec.as_ref().and_then(|s| s.replicas) == Some(want)
            && d.status.as_ref().and_then(|s| s.replicas) == Some(want)
    };
    cluster.until::<Deployment>(&format!("{want} replicas"), |l| l.iter().any(|d| of(d))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_grows_at_once_and_shrinks_when_it_has_been_quiet_for_five_minutes() {
    let (cluster, metered) = start().await;
    cluster.create::<Deployment>("d", deployment("web", 2)).await;
    metered.memory(&cluster, "web", 2, 100).await;
    cluster.create::<HorizontalPodAutoscaler>("d", autoscaler("web", web(), half_of_memory())).await;
    replicas(&cluster, 4).await;
    let grown = says(
        &cluster,
        "AbleToScale",
        "True",
        "SucceededRescale",
        "the HPA controller was able to update the target scale to 4",
    )
    .await;
    let found = "the HPA was able to successfully calculate a replica count from memory resource utilization (percentage of request)";
    assert_eq!(condition(&grown, "ScalingActive"), ("True".into(), "ValidMetricFound".into(), found.into()));
    let status = grown.status.clone().expect("status");
    assert_eq!((status.current_replicas, status.desired_replicas), (Some(2), 4));
    let current = status.current_metrics.expect("metrics")[0].resource.clone().expect("resource").current;
    assert_eq!(
        (current.average_utilization, current.average_value.map(|q| q.0)),
        (Some(100), Some("104857600".into()))
    );
    cluster
        .until::<Event>("told", |l| {
            l.iter().any(|e| e.message.as_deref() == Some("New size: 4; reason: memory resource utilization (percentage of request) above target"))
        })
        .await;
    metered.memory(&cluster, "web", 4, 10).await;
    later(&cluster, "web", 0).await;
    let steady =
        "recent recommendations were higher than current one, applying the highest recent recommendation";
    says(&cluster, "AbleToScale", "True", "ScaleDownStabilized", steady).await;
    later(&cluster, "web", 301).await;
    replicas(&cluster, 1).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_measured_is_said_and_nothing_is_done() {
    let (cluster, metered) = start().await;
    let lost = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "lost"});
    cluster.create::<HorizontalPodAutoscaler>("d", autoscaler("lost", lost, half_of_memory())).await;
    let message = "the HPA controller was unable to get the target's current scale: deployments.apps \"lost\" not found";
    says(&cluster, "AbleToScale", "False", "FailedGetScale", message).await;
    cluster.delete::<HorizontalPodAutoscaler>("d", "lost", "Background").await;
    cluster.create::<Deployment>("d", deployment("web", 3)).await;
    replicas(&cluster, 3).await;
    cluster.create::<HorizontalPodAutoscaler>("d", autoscaler("web", web(), half_of_memory())).await;
    let message = "the HPA was unable to compute the replica count: unable to get metrics for resource memory: unable to fetch metrics from resource metrics API: the server could not find the requested resource (get pods.metrics.k8s.io)";
    says(&cluster, "ScalingActive", "False", "FailedGetResourceMetric", message).await;
    // Two of one target's pods.
    metered.memory(&cluster, "web", 3, 10).await;
    cluster.create::<HorizontalPodAutoscaler>("d", autoscaler("web2", web(), half_of_memory())).await;
    let message = "pods by selector app=web are controlled by multiple HPAs: [d/web d/web2]";
    says(&cluster, "ScalingActive", "False", "AmbiguousSelector", message).await;
    cluster.delete::<HorizontalPodAutoscaler>("d", "web2", "Background").await;
    cluster.merge::<Deployment>("d", "web", json!({"spec": {"replicas": 0}})).await;
    cluster
        .until::<Deployment>("none", |l| {
            l.iter().any(|d| d.status.as_ref().is_some_and(|s| s.replicas.unwrap_or(0) == 0))
        })
        .await;
    later(&cluster, "web", 0).await;
    let message = "scaling is disabled since the replica count of the target is zero";
    says(&cluster, "ScalingActive", "False", "ScalingDisabled", message).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custom_resource_follows_the_highest_of_pods_object_and_external_metrics_at_the_pace_of_its_policies()
 {
    let (cluster, metered) = start().await;
    let scale = json!({"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size", "labelSelectorPath": ".status.selector"});
    cluster.define("fleets", "Fleet", json!({"status": {}, "scale": scale})).await;
    let path = "/apis/example.com/v1/namespaces/d/fleets";
    let fleet = json!({"apiVersion": "example.com/v1", "kind": "Fleet", "metadata": {"name": "ships"}, "spec": {"size": 2}});
    let mut fleet: Value = cluster.client.call(Method::POST, path, Some(&fleet)).await.expect("fleet");
    fleet["status"] = json!({"size": 2, "selector": "app=ships"});
    let _: Value = cluster
        .client
        .call(Method::PUT, &format!("{path}/ships/status"), Some(&fleet))
        .await
        .expect("status");
    for name in ["a", "b"] {
        let pod = json!({"metadata": {"name": name, "labels": {"app": "ships"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
        cluster.create::<Pod>("d", pod).await;
    }
    let running = |p: &Pod| p.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
    cluster.until::<Pod>("running", |l| l.len() == 2 && l.iter().all(|p| running(p))).await;
    let custom = "/apis/custom.metrics.k8s.io";
    metered.set(custom, json!({"name": "custom.metrics.k8s.io", "versions": [], "preferredVersion": {"groupVersion": "custom.metrics.k8s.io/v1beta2", "version": "v1beta2"}}));
    let item = |name: &str, value: &str| json!({"describedObject": {"name": name}, "timestamp": cluster.now().to_string(), "value": value});
    metered.set(
        &format!("{custom}/v1beta2/namespaces/d/pods/*/load"),
        json!({"items": [item("a", "20"), item("b", "40")]}),
    );
    metered.set(
        &format!("{custom}/v1beta2/namespaces/d/services/front/requests"),
        json!({"items": [item("front", "1500m")]}),
    );
    metered.set(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/d/queue",
        json!({"items": [item("", "60"), item("", "40")]}),
    );
    let metrics = json!([
        {"type": "Pods", "pods": {"metric": {"name": "load"}, "target": {"type": "AverageValue", "averageValue": "20"}}},
        {"type": "Object", "object": {"metric": {"name": "requests"}, "describedObject": {"apiVersion": "v1", "kind": "Service", "name": "front"}, "target": {"type": "Value", "value": "1"}}},
        {"type": "External", "external": {"metric": {"name": "queue", "selector": {"matchLabels": {"of": "ships"}}}, "target": {"type": "AverageValue", "averageValue": "10"}}}]);
    let mut wanted = autoscaler(
        "ships",
        json!({"apiVersion": "example.com/v1", "kind": "Fleet", "name": "ships"}),
        metrics,
    );
    wanted["spec"]["behavior"] =
        json!({"scaleUp": {"policies": [{"type": "Pods", "value": 3, "periodSeconds": 60}]}});
    cluster.create::<HorizontalPodAutoscaler>("d", wanted).await;
    let message = "the HPA was able to successfully calculate a replica count from external metric queue(&LabelSelector{MatchLabels:map[string]string{of: ships,},MatchExpressions:[]LabelSelectorRequirement{},})";
    let a = says(&cluster, "ScalingActive", "True", "ValidMetricFound", message).await;
    let message = "the desired replica count is increasing faster than the maximum scale rate";
    assert_eq!(condition(&a, "ScalingLimited"), ("True".into(), "ScaleUpLimit".into(), message.into()));
    let status = a.status.clone().expect("status");
    assert_eq!((status.current_replicas, status.desired_replicas), (Some(2), 5));
    let current = serde_json::to_value(status.current_metrics).expect("json");
    let shown = |pointer: &str| current.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    assert_eq!(shown("/0/pods/current/averageValue").as_deref(), Some("30"));
    assert_eq!(shown("/1/object/current/value").as_deref(), Some("1500m"));
    assert_eq!(shown("/2/external/current/averageValue").as_deref(), Some("50"));
    let fleet: Value =
        cluster.client.call(Method::GET, &format!("{path}/ships"), None::<&()>).await.expect("fleet");
    assert_eq!(fleet["spec"]["size"], 5);
    cluster.stop().await;
}
