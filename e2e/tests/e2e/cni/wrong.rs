//! Plugins that hang, fail, babble or vanish, and a daemon that dies while they run.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::cri::refused;
use e2e::{Cx, same, test_with};
use k8s_cri::v1::PodSandboxConfig;

use super::{
    addresses, all_given_back, calls, count, held, intents, is_ready, misbehave, network_is,
    own_plugins, setup, status,
};

/// Two plugins of ours serve; the first is well-behaved.
async fn two(cx: &Cx) -> Result<()> {
    own_plugins(cx, &["first", "second"])?;
    network_is(cx, true, "network own").await?;
    let pod = cx.run_pod(cx.pod().network()).await?;
    same("address", addresses(cx, &pod).await?, vec!["192.0.2.7".to_owned()])?;
    cx.cri().stop_pod(&pod.id).await?;
    cx.cri().remove_pod(&pod.id).await?;
    all_given_back(cx).await?;
    std::fs::remove_file(cx.scratch.disk.join("calls"))?;
    cx.settle().await
}

fn new_pod(cx: &Cx) -> Result<PodSandboxConfig> {
    let pod = cx.pod().network();
    std::fs::create_dir_all(&pod.config.log_directory)?;
    Ok(pod.config)
}

/// A process that a plugin wrote the pid of is gone.
async fn gone(cx: &Cx, file: &str) -> Result<()> {
    let pid = std::fs::read_to_string(cx.scratch.disk.join(file)).context("no pid")?;
    let stat = format!("/proc/{}/stat", pid.trim());
    e2e::eventually(10, &format!("process {pid} of a plugin is gone"), async || {
        Ok(std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ")))
    })
    .await
}

#[test]
fn an_add_that_goes_wrong_is_told_and_given_back() {
    test_with(setup("cni"), async |cx| {
        two(cx).await?;
        for (mode, words) in [
            ("ADD fail", "code 999: told to fail"),
            ("ADD garbage", "this is no JSON"),
            ("ADD flood", "longer than 1024 KiB"),
        ] {
            misbehave(cx, "second", mode)?;
            let dels = count(cx, "second DEL");
            refused(
                mode,
                cx.cri().run_pod(&new_pod(cx)?, "").await,
                &["plugin second", "own", words],
            );
            // Before the caller is told.
            same("what is held", held(cx)?, 0)?;
            ensure!(count(cx, "second DEL") > dels, "no DEL after {mode}: {:#?}", calls(cx));
            ensure!(cx.cri().list_pods(None).await?.is_empty(), "{mode}: a pod is listed");
        }
        // A child that keeps the pipes open is no reason to wait or to fail, and does not stay.
        misbehave(cx, "second", "ADD pipes")?;
        cx.run_pod(cx.pod().network()).await?;
        gone(cx, "child").await
    });
}

#[test]
fn a_plugin_that_hangs_is_killed_and_holds_nobody_up() {
    test_with(setup("cni"), async |cx| {
        two(cx).await?;
        misbehave(cx, "second", "ADD hang")?;
        let (cri, config) = (cx.cri().clone(), new_pod(cx)?);
        let hanging = tokio::spawn(async move { cri.run_pod(&config, "").await });
        e2e::eventually(20, "the plugin hangs", async || Ok(cx.scratch.disk.join("pid").exists()))
            .await?;
        // Whoever comes meanwhile is served.
        misbehave(cx, "second", "")?;
        cx.run_pod(cx.pod().network()).await?;
        cx.run_pod(cx.pod()).await?;
        ensure!(!hanging.is_finished(), "the others waited for the one that hangs");
        refused("a plugin that hangs", hanging.await?, &["plugin second", "not done after 5s"]);
        gone(cx, "child").await?;
        gone(cx, "pid").await?;
        same("what is held", held(cx)?, 2)
    });
}

#[test]
fn a_del_is_tried_until_it_succeeds() {
    test_with(setup("cni"), async |cx| {
        two(cx).await?;
        let pod = cx.run_pod(cx.pod().network()).await?;
        misbehave(cx, "second", "DEL times 5")?;
        refused(
            "a DEL that fails",
            cx.cri().stop_pod(&pod.id).await,
            &["plugin second", "try again"],
        );
        ensure!(!is_ready(&status(cx, &pod.id).await?), "a pod that was stopped is ready");
        let stopped = async || Ok(cx.cri().stop_pod(&pod.id).await.is_ok());
        e2e::eventually(60, "the pod stops", stopped).await?;
        all_given_back(cx).await?;
        same("DELs", count(cx, "second DEL"), 6)
    });
}

#[test]
fn a_plugin_that_has_vanished_does_not_keep_the_pod() {
    test_with(setup("cni"), async |cx| {
        two(cx).await?;
        let pod = cx.run_pod(cx.pod().network()).await?;
        let second = cx.scratch.disk.join("own/second");
        std::fs::rename(&second, second.with_extension("away"))?;
        refused(
            "a missing plugin",
            cx.cri().stop_pod(&pod.id).await,
            &["second", "does not exist"],
        );
        network_is(cx, false, "192.0.2.7 of pod").await?;
        refused("a pod meanwhile", cx.cri().run_pod(&new_pod(cx)?, "").await, &["does not exist"]);
        cx.cri().remove_pod(&pod.id).await?;
        ensure!(cx.cri().list_pods(None).await?.is_empty(), "the pod is still listed");
        // What it had is not given to another; it is given back when the plugin is there again.
        same("what is held", held(cx)?, 2)?;
        std::fs::rename(second.with_extension("away"), &second)?;
        all_given_back(cx).await?;
        network_is(cx, true, "network own").await
    });
}

#[test]
fn the_configuration_of_the_add_is_that_of_the_del() {
    test_with(setup("cni"), async |cx| {
        two(cx).await?;
        let pod = cx.run_pod(cx.pod().network()).await?;
        std::fs::remove_file(cx.scratch.disk.join("cni/net.d/10-own.conflist"))?;
        network_is(cx, false, "there is no CNI configuration").await?;
        refused("a pod without a network", cx.cri().run_pod(&new_pod(cx)?, "").await, &["no CNI"]);
        // How the network's own pods are made.
        cx.run_pod(cx.pod()).await?;
        cx.cri().stop_pod(&pod.id).await?;
        all_given_back(cx).await
    });
}

#[test]
fn a_daemon_that_is_killed_during_an_add_gives_back_what_was_made() {
    test_with(setup("cni"), async |cx| {
        two(cx).await?;
        let alive = cx.run_pod(cx.pod().network()).await?;
        misbehave(cx, "second", "ADD hang")?;
        let (cri, config) = (cx.cri().clone(), new_pod(cx)?);
        let hanging = tokio::spawn(async move { cri.run_pod(&config, "").await });
        let hangs = async || Ok(cx.scratch.disk.join("pid").exists());
        e2e::eventually(20, "the plugin hangs", hangs).await?;
        cx.daemon.kill()?;
        ensure!(hanging.await?.is_err(), "a killed daemon answered");
        same("what is held", held(cx)?, 3)?;
        cx.daemon.restart().await?;
        // The plugin that went on without its daemon is ended before the DEL.
        gone(cx, "pid").await?;
        e2e::eventually(20, "what was made is given back", async || Ok(held(cx)? == 2)).await?;
        misbehave(cx, "second", "")?;
        same("address", addresses(cx, &alive).await?, vec!["192.0.2.7".to_owned()])?;
        e2e::eventually(20, "CHECK and GC are called", async || {
            Ok(count(cx, &format!("first CHECK {}", alive.id)) > 0 && count(cx, "second GC") > 0)
        })
        .await?;
        cx.cri().stop_pod(&alive.id).await?;
        all_given_back(cx).await
    });
}

#[test]
fn after_a_reboot_addresses_are_given_back() {
    test_with(setup("cni"), async |cx| {
        two(cx).await?;
        let pod = cx.run_pod(cx.pod().network()).await?;
        cx.daemon.kill()?;
        reboot(cx)?;
        cx.daemon.restart().await?;
        all_given_back(cx).await?;
        // The namespace has gone with the machine.
        let del = format!("second DEL {} -", pod.id);
        same("DELs without a namespace", count(cx, &del), 1)?;
        ensure!(!is_ready(&status(cx, &pod.id).await?), "a pod is ready after a reboot");
        e2e::eventually(20, "GC is called", async || Ok(count(cx, "first GC") > 0)).await?;
        cx.run_pod(cx.pod().network()).await.map(drop)
    });
}

/// What a reboot does while the daemon is down: processes end, mounts go, the state directory is empty.
fn reboot(cx: &Cx) -> Result<()> {
    e2e::daemon::kill_by_cgroup(&cx.daemon.instance);
    e2e::daemon::unmount_below(&cx.daemon.state);
    for entry in std::fs::read_dir(&cx.daemon.state)? {
        let path = entry?.path();
        if path.is_dir() { std::fs::remove_dir_all(&path)? } else { std::fs::remove_file(&path)? }
    }
    Ok(())
}

#[test]
fn a_status_of_the_plugins_is_reflected() {
    test_with(setup("cni"), async |cx| {
        two(cx).await?;
        misbehave(cx, "second", "STATUS fail")?;
        network_is(cx, false, "NetworkPluginNotReady: Network plugin returns error: CNI STATUS")
            .await?;
        // It is advice: what is asked for is tried.
        cx.run_pod(cx.pod().network()).await?;
        misbehave(cx, "second", "")?;
        network_is(cx, true, "network own").await?;
        let bad = Path::new("cni/net.d/00-bad.conflist");
        std::fs::write(cx.scratch.disk.join(bad), "{")?;
        network_is(cx, false, "00-bad.conflist: no JSON").await?;
        let info = cx.cri().status().await?.info;
        ensure!(info["lastCNILoadStatus"].contains("00-bad"), "{info:?}");
        std::fs::remove_file(cx.scratch.disk.join(bad))?;
        network_is(cx, true, "network own").await?;
        let info = cx.cri().status().await?.info;
        same("last load", info["lastCNILoadStatus"].as_str(), "OK")?;
        ensure!(info["cniconfig"].contains("10-own.conflist"), "{}", info["cniconfig"]);
        ensure!(intents(cx).iter().any(|name| name.len() == 64), "no intent of the pod");
        Ok(())
    });
}
