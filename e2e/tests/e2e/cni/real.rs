//! Real plugins, which others wrote: Debian's, which speak CNI 1.0, and the newest, which speak 1.1.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::netns::NetNs;
use e2e::pod::{ContainerBuilder, Pod, PodBuilder};
use e2e::{Cx, same, test_with};
use k8s_cri::v1::Protocol;
use serde_json::{Value, json};

use super::{
    DEBIAN, addresses, host_local, install, intents, is_ready, network_is, network_status, newest,
    plugins, setup, status, taken,
};

/// A pod with a container that echoes on TCP port 80.
async fn serve(cx: &Cx, pod: PodBuilder, image: &str) -> Result<(Pod, String)> {
    let pod = cx.run_pod(pod).await?;
    let container = ContainerBuilder::new(image).network().command(&["probe", "tcp-echo", "80"]);
    let id = cx.run(&pod, &container).await?;
    let log = pod.log(&container.config);
    e2e::eventually(10, "the server listens", async || {
        Ok(std::fs::read_to_string(&log)?.contains("listening"))
    })
    .await?;
    Ok((pod, id))
}

async fn from_pod(cx: &Cx, id: &str, to: &str, port: &str) -> Result<String> {
    cx.exec(id, &["probe", "tcp", to, port, "hello"]).await
}

fn from_node(netns: &NetNs, to: SocketAddr) -> Result<String> {
    let patience = e2e::scaled(Duration::from_secs(3));
    let mut stream = netns.connect(to, patience)??;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"hello")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn bridge(cx: &Cx, subnets: &[&str]) -> Value {
    json!({"type": "bridge", "bridge": "e2e0", "isGateway": true, "hairpinMode": true, "ipam": host_local(cx, subnets)})
}

async fn gone(cx: &Cx, pods: &[Pod]) -> Result<()> {
    for pod in pods {
        cx.cri().stop_pod(&pod.id).await?;
        same("addresses of a stopped pod", addresses(cx, pod).await?, vec![String::new()])?;
        cx.cri().remove_pod(&pod.id).await?;
    }
    same("addresses that are taken", taken(cx, "real")?, Vec::<String>::new())?;
    same("intents", intents(cx).into_iter().filter(|name| name.len() == 64).count(), 0)
}

/// What most clusters have: a bridge, host ports, a firewall, bandwidth.
async fn chain(cx: &Cx, dir: &Path, version: &str) -> Result<()> {
    plugins(cx, dir)?;
    let network = json!({"cniVersion": version, "name": "real", "plugins": [
        bridge(cx, &["10.77.0.0/24"]),
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        {"type": "firewall", "backend": "iptables"},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}},
    ]});
    let (ready, text) = network_status(cx).await?;
    ensure!(!ready && text.contains("there is no CNI configuration in"), "{ready} {text}");
    install(cx, "10-real.conflist", &network)?;
    network_is(cx, true, "network real").await?;
    let pod = || {
        cx.pod().network().port(Protocol::Tcp, 18090, 80).with(|config| {
            let limit = |way: &str| (format!("kubernetes.io/{way}-bandwidth"), "10M".to_owned());
            config.annotations.extend([limit("ingress"), limit("egress")]);
        })
    };
    // Plugins keep their bridge and their chains of rules.
    let warm = cx.run_pod(pod()).await?;
    gone(cx, &[warm]).await?;
    cx.settle().await?;
    let image = cx.busybox().await?;
    let (one, first) = serve(cx, pod(), &image).await?;
    let (two, second) = serve(cx, cx.pod().network(), &image).await?;
    let (own, other) =
        (addresses(cx, &one).await?[0].clone(), addresses(cx, &two).await?[0].clone());
    same("addresses that are taken", taken(cx, "real")?.len(), 2)?;
    same("from pod to pod", from_pod(cx, &second, &own, "80").await?, format!("{other} hello\n"))?;
    let node: IpAddr = own.parse()?;
    ensure!(from_node(&cx.netns, SocketAddr::new(node, 80))?.ends_with(" hello"), "from the node");
    let port = SocketAddr::from(([127, 0, 0, 1], 18090));
    ensure!(from_node(&cx.netns, port)?.ends_with(" hello"), "by the host port");
    let inside = cx.exec(&first, &["ip", "-o", "addr"]).await?;
    ensure!(
        inside.contains("127.0.0.1/8") && inside.contains(&format!("eth0    inet {own}/")),
        "{inside}"
    );
    same(
        "router advertisements",
        cx.exec(&first, &["cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra"]).await?.trim(),
        "0",
    )?;
    let shaped = cx.netns.output("tc", &["qdisc", "show"])?;
    ensure!(shaped.contains("tbf") && shaped.contains("rate 10Mbit"), "{shaped}");
    gone(cx, &[one, two]).await
}

#[test]
fn debians_plugins_serve_as_a_chain() {
    test_with(setup("cni"), async |cx| chain(cx, Path::new(DEBIAN), "1.0.0").await);
}

#[test]
fn the_newest_plugins_serve_as_a_chain() {
    test_with(setup("cni"), async |cx| chain(cx, &newest()?, "1.1.0").await);
}

#[test]
fn addresses_survive_the_daemon() {
    test_with(setup("cni"), async |cx| {
        plugins(cx, &newest()?)?;
        let network = json!({"cniVersion": "1.1.0", "name": "real", "plugins": [
            bridge(cx, &["10.77.0.0/24", "fd77::/64"]),
        ]});
        install(cx, "10-real.conflist", &network)?;
        network_is(cx, true, "network real").await?;
        let warm = cx.run_pod(cx.pod().network()).await?;
        gone(cx, &[warm]).await?;
        cx.settle().await?;
        let image = cx.busybox().await?;
        let (pod, id) = serve(cx, cx.pod().network(), &image).await?;
        let before = addresses(cx, &pod).await?;
        ensure!(before.len() == 2 && before[0].starts_with("10.77.0."), "{before:?}");
        ensure!(before[1].starts_with("fd77::"), "{before:?}");
        let node = SocketAddr::new(before[1].parse()?, 80);
        // Nothing listens there on IPv6: it is the way that is tried, once the kernel has found addresses to be unique.
        e2e::eventually(20, "the pod refuses a connection by IPv6", async || {
            let refused = from_node(&cx.netns, node).err().context("an answer on IPv6")?;
            Ok(format!("{refused:#}").contains("refused"))
        })
        .await?;
        cx.daemon.kill()?;
        cx.daemon.restart().await?;
        same("addresses", addresses(cx, &pod).await?, before.clone())?;
        let other = cx.run_pod(cx.pod().network()).await?;
        ensure!(addresses(cx, &other).await? != before, "an address was given twice");
        ensure!(cx.exec(&id, &["ip", "-o", "addr"]).await?.contains(&before[0]), "the pod lost it");
        // Collected are only those that nobody has.
        same("addresses that are taken", taken(cx, "real")?.len(), 4)?;
        gone(cx, &[pod, other]).await
    });
}

#[test]
fn ptp_and_macvlan_serve() {
    test_with(setup("cni"), async |cx| {
        plugins(cx, Path::new(DEBIAN))?;
        cx.netns.ip("link add e2e1 type veth peer name e2e2")?;
        cx.netns.ip("link set e2e1 up")?;
        cx.netns.ip("link set e2e2 up")?;
        let first = json!({"type": "ptp", "ipam": host_local(cx, &["10.76.0.0/24"])});
        install(
            cx,
            "10-real.conflist",
            &json!({"cniVersion": "1.0.0", "name": "real", "plugins": [first]}),
        )?;
        network_is(cx, true, "network real").await?;
        let warm = cx.run_pod(cx.pod().network()).await?;
        gone(cx, &[warm]).await?;
        cx.settle().await?;
        let image = cx.busybox().await?;
        for (kind, plugin) in [
            ("ptp", json!({"type": "ptp", "ipam": host_local(cx, &["10.78.0.0/24"])})),
            (
                "macvlan",
                json!({"type": "macvlan", "master": "e2e1", "ipam": host_local(cx, &["10.79.0.0/24"])}),
            ),
        ] {
            let network = json!({"cniVersion": "1.0.0", "name": "real", "plugins": [plugin]});
            install(cx, "10-real.conflist", &network)?;
            network_is(cx, true, "network real").await?;
            let subnet = if kind == "ptp" { "10.78.0." } else { "10.79.0." };
            // The file is read a moment after it has come.
            let pods = std::sync::Mutex::new(Vec::new());
            e2e::eventually(10, "the new configuration serves", async || {
                let pod = cx.run_pod(cx.pod().network()).await?;
                let serves = addresses(cx, &pod).await?[0].starts_with(subnet);
                e2e::case::lock(&pods).push(pod);
                Ok(serves)
            })
            .await?;
            let (one, _) = serve(cx, cx.pod().network(), &image).await?;
            let (two, id) = serve(cx, cx.pod().network(), &image).await?;
            let own = addresses(cx, &one).await?[0].clone();
            let answer = from_pod(cx, &id, &own, "80").await.context(kind)?;
            ensure!(answer.ends_with(" hello\n"), "{kind}: {answer}");
            let mut pods = pods.into_inner()?;
            pods.extend([one, two]);
            gone(cx, &pods).await?;
        }
        Ok(())
    });
}

#[test]
fn a_configuration_that_comes_takes_over_from_the_bridge() {
    test_with(setup("auto"), async |cx| {
        plugins(cx, Path::new(DEBIAN))?;
        cx.warm().await?;
        cx.settle().await?;
        let (ready, text) = network_status(cx).await?;
        ensure!(ready && text.contains("DefaultNetwork"), "{ready} {text}");
        let image = cx.busybox().await?;
        let old = cx.run_pod(cx.pod().network()).await?;
        let node = cx.run_pod(cx.pod()).await?;
        let run =
            cx.daemon.berth(&["run", "-d", "--name", "local", &image, "sleep", "1000"]).output()?;
        ensure!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let network = json!({"cniVersion": "1.0.0", "name": "real", "plugins": [bridge(cx, &["10.77.0.0/24"])]});
        install(cx, "87-podman.conflist", &network)?;
        network_is(cx, true, "network real").await?;
        e2e::eventually(10, "the pod on the bridge is no longer ready", async || {
            Ok(!is_ready(&status(cx, &old.id).await?))
        })
        .await?;
        ensure!(is_ready(&status(cx, &node.id).await?), "a pod on the host's network is not ready");
        let new = cx.run_pod(cx.pod().network()).await?;
        ensure!(addresses(cx, &new).await?[0].starts_with("10.77.0."), "the new pod is elsewhere");
        let run = cx.daemon.berth(&["run", "--rm", &image, "ip", "-o", "-4", "addr"]).output()?;
        let inside = String::from_utf8_lossy(&run.stdout).into_owned();
        ensure!(
            run.status.success() && inside.contains("eth0") && !inside.contains("10.77.0."),
            "{inside}"
        );
        let ps = cx.daemon.berth(&["ps"]).output()?;
        ensure!(
            String::from_utf8_lossy(&ps.stdout).contains("local"),
            "the pod of berth run is gone"
        );
        gone(cx, &[new, old]).await?;
        cx.netns.ip("link del e2e0").map(drop)
    });
}
