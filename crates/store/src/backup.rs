//! Backups: one `.tar.gz` that ordinary tools can look into.
//!
//! `manifest.json` comes first and says what is in it; `data.jsonl` has one key per line with its value as text, or as base64
//! where it is not UTF-8; further files (certificates, keys) are the caller's. Everything is checksummed: what was
//! damaged on the way is named and never restored. A backup appears under its name when it is whole and on the disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Revision;
use crate::transfer::{Entry, Snapshot, hex};

const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
const DATA: &str = "data.jsonl";
const FILES: &str = "files/";
/// The largest manifest and the largest further file that are read.
const SMALL: u64 = 16 << 20;

/// Why a backup cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file system.
    #[error("{}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is there already.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// It is no backup, or one of a newer version.
    #[error("{} is no backup that this version knows: {reason}", path.display())]
    Unknown {
        /// Which file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// It was changed after it was written.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
}

/// What a backup says about itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The layout's number.
    pub format: u32,
    /// Who wrote it.
    pub version: String,
    /// When (RFC 3339).
    pub created: String,
    /// The store's revision.
    pub revision: Revision,
    /// Keys.
    pub keys: usize,
    /// Bytes of all values.
    pub bytes: u64,
    /// [`Snapshot::checksum`].
    pub checksum: String,
    /// SHA-256 of the further files.
    pub files: BTreeMap<String, String>,
    /// What the caller wants to know later.
    pub notes: BTreeMap<String, String>,
}

/// A backup that was read and checked.
#[derive(Debug)]
pub struct Backup {
    /// What it says about itself.
    pub manifest: Manifest,
    /// The data.
    pub snapshot: Snapshot,
    /// The further files.
    pub files: BTreeMap<String, Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    key: String,
    mod_revision: Revision,
    create_revision: Revision,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

/// Writes a backup; only its owner can read it. `created` is the time in RFC 3339, `version` the program's.
pub fn write(
    path: &Path,
    snapshot: &Snapshot,
    files: &BTreeMap<String, Vec<u8>>,
    notes: BTreeMap<String, String>,
    created: String,
    version: &str,
) -> Result<Manifest, BackupError> {
    let failed = |source| BackupError::Io { path: path.to_owned(), source };
    if path.try_exists().map_err(failed)? {
        return Err(BackupError::Exists(path.to_owned()));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    let manifest = Manifest {
        format: FORMAT,
        version: version.to_owned(),
        created,
        revision: snapshot.revision,
        keys: snapshot.entries.len(),
        bytes: snapshot.bytes(),
        checksum: snapshot.checksum(),
        files: files.iter().map(|(name, content)| (name.clone(), hex(&Sha256::digest(content)))).collect(),
        notes,
    };
    let write = || -> io::Result<()> {
        // A tar entry's size stands before its content.
        let mut data = BufWriter::new(tempfile::tempfile_in(folder)?);
        for entry in &snapshot.entries {
            serde_json::to_writer(&mut data, &line(entry))?;
            data.write_all(b"\n")?;
        }
        let mut data = data.into_inner().map_err(io::IntoInnerError::into_error)?;
        let size = io::Seek::stream_position(&mut data)?;
        io::Seek::rewind(&mut data)?;
        // `NamedTempFile` is made for its owner alone, and goes when this fails.
        let new = tempfile::NamedTempFile::new_in(folder)?;
        let mut archive = tar::Builder::new(GzEncoder::new(BufWriter::new(new), Compression::fast()));
        append(&mut archive, MANIFEST, &serde_json::to_vec_pretty(&manifest)?)?;
        let mut header = header(size);
        archive.append_data(&mut header, DATA, &mut data)?;
        for (name, content) in files {
            append(&mut archive, &format!("{FILES}{name}"), content)?;
        }
        let new = archive.into_inner()?.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        new.as_file().set_permissions(fs::Permissions::from_mode(0o600))?;
        new.as_file().sync_all()?;
        new.persist_noclobber(path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(failed)?;
    Ok(manifest)
}

/// Reads what a backup says about itself, without checking its content.
pub fn inspect(path: &Path) -> Result<Manifest, BackupError> {
    let mut archive = open(path)?;
    let entries = archive.entries().map_err(|error| unreadable(path, &error))?;
    manifest(path, entries).map(|(manifest, _)| manifest)
}

/// Reads a backup and checks everything in it.
pub fn read(path: &Path) -> Result<Backup, BackupError> {
    let damaged = |reason: String| BackupError::Damaged { path: path.to_owned(), reason };
    let mut archive = open(path)?;
    let entries = archive.entries().map_err(|error| unreadable(path, &error))?;
    let (manifest, entries) = manifest(path, entries)?;
    let mut snapshot = Snapshot { revision: manifest.revision, entries: Vec::new() };
    let mut files = BTreeMap::new();
    for entry in entries {
        let mut entry = entry.map_err(|error| damaged(error.to_string()))?;
        let name = entry.path().map_err(|error| damaged(error.to_string()))?.to_string_lossy().into_owned();
        if name == DATA {
            for (number, text) in BufReader::new(&mut entry).lines().enumerate() {
                let text = text.map_err(|error| damaged(error.to_string()))?;
                let entry =
                    parse(&text).map_err(|why| damaged(format!("line {} of the data: {why}", number + 1)))?;
                snapshot.entries.push(entry);
            }
        } else if let Some(name) = name.strip_prefix(FILES) {
            let mut content = Vec::new();
            (&mut entry).take(SMALL).read_to_end(&mut content).map_err(|error| damaged(error.to_string()))?;
            if manifest.files.get(name) != Some(&hex(&Sha256::digest(&content))) {
                return Err(damaged(format!("the file {name} does not match its checksum")));
            }
            files.insert(name.to_owned(), content);
        }
    }
    // What stands behind the last entry is gzip's own checksum.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|error| damaged(error.to_string()))?;
    if snapshot.entries.len() != manifest.keys || files.len() != manifest.files.len() {
        let (found, said) = (snapshot.entries.len(), manifest.keys);
        return Err(damaged(format!(
            "{found} of {said} keys and {} of {} files are there",
            files.len(),
            manifest.files.len()
        )));
    }
    if snapshot.checksum() != manifest.checksum {
        return Err(damaged("the data does not match its checksum".to_owned()));
    }
    Ok(Backup { manifest, snapshot, files })
}

type Archive = tar::Archive<GzDecoder<BufReader<File>>>;
type Entries<'a> = tar::Entries<'a, GzDecoder<BufReader<File>>>;

fn open(path: &Path) -> Result<Archive, BackupError> {
    let file = File::open(path).map_err(|source| BackupError::Io { path: path.to_owned(), source })?;
    Ok(tar::Archive::new(GzDecoder::new(BufReader::new(file))))
}

fn unreadable(path: &Path, reason: &dyn std::fmt::Display) -> BackupError {
    BackupError::Unknown { path: path.to_owned(), reason: reason.to_string() }
}

fn manifest<'a>(path: &Path, mut entries: Entries<'a>) -> Result<(Manifest, Entries<'a>), BackupError> {
    let unknown = |reason: &dyn std::fmt::Display| unreadable(path, reason);
    let first = entries.next().ok_or_else(|| unknown(&"it is empty"))?.map_err(|error| unknown(&error))?;
    if first.path().map_err(|error| unknown(&error))?.to_str() != Some(MANIFEST) {
        return Err(unknown(&"it does not begin with a manifest"));
    }
    let manifest: Manifest = serde_json::from_reader(first.take(SMALL)).map_err(|error| unknown(&error))?;
    if manifest.format != FORMAT {
        return Err(unknown(&format!("it has the format {}", manifest.format)));
    }
    Ok((manifest, entries))
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o600);
    header
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, content: &[u8]) -> io::Result<()> {
    archive.append_data(&mut header(content.len() as u64), name, content)
}

fn line(entry: &Entry) -> Line {
    let text = std::str::from_utf8(&entry.value).ok();
    Line {
        key: entry.key.to_string(),
        mod_revision: entry.mod_revision,
        create_revision: entry.create_revision,
        expires_at: entry.expires_at,
        value: text.map(str::to_owned),
        base64: text.is_none().then(|| STANDARD.encode(&entry.value)),
    }
}

fn parse(text: &str) -> Result<Entry, String> {
    let line: Line = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let value = match (line.value, line.base64) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(encoded)) => STANDARD.decode(encoded).map_err(|error| error.to_string())?,
        _ => return Err("it has no value".to_owned()),
    };
    Ok(Entry {
        key: Arc::from(line.key),
        value: value.into(),
        mod_revision: line.mod_revision,
        create_revision: line.create_revision,
        expires_at: line.expires_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Snapshot {
        let entry = |key: &str, value: &[u8], expires_at| Entry {
            key: key.into(),
            value: value.to_vec().into(),
            mod_revision: 7,
            create_revision: 3,
            expires_at,
        };
        let entries =
            vec![entry("/registry/a", b"{\"x\":1}", None), entry("/registry/b", &[0, 159, 255], Some(9))];
        Snapshot { revision: 12, entries }
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/b.tar.gz");
        let files = BTreeMap::from([("pki/ca.crt".to_owned(), b"pem".to_vec())]);
        let write =
            || write(&path, &sample(), &files, BTreeMap::new(), "2026-01-01T00:00:00Z".to_owned(), "0");
        write().unwrap();
        assert!(matches!(write(), Err(BackupError::Exists(_))));
        let backup = read(&path).unwrap();
        assert_eq!((backup.snapshot.revision, &backup.snapshot.entries), (12, &sample().entries));
        assert_eq!(backup.files, files);
        assert_eq!(inspect(&path).unwrap().keys, 2);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn flipped_bits_and_truncations_are_detected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.tar.gz");
        write(&path, &sample(), &BTreeMap::new(), BTreeMap::new(), String::new(), "0").unwrap();
        let good = fs::read(&path).unwrap();
        let expected = sample();
        for bit in (0..good.len() * 8).step_by(5) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bad).unwrap();
            // Flips in places that carry nothing (the time in gzip's header, tar's padding) may go unnoticed; wrong data may not.
            if let Ok(read) = read(&path) {
                let keys = |s: &Snapshot| {
                    s.entries.iter().map(|e| (e.key.clone(), e.value.clone())).collect::<Vec<_>>()
                };
                assert_eq!(keys(&read.snapshot), keys(&expected), "bit {bit}");
            }
        }
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            assert!(read(&path).is_err(), "length {length}");
        }
    }
}
