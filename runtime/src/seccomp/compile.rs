//! From decisions to instructions.
//!
//! Classic BPF only jumps forward, so we write the program from its end: whatever an instruction
//! may jump to exists already, and its distance is known. Where that is over 255, the most that a
//! comparison can skip, a copy of the return or an unconditional jump (which has 32 bits for its
//! distance) is put in between. Nothing is ever moved.
//!
//! A program looks like this, with the native architecture first:
//!
//! ```text
//! load arch; is it x86-64? load number; a search tree over spans of numbers; clauses
//!            is it x86?    load number; ...
//!            return the action for foreign architectures
//! ```
//!
//! The tree is cut so that as many calls lie left as right. This keeps the way short for all calls
//! alike, which also makes installing a filter cheap: since Linux 5.11 the kernel runs it once for
//! each number then, keeps a bit map of those always allowed, and never runs it for them again. It
//! follows only loads of number and architecture, comparisons, jumps and returns, and that is all
//! we use outside clauses.

use std::collections::{BTreeMap, HashMap};

use super::filter::Filter;
use super::lower::{self, Decision, Kind, Span, Test, Width};
use super::program::{Instruction, Program};
use super::{Error, filter};

/// `BPF_LD | BPF_W | BPF_ABS`: load a word of `struct seccomp_data`.
const LOAD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`.
const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JA`.
const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
const EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`.
const GREATER: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`.
const GREATER_EQUAL: u16 = 0x35;
/// `BPF_JMP | BPF_JSET | BPF_K`.
const ANY_BIT: u16 = 0x45;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The farthest that a comparison can jump.
const FAR: usize = u8::MAX as usize;

/// Makes the program. An error only if it is longer than the kernel allows.
pub fn compile(filter: &Filter) -> Result<Program, Error> {
    let mut writer = Writer::default();
    let default = returns(filter.default_action);
    let mut others = returns(filter.bad_arch_action);
    for group in lower::lower(filter).iter().rev() {
        let mut clauses = HashMap::new();
        let mut arms = Vec::with_capacity(group.spans.len());
        for Span { first, decision, calls } in &group.spans {
            let target = match decision {
                Decision::Action(action) => returns(*action),
                Decision::Clauses(list, width) => {
                    *clauses.entry((list, *width)).or_insert_with(|| {
                        let rules = list.iter().map(Rest::all).collect();
                        writer.clauses(rules, *width, default)
                    })
                }
            };
            arms.push(Arm { first: *first, target, weight: *calls });
        }
        let body = writer.switch(NUMBER, u32::MAX, arms);
        others = writer.branch(EQUAL, group.audit, body, others);
    }
    let start = writer.load(ARCH, others);
    writer.finish(start)
}

/// Where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// Return this value.
    Return(u32),
    /// The instruction at this position of the unfinished, reversed program.
    At(usize),
}

fn returns(action: filter::Action) -> Target {
    Target::Return(action.return_value())
}

/// Values from `first` up to the next arm's go to `target`.
#[derive(Clone, Copy, Debug)]
struct Arm {
    first: u32,
    target: Target,
    weight: u32,
}

/// A clause, as far as it is not tested yet.
#[derive(Clone, Copy)]
struct Rest<'a> {
    tests: &'a [Test],
    target: Target,
}

impl<'a> Rest<'a> {
    fn all(clause: &'a lower::Clause) -> Rest<'a> {
        Rest { tests: &clause.tests, target: returns(clause.action) }
    }

    /// The argument and mask of a leading test for equality.
    fn leading_mask(&self) -> Option<(u8, u64)> {
        match self.tests.first()? {
            Test { argument, kind: Kind::Masked { mask, .. }, negated: false } => {
                Some((*argument, *mask))
            }
            Test { kind: Kind::Masked { .. } | Kind::Greater(_), .. } => None,
        }
    }
}

/// The program so far, last instruction first.
#[derive(Default)]
struct Writer {
    reversed: Vec<Instruction>,
    /// Where each return value was written last.
    returns: HashMap<u32, usize>,
    /// Where the last jump to each far position was written.
    bridges: HashMap<usize, usize>,
}

impl Writer {
    /// Tries clauses in turn, without knowing anything yet, and goes to `miss` if none holds.
    fn clauses(&mut self, mut rules: Vec<Rest<'_>>, width: Width, miss: Target) -> Target {
        if let Some(always) = rules.iter().position(|rule| rule.tests.is_empty()) {
            rules.truncate(always + 1);
        }
        let mut next = miss;
        let same = |one: &Rest<'_>, other: &Rest<'_>| {
            one.leading_mask().is_some() && one.leading_mask() == other.leading_mask()
        };
        for run in rules.chunk_by(same).rev() {
            let Some((first, tests)) = run[0].tests.split_first() else {
                next = run[0].target;
                continue;
            };
            next = match run[0].leading_mask() {
                Some((argument, mask)) => self.equal_run(run, argument, mask, width, next),
                None => {
                    let rest = Rest { tests, target: run[0].target };
                    let holds = self.clauses(vec![rest], width, next);
                    self.test(first, width, holds, next)
                }
            };
        }
        next
    }

    /// Clauses that begin by comparing the same bits of the same argument: one look is enough.
    fn equal_run(
        &mut self,
        run: &[Rest<'_>],
        argument: u8,
        mask: u64,
        width: Width,
        miss: Target,
    ) -> Target {
        let mut by_value: BTreeMap<u64, Vec<Rest<'_>>> = BTreeMap::new();
        for rule in run {
            if let Some((Test { kind: Kind::Masked { value, .. }, .. }, tests)) =
                rule.tests.split_first()
            {
                by_value.entry(*value).or_default().push(Rest { tests, target: rule.target });
            }
        }
        let arms = by_value
            .into_iter()
            .map(|(value, rules)| (value, self.clauses(rules, width, miss)))
            .collect();
        self.masked(argument, mask, arms, miss)
    }

    fn test(&mut self, test: &Test, width: Width, holds: Target, fails: Target) -> Target {
        let (yes, no) = if test.negated { (fails, holds) } else { (holds, fails) };
        match test.kind {
            Kind::Masked { mask, value } => {
                self.masked(test.argument, mask, vec![(value, yes)], no)
            }
            Kind::Greater(value) => self.greater(test.argument, value, width, yes, no),
        }
    }

    /// Goes where the argument's masked value leads. The values are in rising order.
    fn masked(
        &mut self,
        argument: u8,
        mask: u64,
        values: Vec<(u64, Target)>,
        miss: Target,
    ) -> Target {
        let (mask_high, mask_low) = halves(mask);
        let mut high_arms = Vec::new();
        for same_high in values.chunk_by(|(one, _), (other, _)| halves(*one).0 == halves(*other).0)
        {
            let low_arms = same_high.iter().map(|(value, target)| (halves(*value).1, *target));
            let low = self.exact(low_word(argument), mask_low, low_arms, miss);
            high_arms.push((halves(same_high[0].0).0, low));
        }
        self.exact(low_word(argument) + 4, mask_high, high_arms.into_iter(), miss)
    }

    /// Goes where the word's masked value leads, `miss` for all values not listed.
    fn exact(
        &mut self,
        word: u32,
        mask: u32,
        values: impl Iterator<Item = (u32, Target)>,
        miss: Target,
    ) -> Target {
        let mut arms = Vec::new();
        let mut next = Some(0);
        for (value, target) in values {
            if mask == 0 {
                return target;
            }
            match next {
                Some(gap) if gap < value => arms.push(Arm { first: gap, target: miss, weight: 1 }),
                Some(_) | None => {}
            }
            arms.push(Arm { first: value, target, weight: 1 });
            next = value.checked_add(1);
        }
        if let Some(gap) = next {
            arms.push(Arm { first: gap, target: miss, weight: 1 });
        }
        self.switch(word, mask, arms)
    }

    fn greater(
        &mut self,
        argument: u8,
        value: u64,
        width: Width,
        yes: Target,
        no: Target,
    ) -> Target {
        let (high, low) = halves(value);
        let word = low_word(argument);
        let by_low = if low == u32::MAX { no } else { self.branch(GREATER, low, yes, no) };
        let by_low = self.load(word, by_low);
        if width == Width::Narrow {
            return by_low;
        }
        let by_high = match high {
            0 => self.branch(EQUAL, 0, by_low, yes),
            u32::MAX => self.branch(EQUAL, high, by_low, no),
            _ => {
                let not_above = self.branch(EQUAL, high, by_low, no);
                self.branch(GREATER, high, yes, not_above)
            }
        };
        self.load(word + 4, by_high)
    }

    /// Loads a word and goes where it leads. The first arm starts at 0.
    fn switch(&mut self, word: u32, mask: u32, mut arms: Vec<Arm>) -> Target {
        arms.dedup_by(|arm, before| {
            let same = arm.target == before.target;
            before.weight += if same { arm.weight } else { 0 };
            same
        });
        match arms[..] {
            [only] => only.target,
            // "No bit of the mask is set" is one instruction where and-then-compare is two.
            [zero, rest] if mask != u32::MAX && rest.first == 1 => {
                let any = self.branch(ANY_BIT, mask, rest.target, zero.target);
                self.load(word, any)
            }
            _ => {
                let tree = self.tree(&arms, u64::from(u32::MAX) + 1);
                let tree = if mask == u32::MAX { tree } else { self.fall_through(AND, mask, tree) };
                self.load(word, tree)
            }
        }
    }

    /// A search tree over arms that end before `end`, neighbours of which differ.
    fn tree(&mut self, arms: &[Arm], end: u64) -> Target {
        if let [only] = arms {
            return only.target;
        }
        if let Some((common, values)) = exceptions(arms, end) {
            let mut target = common;
            for (value, special) in values.into_iter().rev() {
                target = self.branch(EQUAL, value, special, target);
            }
            return target;
        }
        let (left, right) = arms.split_at(middle(arms));
        let cut = right[0].first;
        let high = self.tree(right, end);
        let low = self.tree(left, u64::from(cut));
        self.branch(GREATER_EQUAL, cut, high, low)
    }

    /// Writes a comparison of what is loaded.
    fn branch(&mut self, code: u16, k: u32, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        // Reaching `no` may take one more instruction, which also lies before `yes`.
        let yes = self.near(yes, FAR - 1);
        let no = self.near(no, FAR);
        let jump = |position: usize| {
            u8::try_from(self.reversed.len() - 1 - position).expect("near() keeps targets in reach")
        };
        self.push(Instruction { code, jt: jump(yes), jf: jump(no), k })
    }

    /// Writes a load that goes on to `then`.
    fn load(&mut self, word: u32, then: Target) -> Target {
        self.fall_through(LOAD, word, then)
    }

    /// Writes an instruction after which `then` is next. One before a return would be for nothing.
    fn fall_through(&mut self, code: u16, k: u32, then: Target) -> Target {
        match then {
            Target::Return(_) => then,
            Target::At(_) => {
                self.near(then, 0);
                self.push(Instruction { code, jt: 0, jf: 0, k })
            }
        }
    }

    /// A position from which `target` is reached, at most `limit` instructions before the one that
    /// is written next.
    fn near(&mut self, target: Target, limit: usize) -> usize {
        let here = self.reversed.len();
        let within = |position: &usize| here - 1 - position <= limit;
        match target {
            Target::Return(value) => {
                if let Some(&position) = self.returns.get(&value).filter(|at| within(at)) {
                    return position;
                }
                self.push(Instruction { code: RETURN, jt: 0, jf: 0, k: value });
                self.returns.insert(value, here);
            }
            Target::At(position) if within(&position) => return position,
            Target::At(position) => {
                if let Some(&bridge) = self.bridges.get(&position).filter(|at| within(at)) {
                    return bridge;
                }
                let distance = u32::try_from(here - 1 - position).unwrap_or(u32::MAX);
                self.push(Instruction { code: JUMP, jt: 0, jf: 0, k: distance });
                self.bridges.insert(position, here);
            }
        }
        here
    }

    fn push(&mut self, instruction: Instruction) -> Target {
        self.reversed.push(instruction);
        Target::At(self.reversed.len() - 1)
    }

    fn finish(mut self, start: Target) -> Result<Program, Error> {
        self.near(start, 0);
        self.reversed.reverse();
        Program::new(self.reversed)
    }
}

/// If but one or two single values differ from the rest: where the rest goes, and those values. To
/// ask for each of them is then no more work than to search.
fn exceptions(arms: &[Arm], end: u64) -> Option<(Target, Vec<(u32, Target)>)> {
    if arms.len() > 5 {
        return None;
    }
    let ends = arms.iter().skip(1).map(|arm| u64::from(arm.first)).chain([end]);
    let is_single = |(arm, end): &(&Arm, u64)| u64::from(arm.first) + 1 == *end;
    let (single, wide): (Vec<_>, Vec<_>) = arms.iter().zip(ends).partition(is_single);
    let common = wide.first().map_or(arms[0].target, |(arm, _)| arm.target);
    if wide.iter().any(|(arm, _)| arm.target != common) {
        return None;
    }
    let values: Vec<_> = single
        .into_iter()
        .filter(|(arm, _)| arm.target != common)
        .map(|(arm, _)| (arm.first, arm.target))
        .collect();
    (values.len() <= 2).then_some((common, values))
}

/// The cut that leaves both sides as equal in weight as can be, and else in length: 1 to the last
/// arm.
fn middle(arms: &[Arm]) -> usize {
    let total: u64 = arms.iter().map(|arm| u64::from(arm.weight)).sum();
    let mut left = 0;
    (1..arms.len())
        .min_by_key(|&cut| {
            left += u64::from(arms[cut - 1].weight);
            (left.abs_diff(total - left), cut.abs_diff(arms.len() / 2))
        })
        .unwrap_or(1)
}

/// The offset of the lower half of an argument on a little-endian machine; the upper half follows.
fn low_word(argument: u8) -> u32 {
    ARGUMENTS + 8 * u32::from(argument)
}

fn halves(value: u64) -> (u32, u32) {
    let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).expect("32 bits are left");
    (half(value >> 32), half(value))
}
