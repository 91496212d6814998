//! A profile as its file has it: checked when it is read, resolved for one container later.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::filter::{Action, Arch, Filter, Rule};
use super::{Error, parse};
use crate::sys::seccomp::{FLAG_NEW_LISTENER, FLAG_TSYNC};

/// The largest profile we read. Those in use have some 20 KiB.
pub const MAX_PROFILE_BYTES: usize = 1024 * 1024;

/// A checked profile.
#[derive(Clone, Debug)]
pub struct Profile {
    pub(super) default_action: Action,
    pub(super) architectures: Architectures,
    pub(super) flags: u32,
    pub(super) rules: Vec<GuardedRule>,
    /// Socket of the process that decides about calls with the action notify. Set whenever a rule
    /// has that action.
    pub listener_path: Option<String>,
    /// Text for that process, as the profile has it.
    pub listener_metadata: String,
    /// Names in rules that are no system call of any architecture; rules skip them, as every
    /// runtime does.
    pub unknown_syscalls: BTreeSet<String>,
    /// Fields that mean nothing to us and were not looked at, as `syscalls[0].exclude`. A comment
    /// is not among them.
    pub ignored_fields: Vec<String>,
}

/// Which architectures a profile speaks of. Those that are not ours are left out.
#[derive(Clone, Debug)]
pub(super) enum Architectures {
    /// Just these (the OCI form), beside the native one.
    Listed(Vec<Arch>),
    /// For each native architecture, what comes with it (docker's form).
    Mapped(Vec<(Arch, Vec<Arch>)>),
}

/// A rule, and what must be so for it to exist at all.
#[derive(Clone, Debug)]
pub(super) struct GuardedRule {
    pub(super) rule: Rule,
    /// All of this must hold.
    pub(super) includes: Guard,
    /// None of this may hold.
    pub(super) excludes: Guard,
}

/// Docker's `includes` or `excludes`. A part that is not there says nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Guard {
    /// Capabilities as a bit mask.
    pub(super) caps: u64,
    /// Names a capability that Linux does not have, so nobody can be granted it.
    pub(super) impossible_cap: bool,
    /// Native architectures; those that are not ours are left out.
    pub(super) arches: Option<Vec<Arch>>,
    /// Kernels of this version or newer.
    pub(super) min_kernel: Option<(u32, u32)>,
}

impl Profile {
    /// Reads a profile from a file on the host, as [`Profile::read`] does.
    pub fn load(path: &Path) -> Result<Profile, Error> {
        Profile::parse(&Profile::read(path)?)
    }

    /// The content of a file on the host: a regular one of at most [`MAX_PROFILE_BYTES`], and one byte
    /// more of a larger one, which [`Profile::parse`] then refuses.
    pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
        let failed = |source| Error::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        // A FIFO without a writer must not hold us up; on a regular file the flag does nothing.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(failed)?;
        check_regular(&file).map_err(failed)?;
        file.take(MAX_PROFILE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    /// Reads a profile in the form of the OCI runtime spec, of docker or of containers-common.
    pub fn parse(bytes: &[u8]) -> Result<Profile, Error> {
        if bytes.len() > MAX_PROFILE_BYTES {
            return Err(parse::invalid(
                "(whole file)",
                format!("is larger than {MAX_PROFILE_BYTES} bytes"),
            ));
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Err(parse::invalid(
                "(whole file)",
                "is empty; a profile has at least a defaultAction",
            ));
        }
        parse::profile(bytes)
    }

    /// The filter for a container that is granted these capabilities (bit n is capability number
    /// n of `linux/capability.h`), on a kernel with this architecture and version (6.18 is
    /// `(6, 18)`).
    pub fn resolve(&self, granted_caps: u64, native: Arch, kernel: (u32, u32)) -> Filter {
        let rules: Vec<Rule> = self
            .rules
            .iter()
            .filter(|guarded| guarded.applies(granted_caps, native, kernel))
            .map(|guarded| guarded.rule.clone())
            .collect();
        let mut flags = self.flags;
        if rules.iter().any(|rule| rule.action == Action::Notify) {
            // The kernel refuses the two together, and the thread that installs a filter for a
            // container is alone in its process, with nobody to synchronise.
            flags = flags & !FLAG_TSYNC | FLAG_NEW_LISTENER;
        }
        let default_action = self.default_action;
        Filter {
            default_action,
            bad_arch_action: Action::KillThread,
            newer_action: newer_action(default_action),
            arches: self.arches(native),
            rules,
            flags,
        }
    }

    /// The native architecture first, then the others that this kernel can run.
    fn arches(&self, native: Arch) -> Vec<Arch> {
        let mut arches = vec![native];
        let others = match &self.architectures {
            Architectures::Listed(listed) => listed.as_slice(),
            Architectures::Mapped(map) => {
                map.iter().find(|(arch, _)| *arch == native).map_or(&[][..], |(_, subs)| subs)
            }
        };
        for &arch in others {
            if arch.runs_on(native) && !arches.contains(&arch) {
                arches.push(arch);
            }
        }
        arches
    }
}

impl GuardedRule {
    fn applies(&self, granted_caps: u64, native: Arch, kernel: (u32, u32)) -> bool {
        let Guard { caps, impossible_cap, arches, min_kernel } = &self.includes;
        let included = granted_caps & caps == *caps
            && !impossible_cap
            && arches.as_ref().is_none_or(|arches| arches.contains(&native))
            && min_kernel.is_none_or(|min| kernel >= min);
        let Guard { caps, impossible_cap: _, arches, min_kernel } = &self.excludes;
        let excluded = granted_caps & caps != 0
            || arches.as_ref().is_some_and(|arches| arches.contains(&native))
            || min_kernel.is_some_and(|min| kernel >= min);
        included && !excluded
    }
}

/// What calls newer than the profile get: "no such call" where the profile refuses what it does
/// not name, and nothing of their own where it lets such calls through.
fn newer_action(default_action: Action) -> Option<Action> {
    match default_action {
        Action::Allow | Action::Log | Action::Trace(_) => None,
        Action::KillThread
        | Action::KillProcess
        | Action::Trap
        | Action::Errno(_)
        | Action::Notify => Some(Action::Errno(ENOSYS)),
    }
}

/// "No such system call" on every architecture of ours.
pub(super) const ENOSYS: u16 = 38;

/// A directory opens like a file, and reading a device may never end.
fn check_regular(file: &File) -> std::io::Result<()> {
    if file.metadata()?.is_file() {
        return Ok(());
    }
    Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"))
}
