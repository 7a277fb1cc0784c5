//! `cargo xtask apparmor`: our AppArmor profile in the form that the kernel takes, by Debian's `apparmor_parser`.
//!
//! The output is committed, so that neither nodes nor those who build the project need the parser.

use std::path::Path;
use std::process::Command;

/// Compiles `crates/runtime/src/apparmor/navarch-default.profile` for the features of AppArmor 3.0.
pub fn run(root: &Path) -> anyhow::Result<()> {
    let folder = root.join("crates/runtime/src/apparmor");
    let found = testkit::debian::command("apparmor_parser", &["apparmor"])?;
    let program = Path::new(found.get_program()).to_owned();
    // an unpacked package has its files beside it: ROOT/sbin/apparmor_parser
    let beside = program.ancestors().nth(2).map(|root| root.join("etc/apparmor.d"));
    let base = beside.filter(|base| base.is_dir()).unwrap_or_else(|| "/etc/apparmor.d".into());
    let features = base.join("abi/3.0");
    let mut command = Command::new(&program);
    command.arg("--base").arg(&base).arg("--Include").arg(&base).arg("--features-file").arg(&features);
    command.args(["--skip-kernel-load", "--skip-cache", "--ofile"]).arg(folder.join("navarch-default.bin"));
    testkit::run(command.arg(folder.join("navarch-default.profile"))).map(drop)
}
