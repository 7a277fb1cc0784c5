//! Cron jobs: a job at every time of a schedule.
//!
//! A job's name is made of the time it stands for, so that no time has two, wherever a pass is cut off. What is due follows from
//! `lastScheduleTime`; of several missed times only the latest is made up for.
mod times;

use std::sync::Arc;

use api::cron::Schedule;
use client::events::{EventType, reference};
use client::{Cache, Change, DeleteOptions};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use self::times::Times;
use crate::ownership::{controller_of, controller_ref, is_controlled_by, name, namespace, uid};
use crate::runner::{Context, Failure, ObjectKey, Outcome, Reconcile, Runner, has_cause};

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

struct Controller {
    context: Context,
    cron_jobs: Cache<CronJob>,
    jobs: Cache<Job>,
}

pub(crate) async fn run(context: Context) {
    let caches = context.reader.caches();
    let (cron_jobs, jobs) = (caches.of::<CronJob>(), caches.of::<Job>());
    let controller =
        Controller { context: context.clone(), cron_jobs: cron_jobs.clone(), jobs: jobs.clone() };
    Runner::new(&context, controller)
        .on(&cron_jobs, |_, change| [ObjectKey::of(&change.object().metadata)])
        .on(&jobs, |_, change| {
            let mut keys: Vec<_> = owner(change.object()).into_iter().collect();
            if let Change::Modified { old, .. } = change {
                keys.extend(owner(old).filter(|k| !keys.contains(k)));
            }
            keys
        })
        .run(5)
        .await;
}

/// The cron job that controls the job.
fn owner(job: &Job) -> Option<ObjectKey> {
    let owner = controller_of(&job.metadata).filter(|o| o.kind == "CronJob")?;
    Some(ObjectKey::new(namespace(&job.metadata), &owner.name))
}

/// The type of the condition that ended the job.
fn end_of(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let ended =
        conditions.iter().find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
    ended.map(|c| c.type_.as_str())
}

/// One pass over one cron job.
struct Pass<'a> {
    controller: &'a Controller,
    cron_job: &'a CronJob,
    spec: &'a CronJobSpec,
    status: CronJobStatus,
    now: Timestamp,
}

impl Pass<'_> {
    fn event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.controller.context.recorder.event(&reference(self.cron_job), kind, reason, message);
    }

    fn namespace(&self) -> &str {
        namespace(&self.cron_job.metadata)
    }

    fn is_active(&self, job_uid: &str) -> bool {
        self.status.active.iter().flatten().any(|r| r.uid.as_deref() == Some(job_uid))
    }

    fn drop_active(&mut self, job_uid: &str) {
        let list = self.status.active.get_or_insert_default();
        list.retain(|r| r.uid.as_deref() != Some(job_uid));
        if list.is_empty() {
            self.status.active = None;
        }
    }

    /// Deletes what the history limits no longer hold, the oldest first.
    async fn trim_history(&mut self, jobs: &[Arc<Job>]) -> Result<(), client::Error> {
        let limits = [
            ("Complete", self.spec.successful_jobs_history_limit),
            ("Failed", self.spec.failed_jobs_history_limit),
        ];
        for (end, limit) in limits {
            let Some(limit) = limit else { continue };
            let mut ended: Vec<_> = jobs.iter().filter(|j| end_of(j) == Some(end)).cloned().collect();
            let excess = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
            // A job that never started is the youngest.
            let start = |j: &Job| j.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
            ended.sort_by_key(|j| (start(j).is_none(), start(j), name(&j.metadata).to_owned()));
            for job in ended.iter().take(excess).filter(|j| j.metadata.deletion_timestamp.is_none()) {
                self.delete(job).await?;
            }
        }
        Ok(())
    }

    async fn delete(&mut self, job: &Job) -> Result<(), client::Error> {
        let options = DeleteOptions {
            uid: job.metadata.uid.clone(),
            propagation_policy: Some("Background"),
            ..DeleteOptions::default()
        };
        let (client, job_name) = (&self.controller.context.client, name(&job.metadata));
        match client.delete::<Job>(self.namespace(), job_name, &options).await {
            Ok(()) => {
                self.event(EventType::Normal, "SuccessfulDelete", format!("Deleted job {job_name}"));
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                self.event(EventType::Warning, "FailedDelete", format!("Deleted job: {error}"));
                return Err(error);
            }
        }
        self.drop_active(uid(&job.metadata));
        Ok(())
    }

    /// Brings the list of active jobs and the last success up to date.
    async fn observe(&mut self, jobs: &[Arc<Job>]) -> Result<(), client::Error> {
        for job in jobs {
            let job_uid = uid(&job.metadata);
            let Some(end) = end_of(job) else {
                if !self.is_active(job_uid) && !self.knows(job_uid).await? {
                    let message = format!(
                        "Saw a job that the controller did not create or forgot: {}",
                        name(&job.metadata)
                    );
                    self.event(EventType::Warning, "UnexpectedJob", message);
                }
                continue;
            };
            if self.is_active(job_uid) {
                self.drop_active(job_uid);
                let message = format!("Saw completed job: {}, condition: {end}", name(&job.metadata));
                self.event(EventType::Normal, "SawCompletedJob", message);
            }
            let completed = job.status.as_ref().and_then(|s| s.completion_time.clone());
            if let Some(time) = completed.filter(|_| end == "Complete")
                && self.status.last_successful_time.as_ref().is_none_or(|l| l.0 < time.0)
            {
                self.status.last_successful_time = Some(time);
            }
        }
        let listed = self.status.active.clone().unwrap_or_default();
        for entry in listed {
            let (job_uid, job_name) = (entry.uid.unwrap_or_default(), entry.name.unwrap_or_default());
            if jobs.iter().any(|j| uid(&j.metadata) == job_uid) {
                continue;
            }
            // Asked, not read from the cache, which may not show the job yet.
            match self.controller.context.client.get::<Job>(self.namespace(), &job_name).await {
                Ok(live) if uid(&live.metadata) == job_uid => {}
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {
                    let message = format!("Active job went missing: {job_name}");
                    self.event(EventType::Normal, "MissingJob", message);
                    self.drop_active(&job_uid);
                }
            }
        }
        Ok(())
    }

    /// Whether the cron job as it is now lists the job: the cache may be older.
    async fn knows(&self, job_uid: &str) -> Result<bool, client::Error> {
        let client = &self.controller.context.client;
        let live = client.get::<CronJob>(self.namespace(), name(&self.cron_job.metadata)).await?;
        let active = live.status.and_then(|s| s.active).unwrap_or_default();
        Ok(active.iter().any(|r| r.uid.as_deref() == Some(job_uid)))
    }

    /// The schedule; `None` when it cannot be followed, which an event says.
    fn times(&self) -> Option<Times> {
        let zone = match &self.spec.time_zone {
            // Without a zone of its own a schedule follows the machine's.
            None => TimeZone::system(),
            Some(zone_name) => match TimeZone::get(zone_name) {
                Ok(zone) => zone,
                Err(_) => {
                    let message = format!("invalid timeZone: {zone_name:?}: unknown time zone {zone_name}");
                    self.event(EventType::Warning, "UnknownTimeZone", message);
                    return None;
                }
            },
        };
        if self.spec.suspend == Some(true) {
            return None;
        }
        let schedule = match Schedule::parse(&self.spec.schedule) {
            Ok(schedule) => schedule,
            Err(why) => {
                let message = format!("unparseable schedule: {:?} : {why}", self.spec.schedule);
                self.event(EventType::Warning, "UnparseableSchedule", message);
                return None;
            }
        };
        let created = self.cron_job.metadata.creation_timestamp.as_ref().map_or(self.now, |t| t.0);
        let last = self.status.last_schedule_time.as_ref().map(|t| t.0);
        let deadline = self.spec.starting_deadline_seconds.map(SignedDuration::from_secs);
        Some(Times { schedule, zone, created, last, deadline })
    }

    /// Starts the job that is due, unless something speaks against it.
    async fn start_due(&mut self, times: &Times) -> Result<(), Failure> {
        let due = match times.due(self.now) {
            Ok(Some(due)) => due,
            Ok(None) => return Ok(()),
            Err(why) => {
                let message = format!("invalid schedule: {} : {why}", self.spec.schedule);
                self.event(EventType::Warning, "InvalidSchedule", message);
                return Ok(());
            }
        };
        if due.missed_many {
            let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.event(EventType::Warning, "TooManyMissedTimes", message);
        }
        if times.too_late(due.at, self.now) {
            let message = format!("Missed scheduled time to start a job: {}", times::shown(due.at));
            self.event(EventType::Warning, "MissSchedule", message);
            return Ok(());
        }
        let job = self.new_job(due.at, &times.zone);
        let listed = |n: &str| self.status.active.iter().flatten().any(|r| r.name.as_deref() == Some(n));
        if listed(name(&job.metadata)) || times.last == Some(due.at) {
            return Ok(());
        }
        let active = self.status.active.clone().unwrap_or_default();
        match self.spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.event(EventType::Normal, "JobAlreadyActive", message);
                return Ok(());
            }
            Some("Replace") => {
                for entry in active {
                    self.replace(entry.name.as_deref().unwrap_or_default()).await?;
                }
            }
            _ => {}
        }
        self.create(job, due.at).await
    }

    async fn replace(&mut self, job_name: &str) -> Result<(), client::Error> {
        match self.controller.context.client.get::<Job>(self.namespace(), job_name).await {
            Ok(job) => self.delete(&job).await,
            Err(error) => {
                self.event(EventType::Warning, "FailedGet", format!("Get job: {error}"));
                Err(error)
            }
        }
    }

    fn new_job(&self, at: Timestamp, zone: &TimeZone) -> Job {
        let template = self.spec.job_template.clone();
        let meta = template.metadata.unwrap_or_default();
        let mut annotations = meta.annotations.unwrap_or_default();
        let local = at.to_zoned(zone.clone());
        let format = if local.offset().is_zero() { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
        annotations.insert(SCHEDULED.to_owned(), local.strftime(format).to_string());
        let minutes = at.as_second().div_euclid(60);
        Job {
            metadata: ObjectMeta {
                name: Some(format!("{}-{minutes}", name(&self.cron_job.metadata))),
                namespace: self.cron_job.metadata.namespace.clone(),
                labels: meta.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![controller_ref("batch/v1", "CronJob", &self.cron_job.metadata)]),
                ..Default::default()
            },
            spec: template.spec,
            status: None,
        }
    }

    /// Creates the job and enters it; one that a pass before this made and did not enter is entered now.
    async fn create(&mut self, job: Job, at: Timestamp) -> Result<(), Failure> {
        let client = &self.controller.context.client;
        let job = match client.create(self.namespace(), &job).await {
            Ok(job) => {
                let message = format!("Created job {}", name(&job.metadata));
                self.event(EventType::Normal, "SuccessfulCreate", message);
                job
            }
            Err(error) if has_cause(&error, "NamespaceTerminating") => return Ok(()),
            Err(error) if error.is_already_exists() => {
                let live = client.get::<Job>(self.namespace(), name(&job.metadata)).await?;
                if !is_controlled_by(&live.metadata, uid(&self.cron_job.metadata))
                    || self.is_active(uid(&live.metadata))
                {
                    return Ok(());
                }
                live
            }
            Err(error) => {
                self.event(EventType::Warning, "FailedCreate", format!("Error creating job: {error}"));
                return Err(error.into());
            }
        };
        self.status.last_schedule_time = Some(Time(at));
        // What has ended meanwhile is not active.
        if end_of(&job).is_none() {
            self.status.active.get_or_insert_default().push(reference(&job));
        }
        Ok(())
    }

    /// Everything but writing the status; when to look again.
    async fn advance(&mut self, jobs: &[Arc<Job>]) -> Result<Outcome, Failure> {
        self.trim_history(jobs).await?;
        self.observe(jobs).await?;
        if self.cron_job.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Settled);
        }
        let Some(mut times) = self.times() else { return Ok(Outcome::Settled) };
        self.start_due(&times).await?;
        times.last = self.status.last_schedule_time.as_ref().map(|t| t.0);
        Ok(times.pause(self.now).into())
    }
}

impl Reconcile for Controller {
    type Key = ObjectKey;

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, Failure> {
        let Some(cron_job) = self.cron_jobs.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Settled);
        };
        let spec = &cron_job.spec;
        let mut jobs = self.jobs.list_ns(&key.namespace);
        jobs.retain(|j| is_controlled_by(&j.metadata, uid(&cron_job.metadata)));
        let status = cron_job.status.clone().unwrap_or_default();
        let now = self.context.clock.now();
        let mut pass = Pass { controller: self, cron_job: &cron_job, spec, status, now };
        let outcome = pass.advance(&jobs).await;
        // What was done counts, also when a later step failed.
        if pass.status != cron_job.status.clone().unwrap_or_default() {
            let mut next = (*cron_job).clone();
            next.status = Some(pass.status);
            self.context.client.update_status(&key.namespace, &next).await?;
        }
        outcome
    }
}
