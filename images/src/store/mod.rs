//! What the store holds: in memory for every answer, in records for the next daemon.
//!
//! An image is there from the moment its record is on the disk. Everything that the record
//! names is on the disk before (one sync of all, see [`Store::tag`]), so after a power cut
//! an image is whole or not listed. Layers that no record of an image names count only
//! in the boot that made them.
//!
//! Locks: `commit` is held while records of images change on disk, `state` for a few lines
//! at a time and never while the disk is asked. Who needs both takes `commit` first.

mod hold;
mod load;
mod record;
mod state;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use hold::Hold;
pub(crate) use record::{Document, ImageRecord, Ready};
use record::{StoredDocument, Tag};
pub(crate) use state::State;

use crate::digest::Digest;
use crate::disk::{Disk, Place, Sync};
use crate::error::{Doing, Error, Result};
use crate::image::{self, Image, ImageId};
use crate::limits::Limits;
use crate::reference::Reference;
use crate::snapshot::{Layer, Number};

/// The store. All of its functions that touch the disk block.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) disk: Arc<Disk>,
    pub(crate) limits: Limits,
    pub(crate) boot: String,
    /// Names of images that are always pinned.
    pinned: BTreeSet<String>,
    state: Mutex<State>,
    commit: Mutex<()>,
    pub(crate) sweeper: crate::gc::Sweeper,
}

impl Store {
    /// Opens a store and reads its records.
    ///
    /// # Errors
    /// Those of the disk; damaged records are none.
    pub(crate) fn open(path: &Path, limits: Limits, pinned: Vec<String>) -> Result<Arc<Store>> {
        let file = "/proc/sys/kernel/random/boot_id";
        let boot = std::fs::read_to_string(file).doing(|| format!("read {file}"))?;
        Store::open_in_boot(path, limits, pinned, boot.trim())
    }

    /// As [`Store::open`], in a boot of that name.
    pub(crate) fn open_in_boot(
        path: &Path,
        limits: Limits,
        pinned: Vec<String>,
        boot: &str,
    ) -> Result<Arc<Store>> {
        let disk = Disk::open(path)?;
        let state = load::load(&disk, &limits, boot)?;
        let store = Store {
            disk,
            limits,
            boot: boot.to_owned(),
            pinned: pinned.into_iter().collect(),
            state: Mutex::new(state),
            commit: Mutex::default(),
            sweeper: crate::gc::Sweeper::default(),
        };
        Ok(Arc::new(store))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn commit(&self) -> MutexGuard<'_, ()> {
        self.commit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All images, by id.
    pub(crate) fn list(&self) -> Vec<Image> {
        let state = self.state();
        state.images.values().map(|record| self.shown(record, &state)).collect()
    }

    /// The image that a name means, or nothing.
    ///
    /// # Errors
    /// `Invalid` for what can be no name, and for the beginning of several ids.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Image>> {
        let state = self.state();
        let id = crate::lookup::find(name, &state.images, &state.tags)?;
        Ok(id.map(|id| self.shown(&state.images[&id], &state)))
    }

    /// The record of an image.
    pub(crate) fn record(&self, id: &ImageId) -> Option<Arc<ImageRecord>> {
        self.state().images.get(id).cloned()
    }

    /// What a tag led to when it was pulled last.
    pub(crate) fn last_target(&self, reference: &Reference) -> Option<Digest> {
        let state = self.state();
        let record = state.images.get(state.tags.get(reference)?)?;
        record.tags.iter().find(|tag| tag.reference == *reference).map(|tag| tag.target)
    }

    fn shown(&self, record: &ImageRecord, state: &State) -> Image {
        let names = || {
            let tags = record.tags.iter().map(|tag| &tag.reference);
            tags.chain(&record.digests).map(Reference::to_string)
        };
        let pinned = state.pins.contains_key(&record.id)
            || (!self.pinned.is_empty() && names().any(|name| self.pinned.contains(&name)));
        Image {
            id: record.id,
            repo_tags: record.tags.iter().map(|tag| tag.reference.to_string()).collect(),
            repo_digests: record.digests.iter().map(Reference::to_string).collect(),
            size: record.size(),
            user: record.user.clone(),
            created: record.created,
            labels: record.labels.clone(),
            platform: record.platform.clone(),
            pinned,
        }
    }

    /// A stored document, if its bytes are still those of its digest.
    pub(crate) fn document(&self, digest: &Digest) -> Option<Vec<u8>> {
        let cap = self.limits.config_bytes.0.max(self.limits.manifest_bytes.0);
        let bytes = self.disk.read(Place::Blobs, &digest.hex(), cap).ok()??;
        (Digest::of(&bytes) == *digest).then_some(bytes)
    }

    /// Bytes and inodes of everything that is stored.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let state = self.state();
        let mut documents: HashMap<Digest, u64> = HashMap::new();
        for record in state.images.values() {
            documents
                .extend(record.documents.iter().map(|document| (document.digest, document.size)));
        }
        let blocks = |size: &u64| size.next_multiple_of(4096);
        let layers = state.layers.values().map(|layer| (layer.layer.bytes, layer.layer.inodes));
        // Each image and each layer has a record, too.
        let records = (state.images.len() + state.layers.len()) as u64;
        let (bytes, inodes) = layers.fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
        (
            bytes + documents.values().map(blocks).sum::<u64>() + records * 4096,
            inodes + documents.len() as u64 + records,
        )
    }

    /// A number for a layer that is to be made.
    pub(crate) fn next_layer(&self) -> Number {
        let mut state = self.state();
        state.next_layer += 1;
        state.next_layer
    }

    /// Holds the layer of a chain id, if it is here and can be relied on, and is known to be what a blob holds.
    pub(crate) fn hold_chain(
        self: &Arc<Store>,
        chain_id: &Digest,
        blob: Option<&Digest>,
    ) -> Option<Hold> {
        let number = {
            let state = self.state();
            let is_good = |number: &Number| {
                let found = &state.layers[number];
                found.trusted && blob.is_none_or(|blob| found.layer.is_in(blob))
            };
            *state.chains.get(chain_id).filter(|number| is_good(number))?
        };
        self.hold(&[number], None).ok()
    }

    /// Remembers that a blob was seen to hold a layer.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn add_blob(&self, number: Number, blob: Digest) -> Result<()> {
        let layer = {
            let mut state = self.state();
            let Some(found) = state.layers.get_mut(&number) else { return Ok(()) };
            if found.layer.is_in(&blob) {
                return Ok(());
            }
            found.layer.blobs.push(blob);
            found.layer.clone()
        };
        self.disk.write_record(Place::LayerRecords, &number.to_string(), &layer, Sync::Now)
    }

    /// Takes a layer that was just committed; it is held from the start.
    pub(crate) fn add_layer(self: &Arc<Store>, layer: Layer) -> Hold {
        let number = layer.number;
        let mut state = self.state();
        state.chains.insert(layer.chain_id, number);
        let added = state::LayerState {
            layer,
            images: 0,
            holders: 1,
            trusted: true,
            unclaimed: Some(Instant::now()),
        };
        state.layers.insert(number, added);
        Hold { store: Arc::clone(self), numbers: vec![number], image: None }
    }

    /// Holds layers by number; for a container, `image` is what it was made from.
    ///
    /// # Errors
    /// `NotFound` where one is not here.
    pub(crate) fn hold(
        self: &Arc<Store>,
        numbers: &[Number],
        image: Option<ImageId>,
    ) -> Result<Hold> {
        let mut state = self.state();
        if let Some(missing) = numbers.iter().find(|number| !state.layers.contains_key(number)) {
            return Err(Error::NotFound { what: format!("layer {missing} of the image store") });
        }
        let hold = Hold { store: Arc::clone(self), numbers: numbers.to_vec(), image };
        state.add_holder(&hold);
        Ok(hold)
    }

    /// Holds all layers of an image.
    ///
    /// # Errors
    /// `NotFound` where there is no such image.
    pub(crate) fn hold_image(self: &Arc<Store>, id: &ImageId) -> Result<Hold> {
        let record =
            self.record(id).ok_or_else(|| Error::NotFound { what: format!("image {id}") })?;
        let numbers: Vec<Number> = record.layers.iter().map(|layer| layer.number).collect();
        self.hold(&numbers, Some(*id))
    }

    /// The layer of a number, if it is here.
    pub(crate) fn layer(&self, number: Number) -> Option<Layer> {
        self.state().layers.get(&number).map(|state| state.layer.clone())
    }

    /// Whether an image must not be collected.
    pub(crate) fn is_pinned(&self, id: &ImageId) -> bool {
        let state = self.state();
        state.images.get(id).is_some_and(|record| self.shown(record, &state).pinned)
    }

    /// Counts a pin of an image.
    pub(crate) fn pin(&self, id: ImageId) {
        *self.state().pins.entry(id).or_default() += 1;
    }

    /// Takes a pin back.
    pub(crate) fn unpin(&self, id: ImageId) {
        state::count_down(&mut self.state().pins, &id);
    }

    /// Stores an image under a name: the commit point of a pull. Blocks for the disk, and
    /// tells how long the sync of everything took. An image that is here as it should be costs nothing.
    ///
    /// # Errors
    /// Those of the disk; then the image is as it was before.
    pub(crate) fn tag(&self, ready: &Ready) -> Result<(ImageId, Duration)> {
        let documents: Vec<&Document> =
            [&ready.config_document, &ready.manifest].into_iter().chain(&ready.indexes).collect();
        let before = self.record(&ImageId::of(ready.config_document.digest));
        let is_stored = |record: &ImageRecord| {
            record.documents.iter().all(|document| self.document(&document.digest).is_some())
        };
        if let Some(before) = before.filter(|before| is_stored(before))
            && before.is_like(&self.next_record(ready, &documents))
        {
            return Ok((before.id, Duration::ZERO));
        }
        let stored = self.hold_documents(&documents);
        let done = self.tag_held(ready, &documents);
        let digests = stored.digests.clone();
        drop(stored);
        if done.is_err() {
            self.drop_documents(&digests);
        }
        done
    }

    fn tag_held(&self, ready: &Ready, documents: &[&Document]) -> Result<(ImageId, Duration)> {
        let commit = self.commit();
        for document in documents {
            self.disk.write(Place::Blobs, &document.digest.hex(), &document.bytes, Sync::Later)?;
        }
        drop(commit);
        let begun = Instant::now();
        self.disk.sync_all()?;
        let synced = begun.elapsed();
        let _commit = self.commit();
        let record = self.next_record(ready, documents);
        let id = record.id;
        self.disk.write_record(Place::ImageRecords, &id.digest().hex(), &record, Sync::Now)?;
        let changed = self.state().insert(record);
        // Records that lost their tag: should this not reach the disk, stamps decide at the next start.
        for other in changed {
            let name = other.id.digest().hex();
            self.disk.write_record(Place::ImageRecords, &name, &*other, Sync::Later)?;
        }
        Ok((id, synced))
    }

    /// Takes a tag away from its image, which stays; false where there is no such tag.
    ///
    /// # Errors
    /// Those of the disk; then the tag stays.
    pub(crate) fn untag(&self, reference: &Reference) -> Result<bool> {
        let _commit = self.commit();
        let found = {
            let state = self.state();
            state.tags.get(reference).and_then(|id| state.images.get(id).cloned())
        };
        let Some(record) = found else { return Ok(false) };
        let mut record = ImageRecord::clone(&record);
        record.tags.retain(|tag| tag.reference != *reference);
        let name = record.id.digest().hex();
        self.disk.write_record(Place::ImageRecords, &name, &record, Sync::Now)?;
        let mut state = self.state();
        state.tags.remove(reference);
        state.insert(record);
        Ok(true)
    }

    /// Deletes those of some documents that no image names and no pull is about to store.
    pub(crate) fn drop_documents(&self, digests: &[Digest]) {
        // Pulls write theirs with this lock, after they have said so.
        let _commit = self.commit();
        for digest in digests {
            if !self.state().needs_document(digest) {
                // One that stays is deleted at the next start.
                self.disk.unlink(Place::Blobs, &digest.hex()).ok();
            }
        }
    }

    /// Stored documents that no image names yet are not collected while this is held.
    fn hold_documents<'a>(&'a self, documents: &[&Document]) -> hold::DocumentHold<'a> {
        let digests: Vec<Digest> = documents.iter().map(|document| document.digest).collect();
        let mut state = self.state();
        for digest in &digests {
            *state.documents.entry(*digest).or_default() += 1;
        }
        hold::DocumentHold { store: self, digests }
    }

    /// The record of an image with what a pull adds to it.
    fn next_record(&self, ready: &Ready, documents: &[&Document]) -> ImageRecord {
        let mut state = self.state();
        let id = ImageId::of(ready.config_document.digest);
        let layers = ready.layers.numbers.iter().map(|number| state.layers[number].layer.clone());
        let mut record = ImageRecord {
            id,
            tags: Vec::new(),
            digests: Vec::new(),
            manifest: ready.manifest.digest,
            documents: Vec::new(),
            layers: layers.collect(),
            created: ready.config.created.as_deref().and_then(image::nanos_of).unwrap_or(0),
            user: ready.config.user.clone(),
            labels: ready.config.labels.clone(),
            platform: ready.config.platform.clone(),
        };
        if let Some(before) = state.images.get(&id) {
            record.tags.clone_from(&before.tags);
            record.digests.clone_from(&before.digests);
            record.documents.clone_from(&before.documents);
        }
        for document in documents {
            if !record.documents.iter().any(|stored| stored.digest == document.digest) {
                let size = document.bytes.len() as u64;
                record.documents.push(StoredDocument { digest: document.digest, size });
            }
        }
        if let Some(reference) = &ready.reference {
            if reference.digest().is_none() {
                state.stamp += 1;
                let tag =
                    Tag { reference: reference.clone(), target: ready.target, stamp: state.stamp };
                record.tags.retain(|other| other.reference != *reference);
                record.tags.push(tag);
            }
            let by_digest = reference.with_digest(ready.target);
            record.digests.retain(|other| *other != by_digest);
            record.digests.insert(0, by_digest);
        }
        record
    }
}
