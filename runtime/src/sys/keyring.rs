//! Keyrings: keyctl(2).

use std::io;

use super::check;

/// Gives the process a new, empty session keyring, so that it does not share the node's.
///
/// # Errors
/// Those of keyctl(2): EDQUOT where the user has too many keys, ENOSYS without keyrings in the kernel.
pub fn join_new_session() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring; nothing is written to our memory.
    check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    })
    .map(drop)
}
