//! The profile for containers that ask for no other.
//!
//! It allows what programs need and refuses what reaches far into the kernel for little use. No
//! call is allowed here that the default of docker or of containerd (2026) would refuse; where
//! those two differ, the stricter one is followed. Stricter than both:
//!
//! - `socket` looks at the lower half of the address family only, as the kernel does. Docker and
//!   containerd compare all 64 bits with "less than 38, 39, or greater than 40", so a set bit 32
//!   takes a call around their ban of `AF_ALG`.
//! - `socketcall(SYS_SOCKET)` of 32-bit x86 is refused, since its address family lies in memory
//!   ([`Socketcall`]).
//!
//! Every call of every table is in exactly one list below; a test holds us to it.

use std::collections::BTreeSet;

use super::filter::{Action, Arch, Condition, Operator, Rule};
use super::profile::{Architectures, ENOSYS, Guard, GuardedRule, Profile};
use super::words;

/// "Operation not permitted".
const EPERM: u16 = 1;
/// "Address family not supported by protocol", which programs that try a family expect.
const EAFNOSUPPORT: u16 = 97;

/// The kernel's crypto through a socket: a large surface with a record of page cache writes
/// (CVE-2026-31431), and libraries do without it.
const AF_ALG: u64 = 38;
/// Sockets to the hypervisor and its other guests, which no network namespace confines.
const AF_VSOCK: u64 = 40;

/// All that make a namespace: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
/// (CLONE_NEWTIME is not for clone; its bit is part of the exit signal there.)
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;

/// Values of `personality` that do no harm: Linux, Linux with 32-bit addresses, the same two as
/// uname would show a 2.6 kernel, and the question what is set.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Whether 32-bit x86 programs may make sockets by `socketcall(2)`.
///
/// A filter cannot see which family they ask for. Programs on glibc for i386 and Go programs for
/// 386 know no other way to a socket, and 64-bit programs never need it. Where such old programs
/// must run and the kernel is patched or an LSM denies `AF_ALG`, allow it; else better not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socketcall {
    /// `socketcall(SYS_SOCKET)` fails with EPERM. All its other calls are allowed.
    Refused,
    /// All of `socketcall` is allowed, `AF_ALG` and `AF_VSOCK` included.
    Allowed,
}

/// The files and directories of the container, and what is open.
const FILES: &str = "
    _llseek _newselect access cachestat chdir chmod chown chown32 close close_range copy_file_range
    creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
    epoll_wait epoll_wait_old eventfd eventfd2 faccessat faccessat2 fadvise64 fadvise64_64 fallocate
    fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync
    fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64
    fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents
    io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl lchown lchown32 lgetxattr link
    linkat listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64
    mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2 poll
    ppoll ppoll_time64 pread64 preadv preadv2 pselect6 pselect6_time64 pwrite64 pwritev pwritev2
    read readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2
    rmdir select sendfile sendfile64 setxattr setxattrat signalfd signalfd4 splice stat stat64
    statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs tee truncate
    truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev
";

/// The process's own memory.
const MEMORY: &str = "
    brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall
    mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free
    pkey_mprotect remap_file_pages
";

/// Processes and threads, their identity, limits and scheduling. Capabilities guard what needs
/// guarding here.
const PROCESSES: &str = "
    capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait
    futex_waitv futex_wake get_robust_list get_thread_area getcpu getegid getegid32 geteuid
    geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid getpriority
    getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid gettid getuid getuid32
    ioprio_get ioprio_set landlock_add_rule landlock_create_ruleset landlock_restrict_self
    pidfd_open prctl prlimit64 process_mrelease restart_syscall rseq sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp set_robust_list set_thread_area
    set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32
    setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid
    setreuid32 setrlimit setsid setuid setuid32 ugetrlimit uretprobe vfork wait4 waitid waitpid
";

/// Signals.
const SIGNALS: &str = "
    kill pause pidfd_send_signal rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack
    sigprocmask sigreturn tgkill tkill
";

/// Clocks and timers. Reading `adjtimex` is common, and setting it takes a capability.
const TIME: &str = "
    adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep
    setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64
    timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 times
";

/// Sockets, but not how one is made, and IPC inside the container's IPC namespace. On 32-bit x86
/// these names also let the same calls through `socketcall` and `ipc`.
const COMMUNICATION: &str = "
    accept accept4 bind connect getpeername getsockname getsockopt ipc listen mq_getsetattr
    mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
    mq_unlink msgctl msgget msgrcv msgsnd recv recvfrom recvmmsg recvmmsg_time64 recvmsg semctl
    semget semop semtimedop semtimedop_time64 send sendmmsg sendmsg sendto setsockopt shmat shmctl
    shmdt shmget shutdown socketpair
";

/// Questions about the machine.
const MACHINE: &str = "getrandom sysinfo uname";

/// What C libraries and 32-bit Arm's own need on Arm.
const ARM: &str = "
    arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2
";

/// Segment registers, for threads and for Wine.
const X86: &str = "arch_prctl modify_ldt";

/// Other processes' memory. Before Linux 4.8 ptrace was a way around the filter.
const TRACING: &str = "process_vm_readv process_vm_writev ptrace";

/// What a capability that the container was given on purpose would be for.
const WITH_CAPABILITY: [(&str, &str); 14] = [
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie
         lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog
         umount umount2 unshare",
    ),
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module"),
    ("CAP_SYS_PACCT", "acct"),
    (
        "CAP_SYS_PTRACE",
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    ),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Calls with rules of their own in [`rules`]: what they may do depends on their arguments.
#[cfg(test)]
const BY_ARGUMENT: &str = "clone clone3 personality socket socketcall";

/// Refused whatever capabilities there are: key rings are not confined to a container; io_uring
/// does calls that no filter sees; userfaultfd holds the kernel up at a place of one's choice;
/// the rest loads kernels, swaps, moves the root, places other processes' pages, belongs to
/// hardware or to a tracer's own trampolines.
const REFUSED: &str = "
    add_key io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load keyctl
    migrate_pages move_pages nfsservctl pciconfig_iobase pciconfig_read pciconfig_write pivot_root
    request_key swapoff swapon uprobe userfaultfd vm86 vm86old
";

/// Of kernels and C libraries long gone, or never more than a number.
const OBSOLETE: &str = "
    _sysctl afs_syscall bdflush break create_module ftime get_kernel_syms get_tls getpmsg gtty idle
    lock mpx nice oldfstat oldlstat oldolduname oldstat olduname prof profil putpmsg query_module
    readdir security sgetmask sigaction signal sigpending sigsuspend ssetmask stty sysfs tuxcall
    ulimit uselib usr26 usr32 ustat vserver
";

/// Too new for our peers to allow. Programs that know these also know how to do without, if they
/// hear that there is no such call.
const TOO_NEW: &str = "file_getattr file_setattr listns open_tree_attr rseq_slice_yield";

/// The profile for containers that ask for no other.
pub fn default_profile() -> Profile {
    default_profile_with(Socketcall::Refused)
}

/// The same, with a choice about 32-bit x86.
pub fn default_profile_with(socketcall: Socketcall) -> Profile {
    let mut rules = rules();
    if socketcall == Socketcall::Allowed {
        rules.push(unguarded("socketcall", Action::Allow, Vec::new()));
    }
    Profile {
        default_action: Action::Errno(EPERM),
        architectures: Architectures::Mapped(vec![
            (Arch::X86_64, vec![Arch::X86, Arch::X32]),
            (Arch::Aarch64, vec![Arch::Arm]),
        ]),
        flags: 0,
        rules,
        listener_path: None,
        listener_metadata: String::new(),
        unknown_syscalls: BTreeSet::new(),
        ignored_fields: Vec::new(),
    }
}

fn rules() -> Vec<GuardedRule> {
    let always = |names| unguarded(names, Action::Allow, Vec::new());
    let mut rules: Vec<GuardedRule> =
        [FILES, MEMORY, PROCESSES, SIGNALS, TIME, COMMUNICATION, MACHINE].map(always).into();

    let on = |arch| Guard { arches: Some(vec![arch]), ..Guard::default() };
    rules.push(GuardedRule { includes: on(Arch::Aarch64), ..always(ARM) });
    rules.push(GuardedRule { includes: on(Arch::X86_64), ..always(X86) });
    let since_4_8 = Guard { min_kernel: Some((4, 8)), ..Guard::default() };
    rules.push(GuardedRule { includes: since_4_8, ..always(TRACING) });

    for (name, calls) in WITH_CAPABILITY {
        rules.push(GuardedRule { includes: with(name), ..always(calls) });
    }
    rules.extend(namespaces());
    rules.extend(sockets());
    for value in PERSONALITIES {
        let exactly = condition(Operator::Equal, value, 0);
        rules.push(unguarded("personality", Action::Allow, vec![exactly]));
    }

    // These two say what happens anyway; naming the calls keeps them from being news, which would
    // get ENOSYS instead.
    rules.push(unguarded(REFUSED, Action::Errno(EPERM), Vec::new()));
    rules.push(unguarded(OBSOLETE, Action::Errno(EPERM), Vec::new()));
    rules.push(unguarded(TOO_NEW, Action::Errno(ENOSYS), Vec::new()));
    rules
}

/// Threads and processes for everybody, new namespaces only with the capability.
fn namespaces() -> [GuardedRule; 2] {
    let none = condition(Operator::MaskedEqual, NAMESPACE_FLAGS, 0);
    // The flags of clone3 lie in memory. Without it a C library uses clone.
    [("clone", Action::Allow, vec![none]), ("clone3", Action::Errno(ENOSYS), Vec::new())].map(
        |(name, action, conditions)| GuardedRule {
            excludes: with("CAP_SYS_ADMIN"),
            ..unguarded(name, action, conditions)
        },
    )
}

/// All families but two. The kernel takes the family as an int, so only 32 bits may count.
fn sockets() -> [GuardedRule; 3] {
    let refused = |family| condition(Operator::MaskedEqual, u64::from(u32::MAX), family);
    // Ranges come after exact values, so this is "all others".
    let any = condition(Operator::GreaterEqual, 0, 0);
    [
        unguarded("socket", Action::Errno(EAFNOSUPPORT), vec![refused(AF_ALG)]),
        unguarded("socket", Action::Errno(EAFNOSUPPORT), vec![refused(AF_VSOCK)]),
        unguarded("socket", Action::Allow, vec![any]),
    ]
}

fn unguarded(names: &str, action: Action, conditions: Vec<Condition>) -> GuardedRule {
    let names = names.split_whitespace().map(str::to_owned).collect();
    GuardedRule {
        rule: Rule { names, action, conditions },
        includes: Guard::default(),
        excludes: Guard::default(),
    }
}

fn with(capability: &str) -> Guard {
    let caps = words::capability(capability).expect("the lists above name real capabilities");
    Guard { caps, ..Guard::default() }
}

/// About the first argument.
fn condition(operator: Operator, value: u64, value_two: u64) -> Condition {
    Condition { index: 0, operator, value, value_two }
}

#[cfg(test)]
#[path = "tests/default.rs"]
mod tests;
