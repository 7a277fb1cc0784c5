//! Reads a container's log file: the tail, what is newer than a moment, and what is still to come.
//!
//! Rule: CRI log format, `<RFC 3339 time> stdout|stderr F|P <text>`: one raw line each; `P` is a piece of a line that
//! the next raw line of its stream continues, `F` its end. A file is rotated by renaming it and making a new one of
//! its name.
//!
//! Memory is bounded whatever the file holds: one block of the file, one block of output, and the queue to the
//! reader; a line of any length passes through in pieces. A follower sleeps in inotify.

mod run;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc::Sender;

use crate::folder_watch::FolderWatch;
use crate::server::query;
pub use run::of_run;

/// Bytes read at once.
const BLOCK: usize = 64 * 1024;
/// Longest head of a raw line: time, stream, tags. What is longer is no log line and is passed over.
const HEAD: usize = 128;
/// How often a follower looks whether the container still runs when the file system says nothing.
const LOOK: Duration = Duration::from_secs(1);

/// Which output of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stream {
    /// Both, as they came.
    #[default]
    All,
    /// Standard output only.
    Stdout,
    /// Standard error only.
    Stderr,
}

impl Stream {
    fn takes(self, name: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Stdout => name == b"stdout",
            Self::Stderr => name == b"stderr",
        }
    }
}

/// What of a log is wanted (`PodLogOptions`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogOptions {
    /// Stay until the container ends.
    pub follow: bool,
    /// Begin with the last so many lines.
    pub tail_lines: Option<u64>,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// Stop after so many bytes of output.
    pub limit_bytes: Option<u64>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Which output.
    pub stream: Stream,
    /// Of the container's run before this one.
    pub previous: bool,
}

/// Why options are refused: a message for the client, worded as upstream's validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// A value is not of its type.
    Unreadable(String),
    /// It must not be.
    Invalid(String),
}

/// Options from a query string.
pub fn parse(query: &str) -> Result<LogOptions, Refused> {
    let invalid = |why: &str| Err(Refused::Invalid(why.to_owned()));
    let mut options = LogOptions::default();
    let (mut since_seconds, mut since_time) = (None, None);
    let mut pairs = query::pairs(query);
    // the older name of tailLines wins
    if let Some(at) = pairs.iter().position(|(name, value)| name == "tail" && !value.is_empty()) {
        let (_, lines) = pairs.swap_remove(at);
        pairs.retain(|(name, _)| name != "tailLines");
        if lines != "all" {
            pairs.push(("tailLines".to_owned(), lines));
        }
    }
    for (name, value) in pairs {
        match name.as_str() {
            "follow" => options.follow = query::boolean(&value),
            "previous" => options.previous = query::boolean(&value),
            "timestamps" => options.timestamps = query::boolean(&value),
            "tailLines" => {
                let lines = integer(&value)?;
                options.tail_lines = Some(u64::try_from(lines).map_err(|_| {
                    let why = "must be greater than or equal to 0";
                    Refused::Invalid(format!("tailLines: Invalid value: {lines}: {why}"))
                })?);
            }
            "limitBytes" => {
                let bytes = integer(&value)?;
                options.limit_bytes =
                    Some(u64::try_from(bytes).ok().filter(|b| *b > 0).ok_or_else(|| {
                        let why = "must be greater than 0";
                        Refused::Invalid(format!("limitBytes: Invalid value: {bytes}: {why}"))
                    })?);
            }
            "sinceSeconds" => {
                let seconds = integer(&value)?;
                if seconds < 1 {
                    return invalid(&format!(
                        "sinceSeconds: Invalid value: {seconds}: must be greater than 0"
                    ));
                }
                since_seconds = Some(seconds);
            }
            "sinceTime" => {
                let time = value.parse::<Timestamp>().map_err(|_| {
                    let why = "must be a time in the format of RFC 3339";
                    Refused::Unreadable(format!("sinceTime: Invalid value: {value:?}: {why}"))
                })?;
                since_time = Some(time);
            }
            "stream" => {
                options.stream = match value.as_str() {
                    "All" | "" => Stream::All,
                    "Stdout" => Stream::Stdout,
                    "Stderr" => Stream::Stderr,
                    other => {
                        return invalid(&format!(
                            "stream: Unsupported value: {other:?}: supported values: \"All\", \"Stderr\", \"Stdout\""
                        ));
                    }
                }
            }
            _ => {}
        }
    }
    if options.stream != Stream::All && options.tail_lines.is_some() {
        return invalid("Forbidden: `tailLines` and specific `stream` are mutually exclusive for now");
    }
    options.since = match (since_seconds, since_time) {
        (Some(_), Some(_)) => {
            return invalid("Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified");
        }
        // longer ago than time reaches back is everything
        (Some(seconds), None) => Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok(),
        (None, time) => time,
    };
    Ok(options)
}

fn integer(value: &str) -> Result<i64, Refused> {
    value.parse::<i64>().map_err(|e| {
        Refused::Unreadable(match e.kind() {
            std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                format!("strconv.ParseInt: parsing {value:?}: value out of range")
            }
            _ => format!("strconv.ParseInt: parsing {value:?}: invalid syntax"),
        })
    })
}

/// Sends what `options` ask of the log at `path` to `out`. Ends at the end of the file, or, following, when the
/// container has ended (`running` is then false) and all it wrote is sent; at the limit; or when nobody receives any
/// more.
pub async fn read(
    path: PathBuf,
    options: LogOptions,
    running: impl Fn() -> bool + Send + 'static,
    out: Sender<Bytes>,
) -> io::Result<()> {
    // watched from before the first byte is read, so that nothing written later can be missed
    let watch = if options.follow { Some(watch(&path)?) } else { None };
    let (lines, stream) = (options.tail_lines, options.stream);
    let place = path.clone();
    let (file, mut position) = blocking(move || {
        let file = File::open(place)?;
        let start = lines.map_or(Ok(0), |lines| tail(&file, lines, stream))?;
        Ok((file, start))
    })
    .await?;
    let mut file = std::sync::Arc::new(file);
    let mut lines = Lines::new(&options);
    loop {
        // asked first: what a container wrote before it ended is in the file by now
        let alive = options.follow && running();
        loop {
            if drain(&file, &mut position, &mut lines, &out).await? == Drained::Enough {
                return Ok(());
            }
            if !options.follow {
                return Ok(());
            }
            match next_file(&path, &file, position).await? {
                Next::Same => break,
                Next::Truncated => position = 0,
                Next::Rotated(new) => {
                    // what came between our last look and the rename
                    if drain(&file, &mut position, &mut lines, &out).await? == Drained::Enough {
                        return Ok(());
                    }
                    (file, position) = (new, 0);
                    lines.end_of_file();
                }
            }
        }
        let Some(watch) = watch.as_ref().filter(|_| alive) else { return Ok(()) };
        tokio::select! {
            changed = watch.changed() => changed?,
            () = tokio::time::sleep(LOOK) => {}
            () = out.closed() => return Ok(()),
        }
    }
}

#[derive(PartialEq, Eq)]
enum Drained {
    /// All that is in the file was sent.
    All,
    /// The limit is reached, or nobody listens.
    Enough,
}

/// Sends the file from `position` to its end.
async fn drain(
    file: &std::sync::Arc<File>,
    position: &mut u64,
    lines: &mut Lines,
    out: &Sender<Bytes>,
) -> io::Result<Drained> {
    let mut block = vec![0; BLOCK];
    loop {
        let (handle, at) = (file.clone(), *position);
        let count;
        (block, count) = blocking(move || {
            let count = handle.read_at(&mut block, at)?;
            Ok((block, count))
        })
        .await?;
        if count == 0 {
            return Ok(Drained::All);
        }
        *position += count as u64;
        let mut answer = BytesMut::new();
        lines.push(&block[..count], &mut answer);
        if !answer.is_empty() && out.send(answer.freeze()).await.is_err() || lines.left == 0 {
            return Ok(Drained::Enough);
        }
        if out.is_closed() {
            return Ok(Drained::Enough);
        }
    }
}

enum Next {
    Same,
    Truncated,
    Rotated(std::sync::Arc<File>),
}

/// What stands at `path` now, compared to the file in hand.
async fn next_file(path: &Path, file: &std::sync::Arc<File>, position: u64) -> io::Result<Next> {
    let (path, file) = (path.to_owned(), file.clone());
    blocking(move || {
        let ours = file.metadata()?;
        let new = match File::open(&path) {
            Ok(new) => new,
            // between the rename and the new file
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Next::Same),
            Err(error) => return Err(error),
        };
        let theirs = new.metadata()?;
        Ok(if (ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino()) {
            Next::Rotated(std::sync::Arc::new(new))
        } else if ours.len() < position {
            Next::Truncated
        } else {
            Next::Same
        })
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// The folder of a log under watch: writes to the file, and its replacement.
fn watch(path: &Path) -> io::Result<FolderWatch> {
    FolderWatch::new(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Where the last `lines` lines begin. Reads the file backwards only as far as needed; a line that was logged in
/// pieces counts once.
fn tail(file: &File, lines: u64, stream: Stream) -> io::Result<u64> {
    let length = file.metadata()?.len();
    if lines == 0 {
        return Ok(length);
    }
    // ends of lines seen; an unfinished last raw line counts as one
    let mut ends = 0;
    let mut best = length;
    let mut block = vec![0; BLOCK];
    // where the raw line under the cursor ends
    let mut end = length;
    let mut high = length;
    while high > 0 {
        let low = high.saturating_sub(BLOCK as u64);
        let part = &mut block[..usize::try_from(high - low).unwrap_or(BLOCK)];
        file.read_exact_at(part, low)?;
        for at in (0..part.len()).rev() {
            let start = low + at as u64 + 1;
            if part[at] != b'\n' || start >= end {
                continue;
            }
            if raw_line(file, start, end, stream, &mut ends, lines)? {
                return Ok(best);
            }
            best = start;
            end = start;
        }
        high = low;
    }
    Ok(if end > 0 && raw_line(file, 0, end, stream, &mut ends, lines)? { best } else { 0 })
}

/// Counts the raw line at `start`; true when it belongs to one line too many.
fn raw_line(
    file: &File,
    start: u64,
    end: u64,
    stream: Stream,
    ends: &mut u64,
    lines: u64,
) -> io::Result<bool> {
    let mut head = [0; HEAD];
    let size = usize::try_from(end - start).unwrap_or(HEAD).min(HEAD);
    let head = &mut head[..size];
    file.read_exact_at(head, start)?;
    let mut parts = head.splitn(4, |b| *b == b' ');
    let (_, output, tags) = (parts.next(), parts.next().unwrap_or(b""), parts.next().unwrap_or(b""));
    if stream.takes(output) && (!tags.starts_with(b"P") || *ends == 0) {
        *ends += 1;
    }
    Ok(*ends > lines)
}

/// Turns raw bytes of a log file into output; keeps its place between blocks.
struct Lines {
    since: Option<Timestamp>,
    stream: Stream,
    timestamps: bool,
    /// Bytes that may still be sent.
    left: u64,
    state: State,
    /// The last raw line sent was a piece: the next one continues its line.
    inside: bool,
}

enum State {
    /// Collecting the head of a raw line.
    Head(Vec<u8>),
    /// In the text; whether it is sent, and whether the raw line is only a piece.
    Text { send: bool, piece: bool },
}

impl Lines {
    fn new(options: &LogOptions) -> Self {
        Self {
            since: options.since,
            stream: options.stream,
            timestamps: options.timestamps,
            left: options.limit_bytes.unwrap_or(u64::MAX),
            state: State::Head(Vec::new()),
            inside: false,
        }
    }

    /// The file ended for good: an unfinished raw line has no rest.
    fn end_of_file(&mut self) {
        self.state = State::Head(Vec::new());
    }

    fn push(&mut self, mut input: &[u8], out: &mut BytesMut) {
        while !input.is_empty() && self.left > 0 {
            match &mut self.state {
                State::Head(head) => {
                    let mut spaces = head.iter().filter(|b| **b == b' ').count();
                    let mut whole = false;
                    let mut taken = 0;
                    for byte in input {
                        if *byte == b'\n' {
                            // a line without text may lack the last space
                            whole = true;
                            break;
                        }
                        taken += 1;
                        head.push(*byte);
                        spaces += usize::from(*byte == b' ');
                        if spaces == 3 || head.len() == HEAD {
                            whole = true;
                            break;
                        }
                    }
                    input = &input[taken..];
                    if whole {
                        let head = std::mem::take(head);
                        self.begin(&head, out);
                    }
                }
                State::Text { send, piece } => {
                    let (send, piece) = (*send, *piece);
                    let end = input.iter().position(|b| *b == b'\n');
                    let text = &input[..end.unwrap_or(input.len())];
                    if send {
                        self.emit(text, out);
                    }
                    let Some(end) = end else { return };
                    input = &input[end + 1..];
                    if send {
                        if !piece {
                            self.emit(b"\n", out);
                        }
                        self.inside = piece;
                    }
                    self.state = State::Head(Vec::new());
                }
            }
        }
    }

    /// Decides by its head what becomes of a raw line.
    fn begin(&mut self, head: &[u8], out: &mut BytesMut) {
        let mut parts = head.split(|b| *b == b' ');
        let mut part = || parts.next().and_then(|p| std::str::from_utf8(p).ok()).unwrap_or_default();
        let (time, output, tags) = (part(), part(), part());
        let tag = tags.split(':').next().unwrap_or_default();
        let at = time.parse::<Timestamp>().ok();
        let known = matches!(output, "stdout" | "stderr") && matches!(tag, "F" | "P");
        let send = known
            && at.is_some_and(|at| self.since.is_none_or(|since| at >= since))
            && self.stream.takes(output.as_bytes());
        if send && self.timestamps && !self.inside {
            self.emit(fixed_width(time).as_bytes(), out);
            self.emit(b" ", out);
        }
        self.state = State::Text { send, piece: tag == "P" };
    }

    fn emit(&mut self, bytes: &[u8], out: &mut BytesMut) {
        let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        out.put_slice(&bytes[..count]);
        self.left -= count as u64;
    }
}

/// A time with all nine digits of its fraction, as upstream prints it.
fn fixed_width(time: &str) -> String {
    // `2006-01-02T15:04:05` is 19 long
    let (seconds, rest) = time.split_at_checked(19).unwrap_or((time, ""));
    let (digits, zone) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())),
        None => ("", rest),
    };
    format!("{seconds}.{digits:0<9}{zone}")
}

#[cfg(test)]
mod tests;
