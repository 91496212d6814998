//! A program's output on our own descriptors, our input, signals and window size to it, its exit code as ours: what
//! `run`, `exec` and `attach` have in common.

mod input;
mod keys;
mod terminal;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use proto::control::{Exited, PullProgress, Started, TerminalSize};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use input::Input;
pub(super) use keys::Keys;
pub(super) use terminal::{require_terminal, window_size};

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
    /// One message of input, of so many bytes, has been taken.
    StdinTaken(u64),
    Exited(Exited),
    /// What a newer daemon tells and we need not know.
    Unknown,
}

/// What a program is given.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ask {
    Signal(u32),
    Stdin(Vec<u8>),
    StdinClosed,
    Resize(TerminalSize),
}

/// What waits for a daemon that does not take it: all input that may be sent ahead, and signals. More of those are of no
/// use to anybody.
const ASKED_AHEAD: usize = 2 * input::MESSAGES;

/// What is asked of the daemon: the first request, and one for all that the function is given.
pub(super) fn requests<T>(first: T, of: impl Fn(Ask) -> T) -> (ReceiverStream<T>, impl FnMut(Ask)) {
    let (sender, receiver) = mpsc::channel(ASKED_AHEAD);
    // Its capacity is larger than one.
    sender.try_send(first).ok();
    let forward = move |ask| {
        sender.try_send(of(ask)).ok();
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

/// How a program is shown.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) until: Until,
    /// Our signals are for the program, too.
    pub(super) proxy: bool,
    /// What is typed to leave a program with a terminal; where it cannot be left, nothing is.
    pub(super) keys: Option<Keys>,
}

/// Shows a program until its end or start. The next message is taken when the last is written,
/// so a reader that is slow makes the daemon wait, and with it the program.
pub(super) async fn follow(
    mut messages: impl Stream<Item = Result<Told, Status>> + Unpin,
    mut signals: impl Stream<Item = u32> + Unpin,
    mut ask: impl FnMut(Ask),
    output: &Output,
    wanted: Wanted,
) -> Outcome {
    let mut progress = None;
    let mut started: Option<Started> = None;
    let mut asked_to_end = 0;
    let mut writing: Option<Writing> = None;
    let mut leaving = Leaving::default();
    let mut input = Input::new(wanted.keys);
    loop {
        let told = tokio::select! {
            number = leaving.due() => return Err(leave(started.as_ref(), number)),
            Some(number) = signals.next() => {
                asked_to_end += u32::from(asks_to_end(number));
                match &started {
                    // Whoever wants us gone who holds a terminal wants the terminal back.
                    Some(_) if input.is_raw() || !wanted.proxy => {
                        leaving.begin(number, wanted.proxy.then(|| ask(Ask::Signal(number))).is_some());
                    }
                    Some(_) if asked_to_end < PATIENCE => ask(Ask::Signal(number)),
                    started => return Err(leave(started.as_ref(), number)),
                }
                continue;
            }
            written = finish(&mut writing) => {
                written.map_err(not_written)?;
                writing = None;
                continue;
            }
            next = input.next() => {
                match next {
                    Some(next) => ask(next),
                    None => {
                        // With it goes the raw mode, in which the line would not be one.
                        drop(input);
                        return Ok(detached(started.as_ref()));
                    }
                }
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
            Told::StdinTaken(count) => input.taken(count),
            Told::Unknown => {}
            Told::Exited(exited) => {
                return Ok(ExitCode::from(u8::try_from(exited.code).unwrap_or(u8::MAX)));
            }
            Told::Started(now) => match wanted.until {
                Until::Exit => {
                    input.begin(now.stdin, now.terminal)?;
                    started = Some(now);
                }
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

/// A program that got the signal may end by it, and its code is the better one.
const GOODBYE: Duration = Duration::from_secs(1);

/// The end of a client that got a signal.
#[derive(Debug, Default)]
struct Leaving(Option<(Instant, u32)>);

impl Leaving {
    fn begin(&mut self, number: u32, passed_on: bool) {
        let wait = if passed_on { GOODBYE } else { Duration::ZERO };
        self.0.get_or_insert((Instant::now() + wait, number));
    }

    /// The signal, when it is time; never, where there was none.
    async fn due(&self) -> u32 {
        match self.0 {
            Some((at, number)) => {
                tokio::time::sleep_until(at).await;
                number
            }
            None => std::future::pending().await,
        }
    }
}

/// The user typed what ends us and not the program.
fn detached(started: Option<&Started>) -> ExitCode {
    if let Some(started) = started {
        let name = shown(started);
        tell(&format!("left; container {name} goes on, and `berth attach {name}` comes back"));
    }
    ExitCode::SUCCESS
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
