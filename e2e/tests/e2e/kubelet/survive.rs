//! A kubelet or a daemon that is killed and started again: nothing of a pod may notice.

use anyhow::{Result, ensure};
use e2e::kubelet::{Kubelet, is_ready, pod};
use e2e::{Cx, same, test};
use serde_json::{Value, json};

use super::{SERVE, busybox, lives, with, with_spec};

/// Two pods: one with an exec probe that must not fail, a sidecar and a log; one that counts its starts.
async fn two_pods(kubelet: &Kubelet, cx: &Cx) -> Result<Vec<Value>> {
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1, "failureThreshold": 5});
    let main = busybox("main", "i=0; while sleep 0.05; do i=$((i + 1)); echo $i; done").await?;
    let main = with(main, &json!({"livenessProbe": probe}));
    let sidecar = with(busybox("sidecar", SERVE).await?, &json!({"restartPolicy": "Always"}));
    let one = with_spec(pod("one", &[main]), &json!({"initContainers": [sidecar]}));
    let starts = cx.dir("starts")?;
    let main = busybox("main", &format!("echo start >>/starts/list; {SERVE}")).await?;
    let main = with(main, &json!({"volumeMounts": [{"name": "starts", "mountPath": "/starts"}]}));
    let volumes = json!([{"name": "starts", "hostPath": {"path": starts}}]);
    let two = with_spec(pod("two", &[main]), &json!({"volumes": volumes, "hostNetwork": true}));
    for pod in [&one, &two] {
        kubelet.add(pod)?;
    }
    Ok(vec![kubelet.ready("one").await?, kubelet.ready("two").await?])
}

/// That the pods live the life that they had before.
async fn check_lives(kubelet: &Kubelet, cx: &Cx, before: &[Value]) -> Result<()> {
    for (name, pod) in ["one", "two"].into_iter().zip(before) {
        let now = kubelet.ready(name).await?;
        same(name, lives(&now), lives(pod))?;
        same("the address", &now["status"]["podIP"], &pod["status"]["podIP"])?;
    }
    same("starts", std::fs::read_to_string(cx.dir("starts")?.join("list"))?, "start\n")?;
    let log = kubelet.logs("one", "main", "").await?;
    let numbers: Vec<usize> = log.lines().map(str::parse).collect::<Result<_, _>>()?;
    let expected: Vec<usize> = (1..=numbers.len()).collect();
    ensure!(numbers == expected && !numbers.is_empty(), "a line is missing or there twice: {log}");
    // Both still do what they are asked.
    same("an exec", kubelet.run("one", "main", "echo here").await?.as_str(), "here\n")
}

#[test]
fn a_kubelet_that_was_killed_finds_its_pods_again() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let before = two_pods(&kubelet, cx).await?;
        for _ in 0..2 {
            kubelet.kill()?;
            kubelet.restart().await?;
            check_lives(&kubelet, cx, &before).await?;
        }
        kubelet.finish(cx).await
    });
}

#[test]
fn a_daemon_that_was_killed_under_a_kubelet_restarts_nothing() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let before = two_pods(&kubelet, cx).await?;
        for pause in [0, 3] {
            cx.daemon.kill()?;
            // Long enough for the kubelet to notice, and to probe in vain.
            tokio::time::sleep(std::time::Duration::from_secs(pause)).await;
            cx.daemon.restart().await?;
            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
            check_lives(&kubelet, cx, &before).await?;
        }
        ensure!(is_ready(&kubelet.pod("one").await?), "not ready");
        kubelet.finish(cx).await
    });
}

#[test]
fn what_ended_while_nobody_looked_is_started_again() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let work = cx.dir("work")?;
        let main =
            busybox("main", "until test -e /work/end; do sleep 0.1; done; rm /work/end; exit 7")
                .await?;
        let main = with(main, &json!({"volumeMounts": [{"name": "work", "mountPath": "/work"}]}));
        let volumes = json!([{"name": "work", "hostPath": {"path": work}}]);
        kubelet.add(&with_spec(pod("main", &[main]), &json!({"volumes": volumes})))?;
        let before = kubelet.ready("main").await?;
        cx.daemon.kill()?;
        kubelet.kill()?;
        std::fs::write(work.join("end"), "")?;
        e2e::eventually(20, "the container ends", async || Ok(!work.join("end").exists())).await?;
        cx.daemon.restart().await?;
        kubelet.restart().await?;
        let again = |pod: &Value| e2e::kubelet::container(pod, "main")["restartCount"] == 1;
        let pod = kubelet.until("main", "it was started again", again).await?;
        let last = &e2e::kubelet::container(&pod, "main")["lastState"]["terminated"];
        ensure!(last["exitCode"] == 7, "{last}");
        ensure!(lives(&pod) != lives(&before), "the same container");
        kubelet.finish(cx).await
    });
}

#[test]
fn images_that_nobody_needs_go_when_the_disk_is_short() {
    test(async |cx| {
        // Short it is at once; only what the node itself needs may stay then.
        let fields =
            json!({"evictionHard": {"imagefs.available": "99.9%"}, "imageMinimumGCAge": "1s"});
        let kubelet = Kubelet::start(cx, fields).await?;
        let unused = cx.busybox_with(&[("Labels", json!({"unused": "yes"}))]).await?;
        let critical =
            json!({"priorityClassName": "system-node-critical", "priority": 2_000_001_000});
        kubelet.add(&with_spec(pod("main", &[busybox("main", SERVE).await?]), &critical))?;
        let before = kubelet.ready("main").await?;
        e2e::eventually(90, "the image is gone", async || {
            Ok(cx.cri().images().await?.iter().all(|image| image.id != unused))
        })
        .await?;
        let images = cx.cri().images().await?;
        ensure!(images.len() == 1, "what a pod uses must stay: {images:?}");
        same("lives", lives(&kubelet.ready("main").await?), lives(&before))?;
        kubelet.finish(cx).await
    });
}
