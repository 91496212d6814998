//! The daemon's socket: made so that only the right people reach it, and accepting
//! whatever happens.
//!
//! `socket` makes it, this file accepts. `authority`, `frames`, `hpack` and `huffman`
//! stand between a client and h2, for clients whose `:authority` h2 would refuse.

mod authority;
mod frames;
mod hpack;
mod huffman;
mod socket;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use authority::AnyAuthority;
pub use socket::{Socket, bind};

/// HTTP/2 limits that the adapter counts on; the server must not allow larger frames.
pub const MAX_FRAME: usize = frames::MAX_FRAME;

/// The longest header block that a client may send.
pub const MAX_HEADER_BLOCK: usize = frames::MAX_BLOCK;

/// The first pause after the system refused a connection for want of descriptors or
/// memory, and the longest: when the want is over, clients are served within that time.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// A want that lasts is logged so often.
const REMINDER: Duration = Duration::from_secs(60);

/// Who is at the other end of a connection, as the kernel tells it. In the extensions of
/// each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id, where the client is in our pid namespace.
    pub pid: Option<i32>,
}

/// A client's connection. Counts against the bound for as long as it lives.
#[derive(Debug)]
pub struct Connection {
    io: AnyAuthority<UnixStream>,
    peer: Peer,
    _place: OwnedSemaphorePermit,
}

/// Accepts connections until the stream is dropped, at most `bound` at a time; more wait
/// in the kernel's queue. Never ends because of an error: what the system refuses now, it
/// grants later.
pub fn accept(listener: UnixListener, bound: usize) -> ReceiverStream<io::Result<Connection>> {
    let (accepted, connections) = mpsc::channel(1);
    let places = Arc::new(Semaphore::new(bound));
    tokio::spawn(async move {
        let ended = accepted.clone();
        tokio::select! {
            () = ended.closed() => (),
            () = accept_all(&listener, &places, bound, &accepted) => (),
        }
    });
    ReceiverStream::new(connections)
}

async fn accept_all(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
    bound: usize,
    accepted: &mpsc::Sender<io::Result<Connection>>,
) {
    let mut pause = FIRST_PAUSE;
    let mut full = Seldom::default();
    let mut refused = Seldom::default();
    loop {
        if places.available_permits() == 0 && full.is_due() {
            tracing::warn!(bound, "all connections to the socket are taken; new clients wait");
        }
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                pause = FIRST_PAUSE;
                match connection(stream, place) {
                    Ok(connection) => {
                        if accepted.send(Ok(connection)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => tracing::debug!(%error, "a client went before it was served"),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => (),
            Err(error) => {
                if refused.is_due() {
                    tracing::error!(%error, "cannot accept connections; trying again until it works");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Keeps a message that is always true from filling the log.
#[derive(Debug, Default)]
struct Seldom(Option<Instant>);

impl Seldom {
    fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= REMINDER);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

fn connection(stream: UnixStream, place: OwnedSemaphorePermit) -> io::Result<Connection> {
    let credentials = stream.peer_cred()?;
    let peer = Peer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
    Ok(Connection { io: AnyAuthority::new(stream), peer, _place: place })
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
