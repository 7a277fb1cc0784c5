//! User namespaces of pods: what a sandbox's configuration asks for, and whether this node can give it.
//!
//! A pod with one has users of its own: root in it is nobody in particular on the node. Which ids it has is the caller's
//! to say; two pods that are to be kept apart have no id in common. Files keep their owners on the disk as the pod sees
//! them: its root file system and the mounts that ask for it are shown through the namespace.
//!
//! Rule: CRI v1, `UserNamespace` and `Mount.uidMappings`; KEP-127.

use cri::v1::{self, NamespaceMode};

use crate::{
    error::RuntimeError,
    spec::{IdRange, UserNamespace},
};

/// What `config` asks for; none: the node's users.
pub(crate) fn of(config: &v1::PodSandboxConfig) -> Result<Option<UserNamespace>, RuntimeError> {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = context.and_then(|context| context.namespace_options.as_ref());
    let Some(wanted) = options.and_then(|options| options.userns_options.as_ref()) else { return Ok(None) };
    match NamespaceMode::try_from(wanted.mode) {
        Ok(NamespaceMode::Node) if wanted.uids.is_empty() && wanted.gids.is_empty() => Ok(None),
        Ok(NamespaceMode::Node) => {
            Err(RuntimeError::Invalid("the node's user namespace has no mappings".to_owned()))
        }
        Ok(NamespaceMode::Pod) => Ok(Some(UserNamespace {
            uids: ranges("user", &wanted.uids)?,
            gids: ranges("group", &wanted.gids)?,
        })),
        _ => Err(RuntimeError::Invalid("a user namespace is the pod's or the node's".to_owned())),
    }
}

fn ranges(what: &str, given: &[v1::IdMapping]) -> Result<Vec<IdRange>, RuntimeError> {
    let ranges: Vec<IdRange> = given
        .iter()
        .map(|range| IdRange { container: range.container_id, host: range.host_id, length: range.length })
        .collect();
    let wrong = |why: &str| Err(RuntimeError::Invalid(format!("{what} ids of the user namespace: {why}")));
    if !ranges.iter().any(|range| range.container == 0 && range.length > 0) {
        return wrong("0 must be mapped");
    }
    let end = |first: u32, length: u32| u64::from(first) + u64::from(length);
    for (index, range) in ranges.iter().enumerate() {
        if end(range.container, range.length).max(end(range.host, range.length)) > u64::from(u32::MAX) {
            return wrong("a range goes beyond the last id");
        }
        let meet = |other: &IdRange| {
            let overlap =
                |a: u32, b: u32| u64::from(a) < end(b, other.length) && u64::from(b) < end(a, range.length);
            overlap(range.container, other.container) || overlap(range.host, other.host)
        };
        if ranges[index + 1..].iter().any(meet) {
            return wrong("ranges overlap");
        }
    }
    Ok(ranges)
}

/// Whether a mount is to be shown through the pod's user namespace.
pub(crate) fn shows(mount: &v1::Mount, pod: Option<&UserNamespace>) -> Result<bool, RuntimeError> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(false);
    }
    let same = |given: &[v1::IdMapping], own: &[IdRange]| {
        given.len() == own.len()
            && given.iter().zip(own).all(|(given, own)| {
                (given.container_id, given.host_id, given.length) == (own.container, own.host, own.length)
            })
    };
    match pod {
        Some(pod) if same(&mount.uid_mappings, &pod.uids) && same(&mount.gid_mappings, &pod.gids) => Ok(true),
        _ => Err(RuntimeError::Invalid(format!(
            "the id mappings of mount {:?} are not those of the pod's user namespace",
            mount.container_path
        ))),
    }
}

/// Whether this node can: its kernel shows files of every kind that pods have as a user namespace's.
pub(crate) fn supported() -> bool {
    // The last that came was tmpfs, where secrets are, in Linux 6.3.
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let allowed = std::fs::read_to_string("/proc/sys/user/max_user_namespaces");
    since(&release, (6, 3)) && allowed.is_ok_and(|limit| limit.trim() != "0")
}

fn since(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers =
        release.split(|other: char| !other.is_ascii_digit()).map_while(|text| text.parse().ok());
    numbers.next().zip(numbers.next()).is_some_and(|found| found >= wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(container_id: u32, host_id: u32, length: u32) -> v1::IdMapping {
        v1::IdMapping { host_id, container_id, length }
    }

    #[test]
    fn only_ranges_that_can_be_are_taken() {
        let check = |given: &[v1::IdMapping], why: &str| {
            let error = ranges("user", given).unwrap_err().to_string();
            assert!(error.contains(why), "{given:?}: {error}");
        };
        check(&[], "0 must be mapped");
        check(&[range(1, 65536, 10)], "0 must be mapped");
        check(&[range(0, u32::MAX, 10)], "beyond the last id");
        check(&[range(0, 65536, 10), range(9, 131072, 10)], "overlap");
        check(&[range(0, 65536, 10), range(10, 65540, 10)], "overlap");
        let two = ranges("user", &[range(0, 65536, 10), range(10, 131072, 5)]).unwrap();
        let users = UserNamespace { uids: two, gids: Vec::new() };
        let found: Vec<_> = [0, 9, 10, 14, 15].map(|id| users.uid(id)).into();
        assert_eq!(found, [Some(65536), Some(65545), Some(131072), Some(131076), None]);
        assert_eq!(users.gid(0), None);
    }

    #[test]
    fn a_mount_is_mapped_as_its_pod_or_not_at_all() {
        let pod = UserNamespace {
            uids: vec![IdRange { container: 0, host: 65536, length: 65536 }],
            gids: vec![IdRange { container: 0, host: 65536, length: 65536 }],
        };
        let mapped = |host| {
            let ids = vec![range(0, host, 65536)];
            v1::Mount { uid_mappings: ids.clone(), gid_mappings: ids, ..Default::default() }
        };
        assert!(!shows(&v1::Mount::default(), Some(&pod)).unwrap());
        assert!(shows(&mapped(65536), Some(&pod)).unwrap());
        assert!(shows(&mapped(131072), Some(&pod)).is_err());
        assert!(shows(&mapped(65536), None).is_err());
    }

    #[test]
    fn releases_are_compared_by_number() {
        for (release, expected) in [
            ("6.18.44", true),
            ("6.3.0-rc1", true),
            ("6.1.0-50-cloud-amd64", false),
            ("10.0", true),
            ("x", false),
        ] {
            assert_eq!(since(release, (6, 3)), expected, "{release}");
        }
    }
}
