//! What runs between a client and a container, over whichever transport: bytes in, bytes out.

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{spdy, websocket};

/// Bytes that have arrived, and the room that they take in their connection's budget until they are used.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) bytes: Bytes,
    pub(super) _room: OwnedSemaphorePermit,
}

/// What a client sends on one channel.
#[derive(Debug)]
pub(super) struct Incoming(mpsc::Receiver<Piece>);

impl Incoming {
    pub(super) fn new(pieces: mpsc::Receiver<Piece>) -> Incoming {
        Incoming(pieces)
    }

    /// The next bytes; none when the client has closed the channel or is gone.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        self.0.recv().await.map(|piece| piece.bytes)
    }
}

/// The client has gone, or wants to hear nothing more on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;

/// What a client hears on one channel.
#[derive(Debug)]
pub(super) enum Outgoing {
    Spdy(spdy::Writer),
    WebSocket(websocket::Writer),
}

impl Outgoing {
    /// Sends bytes, once there is room.
    pub(super) async fn write(&self, bytes: Bytes) -> Result<(), Gone> {
        match self {
            Outgoing::Spdy(writer) => writer.write(bytes).await,
            Outgoing::WebSocket(writer) => writer.write(bytes).await,
        }
    }

    /// Returns when the client wants to hear nothing more, or has gone.
    pub(super) async fn gone(&self) {
        match self {
            Outgoing::Spdy(writer) => writer.gone().await,
            Outgoing::WebSocket(writer) => writer.gone().await,
        }
    }

    /// Gives the channel up, in both directions where there is more than one.
    pub(super) async fn reset(self) {
        match self {
            Outgoing::Spdy(writer) => writer.reset(spdy::Reset::Cancel).await,
            Outgoing::WebSocket(_) => {}
        }
    }

    /// Says that nothing more will come, after all that was written.
    pub(super) async fn close(&self) {
        match self {
            Outgoing::Spdy(writer) => writer.close().await,
            // Channels of a WebSocket end with it.
            Outgoing::WebSocket(_) => {}
        }
    }
}
