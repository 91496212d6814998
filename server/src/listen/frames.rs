//! Walks the bytes of an HTTP/2 client (RFC 9113, section 4) and finds its header blocks.
//!
//! Bytes go on as they are, but for header blocks that `hpack` changes: those are framed
//! anew. What is not HTTP/2, or breaks its rules, goes on as it is, for the server behind
//! judges it and knows the right answer.

use super::hpack::{Malformed, Rewriter};

/// What a client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The most bytes of a frame's payload. It is HTTP/2's default, and the server behind must
/// not allow more.
pub(super) const MAX_FRAME: usize = 16_384;

/// The most bytes of a header block with its frames; a kubelet sends some hundred.
pub(super) const MAX_BLOCK: usize = 64 << 10;

/// The most frames of a header block; full ones would be four.
const MAX_BLOCK_FRAMES: usize = 64;

const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

const END_HEADERS: u8 = 0x04;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;

/// Bytes of a stream's priority, before its header block.
const PRIORITY_LENGTH: usize = 5;

/// A header block is longer than any that is served; the connection must end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the client sent a header block of more than {MAX_BLOCK} bytes or {MAX_BLOCK_FRAMES} frames"
)]
pub(super) struct TooLong;

/// What to do with the bytes that were looked at, from their beginning.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// So many bytes go on as they are.
    pub(super) pass: usize,
    /// The next so many bytes are replaced by [`Walk::replacement`]. Whatever is behind
    /// them must be looked at again.
    pub(super) replace: usize,
}

/// How far the walk over one connection is.
#[derive(Debug)]
pub(super) struct Walk {
    state: State,
    rewriter: Rewriter,
    /// The frames that replace the last replaced ones.
    pub(super) replacement: Vec<u8>,
    /// The block of several frames in one piece, and the block that replaces one; kept to
    /// use their memory again.
    joined: Vec<u8>,
    rewritten: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes of the preface were seen.
    Preface(usize),
    /// A frame begins.
    Frame,
    /// So many bytes of a frame are still to come that nobody needs to look at.
    Payload(usize),
    /// Not HTTP/2, or no longer: everything goes on.
    Opaque,
}

/// The frames of a header block.
enum Block {
    /// Its end is not there yet.
    Incomplete,
    /// It goes on as it is.
    Same(usize),
    /// So many bytes are replaced.
    Changed(usize),
    /// It is not well formed.
    Broken,
}

#[derive(Clone, Copy)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

impl Default for Walk {
    fn default() -> Walk {
        Walk {
            state: State::Preface(0),
            rewriter: Rewriter::default(),
            replacement: Vec::new(),
            joined: Vec::new(),
            rewritten: Vec::new(),
        }
    }
}

impl Walk {
    /// Looks at the next bytes of the connection. Where nothing passes and nothing is
    /// replaced, the walk needs more bytes, together with these.
    pub(super) fn step(&mut self, bytes: &[u8]) -> Result<Step, TooLong> {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            if rest.is_empty() {
                return Ok(Step { pass: at, replace: 0 });
            }
            match self.state {
                State::Opaque => return Ok(Step { pass: bytes.len(), replace: 0 }),
                State::Preface(seen) => {
                    let expected = &PREFACE[seen..];
                    let length = expected.len().min(rest.len());
                    self.state = if rest[..length] != expected[..length] {
                        State::Opaque
                    } else if length == expected.len() {
                        State::Frame
                    } else {
                        State::Preface(seen + length)
                    };
                    at += length;
                }
                State::Payload(left) => {
                    let length = left.min(rest.len());
                    self.state =
                        if length == left { State::Frame } else { State::Payload(left - length) };
                    at += length;
                }
                State::Frame => {
                    let Some(head) = Head::read(rest) else {
                        return Ok(Step { pass: at, replace: 0 });
                    };
                    if head.kind != HEADERS || head.length > MAX_FRAME {
                        self.state = State::Payload(head.length);
                        at += FRAME_HEAD;
                        if head.length == 0 {
                            self.state = State::Frame;
                        }
                        continue;
                    }
                    match self.block(rest, head)? {
                        Block::Incomplete => return Ok(Step { pass: at, replace: 0 }),
                        Block::Same(length) => at += length,
                        Block::Changed(length) => return Ok(Step { pass: at, replace: length }),
                        Block::Broken => self.state = State::Opaque,
                    }
                }
            }
        }
    }

    /// Reads a header block that begins with the frame of `head`.
    fn block(&mut self, bytes: &[u8], head: Head) -> Result<Block, TooLong> {
        let Some(mut end) = end_of_frame(bytes, 0, head) else { return Ok(Block::Incomplete) };
        let Some((priority, fragment)) = open_headers(&bytes[FRAME_HEAD..end], head.flags) else {
            return Ok(Block::Broken);
        };
        self.rewritten.clear();
        let result = if head.flags & END_HEADERS != 0 {
            self.rewriter.rewrite(fragment, &mut self.rewritten)
        } else {
            self.joined.clear();
            self.joined.extend_from_slice(fragment);
            end = match join(bytes, end, head, &mut self.joined)? {
                Joined::Whole(end) => end,
                Joined::Incomplete => return Ok(Block::Incomplete),
                Joined::Broken => return Ok(Block::Broken),
            };
            self.rewriter.rewrite(&self.joined, &mut self.rewritten)
        };
        match result {
            Ok(false) => Ok(Block::Same(end)),
            Ok(true) => {
                self.replacement.clear();
                write_frames(&mut self.replacement, head, priority, &self.rewritten);
                Ok(Block::Changed(end))
            }
            Err(Malformed) => Ok(Block::Broken),
        }
    }
}

enum Joined {
    Whole(usize),
    Incomplete,
    Broken,
}

/// Appends the CONTINUATION frames that begin at `end` and belong to `first`.
fn join(bytes: &[u8], mut end: usize, first: Head, block: &mut Vec<u8>) -> Result<Joined, TooLong> {
    for _ in 1..MAX_BLOCK_FRAMES {
        let Some(head) = Head::read(&bytes[end..]) else { return Ok(Joined::Incomplete) };
        if head.kind != CONTINUATION || head.stream != first.stream || head.length > MAX_FRAME {
            return Ok(Joined::Broken);
        }
        if end + FRAME_HEAD + head.length > MAX_BLOCK {
            return Err(TooLong);
        }
        let start = end + FRAME_HEAD;
        let Some(next) = end_of_frame(bytes, end, head) else { return Ok(Joined::Incomplete) };
        block.extend_from_slice(&bytes[start..next]);
        if head.flags & END_HEADERS != 0 {
            return Ok(Joined::Whole(next));
        }
        end = next;
    }
    Err(TooLong)
}

/// Where the frame that begins at `start` ends, if it is all there.
fn end_of_frame(bytes: &[u8], start: usize, head: Head) -> Option<usize> {
    let end = start + FRAME_HEAD + head.length;
    (end <= bytes.len()).then_some(end)
}

/// Splits the payload of a HEADERS frame into priority and block, without the padding.
fn open_headers(payload: &[u8], flags: u8) -> Option<(&[u8], &[u8])> {
    let (padding, payload) = if flags & PADDED == 0 {
        (0, payload)
    } else {
        let (padding, payload) = payload.split_first()?;
        (usize::from(*padding), payload)
    };
    let (priority, payload) =
        payload.split_at_checked(if flags & PRIORITY == 0 { 0 } else { PRIORITY_LENGTH })?;
    let block = payload.get(..payload.len().checked_sub(padding)?)?;
    Some((priority, block))
}

/// Writes a header block as HEADERS and as many CONTINUATION frames as it needs. Padding
/// is left out: the block is for a server in the same process.
fn write_frames(out: &mut Vec<u8>, head: Head, priority: &[u8], block: &[u8]) {
    let (first, mut rest) = block.split_at(block.len().min(MAX_FRAME - priority.len()));
    let flags = head.flags & !(PADDED | END_HEADERS);
    let end = |rest: &[u8]| if rest.is_empty() { END_HEADERS } else { 0 };
    Head { length: priority.len() + first.len(), flags: flags | end(rest), ..head }.write(out);
    out.extend_from_slice(priority);
    out.extend_from_slice(first);
    while !rest.is_empty() {
        let (next, behind) = rest.split_at(rest.len().min(MAX_FRAME));
        Head { length: next.len(), kind: CONTINUATION, flags: end(behind), ..head }.write(out);
        out.extend_from_slice(next);
        rest = behind;
    }
}

impl Head {
    fn read(bytes: &[u8]) -> Option<Head> {
        let [a, b, c, kind, flags, stream @ ..] = bytes.first_chunk::<FRAME_HEAD>()?;
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        Some(Head { length, kind: *kind, flags: *flags, stream: *stream })
    }

    fn write(self, out: &mut Vec<u8>) {
        // At most MAX_FRAME.
        let [.., a, b, c] = self.length.to_be_bytes();
        out.extend_from_slice(&[a, b, c, self.kind, self.flags]);
        out.extend_from_slice(&self.stream);
    }
}
