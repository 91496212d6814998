//! Logs through a kubelet: whole, in parts, followed, of the life before, and over a rotation.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::kubelet::{Kubelet, container, pod};
use e2e::netns::success;
use e2e::{same, test};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{SERVE, busybox};

#[test]
fn logs_are_read_through_the_kubelet() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let line =
            "echo one; echo two >&2; echo three; trap 'exit 1' USR1; while sleep 0.1; do :; done";
        kubelet.add(&pod("talk", &[busybox("main", line).await?]))?;
        kubelet.ready("talk").await?;
        let whole = kubelet.logs("talk", "main", "").await?;
        let mut lines: Vec<&str> = whole.lines().collect();
        lines.sort_unstable();
        same("the log", lines, ["one", "three", "two"])?;
        same("its end", kubelet.logs("talk", "main", "tailLines=1").await?.lines().count(), 1)?;
        let stamped = kubelet.logs("talk", "main", "timestamps=true&limitBytes=30").await?;
        ensure!(stamped.len() == 30 && stamped.starts_with("20"), "{stamped}");
        kubelet.run("talk", "main", "kill -USR1 1").await?;
        let again = |pod: &Value| container(pod, "main")["restartCount"] == 1;
        kubelet.until("talk", "it was started again", again).await?;
        let before = kubelet.logs("talk", "main", "previous=true").await?;
        same("the log of the life before", before.lines().count(), 3)?;
        kubelet.finish(cx).await
    });
}

#[test]
fn a_log_that_is_followed_ends_with_the_container() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let line = "until test -e /go; do sleep 0.1; done; for i in $(seq 1000); do echo $i; done";
        kubelet.add(&super::with_spec(
            pod("count", &[busybox("main", line).await?]),
            &json!({"restartPolicy": "Never"}),
        ))?;
        kubelet.ready("count").await?;
        let path = format!("/containerLogs/default/count-{}/main?follow=true", e2e::kubelet::NODE);
        let reply = kubelet.http.ask(http::Method::GET, &path).await?;
        ensure!(reply.status().is_success(), "{reply:?}");
        kubelet.run("count", "main", "touch /go").await?;
        let limit = e2e::scaled(std::time::Duration::from_secs(60));
        let body = tokio::time::timeout(limit, reply.into_body().collect()).await;
        let body = body.context("following does not end")??.to_bytes();
        let expected: String = (1..=1000).map(|number| format!("{number}\n")).collect();
        same("what was followed", String::from_utf8_lossy(&body).into_owned(), expected)?;
        kubelet.finish(cx).await
    });
}

/// The numbers in a log file and in those that were rotated away, the oldest first.
fn numbers(dir: &Path) -> Result<Vec<u64>> {
    let mut files: Vec<_> =
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    // `0.log` is written to; the others have the time after it and sort by it.
    files.sort_by_key(|path| (path.ends_with("0.log"), path.clone()));
    let mut numbers = Vec::new();
    for file in files {
        let name = file.to_string_lossy().into_owned();
        let program = if name.ends_with(".gz") { "zcat" } else { "cat" };
        let text = success(program, Command::new(program).arg(&file).output()?)?;
        for line in text.lines() {
            let number = line.rsplit(' ').next().context("a line without text")?;
            numbers.push(number.parse().with_context(|| format!("{name}: {line:?}"))?);
        }
    }
    Ok(numbers)
}

#[test]
fn a_log_is_rotated_while_it_is_written() {
    test(async |cx| {
        let fields = json!({
            "containerLogMaxSize": "64Ki", "containerLogMaxFiles": 1000, "containerLogMonitorInterval": "3s",
        });
        let kubelet = Kubelet::start(cx, fields).await?;
        let line = format!(
            "i=0; until test -e /enough; do i=$((i + 1)); echo $i; done; echo all $i >/all; {SERVE}"
        );
        kubelet.add(&pod("writer", &[busybox("main", &line).await?]))?;
        let pod = kubelet.ready("writer").await?;
        let uid = pod["metadata"]["uid"].as_str().context("a pod without uid")?;
        let dir = kubelet
            .pod_logs()
            .join(format!("default_writer-{}_{uid}", e2e::kubelet::NODE))
            .join("main");
        let count = || std::fs::read_dir(&dir).map(Iterator::count).unwrap_or_default();
        e2e::eventually(60, "the log was rotated twice", async || Ok(count() >= 3)).await?;
        kubelet.run("writer", "main", "touch /enough").await?;
        e2e::eventually(20, "the writer stops", async || {
            Ok(kubelet.run("writer", "main", "cat /all").await.is_ok())
        })
        .await?;
        let all = kubelet.run("writer", "main", "cat /all").await?;
        let all: u64 = all.trim().trim_start_matches("all ").parse()?;
        // The kubelet may compress a file at this moment: then it is there twice, or under a name that ends in .tmp.
        kubelet.kill()?;
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            let rotated = path.extension().is_some_and(|extension| extension == "gz");
            if path.extension().is_some_and(|extension| extension == "tmp") {
                std::fs::remove_file(&path)?;
            } else if rotated && path.with_extension("").exists() {
                std::fs::remove_file(path.with_extension(""))?;
            }
        }
        let numbers = numbers(&dir)?;
        let expected: Vec<u64> = (1..=all).collect();
        same("lines", numbers.len(), expected.len())?;
        ensure!(numbers == expected, "a line is missing, or there twice, or in another order");
        kubelet.restart().await?;
        kubelet.finish(cx).await
    });
}
