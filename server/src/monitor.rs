//! What shims tell by themselves: ends of containers and execs, and the end of a shim itself.

use std::sync::Arc;

use proto::shim::{Exit, event};
use tokio::sync::mpsc;

use crate::app::App;
use crate::container::{self, Container, State, restart};
use crate::error::chain;
use crate::events;
use crate::id::SandboxId;
use crate::sandbox::{self, teardown};
use crate::shim::Told;

/// Takes what is told, in order, until the daemon ends. It never waits for a disk or a shim.
pub async fn run(app: Arc<App>, mut told: mpsc::UnboundedReceiver<Told>) {
    while let Some(told) = told.recv().await {
        match told {
            Told::Event(_, event::Event::ContainerExited(exited)) => {
                if let (Ok(container), Some(exit)) =
                    (app.store.container(&exited.container_id), exited.exit)
                {
                    container_ended(&app, &container, &exit);
                }
            }
            Told::Event(_, event::Event::ExecExited(exited)) => {
                app.execs.ended(&exited.exec_id, exited.exit.unwrap_or_default());
            }
            Told::Event(sandbox, event::Event::InitExited(_)) => {
                broken(&app, &sandbox, "the pod's init has ended");
            }
            Told::Gone(sandbox) => broken(&app, &sandbox, "the shim has ended"),
        }
    }
}

/// A container has ended, and this is how.
pub fn container_ended(app: &Arc<App>, container: &Arc<Container>, exit: &Exit) {
    let known = container.record().state == State::Exited;
    if known {
        return;
    }
    container.change(|record| {
        record.state = State::Exited;
        record.exit_code = i32::try_from(exit.code).unwrap_or(255);
        record.finished_at = exit.finished_at.max(record.started_at);
        record.pid = 0;
        record.paused = false;
        record.reason = match exit {
            Exit { oom_killed: true, .. } => "OOMKilled",
            Exit { code: 0, .. } => "Completed",
            Exit { .. } => "Error",
        }
        .into();
    });
    tracing::info!(container = %container.id, code = exit.code, oom = exit.oom_killed, "container ended");
    container.meter.close();
    app.save_container_later(container);
    events::container(app, container);
    restart::ended(app, container);
}

/// A sandbox without its shim or its init is good for nothing: what is left of it is ended and released.
pub fn broken(app: &Arc<App>, id: &SandboxId, problem: &str) {
    let Ok(sandbox) = app.store.sandbox(id.as_str()) else { return };
    // Stop and remove end the shim themselves.
    if sandbox.record().state != sandbox::State::Ready {
        return;
    }
    tracing::warn!(sandbox = %id, "{problem}: the sandbox is no longer ready");
    sandbox.change(|record| {
        record.state = sandbox::State::NotReady;
        record.problem = problem.into();
    });
    events::sandbox(app, &sandbox);
    let (app, sandbox) = (app.clone(), sandbox.clone());
    app.clone().tasks.spawn(async move {
        let _one_at_a_time = sandbox.lifecycle.lock().await;
        sandbox.set_shim(None);
        let released = teardown::teardown(&app, &sandbox).await;
        for container in app.store.containers_of(&sandbox.id) {
            container::stop::set_unknown(&app, &container);
        }
        if let Err(error) = released {
            tracing::error!(sandbox = %sandbox.id, "release a broken sandbox: {}", chain(&error));
        }
        let saved = {
            let (app, sandbox) = (app.clone(), sandbox.clone());
            crate::blocking::run("write the record", move || app.save_sandbox(&sandbox)).await
        };
        if let Err(error) = saved {
            tracing::error!(sandbox = %sandbox.id, "{}", chain(&error));
        }
    });
}
