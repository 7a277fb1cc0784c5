//! Devices by the Container Device Interface: files on the node say what a container needs to use a vendor's device
//! (variables, device files, mounts, groups), and a container asks for devices by name, `vendor.com/class=device`.
//!
//! The folders are read anew for each container that asks: what a vendor writes counts from then on, and nothing has to
//! watch. A device of a later folder takes the place of one of an earlier folder; two of one folder are nobody's.
//!
//! Hooks are run by the shim, or by the OCI runtime that runs the container. What only some processors give (`intelRdt`) and
//! pipes are refused.
//!
//! Rule: Container Device Interface specification, versions 0.3.0 to 1.0.0.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::v1;
use serde::{Deserialize, Serialize};

use crate::cgroup_device::Rule;
use crate::container_spec::device_node;
use crate::error::RuntimeError;
use crate::spec::{self, DeviceNode, Hooks, Restriction};

/// Where specification files are looked for, unless told otherwise.
pub const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// What annotations that name devices begin with.
const ANNOTATION: &str = "cdi.k8s.io/";

/// Versions of specification files, oldest first.
const VERSIONS: [&str; 7] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0"];

/// A larger file is none.
const LARGEST: u64 = 16 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SpecFile {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    container_edits: Edits,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    hooks: Vec<Hook>,
    mounts: Vec<Mount>,
    intel_rdt: Option<serde_json::Value>,
    #[serde(rename = "additionalGids", alias = "additionalGIDs")]
    additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Node {
    path: String,
    host_path: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<u32>,
    minor: Option<u32>,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mount {
    host_path: String,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(rename = "type", default)]
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Hook {
    hook_name: String,
    path: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    timeout: Option<i64>,
}

/// A device file that a container gets, and what it may do with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CdiNode {
    /// The file.
    pub(crate) node: DeviceNode,
    /// Letters of `rwm`.
    pub(crate) permissions: String,
}

impl CdiNode {
    /// What the control group allows for it.
    pub(crate) fn rule(&self) -> Rule {
        crate::container_spec::rule(&self.node, &self.permissions)
    }
}

fn letters(text: &str, also: &str) -> bool {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    let last = text.bytes().last().is_some_and(|byte| byte.is_ascii_alphanumeric());
    first && last && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || also.as_bytes().contains(&byte))
}

/// `vendor.com/class`, as its error.
fn check_kind(kind: &str, old: bool) -> Result<(), String> {
    let wrong = |what: &str, name: &str| Err(format!("invalid {what} {name:?}"));
    let Some((vendor, class)) = kind.split_once('/') else {
        return Err(format!("unqualified kind {kind:?}, missing vendor or class"));
    };
    if !letters(vendor, "-_.") {
        return wrong("vendor", vendor);
    }
    if !letters(class, if old { "-_" } else { "-_." }) {
        return wrong("class", class);
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), String> {
    let ends = [name.bytes().next(), name.bytes().last()];
    let fine = ends.iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()))
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
    if fine { Ok(()) } else { Err(format!("invalid device name {name:?}")) }
}

/// The two parts of a device's full name.
fn qualified(name: &str) -> Result<(&str, &str), String> {
    let parts = name.split_once('=');
    let (kind, device) = parts.ok_or_else(|| format!("unqualified device {name:?}, missing '='"))?;
    check_kind(kind, false)?;
    check_name(device)?;
    Ok((kind, device))
}

impl SpecFile {
    fn parse(path: &Path) -> Result<Self, String> {
        let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
        if size > LARGEST {
            return Err(format!("{size} bytes are too many"));
        }
        let text = fs::read(path).map_err(|error| error.to_string())?;
        // JSON is YAML, but tells its errors better
        let this: Self = if path.extension().is_some_and(|ending| ending == "json") {
            serde_json::from_slice(&text).map_err(|error| error.to_string())?
        } else {
            serde_saphyr::from_slice(&text).map_err(|error| error.to_string())?
        };
        this.check()?;
        Ok(this)
    }

    fn check(&self) -> Result<(), String> {
        let at = VERSIONS.iter().position(|version| *version == self.cdi_version);
        let at = at.ok_or_else(|| {
            format!("invalid version {:?}, should be one of {}", self.cdi_version, VERSIONS.join(", "))
        })?;
        let needs = self.needs();
        if VERSIONS.iter().position(|version| *version == needs) > Some(at) {
            return Err(format!("the spec version must be at least v{needs}"));
        }
        check_kind(&self.kind, at < 3)?;
        if self.devices.is_empty() {
            return Err("invalid spec, no devices".to_owned());
        }
        let mut known = BTreeSet::new();
        for device in &self.devices {
            check_name(&device.name)?;
            if !known.insert(&device.name) {
                return Err(format!("invalid spec, multiple device {:?}", device.name));
            }
            if device.container_edits == Edits::default() {
                return Err(format!("invalid device {:?}, empty device edits", device.name));
            }
            device
                .container_edits
                .check()
                .map_err(|why| format!("invalid device {:?}: {why}", device.name))?;
        }
        self.container_edits.check()
    }

    /// The oldest version that has all that the file uses.
    fn needs(&self) -> &'static str {
        let edits =
            || self.devices.iter().map(|device| &device.container_edits).chain([&self.container_edits]);
        let noted = !self.annotations.is_empty() || self.devices.iter().any(|d| !d.annotations.is_empty());
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        let digit = |device: &Device| device.name.starts_with(|first: char| first.is_ascii_digit());
        if edits().any(|edits| edits.intel_rdt.is_some() || !edits.additional_gids.is_empty()) {
            "0.7.0"
        } else if noted || class.contains('.') {
            "0.6.0"
        } else if self.devices.iter().any(digit)
            || edits().any(|edits| edits.device_nodes.iter().any(|node| node.host_path.is_some()))
        {
            "0.5.0"
        } else if edits().any(|edits| edits.mounts.iter().any(|mount| !mount.kind.is_empty())) {
            "0.4.0"
        } else {
            "0.3.0"
        }
    }
}

impl Edits {
    fn check(&self) -> Result<(), String> {
        if let Some(pair) = self
            .env
            .iter()
            .find(|pair| pair.split('=').next().is_none_or(str::is_empty) || !pair.contains('='))
        {
            return Err(format!("invalid environment variable {pair:?}"));
        }
        for node in &self.device_nodes {
            if node.path.is_empty() {
                return Err("invalid (empty) device path".to_owned());
            }
            if !matches!(node.kind.as_deref(), None | Some("" | "b" | "c" | "u" | "p")) {
                return Err(format!("device {:?}: invalid type {:?}", node.path, node.kind));
            }
            let letters = node.permissions.as_deref().unwrap_or_default();
            if letters.chars().any(|letter| !matches!(letter, 'r' | 'w' | 'm')) {
                return Err(format!("device {:?}: invalid permissions {letters:?}", node.path));
            }
        }
        for mount in &self.mounts {
            if mount.host_path.is_empty() || mount.container_path.is_empty() {
                return Err("invalid mount, empty host or container path".to_owned());
            }
        }
        for hook in &self.hooks {
            let names =
                ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
            if !names.contains(&hook.hook_name.as_str()) {
                return Err(format!("invalid hook name {:?}", hook.hook_name));
            }
            if hook.path.is_empty() {
                return Err(format!("invalid hook {:?}, empty path", hook.hook_name));
            }
        }
        Ok(())
    }
}

/// What the folders have.
#[derive(Default)]
struct Registry {
    /// By full name: the file it is of, and which of its devices; none where two files of a folder have it.
    devices: BTreeMap<String, Result<(Arc<SpecFile>, usize), String>>,
    /// Files that are none.
    broken: Vec<String>,
}

impl Registry {
    fn read(folders: &[PathBuf]) -> Self {
        let mut this = Self::default();
        for folder in folders {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            let named = |path: &PathBuf| path.extension().is_some_and(|end| end == "json" || end == "yaml");
            let mut files: Vec<PathBuf> = entries.filter(named).collect();
            files.sort();
            let mut here: BTreeMap<String, (PathBuf, Arc<SpecFile>, usize)> = BTreeMap::new();
            let mut both: BTreeMap<String, String> = BTreeMap::new();
            for path in files {
                let spec = match SpecFile::parse(&path) {
                    Ok(spec) => Arc::new(spec),
                    Err(why) => {
                        this.broken.push(format!("{}: {why}", path.display()));
                        continue;
                    }
                };
                for (at, device) in spec.devices.iter().enumerate() {
                    let name = format!("{}={}", spec.kind, device.name);
                    if let Some((other, ..)) = here.get(&name) {
                        let why = format!(
                            "conflicting device {name:?} (specs {:?}, {:?})",
                            path.display().to_string(),
                            other.display().to_string()
                        );
                        both.insert(name, why);
                    } else {
                        here.insert(name, (path.clone(), spec.clone(), at));
                    }
                }
            }
            this.devices.extend(here.into_iter().map(|(name, (_, spec, at))| (name, Ok((spec, at)))));
            this.devices.extend(both.into_iter().map(|(name, why)| (name, Err(why))));
        }
        this
    }
}

/// All devices that a configuration names: in its list, then in annotations, each once.
fn wanted(config: &v1::ContainerConfig) -> Vec<String> {
    let mut notes: Vec<(&String, &String)> =
        config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)).collect();
    notes.sort();
    let noted = notes.into_iter().flat_map(|(_, list)| list.split(',')).map(str::trim);
    let mut found: Vec<String> = Vec::new();
    for name in config.cdi_devices.iter().map(|device| device.name.as_str()).chain(noted) {
        if !name.is_empty() && !found.iter().any(|known| known == name) {
            found.push(name.to_owned());
        }
    }
    found
}

/// What a container's devices need beyond what its configuration has words for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Injected {
    /// Device files.
    pub(crate) nodes: Vec<CdiNode>,
    /// Programs to run at steps of its life.
    pub(crate) hooks: Hooks,
    /// Options of mounts, by path in the container.
    pub(crate) restrictions: BTreeMap<String, Vec<Restriction>>,
}

/// Puts into a container's configuration what its devices need; what that has no words for is returned.
pub(crate) fn inject(
    folders: &[PathBuf],
    config: &mut v1::ContainerConfig,
) -> Result<Injected, RuntimeError> {
    let wanted = wanted(config);
    if wanted.is_empty() {
        return Ok(Injected::default());
    }
    let failed = |why: String| RuntimeError::Invalid(format!("CDI device injection failed: {why}"));
    let registry = Registry::read(folders);
    let mut edits: Vec<(&str, &Edits)> = Vec::new();
    let mut unknown: Vec<&str> = Vec::new();
    let mut specs: Vec<*const SpecFile> = Vec::new();
    for name in &wanted {
        qualified(name).map_err(&failed)?;
        match registry.devices.get(name) {
            Some(Ok((spec, at))) => {
                // what holds for all devices of a file, once
                if !specs.contains(&Arc::as_ptr(spec)) {
                    specs.push(Arc::as_ptr(spec));
                    edits.push((name, &spec.container_edits));
                }
                edits.extend(spec.devices.get(*at).map(|device| (name.as_str(), &device.container_edits)));
            }
            Some(Err(why)) => return Err(failed(why.clone())),
            None => unknown.push(name),
        }
    }
    if !unknown.is_empty() {
        let mut text = format!("unresolvable CDI devices {}", unknown.join(", "));
        if !registry.broken.is_empty() {
            text.push_str(&format!(" (not read: {})", registry.broken.join("; ")));
        }
        return Err(failed(text));
    }
    let mut injected = Injected::default();
    for (name, edits) in edits {
        apply(edits, config, &mut injected).map_err(|why| failed(format!("{name}: {why}")))?;
    }
    Ok(injected)
}

fn apply(edits: &Edits, config: &mut v1::ContainerConfig, injected: &mut Injected) -> Result<(), String> {
    for hook in &edits.hooks {
        let step = injected.hooks.of(&hook.hook_name);
        step.ok_or_else(|| format!("unknown hook {:?}", hook.hook_name))?.push(hook.resolve()?);
    }
    if edits.intel_rdt.is_some() {
        return Err("intelRdt is not supported".to_owned());
    }
    for pair in &edits.env {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        config.envs.retain(|known| known.key != key);
        config.envs.push(v1::KeyValue { key: key.to_owned(), value: value.to_owned() });
    }
    let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    // who does not run as root must be able to open its device
    let user = context.run_as_user.as_ref().and_then(|user| u32::try_from(user.value).ok());
    let group = context.run_as_group.as_ref().and_then(|group| u32::try_from(group.value).ok());
    for gid in edits.additional_gids.iter().filter(|gid| **gid > 0) {
        if !context.supplemental_groups.contains(&i64::from(*gid)) {
            context.supplemental_groups.push(i64::from(*gid));
        }
    }
    for node in &edits.device_nodes {
        let found = node.resolve(user, group)?;
        injected.nodes.retain(|known| known.node.path != found.node.path);
        config.devices.retain(|known| known.container_path != found.node.path);
        injected.nodes.push(found);
    }
    for mount in &edits.mounts {
        let restrictions = mount.options.iter().filter_map(|option| Restriction::parse(option)).collect();
        injected.restrictions.insert(mount.container_path.clone(), restrictions);
        let mount = mount.resolve()?;
        config.mounts.retain(|known| known.container_path != mount.container_path);
        config.mounts.push(mount);
    }
    Ok(())
}

impl Node {
    fn resolve(&self, user: Option<u32>, group: Option<u32>) -> Result<CdiNode, String> {
        let host = self.host_path.as_deref().filter(|path| !path.is_empty()).unwrap_or(&self.path);
        let kind = self.kind.as_deref().unwrap_or_default();
        if kind == "p" {
            return Err(format!("device {:?} is a pipe: pipes are not supported", self.path));
        }
        let mut node = match (kind, self.major, self.minor) {
            ("b" | "c" | "u", Some(major), Some(minor)) => {
                let block = kind == "b";
                DeviceNode { path: self.path.clone(), block, major, minor, mode: 0o666, uid: 0, gid: 0 }
            }
            _ => {
                let metadata = fs::metadata(host).map_err(|error| format!("device {host:?}: {error}"))?;
                let found = device_node(&self.path, &metadata);
                let found = found.ok_or_else(|| format!("{host:?} is not a device"))?;
                let other = found.block != (kind == "b");
                if !kind.is_empty() && other {
                    return Err(format!("device {host:?} is not of type {kind:?}"));
                }
                DeviceNode {
                    major: self.major.unwrap_or(found.major),
                    minor: self.minor.unwrap_or(found.minor),
                    ..found
                }
            }
        };
        node.mode = self.file_mode.map_or(node.mode, |mode| mode & 0o7777);
        node.uid = self.uid.or(user.filter(|id| *id > 0)).unwrap_or(node.uid);
        node.gid = self.gid.or(group.filter(|id| *id > 0)).unwrap_or(node.gid);
        let permissions = self.permissions.clone().filter(|letters| !letters.is_empty());
        Ok(CdiNode { node, permissions: permissions.unwrap_or_else(|| "rwm".to_owned()) })
    }
}

impl Hook {
    fn resolve(&self) -> Result<spec::Hook, String> {
        let path = PathBuf::from(&self.path);
        if !path.is_absolute() {
            return Err(format!("hook {:?} is no absolute path", self.path));
        }
        if let Some(pair) = self.env.iter().find(|pair| !pair.contains('=')) {
            return Err(format!("hook {:?}: invalid environment variable {pair:?}", self.path));
        }
        let timeout = self.timeout.map(|seconds| u64::try_from(seconds).ok().filter(|seconds| *seconds > 0));
        let wrong = || format!("hook {:?}: invalid timeout", self.path);
        let timeout = timeout.map(|seconds| seconds.ok_or_else(wrong)).transpose()?;
        Ok(spec::Hook { path, args: self.args.clone(), env: self.env.clone(), timeout })
    }
}

impl Mount {
    fn resolve(&self) -> Result<v1::Mount, String> {
        let bind = self.options.iter().any(|option| option == "bind" || option == "rbind");
        if !(self.kind.is_empty() || self.kind == "bind" || self.kind == "none" && bind) {
            return Err(format!("mount {:?} of type {:?} is not supported", self.container_path, self.kind));
        }
        // a missing folder of a vendor is an error, not an empty one
        fs::metadata(&self.host_path).map_err(|error| format!("mount {:?}: {error}", self.host_path))?;
        let mut mount = v1::Mount {
            container_path: self.container_path.clone(),
            host_path: self.host_path.clone(),
            ..Default::default()
        };
        for option in &self.options {
            match option.as_str() {
                "ro" | "rro" => mount.readonly = true,
                "rw" | "bind" | "rbind" | "private" | "rprivate" => {}
                "slave" | "rslave" => {
                    mount.set_propagation(v1::MountPropagation::PropagationHostToContainer);
                }
                "shared" | "rshared" => {
                    mount.set_propagation(v1::MountPropagation::PropagationBidirectional);
                }
                // these and the times of access are as on the node
                "suid" | "dev" | "exec" | "relatime" | "noatime" => {}
                known if Restriction::parse(known).is_some() => {}
                other => {
                    return Err(format!(
                        "mount {:?}: option {other:?} is not supported",
                        self.container_path
                    ));
                }
            }
        }
        mount.recursive_read_only = self.options.iter().any(|option| option == "rro");
        Ok(mount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"
cdiVersion: 0.7.0
kind: vendor.com/gpu
containerEdits:
  env: [VENDOR=all, OWN=vendor]
  additionalGids: [0, 44]
devices:
- name: full
  containerEdits:
    deviceNodes: [{path: /dev/special, hostPath: /dev/full, permissions: r}]
    mounts: [{hostPath: /etc, containerPath: /vendor, options: [ro, nosuid, nodev, rbind, rprivate]}]
    env: [GPU=full]
- name: made
  containerEdits:
    deviceNodes: [{path: /dev/made, type: c, major: 1, minor: 3, fileMode: 432, uid: 7, gid: 8}]
- name: hooked
  containerEdits: {hooks: [{hookName: createContainer, path: /usr/bin/vendor-ctk, args: [vendor-ctk, hook], timeout: 5}]}
- name: loose
  containerEdits: {hooks: [{hookName: poststop, path: vendor-ctk}]}
"#;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn config(devices: &[&str]) -> v1::ContainerConfig {
        let device = |name: &&str| v1::CdiDevice { name: (*name).to_owned() };
        let own = v1::KeyValue { key: "OWN".to_owned(), value: "pod".to_owned() };
        v1::ContainerConfig {
            cdi_devices: devices.iter().map(device).collect(),
            envs: vec![own],
            ..Default::default()
        }
    }

    fn refused(files: &[(&str, &str)], device: &str) -> String {
        let folder = folder(files);
        let error = inject(&[folder.path().to_owned()], &mut config(&[device])).unwrap_err().to_string();
        let path = format!("{}/", folder.path().display());
        error.replace("CDI device injection failed: ", "").replace(&path, "")
    }

    #[test]
    fn a_container_gets_what_its_devices_need() {
        let folder = folder(&[("vendor.yaml", SPEC), ("notes.txt", "{")]);
        let mut config = config(&["vendor.com/gpu=full", "vendor.com/gpu=made"]);
        config.annotations.insert("cdi.k8s.io/x".to_owned(), "vendor.com/gpu=made".to_owned());
        config.devices.push(v1::Device { container_path: "/dev/made".to_owned(), ..Default::default() });
        let Injected { nodes, restrictions, .. } = inject(&[folder.path().to_owned()], &mut config).unwrap();
        assert_eq!(restrictions["/vendor"], [Restriction::SetUser, Restriction::Device]);
        let env: Vec<String> =
            config.envs.iter().map(|pair| format!("{}={}", pair.key, pair.value)).collect();
        assert_eq!(env, ["VENDOR=all", "OWN=vendor", "GPU=full"]);
        let context = config.linux.unwrap().security_context.unwrap();
        assert_eq!(context.supplemental_groups, [44]);
        assert_eq!((config.mounts.len(), config.mounts[0].readonly), (1, true));
        assert!(config.devices.is_empty(), "the vendor's takes its place");
        let shown: Vec<String> = nodes
            .iter()
            .map(|CdiNode { node: n, permissions }| {
                format!("{} {}:{} {:o} {}:{} {permissions}", n.path, n.major, n.minor, n.mode, n.uid, n.gid)
            })
            .collect();
        assert_eq!(shown, ["/dev/special 1:7 666 0:0 r", "/dev/made 1:3 660 7:8 rwm"]);
    }

    #[test]
    fn a_device_belongs_to_who_runs_unless_told_otherwise() {
        let folder = folder(&[("vendor.yaml", SPEC)]);
        let mut config = config(&["vendor.com/gpu=full"]);
        let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        context.run_as_user = Some(v1::Int64Value { value: 1000 });
        let nodes = inject(&[folder.path().to_owned()], &mut config).unwrap().nodes;
        assert_eq!((nodes[0].node.uid, nodes[0].node.gid), (1000, 0));
    }

    #[test]
    fn hooks_are_taken_by_their_step() {
        let folder = folder(&[("vendor.yaml", SPEC)]);
        let hooks =
            inject(&[folder.path().to_owned()], &mut config(&["vendor.com/gpu=hooked"])).unwrap().hooks;
        let hook = spec::Hook {
            path: "/usr/bin/vendor-ctk".into(),
            args: vec!["vendor-ctk".to_owned(), "hook".to_owned()],
            env: Vec::new(),
            timeout: Some(5),
        };
        assert_eq!(hooks, Hooks { create_container: vec![hook], ..Hooks::default() });
    }

    #[test]
    fn later_folders_win_and_two_of_one_folder_are_nobodys() {
        let spec = |value: &str| {
            format!(
                r#"{{"cdiVersion": "0.3.0", "kind": "v.com/c", "devices": [{{"name": "d", "containerEdits": {{"env": ["A={value}"]}}}}]}}"#
            )
        };
        let (first, second) = (folder(&[("a.json", &spec("1"))]), folder(&[("a.json", &spec("2"))]));
        let mut config = config(&["v.com/c=d"]);
        inject(&[first.path().to_owned(), second.path().to_owned()], &mut config).unwrap();
        assert_eq!(config.envs.last().unwrap().value, "2");
        let why = refused(&[("a.json", &spec("1")), ("b.json", &spec("2"))], "v.com/c=d");
        assert_eq!(why, "conflicting device \"v.com/c=d\" (specs \"b.json\", \"a.json\")");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let one = [("vendor.yaml", SPEC)];
        let check = |device: &str, why: &str| assert_eq!(refused(&one, device), why);
        check("vendor.com/gpu=other", "unresolvable CDI devices vendor.com/gpu=other");
        check("gpu", "unqualified device \"gpu\", missing '='");
        check("gpu=0", "unqualified kind \"gpu\", missing vendor or class");
        check("vendor.com/gpu=a b", "invalid device name \"a b\"");
        check("ven dor/gpu=a", "invalid vendor \"ven dor\"");
        check("vendor.com/gpu=loose", "vendor.com/gpu=loose: hook \"vendor-ctk\" is no absolute path");
        let broken = |version: &str, kind: &str, edits: &str| {
            let text = format!(
                "cdiVersion: {version}\nkind: {kind}\ndevices: [{{name: d, containerEdits: {edits}}}]"
            );
            let text = refused(&[("x.yaml", &text)], "v.com/c=d");
            let begin = "unresolvable CDI devices v.com/c=d (not read: x.yaml: ";
            text.strip_prefix(begin).and_then(|text| text.strip_suffix(')')).unwrap_or(&text).to_owned()
        };
        let versions = "0.3.0, 0.4.0, 0.5.0, 0.6.0, 0.7.0, 0.8.0, 1.0.0";
        assert_eq!(
            broken("9.0.0", "v.com/c", "{env: [A=b]}"),
            format!("invalid version \"9.0.0\", should be one of {versions}")
        );
        assert_eq!(
            broken("0.6.0", "v.com/c", "{additionalGids: [1]}"),
            "the spec version must be at least v0.7.0"
        );
        assert_eq!(
            broken("0.4.0", "v.com/c", "{deviceNodes: [{path: /a, hostPath: /b}]}"),
            "the spec version must be at least v0.5.0"
        );
        assert_eq!(broken("1.0.0", "v.com/c", "{}"), "invalid device \"d\", empty device edits");
        assert_eq!(
            broken("1.0.0", "v.com/c", "{env: [A]}"),
            "invalid device \"d\": invalid environment variable \"A\""
        );
        assert!(broken("1.0.0", "v.com/c", "{evn: [A=b]}").contains("unknown field `evn`"));
        assert_eq!(
            broken("1.0.0", "v.com/c", "{mounts: [{hostPath: /none/such, containerPath: /a}]}"),
            "v.com/c=d: mount \"/none/such\": No such file or directory (os error 2)"
        );
        assert_eq!(
            broken("1.0.0", "v.com/c", "{deviceNodes: [{path: /dev/none-such}]}"),
            "v.com/c=d: device \"/dev/none-such\": No such file or directory (os error 2)"
        );
        assert_eq!(
            broken("1.0.0", "v.com/c", "{deviceNodes: [{path: /etc/passwd}]}"),
            "v.com/c=d: \"/etc/passwd\" is not a device"
        );
        assert_eq!(
            broken("1.0.0", "v.com/c", "{mounts: [{hostPath: tmpfs, containerPath: /a, type: tmpfs}]}"),
            "v.com/c=d: mount \"/a\" of type \"tmpfs\" is not supported"
        );
    }
}
