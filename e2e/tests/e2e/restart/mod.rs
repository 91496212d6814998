//! The daemon is killed, shims are killed and stopped, the machine starts anew: nothing is lost, nothing is left.

mod churn;
mod older_shim;
mod power;
mod shims;
mod strikes;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cri::Reply;
use e2e::pod::{ContainerBuilder, log_text, parse_log};
use e2e::{Cx, same, test};
use k8s_cri::v1::*;
use tonic::Code;

/// A shell loop that writes the numbers from 1, one a line.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i; usleep 3000; done";

/// Repeats a call while no daemon answers, as a kubelet does. Every other answer is the caller's.
async fn until_answered<T>(what: &str, call: impl AsyncFn() -> Reply<T>) -> Result<T> {
    for _ in 0..600 {
        match call().await {
            Ok(answer) => return Ok(answer),
            Err(status) if is_gone(&status) => {}
            Err(status) => return Err(status).with_context(|| what.to_owned()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("{what}: no daemon answered")
}

/// What a client sees of a daemon that was killed: a connection that breaks or is refused.
fn is_gone(status: &tonic::Status) -> bool {
    let text = format!("{status:?}");
    let broken = ["h2 protocol error", "connection", "transport", "broken pipe", "cancel"];
    status.code() == Code::Unavailable
        || (status.code() != Code::NotFound
            && broken.iter().any(|word| text.to_lowercase().contains(word)))
}

/// That a log of [`COUNT`] has every line, once and in order. Returns the last number.
fn counted(log: &Path) -> Result<u64> {
    let bytes = std::fs::read(log).with_context(|| format!("read {}", log.display()))?;
    let text = String::from_utf8(log_text(&parse_log(&bytes)?, "stdout"))?;
    let mut last = 0;
    for line in text.lines() {
        let number: u64 = line.parse().with_context(|| format!("line {line:?} after {last}"))?;
        ensure!(number == last + 1, "line {number} after {last}");
        last = number;
    }
    Ok(last)
}

#[test]
fn pods_go_on_without_their_daemon() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod().network()).await?;
        let counting = ContainerBuilder::new(&image).shell(COUNT);
        let id = cx.run(&pod, &counting).await?;
        let created = cx.create(&pod, &ContainerBuilder::new(&image).shell("exit 3")).await?;
        let (pid, before) = (cx.cri().pid(&id).await?, cx.status(&id).await?);
        let sandbox = cx.cri().pod_status(&pod.id).await?.status;
        for _ in 0..3 {
            cx.daemon.kill()?;
            let dead = counted(&pod.log(&counting.config))?;
            e2e::eventually(10, "the log goes on without a daemon", async || {
                Ok(counted(&pod.log(&counting.config))? > dead)
            })
            .await?;
            cx.daemon.restart().await?;
            same("pid", cx.cri().pid(&id).await?, pid)?;
            same("status", cx.status(&id).await?, before.clone())?;
            same("sandbox", cx.cri().pod_status(&pod.id).await?.status, sandbox.clone())?;
            let alive = counted(&pod.log(&counting.config))?;
            e2e::eventually(10, "the log goes on", async || {
                Ok(counted(&pod.log(&counting.config))? > alive)
            })
            .await?;
        }
        // What was created before can be started after, and a file that was rotated away is let go.
        cx.cri().start(&created).await?;
        same("exit code", cx.wait(&created).await?.exit_code, 3)?;
        std::fs::rename(pod.log(&counting.config), cx.logs().join("rotated"))?;
        cx.cri().reopen_log(&id).await?;
        cx.exec(&id, &["true"]).await?;
        cx.cri().stop(&id, 0).await?;
        let (old, new) =
            (std::fs::read(cx.logs().join("rotated"))?, std::fs::read(pod.log(&counting.config))?);
        std::fs::write(cx.logs().join("whole"), [old, new].concat())?;
        counted(&cx.logs().join("whole")).map(drop)
    });
}

#[test]
fn ends_without_a_daemon_are_told_by_the_next() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod()).await?;
        let start = cx.dir("start")?;
        let wait = "while [ ! -e /start/go ]; do usleep 5000; done;";
        let mut ends = Vec::new();
        for (line, code, reason) in [
            ("echo last; exit 0", 0, "Completed"),
            ("echo last; exit 42", 42, "Error"),
            ("echo last; sh -c 'kill -9 $$'; exit $?", 137, "Error"),
        ] {
            let container = ContainerBuilder::new(&image)
                .shell(&format!("{wait} {line}"))
                .mount(&start, "/start", true);
            let log = pod.log(&container.config);
            ends.push((cx.run(&pod, &container).await?, log, code, reason));
        }
        let hungry = ContainerBuilder::new(&image)
            .shell(&format!("{wait} echo last; exec probe alloc 200"))
            .memory(24 << 20)
            .mount(&start, "/start", true);
        let log = pod.log(&hungry.config);
        ends.push((cx.run(&pod, &hungry).await?, log, 137, "OOMKilled"));
        cx.daemon.kill()?;
        let killed = e2e::now();
        std::fs::write(start.join("go"), "")?;
        let exits = || -> Result<usize> {
            let directory = cx.daemon.state.join("sandboxes").join(&pod.id);
            let names = std::fs::read_dir(directory)?.filter_map(std::result::Result::ok);
            Ok(names.filter(|e| e.file_name().to_string_lossy().starts_with("exit-")).count())
        };
        e2e::eventually(30, "all have ended", async || Ok(exits()? == 4)).await?;
        let ended = e2e::now();
        tokio::time::sleep(Duration::from_millis(300)).await;
        cx.daemon.restart().await?;
        for (id, log, code, reason) in ends {
            let status = cx.status(&id).await?;
            same("state", status.state(), ContainerState::ContainerExited)?;
            same("exit code", (status.exit_code, status.reason.as_str()), (code, reason))?;
            ensure!(
                (killed..=ended).contains(&status.finished_at),
                "it ended at {}, not between {killed} and {ended}",
                status.finished_at
            );
            let text = String::from_utf8(log_text(&parse_log(&std::fs::read(log)?)?, "stdout"))?;
            same("first line", text.lines().next(), Some("last"))?;
        }
        Ok(())
    });
}

#[test]
fn after_a_reboot_what_was_is_told_and_released() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod().network()).await?;
        let running = cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
        let (ended, _) = {
            let container = ContainerBuilder::new(&image).shell("exit 7");
            let id = cx.run(&pod, &container).await?;
            (id.clone(), cx.wait(&id).await?)
        };
        cx.daemon.kill()?;
        cx.daemon.end_everything()?;
        cx.daemon.restart().await?;
        let sandboxes = cx.cri().list_pods(None).await?;
        same("sandboxes", sandboxes.len(), 1)?;
        same("state", sandboxes[0].state(), PodSandboxState::SandboxNotready)?;
        let status = cx.status(&running).await?;
        same("state", status.state(), ContainerState::ContainerExited)?;
        same("end", (status.exit_code, status.reason.as_str()), (255, "Unknown"))?;
        same("the other's code", cx.status(&ended).await?.exit_code, 7)?;
        same("images", cx.cri().images().await?.len(), 1)?;
        // A kubelet makes it anew, and removes the old one then.
        let mut again = pod.config.clone();
        again.metadata.get_or_insert_default().attempt += 1;
        let id = cx.cri().run_pod(&again, "").await?;
        cx.cri().stop_pod(&pod.id).await?;
        cx.cri().remove_pod(&pod.id).await?;
        let new = e2e::pod::Pod { id, config: again };
        let id = cx.run(&new, &ContainerBuilder::new(&image).idle()).await?;
        cx.exec(&id, &["true"]).await.map(drop)
    });
}

#[test]
fn a_hundred_pods_come_and_go() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let before = resources(cx)?;
        let mut pods = Vec::new();
        for _ in 0..e2e::count(100, 300) {
            let pod = cx.run_pod(cx.pod()).await?;
            cx.run(&pod, &ContainerBuilder::new(&image).idle()).await?;
            pods.push(pod);
        }
        cx.daemon.kill()?;
        cx.daemon.restart().await?;
        same("pods", cx.cri().list_pods(None).await?.len(), pods.len())?;
        let running = cx.cri().list(None).await?;
        let running = running.iter().filter(|c| c.state() == ContainerState::ContainerRunning);
        same("running", running.count(), pods.len())?;
        for pod in &pods {
            cx.cri().stop_pod(&pod.id).await?;
            cx.cri().remove_pod(&pod.id).await?;
        }
        e2e::eventually(30, "descriptors and memory are as before", async || {
            let (descriptors, memory) = resources(cx)?;
            Ok(descriptors <= before.0 + 4 && memory <= before.1 + (8 << 20))
        })
        .await
        .with_context(|| format!("before {before:?}, after {:?}", resources(cx)))
    });
}

/// Descriptors of the daemon, and its memory that no file backs, in bytes.
fn resources(cx: &Cx) -> Result<(usize, u64)> {
    let pid = cx.daemon.pid()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: u64 = anonymous.context("no RssAnon")?.trim().trim_end_matches(" kB").parse()?;
    Ok((std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(), kib << 10))
}
