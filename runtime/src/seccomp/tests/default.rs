//! What the default profile lets through, and that it is never more than our peers do.

use std::collections::BTreeMap;

use super::*;
use crate::seccomp::syscalls::{number, table};
use crate::seccomp::tests::bpf::{self, Call, Run};
use crate::seccomp::{Program, compile};

/// What docker's and containerd's defaults both let everybody do whatever the arguments, as of
/// docker 29.5 and containerd 2.3: names, for comparison.
const PEERS_ALLOW: &str = "
    _llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset
    chdir chmod chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64
    clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range
    connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl
    epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve
    execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark
    fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr
    flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync
    ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake
    futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid
    getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername
    getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid
    getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid
    getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
    io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit
    ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset
    landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr
    listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2
    mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget
    msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open
    openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free
    pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64
    process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink
    readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr
    removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
    semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list
    set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
    setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid
    setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid
    setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd
    signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64
    statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat
    uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write
    writev
";

const CAP_SYS_ADMIN: u64 = 1 << 21;

fn names(list: &str) -> impl Iterator<Item = &str> {
    list.split_whitespace()
}

fn program(profile: &Profile, caps: u64, native: Arch) -> Program {
    compile(&profile.resolve(caps, native, (6, 18))).unwrap()
}

fn run(program: &Program, arch: Arch, name: &str, args: [u64; 6]) -> Run {
    let number = number(arch, name).unwrap_or_else(|| panic!("{arch:?} has no {name}"));
    bpf::run(program.instructions(), &Call::new(arch, number, args))
}

/// The default profile with these capabilities gives the call this action.
#[track_caller]
fn check(caps: u64, arch: Arch, name: &str, first_argument: u64, expected: Action) {
    let native = if arch.runs_on(Arch::X86_64) { Arch::X86_64 } else { Arch::Aarch64 };
    let program = program(&default_profile(), caps, native);
    let run = run(&program, arch, name, [first_argument, 0, 0, 0, 0, 0]);
    assert_eq!(run.value, expected.return_value(), "{name} of {arch:?}");
}

const REFUSE: Action = Action::Errno(EPERM);

#[test]
fn every_call_of_every_table_is_in_exactly_one_list() {
    let mut lists: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut add = |label, list: &'static str| {
        for name in names(list) {
            lists.entry(name).or_default().push(label);
        }
    };
    for list in [FILES, MEMORY, PROCESSES, SIGNALS, TIME, COMMUNICATION, MACHINE, ARM, X86] {
        add("allowed", list);
    }
    add("refused", REFUSED);
    add("obsolete", OBSOLETE);
    add("too new", TOO_NEW);
    add("by argument", BY_ARGUMENT);
    add("tracing", TRACING);
    for (_, list) in WITH_CAPABILITY {
        add("with a capability", list);
    }
    let known = Arch::ALL.iter().flat_map(|&arch| table(arch)).map(|(name, _)| *name);
    for name in known {
        let mut labels = lists.get(name).cloned().unwrap_or_default();
        labels.dedup_by(|one, other| one == other && *one == "with a capability");
        match name {
            // These have rules of both kinds.
            "clone" | "clone3" => assert_eq!(labels, ["by argument", "with a capability"]),
            "ptrace" | "process_vm_readv" | "process_vm_writev" => {
                assert_eq!(labels, ["tracing", "with a capability"]);
            }
            _ => assert_eq!(labels.len(), 1, "{name} is in {labels:?}"),
        }
    }
    for name in lists.keys() {
        assert!(crate::seccomp::syscalls::is_known(name), "{name}");
    }
}

#[test]
fn l_02_nothing_is_allowed_that_docker_or_containerd_refuse() {
    let peers: Vec<&str> = names(PEERS_ALLOW).collect();
    let own = [ARM, X86, TRACING].map(|list| names(list).collect::<Vec<_>>()).concat();
    let arguments = [0, 1, 8, 17, 37, 38, 39, 40, 41, 0x2_0000, 0x2_0008, 0x1000_0000, 0xffff_ffff];
    let arguments = arguments.into_iter().flat_map(|low| [low, low | 1 << 32, low | 1 << 63]);
    let arguments: Vec<u64> = arguments.collect();
    for arch in Arch::ALL {
        let native = if arch.runs_on(Arch::X86_64) { Arch::X86_64 } else { Arch::Aarch64 };
        let program = program(&default_profile(), 0, native);
        for (name, _) in table(arch) {
            for &argument in &arguments {
                let run = run(&program, arch, name, [argument, 0, 0, 0, 0, 0]);
                // 32-bit ABIs see the lower half, in our filter and in theirs.
                let wide = matches!(arch, Arch::X86_64 | Arch::Aarch64);
                let seen = if wide { argument } else { argument & 0xffff_ffff };
                let theirs = match *name {
                    "socket" => seen < 38 || seen == 39 || seen > 40,
                    "clone" => seen & 0x7e02_0000 == 0,
                    "personality" => [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff].contains(&seen),
                    name => peers.contains(&name) || own.contains(&name),
                };
                let ours = run.value == Action::Allow.return_value();
                assert!(theirs || !ours, "{name} of {arch:?} with {argument:#x}");
                // And it is a profile that programs can live with: what both peers allow whatever
                // the arguments, we allow, but for the one hole.
                let hole = *name == "socketcall" && !(2..=20).contains(&seen);
                assert!(ours || hole || !peers.contains(name), "{name} of {arch:?} {argument:#x}");
            }
        }
    }
}

#[test]
fn l_02_dangerous_calls_are_refused_without_capabilities() {
    for name in names(
        "mount umount2 move_mount mount_setattr open_tree fsopen fsconfig fsmount fspick
         pivot_root unshare setns bpf perf_event_open keyctl add_key request_key userfaultfd
         io_uring_setup io_uring_enter io_uring_register chroot reboot kexec_load init_module
         finit_module delete_module swapon acct settimeofday sethostname quotactl syslog
         open_by_handle_at kcmp pidfd_getfd process_madvise mbind move_pages iopl ioperm vhangup",
    ) {
        check(0, Arch::X86_64, name, 0, REFUSE);
    }
}

#[test]
fn a_capability_allows_what_it_is_for_and_no_more() {
    let check = |number: u32, name, expected| check(1 << number, Arch::X86_64, name, 0, expected);
    check(21, "mount", Action::Allow);
    check(21, "unshare", Action::Allow);
    check(21, "bpf", Action::Allow);
    check(21, "keyctl", REFUSE);
    check(21, "io_uring_setup", REFUSE);
    check(21, "userfaultfd", REFUSE);
    check(39, "bpf", Action::Allow);
    check(39, "mount", REFUSE);
    check(38, "perf_event_open", Action::Allow);
    check(2, "open_by_handle_at", Action::Allow);
    check(18, "chroot", Action::Allow);
    check(19, "kcmp", Action::Allow);
    check(34, "syslog", Action::Allow);
    check(25, "settimeofday", Action::Allow);
    check(16, "init_module", Action::Allow);
    check(23, "mbind", Action::Allow);
}

#[test]
fn clone_makes_no_namespace_without_the_capability_and_clone3_is_not_there() {
    for arch in Arch::ALL {
        for flag in [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000] {
            check(0, arch, "clone", flag, REFUSE);
            check(CAP_SYS_ADMIN, arch, "clone", flag, Action::Allow);
        }
        check(0, arch, "clone", 0x4000_0000, REFUSE);
        check(0, arch, "clone", 0x3d_0f00, Action::Allow);
        check(0, arch, "clone3", 0, Action::Errno(ENOSYS));
        check(CAP_SYS_ADMIN, arch, "clone3", 0, Action::Allow);
    }
}

#[test]
fn b_07_sockets_to_kernel_crypto_and_hypervisor_are_refused_even_with_high_bits_set() {
    for arch in Arch::ALL {
        for high in [0, 1 << 32, 1 << 63, 0xffff_ffff_0000_0000] {
            check(0, arch, "socket", high | 38, Action::Errno(EAFNOSUPPORT));
            check(u64::MAX, arch, "socket", high | 40, Action::Errno(EAFNOSUPPORT));
        }
        for family in [1, 2, 10, 16, 17, 37, 39, 41] {
            check(0, arch, "socket", family, Action::Allow);
        }
    }
}

#[test]
fn b_07_socketcall_of_32_bit_x86_makes_no_socket_unless_asked_to() {
    check(0, Arch::X86, "socketcall", 0, REFUSE);
    check(0, Arch::X86, "socketcall", 1, REFUSE);
    check(u64::MAX, Arch::X86, "socketcall", 1, REFUSE);
    for call in 2..=20 {
        check(0, Arch::X86, "socketcall", call, Action::Allow);
    }
    let allowed = program(&default_profile_with(Socketcall::Allowed), 0, Arch::X86_64);
    let run = run(&allowed, Arch::X86, "socketcall", [1, 0, 0, 0, 0, 0]);
    assert_eq!(run.value, Action::Allow.return_value());
}

#[test]
fn personality_is_limited_to_harmless_values() {
    for value in PERSONALITIES {
        check(0, Arch::X86_64, "personality", value, Action::Allow);
        check(0, Arch::X86_64, "personality", value | 1 << 40, REFUSE);
    }
    // ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC
    check(0, Arch::X86_64, "personality", 0x4_0000, REFUSE);
    check(0, Arch::X86_64, "personality", 0x40_0000, REFUSE);
}

#[test]
fn tracing_needs_a_kernel_where_it_is_no_way_around_the_filter() {
    let on = |caps, kernel| {
        let program = compile(&default_profile().resolve(caps, Arch::X86_64, kernel)).unwrap();
        run(&program, Arch::X86_64, "ptrace", [0; 6]).value
    };
    assert_eq!(on(0, (4, 7)), REFUSE.return_value());
    assert_eq!(on(0, (4, 8)), Action::Allow.return_value());
    assert_eq!(on(1 << 19, (4, 7)), Action::Allow.return_value());
}

#[test]
fn calls_of_the_future_and_those_too_new_do_not_exist() {
    for name in names(TOO_NEW) {
        check(u64::MAX, Arch::X86_64, name, 0, Action::Errno(ENOSYS));
    }
    let program = program(&default_profile(), 0, Arch::X86_64);
    for number in [472, 1000, 0x3fff_ffff] {
        let run = bpf::run(program.instructions(), &Call::new(Arch::X86_64, number, [0; 6]));
        assert_eq!(run.value, Action::Errno(ENOSYS).return_value(), "{number}");
    }
}

#[test]
fn a_foreign_architecture_ends_the_thread() {
    for (native, foreign) in [(Arch::X86_64, Arch::Aarch64), (Arch::Aarch64, Arch::X86)] {
        let program = program(&default_profile(), u64::MAX, native);
        let run = run(&program, foreign, "read", [0; 6]);
        assert_eq!(run.value, Action::KillThread.return_value());
    }
}

#[test]
fn only_calls_with_conditions_look_at_arguments_so_the_kernel_can_remember_the_others() {
    for arch in Arch::ALL {
        let native = if arch.runs_on(Arch::X86_64) { Arch::X86_64 } else { Arch::Aarch64 };
        let program = program(&default_profile(), 0, native);
        for (name, _) in table(arch) {
            let expected = matches!(*name, "socket" | "clone" | "personality" | "socketcall");
            let run = run(&program, arch, name, [0; 6]);
            assert_eq!(run.saw_arguments, expected, "{name} of {arch:?}");
        }
    }
}
