//! StopContainer: a signal, a grace period, and then whatever it takes until the cgroup is empty.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::shim::{Signal, request};

use super::{Container, State};
use crate::app::{App, now};
use crate::blocking;
use crate::error::{Error, Result, chain};
use crate::events;
use crate::sandbox::teardown::remove_cgroup;
use crate::shim::SIGNAL_DEADLINE;

/// SIGTERM
const DEFAULT_SIGNAL: u32 = 15;
/// Killed processes are gone by then, or hang in the kernel.
const KILL_DEADLINE: Duration = Duration::from_secs(30);
/// How long a killed container's exit may take to be told before it is killed again.
const KILL_ROUND: Duration = Duration::from_millis(250);
/// Longest grace period: a year.
const MAX_GRACE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Stops a container. Of several calls the stop signal is sent by the first, and the earliest deadline holds.
///
/// # Errors
/// It still has processes when all has been tried.
pub async fn stop(app: &Arc<App>, container: &Arc<Container>, grace: Duration) -> Result<()> {
    if has_ended(container) {
        return Ok(());
    }
    container.change(|record| record.stopped = true);
    let deadline = Instant::now() + grace.min(MAX_GRACE);
    let first = {
        let mut stop = container.stop();
        stop.deadline = Some(stop.deadline.map_or(deadline, |other| other.min(deadline)));
        !grace.is_zero() && !std::mem::replace(&mut stop.signalled, true)
    };
    // Whoever waits for a later deadline looks again.
    container.change(|_| {});
    if first && container.record().state == State::Running {
        send_stop_signal(app, container).await;
    }
    if !wait_for_end(container).await {
        kill(app, container).await?;
    }
    *container.stop() = super::Stop::default();
    Ok(())
}

fn has_ended(container: &Container) -> bool {
    container.record().state == State::Exited
}

/// A signal that cannot be sent is made up for by the end of the grace period.
async fn send_stop_signal(app: &Arc<App>, container: &Arc<Container>) {
    let number = {
        let record = container.record();
        record.spec.stop_signal.or(record.image.stop_signal).unwrap_or(DEFAULT_SIGNAL)
    };
    if let Err(error) = signal(app, container, number).await {
        tracing::warn!(container = %container.id, signal = number, "send the stop signal: {}", chain(&error));
    }
    if container.record().paused {
        // A frozen process takes no signal.
        let thawed = super::update::set_paused(app, container, false).await;
        if let Err(error) = thawed {
            tracing::warn!(container = %container.id, "thaw a container to stop it: {}", chain(&error));
        }
    }
}

/// Sends a signal to the container's init.
///
/// # Errors
/// The shim is gone, or there is no such signal.
pub async fn signal(app: &Arc<App>, container: &Arc<Container>, number: u32) -> Result<()> {
    let signal =
        Signal { container_id: container.id.to_string(), signal: number, ..Default::default() };
    app.shim_of(container)?
        .call(request::Call::Signal(signal), &[], SIGNAL_DEADLINE)
        .await
        .map(drop)
}

/// True when the container ended before the earliest deadline of all stops.
async fn wait_for_end(container: &Arc<Container>) -> bool {
    let mut watch = container.watch();
    loop {
        if has_ended(container) {
            return true;
        }
        let deadline = container.stop().deadline;
        let left = deadline
            .map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return false;
        }
        // A change is the end, or an earlier deadline.
        match tokio::time::timeout(left, watch.changed()).await {
            Ok(_) | Err(_) => {}
        }
    }
}

/// Kills all processes of a container, by force and until there are none, and waits for its end to be told.
/// An end that nobody can tell any more is exit code 255, reason Unknown.
///
/// # Errors
/// Processes remain at the deadline: they hang in the kernel.
pub async fn kill(app: &Arc<App>, container: &Arc<Container>) -> Result<()> {
    let deadline = Instant::now() + KILL_DEADLINE;
    while !has_ended(container) {
        let asked = kill_by_shim(app, container).await;
        if asked.is_err() {
            // Without a shim nobody tells the end.
            end_processes(app, container).await?;
            set_unknown(app, container);
            break;
        }
        let ended = container.wait_until(KILL_ROUND, |record| record.state == State::Exited).await;
        if !ended && Instant::now() >= deadline {
            return Err(Error::Timeout {
                doing: format!("kill container {}", container.id),
                after: KILL_DEADLINE,
            });
        }
    }
    Ok(())
}

async fn kill_by_shim(app: &Arc<App>, container: &Arc<Container>) -> Result<()> {
    let signal =
        Signal { container_id: container.id.to_string(), kill_all: true, ..Default::default() };
    app.shim_of(container)?
        .call(request::Call::Signal(signal), &[], SIGNAL_DEADLINE)
        .await
        .map(drop)
}

/// Ends what is in the container's cgroup without the shim, and removes the cgroup.
///
/// # Errors
/// Processes remain at the deadline.
pub async fn end_processes(app: &Arc<App>, container: &Arc<Container>) -> Result<()> {
    let sandbox = app.sandbox_of(container)?;
    let path = app.container_cgroup(&sandbox.record(), &container.id);
    let cgroup = app.cgroups.cgroup(&path);
    blocking::run("end a container's processes", move || remove_cgroup(&cgroup)).await
}

/// It has ended, and nobody saw how.
pub fn set_unknown(app: &Arc<App>, container: &Arc<Container>) {
    container.change(|record| {
        if record.state != State::Exited {
            record.state = State::Exited;
            record.exit_code = 255;
            record.reason = "Unknown".into();
            record.message = "the shim of its sandbox ended before it told the exit code".into();
            record.finished_at = now();
            record.pid = 0;
        }
    });
    container.meter.close();
    app.save_container_later(container);
    events::container(app, container);
}
