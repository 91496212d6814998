//! Other firewalls, other engines, other instances on the same node.

use server::network::{Bridge, Config, Forwarding, foreign_drops, remove_all};

use crate::nodes::*;

const TABLE: &str = "table ip berth_0a1b2c3d {
	map host_ports {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { sctp . 7000 : 10.64.0.2 . 70 }
	}

	map host_address_ports {
		type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
		elements = { 198.51.100.3 . udp . 53 : 10.64.0.2 . 5353 }
	}

	set lan_bridges {
		type ifname
	}

	set lan_bridged {
		type ifname . ifname
	}

	chain from_loopback {
		type filter hook prerouting priority raw; policy accept;
		iifname \"berth0a1b2c3d\" ip daddr 127.0.0.0/8 drop
		iifname \"berth0a1b2c3d\" ip saddr 127.0.0.0/8 drop
	}

	chain translate {
		dnat ip to ip daddr . meta l4proto . th dport map @host_address_ports
		dnat ip to meta l4proto . th dport map @host_ports
	}

	chain at_arrival {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 127.0.0.0/8 return
		fib daddr type local jump translate
	}

	chain from_node {
		type nat hook output priority dstnat; policy accept;
		fib daddr type local jump translate
	}

	chain on_the_way_out {
		type nat hook postrouting priority srcnat; policy accept;
		oifname \"berth0a1b2c3d\" ip saddr 127.0.0.0/8 masquerade
		oifname \"berth0a1b2c3d\" ip saddr 10.64.0.0/20 ct status dnat masquerade
		oifname != \"berth0a1b2c3d\" ip saddr 10.64.0.0/20 masquerade fully-random
	}

	chain to_pods {
		iifname \"berth0a1b2c3d\" accept
		ct state established,related accept
		ct status dnat accept
		drop
	}

	chain guard {
		iifname \"berth*\" accept
		oifname \"berth*\" accept
		iifname . oifname @lan_bridged accept
		iifname != @lan_bridges meta iifkind \"bridge\" accept
		oifname != @lan_bridges meta oifkind \"bridge\" accept
		drop
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		oifname \"berth0a1b2c3d\" goto to_pods
		goto guard
	}
}
";

/// Also how SCTP is served, of which the kernel that runs this may have no sockets.
#[test]
fn the_table_reads_as_it_should() {
    let node = Node::new();
    let bridge = node.open(&[]);
    let sctp =
        server::network::PortMapping { protocol: server::network::Protocol::Sctp, ..tcp(7000, 70) };
    let _pod = node.pod(&bridge, "first", &[sctp, at(NODE_TOO, udp(53, 5353))]);
    let table = node.namespace.sh("nft list table ip berth_0a1b2c3d");
    // Older versions of nft know the name of this priority in no output hook.
    assert_eq!(table.replace("priority -100;", "priority dstnat;"), TABLE);
}

/// As docker leaves the node: it drops what it does not know, and asks DOCKER-USER first.
const DOCKER: &str = "
    iptables -N DOCKER-USER; iptables -N DOCKER-FORWARD
    iptables -P FORWARD DROP
    iptables -A FORWARD -j DOCKER-USER; iptables -A FORWARD -j DOCKER-FORWARD
    iptables -A DOCKER-FORWARD -i docker0 -j ACCEPT
    iptables -A DOCKER-USER -j RETURN";

#[track_caller]
fn check_ways(node: &Node, pod: &Pod) {
    let web = pod.namespace.tcp_listener("0.0.0.0:80");
    tcp_source(&node.world, (NODE, 8080), &web).unwrap();
    let in_world = node.world.tcp_listener("0.0.0.0:7000");
    tcp_source(&pod.namespace, (WORLD, 7000), &in_world).unwrap();
}

#[test]
fn docker_lets_our_packets_through_its_own_door() {
    let node = Node::new();
    node.namespace.sh(DOCKER);
    let before = node.namespace.sh("iptables -S");
    let bridge = node.open(&[]);
    let pod = node.pod(&bridge, "first", &[tcp(8080, 80)]);
    check_ways(&node, &pod);
    assert_eq!(node.namespace.run(|| foreign_drops(&node.config)).unwrap(), []);
    let ours = ["-i", "-o"].map(|way| format!("-A DOCKER-USER {way} berth0a1b2c3d -j ACCEPT\n"));
    let rules = node.namespace.sh("iptables -S");
    let expected =
        before.replace("-A DOCKER-USER -j", &format!("{}{}-A DOCKER-USER -j", ours[0], ours[1]));
    assert_eq!(rules, expected);
    node.namespace.sh("iptables -C DOCKER-USER -i berth0a1b2c3d -j ACCEPT");

    node.namespace.run(|| bridge.sync()).unwrap();
    assert_eq!(node.namespace.sh("iptables -S"), expected, "once is enough");
    node.namespace.run(|| remove_all(&node.config)).unwrap();
    assert_eq!(node.namespace.sh("iptables -S"), before);
}

#[test]
fn docker_that_comes_later_lets_our_packets_through_too() {
    let node = Node::new();
    let bridge = node.open(&[]);
    let pod = node.pod(&bridge, "first", &[tcp(8080, 80)]);
    node.namespace.sh(DOCKER);
    check_unreachable(&node.world, (NODE, 8080));
    assert_eq!(node.namespace.run(|| foreign_drops(&node.config)).unwrap().len(), 1);
    assert!(node.namespace.run(|| bridge.heal()).unwrap());
    check_ways(&node, &pod);
}

/// Rules of others in DOCKER-USER, though about our bridge, are theirs.
#[test]
fn rules_of_others_in_dockers_chain_stay() {
    let node = Node::new();
    node.namespace.sh(DOCKER);
    node.namespace.sh("iptables -I DOCKER-USER -i berth0a1b2c3d -d 203.0.113.9 -j DROP");
    let before = node.namespace.sh("iptables -S");
    let bridge = node.open(&[]);
    drop(bridge);
    node.namespace.run(|| remove_all(&node.config)).unwrap();
    assert_eq!(node.namespace.sh("iptables -S"), before);
}

#[track_caller]
fn check_drop(rules: &str, cure: &str, expected: (&str, &str, &str, &str)) {
    let node = Node::new();
    let _bridge = node.open(&[]);
    let drops = || node.namespace.run(|| foreign_drops(&node.config)).unwrap();
    assert_eq!(drops(), []);
    node.namespace.sh(rules);
    let found = drops();
    let [found] = found.as_slice() else { panic!("{found:?}") };
    let (family, table, chain, why) = expected;
    assert_eq!(
        (&*found.family, &*found.table, &*found.chain, &*found.why),
        (family, table, chain, why)
    );
    node.namespace.sh(cure);
    assert_eq!(drops(), [], "what the text advises is the cure");
}

#[test]
fn a_firewall_like_ufw_is_named() {
    check_drop(
        "iptables -P FORWARD DROP; iptables -N ufw-user-forward
         iptables -A FORWARD -j ufw-user-forward
         iptables -A ufw-user-forward -s 192.0.2.1 -j ACCEPT",
        "iptables -A ufw-user-forward -i berth0a1b2c3d -j ACCEPT
         iptables -A ufw-user-forward -o berth0a1b2c3d -j ACCEPT",
        (
            "ip",
            "filter",
            "FORWARD",
            "its policy is drop, and no rule of the table accepts berth0a1b2c3d in both \
             directions; run: ufw route allow in on berth0a1b2c3d; ufw route allow out on \
             berth0a1b2c3d",
        ),
    );
}

#[test]
fn a_hand_made_firewall_is_named() {
    check_drop(
        "nft add table inet mine
         nft add chain inet mine onward '{ type filter hook forward priority 0; policy drop; }'
         nft add rule inet mine onward ct state established accept",
        "nft insert rule inet mine onward iifname berth0a1b2c3d accept
         nft insert rule inet mine onward oifname berth0a1b2c3d accept",
        (
            "inet",
            "mine",
            "onward",
            "its policy is drop, and no rule of the table accepts berth0a1b2c3d in both \
             directions; add to it: iifname berth0a1b2c3d accept; oifname berth0a1b2c3d accept",
        ),
    );
}

#[test]
fn a_firewall_like_firewalld_is_named() {
    check_drop(
        "nft add table inet firewalld
         nft add chain inet firewalld filter_FORWARD \
            '{ type filter hook forward priority 10; policy accept; }'
         nft add chain inet firewalld filter_FWD_trusted
         nft add chain inet firewalld filter_FORWARD_POLICIES
         nft add rule inet firewalld filter_FORWARD ct state established,related accept
         nft add rule inet firewalld filter_FORWARD jump filter_FORWARD_POLICIES
         nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited",
        "nft add rule inet firewalld filter_FWD_trusted accept
         nft add rule inet firewalld filter_FORWARD_POLICIES iifname berth0a1b2c3d \
            goto filter_FWD_trusted",
        (
            "inet",
            "firewalld",
            "filter_FORWARD",
            "its last rule drops or rejects everything, and no rule of the table accepts \
             berth0a1b2c3d in both directions; run: firewall-cmd --permanent --zone=trusted \
             --add-interface=berth0a1b2c3d; firewall-cmd --reload",
        ),
    );
}

/// A node with a second wire, to another network; the two use it as a router.
fn between_two_networks() -> (Node, Namespace) {
    let node = Node::new();
    let other = Namespace::new();
    node.namespace.sh(&format!(
        "ip link add eth1 type veth peer name eth0 netns {}
         ip address add 203.0.113.2/24 dev eth1; ip link set eth1 up",
        other.path()
    ));
    other.sh("ip address add 203.0.113.1/24 dev eth0; ip link set eth0 up
              ip route add default via 203.0.113.2");
    node.world.sh(&format!("ip route add default via {NODE}"));
    (node, other)
}

const OTHER: std::net::Ipv4Addr = std::net::Ipv4Addr::new(203, 0, 113, 1);

#[test]
fn a_node_that_was_no_router_does_not_become_one() {
    let (node, other) = between_two_networks();
    assert_eq!(node.namespace.setting("net/ipv4/ip_forward"), "0");
    let bridge = node.open(&[]);
    assert_eq!(node.namespace.setting("net/ipv4/ip_forward"), "1");
    assert_eq!(bridge.status().forwarding, Forwarding::Ours);
    let _listening = other.tcp_listener("0.0.0.0:7000");
    check_unreachable(&node.world, (OTHER, 7000));
    let bridge = node.open(&[]);
    assert_eq!(bridge.status().forwarding, Forwarding::Ours, "a restart does not forget");
    check_unreachable(&node.world, (OTHER, 7000));
    let pod = node.pod(&bridge, "first", &[tcp(8080, 80)]);
    check_ways(&node, &pod);
    node.namespace.run(|| remove_all(&node.config)).unwrap();
    assert_eq!(node.namespace.setting("net/ipv4/ip_forward"), "0");
}

#[test]
fn a_node_that_was_a_router_stays_one() {
    let (node, other) = between_two_networks();
    node.namespace.set("net/ipv4/ip_forward", "1");
    let bridge = node.open(&[]);
    assert_eq!(bridge.status().forwarding, Forwarding::Theirs);
    let listening = other.tcp_listener("0.0.0.0:7000");
    tcp_source(&node.world, (OTHER, 7000), &listening).unwrap();
    node.namespace.run(|| remove_all(&node.config)).unwrap();
    assert_eq!(node.namespace.setting("net/ipv4/ip_forward"), "1");
}

/// An engine that starts after us finds forwarding on, and relies on it.
#[test]
fn containers_of_an_engine_that_comes_later_reach_the_world() {
    let node = Node::new();
    let bridge = node.open(&[]);
    let container = container_on(&node, "docker0", "172.17.0");
    node.world.sh(&format!("ip route add 172.17.0.0/16 via {NODE}"));
    let in_world = node.world.tcp_listener("0.0.0.0:7000");
    tcp_source(&container, (WORLD, 7000), &in_world).unwrap();
    let pod = node.pod(&bridge, "first", &[tcp(8080, 80)]);
    let web = pod.namespace.tcp_listener("0.0.0.0:80");
    tcp_source(&container, (NODE, 8080), &web).unwrap();
    tcp_source(&pod.namespace, (WORLD, 7000), &in_world).unwrap();
    node.namespace.run(|| remove_all(&node.config)).unwrap();
    tcp_source(&container, (WORLD, 7000), &in_world).unwrap();
}

/// A namespace on a bridge of the node's, with the bridge as its default route.
fn container_on(node: &Node, bridge: &str, network: &str) -> Namespace {
    let container = Namespace::new();
    let host_end = format!("v{}", network.replace('.', ""));
    node.namespace.sh(&format!(
        "ip link add {bridge} type bridge 2>/dev/null || true
         ip address replace {network}.1/16 dev {bridge}; ip link set {bridge} up
         ip link add {host_end} type veth peer name eth0 netns {}
         ip link set {host_end} master {bridge} up",
        container.path()
    ));
    container.sh(&format!(
        "ip address add {network}.2/16 dev eth0; ip link set eth0 up
         ip route add default via {network}.1"
    ));
    container
}

/// Frames between two ports of a LAN bridge of the node pass its forward chains where br_netfilter
/// is on; they were never routed. Between the LAN and another network the node is no router.
#[test]
fn a_lan_bridge_of_the_node_goes_on_bridging_and_does_not_begin_to_route() {
    let (node, other) = between_two_networks();
    node.namespace.set("net/bridge/bridge-nf-call-iptables", "1");
    let first = container_on(&node, "br0", "10.9.0");
    let second = container_on(&node, "br0", "10.9.1");
    // A port that is neither a container's nor a virtual machine's makes it a LAN.
    node.namespace
        .sh("ip link add vx0 type vxlan id 7 dstport 4789; ip link set vx0 master br0 up");
    let bridge = node.open(&[]);
    let listening = second.tcp_listener("0.0.0.0:7000");
    let address = std::net::Ipv4Addr::new(10, 9, 1, 2);
    tcp_source(&first, (address, 7000), &listening).unwrap();
    other.sh("ip route add 10.9.0.0/16 via 203.0.113.2");
    let _elsewhere = other.tcp_listener("0.0.0.0:7000");
    check_unreachable(&first, (OTHER, 7000));
    check_unreachable(&other, (address, 7000));
    let pod = node.pod(&bridge, "first", &[]);
    tcp_source(&pod.namespace, (address, 7000), &listening).unwrap();
}

#[test]
fn two_instances_serve_side_by_side() {
    let (node, other_network) = between_two_networks();
    let first = node.open(&[]);
    let config = Config {
        instance: "ffffffff".to_owned(),
        directory: node.config.directory.with_file_name("second"),
        subnet: None,
    };
    let second = node.namespace.run(|| Bridge::open(&config, &[])).unwrap();
    assert_eq!(second.status().forwarding, Forwarding::Ours);
    let one = node.pod(&first, "one", &[tcp(8080, 80)]);
    let two = node.pod(&second, "two", &[tcp(8081, 80)]);
    let web = two.namespace.tcp_listener("0.0.0.0:80");
    tcp_source(&one.namespace, (NODE, 8081), &web).unwrap();
    tcp_source(&node.world, (NODE, 8081), &web).unwrap();
    check_unreachable(&one.namespace, (two.address, 80));
    check_ways(&node, &one);

    node.namespace.run(|| remove_all(&node.config)).unwrap();
    tcp_source(&node.world, (NODE, 8081), &web).unwrap();
    let _listening = other_network.tcp_listener("0.0.0.0:7000");
    check_unreachable(&node.world, (OTHER, 7000));
    node.namespace.run(|| remove_all(&config)).unwrap();
    assert_eq!(node.namespace.setting("net/ipv4/ip_forward"), "0");
}

/// Both begin their search at the same candidate.
#[test]
fn instances_that_start_at_once_do_not_share_a_subnet() {
    let node = Node::new();
    let start = |instance: &str| {
        let config = Config {
            instance: instance.to_owned(),
            directory: node.config.directory.with_file_name(instance),
            subnet: None,
        };
        node.namespace.run(|| Bridge::open(&config, &[])).unwrap().status().subnet
    };
    for round in 0..5 {
        let ids = [0, 1, 2].map(|number| format!("{round}{number}000007"));
        let subnets = std::thread::scope(|scope| {
            let threads = ids.each_ref().map(|id| scope.spawn(|| start(id)));
            threads.map(|thread| thread.join().unwrap())
        });
        let [one, two, three] = subnets;
        assert!(!one.overlaps(two) && !two.overlaps(three) && !three.overlaps(one), "{subnets:?}");
    }
}
