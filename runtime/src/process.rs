//! What a container's init and an exec have in common: from a cloned process to the program.
//!
//! The order is the kernel's. What needs privilege comes first, then identity; after
//! the seccomp filter only capset and execve are called, since a profile may deny all else.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use crate::error::{Doing, Error, Result};
use crate::root::{Missing, Root};
use crate::sys::program::{StringArray, execute};
use crate::users::Identity;
use crate::{seccomp, spec};

/// statfs(2): f_type of procfs.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// What this process may hand on: capabilities in its bounding set, and how many the kernel knows.
#[derive(Debug, Clone, Copy)]
pub struct Grantable {
    bounding: u64,
    known: u32,
}

impl Grantable {
    /// Asks the kernel.
    pub fn read() -> Grantable {
        let (mut bounding, mut known) = (0, 0);
        // PR_CAPBSET_READ answers EINVAL past the last capability (capabilities(7)).
        while let Ok(granted) =
            capability(known).map_or(Ok(false), rustix::thread::capability_is_in_bounding_set)
        {
            bounding |= u64::from(granted) << known;
            known += 1;
            if known == u64::BITS {
                break;
            }
        }
        Grantable { bounding, known }
    }
}

fn capability(number: u32) -> Option<CapabilitySet> {
    1u64.checked_shl(number).map(CapabilitySet::from_bits_retain)
}

/// A program that is about to run, with all memory it needs.
#[derive(Debug)]
pub struct Program {
    candidates: Vec<CString>,
    arguments: StringArray,
    environment: StringArray,
    filter: Option<Filter>,
    final_capabilities: CapabilitySets,
    no_new_privs: bool,
}

#[derive(Debug)]
struct Filter {
    program: seccomp::Program,
    flags: u32,
}

/// Names in the environment of a process that have a meaning here.
const PATH: &[u8] = b"PATH=";
const HOME: &[u8] = b"HOME=";

impl Program {
    /// Prepares the program. `filter` is the seccomp program that came with the spec.
    ///
    /// # Errors
    /// `Invalid` for no arguments and for a NUL byte in a string.
    pub fn prepare(
        process: &spec::Process,
        identity: &Identity,
        grantable: Grantable,
        filter: Option<Vec<u8>>,
    ) -> Result<Program> {
        let mut environment = process.env.clone();
        if !environment.iter().any(|variable| variable.starts_with(HOME)) {
            environment.push([HOME, &identity.home].concat());
        }
        let name = process.args.first().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Error::Invalid("no command to run".into()))?;
        let path = environment
            .iter()
            .rev()
            .find_map(|variable| variable.strip_prefix(PATH))
            .unwrap_or_default();
        let filter = match filter {
            Some(bytes) => {
                let program = seccomp::Program::from_bytes(&bytes).map_err(|error| {
                    Error::Invalid(format!("the seccomp program is damaged: {error}"))
                })?;
                Some(Filter { program, flags: process.seccomp_flags })
            }
            None => None,
        };
        let wanted = process.capabilities.unwrap_or_default();
        let granted = |set: u64| CapabilitySet::from_bits_retain(set & grantable.bounding);
        Ok(Program {
            candidates: strings(&candidates(name, path))?,
            arguments: StringArray::new(strings(&process.args)?),
            environment: StringArray::new(strings(&environment)?),
            filter,
            final_capabilities: CapabilitySets {
                effective: granted(wanted.effective),
                permitted: granted(wanted.permitted),
                inheritable: granted(wanted.inheritable),
            },
            no_new_privs: process.no_new_privs,
        })
    }

    /// Becomes the program. Returns only the error that stopped it.
    ///
    /// A filter needs CAP_SYS_ADMIN or no_new_privs (seccomp(2)). With no_new_privs it
    /// comes last of all; else capabilities are dropped under it.
    pub fn run(&self) -> std::io::Error {
        if self.no_new_privs
            && let Err(error) = self.drop_capabilities()
        {
            return error;
        }
        if let Some(filter) = &self.filter
            && let Err(error) = crate::sys::seccomp::install(&filter.program, filter.flags)
        {
            return error;
        }
        if !self.no_new_privs
            && let Err(error) = self.drop_capabilities()
        {
            return error;
        }
        self.execute()
    }

    fn drop_capabilities(&self) -> std::io::Result<()> {
        Ok(rustix::thread::set_capabilities(None, self.final_capabilities)?)
    }

    /// The search of execvp(3): an entry that cannot be run is remembered, one that is not there is not.
    fn execute(&self) -> std::io::Error {
        let mut worst = std::io::Error::from_raw_os_error(libc::ENOENT);
        for candidate in &self.candidates {
            let error = execute(candidate, &self.arguments, &self.environment);
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => worst = error,
                _ => return error,
            }
        }
        worst
    }
}

/// Where a command is looked for. A name with a slash is a path; empty entries of PATH,
/// which would mean the working directory, are not used.
fn candidates(name: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let directories =
        path.split(|byte| *byte == b':').filter(|directory| directory.starts_with(b"/"));
    directories.map(|directory| [directory, b"/", name].concat()).collect()
}

fn strings(bytes: &[Vec<u8>]) -> Result<Vec<CString>> {
    let string = |bytes: &Vec<u8>| {
        CString::new(bytes.clone()).map_err(|_| {
            Error::Invalid(format!("{:?} has a NUL byte", String::from_utf8_lossy(bytes)))
        })
    };
    bytes.iter().map(string).collect()
}

/// Sets limits. One that is above what we may give is cut, and the cut is told.
///
/// # Errors
/// Those of setrlimit(2) but EPERM.
pub fn set_rlimits(rlimits: &[spec::Rlimit], cuts: &mut Vec<String>) -> Result<()> {
    for rlimit in rlimits {
        let Some((resource, name)) = resource(rlimit.resource) else {
            return Err(Error::Invalid(format!("there is no resource limit {}", rlimit.resource)));
        };
        let limit = |value: u64| (value != u64::MAX).then_some(value);
        let wanted = Rlimit { current: limit(rlimit.soft), maximum: limit(rlimit.hard) };
        match rustix::process::setrlimit(resource, wanted) {
            Ok(()) => {}
            Err(rustix::io::Errno::PERM) => {
                let ours = rustix::process::getrlimit(resource);
                let current = least(wanted.current, ours.maximum);
                rustix::process::setrlimit(resource, Rlimit { current, maximum: ours.maximum })
                    .doing(|| format!("limit {name}"))?;
                cuts.push(format!(
                    "limit {name} is {:?}, not {:?}: the node's own is no higher",
                    ours.maximum, wanted.maximum
                ));
            }
            Err(errno) => return Err(errno).doing(|| format!("limit {name} to {}", rlimit.hard)),
        }
    }
    Ok(())
}

/// None is infinity.
fn least(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The kernel's numbers (asm-generic/resource.h) and names.
fn resource(number: u32) -> Option<(Resource, &'static str)> {
    const ALL: [(Resource, &str); 16] = [
        (Resource::Cpu, "cpu"),
        (Resource::Fsize, "fsize"),
        (Resource::Data, "data"),
        (Resource::Stack, "stack"),
        (Resource::Core, "core"),
        (Resource::Rss, "rss"),
        (Resource::Nproc, "nproc"),
        (Resource::Nofile, "nofile"),
        (Resource::Memlock, "memlock"),
        (Resource::As, "as"),
        (Resource::Locks, "locks"),
        (Resource::Sigpending, "sigpending"),
        (Resource::Msgqueue, "msgqueue"),
        (Resource::Nice, "nice"),
        (Resource::Rtprio, "rtprio"),
        (Resource::Rttime, "rttime"),
    ];
    ALL.get(usize::try_from(number).ok()?).copied()
}

/// Sets how readily the OOM killer takes the process, while /proc is still the node's.
/// A score lower than we may give stays as it is, and that is told.
///
/// # Errors
/// Those of writing the file but EACCES and EPERM (proc(5)).
pub fn set_oom_score(score: i32, cuts: &mut Vec<String>) -> Result<()> {
    match std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            cuts.push(format!("oom_score_adj is not {score}: lowering it needs CAP_SYS_RESOURCE"));
            Ok(())
        }
        other => other.doing(|| format!("set oom_score_adj to {score}")),
    }
}

/// Sets the label that the next execve takes, while /proc is still the node's.
///
/// # Errors
/// The label or profile does not exist, or the kernel has no such security module.
pub fn set_exec_label(process: &spec::Process) -> Result<()> {
    if !process.apparmor_profile.is_empty() {
        // Kernels with several security modules have a file for each.
        let specific = Path::new("/proc/thread-self/attr/apparmor/exec");
        let file =
            if specific.exists() { specific } else { Path::new("/proc/thread-self/attr/exec") };
        std::fs::write(file, format!("exec {}", process.apparmor_profile))
            .doing(|| format!("set AppArmor profile {}", process.apparmor_profile))?;
    }
    if !process.selinux_label.is_empty() {
        std::fs::write("/proc/thread-self/attr/exec", &process.selinux_label)
            .doing(|| format!("set SELinux label {}", process.selinux_label))?;
    }
    Ok(())
}

/// Enters the working directory, inside the root and never in /proc, where a link may lead out of it.
///
/// # Errors
/// Those of the calls; `Invalid` for a directory in /proc or outside the root.
pub fn enter_directory(root: &Root, process: &spec::Process) -> Result<()> {
    let doing = || format!("enter working directory {}", process.cwd);
    let path = Path::new(&process.cwd);
    let directory = if process.make_cwd {
        root.resolve_or_make(path, Missing::Directory(0o755), None)?
    } else {
        root.resolve(path, OFlags::PATH | OFlags::DIRECTORY)?
    };
    if rustix::fs::fstatfs(&directory).doing(doing)?.f_type == PROC_SUPER_MAGIC {
        return Err(Error::Invalid(format!("working directory {} is in /proc", process.cwd)));
    }
    rustix::process::fchdir(&directory).doing(doing)?;
    let here = rustix::process::getcwd(Vec::new()).doing(doing)?;
    if here.to_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(Error::Invalid(format!("working directory {} is outside the container", process.cwd)))
}

/// Takes the identity, and keeps of the capabilities what a filter may need until [`Program::run`].
///
/// # Errors
/// Those of the calls.
pub fn take_identity(
    process: &spec::Process,
    identity: &Identity,
    grantable: Grantable,
    cuts: &mut Vec<String>,
) -> Result<()> {
    let wanted = process.capabilities.unwrap_or_default();
    let missing = (wanted.bounding | wanted.permitted | wanted.ambient) & !grantable.bounding;
    if missing != 0 {
        let names = crate::capabilities::names(missing).join(", ");
        cuts.push(format!("not granted, for berth itself does not have it: {names}"));
    }
    for number in 0..grantable.known {
        let bit = CapabilitySet::from_bits_retain(1 << number);
        if wanted.bounding & (1 << number) == 0 && grantable.bounding & (1 << number) != 0 {
            rustix::thread::remove_capability_from_bounding_set(bit)
                .doing(|| "drop a capability for good")?;
        }
    }
    rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::KEEP_CAPS)
        .doing(|| "keep capabilities across the change of user")?;
    set_ids(identity)?;
    let held = rustix::thread::capabilities(None).doing(|| "read capabilities")?.permitted;
    let inheritable = CapabilitySet::from_bits_retain(wanted.inheritable & grantable.bounding);
    let sets = CapabilitySets { effective: held, permitted: held, inheritable };
    rustix::thread::set_capabilities(None, sets).doing(|| "set inheritable capabilities")?;
    rustix::thread::clear_ambient_capability_set().doing(|| "clear ambient capabilities")?;
    for number in (0..grantable.known)
        .filter(|number| wanted.ambient & grantable.bounding & (1 << number) != 0)
    {
        let bit = CapabilitySet::from_bits_retain(1 << number);
        rustix::thread::configure_capability_in_ambient_set(bit, true)
            .doing(|| "raise an ambient capability")?;
    }
    if process.no_new_privs {
        rustix::thread::set_no_new_privs(true).doing(|| "set no_new_privs")?;
    }
    Ok(())
}

fn set_ids(identity: &Identity) -> Result<()> {
    let groups: Vec<_> =
        identity.groups.iter().map(|gid| rustix::process::Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups).doing(|| format!("set {} groups", groups.len()))?;
    let gid = rustix::process::Gid::from_raw(identity.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .doing(|| format!("become group {}", identity.gid))?;
    let uid = rustix::process::Uid::from_raw(identity.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .doing(|| format!("become user {}", identity.uid))
}

/// The three descriptors of a program.
#[derive(Debug)]
pub struct Stdio<'a> {
    /// Its input.
    pub stdin: BorrowedFd<'a>,
    /// Its output.
    pub stdout: BorrowedFd<'a>,
    /// Its errors.
    pub stderr: BorrowedFd<'a>,
}

/// Makes them 0, 1 and 2. They belong to the user, who may then open /dev/stdout by name.
///
/// # Errors
/// Those of dup3(2).
pub fn set_stdio(stdio: &Stdio<'_>, uid: u32) -> Result<()> {
    for fd in [stdio.stdin, stdio.stdout, stdio.stderr] {
        if uid != 0 && is_pipe(fd) {
            rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None)
                .doing(|| "give a pipe to the user")?;
        }
    }
    rustix::stdio::dup2_stdin(stdio.stdin).doing(|| "set stdin")?;
    rustix::stdio::dup2_stdout(stdio.stdout).doing(|| "set stdout")?;
    rustix::stdio::dup2_stderr(stdio.stderr).doing(|| "set stderr")
}

/// The null device of the container itself, so that nothing of the host shows in
/// /proc/self/fd. None where its /dev/null is missing or something else.
pub fn null_device(root: &Root) -> Option<OwnedFd> {
    let is_null = |fd: &OwnedFd| {
        rustix::fs::fstat(fd).is_ok_and(|stat| {
            let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
            kind == rustix::fs::FileType::CharacterDevice
                && stat.st_rdev == rustix::fs::makedev(1, 3)
        })
    };
    let open = |flags| root.resolve(Path::new("/dev/null"), flags | OFlags::NOFOLLOW).ok();
    // Looked at first: to open another device may do something.
    open(OFlags::PATH).filter(is_null)?;
    open(OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK).filter(is_null)
}

fn is_pipe(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo
    })
}

/// Opens a new terminal of the container's own devpts: master and slave. The slave becomes
/// the controlling terminal; the caller leads a session.
///
/// # Errors
/// Those of the calls; `Invalid` where /dev/pts is no devpts.
pub fn open_terminal(root: &Root, uid: u32, rows: u32, columns: u32) -> Result<(OwnedFd, OwnedFd)> {
    const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
    let doing = || "open a terminal";
    let master = root.resolve(Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY)?;
    if rustix::fs::fstatfs(&master).doing(doing)?.f_type != DEVPTS_SUPER_MAGIC {
        return Err(Error::Invalid(
            "open a terminal: /dev/pts is not a devpts of the container".into(),
        ));
    }
    rustix::pty::unlockpt(&master).doing(doing)?;
    let flags = rustix::pty::OpenptFlags::RDWR
        | rustix::pty::OpenptFlags::NOCTTY
        | rustix::pty::OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).doing(doing)?;
    if rows != 0 && columns != 0 {
        let limit = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let size = rustix::termios::Winsize {
            ws_row: limit(rows),
            ws_col: limit(columns),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size).doing(doing)?;
    }
    if uid != 0 {
        rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None).doing(doing)?;
    }
    rustix::process::ioctl_tiocsctty(slave.as_fd()).doing(|| "take the terminal")?;
    Ok((master, slave))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_candidates(name: &str, path: &str, expected: &[&str]) {
        let found = candidates(name.as_bytes(), path.as_bytes());
        let found: Vec<_> =
            found.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_command_is_looked_for_in_absolute_entries_of_path_only() {
        check_candidates("ls", "/usr/bin:/bin", &["/usr/bin/ls", "/bin/ls"]);
        check_candidates("ls", ":.:bin::/bin", &["/bin/ls"]);
        check_candidates("./ls", "/bin", &["./ls"]);
        check_candidates("/a", "", &["/a"]);
        check_candidates("ls", "", &[]);
    }

    #[test]
    fn what_is_granted_is_part_of_what_the_kernel_knows() {
        let grantable = Grantable::read();
        assert!(grantable.known >= 41);
        assert_eq!(grantable.bounding >> grantable.known, 0);
    }

    #[test]
    fn an_infinite_limit_is_the_greatest() {
        assert_eq!(least(None, Some(5)), Some(5));
        assert_eq!(least(Some(3), Some(5)), Some(3));
        assert_eq!(least(None, None), None);
    }
}
