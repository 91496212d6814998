//! The module page's order of rules, written down a second time and as plainly as can be.

use std::cmp::Ordering;

use super::bpf::Call;
use crate::seccomp::syscalls::{ARM_PRIVATE, X32_BIT, multiplexed, number};
use crate::seccomp::{Action, Arch, Condition, Filter, Operator, Rule};

/// What the filter says about the call.
pub(super) fn verdict(filter: &Filter, call: &Call) -> Action {
    let Some(arch) = arch_of(filter, call) else {
        let skipped = call.audit == Arch::X86_64.audit() && call.number == u32::MAX;
        let listed = filter.arches.iter().any(|arch| arch.audit() == call.audit);
        return if skipped && listed { filter.default_action } else { filter.bad_arch_action };
    };
    let mut rules = rules_for(filter, arch, call.number);
    if rules.is_empty() {
        return unnamed(filter, arch, call.number);
    }
    if let Some(always) = rules.iter().find(|rule| rule.conditions.is_empty()) {
        return always.action;
    }
    // A stable sort that asks for nothing but "which of these two is tried first".
    rules.sort_by(|one, other| order(&one.conditions, &other.conditions));
    rules
        .iter()
        .find(|rule| rule.conditions.iter().all(|condition| holds(condition, arch, call)))
        .map_or(filter.default_action, |rule| rule.action)
}

/// None if the filter does not list the call's architecture.
pub(super) fn arch_of(filter: &Filter, call: &Call) -> Option<Arch> {
    filter.arches.iter().copied().find(|&arch| {
        arch.audit() == call.audit
            && match arch {
                Arch::X86_64 => call.number & X32_BIT == 0 && call.number < X32_BIT,
                Arch::X32 => call.number >= X32_BIT,
                Arch::X86 | Arch::Aarch64 | Arch::Arm => true,
            }
    })
}

/// The rules that name the number, with conditions cut to the architecture's width and sorted by
/// argument; those that compare no bits are gone.
fn rules_for(filter: &Filter, arch: Arch, wanted: u32) -> Vec<Rule> {
    let mut found = Vec::new();
    for rule in filter.rules.iter().filter(|rule| rule.action != filter.default_action) {
        for name in &rule.names {
            if number(arch, name) == Some(wanted) {
                found.push(Rule { conditions: cut(arch, &rule.conditions), ..rule.clone() });
            }
            let Some(inner) = multiplexed(arch, name).filter(|inner| inner.number == wanted) else {
                continue;
            };
            if rule.conditions.is_empty() || rule.action.is_stricter_than(filter.default_action) {
                let condition = Condition {
                    index: 0,
                    operator: Operator::MaskedEqual,
                    value: u64::from(inner.mask),
                    value_two: u64::from(inner.call),
                };
                found.push(Rule { conditions: vec![condition], ..rule.clone() });
            }
        }
    }
    found
}

fn bits(arch: Arch) -> u64 {
    match arch {
        Arch::X86_64 | Arch::Aarch64 => u64::MAX,
        Arch::X86 | Arch::X32 | Arch::Arm => u64::from(u32::MAX),
    }
}

fn cut(arch: Arch, conditions: &[Condition]) -> Vec<Condition> {
    let mut kept: Vec<Condition> = conditions
        .iter()
        .map(|condition| Condition {
            value: condition.value & bits(arch),
            value_two: condition.value_two & condition.value & bits(arch),
            ..*condition
        })
        .filter(|condition| condition.operator != Operator::MaskedEqual || condition.value != 0)
        .collect();
    kept.sort_by_key(|condition| condition.index);
    kept
}

fn holds(condition: &Condition, arch: Arch, call: &Call) -> bool {
    let Condition { index, operator, value, value_two } = *condition;
    let argument = call.args[usize::from(index)] & bits(arch);
    match operator {
        Operator::NotEqual => argument != value,
        Operator::Less => argument < value,
        Operator::LessEqual => argument <= value,
        Operator::Equal => argument == value,
        Operator::GreaterEqual => argument >= value,
        Operator::Greater => argument > value,
        Operator::MaskedEqual => argument & value == value_two,
    }
}

fn order(one: &[Condition], other: &[Condition]) -> Ordering {
    let class = |condition: &Condition| match condition.operator {
        Operator::Equal | Operator::NotEqual | Operator::MaskedEqual => 0,
        Operator::Less | Operator::LessEqual => 1,
        Operator::Greater | Operator::GreaterEqual => 2,
    };
    let compared = |condition: &Condition| {
        let masked = condition.operator == Operator::MaskedEqual;
        if masked { condition.value_two } else { condition.value }
    };
    for (one, other) in one.iter().zip(other) {
        let by_argument = other.index.cmp(&one.index);
        let by_class = class(one).cmp(&class(other));
        let larger_first = compared(other).cmp(&compared(one));
        let by_value = if class(one) == 1 { larger_first.reverse() } else { larger_first };
        let decided = by_argument.then(by_class).then(by_value);
        if decided != Ordering::Equal {
            return decided;
        }
    }
    one.len().cmp(&other.len())
}

fn unnamed(filter: &Filter, arch: Arch, wanted: u32) -> Action {
    let private = |number: u32| arch == Arch::Arm && number >= ARM_PRIVATE;
    let names = filter.rules.iter().flat_map(|rule| &rule.names);
    let newest =
        names.filter_map(|name| number(arch, name)).filter(|&number| !private(number)).max();
    match (filter.newer_action, newest) {
        (Some(newer), Some(newest)) if wanted > newest && !private(wanted) => newer,
        _ => filter.default_action,
    }
}
