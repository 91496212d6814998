//! System call filters: from a profile to the program that the kernel runs.
//!
//! ```text
//! bytes --Profile::parse--> Profile --resolve(caps, arch, kernel)--> Filter --compile--> Program
//!       default_profile() ----^                                                    sys::seccomp::install
//! ```
//!
//! `profile.rs` holds a checked profile, `parse.rs` and `words.rs` read the file forms of the OCI
//! runtime spec, of docker and of containers-common, and `default.rs` has ours. `filter.rs` is the plain data in the
//! middle, `lower.rs` decides what each call number of each architecture gets, `compile.rs` makes
//! instructions of that, `program.rs` is the result, and `syscalls/` has the numbers. All of it is
//! pure, so a caller may keep programs by profile, capabilities and kernel version.
//!
//! # Which rule decides
//!
//! Profiles are written for and tried with runtimes on libseccomp, so the order is theirs, not the
//! order of the file:
//!
//! 1. A rule whose action is the profile's default action is left out (as runc and crun do): it
//!    does not shield a call from a wider rule.
//! 2. A rule that compares the same argument twice becomes one rule per comparison, so they are
//!    alternatives (as runc and crun do). Comparisons of different arguments must all hold.
//! 3. Of several rules without conditions for one call the first decides, and rules with
//!    conditions for that call are never looked at.
//! 4. Otherwise rules are tried in this order: those that look at a higher argument first; on the
//!    same argument `EQ`, `NE` and `MASKED_EQ` (larger value first) before `LT` and `LE` (smaller
//!    first) before `GT` and `GE` (larger first); then by their next comparison, fewer before
//!    more; then as listed. The first whose conditions hold decides, else the default action.
//! 5. On the 32-bit architectures (x32 too) values and arguments are cut to 32 bits.
//! 6. On 32-bit x86 a rule for `connect` also holds for `socketcall(SYS_CONNECT, ..)`, and so for
//!    all calls behind `socketcall` and `ipc`. There the arguments lie behind a pointer that no
//!    filter can follow. So a rule with conditions carries over only where it is stricter than
//!    the default, and then without its conditions: we deny more rather than allow what was not
//!    asked for. (libseccomp drops or misreads the conditions in both directions.)
//! 7. Calls of an architecture that the profile does not list end the thread, as libseccomp has
//!    it. The number -1, with which a tracer skips a call, is no x32 call.
//! 8. Where the default action refuses, calls numbered above the highest that any rule names get
//!    ENOSYS (as runc has it), so that a libc newer than the profile falls back to an older call.

mod compile;
mod default;
mod filter;
mod lower;
mod parse;
mod profile;
mod program;
mod syscalls;
#[cfg(test)]
mod tests;
mod words;

use std::path::PathBuf;

pub use compile::compile;
pub use default::{Socketcall, default_profile, default_profile_with};
pub use filter::{Action, Arch, Condition, Filter, Operator, Rule};
pub use profile::{MAX_PROFILE_BYTES, Profile};
pub use program::{Instruction, MAX_INSTRUCTIONS, Program};

/// Why there is no profile or no program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read seccomp profile {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// The file is not JSON, or not of a profile's shape.
    #[error("parse seccomp profile as JSON")]
    Syntax(#[source] serde_json::Error),
    /// A field has a value that no filter can have.
    #[error("seccomp profile field {field}: {problem}")]
    Invalid {
        /// The field, as `syscalls[3].args[0].op`.
        field: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The filter is too long for the kernel.
    #[error(
        "compile seccomp filter: {count} instructions, and the kernel takes 1 to {MAX_INSTRUCTIONS}; \
         merge rules or compare fewer arguments"
    )]
    Instructions {
        /// How many there are.
        count: usize,
    },
    /// These bytes are not a program of ours.
    #[error("read seccomp program: {count} bytes are no whole number of instructions")]
    Bytes {
        /// How many there are.
        count: usize,
    },
}
