//! The policy of guests with SELinux: a small one, by Debian's compiler, in which containers have labels.

use anyhow::{Context, bail};

use crate::debian;

const POLICY: &str = include_str!("selinux.cil");
/// The newest format that Linux 6.1 reads.
const FORMAT: &str = "33";

/// In the form that the kernel takes.
pub(super) fn policy() -> anyhow::Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let source = folder.path().join("policy.cil");
    let names: Vec<String> = (0..1024).map(|number| format!("c{number}")).collect();
    let mut text = POLICY.to_owned();
    names.iter().for_each(|name| text.push_str(&format!("(category {name})\n")));
    text.push_str(&format!("(categoryorder ({}))\n", names.join(" ")));
    std::fs::write(&source, text)?;
    let mut command = debian::command("secilc", &["secilc", "libsepol2"])?;
    command.args(["-c", FORMAT, "-o", "policy", "-f", "/dev/null"]).arg(&source).current_dir(folder.path());
    let output = command.output().context("cannot run secilc")?;
    if !output.status.success() {
        bail!("secilc: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(std::fs::read(folder.path().join("policy"))?)
}
