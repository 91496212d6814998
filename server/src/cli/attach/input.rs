//! What goes from us to a program: standard input as fast as the program reads it, and the size of our window.

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::terminal::{Raw, window_size};
use super::{Ask, Failure, Keys};

/// Bytes that may be on the way to a program that does not read, and messages; see control.proto.
const WINDOW: u64 = 256 << 10;
pub(super) const MESSAGES: usize = 64;
/// What is read at once.
const CHUNK: usize = 64 << 10;

/// Standard input, from the start of the program on.
#[derive(Debug)]
pub(super) struct Input {
    keys: Option<Keys>,
    raw: Option<Raw>,
    /// Where the program has a terminal: our window changes.
    resized: Option<Signal>,
    /// The window is to be told.
    size_due: bool,
    /// Pieces of standard input. None where there is none, or its end was told.
    pieces: Option<mpsc::Receiver<Vec<u8>>>,
    /// Bytes and messages that the program has not taken yet.
    ahead: (u64, usize),
}

impl Input {
    pub(super) fn new(keys: Option<Keys>) -> Input {
        Input { keys, raw: None, resized: None, size_due: false, pieces: None, ahead: (0, 0) }
    }

    /// The program runs: with a terminal or without, and with its input open or not.
    pub(super) fn begin(&mut self, stdin: bool, terminal: bool) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::step("read standard input", &error);
        if terminal {
            self.resized = Some(signal(SignalKind::window_change()).map_err(failed)?);
            self.size_due = true;
        }
        if stdin {
            if terminal {
                self.raw = Raw::enter()?;
            }
            self.pieces = Some(read_on_a_thread().map_err(failed)?);
        }
        Ok(())
    }

    pub(super) fn is_raw(&self) -> bool {
        self.raw.is_some()
    }

    /// The program has taken one message.
    pub(super) fn taken(&mut self, bytes: u64) {
        self.ahead = (self.ahead.0.saturating_sub(bytes), self.ahead.1.saturating_sub(1));
    }

    /// What the program is to be told next; `None` to leave it. Where it is given up, nothing is lost.
    pub(super) async fn next(&mut self) -> Option<Ask> {
        loop {
            if std::mem::take(&mut self.size_due)
                && let Some(size) = window_size()
            {
                return Some(Ask::Resize(size));
            }
            let has_room = self.ahead.0 < WINDOW - CHUNK as u64 && self.ahead.1 < MESSAGES;
            tokio::select! {
                () = changed(&mut self.resized) => self.size_due = true,
                piece = next_piece(&mut self.pieces), if has_room => match piece {
                    Some(piece) => match self.without_keys(piece) {
                        Ok(bytes) if bytes.is_empty() => {}
                        Ok(bytes) => {
                            self.ahead = (self.ahead.0 + bytes.len() as u64, self.ahead.1 + 1);
                            return Some(Ask::Stdin(bytes));
                        }
                        Err(Left) => return None,
                    },
                    None => {
                        self.pieces = None;
                        return Some(Ask::StdinClosed);
                    }
                },
            }
        }
    }

    /// What the program is to read: not the keys by which its terminal is left.
    fn without_keys(&mut self, piece: Vec<u8>) -> Result<Vec<u8>, Left> {
        match &mut self.keys {
            Some(keys) if self.raw.is_some() => match keys.take(&piece) {
                (rest, false) => Ok(rest),
                (_, true) => Err(Left),
            },
            _ => Ok(piece),
        }
    }
}

/// The keys were typed.
struct Left;

async fn changed(resized: &mut Option<Signal>) {
    match resized {
        // It has no end.
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

async fn next_piece(pieces: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match pieces {
        Some(pieces) => pieces.recv().await,
        None => std::future::pending().await,
    }
}

/// Standard input may be anything, and block for ever: it is read on a thread that ends with us at the latest. One
/// piece is read ahead.
fn read_on_a_thread() -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        while let Some(piece) = read() {
            if sender.blocking_send(piece).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// None at the end. An error is one: a terminal that has gone, a directory.
fn read() -> Option<Vec<u8>> {
    let stdin = io::stdin();
    let mut piece = Vec::with_capacity(CHUNK);
    loop {
        match rustix::io::read(&stdin, rustix::buffer::spare_capacity(&mut piece)) {
            Ok(1..) => {
                piece.shrink_to_fit();
                return Some(piece);
            }
            Err(rustix::io::Errno::INTR) => {}
            // Whoever gave it to us has made it non-blocking.
            Err(rustix::io::Errno::AGAIN) => {
                poll(&mut [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)], None).ok()?;
            }
            Ok(0) | Err(_) => return None,
        }
    }
}
