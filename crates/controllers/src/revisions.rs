//! ControllerRevisions: the templates that a stateful set or daemon set had, numbered, for rollback.
//!
//! A revision is an object whose name is a function of its owner and content, so that a pass that is repeated after a crash
//! finds what it made before. `kubectl rollout` reads it: `data` is the strategic merge patch that brings its template back.
//! Source: <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#revision-history>.
use std::sync::Arc;

use api::selector::LabelSelector;
use client::{Cache, DeleteOptions, Kind};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};

use crate::claims::claim_all;
use crate::ownership::{controller_ref, is_controlled_by, labels, name, namespace, uid};
use crate::runner::{Context, Failure};
use crate::template::{pod_template_hash, same_template};

/// Label that says which revision a pod was made from.
pub(crate) const REVISION_HASH: &str = "controller-revision-hash";

/// The longest owner's name that leaves room for the hash in a name of 253 characters.
const PREFIX: usize = 223;

/// What a pass wants to be the newest revision.
pub(crate) struct Wanted<'a> {
    /// The owner's template now.
    pub(crate) template: &'a PodTemplateSpec,
    /// The label of the revision that holds the hash.
    pub(crate) hash_label: &'static str,
    /// Collisions of names seen so far.
    pub(crate) collisions: i32,
}

/// The history with the wanted template at its end.
pub(crate) struct History {
    /// Oldest first; the last is the current template's.
    pub(crate) revisions: Vec<Arc<ControllerRevision>>,
    /// The revision of the current template.
    pub(crate) update: Arc<ControllerRevision>,
    /// Collisions of names seen, for the status.
    pub(crate) collisions: i32,
}

/// The revisions of `owner`, oldest first; adopts and releases on the way.
pub(crate) async fn claim<O: Kind>(
    context: &Context,
    cache: &Cache<ControllerRevision>,
    owner: &O,
    selector: &LabelSelector,
) -> Result<Vec<Arc<ControllerRevision>>, Failure> {
    let all = cache.list_ns(namespace(owner.metadata()));
    let matches = |r: &ControllerRevision| selector.matches(labels(&r.metadata));
    let mut owned = claim_all(&context.client, owner, all, matches, |_| true).await?;
    sort(&mut owned);
    Ok(owned)
}

fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    let key = |r: &ControllerRevision| {
        (r.revision, r.metadata.creation_timestamp.as_ref().map(|t| t.0), name(&r.metadata).to_owned())
    };
    revisions.sort_by_key(|r| key(r));
}

/// The newest revision of that template.
pub(crate) fn find(
    revisions: &[Arc<ControllerRevision>],
    template: &PodTemplateSpec,
) -> Option<Arc<ControllerRevision>> {
    revisions.iter().rfind(|r| is_of(r, template)).cloned()
}

fn is_of(revision: &ControllerRevision, template: &PodTemplateSpec) -> bool {
    template_of(revision).is_some_and(|t| same_template(&t, template))
}

/// Makes the current template the newest revision: creates it, or raises the number of an earlier one (a rollback).
pub(crate) async fn settle<O: Kind>(
    context: &Context,
    owner: &O,
    mut revisions: Vec<Arc<ControllerRevision>>,
    wanted: &Wanted<'_>,
) -> Result<History, Failure> {
    let next = revisions.last().map_or(0, |r| r.revision) + 1;
    match revisions.iter().rposition(|r| is_of(r, wanted.template)) {
        Some(at) => {
            let mut update = revisions.remove(at);
            if at < revisions.len() {
                let mut raised = (*update).clone();
                raised.revision = next;
                update = Arc::new(context.client.update(namespace(owner.metadata()), &raised).await?);
            }
            revisions.push(update.clone());
            Ok(History { revisions, update, collisions: wanted.collisions })
        }
        None => {
            let (update, collisions) = create(context, owner, wanted, next).await?;
            revisions.push(update.clone());
            Ok(History { revisions, update, collisions })
        }
    }
}

async fn create<O: Kind>(
    context: &Context,
    owner: &O,
    wanted: &Wanted<'_>,
    revision: i64,
) -> Result<(Arc<ControllerRevision>, i32), Failure> {
    let mut collisions = wanted.collisions;
    let ns = namespace(owner.metadata());
    loop {
        let object = new_revision(owner, wanted, collisions, revision);
        match context.client.create(ns, &object).await {
            Ok(made) => return Ok((Arc::new(made), collisions)),
            Err(error) if error.is_already_exists() => {
                let there = context.client.get::<ControllerRevision>(ns, name(&object.metadata)).await?;
                if !is_of(&there, wanted.template) {
                    collisions += 1;
                } else if is_controlled_by(&there.metadata, uid(owner.metadata())) {
                    // Made by an earlier pass; the cache does not show it yet.
                    return Ok((Arc::new(there), collisions));
                } else {
                    // Of an owner of the same name that is on its way out, or an orphan that the cache will show.
                    let what = format!("the revision {} is not ours yet", name(&there.metadata));
                    return Err(Failure::Invalid(what));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn new_revision<O: Kind>(
    owner: &O,
    wanted: &Wanted<'_>,
    collisions: i32,
    revision: i64,
) -> ControllerRevision {
    let meta = owner.metadata();
    let hash = pod_template_hash(wanted.template, collisions);
    let mut labels = wanted.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    labels.insert(wanted.hash_label.to_owned(), hash.clone());
    let prefix: String = name(meta).chars().take(PREFIX).collect();
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{prefix}-{hash}")),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            // `kubectl rollout history` reads the cause of the change here.
            annotations: meta.annotations.clone(),
            owner_references: Some(vec![controller_ref(O::API_VERSION, O::KIND, meta)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data(wanted.template))),
        revision,
    }
}

/// The patch that brings the template back.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template that the revision holds.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// Takes out of the history what holds the current template a second time, as adoption or a crash may leave behind.
pub(crate) fn take_twins(history: &mut History, template: &PodTemplateSpec) -> Vec<Arc<ControllerRevision>> {
    let update = name(&history.update.metadata).to_owned();
    let (twins, rest) =
        history.revisions.drain(..).partition(|r| name(&r.metadata) != update && is_of(r, template));
    history.revisions = rest;
    twins
}

/// Deletes the oldest revisions that are not `live` until `limit` of those are left.
pub(crate) async fn truncate(
    context: &Context,
    revisions: &[Arc<ControllerRevision>],
    live: impl Fn(&ControllerRevision) -> bool,
    limit: Option<i32>,
) -> Result<(), Failure> {
    let Some(limit) = limit.and_then(|l| usize::try_from(l).ok()) else { return Ok(()) };
    let old: Vec<_> = revisions.iter().filter(|r| !live(r)).cloned().collect();
    for revision in old.iter().take(old.len().saturating_sub(limit)) {
        let meta = &revision.metadata;
        let options = DeleteOptions { uid: meta.uid.clone(), ..DeleteOptions::default() };
        match context.client.delete::<ControllerRevision>(namespace(meta), name(meta), &options).await {
            Ok(()) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::StatefulSet;

    fn set() -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d", "uid": "u", "annotations": {"kubernetes.io/change-cause": "why"}},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i:1"}]}}},
        }))
        .expect("set")
    }

    #[test]
    fn a_revision_is_the_patch_that_brings_its_template_back() {
        let set = set();
        let template = &set.spec.as_ref().expect("spec").template;
        let wanted = Wanted { template, hash_label: "controller.kubernetes.io/hash", collisions: 0 };
        let revision = new_revision(&set, &wanted, 0, 3);
        expect_test::expect![[r#"{"apiVersion":"apps/v1","data":{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"image":"i:1","name":"c"}]}}}},"kind":"ControllerRevision","metadata":{"annotations":{"kubernetes.io/change-cause":"why"},"labels":{"app":"web","controller.kubernetes.io/hash":"mvrpp6nhbj"},"name":"web-mvrpp6nhbj","namespace":"d","ownerReferences":[{"apiVersion":"apps/v1","blockOwnerDeletion":true,"controller":true,"kind":"StatefulSet","name":"web","uid":"u"}]},"revision":3}"#]]
            .assert_eq(&serde_json::to_value(&revision).expect("json").to_string());
        assert_eq!(template_of(&revision).as_ref(), Some(template));
        assert_ne!(new_revision(&set, &wanted, 1, 3).metadata.name, revision.metadata.name);
    }
}
