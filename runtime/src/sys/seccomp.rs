//! Installing a system call filter, by seccomp(2).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use crate::seccomp::Program;

/// `SECCOMP_SET_MODE_FILTER` of `linux/seccomp.h`.
const SET_MODE_FILTER: libc::c_uint = 1;

/// Give the filter to all threads of the process.
pub const FLAG_TSYNC: u32 = 1;

/// Log what the filter does, except allow.
pub const FLAG_LOG: u32 = 1 << 1;

/// Leave speculative store bypass as it is.
pub const FLAG_SPEC_ALLOW: u32 = 1 << 2;

/// Return a descriptor on which another process decides about calls.
pub const FLAG_NEW_LISTENER: u32 = 1 << 3;

/// Let only a fatal signal interrupt a call that such a process has taken up; goes with
/// [`FLAG_NEW_LISTENER`] only.
pub const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// Puts the filter on the calling thread and on all it will ever start; there is no way back.
///
/// `flags` are `SECCOMP_FILTER_FLAG_*` bits. With [`FLAG_NEW_LISTENER`] the listener's descriptor
/// (close-on-exec) is returned. Allocates nothing, so a cloned child may call it.
///
/// The kernel wants no_new_privs or CAP_SYS_ADMIN (EACCES), a valid program (EINVAL), and with
/// [`FLAG_TSYNC`] threads whose filters are the caller's (reported as ESRCH here).
pub fn install(program: &Program, flags: u32) -> io::Result<Option<OwnedFd>> {
    let instructions = program.instructions();
    let len = u16::try_from(instructions.len()).expect("a program has at most 4096 instructions");
    let filter = libc::sock_fprog {
        len,
        filter: instructions.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: `filter` points to `len` instructions, which live until the call returns and have
    // the layout of `struct sock_filter` (repr(C), same fields); the kernel copies them and writes
    // to neither. The flags change nothing about memory.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const filter) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & FLAG_NEW_LISTENER != 0 {
        let fd = i32::try_from(result).expect("a descriptor is an int");
        // SAFETY: the kernel has just opened this descriptor for us, and nobody else owns it.
        return Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }));
    }
    if result > 0 {
        // The id of a thread that could not be synchronised; no filter was installed.
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(None)
}
