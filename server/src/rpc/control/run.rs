//! `berth run`: image, pod, container, start, and then output until the end.

use std::sync::Arc;
use std::time::Duration;

use proto::control as v1;
use proto::control::run_request::Message as Asked;
use proto::control::run_response::Message as Told;
use tonic::Streaming;

use super::super::Backend;
use super::super::parse::local::{self, Wanted};
use super::{Sink, find, images, send};
use crate::app::App;
use crate::container::attach::{self, AttachSpec};
use crate::container::stream::{CHUNK, Output, Streams};
use crate::container::{self, Container, State, create, restart, start};
use crate::error::{Doing, Error, Result, chain};
use crate::sandbox::{self, Sandbox};

/// After a container has ended, its output is read to the end for so long.
const LINGER: Duration = Duration::from_secs(10);

pub(super) async fn run(
    backend: Backend,
    mut requests: Streaming<v1::RunRequest>,
    sink: Sink<v1::RunResponse>,
) -> Result<()> {
    let first = requests.message().await.ok().flatten().and_then(|request| request.message);
    let Some(Asked::Spec(spec)) = first else {
        return Err(Error::invalid("message", "the first one must be the spec"));
    };
    let app = backend.app.clone();
    let mut wanted = local::spec(&spec, &app.store.logs())?;
    ensure_name_is_free(&app, &wanted)?;
    images::ensure(&backend, &spec, &sink).await?;
    let image = crate::image::find(&app, &spec.image)?;
    local::settle_command(&mut wanted.container, spec.entrypoint.as_deref(), &image.defaults);
    drop(image);

    let attach = !spec.detach;
    let made = {
        let app = app.clone();
        // Once begun it is finished, so that nothing is half there when the client goes.
        backend.calls.detach(async move { make(&app, wanted, attach).await }).await?
    };
    let cuts = made.container.record().cuts.clone();
    for cut in cuts {
        send(&sink, told(Told::Warning(cut))).await?;
    }
    let started = v1::Started {
        container_id: made.container.id.to_string(),
        pod_id: made.sandbox.id.to_string(),
        name: made.container.record().spec.name.clone(),
    };
    send(&sink, told(Told::Started(started))).await?;
    match made.streams {
        Some(streams) => follow(&app, &made.container, streams, requests, &sink).await,
        None => Ok(()),
    }
}

fn told(message: Told) -> v1::RunResponse {
    v1::RunResponse { message: Some(message) }
}

fn ensure_name_is_free(app: &App, wanted: &Wanted) -> Result<()> {
    let name = &wanted.container.name;
    let has_it =
        |record: &container::Record| record.spec.local.is_some() && record.spec.name == *name;
    match find(app, name) {
        Ok(other) if has_it(&other.record()) => Err(Error::Exists {
            what: format!("the name {name}"),
            problem: format!("container {} has it; remove it, or choose another name", other.id),
        }),
        _ => Ok(()),
    }
}

struct Made {
    sandbox: Arc<Sandbox>,
    container: Arc<Container>,
    streams: Option<Streams>,
}

/// Makes pod and container and starts it. What fails is taken away again.
async fn make(app: &Arc<App>, wanted: Wanted, attach: bool) -> Result<Made> {
    let id = sandbox::run::run(app, wanted.sandbox).await?;
    let sandbox = app.store.sandbox(id.as_str())?;
    match make_container(app, &sandbox, wanted.container, attach).await {
        Ok((container, streams)) => Ok(Made { sandbox, container, streams }),
        Err(error) => {
            if let Err(second) = sandbox::remove::remove(app, &sandbox).await {
                tracing::warn!(sandbox = %sandbox.id, "take back a pod that failed: {}", chain(&second));
            }
            Err(error)
        }
    }
}

async fn make_container(
    app: &Arc<App>,
    sandbox: &Arc<Sandbox>,
    spec: container::spec::ContainerSpec,
    attach: bool,
) -> Result<(Arc<Container>, Option<Streams>)> {
    let container = create::create(app, sandbox, spec).await?;
    create::publish(app, &container);
    // Before the start: then nothing that it writes is missed.
    let all = AttachSpec { stdin: false, stdout: true, stderr: true };
    let streams = if attach { Some(attach::attach(app, &container, all).await?) } else { None };
    start::start(app, &container).await?;
    Ok((container, streams))
}

async fn follow(
    app: &Arc<App>,
    container: &Arc<Container>,
    streams: Streams,
    mut requests: Streaming<v1::RunRequest>,
    sink: &Sink<v1::RunResponse>,
) -> Result<()> {
    let signals = async {
        while let Ok(Some(request)) = requests.message().await {
            if let Some(Asked::Signal(number)) = request.message
                && let Err(error) = container::stop::signal(app, container, number).await
            {
                tracing::debug!(container = %container.id, number, "pass a signal on: {}", chain(&error));
            }
        }
        std::future::pending::<()>().await;
    };
    let copying = async {
        tokio::try_join!(
            copy(streams.stdout, sink, |bytes| told(Told::Stdout(bytes))),
            copy(streams.stderr, sink, |bytes| told(Told::Stderr(bytes))),
        )
    };
    let mut watch = container.watch();
    let ended = async {
        // The record lives as long as we hold the container, even when it is removed meanwhile.
        watch.wait_for(|record| record.state == State::Exited).await.is_ok()
    };
    tokio::pin!(copying);
    tokio::select! {
        () = signals => {}
        copied = &mut copying => {
            copied?;
            container.wait_until(Duration::MAX, |record| record.state == State::Exited).await;
        }
        _ = ended => match tokio::time::timeout(LINGER, copying).await {
            Ok(copied) => copied.map(drop)?,
            Err(_) => tracing::debug!(container = %container.id, "output goes on after the end"),
        },
    }
    let (code, reason) = {
        let record = container.record();
        (record.exit_code, record.reason.clone())
    };
    removed(app, container).await;
    send(sink, told(Told::Exited(v1::Exited { code, reason }))).await
}

/// With --rm nothing is left when the client ends. The removal has begun by itself; this call joins it, and it goes on
/// without us.
async fn removed(app: &Arc<App>, container: &Arc<Container>) {
    if !container.record().spec.local.as_ref().is_some_and(|local| local.remove) {
        return;
    }
    let joined = {
        let (app, container) = (app.clone(), container.clone());
        app.clone().tasks.spawn(async move { restart::remove_with_pod(&app, &container).await })
    };
    // Its errors are in the log; "not there" is the best of them.
    if tokio::time::timeout(LINGER, joined).await.is_err() {
        tracing::debug!(container = %container.id, "the removal takes its time");
    }
}

/// Copies output into messages, no faster than the client takes them.
pub(super) async fn copy<T>(
    from: Option<Output>,
    sink: &Sink<T>,
    message: impl Fn(Vec<u8>) -> T,
) -> Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    loop {
        let mut bytes = Vec::with_capacity(CHUNK);
        match from.read(&mut bytes).await.doing(|| "read the output")? {
            0 => return Ok(()),
            _ => send(sink, message(bytes)).await?,
        }
    }
}
