//! Releases all that a sandbox's record names. It may run as often as anybody likes:
//! a failed start, a stop, a removal and a new daemon all come here.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::shim::{Shutdown, request};
use rustix::mount::UnmountFlags;

use super::Sandbox;
use crate::app::App;
use crate::blocking;
use crate::container;
use crate::error::{Doing, Error, Result};
use crate::id::SandboxId;
use crate::podnet::cni;
use crate::store::gone_is_fine;

/// The v1 hierarchy in which a shim has a cgroup of its own.
pub const SHIM_CONTROLLER: &str = "freezer";

/// How long a shim may take to end by itself.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(2);
/// How long killed processes may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Ends the containers and the shim of a sandbox, takes its network back, removes its cgroups.
/// The caller holds its lifecycle lock.
///
/// # Errors
/// What could not be released; all else is.
pub async fn teardown(app: &Arc<App>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let mut first = Ok(());
    for container in app.store.containers_of(&sandbox.id) {
        let ended = container::stop::kill(app, &container).await;
        first = first.and(ended);
    }
    let patience = if end_shim(sandbox).await { SHUTDOWN_DEADLINE } else { Duration::ZERO };
    if app.network.cni.holds(&sandbox.id) {
        // Its processes end before others may get its address.
        let ended = {
            let (app, sandbox) = (app.clone(), sandbox.clone());
            let work = move || end_shim_cgroup(&app, &sandbox.id, patience);
            blocking::run("end a shim", work).await
        };
        first = first.and(ended).and(cni::detach(app, &sandbox.id).await);
    }
    let released = {
        let (app, sandbox) = (app.clone(), sandbox.clone());
        blocking::run("release a sandbox", move || release(&app, &sandbox, patience)).await
    };
    first.and(released)
}

/// Asks the shim to end. One that does not say that it will is ended by its cgroup.
async fn end_shim(sandbox: &Sandbox) -> bool {
    let Some(shim) = sandbox.set_shim(None) else { return false };
    let asked = shim.call(request::Call::Shutdown(Shutdown {}), &[], SHUTDOWN_DEADLINE).await;
    if let Err(error) = &asked {
        tracing::debug!(sandbox = %sandbox.id, "shut the shim down: {}", crate::error::chain(error));
    }
    asked.is_ok()
}

fn release(app: &App, sandbox: &Sandbox, patience: Duration) -> Result<()> {
    sandbox.meter.close();
    let record = sandbox.record().clone();
    let mut first = end_shim_cgroup(app, &sandbox.id, patience);
    if let Some(network) = &record.network {
        first = first.and(app.network.detach(network));
    }
    // Plugins that are still to take something back do it there.
    if !app.network.cni.holds(&sandbox.id) {
        first = first.and(unpin(&app.netns_path(&sandbox.id)));
    }
    for container in app.store.containers_of(&sandbox.id) {
        let cgroup = app.cgroups.cgroup(&app.container_cgroup(&record, &container.id));
        first = first.and(remove_cgroup(&cgroup));
    }
    if record.spec.cgroup_parent.is_empty() {
        first = first.and(remove_cgroup(&app.cgroups.cgroup(&app.pod_cgroup(&record))));
    }
    if first.is_ok() {
        sandbox.change(|record| (record.network, record.cni) = (None, None));
    }
    first
}

fn end_shim_cgroup(app: &App, id: &SandboxId, patience: Duration) -> Result<()> {
    let cgroup = app.cgroups.cgroup_in(&app.shim_cgroup(id), SHIM_CONTROLLER);
    let deadline = Instant::now() + patience;
    loop {
        if runtime::cgroup::remove(&cgroup).is_ok() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return remove_cgroup(&cgroup);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Kills what is left in a cgroup and removes it.
///
/// # Errors
/// It is still not empty at the deadline: a process hangs in the kernel.
pub fn remove_cgroup(cgroup: &proto::shim::Cgroup) -> Result<()> {
    let deadline = Instant::now() + KILL_DEADLINE;
    let mut pause = Duration::from_micros(200);
    loop {
        let error = match runtime::cgroup::remove(cgroup) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(error.into());
        }
        runtime::cgroup::kill(cgroup)?;
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Lets a network namespace go, and removes the file that it was pinned on.
///
/// # Errors
/// Those of the system; what is not there is fine.
pub fn unpin(path: &Path) -> Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        // Not mounted, or nothing there.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(errno) => {
            return Err(Error::Io {
                doing: format!("unpin {}", path.display()),
                source: errno.into(),
            });
        }
    }
    gone_is_fine(std::fs::remove_file(path)).doing(|| format!("remove {}", path.display()))
}
