//! Owner references: who controls an object, and the adoption and release rules every workload controller shares.
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// The object's labels, empty when it has none.
pub fn labels(meta: &ObjectMeta) -> &BTreeMap<String, String> {
    meta.labels.as_ref().unwrap_or(&NO_LABELS)
}

/// The object's annotations, empty when it has none.
pub fn annotations(meta: &ObjectMeta) -> &BTreeMap<String, String> {
    meta.annotations.as_ref().unwrap_or(&NO_LABELS)
}

/// The object's name, empty before the server named it.
pub fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// The object's namespace, empty for cluster-scoped objects.
pub fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

/// The object's uid, empty before creation.
pub fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

/// The one owner reference with `controller: true`.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|r| r.controller == Some(true))
}

/// Whether `meta` is controlled by the object with `uid`.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|r| r.uid == uid)
}

/// The reference a controller puts on what it creates: it is the controller, and foreground deletion waits for it.
pub fn controller_ref(api_version: &str, kind: &str, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: name(owner).to_owned(),
        uid: uid(owner).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// What a controller does about one object of the kind it manages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It is ours and matches.
    Own,
    /// It is an orphan that matches: set the controller reference.
    Adopt,
    /// It is ours but no longer matches: drop the controller reference.
    Release,
    /// It is none of our business.
    Ignore,
}

/// Decides about `object` for the controller `owner`; `matches`: it is one of those the owner selects.
pub fn claim(owner: &ObjectMeta, matches: bool, object: &ObjectMeta) -> Claim {
    match controller_of(object) {
        Some(reference) if reference.uid != uid(owner) => Claim::Ignore,
        Some(_) if matches => Claim::Own,
        Some(_) if owner.deletion_timestamp.is_some() => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner.deletion_timestamp.is_some() || !matches => Claim::Ignore,
        None if object.deletion_timestamp.is_some() => Claim::Ignore,
        None if namespace(owner) != namespace(object) => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// Strategic merge patch that adopts the object with `object_uid`; the uid in it is the precondition.
pub fn adoption_patch(reference: &OwnerReference, object_uid: &str) -> Value {
    json!({"metadata": {"ownerReferences": [reference], "uid": object_uid}})
}

/// Strategic merge patch that takes the owner `owner_uid` off the object with `object_uid`.
pub fn release_patch(owner_uid: &str, object_uid: &str) -> Value {
    json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": owner_uid}], "uid": object_uid}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(owner: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            owner_references: owner.map(|uid| {
                vec![OwnerReference { uid: uid.to_owned(), controller: Some(true), ..Default::default() }]
            }),
            ..Default::default()
        }
    }

    #[test]
    fn claims_follow_selector_and_controller() {
        let owner = ObjectMeta { uid: Some("me".into()), ..Default::default() };
        let check = |matches: bool, by: Option<&str>, want| {
            assert_eq!(claim(&owner, matches, &meta(by)), want, "{matches} {by:?}");
        };
        check(true, Some("me"), Claim::Own);
        check(false, Some("me"), Claim::Release);
        check(true, None, Claim::Adopt);
        check(false, None, Claim::Ignore);
        check(true, Some("other"), Claim::Ignore);
    }

    #[test]
    fn a_controller_being_deleted_neither_adopts_nor_releases() {
        let owner = ObjectMeta {
            uid: Some("me".into()),
            deletion_timestamp: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                jiff::Timestamp::UNIX_EPOCH,
            )),
            ..Default::default()
        };
        assert_eq!(claim(&owner, true, &meta(None)), Claim::Ignore);
        assert_eq!(claim(&owner, false, &meta(Some("me"))), Claim::Ignore);
    }
}
