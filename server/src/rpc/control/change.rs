//! Calls that change a container: stop, kill, remove, pause.

use std::time::Duration;

use proto::control as v1;

use super::super::Backend;
use super::find;
use crate::container::{self, State, restart};
use crate::error::{Error, Result};
use crate::signal;

pub(super) async fn stop(backend: &Backend, request: v1::StopRequest) -> Result<v1::StopResponse> {
    let container = find(&backend.app, &request.container)?;
    let default = backend.app.config.runtime.stop_timeout;
    let grace = request.timeout.map_or(default, |seconds| Duration::from_secs(seconds.into()));
    let (app, id) = (backend.app.clone(), container.id.to_string());
    backend
        .calls
        .detach(async move { container::stop::stop(&app, &container, grace).await })
        .await?;
    Ok(v1::StopResponse { id })
}

pub(super) async fn kill(backend: &Backend, request: v1::KillRequest) -> Result<v1::KillResponse> {
    let container = find(&backend.app, &request.container)?;
    let name = if request.signal.is_empty() { "KILL" } else { &request.signal };
    let number = signal::parse(name)
        .ok_or_else(|| Error::invalid("--signal", format!("{name:?} is no signal")))?;
    if container.record().state != State::Running {
        return Err(Error::WrongState {
            what: format!("container {}", container.id),
            state: "not running".into(),
            problem: "there is nothing to send a signal to".into(),
        });
    }
    if number == 9 {
        // As docker has it: a container that was killed by hand is not started again.
        container.change(|record| record.stopped = true);
    }
    container::stop::signal(&backend.app, &container, number).await?;
    Ok(v1::KillResponse { id: container.id.to_string() })
}

pub(super) async fn remove(
    backend: &Backend,
    request: v1::RemoveRequest,
) -> Result<v1::RemoveResponse> {
    let container = find(&backend.app, &request.container)?;
    if container.record().state == State::Running && !request.force {
        return Err(Error::WrongState {
            what: format!("container {}", container.id),
            state: "running".into(),
            problem: "stop it first, or remove it by force (-f)".into(),
        });
    }
    let (app, id) = (backend.app.clone(), container.id.to_string());
    backend.calls.detach(async move { restart::remove_any(&app, &container).await }).await?;
    Ok(v1::RemoveResponse { id })
}

pub(super) async fn set_paused(backend: &Backend, name: &str, paused: bool) -> Result<String> {
    let container = find(&backend.app, name)?;
    let (app, id) = (backend.app.clone(), container.id.to_string());
    backend
        .calls
        .detach(async move { container::update::set_paused(&app, &container, paused).await })
        .await?;
    Ok(id)
}
