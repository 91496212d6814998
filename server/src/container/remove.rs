//! RemoveContainer: ends it, and removes its writable layer and its record. Its log stays: it is the client's.

use std::sync::Arc;

use proto::shim::{RemoveContainer, request};

use super::{Container, stop};
use crate::app::App;
use crate::blocking;
use crate::error::{Doing, Result};
use crate::events;
use crate::sandbox::teardown::remove_cgroup;
use crate::shim::CALL_DEADLINE;
use crate::store::gone_is_fine;

/// Removes a container, whatever its state.
///
/// # Errors
/// It could not be ended or removed; it stays then, and may be removed again.
pub async fn remove(app: &Arc<App>, container: &Arc<Container>) -> Result<()> {
    // Before the lock: a start or a restart that holds it must see that it is over.
    container.change(|record| record.stopped = true);
    stop::kill(app, container).await?;
    let _one_at_a_time = container.lifecycle.lock().await;
    if app.store.container(container.id.as_str()).is_err() {
        return Ok(());
    }
    stop::kill(app, container).await?;
    discard(app, container).await
}

/// Takes away all that a container has that has ended, or that was never started.
///
/// # Errors
/// Those of the calls.
pub async fn discard(app: &Arc<App>, container: &Arc<Container>) -> Result<()> {
    if let Ok(shim) = app.shim_of(container) {
        let call = request::Call::RemoveContainer(RemoveContainer {
            container_id: container.id.to_string(),
        });
        // A shim that is just ending forgets it anyway.
        match shim.call(call, &[], CALL_DEADLINE).await {
            Ok(_) | Err(_) => {}
        }
    }
    let sandbox = app.sandbox_of(container)?;
    let (app, container) = (app.clone(), container.clone());
    blocking::run("remove a container", move || {
        let path = app.container_cgroup(&sandbox.record(), &container.id);
        remove_cgroup(&app.cgroups.cgroup(&path))?;
        throw_away(&app, &container)?;
        app.erase_container(&container)?;
        app.store.forget_container(&container);
        app.layers.forget(&container.id);
        events::container_removed(&app, &container);
        Ok(())
    })
    .await
}

/// The writable layer goes out of sight at once; its files are removed behind it.
fn throw_away(app: &App, container: &Container) -> Result<()> {
    let directory = app.store.container_directory(&container.id);
    let trash = app.store.trash().join(container.id.as_str());
    gone_is_fine(std::fs::rename(&directory, &trash))
        .doing(|| format!("remove {}", directory.display()))?;
    app.tasks.spawn_blocking(move || {
        // What cannot be removed now is removed at the next start.
        if let Err(error) = images::remove_tree(&trash) {
            tracing::warn!(path = %trash.display(), %error, "remove a writable layer");
        }
    });
    Ok(())
}
