//! SELinux: what pods ask for, and which of their volumes get the label of who mounts them. What the labels are, the container
//! runtime knows.
//!
//! Rule: Kubernetes documentation, "Configure a Security Context for a Pod or Container", "Assign SELinux labels to a Container".

use std::path::Path;

use cri::v1;
use k8s_openapi::api::core::v1::{Pod, SELinuxOptions, SecurityContext};

use crate::volumes::unescaped;

/// The node's kernel has labels.
pub fn enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// What a pod or a container asks for, where it means something: kernels without labels run them without, as everywhere.
pub fn where_enabled(options: Option<v1::SeLinuxOption>) -> Option<v1::SeLinuxOption> {
    options.filter(|_| enabled())
}

fn told(options: &SELinuxOptions) -> v1::SeLinuxOption {
    v1::SeLinuxOption {
        user: options.user.clone().unwrap_or_default(),
        role: options.role.clone().unwrap_or_default(),
        r#type: options.type_.clone().unwrap_or_default(),
        level: options.level.clone().unwrap_or_default(),
    }
}

/// What the pod as a whole asks for.
pub fn of_pod(pod: &Pod) -> Option<v1::SeLinuxOption> {
    pod.spec.as_ref()?.security_context.as_ref()?.se_linux_options.as_ref().map(told)
}

/// What a container asks for: if anything, then nothing of what its pod does counts.
pub fn of_container(pod: &Pod, own: Option<&SecurityContext>) -> Option<v1::SeLinuxOption> {
    own.and_then(|own| own.se_linux_options.as_ref()).map(told).or_else(|| of_pod(pod))
}

/// Whether files at `path` can be given labels one by one: the kernel says so of the file system that is mounted there.
pub fn keeps_labels(path: &Path) -> bool {
    keeps(path, &std::fs::read("/proc/self/mounts").unwrap_or_default())
}

fn keeps(path: &Path, table: &[u8]) -> bool {
    let mount = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ').skip(1);
        let (point, options) = (unescaped(fields.next()?), fields.nth(1)?);
        let labels = options.split(|byte| *byte == b',').any(|option| option == b"seclabel");
        path.starts_with(&point).then(|| (point.components().count(), labels))
    };
    // of two at one place the later one lies on top
    table
        .split(|byte| *byte == b'\n')
        .filter_map(mount)
        .max_by_key(|(depth, _)| *depth)
        .is_some_and(|(_, labels)| labels)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_containers_options_take_the_place_of_all_of_its_pods() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [],
            "securityContext": {"seLinuxOptions": {"type": "pod_t", "level": "s0:c1,c2"}}}}))
        .unwrap();
        let own: SecurityContext =
            serde_json::from_value(json!({"seLinuxOptions": {"user": "u", "role": "r", "level": "s0:c3"}}))
                .unwrap();
        let text = |options: Option<v1::SeLinuxOption>| {
            options.map(|v1::SeLinuxOption { user, role, r#type, level }| {
                format!("{user}:{role}:{type}:{level}")
            })
        };
        assert_eq!(text(of_pod(&pod)).as_deref(), Some("::pod_t:s0:c1,c2"));
        assert_eq!(text(of_container(&pod, Some(&own))).as_deref(), Some("u:r::s0:c3"));
        for none in [None, Some(&SecurityContext::default())] {
            assert_eq!(of_container(&pod, none), of_pod(&pod));
        }
        assert_eq!(of_container(&Pod::default(), None), None);
    }

    #[test]
    fn a_file_system_says_whether_it_keeps_labels() {
        let table = b"/dev/a / ext4 rw,seclabel,relatime 0 0\nserver:/x /mnt/a\\040b nfs rw,vers=3 0 0\n\
                      tmpfs /mnt/c tmpfs rw,seclabel 0 0\ntmpfs /mnt/c tmpfs rw,context=a:b:c:s0 0 0\n";
        for (path, expected) in
            [("/var/x", true), ("/mnt/a b/deep", false), ("/mnt/c", false), ("/mnt/cd", true)]
        {
            assert_eq!(keeps(Path::new(path), table), expected, "{path}");
        }
        assert!(!keeps(Path::new("/x"), b""));
    }
}
