//! What a hostile container would do.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Error, Result};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::sys;

const AF_ALG: i64 = 38;
const AF_VSOCK: i64 = 40;
const SOCK_SEQPACKET: i64 = 5;
const SOCK_STREAM: i64 = 1;

/// Makes a system call by name: `ok` or the name of the error.
pub(crate) fn outcome(name: &str) -> String {
    match attempt(name) {
        Ok(()) => "ok".into(),
        Err(error) => match error.raw_os_error() {
            Some(libc::EPERM) => "EPERM".into(),
            Some(libc::EACCES) => "EACCES".into(),
            Some(libc::EAFNOSUPPORT) => "EAFNOSUPPORT".into(),
            Some(libc::ENOSYS) => "ENOSYS".into(),
            Some(libc::EROFS) => "EROFS".into(),
            Some(number) => format!("errno {number}"),
            None => error.to_string(),
        },
    }
}

fn attempt(name: &str) -> Result<()> {
    let call = |number: i64, args: [i64; 5]| sys::call(number, args).map(drop);
    match name {
        "af_alg" => call(libc::SYS_socket, [AF_ALG, SOCK_SEQPACKET, 0, 0, 0]),
        "af_vsock" => call(libc::SYS_socket, [AF_VSOCK, SOCK_STREAM, 0, 0, 0]),
        #[cfg(target_arch = "x86_64")]
        "af_alg_i386" => match sys::socket_i386(38, 5) {
            error if error < 0 => Err(Error::from_raw_os_error(-error)),
            _ => Ok(()),
        },
        "mount" => {
            let (kind, at) = (c"tmpfs".as_ptr() as i64, c"/tmp".as_ptr() as i64);
            call(libc::SYS_mount, [kind, at, kind, 0, 0])
        }
        "unshare_user" => call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0]),
        "keyctl" => call(libc::SYS_keyctl, [0, -3, 0, 0, 0]),
        "bpf" => call(libc::SYS_bpf, [0, 0, 0, 0, 0]),
        "mknod" => {
            let device = libc::makedev(8, 0);
            let path = c"/tmp/probe-device".as_ptr() as i64;
            call(
                libc::SYS_mknodat,
                [
                    libc::AT_FDCWD.into(),
                    path,
                    i64::from(libc::S_IFBLK | 0o600),
                    device.cast_signed(),
                    0,
                ],
            )
        }
        "fsopen" => call(libc::SYS_fsopen, [c"tmpfs".as_ptr() as i64, 0, 0, 0, 0]),
        "io_uring" => call(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]),
        "userfaultfd" => call(libc::SYS_userfaultfd, [0, 0, 0, 0, 0]),
        "sethostname" => call(libc::SYS_sethostname, [c"probe".as_ptr() as i64, 5, 0, 0, 0]),
        _ => Err(Error::other("no such attempt")),
    }
}

/// Exchanges two names until it is killed.
pub(crate) fn race(one: &str, other: &str) -> Result<()> {
    loop {
        sys::exchange(one, other)?;
    }
}

/// Tries to open a file for writing in every way.
pub(crate) fn overwrite(file: &str) -> String {
    let mut outcomes = Vec::new();
    for (name, options) in [
        ("write", File::options().write(true).clone()),
        ("append", File::options().append(true).clone()),
        ("truncate", File::options().write(true).truncate(true).clone()),
    ] {
        match options.open(file) {
            Ok(_) => outcomes.push(format!("{name} ok")),
            Err(error) => outcomes.push(format!("{name} {:?}", error.raw_os_error().unwrap_or(0))),
        }
    }
    outcomes.join(", ")
}

/// Looks at every process that appears and says what of it leads out of the container: descriptors of files that are
/// not the container's, a root or working directory under which `file` can be read, a program that is not from the
/// image.
pub(crate) fn hunt(time: Duration, file: &str) -> Result<()> {
    let end = Instant::now() + time;
    let mut found = BTreeSet::new();
    let mut seen = 0u64;
    while Instant::now() < end {
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(pid) = name.parse::<u32>() else { continue };
            if pid != std::process::id() {
                seen += 1;
                look(&entry.path(), file, &mut found);
            }
        }
    }
    println!("looked {seen} times");
    found.iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn look(proc: &Path, file: &str, found: &mut BTreeSet<String>) {
    let known = |target: &str| {
        ["pipe:", "/dev/", "/proc", "anon_inode:[eventpoll]"]
            .iter()
            .any(|start| target.starts_with(start))
    };
    for entry in std::fs::read_dir(proc.join("fd")).into_iter().flatten().flatten() {
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        if !known(&target.to_string_lossy()) {
            found.insert(format!("descriptor {}", target.display()));
        }
        // A directory outside lets one climb to the host's root.
        if File::open(entry.path().join("../../../../../..").join(file.trim_start_matches('/')))
            .is_ok()
        {
            found.insert(format!("host file through descriptor {}", target.display()));
        }
    }
    for way in ["root", "cwd", "cwd/../../../../../.."] {
        if File::open(proc.join(way).join(file.trim_start_matches('/'))).is_ok() {
            found.insert(format!("host file through {way}"));
        }
    }
    let program = std::fs::read_link(proc.join("exe")).ok();
    if let Some(program) = program.filter(|program| !program.starts_with("/bin")) {
        found.insert(format!("program {}", program.display()));
    }
}
