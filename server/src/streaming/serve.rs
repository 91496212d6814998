//! The listener, and what becomes of each connection.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming as Body};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::channel::Outgoing;
use super::hangup::Hangup;
use super::http::{Refusal, SpdyVersion, Upgrade, path_of, upgrade_of};
use super::remote_command::{self, Channels, Form};
use super::spdy::{self, Connection, Headers};
use super::websocket::{self, Protocol, Readable, Session};
use super::{RemoteCommand, Wanted, Wants, port_forward};
use crate::app::App;
use crate::error::{Doing, Result};

/// A client sends its request within this time.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of the head of a request.
const MAX_HEAD: usize = 16 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 64;
/// Connections at once; each costs up to a few descriptors and half a MiB.
const MAX_CONNECTIONS: usize = 1000;
/// When no connection can be taken, the node is out of descriptors; a moment later there may be some.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves the streaming clients until the daemon stops; then all connections close.
///
/// # Errors
/// The listener cannot be waited for.
pub async fn serve(app: Arc<App>, stopping: CancellationToken) -> Result<()> {
    let listener = app.streaming.listener.lock().expect("nobody panics with this lock").take();
    let Some(listener) = listener else { return Ok(()) };
    let listener = TcpListener::from_std(listener).doing(|| "wait for streaming clients")?;
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let sessions = TaskTracker::new();
    let accepting = async {
        loop {
            match listener.accept().await {
                // Bound to loopback; a route could still lead others here.
                Ok((stream, peer)) if peer.ip().to_canonical().is_loopback() => {
                    let (app, room) = (app.clone(), room.clone().try_acquire_owned().ok());
                    let (stopping, tracker) = (stopping.clone(), sessions.clone());
                    sessions.spawn(async move {
                        let one = connection(app, stream, room, stopping.clone(), tracker);
                        stopping.run_until_cancelled(one).await;
                    });
                }
                Ok((_, peer)) => tracing::warn!(%peer, "a streaming client from elsewhere"),
                Err(error) => {
                    tracing::warn!(%error, "take a streaming client");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    stopping.run_until_cancelled(accepting).await;
    drop(listener);
    sessions.close();
    sessions.wait().await;
    Ok(())
}

/// One request, and what follows from it. `room` is none where too many connections are open.
async fn connection(
    app: Arc<App>,
    stream: TcpStream,
    room: Option<OwnedSemaphorePermit>,
    stopping: CancellationToken,
    sessions: TaskTracker,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "set up a streaming connection");
    }
    let hangup = Hangup::of(&stream);
    let room = Mutex::new(room);
    let service = service_fn(|mut request: Request<Body>| {
        // Held for as long as there is the client.
        let room = room.lock().expect("nobody panics with this lock").take();
        let upgrade = hyper::upgrade::on(&mut request);
        let (app, hangup, stopping) = (app.clone(), hangup.clone(), stopping.clone());
        let sessions = sessions.clone();
        async move {
            let answered = room.ok_or_else(Refusal::busy).and_then(|room| {
                let (parts, _) = request.into_parts();
                let (kind, token) = path_of(&parts)?;
                let wanted = app.streaming.take(kind, token).ok_or_else(Refusal::not_found)?;
                let (to, response) = upgrade_of(&parts, &wanted)?;
                sessions.spawn(async move {
                    let one = session(app, wanted, to, upgrade, (hangup, room));
                    stopping.run_until_cancelled(one).await;
                });
                Ok(response)
            });
            let response: Response<Full<Bytes>> = answered.unwrap_or_else(Refusal::response);
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(error = crate::error::chain(&error), "a streaming connection");
    }
}

type Socket = TokioIo<Upgraded>;

async fn session(
    app: Arc<App>,
    wanted: Wanted,
    to: Upgrade,
    upgrade: OnUpgrade,
    (hangup, room): (Hangup, OwnedSemaphorePermit),
) {
    let socket = match upgrade.await {
        Ok(upgraded) => TokioIo::new(upgraded),
        Err(error) => return tracing::debug!(%error, "upgrade a streaming connection"),
    };
    let idle = app.streaming.config.idle_timeout;
    match (wanted, to) {
        (Wanted::RemoteCommand(request), Upgrade::Spdy(version)) => {
            let settings = spdy::Settings { idle, acceptable: is_of_command, hangup };
            let connection = Connection::start(socket, settings);
            release(room, connection.closed());
            spdy_command(&app, request, connection, version).await;
        }
        (Wanted::RemoteCommand(request), Upgrade::WebSocket(protocol)) => {
            let settings = websocket::Settings { idle, hangup };
            websocket_command(&app, request, socket, protocol, (settings, room)).await;
        }
        (Wanted::PortForward(request), Upgrade::SpdyPortForward) => {
            let settings = spdy::Settings { idle, acceptable: port_forward::acceptable, hangup };
            let connection = Connection::start(socket, settings);
            let deadline = app.streaming.config.stream_creation_timeout;
            port_forward::serve_spdy(&app, &request, connection, deadline).await;
        }
        (Wanted::PortForward(request), Upgrade::Tunnel) => {
            let settings = spdy::Settings { idle, acceptable: port_forward::acceptable, hangup };
            let closed = CancellationToken::new();
            let _end = closed.clone().drop_guard();
            let connection = Connection::start(websocket::tunnel(socket, closed).await, settings);
            let deadline = app.streaming.config.stream_creation_timeout;
            port_forward::serve_spdy(&app, &request, connection, deadline).await;
        }
        (Wanted::PortForward(request), Upgrade::WebSocket(protocol)) => {
            let settings = websocket::Settings { idle, hangup };
            port_forward::serve_websocket(&app, &request, socket, protocol, settings).await;
        }
        (Wanted::RemoteCommand(_), Upgrade::SpdyPortForward | Upgrade::Tunnel)
        | (Wanted::PortForward(_), Upgrade::Spdy(_)) => {
            tracing::error!("a request was upgraded to what it is not for");
        }
    }
}

/// Gives the room of a connection back when it is closed: a command may go on for years after its client.
fn release(room: OwnedSemaphorePermit, closed: CancellationToken) {
    tokio::spawn(async move {
        closed.cancelled().await;
        drop(room);
    });
}

fn is_of_command(headers: &Headers) -> bool {
    let kind = headers.get("streamtype");
    matches!(kind, Some("error" | "stdin" | "stdout" | "stderr" | "resize"))
}

/// The names of the streams that a client opens.
fn names(wanted: Wants, version: SpdyVersion) -> Vec<&'static str> {
    let all = [
        ("error", true),
        ("stdin", wanted.stdin),
        ("stdout", wanted.stdout),
        ("stderr", wanted.stderr),
        ("resize", wanted.tty && version.resize),
    ];
    all.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| name).collect()
}

async fn spdy_command(
    app: &Arc<App>,
    request: RemoteCommand,
    mut connection: Connection,
    version: SpdyVersion,
) {
    let names = names(request.wanted, version);
    let deadline = app.streaming.config.stream_creation_timeout;
    let opening = streams(&mut connection, &names);
    let container = request.container.as_str();
    let mut streams = match tokio::time::timeout(deadline, opening).await {
        Ok(Some(streams)) => streams,
        Ok(None) => return tracing::debug!(container, "a streaming client went at once"),
        Err(_) => {
            return tracing::info!(
                container,
                "a streaming client did not open its streams within {deadline:?}"
            );
        }
    };
    let mut take = |name: &str| {
        let at =
            streams.iter().position(|stream| stream.headers.get("streamtype") == Some(name))?;
        Some(streams.swap_remove(at))
    };
    let Some(error) = take("error") else { return };
    let mut outgoing = |name| take(name).map(|stream| Outgoing::Spdy(stream.outgoing));
    let (stdout, stderr) = (outgoing("stdout"), outgoing("stderr"));
    let (stdin, stdin_end) = take("stdin").map(|stream| (stream.incoming, stream.outgoing)).unzip();
    let (resize, resize_end) =
        take("resize").map(|stream| (stream.incoming, stream.outgoing)).unzip();
    let channels = Channels {
        stdin,
        stdout,
        stderr,
        error: Outgoing::Spdy(error.outgoing),
        resize,
        gone: connection.closed(),
        form: version.form,
    };
    remote_command::run(app, request, channels).await;
    // Streams on which nothing was said end, too, and are not given up: some clients take that for an error.
    for end in [stdin_end, resize_end].into_iter().flatten() {
        end.close().await;
    }
    connection.finish().await;
}

/// Waits for one stream of each name; others, and a second of one, are given up. None where the client goes first.
async fn streams(connection: &mut Connection, names: &[&str]) -> Option<Vec<spdy::Stream>> {
    let mut streams: Vec<spdy::Stream> = Vec::new();
    while streams.len() < names.len() {
        let stream = connection.accept().await?;
        let name = stream.headers.get("streamtype").unwrap_or_default();
        let have = |other: &spdy::Stream| other.headers.get("streamtype") == Some(name);
        if names.contains(&name) && !streams.iter().any(have) {
            streams.push(stream);
        }
    }
    Some(streams)
}

async fn websocket_command(
    app: &Arc<App>,
    request: RemoteCommand,
    socket: Socket,
    protocol: Protocol,
    (settings, room): (websocket::Settings, OwnedSemaphorePermit),
) {
    let Wants { stdin, stdout, stderr, tty } = request.wanted;
    let mut readable = Readable::default();
    let stdin = stdin.then(|| readable.channel(0));
    let resize = tty.then(|| readable.channel(4));
    let session = Session::start(socket, protocol, readable, settings).await;
    release(room, session.closed());
    let writer = |channel| Outgoing::WebSocket(session.writer(channel));
    let (stdout, stderr) = (stdout.then(|| writer(1)), stderr.then(|| writer(2)));
    let error = writer(3);
    // Clients wait for a word that says that the upgrade is complete.
    let first = stdout.as_ref().or(stderr.as_ref()).unwrap_or(&error);
    if first.write(Bytes::new()).await.is_err() {
        return;
    }
    let form = if protocol.v4 { Form::Json } else { Form::Text };
    let gone = session.closed();
    let channels = Channels { stdin, stdout, stderr, error, resize, gone, form };
    remote_command::run(app, request, channels).await;
    session.finish().await;
}
