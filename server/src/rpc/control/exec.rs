//! `berth exec`: a command in a container, its output and its code.

use std::sync::Arc;

use proto::control as v1;
use proto::control::exec_request::Message as Asked;
use proto::control::exec_response::Message as Told;
use tonic::Streaming;

use super::run::copy;
use super::{Sink, find, send};
use crate::app::App;
use crate::container::exec::{self, ExecSpec};
use crate::container::stream::Streams;
use crate::error::{Error, Result, chain};

pub(super) async fn exec(
    app: Arc<App>,
    mut requests: Streaming<v1::ExecRequest>,
    sink: Sink<v1::ExecResponse>,
) -> Result<()> {
    let first = requests.message().await.ok().flatten().and_then(|request| request.message);
    let Some(Asked::Spec(spec)) = first else {
        return Err(Error::invalid("message", "the first one must be the spec"));
    };
    if spec.terminal || spec.interactive {
        return Err(Error::Unimplemented { what: "exec --tty and --interactive".into() });
    }
    if spec.args.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("COMMAND", "must not be empty"));
    }
    let container = find(&app, &spec.container)?;
    let wanted = ExecSpec {
        args: spec.args.into_iter().map(String::into_bytes).collect(),
        env: spec.env,
        working_directory: spec.working_directory,
        user: spec.user,
        privileged: spec.privileged,
        terminal: None,
        stdin: false,
        killable: false,
        discard: spec.detach,
    };
    let mut running = exec::start(&app, &container, wanted).await?;
    let started = v1::Started { container_id: container.id.to_string(), ..Default::default() };
    send(&sink, told(Told::Started(started))).await?;
    if spec.detach {
        return Ok(());
    }
    let Streams { stdout, stderr, .. } = std::mem::take(&mut running.streams);
    let copying = async {
        tokio::try_join!(
            copy(stdout, &sink, |bytes| told(Told::Stdout(bytes))),
            copy(stderr, &sink, |bytes| told(Told::Stderr(bytes))),
        )
    };
    let signals = async {
        while let Ok(Some(request)) = requests.message().await {
            if let Some(Asked::Signal(number)) = request.message
                && let Err(error) = running.signal(number).await
            {
                tracing::debug!(container = %container.id, number, "pass a signal on: {}", chain(&error));
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = signals => {}
        copied = copying => { copied?; }
    }
    let code = running.wait().await;
    let reason = if code == 0 { "Completed" } else { "Error" }.into();
    send(&sink, told(Told::Exited(v1::Exited { code, reason }))).await
}

fn told(message: Told) -> v1::ExecResponse {
    v1::ExecResponse { message: Some(message) }
}
