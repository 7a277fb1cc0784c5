//! The embedded engine's whole content, out of an open store and into a new folder.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::disk::{self, Disk};
use super::state::Change;
use super::{Embedded, record};
use crate::transfer::{Entry, Snapshot};
use crate::{EventKind, Revision, StoreError};

impl Embedded {
    /// All keys at one revision that is not older than this call, while reads and writes go on. Values are shared, not copied.
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.flush().await?;
        let state = self.shared.state.read();
        let entry = |(key, current): (&Arc<str>, &super::state::Current)| Entry {
            key: key.clone(),
            value: current.value.clone(),
            mod_revision: current.mod_revision,
            create_revision: current.create_revision,
            expires_at: (current.expires_at != 0).then_some(current.expires_at),
        };
        Ok(Snapshot { revision: state.revision(), entries: state.currents().map(entry).collect() })
    }
}

/// Makes a new store in `folder` with this content. Its history begins at `revision`, which is raised where that does not
/// lie above all of the entries: nothing older can be read or watched from. Blocks. The store is there whole or not at all.
///
/// Errors: [`StoreError::Unavailable`] when there is a store already, or the disk fails.
pub fn create(folder: &Path, snapshot: &Snapshot, revision: Revision) -> Result<Revision, StoreError> {
    let lock = disk::prepare(folder)?;
    let mut newest = revision.max(snapshot.revision);
    newest = snapshot.entries.iter().fold(newest, |newest, entry| newest.max(entry.mod_revision));
    // Two keys of one revision (another engine's transaction) get numbers of their own.
    let mut used = BTreeSet::new();
    let mut changes = Vec::with_capacity(snapshot.entries.len());
    for entry in &snapshot.entries {
        let own = if entry.mod_revision > 0 && used.insert(entry.mod_revision) {
            entry.mod_revision
        } else {
            newest += 1;
            newest
        };
        changes.push(Change {
            revision: own,
            key: entry.key.clone(),
            kind: EventKind::Put,
            create_revision: if own == entry.mod_revision { entry.create_revision } else { own },
            previous: 0,
            expires_at: entry.expires_at.unwrap_or(0),
            value: Some(entry.value.clone()),
        });
    }
    let encoded = changes.iter().map(|change| {
        let mut bytes = Vec::new();
        record::encode(change, &mut bytes);
        (change.revision, bytes)
    });
    Disk::create(folder, encoded, newest)?;
    drop(lock);
    Ok(newest)
}
