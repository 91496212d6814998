//! WebSockets: channels by the first byte of each message, and SPDY tunnelled through one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::CancellationToken;

use super::channel::{Gone, Incoming, Piece};
use super::hangup::Hangup;
use super::idle::Activity;

/// Longest message. Clients send at most 32 KiB and some.
const MAX_MESSAGE: usize = 1 << 20;
/// Bytes of all channels that nobody has read yet.
const BUDGET: usize = 1 << 20;
/// What a message takes of it at least.
const LEAST: usize = 1 << 10;
/// Messages of one channel that nobody has read yet.
const PARTS: usize = 16;
/// Messages that wait for the socket.
const MESSAGES: usize = 8;
/// A client has so long to close its side once all is said.
const LINGER: Duration = Duration::from_secs(10);
/// While nobody reads what has arrived, pings behind it are not seen. Clients give up without pongs (client-go after a
/// minute), so they get some unasked, which RFC 6455 allows.
const PONG: Duration = Duration::from_secs(5);
/// Bytes that a tunnel holds in each direction.
const TUNNEL: usize = 64 << 10;
/// Channel 255 of v5: the next byte is a channel that the client closes.
const CLOSE: u8 = 255;

/// A form of channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Protocol {
    /// A digit and base64 in text messages, instead of a byte and bytes in binary ones.
    pub(super) base64: bool,
    /// The end is told as JSON.
    pub(super) v4: bool,
    /// The client can close single channels.
    pub(super) v5: bool,
}

/// The forms of channels by their names, as clients ask for them.
pub(super) const PROTOCOLS: &[(&str, Protocol)] = &[
    ("v5.channel.k8s.io", Protocol { base64: false, v4: true, v5: true }),
    ("v4.channel.k8s.io", Protocol { base64: false, v4: true, v5: false }),
    ("v4.base64.channel.k8s.io", Protocol { base64: true, v4: true, v5: false }),
    ("channel.k8s.io", Protocol { base64: false, v4: false, v5: false }),
    ("base64.channel.k8s.io", Protocol { base64: true, v4: false, v5: false }),
    ("", Protocol { base64: false, v4: false, v5: false }),
];

/// The name of the tunnel for port-forward.
pub(super) const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";

/// How a WebSocket is run.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// It is closed when nothing has come or gone for so long.
    pub(super) idle: Duration,
    /// Tells whether the client has gone while nothing is read.
    pub(super) hangup: Hangup,
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(16 << 10)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

/// The server's side of a WebSocket with channels.
#[derive(Debug)]
pub(super) struct Session {
    shared: Arc<Shared>,
    protocol: Protocol,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    activity: Activity,
    out: mpsc::Sender<Message>,
    closed: CancellationToken,
}

/// Channels that the client writes.
#[derive(Debug, Default)]
pub(super) struct Readable(HashMap<u8, mpsc::Sender<Piece>>);

impl Readable {
    /// Takes what the client sends on a channel; all else is passed over.
    pub(super) fn channel(&mut self, channel: u8) -> Incoming {
        let (sender, receiver) = mpsc::channel(PARTS);
        self.0.insert(channel, sender);
        Incoming::new(receiver)
    }
}

impl Session {
    /// Takes a connection that has been upgraded. Must be called in the runtime.
    pub(super) async fn start<T>(
        io: T,
        protocol: Protocol,
        readable: Readable,
        settings: Settings,
    ) -> Session
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await;
        let (out, queue) = mpsc::channel(MESSAGES);
        let closed = CancellationToken::new();
        let shared = Arc::new(Shared { settings, activity: Activity::new(), out, closed });
        let run = run(shared.clone(), socket, protocol, readable, queue);
        let closed = shared.closed.clone();
        tokio::spawn(async move { closed.run_until_cancelled_owned(run).await });
        Session { shared, protocol }
    }

    /// Writes a channel.
    pub(super) fn writer(&self, channel: u8) -> Writer {
        Writer { channel, base64: self.protocol.base64, shared: self.shared.clone() }
    }

    /// Is cancelled when the client has gone.
    pub(super) fn closed(&self) -> CancellationToken {
        self.shared.closed.clone()
    }

    /// Closes after all that was written, and gives the client time to read it.
    pub(super) async fn finish(self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        if self.shared.say(Message::Close(Some(frame))).await.is_ok() {
            self.shared.closed.cancelled().await;
        }
    }
}

impl Drop for Session {
    /// Whoever does not say goodbye closes.
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}

impl Shared {
    async fn say(&self, message: Message) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(Gone),
            sent = self.out.send(message) => sent.map_err(|_| Gone),
        }
    }
}

/// Our side of a channel.
#[derive(Debug)]
pub(super) struct Writer {
    channel: u8,
    base64: bool,
    shared: Arc<Shared>,
}

impl Writer {
    /// Sends bytes, once there is room. No bytes are a message too.
    ///
    /// # Errors
    /// The client has gone.
    pub(super) async fn write(&self, bytes: Bytes) -> Result<(), Gone> {
        let message = if self.base64 {
            let mut text = char::from(b'0' + self.channel % 10).to_string();
            STANDARD.encode_string(&bytes, &mut text);
            Message::text(text)
        } else {
            let mut framed = BytesMut::with_capacity(1 + bytes.len());
            framed.put_u8(self.channel);
            framed.put_slice(&bytes);
            Message::Binary(framed.freeze())
        };
        self.shared.say(message).await
    }

    /// Returns when the client has gone.
    pub(super) async fn gone(&self) {
        self.shared.closed.cancelled().await;
    }
}

async fn run<T: AsyncRead + AsyncWrite + Unpin>(
    shared: Arc<Shared>,
    socket: WebSocketStream<T>,
    protocol: Protocol,
    readable: Readable,
    queue: mpsc::Receiver<Message>,
) {
    let (sink, stream) = socket.split();
    {
        let mut reading = std::pin::pin!(read(&shared, stream, protocol, readable));
        let mut writing = std::pin::pin!(write(&shared, sink, queue));
        tokio::select! {
            () = &mut reading => {}
            written = &mut writing => {
                if written.is_ok() {
                    tokio::time::timeout(LINGER, reading).await.ok();
                }
            }
            () = shared.activity.idle(shared.settings.idle) => {
                tracing::debug!("a streaming connection was idle for too long");
            }
        }
    }
    shared.closed.cancel();
}

async fn write<S>(
    shared: &Shared,
    mut sink: S,
    mut queue: mpsc::Receiver<Message>,
) -> Result<(), Error>
where
    S: futures_util::Sink<Message, Error = Error> + Unpin,
{
    while let Some(message) = queue.recv().await {
        let last = message.is_close();
        sink.feed(message).await?;
        if last || queue.is_empty() {
            sink.flush().await?;
        }
        shared.activity.touch();
        if last {
            break;
        }
    }
    Ok(())
}

async fn read<S>(shared: &Shared, mut stream: S, protocol: Protocol, mut readable: Readable)
where
    S: futures_util::Stream<Item = Result<Message, Error>> + Unpin,
{
    let budget = Arc::new(Semaphore::new(BUDGET));
    while let Some(Ok(message)) = stream.next().await {
        shared.activity.touch();
        let (channel, bytes) = match message {
            // A close is answered by reading on, and then the stream ends.
            Message::Close(_) => {
                readable.0.clear();
                continue;
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            Message::Text(_) if protocol.v5 => return,
            Message::Text(text) => match split(protocol, &Bytes::from(text)) {
                Some(split) => split,
                None => continue,
            },
            Message::Binary(bytes) => match split(protocol, &bytes) {
                Some(split) => split,
                None => continue,
            },
        };
        if protocol.v5 && channel == CLOSE {
            let [closed] = *bytes else { return };
            readable.0.remove(&closed);
            continue;
        }
        let Some(sender) = readable.0.get(&channel) else { continue };
        if bytes.is_empty() {
            continue;
        }
        let delivery = async {
            let room = u32::try_from(bytes.len().clamp(LEAST, BUDGET)).unwrap_or(u32::MAX);
            let Ok(room) = budget.clone().acquire_many_owned(room).await else { return };
            // Whoever read it may have stopped.
            let _unread = sender.send(Piece { bytes, _room: room }).await;
        };
        let mut delivery = std::pin::pin!(delivery);
        loop {
            tokio::select! {
                () = &mut delivery => break,
                () = tokio::time::sleep(PONG) => {
                    if shared.settings.hangup.happened() {
                        return;
                    }
                    // Where the client reads nothing either, it needs no pong.
                    let _full = shared.out.try_send(Message::Pong(Bytes::new()));
                }
            }
        }
    }
}

/// The channel of a message, and its bytes; none where it has neither.
fn split(protocol: Protocol, message: &Bytes) -> Option<(u8, Bytes)> {
    let (first, rest) = message.split_first()?;
    if !protocol.base64 {
        return Some((*first, message.slice(1..)));
    }
    let digit = char::from(*first).to_digit(10)?;
    Some((u8::try_from(digit).ok()?, STANDARD.decode(rest).ok()?.into()))
}

/// The bytes that run through a WebSocket, whatever the messages. Must be called in the runtime.
pub(super) async fn tunnel<T>(io: T, closed: CancellationToken) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await;
    let (ours, theirs) = tokio::io::duplex(TUNNEL);
    tokio::spawn(async move { closed.run_until_cancelled_owned(pump(socket, theirs)).await });
    ours
}

async fn pump<T: AsyncRead + AsyncWrite + Unpin>(socket: WebSocketStream<T>, pipe: DuplexStream) {
    let (mut sink, mut stream) = socket.split();
    let (mut from, mut to) = tokio::io::split(pipe);
    let inward = async {
        while let Some(Ok(message)) = stream.next().await {
            let Message::Binary(bytes) = message else { continue };
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let outward = async {
        loop {
            let mut bytes = BytesMut::with_capacity(TUNNEL / 2);
            match from.read_buf(&mut bytes).await {
                Ok(count) if count > 0 => {}
                Ok(_) | Err(_) => break,
            }
            sink.send(Message::Binary(bytes.freeze())).await?;
        }
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        sink.send(Message::Close(Some(frame))).await
    };
    let mut inward = std::pin::pin!(inward);
    tokio::select! {
        () = &mut inward => {}
        ended = outward => {
            if ended.is_ok() {
                tokio::time::timeout(LINGER, inward).await.ok();
            }
        }
    }
}

#[cfg(test)]
#[path = "websocket_tests.rs"]
mod tests;
