//! The node's one switch for forwarding (net.ipv4.ip_forward), and whose doing it is.
//!
//! Without it pods reach nothing but each other and the node. With it the node routes for
//! whoever sends it packets. So where it was off before us, a chain of ours drops what is neither
//! from nor to a pod ("guard" in `rules.rs`), and a file remembers, for as long as the node is up,
//! that we turned it on. Where it was on, others rely on it, and we leave their traffic alone.

use std::os::fd::AsFd;
use std::path::Path;

use super::netlink::Socket;
use super::nftables::NFPROTO_IPV4;
use super::route::Link;
use super::rules::{BRIDGE_PREFIX, GUARD};
use super::{Result, files, ruleset};

const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Name of the file that says in which boot berth turned forwarding on.
const MARKER: &str = "ip-forward";

/// Who turned forwarding on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarding {
    /// berth: what is neither from nor to a pod is not forwarded. A node that shall be a router
    /// says so with net.ipv4.ip_forward = 1 in /etc/sysctl.d, which is read before berth starts.
    Ours,
    /// It was on: berth leaves others' packets alone.
    Theirs,
}

/// Turns forwarding on, and says whose doing it is now.
pub(crate) fn turn_on<F: AsFd>(
    directory: &Path,
    netfilter: &Socket<F>,
    own_table: &str,
) -> Result<Forwarding> {
    let boot = files::read_small(Path::new(BOOT_ID))?.unwrap_or_default();
    let is_on = is_on()?;
    let marked = files::read_small(&directory.join(MARKER))?.is_some_and(|text| text == boot);
    // Another instance turned it on, and may go before us.
    let ours = !is_on || marked || is_guarded(netfilter, own_table)?;
    if !ours {
        files::delete(&directory.join(MARKER))?;
        return Ok(Forwarding::Theirs);
    }
    if !marked {
        files::write_durably(directory, MARKER, &format!("{boot}\n"))?;
    }
    if !is_on {
        files::write_setting(Path::new(SWITCH), "1")?;
    }
    Ok(Forwarding::Ours)
}

/// Turns forwarding off again where we had turned it on and nobody needs it any more: no other
/// instance, and no bridge of an engine such as docker, which found it on. To be called when our
/// own bridge and table are gone.
pub(crate) fn turn_off<F: AsFd>(
    directory: &Path,
    netfilter: &Socket<F>,
    own_table: &str,
    links: &[Link],
) -> Result<()> {
    let boot = files::read_small(Path::new(BOOT_ID))?.unwrap_or_default();
    let marker = directory.join(MARKER);
    let marked = files::read_small(&marker)?.is_some_and(|text| text == boot);
    let lan = lan_bridges(links);
    let engine = |link: &Link| link.kind == "bridge" && !lan.contains(&link.name);
    if marked && !links.iter().any(engine) && !is_guarded(netfilter, own_table)? {
        files::write_setting(Path::new(SWITCH), "0")?;
    }
    files::delete(&marker)
}

/// Whether the node forwards.
pub(crate) fn is_on() -> Result<bool> {
    Ok(files::read_small(Path::new(SWITCH))?.is_some_and(|text| text != "0"))
}

/// Whether another instance has a guard.
fn is_guarded<F: AsFd>(netfilter: &Socket<F>, own_table: &str) -> Result<bool> {
    let prefix = format!("{BRIDGE_PREFIX}_");
    Ok(ruleset::chains(netfilter)?.iter().any(|chain| {
        chain.family == NFPROTO_IPV4
            && chain.name == GUARD
            && chain.table.starts_with(&prefix)
            && chain.table != own_table
    }))
}

/// Bridges with a port that is neither a container's nor a virtual machine's: the node's own way
/// into a LAN, which is guarded like any hardware.
pub(crate) fn lan_bridges(links: &[Link]) -> Vec<String> {
    let virtual_port = |port: &Link| matches!(port.kind.as_str(), "veth" | "tun");
    let is_lan = |bridge: &&Link| {
        bridge.kind == "bridge"
            && links.iter().any(|port| port.master == bridge.index && !virtual_port(port))
    };
    links.iter().filter(is_lan).map(|bridge| bridge.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str, master: u32) -> Link {
        Link { index, name: name.to_owned(), mtu: 1500, master, kind: kind.to_owned() }
    }

    #[track_caller]
    fn check(links: &[Link], expected: &[&str]) {
        assert_eq!(lan_bridges(links), expected);
    }

    #[test]
    fn a_bridge_with_hardware_is_a_lan_and_one_of_containers_is_not() {
        check(
            &[
                link(2, "eth0", "", 5),
                link(5, "br0", "bridge", 0),
                link(6, "docker0", "bridge", 0),
                link(7, "vethabc", "veth", 6),
                link(8, "virbr0", "bridge", 0),
                link(9, "vnet0", "tun", 8),
                link(10, "br1", "bridge", 0),
                link(11, "eth1.100", "vlan", 10),
                link(12, "lxcbr0", "bridge", 0),
                link(13, "eth2", "", 0),
            ],
            &["br0", "br1"],
        );
    }
}
