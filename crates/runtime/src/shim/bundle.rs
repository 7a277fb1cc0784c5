//! A container as an OCI runtime reads it: `config.json` of its bundle, and the `process` of what is executed later.

use std::path::Path;

use serde_json::{Value, json};

use super::init::environment;
use crate::{
    capability,
    spec::{ContainerSpec, Hooks, OciSpec, PidMode, ProcessSpec, Propagation, ResolvedUser},
};

/// The specification's version.
pub(super) const VERSION: &str = "1.0.2";

/// What of a container is known only where it is made.
pub(super) struct Place<'a> {
    /// Who it runs as.
    pub(super) user: ResolvedUser,
    /// The `oom_score_adj` it can have.
    pub(super) oom_score_adj: Option<i32>,
    /// Capabilities that this node can give.
    pub(super) held: u64,
    /// Namespaces of the pod that it enters: kind and path.
    pub(super) namespaces: Vec<(&'static str, String)>,
    /// Its root file system.
    pub(super) root: &'a Path,
    /// By mount: where its content is.
    pub(super) sources: &'a [std::path::PathBuf],
    /// The pod's `/dev/shm`; none: the node's.
    pub(super) shm: Option<&'a Path>,
    /// The kernel has POSIX message queues.
    pub(super) mqueue: bool,
}

/// `config.json`.
pub(super) fn config(spec: &ContainerSpec, oci: &OciSpec, place: &Place<'_>) -> Value {
    let mut namespaces: Vec<Value> =
        place.namespaces.iter().map(|(kind, path)| json!({"type": kind, "path": path})).collect();
    namespaces.push(json!({"type": "mount"}));
    if !spec.sees_nodes_cgroups() {
        namespaces.push(json!({"type": "cgroup"}));
    }
    if spec.pid == PidMode::Container {
        namespaces.push(json!({"type": "pid"}));
    }
    let devices: Vec<Value> = spec
        .devices
        .iter()
        .map(|node| {
            json!({
                "path": node.path,
                "type": if node.block { "b" } else { "c" },
                "major": node.major,
                "minor": node.minor,
                "fileMode": node.mode,
                "uid": node.uid,
                "gid": node.gid,
            })
        })
        .collect();
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": oci.cgroup,
        "resources": oci.resources,
        "devices": devices,
        "maskedPaths": spec.masked_paths,
        "readonlyPaths": spec.readonly_paths,
    });
    if let Some(seccomp) = &oci.seccomp {
        linux["seccomp"] = seccomp.clone();
    }
    if let Some(label) = &spec.rootfs.label {
        linux["mountLabel"] = label.as_str().into();
    }
    // A mount can only propagate as far as what it is mounted on does.
    let any = |wanted| spec.mounts.iter().any(|mount| mount.propagation == wanted);
    if any(Propagation::Shared) {
        linux["rootfsPropagation"] = "rshared".into();
    } else if any(Propagation::Slave) {
        linux["rootfsPropagation"] = "rslave".into();
    }
    let mut config = json!({
        "ociVersion": VERSION,
        "process": process(&spec.process, place),
        "root": {"path": place.root, "readonly": spec.rootfs.readonly},
        "mounts": mounts(spec, place),
        "annotations": oci.annotations,
        "linux": linux,
    });
    if oci.hooks != Hooks::default() {
        config["hooks"] = json!(oci.hooks);
    }
    config
}

fn mounts(spec: &ContainerSpec, place: &Place<'_>) -> Vec<Value> {
    const SAFE: [&str; 3] = ["nosuid", "noexec", "nodev"];
    let mount = |target: &str, kind: &str, source: &Path, options: &[&str]| json!({"destination": target, "type": kind, "source": source, "options": options});
    let of_kernel = |target: &str, kind: &str, more: &[&str]| {
        mount(target, kind, Path::new(kind), &[&SAFE[..], more].concat())
    };
    let sealed: &[&str] = if spec.privileged { &["rw"] } else { &["ro"] };
    let mut mounts = vec![
        of_kernel("/proc", "proc", &[]),
        mount("/dev", "tmpfs", Path::new("tmpfs"), &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            Path::new("devpts"),
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        of_kernel("/sys", "sysfs", sealed),
        match spec.sees_nodes_cgroups() {
            true => mount("/sys/fs/cgroup", "bind", Path::new("/sys/fs/cgroup"), &["bind", "rw"]),
            false => of_kernel("/sys/fs/cgroup", "cgroup", sealed),
        },
    ];
    let shm = place.shm.unwrap_or(Path::new("/dev/shm"));
    mounts.push(mount("/dev/shm", "bind", shm, &["rbind", "nosuid", "noexec", "nodev"]));
    if spec.host_ipc && Path::new("/dev/mqueue").exists() {
        mounts.push(mount("/dev/mqueue", "bind", Path::new("/dev/mqueue"), &["rbind"]));
    } else if !spec.host_ipc && place.mqueue {
        mounts.push(of_kernel("/dev/mqueue", "mqueue", &[]));
    }
    for (given, source) in spec.mounts.iter().zip(place.sources) {
        let propagation = match given.propagation {
            Propagation::Private => "rprivate",
            Propagation::Slave => "rslave",
            Propagation::Shared => "rshared",
        };
        let access = match (given.readonly, given.recursive_readonly) {
            (false, _) => "rw",
            (true, false) => "ro",
            (true, true) => "rro",
        };
        let mut options = vec!["rbind", propagation, access];
        options.extend(given.restrictions.iter().map(|restriction| restriction.name()));
        mounts.push(mount(&given.target, "bind", source, &options));
    }
    mounts
}

/// A `process`.
pub(super) fn process(process: &ProcessSpec, place: &Place<'_>) -> Value {
    let user = &place.user;
    let given = capability::names(process.capabilities & place.held);
    let ambient = capability::names(process.capabilities & process.ambient & place.held);
    let mut value = json!({
        "terminal": process.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": process.args,
        "env": environment(process, user),
        "cwd": if process.cwd.is_empty() { "/" } else { &process.cwd },
        "capabilities": {
            "bounding": given,
            "effective": given,
            "permitted": given,
            "inheritable": ambient,
            "ambient": ambient,
        },
        "noNewPrivileges": process.no_new_privs,
    });
    if let Some(profile) = &process.apparmor {
        value["apparmorProfile"] = profile.as_str().into();
    }
    if let Some(label) = &process.selinux {
        value["selinuxLabel"] = label.as_str().into();
    }
    if let Some(adj) = place.oom_score_adj {
        value["oomScoreAdj"] = adj.into();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{MountSource, MountSpec};

    fn mount(target: &str, readonly: bool, propagation: Propagation) -> MountSpec {
        MountSpec {
            source: MountSource::Bind("/src".into()),
            target: target.to_owned(),
            readonly,
            recursive_readonly: false,
            propagation,
            restrictions: Vec::new(),
            sub_path: String::new(),
            mapped: false,
            filled: false,
        }
    }

    #[test]
    fn bundle_says_what_the_shim_would_do() {
        let spec: ContainerSpec = serde_json::from_value(json!({
            "id": "c", "log_path": null, "cgroup": {"tasks": [], "unified": null}, "oom_file": null,
            "rootfs": {"lower": [], "upper": "", "work": "", "target": "", "readonly": true, "label": "u:o:f:s0"},
            "pid": "Pod", "host_ipc": false, "mounts": [], "devices": [], "cgroup_mounts": [],
            "masked_paths": ["/proc/kcore"], "readonly_paths": ["/proc/sys"], "privileged": false,
            "stdin": false, "stdin_once": false,
            "process": {
                "args": ["sh"], "env": ["A=b"], "cwd": "",
                "user": {"user": "", "gid": null, "supplemental": [], "strict": false},
                "capabilities": 0b1_0000_0001, "ambient": 0, "no_new_privs": true, "seccomp": [],
                "apparmor": null, "selinux": "u:r:t:s0", "oom_score_adj": 5, "tty": true,
            },
        }))
        .unwrap();
        let spec = ContainerSpec {
            mounts: vec![
                mount("/etc/hosts", true, Propagation::Private),
                mount("/data", false, Propagation::Slave),
            ],
            ..spec
        };
        let oci = OciSpec {
            program: Some("/bin/runtime".into()),
            cgroup: "/pod/c".to_owned(),
            resources: json!({"memory": {"limit": 1}}),
            seccomp: None,
            annotations: Default::default(),
            hooks: Hooks::default(),
        };
        let place = Place {
            user: ResolvedUser { uid: 7, gid: 8, groups: vec![8, 9], home: "/h".to_owned() },
            oom_score_adj: Some(5),
            held: 1,
            namespaces: vec![("network", "/net".to_owned()), ("pid", "/pid".to_owned())],
            root: Path::new("/root"),
            sources: &["/src".into(), "/stage/1".into()],
            shm: Some(Path::new("/stage/shm")),
            mqueue: false,
        };
        let config = config(&spec, &oci, &place);
        expect_test::expect![[r#"
            {
              "annotations": {},
              "linux": {
                "cgroupsPath": "/pod/c",
                "devices": [],
                "maskedPaths": [
                  "/proc/kcore"
                ],
                "mountLabel": "u:o:f:s0",
                "namespaces": [
                  {
                    "path": "/net",
                    "type": "network"
                  },
                  {
                    "path": "/pid",
                    "type": "pid"
                  },
                  {
                    "type": "mount"
                  },
                  {
                    "type": "cgroup"
                  }
                ],
                "readonlyPaths": [
                  "/proc/sys"
                ],
                "resources": {
                  "memory": {
                    "limit": 1
                  }
                },
                "rootfsPropagation": "rslave"
              },
              "mounts": [
                {
                  "destination": "/proc",
                  "options": [
                    "nosuid",
                    "noexec",
                    "nodev"
                  ],
                  "source": "proc",
                  "type": "proc"
                },
                {
                  "destination": "/dev",
                  "options": [
                    "nosuid",
                    "strictatime",
                    "mode=755",
                    "size=65536k"
                  ],
                  "source": "tmpfs",
                  "type": "tmpfs"
                },
                {
                  "destination": "/dev/pts",
                  "options": [
                    "nosuid",
                    "noexec",
                    "newinstance",
                    "ptmxmode=0666",
                    "mode=0620",
                    "gid=5"
                  ],
                  "source": "devpts",
                  "type": "devpts"
                },
                {
                  "destination": "/sys",
                  "options": [
                    "nosuid",
                    "noexec",
                    "nodev",
                    "ro"
                  ],
                  "source": "sysfs",
                  "type": "sysfs"
                },
                {
                  "destination": "/sys/fs/cgroup",
                  "options": [
                    "nosuid",
                    "noexec",
                    "nodev",
                    "ro"
                  ],
                  "source": "cgroup",
                  "type": "cgroup"
                },
                {
                  "destination": "/dev/shm",
                  "options": [
                    "rbind",
                    "nosuid",
                    "noexec",
                    "nodev"
                  ],
                  "source": "/stage/shm",
                  "type": "bind"
                },
                {
                  "destination": "/etc/hosts",
                  "options": [
                    "rbind",
                    "rprivate",
                    "ro"
                  ],
                  "source": "/src",
                  "type": "bind"
                },
                {
                  "destination": "/data",
                  "options": [
                    "rbind",
                    "rslave",
                    "rw"
                  ],
                  "source": "/stage/1",
                  "type": "bind"
                }
              ],
              "ociVersion": "1.0.2",
              "process": {
                "args": [
                  "sh"
                ],
                "capabilities": {
                  "ambient": [],
                  "bounding": [
                    "CAP_CHOWN"
                  ],
                  "effective": [
                    "CAP_CHOWN"
                  ],
                  "inheritable": [],
                  "permitted": [
                    "CAP_CHOWN"
                  ]
                },
                "cwd": "/",
                "env": [
                  "A=b",
                  "HOME=/h"
                ],
                "noNewPrivileges": true,
                "oomScoreAdj": 5,
                "selinuxLabel": "u:r:t:s0",
                "terminal": true,
                "user": {
                  "additionalGids": [
                    8,
                    9
                  ],
                  "gid": 8,
                  "uid": 7
                }
              },
              "root": {
                "path": "/root",
                "readonly": true
              }
            }
        "#]]
        .assert_eq(&format!("{config:#}\n"));
    }
}
