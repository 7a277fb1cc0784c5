//! Claiming: which objects of a kind a controller owns. Orphans that match are adopted, what stopped matching is released.
use std::sync::Arc;

use client::{Client, Kind, Patch};

use crate::ownership::{
    Claim, adoption_patch, claim, controller_ref, is_controlled_by, name, namespace, release_patch, uid,
};
use crate::runner::Failure;

/// Those of `objects` (all of the owner's namespace) that `owner` controls. `matches`: the owner selects the object;
/// `adopts`: an orphan that matches is worth adopting. An owner that is being deleted claims nothing new.
pub(crate) async fn claim_all<O: Kind, K: Kind>(
    client: &Client,
    owner: &O,
    objects: Vec<Arc<K>>,
    matches: impl Fn(&K) -> bool + Send + Sync,
    adopts: impl Fn(&K) -> bool + Send + Sync,
) -> Result<Vec<Arc<K>>, Failure> {
    let meta = owner.metadata();
    let ns = namespace(meta);
    if meta.deletion_timestamp.is_some() {
        return Ok(objects.into_iter().filter(|o| is_controlled_by(o.metadata(), uid(meta))).collect());
    }
    let mut owned = Vec::new();
    let mut verified = false;
    for object in objects {
        let object_uid = uid(object.metadata());
        let decision = claim(meta, matches(&object), object.metadata());
        let patch = match decision {
            Claim::Own => {
                owned.push(object);
                continue;
            }
            Claim::Ignore => continue,
            Claim::Adopt if !adopts(&object) => continue,
            Claim::Adopt => {
                if !verified {
                    // The cache may be behind: never adopt for an owner that is gone or going.
                    let live = client.get::<O>(ns, name(meta)).await?;
                    let live = live.metadata();
                    if uid(live) != uid(meta) || live.deletion_timestamp.is_some() {
                        let what = format!("{} {ns}/{} was deleted meanwhile", O::KIND, name(meta));
                        return Err(Failure::Invalid(what));
                    }
                    verified = true;
                }
                adoption_patch(&controller_ref(O::API_VERSION, O::KIND, meta), object_uid)
            }
            Claim::Release => release_patch(uid(meta), object_uid),
        };
        match client.patch::<K>(ns, name(object.metadata()), &Patch::Strategic(patch)).await {
            Ok(adopted) if decision == Claim::Adopt => owned.push(Arc::new(adopted)),
            Ok(_) => {}
            Err(e) if e.is_not_found() || e.is_conflict() || e.is_invalid() => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(owned)
}
