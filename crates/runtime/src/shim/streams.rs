//! A container's standard streams: output goes to the log and to whoever is attached; attached input goes to
//! the container.
//!
//! An attached reader that is slow slows the container down (its output is not read meanwhile), as a terminal
//! would; one that went away is dropped.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::PollFlags,
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    termios::{Winsize, tcsetwinsize},
};

use super::{
    init::Stdio,
    log::{LogFile, Stream},
    serve::pipe,
};
use crate::exec::capacity;

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// Which file of a container's streams is meant.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Output(usize),
    ContainerInput,
    ClientInput(usize),
    ClientOutput(usize, usize),
}

struct Source {
    file: OwnedFd,
    stream: Stream,
    ended: bool,
}

/// Somebody attached.
pub(super) struct Attachment {
    stdin: Option<OwnedFd>,
    /// Output and error, with what they have not taken yet.
    outputs: [Option<(OwnedFd, Vec<u8>)>; 2],
}

impl Attachment {
    pub(super) fn new(
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> io::Result<Attachment> {
        for file in [&stdin, &stdout, &stderr].into_iter().flatten() {
            nonblocking(file)?;
        }
        Ok(Attachment { stdin, outputs: [stdout, stderr].map(|file| file.map(|file| (file, Vec::new()))) })
    }

    fn blocked(&self) -> bool {
        self.outputs.iter().flatten().any(|(_, waiting)| !waiting.is_empty())
    }

    fn gone(&self) -> bool {
        self.stdin.is_none() && self.outputs.iter().all(Option::is_none)
    }

    fn flush(&mut self, which: usize) {
        let Some((file, waiting)) = &mut self.outputs[which] else { return };
        while !waiting.is_empty() {
            match rustix::io::write(&*file, waiting) {
                Ok(count) => drop(waiting.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.outputs[which] = None;
                    return;
                }
            }
        }
    }
}

/// All streams of one container.
pub(super) struct Streams {
    pub(super) log: LogFile,
    sources: Vec<Source>,
    terminal: Option<OwnedFd>,
    /// Write end of the container's input, without a terminal.
    input: Option<OwnedFd>,
    /// Input the container has not taken yet.
    waiting: Vec<u8>,
    once: bool,
    had_input: bool,
    attachments: Vec<Attachment>,
    ended: bool,
}

impl Streams {
    /// Makes the pipes. The second part is the child's; with a terminal there is none.
    pub(super) fn create(log: LogFile, tty: bool, stdin: bool, once: bool) -> io::Result<(Streams, Stdio)> {
        let mut streams = Streams { log, once, ..Streams::none() };
        if tty {
            return Ok((streams, None));
        }
        let child_input = if stdin {
            let (read, write) = pipe()?;
            nonblocking(&write)?;
            streams.input = Some(write);
            read
        } else {
            std::fs::File::open("/dev/null")?.into()
        };
        let mut output = |stream| -> io::Result<OwnedFd> {
            let (read, write) = pipe()?;
            nonblocking(&read)?;
            streams.sources.push(Source { file: read, stream, ended: false });
            Ok(write)
        };
        let (stdout, stderr) = (output(Stream::Stdout)?, output(Stream::Stderr)?);
        Ok((streams, Some([child_input, stdout, stderr])))
    }

    /// No streams at all.
    pub(super) fn none() -> Streams {
        Streams {
            log: LogFile::nowhere(),
            sources: Vec::new(),
            terminal: None,
            input: None,
            waiting: Vec::new(),
            once: false,
            had_input: false,
            attachments: Vec::new(),
            ended: false,
        }
    }

    /// The master side of the terminal the child opened.
    pub(super) fn set_terminal(&mut self, master: OwnedFd) {
        let second = nonblocking(&master).and_then(|()| master.try_clone());
        if let Ok(second) = second {
            self.sources.push(Source { file: second, stream: Stream::Stdout, ended: false });
            self.terminal = Some(master);
        }
    }

    pub(super) fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        match &self.terminal {
            Some(terminal) => {
                let size = Winsize { ws_col: width, ws_row: height, ws_xpixel: 0, ws_ypixel: 0 };
                Ok(tcsetwinsize(terminal, size)?)
            }
            None => Ok(()),
        }
    }

    pub(super) fn attach(&mut self, attachment: Attachment) {
        self.had_input |= attachment.stdin.is_some();
        self.attachments.push(attachment);
    }

    /// Names the files to wait for.
    pub(super) fn interest<'a>(&'a self, mut add: impl FnMut(Part, BorrowedFd<'a>, PollFlags)) {
        let blocked = self.attachments.iter().any(Attachment::blocked);
        if !blocked && !self.ended {
            for (index, source) in self.sources.iter().enumerate() {
                add(Part::Output(index), source.file.as_fd(), PollFlags::IN);
            }
        }
        let input = self.terminal.as_ref().or(self.input.as_ref());
        if let Some(input) = input.filter(|_| !self.waiting.is_empty() && !self.ended) {
            add(Part::ContainerInput, input.as_fd(), PollFlags::OUT);
        }
        for (index, attachment) in self.attachments.iter().enumerate() {
            if let Some(stdin) = attachment.stdin.as_ref().filter(|_| self.waiting.is_empty()) {
                add(Part::ClientInput(index), stdin.as_fd(), PollFlags::IN);
            }
            for (which, output) in attachment.outputs.iter().enumerate() {
                if let Some((file, waiting)) = output {
                    // Without anything to write only an error is reported: the reader went away.
                    let events = if waiting.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
                    add(Part::ClientOutput(index, which), file.as_fd(), events);
                }
            }
        }
    }

    /// `part` is ready.
    pub(super) fn ready(&mut self, part: Part) {
        match part {
            Part::Output(index) => {
                self.read_output(index);
            }
            Part::ContainerInput => self.write_input(),
            Part::ClientInput(index) => self.read_input(index),
            Part::ClientOutput(index, which) => {
                if let Some(attachment) = self.attachments.get_mut(index) {
                    let idle = matches!(&attachment.outputs[which], Some((_, waiting)) if waiting.is_empty());
                    if idle {
                        attachment.outputs[which] = None;
                    } else {
                        attachment.flush(which);
                    }
                }
            }
        }
    }

    /// Drops what is over. Called when no collected event is left that names a part by index.
    pub(super) fn tidy(&mut self) {
        self.sources.retain(|source| !source.ended);
        let ended = self.ended;
        self.attachments.retain(|attachment| if ended { attachment.blocked() } else { !attachment.gone() });
    }

    /// The container ended: takes what is still in the pipes, then lets go of everything. A process that escaped from it
    /// may go on writing; no more is taken than the container itself can have left there.
    pub(super) fn end(&mut self) {
        for index in 0..self.sources.len() {
            let mut left = self.sources.get(index).map_or(0, |source| capacity(&source.file));
            while left > 0
                && let Some(count) = self.read_output(index)
            {
                left = left.saturating_sub(count);
            }
        }
        self.sources.clear();
        self.log.finish(Stream::Stdout);
        self.log.finish(Stream::Stderr);
        self.log = LogFile::nowhere();
        self.terminal = None;
        self.input = None;
        self.waiting = Vec::new();
        self.ended = true;
        for attachment in &mut self.attachments {
            attachment.stdin = None;
        }
    }

    /// Reads once; how many bytes, nothing when none were there.
    fn read_output(&mut self, index: usize) -> Option<usize> {
        let source = self.sources.get_mut(index).filter(|source| !source.ended)?;
        let stream = source.stream;
        let mut chunk = [0; CHUNK];
        let count = match rustix::io::read(&source.file, &mut chunk) {
            Ok(count) if count > 0 => count,
            Err(Errno::INTR) => return Some(0),
            Err(Errno::AGAIN) => return None,
            // The end, or EIO from a terminal that nobody has open any more.
            _ => {
                source.ended = true;
                self.log.finish(stream);
                return None;
            }
        };
        self.log.write(stream, &chunk[..count]);
        for attachment in &mut self.attachments {
            if let Some((_, waiting)) = &mut attachment.outputs[stream as usize] {
                waiting.extend_from_slice(&chunk[..count]);
            }
            attachment.flush(stream as usize);
        }
        Some(count)
    }

    fn read_input(&mut self, index: usize) {
        let Some(stdin) = self.attachments.get(index).and_then(|attachment| attachment.stdin.as_ref()) else {
            return;
        };
        let mut chunk = [0; CHUNK];
        match rustix::io::read(stdin, &mut chunk) {
            Ok(count) if count > 0 => {
                if self.input.is_some() || self.terminal.is_some() {
                    self.waiting.extend_from_slice(&chunk[..count]);
                    self.write_input();
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            _ => {
                self.attachments[index].stdin = None;
                if self.once && self.had_input && self.waiting.is_empty() {
                    self.input = None;
                }
            }
        }
    }

    fn write_input(&mut self) {
        let Some(file) = self.terminal.as_ref().or(self.input.as_ref()) else {
            self.waiting.clear();
            return;
        };
        while !self.waiting.is_empty() {
            match rustix::io::write(file, &self.waiting) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.waiting.clear();
                    self.input = None;
                    return;
                }
            }
        }
    }
}

fn nonblocking(file: &OwnedFd) -> io::Result<()> {
    let flags = fcntl_getfl(file)?;
    Ok(fcntl_setfl(file, flags | OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn who_goes_on_writing_is_not_awaited_at_the_end() {
        let (mut streams, stdio) = Streams::create(LogFile::nowhere(), false, false, false).unwrap();
        let Some([_, out, _err]) = stdio else { panic!("no pipes") };
        let capacity = capacity(&out);
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let out = out.try_clone().unwrap();
                thread::spawn(move || while rustix::io::write(&out, &[b'x'; 4096]).is_ok() {})
            })
            .collect();
        drop(out);
        let (_seen, client) = pipe().unwrap();
        streams.attach(Attachment::new(None, Some(client), None).unwrap());
        streams.end();
        let waiting = streams.attachments[0].outputs[0].as_ref().unwrap().1.len();
        assert!(waiting <= capacity, "{waiting}");
        // nobody reads any more
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    }
}
