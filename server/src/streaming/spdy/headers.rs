//! Header blocks: pairs of names and values, compressed with one zlib stream in each direction of a connection.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::dictionary;

/// Longest header block when inflated. Ours and our clients' have some hundred bytes.
pub(crate) const MAX_BLOCK: usize = 128 << 10;
/// Pairs in one block.
pub(crate) const MAX_PAIRS: usize = 128;

/// What a peer sent that SPDY/3.1 does not allow, or more than we take. It ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub &'static str);

/// The headers of a stream, names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    /// Headers from pairs.
    #[cfg(test)]
    pub(crate) fn new(pairs: &[(&str, &str)]) -> Headers {
        Headers(
            pairs.iter().map(|(name, value)| (name.to_lowercase(), (*value).to_owned())).collect(),
        )
    }

    /// The first value of a header; the name in lower case.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(have, _)| have == name)?;
        value.split('\0').next()
    }

    fn parse(block: &[u8]) -> Result<Headers, Malformed> {
        let mut rest = block;
        let count = take_length(&mut rest)?;
        if count > MAX_PAIRS {
            return Err(Malformed("too many headers"));
        }
        let mut pairs: Vec<(String, String)> = Vec::with_capacity(count);
        for _ in 0..count {
            let name = take_text(&mut rest)?.to_lowercase();
            let value = take_text(&mut rest)?;
            if name.is_empty() {
                return Err(Malformed("a header without a name"));
            }
            if pairs.iter().any(|(have, _)| *have == name) {
                return Err(Malformed("the same header twice"));
            }
            pairs.push((name, value));
        }
        if rest.is_empty() { Ok(Headers(pairs)) } else { Err(Malformed("bytes after the headers")) }
    }

    fn write(&self) -> Vec<u8> {
        let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        let mut block = length(self.0.len()).to_vec();
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&length(text.len()));
            block.extend_from_slice(text.as_bytes());
        }
        block
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (taken, left) = rest.split_at_checked(length).ok_or(Malformed("headers that break off"))?;
    *rest = left;
    Ok(taken)
}

fn take_length(rest: &mut &[u8]) -> Result<usize, Malformed> {
    let bytes = take(rest, 4)?.try_into().unwrap_or_default();
    Ok(usize::try_from(u32::from_be_bytes(bytes)).unwrap_or(usize::MAX))
}

fn take_text(rest: &mut &[u8]) -> Result<String, Malformed> {
    let length = take_length(rest)?;
    Ok(String::from_utf8_lossy(take(rest, length)?).into_owned())
}

/// Inflates the blocks of one direction, in their order.
#[derive(Debug)]
pub(crate) struct Inflater {
    stream: Decompress,
}

impl Inflater {
    /// For a new connection.
    pub(crate) fn new() -> Inflater {
        Inflater { stream: Decompress::new(true) }
    }

    /// The headers of the next block.
    ///
    /// # Errors
    /// The block is not what zlib or SPDY allow, or too long.
    pub(crate) fn read(&mut self, mut input: &[u8]) -> Result<Headers, Malformed> {
        let mut block = Vec::new();
        let mut part = vec![0; 4096];
        loop {
            let (before_in, before_out) = (self.stream.total_in(), self.stream.total_out());
            let inflated = self.stream.decompress(input, &mut part, FlushDecompress::Sync);
            let used = delta(before_in, self.stream.total_in());
            input = input.get(used..).unwrap_or_default();
            let made = delta(before_out, self.stream.total_out());
            block.extend_from_slice(part.get(..made).unwrap_or_default());
            if block.len() > MAX_BLOCK {
                return Err(Malformed("a header block that is too long"));
            }
            match inflated {
                Ok(Status::StreamEnd) => return Err(Malformed("an end of the header stream")),
                // What is inflated is out once there is room left.
                Ok(_) if input.is_empty() && made < part.len() => break,
                Ok(_) if used == 0 && made == 0 => {
                    return Err(Malformed("a header block that is not zlib's"));
                }
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => self
                    .stream
                    .set_dictionary(dictionary())
                    .map(drop)
                    .map_err(|_| Malformed("another dictionary than SPDY's"))?,
                Err(_) => return Err(Malformed("a header block that is not zlib's")),
            }
        }
        Headers::parse(&block)
    }
}

fn delta(before: u64, after: u64) -> usize {
    usize::try_from(after - before).unwrap_or(usize::MAX)
}

/// Deflates the blocks of one direction, in their order.
#[derive(Debug)]
pub(crate) struct Deflater {
    stream: Compress,
}

impl Deflater {
    /// For a new connection.
    ///
    /// # Errors
    /// The dictionary is not taken, which no zlib does.
    pub(crate) fn new() -> Result<Deflater, Malformed> {
        let mut stream = Compress::new(Compression::fast(), true);
        stream.set_dictionary(dictionary()).map_err(|_| Malformed("no dictionary is taken"))?;
        Ok(Deflater { stream })
    }

    /// The next block.
    ///
    /// # Errors
    /// zlib refuses, which it does for nothing that gets here.
    pub(crate) fn write(&mut self, headers: &Headers) -> Result<Vec<u8>, Malformed> {
        let block = headers.write();
        let mut input = block.as_slice();
        let mut output = Vec::with_capacity(block.len() + 64);
        loop {
            let before = self.stream.total_in();
            self.stream
                .compress_vec(input, &mut output, FlushCompress::Sync)
                .map_err(|_| Malformed("headers that zlib refuses"))?;
            input = input.get(delta(before, self.stream.total_in())..).unwrap_or_default();
            // A flush is over when it leaves room.
            if input.is_empty() && output.len() < output.capacity() {
                return Ok(output);
            }
            output.reserve(4096);
        }
    }
}
