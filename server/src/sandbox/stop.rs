//! StopPodSandbox: everything ends and is released; the record stays.

use std::sync::Arc;

use super::{Sandbox, State, teardown};
use crate::app::App;
use crate::blocking;
use crate::error::Result;
use crate::events;

/// Stops a sandbox. A second call waits for the first, and then finds little to do.
///
/// # Errors
/// What could not be released: the sandbox is not ready then, and may be stopped again.
pub async fn stop(app: &Arc<App>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let _one_at_a_time = sandbox.lifecycle.lock().await;
    stop_locked(app, sandbox).await
}

/// For whoever holds the lifecycle lock.
///
/// # Errors
/// As [`stop`].
pub async fn stop_locked(app: &Arc<App>, sandbox: &Arc<Sandbox>) -> Result<()> {
    sandbox.change(|record| record.state = State::NotReady);
    let released = teardown::teardown(app, sandbox).await;
    let saved = {
        let (app, sandbox) = (app.clone(), sandbox.clone());
        blocking::run("write the record", move || app.save_sandbox(&sandbox)).await
    };
    events::sandbox(app, sandbox);
    saved.and(released)
}
