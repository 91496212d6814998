//! Which devices the processes of a cgroup may open and make.
//!
//! Rules are tried from last to first, for each kind of access on its own: the last rule that
//! matches the device and speaks of reading decides about reading. Without one the answer is no.
//! A request for several kinds at once (open for reading and writing) needs a yes for each.
//!
//! cgroup v2 asks a program ([`program`], eBPF, loaded by `sys::bpf`). cgroup v1 keeps a default and
//! a list of exceptions, written as lines ([`v1_writes`]); what it cannot express is an error.

use std::fmt;

/// Access bits: `BPF_DEVCG_ACC_*` of `linux/bpf.h`, which are v1's too.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL_ACCESS: u8 = MKNOD | READ | WRITE;

/// What a rule applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Character and block devices.
    All,
    /// Character devices.
    Char,
    /// Block devices.
    Block,
}

/// Allows or denies some access to some devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether it allows or denies.
    pub allow: bool,
    /// Which devices.
    pub kind: Kind,
    /// Their major number; None is any.
    pub major: Option<u32>,
    /// Their minor number; None is any.
    pub minor: Option<u32>,
    /// Whether it speaks of reading.
    pub read: bool,
    /// Whether it speaks of writing.
    pub write: bool,
    /// Whether it speaks of making a node.
    pub mknod: bool,
}

impl Rule {
    /// All access to all devices: the rule of a privileged container.
    pub const ALLOW_ALL: Rule = Rule {
        allow: true,
        kind: Kind::All,
        major: None,
        minor: None,
        read: true,
        write: true,
        mknod: true,
    };

    const fn access(&self) -> u8 {
        (if self.read { READ } else { 0 })
            | (if self.write { WRITE } else { 0 })
            | (if self.mknod { MKNOD } else { 0 })
    }

    fn is_for_everything(&self) -> bool {
        let Rule { kind, major, minor, .. } = *self;
        kind == Kind::All && major.is_none() && minor.is_none() && self.access() == ALL_ACCESS
    }
}

/// What every container may use, as runc has it, less `/dev/net/tun`: the terminals of any devpts,
/// the devices that hold no secret, and making nodes, which is of no use as long as nobody may open
/// them. The container's own devices come after these.
///
/// Not among them: `/dev/console` (5:1), which containerd adds. A container's console is a pty;
/// 5:1 is the host's, and whoever may make nodes could read what is typed there.
pub fn standard() -> Vec<Rule> {
    let char =
        |major, minor| Rule { kind: Kind::Char, major: Some(major), minor, ..Rule::ALLOW_ALL };
    vec![
        Rule { read: false, write: false, ..Rule::ALLOW_ALL },
        char(1, Some(3)), // null
        char(1, Some(5)), // zero
        char(1, Some(7)), // full
        char(1, Some(8)), // random
        char(1, Some(9)), // urandom
        char(5, Some(0)), // tty
        char(5, Some(2)), // ptmx
        char(136, None),  // pts
    ]
}

/// One instruction of eBPF, laid out as the kernel's `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u8,
    /// Destination register in the lower half, source in the upper.
    pub registers: u8,
    /// How many instructions to skip, or where in memory.
    pub offset: i16,
    /// Operand.
    pub immediate: i32,
}

/// `BPF_LDX | BPF_MEM | BPF_W`: load a word of `struct bpf_cgroup_dev_ctx`.
const LOAD: u8 = 0x61;
/// `BPF_ALU | BPF_MOV`, of a register and of a constant; the 32-bit forms of all.
const COPY: u8 = 0xbc;
const SET: u8 = 0xb4;
/// `BPF_ALU | BPF_AND | BPF_K`.
const AND: u8 = 0x54;
/// `BPF_ALU | BPF_RSH | BPF_K`.
const SHIFT_RIGHT: u8 = 0x74;
/// `BPF_JMP32 | BPF_JNE | BPF_K` and `BPF_JEQ`.
const UNEQUAL: u8 = 0x56;
const EQUAL: u8 = 0x16;
/// `BPF_JMP | BPF_EXIT`.
const EXIT: u8 = 0x95;

/// Registers: the answer, the context, and what the context says.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const ACCESS: u8 = 2;
const DEVICE_KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// The program of type `BPF_PROG_TYPE_CGROUP_DEVICE` that answers by the rules.
///
/// The kernel's check of it takes time that grows with the square of the number of rules about a
/// part of the access; it gives up (E2BIG) at some 700 of those.
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        load(ACCESS, 0),
        copy(DEVICE_KIND, ACCESS),
        constant(AND, DEVICE_KIND, 0xffff),
        constant(SHIFT_RIGHT, ACCESS, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev().filter(|rule| rule.access() != 0) {
        program.extend(block(rule));
        if rule.is_for_everything() {
            // The kernel refuses a program with instructions that nothing reaches.
            return program;
        }
    }
    program.extend(answer(false));
    program
}

/// Answers if the rule settles the request, else runs on past its end. What the rule allows is taken
/// out of the access that is still asked for.
fn block(rule: &Rule) -> Vec<Instruction> {
    let kind = match rule.kind {
        Kind::All => None,
        Kind::Block => Some(1),
        Kind::Char => Some(2),
    };
    let mut block: Vec<Instruction> =
        [(DEVICE_KIND, kind), (MAJOR, rule.major), (MINOR, rule.minor)]
            .into_iter()
            .filter_map(|(register, wanted)| Some((register, wanted?)))
            .map(|(register, wanted)| constant(UNEQUAL, register, wanted))
            .collect();
    let access = rule.access();
    if access != ALL_ACCESS && rule.allow {
        block.push(constant(AND, ACCESS, u32::from(ALL_ACCESS & !access)));
        block.push(constant(UNEQUAL, ACCESS, 0));
    } else if access != ALL_ACCESS {
        block.push(copy(SCRATCH, ACCESS));
        block.push(constant(AND, SCRATCH, u32::from(access)));
        block.push(constant(EQUAL, SCRATCH, 0));
    }
    block.extend(answer(rule.allow));
    let len = block.len();
    for (at, instruction) in block.iter_mut().enumerate() {
        if matches!(instruction.code, UNEQUAL | EQUAL) {
            instruction.offset = i16::try_from(len - 1 - at).expect("a block is short");
        }
    }
    block
}

fn answer(allow: bool) -> [Instruction; 2] {
    [constant(SET, ANSWER, u32::from(allow)), constant(EXIT, 0, 0)]
}

fn load(register: u8, offset: i16) -> Instruction {
    Instruction { code: LOAD, registers: CONTEXT << 4 | register, offset, immediate: 0 }
}

fn copy(to: u8, from: u8) -> Instruction {
    Instruction { code: COPY, registers: from << 4 | to, offset: 0, immediate: 0 }
}

fn constant(code: u8, register: u8, value: u32) -> Instruction {
    Instruction { code, registers: register, offset: 0, immediate: value.cast_signed() }
}

/// A line for one of the two files of a v1 devices cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Write {
    /// Whether it goes to `devices.allow` or to `devices.deny`.
    pub allow: bool,
    /// The line, as `c 1:3 rwm`.
    pub line: String,
}

impl V1Write {
    /// The file's name.
    pub fn file(&self) -> &'static str {
        if self.allow { "devices.allow" } else { "devices.deny" }
    }
}

/// A list of rules that cgroup v1 has no form for.
#[derive(Debug, thiserror::Error)]
#[error(
    "device rule {rule} takes back a part of what a wider rule before it says, which cgroup v1 \
     cannot express; write the wider rule as several"
)]
pub struct NotInV1 {
    /// Place of the rule in the list, from 0.
    pub rule: usize,
}

/// Devices that an exception of v1 is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pattern {
    is_char: bool,
    major: Option<u32>,
    minor: Option<u32>,
}

impl Pattern {
    /// The devices that both are about, if any.
    fn intersection(self, other: Pattern) -> Option<Pattern> {
        let both = |one: Option<u32>, other: Option<u32>| match (one, other) {
            (Some(one), Some(other)) if one != other => None,
            (one, other) => Some(one.or(other)),
        };
        (self.is_char == other.is_char).then_some(Pattern {
            is_char: self.is_char,
            major: both(self.major, other.major)?,
            minor: both(self.minor, other.minor)?,
        })
    }

    fn covers(self, other: Pattern) -> bool {
        self.intersection(other) == Some(other)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number =
            |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let kind = if self.is_char { 'c' } else { 'b' };
        write!(formatter, "{kind} {}:{}", number(self.major), number(self.minor))
    }
}

/// Exceptions from v1's default, with the access that is excepted.
type Exceptions = Vec<(Pattern, u8)>;

/// What to write, in this order, into the files of a v1 cgroup without children.
pub fn v1_writes(rules: &[Rule]) -> Result<Vec<V1Write>, NotInV1> {
    let mut allow_by_default = false;
    let mut exceptions = Exceptions::new();
    for (index, rule) in rules.iter().enumerate() {
        if rule.is_for_everything() {
            allow_by_default = rule.allow;
            exceptions.clear();
            continue;
        }
        for pattern in patterns(rule) {
            if rule.allow != allow_by_default {
                except(&mut exceptions, pattern, rule.access());
            } else if !restore(&mut exceptions, pattern, rule.access()) {
                return Err(NotInV1 { rule: index });
            }
        }
    }
    if !allow_by_default {
        complete(&mut exceptions);
    }
    let reset = V1Write { allow: allow_by_default, line: "a *:* rwm".to_owned() };
    let exceptions = exceptions.iter().map(|(pattern, access)| V1Write {
        allow: !allow_by_default,
        line: format!("{pattern} {}", letters(*access)),
    });
    Ok([reset].into_iter().chain(exceptions).collect())
}

fn patterns(rule: &Rule) -> impl Iterator<Item = Pattern> {
    let Rule { kind, major, minor, .. } = *rule;
    let kinds: &[bool] = match kind {
        Kind::All => &[true, false],
        Kind::Char => &[true],
        Kind::Block => &[false],
    };
    kinds.iter().map(move |&is_char| Pattern { is_char, major, minor })
}

fn except(exceptions: &mut Exceptions, pattern: Pattern, access: u8) {
    match exceptions.iter_mut().find(|(known, _)| *known == pattern) {
        Some((_, known)) => *known |= access,
        None if access != 0 => exceptions.push((pattern, access)),
        None => {}
    }
}

/// Gives the default back to devices. False if an exception would have to be split for that.
fn restore(exceptions: &mut Exceptions, pattern: Pattern, access: u8) -> bool {
    for (exception, excepted) in exceptions.iter_mut() {
        if pattern.covers(*exception) {
            *excepted &= !access;
        } else if pattern.intersection(*exception).is_some() && *excepted & access != 0 {
            return false;
        }
    }
    exceptions.retain(|(_, excepted)| *excepted != 0);
    true
}

/// v1 wants one exception that allows all that is asked for at once. So an exception also says what
/// wider ones say about its devices, and where two overlap there is one for both.
fn complete(exceptions: &mut Exceptions) {
    let mut patterns: Vec<Pattern> = exceptions.iter().map(|(pattern, _)| *pattern).collect();
    for at in 0..patterns.len() {
        for other in 0..at {
            if let Some(both) = patterns[at].intersection(patterns[other])
                && !patterns.contains(&both)
            {
                patterns.push(both);
            }
        }
    }
    let access_of = |pattern: Pattern| {
        let covering = exceptions.iter().filter(|(wider, _)| wider.covers(pattern));
        covering.fold(0, |access, (_, more)| access | more)
    };
    *exceptions = patterns.into_iter().map(|pattern| (pattern, access_of(pattern))).collect();
}

fn letters(access: u8) -> String {
    let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
    letters.iter().filter(|(bit, _)| access & bit != 0).map(|(_, letter)| *letter).collect()
}

#[cfg(test)]
#[path = "tests/devices.rs"]
mod tests;
