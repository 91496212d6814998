//! Exec, attach and port-forward through a kubelet's own port, with client-go's clients.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::kubelet::{Kubelet, pod};
use e2e::streams::{run, spawn};
use e2e::{Cx, same, test};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{SERVE, busybox, with};

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

#[test]
fn a_command_is_run_through_the_kubelet() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        kubelet.add(&pod("box", &[busybox("main", SERVE).await?]))?;
        kubelet.ready("box").await?;
        let authority = kubelet.authority();
        let command = "command=sh&command=-c&command=cat%3B+echo+problem+%3E%262%3B+exit+7";
        let url =
            kubelet.url("exec", "box", "main", &format!("{command}&input=1&output=1&error=1"));
        for transport in TRANSPORTS {
            let args =
                ["command", "-ca", &authority, "-transport", transport, "-stdin", "-stderr", &url];
            let ran = run(&cx.netns, &args, b"given\n").await?;
            let text = String::from_utf8_lossy(&ran.stdout).into_owned();
            same(transport, (ran.code, text.as_str()), (7, "given\n"))?;
            same(transport, ran.stderr.as_str(), "problem\n")?;
        }
        let url = kubelet.url("exec", "box", "main", "command=tty&input=1&output=1&tty=1");
        for transport in TRANSPORTS {
            let args =
                ["command", "-ca", &authority, "-transport", transport, "-stdin", "-tty", &url];
            let ran = run(&cx.netns, &args, b"").await?;
            let text = String::from_utf8_lossy(&ran.stdout).into_owned();
            ensure!(ran.code == 0 && text.starts_with("/dev/pts/"), "{transport}: {ran:?}");
        }
        kubelet.finish(cx).await
    });
}

#[test]
fn the_first_process_is_talked_to_through_the_kubelet() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let line = "while read word; do echo got $word; done; sleep 1000";
        let main = with(busybox("main", line).await?, &json!({"stdin": true}));
        kubelet.add(&pod("echo", &[main]))?;
        kubelet.ready("echo").await?;
        let authority = kubelet.authority();
        let url = kubelet.url("attach", "echo", "main", "input=1&output=1&error=1");
        for transport in TRANSPORTS {
            let args =
                ["command", "-ca", &authority, "-transport", transport, "-stdin", "-stderr", &url];
            let mut client = spawn(&cx.netns, &args)?;
            let mut input = client.stdin.take().context("no stdin")?;
            let mut lines = BufReader::new(client.stdout.take().context("no stdout")?).lines();
            tokio::io::AsyncWriteExt::write_all(&mut input, format!("{transport}\n").as_bytes())
                .await?;
            let limit = e2e::scaled(Duration::from_secs(30));
            let answer = tokio::time::timeout(limit, lines.next_line()).await;
            let answer = answer.context("no answer")??.context("the stream has ended")?;
            same("the answer", answer, format!("got {transport}"))?;
        }
        kubelet.finish(cx).await
    });
}

/// Sends a word through a port that a client forwards, and returns what comes back.
async fn forwarded(cx: &Cx, kubelet: &Kubelet, word: &str) -> Result<String> {
    let (url, authority) = (kubelet.url("portForward", "web", "", ""), kubelet.authority());
    let mut client = spawn(&cx.netns, &["forward", "-ca", &authority, &url, ":8080"])?;
    let mut lines = BufReader::new(client.stdout.take().context("no stdout")?).lines();
    let line = lines.next_line().await?.context("the client ended at once")?;
    let port = line.strip_prefix("Forwarding from 127.0.0.1:").context(line.clone())?;
    let port: u16 = port.split(' ').next().context(line.clone())?.parse()?;
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let limit = e2e::scaled(Duration::from_secs(30));
    let mut stream = cx.netns.connect(SocketAddr::from(([127, 0, 0, 1], port)), limit)??;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(word.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_port_is_forwarded_through_the_kubelet() {
    test(async |cx| {
        let kubelet = Kubelet::start(cx, json!({})).await?;
        let main = with(
            busybox("main", "exec probe tcp-echo 8080").await?,
            &json!({"readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}),
        );
        kubelet.add(&pod("web", &[main]))?;
        kubelet.ready("web").await?;
        let answer = forwarded(cx, &kubelet, "hello").await?;
        ensure!(answer.starts_with("127.0.0.1") && answer.contains("hello"), "{answer}");
        kubelet.finish(cx).await
    });
}
