//! Kills a process when it is about to make its Nth call that changes something outside of it: "at any instruction",
//! as far as anybody else can tell.

#![allow(unsafe_code)] // ptrace(2) is pointers and integers.

use std::collections::BTreeSet;
use std::io::{Error, ErrorKind, Result};
use std::mem::MaybeUninit;

/// Options of every thread: its calls are told from its signals, and new threads are followed. A child that is not a
/// thread is not: shims and programs go on.
const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE;

/// Follows a process until its Nth call that changes something, then kills it. Says `attached` when it follows, and in
/// the end the call, or `ended` where there were fewer.
pub(crate) fn strike(process: i32, nth: u64) -> Result<()> {
    attach(process)?;
    super::say("attached");
    let mut left = nth;
    while let Some((thread, status)) = wait()? {
        if !libc::WIFSTOPPED(status) {
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        let event = status >> 16;
        if signal == libc::SIGTRAP | 0x80 {
            if let Some(name) = entered(thread).and_then(|call| change(process, &call)) {
                left = left.saturating_sub(1);
                if left == 0 {
                    // SAFETY: takes integers.
                    unsafe { libc::kill(process, libc::SIGKILL) };
                    println!("{name}");
                    return Ok(());
                }
            }
            resume(thread, 0);
        } else if event != 0 {
            // A new thread, or our own interruption.
            resume(thread, 0);
        } else {
            resume(thread, signal);
        }
    }
    println!("ended");
    Ok(())
}

fn request(request: u32, thread: i32, address: usize, data: usize) -> Result<i64> {
    // SAFETY: the callers pass what ptrace(2) says for their request.
    let result = unsafe { libc::ptrace(request, thread, address, data) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn resume(thread: i32, signal: i32) {
    // One that was killed meanwhile is told by the next wait.
    request(libc::PTRACE_SYSCALL, thread, 0, usize::try_from(signal).unwrap_or(0)).ok();
}

/// All threads, and those that come while we look.
fn attach(process: i32) -> Result<()> {
    let mut known = BTreeSet::new();
    loop {
        let mut new = 0;
        for entry in std::fs::read_dir(format!("/proc/{process}/task"))? {
            let name = entry?.file_name();
            let Ok(thread) = name.to_string_lossy().parse::<i32>() else { continue };
            if !known.insert(thread) {
                continue;
            }
            let options = usize::try_from(OPTIONS).unwrap_or(0);
            match request(libc::PTRACE_SEIZE, thread, 0, options) {
                Ok(_) => {
                    new += 1;
                    request(libc::PTRACE_INTERRUPT, thread, 0, 0)?;
                }
                // It has ended, or we follow it as the child of one that we follow.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EPERM)) => {}
                Err(error) => return Err(error),
            }
        }
        if new == 0 {
            return Ok(());
        }
    }
}

/// None when there is nobody left to follow.
fn wait() -> Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: the status is a valid place.
    let thread = unsafe { libc::waitpid(-1, &mut status, libc::__WALL) };
    if thread >= 0 {
        return Ok(Some((thread, status)));
    }
    let error = Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ECHILD) => Ok(None),
        _ if error.kind() == ErrorKind::Interrupted => Ok(Some((0, 0))),
        _ => Err(error),
    }
}

struct Call {
    number: i64,
    arguments: [u64; 6],
}

/// The call that a stopped thread is about to make; None where it comes back from one.
fn entered(thread: i32) -> Option<Call> {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    request(libc::PTRACE_GET_SYSCALL_INFO, thread, size, info.as_mut_ptr() as usize).ok()?;
    // SAFETY: zeros are valid, and the kernel has filled it.
    let info = unsafe { info.assume_init() };
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: the operation says that this is what is there.
    let entry = unsafe { info.u.entry };
    Some(Call { number: i64::try_from(entry.nr).ok()?, arguments: entry.args })
}

/// The name of a call that others can tell has been made.
fn change(process: i32, call: &Call) -> Option<&'static str> {
    let [first, second, third, ..] = call.arguments;
    let creates = |flags: u64| flags & (libc::O_CREAT | libc::O_TRUNC) as u64 != 0;
    let other_process = |flags: u64| flags & libc::CLONE_THREAD as u64 == 0;
    match call.number {
        libc::SYS_openat if creates(third) => Some("openat"),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open if creates(second) => Some("open"),
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev => {
            is_file(process, first).then_some("write")
        }
        libc::SYS_clone if other_process(first) => Some("clone"),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_vfork => Some("vfork"),
        number => NAMES.iter().find(|(known, _)| *known == number).map(|(_, name)| *name),
    }
}

/// A write to a file changes what a later process finds; one to a pipe, socket or counter goes with the process.
fn is_file(process: i32, fd: u64) -> bool {
    std::fs::read_link(format!("/proc/{process}/fd/{fd}")).is_ok_and(|path| path.is_absolute())
}

/// Calls that always change something, the old names of x86 first.
const NAMES: &[(i64, &str)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, "mkdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rmdir, "rmdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_link, "link"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_symlink, "symlink"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, "chmod"),
    // Its flags are in memory; it counts whether it makes a file or not.
    (libc::SYS_openat2, "openat2"),
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_linkat, "linkat"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_mknodat, "mknodat"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fchmodat, "fchmodat"),
    (libc::SYS_mount, "mount"),
    (libc::SYS_umount2, "umount2"),
    (libc::SYS_move_mount, "move_mount"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_sendto, "sendto"),
    (libc::SYS_bind, "bind"),
    (libc::SYS_connect, "connect"),
    (libc::SYS_listen, "listen"),
    (libc::SYS_kill, "kill"),
    (libc::SYS_pidfd_send_signal, "pidfd_send_signal"),
    (libc::SYS_syncfs, "syncfs"),
];
