//! Descriptors in bulk: close_range(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// Closes all descriptors of this process but 0, 1, 2 and those in `keep`.
///
/// For a process that has just been cloned: values elsewhere that own the others must never be dropped.
///
/// # Errors
/// Those of close_range(2).
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut first: RawFd = 3;
    for fd in keep {
        if fd > first {
            close_range(first.cast_unsigned(), (fd - 1).cast_unsigned())?;
        }
        first = fd + 1;
    }
    close_range(first.cast_unsigned(), u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: closing descriptors touches no memory; who calls says that their owners are gone.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Takes over a descriptor that this process was started with, such as 0.
///
/// # Errors
/// EBADF where it is not open.
pub fn take_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only asks.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) }.into())?;
    // SAFETY: it is open, and by the caller's word nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
