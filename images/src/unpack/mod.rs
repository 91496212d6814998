//! From a stream of layer bytes to a tree and a recipe, in one pass.
//!
//! Two threads for each layer: one reads, hashes and inflates, the other hashes the tar and
//! writes the files. Nothing here decides whether the result is kept: it is made in a work
//! directory, and counts once both digests and the size are right.

mod copy;
mod entries;
mod header;
mod inflate;
mod links;
mod lowers;
mod metadata;
mod names;
mod parents;
mod pax;
mod recipe;
mod replace;
mod settle;
mod sparse;
mod tree;

use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

pub use copy::{Copied, Copy};
pub(crate) use entries::{Entries, Kind};
pub(crate) use header::file_header;
pub(crate) use inflate::Inflate;
pub(crate) use lowers::Lowers;
pub(crate) use names::clean as clean_name;
pub(crate) use recipe::Replay;
pub(crate) use settle::{Settled, settle};
pub(crate) use tree::{Contents, KEPT, RECIPE, TREE};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::limits::Limits;

/// Piece of tar that goes from one thread to the other: large enough that a big file is
/// written with few calls, small enough to stay in the processor's cache.
const PIECE: usize = 256 << 10;
/// Pieces under way; one thread may be so far ahead of the other.
const PIECES: usize = 4;

/// What is to be unpacked, and what it has to be.
pub(crate) struct Job<'a> {
    /// The layer, as errors call it.
    pub(crate) what: String,
    /// Digest and size of the stream, where they are known.
    pub(crate) blob: Option<(Digest, u64)>,
    /// Digest of the tar, where it is known.
    pub(crate) diff_id: Option<Digest>,
    /// The layers below; nothing where they are not finished yet.
    pub(crate) lowers: Option<&'a Lowers>,
    /// The caps.
    pub(crate) limits: &'a Limits,
    /// Set to true to end the work early.
    pub(crate) cancel: &'a AtomicBool,
}

/// A layer that was unpacked and is what it had to be.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) contents: Contents,
    /// Digest of the tar.
    pub(crate) diff_id: Digest,
    /// Length of the tar.
    pub(crate) tar_size: u64,
}

/// Unpacks a layer into an empty work directory: `tree`, `recipe`, and `kept` where something was overwritten.
///
/// Blocks until all is read. What is in the directory after an error is of no use.
///
/// # Errors
/// `Invalid` for a stream that is not what it should be, `Limit` for one that has too much of
/// something, `Io` for the disk; those of the reader as they are.
pub(crate) fn unpack(
    reader: impl BufRead + Send,
    work: OwnedFd,
    job: &Job<'_>,
) -> Result<Unpacked> {
    let (pieces, inbox) = sync_channel(PIECES);
    let (used, reusable) = channel();
    let mut source = Source { reader, hasher: Hasher::default(), job };
    std::thread::scope(|scope| {
        let source = &mut source;
        let inflating = std::thread::Builder::new()
            .name("layer-inflate".to_owned())
            .spawn_scoped(scope, move || inflate(source, job, &pieces, &reusable));
        let inflating = match inflating {
            Ok(thread) => thread,
            Err(source) => {
                return Err(Error::Io { doing: format!("start to unpack {}", job.what), source });
            }
        };
        let stream = Pieces { inbox, used, now: Vec::new(), at: 0, hasher: Hasher::default(), job };
        let written = write(stream, work, job);
        // The inbox is gone now, so the other thread ends at its next piece.
        match inflating.join() {
            Ok(()) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
    .and_then(|(contents, tar)| check(contents, tar, source.hasher, job))
}

fn write(mut stream: Pieces<'_>, work: OwnedFd, job: &Job<'_>) -> Result<(Contents, Hasher)> {
    let tree = tree::Tree::new(work, job.lowers, &job.what, job.limits)?;
    let contents = tree.write_all(&mut Entries::new(&mut stream, &job.what, job.limits))?;
    Ok((contents, stream.hasher))
}

fn check(contents: Contents, tar: Hasher, blob: Hasher, job: &Job<'_>) -> Result<Unpacked> {
    let (blob_size, blob) = (blob.size(), blob.finish());
    if let Some((digest, size)) = job.blob {
        if blob_size != size {
            let problem = format!("has {blob_size} bytes where its descriptor says {size}");
            return Err(Error::invalid(&job.what, problem));
        }
        if blob != digest {
            return Err(Error::invalid(&job.what, format!("has the digest {blob}")));
        }
    }
    let (tar_size, diff_id) = (tar.size(), tar.finish());
    if let Some(expected) = job.diff_id.filter(|expected| *expected != diff_id) {
        let problem = format!("has the diff id {diff_id} where the image config says {expected}");
        return Err(Error::invalid(&job.what, problem));
    }
    Ok(Unpacked { contents, diff_id, tar_size })
}

/// The first thread: reads, hashes and inflates. An error goes to the other thread, in its place in the stream.
fn inflate(
    source: &mut Source<'_, impl BufRead>,
    job: &Job<'_>,
    pieces: &SyncSender<io::Result<Vec<u8>>>,
    reusable: &Receiver<Vec<u8>>,
) {
    let mut stream = match Inflate::new(source, job.limits) {
        Ok(stream) => stream,
        Err(error) => {
            // Nobody waits for it where the other thread has failed already.
            pieces.send(Err(inflate_error(error, job))).ok();
            return;
        }
    };
    loop {
        let mut piece = reusable.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let filled = fill(&mut stream, &mut piece).map(|length| {
            piece.truncate(length);
            piece
        });
        let filled = filled.map_err(|error| inflate_error(error, job));
        let is_last = filled.as_ref().map_or(true, Vec::is_empty);
        if pieces.send(filled).is_err() || is_last {
            return;
        }
    }
}

/// What the decoders complain about is the stream; what the reader does is said by itself.
fn inflate_error(error: io::Error, job: &Job<'_>) -> io::Error {
    let is_ours = error.get_ref().is_some_and(|inner| inner.is::<Error>());
    if is_ours || error.raw_os_error().is_some() {
        return error;
    }
    io::Error::other(Error::invalid(&job.what, format!("cannot be inflated: {error}")))
}

/// Reads until the buffer is full or the stream ends.
fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match stream.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The compressed stream: hashed, counted, and ended where it is longer than it may be or nobody wants it any more.
struct Source<'a, R> {
    reader: R,
    hasher: Hasher,
    job: &'a Job<'a>,
}

impl<R: BufRead> BufRead for Source<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.job.cancel.load(Ordering::Relaxed) {
            return Err(io::Error::other(Error::Unavailable {
                what: self.job.what.clone(),
                problem: "was given up".to_owned(),
                source: None,
            }));
        }
        if let Some((_, size)) = self.job.blob.filter(|(_, size)| self.hasher.size() > *size) {
            let problem = format!("is longer than the {size} bytes of its descriptor");
            return Err(io::Error::other(Error::invalid(&self.job.what, problem)));
        }
        self.reader.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        // What is consumed was filled before, so this only looks at it again.
        if let Ok(piece) = self.reader.fill_buf() {
            self.hasher.update(&piece[..count]);
        }
        self.reader.consume(count);
    }
}

impl<R: BufRead> Read for Source<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        copy_out(self, buffer)
    }
}

/// A read from what is buffered.
fn copy_out(reader: &mut impl BufRead, buffer: &mut [u8]) -> io::Result<usize> {
    let available = reader.fill_buf()?;
    let count = available.len().min(buffer.len());
    buffer[..count].copy_from_slice(&available[..count]);
    reader.consume(count);
    Ok(count)
}

/// The tar as it comes from the other thread, hashed on the way.
struct Pieces<'a> {
    inbox: Receiver<io::Result<Vec<u8>>>,
    used: Sender<Vec<u8>>,
    now: Vec<u8>,
    at: usize,
    hasher: Hasher,
    job: &'a Job<'a>,
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.now.len() {
            // The other thread may have ended; then nobody needs the buffer.
            self.used.send(std::mem::take(&mut self.now)).ok();
            // A thread that ended without a last word has sent an empty piece before.
            self.now = self.inbox.recv().unwrap_or_else(|_| Ok(Vec::new()))?;
            self.at = 0;
            self.hasher.update(&self.now);
            if self.hasher.size() > self.job.limits.tar_bytes.0 {
                let error = self.job.limits.passed(&self.job.what, "tar_bytes");
                return Err(io::Error::other(error));
            }
        }
        Ok(&self.now[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        copy_out(self, buffer)
    }
}

#[cfg(test)]
mod tests;
