//! From nothing to a network and back, with crashes between.

use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};

use server::network::{
    Attachment, Bridge, Config, Error, PortMapping, Protocol, Watch, remove_all, reserve,
};

use crate::nodes::*;

fn small(node: &Node) -> Config {
    Config { subnet: Some("10.64.0.0/28".to_owned()), ..node.config.clone() }
}

fn open(node: &Node, config: &Config, records: &[Attachment]) -> server::network::Result<Bridge> {
    node.namespace.run(|| Bridge::open(config, records))
}

fn remove(node: &Node) {
    node.namespace.run(|| remove_all(&node.config)).unwrap();
}

#[test]
fn everything_is_gone_after_the_teardown() {
    let node = Node::new();
    let before = node.census();
    let bridge = node.open(&[]);
    let empty = node.census();
    let pods = ["a", "b"].map(|name| {
        let port = if name == "a" { 8080 } else { 8081 };
        node.pod(
            &bridge,
            name,
            &[tcp(port, 80), udp(port, 53), at(NODE_TOO, tcp(port + 1000, 443))],
        )
    });
    for pod in &pods {
        node.detach(&bridge, pod.attachment());
    }
    node.namespace.run(|| bridge.tidy()).unwrap();
    assert_eq!(node.census(), empty, "with the pods went all that was theirs");
    for pod in &pods {
        assert_eq!(pod.namespace.sh("ip -o link | grep -c eth0 || true").trim(), "0");
    }

    let _running = node.pod(&bridge, "c", &[tcp(8080, 80)]);
    remove(&node);
    assert_eq!(node.census(), before);
    remove(&node);
    assert_eq!(node.census(), before, "removing it again changes nothing");
}

#[test]
fn three_hundred_pods_one_after_the_other_find_addresses_in_a_small_subnet() {
    let node = Node::new();
    let bridge = open(&node, &small(&node), &[]).unwrap();
    let empty = node.census();
    for number in 0..300 {
        let ports = [tcp(8080, 80), udp(8053, 53)];
        let pod = node.pod(&bridge, &format!("pod{number}"), &ports);
        for _ in 0..=number % 2 {
            node.detach(&bridge, pod.attachment());
        }
    }
    node.namespace.run(|| bridge.tidy()).unwrap();
    assert_eq!(node.census(), empty);
    assert_eq!(bridge.status().pods, 0);
}

#[test]
fn addresses_that_wait_for_their_links_to_go_are_there_when_needed() {
    let node = Node::new();
    let bridge = open(&node, &small(&node), &[]).unwrap();
    for round in 0..3 {
        let pods: Vec<Pod> =
            (0..13).map(|number| node.pod(&bridge, &format!("{round}.{number}"), &[])).collect();
        let full = bridge.plan("one too many", &[]).unwrap_err();
        assert_eq!(full.to_string(), "no free address in 10.64.0.0/28: 13 pods hold one");
        pods.iter().for_each(|pod| node.detach(&bridge, pod.attachment()));
    }
}

#[test]
fn an_attachment_that_was_only_planned_is_taken_back_from_its_record() {
    let node = Node::new();
    let bridge = node.open(&[]);
    let empty = node.census();
    let planned = bridge.plan("first", &[tcp(8080, 80)]).unwrap();
    drop(bridge); // A crash; the record is on disk.

    let bridge = node.open(std::slice::from_ref(&planned));
    assert_ne!(bridge.plan("other", &[]).unwrap().address, planned.address);
    assert!(matches!(bridge.plan("thief", &[tcp(8080, 81)]), Err(Error::PortTaken(_))));
    assert_eq!(bridge.plan("first", &[]).unwrap(), planned, "asked again, the same answer");
    node.detach(&bridge, &planned);
    node.detach(&bridge, &bridge.plan("other", &[]).unwrap());
    assert_eq!(node.census(), empty);
    assert_eq!(bridge.status().pods, 0);
}

#[test]
fn an_attachment_that_is_half_there_is_taken_back_from_its_record() {
    let node = Node::new();
    let bridge = node.open(&[]);
    let empty = node.census();
    let planned = bridge.plan("first", &[tcp(8080, 80)]).unwrap();
    // The link was made, then the power of the pod's namespace failed, so to speak.
    node.namespace.sh(&format!("ip link add {} type veth peer name half", planned.link));
    let bridge = node.open(std::slice::from_ref(&planned));
    node.detach(&bridge, &planned);
    node.namespace.run(|| bridge.tidy()).unwrap();
    assert_eq!(node.census(), empty);
}

#[test]
fn a_pod_survives_the_daemon() {
    let node = Node::new();
    let bridge = node.open(&[]);
    let pod = node.pod(&bridge, "first", &[tcp(8080, 80)]);
    let record = serde_json::to_string(pod.attachment()).unwrap();
    let web = pod.namespace.tcp_listener("0.0.0.0:80");
    let before = node.census();
    drop(bridge);

    let record: Attachment = serde_json::from_str(&record).unwrap();
    assert_eq!(&record, pod.attachment());
    let bridge = node.open(&[record]);
    assert_eq!(node.census(), before);
    let seen = tcp_source(&node.world, (NODE, 8080), &web).unwrap();
    assert_eq!(seen, IpAddr::V4(WORLD));
    assert_eq!(bridge.status().pods, 1);
}

#[test]
fn a_link_that_no_record_names_goes_at_the_start() {
    let node = Node::new();
    let bridge = node.open(&[]);
    let empty = node.census();
    let _pod = node.pod(&bridge, "first", &[tcp(8080, 80)]);
    drop(bridge);
    let bridge = node.open(&[]);
    node.namespace.run(|| bridge.tidy()).unwrap();
    assert_eq!(node.census(), empty);
}

#[test]
fn a_late_second_detach_does_not_hurt_the_new_owner_of_the_address() {
    let node = Node::new();
    let config = Config { subnet: Some("10.64.0.0/29".to_owned()), ..node.config.clone() };
    let bridge = open(&node, &config, &[]).unwrap();
    let old = node.pod(&bridge, "old", &[tcp(8080, 80)]);
    node.detach(&bridge, old.attachment());
    node.namespace.run(|| bridge.tidy()).unwrap();
    let new: Vec<Pod> = (0..5)
        .map(|number| {
            let ports = if number == 0 { vec![tcp(8080, 80)] } else { vec![] };
            node.pod(&bridge, &format!("new{number}"), &ports)
        })
        .collect();
    assert!(new.iter().any(|pod| pod.address == old.address), "the address has a new owner");
    let before = node.census();
    node.detach(&bridge, old.attachment());
    node.namespace.run(|| bridge.tidy()).unwrap();
    assert_eq!(node.census(), before);
    let web = new[0].namespace.tcp_listener("0.0.0.0:80");
    tcp_source(&node.world, (NODE, 8080), &web).unwrap();
}

#[test]
fn records_that_contradict_each_other_do_not_stop_the_start() {
    let node = Node::new();
    let bridge = node.open(&[]);
    let pod = node.pod(&bridge, "first", &[tcp(8080, 80)]);
    let web = pod.namespace.tcp_listener("0.0.0.0:80");
    let good = pod.attachment().clone();
    let twin = Attachment { sandbox: "twin".to_owned(), ..good.clone() };
    let thief = Attachment {
        sandbox: "thief".to_owned(),
        address: Ipv4Addr::new(10, 64, 0, 9),
        link: "b0a1b2c3d000009".to_owned(),
        ..good.clone()
    };
    drop(bridge);
    let bridge = node.open(&[good, twin.clone(), thief.clone()]);
    for record in [&twin, &thief] {
        node.detach(&bridge, record);
        node.namespace.run(|| bridge.tidy()).unwrap();
        tcp_source(&node.world, (NODE, 8080), &web).unwrap();
    }
    let foreign = Attachment { link: "eth0".to_owned(), ..twin };
    let error = node.namespace.run(|| bridge.detach(&foreign)).unwrap_err().to_string();
    assert_eq!(error, "link eth0 of sandbox twin is not of this instance");
}

#[test]
fn a_bridge_that_somebody_deleted_comes_back_with_its_pods() {
    let node = Node::new();
    let bridge = node.open(&[]);
    let pod = node.pod(&bridge, "first", &[tcp(8080, 80)]);
    let web = pod.namespace.tcp_listener("0.0.0.0:80");
    node.namespace.sh("ip link del berth0a1b2c3d");
    let second = node.pod(&bridge, "second", &[]);
    for from in [&node.world, &second.namespace] {
        tcp_source(from, (NODE, 8080), &web).unwrap();
    }
    node.namespace.sh("ip link del berth0a1b2c3d; echo 0 > /proc/sys/net/ipv4/ip_forward");
    assert!(node.namespace.run(|| bridge.heal()).unwrap());
    for from in [&node.world, &second.namespace] {
        tcp_source(from, (NODE, 8080), &web).unwrap();
    }
}

#[test]
fn a_subnet_is_chosen_beside_the_routes_of_the_node_and_kept() {
    let node = Node::new();
    let config = Config { subnet: None, ..node.config.clone() };
    node.namespace.sh("ip route add 10.0.0.0/8 dev eth0");
    let bridge = open(&node, &config, &[]).unwrap();
    let subnet = bridge.status().subnet;
    assert_eq!(subnet.to_string(), "172.24.0.0/20");
    drop(bridge);
    remove(&node);
    node.namespace.sh("ip route del 10.0.0.0/8 dev eth0");
    let bridge = open(&node, &config, &[]).unwrap();
    assert_eq!(bridge.status().subnet, subnet, "kept, though the first choice is free now");
    let record = node.namespace.run(|| bridge.plan("first", &[])).unwrap();
    drop(bridge);
    node.namespace.sh("ip route add 172.24.1.0/24 via 198.51.100.1");
    let with_pod = open(&node, &config, &[record]).unwrap();
    assert_eq!(with_pod.status().subnet, subnet, "a pod is in it");
    drop(with_pod);
    let bridge = open(&node, &config, &[]).unwrap();
    assert_ne!(bridge.status().subnet, subnet, "somebody else uses it now");
    node.namespace.sh("ip route del 172.24.1.0/24 via 198.51.100.1");
    let subnet = bridge.status().subnet;

    // Another instance on the same node finds it taken.
    let other = Config {
        instance: "ffffffff".to_owned(),
        directory: config.directory.with_file_name("other"),
        subnet: Some(subnet.to_string()),
    };
    assert_eq!(
        open(&node, &other, &[]).unwrap_err().to_string(),
        format!(
            "bridge_subnet {subnet} overlaps {subnet}, which this node has a route or an address \
             for; choose another, or leave it out"
        )
    );
    let other = open(&node, &Config { subnet: None, ..other }, &[]).unwrap().status();
    assert!(!other.subnet.overlaps(subnet), "{other:?}");
}

#[test]
fn a_new_subnet_waits_until_the_pods_of_the_old_one_have_gone() {
    let node = Node::new();
    let bridge = node.open(&[]);
    let record = node.pod(&bridge, "first", &[]).attachment().clone();
    drop(bridge);
    let config = Config { subnet: Some("10.70.0.0/24".to_owned()), ..node.config.clone() };
    let status = open(&node, &config, std::slice::from_ref(&record)).unwrap().status();
    assert_eq!(status.subnet.to_string(), "10.64.0.0/20");
    assert_eq!(
        status.waiting_for.map(|subnet| subnet.to_string()).as_deref(),
        Some("10.70.0.0/24")
    );
    let status = open(&node, &config, &[]).unwrap().status();
    assert_eq!((status.gateway, status.waiting_for), (Ipv4Addr::new(10, 70, 0, 1), None));
    let addresses = node.namespace.sh("ip -o -4 address show dev berth0a1b2c3d");
    assert!(addresses.contains("10.70.0.1/24") && addresses.lines().count() == 1, "{addresses}");
}

#[track_caller]
fn check_reserve(node: &Node, mapping: &PortMapping, expected: Result<(), &str>) {
    let got = node.namespace.run(|| reserve(mapping)).map(drop).map_err(|error| error.to_string());
    assert_eq!(got.as_ref().copied().map_err(String::as_str), expected);
}

#[test]
fn a_host_port_that_somebody_has_is_an_error_that_names_it() {
    let node = Node::new();
    let _server = node.namespace.tcp_listener("0.0.0.0:8080");
    let _other = node.namespace.udp_socket("127.0.0.1:8053");
    let _modern = node.namespace.tcp_listener("[::]:8090");
    check_reserve(&node, &tcp(8080, 80), Err("host port 8080/tcp is taken"));
    check_reserve(&node, &at(NODE, tcp(8080, 80)), Err("host port 198.51.100.2:8080/tcp is taken"));
    check_reserve(&node, &udp(8053, 53), Err("host port 8053/udp is taken"));
    check_reserve(&node, &tcp(8090, 80), Err("host port 8090/tcp is taken"));
    check_reserve(&node, &at(NODE, udp(8053, 53)), Ok(()));
    check_reserve(&node, &udp(8080, 53), Ok(()));
    check_reserve(
        &node,
        &at(Ipv4Addr::new(203, 0, 113, 1), tcp(8081, 80)),
        Err("host port 203.0.113.1:8081/tcp: this node does not have that address"),
    );
    let ipv6 = PortMapping { host_ip: Some("::1".parse().unwrap()), ..tcp(8081, 80) };
    check_reserve(
        &node,
        &ipv6,
        Err(
            "host port [::1]:8081/tcp: the built-in network has no IPv6; give an IPv4 address or none",
        ),
    );
    let sctp = PortMapping { protocol: Protocol::Sctp, ..tcp(8080, 80) };
    check_reserve(&node, &sctp, Ok(()));
}

#[test]
fn a_reserved_port_is_nobody_elses_and_refuses_connections_by_itself() {
    let node = Node::new();
    let held = node.namespace.run(|| reserve(&tcp(8080, 80))).unwrap();
    check_reserve(&node, &tcp(8080, 81), Err("host port 8080/tcp is taken"));
    // std sets SO_REUSEADDR on every listener.
    assert!(node.namespace.run(|| TcpListener::bind("0.0.0.0:8080")).is_err());
    // A busy machine may not have brought the fresh link up yet, which is another error.
    let refused = || {
        let error = node.world.run(|| TcpStream::connect((NODE, 8080))).unwrap_err();
        std::thread::sleep(std::time::Duration::from_millis(100));
        error.kind() == std::io::ErrorKind::ConnectionRefused
    };
    assert!((0..50).any(|_| refused()));
    drop(held);
    check_reserve(&node, &tcp(8080, 81), Ok(()));
}

#[test]
fn a_port_that_only_ended_connections_hold_can_be_reserved() {
    let node = Node::new();
    let server = node.namespace.tcp_listener("0.0.0.0:8080");
    let client = node.world.run(|| TcpStream::connect((NODE, 8080))).unwrap();
    let (served, _) = server.accept().unwrap();
    drop(server);
    drop(served); // The side that closes first keeps the port for a minute.
    drop(client);
    assert!(node.namespace.sh("ss -tan").contains(":8080"), "a connection that has ended is there");
    let held = node.namespace.run(|| reserve(&tcp(8080, 80))).unwrap();
    check_reserve(&node, &tcp(8080, 80), Err("host port 8080/tcp is taken"));
    assert!(node.namespace.run(|| TcpListener::bind("0.0.0.0:8080")).is_err());
    // A busy machine may not have brought the fresh link up yet, which is another error.
    let refused = || {
        let error = node.world.run(|| TcpStream::connect((NODE, 8080))).unwrap_err();
        std::thread::sleep(std::time::Duration::from_millis(100));
        error.kind() == std::io::ErrorKind::ConnectionRefused
    };
    assert!((0..50).any(|_| refused()));
    drop(held);
}

#[test]
fn any_free_host_port_can_be_asked_for() {
    let node = Node::new();
    let first = node.namespace.run(|| reserve(&tcp(0, 80))).unwrap();
    let second = node.namespace.run(|| reserve(&tcp(0, 80))).unwrap();
    assert_ne!(first.mapping.host_port, 0);
    assert_ne!(first.mapping.host_port, second.mapping.host_port);
    let bridge = node.open(&[]);
    let error = bridge.plan("first", &[tcp(0, 80)]).unwrap_err().to_string();
    assert_eq!(error, "port mapping 0/tcp to 80: neither port can be 0 here");
}

#[test]
fn the_watch_hears_a_flush_and_not_our_own_pods() {
    let node = Node::new();
    let bridge = node.open(&[]);
    let watch = node.namespace.run(Watch::open).unwrap();
    let _pod = node.pod(&bridge, "first", &[tcp(8080, 80)]);
    assert!(!watch.drain().unwrap(), "a pod of ours is no reason to look");
    node.namespace.sh("nft flush ruleset");
    assert!(watch.drain().unwrap());
    assert!(!watch.drain().unwrap());
    assert!(node.namespace.run(|| bridge.heal()).unwrap());
    assert!(watch.drain().unwrap(), "the table that we made");
    assert!(!node.namespace.run(|| bridge.heal()).unwrap());
    node.namespace.sh("nft flush table ip berth_0a1b2c3d");
    assert!(watch.drain().unwrap());
    assert!(node.namespace.run(|| bridge.heal()).unwrap());
}

#[test]
fn a_range_of_thousands_of_ports_is_served() {
    let node = Node::new();
    let bridge = node.open(&[]);
    let empty = node.census();
    let ports: Vec<PortMapping> = (10_000..13_000).map(|port| tcp(port, port)).collect();
    let pod = node.pod(&bridge, "first", &ports);
    for port in [10_000, 12_999] {
        let web = pod.namespace.tcp_listener(&format!("0.0.0.0:{port}"));
        tcp_source(&node.world, (NODE, port), &web).unwrap();
    }
    node.namespace.run(|| bridge.sync()).unwrap();
    let web = pod.namespace.tcp_listener("0.0.0.0:12345");
    tcp_source(&node.world, (NODE, 12345), &web).unwrap();
    node.detach(&bridge, pod.attachment());
    node.namespace.run(|| bridge.tidy()).unwrap();
    assert_eq!(node.census(), empty);
}

#[test]
fn a_bridge_without_a_free_port_says_so() {
    let node = Node::new();
    let bridge = node.open(&[]);
    node.namespace.sh("for n in $(seq 512); do
             echo link add x$n master berth0a1b2c3d type veth peer name y$n
             [ $n = 512 ] || echo link set y$n master berth0a1b2c3d
         done | ip -batch -");
    let pod = Pod::prepare();
    let planned = node.namespace.run(|| bridge.plan("one too many", &[])).unwrap();
    let error = node.attach(&bridge, &pod, &planned).unwrap_err();
    assert_eq!(error.to_string(), "bridge berth0a1b2c3d is full: a Linux bridge has 1023 ports");
    node.detach(&bridge, &planned);
}

/// Pods come and go on four threads while the rules are flushed and made anew.
#[test]
fn pods_that_come_and_go_at_once_leave_nothing() {
    let node = Node::new();
    let config = Config { subnet: Some("10.64.0.0/27".to_owned()), ..node.config.clone() };
    let bridge = open(&node, &config, &[]).unwrap();
    let empty = node.census();
    let come_and_go = |thread: u16| {
        for number in 0..40 {
            let ports = [tcp(8000 + thread, 80), udp(9000 + thread * 50 + number, 53)];
            let pod = node.pod(&bridge, &format!("{thread}.{number}"), &ports);
            if number % 4 == 0 {
                let web = pod.namespace.tcp_listener("0.0.0.0:80");
                tcp_source(&pod.namespace, (pod.address, 80), &web).unwrap();
            }
            node.detach(&bridge, pod.attachment());
        }
    };
    let disturb = || {
        for _ in 0..10 {
            node.namespace.sh("nft flush ruleset");
            node.namespace.run(|| bridge.heal()).unwrap();
            node.namespace.run(|| bridge.tidy()).unwrap();
        }
    };
    let come_and_go = &come_and_go;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || come_and_go(thread));
        }
        scope.spawn(disturb);
    });
    node.namespace.run(|| bridge.sync()).unwrap();
    node.namespace.run(|| bridge.tidy()).unwrap();
    assert_eq!(node.census(), empty);
    assert_eq!(bridge.status().pods, 0);
}
