//! What is behind a streaming connection: files to pump, a size to set and a result, however it is framed.

use std::{io, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    termios::{Winsize, tcsetwinsize},
};
use tokio::net::unix::pipe;

use super::{Command, Streams};
use crate::{
    error::RuntimeError,
    exec::{self, Running},
    link::{self, Link},
    protocol::{Reply, Request},
    state::Runtime,
};

/// One exec or attach.
pub(super) struct Session {
    pub(super) stdin: Option<pipe::Sender>,
    pub(super) stdout: Option<pipe::Receiver>,
    pub(super) stderr: Option<pipe::Receiver>,
    pub(super) end: End,
}

/// How it ends, and how its terminal is resized.
pub(super) enum End {
    /// With the program.
    Exec { running: Running, terminal: Option<OwnedFd> },
    /// With the container's output; `shim`: the folder of its shim.
    Attach { container: String, shim: PathBuf },
}

impl Session {
    pub(super) async fn start(
        runtime: &Arc<Runtime>,
        command: Command,
        streams: Streams,
    ) -> Result<Session, RuntimeError> {
        match command {
            Command::Exec { container, args } => exec(runtime, &container, args, streams).await,
            Command::Attach { container } => attach(runtime, &container, streams).await,
        }
    }
}

impl End {
    /// Waits for the program's end; an attached container's end shows by its output.
    pub(super) async fn wait(&mut self) -> Result<i32, RuntimeError> {
        match self {
            End::Exec { running, .. } => running.wait().await,
            End::Attach { .. } => std::future::pending().await,
        }
    }

    pub(super) fn is_exec(&self) -> bool {
        matches!(self, End::Exec { .. })
    }

    pub(super) async fn resize(&self, width: u16, height: u16) {
        let result = match self {
            End::Exec { terminal: Some(terminal), .. } => {
                let size = Winsize { ws_col: width, ws_row: height, ws_xpixel: 0, ws_ypixel: 0 };
                tcsetwinsize(terminal, size).map_err(|error| RuntimeError::io("resizing")(error.into()))
            }
            End::Exec { terminal: None, .. } => Ok(()),
            End::Attach { container, shim } => {
                let request = Request::Resize { container: container.clone(), width, height };
                link::ask(shim, &request).await.map(drop)
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "resizing a terminal");
        }
    }

    /// The client went away: a program nobody watches is ended, an attached container goes on.
    pub(super) async fn abandon(&mut self) {
        if let End::Exec { running, .. } = self {
            running.kill().await;
        }
    }
}

async fn exec(
    runtime: &Arc<Runtime>,
    container: &str,
    args: Vec<String>,
    streams: Streams,
) -> Result<Session, RuntimeError> {
    let container = runtime.running(container)?;
    let doing = || RuntimeError::io("pipes for the command");
    if streams.tty {
        let mut running = runtime.exec(&container, args, None).await?;
        let terminal = running.terminal.take().ok_or_else(|| doing()(io::ErrorKind::NotFound.into()))?;
        let flags = fcntl_getfl(&terminal).map_err(|error| doing()(error.into()))?;
        fcntl_setfl(&terminal, flags | OFlags::NONBLOCK).map_err(|error| doing()(error.into()))?;
        let copy = || terminal.try_clone().map_err(doing());
        let reader = pipe::Receiver::from_owned_fd_unchecked(copy()?).map_err(doing())?;
        let writer = pipe::Sender::from_owned_fd_unchecked(copy()?).map_err(doing())?;
        return Ok(Session {
            stdin: streams.stdin.then_some(writer),
            stdout: Some(reader),
            stderr: None,
            end: End::Exec { running, terminal: Some(terminal) },
        });
    }
    let null = || -> Result<OwnedFd, RuntimeError> {
        let file = std::fs::File::options().read(true).write(true).open("/dev/null").map_err(doing())?;
        Ok(file.into())
    };
    let (child_in, stdin) = match streams.stdin {
        true => exec::writing_pipe().map(|(read, write)| (read, Some(write))).map_err(doing())?,
        false => (null()?, None),
    };
    let output = |wanted: bool| -> Result<(Option<pipe::Receiver>, OwnedFd), RuntimeError> {
        match wanted {
            true => exec::reading_pipe().map(|(read, write)| (Some(read), write)).map_err(doing()),
            false => Ok((None, null()?)),
        }
    };
    let ((stdout, child_out), (stderr, child_err)) = (output(streams.stdout)?, output(streams.stderr)?);
    let running = runtime.exec(&container, args, Some([child_in, child_out, child_err])).await?;
    Ok(Session { stdin, stdout, stderr, end: End::Exec { running, terminal: None } })
}

async fn attach(runtime: &Arc<Runtime>, container: &str, streams: Streams) -> Result<Session, RuntimeError> {
    use std::os::fd::AsFd;
    let container = runtime.running(container)?;
    let doing = || RuntimeError::io("pipes for attaching");
    let (mut files, mut stdin, mut stdout, mut stderr) = (Vec::new(), None, None, None);
    if streams.stdin {
        let (read, write) = exec::writing_pipe().map_err(doing())?;
        files.push(read);
        stdin = Some(write);
    }
    if streams.stdout {
        let (read, write) = exec::reading_pipe().map_err(doing())?;
        files.push(write);
        stdout = Some(read);
    }
    if streams.stderr {
        let (read, write) = exec::reading_pipe().map_err(doing())?;
        files.push(write);
        stderr = Some(read);
    }
    let request = Request::Attach {
        container: container.record.id.clone(),
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
    };
    let shim = runtime.config.shim_dir(&container.record.sandbox);
    let mut link = Link::connect(&shim).await.map_err(RuntimeError::ShimGone)?;
    let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    link.send(&request, &borrowed).await.map_err(RuntimeError::ShimGone)?;
    match link.answer().await? {
        Reply::Done => {}
        _ => return Err(RuntimeError::ShimGone(io::ErrorKind::InvalidData.into())),
    }
    Ok(Session { stdin, stdout, stderr, end: End::Attach { container: container.record.id.clone(), shim } })
}
