//! What the main process and a shim say to each other: frames of a 4-byte little-endian length and JSON on
//! a unix stream socket. Files travel with the first byte of the frame they belong to.
//!
//! A connection carries one request at a time. `Subscribe` turns it into a stream of exit records.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::spec::{ContainerSpec, ProcessSpec, ResolvedUser};

/// Largest frame in bytes. The kernel's own limit for arguments and environment is 2 MiB by default.
pub const MAX_FRAME: usize = 8 * 1024 * 1024;
/// Most files with one frame.
pub const MAX_FDS: usize = 4;

/// To the shim.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Start a container. Answers `Started` or `Failed`.
    Start(Box<ContainerSpec>),
    /// Run a program in a container, with standard streams (no terminal) as files: input, output, error.
    /// Answers `Started` (with the terminal's file, when one was asked for) or `Failed`, then `Exited`.
    Exec {
        /// Container id.
        container: String,
        /// How to enter its cgroup.
        cgroup: crate::spec::CgroupJoin,
        /// The program.
        process: Box<ProcessSpec>,
    },
    /// Send a signal to a container's first process. Answers `Done`.
    Kill {
        /// Container id.
        container: String,
        /// Signal number.
        signal: i32,
    },
    /// Kill what runs on this connection's `Exec`. No answer of its own; `Exited` follows.
    KillExec,
    /// Close and open the log file anew. Answers `Done`.
    ReopenLog {
        /// Container id.
        container: String,
    },
    /// Connect the files that come along to the container's streams: input (read end), then output and
    /// error (write ends), as the flags say. Answers `Done`.
    Attach {
        /// Container id.
        container: String,
        /// A file for input comes along.
        stdin: bool,
        /// A file for output comes along.
        stdout: bool,
        /// A file for errors comes along.
        stderr: bool,
    },
    /// Change the size of a container's terminal. Answers `Done`.
    Resize {
        /// Container id.
        container: String,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Forget an ended container and its exit record. Answers `Done`.
    Forget {
        /// Container id.
        container: String,
    },
    /// From now on exit records are sent on this connection; first what is known: a `Running` for every
    /// container, an `Exited` for those that ended, then `Done`.
    Subscribe,
    /// Kill everything and end. Answers `Done`, then closes.
    Shutdown,
}

/// From the shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// It was done.
    Done,
    /// The program runs.
    Started {
        /// Process id on the node.
        pid: i32,
        /// Who it runs as.
        user: ResolvedUser,
        /// When it was started, nanoseconds since 1970.
        at: i64,
    },
    /// It was not done.
    Failed(Failure),
    /// The program of this connection's `Exec` ended.
    ExecExited {
        /// 0 to 255; 128 + signal when killed.
        code: i32,
    },
    /// A container was started (also when it has ended since).
    Running {
        /// Container id.
        container: String,
        /// Process id on the node.
        pid: i32,
        /// Who it runs as.
        user: ResolvedUser,
        /// When it was started, nanoseconds since 1970.
        at: i64,
    },
    /// A container ended.
    Exited(ExitRecord),
    /// The sandbox is ready (sent once, on the shim's standard output).
    Ready {
        /// Process id of the shim.
        pid: i32,
    },
}

/// What kind of failure it was: callers tell a container's mistake from the node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No such container, or it does not run.
    NotFound,
    /// The container's own configuration is at fault: no such program, user or directory.
    Config,
    /// Anything else.
    Internal,
}

/// Why something was not done.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Kind.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
}

/// How a container ended. Also kept as a file, `<dir>/<container id>.exit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Container id.
    pub container: String,
    /// 0 to 255; 128 + signal when killed.
    pub code: i32,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed a process of it for lack of memory.
    pub oom: bool,
    /// When, nanoseconds since 1970.
    pub at: i64,
}

/// Encodes one frame.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let len = frame.len() - 4;
    if len > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the request is {len} bytes long, the limit is {MAX_FRAME}"),
        ));
    }
    frame[..4].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(frame)
}

/// Takes one complete frame off the front of `buffer`.
pub fn decode<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> io::Result<Option<T>> {
    let Some(header) = buffer.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_le_bytes(*header) as usize;
    if len > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    if buffer.len() < 4 + len {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[4..4 + len])?;
    buffer.drain(..4 + len);
    if buffer.is_empty() {
        // A start request can be large; the shim should not keep its memory.
        buffer.shrink_to(4096);
    }
    Ok(Some(message))
}

/// One `sendmsg`; returns how many bytes went out. The files go with the first byte.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many files"));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// One `recvmsg` onto the end of `buffer`; returns how many bytes came (0: closed).
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut chunk = [0; 8192];
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut chunk)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            fds.extend(files);
        }
    }
    if fds.len() > 4 * MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many files"));
    }
    buffer.extend_from_slice(&chunk[..received.bytes]);
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_arrives_whole_however_it_is_cut() {
        let frame = encode(&Request::Kill { container: "a".into(), signal: 9 }).unwrap();
        let mut buffer = Vec::new();
        for byte in &frame[..frame.len() - 1] {
            buffer.push(*byte);
            assert!(decode::<Request>(&mut buffer).unwrap().is_none());
        }
        buffer.push(frame[frame.len() - 1]);
        assert!(matches!(decode(&mut buffer).unwrap(), Some(Request::Kill { signal: 9, .. })));
        assert!(buffer.is_empty());
    }

    #[test]
    fn absurd_length_is_refused() {
        let mut buffer = u32::MAX.to_le_bytes().to_vec();
        assert!(decode::<Request>(&mut buffer).is_err());
    }
}
