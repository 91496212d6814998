//! Tests of plans: what is said to the kernel, and who holds what, without one.

use std::net::Ipv4Addr;

use super::netlink::Messages;
use super::nftables::{Meta, Transaction};
use super::ports::PortTable;
use super::rules::{self, Rules, iptables_accept};
use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn mapping(protocol: Protocol, host_ip: Option<&str>, host_port: u16) -> PortMapping {
    let host_ip = host_ip.map(|address| address.parse().unwrap());
    PortMapping { protocol, container_port: 80, host_port, host_ip }
}

fn attachment(ports: Vec<PortMapping>) -> Attachment {
    let address = Ipv4Addr::new(10, 64, 0, 2);
    Attachment {
        sandbox: "first".to_owned(),
        address,
        prefix: 20,
        gateway: Ipv4Addr::new(10, 64, 0, 1),
        link: "b0a1b2c3d000002".to_owned(),
        mac: Mac::of(address),
        mtu: 1500,
        ports,
    }
}

/// What iptables 1.8 sends for `iptables -I DOCKER-USER -i berth0a1b2c3d -j ACCEPT`, besides the
/// order of two attributes of "meta".
#[test]
fn a_rule_for_docker_is_the_one_that_iptables_would_write() {
    let mut transaction = Transaction::begin();
    let rule = iptables_accept(Meta::InName, "berth0a1b2c3d");
    transaction.insert_iptables_rule("filter", "DOCKER-USER", &rule);
    let batch = transaction.end();
    let message = Messages(batch.bytes()).nth(1).unwrap().unwrap();
    assert_eq!((message.kind, message.flags), (0xa06, 0x401), "a new rule, at the beginning");
    let expected = "02000000
        0b000100 66696c74657200 00   10000200 444f434b45522d5553455200
        bc000480
          24000180 09000100 6d65746100 000000 14000280 08000200 00000006 08000100 00000001
          38000180 08000100 636d7000 2c000280 08000100 00000001 08000200 00000000
                   18000380 12000100 6265727468306131623263336400 0000
          2c000180 0c000100 636f756e74657200 1c000280
                   0c000100 0000000000000000 0c000200 0000000000000000
          30000180 0e000100 696d6d65646961746500 0000 1c000280
                   08000100 00000000 10000280 0c000280 08000100 00000001
        14000580 08000100 00000000 08000200 00000000";
    assert_eq!(message.payload, hex(expected), "{:02x?}", message.payload);
}

#[test]
fn a_host_port_is_one_element_of_a_map() {
    let ports =
        vec![mapping(Protocol::Tcp, None, 8080), mapping(Protocol::Sctp, Some("192.0.2.2"), 7000)];
    let batch = rules::add_ports("berth_0a1b2c3d", &attachment(ports)).unwrap();
    let messages: Vec<_> = Messages(batch.bytes()).map(Result::unwrap).collect();
    assert_eq!(messages.iter().map(|one| one.kind).collect::<Vec<_>>(), [0x10, 0xa0c, 0xa0c, 0x11]);
    let table = "13000100 62657274685f3061316232633364 00 00";
    let any = format!(
        "02000000 {table} 0f000200 686f73745f706f72747300 00
         28000380 24000180
           10000180 0c000100 06000000 1f900000
           10000280 0c000100 0a400002 00500000"
    );
    assert_eq!(messages[1].payload, hex(&any), "{:02x?}", messages[1].payload);
    let by_address = format!(
        "02000000 {table} 17000200 686f73745f616464726573735f706f72747300 00
         2c000380 28000180
           14000180 10000100 c0000202 84000000 1b580000
           10000280 0c000100 0a400002 00500000"
    );
    assert_eq!(messages[2].payload, hex(&by_address), "{:02x?}", messages[2].payload);
    assert!(rules::add_ports("berth_0a1b2c3d", &attachment(vec![])).is_none());
}

#[test]
fn a_table_with_thousands_of_host_ports_is_one_transaction() {
    let rules = Rules {
        table: "berth_0a1b2c3d".to_owned(),
        bridge: "berth0a1b2c3d".to_owned(),
        subnet: "10.64.0.0/20".parse().unwrap(),
        guard: None,
    };
    let ports = (1..=5000).map(|port| mapping(Protocol::Udp, Some("192.0.2.2"), port)).collect();
    let pod = attachment(ports);
    let batch = rules::replace(&rules, std::iter::once(&pod));
    let messages: Vec<_> = Messages(batch.bytes()).map(Result::unwrap).collect();
    let kinds: Vec<u16> = messages.iter().map(|one| one.kind).collect();
    assert_eq!(kinds[..4], [0x10, 0xa00, 0xa02, 0xa00], "made, deleted, made anew");
    assert_eq!(kinds.iter().filter(|kind| **kind == 0xa0c).count(), 8, "700 elements in each");
    assert_eq!(kinds.iter().filter(|kind| **kind == 0xa06).count(), rules::count(&rules));
    assert_eq!(kinds.last(), Some(&0x11));
}

#[track_caller]
fn check_take(table: &mut PortTable, sandbox: &str, ports: &[PortMapping], expected: &str) {
    let got = table.take(sandbox, ports).map_or_else(|error| error.to_string(), |()| String::new());
    assert_eq!(got, expected);
}

#[test]
fn a_host_port_has_one_owner_for_each_address() {
    let mut table = PortTable::default();
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let one = [mapping(tcp, None, 80), mapping(udp, Some("192.0.2.1"), 80)];
    check_take(&mut table, "a", &one, "");
    check_take(&mut table, "b", &[mapping(udp, Some("192.0.2.2"), 80)], "");
    check_take(&mut table, "c", &[mapping(tcp, None, 80)], "host port 80/tcp is taken");
    let clash = [mapping(tcp, None, 81), mapping(udp, Some("192.0.2.1"), 80)];
    check_take(&mut table, "c", &clash, "host port 192.0.2.1:80/udp is taken");
    check_take(&mut table, "c", &[mapping(tcp, None, 81)], "");
    check_take(
        &mut table,
        "d",
        &[mapping(udp, Some("0.0.0.0"), 80)],
        "host port 0.0.0.0:80/udp is taken",
    );
    let twice = [mapping(tcp, None, 82), mapping(tcp, Some("192.0.2.1"), 82)];
    check_take(&mut table, "d", &twice, "host port 192.0.2.1:82/tcp is taken");
    table.release("a", &one);
    check_take(&mut table, "d", &[mapping(tcp, None, 80)], "");
    check_take(&mut table, "d", &[mapping(udp, None, 80)], "host port 80/udp is taken");
    table.release("b", &[mapping(udp, Some("192.0.2.2"), 80)]);
    check_take(&mut table, "d", &[mapping(udp, None, 80)], "");
    let ipv6 = "host port [2001:db8::1]:80/udp: the built-in network has no IPv6; give an IPv4 \
                address or none";
    check_take(&mut table, "e", &[mapping(udp, Some("2001:db8::1"), 80)], ipv6);
}

#[test]
fn what_a_sandbox_does_not_have_it_cannot_release() {
    let mut table = PortTable::default();
    let port = [mapping(Protocol::Tcp, None, 80)];
    check_take(&mut table, "a", &port, "");
    table.release("b", &port);
    check_take(&mut table, "b", &port, "host port 80/tcp is taken");
}

#[test]
fn an_attachment_is_stored_in_words_that_people_can_read() {
    let stored = attachment(vec![mapping(Protocol::Udp, Some("192.0.2.1"), 53)]);
    let text = serde_json::to_string(&stored).unwrap();
    assert_eq!(
        text,
        r#"{"sandbox":"first","address":"10.64.0.2","prefix":20,"gateway":"10.64.0.1","link":"b0a1b2c3d000002","mac":"02:62:0a:40:00:02","mtu":1500,"ports":[{"protocol":"udp","container_port":80,"host_port":53,"host_ip":"192.0.2.1"}]}"#
    );
    assert_eq!(serde_json::from_str::<Attachment>(&text).unwrap(), stored);
    for bad in ["02:62:0a:40:00", "02:62:0a:40:00:02:03", "x", "02:62:0a:40:00:+2:"] {
        assert!(Mac::try_from(bad.to_owned()).is_err(), "{bad}");
    }
}
