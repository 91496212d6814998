//! Loading a device program and attaching it to a cgroup, by bpf(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::cgroup::devices::Instruction;

/// Commands of bpf(2), from `linux/bpf.h`.
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;

/// `BPF_PROG_TYPE_CGROUP_DEVICE`.
const TYPE_CGROUP_DEVICE: u32 = 15;
/// `BPF_CGROUP_DEVICE`, the place in a cgroup where such programs are attached.
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: others may attach programs here and below, and all are asked.
const ALLOW_MULTI: u32 = 2;

/// A program's name has this many bytes, the last of which is 0 (`BPF_OBJ_NAME_LEN`).
const NAME_BYTES: usize = 16;

/// The licence that the kernel wants to hear, for it has functions that only GPL programs may
/// call. Ours calls none.
const LICENSE: &std::ffi::CStr = c"Apache-2.0";

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest as 0.
#[repr(C)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME_BYTES],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The first fields of `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct AttachAttributes {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE` and returns its descriptor (close-on-exec).
/// The program lives as long as the descriptor or an attachment.
///
/// `name` is for people who list programs: letters, digits, `_` and `.`; from the 16th byte on it is
/// cut. Errors are those of bpf(2): EPERM without CAP_BPF and CAP_NET_ADMIN or CAP_SYS_ADMIN, EACCES
/// or EINVAL for a program that the kernel does not accept, EINVAL for a name.
pub fn prog_load(program: &[Instruction], name: &str) -> io::Result<OwnedFd> {
    let too_long = |_| io::Error::from_raw_os_error(libc::E2BIG);
    let mut prog_name = [0; NAME_BYTES];
    for (to, from) in prog_name[..NAME_BYTES - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let attributes = LoadAttributes {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(too_long)?,
        insns: program.as_ptr().expose_provenance() as u64,
        license: LICENSE.as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name,
        prog_ifindex: 0,
        expected_attach_type: ATTACH_CGROUP_DEVICE,
    };
    // SAFETY: the attributes are a prefix of `union bpf_attr` as `BPF_PROG_LOAD` reads it, and their
    // size is given. `insns` points to `insn_cnt` instructions with the layout of `struct bpf_insn`
    // and `license` to a string with its 0 byte; both live until the call returns, and the kernel
    // reads them and writes to neither. There is no log buffer.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_LOAD,
            &raw const attributes,
            size_of::<LoadAttributes>() as libc::c_ulong,
        )
    };
    let fd = check(fd)?;
    // SAFETY: the kernel has just opened this descriptor for us, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device program to a cgroup of version 2, given its directory. It stays until the
/// cgroup is removed.
///
/// A second program does not replace the first: a device must be allowed by both, and by those of
/// all cgroups above. Errors are those of bpf(2): EBADF if `cgroup` is no such directory, EPERM if a
/// cgroup above forbids programs below it.
pub fn prog_attach_cgroup(program: impl AsFd, cgroup: impl AsFd) -> io::Result<()> {
    let number = |fd: RawFd| u32::try_from(fd).expect("an open descriptor is not negative");
    let attributes = AttachAttributes {
        target_fd: number(cgroup.as_fd().as_raw_fd()),
        attach_bpf_fd: number(program.as_fd().as_raw_fd()),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: the attributes are a prefix of `union bpf_attr` as `BPF_PROG_ATTACH` reads it, and
    // their size is given; they hold no pointers. Both descriptors are open, for they are borrowed
    // until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &raw const attributes,
            size_of::<AttachAttributes>() as libc::c_ulong,
        )
    };
    check(result).map(drop)
}

fn check(result: libc::c_long) -> io::Result<RawFd> {
    match RawFd::try_from(result) {
        Ok(fd) if fd >= 0 => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::devices::{Rule, program, standard};

    /// The kernel's verifier takes the program. Who may not load programs hears EPERM before it
    /// looks at them, and that is no answer about the program.
    #[track_caller]
    fn check_loads(rules: &[Rule]) {
        match prog_load(&program(rules), "berth_test") {
            Ok(_) => {}
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}"),
        }
    }

    #[test]
    fn the_kernel_accepts_programs_of_all_shapes() {
        check_loads(&[]);
        check_loads(&standard());
        check_loads(&[Rule::ALLOW_ALL]);
        check_loads(&[standard(), vec![Rule::ALLOW_ALL], standard()].concat());
        let partial = [true, false].map(|allow| Rule { allow, write: false, ..Rule::ALLOW_ALL });
        check_loads(&partial);
        let many: Vec<Rule> = (0..300)
            .map(|minor| Rule { major: Some(u32::MAX), minor: Some(minor), ..partial[1] })
            .collect();
        check_loads(&many);
    }

    #[test]
    fn what_is_no_program_or_no_cgroup_is_an_error() {
        let refused = prog_load(&[], "berth_test").unwrap_err().raw_os_error();
        assert!(matches!(refused, Some(libc::E2BIG | libc::EINVAL | libc::EPERM)), "{refused:?}");
        let file = std::fs::File::open("/dev/null").unwrap();
        let refused = prog_attach_cgroup(&file, &file).unwrap_err().raw_os_error();
        assert!(matches!(refused, Some(libc::EINVAL | libc::EBADF | libc::EPERM)), "{refused:?}");
    }
}
