//! New processes: clone3(2).

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Pid;

use super::check;

/// linux/sched.h; the constant of the libc crate does not hold 33 bits.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Proof that the process has one thread, so that a clone of it may go on running any code.
///
/// Neither `Send` nor `Sync`: it stays with the thread that took it, and whoever holds it starts no other.
#[derive(Debug, Clone, Copy)]
pub struct SingleThread(PhantomData<*const ()>);

impl SingleThread {
    /// Looks once at /proc/self/task.
    ///
    /// # Errors
    /// `Unsupported` where there are several threads; those of reading the directory.
    pub fn prove() -> io::Result<SingleThread> {
        let threads = std::fs::read_dir("/proc/self/task")?.count();
        if threads == 1 {
            Ok(SingleThread(PhantomData))
        } else {
            Err(io::Error::new(io::ErrorKind::Unsupported, format!("{threads} threads, not one")))
        }
    }
}

/// Namespaces that the new process gets of its own (clone3's CLONE_NEW* flags).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NewNamespaces {
    /// CLONE_NEWPID: it is pid 1 of a new one.
    pub pid: bool,
}

/// Which side of a clone this is.
#[derive(Debug)]
pub enum Cloned {
    /// The new process. It must not return into the caller's loop, but exec or exit.
    Child,
    /// The old process, with the pid of the new one as seen from here, and a descriptor of it.
    Parent(Pid, OwnedFd),
}

/// Makes a copy of this process. The parent is told of its end by SIGCHLD. `cgroup` is
/// a directory of cgroup v2 in which it starts (CLONE_INTO_CGROUP), which saves a move.
///
/// # Errors
/// Those of clone3(2): EAGAIN at a limit of processes, EBUSY or EOPNOTSUPP for a cgroup that takes none.
pub fn clone(
    _: SingleThread,
    new: NewNamespaces,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    let mut flags = libc::CLONE_PIDFD;
    if new.pid {
        flags |= libc::CLONE_NEWPID;
    }
    // SAFETY: clone_args is plain integers, for which zero is valid and means "not used".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.cast_unsigned());
    args.pidfd = (&raw mut pidfd).addr() as u64;
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: the arguments are valid and outlive the call; without CLONE_VM the child has its own copy of
    // memory, and the proof says that no other thread's locks are lost in it.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>())
    })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel has written a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .expect("the kernel's pids are positive ints");
    Ok(Cloned::Parent(pid, pidfd))
}

/// Ends the process at once, without running anything on the way out.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any code and does not return.
    unsafe { libc::_exit(code) }
}

/// Gives the process namespaces of its own.
///
/// # Errors
/// Those of unshare(2).
pub fn unshare(flags: rustix::thread::UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: only CLONE_FILES is dangerous, for descriptors that other threads use; it is taken out.
    unsafe { rustix::thread::unshare_unsafe(flags - rustix::thread::UnshareFlags::FILES) }
}
