//! AppArmor: which profile confines a container, and our own one, which `RuntimeDefault` means.
//!
//! No parser is needed on the node: the profile is part of the program in the form that the kernel takes, for the features
//! of AppArmor 3.0, which every later kernel knows. It is loaded when the runtime starts and stays until nobody is confined
//! by it any more; other runtimes' profiles are not touched. Instances on one machine share it: each holds a lock on the
//! kernel's folder of policy as long as it runs, and only who finds nobody there takes the profile away.

use std::fs;
use std::io;
use std::path::Path;

use cri::v1;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use v1::security_profile::ProfileType;

use crate::error::RuntimeError;

/// Our own profile's name.
const DEFAULT: &str = "navarch-default";
/// `navarch-default.profile` as `cargo xtask apparmor` compiled it.
const COMPILED: &[u8] = include_bytes!("navarch-default.bin");
/// The kernel's policy.
const POLICY: &str = "/sys/kernel/security/apparmor";

/// The kernel enforces AppArmor profiles.
fn enabled() -> bool {
    fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|value| value.starts_with(b"Y"))
}

/// Our profile is loaded as long as this lives.
#[derive(Debug)]
pub(crate) struct Loaded {
    _lock: Option<fs::File>,
}

/// Loads our profile, in the place of an older one of ours; nothing without AppArmor.
pub(crate) fn load() -> Loaded {
    let attempt = || {
        let lock = fs::File::open(POLICY)?;
        flock(&lock, FlockOperation::LockShared)?;
        fs::write(Path::new(POLICY).join(".replace"), COMPILED)?;
        Ok::<_, io::Error>(lock)
    };
    if !enabled() {
        return Loaded { _lock: None };
    }
    match attempt() {
        Ok(lock) => Loaded { _lock: Some(lock) },
        Err(error) => {
            // without it, containers that ask for it do not start, and say why
            tracing::error!(%error, "cannot load the AppArmor profile {DEFAULT}");
            Loaded { _lock: None }
        }
    }
}

/// Removes our profile unless another instance runs or a process is confined by it.
pub(crate) fn unload() -> io::Result<()> {
    if !enabled() || !known(DEFAULT)? {
        return Ok(());
    }
    let lock = fs::File::open(POLICY)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(()),
        locked => locked?,
    }
    if used()? { Ok(()) } else { fs::write(Path::new(POLICY).join(".remove"), DEFAULT) }
}

fn used() -> io::Result<bool> {
    for entry in fs::read_dir("/proc")?.flatten() {
        // processes end while we look
        let current = fs::read_to_string(entry.path().join("attr/apparmor/current")).unwrap_or_default();
        if current.split_whitespace().next() == Some(DEFAULT) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the kernel has a profile of this name: its lines read `name (mode)`.
fn known(profile: &str) -> io::Result<bool> {
    let all = fs::read_to_string(Path::new(POLICY).join("profiles"))?;
    Ok(all.lines().any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile)))
}

/// The profile of a container; `None`: unconfined.
///
/// Rule: Kubernetes documentation, "Restrict a Container's Access to Resources with AppArmor": where the kernel has AppArmor
/// a container that asks for nothing gets the default, unless it is privileged.
pub(crate) fn profile(context: &v1::LinuxContainerSecurityContext) -> Result<Option<String>, RuntimeError> {
    let enabled = enabled();
    let wanted = match &context.apparmor {
        None if enabled && !context.privileged => DEFAULT,
        None => return Ok(None),
        Some(profile) => match profile.profile_type() {
            ProfileType::Unconfined => return Ok(None),
            // the kubelet refuses such a pod where there is no AppArmor; other callers mean "if there is one"
            ProfileType::RuntimeDefault if !enabled => return Ok(None),
            ProfileType::RuntimeDefault => DEFAULT,
            ProfileType::Localhost => {
                profile.localhost_ref.strip_prefix("localhost/").unwrap_or(&profile.localhost_ref)
            }
        },
    };
    if !enabled {
        return Err(RuntimeError::Unsupported(format!(
            "AppArmor profile {wanted:?}: this node's kernel has no AppArmor"
        )));
    }
    if !known(wanted).map_err(RuntimeError::io("the kernel's AppArmor profiles"))? {
        return Err(RuntimeError::Invalid(format!("apparmor profile not found {wanted}")));
    }
    Ok(Some(wanted.to_owned()))
}
