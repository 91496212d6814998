//! The calls that rustix and nix lack: safe wrappers, and all `unsafe` of this crate.
//!
//! Invariant: wrappers take descriptors, return owned ones, and add no policy.

#![allow(unsafe_code)]

pub mod bpf;
pub mod clone;
pub mod fds;
pub mod keyring;
pub mod memory;
pub mod mount;
pub mod page;
pub mod program;
pub mod seccomp;
pub mod signals;

use std::io;

/// The result of a system call that answers -1 for an error.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
