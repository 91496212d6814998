//! Attach: the streams of a container's own program, for as long as somebody wants them.
//!
//! Output is a copy of what the program writes from now on, beside its log. While a reader is slow the program waits;
//! one that has gone is forgotten.

use std::os::fd::AsFd;
use std::sync::Arc;

use proto::shim::{Attach, CloseStdin, Resize, Stdin, reply, request};

use super::stream::{Input, Output, Streams, Terminal};
use super::{Container, State};
use crate::app::App;
use crate::error::{Doing, Error, Result};
use crate::shim::CALL_DEADLINE;

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct AttachSpec {
    /// Write to it. Where the container has no open input, there is none, and that is no error.
    pub stdin: bool,
    /// Read its output.
    pub stdout: bool,
    /// Read its errors, where they are apart.
    pub stderr: bool,
}

/// Attaches to a container that has not ended. Who attaches before the start misses nothing.
///
/// The input of a container with `stdin_once` goes to the first who wants it, and closes with it, even where this
/// daemon is killed. A terminal stays: whoever comes later can write to it again.
///
/// # Errors
/// The container has ended, or the shim does not answer.
pub async fn attach(
    app: &Arc<App>,
    container: &Arc<Container>,
    spec: AttachSpec,
) -> Result<Streams> {
    let state = container.record().state;
    if !matches!(state, State::Created | State::Running) {
        return Err(Error::WrongState {
            what: format!("container {}", container.id),
            state: format!("{state:?}").to_lowercase(),
            problem: "only a container that has not ended can be attached to; its log is there"
                .into(),
        });
    }
    let stdio = container.record().plan.stdio.clone().unwrap_or_default();
    let mut call = Attach {
        container_id: container.id.to_string(),
        stdin: spec.stdin && stdio.stdin() != Stdin::Null,
        stdout: spec.stdout,
        stderr: spec.stderr && !stdio.terminal,
    };
    let output = |wanted: bool| wanted.then(Output::pipe).transpose().doing(|| "make a pipe");
    let (stdout, stderr) = (output(call.stdout)?.unzip(), output(call.stderr)?.unzip());
    let fds: Vec<_> = [&stdout.1, &stderr.1].into_iter().flatten().map(AsFd::as_fd).collect();
    let shim = app.shim_of(container)?;
    let mut attached = shim.call(request::Call::Attach(call.clone()), &fds, CALL_DEADLINE).await;
    if let (true, Err(Error::WrongState { .. })) = (call.stdin, &attached) {
        // Closed by the end of an attach before this one: its output may still be of interest.
        call.stdin = false;
        attached = shim.call(request::Call::Attach(call.clone()), &fds, CALL_DEADLINE).await;
    }
    let (result, descriptors) = attached?;
    debug_assert!(matches!(result, reply::Result::Attached(_)), "an attach is answered as one");
    let input = descriptors.into_iter().next().map(|fd| {
        if stdio.terminal { Terminal::new(fd).map(Input::Terminal) } else { Input::of_pipe(fd) }
    });
    let stdin = input.transpose().doing(|| "take the input of a container")?;
    if stdin.is_some() && !stdio.terminal && stdio.stdin() == Stdin::Once {
        // Now only we hold it, so that it closes with us.
        close_stdin(app, container).await?;
    }
    Ok(Streams { stdin, stdout: stdout.0, stderr: stderr.0 })
}

/// Sets the size of a container's terminal. A size with a 0 is none, and nothing happens.
///
/// # Errors
/// It has no terminal, or the shim does not answer.
pub async fn resize(app: &App, container: &Container, rows: u32, columns: u32) -> Result<()> {
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let container_id = container.id.to_string();
    let call = Resize { container_id, exec_id: String::new(), rows, columns };
    app.shim_of(container)?.call(request::Call::Resize(call), &[], CALL_DEADLINE).await.map(drop)
}

/// Gives up the shim's own write side of a container's input: it ends when those who are attached have closed theirs.
///
/// # Errors
/// The shim does not answer.
pub async fn close_stdin(app: &App, container: &Container) -> Result<()> {
    let call = CloseStdin { container_id: container.id.to_string() };
    app.shim_of(container)?
        .call(request::Call::CloseStdin(call), &[], CALL_DEADLINE)
        .await
        .map(drop)
}
