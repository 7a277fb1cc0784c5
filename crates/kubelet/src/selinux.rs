//! SELinux: what pods ask for, which of their volumes get the label of who mounts them, and which label a volume can be mounted
//! with. What the other labels are, the container runtime knows.
//!
//! Rule: Kubernetes documentation, "Configure a Security Context for a Pod or Container", "Assign SELinux labels to a Container",
//! "Efficient SELinux volume relabeling".

use std::collections::BTreeSet;
use std::path::Path;

use cri::v1;
use k8s_openapi::api::core::v1::{Pod, SELinuxOptions, SecurityContext, VolumeMount};

use crate::volumes::unescaped;

/// Labels for containers that come with no policy but with a package; they win.
const CONTEXTS: &str = "/usr/share/containers/selinux/contexts";

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

/// The label that the node's policy gives the files of containers that ask for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLabel {
    user: String,
    role: String,
    kind: String,
    /// Whether the policy has levels.
    levels: bool,
}

impl FileLabel {
    /// The node's; none where its kernel has no labels, or its policy none for containers.
    pub fn of_node() -> Option<Self> {
        let text = enabled().then(|| std::fs::read_to_string(CONTEXTS).ok().or_else(of_policy))??;
        Self::parse(&text)
    }

    /// Of a file with a line such as `file = "system_u:object_r:container_file_t:s0"`.
    pub fn parse(text: &str) -> Option<Self> {
        let label = setting(text, "file")?;
        let mut parts = label.splitn(4, ':').map(str::to_owned);
        let (user, role, kind) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { user, role, kind, levels: parts.next().is_some() })
    }

    /// Of the files of who asks for that; none where the runtime chooses the level. Files have the user and the level of their
    /// process, never its role and type.
    fn asked(&self, options: &v1::SeLinuxOption) -> Option<String> {
        let Self { user, role, kind, levels } = self;
        let user = if options.user.is_empty() { user } else { &options.user };
        // others could end the mount option that holds the label: what is wrong with them the runtime says
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:,".contains(c);
        if !user.chars().chain(options.level.chars()).all(plain) {
            return None;
        }
        match options.level.as_str() {
            "" if *levels => None,
            "" => Some(format!("{user}:{role}:{kind}")),
            level => Some(format!("{user}:{role}:{kind}:{level}")),
        }
    }

    /// The one that all containers need which have the pod's volume and ask for a label; none where no label is known.
    ///
    /// # Errors
    /// They need several.
    pub fn of_volume(&self, pod: &Pod, volume: &str) -> Result<Option<String>, String> {
        let Some(spec) = &pod.spec else { return Ok(None) };
        let mounts = |list: &Option<Vec<VolumeMount>>| list.iter().flatten().any(|m| m.name == volume);
        let whole = spec.init_containers.iter().flatten().chain(&spec.containers);
        let whole = whole.map(|c| (mounts(&c.volume_mounts), c.security_context.as_ref()));
        let later = spec.ephemeral_containers.iter().flatten();
        let later = later.map(|c| (mounts(&c.volume_mounts), c.security_context.as_ref()));
        let asked = whole.chain(later).filter(|(mounts, _)| *mounts);
        let asked = asked.filter_map(|(_, own)| of_container(pod, own));
        let labels: BTreeSet<_> = asked.map(|options| self.asked(&options)).collect();
        if labels.len() > 1 {
            let labels: Vec<String> = labels.into_iter().map(Option::unwrap_or_default).collect();
            return Err(format!("multiple SELinux labels found: {}", labels.join(",")));
        }
        Ok(labels.into_iter().next().flatten())
    }
}

fn of_policy() -> Option<String> {
    let policy = setting(&std::fs::read_to_string("/etc/selinux/config").ok()?, "SELINUXTYPE")?;
    std::fs::read_to_string(Path::new("/etc/selinux").join(policy).join("contexts/lxc_contexts")).ok()
}

/// The value of a line `name = "value"`, quoted or not.
fn setting(text: &str, name: &str) -> Option<String> {
    let value = |line: &str| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == name).then(|| value.trim().trim_matches('"').to_owned())
    };
    text.lines().find_map(value)
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
    fn a_volume_is_mounted_with_the_label_of_its_containers_where_it_is_one_and_known() {
        let file = FileLabel::parse("# x\nprocess = \"u:r:p:s0\"\nfile = \"u:o:f:s0\"\n").unwrap();
        let check = |whole: serde_json::Value,
                     own: serde_json::Value,
                     expected: Result<Option<&str>, &str>| {
            let mount = json!([{"name": "v", "mountPath": "/v"}]);
            let pod: Pod = serde_json::from_value(json!({"spec": {"securityContext": {"seLinuxOptions": whole},
                "initContainers": [{"name": "a", "volumeMounts": mount}],
                "containers": [{"name": "b", "volumeMounts": mount, "securityContext": {"seLinuxOptions": own}},
                    {"name": "c", "securityContext": {"seLinuxOptions": {"level": "s0:c9"}}}]}}))
            .unwrap();
            let found = file.of_volume(&pod, "v");
            let expected = expected
                .map(|l| l.map(str::to_owned))
                .map_err(|why| format!("multiple SELinux labels found: {why}"));
            assert_eq!(found, expected, "{whole} {own}");
        };
        let (nothing, level) = (json!(null), json!({"level": "s0:c1,c2"}));
        check(nothing.clone(), nothing.clone(), Ok(None));
        check(level.clone(), nothing.clone(), Ok(Some("u:o:f:s0:c1,c2")));
        check(nothing.clone(), level.clone(), Ok(Some("u:o:f:s0:c1,c2")));
        let all = json!({"user": "me", "role": "r", "type": "spc_t", "level": "s0"});
        check(nothing.clone(), all, Ok(Some("me:o:f:s0")));
        check(json!({"type": "spc_t"}), nothing.clone(), Ok(None));
        check(json!({"level": "s0\",suid,\""}), nothing, Ok(None));
        check(level.clone(), json!({"level": "s0:c3"}), Err("u:o:f:s0:c1,c2,u:o:f:s0:c3"));
        check(level, json!({"type": "t"}), Err(",u:o:f:s0:c1,c2"));
        let plain = FileLabel::parse("file=u:o:f").unwrap();
        assert_eq!(plain.asked(&v1::SeLinuxOption::default()).as_deref(), Some("u:o:f"));
        assert_eq!(FileLabel::parse("process=u:r:p:s0\n#file=u:o:f"), None);
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
