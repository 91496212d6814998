//! Hears when somebody changes nf_tables, so that our rules come back after a firewall was loaded
//! anew.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::netlink::{Family, Messages, listener};
use super::{Error, Result};

/// Multicast group 7 of NETLINK_NETFILTER, NFNLGRP_NFTABLES.
const GROUP: u32 = 1 << 6;
const BUFFER: usize = 64 << 10;
/// Messages of nf_tables that can take away what we need: a table, a chain or a rule went, or a
/// table or chain came (docker's). Elements of maps, which our own attachments change all the
/// time, are none of them.
const EVENTS: [u16; 5] = [0xa00, 0xa02, 0xa03, 0xa05, 0xa08];
/// After so many datagrams the caller gets its turn.
const AT_ONCE: usize = 1000;

/// A descriptor that becomes readable when nf_tables change. It never blocks.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// Listens in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] where the kernel has no nf_tables.
    pub fn open() -> Result<Watch> {
        listener(Family::Netfilter, GROUP).map(Watch)
    }

    /// Reads what there is. True where something changed that can concern us: then it is time for
    /// [`super::Bridge::heal`].
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] where the socket cannot be read.
    pub fn drain(&self) -> Result<bool> {
        let mut buffer = vec![0; BUFFER];
        let mut changed = false;
        for _ in 0..AT_ONCE {
            match recv(&self.0, &mut *buffer, RecvFlags::TRUNC) {
                Ok((_, length)) => changed |= concerns_us(buffer.get(..length)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // More than the socket holds: something we have not seen may be among it.
                Err(Errno::NOBUFS) => changed = true,
                Err(errno) => return Err(Error::kernel("listen to nf_tables", errno)),
            }
        }
        Ok(changed)
    }
}

/// What cannot be read is taken for a change.
fn concerns_us(datagram: Option<&[u8]>) -> bool {
    datagram.is_none_or(|datagram| {
        Messages(datagram).any(|message| message.is_ok_and(|one| EVENTS.contains(&one.kind)))
    })
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
