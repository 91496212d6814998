//! RemovePodSandbox: stop, remove the containers, forget.

use std::sync::Arc;

use super::{Sandbox, stop};
use crate::app::App;
use crate::blocking;
use crate::container;
use crate::error::{Doing, Result};
use crate::events;
use crate::store::gone_is_fine;

/// Removes a sandbox with its containers, whatever their state.
///
/// # Errors
/// What could not be released; the sandbox stays then, not ready, and may be removed again.
pub async fn remove(app: &Arc<App>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let _one_at_a_time = sandbox.lifecycle.lock().await;
    if app.store.sandbox(sandbox.id.as_str()).is_err() {
        return Ok(());
    }
    // A plugin that is no longer there must not keep the sandbox for ever.
    app.network.cni.abandon(&sandbox.id);
    stop::stop_locked(app, sandbox).await?;
    for container in app.store.containers_of(&sandbox.id) {
        container::remove::remove(app, &container).await?;
    }
    let (app, sandbox) = (app.clone(), sandbox.clone());
    blocking::run("forget a sandbox", move || {
        erase(&app, &sandbox)?;
        app.store.forget_sandbox(&sandbox);
        events::sandbox_removed(&app, &sandbox);
        Ok(())
    })
    .await
}

/// Takes the records of a sandbox that is torn down off the disk. Blocks.
///
/// # Errors
/// Those of the file system; may be repeated.
pub fn erase(app: &App, sandbox: &Sandbox) -> Result<()> {
    remove_logs(sandbox)?;
    app.erase_sandbox(sandbox)
}

/// Logs of a pod of `berth run` go with it; those of the CRI are the client's.
fn remove_logs(sandbox: &Sandbox) -> Result<()> {
    let record = sandbox.record().clone();
    match record.spec.log_directory.filter(|_| record.spec.local) {
        Some(logs) => gone_is_fine(std::fs::remove_dir_all(&logs))
            .doing(|| format!("remove {}", logs.display())),
        None => Ok(()),
    }
}
