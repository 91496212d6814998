//! StartContainer: opens the log and lets the program run.

use std::sync::Arc;

use proto::shim::{StartContainer, reply, request};

use super::spec::PidTarget;
use super::{Container, State, log};
use crate::app::{App, now};
use crate::blocking;
use crate::error::{Error, Result, chain};
use crate::events;
use crate::shim::CREATE_DEADLINE;

/// Exit code of a container whose program could not be run, as containerd has it.
const START_ERROR: i32 = 128;

/// Starts a created container; returns when its program runs.
///
/// # Errors
/// It is not in the state CREATED; the log cannot be opened; the program cannot be run: then the container
/// has ended with the reason `StartError`.
pub async fn start(app: &Arc<App>, container: &Arc<Container>) -> Result<()> {
    let _one_at_a_time = container.lifecycle.lock().await;
    start_locked(app, container).await
}

/// For whoever holds the lifecycle lock.
///
/// # Errors
/// As [`start`].
pub async fn start_locked(app: &Arc<App>, container: &Arc<Container>) -> Result<()> {
    let state = container.record().state;
    if state != State::Created {
        return Err(Error::WrongState {
            what: format!("container {}", container.id),
            state: format!("{state:?}").to_lowercase(),
            problem: "only a created container can be started; make a new one".into(),
        });
    }
    // A short program's end may be heard of before its start has returned: both are told here then.
    let hold = container.story.hold();
    let started = run_or_end(app, container).await;
    drop(hold);
    events::container(app, container);
    started
}

async fn run_or_end(app: &Arc<App>, container: &Arc<Container>) -> Result<()> {
    match run(app, container).await {
        Ok(()) => {
            let (app, container) = (app.clone(), container.clone());
            blocking::run("write the record", move || app.save_container(&container)).await
        }
        Err(error) => {
            container.change(|record| {
                record.state = State::Exited;
                record.exit_code = START_ERROR;
                record.reason = "StartError".into();
                record.message = chain(&error);
                record.finished_at = now();
            });
            app.save_container_later(container);
            // Its init has ended, or waits for nothing.
            super::stop::end_processes(app, container).await?;
            Err(error)
        }
    }
}

/// A container that joins another's processes is of no use without them: they may have ended since it was made.
fn ensure_target_runs(app: &App, container: &Container) -> Result<()> {
    let PidTarget::Target(target) = container.record().spec.security.pid.clone() else {
        return Ok(());
    };
    let runs = app.store.container(&target).is_ok_and(|target| {
        let state = target.record().state;
        state == State::Running
    });
    if runs {
        return Ok(());
    }
    Err(Error::WrongState {
        what: format!("container {target}, whose processes this one is to see,"),
        state: "not running".into(),
        problem: "name a running container of the pod".into(),
    })
}

async fn run(app: &Arc<App>, container: &Arc<Container>) -> Result<()> {
    ensure_target_runs(app, container)?;
    let log = log::open(app, container).await?;
    let call =
        request::Call::StartContainer(StartContainer { container_id: container.id.to_string() });
    let (result, _) =
        app.shim_of(container)?.call(call, &log.descriptors(), CREATE_DEADLINE).await?;
    if let reply::Result::Started(started) = result {
        container.change(|record| {
            record.started_at = started.started_at;
            // A short program may have ended, and been reported, already.
            if record.state == State::Created {
                record.state = State::Running;
                record.pid = started.pid;
            }
        });
    }
    Ok(())
}
