//! The bytes of a layer, in order, for a reader that blocks.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::AbortHandle;

use super::fetch::{self, Job};
use super::{Pull, Session};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::oci::Descriptor;

/// A part of a blob: its pieces in order, and the leave to hold it in memory.
pub(crate) struct Part {
    pub(crate) pieces: mpsc::Receiver<Result<Bytes>>,
    pub(crate) _permit: Option<OwnedSemaphorePermit>,
}

/// Reads a blob while tasks of the runtime fetch it.
///
/// It gives exactly as many bytes as the descriptor says, or an error: never more, never
/// fewer. It does **not** hash: each byte is hashed once, by whoever reads, and that
/// reader must compare the digest (see [`crate::digest::HashingReader`]). When it does
/// not match, [`BlobReader::distrust`] keeps the session from asking the same host again.
///
/// Reading blocks, so it belongs on a thread that may block; on a thread of the runtime
/// it panics. Errors carry a [`crate::Error`] inside (see [`from_io`]). Dropping the
/// reader ends the transfer.
pub struct BlobReader {
    parts: mpsc::Receiver<Part>,
    part: Option<Part>,
    piece: Bytes,
    left: u64,
    digest: Digest,
    what: String,
    pull: Arc<Pull>,
    served: Arc<Mutex<BTreeSet<usize>>>,
    task: AbortHandle,
}

/// The error that a [`BlobReader`] put into an [`io::Error`], or what else went wrong while doing something.
pub fn from_io(error: io::Error, doing: impl FnOnce() -> String) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(source) => Error::Io { doing: doing(), source },
    }
}

impl Session {
    /// Begins to fetch a layer. `received` counts its bytes as they come; a broken
    /// connection goes on where it broke, so it never counts a byte twice.
    ///
    /// Must be called on the runtime. The transfer waits when nobody reads: at most a few
    /// MiB are kept ahead, plus what `limits.read_ahead_bytes` allows all pulls together.
    pub fn layer(&self, layer: &Descriptor, received: Arc<AtomicU64>) -> BlobReader {
        let what = format!("image {}: layer {}", self.pull.reference, layer.digest);
        let served = Arc::new(Mutex::default());
        let job = Job {
            pull: Arc::clone(&self.pull),
            what: what.clone(),
            digest: layer.digest,
            size: layer.size,
            received,
            served: Arc::clone(&served),
        };
        let ranges = usize::try_from(self.pull.ranges()).unwrap_or(1);
        let (sender, parts) = mpsc::channel(ranges);
        let task = tokio::spawn(fetch::run(Arc::new(job), sender)).abort_handle();
        BlobReader {
            parts,
            part: None,
            piece: Bytes::new(),
            left: layer.size,
            digest: layer.digest,
            what,
            pull: Arc::clone(&self.pull),
            served,
            task,
        }
    }
}

impl BlobReader {
    /// The next piece without a copy; nothing at the end.
    ///
    /// # Errors
    /// Why the transfer was given up: [`Error::Unavailable`], [`Error::Denied`], [`Error::NotFound`], [`Error::Invalid`].
    pub fn next_piece(&mut self) -> Result<Option<Bytes>> {
        if !self.piece.is_empty() {
            return Ok(Some(std::mem::take(&mut self.piece)));
        }
        while self.left > 0 {
            if self.part.is_none() {
                self.part = self.parts.blocking_recv();
            }
            let Some(part) = &mut self.part else {
                return Err(Error::Unavailable {
                    what: self.what.clone(),
                    problem: "the transfer was ended from outside".to_owned(),
                    source: None,
                });
            };
            match part.pieces.blocking_recv() {
                Some(piece) => {
                    let piece = piece?;
                    self.left -= piece.len() as u64;
                    return Ok(Some(piece));
                }
                None => self.part = None,
            }
        }
        // The last word of the transfer: a host that goes on sending has another blob.
        let rest = self.part.take().and_then(|mut part| part.pieces.blocking_recv());
        rest.map_or(Ok(None), |more| more.map(|_| None))
    }

    /// Ends the transfer from another thread: a reader that waits gets an error at once.
    pub fn stopper(&self) -> AbortHandle {
        self.task.clone()
    }

    /// Bytes that have not been read yet.
    pub fn left(&self) -> u64 {
        self.left + self.piece.len() as u64
    }

    /// Says that the bytes do not have the digest of the layer: the hosts that sent them
    /// are not asked for it again in this session. Tells whether others are left, so that
    /// [`Session::layer`] is worth another call.
    pub fn distrust(&self) -> bool {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if served.is_empty() {
            // Not a byte came: every host was asked already, and said why not.
            return false;
        }
        for position in served {
            self.pull.distrust(self.digest, position);
        }
        !self
            .pull
            .order(|host| host.capabilities.pull)
            .iter()
            .all(|position| !self.pull.trusts(self.digest, *position))
    }
}

impl Drop for BlobReader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl io::BufRead for BlobReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.piece.is_empty() {
            self.piece = self.next_piece().map_err(io::Error::other)?.unwrap_or_default();
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        let _consumed = self.piece.split_to(amount);
    }
}

impl io::Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = io::BufRead::fill_buf(self)?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        io::BufRead::consume(self, count);
        Ok(count)
    }
}
