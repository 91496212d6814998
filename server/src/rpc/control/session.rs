//! A client and a program: what `run`, `exec` and `attach` have in common once the program runs.
//!
//! Input has a window of its own, which the client keeps to: a program that does not read stops its client's input and
//! nothing else, for signals and sizes travel in the same stream. Output goes no faster than the client takes it, and
//! none of it is kept here.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proto::control as v1;
use tokio::sync::{mpsc, watch};
use tonic::Streaming;

use super::{Sink, send};
use crate::app::App;
use crate::container::exec::Handle;
use crate::container::stream::{CHUNK, Input, Output, Streams};
use crate::container::{self, Container};
use crate::error::{Doing, Error, Result, chain};

/// What a client may send ahead of a program that does not read; see control.proto.
const WINDOW: usize = 256 << 10;
/// The same in messages.
const MESSAGES: usize = 64;

/// What a client asks.
pub(super) enum Asked {
    Signal(u32),
    Stdin(Vec<u8>),
    StdinClosed,
    Resize(v1::TerminalSize),
    /// What has no meaning here, or is of a newer client.
    Other,
}

/// What a client is told.
pub(super) enum Told {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    StdinTaken(u64),
    Exited(v1::Exited),
}

/// Whose input and output it is.
pub(super) enum Program<'a> {
    Init(&'a Arc<App>, &'a Arc<Container>),
    Exec(&'a Handle),
}

impl Program<'_> {
    async fn signal(&self, number: u32) {
        let sent = match self {
            Program::Init(app, container) => container::stop::signal(app, container, number).await,
            Program::Exec(handle) => handle.signal(number).await,
        };
        if let Err(error) = sent {
            tracing::debug!(number, "pass a signal on: {}", chain(&error));
        }
    }

    async fn resize(&self, size: v1::TerminalSize) {
        let (rows, columns) = (size.rows, size.columns);
        let sized = match self {
            Program::Init(app, container) => {
                container::attach::resize(app, container, rows, columns).await
            }
            Program::Exec(handle) => handle.resize(rows, columns),
        };
        if let Err(error) = sized {
            tracing::debug!(rows, columns, "pass a size on: {}", chain(&error));
        }
    }
}

/// Serves a client until the program has ended and its output is told. Then output that somebody whom it left running
/// holds open is given up once it is quiet for `linger`.
pub(super) async fn attend<Q, A>(
    requests: Streaming<Q>,
    sink: &Sink<A>,
    streams: Streams,
    program: Program<'_>,
    ended: impl Future,
    linger: Duration,
) -> Result<()>
where
    Q: Into<Asked>,
    A: From<Told>,
{
    let Streams { stdin, stdout, stderr } = streams;
    let (queue, waiting) = mpsc::channel(MESSAGES);
    let held = AtomicUsize::new(0);
    let (end, has_ended) = watch::channel(false);
    let telling = async {
        let ending = async {
            ended.await;
            // Both readers hold a receiver.
            end.send_replace(true);
            Ok(())
        };
        let stdout = copy(stdout, sink, Told::Stdout, has_ended.clone(), linger);
        let stderr = copy(stderr, sink, Told::Stderr, has_ended.clone(), linger);
        tokio::try_join!(ending, stdout, stderr).map(drop)
    };
    tokio::select! {
        told = telling => told,
        failed = listen(requests, queue, &held, &program) => failed.map(|never| match never {}),
        failed = feed(stdin, waiting, &held, sink) => failed.map(|never| match never {}),
    }
}

/// Hears the client for as long as it speaks. Its end is the end of the input.
async fn listen<Q: Into<Asked>>(
    mut requests: Streaming<Q>,
    queue: mpsc::Sender<Vec<u8>>,
    held: &AtomicUsize,
    program: &Program<'_>,
) -> Result<Infallible> {
    let mut queue = Some(queue);
    while let Ok(Some(request)) = requests.message().await {
        match request.into() {
            Asked::Signal(number) => program.signal(number).await,
            Asked::Resize(size) => program.resize(size).await,
            Asked::StdinClosed => queue = None,
            Asked::Stdin(bytes) => {
                let Some(queue) = &queue else { continue };
                let ahead = held.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
                if ahead > WINDOW || queue.try_send(bytes).is_err() {
                    return Err(Error::invalid(
                        "stdin",
                        "more was sent ahead than the program has taken and the window allows",
                    ));
                }
            }
            Asked::Other => {}
        }
    }
    drop(queue);
    std::future::pending().await
}

/// Writes input as fast as the program reads. What it does not want any more is taken and dropped.
async fn feed<A: From<Told>>(
    mut stdin: Option<Input>,
    mut waiting: mpsc::Receiver<Vec<u8>>,
    held: &AtomicUsize,
    sink: &Sink<A>,
) -> Result<Infallible> {
    while let Some(bytes) = waiting.recv().await {
        if let Some(input) = &mut stdin
            && let Err(error) = input.write_all(&bytes).await
        {
            tracing::debug!("write to a program: {error}");
            stdin = None;
        }
        held.fetch_sub(bytes.len(), Ordering::Relaxed);
        send(sink, Told::StdinTaken(bytes.len() as u64).into()).await?;
    }
    // The program reads its end.
    drop(stdin);
    std::future::pending().await
}

/// Copies output into messages, no faster than the client takes them.
async fn copy<A: From<Told>>(
    from: Option<Output>,
    sink: &Sink<A>,
    told: impl Fn(Vec<u8>) -> Told,
    mut ended: watch::Receiver<bool>,
    linger: Duration,
) -> Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    loop {
        let mut bytes = Vec::with_capacity(CHUNK);
        let read = tokio::select! {
            biased;
            read = from.read(&mut bytes) => read.doing(|| "read the output")?,
            () = quiet(&mut ended, linger) => return Ok(()),
        };
        if read == 0 {
            return Ok(());
        }
        send(sink, told(bytes).into()).await?;
    }
}

/// Ends some time after the program.
async fn quiet(ended: &mut watch::Receiver<bool>, linger: Duration) {
    // An error is the end of whoever would tell, and so of all this.
    let _open = ended.wait_for(|ended| *ended).await.is_ok();
    tokio::time::sleep(linger).await;
}

/// One implementation for each call: the messages have the same parts.
macro_rules! speaks {
    ($request:ident, $response:ident, $asked:path, $told:path) => {
        impl From<v1::$request> for Asked {
            fn from(request: v1::$request) -> Asked {
                use $asked as Message;
                match request.message {
                    Some(Message::Signal(number)) => Asked::Signal(number),
                    Some(Message::Stdin(bytes)) => Asked::Stdin(bytes),
                    Some(Message::StdinClosed(true)) => Asked::StdinClosed,
                    Some(Message::Resize(size)) => Asked::Resize(size),
                    Some(Message::Spec(_) | Message::StdinClosed(false)) | None => Asked::Other,
                }
            }
        }

        impl From<Told> for v1::$response {
            fn from(told: Told) -> v1::$response {
                use $told as Message;
                let message = match told {
                    Told::Stdout(bytes) => Message::Stdout(bytes),
                    Told::Stderr(bytes) => Message::Stderr(bytes),
                    Told::StdinTaken(count) => Message::StdinTaken(count),
                    Told::Exited(exited) => Message::Exited(exited),
                };
                v1::$response { message: Some(message) }
            }
        }
    };
}

speaks!(RunRequest, RunResponse, v1::run_request::Message, v1::run_response::Message);
speaks!(ExecRequest, ExecResponse, v1::exec_request::Message, v1::exec_response::Message);
speaks!(AttachRequest, AttachResponse, v1::attach_request::Message, v1::attach_response::Message);
