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
    /// What there is without definitions.
    base: &'static KindTable,
    table: ArcSwap<KindTable>,
    /// By the definition's name.
    custom: Mutex<BTreeMap<String, Known>>,
    replaced: watch::Sender<()>,
}

/// What is served of a definition.
#[derive(Default)]
struct Known {
    revision: u64,
    rows: Vec<Arc<Kind>>,
}

impl Default for Kinds {
    /// The built-in kinds.
    fn default() -> Self {
        Self::new(kinds::builtin())
    }
}

impl Kinds {
    /// These kinds, and later those of definitions.
    pub fn new(base: &'static KindTable) -> Self {
        Self {
            base,
            table: ArcSwap::from_pointee(base.clone()),
            custom: Mutex::default(),
            replaced: watch::Sender::new(()),
        }
    }

    /// The table as it is now; a request keeps the one it began with.
    pub fn now(&self) -> Arc<KindTable> {
        self.table.load_full()
    }

    /// Serves these definitions and no others.
    pub fn set(&self, definitions: &[Arc<Object>]) {
        let mut custom = self.custom.lock();
        let is_same = |o: &Arc<Object>| custom.get(o.name()).is_some_and(|k| k.revision == o.revision());
        if definitions.len() == custom.len() && definitions.iter().all(is_same) {
            return;
        }
        let mut before = std::mem::take(&mut *custom);
        for definition in definitions {
            let known = before.remove(definition.name()).unwrap_or_default();
            custom.insert(definition.name().to_owned(), known.newer(definition));
        }
        self.replace(&custom);
    }

    /// Takes in a definition that may be newer than what is served of it.
    pub fn refresh(&self, definition: &Object) {
        let mut custom = self.custom.lock();
        let known = custom.get(definition.name()).map_or(0, |known| known.revision);
        if known < definition.revision() {
            let known = custom.remove(definition.name()).unwrap_or_default();
            custom.insert(definition.name().to_owned(), known.newer(definition));
            self.replace(&custom);
        }
    }

    /// Takes in changes of definitions.
    pub fn apply(&self, changes: &[Changed]) {
        let mut custom = self.custom.lock();
        for change in changes {
            match (&change.new, &change.old) {
                (Some(new), _) => {
                    let known = custom.remove(new.name()).unwrap_or_default();
                    custom.insert(new.name().to_owned(), known.newer(new));
                }
                (None, Some(old)) => {
                    // it may have been made anew since
                    if custom.get(old.name()).is_some_and(|known| known.revision <= change.revision) {
                        custom.remove(old.name());
                    }
                }
                (None, None) => {}
            }
        }
        self.replace(&custom);
    }

    fn replace(&self, custom: &BTreeMap<String, Known>) {
        let mut more: Vec<Arc<Kind>> = custom.values().flat_map(|known| &known.rows).cloned().collect();
        more.sort_by(|a, b| {
            let versions = || custom::compare_versions(&a.version, &b.version);
            a.group.cmp(&b.group).then_with(versions).then_with(|| a.plural.cmp(&b.plural))
        });
        self.table.store(Arc::new(self.base.with(more)));
        self.replaced.send_replace(());
    }

    /// Tells when a custom resource is no longer what it was; none for built-in kinds, which stay.
    pub fn retirement(self: &Arc<Self>, kind: &Arc<Kind>) -> Option<Retirement> {
        kind.definition.as_ref()?;
        Some(Retirement { kinds: self.clone(), kind: kind.clone(), replaced: self.replaced.subscribe() })
    }
}

impl Known {
    /// The state by `definition`, where that is newer. Rows that did not change stay the same, so that nobody who uses
    /// them is disturbed.
    fn newer(self, definition: &Object) -> Self {
        if definition.revision() <= self.revision {
            return self;
        }
        let fresh = custom::rows(definition.value());
        let is_built_in =
            |kind: &Kind| kinds::all().iter().any(|k| k.group == kind.group && k.plural == kind.plural);
        let is_kept = fresh == self.rows || fresh.first().is_some_and(|kind| is_built_in(kind));
        Self { revision: definition.revision(), rows: if is_kept { self.rows } else { fresh } }
    }
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
