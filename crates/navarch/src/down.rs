//! `navarch down`: stops the server.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::data_dir::DataDir;

/// How long a server may take for its graceful end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Stops the server of `path`, if one runs.
pub fn main(path: &Path) -> anyhow::Result<()> {
    let stopped = match DataDir::at(path)? {
        Some(data) => stop(&data)?,
        None => false,
    };
    if stopped {
        println!(
            "stopped; containers keep running until `navarch up` adopts or `navarch reset` removes them"
        );
    } else {
        println!("no server runs on {}", path.display());
    }
    Ok(())
}

/// Asks the server to end and waits for it. `false`: none ran.
pub fn stop(data: &DataDir) -> anyhow::Result<bool> {
    let Some(pid) = data.running()? else { return Ok(false) };
    let pid = Pid::from_raw(pid).context("the server's process id is not positive")?;
    let server = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(server) => server,
        Err(Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("cannot reach process {pid}")),
    };
    // The id may have gone to another process between reading and opening: the lock tells.
    if data.running()? != Some(pid.as_raw_nonzero().get()) {
        return Ok(false);
    }
    match pidfd_send_signal(&server, Signal::TERM) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot stop process {pid}")),
    }
    if !ended_within(&server, PATIENCE)? {
        bail!("process {pid} has not ended within {} s of SIGTERM", PATIENCE.as_secs());
    }
    Ok(true)
}

/// Waits for the end of a process.
pub fn ended_within(process: &rustix::fd::OwnedFd, patience: Duration) -> anyhow::Result<bool> {
    let deadline = std::time::Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
