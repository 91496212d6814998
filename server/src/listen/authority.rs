//! A connection whose client may send any `:authority`; what is read from it is HTTP/2
//! that h2 takes.
//!
//! The bytes go straight into the reader's buffer and are looked at there. Only from a
//! header block that is cut by the end of a read, or that must change, are they kept here,
//! until it is whole.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::Walk;

/// Bytes that are read at once to complete a header block. What is too much is copied
/// once more, so it is not large.
const CHUNK: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct AnyAuthority<S> {
    inner: S,
    walk: Walk,
    /// Read, not yet looked at for good: from a frame head on that is not whole, or from a
    /// header block. At most [`super::frames::MAX_BLOCK`] and a chunk.
    held: Vec<u8>,
    /// Looked at, not yet handed out.
    ready: Vec<u8>,
    /// So much of `ready` is handed out.
    handed: usize,
    /// The client has said all it will.
    ended: bool,
}

impl<S> AnyAuthority<S> {
    pub(super) fn new(inner: S) -> AnyAuthority<S> {
        AnyAuthority {
            inner,
            walk: Walk::default(),
            held: Vec::new(),
            ready: Vec::new(),
            handed: 0,
            ended: false,
        }
    }

    /// Hands out of `ready` what fits.
    fn hand_out(&mut self, buf: &mut ReadBuf<'_>) {
        let rest = &self.ready[self.handed..];
        let length = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..length]);
        self.handed += length;
        if self.handed == self.ready.len() {
            self.ready.clear();
            self.handed = 0;
        }
    }

    /// Looks at what is held and makes ready what can go on. False when nothing can.
    fn look_at_held(&mut self) -> io::Result<bool> {
        let step = self.walk.step(&self.held).map_err(io::Error::other)?;
        self.ready.extend_from_slice(&self.held[..step.pass]);
        if step.replace > 0 {
            self.ready.extend_from_slice(&self.walk.replacement);
        }
        self.held.drain(..step.pass + step.replace);
        Ok(step.pass + step.replace > 0)
    }
}

impl<S: AsyncRead + Unpin> AnyAuthority<S> {
    /// Reads into the caller's buffer and leaves there what can go on as it is. The rest is
    /// held, or its replacement made ready.
    fn read_through(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let fresh = &buf.filled()[before..];
        if fresh.is_empty() {
            self.ended = true;
            return Poll::Ready(Ok(()));
        }
        let step = self.walk.step(fresh).map_err(io::Error::other)?;
        if step.replace > 0 {
            self.ready.extend_from_slice(&self.walk.replacement);
        }
        self.held.extend_from_slice(&fresh[step.pass + step.replace..]);
        buf.set_filled(before + step.pass);
        Poll::Ready(Ok(()))
    }

    /// Reads more behind what is held. At the end of the stream it all goes on.
    fn read_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut chunk = [0; CHUNK];
        let mut more = ReadBuf::new(&mut chunk);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut more))?;
        if more.filled().is_empty() {
            self.ended = true;
            self.ready.append(&mut self.held);
        }
        self.held.extend_from_slice(more.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Nothing in the buffer means the end of the stream, unless there was no room.
        while buf.remaining() > 0 {
            if !this.ready.is_empty() {
                this.hand_out(buf);
                break;
            }
            if this.ended {
                break;
            }
            let before = buf.filled().len();
            if this.held.is_empty() {
                ready!(this.read_through(cx, buf))?;
            } else if !this.look_at_held()? {
                ready!(this.read_held(cx))?;
            }
            if buf.filled().len() > before {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
