//! `berth run --restart`: a container that has ended is started again, with growing pauses.

use std::sync::Arc;
use std::time::Duration;

use proto::shim::{RemoveContainer, request};

use super::spec::Restart;
use super::{Container, State, create, remove, start};
use crate::app::{App, now};
use crate::error::{Result, chain};
use crate::shim::CALL_DEADLINE;

/// Pause before the first restart; it doubles each time, as docker's does.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// A container that ran for so long begins with the first pause again.
const GOOD_RUN: i64 = 10_000_000_000;

/// A container has ended: start it again, or remove it, if that was asked for.
pub fn ended(app: &Arc<App>, container: &Arc<Container>) {
    let (local, again) = {
        let record = container.record();
        let local = record.spec.local.clone();
        let again = local.as_ref().is_some_and(|local| {
            wants_restart(local.restart, record.exit_code, record.restarts, record.stopped)
        });
        (local, again)
    };
    let Some(local) = local else { return };
    let (app, container) = (app.clone(), container.clone());
    if again {
        app.clone().tasks.spawn(async move { restart(&app, &container).await });
    } else if local.remove {
        app.clone().tasks.spawn(async move {
            container.unattended().await;
            if let Err(error) = remove_with_pod(&app, &container).await {
                tracing::error!(container = %container.id, "remove a container that has ended: {}", chain(&error));
            }
        });
    }
}

fn wants_restart(restart: Restart, code: i32, restarts: u32, stopped: bool) -> bool {
    match restart {
        Restart::No => false,
        Restart::OnFailure(limit) => !stopped && code != 0 && (limit == 0 || restarts < limit),
        // Docker's "always" differs from "unless-stopped" only when its daemon starts.
        Restart::Always | Restart::UnlessStopped => !stopped,
    }
}

/// A pod of `berth run` has one container and goes with it.
///
/// # Errors
/// Those of the removal.
pub async fn remove_with_pod(app: &Arc<App>, container: &Arc<Container>) -> Result<()> {
    let sandbox = app.sandbox_of(container)?;
    crate::sandbox::remove::remove(app, &sandbox).await
}

async fn restart(app: &Arc<App>, container: &Arc<Container>) {
    let (restarts, ran) = {
        let record = container.record();
        (record.restarts, record.finished_at - record.started_at)
    };
    let pauses = if ran > GOOD_RUN { 0 } else { restarts };
    let pause = FIRST_PAUSE.saturating_mul(1 << pauses.min(16)).min(MAX_PAUSE);
    if container.wait_until(pause, |record| record.stopped).await {
        return;
    }
    if let Err(error) = try_restart(app, container).await {
        tracing::warn!(container = %container.id, "restart: {}", chain(&error));
        // It has failed, which is an end like any other.
        ended(app, container);
    }
}

async fn try_restart(app: &Arc<App>, container: &Arc<Container>) -> Result<()> {
    let _one_at_a_time = container.lifecycle.lock().await;
    let removed = app.store.container(container.id.as_str()).is_err();
    if removed || container.record().stopped {
        return Ok(());
    }
    container.change(|record| record.restarts += 1);
    let sandbox = app.sandbox_of(container)?;
    let forget =
        request::Call::RemoveContainer(RemoveContainer { container_id: container.id.to_string() });
    app.shim_of(container)?.call(forget, &[], CALL_DEADLINE).await?;
    let filter = create::filter_of(app, container).await?;
    create::renew_work_directory(app, container).await?;
    container.change(|record| {
        record.state = State::Creating;
        record.exit_code = 0;
        record.reason.clear();
        record.message.clear();
        record.finished_at = 0;
    });
    let made = create::call_shim(&sandbox, container, filter.as_deref()).await;
    if let Err(error) = made {
        container.change(|record| {
            record.state = State::Exited;
            record.exit_code = 128;
            record.reason = "StartError".into();
            record.message = chain(&error);
            record.finished_at = now();
        });
        return Err(error);
    }
    start::start_locked(app, container).await
}

/// What [`remove::remove`] does for a container of the CRI, for the command line: its pod goes too.
///
/// # Errors
/// Those of the removal.
pub async fn remove_any(app: &Arc<App>, container: &Arc<Container>) -> Result<()> {
    if container.record().spec.local.is_some() {
        remove_with_pod(app, container).await
    } else {
        remove::remove(app, container).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_mean_what_docker_means() {
        assert!(!wants_restart(Restart::No, 1, 0, false));
        assert!(wants_restart(Restart::OnFailure(0), 1, 99, false));
        assert!(wants_restart(Restart::OnFailure(3), 1, 2, false));
        assert!(!wants_restart(Restart::OnFailure(3), 1, 3, false));
        assert!(!wants_restart(Restart::OnFailure(0), 0, 0, false));
        assert!(wants_restart(Restart::Always, 0, 0, false));
        assert!(!wants_restart(Restart::Always, 0, 0, true));
        assert!(!wants_restart(Restart::UnlessStopped, 1, 0, true));
    }
}
