//! The data file: redb tables, loading, commits, reads of old values, backup.
//!
//! One folder holds `store.redb` and `lock`. The file has the table `log` (revision → record, see
//! `super::record`) and the table `meta` (name → number). Every commit is redb's two-phase commit: slower by one fsync, but
//! then a damaged page of the newest commit can be told from a commit that was cut off, so damage is reported and never
//! "repaired" by silently dropping acknowledged writes.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError, TableDefinition,
};

use super::record;
use super::state::{Change, State};
use crate::{EventKind, Revision, StoreError};

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// The layout of the tables; a file with another number is refused.
const FORMAT: u64 = 1;
/// Changes up to this revision are merged into the base state.
const COMPACTED: &str = "compacted";
/// No revision above this one was ever shown to anybody.
const RESERVED: &str = "reserved";

const FILE: &str = "store.redb";
const LOCK: &str = "lock";
/// Space set aside for the time when the disk is full: opening and deleting need a little.
const SPARE: &str = "spare";
const SPARE_BYTES: u64 = 16 << 20;

/// Opens the storage under a path in place of a plain file: how tests inject faults.
pub(super) type OpenBackend = Arc<dyn Fn(&Path) -> io::Result<Arc<dyn StorageBackend>> + Send + Sync>;

/// What one commit writes.
#[derive(Debug, Default)]
pub(super) struct Commit<'a> {
    pub changes: &'a [&'a [Change]],
    pub remove: &'a [Revision],
    pub compacted: Option<Revision>,
    pub reserved: Option<Revision>,
}

pub(super) struct Disk {
    file: PathBuf,
    cache_bytes: usize,
    backend: Option<OpenBackend>,
    /// `None` while closed or after a failed reopening.
    database: RwLock<Option<Database>>,
    /// Held for its lock.
    lock: RwLock<Option<File>>,
}

impl Disk {
    /// Opens or creates the store in `folder` and loads its state. The second value is the reserved revision.
    pub(super) fn open(
        folder: &Path,
        cache_bytes: usize,
        backend: Option<OpenBackend>,
    ) -> Result<(Disk, State, Revision), StoreError> {
        let io_error = |error: io::Error| StoreError::Unavailable(format!("{}: {error}", folder.display()));
        fs::create_dir_all(folder).map_err(io_error)?;
        let lock = take_lock(&folder.join(LOCK))?;
        let disk = Disk {
            file: folder.join(FILE),
            cache_bytes,
            backend,
            database: RwLock::new(None),
            lock: RwLock::new(Some(lock)),
        };
        if !disk.file.try_exists().map_err(io_error)? {
            create_file(&disk.file, |_, _| Ok(()))?;
        }
        let load = || {
            disk.guarded(|| {
                let mut database = disk.open_database()?;
                // A crash was already repaired by opening. What this finds is damage, also where no record lies.
                if !database.check_integrity().map_err(|error| disk.database_error(error))? {
                    tracing::warn!(file = %disk.file.display(), "rebuilt the free-space map of the store");
                }
                let loaded = disk.load(&database)?;
                *disk.database.write() = Some(database);
                Ok(loaded)
            })
        };
        let (state, reserved) = match load() {
            Err(StoreError::NoSpace { reason }) if disk.give_up_spare() => {
                tracing::warn!(reason, "the disk is full; the store opens with the space it had set aside");
                load()?
            }
            loaded => loaded?,
        };
        Ok((disk, state, reserved))
    }

    /// Makes a data file of these records, all of them older than its history.
    pub(super) fn create(
        folder: &Path,
        records: impl Iterator<Item = (Revision, Vec<u8>)>,
        revision: Revision,
    ) -> Result<(), StoreError> {
        create_file(&folder.join(FILE), |log, meta| {
            for (revision, record) in records {
                log.insert(revision, record.as_slice())?;
            }
            meta.insert(COMPACTED, revision)?;
            meta.insert(RESERVED, revision)?;
            Ok(())
        })
    }

    fn open_database(&self) -> Result<Database, StoreError> {
        let mut builder = Database::builder();
        builder.set_cache_size(self.cache_bytes);
        match &self.backend {
            None => builder.open(&self.file),
            Some(open) => {
                let backend = open(&self.file).map_err(|error| self.io_error(&error))?;
                builder.create_with_backend(Hooked(backend))
            }
        }
        .map_err(|error| self.database_error(error))
    }

    fn load(&self, database: &Database) -> Result<(State, Revision), StoreError> {
        let transaction = database.begin_read().map_err(|error| self.error(error))?;
        let missing = |_| self.corrupt("a table is missing");
        let meta = transaction.open_table(META).map_err(missing)?;
        let number = |name: &str| -> Result<u64, StoreError> {
            match meta.get(name).map_err(|error| self.error(error))? {
                Some(number) => Ok(number.value()),
                None => Err(self.corrupt(&format!("the number {name:?} is missing"))),
            }
        };
        let format = number("format")?;
        if format != FORMAT {
            return Err(
                self.corrupt(&format!("format {format} is not known to this version (it knows {FORMAT})"))
            );
        }
        let (compacted, reserved) = (number(COMPACTED)?, number(RESERVED)?);
        let mut state = State::new(compacted);
        let log = transaction.open_table(LOG).map_err(missing)?;
        for entry in log.range::<u64>(..).map_err(|error| self.error(error))? {
            let (revision, bytes) = entry.map_err(|error| self.error(error))?;
            let revision = revision.value();
            let change = record::decode(revision, bytes.value()).map_err(|reason| self.corrupt(&reason))?;
            if revision > reserved {
                return Err(self.corrupt(&format!("revision {revision} is above the reserved {reserved}")));
            }
            match (revision > compacted, change.kind) {
                (true, _) => state.apply(change),
                (false, EventKind::Put) => state.load_base(&change),
                (false, EventKind::Delete) => {
                    return Err(self.corrupt(&format!("revision {revision} deletes before the history")));
                }
            }
        }
        Ok((state, reserved))
    }

    /// Writes all of `commit` or nothing and returns after it is on the disk. The result is the size of what was removed.
    /// After an error it is not known whether it happened: see [`Disk::reopen`].
    pub(super) fn commit(&self, commit: &Commit<'_>) -> Result<u64, StoreError> {
        self.guarded(|| {
            let database = self.database.read();
            let database = database.as_ref().ok_or_else(closed)?;
            let mut transaction = database.begin_write().map_err(|error| self.error(error))?;
            transaction.set_two_phase_commit(true);
            let mut removed = 0;
            {
                let mut log = transaction.open_table(LOG).map_err(|error| self.error(error))?;
                let mut bytes = Vec::new();
                for change in commit.changes.iter().copied().flatten() {
                    record::encode(change, &mut bytes);
                    log.insert(change.revision, bytes.as_slice()).map_err(|error| self.error(error))?;
                }
                // After the inserts: what is new may be of no more use already.
                for revision in commit.remove {
                    if let Some(old) = log.remove(revision).map_err(|error| self.error(error))? {
                        removed += old.value().len() as u64 + 8;
                    }
                }
                if commit.compacted.is_some() || commit.reserved.is_some() {
                    let mut meta = transaction.open_table(META).map_err(|error| self.error(error))?;
                    for (name, number) in [(COMPACTED, commit.compacted), (RESERVED, commit.reserved)] {
                        if let Some(number) = number {
                            meta.insert(name, number).map_err(|error| self.error(error))?;
                        }
                    }
                }
            }
            transaction.commit().map_err(|error| self.error(error))?;
            Ok(removed)
        })
    }

    /// Opens the file anew after a failed commit (redb refuses further use after an I/O error) and returns the
    /// changes after `revision` that are in it: the failed commit may have happened after all.
    pub(super) fn reopen(&self, revision: Revision) -> Result<Vec<Change>, StoreError> {
        self.guarded(|| {
            let mut database = self.database.write();
            *database = None;
            let opened = self.open_database()?;
            let mut changes = Vec::new();
            {
                let transaction = opened.begin_read().map_err(|error| self.error(error))?;
                let log = transaction.open_table(LOG).map_err(|error| self.error(error))?;
                let later = (Bound::Excluded(revision), Bound::Unbounded);
                for entry in log.range::<u64>(later).map_err(|error| self.error(error))? {
                    let (revision, bytes) = entry.map_err(|error| self.error(error))?;
                    let change = record::decode(revision.value(), bytes.value());
                    changes.push(change.map_err(|reason| self.corrupt(&reason))?);
                }
            }
            *database = Some(opened);
            Ok(changes)
        })
    }

    /// The changes at the given revisions; `None` where one is no longer stored.
    pub(super) fn read(&self, revisions: &[Revision]) -> Result<Vec<Option<Change>>, StoreError> {
        self.guarded(|| {
            let database = self.database.read();
            let database = database.as_ref().ok_or_else(closed)?;
            let transaction = database.begin_read().map_err(|error| self.error(error))?;
            let log = transaction.open_table(LOG).map_err(|error| self.error(error))?;
            let mut changes = Vec::with_capacity(revisions.len());
            for revision in revisions {
                let bytes = log.get(revision).map_err(|error| self.error(error))?;
                let change = bytes.map(|bytes| record::decode(*revision, bytes.value())).transpose();
                changes.push(change.map_err(|reason| self.corrupt(&reason))?);
            }
            Ok(changes)
        })
    }

    /// Copies the last commit into a new store folder, checking every record on the way. Writers go on meanwhile.
    pub(super) fn backup(&self, folder: &Path) -> Result<(), StoreError> {
        let target = folder.join(FILE);
        let io_error = |error: io::Error| StoreError::Unavailable(format!("{}: {error}", folder.display()));
        fs::create_dir_all(folder).map_err(io_error)?;
        if target.try_exists().map_err(io_error)? {
            return Err(StoreError::Unavailable(format!("{} exists already", target.display())));
        }
        let transaction = {
            let database = self.database.read();
            database.as_ref().ok_or_else(closed)?.begin_read().map_err(|error| self.error(error))?
        };
        self.guarded(|| {
            let from_log = transaction.open_table(LOG).map_err(|error| self.error(error))?;
            let from_meta = transaction.open_table(META).map_err(|error| self.error(error))?;
            create_file(&target, |log, meta| {
                let mut last = 0;
                for entry in from_log.range::<u64>(..)? {
                    let (revision, bytes) = entry?;
                    last = revision.value();
                    record::decode(last, bytes.value()).map_err(StorageError::Corrupted)?;
                    log.insert(last, bytes.value())?;
                }
                for entry in from_meta.range::<&str>(..)? {
                    let (name, number) = entry?;
                    meta.insert(name.value(), number.value())?;
                }
                let compacted = meta.get(COMPACTED)?.map_or(0, |number| number.value());
                meta.insert(RESERVED, last.max(compacted))?;
                Ok(())
            })
        })
    }

    fn spare(&self) -> PathBuf {
        self.file.with_file_name(SPARE)
    }

    /// Sets space aside; `false` when the disk has none. A file system that can't set space aside does without.
    pub(super) fn keep_spare(&self) -> bool {
        let path = self.spare();
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() >= SPARE_BYTES) {
            return true;
        }
        let Ok(file) = File::options().create(true).truncate(false).write(true).open(&path) else {
            return false;
        };
        let flags = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&file, flags, 0, SPARE_BYTES) {
            Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => {
                drop(file);
                // Also what was set aside of it.
                let _ = fs::remove_file(&path);
                false
            }
            _ => true,
        }
    }

    /// Gives the space that was set aside to the data; `false` when there is none.
    pub(super) fn give_up_spare(&self) -> bool {
        fs::remove_file(self.spare()).is_ok()
    }

    /// Gives free pages back to the file system. Nothing else runs meanwhile.
    pub(super) fn defragment(&self) -> Result<(), StoreError> {
        self.guarded(|| {
            let mut database = self.database.write();
            let database = database.as_mut().ok_or_else(closed)?;
            while database
                .compact()
                .map_err(|error| StoreError::Unavailable(format!("{}: {error}", self.file.display())))?
            {
            }
            Ok(())
        })
    }

    /// The length of the data file in bytes.
    pub(super) fn file_bytes(&self) -> u64 {
        fs::metadata(&self.file).map_or(0, |metadata| metadata.len())
    }

    /// Closes the file and lets go of the lock.
    pub(super) fn close(&self) {
        let database = self.database.write().take();
        let closed = catch_unwind(AssertUnwindSafe(|| drop(database)));
        if closed.is_err() {
            tracing::error!(file = %self.file.display(), "the store's file could not be closed in order");
        }
        *self.lock.write() = None;
    }

    /// redb panics on some kinds of damage; outside this function that is an ordinary error.
    fn guarded<T>(&self, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
            Err(self.corrupt(&format!("reading or writing it failed: {text}")))
        })
    }

    fn corrupt(&self, reason: &str) -> StoreError {
        StoreError::Corrupt { file: self.file.clone(), reason: reason.to_owned() }
    }

    fn io_error(&self, error: &io::Error) -> StoreError {
        let text = format!("{}: {error}", self.file.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                StoreError::NoSpace { reason: text }
            }
            // A data file that is too short, or that is not one of redb's.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => self.corrupt(&error.to_string()),
            _ => StoreError::Unavailable(text),
        }
    }

    fn error(&self, error: impl Into<redb::Error>) -> StoreError {
        match error.into() {
            redb::Error::Corrupted(reason) => self.corrupt(&reason),
            redb::Error::Io(error) => self.io_error(&error),
            other => StoreError::Unavailable(format!("{}: {other}", self.file.display())),
        }
    }

    fn database_error(&self, error: DatabaseError) -> StoreError {
        match error {
            DatabaseError::DatabaseAlreadyOpen => {
                StoreError::Locked { path: self.file.clone(), holder: String::new() }
            }
            DatabaseError::UpgradeRequired(format) => {
                self.corrupt(&format!("redb file format {format} is not known"))
            }
            other => self.error(other),
        }
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".to_owned())
}

/// Makes a folder for a new store and takes its lock; refuses one that has a store.
pub(super) fn prepare(folder: &Path) -> Result<File, StoreError> {
    let io_error = |error: io::Error| StoreError::Unavailable(format!("{}: {error}", folder.display()));
    fs::create_dir_all(folder).map_err(io_error)?;
    let lock = take_lock(&folder.join(LOCK))?;
    if folder.join(FILE).try_exists().map_err(io_error)? {
        return Err(StoreError::Unavailable(format!("{} holds a store already", folder.display())));
    }
    Ok(lock)
}

/// Takes the lock of the folder; it goes with the file handle.
fn take_lock(path: &Path) -> Result<File, StoreError> {
    let io_error = |error: io::Error| StoreError::Unavailable(format!("{}: {error}", path.display()));
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim().parse::<u32>().map_or(String::new(), |pid| format!(" (pid {pid})"));
            return Err(StoreError::Locked { path: path.to_owned(), holder });
        }
        Err(fs::TryLockError::Error(error)) => return Err(io_error(error)),
    }
    // The pid is only there for the message above.
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(io_error)?;
    Ok(file)
}

type LogTable<'t> = redb::Table<'t, u64, &'static [u8]>;
type MetaTable<'t> = redb::Table<'t, &'static str, u64>;

/// Creates a data file that is there whole or not at all: a crash half way leaves only a `.new` file.
fn create_file(
    path: &Path,
    fill: impl FnOnce(&mut LogTable<'_>, &mut MetaTable<'_>) -> Result<(), redb::Error>,
) -> Result<(), StoreError> {
    let new = path.with_extension("redb.new");
    let create = || -> Result<(), redb::Error> {
        if new.try_exists()? {
            fs::remove_file(&new)?;
        }
        let database = Database::create(&new)?;
        let mut transaction = database.begin_write()?;
        transaction.set_two_phase_commit(true);
        {
            let mut log = transaction.open_table(LOG)?;
            let mut meta = transaction.open_table(META)?;
            for (name, number) in [("format", FORMAT), (COMPACTED, 0), (RESERVED, 0)] {
                meta.insert(name, number)?;
            }
            fill(&mut log, &mut meta)?;
        }
        transaction.commit()?;
        drop(database);
        File::open(&new)?.sync_all()?;
        fs::rename(&new, path)?;
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    create().map_err(|error| match error {
        redb::Error::Corrupted(reason) => StoreError::Corrupt { file: path.to_owned(), reason },
        other => StoreError::Unavailable(format!("{}: {other}", path.display())),
    })
}

/// redb wants the backend by value.
#[derive(Debug)]
struct Hooked(Arc<dyn StorageBackend>);

impl StorageBackend for Hooked {
    fn len(&self) -> Result<u64, io::Error> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write(offset, data)
    }

    fn close(&self) -> Result<(), io::Error> {
        self.0.close()
    }
}
