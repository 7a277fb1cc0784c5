//! How far a pull or push is, for those who watch.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// What is done with one part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Not begun.
    Waiting,
    /// On its way from or to the registry.
    Moving,
    /// Becoming a folder.
    Unpacking,
    /// Finished.
    Done,
    /// Was there already.
    Present,
}

/// One part of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// `sha256:<hex>`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// Bytes that have moved.
    pub moved: u64,
    /// What is done with it.
    pub state: State,
}

/// All parts of one image on its way.
#[derive(Debug, Clone)]
pub struct Progress(Arc<watch::Sender<Vec<Step>>>);

impl Default for Progress {
    fn default() -> Self {
        Progress(Arc::new(watch::Sender::new(Vec::new())))
    }
}

impl Progress {
    /// Shows every change; several at once may be seen as one.
    pub fn watch(&self) -> watch::Receiver<Vec<Step>> {
        self.0.subscribe()
    }

    /// One more part.
    pub(crate) fn part(&self, digest: &str, size: u64) -> Part {
        let mut index = 0;
        self.0.send_modify(|steps| {
            index = steps.len();
            steps.push(Step { digest: digest.to_owned(), size, moved: 0, state: State::Waiting });
        });
        Part { progress: self.clone(), index }
    }
}

/// A handle on one part.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    progress: Progress,
    index: usize,
}

impl Part {
    fn change(&self, change: impl FnOnce(&mut Step)) {
        self.progress.0.send_modify(|steps| {
            if let Some(step) = steps.get_mut(self.index) {
                change(step);
            }
        });
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.change(|step| step.moved += bytes);
    }

    /// So much is there already.
    pub(crate) fn at(&self, bytes: u64) {
        self.change(|step| step.moved = bytes);
    }

    /// From the beginning again.
    pub(crate) fn restart(&self) {
        self.at(0);
    }

    pub(crate) fn set(&self, state: State) {
        self.change(|step| step.state = state);
    }
}
