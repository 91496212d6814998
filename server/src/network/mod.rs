//! Networks of sandboxes: gives a sandbox its network and takes it back.
//!
//! Built in is a bridge of berth's own ([`Bridge`]), for machines without a CNI configuration:
//! addresses, masquerading and host ports by netlink and nf_tables, no other program. It is IPv4
//! only: in the pod IPv6 is off ([`pod_sysctls`]), and a host port on an IPv6 address is refused.
//!
//! What a sandbox gets is an [`Attachment`], plain data that is planned first, stored by the
//! caller in the sandbox's record, and then applied. It is all that is needed to take the network
//! back, as often as anybody likes. Every name in the kernel follows from the instance id and the
//! address, so whose a link or a table is can be seen from its name:
//!
//! | what | name |
//! |---|---|
//! | bridge | `berth<instance>` |
//! | nf_tables table, family ip | `berth_<instance>` |
//! | host end of a pod's link | `b<instance><offset of the address in the subnet, 6 hex digits>` |
//! | the pod's end | `eth0` |
//!
//! Where is what: `bridge.rs` does, `state.rs` knows who holds what, `device.rs` makes the bridge and
//! chooses its subnet (`subnet.rs`), `rules.rs` says what our nf_tables table holds, `foreign.rs`
//! deals with the firewalls of others, `forwarding.rs` with ip_forward, `conntrack.rs` with UDP
//! conversations, `ports.rs` with host ports. They speak by `route.rs`, `nftables.rs` and
//! `ruleset.rs`, which speak by `netlink`. `resolv` writes what a pod knows of names.
//!
//! Everything here blocks, for well under a millisecond mostly, and works in the network
//! namespace of the calling thread; what happens inside a pod goes over the socket that the shim
//! opened there.

mod bridge;
pub mod cni;
mod conntrack;
mod device;
mod files;
mod foreign;
mod forwarding;
mod names;
mod netlink;
mod nftables;
mod ports;
pub mod resolv;
mod route;
mod rules;
mod ruleset;
mod state;
mod subnet;
#[cfg(test)]
mod tests;
mod watch;

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

pub use self::bridge::{Bridge, Config, Status, foreign_drops, remove_all};
pub use self::foreign::ForeignDrop;
pub use self::forwarding::Forwarding;
pub use self::ports::{Reservation, reserve};
pub use self::route::{Counters, LinkCounters, counters_in};
pub use self::subnet::Subnet;
pub use self::watch::Watch;

/// What can go wrong with a network. Each variant is a different act for the caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{doing}{detail}")]
    Kernel {
        /// What was asked of it, to what: "make link b0a1b2c3d000002".
        doing: String,
        /// What it said besides the error number, in parentheses; may be empty.
        detail: String,
        /// The error number.
        source: io::Error,
    },
    /// What was asked for cannot be right, whatever the state of the machine.
    #[error("{0}")]
    Invalid(String),
    /// Somebody else has the host port.
    #[error("host port {0} is taken")]
    PortTaken(String),
    /// Every address of the subnet is held, or no subnet is free.
    #[error("{0}")]
    Exhausted(String),
}

/// The result of most functions of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn kernel(doing: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::Kernel { doing: doing.into(), detail: String::new(), source: source.into() }
    }

    /// The error number of the kernel's refusal, 0 for every other error.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Error::Kernel { source, .. } => source.raw_os_error().unwrap_or_default(),
            Error::Invalid(_) | Error::PortTaken(_) | Error::Exhausted(_) => 0,
        }
    }
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The number in the IP header (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// As users write it: "tcp".
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// A port of the node that leads to a port of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port that the pod listens on, not 0.
    pub container_port: u16,
    /// The port of the node. 0 asks [`reserve`] for a free one; afterwards it is not 0.
    pub host_port: u16,
    /// Only connections to this address of the node; `None` and 0.0.0.0 mean all its addresses.
    pub host_ip: Option<IpAddr>,
}

/// Hardware address of a pod's eth0.
///
/// It follows from the address, so a neighbour entry that outlives a pod is still right for the
/// next one with the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The locally administered address 02:62 (for berth) and the four bytes of the IP address.
    pub fn of(address: Ipv4Addr) -> Mac {
        let [a, b, c, d] = address.octets();
        Mac([0x02, 0x62, a, b, c, d])
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Mac, String> {
        let bytes: Option<Vec<u8>> =
            text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
        let mac = bytes.and_then(|bytes| bytes.try_into().ok());
        mac.map(Mac).ok_or_else(|| format!("{text:?} is no hardware address"))
    }
}

/// The network of one sandbox on the bridge: all that is needed to make it and to undo it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The sandbox that holds the address.
    pub sandbox: String,
    /// Address of eth0.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix in bits.
    pub prefix: u8,
    /// The bridge's address, the pod's default route.
    pub gateway: Ipv4Addr,
    /// Name of the host end of the link.
    pub link: String,
    /// Hardware address of eth0.
    pub mac: Mac,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// Ports of the node that lead to the pod; no host port is 0.
    pub ports: Vec<PortMapping>,
}

/// Brings up the loopback of a pod's network namespace; `pod` is a route socket in it. Blocks.
///
/// # Errors
///
/// [`Error::Kernel`] where the kernel refuses.
pub fn set_up_loopback(pod: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    let mut batch = netlink::Batch::default();
    route::set_up_loopback(&mut batch);
    netlink::Socket::borrow(pod)?.apply(batch)
}

/// Settings of a network namespace that CNI plugins attach, as [`pod_sysctls`]: IPv6 is theirs to use.
pub fn cni_sysctls() -> Vec<(String, String)> {
    let mut settings = pod_sysctls();
    settings.retain(|(name, _)| name != DISABLE_IPV6);
    settings
}

const DISABLE_IPV6: &str = "net/ipv6/conf/default/disable_ipv6";

/// Settings of a network namespace that must be there before eth0 is. Names are paths below
/// /proc/sys.
///
/// IPv6 is off on eth0, and no router advertisement is obeyed even where somebody turns it on
/// (CVE-2020-10749); the loopback keeps its ::1. ICMP redirects are not obeyed either: another pod
/// could forge one in the name of the node.
pub fn pod_sysctls() -> Vec<(String, String)> {
    let ipv4 = [
        ("net/ipv4/conf/all/accept_redirects", "0"),
        ("net/ipv4/conf/default/accept_redirects", "0"),
    ];
    let ipv6 = [
        (DISABLE_IPV6, "1"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        ("net/ipv6/conf/default/accept_redirects", "0"),
    ];
    let ipv6 = ipv6.iter().filter(|_| has_ipv6());
    let settings = ipv4.iter().chain(ipv6);
    settings.map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Whether the kernel has IPv6 and has it turned on.
pub(crate) fn has_ipv6() -> bool {
    rustix::fs::stat("/proc/sys/net/ipv6/conf/default").is_ok()
}
