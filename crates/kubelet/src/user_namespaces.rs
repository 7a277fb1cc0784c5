//! Which users and groups of the node a pod has that asked for users of its own (`hostUsers: false`): a range that no
//! other pod of the node has, remembered in the pod's folder for as long as the pod lives.
//!
//! Rule: KEP-127; Kubernetes documentation, "User Namespaces". As there, ids below 65536 are never given, and who has a
//! user `kubelet` with subordinate ids (subuid(5)) has said which ones may be.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use cri::v1;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::files::write_json;

/// Ids are given in multiples of so many.
pub const UNIT: u32 = 65536;
/// The file in a pod's folder.
const FILE: &str = "userns";
/// The user whose subordinate ids are given to pods.
const USER: &str = "kubelet";

/// One range as it is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

/// What a pod's file holds.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mappings {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

/// Ids that pods may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// The first one.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// So many for each pod.
    pub per_pod: u32,
}

impl Ids {
    /// Those of this node, enough for `max_pods`.
    pub fn of_node(per_pod: u32, max_pods: u64) -> Result<Ids, String> {
        let read = |path: &str| match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            result => result.map_err(|error| format!("{path}: {error}")),
        };
        let files = (read("/etc/passwd")?, read("/etc/subuid")?, read("/etc/subgid")?);
        Ids::of((&files.0, &files.1, &files.2), per_pod, max_pods)
    }

    fn of((passwd, subuid, subgid): (&str, &str, &str), per_pod: u32, max_pods: u64) -> Result<Ids, String> {
        let user = passwd.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| *name == USER);
        let uid = user.and_then(|(_, rest)| rest.split(':').nth(1)).unwrap_or_default();
        let given = match user {
            Some(_) => (subordinate(subuid, uid)?, subordinate(subgid, uid)?),
            None => (None, None),
        };
        let ids = match given {
            (Some((first, count)), groups) if groups == Some((first, count)) => Ids { first, count, per_pod },
            (None, None) => {
                // all there are above the node's own, but for the last one, which stands for none
                Ids { first: per_pod, count: (u32::MAX / per_pod - 1) * per_pod, per_pod }
            }
            _ => return Err("kubelet user has different subordinate uids and gids".to_owned()),
        };
        ids.check(max_pods)?;
        Ok(ids)
    }

    fn check(&self, max_pods: u64) -> Result<(), String> {
        let Ids { first, count, per_pod } = *self;
        if first % per_pod != 0 {
            return Err(format!("kubelet user assigned ID {first} is not a multiple of {per_pod}"));
        }
        if first < per_pod {
            return Err(format!("kubelet user assigned ID {first} must be greater or equal to {per_pod}"));
        }
        if count % per_pod != 0 {
            return Err(format!("kubelet user assigned IDs length {count} is not a multiple of {per_pod}"));
        }
        if u64::from(count / per_pod) < max_pods {
            return Err(format!("kubelet user assigned IDs are not enough to support {max_pods} pods"));
        }
        Ok(())
    }
}

/// The subordinate ids of the kubelet's user: first and how many.
fn subordinate(file: &str, uid: &str) -> Result<Option<(u32, u32)>, String> {
    let mut found =
        file.lines().filter_map(|line| line.split_once(':')).filter(|(who, _)| *who == USER || *who == uid);
    let Some((_, range)) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err("multiple ranges of subordinate ids of the kubelet user are not supported".to_owned());
    }
    let numbers = range.split_once(':').and_then(|(first, count)| {
        let (first, count) = (first.parse::<u32>().ok()?, count.trim().parse::<u32>().ok()?);
        first.checked_add(count).map(|_| (first, count))
    });
    numbers.map(Some).ok_or_else(|| format!("subordinate ids of the kubelet user: {range:?} is no range"))
}

/// Who has what.
pub struct UserNamespaces {
    ids: Ids,
    /// The pods' folders.
    folder: PathBuf,
    /// First id by pod.
    given: Mutex<BTreeMap<String, u32>>,
}

impl UserNamespaces {
    /// Finds again what the pods of `folder` were given.
    pub fn open(folder: PathBuf, ids: Ids) -> Self {
        let this = UserNamespaces { ids, folder, given: Mutex::default() };
        for entry in std::fs::read_dir(&this.folder).into_iter().flatten().flatten() {
            let pod = entry.file_name().to_string_lossy().into_owned();
            if let Err(why) = this.load(&pod, &mut this.given.lock()) {
                tracing::warn!(pod, why, "the pod's user namespace cannot be kept");
            }
        }
        this
    }

    /// What a pod's file says; none where there is no file.
    fn load(&self, pod: &str, given: &mut BTreeMap<String, u32>) -> Result<Option<u32>, String> {
        let text = match std::fs::read(self.folder.join(pod).join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(|error| error.to_string())?,
        };
        let read: Mappings = serde_json::from_slice(&text)
            .map_err(|error| format!("invalid user namespace mappings file: {error}"))?;
        let (&[users], &[groups]) = (read.uid_mappings.as_slice(), read.gid_mappings.as_slice()) else {
            return Err("invalid user namespace configuration: no more than one mapping allowed.".to_owned());
        };
        if users != groups {
            return Err(
                "invalid user namespace configuration: GID and UID mapping should be identical".to_owned()
            );
        }
        if users.container_id != 0 {
            return Err("invalid user namespace configuration: UID 0 must be mapped".to_owned());
        }
        let first = users.host_id;
        if users.length != self.ids.per_pod {
            return Err(format!("wrong user namespace length {}", users.length));
        }
        if first % self.ids.per_pod != 0 {
            return Err(format!("wrong user namespace offset specified {first}"));
        }
        if first < self.ids.first || first - self.ids.first >= self.ids.count {
            return Err(format!("id {first} is out of range"));
        }
        if given.iter().any(|(other, at)| *at == first && other != pod) {
            return Err(format!("range picked for pod {pod:?} already taken"));
        }
        given.insert(pod.to_owned(), first);
        Ok(Some(first))
    }

    /// Gives `pod` its ids, those it had before if it had any.
    pub fn give(&self, pod: &str) -> Result<v1::UserNamespace, String> {
        let mut given = self.given.lock();
        if let Some(first) = given.get(pod) {
            return Ok(self.told(*first));
        }
        if let Some(first) = self.load(pod, &mut given).map_err(|why| format!("user namespace: {why}"))? {
            return Ok(self.told(first));
        }
        let taken: std::collections::BTreeSet<u32> = given.values().copied().collect();
        let slots = self.ids.count / self.ids.per_pod;
        let first =
            (0..slots).map(|slot| self.ids.first + slot * self.ids.per_pod).find(|id| !taken.contains(id));
        let first = first.ok_or(
            "create user namespace: could not find an empty slot to allocate a user namespace".to_owned(),
        )?;
        let mapping = Mapping { host_id: first, container_id: 0, length: self.ids.per_pod };
        let file = Mappings { uid_mappings: vec![mapping], gid_mappings: vec![mapping] };
        write_json(&self.folder.join(pod), FILE, &file)
            .map_err(|error| format!("create user namespace: {error}"))?;
        given.insert(pod.to_owned(), first);
        Ok(self.told(first))
    }

    /// What `pod` has.
    pub fn of(&self, pod: &str) -> Option<v1::UserNamespace> {
        self.given.lock().get(pod).map(|first| self.told(*first))
    }

    /// Takes back what a pod has that ended.
    pub fn release(&self, pod: &str) {
        if self.given.lock().remove(pod).is_some() {
            // gone with the folder, perhaps
            let _ = std::fs::remove_file(self.folder.join(pod).join(FILE));
        }
    }

    fn told(&self, first: u32) -> v1::UserNamespace {
        let ids = vec![v1::IdMapping { host_id: first, container_id: 0, length: self.ids.per_pod }];
        v1::UserNamespace { mode: v1::NamespaceMode::Pod as i32, uids: ids.clone(), gids: ids }
    }
}

/// Whether the pod wants users of its own.
pub fn wanted(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_users) == Some(false)
}

/// Whether a runtime can give them; the error is what an event says.
pub fn check(status: &v1::StatusResponse, handler: &str) -> Result<(), String> {
    let what = match handler {
        "" => "runtime".to_owned(),
        name => format!("RuntimeClass handler {name:?}"),
    };
    let refused = format!("can't set `spec.hostUsers: false`, {what} does not support user namespaces");
    let known = status.runtime_handlers.iter().find(|known| known.name == handler);
    match known {
        Some(known) if known.features.is_some_and(|features| features.user_namespaces) => Ok(()),
        Some(_) => Err(refused),
        None if handler.is_empty() => Err(refused),
        None => Err(format!("{refused}: the handler {handler:?} is not known")),
    }
}

/// `mounts`, whose owners are to be seen as `users` has them.
pub fn map(mounts: &mut [v1::Mount], users: &v1::UserNamespace) {
    for mount in mounts {
        mount.uid_mappings = users.uids.clone();
        mount.gid_mappings = users.gids.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(users: &v1::UserNamespace) -> u32 {
        users.uids[0].host_id
    }

    #[test]
    fn no_two_pods_have_an_id_in_common_and_a_restart_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let ids = Ids { first: UNIT, count: 2 * UNIT, per_pod: UNIT };
        let all = UserNamespaces::open(dir.path().into(), ids);
        assert_eq!(first(&all.give("a").unwrap()), UNIT);
        assert_eq!(first(&all.give("b").unwrap()), 2 * UNIT);
        assert_eq!(first(&all.give("a").unwrap()), UNIT);
        assert!(all.give("c").unwrap_err().contains("could not find an empty slot"));
        let again = UserNamespaces::open(dir.path().into(), ids);
        assert_eq!(again.of("b").map(|users| first(&users)), Some(2 * UNIT));
        again.release("a");
        assert_eq!(again.of("a"), None);
        assert_eq!(first(&again.give("c").unwrap()), UNIT);
        std::fs::write(dir.path().join("b").join(FILE), "{}").unwrap();
        let third = UserNamespaces::open(dir.path().into(), ids);
        assert!(
            third.give("b").unwrap_err().starts_with("user namespace: invalid user namespace mappings file")
        );
    }

    #[test]
    fn ids_are_those_of_the_kubelets_user_where_there_is_one() {
        let passwd = "root:x:0:0::/root:/bin/sh\nkubelet:x:998:998::/:/bin/false\n";
        let of = |passwd, uids, gids| Ids::of((passwd, uids, gids), UNIT, 110);
        let all = of("root:x:0:0::/root:/bin/sh\n", "kubelet:131072:65536\n", "").unwrap();
        assert_eq!((all.first, all.count), (65536, 4294836224));
        let enough = "other:1:2\nkubelet:131072:7208960\n";
        assert_eq!(of(passwd, enough, enough).unwrap(), Ids { first: 131072, count: 7208960, per_pod: UNIT });
        assert_eq!(of(passwd, enough, "998:131072:7208960").unwrap().first, 131072);
        for (uids, gids, why) in [
            (enough, "", "different subordinate"),
            ("kubelet:65537:7208960", "kubelet:65537:7208960", "is not a multiple of 65536"),
            ("kubelet:0:7208960", "kubelet:0:7208960", "must be greater or equal to 65536"),
            ("kubelet:65536:65536", "kubelet:65536:65536", "not enough to support 110 pods"),
            ("kubelet:65536:65537", "kubelet:65536:65537", "length 65537 is not a multiple"),
            ("kubelet:1:1\nkubelet:5:1", "", "multiple ranges"),
            ("kubelet:lots", "", "is no range"),
        ] {
            let error = of(passwd, uids, gids).unwrap_err();
            assert!(error.contains(why), "{uids}: {error}");
        }
    }

    #[test]
    fn a_runtime_without_them_is_named() {
        let handler = |name: &str, user_namespaces| v1::RuntimeHandler {
            name: name.to_owned(),
            features: Some(v1::RuntimeHandlerFeatures { user_namespaces, ..Default::default() }),
        };
        let status = v1::StatusResponse {
            runtime_handlers: vec![handler("", true), handler("crun", false)],
            ..Default::default()
        };
        assert_eq!(check(&status, ""), Ok(()));
        let refused = "can't set `spec.hostUsers: false`, RuntimeClass handler \"crun\" does not support user namespaces";
        assert_eq!(check(&status, "crun"), Err(refused.to_owned()));
        assert!(check(&status, "x").unwrap_err().ends_with(": the handler \"x\" is not known"));
        let old = "can't set `spec.hostUsers: false`, runtime does not support user namespaces";
        assert_eq!(check(&v1::StatusResponse::default(), ""), Err(old.to_owned()));
    }
}
