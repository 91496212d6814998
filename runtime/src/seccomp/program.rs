//! A finished program, in the form that seccomp(2) takes.

use super::Error;

/// The most instructions a program may have (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Bytes of one instruction.
const INSTRUCTION_BYTES: usize = 8;

/// One instruction of classic BPF, laid out as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// How many instructions to skip when a comparison holds.
    pub jt: u8,
    /// How many to skip when it does not.
    pub jf: u8,
    /// Its operand.
    pub k: u32,
}

/// A filter program of 1 to [`MAX_INSTRUCTIONS`] instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    instructions: Vec<Instruction>,
}

impl Program {
    /// Takes instructions as they are; an error if there are none or more than the kernel takes.
    pub fn new(instructions: Vec<Instruction>) -> Result<Program, Error> {
        match instructions.len() {
            1..=MAX_INSTRUCTIONS => Ok(Program { instructions }),
            count => Err(Error::Instructions { count }),
        }
    }

    /// The instructions, at least one.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// The program as bytes in this machine's order, as `struct sock_filter` lies in memory.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.instructions.len() * INSTRUCTION_BYTES);
        for Instruction { code, jt, jf, k } in &self.instructions {
            bytes.extend_from_slice(&code.to_ne_bytes());
            bytes.extend_from_slice(&[*jt, *jf]);
            bytes.extend_from_slice(&k.to_ne_bytes());
        }
        bytes
    }

    /// Reads what [`Program::to_bytes`] wrote. The kernel checks the instructions themselves.
    pub fn from_bytes(bytes: &[u8]) -> Result<Program, Error> {
        let (chunks, rest) = bytes.as_chunks::<INSTRUCTION_BYTES>();
        if !rest.is_empty() {
            return Err(Error::Bytes { count: bytes.len() });
        }
        let instructions = chunks
            .iter()
            .map(|&[code0, code1, jt, jf, k0, k1, k2, k3]| Instruction {
                code: u16::from_ne_bytes([code0, code1]),
                jt,
                jf,
                k: u32::from_ne_bytes([k0, k1, k2, k3]),
            })
            .collect();
        Program::new(instructions)
    }
}
