//! Gives space back: what no image, lease or pull names.
//!
//! Removing is quick because it only takes names away. The trees go to the trash and are
//! deleted by a thread of low priority that ends when it has nothing left to do.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::digest::Digest;
use crate::disk::Place;
use crate::error::{Doing, Result};
use crate::image::ImageId;
use crate::snapshot::{self, Number};
use crate::store::Store;

/// How long layers of an unfinished pull wait for the next try. kubelet's longest pause is five minutes.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// What becomes of layers that no image has ever named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unclaimed {
    /// They stay for an hour.
    Keep,
    /// They go at once, for the space is needed.
    Discard,
}

/// Work of the thread that deletes, and whether there is one.
#[derive(Debug, Default)]
pub(crate) struct Sweeper {
    queue: Mutex<Queue>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    layers: Vec<Number>,
    documents: Vec<Digest>,
    /// Whether the trash may have something in it.
    trash: bool,
    is_running: bool,
}

/// Removes an image with all its names; false where it is not here. Quick, whatever its size.
///
/// # Errors
/// The record cannot be deleted; then the image stays.
pub(crate) fn remove(store: &Arc<Store>, id: &ImageId) -> Result<bool> {
    let removed = {
        let _commit = store.commit();
        store
            .disk
            .unlink(Place::ImageRecords, &id.digest().hex())
            .doing(|| format!("remove image {id}"))?;
        store.state().take(id)
    };
    let Some(record) = removed else { return Ok(false) };
    let documents = record.documents.iter().map(|document| document.digest);
    store.sweeper.queue().documents.extend(documents);
    sweep(store, Unclaimed::Keep);
    start(store);
    Ok(true)
}

/// Removes images that no container uses: those without a tag, or all. Returns their ids and the bytes that come back.
///
/// # Errors
/// As [`remove`]; what was removed before stays so.
pub(crate) fn prune(store: &Arc<Store>, all: bool) -> Result<(Vec<ImageId>, u64)> {
    let (before, _) = store.usage();
    let unused: Vec<ImageId> = {
        let state = store.state();
        let is_named = |record: &crate::store::ImageRecord| !all && !record.tags.is_empty();
        state
            .images()
            .filter(|record| !is_named(record) && !state.is_used(&record.id))
            .map(|record| record.id)
            .collect()
    };
    let unused: Vec<ImageId> = unused.into_iter().filter(|id| !store.is_pinned(id)).collect();
    for id in &unused {
        remove(store, id)?;
    }
    sweep(store, Unclaimed::Discard);
    let (after, _) = store.usage();
    Ok((unused, before.saturating_sub(after)))
}

/// Collects the layers that nobody names or holds. Nothing happens before the start is over.
pub(crate) fn sweep(store: &Arc<Store>, unclaimed: Unclaimed) {
    let free = {
        let mut state = store.state();
        if !state.recovered {
            return;
        }
        let is_old = |since: std::time::Instant| {
            unclaimed == Unclaimed::Discard || since.elapsed() > PATIENCE
        };
        state.take_free_layers(is_old)
    };
    if free.is_empty() {
        return;
    }
    store.sweeper.queue().layers.extend(free.iter().map(|layer| layer.number));
    start(store);
}

/// Sees to it that the trash is emptied.
pub(crate) fn empty_trash(store: &Arc<Store>) {
    store.sweeper.queue().trash = true;
    start(store);
}

fn start(store: &Arc<Store>) {
    let mut queue = store.sweeper.queue();
    if queue.is_running {
        return;
    }
    let worker = Arc::clone(store);
    let thread = std::thread::Builder::new().name("image-sweeper".to_owned());
    match thread.spawn(move || run(&worker)) {
        Ok(_) => queue.is_running = true,
        // The next removal tries again, and so does the next start.
        Err(error) => tracing::warn!(%error, "no thread to delete images"),
    }
}

fn run(store: &Store) {
    // Containers come first. The call is about this thread alone (setpriority(2), "C library/kernel differences").
    rustix::process::setpriority_process(None, 19).ok();
    loop {
        let (layers, documents) = {
            let mut queue = store.sweeper.queue();
            if queue.layers.is_empty() && queue.documents.is_empty() && !queue.trash {
                queue.is_running = false;
                store.sweeper.idle.notify_all();
                return;
            }
            queue.trash = false;
            (std::mem::take(&mut queue.layers), std::mem::take(&mut queue.documents))
        };
        if let Err(error) = delete(store, &layers, &documents) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "some space of images did not come back; the next start tries again"
            );
        }
    }
}

fn delete(store: &Store, layers: &[Number], documents: &[Digest]) -> Result<()> {
    // After a power cut no record may name what was deleted.
    store.disk.sync_place(Place::ImageRecords)?;
    store.drop_documents(documents);
    let mut first = Ok(());
    for number in layers {
        let discarded =
            snapshot::discard(&store.disk, *number).doing(|| format!("discard layer {number}"));
        first = first.and(discarded);
    }
    for name in store.disk.names(Place::Trash)? {
        let path = std::ffi::CString::new(name.as_str()).expect("names have no NUL");
        let removed = crate::removal::remove(store.disk.place(Place::Trash), &path)
            .doing(|| format!("delete {}", store.disk.path(Place::Trash).join(&name).display()));
        first = first.and(removed);
    }
    first
}

impl Sweeper {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all space is given back. For whoever needs to know: it may take a while.
    pub(crate) fn wait(&self) {
        let idle = self.idle.wait_while(self.queue(), |queue| queue.is_running);
        drop(idle.unwrap_or_else(PoisonError::into_inner));
    }
}
