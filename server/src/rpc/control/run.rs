//! `berth run`: image, pod, container, start, and then output until the end.

use std::sync::Arc;
use std::time::Duration;

use proto::control as v1;
use proto::control::run_request::Message as Asked;
use proto::control::run_response::Message as Told;
use tonic::Streaming;

use super::super::Backend;
use super::super::parse::local::{self, Wanted};
use super::session::{self, Program, attend};
use super::{Sink, attach, find, images, send};
use crate::app::App;
use crate::container::attach::AttachSpec;
use crate::container::stream::Streams;
use crate::container::{self, Attending, Container, create, restart, start};
use crate::error::{Error, Result, chain};
use crate::sandbox::{self, Sandbox};

/// The removal of a container is waited for so long.
const REMOVAL: Duration = Duration::from_secs(10);

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

    let attach = (!spec.detach).then_some(AttachSpec {
        stdin: spec.interactive,
        stdout: true,
        stderr: true,
    });
    let mut made = {
        let app = app.clone();
        // Once begun it is finished, so that nothing is half there when the client goes.
        backend.calls.detach(async move { make(&app, wanted, attach).await }).await?
    };
    let cuts = made.container.record().cuts.clone();
    for cut in cuts {
        send(&sink, told(Told::Warning(cut))).await?;
    }
    let streams = made.streams.take();
    let stdin = streams.as_ref().is_some_and(|streams| streams.stdin.is_some());
    send(&sink, told(Told::Started(attach::started(&made.container, stdin)))).await?;
    match streams {
        Some(streams) => follow(&app, made, streams, requests, &sink).await,
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
    container: Arc<Container>,
    streams: Option<Streams>,
    /// Where somebody is attached.
    attending: Option<Attending>,
}

/// Makes pod and container and starts it. What fails is taken away again.
async fn make(app: &Arc<App>, wanted: Wanted, attach: Option<AttachSpec>) -> Result<Made> {
    let id = sandbox::run::run(app, wanted.sandbox).await?;
    let sandbox = app.store.sandbox(id.as_str())?;
    let made = make_container(app, &sandbox, wanted.container, attach).await;
    if made.is_err()
        && let Err(second) = sandbox::remove::remove(app, &sandbox).await
    {
        tracing::warn!(sandbox = %sandbox.id, "take back a pod that failed: {}", chain(&second));
    }
    made
}

async fn make_container(
    app: &Arc<App>,
    sandbox: &Arc<Sandbox>,
    spec: container::spec::ContainerSpec,
    wanted: Option<AttachSpec>,
) -> Result<Made> {
    let container = create::create(app, sandbox, spec).await?;
    create::publish(app, &container);
    let attending = wanted.map(|_| container.attend());
    // Before the start: then nothing that it writes is missed.
    let streams = match wanted {
        Some(wanted) => Some(container::attach::attach(app, &container, wanted).await?),
        None => None,
    };
    start::start(app, &container).await?;
    Ok(Made { container, streams, attending })
}

async fn follow(
    app: &Arc<App>,
    made: Made,
    streams: Streams,
    requests: Streaming<v1::RunRequest>,
    sink: &Sink<v1::RunResponse>,
) -> Result<()> {
    let Made { container, attending, .. } = made;
    let program = Program::Init(app, &container);
    attend(requests, sink, streams, program, attach::ended(&container), attach::LINGER).await?;
    drop(attending);
    let exited = attach::exited(&container);
    removed(app, &container).await;
    send(sink, session::Told::Exited(exited).into()).await
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
    if tokio::time::timeout(REMOVAL, joined).await.is_err() {
        tracing::debug!(container = %container.id, "the removal takes its time");
    }
}
