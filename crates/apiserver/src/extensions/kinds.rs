//! The table of kinds as it is now: the built-in rows and those of the definitions, replaced as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::custom;
use api::kinds::{self, Kind, KindTable};
use api::object::Object;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::watch_cache::Changed;

/// The table of kinds as it is now. Reading it takes no lock.
pub struct Kinds {
    table: ArcSwap<KindTable>,
    /// The rows of each definition, by the definition's name.
    custom: Mutex<BTreeMap<String, Vec<Arc<Kind>>>>,
    replaced: watch::Sender<()>,
}

impl Default for Kinds {
    /// The built-in kinds.
    fn default() -> Self {
        Self {
            table: ArcSwap::from_pointee(kinds::builtin().clone()),
            custom: Mutex::default(),
            replaced: watch::Sender::new(()),
        }
    }
}

impl Kinds {
    /// The table as it is now; a request keeps the one it began with.
    pub fn now(&self) -> Arc<KindTable> {
        self.table.load_full()
    }

    /// Serves these definitions and no others.
    pub fn set(&self, definitions: impl Iterator<Item = Arc<Object>>) {
        let mut custom = self.custom.lock();
        let mut before = std::mem::take(&mut *custom);
        for definition in definitions {
            let known = before.remove(definition.name()).unwrap_or_default();
            custom.insert(definition.name().to_owned(), rows(&definition, known));
        }
        self.replace(&custom);
    }

    /// Takes in changes of definitions.
    pub fn apply(&self, changes: &[Changed]) {
        let mut custom = self.custom.lock();
        for change in changes {
            match (&change.new, &change.old) {
                (Some(new), _) => {
                    let known = custom.remove(new.name()).unwrap_or_default();
                    custom.insert(new.name().to_owned(), rows(new, known));
                }
                (None, Some(old)) => {
                    custom.remove(old.name());
                }
                (None, None) => {}
            }
        }
        self.replace(&custom);
    }

    fn replace(&self, custom: &BTreeMap<String, Vec<Arc<Kind>>>) {
        let mut more: Vec<Arc<Kind>> = custom.values().flatten().cloned().collect();
        more.sort_by(|a, b| {
            let versions = || custom::compare_versions(&a.version, &b.version);
            a.group.cmp(&b.group).then_with(versions).then_with(|| a.plural.cmp(&b.plural))
        });
        self.table.store(Arc::new(kinds::builtin().with(more)));
        self.replaced.send_replace(());
    }

    /// Tells when a custom resource is no longer what it was; none for built-in kinds, which stay.
    pub fn retirement(self: &Arc<Self>, kind: &Arc<Kind>) -> Option<Retirement> {
        kind.definition.as_ref()?;
        Some(Retirement { kinds: self.clone(), kind: kind.clone(), replaced: self.replaced.subscribe() })
    }
}

/// The rows of a definition; those that did not change stay the same, so that nobody who uses them is disturbed.
fn rows(definition: &Object, known: Vec<Arc<Kind>>) -> Vec<Arc<Kind>> {
    let rows = custom::rows(definition.value());
    let is_built_in =
        |kind: &Kind| kinds::all().iter().any(|k| k.group == kind.group && k.plural == kind.plural);
    if rows == known || rows.first().is_some_and(|kind| is_built_in(kind)) {
        return known;
    }
    rows
}

/// Whether objects of both rows mean the same.
fn is_like(a: &Arc<Kind>, b: &Arc<Kind>) -> bool {
    let definitions = a.definition.as_ref().zip(b.definition.as_ref());
    Arc::ptr_eq(a, b) || definitions.is_some_and(|(a, b)| a.is_like(b))
}

/// The end of a custom resource as it was: its definition changed or went.
pub struct Retirement {
    kinds: Arc<Kinds>,
    kind: Arc<Kind>,
    replaced: watch::Receiver<()>,
}

impl Retirement {
    /// Returns when the table has another row in the place of the kind's.
    pub async fn wait(&mut self) {
        loop {
            let kind = &self.kind;
            match self.kinds.table.load().find(&kind.group, &kind.version, &kind.plural) {
                Some(row) if is_like(row, kind) => {}
                _ => return,
            }
            // the sender lives in `kinds`: waiting cannot fail
            if self.replaced.changed().await.is_err() {
                return;
            }
        }
    }
}
