//! PortForward.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cri::refused;
use e2e::netns::NetNs;
use e2e::pod::{ContainerBuilder, Pod, PodBuilder};
use e2e::streams::{run, spawn};
use e2e::{Cx, same, test};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tonic::Code;

use super::forward_url;

const PATIENCE: Duration = Duration::from_secs(30);

/// A pod in which something sends back what comes at port 8080.
async fn echo(cx: &Cx, pod: PodBuilder) -> Result<Pod> {
    let image = cx.busybox().await?;
    let pod = cx.run_pod(pod).await?;
    let container = ContainerBuilder::new(&image).network().command(&["probe", "tcp-echo", "8080"]);
    cx.run(&pod, &container).await?;
    let log = pod.log(&container.config);
    let listens = async || Ok(std::fs::read_to_string(&log)?.contains("listening"));
    e2e::eventually(10, "the server listens", listens).await?;
    Ok(pod)
}

/// A client that forwards a port of its own; the port.
async fn forward(cx: &Cx, pod: &Pod, transport: &str) -> Result<(Child, SocketAddr)> {
    let url = forward_url(cx, &pod.id, &[]).await?;
    let args = ["forward", "-transport", transport, &url, ":8080"];
    let mut client = spawn(&cx.netns, &args)?;
    let mut lines = BufReader::new(client.stdout.take().context("stdout")?).lines();
    let line = lines.next_line().await?.context("the client ended at once")?;
    let port =
        line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
    let port = port.with_context(|| format!("{line:?}"))?.parse()?;
    // What it prints for each connection has to be read.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((client, SocketAddr::from(([127, 0, 0, 1], port))))
}

/// Sends bytes, then the end; what comes back, without the peer's address in front.
fn ask(netns: &NetNs, to: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = netns.connect(to, e2e::scaled(PATIENCE))??;
    stream.set_read_timeout(Some(e2e::scaled(PATIENCE)))?;
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = answer.iter().position(|byte| *byte == b' ').context("no answer")?;
    same("the peer", &answer[..text], b"127.0.0.1")?;
    Ok(answer.split_off(text + 1))
}

fn check_many(cx: &Cx, to: SocketAddr) -> Result<()> {
    let one = |number: usize| {
        let bytes: Vec<u8> =
            (0..1 << 20).map(|at| u8::try_from((at * number) % 251).unwrap_or(0)).collect();
        let answer = ask(&cx.netns, to, &bytes)?;
        ensure!(answer == bytes, "{number}: {} of {} bytes", answer.len(), bytes.len());
        Ok(())
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..20).map(|number| scope.spawn(move || one(number))).collect();
        all.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })
}

#[test]
fn many_connections_carry_much_both_ways_to_a_half_close() {
    test(async |cx| {
        let pod = echo(cx, cx.pod().network()).await?;
        let before = cx.daemon.peak_memory()?;
        for transport in ["spdy", "websocket"] {
            let (mut client, port) = forward(cx, &pod, transport).await?;
            check_many(cx, port)?;
            check_many(cx, port)?;
            client.kill().await?;
        }
        let grown = cx.daemon.peak_memory()?.saturating_sub(before);
        ensure!(grown < 64 << 20, "the daemon grew by {grown} bytes");
        Ok(())
    });
}

#[test]
fn a_port_where_nobody_listens_is_an_error_of_that_pair_alone() {
    test(async |cx| {
        let pod = echo(cx, cx.pod().network()).await?;
        for transport in ["spdy", "websocket"] {
            let url = forward_url(cx, &pod.id, &[]).await?;
            let args = ["pairs", "-transport", transport, &url, "8080", "9", "8080"];
            let ran = run(&cx.netns, &args, b"").await?;
            let text = String::from_utf8(ran.stdout)?;
            let lines: Vec<&str> = text.lines().collect();
            ensure!(ran.code == 0 && lines.len() == 3, "{text}{}", ran.stderr);
            let good = "8080: data \"127.0.0.1 word\" error \"\"";
            same(transport, (lines[0], lines[2]), (good, good))?;
            ensure!(
                lines[1].starts_with("9: data \"\" error \"connect to port 9 of sandbox")
                    && lines[1].contains("refused"),
                "{text}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_pod_of_the_nodes_network_has_the_nodes_ports() {
    test(async |cx| {
        let pod = echo(cx, cx.pod()).await?;
        let (mut client, port) = forward(cx, &pod, "spdy").await?;
        same("answer", ask(&cx.netns, port, b"hello")?, b"hello")?;
        client.kill().await?;
        Ok(())
    });
}

#[test]
fn only_a_ready_sandbox_has_ports() {
    test(async |cx| {
        let pod = echo(cx, cx.pod().network()).await?;
        let ask = async |id: &str, port: i32| {
            let request =
                k8s_cri::v1::PortForwardRequest { pod_sandbox_id: id.into(), port: vec![port] };
            cx.cri().raw().0.port_forward(request).await.map(tonic::Response::into_inner)
        };
        let wrong = ask(&pod.id, 65536).await;
        same("a port", refused("a port", wrong, &["port"]), Code::InvalidArgument)?;
        let missing = ask(&"f".repeat(64), 80).await;
        same("no sandbox", refused("missing", missing, &["sandbox"]), Code::NotFound)?;
        let url = forward_url(cx, &pod.id, &[]).await?;
        cx.cri().stop_pod(&pod.id).await?;
        refused("a stopped one", ask(&pod.id, 80).await, &["ready"]);
        // What was allowed before does not hold any more either.
        let ran = run(&cx.netns, &["pairs", &url, "8080"], b"").await?;
        let text = String::from_utf8(ran.stdout)?;
        ensure!(text.contains("not ready"), "{text}{}", ran.stderr);
        Ok(())
    });
}
