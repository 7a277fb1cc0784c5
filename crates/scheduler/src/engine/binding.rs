//! The engine's part that ends an attempt: what a pod was given is written down, or taken back.
use tokio::sync::OwnedSemaphorePermit;

use super::{Engine, Outcome};
use crate::assumed::Assumed;
use crate::hints::Event;
use crate::metrics::Ended;
use crate::pod_info::PodInfo;
use crate::report::{Bound, Nomination};
use crate::{devices, message, volumes};

impl Engine {
    /// Has a pod bound that took its place.
    pub(crate) fn dispatch(
        &mut self,
        worker: usize,
        pod: PodInfo,
        assumed: Assumed,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let Assumed { node, decisions, given, .. } = assumed;
        if !decisions.is_empty() {
            self.decisions.insert(pod.uid.clone(), decisions.clone());
        }
        if !given.is_empty() {
            self.given.insert(pod.uid.clone(), given.clone());
        }
        self.notify(&Event::Placed(&pod));
        let (reporter, outcomes) = (self.workers[worker].reporter.clone(), self.outcomes.clone());
        let (client, permits) = (self.client.clone(), self.permits.clone());
        let profile = self.workers[worker].evaluator.profile();
        let (patience, device_patience) = (profile.bind_timeout, profile.device_timeout);
        let (metrics, attempt) = (self.metrics.clone(), self.queue.attempt(&pod.uid));
        let profile = profile.scheduler_name.clone();
        let ended = move |how: Ended| {
            if let Some(attempt) = attempt {
                metrics.attempt(&profile, how, attempt);
            }
        };
        let binder = self.extenders.iter().find(|e| e.binds() && e.is_interested(&pod.pod)).cloned();
        tokio::spawn(async move {
            let mut permit = match permit {
                Some(permit) => Some(permit),
                None => permits.clone().acquire_owned().await.ok(),
            };
            let failed = async |plugin: &'static str, error: String| {
                let text = format!("running PreBind plugin {plugin:?}: {error}");
                reporter.failed(&pod.pod, "SchedulerError", &text, Nomination::Keep).await;
                ended(Ended::Error);
                let _ = outcomes.send(Outcome::Bound(pod.uid.clone(), Bound::Failed));
            };
            if !decisions.is_empty() || !given.is_empty() {
                // Others are to know for which node volumes and devices are made ready.
                reporter.nominate(&pod.pod, &node).await;
            }
            if !decisions.is_empty() {
                // Volumes may take minutes: others are not to wait for them.
                drop(permit.take());
                let bound = volumes::bind::bind(&client, &decisions, &node, patience).await;
                permit = permits.clone().acquire_owned().await.ok();
                if let Err(error) = bound {
                    return failed("VolumeBinding", error.to_string()).await;
                }
            }
            let written = match devices::bind::bind(&client, &given, &pod.pod).await {
                Ok(written) => written,
                Err(error) => return failed("DynamicResources", error.to_string()).await,
            };
            let withdraw = async || {
                if let Some(claim) = &written.made {
                    devices::bind::withdraw(&client, claim).await;
                }
            };
            if !written.later.is_empty() {
                reporter.waits_for_devices(&pod.pod, &node);
                drop(permit.take());
                let ready = devices::bind::ready(&client, &written.later, device_patience).await;
                permit = permits.acquire_owned().await.ok();
                if let Err(error) = ready {
                    withdraw().await;
                    return failed("DynamicResources", error.to_string()).await;
                }
            }
            let bound = reporter.bind(&pod.pod, &node, binder.as_deref()).await;
            if bound == Bound::Done {
                ended(Ended::Scheduled);
            } else {
                ended(Ended::Error);
                withdraw().await;
            }
            // The engine may be gone by now, at shutdown.
            let _ = outcomes.send(Outcome::Bound(pod.uid, bound));
            drop(permit);
        });
    }

    pub(super) fn ended(&mut self, outcome: Outcome) {
        if let Outcome::Bound(uid, _) = &outcome
            && let Some(decisions) = self.decisions.remove(uid)
        {
            self.snapshot.volumes_mut().settle(&decisions);
        }
        if let Outcome::Bound(uid, how) = &outcome
            && let Some(given) = self.given.remove(uid)
            && *how != Bound::Done
        {
            self.snapshot.devices_mut().take_back(&given);
        }
        match outcome {
            // The watch may tell of the bound pod before or after this; either removes it from the queue.
            Outcome::Bound(uid, Bound::Done) => self.queue.remove(&uid),
            Outcome::Bound(uid, Bound::Moot | Bound::Failed) => {
                // Already told by the watch where it really is (or that it is gone): nothing to undo.
                if self.queue.get(&uid).is_none() {
                    return;
                }
                if let Some((_, freed)) = self.snapshot.remove(&uid) {
                    self.notify(&Event::Freed(&freed));
                }
                self.queue.failed(&uid);
            }
            Outcome::Preempted { uid, rejected_by, victims, failed } => {
                self.queue.unschedulable(&uid, rejected_by);
                // What happened while it was in flight woke nobody.
                if failed || victims.iter().any(|v| !self.snapshot.is_placed(v)) {
                    self.queue.wake_one(&uid);
                }
            }
        }
    }

    /// A claim that an earlier attempt made is deleted; one that holds devices of the wrong node, or that are not ready in time, and
    /// that nobody uses gives them back. What there is to say.
    pub(super) fn deallocate(&self, worker: usize, pod: &PodInfo) -> &'static str {
        let since = self.workers[worker].evaluator.profile().devices_since();
        let Ok(Some(needs)) = devices::needs::Needs::of(pod, self.snapshot.devices(), since) else {
            return message::NO_CLAIMS;
        };
        if let Some(key) = needs.stale_claim() {
            let (client, key) = (self.client.clone(), key.to_owned());
            tokio::spawn(async move {
                if let Err(error) = devices::bind::delete(&client, &key).await {
                    tracing::warn!(claim = key, error = &error as &dyn std::error::Error, "not deleted");
                }
            });
            return message::DELETED;
        }
        let nodes: Vec<_> = self.snapshot.order().iter().map(|slot| self.snapshot.node(*slot)).collect();
        let Some(key) = needs.idle_claim(pod, &nodes, since) else { return message::STILL };
        let (client, key) = (self.client.clone(), key.to_owned());
        tokio::spawn(async move {
            if let Err(error) = devices::bind::deallocate(&client, &key).await {
                tracing::warn!(claim = key, error = &error as &dyn std::error::Error, "not deallocated");
            }
        });
        message::DEALLOCATED
    }
}
