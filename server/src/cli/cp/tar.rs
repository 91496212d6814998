//! The program `tar` in a container, run as an exec, with its archive in pieces.

use std::io::{self, BufRead, Read, Write};

use proto::control::exec_request::Message as Say;
use proto::control::exec_response::Message;
use proto::control::{ExecRequest, ExecSpec};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Client, Failure};
use crate::error::Reason;

/// Bytes in one message.
pub(super) const CHUNK: usize = 64 << 10;
/// Pieces that wait for the other side.
pub(super) const AHEAD: usize = 2;
/// Messages of input that tar has not taken yet: together less than the window of control.proto.
const UNTAKEN: usize = 3;
/// As much is kept of what tar complains about.
const MOST_WORDS: usize = 4 << 10;

/// A container's `tar`.
pub(super) struct Program {
    pub(super) client: Client,
    pub(super) container: String,
}

/// One run of it.
pub(super) struct Tar {
    pub(super) command: Vec<String>,
    pub(super) input: Option<mpsc::Receiver<Vec<u8>>>,
    pub(super) output: Option<mpsc::Sender<Vec<u8>>>,
}

/// How it ended.
pub(super) struct Ended {
    pub(super) code: i32,
    words: String,
}

impl Ended {
    pub(super) fn check(&self, container: &str) -> Result<(), Failure> {
        match (self.code, self.words.trim()) {
            (0, _) => Ok(()),
            (code, "") => {
                Err(Failure::new(format!("tar in container {container} ended with {code}")))
            }
            (_, words) => Err(Failure::new(format!("tar in container {container}: {words}"))),
        }
    }
}

impl Program {
    /// Runs tar as the container's root, to its end.
    pub(super) async fn run(&mut self, tar: Tar) -> Result<Ended, Failure> {
        let Tar { command, mut input, mut output } = tar;
        let spec = ExecSpec {
            container: self.container.clone(),
            args: command,
            user: "0".into(),
            interactive: input.is_some(),
            ..ExecSpec::default()
        };
        let (sender, requests) = mpsc::channel(UNTAKEN + 2);
        sender.try_send(say(Say::Spec(spec))).ok();
        let answers = self.client.exec(ReceiverStream::new(requests)).await;
        let mut answers = answers.map_err(|status| self.explain(status.into()))?.into_inner();
        let (mut untaken, mut words) = (0, Vec::new());
        loop {
            let answer = tokio::select! {
                answer = answers.message() => answer,
                piece = next(&mut input), if untaken < UNTAKEN => {
                    let message = piece.map_or(Say::StdinClosed(true), Say::Stdin);
                    if matches!(message, Say::Stdin(_)) {
                        untaken += 1;
                    } else {
                        input = None;
                    }
                    // There is room for all that is not taken, and the end.
                    sender.try_send(say(message)).ok();
                    continue;
                }
            };
            let answer = answer.map_err(|status| self.explain(status.into()))?;
            match answer.map(|answer| answer.message) {
                Some(Some(Message::Stdout(bytes))) => {
                    if let Some(to) = &output
                        && to.send(bytes).await.is_err()
                    {
                        // Whoever unpacks has an error of its own: without us tar ends too.
                        return Ok(Ended { code: 0, words: String::new() });
                    }
                }
                Some(Some(Message::Stderr(bytes))) => {
                    words.extend_from_slice(&bytes[..bytes.len().min(MOST_WORDS - words.len())]);
                }
                Some(Some(Message::StdinTaken(_))) => untaken -= 1,
                Some(Some(Message::Exited(exited))) => {
                    output.take();
                    let words = String::from_utf8_lossy(&words).into_owned();
                    return Ok(Ended { code: exited.code, words });
                }
                Some(Some(Message::Started(_)) | None) => {}
                None => {
                    return Err(Failure::new("the daemon ended the call without an answer"));
                }
            }
        }
    }

    fn explain(&self, failure: Failure) -> Failure {
        if !failure.text.contains(&format!("{}:", Reason::CommandNotFound)) {
            return failure;
        }
        Failure::new(format!(
            "container {} has no program tar, which packs and unpacks its files; put one into the image, or use a volume",
            self.container
        ))
    }
}

async fn next(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

fn say(message: Say) -> ExecRequest {
    ExecRequest { message: Some(message) }
}

/// An archive on its way from a container.
pub(super) fn channel() -> (mpsc::Sender<Vec<u8>>, Pieces) {
    let (sender, receiver) = mpsc::channel(AHEAD);
    (sender, Pieces { receiver, now: Vec::new(), at: 0 })
}

/// What comes, for a thread that may block.
pub(super) struct Pieces {
    receiver: mpsc::Receiver<Vec<u8>>,
    now: Vec<u8>,
    at: usize,
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.now.len() {
            match self.receiver.blocking_recv() {
                Some(piece) => (self.now, self.at) = (piece, 0),
                None => return Ok(&[]),
            }
        }
        Ok(&self.now[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// What goes, from a thread that may block.
pub(super) struct Sender(pub(super) mpsc::Sender<Vec<u8>>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(CHUNK)];
        let sent = self.0.blocking_send(piece.to_vec());
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe)).map(|()| piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
