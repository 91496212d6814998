//! Exec and attach: the channels of a client on one side, the streams of a program on the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::channel::{Incoming, Outgoing};
use crate::app::App;
use crate::container::attach::{self, AttachSpec};
use crate::container::exec::{self, ExecSpec};
use crate::container::stream::{Input, Output, Streams};
use crate::container::{Container, State};
use crate::error::{Error, Result, chain};
use crate::id::ContainerId;

/// Read at once, and so the longest data frame.
const CHUNK: usize = 32 << 10;
/// A client tells the size of its terminal right after it has opened its streams. Waiting for it lets the program
/// begin with the right size; one that tells none is not kept waiting for long.
const FIRST_SIZE: Duration = Duration::from_millis(50);
/// After a program has ended, what it left running may still hold its output open for so long without a word.
const LINGER: Duration = Duration::from_millis(200);
/// What is passed on of that: more than a pipe holds.
const LEFT_OVER: usize = 1 << 20;
/// Longest text that is no size of a terminal yet.
const MAX_SIZE_TEXT: usize = 4 << 10;
/// Linux number of the signal that says that a terminal is gone.
const SIGHUP: u32 = 1;

/// What a call of the CRI has asked for.
#[derive(Debug)]
pub struct Request {
    /// Where.
    pub container: ContainerId,
    /// What.
    pub action: Action,
    /// Which streams the client will open.
    pub wanted: Wants,
}

/// A program of its own, or the container's.
#[derive(Debug)]
pub enum Action {
    /// The program and its arguments.
    Exec(Vec<Vec<u8>>),
    /// Attach.
    Attach,
}

/// The streams of a client, besides the one for the status.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of the CRI's requests")]
pub struct Wants {
    /// Input.
    pub stdin: bool,
    /// Output.
    pub stdout: bool,
    /// Errors; never with a terminal.
    pub stderr: bool,
    /// A terminal, with a stream of its own for its sizes.
    pub tty: bool,
}

/// How the end is told to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As a metav1.Status in JSON: protocol version 4 and later.
    Json,
    /// A failure as text, a success with nothing.
    Text,
}

/// A client's side.
#[derive(Debug)]
pub(super) struct Channels {
    pub(super) stdin: Option<Incoming>,
    pub(super) stdout: Option<Outgoing>,
    pub(super) stderr: Option<Outgoing>,
    pub(super) error: Outgoing,
    pub(super) resize: Option<Incoming>,
    /// Is cancelled when the client has gone.
    pub(super) gone: CancellationToken,
    pub(super) form: Form,
}

/// Does what was asked for, and tells the client how it ended: after all output, on the error stream.
pub(super) async fn run(app: &Arc<App>, request: Request, channels: Channels) {
    let Channels { stdin, stdout, stderr, error, resize, gone, form } = channels;
    let side = Side { stdin, stdout, stderr, sizes: resize.map(Sizes::new), gone };
    let ended = match &request.action {
        Action::Exec(args) => exec(app, &request, args.clone(), side).await,
        Action::Attach => attach(app, &request, side).await,
    };
    if let Err(problem) = &ended {
        let container = request.container.as_str();
        tracing::info!(container, error = chain(problem), "a streaming call failed");
    }
    if let Some(text) = status(form, &ended) {
        // Whoever has gone is told nothing.
        let _gone = error.write(text.into()).await;
    }
    error.close().await;
}

/// The channels while a program runs.
#[derive(Debug)]
struct Side {
    stdin: Option<Incoming>,
    stdout: Option<Outgoing>,
    stderr: Option<Outgoing>,
    sizes: Option<Sizes>,
    gone: CancellationToken,
}

async fn exec(
    app: &Arc<App>,
    request: &Request,
    args: Vec<Vec<u8>>,
    mut side: Side,
) -> Result<i32> {
    let container = app.store.container(request.container.as_str())?;
    let tty = request.wanted.tty;
    let size = match &mut side.sizes {
        Some(sizes) => tokio::time::timeout(FIRST_SIZE, sizes.next()).await.unwrap_or_default(),
        None => None,
    };
    let terminal = tty.then(|| size.unwrap_or_default());
    let spec = ExecSpec { args, terminal, stdin: request.wanted.stdin, ..Default::default() };
    let mut running = exec::start(app, &container, spec).await?;
    let streams = std::mem::take(&mut running.streams);
    let (_unused, nothing) = tokio::sync::oneshot::channel();
    let exit = std::mem::replace(&mut running.exit, nothing);
    let ended = CancellationToken::new();
    let Side { stdin, stdout, stderr, sizes, gone } = side;
    let resizing = async {
        let mut sizes = sizes;
        while let Some((rows, columns)) = next_size(&mut sizes).await {
            if let Err(error) = running.resize(rows, columns) {
                tracing::debug!("resize a terminal: {}", chain(&error));
            }
        }
    };
    let finishing = async {
        let waiting = async {
            let code = exit.await.map_or(255, |exit| i32::try_from(exit.code).unwrap_or(255));
            ended.cancel();
            code
        };
        let Streams { stdout: out, stderr: err, .. } = streams;
        let (code, (), ()) =
            tokio::join!(waiting, copy_out(out, stdout, &ended), copy_out(err, stderr, &ended));
        code
    };
    tokio::select! {
        code = finishing => Ok(code),
        () = async { copy_in(stdin, streams.stdin).await; std::future::pending().await } => Ok(255),
        () = async { resizing.await; std::future::pending().await } => Ok(255),
        // Without a terminal its input ends, and what it writes is read and dropped until it ends.
        () = gone.cancelled(), if tty => {
            // The terminal closes with this call. Shims of the first version keep it open, so its program is told too.
            if let Err(error) = running.signal(SIGHUP).await {
                tracing::debug!("hang a command up: {}", chain(&error));
            }
            Ok(255)
        }
    }
}

async fn attach(app: &Arc<App>, request: &Request, side: Side) -> Result<i32> {
    let container = app.store.container(request.container.as_str())?;
    let Wants { stdin, stdout, stderr, .. } = request.wanted;
    let streams = attach::attach(app, &container, AttachSpec { stdin, stdout, stderr }).await?;
    let ended = CancellationToken::new();
    let Side { stdin, stdout, stderr, sizes, gone } = side;
    let resizing = async {
        let mut sizes = sizes;
        while let Some((rows, columns)) = next_size(&mut sizes).await {
            if let Err(error) = attach::resize(app, &container, rows, columns).await {
                tracing::debug!(container = %container.id, "resize a terminal: {}", chain(&error));
            }
        }
    };
    let finishing = async {
        let waiting = async {
            exited(&container).await;
            ended.cancel();
        };
        let Streams { stdout: out, stderr: err, .. } = streams;
        tokio::join!(waiting, copy_out(out, stdout, &ended), copy_out(err, stderr, &ended));
    };
    tokio::select! {
        () = finishing => {}
        () = async { copy_in(stdin, streams.stdin).await; std::future::pending().await } => {}
        () = async { resizing.await; std::future::pending().await } => {}
        () = gone.cancelled() => {}
    }
    Ok(0)
}

/// Returns when the container has ended, or is gone altogether.
async fn exited(container: &Container) {
    let mut watch = container.watch();
    let _gone = watch.wait_for(|record| record.state == State::Exited).await;
}

async fn next_size(sizes: &mut Option<Sizes>) -> Option<(u32, u32)> {
    sizes.as_mut()?.next().await
}

/// From the client to the program, until either wants no more. What comes after the program has closed its input is
/// dropped, so that the connection goes on.
async fn copy_in(from: Option<Incoming>, mut to: Option<Input>) {
    let Some(mut from) = from else { return };
    while let Some(bytes) = from.next().await {
        if let Some(input) = &mut to
            && input.write_all(&bytes).await.is_err()
        {
            to = None;
        }
    }
}

/// From the program to the client, to the end. A client that has gone does not stop the program.
async fn copy_out(from: Option<Output>, mut to: Option<Outgoing>, ended: &CancellationToken) {
    let lingering = || async {
        ended.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    let mut after = 0;
    if let Some(mut from) = from {
        while after < LEFT_OVER {
            let mut bytes = Vec::with_capacity(CHUNK);
            let read = tokio::select! {
                biased;
                read = from.read(&mut bytes) => read,
                () = lingering() => break,
            };
            match read {
                Ok(count) if count > 0 => after += if ended.is_cancelled() { count } else { 0 },
                Ok(_) | Err(_) => break,
            }
            if let Some(client) = &to
                && client.write(Bytes::from(bytes)).await.is_err()
            {
                to = None;
            }
        }
    }
    if let Some(to) = to {
        to.close().await;
    }
}

/// The sizes that a client tells.
#[derive(Debug)]
struct Sizes {
    from: Incoming,
    text: Vec<u8>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

impl Sizes {
    fn new(from: Incoming) -> Sizes {
        Sizes { from, text: Vec::new() }
    }

    /// The next rows and columns; none when there will be no more.
    async fn next(&mut self) -> Option<(u32, u32)> {
        loop {
            if let Some(size) = take_size(&mut self.text) {
                return Some(size);
            }
            self.text.extend_from_slice(&self.from.next().await?);
            if self.text.len() > MAX_SIZE_TEXT {
                self.text.clear();
            }
        }
    }
}

/// Takes the first size out of a text, and what before it is none.
fn take_size(text: &mut Vec<u8>) -> Option<(u32, u32)> {
    loop {
        let mut parsed = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
        match parsed.next()? {
            Ok(size) => {
                let used = parsed.byte_offset();
                text.drain(..used);
                if size.width > 0 && size.height > 0 {
                    return Some((size.height.into(), size.width.into()));
                }
            }
            Err(error) if error.is_eof() => return None,
            Err(_) => {
                text.clear();
                return None;
            }
        }
    }
}

/// What the error stream carries at the end.
fn status(form: Form, ended: &Result<i32>) -> Option<String> {
    match (form, ended) {
        (Form::Json, Ok(0)) => Some(json!({ "metadata": {}, "status": "Success" }).to_string()),
        (Form::Text, Ok(0)) => None,
        (_, Ok(code)) => {
            let message = format!("command terminated with non-zero exit code: exit status {code}");
            let causes = json!([{ "reason": "ExitCode", "message": code.to_string() }]);
            Some(failure(form, "NonZeroExitCode", message, None, &causes))
        }
        (_, Err(error)) => {
            let message = format!("Internal error occurred: {}", text_of(error));
            let causes = json!([{ "message": text_of(error) }]);
            Some(failure(form, "InternalError", message, Some(500), &causes))
        }
    }
}

fn failure(
    form: Form,
    reason: &str,
    message: String,
    code: Option<u16>,
    causes: &serde_json::Value,
) -> String {
    if form == Form::Text {
        return message;
    }
    let mut status = json!({
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "details": { "causes": causes },
    });
    if let Some(code) = code {
        status["code"] = code.into();
    }
    status.to_string()
}

fn text_of(error: &Error) -> String {
    chain(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ended: Result<i32>, json: serde_json::Value, text: Option<&str>) {
        let told = status(Form::Json, &ended).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&told).unwrap(), json);
        assert_eq!(status(Form::Text, &ended).as_deref(), text);
    }

    #[test]
    fn the_end_is_told_as_clients_read_it() {
        check(Ok(0), json!({ "metadata": {}, "status": "Success" }), None);
        let message = "command terminated with non-zero exit code: exit status 7";
        let causes = json!({ "causes": [{ "reason": "ExitCode", "message": "7" }] });
        let failed = json!({ "metadata": {}, "status": "Failure", "message": message,
            "reason": "NonZeroExitCode", "details": causes });
        check(Ok(7), failed, Some(message));
        let message = "Internal error occurred: container 3f does not exist";
        let causes = json!({ "causes": [{ "message": "container 3f does not exist" }] });
        let failed = json!({ "metadata": {}, "status": "Failure", "message": message,
            "reason": "InternalError", "code": 500, "details": causes });
        check(Err(Error::not_found("container", "3f")), failed, Some(message));
    }

    #[test]
    fn sizes_are_read_however_they_are_cut() {
        let mut text = br#"{"Width":80,"Height":24}{"Width":0,"Height":1}
            {"Width":120,"Height":50"#
            .to_vec();
        assert_eq!(take_size(&mut text), Some((24, 80)));
        assert_eq!(take_size(&mut text), None);
        text.push(b'}');
        assert_eq!(take_size(&mut text), Some((50, 120)));
        assert_eq!(take_size(&mut text), None);
        text.extend_from_slice(b"rubbish");
        assert_eq!(take_size(&mut text), None);
        assert!(text.is_empty());
        text.extend_from_slice(br#"{"Width":70000,"Height":1}"#);
        assert_eq!(take_size(&mut text), None);
    }
}
