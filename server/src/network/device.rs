//! The bridge as a device: the choice of its subnet, making, setting up and deleting it and the
//! links on it.

use std::path::{Path, PathBuf};

use super::bridge::Config;
use super::names::Names;
use super::netlink::{Batch, Family, Socket};
use super::route::{self, Link};
use super::subnet::{Subnet, choose};
use super::{Attachment, Error, Mac, Result, files, has_ipv6, resolv};

/// Name of the file that keeps the subnet.
const SUBNET_FILE: &str = "bridge-subnet";

/// Where a default route shows no other, and what Ethernet has.
const DEFAULT_MTU: u32 = 1500;

/// What IPv4 needs, and what a frame can have.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 576..=65535;

/// Another instance may choose the same subnet at the same time; then one of the two moves on.
const SUBNET_TRIES: u32 = 8;

/// The subnet to use, the one to use later, and whether it was chosen just now.
pub(crate) fn choose_subnet(
    config: &Config,
    names: &Names,
    records: &[Attachment],
    route: &Socket,
) -> Result<(Subnet, Option<Subnet>, bool)> {
    let wanted = config.subnet.as_deref().map(Subnet::for_bridge).transpose()?;
    let kept = files::read_small(&config.directory.join(SUBNET_FILE))?;
    let kept = kept.and_then(|text| Subnet::for_bridge(&text).ok());
    let of_record = |record: &Attachment| {
        let subnet = Subnet::around(record.address, record.prefix);
        Subnet::for_bridge(&subnet.to_string()).ok()
    };
    if let Some(subnet) = records.iter().find_map(of_record) {
        if kept != Some(subnet) {
            keep_subnet(config, subnet)?;
        }
        return Ok((subnet, wanted.filter(|wanted| *wanted != subnet), false));
    }
    let taken = taken_subnets(names, route)?;
    // A subnet that somebody else came to use since then is given up while no pod is in it, unless
    // the operator insists.
    let is_good = |kept: &Subnet| match wanted {
        Some(wanted) => *kept == wanted,
        None => !taken.iter().any(|taken| taken.overlaps(*kept)),
    };
    if let Some(subnet) = kept.filter(is_good) {
        return Ok((subnet, None, false));
    }
    let subnet = match wanted {
        Some(wanted) => match taken.iter().find(|taken| taken.overlaps(wanted)) {
            Some(taken) => {
                let text = format!(
                    "bridge_subnet {wanted} overlaps {taken}, which this node has a route or an \
                     address for; choose another, or leave it out"
                );
                return Err(Error::Invalid(text));
            }
            None => wanted,
        },
        None => choose(names.number, &taken).ok_or_else(no_subnet)?,
    };
    keep_subnet(config, subnet)?;
    Ok((subnet, None, wanted.is_none()))
}

fn no_subnet() -> Error {
    let text = "no private subnet is free of this node's routes; choose one: bridge_subnet";
    Error::Exhausted(text.to_owned())
}

fn keep_subnet(config: &Config, subnet: Subnet) -> Result<()> {
    files::write_durably(&config.directory, SUBNET_FILE, &format!("{subnet}\n"))
}

/// What the node's routes, addresses and name servers occupy, besides our own bridge. A default
/// route is no occupation, in two halves (as VPNs write it) neither.
fn taken_subnets(names: &Names, route: &Socket) -> Result<Vec<Subnet>> {
    let own = route::link(route, &names.bridge)?.map_or(u32::MAX, |link| link.index);
    let routes = route::routes(route)?.into_iter();
    let routes = routes.filter(|route| route.index != own && route.destination.prefix() > 1);
    let addresses = route::addresses(route)?.into_iter().filter(|one| one.index != own);
    let servers = files::read_small(Path::new(resolv::HOST_FILE)).ok().flatten();
    let servers = resolv::ipv4_servers(servers.as_deref().unwrap_or_default());
    Ok(routes
        .map(|route| route.destination)
        .chain(addresses.map(|one| Subnet::around(one.address, one.prefix)))
        .chain(servers.into_iter().map(|server| Subnet::around(server, 32)))
        .collect())
}

/// Makes the bridge with a subnet that was chosen just now, and moves on where somebody else came
/// to use it at the same time. Of two instances with the same choice the later one sees the
/// other's address; if both do, both move on, each in a way of its own.
pub(crate) fn settle(
    config: &Config,
    names: &Names,
    chosen: Subnet,
    route: &Socket,
) -> Result<Subnet> {
    let mut subnet = chosen;
    for attempt in 1..SUBNET_TRIES {
        let link = ensure_bridge(route, names, subnet, has_ipv6())?;
        let clash = route::addresses(route)?
            .into_iter()
            .any(|one| one.index != link.index && subnet.contains(one.address));
        if !clash {
            return Ok(subnet);
        }
        // Fibonacci hashing: the upper bits of the product depend on all of the instance id.
        let start = (names.number.wrapping_mul(0x9e37_79b1) >> 24) + 37 * attempt;
        subnet = choose(start, &taken_subnets(names, route)?).ok_or_else(no_subnet)?;
        keep_subnet(config, subnet)?;
    }
    Err(no_subnet())
}

/// The bridge, made where it is missing, with the address, MTU and settings it should have.
pub(crate) fn ensure_bridge(
    route: &Socket,
    names: &Names,
    subnet: Subnet,
    ipv6: bool,
) -> Result<Link> {
    let name = &names.bridge;
    if route::link(route, name)?.is_none() {
        let mut batch = Batch::default();
        route::make_bridge(&mut batch, name, Mac::of(subnet.gateway()));
        match route.apply(batch) {
            Err(error) if error.errno() == libc::EEXIST => {}
            made => made?,
        }
    }
    let gone = || Error::kernel(format!("look for bridge {name}"), rustix::io::Errno::NODEV);
    let mut link = route::link(route, name)?.ok_or_else(gone)?;
    if link.kind != "bridge" {
        return Err(Error::Invalid(format!("link {name} exists and is no bridge; delete it")));
    }
    if ipv6 {
        // Nobody on the bridge speaks IPv6 with the node: no router advertisement of a pod is
        // heard, no service of the node is reached by its link-local address.
        let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"));
        files::write_setting(&path, "1")?;
    }
    link.mtu = uplink_mtu(route)?;
    let mut batch = Batch::default();
    for old in route::addresses(route)?.iter().filter(|one| one.index == link.index) {
        if (old.address, old.prefix) != (subnet.gateway(), subnet.prefix()) {
            route::delete_address(&mut batch, old);
        }
    }
    route::set_up_bridge(&mut batch, &link, subnet, link.mtu);
    route.apply(batch)?;
    Ok(link)
}

/// MTU of the link that leads to the world, so that no packet of a pod is too big for it.
fn uplink_mtu(route: &Socket) -> Result<u32> {
    let routes = route::routes(route)?;
    let default = routes.iter().filter(|one| one.destination.prefix() == 0 && one.index != 0);
    let Some(default) = default.min_by_key(|route| route.metric) else { return Ok(DEFAULT_MTU) };
    let links = route::links(route)?;
    let uplink = links.iter().find(|link| link.index == default.index);
    Ok(uplink.map_or(DEFAULT_MTU, |link| link.mtu.clamp(*MTU_RANGE.start(), *MTU_RANGE.end())))
}

pub(crate) fn delete_link(route: &Socket, name: &str) -> Result<()> {
    let mut batch = Batch::default();
    route::delete_link(&mut batch, name);
    absent_is_fine(route.apply(batch))
}

pub(crate) fn delete_doomed(names: &Names) -> Result<()> {
    let mut batch = Batch::default();
    route::delete_group(&mut batch, names.doomed_group());
    absent_is_fine(Socket::open(Family::Route)?.apply(batch))
}

pub(crate) fn absent_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if [libc::ENODEV, libc::ENOENT].contains(&error.errno()) => Ok(()),
        result => result,
    }
}
