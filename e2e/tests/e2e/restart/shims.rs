//! Shims that end, or stand still.

use anyhow::{Context, Result};
use e2e::pod::{ContainerBuilder, Pod};
use e2e::{Cx, cgroup, same, test};
use k8s_cri::v1::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The shim of a pod: the one of its processes there whose parent is not.
fn shim(cx: &Cx, pod: &Pod) -> Result<Pid> {
    let needle = format!("{}/shims/{}", cx.daemon.instance, pod.id);
    let dirs = cgroup::find(&needle)?;
    let pids: Vec<i32> = dirs.iter().flat_map(|dir| cgroup::processes(dir)).collect();
    let is_child = |pid: &&i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        parent.and_then(|p| p.trim().parse().ok()).is_some_and(|p: i32| pids.contains(&p))
    };
    let shim = pids.iter().find(|pid| !is_child(pid)).context("the pod has no shim")?;
    Ok(Pid::from_raw(*shim))
}

struct Case {
    pod: Pod,
    container: String,
    pid: i32,
}

async fn case(cx: &Cx, image: &str) -> Result<Case> {
    let pod = cx.run_pod(cx.pod().network()).await?;
    let container = cx.run(&pod, &ContainerBuilder::new(image).shell("sleep 1000 & wait")).await?;
    let pid = cx.cri().pid(&container).await?;
    Ok(Case { pod, container, pid })
}

/// The pod is given up: its state, its container's end, and its processes say so.
async fn given_up(cx: &Cx, case: &Case) -> Result<()> {
    e2e::eventually(5, "the pod is not ready", async || {
        let status = cx.cri().pod_status(&case.pod.id).await?.status.context("no status")?;
        Ok(status.state() == PodSandboxState::SandboxNotready)
    })
    .await?;
    let status = cx.wait(&case.container).await?;
    same("end", (status.exit_code, status.reason.as_str()), (255, "Unknown"))?;
    is_gone(case.pid).await
}

/// Whoever inherits a killed process may take a moment to collect it.
async fn is_gone(pid: i32) -> Result<()> {
    e2e::eventually(5, "the container's process is gone", async || {
        Ok(!std::path::Path::new(&format!("/proc/{pid}")).exists())
    })
    .await
}

async fn still_runs(cx: &Cx, case: &Case) -> Result<()> {
    same("pid", cx.cri().pid(&case.container).await?, case.pid)?;
    cx.exec(&case.container, &["true"]).await.map(drop)
}

#[test]
fn a_shim_that_is_killed_or_stopped_costs_its_own_pod_only() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let (killed, stopped, well) =
            (case(cx, &image).await?, case(cx, &image).await?, case(cx, &image).await?);
        kill(shim(cx, &killed.pod)?, Signal::SIGKILL)?;
        kill(shim(cx, &stopped.pod)?, Signal::SIGSTOP)?;
        still_runs(cx, &well).await?;
        given_up(cx, &killed).await?;
        given_up(cx, &stopped).await?;
        still_runs(cx, &well).await?;
        for case in [&killed, &stopped] {
            cx.cri().stop_pod(&case.pod.id).await?;
            cx.cri().remove_pod(&case.pod.id).await?;
        }
        still_runs(cx, &well).await
    });
}

#[test]
fn a_pod_with_a_stopped_shim_can_be_removed_at_once() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let stopped = case(cx, &image).await?;
        kill(shim(cx, &stopped.pod)?, Signal::SIGSTOP)?;
        cx.cri().stop(&stopped.container, 1).await?;
        cx.cri().stop_pod(&stopped.pod.id).await?;
        cx.cri().remove_pod(&stopped.pod.id).await?;
        is_gone(stopped.pid).await
    });
}

#[test]
fn a_start_waits_for_no_mute_shim() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let (stopped, dead, well) =
            (case(cx, &image).await?, case(cx, &image).await?, case(cx, &image).await?);
        let (stop, die) = (shim(cx, &stopped.pod)?, shim(cx, &dead.pod)?);
        cx.daemon.kill()?;
        kill(stop, Signal::SIGSTOP)?;
        kill(die, Signal::SIGKILL)?;
        cx.daemon.restart().await?;
        still_runs(cx, &well).await?;
        given_up(cx, &stopped).await?;
        given_up(cx, &dead).await
    });
}
