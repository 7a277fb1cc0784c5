//! What volumes need of the machine: its programs, its device files, and what its kernel tells of disks.
//!
//! No program is needed on a node by itself: whoever uses a volume of such a kind is told which one is missing.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::selinux::FileLabel;

/// Programs, and the packages they are in: of Debian and its kin, and of the others.
const PACKAGES: &[(&str, &str)] = &[
    ("mount.nfs", "nfs-common (Debian, Ubuntu) or nfs-utils"),
    ("iscsiadm", "open-iscsi (Debian, Ubuntu) or iscsi-initiator-utils"),
    ("multipath", "multipath-tools (Debian, Ubuntu) or device-mapper-multipath"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.ext3", "e2fsprogs"),
    ("mkfs.ext2", "e2fsprogs"),
    ("mount", "util-linux"),
    ("blkid", "util-linux"),
];
/// Programs of administrators, which a service's `PATH` may leave out.
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Where they are.
#[derive(Debug, Clone)]
pub struct Host {
    /// Folders of programs, the first wins.
    pub programs: Vec<PathBuf>,
    /// `/dev`.
    pub dev: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// The SELinux label of containers' files, where the kernel has labels and the policy one for them.
    pub file_label: Option<FileLabel>,
}

impl Default for Host {
    fn default() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let programs = std::env::split_paths(&path).chain(FOLDERS.map(PathBuf::from)).collect();
        Self { programs, dev: "/dev".into(), sys: "/sys".into(), file_label: FileLabel::of_node() }
    }
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not there.
    #[error("{program} is not installed on this node: install {package}")]
    Missing {
        /// The program.
        program: String,
        /// What brings it.
        package: String,
    },
    /// It cannot be run.
    #[error("cannot run {program}: {source}")]
    Run {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It failed.
    #[error("{line}: exit status {code}: {said}")]
    Failed {
        /// The program and its arguments, without what is secret.
        line: String,
        /// Its exit status; -1 after a signal.
        code: i32,
        /// What it said.
        said: String,
    },
}

impl ProgramError {
    /// The exit status, where there is one.
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Failed { code, .. } => Some(*code),
            _ => None,
        }
    }
}

impl Host {
    /// The program's file.
    pub fn find(&self, program: &str) -> Result<PathBuf, ProgramError> {
        let found = self.programs.iter().map(|folder| folder.join(program)).find(|path| path.is_file());
        found.ok_or_else(|| {
            let known = PACKAGES.iter().find(|(name, _)| *name == program);
            let package = known.map_or("the package that has it", |(_, package)| package);
            ProgramError::Missing { program: program.to_owned(), package: package.to_owned() }
        })
    }

    /// Runs a program to its end; what it wrote. It ends with who waits for it.
    pub async fn run(&self, program: &str, arguments: &[&str]) -> Result<String, ProgramError> {
        self.run_secretly(program, arguments, &[]).await
    }

    /// The same, with arguments at the end that no message may show.
    pub async fn run_secretly(
        &self,
        program: &str,
        arguments: &[&str],
        secret: &[&str],
    ) -> Result<String, ProgramError> {
        let file = self.find(program)?;
        let failed = |source| ProgramError::Run { program: program.to_owned(), source };
        let path = std::env::join_paths(&self.programs)
            .map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, error)))?;
        let mut command = Command::new(file);
        command.args(arguments).args(secret).env("PATH", path).env("LC_ALL", "C").stdin(Stdio::null());
        let output = command.kill_on_drop(true).output().await.map_err(failed)?;
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        // writing to a String cannot fail
        let _ = write!(said, "{}", String::from_utf8_lossy(&output.stderr));
        let hidden = if secret.is_empty() { "" } else { " (masked)" };
        Err(ProgramError::Failed {
            line: format!("{program} {}{hidden}", arguments.join(" ")),
            code: output.status.code().unwrap_or(-1),
            said: said.trim().to_owned(),
        })
    }

    /// Mounts a file system by `mount`, or by the kind's own helper.
    pub async fn mount(
        &self,
        source: &str,
        target: &Path,
        kind: &str,
        options: &[String],
    ) -> Result<(), ProgramError> {
        let (options, target) = (options.join(","), target.display().to_string());
        let helper = format!("mount.{kind}");
        let mut arguments = Vec::new();
        let program = if kind == "nfs" {
            arguments.extend([source, &target]);
            helper.as_str()
        } else {
            arguments.extend(["-t", kind]);
            "mount"
        };
        if !options.is_empty() {
            arguments.extend(["-o", options.as_str()]);
        }
        if program == "mount" {
            arguments.extend([source, target.as_str()]);
        }
        self.run(program, &arguments).await.map(drop)
    }
}

/// What the file of a kernel's attribute says.
pub fn attribute(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Entries of a folder, in order; none where it is not there.
pub fn entries(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// The last part of a path.
pub fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_program_is_named_with_its_package_and_a_failing_one_with_what_it_said() {
        let host = Host { programs: vec!["/nowhere".into()], ..Host::default() };
        let missing = host.mount("server:/path", Path::new("/x"), "nfs", &[]).await.unwrap_err();
        assert_eq!(
            missing.to_string(),
            "mount.nfs is not installed on this node: install nfs-common (Debian, Ubuntu) or nfs-utils"
        );
        let host = Host::default();
        let failed = host.run_secretly("sh", &["-c", "echo $0 | tr a-z x >&2; exit 3"], &["hidden"]).await;
        let failed = failed.unwrap_err();
        assert_eq!(failed.code(), Some(3));
        let text = "sh -c echo $0 | tr a-z x >&2; exit 3 (masked): exit status 3: xxxxxx";
        assert_eq!(failed.to_string(), text);
    }
}
