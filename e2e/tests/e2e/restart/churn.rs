//! Kills at random moments while clients work on: what was answered holds, what was not may be either, nothing is half.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::pod::{ContainerBuilder, Pod};
use e2e::{Cx, same, test};
use k8s_cri::v1::*;

use super::{COUNT, counted, is_gone, until_answered};

/// Pods that live through all of it.
const ANCHORS: usize = 3;

struct Anchor {
    pod: Pod,
    id: String,
    pid: i32,
    log: std::path::PathBuf,
}

async fn anchor(cx: &Cx, image: &str) -> Result<Anchor> {
    let pod = cx.run_pod(cx.pod().network()).await?;
    let container = ContainerBuilder::new(image).shell(COUNT);
    let log = pod.log(&container.config);
    let id = cx.run(&pod, &container).await?;
    let pid = cx.cri().pid(&id).await?;
    Ok(Anchor { pod, id, pid, log })
}

/// One client: lives of pods, one after the other, until it is told to stop. Returns how many.
async fn client(cx: &Cx, image: &str, over: &AtomicBool) -> Result<usize> {
    let mut lives = 0;
    while !over.load(Ordering::Relaxed) {
        life(cx, image, i32::try_from(lives % 100).unwrap_or_default()).await?;
        lives += 1;
    }
    Ok(lives)
}

async fn life(cx: &Cx, image: &str, code: i32) -> Result<()> {
    let (cri, builder) = (cx.cri(), cx.pod().network());
    std::fs::create_dir_all(&builder.config.log_directory)?;
    let config = builder.config;
    let pod = until_answered("run a pod", async || cri.run_pod(&config, "").await).await?;
    let line = format!("echo begin; usleep 100000; echo end; exit {code}");
    let container = ContainerBuilder::new(image).shell(&line).config;
    let create = async || cri.create(&pod, &container, &config).await;
    let id = until_answered("create", create).await?;
    let status = async || cri.container_status(&id).await;
    let state = async || Ok(status().await?.status.unwrap_or_default());
    // A start that was not answered may have happened.
    until_answered("start", async || {
        if state().await?.state() == ContainerState::ContainerCreated {
            cri.start(&id).await?;
        }
        Ok(())
    })
    .await?;
    // Its daemon may have been killed, and the container may end meanwhile and take the command with it.
    if let Ok(reply) = cri.exec_sync(&id, &["true"], 10).await {
        ensure!([0, 137].contains(&reply.exit_code), "exec: {reply:?}");
    }
    let deadline = Instant::now() + e2e::scaled(Duration::from_secs(60));
    let ended = loop {
        let status = until_answered("status", state).await?;
        if status.state() == ContainerState::ContainerExited {
            break status;
        }
        ensure!(Instant::now() < deadline, "container {id} has not ended: {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    same("exit code", (ended.exit_code, ended.started_at > 0), (code, true))?;
    let log = std::fs::read(&ended.log_path)?;
    let text = e2e::pod::log_text(&e2e::pod::parse_log(&log)?, "stdout");
    same("log", String::from_utf8_lossy(&text).as_ref(), "begin\nend\n")?;
    until_answered("remove", async || cri.remove(&id).await).await?;
    until_answered("stop the pod", async || cri.stop_pod(&pod).await).await?;
    until_answered("remove the pod", async || cri.remove_pod(&pod).await).await
}

/// Pulls an image and removes it, again and again.
async fn puller(cx: &Cx, over: &AtomicBool) -> Result<usize> {
    let image = e2e::image::base::probe_only()?.build();
    let name = cx.push(&cx.unique(), &image).await?;
    let mut pulls = 0;
    while !over.load(Ordering::Relaxed) {
        let id = until_answered("pull", async || cx.cri().pull(&name, None).await).await?;
        same("image id", id.as_str(), image.id.as_str())?;
        until_answered("remove an image", async || cx.cri().remove_image(&id).await).await?;
        pulls += 1;
    }
    Ok(pulls)
}

/// Kills the daemon and starts it again, so many times.
async fn killer(cx: &Cx, kills: usize, done: &AtomicUsize) -> Result<()> {
    // Any moment will do; the gaps differ and come back with the number.
    let mut random = 0x9e37_79b9_u64;
    for kill in 0..kills {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        tokio::time::sleep(Duration::from_millis(5 + (random >> 33) % 300)).await;
        cx.daemon.kill()?;
        cx.daemon.restart().await.with_context(|| format!("start after kill {kill}"))?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[test]
fn random_kills_during_churn_lose_nothing() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let mut anchors = Vec::new();
        for _ in 0..ANCHORS {
            anchors.push(anchor(cx, &image).await?);
        }
        let (over, done) = (AtomicBool::new(false), AtomicUsize::new(0));
        let kills = e2e::count(100, 1000);
        let work = async {
            let killing = async {
                let killed = killer(cx, kills, &done).await;
                over.store(true, Ordering::Relaxed);
                killed
            };
            let (killed, lives, pulls) =
                tokio::join!(killing, clients(cx, &image, &over), puller(cx, &over));
            killed?;
            Ok::<_, anyhow::Error>((lives?, pulls?))
        };
        let (lives, pulls) =
            work.await.with_context(|| format!("after {} kills", done.load(Ordering::Relaxed)))?;
        println!("{kills} kills, {lives} lives of pods, {pulls} pulls");
        ensure!(lives > 0 && pulls > 0, "{lives} lives and {pulls} pulls");
        for anchor in &anchors {
            same("pid", cx.cri().pid(&anchor.id).await?, anchor.pid)?;
            ensure!(counted(&anchor.log)? > 0);
            match cx.cri().stop_pod(&anchor.pod.id).await {
                Err(status) if is_gone(&status) => anyhow::bail!("the daemon has gone: {status}"),
                other => other?,
            }
            counted(&anchor.log)?;
        }
        Ok(())
    });
}

/// Three clients at the same time. Returns how many lives they had.
async fn clients(cx: &Cx, image: &str, over: &AtomicBool) -> Result<usize> {
    let (one, two, three) =
        tokio::join!(client(cx, image, over), client(cx, image, over), client(cx, image, over));
    Ok(one? + two? + three?)
}
