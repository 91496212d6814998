//! Calls of the CRI that answer with a URL.

use proto::cri as v1;

use super::{Backend, containers, pods};
use crate::container::{Container, State};
use crate::error::{Error, Result};
use crate::sandbox;
use crate::streaming::{Action, PortForward, RemoteCommand, Wanted, Wants};

#[expect(clippy::unused_async, reason = "every call has one form")]
pub(super) async fn exec(backend: &Backend, request: v1::ExecRequest) -> Result<v1::ExecResponse> {
    let wanted = Wants {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    check(wanted)?;
    let args = containers::command(request.cmd)?;
    let container = containers::find(backend, &request.container_id)?;
    check_runs(&container)?;
    let action = Action::Exec(args);
    let wanted = RemoteCommand { container: container.id.clone(), action, wanted };
    Ok(v1::ExecResponse { url: backend.app.streaming.url(Wanted::RemoteCommand(wanted))? })
}

#[expect(clippy::unused_async, reason = "every call has one form")]
pub(super) async fn attach(
    backend: &Backend,
    request: v1::AttachRequest,
) -> Result<v1::AttachResponse> {
    let wanted = Wants {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    check(wanted)?;
    let container = containers::find(backend, &request.container_id)?;
    check_runs(&container)?;
    let action = Action::Attach;
    let wanted = RemoteCommand { container: container.id.clone(), action, wanted };
    Ok(v1::AttachResponse { url: backend.app.streaming.url(Wanted::RemoteCommand(wanted))? })
}

#[expect(clippy::unused_async, reason = "every call has one form")]
pub(super) async fn port_forward(
    backend: &Backend,
    request: v1::PortForwardRequest,
) -> Result<v1::PortForwardResponse> {
    let ports = request.port.into_iter().map(|port| {
        u16::try_from(port)
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| Error::invalid("port", format!("{port} is not 1 to 65535")))
    });
    let ports = ports.collect::<Result<Vec<u16>>>()?;
    let sandbox = pods::find(backend, &request.pod_sandbox_id)?;
    if sandbox.record().state != sandbox::State::Ready {
        return Err(Error::WrongState {
            what: format!("sandbox {}", sandbox.id),
            state: "not ready".into(),
            problem: "only ports of a sandbox that is ready can be forwarded".into(),
        });
    }
    let wanted = Wanted::PortForward(PortForward { sandbox: sandbox.id.clone(), ports });
    Ok(v1::PortForwardResponse { url: backend.app.streaming.url(wanted)? })
}

/// What holds for the streams of every request.
fn check(wanted: Wants) -> Result<()> {
    if wanted.tty && wanted.stderr {
        return Err(Error::invalid("stderr", "a terminal has one output: ask for stdout only"));
    }
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return Err(Error::invalid("stdin", "one of stdin, stdout and stderr must be set"));
    }
    Ok(())
}

fn check_runs(container: &Container) -> Result<()> {
    let state = container.record().state;
    if state == State::Running {
        return Ok(());
    }
    Err(Error::WrongState {
        what: format!("container {}", container.id),
        state: format!("{state:?}").to_lowercase(),
        problem: "only a running container can be reached".into(),
    })
}
