//! Links, addresses and routes over NETLINK_ROUTE (rtnetlink(7), linux/if_link.h).
//!
//! Functions that take a [`Batch`] only write messages; the others ask the kernel.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::netlink::{
    Attributes, Batch, Message, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Socket,
    Writer, malformed, read_text, read_u32,
};
use super::{Attachment, Error, Mac, Result, Subnet};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFF_LOOPBACK: u32 = 8;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const VETH_INFO_PEER: u16 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;

const AF_INET: u8 = 2;
const AF_INET_NEST: u16 = 2;
const AF_INET6_NEST: u16 = 10;
const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

/// Sizes of `struct ifinfomsg`, `ifaddrmsg` and `rtmsg`.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;

/// The loopback of every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// Name of the pod's end of the link.
pub(crate) const POD_LINK: &str = "eth0";

fn link_header(index: u32, flags: u32, change: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

fn address_header(index: u32, prefix: u8) -> [u8; ADDRESS_HEADER] {
    let mut header = [AF_INET, prefix, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    header
}

/// Makes a bridge that is down. Multicast is flooded, not learnt: learning costs timers.
pub(crate) fn make_bridge(batch: &mut Batch, name: &str, mac: Mac) {
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let doing = format!("make bridge {name}");
    batch.message(RTM_NEWLINK, flags, doing, &link_header(0, 0, 0), |link| {
        link.text(IFLA_IFNAME, name);
        link.bytes(IFLA_ADDRESS, &mac.0);
        link.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "bridge");
            info.nest(IFLA_INFO_DATA, |data| data.bytes(IFLA_BR_MCAST_SNOOPING, &[0]));
        });
    });
}

/// Gives a bridge its address and MTU and lets it carry what the node sends from 127.0.0.1.
/// It is safe to repeat.
pub(crate) fn set_up_bridge(batch: &mut Batch, bridge: &Link, subnet: Subnet, mtu: u32) {
    let name = &bridge.name;
    add_address(batch, bridge.index, name, subnet.gateway(), subnet.prefix());
    let doing = format!("bring up bridge {name} with MTU {mtu}");
    batch.message(RTM_SETLINK, 0, doing, &link_header(bridge.index, IFF_UP, IFF_UP), |link| {
        link.u32(IFLA_MTU, mtu);
        link.nest(IFLA_AF_SPEC, |families| {
            families.nest(AF_INET_NEST, |inet| {
                inet.nest(IFLA_INET_CONF, |conf| conf.u32(IPV4_DEVCONF_ROUTE_LOCALNET, 1));
            });
        });
    });
}

/// Both ends of a pod's link.
#[derive(Debug)]
pub(crate) struct Pair<'a> {
    /// Name of the node's end.
    pub(crate) host: &'a str,
    /// The bridge that it joins.
    pub(crate) bridge: u32,
    /// Hardware address of eth0.
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
    /// The network namespace for eth0.
    pub(crate) netns: BorrowedFd<'a>,
    /// Whether the kernel has IPv6, of which the node's end takes no part.
    pub(crate) ipv6: bool,
}

/// Makes the link, eth0 in its place, the node's end up. A pair cannot be made up: each end wants
/// to see the other.
pub(crate) fn make_pair(batch: &mut Batch, pair: &Pair<'_>) {
    let name = pair.host;
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let make = format!("make link {name}");
    batch.message(RTM_NEWLINK, flags, make, &link_header(0, 0, 0), |link| {
        link.text(IFLA_IFNAME, name);
        link.u32(IFLA_MTU, pair.mtu);
        link.u32(IFLA_MASTER, pair.bridge);
        one_queue(link);
        link.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth");
            info.nest(IFLA_INFO_DATA, |data| {
                let header = link_header(0, 0, 0);
                data.nest_after(VETH_INFO_PEER, &header, |peer| write_peer(peer, pair));
            });
        });
    });
    // The kernel makes a link-local address when a link goes up, so this goes first.
    set_up_port(batch, name, pair.ipv6);
    let doing = format!("bring up link {name}");
    batch.message(RTM_SETLINK, 0, doing, &link_header(0, IFF_UP, IFF_UP), |link| {
        link.text(IFLA_IFNAME, name);
    });
}

fn write_peer(peer: &mut Writer<'_>, pair: &Pair<'_>) {
    peer.text(IFLA_IFNAME, POD_LINK);
    peer.bytes(IFLA_ADDRESS, &pair.mac.0);
    peer.u32(IFLA_MTU, pair.mtu);
    peer.u32(IFLA_NET_NS_FD, pair.netns.as_raw_fd().unsigned_abs());
    one_queue(peer);
}

/// By default a veth has a queue in each direction for every processor, with entries in sysfs for
/// each, and uses one of them.
fn one_queue(link: &mut Writer<'_>) {
    link.u32(IFLA_NUM_TX_QUEUES, 1);
    link.u32(IFLA_NUM_RX_QUEUES, 1);
}

/// Options of the node's end, once it is a port of the bridge. Frames may leave by the port they came
/// in, which is how a pod reaches itself by a host port or a service where br_netfilter translates
/// bridged frames.
pub(crate) fn set_up_port(batch: &mut Batch, name: &str, ipv6: bool) {
    let doing = format!("set up link {name}");
    batch.message(RTM_NEWLINK, 0, doing, &link_header(0, 0, 0), |link| {
        link.text(IFLA_IFNAME, name);
        link.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_SLAVE_KIND, "bridge");
            info.nest(IFLA_INFO_SLAVE_DATA, |port| port.bytes(IFLA_BRPORT_MODE, &[1]));
        });
        if ipv6 {
            link.nest(IFLA_AF_SPEC, |families| {
                families.nest(AF_INET6_NEST, |inet6| {
                    inet6.bytes(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
                });
            });
        }
    });
}

/// Inside a pod: the loopback up.
pub(crate) fn set_up_loopback(batch: &mut Batch) {
    let lo = link_header(LOOPBACK_INDEX, IFF_UP, IFF_UP);
    batch.message(RTM_SETLINK, 0, "bring up the pod's loopback", &lo, |_| {});
}

/// Inside a pod: the loopback and eth0 up, the address, the default route. `index` is eth0's.
pub(crate) fn set_up_pod(batch: &mut Batch, index: u32, attachment: &Attachment) {
    let Attachment { address, prefix, gateway, .. } = *attachment;
    set_up_loopback(batch);
    add_address(batch, index, "the pod's eth0", address, prefix);
    let eth0 = link_header(index, IFF_UP, IFF_UP);
    batch.message(RTM_SETLINK, 0, "bring up the pod's eth0", &eth0, |_| {});
    let header = [AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
    let doing = format!("add the pod's default route via {gateway}");
    batch.message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, doing, &header, |route| {
        route.bytes(RTA_GATEWAY, &gateway.octets());
        route.u32(RTA_OIF, index);
    });
}

fn add_address(batch: &mut Batch, index: u32, link: &str, address: Ipv4Addr, prefix: u8) {
    let doing = format!("add address {address}/{prefix} to {link}");
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    batch.message(RTM_NEWADDR, flags, doing, &address_header(index, prefix), |body| {
        body.bytes(IFA_LOCAL, &address.octets());
        body.bytes(IFA_ADDRESS, &address.octets());
    });
}

/// Takes an address from a link.
pub(crate) fn delete_address(batch: &mut Batch, address: &Address) {
    let Address { index, address, prefix } = *address;
    let doing = format!("delete address {address}/{prefix}");
    batch.message(RTM_DELADDR, 0, doing, &address_header(index, prefix), |body| {
        body.bytes(IFA_LOCAL, &address.octets());
    });
}

/// Makes a link a port of a bridge, whatever it was before.
pub(crate) fn join_bridge(batch: &mut Batch, link: &str, bridge: u32) {
    let doing = format!("join link {link} to the bridge");
    batch.message(RTM_SETLINK, 0, doing, &link_header(0, 0, 0), |body| {
        body.text(IFLA_IFNAME, link);
        body.u32(IFLA_MASTER, bridge);
    });
}

/// Puts a link into a group of links, where it waits to be deleted.
pub(crate) fn doom_link(batch: &mut Batch, name: &str, group: u32) {
    let doing = format!("put link {name} among those to delete");
    batch.message(RTM_SETLINK, 0, doing, &link_header(0, 0, 0), |link| {
        link.text(IFLA_IFNAME, name);
        link.u32(IFLA_GROUP, group);
    });
}

/// Deletes all links of a group, and the other ends of pairs. The kernel waits until nobody can
/// hold on to them any more, which takes as long for a hundred links as for one: 10 to 30 ms.
pub(crate) fn delete_group(batch: &mut Batch, group: u32) {
    let doing = "delete the links of pods that have gone";
    batch.message(RTM_DELLINK, 0, doing, &link_header(0, 0, 0), |link| {
        link.u32(IFLA_GROUP, group);
    });
}

/// Deletes a link by name; the other end of a pair goes with it.
pub(crate) fn delete_link(batch: &mut Batch, name: &str) {
    let doing = format!("delete link {name}");
    batch.message(RTM_DELLINK, 0, doing, &link_header(0, 0, 0), |link| {
        link.text(IFLA_IFNAME, name);
    });
}

/// A link of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    /// The bridge or bond that it belongs to, 0 for none.
    pub(crate) master: u32,
    /// "bridge", "veth", empty for hardware.
    pub(crate) kind: String,
}

/// All links of the namespace.
pub(crate) fn links<F: AsFd>(socket: &Socket<F>) -> Result<Vec<Link>> {
    let request = || {
        let mut batch = Batch::default();
        batch.message(RTM_GETLINK, NLM_F_DUMP, "list links", &link_header(0, 0, 0), |body| {
            body.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        });
        batch
    };
    socket.dump(request, |message| read_link(message).map(Some))
}

/// The link of this name, if there is one.
pub(crate) fn link<F: AsFd>(socket: &Socket<F>, name: &str) -> Result<Option<Link>> {
    let mut batch = Batch::default();
    let doing = format!("look for link {name}");
    batch.message(RTM_GETLINK, 0, doing, &link_header(0, 0, 0), |body| {
        body.text(IFLA_IFNAME, name);
        body.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    });
    let mut found = None;
    let asked = socket.exchange(batch, |message| {
        found = Some(read_link(message)?);
        Ok(())
    });
    match asked {
        Err(error) if error.errno() == libc::ENODEV => Ok(None),
        asked => asked.map(|()| found),
    }
}

fn read_link(message: Message<'_>) -> Result<Link> {
    let (header, attributes) = message.split(LINK_HEADER)?;
    let mut link = Link { index: number(&header[4..8])?, ..Link::default() };
    for attribute in attributes {
        let (kind, value) = attribute?;
        match kind {
            IFLA_IFNAME => link.name = read_text(value).into_owned(),
            IFLA_MTU => link.mtu = number(value)?,
            IFLA_MASTER => link.master = number(value)?,
            IFLA_LINKINFO => {
                let kind = Attributes(value).find(IFLA_INFO_KIND)?.unwrap_or_default();
                link.kind = read_text(kind).into_owned();
            }
            _ => {}
        }
    }
    Ok(link)
}

/// What went over a pod's link, as the pod sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that the pod received.
    pub rx_bytes: u64,
    /// Packets that the pod received.
    pub rx_packets: u64,
    /// Packets for the pod that were in error.
    pub rx_errors: u64,
    /// Bytes that the pod sent.
    pub tx_bytes: u64,
    /// Packets that the pod sent.
    pub tx_packets: u64,
    /// Packets of the pod that were in error.
    pub tx_errors: u64,
}

/// The counters of all ports of a bridge by the name of the link.
pub(crate) fn counters<F: AsFd>(
    socket: &Socket<F>,
    bridge: u32,
) -> Result<Vec<(String, Counters)>> {
    let request = || {
        let mut batch = Batch::default();
        let doing = "read the counters of links";
        batch.message(RTM_GETLINK, NLM_F_DUMP, doing, &link_header(0, 0, 0), |body| {
            body.u32(IFLA_MASTER, bridge);
        });
        batch
    };
    socket.dump(request, |message| {
        let (_, attributes) = message.split(LINK_HEADER)?;
        let name = attributes.find(IFLA_IFNAME)?.ok_or_else(malformed)?;
        let stats = attributes.find(IFLA_STATS64)?.ok_or_else(malformed)?;
        Ok(Some((read_text(name).into_owned(), read_counters(stats)?)))
    })
}

/// The counters of a link of a pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkCounters {
    /// Such as `eth0`.
    pub name: String,
    /// What went over it.
    pub counters: Counters,
}

/// What went over the links of a network namespace that a file pins, but for its loopback. Moves the calling thread into
/// it, for good: only for a thread that ends soon.
///
/// # Errors
///
/// There is no such namespace, or the kernel refuses.
pub fn counters_in(netns: &std::path::Path) -> Result<Vec<LinkCounters>> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    let doing = || format!("enter the network namespace {}", netns.display());
    let file = std::fs::File::open(netns).map_err(|error| Error::kernel(doing(), error))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|errno| Error::kernel(doing(), errno))?;
    let request = || {
        let mut batch = Batch::default();
        let doing = "read the counters of a pod's links";
        batch.message(RTM_GETLINK, NLM_F_DUMP, doing, &link_header(0, 0, 0), |_| {});
        batch
    };
    Socket::open(super::netlink::Family::Route)?.dump(request, |message| {
        let (header, attributes) = message.split(LINK_HEADER)?;
        if u32::from_ne_bytes([header[8], header[9], header[10], header[11]]) & IFF_LOOPBACK != 0 {
            return Ok(None);
        }
        let name = attributes.find(IFLA_IFNAME)?.ok_or_else(malformed)?;
        let stats = attributes.find(IFLA_STATS64)?.ok_or_else(malformed)?;
        let counters = read_counters(stats)?.of_the_other_end();
        Ok(Some(LinkCounters { name: read_text(name).into_owned(), counters }))
    })
}

impl Counters {
    fn of_the_other_end(self) -> Counters {
        Counters {
            rx_bytes: self.tx_bytes,
            rx_packets: self.tx_packets,
            rx_errors: self.tx_errors,
            tx_bytes: self.rx_bytes,
            tx_packets: self.rx_packets,
            tx_errors: self.rx_errors,
        }
    }
}

/// `struct rtnl_link_stats64` of the node's end: what it sends, the pod receives.
fn read_counters(stats: &[u8]) -> Result<Counters> {
    let field = |index: usize| {
        let bytes = stats.get(index * 8..index * 8 + 8).ok_or_else(malformed)?;
        Ok::<_, Error>(u64::from_ne_bytes(bytes.try_into().map_err(|_| malformed())?))
    };
    Ok(Counters {
        tx_packets: field(0)?,
        rx_packets: field(1)?,
        tx_bytes: field(2)?,
        rx_bytes: field(3)?,
        tx_errors: field(4)?,
        rx_errors: field(5)?,
    })
}

/// An IPv4 address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) index: u32,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
}

/// All IPv4 addresses of the namespace.
pub(crate) fn addresses<F: AsFd>(socket: &Socket<F>) -> Result<Vec<Address>> {
    let request = || {
        let mut batch = Batch::default();
        batch.message(RTM_GETADDR, NLM_F_DUMP, "list addresses", &address_header(0, 0), |_| {});
        batch
    };
    socket.dump(request, |message| {
        let (header, attributes) = message.split(ADDRESS_HEADER)?;
        let local = attributes.find(IFA_LOCAL)?.and_then(read_address);
        Ok(local.map(|address| Address {
            index: read_u32(&header[4..8]).unwrap_or_default(),
            address,
            prefix: header[1],
        }))
    })
}

/// An IPv4 route of the main or any other table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Subnet,
    /// The link it leads out of, 0 for none.
    pub(crate) index: u32,
    /// Lower is taken first.
    pub(crate) metric: u32,
}

/// All IPv4 routes, of every table.
pub(crate) fn routes<F: AsFd>(socket: &Socket<F>) -> Result<Vec<Route>> {
    let request = || {
        let mut batch = Batch::default();
        let header = [AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        batch.message(RTM_GETROUTE, NLM_F_DUMP, "list routes", &header, |_| {});
        batch
    };
    socket.dump(request, |message| {
        let (header, attributes) = message.split(ROUTE_HEADER)?;
        let destination = attributes.find(RTA_DST)?.and_then(read_address);
        let destination = destination.unwrap_or(Ipv4Addr::UNSPECIFIED);
        Ok(Some(Route {
            destination: Subnet::around(destination, header[1]),
            index: attributes.find(RTA_OIF)?.and_then(read_u32).unwrap_or_default(),
            metric: attributes.find(RTA_PRIORITY)?.and_then(read_u32).unwrap_or_default(),
        }))
    })
}

fn read_address(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))
}

fn number(bytes: &[u8]) -> Result<u32> {
    read_u32(bytes).ok_or_else(malformed)
}
