//! The disk fails, is full, loses power, flips bits. Each run is made from a seed and printed with it.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use redb::StorageBackend;

use crate::embedded::disk::OpenBackend;
use crate::embedded::{Embedded, Options};
use crate::{Delete, Durability, Expect, KeyValue, Put, Revision, Store, StoreError};

const SECTOR: usize = 512;

/// A disk in memory that knows which writes have been synced.
#[derive(Debug, Default)]
struct FaultyDisk(Mutex<Platter>);

#[derive(Debug, Default)]
struct Platter {
    /// What reads see: the page cache.
    seen: Vec<u8>,
    /// What is safe.
    synced: Vec<u8>,
    /// Writes since the last sync; `None`: a change of length.
    unsynced: Vec<(u64, Option<Vec<u8>>)>,
    /// Operations (writes and syncs) until the power goes.
    cut_after: Option<u32>,
    /// Syncs until one fails.
    sync_fails_after: Option<u32>,
    capacity: Option<u64>,
}

impl Platter {
    fn operate(&mut self) -> io::Result<()> {
        match &mut self.cut_after {
            Some(0) => Err(io::Error::other("no power")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn apply(to: &mut Vec<u8>, offset: u64, data: Option<&[u8]>) {
        let offset = offset as usize;
        match data {
            None => to.resize(offset, 0),
            Some(data) => {
                if to.len() < offset + data.len() {
                    to.resize(offset + data.len(), 0);
                }
                to[offset..offset + data.len()].copy_from_slice(data);
            }
        }
    }

    /// Any part of what was not synced may have reached the disk, sector by sector, in any order.
    fn lose_unsynced(&mut self, random: &mut StdRng) {
        let share = random.random_range(0.0..=1.0);
        for (offset, data) in std::mem::take(&mut self.unsynced) {
            match data {
                None if random.random_bool(share) => Platter::apply(&mut self.synced, offset, None),
                None => {}
                Some(data) => {
                    for (index, sector) in data.chunks(SECTOR).enumerate() {
                        let offset = offset + (index * SECTOR) as u64;
                        // Beyond the end of a file whose new length was lost nothing can be.
                        let inside = (offset as usize) < self.synced.len();
                        if inside && random.random_bool(share) {
                            Platter::apply(&mut self.synced, offset, Some(sector));
                        }
                    }
                }
            }
        }
    }
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.0.lock().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let platter = self.0.lock();
        let offset = offset as usize;
        let data = platter.seen.get(offset..offset + out.len());
        out.copy_from_slice(data.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let mut platter = self.0.lock();
        platter.operate()?;
        if platter.capacity.is_some_and(|capacity| len > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        platter.seen.resize(len as usize, 0);
        platter.unsynced.push((len, None));
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut platter = self.0.lock();
        platter.operate()?;
        match &mut platter.sync_fails_after {
            Some(0) => {
                // As Linux does: the pages count as clean from now on, whether they were written or not.
                platter.sync_fails_after = None;
                let mut random = StdRng::seed_from_u64(platter.unsynced.len() as u64);
                platter.lose_unsynced(&mut random);
                return Err(io::Error::from_raw_os_error(5));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let platter = &mut *platter;
        for (offset, data) in platter.unsynced.drain(..) {
            Platter::apply(&mut platter.synced, offset, data.as_deref());
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let mut platter = self.0.lock();
        platter.operate()?;
        Platter::apply(&mut platter.seen, offset, Some(data));
        platter.unsynced.push((offset, Some(data.to_vec())));
        Ok(())
    }
}

/// An empty store, and the disk it will be opened on.
async fn faulty(folder: &Path) -> (Arc<FaultyDisk>, OpenBackend) {
    Embedded::open(folder, Options::default()).unwrap().close().await.unwrap();
    let contents = fs::read(folder.join("store.redb")).unwrap();
    let disk = Arc::new(FaultyDisk(Mutex::new(Platter {
        seen: contents.clone(),
        synced: contents,
        ..Platter::default()
    })));
    let opened = disk.clone();
    (disk, Arc::new(move |_| Ok(opened.clone() as Arc<dyn StorageBackend>)))
}

/// The last durable acknowledgement of one key.
type Acknowledged = (String, Revision, Option<Vec<u8>>);

/// Four writers with keys of their own; each stops at its first failure if `stop`. Returns what was acknowledged.
async fn write(store: &Arc<Embedded>, seed: u64, writes: u64, stop: bool) -> Vec<Acknowledged> {
    let writers = (0..4).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed * 10 + writer);
            let mut known: Vec<Option<Acknowledged>> = vec![None; 10];
            for _ in 0..writes {
                let slot = random.random_range(0..10);
                let key = format!("/w{writer}/k{slot}");
                let result = if random.random_bool(0.2) {
                    match store.delete(Delete::new(key.as_str(), Expect::Any)).await {
                        Err(StoreError::Conflict { current: None }) => continue,
                        Err(error) => Err(error),
                        Ok((revision, _)) => Ok((key, revision, None)),
                    }
                } else {
                    let value = vec![random.random::<u8>(); random.random_range(0..5_000)];
                    let put = Put::set(key.as_str(), value.clone());
                    store.put(put).await.map(|revision| (key, revision, Some(value)))
                };
                match result {
                    Ok(acknowledged) => known[slot] = Some(acknowledged),
                    // Whether this one happened is open: the key says nothing any more.
                    Err(_) => known[slot] = None,
                }
                if stop && known[slot].is_none() {
                    break;
                }
            }
            known.into_iter().flatten().collect::<Vec<_>>()
        })
    });
    let mut known = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        known.extend(writer.await.unwrap());
    }
    known
}

async fn check(store: &Embedded, known: &[Acknowledged], seed: u64) {
    for (key, revision, value) in known {
        let found = store.get(key, None).await.unwrap().0;
        let found = found.as_ref().map(|kv| (kv.mod_revision, kv.value.to_vec()));
        let expected = value.clone().map(|value| (*revision, value));
        assert!(found == expected, "seed {seed}: {key} of revision {revision} is {found:?}");
        assert!(store.revision() >= *revision, "seed {seed}");
    }
}

/// Lets the power go, and opens what is left as an ordinary store.
async fn reopen_after_cut(disk: &FaultyDisk, folder: &Path, seed: u64) -> Arc<Embedded> {
    let mut platter = disk.0.lock();
    platter.lose_unsynced(&mut StdRng::seed_from_u64(seed));
    fs::write(folder.join("store.redb"), &platter.synced).unwrap();
    drop(platter);
    Embedded::open(folder, Options::default()).unwrap_or_else(|error| panic!("seed {seed}: {error}"))
}

#[tokio::test]
async fn power_cut_loses_nothing_acknowledged() {
    for seed in 0..60 {
        let folder = tempfile::tempdir().unwrap();
        let (disk, backend) = faulty(folder.path()).await;
        let store = Embedded::open_on(folder.path(), Options::default(), Some(backend)).unwrap();
        let operations = StdRng::seed_from_u64(seed).random_range(0..1_500);
        disk.0.lock().cut_after = Some(operations);
        let known = write(&store, seed, 10_000, true).await;
        let highest = store.revision();
        let _ = store.close().await;
        drop(store);
        let store = reopen_after_cut(&disk, folder.path(), seed).await;
        check(&store, &known, seed).await;
        assert!(store.revision() >= highest, "seed {seed}: {} after {highest}", store.revision());
        store.put(Put::set("/next", "x")).await.unwrap();
    }
}

#[tokio::test]
async fn failed_fsync_loses_nothing_acknowledged_and_writing_goes_on() {
    for seed in 0..40 {
        let folder = tempfile::tempdir().unwrap();
        let (disk, backend) = faulty(folder.path()).await;
        let store = Embedded::open_on(folder.path(), Options::default(), Some(backend)).unwrap();
        disk.0.lock().sync_fails_after = Some(seed as u32);
        let mut stream = store.watch("/", store.revision()).await.unwrap();
        let mut known = write(&store, seed, 50, false).await;
        assert_eq!(disk.0.lock().sync_fails_after, None, "seed {seed}: the fault was not reached");
        let revision = store.put(Put::set("/after", "x")).await.unwrap();
        known.push(("/after".to_owned(), revision, Some(b"x".to_vec())));
        check(&store, &known, seed).await;
        // What the watch told is what is there.
        let mut told = std::collections::BTreeMap::new();
        while !told.contains_key("/after") {
            for event in futures_util::StreamExt::next(&mut stream).await.unwrap().unwrap() {
                let alive = event.kind == crate::EventKind::Put;
                told.insert(event.kv.key.to_string(), alive.then_some(event.kv));
            }
        }
        let listed = store.range("/", None, None, 0).await.unwrap().items;
        assert_eq!(told.into_values().flatten().collect::<Vec<_>>(), listed, "seed {seed}");
        let _ = store.close().await;
        drop(store);
        let store = reopen_after_cut(&disk, folder.path(), seed).await;
        check(&store, &known, seed).await;
        assert_eq!(store.range("/", None, None, 0).await.unwrap().items, listed, "seed {seed}");
    }
}

#[tokio::test]
async fn full_disk_refuses_writes_keeps_what_is_there_and_recovers_with_space() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, backend) = faulty(folder.path()).await;
    let store = Embedded::open_on(folder.path(), Options::default(), Some(backend)).unwrap();
    let length = disk.len().unwrap();
    disk.0.lock().capacity = Some(length + 1024 * 1024);
    let mut known = Vec::new();
    let error = loop {
        let key = format!("/k{}", known.len());
        match store.put(Put::create(key.as_str(), vec![1; 100_000])).await {
            Ok(revision) => known.push((key, revision, Some(vec![1; 100_000]))),
            Err(error) => break error,
        }
        assert!(known.len() < 200, "the disk is never full");
    };
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    check(&store, &known, 0).await;
    let (key, ..) = known.remove(0);
    store.delete(Delete::new(key, Expect::Any)).await.unwrap();
    disk.0.lock().capacity = None;
    // Deletes are tried at once and show that there is space again.
    let (key, ..) = known.remove(0);
    store.delete(Delete::new(key, Expect::Any)).await.unwrap();
    let revision = store.put(Put::create("/again", vec![2; 100_000])).await.unwrap();
    known.push(("/again".to_owned(), revision, Some(vec![2; 100_000])));
    store.close().await.unwrap();
    drop(store);
    let store = reopen_after_cut(&disk, folder.path(), 0).await;
    check(&store, &known, 0).await;
}

#[tokio::test]
async fn lost_memory_writes_make_watchers_list_again() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, backend) = faulty(folder.path()).await;
    let options = Options { flush_interval: std::time::Duration::from_secs(3600), ..Options::default() };
    let store = Embedded::open_on(folder.path(), options, Some(backend)).unwrap();
    let kept = store.put(Put::set("/a", "durable")).await.unwrap();
    let lost = Put { durability: Durability::Memory, ..Put::set("/a", "lost") };
    let seen = store.put(lost).await.unwrap();
    disk.0.lock().cut_after = Some(0);
    let _ = store.close().await;
    drop(store);
    let store = reopen_after_cut(&disk, folder.path(), 0).await;
    assert_eq!(store.get("/a", None).await.unwrap().0.unwrap().value, "durable");
    assert!(store.revision() > seen);
    assert!(matches!(store.watch("/a", seen).await, Err(StoreError::Compacted { .. })));
    assert!(matches!(store.get("/a", Some(seen)).await, Err(StoreError::Compacted { .. })));
    assert!(store.watch("/a", kept).await.is_ok(), "this watcher has seen nothing that is not true");
    assert!(store.watch("/a", store.revision()).await.is_ok());
}

/// A small store's file: closed in order, or as a crash leaves it.
async fn sample(folder: &Path, crashed: bool) -> (Vec<u8>, Vec<KeyValue>) {
    let store = Embedded::open(folder, Options::default()).unwrap();
    for round in 0..60 {
        let put = Put::set(format!("/k{}", round % 20), vec![round as u8; 500 + round * 20]);
        store.put(put).await.unwrap();
    }
    let items = store.range("/", None, None, 0).await.unwrap().items;
    let crash = fs::read(folder.join("store.redb")).unwrap();
    store.close().await.unwrap();
    let contents = if crashed { crash } else { fs::read(folder.join("store.redb")).unwrap() };
    (contents, items)
}

/// Damage is reported with the file's name, or it hit nothing that counts. Never does wrong data come out.
async fn open_damaged(folder: &Path, contents: &[u8], items: &[KeyValue], what: &str) -> bool {
    let file = folder.join("store.redb");
    fs::write(&file, contents).unwrap();
    match Embedded::open(folder, Options::default()) {
        Err(StoreError::Corrupt { file: named, .. }) => {
            assert_eq!(named, file, "{what}");
            true
        }
        Err(error) => panic!("{what}: {error}"),
        Ok(store) => {
            let found = store.range("/", None, None, 0).await.unwrap().items;
            assert!(found == items, "{what}: damage was not noticed");
            false
        }
    }
}

#[tokio::test]
async fn flipped_bits_are_detected_and_named() {
    for crashed in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (contents, items) = sample(folder.path(), crashed).await;
        let mut random = StdRng::seed_from_u64(7);
        let used: Vec<usize> = (0..contents.len()).filter(|at| contents[*at] != 0).collect();
        let mut detected = 0;
        for round in 0..200 {
            let at = used[random.random_range(0..used.len())];
            let bit = random.random_range(0..8);
            let mut damaged = contents.clone();
            damaged[at] ^= 1 << bit;
            let what = format!("crashed {crashed}, round {round}, byte {at}, bit {bit}");
            detected += u32::from(open_damaged(folder.path(), &damaged, &items, &what).await);
        }
        assert!(detected > 20, "only {detected} of 200 flips were noticed");
    }
}

#[tokio::test]
async fn truncated_files_are_detected_and_named() {
    for crashed in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (contents, items) = sample(folder.path(), crashed).await;
        let mut random = StdRng::seed_from_u64(7);
        for round in 0..40 {
            let length = if round == 0 { 0 } else { random.random_range(0..contents.len()) };
            let what = format!("crashed {crashed}, cut to {length} of {}", contents.len());
            open_damaged(folder.path(), &contents[..length], &items, &what).await;
        }
    }
}
