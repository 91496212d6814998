//! What the store holds, in memory: images, tags, layers, and who counts on them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::Hold;
use super::record::ImageRecord;
use crate::digest::Digest;
use crate::image::ImageId;
use crate::reference::Reference;
use crate::snapshot::{Layer, Number};

/// A layer, and who names or holds it.
#[derive(Debug)]
pub(super) struct LayerState {
    pub(super) layer: Layer,
    /// Images that name it.
    pub(super) images: usize,
    /// Leases and pulls that hold it.
    pub(super) holders: usize,
    /// Whether its content is sure to be on the disk, or was written in this boot.
    pub(super) trusted: bool,
    /// Since when nobody has named or held it. Nothing while somebody does, or once an image did.
    pub(super) unclaimed: Option<Instant>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(super) images: BTreeMap<ImageId, Arc<ImageRecord>>,
    pub(super) tags: BTreeMap<Reference, ImageId>,
    pub(super) layers: BTreeMap<Number, LayerState>,
    pub(super) chains: HashMap<Digest, Number>,
    /// Documents that pulls are about to store.
    pub(super) documents: HashMap<Digest, usize>,
    pub(super) pins: HashMap<ImageId, usize>,
    /// Leases of containers.
    pub(super) users: HashMap<ImageId, usize>,
    pub(super) next_layer: Number,
    pub(super) stamp: u64,
    /// Whether containers have taken their layers again since the start; nothing is collected before.
    pub(crate) recovered: bool,
}

impl State {
    /// Adds or replaces an image. Returns the records of others, changed, that had one of its tags.
    pub(super) fn insert(&mut self, record: ImageRecord) -> Vec<Arc<ImageRecord>> {
        let id = record.id;
        let mut changed = Vec::new();
        for tag in &record.tags {
            let Some(before) =
                self.tags.insert(tag.reference.clone(), id).filter(|before| *before != id)
            else {
                continue;
            };
            if let Some(other) = self.images.get_mut(&before) {
                let mut without = ImageRecord::clone(other);
                without.tags.retain(|other| other.reference != tag.reference);
                *other = Arc::new(without);
                changed.retain(|changed: &Arc<ImageRecord>| changed.id != before);
                changed.push(Arc::clone(other));
            }
        }
        // Counted up before the old record is counted down, so that nothing is free in between.
        for layer in &record.layers {
            if let Some(layer) = self.layers.get_mut(&layer.number) {
                layer.images += 1;
                layer.trusted = true;
                layer.unclaimed = None;
            }
        }
        if let Some(before) = self.images.insert(id, Arc::new(record)) {
            self.release(&before);
        }
        changed
    }

    /// Takes an image out.
    pub(crate) fn take(&mut self, id: &ImageId) -> Option<Arc<ImageRecord>> {
        let record = self.images.remove(id)?;
        self.tags.retain(|_, other| other != id);
        self.release(&record);
        Some(record)
    }

    pub(super) fn add_holder(&mut self, hold: &Hold) {
        for number in &hold.numbers {
            if let Some(layer) = self.layers.get_mut(number) {
                layer.holders += 1;
                // What a container uses was an image's, even if no record says so any more.
                if hold.image.is_some() {
                    layer.unclaimed = None;
                }
            }
        }
        if let Some(image) = hold.image {
            *self.users.entry(image).or_default() += 1;
        }
    }

    /// True where a layer is free now.
    pub(super) fn remove_holder(&mut self, hold: &Hold) -> bool {
        let mut has_freed = false;
        for number in &hold.numbers {
            if let Some(layer) = self.layers.get_mut(number) {
                layer.holders -= 1;
                has_freed |= layer.holders == 0 && layer.images == 0 && layer.unclaimed.is_none();
                layer.unclaimed = layer.unclaimed.map(|_| Instant::now());
            }
        }
        if let Some(image) = hold.image {
            count_down(&mut self.users, &image);
        }
        has_freed
    }

    fn release(&mut self, record: &ImageRecord) {
        for layer in &record.layers {
            if let Some(layer) = self.layers.get_mut(&layer.number) {
                layer.images -= 1;
            }
        }
    }

    /// Takes out all layers that nobody names or holds. Those that no image has ever named
    /// stay for a while, for the pull that wanted them may come again.
    pub(crate) fn take_free_layers(&mut self, is_old: impl Fn(Instant) -> bool) -> Vec<Layer> {
        let is_free = |layer: &LayerState| {
            let waited = layer.unclaimed.is_none_or(&is_old) || !layer.trusted;
            layer.images == 0 && layer.holders == 0 && waited
        };
        let free: Vec<Number> = self
            .layers
            .iter()
            .filter(|(_, layer)| is_free(layer))
            .map(|(number, _)| *number)
            .collect();
        free.iter()
            .filter_map(|number| {
                let layer = self.layers.remove(number)?.layer;
                if self.chains.get(&layer.chain_id) == Some(number) {
                    self.chains.remove(&layer.chain_id);
                }
                Some(layer)
            })
            .collect()
    }

    /// Whether a document is named by an image or about to be.
    pub(crate) fn needs_document(&self, digest: &Digest) -> bool {
        let names = |record: &Arc<ImageRecord>| {
            record.documents.iter().any(|document| document.digest == *digest)
        };
        self.documents.contains_key(digest) || self.images.values().any(names)
    }

    /// All images.
    pub(crate) fn images(&self) -> impl Iterator<Item = &Arc<ImageRecord>> {
        self.images.values()
    }

    /// Whether a container has a lease of an image, or somebody has pinned it.
    pub(crate) fn is_used(&self, id: &ImageId) -> bool {
        self.pins.contains_key(id) || self.users.contains_key(id)
    }
}

/// Counts down, and forgets what has come to nothing.
pub(super) fn count_down<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
