//! The kernel's word that the machine as a whole ran out of memory and which process it killed for that, as an Event of the
//! node. A container that passed its own limit says so in its pod's status.
//!
//! Rule: v1.36's event `SystemOOM`; kernel documentation, "/dev/kmsg" (dev-kmsg), and `dump_oom_victim` in mm/oom_kill.c.

use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use client::events::{EventType, Recorder};
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

const MESSAGES: &str = "/dev/kmsg";
/// No record is longer.
const RECORD: usize = 8192;

/// Tells of such kills until `stop`; a machine that does not show its kernel's messages has none told.
pub async fn run(recorder: Recorder, node: ObjectReference, stop: CancellationToken) {
    let messages = match open(Path::new(MESSAGES)) {
        Ok(messages) => messages,
        Err(error) => {
            tracing::debug!(%error, path = MESSAGES, "not read");
            return;
        }
    };
    let tell = |text: String| recorder.event(&node, EventType::Warning, "SystemOOM", text);
    tokio::select! {
        () = stop.cancelled() => {}
        error = follow(messages, tell) => tracing::warn!(%error, path = MESSAGES, "no longer followed"),
    }
}

/// The messages from now on.
fn open(path: &Path) -> io::Result<pipe::Receiver> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    file.seek(SeekFrom::End(0))?;
    // no pipe, but a device that says as one does when there is something to read
    pipe::Receiver::from_file_unchecked(file)
}

async fn follow(messages: pipe::Receiver, tell: impl Fn(String)) -> io::Error {
    let mut record = vec![0; RECORD];
    loop {
        if let Err(error) = messages.readable().await {
            return error;
        }
        match messages.try_read(&mut record) {
            Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]);
                text.lines().filter_map(victim).for_each(&tell);
            }
            // a broken pipe stands for records that were overwritten before they were read
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::BrokenPipe
                ) => {}
            Err(error) => return error,
        }
    }
}

/// What is told of a record, if the whole machine was short of memory.
fn victim(record: &str) -> Option<String> {
    // PRIORITY,SEQUENCE,TIME,FLAGS;TEXT
    let (_, text) = record.split_once(';')?;
    // a process names itself: what its name says counts for nothing
    let (head, tail) = text.strip_prefix("oom-kill:")?.split_once(",task=")?;
    if !head.split(',').any(|field| field == "global_oom") {
        return None;
    }
    let (name, tail) = tail.rsplit_once(",pid=")?;
    let pid = tail.split(',').next()?;
    Some(format!("System OOM encountered, victim process: {name}, pid: {pid}"))
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const BEGIN: &str = "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,2";

    #[test]
    fn only_a_machine_without_memory_counts_not_a_containers_limit() {
        let global = format!("6,1,2,-;{BEGIN},global_oom,task_memcg=/a,task=stress,pid=77,uid=0");
        let text = "System OOM encountered, victim process: stress, pid: 77";
        assert_eq!(victim(&global).as_deref(), Some(text));
        for other in [
            format!("6,1,2,-;{BEGIN},oom_memcg=/kubepods,task_memcg=/kubepods/a,task=stress,pid=77,uid=0"),
            format!("6,1,2,-;{BEGIN},oom_memcg=/a,task_memcg=/a,task=a,global_oom,pid=77,uid=0"),
            "3,1,2,-;Out of memory: Killed process 77 (stress)".to_owned(),
            " SUBSYSTEM=memory".to_owned(),
        ] {
            assert_eq!(victim(&other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn messages_are_read_as_they_come() {
        let (mut sender, receiver) = pipe::pipe().unwrap();
        let text =
            format!("6,1,2,-;usb 1-1: new\n6,2,3,-;{BEGIN},global_oom,task_memcg=/,task=a b,pid=5,uid=0\n");
        sender.write_all(text.as_bytes()).await.unwrap();
        drop(sender);
        let told = Mutex::new(Vec::new());
        let end = follow(receiver, |text| told.lock().push(text)).await;
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(told.into_inner(), ["System OOM encountered, victim process: a b, pid: 5"]);
    }
}
