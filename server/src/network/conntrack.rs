//! Connection tracking: forgets UDP conversations that go to the wrong place
//! (linux/netfilter/nfnetlink_conntrack.h).
//!
//! Where a packet goes is decided when its conversation begins, and a UDP conversation lasts as
//! long as the sender goes on. One that began before a host port was there never reaches the pod,
//! and one to a pod that has gone never reaches the next. TCP ends by itself: the sender tries
//! again from another port.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use super::netlink::{Attributes, Batch, Family, Message, NLM_F_DUMP, Socket, Writer, malformed};
use super::ports::host_address;
use super::{Attachment, Error, Protocol, Result, Subnet, route};

const IPCTNL_MSG_CT_GET: u16 = 0x101;
const IPCTNL_MSG_CT_DELETE: u16 = 0x102;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// A filter compares the protocol of a tuple and nothing else.
const COMPARE_PROTOCOL: u32 = 1 << 3;

const FAMILY_HEADER: [u8; 4] = [2, 0, 0, 0];
/// Deletions that go in one send.
const DELETIONS_AT_ONCE: usize = 256;

/// One direction of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tuple {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    source_port: u16,
    destination_port: u16,
}

/// A conversation: how it began, how it is answered, and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    original: Tuple,
    reply: Tuple,
    id: Vec<u8>,
}

/// Where host ports lead: (address of the node or `None` for all, port) to (pod, port).
pub(crate) type Targets = HashMap<(Option<Ipv4Addr>, u16), (Ipv4Addr, u16)>;

/// The targets of the UDP host ports of these sandboxes.
pub(crate) fn targets<'a>(attachments: impl Iterator<Item = &'a Attachment>) -> Targets {
    let mut targets = Targets::new();
    for attachment in attachments {
        for mapping in attachment.ports.iter().filter(|one| one.protocol == Protocol::Udp) {
            if let Ok(address) = host_address(mapping) {
                let target = (attachment.address, mapping.container_port);
                targets.insert((address, mapping.host_port), target);
            }
        }
    }
    targets
}

/// Forgets the UDP conversations with this node that lead elsewhere than the host ports say, or to
/// pods of the subnet that have gone. The kernel looks through its whole table for it (10 ms on a
/// big machine), so this serves for many changes at once, and nobody should wait for it.
pub(crate) fn forget_wrong(targets: &Targets, subnet: Subnet) -> Result<()> {
    let addresses = route::addresses(&Socket::open(Family::Route)?)?;
    let local = addresses.into_iter().map(|one| one.address).collect();
    let socket = Socket::open(Family::Netfilter)?;
    let found = socket.dump(request, |message| {
        Ok(read_entry(message)?.filter(|entry| is_wrong(entry, targets, subnet, &local)))
    });
    let found = match found {
        Err(error) if is_absent(&error) => return Ok(()),
        found => found?,
    };
    for some in found.chunks(DELETIONS_AT_ONCE) {
        let mut batch = Batch::default();
        for entry in some {
            let doing = "forget a tracked connection";
            batch.message(IPCTNL_MSG_CT_DELETE, 0, doing, &FAMILY_HEADER, |body| {
                write_tuple(body, &entry.original);
                body.bytes(CTA_ID, &entry.id);
            });
        }
        match socket.apply(batch) {
            Err(error) if error.errno() == libc::ENOENT => {} // It timed out by itself.
            applied => applied?,
        }
    }
    Ok(())
}

fn is_wrong(entry: &Entry, targets: &Targets, subnet: Subnet, local: &HashSet<Ipv4Addr>) -> bool {
    let Tuple { destination, destination_port: port, .. } = entry.original;
    let answers = (entry.reply.source, entry.reply.source_port);
    if !destination.is_loopback() && !local.contains(&destination) {
        return false; // Not with the node.
    }
    match targets.get(&(Some(destination), port)).or_else(|| targets.get(&(None, port))) {
        Some(target) => *target != answers,
        None => subnet.contains(answers.0) && answers.0 != destination,
    }
}

/// A kernel without ctnetlink has no entries that anybody could delete.
fn is_absent(error: &Error) -> bool {
    [libc::EINVAL, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT].contains(&error.errno())
}

/// Asks for the entries of UDP over IPv4.
fn request() -> Batch {
    let mut batch = Batch::default();
    let doing = "list tracked connections";
    batch.message(IPCTNL_MSG_CT_GET, NLM_F_DUMP, doing, &FAMILY_HEADER, |body| {
        body.nest(CTA_TUPLE_ORIG, |tuple| {
            tuple.nest(CTA_TUPLE_PROTO, |protocol| {
                protocol.bytes(CTA_PROTO_NUM, &[Protocol::Udp.number()]);
            });
        });
        body.nest(CTA_FILTER, |filter| {
            filter.u32(CTA_FILTER_ORIG_FLAGS, COMPARE_PROTOCOL);
            filter.u32(CTA_FILTER_REPLY_FLAGS, 0);
        });
    });
    batch
}

fn write_tuple(body: &mut Writer<'_>, tuple: &Tuple) {
    body.nest(CTA_TUPLE_ORIG, |nest| {
        nest.nest(CTA_TUPLE_IP, |ip| {
            ip.bytes(CTA_IP_V4_SRC, &tuple.source.octets());
            ip.bytes(CTA_IP_V4_DST, &tuple.destination.octets());
        });
        nest.nest(CTA_TUPLE_PROTO, |protocol| {
            protocol.bytes(CTA_PROTO_NUM, &[Protocol::Udp.number()]);
            protocol.bytes(CTA_PROTO_SRC_PORT, &tuple.source_port.to_be_bytes());
            protocol.bytes(CTA_PROTO_DST_PORT, &tuple.destination_port.to_be_bytes());
        });
    });
}

/// `None` for what is no UDP over IPv4.
fn read_entry(message: Message<'_>) -> Result<Option<Entry>> {
    let (_, attributes) = message.split(FAMILY_HEADER.len())?;
    let tuple = |kind| {
        let tuple = attributes.find(kind)?.ok_or_else(malformed)?;
        read_tuple(Attributes(tuple))
    };
    let (Some(original), Some(reply)) = (tuple(CTA_TUPLE_ORIG)?, tuple(CTA_TUPLE_REPLY)?) else {
        return Ok(None);
    };
    let id = attributes.find(CTA_ID)?.unwrap_or_default().to_vec();
    Ok(Some(Entry { original, reply, id }))
}

fn read_tuple(tuple: Attributes<'_>) -> Result<Option<Tuple>> {
    let ip = Attributes(tuple.find(CTA_TUPLE_IP)?.unwrap_or_default());
    let protocol = Attributes(tuple.find(CTA_TUPLE_PROTO)?.unwrap_or_default());
    if protocol.find(CTA_PROTO_NUM)? != Some(&[Protocol::Udp.number()]) {
        return Ok(None);
    }
    let address = |kind| {
        let bytes: Option<[u8; 4]> = ip.find(kind)?.and_then(|bytes| bytes.try_into().ok());
        Ok::<_, Error>(bytes.map(Ipv4Addr::from))
    };
    let port = |kind| {
        let bytes: Option<[u8; 2]> = protocol.find(kind)?.and_then(|bytes| bytes.try_into().ok());
        Ok::<_, Error>(bytes.map_or(0, u16::from_be_bytes))
    };
    let (source, destination) = (address(CTA_IP_V4_SRC)?, address(CTA_IP_V4_DST)?);
    let (Some(source), Some(destination)) = (source, destination) else { return Ok(None) };
    Ok(Some(Tuple {
        source,
        destination,
        source_port: port(CTA_PROTO_SRC_PORT)?,
        destination_port: port(CTA_PROTO_DST_PORT)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(destination: &str, port: u16, answers: (&str, u16), wrong: bool) {
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let pod = address("10.64.0.2");
        let targets = Targets::from([
            ((None, 53), (pod, 5353)),
            ((Some(address("192.0.2.2")), 54), (pod, 54)),
        ]);
        let local = ["192.0.2.2", "192.0.2.3", "10.64.0.1"].map(address).into();
        let client = (address("192.0.2.1"), 40_000);
        let tuple = |source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)| Tuple {
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
        };
        let entry = Entry {
            original: tuple(client, (address(destination), port)),
            reply: tuple((address(answers.0), answers.1), client),
            id: vec![],
        };
        let subnet = "10.64.0.0/20".parse().unwrap();
        assert_eq!(is_wrong(&entry, &targets, subnet, &local), wrong);
    }

    #[test]
    fn a_conversation_is_wrong_that_leads_elsewhere_than_the_host_ports_say() {
        check("192.0.2.2", 53, ("10.64.0.2", 5353), false);
        check("192.0.2.2", 53, ("192.0.2.2", 53), true); // Began before the host port.
        check("127.0.0.1", 53, ("127.0.0.1", 53), true);
        check("192.0.2.2", 53, ("10.64.0.9", 5353), true); // An earlier pod's.
        check("192.0.2.2", 53, ("10.64.0.2", 53), true); // An earlier mapping's.
        check("192.0.2.2", 54, ("10.64.0.2", 54), false);
        check("192.0.2.3", 54, ("192.0.2.3", 54), false); // The port of another address.
        check("192.0.2.2", 99, ("10.64.0.9", 99), true); // A pod that has gone.
        check("10.64.0.1", 99, ("10.64.0.1", 99), false); // The bridge itself.
        check("198.51.100.1", 53, ("198.51.100.1", 53), false); // Somebody else's server.
        check("10.64.0.2", 53, ("10.64.0.2", 53), false); // Straight to a pod.
    }
}
