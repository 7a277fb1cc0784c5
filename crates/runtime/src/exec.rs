//! Programs that run in a container beside its first one.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, pipe_with};
use tokio::{io::AsyncReadExt, net::unix::pipe};
use tokio_util::sync::CancellationToken;

use crate::{
    error::RuntimeError,
    link::Link,
    protocol::{Reply, Request},
    record::ContainerPhase,
    spec::ProcessSpec,
    state::{Container, Runtime},
};

/// Most output of ExecSync, per stream: more does not fit into a CRI message.
const MAX_OUTPUT: usize = 7 * 1024 * 1024;
/// More than a terminal keeps for its reader.
const TERMINAL: usize = 128 * 1024;

/// A program that was started by exec.
pub(crate) struct Running {
    link: Link,
    /// The terminal, when one was asked for.
    pub(crate) terminal: Option<OwnedFd>,
}

/// What ExecSync returns.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) code: i32,
}

impl Running {
    /// Waits for the program's end; its exit code.
    pub(crate) async fn wait(&mut self) -> Result<i32, RuntimeError> {
        match self.link.answer().await? {
            Reply::ExecExited { code } => Ok(code),
            _ => Err(RuntimeError::ShimGone(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Kills it.
    pub(crate) async fn kill(&mut self) {
        let _ = self.link.send(&Request::KillExec, &[]).await;
    }
}

impl Runtime {
    /// The container, if it runs.
    pub(crate) fn running(&self, id: &str) -> Result<Arc<Container>, RuntimeError> {
        let container = self.container(id)?;
        match container.phase() {
            ContainerPhase::Running => Ok(container),
            _ => Err(RuntimeError::State(format!("container {} does not run", container.record.id))),
        }
    }

    fn exec_spec(
        &self,
        container: &Container,
        args: Vec<String>,
        tty: bool,
    ) -> Result<ProcessSpec, RuntimeError> {
        if args.first().is_none_or(String::is_empty) {
            return Err(RuntimeError::Invalid("no command to execute".to_owned()));
        }
        let sandbox = self.sandbox(&container.record.sandbox)?;
        let mut process = self.process(&sandbox.record.read().clone(), &container.record)?;
        if tty && !process.env.iter().any(|pair| pair.starts_with("TERM=")) {
            process.env.push("TERM=xterm".to_owned());
        }
        process.args = args;
        process.tty = tty;
        // the container's program may have changed the files that its user was found in
        process.user.known = container.state.borrow().user.clone();
        Ok(process)
    }

    /// Starts `args` in a running container. Without a terminal `stdio` are its standard streams.
    pub(crate) async fn exec(
        &self,
        container: &Container,
        args: Vec<String>,
        stdio: Option<[OwnedFd; 3]>,
    ) -> Result<Running, RuntimeError> {
        let process = Box::new(self.exec_spec(container, args, stdio.is_none())?);
        let request = Request::Exec {
            container: container.record.id.clone(),
            cgroup: self
                .cgroups
                .join(&container.record.cgroup)
                .map_err(RuntimeError::io("the container's control group"))?,
            process,
        };
        let dir = self.config.shim_dir(&container.record.sandbox);
        let mut link = Link::connect(&dir).await.map_err(RuntimeError::ShimGone)?;
        let files: Vec<_> = stdio.iter().flatten().map(AsFd::as_fd).collect();
        link.send(&request, &files).await.map_err(RuntimeError::ShimGone)?;
        drop(stdio);
        match link.answer().await? {
            Reply::Started { .. } => Ok(Running { terminal: link.take_file(), link }),
            _ => Err(RuntimeError::ShimGone(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Runs `args` to its end, or until the caller is `gone`, and returns what it wrote. `timeout` in seconds; 0: none.
    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        args: Vec<String>,
        timeout: i64,
        gone: CancellationToken,
    ) -> Result<Output, RuntimeError> {
        let container = self.running(id)?;
        let pipes = || RuntimeError::io("pipes for the command");
        let null: OwnedFd = std::fs::File::open("/dev/null").map_err(pipes())?.into();
        let (out, child_out) = reading_pipe().map_err(pipes())?;
        let (err, child_err) = reading_pipe().map_err(pipes())?;
        let command = args.join(" ");
        let mut running = self.exec(&container, args, Some([null, child_out, child_err])).await?;
        let (mut stdout, mut stderr) = (Collector::new(out), Collector::new(err));
        let work = async {
            let code = loop {
                tokio::select! {
                    code = running.wait() => break code?,
                    () = stdout.read(), if stdout.open => {}
                    () = stderr.read(), if stderr.open => {}
                }
            };
            // Something it left behind may keep the pipes open: what is there now is all that counts.
            stdout.rest();
            stderr.rest();
            Ok::<i32, RuntimeError>(code)
        };
        let limit = match u64::try_from(timeout) {
            Ok(seconds @ 1..) => Duration::from_secs(seconds),
            _ => Duration::MAX,
        };
        let why = tokio::select! {
            result = tokio::time::timeout(limit, work) => match result {
                Ok(code) => {
                    return Ok(Output { code: code?, stdout: stdout.bytes, stderr: stderr.bytes });
                }
                Err(_) => format!("command {command:?} timed out after {timeout} s"),
            },
            () = gone.cancelled() => format!("nobody waits for command {command:?} any more"),
        };
        running.kill().await;
        let _ = tokio::time::timeout(Duration::from_secs(10), running.wait()).await;
        Err(RuntimeError::Timeout(why))
    }
}

/// A pipe whose read end belongs to tokio; the write end is for a child.
pub(crate) fn reading_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

/// A pipe whose write end belongs to tokio; the read end is for a child.
pub(crate) fn writing_pipe() -> io::Result<(OwnedFd, pipe::Sender)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((read, pipe::Sender::from_owned_fd(write)?))
}

/// Most bytes that who wrote to the other end, and is gone, can have left in a pipe or terminal. Others may write on without
/// end: to read until nothing is there would be to wait for them.
pub(crate) fn capacity(file: impl AsFd) -> usize {
    fcntl_getpipe_size(file).unwrap_or(TERMINAL)
}

/// Output up to a limit; what is beyond it is read and thrown away.
struct Collector {
    pipe: pipe::Receiver,
    bytes: Vec<u8>,
    open: bool,
}

impl Collector {
    fn new(pipe: pipe::Receiver) -> Collector {
        Collector { pipe, bytes: Vec::new(), open: true }
    }

    async fn read(&mut self) {
        let mut chunk = [0; 8192];
        match self.pipe.read(&mut chunk).await {
            Ok(count) if count > 0 => self.keep(&chunk[..count]),
            _ => self.open = false,
        }
    }

    fn rest(&mut self) {
        let (mut chunk, mut left) = ([0; 8192], capacity(&self.pipe));
        while left > 0
            && let Ok(count @ 1..) = rustix::io::read(&self.pipe, &mut chunk)
        {
            self.keep(&chunk[..count]);
            left = left.saturating_sub(count);
        }
    }

    fn keep(&mut self, chunk: &[u8]) {
        let room = MAX_OUTPUT.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn what_a_command_left_behind_is_not_heard_to_its_end() {
        let (out, child) = reading_pipe().unwrap();
        let capacity = capacity(&out);
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let child = child.try_clone().unwrap();
                thread::spawn(move || while rustix::io::write(&child, &[b'x'; 4096]).is_ok() {})
            })
            .collect();
        drop(child);
        let mut collector = Collector::new(out);
        collector.rest();
        assert!(collector.bytes.len() < capacity + 8192, "{}", collector.bytes.len());
        drop(collector);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    }
}
