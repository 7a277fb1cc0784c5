//! `navarch backup`: the cluster's data in one file, taken while the server runs, and back into a fresh folder.
//!
//! Values stay as they are stored: what is encrypted at rest is encrypted in the backup, whose keys are in it only when
//! that is asked for (`--with-keys`, with the certificates), so that a backup alone opens nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use store::backup::{self, Manifest};
use store::transfer::{RESTORE_GAP, Snapshot};

use crate::data_dir::DataDir;
use crate::datastore::{Datastore, DatastoreOptions};

/// What stands before values that are encrypted at rest, up to the key's name.
const SEALED: &[u8] = b"k8s:enc:";
/// The note in the manifest that names the keys.
const KEYS: &str = "encryptionKeys";
/// Our own keys, in the folder of certificates.
const OWN_KEYS: &str = "encryption-config.json";
/// Certificates and keys in a backup lie here.
const PKI: &str = "pki/";

/// What to do with backups.
#[derive(Subcommand)]
pub enum BackupAction {
    /// Writes the whole data at one revision into a file; the server goes on meanwhile.
    Create {
        /// The file; by default `backups/TIME.tar.gz` in the cluster's folder.
        file: Option<PathBuf>,
        /// Also puts in the certificates and the keys that Secrets are encrypted with: all that a new machine needs, and all
        /// that a thief needs.
        #[arg(long)]
        with_keys: bool,
        /// The data, where no server runs.
        #[command(flatten)]
        datastore: DatastoreOptions,
    },
    /// Brings a backup into a fresh folder, or into an empty etcd.
    Restore {
        /// The file.
        file: PathBuf,
        /// The keys that values in the backup are encrypted with are given to the server in another way.
        #[arg(long)]
        without_keys: bool,
        /// Where the data goes.
        #[command(flatten)]
        datastore: DatastoreOptions,
    },
    /// Lists the backups in the cluster's folder, or in this one.
    List {
        /// The folder.
        folder: Option<PathBuf>,
    },
    /// Checks a backup and says what is in it.
    Inspect {
        /// The file.
        file: PathBuf,
    },
}

/// What a running server is asked on its socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// Where to write the backup.
    pub path: PathBuf,
    /// With certificates and keys.
    pub with_keys: bool,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// The backup is on the disk.
    Written(Manifest),
    /// There is none, and why.
    Failed(String),
}

/// Does what was asked.
pub fn main(path: &Path, action: BackupAction) -> anyhow::Result<()> {
    match action {
        BackupAction::Create { file, with_keys, datastore } => create(path, file, with_keys, &datastore),
        BackupAction::Restore { file, without_keys, datastore } => {
            restore(path, &file, without_keys, &datastore)
        }
        BackupAction::List { folder } => list(&folder.unwrap_or_else(|| path.join("backups"))),
        BackupAction::Inspect { file } => inspect(&file),
    }
}

fn create(
    path: &Path,
    file: Option<PathBuf>,
    with_keys: bool,
    options: &DatastoreOptions,
) -> anyhow::Result<()> {
    let Some(data) = DataDir::at(path)? else { bail!("there is no cluster in {}", path.display()) };
    let now = jiff::Timestamp::now();
    let file = match file {
        Some(file) => std::path::absolute(file)?,
        None => data.root().join(format!("backups/{}.tar.gz", now.strftime("%Y%m%dT%H%M%SZ"))),
    };
    let manifest = if data.running()?.is_some() {
        match ask(&data.datastore_socket(), &Question { path: file.clone(), with_keys })? {
            Answer::Written(manifest) => manifest,
            Answer::Failed(why) => bail!(why),
        }
    } else {
        let _lock = data.lock()?;
        if options.datastore_endpoints.is_empty() && !data.store().exists() {
            bail!("{} holds no data", data.root().display());
        }
        let runtime = tokio::runtime::Runtime::new()?;
        let open = async {
            let datastore = Datastore::open(options, &data).await?;
            let written = write(&datastore, data.pki(), Question { path: file.clone(), with_keys }).await;
            datastore.close().await?;
            written
        };
        runtime.block_on(open)?
    };
    print(&file, &manifest);
    Ok(())
}

/// Writes a backup of an open store.
pub async fn write(datastore: &Datastore, pki: PathBuf, question: Question) -> anyhow::Result<Manifest> {
    let snapshot = datastore.snapshot().await?;
    let write = move || {
        let files = if question.with_keys { read_folder(&pki)? } else { BTreeMap::new() };
        let keys = sealed_with(&snapshot).into_iter().collect::<Vec<_>>().join(", ");
        let notes = BTreeMap::from([(KEYS.to_owned(), keys)]);
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let version = env!("CARGO_PKG_VERSION");
        Ok(backup::write(&question.path, &snapshot, &files, notes, now, version)?)
    };
    tokio::task::spawn_blocking(write).await?
}

/// The keys that values are encrypted with, as `provider:version:name`.
fn sealed_with(snapshot: &Snapshot) -> BTreeSet<String> {
    let name = |value: &[u8]| {
        let head = value.strip_prefix(SEALED)?;
        let head = &head[..head.len().min(512)];
        let colons = head.iter().enumerate().filter(|(_, byte)| **byte == b':');
        let end = colons.map(|(at, _)| at).nth(2)?;
        Some(String::from_utf8_lossy(&head[..end]).into_owned())
    };
    snapshot.entries.iter().filter_map(|entry| name(&entry.value)).collect()
}

fn read_folder(folder: &Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let content = std::fs::read(entry.path()).with_context(|| entry.path().display().to_string())?;
            files.insert(format!("{PKI}{}", entry.file_name().to_string_lossy()), content);
        }
    }
    Ok(files)
}

fn restore(path: &Path, file: &Path, without_keys: bool, options: &DatastoreOptions) -> anyhow::Result<()> {
    let backup = backup::read(file)?;
    let data = DataDir::create(path)?;
    let _lock = data.lock()?;
    let pki = data.pki();
    if options.datastore_endpoints.is_empty() && data.store().join("store.redb").exists() {
        bail!("{} holds data already; restore into a fresh folder", data.root().display());
    }
    let pki_files: Vec<_> =
        backup.files.iter().filter_map(|(name, content)| Some((name.strip_prefix(PKI)?, content))).collect();
    if !pki_files.is_empty() && pki.exists() {
        bail!("the backup has certificates, and {} has others; restore into a fresh folder", pki.display());
    }
    let missing = missing_keys(&backup.snapshot, &backup.files, &pki)?;
    if !missing.is_empty() && !without_keys {
        bail!(
            "values in the backup are encrypted with {}, which is neither in the backup nor in {}; put the file with the \
             keys there, or pass --without-keys and give them to the server with --encryption-provider-config",
            missing.join(", "),
            pki.join(OWN_KEYS).display()
        );
    }
    // Keys first: data that is there can be read.
    for (name, content) in pki_files {
        if name.contains('/') || name.starts_with('.') {
            bail!("{name:?} is no name of a certificate");
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&pki)?;
        let target = pki.join(name);
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&target)
            .with_context(|| target.display().to_string())?;
        file.write_all(content)
            .and_then(|()| file.sync_all())
            .with_context(|| target.display().to_string())?;
    }
    let revision = backup.snapshot.revision + RESTORE_GAP;
    let now = if options.datastore_endpoints.is_empty() {
        store::embedded::create(&data.store(), &backup.snapshot, revision)?
    } else {
        let runtime = tokio::runtime::Runtime::new()?;
        let source = format!("the backup {} of {}", backup.manifest.checksum, backup.manifest.created);
        runtime.block_on(store::etcd::create(options.etcd(), &backup.snapshot, revision, &source))?
    };
    println!(
        "restored {} keys of revision {} from {}; the cluster goes on at revision {now}",
        backup.manifest.keys,
        backup.manifest.revision,
        file.display()
    );
    Ok(())
}

/// Keys that values are encrypted with and that are not among our own.
fn missing_keys(
    snapshot: &Snapshot,
    files: &BTreeMap<String, Vec<u8>>,
    pki: &Path,
) -> anyhow::Result<Vec<String>> {
    let needed = sealed_with(snapshot);
    if needed.is_empty() {
        return Ok(Vec::new());
    }
    let ours = match files.get(&format!("{PKI}{OWN_KEYS}")) {
        Some(content) => content.clone(),
        None => match std::fs::read(pki.join(OWN_KEYS)) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| pki.join(OWN_KEYS).display().to_string()),
        },
    };
    let ours = names(&serde_json::from_slice(&ours).unwrap_or_default());
    let name = |key: &str| key.rsplit(':').next().unwrap_or_default().to_owned();
    Ok(needed.into_iter().filter(|key| !ours.contains(&name(key))).collect())
}

/// All `name` members anywhere in an `EncryptionConfiguration`.
fn names(value: &serde_json::Value) -> BTreeSet<String> {
    match value {
        serde_json::Value::Object(map) => {
            let own = map.get("name").and_then(|name| name.as_str()).map(str::to_owned);
            own.into_iter().chain(map.values().flat_map(names)).collect()
        }
        serde_json::Value::Array(list) => list.iter().flat_map(names).collect(),
        _ => BTreeSet::new(),
    }
}

fn list(folder: &Path) -> anyhow::Result<()> {
    let mut found = Vec::new();
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "gz")
                    && let Ok(manifest) = backup::inspect(&path)
                {
                    found.push((manifest, path));
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| folder.display().to_string()),
    }
    found.sort_by(|a, b| a.0.created.cmp(&b.0.created));
    println!("{:<21} {:>12} {:>8} {:>9} {:<5} FILE", "CREATED", "REVISION", "KEYS", "SIZE", "CERTS");
    for (manifest, path) in found {
        let size = path.metadata().map_or(0, |metadata| metadata.len());
        let keys = if manifest.files.is_empty() { "no" } else { "yes" };
        let Manifest { created, revision, keys: count, .. } = manifest;
        println!(
            "{created:<21} {revision:>12} {count:>8} {:>6.1} MB {keys:<5} {}",
            size as f64 / 1e6,
            path.display()
        );
    }
    Ok(())
}

fn inspect(file: &Path) -> anyhow::Result<()> {
    let backup = backup::read(file)?;
    print(file, &backup.manifest);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for entry in &backup.snapshot.entries {
        let parts: Vec<&str> = entry.key.splitn(5, '/').collect();
        *counts.entry(parts.get(2..4).map(|p| p.join("/")).unwrap_or_default()).or_default() += 1;
    }
    for (resource, count) in counts {
        println!("  {count:>8} {resource}");
    }
    Ok(())
}

fn print(file: &Path, manifest: &Manifest) {
    println!(
        "{}: revision {}, {} keys, {} bytes",
        file.display(),
        manifest.revision,
        manifest.keys,
        manifest.bytes
    );
    println!("  made {} by navarch {}, checksum {}", manifest.created, manifest.version, manifest.checksum);
    match manifest.notes.get(KEYS).filter(|keys| !keys.is_empty()) {
        None => {}
        Some(keys) if manifest.files.is_empty() => {
            println!(
                "  Secrets are encrypted with {keys}; the key is not in the backup: keep the folder pki elsewhere"
            );
        }
        Some(keys) => println!("  Secrets are encrypted with {keys}"),
    }
    if !manifest.files.is_empty() {
        println!("  with certificates and keys: who has this file has the cluster");
    }
}

fn ask(socket: &Path, question: &Question) -> anyhow::Result<Answer> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("the server does not answer on {}", socket.display()))?;
    let mut text = serde_json::to_vec(question)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).context("the server's answer is not understood; see its log")
}
