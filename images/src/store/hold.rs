//! Holding what must not be collected: layers for containers and pulls, documents for pulls.

use std::sync::Arc;

use super::Store;
use super::state::count_down;
use crate::digest::Digest;
use crate::gc;
use crate::image::ImageId;
use crate::snapshot::Number;

/// Layers that stay while this lives.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(super) store: Arc<Store>,
    pub(super) numbers: Vec<Number>,
    pub(super) image: Option<ImageId>,
}

impl Hold {
    /// The layers by number, lowest first.
    pub(crate) fn numbers(&self) -> &[Number] {
        &self.numbers
    }

    /// Puts holds of single layers together, lowest first.
    pub(crate) fn join(store: &Arc<Store>, holds: impl IntoIterator<Item = Hold>) -> Hold {
        let mut joined = Hold { store: Arc::clone(store), numbers: Vec::new(), image: None };
        for mut hold in holds {
            joined.numbers.append(&mut hold.numbers);
        }
        joined
    }

    /// Another hold of the same layers.
    pub(crate) fn again(&self) -> Hold {
        let hold = Hold {
            store: Arc::clone(&self.store),
            numbers: self.numbers.clone(),
            image: self.image,
        };
        self.store.state().add_holder(&hold);
        hold
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let has_freed = self.store.state().remove_holder(self);
        if has_freed {
            gc::sweep(&self.store, gc::Unclaimed::Keep);
        }
    }
}

/// Documents that a pull is about to store; they are not deleted while this lives.
pub(super) struct DocumentHold<'a> {
    pub(super) store: &'a Store,
    pub(super) digests: Vec<Digest>,
}

impl Drop for DocumentHold<'_> {
    fn drop(&mut self) {
        let mut state = self.store.state();
        for digest in &self.digests {
            count_down(&mut state.documents, digest);
        }
    }
}
