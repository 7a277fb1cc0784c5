//! The pods a job makes: its template, the finalizer that keeps a pod until it is counted, and the completion index.
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::plan::{NewPod, per_index};
use super::policy::{self, Verdict};
use crate::ownership::{annotations, controller_ref, name};

/// Keeps a pod in the API until the job's status counts it.
pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const INDEX_ENV: &str = "JOB_COMPLETION_INDEX";
/// The longest prefix the server puts its five random characters behind.
const LONGEST_PREFIX: usize = 58;

/// Whether the pod waits to be counted.
pub(super) fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

/// The pod's completion index; `None` where it has none or it cannot be read.
pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    annotations(&pod.metadata).get(INDEX)?.parse().ok().filter(|i| *i >= 0)
}

fn number(pod: &Pod, annotation: &str) -> u32 {
    let value = annotations(&pod.metadata).get(annotation).and_then(|v| v.parse::<i32>().ok());
    value.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

/// How often the pod's index failed before it, as far as that counts.
pub(super) fn counted_failures(pod: &Pod) -> u32 {
    number(pod, FAILURES)
}

/// How often the pod's index failed before it, ignored failures included.
pub(super) fn all_failures(pod: &Pod) -> u32 {
    number(pod, FAILURES).saturating_add(number(pod, IGNORED))
}

/// A pod of `job`.
pub(super) fn new_pod(job: &Job, new: &NewPod) -> Option<Pod> {
    let template = &job.spec.as_ref()?.template;
    let meta = template.metadata.clone().unwrap_or_default();
    let job_name = name(&job.metadata);
    let mut finalizers = meta.finalizers.unwrap_or_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    let mut pod = Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{job_name}-")),
            namespace: job.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: Some(finalizers),
            owner_references: Some(vec![controller_ref("batch/v1", "Job", &job.metadata)]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    };
    if let Some(index) = new.index {
        put_index(&mut pod, job_name, index);
        if per_index(job) {
            put_failures(&mut pod, job, new.replaces.as_deref());
        }
    }
    Some(pod)
}

fn put_index(pod: &mut Pod, job_name: &str, index: i32) {
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    let tail = format!("-{index}-");
    let head: String = job_name.chars().take(LONGEST_PREFIX - tail.len()).collect();
    pod.metadata.generate_name = Some(head + &tail);
    let Some(spec) = &mut pod.spec else { return };
    spec.hostname = Some(format!("{job_name}-{index}"));
    spec.init_containers.iter_mut().flatten().chain(&mut spec.containers).for_each(put_index_env);
}

fn put_index_env(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|v| v.name == INDEX_ENV) {
        return;
    }
    let field = ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), api_version: None };
    env.push(EnvVar {
        name: INDEX_ENV.to_owned(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(field), ..Default::default() }),
    });
}

/// The new pod carries on the count of the one it replaces.
fn put_failures(pod: &mut Pod, job: &Job, replaced: Option<&Pod>) {
    let (mut counted, mut ignored) = replaced.map_or((0, 0), |p| (number(p, FAILURES), number(p, IGNORED)));
    if let Some(replaced) = replaced {
        let policy = job.spec.as_ref().and_then(|s| s.pod_failure_policy.as_ref());
        if policy::of_failed(policy, replaced) == Verdict::Ignore {
            ignored += 1;
        } else {
            counted += 1;
        }
    }
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(FAILURES.to_owned(), counted.to_string());
    if ignored > 0 {
        annotations.insert(IGNORED.to_owned(), ignored.to_string());
    }
}
