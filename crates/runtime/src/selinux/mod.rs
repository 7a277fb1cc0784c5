//! SELinux: which labels the processes and files of a pod have, where the node's policy has labels for containers.
//!
//! Such a policy names them in a file of its own. Pods are kept apart by categories: each pod has two of its own, which its
//! containers share, so what one pod's files are labelled with no other pod may touch, even with the same type. Where the
//! policy knows nothing of containers, or does not let this program start them (it takes a type of its own, as that of other
//! runtimes), those that ask for nothing have no labels.
//!
//! Rule: Kubernetes documentation, "Assign SELinux labels to a Container"; the labels are those that containerd gives.

use std::{
    collections::{HashMap, HashSet},
    fmt, fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use cri::v1;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::RuntimeError;

mod relabel;

pub(crate) use relabel::relabel;

/// The kernel's interface.
const KERNEL: &str = "/sys/fs/selinux";
/// `SELINUX_MAGIC` of linux/magic.h.
const MAGIC: u32 = 0xf97c_ff8c;
/// Which policy the node has: `SELINUXTYPE=NAME`.
const CONFIG: &str = "/etc/selinux/config";
/// Labels for containers that come with no policy but with a package; they win.
const CONTEXTS: &str = "/usr/share/containers/selinux/contexts";
/// How many categories pods are told apart by, as other runtimes: every policy with categories has so many.
const CATEGORIES: u16 = 1024;

/// The labels of a pod or a container; none on a node that labels nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Labels {
    /// Of its processes, unless they are privileged.
    pub(crate) process: Option<String>,
    /// Of its files.
    pub(crate) file: Option<String>,
}

impl Labels {
    /// The level that they are of.
    pub(crate) fn level(&self) -> Option<String> {
        Label::parse(self.process.as_deref()?)?.level
    }

    /// Of files that several pods read and none writes.
    pub(crate) fn shared(&self) -> Option<String> {
        let file = Label::parse(self.file.as_deref()?)?;
        let level = file.level.map(|_| "s0".to_owned());
        Some(Label { level, ..file }.to_string())
    }
}

/// Whose level is whose: two pods that did not ask for it never have the same one.
#[derive(Debug, Default)]
pub(crate) struct Levels(Mutex<HashMap<String, String>>);

impl Levels {
    /// The level of a sandbox; it keeps what it is given first.
    pub(crate) fn of(&self, sandbox: &str) -> String {
        let mut taken = self.0.lock();
        if let Some(level) = taken.get(sandbox) {
            return level.clone();
        }
        let used: HashSet<&String> = taken.values().collect();
        let random = || uuid::Uuid::new_v4().as_u128();
        let level = std::iter::repeat_with(|| level(random())).find(|level| !used.contains(level));
        let level = level.unwrap_or_default();
        taken.insert(sandbox.to_owned(), level.clone());
        level
    }

    /// Keeps a level that a sandbox has from being given to others.
    pub(crate) fn note(&self, sandbox: &str, level: String) {
        self.0.lock().insert(sandbox.to_owned(), level);
    }

    /// The sandbox is gone.
    pub(crate) fn free(&self, sandbox: &str) {
        self.0.lock().remove(sandbox);
    }
}

/// The level of two different categories, chosen by `number`.
fn level(number: u128) -> String {
    let all = u128::from(CATEGORIES);
    let (first, step) = (number % all, number / all % (all - 1) + 1);
    let second = (first + step) % all;
    format!("s0:c{},c{}", first.min(second), first.max(second))
}

/// The labels of a pod that asks for `asked`, or of a container of its own wishes; `level` is the pod's, where the policy has
/// levels and none is asked for.
pub(crate) fn labels(
    asked: Option<&v1::SeLinuxOption>,
    level: impl FnOnce() -> String,
) -> Result<Labels, RuntimeError> {
    let asked = asked.filter(|asked| **asked != v1::SeLinuxOption::default());
    let none = |why: &str| match asked {
        None => Ok(Labels::default()),
        Some(v1::SeLinuxOption { user, role, r#type, level }) => {
            Err(RuntimeError::Unsupported(format!("SELinux label {user}:{role}:{type}:{level}: {why}")))
        }
    };
    let Some(own) = own_label() else { return none("this node's kernel has no SELinux") };
    let may = |label: &Label| may_start(&own, &label.to_string());
    let usable = |defaults: &Defaults| known(&defaults.process.to_string()) && may(&defaults.process);
    let Some(defaults) = Defaults::of_node().filter(usable) else {
        return none(&format!(
            "this node's SELinux policy has no labels for containers that {own} may start"
        ));
    };
    let (process, file) = defaults.labels(&asked.cloned().unwrap_or_default(), level);
    let refused = |label: &Label, why: &str| {
        Err(RuntimeError::Invalid(format!("SELinux label \"{label}\": this node's policy {why}")))
    };
    match [&process, &file].into_iter().find(|label| !known(&label.to_string())) {
        Some(label) => refused(label, "does not allow it"),
        None if !may(&process) => refused(&process, &format!("does not let {own} start it")),
        None => Ok(Labels { process: Some(process.to_string()), file: Some(file.to_string()) }),
    }
}

/// The label of this program; none where the kernel has no SELinux, or no policy.
fn own_label() -> Option<String> {
    let mounted = rustix::fs::statfs(KERNEL).is_ok_and(|stat| stat.f_type as u32 == MAGIC);
    let label = mounted.then(|| fs::read_to_string("/proc/thread-self/attr/current").ok()).flatten()?;
    let label = label.trim_end_matches(['\0', '\n']);
    // without a policy every process is of this one
    (label != "kernel").then(|| label.to_owned())
}

/// Whether the kernel's policy knows a label.
fn known(label: &str) -> bool {
    let ask = || -> io::Result<()> {
        let mut file = fs::File::options().write(true).open(Path::new(KERNEL).join("context"))?;
        file.write_all(label.as_bytes())
    };
    ask().is_ok()
}

/// Whether a program of the label `own` may start one of `label`. Where the policy is not enforced it may.
fn may_start(own: &str, label: &str) -> bool {
    let number = |name: &str| -> io::Result<u32> {
        let text = fs::read_to_string(Path::new(KERNEL).join(name))?;
        text.trim_end_matches('\0').trim().parse().map_err(io::Error::other)
    };
    let ask = || -> io::Result<bool> {
        if number("enforce")? == 0 {
            return Ok(true);
        }
        let (class, transition) = (number("class/process/index")?, number("class/process/perms/transition")?);
        let mut file = fs::File::options().read(true).write(true).open(Path::new(KERNEL).join("access"))?;
        file.write_all(format!("{own} {label} {class}").as_bytes())?;
        let mut answer = String::new();
        file.read_to_string(&mut answer)?;
        Ok(allows(&answer, transition))
    };
    ask().unwrap_or(false)
}

/// Whether an answer of the kernel allows a permission, counted from 1: the first number has them all, in the last one the lowest bit
/// is set where the policy is not enforced for the asker.
fn allows(answer: &str, permission: u32) -> bool {
    let mut numbers =
        answer.split_ascii_whitespace().map(|number| u32::from_str_radix(number, 16).unwrap_or(0));
    let wanted = permission.checked_sub(1).and_then(|bit| 1_u32.checked_shl(bit)).unwrap_or(0);
    numbers.next().unwrap_or(0) & wanted != 0 || numbers.nth(4).unwrap_or(0) & 1 != 0
}

/// A label, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    user: String,
    role: String,
    kind: String,
    /// Only where the policy has levels.
    level: Option<String>,
}

impl Label {
    fn parse(text: &str) -> Option<Label> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        Some(Label { user: parts.next()?, role: parts.next()?, kind: parts.next()?, level: parts.next() })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        self.level.iter().try_for_each(|level| write!(f, ":{level}"))
    }
}

/// The labels that the policy has for containers.
#[derive(Debug, PartialEq, Eq)]
struct Defaults {
    process: Label,
    file: Label,
}

impl Defaults {
    fn of_node() -> Option<Defaults> {
        let text = fs::read_to_string(CONTEXTS).ok().or_else(|| {
            let policy = setting(&fs::read_to_string(CONFIG).ok()?, "SELINUXTYPE")?;
            let folder: PathBuf = Path::new("/etc/selinux").join(policy);
            fs::read_to_string(folder.join("contexts/lxc_contexts")).ok()
        })?;
        Defaults::parse(&text)
    }

    /// Of a file with lines such as `process = "system_u:system_r:container_t:s0"`.
    fn parse(text: &str) -> Option<Defaults> {
        let label = |name| Label::parse(&setting(text, name)?);
        Some(Defaults { process: label("process")?, file: label("file")? })
    }

    /// What is asked for in the place of the defaults. Files have the user and the level of the process, never its role and type.
    fn labels(self, asked: &v1::SeLinuxOption, level: impl FnOnce() -> String) -> (Label, Label) {
        let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let Defaults { process, file } = self;
        let level = given(&asked.level).or_else(|| process.level.is_some().then(level));
        let user = given(&asked.user);
        let process = Label {
            user: user.clone().unwrap_or(process.user),
            role: given(&asked.role).unwrap_or(process.role),
            kind: given(&asked.r#type).unwrap_or(process.kind),
            level: level.clone(),
        };
        (process, Label { user: user.unwrap_or(file.user), level, ..file })
    }
}

/// The value of a line `name = "value"`, quoted or not.
fn setting(text: &str, name: &str) -> Option<String> {
    let value = |line: &str| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == name).then(|| value.trim().trim_matches('"').to_owned())
    };
    text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])).find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINERS: &str = "# of the package\nprocess = \"system_u:system_r:container_t:s0\"\n\
                              file=\"system_u:object_r:container_file_t:s0\"\nro_file = \"x\"\n";

    #[test]
    fn what_is_asked_for_takes_the_place_of_the_policys_labels() {
        let check = |text: &str, asked: [&str; 4], process: &str, file: &str| {
            let [user, role, kind, level] = asked.map(str::to_owned);
            let asked = v1::SeLinuxOption { user, role, r#type: kind, level };
            let labels = Defaults::parse(text).unwrap().labels(&asked, || "s0:c1,c2".to_owned());
            assert_eq!((labels.0.to_string().as_str(), labels.1.to_string().as_str()), (process, file));
        };
        let file = "system_u:object_r:container_file_t:s0:c1,c2";
        check(CONTAINERS, [""; 4], "system_u:system_r:container_t:s0:c1,c2", file);
        check(CONTAINERS, ["", "", "spc_t", ""], "system_u:system_r:spc_t:s0:c1,c2", file);
        check(
            CONTAINERS,
            ["u", "r", "t", "s0-s0:c0.c9"],
            "u:r:t:s0-s0:c0.c9",
            "u:object_r:container_file_t:s0-s0:c0.c9",
        );
        let plain = "process=a:b:c\nfile=a:o:f";
        check(plain, [""; 4], "a:b:c", "a:o:f");
        check(plain, ["", "", "d", ""], "a:b:d", "a:o:f");
    }

    #[test]
    fn a_file_that_names_no_labels_gives_none() {
        for text in ["", "process = \"a:b:c:s0\"", "process=a:b\nfile=a:b:c", "#process=a:b:c\nfile=a:b:c"] {
            assert_eq!(Defaults::parse(text), None, "{text}");
        }
        assert_eq!(setting("SELINUX=enforcing\nSELINUXTYPE=targeted\n", "SELINUXTYPE").unwrap(), "targeted");
    }

    #[test]
    fn what_pods_share_has_no_categories() {
        let shared = |file: Option<&str>| Labels { process: None, file: file.map(str::to_owned) }.shared();
        assert_eq!(shared(Some("u:o:f:s0:c1,c2")).as_deref(), Some("u:o:f:s0"));
        assert_eq!(shared(Some("u:o:f")).as_deref(), Some("u:o:f"));
        assert_eq!(shared(None), None);
    }

    #[test]
    fn an_answer_of_the_kernel_is_read() {
        for (answer, permission, expected) in [
            ("2 ffffffff 0 ffffffff 5 0", 2, true),
            ("2 ffffffff 0 ffffffff 5 0", 1, false),
            ("0 ffffffff 0 ffffffff 5 1", 1, true),
            ("80000000 ffffffff 0 ffffffff 5 0", 32, true),
            ("ffffffff", 0, false),
            ("", 1, false),
        ] {
            assert_eq!(allows(answer, permission), expected, "{answer} {permission}");
        }
    }

    #[test]
    fn a_level_is_of_two_categories_in_order() {
        assert_eq!(level(0), "s0:c0,c1");
        assert_eq!(level(1023), "s0:c0,c1023");
        assert_eq!(level(1024 * 1022), "s0:c0,c1023");
        assert_eq!(level(1024 + 5), "s0:c5,c7");
        assert_ne!(level(u128::MAX), level(u128::MAX - 1));
    }

    #[test]
    fn no_two_pods_have_one_level_until_one_is_gone() {
        let levels = Levels::default();
        levels.note("asked", "s0:c1,c2".to_owned());
        let mut seen = HashSet::from([levels.of("asked")]);
        for number in 0..2000 {
            assert!(seen.insert(levels.of(&format!("pod {number}"))), "{number}");
        }
        assert_eq!(levels.of("asked"), "s0:c1,c2");
        let first = levels.of("pod 0");
        levels.free("pod 0");
        assert!(!levels.0.lock().values().any(|level| *level == first));
    }
}
