//! Attributes of mounts: mount_setattr(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::check;

/// MOUNT_ATTR_RDONLY
pub const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;

/// What to change; flags are MOUNT_ATTR_* and MS_PRIVATE, MS_SLAVE or MS_SHARED.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// MOUNT_ATTR_* to set.
    pub set: u64,
    /// MOUNT_ATTR_* to clear.
    pub clear: u64,
    /// 0 to leave it.
    pub propagation: u64,
}

/// Changes a mount, with all below it where `recursive`.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn set_attributes(mount: impl AsFd, attributes: Attributes, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let fd = mount.as_fd().as_raw_fd();
    // SAFETY: the path is a terminated string, the attributes are of the size that is said.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}
