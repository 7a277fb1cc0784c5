//! What the kubelet remembers in files: a file is there whole, or as it was before.

use std::io;
use std::path::Path;

use serde::Serialize;

/// Writes `value` as JSON to `folder`/`name`, the folder made where it is missing: aside, then renamed.
pub fn write_json<T: Serialize>(folder: &Path, name: &str, value: &T) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let aside = folder.join(format!("{name}.new"));
    std::fs::write(&aside, serde_json::to_vec(value)?)?;
    std::fs::rename(aside, folder.join(name))
}
