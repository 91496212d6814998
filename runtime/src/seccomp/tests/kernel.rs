//! Filters that this kernel really runs, each on a thread that ends with its test.
//!
//! What a container sees, 32-bit programs among them, is for the tests of the whole daemon.

use std::fs;

use rustix::io::Errno;
use rustix::mount::FsOpenFlags;
use rustix::net::{AddressFamily, SocketType, socket};

use crate::seccomp::{
    Action, Arch, Condition, Filter, Instruction, Operator, Program, Rule, compile, default_profile,
};
use crate::sys::seccomp::{FLAG_LOG, FLAG_NEW_LISTENER, install};

/// Runs `test` on a thread that may install filters, whoever we are.
#[track_caller]
fn confined(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            test();
        });
        thread.join().unwrap();
    });
}

fn native() -> Arch {
    Arch::NATIVE.expect("these tests run on an architecture of ours")
}

fn allow_all_but(names: &[&str], action: Action) -> Filter {
    let names = names.iter().map(|&name| name.to_owned()).collect();
    Filter {
        default_action: Action::Allow,
        bad_arch_action: Action::KillThread,
        newer_action: None,
        arches: vec![native()],
        rules: vec![Rule { names, action, conditions: Vec::new() }],
        flags: 0,
    }
}

#[test]
fn the_default_profile_loads_and_refuses_what_it_says() {
    let filter = default_profile().resolve(0, native(), (6, 18));
    let program = compile(&filter).unwrap();
    confined(|| {
        assert!(install(&program, filter.flags).unwrap().is_none());
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("Seccomp:\t2\n"), "{status}");

        let family = |number| socket(AddressFamily::from_raw(number), SocketType::SEQPACKET, None);
        assert_eq!(family(38).unwrap_err(), Errno::AFNOSUPPORT);
        assert_eq!(family(40).unwrap_err(), Errno::AFNOSUPPORT);
        socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        assert_eq!(rustix::mount::fsopen("tmpfs", FsOpenFlags::empty()).unwrap_err(), Errno::PERM);
        let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
        assert_eq!(unshared, Err(nix::errno::Errno::EPERM));
        // The C library asks for clone3 first and must fall back.
        std::thread::spawn(|| ()).join().unwrap();
    });
}

#[test]
fn conditions_on_real_arguments_decide() {
    let at_least_6 =
        Condition { index: 0, operator: Operator::GreaterEqual, value: 6, value_two: 0 };
    let filter = allow_all_but(&["socket"], Action::Errno(55));
    let rules = vec![Rule { conditions: vec![at_least_6], ..filter.rules[0].clone() }];
    let program = compile(&Filter { rules, ..filter }).unwrap();
    confined(|| {
        install(&program, 0).unwrap();
        socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        let refused = socket(AddressFamily::from_raw(6), SocketType::STREAM, None).unwrap_err();
        assert_eq!(refused.raw_os_error(), 55);
    });
}

#[test]
fn a_filter_that_notifies_comes_with_a_descriptor_to_answer_on() {
    let program = compile(&allow_all_but(&["mkdirat"], Action::Notify)).unwrap();
    confined(|| {
        let listener = install(&program, FLAG_NEW_LISTENER | FLAG_LOG).unwrap().unwrap();
        let flags = rustix::io::fcntl_getfd(&listener).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    });
}

#[test]
fn a_program_that_the_kernel_does_not_know_is_an_error() {
    let unknown = Instruction { code: 0xffff, jt: 0, jf: 0, k: 0 };
    let program = Program::new(vec![unknown]).unwrap();
    confined(|| {
        let error = install(&program, 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    });
}
