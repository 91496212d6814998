//! A netlink socket: sends a batch of messages, reads what the kernel says to it.
//!
//! One [`Socket::exchange`] is one `sendmsg`, during which the kernel does the work, and as many
//! reads as there are answers, mostly one. Reads have a deadline, dumps a limit.

mod codec;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::setsockopt_impl;
use nix::sys::socket::SetSockOpt;
use nix::sys::socket::sockopt::SetBool;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, send,
    socket_with,
};

pub(crate) use self::codec::*;
use super::{Error, Result};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Flags of an NLMSG_ERROR: the request is not repeated in it; attributes follow.
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
/// Text and offset of an extended acknowledgement.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// `struct nlmsgerr`: the error number, then the header of the request.
const ERROR_HEADER: usize = 4 + codec::MESSAGE_HEADER;

/// The kernel answers inside the send, so only a bug makes a read wait at all.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Datagrams of a dump are at most 32 KiB.
const RECEIVE_BUFFER: usize = 64 << 10;
/// More than any ruleset or table of links that a node could work with.
const REPLY_CAP: usize = 64 << 20;
/// A dump that others keep changing under us is given up after so many tries.
const DUMP_TRIES: usize = 8;
/// A send below this fits every socket's default buffer.
const SMALL_SEND: usize = 64 << 10;

#[derive(Clone, Copy)]
struct ExtendedAcknowledgement;
setsockopt_impl!(ExtendedAcknowledgement, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, bool, SetBool);

#[derive(Clone, Copy)]
struct CappedAcknowledgement;
setsockopt_impl!(CappedAcknowledgement, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, bool, SetBool);

#[derive(Clone, Copy)]
struct StrictCheck;
setsockopt_impl!(StrictCheck, libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, bool, SetBool);

/// Numbers of messages, unique in the process, so that a late answer is never taken for another.
static SEQUENCE: AtomicU32 = AtomicU32::new(1);

/// Which part of the kernel a socket talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Links, addresses, routes.
    Route,
    /// nf_tables and connection tracking.
    Netfilter,
}

/// A netlink socket of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket<F: AsFd = OwnedFd>(F);

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open(family: Family) -> Result<Socket> {
        Socket::new(raw(family, SocketFlags::CLOEXEC, 0)?)
    }
}

/// A socket that hears the multicast groups of the mask and never blocks.
pub(crate) fn listener(family: Family, groups: u32) -> Result<OwnedFd> {
    raw(family, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, groups)
}

fn raw(family: Family, flags: SocketFlags, groups: u32) -> Result<OwnedFd> {
    let protocol: Option<Protocol> = match family {
        Family::Route => None,
        Family::Netfilter => Some(NETFILTER),
    };
    let open = || {
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        Ok::<_, rustix::io::Errno>(fd)
    };
    open().map_err(|errno| Error::kernel(format!("open a netlink socket ({family:?})"), errno))
}

impl<'a> Socket<BorrowedFd<'a>> {
    /// Uses a socket that somebody else opened, perhaps in another network namespace.
    pub(crate) fn borrow(fd: BorrowedFd<'a>) -> Result<Socket<BorrowedFd<'a>>> {
        Socket::new(fd)
    }
}

impl<F: AsFd> Socket<F> {
    fn new(fd: F) -> Result<Socket<F>> {
        let set = || {
            sockopt::set_socket_timeout(&fd, Timeout::Recv, Some(RECEIVE_TIMEOUT))?;
            ExtendedAcknowledgement.set(&fd, &true)?;
            CappedAcknowledgement.set(&fd, &true)?;
            StrictCheck.set(&fd, &true)?;
            Ok::<_, io::Error>(())
        };
        set().map_err(|error| Error::kernel("set up a netlink socket", error))?;
        Ok(Socket(fd))
    }

    /// Sends the batch and waits until the kernel has dealt with all of it.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] with the first message that failed, and what the kernel said to it.
    pub(crate) fn apply(&self, batch: Batch) -> Result<()> {
        self.exchange(batch, |_| Ok(()))
    }

    /// Sends one request for a dump and collects what `read` makes of each answer.
    ///
    /// # Errors
    ///
    /// As [`Socket::apply`]; also when the answer is beyond the limit, or never consistent.
    pub(crate) fn dump<T>(
        &self,
        request: impl Fn() -> Batch,
        mut read: impl FnMut(Message<'_>) -> Result<Option<T>>,
    ) -> Result<Vec<T>> {
        let mut doing = String::new();
        for _ in 0..DUMP_TRIES {
            let mut found = Vec::new();
            let mut interrupted = false;
            let batch = request();
            batch.doing(0).clone_into(&mut doing);
            self.exchange(batch, |message| {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                found.extend(read(message)?);
                Ok(())
            })?;
            if !interrupted {
                return Ok(found);
            }
        }
        Err(Error::kernel(format!("{doing}: it changed all the time"), rustix::io::Errno::INTR))
    }

    /// Sends the batch; `each` sees every message that answers it, besides acknowledgements.
    pub(crate) fn exchange(
        &self,
        mut batch: Batch,
        mut each: impl FnMut(Message<'_>) -> Result<()>,
    ) -> Result<()> {
        let count = u32::try_from(batch.count())
            .map_err(|_| Error::Invalid("too many netlink messages at once".to_owned()))?;
        let sequence = SEQUENCE.fetch_add(count, Ordering::Relaxed);
        self.send(&mut batch, sequence)?;

        let mut answers = Answers::new(&batch, sequence);
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let mut received = 0;
        while !answers.finished {
            let datagram = self.receive(&mut buffer, &batch)?;
            received += datagram.len();
            if received > REPLY_CAP {
                return Err(Error::kernel(
                    format!("{}: more than {REPLY_CAP} bytes of answer", batch.doing(0)),
                    rustix::io::Errno::MSGSIZE,
                ));
            }
            for message in Messages(datagram) {
                answers.take(message?, &mut each)?;
            }
        }
        answers.error.map_or(Ok(()), Err)
    }

    fn send(&self, batch: &mut Batch, sequence: u32) -> Result<()> {
        let length = batch.len();
        if length > SMALL_SEND {
            // The kernel wants the whole batch in one buffer, and doubles what we ask for.
            sockopt::set_socket_send_buffer_size_force(&self.0, length + SMALL_SEND)
                .map_err(|errno| Error::kernel("enlarge the send buffer of netlink", errno))?;
        }
        let bytes = batch.finish(sequence)?;
        let sent = send(&self.0, bytes, SendFlags::empty());
        match sent {
            Ok(_) => Ok(()),
            Err(errno) => Err(Error::kernel(batch.doing(0).to_owned(), errno)),
        }
    }

    /// The next datagram from the kernel itself.
    fn receive<'b>(&self, buffer: &'b mut [u8], batch: &Batch) -> Result<&'b [u8]> {
        loop {
            let received = recvfrom(&self.0, &mut *buffer, RecvFlags::TRUNC);
            let (_, length, sender) = match received {
                Ok(received) => received,
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => {
                    let doing = format!("{}: wait for the kernel's answer", batch.doing(0));
                    return Err(Error::kernel(doing, errno));
                }
            };
            let kernel = sender
                .and_then(|sender| SocketAddrNetlink::try_from(sender).ok())
                .is_some_and(|sender| sender.pid() == 0);
            if kernel {
                return buffer.get(..length).ok_or_else(malformed);
            }
        }
    }
}

/// What has come of the messages of one batch.
#[derive(Debug)]
struct Answers<'a> {
    batch: &'a Batch,
    sequence: u32,
    finished: bool,
    error: Option<Error>,
}

impl<'a> Answers<'a> {
    fn new(batch: &'a Batch, sequence: u32) -> Answers<'a> {
        Answers { batch, sequence, finished: false, error: None }
    }

    fn take(
        &mut self,
        message: Message<'_>,
        each: &mut impl FnMut(Message<'_>) -> Result<()>,
    ) -> Result<()> {
        let index = usize::try_from(message.sequence.wrapping_sub(self.sequence))
            .map_err(|_| malformed())?;
        if index >= self.batch.count() {
            return Ok(()); // An answer to a batch that was given up.
        }
        match message.kind {
            NLMSG_ERROR => self.take_error(message, index),
            NLMSG_DONE => {
                self.finished |= index == self.batch.acknowledged_index();
                // A dump that failed says so at its end, as a negative error number.
                match message.payload.get(..4).and_then(read_u32).unwrap_or_default() {
                    0 => Ok(()),
                    number => self.fail(index, number, ""),
                }
            }
            _ => each(message),
        }
    }

    fn take_error(&mut self, message: Message<'_>, index: usize) -> Result<()> {
        let number = message.payload.get(..4).and_then(read_u32).ok_or_else(malformed)?;
        // A transaction that could not be begun or committed is answered at its first message.
        let refused = number != 0 && index == 0 && self.batch.is_transaction();
        self.finished |= refused || index == self.batch.acknowledged_index();
        if number == 0 {
            return Ok(());
        }
        let mut text = String::new();
        if message.flags & NLM_F_ACK_TLVS != 0 {
            let skip = if message.flags & NLM_F_CAPPED != 0 { ERROR_HEADER } else { usize::MAX };
            let rest = message.payload.get(skip..).unwrap_or_default();
            if let Some(said) = Attributes(rest).find(NLMSGERR_ATTR_MSG)? {
                text = read_text(said).into_owned();
            }
        }
        self.fail(index, number, &text)
    }

    /// Keeps the first failure: what follows it in a batch mostly fails because of it.
    fn fail(&mut self, index: usize, number: u32, text: &str) -> Result<()> {
        let errno = i32::from_ne_bytes(number.to_ne_bytes()).checked_neg().ok_or_else(malformed)?;
        if self.error.is_none() {
            self.error = Some(Error::Kernel {
                doing: self.batch.doing(index).to_owned(),
                detail: if text.is_empty() { String::new() } else { format!(" ({text})") },
                source: io::Error::from_raw_os_error(errno),
            });
        }
        Ok(())
    }
}
