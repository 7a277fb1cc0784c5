//! The three metrics APIs, which aggregated servers answer: metrics.k8s.io, custom.metrics.k8s.io, external.metrics.k8s.io.
use client::{Client, Error, encode};
use http::Method;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::MetricIdentifier;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, LabelSelector};
use serde_json::Value;

use super::calculator::{Sample, Samples, millis, sum};

/// What a value without a window is an average of.
const WINDOW: SignedDuration = SignedDuration::from_mins(1);
const CUSTOM: &str = "custom.metrics.k8s.io";

/// Asks with the controller's identity.
pub(super) struct Metrics<'a> {
    pub(super) client: &'a Client,
    pub(super) namespace: &'a str,
}

impl Metrics<'_> {
    async fn items(&self, path: &str, what: &str) -> Result<Vec<Value>, String> {
        match self.client.call::<_, Value>(Method::GET, path, None::<&()>).await {
            Ok(mut list) => match list["items"].take() {
                Value::Array(items) => Ok(items),
                _ => Ok(Vec::new()),
            },
            // The server's own text says no more than that there is no such page.
            Err(error) if error.is_not_found() && !has_details(&error) => {
                Err(format!("the server could not find the requested resource (get {what})"))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// What the pods, or their containers of that name, use of a resource.
    pub(super) async fn resource(
        &self,
        resource: &str,
        selector: &str,
        container: Option<&str>,
    ) -> Result<Samples, String> {
        let path = format!(
            "/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods?labelSelector={}",
            self.namespace,
            encode(selector)
        );
        let items = self.items(&path, "pods.metrics.k8s.io").await;
        let items = items.map_err(|e| format!("unable to fetch metrics from resource metrics API: {e}"))?;
        if items.is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        let mut samples = Samples::new();
        for item in &items {
            let pod = item["metadata"]["name"].as_str().unwrap_or_default();
            let containers: Vec<_> = item["containers"].as_array().into_iter().flatten().collect();
            let usage = |c: &&Value| c["usage"][resource].as_str().map(millis);
            let value = match container {
                // A pod counts only when all its containers report.
                None => containers.iter().map(usage).collect::<Option<Vec<_>>>().map(|v| sum(v.into_iter())),
                Some(wanted) => {
                    let Some(found) = containers.iter().find(|c| c["name"] == wanted) else {
                        return Err(format!(
                            "container {wanted} not present in metrics for pod {}/{pod}",
                            self.namespace
                        ));
                    };
                    usage(found)
                }
            };
            let window = item["window"].as_str().and_then(|w| w.parse().ok()).unwrap_or(WINDOW);
            if let Some(value) = value.filter(|_| !containers.is_empty()) {
                samples.insert(pod.to_owned(), Sample { value, at: time(item), window });
            }
        }
        Ok(samples)
    }

    /// The version in which custom metrics are served.
    async fn custom_version(&self) -> Result<String, String> {
        let path = format!("/apis/{CUSTOM}");
        match self.client.call::<_, APIGroup>(Method::GET, &path, None::<&()>).await {
            Ok(group) => {
                let first = group.preferred_version.or_else(|| group.versions.into_iter().next());
                Ok(first.map_or_else(|| "v1beta1".to_owned(), |v| v.version))
            }
            Err(error) if error.is_not_found() => Err(format!("no custom metrics API ({CUSTOM}) registered")),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn custom(
        &self,
        object: &str,
        metric: &MetricIdentifier,
        query: &str,
    ) -> Result<Vec<Value>, String> {
        let asked = async {
            let version = self.custom_version().await?;
            let path = format!(
                "/apis/{CUSTOM}/{version}/{object}/{}?metricLabelSelector={}{query}",
                encode(&metric.name),
                encode(&query_of(metric.selector.as_ref()))
            );
            self.items(&path, &format!("{}.{CUSTOM}", metric.name)).await
        };
        let items: Result<_, String> = asked.await;
        let items = items.map_err(|e| format!("unable to fetch metrics from custom metrics API: {e}"))?;
        if items.is_empty() {
            return Err("no metrics returned from custom metrics API".to_owned());
        }
        Ok(items)
    }

    /// A metric of the pods.
    pub(super) async fn pods(&self, metric: &MetricIdentifier, selector: &str) -> Result<Samples, String> {
        let object = format!("namespaces/{}/pods/*", self.namespace);
        let items = self.custom(&object, metric, &format!("&labelSelector={}", encode(selector))).await?;
        let sample = |item: &Value| {
            let window = item["windowSeconds"].as_i64().map_or(WINDOW, SignedDuration::from_secs);
            let pod = item["describedObject"]["name"].as_str().unwrap_or_default().to_owned();
            (pod, Sample { value: value(item), at: time(item), window })
        };
        Ok(items.iter().map(sample).collect())
    }

    /// A metric of one object of a resource (`services`, `ingresses.networking.k8s.io`).
    pub(super) async fn object(
        &self,
        metric: &MetricIdentifier,
        resource: &str,
        name: &str,
    ) -> Result<i64, String> {
        let object = if resource == "namespaces" {
            format!("namespaces/{name}/metrics")
        } else {
            format!("namespaces/{}/{resource}/{name}", self.namespace)
        };
        let items = self.custom(&object, metric, "").await?;
        Ok(items.first().map_or(0, value))
    }

    /// The sum of an external metric's values.
    pub(super) async fn external(&self, metric: &MetricIdentifier) -> Result<i64, String> {
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{}?labelSelector={}",
            self.namespace,
            encode(&metric.name),
            encode(&query_of(metric.selector.as_ref()))
        );
        let items = self.items(&path, &format!("{}.external.metrics.k8s.io", metric.name)).await;
        let items = items.map_err(|e| format!("unable to fetch metrics from external metrics API: {e}"))?;
        if items.is_empty() {
            return Err("no metrics returned from external metrics API".to_owned());
        }
        Ok(sum(items.iter().map(value)))
    }
}

fn has_details(error: &Error) -> bool {
    error.status().is_some_and(|s| s.details.is_some())
}

fn value(item: &Value) -> i64 {
    item["value"].as_str().map_or(0, millis)
}

fn time(item: &Value) -> Timestamp {
    item["timestamp"].as_str().and_then(|t| t.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A selector as a query: `a=b,c in (d,e),!f`.
fn query_of(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return String::new() };
    let pairs = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.match_expressions.iter().flatten().map(|e| {
        let values = e.values.clone().unwrap_or_default().join(",");
        match e.operator.as_str() {
            "In" => format!("{} in ({values})", e.key),
            "NotIn" => format!("{} notin ({values})", e.key),
            "DoesNotExist" => format!("!{}", e.key),
            _ => e.key.clone(),
        }
    });
    pairs.chain(expressions).collect::<Vec<_>>().join(",")
}
