//! The built-in bridge: what the kernel is told about what sandboxes hold (`state.rs`).

use std::collections::HashMap;
use std::mem::take;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::device::{
    absent_is_fine, choose_subnet, delete_doomed, delete_link, ensure_bridge, settle,
};
use super::forwarding::Forwarding;
use super::names::Names;
use super::netlink::{Batch, Family, Socket};
use super::nftables::NFPROTO_IPV4;
use super::route::{self, Counters};
use super::rules::{self, Rules};
use super::state::{LinkFate, Owns, State};
use super::subnet::Subnet;
use super::{
    Attachment, Error, ForeignDrop, PortMapping, Result, conntrack, foreign, forwarding, has_ipv6,
    ruleset,
};

/// What a bridge is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Instance id of the daemon: eight lower-case hexadecimal digits.
    pub instance: String,
    /// Directory on disk for what must be remembered: the subnet, and who turned forwarding on.
    /// It is made where it is missing; its parent exists.
    pub directory: PathBuf,
    /// The subnet as text, where the operator chose one (`bridge_subnet`).
    pub subnet: Option<String>,
}

/// How often addresses that wait for their links to go are cleared when there is no other; each
/// time, others may be faster to take them.
const PLAN_TRIES: usize = 3;

/// The built-in network of one daemon. All its methods block, and may be called from any thread
/// of the daemon's network namespace.
#[derive(Debug)]
pub struct Bridge {
    names: Names,
    directory: PathBuf,
    subnet: Subnet,
    /// What the configuration asks for instead, once no pod holds an address of `subnet`.
    wanted: Option<Subnet>,
    ipv6: bool,
    state: Mutex<State>,
    /// Held while our table is changed, so that a table made anew from the state and a change of
    /// a single sandbox do not overtake each other. The socket lives as long as the bridge, for
    /// closing one waits until the kernel has cleared away what was deleted over any (10 ms).
    netfilter: Mutex<Socket>,
    /// Held while a sandbox is taken off: an address that was given back can have a new owner
    /// before a second, late detach of the old one ends.
    detaching: Mutex<()>,
    /// Held while the kernel deletes links and forgets conversations.
    tidying: Mutex<()>,
}

/// What serves pods that have a network of their own, in words and as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// "berth bridge 10.64.0.0/20".
    pub name: String,
    /// Name of the bridge.
    pub bridge: String,
    /// The pods' addresses.
    pub subnet: Subnet,
    /// The node's address on the bridge.
    pub gateway: Ipv4Addr,
    /// How many sandboxes hold an address.
    pub pods: usize,
    /// Who turned forwarding on.
    pub forwarding: Forwarding,
    /// The configured subnet, where pods with addresses of another one are in its way.
    pub waiting_for: Option<Subnet>,
}

impl Bridge {
    /// Makes the bridge and its rules, or takes over what is there. `records` are the attachments
    /// of all sandboxes that have one, planned or applied.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a configuration that cannot work, [`Error::Exhausted`] where no
    /// subnet is free, [`Error::Kernel`] where the kernel refuses.
    pub fn open(config: &Config, records: &[Attachment]) -> Result<Bridge> {
        let names = Names::of(&config.instance)?;
        let route = Socket::open(Family::Route)?;
        let choice = choose_subnet(config, &names, records, &route)?;
        let (mut subnet, wanted, fresh) = choice;
        if fresh {
            subnet = settle(config, &names, subnet, &route)?;
        }
        let bridge = Bridge {
            names,
            directory: config.directory.clone(),
            subnet,
            wanted,
            ipv6: has_ipv6(),
            state: Mutex::new(State::from_records(subnet, records)),
            netfilter: Mutex::new(Socket::open(Family::Netfilter)?),
            detaching: Mutex::new(()),
            tidying: Mutex::new(()),
        };
        bridge.sync()?;
        Ok(bridge)
    }

    /// Chooses address and ports for a sandbox and holds them. Nothing in the kernel changes: the
    /// caller stores the answer in the sandbox's record, then calls [`Bridge::attach`]. Asked
    /// again for the same sandbox, it answers the same.
    ///
    /// # Errors
    ///
    /// [`Error::Exhausted`] without a free address, [`Error::PortTaken`], [`Error::Invalid`].
    pub fn plan(&self, sandbox: &str, ports: &[PortMapping]) -> Result<Attachment> {
        let try_plan = || lock(&self.state).plan(&self.names, sandbox, ports);
        let mut planned = try_plan();
        for _ in 0..PLAN_TRIES {
            if !matches!(planned, Err(Error::Exhausted(_))) {
                break;
            }
            // Addresses may wait for their links to be deleted, by us or a call in progress.
            self.tidy()?;
            planned = try_plan();
        }
        planned
    }

    /// Gives a sandbox the network that was planned. `netns` is its network namespace, `pod` a
    /// NETLINK_ROUTE socket that was opened in there.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`]. What was done stays: [`Bridge::detach`] undoes it.
    pub fn attach(
        &self,
        attachment: &Attachment,
        netns: BorrowedFd<'_>,
        pod: BorrowedFd<'_>,
    ) -> Result<()> {
        match self.make_pair(attachment, netns) {
            Err(error) if error.errno() == libc::EEXIST => {
                // The address is ours, so what has its name was left behind by a crash.
                delete_link(&Socket::open(Family::Route)?, &attachment.link)?;
                self.make_pair(attachment, netns)?;
            }
            Err(error) => {
                if route::link(&Socket::open(Family::Route)?, &self.names.bridge)?.is_some() {
                    return Err(error);
                }
                self.sync()?; // Somebody deleted the bridge.
                self.make_pair(attachment, netns)?;
            }
            Ok(()) => {}
        }
        let pod = Socket::borrow(pod)?;
        let eth0 = route::link(&pod, route::POD_LINK)?.map_or(0, |link| link.index);
        let mut batch = Batch::default();
        route::set_up_pod(&mut batch, eth0, attachment);
        pod.apply(batch)?;
        if !attachment.ports.is_empty() {
            self.open_ports(attachment)?;
        }
        Ok(())
    }

    fn make_pair(&self, attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<()> {
        let mut batch = Batch::default();
        let pair = route::Pair {
            host: &attachment.link,
            bridge: lock(&self.state).link.index,
            mac: attachment.mac,
            mtu: attachment.mtu,
            netns,
            ipv6: self.ipv6,
        };
        route::make_pair(&mut batch, &pair);
        match Socket::open(Family::Route)?.apply(batch) {
            Err(error) if error.errno() == libc::EXFULL => {
                let bridge = &self.names.bridge;
                let text = format!("bridge {bridge} is full: a Linux bridge has 1023 ports");
                Err(Error::Exhausted(text))
            }
            made => made,
        }
    }

    fn open_ports(&self, attachment: &Attachment) -> Result<()> {
        let netfilter = lock(&self.netfilter);
        let added = match rules::add_ports(&self.names.table, attachment) {
            Some(batch) => netfilter.apply(batch),
            None => Ok(()),
        };
        if added.is_err() {
            self.replace_table(&netfilter)?; // Somebody flushed it, or an old element is there.
        }
        lock(&self.state).note_udp(attachment);
        Ok(())
    }

    /// Takes the network of a sandbox back. The attachment is all it needs: one that was only
    /// planned, is half there, or was taken back before is fine. Afterwards the host ports are
    /// free. The link goes, and the address is free, with the next [`Bridge::tidy`], for the
    /// kernel takes tens of milliseconds to delete a link.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`]; then the sandbox still holds all it had, and the call may be repeated.
    /// [`Error::Invalid`] where the attachment is of another instance.
    pub fn detach(&self, attachment: &Attachment) -> Result<()> {
        let Attachment { sandbox, link, .. } = attachment;
        if !self.names.owns_link(link) {
            let text = format!("link {link} of sandbox {sandbox} is not of this instance");
            return Err(Error::Invalid(text));
        }
        let _one_at_a_time = lock(&self.detaching);
        let owns = {
            let _table = lock(&self.netfilter);
            lock(&self.state).begin_detach(attachment)
        };
        match owns {
            Owns::All if attachment.ports.is_empty() => {}
            Owns::All => self.close_ports(attachment)?,
            Owns::LinkAtMost => {}
            Owns::Nothing => return Ok(()),
        }
        let mut batch = Batch::default();
        route::doom_link(&mut batch, link, self.names.doomed_group());
        let doomed = Socket::open(Family::Route)?.apply(batch);
        let (fate, result) = match doomed {
            Ok(()) => (LinkFate::Doomed, Ok(())),
            Err(error) if error.errno() == libc::ENODEV => (LinkFate::Absent, Ok(())),
            Err(error) => (LinkFate::Stays, Err(error)),
        };
        lock(&self.state).end_detach(attachment, owns, fate);
        result
    }

    fn close_ports(&self, attachment: &Attachment) -> Result<()> {
        let netfilter = lock(&self.netfilter);
        let deleted = match rules::delete_ports(&self.names.table, attachment) {
            Some(batch) => netfilter.apply(batch),
            None => Ok(()),
        };
        if deleted.is_err() {
            self.replace_table(&netfilter)?; // One of them was missing, so none was deleted.
        }
        lock(&self.state).note_udp(attachment);
        Ok(())
    }

    /// Does what takes the kernel tens of milliseconds, for all sandboxes that came and went since
    /// the last time together: deletes the links of those that went and frees their addresses, and
    /// forgets UDP conversations that host ports lead elsewhere now. To be called some time after
    /// [`Bridge::attach`] and [`Bridge::detach`], where nobody waits for it; without anything to do
    /// it is cheap.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`]; what was not done waits for the next call.
    pub fn tidy(&self) -> Result<()> {
        let _one_at_a_time = lock(&self.tidying);
        let (doomed, udp_changed) = {
            let mut state = lock(&self.state);
            (state.take_doomed(), take(&mut state.udp_changed))
        };
        let deleted = if doomed.is_empty() { Ok(()) } else { delete_doomed(&self.names) };
        match deleted {
            Ok(()) => lock(&self.state).free(doomed),
            Err(_) => lock(&self.state).give_back(doomed),
        }
        if udp_changed {
            let targets = conntrack::targets(lock(&self.state).serving());
            conntrack::forget_wrong(&targets, self.subnet)
                .inspect_err(|_| lock(&self.state).udp_changed = true)?;
        }
        deleted
    }

    /// Makes everything in the kernel as it should be, from what the sandboxes hold: bridge,
    /// address, settings, links, rules. Safe to repeat at any time; connections go on.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`].
    pub fn sync(&self) -> Result<()> {
        let route = Socket::open(Family::Route)?;
        let link = ensure_bridge(&route, &self.names, self.subnet, self.ipv6)?;
        lock(&self.state).link = link;
        self.sync_links(&route)?;
        let netfilter = lock(&self.netfilter);
        let forwarding = forwarding::turn_on(&self.directory, &netfilter, &self.names.table)?;
        lock(&self.state).forwarding = forwarding;
        self.replace_table(&netfilter)?;
        foreign::enter_docker_user(&netfilter, &self.names.bridge).map(drop)
    }

    /// Links of sandboxes join the bridge, links of nobody wait for [`Bridge::tidy`].
    fn sync_links(&self, route: &Socket) -> Result<()> {
        let links = route::links(route)?;
        let _one_at_a_time = lock(&self.detaching);
        for link in links.iter().filter(|link| self.names.owns_link(&link.name)) {
            let mut batch = Batch::default();
            {
                let mut state = lock(&self.state);
                match state.owner_of(&link.name) {
                    Some(_) if link.master != state.link.index => {
                        route::join_bridge(&mut batch, &link.name, state.link.index);
                        route::set_up_port(&mut batch, &link.name, self.ipv6);
                    }
                    Some(_) => continue,
                    None => {
                        state.orphans = true;
                        route::doom_link(&mut batch, &link.name, self.names.doomed_group());
                    }
                }
            }
            absent_is_fine(route.apply(batch))?;
        }
        Ok(())
    }

    fn replace_table(&self, netfilter: &Socket) -> Result<()> {
        let mut rules = self.rules();
        if let Some(lan) = &mut rules.guard {
            *lan = forwarding::lan_bridges(&route::links(&Socket::open(Family::Route)?)?);
        }
        let batch = rules::replace(&rules, lock(&self.state).serving());
        netfilter.apply(batch)
    }

    /// The rules for a node without LAN bridges.
    fn rules(&self) -> Rules {
        let guard = match lock(&self.state).forwarding {
            Forwarding::Ours => Some(Vec::new()),
            Forwarding::Theirs => None,
        };
        Rules {
            table: self.names.table.clone(),
            bridge: self.names.bridge.clone(),
            subnet: self.subnet,
            guard,
        }
    }

    /// Brings our rules, the bridge and forwarding back where somebody took them away. True where
    /// there was something to do.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`].
    pub fn heal(&self) -> Result<bool> {
        let expected = rules::count(&self.rules());
        let link = route::link(&Socket::open(Family::Route)?, &self.names.bridge)?;
        let is_there = link.is_some_and(|link| link.index == lock(&self.state).link.index);
        if is_there && forwarding::is_on()? {
            let netfilter = lock(&self.netfilter);
            let found = ruleset::rules(&netfilter, NFPROTO_IPV4, &self.names.table, None)?;
            if found.len() == expected {
                return foreign::enter_docker_user(&netfilter, &self.names.bridge);
            }
        }
        self.sync()?;
        Ok(true)
    }

    /// What went over the links of all sandboxes, by name of the link, from one question to the
    /// kernel.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`].
    pub fn counters(&self) -> Result<HashMap<String, Counters>> {
        let index = lock(&self.state).link.index;
        Ok(route::counters(&Socket::open(Family::Route)?, index)?.into_iter().collect())
    }

    /// Which network this is. Answered from memory.
    pub fn status(&self) -> Status {
        let state = lock(&self.state);
        Status {
            name: format!("berth bridge {}", self.subnet),
            bridge: self.names.bridge.clone(),
            subnet: self.subnet,
            gateway: self.subnet.gateway(),
            pods: state.pods(),
            forwarding: state.forwarding,
            waiting_for: self.wanted,
        }
    }
}

/// Firewalls of others that drop packets from or to pods, whether there is a bridge yet or not.
///
/// # Errors
///
/// [`Error::Kernel`].
pub fn foreign_drops(config: &Config) -> Result<Vec<ForeignDrop>> {
    foreign::drops(&Socket::open(Family::Netfilter)?, &Names::of(&config.instance)?.bridge)
}

/// Takes everything of an instance out of the kernel: links of pods, rules, bridge; turns
/// forwarding off where that was its doing and nobody else needs it. The subnet stays chosen.
///
/// # Errors
///
/// [`Error::Kernel`]; may be repeated.
pub fn remove_all(config: &Config) -> Result<()> {
    let names = Names::of(&config.instance)?;
    let route = Socket::open(Family::Route)?;
    let netfilter = Socket::open(Family::Netfilter)?;
    for link in route::links(&route)?.iter().filter(|link| names.owns_link(&link.name)) {
        let mut batch = Batch::default();
        route::doom_link(&mut batch, &link.name, names.doomed_group());
        absent_is_fine(route.apply(batch))?;
    }
    delete_doomed(&names)?;
    foreign::leave_docker_user(&netfilter, &names.bridge)?;
    if ruleset::has_table(&netfilter, &names.table)? {
        absent_is_fine(netfilter.apply(rules::delete(&names.table)))?;
    }
    delete_link(&route, &names.bridge)?;
    let links = route::links(&route)?;
    forwarding::turn_off(&config.directory, &netfilter, &names.table, &links)
}

/// A panic while a lock was held leaves plain data behind it, which is still right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
