//! Images for the command line: pull with progress, import and export as streams.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::sync::Arc;
use std::time::Duration;

use images::registry::{AuthConfig, Credentials, Secret};
use images::{Image, LayerState, Progress, PullRequest, Pulled, Pulling, Reference, Source, Stage};
use proto::control as v1;
use proto::control::import_image_request::Message as ImportMessage;
use proto::control::pull_response::Message as PullMessage;
use proto::control::run_response::Message as RunMessage;
use tokio::io::AsyncWriteExt;
use tonic::{Status, Streaming};

use super::super::Backend;
use super::super::images::wait;
use super::{Sink, send};
use crate::app::App;
use crate::blocking;
use crate::error::{Doing, Error, Result};

/// How often a client is told how far a pull is.
const TICK: Duration = Duration::from_millis(100);
/// Bytes of an exported archive in one message.
const CHUNK: usize = 256 << 10;

/// Pulls the image of a new container, as far as its policy asks for it.
pub(super) async fn ensure(
    backend: &Backend,
    spec: &v1::RunSpec,
    sink: &Sink<v1::RunResponse>,
) -> Result<()> {
    let is_here = || Ok::<_, Error>(backend.app.images.status(&spec.image)?.is_some());
    let wanted = match spec.pull() {
        v1::PullPolicy::Always => true,
        v1::PullPolicy::Missing => !is_here()?,
        v1::PullPolicy::Never => false,
    };
    if !wanted {
        return Ok(());
    }
    let pulling = begin(backend, &spec.image, spec.auth.clone(), "")?;
    let tell = |progress| v1::RunResponse { message: Some(RunMessage::Progress(progress)) };
    follow(backend, &spec.image, pulling, sink, tell).await.map(drop)
}

pub(super) async fn pull(
    backend: Backend,
    request: v1::PullRequest,
    sink: Sink<v1::PullResponse>,
) -> Result<()> {
    let pulling = begin(&backend, &request.image, request.auth, &request.platform)?;
    let told = |message| v1::PullResponse { message: Some(message) };
    let tell = |progress| told(PullMessage::Progress(progress));
    let pulled = follow(&backend, &request.image, pulling, &sink, tell).await?;
    let step = |step: &images::Step| v1::Step {
        name: step.name.into(),
        nanoseconds: u64::try_from(step.took.as_nanos()).unwrap_or(u64::MAX),
    };
    let done = v1::PullDone {
        image_id: pulled.image_id.to_string(),
        digest: pulled.digest.to_string(),
        timeline: pulled.timeline.iter().map(step).collect(),
    };
    send(&sink, told(PullMessage::Done(done))).await
}

fn begin(
    backend: &Backend,
    name: &str,
    auth: Option<v1::RegistryAuth>,
    platform: &str,
) -> Result<Pulling> {
    let reference: Reference = name.parse()?;
    let auth = auth.unwrap_or_default();
    let credentials = Credentials::new(&AuthConfig {
        username: auth.username,
        password: Secret::new(auth.password),
        identity_token: Secret::new(auth.identity_token),
        registry_token: Secret::new(auth.registry_token),
        ..Default::default()
    })?;
    let platform = if platform.is_empty() { None } else { Some(platform.parse()?) };
    Ok(backend.app.images.pull(PullRequest { reference, credentials, platform }))
}

/// Waits for a pull, and tells how far it is whenever that has changed.
async fn follow<T>(
    backend: &Backend,
    name: &str,
    pulling: Pulling,
    sink: &Sink<T>,
    tell: impl Fn(v1::PullProgress) -> T,
) -> Result<Pulled> {
    let ticking = async {
        let mut last = None;
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            let now = pulling.progress();
            if last.as_ref() != Some(&now) {
                send(sink, tell(progress(name, &now))).await?;
                last = Some(now);
            }
        }
    };
    let pulled = tokio::select! {
        pulled = wait(backend, pulling.clone()) => pulled?,
        gone = ticking => return gone,
    };
    send(sink, tell(progress(name, &pulling.progress()))).await?;
    Ok(pulled)
}

fn progress(name: &str, progress: &Progress) -> v1::PullProgress {
    let stage = match progress.stage {
        Stage::Resolving => "resolving",
        Stage::Fetching => "fetching",
        Stage::Committing => "committing",
    };
    let layer = |layer: &images::LayerProgress| v1::LayerProgress {
        digest: layer.digest.to_string(),
        state: match layer.state {
            LayerState::Waiting => "waiting",
            LayerState::Fetching => "fetching",
            LayerState::Done => "done",
            LayerState::Present => "present",
        }
        .into(),
        size: layer.size,
        fetched: layer.fetched,
    };
    v1::PullProgress {
        image: name.into(),
        stage: stage.into(),
        layers: progress.layers.iter().map(layer).collect(),
    }
}

pub(super) fn list(app: &App) -> v1::ListImagesResponse {
    let images = app.images.list();
    v1::ListImagesResponse { images: images.into_iter().map(|image| summary(app, image)).collect() }
}

fn summary(app: &App, image: Image) -> v1::ImageSummary {
    let users = users(app, &image);
    v1::ImageSummary {
        id: image.id.to_string(),
        tags: image.repo_tags,
        digests: image.repo_digests,
        size: image.size,
        created_at: image.created,
        pinned: image.pinned,
        containers: u32::try_from(users.len()).unwrap_or(u32::MAX),
    }
}

/// Names of the containers that were made from an image.
fn users(app: &App, image: &Image) -> Vec<String> {
    let id = image.id.to_string();
    let containers = app.store.containers();
    let users = containers.iter().filter(|container| container.record().image.id == id);
    users
        .map(|container| format!("{} ({})", container.record().spec.name, container.id.short()))
        .collect()
}

/// As docker: a name of several takes only the name away, the last one or an id the image.
pub(super) async fn remove(
    backend: &Backend,
    request: v1::RemoveImageRequest,
) -> Result<v1::RemoveImageResponse> {
    let app = backend.app.clone();
    let missing = || Error::NotFound { what: format!("image {}", request.image) };
    let image = app.images.status(&request.image)?.ok_or_else(missing)?;
    let tag = request.image.parse::<Reference>().map(|reference| reference.to_string());
    if let Ok(tag) = tag
        && image.repo_tags.len() > 1
        && image.repo_tags.contains(&tag)
    {
        let removed = tag.clone();
        let work = async move { Ok(app.images.untag(&removed.parse()?).await?) };
        backend.calls.detach(work).await?;
        return Ok(v1::RemoveImageResponse { untagged: vec![tag], deleted: String::new() });
    }
    let users = users(&app, &image);
    if !request.force && !users.is_empty() {
        return Err(Error::WrongState {
            what: format!("image {}", request.image),
            state: format!("used by {}", users.join(", ")),
            problem: "remove the containers first, or use --force".into(),
        });
    }
    let id = image.id.to_string();
    backend.calls.detach(async move { Ok(app.images.remove(&id).await?) }).await?;
    let untagged = image.repo_tags.into_iter().chain(image.repo_digests).collect();
    Ok(v1::RemoveImageResponse { untagged, deleted: image.id.to_string() })
}

/// The stream goes into a file without a name first: it has to be read twice, and a daemon
/// that is killed leaves nothing of it.
pub(super) async fn import(
    backend: &Backend,
    mut requests: Streaming<v1::ImportImageRequest>,
) -> Result<v1::ImportImageResponse> {
    let first = requests.message().await.map_err(broken)?.and_then(|request| request.message);
    let Some(ImportMessage::Spec(spec)) = first else {
        return Err(Error::invalid("message", "the first one must be the spec"));
    };
    let name: Option<Reference> =
        if spec.name.is_empty() { None } else { Some(spec.name.parse()?) };
    let app = backend.app.clone();
    let directory = app.instance.root.clone();
    let spool = blocking::run("make a file", move || {
        tempfile::tempfile_in(&directory)
            .doing(|| format!("make a file in {}", directory.display()))
    })
    .await?;
    let mut spool = tokio::fs::File::from_std(spool);
    let doing = || "keep the archive";
    while let Some(request) = requests.message().await.map_err(broken)? {
        if let Some(ImportMessage::Data(bytes)) = request.message {
            spool.write_all(&bytes).await.doing(doing)?;
        }
    }
    spool.flush().await.doing(doing)?;
    let mut file = spool.into_std().await;
    file.rewind().doing(doing)?;
    let work = async move { import_file(&app, file, name).await };
    backend.calls.detach(work).await
}

fn broken(status: Status) -> Error {
    let source = status.message().to_owned().into();
    Error::Failed { doing: "take the archive from the client".into(), source }
}

async fn import_file(
    app: &App,
    file: File,
    name: Option<Reference>,
) -> Result<v1::ImportImageResponse> {
    let ids = app.images.import(Source::File(file, "the archive".into()), name).await?;
    let mut imported = app.images.list();
    imported.retain(|image| ids.contains(&image.id));
    let images = imported.into_iter().map(|image| summary(app, image)).collect();
    Ok(v1::ImportImageResponse { images })
}

pub(super) async fn export(
    app: Arc<App>,
    request: v1::ExportImageRequest,
    sink: Sink<v1::ExportImageResponse>,
) -> Result<()> {
    blocking::run("export an image", move || {
        let mut out = io::BufWriter::with_capacity(CHUNK, Messages(sink));
        app.images.export(&request.image, &mut out)?;
        out.flush().doing(|| "send the archive")
    })
    .await
}

/// Sends what is written, no faster than the client takes it.
struct Messages(Sink<v1::ExportImageResponse>);

impl Write for Messages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = bytes.get(..CHUNK).unwrap_or(bytes);
        let message = v1::ExportImageResponse { data: part.to_vec() };
        self.0.blocking_send(Ok(message)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) async fn prune(backend: &Backend, all: bool) -> Result<v1::PruneImagesResponse> {
    let images = backend.app.images.clone();
    let pruned = backend.calls.detach(async move { Ok(images.prune(all).await?) }).await?;
    let deleted = pruned.deleted.iter().map(ToString::to_string).collect();
    Ok(v1::PruneImagesResponse { deleted, reclaimed: pruned.reclaimed })
}
