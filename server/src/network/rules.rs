//! Our table: what it says, as data, and the transactions that put it in place.
//!
//! Host ports are two maps, so that a pod's are elements added and deleted by key, while the
//! chains stay as they are. A packet for a host port is looked up once, when its connection
//! begins. nf_tables has no other order between tables than hooks and priorities, and an accept of
//! ours ends only our own chain: what another firewall drops stays dropped (`foreign.rs`).

use super::netlink::Batch;
use super::nftables::{
    Chain, Connection, Element, Expression, HOOK_FORWARD, Header, Hook, Meta, NAME_SIZE, Register,
    Set, Transaction, Verdict,
};
use super::ports::host_address;
use super::{Attachment, Subnet};

/// Names of the maps: (protocol, port) and (address, protocol, port) to a pod's (address, port).
const PORTS: &str = "host_ports";
const ADDRESS_PORTS: &str = "host_address_ports";
/// Of the guard: bridges that have hardware among their ports, and each of them with itself.
const LAN: &str = "lan_bridges";
const LAN_BRIDGED: &str = "lan_bridged";
/// The name of the bridges of all instances begins so.
pub(crate) const BRIDGE_PREFIX: &str = "berth";
/// The chain that exists where forwarding is on because of us.
pub(crate) const GUARD: &str = "guard";

const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_RAW: i32 = -300;
const PRIORITY_DNAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SNAT: i32 = 100;

/// Offsets in an IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
/// Type of an address of the node itself (RTN_LOCAL).
const RTN_LOCAL: u32 = 2;
/// Bits of a connection: established or related; its destination was translated (IPS_DST_NAT).
const STATE_KNOWN: u32 = 2 | 4;
const STATUS_DNAT: u32 = 1 << 5;

/// Types of the program nft: address, protocol, port, interface name.
const TYPE_ADDRESS: u32 = 7;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;
const TYPE_NAME: u32 = 41;

/// All that the table depends on, besides the host ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Name of the table, family ip.
    pub(crate) table: String,
    pub(crate) bridge: String,
    pub(crate) subnet: Subnet,
    /// Set where packets are forwarded at all because we asked for it: bridges of the node that
    /// lead to hardware, see [`guard`].
    pub(crate) guard: Option<Vec<String>>,
}

/// The whole table made anew, in one transaction, with the host ports of these sandboxes.
pub(crate) fn replace<'a>(
    rules: &Rules,
    attachments: impl Iterator<Item = &'a Attachment>,
) -> Batch {
    let table = &rules.table;
    let mut transaction = Transaction::begin();
    // Deleting what is not there fails, making what is there does not.
    transaction.make_table(table);
    transaction.delete_table(table);
    transaction.make_table(table);
    for set in sets(rules) {
        transaction.make_set(table, &set);
    }
    let chains = chains(rules);
    for chain in &chains {
        transaction.make_chain(table, chain);
    }
    for chain in &chains {
        for rule in &chain.rules {
            transaction.append_rule(table, chain.name, rule);
        }
    }
    if let Some(lan) = &rules.guard {
        let one = |name: &String| (interface(name).to_vec(), None);
        transaction.add_elements(table, LAN, &lan.iter().map(one).collect::<Vec<_>>());
        let two = |name: &String| (interface(name).repeat(2), None);
        transaction.add_elements(table, LAN_BRIDGED, &lan.iter().map(two).collect::<Vec<_>>());
    }
    let (mut any, mut by_address) = (Vec::new(), Vec::new());
    for attachment in attachments {
        sort_elements(attachment, &mut any, &mut by_address);
    }
    transaction.add_elements(table, PORTS, &any);
    transaction.add_elements(table, ADDRESS_PORTS, &by_address);
    transaction.end()
}

/// Adds a sandbox's host ports. `None` where it has none.
pub(crate) fn add_ports(table: &str, attachment: &Attachment) -> Option<Batch> {
    change_ports(table, attachment, Transaction::add_elements)
}

/// Deletes a sandbox's host ports. `None` where it has none.
pub(crate) fn delete_ports(table: &str, attachment: &Attachment) -> Option<Batch> {
    change_ports(table, attachment, Transaction::delete_elements)
}

fn change_ports(
    table: &str,
    attachment: &Attachment,
    change: impl Fn(&mut Transaction, &str, &str, &[Element]),
) -> Option<Batch> {
    if attachment.ports.is_empty() {
        return None;
    }
    let (mut any, mut by_address) = (Vec::new(), Vec::new());
    sort_elements(attachment, &mut any, &mut by_address);
    let mut transaction = Transaction::begin();
    change(&mut transaction, table, PORTS, &any);
    change(&mut transaction, table, ADDRESS_PORTS, &by_address);
    Some(transaction.end())
}

/// Deletes the table. It must be there.
pub(crate) fn delete(table: &str) -> Batch {
    let mut transaction = Transaction::begin();
    transaction.delete_table(table);
    transaction.end()
}

/// The elements of a sandbox's host ports. Each field fills whole words of four bytes.
fn sort_elements(attachment: &Attachment, any: &mut Vec<Element>, by_address: &mut Vec<Element>) {
    let word = |port: u16| {
        let [high, low] = port.to_be_bytes();
        [high, low, 0, 0]
    };
    for mapping in &attachment.ports {
        let protocol = [mapping.protocol.number(), 0, 0, 0];
        let key = [protocol, word(mapping.host_port)].concat();
        let data = [attachment.address.octets(), word(mapping.container_port)].concat();
        match host_address(mapping) {
            Ok(None) => any.push((key, Some(data))),
            Ok(Some(address)) => {
                by_address.push(([address.octets().to_vec(), key].concat(), Some(data)));
            }
            // A mapping for IPv6 is refused when it is planned.
            Err(_) => {}
        }
    }
}

fn sets(rules: &Rules) -> Vec<Set> {
    let ports = TYPE_PROTOCOL << 6 | TYPE_PORT;
    let target = (TYPE_ADDRESS << 6 | TYPE_PORT, 8);
    let size = 16; // NAME_SIZE
    let mut sets = vec![
        Set { name: PORTS, key_type: ports, key_length: 8, data: Some(target) },
        Set {
            name: ADDRESS_PORTS,
            key_type: TYPE_ADDRESS << 12 | ports,
            key_length: 12,
            data: Some(target),
        },
    ];
    if rules.guard.is_some() {
        let pair = TYPE_NAME << 6 | TYPE_NAME;
        sets.push(Set { name: LAN, key_type: TYPE_NAME, key_length: size, data: None });
        sets.push(Set { name: LAN_BRIDGED, key_type: pair, key_length: 2 * size, data: None });
    }
    sets
}

fn chains(rules: &Rules) -> Vec<Chain> {
    let mut chains = vec![
        from_loopback(rules),
        translate(),
        at_arrival(),
        from_node(),
        on_the_way_out(rules),
        to_pods(rules),
    ];
    chains.extend(rules.guard.as_ref().map(|_| guard()));
    chains.push(forward(rules));
    chains
}

/// route_localnet lets the bridge carry 127.0.0.0/8, which the node needs for its own
/// connections to host ports. What a pod sends with such an address ends here, before any
/// translation (CVE-2020-8558).
fn from_loopback(rules: &Rules) -> Chain {
    let drop_loopback = |offset| {
        let mut rule = interface_is(Meta::InName, &rules.bridge);
        rule.extend(loopback(offset));
        rule.push(Expression::End(Verdict::Drop));
        rule
    };
    Chain {
        name: "from_loopback",
        hook: hook("filter", HOOK_PREROUTING, PRIORITY_RAW),
        rules: vec![drop_loopback(DESTINATION), drop_loopback(SOURCE)],
    }
}

/// Sends a packet that is for a host port to its pod.
fn translate() -> Chain {
    let protocol = |to| Expression::Meta { key: Meta::Layer4Protocol, to };
    let port = |to| Expression::Payload { header: Header::Transport, offset: 2, length: 2, to };
    let address = load(DESTINATION, 4);
    let [first, second, third] = [Register::First, Register::Word2, Register::Word3];
    let to_pod = |map| [Expression::Map(map), Expression::TranslateDestination];
    Chain {
        name: "translate",
        hook: None,
        rules: vec![
            [&[address, protocol(second), port(third)][..], &to_pod(ADDRESS_PORTS)].concat(),
            [&[protocol(first), port(second)][..], &to_pod(PORTS)].concat(),
        ],
    }
}

/// From pods and from the world. 127.0.0.0/8 is the node's own and goes through the output hook:
/// whoever sends to it over a wire, where some other program set route_localnet, is not served.
fn at_arrival() -> Chain {
    let mut not_loopback = loopback(DESTINATION);
    not_loopback.push(Expression::End(Verdict::Return));
    Chain {
        name: "at_arrival",
        hook: hook("nat", HOOK_PREROUTING, PRIORITY_DNAT),
        rules: vec![not_loopback, to_the_node()],
    }
}

fn from_node() -> Chain {
    let hook = hook("nat", HOOK_OUTPUT, PRIORITY_DNAT);
    Chain { name: "from_node", hook, rules: vec![to_the_node()] }
}

/// Only what is addressed to the node can be for a host port.
fn to_the_node() -> Vec<Expression> {
    let local = RTN_LOCAL.to_ne_bytes().to_vec();
    vec![
        Expression::DestinationType,
        Expression::Compare { equal: true, value: local },
        Expression::End(Verdict::Jump("translate")),
    ]
}

/// Source addresses. A pod's is the node's out in the world. To a pod the node is the sender where
/// the answer would not come back otherwise: the node's 127.0.0.1, and another pod (or the pod
/// itself) that used a host port, which would be answered directly and not know the answer.
fn on_the_way_out(rules: &Rules) -> Chain {
    let masquerade = |random| Expression::Masquerade { random };
    let mut from_node = interface_is(Meta::OutName, &rules.bridge);
    from_node.extend(loopback(SOURCE));
    from_node.push(masquerade(false));
    let mut from_pod_by_host_port = interface_is(Meta::OutName, &rules.bridge);
    from_pod_by_host_port.extend(in_subnet(SOURCE, rules.subnet));
    from_pod_by_host_port.extend(connection(Connection::Status, STATUS_DNAT));
    from_pod_by_host_port.push(masquerade(false));
    let mut to_world = compare_interface(Meta::OutName, &rules.bridge, false);
    to_world.extend(in_subnet(SOURCE, rules.subnet));
    // Source ports at random: two connections that begin at once do not pick the same one.
    to_world.push(masquerade(true));
    Chain {
        name: "on_the_way_out",
        hook: hook("nat", HOOK_POSTROUTING, PRIORITY_SNAT),
        rules: vec![from_node, from_pod_by_host_port, to_world],
    }
}

/// To a pod come answers, host ports and other pods. A neighbour of the node that sends packets
/// for the subnet our way reaches nothing.
fn to_pods(rules: &Rules) -> Chain {
    let accept = Expression::End(Verdict::Accept);
    let mut from_pod = interface_is(Meta::InName, &rules.bridge);
    from_pod.push(accept.clone());
    let mut answers = connection(Connection::State, STATE_KNOWN);
    answers.push(accept.clone());
    let mut host_ports = connection(Connection::Status, STATUS_DNAT);
    host_ports.push(accept);
    Chain {
        name: "to_pods",
        hook: None,
        rules: vec![from_pod, answers, host_ports, vec![Expression::End(Verdict::Drop)]],
    }
}

/// Makes no router of a node that was none before us: drops what is neither from nor to a bridge
/// of berth (of any instance, for they share the one switch). Two kinds of packets pass all the
/// same. Frames that a bridge of the node merely bridges come here where br_netfilter is on, and
/// never were routed. And bridges without hardware belong to engines such as docker or libvirt,
/// which found forwarding on, and rely on it as they would have turned it on themselves.
fn guard() -> Chain {
    let prefix = BRIDGE_PREFIX.as_bytes();
    let ours = |key| {
        vec![
            Expression::Meta { key, to: Register::First },
            Expression::Compare { equal: true, value: prefix.to_vec() },
            Expression::End(Verdict::Accept),
        ]
    };
    let bridged = vec![
        Expression::Meta { key: Meta::InName, to: Register::First },
        Expression::Meta { key: Meta::OutName, to: Register::Second },
        Expression::InSet { set: LAN_BRIDGED, wanted: true },
        Expression::End(Verdict::Accept),
    ];
    let engine = |name, kind| {
        vec![
            Expression::Meta { key: name, to: Register::First },
            Expression::InSet { set: LAN, wanted: false },
            Expression::Meta { key: kind, to: Register::First },
            Expression::Compare { equal: true, value: interface("bridge").to_vec() },
            Expression::End(Verdict::Accept),
        ]
    };
    Chain {
        name: GUARD,
        hook: None,
        rules: vec![
            ours(Meta::InName),
            ours(Meta::OutName),
            bridged,
            engine(Meta::InName, Meta::InKind),
            engine(Meta::OutName, Meta::OutKind),
            vec![Expression::End(Verdict::Drop)],
        ],
    }
}

fn forward(rules: &Rules) -> Chain {
    let mut to_pods = interface_is(Meta::OutName, &rules.bridge);
    to_pods.push(Expression::End(Verdict::Goto("to_pods")));
    let mut all = vec![to_pods];
    all.extend(rules.guard.as_ref().map(|_| vec![Expression::End(Verdict::Goto(GUARD))]));
    Chain { name: "forward", hook: hook("filter", HOOK_FORWARD, PRIORITY_FILTER), rules: all }
}

fn hook(kind: &'static str, number: u32, priority: i32) -> Option<Hook> {
    Some(Hook { kind, number, priority })
}

/// A name as it lies in a register.
pub(crate) fn interface(name: &str) -> [u8; NAME_SIZE] {
    let mut bytes = [0; NAME_SIZE];
    let length = name.len().min(NAME_SIZE - 1);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

fn interface_is(key: Meta, name: &str) -> Vec<Expression> {
    compare_interface(key, name, true)
}

fn compare_interface(key: Meta, name: &str, equal: bool) -> Vec<Expression> {
    let value = interface(name).to_vec();
    vec![Expression::Meta { key, to: Register::First }, Expression::Compare { equal, value }]
}

/// The first bytes of an address in the IP header.
fn load(offset: u32, length: u32) -> Expression {
    Expression::Payload { header: Header::Network, offset, length, to: Register::First }
}

/// An address in 127.0.0.0/8.
fn loopback(offset: u32) -> Vec<Expression> {
    vec![load(offset, 1), Expression::Compare { equal: true, value: vec![127] }]
}

fn in_subnet(offset: u32, subnet: Subnet) -> Vec<Expression> {
    vec![
        load(offset, 4),
        Expression::Mask(subnet.mask().octets()),
        Expression::Compare { equal: true, value: subnet.base().octets().to_vec() },
    ]
}

/// One of these bits is set.
fn connection(key: Connection, bits: u32) -> Vec<Expression> {
    vec![
        Expression::Connection(key),
        Expression::Mask(bits.to_ne_bytes()),
        Expression::Compare { equal: false, value: vec![0; 4] },
    ]
}

/// What iptables-nft writes for `-i NAME -j ACCEPT` (or `-o`): it compares the name with its zero
/// byte and no further, and each of its rules counts.
pub(crate) fn iptables_accept(key: Meta, name: &str) -> Vec<Expression> {
    let value = [name.as_bytes(), &[0]].concat();
    vec![
        Expression::Meta { key, to: Register::First },
        Expression::Compare { equal: true, value },
        Expression::Counter,
        Expression::End(Verdict::Accept),
    ]
}

/// How many rules the table has.
pub(crate) fn count(rules: &Rules) -> usize {
    chains(rules).iter().map(|chain| chain.rules.len()).sum()
}
