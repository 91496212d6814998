//! The compiler against the written order of rules, and its programs against the kernel's checks.

use proptest::prelude::*;

use super::bpf::{self, Call};
use super::reference::verdict;
use super::samples::{self, cases};
use crate::seccomp::{
    Action, Arch, Condition, Error, Filter, Instruction, Operator, Program, Rule, compile,
    default_profile,
};

/// A filter for x86-64 alone that refuses what its rules do not name.
fn filter(rules: Vec<Rule>) -> Filter {
    Filter {
        default_action: Action::Errno(1),
        bad_arch_action: Action::KillThread,
        newer_action: None,
        arches: vec![Arch::X86_64],
        rules,
        flags: 0,
    }
}

fn rule(names: &[&str], action: Action, conditions: &[Condition]) -> Rule {
    let names = names.iter().map(|&name| name.to_owned()).collect();
    Rule { names, action, conditions: conditions.to_vec() }
}

fn condition(index: u8, operator: Operator, value: u64) -> Condition {
    Condition { index, operator, value, value_two: 0 }
}

/// The program says what the reference says, for the calls of all architectures that are chosen.
#[track_caller]
fn check_against_reference(filter: &Filter, choose: impl Fn(&Filter, Arch) -> Vec<Call>) {
    let program = compile(filter).unwrap();
    bpf::check(program.instructions());
    for call in Arch::ALL.iter().flat_map(|&arch| choose(filter, arch)) {
        let expected = verdict(filter, &call);
        let run = bpf::run(program.instructions(), &call);
        assert_eq!(run.value, expected.return_value(), "{call:#x?} {expected:?} {filter:#?}");
    }
}

/// The program gives this call this action.
#[track_caller]
fn check(rules: Vec<Rule>, number: u32, args: [u64; 6], expected: Action) {
    let program = compile(&filter(rules)).unwrap();
    let run = bpf::run(program.instructions(), &Call::new(Arch::X86_64, number, args));
    assert_eq!(run.value, expected.return_value());
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn a_program_does_what_the_order_of_rules_says(filter in samples::filter(30)) {
        check_against_reference(&filter, samples::named_calls);
    }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn a_filter_of_hundreds_of_rules_makes_a_valid_program(filter in samples::filter(400)) {
        match compile(&filter) {
            Ok(program) => bpf::check(program.instructions()),
            Err(error) => prop_assert!(error.to_string().contains("instructions"), "{}", error),
        }
    }

    #[test]
    fn bytes_of_a_program_read_back_as_the_same_program(filter in samples::filter(20)) {
        let program = compile(&filter).unwrap();
        prop_assert_eq!(Program::from_bytes(&program.to_bytes()).unwrap(), program);
    }
}

#[test]
fn a_filter_without_rules_gives_every_call_the_default() {
    check_against_reference(&filter(Vec::new()), samples::all_calls);
}

#[test]
fn the_default_profile_does_what_the_order_of_rules_says() {
    let filter = default_profile().resolve(0xa804_25fb, Arch::X86_64, (6, 18));
    check_against_reference(&filter, samples::all_calls);
}

#[test]
fn a_filter_for_no_architecture_refuses_all_of_them() {
    let filter = Filter { arches: Vec::new(), ..filter(Vec::new()) };
    let program = compile(&filter).unwrap();
    let kill = Instruction { code: 6, jt: 0, jf: 0, k: 0 };
    assert_eq!(program.instructions(), [kill]);
}

#[test]
fn each_action_has_the_kernels_value() {
    let check = |action: Action, expected| assert_eq!(action.return_value(), expected);
    check(Action::KillProcess, libc::SECCOMP_RET_KILL_PROCESS);
    check(Action::KillThread, libc::SECCOMP_RET_KILL_THREAD);
    check(Action::Trap, libc::SECCOMP_RET_TRAP);
    check(Action::Errno(4095), libc::SECCOMP_RET_ERRNO | 4095);
    check(Action::Notify, libc::SECCOMP_RET_USER_NOTIF);
    check(Action::Trace(65535), libc::SECCOMP_RET_TRACE | 65535);
    check(Action::Log, libc::SECCOMP_RET_LOG);
    check(Action::Allow, libc::SECCOMP_RET_ALLOW);
}

/// Whether an argument and a value compare as an operator wants it.
type Compare = fn(u64, u64) -> bool;

#[test]
fn each_operator_compares_all_64_bits() {
    let values = [0, 1, 4, 5, 6, u64::MAX, 1 << 32, (1 << 32) | 5, (1 << 32) - 1, 6 << 32, 5 << 32];
    let compare: [(Operator, Compare); 6] = [
        (Operator::NotEqual, |argument, value| argument != value),
        (Operator::Less, |argument, value| argument < value),
        (Operator::LessEqual, |argument, value| argument <= value),
        (Operator::Equal, |argument, value| argument == value),
        (Operator::GreaterEqual, |argument, value| argument >= value),
        (Operator::Greater, |argument, value| argument > value),
    ];
    for (operator, expected) in compare {
        for value in values {
            for argument in values {
                let allow = rule(&["ioctl"], Action::Allow, &[condition(3, operator, value)]);
                let action =
                    if expected(argument, value) { Action::Allow } else { Action::Errno(1) };
                check(vec![allow], 16, [7, 7, 7, argument, 7, 7], action);
            }
        }
    }
}

#[test]
fn a_masked_comparison_looks_at_the_mask_only() {
    let masked = |mask, value_two| {
        let condition =
            Condition { index: 0, operator: Operator::MaskedEqual, value: mask, value_two };
        vec![rule(&["clone"], Action::Allow, &[condition])]
    };
    let flags = |flags| [flags, 0, 0, 0, 0, 0];
    check(masked(0x7e02_0000, 0), 56, flags(0x0102_0300), Action::Errno(1));
    check(masked(0x7e02_0000, 0), 56, flags(0xffff_ffff_0100_0f00), Action::Allow);
    check(masked(0xff00_0000_00ff, 0x1200_0000_0034), 56, flags(0x1212_0000_5634), Action::Allow);
    check(
        masked(0xff00_0000_00ff, 0x1200_0000_0034),
        56,
        flags(0x1212_0000_5635),
        Action::Errno(1),
    );
    check(
        masked(0xff00_0000_00ff, 0x1200_0000_0034),
        56,
        flags(0x1312_0000_5634),
        Action::Errno(1),
    );
}

#[test]
fn comparisons_of_different_arguments_must_all_hold() {
    let both = [condition(0, Operator::Equal, 16), condition(2, Operator::Equal, 9)];
    let rules = || vec![rule(&["socket"], Action::Allow, &both)];
    check(rules(), 41, [16, 3, 9, 0, 0, 0], Action::Allow);
    check(rules(), 41, [16, 3, 8, 0, 0, 0], Action::Errno(1));
    check(rules(), 41, [17, 3, 9, 0, 0, 0], Action::Errno(1));
}

#[test]
fn of_rules_for_the_same_call_one_without_conditions_decides() {
    let two = || rule(&["ioctl"], Action::Errno(2), &[condition(0, Operator::Equal, 2)]);
    let all = || rule(&["ioctl"], Action::Allow, &[]);
    check(vec![two(), all()], 16, [2, 0, 0, 0, 0, 0], Action::Allow);
    check(vec![all(), two()], 16, [2, 0, 0, 0, 0, 0], Action::Allow);
    check(vec![all(), rule(&["ioctl"], Action::Log, &[])], 16, [0; 6], Action::Allow);
}

#[test]
fn exact_values_are_tried_before_ranges_and_small_ranges_before_large_ones() {
    let rules = || {
        vec![
            rule(&["ioctl"], Action::Errno(3), &[condition(1, Operator::Greater, 3)]),
            rule(&["ioctl"], Action::Errno(9), &[condition(1, Operator::Greater, 9)]),
            rule(&["ioctl"], Action::Errno(7), &[condition(1, Operator::Less, 7)]),
            rule(&["ioctl"], Action::Errno(5), &[condition(1, Operator::Equal, 5)]),
        ]
    };
    check(rules(), 16, [0, 5, 0, 0, 0, 0], Action::Errno(5));
    check(rules(), 16, [0, 6, 0, 0, 0, 0], Action::Errno(7));
    check(rules(), 16, [0, 7, 0, 0, 0, 0], Action::Errno(3));
    check(rules(), 16, [0, 10, 0, 0, 0, 0], Action::Errno(9));
}

#[test]
fn a_rule_with_the_default_action_shields_nothing() {
    let refuse = rule(&["ioctl"], Action::Errno(1), &[condition(1, Operator::Equal, 5)]);
    let allow = rule(&["ioctl"], Action::Allow, &[condition(1, Operator::Less, 9)]);
    check(vec![refuse, allow], 16, [0, 5, 0, 0, 0, 0], Action::Allow);
}

#[test]
fn a_long_list_of_values_is_searched_not_walked() {
    let rules = (0..1000)
        .map(|value| rule(&["ioctl"], Action::Allow, &[condition(1, Operator::Equal, 3 * value)]))
        .collect();
    let program = compile(&filter(rules)).unwrap();
    bpf::check(program.instructions());
    for value in 0..3000 {
        let run =
            bpf::run(program.instructions(), &Call::new(Arch::X86_64, 16, [0, value, 0, 0, 0, 0]));
        let expected = if value % 3 == 0 { Action::Allow } else { Action::Errno(1) };
        assert_eq!(run.value, expected.return_value(), "{value}");
        assert!(run.steps <= 25, "{value} takes {} steps", run.steps);
    }
}

#[test]
fn a_filter_that_is_too_long_is_an_error_not_a_wrong_program() {
    let rules = (0..5000)
        .map(|value| rule(&["ioctl"], Action::Allow, &[condition(1, Operator::Equal, 3 * value)]))
        .collect();
    let error = compile(&filter(rules)).unwrap_err();
    assert!(error.to_string().contains("the kernel takes 1 to 4096"), "{error}");
}

#[test]
fn bytes_that_are_no_program_are_refused() {
    assert!(matches!(Program::from_bytes(&[]), Err(Error::Instructions { count: 0 })));
    assert!(matches!(Program::from_bytes(&[0; 12]), Err(Error::Bytes { count: 12 })));
    let long = vec![0; 8 * 4097];
    assert!(matches!(Program::from_bytes(&long), Err(Error::Instructions { count: 4097 })));
}
