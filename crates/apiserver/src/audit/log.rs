//! The audit log: one JSON object a line, in a file that is rotated by size.
//!
//! A thread of its own writes; requests wait for a place in its queue, so that nothing is lost and memory is bounded.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::sync::mpsc;

/// Events that may wait for the disk.
const QUEUE: usize = 1024;

/// Where the log is and how long it is kept.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// `--audit-log-path`; `-` is standard output.
    pub path: PathBuf,
    /// `--audit-log-maxage`: days that old files are kept; 0 for ever.
    pub max_age: u64,
    /// `--audit-log-maxbackup`: old files kept; 0 for all.
    pub max_backup: usize,
    /// `--audit-log-maxsize`: megabytes of a file before it is rotated; 0 for 100.
    pub max_size: u64,
}

/// The way to the log.
pub struct Log {
    queue: mpsc::Sender<String>,
}

impl Log {
    /// Opens the file and begins to write.
    pub fn open(options: LogOptions) -> io::Result<Self> {
        let (queue, lines) = mpsc::channel(QUEUE);
        let mut writer = Writer::open(options)?;
        std::thread::Builder::new().name("audit-log".to_owned()).spawn(move || writer.run(lines))?;
        Ok(Self { queue })
    }

    /// Records a line; waits for a place in the queue.
    pub async fn write(&self, line: String) {
        // the thread ends with this handle
        let _ = self.queue.send(line).await;
    }

    /// Records a line from where nothing can wait.
    pub fn write_now(&self, line: String) {
        if self.queue.try_send(line).is_err() {
            tracing::error!("an audit event was lost: the log's queue is full");
        }
    }
}

struct Writer {
    options: LogOptions,
    out: Box<dyn Write + Send>,
    written: u64,
}

impl Writer {
    fn open(options: LogOptions) -> io::Result<Self> {
        let (out, written) = open(&options.path)?;
        Ok(Self { options, out, written })
    }

    fn run(&mut self, mut lines: mpsc::Receiver<String>) {
        while let Some(line) = lines.blocking_recv() {
            let mut batch = line;
            batch.push('\n');
            while let Ok(more) = lines.try_recv() {
                batch.push_str(&more);
                batch.push('\n');
                if batch.len() > 1 << 20 {
                    break;
                }
            }
            if let Err(error) = self.append(batch.as_bytes()) {
                tracing::error!(error = &error as &dyn std::error::Error, "the audit log cannot be written");
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let limit = if self.options.max_size == 0 { 100 } else { self.options.max_size } << 20;
        let is_file = self.options.path.as_os_str() != "-";
        if is_file && self.written > 0 && self.written + bytes.len() as u64 > limit {
            self.rotate()?;
        }
        self.out.write_all(bytes)?;
        self.out.flush()?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Puts the file aside under its time and removes what is too old or too many.
    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.options.path;
        let (stem, extension) = parts(path);
        let aside = |at: Timestamp| {
            path.with_file_name(format!("{stem}-{}{extension}", at.strftime("%Y-%m-%dT%H-%M-%S.%3f")))
        };
        let mut at = Timestamp::now();
        // two files of one millisecond must not become one
        while aside(at).exists() {
            at += Duration::from_millis(1);
        }
        std::fs::rename(path, aside(at))?;
        (self.out, self.written) = open(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut old: Vec<PathBuf> = std::fs::read_dir(folder)?
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .filter(|p| {
                let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                name.starts_with(&format!("{stem}-")) && name.ends_with(&extension)
            })
            .collect();
        // the names are times: the newest last
        old.sort();
        let keep = if self.options.max_backup == 0 { old.len() } else { self.options.max_backup };
        let oldest = match self.options.max_age {
            0 => None,
            days => SystemTime::now().checked_sub(Duration::from_secs(days * 24 * 3600)),
        };
        let surplus = old.len().saturating_sub(keep);
        for (i, path) in old.iter().enumerate() {
            let changed = std::fs::metadata(path).and_then(|m| m.modified()).ok();
            if i < surplus || oldest.zip(changed).is_some_and(|(oldest, changed)| changed < oldest) {
                let _ = std::fs::remove_file(path);
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<(Box<dyn Write + Send>, u64)> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(io::stdout()), 0));
    }
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    let file: File = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    Ok((Box::new(file), length))
}

/// Name and extension (with its dot) of a file.
fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    (text(path.file_stem()), extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let options = LogOptions { path: path.clone(), max_backup: 2, max_size: 1, ..LogOptions::default() };
        let mut writer = Writer::open(options).unwrap();
        let line = vec![b'x'; 700 << 10];
        for _ in 0..5 {
            writer.append(&line).unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), line.len() as u64);
    }
}
