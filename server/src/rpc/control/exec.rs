//! `berth exec`: a command in a container, its input, its output and its code.

use std::sync::Arc;
use std::time::Duration;

use proto::control as v1;
use proto::control::exec_request::Message as Asked;
use proto::control::exec_response::Message;
use tonic::Streaming;

use super::session::{Program, Told, attend};
use super::{Sink, find, send};
use crate::app::App;
use crate::container::exec::{self, ExecSpec};
use crate::container::stream::Output;
use crate::error::{Error, Result};

/// What a command wrote is there when it ends; whom it left running is heard until it is quiet for so long.
const LINGER: Duration = Duration::from_millis(200);

pub(super) async fn exec(
    app: Arc<App>,
    mut requests: Streaming<v1::ExecRequest>,
    sink: Sink<v1::ExecResponse>,
) -> Result<()> {
    let first = requests.message().await.ok().flatten().and_then(|request| request.message);
    let Some(Asked::Spec(spec)) = first else {
        return Err(Error::invalid("message", "the first one must be the spec"));
    };
    if spec.args.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("COMMAND", "must not be empty"));
    }
    let container = find(&app, &spec.container)?;
    let size = spec.terminal_size.unwrap_or_default();
    let wanted = ExecSpec {
        args: spec.args.into_iter().map(String::into_bytes).collect(),
        env: spec.env,
        working_directory: spec.working_directory,
        user: spec.user,
        privileged: spec.privileged,
        terminal: spec.terminal.then_some((size.rows, size.columns)),
        stdin: spec.interactive && !spec.detach,
        killable: false,
        discard: spec.detach,
    };
    let mut running = exec::start(&app, &container, wanted).await?;
    let started = v1::Started {
        container_id: container.id.to_string(),
        name: container.record().spec.name.clone(),
        terminal: spec.terminal,
        stdin: running.streams.stdin.is_some(),
        ..Default::default()
    };
    send(&sink, v1::ExecResponse { message: Some(Message::Started(started)) }).await?;
    let streams = std::mem::take(&mut running.streams);
    if spec.detach {
        if let Some(terminal) = streams.stdout {
            app.tasks.spawn(drain(terminal));
        }
        return Ok(());
    }
    let mut code = 255;
    let handle = running.handle.clone();
    let ended = async { code = running.wait().await };
    attend(requests, &sink, streams, Program::Exec(&handle), ended, LINGER).await?;
    let reason = if code == 0 { "Completed" } else { "Error" }.into();
    send(&sink, Told::Exited(v1::Exited { code, reason }).into()).await
}

/// Keeps the terminal of a command that nobody watches, which would hang up without us, until the last user has gone.
async fn drain(mut terminal: Output) {
    let mut unheard = Vec::new();
    while let Ok(1..) = terminal.read(&mut unheard).await {
        unheard.clear();
    }
}
