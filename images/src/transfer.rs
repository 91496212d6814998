//! Layers on their way into the store: one transfer for each, whoever wants it, however many images it is in.

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use tokio::sync::Semaphore;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::gc;
use crate::joined::{Cancel, Job, Joined};
use crate::oci::Descriptor;
use crate::registry::{BlobReader, Session};
use crate::snapshot::{self, Fresh, Number, Wanted};
use crate::store::{Hold, Store};

/// Where the bytes of a layer come from.
#[derive(Clone)]
pub(crate) enum Source {
    /// A registry, through the session of the pull that began the transfer.
    Registry(Session, Descriptor),
    /// A part of a file.
    Archive(Arc<crate::archive::Archive>, crate::archive::Part),
}

/// A layer that an image needs.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) wanted: Wanted,
    pub(crate) chain_id: Digest,
    pub(crate) source: Source,
}

impl Plan {
    /// The digest of what the layer comes in.
    fn blob(&self) -> Option<Digest> {
        self.wanted.blob.map(|(digest, _)| digest)
    }
}

/// How far a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// Others come first.
    Waiting,
    /// Its bytes are coming and are unpacked at once.
    Fetching,
    /// It is in its place.
    Done,
    /// It was here before.
    Present,
}

/// What those who wait for a layer may look at.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) received: Arc<AtomicU64>,
    state: AtomicU8,
}

impl Watched {
    pub(crate) fn new(digest: Digest, size: u64, state: LayerState) -> Watched {
        let received = Arc::new(AtomicU64::new(0));
        Watched { digest, size, received, state: AtomicU8::new(state as u8) }
    }

    pub(crate) fn state(&self) -> LayerState {
        match self.state.load(Ordering::Relaxed) {
            0 => LayerState::Waiting,
            1 => LayerState::Fetching,
            2 => LayerState::Done,
            _ => LayerState::Present,
        }
    }

    fn set(&self, state: LayerState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }
}

/// All transfers of a store.
pub(crate) struct Transfers {
    /// By chain id and blob: what another blob holds is not known before it has come.
    joined: Joined<(Digest, Option<Digest>), Arc<Hold>, Arc<Watched>>,
    slots: Arc<Semaphore>,
}

/// A layer with all below it, here or on its way.
#[derive(Clone)]
pub(crate) enum Stack {
    Here(Arc<Hold>),
    Coming(Arc<Job<Arc<Hold>, Arc<Watched>>>),
}

impl Stack {
    /// Waits until the layer and all below it are in place.
    pub(crate) async fn wait(&self) -> Result<Arc<Hold>> {
        match self {
            Stack::Here(hold) => Ok(Arc::clone(hold)),
            Stack::Coming(job) => job.wait().await,
        }
    }

    /// The layers, lowest first, if all are in place.
    fn numbers(&self) -> Option<Vec<Number>> {
        match self {
            Stack::Here(hold) => Some(hold.numbers().to_vec()),
            Stack::Coming(job) => job.result().map(|hold| hold.numbers().to_vec()),
        }
    }
}

impl Default for Transfers {
    /// As many at once as keep the processors and the line busy; each costs two threads and some 2 MiB.
    fn default() -> Transfers {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Transfers {
            joined: Joined::default(),
            slots: Arc::new(Semaphore::new((cores * 4).clamp(8, 32))),
        }
    }
}

impl Transfers {
    /// Begins the transfer of a layer, or joins it; true where it was joined, so that its
    /// failure is that of somebody else's transfer. Must be called on the runtime.
    pub(crate) fn begin(
        &self,
        store: &Arc<Store>,
        plan: Plan,
        below: Option<Stack>,
    ) -> (Stack, Arc<Watched>, bool) {
        let (digest, size) = plan.wanted.blob.unwrap_or((plan.chain_id, 0));
        let key = (plan.chain_id, plan.blob());
        let below_here = match &below {
            None => Some(Hold::join(store, [])),
            Some(Stack::Here(hold)) => Some(hold.again()),
            Some(Stack::Coming(_)) => None,
        };
        if let Some(below) = below_here
            && let Some(own) = store.hold_chain(&plan.chain_id, plan.blob().as_ref())
        {
            let watched = Arc::new(Watched::new(digest, size, LayerState::Present));
            return (Stack::Here(Arc::new(Hold::join(store, [below, own]))), watched, false);
        }
        let (store, slots) = (Arc::clone(store), Arc::clone(&self.slots));
        let (job, is_new) = self.joined.join(key, move |cancel| {
            let watched = Arc::new(Watched::new(digest, size, LayerState::Waiting));
            let shown = Arc::clone(&watched);
            (watched, async move { transfer(store, plan, below, &slots, cancel, &shown).await })
        });
        let watched = Arc::clone(&job.info);
        (Stack::Coming(job), watched, !is_new)
    }
}

/// Brings one layer into the store; held, with all below it, until somebody else holds it.
async fn transfer(
    store: Arc<Store>,
    plan: Plan,
    below: Option<Stack>,
    slots: &Semaphore,
    cancel: Cancel,
    watched: &Watched,
) -> Result<Arc<Hold>> {
    let here = store.hold_chain(&plan.chain_id, plan.blob().as_ref());
    let state = if here.is_some() { LayerState::Present } else { LayerState::Done };
    let fresh = match &here {
        Some(_) => None,
        None => {
            let _slot = slots.acquire().await.expect("the semaphore is never closed");
            watched.set(LayerState::Fetching);
            let known = below.as_ref().map_or(Some(Vec::new()), Stack::numbers);
            Some(fetch(&store, &plan, known, &cancel, watched).await?)
        }
    };
    // Waiting for those below without a slot: they may still need one.
    let below = match &below {
        Some(below) => below.wait().await?.again(),
        None => Hold::join(&store, []),
    };
    let own = match (here, fresh) {
        (Some(own), _) => own,
        (None, fresh) => {
            let (store, numbers) = (Arc::clone(&store), below.numbers().to_vec());
            let fresh = fresh.expect("it was fetched because it was not here");
            blocking(move || fresh.commit(&store, plan.chain_id, &numbers)).await?
        }
    };
    watched.set(state);
    Ok(Arc::new(Hold::join(&store, [below, own])))
}

/// A layer without a place. If it never gets one, its space comes back.
pub(crate) struct Unplaced {
    fresh: Option<Fresh>,
    store: Arc<Store>,
}

impl Unplaced {
    /// Unpacks a stream. Blocks.
    pub(crate) fn unpack(
        store: &Arc<Store>,
        reader: impl BufRead + Send,
        wanted: &Wanted,
        below: Option<&[Number]>,
        cancel: &Cancel,
    ) -> Result<Unplaced> {
        let lowers = below.map(|below| snapshot::lowers(&store.disk, below)).transpose()?;
        let fresh = snapshot::unpack(
            &store.disk,
            reader,
            wanted,
            lowers.as_ref(),
            &store.limits,
            cancel.flag(),
        );
        match fresh {
            Ok(fresh) => Ok(Unplaced { fresh: Some(fresh), store: Arc::clone(store) }),
            Err(error) => {
                gc::empty_trash(store);
                Err(error)
            }
        }
    }

    /// What was unpacked.
    pub(crate) fn fresh(&self) -> &Fresh {
        self.fresh.as_ref().expect("it is taken only by the end")
    }

    /// Gives it its place on the layers below, unless it is there already. Blocks.
    pub(crate) fn commit(
        mut self,
        store: &Arc<Store>,
        chain_id: Digest,
        below: &[Number],
    ) -> Result<Hold> {
        if let Some(here) = store.hold_chain(&chain_id, None) {
            for (number, blob) in here.numbers().iter().zip(self.fresh().blob()) {
                store.add_blob(*number, blob)?;
            }
            return Ok(here);
        }
        let fresh = self.fresh.take().expect("it is taken only by the end");
        let place = (store.next_layer(), chain_id);
        let committed = snapshot::lowers(&store.disk, below).and_then(|lowers| {
            snapshot::commit(&store.disk, fresh, place, &lowers, &store.limits, &store.boot)
        });
        match committed {
            Ok(layer) => Ok(store.add_layer(layer)),
            Err(error) => {
                gc::empty_trash(store);
                Err(error)
            }
        }
    }
}

impl Drop for Unplaced {
    fn drop(&mut self) {
        if self.fresh.take().is_some() {
            gc::empty_trash(&self.store);
        }
    }
}

/// Fetches and unpacks, from another host of the registry where one sent something else.
async fn fetch(
    store: &Arc<Store>,
    plan: &Plan,
    known: Option<Vec<Number>>,
    cancel: &Cancel,
    watched: &Watched,
) -> Result<Unplaced> {
    loop {
        watched.received.store(0, Ordering::Relaxed);
        let mut reader = Reader::open(&plan.source, watched)?;
        // If this future is dropped, the thread below must not go on waiting for the registry.
        let _stop = reader.stopper();
        let (store, plan, known, cancel) =
            (Arc::clone(store), plan.clone(), known.clone(), cancel.clone());
        let (done, reader) = blocking(move || {
            let stream = reader.as_buffered();
            let done = Unplaced::unpack(&store, stream, &plan.wanted, known.as_deref(), &cancel);
            Ok((done, reader))
        })
        .await?;
        match done {
            Err(Error::Invalid { .. } | Error::Limit { .. }) if reader.distrust() => {}
            done => return done,
        }
    }
}

/// Runs what blocks on a thread that may: the one place where this crate does so.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::Unavailable {
                what: "image work".to_owned(),
                problem: "ends because the daemon does".to_owned(),
                source: None,
            }),
        },
    }
}

/// An open source.
enum Reader {
    Blob(BlobReader),
    File(Box<dyn BufRead + Send>),
}

impl Reader {
    /// Opens a source. Must be called on the runtime.
    fn open(source: &Source, watched: &Watched) -> Result<Reader> {
        match source {
            Source::Registry(session, layer) => {
                Ok(Reader::Blob(session.layer(layer, Arc::clone(&watched.received))))
            }
            Source::Archive(archive, part) => Ok(Reader::File(archive.open(part)?)),
        }
    }

    fn as_buffered(&mut self) -> &mut (dyn BufRead + Send) {
        match self {
            Reader::Blob(blob) => blob,
            Reader::File(file) => file,
        }
    }

    fn stopper(&self) -> Option<Stop> {
        match self {
            Reader::Blob(blob) => Some(Stop(blob.stopper())),
            Reader::File(_) => None,
        }
    }

    /// Says that the bytes were wrong; true where others may have the right ones.
    fn distrust(&self) -> bool {
        match self {
            Reader::Blob(blob) => blob.distrust(),
            Reader::File(_) => false,
        }
    }
}

/// Ends a transfer when it is dropped.
struct Stop(tokio::task::AbortHandle);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
