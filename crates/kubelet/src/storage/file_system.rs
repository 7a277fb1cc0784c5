//! The file system of a disk: made where there is none, checked, and mounted.
//!
//! Rule: what kubelets do for disks of volumes of mode Filesystem (Kubernetes documentation, "Volumes", `fsType`).

use std::path::Path;

use super::host::{Host, ProgramError};

/// blkid knows nothing on the disk.
const BLANK: i32 = 2;
/// fsck found what it could not mend.
const UNCORRECTED: i32 = 4;
/// fsck mended what it found.
const CORRECTED: i32 = 1;

/// Mounts `device`; a blank one is given a file system of `kind` first (`ext4` where it is empty). What is on a disk is never written over.
pub async fn mount(
    host: &Host,
    device: &Path,
    target: &Path,
    kind: &str,
    options: &[String],
) -> Result<(), String> {
    let disk = device.display().to_string();
    let read_only = options.iter().any(|option| option == "ro");
    let kind = if kind.is_empty() { "ext4" } else { kind };
    match found(host, &disk).await? {
        None if read_only => {
            return Err(format!(
                "cannot mount unformatted disk {disk} as we are manipulating it in read-only mode"
            ));
        }
        None => make(host, &disk, kind).await?,
        Some(known) => {
            if known != kind {
                tracing::warn!(disk, known, asked = kind, "the disk has another file system than asked for");
            }
            if !read_only {
                check(host, &disk).await?;
            }
        }
    }
    let options: Vec<String> = options.iter().cloned().chain(["defaults".to_owned()]).collect();
    let mounted = host.mount(&disk, target, kind, &options).await;
    mounted.map_err(|error| format!("mount failed: {error}"))
}

/// What is on the disk; nothing where it is blank.
async fn found(host: &Host, disk: &str) -> Result<Option<String>, String> {
    let asked = host.run("blkid", &["-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", disk]).await;
    let text = match asked {
        Ok(text) => text,
        Err(ProgramError::Failed { code: BLANK, .. }) => return Ok(None),
        Err(error) => return Err(format!("failed to get disk format of disk {disk}: {error}")),
    };
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    Ok(match (value("TYPE"), value("PTTYPE")) {
        // partitions, and what else has a table: no file system, and not blank
        (_, Some(_)) => Some("unknown data, probably partitions".to_owned()),
        (kind, None) => kind.map(str::to_owned),
    })
}

async fn make(host: &Host, disk: &str, kind: &str) -> Result<(), String> {
    let mut arguments = match kind {
        // nothing is kept back for root
        "ext3" | "ext4" => vec!["-F", "-m0"],
        "xfs" => vec!["-f"],
        _ => Vec::new(),
    };
    arguments.push(disk);
    tracing::info!(disk, kind, "making a file system");
    let made = host.run(&format!("mkfs.{kind}"), &arguments).await;
    made.map(drop).map_err(|error| format!("format of disk {disk:?} failed: type:({kind:?}) {error}"))
}

async fn check(host: &Host, disk: &str) -> Result<(), String> {
    let Err(error) = host.run("fsck", &["-a", disk]).await else { return Ok(()) };
    match error.code() {
        Some(CORRECTED) => tracing::info!(disk, "the file system was mended"),
        Some(UNCORRECTED) => {
            return Err(format!("'fsck' found errors on device {disk} but could not correct them: {error}"));
        }
        _ => tracing::warn!(disk, %error, "the file system is not checked"),
    }
    Ok(())
}
