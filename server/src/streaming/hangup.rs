//! Whether a client has gone, seen without reading from it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};

/// The socket of a client. No Kubernetes client closes only its sending side and goes on listening, so that one is
/// closed means that the client has gone.
#[derive(Debug, Clone, Default)]
pub(super) struct Hangup(Option<Arc<OwnedFd>>);

impl Hangup {
    /// Looks at a socket from now on; where there is no descriptor to be had, nothing is seen.
    pub(super) fn of(socket: impl AsFd) -> Hangup {
        Hangup(socket.as_fd().try_clone_to_owned().ok().map(Arc::new))
    }

    /// Whether it has gone.
    pub(super) fn happened(&self) -> bool {
        let Some(socket) = &self.0 else { return false };
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut fds = [PollFd::new(&**socket, PollFlags::RDHUP)];
        let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&timeout)).is_ok() && fds[0].revents().intersects(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_end_is_seen_behind_what_nobody_has_read() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let hangup = Hangup::of(&ours);
        theirs.write_all(b"unread").unwrap();
        assert!(!hangup.happened());
        drop(theirs);
        assert!(hangup.happened());
        assert!(!Hangup::default().happened());
    }
}
