//! Port-forward: pairs of streams, a connection into the sandbox for each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::channel::{Incoming, Outgoing};
use super::spdy::{self, Connection, Headers, Reset};
use super::websocket::{Protocol, Readable, Session, Settings};
use crate::app::App;
use crate::error::{Result, chain};
use crate::id::SandboxId;
use crate::sandbox::port_forward::connect;

/// The name of the protocol over SPDY.
pub(super) const PROTOCOL: &str = "portforward.k8s.io";
/// Read at once, and so the longest data frame.
const CHUNK: usize = 32 << 10;
/// Ports of one legacy WebSocket, which has two channels for each.
pub(super) const MAX_PORTS: usize = 100;

/// What a call of the CRI has asked for.
#[derive(Debug)]
pub struct Request {
    /// Where.
    pub sandbox: SandboxId,
    /// Only clients of WebSockets without a tunnel need them told before.
    pub ports: Vec<u16>,
}

/// One forwarded connection, on the client's side.
#[derive(Debug)]
struct Forwarded {
    port: u16,
    incoming: Incoming,
    data: Outgoing,
    error: Outgoing,
}

/// Whether a stream can be half of a pair.
pub(super) fn acceptable(headers: &Headers) -> bool {
    matches!(headers.get("streamtype"), Some("data" | "error")) && port_of(headers).is_some()
}

fn port_of(headers: &Headers) -> Option<u16> {
    headers.get("port")?.parse().ok().filter(|port| *port > 0)
}

/// Serves a SPDY connection, for as long as the client keeps it.
pub(super) async fn serve_spdy(
    app: &Arc<App>,
    request: &Request,
    mut connection: Connection,
    deadline: Duration,
) {
    let mut pairs = Pairs { halves: HashMap::new(), deadline };
    let mut forwards = JoinSet::new();
    loop {
        let late = pairs.next_late();
        tokio::select! {
            accepted = connection.accept() => {
                let Some(stream) = accepted else { break };
                if let Some(forwarded) = pairs.add(stream) {
                    forwards.spawn(forward(app.clone(), request.sandbox.clone(), forwarded));
                }
            }
            () = tokio::time::sleep_until(late.unwrap_or_else(Instant::now)), if late.is_some() => {
                pairs.give_up_late(&mut forwards);
            }
            Some(_) = forwards.join_next() => {}
        }
    }
    // The client has gone, and with it the use of all that is still copied.
    forwards.shutdown().await;
}

/// Streams whose other half has not come yet.
#[derive(Debug)]
struct Pairs {
    halves: HashMap<String, (Instant, spdy::Stream)>,
    deadline: Duration,
}

impl Pairs {
    /// Takes a stream; both once they are two.
    fn add(&mut self, stream: spdy::Stream) -> Option<Forwarded> {
        let key = key_of(&stream);
        let Some((_, other)) = self.halves.remove(&key) else {
            self.halves.insert(key, (Instant::now() + self.deadline, stream));
            return None;
        };
        let kind = |stream: &spdy::Stream| stream.headers.get("streamtype") == Some("data");
        let (data, error) = match (kind(&stream), kind(&other)) {
            (true, false) => (stream, other),
            (false, true) => (other, stream),
            // The same half twice: the newer one is dropped, and so reset.
            _ => {
                self.halves.insert(key, (Instant::now() + self.deadline, other));
                return None;
            }
        };
        Some(Forwarded {
            port: port_of(&data.headers)?,
            incoming: data.incoming,
            data: Outgoing::Spdy(data.outgoing),
            error: Outgoing::Spdy(error.outgoing),
        })
    }

    fn next_late(&self) -> Option<Instant> {
        self.halves.values().map(|(late, _)| *late).min()
    }

    /// Tells those whose other half is late.
    fn give_up_late(&mut self, tasks: &mut JoinSet<()>) {
        let now = Instant::now();
        let deadline = self.deadline;
        for (key, (_, stream)) in self.halves.extract_if(|_, (late, _)| *late <= now) {
            tasks.spawn(async move {
                let outgoing = stream.outgoing;
                if stream.headers.get("streamtype") == Some("data") {
                    return outgoing.reset(Reset::Cancel).await;
                }
                let text = format!("no data stream of request {key} within {deadline:?}");
                let _gone = outgoing.write(text.into()).await;
                outgoing.close().await;
            });
        }
    }
}

/// What the halves of a pair have in common. Very old clients number no requests; their data stream is the next one
/// after the error stream.
fn key_of(stream: &spdy::Stream) -> String {
    if let Some(request) = stream.headers.get("requestid").filter(|request| !request.is_empty()) {
        return request.to_owned();
    }
    let data = stream.headers.get("streamtype") == Some("data");
    format!("without number {}", if data { stream.id.saturating_sub(2) } else { stream.id })
}

/// Serves a WebSocket whose channels 2n and 2n + 1 are data and error of the nth port.
pub(super) async fn serve_websocket<T>(
    app: &Arc<App>,
    request: &Request,
    io: T,
    protocol: Protocol,
    settings: Settings,
) where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let mut readable = Readable::default();
    let numbered = request.ports.iter().take(MAX_PORTS).zip((0_u8..=254).step_by(2));
    let incoming: Vec<(u16, u8, Incoming)> =
        numbered.map(|(port, number)| (*port, number, readable.channel(number))).collect();
    let session = Session::start(io, protocol, readable, settings).await;
    let mut forwards = JoinSet::new();
    for (port, number, incoming) in incoming {
        let data = session.writer(number);
        let error = session.writer(number + 1);
        // So the client knows which channel is whose.
        for channel in [&data, &error] {
            let _gone = channel.write(Bytes::copy_from_slice(&port.to_le_bytes())).await;
        }
        let (data, error) = (Outgoing::WebSocket(data), Outgoing::WebSocket(error));
        let forwarded = Forwarded { port, incoming, data, error };
        forwards.spawn(forward(app.clone(), request.sandbox.clone(), forwarded));
    }
    let closed = session.closed();
    let all = async { while forwards.join_next().await.is_some() {} };
    tokio::select! {
        () = all => session.finish().await,
        () = closed.cancelled() => {}
    }
}

/// Connects and copies, until both sides have ended or one has gone.
async fn forward(app: Arc<App>, sandbox: SandboxId, forwarded: Forwarded) {
    let Forwarded { port, incoming, data, error } = forwarded;
    let connected = match connect_to(&app, &sandbox, port).await {
        Ok(connected) => connected,
        Err(problem) => {
            tracing::debug!(%sandbox, port, "forward a port: {}", chain(&problem));
            let _gone = error.write(chain(&problem).into()).await;
            error.close().await;
            return data.reset().await;
        }
    };
    let (from, to) = connected.into_split();
    let problem = {
        let gone = data.gone();
        tokio::select! {
            problem = copy(incoming, to, from, &data) => problem,
            () = gone => None,
        }
    };
    if let Some(problem) = problem {
        let text = format!("port {port} of sandbox {sandbox}: {problem}");
        let _gone = error.write(text.into()).await;
        error.close().await;
        return data.reset().await;
    }
    data.close().await;
    error.close().await;
}

async fn connect_to(app: &App, sandbox: &SandboxId, port: u16) -> Result<TcpStream> {
    let sandbox = app.store.sandbox(sandbox.as_str())?;
    connect(app, &sandbox, port).await
}

/// Copies both ways, each to its own end. What went wrong on the way.
async fn copy(
    mut incoming: Incoming,
    mut to: OwnedWriteHalf,
    mut from: OwnedReadHalf,
    data: &Outgoing,
) -> Option<std::io::Error> {
    let inward = async {
        let mut open = true;
        while let Some(bytes) = incoming.next().await {
            // What nobody reads any more is dropped, so that the other connections go on.
            open = open && to.write_all(&bytes).await.is_ok();
        }
        // Where the program has gone, it knows.
        let _gone = to.shutdown().await;
        if matches!(data, Outgoing::WebSocket(_)) {
            // The end of a channel is that of the connection.
            std::future::pending::<()>().await;
        }
    };
    let outward = async {
        loop {
            let mut bytes = BytesMut::with_capacity(CHUNK);
            if from.read_buf(&mut bytes).await? == 0 {
                break;
            }
            if data.write(bytes.freeze()).await.is_err() {
                return Ok(());
            }
        }
        data.close().await;
        Ok(())
    };
    let mut outward = std::pin::pin!(outward);
    let mut inward = std::pin::pin!(inward);
    let result = tokio::select! {
        ended = &mut outward => {
            if ended.is_ok() && matches!(data, Outgoing::Spdy(_)) {
                inward.await;
            }
            ended
        }
        () = &mut inward => outward.await,
    };
    result.err()
}
