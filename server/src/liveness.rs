//! Shims that hold their connection and never answer, because a signal has stopped them.
//!
//! The kernel tells of the end of a shim, but only a parent is told that one was stopped, and after a restart the
//! daemon is nobody's parent. So it looks: one small read of /proc for each shim, and no shim wakes for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::app::App;
use crate::error::Result;
use crate::id::SandboxId;
use crate::sandbox::teardown::SHIM_CONTROLLER;
use crate::{blocking, monitor};

/// How often shims are looked at. With what follows, a pod is given up within five seconds.
const ROUND: Duration = Duration::from_secs(2);
/// A stop that is over by then was somebody's short look at the process.
const CONFIRM: Duration = Duration::from_millis(300);

/// Looks until the daemon ends.
pub async fn run(app: Arc<App>) {
    let mut rounds = interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        let stopped = stopped_of(shims(&app)).await;
        if stopped.is_empty() {
            continue;
        }
        sleep(CONFIRM).await;
        for (id, pid) in stopped_of(stopped).await {
            let problem = format!("its shim (pid {pid}) is stopped by a signal and answers nobody");
            monitor::broken(&app, &id, &problem);
        }
    }
}

fn shims(app: &App) -> Vec<(SandboxId, u32)> {
    let sandboxes = app.store.sandboxes();
    let shims = sandboxes.iter().filter_map(|sandbox| {
        let pid = sandbox.shim()?.pid();
        (pid != 0).then(|| (sandbox.id.clone(), pid))
    });
    shims.collect()
}

async fn stopped_of(shims: Vec<(SandboxId, u32)>) -> Vec<(SandboxId, u32)> {
    if shims.is_empty() {
        return shims;
    }
    let look =
        move || Ok(shims.into_iter().filter(|(_, pid)| is_stopped(*pid)).collect::<Vec<_>>());
    blocking::run("look at the shims", look).await.unwrap_or_default()
}

/// Whether the shim of a sandbox that an earlier daemon has started is stopped. Blocks.
///
/// # Errors
/// The cgroup of the shim cannot be read.
pub fn shim_is_stopped(app: &App, sandbox: &SandboxId) -> Result<bool> {
    let cgroup = app.cgroups.cgroup_in(&app.shim_cgroup(sandbox), SHIM_CONTROLLER);
    let pids = runtime::cgroup::processes(&cgroup)?;
    let pids: Vec<u32> =
        pids.iter().map(|pid| pid.as_raw_nonzero().get().cast_unsigned()).collect();
    // The others are its children: the log's writer may hang on a disk, and the shim does not.
    let shim = pids.iter().find(|pid| stat(**pid).is_some_and(|stat| !pids.contains(&stat.parent)));
    Ok(shim.is_some_and(|pid| is_stopped(*pid)))
}

fn is_stopped(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.state == 'T')
}

/// Of proc_pid_stat(5): T is stopped by a signal, t by a debugger, who lets it go on.
struct Stat {
    state: char,
    parent: u32,
}

fn stat(pid: u32) -> Option<Stat> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(line: &str) -> Option<Stat> {
    // The name may hold anything, blanks and parentheses too.
    let (_, rest) = line.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    Some(Stat { state: fields.next()?.chars().next()?, parent: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat_is_read_behind_any_name() {
        let stat = parse("12 (a) T 1 (b) T 34 12 12 0").unwrap();
        assert_eq!((stat.state, stat.parent), ('T', 34));
        assert!(parse("12 (a) T").is_none());
        assert!(parse("").is_none());
    }

    #[test]
    fn this_process_runs() {
        let own = std::process::id();
        assert!(!is_stopped(own));
        assert_ne!(stat(own).unwrap().parent, 0);
        assert!(stat(0).is_none());
    }
}
