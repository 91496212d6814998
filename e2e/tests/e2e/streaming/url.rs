//! The URLs: where they are, for whom, how long, and what is refused there.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cri::refused;
use e2e::netns::NetNs;
use e2e::pod::ContainerBuilder;
use e2e::{Cx, same, test};
use tonic::Code;

use super::{exec_url, forward_url, idle, request, shell_url};

const PATIENCE: Duration = Duration::from_secs(20);
const UPGRADE: &str =
    "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";

/// Address and path of a URL.
fn parts(url: &str) -> Result<(SocketAddr, String)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url:?} is not absolute"))?;
    let (address, path) = rest.split_once('/').context("no path")?;
    Ok((address.parse()?, format!("/{path}")))
}

/// Sends the head of a request and reads until the server closes, which it must do after a refusal.
fn refusal(cx: &Cx, to: SocketAddr, line: &str, headers: &str) -> Result<String> {
    let mut stream = cx.netns.connect(to, e2e::scaled(PATIENCE))??;
    stream.set_read_timeout(Some(e2e::scaled(PATIENCE)))?;
    write!(stream, "{line}\r\nHost: berth\r\n{headers}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the connection stays open")?;
    Ok(answer)
}

#[track_caller]
fn check(cx: &Cx, to: SocketAddr, line: &str, headers: &str, status: u16) -> Result<String> {
    let answer = refusal(cx, to, line, headers)?;
    ensure!(
        answer.starts_with(&format!("HTTP/1.1 {status} ")),
        "{line}\n{headers}: expected {status}, got {answer}"
    );
    Ok(answer)
}

#[test]
fn a_token_is_long_good_once_and_for_one_thing() {
    test(async |cx| {
        let id = idle(cx).await?;
        let (address, path) = parts(&shell_url(cx, &id, "true").await?)?;
        ensure!(address.ip().is_loopback(), "{address}");
        let token = path.strip_prefix("/exec/").context("another path")?.to_owned();
        same("hexadecimal digits", token.len(), 32)?;
        let get = |path: &str| format!("POST {path} HTTP/1.1");
        // Of another kind, which uses it up.
        check(cx, address, &get(&format!("/attach/{token}")), UPGRADE, 404)?;
        check(cx, address, &get(&path), UPGRADE, 404)?;
        let (_, path) = parts(&shell_url(cx, &id, "true").await?)?;
        check(cx, address, &get(&path), "", 400)?;
        check(cx, address, &get(&path), UPGRADE, 404)?;
        for path in ["/", "/exec", "/exec/", "/exec/..", "/exec/00000000000000000000000000000000"] {
            check(cx, address, &get(path), UPGRADE, 404)?;
        }
        // Whoever uses another method has used nothing up.
        let (_, path) = parts(&shell_url(cx, &id, "true").await?)?;
        check(cx, address, &format!("DELETE {path} HTTP/1.1"), UPGRADE, 405)?;
        check(cx, address, &get(&path), "Connection: Upgrade\r\nUpgrade: h2c\r\n", 400)?;
        Ok(())
    });
}

#[test]
fn a_handshake_that_is_not_quite_right_is_refused_and_the_connection_closed() {
    test(async |cx| {
        let id = idle(cx).await?;
        let spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
        let socket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        let key = "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n";
        let protocol = "Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n";
        for (method, headers, status) in [
            ("POST", spdy.to_owned(), 400),
            ("POST", format!("{spdy}X-Stream-Protocol-Version: \r\n"), 400),
            ("POST", format!("{UPGRADE}Content-Length: 5\r\n"), 400),
            ("POST", format!("{UPGRADE}Transfer-Encoding: chunked\r\n"), 400),
            ("POST", UPGRADE.replace("SPDY/3.1", "SPDY/2"), 400),
            ("POST", UPGRADE.replace("Connection: Upgrade\r\n", ""), 400),
            ("POST", UPGRADE.replace("Upgrade: SPDY/3.1\r\n", ""), 400),
            ("POST", format!("{socket}{key}{protocol}"), 400),
            ("GET", format!("{socket}{protocol}"), 400),
            ("GET", format!("{socket}Sec-WebSocket-Key: short\r\n{protocol}"), 400),
            ("GET", format!("{}{key}", socket.replace("13", "8")), 400),
            ("GET", format!("{socket}{key}Sec-WebSocket-Protocol: v9.channel.k8s.io\r\n"), 403),
        ] {
            let (address, path) = parts(&shell_url(cx, &id, "true").await?)?;
            check(cx, address, &format!("{method} {path} HTTP/1.1"), &headers, status)?;
        }
        let (address, path) = parts(&shell_url(cx, &id, "true").await?)?;
        let other = format!("{spdy}X-Stream-Protocol-Version: v5.channel.k8s.io, v9\r\n");
        let answer = check(cx, address, &format!("POST {path} HTTP/1.1"), &other, 403)?;
        let accepted = "x-accepted-stream-protocol-versions: v4.channel.k8s.io";
        ensure!(answer.to_lowercase().contains(accepted), "{answer}");
        let pod = cx.run_pod(cx.pod().name("other")).await?;
        let (address, path) = parts(&forward_url(cx, &pod.id, &[]).await?)?;
        check(cx, address, &format!("POST {path} HTTP/1.1"), UPGRADE, 403).map(drop)
    });
}

#[test]
fn rubbish_in_place_of_spdy_ends_the_connection_and_nothing_else() {
    test(async |cx| {
        let id = idle(cx).await?;
        for rubbish in
            [&b"\x80\x03\x00\x01\x00\xff\xff\xff"[..], b"GET / HTTP/1.1\r\n\r\n", &[0x80; 64]]
        {
            let (address, path) = parts(&shell_url(cx, &id, "true").await?)?;
            let mut stream = cx.netns.connect(address, e2e::scaled(PATIENCE))??;
            stream.set_read_timeout(Some(e2e::scaled(PATIENCE)))?;
            write!(stream, "POST {path} HTTP/1.1\r\nHost: berth\r\n{UPGRADE}\r\n")?;
            stream.write_all(rubbish)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut answer = Vec::new();
            // However it ends: it does.
            stream.read_to_end(&mut answer).ok();
            ensure!(answer.starts_with(b"HTTP/1.1 101 "), "{:?}", String::from_utf8_lossy(&answer));
        }
        same("an exec after that", cx.exec(&id, &["echo", "x"]).await?, "x\n")
    });
}

#[test]
fn a_thousand_urls_may_wait_and_no_more() {
    test(async |cx| {
        let id = idle(cx).await?;
        for _ in 0..1000 {
            exec_url(cx, request(&id, &["true"])).await?;
        }
        let more = cx.cri().raw().0.exec(request(&id, &["true"])).await;
        let code = refused("one more", more.map(tonic::Response::into_inner), &["1000"]);
        same("the code", code, Code::ResourceExhausted)?;
        same("an ExecSync", cx.exec(&id, &["echo", "x"]).await?, "x\n")
    });
}

#[test]
fn h_03_from_pods_and_neighbours_the_port_is_out_of_reach() {
    test(async |cx| {
        let image = cx.busybox().await?;
        let pod = cx.run_pod(cx.pod().network()).await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).network().idle()).await?;
        let (address, _) = parts(&shell_url(cx, &id, "true").await?)?;
        let port = address.port().to_string();
        let reached = |line: &str| line.replace("PORT", &port);
        // It is there, for the node.
        cx.netns.connect(address, e2e::scaled(PATIENCE))??;
        let line =
            "gateway=$(ip route | awk '/^default/ {print $3}'); [ -n \"$gateway\" ] || exit 9
            for to in 127.0.0.1 $gateway; do nc -w 2 $to PORT </dev/null && exit 8; done; exit 0";
        let tried = cx.cri().exec_sync(&id, &["sh", "-c", &reached(line)], 30).await?;
        same("from a pod", tried.exit_code, 0)
    });
}

#[test]
fn h_03_a_neighbour_cannot_reach_the_port() {
    e2e::test_with(e2e::Setup { cold: true, ..Default::default() }, async |cx| {
        let world = NetNs::new()?;
        cx.netns.link_to(&world, "198.51.100.1/24", "198.51.100.2/24")?;
        cx.warm().await?;
        cx.settle().await?;
        let id = idle(cx).await?;
        let (address, _) = parts(&shell_url(cx, &id, "true").await?)?;
        let node = SocketAddr::from(([198, 51, 100, 1], address.port()));
        let reached = world.connect(node, e2e::scaled(Duration::from_secs(2)))?;
        ensure!(reached.is_err(), "{node} can be reached");
        Ok(())
    });
}
