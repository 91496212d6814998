//! `berth attach`: the input and output of a container that runs, until its end.

use std::sync::Arc;
use std::time::Duration;

use proto::control as v1;
use proto::control::attach_request::Message as Asked;
use proto::control::attach_response::Message;
use tonic::Streaming;

use super::session::{Program, Told, attend};
use super::{Sink, find, send};
use crate::app::App;
use crate::container::attach::{self, AttachSpec};
use crate::container::{Container, State};
use crate::error::{Error, Result};

/// After a container has ended, its output is read on until it has been quiet for so long: a log on a slow disk holds
/// the last of it up.
pub(super) const LINGER: Duration = Duration::from_secs(10);

pub(super) async fn attach(
    app: Arc<App>,
    mut requests: Streaming<v1::AttachRequest>,
    sink: Sink<v1::AttachResponse>,
) -> Result<()> {
    let first = requests.message().await.ok().flatten().and_then(|request| request.message);
    let Some(Asked::Spec(spec)) = first else {
        return Err(Error::invalid("message", "the first one must be the spec"));
    };
    let container = find(&app, &spec.container)?;
    let attending = container.attend();
    let wanted = AttachSpec { stdin: spec.stdin, stdout: true, stderr: true };
    let streams = attach::attach(&app, &container, wanted).await?;
    let started = started(&container, streams.stdin.is_some());
    send(&sink, v1::AttachResponse { message: Some(Message::Started(started)) }).await?;
    let program = Program::Init(&app, &container);
    attend(requests, &sink, streams, program, ended(&container), LINGER).await?;
    drop(attending);
    send(&sink, Told::Exited(exited(&container)).into()).await
}

/// What a client is told of a container that it has joined.
pub(super) fn started(container: &Container, stdin: bool) -> v1::Started {
    let record = container.record();
    v1::Started {
        container_id: container.id.to_string(),
        pod_id: record.sandbox.to_string(),
        name: record.spec.name.clone(),
        terminal: record.spec.tty,
        stdin,
    }
}

/// The end of a container.
pub(super) async fn ended(container: &Container) {
    // The record lives as long as we hold the container, even when it is removed meanwhile.
    container.wait_until(Duration::MAX, |record| record.state == State::Exited).await;
}

/// How it ended.
pub(super) fn exited(container: &Container) -> v1::Exited {
    let record = container.record();
    v1::Exited { code: record.exit_code, reason: record.reason.clone() }
}
