//! The main process's side of a shim's socket.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use tokio::{io::Interest, net::UnixStream};

use crate::{
    error::RuntimeError,
    protocol::{self, Reply, Request},
    shim::SOCKET,
};

/// One connection to a shim.
pub(crate) struct Link {
    stream: UnixStream,
    buffer: Vec<u8>,
    files: Vec<OwnedFd>,
}

impl Link {
    /// Connects to the shim whose folder is `dir`.
    pub(crate) async fn connect(dir: &Path) -> io::Result<Link> {
        // By way of an open folder: a socket's path is limited to 107 bytes.
        let dir = std::fs::File::open(dir)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
        Ok(Link { stream: UnixStream::connect(path).await?, buffer: Vec::new(), files: Vec::new() })
    }

    /// The shim's process id.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.stream.peer_cred().ok()?.pid()
    }

    /// Sends a request with files.
    pub(crate) async fn send(&mut self, request: &Request, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let frame = protocol::encode(request)?;
        let mut sent = 0;
        while sent < frame.len() {
            let files = if sent == 0 { files } else { &[] };
            sent += self
                .stream
                .async_io(Interest::WRITABLE, || protocol::send(self.stream.as_fd(), &frame[sent..], files))
                .await?;
        }
        Ok(())
    }

    /// The next reply; `None` when the shim closed the connection.
    pub(crate) async fn receive(&mut self) -> io::Result<Option<Reply>> {
        loop {
            if let Some(reply) = protocol::decode(&mut self.buffer)? {
                return Ok(Some(reply));
            }
            let (stream, buffer, files) = (&self.stream, &mut self.buffer, &mut self.files);
            let count = stream
                .async_io(Interest::READABLE, || protocol::receive(stream.as_fd(), buffer, files))
                .await?;
            if count == 0 {
                return Ok(None);
            }
        }
    }

    /// A file that came with the last replies.
    pub(crate) fn take_file(&mut self) -> Option<OwnedFd> {
        self.files.pop()
    }

    /// The next reply, which must come; `Failed` is an error.
    pub(crate) async fn answer(&mut self) -> Result<Reply, RuntimeError> {
        match self.receive().await.map_err(RuntimeError::ShimGone)? {
            Some(Reply::Failed(failure)) => Err(failure.into()),
            Some(reply) => Ok(reply),
            None => Err(RuntimeError::ShimGone(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// Longest wait for a shim's answer; a program on a dead network file system may never be read.
const PATIENCE: Duration = Duration::from_secs(120);

/// One request, one answer, on a connection of its own.
pub(crate) async fn ask(dir: &Path, request: &Request) -> Result<Reply, RuntimeError> {
    let work = async {
        let mut link = Link::connect(dir).await.map_err(RuntimeError::ShimGone)?;
        link.send(request, &[]).await.map_err(RuntimeError::ShimGone)?;
        link.answer().await
    };
    let silent = |_| RuntimeError::ShimGone(io::ErrorKind::TimedOut.into());
    tokio::time::timeout(PATIENCE, work).await.map_err(silent)?
}
