//! System calls that the standard library lacks.

#![allow(unsafe_code)] // A test program without a crate of wrappers, so that it stays small.

use std::ffi::CString;
use std::io::{Error, Result};
use std::mem::MaybeUninit;

fn check(result: i64) -> Result<i64> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(Error::other)
}

fn signal_set(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset fills the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: it was filled just now.
    let mut set = unsafe { set.assume_init() };
    for signal in signals {
        // SAFETY: the set is a valid one; a wrong number is refused.
        unsafe { libc::sigaddset(&mut set, *signal) };
    }
    set
}

/// Holds signals back.
pub(crate) fn block(signals: &[i32]) -> Result<()> {
    let set = signal_set(signals);
    // SAFETY: the set is a valid one, the old one is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) }.into())
        .map(drop)
}

/// Waits for one of the signals, which are held back, and returns its number.
pub(crate) fn wait_for(signals: &[i32]) -> Result<i32> {
    block(signals)?;
    let set = signal_set(signals);
    // SAFETY: the set is a valid one, details are not asked for.
    Ok(unsafe { libc::sigwaitinfo(&set, std::ptr::null_mut()) })
}

/// Sends a signal to this process, which does with it what the kernel does by default.
pub(crate) fn raise(signal: i32) -> Result<()> {
    // SAFETY: the default action needs no handler. A wrong number is refused by the next call.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: takes an integer.
    check(unsafe { libc::raise(signal) }.into()).map(drop)
}

pub(crate) fn is_terminal(fd: i32) -> bool {
    // SAFETY: takes an integer.
    unsafe { libc::isatty(fd) == 1 }
}

pub(crate) fn effective_user() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// f_type of statfs(2).
pub(crate) fn file_system_magic(path: &str) -> Result<i64> {
    let path = c_string(path)?;
    let mut buffer = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path is a C string, the buffer has the size of the structure.
    check(unsafe { libc::statfs(path.as_ptr(), buffer.as_mut_ptr()) }.into())?;
    // SAFETY: the call has filled it.
    Ok(unsafe { buffer.assume_init() }.f_type)
}

/// The value of an extended attribute.
pub(crate) fn attribute(path: &str, name: &str) -> Result<Vec<u8>> {
    let (path, name) = (c_string(path)?, c_string(name)?);
    let mut value = vec![0u8; 4096];
    // SAFETY: both are C strings, the buffer is as long as said.
    let length = unsafe {
        libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    value.truncate(usize::try_from(length).map_err(|_| Error::last_os_error())?);
    Ok(value)
}

/// Exchanges two names in one step.
pub(crate) fn exchange(one: &str, other: &str) -> Result<()> {
    let (one, other) = (c_string(one)?, c_string(other)?);
    // SAFETY: both are C strings.
    let result = unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            one.as_ptr(),
            libc::AT_FDCWD,
            other.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    check(result.into()).map(drop)
}

/// A system call with up to five numbers; a path goes as its address.
pub(crate) fn call(number: i64, args: [i64; 5]) -> Result<i64> {
    let [a, b, c, d, e] = args;
    // SAFETY: the callers pass numbers, or addresses of what outlives the call.
    check(unsafe { libc::syscall(number, a, b, c, d, e) })
}

/// socket(2) by the table of 32-bit x86, which a filter must know too. Returns what the kernel returns.
#[cfg(target_arch = "x86_64")]
pub(crate) fn socket_i386(domain: u32, kind: u32) -> i32 {
    const SOCKET: u32 = 359;
    let result: u32;
    // SAFETY: the call takes three numbers; rbx, which the compiler keeps for itself, is put back.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "mov ebx, {domain:e}",
            "int 0x80",
            "pop rbx",
            domain = in(reg) domain,
            inlateout("eax") SOCKET => result,
            in("ecx") kind,
            in("edx") 0,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result.cast_signed()
}
