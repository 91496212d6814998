//! Calls and filters to try: every number, and arguments around whatever a filter compares with.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::sample::select;

use super::bpf::Call;
use crate::seccomp::syscalls::{ARM_PRIVATE, X32_BIT, multiplexed, number};
use crate::seccomp::{Action, Arch, Condition, Filter, Operator, Rule};

/// The most argument lists tried for one number.
const MOST_ARGUMENTS: usize = 200;

/// Calls of all numbers of an architecture, foreign and impossible ones too.
pub(super) fn all_calls(filter: &Filter, arch: Arch) -> Vec<Call> {
    let base = if arch == Arch::X32 { X32_BIT } else { 0 };
    let mut numbers = edges();
    numbers.extend((0..=600).map(|number| base + number));
    calls(filter, arch, numbers)
}

/// Calls of the numbers that the filter names, of their neighbours and of the edges.
pub(super) fn named_calls(filter: &Filter, arch: Arch) -> Vec<Call> {
    let mut numbers = edges();
    numbers.extend(multiplexed_numbers(arch));
    for name in filter.rules.iter().flat_map(|rule| &rule.names) {
        if let Some(number) = number(arch, name) {
            numbers.extend([number.saturating_sub(1), number, number + 1]);
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    calls(filter, arch, numbers)
}

fn edges() -> Vec<u32> {
    let mut edges: Vec<u32> = (ARM_PRIVATE - 4..ARM_PRIVATE + 12).collect();
    edges.extend([0, X32_BIT - 1, X32_BIT, X32_BIT + 1, 0x7fff_ffff, 0x8000_0000]);
    edges.extend([u32::MAX - 1, u32::MAX]);
    edges
}

fn calls(filter: &Filter, arch: Arch, numbers: Vec<u32>) -> Vec<Call> {
    let compared = compared(filter, arch);
    let multiplexed = multiplexed_numbers(arch);
    let of_number = |number: u32| {
        let conditions = compared.get(&number).map_or(&[][..], Vec::as_slice);
        let arguments = arguments(conditions, multiplexed.contains(&number));
        arguments.into_iter().map(move |args| Call::new(arch, number, args))
    };
    numbers.into_iter().flat_map(of_number).collect()
}

/// What rules compare the arguments of a number with.
fn compared(filter: &Filter, arch: Arch) -> HashMap<u32, Vec<Condition>> {
    let mut compared: HashMap<u32, Vec<Condition>> = HashMap::new();
    for rule in filter.rules.iter().filter(|rule| !rule.conditions.is_empty()) {
        for name in &rule.names {
            let inner = multiplexed(arch, name).map(|inner| inner.number);
            for number in number(arch, name).into_iter().chain(inner) {
                compared.entry(number).or_default().extend(&rule.conditions);
            }
        }
    }
    compared
}

fn arguments(conditions: &[Condition], is_multiplexer: bool) -> Vec<[u64; 6]> {
    let mut candidates: [Vec<u64>; 6] = std::array::from_fn(|_| vec![0]);
    for condition in conditions {
        candidates[usize::from(condition.index)].extend(around(condition));
    }
    if is_multiplexer {
        candidates[0].extend(0..30);
        candidates[0].extend([1 << 16 | 23, 1 << 32 | 1]);
    }
    for list in &mut candidates {
        list.sort_unstable();
        list.dedup();
    }
    let all: usize = candidates.iter().map(Vec::len).product();
    if all == 1 {
        return vec![[0; 6], [u64::MAX; 6]];
    }
    // All of them if they are few, else some, the same ones each time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..all.min(MOST_ARGUMENTS))
        .map(|at| {
            let mut rest = if all <= MOST_ARGUMENTS { at } else { random(&mut state) };
            std::array::from_fn(|index| {
                let list = &candidates[index];
                let value = list[rest % list.len()];
                rest /= list.len();
                value
            })
        })
        .collect()
}

/// Those of `socketcall` and `ipc`.
pub(super) fn multiplexed_numbers(arch: Arch) -> Vec<u32> {
    ["socket", "shmat"]
        .into_iter()
        .filter_map(|name| multiplexed(arch, name))
        .map(|inner| inner.number)
        .collect()
}

fn random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 16) as usize
}

/// Values at which the condition changes its mind, in either half.
fn around(condition: &Condition) -> Vec<u64> {
    let value = match condition.operator {
        Operator::MaskedEqual => condition.value_two,
        Operator::NotEqual
        | Operator::Less
        | Operator::LessEqual
        | Operator::Equal
        | Operator::GreaterEqual
        | Operator::Greater => condition.value,
    };
    let mut values = vec![u64::MAX, value, value.wrapping_add(1), value.wrapping_sub(1)];
    values.extend([value ^ 1 << 32, value.wrapping_add(1 << 32), value.wrapping_sub(1 << 32)]);
    values.extend([value ^ 1 << 63, value & 0xffff_ffff, !value]);
    if condition.operator == Operator::MaskedEqual {
        values.extend([value & condition.value, value | !condition.value, value ^ condition.value]);
    }
    values
}

/// Cases come from a fresh seed in every run, and a failure prints its filter.
pub(super) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Lists of architectures as profiles have them.
pub(super) fn arches() -> impl Strategy<Value = Vec<Arch>> {
    select(vec![
        vec![Arch::X86_64],
        vec![Arch::X86_64, Arch::X86],
        vec![Arch::X86_64, Arch::X32],
        vec![Arch::X86_64, Arch::X86, Arch::X32],
        vec![Arch::Aarch64, Arch::Arm],
        vec![Arch::Aarch64],
    ])
}

pub(super) fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => Just(Action::Allow),
        2 => (0_u16..4095).prop_map(Action::Errno),
        1 => Just(Action::KillThread),
        1 => Just(Action::KillProcess),
        1 => Just(Action::Trap),
        1 => any::<u16>().prop_map(Action::Trace),
        1 => Just(Action::Log),
        1 => Just(Action::Notify),
    ]
}

/// Some that all architectures have, some that only a few have, some behind multiplexers.
pub(super) fn name() -> impl Strategy<Value = String> {
    select(vec![
        "read",
        "write",
        "openat",
        "ioctl",
        "clone",
        "clone3",
        "socket",
        "connect",
        "accept",
        "shmat",
        "semtimedop",
        "socketcall",
        "ipc",
        "personality",
        "futex",
        "kill",
        "chown32",
        "mmap2",
        "set_tls",
        "arch_prctl",
        "getdents64",
        "rt_sigreturn",
        "waitid",
        "preadv2",
    ])
    .prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0_u64..6,
        2 => select(vec![1 << 32, (1 << 32) + 1, (1 << 32) - 1, 5 << 32, u64::MAX, 1 << 31]),
        1 => any::<u64>(),
    ]
}

pub(super) fn operator() -> impl Strategy<Value = Operator> {
    select(vec![
        Operator::NotEqual,
        Operator::Less,
        Operator::LessEqual,
        Operator::Equal,
        Operator::GreaterEqual,
        Operator::Greater,
        Operator::MaskedEqual,
    ])
}

pub(super) fn condition() -> impl Strategy<Value = Condition> {
    (0_u8..6, operator(), value(), value()).prop_map(|(index, operator, value, value_two)| {
        Condition { index, operator, value, value_two }
    })
}

fn rule(conditions: impl Strategy<Value = Vec<Condition>>) -> impl Strategy<Value = Rule> {
    (prop::collection::vec(name(), 1..4), action(), conditions)
        .prop_map(|(names, action, conditions)| Rule { names, action, conditions })
}

/// Any filter at all, sensible or not.
pub(super) fn filter(most_rules: usize) -> impl Strategy<Value = Filter> {
    let rules =
        prop::collection::vec(rule(prop::collection::vec(condition(), 0..4)), 0..most_rules);
    let newer = prop::option::of(Just(Action::Errno(38)));
    (arches(), action(), action(), newer, rules).prop_map(
        |(arches, default_action, bad_arch_action, newer_action, rules)| Filter {
            default_action,
            bad_arch_action,
            newer_action,
            arches,
            rules,
            flags: 0,
        },
    )
}
