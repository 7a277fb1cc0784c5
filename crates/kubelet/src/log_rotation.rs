//! Logs of containers that grow: a large file is put aside, what was put aside before is compressed, and the oldest go.
//!
//! Rule: Kubernetes documentation, "Logging Architecture", "Log rotation". Files are named as every kubelet names them:
//! `0.log` is put aside as `0.log.20260131-235959`, and compressed as `0.log.20260131-235959.gz`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri::v1;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::manager::Manager;

/// When logs are put aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Bytes of a file that is.
    pub size: u64,
    /// Files of each container's run, at least 2: the one that is written, and those put aside.
    pub files: usize,
    /// Logs that are put aside at once, at least 1.
    pub workers: usize,
    /// Between two looks.
    pub interval: Duration,
}

/// Ends of the names of files that are compressed, and of those that are yet to be whole.
const COMPRESSED: &str = ".gz";
const PARTIAL: &str = ".tmp";

/// Looks at the logs of running containers until `stop`: each line that is written would be an event of the file system.
pub async fn run(
    policy: Policy,
    manager: Arc<Manager>,
    runtime: cri::RuntimeClient,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(policy.interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let all = stream::iter(manager.running_logs())
            .for_each_concurrent(policy.workers, |(id, log)| look(policy, runtime.clone(), id, log));
        tokio::select! {
            () = stop.cancelled() => return,
            () = all => {}
        }
    }
}

async fn look(policy: Policy, runtime: cri::RuntimeClient, id: String, log: PathBuf) {
    let large = match tokio::fs::metadata(&log).await {
        Ok(found) => found.len() >= policy.size,
        // put aside, and then the kubelet was stopped
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(_) => return,
    };
    if !large && log.exists() {
        return;
    }
    if let Err(why) = rotate(policy, runtime, &id, &log).await {
        tracing::warn!(why, log = %log.display(), "a log is not put aside");
    }
}

async fn rotate(policy: Policy, mut runtime: cri::RuntimeClient, id: &str, log: &Path) -> Result<(), String> {
    let path = log.to_owned();
    let tidied = tokio::task::spawn_blocking(move || tidy(&path, policy.files.saturating_sub(2))).await;
    tidied.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let aside = beside(log, &format!(".{}", Timestamp::now().strftime("%Y%m%d-%H%M%S")));
    let there = match std::fs::rename(log, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        other => other.map(|()| true).map_err(|error| error.to_string())?,
    };
    let request = v1::ReopenContainerLogRequest { container_id: id.to_owned() };
    let Err(error) = runtime.reopen_container_log(request).await else { return Ok(()) };
    if there {
        // its lines go on where they went
        std::fs::rename(&aside, log).map_err(|error| error.to_string())?;
    }
    Err(error.message().to_owned())
}

fn beside(log: &Path, end: &str) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// What was put aside of a log, the oldest first.
fn aside(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name()) else { return Ok(Vec::new()) };
    let begin = format!("{}.", name.to_string_lossy());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&begin) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Removes all of a log, and what was put aside of it.
pub fn remove(log: &Path) {
    for file in aside(log).unwrap_or_default().iter().map(PathBuf::as_path).chain([log]) {
        // absent where the node lost it
        let _ = std::fs::remove_file(file);
    }
}

/// Leaves at most `most` of the files put aside, all of them compressed.
fn tidy(log: &Path, most: usize) -> io::Result<()> {
    let all = aside(log)?;
    let ends = |file: &Path, end: &str| file.as_os_str().as_encoded_bytes().ends_with(end.as_bytes());
    let (mut kept, over): (Vec<PathBuf>, Vec<PathBuf>) = all.iter().cloned().partition(|file| {
        // one that is compressed already was not removed in time
        !ends(file, PARTIAL) && !all.contains(&beside(file, COMPRESSED))
    });
    let old = kept.len().saturating_sub(most);
    for file in over.iter().chain(kept.iter().take(old)) {
        std::fs::remove_file(file)?;
    }
    for file in kept.split_off(old).iter().filter(|file| !ends(file, COMPRESSED)) {
        compress(file)?;
    }
    Ok(())
}

fn compress(file: &Path) -> io::Result<()> {
    let partial = beside(file, PARTIAL);
    let mut encoder = GzEncoder::new(File::create(&partial)?, Compression::default());
    io::copy(&mut File::open(file)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    std::fs::rename(&partial, beside(file, COMPRESSED))?;
    std::fs::remove_file(file)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_oldest_files_go_and_the_others_are_compressed() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        for name in ["0.log", "1.log.9", "0.log.1.gz", "0.log.2.gz", "0.log.2", "0.log.3", "0.log.3.tmp"] {
            std::fs::write(file(name), name).unwrap();
        }
        tidy(&file("0.log"), 2).unwrap();
        assert_eq!(names(folder.path()), ["0.log", "0.log.2.gz", "0.log.3.gz", "1.log.9"]);
        let mut text = String::new();
        flate2::read::GzDecoder::new(File::open(file("0.log.3.gz")).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "0.log.3");
        tidy(&file("0.log"), 0).unwrap();
        assert_eq!(names(folder.path()), ["0.log", "1.log.9"]);
        std::fs::write(file("0.log.5"), "").unwrap();
        remove(&file("0.log"));
        assert_eq!(names(folder.path()), ["1.log.9"]);
    }
}
