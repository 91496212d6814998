//! Signal dispositions.

/// The highest signal number of Linux.
pub const LAST: i32 = 64;

/// Sets every signal back to its default action, those that are ignored too: a new
/// program inherits what is ignored, and Rust programs ignore SIGPIPE.
pub fn reset_all() {
    for signal in 1..=LAST {
        // SAFETY: SIG_DFL is valid for every signal; SIGKILL, SIGSTOP and glibc's own two answer an error, which is right.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// A signal by its number, 1 to 64.
pub fn by_number(number: i32) -> Option<rustix::process::Signal> {
    let number =
        std::num::NonZeroI32::new(number).filter(|number| (1..=LAST).contains(&number.get()))?;
    // SAFETY: the number is one that the kernel knows; real-time signals below SIGRTMIN, which the C library
    // keeps for itself, are only sent to other programs.
    Some(unsafe { rustix::process::Signal::from_raw_nonzero_unchecked(number) })
}
