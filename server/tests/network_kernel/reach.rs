//! Who reaches whom.

use std::net::IpAddr;

use crate::nodes::*;

/// A node with two pods. The first has host ports.
struct Scene {
    node: Node,
    bridge: server::network::Bridge,
    first: Pod,
    second: Pod,
}

fn scene() -> Scene {
    let node = Node::new();
    let bridge = node.open(&[]);
    let ports =
        [tcp(8080, 80), udp(8053, 53), at(NODE_TOO, tcp(8081, 80)), at(LOOPBACK, tcp(8082, 80))];
    let first = node.pod(&bridge, "first", &ports);
    let second = node.pod(&bridge, "second", &[]);
    Scene { node, bridge, first, second }
}

#[track_caller]
fn check(seen: std::io::Result<IpAddr>, expected: std::net::Ipv4Addr) {
    assert_eq!(seen.unwrap(), IpAddr::V4(expected));
}

/// The whole matrix, so that it can be checked again after the rules were lost.
#[track_caller]
fn check_all_ways(scene: &Scene) {
    let Scene { node, first, second, bridge } = scene;
    let gateway = bridge.status().gateway;
    let web = first.namespace.tcp_listener("0.0.0.0:80");
    let dns = first.namespace.udp_socket("0.0.0.0:53");
    let (host, world) = (&node.namespace, &node.world);

    // Pod to pod, and node to pod, as they are.
    check(tcp_source(&second.namespace, (first.address, 80), &web), second.address);
    check(tcp_source(host, (first.address, 80), &web), gateway);

    // Pod to node and to the world, which sees the node.
    let on_node = host.tcp_listener("0.0.0.0:7000");
    check(tcp_source(&second.namespace, (gateway, 7000), &on_node), second.address);
    check(tcp_source(&second.namespace, (NODE, 7000), &on_node), second.address);
    let in_world = world.tcp_listener("0.0.0.0:7000");
    check(tcp_source(&second.namespace, (WORLD, 7000), &in_world), NODE);
    let udp_in_world = world.udp_socket("0.0.0.0:7000");
    check(udp_source(&second.namespace, (WORLD, 7000), &udp_in_world), NODE);

    // The world to host ports, on each address of the node, with its own address.
    for address in [NODE, NODE_TOO] {
        check(tcp_source(world, (address, 8080), &web), WORLD);
        check(udp_source(world, (address, 8053), &dns), WORLD);
    }

    // The node itself to host ports, by 127.0.0.1 and by its own address.
    check(tcp_source(host, (LOOPBACK, 8080), &web), gateway);
    check(udp_source(host, (LOOPBACK, 8053), &dns), gateway);
    check(tcp_source(host, (NODE, 8080), &web), NODE);
    check(udp_source(host, (NODE, 8053), &dns), NODE);

    // Another pod, and the pod itself, to host ports.
    for pod in [second, first] {
        check(tcp_source(&pod.namespace, (NODE, 8080), &web), gateway);
        check(udp_source(&pod.namespace, (NODE, 8053), &dns), gateway);
        check(tcp_source(&pod.namespace, (gateway, 8080), &web), gateway);
    }

    // K-02: a host port on one address is on no other.
    check(tcp_source(world, (NODE_TOO, 8081), &web), WORLD);
    check(tcp_source(host, (NODE_TOO, 8081), &web), NODE);
    check_unreachable(world, (NODE, 8081));
    check_unreachable(host, (LOOPBACK, 8081));
    check(tcp_source(host, (LOOPBACK, 8082), &web), gateway);
    check_unreachable(host, (NODE, 8082));
    check_unreachable(world, (NODE, 8082));
}

/// Frames between pods pass the node's firewall or they do not: by default a namespace has it on
/// where the kernel has br_netfilter.
const BRIDGE_FILTER: &str = "net/bridge/bridge-nf-call-iptables";

#[test]
fn everybody_reaches_whom_they_should() {
    let scene = scene();
    scene.node.namespace.set(BRIDGE_FILTER, "0");
    check_all_ways(&scene);
    let status = scene.bridge.status();
    assert_eq!((status.name.as_str(), status.pods), ("berth bridge 10.64.0.0/20", 2));
}

#[test]
fn everybody_reaches_whom_they_should_where_bridged_frames_are_filtered() {
    let scene = scene();
    scene.node.namespace.set(BRIDGE_FILTER, "1");
    check_all_ways(&scene);
}

/// K-03: a firewall that was loaded anew takes our rules with it, and they come back.
#[test]
fn reachability_is_the_same_after_the_rule_set_was_flushed() {
    let scene = scene();
    let node = &scene.node;
    let before = node.census();
    node.namespace.sh("nft flush ruleset");
    check_unreachable(&node.world, (NODE, 8080));
    assert!(node.namespace.run(|| scene.bridge.heal()).unwrap(), "there was something to heal");
    assert_eq!(node.census(), before);
    assert!(!node.namespace.run(|| scene.bridge.heal()).unwrap(), "and now there is not");
    check_all_ways(&scene);
}

/// H-03 and CVE-2020-8558: what listens on the node's loopback is out of a pod's reach.
#[test]
fn a_pod_does_not_reach_the_loopback_of_the_node() {
    let scene = scene();
    let (host, pod) = (&scene.node.namespace, &scene.second);
    let secret = host.tcp_listener("127.0.0.1:9000");
    check(tcp_source(host, (LOOPBACK, 9000), &secret), LOOPBACK);
    let gateway = scene.bridge.status().gateway;
    for address in [gateway, NODE] {
        check_unreachable(&pod.namespace, (address, 9000));
    }
    // The pod sends 127.0.0.0/8 to the node as if it were an address like any other.
    pod.namespace.sh(&format!(
        "ip link set lo down
         echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet
         ip route add 127.0.0.0/8 via {gateway} dev eth0 src {} table 100
         ip rule add priority 1 to 127.0.0.0/8 lookup 100
         ip rule add priority 2 lookup local; ip rule del priority 0",
        pod.address
    ));
    check_unreachable(&pod.namespace, (LOOPBACK, 9000));
    check_unreachable(&pod.namespace, (LOOPBACK, 8080));
    let rule = host.sh("nft list chain ip berth_0a1b2c3d from_loopback");
    let sent = pod.namespace.sh("ip -s -s neigh; ip route get 127.0.0.1");
    assert!(sent.contains("dev eth0"), "the packets did leave the pod: {sent}");
    assert!(rule.contains("ip daddr 127.0.0.0/8 drop"), "{rule}");
}

/// Another program (kube-proxy does) may have opened the loopback on every interface.
#[test]
fn a_host_port_on_the_loopback_is_not_served_to_the_wire() {
    let scene = scene();
    let node = &scene.node;
    node.namespace.set("net/ipv4/conf/eth0/route_localnet", "1");
    node.world.sh(&format!(
        "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet
         ip route add 127.0.0.0/8 via {NODE} dev eth0 src {WORLD} table 100
         ip rule add priority 1 to 127.0.0.0/8 lookup 100
         ip rule add priority 2 lookup local; ip rule del priority 0"
    ));
    let _web = scene.first.namespace.tcp_listener("0.0.0.0:80");
    check_unreachable(&node.world, (LOOPBACK, 8082));
    check_unreachable(&node.world, (LOOPBACK, 8080));
}

#[test]
fn a_neighbour_that_routes_to_the_pods_reaches_none() {
    let scene = scene();
    let web = scene.first.namespace.tcp_listener("0.0.0.0:80");
    scene.node.world.sh(&format!("ip route add 10.64.0.0/20 via {NODE}"));
    check_unreachable(&scene.node.world, (scene.first.address, 80));
    check(tcp_source(&scene.node.world, (NODE, 8080), &web), WORLD);
}

/// K-01 and K-03: no IPv6 in a pod, nor between pods and the node.
#[test]
fn a_pod_has_no_ipv6_but_its_own_loopback_and_obeys_no_redirect() {
    let scene = scene();
    let pod = &scene.first.namespace;
    assert_eq!(pod.setting("net/ipv6/conf/eth0/disable_ipv6"), "1");
    assert_eq!(pod.setting("net/ipv6/conf/eth0/accept_ra"), "0");
    assert_eq!(pod.setting("net/ipv4/conf/eth0/accept_redirects"), "0");
    assert_eq!(pod.sh("ip -6 address show dev eth0"), "");
    assert!(pod.sh("ip -6 address show dev lo").contains("inet6 ::1/128"));
    let host = &scene.node.namespace;
    for link in ["berth0a1b2c3d", "b0a1b2c3d000002"] {
        assert_eq!(host.sh(&format!("ip -6 address show dev {link}")), "");
    }
}

#[test]
fn a_pod_has_the_address_the_route_and_the_mtu_it_was_told() {
    let node = Node::new();
    node.namespace.sh("ip link set eth0 mtu 1400");
    let bridge = node.open(&[]);
    let pod = node.pod(&bridge, "first", &[]);
    let attachment = pod.attachment();
    assert_eq!(attachment.mtu, 1400);
    let links = pod.namespace.sh("ip -o link show dev eth0");
    assert!(links.contains("mtu 1400") && links.contains("02:62:0a:40:00:02"), "{links}");
    let routes = pod.namespace.sh("ip route");
    assert_eq!(
        routes.lines().map(str::trim).collect::<Vec<_>>(),
        [
            "default via 10.64.0.1 dev eth0 proto static",
            "10.64.0.0/20 dev eth0 proto kernel scope link src 10.64.0.2"
        ]
    );
    assert!(pod.namespace.sh("ip -o link show dev lo").contains("LOOPBACK,UP"));
    assert!(node.namespace.sh("ip -o link show dev berth0a1b2c3d").contains("mtu 1400"));
}

/// A client that goes on sending never gets a new chance by itself.
#[test]
fn a_udp_conversation_follows_the_host_port() {
    let node = Node::new();
    let bridge = node.open(&[]);
    let client = node.world.udp_socket("0.0.0.0:0");
    let local_client = node.namespace.udp_socket("0.0.0.0:0");
    let patience = std::time::Duration::from_secs(5);
    let (wire, loopback) = ((NODE, 8053), (LOOPBACK, 8053));
    for (client, to) in [(&client, wire), (&local_client, loopback)] {
        client.send_to(b"anybody?", to).unwrap();
    }
    for name in ["first", "second"] {
        let pod = node.pod(&bridge, name, &[udp(8053, 53)]);
        node.namespace.run(|| bridge.tidy()).unwrap();
        let dns = pod.namespace.udp_socket("0.0.0.0:53");
        check(exchange(&client, wire, &dns, patience), WORLD);
        check(exchange(&local_client, loopback, &dns, patience), bridge.status().gateway);
        node.detach(&bridge, pod.attachment());
    }
    // A conversation of others with a port of the same number goes on.
    let pod = node.pod(&bridge, "third", &[]);
    let server = node.world.udp_socket("0.0.0.0:8053");
    let inside = pod.namespace.udp_socket("0.0.0.0:0");
    check(exchange(&inside, (WORLD, 8053), &server, patience), NODE);
    let before = conversations(&node);
    let fourth = node.pod(&bridge, "fourth", &[udp(8053, 53)]);
    node.detach(&bridge, fourth.attachment());
    node.namespace.run(|| bridge.tidy()).unwrap();
    assert_eq!(conversations(&node), before);
}

fn conversations(node: &Node) -> String {
    node.namespace
        .sh(&format!("conntrack -L -p udp -d {WORLD} -o id 2>/dev/null | grep -o 'id=.*'"))
}

#[test]
fn counters_are_as_the_pod_sees_them() {
    let scene = scene();
    let Scene { node, bridge, first, .. } = &scene;
    let sink = node.world.udp_socket("0.0.0.0:7000");
    let source = first.namespace.udp_socket("0.0.0.0:0");
    for _ in 0..10 {
        source.send_to(&[0; 1000], (WORLD, 7000)).unwrap();
        sink.recv_from(&mut [0; 1000]).unwrap();
    }
    let counters = node.namespace.run(|| bridge.counters()).unwrap();
    assert_eq!(counters.len(), 2, "{counters:?}");
    let counted = counters[&first.attachment().link];
    assert!(counted.tx_bytes > 10_000 && counted.tx_packets >= 10, "{counted:?}");
    assert!(counted.rx_bytes < 10_000, "{counted:?}");
}
