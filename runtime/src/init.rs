//! The init of a container, from clone to execve: each step has a name, and an error ends it there.
//!
//! Before: the shim has cloned this process into the container's PID namespace and, on
//! cgroup v2, its cgroup. Then, top to bottom, as in [`Step`]: take what only the host's
//! mount namespace shows; enter the pod's namespaces; put the root together; become the
//! user; wait for the start; filter and execve.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::Mode;
use rustix::mount::UnmountFlags;
use rustix::process::DumpableBehavior;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::child::{Line, Step};
use crate::error::{Doing, Error, Result};
use crate::process::{self, Grantable, Program, Stdio};
use crate::root::Root;
use crate::spec::{ContainerCreated, ContainerSpec, NamespaceMode, reply};
use crate::users::Identity;
use crate::{cgroup, rootfs, users};

/// Bytes of the longest program that the kernel takes.
const MAX_FILTER: usize =
    crate::seccomp::MAX_INSTRUCTIONS * size_of::<crate::seccomp::Instruction>();

/// What the pod lends to its containers, as descriptors. None where the pod shares the node's.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    /// The mount namespace from which containers start.
    pub holder: BorrowedFd<'a>,
    /// The network namespace.
    pub network: Option<BorrowedFd<'a>>,
    /// The IPC namespace.
    pub ipc: Option<BorrowedFd<'a>>,
    /// The UTS namespace.
    pub uts: Option<BorrowedFd<'a>>,
}

/// Descriptors that the program gets. None: the null device; with a terminal none is used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Streams<'a> {
    /// Read side of its input.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Write side of its output.
    pub stdout: Option<BorrowedFd<'a>>,
    /// Write side of its errors.
    pub stderr: Option<BorrowedFd<'a>>,
}

/// All that init is given.
#[derive(Debug)]
pub struct Init<'a> {
    /// What it becomes.
    pub spec: &'a ContainerSpec,
    /// Where it lives.
    pub pod: Pod<'a>,
    /// What its program reads and writes.
    pub streams: Streams<'a>,
    /// The null device of the pod.
    pub null: BorrowedFd<'a>,
    /// The seccomp program.
    pub filter: Option<BorrowedFd<'a>>,
    /// What may be granted.
    pub grantable: Grantable,
}

/// Runs init to its end. Call it in the cloned process.
pub fn run(init: &Init<'_>, line: &Line<'_>) -> ! {
    let (program, created, terminal) = match set_up(init, line) {
        Ok(ready) => ready,
        Err(error) => line.fail(&error),
    };
    line.at(Step::Wait);
    let master: Vec<_> = terminal.iter().map(AsFd::as_fd).collect();
    line.report(reply::Result::ContainerCreated(created), &master);
    drop(terminal);
    if line.wait().is_err() {
        // Nobody is left who could start it.
        crate::sys::clone::exit_now(1);
    }
    line.at(Step::Execute);
    let error = program.run();
    line.fail_execute(&error)
}

fn set_up(
    init: &Init<'_>,
    line: &Line<'_>,
) -> Result<(Program, ContainerCreated, Option<OwnedFd>)> {
    let spec = init.spec;
    let mut cuts = Vec::new();
    let process =
        spec.process.as_ref().ok_or_else(|| Error::Invalid("no process in the spec".into()))?;
    let layers = spec
        .rootfs
        .as_ref()
        .ok_or_else(|| Error::Invalid("no root file system in the spec".into()))?;

    line.at(Step::Cgroup);
    begin(init, line, &mut cuts)?;

    line.at(Step::Sources);
    let steps = rootfs::plan(spec);
    let mut taken = rootfs::take(layers, &steps)?;
    let filter = init.filter.map(read_filter).transpose()?;

    line.at(Step::Namespaces);
    enter_namespaces(init)?;

    line.at(Step::Root);
    let root = rootfs::attach_root(&mut taken, layers)?;
    let identity = users::resolve(&root, process.user.as_ref().unwrap_or(&Default::default()))?;

    line.at(Step::Mounts);
    rootfs::apply(&root, &steps, &mut taken)?;
    drop(taken);

    line.at(Step::Process);
    let program = Program::prepare(process, &identity, init.grantable, filter)?;
    let terminal = set_terminal_or_stdio(init, &root, &identity)?;

    line.at(Step::Pivot);
    pivot(&root)?;

    line.at(Step::Process);
    process::enter_directory(&root, process)?;
    drop(root);
    process::set_rlimits(&process.rlimits, &mut cuts)?;
    process::take_identity(process, &identity, init.grantable, &mut cuts)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // It may wait for long, inside already: what it needed to get here is not to be found in it.
    let mut keep = vec![line.as_fd()];
    keep.extend(terminal.iter().map(AsFd::as_fd));
    keep.extend([rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()]);
    crate::sys::fds::close_all_but(&keep).doing(|| "close what is the pod's")?;
    let created = ContainerCreated {
        pid: 0,
        uid: identity.uid,
        gid: identity.gid,
        groups: identity.groups,
        cuts,
    };
    Ok((program, created, terminal))
}

/// What is done while this process is still a copy of the shim.
fn begin(init: &Init<'_>, line: &Line<'_>, cuts: &mut Vec<String>) -> Result<()> {
    // Whoever is in the container already must not look into this process once it is inside too.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .doing(|| "hide the process")?;
    if let Some(group) = &init.spec.cgroup {
        cgroup::join_v1(group)?;
    }
    let process = init.spec.process.as_ref();
    if let Some(score) = process.and_then(|process| process.oom_score_adj) {
        process::set_oom_score(score, cuts)?;
    }
    if let Some(process) = process {
        process::set_exec_label(process)?;
    }
    let Pod { holder, network, ipc, uts } = init.pod;
    let mut keep = vec![line.as_fd(), holder, init.null];
    keep.extend([network, ipc, uts, init.filter].into_iter().flatten());
    keep_only(keep, init.streams)?;
    become_leader()?;
    rustix::process::umask(Mode::empty());
    Ok(())
}

/// Closes what is the shim's.
pub(crate) fn keep_only<'a>(mut keep: Vec<BorrowedFd<'a>>, streams: Streams<'a>) -> Result<()> {
    keep.extend([streams.stdin, streams.stdout, streams.stderr].into_iter().flatten());
    crate::sys::fds::close_all_but(&keep).doing(|| "close what is the shim's")
}

/// A session of its own, default signals, no blocked ones, and a keyring that is not the node's.
pub(crate) fn become_leader() -> Result<()> {
    rustix::process::setsid().doing(|| "begin a session")?;
    crate::sys::signals::reset_all();
    nix::sys::signal::SigSet::empty().thread_set_mask().doing(|| "unblock signals")?;
    match crate::sys::keyring::join_new_session() {
        // A kernel without keyrings has none to share.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other.doing(|| "make a session keyring"),
    }
}

pub(crate) fn read_filter(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let doing = || "read the seccomp program";
    let size = rustix::fs::fstat(fd).doing(doing)?.st_size;
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0).min(MAX_FILTER)];
    let mut filled = 0;
    while filled < bytes.len() {
        let offset = filled as u64;
        match rustix::io::pread(fd, &mut bytes[filled..], offset).doing(doing)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn enter_namespaces(init: &Init<'_>) -> Result<()> {
    let modes = init.spec.namespaces.clone().unwrap_or_default();
    let pods = |mode: NamespaceMode| mode == NamespaceMode::Pod;
    let enter = |fd: Option<BorrowedFd<'_>>, kind, name: &str| match fd {
        Some(fd) => rustix::thread::move_into_link_name_space(fd, Some(kind))
            .doing(|| format!("enter the pod's {name} namespace")),
        None => Ok(()),
    };
    enter(
        init.pod.network.filter(|_| pods(modes.network())),
        LinkNameSpaceType::Network,
        "network",
    )?;
    enter(
        init.pod.ipc.filter(|_| pods(modes.ipc())),
        LinkNameSpaceType::InterProcessCommunication,
        "IPC",
    )?;
    let uts = init.pod.uts.filter(|_| pods(modes.uts()));
    enter(uts, LinkNameSpaceType::HostNameAndNISDomainName, "UTS")?;
    rootfs::enter(init.pod.holder)?;
    if modes.cgroup() == NamespaceMode::Container {
        crate::sys::clone::unshare(UnshareFlags::NEWCGROUP).doing(|| "make a cgroup namespace")?;
    }
    Ok(())
}

fn set_terminal_or_stdio(
    init: &Init<'_>,
    root: &Root,
    identity: &Identity,
) -> Result<Option<OwnedFd>> {
    let stdio = init.spec.stdio.clone().unwrap_or_default();
    if stdio.terminal {
        let (master, slave) =
            process::open_terminal(root, identity.uid, stdio.rows, stdio.columns)?;
        let all = Stdio { stdin: slave.as_fd(), stdout: slave.as_fd(), stderr: slave.as_fd() };
        process::set_stdio(&all, identity.uid)?;
        rootfs::bind_console(root, &slave)?;
        return Ok(Some(master));
    }
    let own = process::null_device(root);
    let null = own.as_ref().map_or(init.null, AsFd::as_fd);
    let Streams { stdin, stdout, stderr } = init.streams;
    let all = Stdio {
        stdin: stdin.unwrap_or(null),
        stdout: stdout.unwrap_or(null),
        stderr: stderr.unwrap_or(null),
    };
    process::set_stdio(&all, identity.uid)?;
    Ok(None)
}

/// pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one and is taken off.
fn pivot(root: &Root) -> Result<()> {
    let doing = || "change the root";
    rustix::process::fchdir(root.as_fd()).doing(doing)?;
    rustix::process::pivot_root(".", ".").doing(doing)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).doing(|| "leave the old root")?;
    rustix::process::chdir("/").doing(doing)
}
