//! UpdateContainerResources, and pause and resume.

use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::cgroup::resources::{self, Resources};

use super::{Container, State};
use crate::app::App;
use crate::blocking;
use crate::error::{Error, Result};

/// Processes are frozen by then, or hang in the kernel.
const FREEZE_DEADLINE: Duration = Duration::from_secs(5);

/// Changes limits: what is not set stays as it is. All of it holds, or nothing.
///
/// # Errors
/// The container has ended, or a limit cannot be set.
pub async fn update(app: &Arc<App>, container: &Arc<Container>, wanted: Resources) -> Result<()> {
    let _one_at_a_time = container.lifecycle.lock().await;
    if !matches!(container.record().state, State::Created | State::Running) {
        return Err(not_running(container, "limits of an ended container hold for nothing"));
    }
    let merged = merge(container.record().resources.clone(), wanted);
    let path = app.container_cgroup(&app.sandbox_of(container)?.record(), &container.id);
    let (app, container) = (app.clone(), container.clone());
    blocking::run("update limits", move || {
        let writes = resources::writes(&merged, app.cgroups.unified)?;
        resources::update(&app.cgroups.cgroup(&path), writes)?;
        container.change(|record| record.resources = merged);
        app.save_container(&container)
    })
    .await
}

fn not_running(container: &Container, problem: &str) -> Error {
    Error::WrongState {
        what: format!("container {}", container.id),
        state: format!("{:?}", container.record().state).to_lowercase(),
        problem: problem.into(),
    }
}

/// `wanted` over `current`.
pub fn merge(current: Resources, wanted: Resources) -> Resources {
    let text = |wanted: String, current: String| if wanted.is_empty() { current } else { wanted };
    let mut hugepage_limits = current.hugepage_limits;
    hugepage_limits.extend(wanted.hugepage_limits);
    let mut unified = current.unified;
    unified.extend(wanted.unified);
    Resources {
        cpu_shares: wanted.cpu_shares.or(current.cpu_shares),
        cpu_quota: wanted.cpu_quota.or(current.cpu_quota),
        cpu_period: wanted.cpu_period.or(current.cpu_period),
        cpuset_cpus: text(wanted.cpuset_cpus, current.cpuset_cpus),
        cpuset_mems: text(wanted.cpuset_mems, current.cpuset_mems),
        memory_limit: wanted.memory_limit.or(current.memory_limit),
        memory_swap_limit: wanted.memory_swap_limit.or(current.memory_swap_limit),
        pids_limit: wanted.pids_limit.or(current.pids_limit),
        hugepage_limits,
        unified,
    }
}

/// Freezes or thaws all processes of a running container.
///
/// # Errors
/// It does not run, or does not freeze in time: then it is thawed again.
pub async fn set_paused(app: &Arc<App>, container: &Arc<Container>, paused: bool) -> Result<()> {
    if container.record().state != State::Running {
        return Err(not_running(container, "only a running container can be paused and resumed"));
    }
    let path = app.container_cgroup(&app.sandbox_of(container)?.record(), &container.id);
    let (app, container) = (app.clone(), container.clone());
    blocking::run("freeze or thaw a container", move || {
        let cgroup = app.cgroups.cgroup(&path);
        if paused {
            freeze(&cgroup)?;
        } else {
            runtime::cgroup::thaw(&cgroup)?;
        }
        container.change(|record| record.paused = paused);
        app.save_container(&container)
    })
    .await
}

fn freeze(cgroup: &proto::shim::Cgroup) -> Result<()> {
    runtime::cgroup::freeze(cgroup)?;
    let deadline = Instant::now() + FREEZE_DEADLINE;
    while !runtime::cgroup::is_frozen(cgroup)? {
        if Instant::now() >= deadline {
            runtime::cgroup::thaw(cgroup)?;
            return Err(Error::Timeout {
                doing: "freeze a container".into(),
                after: FREEZE_DEADLINE,
            });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
