//! A container's log in the CRI format: one line `<RFC 3339 nanoseconds> <stream> <F|P> <content>` per line of
//! output, `P` when the line goes on in the next one.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

/// Longest content of one log line in bytes; the format's known readers rely on this value.
const MAX_LINE: usize = 16 * 1024;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// The log file. Write errors (a full disk) lose output but never block the container.
pub(crate) struct LogFile {
    path: Option<PathBuf>,
    file: Option<File>,
    /// Incomplete last lines, by stream.
    pending: [Vec<u8>; 2],
}

impl LogFile {
    /// Opens the file for appending; `None` throws everything away.
    pub(crate) fn open(path: Option<PathBuf>) -> io::Result<LogFile> {
        let mut log = LogFile { path, file: None, pending: [Vec::new(), Vec::new()] };
        log.reopen()?;
        Ok(log)
    }

    /// Throws everything away.
    pub(crate) fn nowhere() -> LogFile {
        LogFile { path: None, file: None, pending: [Vec::new(), Vec::new()] }
    }

    /// Opens the path anew, after the old file was renamed.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            let open = || {
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o640)
                    .custom_flags(libc::O_NOFOLLOW)
                    .open(path)
            };
            self.file = Some(match open() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if let Some(dir) = path.parent() {
                        std::fs::create_dir_all(dir)?;
                    }
                    open()?
                }
                result => result?,
            });
        }
        Ok(())
    }

    /// Takes output as it comes.
    pub(crate) fn write(&mut self, stream: Stream, chunk: &[u8]) {
        if self.file.is_none() {
            return;
        }
        let stamp = timestamp(now());
        let pending = &mut self.pending[stream as usize];
        let mut out = Vec::with_capacity(chunk.len() + 64);
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            let (mut content, complete) = match piece.split_last() {
                Some((b'\n', content)) => (content, true),
                _ => (piece, false),
            };
            while pending.len() + content.len() > MAX_LINE {
                let (head, tail) = content.split_at(MAX_LINE - pending.len());
                line(&mut out, &stamp, stream, b'P', &[pending, head]);
                pending.clear();
                content = tail;
            }
            if complete {
                // as terminals end lines; other runtimes leave that out, too
                match content.split_last() {
                    Some((b'\r', rest)) => content = rest,
                    None if pending.last() == Some(&b'\r') => drop(pending.pop()),
                    _ => {}
                }
                line(&mut out, &stamp, stream, b'F', &[pending, content]);
                pending.clear();
            } else {
                pending.extend_from_slice(content);
            }
        }
        if pending.is_empty() {
            pending.shrink_to(256);
        }
        self.append(&out);
    }

    /// The stream ended: what is left is a partial line.
    pub(crate) fn finish(&mut self, stream: Stream) {
        let pending = std::mem::take(&mut self.pending[stream as usize]);
        if !pending.is_empty() && self.file.is_some() {
            let mut out = Vec::new();
            line(&mut out, &timestamp(now()), stream, b'P', &[&pending]);
            self.append(&out);
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        if let Some(file) = &mut self.file {
            let _ = file.write_all(bytes);
        }
    }
}

fn line(out: &mut Vec<u8>, stamp: &str, stream: Stream, tag: u8, content: &[&[u8]]) {
    out.extend_from_slice(stamp.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(&[b' ', tag, b' ']);
    for part in content {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |passed| i64::try_from(passed.as_nanos()).unwrap_or(i64::MAX))
}

/// RFC 3339 in UTC with nine digits, done by hand: the shim loads no calendar.
fn timestamp(nanos: i64) -> String {
    let (seconds, nanos) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to civil date, counting years from March (the usual proleptic Gregorian arithmetic).
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanos:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(chunks: &[(Stream, &[u8])]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/0.log");
        let mut log = LogFile::open(Some(path.clone())).unwrap();
        for (stream, chunk) in chunks {
            log.write(*stream, chunk);
        }
        log.finish(Stream::Stdout);
        log.finish(Stream::Stderr);
        let text = String::from_utf8(std::fs::read(path).unwrap()).unwrap();
        text.split_terminator('\n').map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn lines_are_joined_across_reads_and_streams_do_not_mix() {
        let lines = logged(&[
            (Stream::Stdout, b"one\ntw"),
            (Stream::Stderr, b"err\n"),
            (Stream::Stdout, b"o\n\nrest"),
        ]);
        assert_eq!(lines, ["stdout F one", "stderr F err", "stdout F two", "stdout F ", "stdout P rest"]);
    }

    #[test]
    fn what_ends_a_terminals_line_is_no_part_of_it() {
        let lines = logged(&[
            (Stream::Stdout, b"a\r\nb\r"),
            (Stream::Stdout, b"\n\r\nc\rd\r\r\n"),
            (Stream::Stdout, b"e\r"),
        ]);
        assert_eq!(lines, ["stdout F a", "stdout F b", "stdout F ", "stdout F c\rd\r", "stdout P e\r"]);
    }

    #[test]
    fn long_lines_are_cut_at_16_kib() {
        let mut chunk = vec![b'x'; MAX_LINE + 5];
        chunk.push(b'\n');
        let lines = logged(&[(Stream::Stdout, &chunk)]);
        assert_eq!(lines[0], format!("stdout P {}", "x".repeat(MAX_LINE)));
        assert_eq!(lines[1], "stdout F xxxxx");
    }

    #[test]
    fn timestamps_are_utc_with_nanoseconds() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(timestamp(951_827_696_000_000_001), "2000-02-29T12:34:56.000000001Z");
        assert_eq!(timestamp(1_767_225_599_999_999_999), "2025-12-31T23:59:59.999999999Z");
    }
}
