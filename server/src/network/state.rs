//! Who holds which address and host port, in memory. Nothing here asks the kernel.
//!
//! ```text
//!          plan                begin_detach               end_detach            free
//! (nobody) ----> held by a sandbox ----> leaving: no ports ----> link doomed ----> (nobody)
//!                                                          \--> no link ---------> (nobody)
//! ```

use std::collections::BTreeMap;
use std::mem::take;
use std::net::Ipv4Addr;

use super::forwarding::Forwarding;
use super::names::Names;
use super::ports::PortTable;
use super::route::Link;
use super::subnet::{Pool, Subnet};
use super::{Attachment, Error, Mac, PortMapping, Protocol, Result};

/// What the sandboxes of an instance hold, and what is known of the node.
#[derive(Debug)]
pub(crate) struct State {
    subnet: Subnet,
    pool: Pool,
    ports: PortTable,
    /// By sandbox.
    held: BTreeMap<String, Held>,
    doomed: Doomed,
    /// UDP host ports came or went, so tracked conversations may be wrong.
    pub(crate) udp_changed: bool,
    /// Links of nobody, from before a crash, wait to be deleted.
    pub(crate) orphans: bool,
    /// The bridge as it was seen last.
    pub(crate) link: Link,
    pub(crate) forwarding: Forwarding,
}

/// An address and ports that a sandbox has.
#[derive(Debug)]
struct Held {
    attachment: Attachment,
    /// Its ports are closed already; it may still have its link and has its address.
    leaving: bool,
    /// Another record has the address or a port, so nothing in the kernel counts as this one's.
    contested: bool,
}

/// What of an attachment may still be in the kernel as its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owns {
    /// Link and host ports.
    All,
    /// It was given back before; nobody has had the address since.
    LinkAtMost,
    /// Whatever there is belongs to another sandbox.
    Nothing,
}

/// What became of the link of a sandbox that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkFate {
    /// It waits to be deleted, and keeps its address until then.
    Doomed,
    /// There is none.
    Absent,
    /// It is as it was.
    Stays,
}

/// Links that wait to be deleted.
#[derive(Debug, Default)]
pub(crate) struct Doomed {
    /// Their addresses, which nobody gets before.
    addresses: Vec<Ipv4Addr>,
    orphans: bool,
}

impl Doomed {
    pub(crate) fn is_empty(&self) -> bool {
        self.addresses.is_empty() && !self.orphans
    }
}

impl State {
    pub(crate) fn from_records(subnet: Subnet, records: &[Attachment]) -> State {
        let mut state = State {
            subnet,
            pool: Pool::new(subnet),
            ports: PortTable::default(),
            held: BTreeMap::new(),
            doomed: Doomed::default(),
            udp_changed: records.iter().any(has_udp),
            orphans: false,
            link: Link::default(),
            forwarding: Forwarding::Theirs,
        };
        for record in records {
            let is_free = !subnet.contains(record.address) || state.pool.hold(record.address);
            let contested = !is_free || state.ports.take(&record.sandbox, &record.ports).is_err();
            let held = Held { attachment: record.clone(), leaving: false, contested };
            state.held.insert(record.sandbox.clone(), held);
        }
        state
    }

    /// See [`super::Bridge::plan`].
    pub(crate) fn plan(
        &mut self,
        names: &Names,
        sandbox: &str,
        ports: &[PortMapping],
    ) -> Result<Attachment> {
        if let Some(held) = self.held.get(sandbox) {
            return Ok(held.attachment.clone());
        }
        self.ports.take(sandbox, ports)?;
        let Some(address) = self.pool.take() else {
            self.ports.release(sandbox, ports);
            let (subnet, count) = (self.subnet, self.held.len());
            let text = format!("no free address in {subnet}: {count} pods hold one");
            return Err(Error::Exhausted(text));
        };
        let attachment = Attachment {
            sandbox: sandbox.to_owned(),
            address,
            prefix: self.subnet.prefix(),
            gateway: self.subnet.gateway(),
            link: names.link(self.subnet.offset(address)),
            mac: Mac::of(address),
            mtu: self.link.mtu,
            ports: ports.to_vec(),
        };
        let held = Held { attachment: attachment.clone(), leaving: false, contested: false };
        self.held.insert(sandbox.to_owned(), held);
        Ok(attachment)
    }

    /// Closes the ports of an attachment, as far as they are its own, and keeps its address from
    /// anybody else until [`State::end_detach`].
    pub(crate) fn begin_detach(&mut self, attachment: &Attachment) -> Owns {
        match self.held.get_mut(&attachment.sandbox) {
            Some(one) if one.attachment == *attachment && one.contested => {
                self.held.remove(&attachment.sandbox);
                Owns::Nothing
            }
            Some(one) if one.attachment == *attachment => {
                one.leaving = true;
                Owns::All
            }
            _ if self.pool.hold(attachment.address) => Owns::LinkAtMost,
            _ => Owns::Nothing,
        }
    }

    /// `owns` is what [`State::begin_detach`] said.
    pub(crate) fn end_detach(&mut self, attachment: &Attachment, owns: Owns, fate: LinkFate) {
        match (owns, fate) {
            (Owns::Nothing, _) | (Owns::All, LinkFate::Stays) => return,
            (Owns::LinkAtMost, LinkFate::Stays) | (_, LinkFate::Absent) => {
                self.pool.release(attachment.address);
            }
            (_, LinkFate::Doomed) => self.doomed.addresses.push(attachment.address),
        }
        if owns == Owns::All {
            self.held.remove(&attachment.sandbox);
            self.ports.release(&attachment.sandbox, &attachment.ports);
        }
    }

    /// The links that wait to be deleted, for the caller to delete.
    pub(crate) fn take_doomed(&mut self) -> Doomed {
        let mut doomed = take(&mut self.doomed);
        doomed.orphans = take(&mut self.orphans);
        doomed
    }

    /// They were deleted.
    pub(crate) fn free(&mut self, doomed: Doomed) {
        doomed.addresses.into_iter().for_each(|address| self.pool.release(address));
    }

    /// They could not be deleted.
    pub(crate) fn give_back(&mut self, doomed: Doomed) {
        self.doomed.addresses.extend(doomed.addresses);
        self.orphans |= doomed.orphans;
    }

    /// To be called when host ports of a sandbox came or went.
    pub(crate) fn note_udp(&mut self, attachment: &Attachment) {
        self.udp_changed |= has_udp(attachment);
    }

    /// The attachments whose host ports are open.
    pub(crate) fn serving(&self) -> impl Iterator<Item = &Attachment> {
        let serving = |held: &&Held| !held.leaving && !held.contested;
        self.held.values().filter(serving).map(|held| &held.attachment)
    }

    /// The attachment that has this link.
    pub(crate) fn owner_of(&self, link: &str) -> Option<&Attachment> {
        self.held.values().map(|held| &held.attachment).find(|one| one.link == link)
    }

    /// How many sandboxes hold something.
    pub(crate) fn pods(&self) -> usize {
        self.held.len()
    }
}

fn has_udp(attachment: &Attachment) -> bool {
    attachment.ports.iter().any(|mapping| mapping.protocol == Protocol::Udp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const PODS: usize = 8;

    #[derive(Debug, Clone)]
    enum Step {
        Plan {
            pod: usize,
            port: u16,
        },
        /// The record of a pod's life so and so many lives ago; the link has this fate.
        Detach {
            pod: usize,
            ago: usize,
            fate: LinkFate,
        },
        Tidy {
            works: bool,
        },
        /// The daemon starts again from the records.
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        let fate = prop_oneof![
            4 => Just(LinkFate::Doomed), 2 => Just(LinkFate::Absent), 1 => Just(LinkFate::Stays)
        ];
        prop_oneof![
            4 => (0..PODS, 0..4_u16).prop_map(|(pod, port)| Step::Plan { pod, port }),
            4 => (0..PODS, 0..3_usize, fate)
                .prop_map(|(pod, ago, fate)| Step::Detach { pod, ago, fate }),
            2 => any::<bool>().prop_map(|works| Step::Tidy { works }),
            1 => Just(Step::Restart),
        ]
    }

    fn mapping(number: u16) -> PortMapping {
        let (protocol, host_port) = (Protocol::Tcp, 8000 + number);
        PortMapping { protocol, container_port: 80, host_port, host_ip: None }
    }

    /// Every address is at one place, no two sandboxes have one or the same port.
    fn check(state: &State) {
        let addresses: Vec<Ipv4Addr> = state
            .held
            .values()
            .map(|held| held.attachment.address)
            .chain(state.doomed.addresses.iter().copied())
            .collect();
        let distinct: BTreeSet<_> = addresses.iter().collect();
        assert_eq!(distinct.len(), addresses.len(), "{state:?}");
        let ports: Vec<u16> =
            state.serving().flat_map(|one| one.ports.iter().map(|port| port.host_port)).collect();
        let distinct: BTreeSet<_> = ports.iter().collect();
        assert_eq!(distinct.len(), ports.len(), "{state:?}");
    }

    fn run(steps: &[Step]) -> State {
        let names = Names::of("0a1b2c3d").unwrap();
        let subnet: Subnet = "10.64.0.0/29".parse().unwrap();
        let mut state = State::from_records(subnet, &[]);
        let mut lives: Vec<Vec<Attachment>> = vec![Vec::new(); PODS];
        for step in steps {
            match step {
                Step::Plan { pod, port } => {
                    if let Ok(life) = state.plan(&names, &format!("pod{pod}"), &[mapping(*port)]) {
                        lives[*pod].push(life);
                    }
                }
                Step::Detach { pod, ago, fate } => {
                    if let Some(life) = lives[*pod].iter().rev().nth(*ago) {
                        let owns = state.begin_detach(life);
                        state.end_detach(life, owns, *fate);
                    }
                }
                Step::Tidy { works } => {
                    let doomed = state.take_doomed();
                    if *works { state.free(doomed) } else { state.give_back(doomed) }
                }
                Step::Restart => {
                    let held = state.held.values().map(|held| held.attachment.clone());
                    state = State::from_records(subnet, &held.collect::<Vec<_>>());
                }
            }
            check(&state);
        }
        state
    }

    proptest! {
        #[test]
        fn whatever_happens_nobody_holds_what_another_has_and_nothing_is_lost(
            steps in proptest::collection::vec(step(), 0..120)
        ) {
            let mut state = run(&steps);
            let rest: Vec<_> = state.held.values().map(|held| held.attachment.clone()).collect();
            for attachment in rest {
                for _ in 0..2 {
                    let owns = state.begin_detach(&attachment);
                    state.end_detach(&attachment, owns, LinkFate::Doomed);
                }
            }
            let doomed = state.take_doomed();
            state.free(doomed);
            let all: Vec<_> = std::iter::from_fn(|| state.pool.take()).collect();
            prop_assert_eq!(all.len(), 5, "every address of the /29 is free again");
            let all = [0, 1, 2, 3].map(mapping);
            prop_assert!(state.ports.take("x", &all).is_ok());
        }
    }
}
