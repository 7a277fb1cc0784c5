//! TTL after finished: jobs that say how long they may stay when they have ended are deleted then, pods first.
//!
//! The time runs from the condition Complete or Failed, which is in the API. A job is deleted only at the revision at which
//! it was read afresh: a longer time, given at the last moment, counts.
use client::{Cache, Change, DeleteOptions};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;

use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner};

struct Controller {
    context: Context,
    jobs: Cache<Job>,
}

pub(crate) async fn run(context: Context) {
    let jobs = context.reader.caches().of::<Job>();
    let controller = Controller { context: context.clone(), jobs: jobs.clone() };
    Runner::new(&context, controller)
        .on(&jobs, |_, change| match change {
            Change::Added(job) | Change::Modified { new: job, .. } if expires(job).is_some() => {
                Some(ObjectKey::of(&job.metadata))
            }
            _ => None,
        })
        .run(5)
        .await;
}

/// When the job may go; `None`: never, not yet known, or it is going.
fn expires(job: &Job) -> Option<Timestamp> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let end = conditions
        .iter()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    Some(end.last_transition_time.as_ref()?.0 + SignedDuration::from_secs(i64::from(seconds)))
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let left = |job: &Job| expires(job).map(|at| at.duration_since(self.context.clock.now()));
        let Some(job) = self.jobs.get(&key.namespace, &key.name) else { return Ok(Outcome::Settled) };
        match left(&job) {
            None => return Ok(Outcome::Settled),
            Some(left) if left > SignedDuration::ZERO => return Ok(Outcome::After(left.unsigned_abs())),
            Some(_) => {}
        }
        let live = match self.context.client.get::<Job>(&key.namespace, &key.name).await {
            Ok(live) => live,
            Err(error) if error.is_not_found() => return Ok(Outcome::Settled),
            Err(error) => return Err(error.into()),
        };
        match left(&live) {
            None => return Ok(Outcome::Settled),
            Some(left) if left > SignedDuration::ZERO => return Ok(Outcome::After(left.unsigned_abs())),
            Some(_) => {}
        }
        let options = DeleteOptions {
            uid: live.metadata.uid,
            resource_version: live.metadata.resource_version,
            propagation_policy: Some("Foreground"),
            ..DeleteOptions::default()
        };
        match self.context.client.delete::<Job>(&key.namespace, &key.name, &options).await {
            Ok(()) => Ok(Outcome::Settled),
            Err(error) if error.is_not_found() => Ok(Outcome::Settled),
            Err(error) => Err(error.into()),
        }
    }
}
