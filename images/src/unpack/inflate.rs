//! Takes a layer out of its compression: gzip of any number of members, zstd of any number of frames, or none.
//!
//! What it is shows in the first bytes, as every runtime looks at them: media types are
//! often wrong. RFC 1952 (gzip), RFC 8878 (zstd).

use std::io::{self, BufRead, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flate2::bufread::GzDecoder;
use zstd::stream::raw::{Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};
use zstd::zstd_safe::DParameter;

use crate::error::Error;
use crate::limits::Limits;

/// Windows up to this size, which every decoder must offer (RFC 8878, 3.1.1.1.2), are given at once.
const USUAL_WINDOW: u64 = 8 << 20;

/// Held by the one stream of the process that has a larger window: several would be too much memory.
static LARGE_WINDOW: Mutex<()> = Mutex::new(());

/// A stream without its compression.
pub(crate) struct Inflate<R: BufRead> {
    format: Format<R>,
}

enum Format<R: BufRead> {
    Plain(Front<R>),
    Gzip(Box<Gzip<R>>),
    Zstd(Zstd<R>),
}

impl<R: BufRead> Inflate<R> {
    /// Looks at the first bytes of a stream.
    ///
    /// # Errors
    /// Those of the reader; `Invalid`, inside, for a compression that is not supported.
    pub(crate) fn new(reader: R, limits: &Limits) -> io::Result<Inflate<R>> {
        let mut front = Front::new(reader);
        let first = front.peek()?;
        let format = match first {
            [0x1f, 0x8b, ..] => {
                let limit = limits.passed("a gzip stream", "gzip_members");
                Format::Gzip(Box::new(Gzip {
                    members: limits.gzip_members,
                    limit: Some(limit),
                    decoder: Some(GzDecoder::new(front)),
                }))
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Format::Zstd(Zstd::new(front, limits)?)
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Err(unsupported("xz")),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => {
                return Err(unsupported("bzip2"));
            }
            [0x04, 0x22, 0x4d, 0x18, ..] => return Err(unsupported("lz4")),
            _ => Format::Plain(front),
        };
        Ok(Inflate { format })
    }

    /// Whether the stream is not compressed.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.format, Format::Plain(_))
    }
}

impl<R: BufRead> Read for Inflate<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.format {
            Format::Plain(front) => front.read(buffer),
            Format::Gzip(gzip) => gzip.read(buffer),
            Format::Zstd(zstd) => zstd.read(buffer),
        }
    }
}

fn unsupported(name: &str) -> io::Error {
    let problem = format!("{name} is not supported: layers are gzip, zstd or not compressed");
    io::Error::other(Error::invalid(format!("compression {name}"), problem))
}

/// A reader whose next bytes can be looked at, however it cuts them.
struct Front<R> {
    reader: R,
    held: Vec<u8>,
}

/// Enough for every magic number and for a whole header of a zstd frame.
const PEEK: usize = 18;

impl<R: BufRead> Front<R> {
    fn new(reader: R) -> Front<R> {
        Front { reader, held: Vec::new() }
    }

    /// The next bytes, [`PEEK`] of them unless the stream ends before.
    fn peek(&mut self) -> io::Result<&[u8]> {
        if self.held.is_empty() && self.reader.fill_buf()?.len() >= PEEK {
            return self.reader.fill_buf();
        }
        while self.held.len() < PEEK {
            let available = self.reader.fill_buf()?;
            if available.is_empty() {
                break;
            }
            let wanted = available.len().min(PEEK - self.held.len());
            self.held.extend_from_slice(&available[..wanted]);
            self.reader.consume(wanted);
        }
        Ok(&self.held)
    }
}

impl<R: BufRead> Read for Front<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        super::copy_out(self, buffer)
    }
}

impl<R: BufRead> BufRead for Front<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.held.is_empty() { self.reader.fill_buf() } else { Ok(&self.held) }
    }

    fn consume(&mut self, count: usize) {
        if self.held.is_empty() {
            self.reader.consume(count);
        } else {
            self.held.drain(..count);
        }
    }
}

/// One member after the other; what follows the last one must be another one, as in Go.
struct Gzip<R: BufRead> {
    /// How many more members may begin.
    members: u64,
    limit: Option<Error>,
    decoder: Option<GzDecoder<Front<R>>>,
}

impl<R: BufRead> Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let decoder = self.decoder.as_mut().expect("there is one between two reads");
            let count = decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() || decoder.get_mut().fill_buf()?.is_empty() {
                return Ok(count);
            }
            self.members -= 1;
            if self.members == 0 {
                return Err(io::Error::other(self.limit.take().expect("told once")));
            }
            let rest = self.decoder.take().expect("it was just used").into_inner();
            self.decoder = Some(GzDecoder::new(rest));
        }
    }
}

/// One frame after the other, each with a window that is looked at before memory is taken for it.
struct Zstd<R> {
    input: Front<R>,
    decoder: ZstdDecoder<'static>,
    in_frame: bool,
    max_window: u64,
    limit: Option<Error>,
    large: Option<MutexGuard<'static, ()>>,
}

impl<R: BufRead> Zstd<R> {
    fn new(input: Front<R>, limits: &Limits) -> io::Result<Zstd<R>> {
        let mut decoder = ZstdDecoder::new()?;
        // The library has a limit of its own, as a power of two; ours is checked before.
        let log = limits.zstd_window.0.next_power_of_two().ilog2().clamp(10, 31);
        decoder.set_parameter(DParameter::WindowLogMax(log))?;
        Ok(Zstd {
            input,
            decoder,
            in_frame: false,
            max_window: limits.zstd_window.0,
            limit: Some(limits.passed("the window of a zstd frame", "zstd_window")),
            large: None,
        })
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut out = OutBuffer::around(buffer);
        while out.pos() == 0 {
            if !self.in_frame && !self.begin_frame()? {
                return Ok(0);
            }
            let available = self.input.fill_buf()?;
            let at_end = available.is_empty();
            let mut input = InBuffer::around(available);
            let hint = self.decoder.run(&mut input, &mut out)?;
            let consumed = input.pos();
            self.input.consume(consumed);
            self.in_frame = hint != 0;
            if at_end && self.in_frame && out.pos() == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the zstd stream ends too early",
                ));
            }
        }
        Ok(out.pos())
    }

    /// Looks at the header of the next frame; false at the end of the stream.
    fn begin_frame(&mut self) -> io::Result<bool> {
        let header = self.input.peek()?;
        if header.is_empty() {
            return Ok(false);
        }
        let window = window_of(header);
        if window > self.max_window {
            return Err(io::Error::other(self.limit.take().expect("told once")));
        }
        if window > USUAL_WINDOW && self.large.is_none() {
            self.large = Some(LARGE_WINDOW.lock().unwrap_or_else(PoisonError::into_inner));
        }
        self.decoder.reinit()?;
        Ok(true)
    }
}

/// The window that a frame asks for, in bytes (RFC 8878, 3.1.1.1). Zero where there is none; the decoder judges the rest.
fn window_of(frame: &[u8]) -> u64 {
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] = frame else { return 0 };
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let Some(window) = rest.first() else { return 0 };
        let base = 1_u64 << (10 + (window >> 3));
        return base + base / 8 * u64::from(window & 7);
    }
    // Without a window the content is the window; its size follows the id of a dictionary.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let width = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let Some(field) = rest.get(dictionary..dictionary + width) else { return 0 };
    let mut size = [0; 8];
    size[..width].copy_from_slice(field);
    u64::from_le_bytes(size) + if width == 2 { 256 } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write};

    use super::*;

    /// A reader that gives one byte at a time, so that every boundary is met.
    fn slowly(bytes: &[u8]) -> impl BufRead {
        BufReader::with_capacity(1, bytes)
    }

    fn inflate(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut fast = Vec::new();
        let mut slow = Vec::new();
        Inflate::new(bytes, &Limits::default())?.read_to_end(&mut fast)?;
        Inflate::new(slowly(bytes), &Limits::default())?.read_to_end(&mut slow)?;
        assert_eq!(fast, slow);
        Ok(fast)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 3).unwrap()
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: &[u8]) {
        assert_eq!(inflate(bytes).unwrap(), expected);
    }

    #[track_caller]
    fn check_error(bytes: &[u8]) {
        assert!(inflate(bytes).is_err());
    }

    #[test]
    fn every_compression_is_known_by_its_first_bytes() {
        let text = b"text".repeat(1000);
        check(&text, &text);
        check(b"", b"");
        check(b"x", b"x");
        check(&gzip(&text), &text);
        check(&zstd(&text), &text);
        check(&gzip(b""), b"");
        check(&zstd(b""), b"");
        for magic in [&b"\xfd7zXZ\0"[..], b"BZh91AY&SY", b"\x04\x22\x4d\x18"] {
            let error = inflate(magic).unwrap_err().to_string();
            assert!(error.contains("not supported"), "{error}");
        }
    }

    #[test]
    fn members_and_frames_follow_each_other() {
        check(&[gzip(b"one"), gzip(b""), gzip(b"two")].concat(), b"onetwo");
        let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
        check(&[zstd(b"one"), skippable.to_vec(), zstd(b"two")].concat(), b"onetwo");
        check(&[skippable.to_vec(), zstd(b"two"), skippable.to_vec()].concat(), b"two");
    }

    #[test]
    fn garbage_behind_the_end_is_refused() {
        check_error(&[gzip(b"one"), b"\0\0\0".to_vec()].concat());
        check_error(&[zstd(b"one"), b"garbage".to_vec()].concat());
    }

    #[test]
    fn every_truncation_is_noticed() {
        for whole in [gzip(&b"text".repeat(50)), zstd(&b"text".repeat(50))] {
            for length in 6..whole.len() {
                check_error(&whole[..length]);
            }
        }
    }

    #[test]
    fn members_are_counted() {
        let limits = Limits { gzip_members: 3, ..Limits::default() };
        let read = |count| {
            let stream = gzip(b"x").repeat(count);
            Inflate::new(&stream[..], &limits).unwrap().read_to_end(&mut Vec::new())
        };
        assert_eq!(read(3).unwrap(), 3);
        assert!(read(4).unwrap_err().to_string().contains("gzip_members"));
    }

    #[track_caller]
    fn check_window(frame: &[u8], expected: u64) {
        assert_eq!(window_of(&[&b"\x28\xb5\x2f\xfd"[..], frame].concat()), expected);
    }

    #[test]
    fn windows_are_read_from_the_frame() {
        check_window(&[0x00, 0x00], 1 << 10);
        check_window(&[0x00, 0x68], 8 << 20);
        check_window(&[0x00, 0x69], 9 << 20);
        check_window(&[0x00, 0xf8], 1 << 41);
        check_window(&[0x20, 0x07], 7);
        check_window(&[0x61, 0xaa, 0x00, 0x01], 512);
        check_window(&[0xa0, 0, 0, 0, 0x40], 1 << 30);
        check_window(&[0xe0, 0, 0, 0, 0, 1, 0, 0, 0], 1 << 32);
        check_window(&[], 0);
    }

    #[test]
    fn a_window_that_is_too_large_is_refused_and_a_large_one_is_taken() {
        let frame = |log| {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            encoder.write_all(b"text").unwrap();
            encoder.flush().unwrap();
            encoder.write_all(b"text").unwrap();
            encoder.finish().unwrap()
        };
        check(&[frame(26), frame(27)].concat(), b"texttexttexttext");
        let error = inflate(&frame(28)).unwrap_err().to_string();
        assert!(error.contains("zstd_window"), "{error}");
    }
}
