//! A classic BPF machine, as far as seccomp uses it, and the kernel's checks of a program.

use crate::seccomp::{Arch, Instruction, MAX_INSTRUCTIONS};

/// `struct seccomp_data`, without the instruction pointer, which no filter of ours looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::seccomp) struct Call {
    pub(in crate::seccomp) number: u32,
    pub(in crate::seccomp) audit: u32,
    pub(in crate::seccomp) args: [u64; 6],
}

impl Call {
    pub(in crate::seccomp) fn new(arch: Arch, number: u32, args: [u64; 6]) -> Call {
        Call { number, audit: arch.audit(), args }
    }

    fn word(&self, offset: u32) -> u32 {
        let half = |argument: u32| {
            let value = self.args[argument as usize / 8];
            let value = if argument.is_multiple_of(8) { value } else { value >> 32 };
            u32::try_from(value & 0xffff_ffff).unwrap()
        };
        match offset {
            0 => self.number,
            4 => self.audit,
            16..64 if offset.is_multiple_of(4) => half(offset - 16),
            _ => panic!("load from offset {offset}"),
        }
    }
}

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::seccomp) struct Run {
    /// The returned value.
    pub(in crate::seccomp) value: u32,
    /// How many instructions were executed.
    pub(in crate::seccomp) steps: usize,
    /// Whether an argument was looked at.
    pub(in crate::seccomp) saw_arguments: bool,
}

/// Runs a program that [`check`] accepts.
pub(in crate::seccomp) fn run(program: &[Instruction], call: &Call) -> Run {
    let (mut at, mut accumulator, mut steps, mut saw_arguments) = (0, 0, 0, false);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        steps += 1;
        let condition = match code {
            0x20 => {
                accumulator = call.word(k);
                saw_arguments |= k >= 16;
                continue;
            }
            0x54 => {
                accumulator &= k;
                continue;
            }
            0x05 => {
                at += k as usize;
                continue;
            }
            0x06 => return Run { value: k, steps, saw_arguments },
            0x15 => accumulator == k,
            0x25 => accumulator > k,
            0x35 => accumulator >= k,
            0x45 => accumulator & k != 0,
            _ => panic!("instruction {code:#x}"),
        };
        at += usize::from(if condition { jt } else { jf });
    }
}

/// Both checks that the kernel makes (`bpf_check_classic`, `seccomp_check_filter`): all
/// instructions known and aligned, all jumps forward and inside, a return at the end. So every way
/// through ends in a return. And, what the kernel does not ask: each instruction can be reached.
#[track_caller]
pub(in crate::seccomp) fn check(program: &[Instruction]) {
    let len = program.len();
    assert!((1..=MAX_INSTRUCTIONS).contains(&len), "{len} instructions");
    let mut reached = vec![false; len];
    reached[0] = true;
    for (at, &Instruction { code, jt, jf, k }) in program.iter().enumerate() {
        assert!(reached[at], "instruction {at} of {len} is never reached: {program:#x?}");
        let mut reach = |skip: usize| {
            assert!(at + 1 + skip < len, "instruction {at} of {len} jumps outside");
            reached[at + 1 + skip] = true;
        };
        match code {
            0x20 => {
                assert!(k.is_multiple_of(4) && k < 64, "load from {k}");
                reach(0);
            }
            0x54 => reach(0),
            0x05 => reach(k as usize),
            0x15 | 0x25 | 0x35 | 0x45 => {
                reach(usize::from(jt));
                reach(usize::from(jf));
            }
            0x06 => {}
            _ => panic!("instruction {at} of {len} has code {code:#x}"),
        }
    }
    assert_eq!(program[len - 1].code, 0x06, "the last instruction returns");
}
