//! Which run's log is meant.
//!
//! Rule: upstream's choice by the container's status, where `previous` is what its last state says: of a container that waits for
//! its next run that is the one that ended last.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;

use crate::cri_config::{NodeSettings, log_dir};
use crate::observed::Run;
use crate::worker::Snapshot;

/// The log of a container's newest run, or of the one before. The error is a message for the client.
pub fn of_run(
    settings: &NodeSettings,
    pod: &Pod,
    snapshot: &Snapshot,
    container: &str,
    previous: bool,
) -> Result<PathBuf, String> {
    let mut runs = snapshot.observed.runs(container).filter(|run| run.run != Run::Created).peekable();
    let waits = snapshot.waiting.contains_key(container) && pod.metadata.deletion_timestamp.is_none();
    let is_last = runs.peek().is_some_and(|newest| newest.run == Run::Exited) && waits;
    if let Some(run) = runs.nth(usize::from(previous && !is_last)) {
        return Ok(log_dir(settings, pod).join(container).join(format!("{}.log", run.attempt)));
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if previous {
        return Err(format!("previous terminated container {container:?} in pod {name:?} not found"));
    }
    let known = snapshot.waiting.get(container).map(|(reason, _)| reason.clone());
    let reason = match known.or_else(|| told(pod, container)).as_deref() {
        Some("ErrImagePull") => "image can't be pulled".to_owned(),
        Some("ImagePullBackOff") => "trying and failing to pull image".to_owned(),
        Some(reason) => reason.to_owned(),
        None => "ContainerCreating".to_owned(),
    };
    Err(format!("container {container:?} in pod {name:?} is waiting to start: {reason}"))
}

/// What the pod's status says that a container waits for.
fn told(pod: &Pod, container: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let found = lists.into_iter().flatten().flatten().find(|status| status.name == container)?;
    found.state.as_ref()?.waiting.as_ref()?.reason.clone()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::observed::{Container, Observed};

    fn run(attempt: u32, run: Run) -> Container {
        let text = String::new;
        Container {
            id: attempt.to_string(),
            name: "c".to_owned(),
            sandbox: text(),
            attempt,
            run,
            created: Timestamp::UNIX_EPOCH,
            started: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
            exit_code: 0,
            reason: text(),
            message: text(),
            image: text(),
            image_id: text(),
            fingerprint: text(),
            log_path: text(),
            user: None,
            recursive: Vec::new(),
            resources: None,
        }
    }

    #[test]
    fn the_log_before_is_that_of_the_run_that_ended_last() {
        let check = |runs: &[Run], waits: Option<&str>, expected: [Result<u32, &str>; 2]| {
            let pod =
                serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}}));
            let count = u32::try_from(runs.len()).unwrap();
            let containers = (0..count).rev().zip(runs).map(|(attempt, now)| run(attempt, *now)).collect();
            let snapshot = Snapshot {
                observed: Observed { containers, ..Observed::default() },
                waiting: waits
                    .map(|why| ("c".to_owned(), (why.to_owned(), String::new())))
                    .into_iter()
                    .collect(),
                ..Snapshot::default()
            };
            let pod: Pod = pod.unwrap();
            let settings = NodeSettings { logs: "/logs".into(), ..NodeSettings::default() };
            let found = [false, true].map(|previous| of_run(&settings, &pod, &snapshot, "c", previous));
            let expected = expected.map(|path| {
                let path = path.map(|attempt| PathBuf::from(format!("/logs/d_p_u/c/{attempt}.log")));
                path.map_err(|why| why.replacen('C', "container \"c\" in pod \"p\"", 1))
            });
            assert_eq!(found, expected, "{runs:?} {waits:?}");
        };
        let none = "previous terminated C not found";
        let crashes = Some("CrashLoopBackOff");
        check(&[Run::Running], None, [Ok(0), Err(none)]);
        check(&[Run::Running, Run::Exited], None, [Ok(1), Ok(0)]);
        check(&[Run::Exited], crashes, [Ok(0), Ok(0)]);
        check(&[Run::Exited, Run::Exited], crashes, [Ok(1), Ok(1)]);
        check(&[Run::Exited, Run::Exited], None, [Ok(1), Ok(0)]);
        check(&[Run::Created, Run::Exited], None, [Ok(0), Err(none)]);
        check(&[], Some("ErrImagePull"), [Err("C is waiting to start: image can't be pulled"), Err(none)]);
        check(&[], None, [Err("C is waiting to start: ContainerCreating"), Err(none)]);
    }
}
