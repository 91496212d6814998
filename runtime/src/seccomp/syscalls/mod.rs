//! Which number a system call has on which architecture.
//!
//! The tables hold what the kernel's own headers say (`asm/unistd_64.h` and its siblings, as of
//! Linux 7.2, so all of 6.18 is in them). One file per architecture and one call per line, so a
//! new kernel is a diff of a few lines. Names are the kernel's; those of the 32-bit x86 calls that
//! exist only behind `socketcall` and `ipc` are in [`multiplexed`].

mod aarch64;
mod arm;
mod x32;
mod x86;
mod x86_64;

use super::filter::Arch;

/// Set in every call number of the x32 ABI (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// The private calls of 32-bit Arm (`__ARM_NR_BASE`) start here, far above all others.
pub(super) const ARM_PRIVATE: u32 = 0xf_0000;

/// `socketcall(2)` of 32-bit x86.
const X86_SOCKETCALL: u32 = 102;

/// `ipc(2)` of 32-bit x86.
const X86_IPC: u32 = 117;

/// Calls that other architectures have and ours lack: a profile may name them, and nobody needs
/// to hear that they do not exist here.
const ELSEWHERE: &[&str] = &[
    "atomic_barrier",
    "atomic_cmpxchg_32",
    "cachectl",
    "getpagesize",
    "multiplexer",
    "riscv_flush_icache",
    "riscv_hwprobe",
    "rtas",
    "s390_guarded_storage",
    "s390_pci_mmio_read",
    "s390_pci_mmio_write",
    "s390_runtime_instr",
    "s390_sthyi",
    "spu_create",
    "spu_run",
    "subpage_prot",
    "swapcontext",
    "switch_endian",
    "sync_file_range2",
    "sys_debug_setcontext",
    "syscall",
    "sysmips",
    "timerfd",
];

/// One call of a multiplexer: `socketcall(call, args)` or `ipc(call, ...)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Multiplexed {
    /// Number of the multiplexer itself.
    pub(super) number: u32,
    /// The value of its first argument that stands for the call.
    pub(super) call: u32,
    /// Bits of the first argument that the kernel looks at: `ipc` takes a version in the upper
    /// half, which must not hide the call.
    pub(super) mask: u32,
}

/// The names of one architecture, sorted, with their numbers (x32 without its bit).
pub(super) fn table(arch: Arch) -> &'static [(&'static str, u32)] {
    match arch {
        Arch::X86_64 => x86_64::TABLE,
        Arch::X86 => x86::TABLE,
        Arch::X32 => x32::TABLE,
        Arch::Aarch64 => aarch64::TABLE,
        Arch::Arm => arm::TABLE,
    }
}

/// What the kernel puts into `seccomp_data.nr` for the call, if the architecture has it.
pub(super) fn number(arch: Arch, name: &str) -> Option<u32> {
    let table = table(arch);
    let at = table.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
    Some(if arch == Arch::X32 { table[at].1 | X32_BIT } else { table[at].1 })
}

/// Whether any architecture of Linux has a call of this name.
pub(super) fn is_known(name: &str) -> bool {
    Arch::ALL.iter().any(|&arch| number(arch, name).is_some() || multiplexed(arch, name).is_some())
        || ELSEWHERE.contains(&name)
}

/// How 32-bit x86 reaches the call through a multiplexer, if it does. Old programs and most C
/// libraries use no other way there.
pub(super) fn multiplexed(arch: Arch, name: &str) -> Option<Multiplexed> {
    if arch != Arch::X86 {
        return None;
    }
    if let Some(call) = socketcall(name) {
        return Some(Multiplexed { number: X86_SOCKETCALL, call, mask: u32::MAX });
    }
    ipc(name).map(|call| Multiplexed { number: X86_IPC, call, mask: 0xffff })
}

/// `SYS_SOCKET` and so on of `linux/net.h`.
fn socketcall(name: &str) -> Option<u32> {
    const CALLS: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    (1..).zip(CALLS).find(|(_, call)| *call == name).map(|(number, _)| number)
}

/// `SEMOP` and so on of `linux/ipc.h`.
fn ipc(name: &str) -> Option<u32> {
    let call = match name {
        "semop" => 1,
        "semget" => 2,
        "semctl" => 3,
        "semtimedop" => 4,
        "msgsnd" => 11,
        "msgrcv" => 12,
        "msgget" => 13,
        "msgctl" => 14,
        "shmat" => 21,
        "shmdt" => 22,
        "shmget" => 23,
        "shmctl" => 24,
        _ => return None,
    };
    Some(call)
}
