//! The entries of a tar archive, read once from front to back.
//!
//! Whatever is not the content of a file is kept as raw bytes, in order, so that the
//! archive can be made again to the byte (see `recipe.rs`). One strict parser decides where
//! each entry ends: what Go's archive/tar would read differently is an error here (E-05).

use std::io::BufRead;

use super::header::{self, BLOCK, Block, Dialect, Header};
use super::pax::{Records, Time};
use super::sparse::{self, Extent, PaxSparse};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::registry::from_io;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry with everything its headers say. Its content is read with [`Entries::content`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// The name as written, not yet checked.
    pub(crate) name: Vec<u8>,
    /// Where a link leads, as written.
    pub(crate) link: Vec<u8>,
    /// Permission bits with set-uid, set-gid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Size of the file with its holes; nothing but files has one.
    pub(crate) size: u64,
    /// Where a sparse file has data; `None` where it has data everywhere.
    pub(crate) extents: Option<Vec<Extent>>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A reader of entries.
pub(crate) struct Entries<'a, R> {
    reader: R,
    limits: &'a Limits,
    /// The archive, as errors call it.
    what: String,
    raw: Vec<u8>,
    count: u64,
    position: u64,
    /// Content of the current entry that has not been read.
    remaining: u64,
    padding: usize,
}

/// Headers that describe the entry after them.
#[derive(Default)]
struct Ahead {
    records: Option<Records>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<'a, R: BufRead> Entries<'a, R> {
    /// Reads an archive that errors call `what`.
    pub(crate) fn new(reader: R, what: impl Into<String>, limits: &'a Limits) -> Entries<'a, R> {
        Entries {
            reader,
            limits,
            what: what.into(),
            raw: Vec::new(),
            count: 0,
            position: 0,
            remaining: 0,
            padding: 0,
        }
    }

    /// All bytes that were no content of a file, since this was last asked or emptied.
    pub(crate) fn raw(&mut self) -> &mut Vec<u8> {
        &mut self.raw
    }

    /// The place in the archive: bytes read so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next entry, or nothing at the end. The content of the one before must have been read.
    ///
    /// # Errors
    /// `Invalid` where the archive is malformed, `Limit` where it has too much of something,
    /// and those of the reader.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        debug_assert_eq!(self.remaining, 0, "the content of an entry was not read");
        let mut ahead = Ahead::default();
        loop {
            self.skip_padding()?;
            let Some((header, block)) = self.header()? else {
                return match ahead {
                    Ahead { records: None, name: None, link: None } => Ok(None),
                    _ => Err(self.bad("an extended header without an entry after it")),
                };
            };
            self.count += 1;
            if self.count > self.limits.tar_entries {
                return Err(self.limits.passed(&self.what, "tar_entries"));
            }
            match header.kind {
                b'x' | b'L' | b'K' => self.take_ahead(&header, &mut ahead)?,
                b'g' => self.take_global(&header, &ahead)?,
                _ => return self.entry(header, &block, ahead).map(Some),
            }
        }
    }

    /// Hands the content of the current entry on in pieces. Of a sparse file it is the data without the holes.
    ///
    /// # Errors
    /// Those of the reader and of `sink`; `Invalid` where the archive ends too early.
    pub(crate) fn content(&mut self, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        while self.remaining > 0 {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) => return Err(read_error(error, &self.what)),
            };
            if available.is_empty() {
                return Err(self.bad("the archive ends inside a file"));
            }
            let wanted = usize::try_from(self.remaining).unwrap_or(usize::MAX);
            let piece = &available[..available.len().min(wanted)];
            sink(piece)?;
            let length = piece.len();
            self.reader.consume(length);
            self.remaining -= length as u64;
            self.position += length as u64;
        }
        Ok(())
    }

    /// Reads on behind the end of the archive to the end of the stream.
    ///
    /// # Errors
    /// `Limit` where more follows than `trailer_bytes`; those of the reader.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let mut length = 0;
        loop {
            let available =
                self.reader.fill_buf().map_err(|error| read_error(error, &self.what))?;
            if available.is_empty() {
                return Ok(());
            }
            length += available.len() as u64;
            if length > self.limits.trailer_bytes.0 {
                return Err(self
                    .limits
                    .passed(format!("padding of {}", self.what), "trailer_bytes"));
            }
            self.raw.extend_from_slice(available);
            let consumed = available.len();
            self.reader.consume(consumed);
            self.position += consumed as u64;
        }
    }

    /// Whether content of the current entry is still to be read.
    pub(crate) fn has_content(&self) -> bool {
        self.remaining > 0
    }

    fn bad(&self, problem: &str) -> Error {
        let (count, position) = (self.count, self.position);
        Error::invalid(&self.what, format!("{problem} (tar entry {count}, byte {position})"))
    }

    /// Reads `length` bytes as raw ones; returns where they begin in `raw`.
    fn read_raw(&mut self, length: usize) -> Result<usize> {
        let start = self.raw.len();
        while self.raw.len() < start + length {
            let available =
                self.reader.fill_buf().map_err(|error| read_error(error, &self.what))?;
            if available.is_empty() {
                return Err(self.bad("the archive ends too early"));
            }
            let piece = available.len().min(start + length - self.raw.len());
            self.raw.extend_from_slice(&available[..piece]);
            self.reader.consume(piece);
            self.position += piece as u64;
        }
        Ok(start)
    }

    fn block(&mut self) -> Result<Block> {
        let start = self.read_raw(BLOCK)?;
        Ok(self.raw[start..].try_into().expect("a block of bytes was just read"))
    }

    fn skip_padding(&mut self) -> Result<()> {
        let padding = std::mem::take(&mut self.padding);
        self.read_raw(padding).map(drop)
    }

    fn at_end(&mut self) -> Result<bool> {
        let available = self.reader.fill_buf().map_err(|error| read_error(error, &self.what))?;
        Ok(available.is_empty())
    }

    /// The next header, or nothing at the end of the archive: two blocks of zeros, or, as Go
    /// has it, one or none where the stream ends.
    fn header(&mut self) -> Result<Option<(Header, Block)>> {
        if self.at_end()? {
            return Ok(None);
        }
        let block = self.block()?;
        if header::is_zero(&block) {
            if self.at_end()? || header::is_zero(&self.block()?) {
                return Ok(None);
            }
            return Err(self.bad("one block of zeros where two end an archive"));
        }
        let header = header::parse(&block).map_err(|problem| self.bad(problem))?;
        Ok(Some((header, block)))
    }

    /// The content of a header that describes the next one.
    fn special(&mut self, header: &Header) -> Result<Vec<u8>> {
        let length = u64::try_from(header.size).map_err(|_| self.bad("negative size"))?;
        if length > self.limits.header_records.0 {
            return Err(self.limits.passed(format!("a header of {}", self.what), "header_records"));
        }
        let length = usize::try_from(length).expect("limited to what fits into memory");
        let start = self.read_raw(length)?;
        self.padding = length.next_multiple_of(BLOCK) - length;
        Ok(self.raw[start..].to_vec())
    }

    fn take_ahead(&mut self, header: &Header, ahead: &mut Ahead) -> Result<()> {
        let content = self.special(header)?;
        let taken = match header.kind {
            b'x' => {
                let records = Records::parse(&content).map_err(|problem| self.bad(problem))?;
                ahead.records.replace(records).is_some()
            }
            b'L' => ahead.name.replace(header::text(&content).to_vec()).is_some(),
            _ => ahead.link.replace(header::text(&content).to_vec()).is_some(),
        };
        // Readers differ on which of two counts, so neither does.
        if taken {
            Err(self.bad("two extended headers of one kind before an entry"))
        } else {
            Ok(())
        }
    }

    /// A global header changes nothing, as in Go and so in every other runtime. One that
    /// would change what later entries are is refused, for readers disagree about it.
    fn take_global(&mut self, header: &Header, ahead: &Ahead) -> Result<()> {
        const DECISIVE: &[&str] =
            &["path", "linkpath", "size", "uid", "gid", "GNU.sparse.major", "GNU.sparse.map"];
        let content = self.special(header)?;
        let records = Records::parse(&content).map_err(|problem| self.bad(problem))?;
        if let Some(key) = records.first_of(DECISIVE) {
            return Err(self.bad(&format!("a global header that sets {key} for all entries")));
        }
        if ahead.records.is_some() || ahead.name.is_some() || ahead.link.is_some() {
            return Err(self.bad("a global header between an extended header and its entry"));
        }
        Ok(())
    }

    fn entry(&mut self, mut header: Header, block: &Block, ahead: Ahead) -> Result<Entry> {
        let records = ahead.records.unwrap_or_default();
        let number = |key, or| records.number(key).map(|value| value.unwrap_or(or));
        let merged = || -> std::result::Result<_, &'static str> {
            let ids = (number("uid", header.uid)?, number("gid", header.gid)?);
            // Of no use to us; a reader that stumbles over them would end here.
            records.time("atime")?;
            records.time("ctime")?;
            let mtime = records.time("mtime")?.unwrap_or((header.mtime, 0));
            Ok((ids, number("size", header.size)?, mtime, records.xattrs()?))
        };
        let ((uid, gid), size, mtime, xattrs) = merged().map_err(|problem| self.bad(problem))?;
        let name =
            records.get("path").map_or_else(|| std::mem::take(&mut header.name), <[u8]>::to_vec);
        let link = records
            .get("linkpath")
            .map_or_else(|| std::mem::take(&mut header.link), <[u8]>::to_vec);
        let mut entry = Entry {
            kind: Kind::File,
            name: ahead.name.filter(|name| !name.is_empty()).unwrap_or(name),
            link: ahead.link.filter(|link| !link.is_empty()).unwrap_or(link),
            mode: u32::try_from(header.mode & 0o7777).expect("twelve bits fit"),
            uid: self.id(uid, "uid")?,
            gid: self.id(gid, "gid")?,
            mtime,
            device: (0, 0),
            size: 0,
            extents: None,
            xattrs: xattrs.into_iter().collect(),
        };
        entry.kind = self.kind(header.kind, &entry.name)?;
        if entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() as u64
            > self.limits.xattr_bytes.0
        {
            return Err(self.limits.passed(format!("attributes in {}", self.what), "xattr_bytes"));
        }
        let map = sparse::in_records(&records).map_err(|problem| self.bad(problem))?;
        let is_sparse = header.kind == b'S' || map.is_some();
        if entry.kind != Kind::File && is_sparse {
            return Err(self.bad("a sparse map for what is no file"));
        }
        match entry.kind {
            Kind::File => self.start_content(&mut entry, &header, size, block, map)?,
            Kind::CharDevice | Kind::BlockDevice => {
                let number =
                    |number| u32::try_from(number).map_err(|_| self.bad("bad device number"));
                entry.device = (number(header.device.0)?, number(header.device.1)?);
            }
            Kind::HardLink | Kind::Symlink | Kind::Directory | Kind::Fifo => {}
        }
        Ok(entry)
    }

    /// A user or group id. 2^32 - 1 means "nobody said" to the kernel, so it is none.
    fn id(&self, value: i64, name: &str) -> Result<u32> {
        u32::try_from(value)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| self.bad(&format!("the {name} {value} is not between 0 and 4294967294")))
    }

    fn kind(&self, flag: u8, name: &[u8]) -> Result<Kind> {
        Ok(match flag {
            // Old archives have no type for directories but the slash behind the name.
            0 if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let other = char::from(other).escape_default();
                return Err(self.bad(&format!("entries of type '{other}' are not supported")));
            }
        })
    }

    fn start_content(
        &mut self,
        entry: &mut Entry,
        header: &Header,
        size: i64,
        block: &Block,
        found: Option<PaxSparse>,
    ) -> Result<()> {
        let stored = u64::try_from(size).map_err(|_| self.bad("negative size"))?;
        self.padding =
            usize::try_from(stored.wrapping_neg() % BLOCK as u64).expect("below a block");
        self.remaining = stored;
        entry.size = stored;
        self.check_total(stored)?;
        let (map, real_size) = if header.kind == b'S' {
            if header.dialect != Dialect::Gnu {
                return Err(self.bad("a sparse file of GNU's in another format"));
            }
            self.old_sparse_map(block)?
        } else {
            let Some(found) = found else { return Ok(()) };
            if let Some(name) = found.name {
                entry.name = name;
            }
            let map = match found.map {
                Some(map) => map,
                None => self.sparse_map_in_front()?,
            };
            (map, found.real_size.unwrap_or(size))
        };
        if map.len() as u64 > self.limits.sparse_extents {
            let what = format!("a sparse file in {}", self.what);
            return Err(self.limits.passed(what, "sparse_extents"));
        }
        let extents = sparse::checked(&map, real_size, self.remaining)
            .map_err(|problem| self.bad(problem))?;
        entry.size = u64::try_from(real_size).expect("checked with the map");
        entry.extents = Some(extents);
        Ok(())
    }

    /// An entry that claims more than a whole layer may have is refused before a byte of it is written.
    fn check_total(&self, content: u64) -> Result<()> {
        if self.position.saturating_add(content) > self.limits.tar_bytes.0 {
            return Err(self.limits.passed(&self.what, "tar_bytes"));
        }
        Ok(())
    }

    fn old_sparse_map(&mut self, block: &Block) -> Result<(Vec<header::RawExtent>, i64)> {
        let (size, mut map, mut more) =
            header::old_sparse(block).map_err(|problem| self.bad(problem))?;
        let mut length = 0;
        while more {
            length += BLOCK as u64;
            if length > self.limits.header_records.0 {
                return Err(self
                    .limits
                    .passed(format!("a header of {}", self.what), "header_records"));
            }
            let block = self.block()?;
            let (extents, follows) =
                header::more_sparse(&block).map_err(|problem| self.bad(problem))?;
            map.extend(extents);
            more = follows;
        }
        Ok((map, size))
    }

    /// Reads blocks until all lines of the map are there, and not one more: data follows.
    fn sparse_map_in_front(&mut self) -> Result<Vec<header::RawExtent>> {
        let mut text = Vec::new();
        let (mut lines, mut wanted) = (0, 1);
        loop {
            while lines < wanted {
                if text.len() as u64 >= self.limits.header_records.0 {
                    let what = format!("a sparse map of {}", self.what);
                    return Err(self.limits.passed(what, "header_records"));
                }
                if self.remaining < BLOCK as u64 {
                    return Err(self.bad("the data of a sparse file ends inside its map"));
                }
                let block = self.block()?;
                self.remaining -= BLOCK as u64;
                lines += block.iter().filter(|byte| **byte == b'\n').count();
                text.extend_from_slice(&block);
            }
            if wanted > 1 {
                break;
            }
            wanted = sparse::lines_in_front(&text).map_err(|problem| self.bad(problem))?;
            if wanted == 1 {
                break;
            }
        }
        sparse::map_in_front(&text, wanted).map_err(|problem| self.bad(problem))
    }
}

fn read_error(error: std::io::Error, what: &str) -> Error {
    from_io(error, || format!("read {what}"))
}
