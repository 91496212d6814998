//! Puts a valid host where a client sent none as `:authority`, in one HPACK header block
//! (RFC 7541), so that client and server still agree on the dynamic table afterwards.
//!
//! gRPC clients of a unix socket send what they like there: the path of the socket (grpc
//! C++ and Python, percent-encoded in part; k3s and other users of Go's `passthrough`), or
//! nothing. The `http` crate takes neither, and h2 then refuses the call.
//!
//! An entry of the dynamic table counts by its decoded length. A bad value that enters the
//! table is therefore replaced by a host of the same length, and all that refers to it
//! later needs no change. The empty value has no such host: its entry is kept out of the
//! server's table, a ghost that only the client has, and indices beyond it are one less
//! from then on. Nothing else of the table needs to be known here.

use super::huffman;

/// `:authority` in the static table; its value there is empty.
const AUTHORITY: u32 = 1;

/// The first index of the dynamic table, its newest entry.
const DYNAMIC: u32 = 62;

const AUTHORITY_NAME: &[u8] = b":authority";

/// `:authority` in Huffman code. There is one code for each text, so names are compared
/// without decoding them.
const AUTHORITY_CODED: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];

/// What is written for a bad value, cut or repeated to its length.
const HOST: &[u8] = b"localhost-";

/// The block is not HPACK; the connection is lost.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What is known of one connection's dynamic table. Bit n belongs to its nth newest entry;
/// 128 bits are enough, for the server's table of 4096 bytes has no more entries.
#[derive(Debug, Default)]
pub(super) struct Rewriter {
    /// Entries named `:authority`, whose name a literal may use by index.
    authorities: u128,
    /// Entries that the client has and the server has not.
    ghosts: u128,
    /// A decoded value, kept to use its memory again.
    decoded: Vec<u8>,
}

/// A literal's form: the bits before its index, and whether it enters the table.
#[derive(Clone, Copy)]
struct Form {
    pattern: u8,
    prefix: u8,
    indexed: bool,
}

const INDEXED: Form = Form { pattern: 0x40, prefix: 6, indexed: true };
const NEVER_INDEXED: Form = Form { pattern: 0x10, prefix: 4, indexed: false };
const NOT_INDEXED: Form = Form { pattern: 0x00, prefix: 4, indexed: false };

/// A string as it is in the block.
#[derive(Clone, Copy)]
struct Text<'b> {
    huffman: bool,
    bytes: &'b [u8],
}

impl Rewriter {
    /// Reads one whole block. Returns true when the server must get `out` instead of it;
    /// otherwise `out` is as before. Must see every block of a connection, in order.
    pub(super) fn rewrite(&mut self, block: &[u8], out: &mut Vec<u8>) -> Result<bool, Malformed> {
        let mut reader = Reader { block, at: 0 };
        let mut copied = 0;
        while let Some(first) = reader.peek() {
            let start = reader.at;
            let mut put = |replacement: &dyn Fn(&mut Vec<u8>), from: usize| {
                out.extend_from_slice(&block[copied..start]);
                replacement(out);
                copied = from;
            };
            match first {
                0x80.. => {
                    let index = reader.integer(7)?;
                    if index == AUTHORITY || self.is_ghost(index) {
                        put(&|out| write_host(out, NOT_INDEXED, 0), reader.at);
                    } else if self.renumbered(index) != index {
                        let index = self.renumbered(index);
                        put(&|out| write_integer(out, 0x80, 7, index), reader.at);
                    }
                }
                0x20..=0x3f => {
                    // A new size of the table. What it drops is never referred to again.
                    reader.integer(5)?;
                }
                _ => {
                    let form = form_of(first);
                    let index = reader.integer(form.prefix)?;
                    let after_index = reader.at;
                    let authority = match index {
                        0 => is_authority(reader.text()?),
                        _ => self.is_authority_index(index),
                    };
                    let value = reader.text()?;
                    let bad = if authority { self.bad_length(value)? } else { None };
                    match bad {
                        Some(0) => put(&|out| write_host(out, NOT_INDEXED, 0), reader.at),
                        Some(length) => put(&|out| write_host(out, form, length), reader.at),
                        None if self.is_ghost(index) => put(
                            &|out| write_integer(out, form.pattern, form.prefix, AUTHORITY),
                            after_index,
                        ),
                        None if self.renumbered(index) != index => {
                            let index = self.renumbered(index);
                            put(
                                &|out| write_integer(out, form.pattern, form.prefix, index),
                                after_index,
                            );
                        }
                        None => (),
                    }
                    if form.indexed {
                        self.insert(authority, bad == Some(0));
                    }
                }
            }
        }
        if copied > 0 {
            out.extend_from_slice(&block[copied..]);
        }
        Ok(copied > 0)
    }

    /// The decoded length of a value that is no valid authority; `None` when it is one.
    fn bad_length(&mut self, value: Text<'_>) -> Result<Option<usize>, Malformed> {
        let plain = if value.huffman {
            self.decoded.clear();
            huffman::decode(value.bytes, &mut self.decoded).ok_or(Malformed)?;
            &self.decoded
        } else {
            value.bytes
        };
        Ok((!is_valid(plain)).then_some(plain.len()))
    }

    fn insert(&mut self, authority: bool, ghost: bool) {
        self.authorities = self.authorities << 1 | u128::from(authority);
        self.ghosts = self.ghosts << 1 | u128::from(ghost);
    }

    fn is_authority_index(&self, index: u32) -> bool {
        index == AUTHORITY || bit(self.authorities, index)
    }

    fn is_ghost(&self, index: u32) -> bool {
        bit(self.ghosts, index)
    }

    /// The server's index of an entry that is no ghost.
    fn renumbered(&self, index: u32) -> u32 {
        let Some(age) = index.checked_sub(DYNAMIC) else { return index };
        let newer = if age < u128::BITS { self.ghosts & ((1 << age) - 1) } else { self.ghosts };
        index - newer.count_ones()
    }
}

fn bit(bits: u128, index: u32) -> bool {
    index.checked_sub(DYNAMIC).is_some_and(|age| age < u128::BITS && bits >> age & 1 == 1)
}

/// The form of a literal by its first byte, below 0x80 and no size update.
fn form_of(first: u8) -> Form {
    match first {
        0x40.. => INDEXED,
        0x10.. => NEVER_INDEXED,
        _ => NOT_INDEXED,
    }
}

fn is_authority(name: Text<'_>) -> bool {
    name.bytes == if name.huffman { AUTHORITY_CODED } else { AUTHORITY_NAME }
}

/// Judges as h2 does, with the `http` crate, which allocates; ordinary hosts are seen at once.
fn is_valid(authority: &[u8]) -> bool {
    let ordinary = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    let (host, port) = match authority.iter().position(|byte| *byte == b':') {
        Some(colon) => (&authority[..colon], &authority[colon + 1..]),
        None => (authority, &b"0"[..]),
    };
    let is_ordinary =
        !host.is_empty() && host.iter().all(ordinary) && port.iter().all(u8::is_ascii_digit);
    is_ordinary || http::uri::Authority::try_from(authority).is_ok()
}

/// Writes an `:authority` with a host of `length` bytes; 0 means that the length is free.
fn write_host(out: &mut Vec<u8>, form: Form, length: usize) {
    let length = if length == 0 { "localhost".len() } else { length };
    write_integer(out, form.pattern, form.prefix, AUTHORITY);
    // It is shorter than the block, so than 64 KiB.
    write_integer(out, 0, 7, u32::try_from(length).unwrap_or(u32::MAX));
    out.extend(HOST.iter().cycle().take(length));
}

/// Writes an integer with so many bits of prefix (RFC 7541, section 5.1).
fn write_integer(out: &mut Vec<u8>, pattern: u8, prefix: u8, value: u32) {
    let full = u8::MAX >> (8 - prefix);
    match u8::try_from(value) {
        Ok(small) if small < full => out.push(pattern | small),
        _ => {
            out.push(pattern | full);
            let mut rest = value - u32::from(full);
            while rest >= 0x80 {
                out.push(0x80 | rest.to_le_bytes()[0] & 0x7f);
                rest >>= 7;
            }
            out.push(rest.to_le_bytes()[0]);
        }
    }
}

struct Reader<'b> {
    block: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    fn peek(&self) -> Option<u8> {
        self.block.get(self.at).copied()
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let byte = self.peek().ok_or(Malformed)?;
        self.at += 1;
        Ok(byte)
    }

    /// An integer with so many bits of prefix, below 2^28: nothing in a block is larger.
    fn integer(&mut self, prefix: u8) -> Result<u32, Malformed> {
        let full = u8::MAX >> (8 - prefix);
        let first = self.byte()? & full;
        let mut value = u32::from(first);
        if first < full {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn text(&mut self) -> Result<Text<'b>, Malformed> {
        let huffman = self.peek().ok_or(Malformed)? >= 0x80;
        let length = usize::try_from(self.integer(7)?).map_err(|_| Malformed)?;
        let end = self.at.checked_add(length).ok_or(Malformed)?;
        let bytes = self.block.get(self.at..end).ok_or(Malformed)?;
        self.at = end;
        Ok(Text { huffman, bytes })
    }
}
