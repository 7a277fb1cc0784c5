//! Rolling a deployment back to an earlier revision because an annotation asks for it: what `spec.rollbackTo` was in versions
//! of the API that are no longer served. `kubectl rollout undo` writes the template itself and does not need it.
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::revisions::{ROLLBACK_TO, copied_annotations, revision, take_copied};
use crate::ownership::{annotations, name};
use crate::template::{POD_TEMPLATE_HASH, same_template};

/// What is said of a rollback, by reason and message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// The template is another one now.
    Done(String),
    /// Nothing was rolled back.
    Refused(&'static str, String),
}

/// The deployment to PUT, which asks for nothing any more, and what to say.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rollback {
    pub(super) deployment: Box<Deployment>,
    pub(super) said: Said,
}

/// The revision that is asked for, 0 for the one before the current; `None` when none is, or no number.
pub(super) fn asked(d: &Deployment) -> Option<i64> {
    annotations(&d.metadata).get(ROLLBACK_TO)?.parse().ok()
}

/// Brings the template and annotations of revision `to` back.
pub(super) fn rollback(d: &Deployment, sets: &[ReplicaSet], to: i64) -> Rollback {
    let mut next = Box::new(d.clone());
    if let Some(map) = next.metadata.annotations.as_mut() {
        map.remove(ROLLBACK_TO);
    }
    let refused = |next, reason, message| Rollback { deployment: next, said: Said::Refused(reason, message) };
    let not_found = "DeploymentRollbackRevisionNotFound";
    let to = if to == 0 { before_last(sets) } else { to };
    if to == 0 {
        return refused(next, not_found, "Unable to find last revision.".to_owned());
    }
    let found = sets.iter().find(|s| revision(&s.metadata) == to);
    let (Some(set), Some(spec)) = (found, next.spec.as_mut()) else {
        return refused(next, not_found, "Unable to find the revision to rollback to.".to_owned());
    };
    let template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
    if same_template(&template, &spec.template) {
        let message = format!(
            "The rollback revision contains the same template as current deployment \"{}\"",
            name(&d.metadata)
        );
        return refused(next, "DeploymentRollbackTemplateUnchanged", message);
    }
    spec.template = template;
    if let Some(labels) = spec.template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
        labels.remove(POD_TEMPLATE_HASH);
    }
    // The cause of that change comes back with it.
    take_copied(&mut next.metadata);
    copied_annotations(&set.metadata, &mut next.metadata);
    let message = format!("Rolled back deployment \"{}\" to revision {to}", name(&d.metadata));
    Rollback { deployment: next, said: Said::Done(message) }
}

/// The second highest revision; 0 when there is none.
fn before_last(sets: &[ReplicaSet]) -> i64 {
    let mut all: Vec<i64> = sets.iter().map(|s| revision(&s.metadata)).collect();
    all.sort_unstable();
    all.iter().rev().nth(1).copied().unwrap_or(0)
}
