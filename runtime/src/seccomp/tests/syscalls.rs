//! The tables of call numbers.

use libseccomp::{ScmpArch, ScmpSyscall};

use crate::seccomp::Arch;
use crate::seccomp::syscalls::{Multiplexed, is_known, multiplexed, number, table};

#[test]
fn tables_are_sorted_and_have_each_number_once() {
    for arch in Arch::ALL {
        let table = table(arch);
        assert!(table.is_sorted_by(|(one, _), (other, _)| one < other), "{arch:?}");
        let mut numbers: Vec<u32> = table.iter().map(|(_, number)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), table.len(), "{arch:?}");
    }
}

#[test]
fn numbers_are_those_that_libseccomp_has_for_the_names_it_knows() {
    let arches = [
        (Arch::X86_64, ScmpArch::X8664),
        (Arch::X86, ScmpArch::X86),
        (Arch::X32, ScmpArch::X32),
        (Arch::Aarch64, ScmpArch::Aarch64),
        (Arch::Arm, ScmpArch::Arm),
    ];
    for (arch, theirs) in arches {
        let mut compared = 0;
        for (name, _) in table(arch) {
            let known = ScmpSyscall::from_name_by_arch(name, theirs);
            let Some(known) = known.ok().and_then(|call| u32::try_from(call.as_raw_syscall()).ok())
            else {
                continue;
            };
            assert_eq!(number(arch, name), Some(known), "{name} of {arch:?}");
            compared += 1;
        }
        // libseccomp 2.5.4 is some 20 calls behind, and has no plain numbers for the 30 that 32-bit
        // x86 has behind multiplexers.
        assert!(compared + 60 > table(arch).len(), "{arch:?}: only {compared} compared");
    }
}

#[test]
fn calls_of_linux_6_18_are_there() {
    let check = |arch, name, expected| assert_eq!(number(arch, name), Some(expected), "{name}");
    for arch in [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm] {
        check(arch, "mseal", 462);
        check(arch, "removexattrat", 466);
        check(arch, "open_tree_attr", 467);
        check(arch, "file_setattr", 469);
    }
    check(Arch::X86_64, "uprobe", 336);
    check(Arch::X32, "readv", 0x4000_0000 + 515);
    check(Arch::X32, "read", 0x4000_0000);
    check(Arch::Arm, "set_tls", 0xf_0005);
    assert_eq!(number(Arch::Aarch64, "open"), None);
}

#[test]
fn calls_behind_the_multiplexers_of_32_bit_x86_are_found() {
    let check = |name, number, call, mask| {
        assert_eq!(
            multiplexed(Arch::X86, name),
            Some(Multiplexed { number, call, mask }),
            "{name}"
        );
        assert_eq!(multiplexed(Arch::X86_64, name), None);
    };
    check("socket", 102, 1, u32::MAX);
    check("accept", 102, 5, u32::MAX);
    check("sendmmsg", 102, 20, u32::MAX);
    check("semop", 117, 1, 0xffff);
    check("shmctl", 117, 24, 0xffff);
    assert_eq!(multiplexed(Arch::X86, "read"), None);
}

#[test]
fn names_of_other_architectures_are_known_and_nonsense_is_not() {
    assert!(is_known("read") && is_known("swapcontext") && is_known("accept") && is_known("vm86"));
    assert!(!is_known("raed") && !is_known("") && !is_known("READ"));
}
