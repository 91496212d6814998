//! The command line, as fingers that know docker use it.

mod configuration;
mod images;
mod interactive;
mod run;

use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::netns::success;
use e2e::pod::ContainerBuilder;
use e2e::registry::Registry;
use e2e::{Cx, same, test};
use serde_json::Value;

/// Runs a command line to its end.
fn berth(cx: &Cx, args: &[&str]) -> Result<Output> {
    cx.daemon.berth(args).output().with_context(|| format!("run berth {}", args.join(" ")))
}

/// Runs a command line that must succeed; returns what it printed.
fn good(cx: &Cx, args: &[&str]) -> Result<String> {
    success(&format!("berth {}", args.join(" ")), berth(cx, args)?)
}

/// Runs a command line that must fail with a code; returns what it said.
fn bad(cx: &Cx, args: &[&str], code: i32) -> Result<String> {
    let output = berth(cx, args)?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    same(
        &format!("exit code of berth {} ({text})", args.join(" ")),
        output.status.code(),
        Some(code),
    )?;
    ensure!(!text.trim().is_empty(), "berth {} fails without a word", args.join(" "));
    Ok(text)
}

/// The busybox image by its reference in the registry.
async fn image() -> Result<String> {
    Registry::shared()?.busybox().await
}

/// What a command prints with --json.
fn json(cx: &Cx, args: &[&str]) -> Result<Value> {
    let text = good(cx, &[args, &["--json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("berth {} --json: {text}", args.join(" ")))
}

/// Starts a container in the background and returns its id.
fn detached(cx: &Cx, args: &[&str]) -> Result<String> {
    Ok(good(cx, &[&["run", "-d", "--net", "host"], args].concat())?.trim().to_owned())
}

/// The state of a container by `berth inspect`.
fn inspect(cx: &Cx, name: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(&good(cx, &["inspect", name])?)?;
    Ok(if value.is_array() { value[0].clone() } else { value })
}

/// Whether the table of `berth ps -a` has a line with all the words in it.
fn listed(cx: &Cx, words: &[&str]) -> Result<bool> {
    let table = good(cx, &["ps", "-a"])?;
    Ok(table.lines().any(|line| words.iter().all(|word| line.contains(word))))
}

#[test]
fn a_container_is_run_listed_stopped_and_removed() {
    test(async |cx| {
        let image = image().await?;
        let id = detached(cx, &["--name", "web", &image, "probe", "idle"])?;
        ensure!(id.len() >= 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        ensure!(listed(cx, &["web", &id[..12], &image])?, "not listed: {}", good(cx, &["ps"])?);
        // The kubelet would kill it as an orphan.
        ensure!(
            cx.cri().list(None).await?.is_empty() && cx.cri().list_pods(None).await?.is_empty(),
            "the CRI shows it"
        );
        ensure!(
            cx.cri().images().await?.iter().all(|image| image.pinned),
            "its image is not pinned"
        );
        same("exec", good(cx, &["exec", "web", "echo", "a b"])?.as_str(), "a b\n")?;
        same("by a prefix", good(cx, &["exec", &id[..10], "echo", "x"])?.as_str(), "x\n")?;
        same(
            "exit code of an exec",
            berth(cx, &["exec", "web", "sh", "-c", "exit 9"])?.status.code(),
            Some(9),
        )?;
        good(cx, &["stop", "web"])?;
        ensure!(!good(cx, &["ps"])?.contains("web"), "a stopped container in ps");
        ensure!(listed(cx, &["web"])?, "a stopped container not in ps -a");
        good(cx, &["rm", "web"])?;
        ensure!(!listed(cx, &["web"])?, "a removed container in ps -a");
        for command in ["stop", "rm", "kill", "logs", "inspect", "pause", "resume"] {
            ensure!(
                bad(cx, &[command, "web"], 1)?.contains("web"),
                "{command} does not name what is missing"
            );
        }
        bad(cx, &["exec", "web", "true"], 1).map(drop)
    });
}

#[test]
fn a_running_container_is_removed_by_force_alone() {
    test(async |cx| {
        let image = image().await?;
        detached(cx, &["--name", "busy", &image, "probe", "ignore-term"])?;
        ensure!(bad(cx, &["rm", "busy"], 1)?.contains("-f"), "the error does not say what to do");
        good(cx, &["rm", "-f", "busy"])?;
        ensure!(!listed(cx, &["busy"])?, "it is still there");
        Ok(())
    });
}

#[test]
fn signals_are_sent_and_a_container_is_paused() {
    test(async |cx| {
        let image = image().await?;
        let id = detached(cx, &["--name", "sig", &image, "probe", "signal"])?;
        e2e::eventually(10, "it is ready", async || {
            Ok(good(cx, &["logs", "sig"])?.contains("ready"))
        })
        .await?;
        good(cx, &["pause", "sig"])?;
        ensure!(
            listed(cx, &[&id[..12], "paused"])? || listed(cx, &[&id[..12], "Paused"])?,
            "{}",
            good(cx, &["ps"])?
        );
        good(cx, &["kill", "-s", "USR2", "sig"])?;
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        ensure!(!good(cx, &["logs", "sig"])?.contains("signal"), "a paused container has run");
        good(cx, &["resume", "sig"])?;
        e2e::eventually(10, "the signal arrives", async || {
            Ok(good(cx, &["logs", "sig"])?.contains("signal 12"))
        })
        .await
    });
}

#[test]
fn containers_of_the_cri_are_shown_too() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod().name("kube-pod")).await?;
        let id = cx
            .run(
                &pod,
                &ContainerBuilder::new(&image)
                    .name("of-kubelet")
                    .shell("echo words; exec probe idle"),
            )
            .await?;
        ensure!(good(cx, &["ps"])?.contains(&id[..12]), "{}", good(cx, &["ps"])?);
        ensure!(good(cx, &["pods"])?.contains("kube-pod"), "{}", good(cx, &["pods"])?);
        same("exec", good(cx, &["exec", &id[..12], "echo", "x"])?.as_str(), "x\n")?;
        e2e::eventually(10, "its log", async || Ok(good(cx, &["logs", &id[..12]])? == "words\n"))
            .await?;
        same("inspect", inspect(cx, &id)?["id"].as_str(), Some(id.as_str()))
    });
}

#[test]
fn tables_are_aligned_and_json_is_json() {
    test(async |cx| {
        let image = image().await?;
        let id = detached(cx, &["--name", "a-rather-long-name", &image, "probe", "idle"])?;
        detached(cx, &["--name", "b", &image, "probe", "idle"])?;
        let table = good(cx, &["ps"])?;
        let column = |line: &str, word: &str| line.find(word);
        let lines: Vec<&str> = table.lines().collect();
        same("lines", lines.len(), 3)?;
        let at: Vec<Option<usize>> = lines[1..].iter().map(|line| column(line, &image)).collect();
        ensure!(at[0].is_some() && at[0] == at[1], "columns are not aligned:\n{table}");
        ensure!(
            lines.iter().all(|line| *line == line.trim_end()),
            "spaces at the end of a line:\n{table}"
        );
        for args in [
            &["ps"][..],
            &["pods"],
            &["images"],
            &["version"],
            &["doctor"],
            &["stats", "a-rather-long-name"],
        ] {
            let value = json(cx, args)?;
            ensure!(value.is_object(), "{args:?}: {value}");
        }
        let shown = json(cx, &["ps"])?;
        let ids: Vec<&str> = shown["containers"]
            .as_array()
            .context("no list")?
            .iter()
            .filter_map(|row| row["id"].as_str())
            .collect();
        ensure!(ids.len() == 2 && ids.iter().any(|other| other.starts_with(&id)), "{shown}");
        same("quiet", good(cx, &["ps", "-q"])?.lines().count(), 2)
    });
}

#[test]
fn logs_are_shown_whole_by_the_end_and_as_they_come() {
    test(async |cx| {
        let image = image().await?;
        let script = "for i in 1 2 3 4 5; do echo line $i; done; echo oops >&2; while [ ! -e /go ]; do sleep 0.05; done; echo last";
        detached(cx, &["--name", "log", &image, "sh", "-c", script])?;
        let ready = async || {
            Ok(String::from_utf8_lossy(&berth(cx, &["logs", "log"])?.stderr).contains("oops"))
        };
        e2e::eventually(10, "all is in the log", ready).await?;
        same(
            "all",
            good(cx, &["logs", "log"])?.as_str(),
            "line 1\nline 2\nline 3\nline 4\nline 5\n",
        )?;
        let tail = berth(cx, &["logs", "--tail", "2", "log"])?;
        same(
            "the end",
            (String::from_utf8(tail.stdout)?, String::from_utf8(tail.stderr)?),
            ("line 5\n".to_owned(), "oops\n".to_owned()),
        )?;
        same("none", good(cx, &["logs", "--tail", "0", "log"])?.as_str(), "")?;
        same(
            "since later",
            good(cx, &["logs", "--since", "2100-01-01T00:00:00Z", "log"])?.as_str(),
            "",
        )?;
        ensure!(
            good(cx, &["logs", "--since", "1h", "log"])?.starts_with("line 1"),
            "since an hour ago"
        );
        ensure!(good(cx, &["logs", "-t", "log"])?.starts_with("20"), "no times");
        let follow = cx
            .daemon
            .berth(&["logs", "-f", "log"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        good(cx, &["exec", "log", "touch", "/go"])?;
        // It ends with the container.
        let output = follow.wait_with_output()?;
        ensure!(String::from_utf8(output.stdout)?.ends_with("line 5\nlast\n"), "the followed log");
        Ok(())
    });
}

#[test]
fn the_socket_is_found_and_its_absence_explained() {
    test(async |cx| {
        let socket = cx.daemon.socket.to_string_lossy().into_owned();
        let berth = e2e::bin_dir().join("berth");
        let output =
            std::process::Command::new(&berth).args(["version", "--socket", &socket]).output()?;
        ensure!(output.status.success(), "by --socket: {output:?}");
        let missing = cx.scratch.memory.join("none.sock");
        let output =
            std::process::Command::new(&berth).arg("ps").env("BERTH_SOCKET", &missing).output()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1) && text.contains("none.sock"),
            "a missing socket: {text}"
        );
        // Somebody who may not.
        let output = std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&berth)
            .args(["ps", "--socket", &socket])
            .output()?;
        let text = String::from_utf8_lossy(&output.stderr).to_lowercase();
        ensure!(output.status.code() == Some(1), "another user may use the socket");
        ensure!(text.contains("permission") && text.contains(&socket.to_lowercase()), "{text}");
        Ok(())
    });
}

#[test]
fn statistics_and_doctor_tell_of_the_node() {
    test(async |cx| {
        let image = image().await?;
        let id =
            detached(cx, &["-m", "64m", "--name", "measured", &image, "probe", "alloc", "10"])?;
        let stats = json(cx, &["stats", "measured"])?;
        let row = &stats["stats"][0];
        ensure!(row["id"].as_str().is_some_and(|other| other.starts_with(&id)), "{row}");
        ensure!(row["memoryLimitBytes"].as_u64() == Some(64 << 20), "{row}");
        let doctor = good(cx, &["doctor"]).or_else(|_| {
            berth(cx, &["doctor"])
                .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        })?;
        for area in ["kernel", "cgroup", "network", "disk"] {
            ensure!(doctor.to_lowercase().contains(area), "nothing about {area}: {doctor}");
        }
        let version = good(cx, &["version"])?;
        ensure!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
        Ok(())
    });
}

#[test]
fn words_that_are_none_of_berths_are_refused_with_code_2() {
    test(async |cx| {
        for args in [&["fly"][..], &["ps", "--fly"], &["run"], &["exec", "x"], &["pull"], &["stop"]]
        {
            let code = if args[0] == "run" { 125 } else { 2 };
            let output = berth(cx, args)?;
            ensure!([Some(2), Some(code)].contains(&output.status.code()), "{args:?}: {output:?}");
            ensure!(
                String::from_utf8_lossy(&output.stderr).to_lowercase().contains("usage"),
                "{args:?}: {output:?}"
            );
        }
        for shell in ["bash", "zsh", "fish"] {
            ensure!(good(cx, &["completion", shell])?.contains("berth"), "completion for {shell}");
        }
        good(cx, &["--help"]).map(drop)
    });
}
