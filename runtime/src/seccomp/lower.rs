//! From rules with names to one decision for every call number.
//!
//! The order in which rules are tried is settled here; what is left for `compile.rs` is to test,
//! in the order given.

use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};

use super::filter::{Action, Arch, Condition, Filter, Operator, Rule};
use super::syscalls::{self, ARM_PRIVATE, X32_BIT};

/// All calls that arrive with one audit architecture.
#[derive(Debug)]
pub(super) struct Group {
    /// `seccomp_data.arch`.
    pub(super) audit: u32,
    /// What each number gets: the first span starts at 0, and each lasts until the next begins.
    pub(super) spans: Vec<Span>,
}

/// Numbers in a row that get the same.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u32,
    pub(super) decision: Decision,
    /// How much it matters that the way here is short: about as many as it has calls, 0 for x32,
    /// which hardly anybody uses and which must not lengthen the way of x86-64.
    pub(super) calls: u32,
}

/// What a call gets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Decision {
    /// Always the same.
    Action(Action),
    /// The first clause that holds decides, else the default action.
    Clauses(Vec<Clause>, Width),
}

/// How much of an argument counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Width {
    /// The lower half.
    Narrow,
    /// All 64 bits.
    Wide,
}

/// A rule that looks at arguments. Without tests it always holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Clause {
    pub(super) action: Action,
    /// By rising argument. All must hold.
    pub(super) tests: Vec<Test>,
}

/// A comparison that can hold and can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Test {
    pub(super) argument: u8,
    pub(super) kind: Kind,
    /// The test holds if the comparison does not.
    pub(super) negated: bool,
}

/// The two comparisons to which all operators come down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Argument & mask == value; the mask is not 0 and covers the value.
    Masked { mask: u64, value: u64 },
    /// Argument > value.
    Greater(u64),
}

/// Groups in the order of the filter's architectures.
pub(super) fn lower(filter: &Filter) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for &arch in &filter.arches {
        let audit = arch.audit();
        if groups.iter().any(|group| group.audit == audit) {
            continue;
        }
        let mut spans = Spans::default();
        match arch {
            Arch::X86_64 | Arch::X32 => add_x86_64_and_x32(filter, &mut spans),
            Arch::X86 | Arch::Aarch64 | Arch::Arm => add_arch(filter, arch, 0, ALL, &mut spans),
        }
        groups.push(Group { audit, spans: spans.0 });
    }
    groups
}

/// The end of all numbers.
const ALL: u64 = 1 << 32;

/// Spans under construction: in order, without two neighbours that get the same.
#[derive(Default)]
struct Spans(Vec<Span>);

impl Spans {
    fn push(&mut self, first: u32, decision: Cow<'_, Decision>) {
        let calls = u32::from(first < X32_BIT);
        match self.0.last_mut() {
            Some(last) if last.decision == *decision => last.calls += calls,
            _ => self.0.push(Span { first, decision: decision.into_owned(), calls }),
        }
    }
}

/// The two share an audit architecture; bit 30 of the number tells them apart.
fn add_x86_64_and_x32(filter: &Filter, spans: &mut Spans) {
    let bad_arch = Decision::Action(filter.bad_arch_action);
    if filter.arches.contains(&Arch::X86_64) {
        add_arch(filter, Arch::X86_64, 0, u64::from(X32_BIT), spans);
    } else {
        spans.push(0, Cow::Borrowed(&bad_arch));
    }
    if filter.arches.contains(&Arch::X32) {
        add_arch(filter, Arch::X32, X32_BIT, ALL, spans);
    } else {
        spans.push(X32_BIT, Cow::Owned(bad_arch));
        // A tracer has the kernel skip a call by making its number -1.
        spans.push(u32::MAX, Cow::Owned(Decision::Action(filter.default_action)));
    }
}

/// The numbers of one architecture, from `first` up to `end`.
fn add_arch(filter: &Filter, arch: Arch, first: u32, end: u64, spans: &mut Spans) {
    let (decisions, newest) = decisions(filter, arch);
    let unnamed = unnamed(filter, arch, first, newest);
    let add_unnamed = |spans: &mut Spans, from: u64, to: u64| {
        for (at, (start, decision)) in unnamed.iter().enumerate() {
            let stop = unnamed.get(at + 1).map_or(end, |(next, _)| u64::from(*next));
            let start = u64::from(*start).max(from);
            if let (true, Ok(start)) = (start < stop.min(to), u32::try_from(start)) {
                spans.push(start, Cow::Borrowed(decision));
            }
        }
    };
    let mut next = u64::from(first);
    for (number, decision) in decisions {
        add_unnamed(spans, next, u64::from(number));
        spans.push(number, Cow::Owned(decision));
        next = u64::from(number) + 1;
    }
    add_unnamed(spans, next, end);
}

/// What numbers get that no rule names, each from its number on.
fn unnamed(filter: &Filter, arch: Arch, first: u32, newest: Option<u32>) -> Vec<(u32, Decision)> {
    let default = Decision::Action(filter.default_action);
    let mut starts = vec![(first, default.clone())];
    if let (Some(action), Some(newest)) = (filter.newer_action, newest) {
        starts.push((newest + 1, Decision::Action(action)));
        if arch == Arch::Arm {
            // Arm's private calls are no news, however high their numbers.
            starts.push((ARM_PRIVATE, default));
        }
    }
    starts
}

/// A rule as far as it concerns one call.
struct Applied<'a> {
    action: Action,
    conditions: Cow<'a, [Condition]>,
}

/// What each number gets that a rule names, in order, and the highest of them, Arm's private ones
/// aside.
fn decisions(filter: &Filter, arch: Arch) -> (Vec<(u32, Decision)>, Option<u32>) {
    let mut applied: Vec<(u32, Applied<'_>)> = Vec::new();
    let mut newest = None;
    for rule in &filter.rules {
        let action = rule.action;
        let says_nothing = action == filter.default_action;
        for name in &rule.names {
            let number = syscalls::number(arch, name);
            newest = newest.max(number.filter(|&number| arch != Arch::Arm || number < ARM_PRIVATE));
            if says_nothing {
                continue;
            }
            if let Some(number) = number {
                let conditions = Cow::Borrowed(rule.conditions.as_slice());
                applied.push((number, Applied { action, conditions }));
            }
            applied.extend(behind_multiplexer(filter, arch, rule, name));
        }
    }
    applied.sort_by_key(|(number, _)| *number);
    let decisions = applied
        .chunk_by(|(one, _), (other, _)| one == other)
        .map(|rules| (rules[0].0, decide(arch, rules.iter().map(|(_, rule)| rule))))
        .collect();
    (decisions, newest)
}

/// The rule again, for the way to the call that 32-bit x86 programs take.
fn behind_multiplexer<'a>(
    filter: &Filter,
    arch: Arch,
    rule: &Rule,
    name: &str,
) -> Option<(u32, Applied<'a>)> {
    let syscalls::Multiplexed { number, call, mask } = syscalls::multiplexed(arch, name)?;
    if !rule.conditions.is_empty() && !rule.action.is_stricter_than(filter.default_action) {
        return None;
    }
    let condition = Condition {
        index: 0,
        operator: Operator::MaskedEqual,
        value: u64::from(mask),
        value_two: u64::from(call),
    };
    Some((number, Applied { action: rule.action, conditions: Cow::Owned(vec![condition]) }))
}

/// What rules for the same call come to: point 3 and 4 of the order on the module's page.
fn decide<'a>(arch: Arch, rules: impl Iterator<Item = &'a Applied<'a>>) -> Decision {
    let (width, bits) =
        if arch.is_wide() { (Width::Wide, u64::MAX) } else { (Width::Narrow, u64::from(u32::MAX)) };
    let mut ordered = Vec::new();
    for rule in rules {
        let mut comparisons: Vec<Comparison> =
            rule.conditions.iter().filter_map(|condition| comparison(condition, bits)).collect();
        if comparisons.is_empty() {
            return Decision::Action(rule.action);
        }
        comparisons.sort_by_key(|comparison| comparison.argument);
        ordered.push((rule.action, comparisons));
    }
    ordered.sort_by(|(_, one), (_, other)| compare(one, other));
    let mut clauses = Vec::new();
    for (action, comparisons) in ordered {
        let Some(tests) = tests(&comparisons, bits) else { continue };
        let always = tests.is_empty();
        clauses.push(Clause { action, tests });
        if always {
            break;
        }
    }
    match clauses.first() {
        Some(first) if first.tests.is_empty() => Decision::Action(first.action),
        Some(_) | None => Decision::Clauses(clauses, width),
    }
}

/// A condition cut to the width of the architecture.
struct Comparison {
    argument: u8,
    operator: Operator,
    mask: u64,
    value: u64,
}

/// None if the condition compares no bits at all, so that it may as well not be there.
fn comparison(condition: &Condition, bits: u64) -> Option<Comparison> {
    let Condition { index: argument, operator, value, value_two } = *condition;
    let (mask, value) = match operator {
        Operator::MaskedEqual => (value & bits, value_two & value & bits),
        Operator::NotEqual
        | Operator::Less
        | Operator::LessEqual
        | Operator::Equal
        | Operator::GreaterEqual
        | Operator::Greater => (bits, value & bits),
    };
    (mask != 0).then_some(Comparison { argument, operator, mask, value })
}

/// Which of two rules is tried first.
fn compare(one: &[Comparison], other: &[Comparison]) -> Ordering {
    let key = |comparison: &Comparison| {
        let Comparison { argument, operator, value, .. } = *comparison;
        let (class, value) = match operator {
            Operator::Equal | Operator::NotEqual | Operator::MaskedEqual => (0, !value),
            Operator::Less | Operator::LessEqual => (1, value),
            Operator::Greater | Operator::GreaterEqual => (2, !value),
        };
        (Reverse(argument), class, value)
    };
    one.iter().map(key).cmp(other.iter().map(key))
}

/// None if they can never hold together; without those that always hold.
fn tests(comparisons: &[Comparison], bits: u64) -> Option<Vec<Test>> {
    let mut tests = Vec::new();
    for &Comparison { argument, operator, mask, value } in comparisons {
        let masked = Kind::Masked { mask, value };
        let (kind, negated) = match operator {
            Operator::Equal | Operator::MaskedEqual => (masked, false),
            Operator::NotEqual => (masked, true),
            Operator::Greater if value == bits => return None,
            Operator::Greater => (Kind::Greater(value), false),
            Operator::GreaterEqual if value == 0 => continue,
            Operator::GreaterEqual => (Kind::Greater(value - 1), false),
            Operator::Less if value == 0 => return None,
            Operator::Less => (Kind::Greater(value - 1), true),
            Operator::LessEqual if value == bits => continue,
            Operator::LessEqual => (Kind::Greater(value), true),
        };
        tests.push(Test { argument, kind, negated });
    }
    Some(tests)
}
