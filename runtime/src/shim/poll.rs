//! epoll(7) with tokens.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

/// Descriptors that are waited for, each under a number.
pub(super) struct Poll {
    epoll: OwnedFd,
    ready: Vec<epoll::Event>,
}

impl Poll {
    pub(super) fn new() -> io::Result<Poll> {
        Ok(Poll { epoll: epoll::create(CreateFlags::CLOEXEC)?, ready: Vec::with_capacity(16) })
    }

    /// Waits for something to read, or the end.
    pub(super) fn add_reader(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token), EventFlags::IN)?)
    }

    /// Waits for the end of whoever reads, until [`Poll::want_room`].
    pub(super) fn add_writer(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token), EventFlags::empty())?)
    }

    /// Whether to wait for room to write, too.
    pub(super) fn want_room(&self, fd: impl AsFd, token: u64, wanted: bool) -> io::Result<()> {
        let flags = if wanted { EventFlags::OUT } else { EventFlags::empty() };
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(token), flags)?)
    }

    /// Waits no more. One that was not waited for is fine.
    pub(super) fn remove(&self, fd: BorrowedFd<'_>) {
        match epoll::delete(&self.epoll, fd) {
            Ok(()) | Err(_) => {}
        }
    }

    /// The tokens of those that are ready; none after `timeout` milliseconds, or by a signal.
    pub(super) fn wait(&mut self, timeout: Option<u64>) -> io::Result<Vec<u64>> {
        let limit = timeout.map(|milliseconds| Timespec {
            tv_sec: i64::try_from(milliseconds / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(milliseconds % 1000).unwrap_or(0) * 1_000_000,
        });
        self.ready.clear();
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.ready),
            limit.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(self.ready.iter().map(|event| event.data.u64()).collect())
    }
}
