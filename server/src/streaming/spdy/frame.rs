//! Frames of SPDY/3.1 to and from bytes, without I/O.
//!
//! Flow control is left out on purpose: the peers (moby/spdystream in every Kubernetes client) have none, so nobody
//! may wait for a WINDOW_UPDATE.

use bytes::{Buf, Bytes, BytesMut};

use super::headers::{Deflater, Headers, Inflater, Malformed};

/// Longest control frame. Those that carry headers have some hundred bytes.
pub(crate) const MAX_CONTROL: usize = 64 << 10;
/// Data is passed on in parts of at most this size, however long its frame is.
pub(crate) const MAX_PART: usize = 16 << 10;
/// Length of what stands before each frame.
const HEAD: usize = 8;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Reset {
    /// There is no such stream.
    Invalid = 2,
    /// It is not taken.
    Refused = 3,
    /// It is not wanted any more.
    Cancel = 5,
}

/// What a peer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// It opens a stream.
    Open {
        /// Its number: odd, and larger than those before.
        id: u32,
        /// It will send nothing on it.
        fin: bool,
        /// It wants to hear nothing on it.
        unidirectional: bool,
        /// What the stream is for.
        headers: Headers,
    },
    /// Bytes of a stream.
    Data {
        /// The stream.
        id: u32,
        /// At most [`MAX_PART`]; empty only with `fin`.
        bytes: Bytes,
        /// They are the last.
        fin: bool,
    },
    /// More headers of a stream, which nobody reads.
    Headers {
        /// The stream.
        id: u32,
        /// It will send nothing more.
        fin: bool,
    },
    /// It gives a stream up.
    Reset(u32),
    /// It wants an answer.
    Ping(u32),
    /// It will open no more streams.
    GoAway,
    /// Nothing that needs an act.
    Other,
}

/// The part of a data frame that is still to come.
#[derive(Debug)]
struct Rest {
    id: u32,
    left: usize,
    fin: bool,
}

/// From bytes to events.
#[derive(Debug)]
pub(crate) struct Decoder {
    inflater: Inflater,
    rest: Option<Rest>,
}

impl Decoder {
    /// For a new connection.
    pub(crate) fn new() -> Decoder {
        Decoder { inflater: Inflater::new(), rest: None }
    }

    /// Takes the next event out of what has arrived; none where it is not whole yet. Never needs more than
    /// [`MAX_CONTROL`] and a few bytes at once.
    ///
    /// # Errors
    /// What has arrived is not SPDY/3.1. The connection cannot go on.
    pub(crate) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Malformed> {
        if let Some(rest) = self.rest.take() {
            return Ok(self.part(rest, input));
        }
        let Some(head) = input.first_chunk::<HEAD>().copied() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([0, head[5], head[6], head[7]]))
            .map_err(|_| Malformed("a frame that is too long"))?;
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        if first >> 31 == 0 {
            input.advance(HEAD);
            let rest = Rest { id: stream_id(first)?, left: length, fin: flags & FLAG_FIN != 0 };
            return Ok(self.part(rest, input));
        }
        if length > MAX_CONTROL {
            return Err(Malformed("a control frame that is too long"));
        }
        if input.len() < HEAD + length {
            return Ok(None);
        }
        if u16::from_be_bytes([head[0] & 0x7f, head[1]]) != 3 {
            return Err(Malformed("another version of SPDY than 3"));
        }
        input.advance(HEAD);
        let body = input.split_to(length).freeze();
        self.control(u16::from_be_bytes([head[2], head[3]]), flags, body).map(Some)
    }

    fn part(&mut self, rest: Rest, input: &mut BytesMut) -> Option<Event> {
        let now = rest.left.min(input.len()).min(MAX_PART);
        let left = rest.left - now;
        if now == 0 && left > 0 {
            self.rest = Some(rest);
            return None;
        }
        let bytes = input.split_to(now).freeze();
        let Rest { id, fin, .. } = rest;
        if left > 0 {
            self.rest = Some(Rest { id, left, fin });
            return Some(Event::Data { id, bytes, fin: false });
        }
        Some(if bytes.is_empty() && !fin { Event::Other } else { Event::Data { id, bytes, fin } })
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> Result<Event, Malformed> {
        let fin = flags & FLAG_FIN != 0;
        Ok(match kind {
            SYN_STREAM => {
                let id = stream_id(number(&mut body)?)?;
                let _associated = number(&mut body)?;
                // Priority and credential slot.
                if body.len() < 2 {
                    return Err(SHORT);
                }
                body.advance(2);
                let headers = self.inflater.read(&body)?;
                let unidirectional = flags & FLAG_UNIDIRECTIONAL != 0;
                Event::Open { id, fin, unidirectional, headers }
            }
            SYN_REPLY | HEADERS => {
                let id = stream_id(number(&mut body)?)?;
                // Whatever it says: the next block builds on it.
                self.inflater.read(&body)?;
                Event::Headers { id, fin }
            }
            RST_STREAM => {
                let id = stream_id(number(&mut body)?)?;
                let _status = number(&mut body)?;
                Event::Reset(id)
            }
            PING => Event::Ping(number(&mut body)?),
            GOAWAY => Event::GoAway,
            _ => Event::Other,
        })
    }
}

const SHORT: Malformed = Malformed("a control frame that is too short");

fn number(body: &mut Bytes) -> Result<u32, Malformed> {
    body.try_get_u32().map_err(|_| SHORT)
}

fn stream_id(number: u32) -> Result<u32, Malformed> {
    match number & 0x7fff_ffff {
        0 => Err(Malformed("a frame of stream 0")),
        id => Ok(id),
    }
}

/// From what we say to bytes.
#[derive(Debug)]
pub(crate) struct Encoder {
    deflater: Deflater,
}

impl Encoder {
    /// For a new connection.
    ///
    /// # Errors
    /// As [`Deflater::new`].
    pub(crate) fn new() -> Result<Encoder, Malformed> {
        Ok(Encoder { deflater: Deflater::new()? })
    }

    /// Accepts a stream.
    ///
    /// # Errors
    /// As [`Deflater::write`].
    pub(crate) fn reply(&mut self, out: &mut Vec<u8>, id: u32) -> Result<(), Malformed> {
        let block = self.deflater.write(&Headers::default())?;
        control(out, SYN_REPLY, 0, &[&id.to_be_bytes(), &block]);
        Ok(())
    }

    /// Opens a stream, as clients do.
    #[cfg(test)]
    pub(super) fn open(&mut self, out: &mut Vec<u8>, id: u32, fin: bool, headers: &Headers) {
        let block = self.deflater.write(headers).unwrap();
        control(out, SYN_STREAM, u8::from(fin), &[&id.to_be_bytes(), &[0; 4], &[0; 2], &block]);
    }

    /// Gives a stream up.
    pub(crate) fn reset(out: &mut Vec<u8>, id: u32, why: Reset) {
        control(out, RST_STREAM, 0, &[&id.to_be_bytes(), &(why as u32).to_be_bytes()]);
    }

    /// Answers a ping.
    pub(crate) fn ping(out: &mut Vec<u8>, id: u32) {
        control(out, PING, 0, &[&id.to_be_bytes()]);
    }

    /// Takes no more streams; `last` is the last one taken, `error` says that the peer did wrong.
    pub(crate) fn go_away(out: &mut Vec<u8>, last: u32, error: bool) {
        control(out, GOAWAY, 0, &[&last.to_be_bytes(), &u32::from(error).to_be_bytes()]);
    }

    /// What stands before so many bytes of a stream (less than 16 MiB).
    pub(crate) fn data_head(id: u32, length: usize, fin: bool) -> [u8; HEAD] {
        let [_, a, b, c] = u32::try_from(length).unwrap_or(0).to_be_bytes();
        let [d, e, f, g] = id.to_be_bytes();
        [d, e, f, g, u8::from(fin), a, b, c]
    }
}

fn control(out: &mut Vec<u8>, kind: u16, flags: u8, parts: &[&[u8]]) {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    let [_, a, b, c] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    let [d, e] = kind.to_be_bytes();
    out.extend_from_slice(&[0x80, 3, d, e, flags, a, b, c]);
    for part in parts {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
