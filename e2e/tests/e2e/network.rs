//! The built-in network: addresses, ways between pods, node and world, host ports, and what must not be reached.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cri::refused;
use e2e::daemon::Options;
use e2e::netns::NetNs;
use e2e::pod::{ContainerBuilder, Pod, PodBuilder};
use e2e::{Cx, Setup, same, test_with};
use k8s_cri::v1::*;

const PATIENCE: Duration = Duration::from_secs(3);
/// A node and its neighbour, from the networks for documentation (RFC 5737).
const NODE: &str = "198.51.100.1";
const WORLD: &str = "198.51.100.2";

/// A test whose daemon finds the network as the body has made it.
#[track_caller]
fn cold_test(body: impl AsyncFnOnce(&Cx) -> Result<()>) {
    test_with(Setup { cold: true, ..Setup::default() }, body);
}

/// What stays once a network was needed is there before the census, and so is all that the test has made itself: links
/// and rules come before this call.
async fn warm(cx: &Cx) -> Result<String> {
    cx.warm().await?;
    cx.settle().await?;
    cx.busybox().await
}

async fn address(cx: &Cx, pod: &Pod) -> Result<IpAddr> {
    let status = cx.cri().pod_status(&pod.id).await?.status.context("no status")?;
    let network = status.network.context("no network in the status")?;
    network.ip.parse().with_context(|| format!("the address {:?}", network.ip))
}

/// A pod with a container in it.
async fn serve(cx: &Cx, pod: PodBuilder, image: &str, command: &[&str]) -> Result<(Pod, String)> {
    let pod = cx.run_pod(pod).await?;
    let container = ContainerBuilder::new(image).network().command(command);
    let id = cx.run(&pod, &container).await?;
    let log = pod.log(&container.config);
    if command.iter().any(|word| word.contains("echo")) {
        let listens = async || Ok(std::fs::read_to_string(&log)?.contains("listening"));
        e2e::eventually(10, "the server listens", listens).await?;
    }
    Ok((pod, id))
}

/// Sends a text to a TCP echo from a namespace; the answer has the peer's address in front.
fn tcp(netns: &NetNs, to: SocketAddr, text: &str) -> Result<String> {
    let mut stream = netns.connect(to, e2e::scaled(PATIENCE))??;
    stream.set_read_timeout(Some(e2e::scaled(PATIENCE)))?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn udp(netns: &NetNs, to: SocketAddr, text: &str) -> Result<String> {
    let socket = netns.inside(|| UdpSocket::bind("0.0.0.0:0"))??;
    socket.set_read_timeout(Some(e2e::scaled(PATIENCE)))?;
    socket.send_to(text.as_bytes(), to)?;
    let mut answer = [0; 2048];
    let (length, _) = socket.recv_from(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Answers one connection in a namespace with the peer's address; ends with the test.
fn answer(netns: &NetNs, address: SocketAddr) -> Result<u16> {
    let listener = netns.inside(|| TcpListener::bind(address))??;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let peer =
                stream.peer_addr().map_or_else(|_| String::new(), |peer| peer.ip().to_string());
            stream.write_all(peer.as_bytes()).ok();
        }
    });
    Ok(port)
}

fn localhost(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A neighbour of the node.
fn world(cx: &Cx) -> Result<NetNs> {
    let world = NetNs::new()?;
    cx.netns.link_to(&world, &format!("{NODE}/24"), &format!("{WORLD}/24"))?;
    Ok(world)
}

#[test]
fn pods_have_addresses_and_reach_each_other() {
    cold_test(async |cx| {
        let _world = world(cx)?;
        let image = warm(cx).await?;
        let (one, _) =
            serve(cx, cx.pod().network(), &image, &["probe", "tcp-echo", "8080"]).await?;
        let (two, id) = serve(cx, cx.pod().network(), &image, &["probe", "idle"]).await?;
        let (first, second) = (address(cx, &one).await?, address(cx, &two).await?);
        ensure!(first != second && first.is_ipv4(), "{first} and {second}");
        let text = cx.exec(&id, &["probe", "tcp", &first.to_string(), "8080", "hello"]).await?;
        same("from pod to pod", text, format!("{second} hello\n"))?;
        // Inside: loopback is up, eth0 has the address, a default route leads out.
        let links = cx.exec(&id, &["ip", "-o", "addr"]).await?;
        ensure!(
            links.contains("127.0.0.1/8") && links.contains(&format!("eth0    inet {second}/")),
            "{links}"
        );
        ensure!(cx.exec(&id, &["ip", "route"]).await?.contains("default via"), "no default route");
        same(
            "router advertisements",
            cx.exec(&id, &["cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra"]).await?.trim(),
            "0",
        )?;
        // The node reaches the pod, and the pod the node.
        ensure!(tcp(&cx.netns, SocketAddr::new(first, 8080), "x")?.ends_with(" x"), "node to pod");
        let port = answer(&cx.netns, SocketAddr::from(([0, 0, 0, 0], 0)))?;
        let text = cx.exec(&id, &["probe", "tcp", NODE, &port.to_string(), ""]).await?;
        same("from pod to node", text.trim(), second.to_string())
    });
}

#[test]
fn pods_reach_the_world_behind_the_nodes_address() {
    cold_test(async |cx| {
        let world = world(cx)?;
        let image = warm(cx).await?;
        let port = answer(&world, SocketAddr::from(([0, 0, 0, 0], 0)))?;
        let (_, id) = serve(cx, cx.pod().network(), &image, &["probe", "idle"]).await?;
        let text = cx.exec(&id, &["probe", "tcp", WORLD, &port.to_string(), ""]).await?;
        same("what the world sees", text.trim(), NODE)?;
        cx.exec(&id, &["ping", "-c", "1", "-W", "3", WORLD]).await.map(drop)
    });
}

#[test]
fn the_node_does_not_become_a_router_for_others() {
    cold_test(async |cx| {
        let (world, other) = (world(cx)?, NetNs::new()?);
        cx.netns.ip(&format!(
            "link add e2e2 type veth peer name e2e3 netns {}",
            other.path().display()
        ))?;
        cx.netns.ip("addr add 203.0.113.1/24 dev e2e2")?;
        cx.netns.ip("link set e2e2 up")?;
        other.ip("addr add 203.0.113.2/24 dev e2e3")?;
        other.ip("link set e2e3 up")?;
        other.ip("route add default via 203.0.113.1")?;
        world.ip(&format!("route add default via {NODE}"))?;
        // A namespace inherits the switch of the machine.
        cx.netns.output("sysctl", &["-qw", "net.ipv4.ip_forward=0"])?;
        let image = warm(cx).await?;
        serve(cx, cx.pod().network(), &image, &["probe", "idle"]).await?;
        let port = answer(&other, SocketAddr::from(([0, 0, 0, 0], 0)))?;
        let to = SocketAddr::from((Ipv4Addr::new(203, 0, 113, 2), port));
        ensure!(tcp(&world, to, "").is_err(), "a stranger was forwarded to another");
        // The same way with a pod at one end is open.
        let (_, id) = serve(cx, cx.pod().network(), &image, &["probe", "idle"]).await?;
        cx.exec(&id, &["probe", "tcp", "203.0.113.2", &port.to_string(), ""]).await.map(drop)
    });
}

#[test]
fn host_ports_are_reached_from_everywhere() {
    cold_test(async |cx| {
        let world = world(cx)?;
        let image = warm(cx).await?;
        let pod = cx.pod().network().port(Protocol::Tcp, 18080, 80).port(Protocol::Udp, 18080, 53);
        let (pod, id) = serve(cx, pod, &image, &["probe", "tcp-echo", "80"]).await?;
        let mut udp_echo =
            ContainerBuilder::new(&image).network().command(&["probe", "udp-echo", "53"]);
        udp_echo.config.log_path = "udp.log".into();
        cx.run(&pod, &udp_echo).await?;
        let log = pod.log(&udp_echo.config);
        e2e::eventually(10, "the server listens", async || {
            Ok(std::fs::read_to_string(&log)?.contains("listening"))
        })
        .await?;
        let own = address(cx, &pod).await?.to_string();
        let node = SocketAddr::from((NODE.parse::<Ipv4Addr>()?, 18080));
        for (what, netns, to) in [
            ("127.0.0.1", &cx.netns, localhost(18080)),
            ("the node itself", &cx.netns, node),
            ("the world", &world, node),
        ] {
            ensure!(tcp(netns, to, "tcp")?.ends_with(" tcp"), "TCP from {what}");
            ensure!(udp(netns, to, "udp")?.ends_with(" udp"), "UDP from {what}");
        }
        ensure!(tcp(&world, node, "x")?.starts_with(WORLD), "the world's address does not arrive");
        // From another pod and from itself.
        let (_, other) = serve(cx, cx.pod().network(), &image, &["probe", "idle"]).await?;
        for from in [&other, &id] {
            let text = cx.exec(from, &["probe", "tcp", NODE, "18080", "pod"]).await?;
            ensure!(text.ends_with(" pod\n"), "{text}");
        }
        ensure!(!own.is_empty(), "no address");
        // Gone with the pod.
        cx.cri().stop_pod(&pod.id).await?;
        ensure!(tcp(&cx.netns, localhost(18080), "x").is_err(), "the port answers without its pod");
        Ok(())
    });
}

#[test]
fn a_pod_reaches_itself_through_a_service() {
    cold_test(async |cx| {
        let _world = world(cx)?;
        let image = warm(cx).await?;
        let (pod, id) =
            serve(cx, cx.pod().network(), &image, &["probe", "tcp-echo", "8080"]).await?;
        let own = address(cx, &pod).await?;
        // What kube-proxy makes of a service with this pod behind it.
        let table = format!(
            "table ip e2e_service {{ chain arrive {{ type nat hook prerouting priority dstnat; \
             ip daddr 10.96.0.1 tcp dport 80 dnat to {own}:8080; }}; }}"
        );
        cx.netns.output("nft", &[&table])?;
        for bridged in ["0", "1"] {
            // br_netfilter: frames between the bridge's ports are translated too.
            let setting = format!("net.bridge.bridge-nf-call-iptables={bridged}");
            if cx.netns.output("sysctl", &["-qw", &setting]).is_err() {
                continue;
            }
            let text = cx.exec(&id, &["probe", "tcp", "10.96.0.1", "80", "hello"]).await;
            let text = text.with_context(|| setting)?;
            ensure!(text.ends_with(" hello\n"), "{text}");
        }
        cx.netns.output("nft", &["delete", "table", "ip", "e2e_service"])?;
        Ok(())
    });
}

#[test]
fn a_host_port_has_one_holder() {
    cold_test(async |cx| {
        let image = warm(cx).await?;
        let pod = |protocol| cx.pod().network().port(protocol, 18081, 80);
        let (first, _) =
            serve(cx, pod(Protocol::Tcp), &image, &["probe", "tcp-echo", "80"]).await?;
        let second = pod(Protocol::Tcp);
        std::fs::create_dir_all(&second.config.log_directory)?;
        refused("the port of another pod", cx.cri().run_pod(&second.config, "").await, &["18081"]);
        // A port that a process of the node has.
        let _taken = cx.netns.listen(SocketAddr::from(([0, 0, 0, 0], 18082)))?;
        let third = cx.pod().network().port(Protocol::Tcp, 18082, 80);
        std::fs::create_dir_all(&third.config.log_directory)?;
        refused("the port of a process", cx.cri().run_pod(&third.config, "").await, &["18082"]);
        same("pods", cx.cri().list_pods(None).await?.len(), 1)?;
        // The other way: a process cannot take what a pod has.
        ensure!(
            cx.netns.listen(SocketAddr::from(([0, 0, 0, 0], 18081))).is_err(),
            "a process took the port"
        );
        // Another protocol is another port, and a port is free when its pod has stopped.
        cx.run_pod(pod(Protocol::Udp)).await?;
        cx.cri().stop_pod(&first.id).await?;
        cx.run_pod(pod(Protocol::Tcp)).await.map(drop)
    });
}

#[test]
fn a_host_port_may_be_on_one_address_alone() {
    cold_test(async |cx| {
        let world = world(cx)?;
        let image = warm(cx).await?;
        let with_ip = |ip: &str| {
            let ip = ip.to_owned();
            cx.pod()
                .network()
                .port(Protocol::Tcp, 18083, 80)
                .with(|config| config.port_mappings[0].host_ip = ip)
        };
        serve(cx, with_ip("127.0.0.1"), &image, &["probe", "tcp-echo", "80"]).await?;
        let node = SocketAddr::from((NODE.parse::<Ipv4Addr>()?, 18083));
        ensure!(tcp(&cx.netns, localhost(18083), "x").is_ok(), "127.0.0.1");
        ensure!(tcp(&world, node, "x").is_err(), "the world reaches a port of 127.0.0.1");
        // The same port on another address is free.
        serve(cx, with_ip(NODE), &image, &["probe", "tcp-echo", "80"]).await?;
        ensure!(tcp(&world, node, "x").is_ok(), "the node's address");
        let bad = with_ip("no address");
        std::fs::create_dir_all(&bad.config.log_directory)?;
        refused("an address that is none", cx.cri().run_pod(&bad.config, "").await, &["host_ip"]);
        Ok(())
    });
}

#[test]
fn bad_ports_are_refused() {
    cold_test(async |cx| {
        for (protocol, host, container) in
            [(0, 70_000, 80), (0, -1, 80), (0, 80, 0), (0, 80, 70_000), (9, 80, 80)]
        {
            let pod = cx.pod().network().with(|config| {
                config.port_mappings.push(PortMapping {
                    protocol,
                    host_port: host,
                    container_port: container,
                    ..Default::default()
                });
            });
            std::fs::create_dir_all(&pod.config.log_directory)?;
            refused(
                &format!("{protocol} {host}:{container}"),
                cx.cri().run_pod(&pod.config, "").await,
                &["port_mappings"],
            );
        }
        Ok(())
    });
}

#[test]
fn an_sctp_port_has_a_rule() {
    cold_test(async |cx| {
        warm(cx).await?;
        let pod = cx.run_pod(cx.pod().network().port(Protocol::Sctp, 18084, 9000)).await?;
        let rules = cx.netns.output("nft", &["list", "ruleset"])?;
        ensure!(rules.contains("sctp") && rules.contains("18084"), "{rules}");
        cx.cri().stop_pod(&pod.id).await?;
        ensure!(
            !cx.netns.output("nft", &["list", "ruleset"])?.contains("18084"),
            "the rule is left"
        );
        Ok(())
    });
}

#[test]
fn the_nodes_loopback_is_out_of_reach() {
    cold_test(async |cx| {
        let image = warm(cx).await?;
        let port = answer(&cx.netns, localhost(0))?.to_string();
        // A host port makes the kernel route 127/8 over the bridge: the worst moment.
        serve(
            cx,
            cx.pod().network().port(Protocol::Tcp, 18085, 80),
            &image,
            &["probe", "tcp-echo", "80"],
        )
        .await?;
        let pod = cx.run_pod(cx.pod().network().privileged()).await?;
        let id = cx.run(&pod, &ContainerBuilder::new(&image).network().privileged().idle()).await?;
        let route = cx.exec(&id, &["ip", "route"]).await?;
        let gateway = route.split_whitespace().nth(2).context("no gateway")?.to_owned();
        ensure!(
            cx.exec(&id, &["probe", "tcp", &gateway, &port, ""]).await.is_err(),
            "by the gateway's address"
        );
        // What a root of a pod with all rights can do: send 127/8 to the node.
        let script = format!(
            "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet; \
             ip addr del 127.0.0.1/8 dev lo; ip route flush table local 127.0.0.0/8; ip route add 127.0.0.0/8 via {gateway}"
        );
        cx.exec(&id, &["sh", "-c", &script]).await.ok();
        for host in ["127.0.0.1", "127.0.0.2"] {
            for port in [port.as_str(), "18085"] {
                ensure!(
                    cx.exec(&id, &["probe", "tcp", host, port, ""]).await.is_err(),
                    "{host}:{port} of the node answers"
                );
            }
        }
        ensure!(
            tcp(&cx.netns, localhost(18085), "x").is_ok(),
            "the host port itself no longer works"
        );
        Ok(())
    });
}

fn tiny() -> Setup {
    let config = "[network]\nbridge_subnet = \"10.213.7.0/28\"\n";
    Setup {
        daemon: Options { config: Some(config.into()), ..Options::default() },
        cold: true,
        ..Setup::default()
    }
}

#[test]
fn addresses_never_run_out_over_time() {
    test_with(tiny(), async |cx| {
        warm(cx).await?;
        for _ in 0..e2e::count(50, 1000) {
            let pod = cx.run_pod(cx.pod().network()).await?;
            ensure!(
                address(cx, &pod).await?.to_string().starts_with("10.213.7."),
                "another subnet"
            );
            cx.cri().stop_pod(&pod.id).await?;
            cx.cri().remove_pod(&pod.id).await?;
        }
        Ok(())
    });
}

#[test]
fn addresses_that_are_all_taken_are_an_error_until_one_is_given_back() {
    test_with(tiny(), async |cx| {
        warm(cx).await?;
        let mut pods = Vec::new();
        let refusal = loop {
            let pod = cx.pod().network();
            std::fs::create_dir_all(&pod.config.log_directory)?;
            match cx.cri().run_pod(&pod.config, "").await {
                Ok(id) => pods.push(Pod { id, config: pod.config }),
                Err(status) => break status,
            }
            ensure!(pods.len() < 16, "more pods than addresses");
        };
        ensure!(pods.len() >= 12, "only {} pods", pods.len());
        ensure!(refusal.message().contains("10.213.7.0/28"), "{refusal:?}");
        let mut addresses = Vec::new();
        for pod in &pods {
            addresses.push(address(cx, pod).await?);
        }
        addresses.sort();
        addresses.dedup();
        same("addresses", addresses.len(), pods.len())?;
        // Stopped, not removed: the address is free, though the record stays.
        cx.cri().stop_pod(&pods[3].id).await?;
        cx.run_pod(cx.pod().network()).await.map(drop)
    });
}

#[test]
fn the_network_outlives_the_daemon() {
    cold_test(async |cx| {
        let world = world(cx)?;
        let image = warm(cx).await?;
        let node = SocketAddr::from((NODE.parse::<Ipv4Addr>()?, 18086));
        let (pod, _) = serve(
            cx,
            cx.pod().network().port(Protocol::Tcp, 18086, 80),
            &image,
            &["probe", "tcp-echo", "80"],
        )
        .await?;
        let before = address(cx, &pod).await?;
        cx.daemon.kill()?;
        ensure!(tcp(&world, node, "x").is_ok(), "without the daemon");
        cx.daemon.restart().await?;
        ensure!(tcp(&world, node, "x").is_ok(), "with the next one");
        same("address", address(cx, &pod).await?, before)?;
        // The next pod gets another address, and the port is still taken.
        let next = cx.run_pod(cx.pod().network()).await?;
        ensure!(address(cx, &next).await? != before, "the address was given away");
        let taken = cx.pod().network().port(Protocol::Tcp, 18086, 80);
        std::fs::create_dir_all(&taken.config.log_directory)?;
        refused("the port", cx.cri().run_pod(&taken.config, "").await, &["18086"]);
        Ok(())
    });
}

#[test]
fn dockers_drops_are_passed_by_its_own_door() {
    cold_test(async |cx| {
        // As docker leaves a node: FORWARD drops, users have a chain in front.
        for rule in [
            "add table ip filter",
            "add chain ip filter DOCKER-USER",
            "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
            "add rule ip filter FORWARD jump DOCKER-USER",
            "add rule ip filter DOCKER-USER return",
        ] {
            cx.netns.output("nft", &[rule])?;
        }
        let world = world(cx)?;
        let image = warm(cx).await?;
        let port = answer(&world, SocketAddr::from(([0, 0, 0, 0], 0)))?;
        let (_, id) = serve(cx, cx.pod().network(), &image, &["probe", "idle"]).await?;
        let text = cx.exec(&id, &["probe", "tcp", WORLD, &port.to_string(), ""]).await?;
        same("what the world sees", text.trim(), NODE)
    });
}

#[test]
fn a_foreign_chain_that_drops_is_named() {
    cold_test(async |cx| {
        for rule in [
            "add table inet foreign",
            "add chain inet foreign f { type filter hook forward priority 0; policy drop; }",
        ] {
            cx.netns.output("nft", &[rule])?;
        }
        cx.settle().await?;
        let status = cx.cri().status().await?;
        let text = format!("{status:?}");
        let doctor = cx.daemon.berth(&["doctor"]).output()?;
        let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
        ensure!(text.contains("foreign"), "Status does not name it: {text}");
        ensure!(doctor.contains("foreign"), "doctor does not name it: {doctor}");
        Ok(())
    });
}

#[test]
fn a_subnet_that_a_route_of_the_node_uses_is_not_taken() {
    cold_test(async |cx| {
        let world = NetNs::new()?;
        cx.netns.link_to(&world, "10.0.0.1/9", "10.0.0.2/9")?;
        cx.netns.ip("route add 172.16.0.0/12 via 10.0.0.2")?;
        let pod = cx.run_pod(cx.pod().network()).await?;
        let IpAddr::V4(address) = address(cx, &pod).await? else {
            anyhow::bail!("no IPv4 address")
        };
        let [a, b, ..] = address.octets();
        ensure!(
            !(a == 10 && b < 128 || a == 172 && (16..32).contains(&b)),
            "{address} is on a route of the node"
        );
        cx.cri().remove_pod(&pod.id).await?;
        // What the daemon itself keeps is as after any first pod.
        cx.warm().await?;
        cx.settle().await
    });
}
