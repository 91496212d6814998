//! The story of a pull: resolve, fetch and unpack, tag.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::gc;
use crate::image::ImageId;
use crate::joined::{Job, Joined};
use crate::oci::Platform;
use crate::reference::Reference;
use crate::registry::{Client, Credentials, Known, RawDoc, Resolved, Session};
use crate::snapshot::{self, Wanted};
use crate::store::{self, Hold, Ready, Store};
use crate::transfer::{LayerState, Plan, Source, Transfers, Watched, blocking};

/// What to pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullRequest {
    /// The image.
    pub reference: Reference,
    /// Who asks. Pulls with other credentials are pulls of their own, though layers are still fetched once.
    pub credentials: Credentials,
    /// For which machine; nothing means this one.
    pub platform: Option<Platform>,
}

/// An image that was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The id of the image.
    pub image_id: ImageId,
    /// What the reference led to: a manifest or an index.
    pub digest: Digest,
    /// The steps of the pull in order, with what each took.
    pub timeline: Vec<Step>,
}

/// A step of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `resolve`, `layers`, `sync` or `record`.
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
}

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// The layers, lowest first; none before they are known.
    pub layers: Vec<LayerProgress>,
}

/// What a pull is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Asking the registry what the reference leads to.
    Resolving,
    /// Fetching layers and unpacking them.
    Fetching,
    /// Waiting for the disk.
    Committing,
}

/// How far a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerProgress {
    /// The layer as the manifest names it.
    pub digest: Digest,
    /// Its compressed size in bytes.
    pub size: u64,
    /// How much of it has come.
    pub fetched: u64,
    /// What is being done with it.
    pub state: LayerState,
}

/// What those who wait for a pull look at.
#[derive(Debug)]
pub(crate) struct Watch {
    now: Mutex<(Stage, Vec<Arc<Watched>>)>,
}

impl Watch {
    pub(crate) fn new() -> Watch {
        Watch { now: Mutex::new((Stage::Resolving, Vec::new())) }
    }

    fn set(&self, stage: Stage) {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).0 = stage;
    }

    fn show_layers(&self, layers: Vec<Arc<Watched>>) {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).1 = layers;
    }

    fn progress(&self) -> Progress {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let layers = now.1.iter().map(|layer| {
            let state = layer.state();
            let fetched = layer.received.load(std::sync::atomic::Ordering::Relaxed);
            let fetched = if state == LayerState::Present { layer.size } else { fetched };
            LayerProgress { digest: layer.digest, size: layer.size, fetched, state }
        });
        Progress { stage: now.0, layers: layers.collect() }
    }
}

/// All that pulls need and share.
pub(crate) struct Puller {
    pub(crate) store: Arc<Store>,
    pub(crate) client: Client,
    pub(crate) transfers: Transfers,
    pub(crate) platform: Platform,
    running: Joined<PullRequest, Pulled, Arc<Watch>>,
}

/// A pull under way. It goes on while somebody has one of these.
#[derive(Clone)]
pub struct Pulling {
    job: Arc<Job<Pulled, Arc<Watch>>>,
    puller: Arc<Puller>,
}

impl Pulling {
    /// Waits for the end. May be dropped and called again.
    ///
    /// # Errors
    /// Whatever ended the pull. Layers that were finished stay for a while, so trying again goes on from there.
    pub async fn wait(&self) -> Result<Pulled> {
        let done = self.job.wait().await;
        self.puller.running.tidy();
        done
    }

    /// How far the pull is.
    pub fn progress(&self) -> Progress {
        self.job.info.progress()
    }
}

impl Puller {
    pub(crate) fn new(store: Arc<Store>, client: Client, platform: Platform) -> Puller {
        let (transfers, running) = (Transfers::default(), Joined::default());
        Puller { store, client, transfers, platform, running }
    }

    /// Begins a pull or joins the one that runs. Must be called on the runtime.
    pub(crate) fn pull(self: &Arc<Puller>, request: PullRequest) -> Pulling {
        let puller = Arc::clone(self);
        let key = request.clone();
        let (job, _) = self.running.join(key, move |_| {
            let watch = Arc::new(Watch::new());
            let shown = Arc::clone(&watch);
            (shown, async move { run(&puller, &request, &watch).await })
        });
        Pulling { job, puller: Arc::clone(self) }
    }

    /// Brings all layers of an image into the store, lowest first in `plans`.
    ///
    /// # Errors
    /// The first error of a layer; the others are given up then.
    pub(crate) async fn layers(&self, plans: &[Plan], watch: &Watch) -> Result<Hold> {
        let mut may_retry = true;
        loop {
            let mut has_joined = false;
            let (mut below, mut shown, mut waiting) = (None, Vec::new(), JoinSet::new());
            for plan in plans {
                let (stack, watched, is_joined) =
                    self.transfers.begin(&self.store, plan.clone(), below);
                has_joined |= is_joined;
                shown.push(watched);
                let waited = stack.clone();
                waiting.spawn(async move { waited.wait().await.map(drop) });
                below = Some(stack);
            }
            watch.show_layers(shown);
            match all(waiting).await {
                // What failed may be the transfer of another pull, with other credentials or
                // another registry. This one has the right to try for itself.
                Err(_) if has_joined && may_retry => may_retry = false,
                Err(error) => return Err(error),
                Ok(()) => {
                    let top = below.map(|top| async move { top.wait().await });
                    return match top {
                        Some(top) => Ok(top.await?.again()),
                        None => Ok(Hold::join(&self.store, [])),
                    };
                }
            }
        }
    }
}

/// Waits for all, or for the first error.
async fn all(mut waiting: JoinSet<Result<()>>) -> Result<()> {
    while let Some(done) = waiting.join_next().await {
        // These tasks wait and do nothing else: they neither panic nor are they aborted.
        done.unwrap_or(Ok(()))?;
    }
    Ok(())
}

async fn run(puller: &Puller, request: &PullRequest, watch: &Watch) -> Result<Pulled> {
    let done = steps(puller, request, watch).await;
    if done.as_ref().is_err_and(is_disk_full) {
        gc::sweep(&puller.store, gc::Unclaimed::Discard);
    }
    done
}

async fn steps(puller: &Puller, request: &PullRequest, watch: &Watch) -> Result<Pulled> {
    let mut timeline = Timeline::begin();
    let reference = &request.reference;
    let session = puller.client.session(reference, &request.credentials).await?;
    let resolved = resolve(puller, request, &session).await?;
    timeline.end("resolve");
    watch.set(Stage::Fetching);
    let plans = plans(&session, &resolved);
    let layers = puller.layers(&plans, watch).await?;
    timeline.end("layers");
    watch.set(Stage::Committing);
    let digest = resolved.digest;
    let ready = ready(reference, resolved, layers);
    let store = Arc::clone(&puller.store);
    let (image_id, synced) = blocking(move || store.tag(&ready)).await?;
    timeline.add("sync", synced);
    timeline.end("record");
    Ok(Pulled { image_id, digest, timeline: timeline.steps })
}

async fn resolve(puller: &Puller, request: &PullRequest, session: &Session) -> Result<Resolved> {
    let store = Arc::clone(&puller.store);
    let stored = move |digest: &Digest| store.document(digest).map(bytes::Bytes::from);
    let known = Known { stored: &stored, last: puller.store.last_target(&request.reference) };
    let platform = request.platform.as_ref().unwrap_or(&puller.platform);
    session.resolve(platform, &known).await
}

fn plans(session: &Session, resolved: &Resolved) -> Vec<Plan> {
    let chain_ids = snapshot::chain_ids(&resolved.config.diff_ids);
    let layers = resolved.manifest.layers.iter().zip(&resolved.config.diff_ids).zip(chain_ids);
    layers
        .map(|((layer, diff_id), chain_id)| {
            let descriptor = layer.descriptor.clone();
            let wanted = Wanted {
                what: format!("image {}: layer {}", session.reference(), descriptor.digest),
                blob: Some((descriptor.digest, descriptor.size)),
                diff_id: Some(*diff_id),
            };
            Plan { wanted, chain_id, source: Source::Registry(session.clone(), descriptor) }
        })
        .collect()
}

fn ready(reference: &Reference, resolved: Resolved, layers: Hold) -> Ready {
    let document = |raw: RawDoc| store::Document { digest: raw.digest, bytes: raw.bytes };
    // By tag and digest the digest decides, and the tag is for show: it may lead elsewhere by now.
    let reference = match reference.digest() {
        Some(digest) => reference.with_digest(digest),
        None => reference.clone(),
    };
    Ready {
        config: Arc::new(resolved.config),
        config_document: document(resolved.config_doc),
        manifest: document(resolved.manifest_doc),
        indexes: resolved.indexes.into_iter().map(document).collect(),
        reference: Some(reference),
        target: resolved.digest,
        layers,
    }
}

/// Whether an error says that the disk, or a quota, has no room left.
pub(crate) fn is_disk_full(error: &Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(
                io.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            )
        {
            return true;
        }
        next = match error.downcast_ref::<Error>() {
            Some(Error::Shared(shared)) => Some(shared.as_ref()),
            _ => error.source(),
        };
    }
    false
}

/// Times the steps of a pull.
struct Timeline {
    steps: Vec<Step>,
    since: Instant,
}

impl Timeline {
    fn begin() -> Timeline {
        Timeline { steps: Vec::new(), since: Instant::now() }
    }

    /// Ends a step that began when the last one ended.
    fn end(&mut self, name: &'static str) {
        let took = self.since.elapsed();
        self.since = Instant::now();
        self.steps.push(Step { name, took });
    }

    /// Adds a part of the current step as one of its own.
    fn add(&mut self, name: &'static str, took: Duration) {
        self.since += took.min(self.since.elapsed());
        self.steps.push(Step { name, took });
    }
}
