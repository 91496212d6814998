//! A further process in a running container: joined to its namespaces by the pidfd of its init.
//!
//! Before: the shim has cloned this process into the container's PID namespace and, on
//! cgroup v2, its cgroup.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::Mode;
use rustix::process::DumpableBehavior;
use rustix::thread::ThreadNameSpaceType;

use crate::child::{Line, Step};
use crate::error::{Doing, Result};
use crate::init::{Streams, become_leader, keep_only, read_filter};
use crate::process::{self, Grantable, Program, Stdio};
use crate::root::Root;
use crate::spec::{self, Attached, reply};
use crate::{cgroup, users};

/// All that an exec is given.
#[derive(Debug)]
pub struct Exec<'a> {
    /// What it becomes.
    pub process: &'a spec::Process,
    /// The container's init.
    pub target: BorrowedFd<'a>,
    /// The cgroup to join, on v1.
    pub cgroup: Option<&'a spec::Cgroup>,
    /// What its program reads and writes.
    pub streams: Streams<'a>,
    /// The null device of the pod.
    pub null: BorrowedFd<'a>,
    /// The seccomp program.
    pub filter: Option<BorrowedFd<'a>>,
    /// What may be granted.
    pub grantable: Grantable,
    /// Rows and columns of a terminal to open.
    pub terminal: Option<(u32, u32)>,
}

/// Runs the exec to its end. Call it in the cloned process.
pub fn run(exec: &Exec<'_>, line: &Line<'_>) -> ! {
    let program = match set_up(exec, line) {
        Ok((program, master)) => {
            if let Some(master) = master {
                line.report(
                    reply::Result::Attached(Attached { terminal: true }),
                    &[master.as_fd()],
                );
            }
            program
        }
        Err(error) => line.fail(&error),
    };
    line.at(Step::Execute);
    let error = program.run();
    line.fail_execute(&error)
}

fn set_up(exec: &Exec<'_>, line: &Line<'_>) -> Result<(Program, Option<OwnedFd>)> {
    let process = exec.process;
    // What was cut for the init was told then.
    let mut cuts = Vec::new();

    line.at(Step::Cgroup);
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .doing(|| "hide the process")?;
    if let Some(group) = exec.cgroup {
        cgroup::join_v1(group)?;
    }
    if let Some(score) = process.oom_score_adj {
        process::set_oom_score(score, &mut cuts)?;
    }
    process::set_exec_label(process)?;
    let mut keep = vec![line.as_fd(), exec.target, exec.null];
    keep.extend(exec.filter);
    keep_only(keep, exec.streams)?;
    become_leader()?;

    line.at(Step::Namespaces);
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    rustix::thread::move_into_thread_name_spaces(exec.target, all)
        .doing(|| "enter the container's namespaces")?;

    line.at(Step::Process);
    let root = Root::open(Path::new("/"))?;
    let identity = users::resolve(&root, process.user.as_ref().unwrap_or(&Default::default()))?;
    let filter = exec.filter.map(read_filter).transpose()?;
    let program = Program::prepare(process, &identity, exec.grantable, filter)?;
    let master = set_streams(exec, &root, identity.uid)?;
    process::enter_directory(&root, process)?;
    process::set_rlimits(&process.rlimits, &mut cuts)?;
    process::take_identity(process, &identity, exec.grantable, &mut cuts)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok((program, master))
}

fn set_streams(exec: &Exec<'_>, root: &Root, uid: u32) -> Result<Option<OwnedFd>> {
    if let Some((rows, columns)) = exec.terminal {
        let (master, slave) = process::open_terminal(root, uid, rows, columns)?;
        let slave = slave.as_fd();
        process::set_stdio(&Stdio { stdin: slave, stdout: slave, stderr: slave }, uid)?;
        return Ok(Some(master));
    }
    let own = process::null_device(root);
    let null = own.as_ref().map_or(exec.null, AsFd::as_fd);
    let Streams { stdin, stdout, stderr } = exec.streams;
    let all = Stdio {
        stdin: stdin.unwrap_or(null),
        stdout: stdout.unwrap_or(null),
        stderr: stderr.unwrap_or(null),
    };
    process::set_stdio(&all, uid)?;
    Ok(None)
}
