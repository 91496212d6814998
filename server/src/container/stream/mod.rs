//! The ends that the daemon holds of a program's input and output: pipes, or the master side of a terminal.
//!
//! Nothing here keeps bytes. Whoever reads slowly lets the pipe fill up, and with it the program stops; what nobody
//! holds any more is closed, and the program notices.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;

/// What is read at once, where the caller has made no room: the size of a pipe.
pub const CHUNK: usize = 64 << 10;

/// The streams of a program, as far as they were asked for and are there.
#[derive(Debug, Default)]
pub struct Streams {
    /// Its input. None too where it has been closed for good: what a client sends is dropped then.
    pub stdin: Option<Input>,
    /// Its output; all of it with a terminal.
    pub stdout: Option<Output>,
    /// Its errors. None with a terminal.
    pub stderr: Option<Output>,
}

/// What a program reads. Dropping it is the end of a pipe. To a terminal it is nothing: as with docker, whoever wants
/// the program to read an end sends it Ctrl-D.
#[derive(Debug)]
pub enum Input {
    /// Write side.
    Pipe(pipe::Sender),
    /// Master side.
    Terminal(Terminal),
}

impl Input {
    /// Writes all, as fast as the program reads. Where it is given up half way, a part has been written.
    ///
    /// # Errors
    /// `BrokenPipe` once nobody reads any more.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Input::Pipe(pipe) => pipe.write_all(bytes).await,
            Input::Terminal(terminal) => terminal.write_all(bytes).await,
        }
    }

    /// A pipe: our end, and the program's.
    ///
    /// # Errors
    /// Those of pipe2(2).
    pub fn pipe() -> io::Result<(Input, OwnedFd)> {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok((Input::of_pipe(ours)?, theirs))
    }

    /// The write side of a pipe. Only this end becomes non-blocking: a program may not expect it of its own.
    ///
    /// # Errors
    /// It is no pipe, or cannot be waited for.
    pub fn of_pipe(pipe: OwnedFd) -> io::Result<Input> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Input::Pipe(pipe::Sender::from_owned_fd(pipe)?))
    }
}

/// What a program writes.
#[derive(Debug)]
pub enum Output {
    /// Read side.
    Pipe(pipe::Receiver),
    /// Master side.
    Terminal(Terminal),
}

impl Output {
    /// A pipe: our end, and the program's.
    ///
    /// # Errors
    /// Those of pipe2(2).
    pub fn pipe() -> io::Result<(Output, OwnedFd)> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Output::Pipe(pipe::Receiver::from_owned_fd(ours)?), theirs))
    }

    /// Reads what there is, once there is something, into the room that `into` has, or [`CHUNK`] where it has none.
    /// How much; 0 at the end. Where it is given up, nothing is lost.
    ///
    /// # Errors
    /// Those of read(2). The error by which a terminal tells that its last user has gone is the end.
    pub async fn read(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        if into.len() == into.capacity() {
            into.reserve(CHUNK);
        }
        match self {
            Output::Pipe(pipe) => pipe.read_buf(into).await,
            Output::Terminal(terminal) => terminal.read(into).await,
        }
    }
}

/// The master side of a terminal, shared by those who read it, write it and size it. Once the last has dropped it, its
/// programs are hung up, unless the shim holds it too, as it does for a container's own.
#[derive(Debug, Clone)]
pub struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// Takes a master. Must be called in the runtime.
    ///
    /// # Errors
    /// It cannot be waited for.
    #[expect(
        deprecated,
        reason = "for types that may change their descriptor; an OwnedFd never does"
    )]
    pub fn new(master: OwnedFd) -> io::Result<Terminal> {
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Terminal(Arc::new(AsyncFd::new(master)?)))
    }

    /// Sets its size, which its program is told by SIGWINCH. A size with a 0 is none, and nothing happens.
    ///
    /// # Errors
    /// Those of TIOCSWINSZ.
    pub fn resize(&self, rows: u32, columns: u32) -> io::Result<()> {
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let limit = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let size =
            Winsize { ws_row: limit(rows), ws_col: limit(columns), ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.0.as_fd(), size)?)
    }

    async fn read(&self, into: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|master| {
                Ok(rustix::io::read(master, rustix::buffer::spare_capacity(into))?)
            });
            match read {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(read) => return read,
                Err(_not_yet) => {}
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            let hung_up = ready.ready().is_write_closed();
            match ready.try_io(|master| Ok(rustix::io::write(master, bytes)?)) {
                Ok(Ok(count)) => bytes = &bytes[count..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                Ok(Err(error)) => return Err(error),
                // It is full, and says for ever that it is ready: nobody will make room.
                Err(_not_now) if hung_up => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(_not_yet) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
