//! Placeholder until the compiler lands.

/// m
pub const MAX_BYTES: usize = 4096 * 8;
/// A filter.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Instruction {
    /// c
    pub code: u16,
    /// t
    pub jt: u8,
    /// f
    pub jf: u8,
    /// k
    pub k: u32,
}
/// A program.
#[derive(Debug)]
pub struct Program(Vec<Instruction>);
impl Program {
    /// i
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }
    /// b
    pub fn from_bytes(bytes: &[u8]) -> Option<Program> {
        let one = |b: &[u8]| Instruction {
            code: u16::from_le_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        };
        Some(Program(bytes.chunks_exact(8).map(one).collect()))
    }
}
