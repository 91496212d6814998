//! A program's output on our own descriptors, our signals to it, its exit code as ours:
//! what `run` and `exec` have in common.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use proto::control::{Exited, PullProgress, Started};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::failure::{CALL_FAILED, Failure, Outcome, SIGNALLED, tell};
use super::progress::Progress;
use super::signals::asks_to_end;
use crate::blocking;

/// So many requests to end, as Ctrl-C, and we leave a program that does not heed them.
const PATIENCE: u32 = 3;
/// Exit code of a program that wrote to a pipe that nobody reads (SIGPIPE).
const BROKEN_PIPE: u8 = SIGNALLED + 13;

/// What the daemon tells of a program.
#[derive(Debug)]
pub(super) enum Told {
    Progress(PullProgress),
    Warning(String),
    Started(Started),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Exited(Exited),
    /// What a newer daemon tells and we need not know.
    Unknown,
}

/// Signals that wait for a daemon that does not take them; more are of no use to anybody.
const SIGNALS_AHEAD: usize = 16;

/// What is asked of the daemon: the first request, and one for each number that the function is given.
pub(super) fn requests<T>(
    first: T,
    of_signal: impl Fn(u32) -> T,
) -> (ReceiverStream<T>, impl FnMut(u32)) {
    let (sender, receiver) = mpsc::channel(SIGNALS_AHEAD);
    // Its capacity is larger than one.
    sender.try_send(first).ok();
    let forward = move |number| {
        sender.try_send(of_signal(number)).ok();
    };
    (ReceiverStream::new(receiver), forward)
}

/// Where output goes. Writing may take as long as the reader likes, so it is done on a thread apart.
#[derive(Debug, Clone)]
pub(super) struct Output {
    stdout: Arc<File>,
    stderr: Arc<File>,
}

type Writing = Pin<Box<dyn Future<Output = io::Result<()>>>>;

impl Output {
    /// Standard output and standard error.
    pub(super) fn standard() -> Result<Output, Failure> {
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        let stderr = io::stderr().as_fd().try_clone_to_owned();
        let pair = stdout.and_then(|stdout| Ok(Output::new(stdout.into(), stderr?.into())));
        pair.map_err(|error| Failure::step("use standard output and standard error", &error))
    }

    fn new(stdout: File, stderr: File) -> Output {
        Output { stdout: Arc::new(stdout), stderr: Arc::new(stderr) }
    }

    pub(super) fn stdout(&self, bytes: Vec<u8>) -> Writing {
        write(self.stdout.clone(), bytes)
    }

    pub(super) fn stderr(&self, bytes: Vec<u8>) -> Writing {
        write(self.stderr.clone(), bytes)
    }
}

fn write(to: Arc<File>, bytes: Vec<u8>) -> Writing {
    Box::pin(async move {
        match blocking::run("write output", move || Ok((&*to).write_all(&bytes))).await {
            Ok(written) => written,
            Err(error) => Err(io::Error::other(error)),
        }
    })
}

/// What we are here for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The program's end.
    Exit,
    /// Its start; its container's id is printed.
    StartWithId,
    /// Its start.
    Start,
}

/// Shows a program until its end or start. The next message is taken when the last is written,
/// so a reader that is slow makes the daemon wait, and with it the program.
pub(super) async fn follow(
    mut messages: impl Stream<Item = Result<Told, Status>> + Unpin,
    mut signals: impl Stream<Item = u32> + Unpin,
    mut forward: impl FnMut(u32),
    output: &Output,
    until: Until,
) -> Outcome {
    let mut progress = None;
    let mut started: Option<Started> = None;
    let mut asked_to_end = 0;
    let mut writing: Option<Writing> = None;
    loop {
        let told = tokio::select! {
            Some(number) = signals.next() => {
                asked_to_end += u32::from(asks_to_end(number));
                match &started {
                    Some(_) if asked_to_end < PATIENCE => forward(number),
                    started => return Err(leave(started.as_ref(), number)),
                }
                continue;
            }
            written = finish(&mut writing) => {
                written.map_err(not_written)?;
                writing = None;
                continue;
            }
            told = messages.next(), if writing.is_none() => told,
        };
        let told = told.transpose().map_err(|status| failed(status, started.as_ref()))?;
        match told.ok_or_else(|| lost(started.as_ref()))? {
            Told::Progress(now) => progress.get_or_insert_with(Progress::standard).update(&now),
            Told::Warning(text) => tell(&format!("warning: {text}")),
            Told::Stdout(bytes) => writing = Some(output.stdout(bytes)),
            Told::Stderr(bytes) => writing = Some(output.stderr(bytes)),
            Told::Unknown => {}
            Told::Exited(exited) => {
                return Ok(ExitCode::from(u8::try_from(exited.code).unwrap_or(u8::MAX)));
            }
            Told::Started(now) => match until {
                Until::Exit => started = Some(now),
                Until::Start => return Ok(ExitCode::SUCCESS),
                Until::StartWithId => {
                    let line = format!("{}\n", now.container_id).into_bytes();
                    output.stdout(line).await.map_err(not_written)?;
                    return Ok(ExitCode::SUCCESS);
                }
            },
        }
    }
}

/// The end of what is being written; never, where nothing is.
async fn finish(writing: &mut Option<Writing>) -> io::Result<()> {
    match writing {
        Some(writing) => writing.await,
        None => std::future::pending().await,
    }
}

fn not_written(error: io::Error) -> Failure {
    // Whoever wanted the output has gone, and needs no words.
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::silent(BROKEN_PIPE);
    }
    Failure { code: CALL_FAILED, ..Failure::step("write output", &error) }
}

/// Ended by a signal: before there is a program, or because it does not heed any.
fn leave(started: Option<&Started>, number: u32) -> Failure {
    let text = match started {
        None => String::new(),
        Some(started) => {
            format!("left; what runs in container {} may go on", shown(started))
        }
    };
    let code = u8::try_from(number).unwrap_or(u8::MAX).saturating_add(SIGNALLED);
    Failure { code, ..Failure::new(text) }
}

/// The daemon's word that it cannot go on.
fn failed(status: Status, started: Option<&Started>) -> Failure {
    let failure = Failure::from(status);
    match started {
        None => failure,
        Some(started) => {
            let text =
                format!("{}; what runs in container {} may go on", failure.text, shown(started));
            Failure { text, code: CALL_FAILED }
        }
    }
}

/// The daemon said no more before it had said all.
fn lost(started: Option<&Started>) -> Failure {
    let text = match started {
        None => "the daemon ended the call without an answer; see its log".to_owned(),
        Some(started) => format!(
            "the daemon has ended; what runs in container {} goes on without us",
            shown(started)
        ),
    };
    Failure { code: CALL_FAILED, ..Failure::new(text) }
}

fn shown(started: &Started) -> &str {
    if started.name.is_empty() { &started.container_id } else { &started.name }
}

#[cfg(test)]
mod tests;
